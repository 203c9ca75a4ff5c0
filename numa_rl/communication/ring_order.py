"""In which order a ring of ranks best visits the nodes of a machine.

A flat ring sends from each rank to the next at every step, so its order decides which links are shared and how far
messages go (chapter, section 16.1.2). Where the links have a Hamiltonian cycle, as the chapter's cube does, the
ring can follow it and no two sends share a link.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise, permutations

import numpy as np

from numa_rl.communication.transfers import require_node, resource_s_per_byte, stream_resources
from numa_rl.topology import IntArray, Topology

EXACT_NODES = 8  # rings of up to this many nodes are searched in full: 7! orders of the others
STARTS = 8  # rings that are improved, of larger ones


def ring_order(topology: Topology, nodes: Sequence[int] | None = None) -> IntArray:
    """A good order for a flat ring with one rank on each node: the placement to give to `schedule_s`.

    A ring is as fast as its most loaded link, then as its longest latency; the sum of latencies decides between
    rings that tie, so routes that share links or pass through other nodes are avoided. Up to `EXACT_NODES` nodes the
    order is the best one. Beyond, the `STARTS` best of the rings that go from node to nearest node are improved by
    reversing parts of them (2-opt) and moving nodes along them (or-opt) until neither helps, and the best is taken:
    a good ring, not always the best.

    Args:
        topology: the machine.
        nodes: the nodes on the ring, at least one; those that have cores when None.

    Returns:
        The nodes in ring order, shape (number of nodes,), from the first of `nodes` on.

    Raises:
        ValueError: no node, one given twice, or one that the machine does not have.
    """
    chosen = np.flatnonzero(topology.cores).tolist() if nodes is None else list(nodes)
    for index, node in enumerate(chosen):
        require_node(topology, **{f"nodes[{index}]": node})
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"nodes must be one or more different nodes, got {chosen}.")
    cost = _RingCost(topology, chosen)
    if len(chosen) <= EXACT_NODES:
        order = cost.best_of_all(chosen)
    else:
        starts = sorted((cost.nearest_first(start, chosen) for start in chosen), key=cost.of)
        order = min((cost.improved(start) for start in starts[:STARTS]), key=cost.of)
    start = order.index(chosen[0])
    return np.array(order[start:] + order[:start], np.int64)


class _RingCost:
    """What an order of nodes costs as a ring: smaller tuples are better rings.

    Args:
        topology: the machine.
        nodes: the nodes that may be on the ring.
    """

    def __init__(self, topology: Topology, nodes: Sequence[int]) -> None:
        s_per_byte = resource_s_per_byte(topology)
        self.num_resources = len(s_per_byte)
        self.latency_s = topology.latency_s
        streams = {(a, b): stream_resources(topology, a, b) for a, b in permutations(nodes, 2)}
        self.streams = {pair: (resources, s_per_byte[resources]) for pair, resources in streams.items()}

    def of(self, path: Sequence[int], closed: bool = True) -> tuple[float, float, float]:
        """Seconds per byte of the most loaded resource, largest latency and sum of latencies of a ring or a path.

        None of the three falls when a node is appended, so a path costs at most what any ring through it does.
        """
        sends = list(pairwise([*path, path[0]] if closed else path))
        busy = np.zeros(self.num_resources)
        for send in sends if len(path) > 1 else []:
            resources, s_per_byte = self.streams[send]
            busy[resources] += s_per_byte
        latencies = [float(self.latency_s[target, source]) for source, target in sends]
        return float(busy.max()), max(latencies, default=0.0), sum(latencies)

    def best_of_all(self, nodes: Sequence[int]) -> list[int]:
        """The cheapest ring: depth first, leaving out paths that already cost as much as the best ring known."""
        best = list(nodes)
        least = self.of(best)
        paths = [[nodes[0]]]
        while paths:
            path = paths.pop()
            complete = len(path) == len(nodes)
            cost = self.of(path, closed=complete)
            if cost >= least:
                continue
            if complete:
                best, least = path, cost
            paths += [[*path, node] for node in nodes if node not in path]
        return best

    def nearest_first(self, start: int, nodes: Sequence[int]) -> list[int]:
        """From `start` on, always to the nearest node that is left."""
        order, left = [start], [node for node in nodes if node != start]
        while left:
            order.append(min(left, key=lambda node: float(self.latency_s[node, order[-1]])))
            left.remove(order[-1])
        return order

    def improved(self, order: list[int]) -> list[int]:
        """The ring after reversing parts of it and moving single nodes for as long as that makes it cheaper."""
        least, better = self.of(order), True
        while better:
            better = False
            for first, last in combinations(range(1, len(order)), 2):
                part = order[first : last + 1]
                for changed in (part[::-1], part[1:] + part[:1], part[-1:] + part[:-1]):
                    other = order[:first] + changed + order[last + 1 :]
                    cost = self.of(other)
                    if cost < least:
                        order, least, better = other, cost, True
        return order

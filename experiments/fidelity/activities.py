"""A replay as activities on shared resources: what a simulator of machines needs to know, and nothing of NUMA.

Resources are memory controllers, directed links, and what all cores of a node together draw from a memory. Each has a
capacity in bytes a second. A core besides has its own arithmetic and its own bytes in flight. An activity moves its
bytes through all of its resources, and does its arithmetic, at one proportional rate, so that all end together.

Dimension key: N nodes, L links, R = N + L + N * N resources, T tasks.

References:
    [1] J. D. C. Little, "A proof for the queuing formula L = lambda W", 1961.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from experiments.fidelity.replay import Replay
from numa_rl.topology import Topology

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Activity:
    """One thing that a core does.

    Attributes:
        fixed_s: time before it, in which nothing is used.
        compute_s: time that its arithmetic takes its core at least.
        window_s: time that its bytes take its core at least: bytes over what the core keeps in flight in an idle
            latency [1].
        amounts: bytes through each resource, by index.
    """

    fixed_s: float
    compute_s: float
    window_s: float
    amounts: dict[int, float]

    @property
    def core_s(self) -> float:
        """Time that it takes its core at least."""
        return max(self.compute_s, self.window_s)


def capacities(topology: Topology) -> F64:
    """Bytes a second of every resource, shape (R,): controllers, links, then (initiator, target) pairs row by row."""
    return np.concatenate(
        [
            topology.memory_bandwidth_bytes_per_s,
            topology.link_bandwidth_bytes_per_s,
            topology.bandwidth_bytes_per_s.ravel(),
        ]
    )


def resource_names(topology: Topology) -> list[str]:
    """What the resources are called, R of them."""
    nodes = range(topology.num_nodes)
    return [
        *(f"controller {n}" for n in nodes),
        *(f"link {a} to {z}" for a, z in topology.links.tolist()),
        *(f"node {i} from memory {d}" for i in nodes for d in nodes),
    ]


def resources_of(topology: Topology) -> list[list[tuple[list[int], list[int]]]]:
    """Resources of a stream between every initiator and target: (of all its bytes, links of reads, links of writes).

    Without the pair's own, which follows from initiator and target.
    """
    n = topology.num_nodes
    reads, writes = topology.route_links
    return [
        [
            (
                [n + int(link) for link in np.flatnonzero(reads[i * n + d])],
                [n + int(link) for link in np.flatnonzero(writes[i * n + d])],
            )
            for d in range(n)
        ]
        for i in range(n)
    ]


def activities(replay: Replay) -> list[list[Activity]]:
    """What each task does, one activity after another; nothing for dropped tasks.

    A flow that joins the one before is the writing of what that one reads: it adds its bytes to the target's
    controller and the links, but none to what the core has in flight or the node draws. What a node may draw from a
    memory is left out where it is no less than what the memory delivers to all.
    """
    topology = replay.topology
    n, first_pair = topology.num_nodes, topology.num_nodes + topology.num_links
    bounded = topology.bandwidth_bytes_per_s < topology.memory_bandwidth_bytes_per_s
    links = resources_of(topology)
    window_s = topology.latency_s / topology.outstanding_bytes
    tasks: list[list[Activity]] = [[] for _ in range(replay.num_tasks)]
    for task, initiator, target, read, written, flops, fixed_s, joined, _ in replay.flows.tolist():
        if not joined:
            compute_s = flops / float(topology.flops_per_s[replay.node[task]])
            tasks[task].append(Activity(fixed_s, compute_s, (read + written) * window_s[initiator, target], {}))
        amounts = tasks[task][-1].amounts
        toward, away = links[initiator][target]
        shared = [target]
        if bounded[initiator, target] and not joined:
            shared.append(first_pair + initiator * n + target)
        for resources, num_bytes in ((shared, read + written), (toward, read), (away, written)):
            for resource in resources:
                if num_bytes > 0.0:
                    amounts[resource] = amounts.get(resource, 0.0) + num_bytes
    return tasks

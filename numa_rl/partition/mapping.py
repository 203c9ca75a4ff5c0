"""Placing parts on nodes, so that those with much between them are near each other.

Dimension key: K parts, N nodes.

References:
    [1] The chapter, section 16.2.1.
    [2] T. C. Koopmans and M. Beckmann, "Assignment problems and the location of economic activities", Econometrica
        25(1), 1957: quadratic assignment.
    [3] H. Müller-Merbach, Optimale Reihenfolgen. Springer, 1970: greedy construction.
    [4] C. Schulz and J. L. Träff, "Better process mapping and sparse quadratic assignment", SEA 2017.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import numpy.typing as npt

from numa_rl.partition.graph import F64, I64
from numa_rl.partition.objective import placement_cost
from numa_rl.topology import Topology

MOST_TRIED = 8  # nodes up to which all placements are tried: 40320 of them
MOST_STARTS = 64  # first parts and their nodes that the construction begins with in turn
LEAST_GAIN = 1e-12  # share of the cost: less is rounding


def compute_nodes(topology: Topology) -> I64:
    """The nodes that have cores, on which alone tasks can run."""
    return np.flatnonzero(topology.cores)


def node_distances(topology: Topology) -> F64:
    """Distance of every two nodes with cores: idle latency there and back, over a local one, shape (N, N).

    A pair counts as far as the mean of both directions, and a node is at distance 0 from itself: what stays on a node
    passes through its own memory wherever the node stands.
    """
    nodes = compute_nodes(topology)
    latency = topology.latency_s[np.ix_(nodes, nodes)]
    distance: F64 = (latency + latency.T) / 2.0 / np.diagonal(latency).mean()
    np.fill_diagonal(distance, 0.0)
    return distance


def map_parts(traffic: npt.ArrayLike, distance: npt.ArrayLike, shares: npt.ArrayLike | None = None) -> I64:
    """The node of each part, shape (K,): the best of all placements on few nodes; else a good one.

    On more than `MOST_TRIED` nodes parts are placed greedily [3], from several first ones, then any two exchanged until
    none gains [2], [4].

    Args:
        traffic: between every two parts, symmetric with zeros on the diagonal, shape (K, K).
        distance: of every two nodes, likewise, shape (N, N); at least as many nodes as parts.
        shares: of the whole that each node is to have, shape (N,). Part p was then made for node p, K is N, and p
            goes only to nodes of the same share. None where any part can go anywhere.

    Raises:
        ValueError: a shape or value breaks these rules.
    """
    flows, lengths = _symmetric("traffic", traffic), _symmetric("distance", distance)
    k, n = len(flows), len(lengths)
    if k > n:
        raise ValueError(f"there must be a node for each part, got {k} parts and {n} nodes.")
    kinds = np.zeros(n) if shares is None else np.asarray(shares, dtype=np.float64)
    if shares is not None and (k != n or kinds.shape != (n,)):
        raise ValueError(f"shares need as many parts as nodes, and one for each, got {k}, {n} and {kinds.shape}.")
    same_kind = kinds[:, None] == kinds[None, :]  # of the node a part was made for, and where it may go
    padded = np.zeros((n, n))  # parts that nothing passes to stand for free nodes
    padded[:k, :k] = flows
    if n <= MOST_TRIED:
        return _best_of_all(padded, lengths, same_kind)[:k]
    best: I64 | None = None
    pairs = np.argwhere(same_kind[:k])
    for part, node in pairs[np.linspace(0, len(pairs) - 1, min(len(pairs), MOST_STARTS)).astype(int)]:
        nodes = _exchanged(padded, _constructed(padded, lengths, same_kind, part, node), lengths, same_kind)
        if best is None or placement_cost(padded, nodes, lengths) < placement_cost(padded, best, lengths):
            best = nodes
    assert best is not None
    return best[:k]


def _best_of_all(traffic: F64, distance: F64, same_kind: npt.NDArray[np.bool_]) -> I64:
    """The first of the cheapest of all placements."""
    n = len(traffic)
    nodes = np.array(list(permutations(range(n))))
    nodes = nodes[same_kind[np.arange(n), nodes].all(axis=1)]
    cost = np.zeros(len(nodes))
    for one, other in zip(*np.nonzero(np.triu(traffic, 1)), strict=True):
        cost += traffic[one, other] * distance[nodes[:, one], nodes[:, other]]
    best: I64 = nodes[np.argmin(cost)]
    return best


def _constructed(traffic: F64, distance: F64, same_kind: npt.NDArray[np.bool_], part: int, node: int) -> I64:
    """This part on this node; then each time the part with most traffic to those placed, where that costs least."""
    n = len(traffic)
    nodes, free = np.full(n, -1), np.ones(n, bool)
    placed_traffic, cost = np.zeros(n), np.zeros((n, n))  # of each part to those placed, and what it costs at each node
    for step in range(n):
        if step > 0:
            part = int(np.argmax(np.where(nodes < 0, placed_traffic, -1.0)))
            node = int(np.argmin(np.where(free & same_kind[part], cost[part], np.inf)))
        nodes[part], free[node] = node, False
        placed_traffic += traffic[part]
        cost += np.outer(traffic[part], distance[node])
    return nodes


def _exchanged(traffic: F64, nodes: I64, distance: F64, same_kind: npt.NDArray[np.bool_]) -> I64:
    """Exchange the two parts that gain most, until no two gain."""
    nodes = nodes.copy()
    allowed = np.triu(same_kind, 1)
    enough = LEAST_GAIN * float(traffic.sum() * distance.max())
    while True:
        here = distance[np.ix_(nodes, nodes)]
        at = traffic @ here  # cost of part r where part s is
        own = np.diagonal(at)
        change = at + at.T - own[:, None] - own[None, :] + 2.0 * traffic * here
        change = np.where(allowed, change, 0.0)
        first, second = np.unravel_index(int(np.argmin(change)), change.shape)
        if change[first, second] >= -enough:
            return nodes
        nodes[[first, second]] = nodes[[second, first]]


def _symmetric(name: str, matrix: npt.ArrayLike) -> F64:
    array = np.array(matrix, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.size == 0:
        raise ValueError(f"{name} must be a square matrix, got shape {array.shape}.")
    if not np.all(np.isfinite(array) & (array >= 0)):
        raise ValueError(f"{name} must be finite and >= 0, got {array[~(np.isfinite(array) & (array >= 0))][0]}.")
    if np.diagonal(array).any():
        raise ValueError(f"{name} must have zeros on its diagonal, got {np.diagonal(array)}.")
    if not np.allclose(array, array.T, rtol=1e-9, atol=0.0):
        raise ValueError(f"{name} must be symmetric.")
    return array

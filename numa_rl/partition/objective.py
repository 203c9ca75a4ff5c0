"""What a partition costs: the cut, the balance, the chapter's objective, and the cost once parts stand on nodes.

Dimension key: V vertices, E undirected edges, K parts, N nodes.

References:
    [1] The chapter, section 16.2.1: min (sum of cut weights + lambda max part cost).
    [2] P. Sanders and C. Schulz, "Think locally, act globally: highly balanced graph partitioning", SEA 2013: a part
        may weigh (1 + epsilon) ceil(weight / K).
    [3] R. L. Graham, "Bounds on multiprocessing timing anomalies", SIAM J. Applied Mathematics 17(2), 1969: LPT.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from numa_rl.partition.graph import F64, I64, Graph
from numa_rl.partition.kernel import pack

ROUNDING = 1e-9  # share of a limit: more than it by less is not too much

MOST_IMBALANCE = 1000  # beyond it any partition will do


def checked_parts(graph: Graph, parts: npt.ArrayLike, num_parts: int) -> I64:
    """The part of each vertex as an array of int64, shape (V,).

    Raises:
        ValueError: another shape, not whole, or a part outside 0..num_parts - 1.
    """
    array = np.asarray(parts)
    if array.shape != (graph.num_vertices,):
        raise ValueError(f"parts must have shape ({graph.num_vertices},), got {array.shape}.")
    if array.dtype.kind not in "iu":
        raise ValueError(f"parts must be whole numbers, got {array.dtype}.")
    wrong = (array < 0) | (array >= num_parts)
    if wrong.any():
        raise ValueError(f"parts must be in 0..{num_parts - 1}, got {array[wrong][0]}.")
    return array.astype(np.int64)


def cut_weight(graph: Graph, parts: I64) -> float:
    """Weight of the edges between different parts, each edge once [1]."""
    source, target, weight = graph.edges()
    return float(weight[parts[source] != parts[target]].sum())


def part_weights(graph: Graph, parts: I64, num_parts: int) -> F64:
    """Weight of the vertices of each part, shape (K,): the cost of each part [1]."""
    return np.asarray(np.bincount(parts, graph.vertex_weights, num_parts), dtype=np.float64)


def balance(weights: F64, shares: F64) -> float:
    """Greatest weight of a part over its share of the whole: 1 is perfect.

    Args:
        weights: of the parts, shape (K,).
        shares: of the whole that each part is to have, shape (K,).
    """
    return float((weights / (shares * weights.sum())).max())


def objective(graph: Graph, parts: I64, num_parts: int, trade_off: float) -> float:
    """The chapter's objective: sum of cut weights + lambda max part cost [1].

    Args:
        graph: what is partitioned.
        parts: of the vertices, shape (V,).
        num_parts: number of parts K.
        trade_off: lambda, what a unit of part cost is worth in units of the cut; finite and >= 0.
    """
    if not (math.isfinite(trade_off) and trade_off >= 0):
        raise ValueError(f"trade_off must be finite and >= 0, got {trade_off}.")
    return cut_weight(graph, parts) + trade_off * float(part_weights(graph, parts, num_parts).max())


def traffic_matrix(graph: Graph, parts: I64, num_parts: int) -> F64:
    """Weight of the edges between every two parts, symmetric with zeros on the diagonal, shape (K, K)."""
    source, target, weight = graph.edges()
    upper = np.bincount(parts[source] * num_parts + parts[target], weight, num_parts**2).reshape(num_parts, num_parts)
    both: F64 = np.asarray(upper + upper.T, dtype=np.float64)
    np.fill_diagonal(both, 0.0)
    return both


def mapped_cost(graph: Graph, vertex_node: I64, distance: F64) -> float:
    """Sum over edges between different nodes of weight times distance.

    Args:
        graph: what is partitioned.
        vertex_node: the node of each vertex, shape (V,).
        distance: of every two nodes, symmetric, shape (N, N).
    """
    return placement_cost(traffic_matrix(graph, vertex_node, len(distance)), np.arange(len(distance)), distance)


def placement_cost(traffic: F64, nodes: I64, distance: F64) -> float:
    """The same sum from the traffic of parts.

    Args:
        traffic: between every two parts, symmetric with zeros on the diagonal, shape (K, K).
        nodes: the node of each part, shape (K,).
        distance: of every two nodes, symmetric, shape (N, N).
    """
    return float((traffic * distance[np.ix_(nodes, nodes)]).sum() / 2.0)


def require_shares(num_parts: int, target_shares: npt.ArrayLike | None) -> F64:
    """The share of the whole that each part is to have, adding up to 1, shape (K,); equal ones where none are given.

    Raises:
        ValueError: fewer than one part, or shares of another number, or not finite and > 0.
    """
    if isinstance(num_parts, bool) or not isinstance(num_parts, int | np.integer) or num_parts < 1:
        raise ValueError(f"num_parts must be a whole number >= 1, got {num_parts!r}.")
    if target_shares is None:
        return np.full(num_parts, 1.0 / num_parts)
    shares = np.array(target_shares, dtype=np.float64)
    if shares.shape != (num_parts,):
        raise ValueError(f"target_shares must have shape ({num_parts},), one for each part, got {shares.shape}.")
    good = np.isfinite(shares) & (shares > 0)
    if not good.all():
        raise ValueError(f"target_shares must be finite and > 0, got {shares[~good][0]}.")
    normal: F64 = shares / shares.sum()
    return normal


def packed(vertex_weights: F64, shares: F64) -> I64:
    """Parts as even as list scheduling makes them, edges unseen: the heaviest vertex first [3], shape (V,)."""
    parts, weights = np.zeros(len(vertex_weights), np.int64), np.zeros(len(shares))
    pack(np.argsort(-vertex_weights, kind="stable"), vertex_weights, shares, parts, weights)
    return parts


def part_limits(vertex_weights: F64, shares: F64, imbalance: float) -> F64:
    """What each part may weigh, shape (K,): (1 + imbalance) times its share, or times what can be had.

    Vertices cannot be split: 10 equal ones in 3 parts give 4 to one, 1.2 of its share. As [2] does for equal
    vertices, the allowance comes on top of that: here on top of what list scheduling [3] reaches. For equal vertices
    and parts this is (1 + imbalance) ceil(V / K). List scheduling itself keeps every limit, so some partition does.

    Args:
        vertex_weights: shape (V,).
        shares: of the whole that each part is to have, shape (K,).
        imbalance: epsilon, in [0, 1000].
    """
    if not 0 <= imbalance <= MOST_IMBALANCE:
        raise ValueError(f"imbalance must be in [0, {MOST_IMBALANCE}], got {imbalance}.")
    parts = packed(vertex_weights, shares)
    best = balance(np.bincount(parts, vertex_weights, len(shares)).astype(np.float64), shares)
    limits: F64 = (1.0 + imbalance) * max(best, 1.0) * (1.0 + ROUNDING) * shares * vertex_weights.sum()
    return limits

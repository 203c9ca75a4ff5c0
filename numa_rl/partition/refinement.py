"""Making a partition better: within its limits first, then a lighter cut.

Dimension key: V vertices, E undirected edges, K parts.

References:
    [1] C. M. Fiduccia and R. M. Mattheyses, "A linear-time heuristic for improving network partitions", DAC 1982.
    [2] B. W. Kernighan and S. Lin, "An efficient heuristic procedure for partitioning graphs", Bell System Technical
        Journal 49(2), 1970.
"""

from __future__ import annotations

import numpy as np

from numa_rl.partition.graph import F64, I64, Adjacency
from numa_rl.partition.heap import make_heap
from numa_rl.partition.kernel import Assignment, Log, count_links, exchange, rebalance, refine, shift
from numa_rl.partition.objective import packed

MOST_PASSES = 20
LEAST_GAIN = 1e-9  # share of all edges: less is rounding
PATIENCE = (100, 5000)
MOST_EXCHANGED = 600  # vertices up to which exchanges [2] are tried: each looks at every other
MOST_LINKS = 2**28  # entries of the table of links, V K: 2 GiB


def improve(graph: Adjacency, parts: I64, limits: F64, rng: np.random.Generator) -> I64:
    """Parts that keep their limits, and whose cut is no heavier if they kept them before, shape (V,).

    Args:
        graph: what is partitioned.
        parts: of the vertices, shape (V,).
        limits: what each part may weigh, as `part_limits` gives them, shape (K,).
        rng: settles the order in which vertices are looked at.

    Raises:
        ValueError: too many vertices and parts.
    """
    v, k = len(graph.vertex_weights), len(limits)
    if v * k > MOST_LINKS:
        raise ValueError(f"vertices times parts must be at most {MOST_LINKS}, got {v} times {k}.")
    assignment = Assignment(parts.copy(), np.zeros(k), limits, np.zeros((v, k)))
    count_links(graph, assignment)
    heap, log, near = make_heap(v), Log(*np.zeros((3, v), np.int64)), np.zeros(v)
    if np.any(assignment.part_weights > limits) and not rebalance(graph, assignment, heap, rng.permutation(v)):
        assignment.parts[:] = packed(graph.vertex_weights, limits / limits.sum())  # what the limits were made from
        count_links(graph, assignment)
    patience = int(np.clip(v // 4, *PATIENCE))
    enough = LEAST_GAIN * float(graph.edge_weights.sum())
    for _ in range(MOST_PASSES):
        gained = refine(graph, assignment, heap, log, rng.permutation(v), patience)
        if v <= MOST_EXCHANGED:
            gained += exchange(graph, assignment, rng.permutation(v), near)
        if gained <= enough:
            break
    return assignment.parts


def shorten(graph: Adjacency, nodes: I64, limits: F64, distance: F64, rng: np.random.Generator) -> I64:
    """A placement whose mapped cost is no higher: vertices move to nodes nearer to what they exchange with, shape (V,).

    Args:
        graph: what is placed.
        nodes: of the vertices, within the limits, shape (V,).
        limits: what each node may be given, shape (N,).
        distance: of every two nodes, symmetric with zeros on the diagonal, shape (N, N).
        rng: settles the order in which vertices are looked at.
    """
    v, n = len(graph.vertex_weights), len(limits)
    assignment = Assignment(nodes.copy(), np.zeros(n), limits, np.zeros((v, n)))
    count_links(graph, assignment)
    enough = LEAST_GAIN * float(graph.edge_weights.sum() * distance.max())
    for _ in range(MOST_PASSES):
        if shift(graph, assignment, rng.permutation(v), distance) <= enough:
            break
    return assignment.parts


def cut_of(graph: Adjacency, parts: I64) -> float:
    """Weight of the cut from a graph's bare arrays, as levels of a hierarchy are."""
    across = np.repeat(parts, np.diff(graph.offsets)) != parts[graph.neighbours]
    return float(graph.edge_weights[across].sum() / 2.0)

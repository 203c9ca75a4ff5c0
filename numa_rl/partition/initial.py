"""The first partition, of a small graph: its best bisection, and parts by bisecting again and again.

Dimension key: V vertices, E undirected edges, K parts.

References:
    [1] G. Karypis and V. Kumar, "A fast and high quality multilevel scheme for partitioning irregular graphs", SIAM J.
        Scientific Computing 20(1), 1998, section 3.2: greedy graph growing.
    [2] A. Pothen, H. D. Simon and K.-P. Liou, "Partitioning sparse matrices with eigenvectors of graphs", SIAM J.
        Matrix Analysis and Applications 11(3), 1990.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from numa_rl.partition.coarsening import induced
from numa_rl.partition.graph import F64, I64, Adjacency
from numa_rl.partition.heap import make_heap
from numa_rl.partition.kernel import Assignment, count_links, grow
from numa_rl.partition.objective import packed, part_limits
from numa_rl.partition.refinement import cut_of, improve
from numa_rl.partition.spectral import fiedler_vector, split

TRIES = 6  # grown bisections
MOST_SPECTRAL = 400  # vertices up to which all eigenvectors take some ten milliseconds

Bisect = Callable[[Adjacency, F64, float], I64]


def recursive_bisection(graph: Adjacency, shares: F64, imbalance: float, bisect: Bisect) -> I64:
    """Parts by halving the list of parts, and the graph with it, until each has its own, shape (V,).

    Args:
        graph: what to partition.
        shares: of the whole that each part is to have, shape (K,).
        imbalance: epsilon that all bisections together may use up.
        bisect: the sides, 0 or 1, of a graph's vertices for two shares that add up to 1, and an imbalance.
    """
    parts = np.zeros(len(graph.vertex_weights), np.int64)
    k = len(shares)
    if k == 1 or not graph.vertex_weights.any():
        return parts
    half = k // 2
    halves = np.array([shares[:half].sum(), shares[half:].sum()]) / shares.sum()
    here = (1.0 + imbalance) ** (1.0 / math.ceil(math.log2(k))) - 1.0
    side = bisect(graph, halves, here)
    for first, wanted, chosen in ((0, shares[:half], side == 0), (half, shares[half:], side == 1)):
        vertices = np.flatnonzero(chosen)
        parts[vertices] = first + recursive_bisection(induced(graph, vertices), wanted, imbalance, bisect)
    return parts


def best_bisection(graph: Adjacency, halves: F64, imbalance: float, rng: np.random.Generator) -> I64:
    """The best of several refined bisections of a small graph, grown [1] and by the Fiedler vector [2], shape (V,).

    Args:
        graph: what to bisect.
        halves: of the whole that side 0 and side 1 are to have, shape (2,).
        imbalance: epsilon of `part_limits`.
        rng: settles where sides grow.
    """
    limits = part_limits(graph.vertex_weights, halves, imbalance)
    first = [_grown(graph, halves, limits, rng, anywhere=index % 3 == 2) for index in range(TRIES)]
    if 2 < len(graph.vertex_weights) <= MOST_SPECTRAL:
        first.append(split(fiedler_vector(graph, rng), graph.vertex_weights, halves[0]))
    return min((improve(graph, sides, limits, rng) for sides in first), key=lambda sides: cut_of(graph, sides))


def _grown(graph: Adjacency, halves: F64, limits: F64, rng: np.random.Generator, *, anywhere: bool) -> I64:
    v = len(graph.vertex_weights)
    assignment = Assignment(np.ones(v, np.int64), np.zeros(2), limits, np.zeros((v, 2)))
    count_links(graph, assignment)
    wanted = float(halves[0] * graph.vertex_weights.sum())
    grow(graph, assignment, make_heap(v), rng.permutation(v), wanted, anywhere)
    return assignment.parts


def spectral_parts(graph: Adjacency, shares: F64, rng: np.random.Generator) -> I64:
    """Parts by recursive spectral bisection [2], not refined, shape (V,)."""

    def bisect(part: Adjacency, halves: F64, imbalance: float) -> I64:
        if len(part.vertex_weights) <= 2:
            return packed(part.vertex_weights, halves)
        return split(fiedler_vector(part, rng), part.vertex_weights, halves[0])

    return recursive_bisection(graph, shares, 0.0, bisect)

"""Our own multilevel partition: coarsen, partition the coarsest, refine on the way back; several times, then combined.

Dimension key: V vertices, E undirected edges, K parts.

References:
    [1] The chapter, section 16.2.1: coarsen, initial partition, refine.
    [2] G. Karypis and V. Kumar, "A fast and high quality multilevel scheme for partitioning irregular graphs", SIAM J.
        Scientific Computing 20(1), 1998.
    [3] P. Sanders and C. Schulz, "Distributed evolutionary graph partitioning", ALENEX 2012: two partitions are
        combined by coarsening along no edge that either of them cuts, and starting from the better one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from numa_rl.partition.coarsening import Level, coarsen
from numa_rl.partition.graph import F64, I64, Adjacency
from numa_rl.partition.initial import best_bisection, recursive_bisection, spectral_parts
from numa_rl.partition.objective import part_limits
from numa_rl.partition.refinement import cut_of, improve
from numa_rl.workloads.parameters import require

COARSEST_PER_PART = 10  # vertices of the coarsest graph for each part
COARSEST_LEAST = 120
COARSEST_BISECTED = 60  # vertices of the coarsest graph where there are two parts


TRIED_VERTICES, FEWEST_STARTS, MOST_STARTS = 8000, 8, 40  # of the usual effort


@dataclass(frozen=True)
class Effort:
    """How long to search.

    Attributes:
        starts: independent partitions, one of them spectral, of which the better survive.
        combinations: of two survivors, or of one with itself.
        survivors: partitions that are kept.
    """

    starts: int
    combinations: int
    survivors: int = 4

    def __post_init__(self) -> None:
        """Check the ranges; raises ValueError."""
        require(self, "starts survivors", ">= 1", lambda value: value >= 1)
        require(self, "combinations", ">= 0", lambda value: value >= 0)


def usual_effort(num_vertices: int) -> Effort:
    """More tries where each takes little: on small graphs with a few heavy vertices most tries end in a bad corner."""
    starts = int(np.clip(TRIED_VERTICES // num_vertices, FEWEST_STARTS, MOST_STARTS))
    return Effort(starts, starts + starts // 2)


def multilevel_parts(
    graph: Adjacency, shares: F64, imbalance: float, rng: np.random.Generator, effort: Effort | None = None
) -> I64:
    """The part of each vertex, within `part_limits`, shape (V,).

    Args:
        graph: what to partition.
        shares: of the whole that each part is to have, shape (K,).
        imbalance: epsilon of `part_limits`.
        rng: all choices are drawn from it.
        effort: how long to search; None for `usual_effort`.
    """
    effort = usual_effort(len(graph.vertex_weights)) if effort is None else effort
    if len(shares) == 1:
        return np.zeros(len(graph.vertex_weights), np.int64)
    found: list[tuple[float, I64]] = []
    limits = part_limits(graph.vertex_weights, shares, imbalance)
    _keep(found, graph, improve(graph, spectral_parts(graph, shares, rng), limits, rng), effort)
    for _ in range(effort.starts - 1):
        _keep(found, graph, _start(graph, shares, imbalance, rng), effort)
    for _ in range(effort.combinations):
        first, second = rng.integers(len(found), size=2)
        first, second = min(first, second), max(first, second)
        labels = found[first][1] * len(shares) + found[second][1]
        _keep(found, graph, _cycle(graph, shares, imbalance, labels, found[first][1], rng), effort)
    return found[0][1]


def _keep(found: list[tuple[float, I64]], graph: Adjacency, parts: I64, effort: Effort) -> None:
    """Put a partition among those found, the lightest cut first, each once, and drop who does not survive."""
    if not any(np.array_equal(parts, known) for _, known in found):
        found.append((cut_of(graph, parts), parts))
        found.sort(key=lambda entry: entry[0])
        del found[effort.survivors :]


def _cycle(
    graph: Adjacency, shares: F64, imbalance: float, labels: I64, parts: I64 | None, rng: np.random.Generator
) -> I64:
    """Down to the coarsest graph and back: from scratch, or from parts that no label reaches across."""
    is_bisection = len(shares) == 2
    fewest = COARSEST_BISECTED if is_bisection else max(COARSEST_LEAST, COARSEST_PER_PART * len(shares))
    levels = coarsen(graph, fewest, labels, rng)
    coarsest = levels[-1].graph
    if parts is not None:
        parts = _projected_down(levels, parts)
    elif is_bisection:
        parts = best_bisection(coarsest, shares, imbalance, rng)
    else:
        parts = recursive_bisection(coarsest, shares, imbalance, lambda part, halves, e: _start(part, halves, e, rng))
    for level in reversed(range(len(levels))):
        fine = levels[level].graph
        parts = improve(fine, parts, part_limits(fine.vertex_weights, shares, imbalance), rng)
        if level:
            parts = parts[levels[level].coarse]
    return parts


def _start(graph: Adjacency, shares: F64, imbalance: float, rng: np.random.Generator) -> I64:
    """Parts from scratch."""
    return _cycle(graph, shares, imbalance, np.zeros(len(graph.vertex_weights), np.int64), None, rng)


def _projected_down(levels: list[Level], parts: I64) -> I64:
    """Parts of the coarsest graph's vertices; all vertices of a cluster are in one part."""
    for level in levels[1:]:
        coarse_parts = np.zeros(len(level.graph.vertex_weights), np.int64)
        coarse_parts[level.coarse] = parts
        parts = coarse_parts
    return parts

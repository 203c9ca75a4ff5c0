"""Graphs to try partitioners on.

Dimension key: V vertices, E undirected edges.

References:
    [1] D. Chakrabarti, Y. Zhan and C. Faloutsos, "R-MAT: a recursive model for graph mining", SDM 2004.
    [2] A. Condon and R. M. Karp, "Algorithms for graph partitioning on the planted partition model", Random Structures
        and Algorithms 18(2), 2001.
    [3] A. Steger and N. C. Wormald, "Generating random regular graphs quickly", Combinatorics, Probability and
        Computing 8(4), 1999.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial import cKDTree

from numa_rl.partition.graph import I64, Graph, graph_from_edges

RMAT_CORNERS = (0.57, 0.19, 0.19, 0.05)  # a, b, c, d of [1], as the Graph500 benchmark takes them
MOST_ATTEMPTS = 100


def grid(*sides: int) -> Graph:
    """A grid of any number of dimensions: every vertex is next to the one before and after it along each."""
    _require_counts("sides", sides)
    index = np.arange(math.prod(sides)).reshape(sides)
    pairs = [
        (np.take(index, range(side - 1), axis).ravel(), np.take(index, range(1, side), axis).ravel())
        for axis, side in enumerate(sides)
    ]
    return graph_from_edges(index.size, np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs]))


def random_geometric(num_vertices: int, mean_degree: float, rng: np.random.Generator) -> Graph:
    """Points in the unit square, next to all within a radius that gives about that many neighbours."""
    _require_counts("num_vertices", (num_vertices,))
    _require_degree(mean_degree)
    points = rng.random((num_vertices, 2))
    pairs = cKDTree(points).query_pairs(math.sqrt(mean_degree / (math.pi * num_vertices)), output_type="ndarray")
    return graph_from_edges(num_vertices, pairs[:, 0], pairs[:, 1])


def rmat(scale: int, edges_per_vertex: int, rng: np.random.Generator) -> Graph:
    """2^scale vertices whose degrees follow a power law [1]; an edge drawn again grows heavier."""
    _require_counts("scale, edges_per_vertex", (scale, edges_per_vertex))
    source = target = np.zeros(edges_per_vertex * 2**scale, np.int64)
    for _ in range(scale):
        corner = rng.choice(4, size=len(source), p=RMAT_CORNERS)
        source, target = 2 * source + corner // 2, 2 * target + corner % 2
    return graph_from_edges(2**scale, source, target)


def planted_partition(
    num_groups: int, group_size: int, inner_degree: float, outer_degree: float, rng: np.random.Generator
) -> Graph:
    """Groups whose members have about `inner_degree` neighbours within and `outer_degree` without [2]."""
    _require_counts("num_groups, group_size", (num_groups, group_size))
    for degree in (inner_degree, outer_degree):
        _require_degree(degree)
    v = num_groups * group_size
    inner = rng.integers(v, size=int(inner_degree * v / 2))
    same_group = inner // group_size * group_size + rng.integers(group_size, size=len(inner))
    outer = rng.integers(v, size=(2, int(outer_degree * v / 2)))
    return graph_from_edges(v, np.concatenate([inner, outer[0]]), np.concatenate([same_group, outer[1]]))


def random_regular(num_vertices: int, degree: int, rng: np.random.Generator) -> Graph:
    """Every vertex has exactly this many neighbours: ends are paired at random [3] until no pair is bad.

    Raises:
        ValueError: no such graph, or none was found.
    """
    _require_counts("num_vertices, degree", (num_vertices, degree))
    if num_vertices * degree % 2 or degree >= num_vertices:
        raise ValueError(f"no graph of {num_vertices} vertices has {degree} neighbours at each.")
    ends = rng.permutation(np.repeat(np.arange(num_vertices), degree)).reshape(-1, 2)
    for _ in range(MOST_ATTEMPTS):
        bad = _bad_pairs(ends, num_vertices)
        if not len(bad):
            return graph_from_edges(num_vertices, ends[:, 0], ends[:, 1])
        # Bad pairs change partners with pairs drawn at random: none of the degrees changes.
        chosen = np.union1d(bad, rng.integers(len(ends), size=len(bad) + 1))
        ends[chosen, 1] = rng.permutation(ends[chosen, 1])
    raise ValueError(f"found no graph of {num_vertices} vertices with {degree} neighbours at each.")


def _bad_pairs(ends: I64, num_vertices: int) -> I64:
    """Loops, and edges that are there already."""
    key = ends.min(axis=1) * num_vertices + ends.max(axis=1)
    again = np.ones(len(key), bool)
    again[np.unique(key, return_index=True)[1]] = False
    return np.flatnonzero(again | (ends[:, 0] == ends[:, 1]))


def ring_of_cliques(num_cliques: int, clique_size: int) -> Graph:
    """Cliques, each joined to the next by one edge, the last to the first."""
    _require_counts("num_cliques, clique_size", (num_cliques, clique_size))
    low, high = np.triu_indices(clique_size, 1)
    first = clique_size * np.arange(num_cliques)
    bridges = first + clique_size - 1, np.roll(first, -1)
    sources = np.concatenate([(first[:, None] + low).ravel(), bridges[0][: num_cliques if num_cliques > 2 else 1]])
    targets = np.concatenate([(first[:, None] + high).ravel(), bridges[1][: num_cliques if num_cliques > 2 else 1]])
    return graph_from_edges(num_cliques * clique_size, sources, targets)


def layered_tasks(num_layers: int, width: int, num_inputs: int, rng: np.random.Generator) -> Graph:
    """A task graph in layers, undirected: each task reads from tasks of the layer before that are near its place.

    Costs of tasks and bytes along edges are log-normal: most are small and a few large, as in real workflows.
    """
    _require_counts("num_layers, width, num_inputs", (num_layers, width, num_inputs))
    tasks = np.arange(width, num_layers * width)
    place = tasks % width
    near = np.rint(place[:, None] + rng.normal(scale=2.0, size=(len(tasks), num_inputs))).astype(np.int64) % width
    before = (tasks - place - width)[:, None] + near
    volume = np.ceil(rng.lognormal(2.0, 1.0, before.size))
    cost = np.ceil(rng.lognormal(2.0, 0.5, num_layers * width))
    return graph_from_edges(num_layers * width, np.repeat(tasks, num_inputs), before.ravel(), volume, cost)


def _require_counts(names: str, counts: tuple[int, ...]) -> None:
    if not counts or any(count < 1 for count in counts):
        raise ValueError(f"{names} must be >= 1, got {counts}.")


def _require_degree(degree: float) -> None:
    if not (math.isfinite(degree) and degree >= 0):
        raise ValueError(f"a mean degree must be finite and >= 0, got {degree}.")

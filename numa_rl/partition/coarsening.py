"""Making a graph smaller, level by level, so that what is heavy stays together.

Dimension key: V vertices, E undirected edges.

References:
    [1] G. Karypis and V. Kumar, "A fast and high quality multilevel scheme for partitioning irregular graphs", SIAM J.
        Scientific Computing 20(1), 1998.
    [2] P. Sanders and C. Schulz, "Engineering multilevel graph partitioning algorithms", ESA 2011: cycles that keep the
        edges of the cut.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from numa_rl.partition.graph import I64, Adjacency
from numa_rl.partition.kernel import Clusters, cluster

SHRINKING = 2.2  # by no more than this at a level, as matching would
STALLED = 0.97  # a level that keeps more of its vertices than this share is the last
HEAVIEST = 1.5  # a vertex of the coarsest graph, over the mean of what it aims at


class Level(NamedTuple):
    """A graph of the hierarchy and how it came from the finer one.

    Attributes:
        graph: its arrays.
        coarse: where each vertex of the finer graph is in it, shape (V of the finer,); empty at the finest.
    """

    graph: Adjacency
    coarse: I64


def coarsen(graph: Adjacency, fewest: int, labels: I64, rng: np.random.Generator) -> list[Level]:
    """The graph and ever smaller ones, down to about `fewest` vertices.

    Args:
        graph: the finest.
        fewest: vertices at which to stop.
        labels: only vertices of the same label are joined, shape (V,).
        rng: settles the order in which vertices choose whom to join.
    """
    levels = [Level(graph, np.zeros(0, np.int64))]
    heaviest = HEAVIEST * float(graph.vertex_weights.sum()) / fewest
    while len(graph.vertex_weights) > fewest:
        size = len(graph.vertex_weights)
        root = _roots(graph, max(fewest, int(size / SHRINKING)), heaviest, labels, rng)
        roots, coarse = np.unique(root, return_inverse=True)
        if len(roots) > STALLED * size:
            break
        graph, labels = contract(graph, coarse, len(roots)), labels[roots]
        levels.append(Level(graph, coarse))
    return levels


def _roots(graph: Adjacency, fewest: int, heaviest: float, labels: I64, rng: np.random.Generator) -> I64:
    """The vertex that stands for each vertex's cluster, shape (V,): those with few neighbours choose first [1]."""
    v = len(graph.vertex_weights)
    order = rng.permutation(v)
    order = order[np.argsort(np.minimum(np.diff(graph.offsets)[order], 64), kind="stable")]
    root, size, touched = np.zeros((3, v), np.int64)
    clusters = Clusters(root, np.zeros(v), size, touched, np.zeros(v + 1, np.int64))
    cluster(graph, order, labels, heaviest, fewest, clusters, np.zeros(v))
    return clusters.root


def contract(graph: Adjacency, coarse: I64, num_coarse: int) -> Adjacency:
    """The graph whose vertices are these clusters: weights add up, edges inside a cluster vanish.

    Args:
        graph: what to contract.
        coarse: the cluster of each vertex, shape (V,).
        num_coarse: number of clusters.
    """
    v = len(graph.vertex_weights)
    matrix = csr_array((graph.edge_weights, graph.neighbours, graph.offsets), shape=(v, v))
    member = csr_array((np.ones(v), coarse, np.arange(v + 1)), shape=(v, num_coarse))
    product = (member.T @ matrix @ member).tocoo()
    kept = product.row != product.col
    source, target, weight = product.row[kept], product.col[kept], product.data[kept]
    by_source = np.lexsort((target, source))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(source, minlength=num_coarse))])
    return Adjacency(
        offsets.astype(np.int64),
        target[by_source].astype(np.int64),
        weight[by_source],
        np.bincount(coarse, graph.vertex_weights, num_coarse).astype(np.float64),
    )


def induced(graph: Adjacency, vertices: I64) -> Adjacency:
    """The graph of these vertices and the edges among them, renumbered in their order."""
    v = len(graph.vertex_weights)
    matrix = csr_array((graph.edge_weights, graph.neighbours, graph.offsets), shape=(v, v))
    part = matrix[vertices][:, vertices]
    part.sort_indices()
    offsets, neighbours = part.indptr.astype(np.int64), part.indices.astype(np.int64)
    return Adjacency(offsets, neighbours, part.data.astype(np.float64), graph.vertex_weights[vertices])

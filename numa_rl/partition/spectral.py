"""Spectral bisection: vertices in the order of the Fiedler vector, cut where the first side has its share.

Large graphs take the vector from a coarser one, spread out and smoothed at each level.

Dimension key: V vertices, E undirected edges.

References:
    [1] M. Fiedler, "Algebraic connectivity of graphs", Czechoslovak Mathematical Journal 23(2), 1973.
    [2] A. Pothen, H. D. Simon and K.-P. Liou, "Partitioning sparse matrices with eigenvectors of graphs", SIAM J.
        Matrix Analysis and Applications 11(3), 1990.
    [3] S. T. Barnard and H. D. Simon, "Fast multilevel implementation of recursive spectral bisection for partitioning
        unstructured problems", Concurrency 6(2), 1994.
    [4] A. V. Knyazev, "Toward the optimal preconditioned eigensolver: LOBPCG", SIAM J. Scientific Computing 23(2),
        2001.
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy.linalg import eigh
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import lobpcg

from numa_rl.partition.coarsening import coarsen
from numa_rl.partition.graph import F64, I64, Adjacency

MOST_DENSE = 200  # vertices up to which all entries of the Laplacian are written down
SMOOTHING = 30  # steps of LOBPCG at each finer level
TOLERANCE = 1e-6  # residual, in units of the greatest degree


def fiedler_vector(graph: Adjacency, rng: np.random.Generator) -> F64:
    """The eigenvector of the Laplacian's second smallest eigenvalue [1], approximately for large graphs, shape (V,).

    Args:
        graph: at least two vertices.
        rng: settles how large graphs are coarsened.
    """
    levels = coarsen(graph, MOST_DENSE, np.zeros(len(graph.vertex_weights), np.int64), rng)
    vector = _dense_fiedler(levels[-1].graph)
    for finer, level in zip(reversed(levels[:-1]), reversed(levels[1:]), strict=True):
        vector = _smoothed(finer.graph, vector[level.coarse])
    return vector


def split(vector: F64, vertex_weights: F64, share: float) -> I64:
    """Side 0 for the vertices that come first in the vector's order and have that share of the weight, else 1 [2]."""
    order = np.argsort(vector, kind="stable")
    before = np.cumsum(vertex_weights[order]) - vertex_weights[order] / 2.0  # the middle of each vertex
    sides = np.empty(len(vector), np.int64)
    sides[order] = before >= share * vertex_weights.sum()
    return sides


def _laplacian(graph: Adjacency) -> tuple[csr_array, F64]:
    """The Laplacian over its greatest degree, and its diagonal."""
    v = len(graph.vertex_weights)
    source = np.repeat(np.arange(v), np.diff(graph.offsets))
    degree = np.bincount(source, graph.edge_weights, v).astype(np.float64)
    most = float(degree.max()) or 1.0
    matrix = csr_array((graph.edge_weights / most, graph.neighbours, graph.offsets), shape=(v, v))
    return csr_array(diags_array(degree / most) - matrix), degree / most


def _dense_fiedler(graph: Adjacency) -> F64:
    laplacian, _ = _laplacian(graph)
    vectors: F64 = eigh(laplacian.toarray(), subset_by_index=[1, 1])[1]
    return vectors[:, 0]


def _smoothed(graph: Adjacency, guess: F64) -> F64:
    """A few steps of LOBPCG [4] from a guess, kept away from the constant vector [3]."""
    laplacian, degree = _laplacian(graph)
    ones = np.ones((len(guess), 1))
    guess = guess - guess.mean()
    if not np.any(guess):
        return guess
    scale = diags_array(1.0 / np.maximum(degree, TOLERANCE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it has not converged: any order of vertices is good to cut
        vectors = lobpcg(laplacian, guess[:, None], M=scale, Y=ones, tol=TOLERANCE, maxiter=SMOOTHING, largest=False)[1]
    return np.asarray(vectors[:, 0], dtype=np.float64)

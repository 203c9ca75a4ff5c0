"""An undirected graph with weights: what is to be computed, and what passes between.

Dimension key: V vertices, E undirected edges.

References:
    [1] The chapter, section 16.2.1: a compute graph and its partition.
    [2] METIS 5.1 manual, section 5.5: compressed adjacency (CSR).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

MOST_WEIGHT = 1e300  # of all vertices, or all edges: sums stay finite


class Adjacency(NamedTuple):
    """The arrays of a graph, as kernels take them; see `Graph`."""

    offsets: I64
    neighbours: I64
    edge_weights: F64
    vertex_weights: F64


@dataclass(frozen=True, eq=False)
class Graph:
    """V vertices and E undirected edges, each edge stored at both of its ends; weights are in any unit.

    Attributes:
        offsets: where the neighbours of each vertex begin, shape (V + 1,).
        neighbours: the vertices next to each vertex, increasing, shape (2 E,).
        edge_weights: what passes along each edge, > 0, shape (2 E,).
        vertex_weights: what each vertex costs, >= 0 and not all 0, shape (V,).

    Raises:
        ValueError: a shape or a value breaks one of these rules, a vertex is its own neighbour, an edge is given
            twice, or is missing or differs at its other end.
    """

    offsets: I64
    neighbours: I64
    edge_weights: F64
    vertex_weights: F64

    def __post_init__(self) -> None:
        """Convert every array to its dtype, freeze it and check the rules."""
        for name in Adjacency._fields:
            array: npt.NDArray[Any] = np.array(getattr(self, name), dtype=np.float64 if "weights" in name else np.int64)
            if array.ndim != 1:
                raise ValueError(f"{name} must have one dimension, got shape {array.shape}.")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        self._check_shapes()
        _require_weights("vertex_weights", self.vertex_weights, zero_allowed=True)
        _require_weights("edge_weights", self.edge_weights, zero_allowed=False)
        if not self.vertex_weights.any():
            raise ValueError("vertex_weights must not all be 0, got only zeros.")
        self._check_edges()

    def _check_shapes(self) -> None:
        v, ends = self.num_vertices, len(self.neighbours)
        if v == 0:
            raise ValueError("a graph must have at least one vertex, got none.")
        if self.offsets.shape != (v + 1,):
            raise ValueError(f"offsets must have shape ({v + 1},), one more than vertices, got {self.offsets.shape}.")
        if self.offsets[0] != 0 or self.offsets[-1] != ends or np.any(np.diff(self.offsets) < 0):
            raise ValueError(f"offsets must rise from 0 to the number of neighbours, {ends}.")
        if self.edge_weights.shape != (ends,):
            raise ValueError(f"edge_weights must have shape ({ends},), got {self.edge_weights.shape}.")
        wrong = np.flatnonzero((self.neighbours < 0) | (self.neighbours >= v))
        if len(wrong):
            raise ValueError(f"neighbours must be vertices in 0..{v - 1}, got {self.neighbours[wrong[0]]}.")

    def _check_edges(self) -> None:
        source, target = self.edge_sources, self.neighbours
        if np.any(source == target):
            raise ValueError(f"a vertex must not be its own neighbour, got {target[source == target][0]}.")
        again = (np.diff(source) == 0) & (np.diff(target) <= 0)
        if again.any():
            raise ValueError(f"the neighbours of vertex {source[1:][again][0]} must increase, each named once.")
        back = np.lexsort((source, target))  # the same edges, listed by their other end
        lonely = (target[back] != source) | (source[back] != target)
        if lonely.any():
            at = int(np.argmax(lonely))
            raise ValueError(f"edge ({source[at]}, {target[at]}), or the one before, must stand at both of its ends.")
        unequal = self.edge_weights[back] != self.edge_weights
        if unequal.any():
            at = int(np.argmax(unequal))
            raise ValueError(
                f"edge ({source[at]}, {target[at]}) must weigh the same at both ends, got {self.edge_weights[at]} and "
                f"{self.edge_weights[back][at]}."
            )

    @property
    def num_vertices(self) -> int:
        """Number of vertices V."""
        return len(self.vertex_weights)

    @property
    def num_edges(self) -> int:
        """Number of undirected edges E."""
        return len(self.neighbours) // 2

    @property
    def total_weight(self) -> float:
        """Weight of all vertices."""
        return float(self.vertex_weights.sum())

    @property
    def adjacency(self) -> Adjacency:
        """The arrays, as kernels take them."""
        return Adjacency(self.offsets, self.neighbours, self.edge_weights, self.vertex_weights)

    @property
    def edge_sources(self) -> I64:
        """The vertex at whose entry each of `neighbours` stands, shape (2 E,)."""
        return np.repeat(np.arange(self.num_vertices), np.diff(self.offsets))

    @property
    def matrix(self) -> Any:
        """The edge weights as a symmetric sparse matrix (scipy `csr_array`), shape (V, V)."""
        v = self.num_vertices
        return csr_array((self.edge_weights, self.neighbours, self.offsets), shape=(v, v))

    def edges(self) -> tuple[I64, I64, F64]:
        """Every edge once: its lower end, its higher end and its weight, shape (E,) each."""
        source = self.edge_sources
        once = source < self.neighbours
        return source[once], self.neighbours[once], self.edge_weights[once]


def graph_from_edges(
    num_vertices: int,
    sources: npt.ArrayLike,
    targets: npt.ArrayLike,
    weights: npt.ArrayLike = 1.0,
    vertex_weights: npt.ArrayLike = 1.0,
) -> Graph:
    """A graph from a list of edges: those between the same two vertices are added up, loops are dropped.

    Args:
        num_vertices: number of vertices V.
        sources: one end of each edge, shape (E,).
        targets: the other end, shape (E,).
        weights: of each edge, >= 0, shape (E,), or one for all; edges of weight 0 are dropped.
        vertex_weights: of each vertex, shape (V,), or one for all.

    Raises:
        ValueError: an end that is no vertex, or a weight out of range.
    """
    if num_vertices < 1:
        raise ValueError(f"a graph must have at least one vertex, got {num_vertices}.")
    source, target = np.asarray(sources, dtype=np.int64), np.asarray(targets, dtype=np.int64)
    for ends in (source, target):
        wrong = (ends < 0) | (ends >= num_vertices)
        if wrong.any():
            raise ValueError(f"edges must join vertices in 0..{num_vertices - 1}, got {ends[wrong][0]}.")
    weight = np.broadcast_to(np.asarray(weights, dtype=np.float64), source.shape)
    _require_weights("edge weights", weight, zero_allowed=True)
    low, high = np.minimum(source, target), np.maximum(source, target)
    kept = (low != high) & (weight > 0)
    # Added up once, at the lower end, and copied to the other: a float sum depends on its order.
    upper = csr_array((weight[kept], (low[kept], high[kept])), shape=(num_vertices, num_vertices))
    return graph_from_matrix(upper + upper.T, np.broadcast_to(np.asarray(vertex_weights, np.float64), (num_vertices,)))


def graph_from_matrix(matrix: Any, vertex_weights: npt.ArrayLike) -> Graph:
    """A graph from a symmetric matrix of edge weights; zeros are no edges, and the diagonal is left out.

    Args:
        matrix: edge weights, dense or sparse, shape (V, V).
        vertex_weights: of each vertex, shape (V,).

    Raises:
        ValueError: as `Graph`.
    """
    sparse = csr_array(matrix)
    sparse.sum_duplicates()
    if sparse.shape[0] != sparse.shape[1]:
        raise ValueError(f"a matrix of edge weights must be square, got shape {sparse.shape}.")
    coordinates = sparse.tocoo()
    kept = (coordinates.row != coordinates.col) & (coordinates.data != 0)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(coordinates.row[kept], minlength=sparse.shape[0]))])
    weights = np.asarray(vertex_weights, dtype=np.float64)
    return Graph(offsets, coordinates.col[kept], coordinates.data[kept].astype(np.float64), weights)


def _require_weights(name: str, weights: F64, *, zero_allowed: bool) -> None:
    """Raise ValueError unless weights are finite, not negative (nor 0), and their sum is finite too."""
    good = np.isfinite(weights) & ((weights >= 0) if zero_allowed else (weights > 0))
    if not good.all():
        at = int(np.argmin(good))
        rule = "finite and >= 0" if zero_allowed else "finite and > 0"
        raise ValueError(f"{name}[{at}] must be {rule}, got {weights[at]}.")
    with np.errstate(over="ignore"):
        total = weights.sum()
    if total > MOST_WEIGHT:
        raise ValueError(f"{name} must add up to at most {MOST_WEIGHT:g}, got {total:g}.")

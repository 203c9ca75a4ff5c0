"""The ways of `ffn_ways.py`, executed in numpy: each rank computes with the pieces that it has, forward and backward.

Between products numbers pass only in the sends of a schedule, run on the real numbers. What is sent, held and computed
is counted while it happens.

Dimension key: n tokens, d width, m inner width, p ranks.

References:
    [1] The chapter, section 16.3.2.
    [2] D. Hendrycks and K. Gimpel, "Gaussian error linear units", 2016.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from numa_rl.communication.collectives import require_count
from numa_rl.communication.schedules import run
from numa_rl.transformer.ffn import FeedForward
from numa_rl.transformer.ffn_ways import MADE_BY, TRANSPOSED, Collective, Layout, Way

Matrix = npt.NDArray[Any]
Pieces = list[Matrix]  # of each rank, p of them


@dataclass(frozen=True)
class Activation:
    """What acts on each element of X W_1.

    Attributes:
        value: f.
        slope: its derivative.
    """

    value: Callable[[Matrix], Matrix]
    slope: Callable[[Matrix], Matrix]


def _normal_density(values: Matrix) -> Matrix:
    return np.asarray(np.exp(-(values**2) / 2) / np.sqrt(2 * np.pi).astype(values.dtype))


RELU = Activation(lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(x.dtype))
GELU = Activation(lambda x: x * ndtr(x), lambda x: ndtr(x) + x * _normal_density(x))  # x Phi(x) [2]


def feed_forward(x: Matrix, w_1: Matrix, w_2: Matrix, activation: Activation = GELU) -> Matrix:
    """Y = f(X W_1) W_2 in one place, shape (n, d)."""
    return np.asarray(activation.value(x @ w_1) @ w_2)


@dataclass(frozen=True, eq=False)
class SplitRun:
    """What came of a way, and what it took.

    Attributes:
        outputs: Y as it lies on each rank.
        layout: how it lies there.
        gradients: with respect to X, W_1 and W_2, put together; empty after a forward pass alone.
        sent_bytes: by each rank, shape (p,).
        held_bytes: the matrices that each rank holds forward, as `ffn.memory_bytes` counts them, shape (p,).
        flops: multiplications and additions of each rank's products, shape (p,).
    """

    outputs: list[Matrix]
    layout: Layout
    gradients: tuple[Matrix, ...]
    sent_bytes: npt.NDArray[np.float64]
    held_bytes: npt.NDArray[np.int64]
    flops: npt.NDArray[np.int64]

    @property
    def output(self) -> Matrix:
        """Y, put together from its pieces, shape (n, d)."""
        return _joined(self.outputs, self.layout)


def run_split(
    way: Way,
    x: Matrix,
    w_1: Matrix,
    w_2: Matrix,
    num_ranks: int,
    activation: Activation = GELU,
    output_gradient: Matrix | None = None,
) -> SplitRun:
    """Y = f(X W_1) W_2 by p ranks, and the gradients if that with respect to Y is given.

    Args:
        way: how the weights are cut.
        x: X, shape (n, d).
        w_1: W_1, shape (d, m).
        w_2: W_2, shape (m, d).
        num_ranks: p.
        activation: f.
        output_gradient: with respect to Y, shape (n, d), which lies as Y does.

    Raises:
        ValueError: shapes do not match, the numbers are no floats, or a width does not divide evenly.
    """
    require_count(num_ranks=num_ranks)
    _check(x, w_1, w_2, x if output_gradient is None else output_gradient)
    shape = FeedForward(x.shape[0], x.shape[1], w_1.shape[1], x.itemsize)
    for name, layout in (("X", way.held), ("W_1", way.first), ("X W_1", way.inner[0]), ("X W_1", way.inner[1])):
        shape.piece(name, layout, num_ranks)  # every width that is cut
    layer = _Layer(way, _Ranks(num_ranks), x, w_1, w_2)
    outputs = layer.forward(activation)
    held_bytes = layer.ranks.held_bytes.copy()
    gradients = () if output_gradient is None else layer.backward(output_gradient, activation)
    return SplitRun(outputs, way.held, gradients, layer.ranks.sent_bytes, held_bytes, layer.ranks.flops)


def _check(x: Matrix, w_1: Matrix, w_2: Matrix, output_gradient: Matrix) -> None:
    """Raise ValueError unless these are matrices that match, of real numbers."""
    shapes = x.shape, w_1.shape, w_2.shape
    if any(len(shape) != 2 for shape in shapes) or x.shape[1:] + w_2.shape[:1] != w_1.shape or w_1.T.shape != w_2.shape:
        raise ValueError(
            f"X, W_1 and W_2 must have shapes (n, d), (d, m) and (m, d), got {', '.join(map(str, shapes))}."
        )
    if output_gradient.shape != x.shape:
        raise ValueError(f"output_gradient must have the shape of Y, {x.shape}, got {output_gradient.shape}.")
    kinds = [matrix.dtype for matrix in (x, w_1, w_2, output_gradient)]
    if any(kind.kind != "f" for kind in kinds):
        raise ValueError(f"matrices must hold floats, got {', '.join(map(str, kinds))}.")


class _Layer:
    """One layer on p ranks, and what forward leaves for backward.

    Args:
        way: how the weights are cut.
        ranks: who computes.
        x: X.
        w_1: W_1.
        w_2: W_2.
    """

    def __init__(self, way: Way, ranks: _Ranks, x: Matrix, w_1: Matrix, w_2: Matrix) -> None:
        self.way, self.ranks = way, ranks
        self.given = ranks.cut(x, way.held)
        # Shares that are gathered are columns of W_1 and rows of W_2, the columns of its transpose.
        layouts = (Layout.COLUMNS, Layout.COLUMNS) if way.gathers_weights else (way.first, TRANSPOSED[way.second])
        self.shares = ranks.cut(w_1, layouts[0]), ranks.cut(w_2.T, layouts[1])

    def weights(self) -> tuple[Pieces, Pieces]:
        """W_1 and the transpose of W_2 as the products need them."""
        first, second = self.shares
        if self.way.gathers_weights:
            first = self.ranks.changed(first, Layout.COLUMNS, Layout.WHOLE)
            second = self.ranks.changed(second, Layout.COLUMNS, Layout.WHOLE)
        return first, second

    def forward(self, activation: Activation) -> Pieces:
        """Y."""
        way, ranks = self.way, self.ranks
        first, second = self.weights()
        ranks.hold(self.given, first, second)
        made = ranks.product(self.given, first)
        needed = ranks.changed(made, *way.inner)
        self.inner = needed if way.inner[0] is Layout.PARTIAL else made  # complete elements
        self.inner_layout = way.inner[way.inner[0] is Layout.PARTIAL]
        ranks.hold(_larger(made, needed))
        self.activated = [activation.value(piece) for piece in needed]
        made = ranks.product(self.activated, [piece.T for piece in second])
        outputs = ranks.changed(made, *way.outer)
        ranks.hold(_larger(made, outputs))
        return outputs

    def backward(self, output_gradient: Matrix, activation: Activation) -> tuple[Matrix, Matrix, Matrix]:
        """The gradients with respect to X, W_1 and W_2, put together."""
        way, ranks = self.way, self.ranks
        of_outer, of_inner, of_given = way.gradients
        first, second = self.weights()
        outer = ranks.changed(ranks.cut(output_gradient, way.held), *of_outer)
        inner, lies = ranks.product(outer, second), of_inner[0]
        if lies is not self.inner_layout:
            inner, lies = ranks.changed(inner, *of_inner), of_inner[1]
        inner = [piece * activation.slope(z) for piece, z in zip(inner, self.inner, strict=True)]
        if lies is not of_inner[1]:
            inner = ranks.changed(inner, *of_inner)
        made = ranks.product(inner, [piece.T for piece in first])
        given = ranks.changed(made, *of_given)
        of_first = ranks.product([piece.T for piece in self.given], inner)
        of_second = ranks.product([piece.T for piece in outer], self.activated)  # of the transpose
        return (
            _joined(given, way.held),
            self._weight_gradient(of_first, way.first),
            self._weight_gradient(of_second, TRANSPOSED[way.second]).T,
        )

    def _weight_gradient(self, pieces: Pieces, layout: Layout) -> Matrix:
        """A gradient put together where it is complete, or summed first."""
        if layout is Layout.WHOLE:
            layout = Layout.COLUMNS if self.way.gathers_weights else Layout.WHOLE
            pieces = self.ranks.changed(pieces, Layout.PARTIAL, layout)
        return _joined(pieces, layout)


def _larger(one: Pieces, other: Pieces) -> Pieces:
    return [max(pair, key=lambda piece: piece.size) for pair in zip(one, other, strict=True)]


def _block(rank: int, num_ranks: int) -> int:
    """Which block of columns or rows a rank has: the one that the ring's reduce-scatter leaves it with."""
    return (rank + 1) % num_ranks


def _joined(pieces: Pieces, layout: Layout) -> Matrix:
    """A matrix put together from what each rank has of it."""
    if layout is Layout.WHOLE:
        return pieces[0]
    by_block = np.argsort([_block(rank, len(pieces)) for rank in range(len(pieces))])
    return np.concatenate([pieces[rank] for rank in by_block], axis=1 if layout is Layout.COLUMNS else 0)


class _Ranks:
    """p ranks: cuts matrices into their pieces, multiplies and exchanges these, and counts."""

    def __init__(self, num_ranks: int) -> None:
        self.num_ranks = num_ranks
        self.sent_bytes = np.zeros(num_ranks)
        self.held_bytes = np.zeros(num_ranks, np.int64)
        self.flops = np.zeros(num_ranks, np.int64)

    def cut(self, matrix: Matrix, layout: Layout) -> Pieces:
        """The piece of each rank."""
        if layout is Layout.WHOLE:
            return [matrix] * self.num_ranks
        blocks = np.array_split(matrix, self.num_ranks, axis=1 if layout is Layout.COLUMNS else 0)
        return [blocks[_block(rank, self.num_ranks)] for rank in range(self.num_ranks)]

    def hold(self, *matrices: Pieces) -> None:
        """Count what lies on each rank."""
        for pieces in matrices:
            self.held_bytes += [piece.nbytes for piece in pieces]

    def product(self, left: Pieces, right: Pieces) -> Pieces:
        """What each rank gets from its own pieces."""
        self.flops += [2 * a.size * b.shape[1] for a, b in zip(left, right, strict=True)]
        return [a @ b for a, b in zip(left, right, strict=True)]

    def changed(self, pieces: Pieces, have: Layout, need: Layout) -> Pieces:
        """The same matrix in the layout that is needed, by the collective that makes it."""
        kind = MADE_BY.get((have, need))
        if have is Layout.WHOLE and need is Layout.COLUMNS:
            return [self.cut(piece, need)[rank] for rank, piece in enumerate(pieces)]
        if kind is None:
            assert have is need, f"nothing makes {need} of {have}"
            return pieces
        rows, columns = pieces[0].shape
        if have is Layout.COLUMNS:
            columns *= self.num_ranks
        # Columns one after another, so that a chunk of the vectors is a block of columns.
        vectors = np.full((self.num_ranks, columns * rows), np.nan, pieces[0].dtype)
        schedule = kind.schedule(self.num_ranks)
        blocks = [self._part(vectors[rank], rank) for rank in range(self.num_ranks)]
        for rank, piece in enumerate(pieces):
            (blocks[rank] if have is Layout.COLUMNS else vectors[rank])[:] = piece.T.ravel()
        received = run(schedule, vectors)
        self.sent_bytes += schedule.sent_bytes(vectors[0].nbytes)
        if kind is Collective.REDUCE_SCATTER:
            columns //= self.num_ranks
            return [self._part(received[rank], rank).reshape(columns, rows).T for rank in range(self.num_ranks)]
        return [vector.reshape(columns, rows).T for vector in received]

    def _part(self, vector: Matrix, rank: int) -> Matrix:
        """The rank's own block of a vector, as a view."""
        return np.split(vector, self.num_ranks)[_block(rank, self.num_ranks)]

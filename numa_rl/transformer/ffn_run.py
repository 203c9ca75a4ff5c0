"""The ways of `ffn.py`, executed in numpy: each rank computes with the pieces that it has.

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
from numa_rl.transformer.ffn import MADE_BY, Collective, FeedForward, Layout, Way

Matrix = npt.NDArray[Any]
Pieces = list[Matrix]  # of each rank, p of them
Activation = Callable[[Matrix], Matrix]


def relu(values: Matrix) -> Matrix:
    """Each x if above 0, else 0."""
    return np.maximum(values, 0)


def gelu(values: Matrix) -> Matrix:
    """Each x times Phi(x), the normal distribution function [2]."""
    return np.asarray(values * ndtr(values))


def feed_forward(x: Matrix, w_1: Matrix, w_2: Matrix, activation: Activation = gelu) -> Matrix:
    """Y = f(X W_1) W_2 in one place, shape (n, d)."""
    return np.asarray(activation(x @ w_1) @ w_2)


@dataclass(frozen=True, eq=False)
class SplitRun:
    """What came of a way, and what it took.

    Attributes:
        outputs: Y as it lies on each rank.
        layout: how it lies there.
        sent_bytes: by each rank, shape (p,).
        held_bytes: the matrices that each rank holds, as `ffn.memory_bytes` counts them, shape (p,).
        flops: multiplications and additions of each rank's products, shape (p,).
    """

    outputs: Pieces
    layout: Layout
    sent_bytes: npt.NDArray[np.float64]
    held_bytes: npt.NDArray[np.int64]
    flops: npt.NDArray[np.int64]

    @property
    def output(self) -> Matrix:
        """Y, put together from its pieces, shape (n, d)."""
        if self.layout is Layout.WHOLE:
            return self.outputs[0]
        by_block = np.argsort([_block(rank, len(self.outputs)) for rank in range(len(self.outputs))])
        blocks = [self.outputs[rank] for rank in by_block]
        return np.concatenate(blocks, axis=1 if self.layout is Layout.COLUMNS else 0)


def _block(rank: int, num_ranks: int) -> int:
    """Which block of columns or rows a rank has: the one that the ring's reduce-scatter leaves it with."""
    return (rank + 1) % num_ranks


def run_split(way: Way, x: Matrix, w_1: Matrix, w_2: Matrix, num_ranks: int, activation: Activation = gelu) -> SplitRun:
    """Y = f(X W_1) W_2 by p ranks.

    Args:
        way: how the weights are cut.
        x: X, shape (n, d).
        w_1: W_1, shape (d, m).
        w_2: W_2, shape (m, d).
        num_ranks: p.
        activation: f, which acts on each element alone.

    Raises:
        ValueError: shapes do not match, or a width does not divide evenly.
    """
    require_count(num_ranks=num_ranks)
    _check(x, w_1, w_2)
    shape = FeedForward(x.shape[0], x.shape[1], w_1.shape[1], x.itemsize)
    ranks = _Ranks(num_ranks)
    for name, layout in (("X", way.held), ("W_1", way.first), ("X W_1", way.inner[0]), ("X W_1", way.inner[1])):
        shape.piece(name, layout, num_ranks)  # every width that is cut
    if way.gathers_weights:
        first = ranks.changed(ranks.cut(w_1, Layout.COLUMNS), Layout.COLUMNS, Layout.WHOLE)
        second = [w.T for w in ranks.changed(ranks.cut(w_2.T, Layout.COLUMNS), Layout.COLUMNS, Layout.WHOLE)]
    else:
        first, second = ranks.cut(w_1, way.first), ranks.cut(w_2, way.second)
    given = ranks.cut(x, way.held)
    ranks.hold(given, first, second)
    before = ranks.product(given, first)
    after = ranks.changed(before, *way.inner)
    ranks.hold(_larger(before, after))
    before = ranks.product([activation(piece) for piece in after], second)
    outputs = ranks.changed(before, *way.outer)
    ranks.hold(_larger(before, outputs))
    return SplitRun(outputs, way.held, ranks.sent_bytes, ranks.held_bytes, ranks.flops)


def _check(x: Matrix, w_1: Matrix, w_2: Matrix) -> None:
    """Raise ValueError unless these are matrices that match, of real numbers."""
    shapes = x.shape, w_1.shape, w_2.shape
    if any(len(shape) != 2 for shape in shapes) or x.shape[1:] + w_2.shape[:1] != w_1.shape or w_1.T.shape != w_2.shape:
        raise ValueError(
            f"X, W_1 and W_2 must have shapes (n, d), (d, m) and (m, d), got {', '.join(map(str, shapes))}."
        )
    if any(matrix.dtype.kind != "f" for matrix in (x, w_1, w_2)):
        raise ValueError(f"X, W_1 and W_2 must hold floats, got {x.dtype}, {w_1.dtype}, {w_2.dtype}.")


def _larger(one: Pieces, other: Pieces) -> Pieces:
    return [max(pair, key=lambda piece: piece.size) for pair in zip(one, other, strict=True)]


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

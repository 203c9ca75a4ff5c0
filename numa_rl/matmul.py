"""C = A B over the nodes of a machine: who holds which block, and which bytes move at each step (exercise 4).

Three schedules, executed in numpy. After the matrices are handed out, a node computes with blocks that it holds or was
sent, and nothing else; every block sent between two nodes is counted where it is sent. C stays where it is computed,
and joining it for the caller counts as no traffic.

`cannon` and `summa` hold one block of each matrix per node at a time; `naive` needs all of B on every node.

Dimension key: A is (M, K), B is (K, N); P nodes, S steps. A grid has R rows and C columns of nodes, P = R C, and node
C i + j stands in row i, column j. Sizes that do not divide evenly are split as `np.array_split` does.

References:
    [1] The chapter, exercise 4: blocks on a sqrt(P) x sqrt(P) grid, MK/P + KN/P elements per node and step.
    [2] L. E. Cannon, "A cellular computer to implement the Kalman filter algorithm", 1969.
    [3] R. van de Geijn, J. Watts, "SUMMA: scalable universal matrix multiplication algorithm", 1997.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from numa_rl.topology import IntArray

Matrix = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class DistributedProduct:
    """A product, and what its schedule sent.

    Attributes:
        product: C, shape (M, N).
        grid: rows and columns of nodes; (P, 1) where they stand in a line.
        setup_bytes: sent before the first step, shape (P, P), indexed [receiver, sender]: Cannon's skew, else zero.
        step_bytes: sent in each step, shape (S, P, P), indexed [step, receiver, sender].
    """

    product: Matrix
    grid: tuple[int, int]
    setup_bytes: IntArray
    step_bytes: IntArray

    @property
    def received_bytes(self) -> IntArray:
        """What each node receives in each step, shape (S, P)."""
        received: IntArray = self.step_bytes.sum(axis=2)
        return received

    @property
    def total_bytes(self) -> int:
        """Sent in all steps, without the setup."""
        return int(self.step_bytes.sum())

    @property
    def total_setup_bytes(self) -> int:
        """Sent before the first step."""
        return int(self.setup_bytes.sum())


class _Network:
    """Hands blocks from node to node, and counts what crosses between two different ones."""

    def __init__(self, num_nodes: int) -> None:
        self.bytes: IntArray = np.zeros((num_nodes, num_nodes), dtype=np.int64)

    def send(self, block: Matrix, sender: int, receiver: int) -> Matrix:
        """The receiver's own copy of a block."""
        if sender != receiver:
            self.bytes[receiver, sender] += block.nbytes
        return block.copy()

    def fetch(self, held: Sequence[Matrix], sender_of: Callable[[int], int]) -> list[Matrix]:
        """Every node's copy of what another holds: node n gets that of `sender_of(n)`, all at the same time."""
        return [self.send(held[sender_of(node)], sender_of(node), node) for node in range(len(held))]


def cannon(a: Matrix, b: Matrix, num_nodes: int) -> DistributedProduct:
    """Cannon's schedule: blocks are skewed once, then multiplied and shifted around the rows and columns of a grid [2].

    There are sqrt(P) multiplications with a shift between any two, so S = sqrt(P) - 1; a shift after the last would
    only bring the blocks back. In every shift all of A and all of B move, MK/P + KN/P elements per node [1].

    Args:
        a: A, shape (M, K).
        b: B, shape (K, N).
        num_nodes: P, a square.

    Raises:
        ValueError: P is no square or < 1, or the matrices are not 2-D, are empty, do not match or hold no numbers.
    """
    _check(a, b, num_nodes)
    side = math.isqrt(num_nodes)
    if side * side != num_nodes:
        raise ValueError(
            f"num_nodes must be a square for Cannon's schedule, such as {side**2} or {(side + 1) ** 2}, "
            f"got {num_nodes}; use SUMMA."
        )
    held_a, held_b = _blocks(a, side, side), _blocks(b, side, side)

    def beside(row_shift: int, column_shift: int) -> Callable[[int], int]:
        return lambda node: (node // side + row_shift) % side * side + (node + column_shift) % side

    skew = _Network(num_nodes)
    held_a = skew.fetch(held_a, lambda node: beside(0, node // side)(node))
    held_b = skew.fetch(held_b, lambda node: beside(node % side, 0)(node))
    held_c = [x @ y for x, y in zip(held_a, held_b, strict=True)]
    steps = []
    for _ in range(side - 1):
        shift = _Network(num_nodes)
        held_a = shift.fetch(held_a, beside(0, 1))
        held_b = shift.fetch(held_b, beside(1, 0))
        held_c = [c + x @ y for c, x, y in zip(held_c, held_a, held_b, strict=True)]
        steps.append(shift.bytes)
    return _joined(held_c, (side, side), skew.bytes, steps)


def summa(a: Matrix, b: Matrix, num_nodes: int, panel_width: int | None = None) -> DistributedProduct:
    """SUMMA: columns of A are sent along the grid's rows and rows of B along its columns, a panel at a time [3].

    For any P, on the grid of `most_square_grid`. Every node receives MK/P (C - 1) + KN/P (R - 1) elements in all,
    however wide the panels are: narrow ones need less room and more steps. The node that holds a part of a panel sends
    it to each of the others itself; passed on from node to node it would be as many bytes, from less loaded nodes.

    Args:
        a: A, shape (M, K).
        b: B, shape (K, N).
        num_nodes: P.
        panel_width: most columns of A in a panel; a panel also ends where a block does, and only there when None.

    Raises:
        ValueError: P or the width is < 1, or the matrices are not 2-D, are empty, do not match or hold no numbers.
    """
    _check(a, b, num_nodes)
    if panel_width is not None:
        _require_whole("panel_width", panel_width)
    rows, columns = most_square_grid(num_nodes)
    held_a, held_b = _blocks(a, rows, columns), _blocks(b, rows, columns)
    held_c = [np.zeros((len(x), y.shape[1]), np.result_type(x, y)) for x, y in zip(held_a, held_b, strict=True)]
    a_edges, b_edges = _edges(a.shape[1], columns), _edges(a.shape[1], rows)
    steps = []
    for first, last in _panels(a_edges, b_edges, panel_width):
        # The grid column that holds these columns of A, and the grid row that holds these rows of B.
        column, row = (int(np.searchsorted(edges, first, side="right")) - 1 for edges in (a_edges, b_edges))
        network = _Network(num_nodes)
        for node in range(num_nodes):
            from_row, from_column = node // columns * columns + column, row * columns + node % columns
            x = held_a[from_row][:, first - a_edges[column] : last - a_edges[column]]
            y = held_b[from_column][first - b_edges[row] : last - b_edges[row]]
            held_c[node] += network.send(x, from_row, node) @ network.send(y, from_column, node)
        steps.append(network.bytes)
    return _joined(held_c, (rows, columns), np.zeros((num_nodes, num_nodes), np.int64), steps)


def naive(a: Matrix, b: Matrix, num_nodes: int) -> DistributedProduct:
    """Rows of A, B and C on each node, which fetches all that it lacks of B at once: K N (P - 1) / P elements.

    Args:
        a: A, shape (M, K).
        b: B, shape (K, N).
        num_nodes: P.

    Raises:
        ValueError: P < 1, or the matrices are not 2-D, are empty, do not match or hold no numbers.
    """
    _check(a, b, num_nodes)
    held_a, held_b = _blocks(a, num_nodes, 1), _blocks(b, num_nodes, 1)
    network = _Network(num_nodes)
    held_c = []
    for node in range(num_nodes):
        whole_b = np.concatenate([network.send(block, sender, node) for sender, block in enumerate(held_b)])
        held_c.append(held_a[node] @ whole_b)
    steps = [network.bytes] if num_nodes > 1 else []
    return _joined(held_c, (num_nodes, 1), np.zeros((num_nodes, num_nodes), np.int64), steps)


def cannon_elements_per_step(m: int, k: int, n: int, num_nodes: int) -> float:
    """MK/P + KN/P: what a node receives in one shift of Cannon's schedule where blocks are equal [1].

    Raises:
        ValueError: a size that is not a whole number >= 1, or P that is no square.
    """
    _require_shape(num_nodes, m=m, k=k, n=n)
    if math.isqrt(num_nodes) ** 2 != num_nodes:
        raise ValueError(f"num_nodes must be a square for Cannon's schedule, got {num_nodes}.")
    return (m * k + k * n) / num_nodes


def summa_elements_per_node(m: int, k: int, n: int, rows: int, columns: int) -> float:
    """MK/P (C - 1) + KN/P (R - 1): what a node receives in all of SUMMA where blocks are equal [3].

    Raises:
        ValueError: a size that is not a whole number >= 1.
    """
    _require_shape(rows * columns, m=m, k=k, n=n, rows=rows, columns=columns)
    return (m * k * (columns - 1) + k * n * (rows - 1)) / (rows * columns)


def naive_elements_per_node(k: int, n: int, num_nodes: int) -> float:
    """KN (P - 1) / P: what a node fetches of B where every node needs all of it and blocks are equal.

    Raises:
        ValueError: a size that is not a whole number >= 1.
    """
    _require_shape(num_nodes, k=k, n=n)
    return k * n * (num_nodes - 1) / num_nodes


def most_square_grid(num_nodes: int) -> tuple[int, int]:
    """The factors (R, C) of P that are closest to each other, R <= C; a prime makes one row.

    Raises:
        ValueError: P is not a whole number >= 1.
    """
    _require_whole("num_nodes", num_nodes)
    rows = next(rows for rows in range(math.isqrt(num_nodes), 0, -1) if num_nodes % rows == 0)
    return rows, num_nodes // rows


def _require_shape(num_nodes: int, **sizes: int) -> None:
    """Raise ValueError naming the first of these that is not a whole number >= 1."""
    for name, size in sizes.items():
        _require_whole(name, size)
    _require_whole("num_nodes", num_nodes)


def _check(a: Matrix, b: Matrix, num_nodes: int) -> None:
    """Raise ValueError unless A B exists, is not empty, and there is a node to compute it."""
    _require_whole("num_nodes", num_nodes)
    for name, matrix in (("a", a), ("b", b)):
        if not isinstance(matrix, np.ndarray):
            raise ValueError(f"{name} must be a numpy array, got {type(matrix).__name__}.")
        if matrix.ndim != 2:
            raise ValueError(f"{name} must be 2-D, got shape {matrix.shape}.")
        if matrix.size == 0:
            raise ValueError(f"{name} must not be empty, got shape {matrix.shape}.")
        if matrix.dtype.kind not in "iufc":
            raise ValueError(f"{name} must hold numbers, got dtype {matrix.dtype}.")
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"a must have as many columns as b has rows, got shapes {a.shape} and {b.shape}.")


def _require_whole(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {value}.")


def _edges(size: int, parts: int) -> list[int]:
    """Where each of the parts of `np.array_split` begins, and where the last one ends."""
    each, more = divmod(size, parts)
    return [part * each + min(part, more) for part in range(parts + 1)]


def _panels(a_edges: list[int], b_edges: list[int], width: int | None) -> list[tuple[int, int]]:
    """Ranges of K that lie within one block of A and one of B, at most `width` wide."""
    panels = []
    for first, last in pairwise(sorted({*a_edges, *b_edges})):
        step = last - first if width is None else width
        panels += [(start, min(start + step, last)) for start in range(first, last, step)]
    return panels


def _blocks(matrix: Matrix, rows: int, columns: int) -> list[Matrix]:
    """Hand out a matrix: each node's own copy of its block, by node."""
    return [
        matrix[top:bottom, left:right].copy()
        for top, bottom in pairwise(_edges(matrix.shape[0], rows))
        for left, right in pairwise(_edges(matrix.shape[1], columns))
    ]


def _joined(
    held_c: list[Matrix], grid: tuple[int, int], setup_bytes: IntArray, steps: list[IntArray]
) -> DistributedProduct:
    """The result, with C joined from the nodes' blocks."""
    rows, columns = grid
    product = np.block([held_c[row * columns : (row + 1) * columns] for row in range(rows)])
    step_bytes = np.array(steps, dtype=np.int64).reshape(-1, rows * columns, rows * columns)
    return DistributedProduct(product, grid, setup_bytes, step_bytes)

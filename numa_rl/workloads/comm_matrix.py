"""Reader of communication matrices: how much every pair of tasks of a parallel program exchanged.

The format is that of EagerMap [1]: comma-separated whole numbers, a line for each task, symmetric. **Lines stand in
reverse order of the tasks, the first task on the last line; columns stand in order.** So the zeros of a task and
itself run from the upper right to the lower left, by which a matrix in the usual order is told apart. The unit of the
numbers is whatever was counted (bytes, messages, accesses to shared cache lines), and a caller scales it.

Dimension key: T tasks.

References:
    [1] E. H. M. Cruz et al., "An efficient algorithm for communication-based task mapping", PDP 2015; the format is
        described in the README of ehmcruz/eagermap, and its `parse_csv` reads it so.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from numa_rl.wording import counted, quoted
from numa_rl.workloads.text_lines import text_lines

MOST_TASKS = 4096  # a dense matrix of 128 MiB


def read_communication_matrix(path: str | Path) -> npt.NDArray[np.float64]:
    """Read a matrix, a line at a time.

    Args:
        path: of the CSV file.

    Returns:
        What each pair of tasks exchanged, in the file's unit, in order of the tasks, shape (T, T). Symmetric, with
        zeros on the diagonal.

    Raises:
        ValueError: there is no such file, it is no such matrix, it has fewer than 2 tasks or more than
            `MOST_TASKS`, or no task communicates; the message names file, line, rule and value.
    """
    rows: list[npt.NDArray[np.float64]] = []
    where = str(path)
    for where, line in text_lines(path, "communication matrix"):
        cells = line.split(",")
        num_tasks = len(rows[0]) if rows else len(cells)
        if not 2 <= num_tasks <= MOST_TASKS:
            raise ValueError(f"{where}: a matrix must be of 2..{MOST_TASKS} tasks, got {num_tasks} cells in a line.")
        if len(cells) != num_tasks:
            raise ValueError(f"{where}: a line must have {num_tasks} cells as the first one, got {len(cells)}.")
        if len(rows) == num_tasks:
            raise ValueError(f"{where}: a matrix of {counted(num_tasks, 'task')} must end here, got another line.")
        rows.append(np.array([_amount(cell, column, where) for column, cell in enumerate(cells)]))
    if not rows:
        raise ValueError(f"{path}: communication matrix must have at least 2 lines, got an empty file.")
    if len(rows) != len(rows[0]):
        raise ValueError(f"{where}: a matrix must have as many lines as cells, {len(rows[0])}, got {len(rows)}.")
    matrix = np.array(rows[::-1])
    _check(matrix, path)
    return matrix


def _amount(cell: str, column: int, where: str) -> float:
    try:
        amount = float(cell) if "_" not in cell else math.nan
    except ValueError:
        amount = math.nan
    if not 0 <= amount < math.inf:
        raise ValueError(f"{where}: cell {column + 1} must be a finite number >= 0, got {quoted(cell)}.")
    return amount


def _check(matrix: npt.NDArray[np.float64], path: str | Path) -> None:
    """Every task as much with another as that one with it, nothing with itself, and not all nothing."""
    num_tasks = len(matrix)
    reminder = "lines must stand in reverse order of the tasks, the first task on the last line"
    itself = np.flatnonzero(np.diagonal(matrix))
    if len(itself):
        task = int(itself[0])
        raise ValueError(
            f"{path}:{num_tasks - task}: what task {task} exchanges with itself must be 0, got {matrix[task, task]:g} "
            f"({reminder})."
        )
    uneven = np.argwhere(matrix != matrix.T)
    if len(uneven):
        one, other = (int(task) for task in uneven[0])
        raise ValueError(
            f"{path}:{num_tasks - one}: tasks {one} and {other} must exchange as much one way as the other, got "
            f"{matrix[one, other]:g} and {matrix[other, one]:g} ({reminder})."
        )
    if not matrix.any():
        raise ValueError(f"{path}: some tasks must communicate, got zeros only.")

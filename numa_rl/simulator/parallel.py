"""Sharing the rows of a batch among threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

SMALLEST_CHUNK = 64  # rows; below it a thread costs more than it saves


class Chunks:
    """Splits rows into one run of rows a thread.

    Kernels hold no interpreter lock and rows share nothing, so plain threads run at once, and their number changes
    no result.

    Args:
        num_rows: rows to share.
        num_threads: most threads to use.

    Raises:
        ValueError: more threads than the machine has cores, or fewer than 1.
    """

    def __init__(self, num_rows: int, num_threads: int) -> None:
        """Decide who gets which rows."""
        most = os.cpu_count() or 1
        if not 1 <= num_threads <= most:
            raise ValueError(f"num_threads must be in 1..{most}, got {num_threads}.")
        self.count = min(num_threads, max(1, num_rows // SMALLEST_CHUNK))
        self._bounds = [chunk * num_rows // self.count for chunk in range(self.count + 1)]
        self._pool = ThreadPoolExecutor(self.count) if self.count > 1 else None

    def run(self, work: Callable[[int, int, int], None]) -> None:
        """Call work(chunk, first row, last row) for every chunk, and wait for all."""
        if self._pool is None:
            work(0, 0, self._bounds[1])
        else:
            list(self._pool.map(work, range(self.count), self._bounds[:-1], self._bounds[1:]))

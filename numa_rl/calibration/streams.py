"""Streams of reads in the background, one on each of some cores, and how fast they are at any moment.

Dimension key: W words.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType

import numpy as np

from numa_rl.calibration.binding import pin
from numa_rl.calibration.buffer import WordArray
from numa_rl.calibration.kernels import LINE_WORDS, STOP, WORD_BYTES, stream

BLOCK_WORDS = 2**15  # 256 KiB, some tens of microseconds between one look at the board and the next
POLL_S = 1e-3
QUICK_S = 2e-5  # a look at the board that took longer was interrupted, and says nothing of its time
MOST_LOOKS = 1000


class Streams:
    """Reads by threads that start with a `with` and end with it.

    Attributes:
        parts: what each of them reads, no word twice.
    """

    def __init__(
        self, words: WordArray, processors: Sequence[int], *, block: int = BLOCK_WORDS, spins: int = 0
    ) -> None:
        """Prepare one stream for each processor, over a part of its own.

        Args:
            words: what is read, shape (W,); at least a word for every processor.
            processors: where they run, one to each.
            block: words read between pauses, or less where a part is smaller.
            spins: length of a pause, in steps of a generator.

        Raises:
            ValueError: there are fewer words than processors.
        """
        if len(words) < len(processors):
            raise ValueError(f"words must be at least as many as the {len(processors)} streams, got {len(words)}.")
        part = len(words) // max(len(processors), 1)
        self.parts = [words[start * part : (start + 1) * part] for start in range(len(processors))]
        self._processors = processors
        self._block, self._spins = min(block, part), spins
        self._board = np.zeros((len(processors) + 1) * LINE_WORDS, dtype=np.uint64)
        self._rows = [(number + 1) * LINE_WORDS for number in range(len(processors))]
        self._running: list[Future[None]] = []
        self._threads = ThreadPoolExecutor(max(len(processors), 1))

    def __enter__(self) -> Streams:
        """Start, and wait until every one of them reads."""
        try:
            self._running = [self._threads.submit(self._run, number) for number in range(len(self._rows))]
            while not self._board[self._rows].all():
                if any(future.done() for future in self._running):
                    break  # one has failed; it is raised at the end
                time.sleep(POLL_S)
        except BaseException:
            self._stop()
            raise
        if any(future.done() for future in self._running):
            self.__exit__(None, None, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop them all; raises OSError when one could not run on its processor."""
        self._stop()
        for future in self._running:
            future.result()

    def snapshot(self) -> tuple[float, float]:
        """The time in seconds, and bytes read until then."""
        for _ in range(MOST_LOOKS):
            before = time.perf_counter()
            words = int(self._board[self._rows].sum())
            after = time.perf_counter()
            if after - before < QUICK_S:
                break
        return (before + after) / 2.0, float(words * WORD_BYTES)

    def bytes_per_s(self, window_s: float) -> float:
        """What they read a second from now on, over a while."""
        began, before = self.snapshot()
        time.sleep(window_s)
        ended, after = self.snapshot()
        return (after - before) / (ended - began)

    def _run(self, number: int) -> None:
        pin(self._processors[number])
        stream(self.parts[number], np.uint64(self._block), self._spins, self._board, self._rows[number])

    def _stop(self) -> None:
        self._board[STOP] = 1
        wait(self._running)
        self._threads.shutdown()

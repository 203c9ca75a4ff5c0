"""Times of this machine: one node's cores, one node's memory, one figure at a time.

Dimension key: N nodes, R repeats.

References:
    [1] L. McVoy, C. Staelin, "lmbench: Portable Tools for Performance Analysis", USENIX 1996.
    [2] Intel Memory Latency Checker, its readme: matrices, and latency beside streams that pause.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from numa_rl.calibration.binding import move_pages, pinned
from numa_rl.calibration.buffer import HUGE_BYTES, PAGE_BYTES, Buffer
from numa_rl.calibration.kernels import FLOPS_PER_VALUE, LINE_BYTES, STOP, chase, link, polynomials, stream
from numa_rl.calibration.places import Places
from numa_rl.calibration.streams import Streams
from numa_rl.calibration.timing import Timing
from numa_rl.topology import FloatArray

FIRST_HOPS = 20_000  # of a chase, by which its speed is guessed
FIRST_ROUNDS = 200  # of arithmetic, likewise
VALUES = 2048  # of single precision, a quarter of a first-level cache of 32 KiB
LOADED_BLOCK_WORDS = 512  # 4 KiB between pauses, so that the load is even
PAGES_MOVED = 2048

LLC_TIMES = 8  # a buffer is that many times the largest last-level cache, where memory allows
LEAST_LLC_TIMES = 2  # of less, too much stays in the cache
LEAST_BYTES = 64 * 2**20
MEMORY_PER_BUFFER = 2.25  # two buffers, and the order of the lines of one, an eighth of it
FREE_SHARE = 0.5  # of free memory that may be used


def buffer_bytes(places: Places, llc_bytes: float, memory_bytes: float) -> int:
    """The size of a buffer: `LLC_TIMES` the cache, or what memory allows.

    Args:
        places: how much memory is free, in all and on each node.
        llc_bytes: the largest last-level cache of a node.
        memory_bytes: the most that may be used, of everything together.

    Raises:
        ValueError: that is less than `LEAST_LLC_TIMES` the cache.
    """
    free = FREE_SHARE * min(*places.free_bytes, places.total_free_bytes)
    wanted = max(LLC_TIMES * llc_bytes, LEAST_BYTES)
    least = LEAST_LLC_TIMES * llc_bytes
    for rule, room in (("--memory", memory_bytes), (f"{FREE_SHARE:.0%} of the free memory of every node", free)):
        if room / MEMORY_PER_BUFFER < least:
            raise ValueError(
                f"{rule} must be at least {MEMORY_PER_BUFFER * least / 2**20:.0f} MiB, for two buffers of "
                f"{LEAST_LLC_TIMES} times a cache of {llc_bytes / 2**20:.0f} MiB, got {room / 2**20:.0f} MiB."
            )
    size = min(wanted, memory_bytes / MEMORY_PER_BUFFER, free / MEMORY_PER_BUFFER)
    return max(int(size) // HUGE_BYTES, 1) * HUGE_BYTES


class LinuxInstrument:
    """Measures this machine by threads pinned to processors and memory bound to nodes.

    Attributes:
        size_bytes: of a buffer.
        timing: of every figure.
        cores: how many cores of each node it uses, length N.
        huge_share: of the last buffer that was in huge pages.
        placed: how its pages were placed, and how that is known.
    """

    def __init__(self, places: Places, size_bytes: int, timing: Timing, rng: np.random.Generator) -> None:
        """Compile the kernels and draw the order in which lines are visited."""
        self.size_bytes = size_bytes
        self.timing = timing
        self.cores = tuple(len(processors) for processors in places.processors)
        self.huge_share = 0.0
        self.placed = ""
        self._places = places
        self._order = rng.permutation(size_bytes // LINE_BYTES)
        self._held: tuple[int, Buffer] | None = None
        self._at = np.uint64(0)
        _compile()

    def chase_s(self, initiator: int, target: int) -> FloatArray:
        """Seconds a load takes that waits for the one before [1], from one core to a node's memory, shape (R,).

        Raises:
            RefusedError: memory cannot be placed there.
            ValueError: the pages are not where they were placed.
        """
        buffer = self._buffer(target)
        times = pinned(self._places.processors[initiator][0], lambda: self._chases(buffer, lambda run: run()))
        self.placed = _placed(buffer)
        return times

    def stream_bytes_per_s(self, initiator: int, target: int, cores: int) -> FloatArray:
        """What some cores of a node read of a node's memory together, shape (R,).

        Raises:
            RefusedError: memory cannot be placed there.
            ValueError: the pages are not where they were placed.
        """
        buffer = self._buffer(target)
        with Streams(buffer.words, self._places.processors[initiator][:cores]) as streams:
            streams.bytes_per_s(self.timing.window_s)
            rates = [streams.bytes_per_s(self.timing.window_s) for _ in range(self.timing.repeats)]
        buffer.require_in_place()
        return np.array(rates)

    def loaded(self, node: int, spins: int | None) -> tuple[FloatArray, FloatArray]:
        """Latency of a node's memory to one core while the others read it, and what all of them read [2].

        Args:
            node: whose cores and memory.
            spins: how long the others pause after every 4 KiB, in steps of a generator; None: they do not read.

        Returns:
            Seconds a load takes, shape (R,), and bytes/s of the others and the chase together, shape (R,).
        """
        buffer = self._buffer(node)
        *others, chasing = self._places.processors[node]
        busy = [] if spins is None else others
        beside = Buffer(self.size_bytes if busy else HUGE_BYTES, self._places.nodes[node], chasing)
        others_bytes_per_s: list[float] = []
        with Streams(beside.words, busy, block=LOADED_BLOCK_WORDS, spins=spins or 0) as streams:

            def watched(run: Callable[[], float]) -> float:
                began, before = streams.snapshot()
                hop_s = run()
                ended, after = streams.snapshot()
                others_bytes_per_s.append((after - before) / (ended - began))
                return hop_s

            hop_s = pinned(chasing, lambda: self._chases(buffer, watched))
        beside.require_in_place()
        return hop_s, np.array(others_bytes_per_s[-self.timing.repeats :]) + LINE_BYTES / hop_s

    def flops_per_s(self, node: int) -> FloatArray:
        """Single-precision operations a second of one core, fused multiply-adds counting two, shape (R,)."""
        return pinned(self._places.processors[node][0], self._arithmetic)

    def move_s(self, source: int, target: int) -> FloatArray:
        """Seconds the kernel takes to move one base page between nodes, copying it included, shape (R,).

        Raises:
            RefusedError: pages may not be moved.
            ValueError: pages did not move.
        """
        own = self._places.processors[source] or next(filter(None, self._places.processors))
        buffer = Buffer(PAGES_MOVED * PAGE_BYTES, self._places.nodes[source], own[0], huge=False)
        addresses = buffer.pages(PAGES_MOVED)
        nodes = self._places.nodes
        times = []
        for _ in range(self.timing.repeats + 1):
            began = time.perf_counter()
            found = pinned(own[0], lambda: move_pages(addresses, nodes[target]))
            times.append((time.perf_counter() - began) / len(addresses))
            if (found != nodes[target]).any():
                raise ValueError(f"pages must move to node {nodes[target]}, got {np.unique(found).tolist()}.")
            move_pages(addresses, nodes[source])
        return np.array(times[1:])

    def _buffer(self, target: int) -> Buffer:
        """The buffer on a node, its lines linked; the one held on another node is given back first."""
        if self._held is None or self._held[0] != target:
            self._held = None
            own = self._places.processors[target]
            buffer = Buffer(self.size_bytes, self._places.nodes[target], own[0] if own else None)
            link(buffer.words, self._order)
            self._at = np.uint64(0)
            self.huge_share = buffer.huge_share()
            self.placed = _placed(buffer)
            self._held = (target, buffer)
        return self._held[1]

    def _chases(self, buffer: Buffer, watched: Callable[[Callable[[], float]], float]) -> FloatArray:
        """Seconds a hop of every repeat, shape (R,), going on where the last ended."""

        def run(hops: int) -> float:
            began = time.perf_counter()
            self._at = np.uint64(chase(buffer.words, self._at, hops))
            return (time.perf_counter() - began) / hops

        hops = max(int(self.timing.window_s / run(FIRST_HOPS)), 1)
        return np.array([watched(lambda: run(hops)) for _ in range(self.timing.repeats + 1)][1:])

    def _arithmetic(self) -> FloatArray:
        """Operations a second of every repeat, shape (R,)."""
        values = np.ones(VALUES, dtype=np.float32)

        def run(rounds: int) -> float:
            began = time.perf_counter()
            polynomials(values, rounds)
            return (time.perf_counter() - began) / rounds

        rounds = max(int(self.timing.window_s / run(FIRST_ROUNDS)), 1)
        rates = [VALUES * FLOPS_PER_VALUE / run(rounds) for _ in range(self.timing.repeats + 1)]
        return np.array(rates[1:])


def _placed(buffer: Buffer) -> str:
    """How a buffer's pages were placed, and how that is known.

    Raises:
        ValueError: they are known to be elsewhere.
    """
    bound = f"first touched by a core of the node, for {buffer.refused}" if buffer.refused else "bound by mbind"
    return f"pages {bound}, {buffer.require_in_place()}"


def _compile() -> None:
    """Compile every kernel for the types it is called with, before anything is timed."""
    words = np.zeros(16, dtype=np.uint64)
    link(words, np.arange(2))
    chase(words, np.uint64(0), 1)
    words[STOP] = 1
    stream(words, np.uint64(1), 0, words, 8)
    polynomials(np.ones(1, dtype=np.float32), 1)

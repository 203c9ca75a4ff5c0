"""Samples of (thread, address, write), and the accesses to cache lines that they stand for.

Dimension key: S samples, A accesses (samples split at line borders), N nodes.

References:
    [1] The chapter, section 16.1.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from numa_rl.coherence.caches import checked_integers

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
MaskArray = npt.NDArray[np.uint64]

LINE_BYTES = 64
PAGE_BYTES = 4096
MOST_LINE_BYTES = 4096
MASK_BITS = 64
HIGHEST_ADDRESS = 2**62  # leaves room to add to an address


@dataclass(frozen=True, eq=False)
class Samples:
    """Who touched what, in order of time.

    Attributes:
        thread: number of the thread, shape (S,), integers >= 0.
        address: first byte touched, shape (S,), integers >= 0.
        write: whether it was written, shape (S,), booleans, or 0 and 1.
        thread_node: node of each thread; by default, thread numbers are node numbers.
        page_node: node whose memory has the page, shape (S,); by default the node of the first thread that touches
            the page, as Linux places it.
        access_bytes: touched by each access, at most a line.
        line_bytes: size of a cache line, a power of two.

    Raises:
        ValueError: lengths differ, an array is not of integers or outside its range, a thread has no node, or
            a size is outside its range.
    """

    thread: IntArray
    address: IntArray
    write: BoolArray
    thread_node: Mapping[int, int] | None = None
    page_node: IntArray | None = None
    access_bytes: int = 8
    line_bytes: int = LINE_BYTES

    def __post_init__(self) -> None:
        """Check everything and convert the arrays."""
        size = self.line_bytes
        if not (isinstance(size, int) and 0 < size <= MOST_LINE_BYTES and size & (size - 1) == 0):
            raise ValueError(f"line_bytes must be a power of two in 1..{MOST_LINE_BYTES}, got {size}.")
        if not (isinstance(self.access_bytes, int) and 0 < self.access_bytes <= size):
            raise ValueError(f"access_bytes must be an integer in 1..{size}, one line, got {self.access_bytes}.")
        arrays = {
            "thread": checked_integers("thread", self.thread, 0, HIGHEST_ADDRESS),
            "address": checked_integers("address", self.address, 0, HIGHEST_ADDRESS),
            "write": checked_flags("write", self.write),
        }
        if self.page_node is not None:
            arrays["page_node"] = checked_integers("page_node", self.page_node, 0, HIGHEST_ADDRESS)
        for name, array in arrays.items():
            if len(array) != len(arrays["thread"]):
                raise ValueError(f"{name} must have as many entries as thread, {len(self.thread)}, got {len(array)}.")
            object.__setattr__(self, name, array)

    def nodes(self, num_nodes: int) -> IntArray:
        """Node of each sample, shape (S,); raises ValueError for a thread without one, or with one beyond N."""
        if self.thread_node is None:
            return checked_integers(
                "thread (its own node, for thread_node is not given)", self.thread, 0, num_nodes - 1
            )
        threads, inverse = np.unique(self.thread, return_inverse=True)
        missing = [int(thread) for thread in threads if thread not in self.thread_node]
        if missing:
            raise ValueError(f"thread_node must have a node for every thread, got none for thread {missing[0]}.")
        nodes = [self.thread_node[int(thread)] for thread in threads]
        return checked_integers("thread_node", nodes, 0, num_nodes - 1)[inverse]


def checked_flags(name: str, values: npt.ArrayLike) -> BoolArray:
    """A one-dimensional array of booleans, or of 0 and 1; raises ValueError otherwise."""
    array = np.asarray(values)
    if array.ndim == 1 and array.dtype.kind == "b":
        return np.ascontiguousarray(array)
    return checked_integers(name, array, 0, 1).astype(np.bool_)


@dataclass(frozen=True, eq=False)
class Trace:
    """Accesses, each within one line, in order of time; every array has shape (A,).

    Attributes:
        thread: who.
        node: where it runs.
        line: number of the line; any numbers, equal for equal lines.
        start: first byte touched, an address. It need not lie in `line`: a remedy moves lines, not addresses.
        stop: the byte after the last one touched.
        write: whether it writes.
        home: node whose memory has the line.
        line_bytes: size of a line, one number.
    """

    thread: IntArray
    node: IntArray
    line: IntArray
    start: IntArray
    stop: IntArray
    write: BoolArray
    home: IntArray
    line_bytes: int

    def __len__(self) -> int:
        """Number of accesses A."""
        return len(self.line)

    def select(self, which: BoolArray | IntArray) -> Trace:
        """These accesses only."""
        return Trace(
            thread=self.thread[which],
            node=self.node[which],
            line=self.line[which],
            start=self.start[which],
            stop=self.stop[which],
            write=self.write[which],
            home=self.home[which],
            line_bytes=self.line_bytes,
        )

    def masks(self) -> MaskArray:
        """Which bytes of its line each access touches: one bit for every byte, or for every 1/64 of longer lines."""
        granule = max(1, self.line_bytes // MASK_BITS)
        first = (self.start % self.line_bytes) // granule
        bits = ((self.stop - 1) % self.line_bytes) // granule - first + 1
        ones = np.uint64(2**64 - 1) >> (MASK_BITS - bits).astype(np.uint64)
        return ones << first.astype(np.uint64)


def trace_of(samples: Samples, num_nodes: int) -> Trace:
    """The accesses that samples stand for: split at line borders, with their nodes and homes.

    Args:
        samples: as taken.
        num_nodes: nodes of the machine.

    Raises:
        ValueError: a thread or page has a node that the machine does not have, or a thread has none.
    """
    node = samples.nodes(num_nodes)
    last = samples.address + samples.access_bytes
    lines = (last - 1) // samples.line_bytes - samples.address // samples.line_bytes + 1
    row = np.repeat(np.arange(len(node)), lines)
    piece = np.arange(len(row)) - np.repeat(np.cumsum(lines) - lines, lines)
    line = samples.address[row] // samples.line_bytes + piece
    start = np.maximum(samples.address[row], line * samples.line_bytes)
    stop = np.minimum(last[row], (line + 1) * samples.line_bytes)
    if samples.page_node is None:
        home = first_touch(start // PAGE_BYTES, node[row])
    else:
        home = checked_integers("page_node", samples.page_node, 0, num_nodes - 1)[row]
    return Trace(samples.thread[row], node[row], line, start, stop, samples.write[row], home, samples.line_bytes)


def first_touch(page: IntArray, node: IntArray) -> IntArray:
    """Node of each access's page: that of the first access to the page, shape (A,)."""
    _, first, inverse = np.unique(page, return_index=True, return_inverse=True)
    return node[first][inverse]

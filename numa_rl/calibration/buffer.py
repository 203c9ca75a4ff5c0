"""Memory to measure on: mapped, bound to a node, in huge pages where that can be had, touched, and looked up.

Dimension key: W words, P pages.

References:
    [1] mmap(2), madvise(2): MADV_HUGEPAGE; Linux kernel documentation, "Transparent Hugepage Support".
    [2] Linux kernel documentation, "The /proc Filesystem": AnonHugePages in smaps.
"""

from __future__ import annotations

import contextlib
import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from numa_rl.calibration.binding import AddressArray, RefusedError, bind, mapped_by_node, nodes_of_pages, pinned

WordArray = npt.NDArray[np.uint64]

HUGE_BYTES = 2 * 2**20
PAGE_BYTES = mmap.PAGESIZE
PAGES_ASKED = 1024  # of a buffer, evenly spread, when its place is looked up
LEAST_THERE = 0.99  # share of the pages that must be where they were bound
SMAPS = Path("/proc/self/smaps")
RANGE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")
HUGE = re.compile(r"AnonHugePages: +(\d+) kB")


class Buffer:
    """Words of memory on one node, given back when nothing refers to them any more.

    Attributes:
        words: the memory, shape (W,).
        node: the kernel's number of the node.
        refused: why it could not be bound; "" where it is. Then its pages are where they were first touched.
    """

    def __init__(self, size_bytes: int, node: int, processor: int | None, *, huge: bool = True) -> None:
        """Map memory, bind it and touch every page.

        Args:
            size_bytes: a multiple of the page size.
            node: the kernel's number of the node.
            processor: one of the node's own, which touches the pages; None where it has none.
            huge: whether huge pages are asked for, or refused.

        Raises:
            RefusedError: memory cannot be bound, and no processor of the node can touch it instead.
            OSError: there is no such memory.
        """
        mapped = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel without huge pages
            mapped.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        self.words: WordArray = np.frombuffer(mapped, dtype=np.uint64)
        self.node = node
        self.refused = ""
        try:
            bind(self.address, size_bytes, node)
        except RefusedError as error:
            if processor is None:
                raise
            self.refused = str(error)
        if processor is None:
            self.words.fill(1)
        else:
            pinned(processor, lambda: self.words.fill(1))

    @property
    def address(self) -> int:
        """Of the first word."""
        return int(self.words.ctypes.data)

    @property
    def size_bytes(self) -> int:
        """Of the memory."""
        return self.words.nbytes

    def pages(self, most: int = PAGES_ASKED) -> AddressArray:
        """Addresses of at most so many of its pages, evenly spread, shape (P,)."""
        count = self.size_bytes // PAGE_BYTES
        chosen = np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
        return (self.address + chosen * PAGE_BYTES).astype(np.uintp)

    def place(self) -> tuple[float, str]:
        """The share of its pages that are on its node, and how that is known; NaN where it is not."""
        try:
            nodes = nodes_of_pages(self.pages())
        except RefusedError as error:
            counted = mapped_by_node(self.address)
            if not counted:
                return float("nan"), str(error)
            return counted.get(self.node, 0) / sum(counted.values()), "looked up in numa_maps"
        return float(np.mean(nodes == self.node)), "looked up by move_pages"

    def require_in_place(self) -> str:
        """How it is known that the pages are where they should be; or why it is not known.

        Raises:
            ValueError: they are known to be elsewhere.
        """
        share, how = self.place()
        if np.isnan(share):
            return f"not looked up: {how}"
        if share < LEAST_THERE:
            raise ValueError(
                f"at least {LEAST_THERE:.0%} of the pages measured must be on node {self.node}, got {share:.1%}; "
                "its memory may be full, or the system moves pages by itself."
            )
        return how

    def huge_share(self) -> float:
        """Share of it in huge pages [2], 0 where the system does not say."""
        try:
            lines = SMAPS.read_text("utf-8", "replace").splitlines()
        except OSError:
            return 0.0
        inside = False
        for line in lines:
            bounds = RANGE.match(line)
            if bounds:
                inside = int(bounds[1], 16) <= self.address < int(bounds[2], 16)
            found: Any = inside and HUGE.match(line)
            if found:
                return min(int(found[1]) * 1024 / self.size_bytes, 1.0)
        return 0.0

"""Keeping memory that was freed, for the next gradient step asks for as much again.

The C library hands large blocks back to the system when they are freed. A gradient step allocates the same tens of
megabytes each time, so the system clears the same pages again and again: with batches of 4096, more than a third of
the time of a step.

References:
    [1] mallopt(3): https://man7.org/linux/man-pages/man3/mallopt.3.html
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST_MMAP_BYTES = 32 << 20  # glibc takes no more
KEPT_BYTES = (1 << 31) - 1  # free memory at the top of the heap up to which none is handed back


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, until the process ends; returns whether it does.

    Only glibc is asked; on other systems nothing changes. No result depends on it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # a C library without it
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    done = [mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_BYTES), mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)]
    return all(done)

"""Where threads run and pages lie, by Linux's own calls: affinity, memory policy, and asking for and moving pages.

No library is needed but the C library, and no privilege. Containers often refuse the calls on memory; what they refuse
is said in words, and the caller goes without.

Dimension key: P pages.

References:
    [1] sched_setaffinity(2), mbind(2), move_pages(2); the numbers of the calls are those of the kernel's tables
        arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
    [2] Linux kernel documentation, "The /proc Filesystem": numa_maps counts the pages of a mapping by node.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from numa_rl.topology import IntArray

T = TypeVar("T")
AddressArray = npt.NDArray[np.uintp]


class Calls(NamedTuple):
    """The numbers of the system calls on one kind of processor [1]."""

    mbind: int
    move_pages: int


CALLS = {"x86_64": Calls(mbind=237, move_pages=279), "aarch64": Calls(mbind=235, move_pages=239)}
MPOL_BIND = 2
MPOL_MF_MOVE = 2
REFUSALS = (errno.EPERM, errno.ENOSYS)
BITS_PER_WORD = 64
NUMA_MAPS = Path("/proc/self/numa_maps")
ON_NODE = re.compile(r"\bN(\d{1,6})=(\d{1,18})")


class RefusedError(Exception):
    """The system does not let this process make a call, or has none of the kind; the message says which."""


def pinned(processor: int, work: Callable[[], T]) -> T:
    """What the work returns, done by a thread of its own that may run on one processor only.

    Raises:
        OSError: the process may not use that processor.
    """
    returned: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            pin(processor)
            returned.append(work())
        except BaseException as error:
            failed.append(error)

    thread = Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return returned[0]


def pin(processor: int) -> None:
    """Keep the calling thread on one processor; no other thread is touched."""
    os.sched_setaffinity(0, {processor})


def bind(address: int, size_bytes: int, node: int) -> None:
    """Let pages not yet touched come from one node's memory and no other.

    Args:
        address: of the mapping, a multiple of the page size.
        size_bytes: of the mapping.
        node: the kernel's number of the node.

    Raises:
        RefusedError: the call is not permitted, or there is none.
        OSError: the node has no memory this process may use.
    """
    words = (ctypes.c_ulong * (node // BITS_PER_WORD + 1))()
    words[node // BITS_PER_WORD] = 1 << node % BITS_PER_WORD
    most = len(words) * BITS_PER_WORD + 1  # the kernel takes one bit less than it is told
    _call("mbind", ctypes.c_void_p(address), ctypes.c_ulong(size_bytes), MPOL_BIND, words, ctypes.c_ulong(most), 0)


def nodes_of_pages(addresses: AddressArray) -> IntArray:
    """The kernel's number of the node each page is on, shape (P,); below 0 where there is none.

    Raises:
        RefusedError: the call is not permitted, or there is none.
        OSError: the call failed.
    """
    return _move_pages(addresses, None)


def move_pages(addresses: AddressArray, node: int) -> IntArray:
    """Move pages to a node; the node each is on after that, shape (P,), or an error number below 0.

    Raises:
        RefusedError: the call is not permitted, or there is none.
        OSError: the call failed.
    """
    return _move_pages(addresses, np.full(len(addresses), node, dtype=np.int32))


def mapped_by_node(address: int) -> dict[int, int]:
    """Pages by node of the mapping that an address is in, as the kernel counts them [2]; empty where it does not.

    The kernel joins mappings that lie side by side and have the same policy; it counts them together.
    """
    try:
        lines = NUMA_MAPS.read_text("utf-8", "replace").splitlines()
    except OSError:
        return {}
    counted: dict[int, int] = {}
    for line in lines:
        start, _, rest = line.partition(" ")
        if int(start, 16) > address:
            break
        counted = {int(node): int(pages) for node, pages in ON_NODE.findall(rest)}
    return counted


def _move_pages(addresses: AddressArray, nodes: npt.NDArray[np.int32] | None) -> IntArray:
    status = np.zeros(len(addresses), dtype=np.int32)
    wanted = None if nodes is None else ctypes.c_void_p(nodes.ctypes.data)
    pages, results = (ctypes.c_void_p(array.ctypes.data) for array in (addresses, status))
    _call("move_pages", 0, ctypes.c_ulong(len(addresses)), pages, wanted, results, MPOL_MF_MOVE)
    return status.astype(np.int64)


def _call(name: str, *arguments: object) -> None:
    """Make a system call.

    Raises:
        RefusedError: it is not permitted, or there is none.
        OSError: it failed.
    """
    numbers = CALLS.get(platform.machine())
    if numbers is None:
        raise RefusedError(f"the number of {name} is not known on {platform.machine() or 'this processor'}")
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    plain = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    if library.syscall(ctypes.c_long(getattr(numbers, name)), *plain) >= 0:
        return
    code = ctypes.get_errno()
    if code in REFUSALS:
        raise RefusedError(f"{name} is refused ({errno.errorcode[code]})")
    raise OSError(code, f"{name}: {os.strerror(code)}")

"""What of this machine the process may use: processors of each node, and how much memory.

Nodes are numbered as in the machine `live`, in ascending order of the kernel's numbers, which may have gaps.

Dimension key: N nodes.

References:
    [1] Linux kernel documentation, "Control Group v2": memory.max, cpu.max; proc(5): /proc/meminfo.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from numa_rl.machines.processors import members
from numa_rl.machines.sysfs import usable
from numa_rl.machines.system_files import NODES, SystemFiles
from numa_rl.machines.tree import FolderTree

KIB = 2**10
FREE = re.compile(r"MemFree: +(\d{1,18}) kB")
RECLAIMABLE = re.compile(r"(?:Inactive\(file\)|SReclaimable): +(\d{1,18}) kB")
AVAILABLE = re.compile(r"MemAvailable: +(\d{1,18}) kB")
GROUP = re.compile(r"^\d+:([\w,=]*):/(\S*)$", re.MULTILINE)
GROUPS = "sys/fs/cgroup"
MEMORY_LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


@dataclass(frozen=True)
class Places:
    """The nodes that the process may use.

    Attributes:
        nodes: the kernel's number of each node, length N.
        processors: of each node, one processor of each of its cores; a second thread of a core would only share it.
        free_bytes: memory of each node that can be had without taking it from others.
        total_free_bytes: the same of all nodes together, with the limits of the process's control group.
        remarks: what else limits the process, or makes its machine other than it looks.
    """

    nodes: tuple[int, ...]
    processors: tuple[tuple[int, ...], ...]
    free_bytes: tuple[float, ...]
    total_free_bytes: float
    remarks: tuple[str, ...]


def live_places() -> Places:
    """Those of this machine.

    Raises:
        ValueError: the system is no Linux with /sys, or the process may use no node of it.
    """
    require_linux()
    return places_in(SystemFiles(FolderTree(Path("/"))))


def require_linux() -> None:
    """Raise ValueError unless this is Linux."""
    if not sys.platform.startswith("linux"):
        raise ValueError(f"measuring needs Linux, whose calls say where memory lies, got {sys.platform}.")


def places_in(files: SystemFiles) -> Places:
    """Those of a system's files.

    Raises:
        ValueError: no node may be used, or the files hold no lists of numbers.
    """
    _, nodes, processors = usable(files)
    free = [_free_bytes(files.text(f"{NODES}/node{node}/meminfo") or "") for node in nodes]
    return Places(
        nodes=tuple(nodes),
        processors=tuple(tuple(members(core)[0] for core in cores) for cores in processors.owned),
        free_bytes=tuple(free),
        total_free_bytes=_total_free_bytes(files.outside, sum(free)),
        remarks=tuple(_remarks(files.outside)),
    )


def _free_bytes(meminfo: str) -> float:
    """Memory of a node that is free or holds only what can be read again."""
    return float(sum(int(size) for pattern in (FREE, RECLAIMABLE) for size in pattern.findall(meminfo)) * KIB)


def _total_free_bytes(text_of: Callable[[str], str | None], of_nodes: float) -> float:
    """Memory that the process can have: what is available, and what its control group leaves it [1]."""
    rooms = [of_nodes]
    available = AVAILABLE.search(text_of("proc/meminfo") or "")
    if available:
        rooms.append(float(available[1]) * KIB)
    for folder in _group_folders(text_of, "memory"):
        for most, used in MEMORY_LIMITS:
            limit, taken = ((text_of(f"{folder}/{name}") or "").strip() for name in (most, used))
            if limit.isdecimal() and taken.isdecimal() and len(limit) < 20:
                rooms.append(float(max(int(limit) - int(taken), 0)))
    return min(rooms)


def _remarks(text_of: Callable[[str], str | None]) -> list[str]:
    """What makes measurements differ from those of the bare machine."""
    remarks = []
    if re.search(r"^flags\s*:.*\bhypervisor\b", text_of("proc/cpuinfo") or "", re.MULTILINE):
        remarks.append("inside a virtual machine, whose nodes may not be those of the hardware")
    for folder in _group_folders(text_of, "cpu"):
        quota = re.match(r"(\d{1,12}) (\d{1,12})", text_of(f"{folder}/cpu.max") or "")
        if quota and int(quota[2]):
            remarks.append(f"held by its control group to the time of {int(quota[1]) / int(quota[2]):.3g} processors")
            break
    return remarks


def _group_folders(text_of: Callable[[str], str | None], controller: str) -> list[str]:
    """Where the files of the process's control group for a controller may be, its own first [1].

    Inside a container the group's name may be that outside, while the folder at the top is the container's own.
    """
    folders = []
    for controllers, group in GROUP.findall(text_of("proc/self/cgroup") or ""):
        if not controllers:
            folders += [f"{GROUPS}/{group}", GROUPS]
        elif controller in controllers.split(","):
            folders += [f"{GROUPS}/{controller}/{group}", f"{GROUPS}/{controller}"]
    return [folder.rstrip("/") for folder in folders]

"""Which processors and memories a process may use, by the files of its system.

References:
    [1] proc(5): /proc/self/status, Cpus_allowed_list and Mems_allowed_list.
    [2] Linux kernel documentation, "Control Group v2": cpuset; cpuset(7) for version 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from numa_rl.machines.processors import MOST_PROCESSORS, from_list

ALL = (1 << MOST_PROCESSORS) - 1
# What the files of the two sets are called: in version 2, in version 1, and in version 1 without its prefix.
CPU_FILES = ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus", "cpus")
MEMORY_FILES = ("cpuset.mems.effective", "cpuset.effective_mems", "cpuset.mems", "mems")
MOUNT = re.compile(r"^\S+ (\S+) (cgroup2|cgroup|cpuset) (\S+)", re.MULTILINE)


def allowed(text_of: Callable[[str], str | None]) -> tuple[int, int]:
    """The processors and the memory nodes a process may use, as sets; all where nothing says otherwise.

    Its own status counts [1]; a copy of a system's files has none, and there the group it was in counts [2].

    Args:
        text_of: the text of a file by its path from the system's root, None without one.

    Raises:
        ValueError: a file does not hold a list of numbers.
    """
    status = text_of("proc/self/status") or ""
    told = [re.search(rf"^{word}_allowed_list:\s*(\S+)", status, re.MULTILINE) for word in ("Cpus", "Mems")]
    if all(told):
        processors, memories = (from_list(found[1], "allowed list of /proc/self/status") for found in told if found)
        return processors, memories
    for folder in _folders(text_of):
        sets = [_first(text_of, folder, names) for names in (CPU_FILES, MEMORY_FILES)]
        if any(sets):
            return sets[0] or ALL, sets[1] or ALL
    return ALL, ALL


def _folders(text_of: Callable[[str], str | None]) -> list[str]:
    """Where the files of the process's group are, by where groups are mounted."""
    group = (text_of("proc/self/cpuset") or "/").strip()
    places = [
        place
        for place, kind, options in MOUNT.findall(text_of("proc/mounts") or "")
        if kind != "cgroup" or "cpuset" in options.split(",")
    ]
    return [f"{place}/{group}".replace("//", "/").strip("/") for place in places]


def _first(text_of: Callable[[str], str | None], folder: str, names: tuple[str, ...]) -> int | None:
    """The set in the first of the files that is there and not empty; None without any."""
    texts = ((text_of(f"{folder}/{name}") or "").strip() for name in names)
    text = next(filter(None, texts), None)
    return None if text is None else from_list(text, f"a list in {folder}")

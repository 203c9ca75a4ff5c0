"""Reading a machine from the files of a Linux system: /sys of this machine, a copy of it, or an archive of a copy.

Nodes are those online, in the order of their numbers, which may have gaps. What the process whose files they are may
not use, by its control group, is left out: its processors are no cores, its memories no nodes.

Dimension key: N nodes.

References:
    [1] Linux kernel documentation, ABI: sysfs-devices-node and sysfs-devices-system-cpu.
    [2] Linux kernel documentation, "NUMA Memory Performance": access classes and memory-side caches.
    [3] hwloc, `hwloc-gather-topology`: an archive of the files that describe a machine.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from numa_rl.machines.assembly import Found, assemble, joined, memory_side_caches
from numa_rl.machines.hmat import SIGNATURE, found_figures, parse_hmat
from numa_rl.machines.processors import from_list, from_mask, last_level_bytes, members, peak_flops_per_s, union
from numa_rl.machines.restriction import ALL, allowed
from numa_rl.machines.tree import ArchiveTree, FolderTree, Tree
from numa_rl.topology import FloatArray, Topology
from numa_rl.wording import quoted

MAX_NODES = 1024  # Linux's own limit, MAX_NUMNODES
NODES, CPUS, HMAT = "devices/system/node", "devices/system/cpu", f"firmware/acpi/tables/{SIGNATURE.decode()}"
MOST_TOPS = 100  # entries of the top folder that are looked into for a sys
KIB = 2**10
NS, MB = 1e-9, 1e6  # units of an access class [2]
MEMORY = re.compile(r"MemTotal: +(\d{1,18}) kB")
CACHE_SIZE = re.compile(r"(\d{1,12})([KMG]?)")
CACHE_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
CLOCK = re.compile(r"^(?:cpu MHz|clock)\s*: *(\d+\.?\d*)", re.MULTILINE)
MODEL = re.compile(r"^(?:model name|cpu)\s*: *(.*\S)", re.MULTILINE)
# Opteron's pairs of cores that share a front end, which Linux calls threads of one core.
BULLDOZER = re.compile(r"^vendor_id\s*: AuthenticAMD$(?s:.*?)^cpu family\s*: 21$", re.MULTILINE)
FIRST_OF_CPUINFO = 4096  # characters, enough for the first processor
SIBLINGS = ("core_cpus_list", "thread_siblings_list", "core_cpus", "thread_siblings")


def read_live() -> Topology:
    """The machine this runs on, as far as this process may use it.

    Raises:
        ValueError: the system is no Linux with /sys, or its files describe no machine.
    """
    return _read(FolderTree(Path("/")), "live", "this system's /sys")


def read_folder(path: Path) -> Topology:
    """The machine of a copy of /sys: the folder itself, or a `sys` in it, in its `fsroot` or in its only folder.

    Raises:
        ValueError: no nodes in the folder, or they describe no machine.
    """
    return _read(FolderTree(path), path.resolve().name, f"folder {str(path)!r}")


def machine_in_archive(name: str, content: bytes) -> Topology:
    """The machine of an archive of a copy of /sys, such as `hwloc-gather-topology` writes, read in memory.

    Args:
        name: how the machine is called.
        content: the archive.

    Raises:
        ValueError: no archive, damaged, too large, leading out of itself, or not of a machine.
    """
    return assemble(_System(ArchiveTree(content)).found(name))


def _read(tree: Tree, name: str, origin: str) -> Topology:
    """The machine of a tree; errors name its origin."""
    try:
        return assemble(_System(tree).found(name))
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None


class _System:
    """The files of one system, and the nodes and processors they name."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.root, self.sys = _where(tree)
        self.processors, memories = allowed(self._outside)
        online = self._list(f"{CPUS}/online")
        self.processors &= ALL if online is None else online
        self.present = self._nodes()
        self.nodes = [node for node in self.present if memories >> node & 1]
        if not 1 <= len(self.nodes) <= MAX_NODES:
            raise ValueError(
                f"there must be 1 to {MAX_NODES} nodes online in {NODES}, got {len(self.nodes)} that may be used."
            )
        self.kept = np.ix_(*[[self.present.index(node) for node in self.nodes]] * 2)
        self.cpuinfo = self._outside("proc/cpuinfo") or ""
        self.owned = [self._cores(node) for node in self.nodes]

    def found(self, name: str) -> Found:
        """What the files say of the machine."""
        cores = np.array([len(owned) for owned in self.owned], dtype=np.int64)
        sources = {
            "cores": joined("file: cores online in sysfs", self._left_out()),
            "memory_bytes": joined("file: MemTotal of each node", memory_side_caches(self._side_caches())),
        }
        figures: dict[str, Any] = self._performance(cores > 0, sources)
        model = MODEL.search(self.cpuinfo)
        flops, sources["flops_per_s"] = peak_flops_per_s(
            self.owned, self._clocks(), self._clock_source(), model[1] if model else None
        )
        llc, sources["llc_bytes"] = last_level_bytes(self.owned, *self._last_level_caches())
        return Found(
            name=name,
            cores=cores,
            flops_per_s=flops,
            memory_bytes=np.array([self._memory(node) for node in self.nodes]),
            distances=self._distances(),
            llc_bytes=llc,
            sources=sources,
            **figures,
        )

    def _outside(self, path: str) -> str | None:
        """A text file by its path from the system's root; None without one."""
        data = self.tree.data(posixpath.join(self.root, path))
        return None if data is None else data.decode("utf-8", "replace")

    def _text(self, path: str) -> str | None:
        """A text file by its path in /sys, without blanks around it; None without one."""
        data = self.tree.data(posixpath.join(self.sys, path))
        return None if data is None else data.decode("utf-8", "replace").strip("\0 \t\n")

    def _list(self, path: str) -> int | None:
        """The set in a file of numbers and ranges; None without the file."""
        text = self._text(path)
        return None if text is None else from_list(text, path)

    def _numbered(self, folder: str, word: str) -> list[int]:
        """Numbers of the entries of a folder that are named by a word and a number, ascending."""
        matches = (re.fullmatch(rf"{word}(\d{{1,6}})", name) for name in self.tree.names(f"{self.sys}/{folder}"))
        return sorted(int(match[1]) for match in matches if match)

    def _nodes(self) -> list[int]:
        """Numbers of the nodes online, ascending."""
        online = self._list(f"{NODES}/online")
        return [node for node in self._numbered(NODES, "node") if online is None or online >> node & 1]

    def _left_out(self) -> str:
        """What the source of cores says of what the process may not use."""
        taken = [node for node in self.present if node not in self.nodes]
        return f"file: nodes {', '.join(map(str, taken))} left out, not allowed to the process" if taken else ""

    def _cores(self, node: int) -> list[int]:
        """The cores of a node, as sets of the processors of each that may be used."""
        text = self._text(f"{NODES}/node{node}/cpumap")
        if text is None:
            near = self._list(f"{NODES}/node{node}/cpulist") or 0
        else:
            near = from_mask(text, f"cpumap of node {node}")
        left, cores = near & self.processors, []
        while left:
            lowest = left & -left
            core = (self._siblings(lowest.bit_length() - 1) | lowest) & left
            cores.append(core)
            left &= ~core
        return cores

    def _siblings(self, processor: int) -> int:
        """The processors of one core; of an Opteron whose cores come in pairs, the processor only."""
        for name in () if BULLDOZER.search(self.cpuinfo, 0, FIRST_OF_CPUINFO) else SIBLINGS:
            text = self._text(f"{CPUS}/cpu{processor}/topology/{name}")
            if text:
                what = f"{name} of processor {processor}"
                return from_list(text, what) if name.endswith("list") else from_mask(text, what)
        return 1 << processor

    def _memory(self, node: int) -> float:
        """Bytes of a node's memory."""
        found = MEMORY.search(self._text(f"{NODES}/node{node}/meminfo") or "")
        if found is None or int(found[1]) == 0:
            raise ValueError(f"MemTotal of node {node} must be > 0 kB, got {found[1] if found else 'none'}.")
        return float(int(found[1]) * KIB)

    def _distances(self) -> FloatArray | None:
        """SLIT distances between the nodes, shape (N, N); None without any."""
        rows = [(self._text(f"{NODES}/node{node}/distance") or "").split() for node in self.present]
        if not any(rows):
            return None
        for node, row in zip(self.present, rows, strict=True):
            if len(row) != len(self.present) or not all(re.fullmatch(r"[1-9]\d{0,8}", text) for text in row):
                rule = f"{len(self.present)} whole numbers > 0"
                raise ValueError(f"distances of node {node} must be {rule}, got {quoted(' '.join(row))}.")
        return np.array(rows, dtype=np.float64)[self.kept]

    def _performance(self, has_cores: Any, sources: dict[str, str]) -> dict[str, FloatArray]:
        """Latency and bandwidth as the firmware states them, with their sources: all pairs, or the best only."""
        table = self.tree.data(f"{self.sys}/{HMAT}")
        if table is not None:
            hmat = parse_hmat(table)
            if len(hmat.targets) == len(self.present):
                everyone = np.ones(len(self.present), dtype=bool)
                found, told = found_figures(hmat, everyone)
                found = {key: matrix[self.kept] for key, matrix in found.items()}
                found = {key: matrix for key, matrix in found.items() if np.isfinite(matrix[has_cores]).any()}
                sources.update({key: told[key] for key in found})
                return found
        found = {}
        for key, file, unit in (("latency_s", "read_latency", NS), ("bandwidth_bytes_per_s", "read_bandwidth", MB)):
            matrix = self._best_initiators(file) * unit
            if np.isfinite(matrix[has_cores]).any(axis=0).all():
                found[key] = matrix
                sources[key] = f"file: {file} of the best initiators in sysfs, the firmware's own figures"
        return found

    def _best_initiators(self, file: str) -> FloatArray:
        """A figure of the access classes, from their initiators, shape (N, N), NaN where there is none."""
        values = np.full((len(self.nodes), len(self.nodes)), np.nan)
        for target, node in enumerate(self.nodes):
            for access in ("access1", "access0"):  # class 1 knows processors only, class 0 accelerators too
                folder = f"{NODES}/node{node}/{access}/initiators"
                text = self._text(f"{folder}/{file}")
                if text is None or not re.fullmatch(r"\d{1,12}", text) or int(text) == 0:
                    continue
                for initiator in self._numbered(folder, "node"):
                    if initiator in self.nodes and np.isnan(values[self.nodes.index(initiator), target]):
                        values[self.nodes.index(initiator), target] = int(text)
        return values

    def _side_caches(self) -> list[int]:
        """Bytes of every memory-side cache."""
        paths = (
            f"{NODES}/node{node}/memory_side_cache/index{index}/size"
            for node in self.nodes
            for index in self._numbered(f"{NODES}/node{node}/memory_side_cache", "index")
        )
        return [int(text) for path in paths if (text := self._text(path)) and text.isdecimal() and len(text) < 19]

    def _clocks(self) -> list[tuple[int, float]]:
        """The highest clock of every processor, in Hz: cpufreq's, else what /proc/cpuinfo says of all."""
        clocks = []
        for processor in members(union(core for owned in self.owned for core in owned)):
            text = self._text(f"{CPUS}/cpu{processor}/cpufreq/cpuinfo_max_freq")
            if text and re.fullmatch(r"[1-9]\d{0,8}", text):
                clocks.append((1 << processor, int(text) * 1e3))
        every = [float(mhz) for mhz in CLOCK.findall(self.cpuinfo)]
        model = MODEL.search(self.cpuinfo)
        if not clocks and every and not (model and "GHz" in model[1]):
            return [(ALL, max(every) * 1e6)] if max(every) > 0.0 else []
        return clocks

    def _clock_source(self) -> str:
        """What the source calls the clocks."""
        cpufreq = any(self._text(f"{CPUS}/cpu{cpu}/cpufreq/cpuinfo_max_freq") for cpu in self._numbered(CPUS, "cpu"))
        return "cpuinfo_max_freq in sysfs" if cpufreq else "the highest clock in /proc/cpuinfo, as it was running"

    def _last_level_caches(self) -> tuple[list[tuple[int, int]], str]:
        """Processors and bytes of every cache of the highest level there is, and what the source calls them.

        Processors that share a cache should name the same ones. Where they do not, what most of them name counts.
        """
        named: dict[int, Counter[tuple[int, int]]] = {}
        for processor in members(union(core for owned in self.owned for core in owned)):
            folder = f"{CPUS}/cpu{processor}/cache"
            for index in self._numbered(folder, "index"):
                level, size = (self._text(f"{folder}/index{index}/{file}") for file in ("level", "size"))
                found = CACHE_SIZE.fullmatch(size or "")
                if level and level in "23" and found and self._text(f"{folder}/index{index}/type") != "Instruction":
                    shared = self._shared(f"{folder}/index{index}", processor) & self.processors
                    cache = (shared, int(found[1]) * CACHE_UNITS[found[2]])
                    named.setdefault(int(level), Counter())[cache] += 1
        highest = max(named, default=3)
        taken, caches = 0, []
        for (shared, size_bytes), _ in named.get(highest, Counter()).most_common():
            if shared & taken == 0:
                caches.append((shared, size_bytes))
                taken |= shared
        return caches, f"level {highest} caches in sysfs"

    def _shared(self, folder: str, processor: int) -> int:
        """The processors that share a cache."""
        text = self._text(f"{folder}/shared_cpu_map")
        if text is None:
            return self._list(f"{folder}/shared_cpu_list") or 1 << processor
        return from_mask(text, f"shared_cpu_map of processor {processor}")


def _where(tree: Tree) -> tuple[str, str]:
    """The paths of the system's root and of its /sys in a tree.

    Raises:
        ValueError: there are no nodes in any place they could be.
    """
    if tree.names(NODES):
        return "..", "."
    inside = tree.names(".")
    tops = [".", "fsroot", *inside[:MOST_TOPS], *(f"{top}/fsroot" for top in inside[:MOST_TOPS])]
    for top in tops:
        if tree.names(f"{top}/sys/{NODES}"):
            return top, f"{top}/sys"
    listed = quoted(", ".join(inside) or "nothing")
    raise ValueError(f"there must be a folder {NODES}, in sys or at the top, got {listed}.")

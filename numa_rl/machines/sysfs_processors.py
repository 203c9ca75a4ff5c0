"""Processors by the files of a Linux system: the cores of each node, their clocks, and the caches they share.

Dimension key: N nodes.

References:
    [1] Linux kernel documentation, ABI: sysfs-devices-system-cpu, and "How CPU topology info is exported via sysfs".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from numa_rl.machines.processors import from_list, from_mask, last_level_bytes, members, peak_flops_per_s, union
from numa_rl.machines.system_files import CPUS, NODES, SystemFiles
from numa_rl.topology import FloatArray

CACHE_SIZE = re.compile(r"(\d{1,12})([KMG]?)")
CACHE_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
CLOCK = re.compile(r"^(?:cpu MHz|clock)\s*: *(\d+\.?\d*)", re.MULTILINE)
MODEL = re.compile(r"^(?:model name|cpu)\s*: *(.*\S)", re.MULTILINE)
# Opteron's pairs of cores that share a front end, which Linux calls threads of one core.
BULLDOZER = re.compile(r"^vendor_id\s*: AuthenticAMD$(?s:.*?)^cpu family\s*: 21$", re.MULTILINE)
FIRST_OF_CPUINFO = 4096  # characters, enough for the first processor
SIBLINGS = ("core_cpus_list", "thread_siblings_list", "core_cpus", "thread_siblings")


class Processors:
    """The processors of a system that may be used.

    Attributes:
        owned: each node's cores, as sets of processors.
    """

    def __init__(self, files: SystemFiles, nodes: Sequence[int], usable: int) -> None:
        """Read which processors make which core of which node.

        Args:
            files: of the system.
            nodes: numbers of the nodes, in their order.
            usable: the processors that are online and may be used, as a set.
        """
        self._files = files
        self._usable = usable
        self._cpuinfo = files.outside("proc/cpuinfo") or ""
        self.owned = [self._cores(node) for node in nodes]
        self._counted = members(union(core for cores in self.owned for core in cores))

    def _cores(self, node: int) -> list[int]:
        """The cores of a node, as sets of the processors of each that may be used."""
        text = self._files.text(f"{NODES}/node{node}/cpumap")
        if text is None:
            near = self._files.list(f"{NODES}/node{node}/cpulist") or 0
        else:
            near = from_mask(text, f"cpumap of node {node}")
        left, cores = near & self._usable, []
        while left:
            lowest = left & -left
            core = (self._siblings(lowest.bit_length() - 1) | lowest) & left
            cores.append(core)
            left &= ~core
        return cores

    def _siblings(self, processor: int) -> int:
        """The processors of one core; of an Opteron whose cores come in pairs, the processor only."""
        for name in () if BULLDOZER.search(self._cpuinfo, 0, FIRST_OF_CPUINFO) else SIBLINGS:
            text = self._files.text(f"{CPUS}/cpu{processor}/topology/{name}")
            if text:
                what = f"{name} of processor {processor}"
                return from_list(text, what) if name.endswith("list") else from_mask(text, what)
        return 1 << processor

    def flops_per_s(self) -> tuple[FloatArray, str]:
        """Peak of one core of each node, shape (N,), and where it came from."""
        model = MODEL.search(self._cpuinfo)
        clocks, origin = [], "cpuinfo_max_freq in sysfs"
        for processor in self._counted:
            text = self._files.text(f"{CPUS}/cpu{processor}/cpufreq/cpuinfo_max_freq")
            if text and re.fullmatch(r"[1-9]\d{0,8}", text):
                clocks.append((1 << processor, int(text) * 1e3))
        running = max((float(mhz) for mhz in CLOCK.findall(self._cpuinfo)), default=0.0)
        if not clocks and running > 0.0 and not (model and "GHz" in model[1]):
            everyone = union(core for cores in self.owned for core in cores)
            clocks, origin = [(everyone, running * 1e6)], "the highest clock in /proc/cpuinfo, as it was running"
        return peak_flops_per_s(self.owned, clocks, origin, model[1] if model else None)

    def llc_bytes(self) -> tuple[FloatArray, str]:
        """Last-level cache of each node, shape (N,), and where it came from.

        Processors that share a cache should name the same ones. Where they do not, what most of them name counts.
        """
        named: dict[int, Counter[tuple[int, int]]] = {}
        for processor in self._counted:
            folder = f"{CPUS}/cpu{processor}/cache"
            for index in self._files.numbered(folder, "index"):
                level, size = (self._files.text(f"{folder}/index{index}/{file}") for file in ("level", "size"))
                found = CACHE_SIZE.fullmatch(size or "")
                if (
                    level
                    and level in "23"
                    and found
                    and self._files.text(f"{folder}/index{index}/type") != "Instruction"
                ):
                    shared = self._shared(f"{folder}/index{index}", processor) & self._usable
                    cache = (shared, int(found[1]) * CACHE_UNITS[found[2]])
                    named.setdefault(int(level), Counter())[cache] += 1
        highest = max(named, default=3)
        taken, caches = 0, []
        for (shared, size_bytes), _ in named.get(highest, Counter()).most_common():
            if shared & taken == 0:
                caches.append((shared, size_bytes))
                taken |= shared
        return last_level_bytes(self.owned, caches, f"level {highest} caches in sysfs")

    def _shared(self, folder: str, processor: int) -> int:
        """The processors that share a cache."""
        text = self._files.text(f"{folder}/shared_cpu_map")
        if text is None:
            return self._files.list(f"{folder}/shared_cpu_list") or 1 << processor
        return from_mask(text, f"shared_cpu_map of processor {processor}")

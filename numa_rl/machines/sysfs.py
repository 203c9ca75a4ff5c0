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

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numa_rl.machines.assembly import Found, assemble, joined, memory_side_caches
from numa_rl.machines.hmat import HMAT_SOURCE, SIGNATURE, found_figures, parse_hmat
from numa_rl.machines.restriction import ALL, allowed
from numa_rl.machines.slit import BoolArray
from numa_rl.machines.sysfs_processors import Processors
from numa_rl.machines.system_files import CPUS, NODES, SystemFiles
from numa_rl.machines.tree import ArchiveTree, FolderTree, Tree
from numa_rl.topology import FloatArray, Topology
from numa_rl.wording import quoted

MAX_NODES = 1024  # Linux's own limit, MAX_NUMNODES
HMAT = f"firmware/acpi/tables/{SIGNATURE.decode()}"
KIB = 2**10
NS, MB = 1e-9, 1e6  # units of an access class [2]
MEMORY = re.compile(r"MemTotal: +(\d{1,18}) kB")


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


class Usable(NamedTuple):
    """The nodes of a system, and what of them the process whose files they are may use.

    Attributes:
        present: numbers of the nodes online, ascending.
        nodes: those of them whose memory the process may use.
        processors: those of these nodes that are online and may be used.
    """

    present: list[int]
    nodes: list[int]
    processors: Processors


def usable(files: SystemFiles) -> Usable:
    """What of a system is online and may be used.

    Raises:
        ValueError: no node may be used, or there are more than Linux has.
    """
    processors, memories = allowed(files.outside)
    processors_online, nodes_online = files.list(f"{CPUS}/online"), files.list(f"{NODES}/online")
    present = [node for node in files.numbered(NODES, "node") if nodes_online is None or nodes_online >> node & 1]
    nodes = [node for node in present if memories >> node & 1]
    if not 1 <= len(nodes) <= MAX_NODES:
        raise ValueError(f"there must be 1 to {MAX_NODES} nodes online in {NODES}, got {len(nodes)} that may be used.")
    online = ALL if processors_online is None else processors_online
    return Usable(present, nodes, Processors(files, nodes, processors & online))


class _System:
    """The nodes of one system, and what its files say of them."""

    def __init__(self, tree: Tree) -> None:
        self.files = SystemFiles(tree)
        self.present, self.nodes, self.processors = usable(self.files)
        self.kept = np.ix_(*[[self.present.index(node) for node in self.nodes]] * 2)

    def found(self, name: str) -> Found:
        """What the files say of the machine."""
        cores = np.array([len(owned) for owned in self.processors.owned], dtype=np.int64)
        sources = {
            "cores": joined("file: cores online in sysfs", self._left_out()),
            "memory_bytes": joined("file: MemTotal of each node", memory_side_caches(self._side_caches())),
        }
        figures = self._performance(cores > 0, sources)
        figures["flops_per_s"], sources["flops_per_s"] = self.processors.flops_per_s()
        figures["llc_bytes"], sources["llc_bytes"] = self.processors.llc_bytes()
        return Found(
            name=name,
            cores=cores,
            memory_bytes=np.array([self._memory(node) for node in self.nodes]),
            distances=self._distances(),
            sources=sources,
            **figures,
        )

    def _left_out(self) -> str:
        """What the source of cores says of what the process may not use."""
        taken = [node for node in self.present if node not in self.nodes]
        return f"file: nodes {', '.join(map(str, taken))} left out, not allowed to the process" if taken else ""

    def _memory(self, node: int) -> float:
        """Bytes of a node's memory."""
        found = MEMORY.search(self.files.text(f"{NODES}/node{node}/meminfo") or "")
        if found is None or int(found[1]) == 0:
            raise ValueError(f"MemTotal of node {node} must be > 0 kB, got {found[1] if found else 'none'}.")
        return float(int(found[1]) * KIB)

    def _distances(self) -> FloatArray | None:
        """SLIT distances between the nodes, shape (N, N); None without any."""
        rows = [(self.files.text(f"{NODES}/node{node}/distance") or "").split() for node in self.present]
        if not any(rows):
            return None
        for node, row in zip(self.present, rows, strict=True):
            if len(row) != len(self.present) or not all(re.fullmatch(r"[1-9]\d{0,8}", text) for text in row):
                rule = f"{len(self.present)} whole numbers > 0"
                raise ValueError(f"distances of node {node} must be {rule}, got {quoted(' '.join(row))}.")
        return np.array(rows, dtype=np.float64)[self.kept]

    def _performance(self, has_cores: BoolArray, sources: dict[str, str]) -> dict[str, Any]:
        """Latency and bandwidth as the firmware states them, with their sources: of all pairs, or the best only."""
        found = {key: matrix[self.kept] for key, matrix in self._hmat().items()}
        found = {key: matrix for key, matrix in found.items() if np.isfinite(matrix[has_cores]).any()}
        sources |= dict.fromkeys(found, HMAT_SOURCE)
        for key, file, unit in (("latency_s", "read_latency", NS), ("bandwidth_bytes_per_s", "read_bandwidth", MB)):
            matrix = self._best_initiators(file) * unit
            if key not in found and np.isfinite(matrix[has_cores]).any(axis=0).all():
                found[key] = matrix
                sources[key] = f"file: {file} of the best initiators in sysfs, the firmware's own figures"
        return found

    def _hmat(self) -> dict[str, FloatArray]:
        """The figures of the HMAT, of all nodes present; none where it is not there, may not be read or does not fit.

        Linux numbers nodes as it meets their domains, mostly in ascending order; which is which is taken from that.
        """
        table = self.files.data(HMAT)
        hmat = None if table is None else parse_hmat(table)
        if hmat is None or len(hmat.targets) != len(self.present):
            return {}
        return found_figures(hmat, np.ones(len(self.present), dtype=bool))

    def _best_initiators(self, file: str) -> FloatArray:
        """A figure of the access classes, from their initiators, shape (N, N), NaN where there is none."""
        values = np.full((len(self.nodes), len(self.nodes)), np.nan)
        for target, node in enumerate(self.nodes):
            for access in ("access1", "access0"):  # class 1 knows processors only, class 0 accelerators too
                folder = f"{NODES}/node{node}/{access}/initiators"
                text = self.files.text(f"{folder}/{file}")
                if text is None or not re.fullmatch(r"\d{1,12}", text) or int(text) == 0:
                    continue
                for initiator in self.files.numbered(folder, "node"):
                    if initiator in self.nodes and np.isnan(values[self.nodes.index(initiator), target]):
                        values[self.nodes.index(initiator), target] = int(text)
        return values

    def _side_caches(self) -> list[int]:
        """Bytes of every memory-side cache."""
        paths = (
            f"{NODES}/node{node}/memory_side_cache/index{index}/size"
            for node in self.nodes
            for index in self.files.numbered(f"{NODES}/node{node}/memory_side_cache", "index")
        )
        return [int(text) for path in paths if (text := self.files.text(path)) and text.isdecimal() and len(text) < 19]

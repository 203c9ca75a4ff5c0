"""Reading a machine from hwloc XML, as `lstopo machine.xml` writes it (versions 2 and 3).

The file says which nodes there are, their cores and memory, and how far apart the firmware thinks they are.
Of bandwidth and latency it holds at best the HMAT values of its memory attributes; what is missing is derived
or assumed, and `Topology.sources` says which.

Dimension key: N nodes.

References:
    [1] hwloc documentation: Topology Attributes: Distances, Memory Attributes and CPU Kinds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
import numpy as np
from defusedxml.common import DefusedXmlException

from numa_rl.machines.assembly import Found, assemble, joined, memory_side_caches
from numa_rl.machines.processors import from_cpuset, last_level_bytes, peak_flops_per_s, union
from numa_rl.machines.tree import read_bytes
from numa_rl.topology import FloatArray, Topology

MAX_FILE_BYTES = 64 * 2**20  # the largest machines take a few MiB
MAX_NODES = 1024  # Linux's own limit, MAX_NUMNODES

KIND_MEANS_LATENCY = 4  # HWLOC_DISTANCES_KIND_MEANS_LATENCY
DRAM_SUBTYPES = (None, "", "DRAM")

LATENCY_UNIT_S = 1e-9  # memory attribute Latency is in ns [1]
BANDWIDTH_UNIT_BYTES_PER_S = 2.0**20  # memory attribute Bandwidth is in MiB/s [1]


@dataclass(frozen=True)
class Node:
    """One NUMANode object of the file.

    Attributes:
        os_index: the number the system gives it, which need not be its place among the nodes.
        gp_index: the file's own number of the object, or None.
        cpuset: processing units near its memory, one bit each. A node without cores inherits its parent's.
        memory_bytes: capacity of its memory.
        is_dram: whether it is ordinary memory, not HBM or memory plugged in behind a device.
    """

    os_index: int
    gp_index: str | None
    cpuset: int
    memory_bytes: float
    is_dram: bool


def read_hwloc(path: Path) -> Topology:
    """The machine described by an hwloc XML file, its nodes in the order of os_index.

    Raises:
        ValueError: no such file, too large, not XML, with entities of its own, not hwloc's, or not a machine.
    """
    origin = f"hwloc file {str(path)!r}"
    content = read_bytes(path, MAX_FILE_BYTES, origin)
    try:
        # A DOCTYPE that names hwloc's DTD is normal, and is never fetched; entities are refused.
        root = defusedxml.ElementTree.fromstring(content)
    except DefusedXmlException as error:
        raise ValueError(f"{origin}: must not define XML entities, got {error}.") from None
    except (ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{origin}: must be well-formed XML, got {error}.") from None
    try:
        return _topology(root, path.stem)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None


def _topology(root: Element, name: str) -> Topology:
    """The machine of a parsed file."""
    version = root.get("version", "1.0")
    if root.tag != "topology":
        raise ValueError(f"root element must be <topology>, got <{root.tag}>.")
    if version.split(".")[0] not in ("2", "3"):
        raise ValueError(f"topology version must be 2.x or 3.x, got {version!r}.")
    nodes = _nodes(root)
    kind = "Core" if any(True for _ in _objects(root, "Core")) else "PU"
    owned = _owned_cores(_objects(root, kind), nodes)
    sources = {
        "cores": f"file: {kind} objects, each counted at its nearest node",
        "memory_bytes": joined("file: local_memory", memory_side_caches(_memory_side_caches(root))),
    }
    flops_per_s, sources["flops_per_s"] = _flops_per_s(root, owned)
    llc_bytes, sources["llc_bytes"] = _llc_bytes(root, owned)
    latency_s = _memory_attribute(root, "Latency", nodes, owned, LATENCY_UNIT_S)
    bandwidth = _memory_attribute(root, "Bandwidth", nodes, owned, BANDWIDTH_UNIT_BYTES_PER_S)
    if latency_s is not None:
        sources["latency_s"] = "file: memory attribute Latency"
    if bandwidth is not None:
        sources["bandwidth_bytes_per_s"] = "file: memory attribute Bandwidth"
    return assemble(
        Found(
            name=name,
            cores=np.array([len(cpusets) for cpusets in owned], dtype=np.int64),
            flops_per_s=flops_per_s,
            memory_bytes=np.array([node.memory_bytes for node in nodes]),
            distances=_slit(root, nodes),
            latency_s=latency_s,
            bandwidth_bytes_per_s=bandwidth,
            llc_bytes=llc_bytes,
            sources=sources,
        )
    )


def _objects(root: Element, kind: str) -> Iterable[Element]:
    """Every object of a type, in the order of the file."""
    return (element for element in root.iter("object") if element.get("type") == kind)


def _nodes(root: Element) -> list[Node]:
    """The NUMA nodes, ordered by os_index."""
    nodes = [
        Node(
            os_index=_whole(element.get("os_index"), "os_index of a NUMANode"),
            gp_index=element.get("gp_index"),
            cpuset=from_cpuset(element.get("cpuset"), "cpuset of a NUMANode"),
            memory_bytes=float(_whole(element.get("local_memory", "0"), "local_memory of a NUMANode")),
            is_dram=element.get("subtype") in DRAM_SUBTYPES and not _has_info(element, "DAXDevice"),
        )
        for element in _objects(root, "NUMANode")
    ]
    if not 1 <= len(nodes) <= MAX_NODES:
        raise ValueError(f"there must be 1 to {MAX_NODES} NUMANode objects, got {len(nodes)}.")
    os_indices = sorted(node.os_index for node in nodes)
    if len(set(os_indices)) < len(nodes):
        raise ValueError(f"each NUMANode must have its own os_index, got {os_indices}.")
    return sorted(nodes, key=lambda node: node.os_index)


def _owned_cores(cores: Iterable[Element], nodes: list[Node]) -> list[list[int]]:
    """The cpusets of each node's cores; every core counts for one node only.

    A core belongs to the node with the fewest processing units that are near it too. Of nodes near the very
    same ones (memory without cores, inheriting its parent's), ordinary memory comes first, then the lowest
    os_index: HBM and CXL memory are numbered after the rest.
    """
    owned: list[list[int]] = [[] for _ in nodes]
    order = sorted(
        range(len(nodes)),
        key=lambda i: (nodes[i].cpuset.bit_count(), not nodes[i].is_dram, nodes[i].os_index),
    )
    for element in cores:
        cpuset = from_cpuset(element.get("cpuset", "0x0"), "cpuset of a core")
        near = (i for i in order if cpuset & ~nodes[i].cpuset == 0)
        if cpuset and (nearest := next(near, None)) is not None:  # offline cores have an empty cpuset
            owned[nearest].append(cpuset)
    return owned


def _slit(root: Element, nodes: list[Node]) -> FloatArray | None:
    """The firmware's distances in the order of `nodes`, shape (N, N); None when the file has none."""
    element = next(filter(_is_slit, root.iter("distances2")), None)
    if element is None:
        return None
    indexes = [
        _whole(text, "an index of the distances")
        for part in element.iter("indexes")
        for text in (part.text or "").split()
    ]
    values = [text for part in element.iter("u64values") for text in (part.text or "").split()]
    if len(values) != len(indexes) ** 2:
        raise ValueError(
            f"distances of {len(indexes)} nodes must be a square of {len(indexes) ** 2} values, got {len(values)}."
        )
    matrix = np.array([_whole(text, "a distance") for text in values], dtype=np.float64)
    if not matrix.all():
        raise ValueError("a distance must be positive, got 0.")
    by_os_index = element.get("indexing", "os") == "os"
    wanted = [node.os_index if by_os_index else _whole(node.gp_index, "gp_index of a NUMANode") for node in nodes]
    if sorted(indexes) != sorted(wanted):
        raise ValueError(f"distances must be among the file's NUMANodes {sorted(wanted)}, got {sorted(indexes)}.")
    order = [indexes.index(index) for index in wanted]
    return matrix.reshape(len(nodes), len(nodes))[np.ix_(order, order)]


def _is_slit(element: Element) -> bool:
    """Whether a matrix is the latency between NUMA nodes; the earliest files of version 2 do not name it."""
    name, kind = element.get("name"), _whole(element.get("kind", "0"), "kind of distances")
    is_latency = name == "NUMALatency" or (name is None and bool(kind & KIND_MEANS_LATENCY))
    return is_latency and element.get("type") == "NUMANode"


def _memory_attribute(
    root: Element, name: str, nodes: list[Node], owned: list[list[int]], unit: float
) -> FloatArray | None:
    """A memory attribute from every node with cores to every node, shape (N, N), NaN where the file has none.

    An initiator is any object or cpuset; a node takes the value of the tightest one around all its cores. None
    unless some node with cores is known to see every memory: a figure of one memory says nothing of another.
    """
    cpuset_of = {element.get("gp_index", ""): element.get("cpuset") for element in root.iter("object")}
    target_of = {node.gp_index: index for index, node in enumerate(nodes) if node.gp_index is not None}
    cpusets = [union(cores) for cores in owned]
    values = np.full((len(nodes), len(nodes)), np.nan)
    width = np.full(values.shape, np.inf)
    for attribute in root.iter("memattr"):
        for element in attribute.iter("memattr_value") if attribute.get("name") == name else ():
            target = target_of.get(element.get("target_obj_gp_index", ""))
            text = element.get("initiator_cpuset") or cpuset_of.get(element.get("initiator_obj_gp_index", ""))
            value = _whole(element.get("value"), f"value of memory attribute {name}")
            if target is None or text is None or value == 0:
                continue
            initiator = from_cpuset(text, f"initiator of memory attribute {name}")
            for node, cpuset in enumerate(cpusets):
                if cpuset and cpuset & ~initiator == 0 and initiator.bit_count() < width[node, target]:
                    values[node, target], width[node, target] = value * unit, initiator.bit_count()
    return values if np.isfinite(values).any(axis=0).all() else None


def _flops_per_s(root: Element, owned: list[list[int]]) -> tuple[FloatArray, str]:
    """Peak of one core of each node, shape (N,), and where it came from."""
    clocks = [
        (from_cpuset(kind.get("cpuset"), "cpuset of a cpukind"), 1e6 * _whole(text, "FrequencyMaxMHz"))
        for kind in root.iter("cpukind")
        if (text := _info(kind, "FrequencyMaxMHz")) is not None
    ]
    model = next((value for element in root.iter("object") if (value := _info(element, "CPUModel"))), None)
    return peak_flops_per_s(owned, clocks, "FrequencyMaxMHz in the file", model)


def _llc_bytes(root: Element, owned: list[list[int]]) -> tuple[FloatArray, str]:
    """Last-level cache of each node, shape (N,), and where it came from."""
    kind = next((kind for kind in ("L3Cache", "L2Cache") if any(True for _ in _objects(root, kind))), None)
    caches = [
        (
            from_cpuset(element.get("cpuset"), f"cpuset of an {kind}"),
            _whole(element.get("cache_size"), "cache_size"),
        )
        for element in (_objects(root, kind) if kind else ())
    ]
    return last_level_bytes(owned, caches, f"{kind} objects")


def _memory_side_caches(root: Element) -> list[int]:
    """Bytes of every memory-side cache in the file."""
    return [_whole(element.get("cache_size"), "cache_size") for element in _objects(root, "MemCache")]


def _info(element: Element, name: str) -> str | None:
    """The value of an object's <info> of that name."""
    return next((info.get("value") for info in element.findall("info") if info.get("name") == name), None)


def _has_info(element: Element, name: str) -> bool:
    """Whether an object has an <info> of that name."""
    return _info(element, name) is not None


def _whole(text: str | None, what: str) -> int:
    """A whole number that is not negative."""
    if text is None or not re.fullmatch(r"[0-9]{1,20}", text):
        raise ValueError(f"{what} must be a whole number >= 0, got {text!r}.")
    return int(text)

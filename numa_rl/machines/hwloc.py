"""Reading a machine from hwloc XML, as `lstopo machine.xml` writes it (versions 2 and 3).

The file says which nodes there are, their cores and memory, and how far apart the firmware thinks they are.
Of bandwidth and latency it holds at best the HMAT values of its memory attributes; what is missing is derived
or assumed, and `Topology.sources` says which.

Dimension key: N nodes.

References:
    [1] hwloc documentation: Topology Attributes: Distances, Memory Attributes and CPU Kinds.
    [2] hwloc, `hwloc_bitmap_snprintf`: the text of a cpuset.
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

from numa_rl.machines.builders import DEFAULT_SOURCES, ChapterFigures
from numa_rl.machines.slit import latency_from_distances, links_from_distances, uniform_distances
from numa_rl.topology import DEFAULT_LLC_BYTES, FloatArray, IntArray, Topology, hop_counts

MAX_FILE_BYTES = 64 * 2**20  # the largest machines take a few MiB
MAX_NODES = 1024  # Linux's own limit, MAX_NUMNODES

ASSUMED_FLOPS_PER_CYCLE = 16  # one 256-bit fused multiply-add in single precision
ASSUMED_FREQUENCY_HZ = 2.5e9

KIND_MEANS_LATENCY = 4  # HWLOC_DISTANCES_KIND_MEANS_LATENCY
DRAM_SUBTYPES = (None, "", "DRAM")
CPUSET = re.compile(r"0x[0-9a-f]{1,8}(,(0x[0-9a-f]{1,8})?)*", re.IGNORECASE)

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
    if not path.is_file():
        raise ValueError(f"{origin}: must be an existing file, got none.")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{origin}: must be at most {MAX_FILE_BYTES} bytes, got {size}.")
    try:
        # A DOCTYPE that names hwloc's DTD is normal, and is never fetched; entities are refused.
        root = defusedxml.ElementTree.fromstring(path.read_bytes())
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
    cores = np.array([len(cpusets) for cpusets in owned], dtype=np.int64)
    sources = {
        "cores": f"file: {kind} objects, each counted at its nearest node",
        "memory_bytes": "file: local_memory",
        **DEFAULT_SOURCES,
    }

    flops_per_s, sources["flops_per_s"] = _flops_per_s(root, owned)
    llc_bytes, sources["llc_bytes"] = _llc_bytes(root, owned)
    slit = _slit(root, nodes)
    attribute = _memory_attribute(root, "Latency", nodes, owned, LATENCY_UNIT_S)
    distances = next((known for known in (slit, attribute) if known is not None), uniform_distances(len(nodes)))
    latency_s = latency_from_distances(distances) if attribute is None else attribute
    links = links_from_distances(distances)
    hops = hop_counts(links, len(nodes))
    sources["latency_s"], sources["links"] = _distance_sources(
        has_slit=slit is not None, has_latency=attribute is not None
    )

    assumed = ChapterFigures()
    bandwidth = _memory_attribute(root, "Bandwidth", nodes, owned, BANDWIDTH_UNIT_BYTES_PER_S)
    if bandwidth is None:
        memory_bandwidth = np.full(len(nodes), assumed.memory_bandwidth_bytes_per_s)
        bandwidth = assumed.bandwidth_bytes_per_s(hops)
        link_bandwidth = np.full(len(links), assumed.link_bandwidth_bytes_per_s)
        note = "assumed: the chapter's exercise 3, 100 GB/s peak, 90 local, 30 remote and per link; the file gives none"
        bandwidth_sources = [note, note, note]
    else:
        memory_bandwidth = bandwidth.max(axis=0)
        link_bandwidth = bandwidth[links[:, 0], links[:, 1]]
        bandwidth_sources = [
            "derived: what the best-placed node draws, in the file's memory attribute Bandwidth",
            "file: memory attribute Bandwidth; a node without cores mirrors what others draw from it",
            "derived: what the nodes at its ends draw from each other",
        ]
    keys = ("memory_bandwidth_bytes_per_s", "bandwidth_bytes_per_s", "link_bandwidth_bytes_per_s")
    sources.update(zip(keys, bandwidth_sources, strict=True))
    return Topology(
        name=name,
        cores=cores,
        flops_per_s=flops_per_s,
        memory_bytes=np.array([node.memory_bytes for node in nodes]),
        memory_bandwidth_bytes_per_s=memory_bandwidth,
        latency_s=latency_s,
        bandwidth_bytes_per_s=bandwidth,
        links=links,
        link_bandwidth_bytes_per_s=link_bandwidth,
        llc_bytes=llc_bytes,
        sources=sources,
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
            cpuset=_cpuset(element.get("cpuset"), "cpuset of a NUMANode"),
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
        cpuset = _cpuset(element.get("cpuset", "0x0"), "cpuset of a core")
        near = (i for i in order if cpuset & ~nodes[i].cpuset == 0)
        if cpuset and (nearest := next(near, None)) is not None:  # offline cores have an empty cpuset
            owned[nearest].append(cpuset)
    return owned


def _distance_sources(*, has_slit: bool, has_latency: bool) -> tuple[str, str]:
    """Where latency and links came from, given what the file holds."""
    if has_latency:
        latency = "file: memory attribute Latency; a node without cores mirrors what others see of it"
    elif has_slit:
        latency = (
            "derived: from SLIT distances in the file, firmware ratios that are often wrong; assumed: 100 ns local"
        )
    else:
        latency = "assumed: 100 ns local, and twice that to any other node; the file gives no distances"
    if has_slit or has_latency:
        measure = "SLIT distances" if has_slit else "memory attribute Latency"
        return latency, f"derived: from {measure}, a pair being linked unless a path over other nodes is no longer"
    return latency, "assumed: every node linked to every other; the file gives no distances"


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
    """A memory attribute from every node with cores to every node, shape (N, N); None unless complete.

    An initiator is any object or cpuset; a node takes the value of the tightest one around all its cores. The
    rows of nodes without cores, which start no access, mirror what the others see of them.
    """
    cpuset_of = {element.get("gp_index", ""): element.get("cpuset") for element in root.iter("object")}
    target_of = {node.gp_index: index for index, node in enumerate(nodes) if node.gp_index is not None}
    cpusets = [_union(cores) for cores in owned]
    values = np.full((len(nodes), len(nodes)), np.nan)
    width = np.full(values.shape, np.inf)
    for attribute in root.iter("memattr"):
        for element in attribute.iter("memattr_value") if attribute.get("name") == name else ():
            target = target_of.get(element.get("target_obj_gp_index", ""))
            text = element.get("initiator_cpuset") or cpuset_of.get(element.get("initiator_obj_gp_index", ""))
            value = _whole(element.get("value"), f"value of memory attribute {name}")
            if target is None or text is None or value == 0:
                continue
            initiator = _cpuset(text, f"initiator of memory attribute {name}")
            for node, cpuset in enumerate(cpusets):
                if cpuset and cpuset & ~initiator == 0 and initiator.bit_count() < width[node, target]:
                    values[node, target], width[node, target] = value * unit, initiator.bit_count()
    has_cores = np.array([bool(cpuset) for cpuset in cpusets])
    if np.isnan(values[has_cores]).any() or not has_cores.any():
        return None
    return _mirrored(values, has_cores, higher_is_better=name == "Bandwidth")


def _mirrored(values: FloatArray, has_cores: IntArray, *, higher_is_better: bool) -> FloatArray:
    """The matrix with the rows of nodes without cores filled in from their columns, shape (N, N).

    Between two nodes without cores stands the worse of what each gives to the node that is best placed for it.
    """
    best = values[has_cores].max(axis=0) if higher_is_better else values[has_cores].min(axis=0)
    worse = np.minimum.outer(best, best) if higher_is_better else np.maximum.outer(best, best)
    filled = np.where(has_cores[:, None], values, np.where(has_cores[None, :], values.T, worse))
    return np.asarray(filled, dtype=np.float64)


def _flops_per_s(root: Element, owned: list[list[int]]) -> tuple[FloatArray, str]:
    """Peak of one core of each node, shape (N,), and where it came from.

    A node without cores never uses its figure; it gets the fastest node's.
    """
    kinds = [
        (_cpuset(kind.get("cpuset"), "cpuset of a cpukind"), _info(kind, "FrequencyMaxMHz"))
        for kind in root.iter("cpukind")
    ]
    model = next((value for element in root.iter("object") if (value := _info(element, "CPUModel"))), None)
    named = re.search(r"([\d.]+) ?GHz", model or "")
    per_cycle = f"{ASSUMED_FLOPS_PER_CYCLE} single-precision flop per cycle"
    known = [(cpuset, 1e6 * _whole(text, "FrequencyMaxMHz")) for cpuset, text in kinds if text is not None]
    covered = _union(cpuset for cpuset, _ in known)
    if known and all(core & ~covered == 0 for cores in owned for core in cores):
        hertz = [[max(rate for cpuset, rate in known if cpuset & core) for core in cores] for cores in owned]
        source = f"derived: FrequencyMaxMHz in the file; assumed: {per_cycle}"
    else:
        rate = float(named[1]) * 1e9 if named else ASSUMED_FREQUENCY_HZ
        hertz = [[rate] * len(cores) for cores in owned]
        origin = f"derived: {named[0]} in the CPU model's name" if named else f"assumed: {rate / 1e9} GHz"
        source = f"{origin}; assumed: {per_cycle}"
    node_hertz = np.array([np.mean(rates) if rates else 0.0 for rates in hertz])
    node_hertz[node_hertz == 0.0] = node_hertz.max()
    return node_hertz * ASSUMED_FLOPS_PER_CYCLE, f"{source}{f'; {model.strip()}' if model else ''}"


def _llc_bytes(root: Element, owned: list[list[int]]) -> tuple[FloatArray, str]:
    """Last-level cache of each node, shape (N,), and where it came from; a cache shared by nodes counts by its cores.

    A node whose cores have no such cache in the file gets the assumed size.
    """
    kind = next((kind for kind in ("L3Cache", "L2Cache") if any(True for _ in _objects(root, kind))), None)
    caches = [
        (_cpuset(element.get("cpuset"), f"cpuset of an {kind}"), _whole(element.get("cache_size"), "cache_size"))
        for element in (_objects(root, kind) if kind else ())
    ]
    node_bytes = [
        sum(size * (cpuset & _union(cores)).bit_count() / cpuset.bit_count() for cpuset, size in caches if cpuset)
        for cores in owned
    ]
    with_cores = [found for found, cores in zip(node_bytes, owned, strict=True) if cores]
    if all(found > 0 for found in with_cores):
        source = f"file: {kind} objects"
    else:
        source = f"assumed: {DEFAULT_LLC_BYTES} bytes where the file names no cache of a node's cores"
    return np.array([found or DEFAULT_LLC_BYTES for found in node_bytes], dtype=np.float64), source


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


def _cpuset(text: str | None, what: str) -> int:
    """The bits of a cpuset: words of 32 bits in hexadecimal, the highest first, zero left out [2].

    >>> hex(_cpuset("0x1,,0x00000003", "cpuset"))
    '0x10000000000000003'
    """
    if text is None or not CPUSET.fullmatch(text):
        raise ValueError(f"{what} must be 32-bit hexadecimal words, got {text!r}.")
    return int("".join(word[2:].zfill(8) for word in text.split(",")), 16)


def _union(cpusets: Iterable[int]) -> int:
    """The bits that are in any of the cpusets."""
    union = 0
    for cpuset in cpusets:
        union |= cpuset
    return union

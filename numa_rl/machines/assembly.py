"""From what a reader found to a machine: what is missing is derived or assumed here, for every reader alike.

Dimension key: N nodes, L directed links.

References:
    [1] ACPI Specification, section 5.2.17: System Locality Distance Information Table (SLIT).
    [2] The chapter, exercise 3: bandwidth of a memory controller, drawn locally and remotely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from numa_rl.machines.builders import DEFAULT_SOURCES, ChapterFigures
from numa_rl.machines.completion import FROM_DISTANCES, FROM_LATENCY, completed, spread
from numa_rl.machines.slit import (
    SLIT_ERROR,
    BoolArray,
    latency_from_distances,
    links_from_distances,
    uniform_distances,
    without_detours,
)
from numa_rl.topology import DEFAULT_LLC_BYTES, FloatArray, IntArray, LoadedLatency, Topology, hop_counts
from numa_rl.wording import counted

ASSUMED_FLOPS_PER_CYCLE = 16  # one 256-bit fused multiply-add in single precision
ASSUMED_FREQUENCY_HZ = 2.5e9
PER_CYCLE_SOURCE = f"assumed: {ASSUMED_FLOPS_PER_CYCLE} single-precision flop per cycle"
ASSUMED_MEMORY_BYTES = float(64 * 2**30)
# Links follow measured latencies only so far as they tell a detour from a link: a tenth is within their noise.
MEASURED_TOLERANCE = 0.1

ASSUMED_FIGURES = {
    "flops_per_s": f"assumed: {ASSUMED_FREQUENCY_HZ / 1e9} GHz; {PER_CYCLE_SOURCE}",
    "memory_bytes": "assumed: 64 GiB per node",
}
NO_LATENCY = "assumed: 100 ns local, and twice that to any other node; no distances are given"
SLIT_LATENCY = (
    f"derived: from SLIT distances, firmware ratios that are often wrong, {SLIT_ERROR}; assumed: 100 ns local"
)
CHAPTER_BANDWIDTH = (
    "assumed: the chapter's exercise 3, 100 GB/s peak, 90 local, 30 remote and per link; no bandwidth is given"
)
DRAWN = "derived: what the best-placed node draws"
LINK_DRAWN = "derived: the most that any pair routed over the link draws"
BANDWIDTH_FIGURES = ("memory_bandwidth_bytes_per_s", "bandwidth_bytes_per_s", "link_bandwidth_bytes_per_s")


@dataclass(frozen=True, eq=False)
class Found:
    """What a reader found of a machine; None, or NaN inside an array, stands for what it did not find.

    Attributes:
        name: how the machine is called in tables.
        cores: cores of each node, shape (N,).
        flops_per_s: peak of one core of each node, shape (N,).
        memory_bytes: capacity of each node's memory, shape (N,).
        distances: SLIT distances, shape (N, N).
        latency_s: idle load latency, shape (N, N).
        bandwidth_bytes_per_s: what one node draws from another's memory, shape (N, N).
        memory_bandwidth_bytes_per_s: what each node's memory controllers deliver, shape (N,).
        llc_bytes: last-level cache of each node, shape (N,).
        loaded_latency: the latency factor under load.
        outstanding_bytes: bytes one core keeps in flight.
        sources: where each figure found came from, by the attribute's name.
    """

    name: str
    cores: IntArray
    flops_per_s: FloatArray | None = None
    memory_bytes: FloatArray | None = None
    distances: FloatArray | None = None
    latency_s: FloatArray | None = None
    bandwidth_bytes_per_s: FloatArray | None = None
    memory_bandwidth_bytes_per_s: FloatArray | None = None
    llc_bytes: FloatArray | None = None
    loaded_latency: LoadedLatency | None = None
    outstanding_bytes: float | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_cores(self) -> BoolArray:
        """Nodes that start accesses, shape (N,)."""
        return np.asarray(self.cores) > 0


def assemble(found: Found) -> Topology:
    """The machine of what was found, with the rest derived or assumed and `sources` saying so for every figure.

    Raises:
        ValueError: a figure found is outside its range, or no node has cores.
    """
    if not found.has_cores.any():
        raise ValueError("at least one node must have cores, got zero cores everywhere.")
    n = len(found.cores)
    sources = {**DEFAULT_SOURCES, **ASSUMED_FIGURES, **found.sources}
    latency_s, sources["latency_s"] = _latency(found)
    links, sources["links"] = _links(found, latency_s)
    bandwidth, memory_bandwidth, sources = _bandwidth(found, links, latency_s, sources)
    optional = {
        name: value for name in ("loaded_latency", "outstanding_bytes") if (value := getattr(found, name)) is not None
    }
    memory_bytes, sources["memory_bytes"] = _memory(found, sources["memory_bytes"])
    assumed_flops = np.full(n, ASSUMED_FREQUENCY_HZ * ASSUMED_FLOPS_PER_CYCLE)
    topology = Topology(
        name=found.name,
        cores=found.cores,
        flops_per_s=assumed_flops if found.flops_per_s is None else found.flops_per_s,
        memory_bytes=memory_bytes,
        memory_bandwidth_bytes_per_s=memory_bandwidth,
        latency_s=latency_s,
        bandwidth_bytes_per_s=bandwidth,
        links=links,
        link_bandwidth_bytes_per_s=np.full(len(links), ChapterFigures().link_bandwidth_bytes_per_s),
        llc_bytes=np.full(n, float(DEFAULT_LLC_BYTES)) if found.llc_bytes is None else found.llc_bytes,
        sources=sources,
        **optional,
    )
    return topology if found.bandwidth_bytes_per_s is None else with_drawn_links(topology)


def measured_on(base: Topology, figures: Mapping[str, Any], sources: Mapping[str, str]) -> Topology:
    """A machine with some figures measured, and all others those of a base machine.

    Pairs that were not measured go by latency, the base machine's where none was, scaled to those that were.

    Args:
        base: the machine that supplies the rest, its links too.
        figures: latency, bandwidth and loaded latency as in `Found`, each only where measured.
        sources: where each of them came from.

    Raises:
        ValueError: the figures are of another number of nodes, or outside their range.
    """
    told = {key: joined(text, f"given: by machine {base.name!r}") for key, text in base.sources.items()} | dict(sources)
    changed: dict[str, Any] = {key: figures[key] for key in ("loaded_latency",) if key in figures}
    for key in ("latency_s", "bandwidth_bytes_per_s"):
        if key not in figures:
            continue
        if len(figures[key]) != base.num_nodes:
            rule = f"the {base.num_nodes} nodes of machine {base.name!r}"
            raise ValueError(f"measurements must be of {rule}, got of {len(figures[key])}.")
        cost = 1.0 / figures[key] if key == "bandwidth_bytes_per_s" else figures[key]
        guide = changed.get("latency_s", base.latency_s)
        filled, notes = completed(cost, base.cores > 0, guide, FROM_LATENCY)
        changed[key] = 1.0 / filled if key == "bandwidth_bytes_per_s" else filled
        told[key] = joined(sources[key], *notes)
    if "bandwidth_bytes_per_s" not in changed:
        return replace(base, sources=told, **changed)
    changed["memory_bandwidth_bytes_per_s"] = changed["bandwidth_bytes_per_s"][base.cores > 0].max(axis=0)
    told |= {"memory_bandwidth_bytes_per_s": DRAWN, "link_bandwidth_bytes_per_s": LINK_DRAWN}
    return with_drawn_links(replace(base, sources=told, **changed))


def with_drawn_links(topology: Topology) -> Topology:
    """The machine whose every link carries the most that any pair routed over it draws, by reading.

    A pair's read bandwidth crosses every link of its route, from the memory toward the node that asks, so no link
    can carry less.
    """
    reads, _ = topology.route_links
    pairs = topology.bandwidth_bytes_per_s.ravel()
    return replace(topology, link_bandwidth_bytes_per_s=(reads * pairs[:, None]).max(axis=0, initial=0.0))


def joined(*parts: str) -> str:
    """The parts of a source in one text."""
    return "; ".join(part for part in parts if part)


def memory_side_caches(sizes: Sequence[float]) -> str:
    """What a source says of memory-side caches, of which the model has none; nothing where there are none."""
    if not sizes:
        return ""
    each = " to ".join(f"{size / 2**20:.0f}" for size in sorted({min(sizes), max(sizes)}))
    return f"file: {counted(len(sizes), 'memory-side cache')} of {each} MiB in front of it, which the model leaves out"


def _latency(found: Found) -> tuple[FloatArray, str]:
    """Idle latency of every pair, and where it came from."""
    if found.latency_s is not None:
        latency_s, notes = completed(found.latency_s, found.has_cores, found.distances)
        return latency_s, joined(found.sources["latency_s"], *notes)
    if found.distances is not None:
        return latency_from_distances(found.distances), found.sources.get("latency_s", SLIT_LATENCY)
    return latency_from_distances(uniform_distances(len(found.cores))), NO_LATENCY


def _links(found: Found, latency_s: FloatArray) -> tuple[IntArray, str]:
    """The links, and where they came from: SLIT where there is one, its whole numbers hold no noise."""
    rule = "a pair being linked unless a path over other nodes is no longer"
    if found.distances is not None:
        return links_from_distances(found.distances), f"derived: from SLIT distances, {rule}"
    if found.latency_s is not None:
        links = without_detours(links_from_distances(latency_s), latency_s, MEASURED_TOLERANCE)
        return links, f"derived: from idle latency, {rule} by more than {MEASURED_TOLERANCE:.0%}"
    links = links_from_distances(uniform_distances(len(found.cores)))
    return links, "assumed: every node linked to every other; no distances are given"


def _bandwidth(
    found: Found, links: IntArray, latency_s: FloatArray, sources: dict[str, str]
) -> tuple[FloatArray, FloatArray, dict[str, str]]:
    """Bandwidth of every pair and of every node's memory, and the sources with theirs in."""
    assumed = ChapterFigures()
    if found.bandwidth_bytes_per_s is None:
        bandwidth = assumed.bandwidth_bytes_per_s(hop_counts(links, len(found.cores)))
        peak = np.full(len(found.cores), assumed.memory_bandwidth_bytes_per_s)
        sources = {**dict.fromkeys(BANDWIDTH_FIGURES, CHAPTER_BANDWIDTH), **sources}
    else:
        guide = found.distances if found.distances is not None else latency_s if found.latency_s is not None else None
        by = FROM_DISTANCES if found.distances is not None else FROM_LATENCY
        measured_first = latency_s if found.latency_s is not None else guide
        known, spread_notes = spread(found.bandwidth_bytes_per_s, found.has_cores, measured_first)
        s_per_byte, notes = completed(1.0 / known, found.has_cores, guide, by)
        bandwidth = 1.0 / s_per_byte
        peak = bandwidth[found.has_cores].max(axis=0)
        pairs = joined(found.sources["bandwidth_bytes_per_s"], *spread_notes, *notes)
        sources = {
            "memory_bandwidth_bytes_per_s": DRAWN,
            "link_bandwidth_bytes_per_s": LINK_DRAWN,
            **sources,
            "bandwidth_bytes_per_s": pairs,
        }
    if found.memory_bandwidth_bytes_per_s is not None:
        peak = found.memory_bandwidth_bytes_per_s
    return bandwidth, peak, sources


def _memory(found: Found, source: str) -> tuple[FloatArray, str]:
    """Capacity of every node's memory; a node of which none is known has as much as the others have on average."""
    if found.memory_bytes is None:
        return np.full(len(found.cores), ASSUMED_MEMORY_BYTES), source
    unknown = np.isnan(found.memory_bytes)
    if not unknown.any():
        return found.memory_bytes, source
    mean = found.memory_bytes[~unknown].mean()
    nodes = ", ".join(map(str, np.flatnonzero(unknown)))
    return np.where(unknown, mean, found.memory_bytes), joined(
        source, f"assumed: nodes {nodes} as the others, on average"
    )

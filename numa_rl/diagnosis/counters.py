"""From perf's counts to evidence: rates, shares and utilisations, each with how it was made.

References:
    [1] The chapter, section 16.4.1: U_link, S_MC, F_migrate; section 16.4.2: the counters.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from numa_rl.diagnosis.events import (
    FILLS,
    LOADS,
    NODE,
    OFFCORE,
    Meaning,
    Quantity,
    canonical,
    has_modifiers,
    known_events,
    meaning_of,
)
from numa_rl.diagnosis.evidence import Evidence
from numa_rl.diagnosis.perf_stat import UNIT_SCALES, Count, PerfStat
from numa_rl.topology import DEFAULT_PAGE_MOVE_S, Topology

RARELY_RUNNING = 0.2  # below this share of the time, perf's scaling of a multiplexed count is a guess
ANSWERS = (
    Quantity.LOCAL_DRAM,
    Quantity.REMOTE_DRAM,
    Quantity.REMOTE_ONE_HOP,
    Quantity.REMOTE_FAR,
    Quantity.REMOTE_CLEAN,
    Quantity.REMOTE_MODIFIED,
)
ByGroup = Mapping[str, float]


@dataclass
class Findings:
    """Evidence in the making: figures, how each was made, and what to know of them."""

    figures: dict[str, float | int | str | None] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, figure: str, value: float, how: str) -> None:
        """Note a figure, unless a better source gave it already."""
        if figure not in self.figures:
            self.figures[figure] = value
            self.provenance[figure] = how

    def evidence(self, topology: Topology | None) -> Evidence:
        """All that was found, and what the machine says of itself."""
        if topology is not None:
            self.figures["num_nodes"] = topology.num_nodes
            if topology.hops.max() <= 1:
                self.add("far_share", 0.0, "no node of the machine is two hops from another")
        machine = None if topology is None else topology.name
        return Evidence(
            **self.figures,  # type: ignore[arg-type]
            machine=machine,
            provenance=self.provenance,
            notes=tuple(self.notes),
        )


class Totals:
    """Counts by what they mean, in SI units.

    Several events may count the same thing: the largest stands. Different parts of a quantity add up: reads and
    writes, scalars and vectors.
    """

    def __init__(self, perf: PerfStat, *, ignore_unknown: bool) -> None:
        """Sort the counts; raises ValueError for an event that is unknown, unless these are ignored."""
        self.ignored = [
            event for event in (*(count.event for count in perf.counts), *perf.not_counted) if meaning_of(event) is None
        ]
        if self.ignored and not ignore_unknown:
            raise ValueError(f"counter must be one of {', '.join(known_events())}, got {self.ignored[0]!r}.")
        whole = {canonical(count.event) for count in perf.counts if not has_modifiers(count.event)}
        by_event: dict[tuple[Meaning, str], dict[str, float]] = defaultdict(dict)
        for count in perf.counts:
            meaning, name = meaning_of(count.event), canonical(count.event)
            if meaning is None or (has_modifiers(count.event) and name in whole):
                continue
            _add(by_event[meaning, name], {count.group: _in_si(count, meaning)})
        by_part: dict[tuple[Quantity, str, str], dict[str, float]] = {}
        for (meaning, _), groups in by_event.items():
            part = (meaning.quantity, meaning.family, meaning.part)
            by_part[part] = max(by_part.get(part, {}), groups, key=lambda counts: math.fsum(counts.values()))
        self._groups: dict[tuple[Quantity, str], dict[str, float]] = defaultdict(dict)
        for (quantity, family, _), groups in by_part.items():
            _add(self._groups[quantity, family], groups)

    def groups(self, quantity: Quantity, family: str = "") -> ByGroup:
        """Each group's count; empty where it was not counted."""
        return self._groups.get((quantity, family), {})

    def total(self, quantity: Quantity, family: str = "") -> float | None:
        """The sum over groups; None where it was not counted."""
        groups = self.groups(quantity, family)
        return math.fsum(groups.values()) if groups else None

    def families(self) -> list[str]:
        """Families that were counted."""
        return list(dict.fromkeys(family for _, family in self._groups if family))


def _add(groups: dict[str, float], more: ByGroup) -> None:
    """Add counts group by group."""
    for group, value in more.items():
        groups[group] = groups.get(group, 0.0) + value


def _in_si(count: Count, meaning: Meaning) -> float:
    """A count in bytes, seconds, flop or just as it is."""
    if not count.unit:
        return count.value * meaning.per_count
    return count.value * UNIT_SCALES[count.unit] * meaning.per_unit


def perf_evidence(
    perf: PerfStat,
    topology: Topology | None = None,
    seconds: float | None = None,
    *,
    ignore_unknown: bool = False,
) -> Evidence:
    """What a run's counters say [1].

    Args:
        perf: the counts.
        topology: the machine they were taken on: capacities of controllers and links; None where unknown.
        seconds: how long the counters ran; None to take it from the counts.
        ignore_unknown: whether to pass over counters that are unknown.

    Raises:
        ValueError: a counter is unknown, or seconds is not finite and > 0.
    """
    if seconds is not None and not 0.0 < seconds < math.inf:
        raise ValueError(f"seconds must be finite and > 0, got {seconds}.")
    totals = Totals(perf, ignore_unknown=ignore_unknown)
    found = Findings()
    elapsed_s = seconds or _elapsed_s(perf, totals)
    _note_quality(perf, totals, found)
    _stalls(totals, found)
    _remote(totals, found)
    _intensity(totals, found)
    _cpu_migrations(totals, found)
    if elapsed_s is None:
        found.notes.append("No rates: how long the counters ran is unknown; count duration_time, or give the seconds.")
    else:
        _page_migrations(totals, elapsed_s, topology, found)
        if topology is None:
            found.notes.append("No utilisation: capacities are unknown; name the machine.")
        else:
            _controllers(totals, elapsed_s, topology, found)
            _links(totals, elapsed_s, topology, found)
    _controller_imbalance(totals, found)
    return found.evidence(topology)


def _elapsed_s(perf: PerfStat, totals: Totals) -> float | None:
    """How long the counters ran: the last time stamp, else duration_time, which every group repeats."""
    if perf.elapsed_s is not None:
        return perf.elapsed_s or None
    return max(totals.groups(Quantity.ELAPSED_SECONDS).values(), default=0.0) or None


def _note_quality(perf: PerfStat, totals: Totals, found: Findings) -> None:
    """Say which counts to distrust."""
    if totals.ignored:
        found.notes.append(f"Ignored, since unknown: {', '.join(dict.fromkeys(totals.ignored))}.")
    if perf.not_counted:
        found.notes.append(f"The machine did not count: {', '.join(perf.not_counted)}.")
    for count in perf.counts:
        if count.running_share < RARELY_RUNNING:
            where = f" on {count.group}" if count.group else ""
            found.notes.append(
                f"{count.event}{where} ran {count.running_share:.0%} of the time, and perf scaled it up: count fewer "
                "events at a time."
            )


def _stalls(totals: Totals, found: Findings) -> None:
    """Shares of the cycles in which cores wait."""
    cycles = totals.total(Quantity.CYCLES)
    if not cycles:
        return
    for figure, quantity, event in (
        ("memory_stall_share", Quantity.MEMORY_STALL_CYCLES, "stalls_mem_any"),
        ("dram_stall_share", Quantity.DRAM_STALL_CYCLES, "stalls_l3_miss"),
    ):
        stalled = totals.total(quantity)
        if stalled is not None:
            found.add(figure, min(stalled / cycles, 1.0), f"{event} / cycles")


def _remote(totals: Totals, found: Findings) -> None:
    """Shares of accesses that other nodes answer, from the family that says it best."""
    families = totals.families()
    offcore = [family for family in families if family.startswith(OFFCORE)]
    # An all_* request contains the others: beside it they would count twice.
    whole = [family for family in offcore if ".all_" in family or family.endswith(".reads_to_core")]
    whole.sort(key=lambda family: -_answered(totals, [family]))
    sources = [
        *([family] for family in (*LOADS, FILLS[0], *whole) if family in families),
        [family for family in offcore if family not in whole],
        *([family] for family in (FILLS[1], NODE) if family in families),
    ]
    for source in sources:
        _remote_of(totals, source, found)
    faults, local = totals.total(Quantity.HINT_FAULTS), totals.total(Quantity.HINT_FAULTS_LOCAL)
    if faults and local is not None:
        found.add("remote_share", max(1.0 - local / faults, 0.0), "1 - numa_hint_faults_local / numa_hint_faults")


def _answered(totals: Totals, source: list[str]) -> float:
    """All accesses of a source, by whoever answered; some may be counted twice, by distance and as a whole."""
    return math.fsum(_count(totals, source, quantity) or 0.0 for quantity in ANSWERS)


def _count(totals: Totals, source: list[str], quantity: Quantity) -> float | None:
    """A quantity summed over a source's families, or None where none of them counted it."""
    known = [value for family in source if (value := totals.total(quantity, family)) is not None]
    return math.fsum(known) if known else None


def _remote_of(totals: Totals, source: list[str], found: Findings) -> None:
    """The shares that one source tells, of what it counted of memory and of other nodes' caches."""
    local, remote, near, far, clean, modified = (_count(totals, source, quantity) for quantity in ANSWERS)
    name = " + ".join(source)
    if near is not None and far is not None and near + far > 0.0:
        found.add("far_share", far / (near + far), f"{name}: hop2p / (hop1 + hop2p)")
    if remote is None and (near is not None or far is not None):
        remote = (near or 0.0) + (far or 0.0)
    if local is None or remote is None:
        return
    remote += (clean or 0.0) + (modified or 0.0)
    if local + remote == 0.0:
        return
    if source == [NODE] and "remote_share" not in found.figures:
        found.notes.append(
            "node-loads are taken as local accesses, as on Haswell and later; before, they counted all, and the "
            "remote share is node-load-misses / node-loads."
        )
    found.add("remote_share", remote / (local + remote), f"{name}: remote / (local + remote)")
    if modified is not None:
        found.add("hitm_share", modified / (local + remote), f"{name}: remote_hitm / (local + remote)")


def _intensity(totals: Totals, found: Findings) -> None:
    """Flop per byte of memory traffic."""
    flops, num_bytes = totals.total(Quantity.FLOPS), totals.total(Quantity.MEMORY_BYTES)
    if flops is not None and num_bytes:
        found.add("intensity", flops / num_bytes, "fp_arith_inst_retired x lanes / memory controllers' bytes")


def _cpu_migrations(totals: Totals, found: Findings) -> None:
    """Moves of threads between cores, per second of processor time."""
    moves, cpu_s = totals.total(Quantity.CPU_MIGRATIONS), totals.total(Quantity.CPU_SECONDS)
    if moves is None or not cpu_s:
        return
    found.add("cpu_migrations_per_s", moves / cpu_s, "cpu-migrations / task-clock")
    if "" not in totals.groups(Quantity.CPU_SECONDS):
        found.notes.append("Counted on all processors, task-clock holds idle ones too: threads move at least so often.")


def _page_migrations(totals: Totals, elapsed_s: float, topology: Topology | None, found: Findings) -> None:
    """What moving pages costs: the kernel's time per page, and the copy where bandwidth is known."""
    pages = totals.total(Quantity.PAGES_MIGRATED)
    if pages is not None:
        add_page_migrations(pages / elapsed_s, topology, found)


def add_page_migrations(pages_per_s: float, topology: Topology | None, found: Findings) -> None:
    """Note the rate of page migrations, and the share of the time they take.

    A page costs the kernel's bookkeeping and, where the machine is known, its copy over the mean of its pairs.
    """
    page_s, how = DEFAULT_PAGE_MOVE_S, "numa_pages_migrated/s x 1 us a page"
    if topology is not None:
        page_s = topology.page_move_s
        apart = ~np.eye(topology.num_nodes, dtype=bool)
        if apart.any():
            page_s += topology.page_bytes / float(topology.bandwidth_bytes_per_s[apart].mean())
        how = f"numa_pages_migrated/s x {page_s * 1e6:.2g} us a page"
    found.add("migrations_per_s", pages_per_s, "numa_pages_migrated / seconds")
    found.add("migration_share", min(pages_per_s * page_s, 1.0), how)


def _controllers(totals: Totals, elapsed_s: float, topology: Topology, found: Findings) -> None:
    """S_MC of the busiest socket, or of the whole machine where sockets were not told apart."""
    groups = totals.groups(Quantity.MEMORY_BYTES)
    if not groups:
        return
    capacity = topology.memory_bandwidth_bytes_per_s
    nodes = _nodes_of_groups(groups, topology, found)
    load = {group: groups[group] / elapsed_s / float(capacity[members].sum()) for group, members in nodes.items()}
    busiest = max(load, key=lambda group: load[group])
    found.add("controller_utilisation", load[busiest], "memory controllers' bytes / seconds / capacity")
    found.figures["busiest_controller"] = _label("memory of", busiest, nodes[busiest])


def _links(totals: Totals, elapsed_s: float, topology: Topology, found: Findings) -> None:
    """U_link: bytes into (or out of) the busiest socket over the capacity of its links that way."""
    if topology.num_links == 0:
        found.add("link_utilisation", 0.0, "the machine has no links")
        return
    best = -1.0
    for quantity, end, way in (
        (Quantity.LINK_BYTES_IN, 1, "links into"),
        (Quantity.LINK_BYTES_OUT, 0, "links out of"),
    ):
        groups = totals.groups(quantity)
        nodes = _nodes_of_groups(groups, topology, found) if groups else {}
        for group, members in nodes.items():
            inside = np.isin(topology.links, members)
            # Of the whole machine every link counts; of a socket those that cross its border this way.
            crossing = inside[:, end] & (~inside[:, 1 - end] | (len(members) == topology.num_nodes))
            capacity = float(topology.link_bandwidth_bytes_per_s[crossing].sum())
            if capacity > 0.0 and groups[group] / elapsed_s / capacity > best:
                best = groups[group] / elapsed_s / capacity
                found.figures["busiest_link"] = _label(way, group, members)
    if best >= 0.0:
        found.add("link_utilisation", best, "data flits' bytes / seconds / capacity")


def _controller_imbalance(totals: Totals, found: Findings) -> None:
    """Sigma / mu over sockets; one group says nothing of it."""
    loads = list(totals.groups(Quantity.MEMORY_BYTES).values())
    if len(loads) > 1 and sum(loads) > 0.0:
        found.add("controller_imbalance", float(np.std(loads) / np.mean(loads)), "sigma / mu of controllers' bytes")


def _nodes_of_groups(groups: ByGroup, topology: Topology, found: Findings) -> dict[str, list[int]]:
    """The nodes that each group's counters serve: sockets in the order of their nodes.

    Memory-only nodes have no socket of their own, and are left out where the others fit.
    """
    everything = list(range(topology.num_nodes))
    if len(groups) == 1 and "" in groups:
        _note(found, "Counters of all sockets were added up: the busiest may be busier; count with -a --per-socket.")
        return {"": everything}
    ordered = sorted(groups, key=lambda group: [int(number) for number in re.findall(r"\d+", group)])
    for nodes in (np.flatnonzero(topology.cores).tolist(), everything):
        if len(nodes) % len(ordered) == 0:
            size = len(nodes) // len(ordered)
            if size > 1:
                _note(found, f"{ordered[0]} and the others are taken to be {size} nodes each, in order.")
            return {group: nodes[place * size : (place + 1) * size] for place, group in enumerate(ordered)}
    raise ValueError(
        f"counters must come from as many sockets as the machine {topology.name!r} has, one or more of its "
        f"{topology.num_nodes} nodes each, got {len(ordered)}: {', '.join(ordered)}."
    )


def _note(found: Findings, note: str) -> None:
    """Add a note once."""
    if note not in found.notes:
        found.notes.append(note)


def _label(what: str, group: str, members: list[int]) -> str:
    """What a group is called: "memory of S0 (node 0)"."""
    numbers = ", ".join(map(str, members))
    return f"{what} {group} (node{'s' if len(members) > 1 else ''} {numbers})" if group else f"{what} all nodes"

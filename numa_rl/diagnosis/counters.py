"""From perf's counts to evidence: rates, shares and utilisations, each with how it was made.

References:
    [1] The chapter, section 16.4.1: F_migrate; section 16.4.2: the counters.
"""

from __future__ import annotations

import math

import numpy as np

from numa_rl.diagnosis.events import FILLS, LOADS, NODE, OFFCORE, Quantity, is_of_units
from numa_rl.diagnosis.evidence import Draft, Evidence
from numa_rl.diagnosis.perf_stat import PerfStat
from numa_rl.diagnosis.totals import Totals
from numa_rl.diagnosis.utilisation import add_controller_imbalance, add_controllers, add_links
from numa_rl.metrics import migration_rate
from numa_rl.topology import DEFAULT_PAGE_MOVE_S, Topology

RARELY_RUNNING = 0.2  # below this share of the time, perf's scaling of a multiplexed count is a guess
SAME_TIME = 0.01  # two times differ by rounding, and by what perf takes to start
GUESSED = 0.05  # by so much may counts that perf scaled up contradict each other
ANSWERS = (
    Quantity.LOCAL_DRAM,
    Quantity.REMOTE_DRAM,
    Quantity.REMOTE_ONE_HOP,
    Quantity.REMOTE_FAR,
    Quantity.REMOTE_CLEAN,
    Quantity.REMOTE_MODIFIED,
)


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
        seconds: how long the counters ran, where the counts do not say; None to take it from them.
        ignore_unknown: whether to pass over counters that are unknown.

    Raises:
        ValueError: a counter is unknown, seconds is not finite and > 0 or not what the counts say, or cores wait for
            longer than they run.
    """
    if seconds is not None and not 0.0 < seconds < math.inf:
        raise ValueError(f"seconds must be finite and > 0, got {seconds}.")
    totals = Totals(perf, ignore_unknown=ignore_unknown)
    draft = Draft()
    elapsed_s = _agreed_s(seconds, _elapsed_s(perf, totals))
    _note_quality(perf, totals, draft)
    _stalls(totals, draft, 1.0 + GUESSED * any(count.running_share < 1.0 for count in perf.counts))
    _remote(totals, draft)
    _intensity(totals, draft)
    _cpu_migrations(totals, draft)
    if elapsed_s is None:
        draft.note("No rates: how long the counters ran is unknown; count duration_time, or give the seconds.")
    else:
        _page_migrations(totals, elapsed_s, topology, draft)
        if topology is None:
            draft.note("No utilisation: capacities are unknown; name the machine.")
        else:
            add_controllers(totals, elapsed_s, topology, draft)
            add_links(totals, elapsed_s, topology, draft)
    add_controller_imbalance(totals, draft)
    return draft.evidence(topology)


def _elapsed_s(perf: PerfStat, totals: Totals) -> float | None:
    """How long the counters ran: the last time stamp, else duration_time, which every group repeats."""
    if perf.elapsed_s is not None:
        return perf.elapsed_s or None
    return max(totals.groups(Quantity.ELAPSED_SECONDS).values(), default=0.0) or None


def _agreed_s(given: float | None, counted: float | None) -> float | None:
    """The time in which things were counted: the file's own, which a given one must agree with."""
    if given is None or counted is None:
        return given if counted is None else counted
    if abs(given - counted) > SAME_TIME * counted:
        raise ValueError(f"seconds must be the {counted:g} s that the counts themselves say they took, got {given:g}.")
    return counted


def _note_quality(perf: PerfStat, totals: Totals, draft: Draft) -> None:
    """Say which counts to distrust."""
    if totals.ignored:
        draft.note(f"Ignored, since unknown: {', '.join(dict.fromkeys(totals.ignored))}.")
    if perf.not_counted:
        draft.note(f"The machine did not count: {', '.join(perf.not_counted)}.")
    for event in perf.repeated:
        taken = "added up, as of several units" if is_of_units(event) else "taken at their mean, as one count"
        draft.note(f"{event} is listed more than once for one place: its counts were {taken}.")
    for count in perf.counts:
        if count.running_share < RARELY_RUNNING:
            where = f" on {count.group}" if count.group else ""
            draft.note(
                f"{count.event}{where} ran {count.running_share:.0%} of the time, and perf scaled it up: count fewer "
                "events at a time."
            )


def _stalls(totals: Totals, draft: Draft, slack: float) -> None:
    """Shares of the cycles in which cores wait; `slack` is how many times too large a part may be."""
    cycles = totals.total(Quantity.CYCLES)
    if cycles is None:
        return
    memory, dram = (totals.total(quantity) for quantity in (Quantity.MEMORY_STALL_CYCLES, Quantity.DRAM_STALL_CYCLES))
    for event, part, whole_event, whole in (
        ("stalls_mem_any", memory, "cycles", cycles),
        ("stalls_l3_miss", dram, "cycles", cycles),
        ("stalls_l3_miss", dram, "stalls_mem_any", memory),
    ):
        if part is not None and whole is not None and part > whole * slack:
            raise ValueError(f"{event} must be at most {whole_event} ({whole:.0f}), got {part:.0f}.")
    if not cycles:
        return
    for figure, stalled, event in (
        ("memory_stall_share", memory, "stalls_mem_any"),
        ("dram_stall_share", dram, "stalls_l3_miss"),
    ):
        if stalled is not None:
            draft.add(figure, min(stalled / cycles, 1.0), f"{event} / cycles")


def _remote(totals: Totals, draft: Draft) -> None:
    """Shares of accesses that other nodes answer, from the family that says it best."""
    families = totals.families()
    offcore = [family for family in families if family.startswith(OFFCORE)]
    # An all_* request contains the others: beside it they would count twice.
    whole = [family for family in offcore if ".all_" in family or family.endswith(".reads_to_core")]
    whole.sort(key=lambda family: -_answered(totals, [family]))
    parts = [family for family in offcore if family not in whole]
    with_local = [family for family in parts if totals.total(Quantity.LOCAL_DRAM, family) is not None]
    sources = [
        *([family] for family in (*LOADS, FILLS[0], *whole) if family in families),
        with_local or parts,
        *([family] for family in (FILLS[1], NODE) if family in families),
    ]
    for source in sources:
        _remote_of(totals, source, draft)
    faults, local = totals.total(Quantity.HINT_FAULTS), totals.total(Quantity.HINT_FAULTS_LOCAL)
    if faults and local is not None:
        draft.add("remote_share", max(1.0 - local / faults, 0.0), "1 - numa_hint_faults_local / numa_hint_faults")


def _answered(totals: Totals, source: list[str]) -> float:
    """All accesses of a source, by whoever answered; some may be counted twice, by distance and as a whole."""
    return math.fsum(_count(totals, source, quantity) or 0.0 for quantity in ANSWERS)


def _count(totals: Totals, source: list[str], quantity: Quantity) -> float | None:
    """A quantity summed over a source's families, or None where none of them counted it."""
    known = [value for family in source if (value := totals.total(quantity, family)) is not None]
    return math.fsum(known) if known else None


def _remote_of(totals: Totals, source: list[str], draft: Draft) -> None:
    """The shares that one source tells, of what it counted of memory and of other nodes' caches."""
    local, remote, near, far, clean, modified = (_count(totals, source, quantity) for quantity in ANSWERS)
    name = " + ".join(source)
    if near is not None and far is not None and near + far > 0.0:
        draft.add("far_share", far / (near + far), f"{name}: hop2p / (hop1 + hop2p)")
    if remote is None and (near is not None or far is not None):
        remote = (near or 0.0) + (far or 0.0)
    if local is None or remote is None:
        return
    remote += (clean or 0.0) + (modified or 0.0)
    if local + remote == 0.0:
        return
    if source == [NODE] and "remote_share" not in draft.figures:
        draft.note(
            "node-loads are taken as local accesses, as on Haswell and later; before, they counted all, and the "
            "remote share is node-load-misses / node-loads."
        )
    draft.add("remote_share", remote / (local + remote), f"{name}: remote / (local + remote)")
    if modified is not None:
        draft.add("hitm_share", modified / (local + remote), f"{name}: remote_hitm / (local + remote)")


def _intensity(totals: Totals, draft: Draft) -> None:
    """Flop per byte of memory traffic."""
    flops, num_bytes = totals.total(Quantity.FLOPS), totals.total(Quantity.MEMORY_BYTES)
    if flops is not None and num_bytes:
        draft.add("intensity", flops / num_bytes, "fp_arith_inst_retired x lanes / memory controllers' bytes")


def _cpu_migrations(totals: Totals, draft: Draft) -> None:
    """Moves of threads between cores, per second of processor time."""
    moves, cpu_s = totals.total(Quantity.CPU_MIGRATIONS), totals.total(Quantity.CPU_SECONDS)
    if moves is None or not cpu_s:
        return
    draft.add("cpu_migrations_per_s", moves / cpu_s, "cpu-migrations / task-clock")
    if "" not in totals.groups(Quantity.CPU_SECONDS):
        draft.note("Counted on all processors, task-clock holds idle ones too: threads move at least so often.")


def _page_migrations(totals: Totals, elapsed_s: float, topology: Topology | None, draft: Draft) -> None:
    """What moving pages costs: the kernel's time per page, and the copy where bandwidth is known."""
    pages = totals.total(Quantity.PAGES_MIGRATED)
    if pages is not None:
        add_page_migrations(pages, elapsed_s, topology, draft)


def add_page_migrations(pages: float, elapsed_s: float, topology: Topology | None, draft: Draft) -> None:
    """Note the rate of page migrations, and the share of the time they take.

    A page costs the kernel's bookkeeping and, where the machine is known, its copy over the mean of its pairs.
    """
    pages_per_s = float(migration_rate(pages, elapsed_s))
    page_s, how = DEFAULT_PAGE_MOVE_S, "numa_pages_migrated/s x 1 us a page"
    if topology is not None:
        page_s = topology.page_move_s
        apart = ~np.eye(topology.num_nodes, dtype=bool)
        if apart.any():
            page_s += topology.page_bytes / float(topology.bandwidth_bytes_per_s[apart].mean())
        how = f"numa_pages_migrated/s x {page_s * 1e6:.2g} us a page"
    draft.add("migrations_per_s", pages_per_s, "numa_pages_migrated / seconds")
    draft.add("migration_share", min(pages_per_s * page_s, 1.0), how)

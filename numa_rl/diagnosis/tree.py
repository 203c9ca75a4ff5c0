"""The chapter's tree: from what was measured to the kind of bottleneck, and to what the tuning table says of it.

    high latency?
      yes: many remote accesses?      yes: data layout      no: cache contention
      no:  bandwidth saturated?       yes: communication    no: compute

A question whose figure was not measured ends the walk: nothing is guessed, and the answer is what to measure.

References:
    [1] The chapter, section 16.4.2: counters and the tree; section 16.4.3: the tuning table.
    [2] A. Yasin, "A top-down method for performance analysis and counters architecture", ISPASS 2014; the thresholds
        stand in the Linux source, tools/perf/pmu-events: `tma_memory_bound > 0.2`, `tma_dram_bound > 0.1`,
        `tma_contested_accesses > 0.05`.
    [3] M. Dashti et al., "Traffic management: a holistic approach to memory placement on NUMA systems", ASPLOS 2013.
    [4] B. Lepers et al., "Thread and memory placement on NUMA systems: asymmetry matters", USENIX ATC 2015.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from numa_rl.diagnosis.events import (
    CONTROLLER_EVENTS,
    FLOP_EVENTS,
    LINK_EVENTS,
    REMOTE_EVENTS,
    REMOTE_EVENTS_AMD,
    STALL_EVENTS,
    perf_stat,
)
from numa_rl.diagnosis.evidence import Evidence
from numa_rl.roofline import HIGH_LOCALITY, Tuning, tuning
from numa_rl.workloads.parameters import require

MEASURE_REMOTE = (perf_stat(REMOTE_EVENTS), f"{perf_stat(REMOTE_EVENTS_AMD)}  # on AMD")
MOST_REMOTE = round(1.0 - HIGH_LOCALITY, 12)  # 0.2 and not a bit less, so that tree and tuning table agree on it


@dataclass(frozen=True)
class Thresholds:
    """Above which an answer is yes. The defaults are published where there is a source, ours where it says so.

    Attributes:
        latency_ratio: mean over idle local latency. Ours: the loaded latency of a memory at 80% of its capacity
            (r(0.8) of `numa_rl.topology.LoadedLatency`, 1.53), rounded down.
        memory_stall_share: the top-down method's limit for "memory bound" (Yasin, ISPASS 2014 [2]).
        dram_stall_share: the top-down method's limit for "DRAM bound" [2].
        remote_share: Carrefour leaves pages alone from 80% of local accesses on [3].
        utilisation: of a link or controller. Ours: 80%, where the loaded latency passes its knee.
        severe_utilisation: above which there is no room at all. Ours.
        controller_imbalance: sigma / mu, above which Carrefour interleaves [3].
        misplaced_share: of the pages. The complement of Carrefour's 80% local [3].
        largest_node_share: of a process's pages on one node. Ours: 90%.
        far_share: of the remote accesses. Ours: a third.
        coherence_share: of the time; the top-down method's limit for "contested accesses" [2].
        hitm_share: of the loads that miss the local caches. Ours: as for coherence_share.
        falsely_shared_share: of the sampled accesses' waiting time. Ours: as for coherence_share.
        migration_share: of the time; AsymSched moves memory only where that costs at most 5% of the run [4].
        cpu_migrations_per_s: of processor time. Ours: a move to another node leaves the pages behind that a thread has
            touched, and ten a second leave no time to move them after it.
        severe_factor: how many times its threshold makes a finding severe, other than of utilisation. Ours.

    Raises:
        ValueError: a threshold is not finite and > 0, a share is above 1, or a severe limit lies below the plain one.
    """

    latency_ratio: float = 1.5
    memory_stall_share: float = 0.2
    dram_stall_share: float = 0.1
    remote_share: float = MOST_REMOTE
    utilisation: float = 0.8
    severe_utilisation: float = 0.95
    controller_imbalance: float = 0.35
    misplaced_share: float = MOST_REMOTE
    largest_node_share: float = 0.9
    far_share: float = 1.0 / 3.0
    coherence_share: float = 0.05
    hitm_share: float = 0.05
    falsely_shared_share: float = 0.05
    migration_share: float = 0.05
    cpu_migrations_per_s: float = 10.0
    severe_factor: float = 2.0

    def __post_init__(self) -> None:
        """Check the ranges; raises ValueError."""
        shares = " ".join(name for name in vars(self) if name.endswith("_share"))
        require(self, shares, "in (0, 1]", lambda value: 0.0 < value <= 1.0)
        require(self, "utilisation controller_imbalance cpu_migrations_per_s", "> 0", lambda value: value > 0.0)
        require(self, "latency_ratio severe_factor", ">= 1", lambda value: value >= 1.0)
        require(self, "severe_utilisation", f">= utilisation ({self.utilisation})", lambda v: v >= self.utilisation)


class Leaf(Enum):
    """Where the tree ends: the kind of bottleneck."""

    DATA_LAYOUT = "data layout"
    CACHE_CONTENTION = "cache contention"
    COMMUNICATION = "communication"
    COMPUTE = "compute"


ADVICE = {
    Leaf.DATA_LAYOUT: "Cores wait for memory of other nodes: move the data to its users, or the users to the data.",
    Leaf.CACHE_CONTENTION: "Cores wait, yet mostly for what is near: lines move between caches, these are too small, "
    "or the memory of their own node is loaded.",
    Leaf.COMMUNICATION: "Latency is hidden but a link or controller is full: move fewer bytes, or spread them.",
    Leaf.COMPUTE: "Neither latency nor bandwidth limits: vectorise, use all cores, and balance the load.",
}
COMMANDS = {
    Leaf.DATA_LAYOUT: ("numastat -p PID", "numactl --cpunodebind=NODE --membind=NODE CMD", "migratepages PID FROM TO"),
    Leaf.CACHE_CONTENTION: ("perf c2c record -a CMD", "perf c2c report --stdio"),
    Leaf.COMMUNICATION: (
        "numactl --interleave=all CMD",
        perf_stat(f"{CONTROLLER_EVENTS},{LINK_EVENTS}", per_socket=True),
    ),
    Leaf.COMPUTE: ("perf record -g CMD", "perf report", "perf sched timehist --summary"),
}


@dataclass(frozen=True)
class Step:
    """One question of the tree.

    Attributes:
        question: in words.
        figure: attribute of `Evidence` that decided it, or None where none was measured.
        value: that figure.
        threshold: above which the answer is yes.
        answer: yes, no, or None where it is open.
        label: what the figure is of, where it is of one link or controller.
        measure: what to run where the answer is open.
    """

    question: str
    figure: str | None = None
    value: float | None = None
    threshold: float | None = None
    answer: bool | None = None
    label: str | None = None
    measure: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """The walk through the tree.

    Attributes:
        path: the questions asked, in order.
        leaf: where the walk ended, or None where a figure is missing.
        tuning: the cell of the tuning table, or None where intensity or locality is missing.
        missing: what the tuning table lacks, in words.
        measure: what to run to learn what is missing, for the tree first.
    """

    path: tuple[Step, ...]
    leaf: Leaf | None
    tuning: Tuning | None
    missing: tuple[str, ...] = ()
    measure: tuple[str, ...] = ()

    @property
    def advice(self) -> str | None:
        """What the leaf means, in one line; None where there is none."""
        return None if self.leaf is None else ADVICE[self.leaf]

    @property
    def commands(self) -> tuple[str, ...]:
        """What to run next: what to measure where something is missing, then what the leaf and the table's cell say."""
        leaf = () if self.leaf is None else COMMANDS[self.leaf]
        tuning = () if self.tuning is None else self.tuning.commands
        return (*self.measure, *leaf, *tuning)


def diagnose(evidence: Evidence, thresholds: Thresholds | None = None) -> Diagnosis:
    """Walk the chapter's tree [1].

    Args:
        evidence: what was measured.
        thresholds: above which an answer is yes; None for the defaults.
    """
    limits = thresholds or Thresholds()
    path = [high_latency(evidence, limits)]
    leaf = None
    if path[0].answer is not None:
        ask, yes, no = (
            (many_remote_accesses, Leaf.DATA_LAYOUT, Leaf.CACHE_CONTENTION)
            if path[0].answer
            else (bandwidth_saturated, Leaf.COMMUNICATION, Leaf.COMPUTE)
        )
        path.append(ask(evidence, limits))
        if path[1].answer is not None:
            leaf = yes if path[1].answer else no
    lacking = {} if leaf is not None else dict.fromkeys(path[-1].measure)
    cell, missing, measure = _tuning(evidence)
    return Diagnosis(tuple(path), leaf, cell, missing, tuple(dict.fromkeys((*lacking, *measure))))


def high_latency(evidence: Evidence, limits: Thresholds) -> Step:
    """Do accesses take long? By latency where it was measured, else by the cycles lost to it."""
    question = "Is memory latency high?"
    for figure in ("latency_ratio", "memory_stall_share", "dram_stall_share"):
        step = _decide(question, figure, evidence, limits)
        if step is not None:
            return step
    return Step(question, measure=(perf_stat(STALL_EVENTS),))


def many_remote_accesses(evidence: Evidence, limits: Thresholds) -> Step:
    """Does another node answer more of them than a well-placed program leaves?"""
    question = "Are many accesses remote?"
    step = _decide(question, "remote_share", evidence, limits)
    return step or Step(question, measure=MEASURE_REMOTE)


def bandwidth_saturated(evidence: Evidence, limits: Thresholds) -> Step:
    """Is a link or controller full? One that is answers; "no" takes both to be measured."""
    question = "Is bandwidth saturated?"
    kinds = {
        "controller_utilisation": (evidence.controller_utilisation, evidence.busiest_controller, CONTROLLER_EVENTS),
        "link_utilisation": (evidence.link_utilisation, evidence.busiest_link, LINK_EVENTS),
    }
    known = {figure: (value, label) for figure, (value, label, _) in kinds.items() if value is not None}
    events = ",".join(events for value, _, events in kinds.values() if value is None)
    measure = (f"{perf_stat(events, per_socket=True)}  # and name the machine, for its capacities",) if events else ()
    if not known:
        return Step(question, measure=measure)
    figure = max(known, key=lambda name: known[name][0])
    value, label = known[figure]
    saturated = value > limits.utilisation
    if saturated or not events:
        return Step(question, figure, value, limits.utilisation, saturated, label)
    return Step(question, figure, value, limits.utilisation, None, label, measure)


def _decide(question: str, figure: str, evidence: Evidence, limits: Thresholds) -> Step | None:
    """The step that this figure decides, or None where it was not measured."""
    value: float | None = getattr(evidence, figure)
    if value is None:
        return None
    threshold: float = getattr(limits, figure)
    return Step(question, figure, value, threshold, value > threshold)


def _tuning(evidence: Evidence) -> tuple[Tuning | None, tuple[str, ...], tuple[str, ...]]:
    """The cell of the tuning table, or what it lacks, in words and as what to run."""
    missing, measure = [], []
    if evidence.intensity is None:
        missing.append("intensity (flop and bytes of memory traffic)")
        measure.append(perf_stat(f"{CONTROLLER_EVENTS},{FLOP_EVENTS}", per_socket=True))
    if evidence.remote_share is None:
        missing.append("locality (local and remote accesses)")
        measure += MEASURE_REMOTE
    if evidence.intensity is None or evidence.remote_share is None:
        return None, tuple(missing), tuple(measure)
    return tuning(evidence.intensity, 1.0 - evidence.remote_share), (), ()

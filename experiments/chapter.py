"""The chapter's exercises, computed: what each gives, our numbers by the library's functions, and the chapter's own.

Values are in SI units; a `Unit` says how a person reads them.

References:
    [1] The chapter, exercises 1 to 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from numa_rl.communication.collectives import (
    Groups,
    chapter_ring_s,
    hierarchical_overlapped_s,
    hierarchical_s,
    ring_s,
)
from numa_rl.machines.catalog import load_machine
from numa_rl.matmul import DistributedProduct, cannon, cannon_elements_per_step, naive, summa
from numa_rl.metrics import memory_efficiency
from numa_rl.roofline import byte_weighted_bandwidth, effective_bandwidth, mean_latency
from numa_rl.stealing.levels import FAR
from numa_rl.stealing.simulation import StealingResult, StealingRules, Strategy, TaskSet, simulate_stealing, total_cost
from numa_rl.transformer.memory_plan import Memory, Recompute, Sharding, Training, rank_memory, whole_memory
from numa_rl.transformer.parallel_plan import proportioned

ROUNDING = 1e-9  # of 64-bit sums: every printed answer is exact
WHOLE = 1e4  # from here on numbers are shown without decimals
ABOUT = 0.01  # where the chapter says "about"


@dataclass(frozen=True)
class Unit:
    """How a value is shown.

    Attributes:
        symbol: after the number, with the blank that belongs there.
        in_si: what one of them is in SI units.
        si: the symbol of that SI unit, "1" for numbers without one.
        plus: whether a gain shows its sign.
    """

    symbol: str
    in_si: float = 1.0
    si: str = "1"
    plus: bool = False

    def text(self, *values: float) -> str:
        """Values as a person reads them: 10, 25, 45 ns."""
        sign = "+" if self.plus else ""
        scaled = [value / self.in_si for value in values]
        shown = ", ".join(f"{value:{sign}.{'0f' if abs(value) >= WHOLE else '4g'}}" for value in scaled)
        return f"{shown}{self.symbol}"


NUMBER, TIMES, THOUSANDS = Unit(""), Unit("x"), Unit("k", 1e3)
PERCENT, MORE = Unit("%", 0.01), Unit("%", 0.01, plus=True)
NANOSECONDS, SECONDS = Unit(" ns", 1e-9, "s"), Unit(" s", 1.0, "s")
MICROSECONDS, MILLISECONDS = Unit(" us", 1e-6, "s"), Unit(" ms", 1e-3, "s")
TERABYTES, GIGABYTES = Unit(" TB", 1e12, "B"), Unit(" GB", 1e9, "B")
KILOBYTES, BYTES = Unit(" kB", 1e3, "B"), Unit(" B", 1.0, "B")
GIGABYTES_PER_S = Unit(" GB/s", 1e9, "B/s")


@dataclass(frozen=True)
class Given:
    """An input of an exercise.

    Attributes:
        name: what it is.
        unit: how it is shown.
        values: one or more.
    """

    name: str
    unit: Unit
    values: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {"name": self.name, "values": list(self.values), "unit": self.unit.si}


@dataclass(frozen=True)
class Result:
    """A number of an exercise, ours and the chapter's.

    Attributes:
        name: what it is.
        unit: how it is shown.
        ours: what the function returns, or what follows from its numbers at once.
        function: that computes it.
        chapter: what the chapter answers, None where it gives no such number.
        note: under which assumption ours holds, and so why the two differ where they do.
        tolerance: by what share of it the two may differ and still agree.
    """

    name: str
    unit: Unit
    ours: float
    function: Callable[..., Any]
    chapter: float | None = None
    note: str = ""
    tolerance: float = ROUNDING

    @property
    def agrees(self) -> bool | None:
        """Whether ours is the chapter's number; None where it has none."""
        return None if self.chapter is None else math.isclose(self.ours, self.chapter, rel_tol=self.tolerance)

    @property
    def function_name(self) -> str:
        """The function with its module."""
        return f"{self.function.__module__}.{self.function.__qualname__}"

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "name": self.name,
            "ours": self.ours,
            "chapter": self.chapter,
            "unit": self.unit.si,
            "agrees": self.agrees,
            "note": self.note,
            "function": self.function_name,
        }


@dataclass(frozen=True)
class Exercise:
    """An exercise of the chapter with its results.

    Attributes:
        number: in the chapter.
        title: what is asked.
        given: its inputs.
        results: what comes out.
    """

    number: int
    title: str
    given: tuple[Given, ...]
    results: tuple[Result, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "number": self.number,
            "title": self.title,
            "given": [given.to_dict() for given in self.given],
            "results": [result.to_dict() for result in self.results],
        }


def latency_exercise() -> Exercise:
    """Exercise 1: the mean latency of accesses at three distances."""
    shares, latency_s = (0.6, 0.3, 0.1), (10e-9, 25e-9, 45e-9)
    mean_s = mean_latency(shares, latency_s)
    return Exercise(
        1,
        "Mean latency of local, near and far accesses",
        (Given("share of the accesses", PERCENT, shares), Given("latency", NANOSECONDS, latency_s)),
        (
            Result("mean latency", NANOSECONDS, mean_s, mean_latency, 18e-9),
            Result("more than local latency", MORE, mean_s / latency_s[0] - 1.0, mean_latency, 0.8),
        ),
    )


def all_reduce_exercise() -> Exercise:
    """Exercise 2: the flat ring against the hierarchical all-reduce, by every way of counting."""
    gpus, sockets, vector_bytes, intra, inter = 8, 2, 4e9, 200e9, 50e9
    groups = Groups(gpus // sockets, intra, inter, num_groups=sockets)
    flat_s, textbook_s = chapter_ring_s(gpus, vector_bytes, inter), ring_s(gpus, vector_bytes, inter)
    in_turn_s, overlapped_s = hierarchical_s(groups, vector_bytes), hierarchical_overlapped_s(groups, vector_bytes)
    return Exercise(
        2,
        "All-reduce of 8 GPUs on 2 sockets: flat ring or hierarchical",
        (
            Given("GPUs", NUMBER, (gpus,)),
            Given("sockets", NUMBER, (sockets,)),
            Given("vector", GIGABYTES, (vector_bytes,)),
            Given("within a socket", GIGABYTES_PER_S, (intra,)),
            Given("between sockets", GIGABYTES_PER_S, (inter,)),
        ),
        (
            Result(
                "flat ring, chapter", SECONDS, flat_s, chapter_ring_s, 0.28,
                "vectors go round whole, in p-1 steps, and half of the bytes cross between the sockets.",
            ),
            Result(
                "flat ring, textbook", SECONDS, textbook_s, ring_s, 0.28,
                "pieces of S/p go round, so a link carries 2 (p-1)/p S in all, not half of (p-1) S.",
            ),
            Result(
                "hierarchical, overlapped", SECONDS, overlapped_s, hierarchical_overlapped_s, 0.08,
                "vectors are cut into many parts: one crosses between the sockets while others are summed within "
                "them, and of the two terms the longer is left, S/B_inter.",
            ),
            Result(
                "hierarchical, in turn", SECONDS, in_turn_s, hierarchical_s, 0.08,
                "no phase starts before the last has ended: both terms of the chapter's own formula, added up. "
                "Its printed answer is the longer term alone.",
            ),
            Result(
                "gain, overlapped", TIMES, flat_s / overlapped_s, hierarchical_overlapped_s, 3.5,
                "over the chapter's flat ring.",
            ),
            Result(
                "gain, in turn", TIMES, flat_s / in_turn_s, hierarchical_s, 3.5,
                "over the chapter's flat ring, by its formula without overlap.",
            ),
            Result(
                "gain over the textbook ring", TIMES, textbook_s / overlapped_s, ring_s, 3.5,
                "overlapped, but over a ring that sends as few bytes as can be.",
            ),
        ),
    )  # fmt: skip


def bandwidth_exercise() -> Exercise:
    """Exercise 3: effective bandwidth and memory efficiency."""
    num_nodes, peak, local, remote, local_share = 4, 100e9, 90e9, 30e9, 0.75
    effective = effective_bandwidth(local_share, local, remote)
    efficiency = float(memory_efficiency(num_nodes * effective, peak, num_nodes))
    return Exercise(
        3,
        "Effective bandwidth and memory efficiency",
        (
            Given("nodes", NUMBER, (num_nodes,)),
            Given("peak of a node", GIGABYTES_PER_S, (peak,)),
            Given("local", GIGABYTES_PER_S, (local,)),
            Given("remote", GIGABYTES_PER_S, (remote,)),
            Given("local share", PERCENT, (local_share,)),
        ),
        (
            Result(
                "effective bandwidth", GIGABYTES_PER_S, effective, effective_bandwidth, 75e9,
                "the local share is one of the time, or of cores that each stream from one side only.",
            ),
            Result("memory efficiency", PERCENT, efficiency, memory_efficiency, 0.75),
            Result(
                "bandwidth, bytes in turn", GIGABYTES_PER_S,
                byte_weighted_bandwidth(local_share, local, remote), byte_weighted_bandwidth, 75e9,
                "the local share is one of the bytes of a stream: times per byte add, and slow bytes take more than "
                "their share of the time.",
            ),
        ),
    )  # fmt: skip


def matmul_exercise() -> Exercise:
    """Exercise 4: what Cannon's, SUMMA's and the naive product really send, counted as they run."""
    m, k, n, square, other = 480, 960, 720, 16, 8
    a = np.arange(m * k, dtype=np.float64).reshape(m, k) % 19.0 - 9.0  # whole numbers: every order of sums is exact
    b = np.arange(k * n, dtype=np.float64).reshape(k, n) % 23.0 - 11.0
    by_cannon, by_naive = cannon(a, b, square), naive(a, b, square)
    by_summa, by_naive_too = summa(a, b, other), naive(a, b, other)
    products = (by_cannon, by_naive, by_summa, by_naive_too)
    wrong = max(float(np.abs(done.product - a @ b).max()) for done in products)
    skew_bytes = float(by_cannon.setup_bytes.sum(axis=1).max())
    cannon_bytes = _node_bytes(by_cannon)
    rows, columns = by_summa.grid
    return Exercise(
        4,
        "Matrix product in blocks: bytes that a node receives",
        (
            Given("M, K, N", NUMBER, (m, k, n)),
            Given("element", BYTES, (a.itemsize,)),
            Given("nodes P, a square and not", NUMBER, (square, other)),
        ),
        (
            Result(
                "Cannon, each step", KILOBYTES, float(by_cannon.received_bytes.max()), cannon,
                cannon_elements_per_step(m, k, n, square) * a.itemsize,
                f"P = {square}. The chapter's number is MK/P + KN/P elements; ours is the most that any node was sent "
                "in any step.",
            ),
            Result(
                "Cannon, all steps", KILOBYTES, cannon_bytes, cannon,
                note=f"sqrt(P) - 1 = {len(by_cannon.step_bytes)} shifts: one after the last product would bring "
                "nothing new.",
            ),
            Result(
                "Cannon, skew", KILOBYTES, skew_bytes, cannon,
                note="before the first step blocks move to where they start, unless they were handed out so.",
            ),
            Result(
                "naive", KILOBYTES, _node_bytes(by_naive), naive,
                note=f"P = {square}: rows on each node, which fetches the rest of B at once and must hold all of it.",
            ),
            Result("naive over Cannon", TIMES, _node_bytes(by_naive) / (cannon_bytes + skew_bytes), cannon),
            Result(
                "SUMMA, all steps", KILOBYTES, _node_bytes(by_summa), summa,
                note=f"P = {other} is no square: a grid of {rows} x {columns}, panel by panel.",
            ),
            Result("naive over SUMMA", TIMES, _node_bytes(by_naive_too) / _node_bytes(by_summa), summa),
            Result(
                "largest difference from A B", NUMBER, wrong, cannon,
                note="of all four products; elements are whole numbers, so that sums are exact.",
            ),
        ),
    )  # fmt: skip


def _node_bytes(done: DistributedProduct) -> float:
    """The most that a node receives in all steps."""
    return float(done.received_bytes.sum(axis=0).max())


def work_stealing_exercise() -> Exercise:
    """Exercise 5: work stealing by levels, with fixed and adaptive thresholds, against what it replaces."""
    machine = load_machine("chapter-8-socket")
    workers, bursts, burst_tasks, compute_s, data_bytes, load, runs = (
        int(machine.cores.sum()),
        64,
        64,
        20e-6,
        256e3,
        0.7,
        8,
    )
    drawn = [
        TaskSet.bursts(
            np.random.default_rng([5, run]), num_workers=workers, num_bursts=bursts, burst_tasks=burst_tasks,
            compute_s=compute_s, data_bytes=data_bytes, load=load,
        )
        for run in range(runs)
    ]  # fmt: skip
    done = {
        strategy: [
            simulate_stealing(machine, tasks, StealingRules(strategy), np.random.default_rng([6, run]))
            for run, tasks in enumerate(drawn)
        ]
        for strategy in Strategy
    }

    def mean(strategy: Strategy, figure: Callable[[StealingResult], float]) -> float:
        return float(np.mean([figure(result) for result in done[strategy]]))

    def rows(
        name: str, unit: Unit, function: Callable[..., Any], figure: Callable[[StealingResult], float], note: str
    ) -> list[Result]:
        steals = list(Strategy) if name in ("time", "C_total") else [each for each in Strategy if each != Strategy.NONE]
        return [
            Result(f"{name}, {each.value}", unit, mean(each, figure), function, note=note if each == steals[0] else "")
            for each in steals
        ]

    return Exercise(
        5,
        "Work stealing by levels: own queue, node, neighbour, far node",
        (
            Given("workers, 8 on each socket of the cube", NUMBER, (workers,)),
            Given("bursts of tasks", NUMBER, (bursts,)),
            Given("tasks of each", NUMBER, (burst_tasks,)),
            Given("mean computation", MICROSECONDS, (compute_s,)),
            Given("mean data", KILOBYTES, (data_bytes,)),
            Given("load", PERCENT, (load,)),
            Given("thresholds of the levels", NUMBER, StealingRules().thresholds),
            Given("runs", NUMBER, (runs,)),
        ),
        (
            *rows(
                "time", MILLISECONDS, simulate_stealing, lambda result: result.makespan_s,
                "until the last task ends, in the mean over runs. The chapter gives no number: strategies are "
                "compared with each other. A look at a queue costs its latency and disturbs nobody, so looking less "
                "often, as adaptive workers do, is not rewarded in full.",
            ),
            *rows(
                "C_total", MICROSECONDS, total_cost, lambda result: result.total_cost_s,
                "sigma(Q) T_task + sum of N_steal L_ij: a mean over time and a sum over all steals, so it falls with "
                "fewer steals even where the run takes longer.",
            ),
            *rows(
                "far steals", PERCENT, simulate_stealing,
                lambda result: float(result.steals[FAR] / result.steals.sum()),
                "of all steals, those from nodes that no link joins.",
            ),
            *rows(
                "remote data", MILLISECONDS, simulate_stealing, lambda result: result.remote_data_s,
                "all workers' time of reading data of other nodes.",
            ),
            *rows(
                "looks", THOUSANDS, simulate_stealing, lambda result: float(result.tries.sum()),
                "at queues of others.",
            ),
        ),
    )  # fmt: skip


def memory_exercise() -> Exercise:
    """Exercise 6: what training 200 T parameters keeps, on each rank and in all."""
    parameters, sockets, socket_bytes, tokens = 200e12, 8, 1e12, 2048
    mp, dp, pp, held, cached = 64, 32, 8, 180, 45
    training = Training(proportioned(parameters), parameters, tokens, kv_sequences=cached)
    whole = whole_memory(training, held, Recompute.FULL)
    kept_all = whole_memory(training, held, Recompute.NONE)

    def on_rank(sharding: Sharding) -> Memory:
        in_flight, micro_sequences = pp, 1
        return rank_memory(training, mp, dp, pp, in_flight, micro_sequences, sharding, Recompute.FULL)

    copied, shared = on_rank(Sharding.NONE), on_rank(Sharding.PARAMETERS)
    needed = math.ceil(whole.total / socket_bytes)
    on_one = math.floor(socket_bytes / shared.total)
    shape = f"{training.model.layers} layers, {training.model.width} wide"
    return Exercise(
        6,
        "Memory plan of 200 T parameters on 8 sockets",
        (
            Given("parameters", Unit(" T", 1e12), (parameters,)),
            Given("bytes of a parameter, of a gradient, of Adam's moments", NUMBER, (2, 2, 8)),
            Given("MP, DP, PP", NUMBER, (mp, dp, pp)),
            Given("sockets", NUMBER, (sockets,)),
            Given("memory of each", TERABYTES, (socket_bytes,)),
        ),
        (
            Result("parameters", TERABYTES, whole.parameters, whole_memory, 400e12),
            Result("gradients", TERABYTES, whole.gradients, whole_memory, 400e12),
            Result(
                "Adam", TERABYTES, whole.optimiser, whole_memory, 1600e12,
                "two moments of 4 bytes. A master copy of the parameters, which mixed precision needs, is 800 TB more.",
            ),
            Result(
                "activations", TERABYTES, whole.activations, whole_memory, 100e12,
                f"of {held} sequences of {tokens} tokens the input of each layer is kept ({shape}). These are chosen "
                "to give the chapter's number: it states no shape, batch or sequence.", ABOUT,
            ),
            Result(
                "KV cache", TERABYTES, whole.kv_cache, whole_memory, 50e12,
                f"of {cached} sequences, chosen likewise: a token's keys and values are twice its inputs of layers, so "
                "the same tokens cannot give both numbers unless four heads share keys. A training step has no KV "
                "cache.", ABOUT,
            ),
            Result("all of it", TERABYTES, whole.total, whole_memory, 2550e12, "each part once.", ABOUT),
            Result(
                "activations, all kept", TERABYTES, kept_all.activations, whole_memory,
                note="s b h (34 + 5 a s / h) a layer: without recomputation they are the largest part.",
            ),
            Result(
                "sockets it needs", NUMBER, needed, whole_memory, sockets,
                f"of 1 TB: {sockets} hold {sockets * socket_bytes / whole.total:.1%} of it.",
            ),
            Result("ranks", NUMBER, mp * dp * pp, rank_memory, 16384),
            Result(
                "parameters of a rank", GIGABYTES, shared.parameters, rank_memory, 25e9,
                "400 TB over all ranks, so replicas hold parts of them (ZeRO stage 3); the chapter rounds.",
            ),
            Result(
                "Adam of a rank", GIGABYTES, shared.optimiser, rank_memory, 100e9, "1600 TB over all ranks, rounded.",
            ),
            Result(
                "parameters, replicas equal", GIGABYTES, copied.parameters, rank_memory, 25e9,
                "400 TB over MP x PP alone: what a rank holds where replicas are copies.",
            ),
            Result(
                "all of a rank", GIGABYTES, shared.total, rank_memory,
                note=f"{pp} micro-batches of a sequence wait on the first stage, one layer is gathered whole: "
                f"{on_one} ranks fit in a socket.",
            ),
            Result(
                "sockets for the ranks", NUMBER, math.ceil(mp * dp * pp / on_one), rank_memory, sockets,
                f"{on_one} ranks each.",
            ),
        ),
    )  # fmt: skip


EXERCISES: tuple[Callable[[], Exercise], ...] = (
    latency_exercise,
    all_reduce_exercise,
    bandwidth_exercise,
    matmul_exercise,
    work_stealing_exercise,
    memory_exercise,
)

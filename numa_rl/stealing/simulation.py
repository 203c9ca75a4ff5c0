"""Workers that steal from each other on a NUMA machine, simulated event by event.

Each core is a worker with a deque of tasks. A task comes to one worker's deque and has its data on that worker's node;
run elsewhere, it reads the data over the machine's links. Stealing follows the chapter's levels [1], and there are
four strategies: not at all, from a random victim (as Cilk does [2]), by levels with fixed thresholds, and by levels
with thresholds and probabilities that adapt (`adaptation.py`).

A worker without tasks looks at one victim of each level in turn, which takes L_ij each, and if none of them has enough
it pauses. Taking a task takes L_ij once more. Left out: contention for deques, links and memory.

Dimension key: W workers, K tasks, N nodes.

References:
    [1] The chapter, exercise 5: hierarchical work stealing, C_total = sigma(Q) T_task + sum over steals of L_ij.
    [2] R. D. Blumofe, C. E. Leiserson, "Scheduling multithreaded computations by work stealing", JACM 46(5), 1999.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from numa_rl.stealing import kernel
from numa_rl.stealing.adaptation import FIRST_SUCCESS, LEAST_SHARE, RATE
from numa_rl.stealing.levels import NUM_LEVELS, victims_by_level, worker_nodes
from numa_rl.topology import Topology

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


class Strategy(Enum):
    """Who steals from whom."""

    NONE = "no stealing"
    RANDOM = "random victim"
    FIXED = "hierarchical, fixed"
    ADAPTIVE = "hierarchical, adaptive"


KERNEL_STRATEGY = {
    Strategy.NONE: kernel.NONE,
    Strategy.RANDOM: kernel.RANDOM,
    Strategy.FIXED: kernel.FIXED,
    Strategy.ADAPTIVE: kernel.ADAPTIVE,
}


@dataclass(frozen=True, eq=False)
class TaskSet:
    """K tasks in order of arrival.

    Attributes:
        arrival_s: when each comes to its worker's deque, never decreasing, shape (K,).
        worker: that worker, whose node holds the task's data, shape (K,).
        compute_s: its time without its data, shape (K,).
        data_bytes: what it reads, shape (K,).

    Raises:
        ValueError: shapes do not agree, there is no task, or a value is out of range.
    """

    arrival_s: F64
    worker: I64
    compute_s: F64
    data_bytes: F64

    def __post_init__(self) -> None:
        """Convert and check."""
        for name in ("arrival_s", "worker", "compute_s", "data_bytes"):
            values = np.array(getattr(self, name), np.int64 if name == "worker" else np.float64)
            if values.ndim != 1 or len(values) != len(np.atleast_1d(self.arrival_s)) or not len(values):
                raise ValueError(f"{name} must have shape (K,) with K > 0, the same for all, got {values.shape}.")
            if not (np.isfinite(values) & (values >= 0)).all():
                raise ValueError(f"{name} must be finite and >= 0, got {values.min()}.")
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        if (np.diff(self.arrival_s) < 0).any():
            at = int(np.argmax(np.diff(self.arrival_s) < 0)) + 1
            raise ValueError(f"arrival_s must never decrease, got {self.arrival_s[at]} for task {at}.")

    @classmethod
    def bursts(
        cls,
        rng: np.random.Generator,
        *,
        num_workers: int,
        num_bursts: int,
        burst_tasks: int,
        compute_s: float,
        data_bytes: float,
        load: float,
    ) -> TaskSet:
        """Bursts of tasks, each from one worker drawn at random, as where a worker enters a parallel loop.

        Args:
            rng: source of randomness.
            num_workers: W.
            num_bursts: number of bursts, at moments drawn uniformly.
            burst_tasks: tasks of each.
            compute_s: mean time of a task without its data, exponential.
            data_bytes: mean of what it reads, exponential.
            load: of all workers together, while tasks come, by the time without data.

        Raises:
            ValueError: a number is not positive.
        """
        numbers = {
            "num_workers": num_workers, "num_bursts": num_bursts, "burst_tasks": burst_tasks,
            "compute_s": compute_s, "data_bytes": data_bytes, "load": load,
        }  # fmt: skip
        for name, number in numbers.items():
            if not 0 < number < np.inf:
                raise ValueError(f"{name} must be finite and > 0, got {number}.")
        num_tasks = num_bursts * burst_tasks
        begins_s = np.sort(rng.random(num_bursts)) * num_tasks * compute_s / (num_workers * load)
        return cls(
            arrival_s=np.repeat(begins_s, burst_tasks),
            worker=np.repeat(rng.integers(num_workers, size=num_bursts), burst_tasks),
            compute_s=rng.exponential(compute_s, num_tasks),
            data_bytes=rng.exponential(data_bytes, num_tasks),
        )

    def run_s(self, topology: Topology) -> F64:
        """How long each task runs on each node, shape (K, N)."""
        home = worker_nodes(topology)[self.worker]
        return np.asarray(self.compute_s[:, None] + self.data_bytes[:, None] / topology.bandwidth_bytes_per_s.T[home])


@dataclass(frozen=True)
class StealingRules:
    """How workers steal.

    Attributes:
        strategy: which of the four.
        thresholds: theta of each level: a worker takes from a queue that is longer than its own by more than this. Own
            tasks are never weighed. What adapts is divided by the level's share.
        probabilities: p of each level: how often a free worker tries it. What adapts is multiplied by that share.
        rate: of the moving average of success.
        least_share: what a level's share of the best one's success does not fall below.
        pause_s: between looking in vain and looking again.

    Raises:
        ValueError: a value is out of range.
    """

    strategy: Strategy = Strategy.ADAPTIVE
    thresholds: tuple[float, ...] = (0.0, 0.0, 1.0, 3.0)
    probabilities: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    rate: float = RATE
    least_share: float = LEAST_SHARE
    pause_s: float = 1e-6

    def __post_init__(self) -> None:
        """Check the ranges; a threshold may be infinite."""
        for name in ("thresholds", "probabilities"):
            values = getattr(self, name)
            most = np.inf if name == "thresholds" else 1.0
            if len(values) != NUM_LEVELS or not all(0.0 <= value <= most for value in values):
                raise ValueError(f"{name} must be {NUM_LEVELS} numbers in [0, {most}], got {values}.")
        for name in ("rate", "least_share"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}.")
        if not 0.0 < self.pause_s < np.inf:
            raise ValueError(f"pause_s must be finite and > 0, got {self.pause_s}.")


@dataclass(frozen=True, eq=False)
class StealingResult:
    """What came out of a run.

    Attributes:
        worker: who ran each task, shape (K,).
        start_s: when it began, shape (K,).
        finish_s: when it ended, shape (K,).
        level: at which level it was taken, shape (K,).
        times_run: how often each task ran: once, shape (K,).
        tries: looks at a victim, by level, shape (levels,).
        steals: tasks taken from others, by level, shape (levels,).
        steal_latency_s: sum of L_ij over the steals, by level, shape (levels,).
        success: moving average of success of each worker, by level, shape (W, levels).
        queue_sigma: sigma(Q), the standard deviation of queue lengths over workers, in the mean over time until the
            last task is taken.
        task_s: T_task, the mean time of a task with local data.
        remote_data_s: time in which tasks read data of other nodes.
    """

    worker: I64
    start_s: F64
    finish_s: F64
    level: I64
    times_run: I64
    tries: I64
    steals: I64
    steal_latency_s: F64
    success: F64
    queue_sigma: float
    task_s: float
    remote_data_s: float

    @property
    def makespan_s(self) -> float:
        """When the last task ends."""
        return float(self.finish_s.max())

    @property
    def total_cost_s(self) -> float:
        """The chapter's C_total."""
        return total_cost(self.queue_sigma, self.task_s, self.steal_latency_s)


def total_cost(queue_sigma: float, task_s: float, steal_latency_s: npt.ArrayLike) -> float:
    """C_total = sigma(Q) T_task + sum over levels of N_steal L_ij [1].

    Args:
        queue_sigma: standard deviation of queue lengths.
        task_s: mean time of a task.
        steal_latency_s: N_steal L_ij of each level.
    """
    return float(queue_sigma * task_s + np.sum(steal_latency_s))


def simulate_stealing(
    topology: Topology, tasks: TaskSet, rules: StealingRules, rng: np.random.Generator
) -> StealingResult:
    """Run all tasks.

    Args:
        topology: the machine; each of its cores is a worker, numbered node by node.
        tasks: what comes to whom, and when.
        rules: how workers steal.
        rng: who is looked at.

    Raises:
        ValueError: a task is for a worker that the machine does not have.
    """
    node = worker_nodes(topology)
    if tasks.worker.max() >= len(node):
        raise ValueError(f"worker must be in 0..{len(node) - 1} on {topology.name!r}, got {tasks.worker.max()}.")
    victims, begins = victims_by_level(topology)
    run_s = tasks.run_s(topology)
    problem = kernel.Problem(tasks.arrival_s, tasks.worker, run_s, node, topology.latency_s, victims, begins)
    run = _empty_run(len(run_s), len(node), rng)
    area, taken_s = kernel.simulate(problem, _kernel_rules(rules), run)
    ran_on, home = node[run.worker], node[tasks.worker]
    taken = np.arange(len(run_s))
    data_s = run_s[taken, ran_on] - tasks.compute_s
    return StealingResult(
        **{name: getattr(run, name) for name in ("worker", "start_s", "level", "times_run", "tries", "steals")},
        finish_s=run.start_s + run_s[taken, ran_on],
        steal_latency_s=run.steal_latency_s,
        success=run.success,
        queue_sigma=float(area / taken_s) if taken_s > 0.0 else 0.0,
        task_s=float(run_s[taken, home].mean()),
        remote_data_s=float(data_s[ran_on != home].sum()),
    )


def _kernel_rules(rules: StealingRules) -> kernel.Rules:
    return kernel.Rules(
        KERNEL_STRATEGY[rules.strategy],
        np.array(rules.thresholds, np.float64),
        np.array(rules.probabilities, np.float64),
        float(rules.rate),
        float(rules.least_share),
        float(rules.pause_s),
    )


def _empty_run(num_tasks: int, num_workers: int, rng: np.random.Generator) -> kernel.Run:
    """Nothing has come, and everybody sleeps."""

    def nobody(count: int) -> I64:
        return np.full(count, kernel.NOBODY, np.int64)

    return kernel.Run(
        worker=nobody(num_tasks),
        start_s=np.zeros(num_tasks),
        level=np.zeros(num_tasks, np.int64),
        times_run=np.zeros(num_tasks, np.int64),
        tries=np.zeros(NUM_LEVELS, np.int64),
        steals=np.zeros(NUM_LEVELS, np.int64),
        steal_latency_s=np.zeros(NUM_LEVELS),
        success=np.full((num_workers, NUM_LEVELS), FIRST_SUCCESS),
        newer=nobody(num_tasks),
        older=nobody(num_tasks),
        newest=nobody(num_workers),
        oldest=nobody(num_workers),
        length=np.zeros(num_workers, np.int64),
        wake_s=np.full(num_workers, np.inf),
        random=rng.integers(0, 2**64, size=1, dtype=np.uint64),
    )

"""HEFT: tasks by their distance from the end, each to where it finishes first.

Dimension key: n = T tasks, m edges, P = N nodes.

References:
    [1] H. Topcuoglu, S. Hariri, M.-Y. Wu, "Performance-effective and low-complexity task scheduling for heterogeneous
        computing", IEEE Transactions on Parallel and Distributed Systems 13(3), 2002.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from agents.accesses import accesses
from agents.planners.base import TaskPlanner, local_task_s
from agents.planners.heft_kernel import Cores, Graph, Schedule, select_processors
from numa_rl.idle import core_s_per_byte
from numa_rl.topology import Topology
from numa_rl.workloads.task_graph import topological_order, upward_rank
from numa_rl.workloads.workload import Workload

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

RANK_DIGITS = 12  # ranks that differ beyond this are equal but for rounding


def heft_schedule(
    cost: npt.ArrayLike,
    edges: npt.ArrayLike,
    volume: npt.ArrayLike,
    *,
    time_per_unit: npt.ArrayLike | None = None,
    startup: npt.ArrayLike | None = None,
    cores: npt.ArrayLike | None = None,
    release: npt.ArrayLike | None = None,
    holder: npt.ArrayLike | None = None,
) -> Schedule:
    """Heterogeneous earliest finish time [1], insertion-based, on nodes with one core or more.

    Tasks are taken by upward rank, the largest first: mean cost plus the largest sum of the mean communication to one
    that waits and that one's rank; of equal ranks the one that comes first in the graph. The mean of communication is
    over all pairs of different nodes.

    Args:
        cost: time of each task on each node, shape (n, P).
        edges: pairs (before, after) of tasks, shape (m, 2).
        volume: what passes along each edge, shape (m,).
        time_per_unit: time that a task on the first node takes for a unit from the second, shape (P, P); by default 1,
            and volumes are times. What is on the task's own node takes none.
        startup: time besides that for anything, likewise, by default 0.
        cores: of each node, shape (P,), by default 1. A node without cores runs nothing.
        release: when each task may start, shape (n,), by default 0.
        holder: the task on whose node the data of each edge is, shape (m,), by default the one before. It must come
            before in the graph, or be the one before.

    Returns:
        Where and when each task runs.

    Raises:
        ValueError: shapes that do not fit, a cycle, no core, or a time that is negative or not finite.
    """
    times = _times("cost", cost, (-1, -1))
    n, p = times.shape
    pairs = np.asarray(edges, np.int64).reshape(-1, 2)
    m = len(pairs)
    amount = _times("volume", volume, (m,))
    slow = _times("time_per_unit", np.ones((p, p)) if time_per_unit is None else time_per_unit, (p, p))
    late = _times("startup", np.zeros((p, p)) if startup is None else startup, (p, p))
    may_start = _times("release", np.zeros(n) if release is None else release, (n,))
    held_by = pairs[:, 0] if holder is None else np.asarray(holder, np.int64)
    count = np.ones(p, np.int64) if cores is None else np.asarray(cores, np.int64)
    if count.shape != (p,) or (count < 0).any() or not count.any():
        raise ValueError(f"cores must be >= 0 of each of {p} nodes, and not all 0, got {count.tolist()}.")
    if held_by.shape != (m,) or ((held_by < 0) | (held_by >= n)).any():
        raise ValueError(f"holder must be a task in 0..{n - 1} for each of {m} edges, got shape {held_by.shape}.")

    apart = ~np.eye(p, dtype=bool) & (count > 0) & (count[:, None] > 0)
    between = amount * slow[apart].mean() + (amount > 0) * late[apart].mean() if apart.any() else np.zeros(m)
    rank = upward_rank(times[:, count > 0].mean(axis=1), pairs, between)
    position = np.argsort(topological_order(n, pairs))
    order = np.lexsort((position, -_rounded(rank)))

    by_task = np.argsort(pairs[:, 1], kind="stable")
    graph = Graph(
        cost=times,
        release=may_start,
        first_edge=np.concatenate([[0], np.cumsum(np.bincount(pairs[:, 1], minlength=n))]),
        before=pairs[by_task, 0],
        holder=held_by[by_task],
        volume=amount[by_task],
        time_per_unit=slow,
        startup=late,
    )
    first = np.concatenate([[0], np.cumsum(np.minimum(count, n))])  # more cores than tasks are never used
    all_cores = Cores(first, np.zeros(first[-1], np.int64), *np.zeros((2, first[-1], n)))
    schedule = Schedule(np.full(n, -1), np.zeros(n), np.zeros(n))
    select_processors(graph, order, all_cores, schedule)
    return schedule


def _times(name: str, values: npt.ArrayLike, shape: tuple[int, ...]) -> F64:
    """The values as floats of that shape, -1 for any length.

    Raises:
        ValueError: another shape, or a time that is negative or not finite.
    """
    array = np.ascontiguousarray(values, np.float64)
    if array.ndim != len(shape) or any(want not in (-1, got) for want, got in zip(shape, array.shape, strict=True)):
        raise ValueError(f"{name} must have shape {str(shape).replace('-1', 'any')}, got {array.shape}.")
    bad = ~(np.isfinite(array) & (array >= 0.0))
    if bad.any():
        raise ValueError(f"{name} must be finite and >= 0, got {array[bad][0]}.")
    return array


def _rounded(rank: F64) -> F64:
    """Ranks without the noise of their sums, so that ties are ties."""
    largest = rank.max(initial=0.0)
    return np.round(rank / largest, RANK_DIGITS) if largest > 0.0 else rank


@dataclass(frozen=True)
class Heft(TaskPlanner):
    """HEFT [1] on the idle machine's figures; it knows the whole episode.

    A task costs what it takes on a node with all its data there, and data that lies elsewhere comes later by what the
    longer way adds. An object lies where the task that created it runs. In a stream a task starts no earlier than it
    arrives. Where the schedule lets a task slip into a gap before others, the simulator, which starts tasks in the
    order of their arrival, may run it later.
    """

    name: ClassVar[str] = "heft"
    whole_nodes: ClassVar[bool] = False

    def task_nodes(self, workload: Workload, episode: int, topology: Topology) -> I64:
        """See `TaskPlanner.task_nodes`."""
        taken = accesses(workload, episode)
        if self.whole_nodes:
            together = topology.flops_per_s * np.maximum(topology.cores, 1)
            topology = replace(topology, cores=np.minimum(topology.cores, 1), flops_per_s=together)
        s_per_byte = core_s_per_byte(topology)
        return heft_schedule(
            local_task_s(workload, episode, topology),
            np.stack([taken.writer, taken.task], axis=-1),
            taken.num_bytes,
            time_per_unit=np.maximum(s_per_byte - np.diagonal(s_per_byte)[:, None], 0.0),
            startup=np.maximum(topology.latency_s - np.diagonal(topology.latency_s)[:, None], 0.0),
            cores=topology.cores,
            release=workload.arrival_s[episode] - workload.arrival_s[episode, 0],
            holder=taken.creator,
        ).node


@dataclass(frozen=True)
class HeftNodes(Heft):
    """HEFT with each node as one processor: its cores compute a task together and share its memory.

    HEFT's processors do not slow each other down. The cores of a node do, where tasks are bound by memory: as a
    processor each, they get more of them than their memory can serve.
    """

    name: ClassVar[str] = "heft-nodes"
    whole_nodes: ClassVar[bool] = True

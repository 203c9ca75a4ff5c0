"""Where the time of a machine's cores goes: computing, local memory, remote memory, synchronisation.

**Core time** is cores x makespan: what the machine could have spent on the work between its first task's start and its
last one's end. Every second of a core in that time is one of:

=================  ===================================================================================================
compute            arithmetic, at the peak of the core
local memory       accesses to the core's own node that arithmetic does not hide
remote memory      the same to other nodes; migrations and copies; asking another node's cache for lines
synchronisation    what software adds to messages, and idle: waiting for inputs, for the last task, or for nothing to do
=================  ===================================================================================================

A task overlaps its arithmetic with accesses to its own object (the roofline), so of these only the time beyond the
arithmetic counts as memory's; inputs are read before and count whole. The four shares sum to 1.

Dimension key: R runs (rows of a simulator), T tasks, N nodes.

References:
    [1] The chapter, section 16.4.4: the case study's time by compute, local, remote and synchronisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from numa_rl.breakdown_kernel import write_local_shares
from numa_rl.idle import core_s_per_byte
from numa_rl.metrics import pair_bytes
from numa_rl.simulator.simulator import Simulator
from numa_rl.simulator.state import Outcome, allocate_work
from numa_rl.topology import FloatArray, Topology

Bool = npt.NDArray[np.bool_]

PARTS = ("compute", "local", "remote", "synchronisation")


@dataclass(frozen=True, eq=False)
class TaskTimes:
    """When tasks ran, and what each did with its core meanwhile, shape (R, T) each.

    Attributes:
        start_s: when it got its core; NaN for tasks that never did.
        compute_s: arithmetic.
        local_s: accesses to its own node beyond that.
        remote_s: accesses to other nodes beyond that, moves and coherence included.
        overhead_s: what it takes besides.

    Raises:
        ValueError: shapes differ, or a time is negative.
    """

    start_s: FloatArray
    compute_s: FloatArray
    local_s: FloatArray
    remote_s: FloatArray
    overhead_s: FloatArray

    def __post_init__(self) -> None:
        """Check shapes and ranges."""
        for name in ("compute_s", "local_s", "remote_s", "overhead_s"):
            values = getattr(self, name)
            if values.shape != self.start_s.shape:
                raise ValueError(f"{name} must have shape {self.start_s.shape} to match start_s, got {values.shape}.")
            if not (values >= 0.0).all():
                raise ValueError(f"{name} must be >= 0, got {values[~(values >= 0.0)].flat[0]}.")

    @property
    def busy_s(self) -> FloatArray:
        """For how long each task held its core."""
        return self.compute_s + self.local_s + self.remote_s + self.overhead_s

    @property
    def finish_s(self) -> FloatArray:
        """When it gave the core back."""
        return np.asarray(self.start_s + self.busy_s)


@dataclass(frozen=True, eq=False)
class CoreTime:
    """Where core time went, shape (R,) each; the four shares sum to 1.

    Attributes:
        begin_s: when the first task started.
        end_s: when the last one ended.
        compute: share of the core time.
        local: likewise.
        remote: likewise.
        synchronisation: likewise.
    """

    begin_s: FloatArray
    end_s: FloatArray
    compute: FloatArray
    local: FloatArray
    remote: FloatArray
    synchronisation: FloatArray

    @property
    def makespan_s(self) -> FloatArray:
        """From the first start to the last end."""
        return self.end_s - self.begin_s


def core_time(times: TaskTimes, num_cores: int, counted: npt.ArrayLike | None = None) -> CoreTime:
    """Where the core time of some tasks went [1].

    Where others run in the same span, as those that load what is worked on, the time for which they hold cores then
    is nobody's: it is taken off the cores' time.

    Args:
        times: of all tasks.
        num_cores: of the machine.
        counted: the tasks whose time it is, shape (T,); all by default.

    Raises:
        ValueError: no core, or none of these tasks ran or took time in some run.
    """
    if num_cores < 1:
        raise ValueError(f"num_cores must be >= 1, got {num_cores}.")
    mine = np.ones(times.start_s.shape[1], bool) if counted is None else np.asarray(counted, bool)
    ran = ~np.isnan(times.start_s)
    works, other = ran & mine, ran & ~mine
    begin_s = np.where(works, times.start_s, np.inf).min(axis=1, initial=np.inf)
    end_s = np.where(works, times.finish_s, -np.inf).max(axis=1, initial=-np.inf)
    if not (end_s > begin_s).all():
        raise ValueError(
            f"counted tasks must run and take time in every run, got none in {np.flatnonzero(~(end_s > begin_s))}."
        )
    first_s, last_s = begin_s[:, None], end_s[:, None]
    taken_s = np.clip(times.finish_s, first_s, last_s) - np.clip(times.start_s, first_s, last_s)
    available_s = num_cores * (end_s - begin_s) - np.where(other, taken_s, 0.0).sum(axis=1)

    def share(seconds: FloatArray) -> FloatArray:
        return np.asarray(np.where(works, seconds, 0.0).sum(axis=1) / available_s)

    compute, local, remote = share(times.compute_s), share(times.local_s), share(times.remote_s)
    idle = 1.0 - share(times.busy_s)
    return CoreTime(begin_s, end_s, compute, local, remote, np.maximum(share(times.overhead_s) + idle, 0.0))


class Recorder:
    """Steps a simulator and writes down what every task did with its core.

    Args:
        simulator: all of its rows on one machine and at their first task.
        counted: the tasks whose traffic is counted, shape (T,); all by default.

    Attributes:
        simulator: the same.

    Raises:
        ValueError: rows on different machines, a run that has begun, or a mask of another shape.
    """

    def __init__(self, simulator: Simulator, counted: npt.ArrayLike | None = None) -> None:
        """Begin with nothing written."""
        machines = np.unique(simulator.state.machine)
        if len(machines) != 1:
            raise ValueError(f"rows must be on one machine, got machines {machines.tolist()}.")
        if simulator.state.task.any():
            raise ValueError(f"runs must be recorded from their first task on, got task {simulator.state.task.max()}.")
        shape = (simulator.num_rows, simulator.workload.num_tasks)
        self.simulator = simulator
        self._counted = np.ones(shape[1], bool) if counted is None else np.asarray(counted)
        if self._counted.shape != shape[1:] or self._counted.dtype != np.bool_:
            raise ValueError(f"counted must be a mask of {shape[1]} tasks, got shape {self._counted.shape}.")
        self._topology: Topology = simulator.topologies[machines[0]]
        self._s_per_byte = core_s_per_byte(self._topology)
        self._start_s = np.full(shape, np.nan)
        self._parts_s = {name: np.zeros(shape) for name in ("compute_s", "local_s", "remote_s", "overhead_s")}
        self._moved_bytes = np.zeros_like(pair_bytes(simulator))
        self._work = allocate_work(simulator.machines)

    @property
    def times(self) -> TaskTimes:
        """What has been written so far."""
        return TaskTimes(self._start_s.copy(), **{name: part.copy() for name, part in self._parts_s.items()})

    @property
    def moved_bytes(self) -> FloatArray:
        """Bytes read, then written, by counted tasks between each initiator and target, shape (R, N, N, 2)."""
        return self._moved_bytes.copy()

    def step(self, actions: npt.NDArray[Any]) -> Outcome:
        """`Simulator.step`, written down."""
        simulator, state = self.simulator, self.simulator.state
        checked = simulator.checked(actions)
        input_share = np.zeros(simulator.num_rows)
        write_local_shares(
            simulator.machines,
            simulator.tasks,
            state,
            np.ascontiguousarray(checked[:, 0]),
            self._work,
            input_share,
        )
        task, now_s, before = state.task.copy(), state.now_s.copy(), pair_bytes(simulator)
        outcome = simulator.step(actions)
        row = np.flatnonzero((state.task > task) & ~outcome.out_of_memory)
        at = (row, task[row])
        self._moved_bytes[row] += np.where(
            self._counted[at[1], None, None, None], (pair_bytes(simulator) - before)[row], 0.0
        )
        self._start_s[at] = now_s[row] + outcome.wait_s[row]
        self._write(row, at[1], input_share[row], self._own_local_share(checked[row], row))
        return outcome

    def _own_local_share(self, actions: npt.NDArray[np.int64], row: npt.NDArray[np.integer]) -> FloatArray:
        """Share of the time with their own objects that tasks spend on their own node, as idle memory has it."""
        outcome, n = self.simulator.outcome, self._topology.num_nodes
        held = np.zeros((len(row), n))
        whole = np.ones(len(row), bool)
        if actions.shape[1] > 2:  # pages in these proportions, unless full nodes did not let them
            held = actions[:, 2 : 2 + n].astype(np.float64)
            whole = (held.sum(axis=1) == 0) | outcome.fell_back[row]
        held[whole] = 0.0
        held[whole, outcome.data_node[row[whole]]] = 1.0
        node = outcome.task_node[row]
        seconds = held * self._s_per_byte[node]
        return np.asarray(seconds[np.arange(len(row)), node] / seconds.sum(axis=1))

    def _write(
        self,
        row: npt.NDArray[np.integer],
        task: npt.NDArray[np.integer],
        input_share: FloatArray,
        own_share: FloatArray,
    ) -> None:
        """Divide the time of the tasks just decided by what they did."""
        simulator, outcome = self.simulator, self.simulator.outcome
        workload, episode = simulator.workload, simulator.state.episode[row]
        overhead_s = workload.overhead_s[episode, task].astype(np.float64)
        service_s = outcome.exec_s[row] - outcome.wait_s[row]
        peak = self._topology.flops_per_s[outcome.task_node[row]]
        compute_s = np.minimum(workload.flops[episode, task] / peak, service_s)
        own_s = np.maximum(service_s - overhead_s - compute_s, 0.0)
        moving_s = outcome.migration_s[row] + outcome.coherence_s[row]
        inputs_s = np.maximum(outcome.comm_s[row] - moving_s, 0.0)
        parts = {
            "compute_s": compute_s,
            "local_s": own_share * own_s + input_share * inputs_s,
            "remote_s": (1.0 - own_share) * own_s + (1.0 - input_share) * inputs_s + moving_s,
            "overhead_s": overhead_s,
        }
        for name, seconds in parts.items():
            self._parts_s[name][row, task] = seconds

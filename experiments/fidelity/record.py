"""Playing our simulator and writing down what it decided, as replays.

Dimension key: B rows, T tasks, P inputs, F flows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from agents.evaluation import decisions
from agents.rules.base import Rule
from agents.scheduler import Planner, Scheduler
from agents.scheduler import Replay as Plan
from envs.observation import ObservationKind, Observer
from envs.world import World
from experiments.fidelity.record_kernel import FLOWS_PER_NODE, write_all_flows
from experiments.fidelity.replay import FLOW, Replay
from numa_rl.simulator.simulator import Simulator
from numa_rl.simulator.state import Outcome, allocate_state, allocate_work

I64 = npt.NDArray[np.int64]
NOBODY = -1


def record(world: World, scheduler: Scheduler | Planner, episodes: npt.ArrayLike | None = None) -> list[Replay]:
    """Play episodes to their end, each on every machine of the world, and write down what was decided.

    Args:
        world: what is scheduled. Rules are shown the full observation, whatever the world's is.
        scheduler: who decides.
        episodes: which episodes of the pool, an index array; every one once by default.

    Returns:
        A replay for each: machine by machine, episodes in order.

    Raises:
        ValueError: no episode, or one out of range.
    """
    pool = np.arange(world.workload.num_episodes) if episodes is None else np.asarray(episodes)
    if pool.ndim != 1 or not pool.size or pool.dtype.kind not in "iu":
        raise ValueError(f"episodes must be one or more indices, got {episodes!r}.")
    if isinstance(scheduler, Rule):
        world = replace(world, observation=ObservationKind.FULL)
    machine = np.repeat(np.arange(len(world.topologies)), len(pool))
    episode = np.tile(pool, len(world.topologies))
    simulator = Recorder(world, machine, episode)
    observer = Observer(simulator, world.weights, world.observation)
    if isinstance(scheduler, Planner):
        scheduler = Plan(scheduler.name, scheduler.plan(world, machine, episode))
    for _ in decisions(scheduler, simulator, observer):
        pass
    return simulator.replays()


class Recorder(Simulator):
    """A simulator that writes down what it is told to decide; it decides as any other.

    Args:
        world: what is scheduled.
        machine: which of its machines each row plays on, shape (B,).
        episode: which episode of its pool, shape (B,).
    """

    def __init__(self, world: World, machine: I64, episode: I64) -> None:
        """Put every row at its first task."""
        super().__init__(world.topologies, world.workload, len(episode), window_s=world.window_s)
        rows, num_tasks, num_inputs = len(episode), world.workload.num_tasks, world.workload.inputs.shape[2]
        self._rows = np.arange(rows)
        self._task_flows = np.zeros((rows, FLOWS_PER_NODE * self.num_nodes), FLOW)
        self._counts = np.zeros((rows, 2), np.int64)
        self._idle = allocate_state(self.num_rows, self.machines, num_objects=1)
        self._row_work = allocate_work(self.machines)
        self._flows: list[list[npt.NDArray[np.void]]] = [[] for _ in range(rows)]
        self._writer = np.full((rows, world.workload.num_objects), NOBODY)
        self._waits = np.full((rows, num_tasks, num_inputs + 1), NOBODY)
        self._node = np.full((rows, num_tasks), -1)
        self._response_s, self._finish_s = np.full((2, rows, num_tasks), np.inf)
        self.reset(episode, machines=machine)

    def step(self, actions: npt.NDArray[Any]) -> Outcome:
        """See `Simulator.step`."""
        actions = self.checked(actions)
        task = int(self.state.task[0])
        self._idle.machine[:] = self.state.machine
        arrays = (self.machines, self.tasks, self.state, self._idle, actions)
        write_all_flows(*arrays, self._task_flows, self._counts, self._row_work)
        own = self.workload.object[self.state.episode, task]
        accessed = np.column_stack([own, self.workload.inputs[self.state.episode, task]])
        self._waits[:, task] = np.where(accessed < 0, NOBODY, self._writer[self._rows[:, None], accessed])
        is_new = self.state.objects["node"][self._rows, own] < 0
        now_s = self.state.now_s.copy()

        outcome = super().step(actions)
        ran = ~outcome.out_of_memory
        response_s = outcome.exec_s + outcome.comm_s
        self._node[ran, task] = outcome.task_node[ran]
        self._response_s[ran, task] = response_s[ran]
        self._finish_s[ran, task] = (now_s + response_s)[ran]
        writes = self.workload.write_fraction[self.state.episode, task] > 0
        writers = np.flatnonzero(ran & (is_new | outcome.migrated | writes))
        self._writer[writers, own[writers]] = task
        for row in np.flatnonzero(ran):
            count, access = self._counts[row]
            flows = self._task_flows[row, :count].copy()
            flows["task"] = task
            flows["fixed_s"][access] += outcome.coherence_s[row]
            self._flows[row].append(flows)
        return outcome

    def replays(self) -> list[Replay]:
        """What has been decided in each row, once all have been played to their end."""
        return [self._replay(row) for row in range(self.num_rows)]

    def _replay(self, row: int) -> Replay:
        waits = tuple(tuple(sorted({int(task) for task in before} - {NOBODY})) for before in self._waits[row])
        return Replay(
            topology=self.topologies[self.state.machine[row]],
            arrival_s=self.workload.arrival_s[self.state.episode[row]],
            node=self._node[row],
            follows_inputs=self.workload.follows_inputs,
            waits=waits,
            flows=np.concatenate([np.zeros(0, FLOW), *self._flows[row]]),
            response_s=self._response_s[row],
            finish_s=self._finish_s[row],
            window_s=float(self.window_s),
        )

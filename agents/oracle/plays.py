"""Playing episodes with somebody and writing down what was decided and what that cost.

Dimension key: R rows = machine x episode, T tasks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from agents.evaluation import decisions
from agents.scheduler import Actions, Memory, Planner, Replay, Scheduler
from envs.observation import ObservationKind, Observer
from envs.world import World
from numa_rl.simulator.simulator import Simulator

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


class _Recorder:
    """A scheduler that decides as another one does, and remembers it."""

    name = "recorder"

    def __init__(self, scheduler: Scheduler) -> None:
        """Nothing has been decided yet."""
        self.scheduler = scheduler
        self.decided: list[Actions] = []

    def predict(
        self,
        observation: npt.NDArray[Any],
        state: Memory = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[Actions, Memory]:
        """See `Scheduler.predict`."""
        actions, state = self.scheduler.predict(observation, state, episode_start, deterministic)
        self.decided.append(np.array(actions))
        return actions, state


def played(
    who: Scheduler | Planner | Actions, world: World, machine: I64, episode: I64, num_threads: int = 1
) -> tuple[Actions, F64]:
    """The placements of a scheduler, a planner or a plan, and what each row's episode then costs.

    Args:
        who: decides; schedulers see the full observation.
        world: what is scheduled.
        machine: which of its machines each row plays on, shape (R,).
        episode: which episode of its pool, shape (R,).
        num_threads: threads that share the rows in the simulator.

    Returns:
        (placements, shape (R, T, 2) or (R, T, 2 + N); summed costs -R, shape (R,)).
    """
    simulator = Simulator(
        world.topologies, world.workload, len(episode), window_s=world.window_s, num_threads=num_threads
    )
    simulator.reset(episode, machines=machine)
    observer = Observer(simulator, world.weights, ObservationKind.FULL)
    if isinstance(who, Planner):
        who = who.plan(world, machine, episode)
    recorder = _Recorder(Replay("plan", who) if isinstance(who, np.ndarray) else who)
    cost = np.zeros(len(episode))
    for outcome in decisions(recorder, simulator, observer):
        cost += world.weights.cost(outcome)
    return np.stack(recorder.decided, axis=1), cost

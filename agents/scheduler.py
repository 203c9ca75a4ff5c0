"""What everything that decides has in common: Stable-Baselines3's `predict`, on a batch of observation rows.

Who must see a whole episode before its first decision, as partitioners of task graphs do, is a `Planner`.

Dimension key: B rows, R rows = machine x episode, T tasks, N nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from envs.world import World

Actions = npt.NDArray[np.int64]
Memory = tuple[npt.NDArray[Any], ...] | None  # what a scheduler carries from one decision to the next


class Scheduler(Protocol):
    """A rule or a learned policy; Stable-Baselines3's `evaluate_policy` judges it too."""

    @property
    def name(self) -> str:
        """How tables call it."""
        ...

    def predict(
        self,
        observation: npt.NDArray[Any],
        state: Memory = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[Actions, Memory]:
        """Where to run the next task of every row and where to keep its object.

        Args:
            observation: rows of `envs.observation`, shape (B, size), or one row (size,). They may be overwritten
                after the call: what is needed later must be copied.
            state: what the last call returned; None at first.
            episode_start: rows whose episode starts now, so that their state is void, shape (B,).
            deterministic: the best placement rather than a sampled one.

        Returns:
            (task node, data node) of every row, shape (B, 2), or (2,) for one row; and the state.
        """
        ...


@runtime_checkable
class Planner(Protocol):
    """Who decides a whole episode at once, and so knows what is to come, which no `Scheduler` does."""

    @property
    def name(self) -> str:
        """How tables call it."""
        ...

    def plan(self, world: World, machine: npt.NDArray[np.int64], episode: npt.NDArray[np.int64]) -> Actions:
        """The placements of all tasks.

        Args:
            world: what is scheduled.
            machine: which of its machines each row plays on, shape (R,).
            episode: which episode of its pool, shape (R,).

        Returns:
            What `Scheduler.predict` would return, for every row and task, shape (R, T, 2) or (R, T, 2 + N).
        """
        ...


@dataclass(frozen=True, eq=False)
class Replay:
    """A scheduler that carries out a plan.

    Attributes:
        name: the planner's.
        actions: the placement of every task, shape (B, T, 2) or (B, T, 2 + N).
    """

    name: str
    actions: Actions

    def predict(
        self,
        observation: npt.NDArray[Any],
        state: Memory = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[Actions, Memory]:
        """See `Scheduler.predict`: row i of the observation is row i of the plan."""
        rows = np.arange(len(self.actions))
        task = np.zeros(len(rows), np.int64) if state is None else state[0]
        if episode_start is not None:
            task = np.where(episode_start, 0, task)
        return self.actions[rows, task], (task + 1,)

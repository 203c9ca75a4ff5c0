"""What every placement rule has in common, and what rules read off an observation.

A rule reads the full observation of `envs.observation` and nothing else. It never chooses a closed node while
another is open, and ties go to the lowest index. Its fields are its parameters: floats, or arrays of shape (B,)
that give every row of a batch its own setting.

Dimension key: B rows, N nodes, K numbers remembered; n = task node, d = data node.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from agents.scheduler import Actions, Memory
from envs.observation import ObservationKind, ObservationLayout
from envs.observation_kernel import TaskFeature

Array = npt.NDArray[Any]
Groups = Mapping[str, Array]
Parameter = float | Array  # one setting for all rows, or one for each, shape (B,)


class Placement(NamedTuple):
    """Where each row's task and object go.

    Attributes:
        task_node: shape (B,).
        data_node: shape (B,); not used in a row that has weights.
        weights: how the object's pages are spread over nodes, whole numbers in 0..255, shape (B, N); all zero in
            a row that is placed whole. None when the rule spreads nothing.
    """

    task_node: Array
    data_node: Array
    weights: Array | None = None

    def actions(self) -> Actions:
        """What `Scheduler.predict` returns, shape (B, 2) or (B, 2 + N)."""
        columns = 2 + (0 if self.weights is None else self.weights.shape[-1])
        actions = np.empty((len(self.task_node), columns), np.int64)
        actions[:, 0], actions[:, 1] = self.task_node, self.data_node
        if self.weights is not None:
            actions[:, 2:] = self.weights
        return actions


@dataclass(frozen=True)
class Range:
    """Where a parameter is searched.

    Attributes:
        low: smallest value.
        high: largest value.
        log: whether equal ratios count as equal steps.
    """

    low: float
    high: float
    log: bool = False

    def at(self, share: Array) -> Array:
        """Values that lie at these shares, in [0, 1], of the range."""
        if self.log:
            return np.asarray(self.low * (self.high / self.low) ** share)
        return np.asarray(self.low + (self.high - self.low) * share)

    def share(self, value: float) -> float:
        """Which share of the range lies below a value, clipped to [0, 1]."""
        if self.log:
            share = np.log(max(value, self.low) / self.low) / np.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return float(np.clip(share, 0.0, 1.0))


@dataclass(frozen=True)
class Rule(ABC):
    """A rule; a subclass says where things go, and how many numbers it remembers while an episode lasts.

    Raises:
        ValueError: a parameter is not finite.
    """

    name: ClassVar[str]
    tunable: ClassVar[Mapping[str, Range]] = {}
    num_remembered: ClassVar[int] = 0  # K

    def __post_init__(self) -> None:
        """Check the parameters."""
        for item in fields(self):
            value = getattr(self, item.name)
            if not np.isfinite(value).all():
                raise ValueError(f"{self.name}: {item.name} must be finite, got {value}.")

    @abstractmethod
    def place(self, groups: Groups, memory: Array) -> Placement:
        """Where each row's task and object go.

        Args:
            groups: the groups of the observation, shapes (B, ...); read only.
            memory: what each row remembers, float64, shape (B, K), zeros when its episode starts. What is to be
                remembered until the next decision is written here.
        """

    def predict(
        self,
        observation: npt.NDArray[Any],
        state: Memory = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[Actions, Memory]:
        """See `Scheduler.predict`; a rule always does the same for the same rows and state.

        Raises:
            ValueError: the rows are not full observations.
        """
        rows = np.atleast_2d(observation)
        groups = _layout(rows.shape[-1]).split(rows)
        memory = np.zeros((len(rows), self.num_remembered)) if state is None else state[0].copy()
        if episode_start is not None:
            memory[np.atleast_1d(episode_start)] = 0
        actions = self.place(groups, memory).actions()
        return (actions[0] if np.ndim(observation) == 1 else actions), (memory,)


@lru_cache
def _layout(size: int) -> ObservationLayout:
    layout = ObservationLayout.of_size(size)
    if layout.kind != ObservationKind.FULL:
        raise ValueError(f"rules read the full observation, got the one of kind {layout.kind.value!r}.")
    return layout


def per_row(value: Parameter, extra_axes: int) -> Array:
    """A parameter as float32 that broadcasts against (B, N) for one extra axis, (B, N, N) for two."""
    array = np.asarray(value, np.float32)
    return array.reshape(array.shape + (1,) * extra_axes) if array.ndim else array


def lowest(scores: Array, mask: Array) -> Array:
    """The open node with the lowest score, shape (B,)."""
    return np.asarray(np.where(mask > 0, scores, np.inf).argmin(axis=-1))


def lowest_pair(scores: Array, groups: Groups) -> tuple[Array, Array]:
    """The open task node and data node with the lowest score (B, N, N)."""
    is_open = (groups["task_mask"][:, :, None] > 0) & (groups["data_mask"][:, None, :] > 0)
    flat = np.where(is_open, scores, np.inf).reshape(len(scores), -1).argmin(axis=-1)
    return flat // scores.shape[-1], flat % scores.shape[-1]


def lowest_task_node(scores: Array, data_node: Array, groups: Groups) -> Array:
    """The open task node with the lowest score (B, N, N) given where the data is."""
    return lowest(scores[np.arange(len(scores)), :, data_node], groups["task_mask"])


def nth_open(turn: Array, mask: Array) -> Array:
    """The open node whose turn it is: 0 is the first one open, and after the last comes the first."""
    is_open = mask > 0
    turn = turn % np.maximum(is_open.sum(axis=-1), 1).astype(turn.dtype)
    return np.asarray((is_open.cumsum(axis=-1) > turn[:, None]).argmax(axis=-1))


def nearest(node: Array, mask: Array, groups: Groups) -> Array:
    """That node if it is open, else the open one it reaches with the least latency."""
    rows = np.arange(len(node))
    distance = groups["latency"][rows, node]
    distance[rows, node] = -1.0
    return lowest(distance, mask)


def is_new(groups: Groups) -> Array:
    """Whether the object does not live anywhere yet, shape (B,)."""
    return groups["task"][:, TaskFeature.IS_NEW] > 0


def data_stays(new_node: Array, groups: Groups) -> Array:
    """A new object on `new_node`, an old one where it is, each on the nearest open node if that one is full."""
    node = np.where(is_new(groups), new_node, groups["data"].argmax(axis=-1))
    return nearest(node, groups["data_mask"], groups)


def unless_overloaded(node: Array, wanted: Array, tolerance: Parameter, groups: Groups) -> Array:
    """Those task nodes where they are wanted, open and not overloaded, else the least loaded one, shape (B,).

    Args:
        node: where the tasks would run, shape (B,).
        wanted: rows in which that node means something, shape (B,).
        tolerance: overloaded is who has more than this times the least outstanding work.
        groups: of the observation.
    """
    rows = np.arange(len(node))
    queue, mask = groups["queue"], groups["task_mask"]
    least = lowest(queue, mask)
    stays = wanted & (mask[rows, node] > 0) & (queue[rows, node] <= per_row(tolerance, 0) * queue[rows, least])
    return np.where(stays, node, least)


def page_rows(rows: Array, weights: Array) -> Array:
    """Page weights in some rows (B,) and zeros, which spread nothing, in the others, shape (B, N)."""
    return np.where(rows[:, None], weights, 0)


def is_split(groups: Groups) -> Array:
    """Whether the object's pages lie on several nodes, shape (B,): then no node has all of it."""
    return np.asarray(~is_new(groups) & (groups["data"].max(axis=-1) < 1.0))

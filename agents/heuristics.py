"""Placement rules: what a learned policy has to beat.

A rule reads the full observation of `envs.observation` and nothing else. It never chooses a closed node while
another is open, and ties go to the lowest index. Its fields are its parameters: floats, or arrays of shape (B,)
that give every row of a batch its own setting.

Dimension key: B rows, N nodes; n = task node, d = data node.

References:
    [1] The chapter, section 16.2.2: the migration score.
    [2] H. Topcuoglu, S. Hariri, M.-Y. Wu, "Performance-effective and low-complexity task scheduling for
        heterogeneous computing", IEEE TPDS 13(3), 2002: HEFT's earliest finish time.
    [3] Linux, Documentation/admin-guide/mm/numa_memory_policy.rst: local allocation and interleave.
    [4] Linux, kernel/sched/topology.c: `imbalance_pct` is 117 since 5.10.
    [5] G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from agents.scheduler import Actions, Memory
from envs.observation import ObservationKind, ObservationLayout
from envs.observation_kernel import TaskFeature

Array = npt.NDArray[Any]
Groups = Mapping[str, Array]
Parameter = float | Array  # one setting for all rows, or one for each, shape (B,)
Placement = tuple[Array, Array]  # task node and data node of every row, shape (B,) each


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
    """A rule; a subclass says where things go.

    Raises:
        ValueError: a parameter is not finite.
    """

    name: ClassVar[str]
    tunable: ClassVar[Mapping[str, Range]] = {}

    def __post_init__(self) -> None:
        """Check the parameters."""
        for item in fields(self):
            value = getattr(self, item.name)
            if not np.isfinite(value).all():
                raise ValueError(f"{self.name}: {item.name} must be finite, got {value}.")

    @abstractmethod
    def place(self, groups: Groups, turn: Array) -> Placement:
        """Where each row's task and object go.

        Args:
            groups: the groups of the observation, shapes (B, ...).
            turn: how often the row's counter has moved in this episode, shape (B,).
        """

    def advance(self, groups: Groups, turn: Array) -> Array:
        """The counter after this decision; most rules count nothing."""
        return turn

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
        turn = np.zeros(len(rows), np.int64) if state is None else state[0]
        if episode_start is not None:
            turn = np.where(episode_start, 0, turn)
        actions = np.stack(self.place(groups, turn), axis=-1)
        turn = self.advance(groups, turn)
        return (actions[0] if np.ndim(observation) == 1 else actions), (turn,)


@lru_cache
def _layout(size: int) -> ObservationLayout:
    layout = ObservationLayout.of_size(size)
    if layout.kind != ObservationKind.FULL:
        raise ValueError(f"rules read the full observation, got the one of kind {layout.kind.value!r}.")
    return layout


def _per_row(value: Parameter, extra_axes: int) -> Array:
    """A parameter as float32 that broadcasts against (B, N) for one extra axis, (B, N, N) for two."""
    array = np.asarray(value, np.float32)
    return array.reshape(array.shape + (1,) * extra_axes) if array.ndim else array


def _lowest(scores: Array, mask: Array) -> Array:
    """The open node with the lowest score, shape (B,)."""
    return np.asarray(np.where(mask > 0, scores, np.inf).argmin(axis=-1))


def _lowest_pair(scores: Array, groups: Groups) -> Placement:
    """The open pair with the lowest score (B, N, N)."""
    is_open = (groups["task_mask"][:, :, None] > 0) & (groups["data_mask"][:, None, :] > 0)
    flat = np.where(is_open, scores, np.inf).reshape(len(scores), -1).argmin(axis=-1)
    return flat // scores.shape[-1], flat % scores.shape[-1]


def _lowest_task_node(scores: Array, data_node: Array, groups: Groups) -> Array:
    """The open task node with the lowest score (B, N, N) given where the data is."""
    return _lowest(scores[np.arange(len(scores)), :, data_node], groups["task_mask"])


def _nth_open(turn: Array, mask: Array) -> Array:
    """The open node whose turn it is: 0 is the first one open, and after the last comes the first."""
    is_open = mask > 0
    turn = turn % np.maximum(is_open.sum(axis=-1), 1).astype(turn.dtype)
    return np.asarray((is_open.cumsum(axis=-1) > turn[:, None]).argmax(axis=-1))


def _nearest(node: Array, mask: Array, groups: Groups) -> Array:
    """That node if it is open, else the open one it reaches with the least latency."""
    rows = np.arange(len(node))
    distance = groups["latency"][rows, node]
    distance[rows, node] = -1.0
    return _lowest(distance, mask)


def _is_new(groups: Groups) -> Array:
    """Whether the object does not live anywhere yet, shape (B,)."""
    return groups["task"][:, TaskFeature.IS_NEW] > 0


def _data_stays(new_node: Array, groups: Groups) -> Array:
    """A new object on `new_node`, an old one where it is, each on the nearest open node if that one is full."""
    node = np.where(_is_new(groups), new_node, groups["data"].argmax(axis=-1))
    return _nearest(node, groups["data_mask"], groups)


def _mixed(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser: every bit of the result depends on every bit of the input [5]."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's increment


@dataclass(frozen=True)
class Random(Rule):
    """Task and data anywhere, uniformly over open nodes.

    It holds no generator: the draw is a hash of the seed and of the observation row's own bits, so a batch
    decides as its rows do, in any order, and the same row always gets the same placement.

    Attributes:
        seed: a whole number; another one is another sequence of placements.
    """

    name: ClassVar[str] = "random"
    seed: int = 0

    def predict(
        self,
        observation: npt.NDArray[Any],
        state: Memory = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[Actions, Memory]:
        """See `Rule.predict`; here the counter is the row's hash."""
        bits = np.atleast_2d(np.ascontiguousarray(observation, np.float32)).view(np.uint32).astype(np.uint64)
        seed = _mixed(np.array([self.seed], np.int64).view(np.uint64) * GOLDEN)
        keys = _mixed(np.arange(1, bits.shape[-1] + 1, dtype=np.uint64) * GOLDEN + seed)
        draw = _mixed((bits * (keys | np.uint64(1))).sum(axis=-1) + seed)
        actions, _ = super().predict(observation, (draw,))
        return actions, None

    def place(self, groups: Groups, turn: Array) -> Placement:
        """Task and data by the two halves of the draw."""
        low = turn & np.uint64(0xFFFFFFFF)
        return _nth_open(turn >> np.uint64(32), groups["task_mask"]), _nth_open(low, groups["data_mask"])


@dataclass(frozen=True)
class RoundRobin(Rule):
    """Tasks over nodes in turn; new data where the task runs, and data never moves."""

    name: ClassVar[str] = "round-robin"

    def place(self, groups: Groups, turn: Array) -> Placement:
        """The node whose turn it is."""
        node = _nth_open(turn, groups["task_mask"])
        return node, _data_stays(node, groups)

    def advance(self, groups: Groups, turn: Array) -> Array:
        """Every task is a turn."""
        return turn + 1


@dataclass(frozen=True)
class FirstTouch(Rule):
    """What Linux does when nobody pins anything: tasks follow the load, data stays where it was first touched [3].

    A task runs where its object has mostly been used, as Linux wakes a task where it last ran, unless that node's
    outstanding work exceeds the least by more than the tolerance; then it runs on the least loaded node.

    Attributes:
        tolerance: ratio of loads that the scheduler leaves alone; Linux's `imbalance_pct` is 117 percent [4].
    """

    name: ClassVar[str] = "first-touch"
    tunable: ClassVar[Mapping[str, Range]] = {"tolerance": Range(1.0, 100.0, log=True)}
    tolerance: Parameter = 1.17

    def place(self, groups: Groups, turn: Array) -> Placement:
        """The task where it last ran or on the least loaded node, new data with it."""
        rows = np.arange(len(turn))
        queue, access = groups["queue"], groups["access"]
        least, last = _lowest(queue, groups["task_mask"]), access.argmax(axis=-1)
        stays = (access[rows, last] > 0) & (groups["task_mask"][rows, last] > 0)
        stays &= queue[rows, last] <= _per_row(self.tolerance, 0) * queue[rows, least]
        node = np.where(stays, last, least)
        return node, _data_stays(node, groups)


@dataclass(frozen=True)
class Interleave(Rule):
    """New data over nodes in turn, as `numactl --interleave` does with pages [3]; tasks on the least loaded node."""

    name: ClassVar[str] = "interleave"

    def place(self, groups: Groups, turn: Array) -> Placement:
        """New data on the node whose turn it is."""
        data_node = _data_stays(_nth_open(turn, groups["data_mask"]), groups)
        return _lowest(groups["queue"], groups["task_mask"]), data_node

    def advance(self, groups: Groups, turn: Array) -> Array:
        """Every new object is a turn."""
        return turn + _is_new(groups)


@dataclass(frozen=True)
class DataAffinity(Rule):
    """Tasks where their data is; new data on the node with the smallest share of its memory in use."""

    name: ClassVar[str] = "data-affinity"

    def place(self, groups: Groups, turn: Array) -> Placement:
        """The data's node, or the nearest that can run tasks."""
        data_node = _data_stays(_lowest(groups["memory"], groups["data_mask"]), groups)
        return _nearest(data_node, groups["task_mask"], groups), data_node


@dataclass(frozen=True)
class ShortestQueue(Rule):
    """Tasks where the least work is outstanding; new data with the task, and data never moves."""

    name: ClassVar[str] = "shortest-queue"

    def place(self, groups: Groups, turn: Array) -> Placement:
        """The node that drains first."""
        node = _lowest(groups["queue"], groups["task_mask"])
        return node, _data_stays(node, groups)


@dataclass(frozen=True)
class Greedy(Rule):
    """The placement with the lowest T_exec + alpha T_comm now, as HEFT's earliest finish time [2]."""

    name: ClassVar[str] = "greedy"

    def place(self, groups: Groups, turn: Array) -> Placement:
        """The pair with the lowest estimate."""
        return _lowest_pair(groups["estimate"], groups)


@dataclass(frozen=True)
class MigrationScore(Rule):
    """The chapter's migration score [1]; tasks then run where the estimate is lowest.

    M(p, n) = alpha A_local - beta A_remote - gamma C_migrate: A_local are the recent accesses to object p from
    node n, A_remote those from all other nodes, and C_migrate the time to move p there. The object moves to the
    node with the highest score if M(target) - M(current) > theta. A new object is placed by the estimate. The
    chapter gives no values, and its batching of migrations has no counterpart where a decision moves one object.

    Only gamma / (alpha + beta) and theta / (alpha + beta) matter to a decision, so alpha and beta are not tuned.

    Attributes:
        local_weight: alpha.
        remote_weight: beta.
        migration_weight: gamma.
        threshold: theta.
    """

    name: ClassVar[str] = "migration-score"
    tunable: ClassVar[Mapping[str, Range]] = {
        "migration_weight": Range(0.001, 100.0, log=True),
        "threshold": Range(0.001, 10.0, log=True),
    }
    local_weight: Parameter = 1.0
    remote_weight: Parameter = 1.0
    migration_weight: Parameter = 1.0
    threshold: Parameter = 0.0

    def place(self, groups: Groups, turn: Array) -> Placement:
        """New data by the estimate, old data by the score, the task by the estimate."""
        rows = np.arange(len(turn))
        access, data_mask = groups["access"], groups["data_mask"]
        remote = access.sum(axis=-1, keepdims=True) - access
        score = _per_row(self.local_weight, 1) * access - _per_row(self.remote_weight, 1) * remote
        score = score - _per_row(self.migration_weight, 1) * groups["migration"]
        home, target = groups["data"].argmax(axis=-1), _lowest(-score, data_mask)
        moves = score[rows, target] - score[rows, home] > _per_row(self.threshold, 0)
        moves |= data_mask[rows, home] == 0
        _, best = _lowest_pair(groups["estimate"], groups)
        data_node = np.where(_is_new(groups), best, np.where(moves, target, home))
        return _lowest_task_node(groups["estimate"], data_node, groups), data_node


def priced_cost(
    groups: Mapping[str, Any], congestion_price: Any, crowding_price: Any, migration_share: Any, alpha: Any
) -> Any:
    """What each placement costs now, and a price for what it takes from tasks to come.

    cost(n, d) = estimate(n, d) + p1 congestion(n, d)
        + p2 (memory(d) + load(d)) if the object is new or moves to d
        - (1 - p3) alpha migration(d).

    The estimate already holds alpha migration(d), so the last term leaves p3 of it: who comes later profits
    from a move as well. load(d) is the offered load of d's memory controller, a column's sum of `communication`.

    Written with operators that numpy arrays and torch tensors share, so both compute this one formula.

    Args:
        groups: the groups of the observation, as `ObservationLayout.split` gives them, shapes (..., N), (..., N, N).
        congestion_price: p1, a number or broadcastable against (..., N, N).
        crowding_price: p2, a number or broadcastable against (..., N).
        migration_share: p3, likewise.
        alpha: the reward's weight of T_comm, likewise.

    Returns:
        Costs in units of the reference time, shape (..., N, N).
    """
    load = groups["communication"].sum(-2)
    moved = 1.0 - groups["data"]  # 1 but where the object lives: a new one lives nowhere
    at_data_node = data_node_price(
        groups["memory"], load, moved, groups["migration"], crowding_price, migration_share, alpha
    )
    return groups["estimate"] + congestion_price * groups["congestion"] + at_data_node[..., None, :]


def data_node_price(
    memory: Any, load: Any, moved: Any, migration: Any, crowding_price: Any, migration_share: Any, alpha: Any
) -> Any:
    """What `priced_cost` adds for the data node alone: numbers, arrays or tensors, of any one shape."""
    return crowding_price * (memory + load) * moved - (1.0 - migration_share) * alpha * migration


@dataclass(frozen=True)
class PricedGreedy(Rule):
    """Greedy with prices on what a placement takes from tasks to come: see `priced_cost`.

    The prices stand for foresight: bytes on busy controllers and links slow the tasks that share them, data on
    a crowded node draws its tasks there, and a move is paid once but used for long. Defaults are the best of 45
    settings in a prototype of this project.

    Attributes:
        congestion_price: p1.
        crowding_price: p2.
        migration_share: p3, the share of the migration time that counts.
        alpha: the reward's weight of T_comm; belongs to the scenario and is not tuned.
    """

    name: ClassVar[str] = "priced-greedy"
    tunable: ClassVar[Mapping[str, Range]] = {
        "congestion_price": Range(0.01, 100.0, log=True),
        "crowding_price": Range(0.01, 1000.0, log=True),
        "migration_share": Range(0.0, 1.0),
    }
    congestion_price: Parameter = 1.0
    crowding_price: Parameter = 1.5
    migration_share: Parameter = 0.3
    alpha: Parameter = 1.0

    def place(self, groups: Groups, turn: Array) -> Placement:
        """The pair with the lowest priced cost."""
        cost = priced_cost(
            groups,
            _per_row(self.congestion_price, 2),
            _per_row(self.crowding_price, 1),
            _per_row(self.migration_share, 1),
            _per_row(self.alpha, 1),
        )
        return _lowest_pair(cost, groups)


RULES: Mapping[str, type[Rule]] = {
    rule.name: rule
    for rule in (
        Random,
        RoundRobin,
        FirstTouch,
        Interleave,
        DataAffinity,
        ShortestQueue,
        Greedy,
        MigrationScore,
        PricedGreedy,
    )
}


def rule_names() -> list[str]:
    """Names that `make_rule` knows, from the simplest rule to the strongest."""
    return list(RULES)


def make_rule(name: str, **parameters: Any) -> Rule:
    """The rule of that name; parameters left out keep their defaults.

    Raises:
        ValueError: there is no such rule or parameter, or its value is not finite.
    """
    if name not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {name!r}.")
    known = [item.name for item in fields(RULES[name])]
    for parameter in parameters:
        if parameter not in known:
            raise ValueError(f"{name}: parameter must be one of {', '.join(known) or '(none)'}, got {parameter!r}.")
    return RULES[name](**parameters)

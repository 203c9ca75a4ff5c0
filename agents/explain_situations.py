"""What there is to see at a decision, in a few numbers that a person can read: features of the rule's placement.

Everything is taken from the observation, which a policy sees as well.

Dimension key: B rows, N nodes, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from agents.rules.base import Array, Groups
from envs.observation_kernel import TaskFeature

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


class Unit(Enum):
    """What a feature counts in."""

    YES_OR_NO = "yes or no"
    SHARE = "share"  # in percent; loads may exceed 1
    REFERENCE = "reference times"
    RATIO = "times"


@dataclass(frozen=True)
class Feature:
    """One number of a situation.

    Attributes:
        name: in JSON.
        words: what it is, to stand before "is above 3"; of a yes or no, what is so when it is 1. "It" is the rule.
        unit: what it counts in.
        of: its values in rows (B,), from the observation's groups, the rule's task node and its data node.
        otherwise: of a yes or no, what is so when it is 0.
    """

    name: str
    words: str
    unit: Unit
    of: Callable[[Groups, I64, I64], Array]
    otherwise: str = ""


def _task(column: int) -> Callable[[Groups, I64, I64], Array]:
    """A feature of the task, whatever the rule does."""
    return lambda groups, n, d: groups["task"][:, column]


def _at(values: Array, node: I64) -> Array:
    """The value (B, N) at a node of each row."""
    return np.asarray(values[np.arange(len(node)), node])


def _least(values: Array, mask: Array) -> Array:
    """The least value (B, N) of open nodes; 0 where none is open."""
    least = np.where(mask > 0, values, np.inf).min(axis=1)
    return np.where(np.isfinite(least), least, 0.0)


def controller_loads(groups: Groups) -> Array:
    """Recent load of each node's memory controller, shape (B, N)."""
    return np.asarray(groups["communication"].sum(axis=1))


def _moves(groups: Groups, n: I64, d: I64) -> Array:
    """Whether an object that exists would move, or be copied, to the data node."""
    return np.asarray((groups["task"][:, TaskFeature.IS_NEW] <= 0) & (_at(groups["data"], d) < 1.0))


def _lead(groups: Groups, n: I64, d: I64) -> Array:
    """By how much, in proportion, the second lowest estimate of an open placement is above the lowest; 0 if alone."""
    is_open = (groups["task_mask"][:, :, None] > 0) & (groups["data_mask"][:, None, :] > 0)
    cost = np.where(is_open, groups["estimate"], np.inf).reshape(len(n), -1).astype(np.float64)
    if cost.shape[1] < 2:
        return np.zeros(len(n))
    best, second = np.partition(cost, 1, axis=1)[:, :2].T
    known = np.isfinite(second) & (best > 0.0)
    return np.asarray(np.divide(second, best, out=np.ones_like(best), where=known) - 1.0)


FEATURES = (
    Feature("is_new", "the object is new", Unit.YES_OR_NO, _task(TaskFeature.IS_NEW), "the object exists"),
    Feature(
        "read_only", "the object is only read", Unit.YES_OR_NO, _task(TaskFeature.READ_ONLY), "the object is written"
    ),
    Feature("size", "the object's share of a node's memory", Unit.SHARE, _task(TaskFeature.SIZE)),
    Feature("write_share", "the share of writes", Unit.SHARE, _task(TaskFeature.WRITE_FRACTION)),
    Feature("compute", "the arithmetic", Unit.REFERENCE, _task(TaskFeature.COMPUTE)),
    Feature("bytes", "access to the object, if local,", Unit.REFERENCE, _task(TaskFeature.MEMORY)),
    Feature("inputs", "reading the inputs, if local,", Unit.REFERENCE, _task(TaskFeature.INPUT)),
    Feature("ready", "the wait for object and inputs", Unit.REFERENCE, _task(TaskFeature.READY)),
    Feature("gap", "the gap since the last arrival", Unit.REFERENCE, _task(TaskFeature.GAP)),
    Feature("queue", "the queue at its task node", Unit.REFERENCE, lambda groups, n, d: _at(groups["queue"], n)),
    Feature(
        "shortest_queue",
        "the shortest queue",
        Unit.REFERENCE,
        lambda groups, n, d: _least(groups["queue"], groups["task_mask"]),
    ),
    Feature("load", "the load of its data node", Unit.SHARE, lambda groups, n, d: _at(controller_loads(groups), d)),
    Feature(
        "least_load",
        "the least load of a data node",
        Unit.SHARE,
        lambda groups, n, d: _least(controller_loads(groups), groups["data_mask"]),
    ),
    Feature("memory", "memory in use on its data node", Unit.SHARE, lambda groups, n, d: _at(groups["memory"], d)),
    Feature("moves", "it would move the object", Unit.YES_OR_NO, _moves, "it would not move the object"),
    Feature(
        "last_user",
        "its task node used the object last",
        Unit.YES_OR_NO,
        lambda groups, n, d: _at(groups["last"], n),
        "its task node did not use the object last",
    ),
    Feature(
        "apart",
        "it parts task and data",
        Unit.YES_OR_NO,
        lambda groups, n, d: n != d,
        "it keeps task and data together",
    ),
    Feature(
        "distance",
        "the latency of its data over the least",
        Unit.RATIO,
        lambda groups, n, d: groups["latency"][np.arange(len(n)), n, d],
    ),
    Feature("lead", "the lead of the lowest estimate", Unit.SHARE, _lead),
)


def situations(groups: Groups, rule_pair: I64) -> F64:
    """What there is to see in every row.

    Args:
        groups: of full observations, shapes (B, ...).
        rule_pair: the rule's placements, (task node) N + (data node), shape (B,).

    Returns:
        Shape (B, F), in the order of `FEATURES`.
    """
    n, d = np.divmod(rule_pair, groups["queue"].shape[1])
    return np.stack([np.asarray(feature.of(groups, n, d), np.float64) for feature in FEATURES], axis=1)

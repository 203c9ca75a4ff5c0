"""The simplest rules: at random, in turn, where the data is, where the queue is shortest.

Dimension key: B rows, N nodes.

References:
    [1] G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from agents.rules.base import Array, Groups, Placement, Rule, data_stays, lowest, nearest, nth_open
from agents.scheduler import Actions, Memory


def _mixed(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser: every bit of the result depends on every bit of the input [1]."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's increment


def row_hash(rows: Array, seed: int) -> npt.NDArray[np.uint64]:
    """A hash of each row's own bits and of the seed, 64 bits each, shape (B,); of rows of float32, (B, values)."""
    bits = np.ascontiguousarray(rows, np.float32).view(np.uint32).astype(np.uint64)
    start = _mixed(np.array([seed], np.int64).view(np.uint64) * GOLDEN)
    keys = _mixed(np.arange(1, bits.shape[-1] + 1, dtype=np.uint64) * GOLDEN + start)
    return _mixed((bits * (keys | np.uint64(1))).sum(axis=-1) + start)


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
        """See `Rule.predict`; here the memory is the row's hash."""
        draw = row_hash(np.atleast_2d(observation), self.seed)
        actions, _ = super().predict(observation, (draw[:, None],))
        return actions, None

    def place(self, groups: Groups, memory: Array) -> Placement:
        """Task and data by the two halves of the draw."""
        draw = memory[:, 0]
        low = draw & np.uint64(0xFFFFFFFF)
        return Placement(nth_open(draw >> np.uint64(32), groups["task_mask"]), nth_open(low, groups["data_mask"]))


@dataclass(frozen=True)
class RoundRobin(Rule):
    """Tasks over nodes in turn; new data where the task runs, and data never moves."""

    name: ClassVar[str] = "round-robin"
    num_remembered: ClassVar[int] = 1  # tasks so far

    def place(self, groups: Groups, memory: Array) -> Placement:
        """The node whose turn it is."""
        node = nth_open(memory[:, 0], groups["task_mask"])
        memory[:, 0] += 1
        return Placement(node, data_stays(node, groups))


@dataclass(frozen=True)
class DataAffinity(Rule):
    """Tasks where their data is; new data on the node with the smallest share of its memory in use."""

    name: ClassVar[str] = "data-affinity"

    def place(self, groups: Groups, memory: Array) -> Placement:
        """The data's node, or the nearest that can run tasks."""
        data_node = data_stays(lowest(groups["memory"], groups["data_mask"]), groups)
        return Placement(nearest(data_node, groups["task_mask"], groups), data_node)


@dataclass(frozen=True)
class ShortestQueue(Rule):
    """Tasks where the least work is outstanding; new data with the task, and data never moves."""

    name: ClassVar[str] = "shortest-queue"

    def place(self, groups: Groups, memory: Array) -> Placement:
        """The node that drains first."""
        node = lowest(groups["queue"], groups["task_mask"])
        return Placement(node, data_stays(node, groups))

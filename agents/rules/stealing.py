"""Hierarchical work stealing: tasks start where their data is, and nodes with less to do take them away.

Dimension key: B rows, N nodes, L levels at which other nodes steal: direct neighbours, then far nodes.

References:
    [1] The chapter, exercise 5: hierarchical work stealing, levels, thresholds and probabilities.
    [2] Q. Chen, M. Guo, H. Guan, "LAWS: locality-aware work-stealing for multi-socket multi-core architectures",
        ICS 2014.
    [3] J. Deters, J. Wu, Y. Xu, I.-T. A. Lee, "A NUMA-aware provably-efficient task-parallel platform based on the
        work-first principle", IISWC 2018 (NUMA-WS).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agents.rules.base import (
    Array,
    Groups,
    Parameter,
    Placement,
    Range,
    Rule,
    data_stays,
    is_new,
    lowest,
    nearest,
    per_row,
)
from agents.rules.simple import row_hash
from numa_rl.partition.tree_match import SAME_LEVEL
from numa_rl.stealing.adaptation import FIRST_SUCCESS, RATE, adapt, probability, threshold

NUM_LEVELS = 2  # L
COUNT = NUM_LEVELS  # column of the memory: decisions so far; before it the success of each level
PER_DRAW = 2.0**-32


@dataclass(frozen=True)
class WorkStealing(Rule):
    """Hierarchical work stealing [1]: a task waits in the queue of its data's node, until a node with less to do asks.

    A new object's task starts where most of its inputs are, or, without inputs, where least is to do. Direct
    neighbours ask first, then far nodes, of each level the one with the least work: it steals the task if the queues
    differ by more than theta_l, and tries so with probability p_l. Both adapt to the level's success, a moving average,
    as `numa_rl.stealing.adaptation` says; a steal succeeded if the task was to finish earlier, by the estimate, than
    where it was. The cores of one node share a queue here, so there is nothing to steal within a node. Data stays, and
    new data goes with its task.

    Neighbours are the nodes at the least latency from the victim, give or take what measured latencies differ by.
    There is no generator: a draw is a hash of the task's features and of how many were decided before.

    Attributes:
        threshold: theta of direct neighbours when all levels succeed alike, outstanding work per core in reference
            times.
        far_factor: that of far nodes over it.
        seed: a whole number; another one is another sequence of draws.
    """

    name: ClassVar[str] = "work-stealing"
    tunable: ClassVar[Mapping[str, Range]] = {
        "threshold": Range(0.01, 100.0, log=True),
        "far_factor": Range(1.0, 100.0, log=True),
    }
    num_remembered: ClassVar[int] = NUM_LEVELS + 1
    threshold: Parameter = 1.0
    far_factor: Parameter = 2.0
    seed: int = 0

    def place(self, groups: Groups, memory: Array) -> Placement:
        """The node whose queue the task starts in, or the first one that steals it; data stays."""
        rows = np.arange(len(memory))
        queue, mask = groups["queue"], groups["task_mask"]
        home = _first_queue(groups)
        success = memory[:, :NUM_LEVELS] + FIRST_SUCCESS  # what is remembered starts at 0
        best = success.max(axis=-1)
        node, waits = home.copy(), np.ones(len(rows), bool)
        for level, there in enumerate(_nodes_by_level(home, groups)):
            thief = lowest(queue, mask * there)
            share = probability(success[:, level], best)
            least = threshold(per_row(self.threshold, 0) * per_row(self.far_factor, 0) ** level, share)
            differs = (mask * there).any(axis=-1) & (queue[rows, home] - queue[rows, thief] > least)
            tries = waits & differs & (self._draw(groups, memory, level) < share)
            finishes_earlier = _finish(thief, groups) < _finish(home, groups)
            memory[:, level] += tries * (adapt(success[:, level], finishes_earlier, RATE) - success[:, level])
            node = np.where(tries, thief, node)
            waits &= ~tries
        memory[:, COUNT] += 1
        return Placement(node, data_stays(node, groups))

    def _draw(self, groups: Groups, memory: Array, level: int) -> Array:
        """A number in [0, 1) for each row, another one for each level, decision and task."""
        bits = row_hash(np.column_stack([groups["task"], memory[:, COUNT]]), self.seed)
        return ((bits >> np.uint64(32 * level)) & np.uint64(0xFFFFFFFF)) * PER_DRAW


def _first_queue(groups: Groups) -> Array:
    """The open node nearest to the task's data, new data where most inputs are or least is to do, shape (B,)."""
    inputs = groups["inputs"]
    least = lowest(groups["queue"], groups["task_mask"])
    start = np.where(inputs.max(axis=-1) > 0, inputs.argmax(axis=-1), least)
    data_node = np.where(is_new(groups), start, groups["data"].argmax(axis=-1))
    return nearest(data_node, groups["task_mask"], groups)


def _nodes_by_level(home: Array, groups: Groups) -> tuple[Array, Array]:
    """Which nodes are direct neighbours of each row's home, and which are far from it, shape (B, N) each."""
    rows = np.arange(len(home))
    latency = groups["latency"][rows, home]
    remote = groups["nodes"] > 0
    remote[rows, home] = False
    closest = np.where(remote, latency, np.inf).min(axis=-1, keepdims=True)
    near = remote & (latency <= SAME_LEVEL * closest)
    return near, remote & ~near


def _finish(node: Array, groups: Groups) -> Array:
    """The estimate of a task that runs on these nodes with its data where it then is, shape (B,)."""
    return np.asarray(groups["estimate"][np.arange(len(node)), node, data_stays(node, groups)])

"""What Linux does by itself, or when told to by `numactl`.

Dimension key: B rows, N nodes.

References:
    [1] Linux, Documentation/admin-guide/mm/numa_memory_policy.rst: local allocation and interleave.
    [2] Linux, kernel/sched/topology.c: `imbalance_pct` is 117 since 5.10.
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
    nth_open,
    per_row,
)


@dataclass(frozen=True)
class FirstTouch(Rule):
    """What Linux does when nobody pins anything: tasks follow the load, data stays where it was first touched [1].

    A task runs where its object has mostly been used, as Linux wakes a task where it last ran, unless that node's
    outstanding work exceeds the least by more than the tolerance; then it runs on the least loaded node.

    Attributes:
        tolerance: ratio of loads that the scheduler leaves alone; Linux's `imbalance_pct` is 117 percent [2].
    """

    name: ClassVar[str] = "first-touch"
    tunable: ClassVar[Mapping[str, Range]] = {"tolerance": Range(1.0, 100.0, log=True)}
    tolerance: Parameter = 1.17

    def place(self, groups: Groups, memory: Array) -> Placement:
        """The task where it last ran or on the least loaded node, new data with it."""
        rows = np.arange(len(memory))
        queue, access = groups["queue"], groups["access"]
        least, last = lowest(queue, groups["task_mask"]), access.argmax(axis=-1)
        stays = (access[rows, last] > 0) & (groups["task_mask"][rows, last] > 0)
        stays &= queue[rows, last] <= per_row(self.tolerance, 0) * queue[rows, least]
        node = np.where(stays, last, least)
        return Placement(node, data_stays(node, groups))


@dataclass(frozen=True)
class Interleave(Rule):
    """New data over nodes in turn, as `numactl --interleave` does with pages [1]; tasks on the least loaded node."""

    name: ClassVar[str] = "interleave"
    num_remembered: ClassVar[int] = 1  # new objects so far

    def place(self, groups: Groups, memory: Array) -> Placement:
        """New data on the node whose turn it is."""
        data_node = data_stays(nth_open(memory[:, 0], groups["data_mask"]), groups)
        memory[:, 0] += is_new(groups)
        return Placement(lowest(groups["queue"], groups["task_mask"]), data_node)

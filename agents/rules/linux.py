"""What Linux does by itself, or when told to by `numactl`.

Dimension key: B rows, N nodes; n = task node, i = memory node.

References:
    [1] Linux, Documentation/admin-guide/mm/numa_memory_policy.rst: local allocation and the interleave modes.
    [2] Linux, kernel/sched/topology.c: `imbalance_pct` is 117 since 5.10.
    [3] Linux, Documentation/ABI/testing/sysfs-kernel-mm-mempolicy-weighted-interleave: weights of 1 to 255, in
        automatic mode computed from the bandwidths that HMAT or CDAT report; they apply to new pages only.
    [4] Linux, mm/mempolicy.c, `reduce_interleave_weights`: weights are small whole numbers, for short cycles, as
        bandwidths scaled to a sum of 32, rounded down and divided by their greatest common divisor are.
    [5] Linux, kernel/sched/fair.c: `should_numa_migrate_memory` and `task_numa_placement`.
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
    unless_overloaded,
)
from envs.observation_kernel import TaskFeature

IMBALANCE = 1.17  # the ratio of loads that the kernel's load balancer leaves alone [2]
TOLERANCE = Range(1.0, 100.0, log=True)
SMALLEST = np.arange(1, 9, dtype=np.float32)  # the smallest weights that are tried
CLOSE = 0.02  # how far a ratio of weights may be from that of bandwidths
MOST_WEIGHT = 255  # of Linux [3]


@dataclass(frozen=True)
class FirstTouch(Rule):
    """What Linux does when nobody pins anything: tasks follow the load, data stays where it was first touched [1].

    A task runs where its object has mostly been used, as Linux wakes a task where it last ran, unless that node's
    outstanding work exceeds the least by more than the tolerance; then it runs on the least loaded node.

    Attributes:
        tolerance: ratio of loads that the scheduler leaves alone; Linux's `imbalance_pct` is 117 percent [2].
    """

    name: ClassVar[str] = "first-touch"
    tunable: ClassVar[Mapping[str, Range]] = {"tolerance": TOLERANCE}
    tolerance: Parameter = IMBALANCE

    def place(self, groups: Groups, memory: Array) -> Placement:
        """The task where it last ran or on the least loaded node, new data with it."""
        node = where_it_ran(self.tolerance, groups)
        return Placement(node, data_stays(node, groups))


def where_it_ran(tolerance: Parameter, groups: Groups) -> Array:
    """The node that has used the object most, or the least loaded one, as `FirstTouch` says, shape (B,)."""
    access = groups["access"]
    return unless_overloaded(access.argmax(axis=-1), access.max(axis=-1) > 0, tolerance, groups)


@dataclass(frozen=True)
class Interleave(Rule):
    """Every object's pages over all nodes in turn, as `numactl --interleave=all` [1]; tasks where least is to do.

    The same weights are asked for at every decision, so pages stay where they are and what an object grows by is
    spread too. A node without room gets none.
    """

    name: ClassVar[str] = "interleave"

    def place(self, groups: Groups, memory: Array) -> Placement:
        """One page after the other on each node."""
        return interleaved(np.ones_like(groups["data"]), groups)


@dataclass(frozen=True)
class WeightedInterleave(Rule):
    """Pages in proportion to the bandwidth of each node's memory, as MPOL_WEIGHTED_INTERLEAVE [1, 3].

    Memories of 100 and 50 GB/s get pages 2:1. Like the kernel's automatic weights these are small [4], but rounded to
    the nearest ratio, where the kernel's 21:10 are rounded down. A memory's bandwidth is what the node with cores
    that reaches it fastest draws from it, which is what HMAT reports. Tasks run where least is to do.
    """

    name: ClassVar[str] = "weighted-interleave"

    def place(self, groups: Groups, memory: Array) -> Placement:
        """Pages by weight on each node."""
        bandwidth = np.where(groups["task_mask"][:, :, None] > 0, groups["bandwidth"], 0.0).max(axis=1)
        return interleaved(small_weights(bandwidth), groups)


def interleaved(weights: Array, groups: Groups) -> Placement:
    """Tasks on the least loaded node, pages by weight (B, N) over the nodes that exist."""
    node = lowest(groups["queue"], groups["task_mask"])
    return Placement(node, data_stays(node, groups), np.where(groups["nodes"] > 0, weights, 0))


def small_weights(bandwidth: Array) -> Array:
    """The smallest whole weights in proportion to bandwidths, shape (B, N); 0 where there is none.

    In proportion means within 2%; if no smallest weight of up to 8 can do that, it is the largest that keeps all
    weights within Linux's limit.
    """
    some = bandwidth > 0
    least = np.where(some, bandwidth, np.inf).min(axis=-1, keepdims=True)
    ratio = (np.where(some, bandwidth, 0.0) / least)[:, None, :]
    exact = ratio * SMALLEST[:, None]  # (B, smallest weight, N)
    weights = np.minimum(np.rint(exact), MOST_WEIGHT)
    fits = exact.max(axis=-1) <= MOST_WEIGHT
    close = fits & (np.abs(weights - exact) <= CLOSE * exact).all(axis=-1)
    chosen = np.where(close.any(axis=-1), close.argmax(axis=-1), np.maximum(fits.sum(axis=-1) - 1, 0))
    return np.asarray(weights[np.arange(len(weights)), chosen])


@dataclass(frozen=True)
class AutoNuma(Rule):
    """Automatic NUMA balancing: pages move to who uses them, and tasks to their pages [5].

    Object for page and access for hinting fault, the kernel's two rules become:

    * `should_numa_migrate_memory`: the object moves to the task's node n if the access before this one came from n
      as well, and if 3/4 faults(n) > faults(where it is), faults being the recent accesses from each node. The
      kernel divides either side by the faults on that node's memory; for one object, all of these are where it is,
      and the test would always hold. Of an object that is only read, the old copy stays behind.
    * `task_numa_placement`: the task runs on the node that holds most of the bytes it will access, its inputs
      included, or where least is to do if that node is overloaded, see `FirstTouch`.

    New data goes where the task runs.

    Attributes:
        hysteresis: the 3/4.
        tolerance: as for first touch.
    """

    name: ClassVar[str] = "autonuma"
    tunable: ClassVar[Mapping[str, Range]] = {"hysteresis": Range(0.05, 1.0), "tolerance": TOLERANCE}
    hysteresis: Parameter = 0.75
    tolerance: Parameter = IMBALANCE

    def place(self, groups: Groups, memory: Array) -> Placement:
        """The task to its memory, the object to its task at the second access in a row."""
        rows = np.arange(len(memory))
        held = groups["task"][:, TaskFeature.MEMORY, None] * groups["data"] + groups["inputs"]
        node = unless_overloaded(held.argmax(axis=-1), held.max(axis=-1) > 0, self.tolerance, groups)
        home, faults = nearest(node, groups["data"], groups), groups["access"]
        moves = (groups["last"][rows, node] > 0) & (
            per_row(self.hysteresis, 0) * faults[rows, node] > faults[rows, home]
        )
        target = np.where(moves | is_new(groups), node, home)
        return Placement(node, nearest(target, groups["data_mask"], groups))

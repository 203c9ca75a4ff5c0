"""Most bandwidth between who uses data and where it lies, rather than fewest hops.

Dimension key: B rows, N nodes; n = task node, d = data node, i = memory node.

References:
    [1] B. Lepers, V. Quema, A. Fedorova, "Thread and memory placement on NUMA systems: asymmetry matters",
        USENIX ATC 2015, section 4.
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
    per_row,
)
from agents.rules.linux import IMBALANCE, TOLERANCE
from envs.observation_kernel import TaskFeature

NOT_OPEN = np.float32(-1.0)  # less than any bandwidth


@dataclass(frozen=True)
class AsymSched(Rule):
    """Placements with nearly the most bandwidth; of these the one that moves least memory, if that is cheap [1].

    Every second, AsymSched considers all placements of all groups of threads that share data. It sums the
    bandwidth of the links between the nodes of each group, weighted by how much the group uses them; keeps the
    placements within 90% of the best sum; takes the one that moves least memory; and moves only if all migration
    so far, this one included, takes at most 5% of the time that the application has run.

    A decision here places one such group, a task, its object and its inputs, while all others stay. So a
    placement is a pair (n, d), and its bandwidth is

        bandwidth(n, d) own bytes + sum over the inputs' nodes i of bandwidth(n, i) bytes from there,

    where of a memory's bandwidth is left what the placed groups leave of it: 1 / (1 + load). Where AsymSched gives
    each thread a core, here only nodes are considered that are not overloaded, as for first touch. The time run is
    what the tasks so far take on an average core with local, idle memory. Where moving is too dear, the object stays
    and the task runs where bandwidth to it is highest. Ties, as of new objects, which move nothing, go to the
    placement with most bandwidth.

    Attributes:
        kept_share: of the best bandwidth; placements below are dropped.
        migration_share: of the time run that migrations may take.
        tolerance: ratio to the least outstanding work above which a node is not considered.
    """

    name: ClassVar[str] = "asymsched"
    tunable: ClassVar[Mapping[str, Range]] = {
        "kept_share": Range(0.1, 1.0),
        "migration_share": Range(0.001, 10.0, log=True),
        "tolerance": TOLERANCE,
    }
    num_remembered: ClassVar[int] = 2  # time run and time spent on migrations, in reference times
    kept_share: Parameter = 0.9
    migration_share: Parameter = 0.05
    tolerance: Parameter = IMBALANCE

    def place(self, groups: Groups, memory: Array) -> Placement:
        """The pair that moves least of those with nearly the most bandwidth."""
        bandwidth = open_bandwidth(self.tolerance, groups)
        kept = per_row(self.kept_share, 0) * bandwidth.max(axis=(1, 2))
        node, data_node = moving_least(bandwidth, kept, groups)
        rows = np.arange(len(memory))
        memory[:, 0] += time_run(groups["task"])
        moving = groups["migration"][rows, data_node]
        dear = (moving > 0) & (memory[:, 1] + moving > per_row(self.migration_share, 0) * memory[:, 0])
        if dear.any():
            stay_node, stay = moving_least(bandwidth, np.zeros_like(kept), groups)
            node, data_node = np.where(dear, stay_node, node), np.where(dear, stay, data_node)
        memory[:, 1] += groups["migration"][rows, data_node]
        return Placement(node, data_node)


def moving_least(bandwidth: Array, kept: Array, groups: Groups) -> tuple[Array, Array]:
    """Of the placements with the bandwidth (B, N, N) to be kept (B,), those that move least; of these the best."""
    dropped = bandwidth < kept[:, None, None]
    moves = groups["migration"][:, None, :]
    fewest = np.where(dropped, np.inf, moves).min(axis=(1, 2))
    dropped |= moves > fewest[:, None, None]
    pair = np.where(dropped, NOT_OPEN, bandwidth).reshape(len(kept), -1).argmax(axis=-1)
    return pair // bandwidth.shape[-1], pair % bandwidth.shape[-1]


def open_bandwidth(tolerance: Parameter, groups: Groups) -> Array:
    """The weighted bandwidth of every placement, shape (B, N, N); `NOT_OPEN` where closed or overloaded."""
    queue, task = groups["queue"], groups["task"]
    can_run = groups["task_mask"] > 0
    least = np.where(can_run, queue, np.inf).min(axis=-1, keepdims=True)
    considered = can_run & (queue <= per_row(tolerance, 1) * least)
    left = groups["bandwidth"] / (1.0 + groups["communication"].sum(axis=1))[:, None, :]
    from_inputs = np.matmul(left, groups["inputs"][:, :, None])
    whole = task[:, TaskFeature.MEMORY, None, None] * left + from_inputs
    is_open = considered[:, :, None] & (groups["data_mask"][:, None, :] > 0)
    return np.where(is_open, whole, NOT_OPEN)


def time_run(task: Array) -> Array:
    """How long tasks (B, features) take without waiting, in reference times, shape (B,): the roofline, and inputs."""
    service = np.maximum(task[:, TaskFeature.COMPUTE], task[:, TaskFeature.MEMORY])
    return np.asarray(service + task[:, TaskFeature.INPUT])

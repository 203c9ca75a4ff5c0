"""Planners that keep together what communicates: partition of the task graph, and TreeMatch.

Neither looks at when tasks run: the work of a whole episode is shared among nodes, whatever overlaps.

Dimension key: T tasks, N nodes.

References:
    [1] The chapter, section 16.2.1: a compute graph, its partition, and the mapping of parts to nodes.
    [2] E. Jeannot and G. Mercier, "Near-optimal placement of MPI processes on hierarchical NUMA architectures",
        Euro-Par 2010: TreeMatch.
    [3] E. H. M. Cruz, M. Diener, L. L. Pilla and P. O. A. Navaux, "An efficient algorithm for communication-based task
        mapping", PDP 2015: EagerMap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from agents.planners.base import TaskPlanner, local_task_s
from numa_rl.partition.graph import Graph
from numa_rl.partition.mapping import compute_nodes, map_parts, node_distances
from numa_rl.partition.methods import METHODS, partition
from numa_rl.partition.multilevel import Effort
from numa_rl.partition.objective import traffic_matrix
from numa_rl.partition.tree_match import tree_match
from numa_rl.partition.workload_graph import workload_graph
from numa_rl.topology import Topology
from numa_rl.workloads.workload import Workload

I64 = npt.NDArray[np.int64]


def task_graph(workload: Workload, episode: int, topology: Topology) -> Graph:
    """An episode's tasks, weighted by their mean time on nodes with cores, and the bytes between them."""
    seconds = local_task_s(workload, episode, topology)[:, compute_nodes(topology)].mean(axis=1)
    return workload_graph(workload, episode, seconds if seconds.any() else np.ones_like(seconds))


@dataclass(frozen=True)
class GraphPartition(TaskPlanner):
    """The task graph cut into a part for each node, in proportion to cores [1]; it knows the whole episode.

    Parts with much between them go to nodes near each other; a part's tasks run on its node.

    Attributes:
        method: who cuts, one of `numa_rl.partition.methods.METHODS`.
        imbalance: by what share of its own a part may weigh more.
        starts: partitions that our multilevel scheme tries, the best of which counts; one for speed, more cut less.
        seed: of the partitioner's choices, the same for every episode.

    Raises:
        ValueError: an unknown method, or a number out of range.
    """

    name: ClassVar[str] = "graph-partition"
    method: str = "multilevel"
    imbalance: float = 0.03
    starts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the parameters."""
        if self.method not in METHODS:
            raise ValueError(f"{self.name}: method must be one of {', '.join(METHODS)}, got {self.method!r}.")
        if not (np.isfinite(self.imbalance) and self.imbalance >= 0.0):
            raise ValueError(f"{self.name}: imbalance must be finite and >= 0, got {self.imbalance}.")
        if not (isinstance(self.starts, int) and self.starts >= 1):
            raise ValueError(f"{self.name}: starts must be a whole number >= 1, got {self.starts!r}.")
        if not (isinstance(self.seed, int) and self.seed >= 0):
            raise ValueError(f"{self.name}: seed must be a whole number >= 0, got {self.seed!r}.")

    def task_nodes(self, workload: Workload, episode: int, topology: Topology) -> I64:
        """See `TaskPlanner.task_nodes`."""
        graph, nodes = task_graph(workload, episode, topology), compute_nodes(topology)
        shares = topology.cores[nodes].astype(np.float64)
        cut = partition(
            graph,
            len(nodes),
            imbalance=self.imbalance,
            method=self.method,
            target_shares=shares,
            rng=np.random.default_rng(self.seed),
            effort=Effort(starts=self.starts, combinations=0, survivors=1),
        )
        place = map_parts(traffic_matrix(graph, cut.parts, len(nodes)), node_distances(topology), shares)
        return np.asarray(nodes[place[cut.parts]])


@dataclass(frozen=True)
class TreeMatch(TaskPlanner):
    """Tasks grouped by what they communicate, groups matched to the machine's levels [2, 3]; it knows the episode."""

    name: ClassVar[str] = "tree-match"

    def task_nodes(self, workload: Workload, episode: int, topology: Topology) -> I64:
        """See `TaskPlanner.task_nodes`."""
        return tree_match(task_graph(workload, episode, topology), topology)

"""What planners have in common: nodes for tasks become placements, and what tasks take on the idle machine.

A planner knows every task of an episode, its arrival, its sizes and what it reads, before the first is decided; no
scheduler does. Where task graphs are compiled this is so; where requests arrive it is not, and tables say so.

Dimension key: R rows = machine x episode, T tasks, N nodes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from agents.accesses import accesses, creators, input_bytes
from agents.scheduler import Actions
from envs.world import World
from numa_rl.idle import core_s_per_byte, service_s
from numa_rl.topology import Topology
from numa_rl.workloads.workload import Workload

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TaskPlanner(ABC):
    """A planner that chooses the nodes of tasks; data stays where the task that creates it runs."""

    name: ClassVar[str]

    @abstractmethod
    def task_nodes(self, workload: Workload, episode: int, topology: Topology) -> I64:
        """The node of each task of an episode on a machine, nodes with cores only, shape (T,)."""

    def plan(self, world: World, machine: I64, episode: I64) -> Actions:
        """See `Planner.plan`."""
        plans = []
        for m, e in zip(machine.tolist(), episode.tolist(), strict=True):
            node = self.task_nodes(world.workload, e, world.topologies[m])
            plans.append(np.stack([node, node[creators(world.workload, e)]], axis=-1))
        return np.stack(plans)


def local_task_s(workload: Workload, episode: int, topology: Topology) -> F64:
    """How long each task takes on each node of the idle machine with all its data there, shape (T, N): the roofline."""
    s_per_byte = np.diagonal(core_s_per_byte(topology))
    flops, moved = (getattr(workload, name)[episode].astype(np.float64)[:, None] for name in ("flops", "bytes"))
    read = input_bytes(accesses(workload, episode), workload.num_tasks)[:, None]
    return service_s(flops, moved, read, workload.overhead_s[episode, :, None], topology.flops_per_s, s_per_byte)

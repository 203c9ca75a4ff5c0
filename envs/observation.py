"""What a scheduler sees: named groups in one float32 row.

This file and its kernel alone know the order of features. Everything is dimensionless, at least 0 and at most
`OBSERVATION_LIMIT`; times are in units of the scenario's `reference_s`.

Dimension key: B rows, N nodes.

References:
    [1] The chapter, section 16.2.3: the state is node memory {m_i}, communication C (k x k) and queues {q_i}.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.observation_kernel import Float32, Offsets, Scale, TaskFeature, mask_range, observe_range
from envs.reward import RewardWeights
from numa_rl.simulator.forecast import allocate_scratch
from numa_rl.simulator.simulator import Simulator
from numa_rl.simulator.state import allocate_work


class ObservationKind(StrEnum):
    """Which groups an observation has."""

    FULL = "full"
    CHAPTER = "chapter"


# Groups by number of values: 1 for a scalar per node, 2 for a node x node matrix, 0 for the task's features.
_CHAPTER_GROUPS = {"memory": 1, "communication": 2, "queue": 1}
_FULL_GROUPS = _CHAPTER_GROUPS | {
    "task": 0,
    "data": 1,
    "inputs": 1,
    "access": 1,
    "last": 1,
    "migration": 1,
    "estimate": 2,
    "congestion": 2,
    "task_mask": 1,
    "data_mask": 1,
    "nodes": 1,  # from here on what only another machine changes
    "latency": 2,
    "bandwidth": 2,
}


@dataclass(frozen=True)
class ObservationLayout:
    """Where each group lies in an observation row.

    Groups (n = task node or initiator, d = data node or target):
        memory: share of each node's memory in use, (N,).
        communication: recent traffic by initiator and target over the target's capacity, (N, N); a column's sum
            is the offered load of that node's memory controller.
        queue: outstanding work per core of each node, (N,).
        task: features of the task to place, `TaskFeature`.
        data: share of its object that is on each node; 1 at every copy of one that is only read, (N,).
        inputs: input bytes by node that holds them, as time from an average local memory; all copies count, (N,).
        access: recent bytes between the object and each node, over what the window could move, (N,).
        last: 1 at the node whose task accessed the object last, since it was last moved, (N,).
        migration: time to move the object to each node, (N,).
        nodes: 1 for nodes that exist, 0 for padding, (N,).
        latency: idle latency over the machine's smallest, (N, N).
        bandwidth: idle bandwidth over the machine's largest, (N, N).
        estimate: T_exec + alpha T_comm that this placement would be charged, (N, N).
        congestion: sum over the controllers and links it would use of bytes / capacity x load there, (N, N).
        task_mask: 1 for nodes that can run a task, (N,).
        data_mask: 1 for nodes with room for the object, (N,); all nodes when none has.

    Attributes:
        num_nodes: N.
        kind: "full", or "chapter" for memory, communication and queue alone [1].
    """

    num_nodes: int
    kind: ObservationKind = ObservationKind.FULL

    @cached_property
    def slices(self) -> Mapping[str, slice]:
        """Slice of each group in a row."""
        groups = _CHAPTER_GROUPS if self.kind == ObservationKind.CHAPTER else _FULL_GROUPS
        found, start = {}, 0
        for name, rank in groups.items():
            size = self.num_nodes**rank if rank else TaskFeature.COUNT
            found[name] = slice(start, start + size)
            start += size
        return found

    @property
    def size(self) -> int:
        """Number of values in a row."""
        return int(max(part.stop for part in self.slices.values()))

    @cached_property
    def offsets(self) -> Offsets:
        """Where the kernel writes each group."""
        return Offsets(*(self.slices[name].start if name in self.slices else -1 for name in Offsets._fields))

    def split(self, observation: Any) -> dict[str, Any]:
        """The groups of rows (..., size), numpy or torch, as views; matrices as (..., N, N).

        Raises:
            ValueError: the rows are not of this layout's size.
        """
        if tuple(observation.shape[-1:]) != (self.size,):
            raise ValueError(
                f"an observation of {self.num_nodes} nodes ({self.kind}) must have {self.size} values, "
                f"got shape {observation.shape}."
            )
        n = self.num_nodes
        parts = {}
        for name, part in self.slices.items():
            view = observation[..., part]
            parts[name] = view.reshape(*view.shape[:-1], n, n) if _FULL_GROUPS[name] == 2 else view
        return parts

    @classmethod
    @lru_cache
    def of_size(cls, size: int) -> ObservationLayout:
        """The layout whose rows have `size` values.

        Raises:
            ValueError: no layout has this size.
        """
        for kind in ObservationKind:
            for num_nodes in range(1, 129):
                layout = cls(num_nodes, kind)
                if layout.size == size:
                    return layout
        raise ValueError(f"no observation layout of up to 128 nodes has {size} values.")


class Observer:
    """Writes the observation of every row of a simulator into one buffer.

    Args:
        simulator: whose state is observed.
        weights: alpha and the unit of time.
        kind: which groups.
    """

    def __init__(self, simulator: Simulator, weights: RewardWeights, kind: ObservationKind | str) -> None:
        """Allocate the buffer."""
        self.simulator = simulator
        self.layout = ObservationLayout(simulator.num_nodes, ObservationKind(kind))
        self.alpha = np.float32(weights.alpha)
        self.reference_s = np.float32(weights.reference_s)
        self.scale = _scales(simulator)
        self.buffer = np.zeros((simulator.num_rows, self.layout.size), np.float32)
        scratch = [allocate_scratch(simulator.machines) for _ in range(simulator.chunks.count)]
        self._routes = np.stack([routes for routes, _ in scratch])
        self._resources = np.stack([resources for _, resources in scratch])
        self._work = np.stack([allocate_work(simulator.machines) for _ in range(simulator.chunks.count)])
        self._shown = np.full(simulator.num_rows, -1, np.int32)  # the machine whose topology stands in each row
        self._all_rows = np.arange(simulator.num_rows)
        self._version = -1

    def observe(self, rows: npt.NDArray[np.int64] | None = None) -> Float32:
        """The observation of every row, shape (B, size): the buffer itself, which the next call overwrites.

        Nothing is done if nothing has happened since the last call.

        Args:
            rows: only these rows have changed since the last call; any may have by default.
        """
        sim = self.simulator
        if self._version == sim.version:
            return self.buffer
        index = self._all_rows if rows is None else rows
        arrays = (sim.machines, sim.tasks, sim.state, self.layout.offsets, self.scale)
        numbers = (self.alpha, self.reference_s, sim.window_s)

        def observe_chunk(chunk: int, first: int, last: int) -> None:
            scratch = (self._routes[chunk], self._resources[chunk], self._work[chunk], self._shown)
            observe_range(*arrays, *numbers, *scratch, self.buffer, index, first, last)

        if rows is None:
            sim.chunks.run(observe_chunk)
        else:
            observe_chunk(0, 0, len(index))
        self._version = sim.version
        return self.buffer

    def masks(self) -> npt.NDArray[np.bool_]:
        """Which task nodes and which data nodes are open, shape (B, 2 N)."""
        sim = self.simulator
        masks = np.zeros((sim.num_rows, 2 * sim.num_nodes), np.float32)
        mask_range(sim.machines, sim.tasks, sim.state, masks, 0, sim.num_nodes)
        return masks.astype(bool)


def _scales(simulator: Simulator) -> Scale:
    """Averages of each machine."""
    rows = []
    for topology in simulator.topologies:
        runs = topology.cores > 0
        rows.append(
            (
                (1.0 / topology.flops_per_s[runs]).mean(),
                (1.0 / np.diag(topology.bandwidth_bytes_per_s)).mean(),
                topology.memory_bytes.mean(),
                topology.latency_s.min(),
                1.0 / topology.bandwidth_bytes_per_s.max(),
            )
        )
    return Scale(*np.array(rows, np.float32).T.copy())

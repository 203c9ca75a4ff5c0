"""What a scheduler sees: named groups in one float32 row, and the kernel that writes them.

This file alone knows the order of features. Everything is dimensionless, at least 0 and at most
`OBSERVATION_LIMIT`; times are in units of the scenario's `reference_s`.

Dimension key: B rows, N nodes.

References:
    [1] The chapter, section 16.2.3: the state is node memory {m_i}, communication C (k x k) and queues {q_i}.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from envs.reward import RewardWeights
from numa_rl.simulator.forecast import allocate_scratch, forecast
from numa_rl.simulator.kernel import ZERO, compiled, find_room, has_room, outstanding_work, ready_time, resource_load
from numa_rl.simulator.simulator import Simulator

Float32 = npt.NDArray[np.float32]

OBSERVATION_LIMIT = np.float32(1e6)


class TaskFeature:
    """Columns of the group "task", each in units of the reference time unless said otherwise."""

    COMPUTE = 0  # flops on an average core
    MEMORY = 1  # own bytes from an average local memory
    WRITE_FRACTION = 2  # in [0, 1]
    SIZE = 3  # the object's size over an average node's memory
    GROWTH = 4  # how much of that is new
    IS_NEW = 5  # 1 when the object does not live anywhere yet
    INPUT = 6  # input bytes from an average local memory
    READY = 7  # until the object and the inputs have been written
    GAP = 8  # since the last task arrived: short in a burst
    COUNT = 9  # with it no full observation has the size of a chapter's one, up to 128 nodes


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
    "migration": 1,
    "nodes": 1,
    "latency": 2,
    "bandwidth": 2,
    "estimate": 2,
    "congestion": 2,
    "task_mask": 1,
    "data_mask": 1,
}


class Offsets(NamedTuple):
    """Where each group starts in a row; -1 when it is not there."""

    memory: int
    communication: int
    queue: int
    task: int
    data: int
    inputs: int
    access: int
    migration: int
    nodes: int
    latency: int
    bandwidth: int
    estimate: int
    congestion: int
    task_mask: int
    data_mask: int


@dataclass(frozen=True)
class ObservationLayout:
    """Where each group lies in an observation row.

    Groups (n = task node or initiator, d = data node or target):
        memory: share of each node's memory in use, (N,).
        communication: recent traffic by initiator and target over the target's capacity, (N, N); a column's sum
            is the offered load of that node's memory controller.
        queue: outstanding work per core of each node, (N,).
        task: features of the task to place, `TaskFeature`.
        data: 1 at the node where its object lives, (N,).
        inputs: input bytes by node that holds them, as time from an average local memory, (N,).
        access: recent bytes between the object and each node, over what the window could move, (N,).
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
        return max(part.stop for part in self.slices.values())

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


class Scale(NamedTuple):
    """Averages by which each machine's features are divided, shape (M,) each."""

    s_per_flop: Float32  # of one core, over nodes with cores
    s_per_byte: Float32  # local, idle
    memory_bytes: Float32  # of a node
    latency_s: Float32  # the smallest
    s_per_byte_least: Float32  # of the fastest pair


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
        scratch = [allocate_scratch(simulator.machines) for _ in range(simulator.num_chunks)]
        self._routes = np.stack([routes for routes, _ in scratch])
        self._resources = np.stack([resources for _, resources in scratch])
        self._work = np.zeros((simulator.num_chunks, simulator.num_nodes))

    def observe(self) -> Float32:
        """The observation of every row, shape (B, size): the buffer itself, which the next call overwrites."""
        sim = self.simulator
        arrays = (sim.machines, sim.tasks, sim.state, self.layout.offsets, self.scale)
        numbers = (self.alpha, self.reference_s, sim.window_s)
        if sim.num_chunks == 1:
            observe_range(
                *arrays, *numbers, self._routes[0], self._resources[0], self._work[0], self.buffer, 0, sim.num_rows
            )
        else:
            numba.set_num_threads(sim.num_chunks)
            observe_parallel(*arrays, *numbers, self._routes, self._resources, self._work, self.buffer, sim.num_chunks)
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


@compiled
def write_masks(machines, tasks, state, b, row, task_mask, data_mask):  # type: ignore[no-untyped-def]
    """Write which nodes can run the next task and which have room for its object."""
    m, e, t = state.machine[b], state.episode[b], state.task[b]
    nodes = machines.num_nodes[m]
    over = t >= tasks.arrival_s.shape[1]
    obj = ZERO if over else tasks.object[e, t]
    size = 0.0 if over else tasks.object_bytes[e, t]
    some = over or find_room(machines, state, b, 0, np.int32(obj), size) >= 0
    for n in range(machines.cores.shape[1]):
        exists = n < nodes
        fits = exists and (over or not some or has_room(machines, state, b, n, np.int32(obj), size))
        row[task_mask + n] = np.float32(exists and machines.cores[m, n] > 0)
        row[data_mask + n] = np.float32(fits)


@compiled
def mask_range(machines, tasks, state, masks, task_mask, data_mask):  # type: ignore[no-untyped-def]
    """`write_masks` of every row."""
    for b in range(len(state.task)):
        write_masks(machines, tasks, state, b, masks[b], task_mask, data_mask)


@compiled
def write_chapter(machines, state, b, offsets, reference_s, window_s, work, row):  # type: ignore[no-untyped-def]
    """Write memory, communication and queue [1]."""
    m = state.machine[b]
    width = machines.cores.shape[1]
    idle = machines.resource_s_per_byte[m]
    traffic = state.traffic_bytes[b]
    outstanding_work(machines, state, b, work)
    memory = row[offsets.memory : offsets.memory + width]
    queue = row[offsets.queue : offsets.queue + width]
    for n in range(width):
        memory[n] = np.float32(state.memory_used_bytes[b, n] / max(machines.memory_bytes[m, n], 1.0))
        queue[n] = np.float32(work[n]) / reference_s
    for n in range(width):
        communication = row[offsets.communication + n * width : offsets.communication + (n + 1) * width]
        recent = traffic[n * width : (n + 1) * width]
        for d in range(width):
            communication[d] = resource_load(recent[d], idle[d], window_s)


@compiled
def write_task(machines, tasks, state, b, offsets, scale, reference_s, window_s, row):  # type: ignore[no-untyped-def]
    """Write the task's features, and by node: its object, its inputs, and who has been using the object."""
    m, e, t = state.machine[b], state.episode[b], state.task[b]
    width = machines.cores.shape[1]
    obj = tasks.object[e, t]
    size = tasks.object_bytes[e, t]
    home = state.objects[b, obj].node
    data = row[offsets.data : offsets.data + width]
    inputs = row[offsets.inputs : offsets.inputs + width]
    access = row[offsets.access : offsets.access + width]
    recent = state.access_bytes[b, obj * width : (obj + 1) * width]
    local = scale.s_per_byte[m]
    decay = math.exp(-np.float32(state.now_s[b] - state.objects[b, obj].accessed_s) / window_s)
    for n in range(width):
        data[n] = ZERO
        inputs[n] = ZERO
        access[n] = resource_load(recent[n] * decay, local, window_s)
    if home >= 0:
        data[home] = np.float32(1.0)
    total = ZERO
    for p in range(tasks.inputs.shape[2]):
        source = tasks.inputs[e, t, p]
        if source >= 0 and state.objects[b, source].node >= 0:
            seconds = tasks.input_bytes[e, t, p] * local / reference_s
            inputs[state.objects[b, source].node] += seconds
            total += seconds
    task = row[offsets.task : offsets.task + TASK_COUNT]
    task[COMPUTE] = tasks.flops[e, t] * scale.s_per_flop[m] / reference_s
    task[MEMORY] = tasks.bytes[e, t] * local / reference_s
    task[WRITE_FRACTION] = tasks.write_fraction[e, t]
    task[SIZE] = np.float32(size) / scale.memory_bytes[m]
    task[GROWTH] = np.float32(max(size - state.objects[b, obj].bytes, 0.0)) / scale.memory_bytes[m]
    task[IS_NEW] = np.float32(home < 0)
    task[INPUT] = total
    task[READY] = np.float32(ready_time(tasks, state, b) - state.now_s[b]) / reference_s
    task[GAP] = np.float32(state.now_s[b] - tasks.arrival_s[e, max(t - 1, 0)]) / reference_s


# numba reads module constants, not class attributes.
COMPUTE, MEMORY, WRITE_FRACTION, SIZE = (
    TaskFeature.COMPUTE,
    TaskFeature.MEMORY,
    TaskFeature.WRITE_FRACTION,
    TaskFeature.SIZE,
)
GROWTH, IS_NEW, INPUT = TaskFeature.GROWTH, TaskFeature.IS_NEW, TaskFeature.INPUT
READY, GAP = TaskFeature.READY, TaskFeature.GAP
TASK_COUNT = TaskFeature.COUNT


@compiled
def write_topology(machines, state, b, offsets, scale, row):  # type: ignore[no-untyped-def]
    """Write which nodes exist, and the machine's relative latencies and bandwidths."""
    m = state.machine[b]
    width = machines.cores.shape[1]
    for n in range(width):
        row[offsets.nodes + n] = np.float32(n < machines.num_nodes[m])
    latency = row[offsets.latency : offsets.latency + width * width]
    bandwidth = row[offsets.bandwidth : offsets.bandwidth + width * width]
    for i in range(width * width):
        latency[i] = machines.latency_s[m, i] / scale.latency_s[m]
        slow = machines.pair_s_per_byte[m, i]
        bandwidth[i] = scale.s_per_byte_least[m] / slow if slow > ZERO else ZERO


@compiled
def clear(values):  # type: ignore[no-untyped-def]
    """Set all to zero."""
    for i in range(len(values)):
        values[i] = ZERO


@compiled
def observe_range(  # type: ignore[no-untyped-def]
    machines,
    tasks,
    state,
    offsets,
    scale,
    alpha,
    reference_s,
    window_s,
    routes,
    resources,
    work,
    buffer,
    first,
    last,
):
    """Write the observation of rows `first` to `last`."""
    width = machines.cores.shape[1]
    for b in range(first, last):
        row = buffer[b]
        write_chapter(machines, state, b, offsets, reference_s, window_s, work, row)
        if offsets.task >= 0:
            write_topology(machines, state, b, offsets, scale, row)
            write_masks(machines, tasks, state, b, row, offsets.task_mask, offsets.data_mask)
            estimate = row[offsets.estimate : offsets.estimate + width * width]
            congestion = row[offsets.congestion : offsets.congestion + width * width]
            migration = row[offsets.migration : offsets.migration + width]
            if state.task[b] < tasks.arrival_s.shape[1]:
                write_task(machines, tasks, state, b, offsets, scale, reference_s, window_s, row)
                forecast(
                    machines,
                    tasks,
                    state,
                    b,
                    alpha,
                    reference_s,
                    window_s,
                    routes,
                    resources,
                    estimate,
                    congestion,
                    migration,
                )
            else:  # the episode is over: there is no task to place
                clear(row[offsets.task : offsets.nodes])
                clear(estimate)
                clear(congestion)
        for i in range(len(row)):
            row[i] = min(row[i], OBSERVATION_LIMIT)


@numba.njit(cache=True, parallel=True)  # type: ignore[untyped-decorator]
def observe_parallel(  # type: ignore[no-untyped-def]
    machines,
    tasks,
    state,
    offsets,
    scale,
    alpha,
    reference_s,
    window_s,
    routes,
    resources,
    work,
    buffer,
    num_chunks,
):
    """`observe_range` over all rows, in `num_chunks` pieces at once."""
    rows = len(state.task)
    for chunk in numba.prange(num_chunks):
        observe_range(
            machines,
            tasks,
            state,
            offsets,
            scale,
            alpha,
            reference_s,
            window_s,
            routes[chunk],
            resources[chunk],
            work[chunk],
            buffer,
            chunk * rows // num_chunks,
            (chunk + 1) * rows // num_chunks,
        )

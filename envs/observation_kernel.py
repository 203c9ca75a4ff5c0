"""The kernel that writes observations: row by row, straight from the simulator's state.

Dimension key: B rows, N nodes; see `envs.observation` for what each group means.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from numa_rl.compilation import compiled
from numa_rl.simulator.fetching import AHEAD, fetch_objects, fetch_task
from numa_rl.simulator.forecast import forecast
from numa_rl.simulator.inputs import ready_time
from numa_rl.simulator.kernel import outstanding_work
from numa_rl.simulator.placement import find_room, has_room, write_shares
from numa_rl.simulator.state import ORDINARY
from numa_rl.simulator.streams import ZERO, resource_load

Float32 = npt.NDArray[np.float32]

OBSERVATION_LIMIT = np.float32(1e6)


class TaskFeature:
    """Columns of the group "task", each in units of the reference time unless said otherwise."""

    COMPUTE = 0  # flops on an average core, and overhead
    MEMORY = 1  # own bytes from an average local memory
    WRITE_FRACTION = 2  # in [0, 1]
    SIZE = 3  # the object's size over an average node's memory
    GROWTH = 4  # how much of that is new
    IS_NEW = 5  # 1 when the object does not live anywhere yet
    INPUT = 6  # input bytes from an average local memory
    READY = 7  # until the object and the inputs have been written
    GAP = 8  # since the last task arrived: short in a burst
    READ_ONLY = 9  # 1 when no task writes the object once it exists: data nodes are then copies
    WRITTEN = 10  # share of the recent accesses to the object, in bytes, that were writes
    COUNT = 11  # with it no full observation has the size of a chapter's one, up to 128 nodes


class Offsets(NamedTuple):
    """Where each group starts in a row; -1 when it is not there."""

    memory: int
    communication: int
    queue: int
    task: int
    data: int
    inputs: int
    access: int
    last: int
    migration: int
    nodes: int
    latency: int
    bandwidth: int
    estimate: int
    congestion: int
    task_mask: int
    data_mask: int


class Scale(NamedTuple):
    """Averages by which each machine's features are divided, shape (M,) each."""

    s_per_flop: Float32  # of one core, over nodes with cores
    s_per_byte: Float32  # local, idle
    memory_bytes: Float32  # of a node
    latency_s: Float32  # the smallest
    s_per_byte_least: Float32  # of the fastest pair


# numba reads module constants, not class attributes.
COMPUTE, MEMORY, WRITE_FRACTION, SIZE = (
    TaskFeature.COMPUTE,
    TaskFeature.MEMORY,
    TaskFeature.WRITE_FRACTION,
    TaskFeature.SIZE,
)
GROWTH, IS_NEW, INPUT = TaskFeature.GROWTH, TaskFeature.IS_NEW, TaskFeature.INPUT
READY, GAP = TaskFeature.READY, TaskFeature.GAP
READ_ONLY, WRITTEN = TaskFeature.READ_ONLY, TaskFeature.WRITTEN
TASK_COUNT = TaskFeature.COUNT


@compiled
def write_masks(machines, tasks, state, b, row, task_mask, data_mask):
    """Write which nodes can run the next task and which have room for its object."""
    m, e, t = state.machine[b], state.episode[b], state.task[b]
    nodes = machines.num_nodes[m]
    over = t >= tasks.each.shape[1]
    obj = ZERO if over else tasks.each[e, t].object
    size = 0.0 if over else tasks.each[e, t].object_bytes
    some = over or find_room(machines, state, b, 0, np.int32(obj), size) >= 0
    for n in range(machines.cores.shape[1]):
        exists = n < nodes
        fits = exists and (over or not some or has_room(machines, state, b, n, np.int32(obj), size))
        row[task_mask + n] = np.float32(exists and machines.cores[m, n] > 0)
        row[data_mask + n] = np.float32(fits)


@compiled
def mask_range(machines, tasks, state, masks, task_mask, data_mask):
    """`write_masks` of every row."""
    for b in range(len(state.task)):
        write_masks(machines, tasks, state, b, masks[b], task_mask, data_mask)


@compiled
def write_chapter(machines, state, b, offsets, reference_s, window_s, work, row):
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
def write_where(machines, state, b, obj, amount, shares, row):
    """Add `amount` to each node in proportion to the share of the object there: all of it wherever a copy is."""
    home = state.objects[b, obj].node
    if home >= 0 and ORDINARY <= state.objects[b, obj].form <= 1:
        row[home] += amount
    elif home >= 0:
        write_shares(machines, state, b, obj, shares)
        for n in range(len(row)):
            row[n] += amount * np.float32(shares[n])


@compiled
def write_task(machines, tasks, state, b, offsets, scale, reference_s, window_s, shares, row):
    """Write the task's features, and by node: its object, its inputs, and who has been using the object."""
    m, e, t = state.machine[b], state.episode[b], state.task[b]
    width = machines.cores.shape[1]
    obj = tasks.each[e, t].object
    size = tasks.each[e, t].object_bytes
    home = state.objects[b, obj].node
    data = row[offsets.data : offsets.data + width]
    inputs = row[offsets.inputs : offsets.inputs + width]
    access = row[offsets.access : offsets.access + width]
    last = row[offsets.last : offsets.last + width]
    recent = state.access_bytes[b, obj * width : (obj + 1) * width]
    local = scale.s_per_byte[m]
    decay = math.exp(-np.float32(state.now_s[b] - state.objects[b, obj].accessed_s) / window_s)
    accessed = ZERO
    for n in range(width):
        data[n] = last[n] = ZERO
        inputs[n] = ZERO
        accessed += recent[n]
        access[n] = resource_load(recent[n] * decay, local, window_s)
    write_where(machines, state, b, obj, np.float32(1.0), shares, data)
    if state.objects[b, obj].holder >= 0:
        last[state.objects[b, obj].holder] = np.float32(1.0)
    total = ZERO
    for p in range(tasks.inputs.shape[2]):
        source = tasks.inputs[e, t, p].object
        if source >= 0 and state.objects[b, source].node >= 0:
            seconds = tasks.inputs[e, t, p].bytes * local / reference_s
            write_where(machines, state, b, source, seconds, shares, inputs)
            total += seconds
    task = row[offsets.task : offsets.task + TASK_COUNT]
    task[COMPUTE] = (tasks.each[e, t].flops * scale.s_per_flop[m] + tasks.each[e, t].overhead_s) / reference_s
    task[MEMORY] = tasks.each[e, t].bytes * local / reference_s
    task[WRITE_FRACTION] = tasks.each[e, t].write_fraction
    task[SIZE] = np.float32(size) / scale.memory_bytes[m]
    task[GROWTH] = np.float32(max(size - state.objects[b, obj].bytes, 0.0)) / scale.memory_bytes[m]
    task[IS_NEW] = np.float32(home < 0)
    task[INPUT] = total
    task[READY] = np.float32(ready_time(tasks, state, b) - state.now_s[b]) / reference_s
    task[READ_ONLY] = np.float32(tasks.read_only[e, obj])
    task[WRITTEN] = state.objects[b, obj].written_bytes / accessed if accessed > ZERO else ZERO
    task[GAP] = np.float32(state.now_s[b] - tasks.each[e, max(t - 1, 0)].arrival_s) / reference_s


@compiled
def write_topology(machines, state, b, offsets, scale, row):
    """Write which nodes exist, and the machine's relative latencies and bandwidths."""
    m = state.machine[b]
    width = machines.cores.shape[1]
    for n in range(width):
        row[offsets.nodes + n] = np.float32(n < machines.num_nodes[m])
    latency = row[offsets.latency : offsets.latency + width * width]
    bandwidth = row[offsets.bandwidth : offsets.bandwidth + width * width]
    for i in range(width * width):
        latency[i] = min(machines.latency_s[m, i] / scale.latency_s[m], OBSERVATION_LIMIT)
        slow = machines.pair_s_per_byte[m, i]
        bandwidth[i] = scale.s_per_byte_least[m] / slow if slow > ZERO else ZERO


@compiled
def clear(values):
    """Set all to zero."""
    for i in range(len(values)):
        values[i] = ZERO


@compiled
def observe_range(
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
    shown,
    buffer,
    rows,
    first,
    last,
):
    """Write the observations of `rows[first:last]`."""
    width = machines.cores.shape[1]
    for i in range(first, last):
        if offsets.task >= 0 and i + AHEAD < last:
            fetch_task(tasks, state, rows[min(i + 2 * AHEAD, last - 1)])
            fetch_objects(machines, tasks, state, rows[i + AHEAD])
        b = rows[i]
        row = buffer[b]
        write_chapter(machines, state, b, offsets, reference_s, window_s, work[0], row)
        changing = len(row)
        if offsets.task >= 0:
            changing = offsets.nodes
            if shown[b] != state.machine[b]:
                shown[b] = state.machine[b]
                write_topology(machines, state, b, offsets, scale, row)
            write_masks(machines, tasks, state, b, row, offsets.task_mask, offsets.data_mask)
            estimate = row[offsets.estimate : offsets.estimate + width * width]
            congestion = row[offsets.congestion : offsets.congestion + width * width]
            migration = row[offsets.migration : offsets.migration + width]
            if state.task[b] < tasks.each.shape[1]:
                write_task(machines, tasks, state, b, offsets, scale, reference_s, window_s, work[1], row)
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
                clear(row[offsets.task : offsets.task_mask])
        for k in range(changing):
            row[k] = min(row[k], OBSERVATION_LIMIT)

"""What a task reads besides its own object: from where, as how many messages, and how long that takes.

Dimension key: N nodes, P inputs, as in `state.py`.

References:
    [1] The chapter, section 16.1.2: small messages are aggregated.
"""

from __future__ import annotations

import numpy as np

from numa_rl.compilation import compiled
from numa_rl.simulator.in_flight import note_stream
from numa_rl.simulator.placement import SOURCES, nearest_copy, write_shares
from numa_rl.simulator.state import SPLIT
from numa_rl.simulator.streams import HALF, ZERO, read_time, transfer_cost


@compiled
def ready_time(tasks, state, b):
    """When the next task's object and inputs have been written, at least now."""
    e, t = state.episode[b], state.task[b]
    ready = max(state.now_s[b], state.objects[b, tasks.each[e, t].object].ready_s)
    for p in range(tasks.inputs.shape[2]):
        obj = tasks.inputs[e, t, p].object
        if obj >= 0:
            ready = max(ready, state.objects[b, obj].ready_s)
    return ready


@compiled
def has_scattered_inputs(tasks, state, b):
    """Whether an input of the next task has its pages split over nodes, or copies on several."""
    e, t = state.episode[b], state.task[b]
    scattered = False
    for p in range(tasks.inputs.shape[2]):
        obj = tasks.inputs[e, t, p].object
        if obj >= 0:
            form = state.objects[b, obj].form
            scattered |= form == SPLIT or form > 1
    return scattered


@compiled
def gathered_bytes(tasks, state, b, p):
    """Bytes of the next task's inputs from the node of its p-th, if that is the first from there: one message [1].

    For inputs of which each is whole on one node.
    """
    e, t = state.episode[b], state.task[b]
    obj = tasks.inputs[e, t, p].object
    if obj < 0 or state.objects[b, obj].node < 0:
        return ZERO
    home = state.objects[b, obj].node
    for before in range(p):
        other = tasks.inputs[e, t, before].object
        if other >= 0 and state.objects[b, other].node == home:
            return ZERO
    total = tasks.inputs[e, t, p].bytes
    for after in range(p + 1, tasks.inputs.shape[2]):
        other = tasks.inputs[e, t, after].object
        if other >= 0 and state.objects[b, other].node == home:
            total += tasks.inputs[e, t, after].bytes
    return total


@compiled
def write_sources(machines, tasks, state, b, node, shares, sources):
    """Write the bytes that `node` reads of the next task's live inputs from each node, (N,): a message from each [1].

    Of an object with several copies, the nearest one is read. `shares` is scratch, (N,).
    """
    e, t = state.episode[b], state.task[b]
    for n in range(len(sources)):
        sources[n] = 0.0
    for p in range(tasks.inputs.shape[2]):
        obj = tasks.inputs[e, t, p].object
        if obj >= 0 and state.objects[b, obj].node >= 0:
            if state.objects[b, obj].form == SPLIT:
                write_shares(machines, state, b, obj, shares)
                for n in range(len(sources)):
                    sources[n] += shares[n] * tasks.inputs[e, t, p].bytes
            else:
                sources[nearest_copy(machines, state, b, obj, node)] += tasks.inputs[e, t, p].bytes


@compiled
def message_time(machines, state, b, node, home, num_bytes):
    """Seconds for a core of `node` to read a message of `num_bytes` from memory of `home`; those of its bytes alone."""
    s_per_byte, latency, controller = transfer_cost(machines, state, b, node, home, num_bytes, ZERO)
    split = ZERO if home == node else controller
    most = num_bytes if home == node else HALF * machines.llc_bytes[state.machine[b], node]
    return read_time(num_bytes, s_per_byte, split, latency, most), num_bytes * s_per_byte


@compiled
def read_message(machines, state, b, head, node, home, num_bytes):
    """`message_time`, noted as a stream of the task being decided."""
    seconds, moving_s = message_time(machines, state, b, node, home, num_bytes)
    note_stream(state, b, head, node * machines.cores.shape[1] + home, moving_s, num_bytes, ZERO)
    return seconds


@compiled
def input_transfer(machines, tasks, state, b, head, node, work):
    """Seconds for a core of `node` to read the next task's live inputs, one source node after another [1]."""
    e, t = state.episode[b], state.task[b]
    seconds = 0.0
    if has_scattered_inputs(tasks, state, b):
        sources = work[SOURCES]
        write_sources(machines, tasks, state, b, node, work[0], sources)
        for home in range(machines.num_nodes[state.machine[b]]):
            if sources[home] > 0.0:
                seconds += read_message(machines, state, b, head, node, home, np.float32(sources[home]))
        return seconds
    for p in range(tasks.inputs.shape[2]):
        num_bytes = gathered_bytes(tasks, state, b, p)
        if num_bytes > ZERO:
            home = state.objects[b, tasks.inputs[e, t, p].object].node
            seconds += read_message(machines, state, b, head, node, home, num_bytes)
    return seconds

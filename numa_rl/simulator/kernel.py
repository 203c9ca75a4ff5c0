"""The equations of one decision, compiled by numba: what a placement costs, and what it does to the machine.

Everything here works on one row b of the arrays in `state.py`; `step_range` loops over rows, and rows share
nothing, so any batch size and thread count give the same bits (no fused multiply-add, no reassociation).

Dimension key: N nodes, R resources, P inputs, as in `state.py`.

References:
    [1] The chapter, section 16.1.2: small messages are aggregated.
    [2] The chapter, section 16.2.3: T_exec, T_comm and Imbalance.
    [3] The chapter, section 16.4.3: the roofline.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from numa_rl.compilation import compiled
from numa_rl.simulator.lines import ask_holder, cache_lines
from numa_rl.simulator.state import EXCLUSIVE, OBJECT
from numa_rl.simulator.streams import (
    HALF,
    ONE,
    ZERO,
    controller_s_per_byte,
    migrate,
    read_time,
    transfer_cost,
)

OBJECT_BYTES = OBJECT.itemsize
AHEAD = 3  # rows between asking for an object's cache lines and using them


def _prefetch(typing_context, array, num_bytes):
    """Ask the processor for the cache line `num_bytes` into the array, without waiting for it."""
    del typing_context

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte, word = ir.IntType(8), ir.IntType(32)
        address = builder.gep(builder.bitcast(data, byte.as_pointer()), [arguments[1]])
        kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, *(ir.Constant(word, value) for value in (1, 3, 1))])  # write, keep, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


prefetch: Any = intrinsic(_prefetch)


@compiled
def fetch_objects(tasks, state, b, width):
    """Ask for what row b's next task will touch of its objects: they lie anywhere, and nothing else foresees them."""
    e, t = state.episode[b], state.task[b]
    if t < tasks.object.shape[1]:
        objects = state.objects.shape[1]
        for p in range(-1, tasks.inputs.shape[2]):
            obj = tasks.object[e, t] if p < 0 else tasks.inputs[e, t, p]
            if obj >= 0:
                start = (b * objects + obj) * OBJECT_BYTES  # an object may lie over two cache lines
                prefetch(state.objects, start)
                prefetch(state.objects, start + OBJECT_BYTES - 1)
                prefetch(state.access_bytes, (b * objects + obj) * width * 4)


@compiled
def has_room(machines, state, b, node, obj, num_bytes):
    """Whether `node` can hold `obj` at `num_bytes`; what the object already occupies there counts as free."""
    used = state.memory_used_bytes[b, node] + num_bytes
    if state.objects[b, obj].node == node:
        used -= state.objects[b, obj].bytes
    return used <= machines.memory_bytes[state.machine[b], node]


@compiled
def find_room(machines, state, b, node, obj, num_bytes):
    """The nearest node to `node` that has room, itself first, as Linux falls back; -1 when none has."""
    m = state.machine[b]
    row = node * machines.cores.shape[1]
    for k in range(machines.num_nodes[m]):
        candidate = machines.fallback_order[m, row + k]
        if has_room(machines, state, b, candidate, obj, num_bytes):
            return candidate
    return -1


@compiled
def ready_time(tasks, state, b):
    """When the next task's object and inputs have been written, at least now."""
    e, t = state.episode[b], state.task[b]
    ready = max(state.now_s[b], state.objects[b, tasks.object[e, t]].ready_s)
    for p in range(tasks.inputs.shape[2]):
        obj = tasks.inputs[e, t, p]
        if obj >= 0:
            ready = max(ready, state.objects[b, obj].ready_s)
    return ready


@compiled
def gathered_bytes(tasks, state, b, p):
    """Bytes of the next task's inputs from the node of its p-th, if that is the first from there: one message [1]."""
    e, t = state.episode[b], state.task[b]
    obj = tasks.inputs[e, t, p]
    if obj < 0 or state.objects[b, obj].node < 0:
        return ZERO
    home = state.objects[b, obj].node
    for before in range(p):
        other = tasks.inputs[e, t, before]
        if other >= 0 and state.objects[b, other].node == home:
            return ZERO
    total = tasks.input_bytes[e, t, p]
    for after in range(p + 1, tasks.inputs.shape[2]):
        other = tasks.inputs[e, t, after]
        if other >= 0 and state.objects[b, other].node == home:
            total += tasks.input_bytes[e, t, after]
    return total


@compiled
def input_transfer(machines, tasks, state, b, node, window_s):
    """Seconds for a core of `node` to read the next task's live inputs, one source node after another [1]."""
    m, e, t = state.machine[b], state.episode[b], state.task[b]
    seconds = 0.0
    for p in range(tasks.inputs.shape[2]):
        num_bytes = gathered_bytes(tasks, state, b, p)
        if num_bytes > ZERO:
            home = state.objects[b, tasks.inputs[e, t, p]].node
            s_per_byte, latency = transfer_cost(machines, state, b, node, home, ZERO, window_s)
            split = ZERO if home == node else controller_s_per_byte(machines, state, b, home, window_s)
            most = num_bytes if home == node else HALF * machines.llc_bytes[m, node]
            seconds += read_time(num_bytes, s_per_byte, split, latency, most)
    return seconds


@compiled
def task_coherence(machines, tasks, state, b, node, window_s):
    """Seconds for which the next task, on `node`, waits for the holders of its object's and its inputs' lines."""
    e, t = state.episode[b], state.task[b]
    seconds = 0.0
    for p in range(-1, tasks.inputs.shape[2]):
        own = p < 0
        obj = tasks.object[e, t] if own else tasks.inputs[e, t, p]
        if obj >= 0:
            num_bytes = tasks.bytes[e, t] if own else tasks.input_bytes[e, t, p]
            write_fraction = tasks.write_fraction[e, t] if own else ZERO
            seconds += ask_holder(machines, state, b, node, obj, num_bytes, write_fraction, window_s)
    return seconds


@compiled
def outstanding_work(machines, state, b, work):
    """Write each node's outstanding seconds of work per core, shape (N,): how long until it drains."""
    m = state.machine[b]
    width = machines.cores.shape[1]
    now = state.now_s[b]
    free = state.core_free_s[b]
    for n in range(width):
        work[n] = 0.0
    for first in range(0, len(free), width):
        for n in range(width):
            work[n] += max(free[first + n] - now, 0.0)
    for n in range(width):
        work[n] /= max(machines.cores[m, n], 1)


@compiled
def load_imbalance(machines, state, b, work):
    """Imbalance = sigma / mu of outstanding work over the nodes that have cores, 0 when all idle [2]."""
    m = state.machine[b]
    count = 0
    total = 0.0
    for n in range(machines.num_nodes[m]):
        if machines.cores[m, n] > 0:
            count += 1
            total += work[n]
    if total <= 0.0:
        return 0.0
    mean = total / count
    squares = 0.0
    for n in range(machines.num_nodes[m]):
        if machines.cores[m, n] > 0:
            squares += (work[n] - mean) ** 2
    return math.sqrt(squares / count) / mean


@compiled
def add_traffic(machines, state, b, node, target, reads, writes):
    """Count bytes read and written between `node` and memory of `target`, on its controller and on every link."""
    m = state.machine[b]
    width = machines.cores.shape[1]
    used = state.resource_bytes[b]
    pair = node * width + target
    state.traffic_bytes[b, pair] += reads + writes
    state.pair_bytes[b, 2 * pair] += reads
    state.pair_bytes[b, 2 * pair + 1] += writes
    used[target] += reads + writes
    start = node * width + node
    while pair != start:
        used[machines.link_in[m, pair]] += reads
        used[machines.link_out[m, pair]] += writes
        pair = np.int64(machines.parent_pair[m, pair])


@compiled
def add_access(state, b, node, obj, num_bytes, width, window_s):
    """Bring the object's access counts up to now and count bytes that `node` moves."""
    row = state.access_bytes[b, obj * width : (obj + 1) * width]
    decay = math.exp(-np.float32(state.now_s[b] - state.objects[b, obj].accessed_s) / window_s)
    for n in range(width):
        row[n] *= decay
    row[node] += num_bytes
    state.objects[b, obj].accessed_s = state.now_s[b]


@compiled
def decide(machines, tasks, state, outcome, b, node, data_node, window_s, work):
    """Run the next task of row b on `node` with its object on `data_node`; write what it cost [2]."""
    m, e, t = state.machine[b], state.episode[b], state.task[b]
    width = machines.cores.shape[1]
    node = machines.runs_on[m, node]
    obj = tasks.object[e, t]
    num_bytes = tasks.bytes[e, t]
    size = tasks.object_bytes[e, t]
    home = state.objects[b, obj].node
    old_size = state.objects[b, obj].bytes
    write_fraction = tasks.write_fraction[e, t]

    target = find_room(machines, state, b, data_node, obj, size)
    outcome.task_node[b] = node
    outcome.data_node[b] = target
    outcome.out_of_memory[b] = target < 0
    outcome.fell_back[b] = target >= 0 and target != data_node
    migrated = target >= 0 and home >= 0 and home != target
    outcome.migrated[b] = migrated
    wait = service = inputs = migration = coherence = 0.0
    local_bytes = remote_bytes = 0.0
    if target >= 0:
        # Every time is taken before this task's own traffic is added: the estimate sees the same state.
        s_per_byte, _ = transfer_cost(machines, state, b, node, target, write_fraction, window_s)
        service = max(tasks.flops[e, t] * machines.s_per_flop[m, node], num_bytes * s_per_byte)  # roofline [3]
        inputs = input_transfer(machines, tasks, state, b, node, window_s)
        coherence = task_coherence(machines, tasks, state, b, node, window_s)
        if migrated:
            migration = migrate(machines, state, b, home, target, old_size, window_s)
        start = max(ready_time(tasks, state, b), state.node_free_s[b, node])
        wait = start - state.now_s[b]
        finish = start + migration + inputs + coherence + service
        occupy_core(machines, state, b, node, finish)

        if migrated:
            add_traffic(machines, state, b, target, home, np.float32(old_size), ZERO)
            add_traffic(machines, state, b, target, target, ZERO, np.float32(old_size))
            remote_bytes += old_size
        add_traffic(machines, state, b, node, target, num_bytes * (ONE - write_fraction), num_bytes * write_fraction)
        add_access(state, b, node, obj, num_bytes, width, window_s)
        if target == node:
            local_bytes += num_bytes
        else:
            remote_bytes += num_bytes
        for p in range(tasks.inputs.shape[2]):
            source = tasks.inputs[e, t, p]
            if source >= 0 and state.objects[b, source].node >= 0:
                where = state.objects[b, source].node
                read = tasks.input_bytes[e, t, p]
                add_traffic(machines, state, b, node, where, read, ZERO)
                add_access(state, b, node, source, read, width, window_s)
                cache_lines(machines, state, b, node, source, read, ZERO)
                if where == node:
                    local_bytes += read
                else:
                    remote_bytes += read

        if home >= 0:
            state.memory_used_bytes[b, home] -= old_size
        state.memory_used_bytes[b, target] += size
        state.objects[b, obj].node = target
        state.objects[b, obj].bytes = size
        if migrated:
            state.objects[b, obj].holder = -1  # the lines of the pages it left are dropped
            state.objects[b, obj].cached_bytes = ZERO
        cache_lines(machines, state, b, node, obj, num_bytes, write_fraction)
        if home < 0 or migrated or write_fraction > ZERO:
            state.objects[b, obj].ready_s = finish

    outstanding_work(machines, state, b, work)
    outcome.imbalance[b] = load_imbalance(machines, state, b, work)
    outcome.wait_s[b] = wait
    outcome.migration_s[b] = migration
    outcome.coherence_s[b] = coherence
    outcome.exec_s[b] = wait + service
    outcome.comm_s[b] = inputs + migration + coherence
    outcome.local_bytes[b] = local_bytes
    outcome.remote_bytes[b] = remote_bytes


@compiled
def occupy_core(machines, state, b, node, until_s):
    """Give the node's first free core work until `until_s`: first come, first served."""
    width = machines.cores.shape[1]
    free = state.core_free_s[b]
    last = machines.cores[state.machine[b], node]
    best = node
    for c in range(1, last):
        if free[c * width + node] < free[best]:
            best = c * width + node
    free[best] = until_s
    earliest = free[node]
    for c in range(1, last):
        earliest = min(earliest, free[c * width + node])
    state.node_free_s[b, node] = earliest


@compiled
def advance(tasks, state, b, window_s):
    """Free what the task just decided was the last to use, then move time to the next task.

    That is when it arrives or, in a graph of tasks, when its inputs are ready, and never back.
    """
    e, t = state.episode[b], state.task[b]
    obj = tasks.first_freed[e, t]
    while obj >= 0:
        home = state.objects[b, obj].node
        if home >= 0:
            state.memory_used_bytes[b, home] -= state.objects[b, obj].bytes
            state.objects[b, obj].node = -1
            state.objects[b, obj].bytes = 0.0
            state.objects[b, obj].holder = -1
        obj = tasks.next_freed[e, obj]
    state.task[b] = t + 1
    if t + 1 < tasks.arrival_s.shape[1]:
        before = state.now_s[b]
        state.now_s[b] = max(before, tasks.arrival_s[e, t + 1])
        if tasks.follows_inputs:
            state.now_s[b] = ready_time(tasks, state, b)
        elapsed = state.now_s[b] - before
        decay = math.exp(-np.float32(elapsed) / window_s)
        traffic = state.traffic_bytes[b]
        for i in range(len(traffic)):
            traffic[i] *= decay
        used = state.resource_bytes[b]
        for i in range(len(used)):
            used[i] *= decay


@compiled
def reset_row(tasks, state, b, episode, machine, horizon):
    """Put row b at the first task of an episode, on an idle, empty machine."""
    state.machine[b] = machine
    state.episode[b] = episode
    state.task[b] = 0
    state.horizon[b] = horizon
    start = tasks.arrival_s[episode, 0]
    state.now_s[b] = start
    state.core_free_s[b, :] = start
    state.node_free_s[b, :] = start
    state.memory_used_bytes[b, :] = 0.0
    state.traffic_bytes[b, :] = 0.0
    state.resource_bytes[b, :] = 0.0
    state.access_bytes[b, :] = 0.0
    state.passed_bytes[b, :] = 0.0
    state.pair_bytes[b, :] = ZERO
    for obj in range(state.objects.shape[1]):
        state.objects[b, obj].node = -1
        state.objects[b, obj].bytes = 0.0
        state.objects[b, obj].ready_s = start
        state.objects[b, obj].accessed_s = start
        state.objects[b, obj].cached_at = 0.0
        state.objects[b, obj].cached_bytes = ZERO
        state.objects[b, obj].holder = -1
        state.objects[b, obj].sharer = EXCLUSIVE


@compiled
def add(total, values, decided_s, first, last):
    """Add the values of the rows that decided; a loop over two arrays becomes vector code."""
    for b in range(first, last):
        total[b] += values[b] if decided_s[b] >= 0.0 else 0.0


@compiled
def add_totals(totals, outcome, decided_s, first, last):
    """Add what the decisions of rows `first` to `last` led to; `decided_s` is when, negative for none."""
    add(totals.compute_s, outcome.exec_s, decided_s, first, last)
    add(totals.communication_s, outcome.comm_s, decided_s, first, last)
    add(totals.migration_s, outcome.migration_s, decided_s, first, last)
    add(totals.coherence_s, outcome.coherence_s, decided_s, first, last)
    add(totals.local_bytes, outcome.local_bytes, decided_s, first, last)
    add(totals.remote_bytes, outcome.remote_bytes, decided_s, first, last)
    add(totals.imbalance, outcome.imbalance, decided_s, first, last)
    add(totals.migrations, outcome.migrated, decided_s, first, last)
    add(totals.dropped, outcome.out_of_memory, decided_s, first, last)
    for b in range(first, last):
        if decided_s[b] >= 0.0:
            totals.compute_s[b] -= outcome.wait_s[b]
            finish = decided_s[b] + outcome.exec_s[b] + outcome.comm_s[b]
            totals.last_finish_s[b] = max(totals.last_finish_s[b], finish)


@compiled
def step_range(machines, tasks, state, outcome, totals, actions, window_s, work, decided_s, first, last):
    """Decide and advance rows `first` to `last`; a row whose episode is over is left alone."""
    for b in range(first, last):
        if b + AHEAD < last:
            fetch_objects(tasks, state, b + AHEAD, machines.cores.shape[1])
        decided_s[b] = -1.0
        if state.task[b] < state.horizon[b]:
            decided_s[b] = state.now_s[b]
            decide(machines, tasks, state, outcome, b, actions[b, 0], actions[b, 1], window_s, work)
            advance(tasks, state, b, window_s)
        outcome.finished[b] = state.task[b] >= state.horizon[b]
    add_totals(totals, outcome, decided_s, first, last)

"""The equations of one decision, compiled by numba: what a placement costs, and what it does to the machine.

Everything here works on one row b of the arrays in `state.py`; `step_rows` loops over rows, and rows share
nothing, so any batch size and thread count give the same bits (no fused multiply-add, no reassociation).

Dimension key: N nodes, R resources, P inputs, as in `state.py`.

References:
    [1] The chapter, section 16.1.2: T_transfer = S / B + L.
    [2] The chapter, section 16.2.3: T_exec, T_comm and Imbalance.
    [3] The chapter, section 16.4.3: the roofline.
    [4] J. D. C. Little, "A proof for the queuing formula L = lambda W", 1961.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from numa_rl.compilation import compiled
from numa_rl.simulator.state import OBJECT

ONE = np.float32(1.0)
ZERO = np.float32(0.0)
NO_ROOM = np.float32(1e-9)  # keeps r(u) finite beyond u = 1 / c, where it is `saturated` anyway
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
                prefetch(state.objects, (b * objects + obj) * OBJECT_BYTES)
                prefetch(state.access_bytes, (b * objects + obj) * width * 4)


@compiled
def shared_s_per_byte(idle_s_per_byte, load):
    """Seconds per byte of a resource that offered load u keeps busy: its equal share is capacity / (1 + u)."""
    return idle_s_per_byte * (ONE + load)


@compiled
def latency_factor(load, a, c, saturated):
    """Loaded over idle latency, r(u) = 1 + a u / (1 - c u), at most `saturated`."""
    room = max(ONE - c * load, NO_ROOM)
    return min(ONE + a * load / room, saturated)


@compiled
def resource_load(resource_bytes, idle_s_per_byte, window_s):
    """Offered load of a controller or link: recent bytes over what it can move in a window."""
    return resource_bytes * idle_s_per_byte / window_s


@compiled
def route_load(machines, state, b, node, target, window_s):
    """What a stream between initiator `node` and memory of `target` meets on its way.

    Returns:
        (seconds per byte of the slowest link toward the initiator, the same away from it,
        the largest load of the controller and the links).
    """
    m = state.machine[b]
    width = machines.cores.shape[1]
    idle = machines.resource_s_per_byte[m]
    used = state.resource_bytes[b]
    inward = ZERO
    outward = ZERO
    load = resource_load(used[target], idle[target], window_s)
    pair = node * width + target
    start = node * width + node
    while pair != start:
        link = machines.link_in[m, pair]
        u = resource_load(used[link], idle[link], window_s)
        inward = max(inward, shared_s_per_byte(idle[link], u))
        load = max(load, u)
        link = machines.link_out[m, pair]
        u = resource_load(used[link], idle[link], window_s)
        outward = max(outward, shared_s_per_byte(idle[link], u))
        load = max(load, u)
        pair = np.int64(machines.parent_pair[m, pair])
    return inward, outward, load


@compiled
def stream_s_per_byte(
    pair_s_per_byte, controller_s_per_byte, inward, outward, write_fraction, loaded_latency_s, outstanding_bytes
):
    """Seconds per byte of one core's stream: the slowest of everything it passes.

    Reads cross the links toward the initiator and writes the links away from it, at the same time; the core
    itself keeps `outstanding_bytes` in flight, so it moves at most that many bytes per loaded latency [4].
    """
    core = loaded_latency_s / outstanding_bytes
    links = max((ONE - write_fraction) * inward, write_fraction * outward)
    return max(max(pair_s_per_byte, controller_s_per_byte), max(links, core))


@compiled
def transfer_cost(machines, state, b, node, target, write_fraction, window_s):
    """Seconds per byte of a stream between a core of `node` and memory of `target`, and its loaded latency."""
    m = state.machine[b]
    pair = node * machines.cores.shape[1] + target
    inward, outward, load = route_load(machines, state, b, node, target, window_s)
    idle = machines.resource_s_per_byte[m, target]
    controller = shared_s_per_byte(idle, resource_load(state.resource_bytes[b, target], idle, window_s))
    factor = latency_factor(load, machines.latency_a[m], machines.latency_c[m], machines.latency_saturated[m])
    latency = machines.latency_s[m, pair] * factor
    s_per_byte = stream_s_per_byte(
        machines.pair_s_per_byte[m, pair],
        controller,
        inward,
        outward,
        write_fraction,
        latency,
        machines.outstanding_bytes[m],
    )
    return s_per_byte, latency


@compiled
def page_time(num_bytes, page_bytes, page_move_s):
    """Seconds of kernel work to move as many pages as hold `num_bytes`."""
    return math.ceil(num_bytes / page_bytes) * page_move_s


@compiled
def migration_time(num_bytes, s_per_byte, latency_s, page_s):
    """Seconds to move `num_bytes` from one node's memory to another's: transfer [1], and work for its pages.

    `s_per_byte` is the slower of reading there and writing here.
    """
    return num_bytes * s_per_byte + latency_s + page_s


@compiled
def migrate(machines, state, b, source, target, num_bytes, window_s):
    """`migration_time` between two nodes as loaded as they are now."""
    m = state.machine[b]
    s_per_byte, latency = transfer_cost(machines, state, b, target, source, ZERO, window_s)
    idle = machines.resource_s_per_byte[m, target]
    writing = shared_s_per_byte(idle, resource_load(state.resource_bytes[b, target], idle, window_s))
    page_s = page_time(num_bytes, machines.page_bytes[m], machines.page_move_s[m])
    return migration_time(num_bytes, max(s_per_byte, writing), latency, page_s)


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
def input_transfer(machines, tasks, state, b, node, window_s):
    """Seconds for a core of `node` to read every live input of the next task, one after another [1]."""
    e, t = state.episode[b], state.task[b]
    seconds = 0.0
    for p in range(tasks.inputs.shape[2]):
        obj = tasks.inputs[e, t, p]
        if obj >= 0 and state.objects[b, obj].node >= 0 and tasks.input_bytes[e, t, p] > ZERO:
            home = state.objects[b, obj].node
            s_per_byte, latency = transfer_cost(machines, state, b, node, home, ZERO, window_s)
            seconds += tasks.input_bytes[e, t, p] * s_per_byte + latency
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
    state.traffic_bytes[b, node * width + target] += reads + writes
    used[target] += reads + writes
    pair = node * width + target
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
    wait = service = inputs = migration = 0.0
    local_bytes = remote_bytes = 0.0
    if target >= 0:
        # Every time is taken before this task's own traffic is added: the estimate sees the same state.
        s_per_byte, _ = transfer_cost(machines, state, b, node, target, write_fraction, window_s)
        service = max(tasks.flops[e, t] * machines.s_per_flop[m, node], num_bytes * s_per_byte)  # roofline [3]
        inputs = input_transfer(machines, tasks, state, b, node, window_s)
        if migrated:
            migration = migrate(machines, state, b, home, target, old_size, window_s)
        start = max(ready_time(tasks, state, b), state.node_free_s[b, node])
        wait = start - state.now_s[b]
        finish = start + migration + inputs + service
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
                if where == node:
                    local_bytes += read
                else:
                    remote_bytes += read

        if home >= 0:
            state.memory_used_bytes[b, home] -= old_size
        state.memory_used_bytes[b, target] += size
        state.objects[b, obj].node = target
        state.objects[b, obj].bytes = size
        if home < 0 or migrated or write_fraction > ZERO:
            state.objects[b, obj].ready_s = finish

    outstanding_work(machines, state, b, work)
    outcome.imbalance[b] = load_imbalance(machines, state, b, work)
    outcome.wait_s[b] = wait
    outcome.migration_s[b] = migration
    outcome.exec_s[b] = wait + service
    outcome.comm_s[b] = inputs + migration
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
    """Free what the task just decided was the last to use, then move time to the next task's arrival."""
    e, t = state.episode[b], state.task[b]
    obj = tasks.first_freed[e, t]
    while obj >= 0:
        home = state.objects[b, obj].node
        if home >= 0:
            state.memory_used_bytes[b, home] -= state.objects[b, obj].bytes
            state.objects[b, obj].node = -1
            state.objects[b, obj].bytes = 0.0
        obj = tasks.next_freed[e, obj]
    state.task[b] = t + 1
    if t + 1 < tasks.arrival_s.shape[1]:
        elapsed = tasks.arrival_s[e, t + 1] - state.now_s[b]
        state.now_s[b] = tasks.arrival_s[e, t + 1]
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
    for obj in range(state.objects.shape[1]):
        state.objects[b, obj].node = -1
        state.objects[b, obj].bytes = 0.0
        state.objects[b, obj].ready_s = start
        state.objects[b, obj].accessed_s = start


@compiled
def step_range(machines, tasks, state, outcome, actions, window_s, work, first, last):
    """Decide and advance rows `first` to `last`; a row whose episode is over is left alone."""
    for b in range(first, last):
        if b + AHEAD < last:
            fetch_objects(tasks, state, b + AHEAD, machines.cores.shape[1])
        if state.task[b] < state.horizon[b]:
            decide(machines, tasks, state, outcome, b, actions[b, 0], actions[b, 1], window_s, work)
            advance(tasks, state, b, window_s)
        outcome.finished[b] = state.task[b] >= state.horizon[b]

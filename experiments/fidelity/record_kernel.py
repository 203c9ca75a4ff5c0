"""Writing down what a decision will move, before the simulator makes it; compiled by numba.

Only idle times are taken from the model, and of them only what its chunked pipeline and the kernel's page work add to
bytes over bandwidth: they are asked of `idle`, a state of the same rows in which nothing moves.

Dimension key: N nodes, P inputs, as in `numa_rl/simulator/state.py`.

References:
    [1] The chapter, section 16.1.2: T_transfer = S / B + L, chunks and double buffering.
"""

from __future__ import annotations

import numpy as np

from experiments.fidelity.replay import ACCESS, MESSAGE, MOVE, PAGES
from numa_rl.compilation import compiled
from numa_rl.simulator.inputs import message_time, write_sources
from numa_rl.simulator.kernel import page_placement
from numa_rl.simulator.placement import AFTER, BEFORE, SOURCES, find_page_room, find_room, holds_copy, nearest_copy
from numa_rl.simulator.state import SPLIT
from numa_rl.simulator.streams import ONE, migrate, transfer_cost

FLOWS_PER_NODE = 6  # of a task: moves take 2 (2 N - 1) rows at most, inputs N and its own access N


@compiled
def add_flow(flows, count, kind, initiator, target, read_bytes, written_bytes, flops, fixed_s, joined):
    """Write one flow; returns how many there are."""
    flow = flows[count]
    flow.kind = kind
    flow.initiator = initiator
    flow.target = target
    flow.read_bytes = read_bytes
    flow.written_bytes = written_bytes
    flow.flops = flops
    flow.fixed_s = max(fixed_s, 0.0)
    flow.joined = joined
    return count + 1


@compiled
def add_move(machines, idle, b, flows, count, kind, source, target, num_bytes):
    """Write a move or copy: `target` reads from `source` and, at the same time, writes to its own memory."""
    seconds, moving_s = migrate(machines, idle, b, source, target, num_bytes)
    fixed_s = seconds - np.float64(moving_s)
    count = add_flow(flows, count, kind, target, source, num_bytes, 0.0, 0.0, fixed_s, 0)
    return add_flow(flows, count, kind, target, target, 0.0, num_bytes, 0.0, 0.0, 1)


@compiled
def add_page_moves(machines, idle, b, flows, count, before, after):
    """Write the moves that bring pages from where they are, (N,) `before`, to where they are to be, `after`.

    What an object has grown by is not moved but new. Both arrays are used up.
    """
    nodes = machines.num_nodes[idle.machine[b]]
    for target in range(nodes):
        for source in range(nodes):
            part = min(after[target] - before[target], before[source] - after[source])
            if part > 0.0:
                count = add_move(machines, idle, b, flows, count, PAGES, source, target, part)
                before[source] -= part
                after[target] -= part
    return count


@compiled
def add_reads(machines, tasks, state, idle, b, flows, count, node, work):
    """Write the reading of the next task's inputs: one message from each node that holds some of them."""
    sources = work[SOURCES]
    write_sources(machines, tasks, state, b, node, work[0], sources)
    for home in range(machines.num_nodes[state.machine[b]]):
        if sources[home] > 0.0:
            seconds, moving_s = message_time(machines, idle, b, node, home, np.float32(sources[home]))
            fixed_s = np.float64(seconds) - np.float64(moving_s)
            count = add_flow(flows, count, MESSAGE, node, home, sources[home], 0.0, 0.0, fixed_s, 0)
    return count


@compiled
def add_access(machines, tasks, state, idle, b, flows, count, node, held, total, num_bytes):
    """Write the access to the task's own object, of which each node holds a part, (N,), of `total`.

    Arithmetic goes with the parts by the time that their bytes take on the idle machine.
    """
    e, t = state.episode[b], state.task[b]
    writes = tasks.each[e, t].write_fraction
    nodes = machines.num_nodes[state.machine[b]]
    whole_s = 0.0
    for home in range(nodes):
        if held[home] > 0.0:
            s_per_byte, _, _ = transfer_cost(machines, idle, b, node, home, ONE, writes)
            whole_s += held[home] * s_per_byte
    fixed_s = np.float64(tasks.each[e, t].overhead_s)
    for home in range(nodes):
        if held[home] > 0.0:
            s_per_byte, _, _ = transfer_cost(machines, idle, b, node, home, ONE, writes)
            part = num_bytes * held[home] / total
            flops = tasks.each[e, t].flops * (held[home] * s_per_byte / whole_s)
            count = add_flow(flows, count, ACCESS, node, home, part * (ONE - writes), part * writes, flops, fixed_s, 0)
            fixed_s = np.float64(0.0)
    return count


@compiled
def write_flows(machines, tasks, state, idle, b, node, data_node, weights, flows, work):
    """Write what the next task of row b will move if it is so decided, in the order in which it does.

    Where the object goes is worked out as `numa_rl.simulator.kernel.decide` does it; nothing of the state changes.

    Returns:
        (number of flows, index of the first that is the access to the task's own object); none for a dropped task.
    """
    m, e, t = state.machine[b], state.episode[b], state.task[b]
    width = machines.cores.shape[1]
    node = machines.runs_on[m, node]
    obj = tasks.each[e, t].object
    size = tasks.each[e, t].object_bytes
    home = state.objects[b, obj].node
    form = state.objects[b, obj].form

    target = np.int64(-1)
    for n in range(len(weights)):
        if weights[n] > 0:
            target = find_page_room(machines, state, b, obj, size, weights, work)
            break
    spread = target >= 0
    if not spread:
        target = find_room(machines, state, b, data_node, obj, size)
    if target < 0:
        return 0, 0
    held = work[0]
    count = 0
    if spread or form == SPLIT:
        if page_placement(machines, state, b, obj, target, size, spread, home, work) and home >= 0:
            for n in range(width):
                held[n] = work[AFTER, n]
            count = add_page_moves(machines, idle, b, flows, count, work[BEFORE], held)
    elif home >= 0 and home != target:
        old_size = state.objects[b, obj].bytes
        if form <= 0:
            count = add_move(machines, idle, b, flows, count, MOVE, home, target, old_size)
        elif not holds_copy(state, b, obj, target, width):
            source = nearest_copy(machines, state, b, obj, target)
            count = add_move(machines, idle, b, flows, count, MOVE, source, target, old_size)

    count = add_reads(machines, tasks, state, idle, b, flows, count, node, work)
    own = count
    for n in range(width):
        held[n] = work[AFTER, n] if spread and size > 0.0 else (1.0 if n == target else 0.0)
    total = size if spread and size > 0.0 else 1.0
    count = add_access(machines, tasks, state, idle, b, flows, count, node, held, total, tasks.each[e, t].bytes)
    return count, own


@compiled
def write_all_flows(machines, tasks, state, idle, actions, flows, counts, work):
    """Write what the next task of every row will move: `flows` (B, .) and `counts` (B, 2), see `write_flows`."""
    for b in range(len(actions)):
        node, data_node = actions[b, 0], actions[b, 1]
        count, own = write_flows(machines, tasks, state, idle, b, node, data_node, actions[b, 2:], flows[b], work)
        counts[b, 0], counts[b, 1] = count, own

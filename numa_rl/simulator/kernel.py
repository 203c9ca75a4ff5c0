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

import numpy as np

from numa_rl.compilation import compiled
from numa_rl.simulator.cores import first_free_core, occupy_core
from numa_rl.simulator.fetching import AHEAD, fetch_objects, fetch_records, fetch_task
from numa_rl.simulator.in_flight import (
    clear_sums,
    close_record,
    note_stream,
    open_record,
    pass_time,
    size_of_record,
    stretch_streams,
)
from numa_rl.simulator.inputs import input_transfer, ready_time
from numa_rl.simulator.lines import ask_holder, cache_lines
from numa_rl.simulator.moves import access_pages, count_move, move_pages, pages_time, read_input
from numa_rl.simulator.placement import (
    AFTER,
    BEFORE,
    WEIGHTS,
    add_copy,
    find_page_room,
    find_room,
    holds_copy,
    make_room,
    nearest_copy,
    take_away,
    write_held,
)
from numa_rl.simulator.state import ABSENT, EXCLUSIVE, ORDINARY, SPLIT
from numa_rl.simulator.streams import ONE, ZERO, add_traffic, migrate, transfer_cost


@compiled
def task_coherence(machines, tasks, state, b, node):
    """Seconds for which the next task, on `node`, waits for the holders of its object's and its inputs' lines."""
    e, t = state.episode[b], state.task[b]
    seconds = 0.0
    for p in range(-1, tasks.inputs.shape[2]):
        own = p < 0
        obj = tasks.each[e, t].object if own else tasks.inputs[e, t, p].object
        if obj >= 0:
            num_bytes = tasks.each[e, t].bytes if own else tasks.inputs[e, t, p].bytes
            write_fraction = tasks.each[e, t].write_fraction if own else ZERO
            seconds += ask_holder(machines, state, b, node, obj, num_bytes, write_fraction)
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
def add_access(state, b, node, obj, num_bytes, write_fraction, width, window_s):
    """Bring the object's access counts up to now and count bytes that `node` moves."""
    row = state.access_bytes[b, obj * width : (obj + 1) * width]
    decay = math.exp(-np.float32(state.now_s[b] - state.objects[b, obj].accessed_s) / window_s)
    for n in range(width):
        row[n] *= decay
    row[node] += num_bytes
    written_bytes = state.objects[b, obj].written_bytes * decay
    state.objects[b, obj].written_bytes = np.float32(written_bytes) + num_bytes * write_fraction
    state.objects[b, obj].accessed_s = state.now_s[b]


@compiled
def page_placement(machines, state, b, obj, target, size, spread, home, work):
    """Write the bytes on each node before and after a placement with split pages: rows BEFORE and AFTER of `work`.

    Returns:
        Whether pages have to be dealt out anew: an object that only grows, by the same weights, moves nothing.
    """
    width = machines.cores.shape[1]
    before, after = work[BEFORE], work[AFTER]
    write_held(machines, state, b, obj, before)
    form = state.objects[b, obj].form
    if form > 1:  # pages come from the first copy, the others are dropped
        for n in range(width):
            before[n] = before[n] if n == home else 0.0
    if not spread:
        for n in range(width):
            after[n] = size if n == target else 0.0
        return True
    if form != SPLIT:
        return True
    changed = False
    for n in range(width):
        changed |= work[WEIGHTS, n] != state.page_weights[b, obj * width + n]
    return changed


@compiled
def settle(machines, tasks, state, b, obj, target, size, spread, pages, replicated, work):
    """Put the object where it was decided to be, and give back the memory where it was."""
    width = machines.cores.shape[1]
    home = state.objects[b, obj].node
    if replicated:
        add_copy(machines, state, b, obj, target)
        return
    if pages:
        take_away(machines, state, b, obj)
        for n in range(width):
            state.memory_used_bytes[b, n] += work[AFTER, n]
    else:
        if state.objects[b, obj].form > 0:  # of what is only read, there is a copy already
            return
        if home >= 0:
            state.memory_used_bytes[b, home] -= state.objects[b, obj].bytes
        state.memory_used_bytes[b, target] += size
    state.objects[b, obj].node = target
    state.objects[b, obj].bytes = size
    if spread:
        state.objects[b, obj].form = SPLIT
        for n in range(width):
            state.page_weights[b, obj * width + n] = np.uint8(work[WEIGHTS, n])
        return
    if home < 0 or pages:
        state.objects[b, obj].form = 1 if tasks.read_only[state.episode[b], obj] else ORDINARY
    if state.memory_used_bytes[b, target] > machines.memory_bytes[state.machine[b], target]:
        make_room(machines, state, b, target, obj)


@compiled
def was_redirected(weights, work, spread, target, data_node):
    """Whether full nodes made the placement another one than was asked for."""
    if target < 0:
        return False
    asked = False
    changed = not spread
    for n in range(len(weights)):
        asked |= weights[n] > 0
        changed |= spread and work[WEIGHTS, n] != weights[n]
    return changed if asked else target != data_node


@compiled
def decide(machines, tasks, state, outcome, b, node, data_node, weights, window_s, work):
    """Run the next task of row b on `node` with its object on `data_node`; write what it cost [2].

    Of an object that is only read, `data_node` says which copy the task reads; one is made where there is none. Where
    `weights` are given, (N,) and not all zero, pages are split over the nodes in proportion to them instead; if no
    node has room for pages, the object is placed as if they had not been given.
    """
    m, e, t = state.machine[b], state.episode[b], state.task[b]
    width = machines.cores.shape[1]
    node = machines.runs_on[m, node]
    obj = tasks.each[e, t].object
    num_bytes = tasks.each[e, t].bytes
    size = tasks.each[e, t].object_bytes
    home = state.objects[b, obj].node
    form = state.objects[b, obj].form
    old_size = state.objects[b, obj].bytes
    write_fraction = tasks.each[e, t].write_fraction

    target = np.int64(-1)
    for n in range(len(weights)):
        if weights[n] > 0:
            target = find_page_room(machines, state, b, obj, size, weights, work)
            break
    spread = target >= 0
    if not spread:
        target = find_room(machines, state, b, data_node, obj, size)
    pages = target >= 0 and (spread or form == SPLIT)
    source = np.int64(home)
    replicated = False
    migrated = target >= 0 and home >= 0 and home != target and not pages
    if migrated and form > 0:
        migrated = False
        replicated = not holds_copy(state, b, obj, target, width)
        source = nearest_copy(machines, state, b, obj, target)
    before, after = work[BEFORE], work[AFTER]
    moves = pages and page_placement(machines, state, b, obj, target, size, spread, home, work)

    outcome.task_node[b] = node
    outcome.data_node[b] = target
    outcome.out_of_memory[b] = target < 0
    outcome.fell_back[b] = was_redirected(weights, work, spread, target, data_node)
    wait = service = inputs = migration = coherence = 0.0
    local_bytes = remote_bytes = 0.0
    if target >= 0:
        # Every time is taken before this task's own traffic is added: the estimate sees the same state.
        core = first_free_core(machines, state, b, node)
        head = open_record(machines, state, b, core)
        if spread and size > 0.0:
            moving_s = pages_time(machines, state, b, head, node, after, num_bytes, write_fraction)
            service = max(tasks.each[e, t].flops * machines.s_per_flop[m, node], moving_s)
            if moving_s > ZERO:
                stretch_streams(state, b, head, service / moving_s)
        else:
            s_per_byte, _, _ = transfer_cost(machines, state, b, node, target, num_bytes, write_fraction)
            service = max(tasks.each[e, t].flops * machines.s_per_flop[m, node], num_bytes * s_per_byte)  # roofline [3]
            if num_bytes > ZERO:
                written = num_bytes * write_fraction
                note_stream(state, b, head, node * width + target, service, num_bytes - written, written)
        service += tasks.each[e, t].overhead_s
        inputs = input_transfer(machines, tasks, state, b, head, node, work)
        coherence = task_coherence(machines, tasks, state, b, node)
        if migrated or replicated:
            migration, moving_s = migrate(machines, state, b, source, target, old_size)
            note_stream(state, b, head, target * width + source, moving_s, old_size, 0.0)
            note_stream(state, b, head, target * width + target, moving_s, 0.0, old_size)
        elif moves:
            migration, moved = move_pages(machines, state, b, before, after, False)
            migrated = moved > 0.0
        start = max(ready_time(tasks, state, b), state.node_free_s[b, node])
        wait = start - state.now_s[b]
        finish = start + migration + inputs + coherence + service
        occupy_core(machines, state, b, node, core, finish)
        close_record(machines, state, b, core, head, start, finish)

        if moves:
            _, moved = move_pages(machines, state, b, before, after, True)
            remote_bytes += moved
        elif migrated or replicated:
            count_move(machines, state, b, source, target, old_size)
            remote_bytes += old_size
        if spread and size > 0.0:
            for n in range(width):
                work[0, n] = after[n] / size
            near, far = access_pages(machines, state, b, node, work[0], num_bytes, write_fraction)
            local_bytes += near
            remote_bytes += far
        else:
            add_traffic(
                machines, state, b, node, target, num_bytes * (ONE - write_fraction), num_bytes * write_fraction
            )
            if target == node:
                local_bytes += num_bytes
            else:
                remote_bytes += num_bytes
        add_access(state, b, node, obj, num_bytes, write_fraction, width, window_s)
        for p in range(tasks.inputs.shape[2]):
            source = tasks.inputs[e, t, p].object
            if source >= 0 and state.objects[b, source].node >= 0:
                read = tasks.inputs[e, t, p].bytes
                near, far = read_input(machines, state, b, node, source, read, work[0])
                add_access(state, b, node, source, read, ZERO, width, window_s)
                cache_lines(machines, state, b, node, source, read, ZERO)
                local_bytes += near
                remote_bytes += far

        settle(machines, tasks, state, b, obj, target, size, spread, pages, replicated, work)
        if migrated:
            state.objects[b, obj].holder = -1  # the lines of the pages it left are dropped
            state.objects[b, obj].cached_bytes = ZERO
        cache_lines(machines, state, b, node, obj, num_bytes, write_fraction)
        if home < 0 or migrated or write_fraction > ZERO:
            state.objects[b, obj].ready_s = finish

    outcome.migrated[b] = migrated
    outcome.replicated[b] = replicated
    outstanding_work(machines, state, b, work[0])
    outcome.imbalance[b] = load_imbalance(machines, state, b, work[0])
    outcome.wait_s[b] = wait
    outcome.migration_s[b] = migration
    outcome.coherence_s[b] = coherence
    outcome.exec_s[b] = wait + service
    outcome.comm_s[b] = inputs + migration + coherence
    outcome.local_bytes[b] = local_bytes
    outcome.remote_bytes[b] = remote_bytes


@compiled
def advance(machines, tasks, state, b, window_s):
    """Free what the task just decided was the last to use, then move time to the next task.

    That is when it arrives or, in a graph of tasks, when its inputs are ready, and never back.
    """
    e, t = state.episode[b], state.task[b]
    obj = tasks.each[e, t].first_freed
    while obj >= 0:
        if state.objects[b, obj].node >= 0:
            take_away(machines, state, b, obj)
            state.objects[b, obj].node = -1
            state.objects[b, obj].form = ORDINARY
            state.objects[b, obj].bytes = 0.0
            state.objects[b, obj].holder = -1
        obj = tasks.next_freed[e, obj]
    state.task[b] = t + 1
    if t + 1 < tasks.each.shape[1]:
        before = state.now_s[b]
        state.now_s[b] = max(before, tasks.each[e, t + 1].arrival_s)
        if tasks.follows_inputs:
            state.now_s[b] = ready_time(tasks, state, b)
        elapsed = state.now_s[b] - before
        if elapsed > 0.0:
            decay = math.exp(-np.float32(elapsed) / window_s)
            traffic = state.traffic_bytes[b]
            for i in range(len(traffic)):
                traffic[i] *= decay
            used = state.resource_bytes[b]
            for i in range(len(used)):
                used[i] *= decay
            pass_time(machines, state, b, elapsed)


@compiled
def reset_row(tasks, state, b, episode, machine, horizon):
    """Put row b at the first task of an episode, on an idle, empty machine."""
    state.machine[b] = machine
    state.episode[b] = episode
    state.task[b] = 0
    state.horizon[b] = horizon
    start = tasks.each[episode, 0].arrival_s
    state.now_s[b] = start
    state.core_free_s[b, :] = start
    state.node_free_s[b, :] = start
    state.memory_used_bytes[b, :] = 0.0
    state.spare_bytes[b, :] = 0.0
    state.traffic_bytes[b, :] = 0.0
    state.resource_bytes[b, :] = 0.0
    clear_sums(state, b)
    state.num_changes[b] = 0
    size = size_of_record(state.node_free_s.shape[1])
    for head in range(0, state.records.shape[1], size):
        state.records[b, head].status = ABSENT
    state.page_weights[b, :] = 0
    state.access_bytes[b, :] = 0.0
    state.passed_bytes[b, :] = 0.0
    state.pair_bytes[b, :] = ZERO
    for obj in range(state.objects.shape[1]):
        state.objects[b, obj].node = -1
        state.objects[b, obj].form = ORDINARY
        state.objects[b, obj].bytes = 0.0
        state.objects[b, obj].written_bytes = ZERO
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
            fetch_task(tasks, state, min(b + 2 * AHEAD, last - 1))
            fetch_objects(machines, tasks, state, b + AHEAD)
            fetch_records(machines, state, b + AHEAD, actions[b + AHEAD, 0])
        decided_s[b] = -1.0
        if state.task[b] < state.horizon[b]:
            decided_s[b] = state.now_s[b]
            weights = actions[b, 2:]
            decide(machines, tasks, state, outcome, b, actions[b, 0], actions[b, 1], weights, window_s, work)
            advance(machines, tasks, state, b, window_s)
        outcome.finished[b] = state.task[b] >= state.horizon[b]
    add_totals(totals, outcome, decided_s, first, last)

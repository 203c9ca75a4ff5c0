"""Timing a recorded replay again by another law of sharing, task after task; compiled by numba.

A law says how many seconds a byte of a new stream takes on a controller or link, from sums over what moves there. All
else is as in the simulator: who waits for whom, which core a task gets, which streams are in flight, what a pipeline
of chunks adds under load. No latency is loaded. Times are in double precision and sums are kept plainly, core by core.

Dimension key: T tasks, F flows, N nodes, R resources (controllers, then links), C cores, H hops.

References:
    [1] J. D. C. Little, "A proof for the queuing formula L = lambda W", 1961.
"""

from __future__ import annotations

import math

import numpy as np

from experiments.fidelity.replay import ACCESS, MESSAGE, PAGES
from numa_rl.compilation import compiled
from numa_rl.simulator.in_flight import EARLY
from numa_rl.simulator.streams import migration_time, read_time

# Rows of the sums, (5, R): streams in flight, their bytes a second, what they have left; bytes and stream-seconds of
# what was decided, which fade with the window.
COUNT, RATE, LEFT, RECENT_BYTES, RECENT_STREAM_S = range(5)
# Codes of the laws, as `laws.py` explains them.
IDLE, BY_RECENT_BYTES, AT_LEAST_EQUAL, AT_LEAST_A_TENTH, BY_COUNT, BY_COUNT_OR_RATE, BY_LITTLE, SELFISH, KEPT = range(9)
LEAST_SPARE = 1e-9  # of the capacity
ABSENT, WAITING, AT_WORK = range(3)  # what becomes of a core's record


@compiled
def share_s_per_byte(law, capacity, tau_s, sums, r, num_bytes):
    """Seconds per byte of a stream of so many bytes on resource r, by the law of that code."""
    count = max(sums[COUNT, r], 0.0)
    used = sums[RECENT_BYTES, r] / (tau_s * capacity)
    spare = max(1.0 - sums[RATE, r] / capacity, LEAST_SPARE)
    slower = 1.0
    if law == BY_RECENT_BYTES:
        slower = 1.0 + used
    elif law == AT_LEAST_EQUAL:
        slower = 1.0 / max(1.0 - used, 1.0 / (1.0 + count))
    elif law == AT_LEAST_A_TENTH:
        slower = 1.0 / max(1.0 - used, 0.1)
    elif law == BY_COUNT:
        slower = 1.0 + count
    elif law == BY_COUNT_OR_RATE:
        slower = min(1.0 + count, 1.0 / spare)
    elif law == BY_LITTLE:
        slower = 1.0 + sums[RECENT_STREAM_S, r] / tau_s
    elif law != IDLE:
        x = count * num_bytes / max(sums[LEFT, r], 1.0)
        delay = count * (1.0 + x / 2.0) / (1.0 + x + x * x / 2.0)
        slower = min(1.0 + (2.0 if law == KEPT else 1.0) * delay, 1.0 / spare)
    return slower / capacity


@compiled
def path_s_per_byte(machine, law, tau_s, sums, flow):
    """Seconds per byte of a flow on everything that it passes; those of the target's controller alone."""
    read, written = flow.read_bytes, flow.written_bytes
    total = max(read + written, 1e-300)
    target = np.int64(flow.target)
    pair = flow.initiator * len(machine.cores) + target
    controller = share_s_per_byte(law, machine.capacity[target], tau_s, sums, target, read + written)
    slowest = max(max(machine.pair_s_per_byte[pair], machine.core_s_per_byte[pair]), controller)
    for hop in range(machine.toward.shape[1]):
        link = machine.toward[pair, hop]
        if link >= 0 and read > 0.0:
            share = share_s_per_byte(law, machine.capacity[link], tau_s, sums, link, read)
            slowest = max(slowest, read / total * share)
        link = machine.away[pair, hop]
        if link >= 0 and written > 0.0:
            share = share_s_per_byte(law, machine.capacity[link], tau_s, sums, link, written)
            slowest = max(slowest, written / total * share)
    return slowest, controller


@compiled
def flow_time(machine, law, tau_s, sums, flows, f):
    """Seconds of a flow without its fixed time, with the pipeline of chunks; seconds of them in which bytes move."""
    flow = flows[f]
    size = flow.read_bytes + flow.written_bytes
    slowest, controller = path_s_per_byte(machine, law, tau_s, sums, flow)
    moving_s = size * slowest
    if flow.kind == ACCESS or (flow.kind == MESSAGE and size <= 0.0):
        return moving_s, moving_s
    node = flow.initiator
    latency_s = machine.latency_s[node * len(machine.cores) + flow.target]
    if flow.kind == MESSAGE:
        near = node == flow.target
        most, split = (size, 0.0) if near else (machine.half_cache_bytes[node], controller)
        return read_time(size, slowest, split, latency_s, most), moving_s
    writing = share_s_per_byte(law, machine.capacity[node], tau_s, sums, node, size)
    most = machine.half_cache_bytes[node]
    return migration_time(size, controller, slowest, writing, latency_s, most, 0.0), size * max(slowest, writing)


@compiled
def task_time(machine, law, tau_s, sums, flows, first, last, streams):
    """Seconds of a task with flows `first` to `last`, from its start; writes (F, 3) each one's seconds and bytes."""
    seconds = compute_s = access_s = 0.0
    for f in range(first, last):
        flow = flows[f]
        streams[f, 1], streams[f, 2] = flow.read_bytes, flow.written_bytes
        if flow.joined:  # goes in the time of the row before
            streams[f, 0] = streams[f - 1, 0]
            continue
        took_s, streams[f, 0] = flow_time(machine, law, tau_s, sums, flows, f)
        seconds += flow.fixed_s
        if flow.kind == ACCESS:
            compute_s += flow.flops / machine.flops_per_s[flow.initiator]
            access_s += streams[f, 0]
        else:  # what the pipeline adds on an idle machine is fixed time already
            idle_s, idle_moving_s = flow_time(machine, IDLE, tau_s, sums, flows, f)
            seconds += took_s - (idle_s - idle_moving_s)
    service_s = max(compute_s, access_s)  # pages are gone through no faster than the arithmetic on them
    for f in range(first, last):
        if flows[f].kind == ACCESS and access_s > 0.0:
            streams[f, 0] *= service_s / access_s
    return seconds + service_s


@compiled
def add_recent(machine, sums, flows, first, last, streams):
    """Count what a task moves, at once: it fades with the window."""
    for f in range(first, last):
        add_to_path(machine, sums, RECENT_BYTES, flows[f], streams[f, 1], streams[f, 2])
        moves = streams[f, 1] > 0.0, streams[f, 2] > 0.0
        add_to_path(machine, sums, RECENT_STREAM_S, flows[f], moves[0] * streams[f, 0], moves[1] * streams[f, 0])
        if moves[0] and moves[1]:  # one stream at the controller
            sums[RECENT_STREAM_S, flows[f].target] -= streams[f, 0]


@compiled
def add_to_path(machine, sums, row, flow, read, written):
    """Add to a row of the sums: on the links toward the initiator, on those away, and both at the controller."""
    sums[row, flow.target] += read + written
    pair = flow.initiator * len(machine.cores) + flow.target
    for hop in range(machine.toward.shape[1]):
        if machine.toward[pair, hop] >= 0:
            sums[row, machine.toward[pair, hop]] += read
            sums[row, machine.away[pair, hop]] += written


@compiled
def merge_streams(machine, flows, first, last, streams, duration_s):
    """Make streams of a task's flows: those of one pair count as one, spread over the task; moved pages are none."""
    any_left = False
    for f in range(first, last):
        if flows[f].kind == PAGES or streams[f, 1] + streams[f, 2] <= 0.0:
            streams[f, 0] = streams[f, 1] = streams[f, 2] = 0.0
        for k in range(3):
            streams[f, k] /= duration_s
        for g in range(first, f):
            if streams[g, 0] > 0.0 and flows[g].initiator == flows[f].initiator and flows[g].target == flows[f].target:
                for k in range(3):
                    streams[g, k] += streams[f, k]
                    streams[f, k] = 0.0
        any_left |= streams[f, 0] > 0.0
    return any_left


@compiled
def add_streams(machine, sums, flows, first, last, streams, sign, left_s):
    """Let a task's streams enter the sums (sign 1), leave them (-1) or go on (0), with bytes for so many seconds."""
    for f in range(first, last):
        present, read, written = streams[f, 0], streams[f, 1], streams[f, 2]
        if present > 0.0:
            inward, outward = present * (read > 0.0), present * (written > 0.0)
            add_to_path(machine, sums, COUNT, flows[f], sign * inward, sign * outward)
            sums[COUNT, flows[f].target] += sign * (present - inward - outward)  # one stream at the controller
            add_to_path(machine, sums, RATE, flows[f], sign * read, sign * written)
            add_to_path(machine, sums, LEFT, flows[f], left_s * read, left_s * written)


@compiled
def pass_time(machine, sums, flows, first, streams, cores, now_s, elapsed_s, tau_s):
    """Let `elapsed_s` go by until now: bytes move, recent ones fade, and cores start, go on or end."""
    fading = math.exp(-elapsed_s / tau_s)
    for r in range(sums.shape[1]):
        sums[LEFT, r] -= sums[RATE, r] * elapsed_s
        sums[RECENT_BYTES, r] *= fading
        sums[RECENT_STREAM_S, r] *= fading
    for core in range(len(cores.status)):
        if cores.status[core] == ABSENT or cores.change_s[core] > now_s:
            continue
        task = cores.task[core]
        late_s = now_s - cores.change_s[core]
        left_s = min(cores.duration_s[core], cores.busy_until_s[core] - now_s)
        at_work = cores.status[core] == AT_WORK
        begin, end = first[task], first[task + 1]
        if left_s > 0.0:
            more_s = left_s + (late_s if at_work else 0.0)
            add_streams(machine, sums, flows, begin, end, streams, 0.0 if at_work else 1.0, more_s)
            cores.status[core] = AT_WORK
            cores.change_s[core] = now_s + left_s * (1.0 - EARLY)
        else:
            if at_work:
                add_streams(machine, sums, flows, begin, end, streams, -1.0, late_s)
            cores.status[core] = ABSENT


@compiled
def first_free_core(machine, cores, node, now_s):
    """The node's first idle core, or else the one that is free first."""
    best = machine.first_core[node]
    for core in range(best + 1, machine.first_core[node + 1]):
        if cores.free_s[best] <= now_s:
            break
        if cores.free_s[core] < cores.free_s[best]:
            best = core
    return best


@compiled
def write_present(machine, sums, flows, first, streams, start_s, finish_s, tasks, at_s):
    """Write the sums of what is in flight at a moment, as far as it is decided: of a list of `tasks` tasks."""
    for r in range(sums.shape[1]):
        sums[COUNT, r] = sums[RATE, r] = sums[LEFT, r] = 0.0
    for task in range(tasks):
        if start_s[task] <= at_s < finish_s[task]:
            begin, end = first[task], first[task + 1]
            add_streams(machine, sums, flows, begin, end, streams, 1.0, finish_s[task] - at_s)


@compiled
def retime(machine, law, listed, tau_s, replay, sums, cores, streams, times):
    """Time every task: writes `times`, (3, T): decided, started and finished. `listed`: see `laws.Law`."""
    decided_s, start_s, finish_s = times[0], times[1], times[2]
    flows, first = replay.flows, replay.first
    now = replay.arrival_s[0]
    for core in range(len(cores.free_s)):
        cores.free_s[core] = now
    for task in range(len(replay.node)):
        before = now
        now = max(now, replay.arrival_s[task])
        ready = now
        for k in range(replay.waits.shape[1]):
            if replay.waits[task, k] >= 0:
                ready = max(ready, finish_s[replay.waits[task, k]])
        if replay.follows_inputs:
            now = ready
        if now > before:
            pass_time(machine, sums, flows, first, streams, cores, now, now - before, tau_s)
        decided_s[task] = now
        node = replay.node[task]
        if node < 0:
            start_s[task] = finish_s[task] = np.inf
            continue
        core = first_free_core(machine, cores, node, now)
        start = max(ready, cores.free_s[core])
        if listed:
            write_present(machine, sums, flows, first, streams, start_s, finish_s, task, start)
        begin, end = first[task], first[task + 1]
        finish = start + task_time(machine, law, tau_s, sums, flows, begin, end, streams)
        add_recent(machine, sums, flows, begin, end, streams)
        start_s[task], finish_s[task], cores.free_s[core] = start, finish, finish
        has_streams = merge_streams(machine, flows, begin, end, streams, max(finish - start, 1e-300))
        if cores.status[core] != ABSENT:
            if start <= cores.busy_until_s[core]:
                cores.busy_until_s[core] = finish
        elif has_streams:
            cores.task[core], cores.duration_s[core], cores.busy_until_s[core] = task, finish - start, finish
            cores.status[core] = AT_WORK if start <= now else WAITING
            cores.change_s[core] = finish if start <= now else start
            if start <= now:
                add_streams(machine, sums, flows, begin, end, streams, 1.0, finish - start)

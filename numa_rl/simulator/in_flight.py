"""Which streams are in flight on every controller and link: what a new one shares them with; compiled by numba.

A task's streams follow one another on its core, so each core has one record of what it moves, spread evenly over the
task: present for a share of it, at so many bytes a second. Of every controller and link the sums over the cores at
work are kept: how many streams, how fast they are together, and how much they have left.

A task that starts now enters at once, one that waits for its inputs when it starts. While tasks follow one another
on a core without a gap, the core goes on as it began; one decided to come after a gap enters no sum, nor does the
moving of pages of a split object. Times once decided stand: a stream pays for the delay that it gives, see
`streams.shared_s_per_byte`.

Dimension key: C cores, N nodes, R resources, as in `state.py`.
"""

from __future__ import annotations

import numpy as np

from numa_rl.compilation import compiled
from numa_rl.simulator.state import ABSENT, AT_WORK, WAITING, record_size
from numa_rl.simulator.streams import ONE, ZERO

# A core that goes on is foreseen to change a hair early, so that rounding settles no tie with a task's end.
EARLY = 1e-5
NOWHERE = -1

size_of_record = compiled(record_size)


@compiled
def open_record(machines, state, b, core):
    """Begin a core's record of the task being decided; returns where, or NOWHERE if the core goes on with its own."""
    head = core * size_of_record(machines.cores.shape[1])
    if state.records[b, head].status != ABSENT:
        return NOWHERE
    state.records[b, head].num_streams = 0
    return head


@compiled
def note_stream(state, b, head, pair, seconds, read_bytes, written_bytes):
    """Note a stream of the task being decided between an initiator and a target; those of one pair count as one."""
    if head == NOWHERE or seconds <= 0.0:
        return
    last = head + state.records[b, head].num_streams
    i = head + 1
    while i <= last and state.records[b, i].pair != pair:
        i += 1
    if i > last:
        state.records[b, head].num_streams += 1
        state.records[b, i].pair = pair
        state.records[b, i].present = ZERO
        state.records[b, i].read_bytes_per_s = ZERO
        state.records[b, i].written_bytes_per_s = ZERO
    state.records[b, i].present += np.float32(seconds)  # until `close_record` divides by the task's duration
    state.records[b, i].read_bytes_per_s += np.float32(read_bytes)
    state.records[b, i].written_bytes_per_s += np.float32(written_bytes)


@compiled
def stretch_streams(state, b, head, factor):
    """Let the streams noted so far take `factor` as long: pages gone through no faster than the arithmetic on them."""
    if head != NOWHERE:
        for i in range(head + 1, head + 1 + state.records[b, head].num_streams):
            state.records[b, i].present *= np.float32(factor)


@compiled
def add_streams(machines, state, b, head, sign, left_s):
    """Add what a core's record says to the sums of every resource it uses.

    Args:
        machines: as compiled.
        state: where the rows stand.
        b: the row.
        head: where the core's record begins.
        sign: 1 to enter, -1 to leave, 0 to go on.
        left_s: for how many seconds more the core moves what it moves in one; negative to take back.
    """
    m = state.machine[b]
    width = machines.cores.shape[1]
    count, rate, left = state.stream_count[b], state.stream_rate[b], state.stream_bytes[b]
    for i in range(head + 1, head + 1 + state.records[b, head].num_streams):
        pair = np.int64(state.records[b, i].pair)
        present = sign * state.records[b, i].present
        read, written = state.records[b, i].read_bytes_per_s, state.records[b, i].written_bytes_per_s
        node, target = pair // width, pair % width
        count[target] += present
        rate[target] += sign * (read + written)
        left[target] += left_s * (read + written)
        start = node * width + node
        while pair != start:
            if read > ZERO:
                link = machines.link_in[m, pair]
                count[link] += present
                rate[link] += sign * read
                left[link] += left_s * read
            if written > ZERO:
                link = machines.link_out[m, pair]
                count[link] += present
                rate[link] += sign * written
                left[link] += left_s * written
            pair = np.int64(machines.parent_pair[m, pair])


@compiled
def close_record(machines, state, b, core, head, start_s, finish_s):
    """End the record of the task just decided, and let its core start, wait, or go on for it."""
    if head == NOWHERE:
        going_on = core * size_of_record(machines.cores.shape[1])
        if start_s <= state.records[b, going_on].busy_until_s:
            state.records[b, going_on].busy_until_s = finish_s
        return
    num_streams = state.records[b, head].num_streams
    duration_s = np.float32(finish_s - start_s)
    if num_streams == 0 or duration_s <= ZERO:  # or too short for the clock to tell
        return
    for i in range(head + 1, head + 1 + num_streams):
        state.records[b, i].present /= duration_s
        state.records[b, i].read_bytes_per_s /= duration_s
        state.records[b, i].written_bytes_per_s /= duration_s
    at_work = start_s <= state.now_s[b]
    state.records[b, head].duration_s = duration_s
    state.records[b, head].busy_until_s = finish_s
    state.records[b, head].status = AT_WORK if at_work else WAITING
    if at_work:
        add_streams(machines, state, b, head, ONE, duration_s)
    add_change(state, b, finish_s if at_work else start_s, core)


@compiled
def add_change(state, b, at_s, core):
    """Put a change among those to come, a heap: entry i is never later than 2 i + 1 and 2 i + 2."""
    i = np.int64(state.num_changes[b])
    state.num_changes[b] = i + 1
    while i > 0 and state.changes[b, (i - 1) // 2].at_s > at_s:
        above = (i - 1) // 2
        state.changes[b, i].at_s = state.changes[b, above].at_s
        state.changes[b, i].core = state.changes[b, above].core
        i = above
    state.changes[b, i].at_s = at_s
    state.changes[b, i].core = core


@compiled
def replace_first_change(state, b, at_s, core):
    """Put a change where the first one was, and restore the heap."""
    count = np.int64(state.num_changes[b])
    i = np.int64(0)
    below = np.int64(1)
    while below < count:
        if below + 1 < count and state.changes[b, below + 1].at_s < state.changes[b, below].at_s:
            below += 1
        if state.changes[b, below].at_s >= at_s:
            break
        state.changes[b, i].at_s = state.changes[b, below].at_s
        state.changes[b, i].core = state.changes[b, below].core
        i = below
        below = 2 * i + 1
    state.changes[b, i].at_s = at_s
    state.changes[b, i].core = core


@compiled
def pass_time(machines, state, b, elapsed_s):
    """Let streams go on for `elapsed_s`, until now: they move bytes, start and end."""
    rate, left = state.stream_rate[b], state.stream_bytes[b]
    elapsed = np.float32(elapsed_s)
    for r in range(len(left)):
        left[r] -= rate[r] * elapsed
    now = state.now_s[b]
    while state.num_changes[b] > 0 and state.changes[b, 0].at_s <= now:
        core = state.changes[b, 0].core
        at_s = change(machines, state, b, core, state.changes[b, 0].at_s)
        if at_s == np.inf:  # the last change takes its place
            last = state.num_changes[b] - 1
            state.num_changes[b] = last
            at_s, core = state.changes[b, last].at_s, state.changes[b, last].core
            if last == 0:  # nothing is at work: what is left of the sums is rounding
                clear_sums(state, b)
        replace_first_change(state, b, at_s, core)


@compiled
def clear_sums(state, b):
    """Nothing is in flight."""
    state.stream_count[b, :] = ZERO
    state.stream_rate[b, :] = ZERO
    state.stream_bytes[b, :] = ZERO


@compiled
def change(machines, state, b, core, at_s):
    """Let a core start, go on with the next of its tasks, or end, as was due at `at_s`; returns when it does next."""
    head = core * size_of_record(machines.cores.shape[1])
    now = state.now_s[b]
    late_s = np.float32(now - at_s)
    left_s = min(np.float64(state.records[b, head].duration_s), state.records[b, head].busy_until_s - now)
    left_s *= 1.0 - EARLY
    at_work = state.records[b, head].status == AT_WORK
    if now + left_s > now:  # less than the clock can tell would never end
        sign = ZERO if at_work else ONE
        add_streams(machines, state, b, head, sign, np.float32(left_s) + (late_s if at_work else ZERO))
        state.records[b, head].status = AT_WORK
        return now + left_s
    if at_work:
        add_streams(machines, state, b, head, -ONE, late_s)
    state.records[b, head].status = ABSENT
    return np.inf

"""Futures like the past, and placements tried in them, compiled by numba.

What a future is made of is said in `agents.lookahead_futures`. A row's future is an episode of its own: its first
task is the one to be decided, and those after it are made up.

Dimension key: B rows, T tasks, O objects, P inputs, S futures, D made-up tasks of a future, K candidates, N nodes.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from agents import rollouts
from agents.oracle import beam_kernel, rows
from agents.oracle.beam_kernel import cheapest_pairs
from agents.oracle.rows import copy_row
from agents.rollouts import SOURCES, follow
from numa_rl.compilation import compiled
from numa_rl.simulator.state import EXCLUSIVE, ORDINARY
from numa_rl.simulator.streams import ZERO

here = partial(compiled, sources=(*SOURCES, rollouts.__file__, rows.__file__, beam_kernel.__file__))
FEW = 4  # futures after which hopeless candidates are dropped, and again after as many more
ABSENT = -1  # place of what is not on a stack, slot of what does not exist


@here
def place_on(stack, size, obj):
    """Where an object lies on a stack, 0 on top; `ABSENT` if it does not."""
    for place in range(size):
        if stack[place] == obj:
            return place
    return ABSENT


@here
def take_off(stack, size, obj):
    """Take an object off a stack; returns the stack's size then."""
    place = place_on(stack, size, obj)
    if place < 0:
        return size
    for i in range(place, size - 1):
        stack[i] = stack[i + 1]
    return size - 1


@here
def put_on_top(stack, size, obj):
    """Put an object on top of a stack, wherever it lay before; returns the stack's size then."""
    size = take_off(stack, size, obj)
    for i in range(size, 0, -1):
        stack[i] = stack[i - 1]
    stack[0] = obj
    return size + 1


@here
def remember(tasks, past, b, e, t):
    """Bring row b's past up to date by task t of episode e, which has just been decided."""
    obj = tasks.each[e, t].object
    stack, size = past.stack[b], past.size[b]
    past.place[b, t] = place_on(stack, size, obj)
    for p in range(tasks.inputs.shape[2]):
        read = tasks.inputs[e, t, p].object
        past.input_place[b, t, p] = place_on(stack, size, read) if read >= 0 else ABSENT
    for p in range(tasks.inputs.shape[2]):
        if past.input_place[b, t, p] >= 0:
            size = put_on_top(stack, size, tasks.inputs[e, t, p].object)
    size = put_on_top(stack, size, obj)
    past.last_task[b, obj] = t
    past.frees[b, t, 0] = False
    for p in range(tasks.inputs.shape[2]):
        past.frees[b, t, 1 + p] = False
    freed = tasks.each[e, t].first_freed
    while freed >= 0:
        size = take_off(stack, size, freed)
        past.frees[b, t, 0] |= freed == obj
        for p in range(tasks.inputs.shape[2]):
            past.frees[b, t, 1 + p] |= freed == tasks.inputs[e, t, p].object
        freed = tasks.next_freed[e, freed]
    past.size[b] = size


@here
def copy_task(tasks, e, t, made, s, i):
    """Make task i of future s what task t of episode e is, but that it frees nothing; its arrival stays."""
    source, target = tasks.each[e, t], made.each[s, i]
    target.object_bytes = source.object_bytes
    target.flops = source.flops
    target.bytes = source.bytes
    target.write_fraction = source.write_fraction
    target.overhead_s = source.overhead_s
    target.object = source.object
    target.first_freed = ABSENT
    for p in range(tasks.inputs.shape[2]):
        made.inputs[s, i, p].object = tasks.inputs[e, t, p].object
        made.inputs[s, i, p].bytes = tasks.inputs[e, t, p].bytes


@here
def read_by_place(past, b, j, made, s, i, stack, size):
    """Let task i of future s, a copy of row b's task j, read what now lies where that one's inputs lay then."""
    for p in range(made.inputs.shape[2]):
        place = past.input_place[b, j, p]
        if 0 <= place < size:
            made.inputs[s, i, p].object = stack[place]
        else:
            made.inputs[s, i, p].object = ABSENT
            made.inputs[s, i, p].bytes = ZERO


@here
def come_again(tasks, past, b, e, j, made, s, i, obj, draft):
    """Make task i of future s one that comes back to an object, as row b's task j did to its own.

    It does what the object's last task did if that one came back to it too, else what task j did.
    """
    before, last = draft.last_task[obj], past.last_task[b, obj] if obj < tasks.next_freed.shape[1] else ABSENT
    if before >= 0:
        size = made.each[s, before].object_bytes
        if draft.came_again[before]:
            copy_task(made, s, before, made, s, i)
            return
    else:
        size = tasks.each[e, last].object_bytes
        if past.place[b, last] >= 0:
            copy_task(tasks, e, last, made, s, i)
            return
    copy_task(tasks, e, j, made, s, i)
    read_by_place(past, b, j, made, s, i, draft.stack, draft.size[0])
    made.each[s, i].object = obj
    made.each[s, i].object_bytes = size
    if made.read_only[s, obj]:
        made.each[s, i].write_fraction = ZERO


@here
def touch(past, b, j, made, s, i, draft):
    """Put what task i of future s touches on top of the stack, and free what row b's task j freed in its place."""
    stack, size = draft.stack, draft.size[0]
    obj = made.each[s, i].object
    for p in range(made.inputs.shape[2]):
        read = made.inputs[s, i, p].object
        if read >= 0 and place_on(stack, size, read) >= 0:
            size = put_on_top(stack, size, read)
    size = put_on_top(stack, size, obj)
    if j >= 0:
        for p in range(-1, made.inputs.shape[2]):
            freed = obj if p < 0 else made.inputs[s, i, p].object
            if past.frees[b, j, 1 + p] and freed >= 0 and place_on(stack, size, freed) >= 0:
                size = take_off(stack, size, freed)
                made.next_freed[s, freed] = made.each[s, i].first_freed
                made.each[s, i].first_freed = freed
    draft.size[0] = size


@here
def make_up(tasks, past, b, e, t, made, s, draws, block, window, draft):
    """Make up future s of row b, whose next task is task t of episode e, by numbers drawn from [0, 1), (D,)."""
    num_objects = tasks.next_freed.shape[1]
    for i in range(past.size[b]):
        draft.stack[i] = past.stack[b, i]
    draft.size[0] = past.size[b]
    for obj in range(made.next_freed.shape[1]):
        draft.last_task[obj] = ABSENT
        made.read_only[s, obj] = tasks.read_only[e, obj] if obj < num_objects else False
    copy_task(tasks, e, t, made, s, 0)
    made.each[s, 0].arrival_s = tasks.each[e, t].arrival_s
    draft.came_again[0] = place_on(draft.stack, draft.size[0], tasks.each[e, t].object) >= 0
    touch(past, b, ABSENT, made, s, 0, draft)
    draft.last_task[tasks.each[e, t].object] = 0
    new = num_objects
    j = t
    for i in range(1, made.each.shape[1]):
        if (i - 1) % block == 0 or j + 1 >= t:
            j = t - 1 - min(np.int64(draws[i - 1] * min(t, window)), t - 1)
        else:
            j += 1
        place = past.place[b, j]
        again = 0 <= place < draft.size[0]
        if again:
            obj = draft.stack[place]
            come_again(tasks, past, b, e, j, made, s, i, obj, draft)
        else:
            obj = new
            new += 1
            copy_task(tasks, e, j, made, s, i)
            read_by_place(past, b, j, made, s, i, draft.stack, draft.size[0])
            made.read_only[s, obj] = tasks.read_only[e, tasks.each[e, j].object]
            made.each[s, i].object = obj
        gap_s = tasks.each[e, j].arrival_s - tasks.each[e, j - 1].arrival_s if j > 0 else 0.0
        made.each[s, i].arrival_s = made.each[s, i - 1].arrival_s + gap_s
        draft.came_again[i] = again
        touch(past, b, j, made, s, i, draft)
        draft.last_task[obj] = i


@here
def forget_made_up(state, b, first):
    """Objects from `first` on do not exist in row b, as after a reset."""
    width = state.node_free_s.shape[1]
    for obj in range(first, state.objects.shape[1]):
        state.objects[b, obj].node = -1
        state.objects[b, obj].form = ORDINARY
        state.objects[b, obj].bytes = 0.0
        state.objects[b, obj].written_bytes = ZERO
        state.objects[b, obj].ready_s = 0.0
        state.objects[b, obj].accessed_s = state.now_s[b]
        state.objects[b, obj].cached_at = 0.0
        state.objects[b, obj].cached_bytes = ZERO
        state.objects[b, obj].holder = -1
        state.objects[b, obj].sharer = EXCLUSIVE
        for n in range(width):
            state.access_bytes[b, obj * width + n] = ZERO
            state.page_weights[b, obj * width + n] = 0


@here
def gain_bounds(costs, k, count, margin):
    """What candidate k saves over the first one: mean over `count` futures, less and plus `margin` standard errors."""
    mean = 0.0
    for s in range(count):
        mean += (costs[0, s] - costs[k, s]) / count
    squares = 0.0
    for s in range(count):
        squares += (costs[0, s] - costs[k, s] - mean) ** 2
    error = np.sqrt(squares / max(count * (count - 1), 1))
    return mean - margin * error, mean + margin * error


@here
def drop_hopeless(costs, count, margin, candidates, found):
    """Keep the first candidate and those that may yet save more than what surely is saved already.

    Args:
        costs: of each candidate in each future, shape (K, S); brought together with the candidates.
        count: futures tried so far.
        margin: standard errors beyond which a difference is sure.
        candidates: shape (K,); brought up to date.
        found: how many candidates there are.

    Returns:
        How many are left.
    """
    sure = 0.0
    for k in range(1, found):
        sure = max(sure, gain_bounds(costs, k, count, margin)[0])
    left = 1
    for k in range(1, found):
        most = gain_bounds(costs, k, count, margin)[1]
        if most >= sure and most > 0.0:
            candidates[left] = candidates[k]
            for s in range(count):
                costs[left, s] = costs[k, s]
            left += 1
    return left


@here
def cost_in(machines, made, s, now, b, trial, own, pair, prices, weights, window_s, scratch, num_objects):
    """What future s of row b costs if its first task is placed by the pair, the others by the priced greedy rule."""
    copy_row(now.rows, b, trial.rows, own)
    forget_made_up(trial.state, own, num_objects)
    length = made.each.shape[1]
    trial.state.episode[own] = s
    trial.state.task[own] = 0
    trial.state.horizon[own] = length
    return follow(
        machines, made, trial.state, trial.outcome, own, pair, length, np.inf, prices, weights, window_s, scratch
    )


@here
def look_ahead(
    machines,
    tasks,
    now,
    past,
    made,
    draft,
    trial,
    disliked,
    draws,
    settings,
    prices,
    weights,
    window_s,
    scratch,
    costs,
    pairs,
    own,
    first,
    last,
):
    """Choose the next placement of rows `first` to `last`.

    Args:
        machines: as compiled.
        tasks: as compiled.
        now: `Branches`, where the rows stand; left as they are.
        past: `Past` of the rows.
        made: `Tasks` of the futures, a thread's own.
        draft: `Draft`, a thread's own.
        trial: `Branches` to try placements in, of which this thread uses row `own`.
        disliked: what speaks against each pair, infinite for closed ones, shape (B, N * N).
        draws: from [0, 1), shape (B, S, D).
        settings: tasks drawn together, tasks drawn from, decisions that the base takes alone, margin.
        prices: of the priced greedy rule.
        weights: of the reward.
        window_s: the traffic window tau, seconds.
        scratch: of `agents.rollouts`.
        costs: a thread's working array, shape (K, S).
        pairs: written, shape (B,).
        own: see `trial`.
        first: the first row.
        last: one after the last row.
    """
    block, window, least_past, margin = settings
    num_objects = tasks.next_freed.shape[1]
    num_futures = len(made.each)
    for b in range(first, last):
        e, t = now.state.episode[b], now.state.task[b]
        found = cheapest_pairs(disliked[b], draft.candidates)
        pairs[b] = draft.candidates[0]
        if t < least_past or found < 2:
            continue
        for s in range(num_futures):
            make_up(tasks, past, b, e, t, made, s, draws[b, s], block, window, draft)
            for k in range(found):
                pair = draft.candidates[k]
                costs[k, s] = cost_in(
                    machines, made, s, now, b, trial, own, pair, prices, weights, window_s, scratch, num_objects
                )
            if (s + 1) % FEW == 0:
                found = drop_hopeless(costs, s + 1, margin, draft.candidates, found)
                if found == 1:
                    break
        highest = 0.0
        for k in range(1, found):
            low, _ = gain_bounds(costs, k, num_futures, margin)
            if low > highest:
                pairs[b], highest = draft.candidates[k], low


@here
def remember_rows(tasks, state, past, first, last):
    """Bring the past of rows `first` to `last` up to date, each of which has just decided a task."""
    for b in range(first, last):
        remember(tasks, past, b, state.episode[b], state.task[b] - 1)

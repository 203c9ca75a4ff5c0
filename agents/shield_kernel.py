"""What a placement may cost more than the rule, foreseen in futures made up from the past; compiled by numba.

Dimension key: B rows, K placements tried, W ways to go on, S futures, D made-up tasks of a future, N nodes.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from agents import lookahead_kernel, rollouts
from agents.lookahead_kernel import forget_made_up, make_up
from agents.oracle import rows
from agents.oracle.rows import copy_row
from agents.rollouts import SOURCES, play, priced_pair
from numa_rl.compilation import compiled

FILES = (*SOURCES, rollouts.__file__, rows.__file__, lookahead_kernel.__file__)
RETURN, STAY = range(WAYS := 2)  # go on as the rule does in the shadow, or as it decides where things are now
ALONE = WAYS  # by the rule alone, in the shadow


@partial(compiled, sources=FILES)
def hasten(made, s, pace):
    """Let the tasks of future s arrive after `pace` times the gaps that were made up."""
    begin_s = made.each[s, 0].arrival_s
    for i in range(1, made.each.shape[1]):
        made.each[s, i].arrival_s = begin_s + pace * (made.each[s, i].arrival_s - begin_s)


@partial(compiled, sources=FILES)
def begin_future(trial, own, num_objects, s, length):
    """Put a row that is somewhere in its episode at the first task of future s."""
    forget_made_up(trial.state, own, num_objects)
    trial.state.episode[own] = s
    trial.state.task[own] = 0
    trial.state.horizon[own] = length


@partial(compiled, sources=FILES)
def play_future(machines, made, trial, own, first, way, prices, weights, window_s, scratch, pairs):
    """Play the trial row's future in one of the ways; returns what its decisions cost together.

    By the rule alone, which decides the first task too and writes its pairs, (1 + D,); or with the pair `first` and
    then as the rule did by these, or as it decides where things are.
    """
    alpha, _, reference_s, _ = weights
    total = 0.0
    for i in range(len(pairs)):
        pair = np.int64(first) if i == 0 else pairs[i]
        if way == ALONE or (way == STAY and i > 0):
            pair = priced_pair(
                machines, made, trial.state, own, prices, np.float32(alpha), np.float32(reference_s), window_s, scratch
            )
        if way == ALONE:
            pairs[i] = pair
        total += play(machines, made, trial.state, trial.outcome, own, pair, weights, window_s, scratch[4])
    return total


@partial(compiled, sources=FILES)
def first_same(tried, k):
    """The first of the placements tried, (K,), that is the same as the k-th."""
    same = 0
    while tried[same] != tried[k]:
        same += 1
    return same


@partial(compiled, sources=FILES)
def foresee(
    machines, tasks, real, shadow, past, made, draft, trial, tried, draws, settings, prices, weights, window_s, scratch,
    pairs, excess, index, own, first, last,
) -> None:  # fmt: skip
    """Write what placements cost more than the rule would where it was never left, its next decisions included.

    Args:
        machines: as compiled.
        tasks: as compiled.
        real: `Branches`, where the rows stand.
        shadow: `Branches`, where they would stand by the rule.
        past: `Past` of the rows.
        made: `Tasks` of the futures, a thread's own.
        draft: `Draft`, a thread's own.
        trial: `Branches` to try placements in, of which this thread uses row `own`.
        tried: placements as pairs n N + d, shape (B, K).
        draws: from [0, 1), shape (B, S, D).
        settings: tasks drawn together, tasks drawn from, and the futures' paces in turn.
        prices: of the priced greedy rule.
        weights: of the reward.
        window_s: the traffic window tau, seconds.
        scratch: of `agents.rollouts`.
        pairs: a thread's working array, shape (1 + D,).
        excess: written, shape (B, K, W, S).
        index: rows to do.
        own: see `trial`.
        first: first of them, by place in `index`.
        last: one after the last.
    """
    block, window, paces = settings
    num_objects = tasks.next_freed.shape[1]
    num_futures, length = made.each.shape
    for i in range(first, last):
        b = index[i]
        e, t = real.state.episode[b], real.state.task[b]
        for s in range(num_futures):
            make_up(tasks, past, b, e, t, made, s, draws[b, s], block, window, draft)
            hasten(made, s, paces[s % len(paces)])
            usual = 0.0
            for number in range(1 + tried.shape[1] * WAYS):  # the rule alone comes first
                k, way = (number - 1) // WAYS, (number - 1) % WAYS
                alone = number == 0
                same = 0 if alone else first_same(tried[b], k)
                if not alone and same < k:
                    excess[b, k, way, s] = excess[b, same, way, s]
                    continue
                copy_row(shadow.rows if alone else real.rows, b, trial.rows, own)
                begin_future(trial, own, num_objects, s, length)
                first_pair = np.int64(0) if alone else tried[b, k]
                total = play_future(
                    machines, made, trial, own, first_pair, ALONE if alone else way, prices, weights, window_s, scratch,
                    pairs,
                )  # fmt: skip
                if alone:
                    usual = total
                else:
                    excess[b, k, way, s] = total - usual

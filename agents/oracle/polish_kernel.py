"""Improving a known plan placement by placement, compiled by numba.

Dimension key: G episodes, T tasks, K candidates.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from agents import rollouts
from agents.oracle import beam_kernel, rows
from agents.oracle.beam_kernel import cheapest_pairs
from agents.oracle.rows import copy_row
from agents.rollouts import SOURCES, play, price_pairs
from numa_rl.compilation import compiled

here = partial(compiled, sources=(*SOURCES, rollouts.__file__, rows.__file__, beam_kernel.__file__))


@here
def follow_plan(machines, tasks, state, outcome, b, pair, plan, limit, weights, window_s, work):
    """Run the next task of row b by the pair and those after it by the plan, (T,), to the end.

    Returns what that costs, or `limit` or more once it is that much.
    """
    total = 0.0
    while total < limit:
        total += play(machines, tasks, state, outcome, b, pair, weights, window_s, work)
        if state.task[b] >= state.horizon[b]:
            break
        pair = plan[state.task[b]]
    return total


@here
def improve_plans(machines, tasks, now, trial, plans, candidates, prices, weights, window_s, scratch, own, first, last):
    """Go through the plans of episodes `first` to `last` once, task by task.

    A task's cheapest placements by priced cost are tried in place of the planned one, the rest of the plan as it is;
    the best of them stays in the plan.

    Args:
        machines: as compiled.
        tasks: as compiled.
        now: `Branches`, row g at the first task of episode g; played to its end.
        trial: rows to try placements in, of which this thread uses row `own`.
        plans: placements n N + d, shape (G, T); brought up to date.
        candidates: a thread's working array, shape (K,).
        prices: of the priced greedy rule.
        weights: of the reward.
        window_s: the traffic window tau, seconds.
        scratch: of `agents.rollouts`.
        own: see `trial`.
        first: the first episode.
        last: one after the last episode.
    """
    alpha, _, reference_s, _ = weights
    work = scratch[4]
    for g in range(first, last):
        plan = plans[g]
        while now.state.task[g] < now.state.horizon[g]:
            task = now.state.task[g]
            price_pairs(
                machines, tasks, now.state, g, prices, np.float32(alpha), np.float32(reference_s), window_s, scratch
            )
            best, lowest = plan[task], np.inf
            for k in range(-1, cheapest_pairs(scratch[2][0], candidates)):
                pair = (
                    candidates[k] if k >= 0 else plan[task]
                )  # as planned comes first, and stays if no other is better
                copy_row(now.rows, g, trial.rows, own)
                cost = follow_plan(
                    machines, tasks, trial.state, trial.outcome, own, pair, plan, lowest, weights, window_s, work
                )
                if cost < lowest:
                    lowest = cost
                    best = pair
            plan[task] = best
            play(machines, tasks, now.state, now.outcome, g, best, weights, window_s, work)

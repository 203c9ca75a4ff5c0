"""One decision of the clairvoyant beam search, compiled by numba: no Python loop over rows or candidates.

Dimension key: G episodes, W branches of a beam, K candidates of a branch; row g W + w is branch w of episode g.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agents import rollouts
from agents.oracle import rows
from agents.oracle.rows import Bytes, copy_row
from agents.rollouts import SOURCES, follow, play, price_pairs
from numa_rl.compilation import compiled
from numa_rl.simulator.state import Outcome, State

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


class Branches(NamedTuple):
    """Rows of a simulator that are branches of beams, and what each has cost so far."""

    state: State
    rows: tuple[Bytes, ...]  # the same as bytes
    outcome: Outcome
    cost: F64  # (G * W,)


class Chosen(NamedTuple):
    """The best branches of one episode's next decision, best first; a thread's working arrays."""

    score: F64  # (W,) cost so far and of the rollout
    parent: I64  # (W,) which branch each continues
    pair: I64  # (W,) by which placement, n N + d
    candidates: I64  # (K,) placements of the branch at hand


@partial(compiled, sources=(*SOURCES, rollouts.__file__, rows.__file__))
def cheapest_pairs(costs, candidates):
    """Write the pairs with the lowest finite costs, cheapest first; returns how many there are."""
    count = 0
    for i in range(len(costs)):
        cost = costs[i]
        if cost < np.inf and (count < len(candidates) or cost < costs[candidates[count - 1]]):
            place = min(count, len(candidates) - 1)
            while place > 0 and cost < costs[candidates[place - 1]]:
                candidates[place] = candidates[place - 1]
                place -= 1
            candidates[place] = i
            count = min(count + 1, len(candidates))
    return count


@partial(compiled, sources=(*SOURCES, rollouts.__file__, rows.__file__))
def keep(chosen, count, score, parent, pair):
    """Put a branch among the chosen ones if it is better than the worst of them; returns how many there are."""
    most = len(chosen.score)
    if count == most and score >= chosen.score[count - 1]:
        return count
    place = min(count, most - 1)
    while place > 0 and score < chosen.score[place - 1]:
        chosen.score[place] = chosen.score[place - 1]
        chosen.parent[place] = chosen.parent[place - 1]
        chosen.pair[place] = chosen.pair[place - 1]
        place -= 1
    chosen.score[place] = score
    chosen.parent[place] = parent
    chosen.pair[place] = pair
    return min(count + 1, most)


@partial(compiled, sources=(*SOURCES, rollouts.__file__, rows.__file__))
def extend_beams(
    machines,
    tasks,
    now,
    after,
    trial,
    live,
    parents,
    pairs,
    depth,
    prices,
    weights,
    window_s,
    scratch,
    chosen,
    own,
    first,
    last,
):
    """Decide the next task of every beam of episodes `first` to `last`.

    Each branch tries its cheapest placements by priced cost; the priced greedy rule then places what follows. The
    branches with the lowest costs so far and to come are kept.

    Args:
        machines: as compiled.
        tasks: as compiled.
        now: the branches; left as they are.
        after: written: the branches that were kept, best first.
        trial: rows to try placements in, of which this thread uses row `own`.
        live: branches that each episode has, shape (G,); brought up to date.
        parents: written, shape (G * W,): which branch of its episode each continues.
        pairs: written, shape (G * W,): by which placement.
        depth: decisions of a rollout.
        prices: of the priced greedy rule.
        weights: of the reward.
        window_s: the traffic window tau, seconds.
        scratch: of `agents.rollouts`.
        chosen: working arrays.
        own: see `trial`.
        first: the first episode.
        last: one after the last episode.
    """
    alpha, _, reference_s, _ = weights
    width = len(chosen.score)
    for g in range(first, last):
        count = 0
        for w in range(live[g]):
            row = g * width + w
            price_pairs(
                machines, tasks, now.state, row, prices, np.float32(alpha), np.float32(reference_s), window_s, scratch
            )
            found = cheapest_pairs(scratch[2][0], chosen.candidates)
            for k in range(found):
                pair = chosen.candidates[k]
                copy_row(now.rows, row, trial.rows, own)
                score = now.cost[row]
                limit = np.inf if count < width else chosen.score[count - 1] - score
                score += follow(
                    machines,
                    tasks,
                    trial.state,
                    trial.outcome,
                    own,
                    pair,
                    depth + 1,
                    limit,
                    prices,
                    weights,
                    window_s,
                    scratch,
                )
                count = keep(chosen, count, score, w, pair)
        for w in range(count):
            row, parent, pair = g * width + w, chosen.parent[w], chosen.pair[w]
            copy_row(now.rows, g * width + parent, after.rows, row)
            cost = play(machines, tasks, after.state, after.outcome, row, pair, weights, window_s, scratch[4])
            after.cost[row] = now.cost[g * width + parent] + cost
            parents[row] = parent
            pairs[row] = pair
        live[g] = count

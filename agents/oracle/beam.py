"""Clairvoyant beam search over the real simulator: how good placements can be when all arrivals are known.

A beam holds the W best histories of an episode so far. Each tries its K cheapest placements of the next task, by
the priced cost; the priced greedy rule then places the tasks that follow, and these arrive as they really will. The
W histories with the lowest cost so far and to come are kept: by cost so far alone a beam would keep those that put
off what has to be paid. This is the pilot method [1] over a beam [2].

What it finds is an upper bound on the optimum; `agents.oracle.exact` proves the optimum of small instances.

Dimension key: R rows = machine x episode, T tasks, N nodes, G episodes searched together, W branches of a beam.

References:
    [1] C. Duin, S. Voss, "The pilot method: a strategy for heuristic repetition with application to the Steiner
        problem in graphs", Networks 34(3), 1999.
    [2] P. S. Ow, T. E. Morton, "Filtered beam search in scheduling", International Journal of Production Research
        26(1), 1988.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from agents.oracle.beam_kernel import Branches, Chosen, extend_beams
from agents.oracle.plays import played
from agents.oracle.polish import polished
from agents.oracle.rows import row_bytes
from agents.rollouts import allocate_rollout_scratch, kernel_prices, kernel_weights
from agents.rules.greedy import PricedGreedy
from agents.scheduler import Actions, Planner, Scheduler
from envs.world import World
from numa_rl.simulator.parallel import SMALLEST_CHUNK, Chunks
from numa_rl.simulator.simulator import Simulator
from numa_rl.simulator.state import allocate_outcome, allocate_state

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

BEAM_ROWS = 256  # branches searched at once, of all episodes together: it bounds memory, and changes no result


@dataclass(frozen=True)
class Oracle:
    """A planner who knows every arrival: the best of its own search and of the plans of others, improved.

    Attributes:
        rule: prices candidates and places what follows in rollouts; its parameters are numbers, not arrays.
        others: whose plans it may take: where one of them does better in an episode, the oracle does as it did.
        width: branches of a beam, W.
        candidates: placements that each branch tries, K.
        depth: decisions of a rollout.
        passes: of local search over the best plan, see `agents.oracle.polish`; 0 for none.
        polish_candidates: placements of each task that local search tries.
        num_threads: threads that share the episodes; they change no result.

    Raises:
        ValueError: a count is less than 1 (`depth` and `passes` less than 0), or a parameter of the rule is an array.
    """

    name: ClassVar[str] = "oracle"
    rule: PricedGreedy = field(default_factory=PricedGreedy)
    others: tuple[Scheduler | Planner, ...] = ()
    width: int = 4
    candidates: int = 8
    depth: int = 32
    passes: int = 4
    polish_candidates: int = 16
    num_threads: int = 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        least = {"width": 1, "candidates": 1, "depth": 0, "passes": 0, "polish_candidates": 1, "num_threads": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= low):
                raise ValueError(f"oracle: {name} must be a whole number >= {low}, got {value!r}.")
        kernel_prices(self.rule)

    def plan(self, world: World, machine: I64, episode: I64) -> Actions:
        """See `Planner.plan`.

        Raises:
            ValueError: the world's reward is not the plain `RewardWeights`, whose formula the search shares.
        """
        own = self.search(world, machine, episode)
        best = self._best((own, self.rule, *self.others), world, machine, episode)
        whole = np.asarray(~best[:, :, 2:].any(axis=(1, 2)))  # no pages are spread
        improved = polished(
            np.where(whole[:, None, None], best[:, :, :2], own),
            world,
            machine,
            episode,
            rule=self.rule,
            candidates=self.polish_candidates,
            passes=self.passes,
            num_threads=self.num_threads,
        )
        return self._best((best, improved), world, machine, episode)

    def _best(
        self, players: Sequence[Scheduler | Planner | Actions], world: World, machine: I64, episode: I64
    ) -> Actions:
        """In every row what the player does there who costs least, the first of equals."""
        plans, costs = zip(*(played(who, world, machine, episode, self.num_threads) for who in players), strict=True)
        columns = max(plan.shape[2] for plan in plans)
        padded = [np.pad(plan, ((0, 0), (0, 0), (0, columns - plan.shape[2]))) for plan in plans]
        best: Actions = np.stack(padded)[np.argmin(costs, axis=0), np.arange(len(episode))]
        return best

    def search(self, world: World, machine: I64, episode: I64) -> Actions:
        """What the beam search alone finds, shape (R, T, 2)."""
        at_once = max(1, BEAM_ROWS // self.width)
        parts = [
            _Search(self, world, machine[first : first + at_once], episode[first : first + at_once]).plan
            for first in range(0, len(episode), at_once)
        ]
        return np.concatenate(parts)


class _Search:
    """The beams of G episodes, from their first task to their last."""

    def __init__(self, oracle: Oracle, world: World, machine: I64, episode: I64) -> None:
        """Allocate every row and put the first branch of each beam at the first task."""
        self.num_episodes, self.width = len(episode), oracle.width
        rows = self.num_episodes * self.width
        self.start = Simulator(world.topologies, world.workload, rows, window_s=world.window_s)
        self.start.reset(np.repeat(episode, self.width), machines=np.repeat(machine, self.width))
        self.chunks = Chunks(self.num_episodes * SMALLEST_CHUNK, oracle.num_threads)  # an episode is a chunk's work
        self.depth = oracle.depth
        self.prices, self.weights = kernel_prices(oracle.rule), kernel_weights(world.weights)
        self.scratch = [allocate_rollout_scratch(self.start) for _ in range(self.chunks.count)]
        self.chosen = [
            Chosen(
                score=np.zeros(oracle.width),
                parent=np.zeros(oracle.width, np.int64),
                pair=np.zeros(oracle.width, np.int64),
                candidates=np.zeros(oracle.candidates, np.int64),
            )
            for _ in range(self.chunks.count)
        ]

    def _branches(self, num_rows: int) -> Branches:
        state = allocate_state(num_rows, self.start.machines, self.start.workload.num_objects)
        return Branches(state, row_bytes(state), allocate_outcome(num_rows), np.zeros(num_rows))

    @cached_property
    def plan(self) -> Actions:
        """The placements of the best branch of each beam at its end, shape (G, T, 2)."""
        num_tasks, n, rows = self.start.workload.num_tasks, self.start.num_nodes, self.start.num_rows
        now = Branches(self.start.state, row_bytes(self.start.state), self.start.outcome, np.zeros(rows))
        after, trial = self._branches(rows), self._branches(self.chunks.count)
        live = np.ones(self.num_episodes, np.int64)
        parents, pairs = np.zeros((2, num_tasks, rows), np.int64)
        for task in range(num_tasks):
            self._extend(now, after, trial, live, parents[task], pairs[task])
            now, after = after, now
        first = np.arange(self.num_episodes) * self.width
        branch, plan = np.zeros(self.num_episodes, np.int64), np.zeros((self.num_episodes, num_tasks, 2), np.int64)
        for task in range(num_tasks - 1, -1, -1):  # the best branch is the first; its history backwards
            pair = pairs[task, first + branch]
            plan[:, task] = np.stack([pair // n, pair % n], axis=-1)
            branch = parents[task, first + branch]
        return plan

    def _extend(self, now: Branches, after: Branches, trial: Branches, live: I64, parents: I64, pairs: I64) -> None:
        """Decide one task of every beam."""

        def extend(chunk: int, first: int, last: int) -> None:
            extend_beams(
                self.start.machines,
                self.start.tasks,
                now,
                after,
                trial,
                live,
                parents,
                pairs,
                self.depth,
                self.prices,
                self.weights,
                self.start.window_s,
                self.scratch[chunk],
                self.chosen[chunk],
                chunk,
                first // SMALLEST_CHUNK,
                last // SMALLEST_CHUNK,
            )

        self.chunks.run(extend)

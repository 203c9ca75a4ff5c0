"""Looking ahead: short rollouts in the model before every decision, with nothing that cannot be known then.

**In a stream** the best placements by somebody's scores are tried in futures made up from the episode's past
(`agents.lookahead_futures`), all in the same ones; the priced greedy rule places what follows. The one that saves
most is taken instead of the base's own choice if it surely saves something: rollouts at decision time [1] [2].

**Where an episode is one graph of tasks**, all are known before the first is decided, as they are to planners. Then
whole plans are tried: the base's, the rule's, those of others, and what a search by rollouts over the real tasks
finds; the cheapest is improved by local search. Since the model says what a plan costs, the result is never worse
than the best of those.

Dimension key: R rows = machine x episode, T tasks, N nodes, S futures, D made-up tasks, K candidates.

References:
    [1] G. Tesauro, G. R. Galperin, "On-line policy improvement using Monte-Carlo search", NeurIPS 1996.
    [2] D. P. Bertsekas, "Rollout, policy iteration, and distributed reinforcement learning", 2020.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite

import numpy as np
import numpy.typing as npt

from agents.lookahead_futures import allocate_draft, allocate_futures, allocate_past
from agents.lookahead_kernel import look_ahead, remember_rows
from agents.lookahead_scores import BestScore, PairScores
from agents.oracle.beam import Oracle
from agents.oracle.beam_kernel import Branches
from agents.oracle.rows import row_bytes
from agents.rollouts import allocate_rollout_scratch, kernel_prices, kernel_weights
from agents.rules.greedy import PricedGreedy
from agents.scheduler import Actions, Planner, Scheduler
from envs.observation import ObservationKind, Observer
from envs.world import World
from numa_rl.simulator.parallel import SMALLEST_CHUNK, Chunks
from numa_rl.simulator.simulator import Simulator
from numa_rl.simulator.state import allocate_outcome, allocate_state

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

SUFFIX = "+lookahead"  # of the base's name


@dataclass(frozen=True)
class Lookahead:
    """Who tries placements in the model before deciding.

    It is a `Planner` because it steps the simulator itself; it knows no more than a `Scheduler` in streams, and no
    more than other planners in graphs.

    Attributes:
        base: scores placements; its best one is what is done where nothing is surely better.
        rule: places what follows in rollouts; its parameters are numbers, not arrays, and its alpha is the world's.
        others: whose plans stand beside its own where the graph is known; not asked in streams.
        candidates: placements tried at each decision, K.
        depth: made-up tasks of a future, D; in a graph, real tasks of a rollout.
        futures: how many futures each placement is tried in, S; 0 follows the base in streams.
        margin: standard errors over the futures that a gain must exceed.
        run_length: successive tasks of the past that are drawn together.
        memory: tasks back to which the past is drawn from.
        least_past: decisions of an episode that the base takes alone: from less past no future can be made up that is
            worth believing, and what is placed first is often used longest.
        width: branches of the search in a graph.
        passes: of local search over the best plan of a graph.
        polish_candidates: placements of each task that it tries.
        seed: of the futures; those of a row depend on it and on the row's machine and episode alone.
        num_threads: threads that share the rows; they change no result.

    Raises:
        ValueError: a value is out of range, or a parameter of the rule is an array.
    """

    base: PairScores
    rule: PricedGreedy
    others: tuple[Scheduler | Planner, ...] = ()
    candidates: int = 6
    depth: int = 32
    futures: int = 32
    margin: float = 2.0
    run_length: int = 8
    memory: int = 64
    least_past: int = 16
    width: int = 1
    passes: int = 4
    polish_candidates: int = 16
    seed: int = 0
    num_threads: int = 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        least = {"candidates": 1, "depth": 1, "futures": 0, "run_length": 1, "memory": 1, "least_past": 1, "width": 1}
        least |= {"passes": 0, "polish_candidates": 1, "seed": 0, "num_threads": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= low):
                raise ValueError(f"lookahead: {name} must be a whole number >= {low}, got {value!r}.")
        if not (isfinite(self.margin) and self.margin >= 0.0):
            raise ValueError(f"lookahead: margin must be finite and >= 0, got {self.margin}.")
        if self.futures == 1:
            raise ValueError("lookahead: futures must be 0 or >= 2, for one says nothing of how sure a gain is, got 1.")
        kernel_prices(self.rule)

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"{self.base.name}{SUFFIX}"

    def plan(self, world: World, machine: I64, episode: I64) -> Actions:
        """See `Planner.plan`.

        Raises:
            ValueError: the world's reward is not the plain `RewardWeights`, whose formula rollouts share.
        """
        here = replace(self, rule=replace(self.rule, alpha=world.weights.alpha))
        if world.workload.is_one_graph:
            return here._searcher.plan(world, machine, episode)
        return _Stream(here, world, machine, episode).plan()

    @property
    def _searcher(self) -> Oracle:
        """In a graph that is known, to know all that is to come is no clairvoyance."""
        return Oracle(
            self.rule,
            (BestScore(self.base), *self.others),
            self.width,
            self.candidates,
            self.depth,
            self.passes,
            self.polish_candidates,
            self.num_threads,
        )


class _Stream:
    """Rows of a stream, decided together from their first task to their last."""

    def __init__(self, ahead: Lookahead, world: World, machine: I64, episode: I64) -> None:
        """Allocate and start every row."""
        self.ahead = ahead
        rows = len(episode)
        self.simulator = Simulator(
            world.topologies, world.workload, rows, window_s=world.window_s, num_threads=ahead.num_threads
        )
        self.simulator.reset(episode, machines=machine)
        self.observer = Observer(self.simulator, world.weights, ObservationKind.FULL)
        self.generators = [
            np.random.default_rng([ahead.seed, m, e]) for m, e in zip(machine.tolist(), episode.tolist(), strict=True)
        ]
        self.chunks = Chunks(rows * SMALLEST_CHUNK, ahead.num_threads)  # a row is a chunk's work
        self.prices, self.weights = kernel_prices(ahead.rule), kernel_weights(world.weights)
        self.past = allocate_past(rows, self.simulator.tasks)
        threads, num_objects = self.chunks.count, world.workload.num_objects
        candidates = min(ahead.candidates, self.simulator.num_nodes**2)
        self.made = [allocate_futures(self.simulator.tasks, max(ahead.futures, 1), ahead.depth) for _ in range(threads)]
        self.draft = [allocate_draft(num_objects, ahead.depth, candidates) for _ in range(threads)]
        self.costs = np.zeros((threads, candidates, max(ahead.futures, 1)))
        self.scratch = [allocate_rollout_scratch(self.simulator) for _ in range(threads)]
        state = allocate_state(threads, self.simulator.machines, num_objects + ahead.depth)
        self.trial = Branches(state, row_bytes(state), allocate_outcome(threads), np.zeros(threads))
        own = self.simulator
        self.now = Branches(own.state, row_bytes(own.state), own.outcome, np.zeros(rows))

    def plan(self) -> Actions:
        """The placements of all tasks, shape (R, T, 2)."""
        n, plan = self.simulator.num_nodes, []
        for _ in range(self.simulator.workload.num_tasks):
            scores = self.ahead.base.scores(self.observer.observe())
            pairs = self._choose(scores) if self.ahead.futures else scores.argmax(axis=1)
            plan.append(np.stack([pairs // n, pairs % n], axis=-1))
            self.simulator.step(plan[-1])
            remember_rows(self.simulator.tasks, self.simulator.state, self.past, 0, len(pairs))
        return np.stack(plan, axis=1)

    def _draws(self) -> F64:
        """Numbers in [0, 1) that futures are made of, shape (R, S, D).

        A row's first runs begin evenly spread over its past: that tells candidates apart with fewer futures.
        """
        shape = self.ahead.futures, self.ahead.depth
        draws = np.stack([rng.random(shape) for rng in self.generators])
        parts = np.stack([rng.permutation(shape[0]) for rng in self.generators])
        draws[:, :, 0] = (draws[:, :, 0] + parts) / shape[0]
        return draws

    def _choose(self, scores: F64) -> I64:
        """The next pair of every row, shape (R,)."""
        pairs = np.zeros(len(scores), np.int64)
        disliked, draws = -scores, self._draws()
        settings = self.ahead.run_length, self.ahead.memory, self.ahead.least_past, self.ahead.margin

        def choose(chunk: int, first: int, last: int) -> None:
            look_ahead(
                self.simulator.machines,
                self.simulator.tasks,
                self.now,
                self.past,
                self.made[chunk],
                self.draft[chunk],
                self.trial,
                disliked,
                draws,
                settings,
                self.prices,
                self.weights,
                self.simulator.window_s,
                self.scratch[chunk],
                self.costs[chunk],
                pairs,
                chunk,
                first // SMALLEST_CHUNK,
                last // SMALLEST_CHUNK,
            )

        self.chunks.run(choose)
        return pairs

"""A shielded policy held to a budget: it may cost at most so much more than the rule, and what it costs is counted.

**In a stream** the rule plays the same tasks beside the policy, in a machine of its own (the shadow), so what it would
have cost so far is known exactly. Before each decision, placements are tried in futures made up from the past
(`agents.lookahead_futures`): what does the row cost more than the shadow if things then go on as the rule does in the
shadow, which leads back to where that is, and what if they go on as the rule decides where things are now? A placement
is allowed only if the row stays within its budget, a share of what the rule has cost, in every future and either way.
The policy's comes first where it is sure, then what leads back to the shadow, then the rule's for the state at hand; if
none is allowed, that of the rule is done which gets least behind. What is reserved in this way for the return is the
idea of [1]; without it a budget is spent long before its bill comes, since a placement costs those that follow. Several
times what is foreseen is reserved, and most futures are busier than the past: machines that are nearly full answer a
small difference with a large one, and bursts come when the past was quiet. If a row is behind all the same, the rule
decides until the row has caught up.

Nothing but the past and the task at hand is used: changing later tasks changes no decision.

**Where an episode is one graph of tasks**, known before it starts, the policy and the rule each play all of it in the
model, and the cheaper play is taken: there the policy is never worse.

Dimension key: R rows = machine x episode, T tasks, N nodes, K placements tried, W ways to go on, S futures, D made-up
tasks of a future.

References:
    [1] P. Li, J. Yang, A. Wierman, S. Ren, "Robust learning for smoothed online convex optimization with feedback
        delay", NeurIPS 2023: an expert's cost so far, and a reservation for what the difference may still cost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agents.lookahead_futures import allocate_draft, allocate_futures, allocate_past
from agents.lookahead_kernel import remember_rows
from agents.lookahead_scores import BestScore
from agents.oracle.beam_kernel import Branches
from agents.oracle.plays import played
from agents.oracle.rows import row_bytes
from agents.rollouts import allocate_rollout_scratch, kernel_prices, kernel_weights
from agents.scheduler import Actions
from agents.shield import Reason, Shielded
from agents.shield_kernel import WAYS, foresee
from envs.observation import ObservationKind, Observer
from envs.world import World
from numa_rl.simulator.parallel import SMALLEST_CHUNK, Chunks
from numa_rl.simulator.simulator import Simulator
from numa_rl.simulator.state import Outcome, State, allocate_outcome, allocate_state

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

# Placements tried: the policy's, what the rule does in the shadow, and the rule's for the state at hand.
POLICY, USUAL, RULE = range(NUM_TRIED := 3)


class Played(NamedTuple):
    """How episodes went under the shield.

    Attributes:
        actions: the placements of all tasks, shape (R, T, 2).
        cost: mean cost -R of a decision, shape (R,).
        rule_cost: the same by the rule alone, shape (R,).
        reasons: decisions of each `Reason`, shape (R, len(Reason)).
    """

    actions: Actions
    cost: F64
    rule_cost: F64
    reasons: I64


@dataclass(frozen=True)
class ShieldedPlay:
    """A policy that decides where it is sure to be better than the rule, within a budget.

    It is a `Planner` because it steps the simulator itself; in a stream it knows no more than a `Scheduler`.

    Attributes:
        shield: the policy, the rule, and when the policy is sure.
        slack: the budget: by what share of the rule's cost so far a row may be behind with what is foreseen.
        stop: by what share it may really be behind; beyond it the rule decides until it has caught up.
        futures: how many futures placements are tried in, S.
        depth: made-up tasks of a future, D.
        paces: by which the gaps between arrivals of the past are multiplied, in one future after another.
        reserve: how many times a foreseen loss is reserved for.
        run_length: successive tasks of the past that are drawn together.
        memory: tasks back to which the past is drawn from.
        seed: of the futures; those of a row depend on it and on the row's machine and episode alone.
        num_threads: threads that share the rows; they change no result.

    Raises:
        ValueError: a value is out of range.
    """

    shield: Shielded
    slack: float = 0.0
    stop: float = 0.002
    futures: int = 12
    depth: int = 48
    paces: tuple[float, ...] = (1.0, 0.5, 0.2, 0.05)
    reserve: float = 3.0
    run_length: int = 8
    memory: int = 512
    seed: int = 0
    num_threads: int = 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        least = {"futures": 1, "depth": 1, "run_length": 1, "memory": 1, "seed": 0, "num_threads": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= low):
                raise ValueError(f"shield: {name} must be a whole number >= {low}, got {value!r}.")
        for name in ("slack", "stop"):
            if not (isfinite(getattr(self, name)) and getattr(self, name) >= 0.0):
                raise ValueError(f"shield: {name} must be finite and >= 0, got {getattr(self, name)}.")
        if not (isfinite(self.reserve) and self.reserve >= 1.0):
            raise ValueError(f"shield: reserve must be finite and >= 1, got {self.reserve}.")
        if not (self.paces and all(isfinite(pace) and pace > 0.0 for pace in self.paces)):
            raise ValueError(f"shield: paces must be finite and > 0, one or more, got {self.paces}.")

    @property
    def name(self) -> str:
        """How tables call it."""
        return self.shield.name

    def plan(self, world: World, machine: I64, episode: I64) -> Actions:
        """See `agents.scheduler.Planner.plan`.

        Raises:
            ValueError: the world's reward is not the plain `RewardWeights`, whose formula rollouts share.
        """
        return self.play(world, machine, episode).actions

    def play(self, world: World, machine: I64, episode: I64) -> Played:
        """The same, with what it costs and who decided why.

        Raises:
            ValueError: as `plan`.
        """
        rule = replace(self.shield.rule, alpha=world.weights.alpha)
        here = replace(self, shield=replace(self.shield, rule=rule))
        if world.workload.is_one_graph:
            return here._play_graphs(world, machine, episode)
        return _Stream(here, world, machine, episode).play()

    def _play_graphs(self, world: World, machine: I64, episode: I64) -> Played:
        """The cheaper of two plays of each row: the policy's, without any shield, and the rule's."""
        rule, rule_cost = played(self.shield.rule, world, machine, episode, self.num_threads)
        policy, cost = played(BestScore(self.shield.base), world, machine, episode, self.num_threads)
        better = cost < rule_cost
        differs = (policy != rule).any(axis=2)
        reason = np.where(differs, np.where(better, Reason.POLICY, Reason.BUDGET)[:, None], Reason.AGREED)
        actions = np.where(better[:, None, None], policy, rule)
        num_tasks = world.workload.num_tasks
        return Played(actions, np.minimum(cost, rule_cost) / num_tasks, rule_cost / num_tasks, _counted(reason))


def _counted(reason: I64) -> I64:
    """How many decisions (R, T) had each reason, shape (R, len(Reason))."""
    return np.stack([(reason == each).sum(axis=1) for each in Reason], axis=1)


class _Stream:
    """Rows of a stream, decided together from their first task to their last."""

    def __init__(self, play: ShieldedPlay, world: World, machine: I64, episode: I64) -> None:
        """Allocate and start every row and its shadow."""
        self.budget = play
        self.world = world
        rows, num_objects = len(episode), world.workload.num_objects
        self.real, self.shadow = (
            Simulator(world.topologies, world.workload, rows, window_s=world.window_s, num_threads=play.num_threads)
            for _ in range(2)
        )
        for simulator in (self.real, self.shadow):
            simulator.reset(episode, machines=machine)
        self.observers = [Observer(each, world.weights, ObservationKind.FULL) for each in (self.real, self.shadow)]
        self.generators = [
            np.random.default_rng([play.seed, m, e]) for m, e in zip(machine.tolist(), episode.tolist(), strict=True)
        ]
        self.chunks = Chunks(rows * SMALLEST_CHUNK, play.num_threads)  # a row is a chunk's work
        threads, machines = self.chunks.count, self.real.machines
        self.past = allocate_past(rows, self.real.tasks)
        self.made = [allocate_futures(self.real.tasks, play.futures, play.depth) for _ in range(threads)]
        self.draft = [allocate_draft(num_objects, play.depth, 1) for _ in range(threads)]
        self.scratch = [allocate_rollout_scratch(self.real) for _ in range(threads)]
        self.pairs = np.zeros((threads, 1 + play.depth), np.int64)
        self.branches = [_branches(each.state, each.outcome) for each in (self.real, self.shadow)]
        self.trial = _branches(allocate_state(threads, machines, num_objects + play.depth), allocate_outcome(threads))
        self.excess = np.zeros((rows, NUM_TRIED, WAYS, play.futures))
        self.apart = np.zeros(rows, np.bool_)  # rows that have left their shadows
        self.stopped = np.zeros(rows, np.bool_)  # rows in which the rule decides until they have caught up with it
        self.cost, self.rule_cost = np.zeros((2, rows))  # so far

    def play(self) -> Played:
        """All tasks, one after another."""
        num_tasks, actions, reasons = self.world.workload.num_tasks, [], []
        for task in range(num_tasks):
            pair, reason = self._decide(task)
            actions.append(self._as_actions(pair))
            reasons.append(reason)
            self.cost += self.world.weights.cost(self.real.step(actions[-1]))
            remember_rows(self.real.tasks, self.real.state, self.past, 0, len(pair))
        counts = _counted(np.stack(reasons, axis=1))
        return Played(np.stack(actions, axis=1), self.cost / num_tasks, self.rule_cost / num_tasks, counts)

    def _decide(self, task: int) -> tuple[I64, I64]:
        """The next placement of every row as a pair, and its reason; the shadow goes on by one task."""
        observation, shadow_observation = (observer.observe() for observer in self.observers)
        shield = self.budget.shield
        choice = shield.choose(observation)
        usual, _ = shield.rule.predict(shadow_observation)
        usual_pair = usual[:, 0] * self.real.num_nodes + usual[:, 1]
        wanted = np.where(choice.reason == Reason.POLICY, choice.pair, usual_pair)
        tried = np.stack([wanted, usual_pair, choice.rule_pair], axis=1)
        # Before the first task there is no past from which to foresee anything: the rule decides.
        asked = np.flatnonzero(self.apart | (tried[:, POLICY] != tried[:, USUAL])) if task else np.zeros(0, np.int64)
        self.excess[:] = 0.0
        if asked.size:
            self._foresee(tried, asked)
        behind = self.cost - self.rule_cost
        self.stopped = (self.stopped | (behind > self.budget.stop * self.rule_cost)) & (behind > 0.0)
        self.rule_cost += self.world.weights.cost(self.shadow.step(usual))
        expected = behind[:, None] + reserved(self.excess, self.budget.reserve)
        expected[self.stopped, POLICY] = np.inf
        kept = np.full(len(tried), USUAL)
        kept[asked] = within_budget(expected, self.budget.slack * self.rule_cost)[asked]
        rows = np.arange(len(tried))
        pair = tried[rows, kept]
        self.apart |= pair != tried[:, USUAL]
        refused = (choice.reason == Reason.POLICY) & (pair != choice.pair)
        return pair, np.where(refused, Reason.BUDGET, choice.reason)

    def _foresee(self, tried: I64, asked: I64) -> None:
        """Write what placements cost more than the rule in futures, for the rows asked for."""
        play = self.budget
        draws = np.zeros((len(tried), play.futures, play.depth))
        for row in asked:
            draws[row] = self.generators[row].random(draws.shape[1:])
        prices, weights = kernel_prices(play.shield.rule), kernel_weights(self.world.weights)
        real, shadow = self.branches

        def foresee_chunk(chunk: int, first: int, last: int) -> None:
            foresee(
                self.real.machines,
                self.real.tasks,
                real,
                shadow,
                self.past,
                self.made[chunk],
                self.draft[chunk],
                self.trial,
                tried,
                draws,
                (play.run_length, play.memory, np.array(play.paces)),
                prices,
                weights,
                self.real.window_s,
                self.scratch[chunk],
                self.pairs[chunk],
                self.excess,
                asked,
                chunk,
                first // SMALLEST_CHUNK,
                min(last // SMALLEST_CHUNK, len(asked)),
            )

        self.chunks.run(foresee_chunk)

    def _as_actions(self, pair: I64) -> Actions:
        return np.stack([pair // self.real.num_nodes, pair % self.real.num_nodes], axis=-1)


def _branches(state: State, outcome: Outcome) -> Branches:
    return Branches(state, row_bytes(state), outcome, np.zeros(len(state.task)))


def reserved(excess: F64, reserve: float) -> F64:
    """What to reckon with for each placement, at worst of all futures and ways; a loss several times. Shape (B, K).

    Args:
        excess: cost over the rule's, by placement, way and future, shape (B, K, W, S).
        reserve: see `ShieldedPlay`.
    """
    worst = np.asarray(excess.max(axis=(2, 3)))
    return np.where(worst > 0.0, reserve * worst, worst)


def within_budget(behind: F64, budget: F64) -> I64:
    """The first placement that stays within the budget, else the rule's or the shadow's that gets least behind.

    Args:
        behind: the rule by each placement, shape (B, K).
        budget: by how much one may be behind, shape (B,).

    Returns:
        Which placement, shape (B,).
    """
    allowed = behind <= budget[:, None]
    least = USUAL + behind[:, USUAL:].argmin(axis=1)
    return np.asarray(np.where(allowed.any(axis=1), allowed.argmax(axis=1), least))

"""The search for situations in which a policy does worst: an evolution strategy [1] over situations.

The first generation is drawn from the whole space; what a policy does on average is judged by it alone. Each later one
is made of children of the worst situations so far, and of a few new ones.

References:
    [1] H.-G. Beyer, H.-P. Schwefel, "Evolution strategies: a comprehensive introduction", Natural Computing 1, 2002.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from agents.lookahead_scores import BestScore
from agents.oracle.plays import played
from agents.rules.greedy import PricedGreedy
from agents.scheduler import Scheduler
from agents.shield import Reason
from agents.shield_play import ShieldedPlay
from envs.world import World
from experiments.studies.adversarial_situations import Point, Situation, Space

F64 = npt.NDArray[np.float64]

FIRST_SHARE = 0.3  # of the budget, for the first generation
GENERATION = 16
PARENTS = 6
NEW_SHARE = 0.2  # of a generation, drawn from the whole space
SPREADS = (0.2, 0.05)  # of a child's parameters, at the start and at the end
MOST_FAILED = 20  # situations in turn that cannot be played


@dataclass(frozen=True, eq=False)
class Trial:
    """How a policy fared in the episodes of one situation.

    Attributes:
        situation: what was played.
        cost: mean cost of a decision, shape (E,).
        rule_cost: the rule's, shape (E,).
        reasons: decisions of each `Reason`, by its name; empty without a shield.
    """

    situation: Situation
    cost: F64
    rule_cost: F64
    reasons: dict[str, int]

    @property
    def ratio(self) -> F64:
        """Cost over the rule's, by episode, shape (E,); 1 where both cost nothing."""
        tiny = np.finfo(np.float64).tiny
        return np.where(self.cost == self.rule_cost, 1.0, self.cost / np.maximum(self.rule_cost, tiny))

    @property
    def worst(self) -> float:
        """The worst episode's ratio."""
        return float(self.ratio.max())

    @property
    def mean(self) -> float:
        """Mean cost over the rule's mean."""
        mine, rules = float(self.cost.mean()), float(self.rule_cost.mean())
        return 1.0 if mine == rules else mine / max(rules, float(np.finfo(np.float64).tiny))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "situation": self.situation.to_dict(),
            "worst_episode": self.worst,
            "mean": self.mean,
            "cost": self.cost.tolist(),
            "rule_cost": self.rule_cost.tolist(),
            "reasons": self.reasons,
        }


Play = Callable[[World], tuple[F64, F64, dict[str, int]]]  # costs, the rule's, and why it decided


def unshielded(policy: Scheduler, rule: PricedGreedy) -> Play:
    """How the policy and the rule fare, each alone; the rule weighs T_comm as the world does, as under the shield."""

    def play(world: World) -> tuple[F64, F64, dict[str, int]]:
        here = replace(rule, alpha=world.weights.alpha)
        costs = [played(who, world, *_rows(world))[1] / world.workload.num_tasks for who in (policy, here)]
        return costs[0], costs[1], {}

    return play


def shielded(play: ShieldedPlay) -> Play:
    """How the policy fares under the shield, and the rule alone."""

    def with_shield(world: World) -> tuple[F64, F64, dict[str, int]]:
        found = play.play(world, *_rows(world))
        return found.cost, found.rule_cost, {each.name.lower(): int(found.reasons[:, each].sum()) for each in Reason}

    return with_shield


def both(play: ShieldedPlay) -> dict[str, Play]:
    """The policy without and with its shield, by name."""
    return {"unshielded": unshielded(BestScore(play.shield.base), play.shield.rule), "shielded": shielded(play)}


def _rows(world: World) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    episodes = world.workload.num_episodes
    return np.zeros(episodes, np.int64), np.arange(episodes)


def try_situation(play: Play, situation: Situation, space: Space, num_episodes: int) -> Trial:
    """Play a situation's episodes.

    Raises:
        ValueError: its parameters break a rule of the family.
    """
    return Trial(situation, *play(situation.world(space.definition, num_episodes)))


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    Attributes:
        trials: all of them, in order.
        num_first: how many of these are of the first generation.
        num_failed: situations drawn that broke a rule of their family.
    """

    trials: list[Trial]
    num_first: int
    num_failed: int

    @property
    def first(self) -> list[Trial]:
        """The first generation, drawn from the whole space."""
        return self.trials[: self.num_first]

    def worst(self, count: int) -> list[Trial]:
        """Those whose worst episodes are worst."""
        return sorted(self.trials, key=lambda trial: -trial.worst)[:count]


def search(
    play: Play,
    space: Space,
    num_trials: int,
    num_episodes: int,
    rng: np.random.Generator,
    on_trial: Callable[[int, float], None] = lambda done, worst: None,
) -> Found:
    """Look for situations whose worst episode is as bad as can be.

    Args:
        play: how a situation's episodes are played.
        space: of situations.
        num_trials: how many situations to play.
        num_episodes: of each.
        rng: draws them; the same state finds the same.
        on_trial: called with the number of situations played and the worst ratio so far.

    Raises:
        ValueError: many situations in turn broke a rule of their family; the message is the last one's.
    """
    found: list[tuple[Point, Trial]] = []
    failed = in_turn = 0
    first = max(1, round(FIRST_SHARE * num_trials))
    while len(found) < num_trials:
        point = _next_point(found, first, num_trials, space, rng)
        try:
            trial = try_situation(play, space.situation(point), space, num_episodes)
        except ValueError:
            failed, in_turn = failed + 1, in_turn + 1
            if in_turn == MOST_FAILED:
                raise
            continue
        in_turn = 0
        found.append((point, trial))
        on_trial(len(found), max(each.worst for _, each in found))
    return Found([trial for _, trial in found], first, failed)


def _next_point(
    found: list[tuple[Point, Trial]], first: int, num_trials: int, space: Space, rng: np.random.Generator
) -> Point:
    """A situation of the first generation, or a child of the worst before its own generation, or a new one."""
    if len(found) < first or rng.random() < NEW_SHARE:
        return space.draw(rng)
    before = first + (len(found) - first) // GENERATION * GENERATION
    parents = sorted(found[:before], key=lambda each: -each[1].worst)[:PARENTS]
    progress = (before - first) / max(num_trials - first, 1)
    spread = SPREADS[0] * (SPREADS[1] / SPREADS[0]) ** progress
    return space.near(parents[rng.integers(len(parents))][0], rng, spread)

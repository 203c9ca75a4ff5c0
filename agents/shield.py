"""A learned policy under a shield: it decides where it is sure to be better than the rule, elsewhere the rule does.

The rule decides where
(a) the policy does not expect its own placement to cost less than the rule's by a margin, or
(b) the observation lies outside what training saw (`agents.seen`).
This takes an observation alone: `Shielded` is a scheduler as others are. Neither test can see how a run goes; who
steps the simulator can, and holds the policy to a budget: see `agents.shield_play`.

Dimension key: B rows, N nodes.

References:
    [1] M. Alshiekh et al., "Safe reinforcement learning via shielding", AAAI 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from agents.lookahead_scores import LogitScores, PairScores
from agents.rollouts import kernel_prices
from agents.rules.greedy import PricedGreedy
from agents.scheduler import Actions, Memory
from agents.seen import Seen
from envs.observation import ObservationLayout

if TYPE_CHECKING:
    from agents.ppo.storage import LearnedScheduler

I64 = npt.NDArray[np.int64]
MARGIN = 0.05


class Reason(IntEnum):
    """Who decided, and why."""

    AGREED = 0  # the policy would do as the rule does
    POLICY = 1  # the policy did something else
    SMALL = 2  # the rule: the policy's advantage is too small
    UNSEEN = 3  # the rule: the observation lies outside what training saw
    BUDGET = 4  # the rule: the policy is, or might get, too far behind it


class Choice(NamedTuple):
    """A decision of every row, pairs as n N + d.

    Attributes:
        pair: what is done, shape (B,).
        rule_pair: what the rule would do, shape (B,).
        reason: `Reason`, shape (B,).
    """

    pair: I64
    rule_pair: I64
    reason: I64


@dataclass(frozen=True)
class Shielded:
    """The policy where it is sure, the rule elsewhere.

    Attributes:
        base: the policy's scores; a score is minus `scale` times a relative cost.
        scale: how much of a score is a cost difference of once the lowest priced cost.
        rule: who decides elsewhere; its parameters are numbers, not arrays. Who plays a world takes its alpha instead.
        seen: what training saw; without it every observation counts as seen.
        margin: how much less than the rule's the policy's placement must cost, relative to the lowest priced cost.

    Raises:
        ValueError: a scale that is not positive, a margin that is negative, either not finite, or a price that is an
            array.
    """

    base: PairScores
    scale: float
    rule: PricedGreedy
    seen: Seen | None = None
    margin: float = MARGIN

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (isfinite(self.scale) and self.scale > 0.0):
            raise ValueError(f"shield: scale must be finite and > 0, got {self.scale}.")
        if not (isfinite(self.margin) and self.margin >= 0.0):
            raise ValueError(f"shield: margin must be finite and >= 0, got {self.margin}.")
        kernel_prices(self.rule)

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"{self.base.name}+shield"

    def choose(self, observation: npt.NDArray[Any]) -> Choice:
        """The decision of every row and its reason.

        Args:
            observation: full observation rows, shape (B, size).
        """
        layout = ObservationLayout.of_size(observation.shape[-1])
        scores = self.base.scores(observation)
        actions, _ = self.rule.predict(observation)
        rule_pair = actions[:, 0] * layout.num_nodes + actions[:, 1]
        pair = scores.argmax(axis=1)
        rows = np.arange(len(pair))
        advantage = (scores[rows, pair] - scores[rows, rule_pair]) / self.scale
        reason = np.where(advantage >= self.margin, Reason.POLICY, Reason.SMALL)
        if self.seen is not None:
            reason = np.where(self.seen.contains(layout.split(observation)), reason, Reason.UNSEEN)
        reason = np.where(pair == rule_pair, Reason.AGREED, reason)
        return Choice(np.where(reason == Reason.POLICY, pair, rule_pair), rule_pair, reason)

    def predict(
        self,
        observation: npt.NDArray[Any],
        state: Memory = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[Actions, Memory]:
        """See `agents.scheduler.Scheduler.predict`; it always decides by its best.

        Raises:
            ValueError: the rows are not full observations.
        """
        rows = np.atleast_2d(observation)
        pair = self.choose(rows).pair
        num_nodes = ObservationLayout.of_size(rows.shape[-1]).num_nodes
        actions = np.stack([pair // num_nodes, pair % num_nodes], axis=-1)
        return (actions[0] if np.ndim(observation) == 1 else actions), state


def shielded(
    policy: LearnedScheduler, rule: PricedGreedy | None = None, seen: Seen | None = None, margin: float = MARGIN
) -> Shielded:
    """A loaded policy under a shield.

    Args:
        policy: as `agents.ppo.storage.load_policy` makes it.
        rule: who decides where the policy does not; by default the rule that the policy started from.
        seen: what training saw, as `agents.seen.read_seen` finds it.
        margin: see `Shielded`.

    Raises:
        ValueError: the policy has no prior, so that its scores are no costs; or a value breaks a rule of `Shielded`.
    """
    if not policy.scorer.config.prior:
        raise ValueError(f"shield: policy {policy.name!r} must have a prior, whose scale tells costs, got one without.")
    scale = float(policy.scorer.log_scale.detach().exp())
    return Shielded(LogitScores(policy), scale, rule or prior_rule(policy), seen, margin)


def prior_rule(policy: LearnedScheduler) -> PricedGreedy:
    """The priced greedy rule that a policy started from."""
    return LogitScores(policy).rule

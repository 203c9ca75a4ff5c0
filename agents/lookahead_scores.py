"""What proposes placements to who looks ahead: scores of all pairs of a task node and a data node.

Dimension key: B rows, N nodes.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from agents.ppo.scoring_kernel import TIE
from agents.rules.base import Groups, per_row
from agents.rules.greedy import PricedGreedy, priced_cost
from agents.scheduler import Actions, Memory
from envs.observation import ObservationLayout

F64 = npt.NDArray[np.float64]


class PairScores(Protocol):
    """Who scores pairs, as a learned policy does by its logits."""

    @property
    def name(self) -> str:
        """How tables call who decides by the highest score."""
        ...

    def scores(self, observation: npt.NDArray[Any]) -> F64:
        """How good each pair looks, higher is better, closed pairs -inf, shape (B, N * N).

        Args:
            observation: full observation rows, shape (B, size).
        """
        ...


class PricedScores:
    """Minus the priced cost: the pair with the highest score is the one that the priced greedy rule chooses.

    Args:
        rule: whose prices.
    """

    def __init__(self, rule: PricedGreedy) -> None:
        """Keep the rule."""
        self.rule = rule
        self.name = rule.name

    def scores(self, observation: npt.NDArray[Any]) -> F64:
        """See `PairScores.scores`."""
        groups = ObservationLayout.of_size(observation.shape[-1]).split(observation)
        rule = self.rule
        cost = priced_cost(
            groups,
            per_row(rule.congestion_price, 2),
            per_row(rule.crowding_price, 1),
            per_row(rule.migration_share, 1),
            per_row(rule.alpha, 1),
        )
        return _open_only(-cost, groups)


class LogitScores:
    """The logits of a learned policy.

    Args:
        policy: as `agents.ppo.storage.load_policy` makes it.
    """

    def __init__(self, policy: Any) -> None:
        """Keep the policy."""
        self.policy = policy
        self.name = str(policy.name)

    @property
    def rule(self) -> PricedGreedy:
        """The rule that the policy starts from, with the prices it was given."""
        config = self.policy.scorer.config
        return PricedGreedy(config.congestion_price, config.crowding_price, config.migration_share, config.alpha)

    def scores(self, observation: npt.NDArray[Any]) -> F64:
        """See `PairScores.scores`."""
        rows = np.asarray(observation, np.float32)
        scores = _open_only(self.policy.logits(rows), ObservationLayout.of_size(rows.shape[-1]).split(rows))
        best = scores.max(axis=1, keepdims=True)
        return np.where(scores >= best - float(TIE), best, scores)  # the first of these is what the policy does


def _open_only(scores: Any, groups: Groups) -> F64:
    """Scores of all pairs, closed ones -inf, shape (B, N * N)."""
    is_open = (groups["task_mask"][:, :, None] > 0) & (groups["data_mask"][:, None, :] > 0)
    return np.where(is_open, scores.reshape(is_open.shape), -np.inf).reshape(len(is_open), -1).astype(np.float64)


class BestScore:
    """A scheduler that decides by the highest score, the first of equals.

    Args:
        base: who scores.
    """

    def __init__(self, base: PairScores) -> None:
        """Keep who scores."""
        self.base = base
        self.name = base.name

    def predict(
        self,
        observation: npt.NDArray[Any],
        state: Memory = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[Actions, Memory]:
        """See `agents.scheduler.Scheduler.predict`."""
        rows = np.atleast_2d(observation)
        pair = self.base.scores(rows).argmax(axis=1)
        num_nodes = ObservationLayout.of_size(rows.shape[-1]).num_nodes
        actions = np.stack([pair // num_nodes, pair % num_nodes], axis=-1)
        return (actions[0] if np.ndim(observation) == 1 else actions), state

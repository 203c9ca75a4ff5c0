"""The rollout teacher: what a placement costs in the long run, found by trying it in the simulator.

For a state, each of K candidate placements is tried, and the tuned rule places the tasks that follow. All
candidates meet the same arrivals, so the differences between their costs carry almost none of the noise that the
policy gradient has to average away. The policy learns the expected differences: what the rollouts know of the
future and the policy does not, it can only average over.

Dimension key: B rows, K candidates, N nodes.

References:
    [1] G. Tesauro, G. R. Galperin, "On-line policy improvement using Monte-Carlo search", NeurIPS 1996: rollouts.
    [2] D. P. Bertsekas, "Rollout, policy iteration, and distributed reinforcement learning", 2020.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from agents.ppo.config import TeacherConfig
from agents.ppo.policy import PlacementPolicy
from agents.ppo.scorer import CLOSED
from agents.rollouts import Rollouts
from agents.rules.greedy import PricedGreedy
from agents.totals import Totals
from envs.observation_kernel import Float32
from envs.world import Rows, World

HOPELESS = 1.0  # times the lowest priced cost: how much worse than the best a candidate need not be told apart
MOST_WEIGHT = 5.0  # reference times: beyond it a state's weight no longer grows with its cost

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Labels:
    """States and what their candidates cost.

    Attributes:
        observation: shape (B, size).
        candidates: pairs n N + d, shape (B, K).
        cost: summed over the candidate's decision and those after it, shape (B, K).
    """

    observation: Float32
    candidates: I64
    cost: F64


def joined(labels: list[Labels]) -> Labels:
    """All of them as one."""
    return Labels(
        np.concatenate([part.observation for part in labels]),
        np.concatenate([part.candidates for part in labels]),
        np.concatenate([part.cost for part in labels]),
    )


class RolloutTeacher:
    """Labels states that the policy visits.

    Args:
        world: what is scheduled.
        rule: places what comes after a candidate.
        policy: proposes candidates and, by its best, decides which states are visited.
        config: see `TeacherConfig`.

    Raises:
        ValueError: as `Rollouts`.
    """

    def __init__(self, world: World, rule: PricedGreedy, policy: PlacementPolicy, config: TeacherConfig) -> None:
        """Allocate; `start` comes before the first label."""
        self.config = config
        self.policy = policy
        self.rows = Rows(world, config.num_rows)
        num_threads = min(config.num_threads, os.cpu_count() or 1)
        num_candidates = min(config.num_candidates, policy.layout.num_nodes**2)
        self.rollouts = Rollouts(world, rule, config.num_rows, num_candidates, config.depth, num_threads)
        self.totals = Totals(self.rows.simulator.num_nodes)
        self.memory: list[Labels] = []
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate)

    def start(self) -> None:
        """Start every row, each to end its first episode at another time."""
        self.rows.reset(horizon_shares=(np.arange(self.config.num_rows) + 1) / self.config.num_rows)

    def update(self, progress: float, rng: np.random.Generator) -> float:
        """Label as many states as an update needs and fit the policy to them and the last; returns the mean loss.

        Args:
            progress: share of all labels that came before, in [0, 1].
            rng: draws candidates and the order of labels.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * max(1.0 - progress, 0.05)
        rounds = -(-self.config.labels_per_update // self.config.num_rows)
        self.memory = [*self.memory, joined([self.label(rng) for _ in range(rounds)])][-self.config.memory :]
        return learn(self.policy, self.optimizer, self.memory, self.config, rng)

    def _candidates(self, logits: Float32, rng: np.random.Generator) -> I64:
        """The likeliest placements of each row, best first, then others drawn from all open ones, shape (B, K).

        Where there are fewer open placements than candidates, the best one stands in for the rest.
        """
        likeliest = self.config.num_candidates - self.config.num_random
        rank = np.argsort(np.argsort(-logits, axis=1, kind="stable"), axis=1, kind="stable")
        is_open = logits > CLOSED / 2
        key = np.where(rank < likeliest, -1.0 / (1.0 + rank), rng.random(logits.shape))
        chosen = np.argsort(np.where(is_open, key, np.inf), axis=1, kind="stable")[:, : self.config.num_candidates]
        return np.where(np.take_along_axis(is_open, chosen, axis=1), chosen, chosen[:, :1])

    def label(self, rng: np.random.Generator) -> Labels:
        """Label the state of every row, and move on to the next ones."""
        observation = self.rows.observe().copy()
        candidates = self._candidates(self._logits(observation), rng)
        cost = self.rollouts.try_candidates(self.rows.simulator, candidates)
        self._play(candidates[:, 0])
        for _ in range(self.config.stride - 1):
            self._play(self._logits(self.rows.observe()).argmax(axis=1))
        return Labels(observation, candidates, cost)

    def _logits(self, observation: Float32) -> Float32:
        with torch.no_grad():
            logits: Float32 = self.policy.scorer(torch.from_numpy(observation))[0].numpy()
        return logits

    def _split(self, pairs: I64) -> I64:
        n = self.policy.layout.num_nodes
        return np.stack([pairs // n, pairs % n], axis=-1)

    def _play(self, pairs: I64) -> None:
        """Decide the next task of every row; rows that end start anew."""
        rewards, outcome = self.rows.step(self._split(pairs))
        self.totals.count(self.rows, rewards)
        ended = np.flatnonzero(outcome.finished)
        if ended.size:
            self.rows.reset(ended)


def learn(
    policy: PlacementPolicy,
    optimizer: torch.optim.Optimizer,
    labels: list[Labels],
    config: TeacherConfig,
    rng: np.random.Generator,
) -> float:
    """Fit the policy's logits to what the candidates cost more or less than each other; returns the mean loss.

    Cost differences are taken relative to the state's lowest priced cost, as the prior takes them, and weighed by
    it: the loss is quadratic for small errors, so that expectations are learned, and linear for large ones. A
    hopeless candidate only has to score low enough.
    """
    together = joined(labels)
    observation = torch.from_numpy(together.observation)
    candidates = torch.from_numpy(together.candidates)
    cost = torch.from_numpy(together.cost.astype(np.float32))
    likeliest = config.num_candidates - config.num_random
    losses = []
    for batch in torch.split(torch.from_numpy(rng.permutation(len(cost))), config.batch_size):
        rows = observation[batch]
        logits, _ = policy.scorer(rows)
        unit = policy.scorer.unit_cost(rows).unsqueeze(1)
        weight = unit.clamp(max=MOST_WEIGHT)
        got = logits.gather(1, candidates[batch]) / policy.scorer.log_scale.exp()
        want = -cost[batch] / unit
        floor = want.amax(1, keepdim=True) - HOPELESS
        hopeless = want < floor
        want = want.maximum(floor)
        error = got - got[:, :likeliest].mean(1, keepdim=True) - want + want[:, :likeliest].mean(1, keepdim=True)
        error = torch.where(hopeless, error.clamp(min=0.0), error)
        loss = (nn.functional.huber_loss(error, torch.zeros(()).expand_as(error), reduction="none") * weight).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))

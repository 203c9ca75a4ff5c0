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
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from agents.ppo.config import TeacherConfig
from agents.ppo.policy import PlacementPolicy
from agents.ppo.scorer import CLOSED, PairScorer
from agents.ppo.scoring import CompiledScorer, refusal
from agents.rollouts import Rollouts
from agents.rules.greedy import PricedGreedy
from agents.totals import Totals
from envs.observation_kernel import Float32
from envs.world import Rows, World

FAR, FAR_SHARE = 10.0, 0.1  # times `near`: a second, slower fall of an error's weight, and its share
MOST_WORTH = 5.0  # spreads in a lowest priced cost, beyond which a state counts no more
LARGE = 3.0  # spreads: an error beyond it counts linearly
LEAST_SPREAD = 1e-3  # times the mean cost of a candidate
TINY = 1e-9  # in place of 0, where nothing costs anything

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Labels:
    """States of machines of one size, and what their candidates cost.

    Attributes:
        observation: shape (B, size).
        candidates: pairs n N + d, shape (B, K).
        cost: summed over the candidate's decision and those after it, shape (B, K).
        spread: the standard deviation, in that world, of what the likeliest candidate costs more than the next one:
            mostly what the rollouts know and the policy cannot, shape (B,).
    """

    observation: Float32
    candidates: I64
    cost: F64
    spread: F64


def joined(labels: Sequence[Labels]) -> Labels:
    """All of them as one."""
    return Labels(*(np.concatenate(parts) for parts in zip(*(vars(part).values() for part in labels), strict=True)))


def by_size(labels: Sequence[Labels]) -> list[Labels]:
    """All of them, joined by the size of observation and the number of candidates, in the order of these."""
    found: dict[tuple[int, int], list[Labels]] = defaultdict(list)
    for part in labels:
        found[part.observation.shape[1], part.candidates.shape[1]].append(part)
    return [joined(found[size]) for size in sorted(found)]


class Labeller:
    """Labels states that the policy visits in one world.

    Args:
        world: what is scheduled.
        rule: places what comes after a candidate.
        scorer: proposes candidates and, by its best, decides which states are visited.
        config: see `TeacherConfig`.
        num_rows: B, states labelled at once.

    Raises:
        ValueError: as `Rollouts`.
    """

    def __init__(
        self, world: World, rule: PricedGreedy, scorer: PairScorer, config: TeacherConfig, num_rows: int
    ) -> None:
        """Allocate; the rows must be reset before the first label."""
        self.config = config
        self.rule = rule
        self.scorer = scorer
        self.rows = Rows(world, num_rows)
        self.layout = self.rows.observer.layout
        num_threads = min(config.num_threads, os.cpu_count() or 1)
        num_candidates = min(config.num_candidates, self.layout.num_nodes**2)
        self.rollouts = Rollouts(
            world,
            rule,
            num_rows,
            num_candidates,
            config.depth,
            num_threads,
            discount=config.discount,
            own_discount=config.own_discount,
        )
        self.totals = Totals(self.layout.num_nodes)
        self.follow_policy()

    def follow_policy(self) -> None:
        """Visit from now on what the policy as it stands visits."""
        refused = refusal(self.scorer.config)
        self._scores = self.scorer.logits if refused else CompiledScorer.from_scorer(self.scorer).logits

    def _candidates(self, logits: Float32, rule_pairs: I64, rng: np.random.Generator) -> I64:
        """The placements of each row to try, shape (B, K).

        The policy's best, the rule's, the next best by the policy, then others drawn from all open ones. Were the
        rule's never tried, nothing would tell a policy that has left it that it was better. Where there are fewer
        open placements than candidates, the best one stands in for the rest.
        """
        likeliest = self.config.num_candidates - self.config.num_random
        rank = np.argsort(np.argsort(-logits, axis=1, kind="stable"), axis=1, kind="stable")
        np.put_along_axis(rank, rule_pairs[:, None], np.take_along_axis(rank, rule_pairs[:, None], 1).clip(max=1), 1)
        is_open = logits > CLOSED / 2
        key = np.where(rank < likeliest, -1.0 / (1.0 + rank), rng.random(logits.shape))
        chosen = np.argsort(np.where(is_open, key, np.inf), axis=1, kind="stable")[:, : self.config.num_candidates]
        return np.where(np.take_along_axis(is_open, chosen, axis=1), chosen, chosen[:, :1])

    def label(self, rounds: int, rng: np.random.Generator) -> Labels:
        """Label the states of every row, as many times, each time some decisions further on."""
        parts = [self._label_once(rng) for _ in range(rounds)]
        observation, candidates, cost = (np.concatenate(same) for same in zip(*parts, strict=True))
        spread = max(float(np.std(cost[:, 0] - cost[:, 1 % cost.shape[1]])), LEAST_SPREAD * float(cost.mean()), TINY)
        return Labels(observation, candidates, cost, np.full(len(cost), spread))

    def _label_once(self, rng: np.random.Generator) -> tuple[Float32, I64, F64]:
        """Observations, candidates and costs of every row; moves on to the next states."""
        observation = self.rows.observe().copy()
        placed, _ = self.rule.predict(observation)
        pairs = placed[:, 0] * self.layout.num_nodes + placed[:, 1]
        candidates = self._candidates(self._logits(observation), pairs, rng)
        cost = self.rollouts.try_candidates(self.rows.simulator, candidates)
        self._play(candidates[:, 0])
        self.skip(self.config.stride - 1)
        return observation, candidates, cost

    def skip(self, decisions: int) -> None:
        """Let the policy decide without labelling."""
        for _ in range(decisions):
            self._play(self._logits(self.rows.observe()).argmax(axis=1))

    def _logits(self, observation: Float32) -> Float32:
        return self._scores(observation)

    def _split(self, pairs: I64) -> I64:
        n = self.layout.num_nodes
        return np.stack([pairs // n, pairs % n], axis=-1)

    def _play(self, pairs: I64) -> None:
        """Decide the next task of every row; rows that end start anew."""
        rewards, outcome = self.rows.step(self._split(pairs))
        self.totals.count(self.rows, rewards)
        ended = np.flatnonzero(outcome.finished)
        if ended.size:
            self.rows.reset(ended)


class RolloutTeacher(Labeller):
    """Teaches the policy one world: labels its states and fits it to them.

    Args:
        world: what is scheduled.
        rule: places what comes after a candidate.
        policy: learns.
        config: see `TeacherConfig`.

    Raises:
        ValueError: as `Rollouts`.
    """

    def __init__(self, world: World, rule: PricedGreedy, policy: PlacementPolicy, config: TeacherConfig) -> None:
        """Allocate; `start` comes before the first label."""
        super().__init__(world, rule, policy.scorer, config, config.num_rows)
        self.policy = policy
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
        self.follow_policy()
        rounds = -(-self.config.labels_per_update // self.config.num_rows)
        self.memory = [*self.memory, self.label(rounds, rng)][-self.config.memory :]
        return learn(self.policy, self.optimizer, self.memory, self.config, progress, rng)


def learn(
    policy: PlacementPolicy,
    optimizer: torch.optim.Optimizer,
    labels: Sequence[Labels],
    config: TeacherConfig,
    progress: float,
    rng: np.random.Generator,
) -> float:
    """One pass over the labels, in batches of machines of one size; returns the mean loss.

    Args:
        policy: learns.
        optimizer: of its parameters.
        labels: to learn from.
        config: see `TeacherConfig`.
        progress: share of all labels that came before, in [0, 1]: the learning rate falls with it.
        rng: draws the order.
    """
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * max(1.0 - progress, 0.05)
    parts, losses = by_size(labels), []
    batches = [(part, rows) for part in parts for rows in np.split(*_cuts(len(part.cost), config.batch_size, rng))]
    for index in rng.permutation(len(batches)):
        part, rows = batches[index]
        loss = teacher_loss(policy.scorer, Labels(*(values[rows] for values in vars(part).values())), config)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))


def _cuts(count: int, size: int, rng: np.random.Generator) -> tuple[I64, I64]:
    """Rows in a random order, and where to cut them into batches."""
    return rng.permutation(count), np.arange(size, count, size)


def teacher_loss(scorer: PairScorer, labels: Labels, config: TeacherConfig) -> Tensor:
    """How far the logits are from what the candidates cost more or less than each other.

    Logits and costs are compared relative to the state's lowest priced cost, as the prior takes them, up to a number
    that all candidates of a state share. Errors count in units of what costs vary by in that world, so that no world
    drowns the others in its noise, and the more the more placements matter there. They count the more the nearer the
    policy sees the candidate to the best one. These weights follow from the policy and not from the costs, so what is
    learned is what costs can be expected to be; weights that looked at the costs would make a policy believe in what
    went well by chance.
    """
    numbers = (labels.observation, labels.candidates, np.float32(labels.cost), np.float32(labels.spread))
    rows, candidates, cost, spread = (torch.from_numpy(array).to(scorer.log_scale.device) for array in numbers)
    unit = scorer.unit_cost(rows).unsqueeze(1)
    got, want = scorer(rows)[0].gather(1, candidates) / scorer.log_scale.exp(), -cost / unit
    behind = (got.amax(1, keepdim=True) - got).detach()
    weight = (1.0 - FAR_SHARE) * (-behind / config.near).exp() + FAR_SHARE * (-behind / (FAR * config.near)).exp()
    error, spread = got - want, spread.unsqueeze(1)
    error = (error - (error * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)) * unit / spread
    fit = nn.functional.huber_loss(error, torch.zeros(()).expand_as(error), reduction="none", delta=LARGE)
    return torch.as_tensor((weight * fit * (spread / unit).clamp(max=MOST_WORTH)).mean())

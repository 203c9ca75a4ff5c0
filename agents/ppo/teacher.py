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
from envs.observation import ObservationLayout
from envs.observation_kernel import Float32
from envs.world import Rows, World

HOPELESS = 1.0  # times the lowest priced cost: how much worse than the best a candidate need not be told apart
MOST_WEIGHT = 5.0  # beyond so many decisions' cost, a state's weight no longer grows with its own
MOST_REGRET = 3.0  # decisions' cost: choosing something worse than that counts as much

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Labels:
    """States of machines of one size, and what their candidates cost.

    Attributes:
        observation: shape (B, size).
        candidates: pairs n N + d, shape (B, K).
        cost: summed over the candidate's decision and those after it, shape (B, K).
        scale: what a decision costs in that world on average: costs count relative to it, shape (B,).
    """

    observation: Float32
    candidates: I64
    cost: F64
    scale: F64


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
            world, rule, num_rows, num_candidates, config.depth, num_threads, discount=config.discount
        )
        self.totals = Totals(self.layout.num_nodes)
        self.follow_policy()

    def follow_policy(self) -> None:
        """Visit from now on what the policy as it stands visits."""
        scorer = self.scorer.on(self.layout)
        self._scores = CompiledScorer.from_scorer(scorer).logits if not refusal(scorer.config) else scorer.logits

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

    def label(self, rng: np.random.Generator) -> Labels:
        """Label the state of every row, and move on to the next ones."""
        observation = self.rows.observe().copy()
        placed, _ = self.rule.predict(observation)
        pairs = placed[:, 0] * self.layout.num_nodes + placed[:, 1]
        candidates = self._candidates(self._logits(observation), pairs, rng)
        cost = self.rollouts.try_candidates(self.rows.simulator, candidates)
        self._play(candidates[:, 0])
        self.skip(self.config.stride - 1)
        return Labels(observation, candidates, cost, np.full(len(cost), cost.mean() / self.config.decisions))

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
        self.memory = [*self.memory, joined([self.label(rng) for _ in range(rounds)])][-self.config.memory :]
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
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))


def _cuts(count: int, size: int, rng: np.random.Generator) -> tuple[I64, I64]:
    """Rows in a random order, and where to cut them into batches."""
    return rng.permutation(count), np.arange(size, count, size)


def teacher_loss(scorer: PairScorer, labels: Labels, config: TeacherConfig) -> Tensor:
    """How far the policy is from what the candidates cost more or less than each other: two terms.

    The first fits logits to costs. Differences are taken relative to the state's lowest priced cost, as the prior
    takes them, and weighed by it over what a decision costs in that world: the loss is quadratic for small errors,
    so that expectations are learned, and linear for large ones. A hopeless candidate only has to score low enough.

    The second, times `regret_weight`, is what choosing among the candidates by the policy's odds costs more than the
    best of them, in units of what a decision costs: it spends the network on differences that change decisions.
    """
    scorer = scorer.on(ObservationLayout.of_size(labels.observation.shape[1]))
    numbers = (labels.observation, labels.candidates, np.float32(labels.cost), np.float32(labels.scale))
    rows, candidates, cost, scale = (torch.from_numpy(array).to(scorer.log_scale.device) for array in numbers)
    scale = scale.unsqueeze(1)
    logits = scorer(rows)[0].gather(1, candidates)
    unit = scorer.unit_cost(rows).unsqueeze(1)
    got, want = logits / scorer.log_scale.exp(), -cost / unit
    floor = want.amax(1, keepdim=True) - HOPELESS
    hopeless = want < floor
    want = want.maximum(floor)
    told_apart = ~hopeless / (~hopeless).sum(1, keepdim=True)  # the hopeless have no say in where the others' mean lies
    error = got - want - ((got - want) * told_apart).sum(1, keepdim=True)
    error = torch.where(hopeless, error.clamp(min=0.0), error)
    fit = nn.functional.huber_loss(error, torch.zeros(()).expand_as(error), reduction="none")
    loss = (fit * (unit / scale).clamp(max=MOST_WEIGHT)).mean()
    if config.regret_weight:
        regret = ((cost - cost.amin(1, keepdim=True)) / scale).clamp(max=MOST_REGRET)
        loss = loss + config.regret_weight * (logits.softmax(1) * regret).sum(1).mean()
    return loss

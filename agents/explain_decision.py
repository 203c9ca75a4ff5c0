"""One decision of a policy beside a rule's: what each is charged, what follows, and why the policy prefers its own.

Dimension key: N nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from agents.explain_attribution import Attribution, attribute
from agents.explain_differences import FOLLOWED
from agents.explain_terms import CostTerms, cost_terms
from agents.ppo.storage import LearnedScheduler
from agents.rollouts import Rollouts
from agents.rules.base import Rule
from agents.rules.greedy import PricedGreedy
from envs.observation import ObservationLayout, Observer
from envs.world import World
from numa_rl.simulator.simulator import Simulator

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Decision:
    """A decision explained; of two entries, the first is the policy's placement, the second the other.

    Attributes:
        episode: of the pool.
        task: of the episode.
        pairs: (task node) N + (data node) of both.
        num_nodes: N.
        agrees: whether the rule takes the policy's placement too; the other is then the policy's own second choice.
        terms: what each is charged.
        total: what each costs together with up to `num_followed` decisions after it.
        num_followed: how many do follow.
        groups: what the policy saw, by group.
        attribution: why the first has the higher logit, or not.
        reference_s: the unit of time.
        beta: the reward's weight of the imbalance.
    """

    episode: int
    task: int
    pairs: tuple[int, int]
    num_nodes: int
    agrees: bool
    terms: CostTerms
    total: F64
    num_followed: int
    groups: Mapping[str, npt.NDArray[Any]]
    attribution: Attribution
    reference_s: float
    beta: float

    @property
    def nodes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(task node, data node) of both."""
        first, second = (divmod(pair, self.num_nodes) for pair in self.pairs)
        return first, second


def explain_decision(
    world: World, policy: LearnedScheduler, rule: Rule, follower: PricedGreedy, episode: int, task: int
) -> Decision:
    """Play an episode by the policy up to a task, and explain where it puts that.

    Args:
        world: what is scheduled; its first machine is played.
        policy: who decides.
        rule: with whom it is compared; one that remembers nothing.
        follower: who makes the decisions that follow.
        episode: of the world's pool.
        task: of the episode, 0 or above.

    Raises:
        ValueError: no such episode or task, or only one placement is possible.
    """
    num_tasks = world.workload.num_tasks
    if not 0 <= task < num_tasks:
        raise ValueError(f"task must be in 0..{num_tasks - 1}, got {task}.")
    simulator = Simulator(world.topologies, world.workload, 1, window_s=world.window_s)
    simulator.reset(episode)
    observer = Observer(simulator, world.weights, world.observation)
    for _ in range(task):
        simulator.step(policy.predict(observer.observe())[0])
    seen = observer.observe().copy()
    n = observer.layout.num_nodes
    (chosen,), (wanted,) = policy.predict(seen)[0], rule.predict(seen)[0][:, :2]
    pair, other = int(chosen[0] * n + chosen[1]), int(wanted[0] * n + wanted[1])
    agrees = pair == other
    if agrees:
        other = second_choice(policy, seen, pair)
    terms = cost_terms(simulator, np.arange(n * n), world.weights)
    rollouts = Rollouts(world, follower, 1, 2, 1 + FOLLOWED)
    return Decision(
        episode,
        task,
        (pair, other),
        n,
        agrees,
        terms.at([pair, other]),
        rollouts.try_candidates(simulator, np.array([[pair, other]]))[0],
        min(FOLLOWED, num_tasks - task - 1),
        observer.layout.split(seen[0]),
        attribute(policy.scorer, seen[0], pair, other, terms, world.weights),
        world.weights.reference_s,
        world.weights.beta,
    )


def second_choice(policy: LearnedScheduler, observation: npt.NDArray[Any], pair: int) -> int:
    """The pair with the highest logit but for the one given, in one observation (1, size).

    Raises:
        ValueError: no other placement is open.
    """
    layout = ObservationLayout.of_size(observation.shape[1])
    groups = layout.split(observation)
    is_open = (groups["task_mask"][0, :, None] * groups["data_mask"][0] > 0).ravel()
    is_open[pair] = False
    if not is_open.any():
        raise ValueError("the machine must leave a choice to be explained, got a task with one placement.")
    logits = policy.scorer.logits(observation)[0]
    return int(np.where(is_open, logits, -np.inf).argmax())

"""Rewards that say what a decision saves: its cost and that of what follows, less the same had the rule decided.

Both branches meet the same arrivals, and the rule decides what follows in both, so their difference has almost none
of the noise of the return. It is the advantage of the decision over the rule's policy, seen with the arrivals that
came. Summed along an episode, such advantages add up in expectation to how much better a policy is than the rule
[1], so they may stand in place of the reward; undiscounted, they are a shaping of it by what the rule would still
pay [2]. With a discount of zero, every decision is judged alone, as the rollout teacher judges it.

Dimension key: B environments, N nodes.

References:
    [1] S. Kakade, J. Langford, "Approximately optimal approximate reinforcement learning", ICML 2002, lemma 6.1.
    [2] A. Y. Ng, D. Harada, S. Russell, "Policy invariance under reward transformations", ICML 1999.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from agents.rollouts import Rollouts
from agents.rules.greedy import PricedGreedy
from agents.vec_env import NumaVecEnv
from envs.world import World


class WhatIfVecEnv(NumaVecEnv):
    """A `NumaVecEnv` whose rewards are what its decisions save; episode statistics stay those of the true reward.

    Args:
        world: what is scheduled.
        num_envs: B.
        rule: what a decision is compared with, and who decides what follows it; its parameters are numbers.
        depth: decisions counted, the first included.
        seed: as in `NumaVecEnv`.
        reward_scale: likewise.
        num_threads: likewise; they share the trials too.
        group: likewise.

    Raises:
        ValueError: as `NumaVecEnv` and `Rollouts`, or a depth below 1.
    """

    def __init__(
        self,
        world: World,
        num_envs: int,
        rule: PricedGreedy,
        *,
        depth: int,
        seed: int = 0,
        reward_scale: float = 1.0,
        num_threads: int = 1,
        group: int = 1,
    ) -> None:
        """Allocate the rows and two trials for each."""
        if depth < 1:
            raise ValueError(f"depth must be >= 1, got {depth}.")
        super().__init__(world, num_envs, seed=seed, reward_scale=reward_scale, num_threads=num_threads, group=group)
        self._rule = rule
        self._rollouts = Rollouts(world, rule, num_envs, 2, depth, num_threads)
        self.savings = np.zeros(num_envs)

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Keep the actions for `step_wait`, and try them against the rule's."""
        super().step_async(actions)
        n = self.rows.simulator.num_nodes
        by_rule, _ = self._rule.predict(self.rows.observe())
        pairs = np.stack([np.asarray(pair)[:, 0] * n + np.asarray(pair)[:, 1] for pair in (actions, by_rule)], axis=1)
        cost = self._rollouts.try_candidates(self.rows.simulator, pairs.astype(np.int64))
        self.savings = cost[:, 1] - cost[:, 0]

    def step_wait(self) -> VecEnvStepReturn:
        """As in `NumaVecEnv`, with the savings as rewards."""
        observation, _, dones, infos = super().step_wait()
        return observation, (self.savings * self.reward_scale).astype(np.float32), dones, infos

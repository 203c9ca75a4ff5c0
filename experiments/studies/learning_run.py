"""One run of the study of learning: PPO from a given start, and what its policy costs then.

Dimension key: R rows of the validation episodes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from agents.evaluation import evaluate
from agents.ppo.buffers import EpisodeBaselineBuffer
from agents.ppo.config import PolicyConfig, TeacherConfig
from agents.ppo.critic import Critic, Future
from agents.ppo.memory import keep_freed_memory
from agents.ppo.policy import PlacementPolicy
from agents.ppo.storage import LearnedScheduler, load_policy, save_policy
from agents.ppo.teacher import RolloutTeacher
from agents.ppo.what_if import WhatIfVecEnv
from agents.rules.greedy import PricedGreedy
from agents.vec_env import NumaVecEnv
from envs.world import World
from experiments.studies.learning_noise import noise_scale
from experiments.studies.learning_variants import Variant


@dataclass(frozen=True, eq=False)
class Course:
    """What is learned and judged by.

    Attributes:
        train: episodes to learn from.
        validation: episodes to judge by, which nothing is learned from or chosen by.
        rule: the tuned rule that is the policy's prior.
        rule_cost: its mean cost on the validation episodes.
    """

    train: World
    validation: World
    rule: PricedGreedy
    rule_cost: float

    def policy_config(self) -> PolicyConfig:
        """The shipped network with the rule as its prior."""
        return PolicyConfig(
            congestion_price=float(self.rule.congestion_price),
            crowding_price=float(self.rule.crowding_price),
            migration_share=float(self.rule.migration_share),
            alpha=float(self.rule.alpha),
        )

    def cost(self, policy: PlacementPolicy) -> float:
        """Mean cost of a decision by the policy's best."""
        return float(evaluate(LearnedScheduler(policy.scorer), self.validation).cost.mean())


def learn(
    course: Course, variant: Variant, seed: int, start: Path | None = None, rollouts: int = 8
) -> dict[str, float]:
    """Run PPO once; returns costs, seconds, how well the critic explains the returns, and the gradient's noise.

    Args:
        course: what is learned.
        variant: how.
        seed: of episodes, network and decisions.
        start: file of the policy to start from; the prior without.
        rollouts: by which the noise of the gradient is measured, before anything is learned.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    noise = noise_scale(_model(course, variant, seed, start), rollouts)
    model = _model(course, variant, seed, start)
    policy = model.policy
    assert isinstance(policy, PlacementPolicy)
    before = course.cost(policy)
    began = time.perf_counter()
    model.learn(variant.ppo.num_updates * variant.ppo.rollout, callback=_Falling(variant.entropy))
    seconds = time.perf_counter() - began
    explained = float(model.logger.name_to_value["train/explained_variance"])
    return {
        "start_cost": before,
        "cost": course.cost(policy),
        "seconds": seconds,
        "decisions": model.num_timesteps,
        "explained_variance": explained,
        "noise_decisions": noise,
    }


def _env(course: Course, variant: Variant, seed: int) -> NumaVecEnv:
    ppo, common = variant.ppo, {"seed": seed, "group": variant.group}
    scale = (1.0 - ppo.gamma) / max(course.rule_cost, 1e-9)
    if variant.what_if_depth:
        depth = variant.what_if_depth
        return WhatIfVecEnv(course.train, ppo.num_envs, course.rule, depth=depth, reward_scale=scale, **common)
    return NumaVecEnv(course.train, ppo.num_envs, reward_scale=scale, **common)


def _model(course: Course, variant: Variant, seed: int, start: Path | None) -> PPO:
    """Stable-Baselines3's PPO with the variant's changes, before its first decision."""
    set_random_seed(seed)
    ppo, env = variant.ppo, _env(course, variant, seed)
    buffer: dict[str, Any] = {"env": env}
    if variant.critic != "shared":
        future = Future(course.train.workload) if variant.critic == "future" else None
        buffer["critic"] = Critic(env.rows.observer.layout, future)
    faced: VecEnv = env
    if variant.normalise_returns:
        faced = VecNormalize(env, norm_obs=False, gamma=ppo.gamma)
    model = PPO(
        PlacementPolicy,
        faced,
        n_steps=ppo.n_steps,
        batch_size=ppo.batch_size,
        n_epochs=ppo.n_epochs,
        learning_rate=ppo.falling_rate if variant.rate_falls else ppo.learning_rate,
        gamma=ppo.gamma,
        gae_lambda=ppo.gae_lambda,
        clip_range=ppo.clip_range,
        ent_coef=variant.entropy,
        target_kl=ppo.target_kl,
        rollout_buffer_class=EpisodeBaselineBuffer,
        rollout_buffer_kwargs=buffer,
        seed=seed,
        device="cpu",
        policy_kwargs={"config": course.policy_config()},
    )
    model.set_logger(Logger(folder=None, output_formats=[]))
    if start is not None:
        assert isinstance(model.policy, PlacementPolicy)
        model.policy.scorer.load_state_dict(load_policy(start)[0].scorer.state_dict())
    return model


class _Falling(BaseCallback):
    """Lets the weight of the entropy fall linearly, by the same step each time."""

    def __init__(self, entropy: float) -> None:
        super().__init__()
        self.entropy = entropy

    def _on_rollout_start(self) -> None:
        self.model.ent_coef = self.entropy * self.model._current_progress_remaining  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        return True


def teach(course: Course, config: TeacherConfig, seed: int, path: Path, about: Mapping[str, Any]) -> None:
    """Have the rollout teacher teach the prior, and write the policy."""
    torch.set_num_threads(1)
    set_random_seed(seed)
    env = NumaVecEnv(course.train, 1)
    policy = PlacementPolicy(env.observation_space, env.action_space, lambda _: 0.0, config=course.policy_config())
    teacher = RolloutTeacher(course.train, course.rule, policy, config)
    teacher.rows.generators = [np.random.default_rng([seed, row]) for row in range(config.num_rows)]
    teacher.start()
    rng, updates = np.random.default_rng([seed, 0, 1]), -(-config.labels // config.labels_per_update)
    for update in range(updates):
        teacher.update(update / updates, rng)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_policy(path, policy.scorer, about)

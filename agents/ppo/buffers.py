"""A rollout buffer whose advantages carry less of what no placement changes: which tasks arrived.

Both means are baselines: they depend on the arrivals, which are known once the episode is over, but not on the
decision that they are subtracted from, so the gradient's expectation stays what it was [1].

Dimension key: T steps, B environments, G rows of a group.

References:
    [1] H. Mao, S. B. Venkatakrishnan, M. Schwarzkopf, M. Alizadeh, "Variance reduction for reinforcement learning in
        input-driven environments", ICLR 2019.
    [2] J. Schulman et al., "High-dimensional continuous control using generalized advantage estimation", ICLR 2016.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from agents.ppo.critic import Critic
from agents.vec_env import NumaVecEnv

I64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


class EpisodeBaselineBuffer(RolloutBuffer):
    """Stable-Baselines3's buffer with two more baselines on top of the generalised advantage estimate [2].

    Give it to PPO as `rollout_buffer_class`, and what it needs as `rollout_buffer_kwargs`.

    Args:
        buffer_size: T.
        observation_space: of the environment.
        action_space: likewise.
        device: where batches go.
        gae_lambda: see [2].
        gamma: discount.
        n_envs: B.
        env: whose rows are recorded; rows of its groups play the same episodes.
        critic: values states in place of the policy's value head; it learns from every rollout after it was used.

    Raises:
        ValueError: a buffer for other rows than the environment's.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        gae_lambda: float = 1.0,
        gamma: float = 0.99,
        n_envs: int = 1,
        *,
        env: NumaVecEnv,
        critic: Critic | None = None,
    ) -> None:
        """Allocate."""
        if n_envs != env.num_envs:
            raise ValueError(f"n_envs must be the environment's {env.num_envs}, got {n_envs}.")
        self.env = env
        self.critic = critic
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    def reset(self) -> None:
        """Forget the rollout."""
        self.episode = np.zeros((self.buffer_size, self.n_envs), np.int64)
        self.task = np.zeros((self.buffer_size, self.n_envs), np.int64)
        super().reset()

    def add(self, *args: Any, **kwargs: Any) -> None:
        """As in the base class, and note which task of which episode was decided."""
        self.episode[self.pos], self.task[self.pos] = self.env.decided
        super().add(*args, **kwargs)

    def compute_returns_and_advantage(self, last_values: Tensor, dones: npt.NDArray[np.bool_]) -> None:
        """Advantages by the critic, less what the rest of the group met with at the same step."""
        if self.critic is None:
            super().compute_returns_and_advantage(last_values, dones)
        else:
            inputs = self.critic.inputs(
                self.observations.reshape(-1, *self.obs_shape), self.episode.reshape(-1), self.task.reshape(-1)
            )
            self.values = self.critic.values(inputs).reshape(self.buffer_size, self.n_envs)
            now = self.critic.inputs(self.env.rows.observe(), *self.env.position)
            super().compute_returns_and_advantage(torch.from_numpy(self.critic.values(now)), dones)
            self.critic.fit(inputs, self.returns.reshape(-1))
        self.advantages = less_the_others(self.advantages, self.env.group)


def less_the_others(advantages: Float32, group: int) -> Float32:
    """Advantages (T, B) less the mean of those of the other rows of their group at the same step.

    Rows stand next to each other in groups of `group`; groups of one are left as they are.
    """
    if group == 1:
        return advantages
    grouped = advantages.reshape(len(advantages), -1, group)
    others = (grouped.sum(axis=2, keepdims=True) - grouped) / (group - 1)
    less: Float32 = (grouped - others).reshape(advantages.shape)
    return less

"""The pair scorer as a policy of Stable-Baselines3.

Dimension key: B rows, N nodes.

References:
    [1] A. Raffin et al., "Stable-Baselines3: reliable reinforcement learning implementations", JMLR 22(268), 2021.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor

from agents.ppo.config import NetworkConfig, PolicyConfig
from agents.ppo.scorer import best_pair
from agents.ppo.scorers import make_scorer
from agents.rules.greedy import PricedGreedy
from envs.observation import ObservationKind, ObservationLayout


def prior_config(network: NetworkConfig, rule: PricedGreedy) -> PolicyConfig:
    """A policy's configuration with this rule, whose parameters are numbers, as its prior."""
    return PolicyConfig(
        **{item.name: getattr(network, item.name) for item in fields(NetworkConfig)},
        congestion_price=float(rule.congestion_price),
        crowding_price=float(rule.crowding_price),
        migration_share=float(rule.migration_share),
        alpha=float(rule.alpha),
    )


def _no_schedule(_: float) -> float:
    """For a policy that is loaded to decide, not to learn; a lambda could not be saved."""
    return 0.0


class PlacementPolicy(ActorCriticPolicy):
    """The pair scorer as a Stable-Baselines3 policy: one categorical over all N^2 pairs.

    Two independent choices could not say "both on the same node".

    Args:
        observation_space: of the environment.
        action_space: MultiDiscrete([N, N]).
        lr_schedule: learning rate by remaining progress.
        config: `PolicyConfig` or its fields.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        config: PolicyConfig | Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Check the spaces and make the network."""
        nodes = action_space.nvec if isinstance(action_space, spaces.MultiDiscrete) else np.zeros(0)
        if nodes.shape != (2,) or nodes[0] != nodes[1]:
            raise ValueError(f"the placement policy chooses (task node, data node), got action space {action_space}.")
        shape = observation_space.shape or ()
        self.layout = ObservationLayout(int(nodes[0]), ObservationKind.FULL)
        if shape != (self.layout.size,):
            raise ValueError(
                f"the placement policy reads the full observation of {self.layout.num_nodes} nodes, shape "
                f"({self.layout.size},), got shape {shape}."
            )
        self.config = config if isinstance(config, PolicyConfig) else PolicyConfig(**(config or {}))
        super().__init__(observation_space, action_space, lr_schedule)

    def _build(self, lr_schedule: Schedule) -> None:
        """Make the network and its optimiser, in place of the base class's multilayer perceptrons."""
        self.scorer = make_scorer(self.config)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr_schedule(1), eps=1e-5)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": _no_schedule,
            "config": asdict(self.config),
        }

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions (B, 2), values (B, 1) and log-probabilities (B,)."""
        logits, values = self.scorer(obs)
        log_probability = logits.log_softmax(1)
        chosen = self._choose(log_probability, deterministic)
        return self._split(chosen), values.unsqueeze(1), log_probability.gather(1, chosen.unsqueeze(1)).squeeze(1)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values (B, 1), log-probabilities (B,) and entropies (B,) of given actions (B, 2)."""
        logits, values = self.scorer(obs)
        log_probability = logits.log_softmax(1)
        pair = (actions[:, 0] * self.layout.num_nodes + actions[:, 1]).long()
        entropy = -(log_probability.exp() * log_probability).sum(1)
        return values.unsqueeze(1), log_probability.gather(1, pair.unsqueeze(1)).squeeze(1), entropy

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Values, shape (B, 1)."""
        values: Tensor = self.scorer(obs)[1]
        return values.unsqueeze(1)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Actions, shape (B, 2)."""
        logits, _ = self.scorer(observation)
        return self._split(self._choose(logits.log_softmax(1), deterministic))

    def _choose(self, log_probability: Tensor, deterministic: bool) -> Tensor:
        """Pairs by number: the likeliest, or drawn (by the Gumbel-max trick, which needs no normalising)."""
        if deterministic:
            return best_pair(log_probability)
        noise = -torch.empty_like(log_probability).exponential_().log()
        return (log_probability + noise).argmax(1)

    def _split(self, pair: Tensor) -> Tensor:
        n = self.layout.num_nodes
        return torch.stack([pair.div(n, rounding_mode="floor"), pair % n], 1)

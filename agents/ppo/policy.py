"""The placement policy: scores every (task node, data node) pair, for a machine of any size and node order.

The logit of a pair is -scale x log(priced cost of the pair / the lowest) + a learned residual. The first part is the
priced greedy rule (`agents.rules.greedy.priced_cost`) with learnable prices; the residual starts at zero. So an
untrained policy decides exactly as the rule does, and training can only add what the rule cannot know.

The residual looks at each node (its memory, queue, traffic, ...), at the machine as a whole (mean and maximum over
nodes), and at the pair. The same weights serve all nodes, so relabelling nodes relabels the decision.

Dimension key: B rows, N nodes, H hidden width; n = task node, d = data node.

References:
    [1] M. Zaheer et al., "Deep sets", NeurIPS 2017: functions of sets by pooling.
    [2] J. Schulman et al., "Proximal policy optimization algorithms", 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from agents.ppo.config import PolicyConfig
from agents.rules.greedy import priced_cost
from envs.observation import ObservationKind, ObservationLayout
from envs.observation_kernel import TaskFeature

CLOSED = -1e9  # logit of a pair that is not open
SMALLEST_COST = 1e-4  # keeps the logarithm of a cost finite, in reference times

NODE_GROUPS = ("memory", "queue", "data", "inputs", "access", "migration", "task_mask", "data_mask")
NUM_NODE_FEATURES = len(NODE_GROUPS) + 5
NUM_PAIR_FEATURES = 7


class PairScorer(nn.Module):
    """Logits of all pairs and the value of the state, from observation rows."""

    def __init__(self, layout: ObservationLayout, config: PolicyConfig) -> None:
        """Make the layers; the residual's last one and the value's start at zero."""
        super().__init__()
        self.layout = layout
        self.config = config
        width, pair_width = config.node_width, config.pair_width
        self.encode = nn.Linear(NUM_NODE_FEATURES + TaskFeature.COUNT, width)
        self.pool = nn.Linear(2 * width, width)
        self.mix = nn.Linear(width, width)
        self.as_task_node = nn.Linear(width, pair_width)
        self.as_data_node = nn.Linear(width, pair_width, bias=False)
        self.pair = nn.Linear(NUM_PAIR_FEATURES, pair_width, bias=False)
        self.score = nn.Linear(pair_width, 1, bias=False)
        self.value_hidden = nn.Linear(2 * width, width)
        self.value = nn.Linear(width, 1)
        for layer in (self.score, self.value):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.value.bias)
        # Factors on the tuned prices, learned as logarithms so that they stay positive.
        self.log_price = nn.Parameter(torch.zeros(3))
        self.log_scale = nn.Parameter(torch.tensor(float(np.log(config.prior_scale))))

    def on(self, layout: ObservationLayout) -> PairScorer:
        """The same network for a machine of another size; returns itself."""
        self.layout = layout
        return self

    def groups(self, observation: Tensor) -> Mapping[str, Tensor]:
        """The groups of the rows as views."""
        parts: Mapping[str, Tensor] = self.layout.split(observation)
        return parts

    def prior_cost(self, groups: Mapping[str, Tensor]) -> Tensor:
        """The priced cost of every pair, shape (B, N, N)."""
        factor = self.log_price.exp()
        config = self.config
        cost: Tensor = priced_cost(
            groups,
            config.congestion_price * factor[0],
            config.crowding_price * factor[1],
            (config.migration_share * factor[2]).clamp(max=1.0),
            config.alpha,
        )
        return cost.clamp(min=SMALLEST_COST)

    def unit_cost(self, observation: Tensor) -> Tensor:
        """The lowest priced cost of each row, shape (B,): a logit is -scale x a cost difference over it."""
        groups = self.groups(observation)
        is_open = groups["task_mask"].unsqueeze(2) * groups["data_mask"].unsqueeze(1) > 0
        return self.prior_cost(groups).masked_fill(~is_open, np.inf).flatten(1).amin(1).detach()

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of all pairs, shape (B, N * N), closed ones at `CLOSED`; and values, shape (B,)."""
        groups = self.groups(observation)
        is_open = groups["task_mask"].unsqueeze(2) * groups["data_mask"].unsqueeze(1) > 0
        cost = self.prior_cost(groups)
        log_cost = cost.log()
        open_cost = log_cost.masked_fill(~is_open, np.inf)
        lowest = open_cost.flatten(1).amin(1)
        ratio = torch.where(is_open, log_cost - lowest[:, None, None], 0.0)

        nodes = self._encode_nodes(groups, open_cost - lowest[:, None, None])
        hidden = self.as_task_node(nodes).unsqueeze(2) + self.as_data_node(nodes).unsqueeze(1)
        hidden = torch.relu(hidden + self.pair(self._pair_features(groups, ratio)))
        residual = self.score(hidden).squeeze(-1)
        logits = (residual - self.log_scale.exp() * ratio).masked_fill(~is_open, CLOSED)
        return logits.flatten(1), self._value(nodes, groups)

    def _encode_nodes(self, groups: Mapping[str, Tensor], open_ratio: Tensor) -> Tensor:
        """What each node is, knowing the task and all nodes, shape (B, N, H); `open_ratio` is infinite where closed."""
        communication = groups["communication"]
        features = [groups[name] for name in NODE_GROUPS]
        # The best that a node offers among open pairs; 0 where it has none, as its mask says.
        best = [open_ratio.amin(axis) for axis in (2, 1)]
        features += [communication.sum(1), communication.sum(2)]
        features += [*(ratio.masked_fill(ratio.isinf(), 0.0) for ratio in best), groups["nodes"]]
        stacked = torch.log1p(torch.stack(features, -1))
        task = torch.log1p(groups["task"]).unsqueeze(1).expand(-1, stacked.shape[1], -1)
        encoded = torch.relu(self.encode(torch.cat([stacked, task], -1))) * groups["nodes"].unsqueeze(-1)
        return torch.relu(self.mix(encoded) + self.pool(_pooled(encoded, groups)).unsqueeze(1))

    def _pair_features(self, groups: Mapping[str, Tensor], ratio: Tensor) -> Tensor:
        """What each pair is, shape (B, N, N, 7)."""
        communication = groups["communication"]
        same = torch.eye(ratio.shape[-1], dtype=ratio.dtype, device=ratio.device).expand_as(ratio)
        features = [
            groups["estimate"],
            groups["congestion"],
            communication,
            communication.transpose(1, 2),
            groups["latency"],
        ]
        logs = torch.log1p(torch.stack(features, -1))
        return torch.cat([logs, ratio.unsqueeze(-1), same.unsqueeze(-1)], -1)

    def _value(self, nodes: Tensor, groups: Mapping[str, Tensor]) -> Tensor:
        """The value of each row, shape (B,)."""
        value: Tensor = self.value(torch.relu(self.value_hidden(_pooled(nodes, groups)))).squeeze(-1)
        return value


def _pooled(nodes: Tensor, groups: Mapping[str, Tensor]) -> Tensor:
    """Mean and maximum over the nodes that exist, shape (B, 2 H) [1]; `nodes` (B, N, H) is 0 or more."""
    exists = groups["nodes"].unsqueeze(-1)
    present = nodes * exists
    return torch.cat([present.sum(1) / exists.sum(1), present.amax(1)], -1)


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
        self.scorer = PairScorer(self.layout, self.config)
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
            return log_probability.argmax(1)
        noise = -torch.empty_like(log_probability).exponential_().log()
        return (log_probability + noise).argmax(1)

    def _split(self, pair: Tensor) -> Tensor:
        n = self.layout.num_nodes
        return torch.stack([pair.div(n, rounding_mode="floor"), pair % n], 1)

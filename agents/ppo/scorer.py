"""The placement policy: scores every (task node, data node) pair, for a machine of any size and node order.

The logit of a pair is -scale x log(priced cost of the pair / the lowest) + a learned residual. The first part is the
priced greedy rule (`agents.rules.greedy.priced_cost`); how dear a price is, the network says for each state anew. At
first its factors are 1 and the residual is 0. So an untrained policy decides exactly as the rule does, and training
can only add what the rule cannot know: one setting of prices must serve all situations there.

Prices and residual look at each node (its memory, queue, traffic, ...), at the machine as a whole (mean and maximum
over nodes), and at the pair. The same weights serve all nodes, so relabelling nodes relabels the decision.

Dimension key: B rows, N nodes, H hidden width, P hidden width of pairs; n = task node, d = data node.

References:
    [1] M. Zaheer et al., "Deep sets", NeurIPS 2017: functions of sets by pooling.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from agents.ppo.config import PolicyConfig
from agents.ppo.scoring_kernel import TIE
from agents.rules.greedy import priced_cost
from envs.observation import ObservationLayout
from envs.observation_kernel import Float32, TaskFeature

CLOSED = -1e9  # logit of a pair that is not open
SMALLEST_COST = 1e-4  # keeps the logarithm of a cost finite, in reference times
MOST_PRICE = 3.0  # of the logarithm of a state's own factor on a price

NODE_GROUPS = (
    "memory",
    "queue",
    "data",
    "inputs",
    "access",
    "last",
    "migration",
    "task_mask",
    "data_mask",
    "nodes",
)
NUM_NODE_FEATURES = len(NODE_GROUPS) + 8
NUM_STATE_FEATURES = TaskFeature.COUNT + 1
NUM_PAIR_FEATURES = 9
NUM_PRICES = 3


class PairScorer(nn.Module):
    """Logits of all pairs and the value of the state, from observation rows."""

    def __init__(self, config: PolicyConfig) -> None:
        """Make the layers; the last ones of prices, residual and value start at zero."""
        super().__init__()
        self.config = config
        width, pair_width = config.node_width, config.pair_width
        self.encode = nn.Linear(NUM_NODE_FEATURES, width)
        self.encode_state = nn.Linear(NUM_STATE_FEATURES, width, bias=False)
        self.pool = nn.Linear(2 * width, width)
        self.mix = nn.Linear(width, width)
        self.as_task_node = nn.Linear(width, pair_width)
        self.as_data_node = nn.Linear(width, pair_width, bias=False)
        self.pair = nn.Linear(NUM_PAIR_FEATURES, pair_width, bias=False)
        self.score = nn.Linear(pair_width, 1, bias=False)
        self.price = nn.Linear(2 * width, NUM_PRICES)
        self.value_hidden = nn.Linear(2 * width, width)
        self.value = nn.Linear(width, 1)
        for layer in (self.score, self.price, self.value):
            nn.init.zeros_(layer.weight)
        for layer in (self.price, self.value):
            nn.init.zeros_(layer.bias)
        # Factors on the tuned prices, learned as logarithms so that they stay positive.
        self.log_price = nn.Parameter(torch.zeros(NUM_PRICES))
        self.log_scale = nn.Parameter(torch.tensor(float(np.log(config.prior_scale))))

    def groups(self, observation: Tensor) -> dict[str, Tensor]:
        """The groups of the rows as views; zeros in place of those that the policy is blind to."""
        parts: dict[str, Tensor] = _split(observation)
        return parts | {name: torch.zeros_like(parts[name]) for name in self.config.blind_to}

    def log_cost(self, groups: Mapping[str, Tensor], factor: Tensor) -> Tensor:
        """The logarithm of every pair's priced cost, shape (B, N, N), with factors (B, 3) or (3,) on the prices."""
        config, factor = self.config, factor.reshape(-1, NUM_PRICES)
        cost: Tensor = priced_cost(
            groups,
            config.congestion_price * factor[:, 0, None, None],
            config.crowding_price * factor[:, 1, None],
            (config.migration_share * factor[:, 2, None]).clamp(max=1.0),
            config.alpha,
        )
        return cost.clamp(min=SMALLEST_COST).log()

    def unit_cost(self, observation: Tensor) -> Tensor:
        """The lowest priced cost of each row, shape (B,): a logit is -scale x a cost difference over it."""
        groups = _split(observation)
        _, lowest = _over_lowest(self.log_cost(groups, self.log_price.exp()), _open_pairs(groups))
        return lowest.exp().detach()

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of all pairs, shape (B, N * N), closed ones at `CLOSED`; and values, shape (B,)."""
        groups = self.groups(observation)
        is_open = _open_pairs(groups)
        ratio, lowest = _over_lowest(self.log_cost(groups, self.log_price.exp()), is_open)
        nodes = self._encode_nodes(groups, ratio, lowest, is_open)
        pooled = _pooled(nodes, groups)
        logits = self._residual(groups, nodes, self._pair_features(groups, ratio, lowest))
        if self.config.prior:
            price = self._log_price(groups, pooled).clamp(-MOST_PRICE, MOST_PRICE)
            adapted, _ = _over_lowest(self.log_cost(groups, (self.log_price + price).exp()), is_open)
            logits = logits - self.log_scale.exp() * self._as_heads(adapted, is_open)
        value = self.value(torch.relu(self.value_hidden(pooled))).squeeze(-1)
        return logits.masked_fill(~is_open, CLOSED).flatten(1), value

    def learned(self) -> list[Tensor]:
        """What is 0 in an untrained network: scaled down together, they lead from the policy back to its prior."""
        return [self.score.weight, self.price.weight, self.price.bias, self.log_price]

    def logits(self, rows: Float32) -> Float32:
        """The logits of numpy rows, without learning from them, shape (B, N * N)."""
        with torch.no_grad():
            logits: Float32 = self(torch.from_numpy(rows).to(self.log_scale.device))[0].cpu().numpy()
        return logits

    def _encode_nodes(self, groups: Mapping[str, Tensor], ratio: Tensor, lowest: Tensor, is_open: Tensor) -> Tensor:
        """What each node is, knowing the task and all nodes, shape (B, N, H)."""
        communication, exists = groups["communication"], groups["nodes"]
        features = [groups[name] for name in NODE_GROUPS]
        features += [communication.sum(1), communication.sum(2)]
        features += [groups[name].diagonal(dim1=1, dim2=2) for name in ("communication", "latency", "bandwidth")]
        features.append((groups["latency"] * exists.unsqueeze(1)).sum(2) / exists.sum(1, keepdim=True))
        # The best that a node offers among open pairs; 0 where it has none, as its mask says.
        best = [ratio.masked_fill(~is_open, np.inf).amin(axis) for axis in (2, 1)]
        features += [of_node.masked_fill(of_node.isinf(), 0.0) for of_node in best]
        state = torch.cat([groups["task"], lowest.exp().unsqueeze(1)], 1)
        encoded = self.encode(torch.log1p(torch.stack(features, -1)))
        encoded = encoded + self.encode_state(torch.log1p(state)).unsqueeze(1)
        encoded = torch.relu(encoded) * exists.unsqueeze(-1)
        mixed = torch.relu(self.mix(encoded) + self.pool(_pooled(encoded, groups)).unsqueeze(1))
        return mixed * exists.unsqueeze(-1)

    def _pair_features(self, groups: Mapping[str, Tensor], ratio: Tensor, lowest: Tensor) -> Tensor:
        """What each pair is, shape (B, N, N, 9)."""
        communication = groups["communication"]
        same = torch.eye(ratio.shape[-1], dtype=ratio.dtype, device=ratio.device).expand_as(ratio)
        features = [
            groups["estimate"],
            groups["congestion"],
            communication,
            communication.transpose(1, 2),
            groups["latency"],
            groups["bandwidth"],
            groups["estimate"] * (-lowest).exp()[:, None, None],
        ]
        logs = torch.log1p(torch.stack(features, -1))
        return torch.cat([logs, ratio.unsqueeze(-1), same.unsqueeze(-1)], -1)

    def _residual(self, groups: Mapping[str, Tensor], nodes: Tensor, pairs: Tensor) -> Tensor:
        """What the rule does not know of each pair, shape (B, N, N)."""
        hidden = self.as_task_node(nodes).unsqueeze(2) + self.as_data_node(nodes).unsqueeze(1)
        residual: Tensor = self.score(torch.relu(hidden + self.pair(pairs))).squeeze(-1)
        return residual

    def _log_price(self, groups: Mapping[str, Tensor], pooled: Tensor) -> Tensor:
        """The logarithm of the state's own factors on the prices, shape (B, 3)."""
        price: Tensor = self.price(pooled)
        return price

    def _as_heads(self, ratio: Tensor, is_open: Tensor) -> Tensor:
        """The prior as the heads can say it, shape (B, N, N)."""
        return ratio


def _split(observation: Tensor) -> dict[str, Tensor]:
    """The groups of rows, whatever the machine's size, which is told by theirs."""
    return ObservationLayout.of_size(int(observation.shape[-1])).split(observation)


def _open_pairs(groups: Mapping[str, Tensor]) -> Tensor:
    """Which pairs may be chosen, shape (B, N, N)."""
    return groups["task_mask"].unsqueeze(2) * groups["data_mask"].unsqueeze(1) > 0


def _over_lowest(log_cost: Tensor, is_open: Tensor) -> tuple[Tensor, Tensor]:
    """Log-ratios to the row's lowest open cost, 0 for closed pairs, shape (B, N, N); and its logarithm, shape (B,)."""
    lowest = log_cost.masked_fill(~is_open, np.inf).flatten(1).amin(1)
    return torch.where(is_open, log_cost - lowest[:, None, None], 0.0), lowest


def best_pair(logits: Tensor) -> Tensor:
    """The best pair of each row (B, N * N), the first of those within `TIE` of it, shape (B,).

    So that what decides equals, as nodes alike on an idle machine, is not the last bit of a sum.
    """
    return (logits >= logits.amax(1, keepdim=True) - float(TIE)).to(torch.uint8).argmax(1)


def _pooled(nodes: Tensor, groups: Mapping[str, Tensor]) -> Tensor:
    """Mean and maximum over the nodes that exist, shape (B, 2 H) [1]; `nodes` (B, N, H) is 0 or more."""
    exists = groups["nodes"].unsqueeze(-1)
    present = nodes * exists
    return torch.cat([present.sum(1) / exists.sum(1), present.amax(1)], -1)

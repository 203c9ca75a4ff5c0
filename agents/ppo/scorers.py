"""The scorer that a configuration asks for: the placement network, or it with a piece replaced.

The replacements are what others use: a multilayer perceptron over all numbers in their order, which must learn every
node anew and knows machines up to `MOST_NODES`; and two heads that choose task node and data node apart.

Dimension key: B rows, N nodes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from agents.ppo.config import PolicyConfig
from agents.ppo.scorer import NUM_PRICES, PairScorer
from envs.observation_kernel import TaskFeature

MOST_NODES = 16  # of the flat network
FLAT_WIDTH = 128  # of each of its two hidden layers
NODE_GROUPS = ("memory", "queue", "data", "inputs", "access", "last", "migration", "task_mask", "data_mask", "nodes")
PAIR_GROUPS = ("communication", "estimate", "congestion", "latency", "bandwidth")


class IndependentHeads(PairScorer):
    """Task node and data node scored apart: the logit of a pair is a sum, so no pair can be preferred as such."""

    def __init__(self, config: PolicyConfig) -> None:
        """Make the layers; both heads start at zero."""
        super().__init__(config)
        self.heads = nn.Linear(config.node_width, 2, bias=False)
        nn.init.zeros_(self.heads.weight)

    def learned(self) -> list[Tensor]:
        """See `PairScorer.learned`."""
        return [*super().learned(), self.heads.weight]

    def _residual(self, groups: Mapping[str, Tensor], nodes: Tensor, pairs: Tensor) -> Tensor:
        """See `PairScorer._residual`: nothing of pairs is looked at."""
        task, data = self.heads(nodes).unbind(-1)
        return torch.as_tensor(task.unsqueeze(2) + data.unsqueeze(1))

    def _as_heads(self, ratio: Tensor, is_open: Tensor) -> Tensor:
        """Each node by the best pair that it is in."""
        closed = ratio.masked_fill(~is_open, np.inf)
        task, data = (best.masked_fill(best.isinf(), 0.0) for best in (closed.amin(2), closed.amin(1)))
        return torch.as_tensor(task.unsqueeze(2) + data.unsqueeze(1))


class FlatScorer(PairScorer):
    """One multilayer perceptron from all numbers of the observation, padded to `MOST_NODES`, to all pairs."""

    def __init__(self, config: PolicyConfig) -> None:
        """Make the layers; the last one starts at zero."""
        super().__init__(config)
        size = MOST_NODES * len(NODE_GROUPS) + MOST_NODES**2 * len(PAIR_GROUPS) + TaskFeature.COUNT
        self.hidden = nn.Sequential(
            *(nn.Linear(size, FLAT_WIDTH), nn.ReLU(), nn.Linear(FLAT_WIDTH, FLAT_WIDTH), nn.ReLU())
        )
        self.scores = nn.Linear(FLAT_WIDTH, MOST_NODES**2)
        self.price = nn.Linear(FLAT_WIDTH, NUM_PRICES)
        for layer in (self.scores, self.price):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def learned(self) -> list[Tensor]:
        """See `PairScorer.learned`."""
        return [*super().learned(), self.scores.weight, self.scores.bias]

    def _residual(self, groups: Mapping[str, Tensor], nodes: Tensor, pairs: Tensor) -> Tensor:
        """See `PairScorer._residual`: neither nodes nor pairs are looked at one by one."""
        n = pairs.shape[1]
        scores = self.scores(self._hidden(groups)).reshape(-1, MOST_NODES, MOST_NODES)
        return torch.as_tensor(scores[:, :n, :n])

    def _log_price(self, groups: Mapping[str, Tensor], pooled: Tensor) -> Tensor:
        """See `PairScorer._log_price`."""
        price: Tensor = self.price(self._hidden(groups))
        return price

    def _hidden(self, groups: Mapping[str, Tensor]) -> Tensor:
        """What the perceptron makes of all numbers, shape (B, `FLAT_WIDTH`).

        Raises:
            ValueError: more than `MOST_NODES` nodes.
        """
        n = groups["queue"].shape[-1]
        if n > MOST_NODES:
            raise ValueError(f"a flat network knows machines of up to {MOST_NODES} nodes, got {n}.")
        parts = [nn.functional.pad(groups[name], (0, MOST_NODES - n)) for name in NODE_GROUPS]
        parts += [nn.functional.pad(groups[name], (0, MOST_NODES - n) * 2).flatten(1) for name in PAIR_GROUPS]
        hidden: Tensor = self.hidden(torch.log1p(torch.cat([*parts, groups["task"]], 1)))
        return hidden


def make_scorer(config: PolicyConfig) -> PairScorer:
    """The network of a configuration."""
    if config.encoder == "flat":
        return FlatScorer(config)
    return (IndependentHeads if config.heads == "independent" else PairScorer)(config)

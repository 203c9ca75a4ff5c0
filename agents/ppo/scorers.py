"""The scorer that a configuration asks for: the placement network, or it with a piece replaced or added.

Replacements are what others use: a multilayer perceptron over all numbers in their order, which must learn every node
anew and knows machines up to `MOST_NODES`; and two heads that choose task node and data node apart. Additions are a
layer of attention over nodes, with communication, latency and bandwidth as a bias on each edge [1], and a bilinear form
of task node and data node.

Dimension key: B rows, N nodes, H hidden width, A heads of attention, K width of a head.

References:
    [1] C. Ying et al., "Do transformers really perform badly for graph representation?", NeurIPS 2021: Graphormer's
        bias of edges.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from agents.ppo.config import PolicyConfig
from agents.ppo.scorer import CLOSED, NODE_GROUPS, NUM_PRICES, PairScorer
from envs.observation_kernel import TaskFeature

MOST_NODES = 16  # of the flat network
FLAT_WIDTH = 128  # of each of its two hidden layers
ATTENTION_HEADS, HEAD_WIDTH = 2, 8
EDGE_GROUPS = ("communication", "latency", "bandwidth")
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


class BilinearHeads(PairScorer):
    """A product of what task node and data node are, beside the perceptron for pairs."""

    def __init__(self, config: PolicyConfig) -> None:
        """Make the layers; the form starts at zero."""
        super().__init__(config)
        self.left = nn.Linear(config.node_width, config.pair_width, bias=False)
        self.right = nn.Linear(config.node_width, config.pair_width, bias=False)
        nn.init.zeros_(self.right.weight)

    def learned(self) -> list[Tensor]:
        """See `PairScorer.learned`."""
        return [*super().learned(), self.right.weight]

    def _residual(self, groups: Mapping[str, Tensor], nodes: Tensor, pairs: Tensor) -> Tensor:
        """See `PairScorer._residual`."""
        product = self.left(nodes) @ self.right(nodes).transpose(1, 2) / self.config.pair_width**0.5
        return super()._residual(groups, nodes, pairs) + torch.as_tensor(product)


class AttentionScorer(PairScorer):
    """A layer of attention over nodes after the node encoder, biased by what lies between two nodes."""

    def __init__(self, config: PolicyConfig) -> None:
        """Make the layers; what attention adds starts at zero."""
        super().__init__(config)
        self.query_key_value = nn.Linear(config.node_width, 3 * ATTENTION_HEADS * HEAD_WIDTH, bias=False)
        self.edge = nn.Linear(len(EDGE_GROUPS) + 1, ATTENTION_HEADS, bias=False)
        self.attended = nn.Linear(ATTENTION_HEADS * HEAD_WIDTH, config.node_width, bias=False)
        nn.init.zeros_(self.attended.weight)

    def _encode_nodes(self, groups: Mapping[str, Tensor], ratio: Tensor, lowest: Tensor, is_open: Tensor) -> Tensor:
        """See `PairScorer._encode_nodes`."""
        nodes = super()._encode_nodes(groups, ratio, lowest, is_open)
        exists = groups["nodes"]
        parts = self.query_key_value(nodes).unflatten(2, (3, ATTENTION_HEADS, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)  # each (B, A, N, K)
        edges = [groups[name] for name in EDGE_GROUPS] + [groups["communication"].transpose(1, 2)]
        bias = self.edge(torch.log1p(torch.stack(edges, -1))).permute(0, 3, 1, 2)  # (B, A, N, N)
        bias = bias.masked_fill(exists[:, None, None, :] == 0, CLOSED)
        seen = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        added = self.attended(seen.transpose(1, 2).flatten(2))
        return torch.as_tensor(torch.relu(nodes + added) * exists.unsqueeze(-1))


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
    kinds = {
        "attention": AttentionScorer,
        "flat": FlatScorer,
        "bilinear": BilinearHeads,
        "independent": IndependentHeads,
    }
    return kinds.get(config.encoder, kinds.get(config.heads, PairScorer))(config)

"""The shape of a transformer: how many parameters its layers have, and what arithmetic they take.

A layer is attention (W_Q, W_K, W_V, W_O) and a feed-forward part of two matrices (W_1, W_2). Biases and norms, which
are below 1% of the parameters, are left out.

References:
    [1] The chapter, section 16.3.
    [2] J. Kaplan et al., "Scaling laws for neural language models", 2020, section 2.1: 12 layers d^2 parameters, 2 flop
        per parameter and token forward, twice as many backward.
    [3] J. Ainslie et al., "GQA: training generalized multi-query transformer models from multi-head checkpoints", 2023:
        several heads share one head of keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numa_rl.transformer.divisors import divisors, nearest
from numa_rl.workloads.parameters import require

BACKWARD_OVER_FORWARD = 2  # gradients are taken with respect to the inputs and to the weights [2]
FFN_OVER_WIDTH = 4  # [2]
MOST_SEARCHED = 10**9  # width of which divisors are looked for
WIDTH_PER_LAYER = 128  # the shape of GPT-3 175B, 12288 wide and 96 layers deep


@dataclass(frozen=True)
class Transformer:
    """A decoder of equal layers.

    Attributes:
        layers: number of layers.
        width: of the model, d.
        heads: of queries, h.
        kv_heads: of keys and values; as many as heads when None [3].
        head_dim: size of a head's vectors, d_k; width / heads when None.
        ffn_width: inner width of the feed-forward part; 4 d when None.
        vocabulary: rows of the embedding, 0 to leave it out.

    Raises:
        ValueError: a parameter is out of range, or heads do not divide the width when they must.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    ffn_width: int | None = None
    vocabulary: int = 0

    def __post_init__(self) -> None:
        """Fill in what was left open, and check the ranges."""
        require(self, "layers width heads", "a whole number >= 1", lambda value: value >= 1 and value % 1 == 0)
        if self.head_dim is None and self.width % self.heads:
            would = f"; {nearest(divisors(self.width), self.heads)} would do" if self.width <= MOST_SEARCHED else ""
            raise ValueError(f"heads must divide width ({self.width}), got {self.heads}{would}.")
        defaults = {
            "kv_heads": self.heads,
            "head_dim": self.width // self.heads,
            "ffn_width": FFN_OVER_WIDTH * self.width,
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        inner = "kv_heads head_dim ffn_width"
        require(self, inner, "a whole number >= 1", lambda value: value >= 1 and value % 1 == 0)
        require(self, "vocabulary", "a whole number >= 0", lambda value: value >= 0 and value % 1 == 0)
        if self.heads % self.num_kv_heads:
            raise ValueError(f"kv_heads must divide heads ({self.heads}), got {self.kv_heads}.")

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def key_dim(self) -> int:
        """Size of a head's vectors, d_k."""
        return self.width // self.heads if self.head_dim is None else self.head_dim

    @property
    def inner_width(self) -> int:
        """Inner width of the feed-forward part."""
        return FFN_OVER_WIDTH * self.width if self.ffn_width is None else self.ffn_width

    @property
    def attention_parameters(self) -> int:
        """Of one layer: W_Q and W_O for every head, W_K and W_V for every head of keys and values."""
        return 2 * self.width * self.key_dim * (self.heads + self.num_kv_heads)

    @property
    def ffn_parameters(self) -> int:
        """Of one layer: W_1 and W_2."""
        return 2 * self.width * self.inner_width

    @property
    def layer_parameters(self) -> int:
        """Of one layer, 12 d^2 for the usual shape [2]."""
        return self.attention_parameters + self.ffn_parameters

    @property
    def parameters(self) -> int:
        """Of all layers and the embedding."""
        return self.layers * self.layer_parameters + self.vocabulary * self.width

    def layer_forward_flops(self, tokens: Any, attended_pairs: Any = 0.0) -> Any:
        """Arithmetic of one layer, forward [2].

        Args:
            tokens: how many go through.
            attended_pairs: pairs of a token and one it attends to, see `kv_cache.attended_pairs`.
        """
        return 2 * self.layer_parameters * tokens + 4 * self.heads * self.key_dim * attended_pairs


def transformer_of(parameters: float) -> Transformer:
    """A transformer of about that many parameters, in the proportions of GPT-3: 128 of width per layer, heads of 128.

    Layers are rounded, and then the width to a whole number of heads, so the count is met to about 1% where there are
    many layers.

    Raises:
        ValueError: fewer parameters than one layer of one head has.
    """
    head_dim, ffn = WIDTH_PER_LAYER, FFN_OVER_WIDTH
    per_square = 4 + 2 * ffn  # parameters of a layer over width^2
    least = per_square * head_dim**2
    if not least <= parameters < float("inf"):
        raise ValueError(f"parameters must be finite and >= {least}, those of one layer of one head, got {parameters}.")
    layers = max(round((parameters / (per_square * WIDTH_PER_LAYER**2)) ** (1 / 3)), 1)
    heads = max(round((parameters / (per_square * layers)) ** 0.5 / head_dim), 1)
    return Transformer(layers=layers, width=heads * head_dim, heads=heads)

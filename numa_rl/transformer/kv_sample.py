"""Random keys, values and queries to measure storage on, with the features that were found in those of models.

Dimension key: T tokens, H heads, G heads of keys and values, d size of a head's vectors, Q queries.

References:
    [1] Z. Liu et al., "KIVI: a tuning-free asymmetric 2bit quantization for KV cache", ICML 2024: some channels of keys
        are large in all tokens; values have no such channels.
    [2] Z. Zhang et al., "H2O: heavy-hitter oracle for efficient generative inference of large language models",
        NeurIPS 2023: few tokens take most of the attention, whatever the query.
    [3] G. Xiao et al., "Efficient streaming language models with attention sinks", ICLR 2024: the first four tokens
        take much attention, and recent ones more than others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from numa_rl.workloads.parameters import require

F32 = npt.NDArray[np.float32]

SINKS = 4  # [3]


@dataclass(frozen=True, eq=False)
class CacheSample:
    """Keys and values of one layer, queries that came before and queries to come.

    Attributes:
        keys: shape (T, G, d).
        values: shape (T, G, d).
        past_queries: shape (Q, H, d): what heavy hitters are known from.
        next_queries: shape (Q', H, d): what errors are measured with.
    """

    keys: F32
    values: F32
    past_queries: F32
    next_queries: F32


@dataclass(frozen=True)
class SampleShape:
    """Random keys, values and queries with the features that published measurements found in those of models.

    A score, q k / sqrt(d), is a sum of random parts: one of the token alone, the same for all queries, which makes
    heavy hitters [2]; one of the token and the query; and what sinks [3] and recent tokens get on top. Some channels
    of keys are large in all tokens [1]. These are samples of our own, not of a model: on a model, measure again.

    Attributes:
        tokens: T.
        heads: H.
        kv_heads: G.
        head_dim: d.
        num_past: queries before.
        num_next: queries to come.
        outlier_channels: large channels of each head's keys.
        outlier_size: their mean magnitude; others have deviation 1.
        token_sigma: deviation of a token's own part of scores.
        query_sigma: deviation of the part of token and query.
        sink_score: what the first four tokens get on top.
        recent_score: what the last token gets on top, falling by e every `recent_tokens` before it.
        recent_tokens: see there.

    Raises:
        ValueError: a parameter is out of range.
    """

    tokens: int = 2048
    heads: int = 8
    kv_heads: int = 8
    head_dim: int = 128
    num_past: int = 64
    num_next: int = 16
    outlier_channels: int = 4
    outlier_size: float = 10.0
    token_sigma: float = 2.0
    query_sigma: float = 1.5
    sink_score: float = 8.0
    recent_score: float = 3.0
    recent_tokens: float = 64.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        counts = "tokens heads kv_heads head_dim num_past num_next"
        require(self, counts, "a whole number >= 1", lambda value: value >= 1 and value % 1 == 0)
        require(self, "outlier_channels", "a whole number >= 0", lambda value: value >= 0 and value % 1 == 0)
        sizes = "outlier_size token_sigma query_sigma sink_score recent_score"
        require(self, sizes, "finite and >= 0", lambda value: value >= 0)
        require(self, "recent_tokens", "finite and > 0", lambda value: value > 0)
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads ({self.heads}), got {self.kv_heads}.")
        if self.outlier_channels >= self.head_dim:
            raise ValueError(
                f"outlier_channels must be less than head_dim ({self.head_dim}), got {self.outlier_channels}."
            )

    def draw(self, rng: np.random.Generator) -> CacheSample:
        """One sample.

        Keys hold a token's own part of scores along a direction of their small channels, and every query has sqrt(d)
        along it.
        """
        t, g, d, large = self.tokens, self.kv_heads, self.head_dim, self.outlier_channels
        keys, values = rng.standard_normal((2, t, g, d))
        keys[:, :, :large] += self.outlier_size * rng.choice([-1.0, 1.0], (g, large))
        direction = np.zeros((g, d))
        direction[:, large:] = rng.choice([-1.0, 1.0], (g, d - large)) / np.sqrt(d - large)
        own = self.token_sigma * rng.standard_normal((t, g))
        own[:SINKS] += self.sink_score
        own += (self.recent_score * np.exp(-(t - 1 - np.arange(t)) / self.recent_tokens))[:, None]
        keys += own[:, :, None] * direction
        queries = self.query_sigma * rng.standard_normal((self.num_past + self.num_next, self.heads, d))
        queries += np.sqrt(d) * np.repeat(direction, self.heads // g, axis=0)
        arrays = [np.asarray(array, np.float32) for array in (keys, values, queries)]
        return CacheSample(arrays[0], arrays[1], arrays[2][: self.num_past], arrays[2][self.num_past :])

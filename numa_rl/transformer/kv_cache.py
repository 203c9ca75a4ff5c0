"""What the KV cache of a transformer holds, and what attention over it takes.

References:
    [1] The chapter, section 16.3.3: size of the KV cache.
    [2] J. Kaplan et al., "Scaling laws for neural language models", 2020, section 2.1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from numa_rl.topology import FloatArray, IntArray


def kv_bytes_per_token(layers: int, kv_heads: int, head_dim: int, bytes_per_element: float) -> float:
    """Bytes of KV cache that one token adds: 2 x layers x heads x d_k x bytes per element [1]."""
    return 2 * layers * kv_heads * head_dim * bytes_per_element


def attention_flops_per_pair(layers: int, heads: int, head_dim: int) -> int:
    """Arithmetic for a pair of a token and one it attends to.

    A multiplication and an addition per element of the query, and as many to sum the values.
    """
    return 4 * layers * heads * head_dim


def attended_pairs(num_tokens: npt.ArrayLike, most: int) -> FloatArray:
    """Pairs of a token and one it attends to, among the first `num_tokens`: a causal triangle of limited width.

    Args:
        num_tokens: any shape; a token attends to itself too.
        most: tokens that one attends to at most.
    """
    tokens: IntArray = np.asarray(num_tokens)
    triangle = np.minimum(tokens, most)
    pairs: FloatArray = triangle * (triangle + 1) / 2 + (tokens - triangle) * most
    return pairs

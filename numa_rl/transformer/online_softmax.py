"""Softmax attention in numpy: with all scores at once, and with sums that take keys block by block.

Online softmax keeps three sums for each query, and rescales them to the largest score seen so far [1], so scores need
not be kept and keys may come in any order.

Dimension key: B sequences of L tokens, H heads, G heads of keys and values of size d_k; n queries.

References:
    [1] M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", 2018.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DTYPES = (np.dtype(np.float16), np.dtype(np.float32))


def plain_attention(q: Array, k: Array, v: Array, *, causal: bool) -> npt.NDArray[np.float64]:
    """softmax(Q K^T / sqrt(d_k)) V with all scores at once, in double precision, shape (B, H, L, d_k).

    Args:
        q: queries, shape (B, H, L, d_k).
        k: keys, shape (B, G, L, d_k); head i of the queries attends with head i G // H.
        v: values, likewise.
        causal: whether a token attends to itself and those before it only.

    Raises:
        ValueError: shapes that do not match, or elements that are not float16 or float32.
    """
    require_attention(q, k, v)
    sharing = q.shape[1] // k.shape[1]
    keys, values = (np.repeat(array.astype(np.float64), sharing, axis=1) for array in (k, v))
    scores = q.astype(np.float64) @ keys.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    if causal:
        scores[..., ~np.tri(q.shape[2], dtype=np.bool_)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights @ values / weights.sum(axis=-1, keepdims=True))


class OnlineSoftmax:
    """Sums over the keys seen so far, for some queries: what is left of softmax(Q K^T) V when scores are not kept.

    Attributes:
        largest: score of each query so far, shape (..., n).
        total: sum of exp(score - largest), shape (..., n).
        weighted: sum of exp(score - largest) x value, shape (..., n, d_k).

    Args:
        shape: of the queries, (..., n, d_k).
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        """Begin before the first key."""
        self.largest = np.full(shape[:-1], -np.inf, np.float32)
        self.total = np.zeros(shape[:-1], np.float32)
        self.weighted = np.zeros(shape, np.float32)

    @property
    def nbytes(self) -> int:
        """What the sums take."""
        return self.largest.nbytes + self.total.nbytes + self.weighted.nbytes

    def add(self, rows: slice, scores: Array, values: Array) -> None:
        """Add a block of keys to some of the queries.

        Args:
            rows: which queries.
            scores: their scores, -inf for keys they do not attend to, shape (..., rows, keys).
            values: of these keys, shape (..., keys, d_k).
        """
        before = self.largest[..., rows]
        largest = np.maximum(before, scores.max(axis=-1))
        shift = np.where(np.isneginf(largest), np.float32(0), largest)  # a query may have seen no key yet
        kept, weights = np.exp(before - shift), np.exp(scores - shift[..., None])
        self.largest[..., rows] = largest
        self.total[..., rows] = self.total[..., rows] * kept + weights.sum(axis=-1)
        self.weighted[..., rows, :] = self.weighted[..., rows, :] * kept[..., None] + weights @ values

    def result(self) -> Array:
        """The softmax's means of the values, shape (..., n, d_k)."""
        return np.asarray(self.weighted / self.total[..., None])


def require_attention(q: Array, k: Array, v: Array) -> None:
    """Raise ValueError unless these are queries, keys and values of each other."""
    for name, array in (("q", q), ("k", k), ("v", v)):
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{name} must be a numpy array, got {type(array).__name__}.")
        if array.dtype not in DTYPES or array.dtype != q.dtype:
            raise ValueError(f"q, k and v must be float32, or all float16, got {array.dtype} for {name}.")
        if array.ndim != 4 or array.size == 0:
            raise ValueError(f"{name} must have shape (batch, heads, tokens, size), none of them 0, got {array.shape}.")
    if k.shape != v.shape or (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]) or q.shape[1] % k.shape[1]:
        raise ValueError(
            "k and v must be alike, and like q but for heads, of which q has a multiple; "
            f"got shapes {q.shape}, {k.shape} and {v.shape}."
        )

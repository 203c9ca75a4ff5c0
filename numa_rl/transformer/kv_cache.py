"""What the KV cache of a transformer holds, how it grows by pages, and what attention over it takes.

References:
    [1] The chapter, section 16.3.3: size of the KV cache; prefetch by position.
    [2] J. Kaplan et al., "Scaling laws for neural language models", 2020, section 2.1.
    [3] J. Ainslie et al., "GQA: training generalized multi-query transformer models from multi-head checkpoints", 2023.
    [4] W. Kwon et al., "Efficient memory management for large language model serving with PagedAttention", SOSP 2023:
        pages of a fixed number of tokens, allocated as a sequence grows, against reservations of the longest length.
    [5] The chapter, section 16.1.2: double buffering.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from numa_rl.communication.transfers import pipelined_s, require_not_negative, require_positive, unoverlapped_s
from numa_rl.topology import FloatArray, IntArray
from numa_rl.workloads.parameters import require


def kv_bytes_per_token(layers: int, kv_heads: int, head_dim: int, bytes_per_element: float) -> float:
    """Bytes of KV cache that one token adds: 2 x layers x heads x d_k x bytes per element [1].

    Heads are those of keys and values, which several heads of queries may share [3].

    >>> kv_bytes_per_token(layers=40, kv_heads=40, head_dim=128, bytes_per_element=2)  # OPT-13B, "800 KB" [4]
    819200
    """
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


@dataclass(frozen=True)
class KVCache:
    """The keys and values of a batch of sequences.

    Attributes:
        layers: of the model.
        kv_heads: heads of keys and values; where several heads of queries share one, as many as there are of these [3].
        head_dim: size of a head's vectors, d_k.
        tokens: of each sequence.
        batch: number of sequences.
        bytes_per_element: 2 in half precision; what a quantised element takes with its share of the scales.

    Raises:
        ValueError: a figure is out of range.
    """

    layers: int
    kv_heads: int
    head_dim: int
    tokens: int
    batch: int = 1
    bytes_per_element: float = 2.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        counts = "layers kv_heads head_dim tokens batch"
        require(self, counts, "a whole number >= 1", lambda value: value >= 1 and value % 1 == 0)
        require(self, "bytes_per_element", "finite and > 0", lambda value: value > 0)

    @property
    def token_bytes(self) -> float:
        """Of one token in all layers."""
        return kv_bytes_per_token(self.layers, self.kv_heads, self.head_dim, self.bytes_per_element)

    @property
    def num_bytes(self) -> float:
        """Of everything: M = 2 x layers x heads x seq x d_k x batch x bytes per element [1]."""
        return self.token_bytes * self.tokens * self.batch

    @property
    def head_bytes(self) -> float:
        """Of one head in one layer, for all sequences: the least that a layout places."""
        return self.num_bytes / (self.layers * self.kv_heads)


def pages_of(tokens: npt.ArrayLike, page_tokens: int) -> IntArray:
    """Pages that sequences of so many tokens need, of any shape: the last one may not be full [4].

    Raises:
        ValueError: a page of less than one token, or a negative number of tokens.
    """
    _require_page(page_tokens)
    array = np.asarray(tokens)
    if array.dtype.kind not in "iu" or (array < 0).any():
        raise ValueError(f"tokens must be whole numbers >= 0, got {array.tolist()}.")
    return np.asarray(-(-array.astype(np.int64) // page_tokens))


def internal_fragmentation(tokens: npt.ArrayLike, allocated_tokens: npt.ArrayLike) -> float:
    """Share of the allocated room that no token uses, over all sequences; NaN where nothing is allocated.

    Raises:
        ValueError: more tokens than room for them.
    """
    used, room = np.asarray(tokens, np.float64), np.asarray(allocated_tokens, np.float64)
    if (used > room).any() or (used < 0).any():
        raise ValueError(f"tokens must be in 0..allocated_tokens, got {used.tolist()} of {room.tolist()}.")
    total = float(np.broadcast_to(room, used.shape).sum())
    return 1.0 - float(used.sum()) / total if total else float("nan")


def mean_page_waste_tokens(page_tokens: int) -> float:
    """Tokens of a sequence's last page that stay empty, on average over lengths: (page - 1) / 2.

    A sequence of L tokens wastes (-L) mod P, and lengths that fill P whole turns waste 0 to P - 1 equally often. A
    reservation for L_max tokens wastes L_max - L, whatever L.
    """
    _require_page(page_tokens)
    return (page_tokens - 1) / 2


class PagePool:
    """Pages of all sequences: allocated as they grow, given back when they end, and reused [4].

    Args:
        num_pages: how many there are.
        page_tokens: tokens of a page, 16 in vLLM by default.

    Attributes:
        tables: the pages of each sequence, in the order of its tokens.
    """

    def __init__(self, num_pages: int, page_tokens: int) -> None:
        """Begin with all pages free; raises ValueError for counts below 1."""
        _require_page(page_tokens)
        if num_pages < 1:
            raise ValueError(f"num_pages must be >= 1, got {num_pages}.")
        self.num_pages, self.page_tokens = num_pages, page_tokens
        self.tables: dict[int, list[int]] = defaultdict(list)
        self._tokens: dict[int, int] = defaultdict(int)
        self._free = list(range(num_pages - 1, -1, -1))

    def append(self, sequence: int) -> tuple[int, int]:
        """Make room for a sequence's next token: its page, and its place there.

        Raises:
            ValueError: a page is needed and none is free; nothing has changed then.
        """
        place = self._tokens.get(sequence, 0) % self.page_tokens
        if place == 0:
            if not self._free:
                raise ValueError(
                    f"sequence {sequence} must find a free page of {self.num_pages}, got none: end a sequence, "
                    f"or have {self.num_pages + 1} pages."
                )
            self.tables[sequence].append(self._free.pop())
        self._tokens[sequence] += 1
        return self.tables[sequence][-1], place

    def end(self, sequence: int) -> None:
        """Give back a sequence's pages; raises ValueError where it has none."""
        if sequence not in self.tables:
            raise ValueError(f"sequence must be one of {sorted(self.tables)}, got {sequence}.")
        self._free += reversed(self.tables.pop(sequence))
        del self._tokens[sequence]

    @property
    def used_tokens(self) -> int:
        """Tokens that are there."""
        return sum(self._tokens.values())

    @property
    def allocated_tokens(self) -> int:
        """Tokens that the pages in use have room for."""
        return (self.num_pages - len(self._free)) * self.page_tokens


def layer_by_layer_s(
    layers: int,
    layer_bytes: Any,
    fetch_s_per_byte: Any,
    compute_s_per_byte: Any,
    latency_s: Any = 0.0,
    *,
    prefetch: bool = True,
) -> Any:
    """Seconds for one token to attend over the cache of all layers, fetched from where it is.

    Which pages the next layer needs is known by their position, before its query is. With prefetch they arrive in one
    buffer while this layer computes on the other [1, 5]: f + (layers - 1) max(f, c) + c, instead of layers (f + c),
    for f seconds of fetching and c of computing on a layer. It is `transfers.pipelined_s` with a layer as its chunk,
    and gains less than a factor of 2, most where f = c.

    Args:
        layers: how many.
        layer_bytes: cache of one.
        fetch_s_per_byte: seconds to fetch a byte.
        compute_s_per_byte: seconds to compute on it.
        latency_s: what each layer's fetch pays once.
        prefetch: whether the next layer is fetched meanwhile.

    Raises:
        ValueError: a figure out of range.
    """
    if not (layers >= 1 and layers % 1 == 0):
        raise ValueError(f"layers must be a whole number >= 1, got {layers}.")
    require_positive(layer_bytes=layer_bytes)
    require_not_negative(fetch_s_per_byte=fetch_s_per_byte, compute_s_per_byte=compute_s_per_byte, latency_s=latency_s)
    schedule = pipelined_s if prefetch else unoverlapped_s
    return schedule(layers * layer_bytes, layer_bytes, 0.0, fetch_s_per_byte, compute_s_per_byte, latency_s)


def _require_page(page_tokens: int) -> None:
    """Raise ValueError unless a page holds a whole number of tokens."""
    if not (page_tokens >= 1 and page_tokens % 1 == 0):
        raise ValueError(f"page_tokens must be a whole number >= 1, got {page_tokens}.")

"""Attention computed block by block over nodes, in numpy: each with what it holds or has read, every byte counted.

The three phases of `numa_rl.transformer.attention`, executed. A node's arrays are its own copies; what it reads from
another node is counted where it is read, and what it holds is counted as it comes and goes, so that both can be held
against the closed forms of `numa_rl.transformer.attention_count`. Scores are never stored: sums of an online softmax
take a tile of them at a time [2].

Dimension key: p nodes, s sequence parts; B sequences of L tokens, H heads and G heads of keys and values of size d_k.

References:
    [1] The chapter, section 16.3.1: blocked attention with K and V blocks spread over sockets.
    [2] T. Dao et al., "FlashAttention", 2022: blocks of queries against blocks of keys that fit a cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from numa_rl.topology import IntArray
from numa_rl.transformer.attention import AttentionShape, AttentionSplit, head_range, kv_head_range
from numa_rl.transformer.online_softmax import Array, OnlineSoftmax, require_attention
from numa_rl.transformer.sequence_order import sequence_parts

DEFAULT_BLOCK_TOKENS = 128


@dataclass(frozen=True, eq=False)
class DistributedAttention:
    """An output, and what it took.

    Attributes:
        output: shape (B, H, L, d_k), of the queries' type.
        exchange_bytes: read before the first step, shape (p, p), indexed [receiver, sender].
        step_bytes: read in the ring's steps, shape (s - 1, p, p), likewise.
        return_bytes: read after the last step, shape (p, p), likewise.
        peak_bytes: the most that each node held at a time, shape (p,).
        pairs: pairs of tokens attended to by each node, of one head and sequence, shape (p,).
    """

    output: Array
    exchange_bytes: IntArray
    step_bytes: IntArray
    return_bytes: IntArray
    peak_bytes: IntArray
    pairs: IntArray

    @property
    def received_bytes(self) -> IntArray:
        """What each node read from others in all, shape (p,)."""
        read = self.exchange_bytes + self.step_bytes.sum(axis=0) + self.return_bytes
        return np.asarray(read.sum(axis=1))


class Node:
    """One node: its place on the grid, its tokens and heads, and the arrays that it holds now."""

    def __init__(self, index: int, shape: AttentionShape, split: AttentionSplit, tokens: IntArray) -> None:
        """Hold nothing yet."""
        self.index = index
        self.row, column = divmod(index, split.head_parts)
        edges = [len(tokens) * part // split.head_parts for part in (column, column + 1)]
        heads, kv_heads = head_range(shape, split, column), kv_head_range(shape, split, column)
        self.tokens = tokens  # of its sequence part, ascending
        self.home = slice(*edges)  # which of them it is the home of
        self.heads, self.kv_heads = slice(heads.start, heads.stop), slice(kv_heads.start, kv_heads.stop)
        sharing = shape.heads // shape.layer.num_kv_heads
        self.kv_of_head = np.array(heads) // sharing - kv_heads.start
        self.pairs = 0
        self.peak_bytes = 0
        self._held: dict[str, Any] = {}

    def hold(self, **arrays: Any) -> None:
        """Keep arrays, or whatever else has `nbytes`, by name."""
        self._held.update(arrays)
        self.peak_bytes = max(self.peak_bytes, sum(array.nbytes for array in self._held.values()))

    def drop(self, *names: str) -> list[Any]:
        """Let go of arrays, and return them."""
        return [self._held.pop(name) for name in names]

    def __getitem__(self, name: str) -> Any:
        """An array that it holds."""
        return self._held[name]


class Counter:
    """Bytes read between p nodes, indexed [receiver, sender]."""

    def __init__(self, num_nodes: int) -> None:
        """Begin at zero."""
        self.bytes: IntArray = np.zeros((num_nodes, num_nodes), np.int64)

    def read(self, receiver: Node, sender: Node, array: Array) -> Array:
        """The receiver's own copy of what the sender holds."""
        if receiver is not sender:
            self.bytes[receiver.index, sender.index] += array.nbytes
        return array.copy()


def split_attention(
    q: Array, k: Array, v: Array, split: AttentionSplit, *, causal: bool, block_tokens: int = DEFAULT_BLOCK_TOKENS
) -> DistributedAttention:
    """Attention over the nodes of a split: the same as `plain_attention`, but for rounding.

    Args:
        q: queries, shape (B, H, L, d_k), of which each node first has all heads of its home tokens.
        k: keys, shape (B, G, L, d_k), likewise.
        v: values, likewise.
        split: how heads and tokens are cut; weights make no difference here.
        causal: whether a token attends to itself and those before it only.
        block_tokens: queries, and keys, of a tile of scores: what a cache should hold at a time.

    Raises:
        ValueError: shapes that do not match, elements that are not float16 or float32, a split that does not fit, or
            a block without tokens.
    """
    require_attention(q, k, v)
    if not (block_tokens >= 1 and block_tokens % 1 == 0):
        raise ValueError(f"block_tokens must be a whole number >= 1, got {block_tokens}.")
    b, heads, tokens, size = q.shape
    shape = AttentionShape(tokens, heads * size, heads, k.shape[1], b, q.itemsize, causal)
    nodes = grid_of_nodes(shape, split)
    for node in nodes:
        mine = node.tokens[node.home]
        node.hold(q_home=q[:, :, mine], k_home=k[:, :, mine], v_home=v[:, :, mine])
    exchange = exchange_heads(nodes, split)
    steps = attend(nodes, split, causal, int(block_tokens))
    divide_sums(nodes, q.dtype)
    back = return_heads(nodes, split)
    output = np.empty_like(q)
    for node in nodes:
        output[:, :, node.tokens[node.home]] = node["output"]
    return done(nodes, output, exchange, steps, back)


def done(
    nodes: list[Node], output: Array, exchange: IntArray, steps: list[IntArray], back: IntArray
) -> DistributedAttention:
    """The output, and what nodes and counters say."""
    return DistributedAttention(
        output=output,
        exchange_bytes=exchange,
        step_bytes=np.array(steps, np.int64).reshape(-1, len(nodes), len(nodes)),
        return_bytes=back,
        peak_bytes=np.array([node.peak_bytes for node in nodes]),
        pairs=np.array([node.pairs for node in nodes]),
    )


def grid_of_nodes(shape: AttentionShape, split: AttentionSplit) -> list[Node]:
    """The nodes of a split, row by row, that hold nothing yet; raises ValueError where it does not fit the shape."""
    split.require_fit(shape)
    parts = [
        np.concatenate([np.asarray(run, np.int64) for run in part])
        for part in sequence_parts(shape.tokens, split.sequence_parts, split.order)
    ]
    return [Node(index, shape, split, parts[index // split.head_parts]) for index in range(split.num_nodes)]


def row_of(nodes: list[Node], split: AttentionSplit, row: int) -> list[Node]:
    """The nodes of a sequence part, by head part."""
    return nodes[row * split.head_parts : (row + 1) * split.head_parts]


def exchange_heads(nodes: list[Node], split: AttentionSplit) -> IntArray:
    """From all heads of their home tokens, nodes come to their own heads of all tokens of their row."""
    counter = Counter(len(nodes))
    if split.head_parts == 1:
        for node in nodes:
            node.hold(**dict(zip("qkv", node.drop("q_home", "k_home", "v_home"), strict=True)))
        return counter.bytes
    for node in nodes:
        for name, heads in (("q", node.heads), ("k", node.kv_heads), ("v", node.kv_heads)):
            pieces = [
                counter.read(node, other, other[f"{name}_home"][:, heads]) for other in row_of(nodes, split, node.row)
            ]
            node.hold(**{name: np.concatenate(pieces, axis=2)})
    for node in nodes:
        node.drop("q_home", "k_home", "v_home")
    return counter.bytes


def attend(nodes: list[Node], split: AttentionSplit, causal: bool, block: int) -> list[IntArray]:
    """Every node works on its own keys and values, then, step by step, on those the node above has just worked on."""
    h, s = split.head_parts, split.sequence_parts
    for node in nodes:
        node.hold(sums=OnlineSoftmax(node["q"].shape))
        _work(node, node["k"], node["v"], node.tokens, causal, block)
    counted, before = [], ("k", "v")
    for step in range(1, s):
        counter, now = Counter(len(nodes)), (f"k{step}", f"v{step}")
        for node in nodes:
            above, origin = nodes[node.index - h], nodes[node.index - step * h]
            last = np.searchsorted(origin.tokens, node.tokens[-1], side="right") if causal else len(origin.tokens)
            node.hold(
                **{
                    new: counter.read(node, above, above[old][:, :, :last])
                    for old, new in zip(before, now, strict=True)
                }
            )
            _work(node, node[now[0]], node[now[1]], origin.tokens[:last], causal, block)
        if step > 1:  # its own keys and values stay
            for node in nodes:
                node.drop(*before)
        before = now
        counted.append(counter.bytes)
    for node in nodes:
        if s > 1:
            node.drop(*before)
    return counted


def _work(node: Node, k: Array, v: Array, key_tokens: IntArray, causal: bool, block: int) -> None:
    """Add keys and values to a node's sums, tile by tile of scores, but for tiles in which nothing is attended to."""
    q, scale = node["q"], np.float32(1.0 / np.sqrt(node["q"].shape[-1]))
    for first_key in range(0, len(key_tokens), block):
        columns = slice(first_key, first_key + block)
        keys, values = (array[:, node.kv_of_head, columns].astype(np.float32) for array in (k, v))
        for first in range(0, len(node.tokens), block):
            rows = slice(first, first + block)
            attends = key_tokens[columns] <= node.tokens[rows, None]
            if not causal:
                attends[:] = True
            if attends.any():
                scores = (q[:, :, rows].astype(np.float32) * scale) @ keys.swapaxes(-1, -2)
                node["sums"].add(rows, np.where(attends, scores, np.float32(-np.inf)), values)
                node.pairs += int(attends.sum())


def divide_sums(nodes: list[Node], dtype: np.dtype[Any]) -> None:
    """From sums, nodes come to outputs of their own heads of all tokens of their row."""
    for node in nodes:
        node.hold(of_heads=node["sums"].result().astype(dtype))
        node.drop("q", "k", "v", "sums")


def return_heads(nodes: list[Node], split: AttentionSplit) -> IntArray:
    """From outputs of their own heads of all tokens of their row, nodes come to all heads of their home tokens."""
    counter = Counter(len(nodes))
    for node in nodes:
        if split.head_parts == 1:
            node.hold(output=node.drop("of_heads")[0])
        else:
            pieces = [
                counter.read(node, other, other["of_heads"][:, :, node.home])
                for other in row_of(nodes, split, node.row)
            ]
            node.hold(output=np.concatenate(pieces, axis=1))
    return counter.bytes

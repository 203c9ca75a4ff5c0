"""What a split of attention costs, counted: bytes between nodes, memory and arithmetic of each node.

The phases are those of `numa_rl.transformer.attention`; `numa_rl.transformer.blocked_attention` executes them, and its
counters agree with these formulas.

Dimension key: p nodes, s sequence parts, h head parts, K reads between nodes.

References:
    [1] The chapter, section 16.3.1: traffic of the sequence, head and hybrid splits.
    [2] T. Dao et al., "FlashAttention", 2022: scores are never stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from numa_rl.topology import FloatArray, IntArray
from numa_rl.transformer.attention import AttentionShape, AttentionSplit, kv_head_range
from numa_rl.transformer.kv_cache import attention_flops_per_pair
from numa_rl.transformer.sequence_order import Part, attended_pairs, count_tokens, needed_tokens, sequence_parts

SUM_BYTES = 4  # sums of the softmax are kept in single precision
STATISTICS = 2  # of each query and head: the largest score, and the sum of exponentials


@dataclass(frozen=True, eq=False)
class Sends:
    """What nodes read from each other, in steps: the exchange is step 0, the ring 1 to s - 1, and the return s.

    Attributes:
        step: when, shape (K,).
        receiver: the node that reads, shape (K,).
        sender: the node that holds it, another one, shape (K,).
        num_bytes: how much, shape (K,).
    """

    step: IntArray
    receiver: IntArray
    sender: IntArray
    num_bytes: IntArray


class SplitCount:
    """A shape under a split: every count, exactly, also where parts are not equal.

    Attributes:
        shape: what is attended to.
        split: how it is cut.
        kv_head_counts: heads of keys and values that each head part attends with, shape (h,).

    Args:
        shape: what is attended to.
        split: how it is cut.

    Raises:
        ValueError: the split does not fit the shape.
    """

    def __init__(self, shape: AttentionShape, split: AttentionSplit) -> None:
        """Cut the sequence and the heads."""
        split.require_fit(shape)
        self.shape, self.split = shape, split
        self._parts = sequence_parts(shape.tokens, split.sequence_parts, split.order)
        columns = range(split.head_parts)
        self.kv_head_counts = np.array([len(kv_head_range(shape, split, part)) for part in columns])
        self._heads = shape.heads // split.head_parts

    @cached_property
    def part_tokens(self) -> IntArray:
        """Tokens of each sequence part, shape (s,)."""
        return np.array([count_tokens(part) for part in self._parts])

    @cached_property
    def home_tokens(self) -> IntArray:
        """Tokens that each node is the home of, shape (s, h): contiguous shares of its part."""
        edges = np.arange(self.split.head_parts + 1) * self.part_tokens[:, None] // self.split.head_parts
        return np.diff(edges, axis=1)

    @cached_property
    def step_tokens(self) -> IntArray:
        """Tokens whose keys and values each part uses in each step, its own in step 0, shape (s, s) [part, step]."""
        return self._by_step(needed_tokens)

    @cached_property
    def step_pairs(self) -> IntArray:
        """Pairs of tokens that attend to each other in each part and step, of one head and sequence, shape (s, s)."""
        return self._by_step(attended_pairs)

    def _by_step(self, counted: Callable[[Part, Part, bool], int]) -> IntArray:
        s = self.split.sequence_parts
        counts = [
            [counted(self._parts[part], self._parts[(part - step) % s], self.shape.causal) for step in range(s)]
            for part in range(s)
        ]
        return np.array(counts, np.int64)

    @cached_property
    def sends(self) -> Sends:
        """All that crosses between nodes."""
        h, s, shape = self.split.head_parts, self.split.sequence_parts, self.shape
        sends: list[tuple[int, int, int, int]] = []
        gathers = self.split.gathers
        queries = self._heads * shape.head_bytes  # of a token, as are keys and values
        for node in range(self.split.num_nodes):
            row, column = divmod(node, h)
            homes, keys_and_values = self.home_tokens[row], self.kv_head_counts[column] * shape.kv_head_bytes
            for other in (other for other in range(h) if other != column):
                there = row * h + other
                given, made = queries + keys_and_values, queries
                if gathers:
                    given = made = shape.token_bytes
                sends.append((0, node, there, homes[other] * given))
                sends.append((s, node, there, homes[column] * made))
            above = (row - 1) % s * h + column
            for step in range(1, s):
                sends.append((step, node, above, self.step_tokens[row, step] * keys_and_values))
        kept = sorted(send for send in sends if send[-1])
        return Sends(*np.array(kept, np.int64).reshape(-1, 4).T)

    @cached_property
    def received_bytes(self) -> IntArray:
        """What each node reads from others, shape (p,)."""
        received = np.zeros(self.split.num_nodes, np.int64)
        np.add.at(received, self.sends.receiver, self.sends.num_bytes)
        return received

    @property
    def total_bytes(self) -> int:
        """What crosses between nodes in all."""
        return int(self.received_bytes.sum())

    @cached_property
    def step_flops(self) -> FloatArray:
        """Arithmetic of the scores and of the sums of values, by node and step of the ring, shape (p, s)."""
        per_pair = self.shape.batch * attention_flops_per_pair(1, self._heads, self.shape.layer.key_dim)
        return np.repeat(self.step_pairs * float(per_pair), self.split.head_parts, axis=0)

    @cached_property
    def weight_bytes(self) -> IntArray:
        """The layer's matrices on each node, shape (p,): all, or what its heads need."""
        return self._column_parameters * self.shape.bytes_per_element

    @property
    def _column_parameters(self) -> IntArray:
        """Weights that each node projects with, shape (p,)."""
        shape, split = self.shape, self.split
        if not split.gathers:
            return np.full(split.num_nodes, shape.layer.attention_parameters)
        of_heads = 2 * shape.width * shape.layer.key_dim * (self._heads + self.kv_head_counts)
        return np.tile(of_heads, split.sequence_parts)

    @property
    def _projected_tokens(self) -> IntArray:
        """Tokens that each node projects, shape (p,)."""
        h = self.split.head_parts
        return np.repeat(self.part_tokens, h) if self.split.gathers else self.home_tokens.ravel()

    @cached_property
    def projection_flops(self) -> FloatArray:
        """Arithmetic of the four projections, and of adding up partial outputs, shape (p,)."""
        products = 2.0 * self.shape.batch * self._projected_tokens * self._column_parameters
        added = self.split.head_parts - 1 if self.split.gathers else 0
        return np.asarray(products + self.home_tokens.ravel() * float(added * self.shape.batch * self.shape.width))

    @cached_property
    def projection_memory_bytes(self) -> FloatArray:
        """What the projections move in each node's own memory, shape (p,): weights, X, Q, K, V, their result, and Y."""
        shape = self.shape
        heads, kv_heads = (
            (self._heads, np.tile(self.kv_head_counts, self.split.sequence_parts))
            if self.split.gathers
            else (shape.heads, shape.layer.num_kv_heads)
        )
        token = 2 * shape.token_bytes + 2 * heads * shape.head_bytes + kv_heads * shape.kv_head_bytes
        return np.asarray(self._projected_tokens * token + self.weight_bytes, np.float64)

    def step_memory_bytes(self, tile_tokens: int) -> FloatArray:
        """What each step of the ring moves in each node's own memory, shape (p, s).

        Keys and values once for each tile of queries that attends to them, queries once, and the sums there and back.

        Args:
            tile_tokens: queries of a tile.
        """
        h = self.split.head_parts
        key_reads = np.maximum(self.step_tokens, self.step_pairs / tile_tokens)  # of a head, by part and step
        keys_and_values = key_reads[:, None] * (self.kv_head_counts * self.shape.kv_head_bytes)[:, None]
        queries = np.repeat(self.part_tokens, h) * float(self._heads * self.shape.head_bytes) + 2.0 * self.sum_bytes
        has_work = np.repeat(self.step_pairs > 0, h, axis=0)
        return np.asarray(keys_and_values.reshape(len(has_work), -1) + has_work * queries[:, None])

    @cached_property
    def sum_bytes(self) -> IntArray:
        """The online softmax's sums on each node, shape (p,)."""
        of_token = self._heads * self.shape.batch * (self.shape.layer.key_dim + STATISTICS) * SUM_BYTES
        return np.repeat(self.part_tokens, self.split.head_parts) * of_token

    @property
    def imbalance(self) -> float:
        """Work of the busiest node over the mean, in attention itself: 1 where all have as much."""
        flops = self.step_flops.sum(axis=1)
        return float(flops.max() / flops.mean())

    @cached_property
    def working_bytes(self) -> IntArray:
        """The most that each node holds at a time besides its share of X and the weights, shape (p,).

        Its own Q, K and V of all heads, and those of its heads as they arrive; then, while it attends, those of its
        heads, the sums in single precision, and the keys and values of the ring step at hand and of the next one (or
        the outputs, when there are no more steps); then the outputs of its heads, and those of its tokens. Tiles of
        scores stay in the caches and do not count.

        With weights by head: what it lacks of its part's X, and its heads' Q, K and V; the same while it attends; its
        outputs, and their share of Y for all of the part; that, the sum for its home tokens, and what is added to it.
        """
        h, shape = self.split.head_parts, self.shape
        part, home = self.part_tokens[:, None], self.home_tokens
        outputs = part * np.full(h, self._heads * shape.head_bytes)  # (s, h), as is all that follows
        keys_and_values = self.kv_head_counts * shape.kv_head_bytes  # of a token, by column
        arriving = np.pad(self.step_tokens[:, 1:], ((0, 0), (1, 0)))
        two_steps = (arriving[:, 1:] + arriving[:, :-1]).max(axis=1, initial=0)[:, None] * keys_and_values
        of_heads = outputs + part * keys_and_values
        phases = [of_heads + self.sum_bytes.reshape(home.shape) + np.maximum(two_steps, outputs)]
        all_heads = shape.heads * shape.head_bytes  # of a token
        if self.split.gathers:
            whole, own = part * shape.token_bytes, home * shape.token_bytes
            phases += [of_heads + whole - own, outputs + whole, whole + 2 * own]
        elif h > 1:  # or else whoever projects also attends
            phases += [of_heads + home * (all_heads + shape.layer.num_kv_heads * shape.kv_head_bytes)]
            phases += [outputs + home * all_heads]
        return np.asarray(np.max(phases, axis=0).ravel())

    @cached_property
    def peak_bytes(self) -> IntArray:
        """The most activations that each node holds at a time, shape (p,): its share of X stays, for the residual."""
        return self.home_tokens.ravel() * self.shape.token_bytes + self.working_bytes

    @property
    def peak_bytes_with_weights(self) -> IntArray:
        """The same with the matrices that the node has, shape (p,)."""
        return self.peak_bytes + self.weight_bytes

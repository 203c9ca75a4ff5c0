"""Feed-forward layers of a transformer split over the nodes of a machine: W_1 by columns, W_2 by rows, an all-reduce.

Dimension key: E episodes, B micro-batches, p ranks, C chunks, K pieces of Y.

A rank holds its share of every layer's weights, two read-only objects that a loader task creates at time 0, and each
micro-batch's X, loaded whole on every rank. For a layer and a micro-batch every rank has

    1. a task for each of its lanes, which gives some columns of H = f(X W_1): it reads X and its share of W_1;
    2. a task for each of K pieces of its partial sum of Y, some columns of it: it reads all of the rank's H and its
       share of W_2;
    3. the sends of an all-reduce of Y in a ring, after which every rank has all of Y, the X of the next layer.

A lane stands for a core that computes, and one more core of a rank does its sends, so that a micro-batch's all-reduce
passes while the next one is computed. What the ranks send between them is
`numa_rl.transformer.ffn.sent_bytes` of the way "column-row", for every layer and micro-batch.

References:
    [1] The chapter, section 16.3.2: column-parallel W_1, row-parallel W_2, all-reduce of batch x seq x d.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import lcm

import numpy as np

from numa_rl.communication.collectives import require_count
from numa_rl.communication.schedules import Schedule, ring
from numa_rl.transformer.model import FFN_OVER_WIDTH
from numa_rl.workloads.graph_draft import GraphDraft, Messages, add_all_reduce
from numa_rl.workloads.parameters import require
from numa_rl.workloads.processes import FloatArray, IntArray, lognormal
from numa_rl.workloads.workload import Workload


@dataclass(frozen=True)
class Ffn:
    """Micro-batches that go through feed-forward layers, one layer after another.

    All episodes have the same graph of 2 p L loaders of weights, p B of inputs, and p (lanes + K) + 2 (p - 1) K tasks
    for each layer and micro-batch; the width and the tokens are random.

    Attributes:
        num_ranks: nodes that the program is written for, p.
        lanes: cores of each that compute.
        num_layers: L.
        num_batches: micro-batches B, that depend on each other in nothing.
        median_tokens: of a micro-batch, lognormal; few, as in decoding, where weights are read for little arithmetic.
        tokens_sigma: standard deviation of its logarithm.
        median_width: of the model, lognormal, in whole pieces for every lane and chunk; the inner width is 4 times it.
        width_sigma: standard deviation of its logarithm.
        bytes_per_element: of weights and activations.
        message_bytes: the largest message that a send is cut into.
        message_overhead_s: what software adds to each.
        flops_per_s: nominal pace of a core, for the order of tasks.
        bytes_per_s: nominal pace of its memory, likewise.

    Raises:
        ValueError: a parameter is out of range.
    """

    num_ranks: int = 4
    lanes: int = 4
    num_layers: int = 2
    num_batches: int = 2
    median_tokens: float = 4.0
    tokens_sigma: float = 1.0
    median_width: float = 2048.0
    width_sigma: float = 0.5
    bytes_per_element: int = 2
    message_bytes: float = float("inf")
    message_overhead_s: float = 0.0
    flops_per_s: float = 40e9
    bytes_per_s: float = 20e9

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_count(
            num_ranks=self.num_ranks,
            lanes=self.lanes,
            num_layers=self.num_layers,
            num_batches=self.num_batches,
            bytes_per_element=self.bytes_per_element,
        )
        require(self, "median_tokens median_width flops_per_s bytes_per_s", "> 0", lambda value: value > 0)
        require(self, "tokens_sigma width_sigma", "in 0..2", lambda value: 0 <= value <= 2)
        if not self.message_bytes > 0:
            raise ValueError(f"message_bytes must be > 0, got {self.message_bytes}.")
        require(self, "message_overhead_s", ">= 0", lambda value: value >= 0)

    @cached_property
    def schedule(self) -> Schedule:
        """Who sends what to whom."""
        return ring(self.num_ranks)

    @property
    def pieces_per_chunk(self) -> int:
        """Objects of a chunk of Y: at least one piece of Y for every lane."""
        return -(-self.lanes // self.schedule.num_chunks)

    @property
    def num_pieces(self) -> int:
        """Objects of Y on a rank, K."""
        return self.schedule.num_chunks * self.pieces_per_chunk

    def generate(self, rng: np.random.Generator, num_episodes: int) -> Workload:
        """Make `num_episodes` episodes; more episodes from the same generator extend fewer."""
        nominal = GraphDraft()
        self._draw_up(nominal, np.full((1, self.num_batches), self.median_tokens), np.full(1, self.median_width))
        draft = GraphDraft(nominal)
        self._draw_up(draft, *self._sizes(rng, num_episodes))
        return draft.workload(
            "ffn", num_episodes=num_episodes, flops_per_s=self.flops_per_s, bytes_per_s=self.bytes_per_s
        )

    def object_rank(self) -> IntArray:
        """The rank that each object belongs to, shape (O,): in the program's own layout it and its tasks are there."""
        ranks = np.arange(self.num_ranks)
        products = np.concatenate([np.repeat(ranks, self.lanes), np.repeat(ranks, self.num_pieces)])
        loaded = np.tile(np.repeat(ranks, 2), self.num_layers), np.tile(ranks, self.num_batches)
        return np.concatenate([*loaded, np.tile(products, self.num_layers * self.num_batches)])

    def _sizes(self, rng: np.random.Generator, num_episodes: int) -> tuple[FloatArray, FloatArray]:
        """Tokens of each micro-batch, shape (E, B), and the width, shape (E,), whole numbers."""
        uniforms = rng.random((num_episodes, self.num_batches + 1))
        tokens = np.maximum(np.rint(lognormal(uniforms[:, 1:], self.median_tokens, self.tokens_sigma)), 1.0)
        unit = lcm(self.num_pieces, self.num_ranks * self.lanes)
        width = lognormal(uniforms[:, 0], self.median_width, self.width_sigma)
        return tokens, unit * np.maximum(np.rint(width / unit), 1.0)

    def _draw_up(self, draft: GraphDraft, tokens: FloatArray, width: FloatArray) -> None:
        """Add the tasks: loaders, then layer by layer and micro-batch by micro-batch."""
        layers = _Layers(self, width)
        weights = [layers.add_weights(draft) for _ in range(self.num_layers)]
        given = [layers.add_inputs(draft, tokens[:, batch]) for batch in range(self.num_batches)]
        for layer in range(self.num_layers):
            last = layer == self.num_layers - 1
            given = [
                layers.add_layer(draft, weights[layer], given[batch], tokens[:, batch], kept=last)
                for batch in range(self.num_batches)
            ]


Parts = list[tuple[int, FloatArray]]  # objects that make up a matrix on a rank, and the size of each


class _Layers:
    """Adds what a family's layers are made of, for episodes of different width.

    Args:
        family: the counts.
        width: of each episode, shape (E,).
    """

    def __init__(self, family: Ffn, width: FloatArray) -> None:
        self.family = family
        self.width = width
        self.share = FFN_OVER_WIDTH * width / family.num_ranks  # of the inner width, on a rank

    def worker(self, rank: int, lane: int) -> int:
        """The one that computes in a lane; lane `lanes` sends."""
        return rank * (self.family.lanes + 1) + lane

    def add_weights(self, draft: GraphDraft) -> list[tuple[int, int]]:
        """A layer's shares of W_1 and W_2, two objects for each rank, loaded."""
        num_bytes = self.width * self.share * self.family.bytes_per_element
        pairs = []
        for rank in range(self.family.num_ranks):
            first, second = (draft.add_object(num_bytes, read_only=True, kept=True) for _ in range(2))
            for lane, weights in enumerate((first, second)):
                draft.add_task(self.worker(rank, lane % self.family.lanes), weights, num_bytes=num_bytes)
            pairs.append((first, second))
        return pairs

    def add_inputs(self, draft: GraphDraft, tokens: FloatArray) -> list[Parts]:
        """A micro-batch's X, one object on each rank, loaded."""
        num_bytes = tokens * self.width * self.family.bytes_per_element
        parts: list[Parts] = []
        for rank in range(self.family.num_ranks):
            given = draft.add_object(num_bytes)
            draft.add_task(self.worker(rank, 0), given, num_bytes=num_bytes)
            parts.append([(given, num_bytes)])
        return parts

    def add_layer(
        self, draft: GraphDraft, weights: list[tuple[int, int]], given: list[Parts], tokens: FloatArray, *, kept: bool
    ) -> list[Parts]:
        """Both products and the all-reduce of a micro-batch; its Y in pieces on each rank."""
        family, ranks = self.family, range(self.family.num_ranks)
        width, share = self.width, self.share
        inner = [
            self._add_product(draft, rank, (tokens, width, share), family.lanes, given[rank], weights[rank][0])
            for rank in ranks
        ]
        outer = [
            self._add_product(
                draft, rank, (tokens, share, width), family.num_pieces, inner[rank], weights[rank][1], kept
            )
            for rank in ranks
        ]
        per_chunk = family.pieces_per_chunk
        add_all_reduce(
            draft,
            family.schedule,
            vectors=[
                [[obj for obj, _ in parts[first : first + per_chunk]] for first in range(0, len(parts), per_chunk)]
                for parts in outer
            ],
            workers=[[self.worker(rank, family.lanes)] for rank in ranks],
            object_bytes=outer[0][0][1],
            bytes_per_element=family.bytes_per_element,
            messages=Messages(family.message_bytes, family.message_overhead_s),
        )
        return outer

    def _add_product(
        self,
        draft: GraphDraft,
        rank: int,
        sizes: tuple[FloatArray, FloatArray, FloatArray],
        pieces: int,
        factor: Parts,
        weights: int,
        kept: bool = False,
    ) -> Parts:
        """A rank's product in pieces of equal columns: each task reads all of the left factor and its share of W.

        Args:
            draft: what is added to.
            rank: whose it is.
            sizes: rows and columns of the left factor, and columns of W.
            pieces: how many objects the product is.
            factor: the left factor.
            weights: W.
            kept: whether the product lives to the end.
        """
        rows, shared, columns = sizes
        size = rows * columns / pieces * self.family.bytes_per_element
        weight_bytes = shared * columns / pieces * self.family.bytes_per_element
        made = [draft.add_object(size, kept=kept) for _ in range(pieces)]
        for piece, obj in enumerate(made):
            draft.add_task(
                self.worker(rank, piece % self.family.lanes),
                obj,
                flops=2.0 * rows * shared * columns / pieces,
                num_bytes=size,
                reads=[*factor, (weights, weight_bytes)],
            )
        return [(obj, size) for obj in made]

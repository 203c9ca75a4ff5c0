"""Attention of one layer split over the nodes of a machine, by heads, by sequence or by both, as tasks and objects.

Dimension key: E episodes, p places of a grid of s sequence parts by h head parts, T tasks, O objects.

The program has a place for each node that it is written for. There it uses as many cores to compute as it has lanes,
and as many to copy, so that the next keys and values arrive while it works on the last. A lane has every so many-th
tile of the queries and of the keys, so that lanes have equal work under any mask. The phases, given Q, K and V, are
those of `numa_rl.transformer.attention`:

    1. a loader at each place creates Q, K and V of its home tokens at time 0;
    2. exchange, if h > 1: a lane gathers its queries, and another task its keys and values, of the place's heads, from
       all places of the row;
    3. attention: in every step of the ring a lane adds what its queries attend to, to its sums of an online softmax; it
       reads the queries and all lanes' keys and values of that step;
    4. a ring step: a lane copies its share of the keys and values that the place above had in the step before;
    5. return: a lane divides its sums, and, if h > 1, gathers all heads of its home tokens from the row.

Where h = 1 there is nothing to exchange, and the loaders are lanes that create queries, keys and values as they are
used. Steps in which a place attends to nothing are left out, and so are reads that nobody needs. What places read from
each other is `numa_rl.transformer.attention_count.SplitCount.received_bytes`.

References:
    [1] The chapter, section 16.3.1: attention split by sequence, by head, and hybrid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from numa_rl.communication.collectives import require_count
from numa_rl.topology import FloatArray, IntArray
from numa_rl.transformer.attention import MOST_TOKENS, AttentionShape, AttentionSplit
from numa_rl.transformer.attention_count import SplitCount
from numa_rl.transformer.sequence_order import TokenOrder
from numa_rl.workloads.graph_draft import GraphDraft
from numa_rl.workloads.parameters import MOST_TASKS, require
from numa_rl.workloads.processes import lognormal
from numa_rl.workloads.workload import Workload

ORDERS = tuple(order.value for order in TokenOrder)


@dataclass(frozen=True)
class SplitAttention:
    """Layers of attention over sequences of random length.

    All episodes have the same tasks, and sequences that all parts and lanes divide; only their length is random.

    Attributes:
        head_parts: h.
        sequence_parts: s.
        order: which tokens are a sequence part: "contiguous", "zigzag" or "striped".
        causal: whether a token attends to itself and those before it only.
        lanes: cores that compute at each place; as many more copy.
        median_tokens: median length of a sequence, lognormal; at most a billion. The longer, the more arithmetic for
            each byte, and the less it matters where data lie.
        tokens_sigma: standard deviation of its logarithm.
        compute_sigma: standard deviation of the logarithm of how much longer some places compute than their arithmetic
            takes.
        width: of the model.
        heads: of queries.
        kv_heads: of keys and values.
        batch: sequences.
        bytes_per_element: of activations.
        flops_per_s: nominal pace of a core, for the order of tasks.
        bytes_per_s: nominal pace of its memory, likewise.

    Raises:
        ValueError: a parameter is out of range, heads do not divide what they must, or tasks are too many.
    """

    head_parts: int = 2
    sequence_parts: int = 4
    order: str = "zigzag"
    causal: bool = True
    lanes: int = 4
    median_tokens: float = 128.0
    tokens_sigma: float = 0.7
    compute_sigma: float = 0.05
    width: int = 4096
    heads: int = 32
    kv_heads: int = 32
    batch: int = 1
    bytes_per_element: int = 4
    flops_per_s: float = 40e9
    bytes_per_s: float = 20e9

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {self.order!r}.")
        require_count(lanes=self.lanes)
        require(self, "median_tokens flops_per_s bytes_per_s", "> 0", lambda value: value > 0)
        require(self, "tokens_sigma compute_sigma", "in 0..2", lambda value: 0 <= value <= 2)
        self.split.require_fit(self.shape(self.token_unit))
        most = self.split.num_nodes * (1 + self.lanes * (2 * self.sequence_parts + 3))
        if most > MOST_TASKS:
            raise ValueError(f"head_parts, sequence_parts and lanes must make at most {MOST_TASKS} tasks, got {most}.")

    @cached_property
    def split(self) -> AttentionSplit:
        """The grid."""
        return AttentionSplit(self.head_parts, self.sequence_parts, TokenOrder(self.order))

    @property
    def token_unit(self) -> int:
        """Lengths are multiples of this, so that all parts, homes and lanes are equal."""
        return 2 * self.split.num_nodes * self.lanes

    def shape(self, tokens: int) -> AttentionShape:
        """What sequences of that length are."""
        return AttentionShape(
            tokens, self.width, self.heads, self.kv_heads, self.batch, self.bytes_per_element, self.causal
        )

    def generate(self, rng: np.random.Generator, num_episodes: int) -> Workload:
        """Make `num_episodes` episodes; more episodes from the same generator extend fewer."""
        places = self.split.num_nodes
        uniforms = rng.random((num_episodes, 1 + places))
        tokens = self._whole_units(lognormal(uniforms[:, 0], self.median_tokens, self.tokens_sigma))
        longer = lognormal(uniforms[:, 1:], 1.0, self.compute_sigma)
        nominal = self._program(self._whole_units(np.array([self.median_tokens])), np.ones((1, places)))
        return self._program(tokens, longer, nominal.draft).draft.workload(
            "attention", num_episodes=num_episodes, flops_per_s=self.flops_per_s, bytes_per_s=self.bytes_per_s
        )

    def object_place(self) -> IntArray:
        """The place of each object, shape (O,): in the program's own layout it and its tasks are there."""
        return np.array(self._program(np.array([self.token_unit]), np.ones((1, self.split.num_nodes))).places)

    def _whole_units(self, tokens: FloatArray) -> IntArray:
        """The nearest lengths that all parts, homes and lanes divide."""
        units = np.clip(np.rint(tokens / self.token_unit), 1, MOST_TOKENS // self.token_unit)
        return units.astype(np.int64) * self.token_unit

    def _program(self, tokens: IntArray, longer: FloatArray, nominal: GraphDraft | None = None) -> _Program:
        """The graph for sequences of these lengths, shape (E,), in the order of a nominal one.

        Args:
            tokens: of a sequence, shape (E,).
            longer: how much longer each place computes, shape (E, places).
            nominal: the draft that says the order of tasks, if there is one.
        """
        counts = {length: SplitCount(self.shape(length), self.split) for length in set(tokens.tolist())}
        program = _Program(self, [counts[length] for length in tokens.tolist()], longer, nominal)
        program.add_all()
        return program


Pieces = list[list[int]]  # an object for each place and lane
Reads = Sequence[tuple[int, FloatArray]]


class _Program:
    """Writes down the graph; figures are arrays over episodes.

    Args:
        family: the parameters.
        counts: of each episode's sequences.
        longer: how much longer each place computes, shape (E, places).
        nominal: the draft that says the order of tasks, if there is one.
    """

    def __init__(
        self, family: SplitAttention, counts: list[SplitCount], longer: FloatArray, nominal: GraphDraft | None
    ) -> None:
        self.draft = GraphDraft(nominal)
        self.places: list[int] = []  # of each object
        self.family, self.split = family, family.split
        shape = counts[0].shape
        self.step_tokens, self.step_flops, self.sum_bytes = (
            np.array([getattr(count, name) for count in counts], np.float64)
            for name in ("step_tokens", "step_flops", "sum_bytes")
        )
        self.step_flops = self.step_flops * longer[:, :, None]
        self.home_tokens = np.array([count.home_tokens[0, 0] for count in counts], np.float64)
        self.all_query_bytes = float(shape.heads * shape.head_bytes)  # of a token, as those below
        self.query_bytes = self.all_query_bytes / self.split.head_parts
        self.all_key_bytes = float(shape.layer.num_kv_heads * shape.kv_head_bytes)
        self.key_bytes = counts[0].kv_head_counts * float(shape.kv_head_bytes)  # by head part

    def add_all(self) -> None:
        """Add the phases."""
        queries, keys = self._load() if self.split.head_parts == 1 else self._exchange()
        self._return(self._attend(queries, keys))

    def _object(self, place: int, num_bytes: FloatArray, *, kept: bool = False) -> int:
        self.places.append(place)
        return self.draft.add_object(num_bytes, kept=kept)

    def _compute(self, place: int, lane: int) -> int:
        """The worker of a lane."""
        return 2 * self.family.lanes * place + lane

    def _make(
        self,
        place: int,
        lane: int,
        num_bytes: FloatArray,
        reads: Reads = (),
        *,
        copies: bool = False,
        kept: bool = False,
    ) -> int:
        """A new object, and the task that writes it."""
        obj = self._object(place, num_bytes, kept=kept)
        worker = self._compute(place, lane) + (self.family.lanes if copies else 0)
        self.draft.add_task(worker, obj, num_bytes=num_bytes, reads=reads)
        return obj

    def _load(self) -> tuple[Pieces, Pieces]:
        """Queries, and keys and values, of each place and lane: all heads, so all that a place attends with."""
        tokens = self.home_tokens / self.family.lanes
        lanes, places = range(self.family.lanes), range(self.split.num_nodes)
        queries = [[self._make(place, lane, tokens * self.query_bytes) for lane in lanes] for place in places]
        keys = [[self._make(place, lane, tokens * self.key_bytes[0]) for lane in lanes] for place in places]
        return queries, keys

    def _exchange(self) -> tuple[Pieces, Pieces]:
        """The same, of each place's own heads, gathered from the homes of its row."""
        h, lanes = self.split.head_parts, range(self.family.lanes)
        home_bytes = self.home_tokens * (self.all_query_bytes + self.all_key_bytes)
        homes = [self._make(place, 0, home_bytes) for place in range(self.split.num_nodes)]
        queries: Pieces = []
        keys: Pieces = []
        for place in range(self.split.num_nodes):
            row = homes[place // h * h : (place // h + 1) * h]
            for pieces, token_bytes in ((queries, self.query_bytes), (keys, self.key_bytes[place % h])):
                share = self.home_tokens / self.family.lanes * token_bytes
                reads = [(home, share) for home in row]
                pieces.append([self._make(place, lane, h * share, reads) for lane in lanes])
        return queries, keys

    def _attend(self, queries: Pieces, keys: Pieces) -> Pieces:
        """The ring; sums of each place and lane."""
        h, places = self.split.head_parts, range(self.split.num_nodes)
        sums = [[self._object(place, self._sums(place)) for _ in row] for place, row in enumerate(queries)]
        for step in range(self.split.sequence_parts):
            if step > 0:
                keys = [self._pass_on(place, step, keys[place - h]) for place in places]
            for place in places:
                if keys[place]:
                    self._work(place, step, queries[place], keys[place], sums[place])
        return sums

    def _sums(self, place: int) -> FloatArray:
        """Size of a lane's sums, shape (E,)."""
        size: FloatArray = self.sum_bytes[:, place] / self.family.lanes
        return size

    def _read(self, place: int, step: int) -> FloatArray:
        """Size of a lane's keys and values in a step, shape (E,)."""
        row, column = divmod(place, self.split.head_parts)
        size: FloatArray = self.step_tokens[:, row, step] * (self.key_bytes[column] / self.family.lanes)
        return size

    def _pass_on(self, place: int, step: int, above: list[int]) -> list[int]:
        """A place's copies of what the one above had; none where it attends to nothing of that."""
        size = self._read(place, step)
        if not size.any():
            return []
        return [self._make(place, lane, size, [(piece, size)], copies=True) for lane, piece in enumerate(above)]

    def _work(self, place: int, step: int, queries: list[int], keys: list[int], sums: list[int]) -> None:
        """Every lane's queries against all keys and values of a step."""
        size, lanes = self._sums(place), self.family.lanes
        query_bytes = self.home_tokens * self.split.head_parts / lanes * self.query_bytes
        for lane, (query, obj) in enumerate(zip(queries, sums, strict=True)):
            self.draft.add_task(
                self._compute(place, lane),
                obj,
                flops=self.step_flops[:, place, step] / lanes,
                num_bytes=size if step == 0 else 2.0 * size,
                write_fraction=1.0 if step == 0 else 0.5,
                reads=[(query, query_bytes), *((piece, self._read(place, step)) for piece in keys)],
            )

    def _return(self, sums: Pieces) -> None:
        """Outputs of the heads of each place, and from them those of its home tokens."""
        h, lanes = self.split.head_parts, self.family.lanes
        share = self.home_tokens / lanes * self.query_bytes  # of a home's tokens and a place's heads
        outputs = [
            [
                self._make(place, lane, h * share, [(obj, self._sums(place))], kept=h == 1)
                for lane, obj in enumerate(row)
            ]
            for place, row in enumerate(sums)
        ]
        if h == 1:
            return
        for place in range(self.split.num_nodes):
            row = outputs[place // h * h : (place // h + 1) * h]
            for lane in range(lanes):
                self._make(place, lane, h * share, [(pieces[lane], share) for pieces in row], kept=True)

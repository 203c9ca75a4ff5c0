"""All-reduce as a schedule of sends: what moves when, that it gives the sum, and how long it takes on real links.

Every one of p ranks has a vector cut into C chunks, and ends with the sum of all vectors. A schedule says which
chunks each rank sends to which at every step; sends of one step happen at once. `collectives.py` has the same
collectives in closed form.

Dimension key: K sends, p ranks, C chunks, T steps, N nodes.

References:
    [1] The chapter, section 16.1.2: flat ring and hierarchical all-reduce.
    [2] P. Patarasuk and X. Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009.
    [3] R. Rabenseifner, "Optimization of collective reduction operations", 2004: recursive halving and doubling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from numa_rl.communication.collectives import require_count
from numa_rl.communication.steps import shared_step_s
from numa_rl.communication.transfers import require_node, require_not_negative, require_positive
from numa_rl.topology import FloatArray, IntArray, Topology

# step, source rank, target rank, first chunk, number of chunks, whether the target adds them
Send = tuple[int, int, int, int, int, bool]


@dataclass(frozen=True, eq=False)
class Schedule:
    """Sends in the order of their steps; those of one step happen at once.

    Attributes:
        num_ranks: p.
        num_chunks: chunks that every vector is cut into, C.
        step: when each send happens, from 0 and never falling, shape (K,).
        source: the rank that sends, shape (K,).
        target: the rank that receives, shape (K,).
        first_chunk: the first chunk sent, shape (K,).
        chunks: how many chunks are sent, shape (K,).
        reduce: whether the target adds them to its own, or else replaces its own, shape (K,).

    Raises:
        ValueError: shapes differ, an entry is outside its range, a rank sends to itself, or a rank receives one
            chunk twice in a step.
    """

    num_ranks: int
    num_chunks: int
    step: IntArray
    source: IntArray
    target: IntArray
    first_chunk: IntArray
    chunks: IntArray
    reduce: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        """Convert and freeze the arrays; check shapes and ranges."""
        require_count(num_ranks=self.num_ranks, num_chunks=self.num_chunks)
        for name in ("step", "source", "target", "first_chunk", "chunks", "reduce"):
            array = np.array(getattr(self, name), bool if name == "reduce" else np.int64)
            if array.shape != (len(self.step),):
                raise ValueError(f"{name} must have shape ({len(self.step)},) to match step, got {array.shape}.")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        self._require("step", np.diff(self.step, prepend=0) >= 0, "at least 0 and never fall")
        for name in ("source", "target"):
            rank = getattr(self, name)
            self._require(name, (rank >= 0) & (rank < self.num_ranks), f"a rank in 0..{self.num_ranks - 1}")
        self._require("target", self.target != self.source, "another rank than the source")
        self._require("first_chunk", self.first_chunk >= 0, ">= 0")
        self._require("chunks", self.chunks >= 1, ">= 1")
        ends_inside = self.first_chunk + self.chunks <= self.num_chunks
        self._require("chunks", ends_inside, f"such that first_chunk + chunks <= {self.num_chunks}")
        send = np.repeat(np.arange(len(self)), self.chunks)
        chunk = np.arange(len(send)) - np.repeat(np.cumsum(self.chunks) - self.chunks - self.first_chunk, self.chunks)
        received = (self.step[send] * self.num_ranks + self.target[send]) * self.num_chunks + chunk
        _, once = np.unique(received, return_index=True)
        if len(once) < len(send):
            again = np.setdiff1d(np.arange(len(send)), once)[0]
            raise ValueError(
                f"a rank must receive a chunk once in a step, got chunk {chunk[again]} twice at rank "
                f"{self.target[send[again]]}, step {self.step[send[again]]}."
            )

    def __len__(self) -> int:
        """Number of sends K."""
        return len(self.step)

    def _require(self, name: str, good: npt.NDArray[np.bool_], rule: str) -> None:
        """Raise ValueError naming the first entry of array `name` that is not `good`."""
        if not good.all():
            index = int(np.flatnonzero(~good)[0])
            raise ValueError(f"{name}[{index}] must be {rule}, got {getattr(self, name)[index]}.")

    @property
    def num_steps(self) -> int:
        """Number of steps T."""
        return int(self.step[-1]) + 1 if len(self) else 0

    def send_bytes(self, num_bytes: float) -> FloatArray:
        """Bytes that each send moves, of vectors of `num_bytes`, shape (K,)."""
        return self.chunks * num_bytes / self.num_chunks

    def sent_bytes(self, num_bytes: float) -> FloatArray:
        """Bytes that each rank sends in all, of vectors of `num_bytes`, shape (p,)."""
        sent = np.zeros(self.num_ranks)
        np.add.at(sent, self.source, self.send_bytes(num_bytes))
        return sent


def _schedule(num_ranks: int, num_chunks: int, sends: Sequence[Send]) -> Schedule:
    """A schedule of sends in any order."""
    step, source, target, first_chunk, chunks, reduce = np.array(sorted(sends), np.int64).reshape(-1, 6).T
    return Schedule(num_ranks, num_chunks, step, source, target, first_chunk, chunks, reduce.astype(bool))


def _round_trip(ranks: Sequence[int], first: int, size: int, start: int, reduce: bool) -> Iterator[Send]:
    """The q - 1 steps in which blocks of `size` chunks go round a ring of q ranks, from step `start` on.

    Reducing, the rank at place i ends with the sum of block (i + 1) mod q; else it starts with that block, and
    every rank ends with all of them.
    """
    q = len(ranks)
    for step in range(q - 1):
        for place in range(q):
            block = (place - step + (0 if reduce else 1)) % q
            yield start + step, ranks[place], ranks[(place + 1) % q], first + block * size, size, reduce


def ring(num_ranks: int) -> Schedule:
    """The flat ring [2]: rank i only ever sends to rank i + 1, one chunk of p in each of 2 (p - 1) steps.

    Raises:
        ValueError: `num_ranks` is not a whole number of at least 1.
    """
    require_count(num_ranks=num_ranks)
    return hierarchical([range(int(num_ranks))])


def hierarchical(groups: Sequence[Sequence[int]]) -> Schedule:
    """The chapter's three steps [1], for G groups of q ranks and G q chunks.

    Reduce-scatter in a ring within each group, which leaves each rank with the group's sum of one block;
    all-reduce of each block in a ring across the groups, among the ranks at one place; all-gather in a ring within
    each group.

    Args:
        groups: the ranks of each group, in the order of its ring; together every rank from 0 on, once.

    Raises:
        ValueError: groups of unequal size (their blocks would not match), none, or ranks that are not 0 to p - 1.
    """
    size, num_groups = (len(groups[0]) if groups else 0), len(groups)
    if not size or any(len(group) != size for group in groups):
        raise ValueError(f"groups must be one or more of equal size >= 1, got sizes {[len(g) for g in groups]}.")
    ranks = sorted(rank for group in groups for rank in group)
    if ranks != list(range(len(ranks))):
        raise ValueError(f"groups must hold each rank of 0..{len(ranks) - 1} once, got {ranks}.")
    across, back = size - 1, size - 1 + 2 * (num_groups - 1)  # first steps
    sends: list[Send] = []
    for group in groups:
        sends += _round_trip(group, 0, num_groups, 0, reduce=True)
        sends += _round_trip(group, 0, num_groups, back, reduce=False)
    for place in range(size):
        first = (place + 1) % size * num_groups  # of the block that ranks at this place have summed
        peers = [group[place] for group in groups]
        sends += _round_trip(peers, first, 1, across, reduce=True)
        sends += _round_trip(peers, first, 1, across + num_groups - 1, reduce=False)
    return _schedule(len(ranks), len(ranks), sends)


def halving_doubling(num_ranks: int) -> Schedule:
    """Recursive halving and doubling [3] over q ranks, q being the largest power of two up to p, and q chunks.

    Each of the p - q ranks beyond first hands its vector to rank i - q, and gets the sum from it at the end.

    Raises:
        ValueError: `num_ranks` is not a whole number of at least 1.
    """
    require_count(num_ranks=num_ranks)
    num_ranks = int(num_ranks)
    q = 1 << (num_ranks.bit_length() - 1)
    extra = range(q, num_ranks)
    sends: list[Send] = [(0, rank, rank - q, 0, q, True) for rank in extra]
    step = 1 if extra else 0
    distances = [q >> round_ for round_ in range(1, q.bit_length())]  # q / 2, q / 4, ..., 1
    for distance in distances:  # the partner's half of the chunks that both still work on
        for rank in range(q):
            sends.append((step, rank, rank ^ distance, (rank ^ distance) // distance * distance, distance, True))
        step += 1
    for distance in distances[::-1]:  # all chunks whose sums the rank has
        for rank in range(q):
            sends.append((step, rank, rank ^ distance, rank // distance * distance, distance, False))
        step += 1
    sends += [(step, rank - q, rank, 0, q, False) for rank in extra]
    return _schedule(num_ranks, q, sends)


def run(schedule: Schedule, data: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Execute a schedule: every send of a step reads what was there before the step.

    Args:
        schedule: what to send.
        data: the vector of each rank, shape (p, any length); chunk i is elements i n // C up to (i + 1) n // C of n.

    Returns:
        What each rank ends with, in the shape and dtype of `data`.

    Raises:
        ValueError: the shape does not fit the schedule, or the elements are not numbers.
    """
    data = np.array(data)
    if data.ndim != 2 or len(data) != schedule.num_ranks:
        raise ValueError(f"data must have shape ({schedule.num_ranks}, any), one row for each rank, got {data.shape}.")
    if data.dtype.kind not in "iufc":
        raise ValueError(f"data must be numbers, got dtype {data.dtype}.")
    bounds = np.arange(schedule.num_chunks + 1) * data.shape[1] // schedule.num_chunks
    first, last = bounds[schedule.first_chunk], bounds[schedule.first_chunk + schedule.chunks]
    for step in range(schedule.num_steps):
        sends = range(*np.searchsorted(schedule.step, [step, step + 1]))
        moved = [data[schedule.source[k], first[k] : last[k]].copy() for k in sends]
        for k, values in zip(sends, moved, strict=True):
            place = data[schedule.target[k], first[k] : last[k]]
            place[...] = place + values if schedule.reduce[k] else values
    return data


def step_s(
    schedule: Schedule,
    topology: Topology,
    placement: npt.ArrayLike,
    num_bytes: float,
    *,
    message_bytes: float | None = None,
    overhead_s: float = 0.0,
) -> FloatArray:
    """Seconds of each step on a machine, shape (T,).

    What sends of a step share is told in `shared_step_s`; each pays the latency of its messages. Within a node a send
    is a copy at local bandwidth and latency; adding numbers up takes no time.

    Args:
        schedule: what is sent.
        topology: the machine; nothing else runs on it.
        placement: the node of each rank, shape (p,).
        num_bytes: size of each rank's vector.
        message_bytes: the largest message; a send is cut into as many as it needs, and each pays the latency. Any
            send is one message when None.
        overhead_s: what software adds to the latency of each message.

    Raises:
        ValueError: ranks without a node or a node that the machine does not have, or a figure outside its range.
    """
    require_not_negative(num_bytes=num_bytes, overhead_s=overhead_s)
    nodes = _placed(placement, schedule, topology)
    send_bytes = schedule.send_bytes(num_bytes)
    messages = np.ones(len(schedule))
    if message_bytes is not None:
        require_positive(message_bytes=message_bytes)
        messages = np.maximum(np.ceil(send_bytes / message_bytes), 1.0)
    source, target = nodes[schedule.source], nodes[schedule.target]
    startup_s = messages * (topology.latency_s[target, source] + overhead_s)
    return shared_step_s(topology, schedule.num_steps, schedule.step, source, target, send_bytes, startup_s)


def schedule_s(
    schedule: Schedule,
    topology: Topology,
    placement: npt.ArrayLike,
    num_bytes: float,
    *,
    message_bytes: float | None = None,
    overhead_s: float = 0.0,
) -> float:
    """Seconds of the whole schedule on a machine: its steps, one after another. Arguments are those of `step_s`."""
    steps = step_s(schedule, topology, placement, num_bytes, message_bytes=message_bytes, overhead_s=overhead_s)
    return float(steps.sum())


def _placed(placement: npt.ArrayLike, schedule: Schedule, topology: Topology) -> IntArray:
    """The node of each rank; raises ValueError."""
    nodes = np.asarray(placement)
    if nodes.shape != (schedule.num_ranks,):
        raise ValueError(f"placement must have shape ({schedule.num_ranks},), a node for each rank, got {nodes.shape}.")
    for rank, node in enumerate(nodes.tolist()):
        require_node(topology, **{f"placement[{rank}]": node})
    return nodes.astype(np.int64)

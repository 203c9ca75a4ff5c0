"""Schedules of pipelines: what each stage does when, how long the stages stand idle, and what they must keep.

A model is cut into p stages and a batch into m micro-batches. A stage's forward pass of a micro-batch waits for that of
the stage before; its backward pass waits for its own forward pass and for the backward pass of the stage after. In
interleaved schedules the model is cut into p v pieces, and stage s holds the v pieces s, p + s, 2 p + s, ...: its
chunks. Otherwise v is 1.

Dimension key: p stages, m micro-batches, v chunks of a stage, n = 2 p m v operations.

**Two bubbles.** With equal pieces and free communication the stages stand idle for (p - 1) (f + b) / v at each batch, f
and b being a stage's forward and backward time of a micro-batch. Papers divide this by the time that work takes,
m (f + b), and get (p - 1) / (v m) [2]: by how much the batch takes longer, here `bubble_over_ideal`. Divided by the
whole time it is (p - 1) / (v m + p - 1): the share of time in which stages are idle, here `bubble_fraction`. So v
chunks divide the first by v, and the second by less.

References:
    [1] The chapter, section 16.3.4: pipelines and the 1F1B schedule.
    [2] D. Narayanan et al., "Efficient large-scale language model training on GPU clusters using Megatron-LM", SC 2021,
        section 2.2: the bubbles, and the interleaved schedule.
    [3] Y. Huang et al., "GPipe: efficient training of giant neural networks using pipeline parallelism", NeurIPS 2019,
        figure 2c: all forward passes, then the backward passes from the last micro-batch to the first.
    [4] D. Narayanan et al., "Memory-efficient pipeline-parallel DNN training", ICML 2021: 1F1B with a flush.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from numa_rl.communication.collectives import require_count
from numa_rl.topology import FloatArray, IntArray
from numa_rl.workloads.parameters import MOST_TASKS
from numa_rl.workloads.task_graph import earliest_start

GPIPE, ONE_F_ONE_B, INTERLEAVED = "gpipe", "1f1b", "interleaved"
SCHEDULES = (GPIPE, ONE_F_ONE_B, INTERLEAVED)


@dataclass(frozen=True, eq=False)
class Operations:
    """What the stages do for one batch, in an order in which nothing comes before what it waits for.

    Each stage runs its own operations one after another, in this order.

    Attributes:
        num_stages: p.
        num_micro_batches: m.
        num_chunks: v.
        stage: who runs each operation, shape (n,).
        micro_batch: of which micro-batch, shape (n,).
        chunk: of which of the stage's chunks, shape (n,).
        backward: whether it is a backward pass, shape (n,).
    """

    num_stages: int
    num_micro_batches: int
    num_chunks: int
    stage: IntArray
    micro_batch: IntArray
    chunk: IntArray
    backward: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Number of operations n."""
        return len(self.stage)

    @property
    def piece(self) -> IntArray:
        """Which of the model's p v pieces each operation is of, in the order of its layers, shape (n,)."""
        return self.chunk * self.num_stages + self.stage

    @cached_property
    def waits(self) -> IntArray:
        """What waits for whose result: pairs (before, after), shape (m (3 p v - 2), 2).

        A stage's own order comes on top of this.
        """
        pieces = self.num_stages * self.num_chunks
        index = np.empty((2, pieces, self.num_micro_batches), np.int64)
        index[self.backward.astype(np.int64), self.piece, self.micro_batch] = np.arange(len(self))
        forward, backward = index
        edges = (forward[:-1], forward[1:]), (backward[1:], backward[:-1]), (forward, backward)
        return np.concatenate([np.stack([before.ravel(), after.ravel()], axis=1) for before, after in edges])

    @cached_property
    def turns(self) -> IntArray:
        """What follows what on each stage: pairs (before, after), shape (n - p, 2)."""
        by_stage = np.argsort(self.stage, kind="stable")
        pairs = np.stack([by_stage[:-1], by_stage[1:]], axis=1)
        return np.asarray(pairs[self.stage[pairs[:, 0]] == self.stage[pairs[:, 1]]])


@dataclass(frozen=True, eq=False)
class Timeline:
    """When each operation runs.

    Attributes:
        operations: what runs.
        start_s: when it starts, shape (n,).
        end_s: when it ends, shape (n,).
    """

    operations: Operations
    start_s: FloatArray
    end_s: FloatArray

    @property
    def makespan_s(self) -> float:
        """When the last one ends."""
        return float(self.end_s.max())

    @property
    def busy_s(self) -> FloatArray:
        """How long each stage works, shape (p,)."""
        lasts = self.end_s - self.start_s
        return np.bincount(self.operations.stage, lasts, self.operations.num_stages).astype(np.float64)

    @property
    def bubble_fraction(self) -> float:
        """Share of the time, over all stages, in which they are idle; 0 where nothing takes time."""
        return 1.0 - float(self.busy_s.mean()) / self.makespan_s if self.makespan_s > 0 else 0.0


def operations(schedule: str, num_stages: int, num_micro_batches: int, num_chunks: int = 1) -> Operations:
    """The operations of a schedule, in the order in which they start where a backward pass takes two forward passes.

    - `gpipe`: all forward passes, then all backward passes, the last micro-batch first [3].
    - `1f1b`: stage s runs p - s - 1 forward passes, then one forward and one backward pass in turn, then the
      backward passes that are left [4].
    - `interleaved`: the same over chunks. Micro-batches go in groups of p through all chunks, and stage s first runs
      2 (p - s - 1) + (v - 1) p forward passes [2].

    Args:
        schedule: one of `SCHEDULES`.
        num_stages: p.
        num_micro_batches: m.
        num_chunks: v, 2 or more for the interleaved schedule, else 1.

    Raises:
        ValueError: an unknown schedule, a count below 1 or too many operations, chunks that the schedule does not
            have, or micro-batches that interleaved stages do not divide; the message says which numbers would do.
    """
    p, m, v = _require(schedule, num_stages, num_micro_batches, num_chunks)
    if 2 * p * m * v > MOST_TASKS:
        raise ValueError(f"a schedule must have at most {MOST_TASKS} operations, 2 p m v, got {2 * p * m * v}.")
    stage = np.repeat(np.arange(p), 2 * m * v)
    per_stage = [_stage_order(schedule, int(first), p, m, v) for first in _warm_up(schedule, p, m, v)]
    backward, chunk, micro_batch = (np.concatenate([order[row] for order in per_stage]) for row in range(3))
    by_stage = Operations(p, m, v, stage, micro_batch, chunk, backward.astype(bool))
    started = timeline(by_stage, 1.0, 2.0).start_s  # nothing starts together with what it waits for
    order = np.lexsort((stage, started))
    return Operations(p, m, v, stage[order], micro_batch[order], chunk[order], by_stage.backward[order])


def timeline(
    operations: Operations, forward_s: npt.ArrayLike, backward_s: npt.ArrayLike, communication_s: npt.ArrayLike = 0.0
) -> Timeline:
    """When each operation runs, if each starts as soon as its stage is free and what it needs has arrived.

    Results travel while stages work, and as many at once as there are.

    Args:
        operations: of all stages.
        forward_s: of each piece of the model and one micro-batch, shape (p v,), or one for all.
        backward_s: likewise.
        communication_s: from each piece to the next and back, shape (p v - 1,), or one for all.

    Raises:
        ValueError: a shape does not fit, or a time is negative or not finite.
    """
    pieces = operations.num_stages * operations.num_chunks
    forward, backward = _of_each(pieces, forward_s=forward_s), _of_each(pieces, backward_s=backward_s)
    lasts = np.where(operations.backward, backward[operations.piece], forward[operations.piece])
    between = operations.piece[operations.waits]
    # A piece's own backward pass waits for no message; padded, as the last piece has none after it.
    messages = np.append(_of_each(pieces - 1, communication_s=communication_s), 0.0)
    travels = np.where(between[:, 0] == between[:, 1], 0.0, messages[between.min(axis=1)])
    if operations.num_stages == 1:
        travels[:] = 0.0
    passing = np.concatenate([travels, np.zeros(len(operations.turns))])
    start_s = earliest_start(lasts, np.concatenate([operations.waits, operations.turns]), passing)
    return Timeline(operations, start_s, start_s + lasts)


def bubble_fraction(schedule: str, num_stages: int, num_micro_batches: int, num_chunks: int = 1) -> float:
    """Share of the whole time in which stages are idle: (p - 1) / (v m + p - 1).

    For equal pieces and free communication; GPipe and 1F1B differ in memory, not in time. Arguments and errors are
    those of `operations`, of any number of them.
    """
    p, m, v = _require(schedule, num_stages, num_micro_batches, num_chunks)
    return (p - 1) / (v * m + p - 1)


def bubble_over_ideal(schedule: str, num_stages: int, num_micro_batches: int, num_chunks: int = 1) -> float:
    """Idle time over the time that work takes: (p - 1) / (v m) [2]. As for `bubble_fraction`."""
    p, m, v = _require(schedule, num_stages, num_micro_batches, num_chunks)
    return (p - 1) / (v * m)


def peak_activations(schedule: str, num_stages: int, num_micro_batches: int, num_chunks: int = 1) -> FloatArray:
    """Micro-batches whose activations each stage keeps at once, in activations of a whole stage, shape (p,).

    m for GPipe; min(p - s, m) for 1F1B at stage s; min(2 (p - s - 1) + (v - 1) p + 1, v m) / v interleaved, where what
    is kept is of a chunk, 1 / v of a stage. Arguments and errors are those of `bubble_fraction`.
    """
    p, m, v = _require(schedule, num_stages, num_micro_batches, num_chunks)
    return np.asarray(np.minimum(_warm_up(schedule, p, m, v) + 1, m * v) / v)


def live_activations(operations: Operations) -> IntArray:
    """Most pairs of a micro-batch and a chunk that each stage keeps at once, counted in its order, shape (p,).

    A forward pass makes one, and the backward pass frees it.
    """
    by_stage = np.argsort(operations.stage, kind="stable")
    change = np.where(operations.backward[by_stage], -1, 1).reshape(operations.num_stages, -1)
    return np.asarray(np.cumsum(change, axis=1).max(axis=1))


def _require(schedule: str, num_stages: int, num_micro_batches: int, num_chunks: int) -> tuple[int, int, int]:
    """p, m and v; raises ValueError."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}.")
    require_count(num_stages=num_stages, num_micro_batches=num_micro_batches, num_chunks=num_chunks)
    p, m, v = int(num_stages), int(num_micro_batches), int(num_chunks)
    if schedule != INTERLEAVED and v != 1:
        raise ValueError(f"num_chunks must be 1 for {schedule}, got {v}; the {INTERLEAVED} schedule has chunks.")
    if schedule == INTERLEAVED and v == 1:
        raise ValueError(f"num_chunks must be >= 2 for {INTERLEAVED}, got 1; {ONE_F_ONE_B} is the schedule with one.")
    if schedule == INTERLEAVED and m % p:
        near = f"{m // p * p} or {(m // p + 1) * p}" if m > p else f"{p}"
        raise ValueError(
            f"num_micro_batches must be a multiple of num_stages ({p}) for {INTERLEAVED}, got {m}; {near} would do."
        )
    return p, m, v


def _warm_up(schedule: str, p: int, m: int, v: int) -> IntArray:
    """Forward passes of each stage before its first backward pass, without that of the turn, shape (p,)."""
    stages_after = p - 1 - np.arange(p)
    if schedule == GPIPE:
        return np.full(p, m)
    if schedule == ONE_F_ONE_B:
        return np.minimum(stages_after, m)
    return np.minimum(2 * stages_after + (v - 1) * p, m * v)


def _stage_order(schedule: str, first: int, p: int, m: int, v: int) -> IntArray:
    """One stage's operations: backward or not, chunk and micro-batch, shape (3, 2 m v).

    The `first` forward passes come before turns; turn k is forward pass first + k and backward pass k.
    """
    each = np.arange(m * v)
    group, place = np.divmod(each, p * v)  # of p micro-batches, which go through all chunks
    chunk, micro_batch = place // p, group * p + place % p
    if v == 1:
        chunk, micro_batch = np.zeros_like(each), each
    forward = np.stack([np.zeros_like(each), chunk, micro_batch])
    backward = np.stack([np.ones_like(each), v - 1 - chunk, micro_batch[::-1] if schedule == GPIPE else micro_batch])
    forward_at = np.where(each < first, each, 2 * each - first)
    backward_at = np.where(each < m * v - first, first + 2 * each + 1, m * v + each)
    return np.concatenate([forward, backward], axis=1)[:, np.argsort(np.concatenate([forward_at, backward_at]))]


def _of_each(count: int, **times: npt.ArrayLike) -> FloatArray:
    """A time for each of so many; raises ValueError naming it."""
    ((name, values),) = times.items()
    array = np.asarray(values, np.float64)
    if array.shape not in ((), (count,)):
        raise ValueError(f"{name} must have shape ({count},) or be one number, got shape {array.shape}.")
    if not (np.isfinite(array) & (array >= 0)).all():
        bad = array[~(np.isfinite(array) & (array >= 0))]
        raise ValueError(f"{name} must be finite and >= 0, got {bad.flat[0]}.")
    return np.broadcast_to(array, count)

"""Data-parallel training: every rank computes gradients, an all-reduce sums them, and every rank updates its weights.

Dimension key: E episodes, R training steps, p ranks, C chunks, M sends of one chunk in a step, t tasks of a step,
T tasks, O objects, P inputs.

A rank is a replica of the weights, an object of its own that a loader task creates at time 0. Training steps follow
each other, and a step has t = p C + M + p tasks:

    1. p C computations: a rank's share of one chunk's gradients, which reads as much of its replica;
    2. M sends, in the order of the schedule's steps: a task for each chunk sent, of `communication/schedules.py`;
    3. p updates: a rank adds the sum, all C chunks, to its replica, and its gradients are freed.

**A gradient is C objects, one for each chunk**, because a task waits for whoever last wrote the objects it uses, and a
rank does not wait for all that happens to its vector: in a ring it passes on one chunk while it receives another. Were
the vector one object, each send would wait for the one before it in the order of tasks, and p sends that happen at
once would become a chain of p.

**The order of tasks says who waits for whom**, so it must not matter in which order the sends of a schedule's step
come, for they all read what was there before the step. It does not, because in none of these schedules a step
writes what it also reads: ranks that exchange halves each send the half that they do not keep. Nor does a task ever
overwrite what an earlier one may still be reading: a chunk that a rank has passed on comes back only as the sum, and
whoever wrote the sum has waited for everyone who added to it.

The tasks are those of a `GraphDraft` with an all-reduce in it, in another order: the program's own, since which replica
is which rank differs between episodes, and a draft has one structure for all.

References:
    [1] The chapter, section 16.1.2: flat ring and hierarchical all-reduce.
    [2] J. Kaplan et al., "Scaling laws for neural language models", 2020, section 2.1: 6 flop per parameter and token
        in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from numa_rl.communication.collectives import require_count
from numa_rl.communication.schedules import Schedule, halving_doubling, hierarchical, ring
from numa_rl.workloads.graph_draft import REDUCE_FLOPS
from numa_rl.workloads.parameters import require
from numa_rl.workloads.processes import FloatArray, IntArray, lognormal
from numa_rl.workloads.workload import NEVER, NO_OBJECT, Workload

ALGORITHMS = ("ring", "hierarchical", "halving-doubling")

UPDATE_FLOPS = 2.0  # for each element: a step along the gradient, w - rate * g


@dataclass(frozen=True)
class AllReduce:
    """Training steps of replicas that sum their gradients.

    Which replica is which rank of the schedule is drawn for each episode, and no task tells it before the first send:
    neighbours on the ring are for the scheduler to find. All episodes have the same number of tasks,
    p + R (p C + M + p), since the algorithm and the counts are fixed; only sizes, times and the order of ranks are
    random. Gradients differ in size from step to step, as where a batch touches some of the weights; a replica is as
    large as its largest gradient.

    Attributes:
        algorithm: how gradients are summed: "ring", "hierarchical" or "halving-doubling" [1].
        num_ranks: replicas, p.
        group_ranks: ranks of one group; without effect unless the algorithm is hierarchical.
        num_steps: training steps of an episode, R.
        median_gradient_bytes: median size of a replica's gradient in a step, lognormal; chunks are whole elements.
        gradient_bytes_sigma: standard deviation of its logarithm.
        bytes_per_element: size of a number, 4 in single precision.
        flops_per_element: median arithmetic that gives one element of the gradient, lognormal over ranks and steps; 6
            for each token of a rank's batch [2].
        compute_sigma: standard deviation of its logarithm: how much some ranks keep others waiting.
        mean_gap_s: mean of the exponential time from one step's earliest start to the next one's. A step also waits
            for the updates before it, so unless gaps are longer than steps they count for little.

    Raises:
        ValueError: a parameter is out of range.
    """

    algorithm: str = "ring"
    num_ranks: int = 8
    group_ranks: int = 4
    num_steps: int = 3
    median_gradient_bytes: float = 1e9
    gradient_bytes_sigma: float = 0.5
    bytes_per_element: int = 4
    flops_per_element: float = 24.0
    compute_sigma: float = 0.1
    mean_gap_s: float = 0.2

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {self.algorithm!r}.")
        require_count(
            num_ranks=self.num_ranks,
            group_ranks=self.group_ranks,
            num_steps=self.num_steps,
            bytes_per_element=self.bytes_per_element,
        )
        require(self, "median_gradient_bytes", "> 0", lambda value: value > 0)
        not_negative = "gradient_bytes_sigma flops_per_element compute_sigma mean_gap_s"
        require(self, not_negative, ">= 0", lambda value: value >= 0)
        if self.algorithm == "hierarchical" and self.num_ranks % self.group_ranks:
            raise ValueError(f"group_ranks must divide num_ranks ({self.num_ranks}), got {self.group_ranks}.")

    @cached_property
    def schedule(self) -> Schedule:
        """Who sends what to whom, by ranks of the schedule."""
        if self.algorithm == "ring":
            return ring(self.num_ranks)
        if self.algorithm == "halving-doubling":
            return halving_doubling(self.num_ranks)
        first_ranks = range(0, self.num_ranks, self.group_ranks)
        return hierarchical([range(first, first + self.group_ranks) for first in first_ranks])

    def generate(self, rng: np.random.Generator, num_episodes: int) -> Workload:
        """Make `num_episodes` episodes; more episodes from the same generator extend fewer."""
        r, p = self.num_steps, self.num_ranks
        uniforms = rng.random((num_episodes, r + r + r * p + p))
        size, gap, spread, place = np.split(uniforms, [r, 2 * r, 2 * r + r * p], axis=1)
        gradient_bytes = lognormal(size, self.median_gradient_bytes, self.gradient_bytes_sigma)
        least_bytes = self.schedule.num_chunks * self.bytes_per_element
        return self._workload(
            chunk_elements=np.maximum(np.rint(gradient_bytes / least_bytes), 1.0),
            start_s=np.cumsum(-np.log1p(-gap) * self.mean_gap_s, axis=1),
            compute_flops=lognormal(spread, self.flops_per_element, self.compute_sigma).reshape(num_episodes, r, p),
            replica=np.argsort(place, axis=1),
        )

    def _workload(
        self, chunk_elements: FloatArray, start_s: FloatArray, compute_flops: FloatArray, replica: IntArray
    ) -> Workload:
        """The tasks: loaders, then step after step.

        Args:
            chunk_elements: elements of a chunk in each step, shape (E, R).
            start_s: earliest start of each step, shape (E, R).
            compute_flops: arithmetic per element of each replica in each step, shape (E, R, p).
            replica: which replica is each rank of the schedule, shape (E, p).
        """
        (e, r), p, c = chunk_elements.shape, self.num_ranks, self.schedule.num_chunks
        tasks = _StepTasks.of(self.schedule)
        chunk_bytes = chunk_elements * self.bytes_per_element
        replica_bytes = c * chunk_bytes.max(axis=1)
        own, inputs = tasks.objects(replica, r)
        flops = np.broadcast_to(tasks.flops, own.shape).copy()
        flops[:, :, : p * c] = np.repeat(compute_flops, c, axis=2)
        object_bytes = np.repeat(chunk_bytes[:, :, None], own.shape[2], axis=2)
        object_bytes[:, :, -p:] = replica_bytes[:, None, None]
        update = own.shape[2] * (np.arange(r)[:, None] + 1) + np.arange(p)  # which task that is, shape (R, p)
        freed_after = np.concatenate([np.full(p, NEVER), np.repeat(update, c)])

        def with_loaders(loader: npt.ArrayLike, steps: npt.NDArray[Any]) -> npt.NDArray[Any]:
            steps = steps.reshape(e, r * own.shape[2], *steps.shape[3:])
            return np.concatenate([np.broadcast_to(loader, (e, p, *steps.shape[2:])), steps], axis=1)

        return Workload(
            name="all-reduce",
            arrival_s=with_loaders(0.0, np.repeat(start_s[:, :, None], own.shape[2], axis=2)),
            flops=with_loaders(0.0, flops * chunk_elements[:, :, None]),
            bytes=with_loaders(replica_bytes[:, None], tasks.moved_chunks * chunk_bytes[:, :, None]),
            write_fraction=with_loaders(1.0, np.broadcast_to(tasks.write_fraction, own.shape)),
            object=with_loaders(np.arange(p), own),
            object_bytes=with_loaders(replica_bytes[:, None], object_bytes),
            inputs=with_loaders(NO_OBJECT, inputs),
            input_bytes=with_loaders(0.0, (inputs != NO_OBJECT) * chunk_bytes[:, :, None, None]),
            freed_after=np.tile(freed_after, (e, 1)),
            follows_inputs=True,
        )


@dataclass(frozen=True)
class _StepTasks:
    """The tasks of one training step, the same in every step and episode: p C computations, M sends, p updates.

    Attributes:
        num_ranks: p.
        num_chunks: C.
        source: rank of the schedule that each send reads from, shape (M,).
        target: rank whose chunk it updates, shape (M,).
        chunk: which chunk that is, shape (M,).
        flops: arithmetic for each element of a chunk, 0 for computations, whose arithmetic is random, shape (t,).
        moved_chunks: what each task moves between its core and its own object, in chunks, shape (t,).
        write_fraction: share of that which is written, shape (t,).
    """

    num_ranks: int
    num_chunks: int
    source: IntArray
    target: IntArray
    chunk: IntArray
    flops: FloatArray
    moved_chunks: FloatArray
    write_fraction: FloatArray

    @classmethod
    def of(cls, schedule: Schedule) -> _StepTasks:
        """The tasks that a schedule needs: a task for each chunk of each send, in the schedule's order."""
        p, c = schedule.num_ranks, schedule.num_chunks
        sends = [
            (int(source), int(target), chunk, bool(reduce))
            for source, target, first, chunks, reduce in zip(
                schedule.source, schedule.target, schedule.first_chunk, schedule.chunks, schedule.reduce, strict=True
            )
            for chunk in range(int(first), int(first + chunks))
        ]
        source, target, chunk, reduce = np.array(sends, np.int64).reshape(-1, 4).T

        def of_step(compute: float, copy: float, reduction: float, update: float) -> FloatArray:
            parts = np.full(p * c, compute), np.where(reduce, reduction, copy), np.full(p, update)
            return np.concatenate(parts)

        return cls(
            num_ranks=p,
            num_chunks=c,
            source=source,
            target=target,
            chunk=chunk,
            flops=of_step(compute=0.0, copy=0.0, reduction=REDUCE_FLOPS, update=UPDATE_FLOPS * c),
            moved_chunks=of_step(compute=1.0, copy=1.0, reduction=2.0, update=2.0 * c),
            write_fraction=of_step(compute=1.0, copy=1.0, reduction=0.5, update=0.5),
        )

    def objects(self, replica: IntArray, num_steps: int) -> tuple[IntArray, IntArray]:
        """The object that each task owns and those it reads, shapes (E, R, t) and (E, R, t, C).

        Replicas are objects 0 to p - 1. Gradients follow, those of each step anew: step by step, replica by replica,
        chunk by chunk.

        Args:
            replica: which replica is each rank of the schedule, shape (E, p).
            num_steps: R.
        """
        p, c, e = self.num_ranks, self.num_chunks, len(replica)
        first = p + p * c * np.arange(num_steps)[:, None]  # gradient of each step

        def sent(rank: IntArray) -> IntArray:
            """The chunks that are sent, of these ranks, shape (E, R, M)."""
            return np.asarray(first + (replica[:, rank] * c + self.chunk)[:, None])

        def everywhere(of_step: npt.ArrayLike, count: int) -> IntArray:
            return np.broadcast_to(np.asarray(of_step, np.int64), (e, num_steps, count))

        computed, updated = everywhere(first + np.arange(p * c), p * c), everywhere(np.arange(p), p)
        own = np.concatenate([computed, sent(self.target), updated], axis=2)
        inputs = np.full((*own.shape, c), NO_OBJECT)
        inputs[:, :, : p * c, 0] = np.repeat(np.arange(p), c)
        inputs[:, :, p * c : -p, 0] = sent(self.source)
        inputs[:, :, -p:] = computed.reshape(e, num_steps, p, c)
        return own, inputs

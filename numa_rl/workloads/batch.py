"""Batch jobs of a parallel machine, on a NUMA server: recorded ones, or drawn from a model of them.

Dimension key: J jobs, T tasks, O objects. A job has ranks and steps.

A job of p processors has min(p, `max_ranks`) ranks; the others are left out, and what a rank does is what a processor
did. A rank has an object, its memory, and its run time is cut into steps of `recorded_step_s`, at most `max_steps`. A
task is one step of one rank: it computes on its object and reads some of the objects of the ranks beside it.

**A step goes in two halves, as red-black relaxation does**: even ranks first, which read what odd ranks wrote in the
step before, then odd ranks, which read what even ranks have just written. Were all ranks to read their neighbours' in
one go, each would wait for the one before it, and a step of parallel ranks would become a chain.

Times are scaled: a whole step of a processor is `step_flops` here, and `step_s` at the pace that jobs keep when the
machine serves them well. Tasks come at that pace, and wait where the machine is slower.

References:
    [1] S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for multicore
        architectures", Communications of the ACM 52(4), 2009: 0.33 to 0.5 flop per byte for stencils.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from numa_rl.workloads.lublin import lublin_jobs
from numa_rl.workloads.parameters import MOST_TASKS, require
from numa_rl.workloads.processes import FloatArray, IntArray, interarrival_s, lognormal
from numa_rl.workloads.swf import UNKNOWN, read_swf
from numa_rl.workloads.workload import NEVER, NO_OBJECT, Workload

JOBS_AT_ONCE = 32
BYTES_PER_KB = 1024.0


@dataclass(frozen=True)
class HpcBatch:
    """Jobs of parallel ranks that compute step by step.

    Attributes:
        num_tasks: tasks of an episode, T; the last jobs are cut off.
        jobs_per_s: mean arrival rate, of recorded jobs too: their gaps are scaled to it.
        burstiness: arrival rate in a burst over the mean rate; 1 is a Poisson process. Not of recorded jobs.
        burst_s: mean length of a burst; without effect when `burstiness` is 1.
        max_processors: of the machine of the model's jobs, at least 8; without effect with a trace.
        max_ranks: most ranks of a job.
        recorded_step_s: run time that makes a step.
        max_steps: most steps of a job; longer jobs have longer ones.
        step_flops: arithmetic of a whole step of a rank.
        step_s: time from one whole step to the next at the pace that jobs keep.
        flops_per_byte: arithmetic intensity; a stencil's [1].
        write_fraction: share of writes in what a task moves.
        median_rank_bytes: median memory of a rank, lognormal, equal for all of a job; of recorded jobs where the
            trace does not tell.
        rank_bytes_sigma: standard deviation of its logarithm.
        memory_scale: memory of a rank over that of a recorded processor.
        halo_share: share of a neighbour's object that a task reads.
        trace: path of a file in the Standard Workload Format, plain or packed with gzip.
        trace_first_job: jobs of it to pass over.
        trace_jobs: most jobs to take; an episode is a window of them. Those without run time or processors are left
            out.

    Raises:
        ValueError: a parameter is out of range, or the trace cannot be read or has no job to take.
    """

    num_tasks: int = 512
    jobs_per_s: float = 6.0
    burstiness: float = 2.0
    burst_s: float = 1.0
    max_processors: int = 256
    max_ranks: int = 8
    recorded_step_s: float = 1200.0
    max_steps: int = 12
    step_flops: float = 1e9
    step_s: float = 0.12
    flops_per_byte: float = 0.5
    write_fraction: float = 1.0 / 3.0
    median_rank_bytes: float = 5e8
    rank_bytes_sigma: float = 1.0
    memory_scale: float = 1.0
    halo_share: float = 0.2
    trace: str | None = None
    trace_first_job: int = 0
    trace_jobs: int = 100_000

    def __post_init__(self) -> None:
        """Check the ranges and read the trace."""
        require(self, "num_tasks max_ranks max_steps trace_jobs", ">= 1", lambda value: value >= 1)
        require(self, "num_tasks", f"at most {MOST_TASKS}", lambda value: value <= MOST_TASKS)
        require(self, "max_processors", ">= 8", lambda value: value >= 8)
        require(self, "burstiness", ">= 1", lambda value: value >= 1)
        positive = "jobs_per_s burst_s recorded_step_s step_flops step_s flops_per_byte median_rank_bytes memory_scale"
        require(self, positive, "> 0", lambda value: value > 0)
        require(self, "rank_bytes_sigma trace_first_job", ">= 0", lambda value: value >= 0)
        require(self, "write_fraction halo_share", "in [0, 1]", lambda value: 0 <= value <= 1)
        if self.trace is not None:
            self._recorded  # noqa: B018 - reads it

    @cached_property
    def _recorded(self) -> _Jobs:
        """The trace's jobs in order of submission, with the gap before each, scaled, as arrival."""
        assert self.trace is not None
        columns = ("submit_s", "run_s", "processors", "requested_processors", "memory_kb")
        jobs = read_swf(self.trace, columns, first_job=self.trace_first_job, num_jobs=self.trace_jobs)
        processors = np.where(jobs["processors"] > 0, jobs["processors"], jobs["requested_processors"])
        good = (processors > 0) & (jobs["run_s"] > 0) & (jobs["submit_s"] != UNKNOWN)
        order = np.flatnonzero(good)[np.argsort(jobs["submit_s"][good], kind="stable")]
        if not len(order):
            raise ValueError(
                f"{self.trace}: a job must have a submission, a run time and processors, got none of {len(good)} jobs."
            )
        submit_s = jobs["submit_s"][order]
        span_s = submit_s[-1] - submit_s[0]
        gap_s = np.diff(submit_s, prepend=submit_s[0])
        gap_s[0] = span_s / max(len(order) - 1, 1)  # where the trace begins again
        scale = 1.0 / (gap_s.mean() * self.jobs_per_s) if span_s > 0 else 0.0
        memory_bytes = jobs["memory_kb"][order] * BYTES_PER_KB * self.memory_scale
        return _Jobs(
            gap_s * scale if span_s > 0 else np.full(len(order), 1.0 / self.jobs_per_s),
            processors[order],
            jobs["run_s"][order],
            np.where(memory_bytes > 0, memory_bytes, np.nan),
        )

    def generate(self, rng: np.random.Generator, num_episodes: int) -> Workload:
        """Make `num_episodes` episodes; more episodes from the same generator extend fewer."""
        episodes = [self._episode(self._first_jobs(rng)) for _ in range(num_episodes)]
        num_objects = max(len(episode["freed_after"]) for episode in episodes)
        for episode in episodes:
            missing = num_objects - len(episode["freed_after"])
            episode["freed_after"] = np.pad(episode["freed_after"], (0, missing), constant_values=NEVER)
        arrays = {name: np.stack([episode[name] for episode in episodes]) for name in episodes[0]}
        return Workload(name="hpc-batch", follows_inputs=False, **arrays)

    def _first_jobs(self, rng: np.random.Generator) -> _Jobs:
        """Jobs in order of arrival, as many as have the first T tasks, and perhaps some more."""
        parts: list[_Jobs] = []
        for part in self._arrivals(rng):
            parts.append(part)
            jobs = _Jobs(*(np.concatenate(columns) for columns in zip(*map(_columns, parts), strict=True)))
            time_s = self._tasks(jobs).time_s
            if len(time_s) >= self.num_tasks:
                last_s = np.partition(time_s, self.num_tasks - 1)[self.num_tasks - 1]
                if last_s <= jobs.arrival_s[-1]:  # jobs yet to come have no task before
                    break
        return jobs

    def _arrivals(self, rng: np.random.Generator) -> Iterator[_Jobs]:
        """Jobs without end, some at a time."""
        now_s = 0.0
        first = int(rng.random() * len(self._recorded.run_s)) if self.trace is not None else 0
        while True:
            phase, gap, memory = rng.random((3, JOBS_AT_ONCE))
            rank_bytes = lognormal(memory, self.median_rank_bytes, self.rank_bytes_sigma)
            if self.trace is None:
                gap_s = interarrival_s(phase, gap, self.jobs_per_s, self.burstiness, self.burst_s)
                processors, run_s = lublin_jobs(rng, JOBS_AT_ONCE, self.max_processors)
            else:
                places = (first + np.arange(JOBS_AT_ONCE)) % len(self._recorded.run_s)
                first += JOBS_AT_ONCE
                gap_s, processors, run_s, recorded = (values[places] for values in _columns(self._recorded))
                rank_bytes = np.where(np.isnan(recorded), rank_bytes, recorded)
            arrival_s = now_s + np.cumsum(gap_s)
            now_s = float(arrival_s[-1])
            yield _Jobs(arrival_s, processors, run_s, rank_bytes)

    def _tasks(self, jobs: _Jobs) -> _Tasks:
        """All tasks of these jobs, job by job, step by step, even ranks before odd ones."""
        ranks = np.minimum(np.ceil(jobs.processors), self.max_ranks).astype(np.int64)
        steps = np.clip(np.ceil(jobs.run_s / self.recorded_step_s), 1, self.max_steps).astype(np.int64)
        whole_steps = jobs.run_s / self.recorded_step_s / steps  # how many, or which share, a step is
        count = ranks * steps
        job = np.repeat(np.arange(len(count)), count)
        step, place = np.divmod(np.arange(len(job)) - np.repeat(np.cumsum(count) - count, count), ranks[job])
        num_even = (ranks[job] + 1) // 2
        is_odd = place >= num_even
        rank = np.where(is_odd, 2 * (place - num_even) + 1, 2 * place)
        time_s = jobs.arrival_s[job] + (step + 0.5 * is_odd) * whole_steps[job] * self.step_s
        exists = (step[:, None] > 0) | is_odd[:, None]  # in the first step odd ranks have nothing yet
        beside = rank[:, None] + np.array([-1, 1])
        exists = exists & (beside >= 0) & (beside < ranks[job][:, None])
        first = (np.cumsum(ranks) - ranks)[job]
        return _Tasks(
            time_s=time_s,
            job=job,
            whole_steps=whole_steps[job],
            object=first + rank,
            inputs=np.where(exists, first[:, None] + beside, NO_OBJECT),
        )

    def _episode(self, jobs: _Jobs) -> dict[str, npt.NDArray[Any]]:
        """The arrays of an episode, by their names in a workload."""
        tasks = self._tasks(jobs)
        order = np.argsort(tasks.time_s, kind="stable")
        chosen = order[: self.num_tasks]

        # Objects are numbered as they appear; one that a later task uses stays to the end.
        _, appears = np.unique(tasks.object[chosen], return_index=True)
        number = np.full(tasks.object.max() + 1, NO_OBJECT)
        number[tasks.object[chosen][np.sort(appears)]] = np.arange(len(appears))
        own, inputs = (
            number[tasks.object[chosen]],
            np.where(tasks.inputs[chosen] >= 0, number[tasks.inputs[chosen]], -1),
        )
        freed_after = np.zeros(len(appears), np.int64)
        for used in (own, *inputs.T):
            np.maximum.at(freed_after, used[used >= 0], np.flatnonzero(used >= 0))
        later = order[self.num_tasks :]
        later_inputs = tasks.inputs[later][tasks.inputs[later] >= 0]
        beyond = number[np.concatenate([tasks.object[later], later_inputs])]
        freed_after[beyond[beyond >= 0]] = NEVER

        flops = tasks.whole_steps[chosen] * self.step_flops
        rank_bytes = jobs.rank_bytes[tasks.job[chosen]]
        return {
            "arrival_s": tasks.time_s[chosen],
            "flops": flops,
            "bytes": flops / self.flops_per_byte,
            "write_fraction": np.full(self.num_tasks, self.write_fraction),
            "object": own,
            "object_bytes": rank_bytes,
            "inputs": inputs,
            "input_bytes": (inputs >= 0) * (self.halo_share * rank_bytes)[:, None],
            "freed_after": freed_after,
        }


@dataclass(frozen=True, eq=False)
class _Jobs:
    """Jobs, shape (J,) each: arrival (of recorded ones, the gap before), processors, run time, memory of a rank."""

    arrival_s: FloatArray
    processors: FloatArray
    run_s: FloatArray
    rank_bytes: FloatArray


def _columns(jobs: _Jobs) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    return jobs.arrival_s, jobs.processors, jobs.run_s, jobs.rank_bytes


@dataclass(frozen=True, eq=False)
class _Tasks:
    """Tasks: nominal start, job, length in whole steps and object, shape (n,); objects of neighbours, shape (n, 2)."""

    time_s: FloatArray
    job: IntArray
    whole_steps: FloatArray
    object: IntArray
    inputs: IntArray

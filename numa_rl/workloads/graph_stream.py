"""A stream of task graphs: kinds of graphs that arrive at random and share the machine.

Dimension key: E episodes, T tasks, S shared objects, n tasks of a kind, P inputs.

An episode has T tasks. First come S loader tasks, which create the shared objects at time 0; then the tasks of graphs
that arrive as a Poisson process, each graph of a kind drawn at random. Tasks stand in the order of the times at which
they would start if everything went at a nominal pace, so that graphs mix as they would on a machine, and the episode
ends after T tasks in the midst of the last graphs. Task t owns object t, which it makes: its output. Only a task that
merely looks at a shared object owns that one.

A task reads what it needs of its inputs, streams `work_bytes` through its own object while it computes, and writes its
output there. Its output is freed when the last task that reads it has been placed, at once where none does (it leaves
the machine), and stays where a reader comes after the end of the episode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from numa_rl.workloads.task_graph import earliest_start
from numa_rl.workloads.workload import NEVER, NO_OBJECT, Workload

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

ARRIVALS_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class GraphKind:
    """A graph of n tasks in topological order, with medians of what is drawn anew for each graph of this kind.

    Attributes:
        flops: median arithmetic of each task, shape (n,).
        flops_sigma: standard deviation of its logarithm, shape (n,); what a task streams varies with its arithmetic.
        work_bytes: median of what a task moves between core and own object while it computes, shape (n,).
        output_bytes: median size of its output, shape (n,).
        output_sigma: standard deviation of its logarithm, shape (n,).
        inputs: what each task reads, shape (n, P): the output of that task of the graph, `NO_OBJECT` for none, or
            `shared_input(s)` for the s-th shared object.
        input_share: share of that object that it reads, shape (n, P).
        read_only: tasks whose output is a file of the input, shape (n,).
        looks_at: the shared object that a task has for its own, and only reads, in place of an output, shape (n,);
            `NO_OBJECT` for none. By placing such a task's data a scheduler may give a shared object another copy.
    """

    flops: FloatArray
    flops_sigma: FloatArray
    work_bytes: FloatArray
    output_bytes: FloatArray
    output_sigma: FloatArray
    inputs: IntArray
    input_share: FloatArray
    read_only: npt.NDArray[np.bool_]
    looks_at: IntArray

    @property
    def num_tasks(self) -> int:
        """Number of tasks n."""
        return len(self.flops)

    @property
    def edges(self) -> IntArray:
        """Pairs (before, after) of tasks of the graph, shape (m, 2)."""
        task, place = np.nonzero(self.inputs >= 0)
        return np.stack([self.inputs[task, place], task], axis=1)

    def start_s(self, shared_bytes: FloatArray, flops_per_s: float, bytes_per_s: float) -> FloatArray:
        """When each task starts at a nominal pace, all draws at their medians, shape (n,)."""
        table = np.concatenate([self.output_bytes, shared_bytes[::-1], [0.0]])  # -1 is none, -2 the first shared one
        read_bytes = (table[self.inputs] * self.input_share).sum(axis=1)
        compute_s = np.maximum(self.flops / flops_per_s, (self.work_bytes + self.output_bytes) / bytes_per_s)
        return earliest_start(compute_s + read_bytes / bytes_per_s, self.edges)

    def padded(self, num_inputs: int) -> GraphKind:
        """The same with P as given."""
        more = ((0, 0), (0, num_inputs - self.inputs.shape[1]))
        return replace(
            self,
            inputs=np.pad(self.inputs, more, constant_values=NO_OBJECT),
            input_share=np.pad(self.input_share, more),
        )


def shared_input(index: int) -> int:
    """How `GraphKind.inputs` calls the shared object of that index."""
    return NO_OBJECT - 1 - index


def in_rows(rows: Sequence[Sequence[tuple[int, float]]]) -> tuple[IntArray, FloatArray]:
    """`inputs` and `input_share` from the pairs (input, share) of each task."""
    most = max((len(row) for row in rows), default=0)
    inputs, share = np.full((len(rows), most), NO_OBJECT, np.int64), np.zeros((len(rows), most))
    for task, row in enumerate(rows):
        for place, (name, part) in enumerate(row):
            inputs[task, place], share[task, place] = name, part
    return inputs, share


@dataclass(frozen=True, eq=False)
class GraphStream:
    """What makes the episodes.

    Attributes:
        name: of the workload.
        kinds: the kinds of graphs, each as likely.
        graphs_per_s: mean arrival rate.
        num_tasks: tasks of an episode, T, more than there are shared objects.
        write_fraction: share of writes in what tasks stream while they compute.
        flops_per_s: nominal pace of a core.
        bytes_per_s: nominal pace of its memory.
        follows_inputs: as in a workload.
        shared_bytes: sizes of the shared objects, read-only once they are loaded, shape (S,).
    """

    name: str
    kinds: Sequence[GraphKind]
    graphs_per_s: float
    num_tasks: int
    write_fraction: float
    flops_per_s: float
    bytes_per_s: float
    follows_inputs: bool
    shared_bytes: FloatArray

    def generate(self, rng: np.random.Generator, num_episodes: int) -> Workload:
        """Make the episodes, one after another, so that more of them extend fewer."""
        most = max(kind.inputs.shape[1] for kind in self.kinds)
        kinds = [kind.padded(most) for kind in self.kinds]
        starts_s = [kind.start_s(self.shared_bytes, self.flops_per_s, self.bytes_per_s) for kind in kinds]
        episodes = [self._episode(rng, kinds, starts_s) for _ in range(num_episodes)]
        arrays = {name: np.stack([episode[name] for episode in episodes]) for name in episodes[0]}
        return Workload(name=self.name, follows_inputs=self.follows_inputs, **arrays)

    def _episode(
        self, rng: np.random.Generator, kinds: Sequence[GraphKind], starts_s: Sequence[FloatArray]
    ) -> dict[str, npt.NDArray[Any]]:
        """The arrays of one episode, by their names in a workload."""
        s = len(self.shared_bytes)
        picked, time_s = self._arrivals(rng, starts_s)
        order = np.argsort(time_s, kind="stable")[: self.num_tasks - s]
        tasks = _joined([kinds[kind] for kind in picked])

        # Objects of this episode: shared ones, then outputs in the order of tasks; NEVER for tasks beyond its end.
        place = np.full(len(time_s), NEVER, np.int64)
        place[order] = s + np.arange(len(order))
        is_task, is_shared = tasks.inputs >= 0, tasks.inputs < NO_OBJECT
        objects = np.where(
            is_task, place[tasks.inputs * is_task], np.where(is_shared, shared_input(0) - tasks.inputs, -1)
        )

        flops, output_bytes, moved_bytes, written = self._drawn(rng, tasks)
        looks = tasks.looks_at[order] != NO_OBJECT
        own = np.concatenate([np.arange(s), np.where(looks, tasks.looks_at[order], s + np.arange(len(order)))])
        made_bytes = np.concatenate([self.shared_bytes, output_bytes[order]])
        inputs = np.concatenate([np.full((s, objects.shape[1]), NO_OBJECT), objects[order]])
        share = np.concatenate([np.zeros(inputs[:s].shape), tasks.input_share[order]])
        freed_after = self._freed_after(objects, place)
        freed_after[s:][looks] = NEVER  # there is none
        return {
            "arrival_s": np.concatenate([np.zeros(s), time_s[order]]),
            "flops": np.concatenate([np.zeros(s), flops[order]]),
            "bytes": np.concatenate([self.shared_bytes, moved_bytes[order]]),
            "write_fraction": np.concatenate([np.ones(s), np.where(looks, 0.0, written[order])]),
            "object": own,
            "object_bytes": made_bytes[own],
            "inputs": inputs,
            "input_bytes": made_bytes[inputs] * share,
            "freed_after": freed_after,
            "read_only": np.concatenate([np.ones(s, np.bool_), tasks.read_only[order]]),
        }

    def _drawn(
        self, rng: np.random.Generator, tasks: GraphKind
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """What these tasks ask for: arithmetic, sizes of outputs, bytes moved, and their share of writes."""
        factors = rng.standard_normal((2, tasks.num_tasks)) * [tasks.flops_sigma, tasks.output_sigma]
        flops_factor, output_factor = np.exp(factors)
        output_bytes = tasks.output_bytes * output_factor
        work_bytes = tasks.work_bytes * flops_factor
        moved_bytes = work_bytes + output_bytes
        written_bytes = self.write_fraction * work_bytes + output_bytes
        written = np.divide(written_bytes, moved_bytes, out=np.ones(tasks.num_tasks), where=moved_bytes > 0)
        return tasks.flops * flops_factor, output_bytes, moved_bytes, np.minimum(written, 1.0)

    def _arrivals(self, rng: np.random.Generator, starts_s: Sequence[FloatArray]) -> tuple[list[int], FloatArray]:
        """Kinds of the graphs that have any of the first T - S tasks, and nominal starts of their tasks in a row."""
        wanted = self.num_tasks - len(self.shared_bytes)
        picked: list[int] = []
        times_s: list[FloatArray] = []
        now_s = 0.0
        while True:
            gaps, draws = rng.random((2, ARRIVALS_AT_ONCE))
            for gap, kind in zip(gaps.tolist(), (draws * len(starts_s)).astype(int).tolist(), strict=True):
                now_s -= math.log1p(-gap) / self.graphs_per_s
                picked.append(kind)
                times_s.append(now_s + starts_s[kind])
            known_s = np.concatenate(times_s)
            # Graphs yet to come have no task before now.
            if len(known_s) >= wanted and np.partition(known_s, wanted - 1)[wanted - 1] <= now_s:
                return picked, known_s

    def _freed_after(self, objects: IntArray, place: IntArray) -> IntArray:
        """The last task that reads each output, its own task where none does; shared objects stay."""
        s = len(self.shared_bytes)
        last = np.arange(self.num_tasks)
        reader, column = np.nonzero(objects >= s)
        inside = objects[reader, column] < NEVER
        np.maximum.at(last, objects[reader[inside], column[inside]], place[reader[inside]])
        return np.concatenate([np.full(s, NEVER), last[s:]])


def _joined(kinds: Sequence[GraphKind]) -> GraphKind:
    """Graphs beside each other as one; P must be the same."""
    first = np.cumsum([0, *(kind.num_tasks for kind in kinds)])
    arrays = {item.name: np.concatenate([getattr(kind, item.name) for kind in kinds]) for item in fields(GraphKind)}
    graph = np.repeat(first[:-1], np.diff(first))
    arrays["inputs"] = np.where(arrays["inputs"] >= 0, arrays["inputs"] + graph[:, None], arrays["inputs"])
    return GraphKind(**arrays)

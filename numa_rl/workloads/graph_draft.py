"""A graph of tasks as a program writes it down, and the episodes that are made of it.

Dimension key: E episodes, T tasks, O objects, P inputs, p ranks, C chunks.

A family adds objects and tasks one by one, in an order in which they could run: who reads or updates an object waits
for who updated it before. The structure is the same in all episodes; every figure may be one number or one for each
episode.

**Order of tasks.** A simulator decides tasks in the order of their indices and its clock never runs back, so a task
must not stand after one that starts later. Each task has a worker, who would run it in the program's own layout: a
core, say. Tasks are put in the order in which they would start at a nominal pace if each worker ran its own in the
order added, and nobody waited for anything but inputs. What an object means does not change by that: its updates keep
their order, and so do those who read it between two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from numa_rl.communication.schedules import Schedule
from numa_rl.idle import service_s
from numa_rl.workloads.parameters import require
from numa_rl.workloads.processes import IntArray
from numa_rl.workloads.task_graph import earliest_start
from numa_rl.workloads.workload import NEVER, NO_OBJECT, Workload

Figure = float | npt.NDArray[np.float64]  # a number, or one for each episode, shape (E,)

REDUCE_FLOPS = 1.0  # for each element: an addition


@dataclass
class _Task:
    worker: int
    obj: int
    flops: Figure
    num_bytes: Figure
    object_bytes: Figure
    write_fraction: float
    reads: Sequence[tuple[int, Figure]]
    overhead_s: Figure
    arrival_s: Figure


@dataclass
class _Object:
    num_bytes: Figure
    read_only: bool
    kept: bool
    writer: int | None = None
    readers: list[int] = field(default_factory=list)  # since it was last updated


class GraphDraft:
    """Objects and tasks so far.

    Args:
        nominal: a draft of the same structure, with the same tasks in the same order, whose figures say in which order
            tasks start. With those of its own mean episode, where a task stands would depend on which episodes are
            made together.
    """

    def __init__(self, nominal: GraphDraft | None = None) -> None:
        """Begin with none."""
        self._nominal = nominal
        self._objects: list[_Object] = []
        self._tasks: list[_Task] = []
        self._edges: list[tuple[int, int]] = []
        self._last_of: dict[int, int] = {}  # each worker's last task
        self._last_arrival_s: Figure = 0.0

    @property
    def num_tasks(self) -> int:
        """Tasks added so far."""
        return len(self._tasks)

    def add_object(self, num_bytes: Figure, *, read_only: bool = False, kept: bool = False) -> int:
        """Add an object that the first task to own it will create, and return its number.

        Args:
            num_bytes: its size when it is made.
            read_only: whether nobody but its first task writes it.
            kept: whether it lives to the end of the episode; else until the last task that uses it.
        """
        self._objects.append(_Object(num_bytes, read_only, kept))
        return len(self._objects) - 1

    def add_task(
        self,
        worker: int,
        obj: int,
        *,
        flops: Figure = 0.0,
        num_bytes: Figure = 0.0,
        object_bytes: Figure | None = None,
        write_fraction: float = 1.0,
        reads: Sequence[tuple[int, Figure]] = (),
        overhead_s: Figure = 0.0,
        arrival_s: Figure = 0.0,
    ) -> int:
        """Add a task, which waits for those that wrote what it owns and reads, and return its number.

        Args:
            worker: who runs it in the program's own layout, from 0 on.
            obj: the object that it creates or updates.
            flops: its arithmetic.
            num_bytes: what it moves between its core and its object.
            object_bytes: size of its object from this task on, where it grows.
            write_fraction: share of that which is written; a task that writes nothing of an object that is there is
                one more reader of it.
            reads: objects that it reads besides, and how many bytes of each.
            overhead_s: time it takes besides.
            arrival_s: when it may start at the earliest, never before a task added before it.

        Raises:
            ValueError: an object that is not there, that nobody has made, or that it reads twice or also owns; or it
                may start before a task added before it.
        """
        task = len(self._tasks)
        if not np.all(np.asarray(arrival_s) >= self._last_arrival_s):
            raise ValueError(
                f"task {task} must not arrive before the one added before it ({self._last_arrival_s}), got {arrival_s}."
            )
        inputs = [read for read, _ in reads]
        for read in (obj, *inputs):
            if not 0 <= read < len(self._objects):
                raise ValueError(f"task {task} must use objects in 0..{len(self._objects) - 1}, got {read}.")
        if len({obj, *inputs}) <= len(inputs):
            raise ValueError(f"task {task} must use each object once, got {obj} and inputs {inputs}.")
        for read in inputs:
            if self._objects[read].writer is None:
                raise ValueError(f"task {task} must read objects that were made before, got {read}.")
            self._read(read, task)
        self._last_arrival_s = arrival_s
        owned = self._objects[obj]
        if owned.writer is not None and write_fraction == 0.0:
            self._read(obj, task)
        else:
            self._edges += [(reader, task) for reader in owned.readers]
            if owned.writer is not None:
                self._edges.append((owned.writer, task))
            owned.writer, owned.readers = task, []
        if worker in self._last_of:
            self._edges.append((self._last_of[worker], task))
        self._last_of[worker] = task
        if object_bytes is not None:
            owned.num_bytes = object_bytes
        self._tasks.append(
            _Task(worker, obj, flops, num_bytes, owned.num_bytes, write_fraction, reads, overhead_s, arrival_s)
        )
        return task

    def _read(self, obj: int, task: int) -> None:
        read = self._objects[obj]
        assert read.writer is not None
        self._edges.append((read.writer, task))
        read.readers.append(task)

    def order(self, *, flops_per_s: float, bytes_per_s: float) -> IntArray:
        """The tasks in the order of `workload`, shape (T,): by when they start at this pace.

        That is in the nominal draft, or in the mean episode where there is none.

        Raises:
            ValueError: the nominal draft has another number of tasks.
        """
        if self._nominal is not None:
            if self._nominal.num_tasks != self.num_tasks:
                raise ValueError(f"the nominal draft must have {self.num_tasks} tasks, got {self._nominal.num_tasks}.")
            return self._nominal.order(flops_per_s=flops_per_s, bytes_per_s=bytes_per_s)
        figures = [
            (
                _mean(task.flops),
                _mean(task.num_bytes),
                sum(_mean(size) for _, size in task.reads),
                _mean(task.overhead_s),
                _mean(task.arrival_s),
            )
            for task in self._tasks
        ]
        flops, own, read, overhead_s, arrival_s = np.array(figures, np.float64).reshape(-1, 5).T
        cost = service_s(flops, own, read, overhead_s, flops_per_s, 1.0 / bytes_per_s)
        start = earliest_start(cost, self._edges)
        return np.lexsort((start, arrival_s))

    def workers(self, *, flops_per_s: float, bytes_per_s: float) -> IntArray:
        """The worker of each task in the order of `workload`, shape (T,)."""
        return np.array([task.worker for task in self._tasks])[
            self.order(flops_per_s=flops_per_s, bytes_per_s=bytes_per_s)
        ]

    def workload(self, name: str, *, num_episodes: int, flops_per_s: float, bytes_per_s: float) -> Workload:
        """Episodes of this graph.

        Args:
            name: how the workload is called in tables.
            num_episodes: E.
            flops_per_s: nominal pace of a core's arithmetic, for the order of tasks.
            bytes_per_s: nominal pace of its memory.

        Raises:
            ValueError: no task, or a figure out of its range.
        """
        if not self._tasks:
            raise ValueError(f"{name}: a graph must have a task, got none.")
        order = self.order(flops_per_s=flops_per_s, bytes_per_s=bytes_per_s)
        tasks = [self._tasks[index] for index in order]
        shape = (num_episodes, len(tasks))

        def column(figures: Sequence[Figure]) -> npt.NDArray[Any]:
            columns = np.empty(shape)
            for index, figure in enumerate(figures):
                columns[:, index] = figure
            return columns

        own = np.array([task.obj for task in tasks])
        inputs, input_bytes = _inputs(tasks, num_episodes)
        return Workload(
            name=name,
            arrival_s=column([task.arrival_s for task in tasks]),
            flops=column([task.flops for task in tasks]),
            bytes=column([task.num_bytes for task in tasks]),
            write_fraction=column([task.write_fraction for task in tasks]),
            object=np.broadcast_to(own, shape),
            object_bytes=column([task.object_bytes for task in tasks]),
            inputs=np.broadcast_to(inputs, (*shape, inputs.shape[1])),
            input_bytes=input_bytes,
            freed_after=np.broadcast_to(self._freed_after(own, inputs), (num_episodes, len(self._objects))),
            read_only=np.broadcast_to([item.read_only for item in self._objects], (num_episodes, len(self._objects))),
            overhead_s=column([task.overhead_s for task in tasks]),
            follows_inputs=True,
        )

    def _freed_after(self, own: IntArray, inputs: IntArray) -> IntArray:
        """The last task that uses each object that is not kept, shape (O,)."""
        last = np.full(len(self._objects), -1)
        used = inputs != NO_OBJECT
        np.maximum.at(last, inputs[used], np.nonzero(used)[0])
        np.maximum.at(last, own, np.arange(len(own)))
        kept = np.array([item.kept for item in self._objects]) | (last < 0)
        return np.where(kept, NEVER, last)


def _mean(figure: Figure) -> float:
    """The figure in the mean episode."""
    return float(figure.mean()) if isinstance(figure, np.ndarray) else figure


def _inputs(tasks: Sequence[_Task], num_episodes: int) -> tuple[IntArray, npt.NDArray[Any]]:
    """What each task reads, shape (T, P), and how many bytes, shape (E, T, P)."""
    most = max(len(task.reads) for task in tasks)
    inputs = np.full((len(tasks), most), NO_OBJECT)
    num_bytes = np.zeros((num_episodes, len(tasks), most))
    for index, task in enumerate(tasks):
        for place, (obj, size) in enumerate(task.reads):
            inputs[index, place] = obj
            num_bytes[:, index, place] = size
    return inputs, num_bytes


@dataclass(frozen=True)
class Messages:
    """As what messages software sends data to another node.

    Attributes:
        num_bytes: size of a message at most; whatever there is goes as one where this is infinite.
        overhead_s: what software adds to each.

    Raises:
        ValueError: a size that is not above 0, or a time that is negative or not finite.
    """

    num_bytes: float = float("inf")
    overhead_s: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.num_bytes > 0:
            raise ValueError(f"num_bytes must be > 0, got {self.num_bytes}.")
        require(self, "overhead_s", "finite and >= 0", lambda value: value >= 0)

    def seconds(self, num_bytes: Figure) -> Figure:
        """What software adds where so much is sent."""
        return np.ceil(np.asarray(num_bytes, np.float64) / self.num_bytes).clip(1.0) * self.overhead_s


NO_OVERHEAD = Messages()


def add_all_reduce(
    draft: GraphDraft,
    schedule: Schedule,
    vectors: Sequence[Sequence[Sequence[int]]],
    workers: Sequence[Sequence[int]],
    *,
    object_bytes: Figure,
    bytes_per_element: float,
    messages: Messages = NO_OVERHEAD,
) -> None:
    """Add the sends of an all-reduce, step by step: a task at the target for each object sent.

    A task that adds reads the source's object and updates the target's; one that copies overwrites it. An object is
    sent by itself, so that a rank passes one on while it receives another.

    Args:
        draft: what is added to.
        schedule: who sends what to whom.
        vectors: the objects that hold each chunk of each rank's vector: `vectors[rank][chunk]` is one or more, as many
            in every rank.
        workers: who of a rank does the work for them, the first for the first object of every chunk, and so on, again
            from the first where there are fewer.
        object_bytes: size of each of these objects.
        bytes_per_element: size of a number.
        messages: as what they are sent.
    """
    sends = zip(schedule.source, schedule.target, schedule.first_chunk, schedule.chunks, schedule.reduce, strict=True)
    for source, target, first, chunks, reduce in sends:
        for chunk in range(int(first), int(first + chunks)):
            pairs = zip(vectors[source][chunk], vectors[target][chunk], strict=True)
            for place, (sent, updated) in enumerate(pairs):
                draft.add_task(
                    workers[target][place % len(workers[target])],
                    updated,
                    flops=object_bytes * (REDUCE_FLOPS / bytes_per_element) if reduce else 0.0,
                    num_bytes=object_bytes * (2.0 if reduce else 1.0),
                    write_fraction=0.5 if reduce else 1.0,
                    reads=[(sent, object_bytes)],
                    overhead_s=messages.seconds(object_bytes),
                )

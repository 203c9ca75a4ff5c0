"""A workload is data: what each task demands, in the order in which it must be decided.

Dimension key: E episodes, T tasks of an episode, O objects, P inputs of a task.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

NEVER = np.iinfo(np.int32).max  # as `freed_after`: the object lives to the end of the episode
NO_OBJECT = -1
SCALARS = ("name", "follows_inputs")


@dataclass(frozen=True, eq=False)
class Workload:
    """A pool of E episodes, each T tasks over O objects, as read-only arrays.

    Tasks are decided in index order. Task t owns one object: it creates it (first use) or updates it,
    and its placement is decided with the task's. A task that reads an object waits for the task that
    last wrote it; this rule alone gives streams, task graphs and pipelines.

    Attributes:
        name: how the workload is called in tables.
        arrival_s: when each task may first be decided, never decreasing along T, shape (E, T).
        flops: arithmetic of each task, shape (E, T).
        bytes: bytes the task moves between its core and its own object, shape (E, T).
        write_fraction: share of `bytes` that are writes, in [0, 1], shape (E, T).
        object: the object each task owns, shape (E, T).
        object_bytes: size of that object from this task on, shape (E, T): objects may grow; they never shrink.
        inputs: objects each task reads besides its own, `NO_OBJECT` where there are fewer than P, shape (E, T, P).
        input_bytes: bytes read from each input, 0 where there is none, shape (E, T, P).
        freed_after: the task after whose decision each object is freed, or `NEVER`, shape (E, O). The model frees
            memory when the last task that uses it has been placed, not when that task ends.
        read_only: objects that no task writes once they exist, such as weights or tables, shape (E, O): their size
            stays, and they can be replicated. None of them by default.
        overhead_s: seconds each task takes on any core besides its arithmetic and its accesses, such as what software
            adds to the messages that it sends, shape (E, T). 0 by default.
        follows_inputs: whether time moves on to when the next task's inputs are ready, as in a graph of tasks; in
            a stream it moves to the arrival only, and tasks wait.

    Raises:
        ValueError: a shape or a value breaks one of the rules above.
    """

    name: str
    arrival_s: npt.NDArray[np.float64]
    flops: npt.NDArray[np.float32]
    bytes: npt.NDArray[np.float32]
    write_fraction: npt.NDArray[np.float32]
    object: npt.NDArray[np.int32]
    object_bytes: npt.NDArray[np.float64]
    inputs: npt.NDArray[np.int32]
    input_bytes: npt.NDArray[np.float32]
    freed_after: npt.NDArray[np.int32]
    read_only: npt.NDArray[np.bool_] = None  # type: ignore[assignment]  # an array once it is made
    overhead_s: npt.NDArray[np.float32] = None  # type: ignore[assignment]  # the same
    follows_inputs: bool = False

    def __post_init__(self) -> None:
        """Convert every array to its dtype, freeze it and check the rules."""
        dtypes = {
            "arrival_s": np.float64,
            "object_bytes": np.float64,
            "object": np.int32,
            "inputs": np.int32,
            "freed_after": np.int32,
            "read_only": np.bool_,
        }
        if self.read_only is None:
            object.__setattr__(self, "read_only", np.zeros(np.shape(self.freed_after), np.bool_))
        if self.overhead_s is None:
            object.__setattr__(self, "overhead_s", np.zeros(np.shape(self.arrival_s), np.float32))
        for item in fields(self):
            if item.name not in SCALARS:
                array: npt.NDArray[Any] = np.ascontiguousarray(
                    getattr(self, item.name), dtype=dtypes.get(item.name, np.float32)
                )
                array.setflags(write=False)
                object.__setattr__(self, item.name, array)
        if self.arrival_s.ndim != 2 or self.arrival_s.size == 0:
            raise ValueError(
                f"{self.name}: arrival_s must have shape (E, T) with E, T > 0, got {self.arrival_s.shape}."
            )
        self._check_shapes()
        self._check_values()

    def _check_shapes(self) -> None:
        e, t = self.arrival_s.shape
        if self.inputs.ndim != 3:
            raise ValueError(f"{self.name}: inputs must have shape ({e}, {t}, P), got {self.inputs.shape}.")
        if self.freed_after.ndim != 2:
            raise ValueError(f"{self.name}: freed_after must have shape ({e}, O), got {self.freed_after.shape}.")
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
            ("flops", "bytes", "write_fraction", "object", "object_bytes", "overhead_s"), (e, t)
        )
        shapes |= {
            "inputs": (e, t, self.num_inputs),
            "input_bytes": (e, t, self.num_inputs),
            "freed_after": (e, self.num_objects),
            "read_only": (e, self.num_objects),
        }
        for name, shape in shapes.items():
            got = getattr(self, name).shape
            if got != shape:
                raise ValueError(f"{self.name}: {name} must have shape {shape}, got {got}.")

    def _check_values(self) -> None:
        o = self.num_objects
        self._require("arrival_s", np.isfinite(self.arrival_s) & (self.arrival_s >= 0), "finite and >= 0")
        self._require("arrival_s", np.diff(self.arrival_s, axis=1, prepend=0.0) >= 0, "non-decreasing along an episode")
        for name in ("flops", "bytes", "object_bytes", "input_bytes", "overhead_s"):
            values = getattr(self, name)
            self._require(name, np.isfinite(values) & (values >= 0), "finite and >= 0")
        self._require("write_fraction", (self.write_fraction >= 0) & (self.write_fraction <= 1), "in [0, 1]")
        self._require("freed_after", self.freed_after >= 0, ">= 0")
        self._require("object", (self.object >= 0) & (self.object < o), f"an object in 0..{o - 1}")
        self._require("inputs", (self.inputs >= NO_OBJECT) & (self.inputs < o), f"an object in 0..{o - 1} or -1")
        self._require("input_bytes", (self.inputs != NO_OBJECT) | (self.input_bytes == 0), "0 where there is no input")
        self._check_sizes()
        self._check_read_only()

    def _check_sizes(self) -> None:
        """An object never shrinks."""
        by_object = np.argsort(self.object, axis=1, kind="stable")
        objects = np.take_along_axis(self.object, by_object, axis=1)
        sizes = np.take_along_axis(self.object_bytes, by_object, axis=1)
        grows = np.diff(sizes, axis=1, prepend=0.0) >= 0
        first = np.diff(objects, axis=1, prepend=-1) != 0
        good = np.empty_like(grows)
        np.put_along_axis(good, by_object, grows | first, axis=1)
        self._require("object_bytes", good, "at least what the object had before")

    def _check_read_only(self) -> None:
        """An object that is read only is written by its first task alone, and keeps its size."""
        if not self.read_only.any():
            return
        episode, task = np.indices(self.object.shape)
        first = np.full((self.num_episodes, self.num_objects), self.num_tasks)
        np.minimum.at(first, (episode, self.object), task)
        created_at = np.take_along_axis(first, self.object, axis=1)
        later = np.take_along_axis(self.read_only, self.object, axis=1) & (task > created_at)
        rule = "0 for a task on an object that is read only and exists already"
        self._require("write_fraction", ~later | (self.write_fraction == 0), rule)
        size = np.take_along_axis(self.object_bytes, created_at, axis=1)
        self._require(
            "object_bytes", ~later | (self.object_bytes == size), "that of its first task for a read-only object"
        )

    def _require(self, name: str, good: npt.NDArray[np.bool_], rule: str) -> None:
        """Raise ValueError naming the first entry of `name` that is not `good`."""
        if not good.all():
            where = tuple(int(i) for i in np.argwhere(~good)[0])
            value = getattr(self, name)[where]
            raise ValueError(f"{self.name}: {name}{list(where)} must be {rule}, got {value}.")

    @property
    def num_episodes(self) -> int:
        """Number of episodes E in the pool."""
        return len(self.arrival_s)

    @property
    def num_tasks(self) -> int:
        """Number of tasks T of an episode."""
        return int(self.arrival_s.shape[1])

    @property
    def num_objects(self) -> int:
        """Number of objects O of an episode."""
        return int(self.freed_after.shape[1])

    @property
    def num_inputs(self) -> int:
        """Number of inputs P a task can have."""
        return int(self.inputs.shape[2])

    @property
    def is_one_graph(self) -> bool:
        """Whether an episode is one graph of tasks that could be known before it starts.

        Its tasks follow their inputs, and all arrive at once, or when what is there from the start has been loaded. In
        a stream of graphs nobody knows the next one.
        """
        return self.follows_inputs and all(len(np.unique(times)) <= 2 for times in self.arrival_s)

    def take(self, episodes: Any) -> Workload:
        """The same workload with only these episodes (an index array or slice over E)."""
        arrays = {item.name: getattr(self, item.name)[episodes] for item in fields(self) if item.name not in SCALARS}
        return replace(self, **arrays)


class WorkloadFamily(Protocol):
    """What generates episodes: a frozen dataclass of parameters."""

    def generate(self, rng: np.random.Generator, num_episodes: int) -> Workload:
        """Make a pool of `num_episodes` episodes, all randomness drawn from `rng`."""
        ...

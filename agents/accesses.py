"""Who takes what from whom: an episode's accesses to objects that earlier tasks left, known before it is played.

Dimension key: T tasks, A accesses.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from numa_rl.workloads.workload import Workload

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


class Accesses(NamedTuple):
    """What the tasks of an episode take from others, (A,) each: an access for every object that another task left."""

    task: I64  # who reads
    writer: I64  # which task wrote the object last, and is waited for
    creator: I64  # which task created it: there it lies
    num_bytes: F64
    is_own: Bool  # of the object that the reader owns, not of an input


def creators(workload: Workload, episode: int) -> I64:
    """The task that created each task's object, shape (T,): itself for new objects, and those freed before."""
    creator = np.arange(workload.num_tasks)
    made: dict[int, int] = {}
    freed = _freed_objects(workload, episode)
    for task, own in enumerate(workload.object[episode].tolist()):
        creator[task] = made.setdefault(own, task)
        for obj in freed.get(task, ()):
            made.pop(obj, None)
    return creator


def accesses(workload: Workload, episode: int) -> Accesses:
    """Every access of a task to an object that an earlier one created: its own, and its inputs.

    A task waits for whoever wrote the object last; its creator counts as a writer.
    """
    made: dict[int, int] = {}
    wrote: dict[int, int] = {}
    found: list[tuple[int, int, int, float, bool]] = []
    freed = _freed_objects(workload, episode)
    inputs, input_bytes = workload.inputs[episode].tolist(), workload.input_bytes[episode].tolist()
    moved = workload.bytes[episode].tolist()
    writes = (workload.write_fraction[episode] > 0).tolist()
    for task, own in enumerate(workload.object[episode].tolist()):
        taken = [
            (own, moved[task], True),
            *((obj, size, False) for obj, size in zip(inputs[task], input_bytes[task], strict=True)),
        ]
        found += [(task, wrote[obj], made[obj], size, is_own) for obj, size, is_own in taken if obj in made]
        if own not in made or writes[task]:
            wrote[own] = task
        made.setdefault(own, task)
        for obj in freed.get(task, ()):
            made.pop(obj, None)
    table = np.array(found, np.float64).reshape(-1, 5)
    task, writer, creator = table[:, :3].T.astype(np.int64)
    return Accesses(task, writer, creator, table[:, 3], table[:, 4] > 0)


def input_bytes(taken: Accesses, num_tasks: int) -> F64:
    """Bytes that each task reads of inputs that exist then, shape (T,)."""
    return np.bincount(taken.task, np.where(taken.is_own, 0.0, taken.num_bytes), num_tasks).astype(np.float64)


def _freed_objects(workload: Workload, episode: int) -> dict[int, list[int]]:
    """The objects that are freed after each task, where any are."""
    freed: dict[int, list[int]] = {}
    for obj, after in enumerate(workload.freed_after[episode].tolist()):
        freed.setdefault(after, []).append(obj)
    return freed

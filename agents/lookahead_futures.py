"""Futures made up from the past of an episode, for who must not know the real one.

Where tasks arrive in a stream nobody knows the next one, but they resemble those that came before. A future begins
with the task to be decided, whose demands are known. Each task after it repeats one of the past: runs of successive
tasks are drawn, as in the block bootstrap [1], so that what follows upon what is kept.

An object of the past is not what a task of the future would touch. What is kept is how long ago it had been touched:
objects lie on a stack, the one touched last on top, and a task that took the object at place 3 then takes the one at
place 3 now [2]. A task that created an object creates one. Who comes back to an object does what was done to it when
that was last come back to, so that an object keeps its sizes and its readers. Gaps between arrivals are those of the
tasks drawn; a task that was the last one to use something frees what it uses.

Everything is read from tasks already decided, and from the demands of the one to be decided.

Dimension key: B rows, T tasks, O objects, P inputs, S futures, D made-up tasks of a future, K candidates.

References:
    [1] H. R. Kuensch, "The jackknife and the bootstrap for general stationary observations", Annals of Statistics
        17(3), 1989.
    [2] R. L. Mattson, J. Gecsei, D. R. Slutz, I. L. Traiger, "Evaluation techniques for storage hierarchies", IBM
        Systems Journal 9(2), 1970: stack distances.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from numa_rl.simulator.state import INPUT, TASK, Tasks

Bool = npt.NDArray[np.bool_]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


class Past(NamedTuple):
    """What is remembered of each row's decided tasks."""

    stack: I32  # (B, O) objects in use, the one touched last first
    size: I32  # (B,) how many these are
    place: I32  # (B, T) where on the stack each task found its object, -1 where it was new
    input_place: I32  # (B, T, P) where it found its inputs, -1 where there was none
    frees: Bool  # (B, T, 1 + P) whether it was the last to use its object, and each input
    last_task: I32  # (B, O) the last task on each object


class Draft(NamedTuple):
    """A thread's working arrays, while it makes up a future and tries candidates in it."""

    stack: I32  # (O + D,)
    size: I32  # (1,)
    last_task: I32  # (O + D,) the future's last task on each object, -1 while there is none
    came_again: Bool  # (1 + D,) whether the object of each task of the future existed before it
    candidates: I64  # (K,)


def allocate_past(num_rows: int, tasks: Tasks) -> Past:
    """The past of B rows of which nothing has been decided."""
    (_, t, p), o = tasks.inputs.shape, tasks.next_freed.shape[1]
    return Past(
        stack=np.zeros((num_rows, o), np.int32),
        size=np.zeros(num_rows, np.int32),
        place=np.full((num_rows, t), -1, np.int32),
        input_place=np.full((num_rows, t, p), -1, np.int32),
        frees=np.zeros((num_rows, t, 1 + p), np.bool_),
        last_task=np.full((num_rows, o), -1, np.int32),
    )


def allocate_draft(num_objects: int, depth: int, num_candidates: int) -> Draft:
    """Working arrays for futures of D made-up tasks, each of which may create an object."""
    slots = num_objects + depth
    return Draft(
        stack=np.zeros(slots, np.int32),
        size=np.zeros(1, np.int32),
        last_task=np.full(slots, -1, np.int32),
        came_again=np.zeros(1 + depth, np.bool_),
        candidates=np.zeros(num_candidates, np.int64),
    )


def allocate_futures(tasks: Tasks, num_futures: int, depth: int) -> Tasks:
    """S futures of D made-up tasks, as episodes that the simulator's kernels read."""
    slots = tasks.next_freed.shape[1] + depth
    return Tasks(
        each=np.zeros((num_futures, 1 + depth), TASK),
        inputs=np.zeros((num_futures, 1 + depth, tasks.inputs.shape[2]), INPUT),
        next_freed=np.full((num_futures, slots), -1, np.int32),
        read_only=np.zeros((num_futures, slots), np.bool_),
        follows_inputs=tasks.follows_inputs,
    )

"""Graphs of tasks: an order in which they can run, when each can start, and how far each is from the end.

Dimension key: n tasks, m edges. An edge is a pair (before, after) of task indices; times are in any one unit.

References:
    [1] H. Topcuoglu, S. Hariri, M.-Y. Wu, "Performance-effective and low-complexity task scheduling for heterogeneous
        computing", IEEE Transactions on Parallel and Distributed Systems 13(3), 2002: the upward rank of HEFT.
    [2] A. B. Kahn, "Topological sorting of large networks", Communications of the ACM 5(11), 1962.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from numa_rl.wording import cut

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def topological_order(num_tasks: int, edges: npt.ArrayLike, names: Sequence[str] | None = None) -> IntArray:
    """Tasks in an order in which none comes before what it waits for; otherwise by index [2].

    Args:
        num_tasks: n.
        edges: pairs (before, after), shape (m, 2).
        names: how tasks are called in a message, by index; their indices by default.

    Returns:
        Task indices, shape (n,).

    Raises:
        ValueError: an edge is out of range, or edges form a cycle; the message names the tasks on it.
    """
    pairs = _edges(num_tasks, edges)
    waits_for = np.bincount(pairs[:, 1], minlength=num_tasks)
    after = _neighbours(num_tasks, pairs)
    ready = np.flatnonzero(waits_for == 0).tolist()  # in order, and so a heap
    order = []
    while ready:
        task = heapq.heappop(ready)
        order.append(task)
        for child in after[task]:
            waits_for[child] -= 1
            if waits_for[child] == 0:
                heapq.heappush(ready, child)
    if len(order) < num_tasks:
        cycle = " -> ".join(str(task) if names is None else names[task] for task in _cycle(pairs, waits_for > 0))
        raise ValueError(f"a graph of tasks must have no cycle, got {cut(cycle)}.")
    return np.array(order, np.int64)


def earliest_start(cost: npt.ArrayLike, edges: npt.ArrayLike, communication: npt.ArrayLike = 0.0) -> FloatArray:
    """When each task can start if it waits for nothing but those before it: the longest path to it.

    Args:
        cost: how long each task takes, shape (n,).
        edges: pairs (before, after), shape (m, 2).
        communication: time from the end of the one to the start of the other, shape (m,), or one for all.

    Raises:
        ValueError: as for `topological_order`, or a cost that is negative or not finite.
    """
    lasts, pairs, passing = _checked(cost, edges, communication)
    start = np.zeros(len(lasts))
    edges_into = _edges_at(len(lasts), pairs[:, 1])
    for task in topological_order(len(lasts), pairs):
        into = edges_into[task]
        if len(into):
            before = pairs[into, 0]
            start[task] = (start[before] + lasts[before] + passing[into]).max()
    return start


def upward_rank(cost: npt.ArrayLike, edges: npt.ArrayLike, communication: npt.ArrayLike = 0.0) -> FloatArray:
    """Longest path from each task to the end of the graph, its own cost included: HEFT's priority [1].

    The rank of a task is its mean cost over the processors plus the largest sum of the mean communication to one
    that waits for it and of that one's rank.

    Args:
        cost: mean cost of each task, shape (n,).
        edges: pairs (before, after), shape (m, 2).
        communication: mean communication along each edge, shape (m,), or one for all.

    Raises:
        ValueError: as for `earliest_start`.
    """
    lasts, pairs, passing = _checked(cost, edges, communication)
    rank = lasts.copy()
    edges_from = _edges_at(len(lasts), pairs[:, 0])
    for task in topological_order(len(lasts), pairs)[::-1]:
        out = edges_from[task]
        if len(out):
            rank[task] += (passing[out] + rank[pairs[out, 1]]).max()
    return rank


def _checked(
    cost: npt.ArrayLike, edges: npt.ArrayLike, communication: npt.ArrayLike
) -> tuple[FloatArray, IntArray, FloatArray]:
    costs = np.asarray(cost, np.float64)
    if costs.ndim != 1:
        raise ValueError(f"cost must have shape (n,), got {costs.shape}.")
    pairs = _edges(len(costs), edges)
    passing = np.asarray(communication, np.float64)
    if passing.shape not in ((), (len(pairs),)):
        raise ValueError(f"communication must have shape ({len(pairs)},), got {passing.shape}.")
    passing = np.broadcast_to(passing, len(pairs))
    for name, values in (("cost", costs), ("communication", passing)):
        bad = ~(np.isfinite(values) & (values >= 0))
        if bad.any():
            where = int(np.argmax(bad))
            raise ValueError(f"{name}[{where}] must be finite and >= 0, got {values[where]}.")
    return costs, pairs, passing


def _edges(num_tasks: int, edges: npt.ArrayLike) -> IntArray:
    pairs = np.asarray(edges, np.int64)
    if pairs.size == 0:
        return np.empty((0, 2), np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"edges must have shape (m, 2), got {pairs.shape}.")
    bad = (pairs < 0) | (pairs >= num_tasks)
    if bad.any():
        where = int(np.argmax(bad.any(axis=1)))
        raise ValueError(f"edges[{where}] must join tasks in 0..{num_tasks - 1}, got {pairs[where].tolist()}.")
    return pairs


def _edges_at(num_tasks: int, end: IntArray) -> list[IntArray]:
    """Indices of the edges that have each task at this end."""
    order = np.argsort(end, kind="stable")
    return np.split(order, np.cumsum(np.bincount(end, minlength=num_tasks))[:-1]) if num_tasks else []


def _neighbours(num_tasks: int, pairs: IntArray) -> list[list[int]]:
    """Tasks after each task."""
    return [pairs[out, 1].tolist() for out in _edges_at(num_tasks, pairs[:, 0])]


def _cycle(pairs: IntArray, stuck: npt.NDArray[np.bool_]) -> list[int]:
    """Tasks on a cycle, the first again at the end: each task that is stuck waits for another one."""
    waits_for = {after: before for before, after in pairs.tolist() if stuck[before] and stuck[after]}
    task = int(np.argmax(stuck))
    path: dict[int, None] = {}
    while task not in path:
        path[task] = None
        task = waits_for[task]
    tasks = list(path)
    return [task, *tasks[tasks.index(task) :][::-1]]

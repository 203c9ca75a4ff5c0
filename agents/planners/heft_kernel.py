"""HEFT's processor selection, compiled by numba: the earliest finish on any core, in a gap if one is long enough.

Dimension key: n tasks, m edges sorted by the task that waits, P nodes, Q cores of all nodes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from numa_rl.compilation import compiled

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


class Graph(NamedTuple):
    """Tasks and what passes between them."""

    cost: F64  # (n, P) time of each task on each node
    release: F64  # (n,) when each task may start
    first_edge: I64  # (n + 1,) where the edges into each task begin
    before: I64  # (m,) the task that is waited for
    holder: I64  # (m,) the task on whose node the data is
    volume: F64  # (m,)
    time_per_unit: F64  # (P, P) of what a task on the first node takes from the second
    startup: F64  # (P, P) time before that


class Schedule(NamedTuple):
    """Where and when each task runs."""

    node: I64  # (n,)
    start: F64  # (n,)
    finish: F64  # (n,)


class Cores(NamedTuple):
    """What each core does when."""

    first: I64  # (P + 1,) where the cores of each node begin
    taken: I64  # (Q,) tasks on each core
    start: F64  # (Q, n) of its tasks, in the order of time
    finish: F64  # (Q, n)


@compiled
def earliest_gap(cores, core, ready, lasts):
    """When a core can take a task, and after how many of its tasks: between two of them if there is time [1]."""
    count = cores.taken[core]
    begin = ready
    for i in range(count):
        if begin + lasts <= cores.start[core, i]:
            return begin, i
        begin = max(begin, cores.finish[core, i])
    return begin, count


@compiled
def ready_at(graph, schedule, task, node):
    """When what a task waits for has arrived at a node."""
    ready = graph.release[task]
    for edge in range(graph.first_edge[task], graph.first_edge[task + 1]):
        source = schedule.node[graph.holder[edge]]
        arrives = schedule.finish[graph.before[edge]]
        if source != node and graph.volume[edge] > 0.0:
            arrives += graph.startup[node, source] + graph.volume[edge] * graph.time_per_unit[node, source]
        ready = max(ready, arrives)
    return ready


@compiled
def select_processors(graph, order, cores, schedule):
    """Give each task, in this order, the core on which it finishes first; ties go to the lower node and core."""
    for task in order:
        best = best_begin = np.inf
        best_core = best_place = 0
        best_node = -1
        for node in range(len(cores.first) - 1):
            ready = ready_at(graph, schedule, task, node)
            lasts = graph.cost[task, node]
            for core in range(cores.first[node], cores.first[node + 1]):
                begin, place = earliest_gap(cores, core, ready, lasts)
                if best_node < 0 or begin + lasts < best:
                    best, best_begin = begin + lasts, begin
                    best_core, best_place, best_node = core, place, node
                if cores.taken[core] == 0:
                    break  # another core that is free all the time does no better
        count = cores.taken[best_core]
        for i in range(count, best_place, -1):
            cores.start[best_core, i] = cores.start[best_core, i - 1]
            cores.finish[best_core, i] = cores.finish[best_core, i - 1]
        cores.start[best_core, best_place] = best_begin
        cores.finish[best_core, best_place] = best
        cores.taken[best_core] = count + 1
        schedule.node[task] = best_node
        schedule.start[task] = best_begin
        schedule.finish[task] = best

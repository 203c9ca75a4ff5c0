"""Branch and bound over the real simulator, compiled by numba.

Dimension key: T tasks, N nodes, P = N * N placements of a task, O objects. Row 0 is the start; row 1 + t P + k is
where the k-th placement of task t has led to.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agents import rollouts
from agents.oracle import rows
from agents.oracle.rows import copy_row
from agents.rollouts import SOURCES, play
from numa_rl.compilation import compiled

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


class Least(NamedTuple):
    """The least that each task of one episode can take on each node: see `agents.oracle.exact`."""

    service_s: F64  # (T, N) infinite on nodes without cores
    inputs_s: F64  # (T, N)
    writes: npt.NDArray[np.bool_]  # (T,) whether who comes later waits for this task
    dropped_cost: float  # of a task that is dropped; infinite where none can be
    waits: bool  # whether waiting can be foretold


class Tree(NamedTuple):
    """The path to the placement at hand and what is left to try beside it."""

    bound: F64  # (T, P) of each placement at its task, or infinite
    cost: F64  # (T, P) so far
    order: I64  # (T, P) placements from the lowest bound to the highest
    tried: I64  # (T,) how many of these have been tried
    fit: I64  # (T,) how many are worth trying
    path: I64  # (T,) the placement at hand
    best: I64  # (T,) the best plan known
    best_cost: F64  # (1,) its cost
    position: I64  # (2,) the task at hand, and how many placements have been tried in all


@partial(compiled, sources=(*SOURCES, rollouts.__file__, rows.__file__))
def rest_bound(machines, tasks, state, b, least, ready, weights):
    """What the remaining tasks of row b cost at least.

    A task runs on some node with cores: there it waits until the node's first core is free (nothing frees a core
    earlier than it is now) and its object and inputs are written, and takes no less than on the idle machine. `ready`
    is scratch, (O,).
    """
    alpha, _, reference_s, _ = weights
    e, t = state.episode[b], state.task[b]
    for obj in range(len(ready)):
        ready[obj] = state.objects[b, obj].ready_s
    total = 0.0
    for i in range(t, state.horizon[b]):
        own = tasks.each[e, i].object
        arrival = tasks.each[e, i].arrival_s
        start = max(arrival, ready[own])
        for p in range(tasks.inputs.shape[2]):
            if tasks.inputs[e, i, p].object >= 0:
                start = max(start, ready[tasks.inputs[e, i, p].object])
        cost = finish = np.inf
        for n in range(machines.num_nodes[state.machine[b]]):
            begin = max(start, state.node_free_s[b, n]) if least.waits else arrival
            seconds = begin - arrival + least.service_s[i, n]
            cost = min(cost, (seconds + alpha * least.inputs_s[i, n]) / reference_s)
            finish = min(finish, arrival + seconds + least.inputs_s[i, n])
        total += min(cost, least.dropped_cost)
        if least.writes[i]:
            ready[own] = finish
    return total


@partial(compiled, sources=(*SOURCES, rollouts.__file__, rows.__file__))
def expand(machines, tasks, state, outcome, bytes_of, tree, least, t, parent, cost, weights, window_s, work, ready):
    """Try every placement of task t after row `parent`, and line up those that may lead to something better."""
    width = machines.cores.shape[1]
    m = state.machine[parent]
    placements = width * width
    count = 0
    for pair in range(placements):
        n, d = pair // width, pair % width
        if n >= machines.num_nodes[m] or d >= machines.num_nodes[m] or machines.runs_on[m, n] != n:
            continue  # a task sent to a node without cores does what it does where it then runs
        b = 1 + t * placements + pair
        copy_row(bytes_of, parent, bytes_of, b)
        tree.cost[t, pair] = cost + play(machines, tasks, state, outcome, b, pair, weights, window_s, work)
        if outcome.fell_back[b] or (outcome.out_of_memory[b] and count > 0):
            continue  # the same as a placement on the node fallen back to; a task that is dropped goes nowhere
        bound = tree.cost[t, pair] + rest_bound(machines, tasks, state, b, least, ready, weights)
        tree.bound[t, pair] = bound
        place = count
        while place > 0 and bound < tree.bound[t, tree.order[t, place - 1]]:
            tree.order[t, place] = tree.order[t, place - 1]
            place -= 1
        tree.order[t, place] = pair
        count += 1
    tree.fit[t] = count
    tree.tried[t] = 0
    tree.position[1] += count


@partial(compiled, sources=(*SOURCES, rollouts.__file__, rows.__file__))
def branch_and_bound(machines, tasks, state, outcome, bytes_of, tree, least, gap, most, weights, window_s, work, ready):
    """Search depth first, the lowest bound first, until nothing is left or `most` placements have been tried.

    A placement is worth trying if its bound is below the best cost by more than the share `gap` of it.
    """
    num_tasks, placements = tree.bound.shape
    if tree.position[1] == 0:
        expand(machines, tasks, state, outcome, bytes_of, tree, least, 0, 0, 0.0, weights, window_s, work, ready)
    while tree.position[0] >= 0 and tree.position[1] < most:
        t = tree.position[0]
        if tree.tried[t] == tree.fit[t]:
            tree.position[0] -= 1
            continue
        pair = tree.order[t, tree.tried[t]]
        tree.tried[t] += 1
        if tree.bound[t, pair] >= (1.0 - gap) * tree.best_cost[0]:
            tree.tried[t] = tree.fit[t]  # and those after it have higher bounds
            continue
        tree.path[t] = pair
        if t == num_tasks - 1:
            tree.best_cost[0] = tree.cost[t, pair]
            for i in range(num_tasks):
                tree.best[i] = tree.path[i]
        else:
            tree.position[0] += 1
            row = 1 + t * placements + pair
            expand(
                machines,
                tasks,
                state,
                outcome,
                bytes_of,
                tree,
                least,
                t + 1,
                row,
                tree.cost[t, pair],
                weights,
                window_s,
                work,
                ready,
            )

"""A grid of processes on the nodes of a machine: which node stands where, and how long its schedules' steps take.

A matrix product shifts blocks around the rows and columns of its grid (`numa_rl.matmul`), so neighbours on the
grid, the last and the first of a row or column included, should be neighbours on the machine.

Dimension key: N nodes of the machine; P places on a grid of R rows and C columns, P = R C, row by row; S steps.

References:
    [1] The chapter, exercise 4: the blocks' grid mapped to nodes.
    [2] F. T. Leighton, Introduction to Parallel Algorithms and Architectures, 1992, section 3.1: rings and tori in
        hypercubes by Gray code.
"""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import numpy.typing as npt

from numa_rl.communication.steps import shared_step_s
from numa_rl.topology import FloatArray, IntArray, Topology

MOST_TRIED = 50_000  # placements searched in full: 8 nodes have 40 320


def shift_senders(rows: int, columns: int) -> IntArray:
    """Who sends to each place in a shift to the left and in one upwards: its neighbours, shape (P, 2)."""
    place = np.arange(rows * columns).reshape(rows, columns)
    return np.stack([np.roll(place, -1, axis=1).ravel(), np.roll(place, -1, axis=0).ravel()], axis=1)


def shift_hops(topology: Topology, placement: npt.ArrayLike, rows: int, columns: int) -> IntArray:
    """Links that each place's block crosses in a shift to the left and in one upwards, shape (P, 2).

    Args:
        topology: the machine.
        placement: the node of each place, shape (P,).
        rows: R.
        columns: C.

    Raises:
        ValueError: a place has no node of its own.
    """
    node = _checked(topology, placement, rows * columns)
    hops: IntArray = topology.hops[node[:, None], node[shift_senders(rows, columns)]]
    return hops


def place_grid(topology: Topology, rows: int, columns: int) -> IntArray:
    """The node of each place, such that shifts cross few links in all, shape (P,).

    The best of all placements while those are few. Else a descent by exchanges, from the nodes in their order and
    from the Gray code, which on a hypercube of 2^i x 2^j places has every neighbour one hop away [2]; that may end
    in a local optimum. Nodes without cores take no place.

    Raises:
        ValueError: no row, no column, or fewer nodes with cores than places.
    """
    for name, value in (("rows", rows), ("columns", columns)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}.")
    num_places, nodes = rows * columns, np.flatnonzero(topology.cores)
    if num_places > len(nodes):
        raise ValueError(
            f"a grid of {rows} x {columns} must have at most {len(nodes)} places, one per node with cores."
        )
    senders = shift_senders(rows, columns)
    if math.perm(len(nodes), num_places) <= MOST_TRIED:
        tried = np.array(list(permutations(nodes.tolist(), num_places)), dtype=np.int64)
        return _nearest(topology, tried, senders)
    starts = [nodes]
    if np.array_equal(nodes, np.arange(len(nodes))):
        starts += _gray_code(rows, columns, len(nodes))
    descents = np.array([_descend(topology, start, senders) for start in starts])
    return _nearest(topology, descents, senders)


def step_s(topology: Topology, placement: npt.ArrayLike, step_bytes: IntArray) -> FloatArray:
    """Seconds of each step's sends on an otherwise idle machine, shape (S,).

    The receiver's node reads from the sender's, and what sends of a step share is told in
    `numa_rl.communication.steps.shared_step_s`. Multiplying takes no time here.

    Args:
        topology: the machine.
        placement: the node of each place, shape (P,).
        step_bytes: what is sent in each step, shape (S, P, P), indexed [step, receiver, sender].

    Raises:
        ValueError: a place has no node of its own.
    """
    node = _checked(topology, placement, step_bytes.shape[-1])
    step, receiver, sender = np.nonzero(step_bytes)
    source, target = node[sender], node[receiver]
    sent = step_bytes[step, receiver, sender].astype(np.float64)
    return shared_step_s(topology, len(step_bytes), step, source, target, sent, topology.latency_s[target, source])


def _checked(topology: Topology, placement: npt.ArrayLike, num_places: int) -> IntArray:
    """The placement as an array, once it gives every place a node of its own."""
    node = np.asarray(placement)
    known = node.dtype.kind in "iu" and node.shape == (num_places,)
    if not known or len(set(node.tolist()) & set(range(topology.num_nodes))) < num_places:
        raise ValueError(
            f"placement must name {num_places} different nodes in 0..{topology.num_nodes - 1}, got {node.tolist()}."
        )
    return node.astype(np.int64)


def _total_hops(topology: Topology, placements: IntArray, senders: IntArray) -> IntArray:
    """Links that all shifts of each placement cross, shape (placements,)."""
    hops: IntArray = topology.hops[placements[:, : len(senders), None], placements[:, senders]].sum(axis=(1, 2))
    return hops


def _nearest(topology: Topology, placements: IntArray, senders: IntArray) -> IntArray:
    """The first placement whose shifts cross the fewest links, shape (P,)."""
    best: IntArray = placements[np.argmin(_total_hops(topology, placements, senders))]
    return best


def _gray_code(rows: int, columns: int, num_nodes: int) -> list[IntArray]:
    """The Gray code's order of the nodes where rows and columns are powers of two, else none."""
    if rows & (rows - 1) or columns & (columns - 1):
        return []
    code = np.arange(max(rows, columns)) ^ (np.arange(max(rows, columns)) >> 1)
    placed = (code[:rows, None] * columns + code[None, :columns]).ravel()
    return [np.concatenate([placed, np.arange(rows * columns, num_nodes)])]


def _descend(topology: Topology, start: IntArray, senders: IntArray) -> IntArray:
    """Exchange two nodes, one of them perhaps without a place, for as long as the best exchange saves hops."""
    order = start.copy()
    swaps = np.array(list(combinations(range(len(order)), 2)))
    swaps = swaps[swaps[:, 0] < len(senders)]
    while True:
        tried = np.tile(order, (len(swaps), 1))
        row = np.arange(len(swaps))
        tried[row, swaps[:, 0]], tried[row, swaps[:, 1]] = order[swaps[:, 1]], order[swaps[:, 0]]
        total = _total_hops(topology, tried, senders)
        if total.min() >= _total_hops(topology, order[None], senders)[0]:
            return order[: len(senders)]
        order = tried[np.argmin(total)]

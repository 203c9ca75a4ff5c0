"""Where an object's bytes are: on one node, as pages split over several, or as copies on several; compiled by numba.

An ordinary object is whole on one node. Its pages can be split over nodes in proportion to small whole weights, as
Linux's weighted interleaving does [1]. An object that is only read has one copy or more, each whole; copies are
dropped when their room is needed, those of the object that was used least recently first, but never the last one.

Dimension key: N nodes, as in `state.py`.

References:
    [1] Linux, Documentation/admin-guide/mm/numa_memory_policy.rst: MPOL_WEIGHTED_INTERLEAVE.
    [2] M. Dashti et al., "Traffic management: a holistic approach to memory placement on NUMA systems", ASPLOS 2013:
        replication of pages that are only read.
"""

from __future__ import annotations

import math

import numpy as np

from numa_rl.compilation import compiled
from numa_rl.simulator.state import SPLIT

# Rows of a thread's working array, see `state.allocate_work`.
BEFORE, AFTER, WEIGHTS, SOURCES = 1, 2, 3, 4


@compiled
def holds_copy(state, b, obj, node, width):
    """Whether a whole copy of a live object is on `node`."""
    form = state.objects[b, obj].form
    if form > 1:
        return state.page_weights[b, obj * width + node] > 0
    return form != SPLIT and state.objects[b, obj].node == node


@compiled
def nearest_copy(machines, state, b, obj, node):
    """The node whose copy of a live object `node` reaches with the least latency; its only one as a rule."""
    if state.objects[b, obj].form <= 1:
        return np.int64(state.objects[b, obj].node)
    m = state.machine[b]
    width = machines.cores.shape[1]
    for k in range(machines.num_nodes[m]):
        other = machines.fallback_order[m, node * width + k]
        if state.page_weights[b, obj * width + other] > 0:
            return np.int64(other)
    return np.int64(-1)


@compiled
def dealt_bytes(dealt, total, num_bytes, page_bytes):
    """Bytes that nodes with `dealt` of the `total` weight have together: whole numbers, so that none is lost."""
    pages = np.int64(math.ceil(num_bytes / page_bytes))
    return min(num_bytes, pages * dealt // total * page_bytes)


@compiled
def spread_pages(weights, num_bytes, page_bytes, first, nodes, held):
    """Write the bytes on each node, (N,), when pages are dealt out in proportion to `weights`.

    Whole pages, but for the last one; the sum is `num_bytes`. They are dealt from node `first` on, round the `nodes`
    that there are, so that small objects do not all end up on one node.
    """
    total = np.int64(0)
    for weight in weights:
        total += np.int64(weight)
    dealt = np.int64(0)
    before = 0.0
    for n in range(nodes, len(held)):
        held[n] = 0.0
    for k in range(nodes):
        n = (first + k) % nodes
        dealt += np.int64(weights[n])
        upto = dealt_bytes(dealt, total, num_bytes, page_bytes)
        held[n] = upto - before
        before = upto


@compiled
def first_dealt(machines, state, b, obj):
    """The node at which dealing out an object's pages begins: another one for the next object."""
    return obj % machines.num_nodes[state.machine[b]]


@compiled
def write_held(machines, state, b, obj, held):
    """Write the bytes that an object occupies on each node, (N,)."""
    width = machines.cores.shape[1]
    form, num_bytes = state.objects[b, obj].form, state.objects[b, obj].bytes
    if form == SPLIT:
        weights = state.page_weights[b, obj * width : (obj + 1) * width]
        m = state.machine[b]
        first = first_dealt(machines, state, b, obj)
        spread_pages(weights, num_bytes, machines.page_bytes[m], first, machines.num_nodes[m], held)
    else:
        home = state.objects[b, obj].node
        for n in range(width):
            here = state.page_weights[b, obj * width + n] > 0 if form > 1 else n == home
            held[n] = num_bytes if here else 0.0


@compiled
def write_shares(machines, state, b, obj, shares):
    """Write the share of a live object that is on each node, (N,): 1 wherever a whole copy is."""
    write_held(machines, state, b, obj, shares)
    num_bytes = state.objects[b, obj].bytes
    for n in range(len(shares)):
        if num_bytes > 0.0:
            shares[n] /= num_bytes
        else:
            shares[n] = 1.0 if n == state.objects[b, obj].node else 0.0


@compiled
def occupied_bytes(machines, state, b, obj, node):
    """Bytes that an object occupies on one node."""
    width = machines.cores.shape[1]
    form, num_bytes = state.objects[b, obj].form, state.objects[b, obj].bytes
    if form != SPLIT:
        return num_bytes if holds_copy(state, b, obj, node, width) else 0.0
    page_bytes, nodes = machines.page_bytes[state.machine[b]], machines.num_nodes[state.machine[b]]
    first = first_dealt(machines, state, b, obj)
    turn = (node - first) % nodes
    total, upto = np.int64(0), np.int64(0)
    for n in range(nodes):
        weight = np.int64(state.page_weights[b, obj * width + n])
        total += weight
        upto += weight if (n - first) % nodes <= turn else 0
    last = dealt_bytes(upto, total, num_bytes, page_bytes)
    upto -= np.int64(state.page_weights[b, obj * width + node])
    return last - dealt_bytes(upto, total, num_bytes, page_bytes)


@compiled
def has_room(machines, state, b, node, obj, num_bytes):
    """Whether `node` can hold `obj` at `num_bytes`.

    What the object already occupies there counts as free, and so do the copies that can be dropped.
    """
    form = state.objects[b, obj].form
    if form > 1 and state.page_weights[b, obj * machines.cores.shape[1] + node] > 0:
        return True
    used = state.memory_used_bytes[b, node] - state.spare_bytes[b, node] + num_bytes
    if form == SPLIT:
        used -= occupied_bytes(machines, state, b, obj, node)
    elif form <= 1 and state.objects[b, obj].node == node:
        used -= state.objects[b, obj].bytes
    return used <= machines.memory_bytes[state.machine[b], node]


@compiled
def find_room(machines, state, b, node, obj, num_bytes):
    """The nearest node to `node` that has room, itself first, as Linux falls back; -1 when none has."""
    m = state.machine[b]
    row = node * machines.cores.shape[1]
    for k in range(machines.num_nodes[m]):
        candidate = machines.fallback_order[m, row + k]
        if has_room(machines, state, b, candidate, obj, num_bytes):
            return candidate
    return -1


@compiled
def find_page_room(machines, state, b, obj, num_bytes, wanted, work):
    """Deal an object's pages to the nodes with room: fills the rows WEIGHTS and AFTER of `work`.

    A node without room for its share gives it to the others. No copy of another object is dropped for pages.

    Returns:
        The node that gets most, or -1 when these nodes together have no room.
    """
    m = state.machine[b]
    weights, before, after = work[WEIGHTS], work[BEFORE], work[AFTER]
    write_held(machines, state, b, obj, before)
    for n in range(len(weights)):
        weights[n] = wanted[n]
    while True:
        total = 0.0
        for weight in weights:
            total += weight
        if total == 0.0:
            return np.int64(-1)
        first = first_dealt(machines, state, b, obj)
        spread_pages(weights, num_bytes, machines.page_bytes[m], first, machines.num_nodes[m], after)
        fits = True
        most = 0
        for n in range(machines.num_nodes[m]):
            used = state.memory_used_bytes[b, n] - before[n] + after[n]
            if weights[n] > 0.0 and used > machines.memory_bytes[m, n]:
                weights[n] = 0.0
                fits = False
            if after[n] > after[most] or (after[most] == 0.0 and weights[most] == 0.0):
                most = n
        if fits:
            return np.int64(most)


@compiled
def drop_copy(state, b, obj, node, width):
    """Drop one of two or more copies; the last one left is no longer to spare."""
    num_bytes = state.objects[b, obj].bytes
    state.page_weights[b, obj * width + node] = 0
    state.memory_used_bytes[b, node] -= num_bytes
    state.spare_bytes[b, node] -= num_bytes
    state.objects[b, obj].form -= 1
    first = 0
    while state.page_weights[b, obj * width + first] == 0:
        first += 1
    state.objects[b, obj].node = first
    if state.objects[b, obj].form == 1:
        state.spare_bytes[b, first] -= num_bytes
        state.objects[b, obj].cached_bytes = 0.0  # whose copy these lines were of is not known


@compiled
def make_room(machines, state, b, node, kept):
    """Drop copies on `node`, those of the object used least recently first, until what is there fits; not `kept`."""
    width = machines.cores.shape[1]
    while state.memory_used_bytes[b, node] > machines.memory_bytes[state.machine[b], node]:
        oldest = -1
        for obj in range(state.objects.shape[1]):
            spare = obj != kept and state.objects[b, obj].form > 1 and state.page_weights[b, obj * width + node] > 0
            if spare and (oldest < 0 or state.objects[b, obj].accessed_s < state.objects[b, oldest].accessed_s):
                oldest = obj
        if oldest < 0:
            return
        drop_copy(state, b, oldest, node, width)


@compiled
def add_copy(machines, state, b, obj, node):
    """Put another copy of an object that is only read on `node`; both it and the others are then to spare."""
    width = machines.cores.shape[1]
    num_bytes = state.objects[b, obj].bytes
    home = state.objects[b, obj].node
    if state.objects[b, obj].form == 1:
        for n in range(width):
            state.page_weights[b, obj * width + n] = 0
        state.page_weights[b, obj * width + home] = 1
        state.spare_bytes[b, home] += num_bytes
    state.page_weights[b, obj * width + node] = 1
    state.objects[b, obj].form += 1
    state.objects[b, obj].node = min(home, node)
    state.objects[b, obj].cached_bytes = 0.0
    state.memory_used_bytes[b, node] += num_bytes
    state.spare_bytes[b, node] += num_bytes
    make_room(machines, state, b, node, obj)


@compiled
def take_away(machines, state, b, obj):
    """Give back the memory of an object, wherever it is."""
    width = machines.cores.shape[1]
    form, home, num_bytes = state.objects[b, obj].form, state.objects[b, obj].node, state.objects[b, obj].bytes
    if home < 0:
        return
    if form == SPLIT:
        for n in range(width):
            state.memory_used_bytes[b, n] -= occupied_bytes(machines, state, b, obj, n)
    elif form > 1:
        for n in range(width):
            if state.page_weights[b, obj * width + n] > 0:
                state.memory_used_bytes[b, n] -= num_bytes
                state.spare_bytes[b, n] -= num_bytes
    else:
        state.memory_used_bytes[b, home] -= num_bytes

"""Which core of a node works when: first come, first served; compiled by numba."""

from __future__ import annotations

from numa_rl.compilation import compiled


@compiled
def first_free_core(machines, state, b, node):
    """The node's first idle core, or else the one that is free first, as an index of `core_free_s`."""
    width = machines.cores.shape[1]
    free = state.core_free_s[b]
    now = state.now_s[b]
    best = node
    for c in range(1, machines.cores[state.machine[b], node]):
        if free[best] <= now:
            break
        if free[c * width + node] < free[best]:
            best = c * width + node
    return best


@compiled
def occupy_core(machines, state, b, node, core, until_s):
    """Give a core of the node work until `until_s`."""
    width = machines.cores.shape[1]
    free = state.core_free_s[b]
    free[core] = until_s
    earliest = free[node]
    for c in range(1, machines.cores[state.machine[b], node]):
        earliest = min(earliest, free[c * width + node])
    state.node_free_s[b, node] = earliest

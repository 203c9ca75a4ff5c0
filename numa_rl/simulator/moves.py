"""Moving an object's pages between nodes, making copies, and the accesses to what is scattered; compiled by numba.

Dimension key: N nodes, as in `state.py`.
"""

from __future__ import annotations

import numpy as np

from numa_rl.compilation import compiled
from numa_rl.simulator.in_flight import note_stream
from numa_rl.simulator.placement import nearest_copy, write_shares
from numa_rl.simulator.state import SPLIT
from numa_rl.simulator.streams import ONE, ZERO, add_traffic, migrate, transfer_cost


@compiled
def move_pages(machines, state, b, before, after, counting):
    """Move the bytes that nodes have too many, (N,) `before`, to where they are short `after`, in the order of nodes.

    What an object has grown by is not moved but new.

    Args:
        machines: as compiled.
        state: where the rows stand.
        b: the row.
        before: bytes on each node.
        after: bytes wanted there.
        counting: whether to count the traffic instead of the time.

    Returns:
        (seconds, bytes moved); no seconds when counting.
    """
    nodes = machines.num_nodes[state.machine[b]]
    seconds = moved = 0.0
    source = 0
    spare = max(before[0] - after[0], 0.0)
    for target in range(nodes):
        short = max(after[target] - before[target], 0.0)
        while short > 0.0:
            while spare <= 0.0 and source + 1 < nodes:
                source += 1
                spare = max(before[source] - after[source], 0.0)
            if spare <= 0.0:
                return seconds, moved
            part = min(short, spare)
            if counting:
                count_move(machines, state, b, source, target, part)
            else:
                piece_s, _ = migrate(machines, state, b, source, target, part)
                seconds += piece_s
            moved += part
            short -= part
            spare -= part
    return seconds, moved


@compiled
def count_move(machines, state, b, source, target, num_bytes):
    """Count the traffic of a move or copy: `target` reads from `source` and writes to its own memory."""
    add_traffic(machines, state, b, target, source, np.float32(num_bytes), ZERO)
    add_traffic(machines, state, b, target, target, ZERO, np.float32(num_bytes))


@compiled
def pages_time(machines, state, b, head, node, held, num_bytes, write_fraction):
    """Seconds for a core of `node` to go through pages held by several nodes, (N,), one after another: `num_bytes`."""
    width = machines.cores.shape[1]
    total = seconds = 0.0
    for home in range(width):
        total += held[home]
    for home in range(machines.num_nodes[state.machine[b]]):
        if held[home] > 0.0:
            part = np.float32(num_bytes * (held[home] / total))
            s_per_byte, _, _ = transfer_cost(machines, state, b, node, home, part, write_fraction)
            moving_s = part * s_per_byte
            written = part * write_fraction
            note_stream(state, b, head, node * width + home, moving_s, part - written, written)
            seconds += moving_s
    return np.float32(seconds)


@compiled
def access_pages(machines, state, b, node, shares, num_bytes, write_fraction):
    """Count an access to pages that are on several nodes in these shares, (N,); returns the local and remote bytes."""
    local = remote = 0.0
    for home in range(machines.num_nodes[state.machine[b]]):
        if shares[home] > 0.0:
            part = np.float32(num_bytes * shares[home])
            add_traffic(machines, state, b, node, home, part * (ONE - write_fraction), part * write_fraction)
            if home == node:
                local += float(part)
            else:
                remote += float(part)
    return local, remote


@compiled
def read_input(machines, state, b, node, obj, num_bytes, shares):
    """Count a task's reading of one live input, wherever that is; returns the local and remote bytes."""
    if state.objects[b, obj].form == SPLIT:
        write_shares(machines, state, b, obj, shares)
        return access_pages(machines, state, b, node, shares, num_bytes, ZERO)
    home = nearest_copy(machines, state, b, obj, node)
    add_traffic(machines, state, b, node, home, num_bytes, ZERO)
    return (float(num_bytes), 0.0) if home == node else (0.0, float(num_bytes))

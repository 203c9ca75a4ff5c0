"""How long the next tasks' inputs take from their own node and from others; compiled by numba.

Dimension key: B rows, N nodes.
"""

from __future__ import annotations

import numpy as np

from numa_rl.compilation import compiled
from numa_rl.simulator.inputs import message_time, write_sources
from numa_rl.simulator.placement import SOURCES


@compiled
def write_local_shares(machines, tasks, state, nodes, work, shares):
    """Write which share of its inputs' time the next task of each row spends on its own node's memory, (B,).

    Args:
        machines: as compiled.
        tasks: likewise.
        state: before the tasks are decided.
        nodes: where they are sent, (B,).
        work: a thread's working array.
        shares: written, 0 where nothing is read.
    """
    for b in range(len(nodes)):
        shares[b] = 0.0
        if state.task[b] >= state.horizon[b]:
            continue
        m = state.machine[b]
        node = machines.runs_on[m, nodes[b]]
        sources = work[SOURCES]
        write_sources(machines, tasks, state, b, node, work[0], sources)
        total = 0.0
        for home in range(machines.num_nodes[m]):
            if sources[home] > 0.0:
                seconds, _ = message_time(machines, state, b, node, home, np.float32(sources[home]))
                total += seconds
                if home == node:
                    shares[b] = seconds
        if total > 0.0:
            shares[b] /= total

"""The state of one machine as text."""

from __future__ import annotations

import numpy as np

from numa_rl.simulator.simulator import Simulator

BAR = 20


def render_text(simulator: Simulator, row: int = 0) -> str:
    """Time, memory and outstanding work of every node of one row, as lines of text."""
    state, machines = simulator.state, simulator.machines
    machine = state.machine[row]
    now = state.now_s[row]
    work = np.maximum(state.core_free_s[row].reshape(-1, machines.max_nodes) - now, 0.0).sum(axis=0)
    lines = [f"task {state.task[row]} of {state.horizon[row]} at {now:.6g} s"]
    for node in range(machines.num_nodes[machine]):
        share = state.memory_used_bytes[row, node] / machines.memory_bytes[machine, node]
        bar = "#" * round(BAR * min(share, 1.0))
        cores = machines.cores[machine, node]
        lines.append(f"node {node:2d}  memory [{bar:<{BAR}}] {share:6.1%}  {cores} cores, {work[node]:.6g} s of work")
    return "\n".join(lines)

"""What placements of one task are charged, term by term: the simulator itself says, by taking them in copies of a row.

A second copy in which no other stream is in flight tells what of a time is due to load.

Dimension key: K placements, N nodes.

References:
    [1] The chapter, section 16.2.3: T_exec, T_comm and Imbalance.
    [2] The chapter, section 16.4.3: the roofline, by which arithmetic hides accesses to memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from envs.reward import RewardWeights
from numa_rl.simulator.inputs import message_time, ready_time, write_sources
from numa_rl.simulator.simulator import Simulator
from numa_rl.simulator.state import Outcome, allocate_work

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

EXEC_PARTS = ("inputs_ready", "core", "compute", "software", "memory", "memory_load")
COMM_PARTS = ("transfer", "transfer_load", "migration", "migration_load", "coherence", "coherence_load")
STREAMS = ("stream_count", "stream_rate", "stream_bytes")  # what of a state says who is in flight


@dataclass(frozen=True, eq=False)
class CostTerms:
    """What each of K placements is charged.

    Attributes:
        parts: seconds by name, shape (K,) each. Those of `EXEC_PARTS` sum to T_exec: waiting until object and inputs
            are written, waiting for a core beyond that, arithmetic, software overhead, what accesses to the task's
            own object take beyond the arithmetic [2] on an idle machine, and what load adds to that. Those of
            `COMM_PARTS` sum to T_comm: inputs, migration and coherence, each as idle, and what load adds.
        sources_s: reading the inputs by the node that holds them, shape (K, N); sums to both parts of the transfer.
        imbalance: sigma / mu of outstanding work afterwards.
        cost: -R.
        task_node: where the task runs.
        data_node: where its object is put; -1 when out of memory.
        migrated: whether the object moved.
        out_of_memory: whether the task was dropped.
    """

    parts: Mapping[str, F64]
    sources_s: F64
    imbalance: F64
    cost: F64
    task_node: I64
    data_node: I64
    migrated: Bool
    out_of_memory: Bool

    @property
    def exec_s(self) -> F64:
        """T_exec [1], shape (K,)."""
        return np.asarray(sum(self.parts[name] for name in EXEC_PARTS))

    @property
    def comm_s(self) -> F64:
        """T_comm [1], shape (K,)."""
        return np.asarray(sum(self.parts[name] for name in COMM_PARTS))

    def at(self, index: list[int]) -> CostTerms:
        """The terms of some of the placements."""
        each = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "parts"}
        parts = {name: values[index] for name, values in self.parts.items()}
        return CostTerms(parts=parts, **{name: values[index] for name, values in each.items()})


def cost_terms(simulator: Simulator, pairs: npt.ArrayLike, weights: RewardWeights, row: int = 0) -> CostTerms:
    """What the next task of a row would be charged under each placement; the row is left as it is.

    Args:
        simulator: where the row stands.
        pairs: (task node) N + (data node), shape (K,).
        weights: the reward.
        row: which row.

    Raises:
        ValueError: the row's episode is over, or a pair names no node of its machine.
    """
    state = simulator.state
    if state.task[row] >= state.horizon[row]:
        raise ValueError(f"row {row} must have a task left to place, got one whose episode is over.")
    placed = np.asarray(pairs, np.int64)
    actions = np.stack(np.divmod(placed, simulator.num_nodes), axis=1)
    copies = Simulator(simulator.topologies, simulator.workload, len(placed), window_s=float(simulator.window_s))
    ready_s = float(ready_time(simulator.tasks, state, row) - state.now_s[row])
    idle = _stepped(copies, simulator, row, actions, STREAMS)
    real = _stepped(copies, simulator, row, actions)
    return CostTerms(
        parts=_parts(simulator, row, ready_s, idle, real),
        sources_s=np.stack([_sources(simulator, row, int(node)) for node in real.task_node])
        * ~real.out_of_memory[:, None],
        imbalance=real.imbalance,
        cost=weights.cost(real),
        task_node=real.task_node.astype(np.int64),
        data_node=real.data_node.astype(np.int64),
        migrated=real.migrated,
        out_of_memory=real.out_of_memory,
    )


def _stepped(copies: Simulator, simulator: Simulator, row: int, actions: I64, cleared: tuple[str, ...] = ()) -> Outcome:
    """What the actions lead to in copies of the row, with some of its state set to zero."""
    for name, values in simulator.state._asdict().items():
        getattr(copies.state, name)[...] = np.zeros_like(values[row]) if name in cleared else values[row]
    outcome = copies.step(actions)._asdict()
    return Outcome(**{name: values.copy() for name, values in outcome.items()})


def _parts(simulator: Simulator, row: int, ready_s: float, idle: Outcome, real: Outcome) -> dict[str, F64]:
    """The parts of T_exec and T_comm."""
    machines, state = simulator.machines, simulator.state
    task = simulator.tasks.each[state.episode[row], state.task[row]]
    ran = ~real.out_of_memory
    service_s, idle_service_s = real.exec_s - real.wait_s, idle.exec_s - idle.wait_s
    s_per_flop = machines.s_per_flop[state.machine[row], real.task_node]
    compute_s = np.minimum(np.where(ran, task["flops"] * s_per_flop, 0.0), idle_service_s)
    software_s = np.minimum(float(task["overhead_s"]), idle_service_s - compute_s)
    ready = np.minimum(ready_s, real.wait_s)
    moved, moved_idle = real.migration_s + real.coherence_s, idle.migration_s + idle.coherence_s
    transfer_s, idle_transfer_s = real.comm_s - moved, idle.comm_s - moved_idle
    return {
        "inputs_ready": ready,
        "core": real.wait_s - ready,
        "compute": compute_s,
        "software": software_s,
        "memory": idle_service_s - compute_s - software_s,
        "memory_load": service_s - idle_service_s,
        "transfer": idle_transfer_s,
        "transfer_load": transfer_s - idle_transfer_s,
        "migration": idle.migration_s,
        "migration_load": real.migration_s - idle.migration_s,
        "coherence": idle.coherence_s,
        "coherence_load": real.coherence_s - idle.coherence_s,
    }


def _sources(simulator: Simulator, row: int, node: int) -> F64:
    """Seconds for a core of `node` to read the next task's inputs, by the node that holds them, shape (N,)."""
    machines, state = simulator.machines, simulator.state
    seconds, scratch, held = np.zeros(simulator.num_nodes), *allocate_work(machines)[:2]
    write_sources(machines, simulator.tasks, state, row, node, scratch, held)
    for home in np.flatnonzero(held):
        seconds[home], _ = message_time(machines, state, row, node, int(home), np.float32(held[home]))
    return seconds

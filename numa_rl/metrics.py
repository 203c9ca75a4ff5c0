"""The metric hierarchy: from memory, over tasks, to the application, by the chapter's names.

Each metric is a function of raw counts; `metrics` computes all that a set of `Counters` allows, and
`run_counters` reads the counters of a simulated run. Everything takes numbers or arrays that broadcast, and 0 / 0,
a share of nothing, is NaN.

Dimension key: R runs, N nodes, L directed links.

References:
    [1] The chapter, section 16.4.1: the metrics and their names.
    [2] The chapter, exercise 3: memory efficiency.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from numa_rl.idle import core_s_per_byte, service_s
from numa_rl.simulator.simulator import Simulator
from numa_rl.topology import FloatArray, Topology

MEANINGS: Mapping[str, str] = {
    "R_L_R": "R_L/R, bytes moved within a node over bytes moved between nodes",
    "U_link": "bytes per second over capacity, of the busiest link",
    "S_MC": "bytes per second over capacity, of the busiest memory controller",
    "B_load": "1 - sigma / mu of the nodes' load",
    "F_migrate": "migrations per second",
    "O_coherence": "time spent on coherence over all time at work",
    "rho": "time spent computing over time spent communicating",
    "E": "speedup over one node, per node",
    "eta_mem": "bytes per second over what all memory controllers deliver",
}


def _ratio(above: Any, below: Any) -> Any:
    """`above` / `below`; infinite where only `below` is 0, NaN where both are.

    Raises:
        ValueError: either is negative or NaN.
    """
    for value in (above, below):
        array = np.asarray(value, np.float64)
        if not (array >= 0.0).all():
            raise ValueError(f"counts and times must be >= 0, got {array[~(array >= 0.0)].flat[0]}.")
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(above, below, dtype=np.float64)[()]


def _require_nodes(num_nodes: Any) -> None:
    """Raise ValueError unless there is at least one node."""
    counts = np.asarray(num_nodes, np.float64)
    if not (counts >= 1.0).all():
        raise ValueError(f"num_nodes must be >= 1, got {counts[~(counts >= 1.0)].flat[0]:g}.")


def local_remote_ratio(local: Any, remote: Any) -> Any:
    """R_L/R = N_local / N_remote, of accesses or of bytes [1]; infinite where none is remote."""
    return _ratio(local, remote)


def link_utilisation(bytes_per_s: Any, capacity_bytes_per_s: Any) -> Any:
    """U_link = B_actual / B_theoretical of a link [1]; bytes of any time over what it could carry serve as well."""
    return _ratio(bytes_per_s, capacity_bytes_per_s)


def controller_saturation(bytes_per_s: Any, capacity_bytes_per_s: Any) -> Any:
    """S_MC, what a memory controller serves over what it can [1]; 1 is saturated."""
    return _ratio(bytes_per_s, capacity_bytes_per_s)


def imbalance(load: npt.ArrayLike) -> Any:
    """Imbalance, sigma / mu of the nodes' loads, shape (..., N), in any unit; 0 where all are idle.

    Raises:
        ValueError: no node, or a load that is negative or not finite.
    """
    array = np.asarray(load, np.float64)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(f"load must have a value for each node, got shape {array.shape}.")
    if not ((array >= 0.0) & np.isfinite(array)).all():
        raise ValueError(f"load must be finite and >= 0, got {array[~((array >= 0.0) & np.isfinite(array))].flat[0]}.")
    mean = array.mean(axis=-1)
    return np.divide(array.std(axis=-1), mean, out=np.zeros_like(mean), where=mean > 0.0)[()]


def load_balance(load: npt.ArrayLike) -> Any:
    """B_load = 1 - sigma / mu of the nodes' loads [1]: 1 is even, and below 0 where few of many nodes work."""
    return 1.0 - imbalance(load)


def migration_rate(migrations: Any, seconds: Any) -> Any:
    """F_migrate, pages or objects moved per second [1]."""
    return _ratio(migrations, seconds)


def coherence_overhead(coherence_s: Any, total_s: Any) -> Any:
    """O_coherence = T_coherence / T_total [1].

    Raises:
        ValueError: a part larger than its whole.
    """
    if np.any(np.asarray(coherence_s) > np.asarray(total_s)):
        raise ValueError(f"coherence_s must be at most total_s, got {coherence_s} of {total_s}.")
    return _ratio(coherence_s, total_s)


def compute_to_communication(compute_s: Any, communication_s: Any) -> Any:
    """Rho = T_compute / T_comm [1]; infinite where nothing is communicated."""
    return _ratio(compute_s, communication_s)


def parallel_efficiency(one_node_s: Any, run_s: Any, num_nodes: Any) -> Any:
    """E = speedup / N, the speedup being the time on one node over that on N [1].

    Raises:
        ValueError: fewer than one node.
    """
    _require_nodes(num_nodes)
    return _ratio(one_node_s, run_s) / num_nodes


def memory_efficiency(bytes_per_s: Any, peak_bytes_per_s: Any, num_nodes: Any = 1) -> Any:
    """eta_mem = BW_achieved / (BW_peak N) [1].

    Args:
        bytes_per_s: achieved by all nodes together.
        peak_bytes_per_s: of one node.
        num_nodes: N.

    Raises:
        ValueError: fewer than one node, or a rate that is negative or NaN.

    >>> float(memory_efficiency(75e9, 100e9))  # exercise 3 [2], of each node
    0.75
    """
    _require_nodes(num_nodes)
    return _ratio(bytes_per_s, np.multiply(peak_bytes_per_s, num_nodes))


@dataclass(frozen=True, eq=False)
class Counters:
    """Raw counts of one run, or of R runs along a leading axis; None is "not counted".

    Attributes:
        elapsed_s: from start to end.
        local: bytes or accesses within a node.
        remote: bytes or accesses between nodes.
        link_bytes: through each directed link, shape (..., L).
        link_bytes_per_s: capacity of each link, shape (L,).
        controller_bytes: through each memory controller, shape (..., N).
        controller_bytes_per_s: capacity of each controller, shape (N,).
        imbalance: sigma / mu of the nodes' load, mean over time; see `imbalance` for a single moment.
        migrations: pages or objects moved.
        compute_s: time at work computing, memory accesses included.
        communication_s: time at work communicating, coherence included.
        coherence_s: time of coherence transitions.
        one_node_s: what the same work takes on one node.
        num_nodes: nodes that compute.
    """

    elapsed_s: Any = None
    local: Any = None
    remote: Any = None
    link_bytes: Any = None
    link_bytes_per_s: Any = None
    controller_bytes: Any = None
    controller_bytes_per_s: Any = None
    imbalance: Any = None
    migrations: Any = None
    compute_s: Any = None
    communication_s: Any = None
    coherence_s: Any = None
    one_node_s: Any = None
    num_nodes: Any = None

    def has(self, *names: str) -> bool:
        """Whether all these were counted."""
        return all(getattr(self, name) is not None for name in names)


def metrics(counters: Counters) -> dict[str, Any]:
    """Every metric of `MEANINGS` that the counters allow, by name, in the shape of the counters' runs.

    Raises:
        ValueError: a count or time that is negative, or a capacity for each link or controller that is not there.
    """
    c = counters
    for name in ("link_bytes", "controller_bytes"):
        counted, capacity = getattr(c, name), getattr(c, f"{name}_per_s")
        if counted is not None and capacity is not None and np.shape(counted)[-1:] != np.shape(capacity)[-1:]:
            raise ValueError(f"{name} and {name}_per_s must agree, got {np.shape(counted)} and {np.shape(capacity)}.")
    found: dict[str, Any] = {}
    if c.has("local", "remote"):
        found["R_L_R"] = local_remote_ratio(c.local, c.remote)
    if c.has("link_bytes", "link_bytes_per_s", "elapsed_s"):
        used = link_utilisation(c.link_bytes, _capacity(c.link_bytes_per_s, c.elapsed_s))
        found["U_link"] = np.max(used, axis=-1, initial=0.0)  # a machine of one node has no link
    if c.has("controller_bytes", "controller_bytes_per_s", "elapsed_s"):
        capacity = _capacity(c.controller_bytes_per_s, c.elapsed_s)
        found["S_MC"] = np.max(controller_saturation(c.controller_bytes, capacity), axis=-1)
        served, mean_capacity = np.sum(c.controller_bytes, axis=-1), capacity.mean(axis=-1)
        found["eta_mem"] = memory_efficiency(served, mean_capacity, capacity.shape[-1])
    if c.imbalance is not None:
        if not (np.asarray(c.imbalance) >= 0.0).all():
            raise ValueError(f"imbalance must be >= 0, got {c.imbalance}.")
        found["B_load"] = np.subtract(1.0, c.imbalance)
    if c.has("migrations", "elapsed_s"):
        found["F_migrate"] = migration_rate(c.migrations, c.elapsed_s)
    if c.has("compute_s", "communication_s"):
        found["rho"] = compute_to_communication(c.compute_s, c.communication_s)
        if c.coherence_s is not None:
            found["O_coherence"] = coherence_overhead(c.coherence_s, np.add(c.compute_s, c.communication_s))
    if c.has("one_node_s", "elapsed_s", "num_nodes"):
        found["E"] = parallel_efficiency(c.one_node_s, c.elapsed_s, c.num_nodes)
    return {name: found[name] for name in MEANINGS if name in found}


def _capacity(bytes_per_s: Any, seconds: Any) -> FloatArray:
    """Bytes that could be moved in the time of each run, shape (..., X) for X rates."""
    return np.asarray(np.asarray(seconds)[..., None] * np.asarray(bytes_per_s), np.float64)


def run_counters(simulator: Simulator, rows: npt.ArrayLike | None = None) -> Counters:
    """What the episodes being played on one machine have counted so far.

    A run begins with the episode and ends when its last task does. What it would take on one node, with the best
    figures of any, is the longest of: its arrivals; its tasks with all data local, spread over that node's cores; and
    their bytes through that node's controller. This is less than any schedule there could do, so E is never
    flattered; and a stream that offers less than N nodes can do keeps E below 1 however well it is placed.
    S_MC and U_link may exceed 1 for a moment's overload: the model settles a stream's speed when it starts.

    Args:
        simulator: where the runs are.
        rows: which of its rows, all on the same machine; all by default.

    Raises:
        ValueError: rows on different machines.
    """
    index = np.arange(simulator.num_rows) if rows is None else np.asarray(rows, np.int64)
    state, machine = simulator.state, np.unique(simulator.state.machine[index])
    if len(machine) != 1:
        raise ValueError(f"rows must be on one machine, got machines {machine.tolist()}.")
    topology = simulator.topologies[machine[0]]
    moved = pair_bytes(simulator, index)
    totals = {name: values[index] for name, values in simulator.totals._asdict().items()}
    arrival_s = simulator.workload.arrival_s[state.episode[index]]
    last_s = np.take_along_axis(arrival_s, np.maximum(state.task[index] - 1, 0)[:, None], axis=1)[:, 0]
    return Counters(
        elapsed_s=np.maximum(totals["last_finish_s"], last_s) - arrival_s[:, 0],
        local=totals["local_bytes"],
        remote=totals["remote_bytes"],
        link_bytes=link_bytes(topology, moved),
        link_bytes_per_s=topology.link_bandwidth_bytes_per_s,
        controller_bytes=moved.sum(axis=(1, 3)),
        controller_bytes_per_s=topology.memory_bandwidth_bytes_per_s,
        imbalance=totals["imbalance"] / np.maximum(state.task[index], 1),
        migrations=totals["migrations"],
        compute_s=totals["compute_s"],
        communication_s=totals["communication_s"],
        coherence_s=totals["coherence_s"],
        one_node_s=np.maximum(last_s - arrival_s[:, 0], _work_s(simulator, topology, index)),
        num_nodes=int((topology.cores > 0).sum()),
    )


def _work_s(simulator: Simulator, topology: Topology, rows: npt.NDArray[np.int64]) -> FloatArray:
    """Least time in which one node could do the tasks decided so far, shape (R,)."""
    workload, episode = simulator.workload, simulator.state.episode[rows]
    decided = np.arange(workload.num_tasks) < simulator.state.task[rows, None]
    own, read = workload.bytes[episode].astype(np.float64), workload.input_bytes[episode].sum(axis=2, dtype=np.float64)
    s_per_byte = np.diagonal(core_s_per_byte(topology)).min()
    alone_s = service_s(
        workload.flops[episode], own, read, workload.overhead_s[episode], topology.flops_per_s.max(), s_per_byte
    )
    cores_s = (alone_s * decided).sum(axis=1) / topology.cores.max()
    memory_s = ((own + read) * decided).sum(axis=1) / topology.memory_bandwidth_bytes_per_s.max()
    return np.asarray(np.maximum(cores_s, memory_s), np.float64)


def pair_bytes(simulator: Simulator, rows: npt.ArrayLike | None = None) -> FloatArray:
    """Bytes read, then written, so far between each initiator and target, shape (R, N, N, 2).

    Args:
        simulator: where the runs are.
        rows: which of its rows, all on the same machine; all by default.
    """
    index = np.arange(simulator.num_rows) if rows is None else np.asarray(rows, np.int64)
    n, width = simulator.topologies[simulator.state.machine[index[0]]].num_nodes, simulator.num_nodes
    counted = simulator.state.pair_bytes[index].reshape(-1, width, width, 2)[:, :n, :n]
    return counted.astype(np.float64)


def link_bytes(topology: Topology, pair_bytes: FloatArray) -> FloatArray:
    """Bytes through each directed link, shape (..., L).

    Args:
        topology: the machine; reads cross the links of a route toward the initiator, writes away from it.
        pair_bytes: read, then written, between each initiator and target, shape (..., N, N, 2).
    """
    reads, writes = topology.route_links
    flat = pair_bytes.reshape(*pair_bytes.shape[:-3], -1, 2)
    return np.asarray(flat[..., 0] @ reads + flat[..., 1] @ writes, np.float64)


def run_metrics(simulator: Simulator, rows: npt.ArrayLike | None = None) -> dict[str, FloatArray]:
    """The metrics of the episodes being played, by the names of `MEANINGS`, shape (R,) each.

    Args:
        simulator: where the runs are.
        rows: which of its rows, on any machines; all by default.
    """
    index = np.arange(simulator.num_rows) if rows is None else np.asarray(rows, np.int64)
    found = {name: np.full(len(index), np.nan) for name in MEANINGS}
    machine = simulator.state.machine[index]
    for each in np.unique(machine):
        here = machine == each
        for name, values in metrics(run_counters(simulator, index[here])).items():
            found[name][here] = values
    return found

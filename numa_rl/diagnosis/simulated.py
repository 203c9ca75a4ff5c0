"""From a simulated run to evidence: what perf would count on a machine, counted by the simulator itself.

Dimension key: R runs, N nodes, L directed links, O objects.

References:
    [1] The chapter, section 16.4.1: the metrics; section 16.4.2: the counters.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from numa_rl.diagnosis.evidence import Draft, Evidence
from numa_rl.metrics import (
    Counters,
    coherence_overhead,
    controller_saturation,
    imbalance,
    link_utilisation,
    migration_rate,
    pair_bytes,
    run_counters,
)
from numa_rl.simulator.simulator import Simulator
from numa_rl.simulator.state import Outcome
from numa_rl.simulator.streams import latency_factor
from numa_rl.topology import FloatArray, Topology
from numa_rl.wording import counted

Indices = npt.NDArray[np.integer]
Figures = npt.NDArray[np.floating]


class Watch:
    """Counts, decision by decision, what runs themselves keep no account of.

    Args:
        simulator: whose runs; all are at their first task.

    Attributes:
        simulator: the same.
        flops: of the tasks that ran, shape (R,).
        used_bytes: that tasks have read and written of objects, shape (R,).
        misplaced_bytes: those of objects that lay on another node than the one that has used most of them lately,
            this use included, shape (R,).

    Raises:
        ValueError: a run has begun already.
    """

    def __init__(self, simulator: Simulator) -> None:
        """Begin with nothing counted."""
        if simulator.state.task.any():
            raise ValueError(f"runs must be watched from their first task on, got task {simulator.state.task.max()}.")
        self.simulator = simulator
        self.flops, self.used_bytes, self.misplaced_bytes = np.zeros((3, simulator.num_rows))
        self._remember()

    def count(self, outcome: Outcome) -> None:
        """Take in what a step of the simulator led to; to be called after each."""
        workload, state = self.simulator.workload, self.simulator.state
        row = np.flatnonzero((state.task > self._task) & ~outcome.out_of_memory)
        episode, task = state.episode[row], self._task[row]
        self.flops[row] += workload.flops[episode, task]
        self._use(row, workload.object[episode, task], outcome.data_node[row], workload.bytes[episode, task])
        for place in range(workload.inputs.shape[2]):
            read = workload.inputs[episode, task, place]
            self._use(row, read, self._node[row, read], workload.input_bytes[episode, task, place])
        self._remember()

    def _remember(self) -> None:
        """What the next step changes: where objects live, and which task is next."""
        self._node = self.simulator.state.objects["node"].copy()
        self._task = self.simulator.state.task.copy()

    def _use(self, row: Indices, obj: Indices, node: Indices, num_bytes: Figures) -> None:
        """Count the use of one object in each row, on the node where it lives; negative where there is none."""
        real = (obj >= 0) & (node >= 0)
        row, obj, node, num_bytes = row[real], obj[real], node[real], num_bytes[real]
        simulator = self.simulator
        by_node = simulator.state.access_bytes.reshape(simulator.num_rows, -1, simulator.num_nodes)[row, obj]
        misplaced = by_node[np.arange(len(row)), node] < by_node.max(axis=1, initial=0.0)
        misplaced &= simulator.state.objects["form"][row, obj] <= 1  # one of several copies serves whoever is near it
        self.used_bytes[row] += num_bytes
        self.misplaced_bytes[row] += num_bytes * misplaced


def run_evidence(watch: Watch) -> Evidence:
    """What the runs that were watched show so far, taken together: sums over the runs come before any ratio [1].

    A simulated run has no threads to migrate and no lines to tell apart, so what needs them is not measured.

    Args:
        watch: what has counted them.

    Raises:
        ValueError: runs on different machines, or no time has passed.
    """
    simulator = watch.simulator
    counters = run_counters(simulator)
    topology = simulator.topologies[simulator.state.machine[0]]
    totals = {name: float(values.sum()) for name, values in simulator.totals._asdict().items()}
    elapsed_s = float(np.sum(counters.elapsed_s))
    if elapsed_s <= 0.0:
        raise ValueError(f"runs must take time to be diagnosed, got {elapsed_s} s.")
    draft = Draft()
    _note_quality(simulator, totals, draft)
    moved = pair_bytes(simulator).sum(axis=0)
    _utilisation(counters, elapsed_s, moved, topology, draft)
    _remote(totals, moved, topology, draft)
    at_work_s = totals["compute_s"] + float(np.sum(counters.communication_s))
    if at_work_s > 0.0:
        coherence = float(coherence_overhead(totals["coherence_s"], at_work_s))
        draft.add("coherence_share", coherence, "time on coherence / time at work")
        draft.add("migration_share", totals["migration_s"] / at_work_s, "time moving objects / time at work")
    draft.add("migrations_per_s", float(migration_rate(totals["migrations"], elapsed_s)), "objects moved / seconds")
    if moved.any():
        draft.add("intensity", float(watch.flops.sum() / moved.sum()), "tasks' flop / memory controllers' bytes")
    if watch.used_bytes.any():
        misplaced = float(watch.misplaced_bytes.sum() / watch.used_bytes.sum())
        draft.add("misplaced_share", misplaced, "bytes used of objects that another node had used more lately")
    return draft.evidence(topology)


def _note_quality(simulator: Simulator, totals: dict[str, float], draft: Draft) -> None:
    """Say what the figures hide."""
    if simulator.num_rows > 1:
        draft.note(
            f"Figures are of {simulator.num_rows} runs together: what is busy in one run and idle in another seems "
            "half busy."
        )
    if totals["dropped"]:
        dropped = counted(int(totals["dropped"]), "task")
        draft.note(f"{dropped} found no memory and had to be dropped: no figure tells of that.")


def _utilisation(counters: Counters, elapsed_s: float, moved: FloatArray, topology: Topology, draft: Draft) -> None:
    """How busy links and controllers were on average, which was busiest, and what that does to latency."""
    how = "mean over time, which hides bursts: bytes / seconds / capacity"
    by_node, by_link = counters.controller_bytes.sum(axis=0), counters.link_bytes.sum(axis=0)
    controllers = np.atleast_1d(controller_saturation(by_node / elapsed_s, counters.controller_bytes_per_s))
    draft.add("controller_utilisation", float(controllers.max()), how)
    draft.figures["busiest_controller"] = f"memory of node {controllers.argmax()}"
    links = np.atleast_1d(link_utilisation(by_link / elapsed_s, counters.link_bytes_per_s))
    if topology.num_links:
        draft.add("link_utilisation", float(links.max()), how)
        source, target = topology.links[links.argmax()]
        draft.figures["busiest_link"] = f"link {source} -> {target}"
    else:
        draft.add("link_utilisation", 0.0, "the machine has no links")
    if moved.any():
        draft.add("controller_imbalance", float(imbalance(by_node)), "sigma / mu of controllers' bytes")
        idle, loaded = _latency_ratios(moved.sum(axis=2), controllers, links, topology)
        how = (
            f"latency at each route's mean load, which hides bursts / idle local latency; {idle:.3g} by distance alone"
        )
        draft.add("latency_ratio", loaded, how)


def _latency_ratios(
    moved: FloatArray, controllers: FloatArray, links: FloatArray, topology: Topology
) -> tuple[float, float]:
    """Mean latency over the bytes of every pair, idle and loaded, over what it would be if all were local and idle.

    Args:
        moved: bytes between each initiator and target, shape (N, N).
        controllers: utilisation of each memory controller, shape (N,).
        links: utilisation of each directed link, shape (L,).
        topology: the machine.
    """
    n, curve = topology.num_nodes, topology.loaded_latency
    reads, writes = topology.route_links
    busiest = np.maximum(((reads + writes) * links).max(axis=1, initial=0.0).reshape(n, n), controllers)
    factor = [latency_factor.py_func(u, curve.a, curve.c, curve.saturated) for u in busiest.ravel()]  # type: ignore[attr-defined]
    loaded_s = topology.latency_s * np.reshape(factor, (n, n))
    local_s = float((moved * np.diag(topology.latency_s)[:, None]).sum())
    return float((moved * topology.latency_s).sum()) / local_s, float((moved * loaded_s).sum()) / local_s


def _remote(totals: dict[str, float], moved: FloatArray, topology: Topology, draft: Draft) -> None:
    """Shares of the bytes that cross between nodes, and of those the far ones."""
    everything = totals["local_bytes"] + totals["remote_bytes"]
    if everything > 0.0:
        how = "bytes between nodes, migrations' too / all bytes"
        draft.add("remote_share", totals["remote_bytes"] / everything, how)
    by_hops = moved.sum(axis=2)
    remote = float(by_hops[topology.hops >= 1].sum())
    if remote > 0.0:
        far = float(by_hops[topology.hops >= 2].sum())
        draft.add("far_share", far / remote, "bytes over two links or more / bytes between nodes")
    elif everything > 0.0:
        draft.add("far_share", 0.0, "no bytes between nodes")

"""What happened over many decisions, summed up for the dashboards.

Dimension key: B rows, N nodes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from envs.world import Rows
from numa_rl.metrics import MEANINGS, run_metrics


class Totals:
    """Sums over decisions since the last `clear`.

    Args:
        num_nodes: N.

    Attributes:
        decisions: how many.
        placements: how often each (task node, data node) was used, shape (N, N).
        traffic_bytes: recent bytes by initiator and target, averaged over rows, summed over steps, shape (N, N).
        metrics: those of the chapter's section 16.4.1 of every episode that ended, by name.
    """

    def __init__(self, num_nodes: int) -> None:
        """Start from nothing."""
        self.num_nodes = num_nodes
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.decisions = 0
        self.steps = 0
        self.placements = np.zeros((self.num_nodes, self.num_nodes), np.int64)
        self.traffic_bytes = np.zeros((self.num_nodes, self.num_nodes))
        self.metrics: dict[str, list[float]] = {name: [] for name in MEANINGS}
        self._sums: dict[str, float] = {}

    def count(self, rows: Rows, rewards: npt.NDArray[np.float64]) -> None:
        """Add what the last step of all rows led to; rows must not have been reset since."""
        simulator = rows.simulator
        outcome, state, machines = simulator.outcome, simulator.state, simulator.machines
        self.decisions += rows.num_rows
        self.steps += 1
        placed = outcome.data_node >= 0
        np.add.at(self.placements, (outcome.task_node[placed], outcome.data_node[placed]), 1)
        n = self.num_nodes
        self.traffic_bytes += state.traffic_bytes.mean(axis=0, dtype=np.float64).reshape(n, n)
        capacity = np.maximum(machines.memory_bytes[state.machine], 1.0)
        load = state.resource_bytes[:, n:] * machines.resource_s_per_byte[state.machine, n:] / simulator.window_s
        self._add(
            cost=-rewards,
            exec_s=outcome.exec_s,
            comm_s=outcome.comm_s,
            wait_s=outcome.wait_s,
            imbalance=outcome.imbalance,
            migrations=outcome.migrated,
            fallbacks=outcome.fell_back,
            out_of_memory=outcome.out_of_memory,
            local_bytes=outcome.local_bytes,
            remote_bytes=outcome.remote_bytes,
            fullest_node=(state.memory_used_bytes / capacity).max(axis=1),
            busiest_link=load.max(axis=1, initial=0.0),
        )
        ended = np.flatnonzero(outcome.finished)
        if len(ended):
            for name, values in run_metrics(simulator, ended).items():
                self.metrics[name].extend(values.tolist())

    def _add(self, **values: npt.NDArray[Any]) -> None:
        for name, array in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(array.sum())

    def mean(self, name: str) -> float:
        """Mean per decision of what `count` sums up."""
        return self._sums.get(name, 0.0) / max(self.decisions, 1)

    def median_metrics(self) -> dict[str, float]:
        """Median over the episodes that ended, without those in which a metric means nothing, by name."""
        known = {name: [value for value in values if not np.isnan(value)] for name, values in self.metrics.items()}
        return {name: float(np.median(values)) for name, values in known.items() if values}

    @property
    def remote_ratio(self) -> float:
        """Bytes moved between nodes over all bytes."""
        moved = self.mean("local_bytes") + self.mean("remote_bytes")
        return self.mean("remote_bytes") / moved if moved > 0 else 0.0

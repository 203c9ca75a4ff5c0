"""The batched analytical backend: B machines stepped at once.

Dimension key: B rows, N nodes, M machines, E episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from numa_rl.simulator.kernel import reset_row, step_range
from numa_rl.simulator.parallel import Chunks
from numa_rl.simulator.state import (
    Outcome,
    State,
    Totals,
    allocate_outcome,
    allocate_state,
    allocate_totals,
    allocate_work,
    compile_machines,
    compile_tasks,
)
from numa_rl.topology import Topology
from numa_rl.workloads.workload import Workload

IntArray = npt.NDArray[np.int64]
MOST_WEIGHT = 255  # as in Linux, /sys/kernel/mm/mempolicy/weighted_interleave


class Simulator:
    """B rows, each playing one episode of the workload on one of the machines.

    It holds no randomness: what happens follows from the episode, the machine and the decisions alone, and
    rows share nothing, so the batch size and the number of threads never change a result.

    Args:
        topologies: the machine, or several; rows choose among them at `reset`.
        workload: the pool of episodes.
        num_rows: how many rows B to simulate.
        window_s: tau, the window over which traffic and accesses are remembered.
        num_threads: threads that share the rows.
        max_nodes: pad machines to this many nodes.

    Raises:
        ValueError: no machine, a window or a count that is not positive, or more threads than numba has.
    """

    def __init__(
        self,
        topologies: Topology | Sequence[Topology],
        workload: Workload,
        num_rows: int,
        *,
        window_s: float,
        num_threads: int = 1,
        max_nodes: int | None = None,
    ) -> None:
        """Allocate everything; rows are meaningless until `reset`."""
        if num_rows < 1:
            raise ValueError(f"num_rows must be at least 1, got {num_rows}.")
        if not (np.isfinite(window_s) and window_s > 0):
            raise ValueError(f"window_s must be finite and > 0, got {window_s}.")
        self.topologies = (topologies,) if isinstance(topologies, Topology) else tuple(topologies)
        self.workload = workload
        self.num_rows = num_rows
        self.window_s = np.float32(window_s)
        self.chunks = Chunks(num_rows, num_threads)
        self.machines = compile_machines(self.topologies, max_nodes)
        self.tasks = compile_tasks(workload)
        self.state: State = allocate_state(num_rows, self.machines, workload.num_objects)
        self.outcome: Outcome = allocate_outcome(num_rows)
        self.totals: Totals = allocate_totals(num_rows)
        self.version = 0  # counts changes of the state
        self._work = np.stack([allocate_work(self.machines) for _ in range(self.chunks.count)])
        self._decided_s = np.zeros(num_rows)

    @property
    def num_nodes(self) -> int:
        """Number of nodes N of the largest machine."""
        return self.machines.max_nodes

    def reset(
        self,
        episodes: npt.ArrayLike,
        *,
        machines: npt.ArrayLike = 0,
        horizons: npt.ArrayLike | None = None,
        rows: npt.ArrayLike | None = None,
    ) -> None:
        """Start an episode in each of these rows.

        Args:
            episodes: which episode of the pool, shape (len(rows),) or one for all.
            machines: which of the topologies, likewise.
            horizons: how many tasks to decide, likewise; all of the episode's by default.
            rows: the rows to reset; all by default.

        Raises:
            ValueError: a row, episode, machine or horizon that is no integer or out of range.
        """
        index = np.arange(self.num_rows) if rows is None else _integers("row", rows)
        limits = {
            "row": (index, 0, self.num_rows - 1),
            "episode": (episodes, 0, self.workload.num_episodes - 1),
            "machine": (machines, 0, len(self.topologies) - 1),
            "horizon": (self.workload.num_tasks if horizons is None else horizons, 1, self.workload.num_tasks),
        }
        values = {}
        for name, (given, low, high) in limits.items():
            array = np.broadcast_to(_integers(name, given), index.shape)
            if array.size and (array.min() < low or array.max() > high):
                bad = array[(array < low) | (array > high)][0]
                raise ValueError(f"{name} must be in {low}..{high}, got {bad}.")
            values[name] = array
        self.version += 1
        for row, episode, machine, horizon in zip(
            index, values["episode"], values["machine"], values["horizon"], strict=True
        ):
            reset_row(self.tasks, self.state, row, episode, machine, horizon)
            self.outcome.finished[row] = False
        for total in self.totals:
            total[index] = 0.0
        self.totals.last_finish_s[index] = self.state.now_s[index]

    def step(self, actions: npt.NDArray[Any]) -> Outcome:
        """Decide the next task of every row; rows whose episode is over stay as they are.

        Args:
            actions: (task node, data node) of each row, integers, shape (B, 2). A task sent to a node without
                cores runs on the nearest node that has some. Of an object that is only read and exists, the data
                node is the copy that the task reads, and one is made where there is none. Actions of shape
                (B, 2 + N) go on with page weights, 0 to 255: where a row has any, the object's pages are split
                over the nodes in proportion to them, and the data node only counts if they have no room.

        Returns:
            What each decision led to: buffers that the next step overwrites.

        Raises:
            ValueError: an action that names no node of the row's machine.
        """
        actions = self.checked(actions)
        arrays = (self.machines, self.tasks, self.state, self.outcome, self.totals, actions, self.window_s)
        self.version += 1
        self.chunks.run(lambda chunk, first, last: step_range(*arrays, self._work[chunk], self._decided_s, first, last))
        return self.outcome

    def checked(self, actions: npt.NDArray[Any]) -> IntArray:
        """The actions as integers, shape (B, 2) or (B, 2 + N).

        Raises:
            ValueError: they are not integers of that shape, one names no node of the row's machine, or a page weight
                is out of range or on a node that the row's machine has not.
        """
        array = np.asarray(actions)
        shapes = [(self.num_rows, 2), (self.num_rows, 2 + self.num_nodes)]
        if array.shape not in shapes or array.dtype.kind not in "iu":
            raise ValueError(
                f"actions must be integers of shape {shapes[0]}, or {shapes[1]} with page weights, "
                f"got {array.dtype} of shape {array.shape}."
            )
        array = np.ascontiguousarray(array, np.int64)
        limit = self.machines.num_nodes[self.state.machine]
        bad = (array[:, :2] < 0) | (array[:, :2] >= limit[:, None])
        if bad.any():
            row, column = (int(i) for i in np.argwhere(bad)[0])
            what = ("task node", "data node")[column]
            raise ValueError(f"{what} must be in 0..{limit[row] - 1}, got {array[row, column]} (row {row}).")
        self._check_weights(array[:, 2:], limit)
        return array

    def _check_weights(self, weights: IntArray, limit: npt.NDArray[np.int32]) -> None:
        """Raise ValueError unless page weights are in range, and 0 for nodes that are not there."""
        most = np.where(np.arange(weights.shape[1]) < limit[:, None], MOST_WEIGHT, 0)
        bad = (weights < 0) | (weights > most)
        if bad.any():
            row, node = (int(i) for i in np.argwhere(bad)[0])
            raise ValueError(
                f"page weight of node {node} must be in 0..{most[row, node]}, got {weights[row, node]} (row {row})."
            )


def _integers(name: str, values: npt.ArrayLike) -> IntArray:
    """The values as integers, or ValueError."""
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got {values!r}.")
    return array.astype(np.int64)

"""What our simulator decided in one episode, as work that any simulator of machines can do again.

A replay says where each task runs, whom it waits for and which bytes it moves between which nodes. It does not say how
long that takes: how streams share controllers and links is what another simulator is asked.

Dimension key: T tasks, F flows, N nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from numa_rl.topology import Topology

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

# One piece of a task's work. A task's flows follow one another on its core, in the order of the array.
FLOW = np.dtype(
    [
        ("task", np.int32),
        ("initiator", np.int32),  # the node whose core moves the bytes
        ("target", np.int32),  # the node whose memory they are in
        ("read_bytes", np.float64),  # through the target's controller and the links toward the initiator
        ("written_bytes", np.float64),  # through the target's controller and the links away from the initiator
        ("flops", np.float64),  # of the task's node; they overlap with the bytes
        ("fixed_s", np.float64),  # time before that, in which nothing is used
        ("joined", np.uint8),  # 1: goes together with the row before, in its time: a move writes what it reads
        ("kind", np.uint8),  # one of the four below
    ],
    align=True,
)
ACCESS, MESSAGE, MOVE, PAGES = range(4)  # to the task's own object; of inputs; of an object; of pages of a split one
AMOUNTS = ("read_bytes", "written_bytes", "flops", "fixed_s")


@dataclass(frozen=True, eq=False)
class Replay:
    """One episode on one machine, as decided.

    Attributes:
        topology: the machine.
        arrival_s: when each task arrives, never decreasing, shape (T,).
        node: where each task runs, shape (T,); -1 for one that was dropped.
        follows_inputs: whether a task is decided only when what it waits for has finished, as in a graph of tasks;
            in a stream it is decided when it arrives, and waits on its core.
        waits: for each task, the earlier tasks that must have finished first.
        flows: of FLOW, task by task, shape (F,).
        response_s: from decision to finish as our simulator says, shape (T,); infinite for dropped tasks.
        finish_s: when each task finishes as our simulator says, likewise.
        window_s: the traffic window tau of our simulator, seconds.

    Raises:
        ValueError: shapes disagree, a task waits for one that is not earlier or was dropped, the window is not a
            positive time, or a flow names a task or node that is not there, is out of order, of no kind, or has an
            amount that is negative or not finite.
    """

    topology: Topology
    arrival_s: F64
    node: I64
    follows_inputs: bool
    waits: tuple[tuple[int, ...], ...]
    flows: npt.NDArray[np.void]
    response_s: F64
    finish_s: F64
    window_s: float

    def __post_init__(self) -> None:
        """Check everything that a simulator would stumble over."""
        t, n = self.num_tasks, self.topology.num_nodes
        for name in ("arrival_s", "node", "response_s", "finish_s"):
            if np.shape(getattr(self, name)) != (t,):
                raise ValueError(f"replay: {name} must have shape ({t},), got {np.shape(getattr(self, name))}.")
        _require("arrival_s", self.arrival_s, np.isfinite(self.arrival_s) & (self.arrival_s >= 0), "finite and >= 0")
        _require("arrival_s", self.arrival_s, np.diff(self.arrival_s, prepend=0.0) >= 0, "non-decreasing")
        cores = np.append(self.topology.cores, 1)  # the last is that of dropped tasks, -1
        _require("node", self.node, (self.node >= -1) & (self.node < n), f"in -1..{n - 1}")
        _require("node", self.node, cores[self.node] > 0, "a node with cores")
        if len(self.waits) != t:
            raise ValueError(f"replay: waits must be given for {t} tasks, got {len(self.waits)}.")
        for task, before in enumerate(self.waits):
            for other in before:
                if not (0 <= other < task and self.node[other] >= 0):
                    raise ValueError(f"replay: task {task} can only wait for earlier tasks that ran, got {other}.")
        if not 0.0 < self.window_s < np.inf:
            raise ValueError(f"replay: window_s must be > 0 and finite, got {self.window_s}.")
        self._check_flows()

    def _check_flows(self) -> None:
        if self.flows.dtype != FLOW or self.flows.ndim != 1:
            raise ValueError(f"replay: flows must be of FLOW, shape (F,), got {self.flows.dtype}.")
        t, n, task = self.num_tasks, self.topology.num_nodes, self.flows["task"]
        _require("task of flow", task, (task >= 0) & (task < t), f"in 0..{t - 1}")
        _require("task of flow", task, np.diff(task, prepend=0) >= 0, "non-decreasing")
        _require("task of flow", task, self.node[task] >= 0, "one that ran")
        for name in ("initiator", "target"):
            _require(name, self.flows[name], (self.flows[name] >= 0) & (self.flows[name] < n), f"in 0..{n - 1}")
        for name in AMOUNTS:
            values = self.flows[name]
            _require(name, values, np.isfinite(values) & (values >= 0), "finite and >= 0")
        _require("kind", self.flows["kind"], self.flows["kind"] <= PAGES, f"in 0..{PAGES}")
        joined = self.flows["joined"] > 0
        alone = np.diff(task, prepend=-1) == 0
        _require("joined", self.flows["joined"], ~joined | alone, "0 in a task's first flow")
        fixed = self.flows["fixed_s"]
        _require("fixed_s", fixed, ~joined | (fixed == 0), "0 where a flow joins the one before")

    @property
    def num_tasks(self) -> int:
        """Number of tasks T."""
        return len(self.arrival_s)

    @property
    def ran(self) -> npt.NDArray[np.bool_]:
        """Tasks that were not dropped, shape (T,)."""
        return self.node >= 0

    def pair_bytes(self) -> F64:
        """All bytes read, then written, between each initiator and target, shape (N, N, 2)."""
        n = self.topology.num_nodes
        total = np.zeros((n, n, 2))
        for column, name in enumerate(("read_bytes", "written_bytes")):
            np.add.at(total[..., column], (self.flows["initiator"], self.flows["target"]), self.flows[name])
        return total


def _require(name: str, values: npt.NDArray[np.generic], good: npt.NDArray[np.bool_], rule: str) -> None:
    """Raise ValueError naming the first entry that is not `good`."""
    if not good.all():
        index = int(np.argmin(good))
        raise ValueError(f"replay: {name}[{index}] must be {rule}, got {values[index]}.")

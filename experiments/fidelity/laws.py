"""Closed forms for how streams share a controller or link, each timing the same recorded decisions again.

A new stream of b bytes meets a resource of capacity C. Known are sums over the streams in flight there: how many, n;
their rate, R; what they have left, V; and what was decided lately, which fades with the window tau: the bytes over
tau C, u, and the time for which streams were there over tau, m. The laws say the seconds per byte, times C:

* `before`: 1 + u;
* `1 - u`: 1 / max(1 - u, f), with a floor f of an equal share, 1 / (1 + n), or of a tenth;
* `count`: 1 + n; or, with what the others leave over, min(1 + n, 1 / (1 - R / C));
* `Little`: 1 + m, for m is how many streams are there on average [1];
* `kept`: min(1 + 2 d, 1 / (1 - R / C)), d = n (1 + x / 2) / (1 + x + x^2 / 2), x = n b / V: the delay that a stream
  has from the others while all move at equal shares, and as much again for the delay that it gives. It is the
  simulator's own, `numa_rl.simulator.streams.shared_s_per_byte`, written a second time;
* `no charge`: the same with 1 + d: without the delay given.

Dimension key: T tasks, N nodes, L links, R = N + L resources, C cores, H hops, F flows.

References:
    [1] J. D. C. Little, "A proof for the queuing formula L = lambda W", 1961.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from experiments.fidelity import laws_kernel as codes
from experiments.fidelity.replay import Replay
from experiments.fidelity.rows import Law, kernel_law
from numa_rl.topology import Topology
from numa_rl.workloads.parameters import require

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
NUM_SUMS = 5
NONE = -1


class Machine(NamedTuple):
    """A topology as the kernel reads it; pairs are initiator and target, row by row."""

    cores: I64  # of each node, (N,)
    first_core: I64  # (N + 1,)
    capacity: F64  # of each resource, (R,)
    pair_s_per_byte: F64  # (N * N,)
    core_s_per_byte: F64  # by what a core keeps in flight, (N * N,)
    latency_s: F64  # (N * N,)
    half_cache_bytes: F64  # (N,)
    flops_per_s: F64  # (N,)
    toward: I64  # resources of links toward the initiator, (N * N, H), then NONE
    away: I64


class Work(NamedTuple):
    """A replay as the kernel reads it."""

    arrival_s: F64
    node: I64
    follows_inputs: bool
    waits: I64  # (T, most), then NONE
    flows: npt.NDArray[np.void]
    first: I64  # the first flow of each task, (T + 1,)


class Cores(NamedTuple):
    """What each core does, (C,) each."""

    free_s: F64
    task: I64
    status: I64
    duration_s: F64
    busy_until_s: F64
    change_s: F64


@dataclass(frozen=True)
class Sharing:
    """A law of sharing; called with a replay it gives each task's response and finish, seconds.

    Attributes:
        code: which law, of `laws_kernel`.
        window: the traffic window, in units of the simulator's own.
        listed: whether the sums are those of the streams there when the task starts, from a list of all decided,
            instead of those kept as of now.

    Raises:
        ValueError: the window is not a positive number.
    """

    code: int
    window: float = 1.0
    listed: bool = False

    def __post_init__(self) -> None:
        """Check the window."""
        require(self, "window", "finite and > 0", lambda window: window > 0.0)

    def __call__(self, replay: Replay) -> tuple[F64, F64]:
        """Time a replay again: response and finish of every task, shape (T,) each, infinite for dropped ones."""
        machine = machine_of(replay.topology)
        num_cores = int(machine.first_core[-1])
        cores = Cores(*(np.zeros(num_cores, kind) for kind in (np.float64, np.int64, np.int64, *[np.float64] * 3)))
        sums = np.zeros((NUM_SUMS, len(machine.capacity)))
        streams = np.zeros((len(replay.flows), 3))
        times = np.zeros((3, replay.num_tasks))
        tau_s = self.window * replay.window_s
        codes.retime(machine, self.code, self.listed, tau_s, work_of(replay), sums, cores, streams, times)
        return times[2] - times[0], times[2]


def work_of(replay: Replay) -> Work:
    """The replay's tasks and flows as arrays."""
    waits = np.full((replay.num_tasks, max(map(len, replay.waits), default=0)), NONE)
    for task, before in enumerate(replay.waits):
        waits[task, : len(before)] = before
    first = np.searchsorted(replay.flows["task"], np.arange(replay.num_tasks + 1))
    node = np.ascontiguousarray(replay.node)
    return Work(np.ascontiguousarray(replay.arrival_s), node, replay.follows_inputs, waits, replay.flows, first)


@lru_cache(maxsize=256)
def machine_of(topology: Topology) -> Machine:
    """The topology's figures as arrays."""
    reads, writes = topology.route_links
    return Machine(
        cores=topology.cores.astype(np.int64),
        first_core=np.concatenate([[0], np.cumsum(topology.cores)]).astype(np.int64),
        capacity=np.concatenate([topology.memory_bandwidth_bytes_per_s, topology.link_bandwidth_bytes_per_s]),
        pair_s_per_byte=1.0 / topology.bandwidth_bytes_per_s.ravel(),
        core_s_per_byte=(topology.latency_s / topology.outstanding_bytes).ravel(),
        latency_s=topology.latency_s.ravel(),
        half_cache_bytes=topology.llc_bytes / 2.0,
        flops_per_s=topology.flops_per_s.astype(np.float64),
        toward=_paths(reads, topology.num_nodes),
        away=_paths(writes, topology.num_nodes),
    )


def _paths(on_route: I64, num_nodes: int) -> I64:
    """The resources of the links on each route, (N * N, H), from whether each is on it, (N * N, L)."""
    paths = np.full((len(on_route), max(int(on_route.sum(axis=1).max(initial=0)), 1)), NONE)
    for pair, links in enumerate(on_route):
        found = np.flatnonzero(links)
        paths[pair, : len(found)] = num_nodes + found
    return paths


KERNEL = "the simulator (kept)"
LAWS: Mapping[str, Law] = {
    KERNEL: kernel_law,
    "kept, timed a second time": Sharing(codes.KEPT),
    "kept, of a list of streams at the start": Sharing(codes.KEPT, listed=True),
    "kept, without the delay given": Sharing(codes.SELFISH),
    "count: 1 / (1 + n)": Sharing(codes.BY_COUNT),
    "count, or what is left over": Sharing(codes.BY_COUNT_OR_RATE),
    "Little: 1 / (1 + m)": Sharing(codes.BY_LITTLE),
    "1 - u, at least 1 / (1 + n)": Sharing(codes.AT_LEAST_EQUAL),
    "1 - u, at least 0.1": Sharing(codes.AT_LEAST_A_TENTH),
    "before: 1 / (1 + u)": Sharing(codes.BY_RECENT_BYTES),
    **{f"before, window x {by:g}": Sharing(codes.BY_RECENT_BYTES, by) for by in (0.03, 0.1, 0.3, 3.0)},
    "nothing is shared": Sharing(codes.IDLE),
}

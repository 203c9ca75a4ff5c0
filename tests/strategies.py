"""Machines and workloads to test on: toys with figures for mental arithmetic, and random ones.

Hypothesis draws the structure (nodes, links, who reads what) and a seed; figures come from the seed, so that
nothing ties by accident and every route is the only shortest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from numa_rl.topology import LoadedLatency, Topology
from numa_rl.workloads.workload import NEVER, NO_OBJECT, Workload


def toy_machine(num_nodes: int = 2, **changes: Any) -> Topology:
    """Nodes in a line: memory gives 100 bytes a second, a link 50; latency is 1 s local and 1 s more per hop.

    A core does 100 flop/s. A node has one core and 1000 bytes of memory; pages have 10 bytes and move in 0.1 s.
    """
    hops = np.abs(np.subtract.outer(np.arange(num_nodes), np.arange(num_nodes)))
    links = [(a, z) for a in range(num_nodes) for z in range(num_nodes) if hops[a, z] == 1]
    figures: dict[str, Any] = {
        "name": "toy",
        "cores": [1] * num_nodes,
        "flops_per_s": [100.0] * num_nodes,
        "memory_bytes": [1000.0] * num_nodes,
        "memory_bandwidth_bytes_per_s": [100.0] * num_nodes,
        "latency_s": 1.0 + hops,
        "bandwidth_bytes_per_s": np.where(hops == 0, 100.0, 50.0),
        "links": links,
        "link_bandwidth_bytes_per_s": [50.0] * len(links),
        "loaded_latency": LoadedLatency(a=1.0, c=0.5, saturated=4.0),
        "outstanding_bytes": 1e9,
        "page_bytes": 10,
        "page_move_s": 0.1,
    }
    return Topology(**{**figures, **changes})


@dataclass(frozen=True)
class Task:
    """One task of a toy episode; `reads` are (object, bytes)."""

    obj: int = 0
    arrival_s: float = 0.0
    flops: float = 0.0
    num_bytes: float = 0.0
    write_fraction: float = 0.0
    size: float = 100.0
    reads: tuple[tuple[int, float], ...] = ()
    overhead_s: float = 0.0


def toy_workload(*episodes: Sequence[Task], freed_after: dict[int, int] | None = None) -> Workload:
    """A pool of episodes of equal length, each a list of tasks."""
    num_objects = 1 + max(max([task.obj, *(obj for obj, _ in task.reads)]) for tasks in episodes for task in tasks)
    num_inputs = max(len(task.reads) for tasks in episodes for task in tasks)

    def padded(task: Task, column: int, empty: float) -> list[float]:
        return [pair[column] for pair in task.reads] + [empty] * (num_inputs - len(task.reads))

    freed = [(freed_after or {}).get(obj, NEVER) for obj in range(num_objects)]
    shape = (len(episodes), len(episodes[0]), num_inputs)
    return Workload(
        name="toy",
        arrival_s=[[task.arrival_s for task in tasks] for tasks in episodes],
        flops=[[task.flops for task in tasks] for tasks in episodes],
        bytes=[[task.num_bytes for task in tasks] for tasks in episodes],
        write_fraction=[[task.write_fraction for task in tasks] for tasks in episodes],
        object=[[task.obj for task in tasks] for tasks in episodes],
        object_bytes=[[task.size for task in tasks] for tasks in episodes],
        inputs=np.reshape([[padded(task, 0, NO_OBJECT) for task in tasks] for tasks in episodes], shape),
        input_bytes=np.reshape([[padded(task, 1, 0.0) for task in tasks] for tasks in episodes], shape),
        freed_after=[freed] * len(episodes),
        overhead_s=[[task.overhead_s for task in tasks] for tasks in episodes],
    )


seeds = st.integers(0, 2**32 - 1)


@st.composite
def machines(draw: st.DrawFn, min_nodes: int = 1, max_nodes: int = 5) -> Topology:
    """A connected machine; some nodes may have no cores, and some little memory."""
    n = draw(st.integers(min_nodes, max_nodes))
    tree = {(node, draw(st.integers(0, node - 1))) for node in range(1, n)}
    chords = draw(st.sets(st.sampled_from([(a, z) for a in range(n) for z in range(a)]), max_size=4)) if n > 1 else ()
    links = sorted({ends for pair in (*tree, *chords) for ends in (pair, pair[::-1])})
    cores = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n).filter(any))
    small = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    rng = np.random.default_rng(draw(seeds))
    far = draw(
        st.sampled_from([1.0, 1e6])
    )  # latencies of nanoseconds hide behind transfers; of milliseconds they do not
    local = np.eye(n, dtype=bool)
    return Topology(
        name="random",
        cores=cores,
        flops_per_s=rng.uniform(1e9, 4e9, n),
        memory_bytes=np.where(small, rng.uniform(1e6, 1.5e8, n), 1e10),
        memory_bandwidth_bytes_per_s=rng.uniform(5e9, 4e10, n),
        latency_s=far * np.where(local, rng.uniform(5e-9, 2e-8, (n, n)), rng.uniform(2e-8, 2e-7, (n, n))),
        bandwidth_bytes_per_s=np.where(local, rng.uniform(1e10, 3e10, (n, n)), rng.uniform(2e9, 2e10, (n, n))),
        links=np.array(links).reshape(-1, 2),
        link_bandwidth_bytes_per_s=rng.uniform(2e9, 2e10, len(links)),
        loaded_latency=LoadedLatency(a=rng.uniform(0.0, 1.0), c=rng.uniform(0.0, 0.9), saturated=rng.uniform(1.0, 4.0)),
        outstanding_bytes=far * draw(st.sampled_from([64.0, 1024.0, 16384.0])),
        llc_bytes=rng.uniform(0.5, 1.5, n) * draw(st.sampled_from([1e6, 3e7, 1e9, 1e10])),
        page_move_s=draw(st.sampled_from([0.0, 1e-6])),
    )


@st.composite
def workloads(draw: st.DrawFn, num_episodes: int = 1, max_tasks: int = 12) -> Workload:
    """Tasks over a few objects that grow, are freed (and may be created anew), and are read by others.

    Some objects are only read once they exist. Sizes are whole bytes, so that sums of them are exact.
    """
    num_tasks, num_objects = draw(st.integers(1, max_tasks)), draw(st.integers(1, 6))
    num_inputs = draw(st.integers(0, 3))
    shape = (num_episodes, num_tasks)
    rng = np.random.default_rng(draw(seeds))
    owned = rng.integers(num_objects, size=shape)
    inputs = rng.integers(num_objects, size=(*shape, num_inputs))
    inputs[(rng.random(inputs.shape) < 0.3) | (inputs == owned[..., None])] = NO_OBJECT
    nothing_read = (inputs == NO_OBJECT) | (rng.random(inputs.shape) < 0.1)
    growth = rng.integers(0, 10_000_000, shape) * (rng.random(shape) < 0.5)
    first_bytes = rng.integers(0, 100_000_000, (num_episodes, num_objects))
    gaps = rng.exponential(0.05, shape) * (rng.random(shape) < 0.8)
    read_only = rng.random((num_episodes, num_objects)) < draw(st.sampled_from([0.0, 0.5]))
    same_before = (owned[:, :, None] == owned[:, None, :]) & np.tri(num_tasks, k=-1, dtype=bool)
    fixed = np.take_along_axis(read_only, owned, axis=1)
    sizes = np.take_along_axis(first_bytes, owned, axis=1) + np.where(fixed, 0, np.cumsum(growth, axis=1))
    writes = rng.random(shape) * (rng.random(shape) < 0.6)
    return Workload(
        name="random",
        arrival_s=np.cumsum(gaps, axis=1),
        flops=rng.exponential(1e8, shape) * (rng.random(shape) < 0.8),
        bytes=rng.exponential(1e9, shape) * (rng.random(shape) < 0.9),
        write_fraction=np.where(fixed & same_before.any(axis=2), 0.0, writes),
        object=owned,
        object_bytes=sizes,
        inputs=inputs,
        input_bytes=np.where(nothing_read, 0.0, rng.exponential(3e8, inputs.shape)),
        freed_after=np.where(
            rng.random((num_episodes, num_objects)) < 0.5,
            NEVER,
            rng.integers(num_tasks, size=(num_episodes, num_objects)),
        ),
        read_only=read_only,
        overhead_s=rng.exponential(0.05, shape) * (rng.random(shape) < 0.3),
        follows_inputs=draw(st.booleans()),
    )


@dataclass(frozen=True)
class Play:
    """A machine, episodes, and the actions of every task, shape (E, T, 2), or (E, T, 2 + N) with page weights."""

    topology: Topology
    workload: Workload
    window_s: float
    actions: np.ndarray


@st.composite
def plays(
    draw: st.DrawFn, num_episodes: int = 1, max_tasks: int = 12, min_nodes: int = 1, weights: bool = False
) -> Play:
    """A random play, in which some objects are split over nodes if there are to be page weights."""
    topology = draw(machines(min_nodes=min_nodes))
    workload = draw(workloads(num_episodes, max_tasks))
    window_s = draw(st.sampled_from([0.02, 0.1, 1.0]))
    rng = np.random.default_rng(draw(seeds))
    actions = rng.integers(topology.num_nodes, size=(num_episodes, workload.num_tasks, 2))
    if weights:
        spread = rng.integers(256, size=(*actions.shape[:2], topology.num_nodes))
        spread *= rng.random(spread.shape) < 0.7
        spread[rng.random(actions.shape[:2]) < 0.5] = 0
        repeated = rng.random(actions.shape[:2]) < 0.3  # by the same weights as before
        spread[repeated] = np.roll(spread, 1, axis=1)[repeated]
        actions = np.concatenate([actions, spread], axis=2)
    return Play(topology, workload, window_s, actions)

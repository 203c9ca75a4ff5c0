"""Playing a workload and measuring what the case study tells of it.

Dimension key: E episodes, T tasks, N nodes, L directed links.

References:
    [1] The chapter, section 16.4.4: the figures of the case study; 16.4.1: the metrics; exercise 1: mean latency.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from agents.scheduler import Planner, Replay, Scheduler
from envs.observation import Observer
from envs.world import World
from numa_rl.breakdown import PARTS, Recorder, core_time
from numa_rl.metrics import link_bytes, link_utilisation, memory_efficiency
from numa_rl.roofline import mean_latency
from numa_rl.simulator.simulator import Simulator
from numa_rl.topology import FloatArray, Topology


@dataclass(frozen=True)
class Figures:
    """What was measured of a run, means over episodes; training steps only, what loads the model is left out.

    Attributes:
        step_s: time of a training step.
        compute: share of core time, see `numa_rl.breakdown`.
        local: likewise.
        remote: likewise.
        synchronisation: likewise.
        remote_bytes: share of all bytes that move between nodes.
        busiest_link: bytes per second over capacity, of the link that moves most in its episode.
        mean_link: the same, mean over links; both 0 where there are none.
        memory: eta_mem, bytes per second over what all memory controllers deliver.
        latency_s: mean idle latency of the bytes.
        dropped: tasks that found no memory, in all episodes.
    """

    step_s: float
    compute: float
    local: float
    remote: float
    synchronisation: float
    remote_bytes: float
    busiest_link: float
    mean_link: float
    memory: float
    latency_s: float
    dropped: int

    @property
    def shares(self) -> tuple[float, ...]:
        """Core time in the order of `numa_rl.breakdown.PARTS`."""
        return tuple(getattr(self, name) for name in PARTS)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def measure(
    scheduler: Scheduler | Planner,
    world: World,
    counted: npt.NDArray[np.bool_],
    num_steps: int,
) -> Figures:
    """Play every episode once and measure its training steps.

    Args:
        scheduler: who decides.
        world: what is played, on its only machine.
        counted: the tasks that are part of a training step, shape (T,).
        num_steps: how many training steps these are.

    Raises:
        ValueError: several machines, or no time passes.
    """
    if len(world.topologies) != 1:
        raise ValueError(f"a study plays on one machine, got {len(world.topologies)}.")
    topology, episodes = world.topologies[0], np.arange(world.workload.num_episodes)
    if isinstance(scheduler, Planner):
        scheduler = Replay(scheduler.name, scheduler.plan(world, np.zeros_like(episodes), episodes))
    simulator = Simulator(topology, world.workload, len(episodes), window_s=world.window_s)
    simulator.reset(episodes)
    recorder = _play(scheduler, simulator, world, counted)
    found = core_time(recorder.times, int(topology.cores.sum()), counted)
    moved, seconds = recorder.moved_bytes, found.makespan_s
    links = _link_use(topology, moved, seconds)
    all_bytes = moved.sum(axis=(1, 2, 3))
    local = np.trace(moved.sum(axis=3), axis1=1, axis2=2)
    capacity = topology.memory_bandwidth_bytes_per_s.mean()
    return Figures(
        step_s=float(seconds.mean() / num_steps),
        **{name: float(getattr(found, name).mean()) for name in PARTS},
        remote_bytes=float((1.0 - local / all_bytes).mean()),
        busiest_link=float(links.max(axis=1, initial=0.0).mean()),
        mean_link=float(links.mean()) if links.size else 0.0,
        memory=float(memory_efficiency(all_bytes / seconds, capacity, topology.num_nodes).mean()),
        latency_s=float(np.mean([_latency_s(topology, each) for each in moved])),
        dropped=int(simulator.totals.dropped.sum()),
    )


def _play(scheduler: Scheduler, simulator: Simulator, world: World, counted: npt.NDArray[np.bool_]) -> Recorder:
    """Play what the simulator was reset to, to its end and deterministically, and write all down."""
    recorder = Recorder(simulator, counted)
    observer = Observer(simulator, world.weights, world.observation)
    looks = not isinstance(scheduler, Replay)  # who carries out a plan needs no observation
    state, start = None, np.ones(simulator.num_rows, bool)
    blank = np.zeros((simulator.num_rows, 0), np.float32)
    for _ in range(simulator.workload.num_tasks):
        observation = observer.observe() if looks else blank
        actions, state = scheduler.predict(observation, state=state, episode_start=start, deterministic=True)
        start = np.zeros(simulator.num_rows, bool)
        recorder.step(actions)
    return recorder


def _link_use(topology: Topology, moved: FloatArray, seconds: FloatArray) -> FloatArray:
    """Bytes per second over capacity of every link in every episode, shape (E, L)."""
    capacity = topology.link_bandwidth_bytes_per_s * seconds[:, None]
    return (
        np.asarray(link_utilisation(link_bytes(topology, moved), capacity))
        if topology.num_links
        else np.zeros((len(seconds), 0))
    )


def _latency_s(topology: Topology, moved: FloatArray) -> float:
    """Exercise 1's mean latency [1], over the measured bytes between each pair of nodes, (N, N, 2)."""
    by_pair = moved.sum(axis=2)
    return mean_latency((by_pair / by_pair.sum()).ravel().tolist(), topology.latency_s.ravel().tolist())

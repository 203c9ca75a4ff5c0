"""The simulator with everything an environment adds: observation, reward, and the choice of episodes.

The single environment, the vector environment and every adapter are faces of this one class.

Dimension key: B rows, N nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from envs.observation import ObservationKind, Observer
from envs.observation_kernel import OBSERVATION_LIMIT, Float32
from envs.reward import RewardWeights
from numa_rl.machines.catalog import load_machine
from numa_rl.simulator.simulator import Simulator
from numa_rl.simulator.state import Outcome
from numa_rl.topology import Topology
from numa_rl.workloads.synthetic import SyntheticStream
from numa_rl.workloads.workload import Workload

DEFAULT_MACHINE = "chapter-8-socket"
DEFAULT_EPISODES = 64


@dataclass(frozen=True, eq=False)
class World:
    """What is scheduled, where, and what it costs: all an environment needs to know.

    Attributes:
        workload: the pool of episodes.
        topologies: the machines; each episode is played on one of them.
        weights: the reward.
        window_s: tau, the window over which traffic is remembered, seconds.
        observation: "full" or "chapter".
    """

    workload: Workload
    topologies: tuple[Topology, ...]
    weights: RewardWeights = field(default_factory=RewardWeights)
    window_s: float = 1.0
    observation: ObservationKind = ObservationKind.FULL

    @classmethod
    def default(cls, observation: ObservationKind | str = ObservationKind.FULL) -> World:
        """The chapter's 8-socket cube under the default synthetic stream."""
        family = SyntheticStream()
        workload = family.generate(np.random.default_rng(0), DEFAULT_EPISODES)
        weights = RewardWeights(reference_s=1e-3)
        return cls(workload, (load_machine(DEFAULT_MACHINE),), weights, 0.05, ObservationKind(observation))

    @classmethod
    def given(cls, world: World | None, observation: ObservationKind | str | None) -> World:
        """The world, or the default one, seen by the groups asked for, or by its own."""
        if world is None:
            return cls.default(observation or ObservationKind.FULL)
        return world if observation is None else replace(world, observation=ObservationKind(observation))


class Rows:
    """B rows of a world, stepped together.

    Args:
        world: what is scheduled.
        num_rows: B.
        num_threads: threads that share the rows.
    """

    def __init__(self, world: World, num_rows: int, num_threads: int = 1) -> None:
        """Allocate; `seed` and `reset` come before the first step."""
        self.world = world
        self.num_rows = num_rows
        self.simulator = Simulator(
            world.topologies, world.workload, num_rows, window_s=world.window_s, num_threads=num_threads
        )
        self.observer = Observer(self.simulator, world.weights, world.observation)
        self.generators = [np.random.default_rng() for _ in range(num_rows)]

    @property
    def observation_space(self) -> spaces.Space[Float32]:
        """Space of one row's observation."""
        box: spaces.Space[Any] = spaces.Box(0.0, float(OBSERVATION_LIMIT), (self.observer.layout.size,), np.float32)
        return box

    @property
    def action_space(self) -> spaces.MultiDiscrete:
        """Space of one row's action: (task node, data node)."""
        return spaces.MultiDiscrete([self.simulator.num_nodes] * 2)

    def reset(self, rows: Sequence[int] | npt.NDArray[Any] | None = None, horizon_shares: Any = 1.0) -> None:
        """Start an episode in these rows, each drawn by the row's own generator.

        Args:
            rows: which; all by default.
            horizon_shares: share of the episode to play, in (0, 1], shape (len(rows),) or one for all.
        """
        index = np.arange(self.num_rows) if rows is None else np.asarray(rows, np.int64)
        drawn = [
            (self.generators[row].integers(self.world.workload.num_episodes), self._draw_machine(row)) for row in index
        ]
        episodes, machines = np.array(drawn, np.int64).reshape(-1, 2).T
        horizons = np.ceil(np.asarray(horizon_shares) * self.world.workload.num_tasks).astype(np.int64)
        if len(index) < self.num_rows:
            self.observer.observe()  # so that afterwards only these rows are new
        self.simulator.reset(episodes, machines=machines, horizons=horizons, rows=index)
        self.observer.observe(index)

    def _draw_machine(self, row: int) -> int:
        """One of the machines; nothing is drawn when there is only one."""
        count = len(self.world.topologies)
        return int(self.generators[row].integers(count)) if count > 1 else 0

    def step(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], Outcome]:
        """Decide the next task of every row; returns the reward R, shape (B,), and what led to it."""
        outcome = self.simulator.step(actions)
        return -self.world.weights.cost(outcome), outcome

    def observe(self) -> Float32:
        """Observation of every row, shape (B, size): a buffer that the next call overwrites."""
        return self.observer.observe()

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Open task nodes, then open data nodes, shape (B, 2 N); the joint mask is their product."""
        return self.observer.masks()

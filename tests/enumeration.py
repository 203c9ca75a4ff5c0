"""Every sequence of placements of a small episode, played in the simulator: what no search can miss."""

from __future__ import annotations

from itertools import product

import numpy as np

from envs.world import World
from numa_rl.simulator.simulator import Simulator


def every_plan(num_nodes: int, num_tasks: int) -> np.ndarray:
    """All plans, shape (N ** (2 T), T, 2)."""
    pairs = list(product(range(num_nodes), repeat=2))
    return np.array(list(product(pairs, repeat=num_tasks)), np.int64).reshape(-1, num_tasks, 2)


def enumerated(world: World, machine: int = 0, episode: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Every plan and what it costs in one episode, summed."""
    plans = every_plan(world.topologies[machine].num_nodes, world.workload.num_tasks)
    simulator = Simulator(world.topologies, world.workload, len(plans), window_s=world.window_s)
    simulator.reset(episode, machines=machine)
    cost = np.zeros(len(plans))
    for task in range(world.workload.num_tasks):
        cost += world.weights.cost(simulator.step(plans[:, task]))
    return plans, cost

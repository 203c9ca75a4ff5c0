"""Local search on a plan: one placement after the other is changed if the whole episode then costs less.

Dimension key: R rows = machine x episode, T tasks, N nodes.

References:
    [1] E. H. L. Aarts, J. K. Lenstra (editors), Local Search in Combinatorial Optimization. Wiley, 1997: iterative
        improvement.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from agents.oracle.beam_kernel import Branches
from agents.oracle.polish_kernel import improve_plans
from agents.oracle.rows import row_bytes
from agents.rollouts import allocate_rollout_scratch, kernel_prices, kernel_weights
from agents.rules.greedy import PricedGreedy
from agents.scheduler import Actions
from envs.world import World
from numa_rl.simulator.parallel import SMALLEST_CHUNK, Chunks
from numa_rl.simulator.simulator import Simulator
from numa_rl.simulator.state import allocate_outcome, allocate_state

I64 = npt.NDArray[np.int64]


def polished(
    plan: Actions,
    world: World,
    machine: I64,
    episode: I64,
    *,
    rule: PricedGreedy,
    candidates: int,
    passes: int,
    num_threads: int = 1,
) -> Actions:
    """Plans that cost no more than these, shape (R, T, 2).

    In the order of tasks, each one's cheapest placements are tried in place of the planned one, with the rest of the
    plan as it is to the episode's end. Whatever lowers the episode's cost stays, so every pass is as good as the last.

    Args:
        plan: whole placements (task node, data node), shape (R, T, 2).
        world: what is scheduled.
        machine: which of its machines each row plays on, shape (R,).
        episode: which episode of its pool, shape (R,).
        rule: whose priced cost says what is cheap.
        candidates: placements tried for each task.
        passes: times to go through an episode; it ends early when a pass has changed nothing.
        num_threads: threads that share the rows; they change no result.

    Raises:
        ValueError: the world's reward is not the plain `RewardWeights`.
    """
    prices, weights = kernel_prices(rule), kernel_weights(world.weights)
    rows = len(plan)
    simulator = Simulator(world.topologies, world.workload, rows, window_s=world.window_s)
    n = simulator.num_nodes
    chunks = Chunks(rows * SMALLEST_CHUNK, num_threads)  # an episode is a chunk's work
    trial_state = allocate_state(chunks.count, simulator.machines, world.workload.num_objects)
    trial = Branches(trial_state, row_bytes(trial_state), allocate_outcome(chunks.count), np.zeros(chunks.count))
    now = Branches(simulator.state, row_bytes(simulator.state), simulator.outcome, np.zeros(rows))
    scratch = [(allocate_rollout_scratch(simulator), np.zeros(candidates, np.int64)) for _ in range(chunks.count)]
    pairs = plan[:, :, 0] * n + plan[:, :, 1]

    def improve(chunk: int, first: int, last: int) -> None:
        improve_plans(
            simulator.machines,
            simulator.tasks,
            now,
            trial,
            pairs,
            scratch[chunk][1],
            prices,
            weights,
            simulator.window_s,
            scratch[chunk][0],
            chunk,
            first // SMALLEST_CHUNK,
            last // SMALLEST_CHUNK,
        )

    for _ in range(passes):
        before = pairs.copy()
        simulator.reset(episode, machines=machine)
        chunks.run(improve)
        if (pairs == before).all():
            break
    return np.stack([pairs // n, pairs % n], axis=-1)

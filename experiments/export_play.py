"""Observations to check an exported policy on: machines drawn at random, at work for the families of the suite.

Dimension key: B rows, N nodes.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from agents.scheduler import Scheduler
from envs.observation_kernel import Float32
from envs.world import Rows, World
from experiments.scenario import Split
from experiments.suite.definition import STANDARD, Definition, read_definition
from experiments.tune import world_of
from numa_rl.machines.drawn import draw_machine

EPISODES, ROWS = 8, 32  # of each family
STRIDE = 4  # decisions between two observations that are kept, so that they differ
ELSEWHERE = 0.2  # share of decisions that chance makes, so that a policy is not asked about its own habits alone


def visited(scheduler: Scheduler, num_nodes: int, count: int, seed: int = 0) -> Float32:
    """Observations of a scheduler that plays every family of the standard suite on a machine of its own.

    Args:
        scheduler: decides, but for some decisions that chance makes.
        num_nodes: N, of every machine.
        count: observations.
        seed: of machines, episodes and chance.

    Returns:
        Full observations, shape (count, size).

    Raises:
        ValueError: machines of so many nodes are not drawn.
    """
    definition = _suite()
    each = -(-count // len(definition.families))
    parts = []
    for number, name in enumerate(definition.families):
        rng = np.random.default_rng([seed, num_nodes, number])
        parts.append(_play(scheduler, _world(definition, name, num_nodes, rng), each, rng))
    return np.concatenate(parts)[:count]


@lru_cache(maxsize=1)
def _suite() -> Definition:
    """The standard suite, which keeps the episodes that it has made."""
    return read_definition(STANDARD)


def _world(definition: Definition, family: str, num_nodes: int, rng: np.random.Generator) -> World:
    """A family on a machine drawn for it."""
    machine = draw_machine(rng, min_nodes=num_nodes, max_nodes=num_nodes)
    return world_of(definition.cell_on(family, machine).scenario, Split.VALIDATION, EPISODES, int(rng.integers(2**31)))


def _play(scheduler: Scheduler, world: World, count: int, rng: np.random.Generator) -> Float32:
    """So many observations of one world, from rows that stand at all stages of an episode."""
    rows = Rows(world, ROWS)
    rows.generators = list(rng.spawn(ROWS))
    rows.reset(horizon_shares=(np.arange(ROWS) + 1) / ROWS)
    found: list[Float32] = []
    for step in range(STRIDE * -(-count // ROWS)):
        observation = rows.observe()
        if step % STRIDE == 0:
            found.append(observation.copy())
        actions, _ = scheduler.predict(observation)
        elsewhere = rng.integers(rows.simulator.num_nodes, size=actions.shape)
        _, outcome = rows.step(np.where(rng.random((ROWS, 1)) < ELSEWHERE, elsewhere, actions))
        ended = np.flatnonzero(outcome.finished)
        if ended.size:
            rows.reset(ended)
    return np.concatenate(found)[:count]

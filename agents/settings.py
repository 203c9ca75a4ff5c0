"""Settings of a rule's parameters: spread evenly over their ranges, and what each costs, as rows of one batch.

Dimension key: S settings, K parameters, E episodes.

References:
    [1] I. M. Sobol, "On the distribution of points in a cube and the approximate evaluation of integrals", 1967;
        shifted at random as in R. Cranley, T. N. L. Patterson, SIAM J. Numer. Anal. 13(6), 1976.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.stats import qmc

from agents.evaluation import BATCH_ROWS, evaluate
from agents.rules.catalog import RULES, make_rule
from envs.world import World

F64 = npt.NDArray[np.float64]


def spread(name: str, count: int, rng: np.random.Generator) -> F64:
    """At least `count` settings of a rule's tunable parameters, spread evenly over their ranges, shape (S, K)."""
    return _settings(name, _sobol(count, len(RULES[name].tunable), rng))


def near(name: str, setting: F64, half_width: float, count: int, rng: np.random.Generator) -> F64:
    """At least `count` settings spread evenly over a box around one, shape (S, K).

    Args:
        name: of the rule.
        setting: the middle of the box, shape (K,).
        half_width: of the box, as a share of each range; what reaches beyond a range is moved to its end.
        count: how many settings.
        rng: shifts them.
    """
    ranges = RULES[name].tunable
    center = [scale.share(value) for scale, value in zip(ranges.values(), setting, strict=True)]
    box = center + half_width * (2.0 * _sobol(count, len(ranges), rng) - 1.0)
    return _settings(name, np.clip(box, 0.0, 1.0))


def setting_costs(name: str, defaults: Mapping[str, float], settings: F64, world: World, num_episodes: int) -> F64:
    """Mean cost of each setting over the first episodes of the pool, on all machines, shape (S,).

    Args:
        name: of the rule.
        defaults: its parameters that are not tunable, and any others.
        settings: values of its tunable parameters, shape (S, K).
        world: whose episodes.
        num_episodes: how many of them.
    """
    num_machines = len(world.topologies)
    per_batch = max(1, BATCH_ROWS // (num_episodes * num_machines))
    costs = []
    for first in range(0, len(settings), per_batch):
        some = settings[first : first + per_batch]
        rows = np.tile(np.repeat(some, num_episodes, axis=0), (num_machines, 1))  # machine by machine, as evaluate
        rule = make_rule(name, **(dict(defaults) | dict(zip(RULES[name].tunable, rows.T, strict=True))))
        episodes = np.tile(np.arange(num_episodes), len(some))
        played = evaluate(rule, world, episodes, batch_rows=len(rows))
        costs.append(played.cost.reshape(num_machines, len(some), num_episodes).mean(axis=(0, 2)))
    return np.concatenate(costs)


def _sobol(count: int, dimensions: int, rng: np.random.Generator) -> F64:
    """At least `count` points spread evenly over the unit cube [1], shape (S, K)."""
    points = qmc.Sobol(dimensions, scramble=False).random_base2(int(np.ceil(np.log2(count))))
    return np.asarray((points + rng.random(dimensions)) % 1.0)


def _settings(name: str, shares: F64) -> F64:
    """Parameter values at these shares of their ranges, to four digits, shape (S, K)."""
    columns = [scale.at(shares[:, k]) for k, scale in enumerate(RULES[name].tunable.values())]
    return np.array([[float(f"{value:.4g}") for value in row] for row in np.stack(columns, axis=1)])

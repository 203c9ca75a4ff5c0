"""Fitting a rule's parameters, so that a learned policy meets every rule at its best.

Many settings are tried on few episodes and the best few on many (successive halving [1]); then the neighbourhood
of the best one is searched. Settings x episodes are rows of one batch, and all settings meet the same episodes.

Dimension key: S settings, K parameters, E episodes.

References:
    [1] K. Jamieson, A. Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization",
        AISTATS 2016.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from agents.rules.base import Rule
from agents.rules.catalog import RULES, make_rule
from agents.settings import near, setting_costs, spread
from envs.reward import RewardWeights
from envs.world import World
from numa_rl.coherence.samples import LINE_BYTES
from numa_rl.topology import Topology

F64 = npt.NDArray[np.float64]

NUM_SETTINGS = 256
FIRST_SHARE = 8  # the first round plays one in 8 episodes
KEPT_SHARE = 4  # each round keeps one in 4 settings and doubles the episodes
FEWEST_SETTINGS = 4
REFINEMENTS = ((0.15, 32), (0.05, 32))  # half width of the box searched, as a share of each range; settings in it


@dataclass(frozen=True)
class TunedRule:
    """A rule with the parameters that did best.

    Attributes:
        name: the rule's name.
        parameters: the value of every parameter, tuned or not.
        untuned_cost: mean cost per decision with the defaults, on the tuning episodes.
        cost: the same with these parameters; never higher.
    """

    name: str
    parameters: Mapping[str, float]
    untuned_cost: float
    cost: float

    @property
    def rule(self) -> Rule:
        """The rule itself."""
        return make_rule(self.name, **self.parameters)


def default_parameters(name: str, weights: RewardWeights, topologies: Sequence[Topology] = ()) -> dict[str, float]:
    """Every parameter of a rule at its default, but for what belongs to the scenario and not to the rule.

    Args:
        name: one of `rule_names()`.
        weights: a parameter called `alpha` takes their alpha.
        topologies: a parameter called `accesses_per_us` takes what their controllers serve at full load, on
            average over these machines, for one rule plays on all of them; its default if there are none.
    """
    rule = make_rule(name)
    parameters = {item.name: getattr(rule, item.name) for item in fields(rule)}
    known = {"alpha": weights.alpha}
    if topologies:
        known["accesses_per_us"] = float(np.mean([full_load_per_us(topology) for topology in topologies]))
    return parameters | {key: value for key, value in known.items() if key in parameters}


def full_load_per_us(topology: Topology) -> float:
    """Accesses to DRAM, a cache line each, that all controllers of a machine serve in a microsecond."""
    return float(topology.memory_bandwidth_bytes_per_s.sum() / (LINE_BYTES * 1e6))


def tune_rule(name: str, world: World, seed: int = 0, num_settings: int = NUM_SETTINGS) -> TunedRule:
    """Fit a rule's tunable parameters to a world's episodes; the same seed gives the same result.

    Args:
        name: one of `rule_names()`.
        world: its pool must hold tuning episodes only: what is tuned on them must be judged on others.
        seed: shifts the settings tried.
        num_settings: about how many settings the first round tries; fewer for one or two parameters.

    Raises:
        ValueError: no rule has this name, or `num_settings` is less than 1.
    """
    if num_settings < 1:
        raise ValueError(f"num_settings must be >= 1, got {num_settings}.")
    defaults = default_parameters(name, world.weights, world.topologies)
    ranges = RULES[name].tunable
    pool = world.workload.num_episodes
    default = np.array([[defaults[parameter] for parameter in ranges]])
    if not ranges:
        cost = float(setting_costs(name, defaults, default, world, pool)[0])
        return TunedRule(name, defaults, cost, cost)

    rng = np.random.default_rng(seed)
    wanted = min(num_settings, 8 * 4 ** len(ranges))
    settings, num_episodes = np.concatenate([default, spread(name, wanted, rng)]), max(1, pool // FIRST_SHARE)
    while num_episodes < pool:
        best = np.argsort(setting_costs(name, defaults, settings, world, num_episodes), kind="stable")
        best = best[: max(FEWEST_SETTINGS, len(settings) // KEPT_SHARE)]
        settings = settings[np.sort(best)]
        num_episodes = min(pool, 2 * num_episodes)
    if (settings[0] != default[0]).any():  # the default stays to the end: tuning must never make a rule worse
        settings = np.concatenate([default, settings])
    costs = setting_costs(name, defaults, settings, world, pool)
    untuned_cost = costs[0]

    for half_width, count in REFINEMENTS:
        close = near(name, settings[costs.argmin()], half_width, count, rng)
        settings = np.concatenate([settings, close])
        costs = np.concatenate([costs, setting_costs(name, defaults, close, world, pool)])

    fitted = dict(zip(ranges, settings[costs.argmin()].tolist(), strict=True))
    return TunedRule(name, defaults | fitted, float(untuned_cost), float(costs.min()))

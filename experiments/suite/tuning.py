"""Every rule tuned twice: to each training cell, and to all of them with one setting.

All cells try the same settings. The cell's best and the suite's best are chosen from one table of costs, whose
second part are settings near the best of the first: near the cell's own, and near the suite's.

Dimension key: C training cells, S settings, K parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agents.rules.catalog import RULES
from agents.settings import near, spread
from agents.tuning import default_parameters
from envs.reward import RewardWeights
from experiments.scenario import Scenario, Split
from experiments.suite.definition import Cell, Counts
from experiments.suite.work import Episodes, Result, SettingsPiece

F64 = npt.NDArray[np.float64]
Parameters = Mapping[str, float]
Compute = Callable[[Sequence[SettingsPiece]], list[Result]]

YARDSTICK = "greedy"  # has nothing to tune; costs in different cells count relative to its
HALF_WIDTH = 0.15  # of the box of settings near the best, as a share of each parameter's range


@dataclass(frozen=True)
class Tuned:
    """Values of rules' tunable parameters that did best on tuning episodes.

    Attributes:
        by_cell: by the name of a training cell, then by rule.
        single: by rule, those with the lowest mean over training cells of the cost relative to plain greedy's.
        relative_cost: that mean, by rule.
    """

    by_cell: Mapping[str, Mapping[str, Parameters]]
    single: Mapping[str, Parameters]
    relative_cost: Mapping[str, float]


def parameters_in(scenario: Scenario, rule: str, fitted: Parameters) -> dict[str, float]:
    """All parameters of a rule in a scenario, some of which belong to the scenario and not to the rule."""
    return default_parameters(rule, scenario.reward, (scenario.topology,)) | dict(fitted)


@dataclass(eq=False)
class _Search:
    """What is known of a rule's settings.

    Attributes:
        rule: its name.
        shared: settings that every cell tried, shape (S, K), the default first.
        shared_costs: what they cost, shape (C, S).
        own: settings that one cell tried besides, shape (C, S', K).
        own_costs: what they cost, shape (C, S').
    """

    rule: str
    shared: F64
    shared_costs: F64
    own: F64 | None = None
    own_costs: F64 | None = None

    def relative(self, yardstick: F64) -> F64:
        """Mean over cells of what each shared setting costs relative to the yardstick (C,), shape (S,)."""
        return np.asarray((self.shared_costs / yardstick[:, None]).mean(axis=0))

    def best_shared(self, yardstick: F64) -> F64:
        """The shared setting with the lowest relative cost, shape (K,)."""
        return np.asarray(self.shared[self.relative(yardstick).argmin()])

    def best_of_cell(self, cell: int) -> F64:
        """The setting with the lowest cost in a cell, shape (K,)."""
        settings, costs = self.shared, self.shared_costs[cell]
        if self.own is not None and self.own_costs is not None:
            settings, costs = np.concatenate([settings, self.own[cell]]), np.append(costs, self.own_costs[cell])
        return np.asarray(settings[costs.argmin()])

    def named(self, setting: F64) -> dict[str, float]:
        """A setting's values by parameter."""
        return dict(zip(RULES[self.rule].tunable, setting.tolist(), strict=True))


def tune_suite(cells: Sequence[Cell], rules: Sequence[str], counts: Counts, seed: int, compute: Compute) -> Tuned:
    """Tune rules; cells that are held out are not looked at.

    Args:
        cells: of the suite.
        rules: names of the rules.
        counts: how many episodes and settings.
        seed: of the episodes and of the settings.
        compute: gives the result of each piece, as `run_pieces` does.
    """
    training = [cell for cell in cells if not cell.held_out]
    episodes = [Episodes(cell.scenario, Split.TUNE, counts.tune_episodes, seed) for cell in training]

    def costs(tables: Mapping[str, Sequence[F64]]) -> dict[str, F64]:
        """What settings cost, shape (C, S), by rule; for each rule, those of every cell, shape (S, K) each."""
        pieces = [
            SettingsPiece(e, rule, t) for rule, some in tables.items() for e, t in zip(episodes, some, strict=True)
        ]
        found = iter(compute(pieces))
        return {rule: np.array([next(found)["costs"] for _ in training]) for rule in tables}

    shared = {rule: _everywhere(rule, counts.settings, seed) for rule in dict.fromkeys([YARDSTICK, *rules])}
    shared_costs = costs({rule: [settings] * len(training) for rule, settings in shared.items()})
    yardstick = shared_costs[YARDSTICK][:, 0]
    searches = [_Search(rule, shared[rule], shared_costs[rule]) for rule in rules]
    _refine([search for search in searches if RULES[search.rule].tunable], yardstick, counts.refinements, seed, costs)
    return Tuned(
        by_cell={
            cell.name: {search.rule: search.named(search.best_of_cell(index)) for search in searches}
            for index, cell in enumerate(training)
        },
        single={search.rule: search.named(search.best_shared(yardstick)) for search in searches},
        relative_cost={search.rule: float(search.relative(yardstick).min()) for search in searches},
    )


def _everywhere(rule: str, count: int, seed: int) -> F64:
    """The default setting, then others all over the ranges, shape (S, K)."""
    defaults = default_parameters(rule, RewardWeights())
    default = np.array([[defaults[name] for name in RULES[rule].tunable]])
    if not RULES[rule].tunable:
        return default
    return np.concatenate([default, spread(rule, count, np.random.default_rng(seed))])


def _refine(
    searches: Sequence[_Search],
    yardstick: F64,
    count: int,
    seed: int,
    costs: Callable[[Mapping[str, Sequence[F64]]], dict[str, F64]],
) -> None:
    """Search near the best setting of every cell, and near the best shared one."""
    own, shared = {}, {}
    for search in searches:
        rng = np.random.default_rng([seed, 1])
        shared[search.rule] = near(search.rule, search.best_shared(yardstick), HALF_WIDTH, count, rng)
        own[search.rule] = np.array(
            [
                near(search.rule, search.best_of_cell(cell), HALF_WIDTH, count, np.random.default_rng([seed, 2]))
                for cell in range(len(yardstick))
            ]
        )
    found = costs({rule: [np.concatenate([shared[rule], some]) for some in own[rule]] for rule in shared})
    for search in searches:
        num_shared = len(shared[search.rule])
        search.shared = np.concatenate([search.shared, shared[search.rule]])
        search.shared_costs = np.concatenate([search.shared_costs, found[search.rule][:, :num_shared]], axis=1)
        search.own, search.own_costs = own[search.rule], found[search.rule][:, num_shared:]

"""How a learned policy fares against the rules: over all cells, on what it has never seen, and where it is worst.

Dimension key: C cells, E episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agents.statistics import Interval, interquartile_mean, interquartile_ratio, mean_ratio, ratio_interval
from experiments.suite.results import TO_SUITE, Entry, Line, SuiteResult
from experiments.suite.sheet import Sheet
from experiments.suite.sources import LEARNED, RULE

CLEARLY_WORSE = 0.01  # than the cell's best rule

NOTE = (
    "In brackets 95% bootstrap intervals, paired by episode. one setting: the interquartile mean of its cost over the "
    "best rule's of the cell, over that of the rule that does best over all training cells with one setting for all. "
    "each cell's best: mean over cells of its mean cost over that of the best rule there, tuned to the cell and chosen "
    "on these very episodes, planners among them where the graph is known. headroom: share of what the oracle saves "
    "against the best rules that it saves too. worst: the cell with the highest ratio. worse: cells where it costs "
    "more than 1% more. Cells in which it could not play count nowhere."
)


@dataclass(frozen=True)
class Standing:
    """A learned policy in some cells.

    Attributes:
        name: of the cells.
        one_setting: see `NOTE`.
        best: likewise.
        headroom: likewise; NaN without an oracle.
        worst: the name of the cell.
        worst_ratio: its mean cost there over that of the cell's best rule.
        num_worse: cells where it costs over 1% more.
        num_cells: of all.
    """

    name: str
    one_setting: Interval
    best: Interval
    headroom: float
    worst: str
    worst_ratio: Interval
    num_worse: int
    num_cells: int


def learned_names(result: SuiteResult) -> list[str]:
    """The learned policies that played."""
    return list(dict.fromkeys(entry.player.name for entry in result.entries if entry.player.kind == LEARNED))


def best_single_rule(result: SuiteResult) -> str:
    """The rule with the lowest interquartile mean over training cells with one setting for all of them."""
    lines = [line for line in result.lines(result.training, TO_SUITE) if line.player.kind == RULE]
    return min(lines, key=lambda line: _pooled(result, line)).player.name


def _pooled(result: SuiteResult, line: Line) -> float:
    return float(interquartile_mean(np.concatenate([result.normalised(entry) for entry in line.entries])))


def standings(result: SuiteResult, name: str) -> list[Standing]:
    """The policy in training cells, on unseen machines, on unseen families, and in all cells."""
    families = {cell.family for cell in result.training}
    kinds = {
        "training": result.training,
        "unseen machines": [cell for cell in result.held_out if cell.family in families],
        "unseen families": [cell for cell in result.held_out if cell.family not in families],
        "all": list(result.cells),
    }
    rule = best_single_rule(result)
    found = []
    for kind, cells in kinds.items():
        names = {cell.name for cell in cells}
        mine = [e for e in result.entries if e.cell.name in names and e.player.name == name and e.failed is None]
        if mine:
            single = {
                e.cell.name: e for line in result.lines(cells, TO_SUITE) for e in line.entries if e.player.name == rule
            }
            found.append(_standing(result, kind, mine, [single[entry.cell.name] for entry in mine]))
    return found


def _standing(result: SuiteResult, kind: str, mine: Sequence[Entry], single: Sequence[Entry]) -> Standing:
    best = [result.best_rule[entry.cell.name] for entry in mine]
    ratios = [
        ratio_interval(entry.cost, rule.cost, np.random.default_rng(result.seed))
        for entry, rule in zip(mine, best, strict=True)
    ]
    worst = int(np.argmax([ratio.estimate for ratio in ratios]))
    return Standing(
        name=kind,
        one_setting=interquartile_ratio(
            [result.normalised(entry) for entry in mine],
            [result.normalised(entry) for entry in single],
            np.random.default_rng(result.seed),
        ),
        best=mean_ratio(
            [entry.cost for entry in mine], [rule.cost for rule in best], np.random.default_rng(result.seed)
        ),
        headroom=_headroom(result, mine, best),
        worst=mine[worst].cell.name,
        worst_ratio=ratios[worst],
        num_worse=sum(ratio.estimate > 1.0 + CLEARLY_WORSE for ratio in ratios),
        num_cells=len(mine),
    )


def _headroom(result: SuiteResult, mine: Sequence[Entry], best: Sequence[Entry]) -> float:
    """What the policy saves against the best rules, over what the oracle saves, in the oracle's episodes."""
    saved, possible = 0.0, 0.0
    for entry, rule in zip(mine, best, strict=True):
        oracle = result.oracle.get(entry.cell.name)
        if oracle is not None:
            count = len(oracle.cost)
            reference = rule.cost[:count].mean()
            saved += 1.0 - entry.cost[:count].mean() / reference
            possible += 1.0 - oracle.cost.mean() / reference
    return saved / possible if possible > 0.0 else float("nan")


def learned_sheets(result: SuiteResult) -> list[Sheet]:
    """A table for each learned policy."""
    rule = best_single_rule(result)
    return [
        Sheet(
            f"learned-{name}",
            f"{name} against {rule}, the best rule with one setting, and against the best rule of each cell",
            ["cells", "", "one setting", "each cell's best", "headroom", "worst", "", "worse"],
            [_row(standing) for standing in standings(result, name)],
            NOTE,
        )
        for name in learned_names(result)
    ]


def _row(standing: Standing) -> list[str]:
    return [
        standing.name,
        str(standing.num_cells),
        change_text(standing.one_setting),
        change_text(standing.best),
        "-" if np.isnan(standing.headroom) else f"{standing.headroom:.0%}",
        standing.worst,
        change_text(standing.worst_ratio),
        str(standing.num_worse),
    ]


def change_text(ratio: Interval) -> str:
    """A ratio as a change in percent with its interval."""
    if not np.isfinite(ratio.high):
        return f"{ratio.estimate - 1.0:+.1%}"
    return f"{ratio.estimate - 1.0:+.1%} [{ratio.low - 1.0:+.1%}, {ratio.high - 1.0:+.1%}]"

"""The suite's tables: everybody over all cells, cell by cell, and who beats whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite, isnan

import numpy as np

from agents.statistics import Interval, ratio_interval
from experiments.suite.definition import Cell
from experiments.suite.learned_report import learned_sheets
from experiments.suite.results import TO_CELL, TO_SUITE, Entry, Line, SuiteResult
from experiments.suite.sheet import Sheet
from experiments.suite.sources import LEARNED

OVERALL_NOTE = (
    "Cost over that of the cell's best rule in the same episode: interquartile mean over cells and episodes, with its "
    "95% stratified bootstrap interval; 1 is the best rule of every cell, chosen on these very episodes, which "
    "flatters it. of oracle: the oracle's mean cost over one's own in the episodes that it played, mean over cells. "
    "best: cells where it is the best rule. OOM: tasks dropped. failed: cells that it could not play. *: sees the "
    "future, at least in streams, and is never the best rule there."
)


def sheets(result: SuiteResult) -> list[Sheet]:
    """All tables: learned policies first, then everybody, then cell by cell."""
    parts = (
        ("tuned", "Cells in which rules were tuned", result.training),
        ("held_out", "Cells held out", result.held_out),
    )
    found = [overall(result, cells, name, title) for name, title, cells in parts if cells]
    found[-1] = replace(found[-1], note=OVERALL_NOTE)
    return [*learned_sheets(result), *found, best_by_cell(result), wins(result)]


def overall(result: SuiteResult, cells: Sequence[Cell], name: str, title: str) -> Sheet:
    """Everybody's interquartile mean over cells: tuned to each cell, where that is allowed, and with one setting."""
    to_cell = {line.player.name: line for line in result.lines(cells, TO_CELL)}
    to_suite = {line.player.name: line for line in result.lines(cells, TO_SUITE)}
    tuned_here = not any(cell.held_out for cell in cells)
    rows = []
    for scheduler, single in to_suite.items():
        tuned = to_cell.get(scheduler, single)
        intervals = [result.interval(line) for line in ([tuned, single] if tuned_here else [single])]
        best = sum(result.best_rule[entry.cell.name].player.name == scheduler for entry in single.entries)
        line = tuned if tuned_here else single
        rows.append(
            (
                intervals[0].estimate,
                [
                    single.name,
                    *(interval_text(interval) for interval in intervals),
                    percent_text(result.percent_of_oracle(line)),
                    str(best),
                    str(line.out_of_memory),
                    str(line.num_failed),
                ],
            )
        )
    rows.sort(key=lambda row: (row[0], row[1][0]))
    tunings = ["tuned to the cell", "one setting"] if tuned_here else ["one setting"]
    headers = ["scheduler", *tunings, "of oracle", "best", "OOM", "failed"]
    return Sheet(name, f"{title}: {len(cells)}", headers, [cells_of for _, cells_of in rows])


def best_by_cell(result: SuiteResult) -> Sheet:
    """Each cell's best rule, how far the next one is, and what the oracle and the learned policies make of it."""
    rows = []
    for cell in result.cells:
        best = result.best_rule[cell.name]
        others = [e for e in result.strongest(cell) if e.is_rule and e.player.name != best.player.name]
        second = min(others, key=lambda entry: float(entry.cost.mean()), default=None)
        rows.append(
            [
                cell.name + ("" if not cell.held_out else " (held out)"),
                str(cell.scenario.topology.num_nodes),
                best.player.name,
                f"{best.cost.mean():.3g}",
                percent_text(result.percent_of_oracle(Line([best]))),
                "-" if second is None else f"{second.player.name} {relative(second, best)}",
                *(relative(entry, best) for entry in result.strongest(cell) if entry.player.kind == LEARNED),
            ]
        )
    learned = [entry.player.name for entry in result.strongest(result.cells[0]) if entry.player.kind == LEARNED]
    return Sheet(
        "best",
        "Cell by cell",
        ["cell", "nodes", "best rule", "cost", "of oracle", "next", *learned],
        rows,
        "Mean cost of a decision on the test episodes, and how much more the next rule costs.",
    )


def wins(result: SuiteResult) -> Sheet:
    """In how many cells each scheduler surely costs less than each other."""
    names, count = result.wins
    seers = {entry.player.name for entry in result.entries if entry.sees_future}
    order = np.argsort(-(count.sum(axis=1) - count.sum(axis=0)), kind="stable")
    return Sheet(
        "wins",
        f"Wins, of {len(result.cells)} cells",
        ["", *(str(place) for place in range(1, len(names) + 1)), "won", "lost"],
        [
            [
                f"{place:2} {names[i]}{'*' if names[i] in seers else ''}",
                *(str(count[i, j]) if i != j else "-" for j in order),
                str(count[i].sum()),
                str(count[:, i].sum()),
            ]
            for place, i in enumerate(order, start=1)
        ],
        "Cells in which the row's mean cost is surely below the column's: the 95% bootstrap interval of the difference,"
        " paired by episode, excludes 0. Rules are tuned to each cell, or to the suite where it is held out. "
        "*: sees the future, at least in streams.",
    )


def wins_by_cell(result: SuiteResult) -> Sheet:
    """Whom each scheduler surely beats in each cell: the matrix of wins, cell by cell, too long to print."""
    names, surely = result.wins_by_cell
    rows = [
        [cell.name, name, " ".join(names[j] for j in np.flatnonzero(surely[place, i]))]
        for place, cell in enumerate(result.cells)
        for i, name in enumerate(names)
    ]
    return Sheet("wins_by_cell", "Whom each surely beats, cell by cell", ["cell", "scheduler", "surely_beats"], rows)


def every_cell(result: SuiteResult) -> Sheet:
    """Everybody in every cell: too long to print."""
    rows = []
    for entry in result.entries:
        line = Line([entry])
        interval = result.interval(line)
        rows.append(
            [
                entry.cell.name,
                entry.player.name,
                entry.player.kind,
                entry.tuning,
                str(entry.sees_future).lower(),
                str(entry.cell.held_out).lower(),
                *(f"{value:.6g}" for value in (entry.cost.mean(), interval.estimate, interval.low, interval.high)),
                f"{result.percent_of_oracle(line):.6g}",
                str(entry.out_of_memory),
                entry.failed or "",
            ]
        )
    headers = ["cell", "scheduler", "kind", "tuning", "sees_future", "held_out", "mean_cost", "normalised_iqm"]
    return Sheet(
        "cells", "Everybody in every cell", [*headers, "low", "high", "of_oracle", "out_of_memory", "failed"], rows
    )


def summary(result: SuiteResult) -> list[str]:
    """In words: where the learned policies lose, first, and what failed."""
    lines = []
    for name in dict.fromkeys(entry.player.name for entry in result.entries if entry.player.kind == LEARNED):
        verdicts: dict[str, list[str]] = {"loses": [], "is not told apart": [], "wins": []}
        for entry in result.entries:
            if entry.player.name == name and entry.player.kind == LEARNED:
                verdicts[_verdict(result, entry)].append(entry.cell.name)
        told = [f"{verdict} in {len(cells)}" for verdict, cells in verdicts.items()]
        lines.append(f"{name} against each cell's best rule: {', '.join(told)} of {len(result.cells)} cells.")
        if verdicts["loses"]:
            lines.append(f"It loses in {', '.join(verdicts['loses'])}.")
    for entry in result.entries:
        if entry.failed is not None:
            lines.append(f"{entry.player.name} failed in {entry.cell.name}: {entry.failed}")
    return lines


def _verdict(result: SuiteResult, entry: Entry) -> str:
    """Whether an entry's mean cost is surely above or below that of the cell's best rule, paired by episode."""
    if entry.failed is not None:
        return "loses"
    best = result.best_rule[entry.cell.name]
    ratio = ratio_interval(entry.cost, best.cost, np.random.default_rng(result.seed))
    return "loses" if ratio.low > 1.0 else "wins" if ratio.high < 1.0 else "is not told apart"


def relative(entry: Entry, best: Entry) -> str:
    """How much more one costs than the best rule."""
    return f"{100.0 * (entry.cost.mean() / best.cost.mean() - 1.0):+.1f}%"


def percent_text(percent: float) -> str:
    """Percent as text, a dash where they are not known."""
    return "-" if isnan(percent) else f"{percent:.1f}%"


def interval_text(interval: Interval) -> str:
    """An estimate and its interval in a few characters."""
    estimate = f"{interval.estimate:.3f}"
    return f"{estimate} [{interval.low:.3f}, {interval.high:.3f}]" if isfinite(interval.high) else estimate

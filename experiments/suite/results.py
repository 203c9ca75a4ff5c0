"""What the suite found, and its statistics: those of rliable [1], over cells as strata.

A run is one scheduler in one episode of a cell. Its normalised cost is its cost over that of the cell's best rule in
the same episode: the rule with the lowest mean cost in the cell's test episodes, under any tuning. A planner counts
as a rule where the graph of tasks is known, never in a stream, whose future it sees; the oracle never.

Dimension key: C cells, E episodes.

References:
    [1] R. Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice", NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from agents.oracle.comparison import percent_of_oracle
from agents.statistics import Interval, interquartile_interval, surely_lower
from experiments.suite.definition import Cell
from experiments.suite.players import Player
from experiments.suite.sources import ORACLE, PLANNER, RULE
from experiments.suite.tuning import Tuned
from experiments.suite.work import FAILED, Result

F64 = npt.NDArray[np.float64]

TO_CELL, TO_SUITE, NOT_TUNED = TUNINGS = ("cell", "suite", "none")


@dataclass(frozen=True, eq=False)
class Entry:
    """One scheduler in one cell.

    Attributes:
        cell: where it played.
        player: who played.
        tuning: what its parameters were fitted to: this cell, the whole suite, or nothing, for it has none.
        result: a column for each figure, or the message of a failure.
    """

    cell: Cell
    player: Player
    tuning: str
    result: Result

    @property
    def failed(self) -> str | None:
        """Why it could not play, None if it did."""
        message: str | None = self.result.get(FAILED)
        return message

    @property
    def sees_future(self) -> bool:
        """Whether it decides with what nobody can know then."""
        return self.player.kind == ORACLE or (self.player.kind == PLANNER and not self.cell.is_graph)

    @property
    def is_rule(self) -> bool:
        """Whether it can be the cell's best rule."""
        return self.player.kind in (RULE, PLANNER) and not self.sees_future and self.failed is None

    @property
    def cost(self) -> F64:
        """Mean cost of a decision, by episode; a single infinite one for a failure."""
        return np.array([np.inf] if self.failed is not None else self.result["cost"], np.float64)

    @property
    def out_of_memory(self) -> int:
        """Tasks dropped."""
        return int(sum(self.result.get("out_of_memory", ())))


@dataclass(frozen=True, eq=False)
class Line:
    """One scheduler over many cells, a line of a table.

    Attributes:
        entries: one for each cell that it played.
    """

    entries: Sequence[Entry]

    @property
    def player(self) -> Player:
        """Who, with the parameters of the first cell."""
        return self.entries[0].player

    @property
    def name(self) -> str:
        """How tables call it: with a star where it sees the future in some cell."""
        return self.player.name + ("*" if any(entry.sees_future for entry in self.entries) else "")

    @property
    def out_of_memory(self) -> int:
        """Tasks dropped."""
        return sum(entry.out_of_memory for entry in self.entries)

    @property
    def num_failed(self) -> int:
        """Cells in which it could not play."""
        return sum(entry.failed is not None for entry in self.entries)


@dataclass(frozen=True, eq=False)
class SuiteResult:
    """Everything that was played.

    Attributes:
        cells: where.
        entries: who fared how; grouped by cell, in the order of the cells.
        tuned: how rules' parameters were chosen.
        seed: of episodes, settings and the bootstrap.
    """

    cells: Sequence[Cell]
    entries: Sequence[Entry]
    tuned: Tuned
    seed: int

    @cached_property
    def best_rule(self) -> dict[str, Entry]:
        """The rule with the lowest mean cost, by cell name.

        Raises:
            ValueError: in some cell no rule could play.
        """
        best: dict[str, Entry] = {}
        for entry in self.entries:
            if entry.is_rule and (entry.cell.name not in best or entry.cost.mean() < best[entry.cell.name].cost.mean()):
                best[entry.cell.name] = entry
        for cell in self.cells:
            if cell.name not in best:
                raise ValueError(f"{cell.name}: at least one rule must have played to compare with, got none.")
        return best

    @cached_property
    def oracle(self) -> dict[str, Entry]:
        """The oracle's entries, by cell name; none where it did not play."""
        return {e.cell.name: e for e in self.entries if e.player.kind == ORACLE and e.failed is None}

    def normalised(self, entry: Entry) -> F64:
        """Cost over that of the cell's best rule in the same episode, of the episodes it played."""
        best, cost = self.best_rule[entry.cell.name].cost, entry.cost
        if entry.failed is not None:
            return np.full(len(best), np.inf)
        return np.asarray(cost / best[: len(cost)])

    def interval(self, line: Line) -> Interval:
        """Interquartile mean of the normalised cost and its 95% stratified bootstrap interval."""
        return interquartile_interval([self.normalised(e) for e in line.entries], np.random.default_rng(self.seed))

    def percent_of_oracle(self, line: Line) -> float:
        """Mean over cells of `percent_of_oracle`, in the episodes that the oracle played; NaN if there are none."""
        percents = []
        for entry in line.entries:
            oracle = self.oracle.get(entry.cell.name)
            if oracle is not None and entry.failed is None:
                percents.append(percent_of_oracle(entry.cost[: len(oracle.cost)], oracle.cost))
        return float(np.mean(percents)) if percents else float("nan")

    def lines(self, cells: Sequence[Cell], tuning: str) -> list[Line]:
        """The schedulers in these cells, under one tuning or with nothing to tune, in the order of the entries."""
        names, by_player = {cell.name for cell in cells}, dict[str, list[Entry]]()
        for entry in self.entries:
            if entry.cell.name in names and entry.tuning in (tuning, NOT_TUNED):
                by_player.setdefault(entry.player.name, []).append(entry)
        return [Line(entries) for entries in by_player.values()]

    @property
    def training(self) -> list[Cell]:
        """Cells in which rules were tuned."""
        return [cell for cell in self.cells if not cell.held_out]

    @property
    def held_out(self) -> list[Cell]:
        """Cells kept for generalisation."""
        return [cell for cell in self.cells if cell.held_out]

    def strongest(self, cell: Cell) -> list[Entry]:
        """Everybody but the oracle, at the best tuning there is in a cell: its own, or the suite's where held out."""
        tuning = TO_SUITE if cell.held_out else TO_CELL
        return [line.entries[0] for line in self.lines([cell], tuning) if line.player.kind != ORACLE]

    @cached_property
    def wins_by_cell(self) -> tuple[list[str], npt.NDArray[np.bool_]]:
        """Names, and for each cell whether each costs surely less than each other, shape (cells, K, K).

        That is: the 95% interval of the difference of mean costs, paired by episode, excludes 0.
        """
        names = list(dict.fromkeys(entry.player.name for cell in self.cells for entry in self.strongest(cell)))
        wins = np.zeros((len(self.cells), len(names), len(names)), np.bool_)
        for place, cell in enumerate(self.cells):
            entries = self.strongest(cell)
            episodes = max(len(entry.cost) for entry in entries)
            costs = [np.broadcast_to(entry.cost, episodes) for entry in entries]
            index = [names.index(entry.player.name) for entry in entries]
            wins[place][np.ix_(index, index)] = surely_lower(np.stack(costs), np.random.default_rng(self.seed))
        return names, wins

    @property
    def wins(self) -> tuple[list[str], npt.NDArray[np.int64]]:
        """Names, and in how many cells each costs surely less than each other, shape (K, K)."""
        names, wins = self.wins_by_cell
        return names, wins.sum(axis=0)

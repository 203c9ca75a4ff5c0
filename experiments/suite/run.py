"""The suite from its cells to its results: tune, play, and let the oracle play."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from agents.rules.catalog import RULES
from agents.rules.greedy import PricedGreedy
from experiments.scenario import Split
from experiments.suite.cache import Cache
from experiments.suite.definition import Cell, Counts
from experiments.suite.players import OraclePlayer, Player, RulePlayer
from experiments.suite.results import NOT_TUNED, TO_CELL, TO_SUITE, Entry, SuiteResult
from experiments.suite.tuning import Tuned, parameters_in, tune_suite
from experiments.suite.work import Episodes, Piece, PlayPiece, Result, run_pieces

LOOKS_AHEAD = PricedGreedy.name  # the rule with which the oracle looks ahead, as tuned to the cell if it plays


@dataclass
class Clock:
    """How long each part of a run took.

    Attributes:
        parts: seconds, by the part's name.
    """

    parts: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time within to a part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.parts[name] = self.parts.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Runner:
    """What runs the suite.

    Attributes:
        cache: where results are kept.
        workers: how many processes compute.
        seed: of episodes and settings.
        clock: told how long each part took.
        on_progress: called with a part's name, the pieces done and all of them.
    """

    cache: Cache
    workers: int
    seed: int = 0
    clock: Clock = field(default_factory=Clock)
    on_progress: Callable[[str, int, int], None] = lambda part, done, of: None

    def run(
        self,
        cells: Sequence[Cell],
        counts: Counts,
        rules: Sequence[str],
        others: Sequence[Player] = (),
        oracle_width: int | None = None,
    ) -> SuiteResult:
        """Tune the rules and play the test episodes.

        Args:
            cells: of the suite.
            counts: how much is played.
            rules: names of the rules.
            others: who else plays all test episodes.
            oracle_width: of the oracle's beam; without one, it does not play.
        """
        tuned = tune_suite(cells, rules, counts, self.seed, lambda pieces: self._compute("tuning", pieces))
        planned = [(cell, *player) for cell in cells for player in _players(cell, rules, others, tuned)]
        results = self._compute(
            "playing",
            [PlayPiece(self._test(cell, counts.test_episodes), player) for cell, player, _ in planned],
        )
        entries = [Entry(*plan, result) for plan, result in zip(planned, results, strict=True)]
        if oracle_width is not None:
            entries += self._oracle(cells, entries, counts.oracle_episodes, oracle_width)
        order = {cell.name: place for place, cell in enumerate(cells)}
        entries.sort(key=lambda entry: order[entry.cell.name])
        return SuiteResult(cells, entries, tuned, self.seed)

    def _oracle(self, cells: Sequence[Cell], entries: Sequence[Entry], count: int, width: int) -> list[Entry]:
        """The oracle in every cell, which knows how everybody else fared in its episodes and can do as well."""
        players = []
        for cell in cells:
            here = [entry for entry in entries if entry.cell is cell and entry.failed is None]
            best = np.stack([entry.cost[:count] for entry in here]).argmin(axis=0)
            others = tuple(here[index].player for index in np.unique(best))
            priced = next(
                (e.player for e in here if isinstance(e.player, RulePlayer) and e.player.name == LOOKS_AHEAD), None
            )
            parameters = parameters_in(cell.scenario, LOOKS_AHEAD, {}) if priced is None else priced.parameters
            players.append(OraclePlayer("oracle", parameters, others, width))
        pieces = [PlayPiece(self._test(cell, count), player) for cell, player in zip(cells, players, strict=True)]
        found = self._compute("oracle", pieces)
        return [Entry(*each[:2], NOT_TUNED, each[2]) for each in zip(cells, players, found, strict=True)]

    def _test(self, cell: Cell, count: int) -> Episodes:
        return Episodes(cell.scenario, Split.TEST, count, self.seed)

    def _compute(self, part: str, pieces: Sequence[Piece]) -> list[Result]:
        with self.clock.part(part):
            return run_pieces(pieces, self.cache, self.workers, lambda done, of: self.on_progress(part, done, of))


def _players(cell: Cell, rules: Sequence[str], others: Sequence[Player], tuned: Tuned) -> Iterator[tuple[Player, str]]:
    """Who plays all test episodes of a cell, and under which tuning."""
    for rule in rules:
        variants: Mapping[str, Mapping[str, float]] = {TO_SUITE: tuned.single[rule]}
        if not RULES[rule].tunable:
            variants = {NOT_TUNED: {}}
        elif not cell.held_out:
            variants = {TO_CELL: tuned.by_cell[cell.name][rule], **variants}
        for tuning, fitted in variants.items():
            yield RulePlayer(rule, parameters_in(cell.scenario, rule, fitted)), tuning
    for player in others:
        yield player, NOT_TUNED

"""What the rows of the ablation study cost, and how sure it is that they differ from the whole policy.

A run is one policy in one episode of a cell. Its normalised cost is its cost over that of the cell's best rule in the
same episode, as in the suite; what is told is the interquartile mean [1] over cells, episodes and training seeds.
All rows are judged on the same draws of the bootstrap, in which episodes of a cell, and seeds, are drawn anew: what is
hard for all of them cancels in the difference.

Dimension key: C cells, S seeds of training, E episodes, D draws.

References:
    [1] R. Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice", NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from agents.statistics import CONFIDENCE, NUM_STRATIFIED_DRAWS, Interval, interquartile_mean
from experiments.studies.ablation_rows import FULL, VARIANTS
from experiments.suite.definition import Cell, Definition
from experiments.suite.sheet import Sheet

F64 = npt.NDArray[np.float64]
PARTS = ("training cells", "unseen machines", "unseen family", "drawn machines")
NOTE = (
    "Cost over the yardstick's in the same episode: interquartile mean over cells, episodes and training seeds. The "
    "yardstick is {yardstick}. against full: how much dearer a row is than the whole policy, in percent of the "
    "yardstick's cost, with the 95% bootstrap interval, paired by episode and seed. {seeds} "
    "training cells: the suite's families and machines to train on; unseen machines: these families on the suite's "
    "others; unseen family: the one held out, on all of the suite's machines; drawn machines: families to train on, "
    "each on machines drawn at random that no training met. Rows that do not see the estimate have no prior either, "
    "which is made of it: compare them with no-prior. Every policy has learned from {labels} labels."
)


def part_of(cell: Cell, definition: Definition) -> str:
    """The column of the table that a cell counts for."""
    if definition.families[cell.family].role != "training":
        return PARTS[2]
    if cell.machine not in definition.machines:
        return PARTS[3]
    return PARTS[1] if cell.held_out else PARTS[0]


@dataclass(frozen=True, eq=False)
class Row:
    """A row: its policies, one for each seed of training, in every cell.

    Attributes:
        name: of its `Variant`.
        costs: by part and then by cell, normalised costs of shape (S, E).
        policies: what is told of each policy, as JSON values.
    """

    name: str
    costs: Mapping[str, Mapping[str, F64]]
    policies: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Judged:
    """A row in one part.

    Attributes:
        cost: the interquartile mean of the normalised cost.
        against_full: by how much it is above the whole policy's.
    """

    cost: Interval
    against_full: Interval


def judge(row: Row, full: Row, seed: int) -> dict[str, Judged]:
    """A row against the whole policy, by part."""
    found = {}
    for part, cells in row.costs.items():
        own, other = ([costs[name] for name in cells] for costs in (cells, full.costs[part]))
        drawn, drawn_full = (drawn_means(some, np.random.default_rng(seed)) for some in (own, other))
        mean, mean_full = (float(interquartile_mean(np.concatenate(some, axis=1))) for some in (own, other))
        found[part] = Judged(_interval(mean, drawn), _interval(mean - mean_full, drawn - drawn_full))
    return found


def drawn_means(cells: Sequence[F64], rng: np.random.Generator) -> F64:
    """The interquartile mean over all cells in each draw of the bootstrap, shape (D,); NaN where a cost is infinite.

    Args:
        cells: of each, normalised costs of shape (S, E).
        rng: draws seeds, the same for all cells, and the episodes of each cell.
    """
    if not all(np.isfinite(costs).all() for costs in cells):
        return np.full(NUM_STRATIFIED_DRAWS, np.nan)
    num_seeds = len(cells[0])
    seeds = rng.integers(num_seeds, size=(NUM_STRATIFIED_DRAWS, num_seeds, 1))
    drawn = []
    for costs in cells:
        episodes = rng.integers(costs.shape[1], size=(NUM_STRATIFIED_DRAWS, 1, costs.shape[1]))
        drawn.append(costs[seeds, episodes].reshape(NUM_STRATIFIED_DRAWS, -1))
    return np.asarray(interquartile_mean(np.concatenate(drawn, axis=1), axis=1))


def _interval(estimate: float, drawn: F64) -> Interval:
    """The percentile interval of draws; unbounded where they are unknown."""
    if np.isnan(drawn).any():
        return Interval(estimate, -np.inf, np.inf)
    tail = 50.0 * (1.0 - CONFIDENCE)
    low, high = np.percentile(drawn, [tail, 100.0 - tail])
    return Interval(estimate, float(low), float(high))


@dataclass(frozen=True, eq=False)
class AblationResult:
    """The rows so far, the whole policy first.

    Attributes:
        rows: those that are done.
        yardstick: what costs are relative to, in words.
        labels: of each row's training.
        seed: of the bootstrap.
    """

    rows: Sequence[Row]
    yardstick: str
    labels: int
    seed: int

    @property
    def judged(self) -> dict[str, dict[str, Judged]]:
        """Every row by name, and by part."""
        full = self.rows[0]
        assert full.name == FULL
        return {row.name: judge(row, full, self.seed) for row in self.rows}

    def sheet(self) -> Sheet:
        """The table."""
        headers = ["row"]
        for part, cells in self.rows[0].costs.items():
            headers += [f"{part} ({len(cells)})", "against full"]
        rows = [
            [name, *(text for each in parts.values() for text in _texts(each, name))]
            for name, parts in self.judged.items()
        ]
        count = len(self.rows[0].policies)
        luck = "How much training itself varies is not in the intervals." if count == 1 else "Seeds are drawn anew too."
        seeds = f"{count} {'policy' if count == 1 else 'policies'} of each row. {luck}"
        note = NOTE.format(yardstick=self.yardstick, labels=f"{self.labels:,}", seeds=seeds)
        return Sheet("ablations", "What each piece is worth", headers, rows, note)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        judged = self.judged
        return {
            "yardstick": self.yardstick,
            "labels": self.labels,
            "seed": self.seed,
            "rows": [
                {
                    "name": row.name,
                    "left_out": VARIANTS[row.name].what,
                    "parts": {part: asdict(each) for part, each in judged[row.name].items()},
                    "cells": {
                        name: float(costs.mean()) for cells in row.costs.values() for name, costs in cells.items()
                    },
                    "policies": list(row.policies),
                }
                for row in self.rows
            ],
        }


def _texts(judged: Judged, name: str) -> tuple[str, str]:
    """A row's two cells for a part."""
    difference = judged.against_full
    text = f"{100 * difference.estimate:+.2f}%"
    if isfinite(difference.low) and isfinite(difference.high):
        text += f" [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"
    return f"{judged.cost.estimate:.4f}", "-" if name == FULL else text

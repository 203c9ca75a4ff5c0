"""What the ablation study plays: the suite's cells and others on drawn machines, by rules and by a trained policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agents.planners.catalog import planner_names
from agents.rules.catalog import rule_names
from agents.rules.greedy import PricedGreedy
from experiments.scenario import Split
from experiments.studies.ablation_results import PARTS, part_of
from experiments.suite.definition import Cell, Counts, Definition
from experiments.suite.players import LearnedPlayer, PlannerPlayer
from experiments.suite.results import TO_SUITE
from experiments.suite.run import Runner
from experiments.suite.work import FAILED, Episodes, PlayPiece, run_pieces
from numa_rl.machines.drawn import draw_machine

F64 = npt.NDArray[np.float64]

BEST_RULE, PRICED_GREEDY = YARDSTICKS = ("best-rule", PricedGreedy.name)
IN_WORDS = {
    BEST_RULE: "the cell's best rule, of all that the suite plays and as it tunes them",
    PRICED_GREEDY: f"{PRICED_GREEDY} with the one setting that serves the suite best",
}


def drawn_cells(definition: Definition, count: int, seed: int) -> list[Cell]:
    """Every training family on machines of its own, drawn at random and held out.

    Args:
        definition: the suite.
        count: machines for each family.
        seed: of the machines.
    """
    families = [name for name, entry in definition.families.items() if entry.role == "training"]
    cells = []
    for number, family in enumerate(families * count):
        # The split keeps them apart from machines that are drawn in training.
        machine = draw_machine(np.random.default_rng([number, seed, Split.TEST]))
        machine = replace(machine, name=f"{machine.name}#{number}")  # two may be alike in shape
        cells.append(definition.cell_on(family, machine, held_out=True))
    return cells


def yardstick_costs(cells: Sequence[Cell], counts: Counts, against: str, runner: Runner) -> dict[str, F64]:
    """What the costs of policies are relative to: mean cost of a decision by test episode, shape (E,), by cell.

    Args:
        cells: all that are played.
        counts: of the suite.
        against: one of `YARDSTICKS`.
        runner: of the suite.
    """
    if against == PRICED_GREEDY:
        played = runner.run(cells, counts, [PRICED_GREEDY])
        return {entry.cell.name: entry.cost for entry in played.entries if entry.tuning == TO_SUITE}
    best = runner.run(cells, counts, rule_names(), [PlannerPlayer(name) for name in planner_names()]).best_rule
    return {name: entry.cost for name, entry in best.items()}


def normalised_costs(
    policy: Path, name: str, cells: Sequence[Cell], yardstick: Mapping[str, F64], runner: Runner
) -> dict[str, F64]:
    """A policy's cost over the yardstick's in the same test episode, shape (E,), by cell; infinite where it failed.

    Args:
        policy: its file.
        name: what the cache calls it.
        cells: where it plays.
        yardstick: see `yardstick_costs`.
        runner: whose cache, workers and seed count.
    """
    player = replace(LearnedPlayer.read(policy), name=name)
    pieces = [
        PlayPiece(Episodes(cell.scenario, Split.TEST, len(yardstick[cell.name]), runner.seed), player) for cell in cells
    ]
    results = run_pieces(pieces, runner.cache, runner.workers, lambda done, of: runner.on_progress(name, done, of))
    costs = {}
    for cell, result in zip(cells, results, strict=True):
        reference = yardstick[cell.name]
        costs[cell.name] = np.full(len(reference), np.inf) if FAILED in result else result["cost"] / reference
    return costs


def by_part(
    definition: Definition, cells: Sequence[Cell], seeds: Sequence[Mapping[str, F64]]
) -> dict[str, dict[str, F64]]:
    """Normalised costs by part and cell, shape (S, E), of the policies of all seeds; parts without cells are left out.

    Args:
        definition: the suite.
        cells: that were played.
        seeds: normalised costs by cell, for each seed.
    """
    parts: dict[str, dict[str, F64]] = {part: {} for part in PARTS}
    for cell in cells:
        parts[part_of(cell, definition)][cell.name] = np.stack([costs[cell.name] for costs in seeds])
    return {part: found for part, found in parts.items() if found}

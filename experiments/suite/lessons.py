"""Lessons and exams of the suite: its training families, on its training machines and on machines drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agents.evaluation import evaluate
from agents.ppo.course import Exam, Lesson
from agents.rules.greedy import PricedGreedy
from envs.world import World
from experiments.scenario import Split
from experiments.suite.definition import Cell, Definition
from experiments.suite.tuning import Parameters, parameters_in
from experiments.tune import world_of
from numa_rl.machines.drawn import draw_machine

EPISODES = 16  # of a lesson: its rows play one each, and those that are left over play some again


@dataclass(frozen=True, eq=False)
class SuiteLessons:
    """The lessons of every update: each family as often as any other, whatever the machine.

    Attributes:
        definition: the suite.
        cells: its training cells.
        prices: of the priced greedy rule, by the name of a cell; those that serve all cells under "".
        seed: of episodes and machines.
        count: lessons of an update.
        drawn_share: share of lessons on machines drawn at random.
    """

    definition: Definition
    cells: Sequence[Cell]
    prices: Mapping[str, Parameters]
    seed: int
    count: int
    drawn_share: float

    def __call__(self, update: int) -> list[Lesson]:
        """The lessons of an update."""
        families = list(dict.fromkeys(cell.family for cell in self.cells))
        first = update * self.count
        return [self._lesson(families[place % len(families)], place) for place in range(first, first + self.count)]

    def _lesson(self, family: str, place: int) -> Lesson:
        """The lesson at a place in the order of all."""
        # The first number tells lessons from all else that is drawn by this seed; scenarios' splits come second.
        rng = np.random.default_rng([place, self.seed, Split.TRAIN])
        known = [cell for cell in self.cells if cell.family == family]
        if rng.random() < self.drawn_share:
            cell = self.definition.cell_on(family, draw_machine(rng))
        else:
            cell = known[int(rng.integers(len(known)))]
        prices = self.prices.get(cell.name, self.prices[""])
        scenario = cell.scenario
        world = World(scenario.family.generate(rng, EPISODES), (scenario.topology,), scenario.reward, scenario.window_s)
        return Lesson(cell.name, world, PricedGreedy(**parameters_in(scenario, PricedGreedy.name, prices)))


def suite_exams(
    cells: Sequence[Cell],
    prices: Parameters,
    episodes: int,
    on_exam: Callable[[str], None] = lambda name: None,
) -> list[Exam]:
    """An exam for each cell, on its validation episodes, against priced greedy with one setting for all cells."""
    exams = []
    for cell in cells:
        on_exam(cell.name)
        world = world_of(cell.scenario, Split.VALIDATION, episodes, 0)
        rule = PricedGreedy(**parameters_in(cell.scenario, PricedGreedy.name, prices))
        exams.append(Exam(cell.name, world, float(evaluate(rule, world).cost.mean())))
    return exams

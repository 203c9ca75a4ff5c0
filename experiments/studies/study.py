"""The case study itself: the chapter's configurations one after another, then who decides on the last one.

References:
    [1] The chapter, section 16.4.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agents.rules.linux import FirstTouch
from agents.scheduler import Planner, Scheduler
from agents.tuning import default_parameters
from experiments.scenario import Scenario, Split
from experiments.studies.configurations import (
    HandTuned,
    hierarchical,
    initial,
    on_one_socket,
    split_name,
    splits,
    training_of,
    with_program,
)
from experiments.studies.printed import AFTER, ALL_REDUCE, BEFORE, DATA_LAYOUT
from experiments.studies.rows import Kind, Row, Rows
from experiments.studies.timing import Figures, measure
from experiments.tune import world_of

OnStep = Callable[[str], None]


@dataclass(frozen=True)
class Play:
    """Which episodes are measured.

    Attributes:
        num_episodes: how many.
        seed: of the episodes.
        split: what they are for.
        on_step: called with what is played.
    """

    num_episodes: int
    seed: int = 0
    split: Split = Split.TEST
    on_step: OnStep = lambda text: None

    def figures(self, scenario: Scenario, scheduler: Scheduler | Planner | None = None) -> Figures:
        """What a scheduler makes of a scenario's episodes; the program's own layout when there is none."""
        family = scenario.family
        world = world_of(scenario, self.split, self.num_episodes, self.seed)
        steps = family.task_step  # type: ignore[attr-defined]  # `training_of` has checked the scenario
        return measure(scheduler or HandTuned(family), world, steps >= 0, family.num_steps)  # type: ignore[attr-defined, arg-type]


def first_touch(scenario: Scenario) -> FirstTouch:
    """What Linux does when nobody places anything, as it is."""
    return FirstTouch(**default_parameters(FirstTouch.name, scenario.reward, (scenario.topology,)))


def play_steps(scenario: Scenario, play: Play) -> Rows:
    """The initial configuration and the three steps of the chapter [1], the last being the scenario itself.

    Args:
        scenario: the last configuration.
        play: which episodes.

    Raises:
        ValueError: the study cannot play this scenario.
    """
    family, sockets = training_of(scenario), scenario.topology.num_nodes
    start, reduced = (with_program(scenario, make(family, sockets)) for make in (initial, hierarchical))
    play.on_step("one socket")
    one_socket = play.figures(on_one_socket(scenario))
    play.on_step("initial configuration")
    first = play.figures(start, first_touch(scenario))
    rows = Rows(first, one_socket.step_s, sockets)
    rows.add("initial: first touch", Kind.STEP, first, BEFORE)
    for name, configuration, printed in (
        ("+ data layout", start, DATA_LAYOUT),
        ("+ all-reduce, 16 MB", reduced, ALL_REDUCE),
        (f"+ hybrid {split_name(family)}", scenario, AFTER),
    ):
        play.on_step(name)
        rows.add(name, Kind.STEP, play.figures(configuration), printed)
    return rows


def play_splits(scenario: Scenario, play: Play) -> dict[str, Figures]:
    """Every split of the scenario's work over its sockets, hand-tuned, on tuning episodes; the fastest first.

    Which one is best is chosen on other episodes than those on which it is measured.
    """
    family, tuning = training_of(scenario), Play(play.num_episodes, play.seed, Split.TUNE, play.on_step)
    found = {}
    for each in splits(family, scenario.topology.num_nodes):
        play.on_step(split_name(each))
        found[split_name(each)] = tuning.figures(with_program(scenario, each))
    return dict(sorted(found.items(), key=lambda item: item[1].step_s))


def play_schedulers(
    scenario: Scenario, play: Play, rows: Rows, schedulers: Sequence[tuple[Kind, Scheduler | Planner]]
) -> None:
    """Add a row for everybody who decides on the scenario, in the order given."""
    for kind, scheduler in schedulers:
        play.on_step(scheduler.name)
        rows.add(scheduler.name, kind, play.figures(scenario, scheduler))


def targets(hand_tuned: Row, learned: Row | None) -> dict[str, bool]:
    """What the study is to show, and whether the better of the two does; the learned one is also to be that."""
    best = hand_tuned if learned is None or learned.gain < hand_tuned.gain else learned
    met: dict[str, Any] = {
        "throughput >= 2.4x": best.gain >= 2.4,
        "efficiency >= 85%": best.efficiency >= 0.85,
        "remote time <= 7%": best.figures.remote <= 0.07,
    }
    if learned is not None:
        met["learned >= hand-tuned"] = learned.gain >= hand_tuned.gain
    return met

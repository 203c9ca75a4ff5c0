"""How the initial and the best configuration scale with the number of sockets, and with what the study assumes.

References:
    [1] G. M. Amdahl, AFIPS 1967, and J. L. Gustafson, CACM 1988: the same work on more processors, and work that grows
        with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from experiments.scenario import Scenario
from experiments.studies.configurations import (
    CHAPTER_MACHINES,
    initial,
    on_one_socket,
    split_name,
    splits,
    training_of,
    with_program,
)
from experiments.studies.study import Play, first_touch
from experiments.studies.timing import Figures
from numa_rl.metrics import parallel_efficiency
from numa_rl.workloads.training import TransformerTraining

TOKEN_FACTORS = (0.5, 1.0, 2.0, 4.0)
WINDOW_FACTORS = (0.5, 2.0)


class Growth(StrEnum):
    """Whether the work grows with the sockets."""

    STRONG = "strong"  # the same work
    WEAK = "weak"  # as many micro-batches for each socket


@dataclass(frozen=True)
class Point:
    """Both configurations on some sockets.

    Attributes:
        growth: of the work.
        sockets: N.
        best_split: the fastest hand-tuned split.
        initial_step_s: time of a step as the initial configuration.
        best_step_s: the same as the best one.
        initial_efficiency: strong: T_1 / (N T_N); weak: T_1 / T_N.
        best_efficiency: likewise.
    """

    growth: Growth
    sockets: int
    best_split: str
    initial_step_s: float
    best_step_s: float
    initial_efficiency: float
    best_efficiency: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def scaling(scenario: Scenario, play: Play) -> list[Point]:
    """Strong and weak scaling [1] up to the scenario's sockets; weak scaling adds micro-batches with the sockets.

    Args:
        scenario: the case study.
        play: which episodes.
    """
    sockets = scenario.topology.num_nodes
    family = training_of(scenario)
    points: list[Point] = []
    for growth in Growth:
        for count in [each for each in CHAPTER_MACHINES if each <= sockets]:
            micro_batches = family.micro_batches * (count if growth is Growth.WEAK else sockets) // sockets
            play.on_step(f"{growth.value} scaling, {count} sockets")
            points.append(_point(scenario, replace(family, micro_batches=micro_batches), growth, count, play, points))
    return points


def _point(
    scenario: Scenario, work: TransformerTraining, growth: Growth, sockets: int, play: Play, before: Sequence[Point]
) -> Point:
    """Both configurations on so many sockets, compared with one socket, whose point is among those before."""
    machine = CHAPTER_MACHINES[sockets]
    start = with_program(scenario, initial(work, sockets), machine)
    # On one socket nothing is to be placed; elsewhere Linux places the initial configuration.
    initial_s = play.figures(start, None if sockets == 1 else first_touch(start)).step_s
    hand_tuned = {
        split_name(each): play.figures(with_program(scenario, each, machine)) for each in splits(work, sockets)
    }
    best = min(hand_tuned, key=lambda name: hand_tuned[name].step_s)
    best_s = hand_tuned[best].step_s
    one = next((point for point in before if point.growth is growth and point.sockets == 1), None)
    one_s = best_s if one is None else one.best_step_s
    times_work = sockets if growth is Growth.WEAK else 1
    return Point(
        growth,
        sockets,
        best,
        initial_s,
        best_s,
        float(parallel_efficiency(one_s * times_work, initial_s, sockets)),
        float(parallel_efficiency(one_s * times_work, best_s, sockets)),
    )


@dataclass(frozen=True)
class Sensitivity:
    """How the result depends on an input.

    Attributes:
        what: the input.
        value: of it.
        initial_efficiency: E of the initial configuration.
        gain: throughput of the hybrid one over it.
        efficiency: E of the hybrid one, hand-tuned.
        remote: share of its core time.
        is_case: whether this is the value of the case study.
    """

    what: str
    value: str
    initial_efficiency: float
    gain: float
    efficiency: float
    remote: float
    is_case: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def sensitivity(scenario: Scenario, play: Play) -> list[Sensitivity]:
    """The study's first and last configuration at other tokens of a step, and other windows of the simulator."""
    family = training_of(scenario)
    return [
        _sensitivity(what, value, changed, play, is_case)
        for what, value, changed, is_case in _changes(scenario, family)
    ]


def _changes(scenario: Scenario, family: TransformerTraining) -> Iterator[tuple[str, str, Scenario, bool]]:
    for factor in TOKEN_FACTORS:
        tokens = family.micro_batch_tokens * factor
        changed = with_program(scenario, replace(family, micro_batch_tokens=tokens))
        yield "tokens of a step", f"{tokens * family.micro_batches:.0f}", changed, factor == 1.0
    for factor in WINDOW_FACTORS:
        window_s = scenario.window_s * factor
        yield "traffic window", f"{window_s * 1e3:.0f} ms", replace(scenario, window_s=window_s), False


def _sensitivity(what: str, value: str, scenario: Scenario, play: Play, is_case: bool) -> Sensitivity:
    play.on_step(f"{what} {value}")
    family, sockets = training_of(scenario), scenario.topology.num_nodes
    start = with_program(scenario, initial(family, sockets))
    one, first, last = _one_first_last(scenario, start, play)

    def efficiency(figures: Figures) -> float:
        return float(parallel_efficiency(one.step_s, figures.step_s, sockets))

    return Sensitivity(
        what, value, efficiency(first), first.step_s / last.step_s, efficiency(last), last.remote, is_case
    )


def _one_first_last(scenario: Scenario, start: Scenario, play: Play) -> tuple[Figures, Figures, Figures]:
    return play.figures(on_one_socket(scenario)), play.figures(start, first_touch(start)), play.figures(scenario)

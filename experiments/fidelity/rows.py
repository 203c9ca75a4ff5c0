"""A row for each cell and scheduler: how far our simulator is from the referee, and how loaded the machine was.

The load is measured in the referee's world: of all nodes' cores, controllers and links, that of the busiest, over the
whole episode from the first arrival to the end of the last task.

Dimension key: T tasks, E episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.fidelity.metrics import median_and_p95, relative_error
from experiments.fidelity.referee import Played
from experiments.fidelity.replay import Replay

F64 = npt.NDArray[np.float64]
Law = Callable[[Replay], tuple[F64, F64]]  # response and finish of every task, seconds, shape (T,) each


def kernel_law(replay: Replay) -> tuple[F64, F64]:
    """What our simulator said when it was played: the first of all laws."""
    return replay.response_s, replay.finish_s


@dataclass(frozen=True)
class Where:
    """Which cell, and who decided in it.

    Attributes:
        family: of the workload.
        machine: its name.
        num_nodes: of the machine.
        asked_percent: what the family was asked to offer; None for one without a pace.
        scheduler: who decided.
        loaded_latency: whether our world has the loaded-latency factor; the referee's never has.
    """

    family: str
    machine: str
    num_nodes: int
    asked_percent: float | None
    scheduler: str
    loaded_latency: bool

    @property
    def cell(self) -> tuple[str, str, float | None, bool]:
        """What schedulers share that play the same episodes."""
        return self.family, self.machine, self.asked_percent, self.loaded_latency

    @property
    def cell_name(self) -> str:
        """The same as text."""
        asked = "" if self.asked_percent is None else f" {self.asked_percent:g}%"
        return f"{self.family}/{self.machine}{asked}"


@dataclass(frozen=True, eq=False)
class Judged:
    """Episodes of a cell as a scheduler played them, and what came of them in the referee's world.

    Attributes:
        where: cell and scheduler.
        replays: one for each episode.
        played: the referee's times of each.
    """

    where: Where
    replays: Sequence[Replay]
    played: Sequence[Played]


@dataclass(frozen=True)
class Row:
    """How far a law is from the referee in a cell with a scheduler.

    Attributes:
        where: cell and scheduler.
        load: of the busiest resource in the referee's world, a share.
        resource: which one that is.
        task_median: median over tasks of the size of the response's relative error.
        task_p95: its 95th percentile.
        response_error: signed relative error of the mean response.
        makespan_error: signed relative error of the mean makespan.
        response_s: mean response by our law.
        referee_response_s: the same in the referee's world.
        makespan_s: mean makespan by our law.
        referee_makespan_s: the same in the referee's world.
        num_tasks: tasks that were placed.
        num_dropped: tasks for which no node had room; neither world times them.
    """

    where: Where
    load: float
    resource: str
    task_median: float
    task_p95: float
    response_error: float
    makespan_error: float
    response_s: float
    referee_response_s: float
    makespan_s: float
    referee_makespan_s: float
    num_tasks: int
    num_dropped: int

    @property
    def is_paced(self) -> bool:
        """Whether its family has a load to be asked for: the others are reported apart."""
        return self.where.asked_percent is not None

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self.where) | {name: value for name, value in asdict(self).items() if name != "where"}


def row_of(judged: Judged, law: Law = kernel_law) -> Row:
    """One row.

    Args:
        judged: a scheduler's episodes with the referee's times.
        law: how our world times the tasks.

    Raises:
        ValueError: no task was placed, or a world leaves one without a time.
    """
    ours, theirs = [], []
    makespans_s = np.zeros((2, len(judged.replays)))
    for episode, (replay, played) in enumerate(zip(judged.replays, judged.played, strict=True)):
        response_s, finish_s = (times[replay.ran] for times in law(replay))
        ours.append(response_s)
        theirs.append(played.response_s[replay.ran])
        last_s = max(float(finish_s.max(initial=0.0)), float(replay.arrival_s[-1]))
        makespans_s[:, episode] = last_s - replay.arrival_s[0], played.makespan_s
    mine, referee = np.concatenate(ours), np.concatenate(theirs)
    makespan_s, referee_makespan_s = (float(mean_s) for mean_s in makespans_s.mean(axis=1))
    name = f"{judged.where.cell_name}, {judged.where.scheduler}"
    if not len(mine):
        raise ValueError(f"{name}: no task found room.")
    if not (np.isfinite(mine).all() and np.isfinite(referee).all() and np.isfinite(makespans_s).all()):
        raise ValueError(f"{name}: every task that ran must have a finite time, got one without.")
    resource, load = busiest([played.loads for played in judged.played])
    median, p95 = median_and_p95(relative_error(mine, referee))
    return Row(
        where=judged.where,
        load=load,
        resource=resource,
        task_median=median,
        task_p95=p95,
        response_error=float(relative_error(mine.mean(), referee.mean())),
        makespan_error=float(relative_error(makespan_s, referee_makespan_s)),
        response_s=float(mine.mean()),
        referee_response_s=float(referee.mean()),
        makespan_s=makespan_s,
        referee_makespan_s=referee_makespan_s,
        num_tasks=len(mine),
        num_dropped=sum(int((~replay.ran).sum()) for replay in judged.replays),
    )


def compare(judged: Sequence[Judged], laws: Mapping[str, Law]) -> dict[str, list[Row]]:
    """The rows by each law that times the same replays, in the order of both."""
    return {name: [row_of(each, law) for each in judged] for name, law in laws.items()}


def busiest(episodes: Sequence[Mapping[str, float]]) -> tuple[str, float]:
    """The resource that is busy for the largest share of the time on average over episodes, and that share."""
    names = dict.fromkeys(name for busy in episodes for name in busy)
    means = {name: float(np.mean([busy.get(name, 0.0) for busy in episodes])) for name in names}
    return max(means.items(), key=lambda item: item[1], default=("nothing", 0.0))

"""Plays every cell in our simulator, and its decisions again in the referee's world.

The schedulers see our world: the referee is given what they decided, and times it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from experiments.fidelity.cells import LoadedCell, Plan, make_scheduler
from experiments.fidelity.judge_play import Found, Judge, OnProgress, judge_recorded, play_each
from experiments.fidelity.record import record


def play_cells(
    cells: Sequence[LoadedCell],
    plan: Plan,
    judge: Judge,
    *,
    loaded_latency: bool,
    workers: int = 1,
    on_progress: OnProgress = lambda done, of: None,
) -> Found:
    """Every scheduler in every cell, in the order of both.

    Args:
        cells: the plan's.
        plan: who decides, and on which episodes.
        judge: the referee.
        loaded_latency: whether our world has the loaded-latency factor of its machines.
        workers: cells at a time; the referee computes in processes of its own, so threads are enough.
        on_progress: called with the number of cells done, and of all.

    Returns:
        What came of it, and in words what the referee could not play, which is left out.

    Raises:
        ValueError: a scheduler cannot play, or the referee could play nothing.
    """
    play = partial(play_cell, plan=plan, judge=judge, loaded_latency=loaded_latency)
    return play_each(cells, play, workers=workers, on_progress=on_progress)


def play_cell(cell: LoadedCell, plan: Plan, judge: Judge, *, loaded_latency: bool) -> Found:
    """Every scheduler in one cell, on the same episodes; see `play_cells`."""
    world = cell.world(plan.num_episodes, plan.seed, loaded_latency=loaded_latency)
    recorded = {name: record(world, make_scheduler(name, world)) for name in plan.schedulers}
    return judge_recorded(cell, recorded, judge, loaded_latency=loaded_latency)

"""Plays every cell in our simulator, and its decisions again in the referee's world.

The schedulers see our world: the referee is given what they decided, and times it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from experiments.fidelity.cells import LoadedCell, Plan, make_scheduler
from experiments.fidelity.record import record
from experiments.fidelity.referee import Played, RefereeError
from experiments.fidelity.replay import Replay
from experiments.fidelity.rows import Judged, Where

Judge = Callable[[Sequence[Replay]], Sequence[Played]]
OnProgress = Callable[[int, int], None]


def play_cells(
    cells: Sequence[LoadedCell],
    plan: Plan,
    judge: Judge,
    *,
    loaded_latency: bool,
    workers: int = 1,
    on_progress: OnProgress = lambda done, of: None,
) -> tuple[list[Judged], list[str]]:
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
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        jobs = [pool.submit(play_cell, cell, plan, judge, loaded_latency=loaded_latency) for cell in cells]
        for done, job in enumerate(as_completed(jobs), start=1):
            job.result()  # an error ends it all
            on_progress(done, len(cells))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    judged = [each for job in jobs for each in job.result()[0]]
    failures = [line for job in jobs for line in job.result()[1]]
    if not judged:
        raise ValueError(f"the referee could play nothing: {failures[0]}")
    return judged, failures


def play_cell(cell: LoadedCell, plan: Plan, judge: Judge, *, loaded_latency: bool) -> tuple[list[Judged], list[str]]:
    """Every scheduler in one cell, on the same episodes; see `play_cells`."""
    world = cell.world(plan.num_episodes, plan.seed, loaded_latency=loaded_latency)
    recorded = [record(world, make_scheduler(name, world)) for name in plan.schedulers]
    replays = [replay for episodes in recorded for replay in episodes]
    reason = ""
    try:
        played: Sequence[Played | None] = judge(replays)
    except RefereeError as error:
        played, reason = error.played, str(error)
    found, failures = [], []
    for number, (name, episodes) in enumerate(zip(plan.schedulers, recorded, strict=True)):
        first = number * plan.num_episodes
        here = [each for each in played[first : first + plan.num_episodes] if each is not None]
        if len(here) < len(episodes):
            failures.append(f"{cell.name}, {name}: {reason}")
            continue
        where = Where(
            family=cell.cell.family,
            machine=cell.cell.machine,
            num_nodes=cell.cell.scenario.topology.num_nodes,
            asked_percent=cell.asked_percent,
            scheduler=name,
            loaded_latency=loaded_latency,
        )
        found.append(Judged(where, episodes, here))
    return found, failures

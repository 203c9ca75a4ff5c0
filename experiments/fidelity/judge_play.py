"""Recorded episodes given to the referee, scheduler by scheduler, and cells played side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from experiments.fidelity.cells import LoadedCell
from experiments.fidelity.referee import Played, RefereeError
from experiments.fidelity.replay import Replay
from experiments.fidelity.rows import Judged, Where

Judge = Callable[[Sequence[Replay]], Sequence[Played]]
OnProgress = Callable[[int, int], None]
Found = tuple[list[Judged], list[str]]  # what came of it; in words what the referee could not play


def judge_recorded(
    cell: LoadedCell, recorded: Mapping[str, Sequence[Replay]], judge: Judge, *, loaded_latency: bool
) -> Found:
    """What the referee makes of a cell, all of its replays at once.

    Args:
        cell: where they were recorded.
        recorded: the episodes of each scheduler, by its name.
        judge: the referee.
        loaded_latency: whether our world had the loaded-latency factor.

    Returns:
        Every scheduler whose episodes could all be played, in their order, and what is said of the others.
    """
    reason, played = "", list[Played | None]()
    try:
        played += judge([replay for episodes in recorded.values() for replay in episodes])
    except RefereeError as error:
        played, reason = error.played, str(error)
    found, failures, first = [], [], 0
    for name, episodes in recorded.items():
        here = [each for each in played[first : first + len(episodes)] if each is not None]
        first += len(episodes)
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


def play_each(
    cells: Sequence[LoadedCell],
    play: Callable[[LoadedCell], Found],
    *,
    workers: int = 1,
    on_progress: OnProgress = lambda done, of: None,
) -> Found:
    """Every cell, in their order.

    Args:
        cells: to be played.
        play: plays one; called from several threads.
        workers: cells at a time; the referee computes in processes of its own, so threads are enough.
        on_progress: called with the number of cells done, and of all.

    Raises:
        ValueError: a cell cannot be played, or the referee could play nothing.
    """
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        jobs = [pool.submit(play, cell) for cell in cells]
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

"""Pieces of work: each is computed once, kept in the cache, and found there by the next run.

Pieces of one cell that play the same episodes are a job. Jobs run in processes of their own, and what they find
depends neither on how many these are nor on who did which.

Dimension key: S settings, K parameters, E episodes.
"""

from __future__ import annotations

import signal
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from agents.evaluation import EpisodeResults, evaluate
from agents.settings import setting_costs
from agents.tuning import default_parameters
from envs.world import World
from experiments.scenario import Scenario, Split
from experiments.suite.cache import Cache
from experiments.suite.players import Player
from experiments.suite.sources import RULE, code_digest
from experiments.tune import world_of

F64 = npt.NDArray[np.float64]
Result = dict[str, Any]

NOT_COLUMNS = ("machine", "response_s", "metrics")  # of EpisodeResults, in a table with a row for each episode
FAILED = "failed"  # key of the message when a scheduler could not play


@dataclass(frozen=True, eq=False)
class Episodes:
    """Episodes of a scenario."""

    scenario: Scenario
    split: Split
    count: int
    seed: int

    @property
    def inputs(self) -> dict[str, Any]:
        """What tells them from all others, as JSON values."""
        return {
            "scenario": self.scenario.content_hash,
            "split": self.split.name,
            "episodes": self.count,
            "seed": self.seed,
        }

    def world(self) -> World:
        """What is played."""
        return world_of(self.scenario, self.split, self.count, self.seed)


class Piece(Protocol):
    """What is computed, or found, as a whole."""

    @property
    def episodes(self) -> Episodes:
        """On which episodes."""
        ...

    @property
    def inputs(self) -> dict[str, Any]:
        """All that the result depends on, as JSON values."""
        ...

    def compute(self, world: World) -> Result:
        """The result, as JSON values, in the world of its episodes."""
        ...


@dataclass(frozen=True, eq=False)
class SettingsPiece:
    """What settings of a rule cost, on all episodes: `costs`, in the order of the settings.

    Attributes:
        episodes: on which.
        rule: its name.
        settings: values of its tunable parameters, shape (S, K).
    """

    episodes: Episodes
    rule: str
    settings: F64

    @property
    def inputs(self) -> dict[str, Any]:
        """See `Piece.inputs`."""
        work = {"work": "settings", "code": code_digest(RULE), "rule": self.rule, "settings": self.settings.tolist()}
        return self.episodes.inputs | work  # what a rule has by default follows from the scenario and the code

    def compute(self, world: World) -> Result:
        """See `Piece.compute`."""
        defaults = default_parameters(self.rule, world.weights, world.topologies)
        return {"costs": setting_costs(self.rule, defaults, self.settings, world, self.episodes.count).tolist()}


@dataclass(frozen=True, eq=False)
class PlayPiece:
    """How a scheduler fares: a column for each figure, with a value for each episode; or why it could not play.

    Attributes:
        episodes: on which.
        player: who.
    """

    episodes: Episodes
    player: Player

    @property
    def inputs(self) -> dict[str, Any]:
        """See `Piece.inputs`."""
        work = {"work": "play", "code": code_digest(self.player.kind), "scheduler": self.player.inputs}
        return self.episodes.inputs | work

    def compute(self, world: World) -> Result:
        """See `Piece.compute`."""
        try:
            return columns(evaluate(self.player.make(), world))
        except ValueError as error:
            return {FAILED: str(error)}


def columns(results: EpisodeResults) -> Result:
    """The results as lists by name."""
    found = {f.name: getattr(results, f.name).tolist() for f in fields(results) if f.name not in NOT_COLUMNS}
    found["p99_response_s"] = results.p99_response_s.tolist()
    return found | {name: values.tolist() for name, values in results.metrics.items()}


def run_pieces(
    pieces: Sequence[Piece],
    cache: Cache,
    workers: int,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Result]:
    """The result of each piece, from the cache or computed now and kept there.

    Args:
        pieces: what is wanted.
        cache: where results are kept.
        workers: how many processes compute.
        on_progress: called with the number of pieces done, and of all, whenever some are.
    """
    keys = [cache.path(piece.inputs) for piece in pieces]
    different = dict(zip(keys, pieces, strict=True))
    results = {key: cache.read(piece.inputs) for key, piece in different.items()}
    jobs: dict[tuple[object, ...], list[Path]] = defaultdict(list)
    for key, piece in different.items():
        if results[key] is None:
            jobs[tuple(piece.episodes.inputs.values())].append(key)
    done = len(different) - sum(map(len, jobs.values()))
    on_progress(done, len(different))
    # The largest machines first, so that none is left alone at the end.
    order = sorted(jobs.values(), key=lambda job: -different[job[0]].episodes.scenario.topology.num_nodes)
    for number, found in _compute([[different[key] for key in job] for job in order], cache, workers):
        results |= zip(order[number], found, strict=True)
        done += len(found)
        on_progress(done, len(different))
    return [result for key in keys if (result := results[key]) is not None]


def _compute(jobs: list[list[Piece]], cache: Cache, workers: int) -> Iterator[tuple[int, list[Result]]]:
    """Yield the number and results of each job, as they are done."""
    if min(workers, len(jobs)) <= 1:
        for number, job in enumerate(jobs):
            yield number, _run_job(job, cache)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)),
        get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        running: dict[Future[list[Result]], int] = {
            pool.submit(_run_job, job, cache): number for number, job in enumerate(jobs)
        }
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise MemoryError("a process that computed was ended from outside, perhaps for want of memory") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run_job(pieces: Sequence[Piece], cache: Cache) -> list[Result]:
    """Compute pieces that share their episodes, and keep what succeeded."""
    world, results = pieces[0].episodes.world(), []
    for piece in pieces:
        result = piece.compute(world)
        if FAILED not in result:
            cache.write(piece.inputs, result)
        results.append(result)
    return results

"""The one loop that judges everybody: every episode once, in batches, deterministically.

Dimension key: R rows = machine x episode, T tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from agents.rules.base import Rule
from agents.scheduler import Planner, Replay, Scheduler
from envs.observation import ObservationKind, Observer
from envs.world import World
from numa_rl.metrics import MEANINGS, run_metrics
from numa_rl.simulator.simulator import Simulator
from numa_rl.simulator.state import Outcome

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

BATCH_ROWS = 256  # rows beyond this no longer make a step cheaper


@dataclass(frozen=True, eq=False)
class EpisodeResults:
    """How one scheduler fared in each episode, shape (R,) each unless said otherwise.

    Attributes:
        machine: which machine the episode was played on.
        episode: which episode of the pool.
        cost: mean cost -R of a decision.
        exec_cost: mean T_exec, in units of the reference time.
        comm_cost: mean T_comm, likewise, not weighted by alpha.
        imbalance: mean Imbalance.
        remote_ratio: bytes moved between nodes over all bytes moved; 0 if none were.
        migrations: objects that moved.
        fallbacks: objects put on another node than the chosen one, which was full.
        out_of_memory: tasks dropped because no node had room.
        finish_s: from the first arrival to the end of the last task.
        response_s: T_exec + T_comm of every task, seconds, shape (R, T); infinite for dropped ones.
        metrics: those of the chapter's section 16.4.1, by the names of `numa_rl.metrics.MEANINGS`.
    """

    machine: I64
    episode: I64
    cost: F64
    exec_cost: F64
    comm_cost: F64
    imbalance: F64
    remote_ratio: F64
    migrations: I64
    fallbacks: I64
    out_of_memory: I64
    finish_s: F64
    response_s: F64
    metrics: dict[str, F64]

    @property
    def load_balance(self) -> F64:
        """B_load = 1 - Imbalance (chapter, section 16.4.1)."""
        return self.metrics["B_load"]

    @property
    def median_metrics(self) -> dict[str, float]:
        """Each metric's median over the episodes in which it means something, by name; NaN where it never does."""
        known = {name: values[~np.isnan(values)] for name, values in self.metrics.items()}
        return {name: float(np.median(values)) if len(values) else np.nan for name, values in known.items()}

    @property
    def p99_response_s(self) -> F64:
        """The response time that 99 of 100 tasks of an episode do not exceed."""
        return np.asarray(np.percentile(self.response_s, 99, axis=1, method="inverted_cdf"))

    @property
    def pooled_p99_response_s(self) -> float:
        """The same over the tasks of all episodes."""
        return float(np.percentile(self.response_s, 99, method="inverted_cdf"))


def evaluate(
    scheduler: Scheduler | Planner,
    world: World,
    episodes: npt.ArrayLike | None = None,
    *,
    batch_rows: int = BATCH_ROWS,
    num_threads: int = 1,
) -> EpisodeResults:
    """Play episodes to their end, each on every machine of the world; machine by machine, episodes in order.

    What comes out does not depend on the batch size or the number of threads, as long as the scheduler's
    decisions do not.

    Args:
        scheduler: who decides.
        world: what is scheduled; a scheduler must read its kind of observation.
        episodes: which episodes of the pool, an index array; every one once by default.
        batch_rows: most rows to play at once.
        num_threads: threads that share the rows in the simulator.

    Raises:
        ValueError: no episode, one out of range, `batch_rows` less than 1, or a rule in a world without the full
            observation.
    """
    if isinstance(scheduler, Rule) and world.observation != ObservationKind.FULL:
        raise ValueError(f"{scheduler.name} reads the full observation, got a world with {world.observation.value!r}.")
    pool = np.arange(world.workload.num_episodes) if episodes is None else np.asarray(episodes)
    if pool.dtype.kind not in "iu" and pool.size:
        raise ValueError(f"episodes must be integers, got {episodes!r}.")
    if pool.ndim != 1 or not pool.size:
        raise ValueError(f"episodes must be one or more indices, got shape {pool.shape}.")
    if batch_rows < 1:
        raise ValueError(f"batch_rows must be >= 1, got {batch_rows}.")
    machine = np.repeat(np.arange(len(world.topologies)), len(pool))
    episode = np.tile(pool, len(world.topologies))
    parts = [
        _play(scheduler, world, machine[first : first + batch_rows], episode[first : first + batch_rows], num_threads)
        for first in range(0, len(episode), batch_rows)
    ]
    names = [item.name for item in fields(EpisodeResults) if item.name != "metrics"]
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    metrics = {name: np.concatenate([part.metrics[name] for part in parts]) for name in MEANINGS}
    return EpisodeResults(**arrays, metrics=metrics)


def decisions(scheduler: Scheduler, simulator: Simulator, observer: Observer) -> Iterator[Outcome]:
    """Play what the simulator was reset to, to its end and deterministically.

    Args:
        scheduler: who decides.
        simulator: where; all its rows are at the first task of their episode.
        observer: what the scheduler sees of it.

    Yields:
        What each decision led to, in buffers that the next one overwrites.
    """
    state, start = None, np.ones(simulator.num_rows, bool)
    for _ in range(simulator.workload.num_tasks):
        actions, state = scheduler.predict(observer.observe(), state=state, episode_start=start, deterministic=True)
        start = np.zeros(simulator.num_rows, bool)
        yield simulator.step(actions)


def _play(scheduler: Scheduler | Planner, world: World, machine: I64, episode: I64, num_threads: int) -> EpisodeResults:
    """Play one batch: row i plays `episode[i]` on `machine[i]`."""
    rows, num_tasks = len(episode), world.workload.num_tasks
    simulator = Simulator(world.topologies, world.workload, rows, window_s=world.window_s, num_threads=num_threads)
    observer = Observer(simulator, world.weights, world.observation)
    simulator.reset(episode, machines=machine)
    if isinstance(scheduler, Planner):
        scheduler = Replay(scheduler.name, scheduler.plan(world, machine, episode))

    cost, exec_s, comm_s, imbalance, local_bytes, remote_bytes = np.zeros((6, rows))
    migrations, fallbacks, out_of_memory = np.zeros((3, rows), np.int64)
    response_s = np.empty((rows, num_tasks))
    for task, outcome in enumerate(decisions(scheduler, simulator, observer)):
        cost += world.weights.cost(outcome)
        exec_s += outcome.exec_s
        comm_s += outcome.comm_s
        imbalance += outcome.imbalance
        local_bytes += outcome.local_bytes
        remote_bytes += outcome.remote_bytes
        migrations += outcome.migrated
        fallbacks += outcome.fell_back
        out_of_memory += outcome.out_of_memory
        response_s[:, task] = np.where(outcome.out_of_memory, np.inf, outcome.exec_s + outcome.comm_s)

    moved = local_bytes + remote_bytes
    arrival_s = world.workload.arrival_s[episode]
    last_s = np.maximum(arrival_s[:, -1], simulator.totals.last_finish_s)
    per_reference = 1.0 / (num_tasks * world.weights.reference_s)
    return EpisodeResults(
        machine=machine,
        episode=episode,
        cost=cost / num_tasks,
        exec_cost=exec_s * per_reference,
        comm_cost=comm_s * per_reference,
        imbalance=imbalance / num_tasks,
        remote_ratio=np.divide(remote_bytes, moved, out=np.zeros(rows), where=moved > 0),
        migrations=migrations,
        fallbacks=fallbacks,
        out_of_memory=out_of_memory,
        finish_s=last_s - arrival_s[:, 0],
        response_s=response_s,
        metrics=run_metrics(simulator),
    )

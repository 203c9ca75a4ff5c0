"""The referee: replays played again in SimGrid, an independent simulator that shares resources exactly.

What is taken over from our model, because it is a decision or nobody else models it:

* where each task runs, where objects lie, move and are copied, the order of decisions, and who waits for whom;
* the times that use no resource: software overhead, the kernel's work on pages, coherence as our model charged it,
  and what its pipeline of chunks adds to bytes over bandwidth on an idle machine;
* the idle latency as what bounds a core's stream. SimGrid knows no loaded latency.

Everything else is SimGrid's: how the streams that really run at a time share controllers, links and what a node draws
from a memory, how a stream slows down and speeds up as others come and go, and so when each task starts and ends.

Dimension key: T tasks, R resources, N nodes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from experiments.fidelity.activities import activities, capacities, resource_names
from experiments.fidelity.replay import Replay
from numa_rl.wording import counted, quoted

F64 = npt.NDArray[np.float64]
SCRIPT = Path(__file__).with_name("simgrid_replay.py")
VARIABLE = "NUMA_RL_SIMGRID_PYTHON"
SECONDS_TO_IMPORT = 60
MOST_WORKERS = 2


@dataclass(frozen=True, eq=False)
class Played:
    """What came of a replay in the referee's world; times are infinite for dropped tasks.

    Attributes:
        decided_s: when each task was decided: it arrived or, in a graph, its inputs were ready, shape (T,).
        started_s: when its core began to work for it, all that it waits for being there, shape (T,).
        finish_s: when it finished, shape (T,).
        makespan_s: from the first arrival to the end of the last task.
        loads: share of the makespan that each node's cores, each controller and each link were busy, by name.
        left_out: 0, or where SimGrid's solver could not do without, the share of an activity's time below which its
            uses of resources were left out.
    """

    decided_s: F64
    started_s: F64
    finish_s: F64
    makespan_s: float
    loads: dict[str, float]
    left_out: float = 0.0

    @property
    def response_s(self) -> F64:
        """From decision to finish, shape (T,)."""
        return np.subtract(self.finish_s, self.decided_s, out=self.finish_s.copy(), where=np.isfinite(self.finish_s))

    @property
    def busiest(self) -> tuple[str, float]:
        """The busiest of all, and how busy it was."""
        return max(self.loads.items(), key=lambda pair: pair[1])


class RefereeError(ValueError):
    """Some replays could not be played.

    Attributes:
        played: what came of the others; None for those.
    """

    def __init__(self, message: str, played: list[Played | None]) -> None:
        """Keep what was played."""
        super().__init__(message)
        self.played = played


@cache
def simgrid_version(python: str) -> str | None:
    """Version of SimGrid that a Python interpreter can import, or None."""
    command = [python, "-c", "import simgrid; print(simgrid.simgrid_version)"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_IMPORT, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def find_simgrid() -> str | None:
    """A Python interpreter that can import SimGrid, or None.

    The one named by the environment variable NUMA_RL_SIMGRID_PYTHON, if it is set, and no other; else this one,
    `python3` of the search path, and Debian's.

    Raises:
        ValueError: the variable names one that cannot.
    """
    asked = os.environ.get(VARIABLE)
    if asked:
        if simgrid_version(asked) is None:
            raise ValueError(f"{VARIABLE} must name a Python that can import simgrid, got {quoted(asked)}.")
        return asked
    candidates = [sys.executable, shutil.which("python3"), "/usr/bin/python3"]
    return next((python for python in candidates if python and simgrid_version(python) is not None), None)


def play(
    replays: Sequence[Replay], workers: int = MOST_WORKERS, progress: Callable[[int], None] | None = None
) -> list[Played]:
    """Play replays in SimGrid, each in a process of its own.

    Args:
        replays: what to play.
        workers: how many at once.
        progress: told how many have been played after each.

    Returns:
        What came of each, in their order.

    Raises:
        ValueError: no Python has SimGrid, or `workers` less than 1.
        RefereeError: SimGrid failed at some of them; it has what came of the others.
    """
    if workers < 1:
        raise ValueError(f"workers must be >= 1, got {workers}.")
    python = find_simgrid()
    if python is None:
        raise ValueError(
            "the referee needs SimGrid, and no Python has it: install Debian's python3-simgrid or run "
            f"`make fidelity`, or name a Python that has it in {VARIABLE}."
        )
    results: list[dict[str, Any]] = [{"error": "no answer"} for _ in replays]
    with tempfile.TemporaryFile("w+") as lines, tempfile.TemporaryFile("w+") as complaints:
        for index, replay in enumerate(replays):
            json.dump(as_json(replay, index), lines)
            lines.write("\n")
        lines.seek(0)
        _run([python, str(SCRIPT), str(workers)], lines, complaints, results, progress)
        complaints.seek(0)
        said = [line for line in complaints.read().splitlines() if line.strip() and "xbt_cfg" not in line]
    played = [None if "error" in each else _played(replay, each) for replay, each in zip(replays, results, strict=True)]
    failed = [index for index, each in enumerate(results) if "error" in each]
    if failed:
        first = f"replay {failed[0]}: {results[failed[0]]['error']}"
        why = f"; it said {quoted(said[0])}" if said else ""
        raise RefereeError(f"SimGrid failed at {counted(len(failed), 'replay')}: {first}{why}.", played)
    return [each for each in played if each is not None]


def _run(
    command: list[str],
    lines: IO[str],
    complaints: IO[str],
    results: list[dict[str, Any]],
    progress: Callable[[int], None] | None,
) -> None:
    """Run the script, and put what it says of each replay in its place as it comes."""
    with subprocess.Popen(command, stdin=lines, stdout=subprocess.PIPE, stderr=complaints, text=True) as process:
        assert process.stdout is not None
        try:
            for count, line in enumerate(process.stdout, start=1):
                result = json.loads(line)
                results[result.pop("index")] = result
                if progress is not None:
                    progress(count)
        except BaseException:
            process.terminate()
            raise


def as_json(replay: Replay, index: int) -> dict[str, Any]:
    """A replay as the script reads it."""
    return {
        "index": index,
        "capacities": capacities(replay.topology).tolist(),
        "cores": replay.topology.cores.tolist(),
        "arrival_s": replay.arrival_s.tolist(),
        "node": replay.node.tolist(),
        "follows_inputs": bool(replay.follows_inputs),
        "waits": replay.waits,
        "activities": [
            [(each.fixed_s, each.core_s, list(each.amounts.items())) for each in task] for task in activities(replay)
        ],
    }


def _played(replay: Replay, result: dict[str, Any]) -> Played:
    names = ("decided_s", "started_s", "finish_s")
    decided, started, finish = (np.array([np.inf if t is None else t for t in result[name]]) for name in names)
    decided = np.where(replay.ran, decided, np.inf)
    return played(replay, decided, started, finish, left_out=float(result["left_out"]))


def played(replay: Replay, decided_s: F64, started_s: F64, finish_s: F64, left_out: float = 0.0) -> Played:
    """The times of a replay's tasks with what follows from them: makespan and loads."""
    ran = replay.ran
    makespan_s = max(float(np.max(finish_s[ran], initial=0.0)), float(replay.arrival_s[-1])) - float(
        replay.arrival_s[0]
    )
    n, names = replay.topology.num_nodes, resource_names(replay.topology)
    moved = np.zeros(len(names))
    for task in activities(replay):
        for each in task:
            for resource, num_bytes in each.amounts.items():
                moved[resource] += num_bytes
    busy_s = moved / capacities(replay.topology)
    worked_s = np.bincount(replay.node[ran], finish_s[ran] - started_s[ran], n)
    shares = {f"cores {node}": worked_s[node] / cores for node, cores in enumerate(replay.topology.cores) if cores}
    shares |= dict(zip(names[: n + replay.topology.num_links], busy_s, strict=False))
    loads = {name: float(seconds / makespan_s) if makespan_s > 0.0 else 0.0 for name, seconds in shares.items()}
    return Played(decided_s, started_s, finish_s, makespan_s, loads, left_out)

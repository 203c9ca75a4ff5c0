"""Queries as graphs of stages: recorded ones, read from JSON, and generated ones like those of TPC-H.

Dimension key: s stages of a query, m edges.

The file is a table with a list `jobs`; each job has a `name`, `stages` as [number of tasks, mean task time in ms,
standard deviation in ms], and `edges` as [stage, stage that reads it]. It is what the stage graphs of TPC-H that [1]
recorded on Spark become, at seven sizes of the database.

**Generated queries** follow the 22 queries of these recordings on 2 GB, as counted and fitted there:

    - the number of scanned tables and the length of the chain of stages at the end are drawn from their counts;
    - the stages between join one more table to what was joined before: 48 of the 60 joins do, the other 12 join two
      joins, and of the 64 stages that read one other, 50 lie on the chain at the end;
    - the total time of a stage is lognormal by its part: scan, join or chain;
    - tables are drawn without replacement, by how many of TPC-H's queries read them.

References:
    [1] H. Mao, M. Schwarzkopf, S. B. Venkatakrishnan, Z. Meng, M. Alizadeh, "Learning scheduling algorithms for data
        processing clusters", SIGCOMM 2019, with github.com/hongzimao/decima-sim, commit c010dd74.
    [2] Transaction Processing Performance Council, "TPC Benchmark H, standard specification", revision 3: queries, and
        table 3 of clause 4.2.5, the estimated size of the tables at scale factor 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from numa_rl.wording import quoted
from numa_rl.workloads.json_files import read_json, shown
from numa_rl.workloads.task_graph import topological_order

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MOST_FILE_BYTES = 64 * 2**20  # a thousand times the recordings of [1]
MOST_STAGE_TASKS = 10**6
MOST_TASK_MS = 1e9

# Bytes of each table at scale factor 1 [2]: rows x estimated row length.
TABLE_BYTES = {
    "lineitem": 6_001_215 * 112.0,
    "orders": 1_500_000 * 104.0,
    "partsupp": 800_000 * 144.0,
    "part": 200_000 * 155.0,
    "customer": 150_000 * 179.0,
    "supplier": 10_000 * 159.0,
    "nation": 25 * 128.0,
    "region": 5 * 124.0,
}
TABLES = tuple(TABLE_BYTES)  # from the largest to the smallest

# The tables that each query of TPC-H reads, as often as it does [2]; Q22's orders are no scan of the recordings.
QUERY_TABLES = {
    1: "lineitem",
    2: "part supplier partsupp nation region partsupp supplier nation region",
    3: "customer orders lineitem",
    4: "orders lineitem",
    5: "customer orders lineitem supplier nation region",
    6: "lineitem",
    7: "supplier lineitem orders customer nation nation",
    8: "part supplier lineitem orders customer nation nation region",
    9: "part supplier lineitem partsupp orders nation",
    10: "customer orders lineitem nation",
    11: "partsupp supplier nation",
    12: "orders lineitem",
    13: "customer orders",
    14: "lineitem part",
    15: "lineitem supplier",
    16: "partsupp part supplier",
    17: "lineitem part lineitem",
    18: "customer orders lineitem lineitem",
    19: "lineitem part",
    20: "supplier nation partsupp part lineitem",
    21: "supplier lineitem orders nation lineitem lineitem",
    22: "customer",
}

# Counts and maximum-likelihood lognormal fits over the 22 queries on 2 GB [1].
QUERIES_BY_SCANS = {1: 4, 2: 5, 3: 4, 4: 2, 5: 2, 6: 3, 8: 2}
QUERIES_BY_CHAIN = {1: 7, 2: 4, 3: 9, 4: 2}
MEDIAN_STAGE_S = {"scan": 8.18, "join": 31.2, "chain": 4.16}
STAGE_SIGMA = {"scan": 1.11, "join": 0.754, "chain": 1.75}
TASK_SPREAD = 0.549  # of a task's time: deviation over mean, the geometric mean over stages
SHUFFLE_TASKS = 200  # of a stage that reads others: Spark's default


@dataclass(frozen=True, eq=False)
class StageGraph:
    """A query.

    Attributes:
        name: how it is called.
        num_tasks: tasks of each stage, shape (s,).
        task_s: mean time of a task, shape (s,).
        task_std_s: standard deviation of that time, shape (s,).
        edges: pairs (stage, stage that reads it), shape (m, 2); without a cycle.
        table: the table that each stage scans, as an index of `TABLES`, -1 for a stage that reads others, shape (s,).
    """

    name: str
    num_tasks: IntArray
    task_s: FloatArray
    task_std_s: FloatArray
    edges: IntArray
    table: IntArray


def scanned_tables(name: str, num_tasks: IntArray, task_s: FloatArray, edges: IntArray) -> IntArray:
    """The table that each stage scans, -1 for one that reads others, shape (s,): an assumption.

    Recordings do not say. A stage that reads no other scans a table, and the more tasks (then time) it has, the larger
    the table, among those that the query of TPC-H with the number at the end of the name reads, else among all.
    """
    number = re.search(r"q(\d+)$", name)
    read = QUERY_TABLES.get(int(number[1])) if number and len(number[1]) < 3 else None
    tables = sorted(TABLES.index(table) for table in (read.split() if read else TABLES))
    scans = np.setdiff1d(np.arange(len(num_tasks)), edges[:, 1])
    by_size = scans[np.lexsort((-(num_tasks * task_s)[scans], -num_tasks[scans]))]
    table = np.full(len(num_tasks), -1)
    table[by_size] = np.resize(tables, len(scans))
    return table


def draw_stage_graph(rng: np.random.Generator, name: str) -> StageGraph:
    """A query like those of TPC-H: scans, joins one after another, and a chain of further stages."""
    scans = _draw(rng, QUERIES_BY_SCANS)
    chain = _draw(rng, QUERIES_BY_CHAIN)
    readers = [sum(name in tables.split() for tables in QUERY_TABLES.values()) for name in TABLES]
    tables = rng.choice(len(TABLES), size=scans, replace=False, p=np.divide(readers, sum(readers)))
    parts = ["scan"] * scans + ["join"] * (scans - 1) + ["chain"] * chain
    edges, joined = [], 0
    for other in range(1, scans):
        join = scans + other - 1
        edges += [(joined, join), (other, join)]
        joined = join
    for stage in range(2 * scans - 1, len(parts)):
        edges.append((joined, stage))
        joined = stage
    medians, sigmas = (np.array([figures[part] for part in parts]) for figures in (MEDIAN_STAGE_S, STAGE_SIGMA))
    stage_s = medians * np.exp(sigmas * rng.standard_normal(len(parts)))
    num_tasks = np.full(len(parts), SHUFFLE_TASKS)
    num_tasks[-1] = 1
    return StageGraph(
        name=name,
        num_tasks=num_tasks,
        task_s=stage_s / num_tasks,
        task_std_s=TASK_SPREAD * stage_s / num_tasks,
        edges=np.array(edges, np.int64).reshape(-1, 2),
        table=np.concatenate([tables, np.full(len(parts) - scans, -1)]),
    )


def _draw(rng: np.random.Generator, counts: dict[int, int]) -> int:
    """A value, as likely as it is frequent."""
    return int(rng.choice(list(counts), p=np.divide(list(counts.values()), sum(counts.values()))))


def read_stage_graphs(path: str | Path, prefix: str = "") -> list[StageGraph]:
    """Read recorded queries.

    Args:
        path: of the JSON file.
        prefix: how the names of those to take begin.

    Raises:
        ValueError: there is no such file, it is too large, not JSON or not of the format, a query's stages form a
            cycle, or no name begins so; the message names file, job, rule and value.
    """
    try:
        jobs = _jobs(Path(path))
        graphs = [_graph(job, place) for place, job in enumerate(jobs)]
        names = [graph.name for graph in graphs]
        for place, name in enumerate(names):
            if name in names[:place]:
                raise ValueError(f"jobs[{place}]: name must not be given twice, got {quoted(name)}.")
        chosen = [graph for graph in graphs if graph.name.startswith(prefix)]
        if not chosen:
            raise ValueError(f"a job's name must begin with {quoted(prefix)}, got none of {len(names)}.")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return chosen


def _jobs(path: Path) -> list[Any]:
    document = read_json(path, "stage graphs", MOST_FILE_BYTES)
    jobs = document.get("jobs") if isinstance(document, dict) else None
    if not isinstance(jobs, list):
        raise ValueError(f"stage graphs must be a JSON object with a list jobs, got {shown(document)}.")
    return jobs


def _graph(job: Any, place: int) -> StageGraph:
    where = f"jobs[{place}]"
    if not isinstance(job, dict) or not isinstance(job.get("name"), str):
        raise ValueError(f"{where} must be a JSON object with a name, got {shown(job)}.")
    where = f"{where} {quoted(job['name'])}"
    stages = [_stage(stage, f"{where}: stages[{index}]") for index, stage in enumerate(_list(job, "stages", where))]
    if not stages:
        raise ValueError(f"{where}: a job must have at least one stage, got none.")
    edges = np.array(
        [_edge(edge, len(stages), f"{where}: edges[{index}]") for index, edge in enumerate(_list(job, "edges", where))],
        np.int64,
    ).reshape(-1, 2)
    try:
        topological_order(len(stages), edges)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    num_tasks, task_ms, task_std_ms = (np.array(column) for column in zip(*stages, strict=True))
    return StageGraph(
        name=job["name"],
        num_tasks=num_tasks.astype(np.int64),
        task_s=task_ms / 1e3,
        task_std_s=task_std_ms / 1e3,
        edges=np.unique(edges, axis=0),
        table=scanned_tables(job["name"], num_tasks.astype(np.int64), task_ms, edges),
    )


def _list(job: dict[str, Any], key: str, where: str) -> list[Any]:
    if not isinstance(job.get(key), list):
        raise ValueError(f"{where}: {key} must be a list, got {shown(job.get(key))}.")
    return list(job[key])


def _stage(stage: Any, where: str) -> tuple[int, float, float]:
    rule = "[number of tasks, mean ms, standard deviation in ms]"
    if not isinstance(stage, list) or len(stage) != 3 or not all(_is_number(value) for value in stage):
        raise ValueError(f"{where} must be {rule}, got {shown(stage)}.")
    num_tasks, mean_ms, std_ms = stage
    if not 1 <= num_tasks <= MOST_STAGE_TASKS or num_tasks != int(num_tasks):
        raise ValueError(f"{where}: tasks must be a whole number in 1..{MOST_STAGE_TASKS}, got {num_tasks}.")
    if not (0 <= mean_ms <= MOST_TASK_MS and 0 <= std_ms <= MOST_TASK_MS):
        raise ValueError(f"{where}: times must be in 0..{MOST_TASK_MS:g} ms, got {mean_ms} and {std_ms}.")
    return int(num_tasks), float(mean_ms), float(std_ms)


def _edge(edge: Any, num_stages: int, where: str) -> tuple[int, int]:
    good = isinstance(edge, list) and len(edge) == 2 and all(type(end) is int and 0 <= end < num_stages for end in edge)
    if not good:
        raise ValueError(f"{where} must be two stages in 0..{num_stages - 1}, got {shown(edge)}.")
    return edge[0], edge[1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

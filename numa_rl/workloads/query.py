"""Analytical queries: a stream of graphs of stages that scan the same tables.

Dimension key: s stages of a query, k tasks of a stage.

A table is split into parts, each an object that a loader task creates at time 0 and that queries only read: this is
what they share. A query's stages are recorded ones (`trace`) or generated (`numa_rl/workloads/stage_graphs.py`):

    - a stage that scans a table has a task for each part; one that reads other stages at most `stage_tasks`, which
      share the work of all the tasks it has;
    - before it scans a table, a query looks at each part: it reads an index of least and greatest values, say. That
      task has the part for its own, so here a scheduler may give the part another copy; scans read the nearest;
    - a task of a stage reads the k-th part of every output of the stages before it, as a shuffle does;
    - recordings tell times, not sizes. Times keep their proportions, as in `numa_rl/workloads/recorded_graph.py`; what
      a task writes is `output_share` of what it reads, an assumption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from numa_rl.workloads.graph_stream import GraphKind, GraphStream, in_rows, shared_input
from numa_rl.workloads.parameters import MOST_TASKS, require
from numa_rl.workloads.processes import FloatArray, IntArray
from numa_rl.workloads.stage_graphs import TABLE_BYTES, TABLES, StageGraph, draw_stage_graph, read_stage_graphs
from numa_rl.workloads.task_graph import topological_order
from numa_rl.workloads.workload import NO_OBJECT, Workload


@dataclass(frozen=True)
class Query:
    """Queries that arrive as a Poisson process, over one database.

    Attributes:
        num_tasks: tasks of an episode, T; the last queries are cut off.
        queries_per_s: mean arrival rate.
        num_kinds: different queries of a pool of episodes, drawn anew for each pool; without effect with a trace.
        scale_factor: TPC-H's: size of the database in GB.
        part_bytes: most bytes of a part of a table.
        stage_tasks: most tasks of a stage that reads others, k.
        look_share: share of a part that a query reads before it scans it; without a task for that if 0.
        output_share: what a task writes over what it reads.
        mean_task_flops: mean arithmetic of a task, over all kinds of queries.
        flops_per_byte: arithmetic intensity of what tasks do with what they have read.
        write_fraction: share of writes in that.
        flops_per_s: nominal pace of a core, by which stages follow each other.
        bytes_per_s: nominal pace of its memory.
        trace: path of recorded stage graphs in JSON, in place of generated ones.
        trace_prefix: how the names of those to take begin; all by default.

    Raises:
        ValueError: a parameter is out of range, or the trace cannot be read.
    """

    num_tasks: int = 384
    queries_per_s: float = 9.0
    num_kinds: int = 64
    scale_factor: float = 10.0
    part_bytes: float = 1e9
    stage_tasks: int = 4
    look_share: float = 0.05
    output_share: float = 0.5
    mean_task_flops: float = 5e8
    flops_per_byte: float = 0.5
    write_fraction: float = 1.0 / 3.0
    flops_per_s: float = 20e9
    bytes_per_s: float = 40e9
    trace: str | None = None
    trace_prefix: str = ""

    def __post_init__(self) -> None:
        """Check the ranges and read the trace."""
        require(self, "num_tasks num_kinds stage_tasks", ">= 1", lambda value: value >= 1)
        require(self, "num_tasks", f"at most {MOST_TASKS}", lambda value: value <= MOST_TASKS)
        positive = "queries_per_s scale_factor part_bytes mean_task_flops flops_per_byte flops_per_s bytes_per_s"
        require(self, positive, "> 0", lambda value: value > 0)
        require(self, "output_share", ">= 0", lambda value: value >= 0)
        require(self, "write_fraction look_share", "in [0, 1]", lambda value: 0 <= value <= 1)
        if not self._parts.sum() < self.num_tasks:
            parts = f"{self._parts.sum():g} parts of the tables"
            raise ValueError(f"num_tasks must be more than the {parts}, got {self.num_tasks}.")
        if self.trace is not None:
            graphs = self._recorded
            try:
                self.kinds(graphs)
            except ValueError as error:
                raise ValueError(f"{self.trace}: {error}") from error

    @cached_property
    def table_parts(self) -> IntArray:
        """Number of parts of each table, in the order of `TABLES`."""
        return self._parts.astype(np.int64)

    @property
    def _parts(self) -> FloatArray:
        """The same as floats, which may be too many for whole numbers."""
        return np.ceil([TABLE_BYTES[name] * self.scale_factor / self.part_bytes for name in TABLES])

    @cached_property
    def shared_bytes(self) -> FloatArray:
        """Size of every part of every table."""
        sizes = np.array([TABLE_BYTES[name] for name in TABLES]) * self.scale_factor
        return np.repeat(sizes / self.table_parts, self.table_parts)

    @cached_property
    def _recorded(self) -> Sequence[StageGraph]:
        assert self.trace is not None
        return read_stage_graphs(self.trace, self.trace_prefix)

    def generate(self, rng: np.random.Generator, num_episodes: int) -> Workload:
        """Make `num_episodes` episodes; more episodes from the same generator extend fewer."""
        if self.trace is not None:
            graphs = self._recorded
        else:
            graphs = [draw_stage_graph(rng, f"query-{number}") for number in range(self.num_kinds)]
        stream = GraphStream(
            name="query",
            kinds=self.kinds(graphs),
            graphs_per_s=self.queries_per_s,
            num_tasks=self.num_tasks,
            write_fraction=self.write_fraction,
            flops_per_s=self.flops_per_s,
            bytes_per_s=self.bytes_per_s,
            follows_inputs=True,
            shared_bytes=self.shared_bytes,
        )
        return stream.generate(rng, num_episodes)

    def kinds(self, graphs: Sequence[StageGraph]) -> list[GraphKind]:
        """What these queries ask of a machine.

        Raises:
            ValueError: no task of any query takes time.
        """
        seconds, tasks = 0.0, 0
        for graph in graphs:
            seconds += float((graph.num_tasks * graph.task_s).sum())
            tasks += int(self._split(graph).sum())
        if not seconds > 0:
            raise ValueError("queries must have a task that takes time, got none.")
        return [self._kind(graph, self.mean_task_flops * tasks / seconds) for graph in graphs]

    def _split(self, graph: StageGraph) -> IntArray:
        """Into how many tasks each stage is split here, shape (s,)."""
        shuffled = np.minimum(graph.num_tasks, self.stage_tasks)
        return np.where(graph.table >= 0, self.table_parts[graph.table], shuffled)

    def _kind(self, graph: StageGraph, flops_per_s: float) -> GraphKind:
        """The tasks of a query, a stage after the other.

        Args:
            graph: the query.
            flops_per_s: arithmetic for each second of its time.
        """
        count = self._split(graph)
        median_s, sigma = self._work(graph, count)
        first_part = np.cumsum(self.table_parts) - self.table_parts
        tasks = _Tasks()
        of_stage: dict[int, range] = {}
        for stage in topological_order(len(count), graph.edges).tolist():
            k, table = int(count[stage]), int(graph.table[stage])
            parts = range(int(first_part[table]), int(first_part[table]) + k) if table >= 0 else range(0)
            if self.look_share > 0:
                for part in parts:
                    tasks.add(looks_at=part, look_bytes=self.look_share * float(self.shared_bytes[part]))
            of_stage[stage] = range(len(tasks.reads), len(tasks.reads) + k)
            before = [task for other in graph.edges[graph.edges[:, 1] == stage, 0].tolist() for task in of_stage[other]]
            shuffled = sum(tasks.output_bytes[task] for task in before) / k
            for index in range(k):
                reads = [(shared_input(parts[index]), 1.0)] if parts else [(task, 1.0 / k) for task in before]
                read_bytes = float(self.shared_bytes[parts[index]]) if parts else shuffled
                tasks.add(
                    reads, flops_per_s * float(median_s[stage]), float(sigma[stage]), self.output_share * read_bytes
                )
        return tasks.kind(self.flops_per_byte)

    def _work(self, graph: StageGraph, count: IntArray) -> FloatArray:
        """Median seconds of a task of each stage, and the standard deviation of their logarithm, shape (2, s).

        A task here is m recorded ones: their means and their variances add up.
        """
        merged = graph.num_tasks / count
        spread = np.divide(graph.task_std_s, graph.task_s, out=np.zeros(len(count)), where=graph.task_s > 0)
        log_variance = np.log1p(spread**2 / merged)
        return np.stack([graph.task_s * merged * np.exp(-log_variance / 2), np.sqrt(log_variance)])


class _Tasks:
    """Tasks of a query so far, a list for each of what a task has."""

    def __init__(self) -> None:
        """None yet."""
        self.reads: list[Sequence[tuple[int, float]]] = []
        self.flops: list[float] = []
        self.flops_sigma: list[float] = []
        self.output_bytes: list[float] = []
        self.look_bytes: list[float] = []
        self.looks_at: list[int] = []

    def add(
        self,
        reads: Sequence[tuple[int, float]] = (),
        flops: float = 0.0,
        flops_sigma: float = 0.0,
        output_bytes: float = 0.0,
        *,
        looks_at: int = NO_OBJECT,
        look_bytes: float = 0.0,
    ) -> None:
        """Add a task."""
        self.reads.append(reads)
        self.flops.append(flops)
        self.flops_sigma.append(flops_sigma)
        self.output_bytes.append(output_bytes)
        self.looks_at.append(looks_at)
        self.look_bytes.append(look_bytes)

    def kind(self, flops_per_byte: float) -> GraphKind:
        """The tasks as a graph."""
        inputs, share = in_rows(self.reads)
        flops = np.array(self.flops)
        return GraphKind(
            flops=flops,
            flops_sigma=np.array(self.flops_sigma),
            work_bytes=flops / flops_per_byte + self.look_bytes,
            output_bytes=np.array(self.output_bytes),
            output_sigma=np.zeros(len(flops)),
            inputs=inputs,
            input_share=share,
            read_only=np.zeros(len(flops), np.bool_),
            looks_at=np.array(self.looks_at, np.int64),
        )

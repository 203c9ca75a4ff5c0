"""Queries: recorded stage graphs, generated ones against what was recorded, and how stages become tasks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numa_rl.workloads.query import Query
from numa_rl.workloads.stage_graphs import (
    MEDIAN_STAGE_S,
    QUERIES_BY_CHAIN,
    QUERIES_BY_SCANS,
    STAGE_SIGMA,
    TABLE_BYTES,
    TABLES,
    TASK_SPREAD,
    draw_stage_graph,
    read_stage_graphs,
)
from numa_rl.workloads.workload import NEVER, NO_OBJECT

REAL = Path(__file__).parents[2] / "shared/data/traces/tpch_dags_decima.json"
NO = NO_OBJECT


@pytest.fixture
def written(tmp_path):
    """Writes jobs, or any text, into a file."""

    def write(content):
        path = tmp_path / "stages.json"
        path.write_text(content if isinstance(content, str) else json.dumps({"jobs": content}))
        return path

    return write


@pytest.fixture(scope="module")
def recorded():
    if not REAL.exists():
        pytest.skip(f"the recorded stage graphs are not beside the checkout ({REAL.name})")
    return read_stage_graphs(REAL, "tpch-2g-")


def parts(graph):
    """The part of each stage: scan, join or chain."""
    reads = np.bincount(graph.edges[:, 1], minlength=len(graph.num_tasks))
    return np.array(["scan", "chain", "join"])[np.minimum(reads, 2)]


def chain_length(graph):
    """Stages at the end that read one other each."""
    before = {int(after): int(stage) for stage, after in graph.edges}
    (stage,) = set(range(len(graph.num_tasks))) - set(graph.edges[:, 0].tolist())
    length = 0
    while parts(graph)[stage] == "chain":
        stage, length = before[stage], length + 1
    return length


# Reading


def test_stages_edges_and_times_are_read(written):
    path = written([{"name": "a", "stages": [[2, 1500, 250.5], [200, 20.0, 0]], "edges": [[0, 1]]}])
    (graph,) = read_stage_graphs(path)
    assert graph.name == "a"
    assert graph.num_tasks.tolist() == [2, 200]
    assert graph.task_s.tolist() == [1.5, 0.02]
    assert graph.task_std_s.tolist() == [0.2505, 0.0]
    assert graph.edges.tolist() == [[0, 1]]


def test_the_largest_scan_reads_the_largest_of_the_tables_that_the_query_is_known_to_read(written):
    stages = [[2, 5, 0], [3, 1, 0], [12, 1, 0], [2, 1, 0]]
    jobs = [
        {"name": name, "stages": stages, "edges": [[0, 3], [1, 3], [2, 3]]} for name in ("db-q3", "db-q17", "other")
    ]
    third, seventeenth, other = (
        [TABLES[t] if t >= 0 else "" for t in g.table] for g in read_stage_graphs(written(jobs))
    )
    assert third == ["customer", "orders", "lineitem", ""]
    assert seventeenth == ["part", "lineitem", "lineitem", ""]
    assert other == ["partsupp", "orders", "lineitem", ""]


def test_names_choose(written):
    jobs = [{"name": name, "stages": [[1, 1, 0]], "edges": []} for name in ("x-1", "y-1", "x-2")]
    assert [graph.name for graph in read_stage_graphs(written(jobs), "x-")] == ["x-1", "x-2"]
    with pytest.raises(ValueError, match="a job's name must begin with 'z', got none of 3"):
        read_stage_graphs(written(jobs), "z")


def job(**changed):
    return [{"name": "a", "stages": [[1, 1, 0], [1, 1, 0]], "edges": [[0, 1]]} | changed]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "stage graphs must be a JSON object with a list jobs, got []."),
        ("{", "stage graphs must be JSON: "),
        ([3], "jobs[0] must be a JSON object with a name, got 3."),
        (job(name=3), "jobs[0] must be a JSON object with a name, got a JSON object."),
        (job() * 2, "jobs[1]: name must not be given twice, got 'a'."),
        (job(stages=[]), "jobs[0] 'a': a job must have at least one stage, got none."),
        (job(stages=None), "jobs[0] 'a': stages must be a list, got nothing."),
        (job(stages=[[1, 1]]), "jobs[0] 'a': stages[0] must be [number of tasks, mean ms, standard deviation in ms], "),
        (job(stages=[[1, "1", 0]]), "jobs[0] 'a': stages[0] must be [number of tasks, mean ms, "),
        (job(stages=[[0, 1, 0]]), "jobs[0] 'a': stages[0]: tasks must be a whole number in 1..1000000, got 0."),
        (job(stages=[[1.5, 1, 0]]), "jobs[0] 'a': stages[0]: tasks must be a whole number in 1..1000000, got 1.5."),
        (job(stages=[[1, -1, 0]]), "jobs[0] 'a': stages[0]: times must be in 0..1e+09 ms, got -1 and 0."),
        (job(stages=[[1e999, 1, 0]]), "jobs[0] 'a': stages[0]: tasks must be a whole number in 1..1000000, got inf."),
        (job(edges=[[0, 2]]), "jobs[0] 'a': edges[0] must be two stages in 0..1, got [0, 2]."),
        (job(edges=[[0, 1], [1, 0]]), "jobs[0] 'a': a graph of tasks must have no cycle, got 0 -> 1 -> 0."),
    ],
)
def test_errors_name_file_job_rule_and_value(written, content, message):
    path = written(content if isinstance(content, str) else json.dumps({"jobs": content}).replace("Infinity", "1e999"))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, unescaped
        read_stage_graphs(path)
    assert str(caught.value).startswith(f"{path}: {message}")


# A query as tasks


def test_a_join_of_two_tables_by_hand(written):
    # Orders has 2 parts and part 1 at this scale. Scans take 4 s, a join of 8 tasks 4 s, its one reader 2 s.
    stages = [[3, 1000, 0], [2, 1000, 0], [8, 500, 0], [1, 2000, 0]]
    edges = [[0, 2], [1, 2], [2, 3]]
    path = written([{"name": "q", "stages": stages, "edges": edges}])
    family = Query(
        num_tasks=28,
        scale_factor=1.0,
        part_bytes=1e8,
        stage_tasks=2,
        mean_task_flops=1e9,
        trace=str(path),
        queries_per_s=1e-6,
    )
    assert family.table_parts.tolist() == [7, 2, 2, 1, 1, 1, 1, 1]
    graph = family.kinds(read_stage_graphs(path))[0]
    # The larger scan reads lineitem (parts 0 to 6), the other orders (7 and 8): a look at each part, then its scan.
    assert graph.looks_at.tolist() == [*range(7), *[NO] * 7, 7, 8, *[NO] * 5]
    sources = [[entry for entry in row if entry != NO] for row in graph.inputs.tolist()]
    assert sources[7:14] == [[-2 - part] for part in range(7)]
    assert sources[16:18] == [[-9], [-10]]
    assert sources[18:20] == [[*range(7, 14), 16, 17]] * 2
    assert sources[20] == [18, 19]
    # 3 + 2 + 4 + 2 = 11 s in 12 tasks: 12e9 / 11 flop for each second.
    seconds = [3 / 7] * 7 + [1.0] * 2 + [2.0] * 2 + [2.0]
    np.testing.assert_allclose(graph.flops[graph.looks_at == NO], np.multiply(seconds, 12e9 / 11))
    lineitem, orders = TABLE_BYTES["lineitem"], TABLE_BYTES["orders"]
    np.testing.assert_allclose(
        graph.output_bytes[[7, 16, 18, 20]],
        [lineitem / 14, orders / 4, (lineitem + orders) / 8, (lineitem + orders) / 8],
    )
    np.testing.assert_allclose(graph.work_bytes[:7], lineitem / 7 * 0.05)

    workload = family.generate(np.random.default_rng(0), 1)
    assert workload.object[0].tolist() == [*range(16), *range(7), *range(23, 28)]
    assert workload.read_only[0].tolist() == [True] * 16 + [False] * 12
    assert (workload.freed_after[0, :16] == NEVER).all()
    assert (workload.write_fraction[0, 16:23] == 0).all()
    np.testing.assert_allclose(workload.input_bytes[0, 23:, 0], lineitem / 7, rtol=1e-6)


def test_tasks_that_share_a_stages_work_vary_less(written):
    # 100 tasks of a mean of 1 s and a deviation of 0.5 s: each of 4 is 25 of them, 25 s with a deviation of 2.5 s.
    path = written([{"name": "a", "stages": [[1, 1000, 0], [100, 1000, 500]], "edges": [[0, 1]]}])
    kind = Query(stage_tasks=4, look_share=0.0).kinds(read_stage_graphs(path))[0]
    np.testing.assert_allclose(kind.flops_sigma, [0.0] * 7 + [np.sqrt(np.log1p(0.1**2))] * 4)
    scan, shuffle = kind.flops[0], kind.flops[-1]
    assert shuffle * np.exp(kind.flops_sigma[-1] ** 2 / 2) / scan == pytest.approx(25.0 / (1.0 / 7))


@given(seed=st.integers(0, 2**32))
def test_generated_queries_scan_join_and_end_in_a_chain(seed):
    graph = draw_stage_graph(np.random.default_rng(seed), "any")
    kinds = parts(graph).tolist()
    scans = kinds.count("scan")
    assert kinds.count("join") == scans - 1
    assert chain_length(graph) == kinds.count("chain")
    assert (graph.table >= 0).tolist() == [kind == "scan" for kind in kinds]
    assert len(set(graph.table[:scans].tolist())) == scans
    assert (graph.edges[:, 0] < graph.edges[:, 1]).all()


def test_more_queries_share_their_tables():
    workload = Query(num_tasks=300).generate(np.random.default_rng(0), 4)
    tables = workload.read_only.sum(axis=1)[0]
    readers = [(workload.inputs == part).any(axis=2).sum() / 4 for part in range(tables)]
    assert tables == 16
    assert readers[0] > 5  # lineitem's first part, once by each query that scans it


# Real recordings


def test_the_recording_has_its_queries():
    if not REAL.exists():
        pytest.skip(f"the recorded stage graphs are not beside the checkout ({REAL.name})")
    graphs = read_stage_graphs(REAL)
    assert len(graphs) == 154
    assert max(len(graph.num_tasks) for graph in graphs) == 18


def test_counts_of_scans_and_chains_are_the_recorded_ones(recorded):
    scans = [int((parts(graph) == "scan").sum()) for graph in recorded]
    chains = [chain_length(graph) for graph in recorded]
    assert {count: scans.count(count) for count in sorted(set(scans))} == QUERIES_BY_SCANS
    assert {count: chains.count(count) for count in sorted(set(chains))} == QUERIES_BY_CHAIN


@pytest.mark.parametrize("part", MEDIAN_STAGE_S)
def test_times_of_stages_are_maximum_likelihood_fits_to_recorded_ones(recorded, part):
    seconds = np.concatenate([(graph.num_tasks * graph.task_s)[parts(graph) == part] for graph in recorded])
    assert MEDIAN_STAGE_S[part] == pytest.approx(np.exp(np.log(seconds).mean()), rel=0.005)
    assert STAGE_SIGMA[part] == pytest.approx(np.log(seconds).std(), rel=0.005)


def test_the_spread_of_tasks_is_the_recorded_one(recorded):
    spread = np.concatenate([graph.task_std_s / graph.task_s for graph in recorded])
    assert np.exp(np.log(spread[spread > 0]).mean()) == pytest.approx(TASK_SPREAD, rel=0.005)


def test_the_joins_and_chains_of_the_docstring_are_counted(recorded):
    kinds = np.concatenate([parts(graph) for graph in recorded])
    deep = sum(
        int((parts(graph)[graph.edges[graph.edges[:, 1] == stage, 0]] != "scan").sum() < 2)
        for graph in recorded
        for stage in np.flatnonzero(parts(graph) == "join")
    )
    assert ((kinds == "join").sum(), deep) == (60, 48)
    assert ((kinds == "chain").sum(), sum(chain_length(graph) for graph in recorded)) == (64, 50)


def test_recorded_queries_are_a_workload(recorded):
    del recorded
    workload = Query(num_tasks=200, trace=str(REAL), trace_prefix="tpch-2g-").generate(np.random.default_rng(0), 2)
    assert workload.num_tasks == 200


# What is refused


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"num_tasks": 16}, "num_tasks must be more than the 16 parts of the tables, got 16."),
        ({"scale_factor": 1e30}, "num_tasks must be more than the 1.00278e+30 parts of the tables, got 384."),
        ({"look_share": 1.5}, "look_share must be in [0, 1], got 1.5."),
        ({"trace": "nowhere.json"}, "nowhere.json: stage graphs must be a readable file: No such file or directory."),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, unescaped
        Query(**parameters)
    assert str(caught.value) == message


def test_queries_that_take_no_time_are_refused(written):
    path = written([{"name": "a", "stages": [[1, 0, 0]], "edges": []}])
    with pytest.raises(ValueError, match=r"stages\.json: queries must have a task that takes time, got none"):
        Query(trace=str(path))

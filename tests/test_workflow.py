"""Workflows: a small one by hand, the fitted figures against the recorded runs, and recorded runs as a workload."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from numa_rl.workloads.recorded_graph import RecordedGraph
from numa_rl.workloads.workflow import Workflow
from numa_rl.workloads.workflow_shapes import ALL, PART, SAME, SHAPES, WIDE, Layer, Shape, shaped
from numa_rl.workloads.workload import NEVER, NO_OBJECT

REAL = Path(__file__).parents[2] / "shared/data/traces/wfinstances"
NONE = NO_OBJECT

# Programs of the instances whose names are not those of layers, by the layer's.
PROGRAMS = {"fork": "forkjoin_00000001", "join": "forkjoin_00000010", "wrapper": "wrapper_siftSTFByMisfit"}


def recorded(path: Path) -> dict[str, list[tuple[float, float, float]]]:
    """Run time, bytes written, and bytes read from files that no task wrote, of each task of each program."""
    workflow = json.loads(path.read_text())["workflow"]
    tasks = workflow["specification"]["tasks"]
    size = {file["id"]: file["sizeInBytes"] for file in workflow["specification"]["files"]}
    runtime_s = {task["id"]: task["runtimeInSeconds"] for task in workflow["execution"]["tasks"]}
    written = {file for task in tasks for file in task["outputFiles"]}
    programs: dict[str, list[tuple[float, float, float]]] = {}
    for task in tasks:
        program = task["name"].split("_ID")[0]
        if program.startswith("cpuhog"):
            program = program.removeprefix("cpuhog_")
            program = program if program in PROGRAMS.values() else "work"
        elif "epigenomics" in path.name:
            program = program.split("_")[0]
        outputs = sum(size[file] for file in task["outputFiles"])
        inputs = sum(size[file] for file in task["inputFiles"] if file not in written)
        programs.setdefault(program, []).append((runtime_s[task["id"]], outputs, inputs))
    return programs


def median_and_sigma(values) -> tuple[float, float]:
    logarithm = np.log(values)
    return float(np.exp(logarithm.mean())), float(logarithm.std())


# Known answers


def test_a_fork_join_by_hand():
    # One workflow of width 2: its file, fork, two tasks, join. Times about 100 s each; every file 9.09 MB.
    family = Workflow(num_tasks=5, shape="fork-join", min_width=2, max_width=2, workflows_per_s=1e-6)
    workload = family.generate(np.random.default_rng(0), 1)
    assert workload.object[0].tolist() == [0, 1, 2, 3, 4]
    assert workload.inputs[0].tolist() == [[NONE, NONE], [0, NONE], [1, NONE], [1, NONE], [2, 3]]
    assert workload.freed_after[0].tolist() == [1, 3, 4, 4, 4]
    assert workload.read_only[0].tolist() == [True, False, False, False, False]
    assert workload.follows_inputs

    # 4e9 flop in proportion to run times, spread by a sigma of 0.014 at most; 2 bytes for each. Five files are read and
    # four written, as much as the tasks move while they compute: 8e9 / 9 bytes each.
    np.testing.assert_allclose(workload.flops[0], [0, 1e9, 1e9, 1e9, 1e9], rtol=0.1)
    file_bytes = 8e9 / 9
    np.testing.assert_allclose(workload.object_bytes[0], file_bytes, rtol=1e-6)
    np.testing.assert_allclose(workload.input_bytes[0].sum(axis=1) / file_bytes, [0, 1, 1, 1, 2], rtol=1e-6)
    np.testing.assert_allclose(workload.bytes[0], 2 * workload.flops[0] + file_bytes, rtol=1e-6)
    written = (2 * workload.flops[0] / 3 + file_bytes) / workload.bytes[0]
    np.testing.assert_allclose(workload.write_fraction[0], written, rtol=1e-6)

    # At a nominal 20 Gflop/s and 40 GB/s: the file is written, then read and the fork computed, and so on.
    file_s, task_s = file_bytes / 40e9, (2e9 + file_bytes) / 40e9
    starts_s = [0, file_s, 2 * file_s + task_s, 2 * file_s + task_s, 3 * file_s + 2 * task_s]
    np.testing.assert_allclose(workload.arrival_s[0] - workload.arrival_s[0, 0], starts_s, rtol=0.01, atol=1e-6)


def test_layers_read_each_other_as_they_say():
    shape = Shape(
        (
            Layer("split", 1.0, 0.0, 12.0, 0.0, own_file_bytes=12.0),
            Layer("one", 1.0, 0.1, 4.0, 0.2, WIDE, (("split", PART),), shared_file="f"),
            Layer("two", 2.0, 0.0, 2.0, 0.0, WIDE, (("one", SAME),)),
            Layer("pair", 2.0, 0.0, 2.0, 0.0, "pairs", (("two", "pair"),)),
            Layer("end", 3.0, 0.0, 1.0, 0.0, "", (("pair", ALL),), shared_file="f"),
        ),
        "none",
        {"f": 7.0},
    )
    graph = shaped(shape, 3)
    assert graph.is_file == [True, True] + [False] * 11
    assert graph.output_bytes == [7, 12, 12, 4, 4, 4, 2, 2, 2, 2, 2, 2, 1]
    assert graph.reads[2] == [(1, 1.0)]
    assert graph.reads[3:6] == [[(0, 1.0), (2, 1 / 3)]] * 3
    assert graph.reads[6:9] == [[(3, 1.0)], [(4, 1.0)], [(5, 1.0)]]
    assert graph.reads[9:12] == [[(6, 1.0), (7, 1.0)], [(6, 1.0), (8, 1.0)], [(7, 1.0), (8, 1.0)]]
    assert graph.reads[12] == [(0, 1.0), (9, 1.0), (10, 1.0), (11, 1.0)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_as_wide_as_the_instance_has_its_tasks(shape):
    tasks = {"fork-join": (8, 10), "montage": (4, 19), "epigenomics": (9, 41), "seismology": (100, 101)}
    width, expected = tasks.get(shape, (10, 32))  # of four chromosomes with 10 tasks twice and 7 twice: 10 everywhere
    graph = shaped(SHAPES[shape], width, most_inputs=100)
    missing = 1 if shape == "epigenomics" else 0  # the second, idle mapMerge: a lane's files are merged once
    assert graph.is_file.count(False) == expected - missing


def test_more_inputs_than_a_task_may_have_are_gathered_first():
    graph = RecordedGraph(most_inputs=2)
    files = [graph.add_file(10.0 * (1 + index)) for index in range(5)]
    end = graph.add_task(1.0, 0.0, 1.0, 0.0, [(file, 0.5) for file in files])
    # Five become three, these two, which the task reads.
    assert graph.reads[5:] == [
        [(0, 0.5), (1, 0.5)],
        [(2, 0.5), (3, 0.5)],
        [(5, 1.0), (6, 1.0)],
        [(7, 1.0), (4, 0.5)],
    ]
    assert end == 8
    assert graph.output_bytes[5:8] == [15.0, 35.0, 50.0]
    assert graph.runtime_s[5:8] == [0.0, 0.0, 0.0]


# Laws


def test_workflows_have_the_rate_the_mean_work_and_the_ratio_that_were_asked_for():
    family = Workflow(num_tasks=2000, shape="epigenomics", workflows_per_s=50.0, mean_task_flops=2e9, data_ratio=0.5)
    workload = family.generate(np.random.default_rng(0), 10)
    loaded = workload.read_only & (np.arange(2000) == workload.object)
    arrivals = (workload.read_only & (workload.inputs[:, :, 0] == NO_OBJECT)).sum(axis=1) / 2  # two files each
    assert (arrivals / workload.arrival_s[:, -1]).mean() == pytest.approx(50.0, rel=0.1)
    assert workload.flops[~loaded].mean() == pytest.approx(2e9, rel=0.05)
    written = np.where(loaded, 0.0, workload.object_bytes).sum()
    assert (workload.input_bytes.sum(dtype=float) + written) / (2e9 * (~loaded).sum() / 0.5) == pytest.approx(
        0.5, rel=0.1
    )


def test_what_a_later_reader_needs_stays_to_the_end():
    workload = Workflow(num_tasks=50, shape="seismology").generate(np.random.default_rng(1), 20)
    unread = ~np.array([np.isin(np.arange(50), inputs) for inputs in workload.inputs])
    ended = workload.freed_after == np.arange(50)
    assert (workload.freed_after == NEVER).any()
    assert not (unread & ~ended & (workload.freed_after != NEVER)).any()


# Real runs


@pytest.mark.parametrize("name", SHAPES)
def test_figures_are_maximum_likelihood_fits_to_recorded_runs(name):
    shape = SHAPES[name]
    path = REAL / f"{shape.instance}.json"
    if not path.exists():
        pytest.skip(f"the workflow instances are not beside the checkout ({path.name})")
    programs = recorded(path)
    for layer in shape.layers:
        runs = programs[PROGRAMS.get(layer.name, layer.name)]
        runtime_s, output_bytes, file_bytes = zip(*runs, strict=True)
        for values, median, sigma in (
            (runtime_s, layer.runtime_s, layer.runtime_sigma),
            (output_bytes, layer.output_bytes, layer.output_sigma),
        ):
            fitted, spread = median_and_sigma(values)
            assert median == pytest.approx(fitted, rel=0.01), layer.name
            assert sigma == pytest.approx(spread, abs=0.006), layer.name
        expected = layer.own_file_bytes + (shape.shared_files[layer.shared_file] if layer.shared_file else 0.0)
        if expected:
            assert expected == pytest.approx(median_and_sigma(file_bytes)[0], rel=0.05), layer.name


def test_a_folder_of_recorded_runs_is_a_workload():
    if not REAL.exists():
        pytest.skip(f"the workflow instances are not beside the checkout ({REAL.name})")
    family = Workflow(num_tasks=200, trace=str(REAL), workflows_per_s=1.0)
    assert len(family.kinds) == 8
    workload = family.generate(np.random.default_rng(0), 3)
    assert workload.read_only.any()
    assert workload.num_inputs == 32


# What is refused


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"shape": "star"}, "shape must be any or one of fork-join, montage, epigenomics, seismology, 1000genome, got"),
        ({"min_width": 5, "max_width": 4}, "max_width must be in 5..256, from min_width on, got 4."),
        ({"max_width": 257}, "max_width must be in 4..256, from min_width on, got 257."),
        ({"most_inputs": 1}, "most_inputs must be >= 2, got 1."),
        ({"write_fraction": 1.5}, "write_fraction must be in [0, 1], got 1.5."),
        ({"trace": "nowhere.json"}, "nowhere.json: a workflow must be a readable file: No such file or directory."),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, unescaped
        Workflow(**parameters)
    assert str(caught.value).startswith(message)


def test_a_graph_without_run_times_is_refused():
    graph = RecordedGraph()
    graph.add_file(1.0)
    with pytest.raises(ValueError, match="a recorded graph must have a task that runs for some time, got none"):
        graph.kind(1e9, 0.5, 1.0)

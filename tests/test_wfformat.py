"""Recorded workflows in WfFormat: who waits for whom, what becomes an object, and files that are no workflows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from numa_rl.workloads.json_files import read_json
from numa_rl.workloads.wfformat import read_recorded_graphs, read_workflow

REAL = Path(__file__).parents[2] / "shared/data/traces/wfinstances"


def task(name, parents=(), reads=(), writes=(), children=()):
    return {
        "id": name,
        "name": name,
        "parents": list(parents),
        "children": list(children),
        "inputFiles": list(reads),
        "outputFiles": list(writes),
    }


def document(tasks, files, runtime_s=None):
    runtimes = {entry["id"]: 1.0 for entry in tasks} if runtime_s is None else runtime_s
    return {
        "name": "small",
        "schemaVersion": "1.5",
        "workflow": {
            "specification": {
                "tasks": tasks,
                "files": [{"id": name, "sizeInBytes": size} for name, size in files.items()],
            },
            "execution": {"tasks": [{"id": name, "runtimeInSeconds": time} for name, time in runtimes.items()]},
        },
    }


SMALL = document(
    [
        task("join", ["left", "right"], ["l", "r1"], ["out"]),
        task("left", ["start"], ["s", "genome", "tool"], ["l"]),
        task("right", ["start"], ["s", "genome", "tool"], ["r1", "r2"]),
        task("start", [], ["raw"], ["s"]),
    ],
    {"raw": 5, "genome": 70, "tool": 7, "s": 10, "l": 3, "r1": 1, "r2": 3, "out": 0, "unused": 9},
    {"start": 4.0, "left": 3.0, "right": 2.0, "join": 1.0},
)


@pytest.fixture
def written(tmp_path):
    """Writes a document or text into a file."""

    def write(content):
        path = tmp_path / "flow.json"
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_tasks_come_in_an_order_in_which_they_can_run(written):
    workflow = read_workflow(written(SMALL))
    assert workflow.name == "small"
    assert [entry.name for entry in workflow.tasks] == ["start", "left", "right", "join"]
    assert [entry.runtime_s for entry in workflow.tasks] == [4.0, 3.0, 2.0, 1.0]
    assert workflow.tasks[3].parents == ("left", "right")


def test_outputs_are_one_object_and_files_that_the_same_tasks_read_another(written):
    graph = read_workflow(written(SMALL)).graph(runtime_sigma=0.5)
    # Loaders in order of first reading: raw, then genome and tool; then start, left, right, join.
    assert graph.is_file == [True, True, False, False, False, False]
    assert graph.output_bytes == [5, 77, 10, 3, 4, 0]
    assert graph.runtime_s == [0, 0, 4, 3, 2, 1]
    assert graph.runtime_sigma == [0, 0, 0.5, 0.5, 0.5, 0.5]
    assert graph.reads[2:] == [[(0, 1.0)], [(1, 1.0), (2, 1.0)], [(1, 1.0), (2, 1.0)], [(3, 1.0), (4, 0.25)]]


def test_children_and_writers_are_waited_for_as_parents_are(written):
    tasks = [task("c", reads=["b"]), task("b", writes=["b"]), task("a", children=["c"])]
    workflow = read_workflow(written(document(tasks, {"b": 2})))
    assert [entry.name for entry in workflow.tasks] == ["b", "a", "c"]
    assert workflow.tasks[2].parents == ("a", "b")
    assert workflow.graph().reads[2] == [(1, 0.0), (0, 1.0)]  # of a it reads nothing


def test_the_work_of_a_graph_is_scaled_and_its_sizes_with_it(written):
    kind = read_workflow(written(SMALL)).graph().kind(mean_task_flops=5e8, flops_per_byte=0.5, data_ratio=2.0)
    np.testing.assert_allclose(kind.flops, [0, 0, 8e8, 6e8, 4e8, 2e8])
    np.testing.assert_allclose(kind.work_bytes, 2 * kind.flops)
    # Read: 5, 87, 87 and 4; written: 10, 3, 4 and 0. So 200 recorded bytes become twice the 4 GB of work.
    np.testing.assert_allclose(kind.output_bytes, np.array([5, 77, 10, 3, 4, 0]) * 4e7)
    assert kind.read_only.tolist() == [True, True, False, False, False, False]


def test_a_graph_that_passes_no_bytes_has_empty_outputs(written):
    alone = read_workflow(written(document([task("a")], {}))).graph().kind(1e9, 0.5, 1.0)
    assert alone.output_bytes.tolist() == [0.0]


def changed(path, value):
    """The small workflow with one entry replaced, or removed if the value is ...; the path's steps are keys."""
    content = json.loads(json.dumps(SMALL))
    place = content
    *steps, last = path
    for step in steps:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return content


SPECIFICATION = ("workflow", "specification")
TASKS, FILES = (*SPECIFICATION, "tasks"), (*SPECIFICATION, "files")
RUNS = ("workflow", "execution", "tasks")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            changed((*TASKS, 3, "parents"), ["join"]),
            "a graph of tasks must have no cycle, got join -> start -> right -> join.",
        ),
        (changed((*TASKS, 3, "inputFiles"), ["out"]), "a graph of tasks must have no cycle, got join ->"),
        (changed((*TASKS, 1, "parents"), ["nobody"]), "task 'left': parents and children must be tasks, got 'nobody'."),
        (changed((*TASKS, 1, "children"), ["none"]), "task 'left': parents and children must be tasks, got 'none'."),
        (changed((*TASKS, 1, "id"), "join"), "specification.tasks[1]: id must not be given twice, got 'join'."),
        (changed((*TASKS, 1, "id"), 3), "specification.tasks[1]: id must be a string, got 3."),
        (
            changed((*TASKS, 1, "id"), "new"),
            "specification.tasks[1]: a task must have a run time under execution.tasks, got none for 'new'.",
        ),
        (
            changed((*TASKS, 2, "inputFiles"), ["lost"]),
            "specification.tasks[2]: a file must be listed under specification.files, got 'lost'.",
        ),
        (changed((*TASKS, 1, "outputFiles"), ["out"]), "file 'out': one task must write it, got 'join' and 'left'."),
        (changed((*TASKS, 1, "parents"), "start"), "specification.tasks[1]: parents must be a list of strings, got 's"),
        (changed((*TASKS, 1), "left"), "specification.tasks[1] must be a JSON object, got 'left'."),
        (changed(TASKS, []), "specification.tasks: a workflow must have at least one task, got none."),
        (changed(TASKS, {}), "specification: tasks must be a list, got a JSON object."),
        (
            changed((*FILES, 0, "sizeInBytes"), -1),
            "specification.files[0]: sizeInBytes must be a number in 0..1e+18, g",
        ),
        (changed((*FILES, 0, "sizeInBytes"), True), "specification.files[0]: sizeInBytes must be a number in 0..1e+18"),
        (changed((*FILES, 1, "id"), "raw"), "specification.files[1]: id must not be given twice, got 'raw'."),
        (
            changed((*RUNS, 0, "runtimeInSeconds"), ...),
            "execution.tasks[0]: runtimeInSeconds must be a number in 0..1e",
        ),
        (changed((*RUNS, 0, "runtimeInSeconds"), 1e10), "execution.tasks[0]: runtimeInSeconds must be a number in 0.."),
        (changed((*RUNS, 0, "runtimeInSeconds"), float("nan")), "a number must be finite, got NaN."),
        (changed((*RUNS, 1, "id"), "start"), "execution.tasks[1]: id must not be given twice, got 'start'."),
        (changed(("workflow", "specification"), ...), "workflow: specification must be a JSON object, got nothing."),
        (changed(("workflow",), [1]), "the file: workflow must be a JSON object, got [1]."),
        (document([task("a")], {}, {"a": 0}), "execution.tasks: a task must run for some time, got 0 s for all 1."),
        ([], "a workflow must be a JSON object, got []."),
        ("", "a workflow must be JSON: Expecting value: line 1 column 1 (char 0)."),
        ("{", "a workflow must be JSON: "),
        pytest.param("[" * 10**6, "a workflow must not be nested so deeply.", id="deep"),
        (b"\xff\xfe", "a workflow must be UTF-8 text: invalid start byte at byte 0."),
    ],
)
def test_errors_name_file_place_rule_and_value(written, content, message):
    path = written(content)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, unescaped
        read_workflow(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_missing_file_an_empty_folder_and_a_large_file_are_refused(tmp_path, written):
    with pytest.raises(ValueError, match=r"nowhere\.json: a workflow must be a readable file: No such file"):
        read_workflow(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match=r"a folder of workflows must have a file \*\.json, got none"):
        read_recorded_graphs(tmp_path, 0.0)
    with pytest.raises(ValueError, match="a thing must have at most 3 bytes, got more"):
        read_json(written("[1, 2]"), "a thing", 3)


def test_a_folder_is_read_by_name(tmp_path):
    for name, tasks in (("b", [task("x"), task("y")]), ("a", [task("x")])):
        (tmp_path / f"{name}.json").write_text(json.dumps(document(tasks, {})))
    (tmp_path / "notes.txt").write_text("no workflow")
    assert [len(graph.reads) for graph in read_recorded_graphs(tmp_path, 0.0)] == [1, 2]


@pytest.mark.parametrize(
    ("name", "num_tasks"),
    [
        ("1000genome-chameleon-4ch-100k-001", 104),
        ("blast-chameleon-large-001", 103),
        ("bwa-chameleon-small-001", 104),
        ("cycles-chameleon-1l-1c-9p-001", 67),
        ("epigenomics-chameleon-hep-1seq-100k-001", 41),
        ("helloworld-forkjoin-10-chameleon", 10),
        ("montage-chameleon-2mass-005d-001", 58),
        ("seismology-chameleon-100p-001", 101),
    ],
)
def test_real_instances_are_read_whole(name, num_tasks):
    path = REAL / f"{name}.json"
    if not path.exists():
        pytest.skip(f"the workflow instances are not beside the checkout ({path.name})")
    workflow, recorded = read_workflow(path), json.loads(path.read_text())["workflow"]
    assert len(workflow.tasks) == num_tasks
    place = {entry.name: index for index, entry in enumerate(workflow.tasks)}
    for entry in recorded["specification"]["tasks"]:
        assert all(place[parent] < place[entry["id"]] for parent in entry["parents"])
        assert all(place[entry["id"]] < place[child] for child in entry["children"])
    runtime_s = sum(entry["runtimeInSeconds"] for entry in recorded["execution"]["tasks"])
    assert sum(workflow.graph().runtime_s) == pytest.approx(runtime_s)
    size = {file["id"]: file["sizeInBytes"] for file in recorded["specification"]["files"]}
    used = {
        file
        for task in recorded["specification"]["tasks"]
        for key in ("inputFiles", "outputFiles")
        for file in task[key]
    }
    assert sum(workflow.graph(most_inputs=1000).output_bytes) == pytest.approx(sum(size[file] for file in used))

"""Reader of recorded workflows in WfFormat: tasks, run times, files with sizes, and who waits for whom.

WfFormat [1] is the JSON of WfCommons; versions that keep the graph under `workflow.specification` and the run times
under `workflow.execution` are read, so 1.5 and its like. A task waits for its parents, for the tasks that name it
among their children and for those that write what it reads.

References:
    [1] T. Coleman, H. Casanova, L. Pottier, M. Kaushik, E. Deelman, R. Ferreira da Silva, "WfCommons: a framework for
        enabling scientific workflow research and development", Future Generation Computer Systems 128, 2022;
        github.com/wfcommons/WfFormat.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numa_rl.wording import quoted
from numa_rl.workloads.json_files import read_json, shown
from numa_rl.workloads.recorded_graph import MOST_INPUTS, RecordedGraph
from numa_rl.workloads.task_graph import topological_order

MOST_FILE_BYTES = 256 * 2**20  # of a JSON file, which is read at once: a thousand times the largest known instance
MOST_RUNTIME_S = 1e9  # thirty years: a longer one is an error in the file
MOST_BYTES = 1e18


@dataclass(frozen=True)
class WorkflowTask:
    """A task of a recorded workflow.

    Attributes:
        name: its id.
        runtime_s: how long it ran.
        parents: tasks that it waits for.
        reads: files.
        writes: files.
    """

    name: str
    runtime_s: float
    parents: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True)
class RecordedWorkflow:
    """A recorded workflow.

    Attributes:
        name: of the workflow.
        tasks: in a topological order that follows the file's where it can.
        file_bytes: size of every file.
    """

    name: str
    tasks: tuple[WorkflowTask, ...]
    file_bytes: Mapping[str, float]

    def graph(self, runtime_sigma: float = 0.0, most_inputs: int = MOST_INPUTS) -> RecordedGraph:
        """The graph of its tasks.

        A task's outputs are one object, of which a reader reads the share of its files. Input files that the same
        tasks read are one object too, with one loader. A parent of which a task reads nothing is only waited for.

        Args:
            runtime_sigma: standard deviation of the logarithm of a run time when the task runs again.
            most_inputs: as in a `RecordedGraph`.
        """
        graph, number = RecordedGraph(most_inputs), {}
        writer = {file: task.name for task in self.tasks for file in task.writes}
        for readers, size in self._inputs(writer).items():
            number[readers] = graph.add_file(size)
        loaded: dict[str, list[int]] = {task.name: [] for task in self.tasks}
        for readers, index in number.items():
            for name in readers:
                loaded[name].append(index)

        done: dict[str, int] = {}
        written = {task.name: sum(self.file_bytes[file] for file in task.writes) for task in self.tasks}
        for task in self.tasks:
            read_bytes = dict.fromkeys(task.parents, 0.0)
            for file in task.reads:
                if file in writer:
                    read_bytes[writer[file]] += self.file_bytes[file]
            reads = [(index, 1.0) for index in loaded[task.name]]
            reads += [(done[name], size / written[name] if size else 0.0) for name, size in read_bytes.items()]
            sigma = runtime_sigma if task.runtime_s > 0 else 0.0
            done[task.name] = graph.add_task(task.runtime_s, sigma, written[task.name], 0.0, reads)
        return graph

    def _inputs(self, writer: Mapping[str, str]) -> dict[tuple[str, ...], float]:
        """Size of all files that no task writes and just these tasks read, by readers."""
        readers: dict[str, list[str]] = {}
        for task in self.tasks:
            for file in task.reads:
                if file not in writer:
                    readers.setdefault(file, []).append(task.name)
        sizes: dict[tuple[str, ...], float] = {}
        for file, names in readers.items():
            sizes[tuple(names)] = sizes.get(tuple(names), 0.0) + self.file_bytes[file]
        return sizes


def read_recorded_graphs(path: str | Path, runtime_sigma: float, most_inputs: int = MOST_INPUTS) -> list[RecordedGraph]:
    """The graph of a recorded workflow, or those of all in a folder (*.json), by name.

    Raises:
        ValueError: as for `read_workflow`, or there is none in the folder.
    """
    folder = Path(path)
    files = sorted(folder.glob("*.json")) if folder.is_dir() else [folder]
    if not files:
        raise ValueError(f"{path}: a folder of workflows must have a file *.json, got none.")
    return [read_workflow(file).graph(runtime_sigma, most_inputs) for file in files]


def read_workflow(path: str | Path) -> RecordedWorkflow:
    """Read a recorded workflow.

    Raises:
        ValueError: there is no such file, it is too large, not JSON or not WfFormat, or what it says is no graph of
            tasks; the message names file, place, rule and value.
    """
    try:
        return _workflow(read_json(Path(path), "a workflow", MOST_FILE_BYTES))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _workflow(document: Any) -> RecordedWorkflow:
    _require_table(document, "a workflow")
    workflow = _table(document, "workflow", "the file")
    specification = _table(workflow, "specification", "workflow")
    execution = _table(workflow, "execution", "workflow")
    file_bytes = dict(_sizes(specification))
    runtime_s = dict(_runtimes(execution))
    tasks = _tasks(specification, file_bytes, runtime_s)
    if not any(task.runtime_s > 0 for task in tasks.values()):
        raise ValueError(f"execution.tasks: a task must run for some time, got 0 s for all {len(tasks)}.")
    names = list(tasks)
    index = {name: place for place, name in enumerate(names)}
    edges = [(index[parent], index[name]) for name, task in tasks.items() for parent in task.parents]
    order = topological_order(len(names), edges, names)
    return RecordedWorkflow(
        name=document["name"] if isinstance(document.get("name"), str) else "workflow",
        tasks=tuple(tasks[names[place]] for place in order.tolist()),
        file_bytes=file_bytes,
    )


def _tasks(
    specification: dict[str, Any], file_bytes: Mapping[str, float], runtime_s: Mapping[str, float]
) -> dict[str, WorkflowTask]:
    """The tasks in the order of the file, with all that each waits for."""
    found: dict[str, dict[str, list[str]]] = {}
    for where, entry in _entries(specification, "tasks", "specification"):
        name = _name(entry, "id", where)
        if name in found:
            raise ValueError(f"{where}: id must not be given twice, got {quoted(name)}.")
        if name not in runtime_s:
            raise ValueError(
                f"{where}: a task must have a run time under execution.tasks, got none for {quoted(name)}."
            )
        found[name] = {key: _names(entry, key, where) for key in ("parents", "children", "inputFiles", "outputFiles")}
        for file in found[name]["inputFiles"] + found[name]["outputFiles"]:
            if file not in file_bytes:
                raise ValueError(f"{where}: a file must be listed under specification.files, got {quoted(file)}.")
    if not found:
        raise ValueError("specification.tasks: a workflow must have at least one task, got none.")

    parents = {name: list(task["parents"]) for name, task in found.items()}
    writer: dict[str, str] = {}
    for name, task in found.items():
        for other in task["parents"] + task["children"]:
            if other not in found:
                raise ValueError(f"task {quoted(name)}: parents and children must be tasks, got {quoted(other)}.")
        for child in task["children"]:
            parents[child].append(name)
        for file in task["outputFiles"]:
            if writer.setdefault(file, name) != name:
                raise ValueError(
                    f"file {quoted(file)}: one task must write it, got {quoted(writer[file])} and {quoted(name)}."
                )
    for name, task in found.items():
        parents[name] += [writer[file] for file in task["inputFiles"] if file in writer]
    return {
        name: WorkflowTask(
            name=name,
            runtime_s=runtime_s[name],
            parents=tuple(dict.fromkeys(parents[name])),
            reads=tuple(dict.fromkeys(task["inputFiles"])),
            writes=tuple(dict.fromkeys(task["outputFiles"])),
        )
        for name, task in found.items()
    }


def _sizes(specification: dict[str, Any]) -> Iterator[tuple[str, float]]:
    seen = set()
    for where, entry in _entries(specification, "files", "specification", needed=False):
        name = _name(entry, "id", where)
        if name in seen:
            raise ValueError(f"{where}: id must not be given twice, got {quoted(name)}.")
        seen.add(name)
        yield name, _number(entry, "sizeInBytes", where, MOST_BYTES)


def _runtimes(execution: dict[str, Any]) -> Iterator[tuple[str, float]]:
    seen = set()
    for where, entry in _entries(execution, "tasks", "execution"):
        name = _name(entry, "id", where)
        if name in seen:
            raise ValueError(f"{where}: id must not be given twice, got {quoted(name)}.")
        seen.add(name)
        yield name, _number(entry, "runtimeInSeconds", where, MOST_RUNTIME_S)


def _entries(table: dict[str, Any], key: str, owner: str, needed: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tables of a list, and where each stands."""
    if key not in table and not needed:
        return
    values = table.get(key)
    if not isinstance(values, list):
        raise ValueError(f"{owner}: {key} must be a list, got {shown(values)}.")
    for place, value in enumerate(values):
        where = f"{owner}.{key}[{place}]"
        _require_table(value, where)
        yield where, value


def _table(table: dict[str, Any], key: str, owner: str) -> dict[str, Any]:
    value: dict[str, Any] = table.get(key, {})
    _require_table(table.get(key), f"{owner}: {key}")
    return value


def _require_table(value: Any, what: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a JSON object, got {shown(value)}.")


def _name(entry: dict[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}: {key} must be a string, got {shown(value)}.")
    return value


def _names(entry: dict[str, Any], key: str, where: str) -> list[str]:
    value = entry.get(key, [])
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{where}: {key} must be a list of strings, got {shown(value)}.")
    return list(value)


def _number(entry: dict[str, Any], key: str, where: str, most: float) -> float:
    value = entry.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{where}: {key} must be a number in 0..{most:g}, got {shown(value)}.")
    return float(value)

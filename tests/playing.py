"""Playing the simulator in tests: a row at a time, or many, and everything that a step writes."""

from __future__ import annotations

from typing import Any

import numpy as np
from strategies import Play

from numa_rl.simulator.simulator import Simulator
from numa_rl.simulator.state import ABSENT, CHANGE, RECORD, State, record_size
from numa_rl.topology import Topology
from numa_rl.workloads.workload import Workload


def started(topology: Topology, workload: Workload, window_s: float = 10.0, **options: Any) -> Simulator:
    """One row at the first task of the first episode."""
    simulator = Simulator(topology, workload, 1, window_s=window_s, **options)
    simulator.reset(0)
    return simulator


def decide(simulator: Simulator, *actions: tuple[int, int]) -> dict[str, Any]:
    """Take these (task node, data node) one after another in every row; the last outcome of row 0."""
    for action in actions:
        outcome = simulator.step(np.tile(action, (simulator.num_rows, 1)))
    return {name: values[0] for name, values in outcome._asdict().items()}


def objects(simulator: Simulator, row: int = 0) -> list[tuple[int, float]]:
    """(node, size) of every object."""
    return [(int(thing["node"]), float(thing["bytes"])) for thing in simulator.state.objects[row]]


def bits(simulator: Simulator, rows: Any = slice(None)) -> dict[str, np.ndarray]:
    """Copies of everything that a step writes."""
    arrays = simulator.state._asdict() | {f"outcome.{k}": v for k, v in simulator.outcome._asdict().items()}
    arrays |= {f"objects.{name}": simulator.state.objects[name] for name in simulator.state.objects.dtype.names}
    del arrays["objects"]  # between its fields lie bytes that mean nothing
    arrays |= dict(zip(("changes", "records"), written_down(simulator.state), strict=True))
    return {name: values[rows].copy() for name, values in arrays.items()}


def written_down(state: State) -> tuple[np.ndarray, np.ndarray]:
    """The cores' changes and records, with zeros for what is left there of others that have ended."""
    changes, size = state.changes.copy(), record_size(state.node_free_s.shape[1])
    changes[np.arange(changes.shape[1]) >= state.num_changes[:, None]] = np.zeros((), CHANGE)
    records = state.records.reshape(len(changes), -1, size).copy()
    heads = records[:, :, :1]
    ended = (heads["status"] == ABSENT) | (np.arange(size) > heads["num_streams"])
    records[ended] = np.zeros((), RECORD)
    return changes, records.reshape(state.records.shape)


def cores_at_work(simulator: Simulator, row: int = 0) -> dict[tuple[int, int], dict[str, Any]]:
    """What every core with a record moves: by (node, core), and its streams by (initiator, target)."""
    width = simulator.num_nodes
    _, records = written_down(simulator.state)
    found = {}
    for place, record in enumerate(records[row].reshape(-1, record_size(width))):
        if record[0]["status"] != ABSENT:
            head = {name: record[0][name].item() for name in ("status", "duration_s", "busy_until_s")}
            names = ("present", "read_bytes_per_s", "written_bytes_per_s")
            head["streams"] = {
                divmod(int(stream["pair"]), width): tuple(stream[name].item() for name in names)
                for stream in record[1 : 1 + record[0]["num_streams"]]
            }
            found[place % width, place // width] = head
    return found


def assert_same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name, values in one.items():
        assert values.tobytes() == other[name].tobytes(), f"{name}: {values} is not {other[name]}"


def replay(play: Play, **options: Any) -> list[dict[str, np.ndarray]]:
    """Every episode of a play at once: what each step wrote."""
    simulator = Simulator(play.topology, play.workload, len(play.actions), window_s=play.window_s, **options)
    simulator.reset(np.arange(len(play.actions)))
    history = [bits(simulator)]
    for task in range(play.workload.num_tasks):
        simulator.step(play.actions[:, task])
        history.append(bits(simulator))
    return history

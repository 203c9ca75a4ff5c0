"""A workload's episode as a graph to partition: its tasks, and the bytes that pass between them through objects.

Dimension key: T tasks, P inputs of a task.

References:
    [1] The chapter, section 16.2.1: a compute graph and its partition.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from numa_rl.partition.graph import Graph, graph_from_edges
from numa_rl.workloads.workload import NO_OBJECT, Workload


def workload_graph(workload: Workload, episode: int, task_weights: npt.ArrayLike | None = None) -> Graph:
    """Tasks as vertices; between two tasks the bytes that the later one takes from where the earlier one left them.

    A task takes its inputs from the tasks that last wrote them, and the bytes it moves on its own object from the task
    that owned the object before. Only what could be saved by running both on one node is counted: the creation of an
    object and what is read of objects that nobody has written join no two tasks.

    Args:
        workload: the pool of episodes.
        episode: which of them.
        task_weights: cost of each task, shape (T,), such as its time; by default the bytes it moves and reads.

    Raises:
        ValueError: no such episode, or weights of a wrong shape or value; weights must not all be 0.
    """
    if not 0 <= episode < workload.num_episodes:
        raise ValueError(f"episode must be in 0..{workload.num_episodes - 1}, got {episode}.")
    moved, inputs = workload.bytes[episode].astype(np.float64), workload.inputs[episode]
    input_bytes = workload.input_bytes[episode].astype(np.float64)
    weights = moved + input_bytes.sum(axis=1) if task_weights is None else np.asarray(task_weights, np.float64)
    if weights.shape != (workload.num_tasks,):
        raise ValueError(f"task_weights must have shape ({workload.num_tasks},), got {weights.shape}.")
    owner: dict[int, int] = {}
    writer: dict[int, int] = {}
    pairs: list[tuple[int, int, float]] = []
    for task, own in enumerate(workload.object[episode].tolist()):
        for place, read in enumerate(inputs[task].tolist()):
            if read != NO_OBJECT and read in writer:
                pairs.append((writer[read], task, input_bytes[task, place]))
        if own in owner:
            pairs.append((owner[own], task, moved[task]))
        if own not in owner or workload.write_fraction[episode, task] > 0:
            writer[own] = task  # who creates an object writes it
        owner[own] = task
    table = np.array(pairs, dtype=np.float64).reshape(-1, 3)
    return graph_from_edges(workload.num_tasks, table[:, 0], table[:, 1], table[:, 2], weights)

"""Observations made by hand or at random, for tests of rules."""

from typing import Any

import numpy as np

from agents.rules.base import Array
from agents.rules.catalog import make_rule
from envs.observation import ObservationLayout
from envs.observation_kernel import TaskFeature

N = 3
LINE = 1.0 + np.abs(np.subtract.outer(np.arange(N), np.arange(N)))  # latency of nodes in a line


def row(home: int | None = None, features: dict[int, float] | None = None, **groups: Any) -> Array:
    """An observation of three idle nodes in a line, the object at `home` or new, with these groups besides.

    `features` are values of `TaskFeature`. An object that is split or has copies is one that has a home and `data`.
    """
    observation = np.zeros(ObservationLayout(N).size, np.float32)
    parts = ObservationLayout(N).split(observation)
    parts["latency"][:] = LINE
    parts["bandwidth"][:] = 1.0 / LINE
    for mask in ("nodes", "task_mask", "data_mask"):
        parts[mask][:] = 1.0
    if home is None:
        parts["task"][TaskFeature.IS_NEW] = 1.0
    else:
        parts["data"][home] = 1.0
    for feature, value in (features or {}).items():
        parts["task"][feature] = value
    for name, values in groups.items():
        parts[name][:] = values
    return observation


def decide(name: str, observation: Array, memory: Array | None = None, **parameters: Any) -> list[int]:
    """The action of a rule that remembers nothing yet, or this (K,)."""
    state = None if memory is None else (np.asarray(memory, np.float64)[None],)
    return make_rule(name, **parameters).predict(observation, state=state)[0].tolist()


def random_rows(rng: np.random.Generator, count: int, num_nodes: int, most_copies: int = 3) -> Array:
    """Rows of random values with valid data and masks; about a third of all nodes are closed, at least one open.

    A third of the objects is new, a third whole on one node; of the others half are split and half have copies.
    """
    layout = ObservationLayout(num_nodes)
    rows = rng.random((count, layout.size), dtype=np.float32)
    parts = layout.split(rows)
    nodes = np.arange(num_nodes)
    home = rng.integers(num_nodes, size=(count, 1))
    kind = rng.integers(6, size=(count, 1))  # 0, 1: new; 2, 3: whole; 4: split; 5: copies
    split = rng.random((count, num_nodes))
    copies = (nodes - home) % num_nodes < rng.integers(1, most_copies + 1, size=(count, 1))
    parts["data"][:] = np.where(kind == 4, split / split.sum(axis=1, keepdims=True), home == nodes)
    parts["data"][:] = np.where(kind == 5, copies, parts["data"]) * (kind >= 2)
    parts["task"][:, TaskFeature.IS_NEW] = kind[:, 0] < 2
    parts["task"][:, TaskFeature.READ_ONLY] = (kind == 5)[:, 0] | (rng.random(count) < 0.2)
    parts["last"][:] = rng.integers(-1, num_nodes, size=(count, 1)) == nodes
    for name in ("task_mask", "data_mask"):
        mask = rng.random((count, num_nodes)) < 0.67
        mask[np.arange(count), rng.integers(num_nodes, size=count)] = True
        parts[name][:] = mask
    parts["nodes"][:] = np.maximum(parts["task_mask"], parts["data_mask"])
    return rows

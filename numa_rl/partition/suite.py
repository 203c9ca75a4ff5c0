"""Generated graphs on which partitioners are compared: meshes, networks, and graphs of tasks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from numa_rl.partition.generators import (
    grid,
    layered_tasks,
    planted_partition,
    random_geometric,
    random_regular,
    ring_of_cliques,
    rmat,
)
from numa_rl.partition.graph import Graph
from numa_rl.partition.workload_graph import workload_graph
from numa_rl.workloads.query import Query

SEED = 0
GENERATED: dict[str, Callable[[np.random.Generator], Graph]] = {
    "grid 60x60": lambda _: grid(60, 60),
    "grid 100x30": lambda _: grid(100, 30),
    "grid 14x14x14": lambda _: grid(14, 14, 14),
    "geometric 4000": lambda rng: random_geometric(4000, 10.0, rng),
    "geometric sparse 6000": lambda rng: random_geometric(6000, 7.0, rng),
    "power law 2048": lambda rng: rmat(11, 8, rng),
    "power law 4096": lambda rng: rmat(12, 4, rng),
    "planted 2400": lambda rng: planted_partition(8, 300, 12.0, 4.0, rng),
    "regular 2000": lambda rng: random_regular(2000, 4, rng),
    "cliques 40x12": lambda _: ring_of_cliques(40, 12),
    "layers 40x50": lambda rng: layered_tasks(40, 50, 3, rng),
    "layers 20x20": lambda rng: layered_tasks(20, 20, 3, rng),
    "queries": lambda rng: workload_graph(Query().generate(rng, 1), 0),
}


def suite_graphs() -> dict[str, Graph]:
    """The generated graphs by name, the same at every call."""
    return {name: make(np.random.default_rng(SEED)) for name, make in GENERATED.items()}

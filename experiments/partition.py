"""Partitioning graphs for a machine: the cut, the balance and the cost on its nodes, by every method there is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from experiments.files import require_outputs, write_bytes, write_json
from numa_rl.machines.catalog import load_machine
from numa_rl.partition.graph import F64, I64, Graph
from numa_rl.partition.libraries import mt_kahypar_map
from numa_rl.partition.mapping import compute_nodes, map_parts, node_distances
from numa_rl.partition.methods import METHODS, available_methods, partition
from numa_rl.partition.objective import (
    ROUNDING,
    balance,
    cut_weight,
    mapped_cost,
    objective,
    part_limits,
    part_weights,
    require_shares,
    traffic_matrix,
)
from numa_rl.partition.readers import read_graph
from numa_rl.partition.refinement import shorten
from numa_rl.partition.suite import suite_graphs
from numa_rl.partition.tree_match import tree_match
from numa_rl.topology import Topology
from numa_rl.wording import counted

REFERENCE = "metis"  # whose cuts the others are divided by
SHORTENED = "multilevel-map"  # ours, and then vertices move where that makes the mapped cost lower
TREE_MATCH, DIRECT = "tree-match", "mt-kahypar-map"  # these place vertices on nodes at once
PLACERS = (SHORTENED, TREE_MATCH, DIRECT)


@dataclass(frozen=True)
class Partition:
    """Partition graphs into a part for each node of a machine, place the parts by distance, and compare methods.

    Attributes:
        files: graphs: .graph (METIS), .mtx (Matrix Market), .csv (communication matrix), .json (recorded workflow or
            queries).
        suite: also the generated graphs that methods are compared on.
        machine: a machine's name (`machine list` prints them), or the path of its file.
        parts: number of parts, at most the machine's nodes with cores; by default as many, each with its cores' share.
        method: one method: multilevel (ours), spectral, metis, kahip, mt-kahypar; or one
            that places vertices on nodes at once: multilevel-map (ours), tree-match or mt-kahypar-map; all
            that are installed by default.
        imbalance: by what share of its own a part may weigh more.
        trade_off: lambda of the objective: cut + lambda max part cost.
        seed: of all methods.
        output: a file for the node of each vertex, one a line, by the method of the least mapped cost that keeps the
            balance; takes one graph.
        json: a file for all results.
    """

    files: tyro.conf.Positional[tuple[Path, ...]] = ()
    suite: bool = False
    machine: str = "chapter-8-socket"
    parts: int | None = None
    method: str | None = None
    imbalance: float = 0.03
    trade_off: float = 1.0
    seed: int = 0
    output: Path | None = None
    json: Path | None = None

    def run(self) -> None:
        """Print a table for each graph, and one of the methods where there are several graphs.

        Raises:
            ValueError: no graph, an option out of range, a file that breaks its format or cannot be written.
        """
        if not self.files and not self.suite:
            raise ValueError("partition needs at least one graph file, or --suite, got neither.")
        if self.seed < 0:
            raise ValueError(f"--seed must be >= 0, got {self.seed}.")
        if self.output is not None and (self.suite or len(self.files) != 1):
            raise ValueError(
                f"--output takes one graph, got {counted(len(self.files), 'file')}{' and the suite' * self.suite}."
            )
        require_outputs(
            {"--output": self.output, "--json": self.json},
            {"--machine": Path(self.machine)} | {f"graph {path}": path for path in self.files},
        )
        target = target_of(load_machine(self.machine), self.parts)
        methods = chosen_methods(self.method)
        graphs = {str(path): read_graph(path) for path in self.files} | (suite_graphs() if self.suite else {})
        from experiments.partition_report import print_study, summary_table

        console = Console()
        studies = []
        for name, graph in graphs.items():
            with console.status("") as status:
                study = study_graph(name, graph, target, methods, self, on_method=_shown(status.update, name))
            if self.method is not None and study.failures:
                raise ValueError(f"{name}: {study.failures[self.method]}")
            print_study(study, console)
            studies.append(study)
        if len(studies) > 1:
            console.print(summary_table(studies))
        if self.output is not None:
            _write_nodes(self.output, studies[0])
        if self.json is not None:
            write_json(self.json, {"machine": target.topology.name, "graphs": [study.to_dict() for study in studies]})


@dataclass(frozen=True, eq=False)
class Target:
    """What parts are made for.

    Attributes:
        topology: the machine.
        nodes: its nodes with cores, shape (N,).
        distance: between them, shape (N, N).
        shares: of the whole that each part is to have, shape (K,).
    """

    topology: Topology
    nodes: I64
    distance: F64
    shares: F64

    @property
    def fills_machine(self) -> bool:
        """Whether there is a part for each node, made for its cores."""
        return len(self.shares) == len(self.nodes)


def target_of(topology: Topology, num_parts: int | None) -> Target:
    """Parts in proportion to cores, one for each node, or fewer equal ones.

    Raises:
        ValueError: more parts than nodes, or none.
    """
    nodes = compute_nodes(topology)
    if num_parts is not None and not 1 <= num_parts <= len(nodes):
        raise ValueError(
            f"--parts must be in 1..{len(nodes)}, the nodes of {topology.name} with cores, got {num_parts}."
        )
    fills = num_parts in (None, len(nodes))
    shares = require_shares(len(nodes), topology.cores[nodes]) if fills else require_shares(num_parts or 1, None)
    return Target(topology, nodes, node_distances(topology), shares)


def chosen_methods(method: str | None) -> tuple[str, ...]:
    """The one chosen, or all that are installed; raises ValueError for an unknown one."""
    if method is None:
        available = available_methods()
        return (*available, SHORTENED, TREE_MATCH, *((DIRECT,) if "mt-kahypar" in available else ()))
    if method not in (*METHODS, *PLACERS):
        raise ValueError(f"--method must be one of {', '.join((*METHODS, *PLACERS))}, got {method!r}.")
    return (method,)


@dataclass(frozen=True, eq=False)
class Standing:
    """How one method did on one graph.

    Attributes:
        method: its name.
        vertex_node: the node of each vertex, as an index into the machine's nodes with cores, shape (V,).
        cut: weight of the edges between nodes.
        balance: greatest weight of a part over its share.
        objective: cut + lambda max part cost.
        mapped_cost: weight times distance over the cut.
        seconds: time it took, mapping included.
        returned_balance: the balance before vertices were moved to keep the bound.
    """

    method: str
    vertex_node: I64
    cut: float
    balance: float
    objective: float
    mapped_cost: float
    seconds: float
    returned_balance: float


@dataclass(frozen=True, eq=False)
class Study:
    """All methods on one graph.

    Attributes:
        name: of the graph.
        graph: itself.
        target: what it was partitioned for.
        allowed_balance: the bound.
        standings: of the methods that could do it.
        failures: of the others, why not.
    """

    name: str
    graph: Graph
    target: Target
    allowed_balance: float
    standings: tuple[Standing, ...]
    failures: Mapping[str, str]

    def keeps_balance(self, standing: Standing) -> bool:
        """Whether a method's parts are within the bound."""
        return standing.balance <= self.allowed_balance * (1.0 + ROUNDING)

    def was_broken(self, standing: Standing) -> bool:
        """Whether a method itself returned parts that broke the bound."""
        return standing.returned_balance > self.allowed_balance * (1.0 + ROUNDING)

    def ratio(self, standing: Standing) -> float | None:
        """Its cut over METIS's; None without METIS, or where only METIS's is 0."""
        reference = next((other.cut for other in self.standings if other.method == REFERENCE), None)
        if reference is None or (reference == 0.0 and standing.cut > 0.0):
            return None
        return standing.cut / reference if reference else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "graph": self.name,
            "num_vertices": self.graph.num_vertices,
            "num_edges": self.graph.num_edges,
            "num_parts": len(self.target.shares),
            "allowed_balance": self.allowed_balance,
            "methods": [
                {
                    "method": standing.method,
                    "cut": standing.cut,
                    "cut_over_metis": self.ratio(standing),
                    "balance": standing.balance,
                    "returned_balance": standing.returned_balance,
                    "objective": standing.objective,
                    "mapped_cost": standing.mapped_cost,
                    "seconds": standing.seconds,
                }
                for standing in self.standings
            ],
            "failures": dict(self.failures),
        }


def study_graph(
    name: str,
    graph: Graph,
    target: Target,
    methods: Sequence[str],
    options: Partition,
    on_method: Callable[[str], None] = lambda method: None,
) -> Study:
    """Let each method partition and place a graph; who cannot says why."""
    limits = part_limits(graph.vertex_weights, target.shares, options.imbalance)
    standings, failures = [], {}
    for method in methods:
        on_method(method)
        try:
            standings.append(_standing(method, graph, target, limits, options))
        except ValueError as error:
            failures[method] = str(error)
    if not standings and options.method is None:
        raise ValueError(f"{name}: {next(iter(failures.values()))}")
    allowed = float((limits / (target.shares * graph.total_weight)).max())
    return Study(name, graph, target, allowed, tuple(standings), failures)


def _standing(method: str, graph: Graph, target: Target, limits: F64, options: Partition) -> Standing:
    """One method on one graph; raises ValueError where it cannot."""
    rng = np.random.default_rng(options.seed)
    began = time.perf_counter()
    returned: float | None = None
    if method in PLACERS:
        if not target.fills_machine:
            raise ValueError(f"{method} places on all nodes of the machine: leave --parts out.")
        if method == SHORTENED:
            nodes, _ = _mapped("multilevel", graph, target, rng, options)
            nodes = shorten(graph.adjacency, nodes, limits, target.distance, rng)
        elif method == TREE_MATCH:
            nodes = np.searchsorted(target.nodes, tree_match(graph, target.topology))
        else:
            nodes = mt_kahypar_map(graph, limits, target.distance, rng)
    else:
        nodes, returned = _mapped(method, graph, target, rng, options)
    seconds = time.perf_counter() - began
    n = len(target.nodes)
    # Fewer parts than nodes leave nodes empty, and the balance is that of the parts.
    weights = part_weights(graph, nodes, n)
    shares_of_nodes = target.shares if target.fills_machine else np.full(n, target.shares[0])
    reached = balance(weights, shares_of_nodes)
    return Standing(
        method=method,
        vertex_node=nodes,
        cut=cut_weight(graph, nodes),
        balance=reached,
        objective=objective(graph, nodes, n, options.trade_off),
        mapped_cost=mapped_cost(graph, nodes, target.distance),
        seconds=seconds,
        returned_balance=reached if returned is None else returned,
    )


def _mapped(
    method: str, graph: Graph, target: Target, rng: np.random.Generator, options: Partition
) -> tuple[I64, float]:
    """The node of each vertex, its part placed by distance, and the balance the method returned."""
    k = len(target.shares)
    result = partition(graph, k, imbalance=options.imbalance, method=method, target_shares=target.shares, rng=rng)
    shares = target.shares if target.fills_machine else None
    nodes = map_parts(traffic_matrix(graph, result.parts, k), target.distance, shares)
    return nodes[result.parts], result.returned_balance


def _write_nodes(path: Path, study: Study) -> None:
    """The nodes by the method of the least mapped cost, whole or not at all."""
    kept = [standing for standing in study.standings if study.keeps_balance(standing)] or list(study.standings)
    best = min(kept, key=lambda standing: standing.mapped_cost)
    write_bytes(path, "".join(f"{node}\n" for node in study.target.nodes[best.vertex_node]).encode())


def _shown(update: Callable[[str], None], name: str) -> Callable[[str], None]:
    return lambda method: update(f"{name}: {method}")

"""Showing machines: what each node and link can do, and where every figure came from."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from numa_rl.machines.catalog import load_machine, machine_names
from numa_rl.machines.machine_json import FIGURES
from numa_rl.topology import FloatArray, IntArray, Topology
from numa_rl.wording import counted

CELL_PADDING = 3  # blanks of the table around a value
ROW_HEADER_WIDTH = 6
NEAR_TO_FAR = ("green", "yellow", "red")
TRUST = {
    "measured": "green",
    "file": "green",
    "chapter": "cyan",
    "given": "cyan",
    "derived": "yellow",
    "assumed": "red",
}
LEAST_FIRST = tuple(reversed(TRUST))


@dataclass(frozen=True)
class MachineShow:
    """Show a machine: its nodes, distances and links, and where each figure came from.

    Attributes:
        machine: a machine's name (`machine list` prints them), or `live` for this one, or a path: an hwloc XML file, a
            machine in our own JSON, a folder or tar archive with a copy of /sys, what `numactl -H` or Intel MLC
            printed, or an ACPI HMAT. FILE.json#ENTRY is one of a collection of measurements, MLC_TEXT#MACHINE
            measurements on a machine that says the rest.
        json: print one JSON object instead of tables; saved to a file, it is a machine to edit and load.
    """

    machine: tyro.conf.Positional[str]
    json: bool = False

    def run(self) -> None:
        """Print the machine; raises ValueError when there is no such machine."""
        topology = load_machine(self.machine)
        if self.json:
            print(json.dumps(topology.to_dict(), indent=2))
        else:
            print_topology(topology, Console())


@dataclass(frozen=True)
class MachineList:
    """List the machines that go by a name.

    Attributes:
        json: print one JSON object, from name to all of the machine's figures, instead of a table.
    """

    json: bool = False

    def run(self) -> None:
        """Print one line per machine."""
        topologies = {name: load_machine(name) for name in machine_names()}
        if self.json:
            print(json.dumps({name: topology.to_dict() for name, topology in topologies.items()}, indent=2))
            return
        table = _table()
        table.add_column("machine", style="bold", no_wrap=True)
        for header in ("nodes", "cores", "memory", "latency ns", "GB/s"):
            table.add_column(header, justify="right", no_wrap=True)
        for name, topology in topologies.items():
            latency_ns, gb_per_s = topology.latency_s * 1e9, topology.bandwidth_bytes_per_s / 1e9
            table.add_row(
                name,
                str(topology.num_nodes),
                str(topology.cores.sum()),
                _bytes(topology.memory_bytes.sum()),
                Text(f"{latency_ns.min():.3g} to {latency_ns.max():.3g}", _trust(topology, "latency_s")),
                Text(f"{gb_per_s.max():.3g} to {gb_per_s.min():.3g}", _trust(topology, "bandwidth_bytes_per_s")),
            )
        console = Console()
        console.print(table)
        if console.color_system is not None:
            legend = "Green: measured; yellow: derived in part; red: assumed in part; cyan: the chapter's."
            console.print(legend, style="dim")


def _trust(topology: Topology, figure: str) -> str:
    """The colour of the least that a figure's source rests on."""
    source = topology.sources.get(figure, "assumed:")
    return next((TRUST[word] for word in LEAST_FIRST if f"{word}:" in source), "")


def print_topology(topology: Topology, console: Console) -> None:
    """Print everything known of a machine; matrices of eight nodes fit in 80 columns."""
    title = Text(topology.name, style="bold")
    title.append(
        f"  {counted(topology.num_nodes, 'node')}, {counted(int(topology.cores.sum()), 'core')}, "
        f"{_bytes(topology.memory_bytes.sum())} of memory",
        style="not bold",
    )
    console.print(title)
    console.print("In a matrix a row is the node that asks, a column the node whose memory answers.\n", style="dim")
    _print(console, "Nodes", _nodes_table(topology))
    latency_ns, gb_per_s = topology.latency_s * 1e9, topology.bandwidth_bytes_per_s / 1e9
    _print_matrix(console, "Idle latency, ns", latency_ns)
    _print_matrix(console, "Bandwidth, GB/s", gb_per_s, higher_is_better=True)
    if topology.num_links:
        _print_matrix(console, "Hops", topology.hops)
        _print(console, "Links", _links_table(topology))
    _print(console, "Where the figures come from", _sources_table(topology))


def _print(console: Console, title: str, table: Table) -> None:
    """Print a table under its title."""
    console.print(title, style="bold")
    console.print(table)


def _print_matrix(
    console: Console, title: str, matrix: FloatArray | IntArray, *, higher_is_better: bool = False
) -> None:
    """Print a matrix under its title: a row per initiator, a column per target, in blocks that fit the console.

    Green is the best value of the machine, red the worst.
    """
    farness = (matrix.max() - matrix if higher_is_better else matrix - matrix.min()) / (np.ptp(matrix) or 1.0)
    shade = np.minimum(farness * len(NEAR_TO_FAR), len(NEAR_TO_FAR) - 1).astype(int)
    texts = _same_decimals(matrix)
    num_nodes = len(matrix)
    cell_width = max(len(text) for text in (str(num_nodes - 1), *(text for row in texts for text in row)))
    block = max(1, (console.width - ROW_HEADER_WIDTH) // (cell_width + CELL_PADDING))
    for first in range(0, num_nodes, block):
        table = _table()
        table.add_column("", justify="right", style="bold")
        targets = range(first, min(first + block, num_nodes))
        for target in targets:
            table.add_column(str(target), justify="right", no_wrap=True)
        for node in range(num_nodes):
            cells = (Text(texts[node][target], style=NEAR_TO_FAR[shade[node, target]]) for target in targets)
            table.add_row(str(node), *cells)
        _print(console, title if first == 0 else f"{title}, targets {first} to {targets[-1]}", table)


def _nodes_table(topology: Topology) -> Table:
    """One row per node: what it computes with and what it holds."""
    table = _table()
    for header in ("node", "cores", "Gflop/s per core", "cache", "memory", "bandwidth GB/s"):
        table.add_column(header, justify="right", style="bold" if header == "node" else "")
    gb_per_s = _same_decimals(topology.memory_bandwidth_bytes_per_s[None, :] / 1e9)[0]
    for node in range(topology.num_nodes):
        cores = int(topology.cores[node])
        table.add_row(
            str(node),
            str(cores) if cores else "memory only",
            _number(topology.flops_per_s[node] / 1e9) if cores else "",
            f"{_number(topology.llc_bytes[node] / 1e6)} MB" if cores else "",
            _bytes(topology.memory_bytes[node]),
            gb_per_s[node],
        )
    return table


def _links_table(topology: Topology) -> Table:
    """Links by what they carry; a pair whose directions differ shows both."""
    capacity = {
        pair: _number(topology.link_bandwidth_bytes_per_s[index] / 1e9) for pair, index in topology.link_index().items()
    }
    pairs_by_capacity: dict[str, list[str]] = defaultdict(list)
    for (source, target), forward in capacity.items():
        if source < target:
            backward = capacity[target, source]
            each_way = forward if forward == backward else f"{forward} out, {backward} back"
            pairs_by_capacity[each_way].append(f"{source}-{target}")
    table = _table()
    table.add_column("GB/s each way", justify="right")
    table.add_column("between nodes")
    for each_way, pairs in pairs_by_capacity.items():
        table.add_row(each_way, "  ".join(pairs))
    return table


def _sources_table(topology: Topology) -> Table:
    """Where each figure came from, coloured by how far to trust it."""
    table = _table()
    table.add_column("figure", no_wrap=True)
    table.add_column("source")
    for figure in FIGURES:
        source = Text(topology.sources.get(figure, "not stated"))
        for word, style in TRUST.items():
            source.highlight_regex(rf"(?:^|(?<=; )){word}(?=:)", style=style)
        table.add_row(figure, source)
    return table


def _table() -> Table:
    """A table in the one look of this command."""
    return Table(box=box.SIMPLE_HEAD)


def _same_decimals(matrix: FloatArray | IntArray) -> list[list[str]]:
    """Every value with one decimal, or none where all are whole."""
    decimals = 0 if np.allclose(matrix, np.round(matrix), atol=1e-6) else 1
    return [[f"{value:.{decimals}f}" for value in row] for row in matrix.tolist()]


def _number(value: float) -> str:
    """A figure as short as its precision allows: 90, 77.3, 5.12, 113."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.4g}"


def _bytes(value: float) -> str:
    """Memory in GB, or TB from 1 TB on, powers of ten as in every other figure."""
    return f"{_number(value / 1e12)} TB" if value >= 1e12 else f"{_number(value / 1e9)} GB"

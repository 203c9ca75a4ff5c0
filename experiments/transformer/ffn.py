"""The feed-forward part of a transformer on a machine: what each way to split it sends, holds and takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from experiments.amounts import bytes_text, seconds_text
from experiments.files import require_outputs, write_json
from numa_rl.machines.catalog import load_machine
from numa_rl.topology import Topology
from numa_rl.transformer.ffn import Cost, FeedForward, cost, fewest_ranks, require_size
from numa_rl.transformer.ffn_ways import WAYS, Collective
from numa_rl.transformer.model import FFN_OVER_WIDTH
from numa_rl.wording import counted


@dataclass(frozen=True)
class Ffn:
    """Split the feed-forward part of a transformer over the nodes of a machine, in each of six ways.

    Attributes:
        machine: a machine's name (`machine list` prints them), or the path of its hwloc XML or JSON file.
        tokens: of a sequence.
        width: of the model.
        inner_width: between the two matrices; four times the width when left out.
        batch: sequences at once.
        layers: how many follow one another.
        parts: nodes to split over, the machine's first that have cores; all of these when left out.
        bytes_per_element: of weights and activations, 2 for 16 bits.
        training: compute gradients too; without it, the output alone.
        json: a file for all figures, in SI units.
    """

    machine: str
    tokens: int = 2048
    width: int = 4096
    inner_width: int | None = None
    batch: int = 1
    layers: int = 1
    parts: int | None = None
    bytes_per_element: float = 2.0
    training: bool = False
    json: Path | None = None

    def run(self) -> None:
        """Print a line for each way, and which is fastest of those that fit.

        Raises:
            ValueError: no such machine, a size outside its range or that does not divide evenly, or a file that cannot
                be written.
        """
        topology = load_machine(self.machine)
        require_outputs({"--json": self.json}, {"--machine": Path(self.machine)})
        require_size("tokens", self.tokens)
        require_size("batch", self.batch)
        inner_width = FFN_OVER_WIDTH * self.width if self.inner_width is None else self.inner_width
        shape = FeedForward(self.batch * self.tokens, self.width, inner_width, self.bytes_per_element)
        comparison = compare(shape, topology, _nodes(topology, self.parts), self.layers, self.training)
        if self.json is not None:
            write_json(self.json, comparison.to_dict())
        print_comparison(comparison, Console())


def _nodes(topology: Topology, parts: int | None) -> list[int]:
    """The first nodes that have cores; raises ValueError if there are fewer."""
    computing: list[int] = np.flatnonzero(topology.cores).tolist()
    if parts is not None and not 1 <= parts <= len(computing):
        raise ValueError(f"parts must be in 1..{len(computing)}, the nodes of {topology.name} with cores, got {parts}.")
    return computing[:parts]


@dataclass(frozen=True)
class Comparison:
    """The ways on one machine.

    Attributes:
        shape: sizes of a layer.
        topology: the machine.
        nodes: that it is split over.
        layers: how many follow one another.
        training: whether gradients are computed too.
        costs: of each way.
    """

    shape: FeedForward
    topology: Topology
    nodes: Sequence[int]
    layers: int
    training: bool
    costs: tuple[Cost, ...]

    @property
    def room_bytes(self) -> float:
        """Memory of the node with least."""
        return float(self.topology.memory_bytes[list(self.nodes)].min())

    def fits(self, cost: Cost) -> bool:
        """Whether every node has the memory that a way needs."""
        return cost.memory_bytes <= self.room_bytes

    def collectives(self, cost: Cost) -> tuple[tuple[Collective, str], ...]:
        """What the nodes do together."""
        return cost.way.collectives(training=self.training)

    @property
    def winner(self) -> Cost | None:
        """The fastest way of those that fit; of ways as fast, the one with least memory."""
        fitting = [cost for cost in self.costs if self.fits(cost)]
        return min(fitting, key=lambda cost: (cost.total_s, cost.memory_bytes), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "machine": self.topology.name,
            "nodes": list(self.nodes),
            "layers": self.layers,
            "training": self.training,
            **vars(self.shape),
            "winner": None if self.winner is None else self.winner.way.name,
            "ways": [
                {
                    "name": cost.way.name,
                    "collectives": [f"{kind} {name}" for kind, name in self.collectives(cost)],
                    **{name: value for name, value in vars(cost).items() if name != "way"},
                    "total_s": cost.total_s,
                    "fits": self.fits(cost),
                }
                for cost in self.costs
            ],
        }


def compare(
    shape: FeedForward, topology: Topology, nodes: Sequence[int], layers: int = 1, training: bool = False
) -> Comparison:
    """What each way costs; raises ValueError where a width does not divide evenly."""
    costs = tuple(cost(way, shape, topology, nodes, layers=layers, training=training) for way in WAYS)
    return Comparison(shape, topology, nodes, layers, training, costs)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the ways, and the winner."""
    shape, winner = comparison.shape, comparison.winner
    title = Text(comparison.topology.name, style="bold")
    title.append(
        f"  {counted(comparison.layers, 'feed-forward layer')} over {counted(len(comparison.nodes), 'node')}: "
        f"{counted(shape.tokens, 'token')}, width {shape.width}, inner width {shape.inner_width}, "
        f"{shape.bytes_per_element:g} bytes per element, {_pass(comparison)}",
        style="not bold",
    )
    console.print(title, highlight=False)
    console.print(_ways_table(comparison))
    console.print(_collectives(comparison))
    kept = (
        "weights and their gradients, activations of all layers"
        if comparison.training
        else ("weights of all layers, activations of one")
    )
    console.print(
        f"Sent: by all nodes; on node: {kept}; compute: roofline of the slowest node; send: the ring in its best "
        "order, not overlapped.",
        style="dim",
        highlight=False,
    )
    if winner is None:
        console.print(_nothing_fits(comparison), style="bold red", highlight=False)
    else:
        console.print(Text("Fastest that fits: ", "bold").append(winner.way.name, "bold green"))


def _pass(comparison: Comparison) -> str:
    return "forward and backward" if comparison.training else "forward"


def _nothing_fits(comparison: Comparison) -> str:
    """What is missing, and how many nodes would do."""
    needed, room = bytes_text(min(cost.memory_bytes for cost in comparison.costs)), bytes_text(comparison.room_bytes)
    options = {"layers": comparison.layers, "training": comparison.training}
    enough = fewest_ranks(comparison.shape, comparison.room_bytes, WAYS, **options)
    remedy = "no number of such nodes would do" if enough is None else f"{enough} such nodes would do"
    return f"None fits: a node has {room} and needs {needed} at least; {remedy}."


def _ways_table(comparison: Comparison) -> Table:
    costs = comparison.costs
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("W_1, W_2", no_wrap=True)
    for header in ("sent", "on node", "compute", "send", "total"):
        table.add_column(header, justify="right", no_wrap=True)
    for each in costs:
        held = Text(bytes_text(each.memory_bytes), style="" if comparison.fits(each) else "bold red")
        seconds = map(seconds_text, (each.compute_s, each.communication_s, each.total_s))
        style = "green" if each is comparison.winner else ""
        table.add_row(each.way.name, bytes_text(each.sent_bytes), held, *seconds, style=style)
    return table


def _collectives(comparison: Comparison) -> Padding:
    """What the nodes of each way do together."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for each in comparison.costs:
        together = ", ".join(f"{kind} {name}" for kind, name in comparison.collectives(each))
        table.add_row(each.way.name, Text(together or "nothing", style="dim"))
    return Padding(table, (0, 0, 1, 1))

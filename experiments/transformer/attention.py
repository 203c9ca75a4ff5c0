"""Which way to split attention over the nodes of a machine: every split's traffic, memory and time."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.files import require_outputs, write_json
from numa_rl.ceilings import node_ceilings
from numa_rl.machines.catalog import load_machine
from numa_rl.topology import IntArray, Topology
from numa_rl.transformer.attention import AttentionShape, Weights
from numa_rl.transformer.attention_choice import SplitChoice, SplitCost, best_split, hiding_tokens
from numa_rl.wording import counted

MAP_TOKENS = tuple(2**power for power in range(4, 19))  # 16 to 262,144
UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"))


@dataclass(frozen=True)
class Attention:
    """Compare the ways to split a layer's attention over a machine's nodes: by sequence, by heads, and by both.

    Attributes:
        machine: a machine's name (`machine list` prints them), or the path of a file that describes one.
        tokens: of each sequence.
        width: of the model.
        heads: of queries.
        kv_heads: of keys and values; left out, as many.
        batch: number of sequences.
        bytes_per_element: of weights and activations.
        causal: whether a token attends to itself and those before it only.
        nodes: how many of its nodes take part; left out, all that have cores.
        split_weights: let each node have the weights of its heads only; it then gathers its row's input, and partial
            outputs are summed.
        in_turn: read and compute in turn, without a second buffer in which the next keys and values arrive.
        map: print which split wins for other numbers of tokens and nodes too.
        json: a file for all figures, in SI units.
    """

    machine: str
    tokens: int = 8192
    width: int = 4096
    heads: int = 32
    kv_heads: int | None = None
    batch: int = 1
    bytes_per_element: int = 2
    causal: bool = False
    nodes: int | None = None
    split_weights: bool = False
    in_turn: bool = False
    map: bool = False
    json: Path | None = None

    def run(self) -> None:
        """Compute and print.

        Raises:
            ValueError: no such machine, a shape that breaks a rule, no split that fits, or a file that cannot be
                written.
        """
        topology = load_machine(self.machine)
        require_outputs({"--json": self.json}, {"--machine": Path(self.machine)})
        shape = AttentionShape(
            self.tokens, self.width, self.heads, self.kv_heads, self.batch, self.bytes_per_element, self.causal
        )
        placements: dict[tuple[int, int], IntArray] = {}
        weights = Weights.BY_HEAD if self.split_weights else Weights.WHOLE
        choice = best_split(
            shape, topology, self.nodes, weights=weights, overlaps=not self.in_turn, placements=placements
        )
        winners = _winners(shape, topology, choice, placements) if self.map else None
        if self.json is not None:
            write_json(self.json, _content(topology, choice, winners))
        console = Console(highlight=False)
        print_choice(choice, topology, console)
        if winners is not None:
            print_winners(winners, shape, console)


Winners = dict[int, dict[int, SplitCost | None]]


def _winners(
    shape: AttentionShape, topology: Topology, choice: SplitChoice, placements: dict[tuple[int, int], IntArray]
) -> Winners:
    """The fastest split by tokens and nodes, None where none fits: the nodes chosen, and powers of two below."""
    most = choice.best.split.num_nodes
    counts = sorted({most, *(2**power for power in range(1, most.bit_length()))} - {1})

    def winner(tokens: int, nodes: int) -> SplitCost | None:
        if tokens < nodes:
            return None
        try:
            other = replace(shape, tokens=tokens)
            weights, overlaps = choice.best.split.weights, choice.best.overlaps
            return best_split(other, topology, nodes, weights=weights, overlaps=overlaps, placements=placements).best
        except ValueError:  # too large for the nodes' memory
            return None

    return {tokens: {nodes: winner(tokens, nodes) for nodes in counts} for tokens in MAP_TOKENS}


def _content(topology: Topology, choice: SplitChoice, winners: Winners | None) -> dict[str, Any]:
    """Everything as JSON values."""
    shape = choice.shape
    content: dict[str, Any] = {
        "machine": topology.name,
        "shape": asdict(shape),
        "score_bytes": shape.score_bytes,
        "best": choice.best.to_dict(),
        "splits": [cost.to_dict() for cost in choice.costs],
    }
    if winners is not None:
        content["map"] = [
            {"tokens": tokens, "nodes": nodes, "best": None if cost is None else cost.to_dict()}
            for tokens, row in winners.items()
            for nodes, cost in row.items()
        ]
    return content


def grid_name(cost: SplitCost, shape: AttentionShape) -> str:
    """Parts of heads x parts of the sequence, and which tokens a part is where that matters."""
    split = cost.split
    order = f" {split.order.value}" if shape.causal and split.sequence_parts > 1 else ""
    return f"{split.head_parts} x {split.sequence_parts}{order}"


def print_choice(choice: SplitChoice, topology: Topology, console: Console) -> None:
    """Print all splits, the fastest first, and why it is."""
    shape, best = choice.shape, choice.best
    title = Text(topology.name, style="bold")
    title.append(
        f"  {counted(best.split.num_nodes, 'node')}: {counted(shape.batch, 'sequence')} of "
        f"{counted(shape.tokens, 'token')}, width {shape.width}, {counted(shape.heads, 'head')}, "
        f"{shape.kv_heads} of keys and values, {counted(shape.bytes_per_element, 'byte')} per element, "
        f"{'causal' if shape.causal else 'all attend to all'}, weights {best.split.weights.value}",
        style="not bold",
    )
    console.print(title)
    console.print(_table(choice))
    for line in _reasons(choice):
        console.print(line)
    if best.overlaps and choice.of_kind("sequence") is not None:
        console.print(_hiding(choice, topology))
    console.print(
        "Input and output lie on the nodes by tokens. Moved: between nodes in all; peak: the most activations that a "
        "node holds, and with the weights that it has; most / mean: attention's arithmetic of nodes; reads: between "
        "nodes, if nothing else were done; waits: for those; +: how much slower than the fastest.",
        style="dim",
    )


def _table(choice: SplitChoice) -> Table:
    """One row for each split."""
    byte, bytes_unit = _scale(max(cost.total_bytes for cost in choice.costs) or 1)
    held, held_unit = _scale(max(cost.peak_bytes_with_weights for cost in choice.costs))
    second, second_unit = _scale(choice.best.total_s)
    read, read_unit = _scale(max(cost.transfer_s for cost in choice.costs) or choice.best.total_s)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("split\nheads x seq.", no_wrap=True)
    headers = (
        f"moved\n{bytes_unit}B",
        f"peak\n{held_unit}B",
        "with\nweights",
        "most\n/ mean",
        f"compute\n{second_unit}s",
        f"reads\n{read_unit}s",
        f"waits\n{read_unit}s",
        f"total\n{second_unit}s",
    )
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for cost in choice.costs:
        table.add_row(
            grid_name(cost, choice.shape),
            f"{cost.total_bytes / byte:.4g}",
            f"{cost.peak_bytes / held:.3g}",
            f"{cost.peak_bytes_with_weights / held:.3g}",
            f"{cost.imbalance:.2f}",
            f"{cost.compute_s / second:.4g}",
            f"{cost.transfer_s / read:.3g}",
            f"{cost.exposed_s / read:.3g}",
            f"{cost.total_s / second:.4g}" if cost.fits else "no room",
            style="red" if not cost.fits else "bold" if cost is choice.best else "",
        )
    return table


def _reasons(choice: SplitChoice) -> list[Text]:
    """Why the winner wins, against the best of each other kind."""
    best, shape = choice.best, choice.shape
    lines = [Text(f"Fastest: {best.split.kind}, {grid_name(best, shape)}: ", "bold").append(_waits(best), "not bold")]
    for kind in ("sequence", "hybrid", "head"):
        other = choice.of_kind(kind)
        if other is not None and kind != best.split.kind:
            slower = other.total_s / best.total_s - 1.0
            lines.append(Text(f"{kind}, {grid_name(other, shape)}: +{slower:.2%}, {_waits(other)}"))
    worst = max(choice.costs, key=lambda cost: cost.imbalance)
    if shape.causal and worst.split.sequence_parts > 1:
        lines.append(
            Text(
                f"{grid_name(worst, shape)}: its last part attends to all tokens, so the busiest node has "
                f"{worst.imbalance:.3g} times the mean work; zigzag and striped parts even that out."
            )
        )
    return lines


def _waits(cost: SplitCost) -> str:
    """How much of its reads hides behind arithmetic."""
    if cost.transfer_s == 0.0:
        return "reads nothing from other nodes."
    hidden = 1.0 - cost.exposed_s / cost.transfer_s
    second, unit = _scale(cost.transfer_s)
    return f"reads {cost.transfer_s / second:.3g} {unit}s, {hidden:.0%} of it behind arithmetic."


def _hiding(choice: SplitChoice, topology: Topology) -> Text:
    """From how many tokens a part on the ring hides, at what the slowest node does and reads."""
    nodes = choice.best.nodes
    flops_per_s = min(node_ceilings(topology, int(node)).peak_flops_per_s for node in nodes)
    others = ~np.eye(len(nodes), dtype=np.bool_)
    bytes_per_s = min(
        float(topology.bandwidth_bytes_per_s[np.ix_(nodes, nodes)][others].min()),
        float(topology.link_bandwidth_bytes_per_s.min()),
    )
    tokens = ceil(hiding_tokens(choice.shape, flops_per_s, bytes_per_s))
    return Text(
        f"A ring hides behind arithmetic from about {counted(tokens, 'token')} a part on, at "
        f"{flops_per_s / 1e9:.4g} Gflop/s and {bytes_per_s / 1e9:.4g} GB/s between neighbours."
    )


def print_winners(winners: Winners, shape: AttentionShape, console: Console) -> None:
    """Print who wins by tokens and nodes."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("tokens", justify="right", no_wrap=True)
    for nodes in next(iter(winners.values())):
        table.add_column(counted(nodes, "node"), no_wrap=True)
    for tokens, row in winners.items():
        cells = (Text("-" if cost is None else grid_name(cost, shape), _style(cost)) for cost in row.values())
        table.add_row(f"{tokens:,}", *cells)
    console.print(Text("Which split wins", style="bold"))
    console.print(table)


def _style(cost: SplitCost | None) -> str:
    """A colour for each kind."""
    return "dim" if cost is None else {"sequence": "green", "hybrid": "yellow", "head": "cyan"}.get(cost.split.kind, "")


def _scale(value: float) -> tuple[float, str]:
    """The unit in which a value reads well: its size and its prefix."""
    return next(((size, prefix) for size, prefix in UNITS if value >= size), UNITS[-1])

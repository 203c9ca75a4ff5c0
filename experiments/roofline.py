"""The roofline of a machine: its ceilings, and where measured tasks stand under them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.files import require_outputs, write_json
from experiments.points import Point, read_points
from numa_rl.ceilings import Ceilings, machine_ceilings, node_ceilings
from numa_rl.machines.catalog import load_machine
from numa_rl.roofline import Tuning, attainable, require_share, ridge_point, tuning

REMOTE_EXTREMES = ("remote, best node", "remote, worst node")
MIXED_MEMORY, LOCAL_MEMORY = "memory", "local memory"  # what bounds a point whose local share is known, or not
ROUNDING = 1e-9  # a point this share above its ceiling stands on it


@dataclass(frozen=True)
class Roofline:
    """Draw a machine's roofline: local, remote and mixed ceilings, and where measured tasks stand under them.

    Attributes:
        machine: a machine's name (`machine list` prints them), or the path of its hwloc XML or JSON file.
        points: a CSV file of measured tasks with the columns name, intensity_flop_per_byte, performance_flop_per_s and,
            if known, local_share (0 to 1, of the bytes).
        plot: a PNG file for the figure.
        json: a file for all ceilings and points.
        node: one node's roofline; left out, that of all nodes together.
        local_shares: the mixed ceilings, each a share of local bytes from 0 to 1.
    """

    machine: str
    points: Path | None = None
    plot: Path | None = None
    json: Path | None = None
    node: int | None = None
    local_shares: tuple[float, ...] = (0.75,)

    def run(self) -> None:
        """Print the tables, and draw the figure.

        Raises:
            ValueError: no such machine or node, points that break a rule, or a file that cannot be written.
        """
        topology = load_machine(self.machine)
        ceilings = machine_ceilings(topology) if self.node is None else node_ceilings(topology, self.node)
        title = topology.name if self.node is None else f"{topology.name}, node {self.node}"
        points = [] if self.points is None else read_points(self.points)
        require_outputs(
            {"--json": self.json, "--plot": self.plot}, {"--points": self.points, "--machine": Path(self.machine)}
        )
        if self.plot is not None and self.plot.suffix.lower() != ".png":
            raise ValueError(f"--plot must be a .png file, got {str(self.plot)!r}.")
        chart = Chart(title, ceilings, _memory_ceilings(ceilings, self.local_shares), _stand(points, ceilings))
        if self.json is not None:
            write_json(self.json, chart.to_dict())
        if self.plot is not None:
            from experiments.roofline_plot import plot_roofline  # matplotlib takes a second

            plot_roofline(chart, self.plot)
        print_chart(chart, Console())


@dataclass(frozen=True)
class Ceiling:
    """One of the slopes.

    Attributes:
        name: where the bytes lie.
        local_share: share of them that is local.
        bytes_per_s: bandwidth, of mixes the chapter's BW_eff.
        byte_weighted_bytes_per_s: bandwidth where every stream takes local and remote bytes in turn.
        ridge_flop_per_byte: intensity at which it meets the peak.
    """

    name: str
    local_share: float
    bytes_per_s: float
    byte_weighted_bytes_per_s: float
    ridge_flop_per_byte: float


@dataclass(frozen=True)
class Standing:
    """Where a point stands.

    Attributes:
        point: what was measured.
        attainable_flops_per_s: what the roof above it allows.
        bound: what that roof is: the peak, memory at the point's own local share, or local memory if that is unknown.
        tuning: what to do about it, None where its local share is unknown.
    """

    point: Point
    attainable_flops_per_s: float
    bound: str
    tuning: Tuning | None

    @property
    def reached(self) -> float:
        """Share of what is attainable."""
        return self.point.flops_per_s / self.attainable_flops_per_s

    @property
    def is_above(self) -> bool:
        """Whether it stands above its roof: a wrong measurement or figure of the machine, or streams that overlap.

        BW_eff lets a node draw from one side at a time. Where local and remote bytes are in flight together, and pass
        different controllers and links, their bandwidths add.
        """
        return self.reached > 1.0 + ROUNDING


@dataclass(frozen=True)
class Chart:
    """A roofline with its points.

    Attributes:
        title: whose it is.
        ceilings: what bounds it.
        slopes: the memory ceilings, the highest first.
        standings: the points, in the file's order.
    """

    title: str
    ceilings: Ceilings
    slopes: tuple[Ceiling, ...]
    standings: tuple[Standing, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "machine": self.title,
            "peak_flops_per_s": self.ceilings.peak_flops_per_s,
            "ceilings": [vars(slope) for slope in self.slopes],
            "points": [
                {
                    "name": standing.point.name,
                    "intensity_flop_per_byte": standing.point.intensity,
                    "performance_flop_per_s": standing.point.flops_per_s,
                    "local_share": standing.point.local_share,
                    "attainable_flop_per_s": standing.attainable_flops_per_s,
                    "bound": standing.bound,
                    "reached": standing.reached,
                    "above_its_ceiling": standing.is_above,
                    "strategy": None if standing.tuning is None else standing.tuning.strategy,
                }
                for standing in self.standings
            ],
        }


def _memory_ceilings(ceilings: Ceilings, local_shares: tuple[float, ...]) -> tuple[Ceiling, ...]:
    """Local, remote and mixed ceilings, the highest first; a machine of one node has the local one only."""
    local, remote = ceilings.local_bytes_per_s, ceilings.mean_remote_bytes_per_s
    found = [("local", 1.0, local, local)]
    for share in local_shares:
        require_share("--local-shares", share)
    if remote is not None:
        extremes = (ceilings.best_remote_bytes_per_s, ceilings.worst_remote_bytes_per_s)
        found += [
            (_percent_local(share), share, ceilings.mixed_bytes_per_s(share), ceilings.byte_weighted_bytes_per_s(share))
            for share in dict.fromkeys(local_shares)
        ]
        found.append(("remote, mean", 0.0, remote, remote))
        if extremes[0] != extremes[1]:
            found += [(name, 0.0, end, end) for name, end in zip(REMOTE_EXTREMES, extremes, strict=True) if end]
    found.sort(key=lambda ceiling: -ceiling[2])
    return tuple(Ceiling(*ceiling, ridge_point(ceilings.peak_flops_per_s, ceiling[2])) for ceiling in found)


def _stand(points: list[Point], ceilings: Ceilings) -> tuple[Standing, ...]:
    """Each point under the roof of its own local share, or under the local one where that is unknown."""
    standings = []
    for point in points:
        bandwidth, memory, cell = ceilings.local_bytes_per_s, LOCAL_MEMORY, None
        if point.local_share is not None:
            try:
                bandwidth = ceilings.mixed_bytes_per_s(point.local_share)
            except ValueError as error:
                raise ValueError(f"point {point.name!r}: {error}") from error
            memory = MIXED_MEMORY
            cell = tuning(point.intensity, point.local_share)
        roof = float(attainable(point.intensity, ceilings.peak_flops_per_s, bandwidth))
        bound = "peak" if roof == ceilings.peak_flops_per_s else memory
        standings.append(Standing(point, roof, bound, cell))
    return tuple(standings)


def _percent_local(share: float) -> str:
    return f"{100.0 * share:.3g}% local"


def print_chart(chart: Chart, console: Console) -> None:
    """Print the ceilings, the points under them, and what to do about each."""
    title = Text(chart.title, style="bold")
    title.append(f"  peak {chart.ceilings.peak_flops_per_s / 1e9:.4g} Gflop/s", style="not bold")
    console.print(title)
    console.print(_ceilings_table(chart))
    console.print(
        "Each node drawing as it does alone; mixed: BW_eff = a local + (1 - a) remote mean; in turn: where each "
        "stream takes local and remote bytes one after the other, so that their times add. Points stand under BW_eff.",
        style="dim",
    )
    if not chart.standings:
        return
    console.print(_points_table(chart))
    for standing in chart.standings:
        if standing.is_above:
            text = Text(f"{standing.point.name} is above its ceiling ({standing.bound}): ", style="bold red")
            text.append("check its intensity, performance and local share, and the machine's figures.")
            if standing.bound == MIXED_MEMORY and 0.0 < (standing.point.local_share or 0.0) < 1.0:
                text.append(" Local and remote bytes drawn at the same time can pass BW_eff too.")
            console.print(text)
    for cell in dict.fromkeys(standing.tuning for standing in chart.standings):
        if cell is None:
            console.print("Points without local_share have no strategy: it depends on locality.", style="dim")
            continue
        console.print(Text(cell.strategy, style="bold").append(f": {cell.advice}", style="not bold"))
        for command in cell.commands:
            console.print(Text(f"  {command}", style="cyan"), soft_wrap=True)


def _ceilings_table(chart: Chart) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("ceiling", no_wrap=True)
    for header in ("GB/s", "in turn GB/s", "ridge flop/byte"):
        table.add_column(header, justify="right", no_wrap=True)
    for slope in chart.slopes:
        gb_per_s = (slope.bytes_per_s / 1e9, slope.byte_weighted_bytes_per_s / 1e9)
        table.add_row(slope.name, *(f"{value:.4g}" for value in (*gb_per_s, slope.ridge_flop_per_byte)))
    return table


def _points_table(chart: Chart) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("point")
    for header in ("flop/byte", "local", "Gflop/s", "reached"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("bound by")
    table.add_column("strategy", no_wrap=True)
    for standing in chart.standings:
        point = standing.point
        table.add_row(
            Text(point.name),
            f"{point.intensity:.3g}",
            "-" if point.local_share is None else f"{100.0 * point.local_share:.3g}%",
            f"{point.flops_per_s / 1e9:.4g}",
            f"{standing.reached:.1%}",
            standing.bound,
            "-" if standing.tuning is None else standing.tuning.strategy,
            style="bold red" if standing.is_above else "",
        )
    return table

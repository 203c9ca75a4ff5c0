"""The comparison with measured machines as tables: fits 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.studies.measured_curves import TARGET_RMSE, Curve
from experiments.studies.measured_laws import Outcome
from numa_rl.topology import LoadedLatency
from numa_rl.wording import counted

if TYPE_CHECKING:
    from experiments.studies.measured import Comparison


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print all tables, and what they say."""
    _print_curves(comparison, console)
    _print_bandwidth(comparison, console)
    _print_latency(comparison, console)


def _print_curves(comparison: Comparison, console: Console) -> None:
    table = _table("Latency under load", "machine", ("a", "c", "rmse", "fit", "default", "saturated"))
    for curve in sorted(comparison.curves, key=lambda curve: curve.machine.shipped is None):
        table.add_row(comparison.title(curve.machine.name), *_curve_cells(curve))
    console.print(table)
    presets = sum(curve.machine.shipped is not None for curve in comparison.curves)
    verdict = "met" if comparison.presets_met else "not met"
    fitted = sum(curve.rmse(curve.fit) <= TARGET_RMSE for curve in comparison.curves)
    console.print(
        f"rmse at most {TARGET_RMSE} on the {counted(presets, 'preset')} with a curve of their own: {verdict}"
    )
    console.print(f"... on all {len(comparison.curves)} curves, each as a reader fits it: on {fitted}")
    _explain(
        "r(u) = 1 + a u / (1 - c u), at most `saturated`; rmse: of r below saturation, with the preset's figures (*) "
        "or the fit; fit: with those that a reader of the curve gets; default: with those of a machine without one. "
        "Saturated points do not count: there the latency is that of full queues, and what is delivered no longer says "
        "how much was offered. saturated: their mean r, then the limit we put on r.",
        console,
    )


def _curve_cells(curve: Curve) -> list[str]:
    star = "*" if curve.machine.shipped is not None else ""
    used = curve.used
    return [
        f"{used.a:.2f}{star}",
        f"{used.c:.2f}{star}",
        _good(curve.rmse(used)),
        f"{curve.rmse(curve.fit):.3f}",
        f"{curve.rmse(LoadedLatency()):.3f}",
        f"{curve.saturated:.2f} / {used.saturated:.2f}",
    ]


def _good(rmse: float) -> str:
    return f"[green]{rmse:.3f}[/green]" if rmse <= TARGET_RMSE else f"[yellow]{rmse:.3f}[/yellow]"


def _print_bandwidth(comparison: Comparison, console: Console) -> None:
    _print_laws("Bandwidth between sockets, predicted from local figures", comparison.bandwidth, console)
    used, earlier = _used(comparison.bandwidth), comparison.bandwidth[0]
    columns = ("pairs", "links", "flight", "median", "worst", "before")
    table = _table("The law in use, on machines left out of its fit", "machine", columns)
    for missed, before in zip(used.missed, earlier.missed, strict=True):
        share, times = missed.constants
        table.add_row(
            comparison.title(missed.machine),
            str(len(missed.measured)),
            f"{share:.2f}",
            f"{times:.2f}",
            f"{missed.median:.0%}",
            f"{missed.worst:+.0%}",
            f"{before.median:.0%}",
        )
    console.print(table)
    near = comparison.near
    console.print(
        f"Within sockets: {near.median:.1%} on the median machine of {len(near.missed)}, {near.worst:.1%} worst"
    )
    _explain(
        "links: what a socket's links carry, of what its memories deliver together; flight: how much more a node keeps "
        "in flight than its own memory needs; both fitted to the other machines. median, worst: relative error over "
        "the pairs; before: median of the inverse of the distance.",
        console,
    )


def _print_latency(comparison: Comparison, console: Console) -> None:
    _print_laws("Latency from SLIT", comparison.latency, console)
    relative, read, power = comparison.latency[:3]
    columns = ("pairs", "median", "worst", "tau", "100 ns", "power")
    table = _table("SLIT against measured latency", "machine", columns)
    for missed, as_read, better in zip(relative.missed, read.missed, power.missed, strict=True):
        tau = missed.agreement
        table.add_row(
            comparison.title(missed.machine),
            str(len(missed.measured)),
            f"{missed.median:.0%}",
            f"{missed.worst:+.0%}",
            f"{tau:.2f}" if isfinite(tau) else "one step",
            f"{as_read.median:.0%}",
            f"{better.median:.0%}",
        )
    console.print(table)
    _explain(
        "median, worst: relative error of the measured local latency x distance / 10; tau: Kendall's, of the order of "
        "the pairs; 100 ns: median error of what readers make of SLIT alone; power: of local x (distance / 10)^p, p "
        "fitted to the other machines.",
        console,
    )


def _print_laws(title: str, outcomes: Sequence[Outcome], console: Console) -> None:
    table = _table(title, "law", ("fitted", "median", "mean", "worst"))
    for outcome in outcomes:
        table.add_row(
            f"{outcome.law.name} *" if outcome.law.used else outcome.law.name,
            ", ".join(f"{constant:.3g}" for constant in outcome.fitted if isfinite(constant)) or "-",
            f"{outcome.median:.0%}",
            f"{outcome.mean:.0%}",
            f"{outcome.worst:.0%}",
            style="bold" if outcome.law.used else "",
        )
    console.print(table)
    _explain(
        f"over {len(outcomes[0].missed)} machines, of each its median relative error with constants fitted to the "
        "others; fitted: to all; *: what the readers use.",
        console,
    )


def _used(outcomes: Sequence[Outcome]) -> Outcome:
    (used,) = (outcome for outcome in outcomes if outcome.law.used)
    return used


def _table(title: str, first: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _explain(text: str, console: Console) -> None:
    """Print what the columns mean, and a blank line below."""
    console.print(text, style="dim", highlight=False, markup=False)
    console.print()

"""The case study as tables: fits 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.studies.printed import IMPLIED_GAINS, MOST_GAIN
from experiments.studies.rows import Kind, Row
from experiments.studies.scaling import Point, Sensitivity
from experiments.studies.timing import Figures

COLUMNS = ("ms", "gain", "E", "remote", "link", "mem", "lat.", "core time")
STYLES = {Kind.STEP: "bold", Kind.RULE: "", Kind.PLANNER: "", Kind.LEARNED: "bold green"}


def print_rows(rows: Sequence[Row], console: Console) -> None:
    """Print every row, and under it what the chapter prints of it."""
    table = _table("configuration", COLUMNS)
    last = Kind.STEP
    for row in rows:
        if row.kind is not last:
            table.add_section()
        last = row.kind
        table.add_row(row.name, *_cells(row), style=STYLES[row.kind])
        if row.printed is not None:
            table.add_row("  the chapter", *_printed_cells(row), style="dim")
    console.print(table)
    console.print(
        "ms: of a training step; gain: throughput over the first row's; E: parallel efficiency against one socket, "
        "where everything is local; remote: share of bytes; link: use of the busiest one; mem: use of all memory "
        "controllers; lat.: mean idle latency of the bytes, then against the first row's; core time: compute / local / "
        "remote / synchronisation, in %.",
        style="dim",
        highlight=False,
        markup=False,
    )


def _cells(row: Row) -> list[str]:
    figures = row.figures
    latency = f"{figures.latency_s * 1e9:.0f} ns" if row.latency_change == 0.0 else f"{row.latency_change:+.0%}"
    dropped = " OOM" if figures.dropped else ""
    return [
        f"{figures.step_s * 1e3:.0f}{dropped}",
        f"{row.gain:.2f}",
        f"{row.efficiency:.1%}",
        f"{figures.remote_bytes:.1%}",
        f"{figures.busiest_link:.0%}",
        f"{figures.memory:.0%}",
        latency,
        _time(figures.shares),
    ]


def _printed_cells(row: Row) -> list[str]:
    printed = row.printed
    assert printed is not None

    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        "",
        cell(printed.gain, ".2f"),
        cell(printed.efficiency, ".1%"),
        cell(printed.remote_bytes, ".0%"),
        cell(printed.link, ".0%"),
        cell(printed.memory, ".0%"),
        cell(printed.latency_change, "+.0%"),
        "" if printed.time is None else _time(printed.time),
    ]


def _time(shares: Sequence[float]) -> str:
    """45/20/25/10."""
    return "/".join(f"{100.0 * share:.0f}" for share in shares)


def print_contradictions(console: Console) -> None:
    """Say where the chapter's figures do not fit each other."""
    gains = ", ".join(f"its {name} {gain:.2f}x" for name, gain in IMPLIED_GAINS.items())
    console.print(
        f"The chapter's figures contradict each other: of the throughput gain, {gains}. From its efficiency of 52.5% a "
        f"perfect speedup would be a gain of {MOST_GAIN:.2f}x.",
        highlight=False,
    )


def print_splits(splits: Mapping[str, Figures], console: Console) -> None:
    """Print how long a step takes in each split."""
    table = _table("split, hand-tuned", ("slower", "remote", "link", "core time"))
    least_s = min(figures.step_s for figures in splits.values())
    for name, figures in splits.items():
        cells = (f"{figures.step_s / least_s:.2f}x", f"{figures.remote_bytes:.1%}", f"{figures.busiest_link:.0%}")
        table.add_row(name, *cells, _time(figures.shares), style="bold" if name == next(iter(splits)) else "")
    console.print(table)
    console.print(
        "Every way to share out the same work, MP x DP x PP, on tuning episodes, whose steps have other numbers of "
        "tokens than those of the first table; slower: than the fastest.",
        style="dim",
        highlight=False,
    )


def print_scaling(points: Sequence[Point], console: Console) -> None:
    """Print both scalings."""
    table = _table("scaling", ("sockets", "initial ms", "E", "best ms", "E", "best split"))
    for point in points:
        table.add_row(
            point.growth.value,
            str(point.sockets),
            f"{point.initial_step_s * 1e3:.0f}",
            f"{point.initial_efficiency:.1%}",
            f"{point.best_step_s * 1e3:.0f}",
            f"{point.best_efficiency:.1%}",
            point.best_split,
        )
    console.print(table)
    console.print(
        "strong: the same work, E = T_1 / (N T_N); weak: as many micro-batches for each socket, E = T_1 / T_N: above "
        "100% where sockets share the update of the weights, which more micro-batches do not make more work.",
        style="dim",
        highlight=False,
    )


def print_sensitivity(found: Sequence[Sensitivity], console: Console) -> None:
    """Print what other inputs would have given."""
    table = _table("input", ("value", "initial E", "gain", "hybrid E", "remote time"))
    for each in found:
        cells = (f"{each.initial_efficiency:.1%}", f"{each.gain:.2f}", f"{each.efficiency:.1%}", f"{each.remote:.1%}")
        table.add_row(each.what, each.value, *cells, style="bold" if each.is_case else "")
    console.print(table)


def _table(first: str, columns: Sequence[str]) -> Table:
    """A table in the look of this command: a column of names, then figures."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table

"""What `numa-rl partition` prints: a table for each graph, and one of the methods over all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.partition import Study
from numa_rl.wording import counted


def print_study(study: Study, console: Console) -> None:
    """Print what each method reached, and who broke the balance."""
    graph = study.graph
    title = Text(study.name, style="bold")
    title.append(
        f"  V {graph.num_vertices}, {counted(graph.num_edges, 'edge')}, "
        f"{counted(len(study.target.shares), 'part')}, balance at most {study.allowed_balance:.4g}",
        style="not bold",
    )
    console.print(title)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("method", no_wrap=True)
    for header in ("cut", "/ METIS", "balance", "objective", "mapped cost", "s"):
        table.add_column(header, justify="right", no_wrap=True)
    for standing in study.standings:
        ratio = study.ratio(standing)
        table.add_row(
            standing.method,
            f"{standing.cut:.6g}",
            "-" if ratio is None else f"{ratio:.3f}",
            Text(f"{standing.balance:.3f}", style="" if study.keeps_balance(standing) else "bold red"),
            f"{standing.objective:.6g}",
            f"{standing.mapped_cost:.6g}",
            f"{standing.seconds:.2f}",
        )
    console.print(table)
    for standing in study.standings:
        if not study.keeps_balance(standing):
            console.print(f"{standing.method} is above the balance allowed.", style="red", highlight=False)
        elif study.was_broken(standing):
            console.print(
                f"{standing.method} returned a balance of {standing.returned_balance:.3f}: vertices were moved.",
                style="dim",
                highlight=False,
            )
    for method, reason in study.failures.items():
        console.print(Text(f"{method}: {reason}", style="dim"))


def summary_table(studies: Sequence[Study]) -> Table:
    """Each method over all graphs: its cuts over METIS's, who needed repair, and time."""
    table = Table(box=box.SIMPLE_HEAD, title="All graphs", title_justify="left", title_style="bold")
    table.add_column("method", no_wrap=True)
    for header in ("graphs", "cut / METIS, mean", "worst", "balance broken", "s"):
        table.add_column(header, justify="right", no_wrap=True)
    methods = dict.fromkeys(standing.method for study in studies for standing in study.standings)
    for method in methods:
        pairs = [(study, one) for study in studies for one in study.standings if one.method == method]
        ratios = [ratio for study, one in pairs if (ratio := study.ratio(one))]
        broken = sum(study.was_broken(one) for study, one in pairs)
        table.add_row(
            method,
            str(len(pairs)),
            f"{np.exp(np.mean(np.log(ratios))):.3f}" if ratios else "-",
            f"{max(ratios):.3f}" if ratios else "-",
            str(broken),
            f"{sum(one.seconds for _, one in pairs):.2f}",
        )
    return table

"""Printing a diagnosis: the path with its numbers, the strategy, the gotchas, and what to run next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from numa_rl.diagnosis.gotchas import Gotcha, Severity
from numa_rl.diagnosis.tree import Diagnosis, Step

if TYPE_CHECKING:
    from experiments.diagnose import Report

ANSWERS = {True: ("yes", "bold red"), False: ("no", "bold green"), None: ("not known", "bold yellow")}
SEVERITIES = {Severity.SUSPECTED: "yellow", Severity.FOUND: "red", Severity.SEVERE: "bold red"}
SHARES = ("_share", "_utilisation")  # endings of what is shown in percent
UNITS = {"intensity": " flop/byte"}


def print_report(report: Report, console: Console) -> None:
    """Print everything."""
    title = Text("Diagnosis of ").append(report.source, style="bold")
    if report.evidence.machine is not None:
        title.append(f" on {report.evidence.machine}")
    console.print(title)
    console.print(_path(report.diagnosis))
    _print_strategy(report, console)
    _print_findings(report, console)
    if report.commands:
        console.print("Run next", style="bold")
        for command in report.commands:
            console.print(Text(f"  {command}"), soft_wrap=True)
    _print_figures(report, console)
    for note in report.evidence.notes:
        console.print(Text(f"Note: {note}", style="dim"))


def _path(diagnosis: Diagnosis) -> Tree:
    """The questions, each below the answer that led to it."""
    root = Tree(Text("Path", style="bold"))
    branch = root
    for step in diagnosis.path:
        branch = branch.add(_step(step))
    if diagnosis.leaf is None:
        branch.add(Text("undecided: measure what is missing", style="bold yellow"))
    else:
        branch.add(Text(diagnosis.leaf.value, style="bold").append(f": {diagnosis.advice}", style="not bold"))
    return root


def _step(step: Step) -> Text:
    """A question, the number that decided it, and the answer."""
    line = Text(f"{step.question} ")
    if step.figure is None or step.value is None or step.threshold is None:
        line.append("not measured", style="yellow")
    else:
        label = "" if step.label is None else f" of {step.label}"
        value, threshold = (shown(step.figure, number) for number in (step.value, step.threshold))
        line.append(f"{step.figure}{label} {value}, limit {threshold}", style="cyan")
    answer, style = ANSWERS[step.answer]
    return line.append(": ").append(answer, style=style)


def _print_strategy(report: Report, console: Console) -> None:
    """The cell of the tuning table, or what it takes to find it."""
    tuning = report.diagnosis.tuning
    if tuning is not None:
        console.print(
            Text("Strategy", style="bold").append(
                f" ({tuning.intensity.value} intensity, {tuning.locality.value} locality): ", style="not bold"
            ).append(tuning.strategy, style="bold cyan").append(f". {tuning.advice}", style="not bold")
        )  # fmt: skip
    for lacking in report.diagnosis.missing:
        console.print(Text(f"Strategy: not known, {lacking} was not measured.", style="yellow"))


def _print_findings(report: Report, console: Console) -> None:
    """The gotchas with their numbers, and those that nothing was measured of."""
    for finding in report.findings:
        numbers = ", ".join(
            f"{number.figure} {shown(number.figure, number.value)}"
            + ("" if number.threshold is None else f", limit {shown(number.figure, number.threshold)}")
            for number in finding.numbers
        )
        console.print(
            Text("Gotcha: ", style="bold")
            .append(f"{finding.gotcha.value}, {finding.severity.value}", style=SEVERITIES[finding.severity])
            .append(f" ({numbers}). {finding.summary}", style="not bold")
        )
    unknown = report.not_measured
    seen = {finding.gotcha for finding in report.findings}
    absent = [gotcha.value for gotcha in Gotcha if gotcha not in seen and gotcha not in unknown]
    if absent:
        console.print(Text(f"Not seen: {', '.join(absent)}.", style="green"))
    if unknown:
        console.print(Text(f"Not measured: {', '.join(gotcha.value for gotcha in unknown)}.", style="yellow"))


def _print_figures(report: Report, console: Console) -> None:
    """What was measured, and how."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("figure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("from")
    for name, value in report.evidence.measured.items():
        if name in report.evidence.provenance:
            table.add_row(name, shown(name, value), Text(report.evidence.provenance[name]))
    if table.row_count:
        console.print(table)


def shown(figure: str, value: float) -> str:
    """A figure as a person reads it: shares in percent."""
    if figure.endswith(SHARES):
        return f"{value:.1%}"
    return f"{value:.3g}{UNITS.get(figure, '')}"

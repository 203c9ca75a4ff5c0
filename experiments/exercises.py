"""The chapter's exercises, solved: inputs, our numbers beside the chapter's, and why they differ where they do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from experiments.chapter import EXERCISES, Exercise, Result
from experiments.files import require_writable, write_json

VERDICTS = {True: Text("agrees", "green"), False: Text("differs", "yellow"), None: Text("-", "dim")}


@dataclass(frozen=True)
class Exercises:
    """Solve the chapter's exercises, and say where its numbers and ours differ, and why.

    Attributes:
        json: a file for all inputs and results, in SI units.
    """

    json: Path | None = None

    def run(self) -> None:
        """Solve and print.

        Raises:
            ValueError: the file cannot be written.
        """
        if self.json is not None:
            require_writable(self.json, "--json")
        solved = [solve() for solve in EXERCISES]
        if self.json is not None:
            write_json(self.json, {"exercises": [exercise.to_dict() for exercise in solved]})
        console = Console(highlight=False)
        for exercise in solved:
            print_exercise(exercise, console)
        verdicts = [result.agrees for exercise in solved for result in exercise.results]
        console.print(
            f"{verdicts.count(True)} results are the chapter's; {verdicts.count(False)} differ by the assumption "
            f"noted; for {verdicts.count(None)} it has no number."
        )


def print_exercise(exercise: Exercise, console: Console) -> None:
    """Print inputs, results, and under which assumption each holds."""
    console.print(Text(f"Exercise {exercise.number}  ", "bold cyan").append(exercise.title, "bold"))
    given = "; ".join(f"{item.name} {item.unit.text(*item.values)}" for item in exercise.given)
    console.print(Text(f"Given: {given}"))
    console.print(_table(exercise.results))
    console.print(_notes(exercise.results))
    console.print(Padding(Text(_functions(exercise.results), "dim"), (0, 0, 1, 2)))


def _table(results: tuple[Result, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("result")
    table.add_column("ours", justify="right", no_wrap=True, style="bold")
    table.add_column("chapter", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for result in results:
        chapter = "-" if result.chapter is None else result.unit.text(result.chapter)
        table.add_row(result.name, result.unit.text(result.ours), chapter, VERDICTS[result.agrees])
    return table


def _notes(results: tuple[Result, ...]) -> Padding:
    """What each result assumes, beside its name."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(style="dim")
    for result in results:
        if result.note:
            table.add_row(result.name, Text(result.note))
    return Padding(table, (0, 0, 0, 2))


def _functions(results: tuple[Result, ...]) -> str:
    """The functions that computed them, by module."""
    names: dict[str, dict[str, None]] = {}
    for result in results:
        names.setdefault(result.function.__module__, {})[result.function.__name__] = None
    return "; ".join(f"{module}: {', '.join(functions)}" for module, functions in names.items())

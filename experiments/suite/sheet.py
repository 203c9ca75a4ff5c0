"""A table that a terminal, Markdown and CSV show alike."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

UNBOUNDED = 10_000  # a terminal in which every table fits


@dataclass(frozen=True)
class Sheet:
    """Rows of text.

    Attributes:
        name: of its file.
        title: one line above.
        headers: of the columns; the first one names the rows.
        rows: as many cells as headers each.
        note: what the columns mean, below.
    """

    name: str
    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def print(self, console: Console) -> None:
        """Print it, in as many parts below each other as the terminal's width asks for, each with the rows' names."""
        console.print(Text(self.title, style="bold"))
        for columns in self._parts(console):
            console.print(self._table(columns))
        if self.note:
            console.print(Text(self.note, style="dim"))
        console.print()

    def _parts(self, console: Console) -> list[list[int]]:
        """Which columns each part has: as many as fit, the first one in all of them."""
        parts = [[0]]
        unbounded = console.options.update(width=UNBOUNDED)
        for column in range(1, len(self.headers)):
            wider = [*parts[-1], column]
            fits = console.measure(self._table(wider), options=unbounded).maximum <= console.width
            if fits or len(wider) == 2:
                parts[-1] = wider
            else:
                parts.append([0, column])
        return parts

    def _table(self, columns: Sequence[int]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for column in columns:
            table.add_column(Text(self.headers[column]), justify="right" if column else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*(Text(row[column]) for column in columns))
        return table

    @property
    def markdown(self) -> str:
        """As a table in Markdown under a heading."""
        lines = [f"## {self.title}", "", _line(self.headers), _line(["---", *["---:"] * (len(self.headers) - 1)])]
        lines += [_line(row) for row in self.rows]
        return "\n".join([*lines, "", *([self.note, ""] if self.note else [])])

    @property
    def csv(self) -> str:
        """As comma-separated values with a header."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.headers)
        writer.writerows(self.rows)
        return file.getvalue()


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

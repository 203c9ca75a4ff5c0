"""The study's files: rows as CSV, tables as reStructuredText."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from experiments.fidelity.rows import Row
from experiments.suite.sheet import Sheet

COMMAND = "numa-rl study fidelity"


def rows_csv(rows: Sequence[Row]) -> str:
    """A line for each row, with a header."""
    records = [row.to_dict() for row in rows]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def tables_rst(opening: str, verdict: Sequence[str], sheets: Sequence[Sheet]) -> str:
    """Everything that the command prints, for the documentation to include.

    Args:
        opening: what was played.
        verdict: what it comes to, in lines.
        sheets: the tables.
    """
    lines = [f".. Written by {COMMAND} --tables.", "", _plain(opening), ""]
    lines += [f"* {_plain(line)}" for line in verdict]
    for sheet in sheets:
        lines += ["", *_table(sheet)]
        if sheet.note:
            lines += ["", _plain(sheet.note)]
    return "\n".join(lines) + "\n"


def _table(sheet: Sheet) -> list[str]:
    """A table of reStructuredText; values are CSV, so that none can break the markup."""
    content = io.StringIO()
    writer = csv.writer(content, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(map(_plain, sheet.headers))
    writer.writerows([[_plain(cell) for cell in row] for row in sheet.rows])
    body = [f"   {line}" for line in content.getvalue().splitlines()]
    return [f".. csv-table:: {_plain(sheet.title)}", "   :header-rows: 1", "   :class: fidelity", "", *body]


def _plain(text: str) -> str:
    """Text without meaning as markup; a dash alone would be a list."""
    if text == "-":
        return "\\-"
    return "".join(f"\\{letter}" if letter in "\\*`|_" else letter for letter in text)

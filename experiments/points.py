"""Measured points of a roofline, read from a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from numa_rl.wording import quoted

NAME, INTENSITY, PERFORMANCE = REQUIRED = ("name", "intensity_flop_per_byte", "performance_flop_per_s")
LOCAL_SHARE = "local_share"
COLUMNS = (*REQUIRED, LOCAL_SHARE)
MAX_BYTES = 2**20  # some ten thousand points
LEAST, MOST = 1e-30, 1e30  # of intensity and performance: logarithmic axes stay finite


@dataclass(frozen=True)
class Point:
    """What was measured of a task.

    Attributes:
        name: how it is called in table and figure.
        intensity: flop per byte of memory traffic.
        flops_per_s: performance.
        local_share: share of its bytes that were local, None where it was not measured.
    """

    name: str
    intensity: float
    flops_per_s: float
    local_share: float | None


def read_points(path: Path) -> list[Point]:
    """The points in a CSV file with a header: columns in any order, `local_share` optional and its cells may be empty.

    Raises:
        ValueError: no such file, not CSV, or a header or cell that breaks a rule; the message names file, row, column,
            rule and value.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")  # spreadsheets write a byte order mark
    except OSError as error:
        raise ValueError(f"{path}: points must be a readable file: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: points must be UTF-8 text: {error.reason} at byte {error.start}.") from error
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path}: points must be at most {MAX_BYTES} bytes, got more.")
    points: dict[str, Point] = {}
    for where, cells in _rows(path, text):
        point = _point(where, cells)
        if point.name in points:
            raise ValueError(f"{where}: {NAME} must differ from every other row's, got {point.name!r} again.")
        points[point.name] = point
    if not points:
        raise ValueError(f"{path}: points must have at least one row under the header, got none.")
    return list(points.values())


def _rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row stands, and its cells by column."""
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    header: list[str] | None = None
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            where = f"{path}: row {reader.line_num}"
            if not any(cells):
                continue
            if header is None:
                header = _header(where, cells)
            elif len(cells) != len(header):
                raise ValueError(
                    f"{where}: must have {len(header)} cells between commas, with decimal points and not decimal "
                    f"commas, got {len(cells)}: {quoted(','.join(cells))}."
                )
            else:
                yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}: row {reader.line_num}: must be CSV: {error}.") from error
    if header is None:
        raise ValueError(f"{path}: points must open with the columns {','.join(REQUIRED)}, got an empty file.")


def _header(where: str, cells: list[str]) -> list[str]:
    """The header's columns, once they are known ones, each once, and all that must be there."""
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(cells) == 1 and separator in cells[0]:
            raise ValueError(f"{where}: columns must be separated by commas, got {name}: {quoted(cells[0])}.")
    for column in REQUIRED:
        if column not in cells:
            raise ValueError(f"{where}: must name the column {column}, got {quoted(','.join(cells))}.")
    for column in cells:
        if column not in COLUMNS:
            raise ValueError(f"{where}: columns must be among {', '.join(COLUMNS)}, got {quoted(column)}.")
        if cells.count(column) > 1:
            raise ValueError(f"{where}: columns must be named once, got {column} twice.")
    return cells


def _point(where: str, cells: dict[str, str]) -> Point:
    name = cells[NAME]
    if not name or not name.isprintable():
        raise ValueError(f"{where}: {NAME} must be printable text, got {quoted(name)}.")
    measured = {}
    for column in (INTENSITY, PERFORMANCE):
        measured[column] = _number(where, column, cells[column])
        if not LEAST <= measured[column] <= MOST:
            raise ValueError(f"{where}: {column} must be in {LEAST:g}..{MOST:g}, got {quoted(cells[column])}.")
    share = None
    if cells.get(LOCAL_SHARE):
        share = _number(where, LOCAL_SHARE, cells[LOCAL_SHARE])
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{where}: {LOCAL_SHARE} must be in [0, 1], got {quoted(cells[LOCAL_SHARE])}.")
    return Point(name, measured[INTENSITY], measured[PERFORMANCE], share)


def _number(where: str, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where}: {column} must be a number with a decimal point, got {quoted(text)}.") from None

"""Reader of the Azure LLM inference traces: when requests came, and how long they were.

A trace is a CSV file with the columns TIMESTAMP, ContextTokens and GeneratedTokens, as published with [1] in the
Azure Public Dataset (AzureLLMInferenceTrace_conv_2023.csv and its siblings; CC-BY-4.0).

References:
    [1] P. Patel et al., "Splitwise: efficient generative LLM inference using phase splitting", ISCA 2024.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

TIMESTAMP, CONTEXT, GENERATED = COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOST_CHARACTERS = 65_536  # of a line
MAX_TOKENS = 10**9  # far above any model's context: a larger count is an error in the file


@dataclass(frozen=True, eq=False)
class AzureTrace:
    """The requests of a trace, in order of arrival.

    Attributes:
        arrival_s: time since the first request, shape (R,).
        context_tokens: length of the prompt, shape (R,).
        generated_tokens: length of the answer, shape (R,).
    """

    arrival_s: npt.NDArray[np.float64]
    context_tokens: npt.NDArray[np.int64]
    generated_tokens: npt.NDArray[np.int64]

    @property
    def num_requests(self) -> int:
        """Number of requests R."""
        return len(self.arrival_s)


def read_azure_trace(path: str | Path) -> AzureTrace:
    """Read a trace, a row at a time.

    Raises:
        ValueError: there is no such file, it is not a trace, or a row breaks a rule; the message names file, line,
            column, rule and value.
    """
    arrival_s, context, generated = array("d"), array("q"), array("q")
    try:
        for request in _rows(Path(path)):
            arrival_s.append(request[0])
            context.append(request[1])
            generated.append(request[2])
    except OSError as error:
        raise ValueError(f"{path}: trace must be a readable file: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: trace must be UTF-8 text: {error.reason} at byte {error.start}.") from error
    if not arrival_s:
        raise ValueError(f"{path}: trace must have at least one request, got none.")
    return AzureTrace(np.array(arrival_s), np.array(context), np.array(generated))


def _rows(path: Path) -> Iterator[tuple[float, int, int]]:
    """Arrival, context and generated tokens of each request."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(_lines(file, path), strict=True)
        header: list[str] | None = None
        first = previous = None
        try:
            for cells in reader:
                if not cells:
                    continue
                if header is None:
                    header = [cell.strip() for cell in cells]
                    for column in COLUMNS:
                        if column not in header:
                            raise ValueError(f"{path}:{reader.line_num}: missing column {column}, got {header}.")
                    continue
                where = f"{path}:{reader.line_num}"
                if len(cells) != len(header):
                    raise ValueError(f"{where}: a row must have {len(header)} cells, got {len(cells)}: {cells}.")
                cell = dict(zip(header, cells, strict=True))
                time = _time(cell[TIMESTAMP], where)
                first = first or time
                if previous is not None and time < previous:
                    got = cell[TIMESTAMP].strip()
                    raise ValueError(f"{where}: {TIMESTAMP} must not be earlier than the row before, got {got!r}.")
                previous = time
                tokens = _tokens(cell[CONTEXT], CONTEXT, where), _tokens(cell[GENERATED], GENERATED, where)
                yield (time - first).total_seconds(), *tokens
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: a row must be CSV: {error}.") from error
        if header is None:
            raise ValueError(f"{path}: trace must open with the columns {', '.join(COLUMNS)}, got an empty file.")


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    """The file's lines, each of a length that fits in memory."""
    while line := file.readline(MOST_CHARACTERS + 1):
        if len(line) > MOST_CHARACTERS:
            raise ValueError(f"{path}: a line must have at most {MOST_CHARACTERS} characters, got more.")
        yield line


def _time(text: str, where: str) -> datetime:
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise ValueError(f"{where}: {TIMESTAMP} must be an ISO date and time, got {text!r}.") from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _tokens(text: str, column: str, where: str) -> int:
    try:
        tokens = int(text)
    except ValueError as error:
        raise ValueError(f"{where}: {column} must be a whole number, got {text!r}.") from error
    if not 0 <= tokens <= MAX_TOKENS:
        raise ValueError(f"{where}: {column} must be in 0..{MAX_TOKENS}, got {tokens}.")
    return tokens

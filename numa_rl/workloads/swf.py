"""Reader of the Standard Workload Format: jobs of parallel machines, a line of 18 numbers each.

Lines that begin with a semicolon are comments; those at the top may say `; Key: value`. A number is -1 where it is not
known [1]. Files are read in blocks, so memory does not grow with the file, and may be packed with gzip.

Dimension key: J jobs of a block or window.

References:
    [1] S. J. Chapin et al., "Benchmarks and standards for the evaluation of parallel job schedulers", JSSPP 1999;
        D. G. Feitelson, "The Standard Workload Format", Parallel Workloads Archive.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import numpy.typing as npt

from numa_rl.wording import quoted
from numa_rl.workloads.swf_kernel import (
    MOST_DIGITS,
    NEGATIVE,
    NO_NUMBER,
    NOTHING,
    TOO_FEW,
    TOO_LONG,
    TOO_MANY,
    parse_lines,
)

# The fields of a line, in order [1]. Times are in seconds, memory in KB for each processor.
FIELDS = (
    "job",
    "submit_s",
    "wait_s",
    "run_s",
    "processors",
    "cpu_s",
    "memory_kb",
    "requested_processors",
    "requested_s",
    "requested_memory_kb",
    "status",
    "user",
    "group",
    "executable",
    "queue",
    "partition",
    "preceding_job",
    "think_s",
)
UNKNOWN = -1.0
BLOCK_BYTES = 4 * 2**20
MOST_LINE_BYTES = 2**16
LEAST_LINE_BYTES = 2 * len(FIELDS)  # a digit and what ends it
GZIP_START = b"\x1f\x8b"

Columns = dict[str, npt.NDArray[np.float64]]

RULES = {
    NO_NUMBER: "must be a decimal number",
    TOO_LONG: f"must have at most {MOST_DIGITS} digits",
    NEGATIVE: "must be at least 0, or -1 where it is not known",
}


def swf_blocks(
    path: str | Path, columns: Sequence[str] = FIELDS, *, block_bytes: int = BLOCK_BYTES
) -> Iterator[Columns]:
    """Read a file in blocks.

    Args:
        path: of the file.
        columns: of `FIELDS`, those that are wanted; all are checked.
        block_bytes: text read at once, at least 64 KiB; memory is some ten times that.

    Yields:
        The columns of the jobs of a block, by name, shape (J,) each, J > 0, `UNKNOWN` where a number is not known.

    Raises:
        ValueError: no column or an unknown one, there is no such file, no job is in it, or a line breaks a rule; the
            message names file, line, field, rule and value.
    """
    if not columns:
        raise ValueError("columns must be at least one, got none.")
    for name in columns:
        if name not in FIELDS:
            raise ValueError(f"a column must be one of {', '.join(FIELDS)}, got {quoted(name)}.")
    if block_bytes < MOST_LINE_BYTES:
        raise ValueError(f"block_bytes must be >= {MOST_LINE_BYTES}, got {block_bytes}.")
    return _blocks(Path(path), [FIELDS.index(name) for name in columns], block_bytes)


def read_swf(
    path: str | Path, columns: Sequence[str] = FIELDS, *, first_job: int = 0, num_jobs: int | None = None
) -> Columns:
    """Read a window of jobs, to the end of the file if `num_jobs` is None; memory grows with the window.

    Args:
        path: of the file.
        columns: of `FIELDS`.
        first_job: jobs to pass over, which are checked all the same.
        num_jobs: most jobs to read. What follows the block of the last one is not looked at.

    Raises:
        ValueError: as for `swf_blocks`, a negative `first_job`, `num_jobs` less than 1, or no job in the window.
    """
    if first_job < 0:
        raise ValueError(f"first_job must be >= 0, got {first_job}.")
    if num_jobs is not None and num_jobs < 1:
        raise ValueError(f"num_jobs must be >= 1, got {num_jobs}.")
    parts: list[Columns] = []
    seen = kept = 0
    for block in swf_blocks(path, columns):
        size = len(block[columns[0]])
        begin = min(max(first_job - seen, 0), size)
        end = size if num_jobs is None else min(size, begin + num_jobs - kept)
        seen += size
        if end > begin:
            parts.append({name: values[begin:end] for name, values in block.items()})
            kept += end - begin
        if kept == num_jobs:
            break
    if not parts:
        raise ValueError(f"{path}: first_job must be less than the number of jobs, {seen}, got {first_job}.")
    return {name: np.concatenate([part[name] for part in parts]) for name in columns}


def read_swf_header(path: str | Path) -> dict[str, str]:
    """What the comments at the top of a file say, by key: of `; Key: value`, the first where a key comes twice.

    Raises:
        ValueError: there is no such file, or it cannot be unpacked.
    """
    header: dict[str, str] = {}
    with _opened(Path(path)) as file:
        while (line := file.readline(MOST_LINE_BYTES).strip()).startswith(b";"):
            key, colon, value = line.lstrip(b"; \t").decode("utf-8", "replace").partition(":")
            if colon and key.strip():
                header.setdefault(key.strip(), value.strip())
    return header


@contextmanager
def _opened(path: Path) -> Iterator[BufferedIOBase]:
    """The file, unpacked if it is packed."""
    try:
        with path.open("rb") as file:
            packed = file.read(len(GZIP_START)) == GZIP_START
        with gzip.open(path, "rb") if packed else path.open("rb") as content:
            yield content
    except (OSError, EOFError, zlib.error) as error:
        problem = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: jobs must be in a readable file, plain or packed with gzip: {problem}.") from error


def _blocks(path: Path, columns: Sequence[int], block_bytes: int) -> Iterator[Columns]:
    lines = num_jobs = 0
    values = np.empty(((block_bytes + MOST_LINE_BYTES) // LEAST_LINE_BYTES + 1, len(FIELDS)))
    with _opened(path) as file:
        for text in _whole_lines(file, path, block_bytes):
            rows, passed, wrong, field, start = parse_lines(np.frombuffer(text, np.uint8), values)
            lines += passed
            if wrong != NOTHING:
                raise ValueError(f"{path}:{lines + 1}: {_complaint(text[start:], wrong, field)}")
            num_jobs += rows
            if rows:
                yield {FIELDS[column]: values[:rows, column].copy() for column in columns}
    if not num_jobs:
        raise ValueError(f"{path}: a file in the Standard Workload Format must have at least one job, got none.")


def _whole_lines(file: BufferedIOBase, path: Path, block_bytes: int) -> Iterator[bytes]:
    """The text in pieces that end with a line."""
    rest = b""
    lines = 0
    while block := file.read(block_bytes):
        text = rest + block
        end = text.rfind(b"\n") + 1
        rest = text[end:]
        lines += text.count(b"\n")
        if len(rest) > MOST_LINE_BYTES:
            raise ValueError(f"{path}:{lines + 1}: a line must have at most {MOST_LINE_BYTES} bytes, got more.")
        yield text[:end]
    yield rest


def _complaint(text: bytes, wrong: int, field: int) -> str:
    """What is wrong with the line that the text begins with."""
    cells = text.split(b"\n", 1)[0].decode("utf-8", "replace").split()
    if wrong in (TOO_FEW, TOO_MANY):
        return f"a job must have {len(FIELDS)} fields, got {len(cells)}: {quoted(' '.join(cells))}."
    return f"field {field + 1}, {FIELDS[field]}, {RULES[wrong]}, got {quoted(cells[field])}."

"""Graphs from files: METIS's text, Matrix Market, communication matrices, recorded workflows and queries.

Dimension key: V vertices, E undirected edges.

References:
    [1] METIS 5.1 manual, section 4.1.1: graph file. Chaco's is the same.
    [2] R. F. Boisvert, R. Pozo and K. A. Remington, "The Matrix Market exchange formats", NISTIR 5935, 1996.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import mminfo, mmread
from scipy.sparse import csr_array

from numa_rl.partition.graph import F64, Graph, graph_from_edges, graph_from_matrix
from numa_rl.partition.workload_graph import workload_graph
from numa_rl.wording import quoted
from numa_rl.workloads.comm_matrix import read_communication_matrix
from numa_rl.workloads.json_files import read_json
from numa_rl.workloads.query import Query
from numa_rl.workloads.wfformat import MOST_FILE_BYTES as MOST_JSON_BYTES
from numa_rl.workloads.wfformat import read_workflow

MOST_BYTES = 512 * 2**20  # of a text that is read at once
MOST_VERTICES, MOST_EDGES = 2**24, 2**26
FORMAT = re.compile(r"[01]{1,3}")  # of METIS's header: sizes, vertex weights, edge weights


def read_graph(path: Path) -> Graph:
    """The graph in a file, by its suffix: `.graph`, `.mtx`, `.csv` or `.json`.

    Raises:
        ValueError: another suffix, no such file, or one that breaks its format.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"a graph file must end in one of {', '.join(READERS)}, got {str(path)!r}.")
    if not path.is_file():
        raise ValueError(f"graph file {str(path)!r}: must be an existing file, got none.")
    try:
        return reader(path)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if str(path) in message else f"graph file {str(path)!r}: {message}") from None


def read_metis_graph(path: Path) -> Graph:
    """The graph in a text of METIS or Chaco [1]: a header `V E [fmt [ncon]]`, and a line for each vertex.

    `fmt` has up to three digits: vertices have sizes (which say nothing of cost, and are passed over), vertices have
    weights, edges have weights. Vertices count from 1, each edge stands on the lines of both its ends.

    Raises:
        ValueError: not such a text; more than one weight for each vertex.
    """
    lines = _graph_lines(path)
    _, first = next(lines, (0, ""))
    num_vertices, num_edges, has_sizes, has_weights, has_edge_weights = _metis_header(first)
    vertex_weights = np.ones(num_vertices)
    ends: list[F64] = []
    before = has_sizes + has_weights
    vertex = 0
    for number, line in lines:
        if vertex == num_vertices:
            if line.strip():
                raise ValueError(f"line {number}: must not follow those of the {num_vertices} vertices, got more.")
            continue
        row = _numbers(line, number)
        if len(row) < before or (len(row) - before) % (1 + has_edge_weights):
            raise ValueError(f"line {number}: must have a value for each that the header names, got {len(row)} values.")
        if has_weights:
            vertex_weights[vertex] = row[has_sizes]
        pairs = row[before:].reshape(-1, 1 + has_edge_weights)
        bad = (pairs[:, 0] < 1) | (pairs[:, 0] > num_vertices) | (pairs[:, 0] % 1 != 0)
        if bad.any():
            raise ValueError(f"line {number}: neighbours must be in 1..{num_vertices}, got {pairs[bad][0, 0]:g}.")
        weight = pairs[:, 1] if has_edge_weights else np.ones(len(pairs))
        ends.append(np.stack([np.full(len(pairs), float(vertex)), pairs[:, 0] - 1.0, weight], axis=1))
        vertex += 1
    if vertex < num_vertices:
        raise ValueError(f"must have a line for each of {num_vertices} vertices, got {vertex}.")
    table = np.concatenate(ends)
    if len(table) != 2 * num_edges:
        raise ValueError(f"must name each of {num_edges} edges at both ends, got {len(table)} ends.")
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    offsets = np.searchsorted(table[:, 0], np.arange(num_vertices + 1))
    return Graph(offsets, table[:, 1].astype(np.int64), table[:, 2], vertex_weights)


def _metis_header(line: str) -> tuple[int, int, int, int, int]:
    """V, E, and whether there are sizes, vertex weights and edge weights."""
    cells = line.split()
    if not 2 <= len(cells) <= 4 or not all(cell.isascii() and cell.isdigit() for cell in cells):
        raise ValueError(f"must open with the line 'vertices edges [format [weights]]', got {quoted(line)}.")
    num_vertices, num_edges = (int(cell[:20]) for cell in cells[:2])
    form = cells[2] if len(cells) > 2 else "0"
    if not FORMAT.fullmatch(form):
        raise ValueError(f"the header's format must be up to three digits 0 or 1, got {quoted(form)}.")
    if len(cells) == 4 and int(cells[3][:20]) != 1:
        raise ValueError(f"vertices must have one weight each, got {quoted(cells[3])} in the header.")
    _require_size(num_vertices, num_edges)
    sizes, weights, edge_weights = (int(digit) for digit in form.zfill(3))
    return num_vertices, num_edges, sizes, weights, edge_weights


def _graph_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are no comment, numbered; blank ones count, for a vertex without neighbours has one."""
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"must be at most {MOST_BYTES} bytes, got more.")
    if b"\0" in content:
        raise ValueError("must be text, got a NUL byte.")
    text = content.decode("latin-1").removesuffix("\n")  # only comments may have other letters
    for number, line in enumerate(text.split("\n"), 1):
        if not line.lstrip().startswith("%"):
            yield number, line


def _numbers(line: str, number: int) -> F64:
    try:
        return np.array(line.split(), dtype=np.float64)
    except ValueError:
        raise ValueError(f"line {number}: must be numbers, got {quoted(line)}.") from None


def read_matrix_market(path: Path) -> Graph:
    """The graph of a square matrix [2]: rows are vertices, each of weight 1, joined where the matrix is not 0.

    An edge weighs |a_ij| in a symmetric matrix and |a_ij| + |a_ji| in any other; of a pattern every entry is 1.

    Raises:
        ValueError: not such a file, not square, or too large.
    """
    rows, columns, entries, _, kind, symmetry = _checked_mminfo(path)
    if kind == "complex":
        raise ValueError("a graph's matrix must hold real numbers, got complex ones.")
    if rows != columns:
        raise ValueError(f"a graph's matrix must be square, got {rows} rows and {columns} columns.")
    _require_size(rows, entries)
    matrix = abs(csr_array(_quietly(mmread, path)))
    if symmetry == "general":
        matrix = matrix + matrix.T
    return graph_from_matrix(matrix, np.ones(rows))


def _checked_mminfo(path: Path) -> tuple[int, int, int, str, str, str]:
    header: tuple[int, int, int, str, str, str] = _quietly(mminfo, path)
    return header


def _quietly(reader: Callable[..., object], path: Path) -> Any:
    """What scipy reads, and ValueError for all that it may raise."""
    try:
        return reader(path)
    except (OverflowError, TypeError, IndexError, MemoryError) as error:
        raise ValueError(f"must be a Matrix Market file: {error}.") from None
    except ValueError as error:
        raise ValueError(f"must be a Matrix Market file: {str(error).rstrip('.')}.") from None


def _require_size(num_vertices: int, num_edges: int) -> None:
    if not 1 <= num_vertices <= MOST_VERTICES:
        raise ValueError(f"vertices must be in 1..{MOST_VERTICES}, got {num_vertices}.")
    if not 0 <= num_edges <= MOST_EDGES:
        raise ValueError(f"edges must be in 0..{MOST_EDGES}, got {num_edges}.")


def read_traffic(path: Path) -> Graph:
    """The graph of a communication matrix, whose lines stand in reverse order of the tasks; each task weighs 1."""
    matrix = read_communication_matrix(path)
    return graph_from_matrix(matrix, np.ones(len(matrix)))


def read_recorded(path: Path) -> Graph:
    """The graph of a recorded workflow, or of an episode of recorded queries.

    A workflow's tasks weigh their run time in seconds, and edges the bytes of the files passed; its input files are
    vertices without weight. Queries are an episode of the family `query` with its seed 0, and all weights are bytes.
    """
    document = read_json(path, f"{path}: recorded graph", MOST_JSON_BYTES)
    if isinstance(document, dict) and "jobs" in document:
        return workload_graph(Query(trace=str(path)).generate(np.random.default_rng(0), 1), 0)
    recorded = read_workflow(path).graph()
    edges = [
        (before, task, recorded.output_bytes[before] * share)
        for task, reads in enumerate(recorded.reads)
        for before, share in reads
    ]
    sources, targets, passed = zip(*edges, strict=True) if edges else ((), (), ())
    return graph_from_edges(len(recorded.reads), sources, targets, passed, recorded.runtime_s)


READERS: dict[str, Callable[[Path], Graph]] = {
    ".graph": read_metis_graph,
    ".mtx": read_matrix_market,
    ".csv": read_traffic,
    ".json": read_recorded,
}

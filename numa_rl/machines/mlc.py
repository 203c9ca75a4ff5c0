"""Reading measurements from what Intel MLC prints: idle latency, bandwidth between nodes, latency under load.

MLC measures; it does not say how many cores or how much memory a node has. A machine given as a base supplies what
the text does not say, or it is assumed.

Dimension key: N nodes.

References:
    [1] Intel Memory Latency Checker, its readme: rows are the nodes that ask, columns the memories.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from numa_rl.machines.assembly import Found
from numa_rl.machines.builders import ChapterFigures
from numa_rl.machines.load_curve import fit_loaded_latency
from numa_rl.topology import FloatArray
from numa_rl.wording import quoted

NS, MB = 1e-9, 1e6  # MLC's MB is 1e6 bytes [1]
MAX_NODES = 1024
BANNER = re.compile(r"Memory Latency Checker\s*-?\s*v?([\w.]+)?")
# The line that opens a part of the output, and the part; "" for one that is not read.
HEADINGS = (
    (re.compile(r"idle (?:sequential |random )?latenc(?:y|ies)", re.IGNORECASE), "latency"),
    (re.compile(r"Memory Bandwidths between nodes", re.IGNORECASE), "bandwidth"),
    (re.compile(r"Loaded Latencies", re.IGNORECASE), "loaded"),
    (re.compile(r"Peak Injection|cache-to-cache|L2->L2", re.IGNORECASE), ""),
)
READ_ONLY = re.compile(r"Using Read-only traffic type", re.IGNORECASE)
HEADER = re.compile(r"^\s*(?:Numa node|Memory node|Socket)\s+(\d[\d\s]*)$", re.IGNORECASE)
ROW = re.compile(r"^\s*(\d{1,6})\s+(\S.*)$")
CURVE = re.compile(r"^\s*\d{1,6}\s+([\d.]+)\s+([\d.]+)\s*$")
NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?")
NOT_MEASURED = ("-", "N/A", "n/a")
UNITS = {"latency": NS, "bandwidth": MB}


@dataclass
class Measured:
    """What a text holds.

    Attributes:
        version: of MLC, or "" where the text does not say.
        columns: nodes of the memories, by part of the output.
        rows: what each node that asks measured, by part of the output, in the units of MLC, NaN where it did not.
        curve: latency in ns and bandwidth in MB/s of each point of the loaded-latency curve.
    """

    version: str = ""
    columns: dict[str, list[int]] = field(default_factory=dict)
    rows: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    curve: list[tuple[float, float]] = field(default_factory=list)

    @property
    def nodes(self) -> list[int]:
        """Numbers of all nodes, ascending."""
        return sorted({node for part in self.columns.values() for node in part})

    @property
    def asking(self) -> list[int]:
        """Numbers of the nodes that ask, ascending: those with cores."""
        return sorted({node for part in self.rows.values() for node in part})

    def matrix(self, part: str) -> FloatArray | None:
        """A part's matrix in seconds or bytes/s, shape (N, N), NaN where not measured; None without the part."""
        if part not in self.rows:
            return None
        nodes = self.nodes
        matrix = np.full((len(nodes), len(nodes)), np.nan)
        columns = [nodes.index(node) for node in self.columns[part]]
        for node, values in self.rows[part].items():
            matrix[nodes.index(node), columns] = values
        return matrix * UNITS[part]


def is_mlc(text: str) -> bool:
    """Whether a text looks like what MLC prints."""
    return bool(BANNER.search(text) or any(part and pattern.search(text) for pattern, part in HEADINGS))


def parse_mlc(text: str) -> Measured:
    """What a text that MLC printed holds.

    Raises:
        ValueError: a matrix has ragged rows, a row twice, or a figure that is no number > 0; or the text holds
            neither a matrix nor a curve.
    """
    banner = BANNER.search(text)
    measured = Measured(version=(banner[1] or "") if banner else "")
    for part, header, lines in _tables(text):
        if part == "loaded":
            measured.curve.extend((float(match[1]), float(match[2])) for line in lines if (match := CURVE.match(line)))
        elif part in measured.columns:
            raise ValueError(f"there must be one matrix of {part}, got two.")
        else:
            measured.columns[part] = _columns(part, header)
            measured.rows[part] = _rows(part, lines, measured.columns[part])
    if not measured.rows and not measured.curve:
        raise ValueError("there must be a matrix of latency or bandwidth or a curve of loaded latency, got none.")
    for part, rows in measured.rows.items():
        outside = [node for node in rows if node not in measured.nodes]
        if outside:
            raise ValueError(f"every node with a row of {part} must have a column, got {outside} without.")
    return measured


def found_in_mlc(name: str, text: str) -> Found:
    """What a text says of a machine whose cores and memory are assumed, its nodes in ascending order.

    Raises:
        ValueError: as `parse_mlc`; or the text has no matrix, so that it names no nodes.
    """
    measured = parse_mlc(text)
    if not measured.nodes:
        raise ValueError("without a matrix of nodes there must be a base machine, got none.")
    asks = np.isin(measured.nodes, measured.asking)
    figures, sources = figures_of(measured)
    sources["cores"] = "measured: nodes with a row in MLC's output have cores; assumed: 8 each"
    return Found(name=name, cores=np.where(asks, ChapterFigures().cores, 0), sources=sources, **figures)


def figures_of(measured: Measured) -> tuple[dict[str, Any], dict[str, str]]:
    """The figures of `Found` that were measured, and their sources."""
    tool = f"Intel MLC v{measured.version}" if measured.version else "Intel MLC"
    figures: dict[str, Any] = {}
    sources: dict[str, str] = {}
    names = {"latency": ("latency_s", "idle latency"), "bandwidth": ("bandwidth_bytes_per_s", "read bandwidth")}
    for part, (key, what) in names.items():
        matrix = measured.matrix(part)
        if matrix is not None:
            figures[key], sources[key] = matrix, f"measured: {what}, {tool}"
    if measured.curve:
        curve = np.array(measured.curve)
        fit, rmse = fit_loaded_latency(curve[:, 0] * NS, curve[:, 1] * MB)
        figures["loaded_latency"] = fit
        sources["loaded_latency"] = f"measured: fit to the curve of {tool} (rmse {rmse:.3f})"
    return figures, sources


def _tables(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """The parts of the output that are read: which it is, its line of nodes, and the lines under that."""
    part, header, lines = "", "", list[str]()
    opened = False
    for line in [*text.splitlines(), "Peak Injection"]:
        heading = next((name for pattern, name in HEADINGS if pattern.search(line)), None)
        if heading is None and READ_ONLY.search(line) and part != "loaded":
            heading = "bandwidth"
        if heading is not None:
            if part and (opened or part == "loaded"):
                yield part, header, lines
            part, header, lines, opened = heading, "", [], False
        elif part and part != "loaded" and not opened:
            match = HEADER.match(line)
            header, opened = (match[1], True) if match else ("", False)
        elif part and line.strip():
            lines.append(line)


def _columns(part: str, header: str) -> list[int]:
    """The nodes of a matrix's columns."""
    columns = [int(node) for node in header.split()]
    if len(set(columns)) < len(columns) or len(columns) > MAX_NODES:
        raise ValueError(
            f"the matrix of {part} must name each of at most {MAX_NODES} nodes once, got {quoted(header)}."
        )
    return columns


def _rows(part: str, lines: list[str], columns: list[int]) -> dict[int, list[float]]:
    """The rows under a matrix's line of nodes, up to the first line that is none."""
    rows: dict[int, list[float]] = {}
    for line in lines:
        match = ROW.match(line)
        if match is None:
            break
        node, texts = int(match[1]), match[2].split()
        if node in rows:
            raise ValueError(f"the matrix of {part} must have one row of node {node}, got two.")
        if len(texts) != len(columns):
            raise ValueError(
                f"the matrix of {part} must have {len(columns)} figures a row, got {quoted(' '.join(line.split()))}."
            )
        for value in texts:
            if value not in NOT_MEASURED and not (NUMBER.fullmatch(value) and float(value) > 0.0):
                raise ValueError(f"the matrix of {part} must hold numbers > 0, got {quoted(value)} at node {node}.")
        rows[node] = [np.nan if value in NOT_MEASURED else float(value) for value in texts]
    if not rows:
        raise ValueError(f"the matrix of {part} must have at least one row, got none.")
    return rows

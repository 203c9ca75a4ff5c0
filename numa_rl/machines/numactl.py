"""Reading a machine from what `numactl -H` prints: its nodes, their processors and memory, and SLIT distances.

Dimension key: N nodes.

References:
    [1] numactl(8), option --hardware.
"""

from __future__ import annotations

import re

import numpy as np

from numa_rl.machines.assembly import Found
from numa_rl.machines.builders import ChapterFigures
from numa_rl.topology import FloatArray
from numa_rl.wording import quoted

MIB = 2**20
MAX_NODES = 1024
CPUS = re.compile(r"^node +(\d{1,6}) +cpus:([ \d]*)$", re.MULTILINE)
SIZE = re.compile(r"^node +(\d{1,6}) +size: *(\d{1,12}) *MB", re.MULTILINE)
ANY_SIZE = re.compile(r"^node +\d+ +size:")
DISTANCES = re.compile(r"^node distances: *$", re.MULTILINE)
HEADER = re.compile(r"^node +(\d[\d ]*)$")
ROW = re.compile(r"^ *(\d{1,6}): *(.*)$")


def is_numactl(text: str) -> bool:
    """Whether a text looks like what `numactl -H` prints."""
    return bool(DISTANCES.search(text) or CPUS.search(text))


def found_in_numactl(name: str, text: str) -> Found:
    """What the text says of a machine, its nodes in ascending order of their numbers.

    A part of the text will do: without processors every node is assumed to have cores, without sizes to have memory.
    It counts processors, of which a core may have several.

    Raises:
        ValueError: the text names no node or too many, a node without memory, or distances that are no square.
    """
    for line in text.splitlines():
        if ANY_SIZE.match(line) and not SIZE.match(line):
            raise ValueError(f"a node's size must be a whole number of MB of up to 12 digits, got {quoted(line)}.")
    processors = {int(node): len(numbers.split()) for node, numbers in CPUS.findall(text)}
    sizes = {int(node): int(size) for node, size in SIZE.findall(text)}
    indices, distances = _distances(text)
    nodes = sorted({*processors, *sizes, *indices})
    if not 1 <= len(nodes) <= MAX_NODES:
        raise ValueError(f"there must be 1 to {MAX_NODES} nodes, got {len(nodes)}.")
    for what, known in (("cpus", [*processors]), ("a size", [*sizes]), ("distances", indices)):
        if known and sorted(known) != nodes:
            raise ValueError(f"every node of {nodes} must have {what}, got them of {sorted(known)} only.")
    for node, size in sizes.items():
        if size == 0:
            raise ValueError(f"the size of node {node} must be > 0 MB, got 0.")
    sources, cores = {}, np.full(len(nodes), ChapterFigures().cores)
    sources["cores"] = "assumed: 8 per node, the text gives none"
    if processors:
        cores = np.array([processors[node] for node in nodes])
        sources["cores"] = "file: processors of numactl; assumed: each a core, though a core may run several"
    if sizes:
        sources["memory_bytes"] = "file: node sizes of numactl in MiB"
    order = [indices.index(node) for node in nodes] if indices else []
    return Found(
        name=name,
        cores=cores,
        memory_bytes=np.array([float(sizes[node] * MIB) for node in nodes]) if sizes else None,
        distances=None if distances is None else distances[np.ix_(order, order)],
        sources=sources,
    )


def _distances(text: str) -> tuple[list[int], FloatArray | None]:
    """The nodes of the table of distances in its order, and the table, shape (N, N); none and None without one."""
    heading = DISTANCES.search(text)
    if heading is None:
        return [], None
    lines = [line.rstrip() for line in text[heading.end() :].splitlines() if line.strip()]
    header = HEADER.match(lines[0]) if lines else None
    if header is None:
        raise ValueError(f"distances must start with a line of nodes, got {quoted(lines[0] if lines else '')}.")
    indices = [int(node) for node in header[1].split()]
    if len(set(indices)) < len(indices) or len(indices) > MAX_NODES:
        raise ValueError(f"distances must name each of at most {MAX_NODES} nodes once, got {quoted(header[1])}.")
    rows = [match for line in lines[1:] if (match := ROW.match(line))]
    if [int(row[1]) for row in rows] != indices:
        raise ValueError(f"distances must have a row of each of nodes {indices}, got {[int(row[1]) for row in rows]}.")
    for row in rows:
        values = row[2].split()
        if len(values) != len(indices) or not all(re.fullmatch(r"[1-9]\d{0,8}", value) for value in values):
            raise ValueError(
                f"distances of node {row[1]} must be {len(indices)} whole numbers > 0, got {quoted(row[2])}."
            )
    return indices, np.array([row[2].split() for row in rows], dtype=np.float64)

"""Reading what Linux says of memory by node: numastat in its forms, /proc/<pid>/numa_maps, and /proc/vmstat.

References:
    [1] numastat(8): system-wide counts of pages; with -p, -m or -n tables in MB.
    [2] numa(7), and the Linux source, fs/proc/task_mmu.c: /proc/<pid>/numa_maps.
    [3] The Linux source, mm/vmstat.c: numa_hint_faults, numa_pages_migrated and others, since the system started.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from numa_rl.diagnosis.perf_stat import MOST_COUNT
from numa_rl.wording import quoted

MOST_NODES = 1024  # Linux's own limit, MAX_NUMNODES
MB = 2.0**20  # numastat's
SMALL_PAGE_BYTES = 4096.0

NODE_HEADER = re.compile(r"(?:PID\s+)?(?:node ?\d+)(?:\s+node ?\d+)*(?:\s+Total)?", re.IGNORECASE)
TOTAL_HEADER = re.compile(r"Total")
TITLE = re.compile(r"Per-node (?P<what>process memory usage|numastat info|system memory usage) \(in MBs\).*")
RULE = re.compile(r"[-\s]+")
FIGURE = re.compile(r"-?\d+(\.\d+)?")
PROCESS_TITLE = "process memory usage"
TOTAL = "Total"
LAST_DIGIT = 0.01  # of numastat's MB

POLICY = r"(?:default|local|bind|interleave|weighted interleave|prefer(?: \(many\))?)(?:=\w+(?:\|\w+)*)?(?::[\d,-]+)?"
MAPPING = re.compile(rf"(?P<address>[0-9a-f]{{8,16}}) (?P<policy>{POLICY})(?P<items>(?: .*)?)")
PAGES = re.compile(r"N(\d{1,5})=(\d{1,18})")
PAGE_SIZE = re.compile(r"kernelpagesize_kB=(\d{1,9})")
STATED = re.compile(r"(mapped|anon|dirty)=(\d{1,18})")
COUNTED = re.compile(r"N\d.*|kernelpagesize_kB.*")  # what must be one of these two

NAME_VALUE = re.compile(r"(?P<name>[a-z]\w*) (?P<value>\d+)")
SYSTEM_ROWS = ("numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node")
VMSTAT_NAMES = {"numa_interleave": "interleave_hit", "numa_local": "local_node", "numa_other": "other_node"}


@dataclass(frozen=True)
class NodeTable:
    """Figures by node, as numastat shows them.

    Attributes:
        rows: from a row's name (in lower case, where it is no process's) to its figure for each node: pages in
            numastat's default table, bytes in the others.
        nodes: numbers of the nodes.
        is_process: whether the pages of one or more processes are shown, not the whole system's.
    """

    rows: Mapping[str, Mapping[int, float]]
    nodes: tuple[int, ...]
    is_process: bool

    def total(self, row: str) -> float | None:
        """A row's sum over nodes, or None where there is no such row."""
        return math.fsum(self.rows[row].values()) if row in self.rows else None


@dataclass(frozen=True)
class NumaMaps:
    """Where a process's memory lies.

    Attributes:
        bytes_on_node: by node that holds any.
        bytes_by_policy: by memory policy, as "default" or "bind:0".
        num_mappings: how many ranges of addresses there are.
    """

    bytes_on_node: Mapping[int, float]
    bytes_by_policy: Mapping[str, float]
    num_mappings: int


@dataclass(frozen=True)
class Vmstat:
    """Counts since the system (or the node) started, by name; those that numastat knows under its names."""

    counts: Mapping[str, float]


def is_numastat(line: str) -> bool:
    """Whether a first line opens numastat's output."""
    return TITLE.fullmatch(line.strip()) is not None or NODE_HEADER.fullmatch(line.strip()) is not None


def is_numa_maps(line: str) -> bool:
    """Whether a first line is of /proc/<pid>/numa_maps."""
    return MAPPING.fullmatch(line.strip()) is not None


def is_vmstat(line: str) -> bool:
    """Whether a first line is of /proc/vmstat, or of a node's own numastat file in sysfs."""
    return NAME_VALUE.fullmatch(line.strip()) is not None


@dataclass
class _Table:
    """numastat's output as far as it was read; wide tables come in several blocks of nodes."""

    rows: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    nodes: dict[int, None] = field(default_factory=dict)
    header: list[int] = field(default_factory=list)
    has_total: bool = False
    what: str = ""


def read_numastat(text: str) -> NodeTable:
    """The tables that numastat prints: the default one, or those of -p, -m, -n [1].

    Raises:
        ValueError: a line that is none of numastat's or repeats a node or row, naming its number, a total that is not
            the sum of its rows, or no figures.
    """
    table = _Table()
    for number, raw in enumerate(text.splitlines(), start=1):
        try:
            _numastat_line(table, raw.strip())
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    if not any(table.rows.values()):
        raise ValueError("must hold at least one row of figures by node, got none.")
    is_process = table.what == PROCESS_TITLE
    rows = _processes(table.rows) if is_process else table.rows
    return NodeTable({name: dict(values) for name, values in rows.items()}, tuple(sorted(table.nodes)), is_process)


def _processes(rows: Mapping[str, Mapping[int, float]]) -> Mapping[str, Mapping[int, float]]:
    """What processes use: rows by kind of memory, or by process, without the total that repeats them."""
    parts = {name: values for name, values in rows.items() if name != TOTAL}
    rounding_bytes = LAST_DIGIT * MB * (len(parts) + 1)
    for node, total in rows.get(TOTAL, {}).items():
        added = math.fsum(values.get(node, 0.0) for values in parts.values())
        if abs(added - total) > rounding_bytes:
            raise ValueError(
                f"{TOTAL} of node {node} must be its rows' sum, {added / MB:.2f} MB, got {total / MB:.2f}."
            )
    return parts


def _numastat_line(table: _Table, line: str) -> None:
    """Take in one line."""
    title = TITLE.fullmatch(line)
    if title:
        if table.what and table.what != title["what"]:
            raise ValueError(f"must stay a table of {table.what}, got {quoted(line)}.")
        table.what, table.header = title["what"], []
    elif NODE_HEADER.fullmatch(line) or TOTAL_HEADER.fullmatch(line):
        table.header = [int(number) for number in re.findall(r"node ?(\d+)", line, re.IGNORECASE)]
        table.has_total = line.endswith("Total")
        if any(node >= MOST_NODES for node in table.header):
            raise ValueError(f"nodes must be in 0..{MOST_NODES - 1}, got {max(table.header)}.")
        again = [node for place, node in enumerate(table.header) if node in (*table.nodes, *table.header[:place])]
        if again:
            raise ValueError(f"a node must have one column (give one table at a time), got node {again[0]} twice.")
        table.nodes |= dict.fromkeys(table.header)
    elif line and not RULE.fullmatch(line):
        _numastat_row(table, line)


def _numastat_row(table: _Table, line: str) -> None:
    """Take in a row of figures: one for each node of the header, and their total where it has one."""
    words, width = line.split(), len(table.header) + table.has_total
    # A process's name may hold blanks and numbers: the last columns are the figures.
    values = words[-width:] if 0 < width < len(words) else []
    if not values or not all(FIGURE.fullmatch(value) for value in values):
        raise ValueError(f"must be a name and {width or 'some'} figures, as numastat prints them, got {quoted(line)}.")
    name = " ".join(words[:-width])
    if table.what != PROCESS_TITLE and len(words) != width + 1:
        raise ValueError(f"must have {width} figures, one for each node, got {quoted(line)}.")
    name = name if table.what == PROCESS_TITLE else name.lower()
    scale = MB if table.what else 1.0
    for node, value in zip(table.header, values, strict=False):
        figure = float(value)
        if not 0.0 <= figure <= MOST_COUNT:
            raise ValueError(f"{name} must be in 0..2**64, got {quoted(value)}.")
        if node in table.rows[name]:
            raise ValueError(f"a row must come once (give one table at a time), got {quoted(name)} twice.")
        table.rows[name][node] = figure * scale


def read_numa_maps(text: str) -> NumaMaps:
    """The mappings of /proc/<pid>/numa_maps [2].

    Raises:
        ValueError: a line that is none of its, naming its number, or no page at all.
    """
    on_node: dict[int, float] = defaultdict(float)
    by_policy: dict[str, float] = defaultdict(float)
    addresses: set[str] = set()
    for number, raw in enumerate(text.splitlines(), start=1):
        if not raw.strip():
            continue
        match = MAPPING.fullmatch(raw.strip())
        if match is None:
            raise ValueError(
                f"line {number}: must be an address, a policy and pages by node, got {quoted(raw.strip())}."
            )
        if match["address"] in addresses:
            raise ValueError(
                f"line {number}: an address must come once (give one process at a time), got {match['address']} twice."
            )
        addresses.add(match["address"])
        try:
            for node, num_bytes in _bytes_on_nodes(match["items"].split()).items():
                on_node[node] += num_bytes
                by_policy[match["policy"]] += num_bytes
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    if not math.fsum(on_node.values()) > 0.0:
        raise ValueError("must show pages on at least one node (N0=...), got none.")
    return NumaMaps(dict(sorted(on_node.items())), dict(by_policy), len(addresses))


def _bytes_on_nodes(items: list[str]) -> dict[int, float]:
    """Bytes on each node of a mapping, from what follows its policy."""
    for item in items:
        if COUNTED.fullmatch(item) and not (PAGES.fullmatch(item) or PAGE_SIZE.fullmatch(item)):
            raise ValueError(f"pages must be counts by node, as N0=12, and kernelpagesize_kB=4, got {quoted(item)}.")
    numbers = [int(match[1]) for item in items if (match := PAGES.fullmatch(item))]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"a node must have one count of pages, got {quoted(' '.join(items))}.")
    sizes = [float(size[1]) * 1024.0 for item in items if (size := PAGE_SIZE.fullmatch(item))]
    pages = {int(match[1]): float(match[2]) for item in items if (match := PAGES.fullmatch(item))}
    if pages and max(pages) >= MOST_NODES:
        raise ValueError(f"nodes must be in 0..{MOST_NODES - 1}, got {max(pages)}.")
    # mapped counts all pages, and is left out where anon or dirty does; a mapping may name none of them
    said = {match[1]: float(match[2]) for item in items if (match := STATED.fullmatch(item))}
    most = said.get("mapped", max(said.values(), default=math.inf))
    if math.fsum(pages.values()) > most:
        raise ValueError(
            f"pages by node must add up to at most the {most:.0f} of the mapping, got {quoted(' '.join(items))}."
        )
    return {node: count * (sizes[0] if sizes else SMALL_PAGE_BYTES) for node, count in pages.items()}


def read_vmstat(text: str) -> Vmstat:
    """The counts of /proc/vmstat [3], or of /sys/devices/system/node/node*/numastat.

    Raises:
        ValueError: a line that is no name and count, naming its number, or none of NUMA.
    """
    counts: dict[str, float] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        if not raw.strip():
            continue
        match = NAME_VALUE.fullmatch(raw.strip())
        if match is None:
            raise ValueError(f"line {number}: must be a name and a count, got {quoted(raw.strip())}.")
        value = float(match["value"])
        if value > MOST_COUNT:
            raise ValueError(f"line {number}: {match['name']} must be in 0..2**64, got {quoted(match['value'])}.")
        counts[VMSTAT_NAMES.get(match["name"], match["name"])] = value
    if not any(name.startswith("numa_") for name in counts):
        raise ValueError(f"must hold counts of NUMA, as numa_hit, got {_names(counts)}.")
    return Vmstat(counts)


def read_node_list(text: str) -> tuple[int, ...]:
    """Nodes in the notation of numactl: "0-1,3" is 0, 1 and 3.

    Raises:
        ValueError: no such list.
    """
    nodes: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not first <= last < MOST_NODES:
            raise ValueError(f"nodes must be numbers below {MOST_NODES} or ranges, as 0-1,3, got {text!r}.")
        nodes.update(range(first, last + 1))
    return tuple(sorted(nodes))


def _names(names: Iterable[str]) -> str:
    return quoted(", ".join(names))

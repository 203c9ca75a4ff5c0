"""From sampled accesses (thread, address, write) to evidence of false sharing.

References:
    [1] The chapter, section 16.1.3: false sharing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from numa_rl.coherence.samples import HIGHEST_ADDRESS, Samples
from numa_rl.coherence.sharing import SharingReport, find_sharing
from numa_rl.diagnosis.evidence import Evidence
from numa_rl.topology import Topology
from numa_rl.wording import quoted

REQUIRED = ("thread", "address", "write")
NODE = "node"
MOST_LINES = 5  # named in the notes
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]+", re.IGNORECASE)
MOST_DIGITS = 100  # of a cell that is worth converting


def read_samples(text: str) -> Samples:
    """Samples from CSV with a header: the columns thread, address and write, and node where threads have one.

    Addresses are decimal, or hexadecimal with 0x; write is 0 or 1. Without a node column thread numbers are node
    numbers.

    Raises:
        ValueError: a column or cell that breaks a rule, naming its line, a thread on two nodes, or no sample.
    """
    lines = [(number, line.split(",")) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    header = [cell.strip() for cell in lines[0][1]] if lines else []
    if sorted(header) not in (sorted(REQUIRED), sorted((*REQUIRED, NODE))):
        raise ValueError(
            f"samples must have the columns {', '.join(REQUIRED)}, and {NODE} if known, got {quoted(','.join(header))}."
        )
    columns: dict[str, list[int]] = {name: [] for name in header}
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise ValueError(f"line {number}: must have {len(header)} cells between commas, got {len(cells)}.")
        for name, cell in zip(header, cells, strict=True):
            columns[name].append(_number(number, name, cell.strip()))
    if not columns[REQUIRED[0]]:
        raise ValueError("samples must have at least one line under the header, got none.")
    thread, address, write = (columns[name] for name in REQUIRED)
    thread_node = _thread_node(thread, columns[NODE]) if NODE in columns else None
    return Samples(thread, address, write, thread_node)  # type: ignore[arg-type] # converts lists


def _number(line: int, name: str, cell: str) -> int:
    """A cell's number."""
    if not NUMBER.fullmatch(cell):
        raise ValueError(f"line {line}: {name} must be a whole number >= 0, decimal or with 0x, got {quoted(cell)}.")
    most = 1 if name == "write" else HIGHEST_ADDRESS
    number = int(cell, 16 if cell[:2].lower() == "0x" else 10) if len(cell) <= MOST_DIGITS else most + 1
    if number > most:
        raise ValueError(f"line {line}: {name} must be in 0..{most}, got {quoted(cell)}.")
    return number


def _thread_node(threads: Sequence[int], nodes: Sequence[int]) -> dict[int, int]:
    """Node of each thread."""
    node_of: dict[int, int] = {}
    for thread, node in zip(threads, nodes, strict=True):
        if node_of.setdefault(thread, node) != node:
            raise ValueError(f"thread {thread} must stay on one node, got {node_of[thread]} and {node}.")
    return node_of


def sharing_evidence(report: SharingReport, machine: str) -> Evidence:
    """What replaying the samples through the machine's caches says [1].

    Args:
        report: as `numa_rl.coherence.sharing.find_sharing` makes it.
        machine: what the machine is called.
    """
    if report.total_s == 0.0:
        return Evidence(machine=machine)
    how = "replay of the samples through caches that hold everything"
    return Evidence(
        falsely_shared_share=_share(report.false_s, report.total_s),
        truly_shared_share=_share(report.coherence_s - report.false_s, report.total_s),
        falsely_shared_lines=len(report.false_sharing),
        machine=machine,
        provenance={
            "falsely_shared_share": f"{how}: wait for false sharing / wait",
            "truly_shared_share": f"{how}: wait for true sharing / wait",
            "falsely_shared_lines": how,
        },
        notes=tuple(
            f"Line {line.address:#x} is shared falsely by threads {', '.join(map(str, line.threads))}: "
            f"{line.false_share:.0%} of its coherence time."
            for line in report.false_sharing[:MOST_LINES]
        ),
    )


def _share(part_s: float, total_s: float) -> float:
    """A part of the time, which rounding may put a little outside of it."""
    return min(max(part_s / total_s, 0.0), 1.0)


def samples_evidence(text: str, topology: Topology) -> Evidence:
    """Evidence of false sharing in the text of a file of samples.

    Raises:
        ValueError: the text breaks a rule of `read_samples`, or a thread runs on a node that the machine lacks.
    """
    return sharing_evidence(find_sharing(read_samples(text), topology.latency_s), topology.name)

"""Telling the inputs apart by what they hold, and taking evidence from any of them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from numa_rl.diagnosis.counters import perf_evidence
from numa_rl.diagnosis.evidence import Evidence
from numa_rl.diagnosis.memory_maps import numa_maps_evidence, numastat_evidence, vmstat_evidence
from numa_rl.diagnosis.numa_text import (
    is_numa_maps,
    is_numastat,
    is_vmstat,
    read_numa_maps,
    read_numastat,
    read_vmstat,
)
from numa_rl.diagnosis.perf_stat import is_comment, read_perf_stat, separator_of
from numa_rl.topology import Topology
from numa_rl.wording import quoted

MOST_BYTES = 64 * 2**20  # of a file: a day of perf in intervals of a second takes a few MiB
MOST_LINE_CHARACTERS = 2**16  # a table of a thousand nodes takes a quarter of it


class Kind(Enum):
    """What a text is."""

    PERF_STAT = "perf stat -x"
    NUMASTAT = "numastat"
    NUMA_MAPS = "/proc/<pid>/numa_maps"
    VMSTAT = "/proc/vmstat"


def decode(content: bytes) -> str:
    """The text of a file.

    Raises:
        ValueError: empty, too large, binary, not UTF-8, or with a line too long to be from any of the tools.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"must be at most {MOST_BYTES} bytes, got more.")
    if b"\0" in content:
        raise ValueError("must be text, got a NUL byte.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"must be UTF-8 text, got {error.reason} at byte {error.start}.") from None
    if not text.strip():
        raise ValueError("must not be empty, got no text.")
    longest = max(map(len, text.splitlines()))
    if longest > MOST_LINE_CHARACTERS:
        raise ValueError(f"lines must have at most {MOST_LINE_CHARACTERS} characters, got {longest}.")
    return text


def kind_of(text: str, separator: str | None = None) -> Kind:
    """What a text is, by its first line that says something.

    Args:
        text: as decoded.
        separator: of perf's fields, where it is none of the usual.

    Raises:
        ValueError: it is none of the kinds.
    """
    first = next((line for line in text.splitlines() if not is_comment(line)), "")
    if is_numa_maps(first):
        return Kind.NUMA_MAPS
    if is_numastat(first):
        return Kind.NUMASTAT
    if is_vmstat(first):
        return Kind.VMSTAT
    if separator is not None or separator_of(first):
        return Kind.PERF_STAT
    raise ValueError(
        f"must be what one of these prints: {', '.join(kind.value for kind in Kind)} (of perf, the form for machines: "
        f"-x,); got {quoted(first)}."
    )


def evidence_of(
    text: str,
    topology: Topology | None = None,
    *,
    seconds: float | None = None,
    thread_nodes: Sequence[int] = (),
    separator: str | None = None,
    ignore_unknown: bool = False,
) -> Evidence:
    """The evidence in a text of any kind.

    Args:
        text: as decoded.
        topology: the machine it is of; None where unknown.
        seconds: how long it was counted; None to take it from the text.
        thread_nodes: nodes that the process's threads run on; empty where unknown.
        separator: of perf's fields; None to find it.
        ignore_unknown: whether to pass over counters that are unknown.

    Raises:
        ValueError: no known kind, a line that breaks its format, or an argument out of range.
    """
    kind = kind_of(text, separator)
    if kind is Kind.NUMA_MAPS:
        return numa_maps_evidence(read_numa_maps(text), topology, thread_nodes)
    if kind is Kind.NUMASTAT:
        return numastat_evidence(read_numastat(text), topology, thread_nodes)
    if kind is Kind.VMSTAT:
        return vmstat_evidence(read_vmstat(text), topology, seconds)
    return perf_evidence(read_perf_stat(text, separator), topology, seconds, ignore_unknown=ignore_unknown)

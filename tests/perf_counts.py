"""Counts as `perf stat -x` prints them, and what they are evidence of."""

from __future__ import annotations

from collections.abc import Mapping

from numa_rl.diagnosis.counters import perf_evidence
from numa_rl.diagnosis.evidence import Evidence
from numa_rl.diagnosis.perf_stat import read_perf_stat
from numa_rl.machines.catalog import load_machine

XEON = load_machine("xeon-8269cy")  # two sockets, 113.1 and 113.2 GB/s of memory, 50.9 GB/s each way between them


def line(value: object, event: str, unit: str = "", group: str = "", running: float = 100.0) -> str:
    """A line as perf 6 prints it."""
    where = f"{group},1," if group else ""
    return f"{where}{value},{unit},{event},1000000000,{running:.2f},,"


def text(*lines: str) -> str:
    """A file as `perf stat -o` writes it."""
    return "\n".join(["# started on Sun Nov 22 15:37:10 2026", "", *lines, ""])


def evidence(counts: Mapping[str, object], machine: bool = False, **options: object) -> Evidence:
    """The evidence of plain counts."""
    lines = [line(value, event) for event, value in counts.items()]
    return perf_evidence(read_perf_stat(text(*lines)), XEON if machine else None, **options)

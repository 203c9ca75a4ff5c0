"""One row of the case study's table: a configuration, how it fared, and what the chapter prints of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from experiments.studies.printed import Printed
from experiments.studies.timing import Figures
from numa_rl.metrics import parallel_efficiency


class Kind(StrEnum):
    """Who decided."""

    STEP = "step"  # one of the chapter's configurations
    RULE = "rule"
    PLANNER = "planner"
    LEARNED = "learned"


@dataclass(frozen=True)
class Row:
    """A configuration.

    Attributes:
        name: what it is called.
        kind: who decided.
        figures: what was measured.
        gain: throughput over that of the initial configuration.
        efficiency: E = T_1 / (N T_N), T_1 being the same work on one socket with everything local.
        latency_change: mean latency over the initial configuration's, minus 1.
        printed: the chapter's figures, where it has any.
    """

    name: str
    kind: Kind
    figures: Figures
    gain: float
    efficiency: float
    latency_change: float
    printed: Printed | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        ratios = {"gain": self.gain, "efficiency": self.efficiency, "latency_change": self.latency_change}
        printed = None if self.printed is None else self.printed.to_dict()
        return {"name": self.name, "kind": self.kind.value, **ratios, **self.figures.to_dict(), "chapter": printed}


class Rows:
    """Makes rows that are compared with the same start and the same single socket.

    Args:
        initial: the first configuration's figures.
        one_socket_s: time of a training step on one socket.
        num_sockets: of the machine.
    """

    def __init__(self, initial: Figures, one_socket_s: float, num_sockets: int) -> None:
        """Begin without rows."""
        self._initial = initial
        self._one_socket_s = one_socket_s
        self._num_sockets = num_sockets
        self.made: list[Row] = []

    def add(self, name: str, kind: Kind, figures: Figures, printed: Printed | None = None) -> Row:
        """Make a row and keep it."""
        self.made.append(
            Row(
                name,
                kind,
                figures,
                gain=self._initial.step_s / figures.step_s,
                efficiency=float(parallel_efficiency(self._one_socket_s, figures.step_s, self._num_sockets)),
                latency_change=figures.latency_s / self._initial.latency_s - 1.0,
                printed=printed,
            )
        )
        return self.made[-1]


def best(rows: Sequence[Row], kinds: Sequence[Kind]) -> Row | None:
    """The row with the highest throughput among these kinds that dropped no task."""
    fit = [row for row in rows if row.kind in kinds and not row.figures.dropped]
    return max(fit, key=lambda row: row.gain, default=None)

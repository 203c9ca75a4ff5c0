"""What is measured of a machine, in which order, and what counts of the repeats.

Of an idle figure the best repeat counts, the least latency or the most bytes a second: others on the machine, and the
system itself, only ever make a repeat worse [2]. Under load there is no best, and the median counts.

Dimension key: N nodes, R repeats, K points of the loaded-latency curve.

References:
    [1] Intel Memory Latency Checker: idle latency and bandwidth between nodes, latency under load.
    [2] J. D. McCalpin, STREAM: the best of several passes counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from numa_rl.calibration.binding import RefusedError
from numa_rl.topology import FloatArray
from numa_rl.wording import counted

# Pauses of the streams of a curve, in steps of a generator: from nearly none reading to as fast as they can.
CURVE_SPINS = (4096, 1024, 512, 256, 128, 64, 32, 16, 8, 0)

CURVE_CORES = 3  # one that waits, and two that read: whether these fill the memory can be told only of several

Tell = Callable[[str], None]


class Instrument(Protocol):
    """Measures one figure at a time of nodes numbered from 0; `LinuxInstrument` measures this machine."""

    @property
    def cores(self) -> tuple[int, ...]:
        """How many cores of each node it uses, length N."""

    def chase_s(self, initiator: int, target: int) -> FloatArray:
        """Seconds a dependent load from one node's core to another's memory takes, shape (R,)."""

    def stream_bytes_per_s(self, initiator: int, target: int, cores: int) -> FloatArray:
        """What so many cores of one node read of another's memory together, shape (R,)."""

    def loaded(self, node: int, spins: int | None) -> tuple[FloatArray, FloatArray]:
        """Seconds a dependent load takes beside streams with such pauses, and bytes/s of them all, shape (R,) each."""

    def flops_per_s(self, node: int) -> FloatArray:
        """What one core computes a second, shape (R,)."""

    def move_s(self, source: int, target: int) -> FloatArray:
        """Seconds to move a page between two nodes, copying it included, shape (R,)."""


@dataclass(frozen=True, eq=False)
class Measurements:
    """What was measured; NaN where it could not be, and in the rows of nodes without cores.

    Attributes:
        latency_s: idle latency of every pair, shape (N, N).
        bandwidth_bytes_per_s: what all cores of a node read of a node's memory, shape (N, N).
        core_bytes_per_s: what one core of a node reads of its own memory, shape (N,).
        flops_per_s: of one core of each node, shape (N,).
        curve_node: the node whose loaded-latency curve was measured.
        half_bytes_per_s: what half of its cores read of its own memory; NaN without a curve.
        curve_s: latency at each point of it, shape (K,); no point where no node has `CURVE_CORES`.
        curve_bytes_per_s: what all of the node's cores read there, shape (K,).
        page_s: to move a page from one node to the next, copying it included; NaN without two nodes.
        spread: by figure, by how much the median repeat missed the best, on the median and on the worst pair.
        remarks: what could not be measured, and why.
    """

    latency_s: FloatArray
    bandwidth_bytes_per_s: FloatArray
    core_bytes_per_s: FloatArray
    flops_per_s: FloatArray
    curve_node: int
    half_bytes_per_s: float
    curve_s: FloatArray
    curve_bytes_per_s: FloatArray
    page_s: float
    spread: dict[str, tuple[float, float]]
    remarks: tuple[str, ...]


def windows_a_repeat(cores: tuple[int, ...]) -> int:
    """How many figures `measure` measures, each point of the curve for one.

    Args:
        cores: of each node, length N.
    """
    asking = sum(count > 0 for count in cores)
    curve = len(CURVE_SPINS) + 2 if max(cores) >= CURVE_CORES else 0
    return 2 * asking * len(cores) + 2 * asking + curve


def measure(instrument: Instrument, tell: Tell) -> Measurements:
    """Measure a machine, one figure after the other.

    Args:
        instrument: what measures.
        tell: is told what comes next.

    Raises:
        ValueError: no memory could be placed anywhere, or pages are not where they were placed.
        OSError: the system has no such processor or memory any more.
    """
    return _Run(instrument, tell).measurements()


class _Run:
    """One run of an instrument over a machine."""

    def __init__(self, instrument: Instrument, tell: Tell) -> None:
        self.instrument = instrument
        self.tell = tell
        self.cores = instrument.cores
        self.asking = [node for node, count in enumerate(self.cores) if count > 0]
        self.spreads: dict[str, list[float]] = {}
        self.remarks: list[str] = []

    def measurements(self) -> Measurements:
        """All of them."""
        n = len(self.cores)
        latency, bandwidth, of_core = np.full((n, n), np.nan), np.full((n, n), np.nan), np.full(n, np.nan)
        for target in range(n):
            self.tell(f"latency and bandwidth of node {target}'s memory")
            try:
                self.memory(target, latency, bandwidth, of_core)
            except RefusedError as error:
                self.remarks.append(f"memory of node {target} was not measured, for {error}")
        if np.isnan(latency).all():
            raise ValueError(f"at least one node's memory must be measured, got none: {self.remarks[0]}.")
        self.tell("arithmetic of one core of each node")
        flops = np.full(n, np.nan)
        for node in self.asking:
            flops[node] = self.most("flops_per_s", self.instrument.flops_per_s(node))
        node = max(self.asking, key=lambda node: (not np.isnan(of_core[node]), self.cores[node]))
        has_curve = self.cores[node] >= CURVE_CORES and not np.isnan(of_core[node])
        half_bytes_per_s, curve = self.curve(node) if has_curve else (np.nan, np.empty((0, 2)))
        return Measurements(
            latency_s=latency,
            bandwidth_bytes_per_s=bandwidth,
            core_bytes_per_s=of_core,
            flops_per_s=flops,
            curve_node=node,
            half_bytes_per_s=half_bytes_per_s,
            curve_s=curve[:, 0],
            curve_bytes_per_s=curve[:, 1],
            page_s=self.page_s(),
            spread={figure: (float(np.median(each)), max(each)) for figure, each in self.spreads.items()},
            remarks=tuple(self.remarks),
        )

    def memory(self, target: int, latency: FloatArray, bandwidth: FloatArray, of_core: FloatArray) -> None:
        """Fill in what every node with cores sees of one node's memory."""
        for initiator in self.asking:
            latency[initiator, target] = self.least("latency_s", self.instrument.chase_s(initiator, target))
        for initiator in self.asking:
            read = self.instrument.stream_bytes_per_s(initiator, target, self.cores[initiator])
            bandwidth[initiator, target] = self.most("bandwidth_bytes_per_s", read)
        if self.cores[target] > 0:
            alone = self.instrument.stream_bytes_per_s(target, target, 1)
            of_core[target] = self.most("outstanding_bytes", alone)

    def curve(self, node: int) -> tuple[float, FloatArray]:
        """What half of a node's cores read, and the points of its curve, shape (K, 2)."""
        self.tell(f"latency under load on node {node}")
        half = self.most("half_bytes_per_s", self.instrument.stream_bytes_per_s(node, node, self.cores[node] // 2))
        points = [np.median(self.instrument.loaded(node, spins), axis=1) for spins in (None, *CURVE_SPINS)]
        return half, np.array(points)

    def page_s(self) -> float:
        """To move a page from a node to the next, on average."""
        n = len(self.cores)
        if n < 2:
            return float("nan")
        self.tell("moving pages from node to node")
        try:
            moves = [self.least("page_move_s", self.instrument.move_s(node, (node + 1) % n)) for node in range(n)]
        except RefusedError as error:
            self.remarks.append(f"moving pages was not measured, for {error}")
            return float("nan")
        return float(np.mean(moves))

    def least(self, figure: str, repeats: FloatArray) -> float:
        """The least of the repeats."""
        return self._best(figure, repeats, float(repeats.min()))

    def most(self, figure: str, repeats: FloatArray) -> float:
        """The most of the repeats."""
        return self._best(figure, repeats, float(repeats.max()))

    def _best(self, figure: str, repeats: FloatArray, best: float) -> float:
        if not ((np.isfinite(repeats) & (repeats >= 0.0)).all() and best > 0.0):
            rule = "finite and >= 0, and the best > 0"  # streams kept waiting for a whole window read nothing in it
            raise ValueError(f"every repeat of {figure} must be {rule}, got {repeats.tolist()}.")
        self.spreads.setdefault(figure, []).append(abs(float(np.median(repeats)) / best - 1.0))
        return best


def repeats_text(figure: str, measurements: Measurements, repeats: int, best: str) -> str:
    """What a source says of the repeats: which counts, and how far apart they were."""
    typical, worst = measurements.spread[figure]
    among = f", {worst:.1%} where it is widest" if worst > typical else ""
    return f"{best} of {counted(repeats, 'repeat')}, half of which lie within {typical:.1%} of it{among}"

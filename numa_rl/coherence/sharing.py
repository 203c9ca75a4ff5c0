"""False sharing: lines that nodes take from each other though they touch different bytes, and what to do about them.

Dimension key: A accesses, L lines, N nodes.

References:
    [1] The chapter, section 16.1.3: false sharing, padding, batching and read-only replication.
    [2] J. Torrellas, M. S. Lam and J. L. Hennessy, "False sharing and spatial locality in multiprocessor caches",
        IEEE Transactions on Computers 43(6), 1994.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from numa_rl.coherence.caches import checked_latency_s
from numa_rl.coherence.protocol import TransitionCosts
from numa_rl.coherence.remedies import batched, padded, replicated, several
from numa_rl.coherence.replay import Kind, PatternCost, by_line, replay
from numa_rl.coherence.samples import Samples, Trace, trace_of

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

PADDING = "padding"
BATCHING = "batching"
REPLICATION = "replication"


@dataclass(frozen=True)
class Remedy:
    """What one remedy does, measured by replaying the remedied accesses.

    Attributes:
        name: "padding", "batching" or "replication", as in `remedies.py`.
        before_s: seconds waited without it.
        after_s: seconds waited with it.
    """

    name: str
    before_s: float
    after_s: float

    @property
    def saved_s(self) -> float:
        """Seconds saved; negative where the remedy harms."""
        return self.before_s - self.after_s

    @property
    def helps(self) -> bool:
        """Whether it saves anything."""
        return self.after_s < self.before_s


@dataclass(frozen=True)
class SharedLine:
    """A cache line that several nodes touch.

    Attributes:
        address: its first byte.
        offsets: where each thread touches it: first byte of its accesses, counted from the line's first byte.
        accesses: to the line.
        write_share: share of them that write.
        invalidations: copies lost to another node's write.
        transfers: times that another cache answered with the data.
        cost_s: seconds waited for it, all accesses together.
        coherence_s: the part of `cost_s` in which a node got the line, or the right to write it, *again*.
        false_share: share of `coherence_s` in which no other node had touched the bytes in question [2].
        remedies: that may be applied, the one that saves most first.
    """

    address: int
    offsets: Mapping[int, tuple[int, ...]]
    accesses: int
    write_share: float
    invalidations: int
    transfers: int
    cost_s: float
    coherence_s: float
    false_share: float
    remedies: tuple[Remedy, ...]

    @property
    def threads(self) -> tuple[int, ...]:
        """Who touches it."""
        return tuple(self.offsets)

    @property
    def sharing(self) -> str:
        """One of "false", "true", "mixed", or "none" for a line that no node ever had to get again."""
        if self.coherence_s == 0.0:
            return "none"
        return "false" if self.false_share == 1.0 else "true" if self.false_share == 0.0 else "mixed"


@dataclass(frozen=True)
class SharingReport:
    """What sharing costs, and what it need not.

    Attributes:
        total_s: seconds waited, all accesses to all lines together.
        coherence_s: the part of it that getting lines again takes.
        false_s: the part of that which is false sharing.
        num_shared: lines that several nodes touch.
        lines: the costliest of them, costliest first.
        savings: for each remedy, seconds before and after on those lines where it helps.
    """

    total_s: float
    coherence_s: float
    false_s: float
    num_shared: int
    lines: tuple[SharedLine, ...]
    savings: tuple[Remedy, ...]

    @property
    def false_sharing(self) -> tuple[SharedLine, ...]:
        """The lines among `lines` that are shared falsely, wholly or in part."""
        return tuple(line for line in self.lines if line.false_share > 0.0)


def find_sharing(
    samples: Samples,
    latency_s: npt.ArrayLike,
    costs: TransitionCosts | None = None,
    updates_per_write: int = 16,
    most_write_share: float = 0.01,
    most_lines: int = 100,
) -> SharingReport:
    """Find the lines that nodes share, tell false sharing from true, and measure what each remedy saves.

    A remedy is measured where it may make sense: padding on lines with false sharing, batching on lines that some
    node had to get again, replication on lines written by at most `most_write_share` of their accesses.

    Caches hold everything here, so a line that is only read is fetched once by each node, and replication saves no
    more than the way to another node's memory. With caches that are too small, it saves that each time.

    Args:
        samples: who touched what, in order of time.
        latency_s: idle latency between nodes, row = initiator, shape (N, N).
        costs: what transitions cost; by default those measured on a Xeon Platinum 8269CY.
        updates_per_write: k of batching: updates that a thread adds up by itself before it writes once.
        most_write_share: share of writes up to which a line may be replicated.
        most_lines: lines to describe one by one.

    Raises:
        ValueError: an option is outside its range, the matrix is no latency matrix, or a thread has no node.
    """
    _check_options(updates_per_write, most_write_share, most_lines)
    latency = checked_latency_s(latency_s)
    trace = trace_of(samples, len(latency))
    result = replay(trace, latency, costs)
    cost = by_line(trace, result)
    line = np.searchsorted(cost.address, trace.line * trace.line_bytes)
    count = len(cost.address)
    shared = several(line, trace.node)
    write_share = np.bincount(line, weights=trace.write, minlength=count) / cost.accesses
    cost_s = _sums(line, result.cost_s, count)
    coherence_s = cost.seconds[:, Kind.TRUE] + cost.seconds[:, Kind.FALSE]

    allowed = {
        PADDING: cost.seconds[:, Kind.FALSE] > 0.0,
        BATCHING: coherence_s > 0.0,
        REPLICATION: shared & (write_share <= most_write_share),
    }
    after_s = {name: np.full(count, np.nan) for name in allowed}
    for name, where in allowed.items():
        rows = np.flatnonzero(where[line])
        part, origin = _remedied(name, trace.select(rows), updates_per_write)
        waited = _sums(line[rows][origin], replay(part, latency, costs).cost_s, count)
        after_s[name][where] = waited[where]

    return SharingReport(
        total_s=cost.total_s,
        coherence_s=float(coherence_s.sum()),
        false_s=float(cost.seconds[:, Kind.FALSE].sum()),
        num_shared=int(shared.sum()),
        lines=_describe(trace, line, cost, shared, cost_s, after_s, most_lines),
        savings=tuple(_saving(name, cost_s, after) for name, after in after_s.items()),
    )


def _check_options(updates_per_write: int, most_write_share: float, most_lines: int) -> None:
    for name, value in (("updates_per_write", updates_per_write), ("most_lines", most_lines)):
        if not (isinstance(value, int | np.integer) and value >= 1):
            raise ValueError(f"{name} must be an integer >= 1, got {value}.")
    if not 0.0 <= most_write_share <= 1.0:
        raise ValueError(f"most_write_share must be in 0..1, got {most_write_share}.")


def _sums(group: IntArray, values: FloatArray, count: int) -> FloatArray:
    """Sum of each group, shape (count,), added up in order of time: what no remedy changes sums to the same bits."""
    sums = np.zeros(count)
    np.add.at(sums, group, values)
    return sums


def _remedied(name: str, trace: Trace, updates_per_write: int) -> tuple[Trace, IntArray]:
    """The remedied trace, and the access of the old one that each of its accesses stands for."""
    if name == REPLICATION:
        return replicated(trace)
    same = np.arange(len(trace))
    return (padded(trace) if name == PADDING else batched(trace, updates_per_write)), same


def _saving(name: str, before_s: FloatArray, after_s: FloatArray) -> Remedy:
    """A remedy applied to the lines where it helps; NaN in `after_s` marks those where it may not be applied."""
    helped = after_s < before_s
    return Remedy(name, float(before_s[helped].sum()), float(after_s[helped].sum()))


def _describe(
    trace: Trace,
    line: IntArray,
    cost: PatternCost,
    shared: BoolArray,
    cost_s: FloatArray,
    after_s: Mapping[str, FloatArray],
    most_lines: int,
) -> tuple[SharedLine, ...]:
    """The costliest shared lines, costliest first; of equal cost, the lowest address."""
    candidates = np.flatnonzero(shared)
    chosen = candidates[np.argsort(-cost_s[candidates], kind="stable")][:most_lines]
    order = np.argsort(line, kind="stable")
    first = np.searchsorted(line[order], chosen)
    described = []
    for i, start in zip(chosen, first, strict=True):
        rows = order[start : start + cost.accesses[i]]
        thread, offset = trace.thread[rows], trace.start[rows] - cost.address[i]
        false_s, true_s = cost.seconds[i, Kind.FALSE], cost.seconds[i, Kind.TRUE]
        coherence_s = float(false_s + true_s)
        remedies = [Remedy(name, float(cost_s[i]), float(after[i])) for name, after in after_s.items()]
        described.append(
            SharedLine(
                address=int(cost.address[i]),
                offsets={int(t): tuple(np.unique(offset[thread == t]).tolist()) for t in np.unique(thread)},
                accesses=int(cost.accesses[i]),
                write_share=float(trace.write[rows].mean()),
                invalidations=int(cost.invalidations[i]),
                transfers=int(cost.transfers[i]),
                cost_s=float(cost_s[i]),
                coherence_s=coherence_s,
                false_share=float(false_s) / coherence_s if coherence_s > 0.0 else 0.0,
                remedies=tuple(sorted((r for r in remedies if r.after_s >= 0.0), key=lambda r: r.after_s)),
            )
        )
    return tuple(described)

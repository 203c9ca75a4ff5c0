"""What an access pattern costs: samples of (thread, address, write) replayed through the nodes' caches.

Accesses are replayed in the order given. Caches are per node and without limit (`caches.py`): what two threads of
one node do to each other's private caches is not seen.

Dimension key: A accesses, L lines, N nodes.

References:
    [1] The chapter, section 16.1.3.
    [2] J. Torrellas, M. S. Lam and J. L. Hennessy, "False sharing and spatial locality in multiprocessor caches",
        IEEE Transactions on Computers 43(6), 1994.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import partial

import numpy as np
import numpy.typing as npt

from numa_rl.coherence import caches
from numa_rl.coherence.caches import access_line, checked_latency_s
from numa_rl.coherence.protocol import LineState, TransitionCosts
from numa_rl.coherence.samples import Samples, Trace, trace_of
from numa_rl.compilation import compiled

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
MaskArray = npt.NDArray[np.uint64]

INVALID = int(LineState.I)
MODIFIED = int(LineState.M)
EXCLUSIVE = int(LineState.E)


class Kind(IntEnum):
    """Why an access waited, or that it did not.

    Attributes:
        HIT: the node had the right to do it.
        COLD: the node's first access to the line.
        TRUE: the node had to get the line, or the right to write it, again, and another node did touch the bytes in
            question meanwhile (for a read: wrote them).
        FALSE: the same, but no other node touched these bytes meanwhile: they only share a line [2].
    """

    HIT = 0
    COLD = 1
    TRUE = 2
    FALSE = 3


HIT, COLD, TRUE, FALSE = map(int, Kind)


@dataclass(frozen=True, eq=False)
class Replay:
    """What happened to each access of a trace.

    Attributes:
        cost_s: seconds it waited, shape (A,).
        kind: why, a `Kind`, shape (A,).
        invalidated: copies that other nodes lost, shape (A,).
        transferred: whether another cache answered with the data, shape (A,).
        transitions: how many caches went from state [row] to state [column], shape (5, 5).
    """

    cost_s: FloatArray
    kind: npt.NDArray[np.int8]
    invalidated: IntArray
    transferred: BoolArray
    transitions: IntArray

    def seconds(self, kind: Kind) -> float:
        """Seconds waited for one reason, all accesses together."""
        return float(self.cost_s[self.kind == kind].sum())


def replay(trace: Trace, latency_s: npt.ArrayLike, costs: TransitionCosts | None = None) -> Replay:
    """Send accesses through caches that are empty at first.

    Lines do not touch each other, so they are replayed one after the other: sorting them first keeps every state
    that is in use in the processor's own cache.

    Args:
        trace: accesses in order of time.
        latency_s: idle latency between nodes, row = initiator, shape (N, N).
        costs: what transitions cost; by default those measured on a Xeon Platinum 8269CY.

    Raises:
        ValueError: the matrix is not square, or a latency is negative or not finite.
    """
    latency = checked_latency_s(latency_s)
    ratio = (TransitionCosts() if costs is None else costs).ratio
    count, nodes = len(trace), len(latency)
    result = Replay(
        cost_s=np.zeros(count),
        kind=np.zeros(count, dtype=np.int8),
        invalidated=np.zeros(count, dtype=np.int64),
        transferred=np.zeros(count, dtype=np.bool_),
        transitions=np.zeros(ratio.shape, dtype=np.int64),
    )
    _replay(
        np.argsort(trace.line, kind="stable"),
        trace.line,
        trace.node,
        trace.write,
        trace.home,
        trace.masks(),
        ratio,
        latency,
        np.zeros(nodes, dtype=np.int8),
        np.zeros((2, nodes), dtype=np.uint64),
        np.zeros(nodes, dtype=np.bool_),
        result.cost_s,
        result.kind,
        result.invalidated,
        result.transferred,
        result.transitions,
    )
    return result


@partial(compiled, sources=(caches.__file__,))
def _replay(
    order: IntArray,
    line: IntArray,
    node: IntArray,
    write: BoolArray,
    home: IntArray,
    mask: MaskArray,
    ratio: FloatArray,
    latency_s: FloatArray,
    states: npt.NDArray[np.int8],
    others: MaskArray,
    seen: BoolArray,
    cost_s: FloatArray,
    kind: npt.NDArray[np.int8],
    invalidated: IntArray,
    transferred: BoolArray,
    transitions: IntArray,
) -> None:
    """Replay accesses in `order`, line after line.

    `states`, `others` and `seen` are scratch for one line: the state in each cache; the bytes that other nodes
    wrote since the node last had a valid copy (row 0), or touched since it last was the only one (row 1); and
    whether the node has touched the line at all.
    """
    for i in range(len(order)):
        a = order[i]
        if i == 0 or line[a] != line[order[i - 1]]:
            states[:] = INVALID
            others[:] = 0
            seen[:] = False
        n = node[a]
        before = states[n]
        cost_s[a], invalidated[a], transferred[a] = access_line(
            states, n, write[a], home[a], ratio, latency_s, transitions
        )
        if before == states[n] or before == EXCLUSIVE:
            kind[a] = HIT
        elif not seen[n]:
            kind[a] = COLD
        elif others[int(write[a]), n] & mask[a]:
            kind[a] = TRUE
        else:
            kind[a] = FALSE
        seen[n] = True
        for other in range(len(states)):
            if other != n:
                others[1, other] |= mask[a]
                if write[a]:
                    others[0, other] |= mask[a]
        others[0, n] = 0
        if states[n] == MODIFIED or states[n] == EXCLUSIVE:
            others[1, n] = 0


@dataclass(frozen=True, eq=False)
class PatternCost:
    """What an access pattern costs, line by line, in order of address.

    Attributes:
        address: first byte of each line, shape (L,).
        accesses: of each line, shape (L,).
        invalidations: copies lost to another node's write, shape (L,).
        transfers: times that another cache answered with the data, shape (L,).
        seconds: waited, by line and `Kind`, shape (L, 4).
        transitions: how many caches went from state [row] to state [column], all lines, shape (5, 5).
    """

    address: IntArray
    accesses: IntArray
    invalidations: IntArray
    transfers: IntArray
    seconds: FloatArray
    transitions: IntArray

    @property
    def total_s(self) -> float:
        """Seconds waited, all accesses together."""
        return float(self.seconds.sum())


def access_cost(samples: Samples, latency_s: npt.ArrayLike, costs: TransitionCosts | None = None) -> PatternCost:
    """What an access pattern costs, by line and by reason.

    Args:
        samples: who touched what, in order of time.
        latency_s: idle latency between nodes, row = initiator, shape (N, N).
        costs: what transitions cost; by default those measured on a Xeon Platinum 8269CY.

    Raises:
        ValueError: the matrix is no latency matrix, or a thread has no node or one the machine does not have.
    """
    latency = checked_latency_s(latency_s)
    trace = trace_of(samples, len(latency))
    return by_line(trace, replay(trace, latency, costs))


def by_line(trace: Trace, result: Replay) -> PatternCost:
    """Add up a replay over the accesses of each line."""
    line, index = np.unique(trace.line, return_inverse=True)
    count = len(line)
    seconds = np.zeros((count, len(Kind)))
    np.add.at(seconds, (index, result.kind), result.cost_s)
    return PatternCost(
        address=line * trace.line_bytes,
        accesses=np.bincount(index, minlength=count),
        invalidations=np.bincount(index, weights=result.invalidated, minlength=count).astype(np.int64),
        transfers=np.bincount(index[result.transferred], minlength=count),
        seconds=seconds,
        transitions=result.transitions,
    )

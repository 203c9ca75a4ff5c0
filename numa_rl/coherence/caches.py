"""MESIF at work: what a read, a write or an eviction by one node's cache does to a line's states, and its time.

One cache stands for each node, without a limit of size: lines leave only when they are evicted or invalidated.

Dimension key: N nodes, L lines.

References:
    [1] The chapter, section 16.1.3.
    [2] J. R. Goodman and H. H. J. Hum, "MESIF: a two-hop cache coherency protocol for point-to-point
        interconnects", University of Auckland, 2009.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from numa_rl.coherence.protocol import LineState, TransitionCosts
from numa_rl.compilation import compiled

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
StateArray = npt.NDArray[np.int8]

M, E, S, I, F = map(int, LineState)  # noqa: E741 (numba wants plain numbers)


class Access(NamedTuple):
    """What one access or eviction did.

    Attributes:
        cost_s: seconds that the access waits for; an eviction is a posted write and waits for nothing.
        invalidated: copies that other nodes lost.
        transferred: whether another cache answered with the line's data.
        transitions: how many caches went from state [row] to state [column], shape (5, 5); the diagonal counts hits.
    """

    cost_s: float
    invalidated: int
    transferred: bool
    transitions: IntArray


@compiled
def access_line(
    states: StateArray,
    node: int,
    write: bool,
    home: int,
    ratio: FloatArray,
    latency_s: FloatArray,
    transitions: IntArray,
) -> tuple[float, int, bool]:
    """Let a node read or write a line.

    - A hit is answered by the node's own cache: at the cost of staying in a state, or of a silent E -> M.
    - A read miss is answered by the holder in M, E or F, which goes to S; the newest reader forwards from now on [2].
      Where nobody holds the line it enters E; where only copies in S are left memory answers, and it enters F.
    - A write takes the line away from all others, whose answers are waited for side by side, so the slowest counts.
      Data comes from the holder in M, E or F, else from memory, unless the writer has a copy already. A writer
      whose copy is the last one, though it does not know that, asks the line's home.
    - What memory answers costs as I -> E does, whatever state the line enters.

    Args:
        states: the line's state in every node's cache, shape (N,); changed in place.
        node: who reads or writes.
        write: whether it writes.
        home: node whose memory has the line.
        ratio: as in `TransitionCosts`, shape (5, 5).
        latency_s: idle latency between nodes, shape (N, N).
        transitions: counts to add to, shape (5, 5).

    Returns:
        The first three attributes of `Access`.
    """
    before = states[node]
    if before in (M, E) or (before != I and not write):
        after = M if write else before
        states[node] = after
        transitions[before, after] += 1
        return ratio[before, after] * latency_s[node, node], 0, False

    cost_s = 0.0
    dropped = 0
    shared = False
    transferred = False
    for other in range(len(states)):
        held = states[other]
        if other == node or held == I:
            continue
        shared = True
        answers = before == I and held != S
        transferred |= answers
        if write:
            states[other] = I
            transitions[held, I] += 1
            dropped += 1
            cost_s = max(cost_s, (ratio[before, M] + ratio[held, I]) * latency_s[node, other])
        elif answers:
            states[other] = S
            transitions[held, S] += 1
            cost_s = (ratio[I, F] + ratio[held, S]) * latency_s[node, other]

    if before == I and not transferred:
        cost_s = max(cost_s, ratio[I, E] * latency_s[node, home])
    elif not shared:
        cost_s = ratio[before, M] * latency_s[node, home]
    after = M if write else (F if shared else E)
    states[node] = after
    transitions[before, after] += 1
    return cost_s, dropped, transferred


def checked_latency_s(latency_s: npt.ArrayLike) -> FloatArray:
    """The latency matrix as floats, shape (N, N); raises ValueError unless it is square, finite and not negative."""
    latency = np.ascontiguousarray(latency_s, dtype=np.float64)
    if latency.ndim != 2 or latency.shape[0] != latency.shape[1] or latency.shape[0] == 0:
        raise ValueError(f"latency_s must be a square matrix with a row for each node, got shape {latency.shape}.")
    wrong = ~(np.isfinite(latency) & (latency >= 0.0))
    if wrong.any():
        raise ValueError(f"latency_s must be finite and >= 0, got {latency[wrong][0]}.")
    return latency


def checked_integers(name: str, values: npt.ArrayLike, least: int, most: int) -> IntArray:
    """A one-dimensional array of integers in least..most; raises ValueError naming the first that is not."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.size > 0 and array.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be one row of integers, got {array.dtype} of shape {array.shape}.")
    wrong = (array < least) | (array > most)
    if wrong.any():
        raise ValueError(f"{name} must be in {least}..{most}, got {array[wrong][0]}.")
    return np.ascontiguousarray(array, dtype=np.int64)


class Caches:
    """The caches of N nodes over L lines, all empty at first.

    Attributes:
        states: state of each line in each node's cache, shape (L, N), dtype int8.
        home: node whose memory has each line, shape (L,).
        latency_s: idle latency between nodes, shape (N, N).
        costs: what transitions cost.
    """

    def __init__(self, latency_s: npt.ArrayLike, home: npt.ArrayLike, costs: TransitionCosts | None = None) -> None:
        """Start with empty caches.

        Args:
            latency_s: idle latency between nodes, row = initiator, shape (N, N).
            home: node whose memory has each line, shape (L,).
            costs: what transitions cost; by default those measured on a Xeon Platinum 8269CY.

        Raises:
            ValueError: the matrix is not square, a latency is negative or not finite, or a home is no node.
        """
        self.latency_s = checked_latency_s(latency_s)
        self.home = checked_integers("home", home, 0, len(self.latency_s) - 1)
        self.costs = TransitionCosts() if costs is None else costs
        self.states: StateArray = np.full((len(self.home), len(self.latency_s)), I, dtype=np.int8)

    def read(self, line: int, node: int) -> Access:
        """Let a node read a line; raises ValueError if there is no such line or node."""
        return self._access(line, node, False)

    def write(self, line: int, node: int) -> Access:
        """Let a node write a line; raises ValueError if there is no such line or node."""
        return self._access(line, node, True)

    def evict(self, line: int, node: int) -> Access:
        """Let a node drop its copy of a line, if it has one; raises ValueError if there is no such line or node."""
        self._check(line, node)
        transitions = np.zeros_like(self.costs.ratio, dtype=np.int64)
        before = self.states[line, node]
        if before != I:
            self.states[line, node] = I
            transitions[before, I] = 1
        return Access(0.0, 0, False, transitions)

    def _access(self, line: int, node: int, write: bool) -> Access:
        self._check(line, node)
        transitions = np.zeros_like(self.costs.ratio, dtype=np.int64)
        done = access_line(
            self.states[line], node, write, self.home[line], self.costs.ratio, self.latency_s, transitions
        )
        return Access(*done, transitions)

    def _check(self, line: int, node: int) -> None:
        for name, value, count in (("line", line, len(self.home)), ("node", node, len(self.latency_s))):
            if not isinstance(value, int | np.integer) or not 0 <= value < count:
                raise ValueError(f"{name} must be an integer in 0..{count - 1}, got {value}.")

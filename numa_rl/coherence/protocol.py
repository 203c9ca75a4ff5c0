"""MESIF: the states of a cache line, which transitions the protocol makes, and what each costs.

A cost is a ratio: multiples of the idle latency between the cache that changes its state and the cache or memory
that answers it. The latency then carries it to any machine. Evictions are posted writes that nobody waits for:
they cost the evicting cache no time, and are counted only.

Dimension key: 5 states in the order M, E, S, I, F; row = before, column = after.

References:
    [1] The chapter, section 16.1.3: MESIF and its 5 x 5 matrix of transition costs.
    [2] J. R. Goodman and H. H. J. Hum, "MESIF: a two-hop cache coherency protocol for point-to-point
        interconnects", University of Auckland, 2009.
    [3] Intel Memory Latency Checker v3.9 on a two-socket Xeon Platinum 8269CY with two sub-NUMA clusters a
        socket: idle latency, and cache-to-cache transfer latency of modified lines (HitM), plantegg blog.
    [4] J. D. C. Little, "A proof for the queuing formula L = lambda W", 1961.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

# Measured [3], in ns: from each node of socket 0 to both of socket 1, then from socket 1 to socket 0.
IDLE_NS = (129.8, 136.1, 134.1, 137.6, 129.8, 135.8, 134.4, 137.7)
HITM_WRITER_HOMED_NS = (107.2, 109.2, 111.2, 113.1, 107.6, 109.6, 111.6, 113.5)
HITM_READER_HOMED_NS = (169.1, 175.0, 167.9, 172.1, 171.4, 175.3, 169.7, 173.6)

ZERO = np.float32(0.0)  # keeps float32 arguments float32, and floats floats


class LineState(IntEnum):
    """What one cache knows of a line, in the chapter's order [1].

    Attributes:
        M: modified: the only copy, and memory is out of date.
        E: exclusive: the only copy, equal to memory.
        S: shared: one of several copies; answers nobody.
        I: invalid: not here.
        F: forward: a shared copy, the one that answers the next reader [2].
    """

    M = 0
    E = 1
    S = 2
    I = 3  # noqa: E741 (the protocol's own name)
    F = 4


M, E, S, I, F = LineState  # noqa: E741

# Transitions that MESIF never makes. A modified or exclusive line that another cache reads becomes S, for the newest
# reader forwards; so a reader never enters S directly, and S never becomes F. No copy becomes the only one by waiting
# (S, F -> E), and dirty data never becomes clean while one cache keeps it alone (M -> E).
IMPOSSIBLE = ((M, E), (M, F), (E, F), (S, E), (S, F), (I, S), (F, E))


def possible_transitions() -> npt.NDArray[np.bool_]:
    """Which transitions the protocol makes, shape (5, 5)."""
    possible = np.ones((len(LineState), len(LineState)), dtype=np.bool_)
    possible[tuple(zip(*IMPOSSIBLE, strict=True))] = False
    return possible


def measured_ratios() -> FloatArray:
    """The default matrix, shape (5, 5), derived from the measured latencies [3]; NaN where impossible.

    - Another cache answers (I -> F, I -> M): a HitM transfer whose line is homed at the writer, so that nothing but
      the transfer is waited for, over the idle latency.
    - Upgrades (S -> M, F -> M): an invalidation there and its acknowledgement back use the path of such a transfer
      and carry no data, so this is an upper bound.
    - Memory answers (I -> E): one idle latency, by definition.
    - A modified line that another cache asks for (M -> S, M -> I) must also reach its home. Where that is not at the
      writer, a HitM transfer is measured to be slower by the difference; taken as half of the cases.
    - All else is in the latency of whoever asked (E, F -> S; E, S, F -> I), silent (E -> M), or no change: 0.
    """
    idle, writer_homed, reader_homed = map(np.mean, (IDLE_NS, HITM_WRITER_HOMED_NS, HITM_READER_HOMED_NS))
    ratio = np.where(possible_transitions(), 0.0, np.nan)
    ratio[I, E] = 1.0
    for before, after in ((I, F), (I, M), (S, M), (F, M)):
        ratio[before, after] = writer_homed / idle
    for after in (S, I):
        ratio[M, after] = (reader_homed - writer_homed) / 2.0 / idle
    return ratio


@dataclass(frozen=True, eq=False)
class TransitionCosts:
    """What each transition of one cache's line costs [1].

    Attributes:
        ratio: cost from state [row] to state [column], in multiples of the idle latency between that cache and
            the cache or memory that answers it, dimensionless, shape (5, 5); NaN marks transitions never made.
        source: where the figures came from.

    Raises:
        ValueError: `ratio` has another shape, a cost is negative or infinite, or NaN does not stand exactly where
            the protocol makes no transition.
    """

    ratio: FloatArray = field(default_factory=measured_ratios)
    source: str = "derived: Intel MLC v3.9 latencies between the sockets of a Xeon Platinum 8269CY, plantegg blog"

    def __post_init__(self) -> None:
        """Check the matrix and freeze a copy of it."""
        ratio = np.array(self.ratio, dtype=np.float64)
        if ratio.shape != (len(LineState), len(LineState)):
            raise ValueError(f"ratio must have shape (5, 5), one row and column for each state, got {ratio.shape}.")
        for before in LineState:
            for after in LineState:
                name, value = f"ratio of {before.name} -> {after.name}", ratio[before, after]
                if (before, after) in IMPOSSIBLE:
                    if not np.isnan(value):
                        raise ValueError(f"{name} must be nan, for MESIF never makes this transition, got {value}.")
                elif not 0.0 <= value < np.inf:
                    raise ValueError(f"{name} must be finite and >= 0, got {value}.")
        ratio.setflags(write=False)
        object.__setattr__(self, "ratio", ratio)


def responder_ratios(costs: TransitionCosts) -> npt.NDArray[np.float32]:
    """Cost of an access when the one node that answers for its lines is known, dimensionless, shape (2, 4).

    In MESIF the cache that answers is unique: the holder in M, E or F. Multiply by the latency between the node
    that accesses the lines and the holder; in the last column, between the holder and its furthest sharer.

    ==============  ===============  ===============  ===============  ====================
    access          holder in M      holder in E      holder in F      holder itself, in F
    ==============  ===============  ===============  ===============  ====================
    another reads   I -> F + M -> S  I -> F + E -> S  I -> F + F -> S  F -> F (a hit)
    another writes  I -> M + M -> I  I -> M + E -> I  I -> M + F -> I  F -> M (an upgrade)
    ==============  ===============  ===============  ===============  ====================

    A holder in M or E reads and writes its lines at no cost. Sharers in S that a write drops answer side by side with
    the holder. One further away than the holder is not waited for here, as it is by `caches.access_line`.
    """
    ratio = costs.ratio
    read = [ratio[I, F] + ratio[holder, S] for holder in (M, E, F)]
    write = [ratio[I, M] + ratio[holder, I] for holder in (M, E, F)]
    return np.array([[*read, ratio[F, F]], [*write, ratio[F, M]]], dtype=np.float32)


def transition_s(num_bytes: Any, ratio: Any, latency_s: Any, outstanding_bytes: Any) -> Any:
    """Seconds in which one core's lines make a transition: numbers or arrays.

    A core that keeps `outstanding_bytes` in flight moves that many bytes per latency [4].

    Args:
        num_bytes: of lines making the transition.
        ratio: cost of the transition, as in `TransitionCosts`.
        latency_s: between the cache that changes and what answers it.
        outstanding_bytes: that the core keeps in flight.
    """
    return num_bytes * ratio * latency_s / outstanding_bytes


def resident_bytes(cached_bytes: Any, llc_bytes: Any, passed_bytes: Any) -> Any:
    """Bytes of an access that are still cached: numbers or arrays.

    The least recently used line goes first, so what has streamed through since pushes out what was there before.

    Args:
        cached_bytes: that the access left in the cache.
        llc_bytes: size of the cache.
        passed_bytes: that have passed through the cache since.
    """
    return np.maximum(np.minimum(cached_bytes, llc_bytes - passed_bytes), ZERO)

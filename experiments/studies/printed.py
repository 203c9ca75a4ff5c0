"""The figures that the chapter prints for its case study, and where they contradict each other.

References:
    [1] The chapter, section 16.4.4: a 200T model on eight sockets, before and after each of three steps.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

Shares = tuple[float, float, float, float]  # of the time: compute, local, remote, synchronisation


@dataclass(frozen=True)
class Printed:
    """What the chapter prints of a configuration [1]; None where it is silent.

    Attributes:
        time: shares of the time.
        remote_bytes: share of remote accesses.
        link: use of the links.
        efficiency: parallel efficiency on eight sockets.
        gain: throughput over that of the initial configuration.
        memory: use of the memory's bandwidth.
        latency_change: mean latency against the initial configuration's, minus 1.
    """

    time: Shares | None = None
    remote_bytes: float | None = None
    link: float | None = None
    efficiency: float | None = None
    gain: float | None = None
    memory: float | None = None
    latency_change: float | None = None

    def to_dict(self) -> dict[str, object]:
        """As JSON values."""
        return asdict(self)


NUM_SOCKETS = 8
SPEEDUP_BEFORE, SPEEDUP_AFTER = 4.2, 6.8

BEFORE = Printed(
    time=(0.45, 0.20, 0.25, 0.10), remote_bytes=0.45, link=0.78, efficiency=SPEEDUP_BEFORE / NUM_SOCKETS, gain=1.0
)
DATA_LAYOUT = Printed(remote_bytes=0.28)
ALL_REDUCE = Printed(link=0.65)
AFTER = Printed(
    time=(0.68, 0.22, 0.07, 0.03),
    efficiency=SPEEDUP_AFTER / NUM_SOCKETS,
    gain=2.4,
    memory=0.82,
    latency_change=-0.35,
)


def implied_gains(before: Printed = BEFORE, after: Printed = AFTER) -> dict[str, float]:
    """The throughput gain that follows from each of the chapter's figures; they should be one number.

    The same arithmetic takes `before`'s compute share of the time before and `after`'s share after, so the time
    shrinks by the ratio of the shares; and at the same number of sockets throughput is as the efficiencies.

    Example:
        >>> {name: round(gain, 2) for name, gain in implied_gains().items()}
        {'shares of the time': 1.51, 'efficiencies': 1.62, 'text': 2.4}
    """
    assert before.time is not None and after.time is not None
    assert before.efficiency is not None and after.efficiency is not None and after.gain is not None
    return {
        "shares of the time": after.time[0] / before.time[0],
        "efficiencies": after.efficiency / before.efficiency,
        "text": after.gain,
    }

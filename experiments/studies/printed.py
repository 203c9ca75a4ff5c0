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


IMPLIED_GAINS = {
    # The same arithmetic takes 45% of the time before and 68% after, so the time shrinks by the ratio of the two.
    "shares of the time": 0.68 / 0.45,
    # At the same number of sockets throughput is as the speedups over one.
    "efficiencies": SPEEDUP_AFTER / SPEEDUP_BEFORE,
    "text": 2.4,
}
MOST_GAIN = NUM_SOCKETS / SPEEDUP_BEFORE  # from where the chapter starts to a perfect speedup

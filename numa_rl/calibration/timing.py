"""How long and how often each figure is measured."""

from __future__ import annotations

from dataclasses import dataclass

from numa_rl.workloads.parameters import require

# Many short windows: of a machine that others use too, a short one is likelier to be undisturbed, and one is enough.
LEAST_REPEATS, MOST_REPEATS = 5, 300
LEAST_WINDOW_S, MOST_WINDOW_S = 0.005, 0.02  # a shorter one is noise, a longer one tells no more


@dataclass(frozen=True)
class Timing:
    """How long and how often.

    Attributes:
        window_s: of one repeat.
        repeats: of every figure, after one that does not count.

    Raises:
        ValueError: one of them is not > 0.
    """

    window_s: float
    repeats: int

    def __post_init__(self) -> None:
        """Check the ranges; raises ValueError."""
        require(self, "window_s repeats", "> 0", lambda value: value > 0)


def timing_within(seconds: float, windows_a_repeat: int) -> Timing:
    """As many repeats as fit, then windows as long as fit.

    Args:
        seconds: about how long it may all take; less than the least takes is taken for that.
        windows_a_repeat: how many figures are measured, each once.

    >>> timing_within(40.0, 4)
    Timing(window_s=0.02, repeats=300)
    >>> timing_within(40.0, 1000)
    Timing(window_s=0.006666666666666667, repeats=5)
    """
    fit = int(seconds / (windows_a_repeat * MOST_WINDOW_S)) - 1
    repeats = min(max(fit, LEAST_REPEATS), MOST_REPEATS)
    window_s = seconds / (windows_a_repeat * (repeats + 1))
    return Timing(min(max(window_s, LEAST_WINDOW_S), MOST_WINDOW_S), repeats)

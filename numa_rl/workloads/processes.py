"""The random processes that workloads share: arrivals in bursts, drifting popularity, heavy tails.

Each turns uniform draws into what is wanted. A family draws all its uniforms in one call with the
episode leading, so episode i of a pool does not depend on the pool's size: a larger pool extends a smaller one.

References:
    [1] A. Kuczura, "The interrupted Poisson process as an overflow process", Bell System Technical
        Journal 52(3), 1973.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

SMALLEST_UNIFORM = 2.0**-54  # half the step of Generator.random, whose 0 would give an infinite quantile


def interarrival_s(
    phase: FloatArray, gap: FloatArray, events_per_s: float, burstiness: float, burst_s: float
) -> FloatArray:
    """Time between successive events of an interrupted Poisson process (a two-state MMPP, silent when off).

    Bursts last `burst_s` on average and run at `burstiness` times the mean rate; pauses between them keep
    the mean rate. Both durations are exponential, and then gaps are independent and hyperexponential [1],
    which is how they are drawn. `burstiness` 1 is the Poisson process.

    Args:
        phase: uniforms in [0, 1), any shape.
        gap: uniforms in [0, 1), the same shape.
        events_per_s: mean rate.
        burstiness: rate in a burst over the mean rate, >= 1.
        burst_s: mean length of a burst.

    Returns:
        Gaps in seconds, of the shape of `gap`.
    """
    standard: FloatArray = -np.log1p(-gap)
    if burstiness == 1.0:
        return standard / events_per_s
    on = burstiness * events_per_s
    leave, enter = 1.0 / burst_s, 1.0 / (burst_s * (burstiness - 1.0))
    total = on + leave + enter
    fast = (total + np.sqrt(total**2 - 4.0 * on * enter)) / 2.0
    slow = on * enter / fast  # the other root of the quadratic, without cancellation
    share_fast = (on - slow) / (fast - slow)
    gaps_s: FloatArray = standard / np.where(phase < share_fast, fast, slow)
    return gaps_s


def zipf_rank(uniform: FloatArray, num_items: int, exponent: float) -> IntArray:
    """Rank in 0..num_items - 1 drawn with probability proportional to (rank + 1) ** -exponent."""
    cumulative = np.cumsum(np.arange(1, num_items + 1, dtype=np.float64) ** -exponent)
    return np.searchsorted(cumulative[:-1] / cumulative[-1], uniform, side="right")


def drift_steps(uniform: FloatArray, probability: float) -> IntArray:
    """How often the popularity ranking has shifted by each step, counted along the last axis.

    At each shift the least popular item becomes the most popular and every other cools by one rank: with
    the ranking as an array, item at rank r after s shifts is `ranking[(r - s) % len(ranking)]`.
    """
    return np.cumsum(uniform < probability, axis=-1)


def lognormal(uniform: FloatArray, median: float, sigma: float) -> FloatArray:
    """Lognormal values by inverse transform; `sigma` is the standard deviation of the logarithm."""
    normal: npt.NDArray[Any] = ndtri(np.maximum(uniform, SMALLEST_UNIFORM))
    return np.asarray(median * np.exp(sigma * normal), dtype=np.float64)

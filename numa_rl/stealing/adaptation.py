"""Thresholds and probabilities of stealing that follow how often steals succeed.

Worker i may steal from j at level l if Q_j - Q_i > theta_l, and tries so with probability p_l [1]. The chapter asks
for both to adapt by a moving average of success, and gives no formula. Ours goes by a level's success as a share of
the best level's: the best level is always tried, another one as much less often as it succeeds, and there queues must
differ by so much more. Success itself would not do: when nobody has work, all levels fail, and workers who then try
ever less find the next work too late. Shares do not go to 0, so a level that has failed can recover.

Numbers and arrays that broadcast are taken alike, and numba compiles the same functions.

References:
    [1] The chapter, exercise 5: hierarchical work stealing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

RATE = 0.1  # of the moving average: the last ten tries or so count
LEAST_SHARE = 0.1  # a level that fails is still tried one time in ten
FIRST_SUCCESS = 0.5  # before anything is known
TINY = 1e-12  # keeps shares defined where no level has ever succeeded


def adapt(success: Any, outcome: Any, rate: Any) -> Any:
    """Moving average of success after one more try: s + rate (outcome - s).

    Args:
        success: the average so far, in [0, 1].
        outcome: 1 where the try succeeded, 0 where it failed.
        rate: weight of the last try, in [0, 1].
    """
    return success + rate * (outcome - success)


def probability(success: Any, best: Any, least: Any = LEAST_SHARE) -> Any:
    """How often a level is tried: p = success / best, in [least, 1].

    Args:
        success: moving average of success at the level.
        best: the highest of all levels.
        least: what the share does not fall below.
    """
    return np.minimum(np.maximum((success + TINY) / (best + TINY), least), 1.0)


def threshold(base: Any, share: Any) -> Any:
    """By how much queues must differ: theta = base / share.

    Args:
        base: the threshold of the level that succeeds most.
        share: that of this level, as `probability` gives it.
    """
    return base / share

"""How far one world is from another: errors of times, and whether both put schedulers in the same order.

Dimension key: K schedulers, T tasks.

References:
    [1] M. G. Kendall, "The treatment of ties in ranking problems", Biometrika 33, 1945: tau-b.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau

F64 = npt.NDArray[np.float64]

CLEAR = 0.02  # schedulers that differ by less in the referee's world are as good as each other
SAME_DIGITS = 9  # two times that agree to so many digits are the same: only rounding tells them apart


def relative_error(ours: npt.ArrayLike, referee: npt.ArrayLike) -> F64:
    """Signed relative error, ours / referee - 1; 0 where both take no time, infinite where only the referee does not.

    >>> relative_error([1.1, 0.9, 0.0], [1.0, 1.0, 0.0]).round(3).tolist()
    [0.1, -0.1, 0.0]
    """
    mine, theirs = np.asarray(ours, np.float64), np.asarray(referee, np.float64)
    both_none = (mine == 0.0) & (theirs == 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(both_none, 0.0, mine / theirs - 1.0)


def median_and_p95(errors: npt.ArrayLike) -> tuple[float, float]:
    """Median and 95th percentile of the errors' sizes; NaN of none.

    >>> median_and_p95([-0.25, 0.25, 0.25])
    (0.25, 0.25)
    """
    sizes = np.abs(np.asarray(errors, np.float64))
    if not len(sizes):
        return np.nan, np.nan
    with np.errstate(invalid="ignore"):
        found = np.percentile(sizes, (50, 95))
    median, p95 = np.nan_to_num(found, nan=np.inf, posinf=np.inf)  # NaN is what lies between two infinite errors
    return float(median), float(p95)


@dataclass(frozen=True)
class Agreement:
    """How far the orders of K schedulers agree in two worlds.

    Attributes:
        tau: Kendall's tau-b [1] of both orders; NaN where a world knows no order, all being equal there.
        clear_tau: the same with pairs that differ by `CLEAR` or less in the referee's world left out as ties: pairs put
            right less pairs put wrong, over all others; NaN where there are none.
        pairs: pairs of schedulers that are not equal in the referee's world.
        wrong: those of them of which our world does not find the better one.
        clear_pairs: pairs that differ by more than `CLEAR` in the referee's world.
        clear_wrong: those of them of which our world does not find the better one.
        regret: how much longer the scheduler that is best in our world takes in the referee's than the best one there.
    """

    tau: float
    clear_tau: float
    pairs: int
    wrong: int
    clear_pairs: int
    clear_wrong: int
    regret: float


def agreement(ours: npt.ArrayLike, referee: npt.ArrayLike) -> Agreement:
    """How far two worlds agree on the order of schedulers.

    Args:
        ours: mean response of each scheduler in our world, shape (K,).
        referee: the same in the referee's world.

    Raises:
        ValueError: the shapes differ, or a time is negative, infinite or NaN.

    >>> found = agreement([1.0, 2.0, 3.0], [1.0, 3.0, 2.0])
    >>> round(found.tau, 3), found.pairs, found.wrong, found.regret
    (0.333, 3, 1, 0.0)
    """
    mine, theirs = _rounded(ours, "ours"), _rounded(referee, "referee")
    if mine.shape != theirs.shape:
        raise ValueError(f"both worlds must know the same schedulers, got {len(mine)} and {len(theirs)}.")
    tau = float(kendalltau(mine, theirs).statistic) if len(mine) > 1 else np.nan
    pairs = wrong = clear_pairs = clear_wrong = balance = 0
    for i, j in combinations(range(len(mine)), 2):
        difference = theirs[i] - theirs[j]
        if difference == 0.0:
            continue
        missed = difference * (mine[i] - mine[j]) <= 0.0
        pairs, wrong = pairs + 1, wrong + missed
        if abs(difference) > CLEAR * min(theirs[i], theirs[j]):
            clear_pairs, clear_wrong = clear_pairs + 1, clear_wrong + missed
            balance += np.sign(difference) * np.sign(mine[i] - mine[j])  # 1 put right, -1 wrong, 0 a tie in ours
    regret = float(relative_error(theirs[mine.argmin()], theirs.min())) if len(mine) else np.nan
    clear_tau = float(balance) / clear_pairs if clear_pairs else np.nan
    return Agreement(tau, clear_tau, pairs, int(wrong), clear_pairs, int(clear_wrong), regret)


def _rounded(times_s: npt.ArrayLike, name: str) -> F64:
    """The times to as many digits as mean something."""
    times = np.asarray(times_s, np.float64)
    if times.ndim != 1 or not (np.isfinite(times) & (times >= 0.0)).all():
        raise ValueError(f"{name} must be a list of times, finite and >= 0, got {times_s!r}.")
    return np.array([float(f"{value:.{SAME_DIGITS}g}") for value in times])

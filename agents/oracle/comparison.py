"""How near a scheduler comes to the oracle.

Dimension key: E episodes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def percent_of_oracle(cost: npt.ArrayLike, oracle_cost: npt.ArrayLike) -> float:
    """The oracle's mean cost over the scheduler's, in percent: 100 is as good as the oracle, 50 costs twice as much.

    More than 100 says that the oracle's search was too narrow; of a proven optimum there is no more than 100.

    Args:
        cost: the scheduler's cost of each episode, shape (E,).
        oracle_cost: the oracle's, of the same episodes in the same order, shape (E,).

    Returns:
        Percent; 100 where both cost nothing.

    Raises:
        ValueError: no episode, two shapes, or a cost that is negative or not finite.
    """
    own, best = np.asarray(cost, np.float64), np.asarray(oracle_cost, np.float64)
    if own.ndim != 1 or own.shape != best.shape or not own.size:
        raise ValueError(f"costs must be of the same one or more episodes, got shapes {own.shape} and {best.shape}.")
    for values in (own, best):
        bad = ~(np.isfinite(values) & (values >= 0.0))
        if bad.any():
            raise ValueError(f"a cost must be finite and >= 0, got {values[bad][0]}.")
    if own.sum() == 0.0:
        return 100.0 if best.sum() == 0.0 else np.inf
    return float(100.0 * best.mean() / own.mean())

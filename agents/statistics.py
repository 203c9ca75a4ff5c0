"""How sure a comparison is: paired bootstrap intervals over episodes.

Episodes are drawn anew with replacement, and both schedulers are judged on the same draw: what makes an episode
hard for everybody cancels.

Dimension key: E episodes, S draws.

References:
    [1] B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap, Chapman & Hall 1993, chapter 13: the
        percentile interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

NUM_DRAWS = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval."""

    estimate: float
    low: float
    high: float


def mean_interval(values: npt.ArrayLike, rng: np.random.Generator) -> Interval:
    """The mean of values (E,) and its 95% interval; of paired differences, that of the mean difference."""
    return _interval(np.asarray(values, np.float64)[None], lambda means: means[0], rng)


def ratio_interval(values: npt.ArrayLike, reference: npt.ArrayLike, rng: np.random.Generator) -> Interval:
    """The ratio of the mean of values to that of reference, paired by episode, (E,) each, and its 95% interval.

    Raises:
        ValueError: the two are not of one shape.
    """
    pair = (np.asarray(values, np.float64), np.asarray(reference, np.float64))
    if pair[0].shape != pair[1].shape:
        raise ValueError(f"paired values must have one shape, got {pair[0].shape} and {pair[1].shape}.")
    return _interval(np.stack(pair), lambda means: means[0] / means[1], rng)


def _interval(samples: F64, statistic: Callable[[F64], F64], rng: np.random.Generator) -> Interval:
    """Percentile interval [1] of a statistic of the means of samples (K, E); unbounded for a single episode."""
    num_episodes = samples.shape[1]
    if samples.ndim != 2 or num_episodes == 0:
        raise ValueError(f"an interval needs one value for each of at least one episode, got shape {samples.shape}.")
    estimate = float(statistic(samples.mean(axis=1)))
    if num_episodes == 1:  # one episode says nothing about how much episodes differ
        return Interval(estimate, -np.inf, np.inf)
    counts = rng.multinomial(num_episodes, np.full(num_episodes, 1.0 / num_episodes), NUM_DRAWS)  # (S, E)
    drawn = statistic(samples @ counts.T / num_episodes)
    tail = 50.0 * (1.0 - CONFIDENCE)
    low, high = np.percentile(drawn, [tail, 100.0 - tail])
    return Interval(estimate, float(low), float(high))


def win_rate(values: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Share of episodes, paired, in which values are lower than reference; a tie counts half."""
    difference = np.asarray(values, np.float64) - np.asarray(reference, np.float64)
    return float(np.mean(difference < 0) + 0.5 * np.mean(difference == 0))

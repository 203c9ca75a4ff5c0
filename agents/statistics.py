"""How sure a comparison is: paired bootstrap intervals over episodes, and over those of many scenarios.

Episodes are drawn anew with replacement, and both schedulers are judged on the same draw: what makes an episode
hard for everybody cancels. Over many scenarios, the interquartile mean, its stratified intervals and performance
profiles are those of [2], by functions of scipy: each scenario is a stratum, whose episodes are drawn apart.

Dimension key: E episodes, S draws, K schedulers.

References:
    [1] B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap, Chapman & Hall 1993, chapter 13: the
        percentile interval.
    [2] R. Agarwal, M. Schwarzer, P. S. Castro, A. Courville, M. G. Bellemare, "Deep reinforcement learning at the
        edge of the statistical precipice", NeurIPS 2021, with the library rliable.
    [3] E. D. Dolan, J. J. More, "Benchmarking optimization software with performance profiles", Mathematical
        Programming 91, 2002.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap, trim_mean

F64 = npt.NDArray[np.float64]

NUM_DRAWS = 10_000
NUM_STRATIFIED_DRAWS = 2000  # as in rliable's examples [2]
CONFIDENCE = 0.95
TRIMMED_SHARE = 0.25  # cut at each end by the interquartile mean


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


def interquartile_mean(values: npt.ArrayLike, axis: int | None = None) -> Any:
    """The mean of the middle half of the values [2], over all of them or along an axis."""
    return trim_mean(np.asarray(values, np.float64), TRIMMED_SHARE, axis=axis)


def interquartile_interval(strata: Sequence[npt.ArrayLike], rng: np.random.Generator) -> Interval:
    """The interquartile mean over all values and its 95% stratified bootstrap interval [2].

    Unbounded where a stratum has a single value, which says nothing about how much they differ, or where a value is
    infinite, as that of a scheduler that failed.

    Args:
        strata: the values of each scenario, one for each of its episodes.
        rng: draws the episodes.

    Raises:
        ValueError: there are no values.
    """
    samples = [np.asarray(values, np.float64) for values in strata]
    if not samples or any(sample.ndim != 1 or sample.size == 0 for sample in samples):
        raise ValueError(f"an interval needs one or more values of each stratum, got {[s.shape for s in samples]}.")
    pooled = np.concatenate(samples)
    estimate = float(interquartile_mean(pooled))
    if min(map(len, samples)) == 1 or not np.isfinite(pooled).all():
        return Interval(estimate, -np.inf, np.inf)
    drawn = bootstrap(
        samples,
        lambda *resampled, axis: interquartile_mean(np.concatenate(resampled, axis=axis), axis=axis),
        n_resamples=NUM_STRATIFIED_DRAWS,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=rng,
    )
    return Interval(estimate, float(drawn.confidence_interval.low), float(drawn.confidence_interval.high))


def interquartile_ratio(
    strata: Sequence[npt.ArrayLike], references: Sequence[npt.ArrayLike], rng: np.random.Generator
) -> Interval:
    """The interquartile mean over all values, over that of the reference's, paired by episode within each stratum."""
    return _stratified(
        strata,
        references,
        lambda mine, theirs: (
            interquartile_mean(np.concatenate(mine, 1), 1) / interquartile_mean(np.concatenate(theirs, 1), 1)
        ),
        rng,
    )


def mean_ratio(
    strata: Sequence[npt.ArrayLike], references: Sequence[npt.ArrayLike], rng: np.random.Generator
) -> Interval:
    """The mean over strata of the mean value over the reference's mean value, paired by episode."""
    return _stratified(
        strata,
        references,
        lambda mine, theirs: np.mean(
            [one.mean(1) / other.mean(1) for one, other in zip(mine, theirs, strict=True)], axis=0
        ),
        rng,
    )


def _stratified(
    strata: Sequence[npt.ArrayLike],
    references: Sequence[npt.ArrayLike],
    statistic: Callable[[list[F64], list[F64]], F64],
    rng: np.random.Generator,
) -> Interval:
    """A statistic of paired values, each stratum as (S, E) for S draws, and its 95% stratified percentile interval.

    Raises:
        ValueError: there are no values, or those of a stratum are not paired.
    """
    mine, theirs = ([np.asarray(values, np.float64) for values in some] for some in (strata, references))
    if not mine or [values.shape for values in mine] != [values.shape for values in theirs]:
        shapes = [values.shape for values in mine], [values.shape for values in theirs]
        raise ValueError(f"paired strata must have one shape each, and be at least one, got {shapes}.")
    estimate = float(statistic([values[None] for values in mine], [values[None] for values in theirs])[0])
    if min(map(len, mine)) == 1:  # one episode says nothing about how much episodes differ
        return Interval(estimate, -np.inf, np.inf)
    draws = [rng.integers(len(values), size=(NUM_STRATIFIED_DRAWS, len(values))) for values in mine]
    drawn = statistic(
        [values[rows] for values, rows in zip(mine, draws, strict=True)],
        [values[rows] for values, rows in zip(theirs, draws, strict=True)],
    )
    tail = 50.0 * (1.0 - CONFIDENCE)
    low, high = np.percentile(drawn, [tail, 100.0 - tail])
    return Interval(estimate, float(low), float(high))


def performance_profile(values: npt.ArrayLike, limits: npt.ArrayLike) -> F64:
    """Share of values at or below each limit (L,), shape (L,): of runs whose cost is within it [2, 3]."""
    ordered = np.sort(np.asarray(values, np.float64).ravel())
    return np.asarray(np.searchsorted(ordered, np.asarray(limits, np.float64), side="right") / ordered.size)


def surely_lower(costs: npt.ArrayLike, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Which schedulers cost less than which, by the paired bootstrap: [i, j] where i costs less than j, shape (K, K).

    So it is if the 95% percentile interval [1] of the difference of their mean costs lies below 0. All pairs are
    judged on the same draws.

    Args:
        costs: of every scheduler in every episode, shape (K, E).
        rng: draws the episodes.

    Raises:
        ValueError: the costs are not of that shape.
    """
    table = np.asarray(costs, np.float64)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"costs must have shape (K, E) with K, E > 0, got {table.shape}.")
    num_schedulers, num_episodes = table.shape
    if num_episodes == 1:  # one episode says nothing about how much episodes differ
        return np.zeros((num_schedulers, num_schedulers), bool)
    drawn = rng.integers(num_episodes, size=(NUM_STRATIFIED_DRAWS, num_episodes))
    # Sums in the order of the draw, never by a matrix product: its rounding depends on the library and its threads.
    means = np.stack([row[drawn].mean(axis=1) for row in table])  # (K, S)
    needed = 1.0 - (1.0 - CONFIDENCE) / 2.0
    return np.array([(row < means).mean(axis=1) > needed for row in means])

"""Statistics over many scenarios: interquartile means, stratified intervals, profiles, and who surely costs less."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agents.statistics import (
    Interval,
    interquartile_interval,
    interquartile_mean,
    interquartile_ratio,
    mean_interval,
    mean_ratio,
    performance_profile,
    surely_lower,
)

finite = st.floats(-100.0, 100.0, width=32)
tables = arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=finite)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_interquartile_mean_is_that_of_the_middle_half():
    assert interquartile_mean([8.0, 1.0, 7.0, 2.0, 6.0, 3.0, 5.0, 1000.0]) == (3.0 + 5.0 + 6.0 + 7.0) / 4
    assert interquartile_mean([[1.0, 2.0, 3.0, 10.0], [5.0, 5.0, 7.0, 0.0]], axis=1).tolist() == [2.5, 5.0]


def test_what_differs_only_between_strata_has_an_interval_without_width():
    strata = [np.full(4, value) for value in (1.0, 2.0, 4.0, 8.0)]
    assert interquartile_interval(strata, generator()) == Interval(3.0, 3.0, 3.0)
    pooled = interquartile_interval([np.concatenate(strata)], generator())
    assert pooled.high - pooled.low > 1.0


def test_a_single_value_or_an_infinite_one_bounds_nothing():
    assert interquartile_interval([[2.0], [4.0]], generator()) == Interval(3.0, -np.inf, np.inf)
    failed = interquartile_interval([[1.0] * 6, [np.inf, np.inf]], generator())
    assert failed == Interval(1.0, -np.inf, np.inf)
    assert interquartile_interval([[np.inf] * 4], generator()).estimate == np.inf


@pytest.mark.parametrize("strata", [[], [[]], [[1.0], []], [[[1.0]]]])
def test_an_interval_needs_values(strata: list[list[float]]):
    with pytest.raises(ValueError, match=r"an interval needs one or more values of each stratum, got "):
        interquartile_interval(strata, generator())


def test_stratified_intervals_are_those_of_episodes_drawn_anew_in_each_scenario():
    rng = generator(1)
    strata = [rng.lognormal(mean, 0.3, 16) for mean in (0.0, 0.1, 0.4)]
    found = interquartile_interval(strata, generator())
    drawn = [
        interquartile_mean(np.concatenate([values[rng.integers(16, size=16)] for values in strata]))
        for _ in range(4000)
    ]
    np.testing.assert_allclose([found.low, found.high], np.percentile(drawn, [2.5, 97.5]), atol=0.01)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = generator()
    covered = 0
    for _ in range(100):
        interval = interquartile_interval([rng.normal(size=16), rng.normal(size=16)], rng)
        covered += interval.low <= 0.0 <= interval.high
    assert 85 <= covered <= 99


def test_a_profile_is_the_share_of_runs_within_each_limit():
    assert performance_profile([[3.0, 1.0], [1.5, 1.0]], [0.9, 1.0, 2.0, 3.0]).tolist() == [0.0, 0.5, 0.75, 1.0]


@given(tables)
def test_profiles_rise_from_none_to_all(values: np.ndarray):
    limits = np.linspace(-101.0, 101.0, 31)
    shares = performance_profile(values, limits)
    assert (np.diff(shares) >= 0).all()
    assert shares[0] == 0.0
    assert shares[-1] == 1.0
    np.testing.assert_allclose(shares, [(values <= limit).mean() for limit in limits])


def test_who_costs_less_in_every_episode_surely_does():
    hard = np.array([1.0, 2.0, 30.0, 400.0])  # what makes an episode hard for everybody cancels
    assert surely_lower([hard, hard + 0.1, hard], generator()).tolist() == [
        [False, True, False],
        [False, False, False],
        [False, True, False],
    ]


def test_a_failure_is_surely_dearer_than_any_cost():
    assert surely_lower([[1.0, 900.0], [np.inf, np.inf]], generator()).tolist() == [[False, True], [False, False]]


def test_one_episode_tells_nobody_apart():
    assert not surely_lower([[1.0], [2.0]], generator()).any()


@given(tables)
def test_of_two_at_most_one_surely_costs_less(costs: np.ndarray):
    lower = surely_lower(costs, generator())
    assert not (lower & lower.T).any()
    assert not np.diagonal(lower).any()


def test_pairs_are_judged_as_by_the_interval_of_their_mean_difference():
    rng = generator(2)
    base = rng.exponential(size=20)
    agreed = 0
    for shift in np.linspace(-0.5, 0.5, 41):
        other = base + shift + rng.normal(0.0, 0.3, 20)
        interval = mean_interval(base - other, generator())
        agreed += bool(surely_lower([base, other], generator())[0, 1]) == (interval.high < 0.0)
    assert agreed >= 40  # other draws may decide otherwise on the border


@pytest.mark.parametrize("costs", [[1.0, 2.0], np.empty((0, 3)), np.empty((2, 0))])
def test_costs_must_be_a_table(costs: np.ndarray):
    with pytest.raises(ValueError, match=r"costs must have shape \(K, E\) with K, E > 0, got \("):
        surely_lower(costs, generator())


# Paired ratios over many scenarios.

RATIOS = (interquartile_ratio, mean_ratio)


@pytest.mark.parametrize("ratio", RATIOS)
def test_who_costs_a_fixed_share_everywhere_has_that_ratio_for_sure(ratio):
    reference = [generator(seed).lognormal(0.0, 1.0, 9) for seed in range(5)]
    found = ratio([0.8 * values for values in reference], reference, generator())
    np.testing.assert_allclose([found.estimate, found.low, found.high], 0.8)


def test_a_scenario_counts_by_its_ratio_and_not_by_what_it_costs():
    mine, theirs = [[1.0, 1.0], [300.0, 300.0]], [[2.0, 2.0], [200.0, 200.0]]
    assert mean_ratio(mine, theirs, generator()).estimate == pytest.approx((0.5 + 1.5) / 2)
    means = interquartile_mean(np.concatenate(mine)) / interquartile_mean(np.concatenate(theirs))
    assert interquartile_ratio(mine, theirs, generator()).estimate == pytest.approx(means)


@pytest.mark.parametrize("ratio", RATIOS)
def test_pairing_takes_out_what_makes_episodes_hard_for_everybody(ratio):
    rng = generator(3)
    reference = [rng.lognormal(0.0, 1.0, 12) for _ in range(4)]
    mine = [0.9 * values * rng.lognormal(0.0, 0.02, 12) for values in reference]
    shuffled = [rng.permutation(values) for values in mine]
    paired, apart = ratio(mine, reference, generator()), ratio(shuffled, reference, generator())
    assert paired.high < 1.0
    assert paired.high - paired.low < 0.3 * (apart.high - apart.low)


@pytest.mark.parametrize("ratio", RATIOS)
def test_one_episode_bounds_no_ratio(ratio):
    assert ratio([[1.0], [1.0, 1.0]], [[2.0], [2.0, 2.0]], generator()) == Interval(0.5, -np.inf, np.inf)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(("mine", "theirs"), [([], []), ([[1.0]], [[1.0, 2.0]]), ([[1.0]], [[1.0], [2.0]])])
def test_ratios_need_pairs(ratio, mine, theirs):
    with pytest.raises(ValueError, match=r"paired strata must have one shape each, and be at least one, got"):
        ratio(mine, theirs, generator())

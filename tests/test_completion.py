from __future__ import annotations

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numa_rl.machines.completion import (
    BY_SOCKET,
    EXCLUSIVE_OR,
    FROM_DISTANCES,
    LINK_SHARE,
    MEMORY_ONLY,
    MIRRORED,
    completed,
    spread,
)
from numa_rl.machines.load_curve import fit_loaded_latency, loaded_points
from numa_rl.machines.slit import links_from_distances, without_detours
from numa_rl.topology import hop_counts

NAN = np.nan


def every(num_nodes: int) -> np.ndarray:
    return np.ones(num_nodes, dtype=bool)


def test_a_whole_matrix_stays_as_it_is():
    cost = np.array([[1.0, 3.0], [2.0, 1.0]])
    filled, notes = completed(cost, every(2))
    np.testing.assert_array_equal(filled, cost)
    assert notes == []


def test_a_pair_takes_the_cost_of_its_reverse_first():
    filled, notes = completed(np.array([[1.0, NAN], [3.0, 1.0]]), every(2))
    assert filled.tolist() == [[1.0, 3.0], [3.0, 1.0]]
    assert notes == [f"derived: pair 0 to 1 {MIRRORED}"]


def test_a_column_of_four_nodes_makes_every_node_stand_alike():
    cost = np.full((4, 4), NAN)
    cost[:, 0] = [100, 160, 290, 230]  # node 3 is the near one of the other socket
    filled, notes = completed(cost, every(4))
    assert filled.tolist() == [
        [100, 160, 290, 230],
        [160, 100, 230, 290],
        [290, 230, 100, 160],
        [230, 290, 160, 100],
    ]
    assert notes == [f"derived: pairs 0 to 1, 0 to 2, 0 to 3 {MIRRORED}", f"assumed: 9 of 16 pairs {EXCLUSIVE_OR}"]


def test_the_known_column_may_be_that_of_any_node():
    cost = np.full((4, 4), NAN)
    cost[:, 2] = [290, 230, 100, 160]
    assert completed(cost, every(4))[0][0].tolist() == [100, 160, 290, 230]


def test_distances_come_before_alikeness_and_are_interpolated():
    slit = np.array([[10, 12, 20, 22], [12, 10, 22, 24], [20, 22, 10, 12], [22, 24, 12, 10]], dtype=float)
    cost = np.full((4, 4), NAN)
    cost[:, 0] = [100, 120, 200, 240]
    filled, notes = completed(cost, every(4), slit)
    assert filled[2].tolist() == [200, 240, 100, 120]
    assert filled[1, 3] == pytest.approx(240 * 24 / 22)  # beyond the known ones, in proportion
    assert notes == [f"derived: pairs 0 to 1, 0 to 2, 0 to 3 {MIRRORED}", f"derived: 9 of 16 pairs {FROM_DISTANCES}"]


def test_a_distance_between_two_known_ones_costs_something_between():
    slit = np.array([[10, 16, 30], [16, 10, 20], [30, 20, 10]], dtype=float)
    cost = np.array([[100, 160, 300], [NAN, 100, NAN], [NAN, NAN, 100]])
    assert completed(cost, every(3), slit)[0][1, 2] == pytest.approx(200)


def test_a_slow_memory_keeps_its_ratio():
    slit = np.array([[10, 20, 20], [20, 10, 30], [20, 30, 10]], dtype=float)
    cost = np.array([[100, 200, 600], [200, 100, NAN], [NAN, NAN, NAN]])
    has_cores = np.array([True, True, False])
    filled, notes = completed(cost, has_cores, slit)
    assert filled[1, 2] > 600
    assert filled[2, :2].tolist() == [600, filled[1, 2]]
    assert notes[-1] == f"derived: pairs 2 to 0, 2 to 1, 2 to 2 {MEMORY_ONLY}"


def test_without_any_figure_there_is_nothing_to_go_by():
    with pytest.raises(ValueError, match="at least one figure must be known of what a node with cores sees"):
        completed(np.full((2, 2), NAN), every(2))


@st.composite
def partial_matrices(draw):
    n = draw(st.integers(1, 9))
    cost = draw(arrays.arrays(np.float64, (n, n), elements=st.floats(1, 1e3)))
    known = draw(arrays.arrays(np.bool_, (n, n)))
    has_cores = draw(arrays.arrays(np.bool_, n))
    first = draw(st.integers(0, n - 1))
    known[first, first] = has_cores[first] = True
    distances = draw(st.none() | arrays.arrays(np.float64, (n, n), elements=st.floats(1, 255)))
    return np.where(known, cost, NAN), has_cores, distances


@given(partial_matrices())
def test_known_figures_stay_and_all_others_become_positive(case):
    cost, has_cores, distances = case
    filled, notes = completed(cost, has_cores, distances)
    known = np.isfinite(cost)
    np.testing.assert_array_equal(filled[known], cost[known])
    assert (np.isfinite(filled) & (filled > 0)).all()
    assert bool(notes) == bool((~known).any())


@given(partial_matrices(), st.floats(1e-9, 1e9))
def test_the_unit_of_cost_does_not_matter(case, unit):
    cost, has_cores, distances = case
    np.testing.assert_allclose(
        completed(cost * unit, has_cores, distances)[0], completed(cost, has_cores, distances)[0] * unit, rtol=1e-9
    )


def test_another_socket_is_drawn_from_as_the_links_and_the_requests_in_flight_allow():
    latency = np.array([[100, 110, 175, 350], [110, 100, 350, 175], [175, 350, 100, 110], [350, 175, 110, 100]], float)
    filled, notes = spread(np.diag([60.0, 60, 40, 40]) + np.where(np.eye(4) == 1, 0, NAN), every(4), latency, 0.5, 1.75)
    # Links: half of 120 and of 80. In flight: 1.75 x own x 100 / latency. And no more than the memory delivers.
    np.testing.assert_allclose(filled, [[60, 60, 40, 30], [60, 60, 30, 40], [40, 20, 40, 40], [20, 40, 40, 40]])
    assert notes == [f"derived: 12 of 16 pairs {BY_SOCKET}"]


def test_slow_memory_without_cores_is_no_slower_from_another_socket_whose_links_carry_it():
    known = np.array([[100, NAN, 17], [NAN, 100, NAN], [NAN, NAN, NAN]])
    slit = np.array([[10, 20, 30], [20, 10, 40], [30, 40, 10]], float)
    filled, notes = spread(known, np.array([True, True, False]), slit, 0.4, 2.0)
    np.testing.assert_allclose(filled, [[100, 40, 17], [40, 100, 17], [NAN, NAN, NAN]])
    assert notes == [f"derived: pairs 0 to 1, 1 to 0, 1 to 2 {BY_SOCKET}"]


def test_what_is_known_between_sockets_says_more_than_the_law():
    known = np.array([[100, 30], [NAN, 100]])
    filled, notes = spread(known, every(2), None)
    np.testing.assert_array_equal(filled, known)
    assert notes == []


def test_without_distances_every_node_is_a_socket():
    filled, _ = spread(np.array([[100, NAN], [NAN, 50]]), every(2), None)
    np.testing.assert_allclose(filled, [[100, 100 * LINK_SHARE], [50 * LINK_SHARE, 50]])


@given(
    st.lists(st.floats(1, 1e3), min_size=1, max_size=6),
    st.floats(10, 60),
    st.floats(0.1, 1),
    st.floats(0.5, 3),
    st.floats(0.1, 10),
)
def test_no_memory_delivers_more_than_at_home_in_any_unit(local, far, share, flight, unit):
    n = len(local)
    known = np.where(np.eye(n) == 1, local, NAN)
    distances = np.where(np.eye(n) == 1, 10.0, far)
    filled, notes = spread(known, every(n), distances, share, flight)
    np.testing.assert_array_equal(np.diagonal(filled), local)
    assert (filled <= np.array(local)[None, :]).all()
    assert (filled > 0).all()
    assert (notes == []) == (n == 1)
    np.testing.assert_allclose(spread(known * unit, every(n), distances, share, flight)[0], filled * unit)


def test_points_near_the_peak_that_are_slower_than_it_are_saturated():
    load = np.array([0.02, 0.2, 0.4, 0.6, 0.95, 0.97, 1.0])
    latency = np.array([1.0, 1.1, 1.2, 1.3, 1.5, 2.1, 2.0])
    assert loaded_points(latency, load)[2].tolist() == [True, True, True, True, True, False, False]


def test_a_detour_within_the_tolerance_takes_the_place_of_a_link():
    # 0-1-2 in a row costs 10 + 10 above local, the pair 0-2 was measured at 19.
    latency = np.array([[100, 110, 119], [110, 100, 110], [119, 110, 100]], dtype=float)
    links = links_from_distances(latency)
    assert len(links) == 6
    assert without_detours(links, latency, 0.1).tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]
    np.testing.assert_array_equal(without_detours(links, latency, 0.01), links)


@given(
    st.integers(1, 8).flatmap(lambda n: arrays.arrays(np.float64, (n, n), elements=st.floats(1, 100))), st.floats(0, 3)
)
def test_without_detours_every_node_is_still_reached(distances, tolerance):
    links = without_detours(links_from_distances(distances), distances, tolerance)
    assert (hop_counts(links, len(distances)) >= 0).all()
    assert {(a, b) for a, b in links.tolist()} == {(b, a) for a, b in links.tolist()}


@given(st.floats(0, 2), st.floats(0, 0.5), st.floats(20e-9, 500e-9), st.floats(1e9, 1e12))
def test_a_curve_that_follows_the_law_is_found_again(a, c, idle_s, peak):
    load = np.array([1e-9, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
    latency = idle_s * (1 + a * load / (1 - c * load))
    fit, rmse = fit_loaded_latency(latency, load * peak)
    assert rmse < 1e-6
    at = np.array([0.2, 0.8])
    np.testing.assert_allclose(fit.a * at / (1 - fit.c * at), a * at / (1 - c * at), atol=1e-4)
    assert fit.saturated == pytest.approx(latency.max() / latency.min())


def test_saturated_points_do_not_bend_the_fit():
    load = np.array([1e-9, 0.2, 0.4, 0.6, 0.8, 0.99, 1.0])
    latency = np.array([1.0, 1.08, 1.16, 1.24, 1.32, 3.0, 3.4])
    fit, rmse = fit_loaded_latency(latency, load)
    assert (fit.a, fit.c, fit.saturated) == (pytest.approx(0.4, abs=1e-3), pytest.approx(0, abs=1e-3), 3.4)
    assert rmse < 1e-3


@pytest.mark.parametrize(
    ("latency", "bandwidth", "message"),
    [
        ([1, 1, 1, 1, 0], [1, 2, 3, 4, 9], "every latency must be finite and > 0"),
        ([1, 1, 1, 1, 1], [1, 2, 3, np.inf, 9], "every bandwidth must be finite and > 0"),
        ([1, 1, 1], [1, 2, 9], "at least 4 points below 98.5% of the largest bandwidth, got 2"),
        ([], [], "at least 4 points .*, got 0"),
    ],
)
def test_a_curve_that_cannot_be_fitted_is_refused(latency, bandwidth, message):
    with pytest.raises(ValueError, match=f"loaded latency: .*{message}"):
        fit_loaded_latency(np.array(latency, float), np.array(bandwidth, float))

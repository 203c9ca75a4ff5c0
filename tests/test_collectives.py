from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numa_rl.communication.collectives import (
    Groups,
    chapter_ring_s,
    halving_doubling_s,
    hierarchical_overlapped_s,
    hierarchical_s,
    ring_s,
)
from numa_rl.communication.transfers import pipelined_s

# Exercise 2: 8 GPUs on 2 sockets.
RANKS, S, INTRA, INTER = 8, 4e9, 200e9, 50e9
SOCKETS = Groups(RANKS // 2, INTRA, INTER)

sizes = st.floats(0.0, 1e12)
bandwidths = st.floats(1e6, 1e12)
latencies = st.floats(0.0, 1e-3)


def test_exercise_2_flat_ring_takes_0_28_s():
    assert chapter_ring_s(RANKS, S, INTER) == pytest.approx(0.28)


def test_exercise_2_hierarchy_takes_0_08_s_where_its_phases_overlap():
    assert hierarchical_overlapped_s(SOCKETS, S) == pytest.approx(0.08)


def test_exercise_2_hierarchy_is_3_5_times_faster():
    assert chapter_ring_s(RANKS, S, INTER) / hierarchical_overlapped_s(SOCKETS, S) == pytest.approx(3.5)


def test_exercise_2_formula_gives_0_11_s():
    assert hierarchical_s(SOCKETS, S) == pytest.approx(0.11)


def test_exercise_2_formula_with_all_8_ranks_as_one_group_would_give_0_115_s():
    assert hierarchical_s(Groups(RANKS, INTRA, INTER), S) == pytest.approx(0.115)


def test_exercise_2_ring_of_pieces_takes_0_14_s():
    assert ring_s(RANKS, S, INTER) == pytest.approx(0.14)


@given(st.integers(2, 100), sizes, bandwidths)
def test_the_chapters_ring_carries_p_over_4_times_what_a_ring_of_pieces_does(p, num_bytes, bandwidth):
    assert chapter_ring_s(p, num_bytes, bandwidth) == pytest.approx(p / 4 * ring_s(p, num_bytes, bandwidth))


def test_a_ring_of_3_passes_4_thirds_of_the_vector_and_pays_4_latencies():
    assert ring_s(3, 300.0, 100.0, 1.0) == pytest.approx(4 * (1.0 + 1.0))


def test_halving_and_doubling_over_4_ranks_passes_3_halves_and_pays_4_latencies():
    assert halving_doubling_s(4, 400.0, 100.0, 1.0) == pytest.approx(6.0 + 4.0)


def test_each_extra_rank_hands_its_whole_vector_in_and_out():
    assert halving_doubling_s(5, 400.0, 100.0, 1.0) == pytest.approx(6.0 + 4.0 + 2 * 5.0)


def test_three_groups_send_4_thirds_of_the_vector_across():
    groups = Groups(1, 1.0, 100.0, inter_latency_s=1.0, num_groups=3)
    assert hierarchical_s(groups, 300.0) == pytest.approx(4 * (1.0 + 1.0))


@given(sizes, bandwidths, latencies)
def test_a_single_rank_has_nothing_to_do(num_bytes, bandwidth, latency_s):
    alone = Groups(1, bandwidth, bandwidth, latency_s, latency_s, num_groups=1)
    assert ring_s(1, num_bytes, bandwidth, latency_s) == 0.0
    assert chapter_ring_s(1, num_bytes, bandwidth, latency_s) == 0.0
    assert halving_doubling_s(1, num_bytes, bandwidth, latency_s) == 0.0
    assert hierarchical_s(alone, num_bytes) == 0.0
    assert hierarchical_overlapped_s(alone, num_bytes) == 0.0


@given(st.integers(1, 10), sizes, bandwidths)
def test_ring_and_halving_move_equal_bytes_over_a_power_of_two(rounds, num_bytes, bandwidth):
    assert halving_doubling_s(2**rounds, num_bytes, bandwidth) == pytest.approx(ring_s(2**rounds, num_bytes, bandwidth))


@given(st.integers(2, 10), bandwidths, latencies)
def test_halving_never_pays_more_latencies_over_a_power_of_two(rounds, bandwidth, latency_s):
    assert halving_doubling_s(2**rounds, 0.0, bandwidth, latency_s) <= ring_s(2**rounds, 0.0, bandwidth, latency_s)


@given(st.integers(1, 64), sizes, bandwidths, latencies)
def test_a_hierarchy_of_one_group_is_a_ring(p, num_bytes, bandwidth, latency_s):
    groups = Groups(p, bandwidth, 1.0, intra_latency_s=latency_s, num_groups=1)
    assert hierarchical_s(groups, num_bytes) == ring_s(p, num_bytes, bandwidth, latency_s)


@given(st.integers(1, 64), st.integers(1, 8), sizes, bandwidths, bandwidths)
def test_overlapping_hides_at_most_half(p, num_groups, num_bytes, intra, inter):
    groups = Groups(p, intra, inter, num_groups=num_groups)
    overlapped, in_turn = hierarchical_overlapped_s(groups, num_bytes), hierarchical_s(groups, num_bytes)
    assert overlapped <= in_turn <= 2 * overlapped


def test_overlapped_phases_are_the_limit_of_many_parts_in_a_pipeline():
    # Stages: within the groups, both ways, then across; 10 000 parts pass through two buffers.
    within, across = SOCKETS.intra_s(1.0), SOCKETS.inter_s(1.0)
    many_parts = pipelined_s(S, S / 10_000, within, across, 0.0, 0.0)
    assert many_parts == pytest.approx(hierarchical_overlapped_s(SOCKETS, S), rel=1e-3)


@pytest.mark.parametrize("count", [0, -1, 2.5, math.nan, math.inf])
@pytest.mark.parametrize("collective", [ring_s, chapter_ring_s, halving_doubling_s])
def test_a_number_of_ranks_that_is_none_is_refused(collective, count):
    with pytest.raises(ValueError, match=rf"num_ranks must be a whole number >= 1, got {count}\."):
        collective(count, S, INTER)


@pytest.mark.parametrize("num_bytes", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("collective", [ring_s, chapter_ring_s, halving_doubling_s])
def test_a_size_that_is_none_is_refused(collective, num_bytes):
    with pytest.raises(ValueError, match=rf"num_bytes must be finite and >= 0, got {num_bytes}\."):
        collective(8, num_bytes, INTER)


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("collective", [ring_s, chapter_ring_s, halving_doubling_s])
def test_a_bandwidth_that_is_none_is_refused(collective, bandwidth):
    with pytest.raises(ValueError, match=rf"bandwidth_bytes_per_s must be finite and > 0, got {bandwidth}\."):
        collective(8, S, bandwidth)


@pytest.mark.parametrize("collective", [ring_s, chapter_ring_s, halving_doubling_s])
def test_a_negative_latency_is_refused(collective):
    with pytest.raises(ValueError, match=r"latency_s must be finite and >= 0, got -1\.0\."):
        collective(8, S, INTER, -1.0)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_outside_0_to_1_is_refused(share):
    with pytest.raises(ValueError, match=rf"inter_share must be in 0\.\.1, got {share}\."):
        chapter_ring_s(8, S, INTER, inter_share=share)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_ranks": 0}, r"group_ranks must be a whole number >= 1, got 0\."),
        ({"num_groups": 0}, r"num_groups must be a whole number >= 1, got 0\."),
        ({"num_groups": 1.5}, r"num_groups must be a whole number >= 1, got 1\.5\."),
        ({"intra_bandwidth_bytes_per_s": 0.0}, r"intra_bandwidth_bytes_per_s must be finite and > 0, got 0\.0\."),
        ({"inter_bandwidth_bytes_per_s": -1.0}, r"inter_bandwidth_bytes_per_s must be finite and > 0, got -1\.0\."),
        ({"inter_latency_s": math.nan}, r"inter_latency_s must be finite and >= 0, got nan\."),
    ],
)
def test_impossible_groups_are_refused(changes, message):
    figures = {"group_ranks": 4, "intra_bandwidth_bytes_per_s": INTRA, "inter_bandwidth_bytes_per_s": INTER, **changes}
    with pytest.raises(ValueError, match=message):
        Groups(**figures)


@pytest.mark.parametrize("collective", [hierarchical_s, hierarchical_overlapped_s])
def test_a_hierarchy_refuses_a_negative_size(collective):
    with pytest.raises(ValueError, match=r"num_bytes must be finite and >= 0, got -4\.0\."):
        collective(SOCKETS, -4.0)

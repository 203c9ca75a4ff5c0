from __future__ import annotations

import math

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from strategies import toy_machine

from numa_rl.communication.transfers import (
    BUFFERS,
    Aggregation,
    TransferPlan,
    aggregate,
    best_chunk_bytes,
    pipelined_s,
    plan_transfer,
    resource_s_per_byte,
    stream_resources,
    transfer_s,
    unoverlapped_s,
)
from numa_rl.machines.builders import eight_socket_cube, two_socket
from numa_rl.machines.catalog import load_machine, machine_names

EQUATIONS = {transfer_s: 3, pipelined_s: 6, unoverlapped_s: 6, best_chunk_bytes: 6}

sizes = st.floats(1.0, 1e10)
rates = st.just(0.0) | st.floats(1e-13, 1e-9)
latencies = st.just(0.0) | st.floats(1e-9, 1e-4)


def event_driven_s(num_bytes: float, chunk_bytes: float, stages: tuple[float, float, float], latency_s: float) -> float:
    """When the last chunk is merged: each stage takes one chunk after the other, each chunk one stage after the other.

    Chunks are whole, so the last one may be smaller.
    """
    split, transfer, merge = stages
    free = [0.0, 0.0, 0.0]
    left = num_bytes
    while left > 1e-9 * num_bytes:
        chunk = min(chunk_bytes, left)
        left -= chunk
        done = 0.0
        for stage, needed in enumerate((chunk * split, chunk * transfer + latency_s, chunk * merge)):
            done = max(done, free[stage]) + needed
            free[stage] = done
    return free[-1]


# Known answers.


def test_a_gigabyte_at_50_gb_per_s_takes_20_ms_and_the_latency():
    assert transfer_s(1e9, 1 / 50e9, 1e-3) == pytest.approx(0.021)


def test_ten_chunks_through_three_stages_of_1_4_and_2_s():
    # A chunk of 10 bytes: split 1 s, transfer 3 + 1 s, merge 2 s.
    assert pipelined_s(100.0, 10.0, 0.1, 0.3, 0.2, 1.0) == pytest.approx(1 + 4 + 2 + 9 * 4)
    assert unoverlapped_s(100.0, 10.0, 0.1, 0.3, 0.2, 1.0) == pytest.approx(10 * 7)


def test_a_chunk_larger_than_the_message_is_the_message():
    assert pipelined_s(100.0, 1e9, 0.1, 0.3, 0.2, 1.0) == pytest.approx(10 + 31 + 20)
    assert unoverlapped_s(100.0, 1e9, 0.1, 0.3, 0.2, 1.0) == pytest.approx(10 + 31 + 20)


def test_best_chunk_balances_start_up_and_ends_where_the_transfer_is_slowest():
    # sqrt(S L / (a + m)) = sqrt(1e6 x 1e-6 / 4e-10)
    assert best_chunk_bytes(1e6, 1e-10, 1e-9, 3e-10, 1e-6, 1e9) == pytest.approx(50_000)


def test_best_chunk_makes_transfer_and_slowest_stage_equal_where_that_is_smaller():
    # L / (g - b) = 1e-8 / 2e-9, against sqrt(1e6 x 1e-8 / 4e-9) = 1581
    assert best_chunk_bytes(1e6, 1e-9, 1e-9, 3e-9, 1e-8, 1e9) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        ((1e6, 0.0, 1e-9, 0.0, 1e-6, 1e3), 1e3),  # nothing to overlap: the cache
        ((1e2, 0.0, 1e-9, 0.0, 1e-6, 1e3), 1e2),  # nothing to overlap: the message
        ((1e6, 1e-9, 1e-9, 0.0, 0.0, 1e3), 1.0),  # no latency: a byte at a time
        ((1e6, 0.0, 0.0, 0.0, 0.0, 1e3), 1e3),  # no difference
        ((0.0, 1e-9, 1e-9, 1e-9, 1e-6, 1e3), 1.0),  # an empty message
        ((0.0, 0.0, 0.0, 0.0, 0.0, 0.0), 1.0),
    ],
)
def test_best_chunk_at_the_edges(figures, best):
    with np.errstate(all="raise"):
        assert best_chunk_bytes(*figures) == best
        assert best_chunk_bytes(*map(np.float32, figures)) == best


def test_an_empty_message_takes_the_latency():
    for chunk_bytes in (1.0, 1e6):
        assert pipelined_s(0.0, chunk_bytes, 1e-9, 1e-9, 1e-9, 1e-6) == 1e-6
        assert unoverlapped_s(0.0, chunk_bytes, 1e-9, 1e-9, 1e-9, 1e-6) == 1e-6


# Laws.


@given(sizes, rates, rates, rates, latencies)
def test_a_long_pipeline_takes_the_chapters_largest_stage(num_bytes, split, transfer, merge, latency_s):
    slowest = max(split, transfer + latency_s, merge)  # chunks of 1 byte
    seconds = pipelined_s(1e6 * num_bytes, 1.0, split, transfer, merge, latency_s)
    assert seconds == pytest.approx(1e6 * num_bytes * slowest, rel=1e-5)


@given(sizes, st.floats(1.0, 1e10), rates, rates, rates, latencies)
def test_two_buffers_hide_all_but_the_slowest_stage(num_bytes, chunk_bytes, split, transfer, merge, latency_s):
    figures = (num_bytes, chunk_bytes, split, transfer, merge, latency_s)
    single, double = unoverlapped_s(*figures), pipelined_s(*figures)
    assert double <= single * (1 + 1e-12)
    assert single <= 3 * double * (1 + 1e-12)


@settings(deadline=None)
@given(sizes, rates, rates, rates, latencies, st.floats(1.0, 1e9), st.floats(0.0, 1.0))
def test_no_allowed_chunk_beats_the_best(num_bytes, split, transfer, merge, latency_s, most_bytes, position):
    best = best_chunk_bytes(num_bytes, split, transfer, merge, latency_s, most_bytes)
    largest = min(num_bytes, most_bytes)
    assert 1.0 - 1e-9 <= best <= largest
    other = largest**position  # from 1 byte up, evenly in the logarithm
    least, seconds = (pipelined_s(num_bytes, c, split, transfer, merge, latency_s) for c in (best, other))
    assert least <= seconds * (1 + 1e-9)


# Two routes.


@settings(deadline=None, max_examples=50)
@given(sizes.filter(lambda size: size > 2), *[st.floats(1e-13, 1e-9)] * 3, st.floats(1e-9, 1e-4), st.floats(2.0, 1e9))
def test_best_chunk_is_where_scipy_finds_the_minimum(num_bytes, split, transfer, merge, latency_s, most_bytes):
    def seconds(log_chunk: float) -> float:
        return float(pipelined_s(num_bytes, math.exp(log_chunk), split, transfer, merge, latency_s))

    best = best_chunk_bytes(num_bytes, split, transfer, merge, latency_s, most_bytes)
    bounds = (0.0, math.log(min(num_bytes, most_bytes)))
    found = minimize_scalar(seconds, bounds=bounds, method="bounded", options={"xatol": 1e-9})
    assert seconds(math.log(best)) <= found.fun * (1 + 1e-9)
    assert seconds(math.log(best)) == pytest.approx(found.fun, rel=1e-5)


@settings(deadline=None)
@given(st.integers(1, 200), sizes, rates, rates, rates, latencies)
def test_whole_chunks_one_event_after_another_take_the_same(count, chunk_bytes, split, transfer, merge, latency_s):
    expected = event_driven_s(count * chunk_bytes, chunk_bytes, (split, transfer, merge), latency_s)
    got = pipelined_s(count * chunk_bytes, chunk_bytes, split, transfer, merge, latency_s)
    assert got == pytest.approx(expected, rel=1e-9)


@settings(deadline=None)
@given(sizes, st.floats(0.005, 2.0), rates, rates, rates, latencies)
def test_a_smaller_last_chunk_differs_by_less_than_a_chunk(num_bytes, part, split, transfer, merge, latency_s):
    chunk_bytes = part * num_bytes
    expected = event_driven_s(num_bytes, chunk_bytes, (split, transfer, merge), latency_s)
    got = pipelined_s(num_bytes, chunk_bytes, split, transfer, merge, latency_s)
    one_chunk = chunk_bytes * (split + transfer + merge) + latency_s
    assert abs(got - expected) <= one_chunk * (1 + 1e-9)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_numba_compiles_the_equations_for_float32_as_they_are(equation):
    compiled = numba.njit(equation)
    rng = np.random.default_rng(1)
    for _ in range(20):
        sizes_of = rng.uniform(1.0, 1e6, 6).astype(np.float32)
        figures = tuple(sizes_of[: EQUATIONS[equation]])
        got = compiled(*figures)
        assert got == pytest.approx(float(equation(*figures)), rel=1e-5)
    assert [signature.return_type for signature in compiled.nopython_signatures] == [numba.float32]


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equations_broadcast_and_keep_the_dtype(equation, dtype):
    rng = np.random.default_rng(2)
    rows = [rng.uniform(1.0, 1e3, (5, 1)).astype(dtype), *rng.uniform(1.0, 1e3, (5, 3)).astype(dtype)]
    figures = rows[: EQUATIONS[equation]]
    got = equation(*figures)
    assert got.shape == (5, 3)
    assert got.dtype == dtype
    alone = [[equation(*(np.broadcast_to(f, (5, 3))[i, j] for f in figures)) for j in range(3)] for i in range(5)]
    np.testing.assert_array_equal(got, alone)


# Plans.


def test_a_plan_takes_the_rates_of_the_machine():
    plan = plan_transfer(two_socket(), 0, 1, 1e9)
    assert plan.split_s_per_byte == plan.merge_s_per_byte == 1 / 100e9
    assert plan.transfer_s_per_byte == 1 / 30e9
    assert plan.latency_s == 25e-9
    assert plan.most_bytes == two_socket().llc_bytes[1] / BUFFERS


def test_a_transfer_is_as_slow_as_the_slowest_link_on_its_way():
    # Data for node 2 leave node 0 by the link to node 1; the way back is not used.
    machine = toy_machine(3, link_bandwidth_bytes_per_s=[10.0, 50.0, 50.0, 1.0])
    assert machine.links.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]
    assert plan_transfer(machine, 0, 2, 100.0).transfer_s_per_byte == pytest.approx(0.1)
    assert plan_transfer(machine, 2, 0, 100.0).transfer_s_per_byte == pytest.approx(1.0)


def test_a_reader_is_a_row():
    bandwidth = np.array([[100.0, 20.0], [40.0, 100.0]])
    latency = np.array([[1.0, 3.0], [2.0, 1.0]])
    machine = toy_machine(2, bandwidth_bytes_per_s=bandwidth, latency_s=latency)
    plan = plan_transfer(machine, source=1, target=0, num_bytes=100.0)
    assert (plan.transfer_s_per_byte, plan.latency_s) == (1 / 20.0, 3.0)


def test_a_transfer_within_a_node_passes_no_link():
    plan = plan_transfer(two_socket(), 1, 1, 1e9)
    assert (plan.transfer_s_per_byte, plan.latency_s) == (1 / 90e9, 10e-9)


def test_equal_transfer_and_computation_overlap_to_nearly_half_the_time():
    machine = two_socket()
    plan = plan_transfer(machine, 0, 1, 1e9, compute_s_per_byte=1 / 30e9)
    assert plan.split_s_per_byte == 0.0
    assert 1.98 < plan.overlap_gain <= 2.0
    assert 1.98 < plan.gain <= 2.0


@settings(deadline=None)
@given(sizes, st.floats(0.0, 1e-8), st.floats(0.0, 1e-3))
def test_overlap_hides_the_smaller_of_transfer_and_computation(num_bytes, compute, overhead_s):
    plan = plan_transfer(two_socket(), 0, 1, num_bytes, compute_s_per_byte=compute, overhead_s=overhead_s)
    transfer = num_bytes * plan.transfer_s_per_byte + plan.num_chunks * plan.latency_s
    hidden = plan.single_buffered_s - plan.double_buffered_s
    assert hidden <= min(transfer, num_bytes * compute) * (1 + 1e-9) + 1e-15
    assert plan.overlap_gain <= 2.0 + 1e-9
    assert plan.gain <= 2.0 + 1e-9


plans = st.builds(
    TransferPlan, sizes, st.floats(1.0, 1e9), rates, st.floats(1e-13, 1e-9), rates, latencies.filter(lambda s: s > 0)
)


@settings(deadline=None)
@given(plans)
def test_a_plan_keeps_its_order_of_times(plan):
    assert plan.chapter_s <= plan.double_buffered_s * (1 + 1e-9)
    assert plan.double_buffered_s <= plan.single_buffered_s * (1 + 1e-9)
    assert plan.chunk_bytes <= plan.most_bytes * (1 + 1e-9)
    if plan.num_bytes <= plan.most_bytes:
        assert plan.gain >= 1.0 - 1e-9


@settings(deadline=None)
@given(plans.filter(lambda plan: plan.num_chunks < 300))
def test_no_other_number_of_chunks_beats_the_planned_one(plan):
    figures = (plan.split_s_per_byte, plan.transfer_s_per_byte, plan.merge_s_per_byte, plan.latency_s)
    allowed = [n for n in range(1, 400) if n * plan.most_bytes >= plan.num_bytes]
    others = [pipelined_s(plan.num_bytes, plan.num_bytes / n, *figures) for n in allowed]
    assert plan.double_buffered_s <= min(others) * (1 + 1e-9)
    one_by_one = event_driven_s(plan.num_bytes, plan.chunk_bytes, figures[:3], plan.latency_s)
    assert plan.double_buffered_s == pytest.approx(one_by_one, rel=1e-6)


@pytest.mark.parametrize("name", machine_names())
def test_every_machine_gains_from_chunks_on_every_way(name):
    machine = load_machine(name)
    for source in range(machine.num_nodes):
        for target in range(machine.num_nodes):
            plan = plan_transfer(machine, source, target, 1e9)
            assert plan.num_chunks > 1
            assert plan.chunk_bytes <= machine.llc_bytes[target] / BUFFERS
            assert 1.0 < plan.gain <= 3.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": 2}, r"source must be a node of chapter-2-socket, 0 to 1, got 2\."),
        ({"target": -1}, r"target must be a node of chapter-2-socket, 0 to 1, got -1\."),
        ({"target": 0.5}, r"target must be a node of chapter-2-socket, 0 to 1, got 0\.5\."),
        ({"num_bytes": 0.0}, r"num_bytes must be finite and > 0, got 0\.0\."),
        ({"num_bytes": -5.0}, r"num_bytes must be finite and > 0, got -5\.0\."),
        ({"num_bytes": math.nan}, r"num_bytes must be finite and > 0, got nan\."),
        ({"num_bytes": math.inf}, r"num_bytes must be finite and > 0, got inf\."),
        ({"compute_s_per_byte": -1.0}, r"compute_s_per_byte must be finite and >= 0, got -1\.0\."),
        ({"overhead_s": math.nan}, r"overhead_s must be finite and >= 0, got nan\."),
    ],
)
def test_an_impossible_transfer_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plan_transfer(two_socket(), **{"source": 0, "target": 1, "num_bytes": 1e6, **changes})


def test_a_cache_of_less_than_two_bytes_holds_no_chunk():
    with pytest.raises(ValueError, match=r"most_bytes must be finite and >= 1, got 0\.5\."):
        plan_transfer(toy_machine(2, llc_bytes=1.0), 0, 1, 100.0)


# Streams.


def test_a_stream_across_the_cube_takes_the_links_toward_the_reader():
    machine = eight_socket_cube()
    occupied = stream_resources(machine, source=7, target=0)
    links = machine.links[occupied[2:] - 8 * 8 - 8]
    assert links[0, 0] == 7
    assert links[-1, 1] == 0
    np.testing.assert_array_equal(links[1:, 0], links[:-1, 1])
    assert occupied[0] == 7  # row 0, column 7
    assert occupied[1] == 64 + 7  # the memory of node 7
    np.testing.assert_allclose(1 / resource_s_per_byte(machine)[occupied], [30e9, 100e9, 30e9, 30e9, 30e9])


# Aggregation.


def test_aggregating_three_messages_saves_two_latencies_and_copies_each_byte():
    # The link moves 50 bytes a second with 2 s of latency; memory copies 100 bytes a second.
    parcel = aggregate(toy_machine(2), 0, 1, [50.0, 100.0, 150.0])
    assert parcel.one_by_one_s == pytest.approx(6.0 + 3 * 2.0)
    assert parcel.aggregated_s == pytest.approx(3.0 + 6.0 + 2.0)
    assert parcel.gain == pytest.approx(12 / 11)
    assert parcel.break_even_bytes == pytest.approx(2 / 3 * 2.0 * 100.0)


def test_one_message_never_gains():
    parcel = aggregate(two_socket(), 0, 1, [1.0])
    assert parcel.break_even_bytes == 0.0
    assert parcel.gain < 1.0


def test_free_copies_always_pay():
    assert Aggregation(np.ones(3), 1.0, 0.0, 1.0).break_even_bytes == math.inf


def test_overhead_makes_aggregation_pay_for_larger_messages():
    plain, slow = (aggregate(two_socket(), 0, 1, np.ones(64), overhead_s=s).break_even_bytes for s in (0.0, 1e-6))
    assert plain == pytest.approx(63 / 64 * 25e-9 * 90e9)
    assert slow == pytest.approx(63 / 64 * 1025e-9 * 90e9)


@given(st.integers(2, 50), st.floats(1e-3, 1e3), st.floats(0.0, 0.9), st.sampled_from([0, 1, 2]))
def test_aggregation_pays_below_the_break_even_and_not_above(count, scale, spread, target):
    machine = toy_machine(3)
    weights = 1.0 + spread * np.linspace(-1.0, 1.0, count)  # unequal messages of mean 1
    break_even = aggregate(machine, 0, target, weights).break_even_bytes
    gains = [aggregate(machine, 0, target, weights * break_even * factor).gain for factor in (1.0, 0.99, 1.01)]
    assert gains[0] == pytest.approx(1.0)
    assert gains[1] > 1.0 > gains[2]
    away = aggregate(machine, 0, target, weights * break_even * scale)
    assert (away.gain > 1.0) == (scale < 1.0) or scale == pytest.approx(1.0)


def test_messages_are_kept_as_they_were():
    messages = np.ones(3)
    parcel = aggregate(two_socket(), 0, 1, messages)
    messages[:] = 1e9
    np.testing.assert_array_equal(parcel.message_bytes, [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="read-only"):
        parcel.message_bytes[0] = 2.0


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], r"message_bytes must hold one or more sizes in one row, got shape \(0,\)\."),
        ([[1.0], [2.0]], r"message_bytes must hold one or more sizes in one row, got shape \(2, 1\)\."),
        (3.0, r"message_bytes must hold one or more sizes in one row, got shape \(\)\."),
        ([1.0, -2.0], r"message_bytes\[1\] must be finite and >= 0, got -2\.0\."),
        ([math.nan, 1.0], r"message_bytes\[0\] must be finite and >= 0, got nan\."),
        ([math.inf], r"message_bytes\[0\] must be finite and >= 0, got inf\."),
    ],
)
def test_impossible_messages_are_refused(messages, message):
    with pytest.raises(ValueError, match=message):
        aggregate(two_socket(), 0, 1, messages)

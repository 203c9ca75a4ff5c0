"""The roofline: exercises 1 and 3, ceilings of machines, and every cell of the tuning table."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import machines, toy_machine

from numa_rl.ceilings import machine_ceilings, node_ceilings
from numa_rl.machines.builders import four_socket, ring
from numa_rl.machines.catalog import load_machine, machine_names
from numa_rl.roofline import (
    TUNING_TABLE,
    Level,
    attainable,
    byte_weighted_bandwidth,
    effective_bandwidth,
    mean_latency,
    ridge_point,
    tuning,
)

shares = st.floats(0.0, 1.0)
bandwidths = st.floats(1e6, 1e13)

# Known answers.


def test_exercise_1_mean_latency_is_18_ns_and_80_percent_over_local():
    mean = mean_latency([0.6, 0.3, 0.1], [10e-9, 25e-9, 45e-9])
    assert mean == pytest.approx(18e-9)
    assert mean / 10e-9 - 1.0 == pytest.approx(0.80)


def test_exercise_3_effective_bandwidth_is_75_gb_per_s_and_75_percent_of_peak():
    machine = four_socket()
    assert effective_bandwidth(0.75, 90e9, 30e9) == 75e9
    whole = machine_ceilings(machine).mixed_bytes_per_s(0.75)
    assert whole == pytest.approx(4 * 75e9)
    assert whole / machine.memory_bandwidth_bytes_per_s.sum() == pytest.approx(0.75)


def test_times_per_byte_add_to_60_gb_per_s_where_the_chapter_has_75():
    assert byte_weighted_bandwidth(0.75, 90e9, 30e9) == pytest.approx(60e9)


def test_memory_bounds_below_the_ridge_and_the_peak_above():
    assert ridge_point(100.0, 25.0) == 4.0
    np.testing.assert_array_equal(attainable(np.array([0.0, 1.0, 4.0, 8.0]), 100.0, 25.0), [0.0, 25.0, 100.0, 100.0])
    assert attainable(2.0, 100.0, 25.0) == 50.0


def test_ceilings_of_a_toy_are_those_of_its_pairs():
    bandwidth = [[90.0, 50.0, 20.0], [50.0, 80.0, 40.0], [20.0, 40.0, 70.0]]
    machine = toy_machine(3, bandwidth_bytes_per_s=bandwidth, cores=[2, 1, 1])
    first = node_ceilings(machine, 0)
    assert first.peak_flops_per_s == 200.0
    assert first.local_bytes_per_s == 90.0
    remote = (first.best_remote_bytes_per_s, first.mean_remote_bytes_per_s, first.worst_remote_bytes_per_s)
    assert remote == (50.0, 35.0, 20.0)
    whole = machine_ceilings(machine)
    assert (whole.peak_flops_per_s, whole.local_bytes_per_s) == (400.0, 240.0)
    assert whole.mean_remote_bytes_per_s == pytest.approx(35.0 + 45.0 + 30.0)
    assert (whole.best_remote_bytes_per_s, whole.worst_remote_bytes_per_s) == (50 + 50 + 40, 20 + 40 + 20)


def test_a_memory_only_node_serves_but_computes_nothing():
    expander = load_machine("cxl-expander")
    whole = machine_ceilings(expander)
    assert whole == node_ceilings(expander, 0)
    assert whole.peak_flops_per_s == 16 * 80e9
    assert whole.local_bytes_per_s == pytest.approx(30.5628e9)
    assert whole.worst_remote_bytes_per_s == pytest.approx(4.7953e9)
    with pytest.raises(ValueError, match=r"node must be one that has cores \(0\), got 1, which is memory only"):
        node_ceilings(expander, 1)


def test_a_controller_slower_than_its_pair_is_the_ceiling():
    machine = toy_machine(2, memory_bandwidth_bytes_per_s=[60.0, 30.0])
    ceilings = node_ceilings(machine, 0)
    assert (ceilings.local_bytes_per_s, ceilings.best_remote_bytes_per_s) == (60.0, 30.0)


def test_one_node_has_no_remote_ceiling():
    ceilings = machine_ceilings(toy_machine(1))
    assert ceilings.mean_remote_bytes_per_s is None
    assert ceilings.mixed_bytes_per_s(1.0) == ceilings.byte_weighted_bytes_per_s(1.0) == 100.0
    with pytest.raises(ValueError, match=r"local_share must be 1 where there is one node only, got 0\.5"):
        ceilings.mixed_bytes_per_s(0.5)
    with pytest.raises(ValueError, match=r"local_share must be in \[0, 1\], got nan"):
        ceilings.mixed_bytes_per_s(math.nan)


# The tuning table.

INTENSITIES = {Level.LOW: (0.0, 0.1, 0.4999), Level.MIDDLE: (0.5, 1.0, 4.0), Level.HIGH: (4.0001, 100.0)}
LOCAL_SHARES = {Level.LOW: (0.0, 0.4999), Level.MIDDLE: (0.5, 0.7999), Level.HIGH: (0.8, 1.0)}


@pytest.mark.parametrize(("intensity", "locality"), [*product(Level, Level)])
def test_every_cell_is_reached_from_all_of_its_borders(intensity, locality):
    for flop_per_byte, local_share in product(INTENSITIES[intensity], LOCAL_SHARES[locality]):
        cell = tuning(flop_per_byte, local_share)
        assert (cell.intensity, cell.locality) == (intensity, locality)


def test_every_cell_has_a_strategy_of_its_own_and_something_to_run():
    assert len({cell.strategy for cell in TUNING_TABLE.values()}) == len(TUNING_TABLE) == 9
    assert len({cell.advice for cell in TUNING_TABLE.values()}) == 9
    for cell in TUNING_TABLE.values():
        assert "\n" not in cell.advice
        assert any(command.split()[0] in ("numactl", "numastat", "perf") for command in cell.commands)


def test_memory_bound_and_remote_moves_data_and_compute_bound_and_local_vectorises():
    assert tuning(0.25, 0.3).strategy == "move data to tasks"
    assert tuning(64.0, 0.95).strategy == "vectorise"


# Laws.


@given(shares, bandwidths, bandwidths)
def test_both_bandwidths_lie_between_local_and_remote_and_the_chapters_is_never_lower(share, local, remote):
    by_time, by_bytes = effective_bandwidth(share, local, remote), byte_weighted_bandwidth(share, local, remote)
    slack = 1.0 + 1e-9
    for mixed in (by_time, by_bytes):
        assert min(local, remote) <= mixed * slack
        assert mixed <= max(local, remote) * slack
    assert by_bytes <= by_time * slack


@given(bandwidths, bandwidths)
def test_at_the_ends_both_bandwidths_are_the_pure_ones(local, remote):
    for mean in (effective_bandwidth, byte_weighted_bandwidth):
        assert mean(1.0, local, remote) == pytest.approx(local)
        assert mean(0.0, local, remote) == pytest.approx(remote)


@given(st.floats(0.0, 1e6), st.floats(1.0, 1e15), bandwidths, st.floats(1.0, 10.0))
def test_the_roof_rises_with_intensity_and_bandwidth_and_meets_the_peak_at_the_ridge(intensity, peak, bandwidth, more):
    roof = attainable(intensity, peak, bandwidth)
    assert roof <= attainable(intensity * more, peak, bandwidth)
    assert roof <= attainable(intensity, peak, bandwidth * more)
    assert attainable(ridge_point(peak, bandwidth), peak, bandwidth) == pytest.approx(peak)


@given(st.integers(1, 10**6), shares)
def test_bytes_keep_their_time_in_the_byte_weighted_bandwidth(num_bytes, share):
    seconds = share * num_bytes / 90e9 + (1.0 - share) * num_bytes / 30e9
    assert num_bytes / byte_weighted_bandwidth(share, 90e9, 30e9) == pytest.approx(seconds)


@given(st.lists(st.tuples(st.integers(1, 100), st.floats(1e-9, 1e-6)), min_size=1, max_size=6))
def test_mean_latency_is_that_of_all_accesses_counted(classes):
    counts, latency_s = zip(*classes, strict=True)
    total = sum(counts)
    mean = mean_latency([count / total for count in counts], latency_s)
    assert mean == pytest.approx(np.repeat(latency_s, counts).mean())


# Two routes that agree.


@given(machines(), shares)
def test_the_machine_is_the_sum_of_its_nodes_that_have_cores(machine, share):
    nodes = [node_ceilings(machine, node) for node in np.flatnonzero(machine.cores).tolist()]
    whole = machine_ceilings(machine)
    assert whole.peak_flops_per_s == pytest.approx(sum(node.peak_flops_per_s for node in nodes))
    assert whole.local_bytes_per_s == pytest.approx(sum(node.local_bytes_per_s for node in nodes))
    if machine.num_nodes > 1:
        by_time = [node.mixed_bytes_per_s(share) for node in nodes]
        by_bytes = [node.byte_weighted_bytes_per_s(share) for node in nodes]
        assert whole.mixed_bytes_per_s(share) == pytest.approx(sum(by_time))
        assert whole.byte_weighted_bytes_per_s(share) == pytest.approx(sum(by_bytes))
        assert whole.mean_remote_bytes_per_s == pytest.approx(sum(node.mean_remote_bytes_per_s for node in nodes))
        slack = 1.0 + 1e-12
        assert whole.worst_remote_bytes_per_s <= whole.mean_remote_bytes_per_s * slack
        assert whole.mean_remote_bytes_per_s <= whole.best_remote_bytes_per_s * slack


# Real machines.


@pytest.mark.parametrize("name", machine_names())
def test_every_machine_has_ceilings_within_its_controllers(name):
    machine = load_machine(name)
    whole = machine_ceilings(machine)
    assert whole.local_bytes_per_s <= machine.memory_bandwidth_bytes_per_s[machine.cores > 0].sum()
    assert whole.worst_remote_bytes_per_s <= whole.mean_remote_bytes_per_s <= whole.best_remote_bytes_per_s
    assert ridge_point(whole.peak_flops_per_s, whole.local_bytes_per_s) > 0.0


# Bad input.


@pytest.mark.parametrize("share", [-0.01, 1.01, math.nan, math.inf])
def test_a_share_outside_0_to_1_is_refused_with_its_value(share):
    for call in (
        lambda: effective_bandwidth(share, 1.0, 1.0),
        lambda: byte_weighted_bandwidth(share, 1.0, 1.0),
        lambda: tuning(1.0, share),
    ):
        with pytest.raises(ValueError, match=rf"local_share must be in \[0, 1\], got {share}"):
            call()


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, math.nan, math.inf])
def test_a_bandwidth_that_is_not_positive_is_refused_with_its_name(bandwidth):
    with pytest.raises(ValueError, match=rf"local_bytes_per_s must be finite and > 0, got {bandwidth}"):
        effective_bandwidth(0.5, bandwidth, 1.0)
    with pytest.raises(ValueError, match=rf"remote_bytes_per_s must be finite and > 0, got {bandwidth}"):
        byte_weighted_bandwidth(0.5, 1.0, bandwidth)
    with pytest.raises(ValueError, match=rf"bandwidth_bytes_per_s must be finite and > 0, got {bandwidth}"):
        attainable(1.0, 1.0, bandwidth)
    with pytest.raises(ValueError, match=rf"peak_flops_per_s must be finite and > 0, got {bandwidth}"):
        ridge_point(bandwidth, 1.0)


@pytest.mark.parametrize("intensity", [-0.5, math.nan, math.inf])
def test_an_intensity_that_is_negative_or_not_finite_is_refused(intensity):
    message = rf"intensity must be finite and >= 0, got {intensity}"
    with pytest.raises(ValueError, match=message):
        attainable(intensity, 1.0, 1.0)
    with pytest.raises(ValueError, match=message):
        attainable(np.array([1.0, intensity]), 1.0, 1.0)
    with pytest.raises(ValueError, match=message):
        tuning(intensity, 0.5)


def test_latency_shares_must_sum_to_1_and_the_message_has_the_sum():
    with pytest.raises(ValueError, match=r"shares must sum to 1, got 0\.9\."):
        mean_latency([0.6, 0.3], [10e-9, 25e-9])
    with pytest.raises(ValueError, match=r"shares\[1\] must be in \[0, 1\], got -0\.3"):
        mean_latency([1.3 - 0.3, -0.3, 0.3], [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"latency_s\[0\] must be finite and > 0, got 0"):
        mean_latency([1.0], [0.0])
    with pytest.raises(ValueError, match=r"one value for each class, got 2 and 1"):
        mean_latency([0.5, 0.5], [1.0])
    with pytest.raises(ValueError, match=r"one value for each class, got 0 and 0"):
        mean_latency([], [])


def test_a_node_that_is_not_there_is_refused():
    for node in (-1, 3):
        with pytest.raises(ValueError, match=rf"node must be in 0\.\.2, got {node}"):
            node_ceilings(ring(3), node)

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from numa_rl.coherence.protocol import (
    HITM_READER_HOMED_NS,
    HITM_WRITER_HOMED_NS,
    IDLE_NS,
    IMPOSSIBLE,
    LineState,
    TransitionCosts,
    resident_bytes,
    responder_ratios,
    transition_s,
)
from numa_rl.machines.catalog import load_machine

M, E, S, I, F = LineState  # noqa: E741
MEASURED = Path(__file__).parents[1].parent / "shared" / "data" / "machines" / "measured_machines.json"
SOCKETS = np.array([0, 0, 1, 1])
ACROSS = SOCKETS[:, None] != SOCKETS


def test_states_stand_in_the_chapters_order():
    assert [state.name for state in LineState] == ["M", "E", "S", "I", "F"]


def test_default_costs_follow_from_the_measured_means():
    ratio = TransitionCosts().ratio  # 134.41 ns idle, 110.375 and 171.7625 ns of HitM
    np.testing.assert_allclose(ratio[[I, I, S, F], [F, M, M, M]], 110.375 / 134.4125)
    np.testing.assert_allclose(ratio[M, [S, I]], (171.7625 - 110.375) / 2 / 134.4125)
    assert ratio[I, E] == 1.0
    assert not ratio[[E, F, E, S, F, E], [S, S, I, I, I, M]].any()
    assert not ratio.diagonal().any()
    assert np.isnan(ratio).sum() == len(IMPOSSIBLE) == 7


def test_a_holder_answers_with_its_own_transition_added():
    transfer, home, upgrade = 110.375 / 134.4125, (171.7625 - 110.375) / 2 / 134.4125, 110.375 / 134.4125
    ratios = responder_ratios(TransitionCosts())
    assert ratios.dtype == np.float32
    np.testing.assert_allclose(
        ratios, [[transfer + home, transfer, transfer, 0.0], [transfer + home, transfer, transfer, upgrade]], rtol=1e-6
    )


def test_each_cell_of_the_answer_comes_from_its_own_transitions():
    numbers = np.array([[0, 10, 20, 30, 1], [2, 0, 40, 50, 1], [3, 1, 0, 4, 1], [5, 6, 1, 0, 7], [8, 1, 60, 70, 9.0]])
    for before, after in IMPOSSIBLE:
        numbers[before, after] = np.nan
    ratios = responder_ratios(TransitionCosts(numbers, "made up"))
    assert ratios.tolist() == [[27, 47, 67, 9], [35, 55, 75, 8]]


def test_sixteen_lines_in_flight_cost_one_latency():
    assert transition_s(1024, 1.0, 100e-9, 1024) == pytest.approx(100e-9)
    np.testing.assert_allclose(transition_s(np.array([512, 4096]), 0.5, 100e-9, 1024), [25e-9, 200e-9])


def test_what_streams_through_pushes_out_the_oldest():
    cached, passed = np.array([10.0, 10, 10, 10, 200]), np.array([0.0, 90, 95, 300, 0])
    assert resident_bytes(cached, 100.0, passed).tolist() == [10, 10, 5, 0, 100]


def test_the_measured_latencies_are_those_of_the_preset():
    assert (load_machine("xeon-8269cy-snc2").latency_s[ACROSS] * 1e9).round(6).tolist() == list(IDLE_NS)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("idle_latency_ns", IDLE_NS),
        ("cache_to_cache_hitm_ns_writer_homed", HITM_WRITER_HOMED_NS),
        ("cache_to_cache_hitm_ns_reader_homed", HITM_READER_HOMED_NS),
    ],
)
def test_the_measured_latencies_are_those_of_the_source(name, values):
    if not MEASURED.is_file():
        pytest.skip("measured_machines.json is not beside the repository")
    machine = json.loads(MEASURED.read_text(encoding="utf-8"))["machines"]["intel_xeon_8269cy_2s_snc2"]
    assert np.array(machine[name], dtype=float)[ACROSS].tolist() == list(values)


def test_the_matrix_cannot_be_written_and_does_not_follow_its_origin():
    numbers = TransitionCosts().ratio.copy()
    costs = TransitionCosts(numbers, "a copy")
    numbers[I, E] = 9.0
    assert costs.ratio[I, E] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        costs.ratio[I, E] = 2.0


@pytest.mark.parametrize("value", [-1.0, np.inf, np.nan])
def test_a_cost_must_be_finite_and_not_negative(value):
    numbers = TransitionCosts().ratio.copy()
    numbers[S, M] = value
    with pytest.raises(ValueError, match=rf"ratio of S -> M must be finite and >= 0, got {value}\."):
        TransitionCosts(numbers, "broken")


def test_a_transition_that_is_never_made_has_no_cost():
    numbers = TransitionCosts().ratio.copy()
    numbers[I, S] = 1.0
    with pytest.raises(ValueError, match=r"ratio of I -> S must be nan, .* got 1\.0"):
        TransitionCosts(numbers, "broken")


def test_the_matrix_has_five_rows_and_columns():
    with pytest.raises(ValueError, match=r"shape \(5, 5\), .* got \(4, 5\)"):
        TransitionCosts(np.zeros((4, 5)), "broken")

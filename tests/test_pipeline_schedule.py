from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numa_rl.transformer.pipeline_schedule import (
    SCHEDULES,
    Operations,
    bubble_fraction,
    bubble_over_ideal,
    live_activations,
    operations,
    peak_activations,
    timeline,
)

times = st.floats(0.1, 10.0)


@st.composite
def shapes(draw):
    """A schedule with stages, micro-batches and chunks that it can have."""
    schedule, p = draw(st.sampled_from(SCHEDULES)), draw(st.integers(1, 6))
    if schedule == "interleaved":
        return schedule, p, p * draw(st.integers(1, 4)), draw(st.integers(2, 4))
    return schedule, p, draw(st.integers(1, 12)), 1


def of_stage(ops: Operations, stage: int) -> str:
    """Its operations in words: F2 is the forward pass of micro-batch 2; b2 one of chunk 1, and so on."""
    mine = np.flatnonzero(ops.stage == stage)
    letters = {(False, 0): "F", (True, 0): "B", (False, 1): "f", (True, 1): "b"}
    return " ".join(f"{letters[bool(ops.backward[i]), int(ops.chunk[i])]}{ops.micro_batch[i]}" for i in mine)


def test_gpipe_runs_all_forward_passes_and_then_goes_back_from_the_last():
    ops = operations("gpipe", 2, 3)
    assert [of_stage(ops, stage) for stage in (0, 1)] == ["F0 F1 F2 B2 B1 B0"] * 2


def test_1f1b_of_2_stages():
    ops = operations("1f1b", 2, 3)
    assert of_stage(ops, 0) == "F0 F1 B0 F2 B1 B2"
    assert of_stage(ops, 1) == "F0 B0 F1 B1 F2 B2"


def test_interleaved_stages_take_p_micro_batches_through_all_chunks():
    ops = operations("interleaved", 2, 4, 2)
    assert of_stage(ops, 0) == "F0 F1 f0 f1 F2 b0 F3 b1 f2 B0 f3 B1 b2 b3 B2 B3"
    assert of_stage(ops, 1) == "F0 F1 f0 b0 f1 b1 F2 B0 F3 B1 f2 b2 f3 b3 B2 B3"


def test_4_stages_and_8_micro_batches_idle_3_of_11():
    assert bubble_fraction("1f1b", 4, 8) == bubble_fraction("gpipe", 4, 8) == pytest.approx(3 / 11)
    assert bubble_over_ideal("1f1b", 4, 8) == pytest.approx(3 / 8)


def test_2_chunks_halve_the_bubble_over_ideal_time():
    assert bubble_over_ideal("interleaved", 4, 8, 2) == pytest.approx(3 / 16)
    assert bubble_fraction("interleaved", 4, 8, 2) == pytest.approx(3 / 19)


def test_gpipe_keeps_every_micro_batch_and_1f1b_one_for_each_stage_still_ahead():
    assert peak_activations("gpipe", 4, 8).tolist() == [8, 8, 8, 8]
    assert peak_activations("1f1b", 4, 8).tolist() == [4, 3, 2, 1]
    assert peak_activations("1f1b", 4, 2).tolist() == [2, 2, 2, 1]
    assert peak_activations("interleaved", 4, 8, 2).tolist() == [5.5, 4.5, 3.5, 2.5]


def test_a_message_delays_the_first_and_the_last_pass_at_every_border():
    line = timeline(operations("gpipe", 3, 1), 1.0, 2.0, [10.0, 100.0])
    assert line.makespan_s == 3 * 3.0 + 2 * 110.0


def test_where_nothing_takes_time_nobody_is_idle():
    assert timeline(operations("1f1b", 2, 2), 0.0, 0.0).bubble_fraction == 0.0


def test_one_stage_is_never_idle_and_sends_nothing():
    assert timeline(operations("interleaved", 1, 3, 2), 1.0, 2.0, 5.0).makespan_s == 3 * 2 * 3.0


@given(shapes(), times, times)
def test_equal_pieces_idle_as_the_closed_form_says(shape, forward_s, backward_s):
    line = timeline(operations(*shape), forward_s, backward_s)
    assert line.bubble_fraction == pytest.approx(bubble_fraction(*shape), abs=1e-12)
    _, _, m, v = shape
    ideal_s = m * v * (forward_s + backward_s)
    assert line.makespan_s == pytest.approx(ideal_s * (1.0 + bubble_over_ideal(*shape)))


@given(shapes())
def test_activations_counted_along_the_order_are_the_closed_form(shape):
    ops = operations(*shape)
    np.testing.assert_allclose(live_activations(ops) / ops.num_chunks, peak_activations(*shape))


@given(shapes())
def test_every_pass_is_there_once_and_after_what_it_waits_for(shape):
    _, p, m, v = shape
    ops = operations(*shape)
    passes = set(zip(ops.piece.tolist(), ops.micro_batch.tolist(), ops.backward.tolist(), strict=True))
    assert len(ops) == len(passes) == 2 * p * m * v
    assert len(ops.waits) == m * (3 * p * v - 2)
    assert (ops.waits[:, 0] < ops.waits[:, 1]).all()
    assert len(ops.turns) == len(ops) - p
    assert (ops.turns[:, 0] < ops.turns[:, 1]).all()
    before, after = ops.waits.T
    assert (ops.micro_batch[before] == ops.micro_batch[after]).all()


@given(shapes(), st.data())
def test_no_stage_does_two_things_at_once(shape, data):
    ops = operations(*shape)
    pieces = ops.num_stages * ops.num_chunks
    forward_s, backward_s = (data.draw(st.lists(times, min_size=pieces, max_size=pieces)) for _ in range(2))
    line = timeline(ops, forward_s, backward_s, data.draw(times))
    for stage in range(ops.num_stages):
        mine = ops.stage == stage
        assert (line.start_s[mine][1:] >= line.end_s[mine][:-1] - 1e-9).all()
    assert line.makespan_s >= line.busy_s.max() - 1e-9
    np.testing.assert_allclose(
        line.busy_s.sum(), ops.num_micro_batches * (np.sum(forward_s) + np.sum(backward_s)), rtol=1e-9
    )


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (("2f2b", 2, 2), r"schedule must be one of gpipe, 1f1b, interleaved, got '2f2b'\."),
        (("1f1b", 0, 2), r"num_stages must be a whole number >= 1, got 0\."),
        (("1f1b", 2, 2.5), r"num_micro_batches must be a whole number >= 1, got 2\.5\."),
        (("1f1b", 2, float("nan")), r"num_micro_batches must be a whole number >= 1, got nan\."),
        (("1f1b", 2, float("inf")), r"num_micro_batches must be a whole number >= 1, got inf\."),
        (("gpipe", 2, 2, 2), r"num_chunks must be 1 for gpipe, got 2; the interleaved schedule has chunks\."),
        (("interleaved", 2, 2), r"num_chunks must be >= 2 for interleaved, got 1; 1f1b is the schedule with one\."),
        (("interleaved", 8, 12, 2), r"multiple of num_stages \(8\) for interleaved, got 12; 8 or 16 would do\."),
        (("interleaved", 8, 3, 2), r"multiple of num_stages \(8\) for interleaved, got 3; 8 would do\."),
    ],
)
def test_a_schedule_that_there_is_not_is_an_error(shape, message):
    for function in (operations, bubble_fraction, bubble_over_ideal, peak_activations):
        with pytest.raises(ValueError, match=message):
            function(*shape)


def test_a_schedule_of_millions_of_operations_is_refused():
    with pytest.raises(ValueError, match=r"at most 1000000 operations, 2 p m v, got 2000000\."):
        operations("1f1b", 1000, 1000)


@pytest.mark.parametrize(
    ("given_s", "message"),
    [
        ((-1.0, 1.0), r"forward_s must be finite and >= 0, got -1\.0\."),
        ((1.0, [1.0, float("nan")]), r"backward_s must be finite and >= 0, got nan\."),
        ((1.0, [1.0] * 3), r"backward_s must have shape \(2,\) or be one number, got shape \(3,\)\."),
        ((1.0, 1.0, [1.0] * 2), r"communication_s must have shape \(1,\) or be one number, got shape \(2,\)\."),
    ],
)
def test_times_that_do_not_fit_are_an_error(given_s, message):
    with pytest.raises(ValueError, match=message):
        timeline(operations("1f1b", 2, 2), *given_s)

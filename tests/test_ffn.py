"""The feed-forward part split over nodes: six ways give the plain output, and send, hold and compute as they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numa_rl.communication.collectives import ring_s
from numa_rl.machines.builders import eight_socket_cube
from numa_rl.machines.catalog import load_machine
from numa_rl.transformer.ffn import WAYS, Collective, FeedForward, cost, memory_bytes, require_divisible, sent_bytes
from numa_rl.transformer.ffn_run import feed_forward, gelu, relu, run_split

BY_NAME = {way.name: way for way in WAYS}
COLUMN_ROW, REPLICATED, GATHERED = BY_NAME["column-row"], BY_NAME["replicated"], BY_NAME["gathered weights"]
CUBE = eight_socket_cube()
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)


def matrices(n: int, d: int, m: int, seed: int = 0, dtype: type = np.float64) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape).astype(dtype) for shape in ((n, d), (d, m), (m, d)))


# Known answers


def test_gelu_and_relu_at_known_points():
    np.testing.assert_allclose(gelu(np.array([-1.0, 0.0, 1.0])), [-0.15865525, 0.0, 0.84134475])
    np.testing.assert_array_equal(relu(np.array([-1.0, 0.0, 1.0])), [0.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("name", "collectives", "sent", "held"),
    [
        # n d = 2, n m = 8, d m = 16 elements of a byte on 2 ranks: weights 16, X, X W_1 and Y.
        ("column-row", ["all-reduce Y"], 2 * 2, 16 + 2 + 4 + 2),
        ("column-column", ["all-gather X W_1", "all-gather Y"], 8 + 2, 16 + 2 + 8 + 2),
        ("row-row", ["reduce-scatter X W_1", "reduce-scatter Y"], 8 + 2, 16 + 1 + 8 + 2),
        ("row-column", ["all-reduce X W_1"], 2 * 8, 16 + 1 + 8 + 1),
        ("gathered weights", ["all-gather W_1", "all-gather W_2"], 2 * 16, 32 + 2 + 8 + 2),
        ("replicated", [], 0, 32 + 2 + 8 + 2),
    ],
)
def test_one_token_of_width_two_on_two_ranks_by_hand(name, collectives, sent, held):
    way, shape = BY_NAME[name], FeedForward(1, 2, 8, bytes_per_element=1)
    assert [f"{kind} {matrix}" for kind, matrix in way.collectives] == collectives
    assert sent_bytes(way, shape, 2) == sent
    assert memory_bytes(way, shape, 2) == held


@pytest.mark.parametrize(
    ("name", "closed"),
    [
        ("column-row", lambda n, d, m, p: 2 * (p - 1) * n * d),
        ("column-column", lambda n, d, m, p: (p - 1) * n * (m + d)),
        ("row-row", lambda n, d, m, p: (p - 1) * n * (m + d)),
        ("row-column", lambda n, d, m, p: 2 * (p - 1) * n * m),
        ("gathered weights", lambda n, d, m, p: (p - 1) * 2 * d * m),
        ("replicated", lambda n, d, m, p: 0),
    ],
)
def test_bytes_are_the_closed_forms(name, closed):
    for n, d, m, p in ((1, 8, 32, 8), (100, 64, 96, 4), (7, 6, 30, 3), (5, 4, 4, 1)):
        assert sent_bytes(BY_NAME[name], FeedForward(n, d, m, 2), p) == 2 * closed(n, d, m, p)


def test_the_all_reduce_is_of_batch_by_sequence_by_width():
    # 4 sequences of 512 tokens, width 1024, 2 bytes: 4.2 MB, of which each of 8 ranks sends 14 eighths.
    assert sent_bytes(COLUMN_ROW, FeedForward(4 * 512, 1024, 4096), 8) == 14 * 4 * 512 * 1024 * 2


def test_columns_then_rows_send_two_and_a_half_and_four_times_less():
    shape = FeedForward(2048, 4096, 16384)
    least = sent_bytes(COLUMN_ROW, shape, 8)
    assert [sent_bytes(way, shape, 8) / least for way in WAYS[:4]] == [1.0, 2.5, 2.5, 4.0]


def test_gathering_weights_beats_it_from_more_tokens_than_the_inner_width():
    for tokens, fewer in ((16383, False), (16385, True)):
        shape = FeedForward(tokens, 4096, 16384)
        assert (sent_bytes(GATHERED, shape, 8) < sent_bytes(COLUMN_ROW, shape, 8)) is fewer


def test_time_on_the_cube_is_the_ring_and_the_roofline():
    # Two products of 2 n d m / 8 flop at 320 Gflop/s; the ring has a link of 30 GB/s for each of its sends.
    shape = FeedForward(2048, 4096, 16384)
    found = cost(COLUMN_ROW, shape, CUBE)
    assert found.compute_s == pytest.approx(4 * 2048 * 4096 * 16384 / 8 / 320e9)
    assert found.communication_s == pytest.approx(ring_s(8, 2048 * 4096 * 2, 30e9, 25e-9))
    assert found.total_s == found.compute_s + found.communication_s


def test_one_token_takes_as_long_as_its_weights_are_read():
    shape = FeedForward(1, 4096, 16384)
    assert cost(COLUMN_ROW, shape, CUBE).compute_s == pytest.approx(2 * 4096 * 16384 * 2 / 8 / 90e9, rel=1e-3)
    assert cost(REPLICATED, shape, CUBE).compute_s == pytest.approx(2 * 4096 * 16384 * 2 / 90e9, rel=1e-3)


def test_layers_multiply_everything_but_the_activations():
    shape = FeedForward(64, 1024, 4096)
    for way in WAYS:
        one, three = cost(way, shape, CUBE), cost(way, shape, CUBE, layers=3)
        for name in ("sent_bytes", "flops", "compute_s", "communication_s"):
            assert getattr(three, name) == pytest.approx(3 * getattr(one, name))
        kept = 2 * 1024 * 4096 * 2 / (1 if way is REPLICATED else 8)
        assert three.memory_bytes - one.memory_bytes == 2 * kept


# The sum must come before f


def test_adding_after_f_what_must_be_added_before_is_wrong():
    # Each rank applies f to its own partial sum of X W_1, and only what comes of it is added up.
    x, w_1, w_2 = matrices(5, 8, 12)
    partial = [x[:, block] @ w_1[block] for block in (slice(0, 4), slice(4, 8))]
    wrong = sum(relu(part) @ w_2 for part in partial)
    assert np.abs(wrong - feed_forward(x, w_1, w_2, relu)).max() > 1.0
    linear = sum(part @ w_2 for part in partial)  # without f it would be right
    np.testing.assert_allclose(linear, x @ w_1 @ w_2)
    for name in ("row-row", "row-column"):  # the ways that do add before
        np.testing.assert_allclose(
            run_split(BY_NAME[name], x, w_1, w_2, 2, relu).output, feed_forward(x, w_1, w_2, relu)
        )


def test_columns_first_need_no_sum_before_f():
    assert [name for _, name in COLUMN_ROW.collectives] == ["Y"]
    for name in ("row-row", "row-column"):
        kind, matrix = BY_NAME[name].collectives[0]
        assert matrix == "X W_1"
        assert kind in (Collective.REDUCE_SCATTER, Collective.ALL_REDUCE)


# Laws and two routes


@settings(deadline=None, max_examples=60)
@given(
    way=st.sampled_from(WAYS),
    parts=st.integers(1, 9),
    tokens=st.integers(1, 12),
    width=st.integers(1, 4),
    inner=st.integers(1, 6),
    activation=st.sampled_from([relu, gelu, np.tanh]),
    seed=st.integers(0, 2**32),
)
def test_every_way_gives_the_plain_output_and_sends_holds_and_computes_as_it_says(
    way, parts, tokens, width, inner, activation, seed
):
    x, w_1, w_2 = matrices(tokens, parts * width, parts * inner, seed)
    split = run_split(way, x, w_1, w_2, parts, activation)
    np.testing.assert_allclose(split.output, feed_forward(x, w_1, w_2, activation), rtol=1e-9, atol=1e-9)
    shape = FeedForward(tokens, parts * width, parts * inner, bytes_per_element=8)
    assert split.sent_bytes.sum() == pytest.approx(sent_bytes(way, shape, parts))
    np.testing.assert_allclose(split.sent_bytes, split.sent_bytes[0])  # the ring asks the same of all
    assert split.held_bytes.max() == memory_bytes(way, shape, parts)
    computed = cost(way, shape, load_machine("chapter-2-socket"), nodes=[0]).flops
    assert split.flops.sum() == computed == 4 * tokens * shape.width * shape.inner_width


@every_way
def test_ranks_that_have_all_of_the_output_agree(way):
    split = run_split(way, *matrices(6, 16, 32), 8)
    if split.outputs[0].shape == (6, 16) and way.held == "whole":
        for output in split.outputs:
            np.testing.assert_array_equal(output, split.outputs[0])
    else:
        assert sum(output.size for output in split.outputs) == 6 * 16


@every_way
def test_the_busiest_rank_computes_what_the_cost_says(way):
    split = run_split(way, *matrices(10, 8, 24), 8)  # 10 tokens: some ranks have two, some one
    assert split.flops.max() == cost(way, FeedForward(10, 8, 24), CUBE).flops


def test_single_precision_stays_single_and_close():
    x, w_1, w_2 = matrices(32, 64, 256, dtype=np.float32)
    split = run_split(COLUMN_ROW, x, w_1, w_2, 8)
    assert split.output.dtype == np.float32
    np.testing.assert_allclose(split.output, feed_forward(x, w_1, w_2), rtol=1e-4, atol=1e-3)
    assert split.sent_bytes.sum() == 14 * 32 * 64 * 4


@pytest.mark.parametrize("parts", [1, 2, 5, 8])
def test_halves_of_the_ring_make_the_whole(parts):
    halves = [kind.schedule(parts) for kind in (Collective.REDUCE_SCATTER, Collective.ALL_GATHER)]
    whole = Collective.ALL_REDUCE.schedule(parts)
    assert [half.num_steps for half in halves] == [parts - 1, parts - 1]
    assert sum(len(half) for half in halves) == len(whole)
    for kind in Collective:
        assert kind.schedule(parts).sent_bytes(parts * 10.0).sum() == kind.sent_bytes(parts, parts * 10.0)


# Bad input


@pytest.mark.parametrize(
    ("value", "parts", "message"),
    [
        (
            100,
            8,
            "m must be divisible by the number of parts (8), got 100; 96 or 104 would fit, as would 5 or 10 parts.",
        ),
        (4, 8, "m must be divisible by the number of parts (8), got 4; 8 would fit, as would 4 parts."),
        (7, 2, "m must be divisible by the number of parts (2), got 7; 6 or 8 would fit, as would 1 or 7 parts."),
    ],
)
def test_what_does_not_divide_is_told_what_would(value, parts, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, unescaped
        require_divisible("m", value, parts)
    assert str(caught.value) == message


def test_shapes_and_counts_are_checked():
    x, w_1, w_2 = matrices(4, 6, 12)
    with pytest.raises(ValueError, match=r"must have shapes \(n, d\), \(d, m\) and \(m, d\), got \(4, 6\), \(12, 6\)"):
        run_split(COLUMN_ROW, x, w_2, w_1, 2)
    with pytest.raises(ValueError, match="must hold floats, got int64"):
        run_split(COLUMN_ROW, x.astype(np.int64), w_1, w_2, 2)
    with pytest.raises(ValueError, match=r"^inner_width must be divisible by the number of parts \(5\), got 12"):
        run_split(COLUMN_ROW, x, w_1, w_2, 5)
    with pytest.raises(ValueError, match=r"^width must be divisible by the number of parts \(4\), got 6"):
        run_split(BY_NAME["row-column"], x, w_1, w_2, 4)
    with pytest.raises(ValueError, match="tokens must be a whole number >= 1, got 0"):
        FeedForward(0, 8, 32)
    with pytest.raises(ValueError, match="bytes_per_element must be finite and > 0, got nan"):
        FeedForward(1, 8, 32, float("nan"))
    with pytest.raises(ValueError, match="layers must be a whole number >= 1, got 0"):
        cost(COLUMN_ROW, FeedForward(1, 8, 32), CUBE, layers=0)

"""The feed-forward part split over nodes: six ways give the plain output, and send, hold and compute as they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.transformer.ffn import Ffn, compare
from numa_rl.communication.collectives import ring_s
from numa_rl.machines.builders import eight_socket_cube
from numa_rl.machines.catalog import load_machine
from numa_rl.transformer.ffn import FeedForward, cost, fewest_ranks, memory_bytes, require_divisible, sent_bytes
from numa_rl.transformer.ffn_run import GELU, RELU, Activation, feed_forward, run_split
from numa_rl.transformer.ffn_ways import WAYS, Collective

BY_NAME = {way.name: way for way in WAYS}
COLUMN_ROW, REPLICATED, GATHERED = BY_NAME["column-row"], BY_NAME["replicated"], BY_NAME["gathered weights"]
TANH = Activation(np.tanh, lambda x: 1.0 / np.cosh(x) ** 2)
CUBE = eight_socket_cube()
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)


def matrices(n: int, d: int, m: int, seed: int = 0, dtype: type = np.float64) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape).astype(dtype) for shape in ((n, d), (d, m), (m, d)))


# Known answers


def test_gelu_and_relu_at_known_points():
    np.testing.assert_allclose(GELU.value(np.array([-1.0, 0.0, 1.0])), [-0.15865525, 0.0, 0.84134475])
    np.testing.assert_array_equal(RELU.value(np.array([-1.0, 0.0, 1.0])), [0.0, 0.0, 1.0])


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
    assert [f"{kind} {matrix}" for kind, matrix in way.collectives()] == collectives
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


@pytest.mark.parametrize(
    ("name", "backward", "closed"),
    [
        ("column-row", ["all-reduce grad X"], lambda n, d, m: 4 * n * d),
        (
            "column-column",
            ["reduce-scatter grad X W_1", "all-reduce grad X"],
            lambda n, d, m: n * (2 * m + 3 * d),
        ),
        ("row-row", ["all-gather grad Y", "all-gather grad X W_1"], lambda n, d, m: 2 * n * (m + d)),
        ("row-column", ["all-reduce grad X W_1"], lambda n, d, m: 4 * n * m),
        (
            "gathered weights",
            ["all-gather W_1", "all-gather W_2", "reduce-scatter grad W_1", "reduce-scatter grad W_2"],
            lambda n, d, m: 6 * d * m,
        ),
        ("replicated", ["all-reduce grad W_1", "all-reduce grad W_2"], lambda n, d, m: 4 * d * m),
    ],
)
def test_training_adds_the_collectives_of_the_gradients(name, backward, closed):
    way = BY_NAME[name]
    collectives = [f"{kind} {matrix}" for kind, matrix in way.collectives(training=True)]
    assert collectives[len(way.collectives()) :] == backward
    for n, d, m, p in ((1, 8, 32, 8), (100, 64, 96, 4), (5, 4, 4, 1)):
        assert sent_bytes(way, FeedForward(n, d, m, 2), p, training=True) == 2 * (p - 1) * closed(n, d, m)


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


def test_replicas_send_less_in_training_from_more_tokens_than_the_inner_width():
    for tokens, fewer in ((16383, False), (16385, True)):
        shape = FeedForward(tokens, 4096, 16384)
        replicas, split = (sent_bytes(way, shape, 8, training=True) for way in (REPLICATED, COLUMN_ROW))
        assert (replicas < split) is fewer


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


def test_training_computes_three_times_as_much_and_holds_gradients_and_what_they_are_made_of():
    shape = FeedForward(64, 1024, 4096, bytes_per_element=1)
    for way, weights in ((COLUMN_ROW, 2 * 1024 * 512), (REPLICATED, 2 * 1024 * 4096)):
        forward, training = (cost(way, shape, CUBE, training=training) for training in (False, True))
        assert (training.flops, training.compute_s) == (3 * forward.flops, 3 * forward.compute_s)
        assert training.memory_bytes - forward.memory_bytes == weights
    one, two = (memory_bytes(COLUMN_ROW, shape, 8, layers=layers, training=True) for layers in (1, 2))
    assert two - one == 2 * 2 * 1024 * 512 + 64 * 1024 + 64 * 512
    gathered = [memory_bytes(GATHERED, shape, 8, layers=layers, training=True) for layers in (1, 2)]
    whole, share = 2 * 1024 * 4096, 2 * 1024 * 512  # eight tokens are on a rank
    assert gathered == [2 * whole + 8 * (1024 + 4096 + 1024), 2 * (whole + share) + 8 * (2 * (1024 + 4096) + 1024)]


def test_fewest_ranks_are_the_first_that_divide_the_widths_and_fit():
    # Weights are 2 x 6 x 24 = 288 bytes and X, X W_1, Y of a token 36; replicas hold all of the weights.
    shape = FeedForward(1, 6, 24, bytes_per_element=1)
    split = (COLUMN_ROW,)
    assert memory_bytes(COLUMN_ROW, shape, 3) == 288 / 3 + 6 + 24 / 3 + 6
    found = [fewest_ranks(shape, room, split) for room in (324, 323, 116, 115, 63, 10)]
    assert found == [1, 2, 3, 6, None, None]
    assert fewest_ranks(shape, 323, (REPLICATED,)) is None
    assert fewest_ranks(shape, 323, split, layers=3) == 3
    assert fewest_ranks(shape, 324, split, training=True) == 2


# The sum must come before f


def test_adding_after_f_what_must_be_added_before_is_wrong():
    # Each rank applies f to its own partial sum of X W_1, and only what comes of it is added up.
    x, w_1, w_2 = matrices(5, 8, 12)
    partial = [x[:, block] @ w_1[block] for block in (slice(0, 4), slice(4, 8))]
    wrong = sum(RELU.value(part) @ w_2 for part in partial)
    assert np.abs(wrong - feed_forward(x, w_1, w_2, RELU)).max() > 1.0
    linear = sum(part @ w_2 for part in partial)  # without f it would be right
    np.testing.assert_allclose(linear, x @ w_1 @ w_2)
    for name in ("row-row", "row-column"):  # the ways that do add before
        np.testing.assert_allclose(
            run_split(BY_NAME[name], x, w_1, w_2, 2, RELU).output, feed_forward(x, w_1, w_2, RELU)
        )


def test_columns_first_need_no_sum_before_f():
    assert [name for _, name in COLUMN_ROW.collectives()] == ["Y"]
    for name in ("row-row", "row-column"):
        kind, matrix = BY_NAME[name].collectives()[0]
        assert matrix == "X W_1"
        assert kind in (Collective.REDUCE_SCATTER, Collective.ALL_REDUCE)


# Laws and two routes

ANY_SPLIT = given(
    way=st.sampled_from(WAYS),
    parts=st.integers(1, 9),
    tokens=st.integers(1, 12),
    width=st.integers(1, 4),
    inner=st.integers(1, 6),
    activation=st.sampled_from([RELU, GELU, TANH]),
    seed=st.integers(0, 2**32),
)


@settings(deadline=None, max_examples=60)
@ANY_SPLIT
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


@settings(deadline=None, max_examples=60)
@ANY_SPLIT
def test_every_way_gives_the_plain_gradients_and_sends_what_training_says(
    way, parts, tokens, width, inner, activation, seed
):
    x, w_1, w_2 = matrices(tokens, parts * width, parts * inner, seed)
    output_gradient = np.random.default_rng(seed + 1).normal(size=x.shape)
    split = run_split(way, x, w_1, w_2, parts, activation, output_gradient)
    z = x @ w_1
    inner_gradient = output_gradient @ w_2.T * activation.slope(z)
    plain = inner_gradient @ w_1.T, x.T @ inner_gradient, activation.value(z).T @ output_gradient
    for found, expected in zip(split.gradients, plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    shape = FeedForward(tokens, parts * width, parts * inner, bytes_per_element=8)
    assert split.sent_bytes.sum() == pytest.approx(sent_bytes(way, shape, parts, training=True))
    assert split.flops.sum() == 3 * 4 * tokens * shape.width * shape.inner_width


@pytest.mark.parametrize("activation", [GELU, TANH], ids=["gelu", "tanh"])
def test_gradients_are_differences_of_the_output(activation):
    x, w_1, w_2 = matrices(2, 2, 4)
    output_gradient = np.ones_like(x)
    found = run_split(COLUMN_ROW, x, w_1, w_2, 2, activation, output_gradient).gradients
    for place, matrix in enumerate((x, w_1, w_2)):
        for at in np.ndindex(matrix.shape):
            moved = [np.array(each) for each in (x, w_1, w_2)]
            moved[place][at] += 1e-6
            change = (feed_forward(*moved, activation) - feed_forward(x, w_1, w_2, activation)).sum() / 1e-6
            assert found[place][at] == pytest.approx(change, abs=1e-4)


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
    with pytest.raises(ValueError, match=r"output_gradient must have the shape of Y, \(4, 6\), got \(6, 4\)"):
        run_split(COLUMN_ROW, x, w_1, w_2, 2, output_gradient=x.T)
    with pytest.raises(ValueError, match="must hold floats, got int64"):
        run_split(COLUMN_ROW, x.astype(np.int64), w_1, w_2, 2)
    with pytest.raises(ValueError, match=r"^inner_width must be divisible by the number of parts \(5\), got 12"):
        run_split(COLUMN_ROW, x, w_1, w_2, 5)
    with pytest.raises(ValueError, match=r"^width must be divisible by the number of parts \(4\), got 6"):
        run_split(BY_NAME["row-column"], x, w_1, w_2, 4)
    with pytest.raises(ValueError, match="tokens must be a whole number >= 1, got 0"):
        FeedForward(0, 8, 32)
    with pytest.raises(ValueError, match=r"bytes_per_element must be in 0.125..16, got nan"):
        FeedForward(1, 8, 32, float("nan"))
    with pytest.raises(ValueError, match="layers must be a whole number >= 1, got 0"):
        cost(COLUMN_ROW, FeedForward(1, 8, 32), CUBE, layers=0)


# The command


def printed(capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    Ffn(machine="chapter-8-socket", **options).run()
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", ["80", "120"])
@pytest.mark.parametrize("training", [False, True])
def test_the_table_fits_the_terminal_and_names_every_way(capsys, monkeypatch, columns, training):
    monkeypatch.setenv("COLUMNS", columns)
    out = printed(capsys, training=training)
    assert max(len(line) for line in out.splitlines()) <= int(columns)
    assert "…" not in out
    for way in WAYS:
        assert f" {way.name} " in out


def test_with_few_tokens_columns_and_rows_win_and_with_many_replicas():
    shapes = [FeedForward(tokens, 4096, 16384) for tokens in (8, 2048)]
    winners = [compare(shape, CUBE, range(8)).winner for shape in shapes]
    assert [winner.way.name for winner in winners] == ["column-row", "replicated"]
    assert compare(shapes[1], CUBE, range(8), training=True).winner.way.name == "column-row"


def test_what_is_written_is_what_the_library_says(capsys, tmp_path):
    file = tmp_path / "ffn.json"
    out = printed(capsys, tokens=100, batch=2, width=512, inner_width=1024, parts=4, layers=3, json=file)
    written = json.loads(file.read_text())
    assert (written["tokens"], written["nodes"], written["layers"]) == (200, [0, 1, 2, 3], 3)
    for way, found in zip(WAYS, written["ways"], strict=True):
        expected = cost(way, FeedForward(200, 512, 1024), CUBE, range(4), layers=3)
        assert found["name"] == way.name
        assert found["total_s"] == expected.total_s == found["compute_s"] + found["communication_s"]
        assert (found["sent_bytes"], found["memory_bytes"]) == (expected.sent_bytes, expected.memory_bytes)
    assert f"Fastest that fits: {written['winner']}" in out


def test_what_does_not_fit_is_told_how_many_nodes_would_do(capsys):
    out = " ".join(printed(capsys, tokens=8, width=12288, layers=5000).split())
    assert "None fits: a node has 1 TB and needs 1.51 TB at least; 16 such nodes would do." in out
    out = " ".join(printed(capsys, tokens=10**12, width=8, layers=10**12).split())
    assert "no number of such nodes would do" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"inner_width": 100},
            "inner_width must be divisible by the number of parts (8), got 100; 96 or 104 would fit",
        ),
        ({"width": 4}, "width must be divisible by the number of parts (8), got 4; 8 would fit, as would 4 parts."),
        ({"tokens": 0}, "tokens must be a whole number >= 1, got 0."),
        ({"batch": -1, "tokens": -1}, "tokens must be a whole number >= 1, got -1."),
        ({"width": -8}, "width must be a whole number >= 1, got -8."),
        ({"parts": 9}, "parts must be in 1..8, the nodes of chapter-8-socket with cores, got 9."),
        ({"layers": 0}, "layers must be a whole number >= 1, got 0."),
        ({"bytes_per_element": float("nan")}, "bytes_per_element must be in 0.125..16, got nan."),
        ({"bytes_per_element": 1e300}, "bytes_per_element must be in 0.125..16, got 1e+300."),
        ({"width": 10**400}, "width must be at most 1000000000000, got 1000"),
        ({"layers": 10**13}, "layers must be at most 1000000000000, got 10000000000000."),
        ({"tokens": 10**9, "batch": 10**9}, "tokens must be at most 1000000000000, got 1000000000000000000."),
        ({"json": Path()}, "--json must be a file that can be written"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, unescaped
        Ffn(machine="chapter-8-socket", **options).run()
    assert str(caught.value).startswith(message)


def test_the_command_ends_in_one_line_where_something_is_wrong(numa_rl: Run):
    ended = numa_rl("transformer", "ffn", "--machine", "chapter-2-socket", "--tokens", "64", "--json", "out.json")
    assert (ended.code, ended.err, ended.json["winner"]) == (0, "", "replicated")
    bad = numa_rl("transformer", "ffn", "--machine", "chapter-8-socket", "--inner-width", "100")
    refused(bad, "inner_width must be divisible by the number of parts (8), got 100; 96 or 104 would fit")

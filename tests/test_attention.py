"""Attention split over nodes: what moves, is held and computed, in closed form and as the algorithm counts it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numa_rl.transformer.attention import AttentionShape, AttentionSplit, Weights, kv_head_range
from numa_rl.transformer.attention_count import SplitCount
from numa_rl.transformer.blocked_attention import split_attention
from numa_rl.transformer.divisors import divisors
from numa_rl.transformer.model import Transformer
from numa_rl.transformer.online_softmax import OnlineSoftmax, plain_attention
from numa_rl.transformer.sequence_order import (
    TokenOrder,
    attended_pairs,
    least_tokens,
    needed_tokens,
    sequence_parts,
)
from numa_rl.transformer.split_layer import LayerWeights, plain_layer, split_layer

CONTIGUOUS, ZIGZAG, STRIPED = TokenOrder
orders = st.sampled_from(TokenOrder)


@st.composite
def problems(draw: st.DrawFn) -> tuple[AttentionShape, AttentionSplit]:
    """A shape of few tokens, and a split that fits it."""
    heads = draw(st.sampled_from([1, 2, 4, 6, 12]))
    split = AttentionSplit(draw(st.sampled_from(divisors(heads))), draw(st.integers(1, 5)), draw(orders))
    least = max(split.num_nodes, least_tokens(split.sequence_parts, split.order))
    shape = AttentionShape(
        tokens=draw(st.integers(least, least + 20)),
        width=heads * draw(st.integers(1, 5)),
        heads=heads,
        kv_heads=draw(st.sampled_from(divisors(heads))),
        batch=draw(st.integers(1, 3)),
        bytes_per_element=4,
        causal=draw(st.booleans()),
    )
    return shape, split


def tensors(shape: AttentionShape, seed: int = 0, dtype: type = np.float32) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    sizes = [(shape.batch, heads, shape.tokens, shape.layer.key_dim) for heads in (shape.heads, shape.kv_heads)]
    return tuple(rng.standard_normal(size).astype(dtype) for size in (sizes[0], sizes[1], sizes[1]))


def layers(shape: AttentionShape, seed: int = 0) -> tuple[np.ndarray, LayerWeights]:
    """X and weights in single precision."""
    rng = np.random.default_rng(seed)
    d, keys = shape.width, shape.kv_heads * shape.layer.key_dim
    matrices = [rng.standard_normal((d, columns)) / np.sqrt(d) for columns in (d, keys, keys, d)]
    x = rng.standard_normal((shape.batch, shape.tokens, d))
    return x.astype(np.float32), LayerWeights(*(matrix.astype(np.float32) for matrix in matrices))


def tokens_of(part: tuple[range, ...]) -> list[int]:
    return [token for run in part for token in run]


# Known answers


def test_eight_tokens_in_two_parts_of_each_order():
    dealt = {order: [tokens_of(part) for part in sequence_parts(8, 2, order)] for order in TokenOrder}
    assert dealt == {
        CONTIGUOUS: [[0, 1, 2, 3], [4, 5, 6, 7]],
        ZIGZAG: [[2, 3, 4, 5], [0, 1, 6, 7]],
        STRIPED: [[0, 2, 4, 6], [1, 3, 5, 7]],
    }


def test_bytes_of_two_nodes_by_hand():
    # 4 tokens, 2 heads of 3 elements of 2 bytes; a node is the home of 2 tokens.
    shape = AttentionShape(tokens=4, width=6, heads=2)
    sequence, head = (SplitCount(shape, AttentionSplit(*parts)) for parts in ((1, 2), (2, 1)))
    assert sequence.received_bytes.tolist() == [2 * 2 * 2 * 3 * 2] * 2  # K and V, 2 heads, of the other 2 tokens
    assert head.received_bytes.tolist() == [3 * 2 * 3 * 2 + 2 * 3 * 2] * 2  # Q, K and V of 2 tokens; outputs of 2
    assert sequence.sends.step.tolist() == [1, 1]
    assert head.sends.step.tolist() == [0, 0, 1, 1]
    assert sequence.total_bytes == head.total_bytes == 96


def test_memory_of_two_nodes_by_hand():
    shape = AttentionShape(tokens=4, width=6, heads=2)
    sequence, head = (SplitCount(shape, AttentionSplit(*parts)) for parts in ((1, 2), (2, 1)))
    # X of 2 tokens, 24; Q, K and V of 2 tokens, 72; sums of 2 tokens, 2 x 2 x 5 x 4 = 80; K and V that arrive, 48.
    assert sequence.peak_bytes.tolist() == [24 + 72 + 80 + 48] * 2
    # X, 24; Q, K and V of one head and 4 tokens, 72; its sums, 4 x 5 x 4 = 80; its outputs, 24.
    assert head.peak_bytes.tolist() == [24 + 72 + 80 + 24] * 2
    assert (sequence.peak_bytes_with_weights - sequence.peak_bytes).tolist() == [4 * 6 * 6 * 2] * 2


@pytest.mark.parametrize(("order", "share"), [(CONTIGUOUS, 1 / 2), (ZIGZAG, 3 / 4), (STRIPED, 1.0)])
def test_under_a_causal_mask_orders_move_one_half_three_quarters_and_nearly_all(order, share):
    full = SplitCount(AttentionShape(6400, 64, 8), AttentionSplit(1, 8)).total_bytes
    masked = SplitCount(AttentionShape(6400, 64, 8, causal=True), AttentionSplit(1, 8, order)).total_bytes
    assert masked / full == pytest.approx(share, rel=2e-3)


def test_the_last_contiguous_part_has_nearly_twice_the_mean_work():
    shape = AttentionShape(6400, 64, 8, causal=True)
    contiguous, zigzag, striped = (SplitCount(shape, AttentionSplit(1, 8, order)) for order in TokenOrder)
    assert contiguous.imbalance == pytest.approx(2 - 1 / 8, rel=1e-3)
    assert zigzag.imbalance == pytest.approx(1.0, rel=1e-3)
    assert striped.imbalance == pytest.approx(1.0, rel=2e-3)
    np.testing.assert_array_equal(zigzag.step_pairs[:, 1:], np.full((8, 7), 800 * 800 // 2))


def test_heads_of_keys_that_are_shared_go_to_every_node_that_has_one_of_their_queries():
    shape = AttentionShape(24, 12, 12, kv_heads=4)  # each serves 3 heads
    split = AttentionSplit(6, 1)  # 2 heads each: 0-1, 2-3, 4-5, ...
    assert [list(kv_head_range(shape, split, part)) for part in range(6)] == [[0], [0, 1], [1], [2], [2, 3], [3]]


def test_the_layer_has_the_arithmetic_that_the_model_says():
    shape = AttentionShape(96, 64, 8, kv_heads=2, batch=3, causal=True)
    model = Transformer(layers=1, width=64, heads=8, kv_heads=2, ffn_width=1)
    pairs = 96 * 97 // 2
    expected = model.layer_forward_flops(3 * 96, 3 * pairs) - 2 * model.ffn_parameters * 3 * 96
    for split in (AttentionSplit(1, 1), AttentionSplit(4, 2, ZIGZAG), AttentionSplit(2, 3, STRIPED)):
        count = SplitCount(shape, split)
        assert count.projection_flops.sum() + count.step_flops.sum() == pytest.approx(expected, rel=1e-12)


# Laws


@given(st.integers(1, 200), st.integers(1, 9), orders)
def test_parts_hold_every_token_once_in_ascending_order(tokens, parts, order):
    tokens += least_tokens(parts, order) - 1
    dealt = [tokens_of(part) for part in sequence_parts(tokens, parts, order)]
    assert sorted(token for part in dealt for token in part) == list(range(tokens))
    assert all(a < b for part in dealt for a, b in pairwise(part))
    sizes = [len(part) for part in dealt]
    assert max(sizes) - min(sizes) <= (2 if order is ZIGZAG else 1)


@given(st.integers(1, 60), st.integers(1, 6), orders, st.booleans(), st.data())
def test_pairs_and_needs_are_those_counted_one_by_one(tokens, parts, order, causal, data):
    tokens += least_tokens(parts, order) - 1
    dealt = sequence_parts(tokens, parts, order)
    one, other = (dealt[data.draw(st.integers(0, parts - 1))] for _ in range(2))
    pairs = [(q, k) for q in tokens_of(one) for k in tokens_of(other) if k <= q or not causal]
    assert attended_pairs(one, other, causal) == len(pairs)
    needed = {k for _, k in pairs}
    assert needed_tokens(one, other, causal) == len(needed)
    assert needed <= set(tokens_of(other)[: len(needed)])


@settings(deadline=None)
@given(problems(), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_split_attention_is_plain_attention_and_takes_what_the_closed_forms_say(problem, block_tokens, seed):
    shape, split = problem
    q, k, v = tensors(shape, seed)
    done = split_attention(q, k, v, split, causal=shape.causal, block_tokens=block_tokens)
    assert done.output.dtype == np.float32
    np.testing.assert_allclose(done.output, plain_attention(q, k, v, causal=shape.causal), rtol=0, atol=1e-5)
    count = SplitCount(shape, split)
    p, s = split.num_nodes, split.sequence_parts
    sends = np.zeros((s + 1, p, p), np.int64)
    np.add.at(sends, (count.sends.step, count.sends.receiver, count.sends.sender), count.sends.num_bytes)
    np.testing.assert_array_equal(done.exchange_bytes, sends[0])
    np.testing.assert_array_equal(done.step_bytes, sends[1:s])
    np.testing.assert_array_equal(done.return_bytes, sends[s])
    np.testing.assert_array_equal(done.received_bytes, count.received_bytes)
    np.testing.assert_array_equal(done.peak_bytes, count.working_bytes)
    np.testing.assert_array_equal(done.pairs, np.repeat(count.step_pairs.sum(axis=1), split.head_parts))


@settings(deadline=None)
@given(problems(), st.sampled_from(Weights), st.integers(0, 2**32 - 1))
def test_a_split_layer_is_the_plain_layer_and_takes_what_the_closed_forms_say(problem, weights, seed):
    shape, split = problem[0], replace(problem[1], weights=weights)
    x, matrices = layers(shape, seed)
    done = split_layer(x, matrices, shape, split, block_tokens=7)
    np.testing.assert_allclose(done.output, plain_layer(x, matrices, shape), rtol=0, atol=1e-5)
    count = SplitCount(shape, split)
    p, s = split.num_nodes, split.sequence_parts
    sends = np.zeros((s + 1, p, p), np.int64)
    np.add.at(sends, (count.sends.step, count.sends.receiver, count.sends.sender), count.sends.num_bytes)
    np.testing.assert_array_equal(done.exchange_bytes, sends[0])
    np.testing.assert_array_equal(done.step_bytes, sends[1:s])
    np.testing.assert_array_equal(done.return_bytes, sends[s])
    np.testing.assert_array_equal(done.peak_bytes, count.peak_bytes_with_weights)


@given(problems(), st.integers(1, 4))
def test_weights_by_head_move_h_over_two_times_as_much_and_split_the_weights(problem, factor):
    shape, split = problem
    h = split.head_parts
    shape = AttentionShape(2 * split.num_nodes * factor, shape.width, shape.heads, batch=shape.batch)
    whole, by_head = (SplitCount(shape, replace(split, weights=weights)) for weights in Weights)
    in_row_whole, in_row = (
        count.sends.num_bytes[(count.sends.step == 0) | (count.sends.step == split.sequence_parts)].sum()
        for count in (whole, by_head)
    )
    assert in_row == 2 * (h - 1) * shape.activation_bytes
    assert 2 * in_row == h * in_row_whole
    assert by_head.total_bytes - in_row == whole.total_bytes - in_row_whole
    np.testing.assert_array_equal(by_head.weight_bytes, np.full(split.num_nodes, shape.weight_bytes // h))
    additions = (h - 1) * shape.batch * shape.tokens * shape.width
    assert by_head.projection_flops.sum() == whole.projection_flops.sum() + additions


@given(problems(), st.integers(1, 4))
def test_equal_parts_move_what_the_page_on_attention_says(problem, factor):
    shape, split = problem
    h, s = split.head_parts, split.sequence_parts
    tokens = 2 * h * s * factor
    shape = AttentionShape(tokens, shape.width, shape.heads, shape.kv_heads, shape.batch, 4)
    count = SplitCount(shape, split)
    element = shape.batch * tokens * shape.layer.key_dim * 4
    keys = 2 * sum(len(kv_head_range(shape, split, part)) for part in range(h))
    exchange = (h - 1) * element * (2 * shape.heads + keys) // h
    ring = (s - 1) * element * keys
    assert count.total_bytes == exchange + ring
    if shape.kv_heads % h == 0:  # no head of keys is needed twice
        assert keys == 2 * shape.kv_heads


@given(problems())
def test_a_causal_mask_moves_and_computes_no_more(problem):
    shape, split = problem
    masked, full = (
        SplitCount(AttentionShape(shape.tokens, shape.width, shape.heads, causal=causal), split)
        for causal in (True, False)
    )
    assert (masked.received_bytes <= full.received_bytes).all()
    assert (masked.step_flops <= full.step_flops).all()
    assert (masked.peak_bytes <= full.peak_bytes).all()
    pairs = shape.tokens * (shape.tokens + 1) // 2
    assert (masked.step_pairs.sum(), full.step_pairs.sum()) == (pairs, shape.tokens**2)


@given(problems())
def test_no_ring_step_brings_what_a_node_does_not_use(problem):
    count = SplitCount(*problem)
    np.testing.assert_array_equal(count.step_tokens > 0, count.step_pairs > 0)


@given(st.permutations(range(12)), st.integers(1, 5))
def test_keys_may_come_in_any_order(order, block):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 1, 12, 3)).astype(np.float32) for _ in range(3))
    sums = OnlineSoftmax(q.shape)
    for first in range(0, 12, block):
        keys = list(order[first : first + block])
        sums.add(slice(0, 12), q @ k[:, :, keys].swapaxes(-1, -2) / np.float32(np.sqrt(3.0)), v[:, :, keys])
    np.testing.assert_allclose(sums.result(), plain_attention(q, k, v, causal=False), rtol=0, atol=1e-6)


# Numbers that are hard


def test_scores_far_too_large_for_exp_do_no_harm():
    q = np.full((1, 1, 6, 2), 300.0, np.float32)
    k = np.arange(12, dtype=np.float32).reshape(1, 1, 6, 2) * 100.0
    v = np.random.default_rng(0).standard_normal((1, 1, 6, 2)).astype(np.float32)
    done = split_attention(q, k, v, AttentionSplit(1, 3), causal=False, block_tokens=1)
    np.testing.assert_allclose(done.output, np.broadcast_to(v[:, :, -1:], v.shape), rtol=0, atol=1e-6)


def test_half_precision_is_counted_at_its_size_and_summed_in_single():
    shape = AttentionShape(40, 32, 4, causal=True)
    q, k, v = tensors(shape, dtype=np.float16)
    split = AttentionSplit(2, 2, ZIGZAG)
    done = split_attention(q, k, v, split, causal=True, block_tokens=8)
    assert done.output.dtype == np.float16
    np.testing.assert_allclose(done.output, plain_attention(q, k, v, causal=True), rtol=0, atol=2e-3)
    count = SplitCount(shape, split)
    np.testing.assert_array_equal(done.received_bytes, count.received_bytes)
    np.testing.assert_array_equal(done.peak_bytes, count.working_bytes)


def test_inputs_are_left_alone():
    q, k, v = tensors(AttentionShape(12, 8, 4))
    copies = q.copy(), k.copy(), v.copy()
    for split in (AttentionSplit(1, 1), AttentionSplit(2, 2)):
        done = split_attention(q, k, v, split, causal=True)
        done.output[:] = 0.0
    for array, copy in zip((q, k, v), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


# Bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttentionShape(0, 8, 2), "tokens must be a whole number >= 1, got 0."),
        (lambda: AttentionShape(8, 8.5, 2), "width must be a whole number >= 1, got 8.5."),
        (lambda: AttentionShape(8, 8, float("nan")), "heads must be a whole number >= 1, got nan."),
        (lambda: AttentionShape(8, 12, 5), "heads must divide width (12), as 4 or 6 would, got 5."),
        (lambda: AttentionShape(8, 12, 24), "heads must divide width (12), as 12 would, got 24."),
        (lambda: AttentionShape(8, 12, 6, 4), "kv_heads must divide heads (6), as 3 or 6 would, got 4."),
        (lambda: AttentionShape(8, 12, 6, 0), "kv_heads must be a whole number >= 1, got 0."),
        (lambda: AttentionShape(8, 8, 2, batch=-1), "batch must be a whole number >= 1, got -1."),
        (lambda: AttentionShape(10**10, 8, 2), "tokens must be at most 1,000,000,000, got 10000000000."),
        (
            lambda: AttentionShape(10**9, 10**6, 2),
            "batch x tokens x width x bytes_per_element must be at most 1e15, a petabyte, got 2e+15.",
        ),
        (lambda: AttentionSplit(0, 2), "head_parts must be a whole number >= 1, got 0."),
        (lambda: AttentionSplit(1, 1.5), "sequence_parts must be a whole number >= 1, got 1.5."),
        (
            lambda: SplitCount(AttentionShape(64, 48, 12), AttentionSplit(5, 1)),
            "head_parts must divide heads (12), as each of 1, 2, 3, 4, 6, 12 would, got 5.",
        ),
        (
            lambda: SplitCount(AttentionShape(11, 48, 12), AttentionSplit(2, 6)),
            "tokens must be >= 12 for 2 x 6 contiguous parts, got 11; at most 5 sequence parts would fit.",
        ),
        (
            lambda: SplitCount(AttentionShape(11, 48, 12), AttentionSplit(1, 6, ZIGZAG)),
            "tokens must be >= 12 for 1 x 6 zigzag parts, got 11; at most 5 sequence parts would fit.",
        ),
        (
            lambda: SplitCount(AttentionShape(3, 48, 12), AttentionSplit(4, 1)),
            "tokens must be >= 4 for 4 x 1 contiguous parts, got 3; fewer head parts would fit.",
        ),
        (lambda: sequence_parts(3, 2, ZIGZAG), "tokens must be >= 4 for 2 zigzag parts, got 3."),
        (lambda: sequence_parts(3, 0, STRIPED), "parts must be a whole number >= 1, got 0."),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(make, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, unescaped
        make()
    assert str(caught.value) == message


@given(problems())
def test_what_a_refusal_offers_fits(problem):
    shape, split = problem
    short = AttentionShape(split.num_nodes * 2 - 1, shape.width, shape.heads)
    too_many = AttentionSplit(split.head_parts, split.sequence_parts * 2, split.order)
    with pytest.raises(ValueError, match="would fit") as caught:
        too_many.require_fit(short)
    words = str(caught.value).split()
    if "most" in words:
        most = int(words[words.index("most") + 1])
        AttentionSplit(split.head_parts, most, split.order).require_fit(short)


def test_arrays_that_are_no_queries_keys_and_values_are_refused():
    q, k, v = tensors(AttentionShape(6, 8, 4, kv_heads=2))
    for arrays, message in (
        ((q, k, v[:, :1]), r"k and v must be alike"),
        ((q, k[:, :, :3], v[:, :, :3]), r"k and v must be alike"),
        ((q[:, :3], k, v), r"of which q has a multiple; got shapes \(1, 3, 6, 2\)"),
        ((q[0], k, v), r"q must have shape \(batch, heads, tokens, size\), none of them 0, got \(4, 6, 2\)"),
        ((q, k[:0], v), r"k must have shape .*, got \(0, 2, 6, 2\)"),
        ((q.astype(np.float64), k, v), r"q, k and v must be float32, or all float16, got float64 for q"),
        ((q, k.astype(np.float16), v), r"got float16 for k"),
        ((q.tolist(), k, v), r"q must be a numpy array, got list"),
    ):
        with pytest.raises(ValueError, match=message):
            split_attention(*arrays, AttentionSplit(1, 1), causal=False)
        with pytest.raises(ValueError, match=message):
            plain_attention(*arrays, causal=False)
    with pytest.raises(ValueError, match=r"block_tokens must be a whole number >= 1, got 0"):
        split_attention(q, k, v, AttentionSplit(1, 1), causal=False, block_tokens=0)
    with pytest.raises(ValueError, match=r"head_parts must divide heads \(4\)"):
        split_attention(q, k, v, AttentionSplit(3, 1), causal=False)


def test_a_layer_of_other_sizes_is_refused():
    shape = AttentionShape(6, 8, 4, kv_heads=2, bytes_per_element=4)
    x, matrices = layers(shape)
    split = AttentionSplit(2, 1)
    for array, weights, message in (
        (x[:, :5], matrices, r"x must have shape \(1, 6, 8\), and like x elements of 4 bytes, got \(1, 5, 8\)"),
        (x, replace(matrices, k=matrices.q), r"k must have shape \(8, 4\), .* got \(8, 8\) of float32"),
        (x, replace(matrices, o=matrices.o.astype(np.float16)), r"o must have shape .* of float16"),
        (x.astype(np.float64), matrices, r"x must have shape .* of float64"),
    ):
        with pytest.raises(ValueError, match=message):
            split_layer(array, weights, shape, split)

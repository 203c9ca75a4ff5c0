"""Keys and values as small integers, and some tokens only: bytes are those of arrays, errors those of round trips."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from numa_rl.transformer.kv_sample import SINKS, CacheSample, SampleShape
from numa_rl.transformer.kv_storage import (
    Storage,
    attention_mass,
    attention_output,
    heavy_hitters,
    measure,
    quantise,
    relative_error,
    window_tokens,
)
from numa_rl.transformer.online_softmax import plain_attention

F32 = np.float32
SAMPLE = SampleShape(tokens=512, heads=4, kv_heads=2, head_dim=64, num_past=32, num_next=8)


@pytest.fixture(scope="module")
def sample() -> CacheSample:
    return SAMPLE.draw(np.random.default_rng(0))


# Known answers.


def test_eight_bits_are_multiples_of_the_largest_over_127():
    stored = quantise(np.array([[127.0, -63.4, 0.5, 0.0]], F32), 8, axis=1)
    assert stored.codes.tolist() == [[127, -63, 0, 0]]  # half a scale rounds to even
    assert stored.scales.tolist() == [[1.0]]
    assert stored.values().tolist() == [[127.0, -63.0, 0.0, 0.0]]
    assert stored.num_bytes == 4 + 4


def test_four_bits_lie_two_in_a_byte():
    stored = quantise(np.array([7.0, -7.0, 3.0], F32), 4, axis=0)
    assert stored.codes.tolist() == [7 | 9 << 4, 3]  # -7 is 9 in four bits of two's complement
    assert stored.values().tolist() == [7.0, -7.0, 3.0]
    assert stored.num_bytes == 2 + 4


def test_a_large_channel_ruins_the_scale_of_its_token_and_not_of_other_channels():
    keys = np.array([[100.0, 1.0], [-100.0, 0.4]], F32)
    by_token, by_channel = quantise(keys, 4, axis=1).values(), quantise(keys, 4, axis=0).values()
    assert by_token[:, 1].tolist() == [0.0, 0.0]
    assert by_channel[:, 1].tolist() == pytest.approx([1.0, 3 / 7])


def test_a_block_of_tokens_has_a_scale_of_its_own():
    stored = quantise(np.array([[1.0], [2.0], [100.0]], F32), 8, axis=0, block=2)
    assert stored.scales[:, 0].tolist() == pytest.approx([2 / 127, 100 / 127])
    assert stored.values()[:, 0] == pytest.approx([1.0, 2.0, 100.0], rel=0.01)


def test_window_and_sinks():
    assert window_tokens(10, 6).tolist() == [0, 1, 2, 3, 8, 9]
    assert window_tokens(10, 3).tolist() == [0, 1, 2]
    assert window_tokens(3, 10).tolist() == [0, 1, 2]


def test_heavy_hitters_are_kept_beside_recent_tokens():
    mass = np.array([[5, 1, 9, 0, 0, 0], [0, 0, 0, 8, 0, 7]], F32)
    assert heavy_hitters(mass, 4).tolist() == [[0, 2, 4, 5], [0, 3, 4, 5]]
    assert heavy_hitters(mass, 99).tolist() == [[0, 1, 2, 3, 4, 5]] * 2


def test_half_precision_takes_all_bytes_and_errs_by_rounding(sample):
    found = measure(sample, Storage())
    assert found.num_bytes == found.half_bytes == 2 * 512 * 2 * 64 * 2
    assert 0 < found.key_error < 2**-11
    assert found.output_error < 0.001
    assert found.kept_mass == pytest.approx(1.0)


def test_bytes_are_codes_scales_and_positions(sample):
    by_channel = measure(sample, Storage(bits=8))
    elements = 512 * 2 * 64
    assert by_channel.num_bytes == 2 * elements + 4 * (512 // 32 * 2 * 64) + 4 * (512 * 2)
    by_token = measure(sample, Storage(bits=4, key_scales="token"))
    assert by_token.num_bytes == elements + 2 * 4 * (512 * 2)
    few = measure(sample, Storage(kept_share=0.25))
    assert few.num_bytes == few.half_bytes // 4 + 4 * 128 * 2
    assert measure(sample, Storage(kept_share=1e-9)).num_bytes == 2 * 2 * 64 * 2 + 4 * 2  # one token, of each head


# Laws.

finite = arrays.arrays(
    F32,
    arrays.array_shapes(min_dims=3, max_dims=3, max_side=6),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


@given(finite, st.sampled_from([4, 8]), st.integers(0, 2), st.none() | st.integers(1, 7))
def test_no_element_errs_by_more_than_half_its_scale(array, bits, axis, block):
    stored = quantise(array, bits, axis, block)
    scales = np.repeat(stored.scales, stored.block, axis=axis)
    scales = np.take(scales, np.arange(array.shape[axis]), axis=axis).astype(np.float64)
    error = np.abs(stored.values().astype(np.float64) - array)
    most = 2 ** (bits - 1) - 1
    assert (error <= scales / 2 + 1e-6 * np.abs(array) + most * 2e-45).all()  # at last, the smallest float32
    assert stored.values().shape == array.shape
    assert np.abs(stored.values()).max() <= np.abs(array).max() * (1 + 1e-6)


@given(finite, st.sampled_from([4, 8]))
def test_what_was_stored_once_is_stored_as_it_is(array, bits):
    once = quantise(array, bits, axis=2).values()
    np.testing.assert_allclose(quantise(once, bits, axis=2).values(), once, rtol=1e-5, atol=1e-37)


@given(st.integers(0, 2**32 - 1))
def test_more_bits_and_more_tokens_are_nearer(seed):
    drawn = SampleShape(tokens=128, heads=2, kv_heads=2, head_dim=16, num_past=16, outlier_channels=2).draw(
        np.random.default_rng(seed)
    )
    half, eight, four = (measure(drawn, Storage(bits=bits)) for bits in (16, 8, 4))
    assert half.key_error < eight.key_error < four.key_error
    assert half.value_error < eight.value_error < four.value_error
    assert half.output_error < eight.output_error < four.output_error
    assert half.num_bytes > eight.num_bytes > four.num_bytes
    few, more = (measure(drawn, Storage(kept_share=share)) for share in (0.2, 0.6))
    assert few.kept_mass < more.kept_mass < 1.0
    assert few.num_bytes < more.num_bytes


def test_attention_shares_sum_to_one_and_follow_the_score():
    keys = np.array([[[1.0, 0.0]], [[0.0, 1.0]]], F32)
    query = np.array([[[math.sqrt(2) * math.log(3), 0.0]]], F32)  # scores log 3 and 0
    assert attention_mass(query, keys).ravel() == pytest.approx([0.75, 0.25])
    assert attention_output(query, keys, keys).ravel() == pytest.approx([0.75, 0.25])


# Two routes.


def test_attention_is_that_of_whole_sequences():
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal(shape).astype(F32) for shape in ((9, 6, 4), (9, 3, 4), (9, 3, 4)))
    whole = plain_attention(*(array.swapaxes(0, 1)[None] for array in (q, k, v)), causal=False)
    np.testing.assert_allclose(attention_output(q, k, v), whole[0].swapaxes(0, 1), rtol=1e-5)


def test_sparse_attention_is_attention_over_the_tokens_that_are_left(sample):
    found = measure(sample, Storage(kept_share=0.25, selection="window"))
    kept = window_tokens(512, 128)
    exact = attention_output(sample.next_queries, sample.keys, sample.values)
    halves = (array[kept].astype(np.float16).astype(F32) for array in (sample.keys, sample.values))
    assert found.output_error == pytest.approx(
        relative_error(attention_output(sample.next_queries, *halves), exact), rel=1e-5
    )
    mass = attention_mass(sample.next_queries, sample.keys)
    assert found.kept_mass == pytest.approx(mass[..., kept].sum() / mass.sum(), rel=1e-4)


# What was published shows on the samples.


def test_samples_have_large_channels_sinks_and_heavy_hitters(sample):
    size = np.abs(sample.keys).mean(axis=(0, 1))
    assert size[:4].min() > 5 * size[4:].max()
    assert np.abs(sample.values).max() < 7
    mass = attention_mass(sample.next_queries, sample.keys)
    assert mass[..., :SINKS].sum(axis=-1).mean() > 0.2
    assert np.sort(mass, axis=-1)[..., -512 // 20 :].sum(axis=-1).mean() > 0.7  # a twentieth of the tokens


def test_keys_want_a_scale_per_channel(sample):
    for bits in (8, 4):
        by_channel, by_token = (measure(sample, Storage(bits, key_scales=scales)) for scales in ("channel", "token"))
        assert by_channel.output_error < 0.6 * by_token.output_error


def test_without_large_channels_a_scale_per_token_does_as_well():
    even = SampleShape(tokens=512, heads=4, kv_heads=2, head_dim=64, outlier_channels=0).draw(np.random.default_rng(0))
    by_channel, by_token = (measure(even, Storage(8, key_scales=scales)) for scales in ("channel", "token"))
    assert by_channel.output_error == pytest.approx(by_token.output_error, rel=0.3)


def test_heavy_hitters_beat_a_window_of_as_many_tokens(sample):
    heavy, window = (measure(sample, Storage(kept_share=0.2, selection=name)) for name in ("heavy-hitters", "window"))
    assert heavy.num_bytes == window.num_bytes
    assert heavy.output_error < 0.5 * window.output_error
    assert heavy.kept_mass > window.kept_mass


def test_the_same_seed_gives_the_same_sample(sample):
    again = SAMPLE.draw(np.random.default_rng(0))
    for name in ("keys", "values", "past_queries", "next_queries"):
        assert getattr(again, name).tobytes() == getattr(sample, name).tobytes()


# Bad input.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantise(np.ones(3, F32), 2, 0), "bits must be 8 or 4, got 2"),
        (lambda: quantise(np.array([1, np.nan], F32), 8, 0), "array must hold finite values"),
        (lambda: quantise(np.ones((0, 2), F32), 8, 0), "array must hold finite values"),
        (lambda: quantise(np.ones(3, F32), 8, 0, block=0), "block must be >= 1, got 0"),
        (lambda: Storage(bits=5), "bits must be one of 16, 8, 4, got 5"),
        (lambda: Storage(key_scales="head"), "key_scales must be one of channel, token, got 'head'"),
        (lambda: Storage(selection="best"), "selection must be one of heavy-hitters, window, got 'best'"),
        (lambda: Storage(kept_share=0.0), r"kept_share must be in \(0, 1\], got 0.0"),
        (lambda: Storage(kept_share=math.nan), r"kept_share must be in \(0, 1\], got nan"),
        (lambda: Storage(block_tokens=0), "block_tokens must be a whole number >= 1, got 0"),
        (lambda: SampleShape(heads=6, kv_heads=4), r"kv_heads must divide heads \(6\), got 4"),
        (lambda: SampleShape(outlier_channels=128), r"outlier_channels must be less than head_dim \(128\), got 128"),
        (lambda: SampleShape(tokens=0), "tokens must be a whole number >= 1, got 0"),
        (lambda: SampleShape(recent_tokens=0.0), "recent_tokens must be finite and > 0, got 0.0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

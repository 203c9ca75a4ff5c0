from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numa_rl.transformer.memory_plan import (
    ElementSizes,
    Recompute,
    Sharding,
    Training,
    kept_activation_bytes,
    layer_activation_bytes,
    rank_memory,
    whole_memory,
)
from numa_rl.transformer.model import Transformer

GPT3 = Transformer(layers=96, width=12288, heads=96)
CHAPTER = Transformer(layers=1104, width=960 * 128, heads=960)
EXERCISE_6 = Training(CHAPTER, parameters=200e12, kv_sequences=45)
SMALL = Transformer(layers=4, width=64, heads=4)

models = st.builds(
    lambda layers, heads, dim, sharing, ffn: Transformer(
        layers, heads * dim, heads, kv_heads=heads // math.gcd(heads, sharing), ffn_width=ffn
    ),
    st.integers(1, 40),
    st.integers(1, 64),
    st.integers(1, 256),
    st.integers(1, 8),
    st.integers(1, 10_000),
)
trainings = st.builds(Training, models, sequence_tokens=st.integers(1, 10_000), kv_sequences=st.integers(0, 1000))


# Known answers.


def test_exercise_6_states_of_200_t_parameters():
    memory = whole_memory(EXERCISE_6, held_sequences=180)
    assert (memory.parameters, memory.gradients, memory.optimiser) == (400e12, 400e12, 1600e12)


def test_exercise_6_activations_and_kv_cache_under_the_assumptions_stated():
    memory = whole_memory(EXERCISE_6, held_sequences=180)
    assert memory.activations == 2 * 180 * 2048 * 960 * 128 * 1104 == pytest.approx(100e12, rel=3e-4)
    assert memory.kv_cache == 2 * 1104 * 960 * 128 * 2 * 45 * 2048 == pytest.approx(50e12, rel=3e-4)
    assert memory.total == pytest.approx(2550e12, rel=1e-4)


def test_the_same_tokens_leave_twice_what_the_cache_keeps_only_if_four_heads_share_keys():
    shared = dataclasses.replace(CHAPTER, kv_heads=240)
    memory = whole_memory(Training(shared, kv_sequences=180), held_sequences=180)
    assert memory.activations == 2 * memory.kv_cache
    memory = whole_memory(Training(CHAPTER, kv_sequences=180), held_sequences=180)
    assert memory.activations == memory.kv_cache / 2


def test_exercise_6_a_rank_holds_25_gb_only_if_replicas_share_parameters():
    def on_rank(sharding: Sharding) -> float:
        return float(rank_memory(EXERCISE_6, 64, 32, 8, 8, 1, sharding, Recompute.FULL).parameters)

    assert on_rank(Sharding.PARAMETERS) == pytest.approx(400e12 / 16384) == pytest.approx(24.4e9, rel=1e-3)
    assert on_rank(Sharding.GRADIENTS) == pytest.approx(400e12 / 512) == pytest.approx(781.25e9)
    shared = rank_memory(EXERCISE_6, 64, 32, 8, 8, 1, Sharding.OPTIMISER, Recompute.FULL)
    assert shared.optimiser == pytest.approx(1600e12 / 16384)


@given(st.integers(1, 8), st.integers(1, 4096))
def test_a_layer_of_the_usual_shape_takes_s_b_h_times_34_and_5_a_s_over_h(b, s):
    h, a = GPT3.width, GPT3.heads
    expected = s * b * h * (34 + 5 * a * s / h)
    assert layer_activation_bytes(GPT3, s, b, ElementSizes()) == pytest.approx(expected)


def test_what_recomputation_leaves_of_a_layer():
    training = Training(GPT3, sequence_tokens=2048)
    sbh = 2048 * 3 * 12288
    assert kept_activation_bytes(training, 3, Recompute.NONE) == pytest.approx(sbh * (34 + 5 * 96 * 2048 / 12288))
    assert kept_activation_bytes(training, 3, Recompute.ATTENTION) == 34 * sbh
    assert kept_activation_bytes(training, 3, Recompute.FULL) == 2 * sbh


def test_elements_of_4_bytes_double_all_but_the_masks():
    single = layer_activation_bytes(SMALL, 8, 1, ElementSizes(activation_bytes=4.0))
    assert single == 8 * 64 * (64 + 2) + 4 * 8 * 8 * 9


def test_a_rank_by_hand():
    # 4 layers of 12 x 64^2 = 49152 parameters on 2 stages, each layer on 2 ranks, 3 replicas.
    training = Training(SMALL, sequence_tokens=8, kv_sequences=4, kv_window_tokens=6)
    memory = rank_memory(training, 2, 3, 2, in_flight=2, micro_sequences=5, sharding=Sharding.GRADIENTS, recompute=Recompute.FULL)  # noqa: E501  # fmt: skip
    held = 49152 * 2 / 2
    layer = 5 * (8 * 64 * 34 + 5 * 4 * 8 * 8)
    assert memory.parameters == held * 2
    assert memory.gradients == held * 2 / 3
    assert memory.optimiser == held * 8 / 3
    assert memory.activations == 2 * (2 * 5) * 8 * 64 * 2 / 2
    assert memory.working == (layer - 5 * 8 * 64 * 2) / 2 + 49152 * 2 / 2  # one layer again, and its gradients
    assert memory.kv_cache == 2 * 2 * 2 * 16 * 2 * 6 * 2  # 2 of 4 heads, 2 of 4 sequences, 6 of 8 tokens
    assert memory.total == sum(vars(memory).values())


def test_the_embedding_is_on_the_first_stage():
    model = dataclasses.replace(SMALL, vocabulary=1000)
    split = rank_memory(Training(model), 1, 1, 4, 1, 1, Sharding.NONE, Recompute.FULL)
    assert split.parameters == 2 * (49152 + 64_000)


def test_fewer_heads_of_keys_than_ranks_are_kept_several_times():
    model = dataclasses.replace(SMALL, kv_heads=1)
    training = Training(model, kv_sequences=1)
    alone = rank_memory(training, 1, 1, 1, 1, 1, Sharding.NONE, Recompute.FULL)
    split = rank_memory(training, 4, 1, 1, 1, 1, Sharding.NONE, Recompute.FULL)
    assert split.kv_cache == alone.kv_cache


# Laws.


@given(trainings, st.integers(1, 64))
def test_recomputing_more_keeps_less(training, sequences):
    none, attention, full = (kept_activation_bytes(training, sequences, how) for how in Recompute)
    assert full < attention < none


@given(trainings, st.integers(1, 8), st.integers(1, 8), st.integers(1, 8))
def test_sharing_more_never_takes_more_but_for_the_layer_gathered(training, mp, dp, pp):
    kept = []
    for sharding in Sharding:
        memory = rank_memory(training, mp, dp, pp, 1, 1, sharding, Recompute.NONE)
        kept.append(memory.parameters + memory.gradients + memory.optimiser)
    assert all(more <= less for less, more in pairwise(kept))
    assert (dp == 1) == (kept[0] == kept[-1])


@given(trainings, st.integers(1, 8), st.integers(1, 8), st.integers(1, 8))
def test_all_ranks_together_hold_each_parameter_once_if_replicas_share_and_dp_times_if_not(training, mp, dp, pp):
    whole = whole_memory(training, 1)
    for sharding, copies in ((Sharding.PARAMETERS, 1), (Sharding.NONE, dp)):
        memory = rank_memory(training, mp, dp, pp, 1, 1, sharding, Recompute.FULL)
        ranks = mp * dp * pp
        assert ranks * memory.parameters == pytest.approx(copies * whole.parameters)
        assert ranks * memory.gradients == pytest.approx(copies * whole.gradients)
        assert ranks * memory.optimiser == pytest.approx(copies * whole.optimiser)


@given(trainings, st.sampled_from(Sharding), st.sampled_from(Recompute))
def test_one_rank_holds_the_whole(training, sharding, recompute):
    whole = whole_memory(training, 1, recompute)
    alone = rank_memory(training, 1, 1, 1, 1, 1, sharding, recompute)
    for part in ("parameters", "gradients", "optimiser", "activations", "kv_cache"):
        assert getattr(alone, part) == pytest.approx(getattr(whole, part))


@given(trainings, st.integers(1, 20_000))
def test_a_ring_buffer_keeps_the_window_and_never_more_than_the_sequence(training, window):
    ring = whole_memory(dataclasses.replace(training, kv_window_tokens=window), 1).kv_cache
    whole = whole_memory(training, 1).kv_cache
    assert ring == pytest.approx(whole * min(window / training.sequence_tokens, 1.0))


def test_arrays_of_degrees_give_each_what_it_gives_alone():
    mp, dp, pp = np.array([1.0, 2.0, 4.0]), np.array([4.0, 1.0, 2.0]), np.array([2.0, 4.0, 1.0])
    together = rank_memory(EXERCISE_6, mp, dp, pp, pp, 2, Sharding.PARAMETERS, Recompute.ATTENTION)
    for index in range(3):
        one = rank_memory(EXERCISE_6, mp[index], dp[index], pp[index], pp[index], 2, Sharding.PARAMETERS, Recompute.ATTENTION)  # noqa: E501  # fmt: skip
        assert [value[index] for value in vars(together).values()] == list(vars(one).values())


# Bad input.


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"parameters": float("nan")}, "parameters must be in 1..1e.18, got nan"),
        ({"parameters": 0}, "parameters must be in 1..1e.18, got 0"),
        (
            {"model": Transformer(1, 8, 1, vocabulary=100), "parameters": 800},
            "parameters must be > 800, the embedding's",
        ),
        ({"sequence_tokens": 0}, "sequence_tokens must be a whole number in 1..1073741824, got 0"),
        ({"batch_sequences": 1.5}, "batch_sequences must be a whole number in 1..1048576, got 1.5"),
        ({"kv_sequences": -1}, "kv_sequences must be a whole number in 0..1048576, got -1"),
        ({"model": Transformer(2**21, 64, 1)}, "layers must be a whole number in 1..1048576, got 2097152"),
        ({"kv_window_tokens": 0}, "kv_window_tokens must be a whole number in 1..1073741824, got 0"),
    ],
)
def test_a_training_out_of_range_is_refused(figures, message):
    with pytest.raises(ValueError, match=message):
        Training(**({"model": GPT3} | figures))


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"parameter_bytes": 0.0}, "parameter_bytes must be in 0.001..1000, got 0.0"),
        ({"kv_bytes": float("inf")}, "kv_bytes must be in 0.001..1000, got inf"),
        ({"optimiser_bytes": -1.0}, "optimiser_bytes must be in 0..1000, got -1.0"),
        ({"gradient_bytes": 1e308}, "gradient_bytes must be in 0..1000, got 1e.308"),
    ],
)
def test_sizes_out_of_range_are_refused(figures, message):
    with pytest.raises(ValueError, match=message):
        ElementSizes(**figures)


@pytest.mark.parametrize("held", [-1, 0.5, float("nan")])
def test_a_number_of_sequences_that_is_none_is_refused(held):
    with pytest.raises(ValueError, match=r"held_sequences must be a whole number in 0\.\.1048576"):
        whole_memory(EXERCISE_6, held)

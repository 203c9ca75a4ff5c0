import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numa_rl.workloads.catalog import family_names, make_family
from numa_rl.workloads.collective import ALGORITHMS, AllReduce
from numa_rl.workloads.llm_serving import LLMServing, _geometric
from numa_rl.workloads.processes import drift_steps, interarrival_s, lognormal, zipf_rank
from numa_rl.workloads.synthetic import SyntheticStream
from numa_rl.workloads.workload import NEVER, NO_OBJECT, Workload

ARRAYS = (
    "arrival_s",
    "flops",
    "bytes",
    "write_fraction",
    "object",
    "object_bytes",
    "inputs",
    "input_bytes",
    "freed_after",
)
SMALL_STREAM = SyntheticStream(num_tasks=96, num_objects=6, object_lifetime_tasks=24.0)
SMALL_SERVING = LLMServing(
    num_tasks=96,
    requests_per_s=1.0,
    warm_up_requests=20,
    num_shards=4,
    shards_per_request=2,
    median_context_tokens=200.0,
    max_context_tokens=1000,
    median_generated_tokens=40.0,
    received_context_share=0.5,
)
SMALL_ALL_REDUCE = AllReduce(num_ranks=4, num_steps=2)
SMALL = {
    "synthetic": SMALL_STREAM,
    "llm-serving": SMALL_SERVING,
    "all-reduce": SMALL_ALL_REDUCE,
    **{
        name: make_family(name)
        for name in ("planted", "attention", "ffn", "kv-decode", "pipeline", "transformer-training")
    },
    **{name: make_family(name, num_tasks=96) for name in ("prefix-cache", "hpc-batch", "workflow", "query", "threads")},
}
FAMILIES = pytest.mark.parametrize("family", [SMALL[name] for name in family_names()], ids=family_names())
AZURE = Path(__file__).parents[2] / "shared/data/traces/AzureLLMInferenceTrace_conv_2023.csv"


def uniforms(shape, seed=0):
    return np.random.default_rng(seed).random(shape)


def arrivals(burstiness, burst_s=0.5, events_per_s=20.0, shape=(40, 20_000)):
    phase, gap = uniforms((2, *shape))
    return np.cumsum(interarrival_s(phase, gap, events_per_s, burstiness, burst_s), axis=1)


def index_of_dispersion(arrival_s, window_s):
    whole = int(arrival_s[:, -1].min() // window_s)
    counts = [np.bincount((row // window_s).astype(int), minlength=whole)[:whole] for row in arrival_s]
    return np.var(counts) / np.mean(counts)


def synthetic_streams():
    return st.builds(
        SyntheticStream,
        num_tasks=st.integers(1, 60),
        burstiness=st.floats(1.0, 20.0),
        num_objects=st.integers(1, 12),
        zipf_exponent=st.floats(0.0, 2.0),
        drift_per_task=st.floats(0.0, 1.0),
        object_lifetime_tasks=st.sampled_from([12.0, 40.0, math.inf]),
        read_only_share=st.floats(0.0, 1.0),
        write_fraction=st.floats(0.0, 1.0),
        inputs_per_task=st.integers(0, 4),
    )


def llm_servings():
    return st.builds(
        LLMServing,
        num_tasks=st.integers(9, 80),
        burstiness=st.floats(1.0, 20.0),
        warm_up_requests=st.integers(0, 30),
        tokens_per_s=st.floats(1.0, 1e4),
        prefill_tokens_per_s=st.floats(1.0, 1e4),
        mean_turns=st.floats(1.0, 20.0),
        max_turns=st.integers(1, 6),
        mean_pause_s=st.floats(0.01, 100.0),
        max_context_tokens=st.integers(1, 20_000),
        received_context_share=st.sampled_from([0.0, 0.3, 0.999, 1.0]),
        attended_tokens=st.integers(1, 20_000),
        prefill_chunk_tokens=st.integers(1, 3000),
        decode_chunk_tokens=st.integers(1, 2000),
        num_shards=st.integers(3, 8),
        shards_per_request=st.integers(1, 3),
        shard_drift_per_request=st.floats(0.0, 1.0),
    )


def check_laws(workload: Workload, most_alive: int) -> None:
    """Every object is created by its owner, read only between that and its end, and never shrinks."""
    for e in range(workload.num_episodes):
        sizes: dict[int, float] = {}
        for t in range(workload.num_tasks):
            read = [int(o) for o in workload.inputs[e, t] if o != NO_OBJECT]
            own = int(workload.object[e, t])
            assert len({own, *read}) == 1 + len(read)
            assert set(read) <= sizes.keys()
            for used in (own, *read):
                assert workload.freed_after[e, used] >= t
            assert workload.object_bytes[e, t] >= sizes.get(own, 0.0)
            sizes[own] = workload.object_bytes[e, t]
            alive = [o for o in sizes if workload.freed_after[e, o] >= t]
            assert len(alive) <= most_alive
        ended = np.flatnonzero(workload.freed_after[e] != NEVER)
        for o in ended:  # freed by the last task that uses it, so by one that does
            t = workload.freed_after[e, o]
            assert o in (workload.object[e, t], *workload.inputs[e, t])


# The random processes


def test_poisson_arrivals_have_the_mean_rate_and_dispersion_one():
    arrival_s = arrivals(burstiness=1.0)
    assert arrival_s[:, -1].mean() == pytest.approx(20_000 / 20.0, rel=0.01)
    assert index_of_dispersion(arrival_s, window_s=10.0) == pytest.approx(1.0, rel=0.05)


def test_bursts_keep_the_mean_rate_and_have_the_dispersion_of_an_interrupted_poisson_process():
    # 1 + 2 x rate x burst x (b - 1)^2 / b^2 x b over long windows: 1 + 2 * 20 * 0.5 * 9 / 4 = 46.
    arrival_s = arrivals(burstiness=4.0)
    assert arrival_s[:, -1].mean() == pytest.approx(1000.0, rel=0.05)
    assert index_of_dispersion(arrival_s, window_s=50.0) == pytest.approx(46.0, rel=0.15)


def test_a_burst_runs_at_burstiness_times_the_mean_rate():
    gaps_s = np.diff(arrivals(burstiness=4.0, burst_s=1000.0, shape=(4, 20_000)))
    assert np.median(gaps_s) == pytest.approx(math.log(2) / 80.0, rel=0.05)


def test_burstiness_near_one_is_nearly_poisson():
    np.testing.assert_allclose(
        arrivals(1.0 + 1e-9, shape=(1, 1000)), arrivals(1.0, shape=(1, 1000)), rtol=1e-6, atol=0.0
    )


def test_zipf_head_has_its_share():
    # 1 / (1 + 1/2 + 1/3 + 1/4) = 0.48, and a quarter of that for the last.
    share = np.bincount(zipf_rank(uniforms(100_000), 4, 1.0)) / 100_000
    np.testing.assert_allclose(share, np.array([12, 6, 4, 3]) / 25, atol=0.01)


def test_zipf_exponent_zero_is_uniform():
    assert zipf_rank(np.array([0.0, 0.24, 0.25, 0.5, 0.999]), 4, 0.0).tolist() == [0, 0, 1, 2, 3]


def test_drift_counts_shifts():
    assert drift_steps(np.array([0.5, 0.05, 0.01, 0.9]), 0.1).tolist() == [0, 1, 2, 2]


def test_lognormal_has_its_median_and_sigma():
    values = lognormal(uniforms(100_000), 760.0, 0.985)
    assert np.median(values) == pytest.approx(760.0, rel=0.02)
    assert np.log(values).std() == pytest.approx(0.985, rel=0.01)
    assert np.isfinite(lognormal(np.zeros(1), 1.0, 1.0)).all()


# Laws of every family


@settings(deadline=None, max_examples=40)
@given(family=synthetic_streams(), seed=st.integers(0, 2**32))
def test_stream_objects_live_from_creation_to_their_end(family, seed):
    check_laws(family.generate(np.random.default_rng(seed), 2), most_alive=family.num_objects)


@settings(deadline=None, max_examples=40)
@given(family=llm_servings(), seed=st.integers(0, 2**32))
def test_serving_objects_live_from_creation_to_their_end(family, seed):
    check_laws(family.generate(np.random.default_rng(seed), 2), most_alive=family.num_tasks)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_all_reduce_objects_live_from_creation_to_their_end(algorithm):
    family = AllReduce(algorithm, num_ranks=6, group_ranks=3, num_steps=2)
    most_alive = 6 + 6 * family.schedule.num_chunks  # replicas, and the gradients of one step
    check_laws(family.generate(np.random.default_rng(0), 2), most_alive)


@FAMILIES
def test_same_seed_same_bits(family):
    one, two = (family.generate(np.random.default_rng(7), 3) for _ in range(2))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@FAMILIES
def test_a_larger_pool_extends_a_smaller_one(family):
    few, many = (family.generate(np.random.default_rng(7), n) for n in (3, 12))
    for name in ARRAYS[:-1]:
        np.testing.assert_array_equal(getattr(few, name), getattr(many, name)[:3])
    o = few.num_objects
    np.testing.assert_array_equal(few.freed_after, many.freed_after[:3, :o])
    assert (many.freed_after[:3, o:] == NEVER).all()


@FAMILIES
def test_no_two_episodes_of_a_pool_are_alike(family):
    workload = family.generate(np.random.default_rng(7), 64)
    assert len(contents(workload)) == 64


@FAMILIES
def test_a_family_travels_to_another_process_though_it_has_been_used(family):
    used = family.generate(np.random.default_rng(3), 2)
    again = pickle.loads(pickle.dumps(family)).generate(np.random.default_rng(3), 2)
    np.testing.assert_array_equal(used.bytes, again.bytes)


@FAMILIES
def test_another_seed_gives_other_episodes(family):
    one, two = (family.generate(np.random.default_rng(seed), 32) for seed in (0, 1))
    assert not contents(one) & contents(two)


def contents(workload):
    """What the episodes ask for, as bytes."""
    return {demand.tobytes() for demand in np.concatenate([workload.bytes, workload.flops], axis=1)}


# The synthetic stream


def test_stream_medians_are_the_parameters():
    family = SyntheticStream(num_tasks=400, object_lifetime_tasks=math.inf)
    workload = family.generate(np.random.default_rng(0), 50)
    assert np.median(workload.bytes) == pytest.approx(family.median_task_bytes, rel=0.05)
    assert np.median(workload.flops) == pytest.approx(family.median_task_flops, rel=0.05)
    read = workload.input_bytes[workload.inputs != NO_OBJECT]
    assert np.median(read) == pytest.approx(family.median_input_bytes, rel=0.05)
    assert workload.arrival_s[:, -1].mean() == pytest.approx(400 / family.tasks_per_s, rel=0.1)


@pytest.mark.parametrize("mean", [0.0, 0.2, 0.9, 1.0])
def test_writes_have_their_mean_and_share(mean):
    family = replace(SMALL_STREAM, num_tasks=500, write_fraction=mean, read_only_share=0.25)
    writes = family.generate(np.random.default_rng(0), 40).write_fraction
    assert writes.mean() == pytest.approx(0.75 * mean, abs=0.01)
    if mean:
        assert (writes == 0).mean() == pytest.approx(0.25, abs=0.01)


def test_objects_live_their_mean_lifetime():
    family = SyntheticStream(num_tasks=2000, num_objects=4, object_lifetime_tasks=50.0, zipf_exponent=0.0)
    workload = family.generate(np.random.default_rng(0), 20)
    ended = (workload.freed_after != NEVER).sum(axis=1)
    # 4 slots x 2000 tasks / 50 replacements; about one in 14 finds its slot empty still (4 / 54).
    assert ended.mean() == pytest.approx(160 * 50 / 54, rel=0.05)


def test_objects_that_never_end_are_numbered_once():
    workload = replace(SMALL_STREAM, object_lifetime_tasks=math.inf).generate(np.random.default_rng(0), 8)
    assert workload.num_objects <= SMALL_STREAM.num_objects
    assert (workload.freed_after == NEVER).all()


def test_drift_moves_the_hot_set():
    steady, drifting = (
        SyntheticStream(num_tasks=800, zipf_exponent=2.0, drift_per_task=drift, object_lifetime_tasks=math.inf)
        for drift in (0.0, 0.1)
    )

    def top_share(family):
        objects = family.generate(np.random.default_rng(0), 20).object
        return np.mean([np.bincount(row).max() / row.size for row in objects])

    # The head of 48 at exponent 2 has 1 / 1.62 of the draws; drifting, it changes hands 80 times.
    assert top_share(steady) == pytest.approx(0.616, abs=0.02)
    assert top_share(drifting) < 0.2


# LLM serving


def one_request(context, generated, **parameters):
    """A request of known length at a dense GPT-2 medium in 2 shards, computed here, and nothing else near it."""
    family = LLMServing(
        **{
            "num_tasks": 12,
            "requests_per_s": 1e-6,
            "burstiness": 1.0,
            "warm_up_requests": 0,
            "mean_turns": 1.0,
            "median_context_tokens": float(context),
            "context_tokens_sigma": 0.0,
            "median_generated_tokens": float(generated),
            "generated_tokens_sigma": 0.0,
            "received_context_share": 0.0,
            "prefill_chunk_tokens": 64,
            "decode_chunk_tokens": 16,
            "layers": 24,
            "heads": 16,
            "kv_heads": 16,
            "bytes_per_element": 2.0,
            "parameters": 355_000_000,
            "bytes_per_parameter": 2.0,
            "num_shards": 2,
            "shards_per_request": 2,
        }
        | parameters
    )
    return family, family.generate(np.random.default_rng(0), 1)


def test_pythia_160m_keeps_74_kb_of_kv_per_token():
    assert LLMServing().kv_bytes_per_token == 2 * 12 * 12 * 64 * 4 == 73_728


def test_grouped_queries_shrink_the_kv_cache():
    assert LLMServing(kv_heads=3).kv_bytes_per_token == 73_728 / 4


def test_active_parameters_are_those_of_the_shards_used():
    assert LLMServing().active_parameters == 990e6 / 8
    assert LLMServing(shards_per_request=2).active_parameters == 990e6 / 4
    assert LLMServing(shards_per_request=8).active_parameters == 990e6


def test_loaders_create_the_shards_at_time_zero():
    family = SMALL_SERVING
    workload, s = family.generate(np.random.default_rng(0), 4), 4
    np.testing.assert_array_equal(workload.object[:, :s], np.tile(np.arange(s), (4, 1)))
    assert (workload.arrival_s[:, :s] == 0).all()
    assert (workload.bytes[:, :s] == 990e6).all()
    assert (workload.object_bytes[:, :s] == 990e6).all()
    assert (workload.write_fraction[:, :s] == 1).all()
    assert (workload.inputs[:, :s] == NO_OBJECT).all()
    assert (workload.freed_after[:, :s] == NEVER).all()
    assert (workload.object[:, s:] >= s).all()
    assert (workload.inputs[:, s:] < s).all()


def test_one_request_by_hand():
    # 150 tokens of prompt in chunks of 64, 64 and 22, then 20 generated in 16 and 4.
    family, workload = one_request(150, 20, batch_reuse=4.0, tokens_per_s=10.0, prefill_tokens_per_s=20.0)
    chunks, kv, shard = slice(2, 7), 98_304, 355e6
    sizes, starts = np.array([64, 64, 22, 16, 4]), np.array([0, 64, 128, 150, 166])
    arrival_s = workload.arrival_s[0, chunks]
    np.testing.assert_allclose(arrival_s - arrival_s[0], [0.0, 3.2, 6.4, 7.5, 9.1], atol=1e-6)
    np.testing.assert_allclose(workload.object_bytes[0, chunks], (starts + sizes) * kv)
    # Prefill reads what came before once. Decode reads it per token: 16 x 150 + 120 and 4 x 166 + 6.
    read = np.array([0, 64, 128, 2520, 670])
    np.testing.assert_allclose(workload.bytes[0, chunks], (read + sizes) * kv, rtol=1e-6)
    np.testing.assert_allclose(workload.write_fraction[0, chunks], sizes / (read + sizes), rtol=1e-6)
    # Weights: once per chunk in prefill, once per four tokens in decode.
    assert workload.inputs[0, chunks].tolist() == [[0, 1]] * 5
    passes = np.array([1, 1, 1, 4, 1])
    np.testing.assert_allclose(workload.input_bytes[0, chunks], np.outer(passes * shard, [1, 1]), rtol=1e-6)
    # 2 flop per parameter and token, 4 x 24 x 1024 per pair of tokens: 64 x 65 / 2 = 2080 in the first chunk.
    pairs = np.array([2080, 2080 + 64 * 64, 22 * 23 / 2 + 22 * 128, 136 + 16 * 150, 10 + 4 * 166])
    np.testing.assert_allclose(workload.flops[0, chunks], 2 * 355e6 * sizes + 98_304 * pairs, rtol=1e-6)
    assert workload.object[0, chunks].tolist() == [2] * 5
    assert workload.freed_after[0].tolist() == [NEVER, NEVER, 6, 11]  # the second request ends with the episode
    assert family.kv_bytes_per_token == kv


def test_prefill_and_decode_together_attend_the_whole_triangle():
    # However a request is cut, its tokens attend to n (n + 1) / 2 positions in all.
    _, coarse = one_request(150, 20, prefill_chunk_tokens=150, decode_chunk_tokens=20)
    _, fine = one_request(150, 20, prefill_chunk_tokens=30, decode_chunk_tokens=4)
    flops = 2 * 355e6 * 170 + 98_304 * 170 * 171 / 2
    assert coarse.flops[0, 2:4].sum(dtype=float) == pytest.approx(flops, rel=1e-6)
    assert fine.flops[0, 2:12].sum(dtype=float) == pytest.approx(flops, rel=1e-6)


def test_the_first_task_writes_the_received_prompt():
    # 75% of 150 tokens come with their cache; 38 are left to compute, in 32 and 6, and 16 to generate.
    _, workload = one_request(
        150, 16, received_context_share=0.75, prefill_chunk_tokens=32, prefill_tokens_per_s=20.0, batch_reuse=2.0
    )
    chunks, kv, shard = slice(2, 5), 98_304, 355e6
    np.testing.assert_allclose(workload.object_bytes[0, chunks], np.array([144, 150, 166]) * kv)
    read, written = np.array([112, 144, 16 * 150 + 120]), np.array([112 + 32, 6, 16])
    np.testing.assert_allclose(workload.bytes[0, chunks], (read + written) * kv, rtol=1e-6)
    np.testing.assert_allclose(workload.write_fraction[0, chunks], written / (read + written), rtol=1e-6)
    np.testing.assert_allclose(workload.input_bytes[0, chunks, 0], np.array([1, 1, 8]) * shard, rtol=1e-6)
    assert workload.flops[0, 2] == pytest.approx(2 * 355e6 * 32 + kv * (32 * 33 / 2 + 32 * 112), rel=1e-6)
    arrival_s = workload.arrival_s[0, chunks]
    np.testing.assert_allclose(arrival_s - arrival_s[0], [0.0, 1.6, 1.9], atol=1e-6)
    assert workload.freed_after[0].tolist() == [NEVER, NEVER, 4, 7, 10, NEVER]  # the last has begun, no more


def test_a_prompt_received_whole_leaves_only_decode():
    _, workload = one_request(150, 20, received_context_share=1.0)
    np.testing.assert_allclose(workload.object_bytes[0, 2:4], np.array([166, 170]) * 98_304)
    np.testing.assert_allclose(workload.bytes[0, 2], (150 + 16 + 16 * 150 + 120) * 98_304, rtol=1e-6)


def test_sparse_attention_reads_its_budget():
    # 16 tokens attend to 100 of the 150 or more before them, and all of the cache stays.
    _, workload = one_request(150, 16, prefill_chunk_tokens=150, attended_tokens=100)
    kv = 98_304
    np.testing.assert_allclose(workload.bytes[0, 2:4], np.array([150, 16 * 100 + 16]) * kv, rtol=1e-6)
    np.testing.assert_allclose(workload.object_bytes[0, 2:4], np.array([150, 166]) * kv)
    # Of the prompt, the first 100 tokens see a triangle and the other 50 see 100 each.
    pairs = np.array([100 * 101 / 2 + 50 * 100, 16 * 100])
    np.testing.assert_allclose(workload.flops[0, 2:4], 2 * 355e6 * np.array([150, 16]) + kv * pairs, rtol=1e-6)


def test_a_conversation_keeps_its_cache_between_turns():
    # Two turns for every request: a prompt of 60 and an answer of 20, then one of 30 and an answer of 20 again.
    family, workload = one_request(
        60, 20, mean_turns=1e9, max_turns=2, median_follow_up_tokens=30.0, prefill_tokens_per_s=20.0, tokens_per_s=10.0
    )
    held = np.array([60, 76, 80, 110, 126, 130])
    assert workload.object[0, 2:8].tolist() == [2] * 6
    np.testing.assert_allclose(workload.object_bytes[0, 2:8], held * 98_304)
    assert workload.freed_after[0].tolist() == [NEVER, NEVER, 7, NEVER]
    # The follow-up is prefilled on top of 80 tokens, and comes a pause after the answer's nominal end.
    np.testing.assert_allclose(workload.bytes[0, 5], (80 + 30) * 98_304)
    arrival_s = workload.arrival_s[0, 2:8] - workload.arrival_s[0, 2]
    np.testing.assert_allclose(arrival_s[:3], [0.0, 3.0, 4.6], atol=1e-4)
    np.testing.assert_allclose(arrival_s[4:] - arrival_s[3], [1.5, 3.1], atol=1e-4)
    many = replace(family, mean_pause_s=7.0).generate(np.random.default_rng(0), 4000).arrival_s
    assert np.mean(many[:, 5] - many[:, 2]) == pytest.approx(60 / 20 + 20 / 10 + 7.0, rel=0.03)


def test_a_conversation_ends_with_its_context():
    # 60 + 20 tokens are below the limit of 100 and 80 + 30 + 20 are not: no third turn.
    _, workload = one_request(
        60, 20, num_tasks=30, mean_turns=1e9, max_turns=9, median_follow_up_tokens=30.0, max_context_tokens=100
    )
    assert np.bincount(workload.object[0])[2] == 6


def test_turns_are_geometric():
    turns = _geometric(uniforms(100_000), 4.0)
    assert turns.min() == 1
    assert turns.mean() == pytest.approx(4.0, rel=0.02)
    assert (turns == 1).mean() == pytest.approx(0.25, abs=0.01)
    assert (_geometric(uniforms(100), 1.0) == 1).all()


def test_kv_cache_grows_with_every_chunk():
    workload = SMALL_SERVING.generate(np.random.default_rng(0), 8)
    for objects, sizes in zip(workload.object[:, 4:], workload.object_bytes[:, 4:], strict=True):
        for kv in np.unique(objects):
            assert (np.diff(sizes[objects == kv]) > 0).all()


def test_requests_keep_their_shards():
    workload = SMALL_SERVING.generate(np.random.default_rng(0), 8)
    for objects, inputs in zip(workload.object[:, 4:], workload.inputs[:, 4:], strict=True):
        for kv in np.unique(objects):
            assert len(np.unique(inputs[objects == kv], axis=0)) == 1


def test_popular_shards_are_used_more():
    family = replace(SMALL_SERVING, shards_per_request=1, shard_drift_per_request=0.0, warm_up_requests=0)
    requests = family._draw_requests(np.random.default_rng(0), 400)
    share = np.mean([np.sort(np.bincount(row[:, 0], minlength=4))[::-1] / len(row) for row in requests.shards], axis=0)
    np.testing.assert_allclose(share, np.array([12, 6, 4, 3]) / 25, atol=0.04)  # sorting widens it a little


def test_cold_start_begins_with_whole_requests():
    family = replace(SMALL_SERVING, warm_up_requests=0, received_context_share=0.0)
    workload = family.generate(np.random.default_rng(0), 8)
    first = [np.unique(row, return_index=True)[1] for row in workload.object]
    for e, tasks in enumerate(first):
        assert (workload.object_bytes[e, tasks[4:]] <= family.prefill_chunk_tokens * family.kv_bytes_per_token).all()


def test_warm_start_meets_requests_on_their_way():
    # The first task of a request that begins in the episode writes its whole prompt.
    workload = LLMServing().generate(np.random.default_rng(0), 8)
    first = [np.unique(row, return_index=True)[1][8:] for row in workload.object]
    met = [workload.write_fraction[e, tasks] < 0.01 for e, tasks in enumerate(first)]
    assert 0.3 < np.mean(np.concatenate(met)) < 0.9


def test_default_load_suits_the_r815():
    # Eight nodes of 12 GB/s, 64 cores of 16.8 Gflop/s.
    family = LLMServing()
    workload = family.generate(np.random.default_rng(0), 256)
    seconds = workload.arrival_s[:, -1].sum()
    moved = workload.bytes[:, 8:].sum(dtype=float) + workload.input_bytes.sum(dtype=float)
    assert 0.4 < moved / seconds / 96e9 < 0.65
    assert 0.03 < workload.flops.sum(dtype=float) / seconds / (64 * 16.8e9) < 0.15
    requests = [len(np.unique(row)) - 8 for row in workload.object]
    assert np.mean(requests) == pytest.approx(27, abs=3)
    assert max(requests) < 60
    # One core keeps the pace of a request that attends to its whole budget, if all is on its node and idle.
    token_bytes = family.attended_tokens * family.kv_bytes_per_token + family.shard_bytes / family.batch_reuse
    assert family.tokens_per_s * token_bytes < 0.5 * 10.24e9


def write_trace(path: Path, requests: int) -> str:
    rows = [f"2023-11-16 18:{t // 60:02}:{t % 60:02}.0000000,{100 + t},{10 + t}" for t in range(requests)]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    return str(path)


def test_a_trace_gives_arrivals_and_lengths(tmp_path):
    # 28 requests, one a second: R = 4 + 24 uses them all, so the window is the whole trace.
    path = write_trace(tmp_path / "trace.csv", 28)
    family = LLMServing(
        num_tasks=32, trace=path, warm_up_requests=4, trace_time_scale=3.0, tokens_per_s=1e6, prefill_tokens_per_s=1e6
    )
    requests = family._draw_requests(np.random.default_rng(0), 2)
    np.testing.assert_allclose(requests.arrival_s[:, :, 0], np.tile(3.0 * np.arange(-3, 25), (2, 1)))
    prefilled, generated = np.moveaxis(requests.tokens[:, :, 0], 2, 0)
    assert requests.received_tokens[0].tolist() == list(range(100, 128))
    assert (prefilled == 0).all()
    assert generated[1].tolist() == list(range(10, 38))
    assert (requests.tokens[:, :, 1:] == 0).all()  # each a turn of its own
    first_in_episode = family.generate(np.random.default_rng(0), 2).object_bytes[:, 8]
    np.testing.assert_allclose(first_in_episode, (103 + 13) * 73_728)  # the request of 103 tokens arrives at time 0


def test_windows_of_a_trace_differ(tmp_path):
    path = write_trace(tmp_path / "trace.csv", 400)
    family = LLMServing(num_tasks=32, trace=path, warm_up_requests=0)
    requests = family._draw_requests(np.random.default_rng(0), 200)
    starts = requests.received_tokens[:, 0] - 100
    assert len(set(starts)) > 100
    assert starts.min() >= 0
    assert starts.max() <= 400 - 24


def test_a_short_trace_is_refused(tmp_path):
    path = write_trace(tmp_path / "trace.csv", 27)
    with pytest.raises(ValueError, match=r"trace must have at least 28 requests .* got 27 in .*trace\.csv"):
        LLMServing(num_tasks=32, trace=path, warm_up_requests=4)


def test_the_azure_trace_drives_serving():
    if not AZURE.exists():
        pytest.skip("the Azure trace is not beside this checkout")
    family = LLMServing(trace=str(AZURE), trace_time_scale=8.0)
    workload = family.generate(np.random.default_rng(0), 32)
    moved = workload.bytes[:, 8:].sum(dtype=float) + workload.input_bytes.sum(dtype=float)
    assert 0.4 < moved / workload.arrival_s[:, -1].sum() / 96e9 < 0.8


# The catalog and the ranges


def test_families_have_names():
    assert set(family_names()) == set(SMALL)
    assert make_family("synthetic", num_tasks=7) == SyntheticStream(num_tasks=7)
    assert make_family("all-reduce", algorithm="hierarchical", mean_gap_s=1) == AllReduce(
        "hierarchical", mean_gap_s=1.0
    )
    assert make_family("llm-serving", batch_reuse=2) == LLMServing(batch_reuse=2.0)  # whole numbers serve as floats


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("batch", {}, "unknown workload family 'batch'; known: synthetic, llm-serving"),
        ("synthetic", {"num_task": 3}, "synthetic: unknown key 'num_task'; known: num_tasks, tasks_per_s"),
        ("synthetic", {"num_tasks": 3.0}, "synthetic: num_tasks must be of type integer, got 3.0"),
        ("synthetic", {"num_tasks": True}, "synthetic: num_tasks must be of type integer, got True"),
        ("synthetic", {"burst_s": "1"}, "synthetic: burst_s must be of type number, got '1'"),
        ("synthetic", {"num_tasks": 0}, "synthetic: num_tasks must be >= 1, got 0"),
        ("synthetic", {"burstiness": 0.5}, "synthetic: burstiness must be >= 1, got 0.5"),
        ("synthetic", {"tasks_per_s": 0.0}, "synthetic: tasks_per_s must be > 0, got 0.0"),
        ("synthetic", {"tasks_per_s": math.nan}, "synthetic: tasks_per_s must be > 0, got nan"),
        ("synthetic", {"median_task_bytes": math.inf}, "synthetic: median_task_bytes must be > 0, got inf"),
        ("synthetic", {"inputs_per_task": -1}, "synthetic: inputs_per_task must be >= 0, got -1"),
        ("synthetic", {"write_fraction": 1.5}, "synthetic: write_fraction must be in [0, 1], got 1.5"),
        ("synthetic", {"object_lifetime_tasks": 47.0}, "object_lifetime_tasks must be >= num_objects (48)"),
        ("all-reduce", {"num_ranks": 2.0}, "all-reduce: num_ranks must be of type integer, got 2.0"),
        (
            "all-reduce",
            {"algorithm": "tree"},
            "all-reduce: algorithm must be one of ring, hierarchical, halving-doubling",
        ),
        ("llm-serving", {"trace": 5}, "llm-serving: trace must be of type string, got 5"),
        ("llm-serving", {"trace": "nowhere.csv"}, "nowhere.csv: trace must be a readable file"),
        ("llm-serving", {"requests_per_s": -1.0}, "llm-serving: requests_per_s must be > 0, got -1.0"),
        ("llm-serving", {"shards_per_request": 9}, "shards_per_request must be <= num_shards (8), got 9"),
        ("llm-serving", {"kv_heads": 13}, "kv_heads must be <= heads (12), got 13"),
        ("llm-serving", {"num_tasks": 8}, "num_tasks must be > num_shards (8 loader tasks), got 8"),
        ("llm-serving", {"batch_reuse": 0.5}, "batch_reuse must be >= 1, got 0.5"),
        ("llm-serving", {"shard_drift_per_request": 2.0}, "shard_drift_per_request must be in [0, 1], got 2.0"),
        ("llm-serving", {"mean_turns": 0.5}, "mean_turns must be >= 1, got 0.5"),
        ("llm-serving", {"max_turns": 0}, "max_turns must be >= 1, got 0"),
        ("llm-serving", {"mean_pause_s": 0.0}, "mean_pause_s must be > 0, got 0.0"),
        ("llm-serving", {"attended_tokens": 0}, "attended_tokens must be >= 1, got 0"),
        ("llm-serving", {"received_context_share": 1.5}, "received_context_share must be in [0, 1], got 1.5"),
        ("llm-serving", {"warm_up_requests": -1}, "warm_up_requests must be >= 0, got -1"),
    ],
)
def test_bad_parameters_are_named(name, parameters, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, unescaped
        make_family(name, **parameters)
    assert message in str(caught.value)

"""LLM serving as a workload: requests, their caches and shards by hand, conversations, warm starts, traces."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_families import SMALL_SERVING

from numa_rl.workloads.llm_serving import LLMServing
from numa_rl.workloads.workload import NEVER, NO_OBJECT

AZURE = Path(__file__).parents[2] / "shared/data/traces/AzureLLMInferenceTrace_conv_2023.csv"


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

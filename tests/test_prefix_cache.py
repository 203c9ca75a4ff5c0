"""Requests over shared prefixes: what is shared becomes an object of its own, written once."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playing import decide, started
from strategies import toy_machine

from agents.evaluation import evaluate
from agents.rules.catalog import make_rule
from envs.reward import RewardWeights
from envs.world import World
from numa_rl.machines.catalog import load_machine
from numa_rl.transformer.kv_cache import attended_pairs
from numa_rl.workloads.mooncake import BLOCK_TOKENS, read_mooncake_trace
from numa_rl.workloads.prefix_cache import (
    MOONCAKE_ADDED_SIGMA,
    MOONCAKE_FIRST_SIGMA,
    MOONCAKE_FORGET_SHARE,
    MOONCAKE_MEDIAN_ADDED_TOKENS,
    MOONCAKE_MEDIAN_FIRST_TOKENS,
    MOONCAKE_MEDIAN_PAUSE_S,
    MOONCAKE_PAUSE_SIGMA,
    PrefixCache,
)
from numa_rl.workloads.prefix_requests import PrefixRequests, Segments, conversation_requests, first_requests
from numa_rl.workloads.workload import NEVER, NO_OBJECT

REAL = Path(__file__).parents[2] / "shared/data/traces/mooncake_conversation_trace.jsonl"
SMALL = PrefixCache(
    num_tasks=64,
    warm_up_conversations=10,
    num_system_prompts=2,
    system_prompt_blocks=2,
    median_first_tokens=600.0,
    max_context_tokens=4096,
)
DENSE = 10_000  # more than any context
# Two bytes of cache for a token, and 4 flop for a pair of tokens.
UNITS = {"layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 1, "bytes_per_element": 1.0}


def pool(family, num_episodes=3, seed=0):
    return family.generate(np.random.default_rng(seed), num_episodes)


def write_trace(path, *requests):
    keys = ("timestamp", "input_length", "output_length", "hash_ids")
    path.write_text("\n".join(json.dumps(dict(zip(keys, request, strict=True))) for request in requests))
    return str(path)


@pytest.fixture
def by_hand(tmp_path):
    """Two requests share two blocks, a third the first of them, and a fourth nothing."""
    trace = write_trace(
        tmp_path / "trace.jsonl",
        (500, 1024, 3, [0, 1]),
        (1500, 1300, 2, [0, 1, 2]),
        (2500, 512, 1, [0]),
        (3500, 100, 20, [7]),
    )
    family = PrefixCache(
        num_tasks=14, decode_chunk_tokens=2, tokens_per_s=20.0, trace=trace, trace_machines=1, trace_time_scale=1.0,
        **UNITS,
    )  # fmt: skip
    return pool(family, 1)


# Known answers.


def test_shared_blocks_become_objects_and_private_ones_their_requests(by_hand):
    # Written: blocks 0 and 1, then what the first request generates; then of the second, third and fourth.
    assert by_hand.object[0].tolist() == [0, 1, 2, 2, 3, 3, 4, *[5] * 7]
    assert by_hand.read_only[0].tolist() == [True, True, False, False, False, False]
    np.testing.assert_allclose(by_hand.arrival_s[0, :9], [0, 0, 0, 0.1, 1, 1, 2, 3, 3])


def test_what_is_cached_is_read_and_the_rest_written(by_hand):
    read = [
        {int(o): float(b) for o, b in zip(objects, sizes, strict=True) if o != NO_OBJECT}
        for objects, sizes in zip(by_hand.inputs[0], by_hand.input_bytes[0], strict=True)
    ]
    block = 512 * 2
    assert read[:2] == [{}, {}]  # nothing was cached
    assert read[2] == {0: 2 * block, 1: 2 * block}  # two tokens
    assert read[3] == {0: block, 1: block}
    assert read[4] == {0: block, 1: block}  # the cached prefix goes up once
    assert read[5] == {0: 2 * block, 1: 2 * block}
    assert read[6] == {0: block}
    assert read[7:] == [{}] * 7


def test_bytes_and_arithmetic_by_hand(by_hand):
    # The first answer's third token reads two of its own and writes one; the second's two read 276 and 277.
    assert by_hand.bytes[0, :8].tolist() == [1024, 1024, 2 * (1 + 2), 2 * (2 + 1), 552, 2 * (553 + 2), 2, 200]
    written = [1024, 1024, 4, 2, 552, 4, 2, 200]
    np.testing.assert_allclose(by_hand.write_fraction[0, :8] * by_hand.bytes[0, :8], written, rtol=1e-6)
    assert by_hand.object_bytes[0, :8].tolist() == [1024, 1024, 4, 6, 552, 556, 2, 200]
    assert by_hand.flops[0, :8].tolist() == [0, 0, 4 * (1025 + 1026), 4 * 1027, 0, 4 * (1301 + 1302), 4 * 513, 0]


def test_objects_go_after_their_last_use(by_hand):
    assert by_hand.freed_after[0].tolist() == [6, 5, 3, 5, 6, NEVER]


def test_the_first_requests_are_those_before_decode_alone_is_enough():
    arrival_s = np.array([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 5.0, 9.0]])
    chunks = np.array([[3, 1, 1, 9], [1, 1, 1, 1]])
    # Row 0 decodes at 0, 1, 1, 2, 2, ...; row 1 at 0, 1, 5.
    assert first_requests(arrival_s, chunks, 1.0, 3).tolist() == [[True, True, False, False], [True, True, True, False]]


def test_turns_keep_full_blocks_and_write_the_rest_anew():
    shape = (1, 2, 3)
    requests = conversation_requests(
        episode=np.array([0]),
        used=np.array([[[True, True, True], [True, False, False]]]),
        arrival_s=np.array([[[0.0, 2.0, 3.0], [1.0, 9.0, 9.0]]]),
        input_tokens=512 * np.array([[[3, 4, 4], [2, 5, 6]]]) + 1,  # so many full blocks, and a token of the next one
        output_tokens=np.ones(shape, np.int64),
        kept_blocks=np.array([[[0, 3, 2], [0, 2, 5]]]),
        system=np.array([[0, 0]]),
        system_blocks=1,
    )
    first, other, second, third = np.split(requests.blocks, np.cumsum(requests.num_blocks)[:-1])
    assert requests.input_tokens.tolist() == [1537, 1025, 2049, 2049]  # in order of arrival
    assert first[0] == other[0] == second[0] == third[0]
    assert [len(np.intersect1d(first, path)) for path in (other, second, third)] == [1, 3, 2]
    assert [len(np.intersect1d(second, path)) for path in (other, third)] == [1, 2]
    assert len(np.intersect1d(other, third)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_tasks": 0}, "num_tasks must be >= 1, got 0"),
        ({"stop_a": 1.0}, "stop_a must be > 1, or turns have no mean, got 1.0"),
        ({"forget_share": 1.5}, r"forget_share must be in \[0, 1\], got 1.5"),
        ({"requests_per_s": float("nan")}, "requests_per_s must be > 0, got nan"),
        ({"kv_heads": 13}, r"kv_heads must be <= heads \(12\), got 13"),
        (
            {"max_context_tokens": 4096},
            "max_context_tokens must be >= 4608, a block more than the instructions, got 40",
        ),
        ({"trace": "nowhere.jsonl"}, r"nowhere\.jsonl: trace must be a readable file"),
    ],
)
def test_parameters_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PrefixCache(**change)


def test_a_trace_too_short_is_refused(tmp_path):
    trace = write_trace(tmp_path / "trace.jsonl", (0, 100, 600, [0]), (0, 700, 600, [1, 2]))
    with pytest.raises(ValueError, match=r"each of 2 machines .* for 9 tasks \(num_tasks\), got 8 for one"):
        PrefixCache(trace=trace, num_tasks=9, trace_machines=2)


# Laws.


@pytest.mark.parametrize("family", [SMALL, replace(SMALL, attended_tokens=700, max_inputs=2)])
def test_more_episodes_extend_fewer(family):
    few, many = pool(family, 2), pool(family, 70)  # drawn in two parts
    o = few.num_objects
    for name in ("arrival_s", "flops", "bytes", "write_fraction", "object", "object_bytes", "inputs", "input_bytes"):
        np.testing.assert_array_equal(getattr(few, name), getattr(many, name)[:2], err_msg=name)
    np.testing.assert_array_equal(few.freed_after, many.freed_after[:2, :o])
    np.testing.assert_array_equal(few.read_only, many.read_only[:2, :o])


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99), attended=st.sampled_from([300, 4096]), inputs=st.integers(1, 5))
def test_shared_objects_are_written_once_and_read_only_after(seed, attended, inputs):
    workload = pool(replace(SMALL, attended_tokens=attended, max_inputs=inputs), 2, seed)
    assert workload.num_inputs == inputs
    for e in range(2):
        owned = workload.read_only[e, workload.object[e]]
        assert np.bincount(workload.object[e][owned], minlength=workload.num_objects).max() <= 1
        assert (workload.write_fraction[e][owned] == 1).all()
        created = np.full(workload.num_objects, NEVER)
        created[workload.object[e][::-1]] = np.arange(64)[::-1]
        task, place = np.nonzero(workload.inputs[e] != NO_OBJECT)
        obj = workload.inputs[e, task, place]
        assert workload.read_only[e, obj].all()
        assert (created[obj] < task).all()
        assert (workload.freed_after[e, obj] >= task).all()
        assert len(set(zip(task, obj, strict=True))) == len(task)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99), attended=st.sampled_from([300, 1500, DENSE]))
def test_a_decoded_token_reads_all_it_attends_to_from_wherever_it_is(seed, attended):
    family = replace(SMALL, attended_tokens=attended, **UNITS)
    workload = pool(family, 1, seed)
    written = (workload.write_fraction * workload.bytes)[0]
    read = (workload.bytes[0] - written + workload.input_bytes[0].sum(axis=1)) / 2
    decodes = workload.flops[0] > 0
    # Pairs count a token and itself, reads do not.
    pairs = workload.flops[0] / 4
    assert (read[decodes] <= pairs[decodes] * (1 + 1e-5)).all()
    assert (read[decodes] <= written[decodes] / 2 * attended * (1 + 1e-5)).all()
    if attended == DENSE:
        np.testing.assert_allclose(read[decodes], pairs[decodes] - written[decodes] / 2, rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99))
def test_fewer_inputs_read_as_much(seed):
    many, one = (pool(replace(SMALL, max_inputs=most), 2, seed) for most in (8, 1))
    decodes = many.flops > 0
    np.testing.assert_allclose(one.input_bytes.sum(axis=2)[decodes], many.input_bytes.sum(axis=2)[decodes], rtol=1e-5)


# Two routes.


@st.composite
def prompts(draw):
    """Requests of two episodes as paths in trees, with the length of the last block."""
    requests = []
    for episode in range(2):
        paths: list[tuple[int, ...]] = [()]
        for index in range(draw(st.integers(1, 8))):
            base = draw(st.sampled_from(paths))
            base = base[: draw(st.integers(0, len(base)))]
            fresh = draw(st.integers(0 if base else 1, 3))
            path = base + tuple(1000 * episode + 10 * index + i for i in range(fresh))
            paths.append(path)
            requests.append((episode, path))
    return requests


@settings(deadline=None)
@given(requests=prompts())
def test_segments_are_the_blocks_that_the_same_requests_have(requests):
    paths = [path for _, path in requests]
    segments = Segments.of(
        PrefixRequests(
            episode=np.array([episode for episode, _ in requests]),
            arrival_s=np.zeros(len(requests)),
            input_tokens=np.array([BLOCK_TOKENS * len(path) for path in paths]),
            output_tokens=np.ones(len(requests), np.int64),
            blocks=np.array([block for path in paths for block in path]),
        )
    )
    who = {block: frozenset(i for i, path in enumerate(paths) if block in path) for path in paths for block in path}
    expected = []
    for i, path in enumerate(paths):
        runs: dict[frozenset[int], int] = {}
        for block in path:
            if len(who[block]) > 1:
                runs[who[block]] = runs.get(who[block], 0) + 1
        expected += [(i, length * BLOCK_TOKENS, i == min(users)) for users, length in runs.items()]
    got = list(zip(segments.request.tolist(), segments.tokens.tolist(), segments.creates.tolist(), strict=True))
    assert got == expected
    private = [sum(len(who[block]) == 1 for block in path) * BLOCK_TOKENS for path in paths]
    assert segments.private_tokens.tolist() == private
    assert segments.num_segments == len({users for users in who.values() if len(users) > 1})
    assert segments.num_segments < 2 * len(paths)


def test_reads_by_the_token_and_by_formula():
    family = replace(SMALL, attended_tokens=1200, **UNITS)
    requests = PrefixRequests(*(np.array(value) for value in ([0], [0.0], [1500], [9], [0, 1, 2])))
    workload = replace(family, num_tasks=2)._serving.workload(requests, 1)
    assert attended_pairs(1508, 1200) - attended_pairs(1499, 1200) == sum(min(j, 1200) for j in range(1500, 1509))
    assert workload.bytes[0].tolist() == [3000, 2 * (9 * 1200 + 9)]


# Real inputs.


def continued(trace):
    """Of each request that continues another: that one, itself, and how many blocks they share."""
    last: dict[int, int] = {}
    found = []
    for i, (first, end) in enumerate(pairwise(trace.first_block)):
        path = trace.blocks[first:end].tolist()
        shared = sum(block in last for block in path)
        if shared > 1:
            found.append((last[path[shared - 1]], i, shared))
        last.update(dict.fromkeys(path, i))
    return np.array(found).T


def test_the_distributions_are_fits_to_the_mooncake_trace():
    if not REAL.exists():
        pytest.skip(f"the Mooncake conversation trace is not beside the checkout ({REAL.name})")
    trace = read_mooncake_trace(REAL)
    parent, child, shared = continued(trace)
    assert len(child) == 12_031 - 7_373
    whole = np.minimum(trace.input_tokens[parent], trace.input_tokens[child]) // BLOCK_TOKENS
    assert np.mean(shared < whole) == pytest.approx(MOONCAKE_FORGET_SHARE, abs=0.001)

    fresh = np.setdiff1d(np.arange(trace.num_requests), child)
    added = (trace.input_tokens[child] - trace.input_tokens[parent])[shared >= whole]
    pauses_s = trace.arrival_s[child] - trace.arrival_s[parent]
    for values, median, sigma in (
        (trace.input_tokens[fresh] - BLOCK_TOKENS, MOONCAKE_MEDIAN_FIRST_TOKENS, MOONCAKE_FIRST_SIGMA),
        (added, MOONCAKE_MEDIAN_ADDED_TOKENS, MOONCAKE_ADDED_SIGMA),
        (pauses_s, MOONCAKE_MEDIAN_PAUSE_S, MOONCAKE_PAUSE_SIGMA),
    ):
        logarithm = np.log(values[values > 0])
        assert np.exp(logarithm.mean()) == pytest.approx(median, rel=0.005)
        assert logarithm.std() == pytest.approx(sigma, rel=0.005)

    turn = np.zeros(trace.num_requests, np.int64)
    for before, after in zip(parent, child, strict=True):
        turn[after] = turn[before] + 1
    family = PrefixCache(max_turns=6)
    drawn = np.bincount(family._num_turns(np.linspace(0, 1, 7373, endpoint=False)))
    expected = np.cumsum(drawn[::-1])[::-1][1:]  # conversations with a first, second, ... turn
    np.testing.assert_allclose(np.bincount(turn)[:6], expected, atol=20)


def test_windows_of_the_mooncake_trace_are_episodes():
    if not REAL.exists():
        pytest.skip(f"the Mooncake conversation trace is not beside the checkout ({REAL.name})")
    family = PrefixCache(trace=str(REAL))
    workload = pool(family, 4)
    assert workload.object.shape == (4, 512)
    assert (workload.read_only.sum(axis=1) >= 5).all()
    share = workload.input_bytes.sum() / (workload.input_bytes.sum() + workload.bytes.sum())
    assert 0.3 < share < 0.7
    np.testing.assert_array_equal(pool(family, 4).bytes, workload.bytes)
    np.testing.assert_array_equal(pool(family, 2).input_bytes, workload.input_bytes[:2])


# A smoke run.


def test_the_simulator_plays_an_episode():
    workload = pool(replace(SMALL, **UNITS), 1)
    simulator = started(toy_machine(memory_bytes=[1e9, 1e9]), workload)
    outcomes = [decide(simulator, (task % 2, task % 2)) for task in range(workload.num_tasks)]
    assert np.isfinite([outcome["exec_s"] + outcome["comm_s"] for outcome in outcomes]).all()
    assert not any(outcome["out_of_memory"] for outcome in outcomes)
    assert outcomes[-1]["finished"]


def test_where_prefixes_are_counts():
    world = World(pool(PrefixCache(), 2), (load_machine("chapter-8-socket"),), RewardWeights(reference_s=0.6), 2.4)
    by_estimate, by_chance = (evaluate(make_rule(name), world) for name in ("greedy", "random"))
    assert by_estimate.cost.mean() < by_chance.cost.mean() / 3
    assert by_estimate.remote_ratio.mean() < by_chance.remote_ratio.mean() / 2
    assert not by_chance.out_of_memory.any()

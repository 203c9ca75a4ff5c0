"""Decoding over a KV cache as tasks: what they read, where the program puts them, and what that moves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playing import decide

from numa_rl.machines.catalog import load_machine
from numa_rl.simulator.simulator import Simulator
from numa_rl.transformer.kv_cache import KVCache
from numa_rl.transformer.kv_layout import LAYOUTS
from numa_rl.workloads.kv_decode import KVDecode
from numa_rl.workloads.workload import NEVER, Workload

SMALL = KVDecode(
    layers=8,
    width=64,
    heads=8,
    kv_heads=8,
    groups=4,
    group_sequences=2,
    steps=2,
    median_context_tokens=100,
    context_sigma=0.0,
    most_tokens=256,
    page_tokens=0,
)
TOKEN_BYTES = 2 * 64 * 2  # keys and values of one layer in half precision
HIDDEN_BYTES = 2 * 64 * 2  # of two sequences
STAYS = replace(SMALL, follows_cache=False, layout="layers-in-turn")


def episodes(family: KVDecode, count: int = 1, seed: int = 0) -> Workload:
    return family.generate(np.random.default_rng(seed), count)


def played(family: KVDecode, seed: int = 0) -> tuple[Simulator, float, float]:
    """One episode in the program's own layout: the simulator after it, remote bytes and bytes of its decoding."""
    workload = episodes(family, seed=seed)
    simulator = Simulator(load_machine("chapter-8-socket"), workload, 1, window_s=0.01)
    simulator.reset(0)
    remote = moved = 0.0
    for action, decodes in zip(family.placement, family.decodes, strict=True):
        outcome = decide(simulator, tuple(action))
        assert not outcome["fell_back"]
        assert not outcome["migrated"]
        remote += decodes * outcome["remote_bytes"]
        moved += decodes * (outcome["local_bytes"] + outcome["remote_bytes"])
    return simulator, float(remote), float(moved)


# Known answers.


def test_the_tasks_of_an_episode():
    assert SMALL.num_tasks == 8 + 8 * 4 + 2 * 8 * 4 * 2  # weights, caches, appends and attends
    assert replace(SMALL, page_tokens=16).num_tasks == SMALL.num_tasks + 8 * 4  # pages being filled
    assert replace(SMALL, prefetch=True).num_tasks == SMALL.num_tasks + (16 - 1) * 4
    assert STAYS.num_tasks == SMALL.num_tasks + 7 * 8  # copies of the weights
    heads = replace(SMALL, layout="head-blocks")
    assert heads.num_tasks == 8 * 9 + 8 * 4 * 8 + 16 * 4 * (8 + 8 + 1)
    assert 150 <= KVDecode().num_tasks <= 400
    for family in (SMALL, STAYS, heads, KVDecode(), replace(STAYS, prefetch=True, layout="layer-head-blocks")):
        workload = episodes(family)
        assert workload.num_tasks == family.num_tasks == len(family.decodes)
        assert family.placement.shape == (family.num_tasks, 2)
        assert workload.is_one_graph
        assert workload.arrival_s[0, family.decodes].min() > 0.0 == workload.arrival_s[0, ~family.decodes].max()


def test_work_that_stays_reads_seven_eighths_of_the_cache_from_other_sockets():
    for layout in LAYOUTS:
        _, remote, _ = played(replace(STAYS, layout=layout))
        # Two steps over caches of 101 and 102 tokens; an eighth of what is appended stays here too.
        read = 8 * 8 * (101 + 102) * TOKEN_BYTES
        appended = 8 * 8 * 2 * TOKEN_BYTES
        assert remote == pytest.approx(7 / 8 * (read + appended), rel=1e-6)


@pytest.mark.parametrize(
    ("layout", "vectors"),
    [
        ("layers-in-turn", 15),  # of each group, at every boundary of 16 passes
        ("layer-blocks", 15),  # a socket for each layer
        ("head-blocks", 16 * 2 * 7 - 7),  # to seven sockets and back, but the first vectors are there already
    ],
)
def test_where_work_follows_the_cache_only_hidden_vectors_cross(layout, vectors):
    _, remote, _ = played(replace(SMALL, layout=layout))
    assert remote == pytest.approx(4 * vectors * HIDDEN_BYTES, rel=1e-6)


def test_neighbouring_layers_on_one_socket_halve_the_crossings():
    deep = replace(SMALL, layers=16)
    in_turn, blocks = (played(replace(deep, layout=name))[1] for name in ("layers-in-turn", "layer-blocks"))
    assert in_turn == pytest.approx(4 * 31 * HIDDEN_BYTES)
    # Passes 2, 4, ... 30 begin a block, for groups begin at layers 0, 4, 8 and 12: 15 crossings each.
    assert blocks == pytest.approx(4 * 15 * HIDDEN_BYTES)


def cache_sizes(family: KVDecode) -> set[float]:
    """Sizes at which caches are loaded."""
    workload = episodes(family)
    loaded = ~family.decodes & np.isin(workload.object[0], family.cache_objects)
    return set(workload.object_bytes[0, loaded].tolist())


def test_reservations_hold_the_longest_and_pages_what_is_there():
    assert cache_sizes(SMALL) == {2 * 256 * TOKEN_BYTES}
    # 100 tokens fill 6 pages of 16 and a part of the seventh, of each of two sequences.
    assert cache_sizes(replace(SMALL, page_tokens=16)) == {2 * 96 * TOKEN_BYTES, 2 * 16 * TOKEN_BYTES}


def test_a_page_is_added_when_the_last_one_is_full():
    workload = episodes(replace(SMALL, median_context_tokens=95, page_tokens=16, steps=18, most_tokens=512))
    growing = [
        workload.object_bytes[0, workload.object[0] == obj] / (2 * 16 * TOKEN_BYTES)
        for obj in np.unique(workload.object[0])
        if (workload.object[0] == obj).sum() == 1 + 18
    ]
    assert len(growing) == 8 * 4
    for pages in growing:
        assert pages.tolist() == [1.0] * 2 + [2.0] * 16 + [3.0]  # 15 tokens, then 16, 17 to 32, and 33


def test_quantised_and_sparse_caches_move_in_proportion():
    full, eight = (played(replace(STAYS, kv_bytes_per_element=size))[1] for size in (2.0, 1.0))
    assert eight == pytest.approx(full / 2, rel=1e-6)
    quarter = replace(STAYS, kept_share=0.25)
    _, remote, _ = played(quarter)
    assert remote == pytest.approx(7 / 8 * 64 * (26 + 27 + 2) * TOKEN_BYTES, rel=1e-6)  # 25 of 100, and new tokens
    assert cache_sizes(quarter) == {2 * (math.ceil(0.25 * 254) + 2) * TOKEN_BYTES}


def test_quantised_elements_are_multiplied_by_their_scales():
    full, eight = (episodes(replace(SMALL, kv_bytes_per_element=size)).flops.sum() for size in (2.0, 1.0))
    tokens = 8 * 8 * (101 + 102)
    assert eight - full == pytest.approx(tokens * 2 * 64, rel=1e-3)


def test_what_attention_computes():
    workload = episodes(SMALL)
    weights = 2 * 12 * 64**2 * 8 * 8 * 2  # 2 flop for each parameter, token, layer
    scores = 4 * 64 * 8 * 8 * (101 + 102)
    assert workload.flops.sum() == pytest.approx(weights + scores, rel=1e-6)
    by_heads = episodes(replace(SMALL, layout="head-blocks"))
    sums = 64 * 4 * 16 * 2 * 8  # and eight parts are summed
    assert by_heads.flops.sum() == pytest.approx(weights + scores + sums, rel=0.01)


# Prefetch.


def test_prefetch_moves_the_same_cache_sooner_and_keeps_two_buffers():
    without, ahead = STAYS, replace(STAYS, prefetch=True)
    (before, remote, _), (after, remote_ahead, _) = played(without), played(ahead)
    assert remote_ahead == pytest.approx(remote, rel=1e-6)
    assert after.state.memory_used_bytes.sum() == pytest.approx(before.state.memory_used_bytes.sum())  # buffers freed
    workload = episodes(ahead)
    freed = workload.freed_after[0]
    assert (freed != NEVER).sum() == 15 * 4 + 16 * 4  # buffers, and hidden vectors
    made = np.array([int((workload.object[0] == obj).argmax()) for obj in range(workload.num_objects)])
    buffers = (freed != NEVER) & (workload.object_bytes[0, made] > HIDDEN_BYTES)
    assert buffers.sum() == 15 * 4
    tasks = np.arange(workload.num_tasks)[:, None]
    assert ((made[buffers] <= tasks) & (tasks <= freed[buffers])).sum(axis=1).max() <= 2 * 4


def test_prefetch_is_faster_where_fetching_takes_as_long_as_computing():
    family = replace(STAYS, median_context_tokens=4000, most_tokens=8192)
    (without, *_), (ahead, *_) = played(family), played(replace(family, prefetch=True))
    start = episodes(family).arrival_s.max()
    assert ahead.totals.last_finish_s[0] - start < 0.9 * (without.totals.last_finish_s[0] - start)


# Laws.

families = st.builds(
    KVDecode,
    layers=st.integers(4, 6),
    width=st.just(32),
    heads=st.just(8),
    kv_heads=st.sampled_from([4, 8]),
    groups=st.integers(1, 5),
    group_sequences=st.integers(1, 3),
    steps=st.integers(1, 3),
    median_context_tokens=st.floats(1, 300),
    most_tokens=st.integers(10, 400),
    layout=st.sampled_from(sorted(LAYOUTS)),
    follows_cache=st.booleans(),
    sockets=st.integers(1, 4).map(lambda count: 4 if count == 3 else count),
    lanes=st.integers(1, 3),
    page_tokens=st.sampled_from([0, 1, 16]),
    prefetch=st.booleans(),
    kv_bytes_per_element=st.sampled_from([0.5, 2.0]),
    kept_share=st.sampled_from([0.3, 1.0]),
)


@settings(max_examples=40)
@given(families, st.integers(0, 2**32 - 1))
def test_all_options_go_together(family, seed):
    workload = episodes(family, 3, seed)
    assert workload.num_tasks == family.num_tasks
    fewer = episodes(family, 1, seed)
    for name in ("arrival_s", "flops", "bytes", "object", "object_bytes", "inputs", "input_bytes", "freed_after"):
        assert (getattr(workload, name)[:1] == getattr(fewer, name)).all(), name


@settings(max_examples=30)
@given(families)
def test_every_token_of_a_group_is_read_once_at_each_layer_and_step(family):
    even = replace(family, context_sigma=0.0, follows_cache=True, prefetch=False)
    context = min(max(round(family.median_context_tokens), 1), family.most_tokens - family.steps)
    tokens = max(math.ceil(family.kept_share * context), 1)
    workload = episodes(even)
    of_cache = np.isin(workload.inputs[0], even.cache_objects)
    token_bytes = KVCache(1, family.kv_heads, 4, 1, bytes_per_element=family.kv_bytes_per_element).token_bytes
    read = workload.input_bytes[0][of_cache].sum(dtype=np.float64) / token_bytes
    once = even.layers * even.groups * even.group_sequences
    assert read == pytest.approx(once * sum(tokens + step + 1 for step in range(even.steps)), rel=1e-5)


@settings(max_examples=10)
@given(families)
def test_the_programs_own_layout_holds_what_the_closed_form_says(family):
    even = replace(family, context_sigma=0.0, kept_share=1.0, page_tokens=1, lanes=8)
    simulator, _, _ = played(even)
    context = min(max(round(even.median_context_tokens), 1), even.most_tokens - even.steps)
    cache = KVCache(
        even.layers,
        even.kv_heads,
        even.model.key_dim,
        tokens=context + even.steps,
        batch=even.groups * even.group_sequences,
        bytes_per_element=even.kv_bytes_per_element,
    )
    weights = np.zeros(8)
    if not even.follows_cache:
        weights[: even.sockets] = even.layers * even.model.layer_parameters * 2
    held = simulator.state.memory_used_bytes[0] - weights
    expected = np.pad(even.kv_layout.socket_bytes(cache), (0, 8 - even.sockets))
    if not even.follows_cache:
        assert held == pytest.approx(expected, rel=1e-4, abs=1.0)
    else:
        assert held.sum() - even.layers * even.model.layer_parameters * 2 == pytest.approx(expected.sum(), rel=1e-4)
        assert (held >= expected * (1 - 1e-4)).all()


# Bad input.


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"layers": 0}, "layers must be a whole number >= 1, got 0"),
        ({"kv_heads": 3}, r"kv_heads must divide heads \(8\), got 3"),
        ({"heads": 7, "kv_heads": 7}, r"heads must divide width \(1024\), got 7; 4 or 8 would do"),
        ({"groups": 0}, "groups must be a whole number >= 1, got 0"),
        ({"layout": "rows"}, "layout must be one of layers-in-turn, .*, got 'rows'"),
        ({"layers": 4}, "got 8 sockets for 4 layers of 8 heads: 4 sockets would do"),
        ({"layout": "head-blocks", "sockets": 16}, "got 16 sockets for 8 layers of 8 heads: 8 sockets would do"),
        ({"page_tokens": -1}, "page_tokens must be a whole number >= 0, got -1"),
        ({"kept_share": 0.0}, r"kept_share must be in \(0, 1\], got 0.0"),
        ({"kept_share": math.nan}, r"kept_share must be in \(0, 1\], got nan"),
        ({"kv_bytes_per_element": math.inf}, "kv_bytes_per_element must be finite and > 0, got inf"),
        ({"median_context_tokens": -1.0}, "median_context_tokens must be finite and > 0, got -1"),
        ({"context_sigma": -0.1}, "context_sigma must be in 0..2, got -0.1"),
        ({"most_tokens": 2}, r"most_tokens must be above steps \(2\), got 2"),
        ({"group_sequences": 10**6}, "groups x group_sequences must be at most 100000, got 8000000"),
        ({"groups": 10**6}, "an episode must have at most 1000000 tasks, got "),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        KVDecode(**parameters)

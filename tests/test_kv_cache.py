"""Sizes, pages, prefetch and layouts of KV caches."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numa_rl.communication.transfers import pipelined_s
from numa_rl.transformer.kv_cache import (
    KVCache,
    PagePool,
    internal_fragmentation,
    kv_bytes_per_token,
    layer_by_layer_s,
    mean_page_waste_tokens,
    pages_of,
)
from numa_rl.transformer.kv_layout import (
    LAYOUTS,
    KVLayout,
    head_blocks,
    layer_blocks,
    layer_head_blocks,
    layers_in_turn,
    make_layout,
    require_fit,
)

# Known answers: what papers say of real models, in half precision.


@pytest.mark.parametrize(
    ("layers", "kv_heads", "head_dim", "token_bytes"),
    [
        (40, 40, 128, 819_200),  # OPT-13B: "2 x 5120 x 40 x 2 = 800 KB", Kwon et al. 2023, section 3
        (96, 96, 128, 4_718_592),  # GPT-3 175B: 96 layers, 96 heads of 128, Brown et al. 2020, table 2.1
        (80, 8, 128, 327_680),  # Llama 2 70B: 80 layers, 8 heads of keys and values, Touvron et al. 2023
    ],
)
def test_a_token_of_a_real_model_takes_so_many_bytes(layers, kv_heads, head_dim, token_bytes):
    assert kv_bytes_per_token(layers, kv_heads, head_dim, 2) == token_bytes


def test_opt_175b_serving_512_sequences_of_544_tokens_takes_1_2_tb():
    # Sheng et al., "FlexGen", 2023, section 3: 1.2 TB for batch 512, 512 tokens in and 32 out; they count in TiB.
    cache = KVCache(layers=96, kv_heads=96, head_dim=128, tokens=512 + 32, batch=512)
    assert cache.num_bytes / 2**40 == pytest.approx(1.2, abs=0.01)


def test_grouped_queries_shrink_the_cache_by_their_number():
    whole = KVCache(80, kv_heads=64, head_dim=128, tokens=4096, batch=3)
    grouped = KVCache(80, kv_heads=8, head_dim=128, tokens=4096, batch=3)
    assert whole.num_bytes == 8 * grouped.num_bytes
    assert grouped.num_bytes == grouped.head_bytes * 80 * 8 == 2 * 80 * 8 * 4096 * 128 * 3 * 2


# Pages.


def test_pages_are_counted_whole():
    assert pages_of([0, 1, 16, 17, 2048], 16).tolist() == [0, 1, 1, 2, 128]


def test_a_page_wastes_half_of_itself_but_for_half_a_token():
    lengths = np.arange(1, 16 * 50 + 1)
    waste = pages_of(lengths, 16) * 16 - lengths
    assert waste.mean() == mean_page_waste_tokens(16) == 7.5


def test_reserving_the_longest_length_wastes_most_of_it():
    lengths = np.array([100, 200, 300])
    assert internal_fragmentation(lengths, 2048) == pytest.approx(1 - 600 / (3 * 2048))
    assert internal_fragmentation(lengths, pages_of(lengths, 16) * 16) == pytest.approx(1 - 600 / (112 + 208 + 304))
    assert math.isnan(internal_fragmentation([0], [0]))


def test_a_sequence_gets_a_page_only_when_the_last_one_is_full():
    pool = PagePool(num_pages=4, page_tokens=2)
    assert [pool.append(7) for _ in range(3)] == [(0, 0), (0, 1), (1, 0)]
    assert pool.append(9) == (2, 0)
    assert (pool.used_tokens, pool.allocated_tokens) == (4, 6)
    assert dict(pool.tables) == {7: [0, 1], 9: [2]}


def test_pages_of_an_ended_sequence_are_reused():
    pool = PagePool(num_pages=2, page_tokens=1)
    pool.append(0), pool.append(1)
    with pytest.raises(ValueError, match=r"sequence 2 must find a free page of 2, got none: end a sequence, or have 3"):
        pool.append(2)
    assert pool.used_tokens == 2  # nothing changed
    pool.end(0)
    assert pool.append(2) == (0, 0)
    with pytest.raises(ValueError, match=r"sequence must be one of \[1, 2\], got 0"):
        pool.end(0)


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 7))
def test_pool_and_formula_count_the_same_pages(appends, page_tokens):
    pool = PagePool(100, page_tokens)
    places = [(sequence, *pool.append(sequence)) for sequence in appends]
    lengths = np.bincount(appends, minlength=6) if appends else np.zeros(6, int)
    assert pool.allocated_tokens == pages_of(lengths, page_tokens).sum() * page_tokens
    assert pool.used_tokens == len(appends)
    assert len({place[1:] for place in places}) == len(places)  # no two tokens in one place


# Prefetch.


def test_prefetch_hides_the_shorter_of_fetching_and_computing():
    # Four layers, 1 s to fetch and 3 s to compute on each: 1 + 3 x 3 + 3, against 4 x 4.
    assert layer_by_layer_s(4, 100, 0.01, 0.03) == pytest.approx(13.0)
    assert layer_by_layer_s(4, 100, 0.01, 0.03, prefetch=False) == pytest.approx(16.0)
    assert layer_by_layer_s(4, 100, 0.01, 0.03, latency_s=1.0) == pytest.approx(14.0)


@given(st.integers(1, 100), st.floats(1, 1e9), st.floats(0, 1e-6), st.floats(0, 1e-6))
def test_prefetch_gains_less_than_two_and_never_loses(layers, layer_bytes, fetch, compute):
    ahead = layer_by_layer_s(layers, layer_bytes, fetch, compute)
    without = layer_by_layer_s(layers, layer_bytes, fetch, compute, prefetch=False)
    assert ahead <= without * (1 + 1e-9)
    assert without <= 2 * ahead * (1 + 1e-9)
    f, c = layer_bytes * fetch, layer_bytes * compute
    assert ahead == pytest.approx(f + (layers - 1) * max(f, c) + c)
    assert ahead == pytest.approx(pipelined_s(layers * layer_bytes, layer_bytes, 0.0, fetch, compute, 0.0))


# Layouts.


def test_layers_lie_in_turn_or_in_blocks():
    assert layers_in_turn(5, 2, 2).socket.tolist() == [[0, 0], [1, 1], [0, 0], [1, 1], [0, 0]]
    assert layer_blocks(5, 2, 2).socket.tolist() == [[0, 0], [0, 0], [0, 0], [1, 1], [1, 1]]
    assert head_blocks(2, 3, 2).socket.tolist() == [[0, 0, 1]] * 2
    assert layer_head_blocks(4, 2, 4).socket.tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert layer_head_blocks(4, 4, 4, head_parts=4).socket.tolist() == head_blocks(4, 4, 4).socket.tolist()


def test_a_hidden_vector_crosses_at_every_boundary_between_sockets():
    assert layers_in_turn(16, 8, 8).crossing_vectors() == 15
    assert layer_blocks(16, 8, 8).crossing_vectors() == 7
    assert head_blocks(16, 8, 8).crossing_vectors() == 16 * 2 * 7  # to seven sockets and back, as a ring's 2 (S - 1)
    # Pairs of sockets: one exchange in each layer, and at three boundaries the vector goes to both of the next pair.
    assert layer_head_blocks(16, 8, 8, head_parts=2).crossing_vectors() == 16 * 2 + 3
    assert layer_blocks(16, 8, 8).crossing_bytes(width=1024, bytes_per_element=2) == 7 * 2048


def test_work_that_stays_reads_all_but_its_own_sockets_cache():
    cache = KVCache(16, 8, 128, tokens=1000, batch=4)
    for layout in (layers_in_turn(16, 8, 8), layer_blocks(16, 8, 8), head_blocks(16, 8, 8)):
        assert layout.remote_cache_bytes(cache, reader=3) == 7 / 8 * cache.token_bytes * 1000
    with pytest.raises(ValueError, match="reader must be a socket, 0 to 7, got 8"):
        layout.remote_cache_bytes(cache, reader=8)


sizes = st.integers(1, 40)


@given(st.sampled_from(sorted(LAYOUTS)), sizes, sizes, sizes)
def test_layouts_are_as_even_as_can_be_or_say_what_would_do(name, layers, kv_heads, sockets):
    try:
        layout = make_layout(name, layers, kv_heads, sockets)
    except ValueError as error:
        (would,) = re.findall(r"(\d+) sockets? would do", str(error))
        assert int(would) < sockets
        make_layout(name, layers, kv_heads, int(would))
        return
    cache = KVCache(layers, kv_heads, 2, tokens=3)
    part = layout.socket_bytes(cache)
    assert part.sum() == pytest.approx(cache.num_bytes)
    assert (part > 0).all()
    counts = np.bincount(layout.socket.ravel())
    if name in ("layers-in-turn", "layer-blocks"):
        assert np.ptp(counts) <= kv_heads
    if name == "head-blocks":
        assert np.ptp(counts) <= layers
    assert layout.crossing_vectors() == crossings_by_hand(layout)


def crossings_by_hand(layout: KVLayout) -> int:
    """Send every vector from where it is to where it is needed, and count those that change sockets."""
    moved, at = 0, int(layout.home[0])
    for sockets, home in zip(layout.socket.tolist(), layout.home.tolist(), strict=True):
        assert home in sockets
        moved += sum(socket != at for socket in set(sockets))  # inputs
        moved += sum(socket != home for socket in set(sockets))  # partial results
        at = home
    return moved


def test_sockets_that_share_a_layer_take_turns_to_sum_it():
    assert head_blocks(5, 4, 4).home.tolist() == [0, 1, 2, 3, 0]
    assert layer_blocks(4, 4, 2).home.tolist() == [0, 0, 1, 1]


@given(st.integers(1, 30), st.integers(1, 30), st.integers(2, 30))
def test_neighbours_on_one_socket_never_cross_more(layers, kv_heads, sockets):
    if sockets <= layers:
        in_turn, blocks = layers_in_turn(layers, kv_heads, sockets), layer_blocks(layers, kv_heads, sockets)
        assert blocks.crossing_vectors() == sockets - 1 <= in_turn.crossing_vectors() == layers - 1


# What does not fit says what would.


def test_a_cache_that_does_not_fit_says_what_would():
    cache = KVCache(layers=16, kv_heads=8, head_dim=128, tokens=10**6, batch=10)  # 655.36 GB, 40.96 GB a layer
    layout = layer_blocks(16, 8, 8)
    require_fit(cache, layout, 82e9)
    message = (
        "the KV cache must fit: by layer-blocks 81.92 GB go to socket 0, which has 41 GB. "
        "What would do: 1 bytes per element on these or 16 such sockets."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        require_fit(cache, layout, 41e9)
    require_fit(KVCache(16, 8, 128, 10**6, 10, bytes_per_element=1.0), layout, 41e9)
    require_fit(cache, layer_blocks(16, 8, 16), 41e9)
    with pytest.raises(ValueError, match="another layout over 17 such sockets or more"):
        require_fit(cache, layout, 40e9)
    with pytest.raises(ValueError, match=r"has 0 GB\. What would do: a shorter context"):
        require_fit(cache, layout, 0.0)


@given(
    st.sampled_from(sorted(LAYOUTS)), st.integers(8, 20), st.integers(8, 20), st.floats(0.02, 0.2), st.floats(0.5, 4)
)
def test_what_is_said_to_do_does(name, layers, kv_heads, share, element_bytes):
    cache = KVCache(layers, kv_heads, 4, tokens=5, bytes_per_element=element_bytes)
    layout, memory = make_layout(name, layers, kv_heads, 8), share * cache.num_bytes
    try:
        require_fit(cache, layout, memory)
    except ValueError as error:
        (smaller,) = re.findall(r"([\d.e-]+) bytes per element", str(error))
        require_fit(KVCache(layers, kv_heads, 4, 5, bytes_per_element=float(smaller)), layout, memory)
        for sockets in re.findall(r" or (\d+) such", str(error)):
            require_fit(cache, make_layout(name, layers, kv_heads, int(sockets)), memory)
    else:
        assert layout.socket_bytes(cache).max() <= memory


# Bad input.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KVCache(0, 1, 1, 1), "layers must be a whole number >= 1, got 0"),
        (lambda: KVCache(1, 1, 1, 1.5), "tokens must be a whole number >= 1, got 1.5"),
        (lambda: KVCache(1, 1, 1, 1, bytes_per_element=math.nan), "bytes_per_element must be finite and > 0, got nan"),
        (lambda: pages_of([3], 0), "page_tokens must be a whole number >= 1, got 0"),
        (lambda: pages_of([3, -1], 16), r"tokens must be whole numbers >= 0, got \[3, -1\]"),
        (lambda: pages_of([math.nan], 16), "tokens must be whole numbers >= 0"),
        (lambda: internal_fragmentation([17], [16]), "tokens must be in 0..allocated_tokens"),
        (lambda: PagePool(0, 16), "num_pages must be >= 1, got 0"),
        (lambda: layer_by_layer_s(0, 1, 1, 1), "layers must be a whole number >= 1, got 0"),
        (lambda: layer_by_layer_s(1, math.inf, 1, 1), "layer_bytes must be finite and > 0, got inf"),
        (lambda: layer_by_layer_s(1, 1, -1, 1), "fetch_s_per_byte must be finite and >= 0, got -1"),
        (lambda: make_layout("layer", 1, 1, 1), "layout must be one of layers-in-turn, layer-blocks, .*, got 'layer'"),
        (lambda: layer_blocks(4, 8, 8), "no socket empty, got 8 sockets for 4 layers of 8 heads: 4 sockets would do"),
        (lambda: head_blocks(96, 8, 16), "16 sockets for 96 layers of 8 heads: 8 sockets would do"),
        (
            lambda: layer_head_blocks(2, 2, 3),
            "at most 2 groups of at most 2, the layers and heads, got 3 sockets: 2 sockets",
        ),
        (lambda: layer_head_blocks(16, 8, 8, head_parts=3), "head_parts must be one of 1, 2, 4, 8, got 3"),
        (lambda: layer_blocks(10**9, 10**9, 2), "layers x kv_heads must be at most 100000"),
        (lambda: layer_head_blocks(10, 10, 10**12), "100 sockets would do"),
        (lambda: layers_in_turn(4, 4, 0), "sockets must be a whole number >= 1, got 0"),
        (lambda: require_fit(KVCache(4, 4, 4, 4), layer_blocks(4, 4, 4), math.nan), "memory_bytes must be finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

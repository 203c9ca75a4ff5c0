"""What runs while the clock runs: it does the work whose time is taken, all of it and nothing else."""

import os
import platform
import re
import time
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numa_rl.calibration.kernels import (
    FLOPS_PER_VALUE,
    LINE_WORDS,
    STEPS,
    STOP,
    chase,
    link,
    polynomials,
    stream,
)
from numa_rl.calibration.streams import Streams

START = np.uint64(0)


def linked(num_lines: int, seed: int) -> np.ndarray:
    chain = np.full(num_lines * LINE_WORDS, 1, dtype=np.uint64)
    link(chain, np.random.default_rng(seed).permutation(num_lines))
    return chain


def one_block(words: np.ndarray, block: int, spins: int = 0) -> int:
    """What a stream makes of one block: its own row is the word that stops it."""
    return int(stream(words, np.uint64(block), spins, np.zeros(1, dtype=np.uint64), STOP))


# Known answers.


def test_a_chain_of_three_lines():
    chain = np.zeros(3 * LINE_WORDS, dtype=np.uint64)
    link(chain, np.array([2, 0, 1]))
    assert chain[[0, 8, 16]].tolist() == [8, 16, 0]
    assert [chase(chain, np.uint64(16), hops) // 8 for hops in range(4)] == [2, 0, 1, 2]


def test_a_block_is_summed():
    words = np.arange(100, dtype=np.uint64)
    assert one_block(words, 10) == 45 ^ 1  # the generator of pauses begins with 1
    assert one_block(words, 100) == 4950 ^ 1


def test_a_pause_changes_the_generator():
    words = np.zeros(8, dtype=np.uint64)
    assert one_block(words, 8, spins=1) == 0x40822041  # xorshift 13, 7, 17 of 1
    assert one_block(words, 8, spins=2) == 0x100041060C011441


def test_a_stream_told_to_stop_reads_nothing():
    board = np.array([1, 0], dtype=np.uint64)
    assert stream(np.full(8, 5, dtype=np.uint64), np.uint64(8), 0, board, 1) == 1
    assert board.tolist() == [1, 0]


def test_every_value_takes_all_its_steps():
    values = np.array([2.0**STEPS, 0.5, 0.0], dtype=np.float32)
    polynomials(values, 1)
    np.testing.assert_allclose(values, [1.5, 0.5, 0.5])  # x / 2 + 1/4 leaves 1/2 and halves what is above it
    assert FLOPS_PER_VALUE == 64


def test_arithmetic_stays_finite_however_long():
    values = np.ones(16, dtype=np.float32)
    polynomials(values, 10_000)
    assert values.tolist() == [0.5] * 16


# Laws.


@given(st.integers(1, 200), st.integers(0, 2**32))
def test_a_chase_visits_every_line_once_and_comes_back(num_lines, seed):
    chain = linked(num_lines, seed)
    visited = [chase(chain, START, hops) for hops in range(num_lines)]
    assert sorted(visited) == list(range(0, num_lines * LINE_WORDS, LINE_WORDS))
    assert chase(chain, START, num_lines) == START


@given(st.integers(1, 100), st.integers(0, 2**32), st.integers(0, 300), st.integers(0, 300))
def test_a_chase_goes_on_where_it_ended(num_lines, seed, first, second):
    chain = linked(num_lines, seed)
    there = np.uint64(chase(chain, START, first))
    assert chase(chain, there, second) == chase(chain, START, first + second)


@given(st.integers(1, 64), st.integers(0, 2**32), st.data())
def test_a_block_is_the_sum_of_its_words(num_words, seed, data):
    words = np.random.default_rng(seed).integers(0, 2**64, num_words, dtype=np.uint64)
    block = data.draw(st.integers(1, num_words))
    assert one_block(words, block) == int(words[:block].sum()) ^ 1


@pytest.mark.parametrize(("num_words", "block"), [(64, 16), (70, 16), (16, 16), (31, 16)])
def test_a_stream_reads_block_after_block_and_begins_again(num_words, block):
    words = np.arange(num_words, dtype=np.uint64) ** 2
    board = np.zeros(2, dtype=np.uint64)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(stream, words, np.uint64(block), 0, board, 1)
        while board[1] < 10 * num_words and not running.done():
            time.sleep(1e-4)
        board[STOP] = 1
        total = int(running.result()) ^ 1
    blocks, rest = divmod(int(board[1]), block)
    assert rest == 0
    whole = words[: num_words // block * block].reshape(-1, block).sum(axis=1)
    rounds, more = divmod(blocks, len(whole))
    assert total == (rounds * int(whole.sum()) + int(whole[:more].sum())) % 2**64


# The compiled code is what it has to be.


def assembly(kernel, *arguments) -> str:
    """Of a kernel compiled once more, since numba does not show what it took from its cache."""
    fresh = numba.jit(**kernel.targetoptions)(kernel.py_func)
    fresh(*arguments)
    return "\n".join(fresh.inspect_asm().values())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 assembly")
def test_sums_are_vectorised():
    words = np.zeros(8, dtype=np.uint64)
    text = assembly(stream, words, np.uint64(8), 0, np.zeros(1, dtype=np.uint64), STOP)
    assert re.search(r"paddq\s+.*\(.*%[xyz]mm|movdqu\s+\(.*%xmm", text)  # a register of several words at a time


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 assembly")
def test_nothing_stands_between_two_hops():
    text = assembly(chase, linked(2, 0), START, 1)
    hop = r"movq\s+\(%(\w+),%(\w+),8\), %\2\s+"  # the word loaded is the next index
    assert re.search(rf"{hop}movq\s+\(%\1,%\2,8\), %\2\s", text)


# Streams in the background.


def test_streams_read_blocks_until_they_are_stopped():
    words = np.ones(2**12, dtype=np.uint64)
    processor = min(_allowed())
    with Streams(words, [processor], block=2**8) as streams:
        rate = streams.bytes_per_s(0.01)
        _, read = streams.snapshot()
    after = streams.snapshot()[1]
    assert rate > 0.0
    assert 0 < read <= after
    assert after % (2**8 * 8) == 0
    assert streams.snapshot()[1] == after


def test_no_two_streams_read_the_same_word():
    words = np.arange(103, dtype=np.uint64)
    parts = Streams(words, [0, 1, 2]).parts
    assert [len(part) for part in parts] == [34, 34, 34]
    assert len(np.unique(np.concatenate(parts))) == 102


def test_no_streams_read_nothing():
    with Streams(np.ones(8, dtype=np.uint64), []) as streams:
        assert streams.bytes_per_s(0.001) == 0.0


def test_a_stream_that_cannot_run_on_its_processor_says_so():
    words = np.ones(2**10, dtype=np.uint64)
    with pytest.raises(OSError, match="Invalid argument"), Streams(words, [min(_allowed()), 2**13 - 1]):
        pass


def test_streams_need_words():
    with pytest.raises(ValueError, match="at least as many as the 2 streams, got 1"):
        Streams(np.ones(1, dtype=np.uint64), [0, 0])


def test_an_error_in_between_stops_the_streams():
    streams = Streams(np.ones(2**10, dtype=np.uint64), [min(_allowed())])
    with pytest.raises(KeyError), streams:
        raise KeyError
    assert streams.snapshot()[1] == streams.snapshot()[1]


def _allowed() -> set[int]:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("threads are pinned on Linux only")
    return os.sched_getaffinity(0)

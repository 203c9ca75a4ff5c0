"""What runs while the clock runs: a pointer chase, a stream of reads and fused multiply-adds; compiled by numba.

Words and their indices are of 64 bits without sign. numba asks of an index with a sign whether it is negative: on the
critical path of every hop, and enough to keep a sum from being vectorised, which then reads a seventh of what it could.
Whole numbers may be added in any order, as a vectorised sum does.

References:
    [1] L. McVoy, C. Staelin, "lmbench: Portable Tools for Performance Analysis", USENIX 1996: latency by a chain of
        loads each of which waits for the last.
    [2] J. D. McCalpin, STREAM: bandwidth by passes over arrays that no cache holds.
    [3] Intel Memory Latency Checker: a chase beside streams that pause between their reads.
    [4] G. Marsaglia, "Xorshift RNGs", 2003.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from numa_rl.compilation import compiled

WORD_BYTES = 8
LINE_BYTES = 64
LINE_WORDS = LINE_BYTES // WORD_BYTES
STOP = 0  # the word of a board that ends all streams
STEPS = 32  # fused multiply-adds to a value before it goes back to memory
FLOPS_PER_VALUE = 2 * STEPS
FACTOR, TERM = np.float32(0.5), np.float32(0.25)  # x -> x / 2 + 1/4 stays finite and normal, and nears 1/2

here = partial(compiled, sources=(__file__,))


def _fused(_context: Any, x: Any, factor: Any, term: Any) -> Any:
    """Single-precision x * factor + term, by one instruction where the processor has it, else by two."""

    def generate(_target: Any, builder: Any, _signature: Any, values: Any) -> Any:
        left, right, last = values
        may_join = ("contract",)
        return builder.fadd(builder.fmul(left, right, flags=may_join), last, flags=may_join)

    return types.float32(types.float32, types.float32, types.float32), generate


fused: Any = intrinsic(_fused)


@here
def link(chain, order):
    """Link lines to a cycle: the first word of each holds the index of the first word of the line after it.

    Args:
        chain: words of the lines, written here.
        order: every line once, in the order of the cycle.
    """
    for place in range(len(order)):
        after = order[place + 1] if place + 1 < len(order) else order[0]
        chain[order[place] * LINE_WORDS] = after * LINE_WORDS


@here
def chase(chain, start, hops):
    """Follow a chain for so many hops [1]; returns where it ends, as every load waits for the one before."""
    at = start
    for _ in range(hops):
        at = chain[at]
    return at


@here
def stream(words, block, spins, board, row):
    """Read words block by block, over and over, until the board says stop [2]; what fills no block is left out.

    Args:
        words: what is read.
        block: how many at a time, without sign; after each block the board is told, and looked at.
        spins: steps of a generator between blocks, a pause in which nothing is read [3, 4].
        board: word STOP ends all streams once it is not 0; words read so far are added to word `row`.
        row: of this stream. It might be STOP for all the compiler knows, so the board is looked at afresh each time.

    Returns:
        A number made of all that was read, so that none of it can be left out.
    """
    total, noise, length, first = np.uint64(0), np.uint64(1), np.uint64(len(words)), np.uint64(0)
    while board[STOP] == 0:
        for place in range(first, first + block):
            total += words[place]
        for _ in range(spins):
            noise ^= noise << np.uint64(13)
            noise ^= noise >> np.uint64(7)
            noise ^= noise << np.uint64(17)
        first += block
        if first + block > length:
            first = np.uint64(0)
        board[row] += block
    return total ^ noise


@here
def polynomials(values, rounds):
    """STEPS fused multiply-adds to each value, so many times, in place; values are independent, so they overlap."""
    for _ in range(rounds):
        for place in range(len(values)):
            x = values[place]
            for _ in range(STEPS):
                x = fused(x, FACTOR, TERM)
            values[place] = x

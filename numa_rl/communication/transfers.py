"""What it costs to move a message: whole, in chunks, and in chunks with two buffers.

These four functions are pure arithmetic and trust what they get. They take numbers or arrays that broadcast,
give back the dtype they are given, and compile with numba: the simulator's kernel runs these very functions
on float32.

References:
    [1] The chapter, section 16.1.2: T_transfer = S / B + L and T_total = max(T_split, T_transfer, T_merge).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

# One byte, the smallest chunk. As a bool it changes no dtype: float32 stays float32, to numpy and to numba, and
# Python's numbers stay float64.
ONE_BYTE = True


def transfer_s(num_bytes: Any, s_per_byte: Any, latency_s: Any) -> Any:
    """Seconds to move one message, T_transfer = S / B + L [1]; an empty one still pays the latency."""
    return num_bytes * s_per_byte + latency_s


def pipelined_s(
    num_bytes: Any,
    chunk_bytes: Any,
    split_s_per_byte: Any,
    transfer_s_per_byte: Any,
    merge_s_per_byte: Any,
    latency_s: Any,
) -> Any:
    """Seconds to move a message in chunks, each split off, transferred and merged while its neighbours are too.

    With two buffers between stages, a chunk leaves every max(t1, t2, t3) seconds, where t1 = c a, t2 = c b + L
    and t3 = c m are its stages:

        T = t1 + t2 + t3 + (n - 1) max(t1, t2, t3),    n = S / c, a real number.

    As S grows, T / S tends to the chapter's max(T_split, T_transfer, T_merge) / S [1]. A chunk larger than the
    message is the message (n = 1), so an empty message takes L.

    Args:
        num_bytes: the message, S >= 0.
        chunk_bytes: the chunk, c > 0.
        split_s_per_byte: seconds to split off one byte, a >= 0.
        transfer_s_per_byte: seconds to transfer one byte, b >= 0.
        merge_s_per_byte: seconds to merge one byte, m >= 0.
        latency_s: what each chunk's transfer pays once, L >= 0.
    """
    chunk = np.minimum(chunk_bytes, num_bytes)
    split = chunk * split_s_per_byte
    transfer = transfer_s(chunk, transfer_s_per_byte, latency_s)
    merge = chunk * merge_s_per_byte
    further_chunks = (num_bytes - chunk) / chunk_bytes  # n - 1
    return split + transfer + merge + further_chunks * np.maximum(np.maximum(split, transfer), merge)


def unoverlapped_s(
    num_bytes: Any,
    chunk_bytes: Any,
    split_s_per_byte: Any,
    transfer_s_per_byte: Any,
    merge_s_per_byte: Any,
    latency_s: Any,
) -> Any:
    """Seconds to move a message in chunks through a single buffer, T = n (t1 + t2 + t3).

    No stage starts before the one before it is done with the buffer. Arguments, n and the stages are those of
    `pipelined_s`.
    """
    chunk = np.minimum(chunk_bytes, num_bytes)
    stages = chunk * split_s_per_byte + transfer_s(chunk, transfer_s_per_byte, latency_s) + chunk * merge_s_per_byte
    further_chunks = (num_bytes - chunk) / chunk_bytes  # n - 1
    return stages + further_chunks * stages


def best_chunk_bytes(
    num_bytes: Any,
    split_s_per_byte: Any,
    transfer_s_per_byte: Any,
    merge_s_per_byte: Any,
    latency_s: Any,
    most_bytes: Any,
) -> Any:
    """The chunk that makes `pipelined_s` least, of those of 1 byte to X = min(S, most_bytes).

    Let g = max(a, m). The transfer is the slowest stage as long as c b + L >= c g, so up to c = L / (g - b), and
    always if g <= b. There

        T(c) = c (a + m) + S b + S L / c,

    which falls until c = sqrt(S L / (a + m)) and then rises. Beyond L / (g - b) the slowest stage is g, and

        T(c) = c (b + min(a, m)) + L + S g

    never falls again. T is continuous, so the least is at

        c* = min( sqrt(S L / (a + m)), L / (g - b) if g > b, X ),

    or at 1 byte where this is less: without latency, the smaller the chunks the better. If the choice makes no
    difference (a + m = 0 and L = 0) it is X. An X below 1 byte counts as 1.

    Args:
        num_bytes: the message, S >= 0.
        split_s_per_byte: seconds to split off one byte, a >= 0.
        transfer_s_per_byte: seconds to transfer one byte, b >= 0.
        merge_s_per_byte: seconds to merge one byte, m >= 0.
        latency_s: what each chunk's transfer pays once, L >= 0.
        most_bytes: the largest chunk allowed, such as half a cache.
    """
    largest = np.maximum(np.minimum(num_bytes, most_bytes), ONE_BYTE)
    ends = split_s_per_byte + merge_s_per_byte
    excess = np.maximum(split_s_per_byte, merge_s_per_byte) - transfer_s_per_byte  # g - b
    # Both bounds as X / c. A numerator is 0 or below wherever its bound does not hold, so no division is by zero;
    # and a denominator is at least the numerator over X, so no chunk is below one byte.
    startup = np.maximum(num_bytes * latency_s, ends)
    over_root = largest * np.sqrt(ends / np.maximum(startup, startup == 0))
    balance = np.maximum(latency_s, excess)
    over_balance = largest * (excess / np.maximum(balance, balance == 0))
    return largest / np.maximum(np.maximum(over_root, over_balance), ONE_BYTE)


# Compiled code may call these functions, which stay plain Python elsewhere.
for _equation in (transfer_s, pipelined_s, unoverlapped_s, best_chunk_bytes):
    register_jitable(_equation)

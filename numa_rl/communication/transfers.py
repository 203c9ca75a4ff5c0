"""What it costs to move a message: whole, in chunks, in chunks with two buffers, or together with others.

The first four functions are pure arithmetic and trust what they get. They take numbers or arrays that broadcast, give
back the dtype they are given, and compile with numba. The simulator's kernel has `pipelined_s` at its best chunk
written out, with one root where these take several divisions (`read_time` and `migration_time` of
`numa_rl.simulator.streams`), and tests hold it to them. The rest checks its input and takes its figures from a
machine on which nothing else runs. A message from `source` to `target` is read by the target, so it takes row
`target` and column `source` of the machine's matrices, and the links of that route toward the target.

Dimension key: N nodes, L directed links, K messages.

References:
    [1] The chapter, section 16.1.2: T_transfer = S / B + L, T_total = max(T_split, T_transfer, T_merge), double
        buffering, chunks sized to the last-level cache, and aggregation of small messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil, floor
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from numa_rl.topology import FloatArray, IntArray, Topology
from numa_rl.workloads.parameters import require

BUFFERS = 2  # chunks that the target's cache holds at once: one arrives while the other is merged

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


def require_positive(**figures: float) -> None:
    """Raise ValueError naming the first figure that is not finite and above 0."""
    require(SimpleNamespace(**figures), " ".join(figures), "finite and > 0", lambda value: value > 0)


def require_not_negative(**figures: float) -> None:
    """Raise ValueError naming the first figure that is not finite and at least 0."""
    require(SimpleNamespace(**figures), " ".join(figures), "finite and >= 0", lambda value: value >= 0)


def require_node(topology: Topology, **nodes: int) -> None:
    """Raise ValueError naming the first of `nodes` that the machine does not have."""
    for name, node in nodes.items():
        if not (isinstance(node, int | np.integer) and 0 <= node < topology.num_nodes):
            raise ValueError(f"{name} must be a node of {topology.name}, 0 to {topology.num_nodes - 1}, got {node}.")


def resource_s_per_byte(topology: Topology) -> FloatArray:
    """Seconds per byte of all that streams share, shape (N N + N + L,): pairs row by row, memory controllers, links."""
    bandwidths = (
        topology.bandwidth_bytes_per_s.ravel(),
        topology.memory_bandwidth_bytes_per_s,
        topology.link_bandwidth_bytes_per_s,
    )
    return 1.0 / np.concatenate(bandwidths)


def stream_resources(topology: Topology, source: int, target: int) -> IntArray:
    """What a stream read from `source` by `target` occupies: indices into `resource_s_per_byte`."""
    n = topology.num_nodes
    links = topology.link_index()
    route = topology.route(target, source)[::-1]
    occupied = [n * target + source, n * n + source, *(n * n + n + links[hop] for hop in pairwise(route))]
    return np.array(occupied, np.int64)


@dataclass(frozen=True)
class TransferPlan:
    """A message cut into equal chunks so that `pipelined_s` is least, and what that gains.

    Attributes:
        num_bytes: the message.
        most_bytes: the largest chunk allowed, at least one byte.
        split_s_per_byte: seconds to split off one byte at the source.
        transfer_s_per_byte: seconds to transfer one byte.
        merge_s_per_byte: seconds to merge one byte at the target, or to compute on it.
        latency_s: what each chunk's transfer pays once.

    Raises:
        ValueError: a figure is outside its range.
    """

    num_bytes: float
    most_bytes: float
    split_s_per_byte: float
    transfer_s_per_byte: float
    merge_s_per_byte: float
    latency_s: float

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self, "num_bytes transfer_s_per_byte", "finite and > 0", lambda value: value > 0)
        require(self, "split_s_per_byte merge_s_per_byte latency_s", "finite and >= 0", lambda value: value >= 0)
        require(self, "most_bytes", "finite and >= 1", lambda value: value >= 1)

    @property
    def _stages(self) -> tuple[float, float, float, float]:
        """What the equations take after the bytes."""
        return self.split_s_per_byte, self.transfer_s_per_byte, self.merge_s_per_byte, self.latency_s

    @cached_property
    def num_chunks(self) -> int:
        """The whole number of chunks that takes least time.

        `pipelined_s` falls and then rises along the real numbers of chunks, so the best whole number is a
        neighbour of the best real one.
        """
        best = max(self.num_bytes / float(best_chunk_bytes(self.num_bytes, *self._stages, self.most_bytes)), 1.0)
        fewer = floor(best)
        if fewer * self.most_bytes < self.num_bytes:
            return ceil(best)
        return min(
            fewer, ceil(best), key=lambda n: float(pipelined_s(self.num_bytes, self.num_bytes / n, *self._stages))
        )

    @property
    def chunk_bytes(self) -> float:
        """Size of one chunk."""
        return self.num_bytes / self.num_chunks

    @property
    def chapter_s(self) -> float:
        """The chapter's T_total = max(T_split, T_transfer, T_merge) [1].

        All stages work from the first byte to the last; no number of chunks is faster.
        """
        stages = (
            self.num_bytes * self.split_s_per_byte,
            transfer_s(self.num_bytes, self.transfer_s_per_byte, self.latency_s),
            self.num_bytes * self.merge_s_per_byte,
        )
        return float(max(stages))

    @property
    def whole_s(self) -> float:
        """Seconds to split off, transfer and merge the message as one chunk, whether or not it may be that large."""
        return float(unoverlapped_s(self.num_bytes, self.num_bytes, *self._stages))

    @property
    def single_buffered_s(self) -> float:
        """Seconds in chunks, no two stages at once."""
        return float(unoverlapped_s(self.num_bytes, self.chunk_bytes, *self._stages))

    @property
    def double_buffered_s(self) -> float:
        """Seconds in chunks, all stages at once."""
        return float(pipelined_s(self.num_bytes, self.chunk_bytes, *self._stages))

    @property
    def overlap_gain(self) -> float:
        """How many times faster two buffers are than one; at most the number of stages that take time."""
        return self.single_buffered_s / self.double_buffered_s

    @property
    def gain(self) -> float:
        """How many times faster chunks in two buffers are than the whole message at once."""
        return self.whole_s / self.double_buffered_s


def plan_transfer(
    topology: Topology,
    source: int,
    target: int,
    num_bytes: float,
    *,
    compute_s_per_byte: float | None = None,
    overhead_s: float = 0.0,
) -> TransferPlan:
    """The best chunks for a message between two nodes, or within one.

    The source splits at the pace of its memory and the target merges at the pace of its own; the transfer is as
    fast as the slowest of what it passes. A chunk takes at most half the target's last-level cache, which holds
    two of them.

    Args:
        topology: the machine.
        source: the node where the message lies.
        target: the node that needs it.
        num_bytes: the message.
        compute_s_per_byte: seconds that the target computes on each byte as it arrives. The target then works on
            the chunks as they lie: nothing is split or merged, and two buffers hide the smaller of transfer and
            computation, which gains at most a factor of 2.
        overhead_s: what software adds to the latency of each chunk.

    Raises:
        ValueError: a node that the machine does not have, or a figure outside its range.
    """
    require_node(topology, source=source, target=target)
    require_not_negative(overhead_s=overhead_s)
    split, merge = 1.0 / topology.memory_bandwidth_bytes_per_s[[source, target]]
    if compute_s_per_byte is not None:
        require_not_negative(compute_s_per_byte=compute_s_per_byte)
        split, merge = 0.0, compute_s_per_byte
    return TransferPlan(
        num_bytes=num_bytes,
        most_bytes=float(topology.llc_bytes[target]) / BUFFERS,
        split_s_per_byte=float(split),
        transfer_s_per_byte=float(resource_s_per_byte(topology)[stream_resources(topology, source, target)].max()),
        merge_s_per_byte=float(merge),
        latency_s=float(topology.latency_s[target, source]) + overhead_s,
    )


@dataclass(frozen=True, eq=False)
class Aggregation:
    """Messages sent one by one, against all of them copied into one buffer that is sent once.

    Attributes:
        message_bytes: size of each message, shape (K,).
        transfer_s_per_byte: seconds to transfer one byte.
        copy_s_per_byte: seconds to copy one byte into the buffer. Copies follow each other as one stream, so none
            pays a latency.
        latency_s: what each transfer pays once.

    Raises:
        ValueError: no message, or a figure outside its range.
    """

    message_bytes: npt.NDArray[np.float64]
    transfer_s_per_byte: float
    copy_s_per_byte: float
    latency_s: float

    def __post_init__(self) -> None:
        """Check the ranges; keep a read-only copy of the messages."""
        require(self, "transfer_s_per_byte latency_s", "finite and > 0", lambda value: value > 0)
        require(self, "copy_s_per_byte", "finite and >= 0", lambda value: value >= 0)
        messages = np.array(self.message_bytes, np.float64)
        if messages.ndim != 1 or messages.size == 0:
            raise ValueError(f"message_bytes must hold one or more sizes in one row, got shape {messages.shape}.")
        wrong = np.flatnonzero(~(np.isfinite(messages) & (messages >= 0.0)))
        if wrong.size:
            raise ValueError(f"message_bytes[{wrong[0]}] must be finite and >= 0, got {messages[wrong[0]]}.")
        messages.setflags(write=False)
        object.__setattr__(self, "message_bytes", messages)

    @property
    def one_by_one_s(self) -> float:
        """Seconds to send every message by itself."""
        return float(transfer_s(self.message_bytes, self.transfer_s_per_byte, self.latency_s).sum())

    @property
    def aggregated_s(self) -> float:
        """Seconds to copy every message into one buffer and send that."""
        total = float(self.message_bytes.sum())
        return float(total * self.copy_s_per_byte + transfer_s(total, self.transfer_s_per_byte, self.latency_s))

    @property
    def gain(self) -> float:
        """How many times faster aggregation is; below 1 where it does not pay."""
        return self.one_by_one_s / self.aggregated_s

    @property
    def break_even_bytes(self) -> float:
        """The mean message size below which aggregating this many messages pays.

        K messages of mean size s save K - 1 latencies and cost K s copied bytes, so it pays while
        s < (K - 1) / K L B_copy: never for one message, always if copies are free (infinity).
        """
        count = len(self.message_bytes)
        saved_s = (count - 1) / count * self.latency_s
        return saved_s / self.copy_s_per_byte if self.copy_s_per_byte else np.inf


def aggregate(
    topology: Topology, source: int, target: int, message_bytes: npt.ArrayLike, *, overhead_s: float = 0.0
) -> Aggregation:
    """What it takes to send messages from `source` to `target` one by one, and gathered in one buffer at the source.

    Args:
        topology: the machine.
        source: the node where the messages lie, and are copied at the pace of its memory.
        target: the node that needs them.
        message_bytes: size of each message, shape (K,).
        overhead_s: what software adds to the latency of each transfer.

    Raises:
        ValueError: a node that the machine does not have, no message, or a figure outside its range.
    """
    require_node(topology, source=source, target=target)
    require_not_negative(overhead_s=overhead_s)
    s_per_byte = resource_s_per_byte(topology)
    return Aggregation(
        message_bytes=np.asarray(message_bytes),
        transfer_s_per_byte=float(s_per_byte[stream_resources(topology, source, target)].max()),
        copy_s_per_byte=float(s_per_byte[stream_resources(topology, source, source)].max()),
        latency_s=float(topology.latency_s[target, source]) + overhead_s,
    )

"""What a stream between a node and a memory meets: loads, shares, latency, chunks; compiled by numba.

Dimension key: N nodes, R resources, as in `state.py`.

References:
    [1] The chapter, section 16.1.2: T_transfer = S / B + L, chunks and double buffering.
    [2] J. D. C. Little, "A proof for the queuing formula L = lambda W", 1961.
"""

from __future__ import annotations

import math

import numpy as np

from numa_rl.compilation import compiled

ONE = np.float32(1.0)
ZERO = np.float32(0.0)
HALF = np.float32(0.5)
NO_ROOM = np.float32(1e-9)  # keeps r(u) finite beyond u = 1 / c, where it is `saturated` anyway


@compiled
def shared_s_per_byte(idle_s_per_byte, load):
    """Seconds per byte of a resource that offered load u keeps busy: its equal share is capacity / (1 + u)."""
    return idle_s_per_byte * (ONE + load)


@compiled
def latency_factor(load, a, c, saturated):
    """Loaded over idle latency, r(u) = 1 + a u / (1 - c u), at most `saturated`."""
    room = max(ONE - c * load, NO_ROOM)
    return min(ONE + a * load / room, saturated)


@compiled
def resource_load(resource_bytes, idle_s_per_byte, window_s):
    """Offered load of a controller or link: recent bytes over what it can move in a window."""
    return resource_bytes * idle_s_per_byte / window_s


@compiled
def route_load(machines, state, b, node, target, window_s):
    """What a stream between initiator `node` and memory of `target` meets on its way.

    Returns:
        (seconds per byte of the slowest link toward the initiator, the same away from it,
        the largest load of the controller and the links).
    """
    m = state.machine[b]
    width = machines.cores.shape[1]
    idle = machines.resource_s_per_byte[m]
    used = state.resource_bytes[b]
    inward = ZERO
    outward = ZERO
    load = resource_load(used[target], idle[target], window_s)
    pair = node * width + target
    start = node * width + node
    while pair != start:
        link = machines.link_in[m, pair]
        u = resource_load(used[link], idle[link], window_s)
        inward = max(inward, shared_s_per_byte(idle[link], u))
        load = max(load, u)
        link = machines.link_out[m, pair]
        u = resource_load(used[link], idle[link], window_s)
        outward = max(outward, shared_s_per_byte(idle[link], u))
        load = max(load, u)
        pair = np.int64(machines.parent_pair[m, pair])
    return inward, outward, load


@compiled
def stream_s_per_byte(
    pair_s_per_byte, controller_s_per_byte, inward, outward, write_fraction, loaded_latency_s, outstanding_bytes
):
    """Seconds per byte of one core's stream: the slowest of everything it passes.

    Reads cross the links toward the initiator and writes the links away from it, at the same time; the core
    itself keeps `outstanding_bytes` in flight, so it moves at most that many bytes per loaded latency [2].
    """
    core = loaded_latency_s / outstanding_bytes
    links = max((ONE - write_fraction) * inward, write_fraction * outward)
    return max(max(pair_s_per_byte, controller_s_per_byte), max(links, core))


@compiled
def controller_s_per_byte(machines, state, b, node, window_s):
    """Seconds per byte of a node's memory controller as loaded as it is now."""
    idle = machines.resource_s_per_byte[state.machine[b], node]
    return shared_s_per_byte(idle, resource_load(state.resource_bytes[b, node], idle, window_s))


@compiled
def transfer_cost(machines, state, b, node, target, write_fraction, window_s):
    """Seconds per byte of a stream between a core of `node` and memory of `target`, and its loaded latency."""
    m = state.machine[b]
    pair = node * machines.cores.shape[1] + target
    inward, outward, load = route_load(machines, state, b, node, target, window_s)
    controller = controller_s_per_byte(machines, state, b, target, window_s)
    factor = latency_factor(load, machines.latency_a[m], machines.latency_c[m], machines.latency_saturated[m])
    latency = machines.latency_s[m, pair] * factor
    s_per_byte = stream_s_per_byte(
        machines.pair_s_per_byte[m, pair],
        controller,
        inward,
        outward,
        write_fraction,
        latency,
        machines.outstanding_bytes[m],
    )
    return s_per_byte, latency


@compiled
def read_time(num_bytes, s_per_byte, split_s_per_byte, latency_s, most_bytes):
    """Seconds for a core to read `num_bytes`, in the best chunks of at most `most_bytes` [1].

    While one chunk crosses the links the next is split off at its source; the core merges each from its cache,
    which takes no time of its own. This is `pipelined_s` with `best_chunk_bytes`, written out for a transfer that
    is no faster than the split, with nothing to merge. A local read has nothing to split: S / B + L.
    """
    startup = num_bytes * latency_s
    largest = min(num_bytes, most_bytes)
    root = np.sqrt(startup * split_s_per_byte)
    ends = split_s_per_byte * largest
    overhead = root + root if root < ends else startup / largest + ends
    return num_bytes * s_per_byte + overhead


@compiled
def page_time(num_bytes, page_bytes, page_move_s):
    """Seconds of kernel work to move as many pages as hold `num_bytes`."""
    return math.ceil(num_bytes / page_bytes) * page_move_s


@compiled
def migration_time(num_bytes, split_s_per_byte, s_per_byte, merge_s_per_byte, latency_s, most_bytes, page_s):
    """Seconds to move an object: read there, transferred and written here in the best chunks [1], and page work.

    This is `pipelined_s` with `best_chunk_bytes`, written out: with c = 1 / x the best chunk, T = S b + S L x +
    (a + m) / x. An empty object counts as one byte.
    """
    size = max(num_bytes, ONE)
    startup = size * latency_s
    ends = split_s_per_byte + merge_s_per_byte
    excess = max(split_s_per_byte, merge_s_per_byte) - s_per_byte
    inverse = max(max(np.sqrt(ends / startup), excess / latency_s), ONE / min(size, most_bytes))
    return size * s_per_byte + startup * inverse + ends / inverse + page_s


@compiled
def migrate(machines, state, b, source, target, num_bytes, window_s):
    """`migration_time` between two nodes as loaded as they are now."""
    m = state.machine[b]
    s_per_byte, latency = transfer_cost(machines, state, b, target, source, ZERO, window_s)
    reading = controller_s_per_byte(machines, state, b, source, window_s)
    writing = controller_s_per_byte(machines, state, b, target, window_s)
    page_s = page_time(num_bytes, machines.page_bytes[m], machines.page_move_s[m])
    half_cache = HALF * machines.llc_bytes[m, target]
    return migration_time(np.float32(num_bytes), reading, s_per_byte, writing, latency, half_cache, np.float32(page_s))


@compiled
def add_traffic(machines, state, b, node, target, reads, writes):
    """Count bytes read and written between `node` and memory of `target`, on its controller and on every link."""
    m = state.machine[b]
    width = machines.cores.shape[1]
    used = state.resource_bytes[b]
    pair = node * width + target
    state.traffic_bytes[b, pair] += reads + writes
    state.pair_bytes[b, 2 * pair] += reads
    state.pair_bytes[b, 2 * pair + 1] += writes
    used[target] += reads + writes
    start = node * width + node
    while pair != start:
        used[machines.link_in[m, pair]] += reads
        used[machines.link_out[m, pair]] += writes
        pair = np.int64(machines.parent_pair[m, pair])

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
def shared_s_per_byte(idle_s_per_byte, count, rate, left_bytes, num_bytes):
    """Seconds per byte of a stream of b bytes on a resource that n others share, who have V left together.

    While all move at equal shares, the others delay it by what they move before it ends, sum(min(left_i, b)) /
    capacity, and it delays them by the same. Times once decided stand, so the stream is charged both: the sum over all
    is then what they take. For sizes without memory (exponential) that sum is V (1 - exp(-x)), x = n b / V; here
    exp(x) is 1 + x + x^2 / 2. But a stream never gets less than what the others' rate leaves over.
    """
    left = max(left_bytes, ONE)
    count = max(count, ZERO)
    moving = count * num_bytes  # x = moving / left
    near = left * (left + HALF * moving)
    whole = near + HALF * moving * (left + moving)
    shared = whole + (count + count) * near
    spare = max(ONE - rate * idle_s_per_byte, NO_ROOM)
    crowded = shared * spare < whole
    return idle_s_per_byte * ((shared if crowded else ONE) / (whole if crowded else spare))


@compiled
def resource_s_per_byte(machines, state, b, resource, num_bytes):
    """`shared_s_per_byte` of a controller or link as it is now."""
    return shared_s_per_byte(
        machines.resource_s_per_byte[state.machine[b], resource],
        state.stream_count[b, resource],
        state.stream_rate[b, resource],
        state.stream_bytes[b, resource],
        num_bytes,
    )


@compiled
def latency_factor(load, a, c, saturated):
    """Loaded over idle latency, r(u) = 1 + a u / (1 - c u), at most `saturated`."""
    room = max(ONE - c * load, NO_ROOM)
    return min(ONE + a * load / room, saturated)


@compiled
def resource_load(resource_bytes, idle_s_per_byte, window_s):
    """Recent load of a controller or link: the bytes of a window over what it can move in one."""
    return resource_bytes * idle_s_per_byte / window_s


@compiled
def route_cost(machines, state, b, node, target, read_bytes, written_bytes):
    """What a stream between initiator `node` and memory of `target` meets on its way.

    Returns:
        (seconds per byte read of the slowest link toward the initiator, of a byte written of the slowest away from it,
        the largest load of the controller and the links, the streams' rate over the capacity).
    """
    m = state.machine[b]
    width = machines.cores.shape[1]
    idle = machines.resource_s_per_byte[m]
    rate = state.stream_rate[b]
    inward = ZERO
    outward = ZERO
    load = rate[target] * idle[target]
    pair = node * width + target
    start = node * width + node
    while pair != start:
        link = machines.link_in[m, pair]
        load = max(load, rate[link] * idle[link])
        if read_bytes > ZERO:
            inward = max(inward, resource_s_per_byte(machines, state, b, link, read_bytes))
        link = machines.link_out[m, pair]
        load = max(load, rate[link] * idle[link])
        if written_bytes > ZERO:
            outward = max(outward, resource_s_per_byte(machines, state, b, link, written_bytes))
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
def loaded_latency(machines, state, b, node, target, load):
    """Latency between a core of `node` and memory of `target` when the busiest of what lies between is so loaded."""
    m = state.machine[b]
    factor = latency_factor(load, machines.latency_a[m], machines.latency_c[m], machines.latency_saturated[m])
    return machines.latency_s[m, node * machines.cores.shape[1] + target] * factor


@compiled
def transfer_latency(machines, state, b, node, target):
    """`loaded_latency` as things are now."""
    _, _, load = route_cost(machines, state, b, node, target, ZERO, ZERO)
    return loaded_latency(machines, state, b, node, target, load)


@compiled
def transfer_cost(machines, state, b, node, target, num_bytes, write_fraction):
    """Seconds per byte of a stream between a core of `node` and memory of `target`.

    Returns:
        (seconds per byte, loaded latency, seconds per byte of the target's controller alone).
    """
    m = state.machine[b]
    written = num_bytes * write_fraction
    inward, outward, load = route_cost(machines, state, b, node, target, num_bytes - written, written)
    controller = resource_s_per_byte(machines, state, b, target, num_bytes)
    latency = loaded_latency(machines, state, b, node, target, load)
    s_per_byte = stream_s_per_byte(
        machines.pair_s_per_byte[m, node * machines.cores.shape[1] + target],
        controller,
        inward,
        outward,
        write_fraction,
        latency,
        machines.outstanding_bytes[m],
    )
    return s_per_byte, latency, controller


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
def migrate(machines, state, b, source, target, num_bytes):
    """Moving an object between two nodes as loaded as they are now.

    Returns:
        (`migration_time`, seconds of it in which bytes move).
    """
    m = state.machine[b]
    size = np.float32(num_bytes)
    s_per_byte, latency, reading = transfer_cost(machines, state, b, target, source, size, ZERO)
    writing = resource_s_per_byte(machines, state, b, target, size)
    page_s = page_time(num_bytes, machines.page_bytes[m], machines.page_move_s[m])
    half_cache = HALF * machines.llc_bytes[m, target]
    seconds = migration_time(size, reading, s_per_byte, writing, latency, half_cache, np.float32(page_s))
    return seconds, size * max(s_per_byte, writing)


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

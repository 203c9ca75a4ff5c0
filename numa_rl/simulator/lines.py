"""Which node's cache answers for an object's lines, and what asking it costs; compiled by numba.

In MESIF the cache that answers for a line is unique: the holder in M, E or F. So of each object only the holder is
kept, with what its last access left in that cache; what streams through pushes it out. Of the sharers of lines in F
only the last is kept: invalidations go out at once, and it is the one whose copies are most likely still there.

References:
    [1] The chapter, section 16.1.3: coherence.
"""

from __future__ import annotations

import numpy as np

from numa_rl.coherence.protocol import resident_bytes, transition_s
from numa_rl.compilation import compiled
from numa_rl.simulator.state import EXCLUSIVE, MODIFIED
from numa_rl.simulator.streams import ONE, ZERO, transfer_latency

line_time = compiled(transition_s)
still_cached = compiled(resident_bytes)


@compiled
def cached_lines(machines, state, b, obj):
    """Bytes of an object that its holder's cache still has, of those that the last access left there."""
    holder = state.objects[b, obj].holder
    if holder < 0 or state.objects[b, obj].form > 1:  # readers of copies are not told from each other
        return ZERO
    passed = np.float32(state.passed_bytes[b, holder] - state.objects[b, obj].cached_at)
    llc_bytes = machines.llc_bytes[state.machine[b], holder]
    return still_cached(state.objects[b, obj].cached_bytes, llc_bytes, passed)


@compiled
def line_ratios(machines, state, b, obj, write_fraction):
    """Cost ratio of an access to the lines of an object's holder: by another node, and by the holder itself."""
    table = machines.coherence[state.machine[b]]
    sharer = state.objects[b, obj].sharer
    column = 0 if sharer == MODIFIED else 1 if sharer == EXCLUSIVE else 2
    another = (ONE - write_fraction) * table[column] + write_fraction * table[4 + column]
    itself = (ONE - write_fraction) * table[3] + write_fraction * table[7] if sharer >= 0 else ZERO
    return another, itself


@compiled
def ask_holder(machines, state, b, node, obj, num_bytes, write_fraction):
    """Seconds of cache-to-cache transitions when a core of `node` accesses an object [1].

    What the holder still has of it is noted.
    """
    lines = cached_lines(machines, state, b, obj)
    state.objects[b, obj].cached_bytes = lines
    if lines <= ZERO:
        return ZERO
    holder, sharer = state.objects[b, obj].holder, state.objects[b, obj].sharer
    another, itself = line_ratios(machines, state, b, obj, write_fraction)
    ratio = itself if node == holder else another
    touched = min(lines, num_bytes)
    if ratio <= ZERO or touched <= ZERO:
        return ZERO
    latency = transfer_latency(machines, state, b, node, sharer if node == holder else holder)
    return line_time(touched, ratio, latency, machines.outstanding_bytes[state.machine[b]])


@compiled
def cache_lines(machines, state, b, node, obj, num_bytes, write_fraction):
    """Leave what an access touched in the cache of `node`, which answers for those lines from now on [1].

    `ask_holder` has come before, and said what the holder still has.
    """
    if num_bytes <= ZERO:
        return
    holder, sharer = state.objects[b, obj].holder, state.objects[b, obj].sharer
    cached, size = state.objects[b, obj].cached_bytes > ZERO, np.float32(state.objects[b, obj].bytes)
    # Choices of values and not of ways: which it will be is hard for a processor to foresee.
    clean = (holder if holder != node else sharer) if cached else EXCLUSIVE
    passed = state.passed_bytes[b, node] + num_bytes
    state.passed_bytes[b, node] = passed
    state.objects[b, obj].sharer = MODIFIED if write_fraction > ZERO else clean
    state.objects[b, obj].holder = node
    state.objects[b, obj].cached_at = passed
    state.objects[b, obj].cached_bytes = min(num_bytes, size)

"""How long steps of sends take on a machine's links: sends of a step happen at once and share what they pass.

Dimension key: K sends, T steps.

References:
    [1] The chapter, section 16.1.2: T_transfer = S / B + L.
"""

from __future__ import annotations

import numpy as np

from numa_rl.communication.transfers import resource_s_per_byte, stream_resources
from numa_rl.topology import FloatArray, IntArray, Topology


def shared_step_s(
    topology: Topology,
    num_steps: int,
    step: IntArray,
    source: IntArray,
    target: IntArray,
    num_bytes: FloatArray,
    startup_s: FloatArray,
) -> FloatArray:
    """Seconds of each step on an otherwise idle machine, shape (T,); a step of no sends takes none.

    The target reads from the source. Sends of a step start together and add up on every pair of nodes, memory
    controller and directed link that they share; each takes as long as the most loaded of what it passes, and the
    latency [1]. A step ends with its last send. It trusts its input.

    Args:
        topology: the machine.
        num_steps: T.
        step: when each send happens, in 0..T - 1, shape (K,).
        source: node that holds the bytes, shape (K,).
        target: node that reads them, shape (K,); the source itself for a copy.
        num_bytes: size of each send, shape (K,).
        startup_s: what each send takes besides the transfer, its latency, shape (K,).
    """
    s_per_byte = resource_s_per_byte(topology)
    pairs, pair = np.unique(np.stack([source, target]), axis=1, return_inverse=True)
    passed = [stream_resources(topology, a, b) for a, b in pairs.T.tolist()]
    busy_s = np.zeros((num_steps, len(s_per_byte)))
    for index, resources in enumerate(passed):
        (sends,) = np.nonzero(pair == index)
        np.add.at(busy_s, (step[sends, None], resources), num_bytes[sends, None] * s_per_byte[resources])
    seconds = startup_s.copy()
    for index, resources in enumerate(passed):
        (sends,) = np.nonzero(pair == index)
        seconds[sends] += busy_s[step[sends, None], resources].max(axis=1)
    steps = np.zeros(num_steps)
    np.maximum.at(steps, step, seconds)
    return steps

"""What tasks take on the idle machine: the floor under every placement, and the unit of time of scenarios.

Dimension key: T tasks, N nodes.

References:
    [1] The chapter, section 16.4.3: the roofline.
    [2] J. D. C. Little, "A proof for the queuing formula L = lambda W", 1961.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numa_rl.topology import FloatArray, Topology


def core_s_per_byte(topology: Topology) -> FloatArray:
    """Seconds for a byte of one core's stream from each memory on the idle machine, shape (N, N).

    The slowest of what the pair of nodes allows, what the memory delivers, and what the core keeps in flight over the
    latency [2].
    """
    return np.maximum(
        np.maximum(1.0 / topology.bandwidth_bytes_per_s, 1.0 / topology.memory_bandwidth_bytes_per_s),
        topology.latency_s / topology.outstanding_bytes,
    )


def service_s(
    flops: Any, num_bytes: Any, input_bytes: Any, overhead_s: Any, flops_per_s: Any, s_per_byte: Any
) -> FloatArray:
    """Seconds of a task on one core: the roofline [1] of its own object, its inputs, its overhead; arrays broadcast.

    Args:
        flops: arithmetic.
        num_bytes: bytes moved between the core and the task's own object.
        input_bytes: bytes read from its inputs.
        overhead_s: what it takes besides.
        flops_per_s: peak of the core.
        s_per_byte: seconds for a byte, see `core_s_per_byte`.
    """
    own_s = np.maximum(flops / flops_per_s, num_bytes * s_per_byte)
    return np.asarray(own_s + input_bytes * s_per_byte + overhead_s)

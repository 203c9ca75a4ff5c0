"""How far a steal goes: own queue, same node, direct neighbour, far node.

Dimension key: N nodes, W workers.

References:
    [1] The chapter, exercise 5: hierarchical work stealing.
    [2] Q. Chen, M. Guo, H. Guan, "LAWS: locality-aware work-stealing for multi-socket multi-core architectures",
        ICS 2014: steals within the socket first.
    [3] J. Deters, J. Wu, Y. Xu, I.-T. A. Lee, "A NUMA-aware provably-efficient task-parallel platform based on the
        work-first principle", IISWC 2018 (NUMA-WS): steals are biased by distance.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from numa_rl.topology import Topology

I64 = npt.NDArray[np.int64]

NUM_LEVELS = 4
OWN_QUEUE, SAME_NODE, NEIGHBOUR, FAR = range(NUM_LEVELS)
LEVEL_NAMES = ("own queue", "same node", "direct neighbour", "far node")


def node_levels(topology: Topology) -> I64:
    """Level of a steal by a worker of one node from another worker of a node, shape (N, N).

    A node that a link joins is a direct neighbour; any other is far.
    """
    return np.minimum(topology.hops, FAR - SAME_NODE) + SAME_NODE


def worker_nodes(topology: Topology) -> I64:
    """Node of each worker, shape (W,): one for each core, node by node."""
    return np.repeat(np.arange(topology.num_nodes), topology.cores)


def victims_by_level(topology: Topology) -> tuple[I64, I64]:
    """All other workers of each worker, nearest level first.

    Returns:
        Workers in order of level, shape (W, W - 1), and where each level begins and the last ends, shape
        (W, NUM_LEVELS + 1); nobody is at level 0.
    """
    node = worker_nodes(topology)
    level = node_levels(topology)[node[:, None], node]
    np.fill_diagonal(level, OWN_QUEUE)
    order = np.ascontiguousarray(np.argsort(level, axis=1, kind="stable")[:, 1:])  # who is first is the worker itself
    begins = [(level < bound).sum(axis=1) - (bound > OWN_QUEUE) for bound in range(NUM_LEVELS + 1)]
    return order, np.stack(begins, axis=1)

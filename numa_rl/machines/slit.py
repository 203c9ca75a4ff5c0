"""What the firmware's distances say about a machine, for files that hold nothing better.

A SLIT distance is a ratio, 10 = local. Firmware often gets it wrong, so whatever is derived here says so.

Dimension key: N nodes, L directed links.

References:
    [1] ACPI Specification, section 5.2.17: System Locality Distance Information Table (SLIT).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, dijkstra, floyd_warshall

from numa_rl.topology import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]

LOCAL_DISTANCE = 10.0  # what SLIT writes for a node and itself [1]
UNIFORM_REMOTE_DISTANCE = 20.0  # what Linux takes for every other node when there is no SLIT

# How far off these latencies are on machines that published both (`numa-rl study machines`).
SLIT_ERROR = "expected error between nodes: 53% on the median machine, 75% on the worst of 5"
# Idle local latency of a server, of which SLIT gives no idea: measured ones run from 73 to 150 ns.
ASSUMED_LOCAL_LATENCY_S = 100e-9

# Nodes nearer than this over local share a socket: on the measured machines the steps that join a socket's nodes cost
# at most 1.21 of local, and no step to another socket less than 1.35.
SAME_SOCKET = 1.3


def uniform_distances(num_nodes: int) -> FloatArray:
    """Distances as Linux takes them when the firmware gives none: 10 to itself, 20 to any other, shape (N, N)."""
    remote = np.full((num_nodes, num_nodes), UNIFORM_REMOTE_DISTANCE)
    np.fill_diagonal(remote, LOCAL_DISTANCE)
    return remote


def latency_from_distances(distances: FloatArray) -> FloatArray:
    """Idle latency in proportion to distance, in seconds, shape (N, N)."""
    return ASSUMED_LOCAL_LATENCY_S * distances / LOCAL_DISTANCE


def sockets_from_distances(distances: FloatArray, has_cores: BoolArray) -> IntArray:
    """The socket of each node, numbered from 0, shape (N,): nodes joined by steps that cost little above local.

    Dies of one package that are as far apart as packages count as sockets of their own, and so does memory without
    cores.

    Args:
        distances: SLIT distances or idle latencies, shape (N, N).
        has_cores: nodes that start accesses, shape (N,).

    >>> sockets_from_distances(np.array([[10, 12, 20], [12, 10, 20], [20, 20, 10]]), np.ones(3, bool)).tolist()
    [0, 0, 1]
    """
    ratio = distances / np.diagonal(distances)[:, None]
    # The lower of both directions: noise lengthens.
    near = (np.minimum(ratio, ratio.T) < SAME_SOCKET) & np.outer(has_cores, has_cores)
    return np.asarray(connected_components(near, directed=False)[1], dtype=np.int64)


def links_from_distances(distances: FloatArray) -> IntArray:
    """The links that explain a distance matrix, both directions of each, shape (L, 2).

    What a pair costs above local is its excess. Two nodes are linked unless a path over other nodes has no
    more excess than the pair itself: on a machine with distances 10, 16 and 22, a 22 is two links of 16.
    Where the matrix is not symmetric, the shorter direction counts, since links run both ways.

    The links connect every node: each link of a detour has less excess than the pair it replaces, so the
    detour is itself made of links and shorter detours.

    Args:
        distances: any measure of distance that is lowest locally, shape (N, N).

    >>> links_from_distances(np.array([[10, 16, 22], [16, 10, 16], [22, 16, 10]])).tolist()
    [[0, 1], [1, 0], [1, 2], [2, 1]]
    """
    excess = _excess(distances)
    path = floyd_warshall(excess)
    np.fill_diagonal(path, np.inf)  # a detour passes another node than its ends
    detour = np.full_like(path, np.inf)
    for node in range(len(path)):
        np.minimum(detour, path[:, node, None] + path[None, node, :], out=detour)
    np.fill_diagonal(detour, -np.inf)
    return np.argwhere(excess < detour * (1.0 - 1e-9)).astype(np.int64)


def without_detours(links: IntArray, distances: FloatArray, tolerance: float) -> IntArray:
    """The links without those that a path over the others all but matches, both directions of each, shape (L, 2).

    For measured distances, whose noise would make a link of every detour that came out a little long. The longest
    go first, and none goes without which its ends would be cut off.

    Args:
        links: both directions of every link, shape (L, 2).
        distances: the measure of distance they follow from, shape (N, N).
        tolerance: by how much of its own excess a path may be longer than the link it replaces.
    """
    excess = _excess(distances)
    kept = {(a, b) for a, b in links.tolist() if a < b}
    for pair in sorted(kept, key=lambda pair: (-excess[pair], pair)):
        others = np.array(sorted(kept - {pair}), dtype=np.int64).reshape(-1, 2)
        graph = csr_array((excess[others[:, 0], others[:, 1]], (others[:, 0], others[:, 1])), shape=excess.shape)
        if dijkstra(graph, directed=False, indices=pair[0])[pair[1]] <= excess[pair] * (1.0 + tolerance):
            kept.remove(pair)
    both_ways = sorted(kept | {(b, a) for a, b in kept})
    return np.array(both_ways, dtype=np.int64).reshape(-1, 2)


def _excess(distances: FloatArray) -> FloatArray:
    """What each pair costs above local, the shorter direction counting, shape (N, N)."""
    local = np.diagonal(distances).min()
    # Nodes no farther than local still need a link between them, hence the floor.
    excess = np.maximum(np.minimum(distances, distances.T) - local, 1e-3 * local)
    np.fill_diagonal(excess, 0.0)
    return np.asarray(excess, dtype=np.float64)

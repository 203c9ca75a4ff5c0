"""Filling in what was not measured of a matrix of costs between nodes, and saying how.

Costs are lowest at home: latencies, or seconds per byte. NaN stands for what is not known.

Dimension key: N nodes.

References:
    [1] ACPI Specification, section 5.2.17: System Locality Distance Information Table (SLIT).
    [2] J. D. C. Little, "A proof for the queuing formula L = lambda W", 1961.
"""

from __future__ import annotations

import numpy as np

from numa_rl.machines.slit import BoolArray, sockets_from_distances, uniform_distances
from numa_rl.topology import FloatArray

# Of what the memories of a socket deliver together, the share that its links carry; and how much more a node keeps in
# flight than its own memory needs. Both as fitted to all published matrices by `numa-rl study machines`, with how far
# off they are on machines that were left out of the fit.
LINK_SHARE = 0.42
IN_FLIGHT = 1.75
SPREAD_ERROR = "expected error between sockets: 16% on the median machine, 51% on the worst of 12"

# What is said of the pairs that were filled in, after which they are.
MIRRORED = "as the reverse"
FROM_DISTANCES = "by SLIT distance, scaled to the known pairs"
FROM_UNIFORM = "by distance 10 at home and 20 elsewhere, as Linux does without SLIT, scaled to the known pairs"
FROM_LATENCY = "by idle latency, scaled to the known pairs"
EXCLUSIVE_OR = "as if every node stood alike, node i seeing node j as it sees the node numbered i xor j"
MEMORY_ONLY = "of nodes without cores as what others see of them"
BY_SOCKET = f"by socket, as local within one, as its links and requests in flight allow between two ({SPREAD_ERROR})"
MOST_NAMED = 4


def completed(
    cost: FloatArray, has_cores: BoolArray, distances: FloatArray | None = None, by: str = FROM_DISTANCES
) -> tuple[FloatArray, list[str]]:
    """A matrix of costs with every NaN filled in, and how: what was done, in words.

    In this order: a pair takes the cost of its reverse; a machine of 2^k nodes of which one node's row or column is
    known, and no distances, looks alike from every node; the rest goes by distance (`_by_distance`). Rows of nodes
    without cores, which start no access, mirror what the others see of them.

    Args:
        cost: shape (N, N), NaN where unknown; at least one row of a node with cores must hold a figure.
        has_cores: nodes that start accesses, shape (N,).
        distances: how far apart nodes are, lowest at home, shape (N, N).
        by: what is said of pairs that go by the distances.

    Returns:
        The matrix, shape (N, N), and what was done to which pairs, as parts of a source.

    Raises:
        ValueError: nothing is known of what a node with cores sees.
    """
    filled = np.array(cost, dtype=np.float64)
    if not np.isfinite(filled[has_cores]).any():
        raise ValueError("at least one figure must be known of what a node with cores sees, got none.")
    asks = np.broadcast_to(has_cores[:, None], filled.shape)
    notes: list[str] = []

    def fill(where: BoolArray, values: FloatArray, how: str) -> None:
        """Fill some pairs in and note it."""
        if where.any():
            filled[where] = values[where]
            kind, _, what = how.partition(" ")
            notes.append(f"{kind} {_which(where)} {what}")

    fill(asks & np.isnan(filled) & ~np.isnan(filled.T), filled.T.copy(), f"derived: {MIRRORED}")
    center = _known_node(filled) if distances is None else None
    if center is not None:
        fill(asks & np.isnan(filled), _alike(filled[:, center], center), f"assumed: {EXCLUSIVE_OR}")
    if distances is None:
        fill(asks & np.isnan(filled), _by_distance(filled, uniform_distances(len(filled))), f"assumed: {FROM_UNIFORM}")
    else:
        fill(asks & np.isnan(filled), _by_distance(filled, distances), f"derived: {by}")
    fill(np.isnan(filled), mirrored(filled, has_cores), f"derived: {MEMORY_ONLY}")
    return filled, notes


def spread(
    bandwidth: FloatArray,
    has_cores: BoolArray,
    distances: FloatArray | None,
    link_share: float = LINK_SHARE,
    in_flight: float = IN_FLIGHT,
) -> tuple[FloatArray, list[str]]:
    """Bandwidth of every pair where only what memories deliver at home is known, and how: what was done, in words.

    A node draws from memory of its own socket what is known of that memory at home. From another socket it draws the
    least of that, of what its socket's links carry (a share of what the socket's memories deliver together), and of
    what it keeps in flight over the distance (so many times what its own memory needs) [2]. Where anything is known
    between sockets, nothing is done: that says more (`completed`).

    Args:
        bandwidth: what one node draws from another's memory, shape (N, N), NaN where unknown.
        has_cores: nodes that start accesses, shape (N,).
        distances: idle latencies or SLIT distances, shape (N, N); as Linux takes them when None.
        link_share: see above.
        in_flight: see above.

    Returns:
        The matrix, shape (N, N), still NaN for memories of which nothing is known and in rows of nodes without cores;
        and what was done to which pairs, as parts of a source.
    """
    filled = np.array(bandwidth, dtype=np.float64)
    far = uniform_distances(len(filled)) if distances is None else distances
    known = np.asarray(np.isfinite(filled) & has_cores[:, None])
    sockets = sockets_from_distances(far, has_cores)
    # Memory without cores is at home where its figure is from.
    home = np.where(has_cores, sockets, sockets[known.argmax(axis=0)])
    same = sockets[:, None] == home[None, :]
    if (known & ~same).any():
        return filled, []
    told = np.asarray(known.any(axis=0))
    delivered = np.where(known, filled, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    together = (np.where(has_cores, delivered, 0.0)[None, :] * (sockets[:, None] == sockets[None, :])).sum(axis=1)
    # A node of whose own memory nothing is told is held back by nothing.
    links = np.where(told, link_share * together, np.inf)
    own = np.where(told, in_flight * delivered, np.inf)
    allowed = np.minimum(links[:, None], own[:, None] * np.diagonal(far)[:, None] / far)
    values = np.where(same, delivered[None, :], np.minimum(delivered[None, :], allowed))
    missing = has_cores[:, None] & np.isnan(filled) & told[None, :]
    filled[missing] = values[missing]
    return filled, [f"derived: {_which(missing)} {BY_SOCKET}"] if missing.any() else []


def _which(where: BoolArray) -> str:
    """Some pairs in words: each by its nodes, or how many they are."""
    pairs = np.argwhere(where).tolist()
    if len(pairs) > MOST_NAMED:
        return f"{len(pairs)} of {where.size} pairs"
    return f"{'pair' if len(pairs) == 1 else 'pairs'} {', '.join(f'{a} to {b}' for a, b in pairs)}"


def mirrored(cost: FloatArray, has_cores: BoolArray) -> FloatArray:
    """The matrix with the rows of nodes without cores filled in from their columns, shape (N, N).

    Between two nodes without cores stands the worse of what each costs the node that is best placed for it.
    """
    best = cost[has_cores].min(axis=0)
    filled = np.where(has_cores[:, None], cost, np.where(has_cores[None, :], cost.T, np.maximum.outer(best, best)))
    return np.asarray(filled, dtype=np.float64)


def _known_node(cost: FloatArray) -> int | None:
    """A node whose whole column is known, on a machine of 2^k nodes; None when there is none."""
    whole = np.flatnonzero(np.isfinite(cost).all(axis=0))
    return int(whole[0]) if len(whole) and len(cost).bit_count() == 1 and len(cost) > 2 else None


def _alike(column: FloatArray, center: int) -> FloatArray:
    """Costs between all nodes when each sees the machine as `center` does, shape (N, N)."""
    node = np.arange(len(column))
    return np.asarray(column[node[:, None] ^ node[None, :] ^ center], dtype=np.float64)


def _by_distance(cost: FloatArray, distances: FloatArray) -> FloatArray:
    """Costs of all pairs by their distance, shape (N, N).

    A distance costs what known pairs of that distance cost on average. Between two such distances the cost is
    interpolated; beyond them it is in proportion to distance. A target whose known costs differ from that, such as
    slow memory, keeps its own ratio.
    """
    known = np.isfinite(cost)
    at, inverse = np.unique(distances[known], return_inverse=True)
    mean = np.bincount(inverse, cost[known]) / np.bincount(inverse)
    inside = np.interp(distances, at, mean)
    guess = np.where(distances < at[0], mean[0] * distances / at[0], inside)
    guess = np.where(distances > at[-1], mean[-1] * distances / at[-1], guess)
    ratio = np.where(known, cost / guess, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.asarray(guess * np.where(known.any(axis=0), ratio, 1.0), dtype=np.float64)

"""Other partitioners behind our types: METIS, KaHIP and Mt-KaHyPar, from the extra `numa-rl[partition]`.

They want whole numbers that fit in 32 bits, so weights are scaled where they do not; what they return is judged by the
true weights, in `numa_rl.partition.methods`.

Dimension key: V vertices, E undirected edges, K parts, N nodes.

References:
    [1] G. Karypis and V. Kumar, "A fast and high quality multilevel scheme for partitioning irregular graphs", SIAM J.
        Scientific Computing 20(1), 1998: METIS.
    [2] P. Sanders and C. Schulz, "Think locally, act globally: highly balanced graph partitioning", SEA 2013: KaHIP.
    [3] L. Gottesbüren et al., "Scalable high-quality hypergraph partitioning", ACM Trans. Algorithms 20(1), 2024:
        Mt-KaHyPar.
    [4] T. Heuer, "A direct k-way hypergraph partitioning algorithm for optimizing the Steiner tree metric", ALENEX
        2024: mapping onto a graph.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from numa_rl.partition.graph import F64, I64, Graph

MOST_TOTAL = 2**24  # of whole weights: as much for each of a hundred parts fits in 32 bits
MOST_DISTANCE = 64  # of whole distances; times weights they must fit in 32 bits, or Mt-KaHyPar fails without a word
METIS_UNITS = 1000  # of its ufactor: an imbalance of 1
MOST_SEED = 2**31


def metis_parts(graph: Graph, shares: F64, limits: F64, rng: np.random.Generator) -> I64:
    """Parts by METIS [1], as it is set when told nothing but the balance, shape (V,)."""
    pymetis = _library("pymetis")
    factor = float((limits / (shares * graph.total_weight)).max())
    options = pymetis.Options(seed=_seed(rng), ufactor=max(1, int(METIS_UNITS * (factor - 1.0))))
    adjacency = pymetis.CSRAdjacency(adj_starts=graph.offsets, adjacent=graph.neighbours)
    even = np.all(shares == shares[0])
    result = pymetis.part_graph(
        len(shares),
        adjacency,
        vweights=_whole(graph.vertex_weights, 0),
        eweights=_whole(graph.edge_weights, 1),
        tpwgts=None if even else shares.tolist(),
        options=options,
    )
    return np.array(result.vertex_part, dtype=np.int64)


def kahip_parts(graph: Graph, shares: F64, limits: F64, rng: np.random.Generator) -> I64:
    """Parts by KaHIP [2] in its mode ECO, shape (V,).

    Raises:
        ValueError: shares that differ, which its interface has no place for.
    """
    kahip = _library("kahip")
    if not np.all(shares == shares[0]):
        raise ValueError("method kahip makes equal parts only, got target_shares that differ.")
    k = len(shares)
    weights = _whole(graph.vertex_weights, 0)
    # Its bound is (1 + imbalance) ceil(weight / K).
    allowed = float(limits[0]) * weights.sum() / graph.total_weight / np.ceil(weights.sum() / k)
    arrays = (weights, graph.offsets, _whole(graph.edge_weights, 1), graph.neighbours)
    parts = kahip.kaffpa(
        *(array.tolist() for array in arrays), k, max(0.0, allowed - 1.0), True, _seed(rng), kahip.ECO
    )[1]
    return np.array(parts, dtype=np.int64)


def mt_kahypar_parts(graph: Graph, shares: F64, limits: F64, rng: np.random.Generator) -> I64:
    """Parts by Mt-KaHyPar [3] in its mode DETERMINISTIC_QUALITY, shape (V,)."""
    library = _library("mtkahypar")
    context = _context(library)
    context.set_partitioning_parameters(len(shares), 0.0, library.Objective.CUT)
    _limit(context, limits, graph)
    library.set_seed(_seed(rng))
    return np.array(_mt_kahypar_graph(graph, context).partition(context).get_partition(), dtype=np.int64)


def mt_kahypar_map(graph: Graph, limits: F64, distance: F64, rng: np.random.Generator) -> I64:
    """The node of each vertex by Mt-KaHyPar's own mapping [4], shape (V,).

    Args:
        graph: what to place.
        limits: what each node may be given, shape (N,).
        distance: of every two nodes, symmetric, shape (N, N).
        rng: gives its seed.
    """
    library = _library("mtkahypar")
    if len(limits) == 1:
        return np.zeros(graph.num_vertices, np.int64)
    context = _context(library)
    factor = float(limits[0]) * len(limits) / graph.total_weight
    context.set_mapping_parameters(len(limits), max(0.0, factor - 1.0))
    library.set_seed(_seed(rng))
    near, far = np.triu_indices(len(distance), 1)
    lengths = np.maximum(1, np.rint(distance[near, far] * (MOST_DISTANCE / distance[near, far].max()))).astype(int)
    pairs = list(zip(near.tolist(), far.tolist(), strict=True))
    target = _mt_kahypar(library).create_target_graph(context, len(distance), len(pairs), pairs, lengths.tolist())
    source = _mt_kahypar_graph(graph, context)
    return np.array(source.map_onto_graph(target, context).get_partition(), dtype=np.int64)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(f"{name} must be installed for this method: pip install 'numa-rl[partition]'.") from error


@cache
def _mt_kahypar(library: Any) -> Any:
    """Mt-KaHyPar's threads, which a process may start once: one, as the others have."""
    return library.initialize(1, False)


def _context(library: Any) -> Any:
    context = _mt_kahypar(library).context_from_preset(library.PresetType.DETERMINISTIC_QUALITY)
    context.logging = False
    return context


def _limit(context: Any, limits: F64, graph: Graph) -> None:
    """Set what each part may weigh, once the number of parts is set."""
    scale = _whole(graph.vertex_weights, 0).sum() / graph.total_weight
    whole = np.floor(np.minimum(limits, graph.total_weight) * scale)
    context.set_individual_target_block_weights(whole.astype(int).tolist())


def _mt_kahypar_graph(graph: Graph, context: Any) -> Any:
    source, target, weight = graph.edges()
    pairs = list(zip(source.tolist(), target.tolist(), strict=True))
    weights = _whole(graph.vertex_weights, 0).tolist(), _whole(weight, 1).tolist()
    return _mt_kahypar(_library("mtkahypar")).create_graph(context, graph.num_vertices, len(pairs), pairs, *weights)


def _whole(weights: F64, least: int) -> I64:
    """Weights as whole numbers of at least `least`: as they are where they can be, else scaled and rounded."""
    total = weights.sum()
    if total <= MOST_TOTAL and np.array_equal(weights, np.rint(weights)):
        return weights.astype(np.int64)
    whole: I64 = np.maximum(least, np.rint(weights * (MOST_TOTAL / total))).astype(np.int64)
    return whole


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(MOST_SEED))

"""One way to every partitioner, ours and others: `partition`. What comes back is measured, and repaired if need be.

Dimension key: V vertices, E undirected edges, K parts.

References:
    [1] The chapter, section 16.2.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from numa_rl.partition.graph import F64, I64, Graph
from numa_rl.partition.initial import spectral_parts
from numa_rl.partition.libraries import kahip_parts, metis_parts, mt_kahypar_parts
from numa_rl.partition.multilevel import Effort, multilevel_parts
from numa_rl.partition.objective import (
    balance,
    checked_parts,
    cut_weight,
    packed,
    part_limits,
    part_weights,
    require_shares,
)
from numa_rl.partition.refinement import improve

LIBRARIES = {"metis": metis_parts, "kahip": kahip_parts, "mt-kahypar": mt_kahypar_parts}
MODULES = {"metis": "pymetis", "kahip": "kahip", "mt-kahypar": "mtkahypar"}
METHODS = ("multilevel", "spectral", *LIBRARIES)


@dataclass(frozen=True, eq=False)
class PartitionResult:
    """A partition and what it costs.

    Attributes:
        method: one of `METHODS`.
        parts: of the vertices, shape (V,).
        part_weights: weight of each part, shape (K,).
        cut: weight of the edges between parts.
        balance: greatest weight of a part over its share; 1 is perfect.
        allowed_balance: what it may be: 1 + imbalance, more where vertices are too heavy for that (`part_limits`).
        returned_balance: what it was when the method handed the parts over.
        returned_cut: what the cut was then.
    """

    method: str
    parts: I64
    part_weights: F64
    cut: float
    balance: float
    allowed_balance: float
    returned_balance: float
    returned_cut: float

    @property
    def was_repaired(self) -> bool:
        """Whether the method broke the bound, and vertices were moved to keep it."""
        return self.returned_balance > self.allowed_balance


def available_methods() -> tuple[str, ...]:
    """The methods whose library is installed."""
    return tuple(name for name in METHODS if name not in MODULES or find_spec(MODULES[name]) is not None)


def partition(
    graph: Graph,
    num_parts: int,
    *,
    imbalance: float = 0.03,
    method: str = "multilevel",
    target_shares: npt.ArrayLike | None = None,
    rng: np.random.Generator,
    effort: Effort | None = None,
) -> PartitionResult:
    """Cut a graph into parts of about their shares, so that little passes between them [1].

    The parts always keep the bound of `part_limits`: where a library breaks it, vertices are moved, and the result
    says so.

    Args:
        graph: what to partition.
        num_parts: number of parts K; parts may be empty where there are few vertices.
        imbalance: by what share of its own a part may weigh more.
        method: one of `METHODS`: our multilevel scheme; recursive spectral bisection, refined; or a library.
        target_shares: of the whole that each part is to have, shape (K,), in any unit; None for equal parts.
        rng: all choices are drawn from it.
        effort: how long our multilevel scheme searches; None for `usual_effort`.

    Raises:
        ValueError: an argument out of range, an unknown method, or a library that is not installed or cannot do it.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    shares = require_shares(num_parts, target_shares)
    limits = part_limits(graph.vertex_weights, shares, imbalance)
    adjacency = graph.adjacency
    if num_parts == 1 or graph.num_edges == 0:
        parts = packed(graph.vertex_weights, shares)  # no edge can be cut
    elif method == "multilevel":
        parts = multilevel_parts(adjacency, shares, imbalance, rng, effort)
    elif method == "spectral":
        parts = improve(adjacency, spectral_parts(adjacency, shares, rng), limits, rng)
    elif num_parts > graph.num_vertices:
        raise ValueError(f"num_parts must be at most {graph.num_vertices} for method {method}, got {num_parts}.")
    else:
        parts = checked_parts(graph, LIBRARIES[method](graph, shares, limits, rng), num_parts)
    returned, returned_cut = part_weights(graph, parts, num_parts), cut_weight(graph, parts)
    if np.any(returned > limits):
        parts = improve(adjacency, parts, limits, rng)
    weights = part_weights(graph, parts, num_parts)
    return PartitionResult(
        method=method,
        parts=parts,
        part_weights=weights,
        cut=cut_weight(graph, parts),
        balance=balance(weights, shares),
        allowed_balance=float((limits / (shares * graph.total_weight)).max()),
        returned_balance=balance(returned, shares),
        returned_cut=returned_cut,
    )

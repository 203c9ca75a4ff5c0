"""The machine: NUMA nodes, what each costs to reach, and the links between them.

Dimension key: N nodes, L directed links.

References:
    [1] The chapter, section 16.1.1: topologies and the latency matrix L_ij.
    [2] J. D. C. Little, "A proof for the queuing formula L = lambda W", 1961.
    [3] Intel Memory Latency Checker: loaded-latency measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from numa_rl.coherence.protocol import TransitionCosts

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Outstanding cache lines of one core: the 16 entries of an Intel L2 superqueue
# (Intel 64 and IA-32 Optimization Reference Manual, section on the L2 cache), 64 bytes each.
DEFAULT_OUTSTANDING_BYTES = 16 * 64

# Moving one 4 KiB page costs the kernel about a microsecond on top of the copy: unmap, TLB
# shootdown, remap (Lameter, "NUMA: an overview", ACM Queue 2013, gives a few us per page in full).
DEFAULT_PAGE_MOVE_S = 1e-6
DEFAULT_PAGE_BYTES = 4096
# Last-level cache of a node where none is given: the order of a server socket of the 2010s and 2020s.
DEFAULT_LLC_BYTES = 32 * 2**20
MOST_CORES = 4096  # of a node: the simulator keeps a clock for each


@dataclass(frozen=True)
class LoadedLatency:
    """How much slower a loaded memory answers: r(u) = 1 + a u / (1 - c u), at most `saturated`.

    u is the load of a controller or link: the streams' rate over its capacity. The default is
    the least-squares fit to the Intel MLC curve of a two-socket Xeon Platinum 8269CY (rmse 0.019) [3].

    Attributes:
        a: slope at light load.
        c: where the knee stands: r grows without bound as u nears 1 / c.
        saturated: the factor reached at saturation, which r never exceeds.
    """

    a: float = 0.40
    c: float = 0.50
    saturated: float = 3.4

    def __post_init__(self) -> None:
        """Check the ranges; raises ValueError."""
        if not (self.a >= 0.0 and np.isfinite(self.a)):
            raise ValueError(f"loaded latency: a must be finite and >= 0, got {self.a}.")
        if not 0.0 <= self.c < np.inf:
            raise ValueError(f"loaded latency: c must be finite and >= 0, got {self.c}.")
        if not 1.0 <= self.saturated < np.inf:
            raise ValueError(f"loaded latency: saturated must be finite and >= 1, got {self.saturated}.")


def hop_counts(links: IntArray, num_nodes: int) -> IntArray:
    """Fewest directed links from every node to every other, shape (N, N); -1 where there is no route.

    Args:
        links: directed links as (source, target) nodes, shape (L, 2).
        num_nodes: number of nodes N.
    """
    graph = csr_array((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(num_nodes, num_nodes))
    distance = dijkstra(graph, unweighted=True)
    return np.where(np.isfinite(distance), distance, -1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Topology:
    """N nodes, what each costs to reach, and the links between them; row = initiator, column = target.

    Attributes:
        name: how the machine is called in tables.
        cores: cores of each node, shape (N,); 0 for memory-only nodes (CXL, HBM).
        flops_per_s: peak of *one* core of each node, shape (N,).
        memory_bytes: capacity of each node's memory, shape (N,).
        memory_bandwidth_bytes_per_s: what each node's memory controllers deliver, shape (N,).
        latency_s: idle load latency, shape (N, N).
        bandwidth_bytes_per_s: what one node draws from another's memory when nothing else runs, shape (N, N).
        links: directed links as (source, target) nodes, shape (L, 2); the reverse of each must be there too.
        link_bandwidth_bytes_per_s: capacity of each directed link, shape (L,).
        loaded_latency: the latency factor under load.
        outstanding_bytes: bytes one core keeps in flight; by Little's law [2] one core streams at most
            outstanding_bytes / loaded latency.
        llc_bytes: last-level cache of each node, shape (N,); a single number, shape (), stands for all.
        page_bytes: size of a page, the unit of migration.
        page_move_s: kernel time to move one page, on top of copying it.
        coherence: what the transitions of a cached line cost.
        sources: where each figure came from, by attribute name: "measured: ...", "derived: ..." or "assumed: ...".

    Raises:
        ValueError: an array has the wrong shape, a value is outside its range, no node has a core,
            a link has no reverse, or the links leave a node unreachable.
    """

    name: str
    cores: IntArray
    flops_per_s: FloatArray
    memory_bytes: FloatArray
    memory_bandwidth_bytes_per_s: FloatArray
    latency_s: FloatArray
    bandwidth_bytes_per_s: FloatArray
    links: IntArray
    link_bandwidth_bytes_per_s: FloatArray
    loaded_latency: LoadedLatency = field(default_factory=LoadedLatency)
    outstanding_bytes: float = DEFAULT_OUTSTANDING_BYTES
    llc_bytes: FloatArray = field(default_factory=lambda: np.asarray(float(DEFAULT_LLC_BYTES)))
    page_bytes: int = DEFAULT_PAGE_BYTES
    page_move_s: float = DEFAULT_PAGE_MOVE_S
    coherence: TransitionCosts = field(default_factory=TransitionCosts)
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Convert every array to its dtype, freeze it, and check shapes, ranges and reachability."""
        self._set("cores", np.int64, (-1,))
        n = self.num_nodes
        if n == 0:
            raise ValueError(f"machine {self.name!r}: a machine needs at least one node, got none.")
        if np.ndim(self.llc_bytes) == 0:
            object.__setattr__(self, "llc_bytes", np.full(n, self.llc_bytes))
        for name in ("flops_per_s", "memory_bytes", "memory_bandwidth_bytes_per_s", "llc_bytes"):
            self._set(name, np.float64, (n,))
        for name in ("latency_s", "bandwidth_bytes_per_s"):
            self._set(name, np.float64, (n, n))
        self._set("links", np.int64, (-1, 2))
        self._set("link_bandwidth_bytes_per_s", np.float64, (len(self.links),))

        self._require("cores", (self.cores >= 0) & (self.cores <= MOST_CORES), f"in 0..{MOST_CORES}")
        if not self.cores.any():
            raise ValueError(f"machine {self.name!r}: at least one node must have cores, got zero cores everywhere.")
        for name in (
            "flops_per_s",
            "memory_bytes",
            "memory_bandwidth_bytes_per_s",
            "latency_s",
            "bandwidth_bytes_per_s",
            "link_bandwidth_bytes_per_s",
            "llc_bytes",
        ):
            values = getattr(self, name)
            self._require(name, np.isfinite(values) & (values > 0.0), "finite and > 0")
        for name in ("outstanding_bytes", "page_bytes"):
            self._require(name, np.asarray(0 < getattr(self, name) < np.inf), "finite and > 0")
        self._require("page_move_s", np.asarray(0 <= self.page_move_s < np.inf), "finite and >= 0")
        self._check_links()

    def _set(self, name: str, dtype: type, shape: tuple[int, ...]) -> None:
        """Store attribute `name` as a read-only array; -1 in `shape` stands for any length."""
        array: npt.NDArray[Any] = np.array(getattr(self, name), dtype=dtype)
        if array.size == 0 and shape == (-1, 2):
            array = array.reshape(0, 2)
        fits = array.ndim == len(shape) and all(want in (-1, got) for want, got in zip(shape, array.shape, strict=True))
        if not fits:
            rule = str(shape).replace("-1", "any")
            raise ValueError(f"machine {self.name!r}: {name} must have shape {rule}, got {array.shape}.")
        array.setflags(write=False)
        object.__setattr__(self, name, array)

    def _require(self, name: str, good: npt.NDArray[np.bool_], rule: str) -> None:
        """Raise ValueError naming the first entry of attribute `name` that is not `good`."""
        if not np.all(good):
            values = np.asarray(getattr(self, name))
            where = tuple(int(i) for i in np.argwhere(~np.asarray(good))[0])
            index = f"[{', '.join(map(str, where))}]" if where else ""
            raise ValueError(f"machine {self.name!r}: {name}{index} must be {rule}, got {values[where]}.")

    def _check_links(self) -> None:
        """Every link joins two nodes of the machine, once, has its reverse, and no node is cut off."""
        n = self.num_nodes
        self._require("links", (self.links >= 0) & (self.links < n), f"a node in 0..{n - 1}")
        pairs = [(int(source), int(target)) for source, target in self.links]
        known = set(pairs)
        for pair in pairs:
            if pair[0] == pair[1]:
                raise ValueError(f"machine {self.name!r}: a link must join two different nodes, got {pair}.")
            if pair[::-1] not in known:
                raise ValueError(f"machine {self.name!r}: link {pair} must have its reverse {pair[::-1]}, got none.")
        if len(known) != len(pairs):
            raise ValueError(f"machine {self.name!r}: each directed link must be given once, got {sorted(pairs)}.")
        unreachable = np.argwhere(self.hops < 0)
        if len(unreachable):
            i, j = (int(node) for node in unreachable[0])
            raise ValueError(f"machine {self.name!r}: links must connect every node, got no route from {i} to {j}.")

    @property
    def num_nodes(self) -> int:
        """Number of nodes N."""
        return len(self.cores)

    @property
    def num_links(self) -> int:
        """Number of directed links L."""
        return len(self.links)

    @cached_property
    def predecessor(self) -> IntArray:
        """The node before j on the route from i to j, shape (N, N); -1 where i == j or there is no route.

        Routes are shortest paths in hops and, among those, in latency: the sum of latencies is scaled
        to stay below one hop.
        """
        n = self.num_nodes
        source, target = self.links[:, 0], self.links[:, 1]
        latency = self.latency_s[source, target]
        weight = 1.0 + latency / (2.0 * n * latency.max()) if len(latency) else latency
        graph = csr_array((weight, (source, target)), shape=(n, n))
        predecessor = dijkstra(graph, return_predecessors=True)[1].astype(np.int64)
        return np.where(predecessor < 0, -1, predecessor)

    @cached_property
    def hops(self) -> IntArray:
        """Links on the route of every pair, shape (N, N); -1 where there is no route."""
        return hop_counts(self.links, self.num_nodes)

    def link_index(self) -> dict[tuple[int, int], int]:
        """Index of each directed link by its (source, target)."""
        return {(int(a), int(b)): index for index, (a, b) in enumerate(self.links)}

    def route(self, initiator: int, target: int) -> list[int]:
        """Nodes from initiator to target, both included, along the shortest path."""
        nodes = [target]
        while nodes[-1] != initiator:
            nodes.append(int(self.predecessor[initiator, nodes[-1]]))
        return nodes[::-1]

    @cached_property
    def route_links(self) -> tuple[IntArray, IntArray]:
        """Whether each link is on the route of each pair: of its reads, toward the initiator, and of its writes.

        Shape (N * N, L) each, pairs row by row, 1 or 0.
        """
        n, index = self.num_nodes, self.link_index()
        reads, writes = np.zeros((2, n * n, self.num_links), np.int64)
        for initiator in range(n):
            for target in range(n):
                for near, far in pairwise(self.route(initiator, target)):
                    writes[initiator * n + target, index[near, far]] = 1
                    reads[initiator * n + target, index[far, near]] = 1
        return reads, writes

    @cached_property
    def fallback_order(self) -> IntArray:
        """For each node, all nodes from nearest to farthest, itself first, shape (N, N).

        The order in which Linux looks for room when a node's memory is full. Ties go to the lower index.
        """
        latency = self.latency_s.copy()
        np.fill_diagonal(latency, 0.0)
        return np.argsort(latency, axis=1, kind="stable")

    def to_dict(self) -> dict[str, Any]:
        """Every figure as plain JSON types, with where it came from."""
        links = zip(self.links.tolist(), self.link_bandwidth_bytes_per_s.tolist(), strict=True)
        return {
            "name": self.name,
            "num_nodes": self.num_nodes,
            "cores": self.cores.tolist(),
            "flops_per_s": self.flops_per_s.tolist(),
            "memory_bytes": self.memory_bytes.tolist(),
            "memory_bandwidth_bytes_per_s": self.memory_bandwidth_bytes_per_s.tolist(),
            "latency_s": self.latency_s.tolist(),
            "bandwidth_bytes_per_s": self.bandwidth_bytes_per_s.tolist(),
            "hops": self.hops.tolist(),
            "links": [{"source": a, "target": b, "bandwidth_bytes_per_s": bandwidth} for (a, b), bandwidth in links],
            "loaded_latency": vars(self.loaded_latency),
            "outstanding_bytes": self.outstanding_bytes,
            "llc_bytes": self.llc_bytes.tolist(),
            "page_bytes": self.page_bytes,
            "page_move_s": self.page_move_s,
            "coherence": [
                [None if np.isnan(ratio) else ratio for ratio in row] for row in self.coherence.ratio.tolist()
            ],
            "sources": dict(self.sources),
        }

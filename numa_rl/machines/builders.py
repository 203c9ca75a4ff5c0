"""The chapter's machines: regular topologies whose every figure follows from the number of hops.

Dimension key: N nodes, L directed links.

References:
    [1] The chapter, section 16.1.1: two sockets, four in a full mesh, eight in a cube, and L_ij by hops.
    [2] The chapter, exercise 3: bandwidth of a memory controller, drawn locally and remotely.
    [3] The chapter, exercise 6: memory of one socket.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from numa_rl.topology import FloatArray, IntArray, Topology, hop_counts

# Where the defaults of `Topology` itself come from, for machines that leave them as they are.
DEFAULT_SOURCES = {
    "loaded_latency": "assumed: the fit to the Intel MLC curve of a two-socket Xeon Platinum 8269CY (rmse 0.019)",
    "outstanding_bytes": "assumed: 16 lines of 64 bytes, the L2 superqueue of an Intel core",
    "llc_bytes": "assumed: 32 MiB per node, the order of a server socket",
    "coherence": "derived: cache-to-cache over idle latency between the sockets of a Xeon Platinum 8269CY (MLC v3.9)",
    "page_bytes": "assumed: the 4 KiB base page of x86-64 Linux",
    "page_move_s": "assumed: 1 us of kernel time per page, the order of Lameter, ACM Queue 2013",
}


@dataclass(frozen=True)
class ChapterFigures:
    """What one node and one link cost in the chapter's examples.

    Attributes:
        local_latency_s: a load from the node's own memory [1].
        one_hop_latency_s: over one link; the chapter's range is 20 to 30 ns [1].
        two_hop_latency_s: over two links; the chapter's range is 40 to 50 ns [1].
        further_hop_latency_s: added by each link after the second.
        memory_bandwidth_bytes_per_s: peak of one node's memory controllers [2].
        local_bandwidth_bytes_per_s: what a node draws from its own memory [2].
        remote_bandwidth_bytes_per_s: what a node draws from another's memory, at any number of hops [2].
        link_bandwidth_bytes_per_s: capacity of a link in each direction.
        cores: cores of one node.
        flops_per_s: peak of one core.
        memory_bytes: memory of one node [3].
    """

    local_latency_s: float = 10e-9
    one_hop_latency_s: float = 25e-9
    two_hop_latency_s: float = 45e-9
    further_hop_latency_s: float = 20e-9
    memory_bandwidth_bytes_per_s: float = 100e9
    local_bandwidth_bytes_per_s: float = 90e9
    remote_bandwidth_bytes_per_s: float = 30e9
    link_bandwidth_bytes_per_s: float = 30e9
    cores: int = 8
    flops_per_s: float = 40e9
    memory_bytes: float = 1e12

    def latency_s(self, hops: IntArray) -> FloatArray:
        """Idle load latency over each number of hops, in the shape of `hops`."""
        beyond_two = self.two_hop_latency_s + (hops - 2) * self.further_hop_latency_s
        near = np.array([self.local_latency_s, self.one_hop_latency_s])
        return np.where(hops < 2, near[np.minimum(hops, 1)], beyond_two)

    def bandwidth_bytes_per_s(self, hops: IntArray) -> FloatArray:
        """What one node draws over each number of hops when nothing else runs, in the shape of `hops`.

        A stream is pipelined, so its slowest link sets its pace, not the number of links: distance costs
        latency, and room on every link of the route.
        """
        return np.where(hops == 0, self.local_bandwidth_bytes_per_s, self.remote_bandwidth_bytes_per_s)


CHAPTER_SOURCES = {
    "cores": "assumed: 8 per node, the chapter gives none",
    "flops_per_s": "assumed: 2.5 GHz x 16 single-precision flop per cycle, the chapter gives none",
    "memory_bytes": "chapter: exercise 6, 1 TB per socket",
    "memory_bandwidth_bytes_per_s": "chapter: exercise 3, 100 GB/s peak",
    "latency_s": "chapter: section 16.1.1, 10 ns local, the middle of 20-30 ns over one hop and of 40-50 ns over two; "
    "assumed: 20 ns more for each further hop",
    "bandwidth_bytes_per_s": "chapter: exercise 3, 90 GB/s local and 30 GB/s remote; assumed: the same at any distance",
    "link_bandwidth_bytes_per_s": "assumed: 30 GB/s each way, so that one link carries exercise 3's remote stream",
}


def from_links(
    name: str,
    num_nodes: int,
    pairs: Iterable[tuple[int, int]],
    figures: ChapterFigures | None = None,
    links_source: str = "given: by the caller",
) -> Topology:
    """A machine of equal nodes and equal links, every figure set by the hops between nodes.

    Args:
        name: how the machine is called in tables.
        num_nodes: number of nodes N.
        pairs: linked nodes, each pair in any order; both directions are made.
        figures: what a node and a link cost; the chapter's when None.
        links_source: where the links come from.

    Raises:
        ValueError: the links leave a node unreachable, or a figure is outside its range.
    """
    chosen = figures or ChapterFigures()
    both_ways = {(a, b) for pair in pairs for a, b in (pair, pair[::-1])}
    links = np.array(sorted(both_ways), dtype=np.int64).reshape(-1, 2)
    hops = hop_counts(links, num_nodes)
    sources = CHAPTER_SOURCES if figures is None else dict.fromkeys(CHAPTER_SOURCES, "given: by the caller's figures")
    return Topology(
        name=name,
        cores=np.full(num_nodes, chosen.cores),
        flops_per_s=np.full(num_nodes, chosen.flops_per_s),
        memory_bytes=np.full(num_nodes, chosen.memory_bytes),
        memory_bandwidth_bytes_per_s=np.full(num_nodes, chosen.memory_bandwidth_bytes_per_s),
        latency_s=chosen.latency_s(hops),
        bandwidth_bytes_per_s=chosen.bandwidth_bytes_per_s(hops),
        links=links,
        link_bandwidth_bytes_per_s=np.full(len(links), chosen.link_bandwidth_bytes_per_s),
        sources={**sources, "links": links_source, **DEFAULT_SOURCES},
    )


def two_socket(figures: ChapterFigures | None = None) -> Topology:
    """Two sockets and one link."""
    return from_links("chapter-2-socket", 2, [(0, 1)], figures, "chapter: section 16.1.1, two sockets")


def four_socket(figures: ChapterFigures | None = None) -> Topology:
    """Four sockets, each linked to the three others."""
    pairs = [(a, b) for a in range(4) for b in range(a)]
    return from_links("chapter-4-socket", 4, pairs, figures, "chapter: section 16.1.1, four sockets in a full mesh")


def eight_socket_cube(figures: ChapterFigures | None = None) -> Topology:
    """Eight sockets at the corners of a cube: three links per node, one for each bit of its number."""
    pairs = [(node, node ^ bit) for node in range(8) for bit in (1, 2, 4)]
    return from_links(
        "chapter-8-socket", 8, pairs, figures, "chapter: section 16.1.1, a cube with three links per node"
    )


def ring(num_nodes: int, figures: ChapterFigures | None = None) -> Topology:
    """Nodes in a circle, each linked to its two neighbours.

    Raises:
        ValueError: fewer than two nodes.
    """
    if num_nodes < 2:
        raise ValueError(f"a ring must have at least 2 nodes, got {num_nodes}.")
    pairs = [(node, (node + 1) % num_nodes) for node in range(num_nodes)]
    return from_links(f"ring-{num_nodes}", num_nodes, pairs, figures, "given: neighbours on a ring")


def mesh(rows: int, columns: int, figures: ChapterFigures | None = None) -> Topology:
    """Nodes on a grid, numbered row by row, each linked to its neighbours above, below and beside it.

    Raises:
        ValueError: no row or no column.
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"a mesh must have at least 1 row and 1 column, got {rows} x {columns}.")
    node = np.arange(rows * columns).reshape(rows, columns)
    beside = zip(node[:, :-1].ravel().tolist(), node[:, 1:].ravel().tolist(), strict=True)
    below = zip(node[:-1].ravel().tolist(), node[1:].ravel().tolist(), strict=True)
    return from_links(
        f"mesh-{rows}x{columns}", rows * columns, [*beside, *below], figures, "given: neighbours on a grid"
    )

"""Machines drawn at random, to train on: a policy that has met enough of them decides on machines it has never seen.

Ranges span the presets' figures and the chapter's, see `RANGES`; where a machine is regular, its figures are too.

Dimension key: N nodes, L directed links.

References:
    [1] J. Tobin et al., "Domain randomization for transferring deep neural networks from simulation to the real
        world", IROS 2017.
    [2] The chapter, section 16.1.1: latency of 10 ns at home and 15 ns more over a link.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, log

import numpy as np

from numa_rl.machines.builders import DEFAULT_SOURCES
from numa_rl.machines.shapes import LinkKind, Shape, draw_shape, with_memory
from numa_rl.topology import FloatArray, LoadedLatency, Topology

MOST_NODES = 64
GIB = 2.0**30
Range = tuple[float, float]

# Chances of what is not drawn for every machine.
CHAPTER_LATENCY, UNEVEN_LINKS, DIFFERENT_NODES, MEMORY_NODES = 0.2, 0.2, 0.15, 0.15
MOST_MEMORY_NODES = 2
LEAST_MEMORY_BYTES = 8 * GIB  # of a node: the suite's largest objects fit


@dataclass(frozen=True)
class Ranges:
    """Lowest and highest value of each figure; drawn evenly, or evenly in its logarithm where that is said.

    Attributes:
        cores: of a node; logarithm.
        flops_per_s: peak of one core; logarithm.
        memory_bandwidth_bytes_per_s: of a node's controllers; logarithm.
        node_share: of that, what one node draws.
        link_share: of that, what a link carries each way, by `LinkKind`.
        route_share: of the narrowest link on a route, what one node draws over it.
        latency_s: at home.
        chapter_latency_s: at home, on machines as fast as the chapter's [2].
        hop_share: of the latency at home, what a link adds, by `LinkKind`.
        memory_bytes: of all nodes together, from scarce to ample for the standard suite; logarithm.
        outstanding_bytes: of a core; logarithm.
        llc_bytes: of a node; logarithm.
        slope: a of the loaded latency.
        knee: c of the loaded latency.
        saturated: the factor that the loaded latency reaches.
        different: of the machine's figures, what a node has where nodes differ.
        memory_node_share: of a node's memory bandwidth, what a node has that is memory alone.
        memory_node_size: of a node's memory, the same.
    """

    cores: Range = (2, 64)
    flops_per_s: Range = (10e9, 200e9)
    memory_bandwidth_bytes_per_s: Range = (10e9, 400e9)
    node_share: Range = (0.75, 1.0)
    link_share: tuple[Range, Range, Range] = ((0.4, 3.0), (0.1, 0.8), (0.1, 0.6))
    route_share: Range = (0.6, 1.0)
    latency_s: Range = (60e-9, 200e-9)
    chapter_latency_s: Range = (8e-9, 15e-9)
    hop_share: tuple[Range, Range, Range] = ((0.05, 0.6), (0.4, 2.0), (1.0, 6.0))
    memory_bytes: Range = (48 * GIB, 8192 * GIB)
    outstanding_bytes: Range = (512.0, 4096.0)
    llc_bytes: Range = (GIB / 256, GIB / 4)
    slope: Range = (0.2, 0.5)
    knee: Range = (0.0, 0.5)
    saturated: Range = (2.5, 4.5)
    different: Range = (0.4, 1.0)
    memory_node_share: Range = (0.15, 0.7)
    memory_node_size: Range = (1.0, 4.0)


RANGES = Ranges()
SOURCES = {
    **{name: text for name, text in DEFAULT_SOURCES.items() if name.startswith(("coherence", "page_"))},
    **dict.fromkeys(
        ("cores", "flops_per_s", "memory_bytes", "memory_bandwidth_bytes_per_s", "loaded_latency"),
        "drawn: at random, within the ranges of machines to train on",
    ),
    **dict.fromkeys(("outstanding_bytes", "llc_bytes"), "drawn: at random, within the ranges of machines to train on"),
    "links": "drawn: a shape at random",
    "link_bandwidth_bytes_per_s": "drawn: a share of the memory's at random",
    "latency_s": "drawn: at home, and for each link of the route",
    "bandwidth_bytes_per_s": "drawn: shares of the memory's and of the narrowest link of the route",
}


def draw_machine(rng: np.random.Generator, *, min_nodes: int = 2, max_nodes: int = 16) -> Topology:
    """A machine at random [1]: a shape of `shapes.KINDS` with figures within `RANGES`.

    Some have nodes that are memory alone, called "+1" in the name, some nodes or links that differ.

    Args:
        rng: what is drawn from; the same state gives the same machine.
        min_nodes: fewest nodes, those of memory alone among them.
        max_nodes: most nodes.

    Raises:
        ValueError: `min_nodes` is below 2, `max_nodes` below it or above `MOST_NODES`.
    """
    if not 2 <= min_nodes <= MOST_NODES:
        raise ValueError(f"min_nodes must be in 2..{MOST_NODES}, got {min_nodes}.")
    if not min_nodes <= max_nodes <= MOST_NODES:
        raise ValueError(f"max_nodes must be in {min_nodes}..{MOST_NODES}, got {max_nodes}.")
    num_memory = int(rng.integers(1, MOST_MEMORY_NODES + 1)) if rng.random() < MEMORY_NODES else 0
    num_memory = min(num_memory, max_nodes - 1)
    base = draw_shape(rng, max(min_nodes - num_memory, 1), max_nodes - num_memory)
    shape = with_memory(base, num_memory, rng)
    name = f"drawn-{shape.name}" if num_memory else f"drawn-{shape.name}-{shape.num_nodes}"
    return _with_pairs(_with_links(_nodes(name, shape, num_memory, rng), shape, rng), rng)


@dataclass(frozen=True)
class _Nodes:
    """The figures of the nodes, shape (N,) each."""

    name: str
    cores: FloatArray
    flops_per_s: FloatArray
    bandwidth_bytes_per_s: FloatArray
    memory_bytes: FloatArray
    llc_bytes: FloatArray


def _nodes(name: str, shape: Shape, num_memory: int, rng: np.random.Generator) -> _Nodes:
    """Nodes that are equal, or differ by chance; the last ones are memory alone."""
    num_nodes = shape.num_nodes
    factors = np.ones((3, num_nodes))
    if rng.random() < DIFFERENT_NODES:
        factors = rng.uniform(*RANGES.different, factors.shape)
    ranges = (RANGES.cores, RANGES.flops_per_s, RANGES.memory_bandwidth_bytes_per_s)
    cores, flops, bandwidth = (factor * _log_uniform(rng, each) for factor, each in zip(factors, ranges, strict=True))
    memory = np.full(num_nodes, max(_log_uniform(rng, RANGES.memory_bytes) / num_nodes, LEAST_MEMORY_BYTES))
    cores = np.clip(np.rint(cores), RANGES.cores[0], RANGES.cores[1])
    if num_memory:
        cores[-num_memory:] = 0.0
        bandwidth[-num_memory:] *= rng.uniform(*RANGES.memory_node_share)
        memory[-num_memory:] *= rng.uniform(*RANGES.memory_node_size)
    llc = np.full(num_nodes, _log_uniform(rng, RANGES.llc_bytes))
    return _Nodes(name, cores, flops, bandwidth, memory, llc)


def _with_links(nodes: _Nodes, shape: Shape, rng: np.random.Generator) -> Topology:
    """The machine with its links, and with latencies from every node to every other over them.

    What a node draws from another is not known yet: it stands at the other's memory bandwidth.
    """
    num_nodes = shape.num_nodes
    kind = np.array([link[2] for link in shape.links], np.int64)
    ends = np.array([link[:2] for link in shape.links], np.int64).reshape(-1, 2)
    local_s = rng.uniform(*(RANGES.chapter_latency_s if rng.random() < CHAPTER_LATENCY else RANGES.latency_s))
    hop_s = local_s * np.array([rng.uniform(*each) for each in RANGES.hop_share])[kind]
    width = np.array([rng.uniform(*each) for each in RANGES.link_share])[kind] * nodes.bandwidth_bytes_per_s.max()
    if shape.is_uneven or rng.random() < UNEVEN_LINKS:
        width *= np.where((rng.random(len(kind)) < 0.5) & (kind != LinkKind.MEMORY), 0.5, 1.0)
    # Both directions of a link are alike: the second half of the links is the first, turned round.
    hop_s, width, links = np.tile(hop_s, 2), np.tile(width, 2), np.concatenate([ends, ends[:, ::-1]])
    latency_s = np.full((num_nodes, num_nodes), local_s)
    latency_s[links[:, 0], links[:, 1]] += hop_s
    machine = Topology(
        name=nodes.name,
        cores=nodes.cores.astype(np.int64),
        flops_per_s=nodes.flops_per_s,
        memory_bytes=nodes.memory_bytes,
        memory_bandwidth_bytes_per_s=nodes.bandwidth_bytes_per_s,
        latency_s=latency_s,
        bandwidth_bytes_per_s=np.tile(nodes.bandwidth_bytes_per_s, (num_nodes, 1)),
        links=links,
        link_bandwidth_bytes_per_s=width,
        llc_bytes=nodes.llc_bytes,
        loaded_latency=LoadedLatency(*(rng.uniform(*each) for each in (RANGES.slope, RANGES.knee, RANGES.saturated))),
        outstanding_bytes=_log_uniform(rng, RANGES.outstanding_bytes),
        sources=SOURCES,
    )
    _, on_route = machine.route_links
    return replace(machine, latency_s=local_s + (on_route @ hop_s).reshape(num_nodes, num_nodes))


def _with_pairs(machine: Topology, rng: np.random.Generator) -> Topology:
    """The machine with what a node draws from another: as memory and the narrowest link of the route allow."""
    reads, _ = machine.route_links
    on_route = np.where(reads > 0, machine.link_bandwidth_bytes_per_s, np.inf)
    narrowest = on_route.min(axis=1, initial=np.inf).reshape(machine.num_nodes, machine.num_nodes)
    from_memory = rng.uniform(*RANGES.node_share) * machine.memory_bandwidth_bytes_per_s
    drawn = np.minimum(from_memory[None, :], rng.uniform(*RANGES.route_share) * narrowest)
    return replace(machine, bandwidth_bytes_per_s=drawn)


def _log_uniform(rng: np.random.Generator, bounds: Range) -> float:
    """A value whose logarithm is uniform between the bounds'."""
    return exp(rng.uniform(log(bounds[0]), log(bounds[1])))

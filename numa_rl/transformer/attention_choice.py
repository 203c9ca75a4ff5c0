"""Which split of attention is fastest on a machine, of all that its nodes allow.

**Time.** Nodes compute at the roofline of all their cores, and read from each other over the machine's links as
`numa_rl.communication.steps.shared_step_s` says. A phase begins when all nodes have ended the one before it. With two
buffers, ring steps overlap [2]: while all work on step r, the keys and values of step r + 1 arrive.

    T = projections + exchange + sum over r of max(work_r, read_r+1) + return

In turn, work and reads add up. What computing and reading draw from one memory controller at the same time is not added
up, and there is work enough for all cores: heads x tiles of queries.

**Which wins.** With all weights on each node, exchange and return of the head split cannot hide, but move less than the
ring of the sequence split as long as H / G < p - 1: (p - 1) / p (2 H + 2 G) heads of each token, against (p - 1) 2 G
where nothing is masked. The ring hides behind arithmetic as soon as a part is long enough: where a node does F flop/s
and reads b bytes/s, from

    L / p >= (G / H) e F / (2 b)

tokens on, see `hiding_tokens`. So short sequences are for the head split, long ones for the sequence split, and hybrid
splits for what lies between, or for fewer heads than nodes.

Dimension key: p nodes, s sequence parts, h head parts.

References:
    [1] The chapter, section 16.3.1: attention split by sequence, by head, and hybrid.
    [2] The chapter, section 16.1.2: double buffering.
    [3] The chapter, section 16.4.3: the roofline.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from numa_rl.ceilings import node_ceilings
from numa_rl.communication.steps import shared_step_s
from numa_rl.grid import place_grid
from numa_rl.idle import service_s
from numa_rl.topology import FloatArray, IntArray, Topology
from numa_rl.transformer.attention import AttentionShape, AttentionSplit, Weights
from numa_rl.transformer.attention_count import SplitCount
from numa_rl.transformer.blocked_attention import DEFAULT_BLOCK_TOKENS
from numa_rl.transformer.divisors import divisors
from numa_rl.transformer.sequence_order import TokenOrder, least_tokens
from numa_rl.wording import counted


@dataclass(frozen=True, eq=False)
class SplitCost:
    """A split on a machine.

    Attributes:
        split: how heads and tokens are cut.
        nodes: the node at each place of the grid, row by row, shape (p,).
        total_bytes: what crosses between nodes in all.
        received_bytes: the most that a node reads from others.
        peak_bytes: the most activations that a node holds at a time.
        peak_bytes_with_weights: the same with the matrices that the node has.
        fits: whether every node has the memory for both.
        imbalance: attention's arithmetic on the busiest node over the mean.
        projection_s: the four projections, on the slowest node.
        work_s: attention in each step of the ring, on the slowest node, shape (s,).
        read_s: exchange, ring steps and return, shape (s + 1,).
        overlaps: whether ring steps are read while nodes work on the one before.
    """

    split: AttentionSplit
    nodes: IntArray
    total_bytes: int
    received_bytes: int
    peak_bytes: int
    peak_bytes_with_weights: int
    fits: bool
    imbalance: float
    projection_s: float
    work_s: FloatArray
    read_s: FloatArray
    overlaps: bool

    @property
    def compute_s(self) -> float:
        """Time of all arithmetic, if nobody waited for reads."""
        return self.projection_s + float(self.work_s.sum())

    @property
    def transfer_s(self) -> float:
        """Time of all reads between nodes, if nothing else were done."""
        return float(self.read_s.sum())

    @property
    def exposed_s(self) -> float:
        """Time in which nodes wait for reads."""
        if not self.overlaps:
            return self.transfer_s
        late_s = np.maximum(self.read_s[1:-1] - self.work_s[:-1], 0.0)
        return float(self.read_s[0] + late_s.sum() + self.read_s[-1])

    @property
    def total_s(self) -> float:
        """Time of the layer's attention."""
        return self.compute_s + self.exposed_s

    def to_dict(self) -> dict[str, Any]:
        """Every figure as JSON values."""
        return {
            "split": self.split.kind,
            "head_parts": self.split.head_parts,
            "sequence_parts": self.split.sequence_parts,
            "order": self.split.order.value,
            "weights": self.split.weights.value,
            "nodes": self.nodes.tolist(),
            "bytes_between_nodes": self.total_bytes,
            "most_received_bytes": self.received_bytes,
            "peak_bytes": self.peak_bytes,
            "peak_bytes_with_weights": self.peak_bytes_with_weights,
            "fits": self.fits,
            "imbalance": self.imbalance,
            "projection_s": self.projection_s,
            "work_s": self.work_s.tolist(),
            "read_s": self.read_s.tolist(),
            "compute_s": self.compute_s,
            "transfer_s": self.transfer_s,
            "exposed_s": self.exposed_s,
            "total_s": self.total_s,
            "overlaps": self.overlaps,
        }


@dataclass(frozen=True, eq=False)
class SplitChoice:
    """All splits over some nodes of a machine, the fastest first; those that do not fit its memory come last.

    Attributes:
        shape: what is attended to.
        costs: of each split, at least one that fits.
    """

    shape: AttentionShape
    costs: tuple[SplitCost, ...]

    @property
    def best(self) -> SplitCost:
        """The fastest that fits."""
        return self.costs[0]

    def of_kind(self, kind: str) -> SplitCost | None:
        """The fastest of the sequence, head or hybrid splits that fit; None where there is none."""
        return next((cost for cost in self.costs if cost.split.kind == kind and cost.fits), None)


def feasible_splits(
    shape: AttentionShape, num_nodes: int, weights: Weights = Weights.WHOLE
) -> Iterator[AttentionSplit]:
    """Every grid of that many nodes that gives each as many heads, in each order of tokens that makes a difference.

    Without a causal mask, or with one sequence part, all orders are the same.
    """
    for head_parts in divisors(num_nodes):
        sequence_parts = num_nodes // head_parts
        if shape.heads % head_parts == 0 and shape.tokens >= num_nodes:
            orders = TokenOrder if shape.causal and sequence_parts > 1 else (TokenOrder.CONTIGUOUS,)
            for order in orders:
                if shape.tokens >= least_tokens(sequence_parts, order):
                    yield AttentionSplit(head_parts, sequence_parts, order, weights)


def split_cost(
    shape: AttentionShape,
    split: AttentionSplit,
    topology: Topology,
    nodes: IntArray | None = None,
    *,
    overlaps: bool = True,
    tile_tokens: int = DEFAULT_BLOCK_TOKENS,
) -> SplitCost:
    """What a split costs on a machine on which nothing else runs.

    Args:
        shape: what is attended to.
        split: how it is cut.
        topology: the machine.
        nodes: the node at each place of the grid, row by row, shape (p,); when None those that `place_grid` finds,
            rows and columns of which are near each other.
        overlaps: whether ring steps are read while nodes work on the one before.
        tile_tokens: queries of a tile of scores: keys and values come from the node's memory once for each tile.

    Raises:
        ValueError: the split does not fit the shape or the machine.
    """
    count = SplitCount(shape, split)
    if nodes is None:
        nodes = place_grid(topology, split.sequence_parts, split.head_parts)
    peak = count.peak_bytes
    sends = count.sends
    source, target = nodes[sends.sender], nodes[sends.receiver]
    read_s = shared_step_s(
        topology,
        split.sequence_parts + 1,
        sends.step,
        source,
        target,
        sends.num_bytes.astype(np.float64),
        topology.latency_s[target, source],
    )
    projection_s, work_s = _compute_s(count, topology, nodes, tile_tokens)
    return SplitCost(
        split=split,
        nodes=nodes,
        total_bytes=count.total_bytes,
        received_bytes=int(count.received_bytes.max()),
        peak_bytes=int(peak.max()),
        peak_bytes_with_weights=int(count.peak_bytes_with_weights.max()),
        fits=bool((count.peak_bytes_with_weights <= topology.memory_bytes[nodes]).all()),
        imbalance=count.imbalance,
        projection_s=projection_s,
        work_s=work_s,
        read_s=read_s,
        overlaps=overlaps,
    )


def _compute_s(count: SplitCount, topology: Topology, nodes: IntArray, tile_tokens: int) -> tuple[float, FloatArray]:
    """Seconds of the projections and of each ring step, shape (s,), on the slowest node."""
    ceilings = [node_ceilings(topology, int(node)) for node in nodes]
    flops_per_s = np.array([ceiling.peak_flops_per_s for ceiling in ceilings])
    s_per_byte = 1.0 / np.array([ceiling.local_bytes_per_s for ceiling in ceilings])
    projection_s = service_s(count.projection_flops, count.projection_memory_bytes, 0.0, 0.0, flops_per_s, s_per_byte)
    step_bytes = count.step_memory_bytes(tile_tokens)
    work_s = service_s(count.step_flops, step_bytes, 0.0, 0.0, flops_per_s[:, None], s_per_byte[:, None])
    return float(projection_s.max()), work_s.max(axis=0)


def best_split(
    shape: AttentionShape,
    topology: Topology,
    num_nodes: int | None = None,
    *,
    weights: Weights = Weights.WHOLE,
    overlaps: bool = True,
    tile_tokens: int = DEFAULT_BLOCK_TOKENS,
    placements: dict[tuple[int, int], IntArray] | None = None,
) -> SplitChoice:
    """All splits over `num_nodes` of a machine's nodes, the fastest first.

    Args:
        shape: what is attended to.
        topology: the machine.
        num_nodes: how many of its nodes with cores take part; all when None.
        weights: what of the weights a node has.
        overlaps: whether ring steps are read while nodes work on the one before.
        tile_tokens: queries of a tile of scores, see `split_cost`.
        placements: the nodes of each grid, by its head and sequence parts; those not there are found and added, to be
            given again for the same machine.

    Raises:
        ValueError: more nodes than there are or tokens can be given to, or no split fits their memory; it says what
            would.
    """
    with_cores = int(np.count_nonzero(topology.cores))
    p = with_cores if num_nodes is None else num_nodes
    if not 1 <= p <= with_cores:
        raise ValueError(f"nodes must be in 1..{with_cores}, those of {topology.name} that have cores, got {p}.")
    if shape.tokens < p:
        raise ValueError(
            f"tokens must be >= {p}, one for each node, got {shape.tokens}; "
            f"at most {counted(shape.tokens, 'node')} would fit."
        )
    if not tile_tokens >= 1:
        raise ValueError(f"tile_tokens must be >= 1, got {tile_tokens}.")
    placements = {} if placements is None else placements
    costs = []
    for split in feasible_splits(shape, p, weights):
        grid = (split.head_parts, split.sequence_parts)
        if grid not in placements:
            placements[grid] = place_grid(topology, split.sequence_parts, split.head_parts)
        costs.append(split_cost(shape, split, topology, placements[grid], overlaps=overlaps, tile_tokens=tile_tokens))
    if not any(cost.fits for cost in costs):
        raise ValueError(_too_large(shape, topology, min(costs, key=lambda cost: cost.peak_bytes_with_weights)))
    return SplitChoice(shape, tuple(sorted(costs, key=lambda cost: (not cost.fits, cost.total_s, cost.total_bytes))))


def _too_large(shape: AttentionShape, topology: Topology, least: SplitCost) -> str:
    """What does not fit, and what would."""
    room = float(topology.memory_bytes[least.nodes].min())
    found = (
        f"no split over {counted(least.split.num_nodes, 'node')} fits: {least.split.name} needs the least, "
        f"{least.peak_bytes_with_weights / 1e9:.4g} GB on a node that has {room / 1e9:.4g} GB"
    )
    if shape.weight_bytes >= room:
        advice = "weights split by heads"
        if shape.heads == 1:
            advice = "weights of fewer bytes or a smaller width"
        elif least.split.gathers:
            advice = "more nodes"
        return f"{found}; all weights alone take {shape.weight_bytes / 1e9:.4g} GB, so only {advice} might do."
    # The sequence split goes with any number of nodes, and what it holds is in proportion to the tokens of a part.
    token_bytes = int(SplitCount(replace(shape, tokens=3, causal=False), AttentionSplit(1, 3)).peak_bytes.max())
    most_tokens = int((room - shape.weight_bytes) // token_bytes)
    if most_tokens == 0:
        return f"{found}; not even a node for each token would do, but a smaller batch would."
    return f"{found}; {-(-shape.tokens // most_tokens)} such nodes would do, split by sequence."


def hiding_tokens(shape: AttentionShape, flops_per_s: float, bytes_per_s: float) -> float:
    """Tokens of a part from which on its ring steps hide behind arithmetic: (G / H) e F / (2 b), or twice as many.

    A step of n tokens a part takes 4 B n^2 H d_k / F to compute, and 2 B n G d_k e / b to read. Under a causal mask
    zigzag and striped parts have half of the arithmetic in every step, and so need twice as many tokens.

    Args:
        shape: what is attended to.
        flops_per_s: of one node, F.
        bytes_per_s: what it reads from its neighbour on the ring, b.
    """
    dense = shape.layer.num_kv_heads / shape.heads * shape.bytes_per_element * flops_per_s / (2.0 * bytes_per_s)
    return 2.0 * dense if shape.causal else dense

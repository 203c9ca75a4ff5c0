"""What the feed-forward part of a transformer sends, holds and takes, for each way to split it over nodes.

The ways, and their bytes in closed form, are those of `ffn_ways.py`; `ffn_run.py` executes them.

Dimension key: n tokens (batch x seq), d width, m inner width, p ranks, one on each node.

References:
    [1] The chapter, section 16.3.2: column-parallel W_1, row-parallel W_2, all-reduce of batch x seq x d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np

from numa_rl.ceilings import Ceilings, node_ceilings
from numa_rl.communication.collectives import require_count
from numa_rl.communication.ring_order import ring_order
from numa_rl.communication.schedules import schedule_s
from numa_rl.roofline import attainable
from numa_rl.topology import Topology
from numa_rl.transformer.ffn_ways import Layout, Way
from numa_rl.transformer.model import BACKWARD_OVER_FORWARD
from numa_rl.wording import cut
from numa_rl.workloads.parameters import require

SEARCHED = 16  # how many times the number of parts is looked at for one that would fit
MOST_RANKS = 2**20
MOST = 10**12  # tokens, width, layers
ELEMENT_BYTES = 0.125, 16  # a bit to two doubles


def require_size(name: str, value: int) -> None:
    """Raise ValueError unless a size is a whole number from 1 to `MOST`."""
    require_count(**{name: value})
    if value > MOST:
        raise ValueError(f"{name} must be at most {MOST}, got {cut(str(value))}.")


@dataclass(frozen=True)
class FeedForward:
    """The sizes of one layer.

    Attributes:
        tokens: that go through at once, batch x seq, n.
        width: of the model, d.
        inner_width: of W_1's product, m.
        bytes_per_element: of weights and activations alike, b.

    Raises:
        ValueError: a size is outside its range.
    """

    tokens: int
    width: int
    inner_width: int
    bytes_per_element: float = 2.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("tokens", "width", "inner_width"):
            require_size(name, getattr(self, name))
        least, most = ELEMENT_BYTES
        require(self, "bytes_per_element", f"in {least}..{most}", lambda value: least <= value <= most)

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of every matrix, by name."""
        n, d, m = self.tokens, self.width, self.inner_width
        return {"X": (n, d), "W_1": (d, m), "X W_1": (n, m), "W_2": (m, d), "Y": (n, d)}

    def num_bytes(self, name: str) -> float:
        """Size of a whole matrix, or of the gradient with respect to it."""
        rows, columns = self.sizes[name.removeprefix("grad ")]
        return rows * columns * self.bytes_per_element

    def piece(self, name: str, layout: Layout, num_ranks: int) -> tuple[int, int]:
        """Rows and columns of a matrix that the rank with most of it has.

        Raises:
            ValueError: a width that does not divide evenly; tokens need not. The message says what would fit.
        """
        rows, columns = self.sizes[name]
        if layout is Layout.COLUMNS:
            require_divisible("inner_width" if name in ("W_1", "X W_1") else "width", columns, num_ranks)
            return rows, columns // num_ranks
        return (-(-rows // num_ranks), columns) if layout is Layout.ROWS else (rows, columns)


def require_divisible(name: str, value: int, parts: int) -> None:
    """Raise ValueError unless `parts` divide a size; the message names the nearest sizes and numbers that would fit."""
    require_count(parts=parts)
    if value % parts:
        multiples = [value // parts * parts, -(-value // parts) * parts]
        fewer = next(number for number in range(parts - 1, 0, -1) if value % number == 0)
        more = [number for number in range(parts + 1, min(SEARCHED * parts, value) + 1) if value % number == 0]
        sizes, numbers = (" or ".join(map(str, fit)) for fit in ([n for n in multiples if n], [fewer, *more[:1]]))
        raise ValueError(
            f"{name} must be divisible by the number of parts ({parts}), got {value}; {sizes} would fit, as would "
            f"{numbers} parts."
        )


@dataclass(frozen=True)
class Cost:
    """What a way costs for equal layers one after another.

    Attributes:
        way: how the weights are cut.
        sent_bytes: by all ranks together.
        memory_bytes: of the rank with most, see `memory_bytes`.
        flops: arithmetic of the rank with most of it.
        compute_s: of the slowest rank.
        communication_s: of the collectives, on the ring; nothing overlaps.
    """

    way: Way
    sent_bytes: float
    memory_bytes: float
    flops: float
    compute_s: float
    communication_s: float

    @property
    def total_s(self) -> float:
        """Computing and communicating, one after the other."""
        return self.compute_s + self.communication_s


def sent_bytes(way: Way, shape: FeedForward, num_ranks: int, *, training: bool = False) -> float:
    """Bytes that all ranks send for a layer: the sum over the way's collectives."""
    return sum(kind.sent_bytes(num_ranks, shape.num_bytes(name)) for kind, name in way.collectives(training=training))


def memory_bytes(way: Way, shape: FeedForward, num_ranks: int, *, layers: int = 1, training: bool = False) -> float:
    """What the rank with most holds.

    Its weights of all layers; X, X W_1 and Y of one layer, as large as they ever lie there; and the weights of a layer
    that it gathers. In training as much again for the gradients of all those weights, and X and X W_1 of every layer;
    neither the optimiser's state, which is cut as the weights are, nor the activations' own gradients. Buffers of the
    collectives are left out.

    Raises:
        ValueError: a width that does not divide evenly.
    """

    def most(name: str, *layouts: Layout) -> int:
        return max(rows * columns for rows, columns in (shape.piece(name, layout, num_ranks) for layout in layouts))

    used = most("W_1", way.first) + most("W_2", way.second)
    kept = most("W_1", Layout.COLUMNS) + most("W_2", Layout.ROWS) if way.gathers_weights else used
    copies, saved = (2, layers) if training else (1, 1)
    weights = copies * (layers * kept + used - kept)
    activations = saved * (most("X", way.held) + most("X W_1", *way.inner)) + most("Y", *way.outer)
    return (weights + activations) * shape.bytes_per_element


def fewest_ranks(shape: FeedForward, room_bytes: float, ways: Sequence[Way], **options: Any) -> int | None:
    """Fewest ranks with which some way fits, or None if none of up to `MOST_RANKS` that divide both widths does.

    Args:
        shape: sizes of a layer.
        room_bytes: memory of a rank.
        ways: those that may be taken.
        **options: `layers` and `training`, as `memory_bytes` takes them.
    """
    widths = gcd(shape.width, shape.inner_width)
    counts = np.arange(1, min(widths, MOST_RANKS) + 1)
    for count in counts[widths % counts == 0].tolist():
        if any(memory_bytes(way, shape, count, **options) <= room_bytes for way in ways):
            return int(count)
    return None


def products(way: Way, shape: FeedForward, num_ranks: int) -> tuple[tuple[float, float], ...]:
    """Arithmetic and memory traffic of each of the two products, at the rank with most: flops and bytes.

    Each factor is read once and each product written once, as blocked kernels do; f is applied where X W_1 is read.
    Backward each has two counterparts, for the gradients of its factors, of the same sizes.

    Raises:
        ValueError: a width that does not divide evenly.
    """
    found = []
    for left, left_layout, right, right_layout in (
        ("X", way.held, "W_1", way.first),
        ("X W_1", way.inner[1], "W_2", way.second),
    ):
        rows, shared = shape.piece(left, left_layout, num_ranks)
        columns = shape.piece(right, right_layout, num_ranks)[1]
        elements = rows * shared + shared * columns + rows * columns
        found.append((2.0 * rows * shared * columns, elements * shape.bytes_per_element))
    return tuple(found)


def cost(
    way: Way,
    shape: FeedForward,
    topology: Topology,
    nodes: Sequence[int] | None = None,
    *,
    layers: int = 1,
    training: bool = False,
) -> Cost:
    """What a way costs on a machine with a rank on each node, in the order of the best ring.

    Products take what the roofline of their node allows: all its cores, and its own memory.

    Args:
        way: how the weights are cut.
        shape: sizes of a layer.
        topology: the machine; nothing else runs on it.
        nodes: one for each rank; those that have cores when None.
        layers: how many follow one another.
        training: whether gradients are computed too, and not the output alone.

    Raises:
        ValueError: a width that does not divide evenly, no layers, no node, one given twice, one that the machine does
            not have, or one without cores.
    """
    require_size("layers", layers)
    order = ring_order(topology, nodes)
    p = len(order)
    each = products(way, shape, p)
    rounds = layers * (1 + BACKWARD_OVER_FORWARD if training else 1)
    return Cost(
        way=way,
        sent_bytes=layers * sent_bytes(way, shape, p, training=training),
        memory_bytes=memory_bytes(way, shape, p, layers=layers, training=training),
        flops=rounds * sum(flops for flops, _ in each),
        compute_s=rounds * max(_roofline_s(each, node_ceilings(topology, node)) for node in order.tolist()),
        communication_s=layers
        * sum(
            schedule_s(kind.schedule(p), topology, order, shape.num_bytes(name))
            for kind, name in way.collectives(training=training)
        ),
    )


def _roofline_s(each: Sequence[tuple[float, float]], node: Ceilings) -> float:
    """Seconds of products, one after another."""
    peak, bandwidth = node.peak_flops_per_s, node.local_bytes_per_s
    return float(sum(flops / attainable(flops / num_bytes, peak, bandwidth) for flops, num_bytes in each))

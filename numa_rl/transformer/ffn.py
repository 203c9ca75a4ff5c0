"""The feed-forward part of a transformer, Y = f(X W_1) W_2, split over the nodes of a machine: six ways to do it.

A way says how each matrix of weights is cut; what has to be sent follows. Of a matrix a rank has all, some columns,
some rows, or a *partial sum*, of which the ranks' total is the matrix. Three products need nothing from elsewhere:

    - all of A with columns of B gives columns of A B;
    - columns of A with rows of B give a partial sum of A B;
    - rows of A, which are tokens, with all of B give rows of A B.

Between products a collective makes what the next one needs of what the last one gave. f acts on each element, so it may
be applied to any piece of X W_1, but **not to a partial sum**: f(a + b) is not f(a) + f(b). Hence W_1 by columns and
W_2 by rows [2] is the cheap way: the first product gives columns of X W_1, complete elements, f is applied to them
where they are, and they are just what the second product needs. Its partial sums of Y are added up in the one
all-reduce of the chapter, batch x seq x d [1]. By rows first, n x m partial sums must be added before f.

Every way ends with Y lying as X lay, so that layers follow one another: whole on every rank, by columns, or by tokens.

Bytes are of the forward pass. Over all p ranks, where n is tokens, d the width, m the inner width, and each element has
b bytes, the ways send

    =================  ===========================================  ==================================
    way                collectives                                  bytes sent
    =================  ===========================================  ==================================
    column-row         all-reduce Y                                 2 (p - 1) n d b
    column-column      all-gather f(X W_1), all-gather Y            (p - 1) n (m + d) b
    row-row            reduce-scatter X W_1, reduce-scatter Y       (p - 1) n (m + d) b
    row-column         all-reduce X W_1                             2 (p - 1) n m b
    gathered weights   all-gather W_1, all-gather W_2               (p - 1) 2 d m b
    replicated         none                                         0
    =================  ===========================================  ==================================

With m = 4 d the first is 2.5 times less than the next two and 4 times less than the fourth. Gathering the weights [3]
beats it from n > m tokens on. Replicas send nothing, hold p times the weights, and read all of them for any token.

Dimension key: n tokens (batch x seq), d width, m inner width, p ranks, one on each node.

References:
    [1] The chapter, section 16.3.2: column-parallel W_1, row-parallel W_2, all-reduce of batch x seq x d.
    [2] M. Shoeybi et al., "Megatron-LM: training multi-billion parameter language models using model parallelism",
        2019, section 3.
    [3] Y. Zhao et al., "PyTorch FSDP: experiences on scaling fully sharded data parallel", 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from numa_rl.ceilings import node_ceilings
from numa_rl.communication.collectives import require_count
from numa_rl.communication.ring_order import ring_order
from numa_rl.communication.schedules import Schedule, ring, schedule_s
from numa_rl.communication.transfers import require_positive
from numa_rl.roofline import attainable
from numa_rl.topology import Topology

SEARCHED = 16  # how many times the number of parts is looked at for one that would fit


class Layout(StrEnum):
    """How a matrix lies on the ranks."""

    WHOLE = "whole"
    COLUMNS = "columns"
    ROWS = "rows"
    PARTIAL = "partial sums"


# What a product needs of its left factor, and what it gives, by how the right one is cut.
FACTOR_AND_PRODUCT = {
    Layout.COLUMNS: (Layout.WHOLE, Layout.COLUMNS),
    Layout.ROWS: (Layout.COLUMNS, Layout.PARTIAL),
    Layout.WHOLE: (Layout.ROWS, Layout.ROWS),
}


class Collective(StrEnum):
    """What all ranks do together: an all-reduce, or one of the halves of it."""

    ALL_REDUCE = "all-reduce"
    ALL_GATHER = "all-gather"
    REDUCE_SCATTER = "reduce-scatter"

    def schedule(self, num_ranks: int) -> Schedule:
        """The ring's sends: those that add are the reduce-scatter, those that copy the all-gather.

        Either half has rank i with block (i + 1) mod p, where it starts or where it ends.
        """
        whole = ring(num_ranks)
        if self is Collective.ALL_REDUCE:
            return whole
        kept = whole.reduce == (self is Collective.REDUCE_SCATTER)
        step = whole.step[kept] - whole.step[kept].min(initial=whole.num_steps)
        sends = (whole.source, whole.target, whole.first_chunk, whole.chunks, whole.reduce)
        return Schedule(num_ranks, whole.num_chunks, step, *(array[kept] for array in sends))

    def sent_bytes(self, num_ranks: int, num_bytes: float) -> float:
        """Bytes that all ranks send together, of a matrix of `num_bytes` in all: 2 (p - 1) S, or half of it."""
        return (2 if self is Collective.ALL_REDUCE else 1) * (num_ranks - 1) * num_bytes


MADE_BY = {
    (Layout.COLUMNS, Layout.WHOLE): Collective.ALL_GATHER,
    (Layout.PARTIAL, Layout.COLUMNS): Collective.REDUCE_SCATTER,
    (Layout.PARTIAL, Layout.WHOLE): Collective.ALL_REDUCE,
}


@dataclass(frozen=True)
class Way:
    """How the weights are cut, from which all else follows.

    Attributes:
        name: how it is called in tables.
        first: layout of W_1 where it is multiplied with.
        second: layout of W_2 there.
        gathers_weights: whether ranks keep only a share of the weights, and gather them for the products [3].
    """

    name: str
    first: Layout
    second: Layout
    gathers_weights: bool = False

    @property
    def held(self) -> Layout:
        """How X lies before, and Y after."""
        return FACTOR_AND_PRODUCT[self.first][0]

    @property
    def inner(self) -> tuple[Layout, Layout]:
        """How X W_1 lies after the first product, and before the second."""
        return FACTOR_AND_PRODUCT[self.first][1], FACTOR_AND_PRODUCT[self.second][0]

    @property
    def outer(self) -> tuple[Layout, Layout]:
        """How Y lies after the second product, and at the end."""
        return FACTOR_AND_PRODUCT[self.second][1], self.held

    @property
    def collectives(self) -> tuple[tuple[Collective, str], ...]:
        """What is done together, and to which matrix: "W_1", "W_2", "X W_1" (before or after f) or "Y"."""
        gathered = [(Collective.ALL_GATHER, "W_1"), (Collective.ALL_GATHER, "W_2")] if self.gathers_weights else []
        made = [(MADE_BY.get(change), name) for change, name in ((self.inner, "X W_1"), (self.outer, "Y"))]
        return (*gathered, *((kind, name) for kind, name in made if kind is not None))


WAYS = (
    Way("column-row", Layout.COLUMNS, Layout.ROWS),
    Way("column-column", Layout.COLUMNS, Layout.COLUMNS),
    Way("row-row", Layout.ROWS, Layout.ROWS),
    Way("row-column", Layout.ROWS, Layout.COLUMNS),
    Way("gathered weights", Layout.WHOLE, Layout.WHOLE, gathers_weights=True),
    Way("replicated", Layout.WHOLE, Layout.WHOLE),
)


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
        require_count(tokens=self.tokens, width=self.width, inner_width=self.inner_width)
        require_positive(bytes_per_element=self.bytes_per_element)

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of every matrix, by name."""
        n, d, m = self.tokens, self.width, self.inner_width
        return {"X": (n, d), "W_1": (d, m), "X W_1": (n, m), "W_2": (m, d), "Y": (n, d)}

    def num_bytes(self, name: str) -> float:
        """Size of a whole matrix."""
        rows, columns = self.sizes[name]
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
        more = [number for number in range(parts + 1, SEARCHED * parts) if value % number == 0]
        sizes, numbers = (" or ".join(map(str, fit)) for fit in ([n for n in multiples if n], [fewer, *more[:1]]))
        raise ValueError(
            f"{name} must be divisible by the number of parts ({parts}), got {value}; {sizes} would fit, as would "
            f"{numbers} parts."
        )


@dataclass(frozen=True)
class Cost:
    """What a way costs for equal layers one after another, forward.

    Attributes:
        way: how the weights are cut.
        sent_bytes: by all ranks together.
        memory_bytes: of the rank with most: its weights of all layers, and of one layer X, X W_1 and Y as large as they
            ever lie there, and the weights that it gathers. Buffers of the collectives are left out.
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


def sent_bytes(way: Way, shape: FeedForward, num_ranks: int) -> float:
    """Bytes that all ranks send for a layer, forward: the sum over the way's collectives."""
    return sum(kind.sent_bytes(num_ranks, shape.num_bytes(name)) for kind, name in way.collectives)


def memory_bytes(way: Way, shape: FeedForward, num_ranks: int, layers: int = 1) -> float:
    """What the rank with most holds, see `Cost`.

    Raises:
        ValueError: a width that does not divide evenly.
    """
    lies = {"X": (way.held,), "X W_1": way.inner, "Y": way.outer}
    elements = sum(
        max(rows * columns for rows, columns in (shape.piece(name, layout, num_ranks) for layout in layouts))
        for name, layouts in lies.items()
    )
    used = _weight_elements(way.first, way.second, shape, num_ranks)
    kept = _weight_elements(Layout.COLUMNS, Layout.ROWS, shape, num_ranks) if way.gathers_weights else used
    return (elements + layers * kept + used - kept) * shape.bytes_per_element


def _weight_elements(first: Layout, second: Layout, shape: FeedForward, num_ranks: int) -> int:
    pieces = shape.piece("W_1", first, num_ranks), shape.piece("W_2", second, num_ranks)
    return sum(rows * columns for rows, columns in pieces)


def products(way: Way, shape: FeedForward, num_ranks: int) -> tuple[tuple[float, float], ...]:
    """Arithmetic and memory traffic of each of the two products, at the rank with most: flops and bytes.

    Each factor is read once and each product written once, as blocked kernels do; f is applied where X W_1 is read.

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


def cost(way: Way, shape: FeedForward, topology: Topology, nodes: Sequence[int] | None = None, layers: int = 1) -> Cost:
    """What a way costs on a machine with a rank on each node, in the order of the best ring.

    Products take what the roofline of their node allows: all its cores, and its own memory.

    Args:
        way: how the weights are cut.
        shape: sizes of a layer.
        topology: the machine; nothing else runs on it.
        nodes: one for each rank; those that have cores when None.
        layers: how many follow one another.

    Raises:
        ValueError: a width that does not divide evenly, no layers, no node, one given twice, one that the machine does
            not have, or one without cores.
    """
    require_count(layers=layers)
    order = ring_order(topology, nodes)
    num_ranks = len(order)
    each = products(way, shape, num_ranks)
    ceilings = [node_ceilings(topology, node) for node in order.tolist()]
    compute_s = max(
        sum(
            flops / attainable(flops / num_bytes, node.peak_flops_per_s, node.local_bytes_per_s)
            for flops, num_bytes in each
        )
        for node in ceilings
    )
    communication_s = sum(
        schedule_s(kind.schedule(num_ranks), topology, order, shape.num_bytes(name)) for kind, name in way.collectives
    )
    return Cost(
        way=way,
        sent_bytes=layers * sent_bytes(way, shape, num_ranks),
        memory_bytes=memory_bytes(way, shape, num_ranks, layers),
        flops=layers * sum(flops for flops, _ in each),
        compute_s=layers * compute_s,
        communication_s=layers * communication_s,
    )

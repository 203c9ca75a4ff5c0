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

Backward the same rule holds, with the weights transposed: W_2^T is cut by columns where W_2 is by rows. What the
gradients of the weights are made of is then where it is needed; but where each rank has tokens of its own, they are
partial sums.

With n tokens, width d, inner width m and b bytes in an element, all p ranks together send

    =================  ===============================  ====================  =======================
    way                collectives forward              bytes forward         bytes with backward
    =================  ===============================  ====================  =======================
    column-row         all-reduce Y                     2 (p - 1) n d b       4 (p - 1) n d b
    column-column      all-gather X W_1 and Y           (p - 1) n (m + d) b   (p - 1) n (2 m + 3 d) b
    row-row            reduce-scatter X W_1 and Y       (p - 1) n (m + d) b   2 (p - 1) n (m + d) b
    row-column         all-reduce X W_1                 2 (p - 1) n m b       4 (p - 1) n m b
    gathered weights   all-gather W_1 and W_2           2 (p - 1) d m b       6 (p - 1) d m b
    replicated         none                             0                     4 (p - 1) d m b
    =================  ===============================  ====================  =======================

With m = 4 d the first sends 2.5 times less forward than the next two, and 4 times less than the fourth. From n > m
tokens on, gathering the weights [3] sends less than it forward, and replicas do in training. Replicas send nothing
forward, but hold p times the weights, and each reads all of them for any token.

Dimension key: n tokens (batch x seq), d width, m inner width, p ranks, one on each node.

References:
    [1] The chapter, section 16.3.2: column-parallel W_1, row-parallel W_2, all-reduce of batch x seq x d.
    [2] M. Shoeybi et al., "Megatron-LM: training multi-billion parameter language models using model parallelism",
        2019, section 3.
    [3] Y. Zhao et al., "PyTorch FSDP: experiences on scaling fully sharded data parallel", 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from numa_rl.communication.schedules import Schedule, ring


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


TRANSPOSED = {Layout.COLUMNS: Layout.ROWS, Layout.ROWS: Layout.COLUMNS, Layout.WHOLE: Layout.WHOLE}


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


# By what collective a matrix gets from how it lies to how it must lie; every other change that occurs sends nothing.
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
    def gradients(self) -> tuple[tuple[Layout, Layout], ...]:
        """How the gradients with respect to Y, X W_1 and X lie when they are made, and how they must lie next."""
        outer, inner = FACTOR_AND_PRODUCT[TRANSPOSED[self.second]], FACTOR_AND_PRODUCT[TRANSPOSED[self.first]]
        return (self.held, outer[0]), (outer[1], inner[0]), (inner[1], self.held)

    def collectives(self, *, training: bool = False) -> tuple[tuple[Collective, str], ...]:
        """What is done together, and to which matrix: "W_1", "X W_1" (before or after f), "grad Y" and the like.

        Args:
            training: whether gradients are computed too, and not the output alone.
        """
        weights = "W_1", "W_2"
        gathered = [(Collective.ALL_GATHER, name) for name in weights if self.gathers_weights]
        changes = [(self.inner, "X W_1"), (self.outer, "Y")]
        if training:
            changes += zip(self.gradients, ("grad Y", "grad X W_1", "grad X"), strict=True)
        made = [(MADE_BY[change], name) for change, name in changes if change in MADE_BY]
        summed = []
        if training and self.first is Layout.WHOLE:  # every rank has gradients of its own tokens
            sums = Collective.REDUCE_SCATTER if self.gathers_weights else Collective.ALL_REDUCE
            summed = [*gathered, *((sums, f"grad {name}") for name in weights)]
        return (*gathered, *made, *summed)


WAYS = (
    Way("column-row", Layout.COLUMNS, Layout.ROWS),
    Way("column-column", Layout.COLUMNS, Layout.COLUMNS),
    Way("row-row", Layout.ROWS, Layout.ROWS),
    Way("row-column", Layout.ROWS, Layout.COLUMNS),
    Way("gathered weights", Layout.WHOLE, Layout.WHOLE, gathers_weights=True),
    Way("replicated", Layout.WHOLE, Layout.WHOLE),
)

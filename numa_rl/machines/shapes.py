"""Shapes of machines: which nodes are linked, and whether a link stays inside a package, for a drawn number of nodes.

References:
    [1] The chapter, section 16.1.1: two sockets, four in a full mesh, eight in a cube.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import combinations
from math import isqrt

import numpy as np

from numa_rl.machines.builders import eight_socket_cube, mesh, ring
from numa_rl.topology import Topology

MOST_MESHED = 8  # nodes that are all linked to each other: links grow with the square
Pair = tuple[int, int]


class LinkKind(IntEnum):
    """What a link leads through."""

    INSIDE = 0  # a package
    BETWEEN = 1  # packages, or sockets
    MEMORY = 2  # to a node that is memory alone


@dataclass(frozen=True)
class Shape:
    """Nodes and the links between them.

    Attributes:
        name: what it is called.
        num_nodes: N.
        links: linked nodes, each pair once, and the link's kind.
        is_uneven: whether its links are of different widths.
    """

    name: str
    num_nodes: int
    links: tuple[tuple[int, int, LinkKind], ...]
    is_uneven: bool = False


@dataclass(frozen=True)
class ShapeKind:
    """A shape for any number of nodes that it exists for.

    Attributes:
        name: what it is called.
        exists: whether there is one of so many nodes.
        links: draws its links; regular shapes draw nothing.
        is_uneven: whether its links are of different widths.
    """

    name: str
    exists: Callable[[int], bool]
    links: Callable[[int, np.random.Generator], Iterable[tuple[int, int, LinkKind]]]
    is_uneven: bool = False


def draw_shape(rng: np.random.Generator, min_nodes: int, max_nodes: int) -> Shape:
    """A shape: its kind with equal chances, then its number of nodes, among those that exist.

    Args:
        rng: what is drawn from.
        min_nodes: fewest nodes, 1 or more.
        max_nodes: most nodes.
    """
    sizes = {kind: [n for n in range(min_nodes, max_nodes + 1) if kind.exists(n)] for kind in KINDS}
    known = [kind for kind in KINDS if sizes[kind]]
    kind = known[rng.integers(len(known))]
    num_nodes = sizes[kind][rng.integers(len(sizes[kind]))]
    return Shape(kind.name, num_nodes, tuple(kind.links(num_nodes, rng)), kind.is_uneven)


def with_memory(shape: Shape, num_nodes: int, rng: np.random.Generator) -> Shape:
    """The shape with so many more nodes that are memory alone, the last ones, each linked to a drawn node."""
    if not num_nodes:
        return shape
    hosts = rng.integers(shape.num_nodes, size=num_nodes)
    added = [(int(host), shape.num_nodes + number, LinkKind.MEMORY) for number, host in enumerate(hosts)]
    name = f"{shape.name}-{shape.num_nodes}+{num_nodes}"
    return Shape(name, shape.num_nodes + num_nodes, (*shape.links, *added), shape.is_uneven)


def _between(pairs: Iterable[Pair]) -> Iterator[tuple[int, int, LinkKind]]:
    return ((a, b, LinkKind.BETWEEN) for a, b in pairs)


def _links_of(machine: Topology) -> Iterator[Pair]:
    """Linked nodes of a machine, each pair once."""
    return ((int(a), int(b)) for a, b in machine.links if a < b)


def _rows(num_nodes: int) -> int:
    """Rows of the grid of so many nodes that is nearest to a square; 1 where there is only a line."""
    return max(rows for rows in range(1, isqrt(num_nodes) + 1) if num_nodes % rows == 0)


def _grid(num_nodes: int, rng: np.random.Generator) -> Iterator[tuple[int, int, LinkKind]]:
    rows = _rows(num_nodes)
    return _between(_links_of(mesh(rows, num_nodes // rows)))


def _packages(num_packages: int, num_dies: int) -> Iterator[tuple[int, int, LinkKind]]:
    """The links inside packages, whose dies are all linked; die i of package p is node p x dies + i."""
    for first in range(0, num_packages * num_dies, num_dies):
        yield from ((first + a, first + b, LinkKind.INSIDE) for a, b in combinations(range(num_dies), 2))


def _two_packages(num_nodes: int, rng: np.random.Generator) -> Iterator[tuple[int, int, LinkKind]]:
    """Two packages, of which one die, several or all have a link to the die of the same number in the other."""
    num_dies = num_nodes // 2
    yield from _packages(2, num_dies)
    linked = rng.permutation(num_dies)[: rng.integers(1, num_dies + 1)]
    yield from _between((int(die), num_dies + int(die)) for die in sorted(linked))


def _splits(num_nodes: int) -> list[int]:
    """In how many packages of 2 or more dies, three packages or more, so many nodes can be."""
    return [
        packages
        for packages in range(3, num_nodes // 2 + 1)
        if num_nodes % packages == 0 and num_nodes // packages <= MOST_MESHED
    ]


def _two_level(num_nodes: int, rng: np.random.Generator) -> Iterator[tuple[int, int, LinkKind]]:
    """Packages on a ring or all linked, each link from another die where there are as many."""
    choices = _splits(num_nodes)
    num_packages = choices[rng.integers(len(choices))]
    num_dies = num_nodes // num_packages
    yield from _packages(num_packages, num_dies)
    all_linked = num_packages <= MOST_MESHED and rng.random() < 0.5
    pairs = combinations(range(num_packages), 2) if all_linked else _links_of(ring(num_packages))
    yield from _between((a * num_dies + b % num_dies, b * num_dies + a % num_dies) for a, b in pairs)


def _irregular(num_nodes: int, rng: np.random.Generator) -> Iterator[tuple[int, int, LinkKind]]:
    """A random tree with random links besides, up to one for every node."""
    tree = {(int(rng.integers(node)), node) for node in range(1, num_nodes)}
    others = [pair for pair in combinations(range(num_nodes), 2) if pair not in tree]
    number = min(int(rng.integers(num_nodes + 1)), len(others))
    added = [others[index] for index in rng.permutation(len(others))[:number]]
    return _between(sorted([*tree, *added]))


KINDS = (
    ShapeKind("single", lambda n: n == 1, lambda n, rng: ()),
    ShapeKind("pair", lambda n: n == 2, lambda n, rng: _between([(0, 1)])),
    ShapeKind("full-mesh", lambda n: 3 <= n <= MOST_MESHED, lambda n, rng: _between(combinations(range(n), 2))),
    ShapeKind("ring", lambda n: n >= 4, lambda n, rng: _between(_links_of(ring(n)))),
    ShapeKind("mesh", lambda n: n >= 6 and _rows(n) > 1, _grid),
    ShapeKind("cube", lambda n: n == 8, lambda n, rng: _between(_links_of(eight_socket_cube()))),
    ShapeKind("two-packages", lambda n: n % 2 == 0 and 4 <= n <= 2 * MOST_MESHED, _two_packages),
    ShapeKind("two-level", lambda n: bool(_splits(n)), _two_level),
    ShapeKind("irregular", lambda n: n >= 3, _irregular, is_uneven=True),
)

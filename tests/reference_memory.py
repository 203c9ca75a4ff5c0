"""Where the oracle keeps its objects: whole on a node, split over nodes by page, or as copies. Plain Python too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from numa_rl.coherence.protocol import LineState
from numa_rl.topology import Topology


@dataclass
class Thing:
    """An object of the workload.

    Attributes:
        obj: its number.
        node: where it lives, or most of its pages, or its first copy; None while it does not.
        size: in bytes.
        ready_s: when it has been written.
        weights: how its pages are dealt out; empty while they are not.
        copies: nodes with a copy, of an object that is only read; empty for any other.
        accessed_s: when it was last accessed.
        holder: the node whose cache answers for its lines.
        state: what the lines are in at the holder.
        sharer: with lines in F, the holder before.
        passed: what had passed through the holder's cache when it last touched them.
        touched: bytes it then touched.
    """

    obj: int
    node: int | None
    size: float
    ready_s: float
    weights: tuple[int, ...] = ()
    copies: list[int] = field(default_factory=list)
    accessed_s: float = 0.0
    holder: int | None = None
    state: LineState = LineState.I
    sharer: int | None = None
    passed: float = 0.0
    touched: float = 0.0


def dealt(weights: Sequence[int], size: float, page_bytes: int, obj: int) -> dict[int, float]:
    """Bytes by node when whole pages are dealt out in proportion to the weights, rounded down node after node.

    Object `obj` begins with node `obj`, or that modulo the number of nodes.
    """
    pages, total = math.ceil(size / page_bytes), sum(weights)
    order = [(obj + k) % len(weights) for k in range(len(weights))]
    ends = [min(size, pages * sum(weights[n] for n in order[: k + 1]) // total * page_bytes) for k in range(len(order))]
    return {n: end - start for n, start, end in zip(order, [0.0, *ends], ends, strict=False) if weights[n]}


class Memory:
    """What is in use of every node's memory, and by what.

    Attributes:
        used: bytes by node.
        things: every object.
    """

    def __init__(self, topology: Topology, things: list[Thing]) -> None:
        """Nothing is in use."""
        self.topology = topology
        self.used = [0.0] * topology.num_nodes
        self.things = things

    def held(self, thing: Thing) -> dict[int, float]:
        """Bytes that an object occupies, by node."""
        if thing.node is None:
            return {}
        if thing.weights:
            return dealt(thing.weights, thing.size, self.topology.page_bytes, thing.obj)
        return dict.fromkeys(thing.copies or [thing.node], thing.size)

    def shares(self, thing: Thing) -> dict[int, float]:
        """Share of a split object on each node."""
        assert thing.node is not None
        return {n: held / thing.size for n, held in self.held(thing).items()} if thing.size else {thing.node: 1.0}

    def spare(self, node: int) -> float:
        """Bytes of copies that could be dropped."""
        return sum(thing.size for thing in self.things if node in thing.copies and len(thing.copies) > 1)

    def has_room(self, thing: Thing, node: int, size: float) -> bool:
        """Whether an object can be there; what it occupies there itself is free, and so are copies to spare."""
        if node in thing.copies and len(thing.copies) > 1:
            return True
        own = self.held(thing).get(node, 0.0)
        return self.used[node] - self.spare(node) - own + size <= float(self.topology.memory_bytes[node])

    def page_room(self, thing: Thing, weights: Sequence[int], size: float) -> tuple[int, ...]:
        """The weights without those of nodes that have no room for their share; empty when none is left."""
        left, own = list(weights), self.held(thing)
        while any(left):
            wanted = dealt(left, size, self.topology.page_bytes, thing.obj)
            full = [
                n
                for n, part in wanted.items()
                if self.used[n] - own.get(n, 0.0) + part > float(self.topology.memory_bytes[n])
            ]
            if not full:
                return tuple(left)
            left = [0 if n in full else weight for n, weight in enumerate(left)]
        return ()

    def free(self, thing: Thing) -> None:
        """Give an object's memory back."""
        for node, part in self.held(thing).items():
            self.used[node] -= part
        thing.weights, thing.copies = (), []

    def put(self, thing: Thing, node: int, size: float, weights: tuple[int, ...], read_only: bool) -> None:
        """An object is now whole on `node`, or its pages are dealt out by `weights`."""
        self.free(thing)
        thing.node, thing.size, thing.weights = node, size, weights
        thing.copies = [node] if read_only and not weights else []
        for where, part in self.held(thing).items():
            self.used[where] += part
        self.make_room(node, thing)

    def copy(self, thing: Thing, node: int) -> None:
        """Another copy of an object that is only read."""
        thing.copies = sorted([*thing.copies, node])
        thing.node = thing.copies[0]
        self.used[node] += thing.size
        self.make_room(node, thing)

    def make_room(self, node: int, kept: Thing) -> None:
        """Drop copies, those of the object used least recently first, until what is there fits."""
        while self.used[node] > float(self.topology.memory_bytes[node]):
            spare = [thing for thing in self.things if thing is not kept and node in thing.copies]
            spare = [thing for thing in spare if len(thing.copies) > 1]
            if not spare:
                return
            oldest = min(spare, key=lambda thing: thing.accessed_s)
            oldest.copies.remove(node)
            oldest.node = oldest.copies[0]
            self.used[node] -= oldest.size
            if len(oldest.copies) == 1:
                oldest.touched = 0.0

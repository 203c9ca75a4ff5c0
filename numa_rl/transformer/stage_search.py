"""The best assignment of layers to stages and of stages to nodes, found exactly.

What is best is told in `stage_assignment.py`. Let F(T) be the least T_comm_total of all assignments within the limits
whose stages take at most T each.

**T.** T_compute_max is the time of some run of layers on some node, so the best cost is the least T + F(T) over these
times. F never rises with T. Between two of them, T1 < T2, no cost is below that of the next time after T1 plus F(T2);
where that is no better than the best so far, nothing between needs a look. Halving what is left finds the minimum.

**F(T).** By dynamic programming over (layers placed, nodes used, node of the last stage): what follows depends on
nothing else, as the next message is between that node and the next, and the next stage's place in the pipeline is the
number of nodes used. This leaves one thing out, that several borders may share a link. So the search for F(T) is
best-first over partial assignments that keep the limit of every link, with the dynamic programme's cost to go as its
estimate. This never exceeds the true cost to go, so the first complete assignment is the best [2]. Where the dynamic
programme's own solution keeps the limits, only its K steps are looked at.

Dimension key: n layers, K stages, N nodes with cores, L directed links.

References:
    [1] The chapter, section 16.3.4.
    [2] P. E. Hart, N. J. Nilsson, B. Raphael, "A formal basis for the heuristic determination of minimum cost paths",
        IEEE Transactions on Systems Science and Cybernetics 4(2), 1968: A*.
    [3] M. Held, R. M. Karp, "A dynamic programming approach to sequencing problems", 1962: subsets of places.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from numa_rl.topology import FloatArray, IntArray, Topology
from numa_rl.transformer.stage_assignment import (
    Layers,
    Live,
    StageAssignment,
    assignment_costs,
    border_links,
    border_s,
    least_memory_bytes,
    node_flops_per_s,
    stage_sums,
    stages_fit,
)

MOST_STATES = 2**25  # 2^N N (n + 1): 8 bytes each, and seconds to go through
MOST_LAYERS = 1000
MOST_PARTIAL = 20_000  # partial assignments looked at for one T


def assign_stages(
    topology: Topology,
    layers: Layers,
    num_stages: int,
    *,
    live: Live = np.ones,
    link_s: float | None = None,
) -> StageAssignment:
    """The assignment of least T_compute_max + T_comm_total within the limits [1].

    Exact. 96 layers take about a second on 8 nodes and ten on 12; 24 layers on 16 nodes take most of a minute. What is
    larger than `MOST_STATES` is an error.

    Args:
        topology: the machine. A stage runs on a node with cores, and has it for itself.
        layers: of the model.
        num_stages: K.
        live: micro-batches whose activations each stage keeps, of so many stages; one each by default.
        link_s: time in which what one micro-batch sends over a link must pass; the least T_compute_max that memory
            allows when None, infinity for no limit.

    Raises:
        ValueError: more stages than layers or nodes, a model that does not fit, links that are too slow, or a search
            that is too large; the message says what would do.
    """
    problem = _Problem.of(topology, layers, num_stages, live)
    free = problem.with_links(math.inf)
    start = free.least_pace()
    if start is None:
        raise ValueError(f"{num_stages} stages do not fit the memory of {topology.name}: {_would_fit(problem)}.")
    if link_s is None:
        link_s = float(free.paces[start])
    elif not link_s > 0:
        raise ValueError(f"link_s must be > 0, got {link_s}.")
    limited = problem.with_links(link_s)
    start = limited.least_pace(start)
    if start is None:
        best = free.cheapest_at(math.inf)
        assert best is not None
        busiest = (best.link_bytes / topology.link_bandwidth_bytes_per_s).max()
        raise ValueError(
            f"links of {topology.name} are too slow: what a micro-batch sends over each must pass in {link_s:.4g} s, "
            f"link_s; {_rounded_up(busiest)} s would do, or fewer stages."
        )
    return limited.best_from(start)


@dataclass(frozen=True, eq=False)
class _Problem:
    """What is to be assigned.

    Attributes:
        topology: the machine.
        layers: of the model.
        live: micro-batches that stages keep.
        num_stages: K.
        nodes: those with cores, shape (N,).
        link_limit_bytes: what one micro-batch may send over each link, shape (L,).
    """

    topology: Topology
    layers: Layers
    live: Live
    num_stages: int
    nodes: IntArray
    link_limit_bytes: FloatArray

    @classmethod
    def of(cls, topology: Topology, layers: Layers, num_stages: int, live: Live) -> _Problem:
        """Without a limit on links; raises ValueError where the counts do not allow it."""
        n, nodes = len(layers), np.flatnonzero(topology.cores)
        most = min(n, len(nodes))
        if not (1 <= num_stages <= most and num_stages % 1 == 0):
            raise ValueError(
                f"num_stages must be a whole number in 1..{most}: a stage needs one of the model's {n} layers and one "
                f"of the {len(nodes)} nodes of {topology.name} with cores; got {num_stages}."
            )
        states = 2 ** len(nodes) * len(nodes) * (n + 1)
        if states > MOST_STATES or n > MOST_LAYERS:
            raise ValueError(
                f"the search takes at most {MOST_LAYERS} layers, and 2^N N (n + 1) <= {MOST_STATES} states for n "
                f"layers on N nodes; got {n} layers on {len(nodes)} nodes, {states} states. Join layers, or leave out "
                "nodes."
            )
        return cls(topology, layers, live, int(num_stages), nodes, np.full(topology.num_links, np.inf))

    def with_links(self, link_s: float) -> _Problem:
        """The same where what a micro-batch sends over each link must pass in this time."""
        limit = self.topology.link_bandwidth_bytes_per_s * link_s
        return _Problem(self.topology, self.layers, self.live, self.num_stages, self.nodes, limit)

    def with_stages(self, num_stages: int) -> _Problem:
        """The same in another number of stages."""
        return _Problem(self.topology, self.layers, self.live, num_stages, self.nodes, self.link_limit_bytes)

    @cached_property
    def seconds(self) -> FloatArray:
        """Of a stage of layers i to j - 1 on each node, shape (N, n + 1, n + 1); infinite where there is none."""
        flops = stage_sums(self.layers.flops)
        some = np.triu(np.ones_like(flops, bool), 1)
        return np.where(some, flops, np.inf) / node_flops_per_s(self.topology)[self.nodes, None, None]

    @cached_property
    def paces(self) -> FloatArray:
        """What T_compute_max can be, rising."""
        some = np.unique(self.seconds)
        return some[np.isfinite(some)]

    @cached_property
    def memory_reach(self) -> IntArray:
        """First layer after the longest stage k from layer i on that fits each node, shape (K, N, n + 1)."""
        parameters, activations = stage_sums(self.layers.parameter_bytes), stage_sums(self.layers.activation_bytes)
        room = self.topology.memory_bytes[self.nodes]
        kept = np.broadcast_to(np.asarray(self.live(self.num_stages), np.float64), self.num_stages)
        fits = [_reach((parameters + each * activations)[None] <= room[:, None, None]) for each in kept]
        return np.stack(fits)

    @cached_property
    def passes(self) -> IntArray:
        """How often a border's bytes pass each link, shape (N, N, L)."""
        return border_links(self.topology)[np.ix_(self.nodes, self.nodes)]

    @cached_property
    def comm_s(self) -> FloatArray:
        """Of the border before layer i between two nodes, shape (N, N, n + 1); infinite where it alone is too much."""
        size = self.layers.border_bytes
        seconds = border_s(self.topology, size)[np.ix_(np.arange(len(size)), self.nodes, self.nodes)]
        for border, num_bytes in enumerate(size):
            seconds[border, (num_bytes * self.passes > self.link_limit_bytes).any(axis=2)] = np.inf
        return np.pad(seconds, ((1, 1), (0, 0), (0, 0))).transpose(1, 2, 0)

    def reach(self, most_s: float) -> IntArray:
        """As `memory_reach`, where no stage may take longer than this."""
        return np.minimum(self.memory_reach, _reach(self.seconds <= most_s))

    def least_pace(self, first: int = 0) -> int | None:
        """Index, from `first` on, of the least of `paces` at which there is an assignment; None if there is none."""
        low, high = first, len(self.paces) - 1
        if self.cheapest_at(self.paces[high]) is None:
            return None
        while low < high:
            middle = (low + high) // 2
            if self.cheapest_at(self.paces[middle]) is None:
                low = middle + 1
            else:
                high = middle
        return low

    def best_from(self, first: int) -> StageAssignment:
        """The best assignment, where `first` is the least pace at which there is one."""
        last = len(self.paces) - 1
        found = {index: self._surely_cheapest_at(index) for index in (first, last)}
        best = min(found.values(), key=lambda each: each.cost_s)
        between = [(first, last)]
        while between:
            low, high = between.pop()
            if high - low > 1 and self.paces[low + 1] + found[high].comm_total_s < best.cost_s:
                middle = (low + high) // 2
                found[middle] = self._surely_cheapest_at(middle)
                best = min(best, found[middle], key=lambda each: each.cost_s)
                between += [(middle, high), (low, middle)]
        return best

    def _surely_cheapest_at(self, index: int) -> StageAssignment:
        """As `cheapest_at`, of a pace at which there is one."""
        found = self.cheapest_at(self.paces[index])
        assert found is not None
        return found

    def cheapest_at(self, most_s: float) -> StageAssignment | None:
        """The assignment of least T_comm_total whose stages take at most this time; None if there is none."""
        reach = self.reach(most_s)
        to_go = self._cost_to_go(reach)
        heap = [*self._first_stages(reach, to_go)]
        heapq.heapify(heap)
        looked_at: dict[tuple[int, int, int], list[FloatArray]] = {}
        for _ in range(MOST_PARTIAL):
            if not heap:
                return None
            partial = heapq.heappop(heap)
            if partial.end == len(self.layers):
                bounds, nodes = partial.stages()
                live = self.live(self.num_stages)
                return assignment_costs(self.topology, self.layers, bounds, self.nodes[nodes], live)
            same = looked_at.setdefault((partial.end, partial.used, partial.node), [])
            if not any((sent <= partial.link_bytes).all() for sent in same):
                same.append(partial.link_bytes)
                for further in self._next_stages(partial, reach, to_go):
                    heapq.heappush(heap, further)
        raise ValueError(
            f"routes of {self.topology.name} share links so much that {MOST_PARTIAL} partial assignments hold none "
            "within the limit of links; take fewer stages, or a longer link_s."
        )

    def _first_stages(self, reach: IntArray, to_go: FloatArray) -> Iterator[_Partial]:
        sent = np.zeros(self.topology.num_links)
        for node in range(len(self.nodes)):
            used = 1 << node
            for end in range(1, reach[0, node, 0] + 1):
                if to_go[used, node, end] < np.inf:
                    yield _Partial(float(to_go[used, node, end]), 1, end, node, used, 0.0, sent, None)

    def _next_stages(self, partial: _Partial, reach: IntArray, to_go: FloatArray) -> Iterator[_Partial]:
        """Each stage that may follow, within the limits."""
        begin, stage = partial.end, partial.num_stages
        border_bytes = self.layers.border_bytes[begin - 1]
        for node in range(len(self.nodes)):
            used = partial.used | 1 << node
            sent = partial.link_bytes + border_bytes * self.passes[partial.node, node]
            if used == partial.used or (sent > self.link_limit_bytes).any():
                continue
            comm_s = partial.comm_s + float(self.comm_s[partial.node, node, begin])
            for end in range(begin + 1, reach[stage, node, begin] + 1):
                least_s = comm_s + float(to_go[used, node, end])
                if least_s < np.inf:
                    yield _Partial(least_s, stage + 1, end, node, used, comm_s, sent, partial)

    def _cost_to_go(self, reach: IntArray) -> FloatArray:
        """Least T_comm of what is left, if borders never share links, shape (2^N, N, n + 1) at [used, last node, end].

        `used` has a bit for each node. Entries of a last node that is not among those used mean nothing.
        """
        count, ends = len(self.nodes), len(self.layers) + 1
        to_go = np.full((2**count, count, ends), np.inf)
        sets = np.arange(2**count)
        sizes = np.bitwise_count(sets)
        to_go[sizes == self.num_stages, :, -1] = 0.0
        for size in range(self.num_stages - 1, 0, -1):
            for node in range(count):
                before = sets[(sizes == size) & (sets >> node & 1 == 0)]
                rest = _least_within(to_go[before | 1 << node, node], reach[size, node])
                with_node = self.comm_s[:, node][None] + rest[:, None]
                to_go[before] = np.minimum(to_go[before], with_node)
        return to_go


@dataclass(frozen=True, eq=False)
class _Partial:
    """Stages so far.

    Attributes:
        least_s: T_comm_total at least.
        num_stages: how many.
        end: layers placed.
        node: of the last stage.
        used: nodes used, a bit for each.
        comm_s: messages so far.
        link_bytes: sent over each link so far, shape (L,).
        before: the same without the last stage.
    """

    least_s: float
    num_stages: int
    end: int
    node: int
    used: int
    comm_s: float
    link_bytes: npt.NDArray[np.float64]
    before: _Partial | None

    def __lt__(self, other: _Partial) -> bool:
        """Whether it is to be looked at first: it can come to less, or to as much and has more stages."""
        return (self.least_s, -self.num_stages, self.node) < (other.least_s, -other.num_stages, other.node)

    def stages(self) -> tuple[list[int], list[int]]:
        """Bounds and nodes."""
        bounds, nodes = ([0], []) if self.before is None else self.before.stages()
        return [*bounds, self.end], [*nodes, self.node]


def _reach(fits: npt.NDArray[np.bool_]) -> IntArray:
    """Largest j > i with fits[..., i, j], or i; what fits up to j fits up to any j before it."""
    ends = fits.shape[-1]
    return np.asarray(np.arange(ends) + (fits & np.triu(np.ones((ends, ends), bool), 1)).sum(axis=-1))


def _least_within(values: FloatArray, reach: IntArray) -> FloatArray:
    """Least of values[..., i + 1 : reach[i] + 1] for each i, infinite where that is empty, shape as `values`.

    From the minima of all runs of 1, 2, 4, ... values: two of these, which may overlap, cover any run.
    """
    ends = values.shape[-1]
    length = reach - np.arange(ends)
    least, run = np.full_like(values, np.inf), 1
    while run < ends:
        here = np.flatnonzero((length >= run) & (length < 2 * run))
        least[..., here] = np.minimum(values[..., here + 1], values[..., reach[here] - run + 1])
        values = np.minimum(values, np.pad(values[..., run:], ((0, 0), (0, run)), constant_values=np.inf))
        run *= 2
    return least


def _would_fit(problem: _Problem) -> str:
    """What to do where memory is too small."""
    layers, live, room = problem.layers, problem.live, problem.topology.memory_bytes[problem.nodes]
    most = min(len(layers), len(problem.nodes))
    for count in range(1, most + 1):
        if problem.with_stages(count).cheapest_at(math.inf) is not None:
            return f"{count} would fit"
    least = least_memory_bytes(layers, np.broadcast_to(live(problem.num_stages), problem.num_stages))
    needs = f"on equal nodes each would need {_size(least)}, and the largest has {_size(room.max())}"
    for count in range(1, len(layers) + 1):
        if stages_fit(layers, np.broadcast_to(live(count), count), room.max()):
            return f"{needs}; {count} stages on as many nodes like that would fit"
    alone = layers.parameter_bytes + np.min(live(problem.num_stages)) * layers.activation_bytes
    largest = int(alone.argmax())
    return f"{needs}; no number of such nodes would do: layer {largest} alone needs {_size(alone[largest])} at least"


def _rounded_up(value: float) -> str:
    """Four digits that are not below the value."""
    text = f"{value:.4g}"
    return text if float(text) >= value else f"{value * 1.001:.4g}"


def _size(num_bytes: float) -> str:
    unit, name = next((pair for pair in ((1e12, "TB"), (1e9, "GB")) if num_bytes >= pair[0]), (1.0, "B"))
    return f"{num_bytes / unit:.4g} {name}"

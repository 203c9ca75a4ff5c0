"""The simulator's oracle: one machine, one decision at a time, in plain Python floats, dicts and lists.

Written from the model's description and not from the kernel. It is slow, and nothing in it is clever.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from reference_memory import Memory, Thing, dealt
from reference_streams import InFlight, Task

from numa_rl.coherence.protocol import LineState
from numa_rl.topology import Topology
from numa_rl.workloads.workload import Workload


@dataclass
class Decision:
    """What one decision led to: the fields of the simulator's `Outcome`."""

    exec_s: float = 0.0
    comm_s: float = 0.0
    wait_s: float = 0.0
    migration_s: float = 0.0
    coherence_s: float = 0.0
    imbalance: float = 0.0
    task_node: int = -1
    data_node: int = -1
    migrated: bool = False
    replicated: bool = False
    fell_back: bool = False
    out_of_memory: bool = False
    local_bytes: float = 0.0
    remote_bytes: float = 0.0


def routes(topology: Topology) -> dict[tuple[int, int], list[int]]:
    """Nodes on the route of every pair: fewest hops and, among those, least summed latency."""
    n = topology.num_nodes
    best: dict[tuple[int, int], tuple[int, float, list[int]]] = {(i, i): (0, 0.0, [i]) for i in range(n)}
    for _ in range(n):
        for i in range(n):
            for a, z in topology.links.tolist():
                if (i, a) in best:
                    hops, latency, nodes = best[i, a]
                    longer = (hops + 1, latency + float(topology.latency_s[a, z]), [*nodes, z])
                    if (i, z) not in best or longer[:2] < best[i, z][:2]:
                        best[i, z] = longer
    return {pair: nodes for pair, (_, _, nodes) in best.items()}


class Reference:
    """One episode on one machine.

    Attributes:
        now_s: the time.
        traffic: recent bytes by (initiator, target).
        controller_bytes: recent bytes by node.
        link_bytes: recent bytes by directed link (source, target).
        core_free_s: for each node, when each of its cores is free.
        things: every object.
        memory: what is in use, and by what.
        passed: bytes that have passed through each node's cache.
        moved: all bytes (read, written) by (initiator, target).
        in_flight: what every core moves now.
    """

    def __init__(self, topology: Topology, workload: Workload, episode: int, window_s: float) -> None:
        """Put an idle, empty machine at the first task's arrival."""
        self.topology = topology
        self.workload = workload
        self.episode = episode
        self.window_s = window_s
        self.num_nodes = topology.num_nodes
        self.routes = routes(topology)
        self.task = 0
        self.now_s = float(workload.arrival_s[episode, 0])
        self.traffic = {(i, d): 0.0 for i in range(self.num_nodes) for d in range(self.num_nodes)}
        self.controller_bytes = [0.0] * self.num_nodes
        links = [(a, z) for a, z in topology.links.tolist()]
        self.link_bytes = dict.fromkeys(links, 0.0)
        self.link_bandwidth = dict(zip(links, topology.link_bandwidth_bytes_per_s.tolist(), strict=True))
        self.core_free_s = [[self.now_s] * int(cores) for cores in topology.cores]
        self.things = [Thing(obj, None, 0.0, self.now_s) for obj in range(workload.num_objects)]
        self.memory = Memory(topology, self.things)
        self.passed = [0.0] * self.num_nodes
        self.moved = {pair: [0.0, 0.0] for pair in self.traffic}
        self.in_flight = InFlight(self.routes)

    # What a stream meets.

    def controller_load(self, node: int) -> float:
        """Recent load of a memory controller."""
        return self.controller_bytes[node] / (self.window_s * float(self.topology.memory_bandwidth_bytes_per_s[node]))

    def link_load(self, link: tuple[int, int]) -> float:
        """Recent load of a directed link."""
        return self.link_bytes[link] / (self.window_s * self.link_bandwidth[link])

    def links(self, initiator: int, target: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Links of the route toward the initiator (reads take them) and away from it (writes do)."""
        nodes = self.routes[initiator, target]
        away = list(pairwise(nodes))
        return [(z, a) for a, z in away], away

    def controller_s_per_byte(self, node: int, num_bytes: float) -> float:
        """Seconds per byte of a memory controller for a stream of so many bytes."""
        capacity = float(self.topology.memory_bandwidth_bytes_per_s[node])
        return self.in_flight.s_per_byte(node, capacity, num_bytes, self.now_s)

    def link_s_per_byte(self, link: tuple[int, int], num_bytes: float) -> float:
        """Seconds per byte of a directed link for a stream of so many bytes."""
        return self.in_flight.s_per_byte(link, self.link_bandwidth[link], num_bytes, self.now_s)

    def loaded_latency_s(self, initiator: int, target: int) -> float:
        """Idle latency times r of the busiest of the controller and the route's links, both directions."""
        toward, away = self.links(initiator, target)
        capacity = {target: float(self.topology.memory_bandwidth_bytes_per_s[target])}
        capacity |= {link: self.link_bandwidth[link] for link in toward + away}
        u = max(self.in_flight.sums(used, self.now_s)[1] / most for used, most in capacity.items())
        fit = self.topology.loaded_latency
        room = 1.0 - fit.c * u
        factor = fit.saturated if room <= 0.0 else min(fit.saturated, 1.0 + fit.a * u / room)
        return float(self.topology.latency_s[initiator, target]) * factor

    def stream_s_per_byte(self, initiator: int, target: int, num_bytes: float, write_fraction: float) -> float:
        """Seconds per byte of one core's stream: the slowest of everything it passes."""
        toward, away = self.links(initiator, target)
        reads, writes = (1.0 - write_fraction) * num_bytes, write_fraction * num_bytes
        return max(
            1.0 / float(self.topology.bandwidth_bytes_per_s[initiator, target]),
            self.controller_s_per_byte(target, num_bytes),
            (1.0 - write_fraction) * max([0.0, *(self.link_s_per_byte(link, reads) for link in toward)]),
            write_fraction * max([0.0, *(self.link_s_per_byte(link, writes) for link in away)]),
            self.loaded_latency_s(initiator, target) / self.topology.outstanding_bytes,
        )

    # One task, before it is decided.

    def nearest(self, node: int) -> list[int]:
        """All nodes from nearest to farthest by idle latency, `node` itself first."""
        latency = self.topology.latency_s[node].tolist()
        return sorted(range(self.num_nodes), key=lambda other: (other != node, latency[other], other))

    def runs_on(self, node: int) -> int:
        """The nearest node with cores."""
        return next(other for other in self.nearest(node) if self.topology.cores[other] > 0)

    def find_room(self, node: int) -> int | None:
        """The nearest node to `node` with room for the next task's object, or None."""
        thing = self.things[int(self.workload.object[self.episode, self.task])]
        size = float(self.workload.object_bytes[self.episode, self.task])
        return next((other for other in self.nearest(node) if self.memory.has_room(thing, other, size)), None)

    def inputs(self) -> list[tuple[int, float]]:
        """(object, bytes) of the next task's inputs, whether they live or not."""
        pairs = zip(
            self.workload.inputs[self.episode, self.task].tolist(),
            self.workload.input_bytes[self.episode, self.task].tolist(),
            strict=True,
        )
        return [(obj, num_bytes) for obj, num_bytes in pairs if obj >= 0]

    def copy_for(self, thing: Thing, node: int) -> int:
        """Where `node` reads an object that is not split: the copy nearest to it, or wherever it is."""
        assert thing.node is not None
        return next((other for other in self.nearest(node) if other in thing.copies), thing.node)

    def live_inputs(self, node: int) -> list[tuple[int, float]]:
        """(home, bytes) of the inputs that live somewhere and that `node` reads, a piece for each home of each."""
        found = []
        for obj, num_bytes in self.inputs():
            thing = self.things[obj]
            if thing.node is not None and num_bytes > 0.0:
                shares = self.memory.shares(thing) if thing.weights else {self.copy_for(thing, node): 1.0}
                found += [(home, num_bytes * share) for home, share in shares.items() if share > 0.0]
        return found

    def chunked_s(self, size: float, split: float, transfer: float, merge: float, latency: float, most: float) -> float:
        """Time of a double-buffered pipeline of chunks, at the best of the chunks that can be best."""

        def pipeline_s(chunk: float) -> float:
            stages = [chunk * split, chunk * transfer + latency, chunk * merge]
            return sum(stages) + (size - chunk) / chunk * max(stages)

        size = max(size, 1.0)
        largest = min(size, most)
        ends, excess = split + merge, max(split, merge) - transfer
        candidates = [largest]
        if ends > 0.0:
            candidates.append(min(largest, math.sqrt(size * latency / ends)))
        if excess > 0.0:
            candidates.append(min(largest, latency / excess))
        return min(pipeline_s(chunk) for chunk in candidates)

    def migration_s(self, home: int, target: int, size: float) -> float:
        """Time for `target` to read `size` bytes from `home` and to write them to its own memory, and kernel work."""
        seconds = self.chunked_s(
            size,
            self.controller_s_per_byte(home, size),
            self.stream_s_per_byte(target, home, size, 0.0),
            self.controller_s_per_byte(target, size),
            self.loaded_latency_s(target, home),
            float(self.topology.llc_bytes[target]) / 2.0,
        )
        return seconds + math.ceil(size / self.topology.page_bytes) * self.topology.page_move_s

    def reading_s(self, node: int, task: Task) -> float:
        """Time for `node` to read all live inputs: one message from each node that holds some, a stream of the task."""
        seconds = 0.0
        live = self.live_inputs(node)
        for where in {where for where, _ in live}:
            size = sum(read for other, read in live if other == where)
            s_per_byte, latency = self.stream_s_per_byte(node, where, size, 0.0), self.loaded_latency_s(node, where)
            task.note(node, where, size * s_per_byte, size, 0.0)
            if where == node:
                seconds += size * s_per_byte + latency
            else:
                half_cache = float(self.topology.llc_bytes[node]) / 2.0
                split = self.controller_s_per_byte(where, size)
                seconds += self.chunked_s(size, split, s_per_byte, 0.0, latency, half_cache)
        return seconds

    # Cached lines: of each object only those that its last access left in the cache of the node it came from.

    def accesses(self) -> list[tuple[Thing, float, float]]:
        """(object, bytes, share of writes) of the next task's live inputs, then of its own object."""
        e, t = self.episode, self.task
        reads = [(self.things[obj], num_bytes, 0.0) for obj, num_bytes in self.inputs()]
        reads = [access for access in reads if access[0].node is not None]
        own = self.things[int(self.workload.object[e, t])]
        return [*reads, (own, float(self.workload.bytes[e, t]), float(self.workload.write_fraction[e, t]))]

    def still_cached(self, thing: Thing) -> float:
        """Bytes that the holder's cache still has: what passed since has pushed out what was there longest."""
        if thing.holder is None or len(thing.copies) > 1:
            return 0.0
        room = float(self.topology.llc_bytes[thing.holder]) - (self.passed[thing.holder] - thing.passed)
        return max(0.0, min(thing.touched, room))

    def coherence_s(self, node: int) -> float:
        """Time of the transitions that the next task's accesses from `node` make other caches' lines go through."""
        ratio = self.topology.coherence.ratio
        seconds = 0.0
        for thing, num_bytes, writes in self.accesses():
            lines = min(self.still_cached(thing), num_bytes)
            if thing.holder is None or lines <= 0.0:
                continue
            if node != thing.holder:
                peer = thing.holder
                read_ratio = ratio[LineState.I, LineState.F] + ratio[thing.state, LineState.S]
                write_ratio = ratio[LineState.I, LineState.M] + ratio[thing.state, LineState.I]
            elif thing.state == LineState.F:
                assert thing.sharer is not None
                peer, read_ratio, write_ratio = thing.sharer, 0.0, ratio[LineState.F, LineState.M]
            else:
                continue
            mixed = (1.0 - writes) * read_ratio + writes * write_ratio
            seconds += lines * mixed * self.loaded_latency_s(node, peer) / self.topology.outstanding_bytes
        return seconds

    def touch(self, node: int, thing: Thing, num_bytes: float, writes: float, cached: bool) -> None:
        """`node` has touched an object, of which its holder still had some or not: its cache now answers for it."""
        if num_bytes == 0.0:
            return
        if writes > 0.0:
            thing.state = LineState.M
        elif not cached:
            thing.state = LineState.E
        elif thing.holder != node:
            thing.state, thing.sharer = LineState.F, thing.holder
        self.passed[node] += num_bytes
        thing.holder, thing.passed, thing.touched = node, self.passed[node], min(num_bytes, thing.size)

    def congestion_s(self, task_node: int, target: int) -> float:
        """Sum over every controller and link that a placement uses of bytes / capacity x load there."""
        e, t = self.episode, self.task
        num_bytes, writes = float(self.workload.bytes[e, t]), float(self.workload.write_fraction[e, t])
        thing = self.things[int(self.workload.object[e, t])]
        streams = [(task_node, target, num_bytes * (1.0 - writes), num_bytes * writes)]
        streams += [(task_node, node, read, 0.0) for node, read in self.live_inputs(task_node)]
        for source, part in self.sources(thing, target).items():
            streams += [(target, source, part, 0.0), (target, target, 0.0, part)]
        seconds = 0.0
        for initiator, memory, read, written in streams:
            capacity = float(self.topology.memory_bandwidth_bytes_per_s[memory])
            seconds += (read + written) / capacity * self.controller_load(memory)
            toward, away = self.links(initiator, memory)
            for links, moved in ((toward, read), (away, written)):
                seconds += sum(moved / self.link_bandwidth[link] * self.link_load(link) for link in links)
        return seconds

    # The decision.

    def step(self, task_node: int, data_node: int, weights: Sequence[int] = ()) -> Decision:
        """Decide the next task, free what it was the last to use, and move time to the task after it."""
        decision = self.decide(self.runs_on(task_node), data_node, weights)
        decision.imbalance = self.imbalance()
        self.advance()
        return decision

    def sources(self, thing: Thing, target: int) -> dict[int, float]:
        """Bytes that have to come to `target` for an object to be whole there, by where they come from."""
        if thing.node is None or (not thing.weights and target in (thing.copies or [thing.node])):
            return {}
        if thing.weights:
            held = self.memory.held(thing)
            after = {target: float(self.workload.object_bytes[self.episode, self.task])}
            return {source: part for source, _, part in self.gathered(held, after)}
        return {self.copy_for(thing, target): thing.size}

    def page_moves(self, thing: Thing, weights: tuple[int, ...], size: float) -> list[tuple[int, int, float]]:
        """(source, target, bytes) of what has to move for pages to be dealt out by `weights`, node after node."""
        if thing.node is None or thing.weights == weights:
            return []
        before = self.memory.held(thing) if thing.weights else {thing.node: thing.size}
        return self.gathered(before, dealt(weights, size, self.topology.page_bytes, thing.obj))

    def gathered(self, before: dict[int, float], after: dict[int, float]) -> list[tuple[int, int, float]]:
        """(source, target, bytes) of what has to move, node after node; what an object grows by is new there."""
        spare = {n: before.get(n, 0.0) - after.get(n, 0.0) for n in range(self.num_nodes)}
        moves = []
        for target in range(self.num_nodes):
            for source in range(self.num_nodes):
                part = min(-spare[target], spare[source])
                if part > 0.0:
                    moves.append((source, target, part))
                    spare[source] -= part
                    spare[target] += part
        return moves

    def decide(self, node: int, data_node: int, weights: Sequence[int]) -> Decision:
        """Run the next task on `node`, its object on `data_node` or the nearest node with room, or by page weights."""
        e, t = self.episode, self.task
        thing = self.things[int(self.workload.object[e, t])]
        size, num_bytes = float(self.workload.object_bytes[e, t]), float(self.workload.bytes[e, t])
        write_fraction = float(self.workload.write_fraction[e, t])
        read_only = bool(self.workload.read_only[e, int(self.workload.object[e, t])])
        dealt_by = self.memory.page_room(thing, weights, size)
        if dealt_by:
            after = dealt(dealt_by, size, self.topology.page_bytes, thing.obj)
            target = max(after, key=lambda where: (after[where], -where))
            moves = self.page_moves(thing, dealt_by, size)
            shares = {n: part / size for n, part in after.items() if part} if size else {target: 1.0}
        else:
            found = self.find_room(data_node)
            if found is None:
                return Decision(task_node=node, out_of_memory=True)
            target = found
            moves = [(source, target, part) for source, part in self.sources(thing, target).items()]
            shares = {target: 1.0}
        home = thing.node
        replicated = bool(moves) and read_only and not thing.weights and not dealt_by
        moved = any(part > 0.0 for *_, part in moves) or bool(moves and not dealt_by and not thing.weights)
        migrated = moved and not replicated

        compute = float(self.workload.flops[e, t]) / float(self.topology.flops_per_s[node])
        task = Task()
        access_s = {
            n: share * num_bytes * self.stream_s_per_byte(node, n, share * num_bytes, write_fraction)
            for n, share in shares.items()
        }
        roofline = max(compute, sum(access_s.values()))
        for n, share in shares.items() if num_bytes else ():  # at the pace of the arithmetic if that takes longer
            part, seconds = share * num_bytes, roofline * access_s[n] / sum(access_s.values())
            task.note(node, n, seconds, part * (1.0 - write_fraction), part * write_fraction)
        service = roofline + float(self.workload.overhead_s[e, t])
        reading, coherence = self.reading_s(node, task), self.coherence_s(node)
        moving = sum(self.migration_s(*move) for move in moves)
        if moves and not dealt_by and not thing.weights:
            source, _, part = moves[0]
            writing = self.controller_s_per_byte(target, part)
            seconds = part * max(self.stream_s_per_byte(target, source, part, 0.0), writing)
            task.note(target, source, seconds, part, 0.0)
            task.note(target, target, seconds, 0.0, part)
        core = min(range(len(self.core_free_s[node])), key=lambda c: max(self.core_free_s[node][c], self.now_s))
        written = [thing.ready_s, *(self.things[obj].ready_s for obj, _ in self.inputs())]
        start = max(self.now_s, self.core_free_s[node][core], *written)
        finish = start + moving + reading + coherence + service
        self.core_free_s[node][core] = finish
        self.in_flight.take((node, core), task, start, finish, self.now_s)

        decision = Decision(
            exec_s=start - self.now_s + service,
            comm_s=reading + moving + coherence,
            wait_s=start - self.now_s,
            migration_s=moving,
            coherence_s=coherence,
            task_node=node,
            data_node=target,
            migrated=migrated,
            replicated=replicated,
            fell_back=dealt_by != tuple(weights) if any(weights) else target != data_node,
        )
        for where, read in self.live_inputs(node):
            self.move(decision, node, where, read, 0.0)
        for where, share in shares.items():
            part = num_bytes * share
            self.move(decision, node, where, part * (1.0 - write_fraction), part * write_fraction)
        for source, to, part in moves:  # the target's own controller writes what it reads: the same bytes, once
            self.move(decision, to, source, part, 0.0)
            self.move(Decision(), to, to, 0.0, part)

        *inputs, own = [(*access, self.still_cached(access[0]) > 0.0) for access in self.accesses()]
        for access in inputs:
            access[0].accessed_s = self.now_s
            self.touch(node, *access)
        thing.accessed_s = self.now_s
        if replicated:
            self.memory.copy(thing, target)
        elif not (read_only and thing.copies and not dealt_by):
            self.memory.put(thing, target, size, dealt_by, read_only)
        if migrated:
            thing.holder = None
        self.touch(node, *own[:3], own[3] and not migrated and not replicated)
        if home is None or migrated or write_fraction > 0.0:
            thing.ready_s = finish
        return decision

    def move(self, decision: Decision, initiator: int, target: int, read: float, written: float) -> None:
        """Count bytes between a node's cores and a memory."""
        self.traffic[initiator, target] += read + written
        self.moved[initiator, target][0] += read
        self.moved[initiator, target][1] += written
        self.controller_bytes[target] += read + written
        toward, away = self.links(initiator, target)
        for link in toward:
            self.link_bytes[link] += read
        for link in away:
            self.link_bytes[link] += written
        if initiator == target:
            decision.local_bytes += read + written
        else:
            decision.remote_bytes += read + written

    def outstanding_s(self) -> list[float]:
        """Outstanding work per core of the nodes that have cores."""
        return [sum(max(0.0, free - self.now_s) for free in cores) / len(cores) for cores in self.core_free_s if cores]

    def imbalance(self) -> float:
        """Population standard deviation over mean of the outstanding work, 0 when all is idle."""
        work = self.outstanding_s()
        mean = sum(work) / len(work)
        if mean == 0.0:
            return 0.0
        return math.sqrt(sum((seconds - mean) ** 2 for seconds in work) / len(work)) / mean

    def advance(self) -> None:
        """Free objects, move to the next task's arrival, and let traffic decay."""
        for obj, thing in enumerate(self.things):
            if self.workload.freed_after[self.episode, obj] == self.task and thing.node is not None:
                self.memory.free(thing)
                thing.node, thing.size, thing.holder = None, 0.0, None
        self.task += 1
        if self.task == self.workload.num_tasks:
            return
        before = self.now_s
        self.now_s = max(before, float(self.workload.arrival_s[self.episode, self.task]))
        if self.workload.follows_inputs:
            own = self.things[int(self.workload.object[self.episode, self.task])]
            written = [own.ready_s, *(self.things[obj].ready_s for obj, _ in self.inputs())]
            self.now_s = max(self.now_s, *written)
        decay = math.exp(-(self.now_s - before) / self.window_s)
        self.controller_bytes = [used * decay for used in self.controller_bytes]
        self.link_bytes = {link: used * decay for link, used in self.link_bytes.items()}
        self.traffic = {pair: used * decay for pair, used in self.traffic.items()}
        if self.now_s > before:
            self.in_flight.pass_time(self.now_s)

"""Which streams the oracle has in flight, and what a new one shares with them. Plain Python too.

Every sum is taken anew over all cores whenever it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

EARLY = 1e-5  # a core that goes on is looked at again this much before it should end, relative to how long it goes on

Resource = int | tuple[int, int]  # the memory controller of a node, or the directed link between two


@dataclass
class Stream:
    """What a task moves between an initiator and a target.

    Attributes:
        seconds: for how long it moves.
        read: bytes it reads.
        written: bytes it writes.
    """

    seconds: float = 0.0
    read: float = 0.0
    written: float = 0.0


@dataclass
class Work:
    """What a core moves, as its record says.

    Attributes:
        streams: by (initiator, target), those of one pair as one.
        start_s: when its task starts.
        duration_s: how long that takes.
        busy_until_s: when the last of the tasks that followed it without a gap ends.
        at_work: whether it has entered.
        since_s: when it entered or last went on.
        left_s: for how long it then had bytes left.
        end_s: when to look at it again.
    """

    streams: dict[tuple[int, int], Stream]
    start_s: float
    duration_s: float
    busy_until_s: float
    at_work: bool = False
    since_s: float = 0.0
    left_s: float = 0.0
    end_s: float = 0.0


@dataclass
class Task:
    """The streams of a task that is being decided."""

    streams: dict[tuple[int, int], Stream] = field(default_factory=dict)

    def note(self, initiator: int, target: int, seconds: float, read: float, written: float) -> None:
        """Count a stream; one that moves nothing is none."""
        if read + written > 0.0:
            stream = self.streams.setdefault((initiator, target), Stream())
            stream.seconds += seconds
            stream.read += read
            stream.written += written


class InFlight:
    """The cores' records.

    Attributes:
        routes: nodes on the route of every pair.
        records: by (node, core), of the cores that have one.
    """

    def __init__(self, routes: dict[tuple[int, int], list[int]]) -> None:
        """Nothing is in flight."""
        self.routes = routes
        self.records: dict[tuple[int, int], Work] = {}

    def uses(self, pair: tuple[int, int], stream: Stream) -> list[tuple[Resource, float]]:
        """(resource, bytes) of everything that a stream passes."""
        nodes = self.routes[pair]
        found: list[tuple[Resource, float]] = [(pair[1], stream.read + stream.written)]
        found += [((z, a), stream.read) for a, z in pairwise(nodes)]
        found += [((a, z), stream.written) for a, z in pairwise(nodes)]
        return [(resource, moved) for resource, moved in found if moved > 0.0]

    def sums(self, resource: Resource, now_s: float) -> tuple[float, float, float]:
        """(streams, their bytes per second, the bytes they have left) on a controller or link."""
        count = rate = left = 0.0
        for work in self.records.values():
            for pair, stream in work.streams.items() if work.at_work else ():
                for used, moved in self.uses(pair, stream):
                    if used == resource:
                        count += stream.seconds / work.duration_s
                        rate += moved / work.duration_s
                        left += moved / work.duration_s * (work.left_s - (now_s - work.since_s))
        return count, rate, left

    def s_per_byte(self, resource: Resource, capacity: float, num_bytes: float, now_s: float) -> float:
        """Seconds per byte of a new stream: it pays for the delay it suffers and gives, or gets what is left over."""
        count, rate, left = self.sums(resource, now_s)
        x = count * num_bytes / max(left, 1.0)
        shared = 1.0 + 2.0 * count * (1.0 + x / 2.0) / (1.0 + x + x**2 / 2.0)
        return min(shared, 1.0 / max(1.0 - rate / capacity, 1e-9)) / capacity

    def take(self, core: tuple[int, int], task: Task, start_s: float, finish_s: float, now_s: float) -> None:
        """A core was given a task."""
        if core in self.records:
            if start_s <= self.records[core].busy_until_s:
                self.records[core].busy_until_s = finish_s
        elif task.streams:
            work = Work(task.streams, start_s, finish_s - start_s, finish_s)
            self.records[core] = work
            if start_s <= now_s:
                work.at_work, work.since_s, work.left_s, work.end_s = True, now_s, work.duration_s, finish_s

    def pass_time(self, now_s: float) -> None:
        """It is now later: cores start, go on with the next of their tasks, or leave."""
        for core, work in list(self.records.items()):
            if (work.end_s if work.at_work else work.start_s) <= now_s:
                left_s = min(work.duration_s, work.busy_until_s - now_s)
                if left_s <= 0.0:
                    del self.records[core]
                    continue
                work.at_work, work.since_s, work.left_s = True, now_s, left_s
                work.end_s = now_s + left_s * (1.0 - EARLY)

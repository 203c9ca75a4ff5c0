"""The referee's second route: a replay played in plain Python, streams as fluids that share what they pass through.

Written from what the referee is to do and not from SimGrid. At any moment every activity goes on at one rate, the
share of it done in a second; of the resource that holds it back it uses no less than any other activity does there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from experiments.fidelity.activities import Activity, activities, capacities
from experiments.fidelity.replay import Replay

Amounts = dict[int, float]


def fair_share(capacity: float, wanted: list[float]) -> float:
    """The most that each may use, so that what all use of what they want is no more than the capacity."""
    left, share = capacity, math.inf
    for index, want in enumerate(sorted(wanted)):
        if want * (len(wanted) - index) >= left:
            share = left / (len(wanted) - index)
            break
        left -= want
    return share


def rates(amounts: dict[int, Amounts], capacity: list[float], alone: dict[int, float]) -> dict[int, float]:
    """Rate of each activity: the least of 1 / `alone` and of its fair share of each resource over its amount there.

    What an activity leaves unused of one resource depends on the others that hold it back, so shares are worked out
    again, one resource after another, until none changes.
    """
    users: dict[int, list[int]] = {}
    for who, each in amounts.items():
        for resource in each:
            users.setdefault(resource, []).append(who)
    own = {who: 1.0 / seconds if seconds > 0.0 else math.inf for who, seconds in alone.items()}
    limit = {who: dict.fromkeys(each, math.inf) for who, each in amounts.items()}
    for _ in range(10_000):
        change = 0.0
        for resource, who_all in users.items():
            others = [min([own[who], *(v for r, v in limit[who].items() if r != resource)]) for who in who_all]
            wanted = [amounts[who][resource] * most for who, most in zip(who_all, others, strict=True)]
            share = fair_share(capacity[resource], wanted)
            for who in who_all:
                new, old = share / amounts[who][resource], limit[who][resource]
                if new != old:
                    change = max(change, abs(new - old) / min(new, old))
                limit[who][resource] = new
        if change < 1e-14:
            return {who: min([own[who], *limit[who].values()]) for who in amounts}
    raise AssertionError("shares do not settle")


@dataclass
class Core:
    """A core of a node.

    Attributes:
        task: what it has taken.
        steps: what it has still to do of it, the next first; its start once the task is released.
        until_s: when what uses nothing ends.
        left: share of an activity that is still to be done, None while there is none.
    """

    task: int
    steps: list[Activity]
    until_s: float = math.inf
    left: float | None = None


@dataclass
class Fluid:
    """One replay.

    Attributes:
        decided_s: when each task was decided, None while it was not; `started_s` and `finish_s` likewise.
    """

    replay: Replay
    now_s: float = 0.0
    decided_s: list[float | None] = field(default_factory=list)
    started_s: list[float | None] = field(default_factory=list)
    finish_s: list[float | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        replay = self.replay
        self.decided_s, self.started_s, self.finish_s = ([None] * replay.num_tasks for _ in range(3))
        self.capacity = capacities(replay.topology).tolist()
        self.work = activities(replay)
        nodes = range(replay.topology.num_nodes)
        self.queues = [[t for t in range(replay.num_tasks) if replay.node[t] == n] for n in nodes]
        self.cores: list[list[Core | None]] = [[None] * int(count) for count in replay.topology.cores]

    def play(self) -> Fluid:
        """Go from event to event until every task has finished."""
        while True:
            while self.settle():
                pass
            busy = {i: c for i, c in enumerate(c for node in self.cores for c in node if c) if c.left is not None}
            rate = rates(
                {i: core.steps[0].amounts for i, core in busy.items()},
                self.capacity,
                {i: core.steps[0].core_s for i, core in busy.items()},
            )
            ends = {i: self.now_s + core.left / rate[i] for i, core in busy.items() if core.left is not None}
            fixed = [core.until_s for node in self.cores for core in node if core]
            arrivals = [at for at in self.replay.arrival_s.tolist() if at > self.now_s]
            next_s = min([*ends.values(), *fixed, *arrivals[:1]], default=math.inf)
            if next_s == math.inf:
                return self
            for i, core in busy.items():
                assert core.left is not None
                core.left = 0.0 if ends[i] <= next_s else core.left - rate[i] * (next_s - self.now_s)
            self.now_s = next_s

    def settle(self) -> bool:
        """Do what can be done at this moment; whether anything was."""
        changed = self.decide()
        for queue, cores in zip(self.queues, self.cores, strict=True):
            for place, core in enumerate(cores):
                if core is None and queue and self.decided_s[queue[0]] is not None:
                    task = queue.pop(0)
                    cores[place] = Core(task, list(self.work[task]))
                    changed = True
                elif core is not None:
                    changed |= self.advance(core)
                    if self.finish_s[core.task] is not None:
                        cores[place] = None
        return changed

    def decide(self) -> bool:
        """Decide the next task if it is time."""
        task = sum(decided is not None for decided in self.decided_s)
        if task == self.replay.num_tasks or self.replay.arrival_s[task] > self.now_s:
            return False
        if self.replay.follows_inputs and not self.is_ready(task):
            return False
        self.decided_s[task] = self.now_s
        return True

    def is_ready(self, task: int) -> bool:
        """Whether all that a task waits for have finished."""
        return all(self.finish_s[other] is not None for other in self.replay.waits[task])

    def advance(self, core: Core) -> bool:
        """Take a core's task as far as it can go now; whether it went anywhere."""
        if self.started_s[core.task] is None:
            if not self.is_ready(core.task):
                return False
            self.started_s[core.task] = self.now_s
        elif core.left == 0.0:
            core.steps.pop(0)
            core.left = None
        elif core.left is None and core.until_s <= self.now_s:
            core.until_s = math.inf
            core.left = 1.0 if core.steps[0].core_s > 0.0 else 0.0
            return True
        else:
            return False
        if core.steps:
            core.until_s = self.now_s + core.steps[0].fixed_s
        else:
            self.finish_s[core.task] = self.now_s
        return True

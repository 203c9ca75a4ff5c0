"""Plays replays in SimGrid: a script for whichever Python has it, with the standard library and `simgrid` alone.

    python3 simgrid_replay.py WORKERS < replays > results

Each line of the input is a replay as `referee.py` writes it. For each the output has a line, in the same order:
{"index", "left_out", "decided_s", "started_s", "finish_s"}, or {"index", "error"}. An engine of SimGrid is the only one
that its process can have, so every replay is played in a process of its own.

What is SimGrid's [1]: time, the sharing of resources, and who waits for whom. It is set to the model of parallel tasks,
`host/model:ptask_L07`, whose activities use all their resources at one proportional rate, and to the solver
`host/solver:bmf`, bottleneck max fairness [2]: at the resource that holds an activity back, none uses more than it.
The solver that 3.32 takes by itself, `fairbottleneck`, is not max-min fair: on random systems its times were off by
13% where all uses were equal, and by up to 78% where they were not. There is no latency on links, so that nothing of
TCP is modelled and SimGrid's settings for it do not matter.

Every resource is a link from a host of its own to the host `hub`. So is every core: there it spends the time that its
arithmetic takes it at least, or its bytes in flight if that is longer. SimGrid's solver does not end where two
resources hold the same activity back equally, so capacities are made larger by up to 1e-8 of themselves, each by
another share. At some systems it does not end all the same. Then the replay is played again: with more steps for the
solver, and at last without the uses that an activity makes of a resource for a small share of its own time (see
ATTEMPTS). On 14 replays that could be played in both ways that changed the mean response by less than 0.1%.

References:
    [1] H. Casanova et al., "Versatile, scalable, and accurate simulation of distributed applications and platforms",
        Journal of Parallel and Distributed Computing 74(10), 2014: SimGrid.
    [2] T. Bonald and J. Roberts, "Multi-resource fairness: objectives, algorithms and performance", SIGMETRICS 2015:
        bottleneck max fairness.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import deque
from typing import Any

OPTIONS = ("--cfg=host/model:ptask_L07", "--cfg=host/solver:bmf", "--log=root.threshold:error")
# SimGrid takes times less than 1e-9, rates of activities less than 1e-12 and amounts less than 1e-5 for none. So it is
# played in units of time and bytes in which the mean activity takes 10 and the largest capacity is 1e9.
MEAN_ACTIVITY, LARGEST_CAPACITY = 10.0, 1e9
GOLDEN = 0.6180339887498949  # its multiples modulo 1 are far from each other
WIDER = 1e-8
MOST_SECONDS = 600  # of an attempt
# Steps that the solver may take, and uses to leave out: those that take less than this share of their activity's time.
ATTEMPTS = ((1_000, 0.0), (100_000, 0.0), (1_000, 0.001), (1_000, 0.01), (1_000, 0.05))


class Node:
    """The cores of a node.

    Attributes:
        to_come: tasks that no core has taken yet, decided or not.
        queue: tasks that are decided and no core has taken.
        idle: semaphores of cores that wait for a task.
        unused: hosts of cores that have not had one; they have no process yet.
    """

    def __init__(self) -> None:
        """Nothing is decided."""
        self.to_come = 0
        self.queue: deque[int] = deque()
        self.idle: deque[Any] = deque()
        self.unused: list[Any] = []


class Player:
    """One replay in one engine.

    Args:
        replay: as `referee.py` writes it.
        steps: that the solver may take.
        left_out: share of an activity's time; uses of resources that take it less are left out.
    """

    def __init__(self, replay: dict[str, Any], steps: int, left_out: float) -> None:
        """Build the machine; `run` plays."""
        import simgrid

        self.simgrid = simgrid
        self.replay = replay
        self.left_out = left_out
        self.links = 0
        self.engine = simgrid.Engine(["simgrid_replay", *OPTIONS, f"--cfg=bmf/max-iterations:{steps}"])
        self.second, self.byte = units(replay)
        self.arrival = [at * self.second for at in replay["arrival_s"]]
        tasks = len(self.arrival)
        self.decided = list(self.arrival)
        self.started: list[float | None] = [None] * tasks
        self.finish: list[float | None] = [None] * tasks
        self.missing = [len(before) for before in replay["waits"]]  # whom each task still waits for
        self.followers: list[list[int]] = [[] for _ in range(tasks)]
        for task, before in enumerate(replay["waits"]):
            for other in before:
                self.followers[other].append(task)
        self.sleeping: dict[int, Any] = {}  # semaphores of who waits until a task can be done
        self.nodes = {node: Node() for node in set(replay["node"]) if node >= 0}
        for node in replay["node"]:
            if node >= 0:
                self.nodes[node].to_come += 1
        self.build()

    def build(self) -> None:
        """Make hosts and links, and a process for every core that can get a task."""
        zone = self.simgrid.NetZone.create_full_zone("machine")
        self.hub = zone.create_host("hub", 1.0)
        self.ends: dict[int, Any] = {}
        for resource in used_resources(self.replay):
            end = zone.create_host(f"resource-{resource}", 1.0)
            self.connect(zone, end, self.replay["capacities"][resource] * self.byte / self.second)
            self.ends[resource] = end
        for name, node in self.nodes.items():
            for index in range(min(self.replay["cores"][name], node.to_come)):
                core = zone.create_host(f"core-{name}-{index}", 1.0)
                self.connect(zone, core, LARGEST_CAPACITY)
                node.unused.append(core)
        self.simgrid.Actor.create("decisions", self.hub, self.decide)
        zone.seal()

    def connect(self, zone: Any, host: Any, capacity: float) -> None:
        """Put a link between a host and the hub."""
        self.links += 1
        link = zone.create_link(f"link-{host.name}", capacity * (1.0 + WIDER * (self.links * GOLDEN % 1.0)))
        link.seal()
        zone.add_route(host.netpoint, self.hub.netpoint, None, None, [self.simgrid.LinkInRoute(link)], False)

    def run(self) -> dict[str, list[float | None]]:
        """Play it; returns times in seconds, None for dropped tasks.

        Raises:
            RuntimeError: some tasks wait for ever.
        """
        self.engine.run()
        for task, node in enumerate(self.replay["node"]):
            if node >= 0 and self.finish[task] is None:
                raise RuntimeError(f"task {task} never finished")
        names = ("decided", "started", "finish")
        return {f"{name}_s": [t and t / self.second for t in getattr(self, name)] for name in names}

    @property
    def now(self) -> float:
        """The time."""
        return float(self.simgrid.Engine.clock)

    def decide(self) -> None:
        """Decide tasks in order, each when it arrives or, in a graph, its inputs are ready: it joins a queue."""
        for task, name in enumerate(self.replay["node"]):
            if self.replay["follows_inputs"]:
                self.await_inputs(task)
            if self.arrival[task] > self.now:
                self.simgrid.this_actor.sleep_until(self.arrival[task])
            self.decided[task] = self.now
            if name >= 0:
                self.offer(task, self.nodes[name])

    def offer(self, task: int, node: Node) -> None:
        """Put a task into a node's queue, and wake a core for it if one is idle."""
        node.queue.append(task)
        if node.idle:
            node.idle.popleft().release()
        elif node.unused:
            core = node.unused.pop()
            self.simgrid.Actor.create(core.name, core, self.work, core, node)

    def work(self, core: Any, node: Node) -> None:
        """A core: takes the node's next task, waits until it can be done, does it, and so on."""
        while node.to_come:
            if not node.queue:
                semaphore = self.simgrid.Semaphore(0)
                node.idle.append(semaphore)
                semaphore.acquire()
                continue
            task = node.queue.popleft()
            node.to_come -= 1
            if not node.to_come:
                for semaphore in node.idle:
                    semaphore.release()
            self.await_inputs(task)
            self.started[task] = self.now
            for activity in self.replay["activities"][task]:
                self.act(core, *activity)
            self.finish[task] = self.now
            for follower in self.followers[task]:
                self.missing[follower] -= 1
                if self.missing[follower] == 0 and follower in self.sleeping:
                    self.sleeping.pop(follower).release()

    def await_inputs(self, task: int) -> None:
        """Wait until whom the task waits for has finished."""
        if self.missing[task]:
            self.sleeping[task] = self.simgrid.Semaphore(0)
            self.sleeping[task].acquire()

    def act(self, core: Any, fixed_s: float, core_s: float, amounts: list[list[float]]) -> None:
        """Let a core do one activity."""
        if fixed_s > 0.0:
            self.simgrid.this_actor.sleep_for(fixed_s * self.second)
        if core_s > 0.0:
            capacity = self.replay["capacities"]
            least_s = self.left_out * alone_s(core_s, amounts, capacity)
            amounts = [use for use in amounts if use[1] / capacity[int(use[0])] >= least_s]
            hosts = [self.hub, core, *(self.ends[int(resource)] for resource, _ in amounts)]
            moved = [0.0] * len(hosts) ** 2  # from each host, row by row, to each other, column by column
            own = core_s * self.second * LARGEST_CAPACITY
            for row, amount in enumerate([own, *(each * self.byte for _, each in amounts)], start=1):
                moved[row * len(hosts)] = amount
            self.simgrid.this_actor.parallel_execute(hosts, [0.0] * len(hosts), moved)


def units(replay: dict[str, Any]) -> tuple[float, float]:
    """What a second and a byte are in SimGrid's time and bytes."""
    capacity = replay["capacities"]
    times = [
        max(fixed_s, alone_s(core_s, amounts, capacity))
        for task in replay["activities"]
        for fixed_s, core_s, amounts in task
    ]
    mean_s = sum(times) / max(len(times), 1)
    second = MEAN_ACTIVITY / mean_s if mean_s > 0.0 else 1.0
    used = [capacity[resource] for resource in used_resources(replay)]
    return second, LARGEST_CAPACITY * second / max(used, default=1.0)


def used_resources(replay: dict[str, Any]) -> list[int]:
    """Resources through which bytes go."""
    return sorted({resource for task in replay["activities"] for each in task for resource, _ in each[2]})


def alone_s(core_s: float, amounts: list[list[float]], capacity: list[float]) -> float:
    """Seconds that an activity takes alone."""
    return max([core_s, *(amount / capacity[int(resource)] for resource, amount in amounts)])


class Process:
    """A replay that is being played in a process of its own.

    Args:
        replay: as `referee.py` writes it.
    """

    def __init__(self, replay: dict[str, Any]) -> None:
        """Start it."""
        self.replay = replay
        self.attempt = 0
        self.start()

    def start(self) -> None:
        """Play it from its beginning."""
        self.reading, writing = os.pipe()
        self.child = os.fork()
        if self.child == 0:
            os.close(self.reading)
            status = 1
            signal.alarm(MOST_SECONDS)  # then it is ended
            try:
                times = Player(self.replay, *ATTEMPTS[self.attempt]).run()
                result = {"index": self.replay["index"], "left_out": ATTEMPTS[self.attempt][1], **times}
                with os.fdopen(writing, "w") as stream:
                    stream.write(json.dumps(result))
                status = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(status)
        os.close(writing)

    def result(self) -> str:
        """Wait for its end, if need be that of another attempt; returns the line to write."""
        while True:
            with os.fdopen(self.reading) as stream:
                text = stream.read()
            _, status = os.waitpid(self.child, 0)
            if status == 0 and text:
                return text
            self.attempt += 1
            if self.attempt == len(ATTEMPTS):
                code = os.waitstatus_to_exitcode(status)
                how = f"signal {-code}" if code < 0 else f"exit code {code}"
                return json.dumps({"index": self.replay["index"], "error": f"SimGrid ended with {how}"})
            self.start()


def main() -> None:
    """Play every replay of the input, a few at once."""
    import simgrid  # once, before the processes

    del simgrid
    workers = int(sys.argv[1])
    running: list[Process] = []
    for line in sys.stdin:
        if len(running) >= workers:
            print(running.pop(0).result(), flush=True)
        running.append(Process(json.loads(line)))
    for each in running:
        print(each.result(), flush=True)


if __name__ == "__main__":
    main()

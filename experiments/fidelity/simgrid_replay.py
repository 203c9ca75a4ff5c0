"""Plays replays in SimGrid: a script for whichever Python has it, with the standard library and `simgrid` alone.

    python3 simgrid_replay.py WORKERS < replays > results

Each line of the input is a replay as `referee.py` writes it, each line of the output what came of one, in the order in
which they end: {"index", "decided_s", "started_s", "finish_s"}, or {"index", "error"}. An engine of SimGrid is the
only one that its process can have, so every replay is played in a process of its own.

What is SimGrid's: time, the sharing of resources, and who waits for whom. It is set to the model of parallel tasks,
`host/model:ptask_L07`, whose activities use all their resources at one proportional rate, and to the solver
`host/solver:bmf` (bottleneck max fairness: at the resource that holds an activity back, none uses more than it does).
The solver that 3.32 takes by itself, `fairbottleneck`, gives some activities less than is left for them. There is no
latency on links, so that nothing of TCP is modelled.

Every resource is a link from a host of its own to the host `hub`. So is every core: there it spends the time that its
arithmetic takes it at least, or its bytes in flight if that is longer. SimGrid's solver does not end where two
resources hold the same activity back equally, so capacities are made larger by up to 1e-8 of themselves, each by
another share, and by more and otherwise if that should not do, up to 1e-6.

References:
    [1] Versatile, Scalable, and Accurate Simulation of Distributed Applications and Platforms, H. Casanova et al.,
        Journal of Parallel and Distributed Computing 74(10), 2014: SimGrid.
    [2] Bottleneck Max Fairness, L. Bobelin et al., as SimGrid's documentation describes `bmf`.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

OPTIONS = ("--cfg=host/model:ptask_L07", "--cfg=host/solver:bmf", "--log=root.threshold:error")
# SimGrid takes times less than 1e-9 and rates less than 1e-5 for none. So it is played in units of time and bytes in
# which the mean activity takes 100 and the largest capacity is 1e9.
MEAN_ACTIVITY, LARGEST_CAPACITY = 100.0, 1e9
GOLDEN = 0.6180339887498949  # its multiples modulo 1 are far from each other
SHARES = (1e-8, 3e-8, 1e-7, 3e-7, 1e-6)  # tried one after another


class Player:
    """One replay in one engine.

    Args:
        replay: as `referee.py` writes it.
        share: by how much of themselves capacities are made larger at most.
    """

    def __init__(self, replay: dict[str, Any], share: float) -> None:
        """Build the machine; `run` plays."""
        import simgrid

        self.simgrid = simgrid
        self.replay = replay
        self.share = share
        self.links = 0
        self.engine = simgrid.Engine(["simgrid_replay", *OPTIONS])
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
        self.reached = 0  # in a graph: tasks decided so far
        self.sleeping: dict[int, Any] = {}  # semaphores of cores that wait for a task's turn
        self.queues: dict[int, list[int]] = {}
        for task, node in enumerate(replay["node"]):
            if node >= 0:
                self.queues.setdefault(node, []).append(task)
        for queue in self.queues.values():
            queue.reverse()
        self.build()

    def build(self) -> None:
        """Make hosts and links, and a process for every core that can get a task."""
        zone = self.simgrid.NetZone.create_full_zone("machine")
        self.hub = zone.create_host("hub", 1.0)
        self.ends: dict[int, Any] = {}
        used = {resource for task in self.replay["activities"] for each in task for resource, _ in each[2]}
        for resource in sorted(used):
            end = zone.create_host(f"resource-{resource}", 1.0)
            self.connect(zone, end, self.replay["capacities"][resource] * self.byte / self.second)
            self.ends[resource] = end
        for node, queue in self.queues.items():
            for index in range(min(self.replay["cores"][node], len(queue))):
                core = zone.create_host(f"core-{node}-{index}", 1.0)
                self.connect(zone, core, LARGEST_CAPACITY)
                self.simgrid.Actor.create(core.name, core, self.work, core, queue)
        zone.seal()

    def connect(self, zone: Any, host: Any, capacity: float) -> None:
        """Put a link between a host and the hub."""
        self.links += 1
        link = zone.create_link(f"link-{host.name}", capacity * (1.0 + self.share * (self.links * GOLDEN % 1.0)))
        link.seal()
        zone.add_route(host.netpoint, self.hub.netpoint, None, None, [self.simgrid.LinkInRoute(link)], False)

    def run(self) -> dict[str, list[float | None]]:
        """Play it; returns times in seconds, None for dropped tasks."""
        if self.replay["follows_inputs"]:
            self.decide_graph()
        self.engine.run()
        names = ("decided", "started", "finish")
        return {f"{name}_s": [t and t / self.second for t in getattr(self, name)] for name in names}

    @property
    def now(self) -> float:
        """The time."""
        return float(self.simgrid.Engine.clock)

    def work(self, core: Any, queue: list[int]) -> None:
        """A core: takes the node's next task, waits until it can be done, does it, and so on."""
        while queue:
            task = queue.pop()
            self.await_turn(task)
            self.simgrid.this_actor.sleep_until(self.arrival[task])
            self.started[task] = self.now
            for activity in self.replay["activities"][task]:
                self.act(core, *activity)
            self.finish[task] = self.now
            self.tell_followers(task)

    def await_turn(self, task: int) -> None:
        """Wait until whom the task waits for has finished and, in a graph, until it is decided."""
        is_open = self.reached > task if self.replay["follows_inputs"] else self.missing[task] == 0
        if not is_open:
            self.sleeping[task] = self.simgrid.Semaphore(0)
            self.sleeping[task].acquire()

    def act(self, core: Any, fixed_s: float, core_s: float, amounts: list[list[float]]) -> None:
        """Let a core do one activity."""
        if fixed_s > 0.0:
            self.simgrid.this_actor.sleep_for(fixed_s * self.second)
        if core_s > 0.0:
            hosts = [self.hub, core, *(self.ends[int(resource)] for resource, _ in amounts)]
            moved = [0.0] * len(hosts) ** 2  # from each host, row by row, to each other, column by column
            own = core_s * self.second * LARGEST_CAPACITY
            for row, amount in enumerate([own, *(each * self.byte for _, each in amounts)], start=1):
                moved[row * len(hosts)] = amount
            self.simgrid.this_actor.parallel_execute(hosts, [0.0] * len(hosts), moved)

    def tell_followers(self, task: int) -> None:
        """Wake the cores whose tasks waited for this one."""
        for follower in self.followers[task]:
            self.missing[follower] -= 1
            if self.missing[follower] == 0 and not self.replay["follows_inputs"]:
                self.wake(follower)
        if self.replay["follows_inputs"]:
            self.decide_graph()

    def decide_graph(self) -> None:
        """Decide the tasks whose turn has come: each after the one before, once whom it waits for has finished."""
        while self.reached < len(self.missing) and self.missing[self.reached] == 0:
            self.decided[self.reached] = max(self.now, self.arrival[self.reached])
            self.reached += 1
            self.wake(self.reached - 1)

    def wake(self, task: int) -> None:
        """Let the core that waits for a task go on, if one does."""
        semaphore = self.sleeping.pop(task, None)
        if semaphore is not None:
            semaphore.release()


def units(replay: dict[str, Any]) -> tuple[float, float]:
    """What a second and a byte are in SimGrid's time and bytes."""
    capacity = replay["capacities"]
    times = [
        max([fixed_s, core_s, *(amount / capacity[resource] for resource, amount in amounts)])
        for task in replay["activities"]
        for fixed_s, core_s, amounts in task
    ]
    mean_s = sum(times) / max(len(times), 1)
    second = MEAN_ACTIVITY / mean_s if mean_s > 0.0 else 1.0
    return second, LARGEST_CAPACITY * second / max(capacity)


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
            try:
                times = Player(self.replay, SHARES[self.attempt]).run()
                with os.fdopen(writing, "w") as stream:
                    stream.write(json.dumps({"index": self.replay["index"], **times}))
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
            if self.attempt == len(SHARES):
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

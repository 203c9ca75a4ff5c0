from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fluid import Fluid
from strategies import toy_machine

from agents.rules.catalog import make_rule
from envs.world import World
from experiments.fidelity import referee
from experiments.fidelity.activities import activities
from experiments.fidelity.record import record
from experiments.fidelity.referee import Played, RefereeError, find_simgrid, play, played, simgrid_version
from experiments.fidelity.replay import FLOW, Replay
from numa_rl.machines.catalog import load_machine
from numa_rl.topology import LoadedLatency, Topology

needs_simgrid = pytest.mark.skipif(
    find_simgrid() is None, reason="no Python here can import simgrid (Debian: python3-simgrid)"
)
UNBOUNDED = [[1e9, 1e9], [1e9, 1e9]]


def made(
    topology: Topology,
    *tasks: Sequence[tuple[Any, ...]],
    node: Sequence[int] | None = None,
    arrival_s: Sequence[float] | None = None,
    waits: dict[int, tuple[int, ...]] | None = None,
    follows_inputs: bool = False,
) -> Replay:
    """A replay of these tasks, each a list of flows: (initiator, target, read, written, flops, fixed_s, joined)."""
    flows = [(task, *(*flow, 0, 0, 0, 0, 0, 0)[:8]) for task, each in enumerate(tasks) for flow in each]
    zeros = np.zeros(len(tasks))
    return Replay(
        topology=topology,
        arrival_s=zeros if arrival_s is None else np.array(arrival_s),
        node=np.array([each[0][0] if each else -1 for each in tasks] if node is None else node),
        follows_inputs=follows_inputs,
        waits=tuple((waits or {}).get(task, ()) for task in range(len(tasks))),
        flows=np.array(flows, FLOW),
        response_s=zeros,
        finish_s=zeros,
        window_s=1.0,
    )


def in_python(replays: Sequence[Replay]) -> list[Played]:
    """What the second route makes of replays."""
    found = []
    for each in replays:
        fluid = Fluid(each).play()
        times = (np.array([np.inf if t is None else t for t in ts]) for ts in (fluid.started_s, fluid.finish_s))
        decided = np.where(each.ran, np.array(fluid.decided_s, float), np.inf)
        found.append(played(each, decided, *times))
    return found


@pytest.fixture(params=["plain Python", pytest.param("SimGrid", marks=needs_simgrid)])
def finish(request: pytest.FixtureRequest) -> Callable[[Replay], list[float]]:
    """Finish times of a replay, by either route."""
    route = play if request.param == "SimGrid" else in_python
    return lambda replay: pytest.approx(route([replay])[0].finish_s.tolist(), rel=1e-6)


# How resources are shared.


def test_two_equal_streams_on_one_controller_take_twice_as_long(finish):
    machine = toy_machine(cores=[2, 1])
    assert finish(made(machine, [(0, 0, 100)])) == [1.0]
    assert finish(made(machine, [(0, 0, 100)], [(0, 0, 100)])) == [2.0, 2.0]


def test_streams_share_bytes_equally_whatever_their_length(finish):
    assert finish(made(toy_machine(cores=[2, 1]), [(0, 0, 100)], [(0, 0, 300)])) == [2.0, 4.0]


def test_a_stream_slows_down_when_another_comes(finish):
    replay = made(toy_machine(cores=[2, 1]), [(0, 0, 100)], [(0, 0, 100)], arrival_s=[0.0, 0.5])
    assert finish(replay) == [1.5, 2.0]


def test_what_a_core_has_in_flight_bounds_its_stream_and_others_get_the_rest(finish):
    machine = toy_machine(outstanding_bytes=80.0)  # 80 bytes a second at 1 s, 40 at 2 s
    assert finish(made(machine, [(0, 0, 180)], [(1, 0, 120)])) == [3.0, 3.0]  # of 100


def test_arithmetic_bounds_a_stream_and_others_get_the_rest(finish):
    replay = made(toy_machine(cores=[2, 1]), [(0, 0, 100, 0, 500)], [(0, 0, 400)])
    assert finish(replay) == [5.0, 5.0]


def test_a_task_takes_the_longer_of_arithmetic_and_bytes(finish):
    replay = made(toy_machine(), [(0, 0, 300, 0, 100)], [(1, 1, 100, 0, 300)])
    assert finish(replay) == [3.0, 3.0]


def test_reads_and_writes_take_a_link_in_opposite_directions(finish):
    machine = toy_machine(cores=[2, 1], bandwidth_bytes_per_s=UNBOUNDED)
    assert finish(made(machine, [(0, 1, 100)], [(0, 1, 0, 100)])) == [2.0, 2.0]  # 50 each way
    assert finish(made(machine, [(0, 1, 100)], [(0, 1, 100)])) == [4.0, 4.0]


def test_the_cores_of_a_node_share_what_it_draws_from_a_memory(finish):
    machine = toy_machine(cores=[2, 1], link_bandwidth_bytes_per_s=[1e9, 1e9])
    assert finish(made(machine, [(0, 1, 100)], [(0, 1, 100)])) == [4.0, 4.0]  # 50 together


def test_a_stream_over_two_links_leaves_each_what_it_does_not_take(finish):
    machine = toy_machine(3, memory_bandwidth_bytes_per_s=[1e9] * 3, bandwidth_bytes_per_s=np.full((3, 3), 1e9))
    far, near, other = [(0, 2, 100)], [(0, 1, 100)], [(1, 2, 150)]
    machine = replace(machine, cores=[2, 1, 1], link_bandwidth_bytes_per_s=[50.0, 50.0, 100.0, 100.0])
    links = machine.links.tolist()
    assert links == [[0, 1], [1, 0], [1, 2], [2, 1]]
    assert finish(made(machine, far, near, other)) == [4.0, 4.0, 2.0]  # 25, 25 and, of 100, 75


def test_a_move_reads_and_writes_at_the_same_time(finish):
    machine = toy_machine(cores=[2, 1])
    move = [(0, 1, 100), (0, 0, 0, 100, 0, 0, 1)]
    assert finish(made(machine, move)) == [2.0]  # the link gives 50
    assert finish(made(machine, move, [(0, 0, 200)])) == [2.0, 3.0]  # 50 of the controller it writes to, then 100


def test_fixed_times_use_nothing_and_flows_follow_one_another(finish):
    machine = toy_machine(cores=[2, 1])
    flows = [(0, 0, 100, 0, 0, 1.0), (0, 0, 100, 0, 0, 2.0)]
    assert finish(made(machine, flows, [(0, 0, 100)])) == [5.0, 1.0]


# Who waits.


def test_cores_take_tasks_first_come_first_served(finish):
    seconds, arrivals = [10, 4, 3, 3, 1], [0.0, 1.0, 2.0, 3.0, 20.0]
    tasks = [[(0, 0, 0, 0, 100 * each)] for each in seconds]
    assert finish(made(toy_machine(cores=[2, 1]), *tasks, arrival_s=arrivals)) == [10.0, 5.0, 8.0, 11.0, 21.0]


def test_a_core_that_has_taken_a_task_waits_for_its_inputs(finish):
    tasks = [[(1, 1, 0, 0, 700)], [(0, 0, 0, 0, 100)], [(0, 0, 0, 0, 100)]]
    assert finish(made(toy_machine(), *tasks, waits={1: (0,)})) == [7.0, 8.0, 9.0]


def test_in_a_graph_tasks_are_decided_one_after_another(finish):
    tasks = [[(1, 1, 0, 0, 700)], [(0, 0, 0, 0, 100)], [(0, 0, 0, 0, 100)]]
    machine = toy_machine(cores=[2, 1])
    assert finish(made(machine, *tasks, waits={1: (0,)})) == [7.0, 8.0, 1.0]
    assert finish(made(machine, *tasks, waits={1: (0,)}, follows_inputs=True)) == [7.0, 8.0, 8.0]


def test_a_dropped_task_never_finishes_and_delays_a_graph_alone(finish):
    tasks = [[(1, 1, 0, 0, 700)], [], [(0, 0, 0, 0, 100)]]
    assert finish(made(toy_machine(), *tasks, waits={1: (0,)})) == [7.0, np.inf, 1.0]
    assert finish(made(toy_machine(), *tasks, waits={1: (0,)}, follows_inputs=True)) == [7.0, np.inf, 8.0]


def test_a_task_without_work_ends_where_it_begins(finish):
    assert finish(made(toy_machine(), [(0, 0)], [(0, 0, 100)], arrival_s=[3.0, 4.0])) == [3.0, 5.0]


def test_resources_that_nothing_uses_may_be_of_any_capacity(finish):
    machine = toy_machine(3, memory_bandwidth_bytes_per_s=[100.0, 100.0, 1e30])
    assert finish(made(replace(machine, cores=[2, 1, 1]), [(0, 0, 100)], [(0, 0, 300)])) == [2.0, 4.0]


# What follows from the times.


def test_loads_are_shares_of_the_makespan():
    machine = toy_machine(cores=[2, 1], bandwidth_bytes_per_s=UNBOUNDED)
    replay = made(machine, [(0, 1, 100)], [(1, 1, 50)], [], arrival_s=[1.0, 1.0, 2.0])
    found = in_python([replay])[0]
    assert found.makespan_s == pytest.approx(2.0)
    assert found.loads == pytest.approx(
        {
            "cores 0": 0.5,
            "cores 1": 0.5,
            "controller 0": 0.0,
            "controller 1": 0.75,
            "link 0 to 1": 0.0,
            "link 1 to 0": 1.0,
        }
    )
    assert found.busiest == ("link 1 to 0", pytest.approx(1.0))
    np.testing.assert_allclose(found.response_s, [2.0, 1.0, np.inf])


def test_what_a_node_draws_is_no_bound_where_the_memory_gives_no_more():
    (local,), (far,) = activities(made(toy_machine(), [(0, 0, 100)], [(0, 1, 100)]))
    assert set(local.amounts) == {0}
    assert len(far.amounts) == 3


# Two routes.


def random_replay(rng: np.random.Generator) -> Replay:
    """Tasks with random flows on the chapter's machine with fewer cores, which wait for each other at random."""
    machine = replace(load_machine("chapter-8-socket"), cores=rng.integers(1, 4, 8))
    sizes = 10.0 ** rng.uniform(4, 9, (60, 3))
    tasks = []
    for size in sizes:
        node, home, target = rng.integers(8, size=3).tolist()
        move = [(target, home, size[0], 0.0, 0.0, rng.random() * 1e-4), (target, target, 0.0, size[0], 0.0, 0.0, 1)]
        reads = [(node, home, size[1])]
        own = (node, target, size[2] * 0.7, size[2] * rng.random(), rng.exponential(1e8))
        tasks.append([*(move if rng.random() < 0.3 else ()), *(reads if rng.random() < 0.5 else ()), own])
    waits = {task: tuple(np.unique(rng.integers(task, size=2)).tolist()) for task in range(1, 60) if rng.random() < 0.4}
    node = [each[-1][0] for each in tasks]
    arrivals = np.cumsum(rng.exponential(10.0 ** rng.uniform(-4, -2), 60))
    return made(machine, *tasks, node=node, arrival_s=arrivals, waits=waits, follows_inputs=bool(rng.random() < 0.3))


def assert_same_times(replays: Sequence[Replay]) -> None:
    """Both routes agree on each task's times, to 1e-6 of the longer of its response and the mean one."""
    for ours, theirs in zip(in_python(replays), play(replays), strict=True):
        assert theirs.left_out == 0.0
        ran = np.isfinite(theirs.finish_s)
        assert ran.any()
        scale = np.maximum(theirs.response_s[ran], theirs.response_s[ran].mean())
        for name in ("response_s", "decided_s", "started_s"):
            one, other = getattr(ours, name)[ran], getattr(theirs, name)[ran]
            assert np.abs(one - other).max() <= 1e-6 * max(scale.min(), 0.1 * theirs.makespan_s), name
        assert (np.abs(ours.response_s[ran] - theirs.response_s[ran]) <= 1e-6 * scale).all()


@needs_simgrid
def test_simgrid_and_plain_python_agree_on_random_replays():
    rng = np.random.default_rng(1)
    assert_same_times([random_replay(rng) for _ in range(12)])


@needs_simgrid
@pytest.mark.parametrize("rule", ["greedy", "first-touch"])
def test_simgrid_and_plain_python_agree_on_what_rules_decide(rule):
    assert_same_times(record(World.default(), make_rule(rule), [0]))


@needs_simgrid
def test_alone_a_task_takes_what_our_simulator_says_and_never_less_among_others():
    world = World.default()
    apart = np.broadcast_to(np.arange(world.workload.num_tasks) * 10.0, world.workload.arrival_s.shape)
    machine = replace(world.topologies[0], loaded_latency=LoadedLatency(a=0.0, c=0.0, saturated=1.0))
    far_apart = replace(world, workload=replace(world.workload, arrival_s=apart), topologies=(machine,))
    (replay,) = record(far_apart, make_rule("data-affinity"), [3])
    alone, among_others = play([replay, replace(replay, arrival_s=world.workload.arrival_s[3])])
    np.testing.assert_allclose(alone.response_s, replay.response_s, rtol=1e-6)
    assert (among_others.response_s >= alone.response_s * (1.0 - 1e-6)).all()
    assert among_others.response_s.mean() > 1.1 * alone.response_s.mean()


# What can go wrong.


def test_without_simgrid_it_is_said_what_to_do(monkeypatch):
    monkeypatch.setattr(referee, "find_simgrid", lambda: None)
    with pytest.raises(ValueError, match="install Debian's python3-simgrid or run `make fidelity`"):
        play([made(toy_machine(), [(0, 0, 100)])])


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/true", "/"])
def test_the_python_asked_for_must_have_simgrid(monkeypatch, python):
    monkeypatch.setenv(referee.VARIABLE, python)
    with pytest.raises(ValueError, match=rf"NUMA_RL_SIMGRID_PYTHON must name a Python that .* got '{python}'"):
        find_simgrid()


def test_the_first_python_that_has_simgrid_is_taken(monkeypatch):
    monkeypatch.delenv(referee.VARIABLE, raising=False)
    monkeypatch.setattr(referee, "simgrid_version", {"/usr/bin/python3": "3.32.0"}.get)
    assert find_simgrid() == "/usr/bin/python3"
    monkeypatch.setattr(referee, "simgrid_version", {sys.executable: "4.1", "/usr/bin/python3": "3.32.0"}.get)
    assert find_simgrid() == sys.executable
    monkeypatch.setattr(referee, "simgrid_version", {}.get)
    assert find_simgrid() is None


@needs_simgrid
def test_the_version_of_simgrid_is_known():
    assert simgrid_version(find_simgrid() or "").count(".") >= 1


@needs_simgrid
def test_a_replay_that_simgrid_cannot_play_is_named_and_the_others_are_kept(monkeypatch):
    def broken(replay: Replay, index: int) -> dict[str, Any]:
        text = written(replay, index)
        return text if index != 1 else {**text, "waits": [[1], []]}  # waits for what comes after it

    written = referee.as_json
    monkeypatch.setattr(referee, "as_json", broken)
    replays = [made(toy_machine(), [(0, 0, size)], [(0, 0, size)]) for size in (100, 200, 300)]
    counts: list[int] = []
    with pytest.raises(RefereeError, match=r"SimGrid failed at 1 replay: replay 1: SimGrid ended with .*") as caught:
        play(replays, progress=counts.append)
    assert counts == [1, 2, 3]
    first, second, third = caught.value.played
    assert second is None
    assert [each.finish_s.tolist() for each in (first, third)] == [pytest.approx([1.0, 2.0]), pytest.approx([3.0, 6.0])]


@needs_simgrid
def test_where_the_solver_does_not_end_small_uses_are_left_out_and_that_is_said():
    large = [(0, 1, 100, 0.001)] * 3  # what is written takes its link little time
    replay = made(toy_machine(cores=[3, 1]), large, large, [(0, 0, 100)])
    changed = "import simgrid_replay as s; s.ATTEMPTS = ((0, 0.0), (0, 0.01), (1000, 0.02)); s.main()"
    command = [find_simgrid() or "", "-c", changed, "1"]
    text = json.dumps(referee.as_json(replay, 5))
    environment = {"PYTHONPATH": str(referee.SCRIPT.parent)}
    answer = subprocess.run(command, input=text, capture_output=True, text=True, check=True, env=environment)
    result = json.loads(answer.stdout)
    assert (result["index"], result["left_out"]) == (5, 0.02)
    assert result["finish_s"] == pytest.approx(in_python([replay])[0].finish_s.tolist(), rel=1e-3)


@needs_simgrid
def test_any_number_of_replays_can_be_played():
    assert play([]) == []
    with pytest.raises(ValueError, match="workers must be >= 1, got 0"):
        play([], workers=0)

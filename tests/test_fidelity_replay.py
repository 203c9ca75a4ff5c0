from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fluid import Fluid
from hypothesis import given, settings
from playing import assert_same_bits, bits
from strategies import Play, Task, plays, toy_machine, toy_workload

from agents.planners.catalog import make_planner
from agents.rules.catalog import make_rule
from envs.observation import ObservationKind
from envs.world import World
from experiments.fidelity.record import Recorder, record
from experiments.fidelity.replay import ACCESS, FLOW, Replay
from numa_rl.simulator.simulator import Simulator
from numa_rl.topology import LoadedLatency, Topology
from numa_rl.workloads.workload import Workload

NO_FACTOR = LoadedLatency(a=0.0, c=0.0, saturated=1.0)


def decided(topology: Topology, workload: Workload, *actions: tuple[int, ...], window_s: float = 10.0) -> Replay:
    """The replay of the first episode with these actions."""
    recorder = Recorder(World(workload, (topology,), window_s=window_s), np.array([0]), np.array([0]))
    for action in actions:
        recorder.step(np.array([action]))
    return recorder.replays()[0]


def replayed(play: Play) -> tuple[Replay, Recorder]:
    """The replay of a random play's first episode, and who wrote it."""
    world = World(play.workload, (play.topology,), window_s=play.window_s)
    recorder = Recorder(world, np.array([0]), np.array([0]))
    for task in range(play.workload.num_tasks):
        recorder.step(play.actions[:1, task])
    return recorder.replays()[0], recorder


def rows(replay: Replay) -> list[tuple[float, ...]]:
    """Flows as tuples: task, initiator, target, read, written, flops, fixed time, joined."""
    return [tuple(round(float(value), 4) for value in flow[:8]) for flow in replay.flows.tolist()]


# What is written down.


def test_a_local_access_is_one_flow_with_arithmetic_and_overhead():
    task = Task(num_bytes=200, write_fraction=0.25, flops=700, overhead_s=0.5)
    assert rows(decided(toy_machine(), toy_workload([task]), (0, 0))) == [(0, 0, 0, 150, 50, 700, 0.5, 0)]


def test_inputs_are_read_from_each_node_before_the_own_access():
    tasks = [Task(obj=0), Task(obj=1), Task(obj=2, num_bytes=10, reads=((0, 50.0), (1, 20.0)))]
    replay = decided(toy_machine(), toy_workload(tasks), (0, 0), (1, 1), (0, 0))
    near, far, own = rows(replay)[2:]
    assert near == (2, 0, 0, 50, 0, 0, 1.0, 0)  # locally S / B + L, of which L is added
    assert far == (2, 0, 1, 20, 0, 0, 2.2, 0)  # one chunk is best: split off at 100 bytes a second, then L
    assert own == (2, 0, 0, 10, 0, 0, 0, 0)
    assert replay.waits == ((), (), (0, 1))


def test_messages_of_one_node_are_one():
    tasks = [Task(obj=0), Task(obj=1), Task(obj=2, reads=((0, 50.0), (1, 20.0)))]
    replay = decided(toy_machine(), toy_workload(tasks), (0, 0), (0, 0), (0, 0))
    assert rows(replay)[2] == (2, 0, 0, 70, 0, 0, 1.0, 0)


def test_a_move_is_read_and_written_together_after_the_kernels_work():
    machine = toy_machine(page_move_s=0.1)
    replay = decided(machine, toy_workload([Task(size=100), Task(size=100, num_bytes=30)]), (0, 0), (0, 1))
    read, written, own = rows(replay)[1:]
    assert read[:6] == (1, 1, 0, 100, 0, 0)
    assert written == (1, 1, 1, 0, 100, 0, 0, 1)
    assert own == (1, 0, 1, 30, 0, 0, 0, 0)
    alone = Recorder(World(toy_workload([Task(size=100)] * 2), (machine,)), np.array([0]), np.array([0]))
    alone.step(np.array([(0, 0)]))
    migration_s = alone.step(np.array([(0, 1)])).migration_s[0]
    assert read[6] == pytest.approx(migration_s - 100 / 50, abs=1e-4)
    assert read[6] > 10 * 0.1  # ten pages


def test_pages_of_an_object_are_accessed_part_by_part():
    machine = toy_machine(page_move_s=0.0)
    tasks = [Task(size=100, num_bytes=200, flops=900)]
    near, far = rows(decided(machine, toy_workload(tasks), (0, 0, 3, 1)))
    # 10 pages by 3 : 1 are 7 and 3; 140 bytes at 100 a second and 60 at 50 take 1.4 and 1.2 s.
    assert near == (0, 0, 0, 140, 0, round(900 * 1.4 / 2.6, 4), 0, 0)
    assert far == (0, 0, 1, 60, 0, round(900 * 1.2 / 2.6, 4), 0, 0)


def test_a_copy_of_what_is_only_read_is_made_once_and_read_by_those_near_it():
    workload = toy_workload([Task(num_bytes=10)] * 3)
    workload = replace(workload, read_only=np.ones_like(workload.read_only))
    replay = decided(toy_machine(), workload, (0, 0), (1, 1), (1, 1))
    pairs = [(flow[0], flow[1], flow[2], flow[3], flow[4]) for flow in rows(replay)]
    assert pairs == [(0, 0, 0, 10, 0), (1, 1, 0, 100, 0), (1, 1, 1, 0, 100), (1, 1, 1, 10, 0), (2, 1, 1, 10, 0)]
    assert replay.waits == ((), (0,), (0,))  # for its creation; copying and reading delay nobody


def test_tasks_wait_for_the_last_who_wrote_created_or_moved_what_they_touch():
    tasks = [
        Task(obj=0),
        Task(obj=0),  # only reads
        Task(obj=0, write_fraction=0.5, num_bytes=10),
        Task(obj=0),  # moves it
        Task(obj=1, reads=((0, 5.0),)),
        Task(obj=0, reads=((1, 5.0),)),
    ]
    replay = decided(toy_machine(), toy_workload(tasks), (0, 0), (0, 0), (0, 0), (1, 1), (0, 0), (1, 1))
    assert replay.waits == ((), (0,), (0,), (2,), (3,), (3, 4))


def test_coherence_is_in_the_fixed_time_of_the_own_access():
    machine = toy_machine(outstanding_bytes=50.0)
    tasks = [Task(num_bytes=50, write_fraction=1.0), Task(num_bytes=50, overhead_s=0.25)]
    workload = toy_workload(tasks)
    simulator = Simulator(machine, workload, 1, window_s=10.0)
    simulator.reset(0)
    simulator.step(np.array([(0, 0)]))
    coherence_s = float(simulator.step(np.array([(1, 0)])).coherence_s[0])
    assert coherence_s > 0.0
    last = decided(machine, workload, (0, 0), (1, 0)).flows[-1]
    assert last["fixed_s"] == pytest.approx(0.25 + coherence_s)


def test_a_dropped_task_has_no_flows_and_nobody_waits_for_it():
    machine = toy_machine(memory_bytes=[100.0, 100.0])
    tasks = [Task(obj=0, size=101), Task(obj=1, size=100, reads=((0, 5.0),))]
    replay = decided(machine, toy_workload(tasks), (0, 0), (0, 0))
    assert replay.node.tolist() == [-1, 0]
    assert replay.ran.tolist() == [False, True]
    assert np.isinf(replay.response_s[0])
    assert [flow[0] for flow in rows(replay)] == [1]
    assert replay.waits == ((), ())


def test_a_task_runs_on_the_nearest_node_with_cores():
    replay = decided(toy_machine(cores=[0, 1]), toy_workload([Task(num_bytes=10)]), (0, 0))
    assert replay.node.tolist() == [1]
    assert rows(replay)[0][:4] == (0, 1, 0, 10)


# Laws.


@settings(max_examples=60, deadline=None)
@given(plays(max_tasks=10, weights=True))
def test_all_bytes_that_the_simulator_moves_are_written_down(play):
    replay, recorder = replayed(play)
    moved = recorder.state.pair_bytes[0].reshape(replay.pair_bytes().shape)
    np.testing.assert_allclose(replay.pair_bytes(), moved, rtol=1e-5)
    ran = np.flatnonzero(replay.ran)
    assert set(ran) == set(replay.flows["task"].tolist())
    flops = np.bincount(replay.flows["task"], replay.flows["flops"], replay.num_tasks)
    np.testing.assert_allclose(flops[ran], play.workload.flops[0, ran], rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(plays(max_tasks=10, weights=True))
def test_writing_down_changes_nothing_that_is_simulated(play):
    _, recorder = replayed(play)
    plain = Simulator(play.topology, play.workload, 1, window_s=play.window_s)
    plain.reset(0)
    for task in range(play.workload.num_tasks):
        plain.step(play.actions[:1, task])
    assert_same_bits(bits(plain), bits(recorder))


@settings(max_examples=80, deadline=None)
@given(plays(max_tasks=12, weights=True))
def test_who_queues_and_waits_for_whom_is_all_written_down(play):
    n = play.topology.num_nodes
    endless = replace(
        play.topology,
        loaded_latency=NO_FACTOR,
        memory_bandwidth_bytes_per_s=np.full(n, 1e30),
        bandwidth_bytes_per_s=np.full((n, n), 1e30),
        link_bandwidth_bytes_per_s=np.full(play.topology.num_links, 1e30),
    )  # streams are bound by their own cores alone, so nothing is shared
    replay, _ = replayed(replace(play, topology=endless))
    fluid = Fluid(replay).play()
    ran = np.flatnonzero(replay.ran)
    finish_s = np.array([fluid.finish_s[task] for task in ran])
    response_s = finish_s - [fluid.decided_s[task] for task in ran]
    np.testing.assert_allclose(finish_s, replay.finish_s[ran], rtol=1e-6)
    np.testing.assert_allclose(response_s, replay.response_s[ran], rtol=1e-6, atol=1e-6 * finish_s.max(initial=0.0))


@settings(max_examples=60, deadline=None)
@given(plays(max_tasks=8, weights=True))
def test_a_task_alone_on_an_idle_machine_takes_what_the_simulator_says(play):
    topology = replace(play.topology, loaded_latency=NO_FACTOR)
    apart = np.arange(play.workload.num_tasks)[None] * 1e4
    workload = replace(play.workload, arrival_s=apart)
    replay, _ = replayed(Play(topology, workload, play.window_s, play.actions))
    fluid = Fluid(replay).play()
    ran = replay.ran
    took_s = [end - begin for end, begin, ok in zip(fluid.finish_s, fluid.decided_s, ran, strict=True) if ok]
    np.testing.assert_allclose(took_s, replay.response_s[ran], rtol=1e-6, atol=1e-10)


# Playing whole worlds.


def test_every_episode_is_recorded_on_every_machine():
    world = World.default()
    slower = replace(world.topologies[0], flops_per_s=world.topologies[0].flops_per_s / 2.0)
    world = replace(world, topologies=(*world.topologies, slower))
    replays = record(world, make_rule("greedy"), [2, 5])
    assert [replay.topology for replay in replays] == [world.topologies[0]] * 2 + [slower] * 2
    for replay, episode in zip(replays, [2, 5, 2, 5], strict=True):
        np.testing.assert_array_equal(replay.arrival_s, world.workload.arrival_s[episode])
    assert replays[0].finish_s.max() < replays[2].finish_s.max()


def test_rules_see_the_full_observation_and_planners_plan():
    world = World.default(ObservationKind.CHAPTER)
    (seen,) = record(world, make_rule("greedy"), [0])
    (full,) = record(World.default(), make_rule("greedy"), [0])
    np.testing.assert_array_equal(seen.flows, full.flows)
    (planned,) = record(World.default(), make_planner("heft"), [0])
    assert (planned.node != full.node).any()


@pytest.mark.parametrize("episodes", [[], [0.5], [[0]]])
def test_episodes_must_be_indices(episodes):
    with pytest.raises(ValueError, match="episodes must be one or more indices, got"):
        record(World.default(), make_rule("greedy"), episodes)


# What is refused.


def replay_with(**changes: Any) -> Replay:
    flows = np.array([(0, 0, 1, 10.0, 0.0, 0.0, 0.0, 0, ACCESS), (1, 1, 1, 0.0, 5.0, 1.0, 0.0, 0, ACCESS)], FLOW)
    for name in set(changes) & set(FLOW.names or ()):
        flows[name] = changes.pop(name)
    figures: dict[str, Any] = {
        "topology": toy_machine(),
        "arrival_s": np.array([0.0, 1.0]),
        "node": np.array([0, 1]),
        "follows_inputs": False,
        "waits": ((), (0,)),
        "flows": flows,
        "response_s": np.ones(2),
        "finish_s": np.ones(2),
        "window_s": 1.0,
    }
    return Replay(**{**figures, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"node": np.array([0])}, r"node must have shape \(2,\), got \(1,\)"),
        ({"node": np.array([0, 2])}, r"node\[1\] must be in -1\.\.1, got 2"),
        ({"node": np.array([-1, 1])}, r"task 1 can only wait for earlier tasks that ran, got 0"),
        ({"node": np.array([0, -1])}, r"task of flow\[1\] must be one that ran, got 1"),
        ({"topology": toy_machine(cores=[0, 1])}, r"node\[0\] must be a node with cores, got 0"),
        ({"arrival_s": np.array([2.0, 1.0])}, r"arrival_s\[1\] must be non-decreasing, got 1\.0"),
        ({"arrival_s": np.array([0.0, np.nan])}, r"arrival_s\[1\] must be finite and >= 0, got nan"),
        ({"waits": ((),)}, "waits must be given for 2 tasks, got 1"),
        ({"waits": ((0,), ())}, "task 0 can only wait for earlier tasks that ran, got 0"),
        ({"waits": ((), (-1,))}, "task 1 can only wait for earlier tasks that ran, got -1"),
        ({"flows": np.zeros(2)}, "flows must be of FLOW"),
        ({"task": [1, 0]}, r"task of flow\[1\] must be non-decreasing, got 0"),
        ({"task": [0, 2]}, r"task of flow\[1\] must be in 0\.\.1, got 2"),
        ({"target": [0, 2]}, r"target\[1\] must be in 0\.\.1, got 2"),
        ({"read_bytes": [-1.0, 0.0]}, r"read_bytes\[0\] must be finite and >= 0, got -1\.0"),
        ({"flops": [0.0, np.inf]}, r"flops\[1\] must be finite and >= 0, got inf"),
        ({"joined": [0, 1]}, r"joined\[1\] must be 0 in a task's first flow, got 1"),
        ({"task": [1, 1], "joined": [0, 1], "fixed_s": [0, 1]}, r"fixed_s\[1\] must be 0 where a flow joins"),
    ],
)
def test_a_replay_says_what_is_wrong_with_it(changes, message):
    with pytest.raises(ValueError, match=f"replay: {message}"):
        replay_with(**changes)


def test_an_empty_replay_of_dropped_tasks_can_be_written_down():
    replay = replay_with(node=np.array([-1, -1]), waits=((), ()), flows=np.zeros(0, FLOW))
    assert not replay.pair_bytes().any()

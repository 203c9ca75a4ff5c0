from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import Task, plays, toy_machine, toy_workload
from test_simulator_laws import relabelled

from numa_rl.breakdown import PARTS, CoreTime, Recorder, TaskTimes, core_time
from numa_rl.metrics import pair_bytes
from numa_rl.simulator.simulator import Simulator
from numa_rl.topology import Topology


def times(*tasks: tuple[float, float, float, float, float]) -> TaskTimes:
    """One run: (start, compute, local, remote, overhead) of every task."""
    columns = np.array(tasks, np.float64).T[:, None, :]
    return TaskTimes(*columns)


def recorded(topology: Topology, workload, actions, window_s: float = 1e9) -> Recorder:
    """Every episode, each task by its action: shape (E, T, 2 or 2 + N)."""
    simulator = Simulator(topology, workload, len(actions), window_s=window_s)
    simulator.reset(np.arange(len(actions)))
    recorder = Recorder(simulator)
    for task in range(workload.num_tasks):
        recorder.step(np.asarray(actions)[:, task])
    return recorder


def shares(found: CoreTime) -> list[float]:
    return [float(getattr(found, name)[0]) for name in PARTS]


# Core time of tasks whose times are known.


def test_one_core_that_never_waits_only_computes_and_moves_bytes():
    found = core_time(times((1.0, 3.0, 2.0, 0.0, 0.0), (6.0, 1.0, 0.0, 4.0, 0.0)), 1)
    assert shares(found) == pytest.approx([0.4, 0.2, 0.4, 0.0])
    assert (found.begin_s[0], found.end_s[0], found.makespan_s[0]) == (1.0, 11.0, 10.0)


def test_a_core_with_nothing_to_do_is_synchronisation_and_so_is_what_software_adds():
    # Two cores for 10 s: one computes 8 s and spends 2 on messages, the other computes 5 s and waits.
    found = core_time(times((0.0, 8.0, 0.0, 0.0, 2.0), (0.0, 5.0, 0.0, 0.0, 0.0)), 2)
    assert shares(found) == pytest.approx([13 / 20, 0.0, 0.0, 7 / 20])


def test_what_loads_the_data_is_left_out_and_what_it_holds_of_the_cores_is_nobodys():
    # Loading holds one of two cores from 0 to 4; the work runs from 2 to 10 on the other and, after 4, on both.
    every = times((0.0, 0.0, 4.0, 0.0, 0.0), (2.0, 8.0, 0.0, 0.0, 0.0), (4.0, 0.0, 0.0, 6.0, 0.0))
    found = core_time(every, 2, [False, True, True])
    assert shares(found) == pytest.approx([8 / 14, 0.0, 6 / 14, 0.0])
    assert found.makespan_s[0] == 8.0


def test_tasks_that_never_ran_take_no_time():
    found = core_time(times((0.0, 2.0, 0.0, 0.0, 0.0), (np.nan, 0.0, 0.0, 0.0, 0.0)), 1)
    assert shares(found) == pytest.approx([1.0, 0.0, 0.0, 0.0])


def test_core_time_refuses_what_has_none():
    one = times((0.0, 1.0, 0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="num_cores must be >= 1, got 0"):
        core_time(one, 0)
    with pytest.raises(ValueError, match="counted tasks must run and take time"):
        core_time(one, 1, [False])
    with pytest.raises(ValueError, match=r"local_s must be >= 0, got -1\.0"):
        times((0.0, 1.0, -1.0, 0.0, 0.0))
    with pytest.raises(ValueError, match=r"compute_s must have shape \(1, 1\)"):
        TaskTimes(np.zeros((1, 1)), *np.zeros((4, 1, 2)))


# What the simulator's tasks do. A core does 100 flop/s; memory gives 100 bytes a second locally, 50 to a neighbour.


def one_task(task: Task, action: tuple[int, int], before: Task | None = None, before_on: int = 0) -> dict[str, float]:
    """The parts of the last task's time, after one that makes what it reads."""
    tasks = [task] if before is None else [before, task]
    actions = [[action] if before is None else [(before_on, before_on), action]]
    found = recorded(toy_machine(), toy_workload(tasks), actions).times
    return {name: float(getattr(found, name)[0, -1]) for name in ("compute_s", "local_s", "remote_s", "overhead_s")}


def test_arithmetic_hides_what_is_read_meanwhile_and_no_more():
    hidden = one_task(Task(flops=300, num_bytes=200), (0, 0))
    assert hidden == pytest.approx({"compute_s": 3.0, "local_s": 0.0, "remote_s": 0.0, "overhead_s": 0.0})
    beyond = one_task(Task(flops=300, num_bytes=500), (0, 0))
    assert beyond == pytest.approx({"compute_s": 3.0, "local_s": 2.0, "remote_s": 0.0, "overhead_s": 0.0})


def test_an_object_elsewhere_is_remote_time_and_a_message_is_overhead():
    parts = one_task(Task(flops=100, num_bytes=200, overhead_s=0.5), (0, 1))
    assert parts == pytest.approx({"compute_s": 1.0, "local_s": 0.0, "remote_s": 3.0, "overhead_s": 0.5})


@pytest.mark.parametrize(("node", "part"), [(0, "local_s"), (1, "remote_s")])
def test_an_input_counts_by_where_it_lies(node: int, part: str):
    parts = one_task(Task(obj=1, reads=((0, 100.0),)), (0, 0), before=Task(obj=0), before_on=node)
    assert parts[part] > 1.0  # 100 bytes at 100 or 50 a second, and the latency
    assert sum(parts.values()) == parts[part]


def test_inputs_of_both_kinds_are_told_apart():
    tasks = [Task(obj=0), Task(obj=1), Task(obj=2, reads=((0, 100.0), (1, 100.0)))]
    actions = [[(0, 0), (1, 1), (0, 0)]]
    both = recorded(toy_machine(), toy_workload(tasks), actions).times
    near = one_task(Task(obj=1, reads=((0, 100.0),)), (0, 0), before=Task(obj=0), before_on=0)
    far = one_task(Task(obj=1, reads=((0, 100.0),)), (0, 0), before=Task(obj=0), before_on=1)
    assert both.local_s[0, 2] == pytest.approx(near["local_s"], rel=1e-6)
    assert both.remote_s[0, 2] == pytest.approx(far["remote_s"], rel=1e-6)


def test_a_move_between_nodes_is_remote_time():
    tasks = [Task(obj=0, size=100.0), Task(obj=0, size=100.0)]
    found = recorded(toy_machine(), toy_workload(tasks), [[(0, 0), (1, 1)]]).times
    assert found.remote_s[0, 1] > 3.0  # 100 bytes at 50 a second, and ten pages at a tenth of a second
    assert found.local_s[0, 1] == found.compute_s[0, 1] == 0.0


def test_pages_on_two_nodes_are_both():
    tasks = [Task(obj=0, num_bytes=200.0, size=100.0)]
    found = recorded(toy_machine(), toy_workload(tasks), [[(0, 0, 1, 1)]]).times
    assert found.local_s[0, 0] == pytest.approx(1.0)  # half of 200 bytes at 100 a second
    assert found.remote_s[0, 0] == pytest.approx(2.0)  # the other half at 50


def test_a_recorder_needs_one_machine_and_fresh_runs():
    machine, workload = toy_machine(), toy_workload([Task(), Task()])
    simulator = Simulator([machine, machine], workload, 2, window_s=1.0)
    simulator.reset(0, machines=[0, 1])
    with pytest.raises(ValueError, match=r"rows must be on one machine, got machines \[0, 1\]"):
        Recorder(simulator)
    simulator.reset(0)
    with pytest.raises(ValueError, match="counted must be a mask of 2 tasks"):
        Recorder(simulator, [True])
    simulator.step(np.zeros((2, 2), np.int64))
    with pytest.raises(ValueError, match="runs must be recorded from their first task on, got task 1"):
        Recorder(simulator)


# Laws.


def all_times(recorder: Recorder) -> TaskTimes:
    found = recorder.times
    assume(not np.isnan(found.start_s).all(axis=1).any())
    assume((np.nansum(found.busy_s, axis=1) > 0).all())
    return found


@given(plays(num_episodes=2, weights=True))
def test_shares_are_never_negative_and_sum_to_one(play):
    found = all_times(recorded(play.topology, play.workload, play.actions, play.window_s))
    share = core_time(found, int(play.topology.cores.sum()))
    parts = np.stack([getattr(share, name) for name in PARTS])
    assert (parts >= 0.0).all()
    np.testing.assert_allclose(parts.sum(axis=0), 1.0, rtol=1e-9)


@given(plays(num_episodes=2, weights=True))
def test_parts_are_all_the_time_that_the_simulator_counts(play):
    recorder = recorded(play.topology, play.workload, play.actions, play.window_s)
    found, totals = all_times(recorder), recorder.simulator.totals
    np.testing.assert_allclose(found.busy_s.sum(axis=1), totals.compute_s + totals.communication_s, rtol=1e-6)
    placed = totals.dropped == 0  # a task that was dropped ends when it arrives
    np.testing.assert_allclose(found.finish_s.max(axis=1)[placed], totals.last_finish_s[placed], rtol=1e-6)
    np.testing.assert_array_equal(recorder.moved_bytes, pair_bytes(recorder.simulator))


@given(plays(num_episodes=2, min_nodes=2), st.randoms(use_true_random=False))
def test_the_names_of_nodes_do_not_matter(play, random):
    new_name = np.array(random.sample(range(play.topology.num_nodes), play.topology.num_nodes))
    other = relabelled(play.topology, new_name)
    found = recorded(play.topology, play.workload, play.actions, play.window_s)
    again = recorded(other, play.workload, new_name[play.actions], play.window_s)
    cores = int(play.topology.cores.sum())
    one, two = (core_time(all_times(each), cores) for each in (found, again))
    for name in PARTS:
        np.testing.assert_allclose(getattr(two, name), getattr(one, name), rtol=1e-4, atol=1e-7)
    moved = again.moved_bytes[:, new_name][:, :, new_name]
    np.testing.assert_allclose(moved, found.moved_bytes, rtol=1e-6)


@given(plays(num_episodes=2, min_nodes=2))
def test_with_all_on_one_node_nothing_is_remote(play):
    node = int(np.argmax(play.topology.cores * play.topology.memory_bytes))
    found = recorded(play.topology, play.workload, np.full_like(play.actions, node), play.window_s)
    away = found.moved_bytes.sum(axis=3)
    away[:, node, node] = 0.0
    assume(not away.any())  # as where it is full, and others take what it cannot
    np.testing.assert_array_equal(found.times.remote_s, 0.0)


@given(plays(num_episodes=3, weights=True), st.integers(0, 2))
def test_a_run_is_the_same_alone_and_among_others(play, episode):
    together = recorded(play.topology, play.workload, play.actions, play.window_s)
    simulator = Simulator(play.topology, play.workload, 1, window_s=play.window_s)
    simulator.reset(episode)
    alone = Recorder(simulator)
    for task in range(play.workload.num_tasks):
        alone.step(play.actions[episode : episode + 1, task])
    for name in ("start_s", "compute_s", "local_s", "remote_s", "overhead_s"):
        np.testing.assert_array_equal(getattr(alone.times, name)[0], getattr(together.times, name)[episode])


@given(plays(max_tasks=8))
def test_traffic_of_some_tasks_and_of_the_others_is_all(play):
    half = np.arange(play.workload.num_tasks) % 2 == 0
    moved = []
    for counted in (half, ~half, half | ~half):
        simulator = Simulator(play.topology, play.workload, 1, window_s=play.window_s)
        simulator.reset(0)
        recorder = Recorder(simulator, counted)
        for task in range(play.workload.num_tasks):
            recorder.step(play.actions[:1, task])
        moved.append(recorder.moved_bytes)
    np.testing.assert_allclose(moved[0] + moved[1], moved[2], rtol=1e-6)

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from reference import Reference
from strategies import Task, machines, plays, toy_machine, toy_workload, workloads

from envs.observation import ObservationKind, ObservationLayout, Observer
from envs.observation_kernel import OBSERVATION_LIMIT, TaskFeature
from envs.reward import RewardWeights
from numa_rl.machines.builders import eight_socket_cube
from numa_rl.simulator.simulator import Simulator
from numa_rl.topology import Topology
from numa_rl.workloads.workload import Workload

modest = settings(deadline=None, max_examples=60)
FULL, CHAPTER = ObservationKind.FULL, ObservationKind.CHAPTER
MATRICES = ("communication", "latency", "bandwidth", "estimate", "congestion")


def watched(
    topology: Topology | list[Topology],
    workload: Workload,
    *,
    window_s: float = 10.0,
    num_rows: int = 1,
    alpha: float = 1.0,
    reference_s: float = 1.0,
    kind: ObservationKind = FULL,
    **options: Any,
) -> Observer:
    """An observer of rows that stand at the first task of the first episode."""
    simulator = Simulator(topology, workload, num_rows, window_s=window_s, **options)
    simulator.reset(0)
    return Observer(simulator, RewardWeights(alpha=alpha, reference_s=reference_s), kind)


def groups(observer: Observer, row: int = 0) -> dict[str, np.ndarray]:
    """Copies of the groups of one row."""
    return observer.layout.split(observer.observe()[row].copy())


def decide(observer: Observer, *actions: tuple[int, int]) -> None:
    for action in actions:
        observer.simulator.step(np.tile(action, (observer.simulator.num_rows, 1)))


# The layout.


@pytest.mark.parametrize("kind", list(ObservationKind))
@pytest.mark.parametrize("num_nodes", [1, 2, 5, 8])
def test_groups_follow_each_other_and_fill_the_row(num_nodes, kind):
    layout = ObservationLayout(num_nodes, kind)
    parts = list(layout.slices.values())
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert layout.size == parts[-1].stop


def test_a_row_of_two_nodes_has_51_values_of_which_the_chapter_has_8():
    assert ObservationLayout(2, FULL).size == 10 * 2 + 5 * 4 + 11
    assert ObservationLayout(2, CHAPTER).size == 2 + 4 + 2


@pytest.mark.parametrize("kind", list(ObservationKind))
def test_split_gives_views_and_matrices_their_shape(kind):
    layout = ObservationLayout(3, kind)
    rows = np.arange(2 * layout.size, dtype=np.float32).reshape(2, layout.size)
    parts = layout.split(rows)
    assert list(parts) == list(layout.slices)
    for name, part in parts.items():
        expected = (2, 3, 3) if name in MATRICES else (2, TaskFeature.COUNT if name == "task" else 3)
        assert part.shape == expected
        assert np.shares_memory(part, rows)
    np.testing.assert_array_equal(np.concatenate([part.reshape(2, -1) for part in parts.values()], axis=1), rows)


def test_split_refuses_rows_of_another_size():
    with pytest.raises(ValueError, match=r"an observation of 2 nodes \(full\) must have 51 values, got shape \(45,\)"):
        ObservationLayout(2, FULL).split(np.zeros(45))


@pytest.mark.parametrize("kind", list(ObservationKind))
def test_a_row_tells_its_layout_by_its_size(kind):
    for num_nodes in range(1, 129):
        layout = ObservationLayout(num_nodes, kind)
        assert ObservationLayout.of_size(layout.size) == layout


def test_no_layout_has_9_values():
    with pytest.raises(ValueError, match="no observation layout of up to 128 nodes has 9 values"):
        ObservationLayout.of_size(9)


# Known answers, on a machine of 100 bytes a second per memory and 50 per link, and a window of 10 s.


def test_memory_is_the_share_in_use():
    observer = watched(toy_machine(memory_bytes=[1000.0, 400.0]), toy_workload([Task(), Task(obj=1, size=200), Task()]))
    decide(observer, (0, 0), (1, 1))
    np.testing.assert_allclose(groups(observer)["memory"], [0.1, 0.5])


def test_communication_is_recent_traffic_over_what_the_targets_memory_moves_in_a_window():
    machine = toy_machine(memory_bandwidth_bytes_per_s=[100.0, 200.0])
    observer = watched(machine, toy_workload([Task(num_bytes=300), Task(obj=1, num_bytes=500), Task()]))
    decide(observer, (0, 0), (0, 1))
    np.testing.assert_allclose(groups(observer)["communication"], [[0.3, 0.25], [0.0, 0.0]])


def test_queue_is_outstanding_work_per_core_in_reference_times():
    tasks = [Task(flops=800), Task(obj=1, flops=600), Task(obj=2, arrival_s=2.0)]
    observer = watched(toy_machine(3, cores=[2, 1, 0]), toy_workload(tasks), reference_s=2.0)
    decide(observer, (0, 0), (1, 1))
    np.testing.assert_allclose(groups(observer)["queue"], [(8 - 2) / 2 / 2, (6 - 2) / 2, 0])


def test_task_features_are_what_the_task_demands():
    machine = toy_machine(flops_per_s=[100.0, 200.0], memory_bytes=[1000.0, 3000.0])
    tasks = [
        Task(obj=0, size=100, flops=400),
        Task(obj=1),
        Task(obj=0, size=300, arrival_s=1.0, flops=800, num_bytes=50, write_fraction=0.25, reads=((1, 40.0),)),
    ]
    observer = watched(machine, toy_workload(*[tasks]), reference_s=2.0)
    task = groups(observer)["task"]
    assert (task[TaskFeature.IS_NEW], task[TaskFeature.GROWTH]) == (1.0, pytest.approx(100 / 2000))
    assert task[TaskFeature.GAP] == 0.0  # nothing came before
    decide(observer, (0, 0), (1, 1))
    task = groups(observer)["task"]
    assert task[TaskFeature.COMPUTE] == pytest.approx(800 * (1 / 100 + 1 / 200) / 2 / 2)
    assert task[TaskFeature.MEMORY] == pytest.approx(50 / 100 / 2)
    assert task[TaskFeature.WRITE_FRACTION] == 0.25
    assert task[TaskFeature.SIZE] == pytest.approx(300 / 2000)
    assert task[TaskFeature.GROWTH] == pytest.approx(200 / 2000)
    assert task[TaskFeature.IS_NEW] == 0.0
    assert task[TaskFeature.INPUT] == pytest.approx(40 / 100 / 2)
    assert task[TaskFeature.READY] == pytest.approx((4 - 1) / 2)
    assert task[TaskFeature.GAP] == pytest.approx((1 - 0) / 2)


def test_data_is_one_where_the_object_lives():
    observer = watched(toy_machine(), toy_workload([Task(), Task()]))
    np.testing.assert_array_equal(groups(observer)["data"], [0, 0])
    decide(observer, (0, 1))
    np.testing.assert_array_equal(groups(observer)["data"], [0, 1])


def test_inputs_are_summed_by_the_node_that_holds_them():
    tasks = [Task(obj=i) for i in range(3)] + [Task(obj=3, reads=((0, 100.0), (1, 50.0), (2, 200.0)))]
    observer = watched(toy_machine(), toy_workload(tasks))
    decide(observer, (0, 0), (0, 1), (0, 0))
    np.testing.assert_allclose(groups(observer)["inputs"], [3.0, 0.5])


def test_access_is_recent_use_of_the_object_by_each_node():
    tasks = [Task(num_bytes=300), Task(obj=1, reads=((0, 500.0),)), Task(arrival_s=10.0)]
    observer = watched(toy_machine(), toy_workload(tasks), window_s=10.0)
    decide(observer, (0, 0), (1, 1))
    np.testing.assert_allclose(groups(observer)["access"], np.array([0.3, 0.5]) / np.e, rtol=1e-6)


def test_last_is_the_node_that_accessed_the_object_last_and_written_the_share_of_writes():
    tasks = [Task(num_bytes=300), Task(num_bytes=100, write_fraction=0.5), Task()]
    observer = watched(toy_machine(), toy_workload(tasks))
    np.testing.assert_array_equal(groups(observer)["last"], [0, 0])
    decide(observer, (0, 0), (1, 0))
    seen = groups(observer)
    np.testing.assert_array_equal(seen["last"], [0, 1])
    assert seen["task"][TaskFeature.WRITTEN] == pytest.approx(50 / 400)
    assert seen["task"][TaskFeature.READ_ONLY] == 0.0


def test_data_and_inputs_are_where_pages_and_copies_are():
    tasks = [Task(obj=0), Task(obj=1), Task(obj=1), Task(obj=0, reads=((0, 50.0), (1, 30.0)))]
    workload = replace(toy_workload(tasks), read_only=[[False, True]])
    observer = watched(toy_machine(), workload)
    decide(observer, (0, 0, 3, 1), (0, 0, 0, 0))
    assert groups(observer)["task"][TaskFeature.READ_ONLY] == 1.0
    decide(observer, (1, 1))
    seen = groups(observer)
    np.testing.assert_allclose(seen["data"], [0.7, 0.3])  # ten pages
    np.testing.assert_allclose(seen["inputs"], [(0.7 * 50 + 30) / 100, (0.3 * 50 + 30) / 100])


def test_migration_is_the_time_to_move_the_object_to_each_node():
    observer = watched(toy_machine(3), toy_workload([Task(), Task()]), reference_s=2.0)
    np.testing.assert_array_equal(groups(observer)["migration"], [0, 0, 0])
    decide(observer, (0, 0))
    # 100 bytes in one chunk: 1 s to read, 2 to send with 2 or 3 s of latency, 1 to write; 10 pages of 0.1 s
    np.testing.assert_allclose(groups(observer)["migration"], [0, (1 + 4 + 1 + 1) / 2, (1 + 5 + 1 + 1) / 2])


def test_latency_is_over_the_smallest_and_bandwidth_over_the_largest():
    seen = groups(watched(toy_machine(latency_s=[[2.0, 5.0], [6.0, 3.0]]), toy_workload([Task()])))
    np.testing.assert_allclose(seen["latency"], [[1.0, 2.5], [3.0, 1.5]])
    np.testing.assert_allclose(seen["bandwidth"], [[1.0, 0.5], [0.5, 1.0]])


def test_an_estimate_weighs_communication_by_alpha():
    tasks = [Task(), Task(num_bytes=200)]
    observer = watched(toy_machine(), toy_workload(tasks), alpha=0.5, reference_s=2.0)
    decide(observer, (0, 0))
    migration = 1 + 100 / 50 + 2 + 1 + 1
    expected = [[2.0, 4.0 + 0.5 * migration], [4.0, 2.0 + 0.5 * migration]]
    np.testing.assert_allclose(groups(observer)["estimate"], np.array(expected) / 2)


def test_an_estimate_counts_the_reading_of_inputs():
    observer = watched(toy_machine(), toy_workload([Task(obj=1), Task(obj=0, num_bytes=200, reads=((1, 100.0),))]))
    decide(observer, (1, 1))
    reading = np.array([100 / 100 + 100 / 50 + 2, 100 / 100 + 1])  # by task node; the input is on node 1
    np.testing.assert_allclose(groups(observer)["estimate"], [[2.0, 4.0], [4.0, 2.0]] + reading[:, None])


def test_the_estimate_of_a_node_without_cores_is_that_of_the_node_it_runs_on():
    observer = watched(toy_machine(2, cores=[1, 0]), toy_workload([Task(num_bytes=200)]))
    np.testing.assert_allclose(groups(observer)["estimate"], [[2.0, 4.0], [2.0, 4.0]])


def test_congestion_is_what_a_placement_takes_from_the_traffic_already_there():
    filling = Task(num_bytes=500)  # node 0 reads from node 1: u = 0.5 there, and 1 on the link 1 -> 0
    observer = watched(toy_machine(), toy_workload([filling, Task(obj=1, num_bytes=200)]), reference_s=2.0)
    decide(observer, (0, 1))
    near, far = 200 / 100 * 0.5, 200 / 50 * 1.0
    # node 0's memory and the link 0 -> 1 are idle
    np.testing.assert_allclose(groups(observer)["congestion"], np.array([[0, near + far], [0, near]]) / 2)


def test_congestion_counts_inputs_and_the_object_that_moves():
    filling = Task(obj=0, num_bytes=500)
    next_task = Task(obj=1, size=100, reads=((0, 50.0),))
    observer = watched(toy_machine(cores=[3, 3]), toy_workload([Task(obj=1), filling, next_task]))
    decide(observer, (0, 0), (0, 1))
    reading = np.array([50 / 100 * 0.5 + 50 / 50 * 1.0, 50 / 100 * 0.5])  # by task node; the input is on node 1
    moving = 100 / 100 * 0.5  # read from idle node 0 over the idle link 0 -> 1, written to node 1
    np.testing.assert_allclose(groups(observer)["congestion"], reading[:, None] + [0.0, moving])


def test_masks_open_nodes_with_cores_and_nodes_with_room():
    machine = toy_machine(3, cores=[1, 0, 1], memory_bytes=[50.0, 100.0, 1000.0])
    observer = watched(machine, toy_workload([Task()]))
    seen = groups(observer)
    np.testing.assert_array_equal(seen["task_mask"], [1, 0, 1])
    np.testing.assert_array_equal(seen["data_mask"], [0, 1, 1])
    np.testing.assert_array_equal(observer.masks(), [[True, False, True, False, True, True]])


def test_every_data_node_is_open_when_none_has_room():
    observer = watched(toy_machine(memory_bytes=[50.0, 50.0]), toy_workload([Task()]))
    np.testing.assert_array_equal(groups(observer)["data_mask"], [1, 1])
    np.testing.assert_array_equal(groups(observer)["estimate"], np.zeros((2, 2)))


def test_padding_is_masked_and_zero():
    wide = groups(watched([toy_machine(2), toy_machine(4)], toy_workload([Task(flops=100)])))
    np.testing.assert_array_equal(wide["nodes"], [1, 1, 0, 0])
    for name in ("memory", "queue", "data", "inputs", "access", "migration", "task_mask", "data_mask"):
        np.testing.assert_array_equal(wide[name][2:], 0, err_msg=name)
    for name in MATRICES:
        assert wide[name][:2, :2].any() or name in ("communication", "congestion")
        np.testing.assert_array_equal(wide[name][2:], 0, err_msg=name)
        np.testing.assert_array_equal(wide[name][:, 2:], 0, err_msg=name)


# Laws.


@settings(deadline=None, max_examples=150)
@given(plays() | plays(weights=True), st.floats(0.0, 3.0), st.sampled_from([1e-3, 1.0]), st.data())
def test_the_estimate_is_what_the_step_then_charges_for_every_placement(play, alpha, reference_s, data):
    n = play.topology.num_nodes
    past = data.draw(st.integers(0, play.workload.num_tasks - 1), label="decisions before")
    observer = watched(
        play.topology,
        play.workload,
        window_s=play.window_s,
        num_rows=n * n,
        alpha=alpha,
        reference_s=reference_s,
    )
    simulator = observer.simulator
    decide(observer, *play.actions[0, :past])
    estimate = groups(observer)["estimate"]
    outcome = simulator.step(np.array([(node, target) for node in range(n) for target in range(n)]))
    charged = (outcome.exec_s + alpha * outcome.comm_s).reshape(n, n) / reference_s
    runs = play.topology.cores > 0
    np.testing.assert_allclose(estimate[runs], np.minimum(charged, OBSERVATION_LIMIT)[runs], rtol=1e-4, atol=1e-5)


@modest
@given(plays(min_nodes=2) | plays(min_nodes=2, weights=True), st.data())
def test_congestion_is_the_plain_sum_over_controllers_and_links(play, data):
    n = play.topology.num_nodes
    past = data.draw(st.integers(0, play.workload.num_tasks - 1), label="decisions before")
    observer = watched(play.topology, play.workload, window_s=play.window_s)
    oracle = Reference(play.topology, play.workload, 0, play.window_s)
    for action in play.actions[0, :past]:
        decide(observer, action)
        oracle.step(*action[:2].tolist(), action[2:].tolist())
    places = [oracle.find_room(target) for target in range(n)]
    expected = [[0.0 if place is None else oracle.congestion_s(node, place) for place in places] for node in range(n)]
    runs = play.topology.cores > 0
    np.testing.assert_allclose(groups(observer)["congestion"][runs], np.array(expected)[runs], rtol=1e-3, atol=1e-6)


@modest
@given(plays() | plays(weights=True), st.data())
def test_the_migration_group_is_what_moving_would_take(play, data):
    n = play.topology.num_nodes
    past = data.draw(st.integers(0, play.workload.num_tasks - 1), label="decisions before")
    observer = watched(play.topology, play.workload, window_s=play.window_s, num_rows=n)
    decide(observer, *play.actions[0, :past])
    migration = groups(observer)["migration"]
    outcome = observer.simulator.step(np.array([(0, target) for target in range(n)]))
    np.testing.assert_allclose(migration, outcome.migration_s, rtol=1e-4, atol=1e-9)


@modest
@given(plays() | plays(weights=True), st.data())
def test_an_open_data_node_never_falls_back(play, data):
    n = play.topology.num_nodes
    past = data.draw(st.integers(0, play.workload.num_tasks - 1), label="decisions before")
    observer = watched(play.topology, play.workload, window_s=play.window_s, num_rows=n)
    decide(observer, *play.actions[0, :past])
    mask = observer.masks()
    seen = observer.layout.split(observer.observe().copy())
    np.testing.assert_array_equal(mask, np.concatenate([seen["task_mask"], seen["data_mask"]], axis=1))
    np.testing.assert_array_equal(mask[0, :n], play.topology.cores > 0)
    outcome = observer.simulator.step(np.array([(0, target) for target in range(n)]))
    np.testing.assert_array_equal(mask[0, n:], ~outcome.fell_back)


@modest
@given(plays())
def test_what_is_seen_is_within_bounds_from_the_first_task_to_after_the_last(play):
    observer = watched(play.topology, play.workload, window_s=play.window_s, reference_s=1e-3)
    seen = [observer.observe().copy()]
    for action in play.actions[0]:
        decide(observer, action)
        seen.append(observer.observe().copy())
    assert np.isfinite(seen).all()
    assert (np.array(seen) >= 0.0).all()
    assert (np.array(seen) <= OBSERVATION_LIMIT).all()
    over = observer.layout.split(seen[-1][0])
    for name in ("task", "data", "inputs", "access", "migration", "estimate", "congestion"):
        np.testing.assert_array_equal(over[name], 0, err_msg=name)
    np.testing.assert_array_equal(over["data_mask"], 1)


def test_a_time_beyond_the_limit_is_cut_off():
    observer = watched(toy_machine(), toy_workload([Task(flops=1e12), Task()]), reference_s=1e-3)
    decide(observer, (0, 0))
    seen = groups(observer)
    np.testing.assert_array_equal(seen["queue"], [OBSERVATION_LIMIT, 0])
    assert seen["estimate"].max() == OBSERVATION_LIMIT


@modest
@given(plays())
def test_the_chapters_groups_are_the_same_numbers_in_the_full_observation(play):
    options = {"window_s": play.window_s, "reference_s": 0.1}
    full = watched(play.topology, play.workload, **options)
    chapter = watched(play.topology, play.workload, kind=CHAPTER, **options)
    assert list(chapter.layout.slices) == ["memory", "communication", "queue"]
    for action in play.actions[0]:
        decide(full, action)
        decide(chapter, action)
        wanted = groups(full)
        for name, values in groups(chapter).items():
            np.testing.assert_array_equal(values, wanted[name], err_msg=name)


@settings(deadline=None, max_examples=20, phases=[Phase.explicit, Phase.generate])
@given(workloads(num_episodes=2), machines(max_nodes=3), machines(min_nodes=4))
def test_an_observation_tells_nothing_of_what_the_row_played_before(workload, small, large):
    used, fresh = (watched([small, large], workload, window_s=0.1) for _ in range(2))
    used.simulator.reset(0, machines=1)
    for _ in range(workload.num_tasks):
        used.observe()
        decide(used, (3, 2))
    for observer in (used, fresh):
        observer.simulator.reset(1, machines=0)
    for _ in range(workload.num_tasks):
        one, two = groups(used), groups(fresh)
        for name, values in one.items():
            np.testing.assert_array_equal(values, two[name], err_msg=name)
        decide(used, (0, 0))
        decide(fresh, (0, 0))


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
@settings(deadline=None, max_examples=5)
@given(workloads(num_episodes=5))
def test_any_number_of_threads_sees_the_same_bits(workload):
    observers = [watched(eight_socket_cube(), workload, num_rows=131, window_s=0.1, num_threads=k) for k in (1, 2)]
    for observer in observers:
        observer.simulator.reset(np.arange(131) % 5)
    for task in range(workload.num_tasks):
        actions = np.random.default_rng(task).integers(8, size=(131, 2))
        for observer in observers:
            observer.simulator.step(actions)
        one, two = (observer.observe() for observer in observers)
        np.testing.assert_array_equal(one, two)

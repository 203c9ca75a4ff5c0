from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from playing import assert_same_bits, bits, decide, objects, started
from strategies import Task, plays, toy_machine, toy_workload

from numa_rl.machines.builders import eight_socket_cube
from numa_rl.simulator.simulator import Simulator
from numa_rl.simulator.state import OBJECT, allocate_state, compile_machines
from numa_rl.topology import LoadedLatency
from numa_rl.workloads.workload import NEVER

modest = settings(deadline=None, max_examples=60)


# What one decision costs, on a machine of 100 bytes a second per memory and 50 per link.


def test_local_stream_runs_at_the_bandwidth_of_the_memory():
    outcome = decide(started(toy_machine(), toy_workload([Task(num_bytes=200)])), (0, 0))
    assert outcome["exec_s"] == pytest.approx(2.0)  # 200 / 100
    assert outcome["comm_s"] == 0.0
    assert (outcome["local_bytes"], outcome["remote_bytes"]) == (200.0, 0.0)


def test_remote_stream_runs_at_the_bandwidth_of_the_link():
    outcome = decide(started(toy_machine(), toy_workload([Task(num_bytes=200)])), (0, 1))
    assert outcome["exec_s"] == pytest.approx(4.0)  # 200 / 50
    assert (outcome["local_bytes"], outcome["remote_bytes"]) == (0.0, 200.0)


def test_service_takes_the_longer_of_arithmetic_and_memory():
    machine = toy_machine()
    assert decide(started(machine, toy_workload([Task(flops=300, num_bytes=200)])), (0, 0))["exec_s"] == 3.0
    assert decide(started(machine, toy_workload([Task(flops=300, num_bytes=400)])), (0, 0))["exec_s"] == 4.0


def test_overhead_comes_on_top_of_arithmetic_and_memory():
    task = Task(flops=300, num_bytes=400, overhead_s=0.5)
    assert decide(started(toy_machine(), toy_workload([task])), (0, 0))["exec_s"] == 4.5


def test_reads_and_writes_cross_a_link_in_opposite_directions():
    machine = toy_machine(bandwidth_bytes_per_s=[[100.0, 100.0], [100.0, 100.0]], link_bandwidth_bytes_per_s=[20.0] * 2)

    def exec_s(write_fraction: float) -> float:
        task = Task(num_bytes=200, write_fraction=write_fraction)
        return float(decide(started(machine, toy_workload([task])), (0, 1))["exec_s"])

    assert exec_s(0.0) == pytest.approx(10.0)  # 200 / 20
    assert exec_s(0.5) == pytest.approx(5.0)  # 100 / 20 each way at once
    assert exec_s(0.75) == pytest.approx(7.5)  # 150 / 20 away
    assert exec_s(1.0) == pytest.approx(10.0)


def test_the_two_directions_of_a_link_may_differ():
    machine = toy_machine(
        bandwidth_bytes_per_s=[[100.0, 100.0], [100.0, 100.0]], link_bandwidth_bytes_per_s=[10.0, 20.0]
    )  # 0 -> 1 gives 10, 1 -> 0 gives 20
    reading = toy_workload([Task(num_bytes=200)])
    writing = toy_workload([Task(num_bytes=200, write_fraction=1.0)])
    assert decide(started(machine, reading), (0, 1))["exec_s"] == pytest.approx(10.0)
    assert decide(started(machine, writing), (0, 1))["exec_s"] == pytest.approx(20.0)


def test_one_core_streams_at_most_its_outstanding_bytes_per_latency():
    outcome = decide(started(toy_machine(outstanding_bytes=20.0), toy_workload([Task(num_bytes=200)])), (0, 1))
    assert outcome["exec_s"] == pytest.approx(20.0)  # 20 bytes in flight, 2 s away: 10 bytes a second


def test_a_small_remote_input_is_split_off_and_then_transferred_as_one_chunk():
    workload = toy_workload([Task(obj=1), Task(obj=0, reads=((1, 100.0),))])
    outcome = decide(started(toy_machine(), workload), (1, 1), (0, 0))
    assert outcome["comm_s"] == pytest.approx(5.0)  # 100 / 100, then 100 / 50 + 2
    assert outcome["exec_s"] == 0.0
    assert outcome["remote_bytes"] == 100.0


def test_a_large_remote_input_is_split_off_while_the_chunk_before_is_transferred():
    workload = toy_workload([Task(obj=1), Task(obj=0, reads=((1, 10_000.0),))])
    outcome = decide(started(toy_machine(), workload), (1, 1), (0, 0))
    # Chunks of c cost 10,000 / 50 + c / 100 + 2 x 10,000 / c, least at c = sqrt(2 x 10,000 x 100).
    assert outcome["comm_s"] == pytest.approx(200.0 + 2.0 * np.sqrt(200.0))


def test_chunks_fit_twice_into_the_cache_they_arrive_in():
    workload = toy_workload([Task(obj=1), Task(obj=0, reads=((1, 10_000.0),))])
    outcome = decide(started(toy_machine(llc_bytes=[2000.0, 1e9]), workload), (1, 1), (0, 0))
    assert outcome["comm_s"] == pytest.approx(200.0 + 1000 / 100 + 2 * 10_000 / 1000)


def test_a_local_input_costs_its_bytes_and_one_latency():
    workload = toy_workload([Task(obj=1), Task(obj=0, reads=((1, 100.0),))])
    outcome = decide(started(toy_machine(llc_bytes=2.0), workload), (1, 1), (1, 0))
    assert outcome["comm_s"] == pytest.approx(2.0)  # 100 / 100 + 1


def test_inputs_from_one_node_are_aggregated_into_one_message():
    workload = toy_workload([Task(obj=1), Task(obj=2), Task(obj=0, reads=((1, 60.0), (2, 40.0)))])
    outcome = decide(started(toy_machine(), workload), (1, 1), (1, 1), (0, 0))
    assert outcome["comm_s"] == pytest.approx(5.0)  # as one input of 100


def test_inputs_of_different_nodes_are_read_one_after_another():
    workload = toy_workload([Task(obj=1), Task(obj=2), Task(obj=0, reads=((1, 100.0), (2, 100.0)))])
    outcome = decide(started(toy_machine(), workload), (1, 1), (1, 0), (0, 0))
    assert outcome["comm_s"] == pytest.approx(5.0 + 2.0)  # 100 / 100 + 100 / 50 + 2, then 100 / 100 + 1
    assert (outcome["local_bytes"], outcome["remote_bytes"]) == (100.0, 100.0)


def test_an_input_that_lives_nowhere_costs_nothing():
    outcome = decide(started(toy_machine(), toy_workload([Task(obj=0, reads=((1, 100.0),))])), (0, 0))
    assert (outcome["comm_s"], outcome["local_bytes"], outcome["remote_bytes"]) == (0.0, 0.0, 0.0)


def test_an_input_of_which_nothing_is_read_costs_no_latency():
    workload = toy_workload([Task(obj=1), Task(obj=0, reads=((1, 0.0),))])
    assert decide(started(toy_machine(), workload), (1, 1), (0, 0))["comm_s"] == 0.0


def test_an_object_that_lives_elsewhere_migrates():
    workload = toy_workload([Task(size=100), Task(size=150, arrival_s=1000)])
    simulator = started(toy_machine(), workload)
    outcome = decide(simulator, (0, 0), (1, 1))
    assert outcome["migrated"]
    assert outcome["migration_s"] == pytest.approx(1 + 4 + 1 + 10 * 0.1)  # the old size: read, sent, written, 10 pages
    assert outcome["comm_s"] == outcome["migration_s"]
    assert objects(simulator) == [(1, 150.0)]
    np.testing.assert_array_equal(simulator.state.memory_used_bytes[0], [0, 150])


def test_a_page_that_is_not_full_moves_like_a_full_one():
    workload = toy_workload([Task(size=91), Task(size=91, arrival_s=1000)])
    outcome = decide(started(toy_machine(), workload), (0, 0), (1, 1))
    assert outcome["migration_s"] == pytest.approx(91 / 100 + 91 / 50 + 2 + 91 / 100 + 10 * 0.1)


def test_a_migration_is_as_slow_as_the_memory_it_is_written_to():
    machine = toy_machine(memory_bandwidth_bytes_per_s=[100.0, 10.0])
    workload = toy_workload([Task(size=100), Task(size=100, arrival_s=1000)])
    # Stages of a chunk c: c / 100, c / 50 + 2, c / 10. The last is the slowest from c = 2 / (1/10 - 1/50) = 25 on:
    # 25 / 100 + 2.5 + 2.5 for the first chunk, and 2.5 for each of three more, which is less than 100 / 10 + 4 + 1.
    assert decide(started(machine, workload), (0, 0), (1, 1))["migration_s"] == pytest.approx(
        0.25 + 2.5 + 2.5 + 3 * 2.5 + 1
    )


def test_migrated_bytes_are_remote_and_pass_both_memories():
    workload = toy_workload([Task(size=100), Task(size=100)])
    simulator = started(toy_machine(), workload)
    outcome = decide(simulator, (0, 0), (1, 1))
    assert (outcome["local_bytes"], outcome["remote_bytes"]) == (0.0, 100.0)
    np.testing.assert_array_equal(simulator.state.traffic_bytes[0].reshape(2, 2), [[0, 0], [100, 100]])
    np.testing.assert_array_equal(simulator.state.resource_bytes[0], [100, 100, 100, 0])  # link 0 -> 1 carries it


# Graphs of tasks.


def test_in_a_stream_tasks_wait_for_inputs_and_in_a_graph_time_moves_to_when_they_are_ready():
    tasks = [Task(obj=0, flops=700, num_bytes=1, write_fraction=1.0), Task(obj=1, arrival_s=2.0, reads=((0, 0.0),))]
    stream = started(toy_machine(), toy_workload(tasks))
    assert decide(stream, (0, 0), (1, 1))["wait_s"] == pytest.approx(5.0)
    graph = started(toy_machine(), replace(toy_workload(tasks), follows_inputs=True))
    decide(graph, (0, 0))
    assert graph.state.now_s[0] == pytest.approx(7.0)
    assert decide(graph, (1, 1))["wait_s"] == pytest.approx(0.0)


# Contention.


@pytest.mark.parametrize(
    ("bytes_there", "times_slower"),
    [
        (0, 1.0),
        (200, 1 + 2 * 1.5 / 2.5),  # x = 1: as large as the new one
        (100, 1 + 2 * 2 / 5),  # x = 2
        (400, 1 + 2 * 1.25 / 1.625),  # x = 1 / 2
        (2e9, 3.0),  # far longer: half of the memory, and as much again for what that takes from the other
    ],
)
def test_a_stream_pays_for_the_delay_it_meets_and_gives(bytes_there, times_slower):
    workload = toy_workload([Task(obj=0, num_bytes=bytes_there), Task(obj=1, num_bytes=200)])
    outcome = decide(started(toy_machine(cores=[2, 1]), workload, window_s=10.0), (0, 0), (0, 0))
    assert outcome["exec_s"] == pytest.approx(200 / 100 * times_slower)  # 1 + 2 n (1 + x / 2) / (1 + x + x^2 / 2)


def test_latency_under_load_follows_the_fitted_curve():
    def latency_s(num_bytes: float, c: float) -> float:
        machine = toy_machine(cores=[3, 1], loaded_latency=LoadedLatency(a=1.0, c=c, saturated=4.0))
        tasks = [Task(obj=0, num_bytes=num_bytes), Task(obj=1, reads=((0, 1e-6),))]
        return float(decide(started(machine, toy_workload(tasks), window_s=10.0), (0, 0), (0, 1))["comm_s"])

    assert latency_s(0, c=0.5) == pytest.approx(1.0)
    assert latency_s(1000, c=0.5) == pytest.approx(3.0)  # one stream has the whole controller, u = 1: 1 + 1 / (1 - 0.5)
    assert latency_s(10, c=0.5) == pytest.approx(3.0)  # however short it is
    assert latency_s(1000, c=0.9) == pytest.approx(4.0)  # 1 + 1 / (1 - 0.9) = 11, but it saturates at 4


def test_the_busiest_link_of_a_route_sets_latency_even_in_the_other_direction():
    reading = Task(obj=0, num_bytes=500)  # node 0 reads from node 1: link 1 -> 0 at its 50 bytes a second, u = 1
    other = Task(obj=1, size=100)
    workload = toy_workload([other, reading, Task(obj=2, reads=((1, 1e-6),))])
    outcome = decide(started(toy_machine(cores=[2, 2]), workload, window_s=10.0), (0, 0), (0, 1), (1, 1))
    assert outcome["comm_s"] == pytest.approx(2.0 * 3.0, rel=1e-5)  # reads take link 0 -> 1, but the reply waits


def test_traffic_decays_with_the_window():
    workload = toy_workload([Task(num_bytes=1000), Task(obj=1, arrival_s=10.0)])
    simulator = started(toy_machine(), workload, window_s=10.0)
    decide(simulator, (0, 1))
    assert simulator.state.traffic_bytes[0, 1] == pytest.approx(1000 / np.e)
    np.testing.assert_allclose(simulator.state.resource_bytes[0], np.array([0, 1000, 0, 1000]) / np.e, rtol=1e-6)


def test_a_task_does_not_slow_itself_down():
    workload = toy_workload([Task(num_bytes=1e6)])
    assert decide(started(toy_machine(), workload), (0, 0))["exec_s"] == pytest.approx(1e4)


# Cores and waiting.


def test_two_cores_serve_tasks_first_come_first_served():
    arrivals, seconds = [0, 1, 2, 3, 20], [10, 4, 3, 3, 1]
    tasks = [
        Task(obj=i, arrival_s=at, flops=100 * work) for i, (at, work) in enumerate(zip(arrivals, seconds, strict=True))
    ]
    simulator = started(toy_machine(cores=[2, 1]), toy_workload(tasks))
    waits = [float(decide(simulator, (0, 0))["wait_s"]) for _ in tasks]
    # Cores are free at [10, 0], [10, 5], then task 2 waits from 2 to 5 and ends at 8, task 3 from 3 to 8, to 11.
    assert waits == [0.0, 0.0, 3.0, 5.0, 0.0]


def test_a_task_waits_for_the_last_writer_of_its_input():
    tasks = [
        Task(obj=0, flops=700, num_bytes=1, write_fraction=1.0),
        Task(obj=1, arrival_s=2.0, reads=((0, 0.0),)),
    ]
    assert decide(started(toy_machine(), toy_workload(tasks)), (0, 0), (1, 1))["wait_s"] == pytest.approx(5.0)


def test_reading_an_object_does_not_delay_its_next_reader():
    written = Task(obj=0, flops=100)  # new, so ready at 1 s
    reading = Task(obj=0, arrival_s=2.0, flops=1000)
    tasks = [written, reading, Task(obj=0, arrival_s=3.0)]
    assert decide(started(toy_machine(cores=[1, 2]), toy_workload(tasks)), (0, 0), (1, 0), (1, 0))["wait_s"] == 0.0


def test_writing_or_moving_an_object_delays_its_next_reader():
    machine = toy_machine(cores=[1, 2], memory_bytes=[1e3, 1e3])
    new = Task(obj=0)
    last = Task(obj=0, arrival_s=3.0)
    writing = Task(obj=0, arrival_s=2.0, flops=1000, write_fraction=0.5)
    assert decide(started(machine, toy_workload([new, writing, last])), (0, 0), (1, 0), (1, 0))["wait_s"] == 9.0
    moving = Task(obj=0, arrival_s=2.0)  # 1 + 4 + 1 + 1 = 7 s from 2 s on
    outcome = decide(started(machine, toy_workload([new, moving, last])), (0, 0), (1, 1), (1, 1))
    assert outcome["wait_s"] == pytest.approx(6.0)


def test_imbalance_is_the_deviation_of_outstanding_work_over_its_mean():
    tasks = [Task(flops=400), Task(obj=1, flops=400)]
    simulator = started(toy_machine(cores=[1, 1]), toy_workload(tasks))
    assert decide(simulator, (0, 0))["imbalance"] == pytest.approx(1.0)  # 4 and 0 s: sigma 2, mean 2
    assert decide(simulator, (1, 1))["imbalance"] == pytest.approx(0.0)  # 4 and 4


def test_imbalance_counts_work_per_core_and_only_nodes_that_have_cores():
    simulator = started(toy_machine(3, cores=[2, 1, 0]), toy_workload([Task(flops=600), Task(obj=1, flops=100)]))
    decide(simulator, (0, 0))
    assert decide(simulator, (1, 1))["imbalance"] == pytest.approx(0.5)  # 6 / 2 = 3 and 1: sigma 1, mean 2


def test_an_idle_machine_is_balanced():
    assert decide(started(toy_machine(), toy_workload([Task()])), (0, 0))["imbalance"] == 0.0


def test_a_task_sent_to_a_node_without_cores_runs_on_the_nearest_that_has_some():
    simulator = started(toy_machine(3, cores=[1, 0, 0]), toy_workload([Task(num_bytes=200)]))
    outcome = decide(simulator, (2, 2))
    assert (outcome["task_node"], outcome["data_node"]) == (0, 2)
    assert outcome["exec_s"] == pytest.approx(4.0)
    assert simulator.state.traffic_bytes[0].reshape(3, 3)[0, 2] == 200.0


# Memory.


def test_a_full_node_falls_back_to_the_nearest_with_room():
    machine = toy_machine(3, memory_bytes=[100.0, 1000.0, 50.0])
    simulator = started(machine, toy_workload([Task(size=100)]))
    outcome = decide(simulator, (0, 2))
    assert outcome["data_node"] == 1
    assert outcome["fell_back"]
    assert not outcome["out_of_memory"]
    np.testing.assert_array_equal(simulator.state.memory_used_bytes[0], [0, 100, 0])


def test_an_object_may_fill_a_node_exactly():
    outcome = decide(started(toy_machine(memory_bytes=[100.0, 1000.0]), toy_workload([Task(size=100)])), (0, 0))
    assert (outcome["data_node"], outcome["fell_back"]) == (0, False)


def test_an_object_that_grows_counts_what_it_already_holds_as_free():
    machine = toy_machine(memory_bytes=[100.0, 1000.0])
    simulator = started(machine, toy_workload([Task(size=80), Task(size=100), Task(size=101)]))
    assert not decide(simulator, (0, 0), (0, 0))["fell_back"]
    outcome = decide(simulator, (0, 0))
    assert (outcome["fell_back"], outcome["migrated"], outcome["data_node"]) == (True, True, 1)
    np.testing.assert_array_equal(simulator.state.memory_used_bytes[0], [0, 101])


def test_a_task_without_room_anywhere_is_dropped():
    machine = toy_machine(memory_bytes=[100.0, 100.0])
    tasks = [Task(obj=0, size=100), Task(obj=1, size=101, flops=100, num_bytes=100, reads=((0, 50.0),))]
    simulator = started(machine, toy_workload(tasks))
    decide(simulator, (0, 0))
    before = bits(simulator)
    outcome = decide(simulator, (0, 1))
    assert outcome["out_of_memory"]
    assert (outcome["data_node"], outcome["fell_back"], outcome["migrated"]) == (-1, False, False)
    for name in ("exec_s", "comm_s", "wait_s", "migration_s", "local_bytes", "remote_bytes"):
        assert outcome[name] == 0.0
    after = bits(simulator)
    assert simulator.totals.dropped == [1]
    for name in before:
        if name != "task" and not name.startswith("outcome."):
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def test_an_object_is_freed_once_its_last_task_is_decided():
    tasks = [Task(obj=0, size=100), Task(obj=1, size=30), Task(obj=1, size=30)]
    simulator = started(toy_machine(), toy_workload(tasks, freed_after={0: 1, 1: 2}))
    decide(simulator, (0, 0))
    np.testing.assert_array_equal(simulator.state.memory_used_bytes[0], [100, 0])
    decide(simulator, (1, 1))
    np.testing.assert_array_equal(simulator.state.memory_used_bytes[0], [0, 30])
    assert objects(simulator) == [(-1, 0.0), (1, 30.0)]
    decide(simulator, (1, 1))
    np.testing.assert_array_equal(simulator.state.memory_used_bytes[0], [0, 0])


def test_several_objects_can_be_freed_by_one_task():
    tasks = [Task(obj=0), Task(obj=1), Task(obj=2)]
    simulator = started(toy_machine(), toy_workload(tasks, freed_after={0: 2, 1: 2, 2: NEVER}))
    decide(simulator, (0, 0), (0, 0), (0, 0))
    assert [node for node, _ in objects(simulator)] == [-1, -1, 0]


def test_a_node_whose_objects_are_all_freed_is_empty():
    tasks = [Task(obj=0, size=0.7), Task(obj=1, size=0.1), Task(obj=2, size=0.0)]
    simulator = started(toy_machine(), toy_workload(tasks, freed_after={0: 1, 1: 2}))
    decide(simulator, (0, 0), (0, 0), (0, 0))
    np.testing.assert_array_equal(simulator.state.memory_used_bytes[0], [0, 0])


# Episodes.


def test_totals_are_the_sums_of_the_outcomes():
    tasks = [Task(flops=300, num_bytes=200), Task(num_bytes=50, reads=((1, 30.0),)), Task(obj=1, arrival_s=1.0)]
    tasks += [Task(arrival_s=2.0, num_bytes=10, write_fraction=0.5, reads=((1, 20.0),)), Task(arrival_s=3.0, size=2000)]
    simulator = started(toy_machine(outstanding_bytes=50.0), toy_workload(tasks))
    names = ("migration_s", "coherence_s", "local_bytes", "remote_bytes", "imbalance")
    sums, compute, communication, finish = dict.fromkeys(names, 0.0), 0.0, 0.0, 0.0
    for place, action in enumerate([(0, 0), (1, 1), (1, 0), (0, 0), (0, 0)]):
        outcome = decide(simulator, action)
        compute += outcome["exec_s"] - outcome["wait_s"]
        communication += outcome["comm_s"]
        finish = max(finish, tasks[place].arrival_s + outcome["exec_s"] + outcome["comm_s"])
        for name in names:
            sums[name] += outcome[name]
    totals = {name: values[0] for name, values in simulator.totals._asdict().items()}
    for name in names:
        assert totals[name] == pytest.approx(sums[name]), name
    assert sums["coherence_s"] > 0.0
    assert (totals["compute_s"], totals["communication_s"]) == pytest.approx((compute, communication))
    assert totals["last_finish_s"] == pytest.approx(finish)
    assert (totals["migrations"], totals["dropped"]) == (2, 1)
    moved = simulator.state.pair_bytes[0].reshape(2, 2, 2)
    assert moved.sum() == sums["local_bytes"] + sums["remote_bytes"] + 2 * 100  # written where objects moved to


def test_a_finished_row_stays_as_it_is():
    workload = toy_workload([Task(num_bytes=200), Task(obj=1, arrival_s=1.0, num_bytes=100), Task(arrival_s=2.0)])
    simulator = Simulator(toy_machine(), workload, 2, window_s=10.0)
    simulator.reset(0, horizons=[2, 3])
    decide(simulator, (0, 0), (0, 1))
    assert simulator.outcome.finished.tolist() == [True, False]
    before = bits(simulator, 0)
    decide(simulator, (1, 1))
    assert_same_bits(before, bits(simulator, 0))
    assert simulator.outcome.finished.tolist() == [True, True]


def test_resetting_a_row_leaves_the_others_as_they_are():
    workload = toy_workload([Task(num_bytes=200), Task(arrival_s=1.0, num_bytes=100)], [Task(arrival_s=7.0)] * 2)
    simulator = Simulator(toy_machine(), workload, 2, window_s=10.0)
    simulator.reset(0)
    decide(simulator, (0, 1))
    before = bits(simulator, 0)
    simulator.reset(1, rows=[1])
    assert_same_bits(before, bits(simulator, 0))
    assert (simulator.state.task.tolist(), simulator.state.now_s.tolist()) == ([1, 0], [1.0, 7.0])


@modest
@given(plays(num_episodes=2))
def test_a_used_row_starts_anew_like_a_fresh_one(play):
    used = Simulator(play.topology, play.workload, 1, window_s=play.window_s)
    used.reset(0)
    for task in range(play.workload.num_tasks):
        used.step(play.actions[:1, task])
    used.reset(1)
    fresh = Simulator(play.topology, play.workload, 1, window_s=play.window_s)
    fresh.reset(1)
    one, two = bits(used), bits(fresh)
    for name in set(one) & {*used.state._fields, *(f"objects.{field}" for field in OBJECT.names or ())}:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_a_row_of_eight_nodes_and_256_objects_takes_less_than_64_kib():
    state = allocate_state(16, compile_machines([eight_socket_cube()]), num_objects=256)
    assert sum(array.nbytes for array in state) / 16 < 64 * 1024


# What is refused.


def test_an_action_must_name_a_node_of_the_rows_machine():
    simulator = Simulator([toy_machine(2), toy_machine(3)], toy_workload([Task()]), 2, window_s=1.0)
    simulator.reset(0, machines=[0, 1])
    simulator.checked(np.array([[1, 1], [2, 2]]))
    with pytest.raises(ValueError, match=r"task node must be in 0\.\.1, got 2 \(row 0\)"):
        simulator.step(np.array([[2, 0], [2, 2]]))
    with pytest.raises(ValueError, match=r"data node must be in 0\.\.2, got -1 \(row 1\)"):
        simulator.step(np.array([[0, 0], [2, -1]]))


@pytest.mark.parametrize("actions", [np.zeros((1, 2)), np.zeros(2, int), np.zeros((2, 2), int), np.zeros((1, 2), bool)])
def test_actions_must_be_integers_two_for_each_row(actions):
    with pytest.raises(ValueError, match=r"actions must be integers of shape \(1, 2\), or"):
        started(toy_machine(), toy_workload([Task()])).step(actions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 1}, r"episode must be in 0\.\.0, got 1"),
        ({"episodes": -1}, r"episode must be in 0\.\.0, got -1"),
        ({"episodes": 0, "machines": 1}, r"machine must be in 0\.\.0, got 1"),
        ({"episodes": 0, "horizons": 0}, r"horizon must be in 1\.\.2, got 0"),
        ({"episodes": 0, "horizons": 3}, r"horizon must be in 1\.\.2, got 3"),
    ],
)
def test_reset_names_what_is_out_of_range(options, message):
    simulator = Simulator(toy_machine(), toy_workload([Task(), Task()]), 1, window_s=1.0)
    with pytest.raises(ValueError, match=message):
        simulator.reset(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rows": 0}, "num_rows must be at least 1, got 0"),
        ({"window_s": 0.0}, "window_s must be finite and > 0, got 0"),
        ({"window_s": float("nan")}, "window_s must be finite and > 0, got nan"),
        ({"num_threads": 0}, r"num_threads must be in 1\.\.\d+, got 0"),
        ({"num_threads": 100_000}, r"num_threads must be in 1\.\.\d+, got 100000"),
        ({"max_nodes": 1}, "max_nodes must be at least 2, the largest machine's nodes, got 1"),
        ({"topologies": []}, "a simulator needs at least one machine"),
    ],
)
def test_a_simulator_names_what_it_cannot_be_built_from(options, message):
    arguments = {"topologies": toy_machine(), "num_rows": 1, "window_s": 1.0}
    with pytest.raises(ValueError, match=message):
        Simulator(workload=toy_workload([Task()]), **{**arguments, **options})

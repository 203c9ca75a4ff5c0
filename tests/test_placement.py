"""Objects whose pages are split over nodes, and copies of objects that are only read: answers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from playing import decide, started
from strategies import Task, toy_machine, toy_workload

from numa_rl.simulator.simulator import Simulator
from numa_rl.workloads.workload import Workload


def read_only(workload: Workload, *objects: int) -> Workload:
    """The same workload, in which these objects are only read."""
    flags = np.zeros((workload.num_episodes, workload.num_objects), bool)
    flags[:, objects] = True
    return replace(workload, read_only=flags)


def used(simulator: Simulator) -> list[float]:
    """Bytes in use on each node."""
    return simulator.state.memory_used_bytes[0].tolist()


# Pages.


def test_pages_are_dealt_out_by_weight_as_linux_does_with_2_to_1():
    simulator = started(toy_machine(), toy_workload([Task(size=90)]))
    outcome = decide(simulator, (0, 0, 2, 1))
    assert used(simulator) == [60.0, 30.0]
    assert outcome["data_node"] == 0
    assert not outcome["fell_back"]


def test_the_last_page_is_a_part_and_no_byte_is_lost():
    simulator = started(toy_machine(), toy_workload([Task(size=25)]))
    decide(simulator, (0, 0, 1, 1))  # three pages, of which one and a half would be on node 0
    assert used(simulator) == [10.0, 15.0]


def test_an_object_smaller_than_a_page_is_on_one_node():
    simulator = started(toy_machine(), toy_workload([Task(size=4)]))
    assert decide(simulator, (0, 0, 1, 1))["data_node"] == 1
    assert used(simulator) == [0.0, 4.0]


def test_small_objects_begin_with_one_node_after_the_other():
    simulator = started(toy_machine(3), toy_workload([Task(obj=obj, size=4) for obj in range(3)]))
    assert [decide(simulator, (0, 0, 1, 1, 1))["data_node"] for _ in range(3)] == [2, 0, 1]


def test_a_task_goes_through_split_pages_node_after_node():
    outcome = decide(started(toy_machine(), toy_workload([Task(num_bytes=200, size=100)])), (0, 0, 3, 1))
    assert outcome["exec_s"] == pytest.approx(0.7 * 2.0 + 0.3 * 4.0)  # ten pages, seven of them local
    assert outcome["local_bytes"] == pytest.approx(140.0)
    assert outcome["remote_bytes"] == pytest.approx(60.0)


def test_a_split_object_that_grows_by_the_same_weights_moves_nothing():
    simulator = started(toy_machine(), toy_workload([Task(size=40), Task(size=60)]))
    decide(simulator, (0, 0, 1, 1))
    outcome = decide(simulator, (0, 0, 1, 1))
    assert used(simulator) == [30.0, 30.0]
    assert not outcome["migrated"]
    assert outcome["migration_s"] == 0.0


def test_gathering_pages_moves_those_that_are_elsewhere():
    simulator = started(toy_machine(), toy_workload([Task(size=40), Task(size=40, num_bytes=0)]))
    decide(simulator, (0, 0, 1, 1))
    outcome = decide(simulator, (0, 0))
    assert used(simulator) == [40.0, 0.0]
    assert outcome["migrated"]
    assert outcome["remote_bytes"] == 20.0


def test_other_weights_move_the_difference():
    simulator = started(toy_machine(), toy_workload([Task(size=40), Task(size=40, num_bytes=0)]))
    decide(simulator, (0, 0, 1, 1))
    outcome = decide(simulator, (0, 0, 3, 1))
    assert used(simulator) == [30.0, 10.0]
    assert outcome["remote_bytes"] == 10.0


def test_a_node_without_room_for_its_pages_leaves_them_to_the_others():
    simulator = started(toy_machine(memory_bytes=[10.0, 1000.0]), toy_workload([Task(size=100)]))
    outcome = decide(simulator, (0, 0, 1, 1))
    assert used(simulator) == [0.0, 100.0]
    assert outcome["fell_back"]
    assert outcome["data_node"] == 1


def test_where_pages_have_no_room_the_data_node_counts():
    simulator = started(toy_machine(memory_bytes=[1000.0, 10.0]), toy_workload([Task(size=100)]))
    outcome = decide(simulator, (0, 0, 0, 1))
    assert outcome["data_node"] == 0
    assert outcome["fell_back"]
    assert not outcome["out_of_memory"]


def test_freeing_a_split_object_gives_all_its_pages_back():
    simulator = started(toy_machine(), toy_workload([Task(size=50), Task(obj=1)], freed_after={0: 0}))
    decide(simulator, (0, 0, 1, 2))
    assert used(simulator) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((-1, 0), r"page weight of node 0 must be in 0\.\.255, got -1 \(row 0\)"),
        ((0, 256), r"page weight of node 1 must be in 0\.\.255, got 256"),
    ],
)
def test_page_weights_are_as_small_as_in_linux(weights, message):
    with pytest.raises(ValueError, match=message):
        decide(started(toy_machine(), toy_workload([Task()])), (0, 0, *weights))


def test_a_node_that_is_not_there_gets_no_pages():
    simulator = started(toy_machine(), toy_workload([Task()]), max_nodes=3)
    with pytest.raises(ValueError, match=r"page weight of node 2 must be in 0\.\.0, got 1"):
        decide(simulator, (0, 0, 1, 1, 1))


# Copies.


def test_a_copy_is_made_where_a_task_wants_to_read_and_the_others_stay():
    workload = read_only(toy_workload([Task(size=100), Task(size=100), Task(size=100)]), 0)
    simulator = started(toy_machine(), workload)
    decide(simulator, (0, 0))
    outcome = decide(simulator, (1, 1))
    assert outcome["replicated"]
    assert not outcome["migrated"]
    assert outcome["migration_s"] > 0.0
    assert used(simulator) == [100.0, 100.0]
    outcome = decide(simulator, (1, 1))
    assert not outcome["replicated"]
    assert outcome["migration_s"] == 0.0


def test_making_a_copy_takes_as_long_as_moving():
    plain = toy_workload([Task(size=100), Task(size=100)])
    moved = decide(started(toy_machine(), plain), (0, 0), (1, 1))
    copied = decide(started(toy_machine(), read_only(plain, 0)), (0, 0), (1, 1))
    assert copied["migration_s"] == moved["migration_s"] > 0.0


def test_inputs_are_read_from_the_nearest_copy():
    tasks = [Task(size=100), Task(size=100), Task(obj=1, reads=((0, 50.0),)), Task(obj=1, reads=((0, 50.0),))]
    simulator = started(toy_machine(cores=[4, 4]), read_only(toy_workload(tasks), 0))
    decide(simulator, (0, 0), (1, 1))
    for node in (0, 1):
        assert decide(simulator, (node, node if node == 0 else 0))["remote_bytes"] == 0.0


def test_a_copy_is_dropped_when_its_room_is_needed_and_the_last_one_never():
    tasks = [Task(size=60), Task(size=60), Task(obj=1, size=80), Task(obj=2, size=80), Task(obj=3, size=80)]
    simulator = started(toy_machine(memory_bytes=[100.0, 100.0]), read_only(toy_workload(tasks), 0))
    decide(simulator, (0, 0), (1, 1))
    assert used(simulator) == [60.0, 60.0]
    outcome = decide(simulator, (0, 1))  # the copy on node 1 gives way
    assert used(simulator) == [60.0, 80.0]
    assert outcome["data_node"] == 1
    assert decide(simulator, (0, 0))["out_of_memory"]  # the only copy stays


def test_of_two_copies_the_one_used_least_recently_is_dropped():
    tasks = [Task(obj=obj, size=40, arrival_s=float(i)) for i, obj in enumerate((0, 1, 1, 0))]
    workload = read_only(toy_workload([*tasks, Task(obj=2, size=30, arrival_s=9.0)]), 0, 1)
    simulator = started(toy_machine(memory_bytes=[100.0, 1000.0]), workload)
    decide(simulator, (1, 1), (1, 1), (0, 0), (0, 0))  # both have a copy on node 0, object 1 was used before object 0
    assert used(simulator) == [80.0, 80.0]
    decide(simulator, (0, 0))
    assert simulator.state.objects["form"][0].tolist() == [2, 1, 0]
    assert used(simulator) == [70.0, 80.0]


def test_freeing_gives_every_copy_back():
    workload = read_only(toy_workload([Task(size=50), Task(size=50), Task(obj=1)], freed_after={0: 1}), 0)
    simulator = started(toy_machine(), workload)
    decide(simulator, (0, 0), (1, 1))
    assert used(simulator) == [0.0, 0.0]
    assert simulator.state.spare_bytes[0].tolist() == [0.0, 0.0]


def test_splitting_an_object_drops_its_copies():
    workload = read_only(toy_workload([Task(size=40), Task(size=40), Task(size=40, num_bytes=0)]), 0)
    simulator = started(toy_machine(), workload)
    decide(simulator, (0, 0), (1, 1), (0, 0, 1, 1))
    assert used(simulator) == [20.0, 20.0]
    assert simulator.state.spare_bytes[0].tolist() == [0.0, 0.0]


# What is declared of a workload.


def test_a_task_on_an_existing_read_only_object_must_not_write():
    with pytest.raises(ValueError, match=r"write_fraction\[0, 1\] must be 0 for a task on an object that is read only"):
        read_only(toy_workload([Task(write_fraction=1.0), Task(write_fraction=0.5)]), 0)


def test_a_read_only_object_keeps_its_size():
    with pytest.raises(ValueError, match=r"object_bytes\[0, 1\] must be that of its first task"):
        read_only(toy_workload([Task(size=10), Task(size=20)]), 0)

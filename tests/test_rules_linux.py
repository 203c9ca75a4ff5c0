"""Linux's own policies on observations small enough to decide by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from observations import decide, row
from strategies import Task, toy_machine, toy_workload

from agents.evaluation import decisions, evaluate
from agents.rules.catalog import make_rule
from agents.rules.linux import small_weights
from envs.observation import Observer
from envs.observation_kernel import TaskFeature
from envs.reward import RewardWeights
from envs.world import World
from numa_rl.simulator.simulator import Simulator


@pytest.mark.parametrize(("tolerance", "task_node"), [(1.0, 2), (1.5, 2), (2.0, 1), (4.0, 1)])
def test_first_touch_returns_where_it_ran_within_the_tolerance(tolerance: float, task_node: int):
    observation = row(home=0, queue=[3.0, 2.0, 1.0], access=[0.1, 0.9, 0.0])
    assert decide("first-touch", observation, tolerance=tolerance) == [task_node, 0]


def test_first_touch_puts_new_data_with_the_task_on_the_least_loaded_node():
    assert decide("first-touch", row(queue=[3.0, 2.0, 1.0])) == [2, 2]


@pytest.mark.parametrize("name", ["interleave", "weighted-interleave"])
def test_interleaving_runs_tasks_where_the_least_work_is(name: str):
    assert decide(name, row(home=0, queue=[3.0, 1.0, 1.0]))[0] == 1


def test_interleave_deals_pages_to_all_nodes():
    assert decide("interleave", row())[2:] == [1, 1, 1]
    assert decide("interleave", row(data_mask=[0, 1, 1]))[1:] == [1, 1, 1, 1]  # node 1 if no node has room for pages


@pytest.mark.parametrize("name", ["interleave", "weighted-interleave"])
def test_what_an_object_grows_by_is_interleaved_too_and_nothing_moves(name: str):
    machine = toy_machine()
    workload = toy_workload([Task(size=4), Task(size=40), Task(size=80)])  # pages have ten bytes
    world = World(workload, (machine,), RewardWeights(), 10.0)
    played = evaluate(make_rule(name), world)
    assert played.migrations.tolist() == [0]
    simulator = Simulator(machine, workload, 1, window_s=10.0)
    observer = Observer(simulator, world.weights, world.observation)
    simulator.reset(0)
    for _ in decisions(make_rule(name), simulator, observer):
        pass
    assert simulator.state.memory_used_bytes[0].tolist() == [40.0, 40.0]


def test_weighted_interleave_is_two_to_one_for_100_and_50_gb_per_s():
    bandwidth = np.array([[100.0, 25.0, 25.0], [25.0, 50.0, 25.0], [25.0, 25.0, 50.0]]) / 100.0
    assert decide("weighted-interleave", row(bandwidth=bandwidth))[2:] == [2, 1, 1]


def test_memory_without_cores_weighs_what_the_fastest_node_draws_from_it():
    # Node 2 has no cores: nobody draws the 1.0 that it would draw from itself.
    bandwidth = np.array([[1.0, 0.4, 0.2], [0.4, 1.0, 0.5], [0.2, 0.5, 1.0]])
    assert decide("weighted-interleave", row(bandwidth=bandwidth, task_mask=[1, 1, 0]))[2:] == [2, 2, 1]


@pytest.mark.parametrize(
    ("bandwidth", "weights"),
    [
        ([300.0, 150.0, 100.0], [6, 3, 2]),
        ([100.0, 99.0, 0.0], [1, 1, 0]),
        ([300.0, 200.0, 0.0], [3, 2, 0]),
        ([1000.0, 1.0, 1.0], [255, 1, 1]),
        ([100.5, 1.5, 1.0], [201, 3, 2]),
        ([1.0, 1.0605, 0.0], [8, 8, 0]),  # no ratio of weights up to 8 is close: the finest one it is
    ],
)
def test_weights_are_the_smallest_in_proportion(bandwidth: list[float], weights: list[int]):
    assert small_weights(np.array([bandwidth], np.float32))[0].tolist() == weights


@given(st.lists(st.integers(1, 8), min_size=1, max_size=6))
def test_small_whole_ratios_are_met_exactly(ratios: list[int]):
    weights = small_weights(np.array([ratios], np.float32) * np.float32(0.137))[0]
    np.testing.assert_allclose(weights / weights.sum(), np.array(ratios) / sum(ratios), rtol=0.02)
    assert weights.min() <= min(ratios)


# The task cannot run at its home 0, which is overloaded; node 1 has least to do.
AWAY = {"queue": [9.0, 0.0, 1.0]}


@pytest.mark.parametrize(
    ("last", "access", "expected"),
    [
        ([0, 1, 0], [3.0, 4.1, 0.0], [1, 1]),  # 3/4 of 4.1 faults are more than 3
        ([0, 1, 0], [3.0, 3.9, 0.0], [1, 0]),  # 3/4 of 3.9 are not
        ([1, 0, 0], [3.0, 4.1, 0.0], [1, 0]),  # the last access came from elsewhere
        ([0, 0, 1], [0.0, 4.1, 9.0], [1, 0]),
        ([0, 1, 0], [0.0, 0.1, 9.0], [1, 1]),  # only faults where the object is count against it
    ],
)
def test_autonuma_moves_data_at_the_second_access_in_a_row(last: list[int], access: list[float], expected: list[int]):
    assert decide("autonuma", row(home=0, last=last, access=access, **AWAY)) == expected


def test_autonuma_moves_sooner_without_hysteresis():
    observation = row(home=0, last=[0, 1, 0], access=[3.0, 3.9, 0.0], **AWAY)
    assert decide("autonuma", observation, hysteresis=1.0) == [1, 1]


@pytest.mark.parametrize(("inputs", "task_node"), [([0.0, 0.0, 0.9], 0), ([0.0, 0.0, 1.1], 2), ([0.0, 0.6, 0.6], 0)])
def test_autonuma_runs_where_most_of_the_accessed_memory_is(inputs: list[float], task_node: int):
    observation = row(home=0, features={TaskFeature.MEMORY: 1.0}, inputs=inputs)
    assert decide("autonuma", observation) == [task_node, 0]


def test_autonuma_leaves_an_overloaded_node():
    observation = row(home=0, features={TaskFeature.MEMORY: 1.0}, queue=[1.3, 1.1, 1.0])
    assert decide("autonuma", observation) == [2, 0]
    assert decide("autonuma", observation, tolerance=1.4) == [0, 0]


def test_autonuma_touches_new_data_first_where_the_task_runs():
    assert decide("autonuma", row(queue=[3.0, 2.0, 1.0])) == [2, 2]
    assert decide("autonuma", row(inputs=[0.0, 1.0, 0.0])) == [1, 1]


def test_no_linux_rule_remembers_anything():
    for name in ("first-touch", "interleave", "weighted-interleave", "autonuma"):
        assert make_rule(name).num_remembered == 0

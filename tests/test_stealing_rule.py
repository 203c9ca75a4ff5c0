"""Hierarchical work stealing as a rule: who takes a task from whom, on observations small enough to do by hand."""

from typing import Any

import numpy as np
import pytest
from observations import N, decide, random_rows, row

from agents.evaluation import evaluate
from agents.rules.catalog import make_rule
from agents.rules.stealing import COUNT, NUM_LEVELS
from envs.reward import RewardWeights
from envs.world import World
from numa_rl.machines.builders import eight_socket_cube
from numa_rl.stealing.adaptation import FIRST_SUCCESS, LEAST_SHARE, RATE
from numa_rl.workloads.synthetic import SyntheticStream

NAME = "work-stealing"


def estimate(*by_task_node: float) -> np.ndarray:
    """An estimate that depends on where the task runs alone."""
    return np.tile(np.array(by_task_node)[:, None], (1, N))


@pytest.mark.parametrize(
    ("queue", "node"),
    [
        ([1.9, 1.0, 0.0], 0),  # the neighbour, node 1, has 0.9 less to do, and the far one 1.9: neither is enough
        ([2.1, 1.0, 0.0], 1),  # the neighbour has 1.1 less
        ([2.1, 1.2, 0.0], 2),  # it has 0.9 less, and the far one 2.1
        ([9.0, 1.0, 0.0], 1),  # both would do: the neighbour asks first
        ([0.0, 9.0, 9.0], 0),
    ],
)
def test_neighbours_steal_before_far_nodes_and_beyond_their_thresholds(queue: list[float], node: int):
    assert decide(NAME, row(home=0, queue=queue), threshold=1.0, far_factor=2.0) == [node, 0]


def test_the_neighbour_with_least_to_do_steals():
    assert decide(NAME, row(home=1, queue=[3.0, 9.0, 2.0])) == [2, 1]
    assert decide(NAME, row(home=1, queue=[2.0, 9.0, 2.0])) == [0, 1]


def test_latencies_that_hardly_differ_are_one_level():
    latency = np.array([[1.0, 2.0, 2.01], [2.0, 1.0, 2.0], [2.01, 2.0, 1.0]])
    far = {"threshold": 1.0, "far_factor": 50.0}
    assert decide(NAME, row(home=0, queue=[9.0, 5.0, 0.0], latency=latency), **far) == [2, 0]
    assert decide(NAME, row(home=0, queue=[9.0, 8.5, 0.0], latency=latency + 3 * np.eye(N)[::-1]), **far) == [0, 0]


def test_new_data_starts_where_its_inputs_are_and_goes_with_its_task():
    assert decide(NAME, row(inputs=[0.0, 0.2, 0.1], queue=[0.0, 0.5, 0.0])) == [1, 1]
    assert decide(NAME, row(inputs=[0.0, 0.2, 0.1], queue=[0.0, 5.0, 0.0])) == [0, 0]
    assert decide(NAME, row(queue=[0.3, 0.2, 0.1])) == [2, 2]


def test_a_node_that_runs_nothing_has_its_tasks_next_door_and_steals_none():
    assert decide(NAME, row(home=0, task_mask=[0, 1, 1])) == [1, 0]
    assert decide(NAME, row(home=2, queue=[0.0, 0.0, 9.0], task_mask=[1, 0, 1])) == [0, 2]
    assert decide(NAME, row(home=1, queue=[0.0, 9.0, 1.0], task_mask=[0, 1, 1])) == [2, 1]


def remembered(estimates: np.ndarray, memory: Any = None, queue: Any = (5.0, 0.0, 0.0)) -> np.ndarray:
    """What one row remembers after a decision on an object on node 0."""
    state = None if memory is None else (np.asarray(memory, np.float64)[None],)
    _, after = make_rule(NAME).predict(row(home=0, queue=queue, estimate=estimates), state=state)
    assert after is not None
    return np.asarray(after[0][0])


def test_success_is_a_moving_average_by_hand():
    # The neighbour steals: a success if the task was to finish earlier there.
    np.testing.assert_allclose(remembered(estimate(9, 3, 1)), [RATE * 0.5, 0.0, 1.0])
    np.testing.assert_allclose(remembered(estimate(3, 9, 1)), [-RATE * 0.5, 0.0, 1.0])
    np.testing.assert_allclose(remembered(estimate(3, 3, 1)), [-RATE * 0.5, 0.0, 1.0])
    # The far node, because the neighbour is as busy; and after it nobody.
    after = remembered(estimate(9, 3, 1), queue=(5.0, 5.0, 0.0))
    np.testing.assert_allclose(after, [0.0, RATE * 0.5, 1.0])
    again = remembered(estimate(9, 3, 1), after, queue=(5.0, 5.0, 5.0))
    np.testing.assert_allclose(again, [0.0, RATE * 0.5, 2.0])
    once_more = remembered(estimate(9, 3, 1), after, queue=(5.0, 5.0, 0.0))
    np.testing.assert_allclose(once_more[1], RATE * 0.5 + RATE * (1.0 - FIRST_SUCCESS - RATE * 0.5))


def test_a_level_that_fails_is_tried_as_much_less_often_and_needs_longer_queues():
    # Success 0.1 of neighbours and 0.5 of far nodes: a share of 0.2, so neighbours try one time in five, and 1 / 0.2
    # must lie between the queues.
    memory = np.zeros((4000, NUM_LEVELS + 1))
    memory[:, 0] = 0.1 - FIRST_SUCCESS
    memory[:, COUNT] = np.arange(4000)
    for difference, share in ((5.5, 0.2), (4.5, 0.0)):
        rows = np.tile(row(home=0, queue=[difference, 0.0, difference]), (4000, 1))
        actions, _ = make_rule(NAME).predict(rows, state=(memory,))
        assert (actions[:, 0] == 1).mean() == pytest.approx(share, abs=0.03)
    memory[:, 0] = -FIRST_SUCCESS  # a level that never succeeds is tried still
    rows = np.tile(row(home=0, queue=[10.5, 0.0, 10.5]), (4000, 1))
    assert (make_rule(NAME).predict(rows, state=(memory,))[0][:, 0] == 1).mean() == pytest.approx(LEAST_SHARE, abs=0.02)


def test_another_seed_is_another_sequence_of_draws():
    memory = np.zeros((200, NUM_LEVELS + 1))
    memory[:, 0], memory[:, COUNT] = 0.25 - FIRST_SUCCESS, np.arange(200)
    rows = np.tile(row(home=0, queue=[9.0, 0.0, 9.0]), (200, 1))
    first, second, again = (make_rule(NAME, seed=s).predict(rows, state=(memory,))[0][:, 0] for s in (0, 1, 0))
    np.testing.assert_array_equal(first, again)
    assert 0.2 < (first != second).mean() < 0.8


def test_an_episode_starts_knowing_nothing():
    rule = make_rule(NAME)
    rows = random_rows(np.random.default_rng(0), 6, 5)
    _, state = rule.predict(rows)
    _, fresh = rule.predict(rows, state=state, episode_start=np.ones(6, bool))
    np.testing.assert_array_equal(fresh[0], state[0])  # type: ignore[index]


def test_a_high_threshold_leaves_tasks_with_their_data_and_stealing_serves_them_better():
    # Arithmetic on two objects that nobody writes: 8 cores next to each are not enough, 64 are.
    family = SyntheticStream(
        num_tasks=96,
        num_objects=2,
        tasks_per_s=60.0,
        median_task_flops=2e10,
        median_task_bytes=1e7,
        read_only_share=1.0,
        inputs_per_task=0,
    )
    world = World(
        family.generate(np.random.default_rng(1), 6), (eight_socket_cube(),), RewardWeights(reference_s=0.05), 0.2
    )
    never = make_rule(NAME, threshold=1e9)
    stealing = evaluate(make_rule(NAME), world)
    assert stealing.cost.mean() < 0.5 * evaluate(never, world).cost.mean()
    one_by_one = evaluate(make_rule(NAME), world, batch_rows=1)
    np.testing.assert_array_equal(stealing.cost, one_by_one.cost)

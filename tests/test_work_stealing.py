"""Work stealing: levels, adaptation, and workers whose runs can be followed by hand."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import toy_machine

from numa_rl.machines.catalog import load_machine
from numa_rl.stealing.adaptation import adapt, probability, threshold
from numa_rl.stealing.levels import FAR, NUM_LEVELS, SAME_NODE, node_levels, victims_by_level, worker_nodes
from numa_rl.stealing.simulation import StealingRules, Strategy, TaskSet, simulate_stealing, total_cost

# Nodes 0 and 1 with a core each: 100 bytes a second from one's own memory, 50 from the other's; L is 1 s and 2 s.
PAIR = toy_machine(2)
CUBE = load_machine("chapter-8-socket")


def tasks(*rows):
    """Tasks as (arrival, worker, compute, bytes)."""
    return TaskSet(*(np.array(column) for column in zip(*rows, strict=True)))


def run(machine, task_set, seed=0, **rules):
    return simulate_stealing(machine, task_set, StealingRules(**rules), np.random.default_rng(seed))


def bursts(seed=0, **changes):
    parameters = {"num_workers": 64, "num_bursts": 8, "burst_tasks": 16, "compute_s": 1e-5, "data_bytes": 1e5,
                  "load": 0.7, **changes}  # fmt: skip
    return TaskSet.bursts(np.random.default_rng(seed), **parameters)


# Known answers.


def test_levels_by_hand():
    assert node_levels(toy_machine(3)).tolist() == [[1, 2, 3], [2, 1, 2], [3, 2, 1]]
    assert np.bincount(node_levels(CUBE)[0]).tolist() == [0, 1, 3, 4]  # a corner of a cube has three neighbours


def test_victims_come_nearest_first():
    machine = toy_machine(3, cores=[2, 0, 1])
    assert worker_nodes(machine).tolist() == [0, 0, 2]
    victims, begins = victims_by_level(machine)
    assert victims.tolist() == [[1, 2], [0, 2], [0, 1]]
    assert begins.tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [0, 0, 0, 0, 2]]


def test_adaptation_by_hand():
    assert adapt(0.5, 1.0, 0.1) == pytest.approx(0.55)
    assert adapt(0.5, 0.0, 0.1) == pytest.approx(0.45)
    assert probability(np.array([0.8, 0.4, 0.0]), 0.8, 0.1).tolist() == pytest.approx([1.0, 0.5, 0.1])
    assert threshold(3.0, np.array([1.0, 0.5, 0.1])).tolist() == pytest.approx([3, 6, 30])
    assert probability(0.0, 0.0) == 1.0  # all levels failed alike


def test_a_worker_takes_its_newest_task_and_a_thief_the_oldest():
    # Worker 0 begins with task 2. Worker 1 looks for 2 s, takes task 0 in 2 s more, and reads 100 bytes in 2 s.
    result = run(PAIR, tasks(*[(0, 0, 9.0, 100.0)] * 3), strategy=Strategy.FIXED, thresholds=(0, 0, 0, 0))
    assert result.worker.tolist() == [1, 0, 0]
    assert result.start_s.tolist() == [4, 10, 0]
    assert result.finish_s.tolist() == [15, 20, 10]
    assert result.level.tolist() == [2, 0, 0]
    assert result.steals.tolist() == [0, 0, 1, 0]
    assert result.steal_latency_s.tolist() == [0, 0, 2, 0]
    assert (result.makespan_s, result.task_s, result.remote_data_s) == (20, 10, 2)
    # Queues were (2, 0) at first, and (1, 0) from the steal, at time 0, until the last task was taken at 10.
    assert result.queue_sigma == pytest.approx(0.5)
    assert result.total_cost_s == total_cost(0.5, 10, [0, 0, 2, 0]) == pytest.approx(7)


def test_nobody_is_robbed_of_less_than_the_threshold():
    task_set = tasks(*[(0, 0, 9.0, 100.0)] * 3)
    two = run(PAIR, task_set, strategy=Strategy.FIXED, thresholds=(0, 0, 2, 0))
    assert two.steals.tolist() == [0, 0, 0, 0]
    assert two.tries[2] > 0
    one = run(PAIR, task_set, strategy=Strategy.FIXED, thresholds=(0, 0, 1, 0))
    assert one.steals.tolist() == [0, 0, 1, 0]


def test_the_moving_average_follows_a_run():
    result = run(PAIR, tasks(*[(0, 0, 9.0, 0.0)] * 3), strategy=Strategy.ADAPTIVE, rate=0.5, thresholds=(0, 0, 0, 0))
    assert result.steals[2] == 1
    failed = result.tries[2] - 1
    assert result.success[1, 2] == pytest.approx(0.75 * 0.5**failed)  # 0.5, one success, then failures
    assert result.success[0].tolist() == [0.5] * 4  # worker 0 never looked


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thresholds": (0.0, 1.0)}, r"thresholds must be 4 numbers in \[0, inf\], got \(0.0, 1.0\)"),
        ({"thresholds": (0.0, 1.0, np.nan, 1.0)}, "thresholds must be 4 numbers"),
        ({"probabilities": (0.0, 1.0, 2.0, 1.0)}, r"probabilities must be 4 numbers in \[0, 1.0\]"),
        ({"rate": 0.0}, r"rate must be in \(0, 1\], got 0.0"),
        ({"least_share": np.nan}, r"least_share must be in \(0, 1\], got nan"),
        ({"pause_s": 0.0}, "pause_s must be finite and > 0, got 0.0"),
    ],
)
def test_rules_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        StealingRules(**change)


def test_tasks_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"arrival_s must never decrease, got 1.0 for task 1"):
        tasks((2, 0, 1, 0), (1, 0, 1, 0))
    with pytest.raises(ValueError, match=r"compute_s must be finite and >= 0, got -1.0"):
        tasks((0, 0, -1, 0))
    with pytest.raises(ValueError, match=r"worker must have shape \(K,\) with K > 0"):
        TaskSet(np.zeros(2), np.zeros(3), np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match=r"worker must be in 0..1 on 'toy', got 2"):
        run(PAIR, tasks((0, 2, 1, 0)))
    with pytest.raises(ValueError, match="load must be finite and > 0, got 0"):
        bursts(load=0)


# Laws.


@settings(deadline=None, max_examples=40)
@given(strategy=st.sampled_from(Strategy), seed=st.integers(0, 999), cores=st.integers(1, 3), nodes=st.integers(1, 4))
def test_every_task_runs_once_on_one_worker_at_a_time(strategy, seed, cores, nodes):
    machine = toy_machine(nodes, cores=[cores] * nodes)
    task_set = bursts(seed, num_workers=nodes * cores, compute_s=5.0, data_bytes=90.0)
    result = run(machine, task_set, seed, strategy=strategy, pause_s=0.5)
    assert (result.times_run == 1).all()
    assert (result.start_s >= task_set.arrival_s).all()
    assert result.steals.sum() == np.sum(result.worker != task_set.worker) == np.sum(result.level > 0)
    for worker in range(nodes * cores):
        mine = np.argsort(result.start_s[result.worker == worker], kind="stable")
        begin, end = (times[result.worker == worker][mine] for times in (result.start_s, result.finish_s))
        assert (begin[1:] >= end[:-1] - 1e-9).all()
    node = worker_nodes(machine)
    far = node_levels(machine)[node[result.worker], node[task_set.worker]]
    stolen = result.level > 0
    np.testing.assert_array_equal(result.level[stolen], far[stolen])
    assert ((result.success >= 0) & (result.success <= 1)).all()
    assert (result.tries >= result.steals).all()


@settings(deadline=None, max_examples=20)
@given(strategy=st.sampled_from([Strategy.FIXED, Strategy.ADAPTIVE]), seed=st.integers(0, 99))
def test_nobody_steals_beyond_an_infinite_threshold(strategy, seed):
    result = run(CUBE, bursts(seed), seed, strategy=strategy, thresholds=(0, 0, np.inf, np.inf))
    assert result.steals[FAR] == result.steals[FAR - 1] == 0 < result.steals[SAME_NODE]
    assert result.remote_data_s == 0


def test_no_probability_is_no_try():
    result = run(CUBE, bursts(), strategy=Strategy.FIXED, probabilities=(1, 1, 0, 1))
    assert result.tries[2] == 0 < result.tries[3]


@given(success=st.floats(0, 1), outcomes=st.lists(st.sampled_from([0.0, 1.0])), rate=st.floats(0, 1))
def test_success_stays_a_share(success, outcomes, rate):
    for outcome in outcomes:
        success = adapt(success, outcome, rate)
        assert 0 <= success <= 1


@given(success=st.floats(0, 1), best=st.floats(0, 1), least=st.floats(0.01, 1))
def test_a_level_that_succeeds_less_is_tried_less_and_asks_for_more(success, best, least):
    share = probability(success, best, least)
    assert least <= share <= 1
    assert probability(min(success, best) / 2, best, least) <= probability(min(success, best), best, least)
    assert threshold(2.0, share) >= 2.0


def test_a_seed_is_one_run_and_seeds_differ():
    one, same, other = (run(CUBE, bursts(), seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.start_s, same.start_s)
    assert (one.worker != other.worker).any()


def test_adaptive_rules_look_less_often():
    fixed, adaptive = (run(CUBE, bursts(), strategy=strategy) for strategy in (Strategy.FIXED, Strategy.ADAPTIVE))
    assert adaptive.tries.sum() < fixed.tries.sum()


# Two routes.


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999))
def test_without_stealing_each_worker_is_a_queue_of_its_own(seed):
    task_set = bursts(seed)
    result = run(CUBE, task_set, seed, strategy=Strategy.NONE)
    local_s = task_set.compute_s + task_set.data_bytes / 90e9
    for worker in range(64):
        mine = np.flatnonzero(task_set.worker == worker)
        free_s = 0.0
        for begin_s in np.unique(task_set.arrival_s[mine]):  # a burst: the newest first, and bursts may wait
            free_s = max(free_s, begin_s) + local_s[mine][task_set.arrival_s[mine] == begin_s].sum()
        if len(mine):
            assert result.finish_s[mine].max() == pytest.approx(free_s)
    assert result.task_s == pytest.approx(local_s.mean())
    assert result.steals.sum() == 0


@settings(deadline=None, max_examples=20)
@given(strategy=st.sampled_from(Strategy), seed=st.integers(0, 99))
def test_sigma_of_queues_is_that_of_the_lengths_over_time(strategy, seed):
    # Where looking takes next to nothing, a task leaves its queue when it starts.
    machine = toy_machine(2, cores=[4, 4], latency_s=np.full((2, 2), 1e-9))
    task_set = bursts(seed, num_workers=8, compute_s=1.0, data_bytes=10.0)
    result = run(machine, task_set, seed, strategy=strategy, pause_s=0.1)
    area = 0.0
    for begin_s, end_s in pairwise([0.0, *np.unique([*task_set.arrival_s, *result.start_s])]):
        waits = (task_set.arrival_s <= begin_s) & (result.start_s > begin_s)
        area += (end_s - begin_s) * np.bincount(task_set.worker[waits], minlength=8).std()
    assert result.queue_sigma == pytest.approx(area / result.start_s.max(), rel=1e-6)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99), strategy=st.sampled_from([Strategy.RANDOM, Strategy.FIXED]))
def test_stealing_is_nearly_list_scheduling_where_looking_is_free(seed, strategy):
    machine = toy_machine(2, cores=[4, 4], latency_s=np.full((2, 2), 1e-9))
    task_set = bursts(seed, num_workers=8, num_bursts=1, burst_tasks=64, compute_s=1.0, data_bytes=1e-9)
    result = run(machine, task_set, seed, strategy=strategy, thresholds=(0, 0, 0, 0), pause_s=1e-4)
    work, longest, begin_s = task_set.compute_s.sum(), task_set.compute_s.max(), task_set.arrival_s[0]
    assert work / 8 <= result.makespan_s - begin_s <= work / 8 + longest + 0.1  # Graham's bound, and some pauses


# A real input.


def test_on_the_chapters_machine_stealing_by_levels_keeps_more_tasks_near():
    task_set = bursts(num_bursts=32, burst_tasks=64)
    none, random, fixed = (run(CUBE, task_set, strategy=strategy) for strategy in list(Strategy)[:3])
    assert fixed.makespan_s < none.makespan_s / 2
    assert fixed.steals[FAR] / fixed.steals.sum() < random.steals[FAR] / random.steals.sum()
    assert fixed.remote_data_s < random.remote_data_s
    assert len(fixed.steals) == NUM_LEVELS

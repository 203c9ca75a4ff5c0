"""What a simulated run shows of itself: every figure by hand, every leaf and gotcha from a run made to show it."""

import numpy as np
import pytest
from hypothesis import given, settings
from strategies import Task, plays, toy_machine, toy_workload

from numa_rl.diagnosis.evidence import Evidence
from numa_rl.diagnosis.gotchas import Gotcha, find_gotchas, not_looked_for
from numa_rl.diagnosis.simulated import Watch, run_evidence
from numa_rl.diagnosis.tree import Leaf, diagnose
from numa_rl.metrics import run_counters, run_metrics
from numa_rl.simulator.simulator import Simulator
from numa_rl.topology import LoadedLatency, Topology

BRIEF_S, LONG_S = 1e-3, 1e9  # windows that forget everything between tasks, and nothing
FLAT = LoadedLatency(a=0.0, c=0.0, saturated=1.0)


def watched(machine: Topology, *episodes: list[tuple[Task, int, int]], window_s: float = BRIEF_S) -> Watch:
    """Plays episodes of (task, task node, data node), one in each row."""
    workload = toy_workload(*([task for task, _, _ in episode] for episode in episodes))
    simulator = Simulator(machine, workload, len(episodes), window_s=window_s)
    simulator.reset(np.arange(len(episodes)))
    watch = Watch(simulator)
    for index in range(workload.num_tasks):
        watch.count(simulator.step(np.array([episode[index][1:] for episode in episodes])))
    return watch


def played(machine: Topology, *episodes: list[tuple[Task, int, int]], window_s: float = BRIEF_S) -> Evidence:
    return run_evidence(watched(machine, *episodes, window_s=window_s))


# Known answers: every figure of two tasks on three nodes in a line.

# Node 0 reads 100 bytes of node 2's, over two links, in 2 s. At 10 s node 2 reads 300 bytes of its own and computes
# for 3.5 s, which takes longer than the bytes: the run ends at 13.5 s.
FAR = (Task(obj=0, num_bytes=100.0, flops=50.0), 0, 2)
NEAR = (Task(obj=1, num_bytes=300.0, flops=350.0, arrival_s=10.0), 2, 2)


def test_two_tasks_by_hand():
    found = played(toy_machine(3), [FAR, NEAR])
    load = 400.0 / 13.5 / 100.0  # of node 2's memory, which all bytes pass: more than of the links
    slower = 1.0 + load / (1.0 - 0.5 * load)
    assert found.measured == {
        "latency_ratio": pytest.approx((100.0 * 3.0 + 300.0 * 1.0) * slower / 400.0),
        "remote_share": 0.25,
        "controller_utilisation": pytest.approx(load),
        "busiest_controller": "memory of node 2",
        "link_utilisation": pytest.approx(100.0 / 13.5 / 50.0),
        "busiest_link": "link 1 -> 0",
        "controller_imbalance": pytest.approx(np.sqrt(2.0)),  # all on one of three
        "coherence_share": 0.0,
        "misplaced_share": 0.25,
        "num_nodes": 3,
        "far_share": 1.0,
        "migration_share": 0.0,
        "migrations_per_s": 0.0,
        "intensity": 1.0,
        "machine": "toy",
    }
    assert found.provenance["latency_ratio"].endswith("1.5 by distance alone")
    assert "hides bursts" in found.provenance["latency_ratio"]
    assert "hides bursts" in found.provenance["link_utilisation"]
    assert found.notes == ()
    assert not_looked_for(found) == [Gotcha.UNPINNED_THREADS]


def test_a_busy_link_slows_the_bytes_that_cross_it():
    # 0 reads 100 bytes of 1's, 2 s over a link of 50 bytes a second: 50% of the memory, 100% of the link.
    found = played(toy_machine(2), [(Task(num_bytes=100.0), 0, 1)])
    assert (found.controller_utilisation, found.link_utilisation) == (0.5, 1.0)
    assert found.latency_ratio == pytest.approx(2.0 * (1.0 + 1.0 / 0.5))


def test_writes_load_the_links_away_from_the_writer():
    found = played(toy_machine(2), [(Task(num_bytes=100.0, write_fraction=1.0), 0, 1)])
    assert found.busiest_link == "link 0 -> 1"


def test_a_migration_by_hand():
    # 100 bytes go from node 0 to node 1: 2 s over the link, 1 s for ten pages, and 4 s in one chunk, since it is read
    # (1 s) and written (1 s) apart and waits for the latency (2 s). Then node 1 reads them in 1 s.
    moving = [(Task(num_bytes=100.0), 0, 0), (Task(num_bytes=100.0, arrival_s=10.0), 1, 1)]
    watch = watched(toy_machine(2), moving)
    found = run_evidence(watch)
    coherence_s = watch.simulator.outcome.coherence_s[0]
    at_work_s = 1.0 + 7.0 + 1.0 + coherence_s
    assert found.migration_share == pytest.approx(7.0 / at_work_s)
    assert found.coherence_share == pytest.approx(coherence_s / at_work_s)
    assert found.migrations_per_s == pytest.approx(1.0 / (18.0 + coherence_s))
    assert found.remote_share == pytest.approx(100.0 / 300.0)
    assert found.misplaced_share == 0.0


@pytest.mark.parametrize(
    ("window_s", "num_bytes", "share"), [(BRIEF_S, 50.0, 0.0), (LONG_S, 50.0, 1 / 3), (LONG_S, 100.0, 0.0)]
)
def test_who_has_used_an_object_most_is_who_did_so_lately(window_s, num_bytes, share):
    # Node 0 uses the object, then it moves to node 1, which uses it less, or as much, or long after.
    moving = [(Task(num_bytes=100.0), 0, 0), (Task(num_bytes=num_bytes, arrival_s=10.0), 1, 1)]
    assert played(toy_machine(2), moving, window_s=window_s).misplaced_share == pytest.approx(share)


def test_inputs_are_used_where_they_live_even_if_freed_at_once():
    reader = Task(obj=1, num_bytes=100.0, arrival_s=20.0, reads=((0, 300.0),))
    watch = watched(toy_machine(2), [(Task(obj=0, num_bytes=100.0), 0, 0), (reader, 1, 1)])
    assert (watch.used_bytes[0], watch.misplaced_bytes[0]) == (500.0, 300.0)
    workload = toy_workload([Task(obj=0, num_bytes=100.0), reader], freed_after={0: 1, 1: 1})
    simulator = Simulator(toy_machine(2), workload, 1, window_s=BRIEF_S)
    simulator.reset(0)
    freed = Watch(simulator)
    for action in [(0, 0), (1, 1)]:
        freed.count(simulator.step(np.array([action])))
    assert (freed.used_bytes[0], freed.misplaced_bytes[0]) == (500.0, 300.0)


def test_a_dropped_task_counts_for_nothing_and_is_noted():
    huge = (Task(obj=2, num_bytes=1e6, flops=1e6, size=1e6, arrival_s=11.0), 0, 0)
    found, without = played(toy_machine(3), [FAR, NEAR, huge]), played(toy_machine(3), [FAR, NEAR])
    assert found.measured == without.measured
    assert found.notes == ("1 task found no memory and had to be dropped: no figure tells of that.",)


def test_a_machine_of_one_node_has_nothing_remote():
    found = played(toy_machine(1), [(Task(num_bytes=100.0, flops=100.0), 0, 0)])
    assert (found.remote_share, found.link_utilisation, found.far_share, found.misplaced_share) == (0.0, 0.0, 0.0, 0.0)
    assert found.busiest_link is None


def test_runs_are_summed_before_they_are_compared():
    # One run reads 300 bytes of its own node and another 100 of the next node's: 3 s and 2 s.
    near, far = (Task(num_bytes=300.0, flops=100.0), 0, 0), (Task(num_bytes=100.0, flops=300.0), 0, 1)
    found = played(toy_machine(2), [near], [far])
    assert found.remote_share == 0.25
    assert found.intensity == 1.0
    assert found.controller_utilisation == pytest.approx(300.0 / (3.0 + 3.0) / 100.0)  # 3 s of flop outlast the 2 s
    assert found.link_utilisation == pytest.approx(100.0 / 6.0 / 50.0)
    assert found.misplaced_share == 0.25
    assert found.notes[0].startswith("Figures are of 2 runs together")


# Runs made to end at a leaf, and to show a gotcha.


def stream(task_node: int, data_node: int, every_s: float, **task: float) -> list[tuple[Task, int, int]]:
    """Tasks of 100 bytes on one node, each with an object of its own on another."""
    tasks = [Task(obj=i, arrival_s=every_s * i, size=10.0, num_bytes=100.0, **task) for i in range(20)]
    return [(each, task_node, data_node) for each in tasks]


MOVES = [(Task(num_bytes=100.0, arrival_s=10.0 * i), i % 2, i % 2) for i in range(10)]
WRITERS = [(Task(num_bytes=100.0, arrival_s=50.0 * i, write_fraction=1.0), i % 2, 0) for i in range(10)]
EVEN = {"latency_s": np.ones((3, 3)), "loaded_latency": FLAT}  # far memory answers as soon as near, whatever the load


@pytest.mark.parametrize(
    ("changes", "episode", "leaf", "gotchas"),
    [
        ({}, stream(0, 2, 20.0), Leaf.DATA_LAYOUT, {Gotcha.WRONG_NODE, Gotcha.DISTANCE_IGNORED}),
        ({}, stream(0, 1, 20.0), Leaf.DATA_LAYOUT, {Gotcha.WRONG_NODE}),
        ({}, stream(0, 1, 2.0), Leaf.DATA_LAYOUT, {Gotcha.WRONG_NODE, Gotcha.SATURATED_LINK}),
        ({}, MOVES, Leaf.DATA_LAYOUT, {Gotcha.EXCESSIVE_MIGRATION}),
        ({"outstanding_bytes": 64.0}, WRITERS, Leaf.DATA_LAYOUT, {Gotcha.FALSE_SHARING, Gotcha.WRONG_NODE}),
        ({}, stream(0, 0, 1.0), Leaf.CACHE_CONTENTION, set()),
        (EVEN, stream(0, 1, 2.0), Leaf.COMMUNICATION, {Gotcha.WRONG_NODE, Gotcha.SATURATED_LINK}),
        (EVEN, stream(0, 0, 1.0), Leaf.COMMUNICATION, set()),
        ({}, stream(0, 0, 10.0, flops=1e3), Leaf.COMPUTE, set()),
    ],
    ids=["far", "wrong node", "full link", "moves", "writers", "loaded", "hidden, link", "hidden, memory", "compute"],
)
def test_a_run_made_to_show_it_is_diagnosed(changes, episode, leaf, gotchas):
    found = played(toy_machine(3, **changes), episode)
    assert diagnose(found).leaf is leaf
    assert {finding.gotcha for finding in find_gotchas(found)} == gotchas
    assert diagnose(found).tuning is not None


# Laws.


@settings(deadline=None, max_examples=60)
@given(plays(num_episodes=2))
def test_a_run_agrees_with_its_steps_and_its_metrics(play):
    simulator = Simulator(play.topology, play.workload, 2, window_s=play.window_s)
    simulator.reset([0, 1])
    watch = Watch(simulator)
    moved = np.zeros(2)
    for task in range(play.workload.num_tasks):
        obj = play.workload.object[:, task]
        before = simulator.state.objects["bytes"][[0, 1], obj]
        outcome = simulator.step(play.actions[:, task])
        moved += outcome.local_bytes + outcome.remote_bytes - before * (outcome.migrated | outcome.replicated)
        watch.count(outcome)
    np.testing.assert_allclose(watch.used_bytes, moved, rtol=1e-6, atol=1.0)  # all bytes but those of moves and copies
    assert (watch.misplaced_bytes <= watch.used_bytes).all()
    if run_counters(simulator).elapsed_s.sum() <= 0.0:
        with pytest.raises(ValueError, match=r"runs must take time to be diagnosed, got 0\.0 s"):
            run_evidence(watch)
        return
    found = run_evidence(watch)  # which checks the range of every figure
    of_runs = run_metrics(simulator)
    for figure, metric in (("controller_utilisation", "S_MC"), ("link_utilisation", "U_link")):
        assert getattr(found, figure) <= np.nanmax(of_runs[metric]) * (1.0 + 1e-6)
    if found.latency_ratio is not None:
        least = play.topology.latency_s.min() / play.topology.latency_s.max()
        most = play.topology.loaded_latency.saturated / least
        assert least * (1.0 - 1e-9) <= found.latency_ratio <= most * (1.0 + 1e-9)


def test_watching_from_the_middle_is_refused():
    simulator = Simulator(toy_machine(2), toy_workload([Task(), Task()]), 1, window_s=1.0)
    simulator.reset(0)
    simulator.step(np.array([[0, 0]]))
    with pytest.raises(ValueError, match="runs must be watched from their first task on, got task 1"):
        Watch(simulator)


def test_a_row_whose_episode_is_over_is_not_counted_again():
    simulator = Simulator(toy_machine(2), toy_workload([Task(num_bytes=100.0, flops=7.0)] * 2), 2, window_s=1.0)
    simulator.reset(0, horizons=[1, 2])
    watch = Watch(simulator)
    for _ in range(2):
        watch.count(simulator.step(np.zeros((2, 2), np.int64)))
    assert watch.flops.tolist() == [7.0, 14.0]
    assert watch.used_bytes.tolist() == [100.0, 200.0]

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from strategies import Task, plays, toy_machine, toy_workload

from numa_rl.machines.builders import eight_socket_cube, four_socket
from numa_rl.metrics import (
    MEANINGS,
    Counters,
    coherence_overhead,
    compute_to_communication,
    controller_saturation,
    imbalance,
    link_bytes,
    link_utilisation,
    load_balance,
    local_remote_ratio,
    memory_efficiency,
    metrics,
    migration_rate,
    parallel_efficiency,
    run_counters,
    run_metrics,
)
from numa_rl.simulator.simulator import Simulator

INF, NAN = float("inf"), float("nan")

# Each metric on a case checked by hand.


def test_three_local_accesses_for_each_remote_one():
    assert local_remote_ratio(75, 25) == 3.0
    assert local_remote_ratio(75, 0) == INF
    assert np.isnan(local_remote_ratio(0, 0))


def test_a_link_that_carries_39_of_50_gb_per_s_is_used_at_78_percent():
    assert link_utilisation(39e9, 50e9) == pytest.approx(0.78)


def test_a_controller_that_serves_all_it_can_is_saturated():
    assert controller_saturation(100e9, 100e9) == 1.0


def test_even_load_is_balanced_and_one_busy_node_of_four_is_not():
    assert load_balance([5.0, 5.0, 5.0, 5.0]) == 1.0
    assert load_balance([4.0, 0.0, 0.0, 0.0]) == pytest.approx(1 - np.sqrt(3))  # mu 1, sigma sqrt(3)
    assert load_balance([1.0, 3.0]) == 0.5
    assert load_balance([0.0, 0.0]) == 1.0


def test_migrations_are_counted_per_second():
    assert migration_rate(120, 60.0) == 2.0


def test_coherence_is_a_share_of_all_time():
    assert coherence_overhead(3.0, 60.0) == 0.05


def test_rho_is_time_computing_over_time_communicating():
    assert compute_to_communication(68.0, 32.0) == 2.125
    assert compute_to_communication(1.0, 0.0) == INF


def test_a_speedup_of_4_2_on_8_nodes_is_an_efficiency_of_52_5_percent():
    assert parallel_efficiency(4.2, 1.0, 8) == pytest.approx(0.525)
    assert parallel_efficiency(6.8, 1.0, 8) == pytest.approx(0.85)


def test_memory_efficiency_of_exercise_3():
    assert memory_efficiency(4 * 75e9, 100e9, 4) == pytest.approx(0.75)


@pytest.mark.parametrize("metric", [local_remote_ratio, link_utilisation, controller_saturation, migration_rate])
@pytest.mark.parametrize("arguments", [(-1.0, 2.0), (1.0, -2.0), (NAN, 1.0), ([1.0, -3.0], 1.0)])
def test_negative_counts_are_refused(metric, arguments):
    with pytest.raises(ValueError, match=r"counts and times must be >= 0, got (-\d\.0|nan)"):
        metric(*arguments)


def test_impossible_figures_are_refused():
    with pytest.raises(ValueError, match=r"coherence_s must be at most total_s, got 2.0 of 1.0"):
        coherence_overhead(2.0, 1.0)
    with pytest.raises(ValueError, match="num_nodes must be >= 1, got 0"):
        parallel_efficiency(1.0, 1.0, 0)
    with pytest.raises(ValueError, match="num_nodes must be >= 1, got nan"):
        parallel_efficiency(1.0, 1.0, NAN)
    with pytest.raises(ValueError, match="num_nodes must be >= 1, got 0"):
        memory_efficiency(1.0, 1.0, 0)
    with pytest.raises(ValueError, match="imbalance must be >= 0, got -1"):
        metrics(Counters(imbalance=-1))
    with pytest.raises(ValueError, match=r"load must have a value for each node, got shape \(0,\)"):
        imbalance([])
    with pytest.raises(ValueError, match=r"load must be finite and >= 0, got -1.0"):
        imbalance([1.0, -1.0])


# From raw counters.


def test_raw_counters_give_every_metric():
    found = metrics(
        Counters(
            elapsed_s=2.0,
            local=30.0,
            remote=10.0,
            link_bytes=[20.0, 60.0],
            link_bytes_per_s=[50.0, 100.0],
            controller_bytes=[100.0, 60.0],
            controller_bytes_per_s=[100.0, 100.0],
            imbalance=0.25,
            migrations=4,
            compute_s=6.0,
            communication_s=2.0,
            coherence_s=0.4,
            one_node_s=3.0,
            num_nodes=2,
        )
    )
    assert list(found) == list(MEANINGS)
    expected = [3.0, 0.3, 0.5, 0.75, 2.0, 0.05, 3.0, 0.75, 0.4]
    np.testing.assert_allclose(list(found.values()), expected)


def test_what_was_not_counted_gives_no_metric():
    assert list(metrics(Counters(local=1.0, remote=2.0))) == ["R_L_R"]
    assert list(metrics(Counters(elapsed_s=1.0, migrations=2.0))) == ["F_migrate"]
    assert metrics(Counters()) == {}


def test_lists_of_runs_are_counted_run_by_run():
    found = metrics(Counters(compute_s=[1, 2], communication_s=[1, 1], coherence_s=[0.0, 0.75], imbalance=[0.5, 0]))
    np.testing.assert_allclose(found["O_coherence"], [0.0, 0.25])
    np.testing.assert_allclose(found["rho"], [1.0, 2.0])
    np.testing.assert_allclose(found["B_load"], [0.5, 1.0])


def test_capacities_are_one_for_each_link():
    with pytest.raises(ValueError, match=r"link_bytes and link_bytes_per_s must agree, got \(2,\) and \(3,\)"):
        metrics(Counters(elapsed_s=1.0, link_bytes=[1.0, 2.0], link_bytes_per_s=[1.0, 1.0, 1.0]))


# From a simulated run.


def test_a_run_by_hand():
    # Node 0 reads 200 bytes of its own and node 1 reads 100 of node 0's, at 100 and 50 bytes a second.
    tasks = [Task(num_bytes=200.0), Task(num_bytes=100.0, arrival_s=2.0), Task(arrival_s=3.0, size=5000.0)]
    simulator = Simulator(toy_machine(), toy_workload(tasks), 1, window_s=1e-3)
    simulator.reset(0)
    for action in [(0, 0), (1, 0), (0, 0)]:  # the third finds no room and is dropped
        simulator.step(np.array([action]))
    found = {name: values[0] for name, values in run_metrics(simulator).items()}
    elapsed_s = 4.0
    assert found["R_L_R"] == 2.0
    assert found["U_link"] == pytest.approx(100 / elapsed_s / 50)
    assert found["S_MC"] == pytest.approx(300 / elapsed_s / 100)
    assert found["B_load"] == pytest.approx(1 - (1.0 + 1.0 + 1.0) / 3)  # one of two nodes is busy at each decision
    assert found["F_migrate"] == 0.0
    coherence_s = simulator.totals.coherence_s[0]
    assert found["O_coherence"] == pytest.approx(coherence_s / (4.0 + coherence_s))
    assert found["rho"] == pytest.approx(4.0 / coherence_s)  # there are no inputs
    assert found["E"] == pytest.approx(3.0 / elapsed_s / 2)  # arrivals, work and bytes take 3 s each
    assert found["eta_mem"] == pytest.approx(300 / elapsed_s / 200)


@settings(deadline=None, max_examples=60)
@given(plays(num_episodes=2))
def test_a_runs_counters_agree_with_what_its_steps_said(play):
    simulator = Simulator(play.topology, play.workload, 2, window_s=play.window_s)
    simulator.reset([0, 1])
    local, remote = np.zeros((2, 2))
    for task in range(play.workload.num_tasks):
        outcome = simulator.step(play.actions[:, task])
        local += outcome.local_bytes
        remote += outcome.remote_bytes
    counters = run_counters(simulator)
    np.testing.assert_allclose(counters.local, local)
    np.testing.assert_allclose(counters.remote, remote)
    moved = simulator.state.pair_bytes.reshape(2, -1, 2).sum(axis=(1, 2))
    np.testing.assert_allclose(counters.controller_bytes.sum(axis=1), moved, rtol=1e-5)
    # Bytes between nodes pass as many links as their route has.
    n = play.topology.num_nodes
    pairs = simulator.state.pair_bytes.reshape(2, n * n, 2).sum(axis=2)
    np.testing.assert_allclose(counters.link_bytes.sum(axis=1), pairs @ play.topology.hops.ravel(), rtol=1e-5)
    for name, values in run_metrics(simulator).items():
        bounded = values[np.isfinite(values)]
        assert (bounded >= (-INF if name == "B_load" else 0.0)).all(), name
        assert (bounded <= (1.0 if name in ("B_load", "O_coherence") else INF)).all(), name


def test_one_node_would_take_its_arrivals_its_work_or_its_bytes_whichever_is_longest():
    busy = Task(num_bytes=1000.0, flops=100.0)
    second = Task(obj=1, arrival_s=2.0, num_bytes=200.0, flops=5000.0, reads=((0, 40.0),))

    def one_node_s(*tasks: Task, cores: int) -> float:
        simulator = Simulator(toy_machine(cores=[cores, 1]), toy_workload(tasks), 1, window_s=1e-3)
        simulator.reset(0)
        for _ in range(2):
            simulator.step(np.array([[0, 1]]))
        return float(run_counters(simulator).one_node_s[0])

    assert one_node_s(busy, second, Task(arrival_s=100.0), cores=1) == pytest.approx(10.0 + 50.0 + 0.4)
    assert one_node_s(busy, second, Task(arrival_s=100.0), cores=4) == pytest.approx(60.4 / 4)
    assert one_node_s(busy, second, Task(arrival_s=100.0), cores=8) == pytest.approx(1240 / 100)
    assert one_node_s(busy, Task(obj=1, arrival_s=90.0), cores=8) == 90.0


def test_reads_cross_links_toward_the_initiator_and_writes_away():
    machine = toy_machine(3)  # 0 - 1 - 2
    pair_bytes = np.zeros((3, 3, 2))
    pair_bytes[0, 2] = [7.0, 1.0]
    pair_bytes[1, 1] = [100.0, 100.0]
    carried = dict(zip(map(tuple, machine.links.tolist()), link_bytes(machine, pair_bytes), strict=True))
    assert carried == {(0, 1): 1.0, (1, 0): 7.0, (1, 2): 1.0, (2, 1): 7.0}


def test_rows_on_different_machines_have_their_own_metrics():
    machines = (four_socket(), eight_socket_cube())
    workload = toy_workload([Task(num_bytes=1e9), Task(num_bytes=1e9, arrival_s=1.0)])
    together = Simulator(machines, workload, 3, window_s=1.0)
    together.reset(0, machines=[1, 0, 1])
    for _ in range(2):
        together.step(np.array([[1, 0], [2, 0], [3, 0]]))
    found = run_metrics(together)
    for row, machine in enumerate([1, 0, 1]):
        alone = Simulator(machines[machine], workload, 1, window_s=1.0)
        alone.reset(0)
        for _ in range(2):
            alone.step(np.array([[row + 1, 0]]))
        for name, values in run_metrics(alone).items():
            np.testing.assert_allclose(found[name][row], values[0], err_msg=name)
    np.testing.assert_array_equal(run_metrics(together, [2])["R_L_R"], found["R_L_R"][2:])
    with pytest.raises(ValueError, match=r"rows must be on one machine, got machines \[0, 1\]"):
        run_counters(together)

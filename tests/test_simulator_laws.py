"""The kernel against the oracle, and laws that hold on every machine."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playing import assert_same_bits, bits, cores_at_work, decide, objects, replay, started
from reference import Reference
from strategies import Play, Task, plays, seeds, toy_machine, toy_workload, workloads

from numa_rl.coherence.protocol import LineState, TransitionCosts, possible_transitions
from numa_rl.machines.builders import eight_socket_cube
from numa_rl.simulator.simulator import Simulator
from numa_rl.simulator.state import EXCLUSIVE, MODIFIED, Outcome, State
from numa_rl.topology import Topology

modest = settings(deadline=None, max_examples=60)


# The kernel against the oracle.


def assert_agree(simulator: Simulator, row: int, oracle: Reference) -> None:
    """The state of a row is the oracle's."""
    state, n, width = simulator.state, oracle.num_nodes, simulator.num_nodes
    scale = oracle.now_s + max(max(cores, default=0.0) for cores in oracle.core_free_s)
    assert state.task[row] == oracle.task
    assert state.now_s[row] == pytest.approx(oracle.now_s, rel=1e-4)
    np.testing.assert_array_equal(state.memory_used_bytes[row, :n], oracle.memory.used)
    np.testing.assert_array_equal(state.spare_bytes[row, :n], [oracle.memory.spare(node) for node in range(n)])
    traffic = [oracle.traffic[i, d] for i in range(n) for d in range(n)]
    np.testing.assert_allclose(
        state.traffic_bytes[row].reshape(width, width)[:n, :n].ravel(), traffic, rtol=1e-4, atol=1.0
    )
    moved = [oracle.moved[i, d] for i in range(n) for d in range(n)]
    np.testing.assert_allclose(
        state.pair_bytes[row].reshape(width, width, 2)[:n, :n].reshape(-1, 2), moved, rtol=1e-4, atol=1.0
    )
    np.testing.assert_allclose(state.passed_bytes[row, :n], oracle.passed, rtol=1e-6)
    links = list(oracle.link_bytes.values())
    used = state.resource_bytes[row]
    np.testing.assert_allclose(used[:n], oracle.controller_bytes, rtol=1e-4, atol=1.0)
    np.testing.assert_allclose(used[width : width + len(links)], links, rtol=1e-4, atol=1.0)
    resources = [*range(n), *oracle.link_bytes]
    sums = np.array([oracle.in_flight.sums(resource, oracle.now_s) for resource in resources]).T
    largest = [1.0, oracle.topology.memory_bandwidth_bytes_per_s.max(), np.sum(moved)]  # rounding stays while they go
    arrays = (state.stream_count, state.stream_rate, state.stream_bytes)
    for array, expected, most in zip(arrays, sums, largest, strict=True):
        got = np.concatenate([array[row, :n], array[row, width : width + len(links)]])
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5 * most)
    free_s = state.core_free_s[row].reshape(-1, width)
    for node, expected in enumerate(oracle.core_free_s):
        got = np.maximum(free_s[: len(expected), node], oracle.now_s)  # which of the idle cores comes next is no matter
        np.testing.assert_allclose(got, np.maximum(expected, oracle.now_s), rtol=1e-4, atol=1e-6 * scale)
    for obj, thing in enumerate(oracle.things):
        assert objects(simulator, row)[obj] == (-1 if thing.node is None else thing.node, thing.size)
        assert state.objects[row, obj]["ready_s"] == pytest.approx(thing.ready_s, rel=1e-4, abs=1e-6 * scale)
        assert state.objects[row, obj]["holder"] == (-1 if thing.holder is None else thing.holder)
        if thing.holder is not None:
            expected = {LineState.M: MODIFIED, LineState.E: EXCLUSIVE, LineState.F: thing.sharer}[thing.state]
            assert state.objects[row, obj]["sharer"] == expected


@settings(deadline=None, max_examples=300)
@given(plays(num_episodes=2) | plays(num_episodes=2, weights=True))
def test_every_decision_agrees_with_the_oracle(play):
    simulator = Simulator(play.topology, play.workload, 2, window_s=play.window_s)
    simulator.reset([0, 1])
    oracles = [Reference(play.topology, play.workload, episode, play.window_s) for episode in range(2)]
    for task in range(play.workload.num_tasks):
        outcome = simulator.step(play.actions[:, task])
        for row, oracle in enumerate(oracles):
            now_s = oracle.now_s
            task_node, data_node, *weights = play.actions[row, task].tolist()
            expected = asdict(oracle.step(task_node, data_node, weights))
            scale = now_s + expected["exec_s"] + expected["comm_s"]
            if sum(oracle.outstanding_s()) < 1e-4 * scale:
                expected.pop("imbalance")  # the ratio of what rounding left
            for name, value in expected.items():
                got = getattr(outcome, name)[row]
                if isinstance(value, float):
                    assert got == pytest.approx(value, rel=1e-4, abs=1e-6 * max(scale, 1.0)), name
                else:
                    assert got == value, name
            assert_agree(simulator, row, oracle)
    assert outcome.finished.all()


# Laws.


@modest
@given(plays() | plays(weights=True))
def test_memory_in_use_is_what_the_live_objects_occupy(play):
    for step in replay(play):
        size, form, home = (step[f"objects.{name}"][0] for name in ("bytes", "form", "node"))
        used, spare = step["memory_used_bytes"][0], step["spare_bytes"][0]
        occupied = (size * np.where(form > 1, form, 1) * (home >= 0)).sum()  # a copy takes as much as the first
        assert used.sum() == occupied
        assert (spare >= 0.0).all()
        assert (spare <= used).all()
        assert (used <= play.topology.memory_bytes).all()


@modest
@given(plays())
def test_bytes_moved_are_those_demanded_and_those_migrated(play):
    workload, history = play.workload, replay(play)
    for task, (before, after) in enumerate(pairwise(history)):
        obj, inputs = workload.object[0, task], workload.inputs[0, task]
        live = (inputs >= 0) & (before["objects.node"][0, inputs] >= 0)
        demanded = workload.bytes[0, task] + workload.input_bytes[0, task][live].sum(dtype=np.float64)
        migrated = before["objects.bytes"][0, obj] if after["outcome.migrated"][0] else 0.0
        copied = before["objects.bytes"][0, obj] if after["outcome.replicated"][0] else 0.0
        moved = after["outcome.local_bytes"][0] + after["outcome.remote_bytes"][0]
        expected = 0.0 if after["outcome.out_of_memory"][0] else demanded + migrated + copied
        assert moved == pytest.approx(expected, rel=1e-6)


@modest
@given(plays() | plays(weights=True))
def test_traffic_by_target_is_what_its_memory_controller_moved(play):
    n = play.topology.num_nodes
    for step in replay(play):
        by_target = step["traffic_bytes"][0].reshape(n, n).sum(axis=0)
        np.testing.assert_allclose(step["resource_bytes"][0, :n], by_target, rtol=1e-4, atol=1.0)


@modest
@given(plays() | plays(weights=True))
def test_time_never_runs_back(play):
    history = replay(play)
    for before, after in pairwise(history):
        assert (after["now_s"] >= before["now_s"]).all()
        assert (after["core_free_s"] >= before["core_free_s"]).all()
        assert (after["objects.ready_s"] >= before["objects.ready_s"]).all()
        for name in ("exec_s", "comm_s", "wait_s", "migration_s", "imbalance"):
            assert (after[f"outcome.{name}"] >= 0.0).all()
        assert (after["outcome.exec_s"] >= after["outcome.wait_s"]).all()
        assert (after["outcome.comm_s"] >= after["outcome.migration_s"]).all()


def relabelled(topology: Topology, new_name: np.ndarray) -> Topology:
    """The machine whose node new_name[i] is this one's node i, with links in another order."""
    old_name = np.argsort(new_name)
    changes: dict[str, Any] = {
        name: getattr(topology, name)[old_name]
        for name in ("cores", "flops_per_s", "memory_bytes", "memory_bandwidth_bytes_per_s", "llc_bytes")
    }
    changes |= {
        name: getattr(topology, name)[np.ix_(old_name, old_name)] for name in ("latency_s", "bandwidth_bytes_per_s")
    }
    return Topology(
        name="relabelled",
        links=new_name[topology.links][::-1],
        link_bandwidth_bytes_per_s=topology.link_bandwidth_bytes_per_s[::-1],
        loaded_latency=topology.loaded_latency,
        outstanding_bytes=topology.outstanding_bytes,
        page_move_s=topology.page_move_s,
        **changes,
    )


@modest
@given(plays(min_nodes=2), st.randoms(use_true_random=False))
def test_relabelling_nodes_relabels_the_outcome(play, random):
    new_name = np.array(random.sample(range(play.topology.num_nodes), play.topology.num_nodes))
    other = Play(relabelled(play.topology, new_name), play.workload, play.window_s, new_name[play.actions])
    for one, two in zip(replay(play)[1:], replay(other)[1:], strict=True):
        for name in Outcome._fields:
            got, expected = two[f"outcome.{name}"], one[f"outcome.{name}"]
            if name in ("task_node", "data_node"):
                expected = np.where(expected >= 0, new_name[expected], expected)
            np.testing.assert_allclose(got, expected, rtol=1e-6, err_msg=name)
        np.testing.assert_array_equal(two["memory_used_bytes"][:, new_name], one["memory_used_bytes"])
        for name in ("stream_count", "stream_rate", "stream_bytes"):
            most = one[name].max(initial=1.0)
            np.testing.assert_allclose(
                two[name][:, new_name], one[name][:, : len(new_name)], rtol=1e-4, atol=1e-4 * most, err_msg=name
            )


def crowd(state: State, row: int, rng: np.random.Generator) -> None:
    """Add recent bytes and streams in flight to some of a row's controllers and links."""
    some = rng.random((4, state.resource_bytes.shape[1])) < 0.5
    state.resource_bytes[row] += rng.exponential(1e9, some.shape[1]) * some[0]
    state.stream_count[row] += rng.exponential(2.0, some.shape[1]) * some[1]
    state.stream_rate[row] += rng.exponential(1e10, some.shape[1]) * some[2]
    state.stream_bytes[row] += rng.exponential(1e9, some.shape[1]) * some[3]


@modest
@given(plays(), seeds)
def test_what_is_already_there_never_makes_the_decision_at_hand_faster(play, seed):
    # A later one may well be: a task that is slower now moves fewer bytes a second, and keeps others waiting.
    rng = np.random.default_rng(seed)
    simulator = Simulator(play.topology, play.workload, 2, window_s=play.window_s)
    simulator.reset(0)
    for task in range(play.workload.num_tasks):
        for array in simulator.state:
            array[1] = array[0]
        crowd(simulator.state, 1, rng)
        outcome = simulator.step(np.repeat(play.actions[:, task], 2, axis=0))
        for name in ("comm_s", "migration_s", "coherence_s"):
            quiet, busy = getattr(outcome, name)
            assert busy >= quiet * (1 - 1e-6)
        quiet, busy = outcome.exec_s + outcome.comm_s
        assert busy >= quiet * (1 - 1e-6)


@modest
@given(plays(), st.floats(1.0, 10.0))
def test_a_larger_first_task_never_makes_the_second_one_faster(play, factor):
    # More is in flight, for longer. In a graph time moves on while it runs; and its data push cached lines out.
    workload = replace(play.workload, follows_inputs=False)
    free = TransitionCosts(np.where(possible_transitions(), 0.0, np.nan))
    topology = replace(play.topology, coherence=free)
    factors = np.ones((1, workload.num_tasks))
    factors[0, 0] = factor
    larger_workload = replace(
        workload,
        flops=workload.flops * factors,
        bytes=workload.bytes * factors,
        input_bytes=workload.input_bytes * factors[..., None],
    )
    pair = (Play(topology, demands, play.window_s, play.actions) for demands in (workload, larger_workload))
    for task, (one, two) in enumerate(zip(*(replay(each)[1:3] for each in pair), strict=True)):
        light = one["outcome.exec_s"] + one["outcome.comm_s"]
        heavy = two["outcome.exec_s"] + two["outcome.comm_s"]
        assert heavy >= light * (1 - 1e-6), f"task {task}"


def test_a_larger_task_makes_a_later_one_faster_by_keeping_another_from_starting():
    def last_s(flops: float) -> float:
        tasks = [Task(obj=0, flops=flops), Task(obj=1, num_bytes=200), Task(obj=2, num_bytes=200)]
        simulator = started(toy_machine(cores=[1, 1]), toy_workload(tasks))
        return float(decide(simulator, (0, 0), (0, 0), (1, 0))["exec_s"])

    assert last_s(0) == pytest.approx(2 * 2.2)  # the controller is the second task's too; a link would give 4 s
    assert last_s(100) == pytest.approx(4.0)  # while that waits for its core, nothing is in flight


@modest
@given(plays(num_episodes=4, max_tasks=8) | plays(num_episodes=4, max_tasks=8, weights=True))
def test_a_batch_of_many_is_many_batches_of_one(play):
    together = replay(play)
    for row in range(4):
        alone = Simulator(play.topology, play.workload, 1, window_s=play.window_s)
        alone.reset(row)
        for task in range(play.workload.num_tasks):
            alone.step(play.actions[row : row + 1, task])
            assert_same_bits({name: values[row : row + 1] for name, values in together[task + 1].items()}, bits(alone))


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
@settings(deadline=None, max_examples=10)
@given(workloads(num_episodes=5), seeds)
def test_any_number_of_threads_gives_the_same_bits(workload, seed):
    rng = np.random.default_rng(seed)
    simulators = [Simulator(eight_socket_cube(), workload, 131, window_s=0.1, num_threads=k) for k in (1, 2)]
    assert [simulator.chunks.count for simulator in simulators] == [1, 2]  # it does split
    for simulator in simulators:
        simulator.reset(np.arange(131) % 5)
    for _ in range(workload.num_tasks):
        actions = rng.integers(8, size=(131, 2))
        for simulator in simulators:
            simulator.step(actions)
        assert_same_bits(*map(bits, simulators))


def unpadded(simulator: Simulator, row: int, num_nodes: int, num_links: int) -> dict[str, np.ndarray]:
    """What a step wrote about the nodes and links that exist."""
    width, found = simulator.num_nodes, bits(simulator, row)
    for name in ("traffic_bytes", "core_free_s", "access_bytes", "page_weights"):
        found[name] = found[name].reshape(-1, width)[:, :num_nodes]
    found["pair_bytes"] = found["pair_bytes"].reshape(width, width, 2)[:num_nodes, :num_nodes]
    found["passed_bytes"] = found["passed_bytes"][:num_nodes]
    found["traffic_bytes"] = found["traffic_bytes"][:num_nodes]
    found["core_free_s"] = found["core_free_s"][:3]
    for name in ("resource_bytes", "stream_count", "stream_rate", "stream_bytes"):
        used = found[name]
        found[name] = np.concatenate([used[:num_nodes], used[width : width + num_links]])
    changes = [(change["at_s"], *divmod(change["core"], width)) for change in found["changes"][: found["num_changes"]]]
    found["changes"] = np.array(changes)
    found["records"] = np.array(str(cores_at_work(simulator, row)))
    for name in ("memory_used_bytes", "spare_bytes"):
        found[name] = found[name][:num_nodes]
    found["node_free_s"] = found["node_free_s"][:num_nodes]
    found.pop("machine")
    return {name: np.ascontiguousarray(values) for name, values in found.items()}


@modest
@given(plays(max_tasks=8), st.integers(0, 3))
def test_padding_nodes_changes_nothing(play, extra):
    size = (play.topology.num_nodes, play.topology.num_links)
    narrow = started(play.topology, play.workload, play.window_s)
    wide = started(play.topology, play.workload, play.window_s, max_nodes=play.topology.num_nodes + extra)
    assert wide.num_nodes == play.topology.num_nodes + extra
    for task in range(play.workload.num_tasks):
        narrow.step(play.actions[:, task])
        wide.step(play.actions[:, task])
        one, two = unpadded(narrow, 0, *size), unpadded(wide, 0, *size)
        cores = play.topology.cores.max()
        one["core_free_s"], two["core_free_s"] = one["core_free_s"][:cores], two["core_free_s"][:cores]
        assert_same_bits(one, two)


@modest
@given(st.lists(plays(num_episodes=1, max_tasks=1), min_size=2, max_size=3), workloads(max_tasks=8), seeds)
def test_machines_of_different_sizes_in_one_batch_do_not_meet(machines, workload, seed):
    rng = np.random.default_rng(seed)
    topologies = [play.topology for play in machines]
    together = Simulator(topologies, workload, len(topologies), window_s=0.1)
    together.reset(0, machines=np.arange(len(topologies)))
    alone = [started(topology, workload, 0.1) for topology in topologies]
    for _ in range(workload.num_tasks):
        actions = np.array([rng.integers(topology.num_nodes, size=2) for topology in topologies])
        together.step(actions)
        for row, (topology, single) in enumerate(zip(topologies, alone, strict=True)):
            single.step(actions[row : row + 1])
            size = (topology.num_nodes, topology.num_links)
            one, two = unpadded(single, 0, *size), unpadded(together, row, *size)
            cores = topology.cores.max()
            one["core_free_s"], two["core_free_s"] = one["core_free_s"][:cores], two["core_free_s"][:cores]
            assert_same_bits(one, two)

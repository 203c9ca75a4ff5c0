"""Streams in flight: what is in the sums of every controller and link, and what a new stream shares with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playing import cores_at_work, decide, replay, started
from strategies import Task, plays, toy_machine, toy_workload

from numa_rl.simulator.simulator import Simulator
from numa_rl.simulator.state import AT_WORK, WAITING
from numa_rl.simulator.streams import shared_s_per_byte

modest = settings(deadline=None, max_examples=60)

# On a toy machine of two nodes: their controllers, the link 0 -> 1, the link 1 -> 0.
COUNT, RATE, LEFT = "stream_count", "stream_rate", "stream_bytes"


def sums(simulator: Simulator, name: str) -> list[float]:
    """Of streams in flight in row 0."""
    return getattr(simulator.state, name)[0].tolist()


def after(tasks: list[Task], *actions: tuple[int, ...], **machine: Any) -> Simulator:
    """A toy machine after these decisions, at the arrival of the task that follows them."""
    simulator = started(toy_machine(**machine), toy_workload([*tasks, Task(arrival_s=tasks[-1].arrival_s)]))
    decide(simulator, *actions)
    return simulator


# What a task adds.


def test_a_stream_is_present_at_its_controller_with_its_rate_and_its_bytes():
    simulator = after([Task(num_bytes=200)], (0, 0))
    assert sums(simulator, COUNT) == pytest.approx([1, 0, 0, 0])
    assert sums(simulator, RATE) == pytest.approx([100, 0, 0, 0])
    assert sums(simulator, LEFT) == pytest.approx([200, 0, 0, 0])


def test_reads_are_on_the_links_toward_the_core_and_writes_on_those_away():
    simulator = after([Task(num_bytes=200, write_fraction=0.25)], (0, 1))  # 4 s
    assert sums(simulator, COUNT) == pytest.approx([0, 1, 1, 1])
    assert sums(simulator, RATE) == pytest.approx([0, 50, 12.5, 37.5])
    assert sums(simulator, LEFT) == pytest.approx([0, 200, 50, 150])
    assert sums(after([Task(num_bytes=200)], (0, 1)), COUNT) == pytest.approx([0, 1, 0, 1])
    assert sums(after([Task(num_bytes=200, write_fraction=1.0)], (0, 1)), COUNT) == pytest.approx([0, 1, 1, 0])


def test_a_stream_is_present_while_its_task_streams_and_not_while_that_does_something_else():
    simulator = after([Task(num_bytes=200, overhead_s=6.0)], (0, 0))  # 2 s of 8
    assert sums(simulator, COUNT) == pytest.approx([0.25, 0, 0, 0])
    assert sums(simulator, RATE) == pytest.approx([25, 0, 0, 0])
    assert sums(simulator, LEFT) == pytest.approx([200, 0, 0, 0])


def test_a_stream_goes_no_faster_than_the_arithmetic_on_it():
    simulator = after([Task(num_bytes=200, flops=800)], (0, 0))
    assert sums(simulator, COUNT) == pytest.approx([1, 0, 0, 0])
    assert sums(simulator, RATE) == pytest.approx([25, 0, 0, 0])


def test_arithmetic_alone_is_no_stream():
    simulator = after([Task(flops=800)], (0, 0))
    assert cores_at_work(simulator) == {}
    assert sums(simulator, COUNT) == [0, 0, 0, 0]


def test_a_message_is_present_for_its_bytes_alone():
    tasks = [Task(obj=1), Task(obj=0, reads=((1, 100.0),))]
    simulator = after(tasks, (1, 1), (0, 0))  # 5 s, of which 100 / 50 stream
    assert sums(simulator, COUNT) == pytest.approx([0, 0.4, 0, 0.4])
    assert sums(simulator, RATE) == pytest.approx([0, 20, 0, 20])
    assert sums(simulator, LEFT) == pytest.approx([0, 100, 0, 100])


def test_a_migration_passes_both_controllers_and_the_link_to_its_target():
    simulator = after([Task(size=100), Task(size=100)], (0, 0), (1, 1))  # 7 s, of which 100 / 50 stream
    assert sums(simulator, COUNT) == pytest.approx([2 / 7, 2 / 7, 2 / 7, 0])
    assert sums(simulator, RATE) == pytest.approx([100 / 7, 100 / 7, 100 / 7, 0])
    assert sums(simulator, LEFT) == pytest.approx([100, 100, 100, 0])


def test_streams_between_one_node_and_one_memory_are_one():
    tasks = [Task(obj=1), Task(obj=0, num_bytes=200, write_fraction=0.5, reads=((1, 100.0),))]
    simulator = after(tasks, (1, 1), (0, 1))  # 5 s for the message, 2 of which it streams, and 4 s
    [(place, work)] = cores_at_work(simulator).items()
    assert place == (0, 0)
    assert work["streams"] == {(0, 1): pytest.approx(((2 + 4) / 9, (100 + 100) / 9, 100 / 9))}


def test_split_pages_are_a_stream_for_each_node_that_holds_some():
    task = Task(num_bytes=200, flops=600, size=100)
    simulator = after([task], (0, 0, 1, 1))  # 100 / 100 and 100 / 50, at the pace of 6 s of arithmetic
    assert sums(simulator, COUNT) == pytest.approx([1 / 3, 2 / 3, 0, 2 / 3])
    assert sums(simulator, RATE) == pytest.approx([100 / 6, 100 / 6, 0, 100 / 6])
    assert sums(simulator, LEFT) == pytest.approx([100, 100, 0, 100])


@pytest.mark.parametrize("flops", [0, 1000])
def test_pages_that_are_all_on_one_node_are_in_flight_like_a_whole_object(flops):
    task = Task(num_bytes=500, flops=flops)
    pages, whole = after([task], (0, 1, 0, 1)), after([task], (0, 1))
    for name in (COUNT, RATE, LEFT):
        assert sums(pages, name) == pytest.approx(sums(whole, name))


# When cores enter, go on and leave.


def test_a_stream_has_less_left_as_time_passes_and_then_is_gone():
    tasks = [Task(num_bytes=200), Task(obj=1, arrival_s=0.5), Task(obj=1, arrival_s=1.75), Task(obj=1, arrival_s=2.0)]
    simulator = after(tasks, (0, 0))
    assert sums(simulator, LEFT) == pytest.approx([150, 0, 0, 0])
    decide(simulator, (1, 1))
    assert sums(simulator, LEFT) == pytest.approx([25, 0, 0, 0])
    assert sums(simulator, COUNT) == [1, 0, 0, 0]
    decide(simulator, (1, 1))
    for name in (COUNT, RATE, LEFT):
        assert sums(simulator, name) == [0, 0, 0, 0]


def test_a_core_that_waits_for_inputs_enters_when_it_starts():
    writing = Task(obj=0, flops=500)  # new: written at 5 s
    reading = Task(obj=1, num_bytes=200, reads=((0, 0.0),))  # from 5 s to 7 s
    probes = [Task(obj=2, arrival_s=1.0), Task(obj=2, arrival_s=5.5), Task(obj=2, arrival_s=7.0)]
    simulator = after([writing, reading, *probes], (1, 1), (0, 0))
    assert cores_at_work(simulator)[0, 0]["status"] == WAITING
    assert sums(simulator, COUNT) == [0, 0, 0, 0]
    decide(simulator, (1, 1))
    assert cores_at_work(simulator)[0, 0]["status"] == AT_WORK
    assert sums(simulator, COUNT) == [1, 0, 0, 0]
    assert sums(simulator, LEFT) == pytest.approx([150, 0, 0, 0], rel=1e-4)  # what is left from 5.5 s to 7 s
    decide(simulator, (1, 1))
    assert sums(simulator, LEFT) == [0, 0, 0, 0]


def test_a_core_that_has_started_and_ended_before_time_moved_on_never_enters():
    writing, reading = Task(obj=0, flops=500), Task(obj=1, num_bytes=200, reads=((0, 0.0),))
    simulator = after([writing, reading, Task(obj=2, arrival_s=7.5)], (1, 1), (0, 0))
    assert cores_at_work(simulator) == {}
    assert sums(simulator, COUNT) == [0, 0, 0, 0]


def test_a_core_goes_on_as_it_began_while_tasks_follow_without_a_gap():
    # The second is charged 3 s x (1 + 2 x 1.75 / 3.625), x = 300 / 200, and ends at 2 + 5.8966 s.
    tasks = [Task(obj=0, num_bytes=200), Task(obj=1, num_bytes=300)]
    tasks += [Task(obj=2, arrival_s=at) for at in (1.0, 3.0, 4.0, 6.0, 7.5, 8.0)]
    simulator = after(tasks, (0, 0), (0, 0))
    end_s = 2 + 3 * (1 + 3.5 / 3.625)
    assert cores_at_work(simulator)[0, 0]["busy_until_s"] == pytest.approx(end_s)
    expected = [100, 200, 100, 100 * (end_s - 6), 100 * (end_s - 7.5)]  # 2 s more from 3 s on, then until the end
    for left in expected:
        assert (sums(simulator, COUNT), sums(simulator, RATE)) == ([1, 0, 0, 0], pytest.approx([100, 0, 0, 0]))
        assert sums(simulator, LEFT) == pytest.approx([left, 0, 0, 0], rel=1e-3)
        decide(simulator, (1, 1))
    assert sums(simulator, COUNT) == [0, 0, 0, 0]


def test_a_task_that_comes_after_a_gap_enters_no_sum():
    writing = Task(obj=0, flops=500)
    tasks = [writing, Task(obj=1, num_bytes=200), Task(obj=2, num_bytes=200, reads=((0, 0.0),))]  # to 2 s, from 5 s
    simulator = after([*tasks, Task(obj=3, arrival_s=1.0), Task(obj=3, arrival_s=5.5)], (1, 1), (0, 0), (0, 0))
    assert cores_at_work(simulator)[0, 0]["busy_until_s"] == pytest.approx(2.0)
    assert simulator.state.core_free_s[0, 0] > 7.0
    decide(simulator, (1, 1))
    assert cores_at_work(simulator) == {}
    assert sums(simulator, COUNT) == [0, 0, 0, 0]


def test_a_core_that_went_on_takes_away_all_that_it_brought():
    resident = Task(num_bytes=1, flops=1e6)  # 1 byte in 10,000 s
    tasks, actions = [resident], [(0, 0)]
    for start in range(100, 5100, 100):  # 2 s, and without a gap some 5 s more; a look at it in between
        tasks += [Task(obj=1, arrival_s=start, num_bytes=200), Task(obj=2, arrival_s=start, num_bytes=200)]
        tasks += [Task(obj=3, arrival_s=start + 3)]
        actions += [(0, 0), (0, 0), (1, 1)]
    simulator = after([*tasks, Task(obj=3, arrival_s=6000.0)], *actions, cores=[2, 1])
    assert list(cores_at_work(simulator)) == [(0, 0)]
    assert sums(simulator, COUNT) == pytest.approx([1, 0, 0, 0], abs=1e-5)
    assert sums(simulator, RATE) == pytest.approx([1e-4, 0, 0, 0], abs=1e-4)
    assert sums(simulator, LEFT) == pytest.approx([0.4, 0, 0, 0], abs=0.02)


def test_what_the_clock_cannot_tell_is_no_stream():
    tasks = [Task(num_bytes=1e-6, arrival_s=1e9), Task(obj=1, num_bytes=200, arrival_s=1e9)]
    simulator = started(toy_machine(cores=[2, 1]), toy_workload(tasks))
    assert decide(simulator, (0, 0), (0, 0))["exec_s"] == pytest.approx(2.0)
    assert all(np.isfinite(getattr(simulator.state, name)).all() for name in (COUNT, RATE, LEFT))


def test_a_core_that_goes_on_by_less_than_the_clock_can_tell_leaves():
    tasks = [Task(num_bytes=1e-6), Task(obj=1, flops=1e12), Task(obj=2, arrival_s=1e9)]  # 1e-8 s, and then 1e10 s
    simulator = after(tasks, (0, 0), (0, 0))
    assert simulator.state.now_s[0] == 1e9
    assert cores_at_work(simulator) == {}


# What a new stream meets.


def probe_s(*filling: Task, at_s: float = 0.0, num_bytes: float = 100.0) -> float:
    """Service time of a stream at node 0 whose controller the others are at."""
    tasks = [*filling, Task(obj=1, arrival_s=at_s, num_bytes=num_bytes)]
    simulator = started(toy_machine(cores=[3, 1]), toy_workload(tasks))
    return float(decide(simulator, *[(0, 0)] * len(tasks))["exec_s"])


def test_a_stream_beside_one_that_has_nothing_left_is_hardly_delayed():
    assert probe_s(Task(num_bytes=200), at_s=1.999) == pytest.approx(1 + 2 * 51 / 5101, rel=1e-3)  # 1 byte: x = 100
    assert probe_s(Task(num_bytes=200), at_s=2.0) == pytest.approx(1.0)


def test_a_stream_gets_at_least_what_the_others_leave_over():
    slow = Task(num_bytes=500, flops=1000)  # 50 bytes a second: x = 1 / 5, 1 + 2 x 1.1 / 1.22 = 2.8
    assert probe_s(slow) == pytest.approx(2.0)  # 100 / (100 - 50)


def test_a_stream_half_of_the_time_delays_half_as_much():
    half = Task(num_bytes=200, overhead_s=2.0)  # n = 1 / 2, V = 200, R = 50; x = 1 / 4
    assert probe_s(half) == pytest.approx(1 + 1.125 / 1.28125)


def test_latency_goes_by_what_the_streams_move():
    half = Task(num_bytes=500, flops=1000)
    tasks = [half, Task(obj=1, reads=((0, 1e-6),))]
    outcome = decide(started(toy_machine(cores=[2, 1]), toy_workload(tasks)), (0, 0), (1, 1))
    waiting_s = outcome["wait_s"]
    assert waiting_s == pytest.approx(10.0)  # for the half-busy writer
    assert outcome["comm_s"] == pytest.approx(2.0 * (1 + 0.5 / 0.75), rel=1e-5)  # u = 1 / 2


# Laws of the share.


def shared(count: float, rate: float, left: float, num_bytes: float, idle: float = 1.0) -> float:
    return float(shared_s_per_byte(*map(np.float32, (idle, count, rate, left, num_bytes))))


amounts = st.floats(1.0, 1e12)
counts = st.floats(0.0, 200.0)
shares = st.floats(0.0, 3.0)


@modest
@given(counts, shares, amounts, amounts, st.floats(1.0, 100.0))
def test_more_in_flight_never_makes_a_stream_faster_nor_its_own_bytes_it_sooner(count, rate, left, num_bytes, more):
    now = shared(count, rate, left, num_bytes)
    slack = 1 - 1e-6
    assert now >= slack
    assert shared(count * more, rate, left, num_bytes) >= now * slack
    assert shared(count, rate * more, left, num_bytes) >= now * slack
    assert shared(count, rate, left * more, num_bytes) >= now * slack
    assert shared(count, rate, left, num_bytes * more) * more >= now * slack
    assert now <= 1 / max(1 - rate, 1e-9) / slack
    assert now <= (1 + 2 * count) / slack


def processor_sharing_s(sizes: list[float]) -> float:
    """Sum of the times when jobs that share a server of one byte a second end, all there from the start."""
    total, now, before = 0.0, 0.0, 0.0
    for index, size in enumerate(sorted(sizes)):
        now += (size - before) * (len(sizes) - index)
        before = size
        total += now
    return total


@modest
@given(st.lists(st.floats(0.1, 100.0), max_size=8), st.floats(0.1, 100.0))
def test_under_processor_sharing_a_job_takes_from_the_others_what_they_take_from_it(sizes, own):
    delay = processor_sharing_s([*sizes, own]) - processor_sharing_s(sizes) - own
    assert delay == pytest.approx(2 * sum(min(size, own) for size in sizes), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("num_others", [1, 4])
def test_a_stream_is_charged_the_mean_of_that_for_sizes_without_memory(num_others, ratio):
    rng = np.random.default_rng(1)
    sizes = rng.exponential(1000.0, (20_000, num_others))
    own = 1000.0 * ratio
    delay = 2 * np.minimum(sizes, own).sum(axis=1).mean()
    charged = (shared(num_others, 1.0, 1000.0 * num_others, own) - 1.0) * own
    assert charged == pytest.approx(delay, rel=0.09)


def test_the_rational_form_is_within_eight_percent_of_the_exponential_and_never_above():
    x = np.logspace(-3, 3, 601)
    moved = np.array([each * (shared(1.0, 1.0, 1e4, each * 1e4) - 1.0) / 2.0 for each in x])  # over V
    ratio = moved / -np.expm1(-x)
    assert ratio.max() < 1.0 + 1e-3
    assert ratio.min() > 0.92
    worst = x[ratio.argmin()]
    assert 2.0 < worst < 3.0


def test_two_streams_that_begin_together_are_charged_less_than_they_take_if_sizes_are_not_random():
    # Sizes that are all equal are as far from memoryless as can be: both end at 2 b, and are charged 3.2 b of 4 b.
    first, second = 1.0, probe_s(Task(num_bytes=100))
    assert processor_sharing_s([1.0, 1.0]) == 4.0
    assert first + second == pytest.approx(1.0 + 1 + 2 * 1.5 / 2.5)


@pytest.mark.parametrize("longer", [1e3, 1e6])
def test_two_streams_of_which_one_is_far_longer_take_what_processor_sharing_takes(longer):
    charged = longer + probe_s(Task(num_bytes=100 * longer))
    assert charged == pytest.approx(processor_sharing_s([1.0, longer]), rel=1e-3)


# Laws of the sums.


@modest
@given(plays() | plays(weights=True))
def test_sums_are_never_negative_and_no_controller_has_more_streams_than_cores_are_busy(play):
    nodes = play.topology.num_nodes
    for step in replay(play):
        busy = (step["core_free_s"][0] > step["now_s"][0]).sum()
        moved = step["pair_bytes"][0].sum(dtype=np.float64)
        assert (step[COUNT][0] >= -1e-5 * (1 + busy)).all()
        assert (step[RATE][0] >= -1e-6 * play.topology.memory_bandwidth_bytes_per_s.max()).all()
        assert (step[LEFT][0] >= -1e-6 * moved).all()
        assert (step[COUNT][0, :nodes] <= busy * (1 + 1e-5)).all()


@modest
@given(plays() | plays(weights=True))
def test_nothing_is_in_flight_when_no_core_is_at_work(play):
    for step in replay(play):
        if step["num_changes"][0] == 0:
            for name in (COUNT, RATE, LEFT):
                assert not step[name].any()


@modest
@given(plays() | plays(weights=True))
def test_streams_and_rates_are_those_of_the_cores_at_work(play):
    simulator = started(play.topology, play.workload, play.window_s)
    for task in range(play.workload.num_tasks):
        simulator.step(play.actions[:, task])
        count, rate = np.zeros(play.topology.num_nodes), np.zeros(play.topology.num_nodes)
        for work in cores_at_work(simulator).values():
            for (_, target), (present, read, written) in work["streams"].items():
                count[target] += present * (work["status"] == AT_WORK)
                rate[target] += (read + written) * (work["status"] == AT_WORK)
        nodes = play.topology.num_nodes
        np.testing.assert_allclose(simulator.state.stream_count[0, :nodes], count, rtol=1e-5, atol=1e-5)
        fastest = play.topology.memory_bandwidth_bytes_per_s.max()
        np.testing.assert_allclose(simulator.state.stream_rate[0, :nodes], rate, rtol=1e-5, atol=1e-6 * fastest)


@modest
@given(plays() | plays(weights=True))
def test_a_core_is_one_stream_at_a_controller_at_most_and_no_longer_than_it_is_busy(play):
    simulator = started(play.topology, play.workload, play.window_s)
    for task in range(play.workload.num_tasks):
        simulator.step(play.actions[:, task])
        for (node, core), work in cores_at_work(simulator).items():
            at = [0.0] * play.topology.num_nodes
            for (_, target), (present, _, _) in work["streams"].items():
                at[target] += present
            assert max(at) <= 1 + 1e-5
            assert work["busy_until_s"] <= simulator.state.core_free_s[0, core * simulator.num_nodes + node]

"""Laws of sharing that time recorded decisions again, against times worked out by hand and the simulator's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from strategies import Play, Task, plays, toy_machine, toy_workload

from envs.world import World
from experiments.fidelity import laws_kernel as codes
from experiments.fidelity.cells import NO_FACTOR, Plan, make_scheduler
from experiments.fidelity.laws import KERNEL, LAWS, Sharing
from experiments.fidelity.record import Recorder, record
from experiments.fidelity.replay import ACCESS, MESSAGE, MOVE, PAGES, Replay
from experiments.fidelity.rows import kernel_law
from numa_rl.topology import Topology

CODES = range(codes.IDLE, codes.KEPT + 1)
WINDOW_S = 10.0


def recorded(topology: Topology, tasks: list[Task], *actions: tuple[int, ...]) -> Replay:
    """The replay of these tasks so decided, without loaded latency."""
    world = World(toy_workload(tasks), (replace(topology, loaded_latency=NO_FACTOR),), window_s=WINDOW_S)
    recorder = Recorder(world, np.array([0]), np.array([0]))
    for action in actions:
        recorder.step(np.array([action]))
    return recorder.replays()[0]


def of_play(play: Play) -> Replay:
    """The replay of a random play's first episode, without loaded latency."""
    topology = replace(play.topology, loaded_latency=NO_FACTOR)
    recorder = Recorder(World(play.workload, (topology,), window_s=play.window_s), np.array([0]), np.array([0]))
    for task in range(play.workload.num_tasks):
        recorder.step(play.actions[:1, task])
    return recorder.replays()[0]


@pytest.fixture(scope="module")
def together() -> Replay:
    """Three tasks that read 100 bytes each of a memory of 100 bytes a second, all at once."""
    tasks = [Task(obj=number, num_bytes=100, size=100) for number in range(3)]
    return recorded(toy_machine(cores=[3, 1]), tasks, (0, 0), (0, 0), (0, 0))


# Known answers.


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        (Sharing(codes.IDLE), [1, 1, 1]),
        (Sharing(codes.BY_COUNT), [1, 2, 3]),
        (Sharing(codes.BY_COUNT_OR_RATE), [1, 2, 3]),  # the first leaves nothing over
        (Sharing(codes.BY_RECENT_BYTES), [1, 1.1, 1.2]),  # 1000 bytes in a window, of which 100 and 200
        (Sharing(codes.BY_RECENT_BYTES, window=0.1), [1, 2, 3]),
        (Sharing(codes.AT_LEAST_A_TENTH), [1, 1 / 0.9, 1 / 0.8]),
        (Sharing(codes.AT_LEAST_A_TENTH, window=0.1), [1, 10, 10]),
        (Sharing(codes.AT_LEAST_EQUAL), [1, 1 / 0.9, 1 / 0.8]),
        (Sharing(codes.AT_LEAST_EQUAL, window=0.1), [1, 2, 3]),
        (Sharing(codes.BY_LITTLE), [1, 1.1, 1.21]),  # 1 s of 10, then 2.1 s
        (Sharing(codes.SELFISH), [1, 1.6, 2.2]),  # x = 1: 1.5 / 2.5 of an equal share's delay for each other
        (Sharing(codes.KEPT), [1, 2.2, 3.4]),
    ],
)
def test_three_streams_at_once(together, law, expected):
    response_s, finish_s = law(together)
    assert response_s == pytest.approx(np.array(expected, float))
    assert finish_s == pytest.approx(response_s)


def test_what_is_left_over_bounds_the_delay():
    tasks = [Task(obj=0, num_bytes=100, flops=1000.0, size=100), Task(obj=1, num_bytes=100, size=100)]
    replay = recorded(toy_machine(cores=[2, 1]), tasks, (0, 0), (0, 0))
    # The first takes 10 s of arithmetic, 10 bytes a second: 0.9 of the memory is left over.
    for code in (codes.KEPT, codes.SELFISH, codes.BY_COUNT_OR_RATE):
        assert Sharing(code)(replay)[0] == pytest.approx([10.0, 1 / 0.9])
    assert Sharing(codes.BY_COUNT)(replay)[0] == pytest.approx([10.0, 2.0])


def test_streams_that_meet_on_a_link_share_it_and_those_the_other_way_do_not():
    reads = [Task(obj=number, num_bytes=50, size=100) for number in range(3)]
    reads[2] = replace(reads[2], write_fraction=1.0)
    replay = recorded(toy_machine(cores=[4, 4]), reads, (0, 1), (0, 1), (0, 1))
    # 50 bytes a second on the link: 1 s, then 2 s by count; what is written meets two streams at the controller only.
    assert Sharing(codes.BY_COUNT)(replay)[0] == pytest.approx([1.0, 2.0, 1.5])


def test_bytes_fade_with_the_window_and_streams_that_ended_are_gone():
    tasks = [Task(obj=0, num_bytes=100, size=100), Task(obj=1, num_bytes=100, size=100, arrival_s=5.0)]
    replay = recorded(toy_machine(cores=[2, 1]), tasks, (0, 0), (0, 0))
    assert Sharing(codes.BY_RECENT_BYTES)(replay)[0][1] == pytest.approx(1.0 + 0.1 * np.exp(-0.5))
    assert Sharing(codes.BY_LITTLE)(replay)[0][1] == pytest.approx(1.0 + 0.1 * np.exp(-0.5))
    for code in (codes.BY_COUNT, codes.KEPT):
        assert Sharing(code)(replay)[0][1] == pytest.approx(1.0)


def test_a_list_knows_who_is_there_when_a_task_starts_that_waited():
    tasks = [Task(obj=0, num_bytes=100, size=100), Task(obj=1, num_bytes=100, size=100)]
    queued = recorded(toy_machine(), tasks, (0, 0), (0, 0))  # one core
    assert Sharing(codes.BY_COUNT)(queued)[0] == pytest.approx([1.0, 1.0 + 2.0])
    assert Sharing(codes.BY_COUNT, listed=True)(queued)[0] == pytest.approx([1.0, 1.0 + 1.0])


def test_a_message_is_charged_what_its_chunks_take_under_load():
    tasks = [Task(obj=0), Task(obj=1, num_bytes=400, size=100), Task(obj=2, reads=((0, 20.0),))]
    replay = recorded(toy_machine(cores=[2, 2]), tasks, (1, 1), (1, 1), (0, 0))
    idle_s, shared_s = (Sharing(code)(replay)[0][2] for code in (codes.IDLE, codes.BY_COUNT))
    assert idle_s == pytest.approx(20 / 50 + 0.2 + 2.0)  # the link, split off in one chunk, the latency
    assert shared_s == pytest.approx(20 / 50 + 0.4 + 2.0)  # the controller alone is shared


@pytest.mark.parametrize("window", [0.0, -1.0, float("nan"), float("inf")])
def test_a_window_must_be_a_time(window):
    with pytest.raises(ValueError, match=f"window must be finite and > 0, got {window}"):
        Sharing(codes.KEPT, window)


def test_kinds_of_flows_are_written_down():
    machine, read = toy_machine(), [Task(obj=0), Task(obj=1, reads=((0, 20.0),)), Task(obj=0, num_bytes=10)]
    replay = recorded(machine, read, (0, 0), (1, 1), (1, 1))
    assert replay.flows["kind"].tolist() == [ACCESS, MESSAGE, ACCESS, MOVE, MOVE, ACCESS]
    split = recorded(machine, [Task(num_bytes=10), Task(num_bytes=10)], (0, 0, 0, 0), (0, 0, 1, 1))
    assert split.flows["kind"].tolist() == [ACCESS, PAGES, PAGES, ACCESS, ACCESS]


# Laws.


@settings(max_examples=40, deadline=None)
@given(plays(max_tasks=12, weights=True))
def test_where_nothing_is_shared_every_law_is_the_simulator(play):
    n = play.topology.num_nodes
    endless = replace(
        play.topology,
        memory_bandwidth_bytes_per_s=np.full(n, 1e30),
        bandwidth_bytes_per_s=np.full((n, n), 1e30),
        link_bandwidth_bytes_per_s=np.full(play.topology.num_links, 1e30),
    )
    replay = of_play(replace(play, topology=endless))
    ran = replay.ran
    for code in CODES:
        response_s, finish_s = Sharing(code)(replay)
        np.testing.assert_allclose(finish_s[ran], replay.finish_s[ran], rtol=1e-5)
        np.testing.assert_allclose(
            response_s[ran], replay.response_s[ran], rtol=1e-5, atol=1e-5 * finish_s[ran].max(initial=0.0)
        )


@settings(max_examples=40, deadline=None)
@given(plays(max_tasks=12, weights=True))
def test_the_first_task_is_alone_and_dropped_ones_have_no_time(play):
    replay = of_play(play)
    alone_s = Sharing(codes.IDLE)(replay)[0]
    for law in LAWS.values():
        response_s, finish_s = law(replay)
        assert (np.isfinite(response_s) == replay.ran).all()
        assert (np.isfinite(finish_s) == replay.ran).all()
        if replay.ran[0]:
            assert response_s[0] == pytest.approx(alone_s[0], rel=1e-5)


# Two routes that agree.


@settings(max_examples=150, deadline=None)
@given(plays(max_tasks=16, weights=True))
def test_the_law_kept_is_the_simulators_own(play):
    replay = of_play(play)
    ran = replay.ran
    response_s, finish_s = Sharing(codes.KEPT)(replay)
    np.testing.assert_allclose(finish_s[ran], replay.finish_s[ran], rtol=2e-4)
    scale_s = replay.response_s[ran].mean() if ran.any() else 1.0
    np.testing.assert_allclose(response_s[ran], replay.response_s[ran], rtol=1e-3, atol=1e-3 * scale_s)


# A real input.


@pytest.mark.parametrize("family", ["stream", "workflow", "all-reduce", "batch"])
@pytest.mark.parametrize("scheduler", ["random", "greedy", "heft"])
def test_the_law_kept_times_the_standard_suite_as_the_simulator_does(family, scheduler):
    for cell in Plan((family,), ("r815", "xeon-8269cy"), loads_percent=(80.0,)).cells():
        world = cell.world(1, 0, loaded_latency=False)
        for replay in record(world, make_scheduler(scheduler, world)):
            response_s, _ = Sharing(codes.KEPT)(replay)
            theirs_s, _ = kernel_law(replay)
            assert response_s[replay.ran].mean() == pytest.approx(theirs_s[replay.ran].mean(), rel=1e-4)
            assert np.quantile(np.abs(response_s / theirs_s - 1.0)[replay.ran], 0.9) < 3e-4


def test_the_table_begins_with_the_simulator_and_holds_every_law():
    assert next(iter(LAWS)) == KERNEL
    assert LAWS[KERNEL] is kernel_law
    assert {law.code for law in LAWS.values() if isinstance(law, Sharing)} == set(CODES)

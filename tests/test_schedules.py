from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import toy_machine

from numa_rl.communication.collectives import Groups, halving_doubling_s, hierarchical_s, ring_s
from numa_rl.communication.schedules import (
    Schedule,
    halving_doubling,
    hierarchical,
    ring,
    run,
    schedule_s,
    step_s,
)
from numa_rl.machines import builders
from numa_rl.machines.catalog import load_machine, machine_names
from numa_rl.topology import Topology

INTRA, INTER = 200e9, 50e9  # exercise 2


def two_sockets_of_gpus(intra_latency_s: float = 1e-9, inter_latency_s: float = 1e-9) -> Topology:
    """Exercise 2: 8 GPUs, those of a socket in a ring of fast links, and one slow link between the sockets."""
    rings = {(base + i, base + (i + way) % 4) for base in (0, 4) for i in range(4) for way in (1, 3)}
    links = sorted(rings | {(0, 4), (4, 0)})
    socket = np.arange(8) // 4
    same = socket[:, None] == socket
    return Topology(
        name="8 GPUs",
        cores=np.ones(8),
        flops_per_s=np.ones(8),
        memory_bytes=np.ones(8),
        memory_bandwidth_bytes_per_s=np.full(8, 1e12),
        latency_s=np.where(same, intra_latency_s, inter_latency_s),
        bandwidth_bytes_per_s=np.full((8, 8), INTRA),
        links=links,
        link_bandwidth_bytes_per_s=[INTRA if same[a, b] else INTER for a, b in links],
    )


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Any of the three, over up to 20 ranks; groups of a hierarchy hold their ranks in any order."""
    kind = draw(st.sampled_from(["ring", "hierarchical", "halving_doubling"]))
    if kind == "hierarchical":
        num_groups, size = draw(st.integers(1, 4)), draw(st.integers(1, 5))
        ranks = draw(st.permutations(range(num_groups * size)))
        return hierarchical([ranks[start : start + size] for start in range(0, len(ranks), size)])
    build = ring if kind == "ring" else halving_doubling
    return build(draw(st.integers(1, 20)))


def run_send_by_send(schedule: Schedule, data: np.ndarray) -> np.ndarray:
    """`run` in plain Python: elements one by one, each step from a full copy of the state before it."""
    after = data.tolist()
    size = data.shape[1]
    for step in range(schedule.num_steps):
        before = [row[:] for row in after]
        for k in range(len(schedule)):
            if schedule.step[k] != step:
                continue
            first, last = schedule.first_chunk[k], schedule.first_chunk[k] + schedule.chunks[k]
            for element in range(size):
                chunk = max(c for c in range(schedule.num_chunks) if c * size // schedule.num_chunks <= element)
                if first <= chunk < last:
                    value = before[schedule.source[k]][element]
                    kept = before[schedule.target[k]][element] if schedule.reduce[k] else 0
                    after[schedule.target[k]][element] = kept + value
    return np.array(after, data.dtype).reshape(data.shape)


# Known answers.


def test_a_ring_of_three_send_by_send():
    columns = ring(3)
    sends = zip(columns.step, columns.source, columns.target, columns.first_chunk, columns.reduce, strict=True)
    assert [tuple(map(int, send)) for send in sends] == [
        (0, 0, 1, 0, 1),
        (0, 1, 2, 1, 1),
        (0, 2, 0, 2, 1),
        (1, 0, 1, 2, 1),
        (1, 1, 2, 0, 1),
        (1, 2, 0, 1, 1),
        (2, 0, 1, 1, 0),
        (2, 1, 2, 2, 0),
        (2, 2, 0, 0, 0),
        (3, 0, 1, 0, 0),
        (3, 1, 2, 1, 0),
        (3, 2, 0, 2, 0),
    ]
    assert columns.chunks.tolist() == [1] * 12


def test_the_first_step_of_halving_exchanges_halves():
    schedule = halving_doubling(4)
    first = schedule.step == 0
    assert schedule.target[first].tolist() == [2, 3, 0, 1]
    assert schedule.first_chunk[first].tolist() == [2, 2, 0, 0]
    assert schedule.chunks[first].tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        (ring(8), 14),
        (halving_doubling(8), 6),
        (halving_doubling(9), 8),
        (hierarchical([range(4), range(4, 8)]), 3 + 2 + 3),
        (hierarchical([[0], [1], [2]]), 4),
    ],
)
def test_steps_are_those_of_the_closed_forms(schedule, steps):
    assert schedule.num_steps == steps
    assert set(schedule.step) == set(range(steps))


# Data: every rank ends with the sum.


@settings(deadline=None)
@given(schedules(), st.integers(0, 50), st.integers(0, 2**32 - 1))
def test_every_rank_ends_with_the_sum(schedule, size, seed):
    data = np.random.default_rng(seed).integers(-1000, 1000, (schedule.num_ranks, size))
    before = data.copy()
    np.testing.assert_array_equal(run(schedule, data), np.broadcast_to(before.sum(axis=0), before.shape))
    np.testing.assert_array_equal(data, before)


@settings(deadline=None, max_examples=40)
@given(schedules(), st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_run_does_what_the_sends_say_one_by_one(schedule, size, seed):
    data = np.random.default_rng(seed).integers(-1000, 1000, (schedule.num_ranks, size))
    np.testing.assert_array_equal(run(schedule, data), run_send_by_send(schedule, data))


@settings(deadline=None, max_examples=40)
@given(schedules(), st.sampled_from([np.int8, np.uint64, np.float32, np.float64, np.complex128]))
def test_the_dtype_stays(schedule, dtype):
    data = np.ones((schedule.num_ranks, 7), dtype)
    summed = run(schedule, data)
    assert summed.dtype == dtype
    np.testing.assert_array_equal(summed, np.full_like(data, schedule.num_ranks))


@settings(deadline=None)
@given(schedules(), st.integers(0, 2**32 - 1))
def test_leaving_out_any_send_loses_part_of_a_sum(schedule, seed):
    if not len(schedule):
        return
    kept = np.arange(len(schedule)) != seed % len(schedule)
    names = ("step", "source", "target", "first_chunk", "chunks", "reduce")
    columns = {name: getattr(schedule, name)[kept] for name in names}
    data = np.random.default_rng(seed).integers(1, 1000, (schedule.num_ranks, schedule.num_chunks))
    summed = run(Schedule(schedule.num_ranks, schedule.num_chunks, **columns), data)
    assert (summed != data.sum(axis=0)).any()


def test_sends_of_one_step_read_what_was_there_before_it():
    swap = Schedule(2, 1, step=[0, 0], source=[0, 1], target=[1, 0], first_chunk=[0, 0], chunks=[1, 1], reduce=[0, 0])
    assert run(swap, np.array([[1, 2], [3, 4]])).tolist() == [[3, 4], [1, 2]]


@given(st.integers(1, 64))
def test_the_ring_sends_the_fewest_bytes_there_can_be(p):
    np.testing.assert_allclose(ring(p).sent_bytes(1.0), 2 * (p - 1) / p)


@given(st.integers(0, 6))
def test_halving_sends_the_same_over_a_power_of_two(rounds):
    p = 2**rounds
    np.testing.assert_allclose(halving_doubling(p).sent_bytes(1.0), 2 * (p - 1) / p)


@given(st.integers(1, 4), st.integers(1, 5))
def test_a_hierarchy_sends_as_much_in_all_and_least_across(num_groups, size):
    p = num_groups * size
    schedule = hierarchical(np.arange(p).reshape(num_groups, size).tolist())
    np.testing.assert_allclose(schedule.sent_bytes(1.0), 2 * (p - 1) / p)
    crossing = schedule.source // size != schedule.target // size
    across = schedule.send_bytes(1.0)[crossing].sum()
    assert across == pytest.approx(2 * (num_groups - 1))  # out of each group, 2 (G - 1) / G


@pytest.mark.parametrize("schedule", [ring(1), halving_doubling(1), hierarchical([[0]])])
def test_a_single_rank_sends_nothing(schedule):
    assert (len(schedule), schedule.num_steps) == (0, 0)
    assert run(schedule, np.arange(3.0)[None]).tolist() == [[0.0, 1.0, 2.0]]
    assert schedule.sent_bytes(1e9).tolist() == [0.0]
    assert schedule_s(schedule, builders.two_socket(), [1], 1e9) == 0.0


# Times: on symmetric machines, those of the closed forms.


@pytest.mark.parametrize("p", [2, 3, 5, 8])
def test_a_ring_on_a_ring_takes_the_closed_form(p):
    assert schedule_s(ring(p), builders.ring(p), np.arange(p), 1e6) == pytest.approx(ring_s(p, 1e6, 30e9, 25e-9))


@pytest.mark.parametrize("machine", [builders.two_socket(), builders.four_socket(), builders.eight_socket_cube()])
def test_halving_on_the_chapters_machines_takes_the_closed_form(machine):
    # Partners differ in one bit of their number, as neighbours on the cube do.
    p = machine.num_nodes
    got = schedule_s(halving_doubling(p), machine, np.arange(p), 1e6)
    assert got == pytest.approx(halving_doubling_s(p, 1e6, 30e9, 25e-9))


def test_three_ranks_fold_to_two_on_a_full_mesh():
    got = schedule_s(halving_doubling(3), builders.four_socket(), [0, 1, 2], 1e6)
    assert got == pytest.approx(halving_doubling_s(3, 1e6, 30e9, 25e-9))


def test_exercise_2_on_its_links_takes_the_0_11_s_of_the_formula():
    machine = two_sockets_of_gpus(1e-6, 3e-6)
    got = schedule_s(hierarchical([range(4), range(4, 8)]), machine, np.arange(8), 4e9)
    assert got == pytest.approx(0.11, rel=1e-3)
    assert got == pytest.approx(hierarchical_s(Groups(4, INTRA, INTER, 1e-6, 3e-6), 4e9))


def test_exercise_2_a_ring_on_its_links_takes_the_textbooks_0_14_s():
    # 3 -> 0 -> 4 and back by 5 -> 4 -> 0: the slow link is crossed once in each direction at every step.
    got = schedule_s(ring(8), two_sockets_of_gpus(), [1, 2, 3, 0, 4, 7, 6, 5], 4e9)
    assert got == pytest.approx(ring_s(8, 4e9, INTER), rel=1e-6)
    assert got == pytest.approx(0.14, rel=1e-6)


def test_exercise_2_a_ring_that_hops_between_the_sockets_is_four_times_slower():
    got = schedule_s(ring(8), two_sockets_of_gpus(), [0, 4, 1, 5, 2, 6, 3, 7], 4e9)
    assert got == pytest.approx(4 * 0.14, rel=1e-6)


def test_sends_of_a_step_share_a_link_and_the_last_one_ends_it():
    # On a line 0 - 1 - 2, rank 0 sends 100 bytes to rank 2 and rank 1 another 100: the link 1 -> 2 takes 200 at
    # 50 a second. 0 -> 2 has 3 s of latency, 1 -> 2 has 2 s.
    schedule = Schedule(
        3, 2, step=[0, 0], source=[0, 1], target=[2, 2], first_chunk=[0, 1], chunks=[1, 1], reduce=[1, 1]
    )
    np.testing.assert_allclose(step_s(schedule, toy_machine(3), [0, 1, 2], 200.0), [4.0 + 3.0])


def test_opposite_directions_share_no_link():
    # 100 bytes each way at 50 a second, and 2 s of latency, in both steps.
    assert schedule_s(ring(2), toy_machine(2), [0, 1], 200.0) == pytest.approx(2 * (2.0 + 2.0))


def test_the_target_reads_so_it_is_the_row():
    bandwidth, latency = np.array([[100.0, 20.0], [40.0, 100.0]]), np.array([[1.0, 3.0], [2.0, 1.0]])
    machine = toy_machine(2, bandwidth_bytes_per_s=bandwidth, latency_s=latency)
    to_node_1 = Schedule(2, 1, step=[0], source=[0], target=[1], first_chunk=[0], chunks=[1], reduce=[1])
    assert schedule_s(to_node_1, machine, [0, 1], 200.0) == pytest.approx(200 / 40 + 2.0)
    assert schedule_s(to_node_1, machine, [1, 0], 200.0) == pytest.approx(200 / 20 + 3.0)


def test_readers_of_one_memory_share_its_controller():
    # Two nodes read 100 bytes each from the middle of a line, whose memory gives 60 bytes a second.
    machine = toy_machine(3, memory_bandwidth_bytes_per_s=[100.0, 60.0, 100.0])
    schedule = Schedule(
        3, 1, step=[0, 0], source=[1, 1], target=[0, 2], first_chunk=[0, 0], chunks=[1, 1], reduce=[1, 1]
    )
    assert schedule_s(schedule, machine, [0, 1, 2], 100.0) == pytest.approx(200 / 60 + 2.0)


def test_sends_within_a_node_share_its_local_bandwidth():
    # Each step two ranks copy 100 bytes at 100 bytes a second together, with 1 s of local latency.
    assert schedule_s(ring(2), toy_machine(2), [1, 1], 200.0) == pytest.approx(2 * (2.0 + 1.0))


def test_every_message_pays_the_latency_and_its_overhead():
    times = [
        schedule_s(ring(2), toy_machine(2), [0, 1], 200.0, message_bytes=size) for size in (None, 100.0, 99.0, 10.0)
    ]
    np.testing.assert_allclose(times, [8.0, 8.0, 2 * (2.0 + 2 * 2.0), 2 * (2.0 + 10 * 2.0)])
    slow = schedule_s(ring(2), toy_machine(2), [0, 1], 200.0, message_bytes=10.0, overhead_s=0.5)
    assert slow == pytest.approx(2 * (2.0 + 10 * 2.5))


def test_an_empty_vector_takes_the_latencies():
    assert schedule_s(ring(2), toy_machine(2), [0, 1], 0.0, message_bytes=10.0) == pytest.approx(2 * 2.0)


@settings(deadline=None, max_examples=40)
@given(schedules(), st.integers(0, 2**32 - 1), st.floats(1.0, 1e9), st.floats(1.0, 4.0))
def test_larger_vectors_and_smaller_messages_are_never_faster(schedule, seed, num_bytes, factor):
    machine = builders.eight_socket_cube()
    nodes = np.random.default_rng(seed).integers(0, 8, schedule.num_ranks)
    plain = schedule_s(schedule, machine, nodes, num_bytes)
    assert schedule_s(schedule, machine, nodes, factor * num_bytes) >= plain
    few, many = (
        schedule_s(schedule, machine, nodes, num_bytes, message_bytes=size) for size in (num_bytes, num_bytes / factor)
    )
    assert plain <= few <= many


@pytest.mark.parametrize("name", machine_names())
def test_on_every_machine_no_schedule_beats_its_own_slowest_rank(name):
    machine = load_machine(name)
    nodes = np.repeat(np.flatnonzero(machine.cores), 2)
    p = len(nodes)
    fastest = machine.bandwidth_bytes_per_s.max()
    for schedule in (ring(p), halving_doubling(p), hierarchical(np.arange(p).reshape(-1, 2).tolist())):
        assert schedule_s(schedule, machine, nodes, 1e9) >= schedule.sent_bytes(1e9).max() / fastest


# Bad input.


@pytest.mark.parametrize("count", [0, -3, 1.5, math.nan])
@pytest.mark.parametrize("build", [ring, halving_doubling])
def test_a_number_of_ranks_that_is_none_is_refused(build, count):
    with pytest.raises(ValueError, match=rf"num_ranks must be a whole number >= 1, got {count}\."):
        build(count)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], r"groups must be one or more of equal size >= 1, got sizes \[\]\."),
        ([[], []], r"groups must be one or more of equal size >= 1, got sizes \[0, 0\]\."),
        ([[0, 1], [2]], r"groups must be one or more of equal size >= 1, got sizes \[2, 1\]\."),
        ([[0, 1], [1, 2]], r"groups must hold each rank of 0\.\.3 once, got \[0, 1, 1, 2\]\."),
        ([[1], [2]], r"groups must hold each rank of 0\.\.1 once, got \[1, 2\]\."),
    ],
)
def test_groups_that_are_no_partition_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        hierarchical(groups)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_ranks": 0}, r"num_ranks must be a whole number >= 1, got 0\."),
        ({"num_chunks": 0}, r"num_chunks must be a whole number >= 1, got 0\."),
        ({"source": [0]}, r"source must have shape \(2,\) to match step, got \(1,\)\."),
        ({"step": [1, 0]}, r"step\[1\] must be at least 0 and never fall, got 0\."),
        ({"step": [-1, 0]}, r"step\[0\] must be at least 0 and never fall, got -1\."),
        ({"source": [0, 2]}, r"source\[1\] must be a rank in 0\.\.1, got 2\."),
        ({"target": [-1, 0]}, r"target\[0\] must be a rank in 0\.\.1, got -1\."),
        ({"target": [0, 0]}, r"target\[0\] must be another rank than the source, got 0\."),
        ({"first_chunk": [0, -1]}, r"first_chunk\[1\] must be >= 0, got -1\."),
        ({"chunks": [0, 1]}, r"chunks\[0\] must be >= 1, got 0\."),
        ({"chunks": [1, 9]}, r"chunks\[1\] must be such that first_chunk \+ chunks <= 2, got 9\."),
        (
            {"source": [0, 0], "target": [1, 1]},
            r"a rank must receive a chunk once in a step, got chunk 0 twice at rank 1, step 0\.",
        ),
    ],
)
def test_an_impossible_schedule_is_refused(changes, message):
    figures = {"num_ranks": 2, "num_chunks": 2, "step": [0, 0], "source": [0, 1], "target": [1, 0]}
    figures |= {"first_chunk": [0, 0], "chunks": [1, 1], "reduce": [True, True], **changes}
    with pytest.raises(ValueError, match=message):
        Schedule(**figures)


def test_a_schedule_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        ring(3).step[0] = 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.ones((2, 4)), r"data must have shape \(3, any\), one row for each rank, got \(2, 4\)\."),
        (np.ones(3), r"data must have shape \(3, any\), one row for each rank, got \(3,\)\."),
        (np.array([["a"], ["b"], ["c"]]), r"data must be numbers, got dtype <U1\."),
        (np.ones((3, 2), bool), r"data must be numbers, got dtype bool\."),
    ],
)
def test_data_that_does_not_fit_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        run(ring(3), data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"placement": [0, 1]}, r"placement must have shape \(3,\), a node for each rank, got \(2,\)\."),
        ({"placement": [0, 1, 4]}, r"placement\[2\] must be a node of chapter-4-socket, 0 to 3, got 4\."),
        ({"placement": [0.5, 1, 2]}, r"placement\[0\] must be a node of chapter-4-socket, 0 to 3, got 0\.5\."),
        ({"num_bytes": -1.0}, r"num_bytes must be finite and >= 0, got -1\.0\."),
        ({"num_bytes": math.nan}, r"num_bytes must be finite and >= 0, got nan\."),
        ({"message_bytes": 0.0}, r"message_bytes must be finite and > 0, got 0\.0\."),
        ({"overhead_s": math.inf}, r"overhead_s must be finite and >= 0, got inf\."),
    ],
)
def test_a_run_that_cannot_be_timed_is_refused(changes, message):
    figures = {"schedule": ring(3), "topology": builders.four_socket(), "placement": [0, 1, 2], "num_bytes": 1e6}
    with pytest.raises(ValueError, match=message):
        schedule_s(**{**figures, **changes})

"""Transfers in chunks, and cached lines, in the kernel."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from playing import decide, started
from strategies import Task, toy_machine, toy_workload

from numa_rl.coherence.protocol import LineState, TransitionCosts
from numa_rl.communication.transfers import best_chunk_bytes, pipelined_s
from numa_rl.simulator.streams import migration_time, read_time


@settings(deadline=None, max_examples=300)
@given(
    num_bytes=st.floats(1.0, 1e10),
    s_per_byte=st.floats(1e-12, 1e-6),
    split_share=st.just(0.0) | st.floats(1e-6, 1.0),
    merge_share=st.floats(0.0, 4.0),
    latency_s=st.floats(1e-9, 1e-2),
    most_bytes=st.floats(64.0, 1e9),
)
def test_reads_and_moves_are_pipelines_of_the_best_chunks(
    num_bytes, s_per_byte, split_share, merge_share, latency_s, most_bytes
):
    stages = (split_share * s_per_byte, s_per_byte, merge_share * s_per_byte)
    assume(num_bytes * latency_s >= stages[0] + stages[2])  # else a chunk would be less than a byte
    assume(latency_s >= stages[2] - s_per_byte)
    chunk = best_chunk_bytes(num_bytes, *stages, latency_s, most_bytes)
    moved = migration_time.py_func(num_bytes, *stages, latency_s, most_bytes, 0.0)
    assert moved == pytest.approx(pipelined_s(num_bytes, chunk, *stages, latency_s), rel=1e-5)
    stages = (*stages[:2], 0.0)
    chunk = best_chunk_bytes(num_bytes, *stages, latency_s, most_bytes)
    read = read_time.py_func(num_bytes, s_per_byte, stages[0], latency_s, most_bytes)
    assert read == pytest.approx(pipelined_s(num_bytes, chunk, *stages, latency_s), rel=1e-5)


# Cached lines: an access leaves them at its node, and asking that node's cache takes time. 20 bytes in flight.

RATIO = TransitionCosts().ratio
M, E, S, I, F = LineState  # noqa: E741


def coherence_s(*steps: tuple[Task, int], llc_bytes: float = 1e9, num_nodes: int = 3) -> float:
    """Coherence time of the last of these tasks, each run on a node, all data staying on node 0."""
    tasks = [replace(task, arrival_s=1e6 * place) for place, (task, _) in enumerate(steps)]  # load has decayed
    machine = toy_machine(num_nodes, cores=[4] * num_nodes, llc_bytes=llc_bytes, outstanding_bytes=20.0)
    simulator = started(machine, toy_workload(tasks))
    outcome = decide(simulator, *((node, 0) for _, node in steps))
    return float(outcome["coherence_s"])


READ, WRITE = Task(num_bytes=60.0), Task(num_bytes=60.0, write_fraction=1.0)
ONE_HOP = 60.0 * 2.0 / 20.0  # 60 bytes, 20 in flight, 2 s away


def test_lines_of_a_first_access_or_of_the_same_node_cost_nothing():
    assert coherence_s((READ, 0)) == 0.0
    assert coherence_s((WRITE, 0), (WRITE, 0)) == 0.0
    assert coherence_s((READ, 0), (WRITE, 0)) == 0.0  # E -> M is silent


def test_reading_what_another_node_wrote_takes_a_transfer_and_a_write_back():
    assert coherence_s((WRITE, 0), (READ, 1)) == pytest.approx(ONE_HOP * (RATIO[I, F] + RATIO[M, S]))


def test_reading_what_another_node_read_takes_a_transfer():
    assert coherence_s((READ, 0), (READ, 1)) == pytest.approx(ONE_HOP * RATIO[I, F])


def test_the_newest_reader_answers_the_next():
    assert coherence_s((READ, 0), (READ, 1), (READ, 2)) == pytest.approx(ONE_HOP * RATIO[I, F])  # from 1, not 0


def test_writing_what_another_node_holds_takes_a_read_for_ownership():
    assert coherence_s((READ, 0), (WRITE, 1)) == pytest.approx(ONE_HOP * RATIO[I, M])
    assert coherence_s((WRITE, 0), (WRITE, 1)) == pytest.approx(ONE_HOP * (RATIO[I, M] + RATIO[M, I]))


def test_writing_what_others_share_takes_an_invalidation_of_the_last_of_them():
    assert coherence_s((READ, 0), (READ, 2), (WRITE, 2)) == pytest.approx(1.5 * ONE_HOP * RATIO[F, M])  # two hops, 3 s


def test_a_task_that_reads_and_writes_pays_for_each_by_its_share():
    mixed = Task(num_bytes=60.0, write_fraction=0.25)
    assert coherence_s((READ, 0), (mixed, 1)) == pytest.approx(ONE_HOP * (0.75 * RATIO[I, F] + 0.25 * RATIO[I, M]))


def test_lines_of_inputs_are_asked_for_too():
    reading = Task(obj=1, reads=((0, 60.0),))
    assert coherence_s((WRITE, 0), (reading, 1)) == pytest.approx(ONE_HOP * (RATIO[I, F] + RATIO[M, S]))


def test_what_streams_through_a_cache_pushes_lines_out():
    passing = Task(obj=1, num_bytes=70.0)
    assert coherence_s((WRITE, 0), (passing, 0), (WRITE, 1), llc_bytes=200.0) > 0.0
    half_left = coherence_s((WRITE, 0), (passing, 0), (WRITE, 1), llc_bytes=100.0)
    assert half_left == pytest.approx(0.5 * coherence_s((WRITE, 0), (WRITE, 1)))  # 100 - 70 of 60
    assert coherence_s((WRITE, 0), (passing, 0), (WRITE, 1), llc_bytes=70.0) == 0.0


def test_an_access_to_nothing_does_not_renew_lines():
    passing, nothing = Task(obj=1, num_bytes=70.0), Task(obj=2, reads=((0, 0.0),))
    steps = ((WRITE, 0), (passing, 0), (nothing, 1), (passing, 0), (WRITE, 1))
    left = coherence_s(*steps, llc_bytes=150.0)
    assert left == pytest.approx(coherence_s((WRITE, 0), (WRITE, 1)) * (150 - 140) / 60)


def test_no_more_lines_are_asked_for_than_the_access_touches():
    assert coherence_s((WRITE, 0), (replace(READ, num_bytes=6.0), 1)) == pytest.approx(
        0.1 * coherence_s((WRITE, 0), (READ, 1))
    )


def test_no_more_lines_are_left_than_the_object_has():
    streaming = replace(WRITE, num_bytes=600.0)  # six times over an object of 100
    reading = replace(READ, num_bytes=600.0)
    assert coherence_s((streaming, 0), (reading, 1)) == pytest.approx(coherence_s((WRITE, 0), (READ, 1)) * 100 / 60)


def test_moving_an_object_drops_its_lines():
    tasks = [WRITE, replace(WRITE, arrival_s=1e6), replace(Task(num_bytes=0.0), arrival_s=2e6)]
    simulator = started(toy_machine(cores=[4, 4], outstanding_bytes=20.0), toy_workload(tasks))
    decide(simulator, (0, 0))
    assert simulator.state.objects["holder"][0, 0] == 0
    decide(simulator, (1, 0))
    decide(simulator, (1, 1))
    assert simulator.state.objects["holder"][0, 0] == -1

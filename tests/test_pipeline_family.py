from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numa_rl.machines.builders import ChapterFigures, eight_socket_cube
from numa_rl.simulator.simulator import Simulator
from numa_rl.transformer.pipeline_schedule import bubble_fraction, operations, peak_activations
from numa_rl.workloads.pipeline import Piece, Pipeline, Program
from numa_rl.workloads.workload import NO_OBJECT, SCALARS, Workload

# Nothing is far or shared on this cube, so that arithmetic takes all the time.
AMPLE = eight_socket_cube(
    ChapterFigures(
        local_latency_s=1e-15,
        one_hop_latency_s=1e-15,
        two_hop_latency_s=1e-15,
        further_hop_latency_s=1e-15,
        memory_bandwidth_bytes_per_s=1e18,
        local_bandwidth_bytes_per_s=1e18,
        remote_bandwidth_bytes_per_s=1e18,
        link_bandwidth_bytes_per_s=1e18,
    )
)
CORES = int(AMPLE.cores[0])
NODES = np.array([0, 1, 3, 2, 6, 7, 5, 4])  # along the cube's edges
EVEN = {"tokens_sigma": 0.0, "width_sigma": 0.0, "piece_sigma": 0.0}
SHAPES = [("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("interleaved", 3)]


def play(topology, family: Pipeline, workload: Workload) -> dict[str, np.ndarray]:
    """The first episode in the program's own layout: each task's start, end and service, and each node's memory."""
    simulator = Simulator(topology, workload, 1, window_s=10.0)
    simulator.reset(0)
    nodes = NODES[family.object_stage()[workload.object[0]]]
    rows = []
    for node in nodes:
        now = simulator.state.now_s[0]
        outcome = simulator.step(np.array([[node, node]]))
        assert not outcome.out_of_memory[0]
        start = now + outcome.wait_s[0]
        memory = simulator.state.memory_used_bytes[0].copy()
        rows.append((start, now + outcome.exec_s[0] + outcome.comm_s[0], memory))
    start, end, memory = (np.array(column) for column in zip(*rows, strict=True))
    return {"start": start, "end": end, "memory": memory}


def passes(workload: Workload) -> np.ndarray:
    return workload.flops[0] > 0


@pytest.mark.parametrize(("schedule", "chunks"), SHAPES)
def test_the_simulator_shows_the_bubble_of_the_closed_form(schedule, chunks):
    family = Pipeline(schedule=schedule, num_chunks=chunks, lanes=CORES, **EVEN)
    workload = family.generate(np.random.default_rng(0), 1)
    played, computes = play(AMPLE, family, workload), passes(workload)
    span = played["end"][computes].max() - played["start"][computes].min()
    busy = (played["end"] - played["start"])[computes].sum() / (family.num_stages * CORES)
    assert 1.0 - busy / span == pytest.approx(bubble_fraction(schedule, 4, 8, chunks), abs=2e-4)


@pytest.mark.parametrize(("schedule", "chunks"), SHAPES)
def test_memory_peaks_with_the_live_activations_of_the_schedule(schedule, chunks):
    layers = 64  # each received input or gradient is as large as what one layer keeps
    family = Pipeline(schedule=schedule, num_chunks=chunks, lanes=CORES, layers_per_piece=layers, **EVEN)
    workload = family.generate(np.random.default_rng(0), 1)
    memory = play(AMPLE, family, workload)["memory"]
    loaded = memory[np.flatnonzero(passes(workload))[0] - 1][NODES[:4]]
    kept_bytes = layers * family.median_tokens * family.median_width * family.bytes_per_element
    peak = (memory.max(axis=0)[NODES[:4]] - loaded) / kept_bytes
    live = peak_activations(schedule, 4, 8, chunks) * chunks  # pieces that a stage keeps
    assert (peak >= live - 1e-9).all()
    assert (peak <= live + 3 / layers).all()
    assert memory[-1][NODES[:4]] == pytest.approx(loaded)  # all activations are freed


def test_the_default_family_has_320_tasks_of_at_most_4_inputs():
    workload = Pipeline().generate(np.random.default_rng(0), 1)
    loaders, passed, received = 4 * 4, 2 * 4 * 8 * 4, 2 * 8 * 3
    assert workload.num_tasks == loaders + passed + received == 320
    assert workload.num_inputs == 4
    assert workload.is_one_graph


def test_stages_read_and_keep_what_their_layers_have():
    family = Pipeline(num_stages=2, num_micro_batches=1, lanes=1, layers_per_piece=1, **EVEN)
    workload = family.generate(np.random.default_rng(0), 1)
    weights, border = 12 * 1024**2 * 2, 8 * 1024 * 2
    tasks = [
        # flops / (2 * parameters * tokens), own bytes, bytes read
        (0, 6 * weights, []),
        (0, 6 * weights, []),
        (1, border, [weights]),
        (0, border, [border]),
        (1, border, [weights, border]),
        (3, border, [3 * weights, border]),
        (0, border, [border]),
        (3, border, [3 * weights, border, border]),
    ]
    assert (workload.flops[0] / (2 * 12 * 1024**2 * 8)).tolist() == [flops for flops, _, _ in tasks]
    assert workload.bytes[0].tolist() == workload.object_bytes[0].tolist() == [own for _, own, _ in tasks]
    assert [[size for size in row if size] for row in workload.input_bytes[0].tolist()] == [read for *_, read in tasks]
    assert family.object_stage()[workload.object[0]].tolist() == [0, 1, 0, 1, 1, 1, 0, 0]


def test_nodes_of_different_cores_have_lanes_of_their_own():
    piece = Piece(600.0, 1200.0, 60.0, 600.0, 120.0, 60.0)
    program = Program(operations("1f1b", 2, 1), [piece, piece], [2, 3])
    workload = program.workload("uneven", 1.0, 1.0)
    stage = program.object_stage[workload.object[0]]
    computes = passes(workload)
    assert np.bincount(stage[computes]).tolist() == [2 * 2, 2 * 3]
    assert sorted(set(workload.flops[0][computes & (stage == 1)].tolist())) == [200.0, 400.0]
    received = np.flatnonzero(~computes & (workload.inputs[0] != NO_OBJECT).any(axis=1))
    assert workload.input_bytes[0][received].sum(axis=1).tolist() == [60.0, 60.0]
    assert (workload.input_bytes[0][received] > 0).sum(axis=1).tolist() == [2, 3]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(SHAPES), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32)
)  # fmt: skip
def test_tasks_wait_for_what_their_operations_wait_for(shape, stages, groups, lanes, seed):
    schedule, chunks = shape
    micro_batches = stages * groups
    family = Pipeline(schedule, stages, micro_batches, chunks, lanes)
    workload = family.generate(np.random.default_rng(seed), 2)
    pieces = stages * chunks
    assert workload.num_tasks == pieces * lanes + 2 * micro_batches * (pieces * lanes + pieces - 1)
    written = np.full(workload.num_objects, -1)
    for task, (own, inputs) in enumerate(zip(workload.object[0], workload.inputs[0], strict=True)):
        used = inputs[inputs != NO_OBJECT]
        assert (written[used] >= 0).all()
        assert (workload.freed_after[0][[own, *used]] >= task).all()
        assert written[own] == -1  # every object is made once
        written[own] = task


def test_a_larger_pool_extends_a_smaller_one():
    small, large = (Pipeline().generate(np.random.default_rng(1), count) for count in (2, 50))
    for item in fields(Workload):
        if item.name not in SCALARS:
            np.testing.assert_array_equal(getattr(small, item.name), getattr(large, item.name)[:2], err_msg=item.name)


def test_episodes_differ_in_tokens_width_and_how_uneven_pieces_are():
    family = Pipeline()
    workload = family.generate(np.random.default_rng(2), 300)
    piece = family.object_stage()[workload.object[0]]  # of one chunk each
    state, kept = (np.log(workload.object_bytes[:, task]) for task in (0, 16))
    flops = [np.log(workload.flops[:, np.flatnonzero(passes(workload) & (piece == stage))[0]]) for stage in (0, 1)]
    assert np.std(state) == pytest.approx(2 * 0.4, rel=0.15)  # the square of the width
    assert np.std(kept - state / 2) == pytest.approx(0.7, rel=0.15)  # tokens times width
    assert np.std(flops[0] - flops[1]) == pytest.approx(0.2 * 2**0.5, rel=0.15)
    np.testing.assert_allclose(np.mean(flops[0] - kept - state / 2), np.mean(flops[1] - kept - state / 2), atol=0.05)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"lanes": 0}, r"lanes must be a whole number >= 1, got 0\."),
        ({"num_stages": 0}, r"num_stages must be a whole number >= 1, got 0\."),
        ({"schedule": "zero-bubble"}, r"schedule must be one of gpipe, 1f1b, interleaved, got 'zero-bubble'\."),
        ({"schedule": "interleaved", "num_chunks": 2, "num_micro_batches": 6}, r"got 6; 4 or 8 would do\."),
        ({"num_chunks": 2}, r"num_chunks must be 1 for 1f1b, got 2"),
        ({"median_tokens": 0.0}, r"median_tokens must be > 0, got 0\.0\."),
        ({"median_width": float("nan")}, r"median_width must be > 0, got nan\."),
        ({"piece_sigma": -1.0}, r"piece_sigma must be in 0..2, got -1\.0\."),
        ({"state_bytes_per_parameter": 1.0}, r"must be >= bytes_per_element \(2\.0\), got 1\.0\."),
        ({"num_micro_batches": 10**5}, r"2 p m v lanes must be at most 1000000 tasks, got 3200000\."),
    ],
)
def test_parameters_out_of_range_are_an_error(parameters, message):
    with pytest.raises(ValueError, match=message):
        Pipeline(**parameters)

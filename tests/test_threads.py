"""Iterative threads: who reads from whom, from which copy, and how much."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playing import decide, started
from strategies import toy_machine

from agents.evaluation import evaluate
from agents.rules.catalog import make_rule
from envs.reward import RewardWeights
from envs.world import World
from numa_rl.machines.catalog import load_machine
from numa_rl.workloads.comm_matrix import read_communication_matrix
from numa_rl.workloads.threads import (
    PATTERN_NAMES,
    PATTERNS,
    Threads,
    butterfly,
    master_worker,
    random_pairs,
    ring,
    stencil,
    strongest,
)
from numa_rl.workloads.workload import NEVER, NO_OBJECT

REAL = Path(__file__).parents[2] / "shared/data/traces/commmat_NAS_SP-OMP_64threads.csv"
SMALL = Threads(num_tasks=90, num_threads=12, iterations_per_phase=3)


def pool(family, num_episodes=3, seed=0):
    return family.generate(np.random.default_rng(seed), num_episodes)


def pairs(matrix):
    return [(int(a), int(b)) for a, b in np.argwhere(np.triu(matrix))]


def partners(workload, iteration, thread, num_threads, episode=0):
    """Whom a task reads from besides itself: {thread: bytes}."""
    task = iteration * num_threads + thread
    read = zip(workload.inputs[episode, task], workload.input_bytes[episode, task], strict=True)
    named = {int(obj) % num_threads: float(size) for obj, size in read if obj != NO_OBJECT}
    return {other: size for other, size in named.items() if other != thread}


# Known answers.


def test_patterns_by_hand():
    assert pairs(stencil(6)) == [(0, 1), (0, 3), (1, 2), (1, 4), (2, 5), (3, 4), (4, 5)]  # two rows of three
    assert pairs(stencil(3)) == [(0, 1), (1, 2)]
    assert pairs(ring(4)) == [(0, 1), (0, 3), (1, 2), (2, 3)]
    assert pairs(ring(2)) == [(0, 1)]
    assert pairs(butterfly(6)) == [(0, 1), (0, 2), (0, 4), (1, 3), (1, 5), (2, 3), (4, 5)]
    assert pairs(master_worker(3)) == [(0, 1), (0, 2)]


def test_the_strongest_partners_stand_for_all():
    matrix = np.array([[0, 5, 3, 2], [5, 0, 0, 0], [3, 0, 0, 1], [2, 0, 1, 0]], float)
    partner, amount = strongest(matrix, 2)
    assert partner.tolist() == [[1, 2], [0, NO_OBJECT], [0, 3], [0, 2]]
    np.testing.assert_allclose(amount, [[10 * 5 / 8, 10 * 3 / 8], [5, 0], [3, 1], [2, 1]])


def test_two_threads_read_the_copies_of_the_iteration_before(tmp_path):
    path = tmp_path / "matrix.csv"
    path.write_text("8,0\n0,8\n")
    family = Threads(num_tasks=7, trace=str(path), median_data_bytes=100.0, data_bytes_sigma=0.0, exchange_share=0.5,
                     flops_per_byte=2.0, compute_sigma=0.0)  # fmt: skip
    workload = pool(family, 1)
    # Copies 0 and 1 are written in even iterations, 2 and 3 in odd ones.
    assert workload.object[0].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert workload.inputs[0].tolist() == [[-1, -1], [-1, -1], [0, 1], [1, 0], [2, 3], [3, 2], [0, 1]]
    assert workload.input_bytes[0].tolist() == [[0, 0], [0, 0], *[[100, 50]] * 5]
    assert workload.object_bytes[0].tolist() == workload.bytes[0].tolist() == [100] * 7
    assert workload.flops[0].tolist() == [200] * 7
    assert (workload.write_fraction == 1).all()
    assert (workload.freed_after == NEVER).all()
    assert workload.follows_inputs
    assert not workload.read_only.any()


def test_a_thread_need_not_communicate():
    workload = pool(replace(SMALL, pattern="random", random_degree=0.0), 2)
    assert (workload.inputs[:, :, 1:] == NO_OBJECT).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_threads": 1}, "num_threads must be in 2..4096, got 1"),
        ({"num_tasks": 0}, "num_tasks must be >= 1, got 0"),
        ({"exchange_share": float("inf")}, "exchange_share must be >= 0, got inf"),
        ({"pattern": "star"}, "pattern must be one of stencil, ring, butterfly, master-worker, random, mixed, got 'st"),
        ({"trace": "nowhere.csv"}, r"nowhere\.csv: communication matrix must be a readable file"),
    ],
)
def test_parameters_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Threads(**change)


# Laws.


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("num_threads", [2, 3, 8, 12, 31])
def test_patterns_are_symmetric_and_connect_everyone(name, num_threads):
    matrix = PATTERNS[name](num_threads)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert not np.diagonal(matrix).any()
    assert np.linalg.matrix_power(matrix + np.eye(num_threads), num_threads).all()


@given(seed=st.integers(0, 99), degree=st.floats(0.0, 40.0))
def test_random_pairs_are_symmetric_and_as_many_as_asked(seed, degree):
    matrix = random_pairs(np.random.default_rng(seed).random((40, 40)), degree)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert not np.diagonal(matrix).any()
    assert (matrix >= 0).all()
    chance = min(degree / 39, 1.0)
    deviation = 2 * np.sqrt(780 * chance * (1 - chance)) / 40  # 780 pairs are drawn, each counts for two threads
    assert np.count_nonzero(matrix) / 40 == pytest.approx(39 * chance, abs=6 * deviation)


@pytest.mark.parametrize("pattern", [*PATTERN_NAMES, "mixed"])
def test_more_episodes_extend_fewer(pattern):
    few, many = (pool(replace(SMALL, pattern=pattern), num) for num in (2, 5))
    for name in ("arrival_s", "flops", "bytes", "write_fraction", "object", "object_bytes", "inputs", "input_bytes"):
        np.testing.assert_array_equal(getattr(few, name), getattr(many, name)[:2], err_msg=name)


@settings(deadline=None, max_examples=20)
@given(pattern=st.sampled_from(PATTERN_NAMES), seed=st.integers(0, 99), most=st.integers(1, 20))
def test_nobody_reads_what_is_written_in_the_same_iteration(pattern, seed, most):
    workload = pool(replace(SMALL, pattern=pattern, max_partners=most), 1, seed)
    iteration = np.arange(90) // 12
    for task in range(90):
        read = workload.inputs[0, task]
        read = read[read != NO_OBJECT]
        assert len(set(read)) == len(read)
        assert set(read // 12) <= ({(iteration[task] - 1) % 2} if iteration[task] else set())


@settings(deadline=None, max_examples=20)
@given(pattern=st.sampled_from(PATTERN_NAMES), seed=st.integers(0, 99), most=st.integers(1, 20))
def test_threads_read_in_the_mean_what_is_asked(pattern, seed, most):
    family = replace(SMALL, pattern=pattern, max_partners=most, exchange_share=0.4)
    workload = pool(family, 1, seed)
    read = workload.input_bytes[0, 12:24, 1:].sum(axis=1)
    assert read.mean() == pytest.approx(0.4 * family.median_data_bytes if read.any() else 0.0, rel=1e-5)


def test_threads_change_places_with_the_phase_and_not_before():
    workload = pool(replace(SMALL, pattern="ring"), 1)
    of_iteration = [[sorted(partners(workload, k, i, 12)) for i in range(12)] for k in range(1, 7)]
    assert of_iteration[0] == of_iteration[1] != of_iteration[2] == of_iteration[3] == of_iteration[4]


def test_numbers_do_not_tell_who_is_near():
    workload = pool(replace(SMALL, pattern="ring"), 40)
    beside = [
        (abs(thread - other) in (1, 11))
        for e in range(40)
        for thread in range(12)
        for other in partners(workload, 1, thread, 12, e)
    ]
    assert np.mean(beside) == pytest.approx(2 / 11, abs=0.06)


# A real input.


def test_threads_of_nas_sp_read_from_those_of_the_matrix():
    if not REAL.exists():
        pytest.skip(f"the communication matrix of NAS SP is not beside the checkout ({REAL.name})")
    matrix = read_communication_matrix(REAL)
    family = Threads(trace=str(REAL), iterations_per_phase=99)
    workload = pool(family, 1)
    assert workload.num_objects == 2 * 64
    read = np.zeros((64, 64))
    for thread in range(64):
        for other, size in partners(workload, 1, thread, 64).items():
            read[thread, other] = size
    total = family.median_data_bytes / matrix.sum(axis=1).mean()
    np.testing.assert_allclose(np.sort(read.sum(axis=1)), np.sort(matrix.sum(axis=1)) * total, rtol=1e-5)
    assert (np.count_nonzero(read, axis=1) == 6).all()


# A smoke run.


def test_the_simulator_plays_an_episode():
    workload = pool(replace(SMALL, median_data_bytes=10.0), 1)
    simulator = started(toy_machine(memory_bytes=[1e9, 1e9]), workload)
    outcomes = [decide(simulator, (task % 2, task % 2)) for task in range(90)]
    assert np.isfinite([outcome["exec_s"] + outcome["comm_s"] for outcome in outcomes]).all()
    assert outcomes[-1]["finished"]


def test_where_threads_run_counts():
    world = World(pool(Threads(), 2), (load_machine("chapter-8-socket"),), RewardWeights(reference_s=0.0165), 0.066)
    by_estimate, by_chance = (evaluate(make_rule(name), world) for name in ("greedy", "random"))
    assert by_estimate.cost.mean() < by_chance.cost.mean() / 2.5
    assert by_estimate.remote_ratio.mean() < by_chance.remote_ratio.mean() / 2
    assert not by_chance.out_of_memory.any()

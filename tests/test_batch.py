"""Batch jobs: ranks and steps by hand, the model against the file that was drawn from it, recorded jobs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

from numa_rl.workloads.batch import HpcBatch
from numa_rl.workloads.lublin import LONG_RUNS, POWER_OF_TWO_SHARE, SERIAL_SHARE, SHORT_RUNS, lublin_jobs
from numa_rl.workloads.swf import read_swf
from numa_rl.workloads.workload import NEVER, NO_OBJECT

REAL = Path(__file__).parents[2] / "shared/data/traces/lublin_256.swf"
NO = NO_OBJECT


@pytest.fixture
def trace(tmp_path):
    """Writes jobs as (submission, run time, processors, memory in KB, requested processors)."""

    def write(*jobs):
        path = tmp_path / "jobs.swf"
        lines = [
            f"{number} {submit} -1 {run} {processors} -1 {memory} {requested} " + "-1 " * 10
            for number, (submit, run, processors, memory, requested) in enumerate(jobs)
        ]
        path.write_text("\n".join(lines))
        return str(path)

    return write


def test_a_job_of_three_ranks_and_two_steps_by_hand(trace):
    # 150 s in steps of 100 s are two steps of 0.75: even ranks 0 and 2 first, then the odd one between them.
    family = HpcBatch(
        num_tasks=6,
        jobs_per_s=0.01,
        recorded_step_s=100.0,
        step_flops=4e9,
        step_s=2.0,
        flops_per_byte=0.25,
        write_fraction=0.5,
        halo_share=0.1,
        trace=trace((5, 150, 3, 1000, -1)),
    )
    workload = family.generate(np.random.default_rng(0), 1)
    assert workload.object[0].tolist() == [0, 1, 2, 0, 1, 2]
    assert workload.inputs[0].tolist() == [[NO, NO], [NO, NO], [0, 1], [NO, 2], [2, NO], [0, 1]]
    np.testing.assert_allclose(workload.arrival_s[0] - workload.arrival_s[0, 0], [0, 0, 0.75, 1.5, 1.5, 2.25])
    np.testing.assert_allclose(workload.flops[0], 3e9)
    np.testing.assert_allclose(workload.bytes[0], 12e9)
    np.testing.assert_allclose(workload.object_bytes[0], 1_024_000)
    np.testing.assert_allclose(workload.input_bytes[0], np.where(workload.inputs[0] == NO, 0.0, 102_400))
    assert (workload.write_fraction == 0.5).all()
    assert workload.freed_after[0].tolist() == [5, 5, 5]
    assert not workload.read_only.any()
    assert not workload.follows_inputs


def test_a_job_that_goes_on_keeps_its_memory(trace):
    family = HpcBatch(num_tasks=5, jobs_per_s=0.01, recorded_step_s=100.0, trace=trace((5, 150, 3, 1000, -1)))
    workload = family.generate(np.random.default_rng(0), 1)
    # The last task, of rank 1, is cut off: it would read ranks 0 and 2.
    assert workload.freed_after[0].tolist() == [NEVER, NEVER, NEVER]


def test_wide_jobs_have_so_many_ranks_and_long_ones_so_many_steps(trace):
    family = HpcBatch(num_tasks=12, jobs_per_s=1e-6, max_ranks=4, max_steps=3, trace=trace((0, 12_000, 100, -1, -1)))
    workload = family.generate(np.random.default_rng(0), 1)
    assert workload.num_objects == 4
    np.testing.assert_allclose(workload.flops[0], 10 / 3 * family.step_flops, rtol=1e-6)


def test_jobs_that_tell_too_little_are_left_out(trace):
    path = trace((3, 10, -1, -1, 2), (1, -1, 4, -1, -1), (0, 10, -1, -1, -1), (2, 10, 1, -1, -1), (-1, 5, 1, -1, -1))
    workload = HpcBatch(num_tasks=300, trace=path).generate(np.random.default_rng(0), 1)
    ranks = np.unique(np.round(workload.arrival_s[0], 9), return_counts=True)[1]
    assert set(ranks.tolist()) == {1}  # jobs of one rank, and of two that take turns
    reads = (workload.inputs[0] != NO).any(axis=1).mean()
    assert reads == pytest.approx(1 / 3, abs=0.01)
    with pytest.raises(ValueError, match="must have a submission, a run time and processors, got none of 1 jobs"):
        HpcBatch(trace=trace((0, 10, -1, -1, -1)))


def test_recorded_jobs_come_at_the_rate_that_was_asked_for(trace):
    path = trace(*((time, 10, 1, -1, -1) for time in (0, 10, 20, 40, 80, 160)))
    workload = HpcBatch(num_tasks=300, jobs_per_s=5.0, trace=path).generate(np.random.default_rng(0), 1)
    gaps_s = np.diff(workload.arrival_s[0])
    assert gaps_s.mean() == pytest.approx(0.2, rel=0.02)
    np.testing.assert_allclose(np.unique(np.round(gaps_s / gaps_s.min(), 6)), [1, 2, 3.2, 4, 8])  # the mean is 32 s


def test_a_window_of_a_trace_is_a_trace(trace):
    path = trace(*((time, 1200, 1, 100 * (1 + time), -1) for time in range(10)))
    workload = HpcBatch(num_tasks=50, trace=path, trace_first_job=4, trace_jobs=3).generate(np.random.default_rng(0), 1)
    assert np.unique(workload.object_bytes / 102_400).tolist() == [5, 6, 7]


def test_the_model_has_its_published_shares():
    processors, run_s = lublin_jobs(np.random.default_rng(0), 200_000, 256)
    assert (processors == 1).mean() == pytest.approx(SERIAL_SHARE, abs=0.005)
    is_power = np.log2(processors) % 1 == 0
    assert (is_power & (processors > 1)).mean() > POWER_OF_TWO_SHARE
    assert processors.min() == 1
    assert processors.max() == 256
    short, long = (shape * scale for shape, scale in (SHORT_RUNS, LONG_RUNS))  # means of the logarithm
    share = np.mean(np.clip(-0.0054 * processors + 0.78, 0, 1))
    assert np.log(run_s).mean() == pytest.approx(share * short + (1 - share) * long, abs=0.03)
    assert np.median(run_s[processors >= 128]) > 10 * np.median(run_s[processors == 1])


def test_a_machine_too_small_for_the_model_is_refused():
    with pytest.raises(ValueError, match="max_processors must be >= 8, got 7"):
        lublin_jobs(np.random.default_rng(0), 1, 7)


def test_the_model_is_that_of_the_file_drawn_from_it():
    if not REAL.exists():
        pytest.skip(f"the job trace is not beside the checkout ({REAL.name})")
    jobs = read_swf(REAL, ("processors", "run_s"))
    processors, run_s = lublin_jobs(np.random.default_rng(0), 100_000, 256)
    assert ks_2samp(np.maximum(jobs["run_s"], 1.0), np.maximum(np.floor(run_s), 1.0)).statistic < 0.03
    assert ks_2samp(jobs["processors"], processors).statistic < 0.03


def test_real_jobs_are_a_workload():
    if not REAL.exists():
        pytest.skip(f"the job trace is not beside the checkout ({REAL.name})")
    family = HpcBatch(num_tasks=200, trace=str(REAL))
    workload = family.generate(np.random.default_rng(0), 3)
    assert workload.num_tasks == 200
    assert len({row.tobytes() for row in workload.flops}) == 3


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_processors": 4}, "max_processors must be >= 8, got 4."),
        ({"halo_share": 1.5}, "halo_share must be in [0, 1], got 1.5."),
        ({"burstiness": 0.5}, "burstiness must be >= 1, got 0.5."),
        ({"trace": "nowhere.swf"}, "nowhere.swf: jobs must be in a readable file, plain or packed with gzip: No such"),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, unescaped
        HpcBatch(**parameters)
    assert str(caught.value).startswith(message)

"""Workloads of every family: the random processes behind them, laws that all keep, the stream, the catalog."""

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_families import SMALL, SMALL_STREAM

from numa_rl.workloads.catalog import family_names, make_family
from numa_rl.workloads.collective import ALGORITHMS, AllReduce
from numa_rl.workloads.llm_serving import LLMServing, _geometric
from numa_rl.workloads.processes import drift_steps, interarrival_s, lognormal, zipf_rank
from numa_rl.workloads.synthetic import SyntheticStream
from numa_rl.workloads.workload import NEVER, NO_OBJECT, Workload

ARRAYS = (
    "arrival_s",
    "flops",
    "bytes",
    "write_fraction",
    "object",
    "object_bytes",
    "inputs",
    "input_bytes",
    "freed_after",
)
FAMILIES = pytest.mark.parametrize("family", [SMALL[name] for name in family_names()], ids=family_names())


def uniforms(shape, seed=0):
    return np.random.default_rng(seed).random(shape)


def arrivals(burstiness, burst_s=0.5, events_per_s=20.0, shape=(40, 20_000)):
    phase, gap = uniforms((2, *shape))
    return np.cumsum(interarrival_s(phase, gap, events_per_s, burstiness, burst_s), axis=1)


def index_of_dispersion(arrival_s, window_s):
    whole = int(arrival_s[:, -1].min() // window_s)
    counts = [np.bincount((row // window_s).astype(int), minlength=whole)[:whole] for row in arrival_s]
    return np.var(counts) / np.mean(counts)


def synthetic_streams():
    return st.builds(
        SyntheticStream,
        num_tasks=st.integers(1, 60),
        burstiness=st.floats(1.0, 20.0),
        num_objects=st.integers(1, 12),
        zipf_exponent=st.floats(0.0, 2.0),
        drift_per_task=st.floats(0.0, 1.0),
        object_lifetime_tasks=st.sampled_from([12.0, 40.0, math.inf]),
        read_only_share=st.floats(0.0, 1.0),
        write_fraction=st.floats(0.0, 1.0),
        inputs_per_task=st.integers(0, 4),
    )


def llm_servings():
    return st.builds(
        LLMServing,
        num_tasks=st.integers(9, 80),
        burstiness=st.floats(1.0, 20.0),
        warm_up_requests=st.integers(0, 30),
        tokens_per_s=st.floats(1.0, 1e4),
        prefill_tokens_per_s=st.floats(1.0, 1e4),
        mean_turns=st.floats(1.0, 20.0),
        max_turns=st.integers(1, 6),
        mean_pause_s=st.floats(0.01, 100.0),
        max_context_tokens=st.integers(1, 20_000),
        received_context_share=st.sampled_from([0.0, 0.3, 0.999, 1.0]),
        attended_tokens=st.integers(1, 20_000),
        prefill_chunk_tokens=st.integers(1, 3000),
        decode_chunk_tokens=st.integers(1, 2000),
        num_shards=st.integers(3, 8),
        shards_per_request=st.integers(1, 3),
        shard_drift_per_request=st.floats(0.0, 1.0),
    )


def check_laws(workload: Workload, most_alive: int) -> None:
    """Every object is created by its owner, read only between that and its end, and never shrinks."""
    for e in range(workload.num_episodes):
        sizes: dict[int, float] = {}
        for t in range(workload.num_tasks):
            read = [int(o) for o in workload.inputs[e, t] if o != NO_OBJECT]
            own = int(workload.object[e, t])
            assert len({own, *read}) == 1 + len(read)
            assert set(read) <= sizes.keys()
            for used in (own, *read):
                assert workload.freed_after[e, used] >= t
            assert workload.object_bytes[e, t] >= sizes.get(own, 0.0)
            sizes[own] = workload.object_bytes[e, t]
            alive = [o for o in sizes if workload.freed_after[e, o] >= t]
            assert len(alive) <= most_alive
        ended = np.flatnonzero(workload.freed_after[e] != NEVER)
        for o in ended:  # freed by the last task that uses it, so by one that does
            t = workload.freed_after[e, o]
            assert o in (workload.object[e, t], *workload.inputs[e, t])


# The random processes


def test_poisson_arrivals_have_the_mean_rate_and_dispersion_one():
    arrival_s = arrivals(burstiness=1.0)
    assert arrival_s[:, -1].mean() == pytest.approx(20_000 / 20.0, rel=0.01)
    assert index_of_dispersion(arrival_s, window_s=10.0) == pytest.approx(1.0, rel=0.05)


def test_bursts_keep_the_mean_rate_and_have_the_dispersion_of_an_interrupted_poisson_process():
    # 1 + 2 x rate x burst x (b - 1)^2 / b^2 x b over long windows: 1 + 2 * 20 * 0.5 * 9 / 4 = 46.
    arrival_s = arrivals(burstiness=4.0)
    assert arrival_s[:, -1].mean() == pytest.approx(1000.0, rel=0.05)
    assert index_of_dispersion(arrival_s, window_s=50.0) == pytest.approx(46.0, rel=0.15)


def test_a_burst_runs_at_burstiness_times_the_mean_rate():
    gaps_s = np.diff(arrivals(burstiness=4.0, burst_s=1000.0, shape=(4, 20_000)))
    assert np.median(gaps_s) == pytest.approx(math.log(2) / 80.0, rel=0.05)


def test_burstiness_near_one_is_nearly_poisson():
    np.testing.assert_allclose(
        arrivals(1.0 + 1e-9, shape=(1, 1000)), arrivals(1.0, shape=(1, 1000)), rtol=1e-6, atol=0.0
    )


def test_zipf_head_has_its_share():
    # 1 / (1 + 1/2 + 1/3 + 1/4) = 0.48, and a quarter of that for the last.
    share = np.bincount(zipf_rank(uniforms(100_000), 4, 1.0)) / 100_000
    np.testing.assert_allclose(share, np.array([12, 6, 4, 3]) / 25, atol=0.01)


def test_zipf_exponent_zero_is_uniform():
    assert zipf_rank(np.array([0.0, 0.24, 0.25, 0.5, 0.999]), 4, 0.0).tolist() == [0, 0, 1, 2, 3]


def test_drift_counts_shifts():
    assert drift_steps(np.array([0.5, 0.05, 0.01, 0.9]), 0.1).tolist() == [0, 1, 2, 2]


def test_lognormal_has_its_median_and_sigma():
    values = lognormal(uniforms(100_000), 760.0, 0.985)
    assert np.median(values) == pytest.approx(760.0, rel=0.02)
    assert np.log(values).std() == pytest.approx(0.985, rel=0.01)
    assert np.isfinite(lognormal(np.zeros(1), 1.0, 1.0)).all()


def test_turns_are_geometric():
    turns = _geometric(uniforms(100_000), 4.0)
    assert turns.min() == 1
    assert turns.mean() == pytest.approx(4.0, rel=0.02)
    assert (turns == 1).mean() == pytest.approx(0.25, abs=0.01)
    assert (_geometric(uniforms(100), 1.0) == 1).all()


# Laws of every family


@settings(deadline=None, max_examples=40)
@given(family=synthetic_streams(), seed=st.integers(0, 2**32))
def test_stream_objects_live_from_creation_to_their_end(family, seed):
    check_laws(family.generate(np.random.default_rng(seed), 2), most_alive=family.num_objects)


@settings(deadline=None, max_examples=40)
@given(family=llm_servings(), seed=st.integers(0, 2**32))
def test_serving_objects_live_from_creation_to_their_end(family, seed):
    check_laws(family.generate(np.random.default_rng(seed), 2), most_alive=family.num_tasks)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_all_reduce_objects_live_from_creation_to_their_end(algorithm):
    family = AllReduce(algorithm, num_ranks=6, group_ranks=3, num_steps=2)
    most_alive = 6 + 6 * family.schedule.num_chunks  # replicas, and the gradients of one step
    check_laws(family.generate(np.random.default_rng(0), 2), most_alive)


@FAMILIES
def test_same_seed_same_bits(family):
    one, two = (family.generate(np.random.default_rng(7), 3) for _ in range(2))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@FAMILIES
def test_a_larger_pool_extends_a_smaller_one(family):
    few, many = (family.generate(np.random.default_rng(7), n) for n in (3, 12))
    for name in ARRAYS[:-1]:
        np.testing.assert_array_equal(getattr(few, name), getattr(many, name)[:3])
    o = few.num_objects
    np.testing.assert_array_equal(few.freed_after, many.freed_after[:3, :o])
    assert (many.freed_after[:3, o:] == NEVER).all()


@FAMILIES
def test_no_two_episodes_of_a_pool_are_alike(family):
    workload = family.generate(np.random.default_rng(7), 64)
    assert len(contents(workload)) == 64


@FAMILIES
def test_a_family_travels_to_another_process_though_it_has_been_used(family):
    used = family.generate(np.random.default_rng(3), 2)
    again = pickle.loads(pickle.dumps(family)).generate(np.random.default_rng(3), 2)
    np.testing.assert_array_equal(used.bytes, again.bytes)


@FAMILIES
def test_another_seed_gives_other_episodes(family):
    one, two = (family.generate(np.random.default_rng(seed), 32) for seed in (0, 1))
    assert not contents(one) & contents(two)


def contents(workload):
    """What the episodes ask for, as bytes."""
    return {demand.tobytes() for demand in np.concatenate([workload.bytes, workload.flops], axis=1)}


# The synthetic stream


def test_stream_medians_are_the_parameters():
    family = SyntheticStream(num_tasks=400, object_lifetime_tasks=math.inf)
    workload = family.generate(np.random.default_rng(0), 50)
    assert np.median(workload.bytes) == pytest.approx(family.median_task_bytes, rel=0.05)
    assert np.median(workload.flops) == pytest.approx(family.median_task_flops, rel=0.05)
    read = workload.input_bytes[workload.inputs != NO_OBJECT]
    assert np.median(read) == pytest.approx(family.median_input_bytes, rel=0.05)
    assert workload.arrival_s[:, -1].mean() == pytest.approx(400 / family.tasks_per_s, rel=0.1)


@pytest.mark.parametrize("mean", [0.0, 0.2, 0.9, 1.0])
def test_writes_have_their_mean_and_share(mean):
    family = replace(SMALL_STREAM, num_tasks=500, write_fraction=mean, read_only_share=0.25)
    writes = family.generate(np.random.default_rng(0), 40).write_fraction
    assert writes.mean() == pytest.approx(0.75 * mean, abs=0.01)
    if mean:
        assert (writes == 0).mean() == pytest.approx(0.25, abs=0.01)


def test_objects_live_their_mean_lifetime():
    family = SyntheticStream(num_tasks=2000, num_objects=4, object_lifetime_tasks=50.0, zipf_exponent=0.0)
    workload = family.generate(np.random.default_rng(0), 20)
    ended = (workload.freed_after != NEVER).sum(axis=1)
    # 4 slots x 2000 tasks / 50 replacements; about one in 14 finds its slot empty still (4 / 54).
    assert ended.mean() == pytest.approx(160 * 50 / 54, rel=0.05)


def test_objects_that_never_end_are_numbered_once():
    workload = replace(SMALL_STREAM, object_lifetime_tasks=math.inf).generate(np.random.default_rng(0), 8)
    assert workload.num_objects <= SMALL_STREAM.num_objects
    assert (workload.freed_after == NEVER).all()


def test_drift_moves_the_hot_set():
    steady, drifting = (
        SyntheticStream(num_tasks=800, zipf_exponent=2.0, drift_per_task=drift, object_lifetime_tasks=math.inf)
        for drift in (0.0, 0.1)
    )

    def top_share(family):
        objects = family.generate(np.random.default_rng(0), 20).object
        return np.mean([np.bincount(row).max() / row.size for row in objects])

    # The head of 48 at exponent 2 has 1 / 1.62 of the draws; drifting, it changes hands 80 times.
    assert top_share(steady) == pytest.approx(0.616, abs=0.02)
    assert top_share(drifting) < 0.2


# The catalog and the ranges


def test_families_have_names():
    assert set(family_names()) == set(SMALL)
    assert make_family("synthetic", num_tasks=7) == SyntheticStream(num_tasks=7)
    assert make_family("all-reduce", algorithm="hierarchical", mean_gap_s=1) == AllReduce(
        "hierarchical", mean_gap_s=1.0
    )
    assert make_family("llm-serving", batch_reuse=2) == LLMServing(batch_reuse=2.0)  # whole numbers serve as floats


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("batch", {}, "unknown workload family 'batch'; known: synthetic, llm-serving"),
        ("synthetic", {"num_task": 3}, "synthetic: unknown key 'num_task'; known: num_tasks, tasks_per_s"),
        ("synthetic", {"num_tasks": 3.0}, "synthetic: num_tasks must be of type integer, got 3.0"),
        ("synthetic", {"num_tasks": True}, "synthetic: num_tasks must be of type integer, got True"),
        ("synthetic", {"burst_s": "1"}, "synthetic: burst_s must be of type number, got '1'"),
        ("synthetic", {"num_tasks": 0}, "synthetic: num_tasks must be >= 1, got 0"),
        ("synthetic", {"burstiness": 0.5}, "synthetic: burstiness must be >= 1, got 0.5"),
        ("synthetic", {"tasks_per_s": 0.0}, "synthetic: tasks_per_s must be > 0, got 0.0"),
        ("synthetic", {"tasks_per_s": math.nan}, "synthetic: tasks_per_s must be > 0, got nan"),
        ("synthetic", {"median_task_bytes": math.inf}, "synthetic: median_task_bytes must be > 0, got inf"),
        ("synthetic", {"inputs_per_task": -1}, "synthetic: inputs_per_task must be >= 0, got -1"),
        ("synthetic", {"write_fraction": 1.5}, "synthetic: write_fraction must be in [0, 1], got 1.5"),
        ("synthetic", {"object_lifetime_tasks": 47.0}, "object_lifetime_tasks must be >= num_objects (48)"),
        ("all-reduce", {"num_ranks": 2.0}, "all-reduce: num_ranks must be of type integer, got 2.0"),
        (
            "all-reduce",
            {"algorithm": "tree"},
            "all-reduce: algorithm must be one of ring, hierarchical, halving-doubling",
        ),
        ("llm-serving", {"trace": 5}, "llm-serving: trace must be of type string, got 5"),
        ("llm-serving", {"trace": "nowhere.csv"}, "nowhere.csv: trace must be a readable file"),
        ("llm-serving", {"requests_per_s": -1.0}, "llm-serving: requests_per_s must be > 0, got -1.0"),
        ("llm-serving", {"shards_per_request": 9}, "shards_per_request must be <= num_shards (8), got 9"),
        ("llm-serving", {"kv_heads": 13}, "kv_heads must be <= heads (12), got 13"),
        ("llm-serving", {"num_tasks": 8}, "num_tasks must be > num_shards (8 loader tasks), got 8"),
        ("llm-serving", {"batch_reuse": 0.5}, "batch_reuse must be >= 1, got 0.5"),
        ("llm-serving", {"shard_drift_per_request": 2.0}, "shard_drift_per_request must be in [0, 1], got 2.0"),
        ("llm-serving", {"mean_turns": 0.5}, "mean_turns must be >= 1, got 0.5"),
        ("llm-serving", {"max_turns": 0}, "max_turns must be >= 1, got 0"),
        ("llm-serving", {"mean_pause_s": 0.0}, "mean_pause_s must be > 0, got 0.0"),
        ("llm-serving", {"attended_tokens": 0}, "attended_tokens must be >= 1, got 0"),
        ("llm-serving", {"received_context_share": 1.5}, "received_context_share must be in [0, 1], got 1.5"),
        ("llm-serving", {"warm_up_requests": -1}, "warm_up_requests must be >= 0, got -1"),
    ],
)
def test_bad_parameters_are_named(name, parameters, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, unescaped
        make_family(name, **parameters)
    assert message in str(caught.value)

"""What the families of task graphs and batch jobs have in common: objects, seeds, and schedulers that differ."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.evaluation import evaluate
from agents.rules.catalog import make_rule
from envs.reward import RewardWeights
from envs.world import World
from numa_rl.machines.builders import eight_socket_cube
from numa_rl.workloads.batch import HpcBatch
from numa_rl.workloads.query import Query
from numa_rl.workloads.workflow import Workflow
from numa_rl.workloads.workflow_shapes import SHAPES
from numa_rl.workloads.workload import NEVER, NO_OBJECT, SCALARS, Workload

SMALL = {
    "workflow": Workflow(num_tasks=96),
    "query": Query(num_tasks=96, num_kinds=6),
    "hpc-batch": HpcBatch(num_tasks=96),
}
FAMILIES = pytest.mark.parametrize("family", SMALL.values(), ids=SMALL)


def families():
    shapes = st.sampled_from(["any", *SHAPES])
    workflows = st.builds(
        Workflow,
        num_tasks=st.integers(1, 90),
        shape=shapes,
        min_width=st.integers(1, 3),
        max_width=st.integers(3, 6),
        workflows_per_s=st.sampled_from([0.01, 1.0, 1000.0]),
        data_ratio=st.sampled_from([0.0, 0.1, 3.0]),
    )
    queries = st.builds(
        Query,
        num_tasks=st.integers(17, 90),
        num_kinds=st.integers(1, 5),
        queries_per_s=st.sampled_from([0.1, 10.0, 1000.0]),
        stage_tasks=st.integers(1, 6),
        look_share=st.sampled_from([0.0, 0.1]),
        output_share=st.sampled_from([0.0, 0.5, 2.0]),
    )
    batches = st.builds(
        HpcBatch,
        num_tasks=st.integers(1, 90),
        jobs_per_s=st.sampled_from([0.1, 10.0, 1000.0]),
        burstiness=st.floats(1.0, 9.0),
        max_processors=st.integers(8, 512),
        max_ranks=st.integers(1, 9),
        max_steps=st.integers(1, 9),
        halo_share=st.sampled_from([0.0, 0.4]),
    )
    return st.one_of(workflows, queries, batches)


def names(workload: Workload) -> list[str]:
    return [item.name for item in fields(workload) if item.name not in SCALARS]


@settings(deadline=None, max_examples=60)
@given(family=families(), seed=st.integers(0, 2**32))
def test_objects_are_created_read_and_freed_in_this_order(family, seed):
    workload = family.generate(np.random.default_rng(seed), 2)
    assert workload.num_tasks == family.num_tasks
    for episode in range(2):
        exists = set()
        for task in range(workload.num_tasks):
            own = int(workload.object[episode, task])
            read = [obj for obj in workload.inputs[episode, task].tolist() if obj != NO_OBJECT]
            assert len({own, *read}) == 1 + len(read)
            assert set(read) <= exists
            if own in exists and workload.read_only[episode, own]:
                assert workload.write_fraction[episode, task] == 0.0
            assert all(workload.freed_after[episode, obj] >= task for obj in (own, *read))
            exists.add(own)
        for obj in exists:
            end = workload.freed_after[episode, obj]
            assert end == NEVER or obj in (workload.object[episode, end], *workload.inputs[episode, end])


@FAMILIES
def test_same_seed_same_bits_and_a_larger_pool_extends_a_smaller_one(family):
    few, again, many = (family.generate(np.random.default_rng(7), count) for count in (3, 3, 9))
    for name in names(few):
        assert getattr(few, name).tobytes() == getattr(again, name).tobytes()
        first = getattr(many, name)[:3]
        if name in ("freed_after", "read_only"):  # there may be more objects
            rest = first[:, few.num_objects :]
            assert (rest == (NEVER if name == "freed_after" else False)).all()
            first = first[:, : few.num_objects]
        np.testing.assert_array_equal(getattr(few, name), first)


@FAMILIES
def test_no_two_episodes_and_no_two_seeds_are_alike(family):
    pools = [family.generate(np.random.default_rng(seed), 32) for seed in (0, 1)]
    assert len({row.tobytes() for pool in pools for row in pool.bytes}) == 64


@FAMILIES
def test_parameters_that_are_not_numbers_or_out_of_range_are_refused(family):
    kind = type(family)
    numbers = {item.name: getattr(family, item.name) for item in fields(family) if item.type in ("int", "float")}
    assert len(numbers) > 5
    for name in numbers:
        for bad in (float("nan"), float("inf"), -1):
            with pytest.raises(ValueError, match=rf"^{name} must be .*, got {bad}\.$"):
                kind(**{name: bad})


@FAMILIES
def test_where_tasks_and_data_go_matters_and_memory_suffices(family):
    workload = type(family)().generate(np.random.default_rng(0), 4)
    cube = eight_socket_cube()
    core_s = np.maximum(workload.flops / cube.flops_per_s[0], workload.bytes / cube.bandwidth_bytes_per_s[0, 0])
    read_s = workload.input_bytes.sum(axis=2) / cube.bandwidth_bytes_per_s[0, 0]
    reference_s = float((core_s + read_s).mean())
    world = World(workload, (cube,), RewardWeights(reference_s=reference_s), window_s=4 * reference_s)
    random, greedy = (evaluate(make_rule(name), world) for name in ("random", "greedy"))
    assert random.cost.mean() > 2.0 * greedy.cost.mean()
    for results in (random, greedy):
        assert not results.out_of_memory.any()
        assert not results.fallbacks.any()

    moved = workload.bytes.sum(axis=1) + workload.input_bytes.sum(axis=(1, 2))
    load = moved / workload.arrival_s[:, -1] / cube.memory_bandwidth_bytes_per_s.sum()
    assert 0.25 < load.mean() < 0.7

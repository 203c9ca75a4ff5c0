from __future__ import annotations

import dataclasses
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numa_rl.communication.collectives import Groups, hierarchical_s
from numa_rl.machines.catalog import load_machine
from numa_rl.transformer.divisors import divisors
from numa_rl.transformer.memory_plan import Recompute, Sharding, Training
from numa_rl.transformer.model import Transformer
from numa_rl.transformer.parallel_plan import (
    Choices,
    Plan,
    best_plan,
    evaluate,
    fewest_ranks,
    possible_splits,
    proportioned,
    ranked_plans,
)
from numa_rl.transformer.pipeline_schedule import operations, timeline
from numa_rl.transformer.step_time import Cluster, Splits, cluster_of, collective

CUBE = cluster_of(load_machine("chapter-8-socket"))
CHAPTER = Training(Transformer(layers=1104, width=960 * 128, heads=960), parameters=200e12, kv_sequences=45)
SMALL = Training(Transformer(layers=12, width=192, heads=12, kv_heads=4, vocabulary=1000), None, 128, 24, 6, 100)
# Slow links and little room, so that every part counts.
TIGHT = Cluster(4, 1e9, 12e6, 1e9, 1e8, 1e-5, 5e7, 1e-4)


# The same in plain Python, from one plan's numbers.


def largest_common(number: int, room: int) -> int:
    return max(each for each in range(1, room + 1) if number % each == 0 and room % each == 0)


def plain_block(cluster: Cluster, mp: int, dp: int, pp: int) -> tuple[int, int, int]:
    room = min(cluster.ranks_per_machine, mp * dp * pp)
    near_mp = largest_common(mp, room)
    near_dp = largest_common(dp, room // near_mp)
    return near_mp, near_dp, largest_common(pp, room // near_mp // near_dp)


def plain_groups(cluster: Cluster, ranks: int, near: int, sharing: int) -> Groups:
    return Groups(
        near, cluster.intra_bandwidth_bytes_per_s, cluster.inter_bandwidth_bytes_per_s / sharing,
        cluster.intra_latency_s, cluster.inter_latency_s, ranks // near,
    )  # fmt: skip


def plain_step_s(
    training: Training, cluster: Cluster, mp: int, dp: int, pp: int, b: int, sharding: Sharding, recompute: Recompute
) -> float:
    """A step, its pipeline as a timeline of operations, its collectives one after another."""
    model, sizes, s = training.model, training.sizes, training.sequence_tokens
    near_mp, near_dp, near_pp = plain_block(cluster, mp, dp, pp)
    mp_groups = plain_groups(cluster, mp, near_mp, near_dp * near_pp)
    dp_groups = plain_groups(cluster, dp, near_dp, near_mp * near_pp)
    layers = model.layers // pp
    held = (layers * model.layer_parameters + model.vocabulary * model.width) / mp
    weights, gradients = held * sizes.parameter_bytes, held * sizes.gradient_bytes

    pairs = b * s * (s + 1) / 2
    core = 4 * model.width * pairs
    forward = 2 * model.layer_parameters * b * s + core
    again = {Recompute.NONE: 0.0, Recompute.ATTENTION: core, Recompute.FULL: forward}[recompute]
    logits = 3 * 2 * model.vocabulary * model.width * b * s
    flops = (layers * (3 * forward + again) + logits) / mp
    reads = 3 if recompute is Recompute.FULL else 2
    moved = reads * weights + 2 * gradients
    work_s = max(flops / cluster.flops_per_s, moved / cluster.memory_bandwidth_bytes_per_s)

    message = b * s * model.width * sizes.activation_bytes
    for _ in range(layers * (6 if recompute is Recompute.FULL else 4)):
        work_s += hierarchical_s(mp_groups, message)
    if pp > near_pp:
        work_s += 2 * (
            message / mp / (cluster.inter_bandwidth_bytes_per_s / (near_mp * near_dp)) + cluster.inter_latency_s
        )
    elif pp > 1:
        work_s += 2 * (message / mp / cluster.intra_bandwidth_bytes_per_s + cluster.intra_latency_s)

    once_s = 0.0
    if sharding is Sharding.NONE:
        once_s = hierarchical_s(dp_groups, gradients)
    elif sharding is Sharding.OPTIMISER:
        once_s = hierarchical_s(dp_groups, gradients) / 2 + hierarchical_s(dp_groups, weights) / 2
    elif sharding is Sharding.GRADIENTS:
        once_s = hierarchical_s(dp_groups, weights) / 2
    for _ in range(layers):
        if sharding in (Sharding.GRADIENTS, Sharding.PARAMETERS):
            work_s += hierarchical_s(dp_groups, gradients / layers) / 2
        if sharding is Sharding.PARAMETERS:
            work_s += hierarchical_s(dp_groups, weights / layers)
    own = held if sharding is Sharding.NONE else held / dp
    update = own * (sizes.gradient_bytes + 2 * sizes.optimiser_bytes + 2 * sizes.parameter_bytes)

    micro_batches = training.batch_sequences // dp // b
    pipeline = timeline(operations("1f1b", pp, micro_batches), work_s / 3, 2 * work_s / 3)
    return pipeline.makespan_s + once_s + update / cluster.memory_bandwidth_bytes_per_s


def plain_plans(training: Training, num_ranks: int) -> list[tuple[int, int, int, int]]:
    model, counts = training.model, range(1, num_ranks + 1)
    return [
        (mp, dp, pp, b)
        for mp, dp, pp in product(counts, counts, counts)
        if mp * dp * pp == num_ranks
        and model.heads % mp == 0
        and model.inner_width % mp == 0
        and (model.num_kv_heads % mp == 0 or mp % model.num_kv_heads == 0)
        and model.layers % pp == 0
        and training.batch_sequences % dp == 0
        for b in range(1, training.batch_sequences // dp + 1)
        if training.batch_sequences // dp % b == 0
    ]


def options(plan: Plan) -> dict[str, Any]:
    return {"micro_sequences": plan.micro_sequences, "sharding": plan.sharding, "recompute": plan.recompute}


# Known answers.


def test_a_socket_of_the_cube():
    assert (CUBE.ranks_per_machine, CUBE.flops_per_s, CUBE.memory_bytes) == (8, 320e9, 1e12)
    assert (CUBE.memory_bandwidth_bytes_per_s, CUBE.intra_bandwidth_bytes_per_s, CUBE.intra_latency_s) == (90e9, 30e9, 25e-9)  # noqa: E501  # fmt: skip


@pytest.mark.parametrize("machine", ["chapter-2-socket", "cxl-expander", "r815"])
def test_the_least_socket_and_the_slowest_link_stand_for_all(machine):
    topology = load_machine(machine)
    cluster = cluster_of(topology)
    assert cluster.ranks_per_machine == (topology.cores > 0).sum()
    busy = topology.cores > 0
    assert cluster.memory_bytes == topology.memory_bytes[busy].min()
    assert cluster.intra_bandwidth_bytes_per_s <= topology.link_bandwidth_bytes_per_s.min()


def test_one_rank_computes_and_updates_and_does_nothing_else():
    model, weights = Transformer(2, 64, 4), 2 * 12 * 64**2
    plan = evaluate(Training(model, sequence_tokens=10, batch_sequences=4), CUBE, 1, 1, 1, recompute=Recompute.NONE)
    assert plan.time.compute_s == pytest.approx(4 * 3 * 2 * (2 * 12 * 64**2 * 10 + 4 * 64 * 55) / 320e9)
    assert plan.time.update_s == pytest.approx(weights * (2 + 2 * 8 + 2 * 2) / 90e9)
    assert plan.time.total_s == pytest.approx(plan.time.compute_s + plan.time.update_s)


def test_with_few_tokens_reading_the_weights_takes_longer_than_the_arithmetic():
    model, weights = Transformer(2, 64, 4), 2 * 12 * 64**2
    training = Training(model, sequence_tokens=2, batch_sequences=4)
    for recompute, reads in zip(Recompute, (2, 2, 3), strict=True):
        plan = evaluate(training, CUBE, 1, 1, 1, recompute=recompute)
        assert plan.time.compute_s == pytest.approx(4 * weights * (reads * 2 + 2 * 2) / 90e9)


def test_eight_stages_of_a_cube_wait_7_of_15_turns():
    plan = evaluate(dataclasses.replace(CHAPTER, batch_sequences=8), CUBE, 1, 1, 8)
    working_s = plan.time.compute_s + plan.time.pp_s
    assert plan.time.bubble_s == pytest.approx(working_s * 7 / 8)
    sent = 2 * 8 * (2048 * 122880 * 2 / 30e9 + 25e-9)
    assert plan.time.pp_s == pytest.approx(sent)


def test_no_more_micro_batches_wait_than_there_are():
    few, many = (
        evaluate(dataclasses.replace(CHAPTER, batch_sequences=batch), CUBE, 1, 1, 8).memory for batch in (2, 32)
    )
    assert many.activations == 8 * 138 * 2048 * 122880 * 2
    assert few.activations == many.activations / 4


def test_replicas_that_share_everything_send_1_5_times_as_much_in_one_micro_batch():
    one = dataclasses.replace(CHAPTER, batch_sequences=8)
    copies = evaluate(one, CUBE, 1, 8, 1, sharding=Sharding.NONE).time.dp_s
    assert copies == pytest.approx(2 * 7 / 8 * 400e12 / 30e9, rel=1e-6)
    for sharding, ratio in zip(Sharding, (1.0, 1.0, 1.0, 1.5), strict=True):
        assert evaluate(one, CUBE, 1, 8, 1, sharding=sharding).time.dp_s == pytest.approx(ratio * copies, rel=1e-6)


def test_the_chapters_ranks_fit_only_if_replicas_share_or_sockets_are_larger():
    copied_tb, shared_tb = (2400, 800, 400, 0), (0, 1600, 2000, 2400)
    for sharding, copied, shared, fits in zip(Sharding, copied_tb, shared_tb, (False, False, True, True), strict=True):
        plan = evaluate(CHAPTER, CUBE, 64, 32, 8, sharding=sharding)
        states = plan.memory.parameters + plan.memory.gradients + plan.memory.optimiser
        assert states == pytest.approx(copied * 1e12 / (64 * 8) + shared * 1e12 / 16384)
        assert states < plan.memory.total < states + 30e9
        assert plan.fits == fits
    assert (plan.ranks, plan.block) == (16384, (8, 1, 1))


def test_the_model_of_the_chapter_needs_4096_sockets_of_1_tb_if_numbers_double_from_8():
    assert fewest_ranks(CHAPTER, CUBE, 8) == 4096


def test_without_sharing_doubling_never_gets_to_enough_sockets_of_1_tb():
    # 64 and 16 are the largest powers of two that divide heads and layers: 2400 TB / 1024 is left of the states.
    assert fewest_ranks(CHAPTER, CUBE, 8, Choices(sharding=(Sharding.NONE,))) is None


@pytest.mark.parametrize(
    ("parameters", "heads", "layers"), [(200e12, 960, 1104), (7e9, 32, 35), (2e6, 3, 1), (175e9, 104, 82)]
)
def test_shapes_that_many_numbers_of_ranks_divide(parameters, heads, layers):
    model = proportioned(parameters)
    assert (model.heads, model.layers, model.width) == (heads, layers, heads * 128)


# Two routes that agree.


@settings(max_examples=60)
@given(st.data(), st.sampled_from(Sharding), st.sampled_from(Recompute), st.sampled_from([2, 6, 8, 12, 16, 24]))
def test_a_step_takes_what_its_timeline_and_its_collectives_do_in_plain_python(data, sharding, recompute, ranks):
    mp, dp, pp, micro = data.draw(st.sampled_from(plain_plans(SMALL, ranks)))
    plan = evaluate(SMALL, TIGHT, mp, dp, pp, micro_sequences=micro, sharding=sharding, recompute=recompute)
    assert plan.time.total_s == pytest.approx(plain_step_s(SMALL, TIGHT, mp, dp, pp, micro, sharding, recompute))
    assert plan.block == plain_block(TIGHT, mp, dp, pp)


@pytest.mark.parametrize("ranks_per_machine", [4, 8])  # of 8, 12 ranks of a layer leave room for 2 stages or replicas
def test_every_split_of_24_ranks_takes_what_it_does_in_plain_python(ranks_per_machine):
    cluster = dataclasses.replace(TIGHT, ranks_per_machine=ranks_per_machine)
    whole_batches = [split for split in plain_plans(SMALL, 24) if split[3] == SMALL.batch_sequences // split[1]]
    assert len(whole_batches) > 15
    for split in whole_batches:
        plan = evaluate(SMALL, cluster, *split[:3], micro_sequences=split[3], sharding=Sharding.PARAMETERS)
        expected = plain_step_s(SMALL, cluster, *split, Sharding.PARAMETERS, Recompute.FULL)
        assert plan.time.total_s == pytest.approx(expected)


@pytest.mark.parametrize("ranks", [1, 2, 8, 12])
def test_the_best_plan_is_the_best_of_all(ranks):
    tried = {
        (*split, sharding, recompute): plain_step_s(SMALL, TIGHT, *split, sharding, recompute)
        for split, sharding, recompute in product(plain_plans(SMALL, ranks), Sharding, Recompute)
    }
    fitting = {
        key: time_s
        for key, time_s in tried.items()
        if evaluate(SMALL, TIGHT, *key[:3], micro_sequences=key[3], sharding=key[4], recompute=key[5]).fits
    }
    assert len(fitting) < len(tried)  # memory matters
    if not fitting:
        with pytest.raises(ValueError, match="ranks would do"):
            best_plan(SMALL, ranks, TIGHT)
        return
    best = best_plan(SMALL, ranks, TIGHT)
    assert best.time.total_s == pytest.approx(min(fitting.values()))
    key = (best.mp, best.dp, best.pp, best.micro_sequences, best.sharding, best.recompute)
    assert fitting[key] == pytest.approx(min(fitting.values()))


@pytest.mark.parametrize("ranks", [1, 5, 7, 12, 48, 64])
def test_all_splits_are_tried(ranks):
    splits = possible_splits(SMALL, ranks)
    assert sorted(zip(*(values.tolist() for values in vars(splits).values()), strict=True)) == plain_plans(SMALL, ranks)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8), st.floats(0.0, 1e12))
def test_collectives_are_those_of_the_closed_form(near, machines, sharing, num_bytes):
    ranks, local, users = (np.array([value]) for value in (near * machines, near, sharing))
    expected = hierarchical_s(plain_groups(TIGHT, near * machines, near, sharing), num_bytes)
    made = collective(TIGHT, ranks, local, users)
    assert made.all_reduce_s(num_bytes)[0] == pytest.approx(expected)
    assert made.half_s(num_bytes)[0] == pytest.approx(expected / 2)


# Laws.


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 64), st.integers(1, 64))
def test_machines_hold_blocks_that_divide_the_ranks_and_are_full_where_machines_divide_them(mp, dp, pp, per_machine):
    cluster = dataclasses.replace(CUBE, ranks_per_machine=per_machine)
    splits = Splits(*(np.array([value]) for value in (mp, dp, pp, 1)))
    block = [int(size[0]) for size in splits.block(cluster)]
    assert all(degree % size == 0 for degree, size in zip((mp, dp, pp), block, strict=True))
    ranks, held = mp * dp * pp, int(np.prod(block))
    assert held <= per_machine
    if ranks % per_machine == 0:
        assert held == per_machine
    if ranks <= per_machine:
        assert held == ranks


@pytest.mark.parametrize("flops_per_s", [1e9, 1e-3])  # steps of fewer seconds than ranks have bytes, and of more
def test_plans_are_ranked_by_time_where_they_fit_and_by_memory_where_not(flops_per_s):
    plans = ranked_plans(SMALL, 12, dataclasses.replace(TIGHT, memory_bytes=7.3e6, flops_per_s=flops_per_s))
    assert len({(plan.mp, plan.dp, plan.pp) for plan in plans}) == len(plans)
    fits = [plan.fits for plan in plans]
    assert fits == sorted(fits, reverse=True)
    assert True in fits
    assert False in fits
    for one, other in pairwise(plans):
        if other.fits:
            assert one.time.total_s <= other.time.total_s
        elif not one.fits:
            assert one.memory.total <= other.memory.total


@pytest.mark.parametrize(
    "better",
    [
        {"flops_per_s": 2e9},
        {"memory_bandwidth_bytes_per_s": 2e9},
        {"intra_bandwidth_bytes_per_s": 2e8},
        {"inter_bandwidth_bytes_per_s": 1e8},
        {"intra_latency_s": 0.0},
        {"inter_latency_s": 0.0},
    ],
)
def test_a_better_cluster_is_never_slower_and_each_figure_matters(better):
    changed, faster = dataclasses.replace(TIGHT, **better), 0
    for plan in ranked_plans(SMALL, 24, TIGHT):
        again = evaluate(SMALL, changed, plan.mp, plan.dp, plan.pp, **options(plan))
        assert again.time.total_s <= plan.time.total_s * (1 + 1e-12)
        faster += again.time.total_s < plan.time.total_s * (1 - 1e-9)
    assert faster


def test_what_may_be_chosen_is_kept_to():
    choices = Choices((Sharding.GRADIENTS,), (Recompute.FULL,), micro_sequences=2)
    for plan in ranked_plans(SMALL, 12, TIGHT, choices):
        assert options(plan) == {"micro_sequences": 2, "sharding": Sharding.GRADIENTS, "recompute": Recompute.FULL}


def test_more_room_never_makes_the_best_step_slower():
    times = []
    for memory_bytes in (8e6, 12e6, 20e6, 1e9):
        times.append(best_plan(SMALL, 12, dataclasses.replace(TIGHT, memory_bytes=memory_bytes)).time.total_s)
    assert all(later <= earlier for earlier, later in pairwise(times))
    assert times[-1] < times[0]


@given(st.integers(1, 3000))
def test_divisors_are_all_of_them_in_order(number):
    assert divisors(number) == [each for each in range(1, number + 1) if number % each == 0]


@given(st.floats(2e6, 1e16))
def test_a_proportioned_shape_has_about_as_many_parameters(parameters):
    model = proportioned(parameters)
    assert model.parameters == pytest.approx(parameters, rel=0.6 if parameters < 1e9 else 0.04)


# Real inputs.


@pytest.mark.parametrize(
    ("flops_per_s", "best", "chapters_place"), [(320e9, (64, 256, 1), 7), (32e12, (64, 16, 16), 3)]
)
def test_where_the_chapters_split_of_16384_ranks_stands(flops_per_s, best, chapters_place):
    plans = ranked_plans(CHAPTER, 16384, dataclasses.replace(CUBE, flops_per_s=flops_per_s))
    degrees = [(plan.mp, plan.dp, plan.pp) for plan in plans]
    assert degrees[0] == best
    assert degrees.index((64, 32, 8)) + 1 == chapters_place
    assert sum(plan.fits for plan in plans) == 24


def test_a_small_model_on_the_8_sockets_of_the_cube():
    plan = best_plan(Training(Transformer(16, 1024, 8), sequence_tokens=512, batch_sequences=64), 8, CUBE)
    assert plan.ranks == 8
    assert plan.block == (plan.mp, plan.dp, plan.pp)
    assert plan.fits


# Bad input.


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ((5, 1, 1), r"mp must divide heads \(12, 4 heads of keys\) and inner width \(768\), got 5; 4 or 12 would do"),
        ((24, 1, 1), r"mp must divide heads .* got 24; 12 would do"),
        ((1, 5, 1), r"dp must divide the sequences of a step \(24\), got 5; 4 or 6 would do"),
        ((1, 1, 13), r"pp must divide layers \(12\), got 13; 12 would do"),
        ((1, 0, 1), "dp must be a whole number >= 1, got 0"),
    ],
)
def test_degrees_that_divide_nothing_are_refused_with_those_that_would(split, message):
    with pytest.raises(ValueError, match=message):
        evaluate(SMALL, TIGHT, *split)


def test_a_micro_batch_that_does_not_divide_a_replicas_sequences_is_refused():
    with pytest.raises(
        ValueError, match=r"micro_sequences must divide the sequences of a replica \(12\), got 5; 4 or 6"
    ):
        evaluate(SMALL, TIGHT, 1, 2, 1, micro_sequences=5)


def test_what_fits_nowhere_says_how_many_ranks_would_do():
    message = "a rank must have room .* 8 ranks leave it .* got 1000 GB; 4096 ranks would do"
    with pytest.raises(ValueError, match=message):
        best_plan(CHAPTER, 8, CUBE)
    tiny = dataclasses.replace(CUBE, memory_bytes=1.0)
    with pytest.raises(ValueError, match="times as many would not do either"):
        best_plan(SMALL, 2, tiny)


@pytest.mark.parametrize("ranks", [13, 2**20])
def test_a_number_of_ranks_that_divides_nothing_is_refused(ranks):
    with pytest.raises(ValueError, match=f"MP divides 12 heads, DP a batch of 24 .* PP 12 layers, got {ranks}"):
        best_plan(SMALL, ranks, TIGHT)


@pytest.mark.parametrize("ranks", [0, -8, 1.5, float("nan"), 2**21])
def test_a_number_of_ranks_out_of_range_is_refused(ranks):
    with pytest.raises(ValueError, match="num_ranks must be"):
        best_plan(SMALL, ranks, TIGHT)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"sharding": ()}, "sharding must have at least one choice, got none"),
        ({"recompute": ()}, "recompute must have at least one choice, got none"),
        ({"micro_sequences": 0}, "micro_sequences must be a whole number >= 1, got 0"),
    ],
)
def test_choices_out_of_range_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        Choices(**choices)


@pytest.mark.parametrize("name", ["flops_per_s", "memory_bytes", "inter_bandwidth_bytes_per_s", "intra_latency_s"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_cluster_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be finite and >"):
        dataclasses.replace(CUBE, **{name: value})

"""Training steps of a transformer: the same work however it is split, and closed forms of what moves and is kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numa_rl.machines.builders import eight_socket_cube, four_socket, two_socket
from numa_rl.machines.catalog import load_machine
from numa_rl.partition.mapping import node_distances
from numa_rl.partition.objective import placement_cost
from numa_rl.simulator.simulator import Simulator
from numa_rl.topology import LoadedLatency, Topology
from numa_rl.transformer.memory_plan import ElementSizes, Recompute, Sharding, Training, rank_memory
from numa_rl.transformer.model import Transformer
from numa_rl.transformer.pipeline_schedule import peak_activations
from numa_rl.workloads.training import TransformerTraining
from numa_rl.workloads.training_tasks import COMPUTING, MOMENTS_FLOPS, UPDATE_FLOPS, Kind
from numa_rl.workloads.workload import NEVER, NO_OBJECT, Workload

SAME: dict[str, Any] = {"tokens_sigma": 0.0, "compute_sigma": 0.0}
SMALL: dict[str, Any] = {"layers": 4, "width": 64, "heads": 8, "context": 8, "micro_batches": 8, "lanes": 4}
SMALL |= {"micro_batch_tokens": 16.0, **SAME}
SPLITS = [(1, 1, 1), (2, 1, 1), (1, 4, 1), (1, 1, 4), (2, 2, 2), (4, 2, 1), (1, 2, 4)]
CUBE = eight_socket_cube()


def small(split: tuple[int, int, int] = (1, 1, 1), **changes: Any) -> TransformerTraining:
    mp, dp, pp = split
    return TransformerTraining(**{**SMALL, **changes}, model_parallel=mp, data_parallel=dp, pipeline_parallel=pp)


def one_episode(family: TransformerTraining) -> Workload:
    return family.generate(np.random.default_rng(0), 1)


def of_kind(family: TransformerTraining, *kinds: Kind) -> np.ndarray:
    return np.isin(family.task_kind, kinds)


def read_objects(workload: Workload, task: int) -> list[int]:
    return [obj for obj in workload.inputs[0, task].tolist() if obj != NO_OBJECT]


@st.composite
def families(draw: st.DrawFn) -> TransformerTraining:
    mp, dp, pp = draw(st.permutations([1, 2, draw(st.sampled_from([1, 2, 4]))]))
    chunks = draw(st.sampled_from([1, 1, 2]))
    algorithm = draw(st.sampled_from(["ring", "hierarchical", "halving-doubling"]))
    return TransformerTraining(
        **{**SMALL, "layers": pp * chunks * draw(st.integers(1, 2)), "micro_batches": dp * pp, "lanes": max(mp, dp)},
        model_parallel=mp,
        data_parallel=dp,
        pipeline_parallel=pp,
        num_steps=draw(st.integers(1, 2)),
        recompute=draw(st.sampled_from(["none", "attention", "full"])),
        schedule="interleaved" if chunks > 1 else draw(st.sampled_from(["1f1b", "gpipe"])),
        stage_chunks=chunks,
        algorithm=algorithm,
        group_ranks=min(dp, 2),
    )


# Known answers


def test_one_layer_on_one_lane_by_hand():
    # Width 8 and one head: 12 x 64 = 768 parameters, 3072 bytes. A micro-batch of 2 sequences of 1 token: 64 bytes
    # between layers. Kept of a token: 16 x 8 numbers and 2 x 8 bytes of masks; of its pair with itself 9 bytes.
    family = TransformerTraining(
        layers=1, width=8, heads=1, context=1, data_parallel=1, pipeline_parallel=1, micro_batches=2, lanes=1,
        micro_batch_tokens=2.0, num_steps=1, message_overhead_s=1.0, **SAME,
    )  # fmt: skip
    workload, kept, no = one_episode(family), 2 * (4 * 128 + 16 + 9), NO_OBJECT
    weights, attention = 2 * 768 * 2, 4 * 8 * 2
    forward, backward = weights + attention, weights + 2 * attention
    tasks = [  # kind, object's bytes, bytes moved, share written, flop, bytes of each input
        (Kind.CHECKPOINT, 3072, 3072, 1.0, 0, {}),
        (Kind.WEIGHTS, 3072, 3072, 1.0, 0, {0: 3072}),
        (Kind.OPTIMISER, 6144, 6144, 1.0, 0, {}),
        (Kind.INPUT, 64, 64, 1.0, 0, {}),
        (Kind.FORWARD, kept, kept, 1.0, forward, {1: 3072, 4: 64}),
        (Kind.BACKWARD_INPUT, 64, 64, 1.0, backward, {1: 3072, 5: kept}),
        (Kind.BACKWARD_WEIGHTS, 3072, 3072, 1.0, weights, {4: 64, 5: 64, 6: 0}),
        (Kind.INPUT, 64, 64, 1.0, 0, {}),
        (Kind.FORWARD, kept, kept, 1.0, forward, {1: 3072, 7: 64}),
        (Kind.BACKWARD_INPUT, 64, 64, 1.0, backward, {1: 3072, 8: kept}),
        (Kind.BACKWARD_WEIGHTS, 3072, 6144, 0.5, weights, {7: 64, 8: 64, 9: 0}),
        (Kind.MOMENTS, 6144, 12288, 0.5, 7 * 768, {3: 3072}),
        (Kind.UPDATE, 3072, 6144, 0.5, 7 * 768, {2: 6144}),
    ]
    kind, size, moved, writes, flops, reads = (list(column) for column in zip(*tasks, strict=True))
    assert family.task_kind.tolist() == kind
    assert family.task_step.tolist() == [-1] * 3 + [0] * 10
    assert workload.object[0].tolist() == [0, 1, 2, 4, 5, 6, 3, 7, 8, 9, 3, 2, 1]
    np.testing.assert_allclose(workload.object_bytes[0], size)
    np.testing.assert_allclose(workload.bytes[0], moved)
    np.testing.assert_array_equal(workload.write_fraction[0], writes)
    np.testing.assert_allclose(workload.flops[0], flops)
    for task, expected in enumerate(reads):
        given_bytes = dict(zip(workload.inputs[0, task].tolist(), workload.input_bytes[0, task].tolist(), strict=True))
        assert {obj: num_bytes for obj, num_bytes in given_bytes.items() if obj != no} == expected
    assert workload.freed_after[0].tolist() == [1, NEVER, NEVER, 11, 6, 6, 6, 10, 10, 10]
    assert not workload.overhead_s.any()  # a rank alone sends nothing


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    ("recompute", "passes", "attention_passes"), [("none", 6, 3), ("attention", 6, 4), ("full", 8, 4)]
)
def test_computing_takes_6_flop_per_parameter_and_token_and_attention_however_it_is_split(
    split, recompute, passes, attention_passes
):  # fmt: skip
    family = small(split, recompute=recompute, layers_per_task=1)
    flops = one_episode(family).flops[0, of_kind(family, *COMPUTING)].sum(dtype=float)
    tokens = family.micro_batches * family.micro_batch_tokens * family.num_steps
    parameters = 4 * 12 * 64**2
    attention = (
        4 * 4 * 64 * tokens * (8 + 1) / 2
    )  # 4 layers, 4 flop for each of 64 numbers of a pair; 4.5 pairs a token
    assert flops == pytest.approx(passes * parameters * tokens + attention_passes * attention, rel=1e-5)


@pytest.mark.parametrize("split", SPLITS)
def test_every_parameter_is_updated_once_a_step_in_every_replica(split):
    family = small(split)
    workload, replicas = one_episode(family), split[1]
    parameters = replicas * 4 * 12 * 64**2
    for kind, flops in ((Kind.MOMENTS, MOMENTS_FLOPS), (Kind.UPDATE, UPDATE_FLOPS)):
        tasks = of_kind(family, kind)
        assert workload.flops[0, tasks].sum(dtype=float) == pytest.approx(flops * parameters * family.num_steps)
    loaded = of_kind(family, Kind.CHECKPOINT)
    assert workload.bytes[0, loaded].sum(dtype=float) == pytest.approx(4 * parameters)


def test_the_suite_default_has_396_tasks():
    assert one_episode(TransformerTraining()).num_tasks == 396


def test_draws_have_their_medians_and_spreads():
    family = TransformerTraining(micro_batch_tokens=1000.0, tokens_sigma=0.4, compute_sigma=0.1)
    workload = family.generate(np.random.default_rng(0), 4000)
    given_to = np.flatnonzero(of_kind(family, Kind.INPUT) & (family.task_step == 1))
    tokens = workload.object_bytes[:, given_to] / (family.width * 4)
    assert (tokens == tokens[:, :1]).all()  # the same in all micro-batches of a step
    np.testing.assert_allclose(tokens, np.rint(tokens), rtol=1e-6)
    assert np.median(tokens) == pytest.approx(1000.0, rel=0.03)
    assert np.log(tokens[:, 0]).std() == pytest.approx(0.4, rel=0.03)
    forward = np.flatnonzero(of_kind(family, Kind.FORWARD) & (family.task_step == 1))
    per_token = workload.flops[:, forward] / tokens[:, :1]
    alike = [np.isclose(per_token, per_token[:, [task]], rtol=1e-6).all(axis=0) for task in range(len(forward))]
    assert np.sum(alike, axis=1).tolist() == [2 * 4] * len(forward)  # the layers and lanes of a micro-batch
    one_each = np.log(per_token[:, [int(np.argmax(row)) == task for task, row in enumerate(alike)]])
    assert one_each.shape[1] == family.micro_batches
    assert one_each.std(axis=0) == pytest.approx(0.1, rel=0.05)
    assert np.abs(np.corrcoef(one_each.T) - np.eye(4)).max() < 0.06


def test_messages_cost_what_software_adds_to_each():
    family = small((2, 2, 2), message_bytes=300.0, message_overhead_s=2.0)
    workload = one_episode(family)
    # A lane has 2 x 12 x 64^2 / (4 x 2) parameters of 4 bytes, and 1024 bytes between layers: 4 messages, and as many
    # for each of a layer's two sums.
    expected = {Kind.GRADIENT_SUM: 2.0 * 164, Kind.RECEIVE: 2.0 * 4, Kind.ACTIVATION_SUM: 2.0 * 2 * 4}
    for kind in Kind:
        overhead_s = workload.overhead_s[0, of_kind(family, kind)]
        assert overhead_s.tolist() == [expected.get(kind, 0.0)] * len(overhead_s)
    assert of_kind(family, *expected).sum() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 6}, r"^width must be a multiple of 6, heads, got 64; 60 or 66 would do\.$"),
        ({"model_parallel": 3}, r"^heads must be a multiple of 3, model_parallel, got 8; 6 or 9 would do\.$"),
        ({"pipeline_parallel": 3}, r"^layers must be a multiple of 3, pipeline_parallel .*, got 4; 3 or 6 would do\.$"),
        ({"layers_per_task": 8}, r"^layers must be a multiple of 8, .* x layers_per_task, got 4; 8 would do\.$"),
        ({"data_parallel": 3}, r"^micro_batches must be a multiple of 3, data_parallel, got 8; 6 or 9 would do\.$"),
        ({"data_parallel": 8}, r"^lanes must be a multiple of 8, the chunks of the gradients' sum, got 4; 8 would do"),
        ({"model_parallel": 8}, r"^lanes must be a multiple of 8, model_parallel, .*, got 4; 8 would do\.$"),
        (
            {"algorithm": "hierarchical", "data_parallel": 4, "group_ranks": 3},
            r"^data_parallel must be a multiple of 3",
        ),
        ({"algorithm": "tree"}, r"^algorithm must be one of ring, hierarchical, halving-doubling, got 'tree'\.$"),
        ({"schedule": "zigzag"}, r"^schedule must be one of gpipe, 1f1b, interleaved, got 'zigzag'\.$"),
        ({"stage_chunks": 2}, r"^num_chunks must be 1 for 1f1b, got 2"),
        ({"recompute": "some"}, r"^recompute must be one of none, attention, full, got 'some'\.$"),
        ({"micro_batches": 10**6}, r"^an episode must have at most 1000000 tasks, got \d+; a larger layers_per_task"),
        ({"lanes": 2.5}, r"^lanes must be a whole number >= 1, got 2.5\.$"),
        ({"message_bytes": float("nan")}, r"^message_bytes must be in 1\.\.1e\+18, got nan\.$"),
        ({"micro_batch_tokens": 0.5}, r"^micro_batch_tokens must be in 1\.\.1e\+06, got 0.5\.$"),
    ],
)
def test_parameters_that_do_not_fit_are_refused_with_what_would(changes, message):
    with pytest.raises(ValueError, match=message):
        TransformerTraining(**{**SMALL, "data_parallel": 1, "pipeline_parallel": 1, **changes})


def test_a_layout_needs_a_node_with_cores_for_each_rank():
    family = small((1, 2, 1))
    with pytest.raises(ValueError, match=r"^rank_node must have shape \(2,\), a node for each rank, got \(1,\)\.$"):
        family.layout(CUBE, [0])
    memory_only = replace(two_socket(), cores=np.array([8, 0]))
    with pytest.raises(ValueError, match=r"^rank_node\[1\] must be a node of chapter-2-socket with cores, got 1\.$"):
        family.layout(memory_only, [0, 1])
    assert family.rank_nodes(memory_only).tolist() == [0, 0]


# Laws


@settings(deadline=None, max_examples=25)
@given(family=families())
def test_tasks_are_as_many_as_counted_and_in_order_of_their_steps(family):
    workload = one_episode(family)
    assert workload.num_tasks == family.num_tasks == len(family.task_step) == len(family.task_rank)
    for rank in range(family.num_ranks):
        mine = family.task_rank == rank
        assert (np.diff(family.task_step[mine & of_kind(family, *COMPUTING)]) >= 0).all()
        assert (mine & of_kind(family, Kind.UPDATE)).sum() == family.num_steps * family.lanes


@settings(deadline=None, max_examples=25)
@given(family=families(), seed=st.integers(0, 2**32))
def test_weights_are_updated_by_the_gradients_of_all_micro_batches(family, seed):
    # A number stands for a gradient: each lane of each rank adds one, and replicas must end with the sum of theirs.
    rng = np.random.default_rng(seed)
    workload, kind, rank = one_episode(family), family.task_kind, family.task_rank
    p, lanes, mp = family.num_ranks, family.lanes, family.model_parallel
    position = np.arange(p) // (mp * family.data_parallel) * mp + np.arange(p) % mp  # which share of which stage
    added: Counter[tuple[int, int, int]] = Counter()  # of each step, share and lane
    lane_of: dict[int, int] = {}  # weights and gradients, in the order in which they are created
    value: dict[int, int] = {}
    seen: Counter[int] = Counter()
    firsts = 0
    moments: list[tuple[tuple[int, int, int], int]] = []
    for task in range(workload.num_tasks):
        own, step = int(workload.object[0, task]), int(family.task_step[task])
        if kind[task] == Kind.BACKWARD_WEIGHTS:
            if own not in lane_of:
                lane_of[own] = seen[rank[task]] % lanes
                seen[rank[task]] += 1
            one = int(rng.integers(1000))
            value[own] = value.get(own, 0) + one
            firsts += workload.write_fraction[0, task] == 1.0
            added[step, int(position[rank[task]]), lane_of[own]] += one
        elif kind[task] == Kind.GRADIENT_SUM:
            (source,) = read_objects(workload, task)
            value[own] = value[source] + (value[own] if workload.flops[0, task] > 0 else 0)
        elif kind[task] == Kind.MOMENTS:
            (gradient,) = read_objects(workload, task)
            moments.append(((step, int(position[rank[task]]), lane_of[gradient]), value[gradient]))
    assert len(moments) == p * lanes * family.num_steps
    assert all(total == added[key] for key, total in moments)
    assert firsts == family.data_parallel * mp * lanes * family.layers * family.num_steps  # every part is written once


@settings(deadline=None, max_examples=25)
@given(family=families())
def test_a_gradient_has_seen_the_whole_model_and_all_parts_of_its_micro_batch(family):
    workload, kind = one_episode(family), family.task_kind
    mp, lanes, blocks = family.model_parallel, family.lanes, family.layers
    behind: dict[int, int] = {}  # of each object, which forward tasks went into it, as bits
    depth: dict[int, int] = {}  # of activations: blocks on the way, forward and back
    deepest = 0
    for task in range(workload.num_tasks):
        reads = read_objects(workload, task)
        own = int(workload.object[0, task])
        if kind[task] in (Kind.MOMENTS, Kind.UPDATE, Kind.WEIGHTS, Kind.GRADIENT_SUM):
            continue
        behind[own] = behind.get(own, 0)
        for obj in reads:
            behind[own] |= behind.get(obj, 0)
        computes = kind[task] in (Kind.FORWARD, Kind.BACKWARD_INPUT)
        depth[own] = max([depth.get(own, 0), *(depth.get(obj, 0) + computes for obj in reads)])
        if kind[task] == Kind.FORWARD:
            behind[own] |= 1 << task
        elif kind[task] == Kind.BACKWARD_INPUT and depth[own] == 2 * blocks:  # back at the model's input
            deepest += 1
            assert behind[own].bit_count() == blocks * mp * lanes
    assert deepest == family.num_steps * family.micro_batches * mp * lanes


@settings(deadline=None, max_examples=25)
@given(family=families())
def test_who_overwrites_an_object_has_waited_for_all_who_read_it(family):
    # The simulator makes a task wait only for those who wrote what it uses.
    workload = one_episode(family)
    waited_for: list[int] = []
    writer: dict[int, int] = {}
    readers: dict[int, int] = {}
    for task in range(workload.num_tasks):
        own, reads = int(workload.object[0, task]), read_objects(workload, task)
        before = 0
        for obj in (own, *reads):
            if obj in writer:
                before |= waited_for[writer[obj]] | 1 << writer[obj]
        assert not readers.get(own, 0) & ~before
        waited_for.append(before)
        writer[own], readers[own] = task, 0
        for obj in reads:
            readers[obj] = readers.get(obj, 0) | 1 << task


@pytest.mark.parametrize("split", SPLITS[1:])
def test_every_split_has_the_same_arithmetic_in_every_episode(split):
    whole, parts = (small(which, tokens_sigma=0.5, compute_sigma=0.2) for which in (SPLITS[0], split))
    pools = [family.generate(np.random.default_rng(5), 3) for family in (whole, parts)]
    for step in range(2):
        chosen = [of_kind(family, *COMPUTING) & (family.task_step == step) for family in (whole, parts)]
        totals = [pool.flops[:, tasks].sum(axis=1, dtype=float) for pool, tasks in zip(pools, chosen, strict=True)]
        assert len(set(totals[0])) == 3
        np.testing.assert_allclose(totals[0], totals[1], rtol=1e-5)


def test_same_seed_same_bits_and_a_larger_pool_extends_a_smaller_one():
    few, again, many = (TransformerTraining().generate(np.random.default_rng(7), count) for count in (3, 3, 9))
    for name in ("arrival_s", "flops", "bytes", "object", "object_bytes", "inputs", "input_bytes", "overhead_s"):
        assert getattr(few, name).tobytes() == getattr(again, name).tobytes()
        np.testing.assert_array_equal(getattr(few, name), getattr(many, name)[:3])
    assert len({row.tobytes() for row in many.flops}) == 9


# Two routes: what moves, what is kept and how long it takes in the simulator, against closed forms


def played(
    family: TransformerTraining, topology: Topology, rank_node: Any = None, window_s: float = 0.01
) -> dict[str, Any]:
    """The first episode under the layout: bytes read from other nodes by kind, peak memory, and when tasks end."""
    workload, plan = one_episode(family), family.layout(topology, rank_node)
    simulator = Simulator(topology, workload, 1, window_s=window_s)
    simulator.reset(0)
    remote, ends = np.zeros(workload.num_tasks), np.zeros(workload.num_tasks)
    memory = np.zeros((workload.num_tasks, topology.num_nodes))
    for task, action in enumerate(plan):
        now_s = float(simulator.state.now_s[0])
        outcome = simulator.step(action[None])
        remote[task] = outcome.remote_bytes[0]
        ends[task] = now_s + float(outcome.exec_s[0] + outcome.comm_s[0])
        memory[task] = simulator.state.memory_used_bytes[0]
    return {"workload": workload, "remote": remote, "ends": ends, "memory": memory}


CASES = [
    ((1, 8, 1), {"lanes": 8}),
    ((1, 8, 1), {"lanes": 8, "algorithm": "hierarchical", "group_ranks": 4}),
    ((1, 4, 1), {"algorithm": "halving-doubling"}),
    ((4, 1, 2), {"recompute": "full"}),
    ((2, 2, 2), {"schedule": "gpipe"}),
    ((1, 2, 2), {"schedule": "interleaved", "stage_chunks": 2}),
    ((1, 1, 4), {}),
]


@pytest.mark.parametrize(("split", "changes"), CASES)
def test_nodes_read_of_each_other_what_the_closed_forms_say(split, changes):
    family = small(split, num_steps=1, **changes)
    (mp, dp, pp), remote = split, played(family, CUBE)["remote"]
    gradients = 4 * 4 * 12 * 64**2  # bytes of the whole model
    boundary = 4 * family.micro_batch_tokens * 64 * family.micro_batches  # between two layers, of the whole batch
    crossings = (pp * family.stage_chunks - 1 if pp > 1 else 0) * 2  # forward and back
    sums = 4 * 2 * (3 if family.recompute == "full" else 2)  # of 4 layers; forward, perhaps again, and back
    expected = {
        Kind.GRADIENT_SUM: 2 * (dp - 1) / dp * dp * gradients,  # every rank 2 (p - 1) / p of what it holds
        Kind.RECEIVE: crossings * mp * boundary,
        Kind.ACTIVATION_SUM: 2 * (mp - 1) / mp * mp * sums * boundary,
    }
    for kind in Kind:
        assert remote[of_kind(family, kind)].sum() == pytest.approx(expected.get(kind, 0.0), rel=1e-6)


def test_on_one_node_nothing_is_remote():
    assert not played(small((2, 2, 2), num_steps=1), replace(two_socket(), cores=np.array([8, 0])))["remote"].any()


@pytest.mark.parametrize("recompute", list(Recompute))
@pytest.mark.parametrize(
    ("split", "changes"),
    [
        ((1, 1, 1), {}),
        ((1, 2, 4), {}),
        ((1, 1, 4), {"schedule": "gpipe"}),
        ((1, 1, 2), {"schedule": "interleaved", "stage_chunks": 2}),
    ],
)
def test_a_rank_needs_the_memory_of_the_plan(split, changes, recompute):
    # Gradients are there from the first backward pass on, which has freed a micro-batch's activations by then. Besides,
    # there are gradients of activations and what was received: a few boundaries.
    family = small(split, recompute=recompute.value, num_steps=1, **changes)
    (mp, dp, pp), nodes = split, family.rank_nodes(CUBE)
    peak = played(family, CUBE)["memory"][family.task_step == 0].max(axis=0)[nodes]
    training = Training(Transformer(4, 64, 8), sequence_tokens=8, sizes=ElementSizes(4, 4, 8, 4, 4))
    stages = peak_activations(family.schedule, pp, family.micro_batches // dp, family.stage_chunks)
    boundary = 4 * family.micro_batch_tokens * 64

    def plan(in_flight: float) -> float:
        sequences = family.micro_batch_tokens / 8
        memory = rank_memory(training, mp, dp, pp, in_flight, sequences, Sharding.NONE, recompute)
        return float(memory.total - memory.working)

    for rank in range(family.num_ranks):
        in_flight = float(stages[rank // (mp * dp)])
        most = plan(in_flight) + boundary * (family.stage_chunks * in_flight + 4)
        assert plan(in_flight - 1 / family.stage_chunks) <= peak[rank] <= most


def free_but_arithmetic(topology: Topology) -> Topology:
    """One core on each node; memory and links take no time."""
    return replace(
        topology,
        cores=np.ones(topology.num_nodes, np.int64),
        memory_bandwidth_bytes_per_s=np.full(topology.num_nodes, 1e20),
        bandwidth_bytes_per_s=np.full((topology.num_nodes, topology.num_nodes), 1e20),
        link_bandwidth_bytes_per_s=np.full(topology.num_links, 1e20),
        outstanding_bytes=1e15,
        loaded_latency=LoadedLatency(a=0.0, c=0.0, saturated=1.0),
    )


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 3), (2, 4), (4, 8), (4, 2)])
def test_a_pipeline_stands_idle_while_gradients_come_back_but_not_those_of_weights(schedule, stages, micro_batches):
    # Stages wait for what goes forward and back, which takes f each; of the 3 f of a micro-batch the f for the weights
    # comes after that. So a batch takes 3 m f + 2 (p - 1) f, and not 3 (m + p - 1) f.
    family = small(
        (1, 1, stages), micro_batches=micro_batches, schedule=schedule, lanes=1, num_steps=1, context=1, layers=4,
        micro_batch_tokens=4096.0, bytes_per_s=1e18, message_overhead_s=0.0, width=1024,
    )  # fmt: skip
    play = played(family, free_but_arithmetic(CUBE))
    computing = of_kind(family, *COMPUTING)
    started = play["ends"][of_kind(family, Kind.INPUT)].min()
    weights = 2 * 12 * 1024**2 * 4096
    forward_s = 4 / stages * weights / 40e9
    took = play["ends"][computing].max() - started
    assert took == pytest.approx((3 * micro_batches + 2 * (stages - 1)) * forward_s, rel=2e-3)


# The layout


@pytest.mark.parametrize(("split", "near"), [((1, 8, 1), 8), ((2, 2, 2), 12), ((1, 4, 2), 12), ((1, 1, 8), 7)])
def test_on_the_cube_ranks_that_exchange_are_neighbours(split, near):
    family = small(split, layers=8, lanes=8, micro_batches=split[1], num_steps=1)
    traffic = family.rank_traffic_bytes
    pairs = {(min(pair), max(pair)) for pair in np.argwhere(traffic).tolist() if pair[0] != pair[1]}
    nodes = family.rank_nodes(CUBE)
    assert len(pairs) == near
    assert sorted(nodes.tolist()) == list(range(8))
    assert all(int(nodes[a] ^ nodes[b]).bit_count() == 1 for a, b in pairs)


@pytest.mark.parametrize("split", [(2, 2, 2), (4, 2, 1), (1, 8, 1), (1, 2, 4), (1, 1, 8)])
@pytest.mark.parametrize("topology", [two_socket(), four_socket(), load_machine("kunpeng-920")], ids=lambda t: t.name)
def test_ranks_that_share_nodes_are_parted_as_well_as_any_way_can(split, topology):
    family = small(split, layers=8, lanes=8, micro_batches=split[1], num_steps=1)
    traffic = family.rank_traffic_bytes + family.rank_traffic_bytes.T
    np.fill_diagonal(traffic, 0.0)
    distance, n = node_distances(topology), topology.num_nodes
    nodes = family.rank_nodes(topology)
    assert np.bincount(nodes).tolist() == [8 // n] * n
    every = set(permutations(np.repeat(np.arange(n), 8 // n).tolist()))
    least = min(placement_cost(traffic, np.array(order), distance) for order in every)
    assert placement_cost(traffic, nodes, distance) == pytest.approx(least)


def test_the_layout_gives_every_task_and_object_of_a_rank_to_its_node():
    family = small((2, 2, 2))
    plan = family.layout(CUBE, np.arange(8)[::-1])
    np.testing.assert_array_equal(plan, np.repeat(7 - family.task_rank[:, None], 2, axis=1))


@pytest.mark.parametrize("split", [(1, 8, 1), (2, 2, 2)])
def test_the_layout_beats_ranks_in_the_order_of_nodes_and_tasks_anywhere(split):
    family = small(split, lanes=8, width=512)
    laid_out, in_order = (played(family, CUBE, nodes)["ends"].max() for nodes in (None, [0, 7, 1, 6, 2, 5, 3, 4]))
    workload = one_episode(family)
    simulator = Simulator(CUBE, workload, 1, window_s=0.01)
    simulator.reset(0)
    anywhere = np.random.default_rng(0).integers(8, size=(workload.num_tasks, 1, 2))
    for action in anywhere:
        simulator.step(action)
    assert laid_out < in_order
    assert laid_out < 0.5 * float(simulator.totals.last_finish_s[0])


def test_a_pool_of_study_size_is_made_of_one_program():
    family = TransformerTraining(layers=4, data_parallel=8, pipeline_parallel=1, lanes=8, micro_batches=8)
    workload = family.generate(np.random.default_rng(0), 64)
    assert workload.num_tasks == family.num_tasks > 2000
    assert workload.is_one_graph

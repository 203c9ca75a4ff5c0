"""All-reduce as a workload: its tasks sum the gradients, and the simulator times them as the links would."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numa_rl.communication.collectives import Groups, halving_doubling_s, ring_s
from numa_rl.communication.ring_order import ring_order
from numa_rl.communication.schedules import schedule_s
from numa_rl.machines.builders import eight_socket_cube
from numa_rl.simulator.simulator import Simulator
from numa_rl.topology import LoadedLatency, Topology
from numa_rl.workloads.collective import ALGORITHMS, AllReduce
from numa_rl.workloads.graph_draft import GraphDraft, add_all_reduce
from numa_rl.workloads.workload import NEVER, NO_OBJECT, Workload

SAME_SIZES = {"gradient_bytes_sigma": 0.0, "compute_sigma": 0.0, "mean_gap_s": 0.0}
GRADIENT_BYTES = 1e9  # 250 million elements in 8 chunks: whole ones, so that nothing is rounded
COPY_WRITES, REDUCE_WRITES = 1.0, 0.5  # by which a task says whether it replaces its chunk or adds to it


@st.composite
def families(draw: st.DrawFn, most_ranks: int = 9) -> AllReduce:
    algorithm = draw(st.sampled_from(ALGORITHMS))
    group_ranks = draw(st.integers(1, 4))
    if algorithm == "hierarchical":
        num_ranks = group_ranks * draw(st.integers(1, most_ranks // group_ranks))
    else:
        num_ranks = draw(st.integers(1, most_ranks))
    return AllReduce(algorithm, num_ranks, group_ranks, num_steps=draw(st.integers(1, 3)), median_gradient_bytes=4000.0)


def owner(family: AllReduce, objects: np.ndarray) -> np.ndarray:
    """Whose objects these are: the replicas are numbered first, then gradients by step, replica and chunk."""
    p = family.num_ranks
    return np.where(objects < p, objects, (objects - p) // family.schedule.num_chunks % p)


def part(family: AllReduce, step: int, what: str) -> slice:
    """The computations, sends or updates of a training step, as task indices."""
    p, c, m = family.num_ranks, family.schedule.num_chunks, int(family.schedule.chunks.sum())
    first = p + step * (p * c + m + p)
    begin, end = {"compute": (0, p * c), "send": (p * c, p * c + m), "update": (p * c + m, p * c + m + p)}[what]
    return slice(first + begin, first + end)


def replica_of_rank(family: AllReduce, workload: Workload, episode: int = 0) -> np.ndarray:
    """Which replica is each rank of the schedule, shape (p,), from who receives at each send."""
    replica = np.full(family.num_ranks, -1)
    received = workload.object[episode, part(family, 0, "send")]
    replica[np.repeat(family.schedule.target, family.schedule.chunks)] = owner(family, received)
    return replica


# Known answers


def test_two_ranks_by_hand():
    # 8 MB in chunks of 1 million elements. Objects 0 and 1 are replicas; 2 and 3 the chunks of the first, 4 and 5 of
    # the second. Each sends a chunk and adds what it gets, then sends the sum it has.
    family = AllReduce(num_ranks=2, num_steps=1, median_gradient_bytes=8e6, **SAME_SIZES)
    workload = family.generate(np.random.default_rng(0), 1)
    assert replica_of_rank(family, workload).tolist() == [0, 1]
    no = (NO_OBJECT, NO_OBJECT)
    tasks = [  # object, inputs, MB moved, share written, million flop
        (0, no, 8, 1.0, 0),
        (1, no, 8, 1.0, 0),
        (2, (0, NO_OBJECT), 4, 1.0, 24),
        (3, (0, NO_OBJECT), 4, 1.0, 24),
        (4, (1, NO_OBJECT), 4, 1.0, 24),
        (5, (1, NO_OBJECT), 4, 1.0, 24),
        (4, (2, NO_OBJECT), 8, 0.5, 1),
        (3, (5, NO_OBJECT), 8, 0.5, 1),
        (5, (3, NO_OBJECT), 4, 1.0, 0),
        (2, (4, NO_OBJECT), 4, 1.0, 0),
        (0, (2, 3), 16, 0.5, 4),
        (1, (4, 5), 16, 0.5, 4),
    ]
    own, inputs, moved, writes, flops = (np.array(column) for column in zip(*tasks, strict=True))
    np.testing.assert_array_equal(workload.object[0], own)
    np.testing.assert_array_equal(workload.inputs[0], inputs)
    np.testing.assert_allclose(workload.bytes[0], moved * 1e6, rtol=1e-6)
    np.testing.assert_array_equal(workload.write_fraction[0], writes)
    np.testing.assert_allclose(workload.flops[0], flops * 1e6, rtol=1e-6)
    np.testing.assert_allclose(workload.input_bytes[0], (inputs != NO_OBJECT) * 4e6, rtol=1e-6)
    np.testing.assert_allclose(workload.object_bytes[0], np.where(own < 2, 8e6, 4e6), rtol=1e-6)
    assert workload.freed_after[0].tolist() == [NEVER, NEVER, 10, 10, 11, 11]
    assert (workload.arrival_s == 0).all()
    assert workload.follows_inputs


def test_a_rank_alone_only_computes_and_updates():
    workload = AllReduce(num_ranks=1, num_steps=2).generate(np.random.default_rng(0), 1)
    assert workload.object[0].tolist() == [0, 1, 0, 2, 0]
    assert workload.inputs[0, :, 0].tolist() == [NO_OBJECT, 0, 1, 0, 2]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_eight_ranks_send_as_many_chunks_whatever_the_algorithm(algorithm):
    family = AllReduce(algorithm)
    assert family.schedule.num_chunks == 8
    assert family.generate(np.random.default_rng(0), 1).num_tasks == 8 + 3 * (64 + 112 + 8)


def test_draws_have_their_medians_and_means():
    family = AllReduce(num_ranks=2, num_steps=4, median_gradient_bytes=8e6, mean_gap_s=0.3)
    workload = family.generate(np.random.default_rng(0), 4000)
    steps = range(family.num_steps)
    sizes = np.stack([workload.object_bytes[:, part(family, step, "compute")] for step in steps], axis=1)
    assert np.median(sizes) == pytest.approx(4e6, rel=0.02)
    assert np.log(sizes).std() == pytest.approx(family.gradient_bytes_sigma, rel=0.02)
    flops = np.stack([workload.flops[:, part(family, step, "compute")] for step in steps], axis=1) / (sizes / 4)
    assert np.median(flops) == pytest.approx(family.flops_per_element, rel=0.02)
    assert np.log(flops).std() == pytest.approx(family.compute_sigma, rel=0.02)
    starts = np.stack([workload.arrival_s[:, part(family, step, "compute").start] for step in steps], axis=1)
    assert np.diff(starts, prepend=0.0, axis=1).mean() == pytest.approx(0.3, rel=0.02)
    np.testing.assert_array_equal(workload.object_bytes[:, 0], 2 * sizes[:, :, 0].max(axis=1))  # the largest gradient


def test_every_order_of_ranks_is_as_likely():
    family = AllReduce(num_ranks=3, num_steps=1)
    workload = family.generate(np.random.default_rng(0), 3000)
    orders = [tuple(replica_of_rank(family, workload, episode)) for episode in range(3000)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert min(counts) > 400


# Laws


@settings(deadline=None, max_examples=60)
@given(family=families(), seed=st.integers(0, 2**32))
def test_every_rank_updates_by_the_sum_of_all_gradients(family, seed):
    rng = np.random.default_rng(seed)
    workload, p = family.generate(rng, 2), family.num_ranks
    for episode in range(2):
        values = {}  # of every object: one number stands for a chunk's elements
        for step in range(family.num_steps):
            computed = workload.object[episode, part(family, step, "compute")]
            values.update(zip(computed.tolist(), rng.integers(-1000, 1000, computed.size).tolist(), strict=True))
            total = np.array([values[obj] for obj in computed.tolist()]).reshape(p, -1).sum(axis=0)
            for task in range(*part(family, step, "send").indices(workload.num_tasks)):
                own, source = int(workload.object[episode, task]), int(workload.inputs[episode, task, 0])
                added = workload.write_fraction[episode, task] == REDUCE_WRITES
                assert added or workload.write_fraction[episode, task] == COPY_WRITES
                values[own] = values[own] + values[source] if added else values[source]
            updates = part(family, step, "update")
            assert workload.object[episode, updates].tolist() == list(range(p))
            for replica, read in enumerate(workload.inputs[episode, updates].tolist()):
                assert [int(owner(family, np.array(obj))) for obj in read] == [replica] * len(read)
                assert [values[obj] for obj in read] == total.tolist()


@settings(deadline=None, max_examples=60)
@given(family=families())
def test_sends_of_a_step_neither_read_nor_write_what_others_of_it_write(family):
    # So that all of them read what was there before the step, in whatever order they come.
    workload = family.generate(np.random.default_rng(0), 1)
    sends, schedule = part(family, 0, "send"), family.schedule
    own, read = workload.object[0, sends], workload.inputs[0, sends, 0]
    step = np.repeat(schedule.step, schedule.chunks)
    for now in range(schedule.num_steps):
        written = own[step == now].tolist()
        assert len(set(written)) == len(written)
        assert not set(written) & set(read[step == now].tolist())


@settings(deadline=None, max_examples=40)
@given(family=families())
def test_who_overwrites_an_object_has_waited_for_all_who_read_it(family):
    # The simulator makes a task wait only for those who wrote what it uses.
    workload = family.generate(np.random.default_rng(0), 1)
    waited_for: list[int] = []  # of every task, a bit for each task that it comes after in any case
    writer: dict[int, int] = {}
    readers: dict[int, int] = {}
    for task in range(workload.num_tasks):
        own = int(workload.object[0, task])
        read = [obj for obj in workload.inputs[0, task].tolist() if obj != NO_OBJECT]
        before = 0
        for obj in (own, *read):
            if obj in writer:
                before |= waited_for[writer[obj]] | 1 << writer[obj]
        assert not readers.get(own, 0) & ~before
        waited_for.append(before)
        writer[own], readers[own] = task, 0
        for obj in read:
            readers[obj] = readers.get(obj, 0) | 1 << task


def tasks_of(workload: Workload) -> list[tuple]:
    """What each task of the first episode uses and does, sorted."""
    columns = (workload.object, workload.flops, workload.bytes, workload.write_fraction, workload.object_bytes)
    read = [tuple(obj for obj in reads if obj != NO_OBJECT) for reads in workload.inputs[0].tolist()]
    return sorted(zip(*(column[0].tolist() for column in columns), read, strict=True))


@settings(deadline=None, max_examples=40)
@given(family=families(), seed=st.integers(0, 2**32))
def test_the_tasks_are_those_of_a_draft_with_an_all_reduce_in_it(family, seed):
    family = replace(family, num_steps=1, compute_sigma=0.0, mean_gap_s=0.0)
    workload, p, c = family.generate(np.random.default_rng(seed), 1), family.num_ranks, family.schedule.num_chunks
    chunk_bytes = float(workload.object_bytes[0, p])
    draft = GraphDraft()
    replicas = [draft.add_object(c * chunk_bytes, kept=True) for _ in range(p)]
    gradients = [[draft.add_object(chunk_bytes) for _ in range(c)] for _ in range(p)]
    flops = family.flops_per_element * chunk_bytes / 4
    for rank in range(p):
        draft.add_task(rank, replicas[rank], num_bytes=c * chunk_bytes)
        for chunk in gradients[rank]:
            draft.add_task(rank, chunk, flops=flops, num_bytes=chunk_bytes, reads=[(replicas[rank], chunk_bytes)])
    vectors = [[[chunk] for chunk in gradients[replica]] for replica in replica_of_rank(family, workload)]
    sizes = {"object_bytes": chunk_bytes, "bytes_per_element": family.bytes_per_element}
    add_all_reduce(draft, family.schedule, vectors, [[rank] for rank in range(p)], **sizes)
    for rank in range(p):
        moved = {"flops": 2 * c * chunk_bytes / 4, "num_bytes": 2 * c * chunk_bytes, "write_fraction": 0.5}
        draft.add_task(rank, replicas[rank], reads=[(chunk, chunk_bytes) for chunk in gradients[rank]], **moved)
    drafted = draft.workload("drafted", num_episodes=1, flops_per_s=40e9, bytes_per_s=20e9)
    assert tasks_of(drafted) == tasks_of(workload)


def test_gradients_are_created_by_computations_and_freed_by_the_update():
    family = AllReduce("halving-doubling", num_ranks=5, num_steps=2)
    workload = family.generate(np.random.default_rng(0), 1)
    gradients = workload.object[0, part(family, 0, "compute")], workload.object[0, part(family, 1, "compute")]
    assert np.concatenate(gradients).tolist() == list(range(5, workload.num_objects))
    for step in range(2):
        update = part(family, step, "update").start + owner(family, gradients[step])
        np.testing.assert_array_equal(workload.freed_after[0, gradients[step]], update)


# Two routes: bytes against the closed forms, time against the schedule on the machine's links


@settings(deadline=None, max_examples=60)
@given(family=families(most_ranks=20))
def test_sent_bytes_are_those_of_the_closed_form(family):
    workload, p, g = family.generate(np.random.default_rng(0), 1), family.num_ranks, family.group_ranks
    for step in range(family.num_steps):
        sent = workload.input_bytes[0, part(family, step, "send")].sum(dtype=float)
        gradient = workload.input_bytes[0, part(family, step, "update")].sum(dtype=float) / p
        # At 1 byte/s the seconds of a closed form are the bytes of a rank, or of a group out of its own link.
        if family.algorithm == "ring":
            expected = p * ring_s(p, gradient, 1.0)
        elif family.algorithm == "hierarchical":
            groups = Groups(g, 1.0, 1.0, num_groups=p // g)
            expected = p * groups.intra_s(gradient) + p // g * groups.inter_s(gradient)
        else:
            q = 1 << (p.bit_length() - 1)
            expected = q * halving_doubling_s(q, gradient, 1.0) + 2 * (p - q) * gradient
        assert sent == pytest.approx(expected, rel=1e-6)


def played(
    family: AllReduce, workload: Workload, topology: Topology, window_s: float, order: np.ndarray | None
) -> tuple[np.ndarray, float]:
    """Play the first episode: when each task ends, shape (T,), and when the last one does.

    Args:
        family: what made the workload.
        workload: its episodes.
        topology: the machine.
        window_s: tau.
        order: the node on which each rank of the schedule computes and keeps its objects, shape (p,); every task and
            its object anywhere, at random, when None.
    """
    simulator = Simulator(topology, workload, 1, window_s=window_s)
    simulator.reset(0)
    if order is None:
        actions = np.random.default_rng(0).integers(topology.num_nodes, size=(workload.num_tasks, 2))
    else:
        node = np.empty(family.num_ranks, np.int64)
        node[replica_of_rank(family, workload)] = order
        actions = np.repeat(node[owner(family, workload.object[0])][:, None], 2, axis=1)
    ends = []
    for action in actions:
        now_s = float(simulator.state.now_s[0])
        outcome = simulator.step(action[None])
        ends.append(now_s + float(outcome.exec_s[0] + outcome.comm_s[0]))
    return np.array(ends), float(simulator.totals.last_finish_s[0])


def reduce_s(family: AllReduce, topology: Topology, window_s: float, order: np.ndarray) -> float:
    """Seconds from the end of the last computation to that of the last send, in the simulator."""
    ends, _ = played(family, family.generate(np.random.default_rng(3), 1), topology, window_s, order)
    return float(ends[part(family, 0, "send")].max() - ends[part(family, 0, "compute")].max())


def fast_memory(topology: Topology) -> Topology:
    """The same links, and nothing else takes time: sends read over links, and a node's own memory is instant."""
    local = np.eye(topology.num_nodes, dtype=bool)
    return replace(
        topology,
        flops_per_s=np.full(topology.num_nodes, 1e18),
        memory_bandwidth_bytes_per_s=np.full(topology.num_nodes, 1e18),
        bandwidth_bytes_per_s=np.where(local, 1e18, topology.bandwidth_bytes_per_s),
        outstanding_bytes=1e12,  # so that lines in other caches cost nothing either
        loaded_latency=LoadedLatency(a=0.0, c=0.0, saturated=1.0),
    )


CUBE = eight_socket_cube()
ONE_STEP = AllReduce(num_steps=1, median_gradient_bytes=GRADIENT_BYTES, **SAME_SIZES)
CHUNK_S = GRADIENT_BYTES / 8 / 30e9  # a chunk over a link of the cube


@pytest.mark.parametrize("window", [0.1, 1.0, 3.0])
def test_a_ring_that_keeps_its_links_busy_takes_as_long_as_the_closed_form(window):
    # Each link carries one send a step; what has ended before shares nothing, however long traffic is remembered. The
    # chunks' splitting at the source is what is left: within 1%.
    simulated = reduce_s(ONE_STEP, fast_memory(CUBE), window * CHUNK_S, ring_order(CUBE))
    assert simulated == pytest.approx(ring_s(8, GRADIENT_BYTES, 30e9, 25e-9), rel=0.01)
    assert simulated == pytest.approx(schedule_s(ONE_STEP.schedule, CUBE, ring_order(CUBE), GRADIENT_BYTES), rel=0.01)


def test_sends_that_start_at_once_over_a_link_share_it():
    # Halving sends 4, 2 and 1 chunks over links of their own, tasks that start at once. The n-th to be decided finds
    # n - 1 streams of its own size with all left, x = 1 for each: 1 + 2 (n - 1) (1 + 1/2) / (1 + 1 + 1/2) chunks' time.
    family = replace(ONE_STEP, algorithm="halving-doubling")
    workload = family.generate(np.random.default_rng(3), 1)
    ends, _ = played(family, workload, fast_memory(CUBE), CHUNK_S, np.arange(8))
    step_of_task = np.repeat(family.schedule.step, family.schedule.chunks)
    sends = ends[part(family, 0, "send")]
    ends_of_step = [ends[part(family, 0, "compute")].max(), *(sends[step_of_task == step].max() for step in range(3))]
    np.testing.assert_allclose(np.diff(ends_of_step) / CHUNK_S, [1 + 1.2 * 3, 1 + 1.2, 1.0], rtol=0.01)


@pytest.mark.parametrize(("order", "most"), [(ring_order(CUBE), 1.2), (np.arange(8), 1.05)], ids=["cube", "numbers"])
def test_on_the_cube_a_ring_takes_its_sends_and_its_additions_and_not_much_more(order, most):
    # To the sends the simulator adds, one after another, what each task moves in its own memory at 90 GB/s: two
    # chunks in the seven steps that add, one in the seven that copy. What is left of the 103 ms along the cube's edges
    # (expected: 58 + 29) and of the 211 ms in numerical order (175 + 29) is sharing between tasks, the splitting of
    # chunks, and lines still in the cache of who wrote them.
    expected_s = schedule_s(ONE_STEP.schedule, CUBE, order, GRADIENT_BYTES) + 7 * 3 * GRADIENT_BYTES / 8 / 90e9
    assert 1.0 <= reduce_s(ONE_STEP, CUBE, 0.02, order) / expected_s <= most


def test_on_the_cube_the_ring_order_beats_the_numerical_one_and_that_beats_chance():
    family = replace(ONE_STEP, num_steps=2)
    workload = family.generate(np.random.default_rng(3), 1)
    best, numerical, chance = (
        played(family, workload, CUBE, 0.02, order)[1] for order in (ring_order(CUBE), np.arange(8), None)
    )
    assert best < 0.8 * numerical
    assert numerical < 0.5 * chance


def test_sends_of_a_step_run_at_once_in_the_simulator():
    workload = ONE_STEP.generate(np.random.default_rng(3), 1)
    ends, _ = played(ONE_STEP, workload, fast_memory(CUBE), 0.1 * CHUNK_S, ring_order(CUBE))
    by_step = ends[part(ONE_STEP, 0, "send")].reshape(14, 8)
    np.testing.assert_allclose(by_step, np.broadcast_to(by_step[:, :1], by_step.shape), rtol=1e-3)
    assert all(after > before for before, after in pairwise(by_step[:, 0]))


# Bad input


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"algorithm": "tree"}, "algorithm must be one of ring, hierarchical, halving-doubling, got 'tree'."),
        ({"num_ranks": 0}, "num_ranks must be a whole number >= 1, got 0."),
        ({"num_ranks": 2.5}, "num_ranks must be a whole number >= 1, got 2.5."),
        ({"num_steps": 0}, "num_steps must be a whole number >= 1, got 0."),
        ({"group_ranks": 0}, "group_ranks must be a whole number >= 1, got 0."),
        ({"bytes_per_element": -4}, "bytes_per_element must be a whole number >= 1, got -4."),
        (
            {"algorithm": "hierarchical", "group_ranks": 3},
            "group_ranks must divide num_ranks (8), got 3.",
        ),
        ({"median_gradient_bytes": 0.0}, "median_gradient_bytes must be > 0, got 0.0."),
        ({"median_gradient_bytes": float("inf")}, "median_gradient_bytes must be > 0, got inf."),
        ({"gradient_bytes_sigma": -0.1}, "gradient_bytes_sigma must be >= 0, got -0.1."),
        ({"flops_per_element": float("nan")}, "flops_per_element must be >= 0, got nan."),
        ({"compute_sigma": -1.0}, "compute_sigma must be >= 0, got -1.0."),
        ({"mean_gap_s": -1.0}, "mean_gap_s must be >= 0, got -1.0."),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, unescaped
        AllReduce(**parameters)
    assert str(caught.value) == message


def test_groups_matter_to_the_hierarchy_alone():
    one, other = (AllReduce("ring", group_ranks=g).generate(np.random.default_rng(0), 1) for g in (3, 4))
    np.testing.assert_array_equal(one.object, other.object)


def test_a_tiny_gradient_still_has_an_element_in_every_chunk():
    workload = AllReduce(median_gradient_bytes=1.0).generate(np.random.default_rng(0), 1)
    assert workload.object_bytes.min() == 4.0

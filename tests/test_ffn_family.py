"""Feed-forward layers as a workload: its tasks compute the layers, and send between ranks what the closed form says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numa_rl.communication.ring_order import ring_order
from numa_rl.machines.builders import eight_socket_cube
from numa_rl.simulator.simulator import Simulator
from numa_rl.transformer.ffn import FeedForward, sent_bytes
from numa_rl.transformer.ffn_run import GELU, feed_forward
from numa_rl.transformer.ffn_ways import WAYS
from numa_rl.workloads.ffn import Ffn
from numa_rl.workloads.workload import NEVER, NO_OBJECT, Workload

CUBE = eight_socket_cube()
COLUMN_ROW = WAYS[0]
SMALL = Ffn(2, 1, 1, 1, median_tokens=5.0, tokens_sigma=0.0, median_width=4.0, width_sigma=0.0)


def families(most_ranks: int = 5) -> st.SearchStrategy[Ffn]:
    return st.builds(
        Ffn,
        num_ranks=st.integers(1, most_ranks),
        lanes=st.integers(1, 5),
        num_layers=st.integers(1, 3),
        num_batches=st.integers(1, 3),
        median_tokens=st.sampled_from([1.0, 6.0]),
        median_width=st.sampled_from([1.0, 40.0]),
        bytes_per_element=st.sampled_from([1, 2, 4]),
    )


def generated(family: Ffn, episodes: int = 1, seed: int = 0) -> Workload:
    return family.generate(np.random.default_rng(seed), episodes)


def shapes(family: Ffn, workload: Workload, episode: int = 0) -> list[FeedForward]:
    """The sizes of every micro-batch, from the sizes of its X and of a share of W_1 as they are loaded."""
    size = dict(zip(workload.object[episode].tolist(), workload.object_bytes[episode].tolist(), strict=True))
    b, p, first_x = family.bytes_per_element, family.num_ranks, 2 * family.num_ranks * family.num_layers
    width = round((size[0] * p / (4 * b)) ** 0.5)
    tokens = [round(size[first_x + p * batch] / width / b) for batch in range(family.num_batches)]
    return [FeedForward(n, width, 4 * width, b) for n in tokens]


def played(family: Ffn, workload: Workload, nodes: np.ndarray, window_s: float = 0.02) -> Simulator:
    """The first episode with every task, and the object it owns, on the node of the rank that it belongs to."""
    simulator = Simulator(CUBE, workload, 1, window_s=window_s)
    simulator.reset(0)
    for rank in family.object_rank()[workload.object[0]].tolist():
        simulator.step(np.full((1, 2), nodes[rank]))
    return simulator


# Known answers


def test_two_ranks_with_a_lane_each_by_hand():
    # 5 tokens of width 4 and inner width 16 in elements of 2 bytes; a rank has 8 columns of W_1 and 8 rows of W_2.
    workload = generated(SMALL)
    # Objects: W_1 and W_2 of rank 0 and of rank 1, X of each, H of each, and two pieces of Y of each.
    size = dict(zip(workload.object[0].tolist(), workload.object_bytes[0].tolist(), strict=True))
    assert size == {**dict.fromkeys(range(4), 64.0), 4: 40.0, 5: 40.0, 6: 80.0, 7: 80.0, **dict.fromkeys((8, 9), 20.0),
                    **dict.fromkeys((10, 11), 20.0)}  # fmt: skip
    tasks = sorted(
        (int(obj), *(int(read) for read in reads if read != NO_OBJECT), round(float(flops)))
        for obj, reads, flops in zip(workload.object[0], workload.inputs[0], workload.flops[0], strict=True)
    )
    assert tasks == sorted(
        [
            *((obj, 0) for obj in range(6)),  # loaders
            *((6, 4, 0, 2 * 5 * 4 * 8), (7, 5, 2, 2 * 5 * 4 * 8)),  # H = f(X W_1)
            *((8, 6, 1, 2 * 5 * 8 * 2), (9, 6, 1, 2 * 5 * 8 * 2), (10, 7, 3, 2 * 5 * 8 * 2), (11, 7, 3, 2 * 5 * 8 * 2)),
            *((10, 8, 10), (9, 11, 10)),  # each adds what the other has of a chunk, 10 elements
            *((8, 10, 0), (11, 9, 0)),  # and gets the sum of the other
        ]
    )
    assert workload.read_only[0].tolist() == [True] * 4 + [False] * 8
    assert [obj for obj in range(12) if workload.freed_after[0, obj] == NEVER] == [0, 1, 2, 3, 8, 9, 10, 11]


def test_an_episode_has_as_many_tasks_as_the_docstring_says():
    assert generated(Ffn()).num_tasks == 2 * 4 * 2 + 4 * 2 + 2 * 2 * (4 * (4 + 4) + 2 * 3 * 4) == 248
    assert generated(Ffn(num_ranks=2, lanes=5)).num_tasks == 8 + 4 + 2 * 2 * (2 * (5 + 6) + 2 * 6)


def test_draws_have_their_medians():
    workload = generated(Ffn(), 4000)
    found = [shapes(Ffn(), workload, episode) for episode in range(0, 4000, 4)]
    assert np.median([shape.tokens for batches in found for shape in batches]) == pytest.approx(4, abs=0.5)
    widths = np.array([batches[0].width for batches in found])
    assert np.median(widths) == pytest.approx(2048, rel=0.05)
    assert np.log(widths).std() == pytest.approx(0.5, rel=0.1)
    assert not (widths % 16).any()


# Laws


@settings(deadline=None, max_examples=40)
@given(family=families(), seed=st.integers(0, 2**32))
def test_tasks_executed_on_real_numbers_are_the_layers(family, seed):
    workload, rng = generated(family, seed=seed), np.random.default_rng(seed)
    p, lanes, layers, batches = family.num_ranks, family.lanes, family.num_layers, family.num_batches
    pieces, each = family.num_pieces, shapes(family, workload)
    d, m = each[0].width, each[0].inner_width
    w_1 = rng.normal(size=(layers, d, m)) / np.sqrt(d)
    w_2 = rng.normal(size=(layers, m, d)) / np.sqrt(m)
    given = [rng.normal(size=(shape.tokens, d)) for shape in each]
    values = {}  # of every object
    for layer in range(layers):
        for rank in range(p):
            share = slice(rank * m // p, (rank + 1) * m // p)
            values[2 * (p * layer + rank)] = w_1[layer][:, share]
            values[2 * (p * layer + rank) + 1] = w_2[layer][share]
    for batch, x in enumerate(given):
        values |= dict.fromkeys(range(2 * p * layers + p * batch, 2 * p * layers + p * (batch + 1)), x)
    first = 2 * p * layers + p * batches  # object of the first product
    per_layer = p * (lanes + pieces)
    for task, obj in enumerate(workload.object[0].tolist()):
        if obj < first:
            continue
        place = (obj - first) % per_layer
        read = [values[other] for other in workload.inputs[0, task].tolist() if other != NO_OBJECT]
        if len(read) == 1:  # a send
            adds = workload.write_fraction[0, task] == 0.5
            values[obj] = values[obj] + read[0] if adds else read[0]
        elif place < p * lanes:
            values[obj] = GELU.value(np.hstack(read[:-1]) @ np.hsplit(read[-1], lanes)[place % lanes])
        else:
            values[obj] = np.hstack(read[:-1]) @ np.hsplit(read[-1], pieces)[(place - p * lanes) % pieces]
    for batch, x in enumerate(given):
        for layer in range(layers):
            x = feed_forward(x, w_1[layer], w_2[layer])
        last = first + per_layer * ((layers - 1) * batches + batch) + p * lanes
        for rank in range(p):
            output = np.hstack([values[last + rank * pieces + piece] for piece in range(pieces)])
            np.testing.assert_allclose(output, x, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(family=families(), seed=st.integers(0, 2**32))
def test_between_nodes_goes_what_the_closed_form_says_and_nothing_else(family, seed):
    workload = generated(family, seed=seed)
    simulator = played(family, workload, ring_order(CUBE, range(family.num_ranks)))
    each = shapes(family, workload)
    expected = family.num_layers * sum(sent_bytes(COLUMN_ROW, shape, family.num_ranks) for shape in each)
    assert simulator.totals.remote_bytes[0] == pytest.approx(expected, rel=1e-6)
    products = family.num_layers * sum(4 * shape.tokens * shape.width * shape.inner_width for shape in each)
    additions = family.num_layers * sum((family.num_ranks - 1) * shape.tokens * shape.width for shape in each)
    assert workload.flops[0].sum(dtype=np.float64) == pytest.approx(products + additions, rel=1e-6)


def test_all_ranks_on_one_node_send_nothing_between_nodes():
    assert played(Ffn(), generated(Ffn()), np.zeros(4, int)).totals.remote_bytes[0] == 0.0


@settings(deadline=None, max_examples=30)
@given(family=families(), overhead_s=st.sampled_from([0.0, 1e-4]), seed=st.integers(0, 2**32))
def test_a_larger_pool_extends_a_smaller_one(family, overhead_s, seed):
    # Also where sends take so long that their place among the products depends on the sizes.
    family = replace(family, median_width=256.0, message_overhead_s=overhead_s)
    few, many = (generated(family, episodes, seed) for episodes in (1, 4))
    for name in ("object", "flops", "inputs", "input_bytes", "object_bytes", "freed_after"):
        np.testing.assert_array_equal(getattr(few, name), getattr(many, name)[:1])


def test_another_seed_is_another_pool():
    assert not np.array_equal(generated(Ffn()).flops, generated(Ffn(), seed=1).flops)


@settings(deadline=None, max_examples=20)
@given(family=families())
def test_ranks_read_each_others_objects_only_to_send(family):
    workload, rank = generated(family), family.object_rank()
    assert len(rank) == workload.num_objects
    assert (np.bincount(rank) == workload.num_objects // family.num_ranks).all()
    own, read = rank[workload.object[0]], rank[workload.inputs[0]]
    from_others = (read != own[:, None]) & (workload.inputs[0] != NO_OBJECT)
    sends = family.num_layers * family.num_batches * 2 * (family.num_ranks - 1) * family.num_pieces
    assert from_others.sum() == sends
    assert (from_others.sum(axis=1) <= 1).all()


# In the simulator


def test_the_layout_beats_chance_on_the_same_nodes():
    family = Ffn(num_batches=1)
    workload = generated(family, seed=2)
    good = played(family, workload, ring_order(CUBE, range(4))).totals.last_finish_s[0]
    simulator = Simulator(CUBE, workload, 1, window_s=0.02)
    simulator.reset(0)
    for action in np.random.default_rng(0).integers(4, size=(workload.num_tasks, 2)):
        simulator.step(action[None])
    assert good < 0.7 * simulator.totals.last_finish_s[0]


def test_messages_cost_what_software_adds_to_each():
    free, slow = (generated(Ffn(message_bytes=1000, message_overhead_s=overhead)) for overhead in (0.0, 1e-3))
    assert not free.overhead_s.any()
    sends = (slow.overhead_s > 0)[0]
    assert sends.sum() == 2 * 2 * 24
    messages = np.ceil(slow.input_bytes[0, sends, 0] / 1000)
    assert messages.max() > 1
    np.testing.assert_allclose(slow.overhead_s[0, sends], 1e-3 * messages, rtol=1e-6)


# Bad input


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"num_ranks": 0}, "num_ranks must be a whole number >= 1, got 0."),
        ({"lanes": 1.5}, "lanes must be a whole number >= 1, got 1.5."),
        ({"num_layers": 0}, "num_layers must be a whole number >= 1, got 0."),
        ({"num_batches": -1}, "num_batches must be a whole number >= 1, got -1."),
        ({"bytes_per_element": 0}, "bytes_per_element must be a whole number >= 1, got 0."),
        ({"median_tokens": 0.0}, "median_tokens must be > 0, got 0.0."),
        ({"median_width": float("inf")}, "median_width must be > 0, got inf."),
        ({"tokens_sigma": float("nan")}, "tokens_sigma must be in 0..2, got nan."),
        ({"width_sigma": -0.1}, "width_sigma must be in 0..2, got -0.1."),
        ({"message_bytes": 0.0}, "message_bytes must be > 0, got 0.0."),
        ({"message_overhead_s": -1.0}, "message_overhead_s must be >= 0, got -1.0."),
        ({"flops_per_s": 0.0}, "flops_per_s must be > 0, got 0.0."),
        ({"bytes_per_s": -1.0}, "bytes_per_s must be > 0, got -1.0."),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, unescaped
        Ffn(**parameters)
    assert str(caught.value) == message

"""Attention as a workload: its tasks compute attention, and move between nodes what the closed form says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numa_rl.grid import place_grid
from numa_rl.machines.builders import eight_socket_cube
from numa_rl.simulator.simulator import Simulator
from numa_rl.transformer.attention import head_range, kv_head_range
from numa_rl.transformer.attention_choice import split_cost
from numa_rl.transformer.attention_count import SplitCount
from numa_rl.transformer.divisors import divisors
from numa_rl.transformer.online_softmax import OnlineSoftmax, plain_attention
from numa_rl.transformer.sequence_order import sequence_parts
from numa_rl.workloads.attention import ORDERS, SplitAttention
from numa_rl.workloads.workload import NEVER, NO_OBJECT, Workload

CUBE = eight_socket_cube()


@st.composite
def families(draw: st.DrawFn, most_places: int = 8) -> SplitAttention:
    heads = draw(st.sampled_from([1, 4, 6, 12]))
    head_parts = draw(st.sampled_from([parts for parts in divisors(heads) if parts <= most_places]))
    return SplitAttention(
        head_parts=head_parts,
        sequence_parts=draw(st.integers(1, most_places // head_parts)),
        order=draw(st.sampled_from(ORDERS)),
        causal=draw(st.booleans()),
        lanes=draw(st.integers(1, 4)),
        median_tokens=draw(st.sampled_from([1.0, 300.0])),
        compute_sigma=0.0,
        width=2 * heads,
        heads=heads,
        kv_heads=draw(st.sampled_from(divisors(heads))),
        batch=draw(st.integers(1, 2)),
    )


def generated(family: SplitAttention, episodes: int = 1, seed: int = 0) -> Workload:
    return family.generate(np.random.default_rng(seed), episodes)


def lengths(family: SplitAttention, workload: Workload) -> list[int]:
    """Tokens of each episode, from the outputs, which live to the end and hold every token once."""
    kept = workload.freed_after[0] == NEVER
    first = np.array([np.flatnonzero(workload.object[0] == obj)[0] for obj in np.flatnonzero(kept)])
    sizes = workload.object_bytes[:, first].sum(axis=1)
    return np.rint(sizes / (family.batch * family.width * family.bytes_per_element)).astype(int).tolist()


def played(family: SplitAttention, workload: Workload, nodes: np.ndarray) -> Simulator:
    """All episodes with every task, and the object it owns, on the node of the place that it belongs to."""
    simulator = Simulator(CUBE, workload, workload.num_episodes, window_s=0.02)
    simulator.reset(np.arange(workload.num_episodes))
    place = family.object_place()
    for task in range(workload.num_tasks):
        node = nodes[place[workload.object[:, task]]]
        simulator.step(np.stack([node, node], axis=1))
    return simulator


def placed(family: SplitAttention) -> np.ndarray:
    return place_grid(CUBE, family.sequence_parts, family.head_parts)


# Known answers


def test_two_head_parts_with_a_lane_each_by_hand():
    # 4 tokens, 2 heads of 3 elements of 2 bytes, one head each: a head of a token is 6 bytes.
    family = SplitAttention(
        2, 1, "contiguous", False, 1, 1.0, 0.0, 0.0, width=6, heads=2, kv_heads=2, bytes_per_element=2
    )
    workload = generated(family)
    assert family.object_place().tolist() == [0, 1, 0, 0, 1, 1, 0, 1, 0, 1, 0, 1]
    # Homes 0 and 1; queries 2 and 4; keys and values 3 and 5; sums 6 and 7; outputs 8 and 9, then of home tokens.
    tasks = {
        int(obj): (
            {int(read): float(size) for read, size in zip(reads, sizes, strict=True) if read != NO_OBJECT},
            float(moved),
            float(flops),
        )
        for obj, reads, sizes, moved, flops in zip(
            workload.object[0],
            workload.inputs[0],
            workload.input_bytes[0],
            workload.bytes[0],
            workload.flops[0],
            strict=True,
        )
    }
    sums = 4 * (3 + 2) * 4
    assert tasks == {
        **dict.fromkeys((0, 1), ({}, 2 * 36.0, 0.0)),
        **dict.fromkeys((2, 4), ({0: 12.0, 1: 12.0}, 24.0, 0.0)),
        **dict.fromkeys((3, 5), ({0: 24.0, 1: 24.0}, 48.0, 0.0)),
        6: ({2: 24.0, 3: 48.0}, sums, 4 * 4 * 4 * 3),
        7: ({4: 24.0, 5: 48.0}, sums, 4 * 4 * 4 * 3),
        8: ({6: sums}, 24.0, 0.0),
        9: ({7: sums}, 24.0, 0.0),
        **dict.fromkeys((10, 11), ({8: 12.0, 9: 12.0}, 24.0, 0.0)),
    }
    assert np.flatnonzero(workload.freed_after[0] == NEVER).tolist() == [10, 11]


@pytest.mark.parametrize(
    ("family", "tasks"),
    [
        (SplitAttention(), 8 * (1 + 4 * (2 * 4 + 3))),
        (SplitAttention(1, 8), 8 * 4 * (2 + 8 + 7 + 1)),
        (SplitAttention(8, 1), 8 * (1 + 4 * (2 + 1 + 2))),
        # Parts 0 to 3 have 1 to 4 steps of work, all but the first of them after a copy.
        (SplitAttention(2, 4, "contiguous"), 8 * (1 + 4 * 4) + 2 * 4 * (10 + 6)),
    ],
)
def test_episodes_have_as_many_tasks_as_the_phases_need(family, tasks):
    assert generated(family).num_tasks == tasks


def test_the_default_suits_a_suite_of_episodes():
    workload = generated(SplitAttention(), 2000)
    assert 150 <= workload.num_tasks <= 400
    assert workload.is_one_graph
    assert np.median(lengths(SplitAttention(), workload)) == 128


def test_lengths_are_lognormal_in_whole_units():
    family = SplitAttention(1, 2, median_tokens=1000.0, lanes=1)
    tokens = np.array(lengths(family, generated(family, 2000)))
    assert np.median(tokens) == pytest.approx(1000, rel=0.05)
    assert np.log(tokens).std() == pytest.approx(0.7, rel=0.05)
    assert not (tokens % 4).any()
    assert (tokens % 8).any()


# Laws


@settings(deadline=None, max_examples=30)
@given(families(), st.integers(0, 2**32 - 1))
def test_tasks_executed_on_real_numbers_are_attention(family, seed):
    """Every object gets its arrays from what its tasks read, in the order of tasks; masks follow the tokens."""
    family = SplitAttention(**{**vars_of(family), "median_tokens": 1.0, "tokens_sigma": 0.0})
    workload, shape = generated(family), family.shape(family.token_unit)
    rng = np.random.default_rng(seed)
    q, k, v = (
        rng.standard_normal((shape.batch, heads, shape.tokens, 2)).astype(np.float32)
        for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
    )
    program = _Executed(family, q, k, v)
    for task, obj in enumerate(workload.object[0].tolist()):
        program.run(obj, [read for read in workload.inputs[0, task].tolist() if read != NO_OBJECT])
    np.testing.assert_allclose(program.output, plain_attention(q, k, v, causal=family.causal), rtol=0, atol=1e-5)


def vars_of(family: SplitAttention) -> dict[str, object]:
    return {name: getattr(family, name) for name in family.__dataclass_fields__}


class _Executed:
    """What objects hold: the numbers of objects are those of the phases, each by place and then by lane."""

    def __init__(self, family: SplitAttention, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
        self.family, self.arrays = family, (q, k, v)
        self.shape, self.split = family.shape(q.shape[2]), family.split
        self.parts = [
            np.array([token for run in part for token in run])
            for part in sequence_parts(q.shape[2], family.sequence_parts, self.split.order)
        ]
        self.place = family.object_place()
        p, per = self.split.num_nodes, family.lanes * self.split.num_nodes
        self.first_sums = 2 * per + (p if family.head_parts > 1 else 0)
        self.first_output = len(self.place) - per * (2 if family.head_parts > 1 else 1)
        self.held: dict[int, object] = {}
        self.output = np.full_like(q, np.nan)

    def run(self, obj: int, reads: list[int]) -> None:
        h, lanes, per = self.split.head_parts, self.family.lanes, self.family.lanes * self.split.num_nodes
        row, column = divmod(int(self.place[obj]), h)
        if h > 1 and obj < self.split.num_nodes:
            assert not reads
            return
        if obj < self.first_sums:
            self._given(obj, row, column, reads)
        elif obj < self.first_sums + per:
            self._attend(obj, row, reads)
        elif obj < self.first_output:
            (piece,) = reads
            assert self.place[piece] == (row - 1) % self.split.sequence_parts * h + column
            self.held[obj] = self.held[piece]
        elif obj < self.first_output + per:
            (sums,) = reads
            self.held[obj] = (self.held[sums][0], self.held[sums][1].result())
            if h == 1:
                self.output[:, :, self.held[obj][0]] = self.held[obj][1]
        else:
            lane = (obj - self.first_output) % lanes
            share = len(self.parts[row]) // h
            home = self.parts[row][column * share : (column + 1) * share]
            for read in reads:
                tokens, values = self.held[read]
                mine = np.isin(tokens, home)
                heads = head_range(self.shape, self.split, int(self.place[read]) % h)
                self.output[:, heads.start : heads.stop, tokens[mine]] = values[:, :, mine]
            assert (read - self.first_output) % lanes == lane

    def _given(self, obj: int, row: int, column: int, reads: list[int]) -> None:
        """Queries, or keys and values, of a lane: with one head part all places' queries come first."""
        h, lanes, per = self.split.head_parts, self.family.lanes, self.family.lanes * self.split.num_nodes
        if h == 1:
            is_query, lane = obj < per, obj % lanes
        else:
            within = (obj - self.split.num_nodes) % (2 * lanes)
            is_query, lane = within < lanes, within % lanes
            assert sorted(reads) == list(range(row * h, (row + 1) * h))
        tokens = self.parts[row][lane::lanes]
        of = head_range if is_query else kv_head_range
        heads = np.array(of(self.shape, self.split, column))
        chosen = self.arrays[:1] if is_query else self.arrays[1:]
        self.held[obj] = (tokens, *(array[:, heads][:, :, tokens] for array in chosen))

    def _attend(self, obj: int, row: int, reads: list[int]) -> None:
        """A lane's queries against the keys and values of a step."""
        query, *pieces = reads
        tokens, q = self.held[query]
        assert len(pieces) == self.family.lanes
        if obj not in self.held:
            self.held[obj] = (tokens, OnlineSoftmax(q.shape))
        for piece in pieces:
            key_tokens, k, v = self.held[piece]
            heads = head_range(self.shape, self.split, int(self.place[obj]) % self.split.head_parts)
            kv = np.array(heads) // (self.shape.heads // self.shape.kv_heads)
            kv -= kv[0]
            scores = q @ k[:, kv].swapaxes(-1, -2) / np.float32(np.sqrt(2.0))
            if self.family.causal:
                scores = np.where(key_tokens <= tokens[:, None], scores, np.float32(-np.inf))
            self.held[obj][1].add(slice(0, len(tokens)), scores, v[:, kv])


@settings(deadline=None, max_examples=40)
@given(families(), st.integers(0, 2**32 - 1))
def test_between_nodes_goes_what_the_closed_form_says_and_all_arithmetic_is_there(family, seed):
    workload = generated(family, 2, seed)
    simulator = played(family, workload, placed(family))
    counts = [SplitCount(family.shape(tokens), family.split) for tokens in lengths(family, workload)]
    expected = [count.total_bytes for count in counts]
    np.testing.assert_allclose(simulator.totals.remote_bytes, expected, rtol=1e-6)
    flops = workload.flops.sum(axis=1, dtype=np.float64)
    np.testing.assert_allclose(flops, [count.step_flops.sum() for count in counts], rtol=1e-6)


@pytest.mark.parametrize(
    "family",
    [
        SplitAttention(),
        SplitAttention(3, 2, width=192, heads=6, kv_heads=2),  # the middle nodes need both heads of keys
    ],
)
def test_bytes_between_nodes_are_exactly_the_closed_forms(family):
    workload = generated(family, 16)
    expected = [SplitCount(family.shape(tokens), family.split).total_bytes for tokens in lengths(family, workload)]
    assert played(family, workload, placed(family)).totals.remote_bytes.tolist() == expected


def test_places_differ_in_how_long_they_compute():
    family = SplitAttention(1, 2, "striped", lanes=1, causal=False, tokens_sigma=0.0, compute_sigma=0.5)
    even = generated(replace(family, compute_sigma=0.0))
    longer = [generated(family, 4000).flops[:, task] / even.flops[0, task] for task in np.flatnonzero(even.flops[0])]
    assert np.log(longer).std() == pytest.approx(0.5, rel=0.05)
    assert len(np.unique(np.round(longer, 5), axis=0)) == 2  # a place's tasks together


def test_all_places_on_one_node_move_nothing_between_nodes():
    family = SplitAttention()
    assert played(family, generated(family), np.zeros(8, int)).totals.remote_bytes[0] == 0.0


@pytest.mark.parametrize(
    "family", [SplitAttention(), SplitAttention(1, 3, lanes=2), SplitAttention(4, 1, causal=False)]
)
def test_a_larger_pool_extends_a_smaller_one_and_seeds_differ(family):
    few, many, other = generated(family, 3), generated(family, 40), generated(family, 3, seed=1)
    for name in ("object", "flops", "bytes", "inputs", "input_bytes", "object_bytes", "freed_after"):
        np.testing.assert_array_equal(getattr(few, name), getattr(many, name)[:3])
    assert not np.array_equal(few.flops, other.flops)


# In the simulator


@pytest.mark.parametrize(("h", "s", "causal"), [(8, 1, False), (1, 8, False), (2, 4, True), (4, 2, True)])
def test_of_a_long_sequence_simulator_and_closed_form_tell_the_same_time(h, s, causal):
    # With 8 lanes all cores of a node work; 4096 tokens are long enough for waits between steps to be few. Where the
    # sequence is split, the lanes of a node read over one link at once and share it, which costs up to 5%.
    family = SplitAttention(
        h, s, "zigzag", causal, lanes=8, median_tokens=4096.0, tokens_sigma=0.0, compute_sigma=0.0, bytes_per_element=2
    )
    simulated_s = played(family, generated(family), placed(family)).totals.last_finish_s[0]
    cost = split_cost(family.shape(4096), family.split, CUBE)
    assert simulated_s == pytest.approx(cost.total_s - cost.projection_s, rel=0.02 if s == 1 else 0.05)


def test_contiguous_parts_under_a_causal_mask_take_nearly_twice_as_long_as_zigzag_ones():
    finish_s = {
        order: played(family, generated(family), placed(family)).totals.last_finish_s[0]
        for order in ORDERS
        for family in [SplitAttention(1, 8, order, median_tokens=2048.0, tokens_sigma=0.0)]
    }
    assert 1.6 < finish_s["contiguous"] / finish_s["zigzag"] < 2.0
    assert finish_s["striped"] == pytest.approx(finish_s["zigzag"], rel=0.05)


# Bad input


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"head_parts": 3}, "head_parts must divide heads (32), as each of 1, 2, 4, 8, 16, 32 would, got 3."),
        ({"head_parts": 0}, "head_parts must be a whole number >= 1, got 0."),
        ({"sequence_parts": 2.5}, "sequence_parts must be a whole number >= 1, got 2.5."),
        ({"order": "zig"}, "order must be one of contiguous, zigzag, striped, got 'zig'."),
        ({"lanes": 0}, "lanes must be a whole number >= 1, got 0."),
        ({"median_tokens": 0.0}, "median_tokens must be > 0, got 0.0."),
        ({"tokens_sigma": float("nan")}, "tokens_sigma must be in 0..2, got nan."),
        ({"heads": 3}, "heads must divide width (4096), as 2 or 4 would, got 3."),
        ({"kv_heads": 5}, "kv_heads must divide heads (32), as 4 or 8 would, got 5."),
        ({"batch": 0}, "batch must be a whole number >= 1, got 0."),
        ({"flops_per_s": -1.0}, "flops_per_s must be > 0, got -1.0."),
        ({"bytes_per_s": float("inf")}, "bytes_per_s must be > 0, got inf."),
        (
            {"lanes": 100_000},
            "head_parts, sequence_parts and lanes must make at most 1000000 tasks, got 8800008.",
        ),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, unescaped
        SplitAttention(**parameters)
    assert str(caught.value) == message


def test_lengths_beyond_all_bounds_are_cut():
    family = SplitAttention(1, 2, width=2, heads=1, kv_heads=1, lanes=1, median_tokens=1e30, tokens_sigma=0.0)
    assert lengths(family, generated(family)) == [10**9]

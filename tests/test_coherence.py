from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numa_rl.coherence.caches import Access, Caches
from numa_rl.coherence.protocol import (
    HITM_READER_HOMED_NS,
    HITM_WRITER_HOMED_NS,
    IDLE_NS,
    IMPOSSIBLE,
    LineState,
    TransitionCosts,
    resident_bytes,
    responder_ratios,
    transition_s,
)
from numa_rl.machines.catalog import load_machine

M, E, S, I, F = LineState  # noqa: E741
MEASURED = Path(__file__).parents[1].parent / "shared" / "data" / "machines" / "measured_machines.json"
SOCKETS = np.array([0, 0, 1, 1])
ACROSS = SOCKETS[:, None] != SOCKETS


def test_states_stand_in_the_chapters_order():
    assert [state.name for state in LineState] == ["M", "E", "S", "I", "F"]


def test_default_costs_follow_from_the_measured_means():
    ratio = TransitionCosts().ratio  # 134.41 ns idle, 110.375 and 171.7625 ns of HitM
    np.testing.assert_allclose(ratio[[I, I, S, F], [F, M, M, M]], 110.375 / 134.4125)
    np.testing.assert_allclose(ratio[M, [S, I]], (171.7625 - 110.375) / 2 / 134.4125)
    assert ratio[I, E] == 1.0
    assert not ratio[[E, F, E, S, F, E], [S, S, I, I, I, M]].any()
    assert not ratio.diagonal().any()
    assert np.isnan(ratio).sum() == len(IMPOSSIBLE) == 7


def test_a_holder_answers_with_its_own_transition_added():
    transfer, home, upgrade = 110.375 / 134.4125, (171.7625 - 110.375) / 2 / 134.4125, 110.375 / 134.4125
    ratios = responder_ratios(TransitionCosts())
    assert ratios.dtype == np.float32
    np.testing.assert_allclose(
        ratios, [[transfer + home, transfer, transfer, 0.0], [transfer + home, transfer, transfer, upgrade]], rtol=1e-6
    )


def test_each_cell_of_the_answer_comes_from_its_own_transitions():
    numbers = np.array([[0, 10, 20, 30, 1], [2, 0, 40, 50, 1], [3, 1, 0, 4, 1], [5, 6, 1, 0, 7], [8, 1, 60, 70, 9.0]])
    for before, after in IMPOSSIBLE:
        numbers[before, after] = np.nan
    ratios = responder_ratios(TransitionCosts(numbers, "made up"))
    assert ratios.tolist() == [[27, 47, 67, 9], [35, 55, 75, 8]]


def test_sixteen_lines_in_flight_cost_one_latency():
    assert transition_s(1024, 1.0, 100e-9, 1024) == pytest.approx(100e-9)
    np.testing.assert_allclose(transition_s(np.array([512, 4096]), 0.5, 100e-9, 1024), [25e-9, 200e-9])


def test_what_streams_through_pushes_out_the_oldest():
    cached, passed = np.array([10.0, 10, 10, 10, 200]), np.array([0.0, 90, 95, 300, 0])
    assert resident_bytes(cached, 100.0, passed).tolist() == [10, 10, 5, 0, 100]


def test_the_measured_latencies_are_those_of_the_preset():
    assert (load_machine("xeon-8269cy-snc2").latency_s[ACROSS] * 1e9).round(6).tolist() == list(IDLE_NS)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("idle_latency_ns", IDLE_NS),
        ("cache_to_cache_hitm_ns_writer_homed", HITM_WRITER_HOMED_NS),
        ("cache_to_cache_hitm_ns_reader_homed", HITM_READER_HOMED_NS),
    ],
)
def test_the_measured_latencies_are_those_of_the_source(name, values):
    if not MEASURED.is_file():
        pytest.skip("measured_machines.json is not beside the repository")
    machine = json.loads(MEASURED.read_text(encoding="utf-8"))["machines"]["intel_xeon_8269cy_2s_snc2"]
    assert np.array(machine[name], dtype=float)[ACROSS].tolist() == list(values)


def test_the_matrix_cannot_be_written_and_does_not_follow_its_origin():
    numbers = TransitionCosts().ratio.copy()
    costs = TransitionCosts(numbers, "a copy")
    numbers[I, E] = 9.0
    assert costs.ratio[I, E] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        costs.ratio[I, E] = 2.0


@pytest.mark.parametrize("value", [-1.0, np.inf, np.nan])
def test_a_cost_must_be_finite_and_not_negative(value):
    numbers = TransitionCosts().ratio.copy()
    numbers[S, M] = value
    with pytest.raises(ValueError, match=rf"ratio of S -> M must be finite and >= 0, got {value}\."):
        TransitionCosts(numbers, "broken")


def test_a_transition_that_is_never_made_has_no_cost():
    numbers = TransitionCosts().ratio.copy()
    numbers[I, S] = 1.0
    with pytest.raises(ValueError, match=r"ratio of I -> S must be nan, .* got 1\.0"):
        TransitionCosts(numbers, "broken")


def test_the_matrix_has_five_rows_and_columns():
    with pytest.raises(ValueError, match=r"shape \(5, 5\), .* got \(4, 5\)"):
        TransitionCosts(np.zeros((4, 5)), "broken")


# Two nodes 100 ns apart and 10 ns from themselves, a third 300 ns from both; line 0 lives on node 0, line 1 on node 2.
LATENCY_S = np.array([[10, 100, 300], [100, 10, 300], [300, 300, 10]]) * 1e-9
HOME = np.array([0, 2])
# Numbers that tell every transition from every other: I->F 2, I->M 3, S->M 5, F->M 7, M->S 11, M->I 13.
TOLD_APART = np.array(
    [
        [0, np.nan, 11, 13, np.nan],
        [0, 0, 0, 0, np.nan],
        [5, np.nan, 0, 0, np.nan],
        [3, 1, np.nan, 0, 2],
        [7, np.nan, 0, 0, 0],
    ]
)


def run(*operations: str, costs: TransitionCosts | None = None) -> tuple[Caches, list[Access]]:
    """Operations on line 0, such as "r0" (node 0 reads), "w2" (node 2 writes) or "e1" (node 1 evicts)."""
    caches = Caches(LATENCY_S, HOME, TransitionCosts(TOLD_APART, "made up") if costs is None else costs)
    act = {"r": caches.read, "w": caches.write, "e": caches.evict}
    return caches, [act[operation[0]](0, int(operation[1])) for operation in operations]


@pytest.mark.parametrize(
    ("operations", "states", "cost_ns"),
    [
        (["r1"], [I, E, I], 1 * 100),  # memory at home, node 0
        (["w1"], [I, M, I], 1 * 100),
        (["r1", "r1"], [I, E, I], 0),
        (["r1", "w1"], [I, M, I], 0),
        (["r1", "r0"], [F, S, I], 2 * 100),  # E answers
        (["w1", "r0"], [F, S, I], (2 + 11) * 100),  # M answers
        (["r1", "r0", "r2"], [S, S, F], 2 * 300),  # F answers, not S
        (["r1", "r0", "r0"], [F, S, I], 0),
        (["r1", "w0"], [M, I, I], 3 * 100),
        (["w1", "w2"], [I, I, M], (3 + 13) * 300),
        (["r1", "r0", "w0"], [M, I, I], 7 * 100),  # upgrade from F
        (["r1", "r0", "w1"], [I, M, I], 5 * 100),  # upgrade from S
        (["r2", "r1", "r0", "w0"], [M, I, I], 7 * 300),  # the furthest sharer's answer is waited for
        (["r2", "r1", "w0"], [M, I, I], 3 * 300),
        (["r1", "r0", "e0", "r2"], [I, S, F], 1 * 300),  # only S is left: memory answers
        (["r2", "r1", "e1", "w0"], [M, I, I], 3 * 300),  # memory is near, the sharer's answer is not
        (["r1", "r2", "e2", "w0"], [M, I, I], 3 * 100),
        (["r0", "r2", "r1", "e0", "e1", "w2"], [I, I, M], 5 * 300),  # the last copy, S, asks home
        (["r0", "r2", "e0", "w2"], [I, I, M], 7 * 300),  # the last copy, F, asks home
        (["w1", "e1"], [I, I, I], 0),
    ],
)
def test_the_last_operation_leaves_these_states_at_this_cost(operations, states, cost_ns):
    caches, done = run(*operations)
    assert caches.states[0].tolist() == states
    assert done[-1].cost_s == pytest.approx(cost_ns * 1e-9, abs=1e-18)


@pytest.mark.parametrize("far", [0, 1])
def test_a_write_waits_for_the_furthest_copy_wherever_it_stands(far):
    latency_s = np.full((3, 3), 1.0)
    latency_s[2, far] = 4.0
    caches = Caches(latency_s, [2], TransitionCosts(TOLD_APART, "made up"))
    for node in range(3):
        caches.read(0, node)
    assert caches.write(0, 2).cost_s == 7 * 4


def test_the_line_that_nobody_touches_stays_where_it_is():
    caches, _ = run("w0", "r1", "w2")
    assert caches.states[1].tolist() == [I, I, I]


def test_a_write_tells_who_lost_the_line_and_who_sent_it():
    _, done = run("r0", "r1", "r2", "w1", "w0")
    upgrade, transfer = done[-2:]
    assert (upgrade.invalidated, upgrade.transferred) == (2, False)
    assert (transfer.invalidated, transfer.transferred) == (1, True)
    assert {(LineState(a).name, LineState(b).name) for a, b in np.argwhere(upgrade.transitions)} == {
        ("S", "I"),
        ("F", "I"),
        ("S", "M"),
    }


def test_the_answer_of_a_known_holder_is_the_state_machines():
    costs = TransitionCosts()
    expected = responder_ratios(costs)
    for column, before in enumerate((["w1"], ["r1"], ["r2", "e2", "r0", "e0", "r1"])):
        for row, operation in enumerate(("r0", "w0")):
            _, done = run(*before, operation, costs=costs)
            assert done[-1].cost_s == pytest.approx(expected[row, column] * 100e-9, rel=1e-6)
    _, done = run("r0", "r1", "w1", costs=costs)
    assert done[-1].cost_s == pytest.approx(expected[1, 3] * 100e-9, rel=1e-6)


OPERATIONS = st.lists(st.tuples(st.sampled_from(["read", "write", "evict"]), st.integers(0, 1), st.integers(0, 2)))


@given(OPERATIONS)
def test_one_cache_owns_a_line_and_one_forwards_it(operations):
    caches = Caches(LATENCY_S, HOME)
    for name, line, node in operations:
        before = caches.states.copy()
        done = getattr(caches, name)(line, node)
        for states in caches.states.tolist():
            owners = states.count(M) + states.count(E)
            assert owners == 0 or (owners == 1 and states.count(I) == 2)
            assert states.count(F) <= 1
        others = np.arange(3) != node
        if name == "write":
            assert caches.states[line, node] == M
            assert (caches.states[line, others] == I).all()
        if name == "read":
            assert caches.states[line, node] != I
            assert ((caches.states == I) <= (before == I)).all()
        if name == "evict":
            assert caches.states[line, node] == I
            np.testing.assert_array_equal(caches.states[line, others], before[line, others])
        assert 0.0 <= done.cost_s < np.inf
        assert not done.transitions[np.isnan(caches.costs.ratio)].any()
        changed = [(a, b) for a, b in zip(before.ravel(), caches.states.ravel(), strict=True) if a != b]
        moved = done.transitions - np.diag(done.transitions.diagonal())
        assert sorted(changed) == sorted((a, b) for a, b in np.argwhere(moved) for _ in range(moved[a, b]))
        assert done.invalidated == (before[line, others] != I).sum() - (caches.states[line, others] != I).sum()


@given(OPERATIONS)
def test_a_read_sees_the_last_write(operations):
    caches = Caches(LATENCY_S, HOME)
    memory, cached, newest = [0, 0], np.zeros((2, 3), dtype=int), [0, 0]  # versions of each line
    for name, line, node in operations:
        before = caches.states[line].copy()
        done = getattr(caches, name)(line, node)
        answers = [other for other in range(3) if other != node and before[other] in (M, E, F)]
        if name != "evict" and before[node] == I:
            assert done.transferred == bool(answers)
            cached[line, node] = cached[line, answers[0]] if answers else memory[line]
        for other in range(3):
            if before[other] == M and caches.states[line, other] != M:
                memory[line] = cached[line, other]  # written back
        if name == "write":
            newest[line] += 1
            cached[line, node] = newest[line]
        if name == "read":
            assert cached[line, node] == newest[line]
        valid = caches.states[line] != I
        assert (cached[line, valid] == newest[line]).all()
        assert M in caches.states[line] or memory[line] == newest[line]


@given(OPERATIONS, st.permutations(range(3)))
def test_the_order_of_nodes_does_not_matter(operations, order):
    number = np.argsort(order)  # of each node, among the reordered
    caches = Caches(LATENCY_S, HOME)
    reordered = Caches(LATENCY_S[np.ix_(order, order)], number[HOME])
    for name, line, node in operations:
        cost_s = getattr(caches, name)(line, node).cost_s
        assert getattr(reordered, name)(line, int(number[node])).cost_s == pytest.approx(cost_s)
        np.testing.assert_array_equal(reordered.states, caches.states[:, order])


@given(OPERATIONS, st.floats(0.1, 10.0))
def test_costs_scale_with_the_machines_latency(operations, scale):
    near, far = Caches(LATENCY_S, HOME), Caches(LATENCY_S * scale, HOME)
    for name, line, node in operations:
        cost_s = getattr(near, name)(line, node).cost_s
        assert getattr(far, name)(line, node).cost_s == pytest.approx(scale * cost_s)


@pytest.mark.parametrize(
    ("latency_s", "home", "message"),
    [
        ([[1, 2]], [0], r"square matrix .* got shape \(1, 2\)"),
        ([], [0], r"square matrix"),
        ([[1, np.nan], [1, 1]], [0], r"latency_s must be finite and >= 0, got nan"),
        ([[1, 1], [-3, 1]], [0], r"latency_s must be finite and >= 0, got -3\.0"),
        ([[1]], [1], r"home must be in 0\.\.0, got 1"),
        ([[1]], [0.0], r"home must be one row of integers, got float64"),
    ],
)
def test_caches_need_a_machine(latency_s, home, message):
    with pytest.raises(ValueError, match=message):
        Caches(latency_s, home)


@pytest.mark.parametrize("name", ["read", "write", "evict"])
@pytest.mark.parametrize(
    ("line", "node", "message"),
    [(2, 0, r"line must be an integer in 0\.\.1, got 2"), (0, -1, r"node .* got -1"), (0.5, 0, r"line .* got 0\.5")],
)
def test_only_lines_and_nodes_that_exist_are_accessed(name, line, node, message):
    with pytest.raises(ValueError, match=message):
        getattr(Caches(LATENCY_S, HOME), name)(line, node)

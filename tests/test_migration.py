"""The chapter's migration score, and what batches save."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from numa_rl.machines.catalog import load_machine
from numa_rl.migration import FLUSH_PER_PAGE_WORK, BatchCost, best_target, migration_score, plan_batch

COST = BatchCost(batch_s=3e-6, page_s=1e-6, max_pages=4)
POSITIVE = st.floats(1e-9, 1e-3)


def scores(num_objects, num_nodes=3):
    return arrays(np.float64, (num_objects, num_nodes), elements=st.integers(-20, 20))


# Known answers.


def test_the_score_by_hand():
    # 6 accesses from node 0, 1 from node 1, 3 from node 2; the page is on node 1.
    access, cost = np.array([6.0, 1.0, 3.0]), np.array([4.0, 0.0, 2.0])
    score = migration_score(access, cost, alpha=2.0, beta=1.0, gamma=0.5)
    assert score.tolist() == [12 - 4 - 2, 2 - 9, 6 - 7 - 1]
    target, gain = best_target(score, 1)
    assert (target, gain) == (0, 13)


def test_a_page_stays_where_it_is_best_off_and_among_equals():
    target, gain = best_target(np.array([[1.0, 5.0, 5.0], [5.0, 5.0, 1.0]]), np.array([2, 0]))
    assert (target.tolist(), gain.tolist()) == ([2, 0], [0, 0])


def test_batches_by_hand():
    assert COST.batched_s([0, 1, 4, 5]).tolist() == pytest.approx([0, 4e-6, 7e-6, 11e-6])
    assert COST.single_s([0, 1, 4, 5]).tolist() == pytest.approx([0, 4e-6, 16e-6, 20e-6])
    assert COST.saved_share([0, 1, 4]).tolist() == pytest.approx([0, 0, 9 / 16])


def test_break_even_by_hand():
    # A page that saves 2.5 us leaves 1.5 for the flush of 3: two pages; one that saves 1 us never pays.
    assert COST.break_even_pages([2.5e-6, 1e-6, 1.5e-6, 1e-3, 0.0]).tolist() == [2, np.inf, np.inf, 1, np.inf]
    assert BatchCost(0.0, 1e-6).break_even_pages([1e-6, 0.9e-6]).tolist() == [1, np.inf]


def test_what_a_flush_takes_follows_from_the_two_published_figures():
    cost = BatchCost.of(load_machine("chapter-8-socket"))
    assert cost.page_s == 1e-6
    assert cost.batch_s == pytest.approx(3.0236e-6, rel=1e-4)
    single = FLUSH_PER_PAGE_WORK + 1.0
    assert single / (0.009 * FLUSH_PER_PAGE_WORK + 1.0) == pytest.approx(3.917)


def test_a_plan_by_hand():
    score = [[0, 9], [0, 8], [0, 4], [0, 3], [5, 0]]
    plan = plan_batch(score, [0] * 5, [3, 2, 1, 9, 1], budget_pages=4)
    # Per page: 3, 4, 4, 1/3, and one that stays. 3 pages are used by the two best, and 3 more do not fit.
    assert plan.moves.tolist() == [False, True, True, False, False]
    assert (plan.target.tolist(), plan.gain, plan.num_pages) == ([0, 1, 1, 0, 0], 12, 3)
    # Above theta are the first two, of which one fits: the one that gains more, though less per page.
    assert plan_batch(score, [0] * 5, [3, 2, 1, 9, 1], budget_pages=4, theta=4).moves.tolist() == [1, 0, 0, 0, 0]


def test_one_large_object_may_gain_more_than_many_small_ones():
    plan = plan_batch([[0, 2], [0, 10]], [0, 0], [1, 10], budget_pages=10)
    assert plan.moves.tolist() == [False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": [1.0]}, r"score must have shape \(Q, N\), got \(1,\)"),
        ({"score": [[np.nan, 1.0]]}, "score must be finite, got nan"),
        ({"home": [0, 1]}, r"home must have shape \(1,\), got \(2,\)"),
        ({"home": [2]}, r"home must be a node in 0..1, got \[2\]"),
        ({"num_pages": [0]}, "num_pages must be >= 1, got 0"),
        ({"budget_pages": -1}, "budget_pages must be >= 0, got -1"),
        ({"theta": np.inf}, "theta must be finite and >= 0, got inf"),
    ],
)
def test_what_cannot_be_planned_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        plan_batch(**{"score": [[0.0, 1.0]], "home": [0], "num_pages": [1], "budget_pages": 1, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_s": -1.0}, "batch_s must be finite and >= 0, got -1.0"),
        ({"page_s": np.nan}, "page_s must be finite and >= 0, got nan"),
        ({"max_pages": 0}, "max_pages must be >= 1, got 0"),
    ],
)
def test_costs_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        BatchCost(**{"batch_s": 1.0, "page_s": 1.0, **change})
    with pytest.raises(ValueError, match="num_pages must be finite and >= 0"):
        COST.batched_s([1, -1])


# Laws.


@given(score=scores(5), home=st.lists(st.integers(0, 2), min_size=5, max_size=5))
def test_no_move_loses(score, home):
    target, gain = best_target(score, home)
    assert (gain >= 0).all()
    rows = np.arange(5)
    np.testing.assert_array_equal(score[rows, target] - score[rows, home], gain)
    assert (gain[target == home] == 0).all()


@given(access=arrays(np.float64, (4, 3), elements=st.integers(0, 99)), shift=st.floats(0.5, 2.0))
def test_without_cost_a_page_goes_to_whom_uses_it_most(access, shift):
    score = migration_score(access, np.zeros_like(access), alpha=shift, beta=2.0)
    np.testing.assert_array_equal(score.argmax(axis=-1), access.argmax(axis=-1))


@given(batch_s=POSITIVE, page_s=POSITIVE, most=st.integers(1, 600), pages=st.integers(0, 2000))
def test_batches_never_take_longer_and_never_less_than_the_pages(batch_s, page_s, most, pages):
    cost = BatchCost(batch_s, page_s, most)
    assert pages * page_s * (1 - 1e-12) <= cost.batched_s(pages) <= cost.single_s(pages) * (1 + 1e-12)
    assert -1e-12 <= cost.saved_share(pages) < 1


@given(batch_s=POSITIVE, page_s=POSITIVE, gain_s=POSITIVE, most=st.integers(1, 600))
def test_the_break_even_is_the_first_size_that_pays(batch_s, page_s, gain_s, most):
    cost = BatchCost(batch_s, page_s, most)
    sizes = np.arange(1, most + 1)
    pays = sizes * gain_s >= cost.batched_s(sizes) * (1 + 1e-9)  # beyond doubt
    might = sizes * gain_s >= cost.batched_s(sizes) * (1 - 1e-9)
    pages = cost.break_even_pages(gain_s)
    assert pages <= (sizes[pays][0] if pays.any() else np.inf)
    assert pages >= (sizes[might][0] if might.any() else np.inf)


# Two routes.


@given(
    score=scores(6),
    home=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    sizes=st.lists(st.integers(1, 5), min_size=6, max_size=6),
    budget=st.integers(0, 20),
    theta=st.integers(0, 5),
)
def test_a_plan_fits_and_gains_at_least_half_of_the_best(score, home, sizes, budget, theta):
    plan = plan_batch(score, home, sizes, budget_pages=budget, theta=theta)
    _, gain = best_target(score, home)
    assert plan.num_pages == np.sum(np.array(sizes)[plan.moves]) <= budget
    assert (gain[plan.moves] > theta).all()
    worth = np.where(gain > theta, gain, 0)
    best = max(worth[list(chosen)].sum() for chosen in map(np.flatnonzero, product([0, 1], repeat=6))
               if np.sum(np.array(sizes)[list(chosen)]) <= budget)  # fmt: skip
    assert plan.gain >= best / 2
    alike = plan_batch(score, home, [1] * 6, budget_pages=budget, theta=theta)
    assert alike.gain == np.sort(worth)[::-1][:budget].sum()

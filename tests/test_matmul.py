"""The matrix product over nodes: equal to A @ B, and every byte where the closed form says (exercise 4)."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numa_rl.matmul import (
    DistributedProduct,
    cannon,
    cannon_elements_per_step,
    most_square_grid,
    naive,
    naive_elements_per_node,
    summa,
    summa_elements_per_node,
)

DTYPES = (np.float64, np.float32, np.int64)
SCHEDULES = (cannon, summa, naive)

sides = st.integers(1, 4)
sizes = st.integers(1, 13)
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(DTYPES)


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        (lambda: cannon_elements_per_step(-480, 960, 720, 16), "m must be a whole number >= 1, got -480"),
        (lambda: cannon_elements_per_step(480, 960, 720, 8), "num_nodes must be a square for Cannon's schedule, got 8"),
        (lambda: summa_elements_per_node(480, 0, 720, 2, 4), "k must be a whole number >= 1, got 0"),
        (lambda: naive_elements_per_node(960, 720, 0), "num_nodes must be a whole number >= 1, got 0"),
        (lambda: naive([[1]], [[1]], 1), "a must be a numpy array, got list"),
    ],
)
def test_formulas_and_products_refuse_what_is_no_product(formula, message):
    with pytest.raises(ValueError, match=message):
        formula()


def matrices(m, k, n, dtype, seed):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "i":
        return rng.integers(-9, 10, (m, k)).astype(dtype), rng.integers(-9, 10, (k, n)).astype(dtype)
    return rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)


def assert_same(done: DistributedProduct, a, b):
    expected = a @ b
    assert done.product.dtype == expected.dtype
    if expected.dtype.kind == "i":
        np.testing.assert_array_equal(done.product, expected)
    else:
        precision = np.finfo(expected.dtype).eps * a.shape[1]
        np.testing.assert_allclose(done.product, expected, rtol=0, atol=8 * precision * (abs(a) @ abs(b)).max())


# Known answers.


def test_cannon_on_four_nodes_moves_half_a_block_row_and_column_per_node_and_step():
    a, b = matrices(4, 6, 8, np.float64, 0)
    done = cannon(a, b, 4)
    np.testing.assert_array_equal(done.received_bytes, [[8 * (4 * 6 // 4 + 6 * 8 // 4)] * 4])
    assert done.total_bytes == 8 * (4 * 6 + 6 * 8)
    # Row 1 of A's blocks and column 1 of B's are skewed.
    assert done.total_setup_bytes == done.total_bytes // 2
    assert_same(done, a, b)


def test_cannon_sends_only_to_the_left_and_upwards():
    done = cannon(*matrices(9, 9, 9, np.float64, 0), 9)
    assert done.step_bytes.shape == (2, 9, 9)
    for sent in done.step_bytes:
        assert set(map(tuple, np.argwhere(sent))) == {
            pair
            for i in range(3)
            for j in range(3)
            for pair in ((3 * i + j, 3 * i + (j + 1) % 3), (3 * i + j, 3 * ((i + 1) % 3) + j))
        }


def test_every_node_of_the_naive_product_fetches_the_rest_of_b():
    a, b = matrices(8, 12, 5, np.float32, 0)
    done = naive(a, b, 4)
    np.testing.assert_array_equal(done.received_bytes, [[4 * 12 * 5 * 3 // 4] * 4])
    assert_same(done, a, b)


def test_summa_on_six_nodes_sends_panels_of_the_width_asked_for():
    a, b = matrices(4, 12, 6, np.float64, 0)
    done = summa(a, b, 6, panel_width=2)
    assert done.grid == (2, 3)
    assert done.step_bytes.shape == (6, 6, 6)
    # Panel 0 lies in grid column 0 and row 0: nodes beside get 2 x 2 of A, nodes below 2 x 2 of B.
    np.testing.assert_array_equal(done.received_bytes[0], 8 * np.array([0, 4, 4, 4, 8, 8]))
    assert_same(done, a, b)


def test_on_one_node_nothing_moves():
    a, b = matrices(3, 4, 5, np.float64, 0)
    for schedule in SCHEDULES:
        done = schedule(a, b, 1)
        assert (done.total_bytes, done.total_setup_bytes) == (0, 0)
        np.testing.assert_array_equal(done.product, a @ b)


@pytest.mark.parametrize(("num_nodes", "grid"), [(1, (1, 1)), (7, (1, 7)), (8, (2, 4)), (12, (3, 4)), (36, (6, 6))])
def test_the_most_square_grid(num_nodes, grid):
    assert most_square_grid(num_nodes) == grid


# Laws: any shape, any number of nodes, any type.


@given(sides, sizes, sizes, sizes, dtypes, seeds)
def test_cannon_equals_a_b_and_each_shift_moves_all_of_both(side, m, k, n, dtype, seed):
    a, b = matrices(m, k, n, dtype, seed)
    done = cannon(a, b, side**2)
    assert_same(done, a, b)
    assert len(done.step_bytes) == side - 1
    np.testing.assert_array_equal(done.step_bytes.sum(axis=(1, 2)), [a.nbytes + b.nbytes] * (side - 1))
    # The first of the rows of A and the first of the columns of B stay where they are.
    first_rows, first_columns = math.ceil(m / side), math.ceil(n / side)
    assert done.total_setup_bytes == a[first_rows:].nbytes + b[:, first_columns:].nbytes


@given(sides, sides, sides, sides, dtypes, seeds)
def test_cannon_moves_the_chapters_volume_per_node_and_step_where_blocks_are_equal(side, m, k, n, dtype, seed):
    a, b = matrices(m * side, k * side, n * side, dtype, seed)
    done = cannon(a, b, side**2)
    elements = cannon_elements_per_step(m * side, k * side, n * side, side**2)
    np.testing.assert_array_equal(done.received_bytes, np.full((side - 1, side**2), elements * a.itemsize))


@given(st.integers(1, 12), sizes, sizes, sizes, dtypes, seeds, st.none() | st.integers(1, 20))
def test_summa_equals_a_b_and_sends_every_block_along_its_row_or_column(num_nodes, m, k, n, dtype, seed, width):
    a, b = matrices(m, k, n, dtype, seed)
    done = summa(a, b, num_nodes, width)
    assert_same(done, a, b)
    rows, columns = done.grid
    assert done.total_bytes == a.nbytes * (columns - 1) + b.nbytes * (rows - 1)
    assert done.total_setup_bytes == 0


@given(st.integers(1, 12), sizes, sizes, sizes, seeds, st.integers(1, 6))
def test_summa_gives_each_node_its_closed_form_where_blocks_are_equal(num_nodes, m, k, n, seed, width):
    rows, columns = most_square_grid(num_nodes)
    m, k, n = m * rows, k * rows * columns, n * columns
    a, b = matrices(m, k, n, np.float64, seed)
    done = summa(a, b, num_nodes, width)
    each = 8 * summa_elements_per_node(m, k, n, rows, columns)
    np.testing.assert_array_equal(done.received_bytes.sum(axis=0), [each] * num_nodes)
    # A step sends a panel of A to the other columns and one of B to the other rows.
    if num_nodes > 1:
        widths = done.step_bytes.sum(axis=(1, 2)) / (8 * (m * (columns - 1) + n * (rows - 1)))
        assert widths.sum() == k
        assert set(widths.tolist()) <= set(range(1, width + 1))


@given(st.integers(1, 9), sizes, sizes, sizes, dtypes, seeds)
def test_the_naive_product_equals_a_b_and_sends_b_to_all_others(num_nodes, m, k, n, dtype, seed):
    a, b = matrices(m, k, n, dtype, seed)
    done = naive(a, b, num_nodes)
    assert_same(done, a, b)
    assert done.total_bytes == b.nbytes * (num_nodes - 1)
    if k % num_nodes == 0:
        each = naive_elements_per_node(k, n, num_nodes) * b.itemsize
        np.testing.assert_array_equal(done.received_bytes.sum(axis=0), [each] * num_nodes)


@given(st.sampled_from(SCHEDULES), sizes, seeds)
def test_types_may_differ_and_are_each_counted_at_their_size(schedule, size, seed):
    a, b = matrices(size, size, size, np.float64, seed)
    narrow = schedule(a.astype(np.float32), b.astype(np.float32), 4)
    mixed = schedule(a.astype(np.float32), b, 4)
    assert mixed.product.dtype == np.float64
    assert narrow.total_bytes <= mixed.total_bytes <= 2 * narrow.total_bytes
    assert_same(mixed, a.astype(np.float32), b)


# Two routes that agree.


@given(sides, sizes, seeds)
def test_on_a_square_grid_summa_moves_what_cannons_shifts_do(side, size, seed):
    a, b = matrices(size, size, size, np.float64, seed)
    shifted, broadcast = cannon(a, b, side**2), summa(a, b, side**2)
    assert shifted.total_bytes == broadcast.total_bytes
    np.testing.assert_allclose(shifted.product, broadcast.product, atol=1e-12)


def test_on_sixteen_nodes_cannon_moves_less_than_the_naive_product():
    a, b = matrices(64, 64, 64, np.float64, 0)
    shifted, whole = cannon(a, b, 16), naive(a, b, 16)
    assert shifted.total_bytes == 2 * 3 * a.nbytes
    assert whole.total_bytes == 15 * b.nbytes
    assert shifted.total_bytes + shifted.total_setup_bytes < whole.total_bytes


def test_the_matrices_given_are_left_alone():
    a, b = matrices(5, 6, 7, np.float64, 0)
    copies = a.copy(), b.copy()
    for schedule in SCHEDULES:
        product = schedule(a, b, 4).product
        assert not np.shares_memory(product, a)
        product[:] = 0.0
    np.testing.assert_array_equal(a, copies[0])
    np.testing.assert_array_equal(b, copies[1])


# Bad input.


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_matrices_without_a_product_are_refused(schedule):
    a = np.ones((2, 3))
    for left, right, message in (
        (a, a, r"a must have as many columns as b has rows, got shapes \(2, 3\) and \(2, 3\)"),
        (a[0], a, r"a must be 2-D, got shape \(3,\)"),
        (a, np.ones((3, 2, 1)), r"b must be 2-D, got shape \(3, 2, 1\)"),
        (a[:0], a.T, r"a must not be empty, got shape \(0, 3\)"),
        (a, np.ones((3, 0)), r"b must not be empty, got shape \(3, 0\)"),
        (a, np.full((3, 2), "x"), r"b must hold numbers, got dtype <U1"),
        (a > 0, a.T, r"a must hold numbers, got dtype bool"),
    ):
        with pytest.raises(ValueError, match=message):
            schedule(left, right, 4)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_nodes", [0, -4, 4.0, math.nan, True])
def test_a_number_of_nodes_that_is_none_is_refused(schedule, num_nodes):
    with pytest.raises(ValueError, match=rf"num_nodes must be a whole number >= 1, got {num_nodes}"):
        schedule(np.ones((4, 4)), np.ones((4, 4)), num_nodes)


def test_cannon_on_nodes_that_make_no_square_names_the_nearest_squares_and_summa():
    with pytest.raises(ValueError, match=r"must be a square .* such as 4 or 9, got 8; use SUMMA"):
        cannon(np.ones((4, 4)), np.ones((4, 4)), 8)


def test_a_panel_without_width_is_refused():
    with pytest.raises(ValueError, match=r"panel_width must be a whole number >= 1, got 0"):
        summa(np.ones((4, 4)), np.ones((4, 4)), 4, 0)

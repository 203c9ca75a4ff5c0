"""A grid of processes on a machine's nodes: neighbours stay near, and steps take the time of what they share."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import machines, toy_machine

from numa_rl.grid import place_grid, shift_hops, shift_senders, step_s
from numa_rl.machines.builders import eight_socket_cube, four_socket, from_links, mesh, ring
from numa_rl.machines.catalog import load_machine, machine_names
from numa_rl.matmul import cannon, most_square_grid, naive, summa

# Known answers.


def test_left_and_upward_neighbours_of_a_grid_of_two_rows_and_three_columns():
    expected = [[1, 3], [2, 4], [0, 5], [4, 0], [5, 1], [3, 2]]
    np.testing.assert_array_equal(shift_senders(2, 3), expected)


def test_a_two_by_four_grid_fits_the_cube_with_every_neighbour_one_hop_away():
    cube = eight_socket_cube()
    placement = place_grid(cube, 2, 4)
    assert sorted(placement.tolist()) == list(range(8))
    np.testing.assert_array_equal(shift_hops(cube, placement, 2, 4), np.ones((8, 2)))
    # The nodes in their own order would cross two links where a row closes and in its middle.
    assert shift_hops(cube, range(8), 2, 4).max() == 2


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (2, 8), (1, 16), (4, 8)])
def test_a_larger_hypercube_takes_its_grid_by_gray_code(rows, columns):
    num_nodes = rows * columns
    bits = [1 << bit for bit in range(num_nodes.bit_length() - 1)]
    cube = from_links("hypercube", num_nodes, [(node, node ^ bit) for node in range(num_nodes) for bit in bits])
    hops = shift_hops(cube, place_grid(cube, rows, columns), rows, columns)
    assert hops.max() == 1


def test_a_descent_mends_a_ring_whose_nodes_are_numbered_at_random():
    order = np.random.default_rng(0).permutation(12).tolist()
    machine = from_links("mixed-ring", 12, zip(order, order[1:] + order[:1], strict=True))
    placement = place_grid(machine, 1, 12)
    assert shift_hops(machine, placement, 1, 12).sum() < shift_hops(machine, range(12), 1, 12).sum() / 2


def test_a_step_takes_what_its_most_loaded_link_takes_and_the_latency():
    # Nodes 0 - 1 - 2 in a line; a link carries 50 bytes a second, latency is 1 s and 1 s more per hop.
    line = toy_machine(3)
    sent = np.zeros((2, 3, 3), np.int64)
    sent[0, 0, 1] = 100  # 1 -> 0 alone: 100 / 50 + 2
    sent[1, 0, 1] = sent[1, 0, 2] = 100  # 1 -> 0 and 2 -> 0 share the link 1 -> 0: 200 / 50, and 3 s for two hops
    np.testing.assert_allclose(step_s(line, range(3), sent), [4.0, 7.0])


def test_opposite_directions_of_a_link_do_not_disturb_each_other():
    pair = toy_machine(2)
    np.testing.assert_allclose(step_s(pair, [1, 0], np.array([[[0, 100], [100, 0]]])), [4.0])


def test_between_four_linked_sockets_a_shift_takes_one_block_over_one_link():
    machine, a = four_socket(), np.ones((512, 512))
    placement = place_grid(machine, 2, 2)
    # A comes from one neighbour and B from another, each over its own link at 30 GB/s. So do the three blocks
    # that the naive product fetches: with a link to everyone it loses room, not time.
    for done in (cannon(a, a, 4), naive(a, a, 4)):
        np.testing.assert_allclose(step_s(machine, placement, done.step_bytes), [a.nbytes / 4 / 30e9 + 25e-9])


def test_on_a_mesh_of_sixteen_all_of_cannon_takes_less_than_the_naive_fetch():
    machine, a = mesh(4, 4), np.ones((512, 512))
    placement = place_grid(machine, 4, 4)
    shifted, whole = cannon(a, a, 16), naive(a, a, 16)
    cannon_s = step_s(machine, placement, shifted.step_bytes).sum()
    skew_s = step_s(machine, placement, shifted.setup_bytes[None]).sum()
    assert cannon_s + skew_s < step_s(machine, placement, whole.step_bytes).sum()


# Laws.


@settings(max_examples=30)
@given(machines(max_nodes=5), st.data())
def test_no_placement_crosses_fewer_links(machine, data):
    nodes = np.flatnonzero(machine.cores).tolist()
    rows, columns = most_square_grid(data.draw(st.integers(1, len(nodes))))
    best = shift_hops(machine, place_grid(machine, rows, columns), rows, columns).sum()
    for placement in permutations(nodes, rows * columns):
        assert best <= shift_hops(machine, placement, rows, columns).sum()


@given(machines(min_nodes=2), st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_more_bytes_never_take_less_time_and_nothing_takes_none(machine, seed, more):
    n = machine.num_nodes
    sent = np.random.default_rng(seed).integers(0, 10**6, (3, n, n)) * ~np.eye(n, dtype=bool)
    sent[1] = 0
    seconds = step_s(machine, range(n), sent)
    assert seconds[1] == 0.0
    assert (step_s(machine, range(n), sent * more) >= seconds).all()


# Every machine.


@pytest.mark.parametrize("name", machine_names())
def test_every_machine_runs_summa_on_all_its_nodes_that_have_cores(name):
    machine = load_machine(name)
    num_nodes = int((machine.cores > 0).sum())
    a = np.ones((16, 16))
    done = summa(a, a, num_nodes)
    placement = place_grid(machine, *done.grid)
    assert set(placement.tolist()) == set(np.flatnonzero(machine.cores).tolist())
    seconds = step_s(machine, placement, done.step_bytes)
    assert seconds.shape == (len(done.step_bytes),)
    assert (seconds[done.step_bytes.any(axis=(1, 2))] > 0.0).all()


# Bad input.


def test_a_grid_larger_than_the_machine_is_refused():
    with pytest.raises(ValueError, match=r"a grid of 3 x 3 must have at most 8 places"):
        place_grid(eight_socket_cube(), 3, 3)
    with pytest.raises(ValueError, match=r"a grid of 1 x 2 must have at most 1 places"):
        place_grid(load_machine("cxl-expander"), 1, 2)
    with pytest.raises(ValueError, match=r"rows must be >= 1, got 0"):
        place_grid(ring(4), 0, 2)


@pytest.mark.parametrize("placement", [[0, 1, 2], [0, 1, 2, 2], [0, 1, 2, 4], [-1, 0, 1, 2], [0.0, 1.0, 2.0, 3.0]])
def test_a_placement_that_gives_a_place_no_node_of_its_own_is_refused(placement):
    for call in (
        lambda: shift_hops(mesh(2, 2), placement, 2, 2),
        lambda: step_s(mesh(2, 2), placement, np.zeros((1, 4, 4), np.int64)),
    ):
        with pytest.raises(ValueError, match=r"placement must name 4 different nodes in 0\.\.3, got"):
            call()

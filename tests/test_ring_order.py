from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numa_rl.communication.collectives import ring_s
from numa_rl.communication.ring_order import EXACT_NODES, ring_order
from numa_rl.communication.schedules import ring, schedule_s
from numa_rl.machines import builders
from numa_rl.machines.catalog import load_machine, machine_names

LARGE = 1e12  # bytes: latencies do not matter


def seconds(topology, order, num_bytes=LARGE):
    return schedule_s(ring(len(order)), topology, order, num_bytes)


def neighbours(topology, order):
    return all(topology.hops[a, b] == 1 for a, b in zip(order, np.roll(order, -1), strict=True))


def test_on_the_cube_the_ring_follows_a_hamiltonian_cycle():
    cube = builders.eight_socket_cube()
    order = ring_order(cube)
    assert sorted(order) == list(range(8))
    assert neighbours(cube, order)


def test_on_the_cube_the_order_of_the_ring_is_worth_a_factor_of_three():
    # In numerical order, 3 -> 4 and 7 -> 0 are opposite corners, and up to three sends share a link.
    cube = builders.eight_socket_cube()
    assert seconds(cube, ring_order(cube)) == pytest.approx(ring_s(8, LARGE, 30e9, 25e-9))
    assert seconds(cube, np.arange(8)) == pytest.approx(3 * seconds(cube, ring_order(cube)), rel=1e-6)


@pytest.mark.parametrize("topology", [builders.mesh(3, 4), builders.mesh(4, 4), builders.ring(12)])
def test_larger_machines_with_a_hamiltonian_cycle_are_given_one(topology):
    assert topology.num_nodes > EXACT_NODES
    order = ring_order(topology)
    assert sorted(order) == list(range(topology.num_nodes))
    assert neighbours(topology, order)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(10)))
def test_the_nodes_may_be_numbered_in_any_way(names):
    pairs = [(names[i], names[(i + 1) % 10]) for i in range(10)]
    circle = builders.from_links("circle", 10, pairs)
    assert neighbours(circle, ring_order(circle))


@settings(deadline=None, max_examples=20)
@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda ends: ends[0] < ends[1]), max_size=6))
def test_no_order_of_a_small_machine_is_faster(further):
    # A star with further links: most orders pass through its middle.
    topology = builders.from_links("star", 6, {(0, node) for node in range(1, 6)} | further)
    fastest = min(seconds(topology, [0, *rest]) for rest in permutations(range(1, 6)))
    assert seconds(topology, ring_order(topology)) == pytest.approx(fastest, rel=1e-6)


@pytest.mark.parametrize("name", machine_names())
def test_on_every_machine_it_is_at_least_as_fast_as_numerical_order(name):
    topology = load_machine(name)
    order = ring_order(topology)
    assert seconds(topology, order) <= seconds(topology, np.flatnonzero(topology.cores)) * (1 + 1e-9)


def test_nodes_without_cores_are_left_out():
    machine = load_machine("cxl-expander")
    assert set(ring_order(machine)) == set(np.flatnonzero(machine.cores))
    assert machine.num_nodes > len(ring_order(machine))


def test_the_order_starts_at_the_first_node_given_and_holds_only_those():
    order = ring_order(builders.eight_socket_cube(), [5, 1, 0, 4])
    assert order[0] == 5
    assert sorted(order) == [0, 1, 4, 5]
    assert neighbours(builders.eight_socket_cube(), order)


@pytest.mark.parametrize("nodes", [[3], [3, 6]])
def test_one_or_two_nodes_are_a_ring(nodes):
    assert ring_order(builders.eight_socket_cube(), nodes).tolist() == nodes


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([], r"nodes must be one or more different nodes, got \[\]\."),
        ([1, 2, 1], r"nodes must be one or more different nodes, got \[1, 2, 1\]\."),
        ([0, 8], r"nodes\[1\] must be a node of chapter-8-socket, 0 to 7, got 8\."),
        ([-1], r"nodes\[0\] must be a node of chapter-8-socket, 0 to 7, got -1\."),
    ],
)
def test_nodes_that_make_no_ring_are_refused(nodes, message):
    with pytest.raises(ValueError, match=message):
        ring_order(builders.eight_socket_cube(), nodes)

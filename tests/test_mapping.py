"""Placing parts and tasks on nodes: numa_rl/partition/{mapping,tree_match}.py."""

from __future__ import annotations

import re
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import quadratic_assignment
from strategies import machines, toy_machine

from numa_rl.machines.catalog import load_machine
from numa_rl.partition import mapping
from numa_rl.partition.generators import ring_of_cliques
from numa_rl.partition.graph import F64, graph_from_edges
from numa_rl.partition.mapping import compute_nodes, map_parts, node_distances
from numa_rl.partition.objective import cut_weight, mapped_cost, packed, part_limits, part_weights, placement_cost
from numa_rl.partition.refinement import shorten
from numa_rl.partition.tree_match import machine_tree, tree_match


def random_symmetric(size: int, seed: int) -> F64:
    matrix = np.random.default_rng(seed).random((size, size))
    matrix = np.triu(matrix, 1)
    return matrix + matrix.T


def least_cost(traffic: F64, distance: F64) -> float:
    """By trying all placements."""
    nodes = range(len(distance))
    return min(placement_cost(traffic, np.array(order), distance) for order in permutations(nodes, len(traffic)))


# Known answers.


def test_distances_are_latencies_over_a_local_one_and_only_between_nodes_with_cores():
    machine = toy_machine(3, cores=[2, 0, 1])
    assert compute_nodes(machine).tolist() == [0, 2]
    np.testing.assert_array_equal(node_distances(machine), [[0.0, 3.0], [3.0, 0.0]])
    latency = [[2.0, 3.0], [5.0, 2.0]]
    np.testing.assert_array_equal(node_distances(toy_machine(2, latency_s=latency)), [[0.0, 2.0], [2.0, 0.0]])


def test_a_chain_of_parts_lies_along_a_line_of_nodes():
    distance = node_distances(toy_machine(5))
    order = [3, 0, 4, 1, 2]  # of the parts, along the chain
    traffic = np.zeros((5, 5))
    for one, other in pairwise(order):
        traffic[one, other] = traffic[other, one] = 10.0
    nodes = map_parts(traffic, distance)
    assert placement_cost(traffic, nodes, distance) == 4 * 10.0 * 2.0
    assert nodes[order].tolist() in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0])


def test_two_parts_take_the_two_nearest_of_many_nodes():
    latency = np.full((4, 4), 9.0)
    np.fill_diagonal(latency, 1.0)
    latency[1, 3] = latency[3, 1] = 2.0
    traffic = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert sorted(map_parts(traffic, node_distances(toy_machine(4, latency_s=latency))).tolist()) == [1, 3]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("num_parts", "num_nodes"), [(6, 6), (4, 6), (7, 7)])
def test_small_placements_cost_what_the_best_of_all_costs(num_parts, num_nodes, seed):
    traffic, distance = random_symmetric(num_parts, seed), 1.0 + random_symmetric(num_nodes, seed + 100)
    np.fill_diagonal(distance, 0.0)
    nodes = map_parts(traffic, distance)
    assert len(set(nodes.tolist())) == num_parts
    assert placement_cost(traffic, nodes, distance) == pytest.approx(least_cost(traffic, distance))


@pytest.mark.parametrize("seed", range(12))
def test_exchanges_alone_come_within_two_percent_of_the_best_of_all(seed, monkeypatch):
    traffic, distance = random_symmetric(7, seed), 1.0 + random_symmetric(7, seed + 100)
    np.fill_diagonal(distance, 0.0)
    monkeypatch.setattr(mapping, "MOST_TRIED", 0)
    assert placement_cost(traffic, map_parts(traffic, distance), distance) <= 1.02 * least_cost(traffic, distance)


def test_the_best_placement_on_the_eight_nodes_of_a_cube_is_found():
    distance = node_distances(load_machine("chapter-8-socket"))
    hidden = np.random.default_rng(1).permutation(8)
    traffic = np.zeros((8, 8))
    traffic[np.ix_(hidden, hidden)] = distance == 2.5  # parts joined as the cube's edges are
    assert placement_cost(traffic, map_parts(traffic, distance), distance) == 12 * 2.5
    assert least_cost(traffic, distance) == 12 * 2.5


@pytest.mark.parametrize("most_tried", [0, 8])
def test_parts_made_for_larger_nodes_stay_on_such(most_tried, monkeypatch):
    monkeypatch.setattr(mapping, "MOST_TRIED", most_tried)
    traffic = random_symmetric(6, 3)
    nodes = map_parts(traffic, random_symmetric(6, 4), shares=[4, 1, 1, 4, 4, 1])
    assert {int(node) for node in nodes[[0, 3, 4]]} == {0, 3, 4}


def test_the_tree_of_the_machine_has_its_levels():
    latency = np.full((4, 4), 30.0)
    for socket in (slice(0, 2), slice(2, 4)):
        latency[socket, socket] = 12.0
    np.fill_diagonal(latency, 10.0)
    tree = machine_tree(toy_machine(4, latency_s=latency))
    assert [child.nodes for child in tree.children] == [(0, 1), (2, 3)]
    assert [[leaf.nodes for leaf in child.children] for child in tree.children] == [[(0,), (1,)], [(2,), (3,)]]
    flat = machine_tree(toy_machine(3, latency_s=[[1.0, 2.0, 2.01], [2.0, 1.0, 2.0], [2.01, 2.0, 1.0]]))
    assert [child.nodes for child in flat.children] == [(0,), (1,), (2,)]
    assert machine_tree(toy_machine(1)).nodes == (0,)


def test_tasks_that_talk_share_a_node_and_groups_that_talk_a_socket():
    latency = np.full((4, 4), 30.0)
    for socket in ([0, 2], [1, 3]):
        latency[np.ix_(socket, socket)] = 12.0
    np.fill_diagonal(latency, 10.0)
    machine = toy_machine(4, latency_s=latency)
    pairs = [(0, 4, 9.0), (1, 5, 9.0), (2, 6, 9.0), (3, 7, 9.0), (0, 1, 4.0), (2, 3, 4.0), (1, 2, 1.0)]
    graph = graph_from_edges(8, *(np.array(column) for column in zip(*pairs, strict=True)))
    nodes = tree_match(graph, machine)
    assert [nodes[task] == nodes[task + 4] for task in range(4)] == [True] * 4
    assert sorted(nodes.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert nodes[0] % 2 == nodes[1] % 2 != nodes[2] % 2 == nodes[3] % 2
    assert mapped_cost(graph, nodes, node_distances(machine)) == pytest.approx((4 + 4) * 1.2 + 1 * 3.0)


def test_a_vertex_shifts_to_the_node_its_edges_are_shortest_to():
    """It exchanges 3 with node 0 and 2 with node 2: on node 1, between them, 5 hops; on node 0, 4; on node 2, 6."""
    graph = graph_from_edges(3, [2, 2], [0, 1], [3.0, 2.0])
    distance = np.abs(np.subtract.outer(np.arange(3.0), np.arange(3.0)))
    rng = np.random.default_rng(0)
    nodes = shorten(graph.adjacency, np.array([0, 2, 2]), np.array([1.0, 1.0, 2.0]), distance, rng)
    assert nodes.tolist() == [0, 2, 1]  # node 0 is full
    assert shorten(graph.adjacency, np.array([0, 2, 1]), np.full(3, 9.0), distance, rng)[2] == 0


def test_a_node_with_more_cores_gets_more_tasks_and_one_without_gets_none():
    nodes = tree_match(ring_of_cliques(4, 4), toy_machine(3, cores=[1, 0, 3]))
    assert np.bincount(nodes, minlength=3).tolist() == [4, 0, 12]
    assert cut_weight(ring_of_cliques(4, 4), nodes) == 2.0


# Laws.


@given(st.integers(1, 11), st.integers(0, 3), st.integers(0, 2**32))
@settings(deadline=None)
def test_every_part_gets_a_node_of_its_own_and_no_exchange_gains(num_parts, free, seed):
    distance = random_symmetric(num_parts + free, seed)
    traffic = random_symmetric(num_parts, seed + 1)
    nodes = map_parts(traffic, distance)
    assert len(set(nodes.tolist())) == num_parts
    cost = placement_cost(traffic, nodes, distance)
    for one in range(num_parts):
        for other in range(one):
            swapped = nodes.copy()
            swapped[[one, other]] = nodes[[other, one]]
            assert placement_cost(traffic, swapped, distance) >= cost * (1 - 1e-9)


@given(machines(), st.integers(1, 30), st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_tree_match_places_all_tasks_on_nodes_with_cores_within_a_task_of_their_share(machine, num_tasks, seed):
    rng = np.random.default_rng(seed)
    ends = rng.integers(num_tasks, size=(2, 3 * num_tasks))
    nodes = tree_match(graph_from_edges(num_tasks, *ends, rng.random(3 * num_tasks)), machine)
    counts = np.bincount(nodes, minlength=machine.num_nodes)
    assert counts[machine.cores == 0].sum() == 0
    share = machine.cores / machine.cores.sum() * num_tasks
    assert np.all(np.abs(counts - share) < 1.0 + 1e-9)


@given(st.integers(1, 25), st.integers(1, 5), st.integers(0, 2**32))
@settings(deadline=None)  # the first call compiles
def test_shifting_vertices_keeps_limits_and_never_makes_the_mapped_cost_higher(num_vertices, num_nodes, seed):
    rng = np.random.default_rng(seed)
    ends = rng.integers(num_vertices, size=(2, 3 * num_vertices))
    graph = graph_from_edges(num_vertices, *ends, rng.random(3 * num_vertices), rng.random(num_vertices))
    distance = random_symmetric(num_nodes, seed)
    shares = np.full(num_nodes, 1.0 / num_nodes)
    limits = part_limits(graph.vertex_weights, shares, 0.2)
    nodes = packed(graph.vertex_weights, shares)
    better = shorten(graph.adjacency, nodes, limits, distance, rng)
    assert mapped_cost(graph, better, distance) <= mapped_cost(graph, nodes, distance) * (1 + 1e-12)
    assert np.all(part_weights(graph, better, num_nodes) <= limits * (1 + 1e-12))


# Two routes that agree.


@pytest.mark.parametrize("seed", range(5))
def test_placement_is_at_least_as_good_as_scipys_exchanges(seed):
    traffic, distance = random_symmetric(12, seed), random_symmetric(12, seed + 50)
    theirs = quadratic_assignment(traffic, distance, method="2opt", options={"rng": np.random.default_rng(0)})
    ours = placement_cost(traffic, map_parts(traffic, distance), distance)
    assert placement_cost(traffic, theirs.col_ind, distance) == pytest.approx(theirs.fun / 2)
    assert ours <= theirs.fun / 2 * (1 + 1e-9)


# Bad input.


@pytest.mark.parametrize(
    ("traffic", "distance", "shares", "message"),
    [
        ([[0.0, 1.0]], [[0.0]], None, "traffic must be a square matrix, got shape (1, 2)."),
        ([[0.0]], [], None, "distance must be a square matrix, got shape (0,)."),
        ([[1.0]], [[0.0]], None, "traffic must have zeros on its diagonal, got [1.]."),
        (np.zeros((2, 2)), [[0.0]], None, "there must be a node for each part, got 2 parts and 1 nodes."),
        ([[0.0, 1.0], [2.0, 0.0]], np.zeros((2, 2)), None, "traffic must be symmetric."),
        ([[0.0, np.nan], [np.nan, 0.0]], np.zeros((2, 2)), None, "traffic must be finite and >= 0, got nan."),
        ([[0.0]], np.zeros((2, 2)), [1, 1], "shares need as many parts as nodes, and one for each, got 1, 2 and (2,)."),
    ],
)
def test_bad_input_is_named(traffic, distance, shares, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        map_parts(traffic, distance, shares)

"""Graphs, what a partition of them costs, and refinement: numa_rl/partition/{graph,objective,refinement,kernel}.py."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Task, toy_workload

from numa_rl.partition.coarsening import coarsen, contract
from numa_rl.partition.generators import (
    grid,
    layered_tasks,
    planted_partition,
    random_geometric,
    random_regular,
    ring_of_cliques,
    rmat,
)
from numa_rl.partition.graph import Graph, graph_from_edges, graph_from_matrix
from numa_rl.partition.heap import make_heap
from numa_rl.partition.kernel import Assignment, Log, count_links, exchange, refine, shift
from numa_rl.partition.objective import (
    balance,
    checked_parts,
    cut_weight,
    mapped_cost,
    objective,
    packed,
    part_limits,
    part_weights,
    require_shares,
    traffic_matrix,
)
from numa_rl.partition.refinement import cut_of, improve
from numa_rl.partition.workload_graph import workload_graph


def square() -> Graph:
    """0 - 1 - 2 - 3 - 0 with edges 5, 1, 5, 2; vertices weigh 1, 2, 3, 4."""
    return graph_from_edges(4, [0, 1, 2, 3], [1, 2, 3, 0], [5.0, 1.0, 5.0, 2.0], [1.0, 2.0, 3.0, 4.0])


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Any small graph, with loops and edges given twice in its list, isolated and weightless vertices."""
    num_vertices = draw(st.integers(1, 14))
    num_edges = draw(st.integers(0, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ends = rng.integers(num_vertices, size=(2, num_edges))
    whole = draw(st.booleans())
    weights = rng.integers(1, 20, num_edges) if whole else rng.random(num_edges) + 0.01
    vertex_weights = rng.integers(0, 9, num_vertices) if whole else rng.random(num_vertices)
    vertex_weights[0] += 1
    return graph_from_edges(num_vertices, *ends, weights, vertex_weights)


# Known answers.


def test_cut_balance_and_objective_of_a_square():
    graph, parts = square(), np.array([0, 0, 1, 1])
    assert cut_weight(graph, parts) == 3.0
    assert part_weights(graph, parts, 2).tolist() == [3.0, 7.0]
    assert balance(np.array([3.0, 7.0]), np.array([0.5, 0.5])) == 1.4
    assert balance(np.array([3.0, 7.0]), np.array([0.3, 0.7])) == pytest.approx(1.0)
    assert objective(graph, parts, 2, 0.5) == 3.0 + 0.5 * 7.0
    assert traffic_matrix(graph, np.array([0, 1, 1, 2]), 3).tolist() == [[0, 5, 2], [5, 0, 5], [2, 5, 0]]
    distance = np.array([[0.0, 1.0, 3.0], [1.0, 0.0, 2.0], [3.0, 2.0, 0.0]])
    assert mapped_cost(graph, np.array([0, 1, 1, 2]), distance) == 5 * 1 + 2 * 3 + 5 * 2


def test_limits_add_the_allowance_to_what_whole_vertices_can_reach():
    thirds = np.full(3, 1 / 3)
    np.testing.assert_allclose(part_limits(np.ones(9), thirds, 0.1), 3.3)
    np.testing.assert_allclose(part_limits(np.ones(10), thirds, 0.1), 4.4)  # 1.1 ceil(10 / 3)
    np.testing.assert_allclose(part_limits(np.array([6.0, 1.0, 1.0]), thirds, 0.0), 6.0)
    np.testing.assert_allclose(part_limits(np.ones(8), np.array([0.25, 0.75]), 0.5), [3.0, 9.0])


def test_list_scheduling_puts_the_heaviest_first_where_it_fills_least():
    assert packed(np.array([3.0, 3.0, 2.0, 2.0, 2.0]), np.array([0.5, 0.5])).tolist() == [0, 1, 0, 1, 0]
    assert packed(np.array([1.0, 1.0, 1.0, 1.0]), np.array([0.25, 0.75])).tolist() == [1, 1, 0, 1]


def test_edges_between_the_same_vertices_add_up_and_loops_vanish():
    graph = graph_from_edges(3, [0, 1, 2, 0], [1, 0, 2, 2], [1.0, 2.0, 9.0, 0.0])
    assert [array.tolist() for array in graph.edges()] == [[0], [1], [3.0]]
    assert graph.offsets.tolist() == [0, 1, 2, 2]
    assert (graph.num_vertices, graph.num_edges, graph.total_weight) == (3, 1, 3.0)
    np.testing.assert_array_equal(graph.matrix.toarray(), [[0, 3, 0], [3, 0, 0], [0, 0, 0]])


def test_contraction_adds_what_clusters_hold_and_what_passes_between():
    coarse = contract(square().adjacency, np.array([0, 1, 1, 0]), 2)
    assert coarse.vertex_weights.tolist() == [5.0, 5.0]
    assert (coarse.neighbours.tolist(), coarse.edge_weights.tolist()) == ([1, 0], [10.0, 10.0])


def test_a_star_is_coarsened_although_only_one_leaf_matches_its_hub():
    leaves = 1000
    graph = graph_from_edges(leaves + 1, np.zeros(leaves, int), np.arange(1, leaves + 1))
    levels = coarsen(graph.adjacency, 50, np.zeros(leaves + 1, np.int64), np.random.default_rng(0))
    assert len(levels[-1].graph.vertex_weights) <= 100


def test_refinement_exchanges_vertices_where_parts_are_full():
    graph = graph_from_edges(4, [0, 2], [1, 3])
    parts = improve(graph.adjacency, np.array([0, 1, 0, 1]), np.array([2.0, 2.0]), np.random.default_rng(0))
    assert cut_weight(graph, parts) == 0.0


def test_refinement_climbs_out_of_a_local_optimum():
    """Two cliques of 4, split 2 + 2 each: no single move gains, and neither does any exchange of two."""
    graph = graph_from_edges(8, *np.concatenate([np.argwhere(np.triu(np.ones((4, 4)), 1)) + o for o in (0, 4)]).T)
    parts = improve(graph.adjacency, np.array([0, 0, 1, 1, 0, 0, 1, 1]), np.array([8.0, 8.0]), np.random.default_rng(0))
    assert cut_weight(graph, parts) == 0.0


def test_tasks_are_joined_by_the_bytes_that_pass_through_objects():
    episode = [
        Task(obj=0, num_bytes=10.0, write_fraction=0.5),
        Task(obj=1, num_bytes=20.0, reads=((0, 7.0),)),  # creates object 1, and so writes it
        Task(obj=0, num_bytes=30.0, reads=((1, 5.0),)),  # does not write object 0
        Task(obj=2, num_bytes=40.0, reads=((0, 3.0), (1, 2.0))),
        Task(obj=2, num_bytes=0.0, reads=((2, 50.0),)),  # its own object, by both ways
    ]
    graph = workload_graph(toy_workload(episode), 0)
    edges = {(a, b): w for a, b, w in zip(*(array.tolist() for array in graph.edges()), strict=True)}
    assert edges == {(0, 1): 7.0, (1, 2): 5.0, (0, 2): 30.0, (0, 3): 3.0, (1, 3): 2.0, (3, 4): 50.0}
    assert graph.vertex_weights.tolist() == [10.0, 27.0, 35.0, 45.0, 50.0]
    assert workload_graph(toy_workload(episode), 0, [1, 2, 3, 4, 5]).vertex_weights.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("graph", "num_vertices", "num_edges"),
    [
        (grid(7), 7, 6),
        (grid(3, 4), 12, 17),
        (grid(2, 3, 4), 24, 46),
        (ring_of_cliques(5, 4), 20, 35),
        (ring_of_cliques(2, 3), 6, 7),
        (ring_of_cliques(1, 3), 3, 3),
    ],
)
def test_regular_graphs_have_the_edges_they_should(graph, num_vertices, num_edges):
    assert (graph.num_vertices, graph.num_edges) == (num_vertices, num_edges)


def test_random_graphs_have_the_degrees_asked_for():
    rng = np.random.default_rng(0)
    assert set(np.diff(random_regular(200, 6, rng).offsets).tolist()) == {6}
    assert np.diff(random_geometric(3000, 10.0, rng).offsets).mean() == pytest.approx(
        9.5, abs=0.7
    )  # edges of the square
    planted = planted_partition(4, 200, 10.0, 2.0, rng)
    groups = np.arange(800) // 200
    assert 0.7 < cut_weight(planted, groups) / 800 < 0.8  # 3 of 4 ends without fall in another group: 0.75 edges each
    degrees = np.diff(rmat(10, 8, rng).offsets)
    assert degrees.max() > 10 * degrees.mean()
    layered = layered_tasks(5, 10, 2, rng)
    source, target, _ = layered.edges()
    assert set((target // 10 - source // 10).tolist()) == {1}


# Laws.


@given(graphs(), st.integers(1, 6), st.integers(0, 2**32))
@settings(deadline=None)  # the first call compiles
def test_cut_weight_does_not_depend_on_the_numbers_of_vertices_and_parts(graph, num_parts, seed):
    rng = np.random.default_rng(seed)
    parts = rng.integers(num_parts, size=graph.num_vertices)
    new, part_names = rng.permutation(graph.num_vertices), rng.permutation(num_parts)
    source, target, weight = graph.edges()
    weights = np.empty(graph.num_vertices)
    weights[new] = graph.vertex_weights
    relabelled = graph_from_edges(graph.num_vertices, new[source], new[target], weight, weights)
    moved = np.empty_like(parts)
    moved[new] = part_names[parts]
    assert cut_weight(relabelled, moved) == pytest.approx(cut_weight(graph, parts), rel=1e-12)
    assert cut_weight(graph, parts) == pytest.approx(traffic_matrix(graph, parts, num_parts).sum() / 2, rel=1e-12)
    assert cut_of(graph.adjacency, parts) == pytest.approx(cut_weight(graph, parts), rel=1e-12)


@given(graphs(), st.integers(1, 5), st.floats(0.0, 0.5), st.integers(0, 2**32))
@settings(deadline=None)  # the first call compiles
def test_refinement_keeps_limits_and_never_worsens_a_partition_that_kept_them(graph, num_parts, imbalance, seed):
    rng = np.random.default_rng(seed)
    shares = require_shares(num_parts, rng.random(num_parts) + 0.1)
    limits = part_limits(graph.vertex_weights, shares, imbalance)
    for first in (rng.integers(num_parts, size=graph.num_vertices), packed(graph.vertex_weights, shares)):
        kept = np.all(part_weights(graph, first, num_parts) <= limits)
        better = improve(graph.adjacency, first, limits, rng)
        assert np.all(part_weights(graph, better, num_parts) <= limits * (1 + 1e-12))
        if kept:
            assert cut_weight(graph, better) <= cut_weight(graph, first) * (1 + 1e-12)


@given(graphs(), st.integers(2, 4), st.integers(0, 2**32))
@settings(deadline=None)
def test_every_pass_gains_what_it_says(graph, num_parts, seed):
    rng = np.random.default_rng(seed)
    v = graph.num_vertices
    limits = np.full(num_parts, graph.total_weight)
    parts = rng.integers(num_parts, size=v)
    assignment = Assignment(parts.copy(), np.zeros(num_parts), limits, np.zeros((v, num_parts)))
    count_links(graph.adjacency, assignment)
    tolerance = 1e-9 * (1.0 + float(graph.edge_weights.sum()))
    cut = cut_weight(graph, parts)
    passes = (
        lambda: exchange(graph.adjacency, assignment, rng.permutation(v), np.zeros(v)),
        lambda: refine(
            graph.adjacency, assignment, make_heap(v), Log(*np.zeros((3, v), np.int64)), rng.permutation(v), 5
        ),
        lambda: shift(graph.adjacency, assignment, rng.permutation(v), 1.0 - np.eye(num_parts)),  # the cut again
    )
    for run in passes:
        gained = run()
        assert gained >= 0.0
        assert cut_weight(graph, assignment.parts) == pytest.approx(cut - gained, abs=tolerance)
        cut -= gained
    np.testing.assert_allclose(assignment.part_weights, part_weights(graph, assignment.parts, num_parts), atol=1e-9)


@given(graphs(), st.integers(1, 10), st.integers(0, 2**32))
@settings(deadline=None)  # the first call compiles
def test_coarser_graphs_keep_all_weight_and_the_cut_of_every_partition_of_theirs(graph, fewest, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=graph.num_vertices)
    finer = graph.adjacency
    for level in coarsen(finer, fewest, labels, rng)[1:]:
        assert level.graph.vertex_weights.sum() == pytest.approx(graph.total_weight)
        parts = rng.integers(3, size=len(level.graph.vertex_weights))
        assert cut_of(level.graph, parts) == pytest.approx(cut_of(finer, parts[level.coarse]), rel=1e-9)
        for cluster in range(len(level.graph.vertex_weights)):
            assert len(set(labels[level.coarse == cluster].tolist())) == 1
        coarse_labels = np.zeros(len(level.graph.vertex_weights), np.int64)
        coarse_labels[level.coarse] = labels
        finer, labels = level.graph, coarse_labels


@given(graphs(), st.integers(1, 6))
@settings(deadline=None, max_examples=50)
def test_list_scheduling_keeps_the_limits_made_from_it(graph, num_parts):
    shares = require_shares(num_parts, None)
    weights = part_weights(graph, packed(graph.vertex_weights, shares), num_parts)
    assert np.all(weights <= part_limits(graph.vertex_weights, shares, 0.0))


# Bad input.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vertex_weights": []}, "a graph must have at least one vertex, got none."),
        ({"offsets": [0, 1]}, "offsets must have shape (3,), one more than vertices, got (2,)."),
        ({"offsets": [0, 2, 1]}, "offsets must rise from 0 to the number of neighbours, 2."),
        ({"edge_weights": [1.0]}, "edge_weights must have shape (2,), got (1,)."),
        ({"edge_weights": [1.0, 2.0]}, "edge (0, 1) must weigh the same at both ends, got 1.0 and 2.0."),
        ({"edge_weights": [0.0, 0.0]}, "edge_weights[0] must be finite and > 0, got 0.0."),
        ({"edge_weights": [1e300, 1e300]}, "edge_weights must add up to at most 1e+300, got 2e+300."),
        ({"vertex_weights": [1.0, np.nan]}, "vertex_weights[1] must be finite and >= 0, got nan."),
        ({"vertex_weights": [1.0, -1.0]}, "vertex_weights[1] must be finite and >= 0, got -1.0."),
        ({"vertex_weights": [0.0, 0.0]}, "vertex_weights must not all be 0, got only zeros."),
        ({"vertex_weights": [[1.0, 1.0]]}, "vertex_weights must have one dimension, got shape (1, 2)."),
        ({"neighbours": [1, 2]}, "neighbours must be vertices in 0..1, got 2."),
        ({"neighbours": [0, 0]}, "a vertex must not be its own neighbour, got 0."),
        ({"neighbours": [1, 0], "offsets": [0, 2, 2]}, "a vertex must not be its own neighbour, got 0."),
    ],
)
def test_arrays_that_are_no_graph_are_refused(changes, message):
    arrays: dict[str, Any] = {
        "offsets": [0, 1, 2],
        "neighbours": [1, 0],
        "edge_weights": [1.0, 1.0],
        "vertex_weights": [1.0, 1.0],
    }
    Graph(**arrays)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Graph(**(arrays | changes))


def test_an_edge_of_one_end_or_given_twice_is_refused():
    with pytest.raises(ValueError, match="must stand at both of its ends"):
        Graph([0, 1, 2, 2], [1, 2], [1.0, 1.0], [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="the neighbours of vertex 0 must increase, each named once"):
        Graph([0, 2, 4], [1, 1, 0, 0], np.ones(4), np.ones(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: graph_from_edges(0, [], []), "a graph must have at least one vertex, got 0."),
        (lambda: graph_from_edges(2, [0], [2]), "edges must join vertices in 0..1, got 2."),
        (lambda: graph_from_edges(2, [0], [1], [np.inf]), "edge weights[0] must be finite and >= 0, got inf."),
        (lambda: graph_from_matrix(np.ones((2, 3)), np.ones(2)), "a matrix of edge weights must be square, got shape"),
        (lambda: checked_parts(square(), [0, 1], 2), "parts must have shape (4,), got (2,)."),
        (lambda: checked_parts(square(), [0.0, 1, 1, 1], 2), "parts must be whole numbers, got float64."),
        (lambda: checked_parts(square(), [0, 1, 2, 1], 2), "parts must be in 0..1, got 2."),
        (lambda: objective(square(), np.zeros(4, int), 1, np.nan), "trade_off must be finite and >= 0, got nan."),
        (lambda: require_shares(0, None), "num_parts must be a whole number >= 1, got 0."),
        (lambda: require_shares(2, [1.0]), "target_shares must have shape (2,), one for each part, got (1,)."),
        (lambda: require_shares(2, [1.0, 0.0]), "target_shares must be finite and > 0, got 0.0."),
        (lambda: part_limits(np.ones(2), np.ones(1), -0.1), "imbalance must be in [0, 1000], got -0.1."),
        (lambda: workload_graph(toy_workload([Task(num_bytes=1.0)]), 1), "episode must be in 0..0, got 1."),
        (lambda: workload_graph(toy_workload([Task()]), 0, [1, 2]), "task_weights must have shape (1,), got (2,)."),
        (lambda: grid(), "sides must be >= 1, got ()."),
        (lambda: grid(3, 0), "sides must be >= 1, got (3, 0)."),
        (lambda: random_geometric(5, np.nan, np.random.default_rng(0)), "a mean degree must be finite and >= 0"),
        (lambda: random_regular(5, 3, np.random.default_rng(0)), "no graph of 5 vertices has 3 neighbours at each."),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()

"""Orders, starts and ranks of task graphs: a published example by hand, laws, and paths found by another route."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numa_rl.workloads.task_graph import earliest_start, topological_order, upward_rank

# Topcuoglu, Hariri, Wu 2002, figure 2: costs of ten tasks on three processors, and communication along each edge.
HEFT_COSTS = [
    [14, 16, 9],
    [13, 19, 18],
    [11, 13, 19],
    [13, 8, 17],
    [12, 13, 10],
    [13, 16, 9],
    [7, 15, 11],
    [5, 11, 14],
    [18, 12, 20],
    [21, 7, 16],
]
HEFT_EDGES = {
    (1, 2): 18,
    (1, 3): 12,
    (1, 4): 9,
    (1, 5): 11,
    (1, 6): 14,
    (2, 8): 19,
    (2, 9): 16,
    (3, 7): 23,
    (4, 8): 27,
    (4, 9): 23,
    (5, 9): 13,
    (6, 8): 15,
    (7, 10): 17,
    (8, 10): 11,
    (9, 10): 13,
}


@st.composite
def graphs(draw):
    """Costs, edges from lower to higher indices, and communication."""
    n = draw(st.integers(1, 8))
    pairs = [(a, b) for b in range(n) for a in range(b)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=12)) if pairs else []
    times = st.integers(0, 20)
    cost = draw(st.lists(times, min_size=n, max_size=n))
    return cost, edges, draw(st.lists(times, min_size=len(edges), max_size=len(edges)))


def longest(cost, edges, passing, task, end):
    """Longest path from a task that begins there (end 0) or ends there (end 1), the task itself left out."""
    beyond = [
        passing[i] + cost[edge[1 - end]] + longest(cost, edges, passing, edge[1 - end], end)
        for i, edge in enumerate(edges)
        if edge[end] == task
    ]
    return max(beyond, default=0)


def test_upward_ranks_are_those_of_the_published_example():
    edges = np.array(list(HEFT_EDGES)) - 1
    rank = upward_rank(np.mean(HEFT_COSTS, axis=1), edges, list(HEFT_EDGES.values()))
    np.testing.assert_allclose(rank, [108, 77, 80, 80, 69, 63.33, 42.67, 35.67, 44.33, 14.67], atol=0.005)


def test_a_task_starts_when_the_last_of_those_before_it_has_sent():
    # 0 (2) -> 1 (3) -> 3, 0 -> 2 (1) -> 3: 2 + 1 + 3 + 5 by way of 1, 2 + 4 + 1 + 0 by way of 2.
    start = earliest_start([2, 3, 1, 9], [(0, 1), (0, 2), (1, 3), (2, 3)], [1, 4, 5, 0])
    assert start.tolist() == [0, 3, 6, 11]


def test_order_follows_indices_where_it_can():
    assert topological_order(4, [(3, 0), (2, 1)]).tolist() == [2, 1, 3, 0]
    assert topological_order(3, []).tolist() == [0, 1, 2]


def test_an_edge_given_twice_counts_once():
    assert topological_order(2, [(1, 0), (1, 0)]).tolist() == [1, 0]


@given(graph=graphs(), seed=st.integers(0, 2**32))
def test_no_task_comes_before_what_it_waits_for(graph, seed):
    cost, edges, _ = graph
    name = np.random.default_rng(seed).permutation(len(cost))
    order = topological_order(len(cost), [(name[a], name[b]) for a, b in edges])
    assert sorted(order.tolist()) == list(range(len(cost)))
    place = np.argsort(order)
    assert all(place[name[a]] < place[name[b]] for a, b in edges)


@given(graph=graphs())
def test_ranks_and_starts_are_longest_paths(graph):
    cost, edges, passing = graph
    rank, start = upward_rank(cost, edges, passing), earliest_start(cost, edges, passing)
    for task in range(len(cost)):
        assert rank[task] == cost[task] + longest(cost, edges, passing, task, 0)
        assert start[task] == longest(cost, edges, passing, task, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: topological_order(3, [(0, 1), (1, 2), (2, 1)]),
            "a graph of tasks must have no cycle, got 1 -> 2 -> 1.",
        ),
        (lambda: topological_order(1, [(0, 0)]), "a graph of tasks must have no cycle, got 0 -> 0."),
        (
            lambda: topological_order(4, [(0, 1), (1, 2), (2, 0), (2, 3)], ["a", "b", "c", "d"]),
            "a graph of tasks must have no cycle, got a -> b -> c -> a.",
        ),
        (lambda: topological_order(2, [(0, 2)]), "edges[0] must join tasks in 0..1, got [0, 2]."),
        (lambda: topological_order(2, [(0, 1, 1)]), "edges must have shape (m, 2), got (1, 3)."),
        (lambda: upward_rank([1, np.nan], []), "cost[1] must be finite and >= 0, got nan."),
        (lambda: upward_rank([1, 1], [(0, 1)], [-1]), "communication[0] must be finite and >= 0, got -1.0."),
        (lambda: earliest_start([1, 1], [(0, 1)], [1, 2]), "communication must have shape (1,), got (2,)."),
        (lambda: earliest_start([[1.0]], []), "cost must have shape (n,), got (1, 1)."),
    ],
)
def test_what_is_no_graph_is_refused(call, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, unescaped
        call()
    assert str(caught.value) == message

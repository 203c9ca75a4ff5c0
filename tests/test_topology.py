from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numa_rl.machines.builders import from_links, two_socket
from numa_rl.topology import LoadedLatency, Topology, hop_counts


def pair(**changes: Any) -> Topology:
    """Two nodes, 10 ns apart from themselves and 25 from each other, with some figures changed."""
    figures: dict[str, Any] = {
        "name": "pair",
        "cores": [4, 4],
        "flops_per_s": [1e9, 1e9],
        "memory_bytes": [1e9, 1e9],
        "memory_bandwidth_bytes_per_s": [1e11, 1e11],
        "latency_s": [[10e-9, 25e-9], [25e-9, 10e-9]],
        "bandwidth_bytes_per_s": [[9e10, 3e10], [3e10, 9e10]],
        "links": [(0, 1), (1, 0)],
        "link_bandwidth_bytes_per_s": [3e10, 3e10],
    }
    return Topology(**{**figures, **changes})


@st.composite
def machines(draw: st.DrawFn) -> Topology:
    """A connected machine of up to seven nodes: a random tree and some further links."""
    num_nodes = draw(st.integers(2, 7))
    tree = [(node, draw(st.integers(0, node - 1))) for node in range(1, num_nodes)]
    any_node = st.integers(0, num_nodes - 1)
    further = draw(st.lists(st.tuples(any_node, any_node).filter(lambda ends: ends[0] != ends[1]), max_size=6))
    return from_links("random", num_nodes, [*tree, *further])


def distances_by_relaxation(links: np.ndarray, num_nodes: int) -> np.ndarray:
    """Hop counts by Floyd and Warshall's three loops, to check against."""
    hops = np.full((num_nodes, num_nodes), num_nodes * num_nodes)
    np.fill_diagonal(hops, 0)
    for source, target in links:
        hops[source, target] = 1
    for middle in range(num_nodes):
        hops = np.minimum(hops, hops[:, middle, None] + hops[None, middle, :])
    return hops


@settings(deadline=None, max_examples=60)
@given(machines())
def test_hops_are_those_of_the_shortest_path(topology):
    np.testing.assert_array_equal(topology.hops, distances_by_relaxation(topology.links, topology.num_nodes))


@settings(deadline=None, max_examples=60)
@given(machines())
def test_routes_are_shortest_and_follow_links(topology):
    links = topology.link_index()
    for initiator in range(topology.num_nodes):
        for target in range(topology.num_nodes):
            route = topology.route(initiator, target)
            assert (route[0], route[-1]) == (initiator, target)
            assert len(route) - 1 == topology.hops[initiator, target]
            assert all(step in links for step in pairwise(route))


@settings(deadline=None, max_examples=60)
@given(machines())
def test_hops_are_symmetric(topology):
    np.testing.assert_array_equal(topology.hops, topology.hops.T)


@settings(deadline=None, max_examples=60)
@given(machines(), st.randoms(use_true_random=False))
def test_relabelling_nodes_relabels_hops_and_latency(topology, random):
    new_name = list(range(topology.num_nodes))
    random.shuffle(new_name)
    pairs = [(new_name[a], new_name[b]) for a, b in topology.links.tolist()]
    relabelled = from_links("relabelled", topology.num_nodes, pairs)
    where = np.ix_(new_name, new_name)
    np.testing.assert_array_equal(relabelled.hops[where], topology.hops)
    np.testing.assert_array_equal(relabelled.latency_s[where], topology.latency_s)


def test_of_routes_with_equal_hops_the_one_with_least_latency_is_taken():
    ns = np.array([[10, 30, 20, 50], [30, 10, 50, 30], [20, 50, 10, 20], [50, 30, 20, 10]], dtype=float)
    square = from_links("square", 4, [(0, 1), (0, 2), (1, 3), (2, 3)])
    topology = replace(square, latency_s=ns * 1e-9)
    assert topology.route(0, 3) == [0, 2, 3]
    assert topology.route(3, 0) == [3, 2, 0]


def test_hops_are_minus_one_where_there_is_no_route():
    np.testing.assert_array_equal(hop_counts(np.array([(0, 1)]), 2), [[0, 1], [-1, 0]])


def test_a_machine_of_one_node_needs_no_links():
    topology = from_links("alone", 1, [])
    assert topology.hops.tolist() == [[0]]
    assert topology.route(0, 0) == [0]


def test_fallback_order_starts_at_the_node_itself_and_goes_outwards():
    topology = from_links("path", 4, [(0, 1), (1, 2), (2, 3)])
    np.testing.assert_array_equal(topology.fallback_order, [[0, 1, 2, 3], [1, 0, 2, 3], [2, 1, 3, 0], [3, 2, 1, 0]])


def test_arrays_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        two_socket().latency_s[0, 0] = 1.0


def test_a_machine_does_not_change_with_the_arrays_it_was_made_from():
    cores = np.array([4, 4])
    topology = pair(cores=cores)
    cores[0] = 99
    assert topology.cores.tolist() == [4, 4]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cores": []}, r"needs at least one node, got none"),
        ({"cores": [0, 0]}, r"at least one node must have cores, got zero cores everywhere"),
        ({"cores": [4, -1]}, r"cores\[1\] must be in 0\.\.4096, got -1"),
        ({"flops_per_s": [1e9]}, r"flops_per_s must have shape \(2,\), got \(1,\)"),
        ({"flops_per_s": [0.0, 1e9]}, r"flops_per_s\[0\] must be finite and > 0, got 0\.0"),
        ({"memory_bytes": [1e9, INF]}, r"memory_bytes\[1\] must be finite and > 0, got inf"),
        ({"memory_bandwidth_bytes_per_s": [NAN, 1.0]}, r"memory_bandwidth_bytes_per_s\[0\] .*got nan"),
        ({"latency_s": np.ones((3, 3))}, r"latency_s must have shape \(2, 2\), got \(3, 3\)"),
        ({"latency_s": [[1.0, NAN], [1.0, 1.0]]}, r"latency_s\[0, 1\] must be finite and > 0, got nan"),
        ({"latency_s": [[1.0, 1.0], [-2.0, 1.0]]}, r"latency_s\[1, 0\] must be finite and > 0, got -2\.0"),
        ({"bandwidth_bytes_per_s": [[1.0, 0.0], [1.0, 1.0]]}, r"bandwidth_bytes_per_s\[0, 1\] .*got 0\.0"),
        ({"links": [], "link_bandwidth_bytes_per_s": []}, r"links must connect every node, got no route from 0 to 1"),
        ({"links": [(0, 1), (0, 1)]}, r"link \(0, 1\) must have its reverse \(1, 0\), got none"),
        ({"links": [(0, 0), (1, 1)]}, r"a link must join two different nodes, got \(0, 0\)"),
        ({"links": [(0, 2), (2, 0)]}, r"links\[0, 1\] must be a node in 0\.\.1, got 2"),
        ({"links": [(0, -1), (-1, 0)]}, r"links\[0, 1\] must be a node in 0\.\.1, got -1"),
        (
            {"links": [(0, 1), (1, 0), (0, 1)], "link_bandwidth_bytes_per_s": [1.0, 1.0, 1.0]},
            r"each directed link must be given once",
        ),
        ({"link_bandwidth_bytes_per_s": [1.0]}, r"link_bandwidth_bytes_per_s must have shape \(2,\), got \(1,\)"),
        ({"link_bandwidth_bytes_per_s": [1.0, -1.0]}, r"link_bandwidth_bytes_per_s\[1\] .*got -1\.0"),
        ({"outstanding_bytes": 0}, r"outstanding_bytes must be finite and > 0, got 0"),
        ({"outstanding_bytes": INF}, r"outstanding_bytes must be finite and > 0, got inf"),
        ({"llc_bytes": 0.0}, r"llc_bytes\[0\] must be finite and > 0, got 0\.0"),
        ({"llc_bytes": [1.0, 2.0, 3.0]}, r"llc_bytes must have shape \(2,\), got \(3,\)"),
        ({"page_bytes": -4096}, r"page_bytes must be finite and > 0, got -4096"),
        ({"page_move_s": NAN}, r"page_move_s must be finite and >= 0, got nan"),
    ],
)
def test_a_wrong_figure_is_named_with_its_rule_and_value(changes, message):
    with pytest.raises(ValueError, match=f"machine 'pair': .*{message}"):
        pair(**changes)


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"a": -0.1}, "a must be finite and >= 0, got -0.1"),
        ({"c": NAN}, "c must be finite and >= 0, got nan"),
        ({"saturated": 0.5}, "saturated must be finite and >= 1, got 0.5"),
    ],
)
def test_loaded_latency_refuses_a_curve_that_is_none(figures, message):
    with pytest.raises(ValueError, match=f"loaded latency: {message}"):
        LoadedLatency(**figures)

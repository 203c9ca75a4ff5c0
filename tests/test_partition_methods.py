"""`partition` by every method: numa_rl/partition/{methods,multilevel,initial,spectral,libraries}.py."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numa_rl.machines.catalog import load_machine
from numa_rl.partition import methods
from numa_rl.partition.generators import grid, planted_partition, random_geometric, ring_of_cliques
from numa_rl.partition.graph import Graph, graph_from_edges
from numa_rl.partition.libraries import mt_kahypar_map
from numa_rl.partition.mapping import node_distances
from numa_rl.partition.methods import METHODS, MODULES, available_methods, partition
from numa_rl.partition.multilevel import Effort, usual_effort
from numa_rl.partition.objective import cut_weight, part_limits, part_weights, require_shares
from numa_rl.partition.readers import read_graph
from numa_rl.partition.spectral import fiedler_vector, split
from numa_rl.partition.suite import GENERATED, SEED

TRACES = Path(__file__).parents[1].parent / "shared" / "data" / "traces"
QUICK = Effort(starts=2, combinations=2)
MOST_OVER_METIS = 1.1


def needed(method: str) -> str:
    """The method, if its library is installed; else the test is skipped."""
    if method in MODULES:
        pytest.importorskip(MODULES[method])
    return method


# Known answers.


@pytest.mark.parametrize("method", METHODS)
def test_a_ring_of_cliques_is_cut_at_its_bridges(method):
    graph = ring_of_cliques(16, 8)
    result = partition(graph, 4, method=needed(method), rng=np.random.default_rng(0))
    assert (result.cut, result.balance) == (4.0, 1.0)
    cliques = result.parts.reshape(16, 8)
    assert np.all(cliques == cliques[:, :1])


@pytest.mark.parametrize("method", ["multilevel", "spectral"])
def test_a_grid_is_halved_across(method):
    result = partition(grid(20, 60), 2, imbalance=0.0, method=method, rng=np.random.default_rng(0))
    assert (result.cut, result.balance) == (20.0, 1.0)


def test_planted_groups_are_found():
    graph = planted_partition(4, 100, 14.0, 2.0, np.random.default_rng(0))
    result = partition(graph, 4, rng=np.random.default_rng(0))
    groups = result.parts.reshape(4, 100)
    assert np.all(groups == groups[:, :1])


def test_parts_have_the_shares_asked_for():
    result = partition(grid(10, 40), 3, imbalance=0.02, target_shares=[1, 1, 2], rng=np.random.default_rng(0))
    assert np.all(result.part_weights <= np.array([102.0, 102.0, 204.0]))
    assert result.cut == 20.0


def test_components_are_kept_whole_where_they_fit():
    ends = np.argwhere(np.triu(np.ones((5, 5)), 1))
    graph = graph_from_edges(30, *np.concatenate([ends + 5 * clique for clique in range(6)]).T)
    assert partition(graph, 3, rng=np.random.default_rng(0)).cut == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_one_part_has_all_and_no_edges_means_no_cut(method):
    one = partition(grid(3, 3), 1, method=needed(method), rng=np.random.default_rng(0))
    assert (one.parts.tolist(), one.cut, one.balance) == ([0] * 9, 0.0, 1.0)
    loose = partition(graph_from_edges(6, [], []), 3, method=method, rng=np.random.default_rng(0))
    assert (loose.part_weights.tolist(), loose.cut) == ([2.0, 2.0, 2.0], 0.0)


@pytest.mark.parametrize("method", ["multilevel", "spectral"])
def test_more_parts_than_vertices_leave_parts_empty(method):
    result = partition(grid(3), 5, method=method, rng=np.random.default_rng(0))
    assert sorted(result.part_weights.tolist()) == [0, 0, 1, 1, 1]


def test_the_fiedler_vector_of_a_path_is_a_cosine():
    """Its components are cos(pi (i + 1/2) / n)."""
    wave = np.cos(np.pi * (np.arange(30) + 0.5) / 30)
    vector = fiedler_vector(grid(30).adjacency, np.random.default_rng(0))
    np.testing.assert_allclose(abs(vector @ wave) / np.linalg.norm(wave), 1.0)
    long = fiedler_vector(grid(2, 500).adjacency, np.random.default_rng(0))  # by way of coarser graphs
    assert np.array_equal(split(long, np.ones(1000), 0.5)[:500], split(long, np.ones(1000), 0.5)[500:])
    assert split(wave, np.arange(30.0), 0.4).tolist() == [1] * 23 + [0] * 7  # 29 + ... + 23 is 182 of 435


# Laws.


@st.composite
def cases(draw: st.DrawFn) -> tuple[Graph, int, float, list[float] | None, int]:
    """A graph of any weights, a number of parts, an imbalance, shares and a seed."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    num_vertices = draw(st.integers(1, 60))
    num_edges = draw(st.integers(0, 150))
    scale = 10.0 ** draw(st.integers(-12, 12))
    weights = rng.lognormal(0.0, 2.0, num_edges) * scale
    vertex_weights = rng.choice([0.0, 1.0, 50.0], num_vertices) * scale
    vertex_weights[0] += scale
    graph = graph_from_edges(num_vertices, *rng.integers(num_vertices, size=(2, num_edges)), weights, vertex_weights)
    num_parts = draw(st.integers(1, 7))
    shares = (rng.random(num_parts) + 0.2).tolist() if draw(st.booleans()) else None
    return graph, num_parts, draw(st.sampled_from([0.0, 0.03, 0.5])), shares, draw(st.integers(0, 2**32))


@given(cases(), st.sampled_from(METHODS))
@settings(deadline=None, max_examples=150)
def test_every_partition_keeps_its_limits_and_its_figures_are_true(case, method):
    graph, num_parts, imbalance, shares, seed = case
    cannot = num_parts > graph.num_vertices or (method == "kahip" and shares is not None)
    if method in MODULES and (cannot or method not in available_methods()):
        return
    result = partition(
        graph,
        num_parts,
        imbalance=imbalance,
        method=method,
        target_shares=shares,
        rng=np.random.default_rng(seed),
        effort=QUICK,
    )
    limits = part_limits(graph.vertex_weights, require_shares(num_parts, shares), imbalance)
    assert np.all(part_weights(graph, result.parts, num_parts) <= limits)
    assert result.balance <= result.allowed_balance * (1 + 1e-12)
    np.testing.assert_array_equal(result.part_weights, part_weights(graph, result.parts, num_parts))
    assert result.cut == cut_weight(graph, result.parts)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_parts(method):
    graph = random_geometric(500, 8.0, np.random.default_rng(0))
    first, again = (partition(graph, 5, method=needed(method), rng=np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first.parts, again.parts)


def test_more_effort_never_ends_with_a_heavier_cut():
    """The first starts are the same, and the best is kept."""
    graph = random_geometric(300, 8.0, np.random.default_rng(0))
    cuts = [partition(graph, 4, rng=np.random.default_rng(1), effort=Effort(starts, 0)).cut for starts in (1, 2, 4, 8)]
    assert cuts == sorted(cuts, reverse=True)
    assert usual_effort(64).starts > usual_effort(5000).starts


# Two routes that agree.


@pytest.mark.parametrize("name", GENERATED)
def test_our_cut_is_within_ten_percent_of_metis_on_generated_graphs(name):
    pytest.importorskip("pymetis")
    graph = GENERATED[name](np.random.default_rng(SEED))
    ours = partition(graph, 8, rng=np.random.default_rng(0))
    metis = partition(graph, 8, method="metis", rng=np.random.default_rng(0))
    assert ours.balance <= metis.allowed_balance
    assert ours.cut <= MOST_OVER_METIS * metis.cut


# Real input.


@pytest.mark.parametrize(
    "name", ["commmat_NAS_SP-OMP_64threads.csv", "tpch_dags_decima.json", *(f"wfinstances/{i}" for i in range(8))]
)
def test_our_cut_is_within_ten_percent_of_metis_on_real_graphs(name):
    pytest.importorskip("pymetis")
    if not TRACES.is_dir():
        pytest.skip("needs ../shared/data/traces")
    path = TRACES / name
    if path.parent.name == "wfinstances":
        path = sorted(path.parent.glob("*.json"))[int(path.name)]
    graph = read_graph(path)
    ours = partition(graph, 8, rng=np.random.default_rng(0))
    metis = partition(graph, 8, method="metis", rng=np.random.default_rng(0))
    assert ours.balance <= metis.allowed_balance
    assert ours.cut <= MOST_OVER_METIS * metis.cut


def test_mt_kahypar_maps_a_ring_of_cliques_onto_a_cube():
    pytest.importorskip("mtkahypar")
    distance = node_distances(load_machine("chapter-8-socket"))
    graph = ring_of_cliques(8, 6)
    nodes = mt_kahypar_map(graph, part_limits(np.ones(48), np.full(8, 1 / 8), 0.03), distance, np.random.default_rng(0))
    cliques = nodes.reshape(8, 6)
    assert np.all(cliques == cliques[:, :1])
    assert sorted(cliques[:, 0].tolist()) == list(range(8))


# What libraries may do, and bad input.


def test_parts_that_a_library_makes_too_heavy_are_repaired_and_this_is_said(monkeypatch):
    everything = lambda graph, *_: np.zeros(graph.num_vertices, np.int64)  # noqa: E731
    monkeypatch.setitem(methods.LIBRARIES, "metis", everything)
    result = partition(grid(6, 6), 4, method="metis", rng=np.random.default_rng(0))
    assert (result.returned_balance, result.returned_cut, result.was_repaired) == (4.0, 0.0, True)
    assert result.balance <= result.allowed_balance < 1.04
    assert not partition(grid(6, 6), 4, rng=np.random.default_rng(0)).was_repaired


def test_a_missing_library_names_the_extra(monkeypatch):
    for module in MODULES.values():
        monkeypatch.setitem(sys.modules, module, None)
    for method in MODULES:
        with pytest.raises(ValueError, match=r"must be installed for this method: pip install 'numa-rl\[partition\]'"):
            partition(grid(3, 3), 2, method=method, rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_parts": 0}, "num_parts must be a whole number >= 1, got 0."),
        ({"num_parts": 2.5}, "num_parts must be a whole number >= 1, got 2.5."),
        ({"method": "chaco"}, "method must be one of multilevel, spectral, metis, kahip, mt-kahypar, got 'chaco'."),
        ({"imbalance": -0.1}, "imbalance must be in [0, 1000], got -0.1."),
        ({"imbalance": np.nan}, "imbalance must be in [0, 1000], got nan."),
        ({"target_shares": [1, 2, 3]}, "target_shares must have shape (2,), one for each part, got (3,)."),
        ({"method": "metis", "num_parts": 10}, "num_parts must be at most 9 for method metis, got 10."),
        (
            {"method": "kahip", "target_shares": [1, 2]},
            "method kahip makes equal parts only, got target_shares that differ.",
        ),
    ],
)
def test_bad_input_is_named(options, message):
    needed(options.get("method", "multilevel"))
    arguments = {"num_parts": 2} | options
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        partition(grid(3, 3), arguments.pop("num_parts"), **arguments, rng=np.random.default_rng(0))


def test_effort_is_checked():
    with pytest.raises(ValueError, match="starts must be >= 1, got 0"):
        Effort(0, 1)
    with pytest.raises(ValueError, match="combinations must be >= 0, got -1"):
        Effort(1, -1)

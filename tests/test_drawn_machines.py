"""Machines drawn at random: what is drawn, within which ranges, and that the suite can be played on all of them."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

from agents.evaluation import evaluate
from agents.rules.greedy import PricedGreedy
from agents.tuning import default_parameters
from experiments.scenario import Split
from experiments.suite.definition import STANDARD, Definition, read_definition
from experiments.tune import world_of
from numa_rl.machines import shapes
from numa_rl.machines.catalog import load_machine, machine_names
from numa_rl.machines.drawn import MOST_NODES, RANGES, draw_machine
from numa_rl.topology import Topology, hop_counts
from numa_rl.workloads.workload import Workload

KINDS = {kind.name: kind for kind in shapes.KINDS}


def shape_hops(name: str, num_nodes: int, seed: int = 0) -> np.ndarray:
    """Hops between all nodes of a shape."""
    links = KINDS[name].links(num_nodes, np.random.default_rng(seed))
    ends = np.array([(a, b) for a, b, _ in links], np.int64)
    return hop_counts(np.concatenate([ends, ends[:, ::-1]]), num_nodes)


def many(number: int, **options: Any) -> list[Topology]:
    rng = np.random.default_rng(1)
    return [draw_machine(rng, **options) for _ in range(number)]


@pytest.mark.parametrize(
    ("name", "num_nodes", "from_first"),
    [
        ("pair", 2, [0, 1]),
        ("full-mesh", 5, [0, 1, 1, 1, 1]),
        ("ring", 6, [0, 1, 2, 3, 2, 1]),
        ("mesh", 6, [0, 1, 2, 1, 2, 3]),
        ("cube", 8, [0, 1, 1, 2, 1, 2, 2, 3]),
    ],
)
def test_regular_shapes_are_what_they_are_called(name: str, num_nodes: int, from_first: list[int]):
    assert shape_hops(name, num_nodes)[0].tolist() == from_first


@pytest.mark.parametrize("seed", range(6))
def test_two_packages_are_linked_by_one_die_several_or_all(seed: int):
    links = list(KINDS["two-packages"].links(8, np.random.default_rng(seed)))
    inside = [(a, b) for a, b, kind in links if kind == shapes.LinkKind.INSIDE]
    between = [(a, b) for a, b, kind in links if kind == shapes.LinkKind.BETWEEN]
    assert len(inside) == 2 * 6
    assert all((a < 4) == (b < 4) for a, b in inside)
    assert 1 <= len(between) <= 4
    assert all(b - a == 4 for a, b in between)


def test_the_number_of_links_between_two_packages_differs():
    numbers = {
        sum(kind == shapes.LinkKind.BETWEEN for *_, kind in KINDS["two-packages"].links(8, np.random.default_rng(seed)))
        for seed in range(40)
    }
    assert numbers == {1, 2, 3, 4}


@pytest.mark.parametrize("num_nodes", range(1, 25))
def test_every_shape_that_exists_joins_all_its_nodes_and_links_a_pair_once(num_nodes: int):
    known = [kind for kind in shapes.KINDS if kind.exists(num_nodes)]
    assert known
    for kind in known:
        for seed in range(3):
            pairs = [frozenset(link[:2]) for link in kind.links(num_nodes, np.random.default_rng(seed))]
            assert len(pairs) == len(set(pairs))
            assert all(len(pair) == 2 for pair in pairs)
            if num_nodes > 1:
                assert (shape_hops(kind.name, num_nodes, seed) >= 0).all(), kind.name


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(2, 20), st.integers(0, 20))
def test_a_drawn_machine_has_as_many_nodes_as_asked_and_figures_within_their_ranges(seed: int, low: int, more: int):
    machine = draw_machine(np.random.default_rng(seed), min_nodes=low, max_nodes=low + more)
    assert low <= machine.num_nodes <= low + more
    has_cores = machine.cores > 0
    different = RANGES.different[0]
    for name in ("cores", "flops_per_s", "memory_bandwidth_bytes_per_s"):
        values, (least, most) = getattr(machine, name)[has_cores], getattr(RANGES, name)
        assert (values <= most * (1 + 1e-9)).all()
        assert (values >= least * (1.0 if name == "cores" else different)).all()
    assert RANGES.outstanding_bytes[0] <= machine.outstanding_bytes <= RANGES.outstanding_bytes[1]
    local = np.diagonal(machine.latency_s)
    assert ((local >= RANGES.chapter_latency_s[0]) & (local <= RANGES.latency_s[1])).all()
    shares = machine.link_bandwidth_bytes_per_s / machine.memory_bandwidth_bytes_per_s.max()
    assert (shares <= max(high for _, high in RANGES.link_share) * (1 + 1e-9)).all()
    assert (shares >= 0.5 * min(low for low, _ in RANGES.link_share)).all()


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_far_memory_is_slower_and_no_route_draws_more_than_its_links_and_its_memory_give(seed: int):
    machine = draw_machine(np.random.default_rng(seed))
    np.testing.assert_allclose(machine.latency_s, machine.latency_s.T)
    index = machine.link_index()
    for a in range(machine.num_nodes):
        for b in range(machine.num_nodes):
            drawn = machine.bandwidth_bytes_per_s[a, b]
            assert drawn <= machine.memory_bandwidth_bytes_per_s[b]
            route = machine.route(a, b)
            for near, far in pairwise(route):
                assert drawn <= machine.link_bandwidth_bytes_per_s[index[far, near]]
                assert machine.latency_s[a, far] > machine.latency_s[a, near]


def test_latency_is_that_at_home_and_of_every_link_on_the_route():
    machine = next(each for each in many(200, min_nodes=6, max_nodes=6) if each.name == "drawn-ring-6")
    home, one, two, three = machine.latency_s[0, :4]
    np.testing.assert_allclose([two - one, three - two], one - home)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_the_same_generator_draws_the_same_machine(seed: int):
    one, other = (draw_machine(np.random.default_rng(seed)) for _ in range(2))
    assert one.to_dict() == other.to_dict()


def test_all_shapes_sizes_and_peculiarities_are_drawn():
    machines = many(1200)
    assert {each.num_nodes for each in machines} == set(range(2, 17))
    kinds = Counter(each.name.removeprefix("drawn-").rsplit("-", 1)[0] for each in machines)
    assert set(kinds) == set(KINDS)
    del kinds["single"]  # only with a node that is memory alone
    assert min(kinds.values()) > 60
    alone = [each for each in machines if 0 in each.cores]
    assert 0.1 < len(alone) / len(machines) < 0.2
    assert all("+" in each.name for each in alone)
    assert 0.1 < np.mean([each.latency_s[0, 0] < 20e-9 for each in machines]) < 0.3
    assert 0.1 < np.mean([np.ptp(each.flops_per_s) > 0 for each in machines]) < 0.2
    total = np.array([each.memory_bytes.sum() for each in machines]) / 2**30
    assert total.min() < 60
    assert total.max() > 4096


def test_memory_alone_hangs_on_one_link_and_is_slower():
    for machine in many(300):
        for node in np.flatnonzero(machine.cores == 0):
            assert (machine.links[:, 0] == node).sum() == 1
            host = machine.links[machine.links[:, 0] == node, 1][0]
            assert machine.latency_s[host, node] >= 2 * machine.latency_s[host, host]
            most = machine.memory_bandwidth_bytes_per_s[machine.cores > 0].max()
            assert machine.memory_bandwidth_bytes_per_s[node] < most


@pytest.mark.parametrize("figure", ["cores", "flops_per_s", "memory_bandwidth_bytes_per_s", "outstanding_bytes"])
def test_the_ranges_span_the_machines_that_are_known(figure: str):
    low, high = getattr(RANGES, figure)
    for name in machine_names():
        machine = load_machine(name)
        values = np.atleast_1d(getattr(machine, figure))
        values = values[machine.cores > 0] if len(values) > 1 else values
        assert (values >= low).all(), name
        assert (values <= high).all(), name


def test_loaded_latencies_and_memories_span_those_of_the_machines_that_are_known():
    for name in machine_names():
        machine = load_machine(name)
        curve = machine.loaded_latency
        for value, (low, high) in zip(
            (curve.a, curve.c, curve.saturated), (RANGES.slope, RANGES.knee, RANGES.saturated), strict=True
        ):
            assert low <= value <= high, name
        assert RANGES.memory_bytes[0] <= machine.memory_bytes.sum() <= RANGES.memory_bytes[1], name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_nodes": 1}, r"min_nodes must be in 2\.\.64, got 1"),
        ({"min_nodes": 65, "max_nodes": 70}, r"min_nodes must be in 2\.\.64, got 65"),
        ({"max_nodes": 1}, r"max_nodes must be in 2\.\.64, got 1"),
        ({"min_nodes": 5, "max_nodes": 4}, r"max_nodes must be in 5\.\.64, got 4"),
        ({"max_nodes": MOST_NODES + 1}, r"max_nodes must be in 2\.\.64, got 65"),
    ],
)
def test_no_machine_without_nodes_is_drawn(options: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        draw_machine(np.random.default_rng(0), **options)


def test_many_nodes_can_be_drawn():
    assert draw_machine(np.random.default_rng(0), min_nodes=40, max_nodes=40).num_nodes == 40


def all_bytes(work: Workload) -> float:
    """Bytes of all objects of the first episode, each when it is largest."""
    largest = np.zeros(int(work.object.max()) + 1)
    np.maximum.at(largest, np.asarray(work.object[0]), np.asarray(work.object_bytes[0], np.float64))
    return float(largest.sum())


@pytest.fixture(scope="module")
def standard() -> Definition:
    return read_definition(STANDARD)


@pytest.mark.parametrize("family", read_definition(STANDARD).families)
def test_every_family_is_played_on_drawn_machines_and_drops_tasks_only_where_memory_is_scarce(
    standard: Definition, family: str
):
    rng = np.random.default_rng(sum(family.encode()))
    for _ in range(4):  # 13 families: 52 machines
        cell = standard.cell_on(family, draw_machine(rng))
        assert cell.held_out == (family == "threads")
        world = world_of(cell.scenario, Split.TRAIN, 1, 0)
        rule = PricedGreedy(**default_parameters(PricedGreedy.name, world.weights, world.topologies))
        played = evaluate(rule, world)
        assert np.isfinite(played.cost).all()
        if played.out_of_memory.any():
            # Room is lost where nodes are too full for one more object: a machine with twice the room drops nothing.
            assert cell.scenario.topology.memory_bytes.sum() < 2 * all_bytes(world.workload), cell.name

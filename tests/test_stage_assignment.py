from __future__ import annotations

import re
from itertools import combinations, pairwise, permutations
from math import inf, nan

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import machines, seeds, toy_machine

from numa_rl.machines.catalog import load_machine
from numa_rl.topology import Topology
from numa_rl.transformer.memory_plan import Recompute, Training
from numa_rl.transformer.model import Transformer
from numa_rl.transformer.pipeline_schedule import peak_activations
from numa_rl.transformer.stage_assignment import (
    Layers,
    assignment_costs,
    least_memory_bytes,
    stages_fit,
    transformer_layers,
)
from numa_rl.transformer.stage_search import assign_stages


def even_layers(num_layers: int, flops=100.0, parameters=0.0, activations=0.0, border=50.0) -> Layers:
    each = np.ones(num_layers)
    return Layers(each * flops / 4, each * flops * 3 / 4, each * parameters, each * activations, each[1:] * border)


def of_1f1b(micro_batches: int):
    return lambda num_stages: peak_activations("1f1b", num_stages, micro_batches)


def all_assignments(topology: Topology, layers: Layers, num_stages: int, live):
    """Every one: T_compute_max, T_comm_total, whether memory suffices, and the longest time of a link; plain loops."""
    index, n = topology.link_index(), len(layers)
    for cuts in combinations(range(1, n), num_stages - 1):
        bounds = [0, *cuts, n]
        for nodes in permutations(np.flatnonzero(topology.cores).tolist(), num_stages):
            compute, fits, comm, sent = [], True, 0.0, np.zeros(topology.num_links)
            for node, kept, (first, last) in zip(nodes, live, pairwise(bounds), strict=True):
                compute.append(sum(layers.flops[first:last]) / (topology.cores[node] * topology.flops_per_s[node]))
                needs = sum(layers.parameter_bytes[first:last]) + kept * sum(layers.activation_bytes[first:last])
                fits = fits and needs <= topology.memory_bytes[node]
            for cut, (before, after) in zip(cuts, pairwise(nodes), strict=True):
                size = layers.border_bytes[cut - 1]
                for reader, source in ((before, after), (after, before)):
                    comm += size / topology.bandwidth_bytes_per_s[reader, source] + topology.latency_s[reader, source]
                    for near, far in pairwise(topology.route(reader, source)):
                        sent[index[far, near]] += size
            link_s = (sent / topology.link_bandwidth_bytes_per_s).max(initial=0.0)
            yield max(compute), comm, fits, link_s, (bounds, list(nodes), sent)


@st.composite
def cases(draw):
    """A machine, layers that may not fit it, a number of stages, and micro-batches that they keep."""
    topology = draw(machines(max_nodes=5))
    n = draw(st.integers(1, 5))
    num_stages = draw(st.integers(1, min(n, np.count_nonzero(topology.cores), 4)))
    rng = np.random.default_rng(draw(seeds))
    most = draw(st.sampled_from([1e7, 1e8, 3e9]))
    layers = Layers(*(rng.integers(1, most, n).astype(float) for _ in range(4)), rng.integers(0, 1e8, n - 1))
    return topology, layers, num_stages, rng.integers(1, 4, num_stages).astype(float)


def test_two_stages_halve_four_equal_layers_on_neighbouring_nodes():
    found = assign_stages(toy_machine(3), even_layers(4), 2)
    assert found.bounds.tolist() == [0, 2, 4]
    assert abs(found.nodes[0] - found.nodes[1]) == 1
    assert found.compute_max_s == 2.0
    assert found.comm_total_s == 2 * (50 / 50 + 2.0)  # there and back: size over bandwidth, and latency of one hop
    assert found.cost_s == 8.0
    assert found.link_bytes.sum() == 2 * 50.0


def test_a_cheap_border_is_worth_an_uneven_cut():
    layers = Layers(
        [40.0] * 4, [60.0] * 4, [0.0] * 4, [0.0] * 4, [0.0, 20.0, 20.0]
    )  # 0.8 s more there and back, 1 s less to wait
    assert assign_stages(toy_machine(2), layers, 2).cost_s == 2.0 + 4.8
    layers = Layers([40.0] * 4, [60.0] * 4, [0.0] * 4, [0.0] * 4, [0.0, 30.0, 30.0])
    found = assign_stages(toy_machine(2), layers, 2)
    assert found.bounds.tolist() == [0, 1, 4]
    assert found.cost_s == 3.0 + 4.0


def test_a_node_twice_as_fast_gets_twice_the_layers():
    found = assign_stages(toy_machine(2, cores=[1, 2]), even_layers(6), 2)
    assert dict(zip(found.nodes.tolist(), np.diff(found.bounds).tolist(), strict=True)) == {0: 2, 1: 4}
    assert found.compute_s.tolist() == [2.0, 2.0]


def test_1f1b_keeps_more_in_its_first_stage_and_so_gives_it_fewer_layers():
    layers = even_layers(6, activations=100.0)
    found = assign_stages(toy_machine(2, memory_bytes=[450.0, 450.0]), layers, 2, live=of_1f1b(8))
    assert found.bounds.tolist() == [0, 2, 6]
    assert found.memory_bytes.tolist() == [2 * 2 * 100.0, 4 * 100.0]


def test_nodes_without_cores_hold_no_stage():
    found = assign_stages(toy_machine(3, cores=[1, 0, 1]), even_layers(2), 2)
    assert sorted(found.nodes.tolist()) == [0, 2]


def test_an_interleaved_stage_holds_two_pieces_and_sends_twice():
    layers = even_layers(4, parameters=10.0, activations=1.0)
    given = assignment_costs(toy_machine(2), layers, [0, 1, 2, 3, 4], [0, 1], [3.0, 2.0])
    assert given.compute_s.tolist() == [2.0, 2.0]
    assert given.memory_bytes.tolist() == [20.0 + 3 * 2, 20.0 + 2 * 2]
    assert given.comm_s.tolist() == [2 * (50 / 50 + 2.0)] * 3
    assert given.link_bytes.tolist() == [150.0, 150.0]


def test_eight_stages_of_a_transformer_follow_the_links_of_the_chapters_cube():
    topology = load_machine("chapter-8-socket")
    layers = transformer_layers(Training(Transformer(24, 8192, 64)), 1)
    found = assign_stages(topology, layers, 8, live=of_1f1b(16))
    assert np.diff(found.bounds).tolist() == [3] * 8
    assert all(topology.hops[a, b] == 1 for a, b in pairwise(found.nodes))


def line_whose_middle_holds_one_layer() -> tuple[Topology, Layers]:
    """Nodes 0 - 1 - 2, and stages of which only the last fits node 1: the first two send past it."""
    topology = toy_machine(3, memory_bytes=[1000.0, 100.0, 1000.0])
    return topology, Layers([40.0] * 3, [60.0] * 3, [500.0, 500.0, 100.0], [0.0] * 3, [50.0, 50.0])


def test_borders_that_share_a_link_fill_it_together():
    topology, layers = line_whose_middle_holds_one_layer()
    found = assign_stages(topology, layers, 3, link_s=2.0)
    assert found.nodes.tolist() in ([0, 2, 1], [2, 0, 1])
    assert found.link_bytes.max() == 100.0
    with pytest.raises(ValueError, match=r"must pass in 1\.9 s, link_s; 2 s would do"):
        assign_stages(topology, layers, 3, link_s=1.9)


def test_a_dearer_way_to_the_same_nodes_may_leave_more_room_on_links():
    far = [[7.0, 5, 7, 3, 4], [7, 1, 3, 1, 4], [8, 2, 4, 4, 8], [2, 5, 3, 1, 7], [1, 3, 4, 4, 1]]
    topology = toy_machine(5, latency_s=np.array(far))
    layers = Layers([40.0] * 5, [60.0] * 5, [0.0] * 5, [0.0] * 5, [150.0, 150.0, 150.0, 50.0])
    every = all_assignments(topology, layers, 5, [1.0] * 5)
    assert min(compute + comm for compute, comm, _, link_s, _ in every if link_s <= 7.0) == 43.0
    assert assign_stages(topology, layers, 5, link_s=7.0).cost_s == 43.0


def test_no_stage_waits_for_a_link_by_default():
    topology, layers = line_whose_middle_holds_one_layer()
    with pytest.raises(ValueError, match=r"links of toy are too slow: .* must pass in 1 s, link_s; 2 s would do"):
        assign_stages(topology, layers, 3)


@given(cases(), st.sampled_from([inf, 0.1, 0.03, 0.01]))
def test_nothing_is_better_than_what_is_found(case, link_s):
    topology, layers, num_stages, live = case
    every = list(all_assignments(topology, layers, num_stages, live))
    allowed = [compute + comm for compute, comm, fits, longest, _ in every if fits and longest <= link_s]
    if not allowed:
        with pytest.raises(ValueError, match=r"would (fit|do)|no number of such nodes") as error:
            assign_stages(topology, layers, num_stages, live=lambda k: np.resize(live, k), link_s=link_s)
        enough = re.search(r"link_s; (\S+) s would do", str(error.value))
        assert bool(enough) == any(fits for _, _, fits, _, _ in every)
        if enough:
            assign_stages(topology, layers, num_stages, live=lambda k: live, link_s=float(enough[1]))
        return
    found = assign_stages(topology, layers, num_stages, live=lambda k: live, link_s=link_s)
    assert found.cost_s == pytest.approx(min(allowed), rel=1e-12)
    chosen = (found.bounds.tolist(), found.nodes.tolist())
    compute, comm, fits, longest, (*_, sent) = next(each for each in every if each[-1][:2] == chosen)
    assert fits
    assert longest <= link_s
    assert (found.compute_max_s, found.comm_total_s) == pytest.approx((compute, comm))
    np.testing.assert_allclose(found.link_bytes, sent)


@given(cases())
def test_links_have_the_time_of_the_fastest_pipeline_by_default(case):
    topology, layers, num_stages, live = case
    every = [each for each in all_assignments(topology, layers, num_stages, live) if each[2]]
    assume(every)
    pace = min(compute for compute, *_ in every)
    allowed = [compute + comm for compute, comm, _, longest, _ in every if longest <= pace]
    if allowed:
        assert assign_stages(topology, layers, num_stages, live=lambda k: live).cost_s == pytest.approx(min(allowed))
    else:
        with pytest.raises(ValueError, match="links of random are too slow"):
            assign_stages(topology, layers, num_stages, live=lambda k: live)


@given(cases())
def test_the_number_of_stages_that_would_fit_fits(case):
    topology, layers, num_stages, live = case

    def of(count: int):
        return np.resize(live, count)

    try:
        assign_stages(topology, layers, num_stages, live=of, link_s=inf)
    except ValueError as error:
        hint = re.search(r"(\d+) would fit\.", str(error))
        if hint:
            assert assign_stages(topology, layers, int(hint[1]), live=of, link_s=inf).num_stages == int(hint[1])
        equal = re.search(r"(\d+) stages on as many nodes", str(error))
        if equal:
            most = topology.memory_bytes[topology.cores > 0].max()
            assert least_memory_bytes(layers, of(int(equal[1]))) <= most
            assert all(least_memory_bytes(layers, of(count)) > most for count in range(1, int(equal[1])))


@given(cases())
def test_the_least_memory_of_equal_nodes_is_that_of_the_best_cut(case):
    _, layers, num_stages, live = case
    n = len(layers)

    def needs(cuts: tuple[int, ...]) -> float:
        runs = zip(live, pairwise([0, *cuts, n]), strict=True)
        return max(sum(layers.parameter_bytes[i:j]) + kept * sum(layers.activation_bytes[i:j]) for kept, (i, j) in runs)

    least = min(needs(cuts) for cuts in combinations(range(1, n), num_stages - 1))
    assert least_memory_bytes(layers, live) == least
    assert stages_fit(layers, live, least)
    assert not stages_fit(layers, live, least - 1.0)


def test_a_training_transformer_keeps_what_the_memory_plan_says():
    training = Training(Transformer(4, 128, 2, vocabulary=1000), sequence_tokens=64)
    kept, again = (transformer_layers(training, 2, each) for each in (Recompute.NONE, Recompute.FULL))
    assert again.activation_bytes.tolist() == [2 * 64 * 128 * 2.0] * 4
    assert again.border_bytes.tolist() == [2 * 64 * 128 * 2.0] * 3
    assert kept.activation_bytes[0] > again.activation_bytes[0]
    assert again.backward_flops[1] == pytest.approx(3 * again.forward_flops[1])  # of them one forward pass again
    assert kept.backward_flops[1] == pytest.approx(2 * kept.forward_flops[1])
    assert again.parameter_bytes.tolist() == [12 * p for p in (12 * 128**2 + 128000, 12 * 128**2, 12 * 128**2,
                                                              12 * 128**2 + 128000)]  # fmt: skip
    assert kept.flops[3] - kept.flops[2] == 3 * 2 * 128 * 1000 * 128.0


@pytest.mark.parametrize(
    ("num_stages", "message"),
    [
        (4, r"num_stages must be a whole number in 1\.\.3: .* 4 layers .* of the 3 nodes of toy with cores; got 4\."),
        (0, r"num_stages must be a whole number in 1\.\.3: .*; got 0\."),
        (1.5, r"num_stages must be a whole number in 1\.\.3: .*; got 1\.5\."),
        (nan, r"num_stages must be a whole number in 1\.\.3: .*; got nan\."),
    ],
)
def test_more_stages_than_layers_or_nodes_is_an_error(num_stages, message):
    with pytest.raises(ValueError, match=message):
        assign_stages(toy_machine(3), even_layers(4), num_stages)


@pytest.mark.parametrize(
    ("num_layers", "each_bytes", "message"),
    [
        (8, 300.0, r"2 stages do not fit the memory of toy: 3 would fit\."),
        (6, 600.0, r"would need 1800 B, and the largest has 1000 B; 6 stages on as many nodes like that would fit\."),
        (6, 1001.0, r"would need 3003 B, .*; no number of such nodes would do: layer 0 alone needs 1001 B at least\."),
    ],
)
def test_a_model_that_does_not_fit_is_an_error_that_says_what_would(num_layers, each_bytes, message):
    with pytest.raises(ValueError, match=message):
        assign_stages(toy_machine(3), even_layers(num_layers, parameters=each_bytes), 2)


def test_a_search_that_would_not_end_is_refused():
    with pytest.raises(ValueError, match=r"got 2 layers on 24 nodes, 1207959552 states\. Join layers"):
        assign_stages(toy_machine(24), even_layers(2), 2)
    with pytest.raises(ValueError, match=r"at most 1000 layers"):
        assign_stages(toy_machine(1), even_layers(1001), 1)


@pytest.mark.parametrize("link_s", [0.0, -1.0, nan])
def test_links_need_time(link_s):
    with pytest.raises(ValueError, match=r"link_s must be > 0, got"):
        assign_stages(toy_machine(2), even_layers(2), 2, link_s=link_s)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (([], [], [], [], []), r"a model must have at least one layer, got none\."),
        (([1.0], [1.0], [1.0], [1.0], [1.0]), r"border_bytes must have shape \(0,\) for 1 layers, got \(1,\)\."),
        (
            ([1.0, 1.0], [1.0] * 2, [1.0], [1.0] * 2, [1.0]),
            r"parameter_bytes must have shape \(2,\) for 2 layers, got \(1,\)\.",
        ),
        (
            ([1.0, nan], [1.0] * 2, [1.0] * 2, [1.0] * 2, [1.0]),
            r"forward_flops\[1\] must be finite and >= 0, got nan\.",
        ),
        (
            ([1.0] * 2, [1.0] * 2, [1.0] * 2, [-1.0, 1.0], [1.0]),
            r"activation_bytes\[0\] must be finite and >= 0, got -1\.0\.",
        ),
    ],
)
def test_layers_that_there_are_not_are_an_error(arrays, message):
    with pytest.raises(ValueError, match=message):
        Layers(*arrays)


@pytest.mark.parametrize(
    ("bounds", "nodes", "message"),
    [
        (
            [0, 4],
            [0, 1],
            r"bounds must rise from 0 to 4, the layers, with as many pieces for each of 2 nodes, got \[0, 4\]\.",
        ),
        ([0, 0, 4], [0, 1], r"bounds must rise from 0 to 4"),
        ([0, 1, 2, 4], [0, 1], r"as many pieces for each of 2 nodes, got"),
        ([0, 2, 4], [1, 1], r"nodes must be different ones with cores, of \[0, 1\], got \[1, 1\]\."),
        ([0, 2, 4], [0, 2], r"nodes must be different ones with cores, of \[0, 1\], got \[0, 2\]\."),
    ],
)
def test_stages_that_are_none_are_an_error(bounds, nodes, message):
    with pytest.raises(ValueError, match=message):
        assignment_costs(toy_machine(2), even_layers(4), bounds, nodes, 1.0)

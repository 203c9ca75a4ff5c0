"""The compiled network: it says what torch says, whatever the machine, the weights and the way it is called."""

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

from agents.ppo import scorer as network
from agents.ppo import scoring_inputs, scoring_kernel
from agents.ppo.config import HIDEABLE, PolicyConfig
from agents.ppo.scorer import CLOSED, PairScorer, best_pair
from agents.ppo.scorers import make_scorer
from agents.ppo.scoring import CompiledScorer, allocate_scratch, refusal
from agents.ppo.scoring_arithmetic import write_log1p
from agents.ppo.storage import LearnedScheduler
from agents.rules.greedy import PricedGreedy, priced_cost
from envs.observation import ObservationKind, ObservationLayout
from envs.reward import RewardWeights
from envs.world import Rows, World
from experiments.export_play import visited
from numa_rl.machines.builders import eight_socket_cube, four_socket, two_socket
from numa_rl.machines.catalog import load_machine
from numa_rl.workloads.catalog import make_family
from numa_rl.workloads.synthetic import SyntheticStream

torch.set_num_threads(1)

SMALL = PolicyConfig(node_width=6, pair_width=5)
SHIPPED = PolicyConfig()
MATRICES = ("communication", "latency", "bandwidth", "estimate", "congestion")
THREADS = min(2, os.cpu_count() or 1)


def make_network(config: PolicyConfig = SHIPPED, seed: int = 0, spread: float = 0.2) -> PairScorer:
    """A network with random weights everywhere, the zeros of the start included."""
    torch.manual_seed(seed)
    scorer = make_scorer(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    return scorer.eval()


def by_torch(scorer: PairScorer, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits and best pairs."""
    with torch.no_grad():
        logits, _ = scorer(torch.from_numpy(rows))
    return logits.numpy(), best_pair(logits).numpy()


def agree(scorer: PairScorer, rows: np.ndarray) -> None:
    """The compiled form gives torch's logits and torch's decisions."""
    compiled = CompiledScorer.from_scorer(scorer)
    (want, pairs), got = by_torch(scorer, rows), compiled.logits(rows)
    is_open = want > CLOSED / 2
    np.testing.assert_allclose(got[is_open], want[is_open], rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(got[~is_open], np.float32(CLOSED))
    np.testing.assert_array_equal(compiled.pairs(rows), pairs)


def played(world: World, steps: int = 30, num_rows: int = 16) -> np.ndarray:
    """Observations of a rule at work, with chance in between."""
    rows = Rows(world, num_rows)
    rows.generators = [np.random.default_rng(row) for row in range(num_rows)]
    rows.reset()
    rng, found = np.random.default_rng(6), []
    for _ in range(min(steps, world.workload.num_tasks)):
        found.append(rows.observe().copy())
        actions, _ = PricedGreedy().predict(found[-1])
        nodes = rows.simulator.machines.num_nodes[rows.simulator.state.machine]
        elsewhere = rng.integers(nodes[:, None], size=actions.shape)
        rows.step(np.where(rng.random((num_rows, 1)) < 0.3, elsewhere, actions))
    return np.concatenate(found)


def world_of(topologies: tuple[Any, ...], family: str = "synthetic", **changes: Any) -> World:
    workload = make_family(family, **changes).generate(np.random.default_rng(5), 8)
    return World(workload, topologies, RewardWeights(reference_s=0.05), 0.2)


def invented(rng: np.random.Generator, rows: int, num_nodes: int) -> np.ndarray:
    """Observations that no machine ever showed, with closed and with missing nodes."""
    layout = ObservationLayout(num_nodes)
    values = rng.exponential(1.0, (rows, layout.size)).astype(np.float32)
    values *= rng.random(values.shape) < 0.8
    groups = layout.split(values)
    nodes, present = np.arange(num_nodes), rng.integers(1, num_nodes + 1, (rows, 1))
    groups["nodes"][:] = nodes < present
    groups["data"][:] = nodes == rng.integers(-1, num_nodes, (rows, 1))
    for name in ("task_mask", "data_mask"):
        always = (rng.random((rows, 1)) * present).astype(int)
        groups[name][:] = ((rng.random((rows, num_nodes)) < 0.6) | (nodes == always)) & (nodes < present)
    groups["estimate"][:] += groups["migration"][:, None, :]
    return values


@pytest.fixture(scope="module")
def eight() -> np.ndarray:
    """10,000 observations of eight nodes, of all families of the suite."""
    return visited(PricedGreedy(), 8, 10_000)


# Known answers.


def test_logarithms_are_those_of_double_precision():
    rng = np.random.default_rng(0)
    values = np.concatenate([[0.0, 1.0, 1e-30, 1e6], np.exp(rng.uniform(-60.0, 14.0, 100_000))]).astype(np.float32)
    got = np.zeros_like(values)
    write_log1p(values, got)
    np.testing.assert_allclose(got, np.log1p(values.astype(np.float64)), rtol=2.4e-7)
    assert got[0] == 0.0


def test_untrained_it_says_what_the_priced_greedy_rule_says_to_the_last_digits():
    rows = invented(np.random.default_rng(1), 64, 5)
    config = PolicyConfig(prior_scale=30.0, congestion_price=0.7, crowding_price=2.0, migration_share=0.4, alpha=0.8)
    logits = CompiledScorer.from_scorer(make_scorer(config)).logits(rows)
    cost = np.maximum(priced_cost(ObservationLayout(5).split(rows), 0.7, 2.0, 0.4, 0.8), 1e-4).reshape(64, 25)
    is_open = logits > CLOSED / 2
    ratio = cost / np.where(is_open, cost, np.inf).min(axis=1, keepdims=True)
    np.testing.assert_allclose(logits[is_open], -30.0 * np.log(ratio[is_open]), rtol=1e-4, atol=2e-3)


def test_the_first_of_equal_pairs_is_chosen():
    rows = np.zeros((1, ObservationLayout(3).size), np.float32)
    groups = ObservationLayout(3).split(rows)
    for name in ("nodes", "data_mask", "estimate", "latency", "bandwidth"):
        groups[name][:] = 1.0
    groups["task_mask"][:] = [0.0, 1.0, 1.0]
    compiled = CompiledScorer.from_scorer(make_scorer(SMALL))
    assert compiled.pairs(rows).tolist() == [3]
    groups["estimate"][0, 2, 1] = 1.0 - 0.5 * network.TIE / SMALL.prior_scale  # better, but a tie
    assert compiled.pairs(rows).tolist() == [3]
    groups["estimate"][0, 2, 1] = 1.0 - 2.0 * network.TIE / SMALL.prior_scale
    assert compiled.pairs(rows).tolist() == [7]


def test_where_nothing_is_open_it_says_the_first_pair_as_torch_does():
    rows = invented(np.random.default_rng(0), 8, 4)
    ObservationLayout(4).split(rows)["task_mask"][:] = 0.0
    scorer = make_network(SMALL)
    compiled = CompiledScorer.from_scorer(scorer)
    assert (compiled.logits(rows) == np.float32(CLOSED)).all()
    np.testing.assert_array_equal(compiled.pairs(rows), by_torch(scorer, rows)[1])


def test_constants_are_those_of_the_network():
    for name in ("CLOSED", "MOST_PRICE", "NUM_PRICES"):
        assert getattr(scoring_kernel, name) == np.float32(getattr(network, name)), name
    for name in ("SMALLEST_COST", "NUM_NODE_FEATURES"):
        assert getattr(scoring_inputs, name) == np.float32(getattr(network, name)), name
    assert scoring_inputs.NUM_LOGS + 2 == network.NUM_PAIR_FEATURES


# Laws.


@given(seeds, st.integers(1, 6).flatmap(lambda n: st.permutations(range(n))))
@settings(max_examples=30, deadline=None)
def test_relabelling_nodes_relabels_logits(seed, order):
    layout, order = ObservationLayout(len(order)), np.array(order)
    rows = invented(np.random.default_rng(seed), 4, len(order))
    renamed = np.empty_like(rows)
    for name, values in layout.split(rows).items():
        of_pairs = values[:, order][:, :, order] if name in MATRICES else None
        layout.split(renamed)[name][:] = (
            of_pairs if name in MATRICES else values if name == "task" else values[:, order]
        )
    compiled = CompiledScorer.from_scorer(make_network(SMALL, seed % 100))
    logits, again = (compiled.logits(each).reshape(-1, len(order), len(order)) for each in (rows, renamed))
    np.testing.assert_allclose(again, logits[:, order][:, :, order], rtol=1e-4, atol=1e-4)


@given(seeds, st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_missing_nodes_change_nothing(seed, num_nodes, padding):
    rng, total = np.random.default_rng(seed), num_nodes + padding
    rows, wide = invented(rng, 4, num_nodes), np.zeros((4, ObservationLayout(total).size), np.float32)
    for name, values in ObservationLayout(num_nodes).split(rows).items():
        there = ObservationLayout(total).split(wide)[name]
        there[tuple(slice(size) for size in values.shape)] = values
    compiled = CompiledScorer.from_scorer(make_network(SMALL, seed % 100))
    logits = compiled.logits(wide).reshape(-1, total, total)
    want = compiled.logits(rows).reshape(-1, num_nodes, num_nodes)
    np.testing.assert_allclose(logits[:, :num_nodes, :num_nodes], want, rtol=1e-4, atol=1e-4)
    assert (logits[:, num_nodes:] == np.float32(CLOSED)).all()
    assert (logits[:, :, num_nodes:] == np.float32(CLOSED)).all()


def test_many_rows_at_once_are_rows_one_by_one_by_any_number_of_threads(eight):
    compiled = CompiledScorer.from_scorer(make_network())
    logits, pairs = compiled.logits(eight[:500]), compiled.pairs(eight[:500])
    for row in (0, 7, 499):
        np.testing.assert_array_equal(compiled.logits(eight[row : row + 1])[0], logits[row])
        assert compiled.pairs(eight[row : row + 1])[0] == pairs[row]
    np.testing.assert_array_equal(compiled.pairs(eight[:500], num_threads=THREADS), pairs)
    assert compiled.pairs(eight[:0], num_threads=THREADS).shape == (0,)


def test_rows_may_lie_anywhere_and_stay_as_they_are(eight):
    compiled = CompiledScorer.from_scorer(make_network())
    rows = eight[:40].copy()
    want = compiled.logits(rows)
    np.testing.assert_array_equal(rows, eight[:40])
    np.testing.assert_array_equal(compiled.logits(np.asfortranarray(rows)), want)
    np.testing.assert_array_equal(compiled.logits(np.repeat(rows, 2, axis=0)[::2]), want)
    rows.setflags(write=False)
    np.testing.assert_array_equal(compiled.logits(rows), want)


def test_machines_of_different_sizes_take_turns(eight):
    compiled = CompiledScorer.from_scorer(make_network())
    others = invented(np.random.default_rng(0), 20, 3)
    first = compiled.logits(eight[:20])
    small = compiled.logits(others)
    np.testing.assert_array_equal(compiled.logits(eight[:20]), first)
    np.testing.assert_array_equal(compiled.logits(others), small)


def test_later_training_does_not_change_it(eight):
    scorer = make_network()
    compiled = CompiledScorer.from_scorer(scorer)
    before = compiled.logits(eight[:5])
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.add_(1.0)
    np.testing.assert_array_equal(compiled.logits(eight[:5]), before)


# Two routes that agree.


@pytest.mark.parametrize("seed", range(2))
def test_it_decides_as_torch_on_ten_thousand_visited_states(eight, seed):
    agree(make_network(seed=seed), eight)
    assert len(np.unique(CompiledScorer.from_scorer(make_network(seed=seed)).pairs(eight))) > 32


@given(seeds, st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.booleans())
@settings(max_examples=40, deadline=None)
def test_it_agrees_with_torch_for_any_widths_and_any_row(seed, num_nodes, node_width, pair_width, prior):
    config = PolicyConfig(node_width=node_width, pair_width=pair_width, prior=prior)
    agree(make_network(config, seed % 1000), invented(np.random.default_rng(seed), 6, num_nodes))


@given(seeds, st.sets(st.sampled_from(HIDEABLE), min_size=1))
@settings(max_examples=30, deadline=None)
def test_what_it_is_blind_to_it_does_not_see(seed, hidden):
    scorer = make_network(replace(SMALL, blind_to=tuple(sorted(hidden))), seed % 1000)
    rows = invented(np.random.default_rng(seed), 6, 4)
    agree(scorer, rows)
    changed = rows.copy()
    for name in hidden:
        ObservationLayout(4).split(changed)[name][:] += 0.5
    compiled = CompiledScorer.from_scorer(scorer)
    np.testing.assert_array_equal(compiled.logits(changed), compiled.logits(rows))


PLAYED = ("xeon-8269cy", "kunpeng-920", "xeon-6980p", "phytium-ft2500", "r815")


@pytest.mark.parametrize("machine", PLAYED)
def test_it_agrees_with_torch_on_machines_from_two_to_sixteen_nodes(machine):
    agree(make_network(seed=3), played(world_of((load_machine(machine),))))


@pytest.mark.parametrize("family", ["llm-serving", "transformer-training"])
def test_it_agrees_with_torch_on_other_workloads(family):
    agree(make_network(seed=3), played(world_of((four_socket(),), family)))


def test_it_agrees_with_torch_where_machines_are_padded_to_one_size():
    rows = played(world_of((two_socket(), four_socket(), eight_socket_cube())))
    assert set(ObservationLayout(8).split(rows)["nodes"].sum(axis=1)) == {2.0, 4.0, 8.0}
    agree(make_network(seed=3), rows)


def test_it_agrees_with_torch_where_memories_are_full_and_a_node_has_no_cores():
    crowded = replace(eight_socket_cube(), cores=[4, 0, *[4] * 6], memory_bytes=[1e12, *[4e8] * 7])
    rows = played(world_of((crowded,), median_object_bytes=3e8))
    assert ObservationLayout(8).split(rows)["data_mask"].min() == 0.0
    agree(make_network(seed=3), rows)


def test_the_largest_machine_is_decided_too():
    agree(make_network(SMALL), invented(np.random.default_rng(0), 2, 128))


def test_numbers_at_the_limit_of_observations_do_no_harm():
    rows = invented(np.random.default_rng(0), 50, 4)
    layout = ObservationLayout(4)
    rng = np.random.default_rng(1)
    for name in ("estimate", "congestion", "migration", "communication", "queue", "task"):
        values = layout.split(rows)[name]
        values[rng.random(values.shape) < 0.2] = 1e6
    agree(make_network(SMALL), rows)


# How it is used.


def test_a_scheduler_draws_by_its_seed_and_decides_alike_in_both_forms(eight):
    def drawn(seed: int) -> np.ndarray:
        return LearnedScheduler(make_network(), seed=seed).predict(eight[:300], deterministic=False)[0]

    np.testing.assert_array_equal(drawn(3), drawn(3))
    assert (drawn(3) != drawn(4)).any()
    actions, _ = LearnedScheduler(make_network()).predict(eight[:300])
    np.testing.assert_array_equal(8 * actions[:, 0] + actions[:, 1], by_torch(make_network(), eight[:300])[1])


def test_no_array_is_made_for_a_row(eight):
    scratch = allocate_scratch(ObservationLayout(8), SHIPPED)
    compiled = CompiledScorer.from_scorer(make_network())
    pair = scoring_kernel.score_row(eight[0], ObservationLayout(8).offsets, compiled.weights, scratch)
    np.testing.assert_array_equal(scratch.logits, compiled.logits(eight[:1])[0])
    assert pair == compiled.pairs(eight[:1])[0]


@pytest.mark.parametrize(("name", "value"), [("encoder", "flat"), ("heads", "independent")])
def test_other_networks_are_refused_and_decided_by_torch(name, value):
    config = replace(SMALL, **{name: value})
    with pytest.raises(ValueError, match=rf"the compiled form knows {name} '\w+' alone, got '{value}'"):
        CompiledScorer.from_scorer(make_network(config))
    assert refusal(SMALL) == ""
    rows, scorer = invented(np.random.default_rng(0), 30, 4), make_network(config)
    actions, _ = LearnedScheduler(scorer).predict(rows)
    np.testing.assert_array_equal(4 * actions[:, 0] + actions[:, 1], by_torch(scorer, rows)[1])


@pytest.mark.parametrize(
    ("rows", "rule"),
    [
        (np.zeros((2, 51)), r"must be float32 of shape \(B, size\), got float64 of shape \(2, 51\)"),
        (np.zeros(51, np.float32), r"must be float32 of shape \(B, size\), got float32 of shape \(51,\)"),
        (np.zeros((2, 50), np.float32), r"no observation layout of up to 128 nodes has 50 values"),
        (np.zeros((2, ObservationLayout(4, ObservationKind.CHAPTER).size), np.float32), r"got .* kind 'chapter'"),
    ],
)
def test_rows_of_another_kind_are_refused(rows, rule):
    compiled = CompiledScorer.from_scorer(make_network(SMALL))
    for method in (compiled.logits, compiled.pairs):
        with pytest.raises(ValueError, match=rule):
            method(rows)


def test_threads_that_the_machine_does_not_have_are_refused():
    compiled = CompiledScorer.from_scorer(make_network(SMALL))
    with pytest.raises(ValueError, match=r"num_threads must be in 1\.\.\d+, got 0"):
        compiled.pairs(np.zeros((2, 51), np.float32), num_threads=0)


def test_a_stream_is_played_through_it_to_the_end():
    family = SyntheticStream(num_tasks=20, num_objects=6)
    world = World(family.generate(np.random.default_rng(0), 2), (four_socket(),), RewardWeights(), 0.2)
    rows, learned = Rows(world, 4), LearnedScheduler(make_network())
    rows.reset()
    for _ in range(20):
        _, outcome = rows.step(learned.predict(rows.observe())[0])
    assert outcome.finished.all()

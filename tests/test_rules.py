"""What each rule does on observations small enough to decide by hand."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from observations import N, decide, random_rows, row

from agents.rules.base import Array, Groups, Placement, Range, Rule
from agents.rules.catalog import RULES, make_rule, rule_names
from agents.rules.greedy import priced_cost
from agents.tuning import default_parameters
from envs.observation import ObservationKind, ObservationLayout
from envs.reward import RewardWeights
from numa_rl.machines.catalog import load_machine


def test_random_is_uniform_over_open_pairs():
    rng = np.random.default_rng(0)
    rows = np.stack([row(queue=rng.random(N), data_mask=[1, 0, 1]) for _ in range(6000)])
    actions, _ = make_rule("random").predict(rows)
    counts = np.zeros((N, N))
    np.add.at(counts, (actions[:, 0], actions[:, 1]), 1)
    assert counts[:, 1].sum() == 0
    np.testing.assert_allclose(counts[:, [0, 2]], 1000, atol=130)  # 4.5 standard deviations


def test_random_with_another_seed_decides_otherwise():
    rows = np.stack([row(memory=share) for share in np.linspace(0, 1, 200)])
    first, second = (make_rule("random", seed=seed).predict(rows)[0] for seed in (0, 1))
    assert 0.2 < (first != second).any(axis=1).mean() < 1.0


def test_round_robin_counts_tasks_and_starts_anew_with_the_episode():
    rule = make_rule("round-robin")
    rows = np.stack([row(), row(home=2, task_mask=[1, 0, 1])])
    state, seen = None, []
    for start in ([True, True], [False, False], [False, False], [True, False]):
        actions, state = rule.predict(rows, state=state, episode_start=np.array(start))
        seen.append(actions.tolist())
    assert [first for first, _ in seen] == [[0, 0], [1, 1], [2, 2], [0, 0]]
    assert [second for _, second in seen] == [[0, 2], [2, 2], [0, 2], [2, 2]]


def test_shortest_queue_runs_where_the_least_work_is():
    assert decide("shortest-queue", row(home=0, queue=[3.0, 1.0, 1.0])) == [1, 0]


def test_data_affinity_runs_where_the_data_is():
    assert decide("data-affinity", row(home=1, queue=[0.0, 9.0, 0.0])) == [1, 1]


def test_data_affinity_puts_new_data_on_the_emptiest_node():
    assert decide("data-affinity", row(memory=[0.5, 0.4, 0.2])) == [2, 2]


def test_data_affinity_runs_next_to_a_node_that_runs_nothing():
    assert decide("data-affinity", row(home=2, task_mask=[1, 1, 0])) == [1, 2]


def test_data_that_may_not_stay_goes_to_the_nearest_node():
    assert decide("shortest-queue", row(home=2, data_mask=[1, 1, 0])) == [0, 1]


def test_data_stays_even_where_another_node_is_no_farther():
    assert decide("shortest-queue", row(home=2, latency=np.ones((N, N)))) == [0, 2]


def test_greedy_takes_the_lowest_estimate_that_is_open():
    estimate = [[5, 1, 5], [5, 5, 2], [3, 5, 5]]
    assert decide("greedy", row(estimate=estimate)) == [0, 1]
    assert decide("greedy", row(estimate=estimate, data_mask=[1, 0, 1])) == [1, 2]
    assert decide("greedy", row(estimate=estimate, data_mask=[1, 0, 1], task_mask=[1, 0, 1])) == [2, 0]


def test_ties_go_to_the_lowest_index():
    for name in ("greedy", "priced-greedy", "migration-score", "shortest-queue", "data-affinity"):
        assert decide(name, row()) == [0, 0]


# M(n) = A_n - (1 - A_n) - gamma C_n = -0.6, 0.4, -0.8 before migration: node 1 scores 1.0 more than the home.
SCORED = {"access": [0.2, 0.7, 0.1], "migration": [0.0, 0.5, 0.5], "estimate": [[3, 3, 9], [1, 2, 9], [2, 1, 9]]}


@pytest.mark.parametrize(
    ("gamma", "theta", "expected"),
    [(0.0, 0.9, [2, 1]), (0.0, 1.1, [1, 0]), (1.0, 0.4, [2, 1]), (1.0, 0.6, [1, 0]), (3.0, 0.0, [1, 0])],
)
def test_migration_score_moves_data_beyond_the_threshold_and_runs_at_the_best_estimate(
    gamma: float, theta: float, expected: list[int]
):
    assert decide("migration-score", row(home=0, **SCORED), migration_weight=gamma, threshold=theta) == expected


def test_migration_score_places_new_data_by_the_estimate():
    assert decide("migration-score", row(estimate=SCORED["estimate"])) == [1, 0]


def test_priced_cost_by_hand():
    observation = row(
        home=0,
        estimate=np.full((N, N), 10.0),
        congestion=np.arange(9).reshape(N, N),
        memory=[0.1, 0.2, 0.3],
        communication=[[0, 0.5, 0], [0, 0.25, 0], [0, 0, 1.0]],
        migration=[0.0, 4.0, 6.0],
    )
    groups = ObservationLayout(N).split(observation)
    cost = priced_cost(groups, 2.0, 10.0, 0.25, 0.5)
    # by data node: crowding 10 x (0, 0.2 + 0.75, 0.3 + 1.0), forgiven 0.75 x 0.5 x (0, 4, 6)
    by_data = np.array([0.0, 9.5 - 1.5, 13.0 - 2.25])
    np.testing.assert_allclose(cost, 10.0 + 2.0 * np.arange(9).reshape(N, N) + by_data, rtol=1e-6)


def test_priced_cost_is_one_formula_for_numpy_and_torch():
    rng = np.random.default_rng(0)
    layout = ObservationLayout(8)
    rows = rng.random((5, layout.size), dtype=np.float32)
    tensors = {name: torch.from_numpy(part.copy()) for name, part in layout.split(rows).items()}
    expected = priced_cost(layout.split(rows), 1.0, 1.5, 0.3, 2.0)
    np.testing.assert_allclose(priced_cost(tensors, 1.0, 1.5, 0.3, 2.0).numpy(), expected, rtol=1e-5)


def test_prices_of_zero_are_greedy_and_high_ones_keep_new_data_off_crowded_nodes():
    observation = row(estimate=[[1, 9, 9], [9, 2, 9], [9, 9, 3]], memory=[0.9, 0.8, 0.1])
    assert decide("priced-greedy", observation, crowding_price=0.0) == [0, 0]
    assert decide("priced-greedy", observation, crowding_price=10.0) == [2, 2]


def test_forgiven_migration_moves_data():
    observation = row(home=0, estimate=np.tile([3.0, 4.0, 9.0], (N, 1)), migration=[0.0, 2.0, 2.0])
    assert decide("priced-greedy", observation, crowding_price=0.0, migration_share=1.0)[1] == 0
    assert decide("priced-greedy", observation, crowding_price=0.0, migration_share=0.4)[1] == 1


@pytest.mark.parametrize("name", rule_names())
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_nodes=st.integers(1, 9))
def test_no_rule_chooses_a_closed_node(name: str, seed: int, num_nodes: int):
    rows = random_rows(np.random.default_rng(seed), 5, num_nodes)
    rule, state = make_rule(name), None
    parts = ObservationLayout(num_nodes).split(rows)
    for _ in range(3):
        actions, state = rule.predict(rows, state=state)
        assert parts["task_mask"][np.arange(5), actions[:, 0]].all()
        assert parts["data_mask"][np.arange(5), actions[:, 1]].all()
        weights = actions[:, 2:]
        assert weights.shape in ((5, 0), (5, num_nodes))
        assert ((weights >= 0) & (weights <= 255)).all()
        if weights.size:  # of pages, which nodes have room for their share is seen when they are dealt out
            assert ((parts["nodes"] > 0) | (parts["data"] > 0))[weights > 0].all()


@pytest.mark.parametrize("name", rule_names())
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_nodes=st.integers(1, 9))
def test_a_batch_decides_as_its_rows_do(name: str, seed: int, num_nodes: int):
    rows = random_rows(np.random.default_rng(seed), 7, num_nodes)
    rule, together = make_rule(name), None
    alone = [None] * 7
    for turn in range(4):
        start = (np.arange(7) + turn) % 4 == 3
        actions, together = rule.predict(rows, state=together, episode_start=start)
        assert actions.dtype == np.int64
        for i, observation in enumerate(rows):
            action, alone[i] = rule.predict(observation, state=alone[i], episode_start=start[i : i + 1])
            assert action.shape == actions.shape[1:]
            np.testing.assert_array_equal(action, actions[i])


@pytest.mark.parametrize("name", [name for name in rule_names() if name not in ("random", "round-robin")])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_nodes=st.integers(1, 9))
def test_relabelling_the_nodes_relabels_the_placement(name: str, seed: int, num_nodes: int):
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, 6, num_nodes, most_copies=1)  # no values are equal, so nothing depends on the order
    new = rng.permutation(num_nodes)
    relabelled = rows.copy()
    layout = ObservationLayout(num_nodes)
    parts = layout.split(relabelled)
    for group, values in layout.split(rows).items():
        if values.ndim == 3:
            parts[group][:, new[:, None], new] = values
        elif group != "task":
            parts[group][:, new] = values
    before, after = (make_rule(name).predict(given)[0] for given in (rows, relabelled))
    np.testing.assert_array_equal(after[:, :2], new[before[:, :2]])
    if before.shape[1] > 2:  # whole weights that add up to a given sum are rounded in the order of nodes
        np.testing.assert_allclose(after[:, 2 + new], before[:, 2:], atol=1 if name == "bwap" else 0)


@pytest.mark.parametrize("name", [name for name in rule_names() if RULES[name].tunable])
def test_parameters_by_row_decide_as_one_setting_at_a_time(name: str):
    rng = np.random.default_rng(1)
    observation = random_rows(rng, 1, 6)[0]
    columns = {parameter: scale.at(rng.random(40)) for parameter, scale in RULES[name].tunable.items()}
    together, _ = make_rule(name, **columns).predict(np.tile(observation, (40, 1)))
    for i in range(40):
        alone = decide(name, observation, **{parameter: values[i] for parameter, values in columns.items()})
        assert alone == together[i].tolist()


@pytest.mark.parametrize("name", rule_names())
def test_deciding_leaves_the_observation_alone(name: str):
    rows = random_rows(np.random.default_rng(0), 4, 5)
    before = rows.copy()
    rows.setflags(write=False)
    make_rule(name).predict(rows)
    np.testing.assert_array_equal(rows, before)


def test_ranges_are_walked_in_equal_steps_or_ratios():
    np.testing.assert_allclose(Range(1.0, 3.0).at(np.array([0.0, 0.5, 1.0])), [1.0, 2.0, 3.0])
    np.testing.assert_allclose(Range(0.1, 10.0, log=True).at(np.array([0.0, 0.5, 1.0])), [0.1, 1.0, 10.0])
    assert Range(0.1, 10.0, log=True).share(1.0) == pytest.approx(0.5)
    assert Range(0.1, 10.0, log=True).share(0.0) == 0.0


@pytest.mark.parametrize("name", rule_names())
def test_what_is_tunable_is_a_parameter(name: str):
    assert set(RULES[name].tunable) <= set(default_parameters(name, RewardWeights()))


def test_alpha_of_the_rule_is_the_rewards():
    assert default_parameters("priced-greedy", RewardWeights(alpha=2.0))["alpha"] == 2.0


def test_what_the_controllers_serve_is_the_mean_of_the_machines():
    machines = [load_machine("chapter-2-socket"), load_machine("chapter-8-socket")]
    served = [machine.memory_bandwidth_bytes_per_s.sum() / 64 / 1e6 for machine in machines]
    parameters = default_parameters("carrefour", RewardWeights(), machines)
    assert parameters["accesses_per_us"] == pytest.approx(sum(served) / 2)
    assert default_parameters("carrefour", RewardWeights())["accesses_per_us"] == make_rule("carrefour").accesses_per_us


def test_unknown_rules_and_parameters_are_named():
    with pytest.raises(ValueError, match=r"rule must be one of random, .*priced-greedy, got 'heft'"):
        make_rule("heft")
    with pytest.raises(ValueError, match=r"first-touch: parameter must be one of tolerance, got 'theta'"):
        make_rule("first-touch", theta=1.0)
    with pytest.raises(ValueError, match=r"greedy: parameter must be one of \(none\), got 'x'"):
        make_rule("greedy", x=1.0)
    with pytest.raises(ValueError, match=r"first-touch: tolerance must be finite, got nan"):
        make_rule("first-touch", tolerance=np.nan)


def test_rules_want_the_full_observation():
    with pytest.raises(ValueError, match=r"rules read the full observation, got the one of kind 'chapter'"):
        make_rule("greedy").predict(np.zeros((1, ObservationLayout(4, ObservationKind.CHAPTER).size), np.float32))


@dataclass(frozen=True)
class Counting(Rule):
    """Remembers how many decisions it took and the sum of the queues; spreads pages in every other decision."""

    name: ClassVar[str] = "counting"
    num_remembered: ClassVar[int] = 2

    def place(self, groups: Groups, memory: Array) -> Placement:
        count = memory[:, 0].copy()
        memory[:, 0] += 1
        memory[:, 1] += groups["queue"].sum(axis=-1)
        node = np.zeros(len(memory), np.int64)
        weights = np.where((count % 2 == 1)[:, None], [[3, 2, 1]], 0)
        return Placement(node, node, weights)


def test_a_rule_remembers_by_row_until_the_episode_ends():
    rows = np.stack([row(queue=[1.0, 0.0, 0.0]), row(queue=[0.0, 2.0, 5.0])])
    state = None
    for start in ([True, True], [False, False], [False, True]):
        before = None if state is None else state[0].copy()
        given = state
        _, state = Counting().predict(rows, state=state, episode_start=np.array(start))
        if given is not None:
            np.testing.assert_array_equal(given[0], before)  # the caller's state is the caller's
    np.testing.assert_array_equal(state[0], [[3.0, 3.0], [1.0, 7.0]])


def test_page_weights_follow_the_two_nodes_of_an_action():
    one, state = Counting().predict(row())
    assert one.tolist() == [0, 0, 0, 0, 0]
    again, _ = Counting().predict(row(), state=state)
    assert again.tolist() == [0, 0, 3, 2, 1]

"""The placement policy: it starts as the rule it learned from, and knows nodes by what they are, not by number."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO
from strategies import seeds

from agents.ppo.config import PolicyConfig
from agents.ppo.policy import PlacementPolicy
from agents.ppo.scorer import CLOSED, SMALLEST_COST, TIE, PairScorer
from agents.ppo.storage import LearnedScheduler
from agents.rules.greedy import Greedy, PricedGreedy, priced_cost
from agents.vec_env import NumaVecEnv
from envs.observation import ObservationKind, ObservationLayout
from envs.observation_kernel import OBSERVATION_LIMIT, TaskFeature
from envs.reward import RewardWeights
from envs.world import Rows, World
from numa_rl.machines.builders import eight_socket_cube, four_socket, two_socket
from numa_rl.machines.catalog import load_machine
from numa_rl.workloads.synthetic import SyntheticStream

torch.set_num_threads(1)

DIGITS = 3e-6  # costs closer than this may look alike: a logarithm has no more digits
SMALL = PolicyConfig(node_width=6, pair_width=5)
PRICES = ("congestion_price", "crowding_price", "migration_share", "alpha")
MATRICES = ("communication", "latency", "bandwidth", "estimate", "congestion")


def spaces_of(num_nodes: int) -> tuple[spaces.Box, spaces.MultiDiscrete]:
    size = ObservationLayout(num_nodes).size
    return spaces.Box(0.0, float(OBSERVATION_LIMIT), (size,), np.float32), spaces.MultiDiscrete([num_nodes] * 2)


def make_policy(num_nodes: int, config: Any = SMALL) -> PlacementPolicy:
    torch.manual_seed(0)
    return PlacementPolicy(*spaces_of(num_nodes), lambda _: 1e-3, config=config)


def randomised(module: Any, seed: int = 0) -> Any:
    """The same module with other weights everywhere, the zeros of the start included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return module


def random_groups(rng: np.random.Generator, rows: int, num_nodes: int, *, all_open: bool = False) -> dict[str, Any]:
    """Observations that no machine ever showed, by group."""
    groups = {}
    for name, part in ObservationLayout(num_nodes).slices.items():
        values = rng.exponential(1.0, (rows, part.stop - part.start)).astype(np.float32)
        groups[name] = values.reshape(rows, num_nodes, num_nodes) if name in MATRICES else values
    nodes = np.arange(num_nodes)
    home = rng.integers(-1, num_nodes, (rows, 1))
    groups["data"] = (nodes == home).astype(np.float32)
    groups["task"][:, TaskFeature.IS_NEW] = home[:, 0] < 0
    groups["migration"] *= home >= 0
    groups["nodes"] = np.ones((rows, num_nodes), np.float32)
    for name in ("task_mask", "data_mask"):
        always = rng.integers(num_nodes, size=(rows, 1))
        is_open = (rng.random((rows, num_nodes)) < 0.6) | (nodes == always) | all_open
        groups[name] = is_open.astype(np.float32)
    groups["estimate"] += groups["migration"][:, None, :]  # as in an observation, which holds alpha x it
    return groups


def row_of(groups: dict[str, Any]) -> np.ndarray:
    """The groups as observation rows."""
    return np.concatenate([values.reshape(len(values), -1) for values in groups.values()], axis=1)


def relabelled(groups: dict[str, Any], order: np.ndarray) -> dict[str, Any]:
    """The same machine with node `order[i]` called i."""
    changed = {}
    for name, values in groups.items():
        if name in MATRICES:
            changed[name] = values[:, order][:, :, order]
        else:
            changed[name] = values if name == "task" else values[:, order]
    return changed


def is_clear(observation: np.ndarray, config: PolicyConfig) -> np.ndarray:
    """Rows whose second-best placement costs so much more that nobody takes it for a tie."""
    groups = ObservationLayout.of_size(observation.shape[1]).split(observation)
    cost = priced_cost(groups, config.congestion_price, config.crowding_price, config.migration_share, config.alpha)
    is_open = groups["task_mask"][:, :, None] * groups["data_mask"][:, None, :] > 0
    lowest, second = np.sort(np.where(is_open, cost, np.inf).reshape(len(cost), -1), axis=1)[:, :2].T
    return np.asarray(second > lowest * np.exp(TIE / config.prior_scale + DIGITS))


def scores(scorer: PairScorer, observation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits as matrices, and values."""
    num_nodes = ObservationLayout.of_size(observation.shape[1]).num_nodes
    with torch.no_grad():
        logits, values = scorer(torch.from_numpy(observation))
    return logits.numpy().reshape(-1, num_nodes, num_nodes), values.numpy()


def seen(topology: Any, num_rows: int = 64, steps: int = 24, **changes: Any) -> np.ndarray:
    """Observations of a machine in use, with a rule that decides sometimes and chance at other times."""
    family = SyntheticStream(num_tasks=steps, num_objects=12, **changes)
    workload = family.generate(np.random.default_rng(5), num_rows)
    rows = Rows(World(workload, (topology,), RewardWeights(reference_s=0.05), 0.2), num_rows)
    rows.simulator.reset(np.arange(num_rows))
    rng, found = np.random.default_rng(6), []
    for _ in range(steps):
        observation = rows.observe().copy()
        found.append(observation)
        actions, _ = PricedGreedy().predict(observation)
        elsewhere = rng.integers(topology.num_nodes, size=actions.shape)
        rows.step(np.where(rng.random((num_rows, 1)) < 0.3, elsewhere, actions))
    return np.concatenate(found)


def costs(scorer: PairScorer, groups: dict[str, Any]) -> np.ndarray:
    """What the network's prior makes of every pair."""
    parts = scorer.groups(torch.from_numpy(row_of(groups)))
    with torch.no_grad():
        return scorer.log_cost(parts, scorer.log_price.exp()).exp().numpy()


@pytest.fixture(scope="module")
def cube() -> np.ndarray:
    """1536 observations of eight nodes."""
    return seen(eight_socket_cube())


@pytest.fixture(scope="module")
def tight() -> np.ndarray:
    """The same where memories are too small for all objects, and one node has no cores."""
    topology = eight_socket_cube()
    machine = replace(topology, cores=[4, 0, *topology.cores[2:]], memory_bytes=[1e12, *[4e8] * 7])
    return seen(machine, num_rows=16, median_object_bytes=3e8)


# What it is before it has learned anything.


@pytest.mark.parametrize("where", ["cube", "tight"])
@pytest.mark.parametrize(
    "prices",
    [
        {},
        {"congestion_price": 0.2, "crowding_price": 20.0, "migration_share": 0.9},
        {"congestion_price": 0.0, "crowding_price": 0.0, "migration_share": 0.0},
        {"alpha": 0.5, "migration_share": 1.0},
    ],
)
def test_untrained_it_decides_as_the_priced_greedy_rule(where, prices, request):
    observation = request.getfixturevalue(where)
    policy = make_policy(8, PolicyConfig(**prices))
    got, _ = policy.predict(observation, deterministic=True)
    want, _ = PricedGreedy(**prices).predict(observation)
    groups, config = ObservationLayout(8).split(observation), policy.config
    cost = priced_cost(groups, config.congestion_price, config.crowding_price, config.migration_share, config.alpha)
    clear, rows = is_clear(observation, config), np.arange(len(got))
    np.testing.assert_array_equal(got[clear], want[clear])
    np.testing.assert_allclose(cost[rows, *got.T], cost[rows, *want.T], rtol=TIE / config.prior_scale + DIGITS)
    assert clear.sum() > 100
    assert len(np.unique(want, axis=0)) > 8  # many placements, not one


def test_the_sharpness_of_the_prior_changes_no_decision_before_training(cube):
    blunt, sharp = (make_policy(8, replace(SMALL, prior_scale=scale)) for scale in (0.5, 500.0))
    clear = is_clear(cube, blunt.config)
    decided = (policy.predict(cube[clear], deterministic=True)[0] for policy in (blunt, sharp))
    np.testing.assert_array_equal(*decided)
    assert clear.sum() > 100


def test_other_prices_or_a_residual_decide_otherwise(cube):
    rule, _ = PricedGreedy().predict(cube)
    other = make_policy(8, replace(SMALL, congestion_price=50.0))
    assert (other.predict(cube, deterministic=True)[0] != rule).any()
    trained = make_policy(8)
    torch.nn.init.normal_(trained.scorer.score.weight, std=5.0)
    assert (trained.predict(cube, deterministic=True)[0] != rule).any(axis=1).mean() > 0.1


def test_untrained_it_expects_nothing(cube):
    values = make_policy(8).predict_values(torch.from_numpy(cube))
    assert values.shape == (len(cube), 1)
    assert not values.any()


@given(seeds, st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_the_prior_is_the_rules_cost_to_the_last_digits(seed, num_nodes):
    rng = np.random.default_rng(seed)
    groups = random_groups(rng, 4, num_nodes)
    prices = (*rng.exponential(1.0, 2), rng.random(), rng.exponential())
    config = replace(SMALL, **dict(zip(PRICES, prices, strict=True)))
    scorer = PairScorer(config)
    observation = torch.from_numpy(row_of(groups))
    got = costs(scorer, groups)
    want = np.maximum(priced_cost(groups, *prices), SMALLEST_COST)
    # A discount subtracts migration again, so digits are lost against the estimate, which holds it.
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6 * groups["estimate"].max())
    is_open = groups["task_mask"][:, :, None] * groups["data_mask"][:, None, :] > 0
    lowest = np.where(is_open, want, np.inf).min(axis=(1, 2))
    np.testing.assert_allclose(scorer.unit_cost(observation), lowest, rtol=2e-6, atol=2e-6 * groups["estimate"].max())


def test_each_price_has_a_learned_factor_of_its_own():
    groups = random_groups(np.random.default_rng(1), 4, 3)
    config = replace(SMALL, congestion_price=2.0, crowding_price=3.0, migration_share=0.1)
    scorer = PairScorer(config)
    with torch.no_grad():
        scorer.log_price.copy_(torch.log(torch.tensor([2.0, 0.5, 4.0])))
    np.testing.assert_allclose(costs(scorer, groups), priced_cost(groups, 4.0, 1.5, 0.4, 1.0), rtol=1e-4)
    with torch.no_grad():
        scorer.log_price[2] = 9.0  # never more than the whole migration
    np.testing.assert_allclose(costs(scorer, groups), priced_cost(groups, 4.0, 1.5, 1.0, 1.0), rtol=1e-4)


def test_a_placement_that_costs_one_percent_more_is_as_much_less_likely_as_prior_scale_says():
    groups = random_groups(np.random.default_rng(0), 1, 2, all_open=True)
    config = replace(SMALL, congestion_price=0.0, crowding_price=0.0, migration_share=1.0, prior_scale=30.0)
    groups["estimate"][:] = [[1.0, 1.01], [2.0, 4.0]]
    logits, _ = scores(PairScorer(config), row_of(groups))
    np.testing.assert_allclose(logits[0], -30.0 * np.log([[1.0, 1.01], [2.0, 4.0]]), rtol=1e-4, atol=1e-5)


# Nodes are known by what they are.


@given(seeds, st.integers(1, 6).flatmap(lambda n: st.permutations(range(n))))
@settings(max_examples=40, deadline=None)
def test_relabelling_nodes_relabels_logits_and_leaves_the_value(seed, order):
    order = np.array(order)
    groups = random_groups(np.random.default_rng(seed), 3, len(order))
    scorer = randomised(make_policy(len(order)).scorer, seed)
    logits, values = scores(scorer, row_of(groups))
    renamed_logits, renamed_values = scores(scorer, row_of(relabelled(groups, order)))
    np.testing.assert_allclose(renamed_logits, logits[:, order][:, :, order], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(renamed_values, values, rtol=1e-4, atol=1e-4)


def test_task_node_and_data_node_are_not_the_same_to_it():
    groups = random_groups(np.random.default_rng(0), 3, 4, all_open=True)
    logits, _ = scores(randomised(make_policy(4).scorer), row_of(groups))
    assert np.abs(logits - logits.transpose(0, 2, 1)).max() > 0.1


def test_what_is_known_of_either_node_reaches_the_pair():
    groups = random_groups(np.random.default_rng(0), 1, 4, all_open=True)
    groups["estimate"][:] = 1.0
    groups["migration"][:] = groups["data"][:] = 0.0
    scorer = randomised(make_policy(4, replace(SMALL, congestion_price=0.0, crowding_price=0.0)).scorer)
    torch.nn.init.zeros_(scorer.pair.weight)
    logits, _ = scores(scorer, row_of(groups))
    assert np.ptp(logits, axis=1).min() > 1e-3  # task nodes differ
    assert np.ptp(logits, axis=2).min() > 1e-3  # and so do data nodes


@given(seeds, st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_padding_is_never_chosen_and_changes_nothing(seed, num_nodes, padding):
    rng = np.random.default_rng(seed)
    groups = random_groups(rng, 3, num_nodes)
    padded = {}
    for name, values in groups.items():
        axes = [(0, 0)] + [(0, 0 if name == "task" else padding)] * (values.ndim - 1)
        padded[name] = np.pad(values, axes)
    junk = rng.exponential(1.0, padded["estimate"].shape)  # an observer leaves there what was
    for name in ("estimate", "congestion"):
        padded[name] = np.where(padded["nodes"][:, :, None] * padded["nodes"][:, None, :] > 0, padded[name], junk)
    padded = {name: values.astype(np.float32) for name, values in padded.items()}
    scorer = randomised(make_policy(num_nodes).scorer, seed)
    logits, values = scores(scorer, row_of(groups))
    wide_logits, wide_values = scores(scorer, row_of(padded))
    np.testing.assert_allclose(wide_logits[:, :num_nodes, :num_nodes], logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(wide_values, values, rtol=1e-4, atol=1e-4)
    assert (wide_logits[:, num_nodes:] == CLOSED).all()
    assert (wide_logits[:, :, num_nodes:] == CLOSED).all()


def test_a_small_machine_is_played_alike_alone_and_beside_a_larger_one():
    workload = SyntheticStream(num_tasks=12, num_objects=4).generate(np.random.default_rng(1), 8)
    weights = RewardWeights(reference_s=0.05)
    scorer = randomised(make_policy(2).scorer)
    worlds = [World(workload, machines, weights, 0.2) for machines in ((two_socket(),), (two_socket(), four_socket()))]
    alone, beside = (Rows(world, 8) for world in worlds)
    for rows in (alone, beside):
        rows.simulator.reset(np.arange(8), machines=0)
    for _ in range(12):
        actions, _ = LearnedScheduler(scorer).predict(alone.observe())
        logits, values = scores(scorer, alone.observe())
        wide_logits, wide_values = scores(scorer, beside.observe())
        np.testing.assert_allclose(wide_logits[:, :2, :2], logits, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(wide_values, values, rtol=1e-5, atol=1e-5)
        alone.step(actions)
        beside.step(actions)


@pytest.mark.parametrize("num_nodes", [1, 2, 5, 11])
def test_one_set_of_weights_serves_any_number_of_nodes(num_nodes):
    learned = LearnedScheduler(randomised(make_policy(3).scorer))
    observation = row_of(random_groups(np.random.default_rng(2), 7, num_nodes))
    actions, _ = learned.predict(observation)
    assert actions.shape == (7, 2)
    assert actions.min() >= 0
    assert actions.max() < num_nodes
    one, _ = learned.predict(observation[3])
    np.testing.assert_array_equal(one, actions[3])


# What is closed stays closed.


@given(seeds, st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_closed_nodes_are_never_chosen(seed, num_nodes):
    groups = random_groups(np.random.default_rng(seed), 8, num_nodes)
    policy = randomised(make_policy(num_nodes), seed)
    observation = row_of(groups)
    learned = LearnedScheduler(policy.scorer, seed=seed)
    for deterministic in (True, False):
        for scheduler in (policy, learned):
            actions, _ = scheduler.predict(observation, deterministic=deterministic)
            assert np.take_along_axis(groups["task_mask"], actions[:, :1], axis=1).all()
            assert np.take_along_axis(groups["data_mask"], actions[:, 1:], axis=1).all()


def test_what_a_closed_pair_would_cost_changes_no_open_logit():
    groups = random_groups(np.random.default_rng(3), 16, 5)
    is_open = groups["task_mask"][:, :, None] * groups["data_mask"][:, None, :] > 0
    changed = groups | {"estimate": np.where(is_open, groups["estimate"], np.float32(1e-3))}
    scorer = randomised(make_policy(5).scorer)
    logits, values = scores(scorer, row_of(groups))
    changed_logits, changed_values = scores(scorer, row_of(changed))
    np.testing.assert_array_equal(changed_logits, logits)
    np.testing.assert_array_equal(changed_values, values)
    assert (logits[~is_open] == CLOSED).all()
    assert (logits[is_open] > CLOSED / 2).all()


# What PPO needs of it.


def test_log_probabilities_of_chosen_actions_agree_with_evaluation():
    policy = randomised(make_policy(4))
    observation = torch.from_numpy(row_of(random_groups(np.random.default_rng(4), 64, 4)))
    for deterministic in (True, False):
        actions, values, log_probability = policy(observation, deterministic)
        again_values, again, entropy = policy.evaluate_actions(observation, actions)
        torch.testing.assert_close(again, log_probability)
        torch.testing.assert_close(again_values, values)
        torch.testing.assert_close(policy.predict_values(observation), values)
        assert actions.shape == (64, 2)
        assert values.shape == (64, 1)
        assert log_probability.shape == entropy.shape == (64,)
        assert (log_probability <= 0).all()


@pytest.mark.parametrize(("open_task_nodes", "open_data_nodes"), [(4, 4), (3, 2), (1, 4), (1, 1)])
def test_entropy_of_equal_placements_is_the_logarithm_of_their_number(open_task_nodes, open_data_nodes):
    groups = random_groups(np.random.default_rng(0), 1, 4, all_open=True)
    groups["estimate"][:] = 1.0
    groups["migration"][:] = groups["data"][:] = 0.0
    groups["task_mask"][:] = np.arange(4) < open_task_nodes
    groups["data_mask"][:] = np.arange(4) >= 4 - open_data_nodes
    policy = make_policy(4, replace(SMALL, congestion_price=0.0, crowding_price=0.0))
    actions = torch.tensor([[0, 3]])
    _, log_probability, entropy = policy.evaluate_actions(torch.from_numpy(row_of(groups)), actions)
    want = np.log(open_task_nodes * open_data_nodes)
    assert entropy.item() == pytest.approx(want, abs=1e-5)
    assert log_probability.item() == pytest.approx(-want, abs=1e-5)


def test_probabilities_of_all_placements_sum_to_one():
    policy = randomised(make_policy(3))
    observation = torch.from_numpy(row_of(random_groups(np.random.default_rng(8), 1, 3))).expand(9, -1)
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    _, log_probability, entropy = policy.evaluate_actions(observation, pairs)
    probability = log_probability.exp()
    assert probability.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert entropy[0].item() == pytest.approx(-torch.special.xlogy(probability, probability).sum().item(), abs=1e-5)


@pytest.mark.parametrize("which", ["policy", "learned"])
def test_samples_come_as_often_as_their_probabilities(which):
    policy = make_policy(3, replace(SMALL, prior_scale=1.0))
    observation = row_of(random_groups(np.random.default_rng(8), 1, 3, all_open=True))
    logits, _ = scores(policy.scorer, observation)
    probability = np.exp(logits - logits.max())
    probability /= probability.sum()
    torch.manual_seed(1)
    scheduler = policy if which == "policy" else LearnedScheduler(policy.scorer, seed=1)
    actions, _ = scheduler.predict(np.repeat(observation, 20_000, axis=0), deterministic=False)
    share = np.bincount(3 * actions[:, 0] + actions[:, 1], minlength=9).reshape(1, 3, 3) / 20_000
    np.testing.assert_allclose(share, probability, atol=0.02)  # 5 standard deviations
    assert probability.max() < 0.9


def test_the_gradient_reaches_every_parameter():
    policy = randomised(make_policy(4))
    observation = torch.from_numpy(row_of(random_groups(np.random.default_rng(9), 64, 4)))
    actions, _, _ = policy(observation)
    values, log_probability, _ = policy.evaluate_actions(observation, actions)
    (log_probability.sum() + values.sum()).backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    assert {id(p) for group in policy.optimizer.param_groups for p in group["params"]} == {
        id(p) for p in policy.parameters()
    }


def test_gradients_stay_finite_where_only_one_placement_is_open():
    groups = random_groups(np.random.default_rng(0), 2, 3)
    groups["task_mask"][:] = groups["data_mask"][:] = [0.0, 1.0, 0.0]
    policy = randomised(make_policy(3))
    values, log_probability, entropy = policy.evaluate_actions(
        torch.from_numpy(row_of(groups)), torch.tensor([[1, 1], [1, 1]])
    )
    assert log_probability.tolist() == [0.0, 0.0]
    (log_probability.sum() + values.sum() + entropy.sum()).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in policy.parameters())


def test_stable_baselines3_trains_saves_and_loads_it(tmp_path):
    workload = SyntheticStream(num_tasks=6, num_objects=4).generate(np.random.default_rng(1), 4)
    env = NumaVecEnv(World(workload, (two_socket(),), RewardWeights(reference_s=0.05), 0.2), 4, reward_scale=0.1)
    config = replace(SMALL, crowding_price=3.0)
    kwargs = {"n_steps": 8, "batch_size": 16, "n_epochs": 2, "learning_rate": 0.05, "device": "cpu", "seed": 0}
    model = PPO(PlacementPolicy, env, policy_kwargs={"config": config}, **kwargs)
    model.learn(64)
    assert model.policy.scorer.score.weight.abs().sum() > 0
    model.policy.save(tmp_path / "policy.pt")
    assert PlacementPolicy.load(tmp_path / "policy.pt", device="cpu").config == config
    model.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", device="cpu")
    assert loaded.policy.config == config
    observation = env.reset()
    for one, two in zip(
        model.policy(torch.from_numpy(observation), True),
        loaded.policy(torch.from_numpy(observation), True),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_greedy_is_the_prior_without_prices():
    observation = seen(load_machine("r815"), num_rows=8)
    policy = make_policy(8, PolicyConfig(congestion_price=0.0, crowding_price=0.0, migration_share=1.0))
    np.testing.assert_array_equal(policy.predict(observation, deterministic=True)[0], Greedy().predict(observation)[0])


# What it refuses.


@pytest.mark.parametrize(
    "action_space",
    [
        spaces.Discrete(4),
        spaces.MultiDiscrete([2, 2, 2]),
        spaces.MultiDiscrete([2]),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiDiscrete([[2, 2], [2, 2]]),
        spaces.Box(0, 1, (2,)),
    ],
    ids=str,
)
def test_an_action_must_be_a_task_node_and_a_data_node(action_space):
    with pytest.raises(ValueError, match=r"chooses \(task node, data node\), got action space"):
        PlacementPolicy(spaces_of(2)[0], action_space, lambda _: 1e-3)


@pytest.mark.parametrize("size", [ObservationLayout(3).size, ObservationLayout(2, ObservationKind.CHAPTER).size, 1])
def test_an_observation_must_be_the_full_one_of_as_many_nodes(size):
    with pytest.raises(ValueError, match=rf"full observation of 2 nodes, shape \(51,\), got shape \({size},\)"):
        PlacementPolicy(spaces.Box(0, 1, (size,)), spaces.MultiDiscrete([2, 2]), lambda _: 1e-3)
    with pytest.raises(ValueError, match=r"full observation of 2 nodes, shape \(51,\), got shape \(\)"):
        PlacementPolicy(spaces.Discrete(2), spaces.MultiDiscrete([2, 2]), lambda _: 1e-3)


def test_a_chapters_observation_is_refused_by_name():
    observation = np.zeros((2, ObservationLayout(4, ObservationKind.CHAPTER).size), np.float32)
    with pytest.raises(ValueError, match=r"policy 'p' reads the full observation, got the one of kind 'chapter'"):
        LearnedScheduler(make_policy(4).scorer, name="p").predict(observation)
    with pytest.raises(ValueError, match=r"no observation layout of up to 128 nodes has 4 values"):
        LearnedScheduler(make_policy(4).scorer).predict(np.zeros((2, 4), np.float32))

"""The rollout teacher: its kernel does what stepping the rule from outside does, and the policy learns from it."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Play, Task, plays, seeds, toy_machine, toy_workload

from agents.ppo.config import PolicyConfig, TeacherConfig
from agents.ppo.policy import PlacementPolicy
from agents.ppo.teacher import Labels, RolloutTeacher, joined, learn, teacher_loss
from agents.rollouts import Rollouts
from agents.rules.greedy import PricedGreedy
from envs.observation import Observer
from envs.reward import RewardWeights
from envs.world import Rows, World
from numa_rl.machines.builders import four_socket, two_socket
from numa_rl.simulator.simulator import Simulator
from numa_rl.workloads.synthetic import SyntheticStream

torch.set_num_threads(1)

WEIGHTS = RewardWeights(alpha=0.7, beta=0.3, reference_s=0.05, out_of_memory_penalty=11.0)
RULE = PricedGreedy(congestion_price=0.8, crowding_price=2.0, migration_share=0.4, alpha=0.7)
NUM_TASKS = 12
THREADS = min(2, os.cpu_count() or 1)


def stream(topologies: tuple[Any, ...], num_episodes: int = 6, **changes: Any) -> World:
    family = SyntheticStream(num_tasks=NUM_TASKS, num_objects=5, **changes)
    return World(family.generate(np.random.default_rng(2), num_episodes), topologies, WEIGHTS, 0.2)


@pytest.fixture(scope="module")
def world() -> World:
    return stream((four_socket(),))


def tight_machine() -> Any:
    """A node without cores, and memories for one object or two."""
    return replace(four_socket(), cores=[4, 0, 2, 1], memory_bytes=[6e8, 9e8, 3e8, 5e8])


def make_policy(world: World, **config: Any) -> PlacementPolicy:
    torch.manual_seed(0)
    rows = Rows(world, 1)
    return PlacementPolicy(
        rows.observation_space, rows.action_space, lambda _: 1e-3, config=PolicyConfig(node_width=8, **config)
    )


def by_hand(
    simulator: Simulator,
    candidates: np.ndarray,
    rule: PricedGreedy,
    world: World,
    depth: int,
    discounts: tuple[float, float] = (1.0, 1.0),
) -> np.ndarray:
    """Costs of candidates, each tried on a copy of the simulator that the rule steps from outside."""
    rows, num_candidates = candidates.shape
    costs = np.zeros(candidates.shape)
    trial = Simulator(world.topologies, world.workload, rows, window_s=world.window_s)
    observer = Observer(trial, world.weights, world.observation)
    workload, episode = world.workload, simulator.state.episode
    last = workload.num_tasks - 1
    own = workload.object[episode, simulator.state.task.clip(max=last)]
    for k in range(num_candidates):
        for mine, now in zip(trial.state, simulator.state, strict=True):
            mine[...] = now
        actions = np.stack(np.divmod(candidates[:, k], trial.num_nodes), axis=-1)
        for step in range(depth):
            running, task = trial.state.task < trial.state.horizon, trial.state.task.clip(max=last)
            used = np.column_stack([workload.object[episode, task], workload.inputs[episode, task]])
            weight = np.where((used == own[:, None]).any(axis=1), discounts[1] ** step, discounts[0] ** step)
            cost = world.weights.cost(trial.step(actions))
            costs[:, k] += np.where(running, weight * cost, 0.0)
            actions, _ = rule.predict(observer.observe())
    return costs


def started(world: World, rows: int, steps: int, seed: int = 0) -> Simulator:
    """A simulator whose rows are `steps` random decisions into episodes of different lengths."""
    simulator = Simulator(world.topologies, world.workload, rows, window_s=world.window_s)
    rng = np.random.default_rng(seed)
    pool, num_tasks = world.workload.num_episodes, world.workload.num_tasks
    horizons = np.minimum(steps + 1 + np.arange(rows) % num_tasks, num_tasks)
    machines = rng.integers(len(world.topologies), size=rows)
    simulator.reset(rng.integers(pool, size=rows), machines=machines, horizons=horizons)
    for _ in range(steps):
        simulator.step(rng.integers(simulator.machines.num_nodes[simulator.state.machine][:, None], size=(rows, 2)))
    return simulator


def all_pairs(simulator: Simulator, rows: int) -> np.ndarray:
    """Every pair as a candidate, those of closed data nodes included."""
    return np.tile(np.arange(simulator.num_nodes**2), (rows, 1))


@pytest.mark.parametrize("depth", [1, 2, 7, 30])
@pytest.mark.parametrize("steps", [0, 3, 9])
def test_fused_rollouts_cost_what_stepping_the_rule_costs(world, depth, steps):
    simulator = started(world, 8, steps)
    candidates = all_pairs(simulator, 8)
    got = Rollouts(world, RULE, 8, 16, depth).try_candidates(simulator, candidates)
    np.testing.assert_allclose(got, by_hand(simulator, candidates, RULE, world, depth), rtol=1e-9)
    assert np.ptp(got, axis=1).max() > 0.1  # where a task goes does matter


@pytest.mark.parametrize("steps", [0, 4, 8])
def test_they_agree_where_nodes_have_no_cores_and_memories_fill_up(steps):
    crowded = stream((tight_machine(),), num_episodes=16, median_object_bytes=2.5e8)
    simulator = started(crowded, 16, steps)
    fell_back = int(simulator.outcome.fell_back.sum())
    candidates = all_pairs(simulator, 16)
    got = Rollouts(crowded, RULE, 16, 16, 10).try_candidates(simulator, candidates)
    np.testing.assert_allclose(got, by_hand(simulator, candidates, RULE, crowded, 10), rtol=1e-9)
    assert (got > WEIGHTS.out_of_memory_penalty).any()
    assert (got > WEIGHTS.out_of_memory_penalty).mean() < 1.0
    assert fell_back or steps != 4


@pytest.mark.parametrize("seed", range(3))
def test_they_agree_where_rows_play_machines_of_different_sizes(seed):
    mixed = stream((two_socket(), four_socket()))
    simulator = started(mixed, 8, 3, seed)
    assert len(set(simulator.state.machine.tolist())) == 2
    n = simulator.machines.num_nodes[simulator.state.machine]
    rng = np.random.default_rng(seed)
    candidates = 4 * rng.integers(n[:, None], size=(8, 5)) + rng.integers(n[:, None], size=(8, 5))
    got = Rollouts(mixed, RULE, 8, 5, 8).try_candidates(simulator, candidates)
    np.testing.assert_allclose(got, by_hand(simulator, candidates, RULE, mixed, 8), rtol=1e-9)


@given(plays(num_episodes=2), seeds, st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_they_agree_on_machines_and_tasks_of_any_kind(play: Play, seed: int, depth: int):
    world = World(play.workload, (play.topology,), WEIGHTS, play.window_s)
    simulator = started(world, 2, seed % play.workload.num_tasks, seed)
    candidates = all_pairs(simulator, 2)
    got = Rollouts(world, RULE, 2, candidates.shape[1], depth).try_candidates(simulator, candidates)
    want = by_hand(simulator, candidates, RULE, world, depth)
    np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.parametrize("discounts", [(0.3, 1.0), (0.97, 0.97), (0.8, 0.9)])
def test_costs_far_ahead_count_less_and_those_of_the_same_object_as_told(world, discounts):
    simulator = started(world, 8, 3)
    candidates = all_pairs(simulator, 8)
    rollouts = Rollouts(world, RULE, 8, 16, 9, discount=discounts[0], own_discount=discounts[1])
    got = rollouts.try_candidates(simulator, candidates)
    np.testing.assert_allclose(got, by_hand(simulator, candidates, RULE, world, 9, discounts), rtol=1e-9)


def test_a_candidate_at_the_end_of_an_episode_is_counted_alone(world):
    simulator = started(world, 4, NUM_TASKS - 1)
    candidates = all_pairs(simulator, 4)
    one, many = (Rollouts(world, RULE, 4, 16, depth).try_candidates(simulator, candidates) for depth in (1, 20))
    np.testing.assert_array_equal(one, many)
    simulator.step(np.zeros((4, 2), int))
    assert simulator.outcome.finished.all()
    assert not Rollouts(world, RULE, 4, 16, 20).try_candidates(simulator, candidates).any()


def test_an_episode_cut_short_ends_there(world):
    simulator = Simulator(world.topologies, world.workload, 2, window_s=world.window_s)
    simulator.reset(0, horizons=[3, NUM_TASKS])
    candidates = np.zeros((2, 1), int)
    cost = {depth: Rollouts(world, RULE, 2, 1, depth).try_candidates(simulator, candidates) for depth in (2, 3, 4)}
    assert cost[2][0] < cost[3][0] == cost[4][0]
    assert cost[2][1] < cost[3][1] < cost[4][1]


def test_trying_leaves_the_simulator_as_it_was(world):
    simulator = started(world, 4, 3)
    before = [array.copy() for array in simulator.state]
    rollouts = Rollouts(world, RULE, 4, 16, 5)
    first = rollouts.try_candidates(simulator, all_pairs(simulator, 4))
    for now, then in zip(simulator.state, before, strict=True):
        np.testing.assert_array_equal(now, then)
    np.testing.assert_array_equal(rollouts.try_candidates(simulator, all_pairs(simulator, 4)), first)


def test_two_threads_find_what_one_finds(world):
    simulator = started(world, 16, 3)
    candidates = all_pairs(simulator, 16)
    one, two = (
        Rollouts(world, RULE, 16, 16, 6, num_threads=threads).try_candidates(simulator, candidates)
        for threads in (1, THREADS)
    )
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "rule",
    [
        replace(RULE, congestion_price=0.0, crowding_price=0.0),
        replace(RULE, congestion_price=60.0),
        replace(RULE, crowding_price=300.0),
        replace(RULE, migration_share=0.0),
    ],
)
def test_the_rules_prices_are_the_kernels(world, rule):
    simulator = started(world, 8, 3)
    candidates = all_pairs(simulator, 8)
    got = Rollouts(world, rule, 8, 16, 9).try_candidates(simulator, candidates)
    np.testing.assert_allclose(got, by_hand(simulator, candidates, rule, world, 9), rtol=1e-9)
    assert not np.allclose(got, Rollouts(world, RULE, 8, 16, 9).try_candidates(simulator, candidates))


def test_rollouts_by_hand():
    # Node 0 computes 1 s; the second task waits behind it there, or runs at once on node 1.
    tasks = [Task(0, 0.0, flops=100.0), Task(1, 0.0, flops=200.0)]
    world = World(toy_workload(tasks), (toy_machine(),), RewardWeights(beta=0.0), 1.0)
    simulator = Simulator(world.topologies, world.workload, 1, window_s=1.0)
    simulator.reset(0)
    rule = PricedGreedy(0.0, 0.0, 1.0)
    cost = Rollouts(world, rule, 1, 4, 2).try_candidates(simulator, np.arange(4)[None])
    np.testing.assert_allclose(cost, [[3.0, 3.0, 3.0, 3.0]])
    simulator.step(np.array([[0, 0]]))
    cost = Rollouts(world, rule, 1, 4, 2).try_candidates(simulator, np.arange(4)[None])
    np.testing.assert_allclose(cost, [[3.0, 3.0, 2.0, 2.0]])


def test_a_reward_of_ones_own_is_refused(world):
    class Own(RewardWeights):
        def cost(self, outcome: Any) -> Any:
            return outcome.exec_s

    with pytest.raises(ValueError, match=r"rollouts know the reward of RewardWeights alone, got Own"):
        Rollouts(replace(world, weights=Own()), RULE, 1, 2, 3)


# The teacher.

CONFIG = TeacherConfig(
    labels=64, labels_per_update=16, num_rows=8, num_candidates=5, num_random=2, depth=4, stride=2, memory=2,
    batch_size=16, learning_rate=1e-2, discount=0.9, own_discount=1.0, num_threads=1,
)  # fmt: skip


def make_teacher(world: World, config: TeacherConfig = CONFIG, **policy: Any) -> RolloutTeacher:
    teacher = RolloutTeacher(world, RULE, make_policy(world, **policy), config)
    teacher.rows.generators = [np.random.default_rng(row) for row in range(config.num_rows)]
    teacher.start()
    return teacher


def test_labels_are_what_trying_the_candidates_costs(world):
    teacher = make_teacher(world)
    rng = np.random.default_rng(0)
    for _ in range(5):
        simulator = started(world, 8, 0)
        for mine, now in zip(simulator.state, teacher.rows.simulator.state, strict=True):
            mine[...] = now
        observation = teacher.rows.observe().copy()
        labels = teacher.label(1, rng)
        np.testing.assert_array_equal(labels.observation, observation)
        want = by_hand(simulator, labels.candidates, RULE, world, CONFIG.depth, (0.9, 1.0))
        np.testing.assert_allclose(labels.cost, want, rtol=1e-9)


def test_the_likeliest_placements_are_tried_first_and_others_by_chance(world):
    teacher = make_teacher(world)
    logits = teacher._logits(teacher.rows.observe())
    labels = [make_teacher(world).label(1, np.random.default_rng(seed)).candidates for seed in range(2)]
    np.testing.assert_array_equal(labels[0][:, :3], np.argsort(-logits, axis=1, kind="stable")[:, :3])
    np.testing.assert_array_equal(labels[0][:, :3], labels[1][:, :3])
    assert not np.array_equal(labels[0], labels[1])
    assert all(len(set(row)) == 5 for candidates in labels for row in candidates.tolist())


def test_closed_placements_are_never_tried():
    crowded = stream((tight_machine(),), num_episodes=16, median_object_bytes=2.5e8)
    teacher = make_teacher(crowded, replace(CONFIG, num_candidates=12))
    rng, few = np.random.default_rng(0), 0
    for _ in range(8):
        masks = teacher.rows.action_masks()
        is_open = (masks[:, :4, None] & masks[:, None, 4:]).reshape(8, 16)
        candidates = teacher.label(1, rng).candidates
        assert np.take_along_axis(is_open, candidates, axis=1).all()
        for row, opened in zip(candidates.tolist(), is_open.sum(axis=1), strict=True):
            assert len(set(row)) == min(12, opened)
            few += opened < 12
    assert few


@pytest.mark.parametrize("topology", [two_socket(), toy_machine(1, memory_bytes=[1e12])], ids=["2 nodes", "1 node"])
def test_a_machine_with_fewer_placements_than_candidates_is_taught_too(topology):
    teacher = make_teacher(stream((topology,)), replace(CONFIG, num_candidates=6))
    assert np.isfinite(teacher.update(0.0, np.random.default_rng(0)))


def test_rows_move_on_and_start_anew(world):
    teacher = make_teacher(world, replace(CONFIG, stride=3))
    rng = np.random.default_rng(0)
    assert teacher.rows.simulator.state.horizon.tolist() == [2, 3, 5, 6, 8, 9, 11, 12]  # 12 x 1/8, 2/8, ... up
    before = teacher.rows.simulator.state.task.copy()
    teacher.label(1, rng)
    after = teacher.rows.simulator.state.task
    assert before.tolist() == [0] * 8
    assert after.tolist() == [1, 0, 3, 3, 3, 3, 3, 3]  # two episodes ended, after 2 and after 3 decisions


def test_labels_are_remembered_for_as_many_updates_as_told(world):
    teacher = make_teacher(world)
    rng = np.random.default_rng(0)
    for count in (1, 2, 2):
        newest = teacher.memory[-1:]
        teacher.update(0.0, rng)
        assert len(teacher.memory) == count
        assert all(len(part.cost) == 16 for part in teacher.memory)
        assert newest == teacher.memory[-2:-1]


def test_the_learning_rate_falls_to_a_twentieth(world):
    teacher = make_teacher(world)
    for progress, rate in ((0.0, 1e-2), (0.5, 5e-3), (0.99, 5e-4)):
        teacher.update(progress, np.random.default_rng(0))
        assert teacher.optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_one_seed_teaches_the_same(world):
    def taught(seed: int) -> list[torch.Tensor]:
        teacher = make_teacher(world)
        for update in range(2):
            teacher.update(0.0, np.random.default_rng([seed, update]))
        return [parameter.detach() for parameter in teacher.policy.parameters()]

    assert all(torch.equal(one, two) for one, two in zip(taught(0), taught(0), strict=True))
    assert any(not torch.equal(one, two) for one, two in zip(taught(0), taught(1), strict=True))


def planted(world: World, worth: Callable[[np.ndarray, int], np.ndarray]) -> Labels:
    """Labels of 128 states and all placements, with invented costs."""
    teacher = make_teacher(world, replace(CONFIG, num_rows=32))
    together = teacher.label(4, np.random.default_rng(0))
    candidates = np.tile(np.arange(16), (128, 1))
    cost = worth(candidates, 4)
    return Labels(together.observation, candidates, cost, np.full(128, cost.std()))


def fit(policy: PlacementPolicy, labels: Labels, rounds: int) -> list[float]:
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    rng = np.random.default_rng(0)
    config = replace(CONFIG, batch_size=64)
    return [learn(policy, optimizer, [labels], config, 0.0, rng) for _ in range(rounds)]


@pytest.fixture(scope="module")
def local_is_cheap(world: World) -> Labels:
    """Invented: data and task on one node cost nothing, apart they cost 20 reference times; the rest is noise."""
    noise = np.random.default_rng(1).normal(0.0, 0.1, (128, 16))
    return planted(world, lambda pair, n: 20.0 * (pair // n != pair % n) + noise)


def test_learning_prefers_what_was_planted(world, local_is_cheap):
    policy = make_policy(world)
    before, _ = policy.predict(local_is_cheap.observation, deterministic=True)
    losses = fit(policy, local_is_cheap, 80)
    after, _ = policy.predict(local_is_cheap.observation, deterministic=True)
    assert losses[-1] < 0.7 * losses[0]
    assert (before[:, 0] == before[:, 1]).mean() < 0.9
    assert (after[:, 0] == after[:, 1]).all()


def test_learning_prefers_the_opposite_when_that_was_planted(world, local_is_cheap):
    policy = make_policy(world)
    losses = fit(policy, replace(local_is_cheap, cost=-local_is_cheap.cost), 80)
    after, _ = policy.predict(local_is_cheap.observation, deterministic=True)
    assert losses[-1] < 0.7 * losses[0]
    assert (after[:, 0] != after[:, 1]).all()


def test_only_differences_between_candidates_of_a_state_count(world, local_is_cheap):
    shifted = replace(local_is_cheap, cost=local_is_cheap.cost + np.arange(128.0)[:, None])
    one, two = make_policy(world), make_policy(world)
    np.testing.assert_allclose(fit(one, local_is_cheap, 3), fit(two, shifted, 3), rtol=1e-3)


def test_what_the_policy_says_already_is_no_loss(world):
    teacher = make_teacher(world, prior_scale=3.0)
    labels = teacher.label(1, np.random.default_rng(0))
    scorer = teacher.policy.scorer
    logits = np.take_along_axis(teacher._logits(labels.observation), labels.candidates, axis=1)
    unit = scorer.unit_cost(torch.from_numpy(labels.observation)).numpy()[:, None]
    cost = -unit * logits / 3.0
    right, wrong = (teacher_loss(scorer, replace(labels, cost=much * cost), CONFIG).item() for much in (1.0, 1.5))
    assert right == pytest.approx(0.0, abs=1e-8)
    assert wrong > 1e-5


def test_errors_count_by_nearness_and_by_what_costs_vary_by(world):
    teacher = make_teacher(world, prior_scale=3.0)
    labels = teacher.label(2, np.random.default_rng(0))
    scorer = teacher.policy.scorer
    logits = np.take_along_axis(teacher._logits(labels.observation), labels.candidates, axis=1) / 3.0
    unit = scorer.unit_cost(torch.from_numpy(labels.observation)).numpy()[:, None]
    behind = logits.max(1, keepdims=True) - logits
    weight = 0.9 * np.exp(-behind / 0.2) + 0.1 * np.exp(-behind / 2.0)
    error = logits + labels.cost / unit
    error = (error - (weight * error).sum(1, keepdims=True) / weight.sum(1, keepdims=True)) * unit
    assert (labels.spread == (labels.cost[:, 0] - labels.cost[:, 1]).std()).all()
    for spread in (labels.spread, 1e-6 * labels.spread):
        error_in = np.abs(error / spread[:, None])
        fit = np.where(error_in < 3.0, error_in**2 / 2, 3.0 * error_in - 4.5)
        worth = np.minimum(spread[:, None] / unit, 5.0)
        got = teacher_loss(scorer, replace(labels, spread=spread), replace(CONFIG, near=0.2)).item()
        assert got == pytest.approx((weight * fit * worth).mean(), rel=1e-4)


def test_what_went_well_by_chance_is_not_believed(world):
    # Together, task and data cost 5 always; apart they cost 0 most often and 30 once in four times, 7.5 on average.
    def worth(pairs: np.ndarray, n: int) -> np.ndarray:
        apart = 30.0 * (np.random.default_rng(3).random(pairs.shape) < 0.25)
        return np.where(pairs // n == pairs % n, 5.0, apart)

    policy = make_policy(world)
    labels = planted(world, worth)
    fit(policy, labels, 60)
    chosen, _ = policy.predict(labels.observation, deterministic=True)
    assert (chosen[:, 0] == chosen[:, 1]).mean() > 0.75  # 128 states can be learned by heart in part


def test_all_labels_together_are_those_of_the_parts(world):
    teacher = make_teacher(world)
    parts = [teacher.label(1, np.random.default_rng(seed)) for seed in range(3)]
    together = joined(parts)
    assert together.cost.shape == together.candidates.shape == (24, 5)
    np.testing.assert_array_equal(together.observation[8:16], parts[1].observation)
    np.testing.assert_array_equal(together.cost[16:], parts[2].cost)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("labels", -1, ">= 0"),
        ("labels_per_update", 0, ">= 1"),
        ("num_rows", 0, ">= 1"),
        ("depth", 0, ">= 1"),
        ("stride", -2, ">= 1"),
        ("memory", 0, ">= 1"),
        ("batch_size", 0, ">= 1"),
        ("num_candidates", 1, ">= 2"),
        ("num_random", -1, r"in 0\.\.\d+"),
        ("num_random", 99, r"in 0\.\.\d+"),
        ("near", 0.0, "finite and > 0"),
        ("near", float("inf"), "finite and > 0"),
        ("discount", 0.0, r"in \(0, 1\]"),
        ("own_discount", 0.0, r"in \(0, 1\]"),
        ("discount", 1.1, r"in \(0, 1\]"),
        ("discount", float("nan"), r"in \(0, 1\]"),
        ("averaging", -0.1, r"in \[0, 1\)"),
        ("averaging", 1.0, r"in \[0, 1\)"),
        ("averaging", float("nan"), r"in \[0, 1\)"),
        ("learning_rate", 0.0, "> 0"),
        ("learning_rate", float("nan"), "> 0"),
        ("num_threads", 0, ">= 1"),
    ],
)
def test_a_configuration_out_of_range_is_named(name, value, rule):
    with pytest.raises(ValueError, match=rf"teacher: {name} must be .*{rule}.*, got {value}"):
        TeacherConfig(**{name: value})

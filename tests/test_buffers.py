"""Baselines that know the arrivals: they take noise away and leave the gradient's expectation as it is."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from strategies import seeds

from agents.ppo.buffers import EpisodeBaselineBuffer, less_the_others
from agents.ppo.config import PolicyConfig
from agents.ppo.critic import WINDOWS, Critic, Future, pooled
from agents.ppo.policy import PlacementPolicy
from agents.rules.greedy import PricedGreedy
from agents.vec_env import NumaVecEnv
from envs.observation import ObservationLayout
from envs.reward import RewardWeights
from envs.world import World
from numa_rl.machines.builders import four_socket
from numa_rl.workloads.synthetic import SyntheticStream

torch.set_num_threads(1)

NUM_TASKS, NUM_ENVS, GROUP, STEPS = 12, 8, 4, 10


@pytest.fixture(scope="module")
def world() -> World:
    """Five episodes of twelve tasks on four nodes."""
    family = SyntheticStream(num_tasks=NUM_TASKS, num_objects=4, median_object_bytes=1e9)
    workload = family.generate(np.random.default_rng(1), 5)
    return World(workload, (four_socket(),), RewardWeights(reference_s=1e-2), window_s=0.05)


def filled(env: NumaVecEnv, make: Any, seed: int = 0) -> Any:
    """A buffer after a rollout of placements and values drawn at random."""
    rng = np.random.default_rng(seed)
    buffer = make(STEPS, env.observation_space, env.action_space, "cpu", gamma=0.9, gae_lambda=0.95, n_envs=NUM_ENVS)
    observation, starts = env.reset(), np.ones(NUM_ENVS, bool)
    for _ in range(STEPS):
        actions = rng.integers(4, size=(NUM_ENVS, 2))
        new, rewards, dones, _ = env.step(actions)
        values = torch.from_numpy(rng.normal(size=NUM_ENVS).astype(np.float32))
        buffer.add(observation, actions, rewards, starts, values, torch.zeros(NUM_ENVS))
        observation, starts = new, dones
    buffer.compute_returns_and_advantage(torch.zeros(NUM_ENVS), dones)
    return buffer


def test_each_row_is_judged_against_the_others_of_its_group():
    advantages = np.array([[1.0, 2.0, 6.0, 10.0, 10.0, 40.0]], np.float32)
    np.testing.assert_allclose(less_the_others(advantages, 3), [[-3.0, -1.5, 4.5, -15.0, -15.0, 30.0]])


def test_a_group_of_one_is_left_as_it_is():
    advantages = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert less_the_others(advantages, 1) is advantages


@given(seed=seeds, group=st.integers(2, 5), count=st.integers(1, 4))
def test_what_a_group_has_in_common_vanishes(seed, group, count):
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(3, count * group)).astype(np.float32)
    common = np.repeat(rng.normal(size=(3, count)), group, axis=1).astype(np.float32)
    got = less_the_others(own + common, group)
    np.testing.assert_allclose(got, less_the_others(own, group), atol=1e-5)
    np.testing.assert_allclose(got.reshape(3, count, group).sum(2), 0.0, atol=1e-4)


@given(seed=seeds)
def test_it_is_a_baseline_a_rows_own_advantage_has_no_part_in_it(seed):
    rng = np.random.default_rng(seed)
    advantages = rng.normal(size=(2, 6))
    changed = advantages.copy()
    changed[0, 1] += 5.0
    difference = less_the_others(changed, 3) - less_the_others(advantages, 3)
    assert difference[0, 1] == pytest.approx(5.0)  # not less: else the gradient would be biased


def test_without_groups_and_critic_it_is_stable_baselines3s_buffer(world):
    plain = filled(NumaVecEnv(world, NUM_ENVS, seed=3), RolloutBuffer)
    env = NumaVecEnv(world, NUM_ENVS, seed=3)
    ours = filled(env, lambda *args, **kwargs: EpisodeBaselineBuffer(*args, **kwargs, env=env))
    np.testing.assert_array_equal(plain.advantages, ours.advantages)
    np.testing.assert_array_equal(plain.returns, ours.returns)


def test_with_groups_returns_stay_and_advantages_are_less_the_others(world):
    plain = filled(NumaVecEnv(world, NUM_ENVS, seed=3, group=GROUP), RolloutBuffer)
    env = NumaVecEnv(world, NUM_ENVS, seed=3, group=GROUP)
    ours = filled(env, lambda *args, **kwargs: EpisodeBaselineBuffer(*args, **kwargs, env=env))
    np.testing.assert_array_equal(plain.returns, ours.returns)
    for row in range(NUM_ENVS):
        others = [other for other in range(NUM_ENVS) if other // GROUP == row // GROUP and other != row]
        want = plain.advantages[:, row] - plain.advantages[:, others].mean(axis=1)
        np.testing.assert_allclose(ours.advantages[:, row], want, rtol=1e-5, atol=1e-4)


def test_rows_of_a_group_meet_the_same_tasks_step_by_step(world):
    env = NumaVecEnv(world, NUM_ENVS, seed=3, group=GROUP)
    buffer = filled(env, lambda *args, **kwargs: EpisodeBaselineBuffer(*args, **kwargs, env=env))
    for noted in (buffer.episode, buffer.task, buffer.episode_starts):
        groups = noted.reshape(STEPS, -1, GROUP)
        assert (groups == groups[:, :, :1]).all()
    assert len(np.unique(buffer.episode)) > 1
    went_on = buffer.episode_starts[1:] == 0
    np.testing.assert_array_equal(buffer.task[1:][went_on], buffer.task[:-1][went_on] + 1)
    np.testing.assert_array_equal(buffer.task[buffer.episode_starts == 1], 0)


def test_the_first_rollout_meets_the_critic_before_it_has_learned(world):
    env = NumaVecEnv(world, NUM_ENVS, seed=3)
    layout = env.rows.observer.layout
    critic = Critic(layout, Future(world.workload))
    buffer = filled(env, lambda *args, **kwargs: EpisodeBaselineBuffer(*args, **kwargs, env=env, critic=critic))
    assert (buffer.values == 0.0).all()  # its last layer starts at zero
    again = critic.inputs(env.rows.observe(), *env.position)
    assert np.abs(critic.values(again)).max() > 0.0  # and now it has learned


def test_a_buffer_for_another_number_of_rows_is_refused(world):
    env = NumaVecEnv(world, NUM_ENVS)
    with pytest.raises(ValueError, match=r"n_envs must be the environment's 8, got 4\."):
        EpisodeBaselineBuffer(2, env.observation_space, env.action_space, n_envs=4, env=env)


def test_the_future_is_summed_from_the_task_itself_on(world):
    workload = world.workload
    future = Future(workload)
    work = workload.flops.astype(float)
    for column, length in zip(range(0, future.num_features, 4), WINDOWS, strict=True):
        sums = np.array([[row[t : t + length].sum() for t in range(NUM_TASKS + 1)] for row in work])
        got = future.features(np.arange(5)[:, None], np.arange(NUM_TASKS + 1))[:, :, column]
        np.testing.assert_allclose(got, np.log1p(sums / sums.mean()), rtol=1e-5, atol=1e-6)


def test_after_the_last_task_nothing_is_to_come(world):
    features = Future(world.workload).features(np.array([2]), np.array([NUM_TASKS]))
    np.testing.assert_array_equal(features, np.zeros_like(features))


@settings(max_examples=20)
@given(seed=seeds)
def test_the_critics_summary_does_not_depend_on_the_order_of_nodes(seed):
    layout, rng = ObservationLayout(5), np.random.default_rng(seed)
    groups = layout.split(torch.from_numpy(rng.exponential(size=(3, layout.size)).astype(np.float32)))
    order = rng.permutation(5)
    turned = {
        name: values[:, order][:, :, order] if values.ndim == 3 else values if name == "task" else values[:, order]
        for name, values in groups.items()
    }
    row = torch.cat([values.flatten(1) for values in turned.values()], 1)
    before = torch.cat([values.flatten(1) for values in groups.values()], 1)
    torch.testing.assert_close(pooled(row, layout), pooled(before, layout))


def test_a_critic_that_sees_the_future_explains_what_only_the_future_decides(world):
    rng = np.random.default_rng(0)
    layout, future = ObservationLayout(4), Future(world.workload)
    episode, task = rng.integers(5, size=512), rng.integers(NUM_TASKS, size=512)
    observation = np.ones((512, layout.size), np.float32)
    worth = future.features(episode, task)[:, 0]
    torch.manual_seed(0)
    left = {}
    for name, seen in (("future", future), ("own", None)):
        critic = Critic(layout, seen)
        inputs = critic.inputs(observation, episode, task)
        for _ in range(80):
            critic.fit(inputs, worth)
        left[name] = float(np.var(worth - critic.values(inputs)) / np.var(worth))
    assert left["future"] < 0.3
    assert left["own"] > 0.9


@pytest.mark.parametrize("sees_future", [False, True])
def test_ppo_learns_with_it(world, sees_future):
    env = NumaVecEnv(world, NUM_ENVS, reward_scale=1e-2, group=GROUP)
    critic = Critic(env.rows.observer.layout, Future(world.workload) if sees_future else None)
    rule = PricedGreedy()
    model = PPO(
        PlacementPolicy, env, n_steps=8, batch_size=32, n_epochs=1, device="cpu", seed=0,
        rollout_buffer_class=EpisodeBaselineBuffer, rollout_buffer_kwargs={"env": env, "critic": critic},
        policy_kwargs={"config": replace(PolicyConfig(node_width=6, pair_width=5), alpha=float(rule.alpha))},
    )  # fmt: skip
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(3 * 64)
    after = list(model.policy.parameters())
    assert any(not torch.equal(one, two) for one, two in zip(before, after, strict=True))
    assert all(parameter.isfinite().all() for parameter in after)

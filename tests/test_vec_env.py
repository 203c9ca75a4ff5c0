"""Stable-Baselines3's face of the simulator: nothing is lost between a row and what SB3 is told of it."""

import os
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils import seeding
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import VecMonitor
from strategies import toy_machine

import envs  # noqa: F401  (registers the environments)
from agents.totals import Totals
from agents.vec_env import NumaVecEnv
from envs.observation import ObservationKind
from envs.reward import RewardWeights
from envs.world import Rows, World
from numa_rl.machines.builders import four_socket
from numa_rl.machines.catalog import load_machine
from numa_rl.workloads.synthetic import SyntheticStream

torch.set_num_threads(1)

REGISTERED = sorted(env_id for env_id, spec in gym.registry.items() if spec.namespace == "numa_rl")
NUM_TASKS = 6
NUM_ENVS = 3
NODES = 4


def stream(num_episodes: int = 7, **parameters: Any) -> Any:
    family = SyntheticStream(num_tasks=NUM_TASKS, num_objects=4, median_object_bytes=1e9, **parameters)
    return family.generate(np.random.default_rng(1), num_episodes)


@pytest.fixture(scope="module")
def world() -> World:
    """Seven episodes of six tasks on four nodes."""
    return World(stream(), (four_socket(),), RewardWeights(reference_s=1e-2), window_s=0.05)


@pytest.fixture(scope="module")
def crowded() -> World:
    """A node without cores, and memory for one object or none: nodes close, objects fall back, tasks are dropped."""
    machine = toy_machine(
        3, cores=[1, 0, 2], memory_bytes=[1.2e9, 2e9, 1.5e9], flops_per_s=[1e9] * 3, outstanding_bytes=1e12
    )
    return World(stream(), (machine,), RewardWeights(reference_s=1e7), window_s=2.0)


def some_actions(count: int, num_envs: int = NUM_ENVS, nodes: int = NODES) -> np.ndarray:
    return np.random.default_rng(7).integers(nodes, size=(count, num_envs, 2))


class ByHand:
    """Rows of a world stepped without the adapter, reset after the last observation was read."""

    def __init__(self, world: World, num_rows: int, seed: int) -> None:
        self.rows = Rows(world, num_rows)
        self.rows.generators = [seeding.np_random(seed + row)[0] for row in range(num_rows)]
        self.rows.reset(horizon_shares=[(row + 1) / num_rows for row in range(num_rows)])

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Observation after resets, rewards, dones, and the observation before resets."""
        rewards, outcome = self.rows.step(actions)
        dones, last = outcome.finished.copy(), self.rows.observe().copy()
        for row in np.flatnonzero(dones):
            self.rows.reset([row])
        return self.rows.observe().copy(), rewards, dones, last


@pytest.mark.parametrize("env_id", REGISTERED)
def test_every_registered_environment_passes_stable_baselines3s_check(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id).unwrapped)


def test_the_adapter_tells_what_the_rows_do(world):
    env, hand = NumaVecEnv(world, NUM_ENVS, seed=5), ByHand(world, NUM_ENVS, seed=5)
    np.testing.assert_array_equal(env.reset(), hand.rows.observe())
    ended = 0
    for actions in some_actions(4 * NUM_TASKS):
        observation, rewards, dones, infos = env.step(actions)
        want_observation, want_rewards, want_dones, last = hand.step(actions)
        np.testing.assert_array_equal(observation, want_observation)
        np.testing.assert_array_equal(rewards, want_rewards.astype(np.float32))
        np.testing.assert_array_equal(dones, want_dones)
        for row in range(NUM_ENVS):
            assert ("terminal_observation" in infos[row]) == dones[row]
            if dones[row]:
                ended += 1
                np.testing.assert_array_equal(infos[row]["terminal_observation"], last[row])
                assert not np.array_equal(last[row], observation[row])
                assert infos[row]["TimeLimit.truncated"] is True
    assert ended > NUM_ENVS


def test_what_was_returned_is_not_overwritten_by_the_next_step(world):
    env = NumaVecEnv(world, NUM_ENVS)
    first = env.reset()
    kept = first.copy()
    observation, rewards, dones, _ = env.step(some_actions(1)[0])
    copies = observation.copy(), rewards.copy(), dones.copy()
    for actions in some_actions(NUM_TASKS):
        env.step(actions)
    np.testing.assert_array_equal(first, kept)
    for now, then in zip((observation, rewards, dones), copies, strict=True):
        np.testing.assert_array_equal(now, then)


def test_first_episodes_end_one_after_another_and_later_ones_are_whole(world):
    env = NumaVecEnv(world, NUM_ENVS)
    env.reset()
    lengths: list[list[int]] = [[] for _ in range(NUM_ENVS)]
    for actions in some_actions(3 * NUM_TASKS):
        for row, info in enumerate(env.step(actions)[3]):
            if "episode" in info:
                lengths[row].append(info["episode"]["l"])
    assert [first for first, *_ in lengths] == [2, 4, 6]  # 6 x 1/3, 2/3, 3/3
    assert {length for _, *later in lengths for length in later} == {NUM_TASKS}


@pytest.mark.parametrize("reward_scale", [1.0, 0.25])
def test_episode_statistics_are_of_the_unscaled_reward(world, reward_scale):
    env = NumaVecEnv(world, NUM_ENVS, reward_scale=reward_scale)
    env.reset()
    sums, counted = np.zeros(NUM_ENVS), 0
    for actions in some_actions(3 * NUM_TASKS):
        _, rewards, dones, infos = env.step(actions)
        assert rewards.dtype == np.float32
        sums += rewards / reward_scale
        for row in np.flatnonzero(dones):
            assert infos[row]["episode"]["r"] == pytest.approx(sums[row], rel=1e-5)
            sums[row] = 0.0
            counted += 1
    assert counted >= 2 * NUM_ENVS


def test_reward_scale_multiplies_what_is_learned_from(world):
    plain, scaled = NumaVecEnv(world, NUM_ENVS), NumaVecEnv(world, NUM_ENVS, reward_scale=0.125)
    plain.reset()
    scaled.reset()
    for actions in some_actions(NUM_TASKS):
        np.testing.assert_array_equal(0.125 * plain.step(actions)[1], scaled.step(actions)[1])


def test_one_seed_gives_the_same_bits_and_another_does_not(world):
    def play(seed: int) -> list[np.ndarray]:
        env = NumaVecEnv(world, NUM_ENVS, seed=seed)
        return [env.reset(), *(array for actions in some_actions(20) for array in env.step(actions)[:3])]

    for one, two in zip(play(3), play(3), strict=True):
        assert one.tobytes() == two.tobytes()
    assert any(one.tobytes() != two.tobytes() for one, two in zip(play(3), play(4), strict=True))


def test_seeding_as_stable_baselines3_does_is_seeding_at_construction(world):
    made, seeded = NumaVecEnv(world, NUM_ENVS, seed=9), NumaVecEnv(world, NUM_ENVS, seed=1)
    seeded.seed(9)
    np.testing.assert_array_equal(made.reset(), seeded.reset())
    assert not np.array_equal(made.reset(), NumaVecEnv(world, NUM_ENVS, seed=9).reset())  # the generators went on


def test_rows_of_a_group_play_the_same_episodes_at_the_same_tasks_on_the_same_machines():
    machines = (load_machine("chapter-2-socket"), four_socket())
    env = NumaVecEnv(World(stream(), machines), 12, seed=3, group=4)
    env.reset()
    seen = set()
    for actions in some_actions(3 * NUM_TASKS, num_envs=12, nodes=2):
        state = env.rows.simulator.state
        at = np.stack([state.episode, state.task, state.horizon, state.machine], axis=1)
        groups = at.reshape(3, 4, 4)
        assert (groups == groups[:, :1]).all()
        seen |= {tuple(row) for row in groups[:, 0, [0, 3]].tolist()}
        before = env.position
        dones = env.step(actions)[2].reshape(3, 4)
        assert (dones == dones[:, :1]).all()
        np.testing.assert_array_equal(env.decided, before)
    assert len(seen) > 4  # groups differ from each other, and from episode to episode


def test_only_placements_set_rows_of_a_group_apart(world):
    env = NumaVecEnv(world, 4, seed=3, group=4)
    observation = env.reset()
    assert (observation == observation[:1]).all()
    alike, apart = (env.step(actions)[0] for actions in (np.zeros((4, 2), int), [[0, 0], [1, 1], [2, 2], [0, 0]]))
    assert (alike == alike[:1]).all()
    assert not np.array_equal(apart[0], apart[1])
    np.testing.assert_array_equal(apart[0], apart[3])


@pytest.mark.parametrize("group", [0, -1, 2, 4])
def test_rows_must_fill_their_groups(world, group):
    with pytest.raises(ValueError, match=rf"group must be a divisor of num_envs \({NUM_ENVS}\), got {group}\."):
        NumaVecEnv(world, NUM_ENVS, group=group)


def test_reset_forgets_unfinished_episodes(world):
    env = NumaVecEnv(world, NUM_ENVS)
    env.reset()
    env.step(some_actions(1)[0])
    env.reset()
    _, _, _, infos = env.step(some_actions(1)[0])
    _, rewards, _, infos = env.step(some_actions(1)[0])
    assert infos[0]["episode"]["l"] == 2
    assert infos[0]["episode"]["r"] < float(rewards[0])  # two decisions, not one


def test_threads_change_nothing(world):
    one, two = (NumaVecEnv(world, 130, seed=2, num_threads=threads) for threads in (1, min(2, os.cpu_count() or 1)))
    np.testing.assert_array_equal(one.reset(), two.reset())
    for actions in some_actions(2 * NUM_TASKS, num_envs=130):
        for a, b in zip(one.step(actions)[:3], two.step(actions)[:3], strict=True):
            np.testing.assert_array_equal(a, b)


def test_attributes_and_methods_are_dealt_out_by_row(world):
    env = NumaVecEnv(world, NUM_ENVS)
    env.reset()
    assert env.get_attr("world") == [world] * NUM_ENVS
    assert env.get_attr("world", indices=1) == [world]
    assert env.get_attr("render_mode") == [None] * NUM_ENVS
    np.testing.assert_array_equal(env.env_method("action_masks", indices=[2, 0]), env.action_masks()[[2, 0]])
    assert env.env_is_wrapped(VecMonitor, indices=[0, 1]) == [False, False]
    assert env.has_attr("action_masks")
    assert not env.has_attr("no_such_thing")
    with pytest.raises(AttributeError, match=r"share their attributes: 'reward_scale' cannot be set"):
        env.set_attr("reward_scale", 2.0)
    assert list(env.get_images()) == [None] * NUM_ENVS
    env.close()


def test_sb3s_own_monitor_reads_the_same_returns(world):
    env = VecMonitor(NumaVecEnv(world, NUM_ENVS))
    env.reset()
    sums, counted = np.zeros(NUM_ENVS), 0
    for actions in some_actions(2 * NUM_TASKS):
        _, rewards, dones, infos = env.step(actions)
        sums += rewards
        for row in np.flatnonzero(dones):
            assert infos[row]["episode"]["r"] == pytest.approx(sums[row], rel=1e-4)
            sums[row] = 0.0
            counted += 1
    assert counted


@pytest.mark.parametrize("kind", list(ObservationKind))
def test_sb3s_own_policy_learns_on_it(world, kind):
    small = World(world.workload, world.topologies, world.weights, world.window_s, kind)
    env = NumaVecEnv(small, NUM_ENVS, reward_scale=1e-2)
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=12, n_epochs=1, device="cpu", seed=0)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(24)
    after = list(model.policy.parameters())
    assert any(not torch.equal(one, two) for one, two in zip(before, after, strict=True))
    assert all(parameter.isfinite().all() for parameter in after)
    assert len(model.ep_info_buffer or ()) > 0


def test_maskable_ppo_never_picks_a_closed_node(crowded):
    env = NumaVecEnv(crowded, NUM_ENVS, reward_scale=1e-3)
    assert is_masking_supported(env)
    model = MaskablePPO("MlpPolicy", env, n_steps=8, batch_size=12, n_epochs=1, device="cpu", seed=0)
    model.learn(24)
    observation, closed = env.reset(), 0
    for _ in range(60):
        masks = get_action_masks(env)
        np.testing.assert_array_equal(masks, env.action_masks())
        actions, _ = model.predict(observation, action_masks=masks, deterministic=False)
        for row, (task_node, data_node) in enumerate(actions):
            assert masks[row, task_node]
            assert masks[row, 3 + data_node]
        closed += int((~masks[:, 3:]).sum())
        observation, _, _, _ = env.step(actions)
    assert not masks[:, 1].any()  # node 1 has no cores
    assert closed  # and memories did fill up


def test_totals_are_the_sums_of_what_happened(crowded):
    env, hand = NumaVecEnv(crowded, NUM_ENVS, seed=1, reward_scale=0.5), ByHand(crowded, NUM_ENVS, seed=1)
    env.reset()
    fields = {"migrations": "migrated", "fallbacks": "fell_back"}
    for name in ("exec_s", "comm_s", "wait_s", "imbalance", "out_of_memory", "local_bytes", "remote_bytes"):
        fields[name] = name
    sums = dict.fromkeys(["cost", "fullest_node", "busiest_link", *fields], 0.0)
    placements, traffic_bytes = np.zeros((3, 3), int), np.zeros((3, 3))
    count = 6 * NUM_TASKS
    for actions in some_actions(count, nodes=3):
        env.step(actions)
        rewards, outcome = hand.rows.step(actions)
        sums["cost"] -= rewards.sum()
        for name, field in fields.items():
            sums[name] += getattr(outcome, field).sum()
        for task_node, data_node in zip(outcome.task_node, outcome.data_node, strict=True):
            if data_node >= 0:
                placements[task_node, data_node] += 1
        state = hand.rows.simulator.state
        sums["fullest_node"] += (state.memory_used_bytes / [1.2e9, 2e9, 1.5e9]).max(axis=1).sum()
        sums["busiest_link"] += (state.resource_bytes[:, 3:] / 100.0).max(axis=1).sum()  # what a link moves in a window
        traffic_bytes += state.traffic_bytes.reshape(NUM_ENVS, 3, 3).sum(axis=0) / NUM_ENVS
        for row in np.flatnonzero(outcome.finished):
            hand.rows.reset([row])
    assert env.totals.decisions == count * NUM_ENVS
    assert env.totals.steps == count
    for name, value in sums.items():
        assert env.totals.mean(name) == pytest.approx(value / (count * NUM_ENVS), rel=1e-6), name
    np.testing.assert_array_equal(env.totals.placements, placements)
    np.testing.assert_allclose(env.totals.traffic_bytes, traffic_bytes, rtol=1e-6)
    moved = sums["local_bytes"] + sums["remote_bytes"]
    assert env.totals.remote_ratio == pytest.approx(sums["remote_bytes"] / moved)
    assert 0 < env.totals.remote_ratio < 1
    assert placements[:, 1].sum() > 0  # data on the node without cores,
    assert placements[1].sum() == 0  # tasks never
    assert sums["fallbacks"] > 0
    assert sums["out_of_memory"] > 0
    assert placements.sum() == count * NUM_ENVS - sums["out_of_memory"]


def test_cleared_totals_start_anew(world):
    env = NumaVecEnv(world, NUM_ENVS)
    totals = env.totals
    env.reset()
    env.step(some_actions(1)[0])
    assert totals.decisions == NUM_ENVS
    assert totals.mean("cost") > 0
    totals.clear()
    assert (totals.decisions, totals.steps, totals.placements.sum(), totals.traffic_bytes.sum()) == (0, 0, 0, 0)
    assert totals.mean("cost") == totals.remote_ratio == 0.0
    assert Totals(2).mean("no such sum") == 0.0


def test_a_machine_without_links_has_no_link_load():
    env = NumaVecEnv(World(stream(1), (toy_machine(1, memory_bytes=[1e12]),)), 2)
    env.reset()
    env.step(np.zeros((2, 2), int))
    assert env.totals.mean("busiest_link") == 0.0


def test_rows_on_machines_of_two_sizes_only_see_nodes_that_exist():
    env = NumaVecEnv(World(stream(), (load_machine("chapter-2-socket"), four_socket())), 8, seed=3)
    env.reset()
    small = env.rows.simulator.state.machine == 0
    assert 0 < small.sum() < 8
    masks = env.action_masks()
    assert not masks[small][:, [2, 3, 6, 7]].any()
    assert masks[~small].all()

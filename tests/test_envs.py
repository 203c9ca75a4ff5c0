from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space
from strategies import Task, toy_machine, toy_workload

import envs
from envs.observation import ObservationLayout
from envs.reward import RewardWeights
from envs.scheduling_env import INFO_FIELDS, NumaSchedulingEnv
from envs.vector_env import NumaSchedulingVectorEnv
from envs.world import World
from numa_rl.machines.builders import four_socket, two_socket
from numa_rl.metrics import MEANINGS
from numa_rl.simulator.state import allocate_outcome
from numa_rl.topology import Topology
from numa_rl.workloads.synthetic import SyntheticStream

REGISTERED = sorted(env_id for env_id, spec in gym.registry.items() if spec.namespace == "numa_rl")
NUM_TASKS = 6


def stream_on(*topologies: Topology) -> World:
    """Seven short episodes."""
    family = SyntheticStream(num_tasks=NUM_TASKS, num_objects=4, median_object_bytes=1e9)
    workload = family.generate(np.random.default_rng(1), 7)
    return World(workload, topologies, RewardWeights(reference_s=1e-2), window_s=0.05)


@pytest.fixture(scope="module")
def world() -> World:
    """Short episodes on machines of two sizes."""
    return stream_on(two_socket(), four_socket())


one_size = pytest.param((two_socket(),), id="one machine")
two_sizes = pytest.param(
    (two_socket(), four_socket()),
    id="machines of two sizes",
)


@pytest.fixture(scope="module")
def toy_world() -> World:
    """Two episodes of two tasks on the toy machine: 100 bytes a second, a core of 100 flop/s on each of two nodes."""
    first = [Task(flops=200), Task(obj=1, arrival_s=1.0, flops=300)]
    second = [Task(flops=500), Task(obj=1, arrival_s=1.0, flops=700)]
    return World(toy_workload(first, second), (toy_machine(),), RewardWeights(beta=0.0), window_s=10.0)


def some_actions(count: int, *shape: int, nodes: int = 2) -> np.ndarray:
    return np.random.default_rng(7).integers(nodes, size=(count, *shape, 2))


# The registry.


def test_the_two_kinds_of_observation_are_registered():
    assert {envs.FULL_ID, envs.CHAPTER_ID} <= set(REGISTERED)


@pytest.mark.parametrize("env_id", REGISTERED)
def test_every_registered_environment_passes_gymnasiums_check(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id).unwrapped)


@pytest.mark.parametrize("env_id", REGISTERED)
def test_every_registered_environment_is_made_as_a_vector_environment_too(env_id):
    single = gym.make(env_id)
    vector = gym.make_vec(env_id, num_envs=3, vectorization_mode="vector_entry_point")
    assert isinstance(vector.unwrapped, NumaSchedulingVectorEnv)
    assert vector.num_envs == 3
    assert vector.single_observation_space == single.observation_space
    assert vector.single_action_space == single.action_space


@pytest.mark.parametrize("env_id", REGISTERED)
def test_every_registered_environment_replays_identically_from_one_seed(env_id):
    def play() -> list[Any]:
        env = gym.make(env_id)
        env.action_space.seed(3)
        history: list[Any] = [env.reset(seed=5)]
        history += [env.step(env.action_space.sample()) for _ in range(20)]
        return [*history, env.reset()]

    assert data_equivalence(play(), play(), exact=True)


@pytest.mark.parametrize("env_id", REGISTERED)
def test_every_registered_vector_environment_replays_identically_from_one_seed(env_id):
    def play() -> list[Any]:
        env = gym.make_vec(env_id, num_envs=3, vectorization_mode="vector_entry_point")
        env.action_space.seed(3)
        history: list[Any] = [env.reset(seed=5)]
        history += [env.step(env.action_space.sample()) for _ in range(20)]
        return [*history, env.reset()]

    assert data_equivalence(play(), play(), exact=True)


def test_another_seed_plays_another_episode():
    env = gym.make(envs.FULL_ID)
    assert not np.array_equal(env.reset(seed=1)[0], env.reset(seed=2)[0])


# One machine.


def test_an_episode_is_truncated_after_its_last_task_and_never_terminated(world):
    env = NumaSchedulingEnv(world)
    env.reset(seed=0)
    ends = [env.step(action)[2:4] for action in some_actions(NUM_TASKS)]
    assert ends == [(False, False)] * (NUM_TASKS - 1) + [(False, True)]


def test_the_reward_is_minus_time_in_units_of_the_reference(toy_world):
    env = NumaSchedulingEnv(toy_world)
    env.reset(options={"episode": 1})
    _, reward, _, _, info = env.step(np.array([0, 0]))
    assert reward == pytest.approx(-5.0)  # 500 / 100
    assert info["exec_s"] == pytest.approx(5.0)
    _, reward, _, _, info = env.step(np.array([0, 0]))
    assert reward == pytest.approx(-(4.0 + 7.0))  # waits from 1 to 5 s
    assert (info["wait_s"], info["exec_s"]) == (pytest.approx(4.0), pytest.approx(11.0))


def test_each_part_of_the_cost_has_its_weight():
    outcome = allocate_outcome(1)._replace(
        exec_s=np.array([4.0]), comm_s=np.array([2.0]), imbalance=np.array([0.5]), out_of_memory=np.array([True])
    )
    weights = RewardWeights(alpha=3.0, beta=0.2, reference_s=2.0, out_of_memory_penalty=7.0)
    assert weights.cost(outcome) == pytest.approx([(4 + 3 * 2) / 2 + 0.2 * 0.5 + 7])


@pytest.mark.parametrize("name", ["alpha", "beta", "reference_s", "out_of_memory_penalty"])
@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_weights_are_finite_and_not_negative(name, value):
    with pytest.raises(ValueError, match=f"{name} must be finite and >= 0, got {value}"):
        RewardWeights(**{name: value})


def test_the_reference_time_is_positive():
    with pytest.raises(ValueError, match="reference_s must be > 0, got 0"):
        RewardWeights(reference_s=0.0)


def test_info_reports_every_part_of_the_outcome_as_plain_numbers(world):
    env = NumaSchedulingEnv(world)
    env.reset(seed=0)
    info = env.step(np.array([0, 1]))[4]
    assert tuple(info) == INFO_FIELDS
    assert {type(value) for value in info.values()} <= {float, int, bool}


def test_the_last_step_of_an_episode_reports_its_metrics(world):
    env = NumaSchedulingEnv(world)
    env.reset(seed=0)
    infos = [env.step(np.array([1, 0]))[4] for _ in range(NUM_TASKS)]
    assert not any("metrics" in info for info in infos[:-1])
    metrics = infos[-1]["metrics"]
    assert list(metrics) == list(MEANINGS)
    assert metrics["B_load"] == pytest.approx(1.0 - np.mean([info["imbalance"] for info in infos]))
    local, remote = (sum(info[name] for info in infos) for name in ("local_bytes", "remote_bytes"))
    assert metrics["R_L_R"] == pytest.approx(local / remote)
    compute = sum(info["exec_s"] - info["wait_s"] for info in infos)
    assert metrics["rho"] == pytest.approx(compute / sum(info["comm_s"] for info in infos))


@pytest.mark.parametrize(
    ("action", "message"), [([2, 0], r"task node must be in 0\.\.1, got 2"), ([0, -1], r"data node must be in 0\.\.1")]
)
def test_an_action_out_of_range_names_the_range(toy_world, action, message):
    env = NumaSchedulingEnv(toy_world)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(np.array(action))


def test_on_a_smaller_machine_of_the_world_the_range_is_that_machines(world):
    env = NumaSchedulingEnv(world)
    assert env.action_space == gym.spaces.MultiDiscrete([4, 4])
    env.reset(options={"machine": 0})
    with pytest.raises(ValueError, match=r"task node must be in 0\.\.1, got 3"):
        env.step(np.array([3, 0]))
    np.testing.assert_array_equal(env.action_masks(), [True, True, False, False] * 2)


def test_options_choose_episode_and_machine(world):
    env = NumaSchedulingEnv(world)
    one = env.reset(options={"episode": 3, "machine": 1})[0]
    two = env.reset(options={"episode": 3, "machine": 1})[0]
    other = env.reset(options={"episode": 4, "machine": 1})[0]
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(env.layout.split(one)["nodes"], [1, 1, 1, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episode": 7}, r"episode must be in 0\.\.6, got 7"),
        ({"machine": 2}, r"machine must be in 0\.\.1, got 2"),
        ({"speed": 1}, r"options must be among 'episode' and 'machine', got \['speed'\]"),
    ],
)
def test_options_out_of_range_are_refused(world, options, message):
    with pytest.raises(ValueError, match=message):
        NumaSchedulingEnv(world).reset(options=options)


def test_observations_are_copies_that_the_next_step_leaves_alone(world):
    env = NumaSchedulingEnv(world)
    first = env.reset(seed=0)[0]
    kept = first.copy()
    env.step(np.array([1, 1]))
    np.testing.assert_array_equal(first, kept)


def test_action_masks_open_nodes_with_cores_and_with_room():
    machine = toy_machine(3, cores=[1, 0, 1], memory_bytes=[50.0, 100.0, 1000.0])
    env = NumaSchedulingEnv(World(toy_workload([Task()]), (machine,)))
    env.reset(seed=0)
    np.testing.assert_array_equal(env.action_masks(), [True, False, True, False, True, True])


def test_the_text_rendering_shows_every_node(toy_world):
    env = NumaSchedulingEnv(toy_world, render_mode="ansi")
    env.reset(options={"episode": 0})
    env.step(np.array([0, 1]))
    assert env.render().splitlines() == [
        "task 1 of 2 at 1 s",
        "node  0  memory [                    ]   0.0%  1 cores, 1 s of work",
        "node  1  memory [##                  ]  10.0%  1 cores, 0 s of work",
    ]


def test_nothing_is_rendered_without_a_mode(toy_world):
    env = NumaSchedulingEnv(toy_world)
    env.reset()
    assert env.render() is None


@pytest.mark.parametrize("kind", [NumaSchedulingEnv, NumaSchedulingVectorEnv])
def test_an_unknown_render_mode_is_refused(toy_world, kind):
    with pytest.raises(ValueError, match="render_mode must be"):
        kind(world=toy_world, render_mode="human")


# A batch of machines.


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_spaces_are_batches_of_the_single_ones_and_the_mode_is_declared(world, mode):
    vector, single = NumaSchedulingVectorEnv(5, world, autoreset_mode=mode), NumaSchedulingEnv(world)
    assert vector.single_observation_space == single.observation_space
    assert vector.single_action_space == single.action_space
    assert vector.observation_space == batch_space(single.observation_space, 5)
    assert vector.action_space == batch_space(single.action_space, 5)
    assert vector.metadata["autoreset_mode"] is mode
    assert NumaSchedulingVectorEnv.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


def test_the_mode_may_be_named_by_its_value(world):
    assert NumaSchedulingVectorEnv(1, world, autoreset_mode="SameStep").autoreset_mode is AutoresetMode.SAME_STEP


def test_a_step_returns_arrays_of_the_batchs_shape(world):
    vector = NumaSchedulingVectorEnv(3, world)
    observations, info = vector.reset(seed=0)
    assert observations in vector.observation_space
    assert info == {}
    for actions in some_actions(2 * NUM_TASKS, 3):
        observations, rewards, terminated, truncated, info = vector.step(actions)
        assert observations in vector.observation_space
        assert (rewards.shape, rewards.dtype) == ((3,), np.float64)
        for flags in (terminated, truncated):
            assert (flags.shape, flags.dtype) == ((3,), np.bool_)
        assert not terminated.any()
        for name in INFO_FIELDS:
            assert info[name].shape == info[f"_{name}"].shape == (3,)


def assert_same_info(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """What Gymnasium's own vector environment reports of a row, ours reports too."""
    for name, wanted in theirs.items():
        if name.startswith("_") and name in ours:
            np.testing.assert_array_equal(ours[name][wanted], True, err_msg=name)
        elif isinstance(wanted, dict):
            assert_same_info(ours[name], wanted)
        elif not name.startswith("_"):
            for row in np.flatnonzero(theirs[f"_{name}"]):
                np.testing.assert_array_equal(ours[name][row], wanted[row], err_msg=f"{name} of row {row}")


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("seed", [11, [4, 4, 90]])
@pytest.mark.parametrize("topologies", [one_size, two_sizes])
def test_rows_behave_as_gymnasiums_vector_of_single_environments_for_several_episodes(topologies, mode, seed):
    world = stream_on(*topologies)
    ours = NumaSchedulingVectorEnv(3, world, autoreset_mode=mode)
    theirs = SyncVectorEnv([lambda: NumaSchedulingEnv(world)] * 3, autoreset_mode=mode)
    np.testing.assert_array_equal(ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0])
    episodes = 0
    for actions in some_actions(4 * NUM_TASKS, 3):
        got, wanted = ours.step(actions), theirs.step(actions)
        for one, two in zip(got[:4], wanted[:4], strict=True):
            assert one.dtype == two.dtype
            np.testing.assert_array_equal(one, two)
        assert_same_info(got[4], wanted[4])
        episodes += int(got[3].any())
    assert episodes >= 3


def test_final_info_is_masked_as_gymnasiums_is(toy_world):
    def last_info(vector: gym.vector.VectorEnv) -> dict[str, Any]:
        vector.reset(seed=0)
        vector.step(np.zeros((2, 2), np.int64))
        return vector.step(np.zeros((2, 2), np.int64))[4]["final_info"]

    mode = AutoresetMode.SAME_STEP
    theirs = last_info(SyncVectorEnv([lambda: NumaSchedulingEnv(toy_world)] * 2, autoreset_mode=mode))
    assert set(theirs) <= set(last_info(NumaSchedulingVectorEnv(2, toy_world, autoreset_mode=mode)))


def test_a_masked_reset_seeds_only_the_rows_it_resets():
    world = stream_on(two_socket())
    vectors = [NumaSchedulingVectorEnv(2, world), SyncVectorEnv([lambda: NumaSchedulingEnv(world)] * 2)]
    for vector in vectors:
        vector.reset(seed=0)
        vector.reset(seed=5, options={"reset_mask": np.array([True, False])})
    for _ in range(5):
        np.testing.assert_array_equal(*(vector.reset()[0] for vector in vectors))


@pytest.mark.parametrize("num_envs", [1, 4])
def test_row_i_is_the_single_environment_seeded_with_seed_plus_i(num_envs):
    world = stream_on(four_socket())
    vector = NumaSchedulingVectorEnv(num_envs, world, autoreset_mode=AutoresetMode.SAME_STEP)
    singles = [NumaSchedulingEnv(world) for _ in range(num_envs)]
    observations = vector.reset(seed=20)[0]
    for row, single in enumerate(singles):
        np.testing.assert_array_equal(observations[row], single.reset(seed=20 + row)[0])
    for actions in some_actions(3 * NUM_TASKS, num_envs):
        observations, rewards, _, truncated, _ = vector.step(actions)
        for row, single in enumerate(singles):
            observation, reward, _, over, _ = single.step(actions[row])
            if over:
                observation = single.reset()[0]
            np.testing.assert_array_equal(observations[row], observation)
            assert (rewards[row], truncated[row]) == (reward, over)


def test_without_a_seed_the_generators_go_on(world):
    def resets(*seeds: int | None) -> list[np.ndarray]:
        vector = NumaSchedulingVectorEnv(2, world)
        return [vector.reset(seed=seed)[0] for seed in seeds]

    one, two = resets(3, None, None, None), resets(3, None, None, None)
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first, second)
    assert any(not np.array_equal(first, second) for first, second in pairwise(one))


def test_one_seed_per_environment_is_required(world):
    with pytest.raises(ValueError, match="seed must have one entry for each of 3 environments, got 2"):
        NumaSchedulingVectorEnv(3, world).reset(seed=[1, 2])


def test_an_environment_that_is_over_starts_anew_at_the_next_step(toy_world):
    vector = NumaSchedulingVectorEnv(1, toy_world, autoreset_mode=AutoresetMode.NEXT_STEP)
    here = np.zeros((1, 2), np.int64)
    vector.reset(seed=0)
    vector.step(here)
    _, rewards, _, truncated, _ = vector.step(here)
    assert truncated.tolist() == [True]
    assert rewards[0] < 0
    observations, rewards, _, truncated, info = vector.step(here)  # the action is not taken
    assert (rewards.tolist(), truncated.tolist()) == ([0.0], [False])
    assert not info["_exec_s"].any()
    np.testing.assert_array_equal(vector.layout.split(observations)["memory"], [[0, 0]])
    assert vector.step(here)[1][0] < 0


def test_an_environment_that_is_over_starts_anew_in_the_same_step(toy_world):
    vector = NumaSchedulingVectorEnv(1, toy_world, autoreset_mode=AutoresetMode.SAME_STEP)
    here = np.zeros((1, 2), np.int64)
    vector.reset(seed=0)
    assert "final_obs" not in vector.step(here)[4]
    observations, rewards, _, truncated, info = vector.step(here)
    assert truncated.tolist() == [True]
    np.testing.assert_array_equal(vector.layout.split(observations)["memory"], [[0, 0]])
    assert info["_final_obs"].tolist() == info["_final_info"].tolist() == [True]
    np.testing.assert_allclose(vector.layout.split(info["final_obs"][0])["memory"], [0.2, 0.0])
    assert -info["final_info"]["exec_s"][0] == rewards[0]


def test_an_environment_that_is_over_waits_for_its_reset_when_autoreset_is_off(toy_world):
    vector = NumaSchedulingVectorEnv(2, toy_world, autoreset_mode=AutoresetMode.DISABLED)
    here = np.zeros((2, 2), np.int64)
    vector.reset(seed=0)
    vector.step(here)
    assert vector.step(here)[3].tolist() == [True, True]
    observations = vector.reset(options={"reset_mask": np.array([False, True])})[0]
    memory = vector.layout.split(observations)["memory"]
    np.testing.assert_allclose(memory, [[0.2, 0], [0, 0]])
    with pytest.raises(ValueError, match=r"environments \[0\] are over: reset them with reset_mask"):
        vector.step(here)
    vector.reset(options={"reset_mask": np.array([True, False])})
    assert vector.step(here)[3].tolist() == [False, False]


def test_resetting_some_rows_leaves_the_others_where_they_are(world):
    vector = NumaSchedulingVectorEnv(3, world, autoreset_mode=AutoresetMode.DISABLED)
    vector.reset(seed=0)
    before = vector.step(np.zeros((3, 2), np.int64))[0]
    after = vector.reset(options={"reset_mask": np.array([False, True, False])})[0]
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert not np.array_equal(after[1], before[1])


@pytest.mark.parametrize("mask", [np.zeros(2, bool), np.ones(3, bool), np.ones(2, int)])
def test_a_reset_mask_is_one_boolean_per_row_and_resets_something(toy_world, mask):
    with pytest.raises(ValueError, match=r"reset_mask must be booleans of shape \(2,\), at least one true"):
        NumaSchedulingVectorEnv(2, toy_world).reset(options={"reset_mask": mask})


def test_an_action_out_of_range_names_the_row(toy_world):
    vector = NumaSchedulingVectorEnv(3, toy_world)
    vector.reset(seed=0)
    with pytest.raises(ValueError, match=r"data node must be in 0\.\.1, got 2 \(row 1\)"):
        vector.step(np.array([[0, 0], [0, 2], [0, 0]]))


def test_vector_observations_are_copies_unless_asked_otherwise(toy_world):
    actions = np.zeros((1, 2), np.int64)
    for copy in (True, False):
        vector = NumaSchedulingVectorEnv(1, toy_world, copy=copy)
        first = vector.reset(seed=0)[0]
        assert np.shares_memory(first, vector.step(actions)[0]) is not copy


def test_masks_of_a_batch_are_those_of_each_row(world):
    vector = NumaSchedulingVectorEnv(6, world)
    observations = vector.reset(seed=0)[0]
    masks = vector.action_masks()
    seen = vector.layout.split(observations)
    assert (masks.shape, masks.dtype) == ((6, 8), np.bool_)
    np.testing.assert_array_equal(masks, np.concatenate([seen["task_mask"], seen["data_mask"]], axis=1))
    assert set(masks.sum(axis=1).tolist()) == {4, 8}  # both machines are played


def test_every_episode_and_machine_is_played(world):
    vector = NumaSchedulingVectorEnv(200, world)
    vector.reset(seed=0)
    state = vector._rows.simulator.state
    played = set(zip(state.episode.tolist(), state.machine.tolist(), strict=True))
    assert played == {(episode, machine) for episode in range(7) for machine in range(2)}


@pytest.mark.parametrize("observation", ["full", "chapter"])
def test_the_kind_of_observation_may_be_chosen(observation):
    env = NumaSchedulingEnv(observation=observation)
    assert env.layout == ObservationLayout(8, observation)
    assert env.reset(seed=0)[0].shape == (env.layout.size,)
    assert NumaSchedulingVectorEnv(2, observation=observation).layout == env.layout

"""Savings as rewards: what the rule would have done is worth nothing, and what is saved is what trials say."""

import numpy as np
import pytest
from hypothesis import given, settings
from strategies import seeds

from agents.ppo.what_if import WhatIfVecEnv
from agents.rules.greedy import PricedGreedy
from agents.vec_env import NumaVecEnv
from envs.reward import RewardWeights
from envs.world import Rows, World
from numa_rl.machines.builders import four_socket
from numa_rl.workloads.synthetic import SyntheticStream

NUM_TASKS, NUM_ENVS = 8, 3
RULE = PricedGreedy(congestion_price=0.5, crowding_price=3.0)


def make_world() -> World:
    family = SyntheticStream(num_tasks=NUM_TASKS, num_objects=4, median_object_bytes=1e9)
    workload = family.generate(np.random.default_rng(1), 5)
    return World(workload, (four_socket(),), RewardWeights(reference_s=1e-2), window_s=0.05)


WORLD = make_world()


def rest_of(env: NumaVecEnv, first: np.ndarray, depth: int) -> np.ndarray:
    """What `depth` decisions cost from where the rows stand, the first given and the others the rule's, by stepping."""
    rows = Rows(WORLD, NUM_ENVS)
    rows.generators = [np.random.default_rng(0) for _ in range(NUM_ENVS)]
    rows.reset()
    for name, array in rows.simulator.state._asdict().items():
        array[...] = getattr(env.rows.simulator.state, name)
    rows.simulator.version += 1
    total, over = np.zeros(NUM_ENVS), np.zeros(NUM_ENVS, bool)
    actions = first
    for _ in range(depth):
        rewards, outcome = rows.step(actions)
        total -= np.where(over, 0.0, rewards)
        over |= outcome.finished
        if over.all():
            break
        if outcome.finished.any():
            rows.reset(np.flatnonzero(outcome.finished))
        actions = RULE.predict(rows.observe())[0]
    return total


@pytest.mark.parametrize("depth", [1, 3, 40])
def test_a_reward_is_the_rules_trial_less_the_decisions_own(depth):
    env = WhatIfVecEnv(WORLD, NUM_ENVS, RULE, depth=depth, seed=2, reward_scale=0.5)
    rng, saved = np.random.default_rng(0), 0.0
    observation = env.reset()
    for _ in range(2 * NUM_TASKS):
        actions = rng.integers(4, size=(NUM_ENVS, 2))
        by_rule = RULE.predict(observation)[0]
        want = rest_of(env, by_rule, depth) - rest_of(env, actions, depth)
        observation, rewards, _, _ = env.step(actions)
        np.testing.assert_allclose(rewards, 0.5 * want, rtol=1e-4, atol=1e-5)
        saved += float(np.abs(rewards).sum())
    assert saved > 0.0


@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_deciding_as_the_rule_does_saves_exactly_nothing(seed):
    env = WhatIfVecEnv(WORLD, NUM_ENVS, RULE, depth=5, seed=seed)
    observation = env.reset()
    for _ in range(NUM_TASKS):
        observation, rewards, _, _ = env.step(RULE.predict(observation)[0])
        np.testing.assert_array_equal(rewards, np.zeros(NUM_ENVS))


def test_trials_leave_no_trace_and_statistics_are_of_the_true_reward():
    what_if = WhatIfVecEnv(WORLD, NUM_ENVS, RULE, depth=4, seed=2)
    plain = NumaVecEnv(WORLD, NUM_ENVS, seed=2)
    np.testing.assert_array_equal(what_if.reset(), plain.reset())
    rng, ended = np.random.default_rng(0), 0
    for _ in range(2 * NUM_TASKS):
        actions = rng.integers(4, size=(NUM_ENVS, 2))
        one, other = what_if.step(actions), plain.step(actions)
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[2], other[2])
        for row in np.flatnonzero(one[2]):
            assert one[3][row]["episode"] == other[3][row]["episode"]
            ended += 1
    assert ended
    assert what_if.totals.mean("cost") == plain.totals.mean("cost")


def test_a_depth_below_one_is_refused():
    with pytest.raises(ValueError, match=r"depth must be >= 1, got 0\."):
        WhatIfVecEnv(WORLD, NUM_ENVS, RULE, depth=0)

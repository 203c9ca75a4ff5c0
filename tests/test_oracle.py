"""The clairvoyant search: complete when it is wide enough, and never worse than those whose plans it sees."""

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from enumeration import enumerated
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Play, Task, plays, toy_machine, toy_workload

from agents.evaluation import evaluate
from agents.oracle.beam import Oracle
from agents.oracle.comparison import percent_of_oracle
from agents.oracle.plays import played
from agents.oracle.polish import polished
from agents.rules.catalog import make_rule
from agents.rules.greedy import PricedGreedy
from agents.scheduler import Planner
from envs.reward import RewardWeights
from envs.world import World
from numa_rl.machines.builders import four_socket, two_socket
from numa_rl.workloads.synthetic import SyntheticStream

WEIGHTS = RewardWeights(alpha=0.7, beta=0.3, reference_s=0.05, out_of_memory_penalty=11.0)
RULE = PricedGreedy(congestion_price=0.8, crowding_price=2.0, migration_share=0.4, alpha=0.7)
THREADS = min(2, os.cpu_count() or 1)


def stream(*topologies: Any, num_episodes: int = 5, num_tasks: int = 16, **changes: Any) -> World:
    family = SyntheticStream(num_tasks=num_tasks, num_objects=5, **changes)
    return World(family.generate(np.random.default_rng(2), num_episodes), topologies, WEIGHTS, 0.2)


@pytest.fixture(scope="module")
def world() -> World:
    return stream(four_socket())


def rows_of(world: World) -> tuple[np.ndarray, np.ndarray]:
    count = world.workload.num_episodes
    return np.zeros(count, int), np.arange(count)


def test_foresight_leaves_the_fast_node_to_the_long_task_by_hand():
    # Node 0 takes 1 s and 3 s for the tasks, node 1 takes 1.5 s and 4.5 s. Greedy runs the short one on node 0, behind
    # which the long one waits a second and is still done first: 1 + (1 + 3). Apart they take 1.5 + 3.
    tasks = [Task(0, 0.0, flops=150.0), Task(1, 0.0, flops=450.0)]
    world = World(toy_workload(tasks), (toy_machine(flops_per_s=[150.0, 100.0]),), RewardWeights(beta=0.0), 1.0)
    machine, episode = rows_of(world)
    greedy = PricedGreedy(congestion_price=0.0, crowding_price=0.0)
    assert played(greedy, world, machine, episode)[1][0] == pytest.approx(5.0)
    plan, cost = played(Oracle(greedy), world, machine, episode)
    assert cost[0] == pytest.approx(4.5)
    assert plan[0, :, 0].tolist() == [1, 0]


@given(plays(max_tasks=3, min_nodes=2).filter(lambda play: play.topology.num_nodes <= 3))
@settings(max_examples=15, deadline=None)
def test_wide_enough_it_finds_what_enumeration_finds(play: Play):
    world = World(play.workload, (play.topology,), WEIGHTS, play.window_s)
    _, cost = enumerated(world)
    pairs = play.topology.num_nodes**2
    everything = Oracle(RULE, width=pairs ** (play.workload.num_tasks - 1), candidates=pairs, depth=0)
    machine, episode = rows_of(world)
    found = played(everything.search(world, machine, episode), world, machine, episode)[1][0]
    narrow = played(
        Oracle(RULE, width=1, candidates=2, depth=2).search(world, machine, episode), world, machine, episode
    )
    assert found == pytest.approx(cost.min(), rel=1e-9)
    assert narrow[1][0] >= cost.min() * (1 - 1e-9)


@pytest.mark.parametrize("topologies", [(four_socket(),), (two_socket(), four_socket())])
def test_with_one_branch_and_one_candidate_it_is_the_rule(topologies: Any):
    world = stream(*topologies)
    machine = np.arange(5) % len(topologies)
    alone = Oracle(RULE, width=1, candidates=1, depth=3).search(world, machine, np.arange(5))
    np.testing.assert_array_equal(alone, played(RULE, world, machine, np.arange(5))[0])


def test_a_rollout_is_judged_by_cost_so_far_and_to_come(world):
    # One branch, all candidates, rollouts to the end: the first placement is the one that is best followed by the rule.
    machine, episode = rows_of(world)
    plan = Oracle(RULE, width=1, candidates=16, depth=100).search(world, machine, episode)
    tried = np.stack([_followed(world, machine, episode, pair) for pair in range(16)])
    chosen = tried[4 * plan[:, 0, 0] + plan[:, 0, 1], np.arange(tried.shape[1])]
    np.testing.assert_allclose(chosen, tried.min(axis=0), rtol=1e-12)  # two may cost the same but for rounding
    assert np.ptp(tried, axis=0).min() > 0.1


def _followed(world: World, machine: np.ndarray, episode: np.ndarray, pair: int) -> np.ndarray:
    """What episodes cost whose first task is placed so, and the others by the rule."""

    class First(PricedGreedy):
        def predict(self, observation, state=None, episode_start=None, deterministic=True):  # type: ignore[no-untyped-def]
            actions, after = super().predict(observation, state, episode_start)
            return (np.tile(divmod(pair, 4), (len(actions), 1)) if episode_start.all() else actions), after

    return played(First(**vars(RULE)), world, machine, episode)[1]


def test_it_is_better_than_the_rule_and_never_worse_than_those_it_sees(world):
    others = tuple(make_rule(name) for name in ("greedy", "data-affinity", "shortest-queue", "random"))
    oracle = Oracle(RULE, others, width=2, candidates=4, depth=6)
    cost = evaluate(oracle, world).cost
    for rule in (RULE, *others):
        assert (cost <= evaluate(rule, world).cost).all()
    assert cost.mean() < 0.97 * evaluate(RULE, world).cost.mean()


def test_machines_of_different_sizes_are_searched_together():
    mixed = stream(two_socket(), four_socket())
    oracle = Oracle(RULE, width=2, candidates=6, depth=4)
    cost = evaluate(oracle, mixed).cost
    assert (cost <= evaluate(RULE, mixed).cost).all()
    alone = [evaluate(oracle, stream(topology)).cost for topology in (two_socket(), four_socket())]
    np.testing.assert_array_equal(cost, np.concatenate(alone))


def test_it_takes_the_plan_of_who_does_better(world):
    best = Oracle(RULE, width=8, candidates=8, depth=12)
    weak = Oracle(RULE, width=1, candidates=1, depth=0, passes=0)
    own, lent = evaluate(weak, world).cost, evaluate(replace(weak, others=(best,)), world).cost
    np.testing.assert_array_equal(lent, evaluate(best, world).cost)
    assert (lent < own).any()
    assert isinstance(best, Planner)


def changed_once(world: World, plan: np.ndarray, task: int, pair: int) -> np.ndarray:
    """What episodes cost when one task is placed otherwise."""
    other = plan.copy()
    other[:, task] = divmod(pair, 4)
    return played(other, world, *rows_of(world))[1]


def test_local_search_ends_where_no_single_change_helps(world):
    machine, episode = rows_of(world)
    start = played(RULE, world, machine, episode)
    plan = polished(start[0], world, machine, episode, rule=RULE, candidates=16, passes=50)
    cost = played(plan, world, machine, episode)[1]
    assert (cost < 0.999 * start[1]).all()
    for task in range(world.workload.num_tasks):
        for pair in range(16):
            assert (changed_once(world, plan, task, pair) >= cost * (1 - 1e-12)).all()


def test_every_pass_is_as_good_as_the_last_and_the_first_changes_the_first_task_for_the_best(world):
    machine, episode = rows_of(world)
    plan, cost = played(make_rule("shortest-queue"), world, machine, episode)
    tried = np.stack([changed_once(world, plan, 0, pair) for pair in range(16)])
    once = polished(plan, world, machine, episode, rule=RULE, candidates=16, passes=1)
    np.testing.assert_array_equal(4 * once[:, 0, 0] + once[:, 0, 1], tried.argmin(axis=0))
    costs = [
        played(polished(plan, world, machine, episode, rule=RULE, candidates=4, passes=p), world, machine, episode)[1]
        for p in range(4)
    ]
    np.testing.assert_array_equal(costs[0], cost)
    assert (np.diff(costs, axis=0) <= 1e-12 * cost).all()
    assert (costs[1] < cost).all()


@given(plays(num_episodes=2), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_local_search_never_makes_an_episode_dearer(play: Play, passes: int):
    world = World(play.workload, (play.topology,), WEIGHTS, play.window_s)
    where = np.zeros(2, int), np.arange(2)
    plan = polished(play.actions, world, *where, rule=RULE, candidates=3, passes=passes)
    assert (played(plan, world, *where)[1] <= played(play.actions, world, *where)[1] * (1 + 1e-12)).all()


def test_plans_that_spread_pages_stand_beside_plans_that_do_not(world):
    machine, episode = rows_of(world)

    class Spread:
        name = "spread"

        def plan(self, world: World, machine: np.ndarray, episode: np.ndarray) -> np.ndarray:
            return np.zeros((len(episode), world.workload.num_tasks, 6), np.int64)

    plan = Oracle(RULE, (Spread(),), width=1, candidates=2, depth=2).plan(world, machine, episode)
    assert plan.shape == (5, 16, 6)
    assert not plan[:, :, 2:].any()


def test_batch_size_and_threads_change_no_plan(world):
    oracle = Oracle(RULE, width=3, candidates=4, depth=5)
    machine, episode = rows_of(world)
    together = oracle.plan(world, machine, episode)
    one_by_one = [oracle.plan(world, machine[i : i + 1], episode[i : i + 1]) for i in range(5)]
    np.testing.assert_array_equal(together, np.concatenate(one_by_one))
    np.testing.assert_array_equal(together, replace(oracle, num_threads=THREADS).plan(world, machine, episode))
    np.testing.assert_array_equal(together[::-1], oracle.plan(world, machine[::-1], episode[::-1]))


@pytest.mark.parametrize("width", [100, 200])
def test_more_rows_than_are_searched_at_once(world, width):
    oracle = Oracle(RULE, width=width, candidates=4, depth=1)
    machine, episode = rows_of(world)
    alone = np.concatenate([oracle.search(world, machine[i : i + 1], episode[i : i + 1]) for i in range(5)])
    np.testing.assert_array_equal(oracle.search(world, machine, episode), alone)


def test_where_memory_fills_up_and_nodes_have_no_cores():
    tight = replace(four_socket(), cores=[4, 0, 2, 1], memory_bytes=[6e8, 9e8, 3e8, 5e8])
    crowded = stream(tight, median_object_bytes=2.5e8)
    cost = evaluate(Oracle(RULE, width=3, candidates=6, depth=8), crowded)
    rule = evaluate(RULE, crowded)
    assert (cost.cost <= rule.cost).all()
    assert cost.cost.mean() < rule.cost.mean()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width must be a whole number >= 1, got 0"),
        ({"candidates": 2.5}, "candidates must be a whole number >= 1, got 2.5"),
        ({"depth": -1}, "depth must be a whole number >= 0, got -1"),
        ({"passes": -1}, "passes must be a whole number >= 0, got -1"),
        ({"polish_candidates": 0}, "polish_candidates must be a whole number >= 1, got 0"),
        ({"num_threads": 0}, "num_threads must be a whole number >= 1, got 0"),
        ({"rule": PricedGreedy(crowding_price=np.ones(3))}, "crowding_price must be one number, got an array of shape"),
    ],
)
def test_bad_settings_are_refused(changes: Any, message: str):
    with pytest.raises(ValueError, match=message):
        Oracle(**changes)


def test_another_reward_is_refused(world):
    class Own(RewardWeights):
        pass

    other = replace(world, weights=Own())
    with pytest.raises(ValueError, match="RewardWeights alone, got Own"):
        evaluate(Oracle(RULE), other)


def test_percent_of_oracle_by_hand():
    assert percent_of_oracle([4.0, 6.0], [2.0, 3.0]) == 50.0
    assert percent_of_oracle([1.0, 3.0], [2.0, 2.0]) == 100.0
    assert percent_of_oracle([0.0], [0.0]) == 100.0
    assert percent_of_oracle([0.0], [1.0]) == np.inf


@pytest.mark.parametrize(
    ("cost", "oracle_cost", "message"),
    [
        ([1.0], [1.0, 2.0], "same one or more episodes"),
        ([], [], "same one or more episodes"),
        ([np.nan], [1.0], "finite and >= 0, got nan"),
        ([1.0], [-1.0], "finite and >= 0, got -1"),
    ],
)
def test_costs_that_cannot_be_compared_are_refused(cost: Any, oracle_cost: Any, message: str):
    with pytest.raises(ValueError, match=message):
        percent_of_oracle(cost, oracle_cost)


@given(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=9), st.floats(1.0, 5.0))
def test_who_costs_more_is_less_of_the_oracle(costs: list[float], factor: float):
    assert percent_of_oracle(np.array(costs) * factor, costs) == pytest.approx(100.0 / factor)

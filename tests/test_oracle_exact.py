"""Branch and bound finds what trying every plan finds, and says what it has proven."""

from dataclasses import replace

import numpy as np
import pytest
from enumeration import enumerated
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Play, Task, plays, seeds, toy_machine, toy_workload

from agents.evaluation import evaluate
from agents.oracle.beam import Oracle
from agents.oracle.comparison import percent_of_oracle
from agents.oracle.exact import Optimum, least_times, optimum
from agents.oracle.exact_kernel import rest_bound
from agents.oracle.plays import played
from agents.rollouts import kernel_weights
from agents.rules.catalog import make_rule, rule_names
from envs.reward import RewardWeights
from envs.world import World
from numa_rl.machines.builders import eight_socket_cube, four_socket, two_socket
from numa_rl.simulator.simulator import Simulator
from numa_rl.workloads.synthetic import SyntheticStream

WEIGHTS = RewardWeights(alpha=0.7, beta=0.3, reference_s=0.05, out_of_memory_penalty=11.0)


def small_stream(num_tasks: int = 8, num_episodes: int = 4) -> World:
    family = SyntheticStream(num_tasks=num_tasks, num_objects=3, tasks_per_s=80.0)
    workload = family.generate(np.random.default_rng(5), num_episodes)
    return World(workload, (two_socket(),), WEIGHTS, 0.2)


def test_two_tasks_by_hand():
    # Apart the tasks take 1.5 s and 3 s; on the fast node alone 1 s and, behind it, 1 s + 3 s.
    tasks = [Task(0, 0.0, flops=150.0), Task(1, 0.0, flops=450.0)]
    world = World(toy_workload(tasks), (toy_machine(flops_per_s=[150.0, 100.0]),), RewardWeights(beta=0.0), 1.0)
    found = optimum(world, start=np.zeros((2, 2), np.int64))
    assert found.proven
    assert found.cost == found.bound == pytest.approx(2.25)
    assert found.plan[:, 0].tolist() == [1, 0]
    assert str(found).startswith("2.25, proven after ")


@given(plays(max_tasks=3, min_nodes=2).filter(lambda play: play.topology.num_nodes <= 3), seeds)
@settings(max_examples=40, deadline=None)
def test_it_finds_what_enumeration_finds(play: Play, seed: int):
    weights = replace(WEIGHTS, out_of_memory_penalty=[0.0, 11.0][seed % 2], beta=[0.0, 0.3][seed // 2 % 2])
    world = World(play.workload, (play.topology,), weights, play.window_s)
    plans, cost = enumerated(world)
    found = optimum(world, start=plans[seed % len(plans)])
    assert found.proven
    assert found.cost * play.workload.num_tasks == pytest.approx(cost.min(), rel=1e-8, abs=1e-12)
    again = played(found.plan[None], world, np.array([0]), np.array([0]))[1][0]
    assert again == pytest.approx(cost.min(), rel=1e-8, abs=1e-12)


@given(plays(max_tasks=9, min_nodes=2), seeds)
@settings(max_examples=60, deadline=None)
def test_no_rest_of_an_episode_costs_less_than_its_bound(play: Play, seed: int):
    world = World(play.workload, (play.topology,), WEIGHTS, play.window_s)
    simulator = Simulator(world.topologies, world.workload, 1, window_s=world.window_s)
    simulator.reset(0)
    least, ready = least_times(world, simulator, 0, 0), np.zeros(play.workload.num_objects)
    bounds, costs = [], []
    for actions in play.actions[0]:
        arrays = simulator.machines, simulator.tasks, simulator.state
        bounds.append(rest_bound(*arrays, 0, least, ready, kernel_weights(WEIGHTS)))
        costs.append(WEIGHTS.cost(simulator.step(actions[None]))[0])
    rest = np.cumsum(costs[::-1])[::-1]
    assert (np.array(bounds) <= rest * (1 + 1e-12)).all()


@given(st.integers(0, 3))
@settings(max_examples=4, deadline=None)
def test_no_rule_and_no_beam_beats_it(episode: int):
    world = small_stream()
    found = optimum(world, episode=episode)
    assert found.proven
    where = np.array([0]), np.array([episode])
    for who in (*map(make_rule, rule_names()), Oracle(width=4, candidates=4, depth=8)):
        assert played(who, world, *where)[1][0] / 8 >= found.cost * (1 - 1e-8)


def test_the_oracle_comes_near_it_and_nearer_than_its_rule():
    family = SyntheticStream(num_tasks=10, num_objects=3)
    world = World(family.generate(np.random.default_rng(7), 8), (two_socket(),), WEIGHTS, 0.2)
    best = np.array([optimum(world, episode=episode).cost for episode in range(8)])
    oracle, rule = (evaluate(who, world).cost for who in (Oracle(), make_rule("priced-greedy")))
    assert (oracle >= best * (1 - 1e-8)).all()
    assert percent_of_oracle(oracle, best) > 99.0
    assert percent_of_oracle(rule, best) < 99.0


def test_where_it_starts_does_not_matter():
    world = small_stream()
    poor = np.tile([[0, 1]], (8, 1))
    assert optimum(world, start=poor).cost == pytest.approx(optimum(world).cost, rel=1e-8)
    assert optimum(world, start=poor).placements > optimum(world).placements


def test_the_bound_saves_most_of_the_work():
    assert optimum(small_stream()).placements < 4**8 / 4


def test_giving_up_leaves_a_plan_and_a_bound_about_the_optimum():
    world = small_stream()
    full = optimum(world)
    brief = optimum(world, max_placements=40, start=np.tile([[0, 1]], (8, 1)))
    assert not brief.proven
    assert brief.bound < full.cost < brief.cost
    assert brief.placements < 100
    assert "best found" in str(brief)
    middle = optimum(world, max_placements=full.placements // 2, start=np.tile([[0, 1]], (8, 1)))
    assert brief.bound <= middle.bound <= full.cost * (1 + 1e-9)


def test_it_gives_up_when_time_is_over():
    family = SyntheticStream(num_tasks=24, num_objects=6)
    world = World(family.generate(np.random.default_rng(5), 1), (four_socket(),), WEIGHTS, 0.2)
    found = optimum(world, max_seconds=1e-9)
    assert 0.0 < found.bound < found.cost
    assert found.placements > 1000


def test_it_knows_which_machine_and_which_episode():
    family = SyntheticStream(num_tasks=3, num_objects=2, tasks_per_s=80.0)
    world = World(family.generate(np.random.default_rng(1), 2), (four_socket(), two_socket()), WEIGHTS, 0.2)
    found = optimum(world, machine=1, episode=1)
    assert found.proven
    assert found.plan.max() <= 1
    assert found.cost * 3 == pytest.approx(enumerated(world, 1, 1)[1].min(), rel=1e-8)


def test_limits_that_are_not_positive_are_refused():
    for limits in ({"max_placements": 0}, {"max_seconds": 0.0}, {"max_seconds": np.nan}):
        with pytest.raises(ValueError, match="limits must be > 0"):
            optimum(small_stream(), **limits)


def test_an_episode_too_large_to_search_is_refused():
    family = SyntheticStream(num_tasks=2000, num_objects=64)
    world = World(family.generate(np.random.default_rng(0), 1), (eight_socket_cube(),), WEIGHTS, 0.2)
    with pytest.raises(ValueError, match="2000 tasks on 8 nodes must need at most 1073741824 bytes, got"):
        optimum(world)


def test_another_reward_is_refused():
    class Own(RewardWeights):
        pass

    with pytest.raises(ValueError, match="RewardWeights alone"):
        optimum(replace(small_stream(), weights=Own()))


def test_an_optimum_is_proven_when_its_bound_reaches_it():
    plan = np.zeros((1, 2), np.int64)
    assert Optimum(2.0, 2.0, plan, 1).proven
    assert not Optimum(2.0, 1.9, plan, 1).proven

"""Episodes with a planted optimum: the planted placement costs what is claimed, and nothing costs less."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

from agents.evaluation import evaluate
from agents.oracle.beam import Oracle
from agents.oracle.exact import optimum
from agents.oracle.plays import played
from agents.rules.catalog import make_rule, rule_names
from envs.reward import RewardWeights
from envs.world import World
from numa_rl.machines.builders import ChapterFigures, eight_socket_cube, four_socket, two_socket
from numa_rl.machines.catalog import load_machine
from numa_rl.topology import Topology
from numa_rl.workloads.planted import Planted, planted_placement

WEIGHTS = RewardWeights(alpha=0.8, beta=0.2, reference_s=0.05)
WINDOW_S = 0.2
LOCAL = Planted(flops_per_byte=0.6, num_rounds=6)  # on the chapter's machines remote bytes take longer than arithmetic


def planted_world(family: Planted, topology: Topology, num_episodes: int = 4, seed: int = 0) -> World:
    workload = family.generate(np.random.default_rng(seed), num_episodes)
    return World(workload, (topology,), WEIGHTS, WINDOW_S)


def optimal(family: Planted, world: World) -> np.ndarray:
    alpha, beta, reference_s, _ = world.weights.numbers
    where = world.workload, world.topologies[0]
    return family.optimal_cost(*where, alpha=alpha, beta=beta, reference_s=reference_s)


def planted_cost(family: Planted, world: World) -> np.ndarray:
    episodes = np.arange(world.workload.num_episodes)
    plan = planted_placement(world.workload, world.topologies[0], family)
    return played(plan, world, 0 * episodes, episodes)[1] / world.workload.num_tasks


def test_two_chains_of_one_round_by_hand():
    # 4e9 flop at 40e9 flop/s are 0.1 s, two reference times. Of two nodes one has work after the first task: Imbalance
    # 1; both after the second: 0.
    family = replace(LOCAL, num_chains=2, num_rounds=1, median_task_flops=4e9, task_flops_sigma=0.0)
    world = planted_world(family, two_socket())
    np.testing.assert_allclose(optimal(family, world), 2.0 + 0.2 * (1.0 + 0.0) / 2)
    np.testing.assert_allclose(planted_cost(family, world), 2.1, rtol=1e-6)


@given(seeds, st.integers(1, 8), st.integers(1, 5), st.sampled_from([0.5, 1.0, 16.0]))
@settings(max_examples=25, deadline=None)
def test_the_planted_placement_costs_what_is_claimed(seed: int, chains: int, rounds: int, flops_per_byte: float):
    family = Planted(num_chains=chains, num_rounds=rounds, flops_per_byte=flops_per_byte)
    world = planted_world(family, eight_socket_cube(), 2, seed)
    np.testing.assert_allclose(planted_cost(family, world), optimal(family, world), rtol=1e-6)


@pytest.mark.parametrize("machine", ["r815", "xeon-8269cy-snc2"])
def test_it_is_so_on_real_machines(machine: str):
    family = Planted(num_rounds=4)
    world = planted_world(family, load_machine(machine))
    np.testing.assert_allclose(planted_cost(family, world), optimal(family, world), rtol=1e-6)


@pytest.mark.parametrize("chains", [1, 2])
def test_branch_and_bound_proves_it(chains: int):
    family = replace(LOCAL, num_chains=chains, num_rounds=3)
    world = planted_world(family, two_socket(), 2)
    for episode in range(2):
        found = optimum(world, episode=episode, start=np.tile([[0, 1]], (world.workload.num_tasks, 1)))
        assert found.proven
        assert found.cost == pytest.approx(optimal(family, world)[episode], rel=1e-6)


@pytest.mark.parametrize("name", rule_names())
def test_no_rule_beats_it(name: str):
    world = planted_world(LOCAL, four_socket())
    assert (evaluate(make_rule(name), world).cost >= optimal(LOCAL, world) * (1 - 1e-6)).all()


@pytest.mark.parametrize("name", ["random", "round-robin", "shortest-queue"])
def test_who_ignores_where_the_data_is_misses_it(name: str):
    world = planted_world(LOCAL, four_socket())
    assert (evaluate(make_rule(name), world).cost > 1.02 * optimal(LOCAL, world)).all()


@pytest.mark.parametrize("topology", [two_socket(), four_socket(), eight_socket_cube()])
def test_the_oracle_reaches_it(topology: Topology):
    family = replace(LOCAL, num_chains=topology.num_nodes)
    world = planted_world(family, topology)
    np.testing.assert_allclose(evaluate(Oracle(), world).cost, optimal(family, world), rtol=1e-6)


@given(seeds, st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_no_other_placement_costs_less(seed: int, other: int):
    family = replace(LOCAL, num_rounds=3, gap_s=0.19)  # hardly longer than the proof needs: tasks last into the next
    world = planted_world(family, four_socket(), 1, seed)
    rng = np.random.default_rng(other)
    plan = planted_placement(world.workload, four_socket(), family)
    changed = np.where(rng.random(plan.shape) < rng.random(), rng.integers(4, size=plan.shape), plan)
    cost = played(changed, world, np.zeros(1, int), np.zeros(1, int))[1] / world.workload.num_tasks
    assert cost[0] >= optimal(family, world)[0] * (1 - 1e-6)


def test_more_episodes_extend_fewer_and_another_seed_is_another_pool():
    few, more, other = (LOCAL.generate(np.random.default_rng(seed), count) for seed, count in ((3, 2), (3, 5), (4, 2)))
    for name in ("flops", "object", "object_bytes"):
        np.testing.assert_array_equal(getattr(few, name), getattr(more, name)[:2])
        assert (getattr(few, name) != getattr(other, name)).any()


def test_every_round_has_one_task_of_each_chain_and_of_one_length():
    workload = Planted(num_chains=5, num_rounds=7).generate(np.random.default_rng(0), 3)
    rounds = (3, 7, 5)
    np.testing.assert_array_equal(np.sort(workload.object.reshape(rounds), axis=2), np.broadcast_to(range(5), rounds))
    assert (np.ptp(workload.flops.reshape(rounds), axis=2) == 0.0).all()
    assert (np.ptp(workload.arrival_s.reshape(rounds), axis=2) == 0.0).all()
    assert (np.diff(workload.arrival_s.reshape(rounds)[:, :, 0], axis=1) == 1.0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_chains": 0}, "num_chains must be >= 1, got 0"),
        ({"gap_s": 0.0}, "gap_s must be > 0, got 0.0"),
        ({"flops_per_byte": np.nan}, "flops_per_byte must be > 0, got nan"),
        ({"write_fraction": 1.5}, r"write_fraction must be in \[0, 1\], got 1.5"),
        ({"task_flops_sigma": -1.0}, "task_flops_sigma must be >= 0, got -1.0"),
    ],
)
def test_bad_parameters_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Planted(**changes)


@pytest.mark.parametrize(
    ("changes", "figures", "message"),
    [
        ({"num_chains": 5}, {}, "num_chains must be at most the nodes of 'chapter-4-socket'"),
        ({"gap_s": 0.1, "flops_per_byte": 2.0}, {}, "gap_s must be > 0.1 s, the longest task, by at least"),
        ({"gap_s": 0.15}, {}, "gap_s must be > 0.1 s, the longest task, by at least 0.0866"),
        ({"flops_per_byte": 0.4}, {}, "flops_per_byte must be >= 0.444"),
        ({}, {"memory_bytes": 5e8}, "all objects must fit on one node of 5e[+]08 bytes, got"),
    ],
)
def test_where_the_proof_does_not_hold_no_optimum_is_claimed(
    changes: dict[str, Any], figures: dict[str, Any], message: str
):
    family = replace(LOCAL, **changes)
    world = planted_world(replace(family, task_flops_sigma=3.0), four_socket(ChapterFigures(**figures)), 16)
    with pytest.raises(ValueError, match=message):
        optimal(family, world)

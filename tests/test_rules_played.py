"""What rules that place pages, copies or both do to whole episodes."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from agents.evaluation import decisions, evaluate
from agents.rules.catalog import make_rule
from agents.tuning import default_parameters
from envs.observation import Observer
from envs.reward import RewardWeights
from envs.world import World
from numa_rl.machines.catalog import load_machine
from numa_rl.simulator.simulator import Simulator
from numa_rl.workloads.query import Query
from numa_rl.workloads.synthetic import SyntheticStream


@cache
def stream_world() -> World:
    workload = SyntheticStream(num_tasks=96).generate(np.random.default_rng(0), 3)
    return World(workload, (load_machine("chapter-8-socket"),), RewardWeights(reference_s=1e-3), 0.05)


@cache
def query_world() -> World:
    workload = Query(num_tasks=128).generate(np.random.default_rng(0), 3)
    return World(workload, (load_machine("chapter-4-socket"),), RewardWeights(reference_s=1e-3), 0.05)


def replicas(name: str, world: World) -> int:
    """How many copies a rule makes in all episodes."""
    rows = world.workload.num_episodes
    simulator = Simulator(world.topologies, world.workload, rows, window_s=world.window_s)
    simulator.reset(np.arange(rows))
    rule = make_rule(name, **default_parameters(name, world.weights, world.topologies))
    observer = Observer(simulator, world.weights, world.observation)
    return sum(int(outcome.replicated.sum()) for outcome in decisions(rule, simulator, observer))


@pytest.mark.parametrize("name", ["interleave", "weighted-interleave"])
def test_interleaved_pages_never_move_and_one_in_eight_is_local(name: str):
    played = evaluate(make_rule(name), stream_world())
    assert not played.migrations.any()
    assert not played.fallbacks.any()
    np.testing.assert_allclose(played.remote_ratio, 7 / 8, atol=0.01)


def test_equal_bandwidths_are_equal_weights():
    even, weighted = (evaluate(make_rule(name), stream_world()) for name in ("interleave", "weighted-interleave"))
    np.testing.assert_array_equal(even.cost, weighted.cost)


def test_autonuma_moves_data_and_has_fewer_remote_accesses_than_first_touch():
    first_touch, autonuma = (evaluate(make_rule(name), stream_world()) for name in ("first-touch", "autonuma"))
    assert autonuma.migrations.sum() > 0
    assert autonuma.remote_ratio.mean() < first_touch.remote_ratio.mean()


def test_carrefour_copies_what_is_only_read():
    world = query_world()
    assert replicas("carrefour", world) > 0
    written = replace(world.workload, read_only=np.zeros_like(world.workload.read_only))
    assert replicas("carrefour", replace(world, workload=written)) == 0


def test_asymsched_spends_at_most_its_share_of_the_time_on_moves():
    def moves(share: float) -> int:
        return int(evaluate(make_rule("asymsched", migration_share=share), stream_world()).migrations.sum())

    assert moves(0.0) == 0
    assert 0 < moves(0.05) < moves(1.0)


@pytest.mark.parametrize("name", ["carrefour", "bwap", "asymsched"])
def test_what_a_rule_remembers_is_its_own_rows(name: str):
    together, alone = (evaluate(make_rule(name), stream_world(), batch_rows=rows) for rows in (3, 1))
    np.testing.assert_array_equal(together.cost, alone.cost)
    np.testing.assert_array_equal(together.migrations, alone.migrations)

"""The shield: the policy decides only where it is sure, within a budget that knows nothing but the past."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from observations import random_rows
from strategies import Play, plays, seeds

from agents.evaluation import evaluate
from agents.lookahead_futures import allocate_futures
from agents.lookahead_scores import BestScore, PricedScores
from agents.oracle.plays import played
from agents.ppo.config import PolicyConfig
from agents.ppo.scorers import make_scorer
from agents.ppo.storage import LearnedScheduler
from agents.rules.greedy import PricedGreedy, priced_cost
from agents.seen import Seen
from agents.shield import Reason, Shielded, shielded
from agents.shield_kernel import hasten
from agents.shield_play import POLICY, RULE, USUAL, ShieldedPlay, reserved, within_budget
from envs.observation import ObservationKind, ObservationLayout, Observer
from envs.reward import RewardWeights
from envs.world import World
from numa_rl.machines.builders import eight_socket_cube, four_socket
from numa_rl.simulator.simulator import Simulator
from numa_rl.workloads.synthetic import SyntheticStream
from numa_rl.workloads.threads import Threads
from numa_rl.workloads.workload import Workload

torch.set_num_threads(1)

SMALL = {"futures": 2, "depth": 6, "run_length": 3, "memory": 8}
FAMILY = SyntheticStream(num_tasks=24, num_objects=10)


@dataclass(frozen=True)
class Chance:
    """Scores pairs by what the observation happens to be: it is no good, and always sure of itself."""

    seed: int = 0
    name: str = "chance"

    def scores(self, observation: np.ndarray) -> np.ndarray:
        layout = ObservationLayout.of_size(observation.shape[-1])
        groups = layout.split(observation)
        rng = np.random.default_rng(self.seed)
        mixed = observation @ rng.normal(size=(layout.size, layout.num_nodes**2))
        is_open = (groups["task_mask"][:, :, None] > 0) & (groups["data_mask"][:, None, :] > 0)
        return np.where(is_open.reshape(mixed.shape), np.sin(mixed), -np.inf)


def shield(base: Any = None, margin: float = 0.0, **changes: Any) -> Shielded:
    return Shielded(base or Chance(), 1.0, PricedGreedy(), margin=margin, **changes)


def world(workload: Workload | None = None, topology: Any = None) -> World:
    episodes = workload or FAMILY.generate(np.random.default_rng(3), 4)
    return World(episodes, (topology or four_socket(),), RewardWeights(reference_s=0.05), 0.2)


def rows(world: World) -> tuple[np.ndarray, np.ndarray]:
    episodes = np.arange(world.workload.num_episodes)
    return np.zeros_like(episodes), episodes


# Known answers


def test_the_first_placement_within_the_budget_is_taken() -> None:
    behind = np.array([[0.5, 2.0, 3.0], [2.0, 0.5, 0.1], [2.0, 3.0, 0.5], [9.0, 3.0, 4.0], [2.0, 4.0, 3.0]])
    assert within_budget(behind, np.ones(5)).tolist() == [POLICY, USUAL, RULE, USUAL, RULE]


def test_the_policy_is_never_the_least_evil() -> None:
    behind = np.array([[2.0, 3.0, 4.0]])
    assert within_budget(behind, np.ones(1)).tolist() == [USUAL]


def test_what_is_reserved_is_the_worst_of_all_futures_and_ways_and_losses_count_several_times() -> None:
    excess = np.array([[[[1.0, 5.0], [2.0, 3.0]], [[0.0, 0.0], [-1.0, 2.0]]]])  # (1, K 2, W 2, S 2)
    assert reserved(excess, 1.0).tolist() == [[5.0, 2.0]]
    assert reserved(excess, 3.0).tolist() == [[15.0, 6.0]]
    assert reserved(excess - 4.0, 3.0).tolist() == [[3.0, -2.0]]  # a gain counts once


def test_a_decision_has_the_reason_that_it_was_made_for() -> None:
    observation = random_rows(np.random.default_rng(0), 200, 3)
    layout = ObservationLayout.of_size(observation.shape[1])
    base, rule = Chance(), PricedGreedy()
    scores = base.scores(observation)
    actions, _ = rule.predict(observation)
    own = actions[:, 0] * 3 + actions[:, 1]
    advantage = (scores.max(axis=1) - scores[np.arange(200), own]) / 0.5
    margin = float(np.median(advantage))
    seen = Seen.fit([observation], 0.7)
    inside = seen.contains(layout.split(observation))
    choice = Shielded(base, 0.5, rule, seen, margin).choose(observation)
    want = np.where(advantage >= margin, Reason.POLICY, Reason.SMALL)
    want = np.where(inside, want, Reason.UNSEEN)
    want = np.where(scores.argmax(axis=1) == own, Reason.AGREED, want)
    assert choice.reason.tolist() == want.tolist()
    assert set(want.tolist()) == {Reason.AGREED, Reason.POLICY, Reason.SMALL, Reason.UNSEEN}
    assert (choice.rule_pair == own).all()
    assert (choice.pair == np.where(want == Reason.POLICY, scores.argmax(axis=1), own)).all()


def test_a_priced_cost_as_the_score_has_its_difference_as_the_advantage() -> None:
    observation = random_rows(np.random.default_rng(1), 50, 4)
    groups = ObservationLayout(4).split(observation)
    policy, rule = PricedGreedy(congestion_price=9.0), PricedGreedy()
    cost = priced_cost(groups, 9.0, 1.5, 0.3, 1.0).reshape(50, -1)
    base = PricedScores(policy)
    own = Shielded(base, 2.0, rule, margin=0.0).choose(observation).rule_pair
    saved = (cost[np.arange(50), own] - np.where(np.isfinite(base.scores(observation)), cost, np.inf).min(axis=1)) / 2.0
    margin = float(np.median(saved[saved > 0]))
    reason = Shielded(base, 2.0, rule, margin=margin).choose(observation).reason
    assert ((reason == Reason.POLICY) == (saved >= margin)).mean() > 0.97  # but for rounding at the margin itself


# Laws


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_a_policy_that_is_never_sure_enough_is_the_rule(seed: int) -> None:
    observation = random_rows(np.random.default_rng(seed), 8, 4)
    never = shield(Chance(seed), margin=1e9)
    assert (never.predict(observation)[0] == PricedGreedy().predict(observation)[0]).all()
    always = shield(Chance(seed))
    assert (always.predict(observation)[0] == BestScore(Chance(seed)).predict(observation)[0]).all()


def test_one_row_is_a_batch_of_one() -> None:
    observation = random_rows(np.random.default_rng(2), 1, 3)
    one, state = shield().predict(observation[0])
    assert one.shape == (2,)
    assert (one == shield().predict(observation)[0][0]).all()
    assert state is None


def test_the_rule_under_its_own_shield_is_the_rule() -> None:
    here = world()
    found = ShieldedPlay(shield(PricedScores(PricedGreedy())), **SMALL).play(here, *rows(here))
    actions, cost = played(PricedGreedy(), here, *rows(here))
    assert (found.actions == actions).all()
    assert (found.cost == found.rule_cost).all()
    assert found.cost == pytest.approx(cost / 24, rel=1e-12)
    assert found.reasons[:, Reason.AGREED].tolist() == [24] * 4


@settings(max_examples=10, deadline=None)
@given(play=plays(num_episodes=2, max_tasks=10, min_nodes=2), seed=seeds, at=st.integers(1, 9))
def test_later_tasks_change_no_decision(play: Play, seed: int, at: int) -> None:
    if play.workload.is_one_graph:
        return
    workload, at = play.workload, min(at, play.workload.num_tasks)
    rng, changes = np.random.default_rng(seed), {}
    for name in ("flops", "bytes", "overhead_s"):
        values = getattr(workload, name).copy()
        values[:, at:] *= rng.uniform(0.1, 10.0, values[:, at:].shape)
        changes[name] = values
    arrival = workload.arrival_s.copy()
    arrival[:, at:] += np.cumsum(rng.exponential(1.0, arrival[:, at:].shape), axis=1)
    changed = replace(workload, arrival_s=arrival, **changes)
    found = []
    for episodes in (workload, changed):
        here = World(episodes, (play.topology,), RewardWeights(reference_s=0.05), play.window_s)
        found.append(ShieldedPlay(shield(Chance(seed)), slack=0.1, **SMALL).play(here, *rows(here)).actions)
    assert (found[0][:, :at] == found[1][:, :at]).all()


def test_neither_batch_nor_threads_change_a_decision() -> None:
    here = world()
    machine, episode = rows(here)
    play = ShieldedPlay(shield(), slack=0.05, **SMALL)
    whole = play.plan(here, machine, episode)
    for part in (slice(0, 1), slice(2, 4)):
        assert (play.plan(here, machine[part], episode[part]) == whole[part]).all()
    assert (replace(play, num_threads=2).plan(here, machine, episode) == whole).all()
    assert (replace(play, seed=1).plan(here, machine, episode) != whole).any()


def test_what_is_counted_is_what_happens() -> None:
    here = world(topology=eight_socket_cube())
    play = ShieldedPlay(shield(), slack=0.02, **SMALL)
    found = play.play(here, *rows(here))
    assert evaluate(play, here).cost == pytest.approx(found.cost, rel=1e-12)
    assert evaluate(PricedGreedy(), here).cost == pytest.approx(found.rule_cost, rel=1e-12)
    assert found.reasons.sum(axis=1).tolist() == [24] * 4
    assert found.reasons[:, Reason.BUDGET].sum() > 0
    assert found.reasons[:, Reason.POLICY].sum() > 0


def test_without_a_budget_the_policy_has_its_way() -> None:
    here = world()
    free = ShieldedPlay(shield(), slack=1e6, stop=1e6, **SMALL).play(here, *rows(here))
    usual, _ = played(PricedGreedy(), here, *rows(here))
    assert (free.actions[:, 0] == usual[:, 0]).all()  # before the first task nothing can be foreseen
    simulator = Simulator(here.topologies, here.workload, len(usual), window_s=here.window_s)
    observer = Observer(simulator, here.weights, ObservationKind.FULL)
    simulator.reset(rows(here)[1], machines=rows(here)[0])
    for task in range(here.workload.num_tasks):
        choice = shield().choose(observer.observe())
        wanted = np.stack(np.divmod(choice.pair, simulator.num_nodes), axis=1)
        sure = (choice.reason == Reason.POLICY)[:, None] & (task > 0)
        np.testing.assert_array_equal(free.actions[:, task], np.where(sure, wanted, usual[:, task]))
        simulator.step(free.actions[:, task])
    assert free.reasons[:, Reason.POLICY].sum() > 12


def test_a_bad_policy_costs_little_under_the_shield_and_much_without() -> None:
    here = world(SyntheticStream(num_tasks=96).generate(np.random.default_rng(5), 4), eight_socket_cube())
    found = ShieldedPlay(shield(), futures=4, depth=16).play(here, *rows(here))
    _, alone = played(BestScore(Chance()), here, *rows(here))
    assert alone.mean() / 96 > 1.5 * found.rule_cost.mean()
    assert found.cost.mean() < 1.03 * found.rule_cost.mean()


def test_where_the_graph_is_known_the_policy_is_never_worse() -> None:
    family = Threads(num_tasks=48, num_threads=8)
    here = world(family.generate(np.random.default_rng(0), 6), eight_socket_cube())
    for base in (Chance(), PricedScores(PricedGreedy(congestion_price=0.0, crowding_price=0.0))):
        found = ShieldedPlay(shield(base)).play(here, *rows(here))
        _, alone = played(BestScore(base), here, *rows(here))
        assert (found.cost <= found.rule_cost).all()
        assert found.cost == pytest.approx(np.minimum(alone / 48, found.rule_cost), rel=1e-12)


@given(st.lists(st.floats(0.0, 1e3), min_size=1, max_size=8), st.floats(0.01, 2.0))
def test_a_future_is_as_busy_as_asked(gaps: list[float], pace: float) -> None:
    futures = allocate_futures(Simulator([four_socket()], world().workload, 1, window_s=1.0).tasks, 2, len(gaps))
    arrivals = 5.0 + np.concatenate([[0.0], np.cumsum(gaps)])
    futures.each["arrival_s"][:] = arrivals
    hasten(futures, 1, pace)
    assert (futures.each["arrival_s"][0] == arrivals).all()  # of the other future
    np.testing.assert_allclose(np.diff(futures.each["arrival_s"][1]), pace * np.array(gaps), rtol=1e-6, atol=1e-9)
    assert futures.each["arrival_s"][1, 0] == 5.0


# Bad input


def test_bad_settings_are_named() -> None:
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="shield: scale must be finite and > 0"):
            Shielded(Chance(), scale, PricedGreedy())
    for margin in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="shield: margin must be finite and >= 0"):
            shield(margin=margin)
        with pytest.raises(ValueError, match="shield: slack must be finite and >= 0"):
            ShieldedPlay(shield(), slack=margin)
        with pytest.raises(ValueError, match="shield: stop must be finite and >= 0"):
            ShieldedPlay(shield(), stop=margin)
        with pytest.raises(ValueError, match="shield: reserve must be finite and >= 1"):
            ShieldedPlay(shield(), reserve=margin)
        with pytest.raises(ValueError, match="shield: paces must be finite and > 0, one or more"):
            ShieldedPlay(shield(), paces=(1.0, margin))
    with pytest.raises(ValueError, match="shield: paces must be finite and > 0, one or more"):
        ShieldedPlay(shield(), paces=())
    for name in ("futures", "depth", "run_length", "memory", "num_threads"):
        with pytest.raises(ValueError, match=f"shield: {name} must be a whole number >= 1, got 0"):
            ShieldedPlay(shield(), **{name: 0})
    with pytest.raises(ValueError, match="congestion_price must be one number"):
        Shielded(Chance(), 1.0, PricedGreedy(congestion_price=np.ones(3)))


def test_a_policy_whose_scores_are_no_costs_is_refused() -> None:
    with_prior, without = (
        LearnedScheduler(make_scorer(PolicyConfig(prior=prior, prior_scale=8.0))) for prior in (True, False)
    )
    assert shielded(with_prior).scale == pytest.approx(8.0)
    with pytest.raises(ValueError, match="shield: policy 'learned' must have a prior"):
        shielded(without)


def test_another_reward_is_refused() -> None:
    class Other(RewardWeights):
        pass

    here = replace(world(), weights=Other(reference_s=0.05))
    with pytest.raises(ValueError, match="reward of RewardWeights alone"):
        ShieldedPlay(shield(), **SMALL).plan(here, *rows(here))


def test_rows_may_play_on_machines_of_different_sizes() -> None:
    here = replace(world(), topologies=(four_socket(), eight_socket_cube()))
    machine, episode = np.array([0, 1, 1, 0]), np.array([0, 1, 2, 3])
    plan = ShieldedPlay(shield(), **SMALL).plan(here, machine, episode)
    assert plan[machine == 0].max() < 4
    simulator = Simulator(here.topologies, here.workload, 4, window_s=here.window_s)
    simulator.reset(episode, machines=machine)
    for task in range(24):
        simulator.step(plan[:, task])

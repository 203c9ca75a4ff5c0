"""The loop that judges, the statistics it is read by, and tuning."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from strategies import Task, toy_machine, toy_workload

from agents.evaluation import evaluate
from agents.rules.base import Placement, Range, Rule
from agents.rules.catalog import RULES, make_rule, rule_names
from agents.statistics import Interval, mean_interval, ratio_interval, win_rate
from agents.tuning import tune_rule
from envs.observation import ObservationKind
from envs.observation_kernel import TaskFeature
from envs.reward import RewardWeights
from envs.scheduling_env import NumaSchedulingEnv
from envs.world import World
from numa_rl.machines.builders import eight_socket_cube, two_socket
from numa_rl.workloads.synthetic import SyntheticStream

TUNABLE = [name for name in rule_names() if RULES[name].tunable]


def toy_world(*episodes: list[Task], **weights: float) -> World:
    return World(toy_workload(*episodes), (toy_machine(),), RewardWeights(**weights), window_s=1.0)


def small_world(num_episodes: int = 6, num_tasks: int = 24) -> World:
    workload = SyntheticStream(num_tasks=num_tasks).generate(np.random.default_rng(3), num_episodes)
    return World(workload, (eight_socket_cube(),), RewardWeights(reference_s=0.05), window_s=0.2)


class Script:
    """Plays the same list of placements in every row."""

    name = "script"

    def __init__(self, *actions: tuple[int, int]) -> None:
        self.actions = np.array(actions)

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True):
        turn = 0 if state is None else state[0]
        return np.tile(self.actions[turn], (len(observation), 1)), (turn + 1,)


def fields_of(results: Any) -> dict[str, np.ndarray]:
    return {name: values for name, values in vars(results).items() if name != "metrics"} | results.metrics


def test_costs_of_two_computing_tasks_by_hand():
    # 2 s of work on node 0 at t = 0; at t = 1 one second of it is left, so 1 s of work goes to node 1.
    world = toy_world([Task(0, 0.0, flops=200.0), Task(1, 1.0, flops=100.0)], beta=0.5, reference_s=2.0)
    results = evaluate(make_rule("shortest-queue"), world)
    np.testing.assert_allclose(results.response_s, [[2.0, 1.0]])
    np.testing.assert_allclose(results.imbalance, 0.5)  # 1 while only node 0 works, then 0
    np.testing.assert_allclose(results.load_balance, 0.5)
    np.testing.assert_allclose(results.exec_cost, 0.75)
    np.testing.assert_allclose(results.comm_cost, 0.0)
    np.testing.assert_allclose(results.cost, 1.0)  # (2 / 2 + 0.5 x 1 + 1 / 2) / 2
    np.testing.assert_allclose(results.finish_s, 2.0)
    np.testing.assert_allclose(results.remote_ratio, 0.0)


def test_bytes_moves_and_fallbacks_are_counted():
    tasks = [Task(0, 0.0, num_bytes=50.0, size=100.0), Task(0, 9.0, num_bytes=50.0, size=100.0)]
    tasks += [Task(1, 20.0, size=800.0), Task(2, 30.0, size=800.0)]
    results = evaluate(Script((0, 0), (1, 1), (1, 1), (1, 1)), toy_world(tasks))
    assert results.migrations == [1]  # 100 bytes; 50 + 50 were read locally
    assert results.remote_ratio == [0.5]
    assert results.fallbacks == [1]
    assert results.out_of_memory == [0]


def test_a_dropped_task_costs_the_penalty_and_never_responds():
    tasks = [Task(0, 0.0, flops=100.0), Task(1, 1.0, size=1e9)]
    results = evaluate(Script((0, 0), (0, 0)), toy_world(tasks, beta=0.0, out_of_memory_penalty=10.0))
    assert results.out_of_memory == [1]
    np.testing.assert_allclose(results.cost, 5.5)
    assert results.response_s.tolist() == [[1.0, np.inf]]
    assert results.p99_response_s == [np.inf]
    assert results.finish_s == [1.0]


def test_p99_is_the_response_that_99_of_100_do_not_exceed():
    results = evaluate(make_rule("greedy"), small_world(num_episodes=1))
    results = replace(results, response_s=np.arange(1.0, 201.0).reshape(2, 100))
    assert results.p99_response_s.tolist() == [99.0, 199.0]
    assert results.pooled_p99_response_s == 198.0


@pytest.mark.parametrize("name", rule_names())
@pytest.mark.parametrize("batch_rows", [1, 4])
def test_results_do_not_depend_on_the_batch_size(name: str, batch_rows: int):
    world = small_world()
    whole, split = (evaluate(make_rule(name), world, batch_rows=rows) for rows in (256, batch_rows))
    for field, values in fields_of(whole).items():
        np.testing.assert_array_equal(values, fields_of(split)[field], err_msg=field)


def test_results_do_not_depend_on_the_number_of_threads():
    world = small_world(num_episodes=2, num_tasks=8)
    episodes = np.arange(130) % 2
    one, two = (evaluate(make_rule("priced-greedy"), world, episodes, num_threads=threads) for threads in (1, 2))
    np.testing.assert_array_equal(one.response_s, two.response_s)


@pytest.mark.parametrize("name", [name for name in rule_names() if name != "random"])  # it hashes the padding too
def test_every_machine_is_played_as_if_it_were_alone(name: str):
    world = small_world(num_episodes=3)
    both = evaluate(make_rule(name), replace(world, topologies=(two_socket(), eight_socket_cube())))
    assert both.machine.tolist() == [0, 0, 0, 1, 1, 1]
    assert both.episode.tolist() == [0, 1, 2, 0, 1, 2]
    for machine, topology in enumerate((two_socket(), eight_socket_cube())):
        alone = evaluate(make_rule(name), replace(world, topologies=(topology,)))
        np.testing.assert_allclose(both.cost[both.machine == machine], alone.cost, rtol=1e-6)


def test_chosen_episodes_are_played_in_their_order():
    world = small_world()
    results, chosen = (evaluate(make_rule("greedy"), world, episodes) for episodes in (None, [4, 1, 4]))
    assert chosen.episode.tolist() == [4, 1, 4]
    np.testing.assert_array_equal(chosen.cost, results.cost[[4, 1, 4]])


@pytest.mark.parametrize("name", ["round-robin", "interleave", "priced-greedy"])
def test_stable_baselines3_judges_alike(name: str):
    world = small_world(num_episodes=1)
    reward, _ = evaluate_policy(make_rule(name), Monitor(NumaSchedulingEnv(world)), n_eval_episodes=2)
    assert reward == pytest.approx(-24 * evaluate(make_rule(name), world).cost[0])


def test_evaluation_names_what_it_cannot_play():
    world = small_world()
    with pytest.raises(ValueError, match=r"episodes must be one or more indices, got shape \(0,\)"):
        evaluate(make_rule("greedy"), world, [])
    with pytest.raises(ValueError, match=r"episode must be in 0\.\.5, got 6"):
        evaluate(make_rule("greedy"), world, [6])
    with pytest.raises(ValueError, match=r"batch_rows must be >= 1, got 0"):
        evaluate(make_rule("greedy"), world, batch_rows=0)
    with pytest.raises(ValueError, match=r"greedy reads the full observation, got a world with 'chapter'"):
        evaluate(make_rule("greedy"), replace(world, observation=ObservationKind.CHAPTER))


def test_intervals_of_what_does_not_vary_are_points():
    rng = np.random.default_rng(0)
    reference = np.array([1.0, 2.0, 4.0, 8.0])
    assert mean_interval(np.full(5, 3.0), rng) == Interval(3.0, 3.0, 3.0)
    paired = ratio_interval(1.5 * reference, reference, rng)  # episodes differ eightfold, the ratio does not
    np.testing.assert_allclose([paired.estimate, paired.low, paired.high], 1.5)


def test_the_interval_of_a_coin_is_the_binomial_one():
    interval = mean_interval(np.arange(100) % 2, np.random.default_rng(0))
    assert interval.estimate == 0.5
    assert interval.low == pytest.approx(0.40, abs=0.005)  # 0.5 - 1.96 x 0.05
    assert interval.high == pytest.approx(0.60, abs=0.005)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        interval = mean_interval(rng.exponential(size=40), rng)
        covered += interval.low <= 1.0 <= interval.high
    assert 85 <= covered <= 99  # percentile intervals of 40 skewed values cover about 92 of 100


def test_one_episode_bounds_nothing():
    assert mean_interval([2.0], np.random.default_rng(0)) == Interval(2.0, -np.inf, np.inf)


def test_pairs_must_match():
    with pytest.raises(ValueError, match=r"paired values must have one shape, got \(2,\) and \(3,\)"):
        ratio_interval([1.0, 2.0], [1.0, 2.0, 3.0], np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"at least one episode, got shape \(1, 0\)"):
        mean_interval([], np.random.default_rng(0))


def test_a_tie_is_half_a_win():
    assert win_rate([1.0, 2.0, 3.0, 1.0], [2.0, 2.0, 2.0, 2.0]) == 0.625


@dataclass(frozen=True)
class Planted(Rule):
    """Runs far from the data for a share |x - 0.3| + |log10 y - 1| / 4 of 32 tasks."""

    name: ClassVar[str] = "planted"
    tunable: ClassVar[dict[str, Range]] = {"x": Range(0.0, 1.0), "y": Range(0.1, 1000.0, log=True)}
    x: Any = 0.9
    y: Any = 1.0
    num_remembered: ClassVar[int] = 1

    def place(self, groups: Any, memory: np.ndarray) -> Placement:
        share = np.abs(self.x - 0.3) + np.abs(np.log10(self.y) - 1.0) / 4
        far = memory[:, 0] < 32 * share
        memory[:, 0] += 1
        return Placement(far, np.zeros(len(memory)))


def test_tuning_finds_a_planted_best_setting(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(RULES, "planted", Planted)
    episode = [Task(0, 10.0 * turn, num_bytes=50.0) for turn in range(32)]
    tuned = tune_rule("planted", toy_world(*[episode] * 8), num_settings=64)
    assert tuned.parameters["x"] == pytest.approx(0.3, abs=0.05)
    assert tuned.parameters["y"] == pytest.approx(10.0, rel=0.3)
    assert tuned.cost < tuned.untuned_cost


@pytest.mark.parametrize("name", TUNABLE)
def test_a_tuned_rule_costs_what_it_says_and_never_more_than_untuned(name: str):
    world = small_world(num_episodes=9)
    tuned = tune_rule(name, world, seed=1, num_settings=4)
    assert tuned.untuned_cost == pytest.approx(evaluate(make_rule(name), world).cost.mean())
    assert tuned.cost == pytest.approx(evaluate(tuned.rule, world).cost.mean())
    assert tuned.cost <= tuned.untuned_cost
    for parameter, scale in RULES[name].tunable.items():
        default = getattr(make_rule(name), parameter)
        assert scale.low <= tuned.parameters[parameter] <= scale.high or tuned.parameters[parameter] == default


def test_defaults_survive_when_nothing_is_better(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(RULES, "planted", Planted)
    monkeypatch.setattr(Planted, "__init__", lambda self, x=0.3, y=10.0: vars(self).update(x=x, y=y))
    episode = [Task(0, 10.0 * turn, num_bytes=50.0) for turn in range(32)]
    tuned = tune_rule("planted", toy_world(*[episode] * 8), num_settings=2)
    assert dict(tuned.parameters) == {"x": 0.3, "y": 10.0}
    assert tuned.cost == tuned.untuned_cost


@dataclass(frozen=True)
class Trap(Rule):
    """Runs far from the data, but for x = 0.3, which does so only if the task computes."""

    name: ClassVar[str] = "trap"
    tunable: ClassVar[dict[str, Range]] = {"x": Range(0.0, 1.0)}
    x: Any = 0.3

    def place(self, groups: Any, memory: np.ndarray) -> Placement:
        computes = groups["task"][:, TaskFeature.COMPUTE] > 0
        return Placement((np.asarray(self.x) == 0.3) == computes, np.zeros(len(memory)))


def test_defaults_survive_a_bad_first_episode(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(RULES, "trap", Trap)
    first, later = [Task(0, num_bytes=50.0, flops=1.0)], [Task(0, num_bytes=50.0)]
    tuned = tune_rule("trap", toy_world(first, *[later] * 7))
    assert dict(tuned.parameters) == {"x": 0.3}


def test_a_rule_without_parameters_is_only_judged():
    world = small_world()
    tuned = tune_rule("greedy", world)
    assert tuned.cost == tuned.untuned_cost == pytest.approx(evaluate(make_rule("greedy"), world).cost.mean())


def test_tuning_on_several_machines_takes_the_mean_over_all():
    world = replace(small_world(num_episodes=3), topologies=(two_socket(), eight_socket_cube()))
    tuned = tune_rule("priced-greedy", world, num_settings=4)
    assert tuned.cost == pytest.approx(evaluate(tuned.rule, world).cost.mean())


def test_the_same_seed_tunes_alike_and_another_one_otherwise():
    world = small_world()
    first, again, other = (tune_rule("priced-greedy", world, seed, num_settings=8) for seed in (5, 5, 6))
    assert first == again
    assert first.parameters != other.parameters


def test_tuning_needs_a_setting():
    with pytest.raises(ValueError, match=r"num_settings must be >= 1, got 0"):
        tune_rule("greedy", small_world(), num_settings=0)

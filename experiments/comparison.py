"""Schedulers on the same test episodes, the cheapest first, each against the best rule."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from agents.evaluation import EpisodeResults, evaluate
from agents.oracle.beam import Oracle
from agents.oracle.comparison import percent_of_oracle
from agents.planners.base import TaskPlanner
from agents.rules.base import Rule
from agents.rules.greedy import PricedGreedy
from agents.scheduler import Planner, Scheduler
from agents.statistics import Interval, mean_interval, ratio_interval, win_rate
from agents.tuning import default_parameters
from envs.observation import Observer
from envs.world import World
from experiments.scenario import Scenario, Split
from experiments.tune import world_of
from numa_rl.simulator.simulator import Simulator

NUM_TIMED_CALLS = 200
NUM_WARM_UP_CALLS = 10


@dataclass(frozen=True, eq=False)
class Standing:
    """One scheduler's place in a comparison.

    Attributes:
        scheduler: who decided.
        results: how it fared in each episode.
        cost: mean cost per decision.
        ratio: mean cost over that of the best rule, paired by episode.
        win_rate: share of episodes with a lower cost than the best rule's; a tie counts half.
        decision_us: median time of a decision for one row, microseconds: the only figure that differs between runs.
        percent_of_oracle: the oracle's mean cost over its own, in percent; None without an oracle.
    """

    scheduler: Scheduler | Planner
    results: EpisodeResults
    cost: Interval
    ratio: Interval
    win_rate: float
    decision_us: float
    percent_of_oracle: float | None

    @property
    def name(self) -> str:
        """The scheduler's name."""
        return self.scheduler.name

    @property
    def is_rule(self) -> bool:
        """Whether it is a rule or planner, not learned."""
        return isinstance(self.scheduler, Rule | TaskPlanner)

    @property
    def verdict(self) -> str:
        """Better or worse than the best rule if the whole interval says so, else open."""
        if self.ratio.low > 1.0:
            return "worse"
        return "better" if self.ratio.high < 1.0 else "open"

    @property
    def p99_response_s(self) -> float:
        """Response time that 99 of 100 tasks do not exceed, over all episodes."""
        return self.results.pooled_p99_response_s

    @property
    def remote_ratio(self) -> float:
        """Bytes moved between nodes over all bytes, mean over episodes."""
        return float(self.results.remote_ratio.mean())

    @property
    def migrations_per_100(self) -> float:
        """Objects moved, per 100 decisions."""
        return float(100.0 * self.results.migrations.sum() / self.results.response_s.size)

    @property
    def load_balance(self) -> float:
        """B_load = 1 - Imbalance, mean over episodes."""
        return float(self.results.load_balance.mean())

    @property
    def out_of_memory(self) -> int:
        """Tasks dropped in all episodes."""
        return int(self.results.out_of_memory.sum())

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values, arrays by episode."""
        parameters = {f.name: getattr(self.scheduler, f.name) for f in fields(self.scheduler)} if self.is_rule else None  # type: ignore[arg-type]
        results = self.results
        by_episode = {
            f.name: getattr(results, f.name).tolist()
            for f in fields(results)
            if f.name not in ("response_s", "machine", "metrics")
        }
        by_episode |= {name: values.tolist() for name, values in results.metrics.items()}
        return {
            "name": self.name,
            "rule": self.is_rule,
            "parameters": parameters,
            "cost": _interval_dict(self.cost),
            "ratio_to_best_rule": _interval_dict(self.ratio),
            "verdict": self.verdict,
            "win_rate": self.win_rate,
            "percent_of_oracle": self.percent_of_oracle,
            "p99_response_s": self.p99_response_s,
            "remote_ratio": self.remote_ratio,
            "migrations_per_100_decisions": self.migrations_per_100,
            "load_balance_mean": self.load_balance,
            "out_of_memory": self.out_of_memory,
            "decision_us": self.decision_us,
            "metrics_median": results.median_metrics,
            "by_episode": by_episode | {"p99_response_s": results.p99_response_s.tolist()},
        }


def _interval_dict(interval: Interval) -> dict[str, float]:
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Schedulers on the same test episodes, the cheapest first.

    Attributes:
        scenario: what was played.
        num_episodes: how many test episodes.
        seed: of the episodes and of the bootstrap.
        standings: one for each scheduler, by mean cost.
        oracle: mean cost of who knew all arrivals; None if nobody did.
    """

    scenario: Scenario
    num_episodes: int
    seed: int
    standings: tuple[Standing, ...]
    oracle: Interval | None = None

    @property
    def best_rule(self) -> Standing:
        """The rule with the lowest mean cost on these episodes."""
        return next(standing for standing in self.standings if standing.is_rule)

    @property
    def learned(self) -> tuple[Standing, ...]:
        """Those that are not rules."""
        return tuple(standing for standing in self.standings if not standing.is_rule)

    def against_rules(self, standing: Standing) -> dict[str, Interval]:
        """Its mean cost over each rule's, paired by episode, the cheapest rule first."""
        return {
            rule.name: ratio_interval(standing.results.cost, rule.results.cost, np.random.default_rng(self.seed))
            for rule in self.standings
            if rule.is_rule
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        learned = {
            standing.name: {name: _interval_dict(ratio) for name, ratio in self.against_rules(standing).items()}
            for standing in self.learned
        }
        return {
            "scenario": self.scenario.name,
            "scenario_hash": self.scenario.content_hash,
            "machine": self.scenario.topology.name,
            "episodes": self.num_episodes,
            "decisions_per_episode": self.best_rule.results.response_s.shape[1],
            "seed": self.seed,
            "best_rule": self.best_rule.name,
            "learned_to_rules": learned,
            "oracle_cost": None if self.oracle is None else _interval_dict(self.oracle),
            "schedulers": [standing.to_dict() for standing in self.standings],
        }


def compare(
    scenario: Scenario,
    schedulers: Sequence[Scheduler | Planner],
    num_episodes: int = 64,
    seed: int = 0,
    *,
    oracle_width: int | None = None,
    on_scheduler: Callable[[str], None] = lambda name: None,
) -> Comparison:
    """Play the same test episodes with every scheduler.

    The best rule is chosen on these very episodes, which flatters it, never what is compared with it.

    Args:
        scenario: what is played.
        schedulers: who decides; at least one rule, each with a name of its own.
        num_episodes: how many test episodes.
        seed: of the episodes and of the bootstrap.
        oracle_width: of the beam of an oracle that plays as well; without one, none does.
        on_scheduler: called with each scheduler's name before it plays.

    Raises:
        ValueError: no rule among the schedulers, two of one name, or a count out of range.
    """
    names = [scheduler.name for scheduler in schedulers]
    if len(set(names)) < len(names):
        raise ValueError(f"schedulers must differ in name, got {', '.join(names)}.")
    if not any(isinstance(scheduler, Rule) for scheduler in schedulers):
        raise ValueError(f"a comparison needs at least one rule, got {', '.join(names) or 'no scheduler'}.")
    world = world_of(scenario, Split.TEST, num_episodes, seed)
    results: dict[str, EpisodeResults] = {}
    for scheduler in schedulers:
        on_scheduler(scheduler.name)
        results[scheduler.name] = evaluate(scheduler, world)
    rules = [scheduler.name for scheduler in schedulers if isinstance(scheduler, Rule | TaskPlanner)]
    best = min(rules, key=lambda name: results[name].cost.mean())
    known = None
    if oracle_width is not None:
        on_scheduler(Oracle.name)
        known = evaluate(_oracle(scenario, schedulers, results, oracle_width), world)
    standings = [
        _standing(scheduler, results[scheduler.name], results[best], known, world, seed) for scheduler in schedulers
    ]
    standings.sort(key=lambda standing: (standing.cost.estimate, standing.name))
    oracle_cost = None if known is None else mean_interval(known.cost, np.random.default_rng(seed))
    return Comparison(scenario, num_episodes, seed, tuple(standings), oracle_cost)


def _oracle(
    scenario: Scenario, schedulers: Sequence[Scheduler | Planner], results: Mapping[str, EpisodeResults], width: int
) -> Oracle:
    """The oracle, which looks ahead by the priced greedy rule as tuned, and takes plans of who was best somewhere."""
    default = PricedGreedy(**default_parameters(PricedGreedy.name, scenario.reward))
    rule = next((scheduler for scheduler in schedulers if isinstance(scheduler, PricedGreedy)), default)
    best = np.unique(np.argmin([results[scheduler.name].cost for scheduler in schedulers], axis=0))
    return Oracle(rule, tuple(schedulers[index] for index in best), width)


def _standing(
    scheduler: Scheduler | Planner,
    results: EpisodeResults,
    best: EpisodeResults,
    oracle: EpisodeResults | None,
    world: World,
    seed: int,
) -> Standing:
    return Standing(
        scheduler,
        results,
        cost=mean_interval(results.cost, np.random.default_rng(seed)),
        ratio=ratio_interval(results.cost, best.cost, np.random.default_rng(seed)),
        win_rate=win_rate(results.cost, best.cost),
        decision_us=decision_us(scheduler, world),
        percent_of_oracle=None if oracle is None else percent_of_oracle(results.cost, oracle.cost),
    )


def decision_us(scheduler: Scheduler | Planner, world: World) -> float:
    """Median time of a decision for one row, microseconds, over the first tasks of the first episode.

    Of a planner it is the time for the whole plan over its tasks.
    """
    if isinstance(scheduler, Planner):
        before, first = time.perf_counter(), np.zeros(1, np.int64)
        scheduler.plan(world, first, first)
        return (time.perf_counter() - before) * 1e6 / world.workload.num_tasks
    simulator = Simulator(world.topologies, world.workload, 1, window_s=world.window_s)
    observer = Observer(simulator, world.weights, world.observation)
    simulator.reset(0)
    state, start, times = None, np.ones(1, bool), []
    for _ in range(min(NUM_WARM_UP_CALLS + NUM_TIMED_CALLS, world.workload.num_tasks)):
        observation = observer.observe()
        before = time.perf_counter()
        actions, state = scheduler.predict(observation, state=state, episode_start=start, deterministic=True)
        times.append(time.perf_counter() - before)
        simulator.step(actions)
        start = np.zeros(1, bool)
    timed = times[NUM_WARM_UP_CALLS:] or times
    return float(np.median(timed) * 1e6)

"""Comparing schedulers on the same test episodes, losers first."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from agents.evaluation import EpisodeResults, evaluate
from agents.lookahead import Lookahead
from agents.lookahead_scores import LogitScores
from agents.oracle.beam import Oracle
from agents.oracle.comparison import percent_of_oracle
from agents.planners.base import TaskPlanner
from agents.planners.catalog import make_planner, planner_names
from agents.rules.base import Rule
from agents.rules.greedy import PricedGreedy
from agents.scheduler import Planner, Scheduler
from agents.shipped import policy_file
from agents.statistics import Interval, mean_interval, ratio_interval, win_rate
from agents.tuning import TunedRule, default_parameters
from envs.observation import Observer
from envs.world import World
from experiments.files import require_outputs, write_json
from experiments.scenario import Scenario, Split, load_scenario
from experiments.shielding import load_shield
from experiments.tune import load_or_tune, require_at_least, world_of
from numa_rl.simulator.simulator import Simulator

NUM_TIMED_CALLS = 200
NUM_WARM_UP_CALLS = 10
NAMED_RULES = ("greedy", "migration-score", "priced-greedy")  # against which the summary names every interval
COST_COLUMNS = ("cost", "of best rule", "of oracle", "wins")  # first table where one does not fit


@dataclass(frozen=True)
class Compare:
    """Compare all rules, tuned, and a learned policy on test episodes that neither tuning nor training ever saw.

    Attributes:
        scenario: a scenario's name, or the path of its TOML file.
        policy: a learned policy, as `train` saves it; the one that comes with the package by default.
        no_policy: compare rules alone.
        shield: let the policy play again under a shield: the tuned priced greedy rule decides where the policy is not
            sure to be better, and it is held to a budget against that rule.
        lookahead: let the policy play again, trying placements in the model before each decision.
        episodes: how many test episodes; all schedulers play the same ones.
        json: a file for all results, each episode's cost included.
        plot: a PNG file for the costs with their intervals.
        oracle: compare with an oracle, who knows all arrivals: the width of its beam; 2 is enough for most purposes.
        seed: of the test episodes and of the bootstrap. Rules are tuned by seed 0 whatever this is.
    """

    scenario: str
    policy: Path | None = None
    no_policy: bool = False
    shield: bool = False
    lookahead: bool = False
    episodes: int = 64
    json: Path | None = None
    plot: Path | None = None
    oracle: int | None = None
    seed: int = 0

    def run(self) -> None:
        """Play and print.

        Raises:
            ValueError: no such scenario or policy, a count out of range, or a file cannot be written.
        """
        scenario = load_scenario(self.scenario)
        require_at_least(1, self.episodes, "--episodes")
        require_at_least(0, self.seed, "--seed")
        if self.oracle is not None:
            require_at_least(1, self.oracle, "--oracle")
        policy = policy_file(self.policy, self.no_policy)
        for option, wanted in (("--lookahead", self.lookahead), ("--shield", self.shield)):
            if wanted and policy is None:
                raise ValueError(f"{option} needs a policy, got --no-policy.")
        require_outputs(
            {"--json": self.json, "--plot": self.plot}, {"--policy": policy, "--scenario": Path(self.scenario)}
        )
        if self.plot is not None and self.plot.suffix.lower() != ".png":
            raise ValueError(f"--plot must be a .png file, got {str(self.plot)!r}.")
        console = Console()
        learned = [] if policy is None else [load_learned(policy, scenario, console)]
        with console.status("") as status:
            tuned = load_or_tune(scenario, on_rule=lambda name: status.update(f"tuning {name}"))
            known: list[Scheduler | Planner] = [*(entry.rule for entry in tuned), *planners_for(scenario)]
            looking = [looking_ahead(policy, known) for policy in learned if self.lookahead]
            comparison = compare(
                scenario,
                [*known, *learned, *looking, *self._shielded(policy, tuned)],
                self.episodes,
                self.seed,
                oracle_width=self.oracle,
                on_scheduler=lambda name: status.update(f"playing {name}"),
            )
        if self.json is not None:
            write_json(self.json, comparison.to_dict())
        if self.plot is not None:
            from experiments.plots import plot_costs  # matplotlib takes a second

            plot_costs(comparison, self.plot)
        print_comparison(comparison, console)

    def _shielded(self, policy: Path | None, tuned: Sequence[TunedRule]) -> list[Planner]:
        """The policy under its shield, where that is asked for."""
        if policy is None or not self.shield:
            return []
        rules = (entry.rule for entry in tuned)
        return [load_shield(policy, next(rule for rule in rules if isinstance(rule, PricedGreedy)))]


def planners_for(scenario: Scenario) -> list[Planner]:
    """Every planner where an episode is one graph of tasks, known in advance; none where tasks or graphs arrive."""
    graph = scenario.episodes(Split.TUNE, 1).is_one_graph
    return [make_planner(name) for name in planner_names()] if graph else []


def looking_ahead(policy: Scheduler, others: Sequence[Scheduler | Planner]) -> Lookahead:
    """The policy that tries placements in the model; rules as tuned say what follows, and lend it plans of graphs."""
    rule = next(other for other in others if isinstance(other, PricedGreedy))
    return Lookahead(LogitScores(policy), rule, tuple(others))


def load_learned(path: Path, scenario: Scenario, console: Console) -> Scheduler:
    """The policy in a file, with a word on the console where it was trained on something else than the scenario.

    Torch takes a second to import, so only who needs it waits.

    Raises:
        ValueError: the file is missing, damaged, or no policy.
    """
    import torch

    from agents.ppo.storage import load_policy

    torch.set_num_threads(1)  # the networks are small: more threads only wait for each other
    policy, about = load_policy(path)
    if about.get("scenario_hash") != scenario.content_hash:
        trained_on = about.get("scenario", "an unknown scenario")
        where = "the standard suite" if trained_on == "suite" else trained_on
        console.print(f"The policy was trained on {where}, not on {scenario.name} as it is.", highlight=False)
    return policy


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


def summary(comparison: Comparison) -> list[str]:
    """What the comparison says in words: the learned policy against the best rule, then who is worse."""
    best = comparison.best_rule
    lines = []
    words = {"better": "beats", "worse": "is worse than", "open": "is not told apart from"}
    for standing in comparison.learned:
        gap, low, high = (_percent(value) for value in _values(standing.ratio))
        lines.append(
            f"{standing.name} {words[standing.verdict]} the best tuned rule, {best.name}: "
            f"cost {gap} (95% interval {low} to {high})."
        )
        against = [
            f"{name} {_percent(ratio.estimate)} ({_percent(ratio.low)} to {_percent(ratio.high)})"
            for name, ratio in comparison.against_rules(standing).items()
            if name in NAMED_RULES and name != best.name
        ]
        if against:
            lines.append(f"{standing.name} against the others: {', '.join(against)}.")
    others = [standing for standing in reversed(comparison.standings) if standing is not best]
    worse = [standing.name for standing in others if standing.verdict == "worse"]
    close = [standing.name for standing in others if standing.verdict == "open" and standing.is_rule]
    if worse:
        lines.append(f"Worse than the best rule, {best.name}: {', '.join(worse)}.")
    if close:
        lines.append(f"Not told apart from {best.name}: {', '.join(close)}.")
    if comparison.oracle is not None:
        lines.append(f"The oracle, which knows all arrivals, costs {comparison.oracle.estimate:.3g} a decision.")
    return lines


def _percent(ratio: float) -> str:
    """How much more than 1 a ratio is."""
    return f"{100.0 * (ratio - 1.0):+.1f}%"


def _values(interval: Interval) -> tuple[float, float, float]:
    return interval.estimate, interval.low, interval.high


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the summary and the table; a terminal too narrow for one table gets two."""
    for line in summary(comparison):
        console.print(line, highlight=False, markup=False)
    columns = _columns(comparison)
    table = _table(comparison, columns)
    unbounded = console.options.update(width=1000)
    if console.measure(table, options=unbounded).maximum <= console.width:
        console.print(table)
    else:
        costs = [name for name in columns if name in COST_COLUMNS]
        for half in (costs, [name for name in columns if name not in COST_COLUMNS]):
            console.print(_table(comparison, {name: columns[name] for name in half}))
    console.print(
        f"{comparison.scenario.name}: {comparison.num_episodes} test episodes of "
        f"{comparison.best_rule.results.response_s.shape[1]} decisions on {comparison.scenario.topology.name}; "
        "mean [95% bootstrap interval], paired by episode. "
        + ("of oracle: the oracle's mean cost over one's own; " if comparison.oracle is not None else "")
        + "wins: episodes cheaper than with the best rule, ties half; "
        "p99: response time; remote: share of bytes between nodes; moves: migrations; "
        "B_load: 1 - sigma / mu of the nodes' outstanding work; OOM: tasks dropped; us: time of one decision.",
        style="dim",
        highlight=False,
        markup=False,
    )


def _columns(comparison: Comparison) -> Mapping[str, list[str]]:
    """Cells of each column, one for each scheduler."""
    columns: dict[str, list[str]] = {}
    for standing in comparison.standings:
        percent = standing.percent_of_oracle
        cells = {
            "cost": _cell(standing.cost),
            "of best rule": _cell(standing.ratio),
            **({"of oracle": f"{percent:.1f}%"} if percent is not None else {}),
            "wins": f"{standing.win_rate:.0%}" if standing is not comparison.best_rule else "-",
            "p99 s": f"{standing.p99_response_s:.3g}",
            "remote": f"{standing.remote_ratio:.0%}",
            "moves/100": f"{standing.migrations_per_100:.1f}",
            "B_load": f"{standing.load_balance:.2f}",
            "OOM": str(standing.out_of_memory),
            "us": f"{standing.decision_us:.0f}",
        }
        for name, cell in cells.items():
            columns.setdefault(name, []).append(cell)
    return columns


def _cell(interval: Interval) -> str:
    """An estimate and its interval in a few characters."""
    digits = 2 if interval.estimate < 10.0 else 1 if interval.estimate < 100.0 else 0
    estimate, low, high = (f"{value:.{digits}f}" for value in _values(interval))
    return f"{estimate} \\[{low}, {high}]"


def _table(comparison: Comparison, columns: Mapping[str, list[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("scheduler", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for standing, *cells in zip(comparison.standings, *columns.values(), strict=True):
        if standing.is_rule:
            style = "bold" if standing is comparison.best_rule else ""
        else:
            style = {"better": "bold green", "worse": "bold red", "open": "bold yellow"}[standing.verdict]
        table.add_row(standing.name, *cells, style=style)
    return table

"""Comparing all rules, tuned, and a learned policy on test episodes, from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from agents.lookahead import Lookahead
from agents.lookahead_scores import LogitScores
from agents.planners.catalog import make_planner, planner_names
from agents.rules.greedy import PricedGreedy
from agents.scheduler import Planner, Scheduler
from agents.shipped import policy_file
from agents.tuning import TunedRule
from experiments.comparison import compare
from experiments.comparison_report import print_comparison
from experiments.files import require_outputs, write_json
from experiments.scenario import Scenario, Split, load_scenario
from experiments.shielding import load_shield
from experiments.tune import load_or_tune, require_at_least


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

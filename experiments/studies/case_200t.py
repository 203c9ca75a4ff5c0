"""The chapter's case study in the simulator: from pure data parallelism to the hybrid, then who decides best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from agents.rules.base import Rule
from agents.rules.catalog import make_rule, rule_names
from agents.scheduler import Planner, Scheduler
from agents.tuning import default_parameters
from experiments.compare import load_learned, planners_for
from experiments.files import require_outputs, write_json
from experiments.scenario import Scenario, load_scenario
from experiments.studies.configurations import training_of
from experiments.studies.imitation_config import ImitationConfig
from experiments.studies.printed import IMPLIED_GAINS
from experiments.studies.report import print_contradictions, print_rows, print_scaling, print_sensitivity, print_splits
from experiments.studies.rows import Kind, Row, best
from experiments.studies.scaling import Point, Sensitivity, scaling, sensitivity
from experiments.studies.study import OnStep, Play, play_schedulers, play_splits, play_steps, targets
from experiments.studies.timing import Figures
from experiments.tune import load_or_tune, require_at_least

SCENARIO = "case-200t"
TUNING_EPISODES, TUNING_SETTINGS = 4, 16  # a minute; `tune` takes more


@dataclass(frozen=True)
class Case200T:
    """Play the chapter's case study step by step, next to its printed figures; then all rules and a learned policy.

    Attributes:
        policy: a learned policy, as `train` saves it; without one, it is trained first, which takes minutes.
        skip_learned: leave the learned policy out.
        untuned: rules with their default parameters; else with those that `tune` found, or tuned briefly here.
        episodes: how many test episodes.
        seed: of the episodes.
        json: a file for all figures.
        plot: a PNG file for core time and scaling.
        out: the file for the policy that is trained.
        scenario: the hybrid configuration: a scenario's name, or the path of its TOML file.
        imitation: how it is taught.
    """

    policy: Path | None = None
    skip_learned: bool = False
    untuned: bool = False
    episodes: int = 8
    seed: int = 0
    json: Path | None = None
    plot: Path | None = None
    out: Path = Path("runs") / SCENARIO / "policy.safetensors"
    scenario: str = SCENARIO
    imitation: ImitationConfig = field(default_factory=ImitationConfig)

    def run(self) -> None:
        """Play and print.

        Raises:
            ValueError: no such scenario or policy, one that the study cannot play, a count out of range, or a file that
                cannot be written.
        """
        require_at_least(1, self.episodes, "--episodes")
        require_at_least(0, self.seed, "--seed")
        if self.skip_learned and self.policy is not None:
            raise ValueError("--skip-learned leaves out what --policy gives: only one of them can be given.")
        scenario = load_scenario(self.scenario)
        training_of(scenario)
        inputs = {"--policy": self.policy, "--scenario": Path(self.scenario)}
        require_outputs({"--json": self.json, "--plot": self.plot, "--out": self.out}, inputs)
        if self.plot is not None and self.plot.suffix.lower() != ".png":
            raise ValueError(f"--plot must be a .png file, got {str(self.plot)!r}.")
        console = Console()
        learned = self._learned(scenario, console)
        with console.status("") as status:
            study = run_study(scenario, Play(self.episodes, self.seed, on_step=status.update), learned, self.untuned)
        if self.json is not None:
            write_json(self.json, study.to_dict())
        if self.plot is not None:
            from experiments.studies.case_plot import plot_study  # matplotlib takes a second

            plot_study(study.drawn, study.points, self.plot)
        print_study(study, console)

    def _learned(self, scenario: Scenario, console: Console) -> list[Scheduler]:
        """The learned policy: none, the given one, or one that is trained now."""
        if self.skip_learned:
            return []
        path = self.policy
        if path is None:
            from experiments.studies.teaching import teach  # torch takes seconds

            teach(scenario, self.imitation, self.out, console)
            path = self.out
        return [load_learned(path, scenario, console)]


@dataclass(frozen=True)
class Study:
    """All that was measured.

    Attributes:
        scenario: the hybrid configuration.
        num_episodes: test episodes.
        seed: of these.
        rows: the table: the chapter's four configurations, then who decides on the last one.
        splits: every split of the work, the fastest first, on tuning episodes.
        points: of both scalings.
        sensitivities: to the inputs.
    """

    scenario: Scenario
    num_episodes: int
    seed: int
    rows: tuple[Row, ...]
    splits: dict[str, Figures]
    points: tuple[Point, ...]
    sensitivities: tuple[Sensitivity, ...]

    @property
    def hand_tuned(self) -> Row:
        """The chapter's last configuration."""
        return [row for row in self.rows if row.kind is Kind.STEP][-1]

    @property
    def learned(self) -> Row | None:
        """The learned policy's row, where there is one."""
        return best(self.rows, [Kind.LEARNED])

    @property
    def drawn(self) -> list[Row]:
        """The rows of the figure: the chapter's, the best rule, the learned policy."""
        steps = [row for row in self.rows if row.kind is Kind.STEP]
        others = (best(self.rows, [Kind.RULE]), self.learned)
        return [*steps, *(row for row in others if row is not None)]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "scenario": self.scenario.name,
            "scenario_hash": self.scenario.content_hash,
            "machine": self.scenario.topology.name,
            "episodes": self.num_episodes,
            "seed": self.seed,
            "rows": [row.to_dict() for row in self.rows],
            "splits": {name: figures.to_dict() for name, figures in self.splits.items()},
            "scaling": [point.to_dict() for point in self.points],
            "sensitivity": [each.to_dict() for each in self.sensitivities],
            "chapter_gains": IMPLIED_GAINS,
            "targets": targets(self.hand_tuned, self.learned),
        }


def run_study(scenario: Scenario, play: Play, learned: Sequence[Scheduler] = (), untuned: bool = False) -> Study:
    """Play everything.

    Args:
        scenario: the hybrid configuration.
        play: which episodes.
        learned: policies to play on it.
        untuned: whether rules have their default parameters.
    """
    rows = play_steps(scenario, play)
    splits = play_splits(scenario, play)
    deciders: list[tuple[Kind, Scheduler | Planner]] = [
        *((Kind.RULE, rule) for rule in _rules(scenario, untuned, play.on_step)),
        *((Kind.PLANNER, planner) for planner in planners_for(scenario)),
        *((Kind.LEARNED, policy) for policy in learned),
    ]
    play_schedulers(scenario, play, rows, deciders)
    points, sensitivities = scaling(scenario, play), sensitivity(scenario, play)
    return Study(scenario, play.num_episodes, play.seed, tuple(rows.made), splits, tuple(points), tuple(sensitivities))


def _rules(scenario: Scenario, untuned: bool, on_step: OnStep) -> list[Scheduler]:
    """Every rule, with its default parameters or tuned for the scenario."""
    if untuned:
        return [
            make_rule(name, **default_parameters(name, scenario.reward, (scenario.topology,))) for name in rule_names()
        ]
    return list(tuned_rules(scenario, on_step))


def tuned_rules(scenario: Scenario, on_step: OnStep = lambda text: None) -> list[Rule]:
    """Every rule as it was tuned for the scenario, now if it never was."""
    tuned = load_or_tune(
        scenario,
        num_episodes=TUNING_EPISODES,
        num_settings=TUNING_SETTINGS,
        on_rule=lambda name: on_step(f"tuning {name}"),
    )
    return [entry.rule for entry in tuned]


def print_study(study: Study, console: Console) -> None:
    """Print all tables, and what they show."""
    scenario, family = study.scenario, training_of(study.scenario)
    console.print(
        f"[bold]{scenario.description}[/bold]\n{family.layers} layers of width {family.width}, "
        f"{family.model.parameters / 1e9:.2g} billion parameters; {family.micro_batches} micro-batches of "
        f"{family.micro_batch_tokens:.0f} tokens a step; {scenario.topology.name}; means over {study.num_episodes} "
        "test episodes.",
        highlight=False,
    )
    print_rows(study.rows, console)
    print_contradictions(console)
    print_splits(study.splits, console)
    print_scaling(study.points, console)
    print_sensitivity(study.sensitivities, console)
    for target, met in targets(study.hand_tuned, study.learned).items():
        console.print(f"{target}: {'met' if met else 'not met'}", style="green" if met else "bold red")

"""The main job in one command: train on a real machine's preset, compare with every rule, show where all is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from agents.ppo.config import TrainingConfig
from experiments.comparison import compare
from experiments.comparison_report import print_comparison
from experiments.files import write_json
from experiments.scenario import load_scenario
from experiments.train import Train, prepare, train_policy
from experiments.tune import load_or_tune, require_at_least

SCENARIO = "llm-r815"


@dataclass(frozen=True)
class Demo:
    """Train a placement policy for LLM serving on an eight-node server, and compare it with every rule.

    Attributes:
        episodes: how many test episodes to compare on.
        out: folder of the run, started anew.
        config: how to train.
    """

    episodes: int = 128
    out: Path = Path("runs") / "demo"
    config: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(default_factory=TrainingConfig)

    def run(self) -> None:
        """Train, compare, write, and say where."""
        require_at_least(1, self.episodes, "--episodes")

        from agents.ppo.storage import load_policy  # torch takes seconds, matplotlib one
        from experiments.plots import plot_costs

        console = Console()
        scenario = load_scenario(SCENARIO)
        console.print(f"[bold]{scenario.description}[/bold]", highlight=False)
        train = Train(scenario=SCENARIO, overwrite=True, config=self.config)
        prepare(self.out, train)
        policy_path = train_policy(train, self.out, console)
        with console.status("") as status:
            rules = [entry.rule for entry in load_or_tune(scenario)]
            comparison = compare(
                scenario,
                [*rules, load_policy(policy_path)[0]],
                self.episodes,
                0,
                on_scheduler=lambda name: status.update(f"playing {name}"),
            )
        results = Path("results") / scenario.name
        write_json(results / "comparison.json", comparison.to_dict())
        plot_costs(comparison, results / "costs.png")
        print_comparison(comparison, console)
        console.print(
            f"Policy       {policy_path}\n"
            f"Table        {results / 'comparison.json'}\n"
            f"Plot         {results / 'costs.png'}\n"
            f"TensorBoard  .venv/bin/tensorboard --logdir {self.out.parent}",
            highlight=False,
            soft_wrap=True,
        )

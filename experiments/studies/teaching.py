"""Making the case study's learned policy: episodes, teacher, file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from agents.ppo.storage import save_policy
from agents.rules.base import Rule
from agents.rules.greedy import PricedGreedy
from experiments.scenario import Scenario, Split
from experiments.studies.configurations import training_of
from experiments.studies.imitation import imitate
from experiments.studies.imitation_config import ImitationConfig
from experiments.train import git_revision
from experiments.tune import world_of

TRAIN_EPISODES, VALIDATION_EPISODES = 32, 4


def teach(scenario: Scenario, config: ImitationConfig, rules: Sequence[Rule], path: Path, console: Console) -> None:
    """Teach a policy and write it to a file.

    Args:
        scenario: what it learns.
        config: how.
        rules: the tuned ones, priced greedy among them: its prior.
        path: the file.
        console: what is told of each round.
    """
    prior = next(rule for rule in rules if isinstance(rule, PricedGreedy))

    def told(number: int, agreement: float, seconds: float) -> None:
        console.print(
            f"round {number + 1}/{config.rounds}: as the teacher {agreement:.1%}, validation episodes {seconds:.4g} s",
            highlight=False,
        )

    with console.status("teaching the policy"):
        policy = imitate(
            world_of(scenario, Split.TRAIN, TRAIN_EPISODES, 0),
            world_of(scenario, Split.VALIDATION, VALIDATION_EPISODES, 0),
            training_of(scenario),
            prior,
            config,
            told,
        )
    about = {"scenario": scenario.name, "scenario_hash": scenario.content_hash, "imitation": asdict(config)}
    save_policy(path, policy, about | {"git_revision": git_revision()})

"""Making the case study's learned policy: episodes, teacher, file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from agents.ppo.storage import save_policy
from agents.rules.greedy import PricedGreedy
from experiments.scenario import Scenario, Split
from experiments.studies.configurations import training_of
from experiments.studies.imitation import imitate
from experiments.studies.imitation_config import ImitationConfig
from experiments.train import git_revision
from experiments.tune import world_of

TRAIN_EPISODES, VALIDATION_EPISODES = 16, 4
# The prices with the shortest tuning episodes on a grid; tuning by cost finds others, under which steps take longer.
CONGESTION_PRICE, CROWDING_PRICE, MIGRATION_SHARE = 0.3, 0.0, 1.0


def teach(scenario: Scenario, config: ImitationConfig, path: Path, console: Console) -> None:
    """Teach a policy and write it to a file.

    Args:
        scenario: what it learns.
        config: how.
        path: the file.
        console: what is told of each round.
    """
    prior = PricedGreedy(
        congestion_price=CONGESTION_PRICE,
        crowding_price=CROWDING_PRICE,
        migration_share=MIGRATION_SHARE,
        alpha=scenario.reward.alpha,
    )

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
    save_policy(path, policy.scorer, about | {"git_revision": git_revision()})

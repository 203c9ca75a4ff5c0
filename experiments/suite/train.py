"""Training on the whole suite: one policy for all its training families and machines, and for machines drawn at random.

The prior is the priced greedy rule with the one setting that serves the suite best; it is also what the policy is
judged against while it learns, on validation episodes of every training cell.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from agents.ppo.config import TrainingConfig, as_json
from agents.ppo.course import Course
from agents.ppo.training import Progress
from agents.rules.greedy import PricedGreedy
from experiments.suite.cache import Cache
from experiments.suite.definition import STANDARD, read_definition
from experiments.suite.lessons import SuiteLessons, suite_exams
from experiments.suite.tuning import tune_suite
from experiments.suite.work import run_pieces

CACHE = Path("results") / "suite" / "cache"  # shared with `numa-rl suite`
SEED = 0  # of episodes for tuning, as `numa-rl suite` has it


def suite_course(
    config: TrainingConfig,
    validation_episodes: int,
    folder: Path,
    console: Console,
    on_progress: Callable[[Progress], None],
    git_revision: str | None,
) -> Course:
    """A run on the standard suite.

    Args:
        config: how; of its phases the teacher's.
        validation_episodes: of all training cells together, at least one each.
        folder: of the run.
        console: told what takes time.
        on_progress: called after every update.
        git_revision: of the code.
    """
    definition = read_definition(STANDARD)
    seen = [cell for cell in definition.cells() if not cell.held_out]
    cells = definition.cells() if config.teacher.held_out else seen
    name = PricedGreedy.name
    with console.status("tuning priced greedy") as status:
        tuned = tune_suite(
            seen, [name], definition.counts, SEED, lambda pieces: run_pieces(pieces, Cache(CACHE), os.cpu_count() or 1)
        )
        single = tuned.single[name]
        exams = suite_exams(
            cells, single, -(-validation_episodes // len(cells)), lambda cell: status.update(f"playing {cell}")
        )
    setting = ", ".join(f"{key} {value:.3g}" for key, value in single.items())
    console.print(
        f"{definition.description}: {len(cells)} cells to teach. Prior: {name} with one setting for all, {setting}.",
        highlight=False,
        soft_wrap=True,
    )
    prices = {cell: rules[name] for cell, rules in tuned.by_cell.items()} | {"": single}
    teacher = config.teacher
    lessons = SuiteLessons(definition, cells, prices, config.seed, teacher.lessons, teacher.drawn_share)
    about = {
        "scenario": "suite",
        "cells": {cell.name: cell.scenario.content_hash for cell in cells},
        "training": as_json(config),
    }
    rule = PricedGreedy(**single)
    return Course(lessons, exams, rule, config, folder, about, on_progress, git_revision=git_revision)

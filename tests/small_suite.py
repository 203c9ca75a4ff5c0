"""A suite that takes a moment: two families on three machines, one of each held out."""

from __future__ import annotations

from pathlib import Path

from experiments.suite.definition import Definition, read_definition

TOML = """
description = "Small"

[counts]
test_episodes = 3
tune_episodes = 2
oracle_episodes = 2
load_episodes = 8
settings = 2
refinements = 1

[machines]
chapter-2-socket = "training"
chapter-4-socket = "training"
cxl-expander = "held out"

[families.stream]
role = "training"
load = 0.6
rates = "tasks_per_s"
durations = "burst_s"
window_tasks = 4.0

[families.stream.workload]
family = "synthetic"
num_tasks = 16

[families.graph]
role = "held out"
load = 0.5
durations = "mean_gap_s"
window_tasks = 1.7

[families.graph.workload]
family = "all-reduce"
num_ranks = 2
num_steps = 1
"""
RULES = ("first-touch", "shortest-queue", "greedy")  # one of them with something to tune


def write_definition(folder: Path, *changes: tuple[str, str]) -> Path:
    """The suite's file, with some of its text changed."""
    text = TOML
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = folder / "small.toml"
    path.write_text(text)
    return path


def small(folder: Path, *changes: tuple[str, str]) -> Definition:
    """The suite."""
    return read_definition(write_definition(folder, *changes))

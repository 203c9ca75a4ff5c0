"""How long one decision takes: the policy in each of its forms, and the rule that it starts from.

From observation to action, for one row at a time on one core; and how many decisions a second in batches.

Dimension key: B rows, N nodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from agents.rules.greedy import PricedGreedy
from envs.observation import ObservationLayout
from envs.observation_kernel import OBSERVATION_LIMIT, Float32

CALLS = 2000  # timed, of a form that decides one row at a time
WARM_UP_CALLS = 50
SPREAD = 0.1  # of the random numbers

Decide = Callable[[Float32], Any]


def decision_times(observations: Float32, runs: int) -> dict[str, dict[str, float]]:
    """How long forms of a policy take, by their names.

    The network is of the default configuration with random weights; others take as long.

    Args:
        observations: states to decide in, shape (B, size).
        runs: repetitions of the batch; the median counts.

    Returns:
        For each form, `p50_us` and `p99_us` of a decision at batch 1, and `batch_per_s`, decisions in a second when
        all rows are decided at once. ONNX Runtime is left out where it is not installed.
    """
    times = {}
    with TemporaryDirectory() as folder:
        for name, decide in _forms(ObservationLayout.of_size(observations.shape[1]), Path(folder)).items():
            p50, p99 = np.percentile(_seconds_each(decide, observations), [50, 99])
            rate = len(observations) / float(np.median(_seconds_of_batch(decide, observations, runs)))
            times[name] = {"p50_us": 1e6 * float(p50), "p99_us": 1e6 * float(p99), "batch_per_s": rate}
    return times


def _forms(layout: ObservationLayout, folder: Path) -> dict[str, Decide]:
    """What decides, by name."""
    from agents.ppo.storage import LearnedScheduler  # torch takes a second
    from experiments.export_forms import write_numpy, write_onnx

    scorer, rule = _untrained(), PricedGreedy()
    placement = _placement_policy(layout, scorer)
    forms: dict[str, Decide] = {
        "Stable-Baselines3's predict": lambda rows: placement.predict(rows, deterministic=True),
        "numpy alone": write_numpy(folder, scorer).decide,
    }
    if _has_onnx():
        forms["ONNX Runtime"] = write_onnx(folder, scorer, layout.num_nodes).decide
    return forms | {"compiled": LearnedScheduler(scorer).predict, rule.name: rule.predict}


def _has_onnx() -> bool:
    return all(find_spec(name) is not None for name in ("onnx", "onnxruntime"))


def _untrained() -> Any:
    """A network with random numbers added to its first weights, so that none is zero."""
    import torch

    from agents.ppo.config import PolicyConfig
    from agents.ppo.scorers import make_scorer

    scorer = make_scorer(PolicyConfig())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=SPREAD)
    return scorer


def _placement_policy(layout: ObservationLayout, scorer: Any) -> Any:
    """The same network as Stable-Baselines3 plays it."""
    from gymnasium import spaces

    from agents.ppo.policy import PlacementPolicy

    box_of_rows = spaces.Box(0.0, float(OBSERVATION_LIMIT), (layout.size,), np.float32)
    pairs = spaces.MultiDiscrete([layout.num_nodes] * 2)
    policy = PlacementPolicy(box_of_rows, pairs, lambda _: 0.0, config=scorer.config)
    policy.scorer.load_state_dict(scorer.state_dict())
    return policy


def _seconds_each(decide: Decide, observations: Float32) -> list[float]:
    """Seconds of each decision of one row, row after row."""
    rows = [observations[i : i + 1].copy() for i in range(min(len(observations), CALLS))]
    for row in rows[:WARM_UP_CALLS]:
        decide(row)
    seconds = []
    for call in range(CALLS):
        row = rows[call % len(rows)]
        began = time.perf_counter()
        decide(row)
        seconds.append(time.perf_counter() - began)
    return seconds


def _seconds_of_batch(decide: Decide, observations: Float32, runs: int) -> list[float]:
    """Seconds for all rows at once, after a call that does not count."""
    decide(observations)
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        decide(observations)
        seconds.append(time.perf_counter() - began)
    return seconds


def print_decisions(console: Console, times: dict[str, dict[str, float]]) -> None:
    """A table of what `decision_times` measured."""
    table = Table(title="One decision, batch 1, one core", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("form")
    for heading in ("p50, us", "p99, us", "in batches, per second"):
        table.add_column(heading, justify="right")
    for name, row in times.items():
        table.add_row(name, f"{row['p50_us']:.1f}", f"{row['p99_us']:.1f}", f"{row['batch_per_s']:,.0f}")
    console.print(table)

"""What TensorBoard shows of a run: cost, placement, learning, and the policy against the rules.

Dimension key: N nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawing
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Figure, HParam, Logger, TensorBoardOutputFormat

from agents.totals import Totals
from numa_rl.metrics import MEANINGS

SHOWN_BELOW = 2.0  # times the best rule: costlier ones would flatten the chart; the SCALARS tab has them all
PARTS = ("total", "exec", "comm", "imbalance", "wait")


class Dashboard:
    """Writes a run's event files.

    Args:
        folder: where.
        model: whose own figures (entropy, explained variance, ...) are written too.
        reference_s: the scenario's unit of time.
        rule_costs: validation cost of every rule, by name.
    """

    def __init__(self, folder: Path, model: PPO, reference_s: float, rule_costs: Mapping[str, float]) -> None:
        """Open the event file and lay out the dashboards."""
        self.reference_s = reference_s
        self.rule_costs = dict(rule_costs)
        self.output = TensorBoardOutputFormat(str(folder))
        self.logger = Logger(str(folder), [self.output])
        model.set_logger(self.logger)
        self.output.writer.add_custom_scalars(self._layout())

    def _layout(self) -> dict[str, dict[str, list[Any]]]:
        """Custom scalars: one dashboard a question."""
        best = min(self.rule_costs.values())
        rules = [f"rules/{name}" for name, cost in sorted(self.rule_costs.items()) if cost <= SHOWN_BELOW * best]
        return {
            "Against the rules": {
                "validation cost": ["Multiline", ["rules/learned", "rules/kept", *rules]],
                "gap to the best rule": ["Multiline", ["gap/learned", "gap/kept"]],
            },
            "Cost": {
                "cost per decision": ["Multiline", [f"cost/{part}" for part in PARTS]],
                "reward": ["Multiline", ["cost/reward"]],
            },
            "Placement": {
                "remote access ratio": ["Multiline", ["placement/remote_ratio"]],
                "busiest link's load, fullest node's share": [
                    "Multiline",
                    ["placement/busiest_link", "placement/fullest_node"],
                ],
                "per 100 decisions": [
                    "Multiline",
                    [f"placement/{name}_per_100" for name in ("migrations", "fallbacks", "out_of_memory")],
                ],
            },
            "Metrics of the chapter": {
                f"{name}: {meaning}": ["Multiline", [f"metrics/{name}$"]] for name, meaning in MEANINGS.items()
            },
            "Learning": {
                "entropy": ["Multiline", ["train/entropy$"]],
                "explained variance": ["Multiline", ["train/explained_variance"]],
                "step size": ["Multiline", ["train/approx_kl", "train/clip_fraction"]],
                "losses": ["Multiline", ["train/teacher_loss", "train/value_loss"]],
            },
        }

    def describe(self, hyperparameters: Mapping[str, bool | float | int | str]) -> None:
        """Fill the HParams tab."""
        metrics: dict[str, float | int] = {"rules/kept": 0.0, "gap/kept": 0.0}
        self.logger.record("hparams", HParam(dict(hyperparameters), metrics), exclude=("stdout", "log", "json", "csv"))
        self.logger.dump(0)

    def validated(self, step: int, cost: float, best_cost: float) -> None:
        """Write the policy's validation cost beside the rules'."""
        best_rule = min(self.rule_costs.values())
        values = {f"rules/{name}": rule_cost for name, rule_cost in self.rule_costs.items()}
        values |= {"rules/learned": cost, "rules/kept": best_cost}
        values |= {"gap/learned": cost / best_rule - 1.0, "gap/kept": best_cost / best_rule - 1.0}
        for name, value in values.items():
            self.output.writer.add_scalar(name, value, step)

    def write(self, step: int, values: Mapping[str, float], totals: Totals) -> None:
        """Write what happened since the last call, and what the model logged; `totals` start anew."""
        for name, value in values.items():
            self.logger.record(name, value)
        if totals.decisions:
            self._write_totals(totals)
            totals.clear()
        if "train/entropy_loss" in self.logger.name_to_value:
            self.logger.record("train/entropy", -self.logger.name_to_value["train/entropy_loss"])
        self.logger.dump(step)

    def _write_totals(self, totals: Totals) -> None:
        self.logger.record("cost/total", totals.mean("cost"))
        self.logger.record("cost/reward", -totals.mean("cost"))
        for part in ("exec", "comm", "wait"):
            self.logger.record(f"cost/{part}", totals.mean(f"{part}_s") / self.reference_s)
        self.logger.record("cost/imbalance", totals.mean("imbalance"))
        self.logger.record("placement/remote_ratio", totals.remote_ratio)
        self.logger.record("placement/fullest_node", totals.mean("fullest_node"))
        self.logger.record("placement/busiest_link", totals.mean("busiest_link"))
        for name in ("migrations", "fallbacks", "out_of_memory"):
            self.logger.record(f"placement/{name}_per_100", 100.0 * totals.mean(name))
        for name, value in totals.median_metrics().items():
            if np.isfinite(value):  # a ratio to nothing has no place on a chart
                self.logger.record(f"metrics/{name}", value)
        maps = {
            "placements": heat_map(
                100.0 * totals.placements / max(totals.placements.sum(), 1),
                "where decisions go, % of all",
                "data node",
                "task node",
            ),
            "traffic": heat_map(
                totals.traffic_bytes / max(totals.steps, 1) / 1e9,
                "recent traffic, GB",
                "memory of node (target)",
                "node (initiator)",
            ),
        }
        for name, drawing in maps.items():
            self.logger.record(f"maps/{name}", Figure(drawing, close=False), exclude=("stdout", "log", "json", "csv"))

    def flush(self) -> None:
        """Make sure that all is on disk."""
        self.output.writer.flush()


def heat_map(matrix: npt.NDArray[Any], title: str, columns: str, rows: str) -> Drawing:
    """A node x node matrix (N, N) as a picture, its values written in while they fit."""
    figure = Drawing(figsize=(5.2, 4.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    picture = axes.imshow(matrix, cmap="viridis", vmin=0.0)
    figure.colorbar(picture, ax=axes)
    axes.set(title=title, xlabel=columns, ylabel=rows)
    n = len(matrix)
    ticks = np.arange(n) if n <= 16 else np.arange(0, n, n // 8)
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    if n <= 8:
        bright = 0.6 * float(matrix.max(initial=1e-12))
        for row in range(n):
            for column in range(n):
                color = "black" if matrix[row, column] > bright else "white"
                axes.text(column, row, f"{matrix[row, column]:.2g}", ha="center", va="center", color=color, fontsize=7)
    return figure

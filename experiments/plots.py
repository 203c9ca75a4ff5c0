"""Figures, drawn without a display."""

from __future__ import annotations

import io
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from experiments.files import write_bytes

if TYPE_CHECKING:
    from experiments.comparison import Comparison

LEARNED, BEST, OTHER = "#d1495b", "#1b4965", "#7a8b99"
LOG_BEYOND = 5.0  # costs that spread over more than this ratio are drawn on a logarithmic axis


def png(figure: Figure) -> bytes:
    """A picture as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, dpi=150, format="png")
    return content.getvalue()


def write_figure(path: Path, figure: Figure) -> None:
    """Write a picture as a PNG file, whole or not at all."""
    write_bytes(path, png(figure))


def plot_costs(comparison: Comparison, path: Path) -> None:
    """Write a PNG with every scheduler's cost per decision and its 95% interval, the cheapest on top."""
    standings = comparison.standings
    figure = Figure(figsize=(7.5, 1.4 + 0.36 * len(standings)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    best = comparison.best_rule
    for place, standing in enumerate(standings):
        cost = standing.cost
        color = LEARNED if not standing.is_rule else BEST if standing is best else OTHER
        low, high = (cost.low, cost.high) if isfinite(cost.high) else (cost.estimate, cost.estimate)
        axes.plot([low, high], [place, place], color=color, linewidth=2.5, solid_capstyle="round")
        axes.plot(cost.estimate, place, "o", color=color, markersize=6)
        axes.annotate(
            f"{cost.estimate:.3g}",
            (high, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=color,
        )
    axes.axvline(best.cost.estimate, color=BEST, linewidth=0.8, linestyle="--", zorder=0)
    lowest, highest = (f([s.cost.estimate for s in standings]) for f in (min, max))
    if lowest > 0 and highest > LOG_BEYOND * lowest:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12)
    axes.set_yticks(range(len(standings)), [standing.name for standing in standings])
    axes.invert_yaxis()
    axes.set_xlabel("cost per decision (lower is better), with 95% interval")
    axes.set_title(f"{comparison.scenario.name}: {comparison.num_episodes} test episodes", loc="left", fontsize=11)
    axes.grid(axis="x", color="#e4e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    write_figure(path, figure)

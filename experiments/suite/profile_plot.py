"""Performance profiles: the share of runs that cost at most some multiple of the cell's best rule."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from agents.statistics import performance_profile
from experiments.plots import LEARNED as LEARNED_COLOR
from experiments.plots import OTHER
from experiments.suite.definition import Cell
from experiments.suite.results import TO_CELL, TO_SUITE, Line, SuiteResult
from experiments.suite.sources import LEARNED, ORACLE

NUM_COLORED = 6  # rules drawn in colours of their own: those with the most runs near the best
COLORS = ("#1b4965", "#2a9d8f", "#e9a23b", "#8e5ea2", "#5fa8d3", "#7a9e3f")
LIMITS = np.geomspace(0.7, 4.0, 400)
TICKS = (0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)


def profile_png(result: SuiteResult) -> bytes:
    """A picture with a panel for the cells in which rules were tuned, and one for those held out."""
    panels = [
        (f"tuned to each of {len(result.training)} cells", result.training, TO_CELL),
        (f"one setting, {len(result.held_out)} cells held out", result.held_out, TO_SUITE),
    ]
    panels = [panel for panel in panels if panel[1]]
    figure = Figure(figsize=(6.2 * len(panels) + 0.6, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for number, (title, cells, tuning) in enumerate(panels):
        _panel(axes[number], result, cells, tuning)
        axes[number].set_title(title, loc="left", fontsize=11)
    axes[0].set_ylabel("share of runs at most this costly")
    content = io.BytesIO()
    figure.savefig(content, dpi=150, format="png")
    return content.getvalue()


def _panel(axes: Axes, result: SuiteResult, cells: Sequence[Cell], tuning: str) -> None:
    lines = result.lines(cells, tuning)
    shares = [
        performance_profile(np.concatenate([result.normalised(e) for e in line.entries]), LIMITS) for line in lines
    ]
    ranked = sorted(range(len(lines)), key=lambda i: -float(shares[i].mean()))
    colors = iter(COLORS[:NUM_COLORED])
    for i in ranked:
        line = lines[i]
        color, style, label = OTHER, "-", None
        if line.player.kind == LEARNED:
            color, label = LEARNED_COLOR, line.name
        elif line.player.kind == ORACLE:
            color, style, label = "black", ":", line.name
        elif (next_color := next(colors, None)) is not None:
            color, style, label = next_color, "--" if _sees_future(line) else "-", line.name
        plain = label is None
        axes.plot(
            LIMITS,
            shares[i],
            color=color,
            linestyle=style,
            label=label,
            linewidth=0.7 if plain else 1.8,
            alpha=0.5 if plain else 1.0,
            zorder=1 if plain else 2,
        )
    axes.set_xscale("log")
    axes.set_xticks(TICKS)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(LIMITS[0], LIMITS[-1])
    axes.set_ylim(0.0, 1.02)
    axes.set_xlabel("cost over that of the cell's best rule in the same episode; thin lines: the other rules")
    axes.grid(color="#e4e8eb", linewidth=0.8)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _sees_future(line: Line) -> bool:
    return any(entry.sees_future for entry in line.entries)

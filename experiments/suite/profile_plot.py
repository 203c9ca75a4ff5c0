"""Performance profiles: the share of runs that cost at most some multiple of the cell's best rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from agents.statistics import performance_profile
from experiments.plots import LEARNED as LEARNED_COLOR
from experiments.plots import OTHER, png
from experiments.suite.definition import Cell
from experiments.suite.results import TO_CELL, TO_SUITE, Line, SuiteResult
from experiments.suite.sources import LEARNED, ORACLE, RULE

# Of those with the most runs near the best.
COLORS = ("#1b4965", "#2a9d8f", "#e9a23b", "#8e5ea2", "#5fa8d3", "#7a9e3f")
LEARNED_COLORS = (LEARNED_COLOR, "#7d1128", "#f4a3ad")  # of a policy alone, and of the same one with help
LIMITS = np.geomspace(0.7, 4.0, 400)
TICKS = (0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)


@dataclass(frozen=True, eq=False)
class _Curve:
    """A scheduler's profile over some cells, shape (L,)."""

    line: Line
    shares: npt.NDArray[np.float64]


def profile_png(result: SuiteResult) -> bytes:
    """A picture with a panel for the cells in which rules were tuned, and one for those held out."""
    panels = [
        (f"tuned to each of {len(result.training)} cells", _curves(result, result.training, TO_CELL)),
        (f"one setting, {len(result.held_out)} cells held out", _curves(result, result.held_out, TO_SUITE)),
    ]
    panels = [(title, curves) for title, curves in panels if curves]
    colors = _colors(panels[0][1])
    figure = Figure(figsize=(6.2 * len(panels) + 0.6, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for number, (title, curves) in enumerate(panels):
        _panel(axes[number], curves, colors)
        axes[number].set_title(title, loc="left", fontsize=11)
    axes[0].set_ylabel("share of runs at most this costly")
    return png(figure)


def _curves(result: SuiteResult, cells: Sequence[Cell], tuning: str) -> list[_Curve]:
    """Everybody's profile, those with the most runs near the best first."""
    lines = result.lines(cells, tuning)
    curves = [
        _Curve(line, performance_profile(np.concatenate([result.normalised(e) for e in line.entries]), LIMITS))
        for line in lines
    ]
    return sorted(curves, key=lambda curve: -float(curve.shares.mean()))


def _colors(curves: Sequence[_Curve]) -> dict[str, str]:
    """The colour of each scheduler that has one of its own, the same in all panels."""
    names: dict[str, list[str]] = {}
    for curve in curves:
        kind = curve.line.player.kind
        names.setdefault(kind if kind in (LEARNED, ORACLE) else RULE, []).append(curve.line.player.name)
    learned = zip(sorted(names.get(LEARNED, ())), cycle(LEARNED_COLORS), strict=False)
    plain = zip(names.get(RULE, ()), COLORS, strict=False)
    return dict(plain) | dict(learned) | dict.fromkeys(names.get(ORACLE, ()), "black")


def _panel(axes: Axes, curves: Sequence[_Curve], colors: Mapping[str, str]) -> None:
    for curve in curves:
        color = colors.get(curve.line.player.name)
        axes.plot(
            LIMITS,
            curve.shares,
            color=color or OTHER,
            linestyle=":" if curve.line.player.kind == ORACLE else "--" if "*" in curve.line.name else "-",
            label=curve.line.name if color else None,
            linewidth=1.8 if color else 0.7,
            alpha=1.0 if color else 0.5,
            zorder=2 if color else 1,
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

"""A policy's gains in our world against those in the referee's, as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agents.statistics import Interval
from experiments.fidelity.judge_gains import OURS, REFEREE, Pairing, Worth
from experiments.fidelity.judge_report import ALL
from experiments.plots import BEST, LEARNED, OTHER, write_figure

COLORS = (LEARNED, BEST, "#e0a458", "#5b8c5a", OTHER)  # rules beyond share the last one
TITLES = {False: "Without the loaded-latency factor", True: "As shipped, with the factor"}
WRONG = "#f6e4e6"  # behind cells in which the worlds name different ones as better
LEAST_SPAN = 0.02  # on either side of no gain


def plot_gains(pairings: Sequence[Pairing], worths: Sequence[Worth], seed: int, path: Path) -> None:
    """Write a PNG with a panel for each comparison: a dot for each cell, a cross for the mean with its intervals.

    Args:
        pairings: of all rules and comparisons; at least one.
        worths: likewise.
        seed: of the bootstrap.
        path: the file.
    """
    factors = list(dict.fromkeys(each.where.loaded_latency for each in pairings))
    rules = list(dict.fromkeys(each.where.scheduler for each in pairings))
    figure = Figure(figsize=(5.6 * len(factors), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    for factor, axes in zip(factors, figure.subplots(1, len(factors), squeeze=False)[0], strict=True):
        for number, rule in enumerate(rules):
            color = COLORS[min(number, len(COLORS) - 1)]
            cells = [p for p in pairings if p.where.scheduler == rule and p.where.loaded_latency == factor]
            _draw_cells(axes, cells, seed, rule, color)
            for each in worths:
                if (each.name, each.rule, each.loaded_latency) == (ALL, rule, factor):
                    _draw_mean(axes, each, color)
        axes.set_title(TITLES[factor], loc="left", fontsize=11)
        _tidy(axes)
    write_figure(path, figure)


def _draw_cells(axes: Axes, cells: Sequence[Pairing], seed: int, rule: str, color: str) -> None:
    """A dot for each cell, open where it is held out."""
    for held_out, fill, name in ((False, color, rule), (True, "none", f"{rule}, held out")):
        here = [each for each in cells if each.held_out == held_out]
        if here:
            ours, referee = ([each.ratio(world, seed).estimate - 1.0 for each in here] for world in (OURS, REFEREE))
            axes.scatter(ours, referee, s=16, facecolors=fill, edgecolors=color, linewidths=0.9, alpha=0.7, label=name)


def _draw_mean(axes: Axes, found: Worth, color: str) -> None:
    """The mean over all cells, with both intervals where they are bounded."""
    x, y = found.ours.estimate - 1.0, found.referee.estimate - 1.0
    axes.errorbar(
        x, y, xerr=_reach(found.ours), yerr=_reach(found.referee), color=color, fmt="D", markersize=6, zorder=5
    )


def _reach(interval: Interval) -> list[list[float]] | None:
    """How far an interval reaches below and above its estimate; None where it is unbounded."""
    if not isfinite(interval.high):
        return None
    # A percentile interval need not hold the estimate: where all draws agree, rounding puts it outside.
    return [[max(interval.estimate - interval.low, 0.0)], [max(interval.high - interval.estimate, 0.0)]]


def _tidy(axes: Axes) -> None:
    """Equal axes around no gain, with the halves in which the worlds disagree shaded."""
    low = min(*axes.get_xlim(), *axes.get_ylim(), -LEAST_SPAN)
    high = max(*axes.get_xlim(), *axes.get_ylim(), LEAST_SPAN)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.fill_between([low, 0.0], 0.0, high, color=WRONG, zorder=-2, linewidth=0.0)
    axes.fill_between([0.0, high], low, 0.0, color=WRONG, zorder=-2, linewidth=0.0)
    axes.plot([low, high], [low, high], color="black", linewidth=0.8, zorder=-1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{100.0 * value:+g}%" if value else "0")
    axes.set_xlabel("mean response against the rule, ours")
    axes.set_ylabel("mean response against the rule, SimGrid")
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)

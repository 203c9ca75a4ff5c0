"""The comparison with measured machines as a figure: every loaded-latency curve, and predicted over measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

from experiments.plots import BEST, LEARNED, OTHER, write_figure
from experiments.studies.measured_curves import Curve, factor
from experiments.studies.measured_laws import Missed, Outcome
from numa_rl.topology import LoadedLatency

if TYPE_CHECKING:
    from experiments.studies.measured import Comparison

ACROSS = 3  # curves beside each other
LINE = np.linspace(0.0, 1.0, 101)
COLOURS = (
    BEST,
    "#62b6cb",
    LEARNED,
    "#e0912f",
    "#1b998b",
    "#7a5195",
    "#20303c",
    "#a0a83c",
    "#b56576",
    "#4f6d7a",
    "#8d5b2a",
    "#3f8efc",
)
MARKERS = "osD^v<>PX*hd"
BANDWIDTHS = (20, 50, 100)  # GB/s, where the axes have ticks
LATENCIES = (100, 150, 200, 300, 400, 600)  # ns


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Write a PNG: every curve as measured and as r(u); under them bandwidth and latency, predicted over measured."""
    rows = -(-len(comparison.curves) // ACROSS)
    figure = Figure(figsize=(10.5, 2.1 * rows + 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=[2.1 * rows, 5.0])[:, 0]
    upper.suptitle("Latency under load, over idle latency", x=0.01, ha="left", fontsize=11)
    grid = upper.subplots(rows, ACROSS, sharex=True, sharey=True, squeeze=False)
    for axes, curve in zip(grid.flat, comparison.curves, strict=False):
        _draw_curve(axes, curve, comparison.title(curve.machine.name))
    for axes in grid.flat[len(comparison.curves) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("bandwidth over the largest", fontsize=9)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    upper.legend(handles, labels, loc="upper right", ncols=4, frameon=False, fontsize=9)
    left, right = lower.subplots(1, 2)
    used = next(outcome for outcome in comparison.bandwidth if outcome.law.used)
    _draw_scatter(left, comparison, used, 1e-9, "Bandwidth between sockets, GB/s", BANDWIDTHS)
    _draw_scatter(right, comparison, comparison.latency[0], 1e9, "Latency from SLIT and local latency, ns", LATENCIES)
    write_figure(path, figure)


def _draw_curve(axes: Axes, curve: Curve, title: str) -> None:
    below = curve.below
    axes.plot(LINE, factor(LoadedLatency(), LINE), color=OTHER, linewidth=1.0, linestyle="--", label="default r(u)")
    name = "r(u) of the preset, or else fitted"
    axes.plot(LINE, factor(curve.used, LINE), color=BEST, linewidth=1.8, label=name)
    axes.plot(curve.load[below], curve.ratio[below], "o", color=LEARNED, markersize=4, label="measured")
    axes.plot(
        *(curve.load[~below], curve.ratio[~below]),
        "o",
        color=LEARNED,
        markersize=4,
        fillstyle="none",
        label="saturated",
    )
    axes.annotate(
        f"{title}\nrmse {curve.rmse(curve.used):.3f}" + (" (preset)" if curve.machine.shipped is not None else ""),
        (0.04, 0.93),
        xycoords="axes fraction",
        va="top",
        fontsize=9,
    )
    axes.set_xlim(0.0, 1.04)
    axes.set_ylim(0.9, 3.7)
    _tidy(axes)


def _draw_scatter(
    axes: Axes, comparison: Comparison, outcome: Outcome, unit: float, title: str, ticks: Sequence[float]
) -> None:
    """Predicted over measured on logarithmic axes; a diagonal for what is right, a band for 25% off."""
    everything = np.concatenate([np.concatenate([each.predicted, each.measured]) for each in outcome.missed]) * unit
    low, high = everything.min() / 1.15, everything.max() * 1.15
    span = np.array([low, high])
    axes.fill_between(span, span * 0.75, span * 1.25, color="#e4e8eb", linewidth=0, label="25% off")
    axes.plot(span, span, color=OTHER, linewidth=0.8)
    for index, missed in enumerate(outcome.missed):
        _draw_machine(axes, comparison, missed, unit, index)
    for scale, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
        scale("log")
        axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.set_xlabel("measured")
    axes.set_ylabel("predicted")
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(fontsize=7.5, frameon=False, loc="upper left", handletextpad=0.3)
    _tidy(axes)


def _draw_machine(axes: Axes, comparison: Comparison, missed: Missed, unit: float, index: int) -> None:
    axes.plot(
        missed.measured * unit,
        missed.predicted * unit,
        MARKERS[index % len(MARKERS)],
        color=COLOURS[index % len(COLOURS)],
        markersize=5,
        alpha=0.8,
        markeredgewidth=0,
        label=comparison.title(missed.machine),
    )


def _tidy(axes: Axes) -> None:
    axes.grid(color="#eef1f3", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)

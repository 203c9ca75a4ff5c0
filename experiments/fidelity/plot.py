"""The study as a figure: errors by load, ours against the referee's times, and orders by load."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.fidelity.rows import Row
from experiments.fidelity.summary import (
    LEAST_TAU,
    MOST_MEDIAN,
    MOST_P95,
    VALID_LOAD,
    bins,
    in_bin,
    orders,
    summarise,
    summarise_orders,
)
from experiments.plots import BEST, LEARNED, OTHER, write_figure

FULL = 1.0  # loads end here
TIGHT = 0.02  # below, errors are drawn on a line: 0 is one of them


def plot_fidelity(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG of the rows of families with a pace.

    Args:
        rows: of one comparison.
        path: the file.
    """
    paced = [row for row in rows if row.is_paced]
    figure = Figure(figsize=(13.0, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    errors, scatter, order = figure.subplots(1, 3)
    _draw_errors(errors, paced)
    _draw_scatter(scatter, paced)
    _draw_order(order, paced)
    write_figure(path, figure)


def _draw_errors(axes: Axes, rows: Sequence[Row]) -> None:
    """Every row's error of mean response at its load, with the median and p95 of each bin."""
    loads, sizes = [row.load for row in rows], [abs(row.response_error) for row in rows]
    axes.plot(loads, sizes, ".", color=OTHER, markersize=3, alpha=0.4, label="a scheduler in a cell", zorder=1)
    for which, name, color in ((0, "median", BEST), (1, "p95", LEARNED)):
        steps = [
            (low, min(high, FULL), summarise(row for row in rows if in_bin(row.load, low, high)).response[which])
            for _, low, high in bins()
        ]
        for number, (low, high, value) in enumerate(steps):
            axes.plot([low, high], [value, value], color=color, linewidth=2.5, label=None if number else name)
        target = MOST_MEDIAN if which == 0 else MOST_P95
        axes.plot([0.0, VALID_LOAD], [target, target], color=color, linewidth=0.9, linestyle="--", zorder=0)
    axes.set_yscale("symlog", linthresh=TIGHT)
    axes.set_yticks([0.0, 0.01, 0.02, 0.05, 0.15, 0.5, 1.0, 2.0], minor=False)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_ylim(bottom=0.0)
    axes.set_title("Error of mean response (dashed: targets)", loc="left", fontsize=11)
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    _tidy_load(axes)


def _draw_scatter(axes: Axes, rows: Sequence[Row]) -> None:
    """Mean response in both worlds, in units of the smallest of its family and machine."""
    least: dict[tuple[str, str], float] = {}
    for row in rows:
        key = row.where.family, row.where.machine
        least[key] = min(least.get(key, np.inf), row.referee_response_s, row.response_s)
    parts = ((f"up to {VALID_LOAD:.0%} load", BEST, True), ("above", LEARNED, False))
    for name, color, within in parts:
        here = [row for row in rows if (row.load <= VALID_LOAD) == within]
        units = [least[row.where.family, row.where.machine] for row in here]
        axes.plot(
            [row.referee_response_s / unit for row, unit in zip(here, units, strict=True)],
            [row.response_s / unit for row, unit in zip(here, units, strict=True)],
            ".",
            color=color,
            markersize=4,
            alpha=0.5,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = (f(*axes.get_xlim(), *axes.get_ylim()) for f in (min, max))
    axes.plot([low, high], [low, high], color="black", linewidth=0.8, zorder=0)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("mean response, referee (1: least of its family there)")
    axes.set_ylabel("mean response, ours")
    axes.set_title("Ours against the referee", loc="left", fontsize=11)
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    _tidy(axes)


def _draw_order(axes: Axes, rows: Sequence[Row]) -> None:
    """Kendall's tau of every cell at its load, with the mean of each bin."""
    cells = orders(rows)
    known = [cell for cell in cells if not isnan(cell.agreement.tau)]
    loads, taus = [cell.load for cell in known], [cell.agreement.tau for cell in known]
    axes.plot(loads, taus, ".", color=OTHER, markersize=4, alpha=0.5, label="a cell")
    steps = [
        (low, min(high, FULL), summarise_orders(cell for cell in cells if in_bin(cell.load, low, high)))
        for _, low, high in bins()
    ]
    for number, (low, high, found) in enumerate(steps):
        label = None if number else "mean"
        axes.plot([low, high], [found.tau, found.tau], color=BEST, linewidth=2.5, label=label)
        right = 1.0 - found.clear_wrong
        label = None if number else "clear pairs put right"
        axes.plot([low, high], [right, right], color=LEARNED, linewidth=1.5, label=label)
    axes.plot([0.0, VALID_LOAD], [LEAST_TAU, LEAST_TAU], color=BEST, linewidth=0.9, linestyle="--", zorder=0)
    axes.set_ylim(top=1.03)
    axes.set_title("Order of schedulers: Kendall's tau", loc="left", fontsize=11)
    axes.legend(loc="lower left", frameon=False, fontsize=9)
    _tidy_load(axes)


def _tidy_load(axes: Axes) -> None:
    axes.set_xlim(0.0, FULL)
    axes.set_xticks([*(low for _, low, _ in bins()), FULL])
    axes.xaxis.set_major_formatter(lambda value, _: f"{100.0 * value:.0f}")
    axes.set_xlabel("load of the busiest resource, percent")
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.grid(color="#e4e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)

"""The figure of a roofline, drawn without a display."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, FuncFormatter, NullFormatter
from matplotlib.transforms import Bbox

from experiments.plots import BEST, LEARNED, OTHER, write_figure
from experiments.roofline import REMOTE_EXTREMES, Ceiling, Chart
from numa_rl.roofline import HIGH_INTENSITY, LOW_INTENSITY, attainable

REMOTE, PEAK, POINT = "#e0912f", "#20303c", "#1b998b"
LONGEST_NAME = 28  # characters of a point's label
MARGIN = 4.0  # the axes end this factor beyond the outermost ridge or point
AWAY = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))  # where a label may stand
DISTANCES = (6, 14)  # and how far from its point, in points of type: further off nobody sees whose it is


def plot_roofline(chart: Chart, path: Path) -> None:
    """Write a PNG with the ceilings on logarithmic axes and every point under its own roof."""
    figure = Figure(figsize=(8.0, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_yscale("log")
    intensities = [standing.point.intensity for standing in chart.standings]
    ridges = [slope.ridge_flop_per_byte for slope in chart.slopes]
    first = min(*ridges, *intensities, LOW_INTENSITY) / MARGIN
    last = max(*ridges, *intensities, HIGH_INTENSITY) * MARGIN
    for slope in chart.slopes:
        _draw_slope(axes, slope, chart, first)
    peak = chart.ceilings.peak_flops_per_s
    axes.plot([min(ridges), last], [peak, peak], color=PEAK, linewidth=2.2, label="peak of the cores")
    _draw_points(axes, chart)
    axes.set_xlim(first, last)
    _name_classes(axes, first, last)
    _dress(axes, chart)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.draw_without_rendering()  # places the axes, so that labels can be fitted in
    left_out = _label_points(axes, chart)
    if left_out:
        note = f"{left_out} labels left out for want of room; the table has all points"
        axes.text(0.99, 0.01, note, transform=axes.transAxes, ha="right", fontsize=7, color=OTHER, in_layout=False)
    write_figure(path, figure)


def _draw_slope(axes: Axes, slope: Ceiling, chart: Chart, first: float) -> None:
    """One memory ceiling, up to where it meets the peak."""
    mixed = slope.local_share not in (0.0, 1.0)
    extreme = slope.name in REMOTE_EXTREMES
    intensity = np.array([first, slope.ridge_flop_per_byte])
    axes.plot(
        intensity,
        attainable(intensity, chart.ceilings.peak_flops_per_s, slope.bytes_per_s),
        linestyle=":" if extreme else "--" if mixed else "-",
        color=_blend(slope.local_share),
        linewidth=1.3 if extreme else 1.6 if mixed else 2.2,
        label=f"{slope.name}: {slope.bytes_per_s / 1e9:.4g} GB/s",
    )


def _blend(local_share: float) -> tuple[float, ...]:
    """A colour between that of remote and that of local memory."""
    return tuple(local_share * np.array(to_rgb(BEST)) + (1.0 - local_share) * np.array(to_rgb(REMOTE)))


def _draw_points(axes: Axes, chart: Chart) -> None:
    """Points, each with a stroke to the roof of its own local share; what stands above its roof is a red cross."""
    for standing in chart.standings:
        point = standing.point
        axes.plot(
            [point.intensity, point.intensity],
            [point.flops_per_s, standing.attainable_flops_per_s],
            color=LEARNED if standing.is_above else POINT,
            linewidth=1.0,
            alpha=0.5,
        )
    for standings, marker, color, label in (
        ([standing for standing in chart.standings if not standing.is_above], "o", POINT, "measured, and its own roof"),
        (
            [standing for standing in chart.standings if standing.is_above],
            "X",
            LEARNED,
            "above its roof: check the figures",
        ),
    ):
        if standings:
            axes.plot(
                [standing.point.intensity for standing in standings],
                [standing.point.flops_per_s for standing in standings],
                marker,
                color=color,
                markersize=7,
                markeredgecolor="white",
                label=label,
                zorder=3,
            )


def _name_classes(axes: Axes, first: float, last: float) -> None:
    """The tuning table's classes of intensity, over the axes."""
    borders = (first, LOW_INTENSITY, HIGH_INTENSITY, last)
    for border in borders[1:3]:
        axes.axvline(border, color=OTHER, linewidth=0.7, alpha=0.6, zorder=0)
    for name, low, high in zip(("low", "middle", "high intensity"), borders, borders[1:], strict=False):
        middle = float(np.sqrt(low * high))
        axes.text(
            middle, 1.01, name, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=8, color=OTHER
        )


def _dress(axes: Axes, chart: Chart) -> None:
    """Title, axes and grid."""
    peak = EngFormatter(unit="flop/s")(chart.ceilings.peak_flops_per_s)
    axes.set_title(f"{chart.title}: peak {peak}", loc="left", fontsize=11, pad=18)
    axes.set_xlabel("arithmetic intensity, flop per byte of memory traffic")
    axes.set_ylabel("performance")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(EngFormatter(unit="flop/s"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.08)
    axes.grid(color="#e4e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _label_points(axes: Axes, chart: Chart) -> int:
    """Write every point's name where it covers no other point or label; returns how many found no room."""
    positions = [(standing.point.intensity, standing.point.flops_per_s) for standing in chart.standings]
    markers = (
        [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in axes.transData.transform(positions)] if positions else []
    )
    taken: list[Bbox] = []
    left_out = 0
    for standing, position in zip(chart.standings, positions, strict=True):
        name = standing.point.name
        name = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        color = LEARNED if standing.is_above else PEAK
        box = _place(axes, name, position, color, [*markers, *taken])
        if box is None:
            left_out += 1
        else:
            taken.append(box)
    return left_out


def _place(axes: Axes, name: str, position: tuple[float, float], color: str, taken: Iterable[Bbox]) -> Bbox | None:
    """Write a label beside a position, at the first place that is free; returns what it covers, None without one."""
    taken = list(taken)
    for distance in DISTANCES:
        for across, up in AWAY:
            label = axes.annotate(
                name,
                position,
                xytext=(across * distance, up * distance),
                textcoords="offset points",
                ha={1: "left", 0: "center", -1: "right"}[across],
                va={1: "bottom", 0: "center", -1: "top"}[up],
                fontsize=8,
                color=color,
                parse_math=False,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
                in_layout=False,
                zorder=4,
            )
            box = label.get_window_extent()
            within = (
                axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0 <= box.y1 <= axes.bbox.y1
            )
            if within and not any(box.overlaps(other) for other in taken):
                return box
            label.remove()
    return None

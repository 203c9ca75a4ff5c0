"""The case study as a figure: where core time goes, and how it scales."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.plots import BEST, OTHER, write_figure
from experiments.studies.rows import Row
from experiments.studies.scaling import Growth, Point
from numa_rl.breakdown import PARTS

COLOURS = {"compute": "#1b4965", "local": "#62b6cb", "remote": "#d1495b", "synchronisation": "#d8dee3"}
PRINTED_HEIGHT, HEIGHT = 0.3, 0.46


def plot_study(rows: Sequence[Row], points: Sequence[Point], path: Path) -> None:
    """Write a PNG: core time of the rows beside the chapter's, strong and weak scaling under it.

    Args:
        rows: of the table, those to be drawn.
        points: of both scalings.
        path: the file.
    """
    figure = Figure(figsize=(8.6, 3.6 + 0.46 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, height_ratios=[0.5 + 0.46 * len(rows), 3.1])
    _draw_time(figure.add_subplot(grid[0, :]), rows)
    left, right = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
    _draw_speedup(left, [point for point in points if point.growth is Growth.STRONG])
    _draw_weak(right, [point for point in points if point.growth is Growth.WEAK])
    write_figure(path, figure)


def _draw_time(axes: Axes, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        printed = None if row.printed is None else row.printed.time
        top = place if printed is None else place - PRINTED_HEIGHT / 2
        _draw_bar(axes, top, HEIGHT, row.figures.shares, label=place == 0)
        axes.annotate(
            f"{row.gain:.2f}x, E {row.efficiency:.0%}",
            (1.0, top),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=BEST,
        )
        if printed is not None:
            _draw_bar(axes, top + (HEIGHT + PRINTED_HEIGHT) / 2 + 0.02, PRINTED_HEIGHT, printed, faint=True)
            axes.annotate(
                f"chapter: {row.printed.gain:.1f}x, E {row.printed.efficiency:.1%}",  # type: ignore[union-attr]
                (1.0, top + (HEIGHT + PRINTED_HEIGHT) / 2 + 0.02),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=OTHER,
            )
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_title("Where core time goes", loc="left", fontsize=11, pad=22)
    axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False, fontsize=9, borderpad=0.0)
    _tidy(axes)
    axes.tick_params(axis="y", length=0)


def _draw_bar(
    axes: Axes, place: float, height: float, shares: Sequence[float], *, label: bool = False, faint: bool = False
) -> None:
    left = 0.0
    for name, share in zip(PARTS, shares, strict=True):
        color = COLOURS[name]
        axes.barh(
            place, share, height, left=left, color=color, alpha=0.45 if faint else 1.0, label=name if label else None
        )
        left += share


def _draw_speedup(axes: Axes, points: Sequence[Point]) -> None:
    sockets = [point.sockets for point in points]
    axes.plot(sockets, sockets, color=OTHER, linewidth=0.8, linestyle="--")
    axes.annotate("perfect", (4, 4), xytext=(0, 9), textcoords="offset points", ha="right", fontsize=8, color=OTHER)
    best = [point.best_efficiency * point.sockets for point in points]
    initial = [point.initial_efficiency * point.sockets for point in points]
    _draw_pair(axes, sockets, best, initial)
    axes.set_title("Strong scaling: the same work", loc="left", fontsize=11)
    axes.set_ylabel("speedup over one socket")
    axes.set_ylim(0.0, sockets[-1] * 1.08)


def _draw_weak(axes: Axes, points: Sequence[Point]) -> None:
    sockets = [point.sockets for point in points]
    _draw_pair(axes, sockets, [p.best_efficiency for p in points], [p.initial_efficiency for p in points])
    axes.axhline(1.0, color=OTHER, linewidth=0.8, linestyle="--")
    axes.set_title("Weak scaling: micro-batches per socket", loc="left", fontsize=11)
    axes.set_ylabel("efficiency")
    axes.set_ylim(0.0, 1.12 * max(1.0, *(p.best_efficiency for p in points)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _draw_pair(axes: Axes, sockets: Sequence[int], best: Sequence[float], initial: Sequence[float]) -> None:
    for values, color, name in ((best, BEST, "best split, hand-tuned"), (initial, COLOURS["remote"], "initial")):
        axes.plot(sockets, values, "o-", color=color, markersize=5, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sockets, [str(count) for count in sockets])
    axes.set_xlabel("sockets")
    axes.legend(frameon=False, fontsize=9)
    axes.grid(color="#e4e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)

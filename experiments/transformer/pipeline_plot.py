"""The figure of a pipeline's timeline, drawn without a display."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.plots import BEST, write_figure
from experiments.transformer.pipeline_run import ScheduleRun
from numa_rl.topology import FloatArray

FORWARD, BACKWARD, IDLE, EDGE = BEST, "#e0912f", "#e9edf0", "#ffffff"
ROW = 0.84  # height of a stage's bar; rows are 1 apart
LIGHTEST = 0.45  # how far the last chunk's colour is from white
INCHES_WIDE, INCHES_A_ROW = 14.0, 0.5
MARGIN_INCHES = 1.2  # left and right of the bars, about
FONT_SIZE, SMALLEST = 8.0, 4.5  # points
DIGIT_WIDTH = 0.64  # of the font's size


def plot_timeline(run: ScheduleRun, machine: str, path: Path) -> None:
    """Write a PNG with a row for each stage: its passes, numbered by micro-batch, and between them its idle time."""
    num_stages = run.assignment.num_stages
    figure = Figure(figsize=(INCHES_WIDE, 1.7 + INCHES_A_ROW * num_stages), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    makespan_s = run.timeline.makespan_s
    rows = [(0.0, makespan_s, stage) for stage in range(num_stages)]
    axes.add_collection(PolyCollection([_box(*row) for row in rows], facecolors=IDLE, linewidths=0))
    _draw_passes(axes, run)
    axes.set_xlim(0.0, makespan_s)
    axes.set_ylim(num_stages - 0.5, -0.5)
    busy = run.timeline.busy_s / makespan_s
    names = [f"stage {stage}\nnode {node}" for stage, node in enumerate(run.assignment.nodes)]
    axes.set_yticks(range(num_stages), names, fontsize=FONT_SIZE)
    idle = axes.secondary_yaxis("right")
    idle.set_yticks(range(num_stages), [f"{1 - share:.0%} idle" for share in busy], fontsize=FONT_SIZE)
    idle.tick_params(length=0)
    idle.spines["right"].set_visible(False)
    axes.set_xlabel("seconds")
    chunks = f" of {run.num_chunks} chunks" if run.num_chunks > 1 else ""
    axes.set_title(
        f"{run.schedule}{chunks} on {machine}: {run.num_micro_batches} micro-batches in {makespan_s:.4g} s, "
        f"stages idle {run.timeline.bubble_fraction:.1%} of the time",
        loc="left",
        fontsize=11,
    )
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(handles=_legend(run), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    write_figure(path, figure)


def _draw_passes(axes: Axes, run: ScheduleRun) -> None:
    """A box for each pass, and the number of its micro-batch where that fits."""
    line, ops = run.timeline, run.timeline.operations
    boxes = [_box(*row) for row in zip(line.start_s, line.end_s, ops.stage, strict=True)]
    colors = [
        _color(bool(backward), int(chunk), run.num_chunks)
        for backward, chunk in zip(ops.backward, ops.chunk, strict=True)
    ]
    points_a_second = 72 * (INCHES_WIDE - MARGIN_INCHES) / line.makespan_s
    widths = points_a_second * (line.end_s - line.start_s)
    edge = float(np.clip(widths.min() / 10, 0.1, 0.8))  # or edges would hide what they part
    axes.add_collection(PolyCollection(boxes, facecolors=colors, edgecolors=EDGE, linewidths=edge))
    for start, width, stage, micro_batch, color in zip(
        line.start_s, widths, ops.stage, ops.micro_batch, colors, strict=True
    ):
        size = min((width - edge) / (DIGIT_WIDTH * len(str(micro_batch)) + 0.2), FONT_SIZE)
        if size >= SMALLEST:
            dark = np.dot(color, (0.299, 0.587, 0.114)) < 0.6
            axes.text(
                start + width / points_a_second / 2,
                stage,
                str(micro_batch),
                ha="center",
                va="center",
                fontsize=size,
                color="white" if dark else "black",
            )


def _box(start_s: float, end_s: float, stage: int) -> FloatArray:
    """Corners of a pass in its stage's row."""
    low, high = stage - ROW / 2, stage + ROW / 2
    return np.array([(start_s, low), (end_s, low), (end_s, high), (start_s, high)])


def _color(backward: bool, chunk: int, num_chunks: int) -> tuple[float, float, float]:
    """Of a pass: later chunks are lighter."""
    strength = 1.0 - (1.0 - LIGHTEST) * chunk / max(num_chunks - 1, 1)
    red, green, blue = strength * np.array(to_rgb(BACKWARD if backward else FORWARD)) + (1.0 - strength)
    return float(red), float(green), float(blue)


def _legend(run: ScheduleRun) -> list[Patch]:
    """What the colours are."""
    patches = []
    for backward, name in ((False, "forward"), (True, "backward")):
        for chunk in sorted({0, run.num_chunks - 1}):
            which = f", chunk {chunk}" if run.num_chunks > 1 else ""
            patches.append(Patch(facecolor=_color(backward, chunk, run.num_chunks), label=name + which))
    return [*patches, Patch(facecolor=IDLE, label="idle")]

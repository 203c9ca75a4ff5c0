"""Pipelines on a machine: which layers and node each stage gets, and how long each schedule leaves stages idle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.files import require_outputs, write_json
from experiments.transformer.pipeline_run import Job, ScheduleRun, run_schedule
from numa_rl.machines.catalog import load_machine
from numa_rl.topology import Topology
from numa_rl.transformer.divisors import divisors
from numa_rl.transformer.memory_plan import Recompute, Training
from numa_rl.transformer.model import MOST_SEARCHED, WIDTH_PER_LAYER, Transformer
from numa_rl.transformer.pipeline_schedule import (
    INTERLEAVED,
    ONE_F_ONE_B,
    SCHEDULES,
    bubble_fraction,
    bubble_over_ideal,
)
from numa_rl.wording import counted


@dataclass(frozen=True)
class Pipeline:
    """Cut a transformer into stages for a machine's nodes, and compare the schedules of its micro-batches.

    Stages and their nodes are the best there are: least T_compute_max + T_comm_total within memory and links.

    Attributes:
        layers: of the model.
        stages: how many, each on a node of its own.
        micro_batches: of a batch.
        schedule: gpipe, 1f1b or interleaved: whose stages are shown and drawn.
        chunks: runs of layers that each stage has in the interleaved schedule.
        machine: a machine's name (`machine list` prints them), or the path of a file that describes one.
        width: of the model.
        heads: of attention; left out, one for each 128 of width, or as many fewer as divide it.
        vocabulary: rows of the embedding, which the first and the last layer hold.
        tokens: of a sequence.
        sequences: of a micro-batch.
        recompute: what the backward pass computes again: none, attention or full, all but the layers' inputs.
        link_time: seconds in which what a micro-batch sends over each link must pass; left out, the least time of the
            slowest stage, so that no stage waits for a link.
        plot: a PNG file for the timeline.
        json: a file for all figures, in SI units.
    """

    layers: int = 24
    stages: int = 8
    micro_batches: int = 16
    schedule: str = ONE_F_ONE_B
    chunks: int = 2
    machine: str = "chapter-8-socket"
    width: int = 4096
    heads: int | None = None
    vocabulary: int = 0
    tokens: int = 2048
    sequences: int = 1
    recompute: str = Recompute.FULL.value
    link_time: float | None = None
    plot: Path | None = None
    json: Path | None = None

    def run(self) -> None:
        """Compute, print and draw.

        Raises:
            ValueError: no such machine or schedule, counts that do not go together, a model that does not fit, or a
                file that cannot be written.
        """
        if self.schedule not in SCHEDULES:
            raise ValueError(f"--schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}.")
        job = self.job(load_machine(self.machine))
        require_outputs({"--json": self.json, "--plot": self.plot}, {"--machine": Path(self.machine)})
        if self.plot is not None and self.plot.suffix.lower() != ".png":
            raise ValueError(f"--plot must be a .png file, got {str(self.plot)!r}.")
        chosen = run_schedule(job, self.schedule)
        runs, failures = _compared(job, chosen)
        if self.json is not None:
            write_json(self.json, _content(job, chosen, runs, failures))
        if self.plot is not None:
            from experiments.transformer.pipeline_plot import plot_timeline  # matplotlib takes a second

            plot_timeline(chosen, job.topology.name, self.plot)
        console = Console(highlight=False)
        print_stages(job, chosen, console)
        print_schedules(runs, failures, chosen, console)

    @property
    def _heads(self) -> int:
        """Of attention, where nothing is said: those of 128 elements, or of as few more as divide the width."""
        if not 1 <= self.width <= MOST_SEARCHED:
            raise ValueError(f"--width must be in 1..{MOST_SEARCHED} without --heads, got {self.width}.")
        most = max(self.width // WIDTH_PER_LAYER, 1)
        return max(each for each in divisors(self.width) if each <= most)

    def job(self, topology: Topology) -> Job:
        """What is to be done; raises ValueError where an option is out of range."""
        kinds = [kind.value for kind in Recompute]
        if self.recompute not in kinds:
            raise ValueError(f"--recompute must be one of {', '.join(kinds)}, got {self.recompute!r}.")
        heads = self._heads if self.heads is None else self.heads
        model = Transformer(self.layers, self.width, heads, vocabulary=self.vocabulary)
        return Job(
            topology=topology,
            training=Training(model, sequence_tokens=self.tokens),
            sequences=self.sequences,
            recompute=Recompute(self.recompute),
            num_stages=self.stages,
            num_micro_batches=self.micro_batches,
            num_chunks=self.chunks,
            link_s=self.link_time,
        )


def _compared(job: Job, chosen: ScheduleRun) -> tuple[list[ScheduleRun], dict[str, str]]:
    """All schedules that can be, and why the others cannot."""
    runs, failures = [], {}
    for schedule in SCHEDULES:
        try:
            runs.append(chosen if schedule == chosen.schedule else run_schedule(job, schedule))
        except ValueError as error:
            failures[schedule] = str(error)
    return runs, failures


def _content(job: Job, chosen: ScheduleRun, runs: list[ScheduleRun], failures: dict[str, str]) -> dict[str, Any]:
    """Everything as JSON values."""
    model = job.training.model
    return {
        "machine": job.topology.name,
        "model": {"layers": model.layers, "width": model.width, "heads": model.heads, "vocabulary": model.vocabulary},
        "tokens": job.training.sequence_tokens,
        "sequences": job.sequences,
        "recompute": job.recompute.value,
        "num_stages": job.num_stages,
        "num_micro_batches": job.num_micro_batches,
        "chosen": chosen.schedule,
        "schedules": [run.to_dict() for run in runs],
        "failures": failures,
    }


def print_stages(job: Job, run: ScheduleRun, console: Console) -> None:
    """Print what each stage has, and both times of the objective."""
    given, topology = run.assignment, job.topology
    title = Text(f"{counted(job.training.model.layers, 'layer')} in {counted(job.num_stages, 'stage')}", "bold")
    title.append(f" on {topology.name}, {_name(run)}", style="not bold")
    console.print(title)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("stage", "layers", "node", "compute s", "to next ms", "memory GB", "of node", "keeps"):
        table.add_column(header, justify="right", no_wrap=header != "layers")
    room = topology.memory_bytes[given.nodes]
    for stage, node in enumerate(given.nodes.tolist()):
        sent = given.comm_s[stage :: job.num_stages].sum()
        table.add_row(
            str(stage),
            _runs(given.bounds, stage, job.num_stages),
            str(node),
            f"{given.compute_s[stage]:.4g}",
            f"{sent * 1e3:.4g}" if len(given.comm_s[stage :: job.num_stages]) else "-",
            f"{given.memory_bytes[stage] / 1e9:.4g}",
            f"{given.memory_bytes[stage] / room[stage]:.1%}",
            f"{run.live[stage]:.4g}",
        )
    console.print(table)
    console.print(
        f"T_compute_max {given.compute_max_s:.4g} s + T_comm_total {given.comm_total_s:.4g} s = {given.cost_s:.4g} s"
        " for a micro-batch."
    )
    console.print(
        "Times are forward and backward; keeps: micro-batches whose activations wait for their backward pass. "
        + _optimality(run)
        + _busiest_link(run, topology),
        style="dim",
    )


def _optimality(run: ScheduleRun) -> str:
    if run.schedule == INTERLEAVED:
        return "Pieces have counts of layers as even as can be, on the nodes of the best 1F1B assignment. "
    return "No assignment within the limits has a lower sum. "


def _busiest_link(run: ScheduleRun, topology: Topology) -> str:
    if not run.assignment.link_bytes.any():
        return ""
    seconds = run.assignment.link_bytes / topology.link_bandwidth_bytes_per_s
    source, target = topology.links[seconds.argmax()]
    return f"The busiest link, {source} to {target}, takes {seconds.max() * 1e3:.4g} ms for a micro-batch."


def _name(run: ScheduleRun) -> str:
    """A schedule and its counts."""
    chunks = f" of {run.num_chunks} chunks" if run.num_chunks > 1 else ""
    return f"{run.schedule}{chunks}, {run.num_micro_batches} micro-batch{'es' * (run.num_micro_batches > 1)}"


def _runs(bounds: Any, stage: int, num_stages: int) -> str:
    """The layers of a stage: 0-2, or 0-1 16-17."""
    pieces = zip(bounds[:-1][stage::num_stages], bounds[1:][stage::num_stages], strict=True)
    return " ".join(str(first) if last - first == 1 else f"{first}-{last - 1}" for first, last in pieces)


def print_schedules(runs: list[ScheduleRun], failures: dict[str, str], chosen: ScheduleRun, console: Console) -> None:
    """Print all schedules side by side."""
    console.print("\nShare of time in which stages are idle, and time of a batch", style="bold")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("\nschedule", no_wrap=True)
    for above, header in (
        ("idle", "formula"),
        ("idle", "timeline"),
        ("idle", "simulator"),
        ("batch s", "timeline"),
        ("batch s", "simulator"),
        ("", "keeps"),
        ("most", "GB"),
    ):
        table.add_column(f"{above}\n{header}", justify="right", no_wrap=True)
    for run in runs:
        seen = run.simulated
        table.add_row(
            run.schedule + (f" x{run.num_chunks}" if run.num_chunks > 1 else ""),
            f"{bubble_fraction(*run.shape):.2%}",
            f"{run.timeline.bubble_fraction:.2%}",
            "-" if seen is None else f"{seen.bubble_fraction:.2%}",
            f"{run.timeline.makespan_s:.4g}",
            "-" if seen is None else f"{seen.batch_s:.4g}",
            f"{run.live.max():.4g}",
            f"{run.assignment.memory_bytes.max() / 1e9:.3g}",
            style="bold" if run is chosen else "",
        )
    console.print(table, "")
    over = "; ".join(f"{run.schedule} {bubble_over_ideal(*run.shape):.2%}" for run in runs)
    console.print(
        "Formula: (p - 1) / (v m + p - 1), equal stages and free messages; over the time that work takes it is "
        f"(p - 1) / (v m): {over}. Timeline: the stages' own times, and messages that hinder nobody. Keeps and memory: "
        "of the stage that has most.",
        style="dim",
    )
    for schedule, reason in failures.items():
        console.print(Text(f"{schedule}: ", "yellow").append(reason, "not bold"))
    for run in runs:
        if run.simulated is None:
            console.print(f"{run.schedule} has too many tasks to be simulated here.", style="dim")
        elif run.simulated.dropped:
            console.print(
                f"{run.schedule}: {run.simulated.dropped} tasks found no memory in the simulator.", style="red"
            )

"""Scientific workflows: graphs of tasks that pass files to each other, one workflow after another.

The graphs are those of recorded runs (files in WfFormat, `numa_rl/workloads/wfformat.py`), or have the shapes of known
applications with run times and sizes fitted to such runs (`numa_rl/workloads/workflow_shapes.py`). How they become
tasks is told in `numa_rl/workloads/recorded_graph.py` and `graph_stream.py`: a task's outputs are one object, a file of
the input is an object of its own that a loader task creates when its workflow arrives, and is only read from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from numa_rl.workloads.graph_stream import GraphKind, GraphStream
from numa_rl.workloads.parameters import MOST_TASKS, require
from numa_rl.workloads.recorded_graph import MOST_INPUTS
from numa_rl.workloads.wfformat import read_recorded_graphs
from numa_rl.workloads.workflow_shapes import SHAPES, shaped
from numa_rl.workloads.workload import Workload

MOST_WIDTH = 256


@dataclass(frozen=True)
class Workflow:
    """Workflows that arrive as a Poisson process and share the machine.

    Attributes:
        num_tasks: tasks of an episode, T; the last workflows are cut off.
        workflows_per_s: mean arrival rate.
        shape: "fork-join", "montage", "epigenomics", "seismology", "1000genome", or "any": each as likely.
        min_width: least tasks of a wide layer; widths are drawn evenly.
        max_width: most, at most 256.
        most_inputs: most objects that a task reads besides its own; more are gathered first, by tasks that copy up to
            so many into one.
        mean_task_flops: mean arithmetic of a task, over a workflow.
        flops_per_byte: arithmetic intensity of what tasks compute; as a sparse solver's or a stencil's.
        data_ratio: bytes of files read and written over those moved while computing: how much data passes between
            tasks.
        write_fraction: share of writes in what tasks move while they compute; a third is one write for two reads.
        flops_per_s: nominal pace of a core, by which tasks of several workflows are put in order.
        bytes_per_s: nominal pace of its memory.
        trace: path of a recorded workflow in WfFormat, or of a folder of them (*.json), each as likely, in place of
            shapes.
        runtime_sigma: standard deviation of the logarithm of a recorded task's run time when it runs again; shapes
            have their own.

    Raises:
        ValueError: a parameter is out of range, or the trace cannot be read.
    """

    num_tasks: int = 384
    workflows_per_s: float = 4.0
    shape: str = "any"
    min_width: int = 4
    max_width: int = 8
    most_inputs: int = MOST_INPUTS
    mean_task_flops: float = 1e9
    flops_per_byte: float = 0.5
    data_ratio: float = 1.0
    write_fraction: float = 1.0 / 3.0
    flops_per_s: float = 20e9
    bytes_per_s: float = 40e9
    trace: str | None = None
    runtime_sigma: float = 0.1

    def __post_init__(self) -> None:
        """Check the ranges and read the trace."""
        require(self, "num_tasks min_width max_width", ">= 1", lambda value: value >= 1)
        require(self, "num_tasks", f"at most {MOST_TASKS}", lambda value: value <= MOST_TASKS)
        positive = "workflows_per_s mean_task_flops flops_per_byte flops_per_s bytes_per_s"
        require(self, positive, "> 0", lambda value: value > 0)
        require(self, "data_ratio runtime_sigma", ">= 0", lambda value: value >= 0)
        require(self, "write_fraction", "in [0, 1]", lambda value: 0 <= value <= 1)
        if self.shape != "any" and self.shape not in SHAPES:
            raise ValueError(f"shape must be any or one of {', '.join(SHAPES)}, got {self.shape!r}.")
        require(self, "most_inputs", ">= 2", lambda value: value >= 2)
        if not self.min_width <= self.max_width <= MOST_WIDTH:
            rule = f"in {self.min_width}..{MOST_WIDTH}, from min_width on"
            raise ValueError(f"max_width must be {rule}, got {self.max_width}.")
        if self.trace is not None:
            self.kinds  # noqa: B018 - reads it

    @cached_property
    def kinds(self) -> Sequence[GraphKind]:
        """The workflows there are."""
        if self.trace is not None:
            graphs = read_recorded_graphs(self.trace, self.runtime_sigma, self.most_inputs)
        else:
            shapes = SHAPES.values() if self.shape == "any" else [SHAPES[self.shape]]
            widths = range(self.min_width, self.max_width + 1)
            graphs = [shaped(shape, width, self.most_inputs) for shape in shapes for width in widths]
        return [graph.kind(self.mean_task_flops, self.flops_per_byte, self.data_ratio) for graph in graphs]

    def generate(self, rng: np.random.Generator, num_episodes: int) -> Workload:
        """Make `num_episodes` episodes; more episodes from the same generator extend fewer."""
        stream = GraphStream(
            name="workflow",
            kinds=self.kinds,
            graphs_per_s=self.workflows_per_s,
            num_tasks=self.num_tasks,
            write_fraction=self.write_fraction,
            flops_per_s=self.flops_per_s,
            bytes_per_s=self.bytes_per_s,
            follows_inputs=True,
            shared_bytes=np.empty(0),
        )
        return stream.generate(rng, num_episodes)

"""Shapes of scientific workflows: layers of tasks, as wide as wanted, with run times and file sizes of real runs.

Every figure is a fit to one instance of WfInstances [1], of the applications that [2] describes: the median is the
exponential of the mean logarithm over the tasks of a layer, sigma the standard deviation of the logarithm, 0 where the
layer has one task. Sizes are those of all that a task writes, or of the files that it reads and no task wrote; files
under 1% of a task's input are left out.

References:
    [1] T. Coleman, H. Casanova, L. Pottier, M. Kaushik, E. Deelman, R. Ferreira da Silva, "WfCommons: a framework for
        enabling scientific workflow research and development", Future Generation Computer Systems 128, 2022; instances
        1000genome-chameleon-4ch-100k-001, epigenomics-chameleon-hep-1seq-100k-001, helloworld-forkjoin-10-chameleon,
        montage-chameleon-2mass-005d-001, seismology-chameleon-100p-001 of github.com/wfcommons/WfInstances.
    [2] G. Juve, A. Chervenak, E. Deelman, S. Bharathi, G. Mehta, K. Vahi, "Characterizing and profiling scientific
        workflows", Future Generation Computer Systems 29(3), 2013.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from numa_rl.workloads.recorded_graph import MOST_INPUTS, RecordedGraph

WIDE, PAIRS = "wide", "pairs"  # how many tasks a layer has, if not one
ALL, SAME, PART, PAIR = "all", "same", "part", "pair"
PAIRED_WITHIN = 3  # images overlap with the three next ones: all pairs of the instance's four


@dataclass(frozen=True)
class Layer:
    """Tasks that do the same to different data.

    Attributes:
        name: of the program.
        runtime_s: median run time.
        runtime_sigma: standard deviation of its logarithm.
        output_bytes: median size of what a task writes.
        output_sigma: standard deviation of its logarithm.
        tasks: "wide" for as many as the shape is wide, "pairs" for one for each two that lie near each other, "" for
            one.
        reads: (layer, how): all of "all" its tasks' outputs, that of the "same" task, a "part" of the one task's
            output, as large for each reader, or those of its "pair".
        own_file_bytes: size of an input file that this task alone reads.
        shared_file: name of an input file that all of the layer read.
    """

    name: str
    runtime_s: float
    runtime_sigma: float
    output_bytes: float
    output_sigma: float
    tasks: str = ""
    reads: tuple[tuple[str, str], ...] = ()
    own_file_bytes: float = 0.0
    shared_file: str = ""


@dataclass(frozen=True)
class Shape:
    """An application.

    Attributes:
        layers: each after those it reads.
        shared_files: sizes of input files that several tasks read, by name.
        instance: whence the figures.
    """

    layers: tuple[Layer, ...]
    instance: str
    shared_files: Mapping[str, float]


SHAPES: dict[str, Shape] = {
    "fork-join": Shape(
        (
            Layer("fork", 100.2, 0.0, 9.09e6, 0.0, own_file_bytes=9.09e6),
            Layer("work", 103.6, 0.014, 9.09e6, 0.0, WIDE, (("fork", ALL),)),
            Layer("join", 99.82, 0.0, 9.09e6, 0.0, "", (("work", ALL),)),
        ),
        "helloworld-forkjoin-10-chameleon",
        {},
    ),
    "montage": Shape(
        (
            Layer("mProject", 17.26, 0.07, 8.30e6, 0.0, WIDE, own_file_bytes=1.49e6),
            Layer("mDiffFit", 0.192, 0.80, 262.0, 0.01, PAIRS, (("mProject", PAIR),)),
            Layer("mConcatFit", 0.191, 0.03, 1.46e3, 0.0, "", (("mDiffFit", ALL),)),
            Layer("mBgModel", 0.786, 0.05, 276.0, 0.0, "", (("mConcatFit", ALL),)),
            Layer("mBackground", 0.380, 0.29, 8.30e6, 0.0, WIDE, (("mProject", SAME), ("mBgModel", ALL))),
            Layer("mImgtbl", 0.166, 0.03, 2.64e3, 0.0, "", (("mBackground", ALL),)),
            Layer("mAdd", 0.183, 0.0, 5.24e5, 0.0, "", (("mBackground", ALL), ("mImgtbl", ALL))),
            Layer("mViewer", 0.113, 0.30, 3.39e4, 0.45, "", (("mAdd", ALL),)),
        ),
        "montage-chameleon-2mass-005d-001",
        {},
    ),
    "epigenomics": Shape(
        (
            Layer("fastqSplit", 1.345, 0.0, 1.09e8, 0.0, own_file_bytes=1.09e8),
            Layer("filterContams", 0.707, 0.19, 1.13e7, 0.33, WIDE, (("fastqSplit", PART),)),
            Layer("sol2sanger", 0.357, 0.47, 8.70e6, 0.33, WIDE, (("filterContams", SAME),)),
            Layer("fast2bfq", 0.547, 0.33, 2.04e6, 0.35, WIDE, (("sol2sanger", SAME),)),
            Layer("map", 52.77, 0.16, 1.00e6, 0.37, WIDE, (("fast2bfq", SAME),), shared_file="genome"),
            Layer("mapMerge", 4.248, 0.28, 8.97e6, 0.0, "", (("map", ALL),)),
            Layer("chr21", 2.774, 0.0, 8.97e6, 0.0, "", (("mapMerge", ALL),)),
            Layer("pileup", 30.52, 0.0, 6.92e6, 0.0, "", (("chr21", ALL),), shared_file="genome"),
        ),
        "epigenomics-chameleon-hep-1seq-100k-001",
        {"genome": 4.72e7},
    ),
    "seismology": Shape(
        (
            Layer("sG1IterDecon", 0.515, 0.86, 5.26e3, 0.50, WIDE, own_file_bytes=8.07e3),
            Layer("wrapper", 0.089, 0.0, 6.35e4, 0.0, "", (("sG1IterDecon", ALL),)),
        ),
        "seismology-chameleon-100p-001",
        {},
    ),
    "1000genome": Shape(
        (
            Layer("individuals", 99.27, 0.15, 2.85e4, 0.0, WIDE, shared_file="chromosome"),
            Layer("individuals_merge", 39.48, 0.0, 2.45e4, 0.0, "", (("individuals", ALL),)),
            Layer("sifting", 4.947, 0.62, 5.42e5, 0.66, "", shared_file="annotation"),
            Layer("mutation_overlap", 10.65, 0.88, 1.48e5, 0.06, WIDE, (("individuals_merge", ALL), ("sifting", ALL))),
            Layer("frequency", 139.1, 0.21, 2.64e5, 0.08, WIDE, (("individuals_merge", ALL), ("sifting", ALL))),
        ),
        "1000genome-chameleon-4ch-100k-001",
        {"chromosome": 1.01e9, "annotation": 3.54e8},
    ),
}


def shaped(shape: Shape, width: int, most_inputs: int = MOST_INPUTS) -> RecordedGraph:
    """A graph of this shape whose wide layers have `width` tasks, each file of the input before its first reader.

    Args:
        shape: the application.
        width: tasks of its wide layers.
        most_inputs: as in a `RecordedGraph`.
    """
    graph = RecordedGraph(most_inputs)
    files = {name: graph.add_file(size) for name, size in shape.shared_files.items()}
    pairs = [(a, b) for a in range(width) for b in range(a + 1, min(a + 1 + PAIRED_WITHIN, width))]
    counts = {WIDE: width, PAIRS: len(pairs), "": 1}
    tasks: dict[str, list[int]] = {}
    for layer in shape.layers:
        tasks[layer.name] = []
        for index in range(counts[layer.tasks]):
            reads = [(files[layer.shared_file], 1.0)] if layer.shared_file else []
            if layer.own_file_bytes:
                reads.append((graph.add_file(layer.own_file_bytes), 1.0))
            for other, how in layer.reads:
                reads += [(tasks[other][k], part) for k, part in _read(how, index, width, pairs, len(tasks[other]))]
            run = layer.runtime_s, layer.runtime_sigma, layer.output_bytes, layer.output_sigma
            tasks[layer.name].append(graph.add_task(*run, reads))
    return graph


def _read(
    how: str, index: int, width: int, pairs: Sequence[tuple[int, int]], num_tasks: int
) -> list[tuple[int, float]]:
    """Which of a layer's tasks the task of this index reads, and which share of each one's output."""
    if how == ALL:
        return [(task, 1.0) for task in range(num_tasks)]
    if how == SAME:
        return [(index, 1.0)]
    if how == PART:
        return [(0, 1.0 / width)]
    return [(task, 1.0) for task in pairs[index]]

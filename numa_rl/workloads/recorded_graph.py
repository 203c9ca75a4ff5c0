"""A task graph as a run of it was recorded, in seconds and bytes, and what it asks of a machine.

Dimension key: n tasks.

**Run times become arithmetic and traffic.** Only their proportions are kept, for they were measured on other machines:
the mean task that is no loader does `mean_task_flops`, and moves a byte between its core and its memory for every
`flops_per_byte` of that (its arithmetic intensity [1]).

**Sizes become sizes in proportion.** In the recorded runs files lie on disks, and hundreds of seconds pass for some
megabytes; on a NUMA machine such tasks never notice where their data is. All files of a graph are scaled by one factor,
so that what its tasks read from files and write to them is `data_ratio` times what they move while they compute. That
is the communication-to-computation ratio by which studies of schedulers describe graphs [2], and it bounds the memory
that a graph takes.

References:
    [1] S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for multicore
        architectures", Communications of the ACM 52(4), 2009: 0.17 to 0.25 flop per byte for sparse matrix-vector
        products, 0.33 to 0.5 for stencils, 0.7 to 1.1 for lattice Boltzmann methods, 1.1 to 1.6 for 3-D FFTs.
    [2] H. Topcuoglu, S. Hariri, M.-Y. Wu, "Performance-effective and low-complexity task scheduling for heterogeneous
        computing", IEEE Transactions on Parallel and Distributed Systems 13(3), 2002, section 5.2: CCR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from numa_rl.workloads.graph_stream import GraphKind, in_rows
from numa_rl.workloads.workload import NO_OBJECT

MOST_INPUTS = 32  # arrays have a column for each input that any task may have, and pricing a task takes time for each


@dataclass
class RecordedGraph:
    """Tasks so far, each after those it reads, with a list for each of what a task has.

    Attributes:
        most_inputs: most outputs that a task reads, at least 2. Where it would read more, tasks that take no time of
            their own gather up to so many in one output each, in as many rounds as it takes.
        runtime_s: median run time, 0 for a task that loads a file.
        runtime_sigma: standard deviation of its logarithm.
        output_bytes: median size of what it writes.
        output_sigma: standard deviation of its logarithm.
        reads: (task, share of its output) for each that it reads.
        is_file: whether its output is a file of the input.
    """

    most_inputs: int = MOST_INPUTS
    runtime_s: list[float] = field(default_factory=list)
    runtime_sigma: list[float] = field(default_factory=list)
    output_bytes: list[float] = field(default_factory=list)
    output_sigma: list[float] = field(default_factory=list)
    reads: list[list[tuple[int, float]]] = field(default_factory=list)
    is_file: list[bool] = field(default_factory=list)

    def add_task(
        self,
        runtime_s: float,
        runtime_sigma: float,
        output_bytes: float,
        output_sigma: float,
        reads: Sequence[tuple[int, float]],
    ) -> int:
        """Add a task, and return its index."""
        while len(reads) > self.most_inputs:
            reads = [
                self._gather(reads[first : first + self.most_inputs])
                for first in range(0, len(reads), self.most_inputs)
            ]
        return self._add(runtime_s, runtime_sigma, output_bytes, output_sigma, reads, is_file=False)

    def _gather(self, reads: Sequence[tuple[int, float]]) -> tuple[int, float]:
        """Add a task that copies these into one output, where they are more than one, and return how that is read."""
        if len(reads) == 1:
            return reads[0]
        num_bytes = sum(share * self.output_bytes[task] for task, share in reads)
        return self._add(0.0, 0.0, num_bytes, 0.0, reads, is_file=False), 1.0

    def add_file(self, num_bytes: float) -> int:
        """Add a task that loads a file of the input, and return its index."""
        return self._add(0.0, 0.0, num_bytes, 0.0, [], is_file=True)

    def _add(
        self,
        runtime_s: float,
        runtime_sigma: float,
        output_bytes: float,
        output_sigma: float,
        reads: Sequence[tuple[int, float]],
        is_file: bool,
    ) -> int:
        self.runtime_s.append(runtime_s)
        self.runtime_sigma.append(runtime_sigma)
        self.output_bytes.append(output_bytes)
        self.output_sigma.append(output_sigma)
        self.reads.append(list(reads))
        self.is_file.append(is_file)
        return len(self.reads) - 1

    def kind(self, mean_task_flops: float, flops_per_byte: float, data_ratio: float) -> GraphKind:
        """What it asks of a machine, as the module says.

        Args:
            mean_task_flops: mean arithmetic of its tasks, loaders aside, sigmas aside.
            flops_per_byte: arithmetic intensity.
            data_ratio: bytes that its tasks, loaders aside, read from others' outputs and write as their own, over
                what they move while they compute; 0 leaves files empty.

        Raises:
            ValueError: no task has a run time.
        """
        runtime_s = np.array(self.runtime_s)
        is_file = np.array(self.is_file)
        if not runtime_s.sum() > 0:
            raise ValueError("a recorded graph must have a task that runs for some time, got none.")
        flops = runtime_s * (mean_task_flops * np.count_nonzero(~is_file) / runtime_s.sum())
        work_bytes = flops / flops_per_byte
        inputs, share = in_rows(self.reads)
        recorded = np.array([*self.output_bytes, 0.0])  # the last for no input
        passed_bytes = (recorded[inputs] * share).sum() + recorded[:-1][~is_file].sum()
        scale = data_ratio * work_bytes.sum() / passed_bytes if passed_bytes > 0 else 0.0
        return GraphKind(
            flops=flops,
            flops_sigma=np.array(self.runtime_sigma),
            work_bytes=work_bytes,
            output_bytes=recorded[:-1] * scale,
            output_sigma=np.array(self.output_sigma),
            inputs=inputs,
            input_share=share,
            read_only=is_file,
            looks_at=np.full(len(flops), NO_OBJECT),
        )

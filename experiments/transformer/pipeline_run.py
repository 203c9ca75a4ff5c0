"""A pipeline's schedules on a machine: where the stages go, when they work, and what the simulator makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from experiments.amounts import bytes_text
from numa_rl.simulator.simulator import Simulator
from numa_rl.topology import FloatArray, Topology
from numa_rl.transformer.memory_plan import Recompute, Training
from numa_rl.transformer.pipeline_schedule import (
    INTERLEAVED,
    ONE_F_ONE_B,
    Timeline,
    bubble_fraction,
    bubble_over_ideal,
    operations,
    peak_activations,
    timeline,
)
from numa_rl.transformer.stage_assignment import (
    Layers,
    StageAssignment,
    assignment_costs,
    node_flops_per_s,
    transformer_layers,
)
from numa_rl.transformer.stage_search import assign_stages
from numa_rl.workloads.pipeline import Piece, Program

MOST_SIMULATED = 50_000  # tasks: more would take longer than anyone waits for a table


@dataclass(frozen=True)
class Job:
    """What is to be trained in a pipeline, and on what.

    Attributes:
        topology: the machine.
        training: the model and its sequences.
        sequences: of a micro-batch.
        recompute: what the backward pass computes again.
        num_stages: p.
        num_micro_batches: m.
        num_chunks: v of the interleaved schedule.
        link_s: time in which what a micro-batch sends over a link must pass, see `assign_stages`.
    """

    topology: Topology
    training: Training
    sequences: int
    recompute: Recompute
    num_stages: int
    num_micro_batches: int
    num_chunks: int
    link_s: float | None

    def layers(self) -> Layers:
        """What each layer takes."""
        return transformer_layers(self.training, self.sequences, self.recompute)


@dataclass(frozen=True, eq=False)
class Simulated:
    """What the simulator shows of a batch, from the first pass on.

    Attributes:
        batch_s: how long it takes.
        bubble_fraction: share of the time in which the stages' cores have no pass to work on.
        memory_bytes: most that each stage's node holds, shape (p,).
        dropped: tasks for which no node had room.
    """

    batch_s: float
    bubble_fraction: float
    memory_bytes: FloatArray
    dropped: int


@dataclass(frozen=True, eq=False)
class ScheduleRun:
    """A schedule on a machine.

    Attributes:
        schedule: its name.
        num_micro_batches: m.
        num_chunks: v.
        assignment: its stages.
        timeline: when their passes run, with the stages' own times and messages that hinder nobody.
        simulated: the same in the simulator, None where that is too large.
    """

    schedule: str
    num_micro_batches: int
    num_chunks: int
    assignment: StageAssignment
    timeline: Timeline
    simulated: Simulated | None

    @property
    def shape(self) -> tuple[str, int, int, int]:
        """Arguments of the closed forms."""
        return self.schedule, self.assignment.num_stages, self.num_micro_batches, self.num_chunks

    @property
    def live(self) -> FloatArray:
        """Micro-batches whose activations each stage keeps, shape (p,)."""
        return peak_activations(*self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        given, ops = self.assignment, self.timeline.operations
        simulated = self.simulated
        return {
            "schedule": self.schedule,
            "num_chunks": self.num_chunks,
            "bubble_fraction": bubble_fraction(*self.shape),
            "bubble_over_ideal": bubble_over_ideal(*self.shape),
            "live_micro_batches": self.live.tolist(),
            "compute_max_s": given.compute_max_s,
            "comm_total_s": given.comm_total_s,
            "bounds": given.bounds.tolist(),
            "nodes": given.nodes.tolist(),
            "compute_s": given.compute_s.tolist(),
            "memory_bytes": given.memory_bytes.tolist(),
            "comm_s": given.comm_s.tolist(),
            "link_bytes": given.link_bytes.tolist(),
            "timeline": {
                "batch_s": self.timeline.makespan_s,
                "bubble_fraction": self.timeline.bubble_fraction,
                "operations": [
                    {"stage": stage, "micro_batch": micro_batch, "chunk": chunk, "backward": backward, "start_s": start,
                     "end_s": end}
                    for stage, micro_batch, chunk, backward, start, end in zip(
                        ops.stage.tolist(), ops.micro_batch.tolist(), ops.chunk.tolist(), ops.backward.tolist(),
                        self.timeline.start_s.tolist(), self.timeline.end_s.tolist(), strict=True,
                    )
                ],
            },
            "simulated": None
            if simulated is None
            else {
                "batch_s": simulated.batch_s,
                "bubble_fraction": simulated.bubble_fraction,
                "memory_bytes": simulated.memory_bytes.tolist(),
                "dropped": simulated.dropped,
            },
        }  # fmt: skip


def run_schedule(job: Job, schedule: str) -> ScheduleRun:
    """Assign a schedule's stages, lay out its timeline, and play it in the simulator.

    Raises:
        ValueError: the schedule does not allow the counts, or the stages do not fit the machine.
    """
    layers = job.layers()
    chunks = job.num_chunks if schedule == INTERLEAVED else 1
    ops = operations(schedule, job.num_stages, job.num_micro_batches, chunks)
    assignment = _assigned(job, layers, schedule)
    speed = node_flops_per_s(job.topology)[assignment.nodes]
    of_piece = np.arange(len(assignment.bounds) - 1) % job.num_stages
    forward, backward = (
        np.add.reduceat(flops, assignment.bounds[:-1]) for flops in (layers.forward_flops, layers.backward_flops)
    )
    line = timeline(ops, forward / speed[of_piece], backward / speed[of_piece], assignment.comm_s / 2)
    return ScheduleRun(
        schedule, job.num_micro_batches, chunks, assignment, line, _simulated(job, layers, assignment, line)
    )


def _assigned(job: Job, layers: Layers, schedule: str) -> StageAssignment:
    """The best stages; interleaved, on the nodes of the best 1F1B, with counts of layers as even as they can be."""

    def live(num_stages: int) -> FloatArray:
        other = ONE_F_ONE_B if schedule == INTERLEAVED else schedule
        return peak_activations(other, num_stages, job.num_micro_batches)

    best = assign_stages(job.topology, layers, job.num_stages, live=live, link_s=job.link_s)
    if schedule != INTERLEAVED:
        return best
    pieces = job.num_stages * job.num_chunks
    if pieces > len(layers):
        raise ValueError(
            f"{INTERLEAVED} cuts the model into {job.num_stages} x {job.num_chunks} pieces, and needs a layer for "
            f"each: --layers must be >= {pieces}, got {len(layers)}."
        )
    counts = len(layers) // pieces + (np.arange(pieces) < len(layers) % pieces)
    bounds = np.append(0, np.cumsum(counts))
    kept = peak_activations(schedule, job.num_stages, job.num_micro_batches, job.num_chunks)
    given = assignment_costs(job.topology, layers, bounds, best.nodes, kept)
    room = job.topology.memory_bytes[given.nodes]
    if (given.memory_bytes > room).any():
        stage = int((given.memory_bytes - room).argmax())
        raise ValueError(
            f"{INTERLEAVED} keeps {bytes_text(given.memory_bytes[stage])} in stage {stage}, and node "
            f"{given.nodes[stage]} has {bytes_text(room[stage])}; {ONE_F_ONE_B} would fit."
        )
    return given


def _simulated(job: Job, layers: Layers, assignment: StageAssignment, line: Timeline) -> Simulated | None:
    """Play a batch: each stage's tasks and objects on its node, a lane for each core."""
    lanes = job.topology.cores[assignment.nodes]
    ops = line.operations
    if 2 * ops.num_micro_batches * ops.num_chunks * lanes.sum() > MOST_SIMULATED:
        return None
    program = Program(ops, _pieces(job, layers, assignment), lanes.tolist())
    node = int(assignment.nodes[0])
    pace = float(job.topology.flops_per_s[node]), float(job.topology.bandwidth_bytes_per_s[node, node])
    workload = program.workload("pipeline", *pace)
    stages = program.object_stage[workload.object[0]]
    simulator = Simulator(job.topology, workload, 1, window_s=assignment.compute_max_s)
    simulator.reset(0)
    passes, first_s, busy_s, dropped = workload.flops[0] > 0, np.inf, np.zeros(job.num_stages), 0
    memory = np.zeros(job.topology.num_nodes)
    for stage, is_pass in zip(stages, passes, strict=True):
        now = float(simulator.state.now_s[0])
        outcome = simulator.step(np.full((1, 2), assignment.nodes[stage]))
        memory = np.maximum(memory, simulator.state.memory_used_bytes[0, : len(memory)])
        dropped += int(outcome.out_of_memory[0])
        if is_pass:
            first_s = min(first_s, now + float(outcome.wait_s[0]))
            busy_s[stage] += float(outcome.exec_s[0] - outcome.wait_s[0] + outcome.comm_s[0])
    batch_s = float(simulator.totals.last_finish_s[0]) - first_s
    return Simulated(batch_s, 1.0 - float((busy_s / lanes).mean()) / batch_s, memory[assignment.nodes], dropped)


def _pieces(job: Job, layers: Layers, assignment: StageAssignment) -> list[Piece]:
    """What each piece of the model takes."""
    sizes = job.training.sizes
    weights = sizes.parameter_bytes / (sizes.parameter_bytes + sizes.gradient_bytes + sizes.optimiser_bytes)
    outputs = np.append(layers.border_bytes, 0.0)  # nothing leaves the last layer but the loss
    return [
        Piece(
            forward_flops=float(layers.forward_flops[first:last].sum()),
            backward_flops=float(layers.backward_flops[first:last].sum()),
            weight_bytes=weights * float(layers.parameter_bytes[first:last].sum()),
            state_bytes=float(layers.parameter_bytes[first:last].sum()),
            kept_bytes=float(layers.activation_bytes[first:last].sum()),
            output_bytes=float(outputs[last - 1]),
        )
        for first, last in pairwise(assignment.bounds.tolist())
    ]

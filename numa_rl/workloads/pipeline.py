"""A batch that goes through a pipeline of stages forward and backward, as a schedule says.

Dimension key: E episodes, p stages, m micro-batches, v chunks of a stage, L lanes, T tasks, O objects.

A stage stands for a node, and its lanes for cores of the node, which share each of its operations in equal parts; one
more core of a stage receives what other stages send, while the lanes work. The pieces of a model, which
`pipeline_schedule.py` gives to stages, are made of these tasks:

1. p v L loaders create at time 0 what each lane has of each piece, one object: weights, gradients, optimiser's state;
2. a forward pass is L tasks. Each reads its lane's weights and all of the piece's input, and makes what its lane keeps
   for the backward pass, its part of the output included;
3. a backward pass is L tasks. Each reads its lane's weights, what its forward task kept, and all of the gradient of the
   output. It makes its part of the gradient of the input, and adds to its lane's gradients. A task has one object of
   its own, so that these are counted among what it reads: as many bytes as the weights, there and back;
4. 2 m (p v - 1) tasks receive outputs and their gradients: each, at the stage that needs it, reads all parts of one and
   makes one object of them, which lives until its pass has read it.

What a forward pass keeps is freed with its backward pass, so the memory of a stage follows the live activations of the
schedule. A task waits for what it reads, but not for the operation before it: where a node has more cores than lanes,
a stage's operations may run at once, and the pipeline is faster than its schedule.

References:
    [1] The chapter, section 16.3.4.
    [2] J. Kaplan et al., "Scaling laws for neural language models", 2020, section 2.1: 2 flop for each parameter and
        token forward, twice as many backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from numa_rl.communication.collectives import require_count
from numa_rl.transformer.model import BACKWARD_OVER_FORWARD, FFN_OVER_WIDTH
from numa_rl.transformer.pipeline_schedule import ONE_F_ONE_B, Operations, operations
from numa_rl.workloads.graph_draft import GraphDraft
from numa_rl.workloads.parameters import MOST_TASKS, require
from numa_rl.workloads.processes import IntArray, lognormal
from numa_rl.workloads.workload import Workload

PARAMETERS_OVER_SQUARE = 4 + 2 * FFN_OVER_WIDTH  # of a layer, over its width squared
RECOMPUTED = 1  # forward passes made again in the backward pass, as layers keep nothing but their inputs
BACKWARD_READS = 3  # of the weights' size: weights, and gradients there and back


@dataclass(frozen=True)
class Piece:
    """What a piece of the model takes for one micro-batch.

    Attributes:
        forward_flops: arithmetic of the forward pass.
        backward_flops: of the backward pass.
        weight_bytes: of its weights, which every pass reads.
        state_bytes: of its weights, gradients and optimiser's state.
        kept_bytes: what waits for the backward pass, its output included.
        output_bytes: its output, and the output's gradient.
    """

    forward_flops: float
    backward_flops: float
    weight_bytes: float
    state_bytes: float
    kept_bytes: float
    output_bytes: float


@dataclass(frozen=True)
class Pipeline:
    """A batch of training in a pipeline, one stage being meant for one node.

    All episodes have the same graph of p v L loaders, 2 p m v L tasks of passes and 2 m (p v - 1) receivers; sizes are
    random, and how long each piece computes.

    Attributes:
        schedule: gpipe, 1f1b or interleaved.
        num_stages: p.
        num_micro_batches: m.
        num_chunks: v, 2 or more for the interleaved schedule, else 1.
        lanes: cores of a stage that compute, L.
        layers_per_piece: layers of each of the p v pieces.
        median_tokens: of a micro-batch, lognormal; few, so that weights are read for little arithmetic.
        tokens_sigma: standard deviation of its logarithm.
        median_width: of the model, lognormal.
        width_sigma: standard deviation of its logarithm.
        piece_sigma: how uneven pieces are: standard deviation of the logarithm of each one's arithmetic.
        bytes_per_element: of weights and activations.
        state_bytes_per_parameter: of a weight, its gradient and the optimiser's state together.
        flops_per_s: nominal pace of a core, for the order of tasks.
        bytes_per_s: nominal pace of its memory, likewise.

    Raises:
        ValueError: a parameter is out of range, or the schedule does not allow the counts.
    """

    schedule: str = ONE_F_ONE_B
    num_stages: int = 4
    num_micro_batches: int = 8
    num_chunks: int = 1
    lanes: int = 4
    layers_per_piece: int = 2
    median_tokens: float = 8.0
    tokens_sigma: float = 0.7
    median_width: float = 1024.0
    width_sigma: float = 0.4
    piece_sigma: float = 0.2
    bytes_per_element: float = 2.0
    state_bytes_per_parameter: float = 12.0
    flops_per_s: float = 40e9
    bytes_per_s: float = 20e9

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_count(lanes=self.lanes, layers_per_piece=self.layers_per_piece)
        sizes = "median_tokens median_width bytes_per_element flops_per_s bytes_per_s"
        require(self, sizes, "> 0", lambda value: value > 0)
        require(self, "tokens_sigma width_sigma piece_sigma", "in 0..2", lambda value: 0 <= value <= 2)
        least = self.bytes_per_element
        require(self, "state_bytes_per_parameter", f">= bytes_per_element ({least})", lambda value: value >= least)
        tasks = 2 * self.num_stages * self.num_micro_batches * self.num_chunks * self.lanes
        if tasks > MOST_TASKS:
            raise ValueError(f"2 p m v lanes must be at most {MOST_TASKS} tasks, got {tasks}.")
        _ = self.operations  # checks the schedule

    @cached_property
    def operations(self) -> Operations:
        """What the stages do."""
        return operations(self.schedule, self.num_stages, self.num_micro_batches, self.num_chunks)

    def generate(self, rng: np.random.Generator, num_episodes: int) -> Workload:
        """Make `num_episodes` episodes; more episodes from the same generator extend fewer.

        All are the median episode, whose order of tasks they keep, with other figures.
        """
        uniforms = rng.random((num_episodes, 2 + self.num_stages * self.num_chunks))
        tokens = np.maximum(np.rint(lognormal(uniforms[:, :1], self.median_tokens, self.tokens_sigma)), 1.0)
        width = np.maximum(np.rint(lognormal(uniforms[:, 1:2], self.median_width, self.width_sigma)), 1.0)
        uneven = lognormal(uniforms[:, 2:], 1.0, self.piece_sigma)
        more_tokens, wider = tokens / self.median_tokens, width / self.median_width
        program = self._program
        median = program.workload("pipeline", self.flops_per_s, self.bytes_per_s).take(np.zeros(num_episodes, np.int64))
        own = median.object[0]
        larger = np.where(program.is_state, wider**2, more_tokens * wider)  # of each object, shape (E, O)
        return replace(
            median,
            flops=(median.flops * (more_tokens * wider**2) * uneven[:, program.object_piece[own]]).astype(np.float32),
            bytes=median.bytes * larger[:, own],
            object_bytes=median.object_bytes * larger[:, own],
            input_bytes=median.input_bytes * larger[:, median.inputs[0]],  # 0 bytes of no input stay 0
        )

    def object_stage(self) -> IntArray:
        """The stage of each object, shape (O,): in the program's own layout its tasks run there, and it lives there."""
        return self._program.object_stage

    @cached_property
    def _program(self) -> Program:
        """The median episode."""
        parameters = self.layers_per_piece * PARAMETERS_OVER_SQUARE * self.median_width**2
        forward_flops = 2.0 * parameters * self.median_tokens
        border_bytes = self.median_tokens * self.median_width * self.bytes_per_element
        piece = Piece(
            forward_flops=forward_flops,
            backward_flops=(BACKWARD_OVER_FORWARD + RECOMPUTED) * forward_flops,
            weight_bytes=parameters * self.bytes_per_element,
            state_bytes=parameters * self.state_bytes_per_parameter,
            kept_bytes=self.layers_per_piece * border_bytes,
            output_bytes=border_bytes,
        )
        return Program(self.operations, [piece] * (self.num_stages * self.num_chunks), [self.lanes] * self.num_stages)


class Program:
    """The tasks and objects of a batch.

    Args:
        ops: what the stages do.
        pieces: of the model, p v.
        lanes: of each stage.
    """

    def __init__(self, ops: Operations, pieces: Sequence[Piece], lanes: Sequence[int]) -> None:
        """Write them all down."""
        self.num_stages, self._lanes = ops.num_stages, lanes
        self.draft = GraphDraft()
        self._pieces = pieces
        self._object_piece: list[int] = []
        self._state = [self._add_state(piece) for piece in range(len(pieces))]
        kept: dict[tuple[int, int], list[int]] = {}
        gradients: dict[tuple[int, int], list[int]] = {}
        for piece, micro_batch, backward in zip(ops.piece, ops.micro_batch, ops.backward, strict=True):
            at = int(piece), int(micro_batch)
            if backward:
                gradients[at] = self._add_backward(at[0], kept[at], gradients.get((at[0] + 1, at[1]), []))
            else:
                kept[at] = self._add_forward(at[0], kept.get((at[0] - 1, at[1]), []))
        self.object_piece = np.array(self._object_piece)
        self.is_state = np.arange(len(self.object_piece)) < sum(len(lanes_of) for lanes_of in self._state)

    @property
    def object_stage(self) -> IntArray:
        """The stage that each object belongs to, shape (O,)."""
        return np.asarray(self.object_piece % self.num_stages)

    def workload(self, name: str, flops_per_s: float, bytes_per_s: float) -> Workload:
        """One episode, in order of start at this pace of a core and its memory."""
        return self.draft.workload(name, num_episodes=1, flops_per_s=flops_per_s, bytes_per_s=bytes_per_s)

    def _add_state(self, piece: int) -> list[int]:
        """Weights, gradients and optimiser's state of each lane, loaded."""
        lanes = self._lanes_of(piece)
        size = self._pieces[piece].state_bytes / lanes
        state = [self._add_object(piece, size, kept=True) for _ in range(lanes)]
        for lane, obj in enumerate(state):
            self.draft.add_task(self._worker(piece, lane), obj, num_bytes=size)
        return state

    def _add_forward(self, piece: int, output: list[int]) -> list[int]:
        """A forward pass of what the piece before put out; what each lane keeps."""
        figures, lanes = self._pieces[piece], self._lanes_of(piece)
        given = self._receive(piece, output, self._pieces[max(piece - 1, 0)].output_bytes)
        size, made = figures.kept_bytes / lanes, []
        for lane, state in enumerate(self._state[piece]):
            made.append(self._add_object(piece, size))
            self.draft.add_task(
                self._worker(piece, lane),
                made[-1],
                flops=figures.forward_flops / lanes,
                num_bytes=size,
                reads=[(state, figures.weight_bytes / lanes), *given],
            )
        return made

    def _add_backward(self, piece: int, kept: list[int], gradient: list[int]) -> list[int]:
        """A backward pass of the output's gradient; the parts of the input's gradient."""
        figures, lanes = self._pieces[piece], self._lanes_of(piece)
        given = self._receive(piece, gradient, figures.output_bytes)
        size, made = self._pieces[max(piece - 1, 0)].output_bytes / lanes, []
        for lane, state in enumerate(self._state[piece]):
            made.append(self._add_object(piece, size))
            self.draft.add_task(
                self._worker(piece, lane),
                made[-1],
                flops=figures.backward_flops / lanes,
                num_bytes=size,
                reads=[
                    (state, BACKWARD_READS * figures.weight_bytes / lanes),
                    (kept[lane], figures.kept_bytes / lanes),
                    *given,
                ],
            )
        return made

    def _receive(self, piece: int, parts: list[int], size: float) -> list[tuple[int, float]]:
        """All parts of what another piece made, as one object of this one's stage, and how much of it is read."""
        if not parts:
            return []
        received = self._add_object(piece, size)
        reads = [(part, size / len(parts)) for part in parts]
        self.draft.add_task(self._worker(piece, self._lanes_of(piece)), received, num_bytes=size, reads=reads)
        return [(received, size)]

    def _add_object(self, piece: int, num_bytes: float, *, kept: bool = False) -> int:
        self._object_piece.append(piece)
        return self.draft.add_object(num_bytes, kept=kept)

    def _worker(self, piece: int, lane: int) -> int:
        """The core of a lane of the piece's stage, or behind them the one that receives."""
        return piece % self.num_stages * (max(self._lanes) + 1) + lane

    def _lanes_of(self, piece: int) -> int:
        return self._lanes[piece % self.num_stages]

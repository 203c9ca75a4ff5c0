"""The tasks of transformer training, written down as a program would run them.

Dimension key: p ranks, L lanes, T tasks, O objects; see `training_split.py` for what these are.

**What a task reads.** Of a lane's share of one block, let weights have w bytes, the activations between two layers a,
and those that wait for the backward pass k:

    forward             the weights, w, and all lanes' part of the block's input, L a; makes k, of which a is the output
    backward, input     the weights, w, or 2 w where the layers are computed again, all lanes' part of the output's
                        gradient, L a, and what its forward task kept, k; makes a
    backward, weights   all lanes' part of the block's input, L a, and its own part of the output's gradient, a;
                        adds to its gradients, 2 w, or w where it is the first to write them

What was kept is read once for both backward tasks. At the end of the model the gradient of the loss is taken from the
output as that is read. The gradients with respect to the model's input are made as well; an embedding would need them.

**Order.** Every stage runs its operations in the order of the pipeline's schedule. A backward operation first takes the
gradients back through all of its blocks, for which the stage before waits, and then those of its weights.

References:
    [1] The chapter, sections 16.1.2 (all-reduce), 16.3.1 (heads), 16.3.2 (columns, then rows) and 16.3.4 (pipeline).
    [2] D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from itertools import zip_longest

from numa_rl.communication.schedules import Schedule, ring
from numa_rl.transformer.pipeline_schedule import Operations
from numa_rl.workloads.graph_draft import GraphDraft, Messages, add_all_reduce
from numa_rl.workloads.training_split import Grid, LaneShare

# Of Adam for each parameter [2]: both moments are moved towards the gradient and its square (3 + 4), corrected, and the
# weight takes its step (2 + 5).
MOMENTS_FLOPS, UPDATE_FLOPS = 7.0, 7.0
NO_STEP = -1  # as a task's training step: it loads what is there before the first
NO_BATCH = -1  # as its micro-batch: it is for all of them, or for none


class Kind(IntEnum):
    """What a task of training does."""

    CHECKPOINT = 0  # a rank's weights arrive
    WEIGHTS = 1  # a lane takes its part of them
    OPTIMISER = 2  # and makes the optimiser's state
    INPUT = 3  # the tokens of a micro-batch arrive, embedded
    FORWARD = 4
    BACKWARD_INPUT = 5  # gradients with respect to what a block was given
    BACKWARD_WEIGHTS = 6  # and to its weights, added to those of earlier micro-batches
    RECEIVE = 7  # activations or their gradients from another stage
    ACTIVATION_SUM = 8  # a send of the all-reduce among model-parallel ranks
    GRADIENT_SUM = 9  # and of that among data-parallel ranks
    MOMENTS = 10  # the optimiser's state takes in the gradients
    UPDATE = 11  # the weights take a step


COMPUTING = (Kind.FORWARD, Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHTS)


Read = tuple[int, float]  # an object, and how many bytes of it a task reads


class TrainingTasks:
    """The tasks so far: loading first, then a training step with each call of `add_step`.

    Attributes:
        draft: the tasks and objects.
        kind: what each task does, shape (T,).
        step: the training step of each task, or `NO_STEP`, shape (T,).
        micro_batch: the micro-batch of each task, counted over replicas, or `NO_BATCH`, shape (T,).
        exchanges: for how many messages, or more where these are too long, each task stands that receives what another
            rank has; 0 for others, shape (T,).
        activation_step: the training step of each object that grows with the tokens of a micro-batch, or `NO_STEP`,
            shape (O,).
    """

    def __init__(
        self, grid: Grid, share: LaneShare, operations: Operations, gradients: Schedule, messages: Messages
    ) -> None:
        """Begin with the tasks that load.

        Args:
            grid: the ranks.
            share: what falls to each lane.
            operations: of the stages of one replica, in one step.
            gradients: how replicas sum their gradients.
            messages: as what ranks send.
        """
        self.draft = GraphDraft()
        self.kind: list[Kind] = []
        self.step: list[int] = []
        self.micro_batch: list[int] = []
        self.exchanges: list[int] = []
        self.activation_step: list[int] = []
        self._grid, self._share = grid, share
        self._operations, self._gradient_schedule = operations, gradients
        self._messages = messages
        self._now, self._batch = NO_STEP, NO_BATCH
        self._blocks_of_piece = share.blocks // operations.num_chunks
        self._weights: list[list[int]] = []
        self._moments: list[list[int]] = []
        self._gradients: list[list[int]] = []
        self._written: set[tuple[int, int]] = set()  # ranks and blocks whose gradients are there in this step
        # Of each replica, micro-batch and block of the model, and there of each model-parallel rank:
        self._given: dict[tuple[int, int, int], list[list[Read]]] = {}  # what is read as its input
        self._kept: dict[tuple[int, int, int], list[list[int]]] = {}  # what it put out
        self._returned: dict[tuple[int, int, int], list[list[int]]] = {}  # gradients with respect to its input
        self._load()

    def add_step(self) -> None:
        """Add a training step."""
        self._now += 1
        self._written.clear()
        share, operations, ranks = self._share, self._operations, range(self._grid.num_ranks)
        self._gradients = [self._objects(share.weights_bytes) for _ in ranks]
        order = zip(operations.piece, operations.micro_batch, operations.backward, strict=True)
        for piece, micro_batch, backward in order:
            for replica in range(self._grid.data_parallel):
                self._batch = replica * operations.num_micro_batches + int(micro_batch)
                add = self._add_backward if backward else self._add_forward
                add(int(piece), replica, int(micro_batch))
        self._batch = NO_BATCH
        self._sum_gradients()
        self._update()

    def _objects(self, num_bytes: float, *, kept: bool = False, activations: bool = False) -> list[int]:
        """An object for each lane."""
        return [self._object(num_bytes, kept=kept, activations=activations) for _ in range(self._grid.lanes)]

    def _object(self, num_bytes: float, *, kept: bool = False, activations: bool = False) -> int:
        self.activation_step.append(self._now if activations else NO_STEP)
        return self.draft.add_object(num_bytes, kept=kept)

    def _label(self, kind: Kind, exchanges: int = 0) -> None:
        """Say what the tasks that were added since the last call do."""
        new = self.draft.num_tasks - len(self.kind)
        self.kind += [kind] * new
        self.exchanges += [exchanges] * new
        self.step += [self._now] * new
        self.micro_batch += [self._batch] * new

    def _load(self) -> None:
        """Every rank reads its part of the checkpoint, and its lanes take their parts of that."""
        share, lanes = self._share, self._grid.lanes
        everyone = [self._grid.workers(rank) for rank in range(self._grid.num_ranks)]
        checkpoints = [self._object(lanes * share.weights_bytes) for _ in everyone]
        for workers, checkpoint in zip(everyone, checkpoints, strict=True):
            self.draft.add_task(workers[0], checkpoint, num_bytes=lanes * share.weights_bytes)
        self._label(Kind.CHECKPOINT)
        for workers, checkpoint in zip(everyone, checkpoints, strict=True):
            self._weights.append(self._objects(share.weights_bytes, kept=True))
            for worker, weights in zip(workers, self._weights[-1], strict=True):
                reads = [(checkpoint, share.weights_bytes)]
                self.draft.add_task(worker, weights, num_bytes=share.weights_bytes, reads=reads)
        self._label(Kind.WEIGHTS)
        for workers in everyone:
            self._moments.append(self._objects(share.optimiser_bytes, kept=True))
            for worker, moments in zip(workers, self._moments[-1], strict=True):
                self.draft.add_task(worker, moments, num_bytes=share.optimiser_bytes)
        self._label(Kind.OPTIMISER)

    def _model_ranks(self, piece: int, replica: int) -> range:
        return self._grid.model_ranks(piece % self._grid.pipeline_parallel, replica)

    def _blocks(self, piece: int) -> range:
        """The blocks of the model in one of its pieces."""
        return range(piece * self._blocks_of_piece, (piece + 1) * self._blocks_of_piece)

    def _add_forward(self, piece: int, replica: int, micro_batch: int) -> None:
        share, ranks = self._share, self._model_ranks(piece, replica)
        blocks = self._blocks(piece)
        if piece == 0:
            given = self._read_tokens(ranks)
        else:
            given = self._receive(ranks, self._kept[replica, micro_batch, blocks[0] - 1])
        for block in blocks:
            kept = [self._objects(share.kept_bytes, activations=True) for _ in ranks]
            for rank, reads, made in zip(ranks, given, kept, strict=True):
                for worker, weights, obj in zip(self._grid.workers(rank), self._weights[rank], made, strict=True):
                    self.draft.add_task(
                        worker,
                        obj,
                        flops=share.weights_flops + share.attention_flops,
                        num_bytes=share.kept_bytes,
                        reads=[(weights, share.block_bytes), *reads],
                    )
            self._label(Kind.FORWARD)
            self._sum_activations(ranks, kept, share.sums)
            self._given[replica, micro_batch, block] = given
            self._kept[replica, micro_batch, block] = kept
            given = [self._whole(made) for made in kept]

    def _add_backward(self, piece: int, replica: int, micro_batch: int) -> None:
        ranks, blocks = self._model_ranks(piece, replica), self._blocks(piece)
        after = self._returned.get((replica, micro_batch, blocks[-1] + 1))
        if after is None:  # the end of the model
            gradient = [self._whole(kept) for kept in self._kept[replica, micro_batch, blocks[-1]]]
        else:
            gradient = self._receive(ranks, after)
        gradients = {}
        for block in blocks[::-1]:
            gradients[block] = gradient
            returned = self._add_backward_input(ranks, self._kept[replica, micro_batch, block], gradient)
            self._returned[replica, micro_batch, block] = returned
            gradient = [self._whole(made) for made in returned]
        for block in blocks[::-1]:
            # Weights that are updated are read no more: the last of their gradients wait for who read them last.
            waits = returned if block == blocks[0] else [[] for _ in ranks]
            self._add_backward_weights(ranks, block, self._given[replica, micro_batch, block], gradients[block], waits)

    def _add_backward_input(
        self, ranks: Sequence[int], kept: Sequence[Sequence[int]], gradient: Sequence[Sequence[Read]]
    ) -> list[list[int]]:
        """Add the tasks of one block; what they make, of each rank and lane."""
        share = self._share
        weights_read = share.block_bytes * (2 if share.again else 1)
        returned = [self._objects(share.boundary_bytes, activations=True) for _ in ranks]
        for rank, own, reads, made in zip(ranks, kept, gradient, returned, strict=True):
            lanes = zip(self._grid.workers(rank), self._weights[rank], own, made, strict=True)
            for worker, weights, output, obj in lanes:
                # At the end of the model the output is among what is read for the gradient.
                once = {weights: weights_read, **dict(reads), output: share.kept_bytes}
                self.draft.add_task(
                    worker,
                    obj,
                    flops=share.weights_flops + 2 * share.attention_flops + share.again_flops,
                    num_bytes=share.boundary_bytes,
                    reads=list(once.items()),
                )
        self._label(Kind.BACKWARD_INPUT)
        self._sum_activations(ranks, returned, share.backward_sums)
        return returned

    def _add_backward_weights(
        self,
        ranks: Sequence[int],
        block: int,
        given: Sequence[Sequence[Read]],
        gradient: Sequence[Sequence[Read]],
        waits: Sequence[Sequence[int]],
    ) -> None:
        """Add the tasks of one block.

        Args:
            ranks: who they are for.
            block: of the model.
            given: the block's input, of each rank.
            gradient: with respect to its output, of each rank and lane.
            waits: objects of each rank and lane that are waited for, or none.
        """
        share = self._share
        for rank, inputs, outputs, made in zip(ranks, given, gradient, waits, strict=True):
            adds = (rank, block) in self._written
            self._written.add((rank, block))
            lanes = zip_longest(self._grid.workers(rank), self._gradients[rank], outputs, made)
            for worker, obj, output, waited in lanes:
                self.draft.add_task(
                    worker,
                    obj,
                    flops=share.weights_flops,
                    num_bytes=share.block_bytes * (2.0 if adds else 1.0),
                    write_fraction=0.5 if adds else 1.0,
                    reads=[*inputs, output, *([] if waited is None else [(waited, 0.0)])],
                )
        self._label(Kind.BACKWARD_WEIGHTS)

    def _whole(self, lanes: Sequence[int]) -> list[Read]:
        """To read the activations of all lanes at one boundary."""
        return [(obj, self._share.boundary_bytes) for obj in lanes]

    def _read_tokens(self, ranks: Sequence[int]) -> list[list[Read]]:
        """Every rank of the first stage is given the tokens of a micro-batch, embedded."""
        num_bytes = self._grid.lanes * self._share.boundary_bytes
        tokens = [self._object(num_bytes, activations=True) for _ in ranks]
        for rank, obj in zip(ranks, tokens, strict=True):
            self.draft.add_task(self._grid.workers(rank)[0], obj, num_bytes=num_bytes)
        self._label(Kind.INPUT)
        return [[(obj, num_bytes)] for obj in tokens]

    def _receive(self, ranks: Sequence[int], sent: Sequence[Sequence[int]]) -> list[list[Read]]:
        """Each lane takes its part of what its like in another stage has made; itself, where there is one stage."""
        num_bytes = self._share.boundary_bytes
        if self._grid.pipeline_parallel == 1:
            return [self._whole(objects) for objects in sent]
        received = [self._objects(num_bytes, activations=True) for _ in ranks]
        for rank, sources, targets in zip(ranks, sent, received, strict=True):
            for worker, source, target in zip(self._grid.workers(rank), sources, targets, strict=True):
                self.draft.add_task(
                    worker,
                    target,
                    num_bytes=num_bytes,
                    reads=[(source, num_bytes)],
                    overhead_s=self._messages.seconds(num_bytes),
                )
        self._label(Kind.RECEIVE, exchanges=1)
        return [self._whole(objects) for objects in received]

    def _sum_activations(self, ranks: Sequence[int], parts: Sequence[Sequence[int]], sums: int) -> None:
        """All-reduce of what the ranks that share a block have made: a send stands for those of all sums."""
        self._all_reduce(ring(len(ranks)), ranks, parts, self._share.boundary_bytes, sums)
        self._label(Kind.ACTIVATION_SUM, sums)

    def _sum_gradients(self) -> None:
        for ranks in self._grid.replicas():
            gradients = [self._gradients[rank] for rank in ranks]
            self._all_reduce(self._gradient_schedule, ranks, gradients, self._share.weights_bytes, 1)
        self._label(Kind.GRADIENT_SUM, exchanges=1)

    def _all_reduce(
        self, schedule: Schedule, ranks: Sequence[int], lanes: Sequence[Sequence[int]], num_bytes: float, times: int
    ) -> None:
        """So many at once, of vectors in equal parts for each lane, of as many chunks as there are lanes or fewer."""
        size = self._grid.lanes // schedule.num_chunks
        add_all_reduce(
            self.draft,
            schedule,
            [[row[first : first + size] for first in range(0, len(row), size)] for row in lanes],
            [self._grid.workers(rank) for rank in ranks],
            object_bytes=times * num_bytes,
            bytes_per_element=self._share.bytes_per_element,
            messages=Messages(times * self._messages.num_bytes, times * self._messages.overhead_s),
        )

    def _update(self) -> None:
        """Every lane moves the moments towards its gradients, then its weights by the moments."""
        share, ranks = self._share, range(self._grid.num_ranks)
        for rank in ranks:
            lanes = zip(self._grid.workers(rank), self._moments[rank], self._gradients[rank], strict=True)
            for worker, moments, gradient in lanes:
                self.draft.add_task(
                    worker,
                    moments,
                    flops=MOMENTS_FLOPS * share.parameters,
                    num_bytes=2 * share.optimiser_bytes,
                    write_fraction=0.5,
                    reads=[(gradient, share.weights_bytes)],
                )
        self._label(Kind.MOMENTS)
        for rank in ranks:
            for worker, weights, moments in zip(
                self._grid.workers(rank), self._weights[rank], self._moments[rank], strict=True
            ):
                self.draft.add_task(
                    worker,
                    weights,
                    flops=UPDATE_FLOPS * share.parameters,
                    num_bytes=2 * share.weights_bytes,
                    write_fraction=0.5,
                    reads=[(moments, share.optimiser_bytes)],
                )
        self._label(Kind.UPDATE)

"""Training steps of a transformer that is split MP x DP x PP over the sockets of a machine.

Dimension key: E episodes, S training steps, M micro-batches of a step, p ranks, T tasks, O objects, P inputs, N nodes.

A global batch of `micro_batches` micro-batches goes through a model of equal layers. Data parallelism (DP) shares out
the micro-batches among replicas, which sum their gradients by an all-reduce at the end of each step; pipeline
parallelism (PP) shares out the layers among stages; model parallelism (MP) shares out each layer, whose activations are
then summed [3]. The work is the same however it is split: 6 flop per parameter and token [2], and attention's.
`training_tasks.py` says what each task does and reads.

An episode begins with loading: every rank's weights arrive in one piece, from which its lanes take theirs, so that who
belongs together shows from the first tasks on. Episodes differ in how many tokens a micro-batch of each step has, and
in how much longer or shorter each micro-batch computes. These are the same for the same seed however the work is split.

References:
    [1] The chapter, sections 16.3 and 16.4.4.
    [2] J. Kaplan et al., "Scaling laws for neural language models", 2020, section 2.1: 2 flop per parameter and token
        forward, 4 backward.
    [3] M. Shoeybi et al., "Megatron-LM: training multi-billion parameter language models using model
        parallelism", 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from numa_rl.communication.collectives import require_count
from numa_rl.communication.schedules import Schedule, halving_doubling, hierarchical, ring
from numa_rl.partition.graph import graph_from_matrix
from numa_rl.partition.mapping import compute_nodes, map_parts, node_distances
from numa_rl.partition.methods import partition
from numa_rl.partition.objective import traffic_matrix
from numa_rl.topology import Topology
from numa_rl.transformer.memory_plan import Recompute
from numa_rl.transformer.model import Transformer
from numa_rl.transformer.pipeline_schedule import ONE_F_ONE_B, Operations, operations
from numa_rl.workloads.collective import ALGORITHMS
from numa_rl.workloads.graph_draft import Messages
from numa_rl.workloads.parameters import MOST_TASKS, require
from numa_rl.workloads.processes import FloatArray, IntArray, lognormal
from numa_rl.workloads.training_split import Grid, LaneShare, lane_share
from numa_rl.workloads.training_tasks import COMPUTING, TrainingTasks
from numa_rl.workloads.workload import NO_OBJECT, Workload

# Far beyond any machine: what is computed of parameters within them stays finite.
LIMITS = {
    "layers width heads context micro_batch_tokens": (1, 1e6),
    "bytes_per_element": (1, 16),
    "optimiser_bytes": (1e-3, 1e3),
    "tokens_sigma compute_sigma": (0, 2),
    "message_bytes": (1, 1e18),
    "message_overhead_s": (0, 1e3),
    "flops_per_s bytes_per_s": (1, 1e18),
}


class _Program(NamedTuple):
    """The tasks of an episode of median figures, in the workload's order.

    Attributes:
        workload: one episode.
        kind: what each task does, see `Kind`, shape (T,).
        step: the training step of each task, -1 for loading, shape (T,).
        micro_batch: the micro-batch of each task, -1 where it has none, shape (T,).
        rank: whose task it is in the program's own layout, shape (T,).
        activation_step: the training step of each object that grows with the tokens, -1 for others, shape (O,).
        exchanges: see `TrainingTasks`, shape (T,).
    """

    workload: Workload
    kind: IntArray
    step: IntArray
    micro_batch: IntArray
    rank: IntArray
    activation_step: IntArray
    exchanges: IntArray


@dataclass(frozen=True)
class TransformerTraining:
    """Training steps of a transformer split MP x DP x PP, one rank being meant for one socket.

    Ranks are numbered as in Megatron: model-parallel ones are next to each other, then replicas, then stages.

    Attributes:
        layers: of the model.
        width: of the model.
        heads: of attention.
        context: tokens of a sequence; each attends to itself and to those before it.
        model_parallel: ranks that share every layer, MP.
        data_parallel: replicas, DP.
        pipeline_parallel: stages, PP.
        micro_batches: of all replicas in a step.
        micro_batch_tokens: median tokens of a micro-batch, lognormal over steps.
        tokens_sigma: standard deviation of its logarithm.
        num_steps: training steps of an episode, S.
        recompute: what the backward pass computes again instead of keeping it: "none", "attention" or "full", see
            `transformer.memory_plan`.
        layers_per_task: layers that a task takes at once.
        lanes: tasks that share each operation of a rank, such as one for each core of a socket.
        schedule: of the pipeline: "1f1b", "gpipe" or "interleaved".
        stage_chunks: pieces of the model that each stage holds, more than 1 for the interleaved schedule.
        algorithm: how gradients are summed: "ring", in the order of ranks, "hierarchical" or "halving-doubling".
        group_ranks: replicas of one group; without effect unless the algorithm is hierarchical.
        message_bytes: size of a message between ranks at most.
        message_overhead_s: what software adds to each.
        bytes_per_element: size of a number, 4 in single precision.
        optimiser_bytes: what the optimiser keeps for each parameter: 8 for Adam's two moments in single precision.
        compute_sigma: standard deviation of the logarithm of how much more arithmetic a micro-batch takes than its
            tokens say, lognormal: sequences differ in length.
        flops_per_s: nominal pace of a core, for the order of tasks.
        bytes_per_s: nominal pace of its memory, for the order of tasks: a core's share where all are busy.

    Raises:
        ValueError: a parameter is out of range, or does not divide what it must; the message says what would.
    """

    layers: int = 2
    width: int = 1024
    heads: int = 16
    context: int = 256
    model_parallel: int = 1
    data_parallel: int = 2
    pipeline_parallel: int = 2
    micro_batches: int = 4
    micro_batch_tokens: float = 8.0
    tokens_sigma: float = 0.3
    num_steps: int = 2
    recompute: str = Recompute.NONE.value
    layers_per_task: int = 1
    lanes: int = 4
    schedule: str = ONE_F_ONE_B
    stage_chunks: int = 1
    algorithm: str = "ring"
    group_ranks: int = 2
    message_bytes: float = 1e6
    message_overhead_s: float = 5e-6
    bytes_per_element: int = 4
    optimiser_bytes: float = 8.0
    compute_sigma: float = 0.05
    flops_per_s: float = 40e9
    bytes_per_s: float = 12.5e9

    def __post_init__(self) -> None:
        """Check the ranges, and what must divide what."""
        counts = (
            "layers width heads context model_parallel data_parallel pipeline_parallel micro_batches num_steps "
            "layers_per_task lanes stage_chunks group_ranks bytes_per_element"
        )
        require_count(**{name: getattr(self, name) for name in counts.split()})
        for names, (least, most) in LIMITS.items():
            require(self, names, f"in {least:g}..{most:g}", _within(least, most))
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {self.algorithm!r}.")
        known = [kind.value for kind in Recompute]
        if self.recompute not in known:
            raise ValueError(f"recompute must be one of {', '.join(known)}, got {self.recompute!r}.")
        _require_multiple("heads", self.heads, self.model_parallel, "model_parallel")
        _require_multiple("width", self.width, self.heads, "heads")
        split = "pipeline_parallel x stage_chunks x layers_per_task"
        _require_multiple(
            "layers", self.layers, self.pipeline_parallel * self.stage_chunks * self.layers_per_task, split
        )
        _require_multiple("micro_batches", self.micro_batches, self.data_parallel, "data_parallel")
        if self.algorithm == "hierarchical":
            _require_multiple("data_parallel", self.data_parallel, self.group_ranks, "group_ranks")
        _require_multiple("lanes", self.lanes, self._gradient_chunks, "the chunks of the gradients' sum")
        _require_multiple("lanes", self.lanes, self.model_parallel, "model_parallel, the chunks of activations")
        if self.num_tasks > MOST_TASKS:
            raise ValueError(
                f"an episode must have at most {MOST_TASKS} tasks, got {self.num_tasks}; a larger layers_per_task, and "
                f"fewer micro_batches or lanes, have fewer."
            )
        assert len(self.operations)  # checks the schedule
        assert self._share.blocks  # and the size of the model

    @cached_property
    def model(self) -> Transformer:
        """The model."""
        return Transformer(layers=self.layers, width=self.width, heads=self.heads)

    @property
    def num_ranks(self) -> int:
        """Ranks p = MP x DP x PP."""
        return self._grid.num_ranks

    @property
    def _grid(self) -> Grid:
        return Grid(self.model_parallel, self.data_parallel, self.pipeline_parallel, self.lanes)

    @cached_property
    def gradient_schedule(self) -> Schedule:
        """How replicas sum their gradients: who sends what to whom."""
        if self.algorithm == "halving-doubling":
            return halving_doubling(self.data_parallel)
        if self.algorithm == "hierarchical":
            first_ranks = range(0, self.data_parallel, self.group_ranks)
            return hierarchical([range(first, first + self.group_ranks) for first in first_ranks])
        return ring(self.data_parallel)

    @property
    def _gradient_chunks(self) -> int:
        """Into how many chunks that cuts them."""
        halving = self.algorithm == "halving-doubling"
        return 1 << (self.data_parallel.bit_length() - 1) if halving else self.data_parallel

    @cached_property
    def operations(self) -> Operations:
        """What the stages of a replica do in one step."""
        per_replica = self.micro_batches // self.data_parallel
        return operations(self.schedule, self.pipeline_parallel, per_replica, self.stage_chunks)

    @cached_property
    def _program(self) -> _Program:
        tasks = TrainingTasks(self._grid, self._share, self.operations, self.gradient_schedule, self._messages)
        for _ in range(self.num_steps):
            tasks.add_step()
        pace = {"flops_per_s": self.flops_per_s, "bytes_per_s": self.bytes_per_s}
        order = tasks.draft.order(**pace)
        return _Program(
            workload=tasks.draft.workload("transformer-training", num_episodes=1, **pace),
            kind=np.array(tasks.kind, np.int64)[order],
            step=np.array(tasks.step)[order],
            micro_batch=np.array(tasks.micro_batch)[order],
            rank=tasks.draft.workers(**pace) // self.lanes,
            activation_step=np.array(tasks.activation_step),
            exchanges=np.array(tasks.exchanges)[order],
        )

    @property
    def _messages(self) -> Messages:
        return Messages(self.message_bytes, self.message_overhead_s)

    @property
    def _share(self) -> LaneShare:
        """What falls to one lane, of a micro-batch of the median size."""
        return lane_share(
            self.model,
            self._grid,
            micro_batch_tokens=self.micro_batch_tokens,
            context=self.context,
            layers_per_block=self.layers_per_task,
            bytes_per_element=self.bytes_per_element,
            optimiser_bytes=self.optimiser_bytes,
            recompute=Recompute(self.recompute),
        )

    @property
    def num_tasks(self) -> int:
        """Tasks of an episode, T."""
        mp, lanes, ranks = self.model_parallel, self.lanes, self.num_ranks
        blocks = self.layers // self.layers_per_task
        crossings = self.pipeline_parallel * self.stage_chunks - 1 if self.pipeline_parallel > 1 else 0
        of_block = 3 * mp * lanes + 2 * 2 * (mp - 1) * lanes  # computations, and sends of two sums of activations
        of_micro_batch = blocks * of_block + 2 * crossings * mp * lanes + mp
        sends = 2 * (self.data_parallel - 1) * lanes  # to sum gradients by any of the algorithms
        of_step = self.micro_batches * of_micro_batch + ranks // self.data_parallel * sends + 2 * ranks * lanes
        return ranks * (1 + 2 * lanes) + self.num_steps * of_step

    @property
    def task_step(self) -> IntArray:
        """The training step of each task in the workload's order, -1 for loading, shape (T,)."""
        return self._program.step

    @property
    def task_kind(self) -> IntArray:
        """What each task does, see `training_tasks.Kind`, shape (T,)."""
        return self._program.kind

    @property
    def task_rank(self) -> IntArray:
        """Whose task each is in the program's own layout, shape (T,)."""
        return self._program.rank

    def generate(self, rng: np.random.Generator, num_episodes: int) -> Workload:
        """Make `num_episodes` episodes; more episodes from the same generator extend fewer."""
        s, m = self.num_steps, self.micro_batches
        uniforms = rng.random((num_episodes, s + s * m))
        tokens = lognormal(uniforms[:, :s], self.micro_batch_tokens, self.tokens_sigma)
        size = np.maximum(np.rint(tokens), 1.0) / self.micro_batch_tokens
        longer = lognormal(uniforms[:, s:], 1.0, self.compute_sigma).reshape(num_episodes, s, m)
        return self._episodes(size, longer)

    def _episodes(self, size: FloatArray, longer: FloatArray) -> Workload:
        """Episodes of the program.

        Args:
            size: of micro-batches in each step, over the median, shape (E, S).
            longer: arithmetic of each micro-batch, over what its tokens take, shape (E, S, M).
        """
        program = self._program
        median = program.workload
        of_step = np.concatenate([size, np.ones((len(size), 1))], axis=1)  # the last one for what does not grow
        of_object = of_step[:, program.activation_step]
        own, inputs = median.object[0], median.inputs[0]
        input_bytes = median.input_bytes * of_object[:, inputs]
        grows = of_object[:, own]
        computing = np.isin(program.kind, COMPUTING)
        flops = median.flops * np.where(computing, of_step[:, program.step], grows)
        flops[:, computing] *= longer[:, program.step[computing], program.micro_batch[computing]]

        def repeated(one: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.broadcast_to(one, (len(size), *one.shape[1:]))

        return Workload(
            name=median.name,
            arrival_s=repeated(median.arrival_s),
            flops=flops,
            bytes=median.bytes * grows,
            write_fraction=repeated(median.write_fraction),
            object=repeated(median.object),
            object_bytes=median.object_bytes * grows,
            inputs=repeated(median.inputs),
            input_bytes=input_bytes,
            freed_after=repeated(median.freed_after),
            read_only=repeated(median.read_only),
            overhead_s=self._overhead_s(input_bytes.sum(axis=2)),
            follows_inputs=True,
        )

    def _overhead_s(self, read_bytes: FloatArray) -> npt.NDArray[Any]:
        """What software adds to each task, by what it receives, shape (E, T)."""
        exchanges = self._program.exchanges
        return exchanges * self._messages.seconds(read_bytes / np.maximum(exchanges, 1))

    @cached_property
    def rank_traffic_bytes(self) -> FloatArray:
        """Bytes that each rank reads from what each one has made in a median episode, row = reader, shape (p, p)."""
        program = self._program
        workload, rank = program.workload, program.rank
        owner = np.empty(workload.num_objects, np.int64)
        owner[workload.object[0]] = rank
        task, place = np.nonzero(workload.inputs[0] != NO_OBJECT)
        traffic = np.zeros((self.num_ranks, self.num_ranks))
        made = owner[workload.inputs[0, task, place]]
        np.add.at(traffic, (rank[task], made), workload.input_bytes[0, task, place])
        return traffic

    def rank_nodes(self, topology: Topology) -> IntArray:
        """The node of each rank, so that those with much between them are near each other, shape (p,).

        Up to as many ranks as nodes with cores have one each, the best of all ways where there are few nodes
        (`partition.mapping`). More ranks are first parted into as many groups as there are nodes, of equal size where
        that can be, with little between them.

        Args:
            topology: the machine.
        """
        nodes = compute_nodes(topology)
        traffic = self.rank_traffic_bytes + self.rank_traffic_bytes.T
        np.fill_diagonal(traffic, 0.0)
        group = np.arange(self.num_ranks)
        if self.num_ranks > len(nodes):
            graph = graph_from_matrix(traffic, np.ones(self.num_ranks))
            # A layout is no draw: the same machine and split always give the same one.
            group = partition(graph, len(nodes), imbalance=0.0, rng=np.random.default_rng(0)).parts
            traffic = traffic_matrix(graph, group, len(nodes))
        return np.asarray(nodes[map_parts(traffic, node_distances(topology))[group]])

    def layout(self, topology: Topology, rank_node: npt.ArrayLike | None = None) -> IntArray:
        """The program's own placement, tuned by hand: a rank's tasks and objects all on one node.

        Args:
            topology: the machine.
            rank_node: the node of each rank, shape (p,); those of `rank_nodes` when None.

        Returns:
            (task node, data node) of each task in the workload's order, shape (T, 2), the same in every episode.

        Raises:
            ValueError: not a node for each rank, or one that the machine does not have or that has no cores.
        """
        nodes = self.rank_nodes(topology) if rank_node is None else np.asarray(rank_node)
        if nodes.shape != (self.num_ranks,):
            raise ValueError(f"rank_node must have shape ({self.num_ranks},), a node for each rank, got {nodes.shape}.")
        good = np.isin(nodes, compute_nodes(topology))
        if not good.all():
            rank = int(np.argmin(good))
            raise ValueError(f"rank_node[{rank}] must be a node of {topology.name} with cores, got {nodes[rank]}.")
        return np.repeat(nodes.astype(np.int64)[self.task_rank][:, None], 2, axis=1)


def _within(least: float, most: float) -> Callable[[float], bool]:
    return lambda value: least <= value <= most


def _require_multiple(name: str, value: int, of: int, what: str) -> None:
    """Raise ValueError unless the value is a multiple; the message says which ones are near."""
    if value % of:
        below = value // of * of
        near = f"{below} or {below + of}" if below else f"{of}"
        raise ValueError(f"{name} must be a multiple of {of}, {what}, got {value}; {near} would do.")

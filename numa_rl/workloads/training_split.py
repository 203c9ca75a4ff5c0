"""What falls to each rank of a training step that is split MP x DP x PP, and to each lane of a rank.

Dimension key: p ranks, L lanes.

A rank is one of MP x DP x PP and stands for a socket; its L lanes stand for the socket's cores, and share every
operation in equal parts. A lane holds 1 / L of its rank's weights, and makes 1 / L of what a block of layers puts out,
from all that goes in.

References:
    [1] The chapter, sections 16.3.1 (heads), 16.3.2 (columns, then rows) and 16.3.4 (pipeline).
    [2] M. Shoeybi et al., "Megatron-LM: training multi-billion parameter language models using model parallelism",
        2019, section 3: two all-reduces of activations in each layer forward, and two backward.
    [3] J. Kaplan et al., "Scaling laws for neural language models", 2020, section 2.1: 2 flop per parameter and token
        forward.
    [4] V. Korthikanti et al., "Reducing activation recomputation in large transformer models", 2022: what is kept of
        activations, or computed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from numa_rl.transformer.kv_cache import attended_pairs
from numa_rl.transformer.memory_plan import ElementSizes, Recompute, Training, kept_activation_bytes
from numa_rl.transformer.model import Transformer

SUMS_PER_LAYER = 2  # of activations, after attention and after the feed-forward part, in each direction [2]


@dataclass(frozen=True)
class Grid:
    """Ranks: model-parallel ones are next to each other, then replicas, then stages.

    Attributes:
        model_parallel: ranks that share every layer, MP.
        data_parallel: replicas, DP.
        pipeline_parallel: stages, PP.
        lanes: tasks that share an operation of a rank, L.
    """

    model_parallel: int
    data_parallel: int
    pipeline_parallel: int
    lanes: int

    @property
    def num_ranks(self) -> int:
        """MP x DP x PP."""
        return self.model_parallel * self.data_parallel * self.pipeline_parallel

    def model_ranks(self, stage: int, replica: int) -> range:
        """Those that share the layers of one stage of one replica."""
        first = (stage * self.data_parallel + replica) * self.model_parallel
        return range(first, first + self.model_parallel)

    def replicas(self) -> Iterator[range]:
        """The ranks that hold the same weights, of each share of each stage."""
        size = self.model_parallel * self.data_parallel
        for stage in range(self.pipeline_parallel):
            for share in range(self.model_parallel):
                yield range(stage * size + share, (stage + 1) * size, self.model_parallel)

    def workers(self, rank: int) -> list[int]:
        """Who does the work of each lane of a rank."""
        return list(range(rank * self.lanes, (rank + 1) * self.lanes))


@dataclass(frozen=True)
class LaneShare:
    """What falls to one lane of one rank.

    Attributes:
        weights_bytes: of all its layers.
        parameters: how many these are.
        optimiser_bytes: what the optimiser keeps for them.
        blocks: tasks that its rank's layers are cut into.
        layers_per_block: layers of each.
        boundary_bytes: of the activations between two layers, of a micro-batch.
        kept_bytes: of those of a block, its output among them, that wait for the backward pass.
        bytes_per_element: size of a number.
        weights_flops: arithmetic of a block's weights on a micro-batch, once through.
        attention_flops: arithmetic of attention over a block's keys and values, forward.
        again_flops: what the backward pass computes again of a block.
        again: whether that is all of the forward pass.
    """

    weights_bytes: float
    parameters: float
    optimiser_bytes: float
    blocks: int
    layers_per_block: int
    boundary_bytes: float
    kept_bytes: float
    bytes_per_element: float
    weights_flops: float
    attention_flops: float
    again_flops: float
    again: bool

    @property
    def block_bytes(self) -> float:
        """Of the weights of one block."""
        return self.weights_bytes / self.blocks

    @property
    def sums(self) -> int:
        """All-reduces of activations of one block forward."""
        return SUMS_PER_LAYER * self.layers_per_block

    @property
    def backward_sums(self) -> int:
        """And backward."""
        return self.sums * (2 if self.again else 1)


def lane_share(
    model: Transformer,
    grid: Grid,
    *,
    micro_batch_tokens: float,
    context: int,
    layers_per_block: int,
    bytes_per_element: float,
    optimiser_bytes: float,
    recompute: Recompute,
) -> LaneShare:
    """What falls to one lane of one rank, the same for all.

    Args:
        model: what is trained.
        grid: how it is split.
        micro_batch_tokens: of a micro-batch.
        context: tokens of a sequence; each attends to itself and to those before it.
        layers_per_block: layers that a task takes at once.
        bytes_per_element: size of a number.
        optimiser_bytes: what the optimiser keeps for each parameter.
        recompute: what the backward pass computes again instead of keeping it [4].
    """
    shared_by = grid.lanes * grid.model_parallel
    blocks = model.layers // (grid.pipeline_parallel * layers_per_block)
    parameters = blocks * layers_per_block * model.layer_parameters / shared_by
    pairs = micro_batch_tokens * float(attended_pairs(context, context)) / context
    weights_flops = layers_per_block * model.layer_forward_flops(micro_batch_tokens) / shared_by  # [3]
    forward_flops = layers_per_block * model.layer_forward_flops(micro_batch_tokens, pairs) / shared_by
    again_flops = {
        Recompute.NONE: 0.0,
        Recompute.ATTENTION: forward_flops - weights_flops,
        Recompute.FULL: forward_flops,
    }
    sizes = ElementSizes(
        parameter_bytes=bytes_per_element,
        gradient_bytes=bytes_per_element,
        optimiser_bytes=optimiser_bytes,
        activation_bytes=bytes_per_element,
        kv_bytes=bytes_per_element,
    )
    training, sequences = Training(model, sequence_tokens=context, sizes=sizes), micro_batch_tokens / context
    boundary = float(kept_activation_bytes(training, sequences, Recompute.FULL))
    within = (
        float(kept_activation_bytes(training, sequences, recompute)) - boundary
    )  # ranks that share a layer share it
    return LaneShare(
        weights_bytes=parameters * bytes_per_element,
        parameters=parameters,
        optimiser_bytes=parameters * optimiser_bytes,
        blocks=blocks,
        layers_per_block=layers_per_block,
        boundary_bytes=boundary / grid.lanes,
        kept_bytes=layers_per_block * (boundary / grid.lanes + within / shared_by),
        bytes_per_element=bytes_per_element,
        weights_flops=weights_flops,
        attention_flops=forward_flops - weights_flops,
        again_flops=again_flops[recompute],
        again=recompute is Recompute.FULL,
    )

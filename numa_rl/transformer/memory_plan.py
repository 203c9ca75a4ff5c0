"""What training a transformer keeps in memory: all of it once, and on each rank of MP x DP x PP.

MP ranks share every layer (tensor parallel), PP stages have layers of their own (pipeline), and DP replicas have
sequences of their own (data parallel); see `step_time.py` for what this costs in time.

**The chapter's exercise 6.** 200 T parameters of 2 bytes are 400 TB, their gradients as much, and two moments of
4 bytes 1600 TB. Its ~100 TB of activations and ~50 TB of KV cache need a shape, a batch and a context, which it does
not give. With 1104 layers of 960 heads of 128, 2-byte elements and sequences of 2048 tokens they are what 180
sequences leave that are recomputed in full, and what 45 sequences keep in the cache: a token's keys and values are
twice as large as its input to each layer, so the same tokens cannot give both, unless four heads share keys and
values. A training step keeps no KV cache at all; the chapter's sum has both.

Its 25 GB of parameters and 100 GB of optimiser on each of 64 x 32 x 8 = 16,384 ranks are 400 TB and 1600 TB over all
ranks, rounded: 24.4 and 97.7 GB. So replicas hold parts of the parameters too (`Sharding.PARAMETERS`). Without that a
rank holds 400 TB / (64 x 8) = 781 GB of them.

Arguments called MP, DP, PP may be numbers or arrays that broadcast.

References:
    [1] The chapter, exercise 6 and section 16.3.
    [2] V. Korthikanti et al., "Reducing activation recomputation in large transformer models", 2022, section 4 and
        table 2: s b h (34 + 5 a s / h) bytes per layer, what sequence parallelism and recomputation leave of it.
    [3] S. Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models", SC 2020: what
        data-parallel replicas may share, stages 1 to 3.
    [4] D. Narayanan et al., "Memory-efficient pipeline-parallel DNN training", ICML 2021: micro-batches in flight.
    [5] I. Beltagy et al., "Longformer: the long-document transformer", 2020: attention over a window of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np

from numa_rl.transformer.kv_cache import kv_bytes_per_token
from numa_rl.transformer.model import Transformer
from numa_rl.workloads.parameters import require

MASK_BYTES = 1.0  # of an element of a dropout mask [2]

# Far beyond any model; searches over divisors stay short, and no figure overflows.
ELEMENT_BYTES = 1e-3, 1e3
MOST_PARAMETERS, MOST_LAYERS, MOST_SEQUENCES, MOST_TOKENS = 1e18, 2**20, 2**20, 2**30


class Recompute(Enum):
    """What the backward pass computes again instead of keeping it [2].

    Attributes:
        NONE: nothing.
        ATTENTION: the scores, whose size grows with the square of the sequence; the paper's selective recomputation.
        FULL: all but the input of each layer; checkpoints at every layer.
    """

    NONE = "none"
    ATTENTION = "attention"
    FULL = "full"


class Sharding(Enum):
    """What the DP replicas hold parts of, instead of a copy each [3].

    Attributes:
        NONE: nothing.
        OPTIMISER: its state; ZeRO stage 1.
        GRADIENTS: gradients too; stage 2.
        PARAMETERS: parameters too; stage 3, also called FSDP.
    """

    NONE = "none"
    OPTIMISER = "optimiser"
    GRADIENTS = "gradients"
    PARAMETERS = "parameters"

    @property
    def stage(self) -> int:
        """Of ZeRO, 0 for none."""
        return list(Sharding).index(self)

    def reaches(self, other: Sharding) -> bool:
        """Whether it shares out what `other` does."""
        return self.stage >= other.stage


@dataclass(frozen=True)
class ElementSizes:
    """Bytes of an element; the chapter's by default.

    Attributes:
        parameter_bytes: of a parameter.
        gradient_bytes: of a gradient.
        optimiser_bytes: of the optimiser's state of a parameter: two moments of 4 bytes; 12 with a master copy of the
            parameter in 4 bytes, which mixed precision needs [3].
        activation_bytes: of an element of an activation.
        kv_bytes: of an element of a key or value.

    Raises:
        ValueError: a size is out of range.
    """

    parameter_bytes: float = 2.0
    gradient_bytes: float = 2.0
    optimiser_bytes: float = 8.0
    activation_bytes: float = 2.0
    kv_bytes: float = 2.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        least, most = ELEMENT_BYTES
        sizes = "parameter_bytes activation_bytes kv_bytes"
        require(self, sizes, f"in {least:g}..{most:g}", lambda value: least <= value <= most)
        require(self, "gradient_bytes optimiser_bytes", f"in 0..{most:g}", lambda value: 0 <= value <= most)


@dataclass(frozen=True)
class Training:
    """What is trained, on what.

    Attributes:
        model: its shape.
        parameters: how many there are; as many as the shape has when None.
        sequence_tokens: of one sequence.
        batch_sequences: of one step, over all replicas.
        kv_sequences: sequences whose keys and values are kept, 0 in a plain training step.
        kv_window_tokens: of the latest tokens that a ring buffer of keys and values keeps; None for all [5].
        sizes: of the elements.

    Raises:
        ValueError: a figure is out of range.
    """

    model: Transformer
    parameters: float | None = None
    sequence_tokens: int = 2048
    batch_sequences: int = 1024
    kv_sequences: int = 0
    kv_window_tokens: int | None = None
    sizes: ElementSizes = field(default_factory=ElementSizes)

    def __post_init__(self) -> None:
        """Fill in the number of parameters, and check the ranges."""
        if self.parameters is None:
            object.__setattr__(self, "parameters", float(self.model.parameters))
        require(self, "parameters", f"in 1..{MOST_PARAMETERS:g}", lambda value: 1 <= value <= MOST_PARAMETERS)
        if self.layer_parameters <= 0:
            raise ValueError(
                f"parameters must be > {self.embedding_parameters:g}, the embedding's, got {self.parameters}."
            )
        require(self, "batch_sequences", *_whole(1, MOST_SEQUENCES))
        require(self, "kv_sequences", *_whole(0, MOST_SEQUENCES))
        tokens = "sequence_tokens" if self.kv_window_tokens is None else "sequence_tokens kv_window_tokens"
        require(self, tokens, *_whole(1, MOST_TOKENS))
        require(self.model, "layers heads", *_whole(1, MOST_LAYERS))

    @property
    def num_parameters(self) -> float:
        """How many parameters there are."""
        return float(self.model.parameters if self.parameters is None else self.parameters)

    @property
    def embedding_parameters(self) -> float:
        """Those of them that are no layer's."""
        return float(self.model.vocabulary * self.model.width)

    @property
    def layer_parameters(self) -> float:
        """Those of one layer."""
        return (self.num_parameters - self.embedding_parameters) / self.model.layers

    @property
    def kept_tokens(self) -> int:
        """Tokens of a sequence whose keys and values are kept."""
        window = self.sequence_tokens if self.kv_window_tokens is None else self.kv_window_tokens
        return min(self.sequence_tokens, window)


def _whole(least: int, most: int) -> tuple[str, Callable[[float], bool]]:
    """The rule of a whole number in that range, and whether a value keeps it."""
    return f"a whole number in {least}..{most}", lambda value: least <= value <= most and value % 1 == 0


@dataclass(frozen=True)
class Memory:
    """Bytes by what they are for; numbers, or arrays of one shape.

    Attributes:
        parameters: weights.
        gradients: of the weights.
        optimiser: its state.
        activations: kept from forward passes for backward passes.
        working: what exists while one layer is computed: activations computed again, parameters gathered.
        kv_cache: keys and values.
    """

    parameters: Any
    gradients: Any
    optimiser: Any
    activations: Any
    working: Any
    kv_cache: Any

    @property
    def total(self) -> Any:
        """All of it."""
        return sum(vars(self).values())


def layer_activation_bytes(model: Transformer, sequence_tokens: int, sequences: Any, sizes: ElementSizes) -> Any:
    """Activations that a layer's backward pass needs: s b h (34 + 5 a s / h) bytes in the usual shape [2].

    Of each token: the inputs of both norms, of W_Q, W_K, W_V together and of W_1, each d wide; queries, keys and
    values; what goes into W_O; what goes into and comes out of the non-linearity; and two masks, d wide, of a byte.
    Of each pair of tokens and each head: the softmax before and after its dropout, and the mask.

    Args:
        model: the shape.
        sequence_tokens: s.
        sequences: b.
        sizes: of the elements; 2 bytes give the formula of [2].
    """
    size, d = sizes.activation_bytes, model.width
    heads_wide = 2 * model.key_dim * (model.heads + model.num_kv_heads)
    per_token = size * (4 * d + heads_wide + 2 * model.inner_width) + 2 * MASK_BYTES * d
    return sequences * sequence_tokens * per_token + layer_score_bytes(model, sequence_tokens, sequences, sizes)


def layer_score_bytes(model: Transformer, sequence_tokens: int, sequences: Any, sizes: ElementSizes) -> Any:
    """Those of them that grow with the square of the sequence: 5 a s^2 b bytes [2]."""
    return sequences * float(sequence_tokens) ** 2 * model.heads * (2 * sizes.activation_bytes + MASK_BYTES)


def kept_activation_bytes(training: Training, sequences: Any, recompute: Recompute) -> Any:
    """Activations of a layer that wait for its backward pass [2, table 2].

    Args:
        training: what is trained.
        sequences: that wait.
        recompute: what is computed again; of FULL only the layer's input is kept, 2 s b h bytes.
    """
    model, tokens, sizes = training.model, training.sequence_tokens, training.sizes
    if recompute is Recompute.FULL:
        return sequences * tokens * model.width * sizes.activation_bytes
    everything = layer_activation_bytes(model, tokens, sequences, sizes)
    if recompute is Recompute.ATTENTION:
        return everything - layer_score_bytes(model, tokens, sequences, sizes)
    return everything


def recomputed_bytes(training: Training, sequences: Any, recompute: Recompute) -> Any:
    """Activations that come back while one layer's backward pass runs; its input was kept."""
    kept = kept_activation_bytes(training, sequences, recompute)
    return kept_activation_bytes(training, sequences, Recompute.NONE) - kept


def whole_memory(training: Training, held_sequences: int, recompute: Recompute = Recompute.FULL) -> Memory:
    """Everything kept once, whatever it is kept on; one sequence's layer is being computed.

    Args:
        training: what is trained.
        held_sequences: whose activations wait for their backward pass at once.
        recompute: what is computed again.

    Raises:
        ValueError: `held_sequences` is no whole number in its range.
    """
    require(SimpleNamespace(held_sequences=held_sequences), "held_sequences", *_whole(0, MOST_SEQUENCES))
    model, sizes, count = training.model, training.sizes, training.num_parameters
    per_token = kv_bytes_per_token(model.layers, model.num_kv_heads, model.key_dim, sizes.kv_bytes)
    return Memory(
        parameters=count * sizes.parameter_bytes,
        gradients=count * sizes.gradient_bytes,
        optimiser=count * sizes.optimiser_bytes,
        activations=model.layers * kept_activation_bytes(training, held_sequences, recompute),
        working=recomputed_bytes(training, min(held_sequences, 1), recompute),
        kv_cache=per_token * training.kept_tokens * training.kv_sequences,
    )


def rank_memory(
    training: Training, mp: Any, dp: Any, pp: Any, in_flight: Any, micro_sequences: Any, sharding: Sharding,
    recompute: Recompute,
) -> Memory:  # fmt: skip
    """What a rank of the first stage keeps: that stage holds the most activations, and the embedding.

    Layers are divided by PP. What a layer has is divided by MP, activations along the sequence where heads do not
    divide them (sequence parallel [2]). The first stage of 1F1B holds min(PP, m) of m micro-batches [4]. Replicas
    share what `sharding` says; then one layer's gradients, and its parameters, are there whole while it is computed.
    Heads of keys and values that are fewer than MP are kept several times.

    Args:
        training: what is trained.
        mp: ranks that share a layer.
        dp: replicas.
        pp: stages.
        in_flight: micro-batches whose activations wait on the first stage.
        micro_sequences: of one micro-batch.
        sharding: what replicas share.
        recompute: what is computed again.
    """
    model, sizes = training.model, training.sizes
    per_stage = model.layers / pp
    held = (
        training.layer_parameters * per_stage + training.embedding_parameters
    ) / mp  # parameters of a replica's rank
    shares = {kind: dp if sharding.reaches(kind) else 1 for kind in Sharding if kind is not Sharding.NONE}
    gathered = sum(
        training.layer_parameters * size / mp
        for kind, size in ((Sharding.GRADIENTS, sizes.gradient_bytes), (Sharding.PARAMETERS, sizes.parameter_bytes))
        if sharding.reaches(kind)
    )
    kv_heads = np.ceil(model.num_kv_heads / mp)
    per_token = kv_bytes_per_token(per_stage, kv_heads, model.key_dim, sizes.kv_bytes)
    return Memory(
        parameters=held * sizes.parameter_bytes / shares[Sharding.PARAMETERS],
        gradients=held * sizes.gradient_bytes / shares[Sharding.GRADIENTS],
        optimiser=held * sizes.optimiser_bytes / shares[Sharding.OPTIMISER],
        activations=per_stage * kept_activation_bytes(training, micro_sequences * in_flight, recompute) / mp,
        working=recomputed_bytes(training, micro_sequences, recompute) / mp + gathered,
        kv_cache=per_token * training.kept_tokens * np.ceil(training.kv_sequences / dp),
    )

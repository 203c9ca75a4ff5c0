"""One layer of attention split over the nodes of a machine: what moves, what each node holds, and what it computes.

A grid of s sequence parts by h head parts has p = h s nodes, numbered row by row: node h j + i holds head part i of
sequence part j. The sequence split is 1 x p, the head split p x 1, all between them are hybrid.

**Where everything starts and ends.** The layer's input X is spread by tokens: of sequence part j, each of the h nodes
of its row is the home of a share. The output must end in the same way, since the feed-forward part and the next layer
work token by token. Where every node has all weights, it projects its own tokens to Q, K and V, and multiplies what
comes back by W_O; so a split costs what lies between:

    1. exchange: from the h - 1 others of its row, a node reads Q, K and V of its own heads for the tokens they are the
       home of [2];
    2. s - 1 ring steps: from the node above in its column, a node reads the keys and values which that one has just
       worked on [3], as far as some query of its own attends to them;
    3. return: a node reads the outputs of the other heads for the tokens that it is the home of.

Where each node has the weights of its heads only [5], it reads X of its row in the exchange, all of d for each token;
and in the return the others' shares of its home tokens' sum over heads, as wide again.

Heads of keys and values that several heads share go to every node that has one of those.

Dimension key: p nodes, s sequence parts, h head parts; B sequences of L tokens, H heads and G heads of keys and values
of size d_k, e bytes per element.

References:
    [1] The chapter, section 16.3.1: attention split by sequence, by head, and hybrid.
    [2] S. A. Jacobs et al., "DeepSpeed Ulysses: system optimizations for enabling training of extreme long sequence
        transformer models", 2023: all-to-all before and after attention.
    [3] H. Liu, M. Zaharia, P. Abbeel, "Ring attention with blockwise transformers for near-infinite context", 2023.
    [4] J. Fang, S. Zhao, "USP: a unified sequence parallelism approach for long context generative AI", 2024: the two
        as one grid.
    [5] M. Shoeybi et al., "Megatron-LM: training multi-billion parameter language models using model parallelism",
        2019: W_Q, W_K and W_V by columns, W_O by rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from numa_rl.transformer.divisors import divisors, nearest
from numa_rl.transformer.kv_cache import kv_bytes_per_token
from numa_rl.transformer.model import Transformer
from numa_rl.transformer.sequence_order import TokenOrder, least_tokens
from numa_rl.workloads.parameters import require

MOST_TOKENS = 10**9
MOST_BYTES = 10**15  # of one activation; counts of bytes then fit 64 bits


@dataclass(frozen=True)
class AttentionShape:
    """What is attended to.

    Attributes:
        tokens: of each sequence, L.
        width: of the model, d.
        heads: of queries, H; they divide the width.
        kv_heads: of keys and values, G; as many as heads when None.
        batch: sequences, B.
        bytes_per_element: of weights and activations, e.
        causal: whether a token attends to itself and those before it only.

    Raises:
        ValueError: a figure is out of its range, or heads do not divide what they must.
    """

    tokens: int
    width: int
    heads: int
    kv_heads: int | None = None
    batch: int = 1
    bytes_per_element: int = 2
    causal: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        names = "tokens width heads batch bytes_per_element"
        require(self, names, "a whole number >= 1", lambda value: value >= 1 and value % 1 == 0)
        require(self, "tokens", f"at most {MOST_TOKENS:,}", lambda value: value <= MOST_TOKENS)
        if self.activation_bytes > MOST_BYTES:
            raise ValueError(
                "batch x tokens x width x bytes_per_element must be at most 1e15, a petabyte, "
                f"got {float(self.activation_bytes):.3g}."
            )
        self._require_divisor("heads", self.heads, "width", self.width)
        if self.kv_heads is not None:
            self._require_divisor("kv_heads", self.kv_heads, "heads", self.heads)
        object.__setattr__(self, "kv_heads", self.layer.num_kv_heads)

    def _require_divisor(self, name: str, value: int, of: str, number: int) -> None:
        """Raise ValueError, with the nearest that would do, unless one figure divides another."""
        require(self, name, "a whole number >= 1", lambda value: value >= 1 and value % 1 == 0)
        if number % value:
            near = nearest(divisors(number), value)
            raise ValueError(f"{name} must divide {of} ({number}), as {near} would, got {value}.")

    @cached_property
    def layer(self) -> Transformer:
        """The layer: its parameters and the size of its heads."""
        return Transformer(layers=1, width=self.width, heads=self.heads, kv_heads=self.kv_heads)

    @property
    def activation_bytes(self) -> int:
        """Of the input, or of the output, of all tokens."""
        return self.tokens * self.token_bytes

    @property
    def weight_bytes(self) -> int:
        """Of W_Q, W_K, W_V and W_O."""
        return self.layer.attention_parameters * self.bytes_per_element

    @property
    def token_bytes(self) -> int:
        """Of the input, or of the output, of one token of every sequence."""
        return self.batch * self.width * self.bytes_per_element

    @property
    def head_bytes(self) -> int:
        """Of one head of Q, or of the output, of one token of every sequence."""
        return self.batch * self.layer.key_dim * self.bytes_per_element

    @property
    def kv_head_bytes(self) -> int:
        """Of one head of K and V of one token of every sequence."""
        return int(self.batch * kv_bytes_per_token(1, 1, self.layer.key_dim, self.bytes_per_element))

    @property
    def score_bytes(self) -> int:
        """Of all scores, which plain attention stores and blocked attention does not: B H L^2 elements."""
        return self.batch * self.heads * self.tokens**2 * self.bytes_per_element


class Weights(Enum):
    """Which of the layer's matrices a node has.

    Attributes:
        WHOLE: all; heads are exchanged [2].
        BY_HEAD: those of its heads; X is gathered, and partial outputs are summed [5].
    """

    WHOLE = "whole"
    BY_HEAD = "by head"


@dataclass(frozen=True)
class AttentionSplit:
    """A grid of head parts by sequence parts.

    Attributes:
        head_parts: h.
        sequence_parts: s.
        order: which tokens are a sequence part.
        weights: what of the weights a node has; with one head part, all in any case.

    Raises:
        ValueError: a number of parts is not a whole number >= 1.
    """

    head_parts: int
    sequence_parts: int
    order: TokenOrder = TokenOrder.CONTIGUOUS
    weights: Weights = Weights.WHOLE

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self, "head_parts sequence_parts", "a whole number >= 1", lambda value: value >= 1 and value % 1 == 0)

    @property
    def num_nodes(self) -> int:
        """Nodes that it takes, p = h s."""
        return self.head_parts * self.sequence_parts

    @property
    def gathers(self) -> bool:
        """Whether X is gathered and partial outputs are summed, rather than heads exchanged."""
        return self.weights is Weights.BY_HEAD and self.head_parts > 1

    @property
    def kind(self) -> str:
        """What such a split is called."""
        if self.num_nodes == 1:
            return "one node"
        if self.head_parts == 1:
            return "sequence"
        return "head" if self.sequence_parts == 1 else "hybrid"

    @property
    def name(self) -> str:
        """Kind and parts, h x s."""
        return f"{self.kind} {self.head_parts} x {self.sequence_parts}"

    def require_fit(self, shape: AttentionShape) -> None:
        """Raise ValueError, with what would fit, unless every node gets as many heads, and tokens."""
        if shape.heads % self.head_parts:
            fitting = ", ".join(str(parts) for parts in divisors(shape.heads))
            raise ValueError(
                f"head_parts must divide heads ({shape.heads}), as each of {fitting} would, got {self.head_parts}."
            )
        least = max(self.num_nodes, least_tokens(self.sequence_parts, self.order))
        if shape.tokens < least:
            most = shape.tokens // (least // self.sequence_parts)
            advice = f"at most {most} sequence parts" if most else "fewer head parts"
            raise ValueError(
                f"tokens must be >= {least} for {self.head_parts} x {self.sequence_parts} {self.order.value} parts, "
                f"got {shape.tokens}; {advice} would fit."
            )


def head_range(shape: AttentionShape, split: AttentionSplit, part: int) -> range:
    """The heads of a head part."""
    each = shape.heads // split.head_parts
    return range(part * each, (part + 1) * each)


def kv_head_range(shape: AttentionShape, split: AttentionSplit, part: int) -> range:
    """The heads of keys and values that a head part attends with."""
    sharing, heads = shape.heads // shape.layer.num_kv_heads, head_range(shape, split, part)
    return range(heads[0] // sharing, heads[-1] // sharing + 1)

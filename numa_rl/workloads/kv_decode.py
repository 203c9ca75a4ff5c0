"""Decoding over a KV cache: batches of sequences go through a model layer by layer, token by token.

Dimension key: E episodes, g groups of sequences, b sequences of a group, L layers, p parts of a layer, S sockets,
T tasks, O objects, P inputs.

A group is what one core decodes at a time. It goes through the layers again and again, `steps` times through all of
them, and begins where it would be found in the middle of serving: groups are spread over the layers. At a layer

    1. an *append* for each part computes the new token's keys and values and writes them to the part's cache;
    2. an *attend* for each part reads that cache, and gives its heads' share of the output;
    3. a *finish* sums the shares and goes through the feed-forward part. Where a layer is one part, attend does that.

Parts are the heads that the program's layout puts on different sockets; objects are what can be placed apart. A cache
is one object, as large as the longest sequence would need, or with pages two: those that the prompt filled, which are
only read, and those being filled, which grow by whole pages. With prefetch, a task on another core copies what the next
layer will attend to into a buffer, from when the group enters this layer. Weights are an object for each layer, or for
each part's attention and the feed-forward part, read by all groups. Loaders make weights and caches at time 0, and
decoding begins when the program could have loaded all.

A matrix takes 2 flop for each parameter and token [3]. Left out are embeddings, norms, sampling and prefill, which is
done elsewhere [4]; and no two groups share a pass over weights. The layout [1] and where work runs are the program's
own, see `KVDecode.placement`: a scheduler is told nothing of them, and decides everything.

References:
    [1] The chapter, section 16.3.3.
    [2] W. Kwon et al., "Efficient memory management for large language model serving with PagedAttention", SOSP 2023.
    [3] J. Kaplan et al., "Scaling laws for neural language models", 2020, section 2.1: 2 flop per parameter and token.
    [4] P. Patel et al., "Splitwise: efficient generative LLM inference using phase splitting", ISCA 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from numa_rl.communication.collectives import require_count
from numa_rl.topology import IntArray
from numa_rl.transformer.kv_layout import KVLayout, make_layout
from numa_rl.transformer.model import Transformer
from numa_rl.workloads.kv_decode_tasks import DecodeTasks
from numa_rl.workloads.parameters import MOST_TASKS, require
from numa_rl.workloads.processes import lognormal
from numa_rl.workloads.workload import Workload

BoolArray = npt.NDArray[np.bool_]

MOST_SEQUENCES = 10**5  # of an episode: each has a length of its own


@dataclass(frozen=True)
class KVDecode:
    """Sequences that decode tokens over their caches.

    Contexts differ from sequence to sequence, lognormal and cut at the longest.

    Attributes:
        layers: of the model.
        width: of the model, d.
        heads: of queries.
        kv_heads: of keys and values.
        groups: groups of sequences, g.
        group_sequences: sequences of each, b.
        steps: tokens that each sequence decodes.
        median_context_tokens: median length of a sequence before.
        context_sigma: standard deviation of its logarithm.
        most_tokens: the longest sequence there may be, with what it decodes: what a reservation is made for.
        layout: which socket holds which layer and heads, a name of `numa_rl.transformer.kv_layout.LAYOUTS`.
        follows_cache: whether work goes to the socket that holds a layer's cache, and hidden vectors cross; or stays
            on the group's own socket, and reads caches from others, with copies of all weights there.
        sockets: of the program's layout, S.
        lanes: cores of a socket.
        page_tokens: tokens of a page; 0 for reservations instead of pages [2].
        prefetch: whether the next layer's cache is fetched ahead.
        kv_bytes_per_element: of the cache, with its share of scales; below 2 it is quantised.
        kept_share: share of a prompt's tokens whose keys and values are kept.
        bytes_per_element: of weights and hidden vectors.
        flops_per_s: nominal pace of a core, for the order of tasks.
        bytes_per_s: nominal pace of a core's memory, for the order of tasks.

    Raises:
        ValueError: a parameter is out of range, or the layout would leave sockets empty.
    """

    layers: int = 8
    width: int = 1024
    heads: int = 8
    kv_heads: int = 8
    groups: int = 8
    group_sequences: int = 4
    steps: int = 2
    median_context_tokens: float = 2048.0
    context_sigma: float = 0.6
    most_tokens: int = 16384
    layout: str = "layer-blocks"
    follows_cache: bool = True
    sockets: int = 8
    lanes: int = 8
    page_tokens: int = 16
    prefetch: bool = False
    kv_bytes_per_element: float = 2.0
    kept_share: float = 1.0
    bytes_per_element: float = 2.0
    flops_per_s: float = 40e9
    bytes_per_s: float = 12.5e9

    def __post_init__(self) -> None:
        """Check the ranges."""
        Transformer(self.layers, self.width, self.heads, self.kv_heads)  # checks these
        counts = "groups group_sequences steps most_tokens sockets lanes"
        require_count(**{name: getattr(self, name) for name in counts.split()})
        sizes = "median_context_tokens kv_bytes_per_element bytes_per_element flops_per_s bytes_per_s"
        require(self, sizes, "finite and > 0", lambda value: value > 0)
        require(self, "context_sigma", "in 0..2", lambda value: 0 <= value <= 2)
        require(self, "kept_share", "in (0, 1]", lambda value: 0 < value <= 1)
        require(self, "page_tokens", "a whole number >= 0", lambda value: value >= 0 and value % 1 == 0)
        if self.most_tokens <= self.steps:
            raise ValueError(f"most_tokens must be above steps ({self.steps}), got {self.most_tokens}.")
        if self.num_tasks > MOST_TASKS:
            raise ValueError(f"an episode must have at most {MOST_TASKS} tasks, got {self.num_tasks}.")
        if self.groups * self.group_sequences > MOST_SEQUENCES:
            sequences = self.groups * self.group_sequences
            raise ValueError(f"groups x group_sequences must be at most {MOST_SEQUENCES}, got {sequences}.")

    @cached_property
    def model(self) -> Transformer:
        """The shape of the model."""
        return Transformer(self.layers, self.width, self.heads, self.kv_heads)

    @cached_property
    def kv_layout(self) -> KVLayout:
        """Which socket holds which layer and head."""
        return make_layout(self.layout, self.layers, self.kv_heads, self.sockets)

    @cached_property
    def num_parts(self) -> int:
        """Into how many parts the layout splits a layer, p."""
        return len(np.unique(self.kv_layout.socket[0]))

    @property
    def num_tasks(self) -> int:
        """Tasks of an episode, T."""
        parts, passes = self.num_parts, self.steps * self.layers
        shares = parts if self.follows_cache else 1
        copies = 0 if self.follows_cache else self.layers * (self.sockets - 1)
        decoding = passes * (parts + shares + (shares > 1)) + self.prefetch * (passes - 1) * shares
        return self.cache_objects.stop + copies + self.groups * decoding

    @property
    def cache_objects(self) -> range:
        """The objects that hold caches: those of weights come before, hidden vectors and buffers after them."""
        split = self.follows_cache and self.num_parts > 1
        weights = self.layers * (self.num_parts + 1 if split else 1)
        return range(weights, weights + self.layers * self.groups * self.num_parts * (1 + (self.page_tokens > 0)))

    @property
    def placement(self) -> IntArray:
        """Where the program runs each task and keeps its object: (task socket, data socket), shape (T, 2).

        In the order of tasks of the workloads that these parameters generate, which is the same in all of them.
        """
        return np.array(self._median.placement)[self._median_order]

    @property
    def decodes(self) -> BoolArray:
        """Which tasks decode, the others being loaders, shape (T,)."""
        return np.array(self._median.decodes)[self._median_order]

    @cached_property
    def _median(self) -> DecodeTasks:
        """An episode of median contexts."""
        return DecodeTasks(self, np.full((1, self.groups, self.group_sequences), self.median_context_tokens))

    @cached_property
    def _median_order(self) -> IntArray:
        """The order of its tasks, and so of those of all episodes."""
        return self._median.draft.order(flops_per_s=self.flops_per_s, bytes_per_s=self.bytes_per_s)

    def generate(self, rng: np.random.Generator, num_episodes: int) -> Workload:
        """Make `num_episodes` episodes; more episodes from the same generator extend fewer."""
        uniforms = rng.random((num_episodes, self.groups * self.group_sequences))
        contexts = lognormal(uniforms, self.median_context_tokens, self.context_sigma)
        by_group = contexts.reshape(num_episodes, self.groups, self.group_sequences)
        return DecodeTasks(self, by_group, self._median.draft).draft.workload(
            "kv-decode", num_episodes=num_episodes, flops_per_s=self.flops_per_s, bytes_per_s=self.bytes_per_s
        )

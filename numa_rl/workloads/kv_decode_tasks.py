"""The tasks of sequences that decode over their caches, in the program's own layout; `kv_decode.py` says what they do.

Dimension key: E episodes, g groups of sequences, b sequences of a group, L layers, p parts of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from numa_rl.topology import FloatArray
from numa_rl.transformer.kv_cache import attention_flops_per_pair, kv_bytes_per_token, pages_of
from numa_rl.transformer.kv_layout import block_of
from numa_rl.workloads.graph_draft import Figure, GraphDraft

if TYPE_CHECKING:
    from numa_rl.workloads.kv_decode import KVDecode

DEQUANTISE_FLOPS = 1.0  # for each element: times its scale
COPY_OVER_LOAD = 5.0  # pages that are copied take the kernel about 1 us each as well, see the README
FULL_BYTES = 2.0  # of an element that is not quantised


@dataclass(frozen=True)
class _Cache:
    """Objects of a group's cache of one part of a layer.

    Attributes:
        socket: that holds them in the program's layout.
        written: the reservation, or the pages being filled.
        full: the pages that the prompt filled, if there are pages.
    """

    socket: int
    written: int
    full: int | None = None


class DecodeTasks:
    """The tasks of a family's episodes, and where the program's layout puts them.

    Args:
        family: the parameters.
        contexts: tokens of each sequence before, shape (E, g, b).
        nominal: a draft of the same tasks that says their order, if there is one.
    """

    def __init__(self, family: KVDecode, contexts: FloatArray, nominal: GraphDraft | None = None) -> None:
        """Add all tasks: loaders, then pass after pass through a layer."""
        self.family, self.model = family, family.model
        self.draft = GraphDraft(nominal)
        self.placement: list[tuple[int, int]] = []
        self.decodes: list[bool] = []
        longest = family.most_tokens - family.steps
        whole = np.clip(np.rint(contexts), 1.0, longest)
        self.prompt = np.maximum(np.ceil(family.kept_share * whole), 1.0).astype(np.int64)
        self.reserved_tokens = family.group_sequences * (int(np.ceil(family.kept_share * longest)) + family.steps)
        self.part_heads = np.bincount(block_of(family.kv_heads, family.num_parts))
        first_heads = np.cumsum(self.part_heads) - self.part_heads
        self.socket = family.kv_layout.socket[:, first_heads]  # (L, p)
        self.home = family.kv_layout.home
        # Work on all parts is one task where it is in one place.
        parts = list(range(family.num_parts))
        self.shares = [[part] for part in parts] if family.follows_cache else [parts]
        self.hidden_bytes = family.group_sequences * family.width * family.bytes_per_element
        self.loaded_bytes: dict[int, FloatArray] = {}  # by each core
        self.weights = [self._load_weights(layer) for layer in range(family.layers)]
        self.caches = [
            [[self._load_cache(layer, group, part) for part in parts] for group in range(family.groups)]
            for layer in range(family.layers)
        ]
        self.start_s = np.max(list(self.loaded_bytes.values()), axis=0) / family.bytes_per_s
        self.hidden: list[int | None] = [None] * family.groups
        self.buffers: list[list[int]] = [[] for _ in range(family.groups)]
        for index in range(family.steps * family.layers):
            for group in range(family.groups):
                self._pass(index, group)

    # Where things are.

    def _layer(self, index: int, group: int) -> int:
        """The layer of a group's pass: groups begin spread over the layers."""
        family = self.family
        return (group * family.layers // family.groups + index) % family.layers

    def _work_socket(self, layer: int, group: int, share: list[int]) -> int:
        """Where a group's work on these parts of a layer is done."""
        return int(self.socket[layer, share[0]]) if self.family.follows_cache else group % self.family.sockets

    def _sum_socket(self, layer: int, group: int) -> int:
        """Where a layer's parts are summed."""
        return int(self.home[layer]) if self.family.follows_cache else group % self.family.sockets

    def _add(
        self,
        socket: int,
        data_socket: int,
        lane: int,
        obj: int,
        *,
        decodes: bool = True,
        copied_bytes: float = 0.0,
        **figures: Any,
    ) -> None:
        """Add a task, and remember where it goes."""
        family = self.family
        worker = socket * family.lanes + lane % family.lanes
        self.placement.append((socket, data_socket))
        self.decodes.append(decodes)
        if not decodes:
            loaded = figures["num_bytes"] if copied_bytes == 0.0 else COPY_OVER_LOAD * copied_bytes
            self.loaded_bytes[worker] = self.loaded_bytes.get(worker, np.zeros(len(self.prompt))) + loaded
        self.draft.add_task(worker, obj, arrival_s=self.start_s if decodes else 0.0, **figures)

    def _lane(self, group: int) -> int:
        return group if self.family.follows_cache else group // self.family.sockets

    # Loading.

    def _load_weights(self, layer: int) -> list[int]:
        """Weights of a layer: in one object, or one for each part's attention and one for the feed-forward part."""
        model, size = self.model, self.family.bytes_per_element
        if len(self.shares) == 1:
            pieces = [(int(self.home[layer]), float(model.layer_parameters))]
        else:
            pieces = [(int(self.socket[layer, k]), self._attention_parameters([k], "kvqo")) for (k,) in self.shares]
            pieces.append((int(self.home[layer]), float(model.ffn_parameters)))
        objects = []
        for socket, parameters in pieces:
            obj = self.draft.add_object(parameters * size, read_only=True, kept=True)
            self._add(socket, socket, layer, obj, decodes=False, num_bytes=parameters * size)
            objects.append(obj)
            if not self.family.follows_cache:
                for other in range(self.family.sockets):
                    if other != socket:
                        copied = {"write_fraction": 0.0, "copied_bytes": parameters * size}
                        self._add(other, other, layer, obj, decodes=False, **copied)
        return objects

    def _attention_parameters(self, parts: list[int], which: str) -> float:
        """Of some of W_Q, W_K, W_V and W_O for these parts of the heads."""
        model, heads = self.model, float(self.part_heads[parts].sum())
        matrix = model.width * model.key_dim * heads
        sharing = model.heads // model.num_kv_heads
        return float(sum(matrix * (sharing if name in "qo" else 1) for name in which))

    def _token_bytes(self, parts: list[int]) -> float:
        """Of one token in one layer, in these parts."""
        heads = int(self.part_heads[parts].sum())
        return kv_bytes_per_token(1, heads, self.model.key_dim, self.family.kv_bytes_per_element)

    def _load_cache(self, layer: int, group: int, part: int) -> _Cache:
        """A group's cache of one part of a layer, which came from where the prompt was read."""
        family, socket = self.family, int(self.socket[layer, part])
        token_bytes, prompt = self._token_bytes([part]), self.prompt[:, group]
        if family.page_tokens == 0:
            obj = self.draft.add_object(self.reserved_tokens * token_bytes, kept=True)
            self._add(socket, socket, group, obj, decodes=False, num_bytes=prompt.sum(axis=1) * token_bytes)
            return _Cache(socket, obj)
        filled = self._filled_tokens(group)
        full = self.draft.add_object(filled * token_bytes, read_only=True, kept=True)
        self._add(socket, socket, group, full, decodes=False, num_bytes=filled * token_bytes)
        tail = self.draft.add_object(self._tail_room(group, 0) * token_bytes, kept=True)
        left = prompt.sum(axis=1) - filled
        self._add(socket, socket, group, tail, decodes=False, num_bytes=left * token_bytes)
        return _Cache(socket, tail, full)

    def _filled_tokens(self, group: int) -> FloatArray:
        """Tokens on the pages that a group's prompts filled, shape (E,)."""
        page = self.family.page_tokens
        return np.asarray((self.prompt[:, group] // page * page).sum(axis=1), np.float64)

    def _tail_room(self, group: int, decoded: int) -> FloatArray:
        """Tokens that the other pages have room for, after so many decoded ones, shape (E,)."""
        page = self.family.page_tokens
        return np.asarray(pages_of(self.prompt[:, group] % page + decoded, page).sum(axis=1) * page, np.float64)

    # Decoding.

    def _pass(self, index: int, group: int) -> None:
        """A group's pass through a layer."""
        family, layer, decoded = self.family, self._layer(index, group), index // self.family.layers
        entered, buffers = self.hidden[group], self.buffers[group]
        for part in range(family.num_parts):
            self._append(layer, group, part, decoded)
        if family.prefetch and index + 1 < family.steps * family.layers:
            self.buffers[group] = [self._fetch(index + 1, group, share) for share in self.shares]
        made = [
            self._attend(layer, group, place, decoded, buffers[place] if buffers else None)
            for place in range(len(self.shares))
        ]
        if len(made) == 1:
            self.hidden[group] = made[0]
            return
        socket, hidden = self._sum_socket(layer, group), self.draft.add_object(self.hidden_bytes)
        ffn = self.model.ffn_parameters
        reads = [*((part, self.hidden_bytes) for part in made), *self._brought(entered)]
        self._add(
            socket,
            socket,
            self._lane(group),
            hidden,
            flops=family.group_sequences * (2.0 * ffn + len(reads) * family.width),
            num_bytes=self.hidden_bytes,
            reads=[*reads, (self.weights[layer][-1], ffn * family.bytes_per_element)],
        )
        self.hidden[group] = hidden

    def _brought(self, hidden: int | None) -> list[tuple[int, Figure]]:
        """The hidden vectors that enter a layer, for work that finds them in the cache of its socket: no bytes.

        An append has brought them there. A group's first ones are those of its prompt, which are there already.
        """
        return [] if hidden is None else [(hidden, 0.0)]

    def _append(self, layer: int, group: int, part: int, decoded: int) -> None:
        """Compute a part's new keys and values, and write them to its cache."""
        family, cache = self.family, self.caches[layer][group][part]
        share = [part] if family.follows_cache else self.shares[0]
        parameters = self._attention_parameters([part], "kv")
        weights = self.weights[layer][part if len(self.shares) > 1 else 0]
        token_bytes = self._token_bytes([part])
        room = self._tail_room(group, decoded + 1) * token_bytes if cache.full is not None else None
        self._add(
            self._work_socket(layer, group, share),
            cache.socket,
            self._lane(group),
            cache.written,
            flops=family.group_sequences * 2.0 * parameters,
            num_bytes=family.group_sequences * token_bytes,
            object_bytes=room,
            reads=[
                *((hidden, self.hidden_bytes) for hidden, _ in self._brought(self.hidden[group])),
                (weights, parameters * family.bytes_per_element),
            ],
        )

    def _attend(self, layer: int, group: int, place: int, decoded: int, buffer: int | None) -> int:
        """Attend over the cache of a share of the parts, and make what they give: all of the layer, if it is one."""
        family, model, share = self.family, self.model, self.shares[place]
        last = len(self.shares) == 1
        parameters = self._attention_parameters(share, "qo") + (model.ffn_parameters if last else 0.0)
        heads = int(self.part_heads[share].sum())
        tokens = self._tokens(group, decoded + 1)
        flops = family.group_sequences * 2.0 * parameters + tokens * attention_flops_per_pair(
            1, heads * (model.heads // model.num_kv_heads), model.key_dim
        )
        if family.kv_bytes_per_element < FULL_BYTES:
            flops = flops + tokens * (2 * heads * model.key_dim * DEQUANTISE_FLOPS)
        socket, made = self._work_socket(layer, group, share), self.draft.add_object(self.hidden_bytes)
        new_tokens = np.full(len(tokens), float(family.group_sequences))
        reads = self._brought(self.hidden[group])
        reads.append((self.weights[layer][place], parameters * family.bytes_per_element))
        for part in share:
            cache, token_bytes = self.caches[layer][group][part], self._token_bytes([part])
            if buffer is not None:
                reads.append((cache.written, new_tokens * token_bytes))
            else:
                reads += self._cache_reads(cache, group, part, decoded + 1)
        if buffer is not None:
            reads.append((buffer, self._tokens(group, decoded) * self._token_bytes(share)))
        self._add(socket, socket, self._lane(group), made, flops=flops, num_bytes=self.hidden_bytes, reads=reads)
        return made

    def _fetch(self, index: int, group: int, share: list[int]) -> int:
        """Copy to a buffer what a later pass attends to, except for that pass's own tokens."""
        family, layer, decoded = self.family, self._layer(index, group), index // self.family.layers
        num_bytes = self._tokens(group, decoded) * self._token_bytes(share)
        buffer, socket = self.draft.add_object(num_bytes), self._work_socket(layer, group, share)
        reads = self._brought(self.hidden[group])  # not needed, but waited for: so two buffers are in use at a time
        for part in share:
            reads += self._cache_reads(self.caches[layer][group][part], group, part, decoded)
        self._add(socket, socket, self._lane(group) + family.lanes // 2, buffer, num_bytes=num_bytes, reads=reads)
        return buffer

    def _tokens(self, group: int, decoded: int) -> FloatArray:
        """Tokens in a group's cache after so many decoded ones, shape (E,)."""
        return np.asarray(self.prompt[:, group].sum(axis=1) + self.family.group_sequences * decoded, np.float64)

    def _cache_reads(self, cache: _Cache, group: int, part: int, decoded: int) -> list[tuple[int, Figure]]:
        """All tokens of a part's cache, from the objects that hold them."""
        token_bytes, tokens = self._token_bytes([part]), self._tokens(group, decoded)
        if cache.full is None:
            return [(cache.written, tokens * token_bytes)]
        filled = self._filled_tokens(group)
        return [(cache.full, filled * token_bytes), (cache.written, (tokens - filled) * token_bytes)]

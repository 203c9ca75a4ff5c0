"""Which socket holds which part of a KV cache, what crosses between sockets then, and whether it fits.

The unit is one head of keys and values in one layer, with the queries that use it. Layers or heads that do not divide
evenly are spread as evenly as can be: sockets differ by one at most.

Dimension key: L layers, G heads of keys and values, S sockets.

References:
    [1] The chapter, section 16.3.3: layers by socket; neighbouring layers share a socket.
    [2] M. Shoeybi et al., "Megatron-LM: training multi-billion parameter language models using model parallelism",
        2019: attention by heads, whose partial results are summed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, floor, log10

import numpy as np
import numpy.typing as npt

from numa_rl.communication.collectives import require_count
from numa_rl.topology import FloatArray, IntArray
from numa_rl.transformer.kv_cache import KVCache
from numa_rl.wording import counted

MOST_UNITS = 10**5  # layers x heads, far above any model's
MOST_TRIED = 200  # numbers of sockets looked at for one that would do
ROUNDING = 1e-9  # share of a socket's memory: more than it by less is not too much


@dataclass(frozen=True, eq=False)
class KVLayout:
    """The socket of each layer and head.

    Attributes:
        name: of the layout.
        socket: shape (L, G).
        num_sockets: S.
    """

    name: str
    socket: IntArray
    num_sockets: int

    def socket_bytes(self, cache: KVCache) -> FloatArray:
        """Bytes of a cache of these layers and heads on each socket, shape (S,)."""
        units = np.bincount(self.socket.ravel(), minlength=self.num_sockets)
        return np.asarray(units * cache.head_bytes, np.float64)

    @property
    def home(self) -> IntArray:
        """The socket on which each layer's heads are summed and its feed-forward part runs, shape (L,).

        Those that hold the layer take turns from layer to layer, which costs no more crossings than always the same.
        """
        holders = [np.unique(sockets) for sockets in self.socket]
        return np.array([held[layer % len(held)] for layer, held in enumerate(holders)], np.int64)

    def crossing_vectors(self) -> int:
        """Hidden vectors that cross between sockets while one token goes through all layers, work being where data is.

        The layer's input goes from its last home to every other socket that holds heads of it, and each of those sends
        a partial result back to be summed [2]. Where a layer is whole on one socket, one vector crosses at the
        boundary to a layer elsewhere, and none within a block of neighbours [1].
        """
        home, crossings = self.home, 0
        for layer, sockets in enumerate(self.socket):
            holders = set(sockets.tolist())
            came_from = int(home[max(layer - 1, 0)])
            crossings += len(holders - {came_from}) + len(holders - {int(home[layer])})
        return crossings

    def crossing_bytes(self, width: int, bytes_per_element: float) -> float:
        """The same in bytes, for a model of this width."""
        return self.crossing_vectors() * width * bytes_per_element

    def remote_cache_bytes(self, cache: KVCache, reader: int) -> float:
        """Bytes of one sequence's cache that a token reads from other sockets, work staying on socket `reader`.

        Raises:
            ValueError: there is no such socket.
        """
        if not 0 <= reader < self.num_sockets:
            raise ValueError(f"reader must be a socket, 0 to {self.num_sockets - 1}, got {reader}.")
        return float(np.delete(self.socket_bytes(cache), reader).sum()) / cache.batch


def layers_in_turn(layers: int, kv_heads: int, sockets: int) -> KVLayout:
    """Layer l on socket l mod S: every layer's neighbours are elsewhere."""
    _require_units("layers-in-turn", layers, kv_heads, sockets, most=layers)
    return _layout("layers-in-turn", np.arange(layers)[:, None] % sockets, kv_heads, sockets)


def layer_blocks(layers: int, kv_heads: int, sockets: int) -> KVLayout:
    """Neighbouring layers on one socket [1]."""
    _require_units("layer-blocks", layers, kv_heads, sockets, most=layers)
    return _layout("layer-blocks", block_of(layers, sockets)[:, None], kv_heads, sockets)


def head_blocks(layers: int, kv_heads: int, sockets: int) -> KVLayout:
    """Every layer over all sockets, by heads [2]."""
    _require_units("head-blocks", layers, kv_heads, sockets, most=kv_heads)
    return _layout("head-blocks", np.tile(block_of(kv_heads, sockets), (layers, 1)), kv_heads, sockets)


def layer_head_blocks(layers: int, kv_heads: int, sockets: int, head_parts: int | None = None) -> KVLayout:
    """Neighbouring layers on a group of sockets, which share them by heads.

    Args:
        layers: L.
        kv_heads: G.
        sockets: S.
        head_parts: sockets of a group, which must divide S; by default the largest divisor of S that is at most its
            root and leaves every socket something, or the least that does.

    Raises:
        ValueError: sockets that would hold nothing.
    """
    _require_units("layer-head-blocks", layers, kv_heads, sockets, most=layers * kv_heads)
    fitting = [
        parts for parts in range(1, min(sockets, kv_heads) + 1) if sockets % parts == 0 and sockets <= parts * layers
    ]
    if not fitting:
        raise ValueError(
            f"layer-head-blocks must divide sockets into at most {layers} groups of at most {kv_heads}, the layers and "
            f"heads, got {sockets} sockets: {counted(_most_sockets(layers, kv_heads, sockets), 'socket')} would do."
        )
    if head_parts is None:
        head_parts = max((parts for parts in fitting if parts**2 <= sockets), default=fitting[0])
    if head_parts not in fitting:
        raise ValueError(f"head_parts must be one of {', '.join(map(str, fitting))}, got {head_parts}.")
    group = block_of(layers, sockets // head_parts)[:, None]
    return _layout("layer-head-blocks", group * head_parts + block_of(kv_heads, head_parts), kv_heads, sockets)


LAYOUTS: Mapping[str, Callable[[int, int, int], KVLayout]] = {
    "layers-in-turn": layers_in_turn,
    "layer-blocks": layer_blocks,
    "head-blocks": head_blocks,
    "layer-head-blocks": layer_head_blocks,
}


def make_layout(name: str, layers: int, kv_heads: int, sockets: int) -> KVLayout:
    """The layout of that name.

    Raises:
        ValueError: there is none, or sockets would hold nothing; the message says what would do.
    """
    if name not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {name!r}.")
    return LAYOUTS[name](layers, kv_heads, sockets)


def block_of(count: int, blocks: int) -> IntArray:
    """The block of each of `count` things in a row, shape (count,): blocks differ by one at most, larger ones first."""
    sizes = np.full(blocks, count // blocks)
    sizes[: count % blocks] += 1
    return np.repeat(np.arange(blocks), sizes)


def require_fit(cache: KVCache, layout: KVLayout, memory_bytes: npt.ArrayLike) -> None:
    """Raise ValueError where a socket's memory cannot hold its part, saying how many sockets or what elements would do.

    Args:
        cache: its layers and heads are those of the layout.
        layout: where it goes.
        memory_bytes: of each socket, shape (S,), or one for all.
    """
    memory = np.broadcast_to(np.asarray(memory_bytes, np.float64), (layout.num_sockets,))
    if not (np.isfinite(memory) & (memory >= 0)).all():
        raise ValueError(f"memory_bytes must be finite and >= 0, got {memory.tolist()}.")
    part = layout.socket_bytes(cache)
    if (part <= memory * (1.0 + ROUNDING)).all():
        return
    socket = int((part - memory).argmax())
    fitting = float(np.min(memory[part > 0] / part[part > 0])) * cache.bytes_per_element
    elements = f"{_below(fitting)} bytes per element on these" if fitting > 0 else ""
    remedies = " or ".join(filter(None, [elements, _sockets_that_do(cache, layout, memory)]))
    raise ValueError(
        f"the KV cache must fit: by {layout.name} {_gigabytes(part[socket])} go to socket {socket}, "
        f"which has {_gigabytes(memory[socket])}. What would do: {remedies or 'a shorter context'}."
    )


def _sockets_that_do(cache: KVCache, layout: KVLayout, memory: FloatArray) -> str:
    """How many sockets, each as small as the smallest there is, the same layout needs; nothing where none would do."""
    least = float(memory.min())
    if least < cache.head_bytes:
        return ""
    needed = ceil(cache.num_bytes / least)
    first, units = max(layout.num_sockets + 1, needed), cache.layers * cache.kv_heads
    for sockets in range(first, min(first + MOST_TRIED, units + 1)):
        try:
            part = make_layout(layout.name, cache.layers, cache.kv_heads, sockets).socket_bytes(cache)
        except ValueError:
            continue  # so many sockets would hold nothing
        if part.max() <= least * (1.0 + ROUNDING):
            return counted(sockets, "such socket")
    return f"another layout over {counted(needed, 'such socket')} or more"


def _most_sockets(layers: int, kv_heads: int, sockets: int) -> int:
    """The largest number of sockets, below `sockets`, of which none is left empty by layers and heads."""
    return max(parts * min(layers, (sockets - 1) // parts) for parts in range(1, kv_heads + 1))


def _layout(name: str, socket: npt.NDArray[np.int64], kv_heads: int, sockets: int) -> KVLayout:
    full = np.ascontiguousarray(np.broadcast_to(socket, (len(socket), kv_heads)), np.int64)
    full.setflags(write=False)
    return KVLayout(name, full, sockets)


def _require_units(name: str, layers: int, kv_heads: int, sockets: int, most: int) -> None:
    """Raise ValueError for counts below 1, or more sockets than the `most` that all hold something."""
    require_count(layers=layers, kv_heads=kv_heads, sockets=sockets)
    if layers * kv_heads > MOST_UNITS:
        raise ValueError(f"layers x kv_heads must be at most {MOST_UNITS}, got {layers * kv_heads}.")
    if sockets > most:
        raise ValueError(
            f"{name} must leave no socket empty, got {counted(sockets, 'socket')} for {counted(layers, 'layer')} of "
            f"{counted(kv_heads, 'head')}: {counted(most, 'socket')} would do."
        )


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.4g} GB"


def _below(value: float) -> str:
    """A figure to three digits, never rounded up."""
    scale = 10.0 ** (2 - floor(log10(value)))
    return f"{floor(value * scale) / scale:.3g}"

"""Storing keys and values in fewer bytes, on real arrays: small integers with scales, and some tokens only.

What a store takes is what its arrays take, scales and positions included, and its error is measured after a round trip:
on keys, on values and, above all, on what attention gives with them. Nothing here is a formula of an error.

Dimension key: T tokens, K tokens kept, H heads, G heads of keys and values, d size of a head's vectors, Q queries.

References:
    [1] The chapter, section 16.3.3: quantised and sparse storage.
    [2] Z. Liu et al., "KIVI: a tuning-free asymmetric 2bit quantization for KV cache", ICML 2024: some channels of keys
        are large in all tokens, so keys want a scale per channel; values have no such channels and want one per token.
        KIVI's codes have a zero point, and it leaves the last tokens as they are; ours are symmetric, of all tokens.
    [3] Z. Zhang et al., "H2O: heavy-hitter oracle for efficient generative inference of large language models",
        NeurIPS 2023: few tokens take most of the attention, those that took it before; half of what is kept is recent.
    [4] G. Xiao et al., "Efficient streaming language models with attention sinks", ICLR 2024: the first four tokens
        take much attention whatever they are; they and a window of the last ones are kept.
    [5] J. Ainslie et al., "GQA: training generalized multi-query transformer models from multi-head checkpoints", 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from numa_rl.topology import IntArray
from numa_rl.transformer.kv_sample import F32, SINKS, CacheSample
from numa_rl.workloads.parameters import require

HALF, BYTE, NIBBLE = 16, 8, 4
BITS = (HALF, BYTE, NIBBLE)
KEY_SCALES = ("channel", "token")
SELECTIONS = ("heavy-hitters", "window")
RECENT_SHARE = 0.5  # of the tokens that heavy hitters share with the recent ones [3]


@dataclass(frozen=True, eq=False)
class Quantised:
    """An array as small integers times scales, one scale for each run of elements along one axis.

    Attributes:
        codes: int8, or uint8 with two codes of 4 bits in each byte.
        scales: float32, of the array's dimensions, the axis cut to one entry for each block.
        bits: of a code, 8 or 4.
        shape: of the array.
        axis: along which elements share a scale.
        block: how many of them do.
    """

    codes: npt.NDArray[np.int8] | npt.NDArray[np.uint8]
    scales: F32
    bits: int
    shape: tuple[int, ...]
    axis: int
    block: int

    @property
    def num_bytes(self) -> int:
        """What codes and scales take."""
        return self.codes.nbytes + self.scales.nbytes

    def values(self) -> F32:
        """The array again: codes times scales."""
        codes = _unpacked(self.codes, self.shape) if self.bits == NIBBLE else self.codes
        return np.asarray(codes * _spread(self.scales, self.axis, self.block, self.shape), np.float32)


def quantise(array: F32, bits: int, axis: int, block: int | None = None) -> Quantised:
    """Round to the nearest multiple of a scale, which is the largest magnitude that shares it over 127, or 7.

    So no element errs by more than half its scale.

    Args:
        array: finite values, of any shape with no empty axis.
        bits: of a code, 8 or 4.
        axis: along which elements share a scale.
        block: how many in a row do; all of them by default.

    Raises:
        ValueError: other bits, an empty array or one that is not finite, or a block below 1.
    """
    if bits not in (BYTE, NIBBLE):
        raise ValueError(f"bits must be {BYTE} or {NIBBLE}, got {bits}.")
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"array must hold finite values, got shape {array.shape} with others or none.")
    length = array.shape[axis]
    block = length if block is None else block
    if block < 1:
        raise ValueError(f"block must be >= 1, got {block}.")
    most = 2 ** (bits - 1) - 1
    largest = np.maximum.reduceat(np.abs(array), np.arange(0, length, block), axis=axis)
    scales = np.asarray(largest / np.float32(most), np.float32)
    divisor = _spread(np.where(scales > 0, scales, np.float32(1.0)), axis, block, array.shape)
    codes = np.clip(np.rint(array / divisor), -most, most).astype(np.int8)
    packed = _packed(codes) if bits == NIBBLE else codes
    return Quantised(packed, scales, bits, array.shape, axis, block)


def _spread(scales: F32, axis: int, block: int, shape: tuple[int, ...]) -> F32:
    """The scale of every element, of the array's shape."""
    return np.take(scales, np.arange(shape[axis]) // block, axis=axis)


def _packed(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Codes in -8..7, two in a byte; one more of 0 where their number is odd."""
    flat = np.append(codes.ravel(), np.zeros(codes.size % 2, np.int8)).view(np.uint8) & 15
    return np.asarray(flat[::2] | flat[1::2] << 4, np.uint8)


def _unpacked(packed: npt.NDArray[np.int8] | npt.NDArray[np.uint8], shape: tuple[int, ...]) -> npt.NDArray[np.int8]:
    """The codes again, of this shape."""
    nibbles = np.stack([packed & 15, packed >> 4], axis=1).ravel()[: int(np.prod(shape))].astype(np.int8)
    return np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.int8).reshape(shape)


def attention_mass(queries: F32, keys: F32) -> F32:
    """How much of its attention each query gives each token: the softmax of q k / sqrt(d).

    Args:
        queries: shape (Q, H, d); every H / G heads in a row share a head of keys [5].
        keys: shape (T, G, d), or (Q, T, G, d) where queries see different ones.

    Returns:
        Shares that sum to 1 over tokens, shape (Q, G, H / G, T).
    """
    q, h, d = queries.shape
    g = keys.shape[-2]
    grouped = queries.reshape(q, g, h // g, d) / np.float32(np.sqrt(d))
    scores = np.einsum("qghd,tgd->qght", grouped, keys, optimize=True)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), np.float32)


def attention_output(queries: F32, keys: F32, values: F32) -> F32:
    """What queries get of the values, shape (Q, H, d); arguments as of `attention_mass`."""
    mixed = np.einsum("qght,tgd->qghd", attention_mass(queries, keys), values, optimize=True)
    return np.asarray(mixed.reshape(queries.shape), np.float32)


def window_tokens(num_tokens: int, kept: int) -> IntArray:
    """The first tokens and the last ones [4], shape (K,): all, where so many are kept."""
    kept = min(kept, num_tokens)
    sinks = min(SINKS, kept)
    return np.concatenate([np.arange(sinks), np.arange(num_tokens - kept + sinks, num_tokens)])


def heavy_hitters(mass: F32, kept: int) -> IntArray:
    """The tokens that took most of the attention so far, beside as many of the last ones [3].

    Args:
        mass: attention that each token took of earlier queries, by head of keys, shape (G, T).
        kept: K.

    Returns:
        Tokens in their order, shape (G, K).
    """
    num_tokens = mass.shape[1]
    kept = min(kept, num_tokens)
    recent = int(kept * RECENT_SHARE)
    ranked = mass.astype(np.float64)
    ranked[:, num_tokens - recent :] = np.inf
    return np.sort(np.argsort(-ranked, axis=1, kind="stable")[:, :kept], axis=1)


@dataclass(frozen=True)
class Storage:
    """How keys and values are stored.

    Attributes:
        bits: of an element: 16 (half precision), 8 or 4.
        key_scales: what shares a scale of keys: "channel" (a block of tokens in one channel) or "token" [2].
        block_tokens: tokens that share a channel's scale.
        kept_share: share of the tokens that are kept; what is let go of is gone.
        selection: which those are: "heavy-hitters" [3] or "window" [4].

    Raises:
        ValueError: a parameter is out of range.
    """

    bits: int = HALF
    key_scales: str = "channel"
    block_tokens: int = 32
    kept_share: float = 1.0
    selection: str = "heavy-hitters"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.bits not in BITS:
            raise ValueError(f"bits must be one of {', '.join(map(str, BITS))}, got {self.bits}.")
        if self.key_scales not in KEY_SCALES:
            raise ValueError(f"key_scales must be one of {', '.join(KEY_SCALES)}, got {self.key_scales!r}.")
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, got {self.selection!r}.")
        require(self, "block_tokens", "a whole number >= 1", lambda value: value >= 1 and value % 1 == 0)
        require(self, "kept_share", "in (0, 1]", lambda value: 0 < value <= 1)

    def kept_tokens(self, num_tokens: int) -> int:
        """Tokens kept of so many, at least one."""
        return max(ceil(self.kept_share * num_tokens), 1)


@dataclass(frozen=True)
class StorageError:
    """What a way of storing takes and how far it is off, errors being norms of differences over norms.

    Attributes:
        num_bytes: of everything stored.
        half_bytes: what all tokens take in half precision.
        key_error: of the keys that are kept.
        value_error: of the values that are kept.
        output_error: of what the next queries get, against attention over all tokens as they were.
        kept_mass: share of the next queries' attention that goes to tokens that are kept.
    """

    num_bytes: int
    half_bytes: int
    key_error: float
    value_error: float
    output_error: float
    kept_mass: float

    @property
    def bytes_share(self) -> float:
        """Over half precision."""
        return self.num_bytes / self.half_bytes


def measure(sample: CacheSample, storage: Storage) -> StorageError:
    """Store a sample and read it again: what it takes, and what attention gives then."""
    kept = _kept(sample, storage)
    keys, values = (np.take_along_axis(array, kept[:, :, None], axis=0) for array in (sample.keys, sample.values))
    read_keys, key_bytes = _round_trip(keys, storage, storage.key_scales)
    read_values, value_bytes = _round_trip(values, storage, "token")
    exact = attention_output(sample.next_queries, sample.keys, sample.values)
    output = attention_output(sample.next_queries, read_keys, read_values)
    mass = attention_mass(sample.next_queries, sample.keys).mean(axis=(0, 2))  # (G, T)
    positions = 0 if len(kept) == len(sample.keys) else kept.astype(np.int32).nbytes
    return StorageError(
        num_bytes=key_bytes + value_bytes + positions,
        half_bytes=2 * sample.keys.astype(np.float16).nbytes,
        key_error=relative_error(read_keys, keys),
        value_error=relative_error(read_values, values),
        output_error=relative_error(output, exact),
        kept_mass=float(np.take_along_axis(mass.T, kept, axis=0).sum() / mass.sum()),
    )


def relative_error(array: F32, exact: F32) -> float:
    """Norm of the difference over the norm of what is exact."""
    return float(np.linalg.norm((array - exact).astype(np.float64)) / np.linalg.norm(exact.astype(np.float64)))


def _kept(sample: CacheSample, storage: Storage) -> IntArray:
    """The tokens that each head of keys and values keeps, shape (K, G)."""
    t, g, _ = sample.keys.shape
    count = storage.kept_tokens(t)
    if storage.selection == "window" or count >= t:
        return np.repeat(window_tokens(t, count)[:, None], g, axis=1)
    mass = attention_mass(sample.past_queries, sample.keys).sum(axis=(0, 2), dtype=np.float32)
    return np.ascontiguousarray(heavy_hitters(mass, count).T)


def _round_trip(array: F32, storage: Storage, scales: str) -> tuple[F32, int]:
    """An array (K, G, d) stored and read again, and the bytes that it took."""
    if storage.bits == HALF:
        half = array.astype(np.float16)
        return half.astype(np.float32), half.nbytes
    axis, block = (2, None) if scales == "token" else (0, storage.block_tokens)
    stored = quantise(array, storage.bits, axis, block)
    return stored.values(), stored.num_bytes

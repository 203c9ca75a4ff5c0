"""The roofline of a NUMA machine, and what to do about a point under it.

A task of intensity I (flop per byte of memory traffic) attains at most P = min(P_peak, I x BW), and on a NUMA machine
BW depends on where the bytes are; `numa_rl.ceilings` takes it from a machine.

References:
    [1] The chapter, section 16.4.3: effective bandwidth, the roofline, the tuning table.
    [2] S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model", CACM, 2009.
    [3] The chapter, exercises 1 and 3: mean latency, effective bandwidth.
    [4] M. Dashti et al., "Traffic management: a holistic approach to memory placement on NUMA systems", ASPLOS 2013:
        Carrefour migrates pages while less than 80% of the accesses are local.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from numa_rl.topology import FloatArray

Values = TypeVar("Values", float, FloatArray)

SHARE_TOLERANCE = 1e-6  # shares printed with six digits still sum to 1

# Borders of the tuning table. A value on a border belongs to the middle, but 0.8 local counts as high.
LOW_INTENSITY, HIGH_INTENSITY = 0.5, 4.0  # flop per byte: the chapter's [1]
LOW_LOCALITY = 0.5  # ours: below it, most bytes are remote
HIGH_LOCALITY = 0.8  # Carrefour's: from it on, pages are left where they are [4]


def mean_latency(shares: Sequence[float], latency_s: Sequence[float]) -> float:
    """Mean latency of accesses over classes of distance [3]: 60% at 10 ns, 30% at 25, 10% at 45 make 18 ns.

    Args:
        shares: share of the accesses in each class; they sum to 1.
        latency_s: latency of each class, seconds.

    Raises:
        ValueError: no class, a share outside [0, 1], shares that do not sum to 1, or a latency not > 0.

    Example:
        >>> round(mean_latency([0.6, 0.3, 0.1], [10e-9, 25e-9, 45e-9]) * 1e9, 9)
        18.0
    """
    if len(shares) != len(latency_s) or len(shares) == 0:
        raise ValueError(
            f"shares and latency_s must have one value for each class, got {len(shares)} and {len(latency_s)}."
        )
    for index, (share, latency) in enumerate(zip(shares, latency_s, strict=True)):
        require_share(f"shares[{index}]", share)
        _require_positive(f"latency_s[{index}]", latency)
    total = math.fsum(shares)
    if abs(total - 1.0) > SHARE_TOLERANCE:
        raise ValueError(f"shares must sum to 1, got {total:.9g}.")
    return math.fsum(share * latency for share, latency in zip(shares, latency_s, strict=True))


def effective_bandwidth(local_share: float, local_bytes_per_s: float, remote_bytes_per_s: float) -> float:
    """BW_eff = a BW_local + (1 - a) BW_remote, the chapter's mean of bandwidths, bytes per second [1].

    It holds where `local_share` is a share of the *time*, or of equal cores each of which streams from one side only:
    all keep moving at their own pace, and bandwidths add. Where it is a share of the *bytes* of one stream, the
    slow bytes take more than their share of the time: use `byte_weighted_bandwidth`, which is never higher.

    Args:
        local_share: a, in [0, 1].
        local_bytes_per_s: BW_local, what a node draws from its own memory.
        remote_bytes_per_s: BW_remote, what it draws from another's.

    Raises:
        ValueError: a share outside [0, 1] or a bandwidth not > 0.

    Example:
        >>> effective_bandwidth(0.75, 90e9, 30e9) / 1e9  # exercise 3
        75.0
    """
    _require_mix(local_share, local_bytes_per_s, remote_bytes_per_s)
    return local_share * local_bytes_per_s + (1.0 - local_share) * remote_bytes_per_s


def byte_weighted_bandwidth(local_share: float, local_bytes_per_s: float, remote_bytes_per_s: float) -> float:
    """1 / (a / BW_local + (1 - a) / BW_remote): a stream that takes local and remote bytes in turn, bytes per second.

    Times per byte add, so bytes are conserved: every byte takes the time of where it lies. The simulator does this,
    adding bytes / bandwidth over a task's sources. With exercise 3's figures it gives 60 GB/s where the chapter's
    `effective_bandwidth` gives 75. Both take the sides in turn; a core that has local and remote bytes
    in flight together lies above this, up to what its outstanding loads allow.

    Args:
        local_share: a, the share of the bytes that is local, in [0, 1].
        local_bytes_per_s: BW_local.
        remote_bytes_per_s: BW_remote.

    Raises:
        ValueError: a share outside [0, 1] or a bandwidth not > 0.

    Example:
        >>> round(byte_weighted_bandwidth(0.75, 90e9, 30e9) / 1e9, 9)
        60.0
    """
    _require_mix(local_share, local_bytes_per_s, remote_bytes_per_s)
    return 1.0 / (local_share / local_bytes_per_s + (1.0 - local_share) / remote_bytes_per_s)


def attainable(intensity: Values, peak_flops_per_s: float, bandwidth_bytes_per_s: float) -> Values:
    """P = min(P_peak, I x BW), flop per second, in the shape of `intensity` [1, 2].

    Args:
        intensity: I, flop per byte, a number or an array of them; 0 for a task that only moves bytes.
        peak_flops_per_s: P_peak.
        bandwidth_bytes_per_s: BW.

    Raises:
        ValueError: an intensity that is not finite and >= 0, or a peak or bandwidth not > 0.
    """
    _require_positive("peak_flops_per_s", peak_flops_per_s)
    _require_positive("bandwidth_bytes_per_s", bandwidth_bytes_per_s)
    for value in np.ravel(intensity):
        _require_intensity(value)
    roof: Values = np.minimum(peak_flops_per_s, intensity * bandwidth_bytes_per_s)
    return roof


def ridge_point(peak_flops_per_s: float, bandwidth_bytes_per_s: float) -> float:
    """The intensity from which on the peak bounds and no longer the memory, flop per byte [2].

    Raises:
        ValueError: a peak or bandwidth not > 0.
    """
    _require_positive("peak_flops_per_s", peak_flops_per_s)
    _require_positive("bandwidth_bytes_per_s", bandwidth_bytes_per_s)
    return peak_flops_per_s / bandwidth_bytes_per_s


class Level(Enum):
    """A class of intensity or of locality."""

    LOW = "low"
    MIDDLE = "middle"
    HIGH = "high"


@dataclass(frozen=True)
class Tuning:
    """A cell of the tuning table: what to do about a task of this intensity and locality.

    Attributes:
        intensity: class of flop per byte.
        locality: class of the share of bytes that are local.
        strategy: its name.
        advice: what to change, in one line.
        commands: what to run, to see the cause or to make the change; PID, NODE, FROM, TO and CMD stand for your own.
    """

    intensity: Level
    locality: Level
    strategy: str
    advice: str
    commands: tuple[str, ...]


def _table(*cells: Tuning) -> Mapping[tuple[Level, Level], Tuning]:
    return MappingProxyType({(cell.intensity, cell.locality): cell for cell in cells})


# The chapter's table [1] by its own limits of intensity; advice and commands are for Linux with numactl and perf.
TUNING_TABLE = _table(
    Tuning(
        Level.LOW,
        Level.LOW,
        "move data to tasks",
        "Let the threads that use an array write it first, migrate pages placed already, and replicate read-only data.",
        ("numastat -p PID", "migratepages PID FROM TO", "numactl --cpunodebind=NODE --localalloc CMD"),
    ),
    Tuning(
        Level.LOW,
        Level.MIDDLE,
        "pin threads by data",
        "Pin threads to the node of their pages, then move the few objects that draw most of the remote bytes.",
        ("numactl --cpunodebind=NODE --localalloc CMD", "perf mem record CMD", "perf mem report --sort=symbol,mem"),
    ),
    Tuning(
        Level.LOW,
        Level.HIGH,
        "spread over controllers",
        "Use every node's controller (spread threads with their pages, interleave shared arrays) and move fewer bytes: "
        "fuse loops, narrower types, compression.",
        (
            "numactl --interleave=all CMD",
            "perf stat -a --per-socket -e uncore_imc/cas_count_read/,uncore_imc/cas_count_write/ sleep 10",
        ),
    ),
    Tuning(
        Level.MIDDLE,
        Level.LOW,
        "partition by owner",
        "Cut the data into one part per node, compute each part where it lies, and exchange only the edges, in bulk.",
        ("numastat -p PID", "numactl --cpunodebind=NODE --membind=NODE CMD"),
    ),
    Tuning(
        Level.MIDDLE,
        Level.MIDDLE,
        "overlap transfers",
        "Fetch the next remote chunk, as large as the last-level cache allows, while computing on this one "
        "(double buffering).",
        ("perf stat -e node-loads,node-load-misses -p PID", "numactl --hardware", "lscpu --caches"),
    ),
    Tuning(
        Level.MIDDLE,
        Level.HIGH,
        "block for cache",
        "Tile loops to the cache and fuse passes over the same data: reuse raises the intensity.",
        ("perf stat -e LLC-loads,LLC-load-misses -p PID", "lscpu --caches"),
    ),
    Tuning(
        Level.HIGH,
        Level.LOW,
        "hide remote latency",
        "Computing hides most remote bytes: spread tasks over all cores, prefetch or copy blocks before use, "
        "and migrate nothing but what is reused often.",
        (
            "perf stat -a --per-socket -e cycles,instructions sleep 10",
            "numactl --interleave=all CMD",
            "numastat -p PID",
        ),
    ),
    Tuning(
        Level.HIGH,
        Level.MIDDLE,
        "balance load nearby",
        "Compute-bound: even out the load, stealing tasks from the nearest node first so that locality is not lost.",
        ("numactl --hardware", "perf sched record -a sleep 10", "perf sched timehist --summary"),
    ),
    Tuning(
        Level.HIGH,
        Level.HIGH,
        "vectorise",
        "Compute-bound on local data: use wide fused multiply-add, lower precision where it suffices, and every core.",
        ("perf stat -d -p PID", "perf annotate", "numactl --cpunodebind=NODE --localalloc CMD"),
    ),
)


def intensity_level(intensity: float) -> Level:
    """Low below 0.5 flop per byte, high above 4 [1].

    Raises:
        ValueError: the intensity is not finite and >= 0.
    """
    _require_intensity(intensity)
    if intensity < LOW_INTENSITY:
        return Level.LOW
    return Level.HIGH if intensity > HIGH_INTENSITY else Level.MIDDLE


def locality_level(local_share: float) -> Level:
    """Low below a local share of 0.5, high from 0.8 on.

    Raises:
        ValueError: the share is outside [0, 1].
    """
    require_share("local_share", local_share)
    if local_share < LOW_LOCALITY:
        return Level.LOW
    return Level.HIGH if local_share >= HIGH_LOCALITY else Level.MIDDLE


def tuning(intensity: float, local_share: float) -> Tuning:
    """The cell of the tuning table for a task [1].

    Args:
        intensity: flop per byte of memory traffic.
        local_share: share of its bytes that are local, in [0, 1].

    Raises:
        ValueError: an intensity that is not finite and >= 0, or a share outside [0, 1].
    """
    return TUNING_TABLE[intensity_level(intensity), locality_level(local_share)]


def _require_mix(local_share: float, local_bytes_per_s: float, remote_bytes_per_s: float) -> None:
    require_share("local_share", local_share)
    _require_positive("local_bytes_per_s", local_bytes_per_s)
    _require_positive("remote_bytes_per_s", remote_bytes_per_s)


def require_share(name: str, value: float) -> None:
    """Raise ValueError unless a share is in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be in [0, 1], got {value}.")


def _require_positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be finite and > 0, got {value}.")


def _require_intensity(value: float) -> None:
    if not 0.0 <= value < math.inf:
        raise ValueError(f"intensity must be finite and >= 0, got {value}.")

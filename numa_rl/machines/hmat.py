"""The firmware's own latencies and bandwidths: the ACPI Heterogeneous Memory Attribute Table (HMAT).

Linux shows of it only what the best initiator of each memory gets; the table holds every pair.

Dimension key: I initiator domains, T target domains, N nodes.

References:
    [1] ACPI Specification, section 5.2.28: Heterogeneous Memory Attribute Table (HMAT).
    [2] Linux, drivers/acpi/numa/hmat.c: how units of revisions 1 and 2 are read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from numa_rl.machines.assembly import Found, joined, memory_side_caches
from numa_rl.machines.builders import ChapterFigures
from numa_rl.machines.slit import BoolArray
from numa_rl.topology import FloatArray

SIGNATURE = b"HMAT"
HEADER = struct.Struct("<4sIBB6s8sI4sI4x")  # the table's, with the four bytes that are reserved
STRUCTURE = struct.Struct("<HHI")
LOCALITY = struct.Struct("<BBBBIIIQ")
SIDE_CACHE = struct.Struct("<IIQIHH")
LOCALITY_TYPE, SIDE_CACHE_TYPE = 1, 2
MEMORY_LEVEL = 0  # of a locality structure's flags: memory itself, not a cache in front of it
LEVEL_MASK = 0x0F
UNREACHABLE = 0xFFFF
ACCESS_LATENCY, READ_LATENCY, ACCESS_BANDWIDTH, READ_BANDWIDTH = 0, 1, 3, 4
LATENCY_KINDS, BANDWIDTH_KINDS = (READ_LATENCY, ACCESS_LATENCY), (READ_BANDWIDTH, ACCESS_BANDWIDTH)
MEGABYTE = 1e6
MAX_DOMAINS = 1024
HMAT_SOURCE = "file: ACPI HMAT, the firmware's own figures"


@dataclass(frozen=True, eq=False)
class Hmat:
    """What an HMAT says, by proximity domain.

    Attributes:
        initiators: domains that start accesses, ascending, shape (I,).
        targets: domains of memory, ascending, shape (T,).
        latency_s: read or, where there is none, access latency, shape (I, T), NaN where not given.
        bandwidth_bytes_per_s: read or access bandwidth, shape (I, T), NaN where not given.
        side_cache_bytes: memory-side caches, in the order of the table.
    """

    initiators: list[int]
    targets: list[int]
    latency_s: FloatArray
    bandwidth_bytes_per_s: FloatArray
    side_cache_bytes: list[int]

    @property
    def between_memories(self) -> tuple[FloatArray, FloatArray]:
        """Latency and bandwidth from every domain of memory to every other, shape (T, T), NaN where not given.

        Rows of initiators without memory of their own, such as accelerators, are left out.
        """
        latency, bandwidth = np.full((2, len(self.targets), len(self.targets)), np.nan)
        for row, domain in enumerate(self.initiators):
            if domain in self.targets:
                latency[self.targets.index(domain)] = self.latency_s[row]
                bandwidth[self.targets.index(domain)] = self.bandwidth_bytes_per_s[row]
        return latency, bandwidth


def parse_hmat(data: bytes) -> Hmat:
    """What an HMAT says, read as Linux does [2].

    Raises:
        ValueError: the signature, length, checksum, revision or a structure is wrong, or it names no latency and no
            bandwidth of memory.
    """
    if len(data) < HEADER.size or data[:4] != SIGNATURE:
        raise ValueError(f"the HMAT must start with {SIGNATURE!r} and {HEADER.size} bytes, got {data[:4]!r}.")
    length, revision = struct.unpack_from("<IB", data, 4)
    if length != len(data):
        raise ValueError(f"the HMAT's length must be that of the file, {len(data)} bytes, got {length}.")
    if sum(data) % 256:
        raise ValueError(f"the HMAT's bytes must add up to 0 modulo 256, got {sum(data) % 256}.")
    if revision not in (1, 2):
        raise ValueError(f"the HMAT's revision must be 1 or 2, got {revision}.")
    tables: dict[int, dict[tuple[int, int], float]] = {}
    side_caches: list[int] = []
    for kind, body in _structures(data):
        if kind == LOCALITY_TYPE:
            data_type, values = _locality(body, revision)
            tables.setdefault(data_type, {}).update(values)
        elif kind == SIDE_CACHE_TYPE:
            if len(body) < SIDE_CACHE.size:
                raise ValueError(f"a memory-side cache must have {SIDE_CACHE.size} bytes, got {len(body)}.")
            side_caches.append(SIDE_CACHE.unpack_from(body)[2])
    latency = next((tables[kind] for kind in LATENCY_KINDS if kind in tables), {})
    bandwidth = next((tables[kind] for kind in BANDWIDTH_KINDS if kind in tables), {})
    pairs = [*latency, *bandwidth]
    if not pairs:
        raise ValueError("the HMAT must hold a latency or a bandwidth of memory, got none.")
    initiators, targets = sorted({pair[0] for pair in pairs}), sorted({pair[1] for pair in pairs})
    return Hmat(
        initiators,
        targets,
        _matrix(latency, initiators, targets),
        _matrix(bandwidth, initiators, targets),
        [size for size in side_caches if size],
    )


def found_in_hmat(name: str, hmat: Hmat) -> Found:
    """The machine of a table alone: a domain of memory is a node, and has cores if it starts accesses."""
    starts = np.isin(hmat.targets, hmat.initiators)
    found: dict[str, Any] = found_figures(hmat, starts)
    sources = dict.fromkeys(found, HMAT_SOURCE)
    sources["cores"] = "file: initiator domains of the HMAT have cores; assumed: 8 each"
    sources["memory_bytes"] = joined("assumed: 64 GiB per node", memory_side_caches(hmat.side_cache_bytes))
    return Found(name=name, cores=np.where(starts, ChapterFigures().cores, 0), sources=sources, **found)


def found_figures(hmat: Hmat, has_cores: BoolArray) -> dict[str, FloatArray]:
    """Latency and bandwidth as in `Found`, of nodes that are the table's domains of memory in ascending order.

    Each only where the table gives any of what nodes with cores see.

    Args:
        hmat: the table.
        has_cores: nodes that start accesses, shape (T,).
    """
    matrices = zip(("latency_s", "bandwidth_bytes_per_s"), hmat.between_memories, strict=True)
    return {name: matrix for name, matrix in matrices if np.isfinite(matrix[has_cores]).any()}


def _structures(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of every structure of the table."""
    at = HEADER.size
    while at < len(data):
        if at + STRUCTURE.size > len(data):
            raise ValueError(f"an HMAT structure must have {STRUCTURE.size} bytes at least, got {len(data) - at}.")
        kind, _, length = STRUCTURE.unpack_from(data, at)
        if not STRUCTURE.size <= length <= len(data) - at:
            raise ValueError(f"an HMAT structure's length must be in 8..{len(data) - at}, got {length}.")
        yield kind, data[at + STRUCTURE.size : at + length]
        at += length


def _locality(body: bytes, revision: int) -> tuple[int, dict[tuple[int, int], float]]:
    """The data type of a locality structure and its value by (initiator, target), in seconds or bytes/s.

    A structure about a cache in front of memory says nothing of memory, and yields none.
    """
    if len(body) < LOCALITY.size:
        raise ValueError(f"an HMAT locality structure must have {LOCALITY.size} bytes, got {len(body)}.")
    flags, data_type, _, _, num_initiators, num_targets, _, base = LOCALITY.unpack_from(body)
    if max(num_initiators, num_targets) > MAX_DOMAINS:
        raise ValueError(f"the HMAT must have at most {MAX_DOMAINS} domains, got {max(num_initiators, num_targets)}.")
    needed = LOCALITY.size + 4 * (num_initiators + num_targets) + 2 * num_initiators * num_targets
    if len(body) < needed:
        raise ValueError(f"an HMAT locality structure of this size must have {needed} bytes, got {len(body)}.")
    domains = np.frombuffer(body, "<u4", num_initiators + num_targets, LOCALITY.size).tolist()
    entries = np.frombuffer(
        body, "<u2", num_initiators * num_targets, LOCALITY.size + 4 * (num_initiators + num_targets)
    ).tolist()
    unit = _unit(data_type, revision) * base
    if flags & LEVEL_MASK != MEMORY_LEVEL:
        return data_type, {}
    pairs = [(i, t) for i in domains[:num_initiators] for t in domains[num_initiators:]]
    known = zip(pairs, entries, strict=True)
    return data_type, {pair: entry * unit for pair, entry in known if entry not in (0, UNREACHABLE) and unit > 0}


def _unit(data_type: int, revision: int) -> float:
    """What an entry of 1 and a base unit of 1 mean, in seconds or bytes/s; 0 for a type that is not known.

    Revision 2 counts in ps and MB/s. Revision 1 counts in tenths of a ns and of a MB/s [2].
    """
    if data_type <= 2:
        return 1e-12 if revision == 2 else 1e-10
    return (MEGABYTE if revision == 2 else MEGABYTE / 10) if data_type <= 5 else 0.0


def _matrix(values: dict[tuple[int, int], float], initiators: list[int], targets: list[int]) -> FloatArray:
    """Values by domain as a matrix, NaN where not given, shape (I, T)."""
    return np.array([[values.get((i, t), np.nan) for t in targets] for i in initiators], dtype=np.float64)

"""Machines from published measurements: one JSON object of what someone measured, whole or in part.

Published figures are seldom whole: a matrix, one row or column of it, ratios only, or the firmware's distances only.
What is missing is filled in by `completed` and `assemble`, and every machine says what was.

Dimension key: N nodes.

References:
    [1] Intel Memory Latency Checker: idle latency, bandwidth and loaded-latency measurements.
    [2] J. D. C. Little, "A proof for the queuing formula L = lambda W", 1961.
    [3] J. D. McCalpin, STREAM: Copy counts the bytes it reads and those it writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from numa_rl.machines.assembly import Found, assemble, joined
from numa_rl.machines.builders import ChapterFigures
from numa_rl.machines.load_curve import fit_loaded_latency
from numa_rl.machines.machine_json import check_numbers, check_text, show
from numa_rl.machines.slit import ASSUMED_LOCAL_LATENCY_S, SLIT_ERROR
from numa_rl.topology import FloatArray, LoadedLatency, Topology

NS = 1e-9
MB = 1e6  # MLC and STREAM count in 1e6 bytes [1, 3]
MIB = 2**20  # numactl and /proc/meminfo count in 2^20 bytes
MOST_NODES = 1024

LATENCY_KEYS = (
    "idle_latency_ns",
    "idle_latency_ns_row0",
    "latency_to_node0_ns_from_node",
    "latency_to_node0_ns_from_core",
    "local_latency_ns_4096MB",
    "relative_access_time",
)
BANDWIDTH_KEYS = ("read_bandwidth_MBps", "read_bandwidth_MBps_row0")
STREAM_KEYS = (
    "stream_copy_1core_MBps_cpu7_to_node",
    "stream_copy_1core_MBps_to_node0_from_node",
)
STREAM_EITHER = "stream_copy_1core_MBps_local_remote"
# Figures that no machine of ours has a place for, and words.
UNUSED_KEYS = (
    "threads_per_core",
    "peak_MBps",
    "cache_to_cache_hitm_ns_writer_homed",
    "cache_to_cache_hitm_ns_reader_homed",
    "die_interleave_2node_latency_ns",
    "stream_copy_1core_MBps_cpu24_to_node3",
    "kind",
    "note",
)
KNOWN_KEYS = (
    *("nodes", "sockets", "cores_per_node", "mem_mb_per_node", "slit", "loaded_latency_delay_ns_MBps", "source"),
    *LATENCY_KEYS,
    *BANDWIDTH_KEYS,
    *STREAM_KEYS,
    STREAM_EITHER,
    *UNUSED_KEYS,
)
OUTLIER = re.compile(r"\[(\d{1,4})\]\[(\d{1,4})\]")


def machine_from_collection(content: Any, name: str, origin: str) -> Topology:
    """One machine of a collection: an object whose "machines" maps names to entries (`machine_from_measurements`).

    Raises:
        ValueError: no collection, no such entry, or an entry that is no machine.
    """
    machines = content.get("machines") if isinstance(content, dict) else None
    if not isinstance(machines, dict) or not machines:
        raise ValueError(f"{origin}: 'machines' must be an object of entries, got {show(machines)}.")
    if name not in machines:
        raise ValueError(
            f"{origin}: which of its machines must be named after a #, one of {', '.join(machines)}, got {name!r}."
        )
    try:
        return assemble(found_in_measurements(name, machines[name]))
    except ValueError as error:
        raise ValueError(f"{origin}, machine {name!r}: {error}") from None


def found_in_measurements(name: str, entry: Any) -> Found:
    """What an entry of measurements says of a machine.

    Args:
        name: how the machine is called.
        entry: an object with "nodes" and "source" and any of `KNOWN_KEYS`. A matrix has a row for each node that
            asks and a column for each memory. Pairs whose figures the "note" calls outliers, as [row][column], count
            as not measured.

    Raises:
        ValueError: a key is unknown, or a figure has the wrong shape or range.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"an entry must be a JSON object, got {show(entry)}.")
    for key in entry:
        if key not in KNOWN_KEYS:
            raise ValueError(f"keys must be among {', '.join(KNOWN_KEYS)}, got {key!r}.")
    for key in ("source", "note"):
        check_text(key, entry.get(key, ""))
    n = _count(entry, "nodes", MOST_NODES)
    measured = _Measured({**entry, "note": entry.get("note", "")}, n)
    sources: dict[str, str] = {}
    cores, sources["cores"] = measured.cores()
    latency_s, latency_source = measured.latency()
    bandwidth, bandwidth_source = measured.bandwidth()
    found: dict[str, Any] = {"latency_s": latency_s, "bandwidth_bytes_per_s": bandwidth}
    if latency_source:
        sources["latency_s"] = latency_source
    if bandwidth_source:
        sources["bandwidth_bytes_per_s"] = bandwidth_source
    if "slit" in entry:
        found["distances"] = measured.matrix("slit")
        sources.setdefault(
            "latency_s",
            "assumed: 100 ns local; derived: remote by SLIT, firmware ratios that are often wrong, "
            f"{SLIT_ERROR}, {measured.source}",
        )
    if "mem_mb_per_node" in entry:
        found["memory_bytes"] = measured.array("mem_mb_per_node", holes=True) * MIB
        sources["memory_bytes"] = f"measured: node sizes in MiB, {measured.source}"
    if "loaded_latency_delay_ns_MBps" in entry:
        found["loaded_latency"], sources["loaded_latency"] = measured.loaded_latency()
    if latency_s is not None and (in_flight := measured.in_flight(latency_s)):
        found["outstanding_bytes"], sources["outstanding_bytes"] = in_flight
    return Found(name=name, cores=cores, sources=sources, **found)


class _Measured:
    """An entry whose keys are known, read key by key."""

    def __init__(self, entry: Mapping[str, Any], num_nodes: int) -> None:
        self.entry = entry
        self.n = num_nodes
        self.source = entry.get("source", "source not stated")

    def array(self, key: str, *, holes: bool = False) -> FloatArray:
        """A figure of every node, shape (N,); NaN for null where holes are allowed."""
        return _numbers(key, self.entry[key], (self.n,), holes=holes)

    def matrix(self, key: str) -> FloatArray:
        """A figure of every pair, shape (N, N); NaN where the note speaks of an outlier."""
        return _numbers(key, self.entry[key], (self.n, self.n))

    def cores(self) -> tuple[Any, str]:
        """Cores of each node, shape (N,), and where they came from; a node that asks nothing has none."""
        given = self.entry.get("cores_per_node")
        if isinstance(given, list):
            counts = self.array("cores_per_node")
        elif given is not None:
            counts = np.full(self.n, _count(self.entry, "cores_per_node", 4096))
        else:
            counts = np.full(self.n, ChapterFigures().cores)
        source = f"measured: {self.source}" if given is not None else "assumed: 8 per node, the source gives none"
        if "idle_latency_ns_row0" in self.entry:
            counts = np.where(np.arange(self.n) == 0, counts, 0)
            source = joined(source, "measured: only node 0 asks, the others hold memory only")
        if (counts != np.round(counts)).any():
            raise ValueError(f"cores_per_node must be whole numbers, got {show(given)}.")
        return counts.astype(np.int64), source

    def latency(self) -> tuple[FloatArray | None, str]:
        """Idle latency of every pair in seconds, shape (N, N), NaN where unknown, and its source; or None."""
        latency = np.full((self.n, self.n), np.nan)
        if "idle_latency_ns" in self.entry:
            latency, what = self.matrix("idle_latency_ns") * NS, "idle latency of every pair"
        elif "idle_latency_ns_row0" in self.entry:
            latency[0], what = self.array("idle_latency_ns_row0") * NS, "idle latency from node 0"
        elif "latency_to_node0_ns_from_node" in self.entry:
            latency[:, 0] = self.array("latency_to_node0_ns_from_node") * NS
            what = "idle latency to node 0 from every node"
        elif "latency_to_node0_ns_from_core" in self.entry:
            by_core = _by_index("latency_to_node0_ns_from_core", self.entry["latency_to_node0_ns_from_core"], 2**20)
            if len(by_core) != self.n:
                raise ValueError(f"latency_to_node0_ns_from_core must have a core of each node, got {len(by_core)}.")
            latency[:, 0] = [value * NS for _, value in sorted(by_core.items())]
            what = "idle latency to node 0 from a core of every node"
        elif "local_latency_ns_4096MB" in self.entry:
            np.fill_diagonal(latency, self.local_latency())
            what = "local idle latency, cores one after another"
        elif "relative_access_time" in self.entry:
            return ASSUMED_LOCAL_LATENCY_S * self.relative(), (
                f"measured: remote over local, by package, {self.source}; assumed: 100 ns local"
            )
        else:
            return None, ""
        return latency, f"measured: {what}, {self.source}"

    def local_latency(self) -> FloatArray:
        """Local latency of every node in seconds, the average of its cores measured alone, shape (N,)."""
        serial = self.entry["local_latency_ns_4096MB"]
        values = serial.get("serial", []) if isinstance(serial, dict) else serial
        check_numbers("local_latency_ns_4096MB.serial", values, 1)
        if len(values) == 0 or len(values) % self.n:
            raise ValueError(f"local_latency_ns_4096MB.serial must have as many cores of each node, got {len(values)}.")
        latency_ns = _numbers("local_latency_ns_4096MB", values, (len(values),)).reshape(self.n, -1)
        return np.asarray(latency_ns.mean(axis=1) * NS, dtype=np.float64)

    def relative(self) -> FloatArray:
        """Latency over local by package, for packages of as many nodes each, shape (N, N)."""
        times = self.entry["relative_access_time"]
        keys = ("local", "same_package_remote", "other_package")
        if not isinstance(times, dict) or set(times) != set(keys):
            raise ValueError(f"relative_access_time must have the keys {', '.join(keys)}, got {show(times)}.")
        local, near, far = _numbers("relative_access_time", [times[key] for key in keys], (3,))
        sockets = _count(self.entry, "sockets", self.n)
        package = np.arange(self.n) * sockets // self.n
        ratio = np.where(package[:, None] == package[None, :], near, far)
        np.fill_diagonal(ratio, local)
        return np.asarray(ratio / local, dtype=np.float64)

    def bandwidth(self) -> tuple[FloatArray | None, str]:
        """Read bandwidth of every pair in bytes/s, shape (N, N), NaN where unknown, and its source; or None."""
        bandwidth = np.full((self.n, self.n), np.nan)
        if "read_bandwidth_MBps" in self.entry:
            bandwidth = self.matrix("read_bandwidth_MBps") * MB
            source = f"measured: read bandwidth of every pair, {self.source}"
            outliers = self.outliers()
            for pair in outliers:
                bandwidth[pair] = np.nan
            if outliers:
                listed = ", ".join(f"{a} from {b}" for a, b in outliers)
                source = joined(source, f"derived: outliers replaced, node {listed}")
            return bandwidth, source
        if "read_bandwidth_MBps_row0" in self.entry:
            bandwidth[0] = self.array("read_bandwidth_MBps_row0") * MB
            return bandwidth, f"measured: read bandwidth from node 0, {self.source}"
        streams = self.streams()
        if (0, 0) not in streams or len(streams) < 2:
            return None, ""
        for pair, bytes_per_s in streams.items():
            bandwidth[pair] = ChapterFigures().local_bandwidth_bytes_per_s * bytes_per_s / streams[0, 0]
        return bandwidth, f"assumed: 90 GB/s local; measured: remote over local, one core's STREAM copy, {self.source}"

    def outliers(self) -> list[tuple[int, int]]:
        """The pairs that the note calls outliers."""
        if "outlier" not in self.entry["note"]:
            return []
        pairs = [(int(a), int(b)) for a, b in OUTLIER.findall(self.entry["note"])]
        for pair in pairs:
            if max(pair) >= self.n:
                raise ValueError(f"an outlier must be a pair of nodes in 0..{self.n - 1}, got {pair}.")
        return pairs

    def streams(self) -> dict[tuple[int, int], float]:
        """What one core's STREAM copy moves, bytes/s by (node that asks, node of the memory)."""
        values: dict[tuple[int, int], float] = {}
        if STREAM_EITHER in self.entry:
            local, remote = (_numbers(STREAM_EITHER, self.entry[STREAM_EITHER], (2,)) * MB).tolist()
            values = {(i, j): local if i == j else remote for i in range(self.n) for j in range(self.n)}
        for key in STREAM_KEYS:
            if key not in self.entry:
                continue
            given = self.entry[key]
            if isinstance(given, list):
                given = {str(node): value for node, value in enumerate(given)}
            for node, value in _by_index(key, given, self.n).items():
                values[(node, 0) if key.endswith("from_node") else (0, node)] = value * MB
        return values

    def in_flight(self, latency_s: FloatArray) -> tuple[float, str] | None:
        """Bytes one core keeps in flight, by Little's law [2] from its streams, and the source; None without any.

        Where the latency of a stream's pair is not known, that of the reverse pair counts.
        """
        either_way = np.where(np.isnan(latency_s), latency_s.T, latency_s)
        known = [
            bytes_per_s * either_way[pair] for pair, bytes_per_s in self.streams().items() if either_way[pair] > 0.0
        ]
        if not known:
            return None
        spread = f"{min(known):.0f} to {max(known):.0f} bytes by pair"
        return float(np.mean(known)), (
            f"derived: Little's law, one core's STREAM copy times latency of the same pair ({spread}), {self.source}"
        )

    def loaded_latency(self) -> tuple[LoadedLatency, str]:
        """The fit to a curve of rows (injection delay, latency in ns, MB/s), and its source."""
        rows = self.entry["loaded_latency_delay_ns_MBps"]
        check_numbers("loaded_latency_delay_ns_MBps", rows, 2)
        curve = np.array(rows, np.float64)
        if curve.ndim != 2 or curve.shape[1] != 3:
            raise ValueError(f"loaded_latency_delay_ns_MBps must have rows of 3 numbers, got shape {curve.shape}.")
        fit, rmse = fit_loaded_latency(curve[:, 1] * NS, curve[:, 2] * MB)
        return fit, f"measured: fit to the curve of the same machine (rmse {rmse:.3f}), {self.source}"


def _numbers(key: str, value: Any, shape: tuple[int, ...], *, holes: bool = False) -> FloatArray:
    """Finite numbers > 0 of a shape; NaN for null where holes are allowed."""
    if holes and isinstance(value, list):
        unknown = [item is None for item in value]
        value = [1.0 if item is None else item for item in value]
    check_numbers(key, value, len(shape))
    array = np.array(value, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"{key} must have shape {shape}, got {array.shape}.")
    array = _positive(key, array)
    if holes:
        array[np.array(unknown)] = np.nan
        if np.isnan(array).all():
            raise ValueError(f"{key} must have at least one number, got none.")
    return array


def _positive(key: str, array: FloatArray) -> FloatArray:
    """The same numbers; raises ValueError unless all are finite and > 0."""
    good = np.isfinite(array) & (array > 0.0)
    if not good.all():
        raise ValueError(f"{key} must be finite and > 0, got {array[~good].flat[0]}.")
    return array


def _by_index(key: str, value: Any, limit: int) -> dict[int, float]:
    """Numbers > 0 by node or core, the keys of an object."""
    if not isinstance(value, dict):
        raise ValueError(f"{key} must be an object or a list, got {show(value)}.")
    for index in value:
        if not re.fullmatch(r"\d{1,9}", index) or int(index) >= limit:
            raise ValueError(f"{key} must have keys in 0..{limit - 1}, got {index!r}.")
    numbers = _numbers(key, list(value.values()), (len(value),))
    return {int(index): float(number) for index, number in zip(value, numbers, strict=True)}


def _count(entry: Mapping[str, Any], key: str, most: int) -> int:
    """A whole number in 1..most."""
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{key} must be a whole number in 1..{most}, got {show(value)}.")
    return value

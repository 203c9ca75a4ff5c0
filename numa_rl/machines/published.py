"""Published measurements of real machines, for comparing predictions with: `measurements/published.json`.

What a preset holds already is read from the preset, and only the columns that its sources call measured. The rest
stands in the file with its own source: loaded-latency curves, SLIT, and the matrices of machines that are no presets.

Dimension key: N nodes, K points of a curve.

References:
    [1] Intel Memory Latency Checker: idle latency, bandwidth and loaded-latency measurements.
    [2] ACPI Specification, section 5.2.17: System Locality Distance Information Table (SLIT).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from numa_rl.machines.catalog import load_machine
from numa_rl.machines.machine_json import check_keys, check_numbers, check_text, parse_json
from numa_rl.machines.measured import MB, NS
from numa_rl.machines.slit import BoolArray
from numa_rl.topology import FloatArray, IntArray, LoadedLatency, Topology

MEASUREMENTS = files("numa_rl.machines.measurements")
FILE = "published.json"
REQUIRED = ("title", "source", "sockets")
PRESET_KEYS = ("preset", "latency_to", "bandwidth_to", "bandwidth_outliers")
MATRICES = {"idle_latency_ns": NS, "read_bandwidth_MBps": MB, "slit": 1.0}
CURVE = "loaded_latency_ns_MBps"
OPTIONAL = ("hardware", *PRESET_KEYS, *MATRICES, CURVE)


@dataclass(frozen=True, eq=False)
class Published:
    """What was measured of one machine; NaN stands for pairs that were not.

    Attributes:
        name: as a preset, where it is one.
        title: how tables call it.
        source: where the figures come from.
        hardware: the same for one kind of server measured in two set-ups.
        sockets: the socket of each node, shape (N,); memory without cores has one of its own.
        latency_s: idle latency, row = initiator, shape (N, N).
        bandwidth_bytes_per_s: read bandwidth, likewise.
        distances: SLIT, shape (N, N); None where it was not published.
        curve: loaded latency in seconds and bandwidth in bytes/s, shape (K, 2); None without any.
        shipped: the latency factor of the preset of this machine; None where it has none.
    """

    name: str
    title: str
    source: str
    hardware: str
    sockets: IntArray
    latency_s: FloatArray
    bandwidth_bytes_per_s: FloatArray
    distances: FloatArray | None
    curve: FloatArray | None
    shipped: LoadedLatency | None

    @property
    def has_cores(self) -> BoolArray:
        """Nodes that start accesses, shape (N,): a socket's nodes have cores, memory stands alone after them."""
        asks = np.isfinite(self.latency_s).any(axis=1) | np.isfinite(self.bandwidth_bytes_per_s).any(axis=1)
        return np.asarray(asks | np.isin(self.sockets, self.sockets[asks]))

    @property
    def distinct_sockets(self) -> BoolArray:
        """Pairs whose nodes stand in different sockets, shape (N, N)."""
        return np.asarray(self.sockets[:, None] != self.sockets[None, :])


@cache
def published_machines() -> tuple[Published, ...]:
    """Every machine of the package's file.

    Raises:
        ValueError: the file holds something else.
    """
    text = MEASUREMENTS.joinpath(FILE).read_text("utf-8")
    return parse_published(text, f"measurements {FILE!r}")


def parse_published(text: str, origin: str) -> tuple[Published, ...]:
    """The machines of JSON text: an object of entries by name.

    Args:
        text: the text.
        origin: what error messages call it.

    Raises:
        ValueError: an entry has an unknown or missing key, or a figure of the wrong shape or range.
    """
    entries = parse_json(text, origin)
    if not isinstance(entries, dict):
        raise ValueError(f"{origin}: must be an object of machines, got a {type(entries).__name__}.")
    machines = []
    for name, entry in entries.items():
        try:
            machines.append(_machine(name, entry))
        except ValueError as error:
            raise ValueError(f"{origin}, machine {name!r}: {error}") from None
    return tuple(machines)


def _machine(name: str, entry: Any) -> Published:
    check_keys("the entry", entry, REQUIRED, OPTIONAL)
    for key in ("title", "source", "hardware", "preset"):
        check_text(key, entry.get(key, ""))
    check_numbers("sockets", entry["sockets"], 1, whole=True)
    sockets = np.array(entry["sockets"], np.int64)
    preset = load_machine(entry["preset"]) if "preset" in entry else None
    if preset is not None and preset.num_nodes != len(sockets):
        raise ValueError(f"sockets must be of the preset's {preset.num_nodes} nodes, got {len(sockets)}.")
    latency_s, bandwidth = _matrices(entry, preset, len(sockets))
    curve = _curve(entry)
    return Published(
        name=name,
        title=entry["title"],
        source=entry["source"],
        hardware=entry.get("hardware", name),
        sockets=sockets,
        latency_s=latency_s,
        bandwidth_bytes_per_s=bandwidth,
        distances=_matrix(entry, "slit", len(sockets)) if "slit" in entry else None,
        curve=curve,
        shipped=preset.loaded_latency if preset is not None and curve is not None else None,
    )


def _matrices(entry: Mapping[str, Any], preset: Topology | None, num_nodes: int) -> tuple[FloatArray, FloatArray]:
    """Idle latency and bandwidth, of the preset where there is one, shape (N, N) each."""
    if preset is None:
        return _matrix(entry, "idle_latency_ns", num_nodes), _matrix(entry, "read_bandwidth_MBps", num_nodes)
    if any(key in entry for key in ("idle_latency_ns", "read_bandwidth_MBps")):
        raise ValueError("figures must be those of the preset or of the entry, got both.")
    latency_s = _columns(preset.latency_s, entry, "latency_to")
    bandwidth = _columns(preset.bandwidth_bytes_per_s, entry, "bandwidth_to")
    for pair in entry.get("bandwidth_outliers", []):
        bandwidth[tuple(_nodes("bandwidth_outliers", pair, num_nodes))] = np.nan
    return latency_s, bandwidth


def _columns(matrix: FloatArray, entry: Mapping[str, Any], key: str) -> FloatArray:
    """The columns that were measured, NaN in the others."""
    kept = np.full_like(matrix, np.nan)
    columns = _nodes(key, entry.get(key, []), len(matrix))
    kept[:, columns] = matrix[:, columns]
    return kept


def _nodes(key: str, values: Any, num_nodes: int) -> list[int]:
    check_numbers(key, values, 1, whole=True)
    if not all(0 <= value < num_nodes for value in values):
        raise ValueError(f"{key} must be nodes in 0..{num_nodes - 1}, got {values}.")
    return list(values)


def _matrix(entry: Mapping[str, Any], key: str, num_nodes: int) -> FloatArray:
    """A matrix of the entry in SI units; NaN for null, and where there is none."""
    rows = entry.get(key, [[None] * num_nodes] * num_nodes)
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise ValueError(f"{key} must be a list of rows.")
    known = [[-1.0 if value is None else value for value in row] for row in rows]
    check_numbers(key, known, 2)
    matrix = np.array(known, np.float64)
    if matrix.shape != (num_nodes, num_nodes):
        raise ValueError(f"{key} must have shape {(num_nodes, num_nodes)}, got {matrix.shape}.")
    unknown = np.array([[value is None for value in row] for row in rows])
    if not (unknown | (np.isfinite(matrix) & (matrix > 0.0))).all():
        raise ValueError(f"{key} must be finite and > 0, or null.")
    return np.where(unknown, np.nan, matrix * MATRICES[key])


def _curve(entry: Mapping[str, Any]) -> FloatArray | None:
    if CURVE not in entry:
        return None
    check_numbers(CURVE, entry[CURVE], 2)
    curve = np.array(entry[CURVE], np.float64)
    if curve.ndim != 2 or curve.shape[1] != 2 or not (np.isfinite(curve) & (curve > 0.0)).all():
        raise ValueError(f"{CURVE} must have rows of 2 finite numbers > 0, got shape {curve.shape}.")
    return np.asarray(curve * [NS, MB], np.float64)

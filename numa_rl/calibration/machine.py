"""From measurements to a machine: what was measured in place of what the system's files say, each with its source.

Dimension key: N nodes, K points of the loaded-latency curve.

References:
    [1] J. D. C. Little, "A proof for the queuing formula L = lambda W", 1961.
    [2] Intel Memory Latency Checker: loaded-latency measurements.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from numa_rl.calibration.measure import CURVE_CORES, Measurements, repeats_text
from numa_rl.calibration.timing import Timing
from numa_rl.machines.assembly import joined, measured_on
from numa_rl.machines.load_curve import fit_loaded_latency
from numa_rl.topology import FloatArray, LoadedLatency, Topology

# Memory is full when all cores of a node read hardly more than half of them do.
FULL = 1.2


@dataclass(frozen=True)
class Method:
    """How the measurements were made, for the sources.

    Attributes:
        timing: how long and how often each figure was measured.
        size_bytes: of the memory that was read.
        huge_share: share of it in huge pages.
        placed: how its pages were placed, and how that is known.
        page_bytes: size of a base page.
        remarks: what limits the process, or makes its machine other than it looks.
    """

    timing: Timing
    size_bytes: int
    huge_share: float
    placed: str
    page_bytes: int
    remarks: tuple[str, ...] = ()


def calibrated(base: Topology, measurements: Measurements, method: Method, name: str) -> Topology:
    """The machine with what was measured, and all else as the base machine has it.

    Args:
        base: the machine as the system's files describe it.
        measurements: of the same nodes.
        method: how they were made.
        name: how the machine is called.

    Raises:
        ValueError: the measurements are of another number of nodes.
    """
    figures: dict[str, Any] = {
        "latency_s": measurements.latency_s,
        "bandwidth_bytes_per_s": measurements.bandwidth_bytes_per_s,
    }
    sources = _matrix_sources(measurements, method)
    fit, said = loaded_latency(measurements)
    if fit is not None:
        figures["loaded_latency"], sources["loaded_latency"] = fit, f"measured: {said}"
    machine = measured_on(base, figures, sources)
    told, changed = dict(machine.sources), dict[str, Any]()
    if fit is None:
        told["loaded_latency"] = joined(told.get("loaded_latency", ""), f"given: not measured, {said}")
    changed["flops_per_s"], told["flops_per_s"] = _flops(measurements, method)
    in_flight = measurements.core_bytes_per_s * np.diagonal(measurements.latency_s)
    if np.isfinite(in_flight).any():
        changed["outstanding_bytes"] = float(np.nanmean(in_flight))
        told["outstanding_bytes"] = _in_flight_source(in_flight, measurements, method)
    changed["page_bytes"] = method.page_bytes
    told["page_bytes"] = "file: the base page of this system"
    machine = replace(machine, name=name, sources=told, **changed)
    return machine if np.isnan(measurements.page_s) else _with_page_moves(machine, measurements, method)


def loaded_latency(measurements: Measurements) -> tuple[LoadedLatency | None, str]:
    """The fit to the measured curve and what it rests on; or None, and why there is none.

    A curve tells nothing of a full memory unless the cores that read can fill it.
    """
    if not len(measurements.curve_s):
        return None, f"for it takes {CURVE_CORES} cores of one node, one that waits and others that read"
    node = measurements.curve_node
    every, half = measurements.bandwidth_bytes_per_s[node, node], measurements.half_bytes_per_s
    if every > FULL * half:
        return None, (
            f"for the cores of node {node} cannot fill its memory: all of them read {every / 1e9:.3g} GB/s, "
            f"half of them {half / 1e9:.3g}"
        )
    try:
        fit, rmse = fit_loaded_latency(measurements.curve_s, measurements.curve_bytes_per_s)
    except ValueError as error:
        return None, f"for {error}"
    points = len(measurements.curve_s)
    return fit, f"fit to {points} points, each the median of its repeats, on node {node} (rmse {rmse:.3f})"


def _matrix_sources(measurements: Measurements, method: Method) -> dict[str, str]:
    """Where latency and bandwidth came from."""
    where = (
        f"{method.size_bytes / 2**20:.0f} MiB, {method.huge_share:.0%} in huge pages, {method.placed}, "
        f"windows of {method.timing.window_s * 1e3:.3g} ms"
    )
    missing = joined(*(f"given: {remark}" for remark in (*measurements.remarks, *method.remarks)))
    chased = repeats_text("latency_s", measurements, method.timing.repeats, "the least")
    read = repeats_text("bandwidth_bytes_per_s", measurements, method.timing.repeats, "the most")
    return {
        "latency_s": joined(f"measured: one core's pointer chase over {where}, {chased}", missing),
        "bandwidth_bytes_per_s": joined(
            f"measured: what all cores the process may use of a node read, over {where}, {read}", missing
        ),
    }


def _flops(measurements: Measurements, method: Method) -> tuple[FloatArray, str]:
    """Peak of one core of each node, shape (N,), and where it came from; a node without cores gets the highest."""
    measured = measurements.flops_per_s
    best = repeats_text("flops_per_s", measurements, method.timing.repeats, "the most")
    flops = np.where(np.isnan(measured), np.nanmax(measured), measured)
    return flops, (
        "measured: single-precision fused multiply-adds of one core, the others at rest, as numba compiles them, "
        f"{best}"
    )


def _in_flight_source(in_flight: FloatArray, measurements: Measurements, method: Method) -> str:
    """Where the bytes that one core keeps in flight came from."""
    best = repeats_text("outstanding_bytes", measurements, method.timing.repeats, "the most")
    least, most = f"{np.nanmin(in_flight):.0f}", f"{np.nanmax(in_flight):.0f}"
    span = f"{least} bytes" if least == most else f"{least} to {most} bytes by node"
    return (
        "derived: Little's law, what one core reads of its own node's memory times idle latency "
        f"({span}); measured: both, reads {best}"
    )


def _with_page_moves(machine: Topology, measurements: Measurements, method: Method) -> Topology:
    """The machine with the kernel's time to move a page: less the copying, which the model counts apart.

    One core copies at its own rate between a node and the next, by Little's law [1].
    """
    next_node_s = np.roll(machine.latency_s, -1, axis=1).diagonal()
    copying_s = machine.page_bytes * float(next_node_s.mean()) / machine.outstanding_bytes
    least = repeats_text("page_move_s", measurements, method.timing.repeats, "the least")
    source = (
        f"measured: move_pages, {measurements.page_s * 1e6:.3g} us a page from each node to the next, {least}; "
        "derived: less its copying by one core"
    )
    page_move_s = max(measurements.page_s - copying_s, 0.0)
    return replace(machine, page_move_s=page_move_s, sources={**machine.sources, "page_move_s": source})

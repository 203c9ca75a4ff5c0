"""Measuring the machine this runs on, or taking what Intel MLC measured, and writing it as a machine to train on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.amounts import parse_bytes
from experiments.files import require_outputs, write_json
from experiments.machine import print_topology
from numa_rl.calibration.instrument import LinuxInstrument, buffer_bytes
from numa_rl.calibration.machine import Method, calibrated
from numa_rl.calibration.measure import measure, windows_a_repeat
from numa_rl.calibration.places import live_places, require_linux
from numa_rl.calibration.timing import timing_within
from numa_rl.machines.catalog import LIVE, MAX_TEXT_BYTES, load_machine
from numa_rl.machines.mlc import is_mlc
from numa_rl.machines.tree import read_bytes
from numa_rl.topology import FloatArray, Topology
from numa_rl.wording import quoted

NOISY = 0.1  # when half of the repeats miss the best by more than this, other work was running
ONE_NODE = "One node: its matrices are 1 x 1, and there is nothing to place here."


@dataclass(frozen=True)
class Calibrate:
    """Measure this machine: latency, bandwidth and arithmetic of its nodes, and write a machine file.

    Everything else is as `machine show live` has it. Scenarios take the file by its path: machine = "machine.json".

    Attributes:
        out: the machine file to write (.json).
        memory: most memory to use at a time, such as 4GiB; never more than half of what is free on every node.
        seconds: about how long measuring may take; setting up memory comes on top.
        seed: of the order in which a pointer chase visits memory.
        mlc: a text that Intel MLC printed: its matrices and curve are taken, and nothing is measured.
        machine: with --mlc, the machine that says the rest, by name or path; left out, the one this runs on.
    """

    out: Path
    memory: str = "4GiB"
    seconds: float = 40.0
    seed: int = 0
    mlc: Path | None = None
    machine: str | None = None

    def run(self) -> None:
        """Measure, write the file, and print the machine in it.

        Raises:
            ValueError: an option is wrong, the system cannot be measured, or the file cannot be written.
            OSError: the system refuses memory or a processor that it said the process may use.
        """
        memory_bytes = self._checked()
        console = Console()
        if self.mlc is None:
            base, machine = self._measured(memory_bytes, console)
        else:
            origin = LIVE if self.machine is None else self.machine
            base = load_machine(origin)
            machine = replace(load_machine(f"{self.mlc}#{origin}"), name=self.out.stem)
        write_json(self.out, machine.to_dict())
        print_topology(load_machine(str(self.out)), console)
        print_comparison(base, machine, console)
        if machine.num_nodes == 1:
            console.print(ONE_NODE)
        name = json.dumps(self.out.name, ensure_ascii=False)  # TOML writes such a name as JSON does
        console.print(f"Written to {self.out}. In a scenario: machine = {name}, a path from its file.", markup=False)

    def _checked(self) -> float:
        """The bytes of memory that may be used.

        Raises:
            ValueError: an option is wrong, or the file could not be written.
        """
        if self.out.suffix != ".json" or not self.out.stem.isprintable():
            raise ValueError(f"--out must be a .json file with a printable name, got {quoted(str(self.out))}.")
        if not (math.isfinite(self.seconds) and self.seconds > 0.0):
            raise ValueError(f"--seconds must be > 0, got {self.seconds}.")
        if self.seed < 0:
            raise ValueError(f"--seed must be >= 0, got {self.seed}.")
        memory_bytes = parse_bytes(self.memory, "--memory")
        if self.mlc is None:
            if self.machine is not None:
                raise ValueError(f"--machine must come with --mlc, got {quoted(self.machine)} alone.")
            require_linux()
        elif "#" in str(self.mlc) or not printed_by_mlc(self.mlc):
            raise ValueError(f"--mlc must be a text file that Intel MLC printed, got {quoted(str(self.mlc))}.")
        base = None if self.machine is None else Path(self.machine)
        require_outputs({"--out": self.out}, {"--mlc": self.mlc, "--machine": base})
        return memory_bytes

    def _measured(self, memory_bytes: float, console: Console) -> tuple[Topology, Topology]:
        """This machine as its files describe it, and as measured."""
        base, places = load_machine(LIVE), live_places()
        cores = tuple(len(processors) for processors in places.processors)
        timing = timing_within(self.seconds, windows_a_repeat(cores))
        size_bytes = buffer_bytes(places, float(base.llc_bytes.max()), memory_bytes)
        console.print("Preparing: kernels, and memory to measure on", style="dim")
        instrument = LinuxInstrument(places, size_bytes, timing, np.random.default_rng(self.seed))
        measurements = measure(instrument, lambda phase: console.print(f"Measuring {phase}", style="dim"))
        method = Method(
            timing=timing,
            size_bytes=size_bytes,
            huge_share=instrument.huge_share,
            placed=instrument.placed,
            page_bytes=os.sysconf("SC_PAGE_SIZE"),
            remarks=places.remarks,
        )
        noise = max(typical for typical, _ in measurements.spread.values())
        if noise > NOISY:
            share = f"{noise:.0%}"
            console.print(
                f"Half of the repeats miss the best by over {share}: other work ran. Measure again without it."
            )
        console.print()
        return base, calibrated(base, measurements, method, self.out.stem)


def printed_by_mlc(path: Path) -> bool:
    """Whether a file looks like what Intel MLC prints.

    Raises:
        ValueError: the file is too long, or cannot be read.
    """
    if path.suffix.lower() in (".json", ".xml") or not path.is_file():
        return False
    try:
        return is_mlc(read_bytes(path, MAX_TEXT_BYTES, f"--mlc {quoted(str(path))}").decode("utf-8-sig"))
    except UnicodeDecodeError:
        return False


def print_comparison(base: Topology, machine: Topology, console: Console) -> None:
    """Print what was measured beside what was said of the machine without measuring."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("figure")
    table.add_column("now", justify="right")
    table.add_column("before", justify="right")
    for figure, now, before in comparison(base, machine):
        table.add_row(figure, now, before)
    console.print("Measured, and what was known or assumed before", style="bold")
    console.print(table)
    if machine.num_nodes > 1:
        console.print(farthest_pair(base, machine))


def comparison(base: Topology, machine: Topology) -> list[tuple[str, str, str]]:
    """Figures of the machine now and before, as text; of several nodes or pairs, the least and the most."""
    asks = machine.cores > 0
    remote = ~np.eye(machine.num_nodes, dtype=bool) & asks[:, None]
    figures: list[tuple[str, Callable[[Topology], str]]] = [
        ("local latency, ns", lambda each: _range(1e9 * np.diagonal(each.latency_s)[asks])),
        ("local bandwidth, GB/s", lambda each: _range(np.diagonal(each.bandwidth_bytes_per_s)[asks] / 1e9)),
    ]
    if remote.any():
        figures += [
            ("remote over local latency", lambda each: _range(over_local(each)[remote])),
            ("remote bandwidth, GB/s", lambda each: _range(each.bandwidth_bytes_per_s[remote] / 1e9)),
        ]
    figures += [
        ("Gflop/s of one core", lambda each: _range(each.flops_per_s[asks] / 1e9)),
        ("bytes one core keeps in flight", lambda each: f"{each.outstanding_bytes:.0f}"),
        ("latency of a full memory, times idle", lambda each: f"{each.loaded_latency.saturated:.3g}"),
        ("kernel time to move a page, us", lambda each: f"{each.page_move_s * 1e6:.3g}"),
    ]
    return [(figure, text(machine), text(base)) for figure, text in figures]


def over_local(machine: Topology) -> FloatArray:
    """Latency of every pair over that of the initiator's own memory, shape (N, N)."""
    return np.asarray(machine.latency_s / np.diagonal(machine.latency_s)[:, None], dtype=np.float64)


def farthest_pair(base: Topology, machine: Topology) -> str:
    """The pair whose latency over local was farthest off, in words; or that none was."""
    now, before = over_local(machine), over_local(base)
    error = np.where((machine.cores > 0)[:, None], np.abs(before / now - 1.0), 0.0)
    if not error.any():
        return "Latency of every pair over local is what it was said to be."
    initiator, target = (int(node) for node in np.unravel_index(error.argmax(), error.shape))
    return (
        f"Farthest off is node {initiator} to {target}: {now[initiator, target]:.2f} times local, "
        f"said to be {before[initiator, target]:.2f}."
    )


def _range(values: FloatArray) -> str:
    """The least and the most of the values, or the one they all are."""
    least, most = f"{values.min():.4g}", f"{values.max():.4g}"
    return least if least == most else f"{least} to {most}"

"""Our laws of memory next to what was measured on real machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.files import require_outputs, write_json
from experiments.studies.measured_curves import TARGET_RMSE, Curve, curves_of
from experiments.studies.measured_laws import (
    Outcome,
    bandwidth_outcomes,
    latency_outcomes,
    near_outcome,
)
from experiments.studies.measured_report import print_comparison
from numa_rl.machines.published import Published, published_machines


@dataclass(frozen=True)
class MeasuredMachines:
    """Compare our laws of memory with measured machines: latency under load, bandwidth between nodes, latency by SLIT.

    Attributes:
        json: a file for all figures.
        plot: a PNG file for the curves and the scatter of predicted over measured.
    """

    json: Path | None = None
    plot: Path | None = None

    def run(self) -> None:
        """Compare and print.

        Raises:
            ValueError: a file cannot be written.
        """
        require_outputs({"--json": self.json, "--plot": self.plot})
        if self.plot is not None and self.plot.suffix.lower() != ".png":
            raise ValueError(f"--plot must be a .png file, got {str(self.plot)!r}.")
        comparison = compare_with(published_machines())
        if self.json is not None:
            write_json(self.json, comparison.to_dict())
        if self.plot is not None:
            from experiments.studies.measured_plot import plot_comparison  # matplotlib takes a second

            plot_comparison(comparison, self.plot)
        print_comparison(comparison, Console())


@dataclass(frozen=True)
class Comparison:
    """All that was compared.

    Attributes:
        machines: those with a measurement.
        curves: latency under load.
        bandwidth: laws of bandwidth between sockets, fitted and left out.
        near: the law that readers use, within sockets.
        latency: laws of latency from SLIT.
    """

    machines: tuple[Published, ...]
    curves: tuple[Curve, ...]
    bandwidth: tuple[Outcome, ...]
    near: Outcome
    latency: tuple[Outcome, ...]

    def title(self, name: str) -> str:
        """How tables call a machine."""
        return next(machine.title for machine in self.machines if machine.name == name)

    @property
    def presets_met(self) -> bool:
        """Whether every preset's figures are as close to its machine's curve as we want them."""
        return all(curve.rmse(curve.used) <= TARGET_RMSE for curve in self.curves if curve.machine.shipped is not None)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "machines": {machine.name: {"title": machine.title, "source": machine.source} for machine in self.machines},
            "target_rmse": TARGET_RMSE,
            "presets_met": self.presets_met,
            "curves": [curve.to_dict() for curve in self.curves],
            "bandwidth_between_sockets": [outcome.to_dict() for outcome in self.bandwidth],
            "bandwidth_within_sockets": self.near.to_dict(),
            "latency_from_slit": [outcome.to_dict() for outcome in self.latency],
        }


def compare_with(machines: Sequence[Published]) -> Comparison:
    """Everything that can be compared with these machines.

    Args:
        machines: of at least two kinds of hardware with each measurement.
    """
    return Comparison(
        machines=tuple(machines),
        curves=tuple(curves_of(machines)),
        bandwidth=tuple(bandwidth_outcomes(machines)),
        near=near_outcome(machines),
        latency=tuple(latency_outcomes(machines)),
    )

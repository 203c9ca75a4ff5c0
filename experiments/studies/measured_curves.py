"""How well the latency factor under load follows measured curves.

Dimension key: K points of a curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from numa_rl.machines.load_curve import fit_loaded_latency, loaded_points
from numa_rl.machines.published import Published
from numa_rl.simulator.streams import latency_factor
from numa_rl.topology import FloatArray, LoadedLatency

TARGET_RMSE = 0.03


def factor(fit: LoadedLatency, load: FloatArray) -> FloatArray:
    """What the simulator makes of a load, r(u), in the shape of `load`."""
    a, c, saturated = map(np.float32, (fit.a, fit.c, fit.saturated))
    return np.array([latency_factor(np.float32(u), a, c, saturated) for u in load])  # type: ignore[no-untyped-call]


@dataclass(frozen=True, eq=False)
class Curve:
    """One machine's curve, and what is said of it.

    Attributes:
        machine: the machine.
        load: u, bandwidth over the curve's largest, shape (K,).
        ratio: r, latency over its lowest, shape (K,).
        below: points below saturation, which are those that count, shape (K,).
        fit: the least-squares fit, as a reader makes it from this curve.
    """

    machine: Published
    load: FloatArray
    ratio: FloatArray
    below: npt.NDArray[np.bool_]
    fit: LoadedLatency

    @property
    def used(self) -> LoadedLatency:
        """What the simulator uses for this machine: its preset's figures, else the fit."""
        return self.fit if self.machine.shipped is None else self.machine.shipped

    def rmse(self, figures: LoadedLatency) -> float:
        """Root mean square error of r below saturation."""
        error = factor(figures, self.load) - self.ratio
        return float(np.sqrt(np.mean(error[self.below] ** 2)))

    @property
    def saturated(self) -> float:
        """Mean r of the saturated points."""
        return float(self.ratio[~self.below].mean())

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "machine": self.machine.name,
            "source": self.machine.source,
            "load": self.load.tolist(),
            "ratio": self.ratio.tolist(),
            "below_saturation": self.below.tolist(),
            "used": vars(self.used),
            "preset": self.machine.shipped is not None,
            "fit": vars(self.fit),
            "rmse_used": self.rmse(self.used),
            "rmse_fit": self.rmse(self.fit),
            "rmse_default": self.rmse(LoadedLatency()),
            "saturated": self.saturated,
        }


def curves_of(machines: Sequence[Published]) -> list[Curve]:
    """Every published curve with its fit."""
    curves = []
    for machine in machines:
        if machine.curve is not None:
            latency_s, bandwidth = machine.curve.T
            fit, _ = fit_loaded_latency(latency_s, bandwidth)
            curves.append(Curve(machine, *loaded_points(latency_s, bandwidth), fit))
    return curves

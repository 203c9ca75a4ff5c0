"""The latency factor under load, fitted to a measured curve of latency over bandwidth.

Dimension key: K points of the curve.

References:
    [1] Intel Memory Latency Checker: loaded-latency measurements.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from numa_rl.topology import FloatArray, LoadedLatency

# Points closer to the peak than this are saturated: their latency is that of full queues, not of the load.
SATURATED_LOAD = 0.985
# So are those near it that are slower than the peak itself: injecting more only lengthened the queues.
NEAR_PEAK = 0.9
# Below 1, r stays finite up to the capacity. Beyond it, where the simulator offers more than is served, r soon is
# `saturated`.
LARGEST_C = 0.95
FEWEST_POINTS = 4


def loaded_points(
    latency_s: FloatArray, bandwidth_bytes_per_s: FloatArray
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.bool_]]:
    """A curve as load u and factor r, and which of its points lie below saturation, shape (K,) each.

    u is bandwidth over the curve's largest, r latency over its lowest.

    Args:
        latency_s: latency at each point, shape (K,).
        bandwidth_bytes_per_s: what all memories together deliver there, shape (K,).

    Raises:
        ValueError: a figure is not finite and > 0.
    """
    for name, values in (("latency", latency_s), ("bandwidth", bandwidth_bytes_per_s)):
        if not (np.isfinite(values) & (values > 0.0)).all():
            raise ValueError(f"loaded latency: every {name} must be finite and > 0, got {values.tolist()}.")
    load = bandwidth_bytes_per_s / bandwidth_bytes_per_s.max(initial=0.0)
    ratio = latency_s / latency_s.min(initial=np.inf)
    past_peak = (load >= NEAR_PEAK) & (ratio > ratio[load.argmax()]) if load.size else np.zeros(0, bool)
    return load, ratio, (load < SATURATED_LOAD) & ~past_peak


def fit_loaded_latency(latency_s: FloatArray, bandwidth_bytes_per_s: FloatArray) -> tuple[LoadedLatency, float]:
    """The least-squares fit of r = 1 + a u / (1 - c u) to a curve, and its root mean square error.

    Only points below saturation count (`loaded_points`). For every c the best a is a quotient of two sums, so only c
    is searched, in 0..0.95. `saturated` is the largest r on the curve.

    Args:
        latency_s: latency at each point, shape (K,).
        bandwidth_bytes_per_s: what all memories together deliver there, shape (K,).

    Raises:
        ValueError: fewer than four points below saturation, or a figure that is not finite and > 0.
    """
    load, ratio, below = loaded_points(latency_s, bandwidth_bytes_per_s)
    if below.sum() < FEWEST_POINTS:
        raise ValueError(
            f"loaded latency: there must be at least {FEWEST_POINTS} points below {SATURATED_LOAD:.1%} of the "
            f"largest bandwidth, got {below.sum()}."
        )
    u, rise = load[below], ratio[below] - 1.0

    def error_and_slope(c: float) -> tuple[float, float]:
        x = u / (1.0 - c * u)
        a = float(x @ rise) / float(x @ x)
        return float(np.mean((a * x - rise) ** 2)), a

    found = minimize_scalar(lambda c: error_and_slope(c)[0], bounds=(0.0, LARGEST_C), method="bounded")
    c = min((0.0, float(found.x), LARGEST_C), key=lambda candidate: error_and_slope(candidate)[0])
    mean_square, a = error_and_slope(c)
    return LoadedLatency(a=a, c=c, saturated=float(ratio.max())), float(np.sqrt(mean_square))

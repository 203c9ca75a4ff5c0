"""Jobs of a parallel machine, drawn from the model of Lublin and Feitelson: processors and run times.

References:
    [1] U. Lublin, D. G. Feitelson, "The workload on parallel supercomputers: modeling the characteristics of rigid
        jobs", Journal of Parallel and Distributed Computing 63(11), 2003: the parameters for all jobs together.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

SERIAL_SHARE = 0.244
POWER_OF_TWO_SHARE = 0.576
# The binary logarithm of the other sizes: two uniform stages, from LEAST to the middle and from there to the machine's.
LEAST_LOG_SIZE = 0.8
MIDDLE_BELOW_MACHINE = 2.5
LOWER_STAGE_SHARE = 0.86
# The natural logarithm of the run time in seconds is one of two gamma variables, (shape, scale); the share of the first
# falls with the size, so that larger jobs run longer.
SHORT_RUNS, LONG_RUNS = (4.2, 0.94), (312.0, 0.03)
SHORT_SHARE_SLOPE, SHORT_SHARE_START = -0.0054, 0.78


def lublin_jobs(rng: np.random.Generator, num_jobs: int, max_processors: int) -> tuple[FloatArray, FloatArray]:
    """Processors and run times in seconds of jobs, shape (J,) each.

    Args:
        rng: source of all randomness.
        num_jobs: J.
        max_processors: of the machine, at least 8, so that the middle of sizes is above the least.

    Raises:
        ValueError: the machine is too small.
    """
    if max_processors < 8:
        raise ValueError(f"max_processors must be >= 8, got {max_processors}.")
    kind, stage, place, runs = rng.random((4, num_jobs))
    largest = math.log2(max_processors)
    middle = max(largest - MIDDLE_BELOW_MACHINE, LEAST_LOG_SIZE)
    lower = LEAST_LOG_SIZE + (middle - LEAST_LOG_SIZE) * place
    log_size = np.where(stage <= LOWER_STAGE_SHARE, lower, middle + (largest - middle) * place)
    power = 2.0 ** np.rint(log_size)
    processors = np.where(kind <= SERIAL_SHARE + POWER_OF_TWO_SHARE, power, np.rint(2.0**log_size))
    processors = np.clip(np.where(kind <= SERIAL_SHARE, 1.0, processors), 1.0, max_processors)
    short_share = np.clip(SHORT_SHARE_SLOPE * processors + SHORT_SHARE_START, 0.0, 1.0)
    is_short = runs <= short_share
    log_run = np.where(is_short, rng.gamma(*SHORT_RUNS, num_jobs), rng.gamma(*LONG_RUNS, num_jobs))
    return processors, np.exp(log_run)

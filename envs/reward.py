"""The reward R = -(T_exec + alpha T_comm + beta Imbalance) (chapter, section 16.2.3).

Dimension key: B machines.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from numa_rl.simulator.state import Outcome


@dataclass(frozen=True)
class RewardWeights:
    """What one decision costs.

    Attributes:
        alpha: weight of the communication time T_comm against the execution time T_exec.
        beta: weight of Imbalance, the coefficient of variation of the nodes' outstanding work.
        reference_s: the scenario's unit of time; T_exec and T_comm count in multiples of it.
        out_of_memory_penalty: cost of a decision for which no node had room, in the same units as R.

    Raises:
        ValueError: a weight is negative or not finite, or `reference_s` is not positive.
    """

    alpha: float = 1.0
    beta: float = 0.1
    reference_s: float = 1.0
    out_of_memory_penalty: float = 100.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for item in fields(self):
            value = getattr(self, item.name)
            if not (np.isfinite(value) and value >= 0.0):
                raise ValueError(f"{item.name} must be finite and >= 0, got {value}.")
        if self.reference_s == 0.0:
            raise ValueError("reference_s must be > 0, got 0.")

    def cost(self, outcome: Outcome) -> npt.NDArray[np.float64]:
        """Cost -R of the last decision of every row, dimensionless, shape (B,).

        Override it to train on another reward; the observation's estimate keeps T_exec + alpha T_comm.
        """
        seconds = outcome.exec_s + self.alpha * outcome.comm_s
        cost = seconds / self.reference_s + self.beta * outcome.imbalance
        return cost + self.out_of_memory_penalty * outcome.out_of_memory

"""The reward R = -(T_exec + alpha T_comm + beta Imbalance) (chapter, section 16.2.3).

Dimension key: B machines.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

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
        cost: npt.NDArray[np.float64] = decision_cost(
            outcome.exec_s, outcome.comm_s, outcome.imbalance, outcome.out_of_memory, *self.numbers
        )
        return cost

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """The weights in the order in which `decision_cost` takes them."""
        return self.alpha, self.beta, self.reference_s, self.out_of_memory_penalty


def decision_cost(
    exec_s: Any, comm_s: Any, imbalance: Any, out_of_memory: Any, alpha: Any, beta: Any, reference_s: Any, penalty: Any
) -> Any:
    """(T_exec + alpha T_comm) / reference + beta Imbalance, and the penalty if out of memory: numbers or arrays."""
    return (exec_s + alpha * comm_s) / reference_s + beta * imbalance + penalty * out_of_memory

"""What everything that decides has in common: Stable-Baselines3's `predict`, on a batch of observation rows.

Dimension key: B rows.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Actions = npt.NDArray[np.int64]
Memory = tuple[npt.NDArray[Any], ...] | None  # what a scheduler carries from one decision to the next


class Scheduler(Protocol):
    """A rule or a learned policy; Stable-Baselines3's `evaluate_policy` judges it too."""

    @property
    def name(self) -> str:
        """How tables call it."""
        ...

    def predict(
        self,
        observation: npt.NDArray[Any],
        state: Memory = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[Actions, Memory]:
        """Where to run the next task of every row and where to keep its object.

        Args:
            observation: rows of `envs.observation`, shape (B, size), or one row (size,). They may be overwritten
                after the call: what is needed later must be copied.
            state: what the last call returned; None at first.
            episode_start: rows whose episode starts now, so that their state is void, shape (B,).
            deterministic: the best placement rather than a sampled one.

        Returns:
            (task node, data node) of every row, shape (B, 2), or (2,) for one row; and the state.
        """
        ...

"""The Gymnasium vector environment: a batch of machines stepped by one call.

Dimension key: B sub-environments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from envs.observation import ObservationKind, ObservationLayout
from envs.observation_kernel import Float32
from envs.scheduling_env import outcome_info
from envs.world import Rows, World
from numa_rl.metrics import run_metrics

Array = npt.NDArray[Any]


class NumaSchedulingVectorEnv(gym.vector.VectorEnv[Float32, Array, Array]):
    """B machines at once; sub-environment i behaves as `NumaSchedulingEnv` seeded with seed + i.

    In a step that ends episodes, the info has their `metrics`: an array of shape (B,) by name, NaN in other rows.

    Args:
        num_envs: B.
        world: as for `NumaSchedulingEnv`.
        observation: as for `NumaSchedulingEnv`.
        autoreset_mode: when a finished sub-environment starts anew: at its next step (Gymnasium's default),
            in the same step (the last observation goes to `info["final_obs"]`), or only by
            `reset(options={"reset_mask": ...})`.
        copy: return observations as copies; otherwise the next step overwrites them.
        num_threads: threads that share the rows.

    Raises:
        ValueError: at `step`, an action that names no node.
    """

    # The base class declares it as an instance variable.
    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        world: World | None = None,
        *,
        observation: ObservationKind | str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        copy: bool = True,
        num_threads: int = 1,
        render_mode: str | None = None,
    ) -> None:
        """Allocate B rows."""
        if render_mode is not None:
            raise ValueError(f"render_mode must be None for the vector environment, got {render_mode!r}.")
        self._rows = Rows(World.given(world, observation), num_envs, num_threads)
        self._copy = copy
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = type(self).metadata | {"autoreset_mode": self.autoreset_mode}
        self.single_observation_space = self._rows.observation_space
        self.single_action_space = self._rows.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    @property
    def layout(self) -> ObservationLayout:
        """Where each group lies in an observation."""
        return self._rows.observer.layout

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float32, dict[str, Any]]:
        """Start an episode in every sub-environment, or in those of `options["reset_mask"]`, shape (B,).

        Raises:
            ValueError: an unknown option, or a mask or seeds that do not fit.
        """
        unknown = set(options or {}) - {"reset_mask"}
        if unknown:
            raise ValueError(f"options must be 'reset_mask', got {sorted(unknown)}.")
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        if mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            raise ValueError(f"reset_mask must be booleans of shape ({self.num_envs},), at least one true, got {mask}.")
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else list(seed or [])
        if seeds and len(seeds) != self.num_envs:
            raise ValueError(f"seed must have one entry for each of {self.num_envs} environments, got {len(seeds)}.")
        for row, value in enumerate(seeds):
            if value is not None and mask[row]:
                self._rows.generators[row] = gym.utils.seeding.np_random(value)[0]
        if isinstance(seed, int):
            self._np_random_seed = seed
        self._rows.reset(np.flatnonzero(mask))
        return self._observe(), {}

    def step(self, actions: Array) -> tuple[Float32, Array, Array, Array, dict[str, Any]]:
        """Place one task in every sub-environment.

        In mode NEXT_STEP a sub-environment that had finished starts anew instead, with reward 0. In mode
        DISABLED it must have been reset.

        Raises:
            ValueError: an action that names no node, or a step of a finished row in mode DISABLED.
        """
        over = self._rows.simulator.outcome.finished.copy()
        if self.autoreset_mode == AutoresetMode.DISABLED and over.any():
            raise ValueError(f"environments {np.flatnonzero(over).tolist()} are over: reset them with reset_mask.")
        rewards, outcome = self._rows.step(actions)
        info = outcome_info(outcome)
        info |= {f"_{name}": ~over for name in tuple(info)}
        truncated = outcome.finished & ~over
        if truncated.any():
            info |= self._metrics(truncated)
        rewards = np.where(over, 0.0, rewards)
        if over.any():
            self._rows.reset(np.flatnonzero(over))
        if self.autoreset_mode == AutoresetMode.SAME_STEP and truncated.any():
            final = np.full(self.num_envs, None, dtype=object)
            last = self._rows.observe()
            for row in np.flatnonzero(truncated):
                final[row] = last[row].copy()
            info |= {"final_obs": final, "_final_obs": truncated.copy()}
            final_info = outcome_info(outcome)
            final_info |= {f"_{name}": truncated.copy() for name in tuple(final_info)} | self._metrics(truncated)
            info |= {"final_info": final_info, "_final_info": truncated.copy()}
            self._rows.reset(np.flatnonzero(truncated))
        return self._observe(), rewards, np.zeros(self.num_envs, bool), truncated, info

    def _metrics(self, ended: npt.NDArray[np.bool_]) -> dict[str, Any]:
        """The info that episodes bring which end in this step: their metrics, NaN in the other rows."""
        metrics: dict[str, Any] = {}
        for name, values in run_metrics(self._rows.simulator, np.flatnonzero(ended)).items():
            metrics[name] = np.full(self.num_envs, np.nan)
            metrics[name][ended] = values
            metrics[f"_{name}"] = ended.copy()
        return {"metrics": metrics, "_metrics": ended.copy()}

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Open task nodes, then open data nodes, shape (B, 2 N)."""
        return self._rows.action_masks()

    def _observe(self) -> Float32:
        observation = self._rows.observe()
        return observation.copy() if self._copy else observation

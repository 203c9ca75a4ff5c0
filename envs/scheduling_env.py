"""The Gymnasium environment: one row of the batched simulator."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from envs.observation import ObservationKind, ObservationLayout
from envs.observation_kernel import Float32
from envs.rendering import render_text
from envs.world import Rows, World
from numa_rl.metrics import run_metrics
from numa_rl.simulator.state import Outcome

Action = npt.NDArray[np.int64]

# What the info of a step reports, by the outcome's field.
INFO_FIELDS = (
    "exec_s",
    "comm_s",
    "wait_s",
    "migration_s",
    "coherence_s",
    "imbalance",
    "task_node",
    "data_node",
    "migrated",
    "fell_back",
    "out_of_memory",
    "local_bytes",
    "remote_bytes",
)


def outcome_info(outcome: Outcome) -> dict[str, Any]:
    """The reported fields of an outcome, copied, shape (B,) each."""
    return {name: getattr(outcome, name).copy() for name in INFO_FIELDS}


class NumaSchedulingEnv(gym.Env[Float32, Action]):
    """Place one task and its data at a time on a NUMA machine (chapter, section 16.2.3).

    The action is (task node, data node); the reward is R = -(T_exec + alpha T_comm + beta Imbalance). An episode
    ends by `truncated`: it is a slice of a stream that would go on. The info of its last step has `metrics`, those
    of the chapter's section 16.4.1 over the episode (see `numa_rl.metrics.MEANINGS`).
    `reset(options={"episode": k, "machine": m})` plays a given episode of the pool.

    Args:
        world: machines, workload and reward; the chapter's cube under a synthetic stream by default.
        observation: "full" or "chapter"; the world's own by default.
        render_mode: "ansi", or None.

    Raises:
        ValueError: at `step`, an action that names no node.
    """

    # The base class declares it as an instance variable.
    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012

    def __init__(
        self,
        world: World | None = None,
        *,
        observation: ObservationKind | str | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Allocate one row."""
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"render_mode must be one of {self.metadata['render_modes']} or None, got {render_mode!r}."
            )
        self._rows = Rows(World.given(world, observation), 1)
        self.observation_space = self._rows.observation_space
        self.action_space = self._rows.action_space
        self.render_mode = render_mode

    @property
    def layout(self) -> ObservationLayout:
        """Where each group lies in the observation."""
        return self._rows.observer.layout

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float32, dict[str, Any]]:
        """Start an episode drawn by the seeded generator, or the one that `options` names."""
        unknown = set(options or {}) - {"episode", "machine"}
        if unknown:
            raise ValueError(f"options must be among 'episode' and 'machine', got {sorted(unknown)}.")
        super().reset(seed=seed)
        self._rows.generators[0] = self.np_random
        if options:
            self._rows.simulator.reset(options.get("episode", 0), machines=options.get("machine", 0))
        else:
            self._rows.reset()
        return self._rows.observe()[0].copy(), {}

    def step(self, action: Action) -> tuple[Float32, float, bool, bool, dict[str, Any]]:
        """Place the task; returns observation, reward, terminated (never), truncated and info."""
        rewards, outcome = self._rows.step(np.asarray(action)[None])
        info: dict[str, Any] = {name: values[0].item() for name, values in outcome_info(outcome).items()}
        if outcome.finished[0]:
            info["metrics"] = {name: float(values[0]) for name, values in run_metrics(self._rows.simulator).items()}
        return self._rows.observe()[0].copy(), float(rewards[0]), False, bool(outcome.finished[0]), info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Open task nodes, then open data nodes, shape (2 N,)."""
        return np.asarray(self._rows.action_masks()[0])

    def render(self) -> str | None:
        """The machine as text, in render mode "ansi"."""
        return render_text(self._rows.simulator) if self.render_mode == "ansi" else None

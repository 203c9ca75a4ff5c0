"""Stable-Baselines3's face of the batched simulator.

Dimension key: B environments, N nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from agents.totals import Totals
from envs.observation_kernel import Float32
from envs.world import Rows, World

I32 = npt.NDArray[np.int32]


class NumaVecEnv(VecEnv):
    """B rows of a world, reset in the step that ends them.

    The first episodes are cut to different lengths, so that the rows of a rollout stand at all stages of an
    episode instead of moving through it together. Rows of a group play the same episodes on the same machines and
    stand at the same task of them; only their placements differ.

    Args:
        world: what is scheduled.
        num_envs: B.
        seed: group i draws its episodes from seed + i.
        reward_scale: rewards are multiplied by it; the episode statistics in `infos` are not.
        num_threads: threads that share the rows.
        group: rows next to each other that play the same episodes.

    Attributes:
        decided: episode and task that the last step decided, shape (B,) each.

    Raises:
        ValueError: the rows cannot be dealt out to groups of this size.
    """

    def __init__(
        self,
        world: World,
        num_envs: int,
        *,
        seed: int = 0,
        reward_scale: float = 1.0,
        num_threads: int = 1,
        group: int = 1,
    ) -> None:
        """Allocate the rows."""
        if group < 1 or num_envs % group:
            raise ValueError(f"group must be a divisor of num_envs ({num_envs}), got {group}.")
        self.group = group
        self.rows = Rows(world, num_envs, num_threads)
        self.world = world
        self.reward_scale = reward_scale
        self.render_mode = None
        super().__init__(num_envs, self.rows.observation_space, self.rows.action_space)
        self.totals = Totals(self.rows.simulator.num_nodes)
        self._actions: npt.NDArray[Any] = np.zeros((num_envs, 2), np.int64)
        self.decided = self.position
        self.returns = np.zeros(num_envs)
        self.lengths = np.zeros(num_envs, np.int64)
        self._infos: list[dict[str, Any]] = [{} for _ in range(num_envs)]
        self._seed_rows(seed)

    def _seed_rows(self, seed: int) -> None:
        self.seed_rows(lambda group: seeding.np_random(seed + group)[0])

    def seed_rows(self, make: Callable[[int], np.random.Generator]) -> None:
        """Give every row a generator of its own; those of a group, made for its number, draw the same."""
        self.rows.generators = [make(row // self.group) for row in range(self.num_envs)]

    @property
    def position(self) -> tuple[I32, I32]:
        """Episode and task that every row is to decide next, shape (B,) each."""
        state = self.rows.simulator.state
        return state.episode.copy(), state.task.copy()

    def reset(self) -> Float32:
        """Start an episode in every row; returns the observations, shape (B, size)."""
        if self._seeds[0] is not None:
            self._seed_rows(self._seeds[0])
        shares = (np.arange(self.num_envs) // self.group + 1) * self.group / self.num_envs
        self.rows.reset(horizon_shares=shares)
        self.returns[:] = 0.0
        self.lengths[:] = 0
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return self.rows.observe().copy()

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Place one task in every row and start anew what ended."""
        self.decided = self.position
        rewards, outcome = self.rows.step(np.asarray(self._actions).astype(np.int64, copy=False))
        self.returns += rewards
        self.lengths += 1
        self.totals.count(self.rows, rewards)
        dones = outcome.finished.copy()
        infos = self._infos
        if dones.any():
            last = self.rows.observe()
            ended = np.flatnonzero(dones)
            infos = list(infos)
            for row in ended:
                infos[row] = {
                    "terminal_observation": last[row].copy(),
                    "TimeLimit.truncated": True,
                    "episode": {"r": float(self.returns[row]), "l": int(self.lengths[row]), "t": 0.0},
                }
            self.returns[ended] = 0.0
            self.lengths[ended] = 0
            self.rows.reset(ended)
        return self.rows.observe().copy(), (rewards * self.reward_scale).astype(np.float32), dones, infos

    def close(self) -> None:
        """Nothing to close."""

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Open task nodes, then open data nodes, shape (B, 2 N)."""
        return self.rows.action_masks()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of this object, once for each row asked for."""
        return [getattr(self, attr_name)] * len(self._rows_of(indices))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Rows have no attributes of their own.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(f"rows of {type(self).__name__} share their attributes: {attr_name!r} cannot be set.")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a batched method and deal its rows out: what MaskablePPO does with "action_masks"."""
        batch = getattr(self, method_name)(*method_args, **method_kwargs)
        return [batch[row] for row in self._rows_of(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """No row is wrapped, but every row reports its episodes as `Monitor` does."""
        return [False] * len(self._rows_of(indices))

    def get_images(self) -> Sequence[npt.NDArray[np.uint8] | None]:
        """No row draws a picture."""
        return [None] * self.num_envs

    def _rows_of(self, indices: VecEnvIndices) -> list[int]:
        return list(self._get_indices(indices))

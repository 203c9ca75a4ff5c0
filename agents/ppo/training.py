"""Training a placement policy: prior, rollout teacher, then PPO; the best on validation episodes is kept.

The prior is the tuned priced greedy rule, and it is the first candidate: what is kept is never worse than it on the
validation episodes. A run can be stopped at any time and goes on as if it had not been: each update starts from
random generators seeded by (seed, update), so a checkpoint needs no generator's state.

Dimension key: B environments.

References:
    [1] J. Schulman et al., "Proximal policy optimization algorithms", 2017.
    [2] A. Raffin et al., "Stable-Baselines3: reliable reinforcement learning implementations", JMLR 22(268), 2021.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import set_random_seed
from torch import Tensor

from agents.evaluation import evaluate
from agents.ppo.checkpoint import moments, read_labels, restore_optimizer, under, undisturbed, write_labels
from agents.ppo.config import TrainingConfig, as_json
from agents.ppo.dashboard import Dashboard
from agents.ppo.devices import chosen_device
from agents.ppo.memory import keep_freed_memory
from agents.ppo.policy import PlacementPolicy, prior_config
from agents.ppo.storage import LearnedScheduler, load_weights, read_tensors, save_policy, write_tensors
from agents.ppo.teacher import RolloutTeacher, joined
from agents.ppo.threads import gradient_step, measured_threads
from agents.rules.greedy import PricedGreedy
from agents.seen import Seen
from agents.vec_env import NumaVecEnv
from envs.world import Rows, World

F64 = npt.NDArray[np.float64]

CHECKPOINT_FORMAT = "numa-rl checkpoint 1"
SAVE_EVERY_S = 30.0
SEEN_STEPS = 16  # of a rollout, at most, by whose states the policy's file says what training saw


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        update: updates done.
        num_updates: in all.
        phase: "teacher" or "ppo".
        decisions: decisions trained on: labels and PPO's timesteps.
        decisions_per_s: of the last update.
        gap: validation cost over that of the best rule, minus 1, of the policy as it stands.
        best_gap: the same of the policy that is kept.
        validated: whether these gaps are new.
    """

    update: int
    num_updates: int
    phase: str
    decisions: int
    decisions_per_s: float
    gap: float
    best_gap: float
    validated: bool


class Trainer:
    """One run.

    Args:
        train: episodes to learn from.
        validation: episodes to choose by.
        rule: the tuned priced greedy rule; its parameters are numbers.
        rule_costs: validation cost of every tuned rule, by name, to show the policy against.
        config: how.
        folder: where the policy, the checkpoint and the event files go.
        about: JSON values that say what is trained: scenario and configuration; a run goes on only if they fit.
        git_revision: of the code, stored with the policy.
        on_progress: called after every update.
    """

    def __init__(
        self,
        train: World,
        validation: World,
        rule: PricedGreedy,
        rule_costs: Mapping[str, float],
        config: TrainingConfig,
        folder: Path,
        about: Mapping[str, Any],
        on_progress: Callable[[Progress], None] = lambda progress: None,
        *,
        git_revision: str | None = None,
    ) -> None:
        """Make the policy and both phases' machinery."""
        torch.set_num_threads(1)
        keep_freed_memory()
        set_random_seed(config.seed)
        self.config = config
        self.validation = validation
        self.rule_costs = dict(rule_costs)
        self.folder = folder
        self.about = dict(about)
        self.on_progress = on_progress
        self.git_revision = git_revision
        ppo = config.ppo
        prior_cost = self.rule_costs[rule.name]
        self.env = NumaVecEnv(
            train, ppo.num_envs, seed=config.seed, reward_scale=(1.0 - ppo.gamma) / max(prior_cost, 1e-9)
        )
        self.model = PPO(
            PlacementPolicy,
            self.env,
            n_steps=ppo.n_steps,
            batch_size=ppo.batch_size,
            n_epochs=ppo.n_epochs,
            learning_rate=ppo.falling_rate,
            gamma=ppo.gamma,
            gae_lambda=ppo.gae_lambda,
            clip_range=ppo.clip_range,
            ent_coef=ppo.ent_coef,
            target_kl=ppo.target_kl,
            seed=config.seed,
            device=chosen_device(config.device),
            policy_kwargs={
                "config": prior_config(config, rule),
            },
        )
        policy = self.model.policy
        assert isinstance(policy, PlacementPolicy)
        self.policy = policy
        if config.measure_threads:
            measured_threads(partial(gradient_step, policy.scorer))
        self.teacher = RolloutTeacher(train, rule, policy, config.teacher)
        self.dashboard = Dashboard(folder, self.model, train.weights.reference_s, self.rule_costs)
        self.rollout_states = np.zeros((0, self.env.rows.observer.layout.size), np.float32)  # some of PPO's newest
        self.update = 0  # updates done
        self.best_cost = np.inf
        self.last_cost = np.inf
        self._snapshot: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self._saved_at = time.monotonic()
        self._update_began = time.monotonic()

    @property
    def best_gap(self) -> float:
        """Validation cost of the policy that is kept over that of the best rule, minus 1."""
        return self.best_cost / min(self.rule_costs.values()) - 1.0

    @property
    def policy_path(self) -> Path:
        """Where the best policy is kept."""
        return self.folder / "policy.safetensors"

    @property
    def checkpoint_path(self) -> Path:
        """Where the run as it stands is kept."""
        return self.folder / "checkpoint.safetensors"

    def run(self) -> None:
        """Train to the end, from the start or from what `resume` read.

        Raises:
            KeyboardInterrupt: after the checkpoint was written.
        """
        try:
            if self.update == 0:
                self._validate()
                self.teacher.rows.generators = self._generators(self.teacher.rows)
                self.teacher.start()
            while self.update < self.config.num_teacher_updates:
                self._begin_update(self.teacher.rows)
                rng = np.random.default_rng([self.config.seed, self.update, 1])
                loss = self.teacher.update(self.update / self.config.num_teacher_updates, rng)
                self._keep_labels()
                self._end_update({"train/teacher_loss": loss}, self.config.teacher.labels_per_update)
            if self.update < self.config.num_updates:
                self._run_ppo()
            self._take_snapshot(self.env.rows)
        finally:
            with undisturbed():
                self._write_checkpoint()
                self.dashboard.flush()

    def _keep_labels(self) -> None:
        """Keep the newest labels beside the checkpoint."""
        write_labels(self._labels_path(self.update), self.teacher.memory[-1:])

    def _drop_labels(self, update: int) -> None:
        """Drop the labels that a run going on from this update does not need."""
        oldest = self._labels_path(max(0, update - self.config.teacher.memory))
        if update >= self.config.num_teacher_updates:
            shutil.rmtree(oldest.parent, ignore_errors=True)
        for path in oldest.parent.glob("*.safetensors"):
            if path.name < oldest.name:
                path.unlink()

    def _recall_labels(self) -> None:
        """Read the labels that the teacher remembered at this update."""
        remembered = range(max(0, self.update - self.config.teacher.memory), self.update)
        self.teacher.memory = [joined(read_labels(self._labels_path(update))) for update in remembered]

    def _labels_path(self, update: int) -> Path:
        return self.folder / "labels" / f"{update:05d}.safetensors"

    def _run_ppo(self) -> None:
        model, config = self.model, self.config
        done = self.update - config.num_teacher_updates
        if done == 0:
            self.env.rows.generators = self._generators(self.env.rows)
            model._last_obs = self.env.reset()
            model._last_episode_starts = np.ones(self.env.num_envs, bool)
        model.num_timesteps = done * config.ppo.rollout
        remaining = (config.ppo.num_updates - done) * config.ppo.rollout
        model.learn(remaining, callback=_EveryUpdate(self), reset_num_timesteps=False)
        self._end_update({}, config.ppo.rollout)

    def _generators(self, rows: Rows) -> list[np.random.Generator]:
        """One generator for each row, the same whenever this update begins."""
        return [np.random.default_rng([self.config.seed, self.update, 0, row]) for row in range(rows.num_rows)]

    def _begin_update(self, rows: Rows) -> None:
        """Seed everything by (seed, update) and remember where the run stands."""
        rows.generators = self._generators(rows)
        set_random_seed(int(np.random.SeedSequence([self.config.seed, self.update]).generate_state(1)[0] >> 1))
        self._take_snapshot(rows)
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self._write_checkpoint()
        self._update_began = time.monotonic()

    def _end_update(self, values: Mapping[str, float], decisions: int) -> None:
        """Count the update, validate when it is time, and report."""
        self.update += 1
        validates = self.update % self.config.validate_every == 0 or self.update == self.config.num_updates
        if validates:
            self._validate()
        self.dashboard.write(self.decisions, values, self.teacher.totals if self._teaching else self.env.totals)
        best = min(self.rule_costs.values())
        seconds = max(time.monotonic() - self._update_began, 1e-9)
        self.on_progress(
            Progress(
                update=self.update,
                num_updates=self.config.num_updates,
                phase="teacher" if self._teaching else "ppo",
                decisions=self.decisions,
                decisions_per_s=decisions / seconds,
                gap=self.last_cost / best - 1.0,
                best_gap=self.best_gap,
                validated=validates,
            )
        )

    @property
    def _teaching(self) -> bool:
        """Whether the last update was the teacher's."""
        return self.update <= self.config.num_teacher_updates

    @property
    def decisions(self) -> int:
        """Labels and PPO's timesteps so far."""
        taught = min(self.update, self.config.num_teacher_updates)
        return taught * self.config.teacher.labels_per_update + (self.update - taught) * self.config.ppo.rollout

    def _validate(self) -> None:
        """Play the validation episodes; keep the policy if it is the best so far."""
        results = evaluate(LearnedScheduler(self.policy.scorer), self.validation)
        self.last_cost = float(results.cost.mean())
        if self.last_cost < self.best_cost:
            self.best_cost = self.last_cost
            found = {"validation_cost": self.best_cost, "update": self.update, "git_revision": self.git_revision}
            about = self.about | found
            states = [part.observation for part in self.teacher.memory] if self._teaching else [self.rollout_states]
            save_policy(
                self.policy_path, self.policy.scorer, about, Seen.fit(states) if sum(map(len, states)) > 1 else None
            )
        self.dashboard.validated(self.decisions, self.last_cost, self.best_cost)

    def _take_snapshot(self, rows: Rows) -> None:
        """Copy all that the run needs to go on from here."""
        tensors = {f"policy.{name}": tensor.cpu().clone() for name, tensor in self.policy.scorer.state_dict().items()}
        for which, optimizer in self._optimizers.items():
            tensors |= moments(which, optimizer)
        for name, array in _row_arrays(self.env if rows is self.env.rows else None, rows).items():
            tensors[f"rows.{name}"] = torch.from_numpy(_bytes(array).copy())
        about = self._fixed | {
            "format": CHECKPOINT_FORMAT,
            "update": self.update,
            "best_cost": self.best_cost,
            "last_cost": self.last_cost,
            "n_updates": int(self.model._n_updates),
        }
        self._snapshot = (tensors, about)

    @property
    def _fixed(self) -> dict[str, Any]:
        """What a run must have in common with the checkpoint it goes on from: the prior's prices count too."""
        return self.about | {"policy": as_json(self.policy.config)}

    @property
    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"teacher": self.teacher.optimizer, "ppo": self.policy.optimizer}

    def _write_checkpoint(self) -> None:
        if self._snapshot is not None:
            tensors, about = self._snapshot
            write_tensors(self.checkpoint_path, tensors, about)
            self._drop_labels(about["update"])  # not before: until now the last checkpoint needed them
            self._saved_at = time.monotonic()

    def resume(self) -> None:
        """Take the run up where its checkpoint stands.

        Raises:
            ValueError: no checkpoint, a damaged one, or one of another configuration.
        """
        path = self.checkpoint_path
        tensors, about = read_tensors(path)
        if about.get("format") != CHECKPOINT_FORMAT:
            raise ValueError(
                f"{path}: a checkpoint must say format {CHECKPOINT_FORMAT!r}, got {about.get('format')!r}."
            )
        for key, value in self._fixed.items():
            if about.get(key) != value:
                raise ValueError(f"{path}: {key} must be {value!r} to go on, got {about.get(key)!r}.")
        for name in ("update", "best_cost", "last_cost", "n_updates"):
            number = about.get(name)
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise ValueError(f"{path}: {name} must be a number, got {number!r}.")
        for name, most in (("update", self.config.num_updates), ("n_updates", sys.maxsize)):
            count = about[name]
            if not (isinstance(count, int) and 0 <= count <= most):
                raise ValueError(f"{path}: {name} must be a whole number in 0..{most}, got {count!r}.")
        self.update, self.model._n_updates = int(about["update"]), int(about["n_updates"])
        self.best_cost, self.last_cost = float(about["best_cost"]), float(about["last_cost"])
        load_weights(path, self.policy.scorer, under("policy.", tensors))
        for which, optimizer in self._optimizers.items():
            restore_optimizer(path, which, optimizer, under(f"{which}.", tensors))
        teaching = self.update < self.config.num_teacher_updates
        rows = self.teacher.rows if teaching else self.env.rows
        arrays = _row_arrays(None if teaching else self.env, rows)
        saved = under("rows.", tensors)
        fits = set(saved) == set(arrays) and all(
            saved[name].numel() == array.nbytes and saved[name].dtype == torch.uint8 for name, array in arrays.items()
        )
        if not fits:
            raise ValueError(f"{path}: the state of the environments must fit this configuration, and it does not.")
        for name, array in arrays.items():
            _bytes(array)[:] = saved[name].numpy()
        rows.simulator.version += 1
        if teaching:
            self._recall_labels()
        elif self.update > self.config.num_teacher_updates:
            self.model._last_obs = self.env.rows.observe().copy()
            self.model._last_episode_starts = self.env.lengths == 0


class _EveryUpdate(BaseCallback):
    """Stable-Baselines3's hooks: an update ends where the next rollout starts."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.trainer = trainer
        self.first = True

    def _on_rollout_start(self) -> None:
        if not self.first:
            self.trainer._end_update({}, self.trainer.config.ppo.rollout)
        self.first = False
        self.trainer._begin_update(self.trainer.env.rows)

    def _on_rollout_end(self) -> None:
        """Keep states by which the policy's file says what training saw: the buffer is emptied before the next one."""
        states = self.trainer.model.rollout_buffer.observations
        every = -(-len(states) // SEEN_STEPS)
        self.trainer.rollout_states = states[::every].reshape(-1, states.shape[-1]).copy()

    def _on_step(self) -> bool:
        return True


def _row_arrays(env: NumaVecEnv | None, rows: Rows) -> dict[str, npt.NDArray[Any]]:
    """The arrays that say where rows stand."""
    arrays: dict[str, npt.NDArray[Any]] = dict(rows.simulator.state._asdict())
    return arrays if env is None else arrays | {"returns": env.returns, "lengths": env.lengths}


def _bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8)

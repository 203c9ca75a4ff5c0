"""Teaching one policy many worlds: each update labels states of several lessons, machines of any size among them.

A lesson is a world that is played once, from the first task of its episodes to the last, and then forgotten; which
worlds an update meets follows from its number alone. So a run that was stopped needs its weights, its optimiser and
the labels it remembers to go on as if it had not been. What is kept is the policy that does best in the exams.

Dimension key: B rows.

References:
    [1] B. T. Polyak, A. B. Juditsky, "Acceleration of stochastic approximation by averaging", SIAM Journal on Control
        and Optimization 30(4), 1992.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.utils import set_random_seed
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from agents.evaluation import evaluate
from agents.ppo.checkpoint import moments, read_labels, restore_optimizer, under, undisturbed, write_labels
from agents.ppo.config import TrainingConfig, as_json
from agents.ppo.devices import chosen_device
from agents.ppo.memory import keep_freed_memory
from agents.ppo.policy import PlacementPolicy, prior_config
from agents.ppo.scorer import PairScorer
from agents.ppo.scorers import make_scorer
from agents.ppo.storage import LearnedScheduler, load_weights, read_tensors, save_policy, write_tensors
from agents.ppo.teacher import Labeller, Labels, by_size, learn
from agents.ppo.threads import gradient_step, measured_threads
from agents.ppo.training import Progress
from agents.rules.greedy import PricedGreedy
from agents.seen import Seen
from envs.world import Rows, World

CHECKPOINT_FORMAT = "numa-rl course 1"
SAVE_EVERY_S = 60.0
SEEN_UPDATES = 4  # the newest ones, by whose states the policy's file says what training saw
# Shares of what was learned that are tried: labels are noisy, and who picks the best of many guesses picks lucky ones.
TRUST = (1.0, 0.7, 0.4)
TEACHER = "teacher"  # what the checkpoint calls its optimiser


@dataclass(frozen=True, eq=False)
class Lesson:
    """A world to learn from.

    Attributes:
        name: how messages call it.
        world: what is scheduled.
        rule: places what follows a candidate; its parameters are numbers.
    """

    name: str
    world: World
    rule: PricedGreedy


@dataclass(frozen=True, eq=False)
class Exam:
    """Episodes to judge the policy by.

    Attributes:
        name: what they are.
        world: what is scheduled.
        rule_cost: mean cost of a decision by the rule that the policy is judged against.
    """

    name: str
    world: World
    rule_cost: float


class Course:
    """One run.

    Args:
        lessons: those of each update, by its number.
        exams: on episodes of their own.
        rule: the prior; its parameters are numbers.
        config: how; of its phases the teacher's.
        folder: where the policy, the checkpoint and the event files go.
        about: JSON values that say what is taught; a run goes on only if they fit.
        git_revision: of the code, stored with the policy.
        on_progress: called after every update.
    """

    def __init__(
        self,
        lessons: Callable[[int], Sequence[Lesson]],
        exams: Sequence[Exam],
        rule: PricedGreedy,
        config: TrainingConfig,
        folder: Path,
        about: Mapping[str, Any],
        on_progress: Callable[[Progress], None] = lambda progress: None,
        *,
        git_revision: str | None = None,
    ) -> None:
        """Make the policy."""
        torch.set_num_threads(1)
        keep_freed_memory()
        set_random_seed(config.seed)
        self.lessons = lessons
        self.exams = exams
        self.config = config
        self.folder = folder
        self.about = dict(about)
        self.on_progress = on_progress
        self.git_revision = git_revision
        rows = Rows(exams[0].world, 1)
        self.policy = PlacementPolicy(
            rows.observation_space,
            rows.action_space,
            lambda _: config.teacher.learning_rate,
            config=prior_config(config, rule),
        )
        device = chosen_device(config.device)
        self.policy.to(device)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=config.teacher.learning_rate)
        # What is judged and kept: the weights' running average, for lessons pull them to and fro.
        if config.measure_threads:
            measured_threads(partial(gradient_step, self.policy.scorer))
        self.average = make_scorer(self.policy.config).to(device)
        self.average.load_state_dict(self.policy.scorer.state_dict())
        self.memory: list[list[Labels]] = []
        self.update = 0  # updates done
        self.gap = self.best_gap = np.inf
        self._snapshot: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self._saved_at = time.monotonic()

    @property
    def policy_path(self) -> Path:
        """Where the best policy is kept."""
        return self.folder / "policy.safetensors"

    @property
    def checkpoint_path(self) -> Path:
        """Where the run as it stands is kept."""
        return self.folder / "checkpoint.safetensors"

    def run(self) -> None:
        """Teach to the end, from the start or from what `resume` read.

        Raises:
            KeyboardInterrupt: after the checkpoint was written; the update at hand is lost.
        """
        with SummaryWriter(str(self.folder)) as writer:
            names = ["Multiline", ["gap/learned", "gap/kept"]]
            writer.add_custom_scalars({"Against the rule": {"mean cost over the rule's, minus 1": names}})
            if self.update == 0:
                self._examine(writer)
            self._take_snapshot()
            try:
                while self.update < self.config.num_teacher_updates:
                    self._one_update(writer)
            finally:
                with undisturbed():
                    self._write_checkpoint()

    def _one_update(self, writer: SummaryWriter) -> None:
        """Label, learn, and judge when it is time."""
        began, config = time.monotonic(), self.config.teacher
        rng = np.random.default_rng([self.config.seed, self.update, 1])
        lessons = self.lessons(self.update)
        with ThreadPoolExecutor(min(config.num_threads, os.cpu_count() or 1)) as pool:
            labels = list(pool.map(self._label, lessons, rng.spawn(len(lessons))))
        self.memory = [*self.memory, by_size(labels)][-config.memory :]
        progress = self.update / self.config.num_teacher_updates
        remembered = [part for parts in self.memory for part in parts]
        loss = learn(self.policy, self.optimizer, remembered, config, progress, rng)
        self.update += 1
        self._follow_weights()
        write_labels(self._labels_path(self.update - 1), self.memory[-1])
        writer.add_scalar("train/teacher_loss", loss, self.update)
        examined = self.update % self.config.validate_every == 0 or self.update == self.config.num_teacher_updates
        count = sum(len(part.cost) for part in labels)
        rate = count / max(time.monotonic() - began, 1e-9)
        if examined:
            self._examine(writer)
        self._take_snapshot()
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self._write_checkpoint()
        done, of = self.update, self.config.num_teacher_updates
        self.on_progress(
            Progress(done, of, TEACHER, done * config.labels_per_update, rate, self.gap, self.best_gap, examined)
        )

    def _follow_weights(self) -> None:
        """Move the average towards the weights: by all of the way at first, by `1 - averaging` in the long run [1]."""
        step = max(1.0 - self.config.teacher.averaging, 1.0 / self.update)
        with torch.no_grad():
            for mine, newest in zip(self.average.parameters(), self.policy.scorer.parameters(), strict=True):
                mine.lerp_(newest, step)

    def _label(self, lesson: Lesson, rng: np.random.Generator) -> Labels:
        """Label states of a lesson, spread over its episodes' whole length; it shares no array with other lessons."""
        config, num_tasks = replace(self.config.teacher, num_threads=1), lesson.world.workload.num_tasks
        stride = min(config.stride, num_tasks)
        rounds = num_tasks // stride
        wanted = -(-config.labels_per_update // config.lessons)
        labeller = Labeller(lesson.world, lesson.rule, self.average, config, max(1, -(-wanted // rounds)))
        labeller.rows.generators = rng.spawn(labeller.rows.num_rows)
        labeller.rows.reset()
        labeller.skip(int(rng.integers(num_tasks - rounds * stride + 1)))
        return labeller.label(rounds, rng)

    def _examine(self, writer: SummaryWriter) -> None:
        """Let the averaged policy sit the exams, trusted more and less; keep the best so far."""
        trusted = {trust: self._gaps(self._trusting(trust)) for trust in (TRUST if self.update else TRUST[:1])}
        trust = min(trusted, key=lambda some: float(np.mean(list(trusted[some].values()))))
        gaps = trusted[trust]
        self.gap = float(np.mean(list(gaps.values())))
        if self.gap < self.best_gap:
            self.best_gap = self.gap
            found = {"validation_gap": self.gap, "trust": trust, "update": self.update}
            about = self.about | found | {"git_revision": self.git_revision}
            states = [part.observation for parts in self.memory[-SEEN_UPDATES:] for part in parts]
            save_policy(self.policy_path, self._trusting(trust), about, Seen.fit(states) if states else None)
        for name, gap in (gaps | {"learned": self.gap, "kept": self.best_gap}).items():
            writer.add_scalar(f"gap/{name}", gap, self.update)
        writer.add_scalar("train/trust", trust, self.update)

    def _gaps(self, scorer: PairScorer) -> dict[str, float]:
        """By how much the policy costs more than the rule in each exam."""
        who = LearnedScheduler(scorer)
        return {e.name: float(evaluate(who, e.world).cost.mean()) / e.rule_cost - 1.0 for e in self.exams}

    def _trusting(self, trust: float) -> PairScorer:
        """The averaged policy, with what it learned taken at this share; the rest is the prior."""
        scorer = make_scorer(self.policy.config)
        scorer.load_state_dict(self.average.state_dict())
        with torch.no_grad():
            for learned in scorer.learned():
                learned.mul_(trust)
        return scorer

    def _labels_path(self, update: int) -> Path:
        return self.folder / "labels" / f"{update:05d}.safetensors"

    @property
    def _fixed(self) -> dict[str, Any]:
        """What a run must have in common with the checkpoint it goes on from."""
        return self.about | {"format": CHECKPOINT_FORMAT, "policy": as_json(self.policy.config)}

    def _take_snapshot(self) -> None:
        """Copy all that the run needs to go on from here: in the midst of an update there is nothing to go on from."""
        scorers = {"policy": self.policy.scorer, "average": self.average}
        weights = {
            f"{which}.{name}": tensor.cpu().clone()
            for which, scorer in scorers.items()
            for name, tensor in scorer.state_dict().items()
        }
        where = {"update": self.update, "gap": self.gap, "best_gap": self.best_gap}
        self._snapshot = (weights | moments(TEACHER, self.optimizer), self._fixed | where)

    def _write_checkpoint(self) -> None:
        """Keep the run as it stood after the last update, and drop the labels that it has forgotten."""
        if self._snapshot is None:
            return
        tensors, about = self._snapshot
        write_tensors(self.checkpoint_path, tensors, about)
        oldest = self._labels_path(max(0, about["update"] - self.config.teacher.memory))
        for path in oldest.parent.glob("*.safetensors"):
            if path.name < oldest.name:
                path.unlink()
        if about["update"] >= self.config.num_teacher_updates:
            shutil.rmtree(oldest.parent, ignore_errors=True)
        self._saved_at = time.monotonic()

    def resume(self) -> None:
        """Take the run up where its checkpoint stands.

        Raises:
            ValueError: no checkpoint, a damaged one, or one of another configuration.
        """
        path = self.checkpoint_path
        tensors, about = read_tensors(path)
        for key, value in self._fixed.items():
            if about.get(key) != value:
                raise ValueError(f"{path}: {key} must be {value!r} to go on, got {about.get(key)!r}.")
        update, gap, best_gap = (about.get(name) for name in ("update", "gap", "best_gap"))
        most = self.config.num_teacher_updates
        if not (isinstance(update, int) and not isinstance(update, bool) and 0 <= update <= most):
            raise ValueError(f"{path}: update must be a whole number in 0..{most}, got {update!r}.")
        if not (isinstance(gap, float) and isinstance(best_gap, float)):
            raise ValueError(f"{path}: gap and best_gap must be numbers, got {gap!r} and {best_gap!r}.")
        load_weights(path, self.policy.scorer, under("policy.", tensors))
        load_weights(path, self.average, under("average.", tensors))
        restore_optimizer(path, TEACHER, self.optimizer, under(f"{TEACHER}.", tensors))
        self.update, self.gap, self.best_gap = update, gap, best_gap
        if update < most:
            remembered = range(max(0, update - self.config.teacher.memory), update)
            self.memory = [read_labels(self._labels_path(earlier)) for earlier in remembered]

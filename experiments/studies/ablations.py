"""The ablation study: what each piece of the policy, and of its training, is worth.

It goes on where it stood: trainings from their checkpoints, plays from the suite's cache.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from agents.ppo.config import TrainingConfig, as_json
from experiments.files import file_digest, require_writable, write_bytes, write_json
from experiments.studies.ablation_play import (
    IN_WORDS,
    by_part,
    drawn_cells,
    normalised_costs,
    yardstick_costs,
)
from experiments.studies.ablation_results import AblationResult, Row
from experiments.studies.ablation_rows import FULL, VARIANTS, chosen
from experiments.suite.cache import Cache
from experiments.suite.definition import STANDARD, Cell, read_definition
from experiments.suite.run import Runner
from experiments.train import RUN_FILE, SUITE, Train, prepare, require_used, train_policy
from experiments.tune import require_at_least

CHECKPOINT, POLICY = "checkpoint.safetensors", "policy.safetensors"  # in the folder of a training


@dataclass(frozen=True)
class Ablations:
    """Train the suite-wide policy with one piece left out at a time, and play the suite's test episodes with each.

    Every row has the same labels. It takes hours; Ctrl-C loses little, and the same command goes on. In the folder
    `out`: a folder for each row with its policies; ablations.md and ablations.json, written anew after every row.

    Attributes:
        out: folder for policies and results.
        labels: of the teacher, for every policy; short for --teacher.labels.
        rows: only these rows, besides the whole policy.
        seeds: policies of each row, trained with seeds from --seed on.
        against: what costs are relative to: the best rule of every cell, or priced-greedy with one setting, which is
            played in a moment.
        drawn_machines: machines, drawn at random, on which each training family is played besides.
        episodes: test episodes of each cell, in place of the suite's number.
        validation_episodes: how many episodes to choose the best policy of a training by.
        workers: processes that play; as many as there are CPUs by default.
        overwrite: train anew where the folder holds policies of other settings.
        config: how the whole policy is trained.
    """

    out: Path = Path("runs/ablations")
    labels: int | None = None
    rows: tuple[str, ...] = ()
    seeds: int = 1
    against: Literal["best-rule", "priced-greedy"] = "best-rule"
    drawn_machines: int = 2
    episodes: int | None = None
    validation_episodes: int = 64
    workers: int | None = None
    overwrite: bool = False
    config: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(default_factory=TrainingConfig)

    def run(self) -> None:
        """Train, play and print.

        Raises:
            ValueError: an unknown name, a count out of range, a folder that cannot be written, or one that holds
                policies of other settings.
            SystemExit: with code 130 after Ctrl-C in a training, once all is saved.
        """
        runs = self._checked()
        for folder, train in (each for some in runs.values() for each in some):  # before anything takes time
            _prepare(folder, train, overwrite=self.overwrite)

        from experiments.suite.train import CACHE, SEED  # torch takes seconds

        console = Console()
        definition = read_definition(STANDARD)
        episodes = self.episodes or definition.counts.test_episodes
        counts = replace(definition.counts, test_episodes=episodes, oracle_episodes=1)  # the oracle does not play
        runner = Runner(Cache(CACHE), self.workers or os.cpu_count() or 1, SEED)
        with console.status("making cells") as status:
            known = definition.cells()
            cells = [*known, *drawn_cells(definition, self.drawn_machines, SEED)]
            runner = replace(runner, on_progress=lambda part, done, of: status.update(f"{part}: {done} of {of} pieces"))
            yardstick = yardstick_costs(cells, counts, self.against, runner)
        rows: list[Row] = []
        for name, trainings in runs.items():
            costs, policies = [], []
            for folder, train in trainings:
                console.print(f"{name}, seed {train.config.seed}; left out: {VARIANTS[name].what}.", highlight=False)
                done = _finished(folder, train, known)
                path = folder / POLICY if done else train_policy(train, folder, console, resume=True)
                with console.status(f"playing {name}"):
                    costs.append(normalised_costs(path, name, cells, yardstick, runner))
                policies.append(_told(path, train.config))
            rows.append(Row(name, by_part(definition, cells, costs), policies))
            result = AblationResult(rows, IN_WORDS[self.against], train.config.teacher.labels, SEED)
            self._write(result, runs[FULL][0][1].config)
        result.sheet().print(console)
        console.print(f"Written to {self.out}", soft_wrap=True, highlight=False)

    def _checked(self) -> dict[str, list[tuple[Path, Train]]]:
        """The trainings of each row and their folders; raises ValueError before anything takes time."""
        names = chosen(self.rows)
        options = {
            "--seeds": self.seeds,
            "--validation-episodes": self.validation_episodes,
            "--labels": self.labels,
            "--episodes": self.episodes,
            "--workers": self.workers,
        }
        for option, count in options.items():
            if count is not None:
                require_at_least(1, count, option)
        require_at_least(0, self.drawn_machines, "--drawn-machines")
        config = self.config
        if self.labels is not None:
            if config.teacher.labels != TrainingConfig().teacher.labels:
                raise ValueError(f"--labels and --teacher.labels exclude each other, got {self.labels}.")
            config = replace(config, teacher=replace(config.teacher, labels=self.labels))
        require_writable(self.out / "ablations.json", "--out")
        configs = [replace(config, seed=seed) for seed in range(config.seed, config.seed + self.seeds)]
        runs = {
            name: [(self.out / name / f"seed-{each.seed}", self._train(name, each)) for each in configs]
            for name in names
        }
        require_used(runs[FULL][0][1])
        return runs

    def _train(self, name: str, config: TrainingConfig) -> Train:
        return Train(SUITE, validation_episodes=self.validation_episodes, config=VARIANTS[name].of(config))

    def _write(self, result: AblationResult, config: TrainingConfig) -> None:
        """Keep the rows that are done, and how the whole policy was trained."""
        write_json(self.out / "ablations.json", result.to_dict() | {"config": as_json(config)})
        write_bytes(self.out / "ablations.md", f"# Ablations\n\n{result.sheet().markdown}".encode())


def _prepare(folder: Path, train: Train, *, overwrite: bool) -> None:
    """Make a training's folder, or see that it holds this very training.

    Raises:
        ValueError: it holds another one, or cannot be written.
    """
    path = folder / RUN_FILE
    wanted = {"validation_episodes": train.validation_episodes, "config": as_json(train.config)}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fits = isinstance(content, dict) and {key: content.get(key) for key in wanted} == wanted
    except FileNotFoundError:
        return prepare(folder, train)
    except (OSError, ValueError, RecursionError):
        fits = False
    if fits:
        return None
    if not overwrite:
        raise ValueError(
            f"{path}: must be of a training with these settings to go on: use another --out, or --overwrite."
        )
    return prepare(folder, replace(train, overwrite=True))


def _finished(folder: Path, train: Train, cells: Sequence[Cell]) -> bool:
    """Whether a training has reached its end, on the suite's cells as they are now."""
    from agents.ppo.storage import read_tensors

    try:
        _, about = read_tensors(folder / CHECKPOINT)
    except ValueError:
        return False
    taught = [cell for cell in cells if train.config.teacher.held_out or not cell.held_out]
    learned_from = {cell.name: cell.scenario.content_hash for cell in taught}
    return about.get("update") == train.config.num_teacher_updates and about.get("cells") == learned_from


def _told(path: Path, config: TrainingConfig) -> dict[str, Any]:
    """What is told of a policy, as JSON values."""
    from agents.ppo.storage import read_tensors
    from agents.seen import PREFIX

    tensors, about = read_tensors(path)
    kept: Mapping[str, Any] = {key: about.get(key) for key in ("update", "validation_gap", "git_revision")}
    return {
        "seed": config.seed,
        "file": str(path),
        "sha256": file_digest(path),
        "weights": sum(tensor.numel() for name, tensor in tensors.items() if not name.startswith(PREFIX)),
        "updates": config.num_teacher_updates,
        **{f"kept_{key}": value for key, value in kept.items()},
    }

"""Training from the command line: a progress bar, TensorBoard, checkpoints, and going on after an interruption."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agents.evaluation import evaluate
from agents.ppo.config import TrainingConfig, as_json
from agents.rules.greedy import PricedGreedy
from experiments.cli import INTERRUPTED
from experiments.files import require_writable, write_json
from experiments.scenario import Scenario, Split, load_scenario
from experiments.tune import load_or_tune, require_at_least, world_of

if TYPE_CHECKING:
    from agents.ppo.training import Progress as Standing
    from agents.ppo.training import Trainer

RUN_FILE = "run.json"
NETWORKS = ("checkpoint.safetensors", "policy.safetensors")  # what a run leaves beside it
SUITE = "suite"  # in place of a scenario
# Options that only the one kind of training has a use for.
OF_SCENARIOS = ("train_episodes", "teacher.num_rows", "ppo.")
OF_SUITE = ("teacher.lessons", "teacher.drawn_share", "teacher.held_out", "teacher.averaging")


@dataclass(frozen=True)
class Train:
    """Train a placement policy and keep the one that is best on validation episodes.

    Watch it with `tensorboard --logdir runs`. Ctrl-C saves; `--resume` goes on as if nothing had happened.

    Attributes:
        scenario: a scenario's name, or the path of its TOML file; "suite" for one policy for all families and
            machines of the standard suite, and for machines drawn at random, which the teacher alone trains: options
            of PPO are refused.
        out: folder of the run; runs/<scenario> by default.
        resume: go on with the run in this folder, as it was begun; takes no other options.
        overwrite: start anew in a folder that holds a run.
        train_episodes: how many episodes to learn from; refused with "suite", whose lessons are made as they come.
        validation_episodes: how many episodes to choose the best policy by; with "suite" all training cells
            together, of which each has an equal share, rounded up.
        config: how to train.
    """

    scenario: str | None = None
    out: Path | None = None
    resume: Path | None = None
    overwrite: bool = False
    train_episodes: int = 512
    validation_episodes: int = 64
    config: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(default_factory=TrainingConfig)

    def run(self) -> None:
        """Train to the end.

        Raises:
            ValueError: no such scenario or run, a folder that holds a run already, or one that cannot be written, or
                an option that this kind of training would ignore.
        """
        console = Console()
        if self.resume is not None:
            if self != Train(resume=self.resume):
                raise ValueError("--resume takes no other options: the run goes on as it was begun.")
            train, folder = _read_run(self.resume), self.resume
        elif self.scenario is None:
            raise ValueError("--scenario must be given, or --resume with the folder of a run.")
        else:
            require_at_least(1, self.train_episodes, "--train-episodes")
            require_at_least(1, self.validation_episodes, "--validation-episodes")
            require_used(self)
            if self.config.device != "cpu":
                from agents.ppo.devices import chosen_device  # torch takes seconds

                chosen_device(self.config.device)
            name = SUITE if self.scenario == SUITE else load_scenario(self.scenario).name
            train, folder = self, self.out or Path("runs") / name
            prepare(folder, train)
        train_policy(train, folder, console, resume=self.resume is not None)


def require_used(train: Train) -> None:
    """Raise ValueError for the first option that was set though this kind of training makes no use of it."""
    unused, where = (OF_SCENARIOS, f"--scenario {SUITE}") if train.scenario == SUITE else (OF_SUITE, "one scenario")
    if train.scenario == SUITE and not train.config.teacher.labels:
        raise ValueError(
            f"--teacher.labels must be >= 1 with --scenario {SUITE}, which the teacher alone trains, got 0."
        )
    given, default = (_flat({"train_episodes": some.train_episodes} | asdict(some.config)) for some in (train, Train()))
    for name, value in given.items():
        if name.startswith(unused) and value != default[name]:
            raise ValueError(
                f"--{name.replace('_', '-')} must stay {default[name]}, its default, with {where}, "
                f"which makes no use of it, got {value}."
            )


class Run(Protocol):
    """A training run, of one scenario or of the suite."""

    update: int

    @property
    def policy_path(self) -> Path:
        """Where the best policy is kept."""
        ...

    @property
    def checkpoint_path(self) -> Path:
        """Where the run as it stands is kept."""
        ...

    @property
    def best_gap(self) -> float:
        """Validation cost of the policy that is kept over the rule's, minus 1."""
        ...

    def run(self) -> None:
        """Train to the end."""

    def resume(self) -> None:
        """Take the run up where its checkpoint stands."""


def train_policy(train: Train, folder: Path, console: Console, *, resume: bool = False) -> Path:
    """Train in a prepared folder; returns where the policy is.

    Raises:
        ValueError: what was saved does not fit.
        SystemExit: with code 130 after Ctrl-C, once all is saved.
    """
    assert train.scenario is not None
    bar = _progress_bar(console)
    task = bar.add_task("training", total=train.config.num_updates, gap="", rate="")

    def show(standing: Standing) -> None:
        gap = f"vs best rule {standing.gap:+.2%}, kept {standing.best_gap:+.2%}"
        rate = f"{standing.decisions_per_s / 1e3:.1f} k/s"
        bar.update(
            task,
            completed=standing.update,
            total=standing.num_updates,
            description=standing.phase,
            gap=gap,
            rate=rate,
        )
        if not console.is_terminal and standing.validated:  # a log file gets lines, not a bar
            done = f"{standing.phase} {standing.update}/{standing.num_updates}"
            console.print(f"{done}  {rate}  {gap}", highlight=False)

    run: Run
    try:
        if train.scenario == SUITE:
            from experiments.suite.train import suite_course  # torch takes seconds

            run = suite_course(train.config, train.validation_episodes, folder, console, show, git_revision())
        else:
            run = _single(train, load_scenario(train.scenario), folder, console, show)
        if resume and run.checkpoint_path.exists():  # else it was stopped before its first update
            run.resume()
            bar.update(task, completed=run.update)
        with bar:
            run.run()
    except KeyboardInterrupt:
        bar.stop()
        again = f"{shlex.quote(sys.argv[0])} train --resume {shlex.quote(str(folder))}"
        console.print(f"Stopped and saved. Go on with: {again}", highlight=False, soft_wrap=True)
        raise SystemExit(INTERRUPTED) from None
    rule = "priced greedy with one setting for all cells" if train.scenario == SUITE else "the best rule"
    console.print(f"Kept: {run.best_gap:+.2%} against {rule} on validation episodes.", highlight=False)
    console.print(f"Policy: {run.policy_path}\nTensorBoard: tensorboard --logdir {folder.parent}", highlight=False)
    return run.policy_path


def _single(
    train: Train, scenario: Scenario, folder: Path, console: Console, show: Callable[[Standing], None]
) -> Trainer:
    """The run of one scenario."""
    from agents.ppo.training import Trainer  # torch takes seconds

    with console.status("") as status:
        tuned = load_or_tune(scenario, on_rule=lambda name: status.update(f"tuning {name}"))
        validation = world_of(scenario, Split.VALIDATION, train.validation_episodes, 0)
        costs = {}
        for entry in tuned:
            status.update(f"playing {entry.name}")
            costs[entry.name] = float(evaluate(entry.rule, validation).cost.mean())
        status.update("making episodes")
        episodes = world_of(scenario, Split.TRAIN, train.train_episodes, 0)
    prior = next(entry.rule for entry in tuned if entry.name == PricedGreedy.name)
    assert isinstance(prior, PricedGreedy)
    best = min(costs, key=lambda name: costs[name])
    console.print(f"Best rule on validation episodes: {best}, cost {costs[best]:.3f} per decision.", highlight=False)
    about = {"scenario": scenario.name, "scenario_hash": scenario.content_hash, "training": as_json(train.config)}
    trainer = Trainer(
        episodes, validation, prior, costs, train.config, folder, about, show, git_revision=git_revision()
    )
    trainer.dashboard.describe(_flat(asdict(train.config)) | {"scenario": scenario.name})
    return trainer


def _progress_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:8}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[gap]}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=console,
    )


def prepare(folder: Path, train: Train) -> None:
    """Make the run's folder and note in it what is run.

    Raises:
        ValueError: it holds a run already, or cannot be written.
    """
    run_file = folder / RUN_FILE
    if not train.overwrite and any((folder / name).exists() for name in (RUN_FILE, *NETWORKS)):
        raise ValueError(f"--out must be a folder without a run, got {str(folder)!r}: use --resume or --overwrite.")
    require_writable(run_file, "--out")
    shutil.rmtree(folder / "labels", ignore_errors=True)
    for pattern in ("events.out.tfevents.*", *NETWORKS):
        for path in folder.glob(pattern):
            path.unlink()
    content = {
        "scenario": train.scenario,
        "train_episodes": train.train_episodes,
        "validation_episodes": train.validation_episodes,
        "config": as_json(train.config),
        "git_revision": git_revision(),
    }
    write_json(run_file, content)


def _read_run(folder: Path) -> Train:
    """What is run in a folder.

    Raises:
        ValueError: no run there, or its file is damaged.
    """
    path = folder / RUN_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"--resume must be the folder of a run, got {str(folder)!r}: {RUN_FILE}: {error.strerror}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}).") from error
    try:
        return Train(
            scenario=str(content["scenario"]),
            train_episodes=int(content["train_episodes"]),
            validation_episodes=int(content["validation_episodes"]),
            config=_config(content["config"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: must hold scenario, episodes and config of a run: {error}") from error


def _config(values: dict[str, Any]) -> TrainingConfig:
    """The configuration in a run's file."""
    parts = {"teacher": TrainingConfig().teacher, "ppo": TrainingConfig().ppo}
    nested = {name: type(default)(**values[name]) for name, default in parts.items()}
    return TrainingConfig(**(values | nested | {"blind_to": tuple(values["blind_to"])}))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, bool | float | int | str]:
    """Nested settings as one level with dotted names."""
    flat: dict[str, bool | float | int | str] = {}
    for name, value in values.items():
        shown = ", ".join(value) if isinstance(value, tuple) else value
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": shown}
    return flat


def git_revision() -> str | None:
    """The revision of the project's files, if they are a git checkout; "+" marks uncommitted changes."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None

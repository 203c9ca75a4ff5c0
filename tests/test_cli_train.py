"""The command `numa-rl train`: its folder, going on after an interruption, and what it refuses."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from command_line import SMALL_SCENARIO, Run, refused

from agents.ppo.config import PPOConfig, TrainingConfig
from agents.ppo.storage import read_tensors
from agents.ppo.training import Trainer
from agents.rules.catalog import rule_names
from experiments.cli import BAD_INPUT, INTERRUPTED, main
from experiments.scenario import load_scenario
from experiments.train import Train, prepare
from experiments.tune import load_or_tune

torch.set_num_threads(1)

# A run of a second: two updates of the teacher, two of PPO.
QUICK = [
    *("--train-episodes", "4", "--validation-episodes", "2", "--validate-every", "2", "--node-width", "6"),
    *("--teacher.labels", "32", "--teacher.labels-per-update", "16", "--teacher.num-rows", "8"),
    *("--teacher.depth", "3", "--teacher.num-threads", "1", "--ppo.total-timesteps", "128"),
    *("--ppo.num-envs", "4", "--ppo.n-steps", "16", "--ppo.batch-size", "32"),
]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of the tuned rules of the small scenario, found with less patience than usual."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "small.toml").write_text(SMALL_SCENARIO)
    load_or_tune(load_scenario(folder / "small.toml"), path=folder / "tuned.json", num_episodes=2, num_settings=2)
    return (folder / "tuned.json").read_text()


@pytest.fixture
def small(numa_rl: Run, tuned: str) -> str:
    """The small scenario in the folder where `numa_rl` runs."""
    Path("small.toml").write_text(SMALL_SCENARIO)
    Path("results/small").mkdir(parents=True)
    Path("results/small/tuned.json").write_text(tuned)
    return "small.toml"


@pytest.fixture(scope="module")
def trained_once(tuned: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.toml").write_text(SMALL_SCENARIO)
    (folder / "results" / "small").mkdir(parents=True)
    (folder / "results" / "small" / "tuned.json").write_text(tuned)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["numa-rl", "train", "--scenario", "small.toml", *QUICK])
        main()
    return folder / "runs" / "small"


@pytest.fixture
def trained(trained_once: Path, small: str) -> Path:
    """The folder of a finished run, beside its scenario."""
    return shutil.copytree(trained_once, Path("runs/small"))


def test_train_then_compare_then_resume(numa_rl, small, trained):
    assert {"checkpoint.safetensors", "policy.safetensors", "run.json"} <= {path.name for path in trained.iterdir()}
    content = json.loads((trained / "run.json").read_text())
    assert content["train_episodes"] == 4
    assert content["config"]["teacher"]["labels"] == 32

    ended = numa_rl("compare", "--scenario", small, "--policy", trained / "policy.safetensors", "--episodes", 3,
                    "--json", "c.json", "--plot", "c.png")  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    results = json.loads(Path("c.json").read_text())
    assert sorted(entry["name"] for entry in results["schedulers"]) == sorted([*rule_names(), "learned"])
    assert Path("c.png").read_bytes().startswith(b"\x89PNG")

    before = (trained / "policy.safetensors").read_bytes()
    ended = numa_rl("train", "--resume", trained)
    assert (ended.code, ended.err) == (0, "")
    assert "Kept: " in ended.out
    assert (trained / "policy.safetensors").read_bytes() == before


def test_a_learned_policy_is_diagnosed(numa_rl, small, trained):
    policy = trained / "policy.safetensors"
    ended = numa_rl("diagnose", "--scenario", small, "--policy", policy, "--episodes", 2, "--json", "out.json")
    assert (ended.code, ended.err) == (0, "")
    assert "Diagnosis of learned on small (simulated) on chapter-2-socket" in ended.out
    assert ended.json["leaf"] is not None


def test_a_folder_that_holds_a_run_is_not_overwritten_unless_told(numa_rl, small, trained):
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    refused(numa_rl("train", "--scenario", small, *QUICK), "--out must be a folder without a run", "'runs/small'",
            "use --resume or --overwrite")  # fmt: skip
    for wrong in (["--train-episodes", 0], ["--validation-episodes", 0]):
        refused(numa_rl("train", "--scenario", small, *QUICK, "--overwrite", *wrong), "must be >= 1, got 0")
    refused(numa_rl("train", "--scenario", "nope", "--out", trained, "--overwrite"), "scenario must be one of")
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before
    ended = numa_rl("train", "--scenario", small, *QUICK, "--overwrite", "--seed", 1)
    assert (ended.code, ended.err) == (0, "")
    assert (trained / "policy.safetensors").read_bytes() != before["policy.safetensors"]


@pytest.mark.parametrize("update", [0, 1, 3])
def test_ctrl_c_saves_and_says_how_to_go_on(numa_rl, small, monkeypatch, update):
    end_update, validate = Trainer._end_update, Trainer._validate

    def interrupted(trainer: Trainer, *arguments: Any) -> None:
        end_update(trainer, *arguments)
        if trainer.update == update:
            raise KeyboardInterrupt

    def interrupted_at_once(trainer: Trainer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_end_update", interrupted)
    if update == 0:
        monkeypatch.setattr(Trainer, "_validate", interrupted_at_once)
    ended = numa_rl("train", "--scenario", small, *QUICK)
    assert ended.code == INTERRUPTED == 130
    assert "numa-rl train --resume runs/small" in ended.out
    assert "Traceback" not in ended.err
    monkeypatch.setattr(Trainer, "_end_update", end_update)
    monkeypatch.setattr(Trainer, "_validate", validate)
    ended = numa_rl("train", "--resume", "runs/small")
    assert (ended.code, ended.err) == (0, "")
    assert read_tensors(Path("runs/small/checkpoint.safetensors"))[1]["update"] == 4


def test_resuming_a_folder_without_a_run_is_refused(numa_rl):
    Path("empty").mkdir()
    for folder in ("empty", "none"):
        refused(numa_rl("train", "--resume", folder), "--resume must be the folder of a run", f"'{folder}'")
        assert not Path(folder, "run.json").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("scenario"),
        lambda content: content.pop("config"),
        lambda content: content.update(train_episodes=None),
        lambda content: content.update(config=[]),
        lambda content: content["config"].update(depth=3),
        lambda content: content["config"]["teacher"].update(depth="deep"),
        lambda content: content["config"]["ppo"].pop("gamma") and content["config"]["ppo"].update(gama=0.9),
        lambda content: content["config"]["ppo"].update(n_steps=0),
        lambda content: content.update(train_episodes="abc"),
    ],
)
def test_a_damaged_note_of_a_run_is_refused(numa_rl, small, trained, change):
    note = trained / "run.json"
    content = json.loads(note.read_text())
    change(content)
    note.write_text(json.dumps(content))
    refused(numa_rl("train", "--resume", trained), f"{note}: must")


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(numa_rl, small):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    refused(numa_rl("train", "--scenario", small, "--out", "runs/x", "--device", "cuda"), "device must be one that is")
    assert not Path("runs").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000])
def test_a_note_that_is_no_json_object_is_refused(numa_rl, text):
    Path("old").mkdir()
    Path("old/run.json").write_text(text)
    refused(numa_rl("train", "--resume", "old"), "old/run.json: ")


def test_a_damaged_checkpoint_is_refused(numa_rl, small, trained):
    path = trained / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    ended = numa_rl("train", "--resume", trained)
    assert ended.code == BAD_INPUT
    assert ended.err.count("\n") == 1
    assert "checkpoint.safetensors: not a safetensors file, or a damaged one" in ended.err


# The suite.


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[TrainingConfig, int]]:
    """What the suite's training was asked for, in place of the hours it takes."""
    found = []

    def suite_course(config: TrainingConfig, validation_episodes: int, *others: object) -> NoReturn:
        found.append((config, validation_episodes))
        raise ValueError("as far as the training")

    monkeypatch.setattr("experiments.suite.train.suite_course", suite_course)
    return found


@pytest.mark.parametrize(
    ("option", "value", "default"),
    [
        ("--train-episodes", "64", "512"),
        ("--teacher.num-rows", "64", "256"),
        *((f"--ppo.{name}", value, default) for name, value, default in [
            ("total-timesteps", "0", "524288"), ("num-envs", "128", "256"), ("n-steps", "256", "128"),
            ("batch-size", "128", "4096"), ("n-epochs", "2", "1"), ("learning-rate", "0.001", "3e-05"),
            ("gamma", "0.5", "0.98"), ("gae-lambda", "0.5", "0.95"), ("clip-range", "0.5", "0.2"),
            ("ent-coef", "0.5", "0.0"), ("target-kl", "0.5", "0.01"),
        ]),
    ],
)  # fmt: skip
def test_what_training_on_the_suite_would_ignore_is_refused(numa_rl, asked, option, value, default):
    rule = f"{option} must stay {default}, its default, with --scenario suite, which makes no use of it, got {value}."
    refused(numa_rl("train", "--scenario", "suite", "--seed", 1, option, value), rule)
    assert asked == []
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("option", "value", "default"),
    [("--teacher.lessons", "8", "64"), ("--teacher.drawn-share", "0.1", "0.5"), ("--teacher.averaging", "0.5", "0.9")],
)
def test_what_training_on_one_scenario_would_ignore_is_refused(numa_rl, option, value, default):
    rule = f"{option} must stay {default}, its default, with one scenario, which makes no use of it, got {value}."
    refused(numa_rl("train", "--scenario", "stream-cube", option, value), rule)
    assert not Path("runs").exists()


def test_the_suite_is_not_trained_without_its_only_phase(numa_rl, asked):
    refused(
        numa_rl("train", "--scenario", "suite", "--teacher.labels", 0),
        "--teacher.labels must be >= 1 with --scenario suite, which the teacher alone trains, got 0.",
    )
    assert asked == []


def test_the_suite_takes_all_other_options_and_defaults_that_are_given(numa_rl, asked):
    ended = numa_rl("train", "--scenario", "suite", "--seed", 1, "--teacher.lessons", 3, "--node-width", 6,
                    "--validation-episodes", 30, "--ppo.gamma", 0.98, "--train-episodes", 512)  # fmt: skip
    refused(ended, "as far as the training")
    ((config, validation_episodes),) = asked
    assert (config.seed, config.teacher.lessons, config.node_width, validation_episodes) == (1, 3, 6, 30)


def test_a_run_on_the_suite_goes_on_though_it_was_begun_with_options_it_ignores(numa_rl, asked):
    config = TrainingConfig(ppo=PPOConfig(gamma=0.5))
    prepare(Path("old"), Train(scenario="suite", train_episodes=64, config=config))
    refused(numa_rl("train", "--resume", "old"), "as far as the training")
    assert asked == [(config, 64)]

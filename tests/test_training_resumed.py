"""A run that is interrupted or killed goes on as if it had not been, and what does not fit it is refused."""

import math
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import CONFIG, PPO, RULE, TEACHER, Stop, make_trainer, same_checkpoint, whole_run

from agents.ppo import training
from agents.ppo.config import as_json
from agents.ppo.storage import read_tensors, write_tensors
from agents.ppo.training import Progress, Trainer

ABOUT = {"scenario": "tiny", "config": as_json(CONFIG)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, list[Progress]]:
    """A run that nobody interrupted, and what it reported."""
    return whole_run(tmp_path_factory.mktemp("whole"))


# Interrupted.


@pytest.mark.parametrize("update", [1, 2, 3, 4, 5, 6])
def test_an_interrupted_run_ends_as_if_it_had_not_been(whole, tmp_path, without_pictures, update):
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, on_progress=Stop(update)).run()
    resumed = make_trainer(tmp_path)
    resumed.resume()
    assert resumed.update == update - 1  # the update that was interrupted is done again
    resumed.run()
    assert resumed.best_cost == whole[0].best_cost
    ours, theirs = resumed.policy.scorer.state_dict(), whole[0].policy.scorer.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert same_checkpoint(resumed.checkpoint_path, whole[0].checkpoint_path)
    assert resumed.policy_path.read_bytes() == whole[0].policy_path.read_bytes()
    assert not (tmp_path / "labels").exists()
    episodes, all_episodes = (
        [(episode["r"], episode["l"]) for episode in trainer.model.ep_info_buffer] for trainer in (resumed, whole[0])
    )
    assert episodes  # those cut in two by the interruption are counted whole
    assert episodes == all_episodes[-len(episodes) :]


@pytest.mark.parametrize("memory", [2, 5])
def test_an_interrupted_teacher_remembers_its_labels(tmp_path, without_pictures, memory):
    teacher = replace(TEACHER, labels=4 * 32, memory=memory)
    config = replace(CONFIG, teacher=teacher, ppo=replace(PPO, total_timesteps=0))
    reference = make_trainer(tmp_path / "reference", config)
    reference.run()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "stopped", config, on_progress=Stop(4)).run()
    resumed = make_trainer(tmp_path / "stopped", config)
    resumed.resume()
    assert len(resumed.teacher.memory) == min(memory, 3)
    resumed.run()
    assert same_checkpoint(resumed.checkpoint_path, reference.checkpoint_path)


def test_a_run_may_be_interrupted_again_and_again(whole, tmp_path, without_pictures):
    trainer = make_trainer(tmp_path, on_progress=Stop(1))
    for update in (2, 4, 5):
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
        trainer = make_trainer(tmp_path, on_progress=Stop(update))
        trainer.resume()
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    trainer = make_trainer(tmp_path)
    trainer.resume()
    trainer.run()
    assert same_checkpoint(trainer.checkpoint_path, whole[0].checkpoint_path)


@pytest.mark.parametrize("where", ["_label_once", "learn", "train", "collect_rollouts"])
def test_an_interruption_within_an_update_costs_only_that_update(whole, tmp_path, monkeypatch, without_pictures, where):
    owner: Any = {"_label_once": training.RolloutTeacher, "learn": training.RolloutTeacher}.get(where, training.PPO)
    name = "update" if where == "learn" else where
    original, calls = getattr(owner, name), []

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        result = original(*args, **kwargs)
        if len(calls) == (4 if where == "_label_once" else 2):
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, sometimes)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path).run()
    monkeypatch.setattr(owner, name, original)
    resumed = make_trainer(tmp_path)
    resumed.resume()
    assert resumed.update == (1 if owner is training.RolloutTeacher else 4)
    resumed.run()
    assert same_checkpoint(resumed.checkpoint_path, whole[0].checkpoint_path)


@pytest.mark.parametrize(("saved_at", "killed_at"), [(0, 2), (1, 3), (2, 4), (2, 5), (3, 5), (4, 6)])
def test_a_killed_run_goes_on_from_its_last_checkpoint(
    whole, tmp_path, monkeypatch, without_pictures, saved_at, killed_at
):
    # A kill writes nothing more: what is on disk then is copied, and the run of the copy goes on.
    monkeypatch.setattr(training, "SAVE_EVERY_S", math.inf)

    def on_progress(progress: Progress) -> None:
        if progress.update == killed_at:
            shutil.copytree(tmp_path / "run", tmp_path / "copy")

    trainer = make_trainer(tmp_path / "run", on_progress=on_progress)
    begin = trainer._begin_update

    def begin_and_save(rows: Any) -> None:
        begin(rows)
        if trainer.update == saved_at:
            trainer._write_checkpoint()

    trainer._begin_update = begin_and_save  # type: ignore[method-assign]
    trainer.run()
    resumed = make_trainer(tmp_path / "copy")
    resumed.resume()
    assert resumed.update == saved_at
    resumed.run()
    assert same_checkpoint(resumed.checkpoint_path, whole[0].checkpoint_path)


def test_a_finished_run_has_nothing_left_to_do(whole, tmp_path, without_pictures):
    shutil.copytree(whole[0].folder, tmp_path / "copy")
    seen: list[Progress] = []
    trainer = make_trainer(tmp_path / "copy", on_progress=seen.append)
    trainer.resume()
    trainer.run()
    assert not seen
    assert same_checkpoint(trainer.checkpoint_path, whole[0].checkpoint_path)


def test_checkpoints_are_written_while_a_run_goes_on(tmp_path, monkeypatch, without_pictures):
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    found = []

    def on_progress(progress: Progress) -> None:
        found.append(read_tensors(tmp_path / "checkpoint.safetensors")[1]["update"])

    make_trainer(tmp_path, on_progress=on_progress).run()
    assert found == [0, 1, 2, 3, 4, 5]
    assert read_tensors(tmp_path / "checkpoint.safetensors")[1]["update"] == 6


# What cannot be taken up.


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KeyboardInterrupt):
        make_trainer(folder, on_progress=Stop(2)).run()
    return folder


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """The folder of a run stopped after its second update, to spoil."""
    return shutil.copytree(stopped_once, tmp_path / "run")


def refused(trainer: Trainer, rule: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=rule) as caught:
            trainer.resume()
    assert str(trainer.folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    refused(make_trainer(tmp_path), r"checkpoint\.safetensors: no such file")


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, seed=4),
        replace(CONFIG, node_width=9),
        replace(CONFIG, teacher=replace(TEACHER, depth=5)),
        replace(CONFIG, ppo=replace(PPO, gamma=0.9)),
    ],
)
def test_another_configuration_is_refused(stopped, config):
    refused(make_trainer(stopped, config), r"config must be .* to go on, got ")


def test_another_scenario_is_refused(stopped):
    refused(
        make_trainer(stopped, about=ABOUT | {"scenario": "other"}), r"scenario must be 'other' to go on, got 'tiny'"
    )


def test_another_prior_is_refused(stopped):
    refused(
        make_trainer(stopped, rule=replace(RULE, crowding_price=4.0)), r"policy must be .*4\.0.* to go on, got .*3\.0"
    )


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(stopped, share):
    path = stopped / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(make_trainer(stopped), r"not a safetensors file, or a damaged one")


def test_a_policy_is_no_checkpoint(stopped):
    shutil.copy(stopped / "policy.safetensors", stopped / "checkpoint.safetensors")
    refused(make_trainer(stopped), r"a checkpoint must say format 'numa-rl checkpoint 1', got 'numa-rl policy 1'")


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], Any]) -> None:
    tensors, about = read_tensors(folder / "checkpoint.safetensors")
    change(tensors, about)
    write_tensors(folder / "checkpoint.safetensors", tensors, about)


@pytest.mark.parametrize("name", ["update", "best_cost", "last_cost", "n_updates"])
@pytest.mark.parametrize("value", [None, "1", True, [1]])
def test_where_a_run_stands_must_be_numbers(stopped, name, value):
    spoil(stopped, lambda tensors, about: about.update({name: value}))
    refused(make_trainer(stopped), rf"{name} must be a number, got")


@pytest.mark.parametrize("value", [-1, 7, 10**30, 0.5, math.inf, math.nan])
def test_a_run_stands_at_one_of_its_updates(stopped, value):
    spoil(stopped, lambda tensors, about: about.update(update=value))
    refused(make_trainer(stopped), r"update must be a whole number in 0\.\.6, got ")


@pytest.mark.parametrize("value", [-1, 0.5, math.inf, math.nan])
def test_gradient_epochs_are_counted_in_whole_numbers(stopped, value):
    spoil(stopped, lambda tensors, about: about.update(n_updates=value))
    refused(make_trainer(stopped), r"n_updates must be a whole number in 0\.\.")


FEW = torch.zeros(3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda tensors: tensors.pop("policy.score.weight"), "weights must be"),
        (lambda tensors: tensors.update({"policy.score.weight": torch.full((1, 6), math.nan)}), "must be finite"),
        (lambda tensors: tensors.update({"policy.score.weight": torch.zeros(1, 7)}), r"'score\.weight' must be"),
        (lambda tensors: tensors.pop("rows.task"), "state of the environments must fit this configuration"),
        (lambda tensors: tensors.update({"rows.task": FEW}), "state of the environments"),
        (lambda tensors: tensors.update({"rows.more": FEW}), "state of the environments"),
        (lambda tensors: tensors.update({"rows.task": tensors["rows.task"].float()}), "state of the environments"),
        (lambda tensors: tensors.update({"teacher.99.exp_avg": FEW}), "optimiser teacher has no place for '99"),
        (lambda tensors: tensors.update({"teacher.0.other": FEW}), r"optimiser teacher has no place for '0\.other'"),
        (lambda tensors: tensors.update({"teacher.1.exp_avg": FEW}), r"no place for '1\.exp_avg' of shape \(3,\)"),
        (lambda tensors: tensors.pop("teacher.0.exp_avg"), r"optimiser teacher must have .* of parameter 0, got"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(stopped, change, rule):
    spoil(stopped, lambda tensors, about: change(tensors))
    refused(make_trainer(stopped), rule)


@pytest.mark.parametrize("spoilt", ["missing", "truncated", "foreign", "incomplete"])
def test_damaged_labels_are_refused(stopped, spoilt):
    (path,) = sorted((stopped / "labels").iterdir())[:1]
    tensors, about = read_tensors(path)
    if spoilt == "missing":
        path.unlink()
    elif spoilt == "truncated":
        path.write_bytes(path.read_bytes()[:-3])
    elif spoilt == "foreign":
        write_tensors(path, tensors, {"format": "other"})
    else:
        write_tensors(path, {"0.cost": tensors["0.cost"]}, about)
    refused(make_trainer(stopped), r"no such file|damaged one|must hold labels of the teacher")

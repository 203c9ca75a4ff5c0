"""A run from prior to kept policy: what it writes, and that an interruption leaves no trace in the result."""

import math
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from agents.evaluation import evaluate
from agents.ppo import training
from agents.ppo.config import PPOConfig, TeacherConfig, TrainingConfig, as_json
from agents.ppo.dashboard import Dashboard
from agents.ppo.storage import load_policy, read_tensors, write_tensors
from agents.ppo.training import Progress, Trainer
from agents.rules.catalog import make_rule
from agents.rules.greedy import PricedGreedy
from envs.world import World
from experiments.scenario import Split, load_scenario
from experiments.tune import world_of
from numa_rl.metrics import MEANINGS

torch.set_num_threads(1)

TOML = """
description = "A stream too short to learn much from"
machine = "chapter-4-socket"

[workload]
family = "synthetic"
num_tasks = 20
num_objects = 8

[reward]
reference_s = 0.05

[simulation]
window_s = 0.2
"""

CONFIG_TAG = "custom_scalars__config__"
RULE = PricedGreedy(congestion_price=0.5, crowding_price=3.0)
TEACHER = TeacherConfig(
    labels=96, labels_per_update=32, num_rows=16, num_candidates=4, num_random=1, depth=4, stride=2, memory=1,
    batch_size=16, learning_rate=0.02, num_threads=1,
)  # fmt: skip
PPO = PPOConfig(total_timesteps=3 * 96, num_envs=6, n_steps=16, batch_size=48, n_epochs=2, learning_rate=0.005)
CONFIG = TrainingConfig(seed=3, node_width=8, pair_width=6, validate_every=2, teacher=TEACHER, ppo=PPO)
ABOUT = {"scenario": "tiny", "config": as_json(CONFIG)}

COSTS = {f"cost/{part}" for part in ("total", "reward", "exec", "comm", "wait", "imbalance")}
RULES = {"rules/learned", "rules/kept", "rules/priced-greedy", "rules/greedy", "gap/learned", "gap/kept"}
PER_100 = {f"placement/{name}_per_100" for name in ("migrations", "fallbacks", "out_of_memory")}
LEARNING = {f"train/{name}" for name in ("teacher_loss", "entropy", "explained_variance", "approx_kl", "value_loss")}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, World]:
    """Episodes to learn from and to choose by."""
    path = tmp_path_factory.mktemp("scenario") / "tiny.toml"
    path.write_text(TOML)
    scenario = load_scenario(path)
    return world_of(scenario, Split.TRAIN, 8, 0), world_of(scenario, Split.VALIDATION, 4, 0)


@pytest.fixture(scope="module")
def rule_costs(worlds: tuple[World, World]) -> dict[str, float]:
    return {rule.name: float(evaluate(rule, worlds[1]).cost.mean()) for rule in (RULE, make_rule("greedy"))}


@pytest.fixture(scope="module")
def make(worlds: tuple[World, World], rule_costs: dict[str, float]) -> Callable[..., Trainer]:
    def trainer(folder: Path, config: TrainingConfig = CONFIG, rule: PricedGreedy = RULE, **changes: Any) -> Trainer:
        about = {"scenario": "tiny", "config": as_json(config)}
        return Trainer(*worlds, rule, rule_costs, config, folder, **{"about": about, **changes})

    return trainer


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Event files take most of the time of a run this small."""
    monkeypatch.setattr(Dashboard, "write", lambda self, step, values, totals: totals.clear())


@pytest.fixture(scope="module")
def whole(make: Callable[..., Trainer], tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, list[Progress]]:
    """A run that nobody interrupted, and what it reported."""
    seen: list[Progress] = []
    trainer = make(tmp_path_factory.mktemp("whole"), on_progress=seen.append)
    trainer.dashboard.describe({"seed": 3, "ppo.gamma": 0.98})
    trainer.run()
    return trainer, seen


def same_checkpoint(one: Path, two: Path) -> bool:
    """Whether two runs stand at the same place to the last bit: weights, optimisers, environments, costs."""
    (tensors, about), (others, other_about) = read_tensors(one), read_tensors(two)
    return about == other_about and {name: tensor.numpy().tobytes() for name, tensor in tensors.items()} == {
        name: tensor.numpy().tobytes() for name, tensor in others.items()
    }


class Stop:
    """Ctrl-C when so many updates are done."""

    def __init__(self, update: int) -> None:
        self.update = update
        self.phases: list[str] = []

    def __call__(self, progress: Progress) -> None:
        self.phases.append(progress.phase)
        if progress.update == self.update:
            raise KeyboardInterrupt


# A whole run.


def test_a_run_writes_a_policy_a_checkpoint_and_events_and_nothing_else(whole):
    folder = whole[0].folder
    names = sorted(path.name.partition(".tfevents")[0] for path in folder.iterdir())
    assert names == ["checkpoint.safetensors", "events.out", "policy.safetensors"]


def test_every_update_is_reported(whole):
    _, seen = whole
    assert [(progress.update, progress.phase) for progress in seen] == [
        (1, "teacher"), (2, "teacher"), (3, "teacher"), (4, "ppo"), (5, "ppo"), (6, "ppo")
    ]  # fmt: skip
    assert [progress.decisions for progress in seen] == [32, 64, 96, 192, 288, 384]
    assert {progress.num_updates for progress in seen} == {6}
    assert all(progress.decisions_per_s > 0 for progress in seen)
    assert all(progress.best_gap <= progress.gap for progress in seen)


def test_what_is_kept_is_no_worse_than_the_rule_on_validation_episodes(whole, worlds, rule_costs):
    trainer, seen = whole
    learned, about = load_policy(trainer.policy_path)
    cost = float(evaluate(learned, worlds[1]).cost.mean())
    assert cost == pytest.approx(trainer.best_cost, rel=1e-12)
    assert cost <= rule_costs["priced-greedy"]
    assert about["validation_cost"] == trainer.best_cost
    assert about["scenario"] == "tiny"
    assert about["config"]["crowding_price"] == 3.0
    assert seen[-1].best_gap == pytest.approx(cost / min(rule_costs.values()) - 1.0)


def test_the_untrained_policy_costs_what_the_rule_costs(make, tmp_path, worlds, rule_costs):
    trainer = make(tmp_path)
    trainer._validate()
    assert trainer.best_cost == pytest.approx(rule_costs["priced-greedy"], rel=1e-6)
    assert load_policy(trainer.policy_path)[1]["update"] == 0


def test_both_phases_change_the_weights(whole, make, tmp_path, without_pictures):
    trainer = make(tmp_path / "stopped", on_progress=Stop(3))
    begun = {name: tensor.clone() for name, tensor in trainer.policy.scorer.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    taught = trainer.policy.scorer.state_dict()
    ended = whole[0].policy.scorer.state_dict()
    for name in ("score.weight", "encode.weight", "pair.weight", "log_price"):
        assert not torch.equal(begun[name], taught[name]), name
        assert not torch.equal(taught[name], ended[name]), name


def test_a_run_that_only_gets_worse_keeps_the_prior(make, tmp_path, worlds, rule_costs, monkeypatch, without_pictures):
    update = training.RolloutTeacher.update

    def harm(teacher: training.RolloutTeacher, *args: Any) -> float:
        loss = update(teacher, *args)
        scorer = teacher.policy.scorer
        with torch.no_grad():  # the costliest placement scores highest
            for layer in (scorer.as_task_node, scorer.as_data_node, scorer.pair, scorer.score):
                for parameter in layer.parameters():
                    parameter.zero_()
            scorer.pair.weight[0, -2] = scorer.score.weight[0, 0] = 100.0  # the cost ratio is the last feature but one
        return loss

    monkeypatch.setattr(training.RolloutTeacher, "update", harm)
    trainer = make(tmp_path, replace(CONFIG, ppo=replace(PPO, total_timesteps=0)))
    trainer.run()
    assert trainer.last_cost > 1.5 * rule_costs["priced-greedy"]
    learned, about = load_policy(trainer.policy_path)
    assert about["update"] == 0
    assert evaluate(learned, worlds[1]).cost.mean() == pytest.approx(rule_costs["priced-greedy"], rel=1e-6)


def test_one_seed_gives_the_same_weights_and_another_does_not(whole, make, tmp_path, without_pictures):
    again, other = make(tmp_path / "again"), make(tmp_path / "other", replace(CONFIG, seed=4))
    again.run()
    other.run()
    assert same_checkpoint(whole[0].checkpoint_path, again.checkpoint_path)
    assert again.policy_path.read_bytes() == whole[0].policy_path.read_bytes()
    ours, theirs = (trainer.policy.scorer.state_dict()["score.weight"] for trainer in (again, other))
    assert not torch.equal(ours, theirs)


@pytest.mark.parametrize("left_out", ["teacher", "ppo"])
def test_either_phase_can_be_left_out(make, tmp_path, without_pictures, left_out):
    none = {"teacher": replace(TEACHER, labels=0), "ppo": replace(PPO, total_timesteps=0)}[left_out]
    config, phases = replace(CONFIG, **{left_out: none}), Stop(0)
    trainer = make(tmp_path, config, on_progress=phases)
    trainer.run()
    assert phases.phases == ["ppo" if left_out == "teacher" else "teacher"] * 3
    assert math.isfinite(trainer.best_cost)
    again = make(tmp_path, config)
    again.resume()
    again.run()
    assert same_checkpoint(trainer.checkpoint_path, again.checkpoint_path)


# Interrupted.


@pytest.mark.parametrize("update", [1, 2, 3, 4, 5, 6])
def test_an_interrupted_run_ends_as_if_it_had_not_been(whole, make, tmp_path, without_pictures, update):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, on_progress=Stop(update)).run()
    resumed = make(tmp_path)
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
def test_an_interrupted_teacher_remembers_its_labels(make, tmp_path, without_pictures, memory):
    teacher = replace(TEACHER, labels=4 * 32, memory=memory)
    config = replace(CONFIG, teacher=teacher, ppo=replace(PPO, total_timesteps=0))
    reference = make(tmp_path / "reference", config)
    reference.run()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "stopped", config, on_progress=Stop(4)).run()
    resumed = make(tmp_path / "stopped", config)
    resumed.resume()
    assert len(resumed.teacher.memory) == min(memory, 3)
    resumed.run()
    assert same_checkpoint(resumed.checkpoint_path, reference.checkpoint_path)


def test_a_run_may_be_interrupted_again_and_again(whole, make, tmp_path, without_pictures):
    trainer = make(tmp_path, on_progress=Stop(1))
    for update in (2, 4, 5):
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
        trainer = make(tmp_path, on_progress=Stop(update))
        trainer.resume()
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    trainer = make(tmp_path)
    trainer.resume()
    trainer.run()
    assert same_checkpoint(trainer.checkpoint_path, whole[0].checkpoint_path)


@pytest.mark.parametrize("where", ["label", "learn", "train", "collect_rollouts"])
def test_an_interruption_within_an_update_costs_only_that_update(
    whole, make, tmp_path, monkeypatch, without_pictures, where
):
    owner: Any = {"label": training.RolloutTeacher, "learn": training.RolloutTeacher}.get(where, training.PPO)
    name = "update" if where == "learn" else where
    original, calls = getattr(owner, name), []

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        result = original(*args, **kwargs)
        if len(calls) == (4 if where == "label" else 2):
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, sometimes)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path).run()
    monkeypatch.setattr(owner, name, original)
    resumed = make(tmp_path)
    resumed.resume()
    assert resumed.update == (1 if owner is training.RolloutTeacher else 4)
    resumed.run()
    assert same_checkpoint(resumed.checkpoint_path, whole[0].checkpoint_path)


@pytest.mark.parametrize(("saved_at", "killed_at"), [(0, 2), (1, 3), (2, 4), (2, 5), (3, 5), (4, 6)])
def test_a_killed_run_goes_on_from_its_last_checkpoint(
    whole, make, tmp_path, monkeypatch, without_pictures, saved_at, killed_at
):
    # A kill writes nothing more: what is on disk then is copied, and the run of the copy goes on.
    monkeypatch.setattr(training, "SAVE_EVERY_S", math.inf)

    def on_progress(progress: Progress) -> None:
        if progress.update == killed_at:
            shutil.copytree(tmp_path / "run", tmp_path / "copy")

    trainer = make(tmp_path / "run", on_progress=on_progress)
    begin = trainer._begin_update

    def begin_and_save(rows: Any) -> None:
        begin(rows)
        if trainer.update == saved_at:
            trainer._write_checkpoint()

    trainer._begin_update = begin_and_save  # type: ignore[method-assign]
    trainer.run()
    resumed = make(tmp_path / "copy")
    resumed.resume()
    assert resumed.update == saved_at
    resumed.run()
    assert same_checkpoint(resumed.checkpoint_path, whole[0].checkpoint_path)


def test_a_finished_run_has_nothing_left_to_do(whole, make, tmp_path, without_pictures):
    shutil.copytree(whole[0].folder, tmp_path / "copy")
    seen: list[Progress] = []
    trainer = make(tmp_path / "copy", on_progress=seen.append)
    trainer.resume()
    trainer.run()
    assert not seen
    assert same_checkpoint(trainer.checkpoint_path, whole[0].checkpoint_path)


def test_checkpoints_are_written_while_a_run_goes_on(make, tmp_path, monkeypatch, without_pictures):
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    found = []

    def on_progress(progress: Progress) -> None:
        found.append(read_tensors(tmp_path / "checkpoint.safetensors")[1]["update"])

    make(tmp_path, on_progress=on_progress).run()
    assert found == [0, 1, 2, 3, 4, 5]
    assert read_tensors(tmp_path / "checkpoint.safetensors")[1]["update"] == 6


# What cannot be taken up.


@pytest.fixture(scope="module")
def stopped_once(make: Callable[..., Trainer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KeyboardInterrupt):
        make(folder, on_progress=Stop(2)).run()
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


def test_a_folder_without_a_checkpoint_is_refused(make, tmp_path):
    refused(make(tmp_path), r"checkpoint\.safetensors: no such file")


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, seed=4),
        replace(CONFIG, node_width=9),
        replace(CONFIG, teacher=replace(TEACHER, depth=5)),
        replace(CONFIG, ppo=replace(PPO, gamma=0.9)),
    ],
)
def test_another_configuration_is_refused(make, stopped, config):
    refused(make(stopped, config), r"config must be .* to go on, got ")


def test_another_scenario_is_refused(make, stopped):
    refused(make(stopped, about=ABOUT | {"scenario": "other"}), r"scenario must be 'other' to go on, got 'tiny'")


def test_another_prior_is_refused(make, stopped):
    refused(make(stopped, rule=replace(RULE, crowding_price=4.0)), r"policy must be .*4\.0.* to go on, got .*3\.0")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(make, stopped, share):
    path = stopped / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(make(stopped), r"not a safetensors file, or a damaged one")


def test_a_policy_is_no_checkpoint(make, stopped):
    shutil.copy(stopped / "policy.safetensors", stopped / "checkpoint.safetensors")
    refused(make(stopped), r"a checkpoint must say format 'numa-rl checkpoint 1', got 'numa-rl policy 1'")


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], Any]) -> None:
    tensors, about = read_tensors(folder / "checkpoint.safetensors")
    change(tensors, about)
    write_tensors(folder / "checkpoint.safetensors", tensors, about)


@pytest.mark.parametrize("name", ["update", "best_cost", "last_cost", "n_updates"])
@pytest.mark.parametrize("value", [None, "1", True, [1]])
def test_where_a_run_stands_must_be_numbers(make, stopped, name, value):
    spoil(stopped, lambda tensors, about: about.update({name: value}))
    refused(make(stopped), rf"{name} must be a number, got")


@pytest.mark.parametrize("value", [-1, 7, 10**30, 0.5, math.inf, math.nan])
def test_a_run_stands_at_one_of_its_updates(make, stopped, value):
    spoil(stopped, lambda tensors, about: about.update(update=value))
    refused(make(stopped), r"update must be a whole number in 0\.\.6, got ")


@pytest.mark.parametrize("value", [-1, 0.5, math.inf, math.nan])
def test_gradient_epochs_are_counted_in_whole_numbers(make, stopped, value):
    spoil(stopped, lambda tensors, about: about.update(n_updates=value))
    refused(make(stopped), r"n_updates must be a whole number in 0\.\.")


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
def test_a_checkpoint_that_does_not_fit_is_refused(make, stopped, change, rule):
    spoil(stopped, lambda tensors, about: change(tensors))
    refused(make(stopped), rule)


@pytest.mark.parametrize("spoilt", ["missing", "truncated", "foreign", "incomplete"])
def test_damaged_labels_are_refused(make, stopped, spoilt):
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
    refused(make(stopped), r"no such file|damaged one|must hold labels of the teacher")


# What TensorBoard shows.


@pytest.fixture(scope="module")
def events(whole: tuple[Trainer, list[Progress]]) -> EventAccumulator:
    accumulator = EventAccumulator(str(whole[0].folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def test_events_hold_costs_placements_rules_gaps_and_learning(events):
    scalars = set(events.Tags()["scalars"])
    assert scalars >= COSTS | RULES | PER_100 | LEARNING | {f"metrics/{name}" for name in MEANINGS}
    assert {"placement/remote_ratio", "train/loss", "train/clip_fraction"} <= scalars
    for name in scalars:
        assert all(math.isfinite(event.value) for event in events.Scalars(name)), name


def test_costs_are_shown_for_every_update_of_both_phases(events):
    for name in COSTS | PER_100:
        assert [event.step for event in events.Scalars(name)] == [32, 64, 96, 192, 288, 384], name
    assert [event.step for event in events.Scalars("train/teacher_loss")] == [32, 64, 96]
    assert [event.step for event in events.Scalars("train/entropy")] == [192, 288, 384]


def test_the_shown_parts_add_up_to_the_cost(events, worlds):
    alpha, beta = worlds[0].weights.alpha, worlds[0].weights.beta
    values = {name: np.array([event.value for event in events.Scalars(name)]) for name in COSTS}
    dropped = np.array([event.value for event in events.Scalars("placement/out_of_memory_per_100")])
    assert not dropped.any()
    total = values["cost/exec"] + alpha * values["cost/comm"] + beta * values["cost/imbalance"]
    np.testing.assert_allclose(values["cost/total"], total, rtol=1e-5)
    np.testing.assert_allclose(values["cost/reward"], -total, rtol=1e-5)
    assert (values["cost/wait"] <= values["cost/exec"]).all()
    assert values["cost/total"].min() > 0


def test_the_policy_is_shown_beside_the_rules_whenever_it_is_validated(events, whole, rule_costs):
    steps = [0, 64, 192, 384]  # before the first update, and after every second one
    for name in RULES:
        assert [event.step for event in events.Scalars(name)] == steps, name
    for name, cost in rule_costs.items():
        assert events.Scalars(f"rules/{name}")[0].value == pytest.approx(cost, rel=1e-6)
    kept = [event.value for event in events.Scalars("rules/kept")]
    learned = [event.value for event in events.Scalars("rules/learned")]
    assert kept == [min(learned[: count + 1]) for count in range(4)]
    assert kept[-1] == pytest.approx(whole[0].best_cost, rel=1e-6)
    gap = min(learned) / min(rule_costs.values()) - 1.0
    assert events.Scalars("gap/kept")[-1].value == pytest.approx(gap, abs=1e-6)


def test_gaps_are_those_of_the_policy_as_it_stands_and_of_the_one_that_is_kept(make, tmp_path, rule_costs):
    dashboard = make(tmp_path).dashboard
    best = min(rule_costs.values())
    dashboard.validated(7, 1.5 * best, 0.9 * best)
    dashboard.flush()
    events = EventAccumulator(str(tmp_path)).Reload()
    shown = {name: events.Scalars(name)[0].value for name in RULES}
    assert shown["gap/learned"] == pytest.approx(0.5, abs=1e-6)
    assert shown["gap/kept"] == pytest.approx(-0.1, abs=1e-6)
    assert shown["rules/learned"] == pytest.approx(1.5 * best, rel=1e-6)
    assert shown["rules/kept"] == pytest.approx(0.9 * best, rel=1e-6)


def test_every_update_shows_only_what_happened_in_it(make, tmp_path):
    trainer = make(tmp_path)
    trainer.env.reset()
    trainer.env.step(np.zeros((PPO.num_envs, 2), int))
    assert trainer.env.totals.decisions == PPO.num_envs
    trainer.dashboard.write(1, {}, trainer.env.totals)
    assert trainer.env.totals.decisions == 0


def test_maps_of_placements_and_traffic_are_pictures(events):
    for name in ("maps/placements", "maps/traffic"):
        pictures = events.Images(name)
        assert [picture.step for picture in pictures] == [32, 64, 96, 192, 288, 384]
        assert pictures[0].width > 200
        assert pictures[0].encoded_image_string.startswith(b"\x89PNG")


def test_every_chart_of_the_dashboards_has_something_to_show(events):
    layout = layout_pb2.Layout()
    layout.ParseFromString(events.Tensors(CONFIG_TAG)[0].tensor_proto.string_val[0])
    titles = {"Against the rules", "Cost", "Placement", "Metrics of the chapter", "Learning"}
    assert {category.title for category in layout.category} == titles
    scalars = events.Tags()["scalars"]
    tags = [tag for category in layout.category for chart in category.chart for tag in chart.multiline.tag]
    assert tags
    assert not [tag for tag in tags if not any(re.fullmatch(tag, name) for name in scalars)]


def test_hyperparameters_are_shown(events):
    assert "_hparams_/session_start_info" in events.summary_metadata
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"ppo.gamma" in content


# Configurations.


@pytest.mark.parametrize(
    ("make_config", "rule"),
    [
        (lambda: TrainingConfig(seed=-1), r"seed must be >= 0, got -1"),
        (lambda: TrainingConfig(validate_every=0), r"validate_every must be >= 1, got 0"),
        (lambda: PPOConfig(total_timesteps=-1), r"ppo: total_timesteps must be >= 0, got -1"),
        (lambda: PPOConfig(num_envs=0), r"ppo: num_envs must be >= 1, got 0"),
        (lambda: PPOConfig(n_steps=-1), r"ppo: n_steps must be >= 1, got -1"),
        (lambda: PPOConfig(n_epochs=0), r"ppo: n_epochs must be >= 1, got 0"),
        (lambda: PPOConfig(batch_size=0), r"ppo: batch_size must be >= [12], got 0"),
        (lambda: PPOConfig(batch_size=1), r"ppo: batch_size must be >= 2, got 1"),
        (lambda: PPOConfig(num_envs=2, n_steps=4, batch_size=9), r"batch_size must be <= num_envs x n_steps \(8\)"),
        (lambda: PPOConfig(learning_rate=0.0), r"ppo: learning_rate must be in \(0, 1\], got 0"),
        (lambda: PPOConfig(learning_rate=math.nan), r"ppo: learning_rate must be in \(0, 1\], got nan"),
        (lambda: PPOConfig(gamma=1.0), r"ppo: gamma must be in \[0, 1\), got 1"),
        (lambda: PPOConfig(gae_lambda=-0.1), r"ppo: gae_lambda must be in \[0, 1\), got -0\.1"),
    ],
)
def test_a_configuration_out_of_range_is_named(make_config, rule):
    with pytest.raises(ValueError, match=rule):
        make_config()


def test_updates_are_counted_up():
    config = replace(CONFIG, teacher=replace(TEACHER, labels=65), ppo=replace(PPO, total_timesteps=97))
    assert (config.num_teacher_updates, config.ppo.rollout, config.num_updates) == (3, 96, 5)

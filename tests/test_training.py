"""A run from prior to kept policy: what it writes, keeps and shows."""

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tiny_training import CONFIG, PPO, TEACHER, Stop, make_trainer, rule_costs, same_checkpoint, whole_run, worlds

from agents.evaluation import evaluate
from agents.ppo import training
from agents.ppo.config import PPOConfig, TrainingConfig
from agents.ppo.storage import load_policy
from agents.ppo.training import Progress, Trainer
from agents.seen import read_seen
from numa_rl.metrics import MEANINGS

CONFIG_TAG = "custom_scalars__config__"
COSTS = {f"cost/{part}" for part in ("total", "reward", "exec", "comm", "wait", "imbalance")}
RULES = {"rules/learned", "rules/kept", "rules/priced-greedy", "rules/greedy", "gap/learned", "gap/kept"}
PER_100 = {f"placement/{name}_per_100" for name in ("migrations", "fallbacks", "out_of_memory")}
LEARNING = {f"train/{name}" for name in ("teacher_loss", "entropy", "explained_variance", "approx_kl", "value_loss")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, list[Progress]]:
    """A run that nobody interrupted, and what it reported."""
    return whole_run(tmp_path_factory.mktemp("whole"))


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


def test_what_is_kept_is_no_worse_than_the_rule_on_validation_episodes(whole):
    trainer, seen = whole
    learned, about = load_policy(trainer.policy_path)
    cost = float(evaluate(learned, worlds()[1]).cost.mean())
    assert cost == pytest.approx(trainer.best_cost, rel=1e-12)
    assert cost <= rule_costs()["priced-greedy"]
    assert about["validation_cost"] == trainer.best_cost
    assert about["scenario"] == "tiny"
    assert about["config"]["crowding_price"] == 3.0
    assert seen[-1].best_gap == pytest.approx(cost / min(rule_costs().values()) - 1.0)


def test_the_learning_rate_falls_from_the_whole_to_one_step_of_it(whole):
    config = PPOConfig(total_timesteps=900, num_envs=10, n_steps=20, batch_size=50, learning_rate=0.01)
    assert config.num_updates == 5
    rates = [config.falling_rate(1.0 - (update + 1) / 5) for update in range(5)]
    assert rates == pytest.approx([0.01, 0.008, 0.006, 0.004, 0.002])
    assert config.falling_rate(-0.1) == pytest.approx(0.002)
    trainer = whole[0]
    assert trainer.policy.optimizer.param_groups[0]["lr"] == pytest.approx(PPO.learning_rate / PPO.num_updates)


def test_one_rollout_teaches_something(tmp_path, without_pictures):
    config = replace(CONFIG, teacher=replace(TEACHER, labels=0), ppo=replace(PPO, total_timesteps=PPO.rollout))
    trainer = make_trainer(tmp_path, config)
    begun = [parameter.detach().clone() for parameter in trainer.policy.parameters()]
    trainer.run()
    changed = zip(begun, trainer.policy.parameters(), strict=True)
    assert any(not torch.equal(before, after) for before, after in changed)


@pytest.mark.parametrize("phase", ["teacher", "ppo"])
def test_what_is_kept_says_what_training_saw(tmp_path, phase, without_pictures):
    changes = {"ppo": {"ppo": replace(PPO, total_timesteps=0)}, "teacher": {"teacher": replace(TEACHER, labels=0)}}
    del changes[phase]
    trainer = make_trainer(tmp_path, replace(CONFIG, **next(iter(changes.values()))))
    trainer.run()
    trainer.best_cost = np.inf
    trainer._validate()
    seen = read_seen(trainer.policy_path)
    assert seen is not None
    rows = trainer.env.rows
    rows.reset()
    groups = rows.observer.layout.split(rows.observe())
    assert seen.contains(groups).mean() > 0.5  # so few states say little of the others
    assert not seen.contains({name: 1e4 * values for name, values in groups.items()}).any()


def test_the_untrained_policy_costs_what_the_rule_costs(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer._validate()
    assert trainer.best_cost == pytest.approx(rule_costs()["priced-greedy"], rel=1e-6)
    assert load_policy(trainer.policy_path)[1]["update"] == 0


def test_both_phases_change_the_weights(whole, tmp_path, without_pictures):
    trainer = make_trainer(tmp_path / "stopped", on_progress=Stop(3))
    begun = {name: tensor.clone() for name, tensor in trainer.policy.scorer.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    taught = trainer.policy.scorer.state_dict()
    ended = whole[0].policy.scorer.state_dict()
    for name in ("score.weight", "encode.weight", "pair.weight", "log_price"):
        assert not torch.equal(begun[name], taught[name]), name
        assert not torch.equal(taught[name], ended[name]), name


def test_a_run_that_only_gets_worse_keeps_the_prior(tmp_path, monkeypatch, without_pictures):
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
    trainer = make_trainer(tmp_path, replace(CONFIG, ppo=replace(PPO, total_timesteps=0)))
    trainer.run()
    assert trainer.last_cost > 1.5 * rule_costs()["priced-greedy"]
    learned, about = load_policy(trainer.policy_path)
    assert about["update"] == 0
    assert evaluate(learned, worlds()[1]).cost.mean() == pytest.approx(rule_costs()["priced-greedy"], rel=1e-6)


def test_one_seed_gives_the_same_weights_and_another_does_not(whole, tmp_path, without_pictures):
    again, other = make_trainer(tmp_path / "again"), make_trainer(tmp_path / "other", replace(CONFIG, seed=4))
    again.run()
    other.run()
    assert same_checkpoint(whole[0].checkpoint_path, again.checkpoint_path)
    assert again.policy_path.read_bytes() == whole[0].policy_path.read_bytes()
    ours, theirs = (trainer.policy.scorer.state_dict()["score.weight"] for trainer in (again, other))
    assert not torch.equal(ours, theirs)


@pytest.mark.parametrize("left_out", ["teacher", "ppo"])
def test_either_phase_can_be_left_out(tmp_path, without_pictures, left_out):
    none = {"teacher": replace(TEACHER, labels=0), "ppo": replace(PPO, total_timesteps=0)}[left_out]
    config, phases = replace(CONFIG, **{left_out: none}), Stop(0)
    trainer = make_trainer(tmp_path, config, on_progress=phases)
    trainer.run()
    assert phases.phases == ["ppo" if left_out == "teacher" else "teacher"] * 3
    assert math.isfinite(trainer.best_cost)
    again = make_trainer(tmp_path, config)
    again.resume()
    again.run()
    assert same_checkpoint(trainer.checkpoint_path, again.checkpoint_path)


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


def test_the_shown_parts_add_up_to_the_cost(events):
    alpha, beta = worlds()[0].weights.alpha, worlds()[0].weights.beta
    values = {name: np.array([event.value for event in events.Scalars(name)]) for name in COSTS}
    dropped = np.array([event.value for event in events.Scalars("placement/out_of_memory_per_100")])
    assert not dropped.any()
    total = values["cost/exec"] + alpha * values["cost/comm"] + beta * values["cost/imbalance"]
    np.testing.assert_allclose(values["cost/total"], total, rtol=1e-5)
    np.testing.assert_allclose(values["cost/reward"], -total, rtol=1e-5)
    assert (values["cost/wait"] <= values["cost/exec"]).all()
    assert values["cost/total"].min() > 0


def test_the_policy_is_shown_beside_the_rules_whenever_it_is_validated(events, whole):
    steps = [0, 64, 192, 384]  # before the first update, and after every second one
    for name in RULES:
        assert [event.step for event in events.Scalars(name)] == steps, name
    for name, cost in rule_costs().items():
        assert events.Scalars(f"rules/{name}")[0].value == pytest.approx(cost, rel=1e-6)
    kept = [event.value for event in events.Scalars("rules/kept")]
    learned = [event.value for event in events.Scalars("rules/learned")]
    assert kept == [min(learned[: count + 1]) for count in range(4)]
    assert kept[-1] == pytest.approx(whole[0].best_cost, rel=1e-6)
    gap = min(learned) / min(rule_costs().values()) - 1.0
    assert events.Scalars("gap/kept")[-1].value == pytest.approx(gap, abs=1e-6)


def test_gaps_are_those_of_the_policy_as_it_stands_and_of_the_one_that_is_kept(tmp_path):
    dashboard = make_trainer(tmp_path).dashboard
    best = min(rule_costs().values())
    dashboard.validated(7, 1.5 * best, 0.9 * best)
    dashboard.flush()
    events = EventAccumulator(str(tmp_path)).Reload()
    shown = {name: events.Scalars(name)[0].value for name in RULES}
    assert shown["gap/learned"] == pytest.approx(0.5, abs=1e-6)
    assert shown["gap/kept"] == pytest.approx(-0.1, abs=1e-6)
    assert shown["rules/learned"] == pytest.approx(1.5 * best, rel=1e-6)
    assert shown["rules/kept"] == pytest.approx(0.9 * best, rel=1e-6)


def test_every_update_shows_only_what_happened_in_it(tmp_path):
    trainer = make_trainer(tmp_path)
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

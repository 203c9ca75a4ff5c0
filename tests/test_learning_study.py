"""The study of learning: every variant differs in one thing, runs are paired by seed, and none is done twice."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.ppo.config import PPOConfig
from agents.ppo.storage import load_policy
from experiments.studies import learning_run
from experiments.studies.learning import Learning, sheet
from experiments.studies.learning_noise import fit_value_head, noise_over_signal, noise_scale
from experiments.studies.learning_variants import BASELINE, Variant, variants

torch.set_num_threads(1)

TOML = """
description = "A stream too short to learn much from"
machine = "chapter-2-socket"

[workload]
family = "synthetic"
num_tasks = 12
num_objects = 4

[reward]
reference_s = 0.05

[simulation]
window_s = 0.2
"""
TINY = PPOConfig(total_timesteps=64, num_envs=8, n_steps=4, batch_size=16, learning_rate=0.01)


def run_of(variant: str, seed: int, gap: float, **more: float) -> dict[str, Any]:
    figures = {"start_gap": 0.01, "seconds": 2.0, "decisions": 1000, "explained_variance": 0.5, "noise_decisions": 2e4}
    return {"variant": variant, "start": "prior", "seed": seed, "gap": gap, **figures, **more}


def test_differences_are_paired_by_seed():
    chosen = {name: variants(TINY)[name] for name in (BASELINE, "group")}
    runs = [run_of(BASELINE, 0, 0.10), run_of(BASELINE, 1, 0.30), run_of("group", 1, 0.29), run_of("group", 0, 0.09)]
    table = sheet("s", "prior", runs, chosen)
    base, group = table.rows
    assert base[:3] == [BASELINE, "+20.00%", ""]
    assert group[:3] == ["group", "+19.00%", "-1.00 (-1.00 to -1.00)"]  # the same for both seeds, so no width
    assert group[3:6] == ["0.50", "20 k", "0.5 k"]
    assert "+1.00% before PPO" in table.note


def test_an_interval_is_as_wide_as_seeds_differ():
    chosen = {name: variants(TINY)[name] for name in (BASELINE, "group")}
    changes = [-0.02, -0.01, 0.0, 0.01, 0.02]
    runs = [run_of(BASELINE, seed, 0.0) for seed in range(5)]
    runs += [run_of("group", seed, change) for seed, change in enumerate(changes)]
    estimate, low, _, high = sheet("s", "prior", runs, chosen).rows[1][2].replace("(", "").replace(")", "").split()
    assert float(estimate) == 0.0
    assert -2.0 < float(low) < -0.5
    assert 0.5 < float(high) < 2.0


@pytest.mark.parametrize("noise", [0.0, 1.0, 5.0])
def test_noise_over_signal_is_found_in_made_up_gradients(noise):
    rng = np.random.default_rng(0)
    expectation = rng.normal(size=2000)
    gradients = expectation + np.sqrt(noise) * rng.normal(size=(400, 2000))
    assert noise_over_signal(gradients) == pytest.approx(noise, rel=0.1, abs=1e-9)


def test_gradients_that_agree_on_nothing_are_all_noise():
    assert noise_over_signal(np.array([[1.0, 0.0], [-1.0, 0.0]])) == np.inf


def test_one_rollout_says_nothing_about_noise(worlds):
    with pytest.raises(ValueError, match=r"rollouts must be >= 2, got 1\."):
        learning_run.learn(worlds, variants(TINY)[BASELINE], 0, rollouts=1)


def test_what_a_decision_saves_is_less_noisy_than_what_an_episode_costs(worlds):
    noise = {
        name: learning_run.learn(worlds, variants(TINY)[name], 0, rollouts=24)["noise_decisions"]
        for name in (BASELINE, "what-if")
    }
    assert noise["what-if"] < noise[BASELINE]


def test_before_noise_is_measured_the_value_head_learns_and_nothing_else(worlds):
    model = learning_run._model(worlds, variants(TINY)[BASELINE], 0, None)
    before = {name: value.clone() for name, value in model.policy.scorer.named_parameters()}
    assert noise_scale(model, 2) > 0.0
    for name, value in model.policy.scorer.named_parameters():
        assert torch.equal(before[name], value) != name.startswith("value"), name


def test_a_value_head_learns_returns(worlds):
    model = learning_run._model(worlds, variants(TINY)[BASELINE], 0, None)
    _, callback = model._setup_learn(TINY.rollout)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    optimizer = torch.optim.Adam(model.policy.scorer.value.parameters(), lr=0.01)
    for _ in range(200):
        fit_value_head(model, optimizer)
    states = torch.from_numpy(model.rollout_buffer.observations)
    errors = model.policy.predict_values(states).flatten().detach().numpy() - model.rollout_buffer.returns.flatten()
    assert (errors**2).mean() < 0.5 * (model.rollout_buffer.returns**2).mean()


def test_runs_from_the_other_start_do_not_count():
    chosen = {BASELINE: variants(TINY)[BASELINE]}
    runs = [run_of(BASELINE, 0, 0.1), run_of(BASELINE, 1, 0.1), run_of(BASELINE, 0, 0.9) | {"start": "taught"}]
    assert sheet("s", "prior", runs, chosen).rows[0][1] == "+10.00%"


def test_every_variant_changes_something_and_no_two_the_same():
    made = variants(PPOConfig())
    assert next(iter(made)) == BASELINE
    settings = [{**vars(variant), "meaning": ""} for variant in made.values()]
    for i, one in enumerate(settings):
        assert all(one != other for other in settings[i + 1 :])


@pytest.mark.parametrize("name", sorted(variants(TINY)))
def test_every_variant_learns(worlds, name, monkeypatch):
    made: list[Any] = []
    honest = learning_run._model
    monkeypatch.setattr(learning_run, "_model", lambda *args: made.append(honest(*args)) or made[-1])
    variant = variants(TINY)[name]
    figures = learning_run.learn(worlds, variant, seed=1, rollouts=2)
    falls = variant.ppo.num_updates if variant.rate_falls else 1
    assert made[1].policy.optimizer.param_groups[0]["lr"] == pytest.approx(TINY.learning_rate / falls)
    assert figures["decisions"] >= TINY.total_timesteps
    assert all(np.isfinite(value) for name, value in figures.items() if name != "noise_decisions")
    assert figures["cost"] > 0
    assert figures["noise_decisions"] > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"group": 3}, r"group must be a divisor of num_envs \(256\), got 3\."),
        ({"group": 0}, r"group must be a divisor"),
        ({"critic": "none"}, r"critic must be one of shared, own, future, got 'none'\."),
        ({"entropy": float("nan")}, r"entropy must be in \[0, 1\], got nan\."),
        ({"what_if_depth": -1}, r"what_if_depth must be >= 0, got -1\."),
    ],
)
def test_a_variant_out_of_range_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Variant("", **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"variants": ("grup",)}, r"--variants must be among baseline, group, .*, got 'grup'\."),
        ({"seeds": 1}, r"--seeds must be >= 2, got 1\."),
        ({"starts": ()}, r"--starts must be prior, taught, or both, got none\."),
        ({"starts": ("prior", "prior")}, r"--starts must be prior, taught, or both, got prior prior\."),
        ({"starts": ("trained",)}, r"--starts must be prior, taught, or both, got trained\."),
        ({"rollouts": 1}, r"--rollouts must be >= 2, got 1\."),
        ({"labels": 0}, r"--labels must be >= 1, got 0\."),
        ({"train_episodes": 0}, r"--train-episodes must be >= 1, got 0\."),
        ({"ppo": PPOConfig(total_timesteps=0)}, r"--ppo.total-timesteps must be >= 1, got 0\."),
        ({"ppo": replace(TINY, total_timesteps=192)}, r"must be a multiple .*: that of large-batch has 128, got 192\."),
    ],
)
def test_options_are_checked_before_anything_takes_time(values, message):
    with pytest.raises(ValueError, match=message):
        Learning(scenario="stream-cube", **values).run()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> learning_run.Course:
    from agents.evaluation import evaluate
    from agents.rules.greedy import PricedGreedy
    from experiments.scenario import Split, load_scenario
    from experiments.tune import world_of

    path = tmp_path_factory.mktemp("scenario") / "tiny.toml"
    path.write_text(TOML)
    scenario, rule = load_scenario(path), PricedGreedy()
    train, validation = world_of(scenario, Split.TRAIN, 4, 0), world_of(scenario, Split.VALIDATION, 4, 0)
    return learning_run.Course(train, validation, rule, float(evaluate(rule, validation).cost.mean()))


def test_a_run_repeats_itself_and_another_seed_differs(worlds):
    base = variants(TINY)[BASELINE]
    one, two, other = (learning_run.learn(worlds, base, seed, None, 2) for seed in (1, 1, 2))
    assert one["explained_variance"] == two["explained_variance"]
    assert one["cost"] == two["cost"]
    assert one["explained_variance"] != other["explained_variance"]


def test_a_study_keeps_what_it_did_and_goes_on_from_there(tmp_path, monkeypatch, capsys):
    """What the rules are tuned to is not asked here, so they are not tuned for long."""
    from experiments.studies import learning
    from experiments.tune import tune_rules

    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TOML)
    tuned: list[Any] = []

    def quickly(scenario, on_rule):
        tuned[:] = tuned or tune_rules(scenario, num_episodes=2, num_settings=2)
        return tuned

    monkeypatch.setattr(learning, "load_or_tune", quickly)
    done: list[int] = []
    honest = learning_run.learn
    monkeypatch.setattr(learning_run, "learn", lambda *args: (done.append(args[2]), honest(*args))[1])
    study = Learning(
        scenario="tiny.toml", variants=("group",), seeds=2, labels=32, train_episodes=4, validation_episodes=4,
        rollouts=2, json=tmp_path / "all.json", markdown=tmp_path / "all.md", ppo=TINY,
    )  # fmt: skip
    study.run()
    assert done == [0, 0, 0, 0, 1, 1, 1, 1]
    first = json.loads((tmp_path / "all.json").read_text())["runs"]
    assert {(run["variant"], run["start"], run["seed"]) for run in first} == {
        (variant, start, seed) for variant in (BASELINE, "group") for start in ("prior", "taught") for seed in (0, 1)
    }
    policies = list(Path("results").rglob("*.safetensors"))
    assert len(policies) == 2  # one for each seed, whatever is learned from it
    before = {run["start_cost"] for run in first if run["start"] == "taught" and run["seed"] == 0}
    assert len(before) == 1
    load_policy(policies[0])
    study.run()
    assert len(done) == 8
    assert json.loads((tmp_path / "all.json").read_text())["runs"] == first
    assert (tmp_path / "all.md").read_text().count("less baseline") >= 2
    assert "from a taught policy: 2 seeds" in capsys.readouterr().out

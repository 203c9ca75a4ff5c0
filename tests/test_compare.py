"""Tuning and comparing as commands, on a scenario that takes a moment."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from agents.evaluation import evaluate
from agents.rules.catalog import make_rule, rule_names
from envs.world import World
from experiments.compare import Compare
from experiments.comparison import Comparison, compare
from experiments.comparison_report import print_comparison, summary
from experiments.plots import plot_costs
from experiments.scenario import Scenario, Split, load_scenario
from experiments.tune import Tune, load_or_tune, tune_rules, tuned_path
from numa_rl.metrics import MEANINGS

TOML = """
description = "A small stream"
machine = "chapter-4-socket"

[workload]
family = "synthetic"
num_tasks = 24

[reward]
reference_s = 0.05

[simulation]
window_s = 0.2
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A scenario's file, in an empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(TOML)
    return "small.toml"


@pytest.fixture
def scenario(file: str) -> Scenario:
    return load_scenario(file)


class Learned:
    """Decides as a rule does, but counts as learned."""

    def __init__(self, rule: str) -> None:
        self.name = "learned"
        self.rule = make_rule(rule)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        return self.rule.predict(*args, **kwargs)


def rules(*names: str) -> list[Any]:
    return [make_rule(name) for name in names]


def printed(comparison: Comparison, width: int) -> str:
    file = io.StringIO()
    print_comparison(comparison, Console(file=file, width=width))
    return file.getvalue()


def test_the_metrics_are_in_the_json_by_the_chapters_names(file: str):
    Compare(file, episodes=5, json=Path("c.json")).run()
    for entry in json.loads(Path("c.json").read_text())["schedulers"]:
        assert list(entry["metrics_median"]) == list(MEANINGS)
        for name, value in entry["metrics_median"].items():
            assert value == pytest.approx(np.median(entry["by_episode"][name])), name
        assert entry["load_balance_mean"] == pytest.approx(np.mean(entry["by_episode"]["B_load"]))


def test_the_policy_that_comes_with_the_package_plays_unless_it_is_left_out(file: str):
    names = []
    for without in (False, True):
        Compare(file, no_policy=without, episodes=2, json=Path("c.json")).run()
        names.append([entry["name"] for entry in json.loads(Path("c.json").read_text())["schedulers"]])
    assert sorted(names[0]) == sorted([*rule_names(), "learned"])
    assert sorted(names[1]) == sorted(rule_names())


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    for scheduler in results["schedulers"]:
        assert scheduler.pop("decision_us") > 0
    return results


def test_compare_ranks_all_rules_and_writes_everything(file: str, capsys: pytest.CaptureFixture[str]):
    Compare(file, no_policy=True, episodes=5, json=Path("new/folder/c.json"), plot=Path("c.png")).run()
    results = json.loads(Path("new/folder/c.json").read_text())
    assert sorted(entry["name"] for entry in results["schedulers"]) == sorted(rule_names())
    costs = [entry["cost"]["estimate"] for entry in results["schedulers"]]
    assert costs == sorted(costs)
    first = results["schedulers"][0]
    assert results["best_rule"] == first["name"]
    assert first["ratio_to_best_rule"] == {"estimate": 1.0, "low": 1.0, "high": 1.0}
    assert (results["episodes"], results["decisions_per_episode"], results["seed"]) == (5, 24, 0)
    assert results["scenario_hash"] == load_scenario(file).content_hash
    for entry in results["schedulers"]:
        cost = entry["by_episode"]["cost"]
        assert len(cost) == 5
        assert np.mean(cost) == pytest.approx(entry["cost"]["estimate"])
        assert entry["cost"]["low"] <= entry["cost"]["estimate"] <= entry["cost"]["high"]
    assert Path("c.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.startswith(f"Worse than the best rule, {first['name']}: random")
    assert not list(Path().rglob("*.tmp"))


def test_compare_is_deterministic_but_for_the_time_of_a_decision(file: str):
    results = []
    for name in ("a.json", "b.json"):
        Compare(file, episodes=3, json=Path(name), seed=2).run()
        results.append(without_times(json.loads(Path(name).read_text())))
    assert results[0] == results[1]


def test_another_seed_plays_other_episodes(scenario: Scenario):
    first, second = (compare(scenario, rules("greedy"), 3, seed).best_rule.cost.estimate for seed in (0, 1))
    assert first != second


def test_rules_are_tuned_and_compared_on_episodes_kept_for_it(scenario: Scenario):
    def cost(split: Split) -> float:
        world = World(scenario.episodes(split, 3, 7), (scenario.topology,), scenario.reward, scenario.window_s)
        return evaluate(make_rule("greedy"), world).cost.mean()

    assert compare(scenario, rules("greedy"), 3, 7).best_rule.cost.estimate == pytest.approx(cost(Split.TEST))
    tuned = {rule.name: rule for rule in tune_rules(scenario, num_episodes=3, num_settings=2, seed=7)}
    assert tuned["greedy"].cost == pytest.approx(cost(Split.TUNE))


def test_rules_are_tuned_once_and_again_when_the_scenario_changes(file: str, scenario: Scenario):
    called: list[str] = []
    first = load_or_tune(scenario, num_episodes=4, num_settings=2, on_rule=called.append)
    assert called == rule_names()
    again = load_or_tune(scenario, num_episodes=8, on_rule=called.append)
    assert called == rule_names()
    assert again == first
    changed = replace(scenario, reward=replace(scenario.reward, alpha=2.0))
    load_or_tune(changed, num_episodes=4, num_settings=2, on_rule=called.append)
    assert len(called) == 2 * len(rule_names())
    load_or_tune(changed, num_episodes=4, num_settings=2, seed=1, on_rule=called.append)
    assert len(called) == 3 * len(rule_names())


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1, "scenario_hash": "", "seed": 0, "rules": [{}]}'])
def test_a_damaged_file_is_tuned_anew(scenario: Scenario, text: str):
    path = tuned_path(scenario)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    load_or_tune(scenario, num_episodes=2, num_settings=2)
    assert json.loads(path.read_text())["scenario_hash"] == scenario.content_hash


def test_a_file_with_a_rule_of_another_version_is_tuned_anew(scenario: Scenario):
    load_or_tune(scenario, num_episodes=2, num_settings=2)
    path = tuned_path(scenario)
    content = json.loads(path.read_text())
    content["rules"][-1]["parameters"]["forgotten"] = 1.0
    path.write_text(json.dumps(content))
    load_or_tune(scenario, num_episodes=2, num_settings=2)
    assert "forgotten" not in path.read_text()


def test_tune_prints_what_it_brought_and_compare_uses_it(file: str, capsys: pytest.CaptureFixture[str]):
    Tune(file, episodes=4, settings=4, seed=0).run()
    out = capsys.readouterr().out
    assert "untuned" in out
    assert "results/small/tuned.json" in out
    content = json.loads(Path("results/small/tuned.json").read_text())
    assert (content["episodes"], content["settings"], content["seed"]) == (4, 4, 0)
    Compare(file, no_policy=True, episodes=2, json=Path("c.json")).run()
    used = {entry["name"]: entry["parameters"] for entry in json.loads(Path("c.json").read_text())["schedulers"]}
    assert used == {entry["name"]: entry["parameters"] for entry in content["rules"]}


@pytest.mark.parametrize("command", [Tune, Compare])
def test_what_cannot_be_written_is_said_before_any_work(file: str, command: Any):
    option = "out" if command is Tune else "json"
    for path in ("small.toml/x.json", "."):
        with pytest.raises(ValueError, match=rf"--{option} must be a file that can be written, got '{path}'"):
            command(file, **{option: Path(path)}).run()
    assert not Path("results").exists()


def test_a_scheduler_that_does_what_the_best_rule_does_is_not_told_apart(scenario: Scenario):
    comparison = compare(scenario, [*rules("random", "greedy"), Learned("greedy")], 4)
    assert summary(comparison) == [
        "learned is not told apart from the best tuned rule, greedy: cost +0.0% (95% interval +0.0% to +0.0%).",
        "Worse than the best rule, greedy: random.",
    ]
    assert comparison.learned[0].win_rate == 0.5


def test_a_learned_policy_that_loses_comes_first(scenario: Scenario):
    lines = summary(compare(scenario, [*rules("greedy"), Learned("random")], 6))
    assert lines[0].startswith("learned is worse than the best tuned rule, greedy: cost +")
    assert lines[1] == "Worse than the best rule, greedy: learned."


def test_a_learned_policy_that_wins_is_never_the_best_rule(scenario: Scenario):
    comparison = compare(scenario, [*rules("random"), Learned("greedy")], 6)
    assert comparison.best_rule.name == "random"
    assert comparison.standings[0].name == "learned"
    assert summary(comparison)[0].startswith("learned beats the best tuned rule, random: cost -")


def test_one_episode_tells_nobody_apart(scenario: Scenario, tmp_path: Path):
    comparison = compare(scenario, rules("random", "greedy"), 1)
    assert summary(comparison) == ["Not told apart from greedy: random."]
    plot_costs(comparison, tmp_path / "one.png")
    json.dumps(comparison.to_dict())


@pytest.mark.parametrize(("width", "num_tables"), [(80, 2), (120, 1)])
def test_the_table_fits_the_terminal(scenario: Scenario, width: int, num_tables: int):
    comparison = compare(scenario, [*rules(*rule_names()), Learned("greedy")], 4)
    text = printed(comparison, width)
    assert text.count("scheduler ") == num_tables
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for name in (*rule_names(), "learned"):
        assert f"\n {name} " in text


def test_percent_of_the_oracle_is_its_mean_cost_over_ones_own_and_nobody_has_more_than_100(scenario: Scenario):
    comparison = compare(scenario, rules("random", "greedy", "priced-greedy"), 4, oracle_width=2)
    assert comparison.oracle is not None
    for standing in comparison.standings:
        assert standing.percent_of_oracle == pytest.approx(100 * comparison.oracle.estimate / standing.cost.estimate)
        assert standing.percent_of_oracle <= 100.0 + 1e-9
    found = [(standing.percent_of_oracle, standing.name) for standing in comparison.standings]
    assert found == sorted(found, reverse=True)
    assert summary(comparison)[-1].startswith("The oracle, which knows all arrivals, costs ")


@pytest.mark.parametrize("width", [80, 120])
def test_the_share_of_the_oracle_stands_in_the_table(scenario: Scenario, width: int):
    text = printed(compare(scenario, rules(*rule_names()), 2, oracle_width=1), width)
    assert text.count("of oracle ") == 1
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert "of oracle " not in printed(compare(scenario, rules("greedy"), 2), width)


def test_the_oracle_stands_in_the_json_if_it_was_asked_for(file: str):
    Compare(file, episodes=2, json=Path("c.json"), oracle=1).run()
    results = json.loads(Path("c.json").read_text())
    best = results["schedulers"][0]
    assert best["percent_of_oracle"] == pytest.approx(
        100 * results["oracle_cost"]["estimate"] / best["cost"]["estimate"]
    )
    Compare(file, episodes=2, json=Path("c.json")).run()
    assert json.loads(Path("c.json").read_text())["oracle_cost"] is None


def test_an_oracle_needs_a_beam(file: str):
    with pytest.raises(ValueError, match=r"--oracle must be >= 1, got 0"):
        Compare(file, oracle=0).run()


def test_a_comparison_needs_rules_and_names(scenario: Scenario):
    with pytest.raises(ValueError, match=r"a comparison needs at least one rule, got learned"):
        compare(scenario, [Learned("greedy")], 1)
    with pytest.raises(ValueError, match=r"schedulers must differ in name, got greedy, greedy"):
        compare(scenario, rules("greedy", "greedy"), 1)

"""The ablation study: what its rows leave out, how sure its differences are, and that it goes on where it stood."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_suite import small, write_definition

from agents.ppo.config import TeacherConfig, TrainingConfig
from agents.ppo.storage import load_policy
from agents.shipped import POLICY
from agents.statistics import interquartile_interval, interquartile_mean
from experiments.studies import ablations
from experiments.studies.ablation_play import drawn_cells
from experiments.studies.ablation_results import PARTS, AblationResult, Row, drawn_means, judge, part_of
from experiments.studies.ablation_rows import CHAPTER_GROUPS, FULL, VARIANTS, chosen
from experiments.studies.ablations import Ablations
from experiments.train import RUN_FILE

TINY = TrainingConfig(
    node_width=4,
    pair_width=2,
    validate_every=1,
    teacher=TeacherConfig(
        labels=16, labels_per_update=16, lessons=2, num_candidates=2, num_random=1, depth=2, num_threads=1
    ),
)


def row(name: str, costs: Any, part: str = PARTS[0]) -> Row:
    """A row in one part; costs of shape (C, S, E)."""
    return Row(name, {part: {f"cell {i}": np.asarray(each, float) for i, each in enumerate(costs)}}, [{}])


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.exp(0.3 * np.random.default_rng(seed).standard_normal(shape))


def test_a_row_that_costs_the_same_more_everywhere_surely_costs_that_much_more():
    found = judge(row("mlp", np.full((3, 1, 8), 1.02)), row(FULL, np.full((3, 1, 8), 1.0)), 0)[PARTS[0]]
    for estimate, value in ((found.cost, 1.02), (found.against_full, 0.02)):
        assert (estimate.estimate, estimate.low, estimate.high) == pytest.approx((value, value, value))


def test_what_is_hard_for_both_cancels_in_their_difference():
    hard = noise(6, 2, 16)
    found = judge(row("mlp", hard + 0.01), row(FULL, hard), 0)[PARTS[0]]
    assert found.cost.high - found.cost.low > 0.05
    assert (found.against_full.low, found.against_full.high) == pytest.approx((0.01, 0.01))


def test_the_whole_policy_is_no_different_from_itself():
    full = row(FULL, noise(4, 1, 8))
    found = judge(full, full, 0)[PARTS[0]].against_full
    assert (found.estimate, found.low, found.high) == (0.0, 0.0, 0.0)


def test_with_one_seed_the_interval_is_that_of_the_suite():
    costs = noise(8, 1, 16)
    expected = interquartile_interval([each[0] for each in costs], np.random.default_rng(0))
    found = judge(row("mlp", costs), row(FULL, costs), 0)[PARTS[0]].cost
    assert found.estimate == pytest.approx(expected.estimate)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_seeds_that_differ_widen_the_interval():
    costs = noise(4, 3, 16)
    apart = costs + np.array([0.0, 0.5, 1.0])[:, None]
    spread = [
        np.ptp(np.percentile(drawn_means(list(each), np.random.default_rng(0)), [2.5, 97.5])) for each in (costs, apart)
    ]
    assert spread[1] > 3 * spread[0]


def test_a_draw_takes_the_same_seeds_in_all_cells():
    seeds = np.array([1.0, 2.0])[:, None].repeat(4, axis=1)
    drawn = drawn_means([seeds, seeds, seeds], np.random.default_rng(0))
    assert set(np.unique(drawn)) == {1.0, 1.5, 2.0}


def test_a_policy_that_fails_in_a_cell_has_no_interval():
    costs = np.ones((4, 1, 8))
    costs[0] = np.inf
    found = judge(row("mlp", costs), row(FULL, np.ones((4, 1, 8))), 0)[PARTS[0]]
    assert found.cost.estimate == pytest.approx(interquartile_mean(costs))
    assert (found.against_full.low, found.against_full.high) == (-np.inf, np.inf)
    told = AblationResult([row(FULL, np.ones((4, 1, 8))), row("mlp", costs)], "x", 5, 0)
    assert "[" not in told.sheet().rows[1][2]


def test_every_row_changes_what_it_says_and_nothing_else():
    config = TrainingConfig()
    changed = {
        name: {key for key, value in vars(variant.of(config)).items() if value != getattr(config, key)}
        for name, variant in VARIANTS.items()
    }
    assert changed == {
        FULL: set(),
        "chapter-only": {"blind_to", "prior"},
        "no-estimate": {"blind_to", "prior"},
        "no-prior": {"prior"},
        "two-heads": {"heads"},
        "mlp": {"encoder"},
        "attention": {"encoder"},
        "bilinear": {"heads"},
        "held-out-too": {"teacher"},
        "no-drawn-machines": {"teacher"},
    }
    assert replace(config.teacher, drawn_share=0.0) == VARIANTS["no-drawn-machines"].of(config).teacher
    assert len({variant.of(config).teacher.labels for variant in VARIANTS.values()}) == 1


@pytest.mark.parametrize("name", ["chapter-only", "no-estimate"])
def test_what_a_row_does_not_see_changes_nothing(name: str):
    from agents.ppo.config import PolicyConfig
    from agents.ppo.scorers import make_scorer
    from envs.observation import ObservationLayout

    variant = VARIANTS[name]
    layout = ObservationLayout(3)
    torch.manual_seed(0)
    scorer = make_scorer(PolicyConfig(**variant.network))
    for weight in scorer.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    rows = torch.rand(5, layout.size)
    for mask in ("task_mask", "data_mask", "nodes"):
        rows[:, layout.slices[mask]] = 1.0
    before = scorer(rows)[0]
    other = rows.clone()
    for group in variant.network["blind_to"]:
        other[:, layout.slices[group]] = torch.rand_like(other[:, layout.slices[group]])
    torch.testing.assert_close(scorer(other)[0], before, rtol=0, atol=0)
    for group in CHAPTER_GROUPS:
        seen = rows.clone()
        seen[:, layout.slices[group]] += 1.0
        assert not torch.equal(scorer(seen)[0], before), group


def test_rows_come_in_the_tables_order_and_the_whole_policy_first():
    assert chosen(()) == list(VARIANTS)
    assert chosen(("mlp", "no-prior")) == [FULL, "no-prior", "mlp"]
    with pytest.raises(ValueError, match=r"row must be one of full, chapter-only, .*, got 'luck'"):
        chosen(("luck",))


def test_cells_count_for_the_column_of_what_training_has_not_met(tmp_path: Path):
    definition = small(tmp_path)
    found = {cell.name: part_of(cell, definition) for cell in definition.cells()}
    assert found == {
        "stream/chapter-2-socket": "training cells",
        "stream/chapter-4-socket": "training cells",
        "stream/cxl-expander": "unseen machines",
        "graph/chapter-2-socket": "unseen family",
        "graph/chapter-4-socket": "unseen family",
        "graph/cxl-expander": "unseen family",
    }


def test_drawn_cells_are_held_out_have_names_of_their_own_and_more_of_them_extend_fewer(tmp_path: Path):
    definition = small(tmp_path)
    few, more = drawn_cells(definition, 3, 0), drawn_cells(definition, 5, 0)
    assert len({cell.name for cell in more}) == 5
    assert {cell.family for cell in more} == {"stream"}
    assert all(cell.held_out and part_of(cell, definition) == "drawn machines" for cell in more)
    assert [cell.scenario.content_hash for cell in more[:3]] == [cell.scenario.content_hash for cell in few]
    assert drawn_cells(definition, 3, 1)[0].scenario.content_hash != few[0].scenario.content_hash


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, where the standard suite is a small one."""
    from experiments.suite import train

    path = write_definition(tmp_path)
    for module in (ablations, train):
        monkeypatch.setattr(module, "STANDARD", path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def study(**changes: Any) -> Ablations:
    options: dict[str, Any] = {
        "rows": ("two-heads",),
        "against": "priced-greedy",
        "drawn_machines": 1,
        "validation_episodes": 2,
        "workers": 1,
        "config": TINY,
    }
    return Ablations(**(options | changes))


def written(folder: Path) -> Any:
    return json.loads((folder / "runs/ablations/ablations.json").read_text())


def test_a_policy_that_has_learned_nothing_costs_what_its_prior_costs(suite: Path):
    study(rows=("mlp",), config=replace(TINY, teacher=replace(TINY.teacher, learning_rate=1e-12))).run()
    full, mlp = written(suite)["rows"]
    assert (full["name"], mlp["name"]) == (FULL, "mlp")
    for each in (full, mlp):
        assert set(each["parts"]) == set(PARTS)
        for part in each["parts"].values():
            assert part["cost"]["estimate"] == pytest.approx(1.0, abs=1e-6)
            assert part["against_full"]["estimate"] == pytest.approx(0.0, abs=1e-6)
        assert len(each["cells"]) == 7
    assert full["policies"][0]["weights"] < mlp["policies"][0]["weights"]


def test_what_training_saw_does_not_count_as_weights():
    policy, _ = load_policy(POLICY)
    assert ablations._told(POLICY, TINY)["weights"] == sum(each.numel() for each in policy.scorer.state_dict().values())


def test_a_study_goes_on_where_it_stood(
    suite: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    study(rows=(FULL,)).run()
    train = ablations.train_policy
    begun: list[Path] = []
    monkeypatch.setattr(
        ablations,
        "train_policy",
        lambda what, folder, *others, **options: begun.append(folder) or train(what, folder, *others, **options),
    )
    first = written(suite)
    policy = suite / "runs/ablations/full/seed-0/policy.safetensors"
    before = policy.stat().st_mtime_ns
    study().run()
    then = written(suite)
    assert policy.stat().st_mtime_ns == before
    assert [folder.parent.name for folder in begun] == ["two-heads"]
    assert then["rows"][0] == first["rows"][0]
    assert [each["name"] for each in then["rows"]] == [FULL, "two-heads"]
    assert "two-heads" in capsys.readouterr().out
    assert "| two-heads |" in (suite / "runs/ablations/ablations.md").read_text()


def test_two_numbers_of_labels_are_refused():
    with pytest.raises(ValueError, match=r"--labels and --teacher\.labels exclude each other, got 10"):
        study(labels=10, config=TINY).run()


def test_a_row_taught_the_held_out_cells_is_known_to_be_finished_too(suite: Path, monkeypatch: pytest.MonkeyPatch):
    study(rows=("held-out-too",)).run()

    def never(*others: Any, **options: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(ablations, "train_policy", never)
    study(rows=("held-out-too",)).run()
    assert [each["name"] for each in written(suite)["rows"]] == [FULL, "held-out-too"]


def test_what_is_done_is_written_before_the_next_row_begins(suite: Path, monkeypatch: pytest.MonkeyPatch):
    play = ablations.normalised_costs

    def interrupted(policy: Path, name: str, *others: Any) -> Any:
        if name != FULL:
            raise KeyboardInterrupt
        return play(policy, name, *others)

    monkeypatch.setattr(ablations, "normalised_costs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study().run()
    assert [each["name"] for each in written(suite)["rows"]] == [FULL]


def test_a_training_that_was_stopped_goes_on_and_ends_as_if_it_had_not_been(
    suite: Path, monkeypatch: pytest.MonkeyPatch
):
    from agents.ppo.course import Course

    config = replace(TINY, teacher=replace(TINY.teacher, labels=64))
    study(rows=(FULL,), config=config, out=suite / "whole").run()
    update, done = Course._one_update, list[int]()

    def stopped(course: Course, *others: Any) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(course.update)
        update(course, *others)

    monkeypatch.setattr(Course, "_one_update", stopped)
    with pytest.raises(SystemExit):
        study(rows=(FULL,), config=config).run()
    monkeypatch.setattr(Course, "_one_update", update)
    study(rows=(FULL,), config=config).run()
    one, other = (json.loads((suite / name / "ablations.json").read_text()) for name in ("whole", "runs/ablations"))
    assert done == [0, 1]
    assert one["rows"][0]["cells"] == other["rows"][0]["cells"]
    assert (
        one["rows"][0]["policies"][0]["kept_validation_gap"] == other["rows"][0]["policies"][0]["kept_validation_gap"]
    )


def test_every_seed_trains_a_policy_of_its_own(suite: Path):
    study(rows=(FULL,), seeds=2, episodes=1, against="best-rule").run()
    policies = written(suite)["rows"][0]["policies"]
    assert [each["seed"] for each in policies] == [0, 1]
    assert policies[0]["sha256"] != policies[1]["sha256"]


@pytest.mark.parametrize("content", ["[]", "{}", "not JSON", "\x80", '{"config": {}, "validation_episodes": 2}'])
def test_policies_of_other_settings_are_kept_unless_told_otherwise(suite: Path, content: str):
    path = suite / "runs/ablations/full/seed-0" / RUN_FILE
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"run.json: must be of a training with these settings"):
        study().run()
    assert path.read_text(encoding="latin-1") == content


def test_other_settings_are_trained_anew_when_asked_for(suite: Path):
    others = replace(TINY, teacher=replace(TINY.teacher, labels=32))
    study(rows=(FULL,)).run()
    with pytest.raises(ValueError, match=r"use another --out, or --overwrite"):
        study(rows=(FULL,), config=others).run()
    study(rows=(FULL,), config=others, overwrite=True).run()
    assert written(suite)["labels"] == 32
    assert written(suite)["rows"][0]["policies"][0]["updates"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": ("luck",)}, "row must be one of full"),
        ({"seeds": 0}, "--seeds must be >= 1, got 0"),
        ({"labels": 0}, "--labels must be >= 1, got 0"),
        ({"episodes": -1}, "--episodes must be >= 1, got -1"),
        ({"workers": 0}, "--workers must be >= 1, got 0"),
        ({"validation_episodes": 0}, "--validation-episodes must be >= 1, got 0"),
        ({"drawn_machines": -1}, "--drawn-machines must be >= 0, got -1"),
        ({"out": Path("/dev/null/x")}, "--out must be a file that can be written"),
    ],
)
def test_a_study_that_cannot_be_is_refused_before_anything_takes_time(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        study(**changes).run()

"""Putting a policy into the package: only one that this suite has judged, with a card that says how."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_suite import RULES, small, write_definition
from test_course import CONFIG, RULE

from agents.ppo.config import as_json
from agents.ppo.course import Course
from agents.ppo.scorers import make_scorer
from agents.ppo.storage import LearnedScheduler, load_policy
from agents.shipped import MODEL_CARD, POLICY, policy_file
from experiments.ship import Ship
from experiments.suite.command import Suite
from experiments.suite.lessons import SuiteLessons, suite_exams


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on a small suite, and with that suite played by its policy."""
    folder = tmp_path_factory.mktemp("ship")
    definition = small(folder)
    cells = [cell for cell in definition.cells() if not cell.held_out]
    config = replace(CONFIG, teacher=replace(CONFIG.teacher, labels=16))
    about = {"scenario": "suite", "cells": {cell.name: cell.scenario.content_hash for cell in cells}}
    lessons = SuiteLessons(definition, cells, {"": {}}, seed=0, count=2, drawn_share=0.0)
    about["training"] = as_json(config)
    Course(lessons, suite_exams(cells, {}, 1), RULE, config, folder / "run", about, git_revision="abc").run()
    Suite(
        folder / "suite",
        policy=folder / "run" / "policy.safetensors",
        definition=write_definition(folder),
        rules=RULES,
        no_oracle=True,
        workers=1,
    ).run()
    return folder


def ship(folder: Path, **changes: Path) -> Ship:
    return Ship(**{
        "run_folder": folder / "run", "suite": folder / "suite",
        "policy": folder / "package" / "policy.safetensors", "card": folder / "package" / "MODEL_CARD.md", **changes,
    })  # fmt: skip


def test_the_weights_are_those_of_the_run_and_the_card_says_where_they_come_from(shipped):
    ship(shipped).run()
    weights = (shipped / "package" / "policy.safetensors").read_bytes()
    assert weights == (shipped / "run" / "policy.safetensors").read_bytes()
    card = (shipped / "package" / "MODEL_CARD.md").read_text()
    told = ("code abc", "| seed | 5 |", "chapter-2-socket, chapter-4-socket", "one setting", "## Limits", "torch ")
    for words in (*told, "graph, cxl-expander; 4 cells of the suite |"):
        assert words in card


def test_a_suite_that_another_policy_played_is_refused(shipped, tmp_path):
    other = tmp_path / "run"
    other.mkdir()
    content = (shipped / "run" / "policy.safetensors").read_bytes()
    (other / "policy.safetensors").write_bytes(content.replace(b'"abc', b'"abd').replace(b'abc\\"', b'abd\\"'))
    with pytest.raises(ValueError, match=r"the suite must have been played by .*policy\.safetensors, got policies"):
        ship(shipped, run_folder=other).run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run_folder": Path("nowhere")}, r"policy\.safetensors: no such file"),
        ({"suite": Path("nowhere")}, r"suite\.parquet: must be the table of a suite that was played, got"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_written(shipped, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        ship(shipped, policy=tmp_path / "p", card=tmp_path / "c", **changes).run()
    assert not list(tmp_path.iterdir())


def test_tables_that_another_run_left_are_not_on_the_card(shipped, tmp_path):
    stale = shipped / "suite" / "learned-learned+shield.csv"
    stale.write_text("cells,one setting\nall,-99%\n")
    try:
        ship(shipped, policy=tmp_path / "p", card=tmp_path / "c").run()
    finally:
        stale.unlink()
    card = (tmp_path / "c").read_text()
    assert "-99%" not in card
    assert card.count("| cells |") == 1


@pytest.mark.parametrize("changes", [{"encoder": "flat"}, {"prior": False}], ids=str)
def test_a_network_that_the_card_would_not_be_true_of_is_refused(shipped, tmp_path, monkeypatch, changes):
    policy, about = load_policy(shipped / "run" / "policy.safetensors")
    other = LearnedScheduler(make_scorer(replace(policy.scorer.config, **changes)))
    monkeypatch.setattr("agents.ppo.storage.load_policy", lambda path: (other, about))
    with pytest.raises(ValueError, match="must serve machines of any size and start from the rule, got encoder"):
        ship(shipped, policy=tmp_path / "p", card=tmp_path / "c").run()


def test_a_card_without_a_place_of_its_own_lies_beside_the_policy(shipped, tmp_path):
    packaged = MODEL_CARD.read_bytes()
    replace(ship(shipped, policy=tmp_path / "p.safetensors"), card=None).run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MODEL_CARD.md", "p.safetensors"]
    assert MODEL_CARD.read_bytes() == packaged


def test_card_and_policy_must_be_two_files(shipped, tmp_path):
    with pytest.raises(ValueError, match="--card must be another file than --policy"):
        ship(shipped, policy=tmp_path / "p", card=tmp_path / "p").run()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenario": "stream-cube"}, "must be trained on 'suite', got one trained on 'stream-cube'"),
        ({"cells": None}, "not a run and its suite: TypeError"),
        ({"cells": {"stream/chapter-2-socket": "another"}}, "must hold all cells taught, as they were, and stream/cha"),
    ],
)
def test_a_policy_of_another_kind_of_run_is_refused(shipped, tmp_path, monkeypatch, changes, message):
    policy, about = load_policy(shipped / "run" / "policy.safetensors")
    monkeypatch.setattr("agents.ppo.storage.load_policy", lambda path: (policy, about | changes))
    with pytest.raises(ValueError, match=message):
        ship(shipped, policy=tmp_path / "p", card=tmp_path / "c").run()
    assert not list(tmp_path.iterdir())


def test_a_named_policy_is_taken_else_the_packages_own_or_none():
    assert policy_file(Path("mine")) == Path("mine")
    assert policy_file(None) == POLICY
    assert policy_file(None, no_policy=True) is None
    with pytest.raises(ValueError, match=r"--no-policy and --policy exclude each other, got 'mine'"):
        policy_file(Path("mine"), no_policy=True)


def test_the_package_carries_a_policy_that_decides():
    scheduler, about = load_policy(POLICY)
    assert about["scenario"] == "suite"
    assert POLICY.stat().st_size < 500_000
    weights = [parameter.detach().numpy() for parameter in scheduler.scorer.parameters()]
    assert any(np.abs(values).max() > 0 for values in weights)

"""The search for what a policy does worst in: what it draws can be played, written down and played again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_suite import small

from agents.lookahead_scores import PricedScores
from agents.oracle.plays import played
from agents.ppo.config import PolicyConfig
from agents.ppo.scorers import make_scorer
from agents.ppo.storage import save_policy
from agents.rules.greedy import PricedGreedy
from agents.rules.linux import FirstTouch
from agents.shield import Shielded
from agents.shield_play import ShieldedPlay
from experiments.studies.adversarial import Adversarial, read_found
from experiments.studies.adversarial_search import Found, Trial, both, search, try_situation, unshielded
from experiments.studies.adversarial_situations import DRAWN, RANGES, Situation, Space
from experiments.suite.definition import STANDARD, read_definition
from numa_rl.workloads.catalog import make_family

MACHINES = (DRAWN, "chapter-2-socket", "chapter-4-socket")


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Space:
    """Two families of a small suite: one has parameters of its own to search, the other load and window alone."""
    return Space(small(tmp_path_factory.mktemp("suite")), MACHINES)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained policy's file; it decides by other prices than the suite's."""
    path = tmp_path_factory.mktemp("policy") / "policy.safetensors"
    save_policy(path, make_scorer(PolicyConfig()), {})
    return path


def situation(**changes: Any) -> Situation:
    known: dict[str, Any] = {
        "family": "stream",
        "machine": "chapter-2-socket",
        "machine_seed": 0,
        "window_tasks": 4.0,
        "load": 0.6,
        "seed": 1,
        "parameters": {"burstiness": 2.0},
    }
    return Situation(**(known | changes))


def trial(ratios: list[float]) -> Trial:
    return Trial(situation(), np.array(ratios), np.ones(len(ratios)), {})


# Known answers


def test_a_trial_is_judged_by_its_worst_episode_and_by_its_mean() -> None:
    found = Trial(situation(), np.array([2.0, 1.0, 0.0]), np.array([1.0, 2.0, 0.0]), {})
    assert found.ratio.tolist() == [2.0, 0.5, 1.0]
    assert found.worst == 2.0
    assert found.mean == 1.0


def test_the_worst_come_first() -> None:
    trials = [trial([1.0, 1.2]), trial([3.0, 0.1]), trial([1.1, 1.1])]
    found = Found(trials, 2, 0)
    assert [each.worst for each in found.worst(2)] == [3.0, 1.2]
    assert found.first == trials[:2]


def test_ranges_are_of_parameters_that_families_have() -> None:
    definition = read_definition(STANDARD)
    for name, ranges in RANGES.items():
        values = dict(definition.families[name].workload)
        family = make_family(values.pop("family"), **values)
        for parameter, at in ranges.items():
            kind = type(getattr(family, parameter))
            assert isinstance(at.low, int) == (kind is int), f"{name}.{parameter}"
            assert not at.log or at.low > 0


# Laws


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_is_drawn_lies_within_its_ranges_and_so_does_what_is_near(space: Space, seed: int) -> None:
    rng = np.random.default_rng(seed)
    point = space.draw(rng)
    for _ in range(4):
        ranges, found = space.ranges(point.family), space.situation(point)
        values = found.parameters | {"window_tasks": found.window_tasks, "load": found.load}
        for name, at in ranges.items():
            assert at.low * (1 - 1e-3) <= values[name] <= at.high * (1 + 1e-3)
        assert found.machine in MACHINES
        assert Situation.from_dict(json.loads(json.dumps(found.to_dict()))) == found
        point = space.near(point, rng, 0.3)


def test_the_same_seed_finds_the_same(space: Space) -> None:
    play = unshielded(FirstTouch(), PricedGreedy())
    found = [search(play, space, 8, 1, np.random.default_rng(4)) for _ in range(2)]
    assert [each.to_dict() for each in found[0].trials] == [each.to_dict() for each in found[1].trials]
    assert len(found[0].trials) == 8
    assert found[0].num_first == 2


def test_the_search_finds_what_is_worse_than_chance_does(space: Space) -> None:
    """A made-up landscape: the cost grows with the window and the load, and is highest in one corner."""

    def play(world: Any) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
        gap = world.workload.arrival_s[:, -1].mean() / world.weights.reference_s
        cost = world.window_s / world.weights.reference_s + 100.0 / gap
        return np.array([cost]), np.ones(1), {}

    found = search(play, space, 48, 1, np.random.default_rng(0))
    chosen, chance = found.trials[found.num_first :], found.first
    assert max(each.worst for each in chosen) > max(each.worst for each in chance)
    assert np.median([each.worst for each in chosen]) > np.median([each.worst for each in chance])


def test_situations_that_break_a_rule_are_left_out_and_counted(space: Space) -> None:
    calls = []

    def play(world: Any) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
        calls.append(world)
        if len(calls) % 2:
            raise ValueError("cannot be played")
        return np.ones(1), np.ones(1), {}

    found = search(play, space, 3, 1, np.random.default_rng(0))
    assert len(found.trials) == 3
    assert len(calls) == 6
    assert found.num_failed >= 3  # some break a rule before they are played

    def never(world: Any) -> Any:
        raise ValueError("cannot be played")

    with pytest.raises(ValueError, match="cannot be played"):
        search(never, space, 3, 1, np.random.default_rng(0))


# Two routes


def test_a_situation_read_back_costs_the_same(space: Space) -> None:
    play = unshielded(FirstTouch(), PricedGreedy())
    for machine, seed in ((DRAWN, 5), ("chapter-4-socket", 0)):
        first = situation(machine=machine, machine_seed=seed)
        again = Situation.from_dict(json.loads(json.dumps(first.to_dict())))
        trials = [try_situation(play, each, space, 2) for each in (first, again)]
        assert trials[0].cost.tolist() == trials[1].cost.tolist()
        assert trials[0].cost.tolist() != trials[0].rule_cost.tolist()


def test_every_family_of_the_standard_suite_can_be_drawn_and_played() -> None:
    definition = read_definition(STANDARD)
    rng, failed = np.random.default_rng(1), []
    for family in RANGES:
        alone = Space(definition.chosen([*{family, "stream"}]), ["chapter-2-socket"])
        points = [point for point in (alone.draw(rng) for _ in range(20)) if point.family == family][:2]
        for point in points:
            try:
                world = alone.situation(point).world(definition, 1)
            except ValueError as error:
                failed.append(f"{family}: {error}")
                continue
            assert world.workload.num_episodes == 1
            assert np.isfinite(world.weights.reference_s)
    assert len(failed) <= 3, failed


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"machine": "nothing"}, "situation: machine must be drawn or one of"),
        ({"seed": -1}, "situation: seed must be in 0.."),
        ({"machine_seed": 2**31}, "situation: machine_seed must be in 0.."),
        ({"window_tasks": 0.0}, "situation: window_tasks must be finite and > 0, got 0.0"),
        ({"load": float("nan")}, "situation: load must be finite and > 0, got nan"),
    ],
)
def test_bad_situations_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        situation(**changes)


def test_bad_descriptions_are_named(space: Space) -> None:
    good = situation().to_dict()
    for changes, message in (
        ({"more": 1}, "unknown key 'more'"),
        ({"load": "high"}, "load must be of type number"),
        ({"seed": 1.5}, "seed must be of type integer"),
    ):
        with pytest.raises(ValueError, match=message):
            Situation.from_dict(good | changes)
    with pytest.raises(ValueError, match="family must be one of"):
        situation(family="nothing").world(space.definition, 1)
    with pytest.raises(ValueError, match="load of stream must be a number, got None"):
        situation(load=None).world(space.definition, 1)
    with pytest.raises(ValueError, match="unknown key 'nothing'"):
        situation(parameters={"nothing": 1.0}).world(space.definition, 1)


def test_bad_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    with pytest.raises(ValueError, match="must be a readable file"):
        read_found(path)
    with pytest.raises(ValueError, match="must be a readable file"):
        read_found(tmp_path)
    for content, message in (
        (b"", "must be JSON"),
        (b"\xff\xfe", "must be JSON"),
        (b"[" * 100_000, "must be JSON"),
        (b"[]", "of format 2"),
        (b'{"format": 2}', "policy must be of type str, got None"),
        (
            b'{"format": 2, "policy": "", "shield": {}, "searches": {}, "episodes_each": 0}',
            "episodes_each must be >= 1, got 0",
        ),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_found(path)


def test_the_command_names_what_is_wrong(policy: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"policy": tmp_path / "none"}, "none: no such file"),
        ({"episodes": 0}, "--episodes must be >= 1, got 0"),
        ({"episodes_each": 0}, "--episodes-each must be >= 1, got 0"),
        ({"keep": -1}, "--keep must be >= 1, got -1"),
        ({"seed": -1}, "--seed must be >= 0, got -1"),
        ({"families": ("nothing",)}, "family must be one of"),
        ({"machines": ("nothing",)}, "machine must be one of"),
        ({"json": policy}, "--json must be another file than --policy"),
        ({"json": tmp_path / "a", "replay": tmp_path / "b"}, "--json and --replay exclude each other"),
        ({"families": ("llm",), "replay": tmp_path / "b"}, "--families and --replay exclude each other: .*'llm'"),
        ({"seed": 3, "replay": tmp_path / "b"}, "--seed and --replay exclude each other: .* got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            Adversarial(**{"policy": policy, **options}).run()  # type: ignore[arg-type]


def test_what_is_held_out_can_be_searched_alone(policy: Path) -> None:
    definition = read_definition(STANDARD)
    found = Adversarial(policy, families=("threads",), machines=("r815", "drawn"))._space(definition)
    assert (list(found.definition.families), found.machines) == (["threads"], ["drawn", "r815"])
    everything = Adversarial(policy)._space(definition)
    assert (everything.definition, everything.machines) == (definition, ["drawn", *definition.machines])


# Smoke


def test_what_the_command_writes_can_be_played_again(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "found.json"
    options: dict[str, Any] = {"families": ("attention",), "machines": ("xeon-8269cy",)}
    Adversarial(policy, episodes=2, episodes_each=1, json=path, **options).run()
    assert "On average" in capsys.readouterr().out
    found = read_found(path)
    assert found["searches"].keys() == {"unshielded", "shielded"}
    assert [each["mean"] for each in found["searches"]["shielded"]["worst"]] <= [1.0, 1.0]
    Adversarial(policy, replay=path).run()
    printed = capsys.readouterr().out
    assert printed.count(" yes ") == 4
    assert " no " not in printed
    found["searches"]["shielded"]["worst"][0]["cost"] = [0.5]
    path.write_text(json.dumps(found))
    Adversarial(policy, replay=path).run()
    assert capsys.readouterr().out.count(" no ") == 1
    found["searches"]["shielded"]["worst"][1]["rule_cost"] = [0.5]
    path.write_text(json.dumps(found))
    Adversarial(policy, replay=path).run()
    assert capsys.readouterr().out.count(" no ") == 2
    for broken in (
        {"rule": found["rule"] | {"alpha": 3.0}},
        {"policy": "another"},
        {"shield": {}},
        {"searches": {"shielded": {"worst": [{}]}}},
    ):
        path.write_text(json.dumps(found | broken))
        with pytest.raises(ValueError, match=r"found\.json: "):
            Adversarial(policy, replay=path).run()


def test_the_rule_is_the_same_with_the_shield_and_without(space: Space) -> None:
    rule = PricedGreedy(migration_share=0.3)
    here = situation(machine="chapter-4-socket").world(space.definition, 3)
    here = replace(here, weights=replace(here.weights, alpha=0.1))
    plays = both(ShieldedPlay(Shielded(PricedScores(rule), 20.0, rule)))
    alone, shielded = (play(here)[1] for play in plays.values())
    np.testing.assert_allclose(alone, shielded, rtol=1e-12)
    as_it_was = played(rule, here, np.zeros(3, int), np.arange(3))[1] / here.workload.num_tasks
    assert np.abs(alone - as_it_was).max() > 1e-6


def test_the_rule_as_the_policy_is_exactly_as_good_as_the_rule(space: Space) -> None:
    play = unshielded(PricedGreedy(), PricedGreedy())
    assert try_situation(play, situation(), space, 2).ratio.tolist() == [1.0, 1.0]
    assert PricedScores(PricedGreedy()).name == "priced-greedy"

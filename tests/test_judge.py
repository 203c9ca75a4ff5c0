"""`numa-rl study referee`: a policy's gain in both worlds, with a referee in plain Python and with SimGrid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fluid import Fluid
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from agents.evaluation import evaluate
from agents.ppo.config import PolicyConfig
from agents.ppo.scorers import make_scorer
from agents.ppo.storage import load_policy, save_policy
from agents.rules.greedy import PricedGreedy
from agents.statistics import Interval
from experiments.fidelity import judge as judge_module
from experiments.fidelity.judge import Referee, Trial, run_trial
from experiments.fidelity.judge_cells import TO_THE_CELL, Contest
from experiments.fidelity.judge_gains import OURS, REFEREE, Pairing, pairing, worth
from experiments.fidelity.judge_play import judge_recorded
from experiments.fidelity.judge_plot import plot_gains
from experiments.fidelity.judge_report import ALL, HELD_OUT, TRAINING, dropped, group_worths, remarks, sheets, verdict
from experiments.fidelity.judge_tuned import read_tuned, tuned_now
from experiments.fidelity.referee import VARIABLE, Played, RefereeError, find_simgrid, play, played
from experiments.fidelity.replay import FLOW, Replay
from experiments.fidelity.rows import Judged, Where
from experiments.files import write_json
from experiments.suite.definition import STANDARD, read_definition
from experiments.suite.players import LearnedPlayer
from experiments.suite.tuning import Tuned
from numa_rl.machines.catalog import load_machine

torch.set_num_threads(1)

CONFIG = PolicyConfig(node_width=4, pair_width=4)
PRICES = {name: getattr(CONFIG, name) for name in ("congestion_price", "crowding_price", "migration_share")}
OTHER_PRICES = PRICES | {"congestion_price": 3.0 * CONFIG.congestion_price + 1.0}
TUNED = Tuned(
    by_cell={"ffn/xeon-8269cy": {PricedGreedy.name: OTHER_PRICES}},
    single={PricedGreedy.name: PRICES},
    relative_cost={PricedGreedy.name: 0.9},
)
SMALL = Contest(
    families=("ffn",),
    machines=("xeon-8269cy", "chapter-2-socket"),
    rules=("priced-greedy", "first-touch", "heft"),
    num_episodes=2,
)
TOLERANT = {"first-touch": {"tolerance": 0.5}}
ALL_TUNED = replace(
    TUNED,
    by_cell={cell: {**rules, **TOLERANT} for cell, rules in TUNED.by_cell.items()},
    single={**TUNED.single, **TOLERANT},
)
TOPOLOGY = load_machine("chapter-2-socket")


def fluid(replays: Sequence[Replay]) -> list[Played]:
    """The referee's second route, in place of SimGrid."""
    found = []
    for each in replays:
        done = Fluid(each).play()
        times = [
            np.array([np.inf if t is None else t for t in some])
            for some in (done.decided_s, done.started_s, done.finish_s)
        ]
        found.append(played(each, *times))
    return found


@pytest.fixture(scope="module")
def policy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that has learned nothing: it decides as the priced greedy rule with the prices of its prior."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("policy") / "policy.safetensors"
    save_policy(path, make_scorer(CONFIG), {"scenario": "nothing"})
    return path


@pytest.fixture(scope="module")
def trial(policy_file: Path) -> Trial:
    return run_trial(SMALL, LearnedPlayer.read(policy_file), ALL_TUNED, fluid, Console(quiet=True), workers=2)


def judged(name: str, ours_s: Any, referee_s: Any, *, cell: str = "stream", dropped: Sequence[int] = ()) -> Judged:
    """Episodes by hand, shape (E, T): what a scheduler's tasks take in both worlds; some of each are dropped."""
    replays, verdicts = [], []
    for ours, referee in zip(np.asarray(ours_s, float), np.asarray(referee_s, float), strict=True):
        node = np.array([-1 if task in dropped else 0 for task in range(len(ours))])
        arrival_s = np.arange(len(ours), dtype=float)
        ran, waits = node >= 0, tuple(() for _ in ours)
        mine, theirs = (np.where(ran, times, np.inf) for times in (ours, referee))
        replays.append(
            Replay(TOPOLOGY, arrival_s, node, False, waits, np.zeros(0, FLOW), mine, arrival_s + mine, window_s=1.0)
        )
        verdicts.append(Played(arrival_s, arrival_s, arrival_s + theirs, 10.0, {"link 0 to 1": 0.3}))
    return Judged(Where(cell, "chapter-2-socket", 2, None, name, False), replays, verdicts)


def pair(policy_s: Any, rule_s: Any, *, cell: str = "stream", held_out: bool = False) -> Pairing:
    """A policy and a rule by hand: of each one episode's (ours, referee) for every episode, with a single task."""
    both = [np.asarray(times, float).T[..., None] for times in (policy_s, rule_s)]  # (W, E, T)
    return pairing(judged("learned", *both[0], cell=cell), judged("greedy", *both[1], cell=cell), held_out=held_out)


# Known answers.


def test_a_gain_of_two_episodes_worked_out_by_hand():
    policy = judged("learned", [[1.0, 3.0], [2.0, 4.0]], [[2.0, 2.0], [4.0, 6.0]])
    rule = judged("greedy", [[2.0, 4.0], [3.0, 7.0]], [[1.0, 1.0], [3.0, 3.0]])
    found = pairing(policy, rule, held_out=True)
    assert found.response_s.tolist() == [[[2.0, 3.0], [3.0, 5.0]], [[2.0, 5.0], [1.0, 3.0]]]
    assert found.ratio(OURS, 0).estimate == pytest.approx(5.0 / 8.0)
    assert found.ratio(REFEREE, 0).estimate == pytest.approx(7.0 / 4.0)
    assert (found.agreement.pairs, found.agreement.wrong, found.agreement.clear_wrong) == (1, 1, 1)
    assert (found.where.scheduler, found.held_out, found.load, found.num_apart) == ("greedy", True, 0.3, 0)


def test_a_task_that_one_of_the_two_dropped_counts_for_neither():
    policy = judged("learned", [[1.0, 9.0, 2.0]], [[1.0, 9.0, 2.0]], dropped=[2])
    rule = judged("greedy", [[3.0, 1.0, 5.0]], [[4.0, 1.0, 5.0]], dropped=[1])
    found = pairing(policy, rule, held_out=False)
    assert found.response_s[:, :, 0].tolist() == [[1.0, 3.0], [1.0, 4.0]]
    assert found.num_apart == 2
    assert "up to 2 (stream/chapter-2-socket, greedy)" in dropped([found])[0]
    assert dropped([pair([(1.0, 1.0)], [(1.0, 1.0)])]) == []


def test_three_cells_worked_out_by_hand():
    cells = [
        pair([(1.0, 1.0)] * 2, [(2.0, 2.0)] * 2),  # better in both worlds
        pair([(1.0, 3.0)] * 2, [(2.0, 2.0)] * 2),  # better in ours alone
        pair([(1.0, 2.02)] * 2, [(2.0, 2.0)] * 2),  # likewise, but not clearly
        pair([(1.0, 2.0)] * 2, [(2.0, 2.0)] * 2),  # as good as each other in the referee's
    ]
    found = worth("some", cells, 0)
    assert (found.rule, found.loaded_latency, found.num_cells) == ("greedy", False, 4)
    assert found.ours.estimate == pytest.approx(0.5)
    assert found.referee.estimate == pytest.approx((0.5 + 1.5 + 1.01 + 1.0) / 4.0)
    assert (found.told, found.agree, found.clear, found.clear_agree) == (3, 1, 2, 1)
    assert found.kept == pytest.approx(-0.0025 / 0.5)
    assert [row[0] for row in sheets(group_worths(cells, 0), cells, 0)[-1].rows] == ["stream/chapter-2-socket"]


def test_of_no_sure_gain_no_share_is_kept():
    unsure = worth("one", [pair([(1.0, 1.0), (4.0, 1.0)], [(2.0, 2.0), (3.5, 2.0)])], 0)
    assert unsure.ours.estimate < 1.0 < unsure.ours.high
    assert isnan(unsure.kept)
    assert "of ours" not in verdict("learned", [replace(unsure, name=ALL)])[0]
    assert isnan(worth("one", [pair([(1.0, 1.0)], [(2.0, 2.0)])], 0).kept)  # one episode is sure of nothing


def test_families_follow_all_cells_the_worst_in_the_referees_world_first():
    kinds = (("a", 1.0, False), ("b", 3.0, False), ("a", 1.0, True))
    cells = [pair([(1.0, there)] * 2, [(2.0, 2.0)] * 2, cell=name, held_out=out) for name, there, out in kinds]
    assert [(each.name, each.num_cells) for each in group_worths(cells, 0)] == [
        (ALL, 3),
        (TRAINING, 2),
        (HELD_OUT, 1),
        ("b", 1),
        ("a", 2),
    ]
    assert [each.name for each in group_worths(cells[:2], 0)] == [ALL, "b", "a"]


def test_a_mean_outside_its_interval_by_rounding_is_drawn(tmp_path):
    cells = [pair([(0.9, 0.9)] * 2, [(1.0, 1.0)] * 2)]
    outside = np.nextafter(0.9, 1.0)
    found = replace(worth(ALL, cells, 0), ours=Interval(0.9, outside, outside))
    plot_gains(cells, [found], 0, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_cells_of_two_rules_have_no_worth_together():
    other = pairing(judged("learned", [[1.0]], [[1.0]]), judged("heft", [[1.0]], [[1.0]]), held_out=False)
    with pytest.raises(ValueError, match="some: cells must be of one rule and one comparison, got 2"):
        worth("some", [pair([(1.0, 1.0)], [(1.0, 1.0)]), other], 0)


def test_what_cannot_be_paired_is_refused():
    policy = judged("learned", [[1.0]], [[1.0]])
    with pytest.raises(ValueError, match="stream/chapter-2-socket, learned and greedy: an episode needs a task"):
        pairing(policy, judged("greedy", [[1.0]], [[1.0]], dropped=[0]), held_out=False)
    with pytest.raises(ValueError, match="the same episodes of one cell"):
        pairing(policy, judged("greedy", [[1.0]], [[1.0]], cell="llm"), held_out=False)
    with pytest.raises(ValueError, match="must be finite and > 0"):
        pairing(policy, judged("greedy", [[1.0]], [[np.nan]]), held_out=False)


# Laws.


TIMES = st.lists(st.tuples(*[st.floats(0.1, 10.0)] * 4), min_size=2, max_size=6)


@settings(max_examples=20, deadline=None)
@given(TIMES, st.floats(0.2, 5.0))
def test_a_referee_in_whose_world_everything_takes_longer_by_a_factor_agrees(times, factor):
    policy, rule = np.array(times)[:, :1], np.array(times)[:, 1:2]
    found = worth("one", [pair(np.hstack([policy, factor * policy]), np.hstack([rule, factor * rule]))], 0)
    assert asdict(found.referee) == pytest.approx(asdict(found.ours))
    assert found.agree == found.told


@settings(max_examples=20, deadline=None)
@given(TIMES)
def test_policy_and_rule_change_places(times):
    values = np.array(times)
    one, other = pair(values[:, :2], values[:, 2:]), pair(values[:, 2:], values[:, :2])
    for world in (OURS, REFEREE):
        there, back = one.ratio(world, 0), other.ratio(world, 0)
        assert back.estimate == pytest.approx(1.0 / there.estimate)
        assert (back.low, back.high) == pytest.approx((1.0 / there.high, 1.0 / there.low), rel=1e-3)
    assert one.agreement.wrong == other.agreement.wrong


# What is played.


def test_by_default_all_families_meet_four_machines_the_two_held_out_among_them():
    contest, suite = Contest(), read_definition(STANDARD)
    assert contest.families == tuple(suite.families)
    assert {name for name, role in suite.machines.items() if role == "held out"} < set(contest.machines)
    cells = contest.cells()
    assert len(cells) == 13 * 4
    known = {cell.name: cell for cell in suite.chosen(("stream", "ffn", "threads"), ("kunpeng-920", "r815")).cells()}
    same = [cell for cell in cells if cell.cell.name in known]
    assert len(same) == len(known) == 6
    for cell in same:  # the suite's own cells, and not others of that name
        assert cell.cell.scenario.content_hash == known[cell.cell.name].scenario.content_hash
        assert cell.cell.held_out == known[cell.cell.name].held_out
        load = suite.families[cell.cell.family].load
        assert cell.asked_percent == (None if load is None else 100.0 * load)


def test_rules_play_with_one_setting_and_as_tuned_to_training_cells():
    contest = replace(SMALL, per_cell=True)
    training, held_out = contest.cells()
    rivals = contest.rivals(training, ALL_TUNED)
    both = [name for rule in ("priced-greedy", "first-touch") for name in (rule, f"{rule}{TO_THE_CELL}")]
    assert list(rivals) == [*both, "heft"]
    assert rivals["priced-greedy"].make() == PricedGreedy(**PRICES)
    assert rivals[f"priced-greedy{TO_THE_CELL}"].make() == PricedGreedy(**OTHER_PRICES)
    assert list(contest.rivals(held_out, ALL_TUNED)) == list(SMALL.rules)


def test_planners_play_in_graphs_alone(policy_file):
    contest = replace(SMALL, families=("stream",))
    assert "heft" not in contest.rivals(contest.cells()[0], ALL_TUNED)
    learned = LearnedPlayer.read(policy_file)
    with pytest.raises(ValueError, match="only where a graph is known in advance, got stream"):
        run_trial(replace(contest, rules=("heft",)), learned, TUNED, fluid, Console(quiet=True), workers=1)


def test_a_policy_that_has_learned_nothing_gains_nothing_over_its_prior_in_either_world(trial):
    found = [each for each in trial.pairings if each.where.scheduler == PricedGreedy.name]
    assert len(found) == 4  # two machines, with and without the factor
    for each in found:
        np.testing.assert_allclose(each.response_s[:, 0], each.response_s[:, 1], rtol=1e-3)  # ties fall either way
        assert each.agreement.clear_pairs == 0


def test_both_comparisons_have_every_rule_in_every_cell(trial):
    assert len(trial.pairings) == 2 * 2 * len(SMALL.rules)
    assert trial.left_out == []
    heads = [(each.rule, each.loaded_latency) for each in trial.worths if each.name == ALL]
    assert heads == [(rule, factor) for rule in SMALL.rules for factor in (False, True)]
    assert {each.where.machine for each in trial.pairings if each.held_out} == {"chapter-2-socket"}
    assert {each.left_out for judged in trial.judged for each in judged.played} == {0.0}


def test_a_cell_that_cannot_be_paired_costs_no_other(trial):
    judged = list(trial.judged)
    torn = next(index for index, each in enumerate(judged) if each.where.scheduler == PricedGreedy.name)
    judged[torn] = replace(judged[torn], replays=judged[torn].replays[:1])
    found = replace(trial, judged=judged)
    assert len(found.pairings) == len(trial.pairings) - 1
    assert [line.endswith("both must have played the same episodes of one cell.") for line in found.left_out] == [True]


# Two routes.


@pytest.mark.parametrize("factor", [False, True])
def test_our_responses_are_those_of_an_evaluation(trial, policy_file, factor):
    for cell in SMALL.cells():
        world = cell.world(SMALL.num_episodes, SMALL.seed, loaded_latency=factor)
        policy = load_policy(policy_file)[0]
        players = [policy, SMALL.rivals(cell, ALL_TUNED)["first-touch"].make()]
        expected = [evaluate(player, world).response_s.mean(axis=1) for player in players]
        (found,) = [
            each
            for each in trial.pairings
            if each.where.machine == cell.cell.machine
            and (each.where.scheduler, each.where.loaded_latency) == ("first-touch", factor)
        ]
        np.testing.assert_allclose(found.response_s[OURS], expected)


# Files and options.


def test_parameters_are_read_back_as_the_suite_writes_them(tmp_path):
    write_json(tmp_path / "tuned.json", asdict(TUNED))
    assert read_tuned(tmp_path / "tuned.json", [PricedGreedy.name]) == TUNED
    assert tuned_now([], workers=1) == Tuned({}, {}, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be JSON"),
        (b"\xff\x00", "must be UTF-8"),
        (b"[" * 100_000, "nested"),
        (b"[]", "single must be a JSON object, got nothing"),
        (b'{"single": {}, "relative_cost": {}, "by_cell": 3}', "by_cell must be a JSON object, got 3"),
        (b'{"single": {}, "relative_cost": {}, "by_cell": {}}', "priced-greedy must be a JSON object, got nothing"),
        (
            b'{"single": {"priced-greedy": {"price": 1}}, "relative_cost": {}, "by_cell": {}}',
            "must have the parameters",
        ),
        (
            b'{"single": {}, "relative_cost": {}, "by_cell": {"a/b": {"priced-greedy": {}}}}',
            "a/b: priced-greedy must have the parameters .*, got none",
        ),
    ],
)
def test_a_file_that_says_no_parameters_is_refused(tmp_path, content, message):
    path = tmp_path / "tuned.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_tuned(path, [PricedGreedy.name])


@pytest.mark.parametrize("value", [None, "much", True, -1.0, [1.0]])
def test_a_parameter_that_is_no_number_of_its_range_is_refused(tmp_path, value):
    content = asdict(TUNED)
    content["single"][PricedGreedy.name] = PRICES | {"migration_share": value}
    write_json(tmp_path / "tuned.json", content)
    with pytest.raises(ValueError, match="migration_share must be"):
        read_tuned(tmp_path / "tuned.json", [PricedGreedy.name])


def test_a_file_that_is_none_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere.json"):
        with pytest.raises(ValueError, match="must be a readable file"):
            read_tuned(path, [PricedGreedy.name])


def test_a_training_cell_without_parameters_is_refused():
    contest = replace(SMALL, per_cell=True)
    with pytest.raises(ValueError, match="must have parameters of priced-greedy for ffn/xeon-8269cy, got none"):
        contest.rivals(contest.cells()[0], replace(ALL_TUNED, by_cell={}))


def test_a_scheduler_that_the_referee_cannot_play_is_left_out_and_named():
    def refuses_the_second(replays: Sequence[Replay]) -> list[Played]:
        verdicts = judged("any", [[1.0]] * 3, [[1.0]] * 3).played
        raise RefereeError("SimGrid failed at 1 replay.", [verdicts[0], None, verdicts[2]])

    replay = judged("any", [[1.0]], [[1.0]]).replays
    recorded = dict.fromkeys(("learned", "greedy", "heft"), replay)
    cell = SMALL.cells()[0]
    found, failures = judge_recorded(cell, recorded, refuses_the_second, loaded_latency=False)
    assert [each.where.scheduler for each in found] == ["learned", "heft"]
    assert failures == [f"{cell.name}, greedy: SimGrid failed at 1 replay."]
    assert remarks(found, failures * 5)[-1] == "Left out for like reasons: 2 more, which --json names."


@pytest.fixture
def command(policy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command with the fluid referee, in an empty folder, on one small cell."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(judge_module, "play", lambda replays, workers=1: fluid(replays))
    write_json(tmp_path / "tuned.json", asdict(TUNED))
    small = {"families": ("ffn",), "machines": ("chapter-2-socket",), "episodes": 2, "tuned": Path("tuned.json")}
    return partial(Referee, policy_file, **small)


def test_the_command_writes_what_it_prints(command, capsys):
    command(json=Path("out.json"), plot=Path("out.png")).run()
    printed = capsys.readouterr().out
    assert printed.startswith("1 cell of the standard suite, 1 of them held out; 2 episodes each, seed 0")
    assert printed.count("Mean response against") == 2
    content = json.loads(Path("out.json").read_text())
    assert content["policy"]["trained_on"] == "nothing"
    assert content["parameters"] == {"greedy": {}, "priced-greedy": PRICES}
    assert len(content["cells"]) == 4
    assert len(content["rows"]) == 6
    same = next(each for each in content["worth"] if each["rule"] == "priced-greedy")
    assert (same["ours"]["estimate"], same["referee"]["estimate"], same["told"]) == (1.0, 1.0, 0)
    assert same["kept"] is None
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")


def test_with_one_comparison_only_the_factor_is_left_out(command, capsys):
    command(sharing_only=True, episodes=1, rules=("greedy",), plot=Path("out.png")).run()
    printed = capsys.readouterr().out
    assert "without the loaded-latency factor" in printed
    assert "as shipped" not in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"families": ("tea",)}, "family must be one of stream, .*'tea'"),
        ({"machines": ("nowhere",)}, "machine must be one of .*'nowhere'"),
        ({"rules": ("luck",)}, "rule must be one of .*'luck'"),
        ({"rules": ()}, "rules must name at least one, got none"),
        ({"episodes": 0}, "episodes must be >= 1, got 0"),
        ({"workers": 0}, "--workers must be >= 1, got 0"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"plot": Path("picture.jpg")}, "--plot must be a .png file"),
        ({"json": Path("tuned.json")}, "--json must be another file than --tuned"),
        ({"policy": Path("nowhere")}, "nowhere"),
        ({"tuned": Path("nowhere")}, "tuned rules nowhere must be a readable file"),
    ],
)
def test_bad_options_are_refused(command, capsys, options, message):
    with pytest.raises(ValueError, match=message):
        replace(command(), **options).run()
    assert capsys.readouterr().out == ""


def test_without_simgrid_nothing_is_played(policy_file, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "no-python"))
    with pytest.raises(ValueError, match=f"{VARIABLE} must name a Python that can import simgrid"):
        Referee(policy_file, families=("ffn",), rules=("greedy",)).run()


# A real input.


@pytest.mark.skipif(find_simgrid() is None, reason="no Python here has SimGrid: `make fidelity` installs it")
def test_simgrid_says_what_the_second_route_says(trial, policy_file):
    learned, judge = LearnedPlayer.read(policy_file), partial(play, workers=1)
    part = replace(SMALL, machines=("chapter-2-socket",), rules=("first-touch", "heft"))
    real = run_trial(part, learned, ALL_TUNED, judge, Console(quiet=True), workers=1, factors=(False,))
    known = {each.where: each for each in trial.pairings}
    assert [each.where.scheduler for each in real.pairings] == ["first-touch", "heft"]
    for found in real.pairings:
        np.testing.assert_allclose(found.response_s, known[found.where].response_s, rtol=1e-6)

"""The suite as it runs: cached by content, resumable, the same bits for any number of processes."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import Run, refused
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_suite import RULES, small, write_definition

from agents.evaluation import evaluate
from agents.rules.catalog import make_rule
from agents.shipped import POLICY
from envs.observation import ObservationLayout
from experiments.scenario import Split
from experiments.suite import work
from experiments.suite.cache import Cache
from experiments.suite.command import Suite
from experiments.suite.players import LearnedPlayer, OraclePlayer, PlannerPlayer, Player, RulePlayer
from experiments.suite.results import SuiteResult
from experiments.suite.run import Runner
from experiments.suite.work import FAILED, Episodes, PlayPiece, SettingsPiece, columns, run_pieces
from experiments.tune import world_of

SAME_IN_EVERY_RUN = ("suite.parquet", "suite.md", "tuned.csv", "held_out.csv", "best.csv", "wins.csv", "cells.csv")
Values = st.recursive(
    st.floats() | st.integers() | st.text() | st.none(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The pieces that were computed, and not found."""
    log: list[Any] = []
    for kind in (PlayPiece, SettingsPiece):

        def compute(self: Any, world: Any, original: Any = kind.compute) -> Any:
            log.append(self)
            return original(self, world)

        monkeypatch.setattr(kind, "compute", compute)
    return log


def run(folder: Path, *changes: tuple[str, str], **options: Any) -> SuiteResult:
    definition = small(folder, *changes)
    runner = Runner(Cache(folder / "cache"), 1)
    return runner.run(definition.cells(), definition.counts, RULES, **options)


@given(result=st.dictionaries(st.text(), Values))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_kept_is_found_as_it_was(tmp_path: Path, result: dict[str, Any]):
    cache = Cache(tmp_path)
    cache.write({"a": 1}, result)
    assert json.dumps(cache.read({"a": 1})) == json.dumps(result)
    assert cache.read({"a": 2}) is None
    assert not cache.damaged


@pytest.mark.parametrize("damage", ["cut", "empty", "altered", "other", "binary", "list", "deep", "folder"])
def test_a_damaged_file_is_computed_anew_and_said_to_be(tmp_path: Path, computed: list[Any], damage: str):
    cell = small(tmp_path).cells()[0]
    piece = PlayPiece(Episodes(cell.scenario, Split.TEST, 2, 0), RulePlayer("greedy"))
    cache = Cache(tmp_path / "cache")
    first = run_pieces([piece], cache, 1)
    path = cache.path(piece.inputs)
    text = path.read_text()
    other = Cache(tmp_path / "other")
    other.write({"a": 1}, {"cost": [0.0]})
    content: dict[str, bytes] = {
        "cut": text[: len(text) // 2].encode(),
        "empty": b"",
        "altered": text.replace("cost", "kost").encode(),
        "other": other.path({"a": 1}).read_bytes(),
        "binary": bytes(range(256)),
        "list": b"[]",
        "deep": b"[" * 100_000,
    }
    if damage == "folder":
        path.unlink()
        path.mkdir()
        with pytest.raises(OSError, match="directory"):
            run_pieces([piece], cache, 1)
        return
    path.write_bytes(content[damage])
    assert run_pieces([piece], cache, 1) == first
    assert cache.damaged == [path]
    assert len(computed) == 2
    run_pieces([piece], cache, 1)
    assert len(computed) == 2


def test_a_second_run_computes_nothing_and_a_third_only_what_changed(tmp_path: Path, computed: list[Any]):
    first = run(tmp_path)
    assert computed
    computed.clear()
    again = run(tmp_path)
    assert not computed
    assert [entry.result for entry in again.entries] == [entry.result for entry in first.entries]
    run(tmp_path, ("mean_gap_s", "mean_gap_s"), ("load = 0.5\n", "load = 0.7\n"))
    assert {piece.episodes.scenario.name.split("/")[0] for piece in computed} == {"graph"}
    computed.clear()
    run(tmp_path, ("test_episodes = 3", "test_episodes = 4"))
    assert {type(piece) for piece in computed} == {PlayPiece}


def test_other_code_counts_as_another_input(tmp_path: Path, computed: list[Any], monkeypatch: pytest.MonkeyPatch):
    run(tmp_path)
    computed.clear()
    monkeypatch.setattr(work, "code_digest", lambda kind: f"other {kind}")
    run(tmp_path)
    assert computed


def test_whatever_a_result_depends_on_is_an_input(tmp_path: Path):
    first, second = (cell.scenario for cell in small(tmp_path).cells()[:2])
    some = [(first, Split.TEST, 2, 0), (second, Split.TEST, 2, 0), (first, Split.TUNE, 2, 0), (first, Split.TEST, 3, 0)]
    episodes = [Episodes(*each) for each in (*some, (first, Split.TEST, 2, 1))]
    players: list[Player] = [
        RulePlayer("greedy"),
        RulePlayer("random"),
        RulePlayer("random", {"seed": 1}),
        PlannerPlayer("random"),
    ]
    players += [
        OraclePlayer("oracle", {}, (), 1),
        OraclePlayer("oracle", {}, (), 2),
        OraclePlayer("oracle", {"a": 1}, (), 1),
    ]
    players += [OraclePlayer("oracle", {}, (players[0],), 1)]
    pieces: list[Any] = [PlayPiece(each, player) for each in episodes for player in players]
    for value in (1.0, 2.0):
        pieces += [SettingsPiece(each, rule, np.array([[value]])) for each in episodes for rule in ("greedy", "random")]
    assert len({Cache(tmp_path).path(piece.inputs) for piece in pieces}) == len(pieces) == 5 * 8 + 2 * 5 * 2


def test_what_is_interrupted_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    played: list[Any] = []
    original = PlayPiece.compute

    def stopped(self: Any, world: Any) -> Any:
        if len(played) == 4:
            raise KeyboardInterrupt
        played.append(self)
        return original(self, world)

    monkeypatch.setattr(PlayPiece, "compute", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    first = {cell_and_player(piece) for piece in played}
    played[:] = [None] * 5
    result = run(tmp_path)
    assert not first & {cell_and_player(piece) for piece in played[5:]}
    assert len(first) + len(played[5:]) == len({(e.cell.name, json.dumps(e.player.inputs)) for e in result.entries})
    assert not list(tmp_path.rglob("*.tmp"))


def cell_and_player(piece: PlayPiece) -> tuple[str, str]:
    return piece.episodes.scenario.name, json.dumps(piece.player.inputs)


def test_what_is_played_is_what_evaluation_says(tmp_path: Path):
    result = run(tmp_path)
    for entry in result.entries:
        if entry.player.name == "greedy":
            world = world_of(entry.cell.scenario, Split.TEST, 3, 0)
            assert entry.result == columns(evaluate(make_rule("greedy"), world))


def test_everybody_plays_as_tuned_and_held_out_cells_know_only_the_single_setting(tmp_path: Path):
    result = run(tmp_path, others=[PlannerPlayer("tree-match")])
    for cell in result.cells:
        who = [(entry.player.name, entry.tuning) for entry in result.entries if entry.cell is cell]
        own = [] if cell.held_out else [("first-touch", "cell")]
        others = [("shortest-queue", "none"), ("greedy", "none"), ("tree-match", "none")]
        assert who == [*own, ("first-touch", "suite"), *others]
    for entry in result.entries:
        if entry.player.name == "first-touch":
            fitted = result.tuned.single if entry.tuning == "suite" else result.tuned.by_cell[entry.cell.name]
            assert isinstance(entry.player, RulePlayer)
            assert dict(entry.player.parameters) == dict(fitted["first-touch"])


def test_nobody_does_better_than_the_oracle_in_the_episodes_that_it_plays(tmp_path: Path):
    result = run(tmp_path, others=[PlannerPlayer("tree-match")], oracle_width=1)
    assert set(result.oracle) == {cell.name for cell in result.cells}
    for entry in result.entries:
        oracle = result.oracle[entry.cell.name]
        assert len(oracle.cost) == 2
        assert (oracle.cost <= entry.cost[:2] + 1e-12).all()


def test_a_scheduler_that_fails_is_shown_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(self: Any) -> Any:
        raise ValueError("no such luck")

    monkeypatch.setattr(PlannerPlayer, "make", fail)
    result = run(tmp_path, others=[PlannerPlayer("tree-match")])
    failed = [entry for entry in result.entries if entry.player.name == "tree-match"]
    assert [entry.result for entry in failed] == [{FAILED: "no such luck"}] * len(result.cells)
    monkeypatch.undo()
    assert all(entry.failed is None for entry in run(tmp_path, others=[PlannerPlayer("tree-match")]).entries)


def play(folder: Path, name: str, **options: Any) -> dict[str, bytes]:
    """All files that must not differ between runs."""
    definition = write_definition(folder)
    Suite(folder / name, rules=(*RULES, "tree-match"), definition=definition, oracle_width=1, **options).run()
    return {file: (folder / name / file).read_bytes() for file in SAME_IN_EVERY_RUN}


def test_results_are_the_same_bytes_for_any_number_of_processes_and_in_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    alone = play(tmp_path, "alone", workers=1)
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")  # of the processes that are started now
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert play(tmp_path, "together", workers=2) == alone
    assert play(tmp_path, "alone", workers=2) == alone  # from the cache


def test_the_table_has_a_row_for_each_cell_scheduler_and_episode_and_says_what_it_was_made_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    play(tmp_path, "out", seed=5, workers=1)
    table = pq.read_table(tmp_path / "out" / "suite.parquet")
    # In training cells 3 rules, one of them twice, and a planner; elsewhere each once; everywhere the policy that comes
    # with the package, and the oracle, twice.
    assert table.num_rows == 2 * 5 * 3 + 4 * 4 * 3 + 6 * 3 + 6 * 2
    rows = table.to_pylist()
    keys = {(row["cell"], row["scheduler"], row["tuning"], row["episode"]) for row in rows}
    assert len(keys) == table.num_rows
    assert not [name for name in table.column_names if name.endswith(("_us", "seconds", "date"))]
    about = json.loads(table.schema.metadata[b"suite"])
    assert about["seed"] == 5
    assert about["counts"]["test_episodes"] == 3
    assert about["policies"] == {"learned": hashlib.sha256(POLICY.read_bytes()).hexdigest()}
    assert set(about["versions"]) == {"numa-rl", "python", "numpy", "numba", "scipy"}
    assert about["cells"] == {cell.name: cell.scenario.content_hash for cell in small(tmp_path).cells()}
    cell = small(tmp_path).cells()[0]
    world = world_of(cell.scenario, Split.TEST, 3, 5)
    greedy = [row["cost"] for row in rows if (row["cell"], row["scheduler"]) == (cell.name, "greedy")]
    assert greedy == evaluate(make_rule("greedy"), world).cost.tolist()
    times = json.loads((tmp_path / "out" / "decision_times.json").read_text())
    assert set(times["median_us"]) == {*RULES, "learned"}
    assert (tmp_path / "out" / "profile.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    for part in ("cells", "tuning", "playing", "oracle", "statistics"):
        assert f"{part} " in out.split("Time: ")[1]


def save_untrained(path: Path, pair_width: int) -> None:
    """A policy that nobody has trained."""
    from agents.ppo.config import PolicyConfig
    from agents.ppo.policy import PlacementPolicy
    from agents.ppo.storage import save_policy

    space = spaces.Box(0.0, 1e6, (ObservationLayout(4).size,), np.float32)
    config = PolicyConfig(node_width=6, pair_width=pair_width)
    save_policy(path, PlacementPolicy(space, spaces.MultiDiscrete([4, 4]), lambda _: 1e-3, config=config).scorer, {})


def test_a_learned_policy_plays_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, definition = tmp_path / "policy.safetensors", write_definition(tmp_path)
    save_untrained(path, 5)
    Suite(tmp_path / "out", path, rules=RULES, definition=definition, no_oracle=True, workers=1).run()
    rows = pq.read_table(tmp_path / "out" / "suite.parquet").to_pylist()
    assert {row["cell"] for row in rows if row["kind"] == "learned"} == {row["cell"] for row in rows}
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("The policy was trained on ")
    assert "learned against each cell's best rule: " in said[2]
    before = LearnedPlayer.read(path).inputs
    old = LearnedPlayer.read(path).make()
    save_untrained(path, 6)
    player = LearnedPlayer.read(path)
    assert player.inputs != before
    new = player.make()  # and not what was read from the same path before
    assert [each.scorer.config.pair_width for each in (old, new)] == [5, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"families": ("poem",)}, r"family must be one of stream, graph, got 'poem'"),
        ({"machines": ("abacus",)}, r"machine must be one of chapter-2-socket, .*, got 'abacus'"),
        ({"rules": ("luck",)}, r"rule must be one of random, .*, got 'luck'"),
        ({"rules": ("heft",)}, r"--rules must name a rule besides planners, got heft"),
        ({"families": ("graph",)}, r"at least one family and one machine for training"),
        ({"episodes": 0}, r"--episodes must be >= 1, got 0"),
        ({"workers": 0}, r"--workers must be >= 1, got 0"),
        ({"oracle_width": 0}, r"--oracle-width must be >= 1, got 0"),
        ({"seed": -1}, r"--seed must be >= 0, got -1"),
        ({"quick": True}, r"--quick and --definition exclude each other"),
        ({"policy": Path("none.safetensors")}, r"none.safetensors"),
        ({"out": Path("small.toml")}, r"--out must be a folder to write in, got 'small.toml': "),
    ],
)
def test_bad_options_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        Suite(**{"out": Path("out"), "definition": write_definition(Path()), **options}).run()
    assert not list(Path().rglob("*.json"))


def test_on_the_command_line_a_bad_option_is_one_line(numa_rl: Run):
    refused(numa_rl("suite", "--episodes", 0), "--episodes must be >= 1, got 0.")
    refused(numa_rl("suite", "--machines", "abacus"), "machine must be one of xeon-8269cy, ", "got 'abacus'")


def test_fewer_episodes_are_the_first_ones(tmp_path: Path):
    definition = write_definition(tmp_path)
    costs = []
    for episodes in (None, 1):
        Suite(tmp_path / "out", rules=("greedy",), episodes=episodes, definition=definition, workers=1).run()
        rows = pq.read_table(tmp_path / "out" / "suite.parquet").to_pylist()
        costs.append(
            {(r["cell"], r["scheduler"]): r["cost"] for r in rows if r["episode"] == 0 and r["kind"] == "rule"}
        )
    assert costs[0] == costs[1]


def test_a_process_that_is_ended_from_outside_is_reported(tmp_path: Path):
    cells = small(tmp_path).cells()
    pieces = [EndsItsProcess(Episodes(cell.scenario, Split.TEST, 1, 0)) for cell in cells[:2]]
    with pytest.raises(MemoryError, match="a process that computed was ended from outside"):
        run_pieces(pieces, Cache(tmp_path / "cache"), 2)


class EndsItsProcess:
    """A piece of work that ends its process."""

    def __init__(self, episodes: Episodes) -> None:
        self.episodes = episodes

    @property
    def inputs(self) -> dict[str, Any]:
        return self.episodes.inputs

    def compute(self, world: Any) -> Any:
        os._exit(1)


def test_seeds_draw_other_episodes(tmp_path: Path):
    definition = small(tmp_path)
    cells = definition.cells()[:1]
    costs = [
        Runner(Cache(tmp_path / "cache"), 1, seed).run(cells, definition.counts, ["greedy"]).entries[0].cost
        for seed in (0, 1)
    ]
    assert not np.array_equal(*costs)

"""`numa-rl study fidelity`: what is played, written and printed, with a referee made by hand and with SimGrid."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from docutils.core import publish_doctree
from docutils.nodes import bullet_list, table
from rich.console import Console

from agents.evaluation import evaluate
from experiments.fidelity import study as study_module
from experiments.fidelity.cells import Plan, make_scheduler
from experiments.fidelity.laws import KERNEL, LAWS
from experiments.fidelity.play import play_cell, play_cells
from experiments.fidelity.referee import VARIABLE, Played, RefereeError, find_simgrid, play, played
from experiments.fidelity.replay import Replay
from experiments.fidelity.rows import Judged, compare, kernel_law
from experiments.fidelity.study import Fidelity, Study, run_study
from experiments.fidelity.summary import orders
from numa_rl.machines.catalog import load_machine

SMALL = Plan(
    families=("stream", "all-reduce", "ffn"),
    machines=("chapter-2-socket",),
    schedulers=("random", "first-touch", "greedy", "heft"),
    loads_percent=(20.0, 95.0),
    num_episodes=2,
)
STRETCH = 1.25


def stretched(replays: Sequence[Replay], by: float = STRETCH) -> list[Played]:
    """A referee in whose world every task takes longer by the same factor, decided when it is in ours."""
    verdicts = []
    for replay in replays:
        decided_s = np.where(replay.ran, replay.finish_s - replay.response_s, np.inf)
        finish_s = np.where(replay.ran, decided_s + by * replay.response_s, np.inf)
        verdicts.append(played(replay, decided_s, decided_s, finish_s))
    return verdicts


def refused_second(replays: Sequence[Replay]) -> list[Played]:
    """A referee that cannot play the second replay that it is given."""
    verdicts: list[Played | None] = [*stretched(replays)]
    verdicts[1] = None
    raise RefereeError("SimGrid failed at 1 replay: replay 1: no answer.", verdicts)


@pytest.fixture(scope="module")
def study() -> Study:
    return run_study(SMALL, stretched, Console(quiet=True), workers=2, both=True)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command asks the referee made by hand."""
    monkeypatch.setattr(study_module, "play", lambda replays, workers=1: stretched(replays))


# Known answers.


def test_every_cell_has_a_row_for_each_scheduler_with_and_without_the_factor(study):
    cells = 2 + 2 + 1
    assert len(study.sharing) == len(study.shipped) == cells * len(SMALL.schedulers)
    assert not any(row.where.loaded_latency for row in study.sharing)
    assert all(row.where.loaded_latency for row in study.shipped)
    assert [row.where.scheduler for row in study.sharing[:4]] == list(SMALL.schedulers)


def test_a_world_that_takes_longer_by_a_factor_has_that_error_everywhere_and_the_same_order(study):
    for row in study.sharing:
        assert row.response_error == pytest.approx(1.0 / STRETCH - 1.0)
        assert (row.task_median, row.task_p95) == pytest.approx((1.0 - 1.0 / STRETCH,) * 2)
        assert row.makespan_error < 0.0
    assert all(order.agreement.wrong == 0 for order in orders(study.sharing))


def test_a_second_law_times_the_same_decisions(study):
    def as_referee(replay: Replay) -> tuple[np.ndarray, np.ndarray]:
        times = stretched([replay])[0]
        return times.response_s, times.finish_s

    rows = compare(study.plain, {KERNEL: kernel_law, "exact": as_referee})
    assert list(rows) == [KERNEL, "exact"]
    assert rows[KERNEL] == study.sharing
    for row in rows["exact"]:
        assert (row.response_error, row.makespan_error, row.task_p95) == pytest.approx((0.0, 0.0, 0.0))
    sheet = study.sheets({KERNEL: LAWS[KERNEL], "exact": as_referee})[-1]
    assert [cells[0] for cells in sheet.rows] == [KERNEL, "exact"]
    assert sheet.rows[1][1] in ("0.0% (0.0%)", "-")


def test_a_scheduler_that_the_referee_cannot_play_is_left_out_and_named():
    cells = replace(SMALL, families=("stream",), loads_percent=(20.0,)).cells()
    judged, failures = play_cells(cells, SMALL, refused_second, loaded_latency=False)
    assert [each.where.scheduler for each in judged] == list(SMALL.schedulers[1:])
    assert failures == ["stream/chapter-2-socket at 20%, random: SimGrid failed at 1 replay: replay 1: no answer."]


def test_a_referee_that_can_play_nothing_is_an_error():
    def none(replays: Sequence[Replay]) -> list[Played]:
        raise RefereeError("SimGrid failed.", [None] * len(replays))

    cells = replace(SMALL, families=("stream",), loads_percent=(20.0,)).cells()
    with pytest.raises(ValueError, match="the referee could play nothing: stream/chapter-2-socket at 20%, random"):
        play_cells(cells, SMALL, none, loaded_latency=False)


def test_an_error_of_our_own_ends_it_all():
    def broken(replays: Sequence[Replay]) -> list[Played]:
        raise ValueError("no Python has SimGrid")

    with pytest.raises(ValueError, match="no Python has SimGrid"):
        play_cells(SMALL.cells(), SMALL, broken, loaded_latency=False, workers=2)


# Two routes that agree.


def test_how_many_cells_are_played_at_a_time_changes_nothing(study):
    alone = run_study(SMALL, stretched, Console(quiet=True), workers=1, both=False)
    assert alone.sharing == study.sharing
    assert alone.shipped == []


def test_ours_are_the_times_of_the_loop_that_judges_everybody(study):
    cell = SMALL.cells()[1]
    world = cell.world(SMALL.num_episodes, SMALL.seed, loaded_latency=False)
    results = evaluate(make_scheduler("greedy", world), world)
    row = next(r for r in study.sharing if r.where.scheduler == "greedy" and r.where.asked_percent == 95.0)
    assert row.response_s == pytest.approx(results.response_s.mean())
    assert row.makespan_s == pytest.approx(results.finish_s.mean())


def test_every_scheduler_plays_the_same_episodes(study):
    by_cell: dict[object, list[Judged]] = {}
    for judged in [*study.plain, *study.factored]:
        by_cell.setdefault(judged.where.cell[:3], []).append(judged)
    for here in by_cell.values():
        for judged in here:
            for replay, first in zip(judged.replays, here[0].replays, strict=False):
                np.testing.assert_array_equal(replay.arrival_s, first.arrival_s)


# The command.


def test_the_command_writes_what_it_prints(fake, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    paths = {name: tmp_path / f"out.{ending}" for name, ending in (("json", "json"), ("csv", "csv"))}
    paths |= {"plot": tmp_path / "out.png", "tables": tmp_path / "out.txt"}
    Fidelity(
        families=("stream", "ffn"), machines=("chapter-2-socket",), loads=(20.0, 95.0), quick=True, laws=True, **paths
    ).run()
    printed = capsys.readouterr().out
    content = json.loads(paths["json"].read_text())
    assert content["plan"]["families"] == ["stream", "ffn"]
    assert len(content["rows"]) == 2 * 3 * 4
    with paths["csv"].open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(content["rows"])
    assert {line["asked_percent"] for line in lines} == {"20.0", "95.0", ""}
    assert float(lines[0]["response_error"]) == content["rows"][0]["response_error"]
    assert paths["plot"].read_bytes().startswith(b"\x89PNG")
    assert printed.startswith("3 cells: 2 families on 1 machine of 2 nodes, 4 schedulers, 1 episode each")
    tables = paths["tables"].read_text()
    document = publish_doctree(tables, settings_overrides={"halt_level": 2, "report_level": 2})
    titles = [each.astext().splitlines()[0] for each in document.findall(table)]
    assert len(titles) >= 9
    assert len(list(document.findall(bullet_list))) == 1  # the verdict: dashes in tables are none
    for title in titles:
        assert title in printed


def test_the_quick_plan_is_small_and_options_change_it():
    quick = Fidelity(quick=True).plan()
    assert len(quick.cells()) <= 12
    assert (quick.num_episodes, Fidelity(quick=True, episodes=3).plan().num_episodes) == (1, 3)
    assert Fidelity(loads=(50.0,), schedulers=("heft", "random")).plan().schedulers == ("heft", "random")
    assert asdict(Fidelity().plan()) == asdict(Plan())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "--workers must be"),
        ({"episodes": 0}, "episodes must be"),
        ({"machines": ("nowhere",)}, "'nowhere'"),
        ({"plot": Path("picture.jpg")}, "--plot must be a .png file, got 'picture.jpg'"),
        ({"json": Path("same"), "csv": Path("same")}, "must be another file"),
    ],
)
def test_bad_options_are_refused(fake, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        Fidelity(quick=True, **options).run()


def test_without_simgrid_nothing_is_played(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "no-python"))
    with pytest.raises(ValueError, match=f"{VARIABLE} must name a Python that can import simgrid"):
        Fidelity(quick=True).run()
    assert capsys.readouterr().out == ""


# A real input.


@pytest.mark.skipif(find_simgrid() is None, reason="no Python here has SimGrid: `make fidelity` installs it")
def test_simgrid_agrees_where_nobody_meets_anybody():
    plan = Plan(("stream",), ("xeon-8269cy",), ("first-touch", "greedy"), (0.5,), num_episodes=1)
    cell = plan.cells()[0]
    judged, failures = play_cell(cell, plan, partial(play, workers=1), loaded_latency=False)
    assert failures == []
    for row in compare(judged, {KERNEL: kernel_law})[KERNEL]:
        assert 0.0 < row.load < 0.2
        assert row.task_median < 0.01
        assert abs(row.response_error) < 0.05
        assert row.num_tasks == cell.cell.scenario.family.num_tasks
    assert load_machine("xeon-8269cy").num_nodes == row.where.num_nodes

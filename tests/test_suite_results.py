"""The suite's statistics and tables, on results made up so that the right answers are known."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from small_suite import small

from agents.statistics import Interval
from experiments.suite.definition import Cell
from experiments.suite.learned_report import best_single_rule, standings
from experiments.suite.outputs import FIGURES, parquet_bytes, results_table
from experiments.suite.players import OraclePlayer, PlannerPlayer, Player, RulePlayer
from experiments.suite.profile_plot import profile_png
from experiments.suite.report import every_cell, sheets, summary
from experiments.suite.results import NOT_TUNED, TO_CELL, TO_SUITE, Entry, Line, SuiteResult
from experiments.suite.sheet import Sheet
from experiments.suite.tuning import Tuned
from experiments.suite.work import FAILED

EPISODES = 3


class Learned(Player):
    """Stands for a policy."""

    kind = "learned"

    def make(self) -> Any:
        raise NotImplementedError

    @property
    def inputs(self) -> dict[str, Any]:
        return {"name": self.name}


def costs(values: Sequence[float]) -> dict[str, list[float]]:
    """Columns of a result with these costs, and two tasks dropped in the first episode."""
    columns: dict[str, list[Any]] = {name: [0] * len(values) for name in FIGURES}
    dropped = [2, *[0] * (len(values) - 1)]
    return columns | {"episode": list(range(len(values))), "cost": list(values), "out_of_memory": dropped}


@pytest.fixture
def cells(tmp_path: Path) -> dict[str, Cell]:
    """A stream to tune on, the same on a machine held out, and a graph, held out."""
    by_name = {cell.name: cell for cell in small(tmp_path).cells()}
    return {
        name: by_name[f"{name}"] for name in ("stream/chapter-2-socket", "stream/cxl-expander", "graph/cxl-expander")
    }


def suite(cells: Mapping[str, Cell], factors: Mapping[str, Sequence[float]], **failed: str) -> SuiteResult:
    """Everybody costs a factor, by cell, of what an episode costs; the oracle plays two of three episodes."""
    players: dict[str, Player] = {name: RulePlayer(name) for name in ("greedy", "first-touch")}
    players |= {
        "heft": PlannerPlayer("heft"),
        "learned": Learned("learned"),
        "oracle": OraclePlayer("oracle", {}, (), 1),
    }
    entries = []
    for number, cell in enumerate(cells.values()):
        for name, factor in factors.items():
            count = EPISODES - (name == "oracle")
            result = costs([factor[number] * (1.0 + episode) for episode in range(count)])
            tunings = [NOT_TUNED]
            if name == "first-touch":
                tunings = [TO_SUITE] if cell.held_out else [TO_CELL, TO_SUITE]
            for tuning in tunings:
                entries.append(Entry(cell, players[name], tuning, {FAILED: failed[name]} if name in failed else result))
    return SuiteResult(list(cells.values()), entries, Tuned({}, {}, {}), 0)


def entry(result: SuiteResult, cell: str, name: str) -> Entry:
    return next(e for e in result.entries if e.cell.name == cell and e.player.name == name)


def test_a_planner_is_the_best_rule_of_a_graph_and_never_of_a_stream(cells: dict[str, Cell]):
    result = suite(
        cells, {"greedy": [2.0, 2.0, 2.0], "heft": [1.0, 1.0, 1.0], "learned": [0.5] * 3, "oracle": [0.1] * 3}
    )
    best = {name: found.player.name for name, found in result.best_rule.items()}
    assert best == {"stream/chapter-2-socket": "greedy", "stream/cxl-expander": "greedy", "graph/cxl-expander": "heft"}
    assert [entry(result, name, "heft").sees_future for name in cells] == [True, True, False]
    assert all(entry(result, name, "oracle").sees_future for name in cells)
    by_cells = {line.player.name: line.name for line in result.lines(list(cells.values()), TO_SUITE)}
    assert by_cells == {"greedy": "greedy", "heft": "heft*", "learned": "learned", "oracle": "oracle*"}
    named = {row[0] for row in next(sheet for sheet in sheets(result) if sheet.name == "wins").rows}
    assert named == {" 1 learned", " 2 heft*", " 3 greedy"}
    graph = {line.player.name: line.name for line in result.lines([cells["graph/cxl-expander"]], TO_SUITE)}
    assert graph["heft"] == "heft"


def test_costs_are_normalised_by_the_best_rule_in_the_same_episode(cells: dict[str, Cell]):
    result = suite(cells, {"greedy": [2.0, 2.0, 4.0], "first-touch": [3.0, 1.0, 2.0], "oracle": [1.0, 0.5, 1.0]})
    lines = {line.player.name: line for line in result.lines(list(cells.values()), TO_SUITE)}
    # Greedy to the best: 1, 2, 2, each in three episodes; the middle half of nine values is without two at each end.
    assert result.interval(lines["greedy"]).estimate == pytest.approx((1 + 2 + 2 + 2 + 2) / 5)
    found = result.interval(lines["first-touch"])
    assert found.estimate == pytest.approx((1 + 1 + 1 + 1 + 1.5) / 5)
    assert (found.low, found.high) == (pytest.approx(found.estimate), pytest.approx(found.estimate))  # none in a cell
    assert result.percent_of_oracle(lines["first-touch"]) == pytest.approx((100 / 3 + 50 + 50) / 3)
    assert result.percent_of_oracle(lines["oracle"]) == 100.0


def test_wins_are_counted_by_cell(cells: dict[str, Cell]):
    result = suite(cells, {"greedy": [2.0, 2.0, 4.0], "first-touch": [3.0, 1.0, 2.0], "oracle": [0.1] * 3})
    names, count = result.wins
    assert names == ["first-touch", "greedy"] or names == ["greedy", "first-touch"]
    assert count[names.index("greedy"), names.index("first-touch")] == 1
    assert count[names.index("first-touch"), names.index("greedy")] == 2
    assert not np.diagonal(count).any()


def test_who_fails_loses_everywhere_and_is_named_with_the_reason(cells: dict[str, Cell]):
    factors = {"greedy": [2.0, 2.0, 2.0], "first-touch": [3.0, 3.0, 3.0], "heft": [1.0, 1.0, 1.0]}
    result = suite(cells, factors, heft="too many tasks")
    assert {found.player.name for found in result.best_rule.values()} == {"greedy"}
    line = next(line for line in result.lines(list(cells.values()), TO_SUITE) if line.player.name == "heft")
    assert result.interval(line) == Interval(np.inf, -np.inf, np.inf)
    assert line.num_failed == 3
    names, count = result.wins
    assert count[:, names.index("heft")].tolist() == [3 * (name != "heft") for name in names]
    assert summary(result) == [f"heft failed in {name}: too many tasks" for name in cells]
    rows = list(csv.DictReader(io.StringIO(every_cell(result).csv)))
    assert [row["failed"] for row in rows if row["scheduler"] == "heft"] == ["too many tasks"] * 3
    table = results_table(result, {}).to_pylist()
    assert [(row["failed"], row["cost"]) for row in table if row["scheduler"] == "heft"] == [
        ("too many tasks", None)
    ] * 3
    assert profile_png(result).startswith(b"\x89PNG")


def test_where_no_rule_could_play_there_is_nothing_to_compare_with(cells: dict[str, Cell]):
    with pytest.raises(ValueError, match=r"stream/chapter-2-socket: at least one rule must have played .*, got none"):
        sheets(suite(cells, {"greedy": [1.0] * 3}, greedy="no"))


def test_a_learned_policy_is_judged_cell_by_cell_and_where_it_loses_is_said_first(cells: dict[str, Cell]):
    result = suite(cells, {"greedy": [2.0, 2.0, 2.0], "learned": [2.5, 1.5, 2.0]})
    assert summary(result) == [
        "learned against each cell's best rule: loses in 1, is not told apart in 1, wins in 1 of 3 cells.",
        "It loses in stream/chapter-2-socket.",
    ]
    best = next(sheet for sheet in sheets(result) if sheet.name == "best")
    assert [row[-1] for row in best.rows] == ["+25.0%", "-25.0%", "+0.0%"]


def test_a_learned_policy_stands_against_the_single_rule_each_cells_best_and_the_oracle(cells: dict[str, Cell]):
    factors = {
        "greedy": [2.0, 2.0, 2.0],
        "first-touch": [3.0, 3.0, 1.0],
        "learned": [1.5, 1.9, 1.1],
        "oracle": [1.0, 1.0, 0.9],
    }
    result = suite(cells, factors)
    assert best_single_rule(result) == "greedy"
    training, machine, family, everywhere = standings(result, "learned")
    assert [standing.name for standing in (training, machine, family)] == [
        "training", "unseen machines", "unseen families"
    ]  # fmt: skip
    assert training.one_setting.estimate == training.best.estimate == pytest.approx(0.75)
    assert training.headroom == pytest.approx((1 - 0.75) / (1 - 0.5))
    assert machine.best.estimate == pytest.approx(0.95)
    assert family.best.estimate == pytest.approx(1.1)  # over first-touch, which is the best there
    assert family.one_setting.estimate == pytest.approx(1.1 / 2.0)
    assert family.headroom == pytest.approx((1 - 1.1) / (1 - 0.9))
    assert (everywhere.worst, everywhere.num_worse, everywhere.num_cells) == ("graph/cxl-expander", 1, 3)
    assert everywhere.best.estimate == pytest.approx((0.75 + 0.95 + 1.1) / 3)
    table = sheets(result)[0]
    assert [row[-1] for row in table.rows] == ["0", "0", "1", "1"]
    assert "-25.0%" in table.rows[0][2]


def test_without_an_oracle_there_is_no_headroom_to_share(cells: dict[str, Cell]):
    result = suite(cells, {"greedy": [2.0] * 3, "first-touch": [3.0] * 3, "learned": [1.5] * 3})
    assert np.isnan(standings(result, "learned")[0].headroom)
    assert sheets(result)[0].rows[0][4] == "-"


def test_tables_show_everybody_the_cheapest_first_with_tasks_that_were_dropped(cells: dict[str, Cell]):
    factors = {"greedy": [2.0, 2.0, 2.0], "first-touch": [3.0, 3.0, 3.0], "learned": [1.0] * 3, "oracle": [0.5] * 3}
    learned, tuned, held_out, *_ = sheets(suite(cells, factors))
    assert learned.name == "learned-learned"
    assert [row[0] for row in tuned.rows] == [row[0] for row in held_out.rows]
    assert [row[0] for row in held_out.rows] == ["oracle*", "learned", "greedy", "first-touch"]
    dropped = dict(zip((row[0] for row in held_out.rows), (row[-2] for row in held_out.rows), strict=True))
    assert dropped == {"oracle*": "4", "learned": "4", "greedy": "4", "first-touch": "4"}
    shares = dict(zip((row[0] for row in held_out.rows), (row[2] for row in held_out.rows), strict=True))
    assert shares == {"oracle*": "100.0%", "learned": "50.0%", "greedy": "25.0%", "first-touch": "16.7%"}


def test_equal_tables_are_equal_bytes(cells: dict[str, Cell]):
    one, other = (
        parquet_bytes(results_table(suite(cells, {"greedy": [1.0, 2.0, 3.0]}), {"seed": seed})) for seed in (0, 0)
    )
    assert one == other
    assert one != parquet_bytes(results_table(suite(cells, {"greedy": [1.0, 2.0, 3.5]}), {"seed": 0}))


SHEET = Sheet(
    "name",
    "A title that is longer than some of the parts are wide",
    ["who", *(f"column {number}" for number in range(12))],
    [[f"row {row}", *(f"{row} [x] {column}" for column in range(12))] for row in range(3)],
    "A note.",
)


@pytest.mark.parametrize(("width", "parts"), [(40, 4), (80, 2), (120, 2), (200, 1)])
def test_a_sheet_fits_the_terminal_and_repeats_the_names_of_its_rows(width: int, parts: int):
    file = io.StringIO()
    SHEET.print(Console(file=file, width=width))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in file.getvalue()
    assert file.getvalue().count(" who ") == parts
    assert file.getvalue().count(" row 0 ") == parts
    for number in range(12):
        assert file.getvalue().count(f"column {number} ") == 1
        assert file.getvalue().count(f"2 [x] {number} ") == 1


def test_a_sheet_is_the_same_in_markdown_and_csv():
    sheet = Sheet("name", "Title", ["a", "b|c"], [["1", "x, y"], ["2", "|"]], "Note.")
    assert sheet.markdown == "## Title\n\n| a | b\\|c |\n| --- | ---: |\n| 1 | x, y |\n| 2 | \\| |\n\nNote.\n"
    assert list(csv.reader(io.StringIO(sheet.csv))) == [["a", "b|c"], ["1", "x, y"], ["2", "|"]]


def test_a_line_is_of_one_scheduler(cells: dict[str, Cell]):
    result = suite(cells, {"greedy": [1.0] * 3, "first-touch": [2.0] * 3})
    for line in result.lines(list(cells.values()), TO_CELL):
        assert isinstance(line, Line)
        assert len({found.player.name for found in line.entries}) == 1
        assert {found.tuning for found in line.entries} <= {TO_CELL, NOT_TUNED}

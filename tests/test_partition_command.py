"""`numa-rl partition`: the tables, the files it writes, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from experiments.partition import Partition, chosen_methods, target_of
from numa_rl.machines.catalog import load_machine
from numa_rl.partition.methods import available_methods

RING = "8 8\n2 8\n1 3\n2 4\n3 5\n4 6\n5 7\n6 8\n7 1\n"
OURS = {"method": "multilevel", "machine": "chapter-4-socket"}


@pytest.fixture
def ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ring of 8 vertices, in an empty folder with a wide console."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    path = Path("ring.graph")
    path.write_text(RING)
    return path


def run(*files: Path, **options: Any) -> dict[str, Any]:
    """What the command writes with --json."""
    Partition(files, json=Path("out.json"), **options).run()
    written: dict[str, Any] = json.loads(Path("out.json").read_text())
    return written


def test_a_ring_on_four_sockets_is_cut_four_times(ring, capsys):
    (study,) = run(ring, **OURS, trade_off=2.0)["graphs"]
    assert (study["num_vertices"], study["num_edges"], study["num_parts"]) == (8, 8, 4)
    (method,) = study["methods"]
    assert (method["cut"], method["balance"], method["objective"]) == (4.0, 1.0, 4.0 + 2.0 * 2.0)
    assert method["cut_over_metis"] is None
    out = capsys.readouterr().out
    assert "ring.graph" in out
    assert "multilevel" in out


def test_every_method_stands_in_the_table_with_its_ratio_to_metis(ring, capsys):
    pytest.importorskip("pymetis")
    (study,) = run(ring)["graphs"]
    assert [row["method"] for row in study["methods"]] == list(chosen_methods(None))
    ratios = {row["method"]: row["cut_over_metis"] for row in study["methods"]}
    assert ratios["metis"] == 1.0
    assert ratios["multilevel"] <= 1.0
    assert set(available_methods()) < set(ratios)
    out = capsys.readouterr().out
    assert all(method in out for method in ratios)


def test_nodes_are_written_one_a_line(ring):
    Partition((ring,), output=Path("nodes.txt"), **OURS).run()
    nodes = [int(line) for line in Path("nodes.txt").read_text().splitlines()]
    assert sorted(nodes) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert sum(nodes[i] != nodes[i - 1] for i in range(8)) == 4


def test_several_graphs_end_with_a_table_of_all(ring, capsys):
    second = Path("b.graph")
    second.write_text("2 1\n2\n1\n")
    studies = run(ring, second, **(OURS | {"parts": 2}))["graphs"]
    assert [study["methods"][0]["cut"] for study in studies] == [2.0, 1.0]
    assert "All graphs" in capsys.readouterr().out


def test_fewer_parts_than_nodes_are_equal_and_lie_close(ring):
    (study,) = run(ring, **OURS, parts=2)["graphs"]
    machine = load_machine("chapter-4-socket")
    nearest = (machine.latency_s / machine.latency_s[0, 0])[0, 1:].min()
    assert study["methods"][0]["mapped_cost"] == pytest.approx(2.0 * nearest)
    assert study["methods"][0]["balance"] == 1.0


def test_parts_follow_the_cores_of_the_nodes():
    target = target_of(load_machine("chapter-8-socket"), None)
    assert target.shares.tolist() == [0.125] * 8
    assert target.fills_machine
    assert not target_of(load_machine("chapter-8-socket"), 3).fills_machine


def test_methods_that_cannot_do_it_say_why(ring, capsys):
    (study,) = run(ring, parts=3)["graphs"]
    assert "tree-match places on all nodes of the machine" in study["failures"]["tree-match"]
    assert "tree-match: tree-match places" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"files": ()}, "partition needs at least one graph file, or --suite, got neither."),
        ({"parts": 0}, "--parts must be in 1..8, the nodes of chapter-8-socket with cores, got 0."),
        ({"parts": 9}, "--parts must be in 1..8, the nodes of chapter-8-socket with cores, got 9."),
        (
            {"method": "zoltan"},
            "--method must be one of multilevel, spectral, metis, kahip, mt-kahypar, multilevel-map",
        ),
        ({"imbalance": -1.0}, "imbalance must be in [0, 1000], got -1.0."),
        ({"trade_off": float("nan"), "method": "multilevel"}, "trade_off must be finite and >= 0, got nan."),
        ({"seed": -1}, "--seed must be >= 0, got -1."),
        ({"machine": "none"}, "machine must be one of "),
        ({"output": Path("ring.graph")}, "--output must be another file than"),
        ({"output": Path("a.txt"), "suite": True}, "--output takes one graph, got 1 file and the suite."),
        ({"method": "tree-match", "parts": 2}, "ring.graph: tree-match places on all nodes of the machine"),
    ],
)
def test_bad_input_is_named(ring, options, message):
    arguments: dict[str, Any] = {"files": (ring,)} | options
    with pytest.raises(ValueError, match=re.escape(message)):
        Partition(**arguments).run()

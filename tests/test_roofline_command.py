"""`numa-rl roofline` as a person meets it: ceilings, points, a figure, and one line on what is wrong."""

import json
from pathlib import Path

import pytest
from command_line import Run, refused
from matplotlib.image import imread
from strategies import toy_machine

from experiments.points import COLUMNS, MAX_BYTES, read_points
from numa_rl.machines.catalog import machine_names

HEADER = ",".join(COLUMNS)
POINTS = f"""{HEADER}
triad,0.1,18e9,1.0
spmv,0.25,12e9,0.4
dgemm,40,640e9,0.9
scan,0.125,9e9,
"""


@pytest.fixture
def run(numa_rl: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `numa-rl roofline` in an empty folder."""
    monkeypatch.setenv("COLUMNS", "160")
    return lambda *arguments: numa_rl("roofline", *arguments)


# Known answers: chapter-2-socket draws 2 x 90 GB/s locally and 2 x 30 remotely, and computes 640 Gflop/s.


def test_ceilings_and_points_of_the_two_socket_machine(run):
    Path("points.csv").write_text(POINTS)
    code, out, err = run("--machine", "chapter-2-socket", "--points", "points.csv", "--json", "roofline.json")
    assert (code, err) == (0, "")
    written = json.loads(Path("roofline.json").read_text())
    assert written["peak_flops_per_s"] == 640e9
    ceilings = {ceiling["name"]: ceiling for ceiling in written["ceilings"]}
    assert {name: ceiling["bytes_per_s"] for name, ceiling in ceilings.items()} == {
        "local": 180e9,
        "75% local": 150e9,
        "remote, mean": 60e9,
    }
    assert ceilings["75% local"]["byte_weighted_bytes_per_s"] == pytest.approx(120e9)
    assert ceilings["local"]["ridge_flop_per_byte"] == pytest.approx(640 / 180)
    triad, spmv, dgemm, scan = written["points"]
    assert (triad["bound"], triad["reached"], triad["above_its_ceiling"]) == ("memory", pytest.approx(1.0), False)
    assert spmv["attainable_flop_per_s"] == pytest.approx(0.25 * (0.4 * 180e9 + 0.6 * 60e9))
    assert spmv["strategy"] == "move data to tasks"
    assert (dgemm["bound"], dgemm["reached"], dgemm["strategy"]) == ("peak", 1.0, "vectorise")
    assert (scan["bound"], scan["reached"], scan["strategy"]) == ("local memory", pytest.approx(0.4), None)
    assert "move data to tasks" in out
    assert "migratepages PID FROM TO" in out
    assert "above its ceiling" not in out


def test_a_point_above_its_ceiling_is_reported(run):
    Path("points.csv").write_text(f"{HEADER}\nwrong,1,121e9,0.5\nright,1,120e9,0.5\nfast,9,641e9,0.5\n")
    code, out, _ = run("--machine", "chapter-2-socket", "--points", "points.csv", "--json", "out.json")
    assert code == 0
    assert "wrong is above its ceiling (memory)" in out
    assert "fast is above its ceiling (peak)" in out
    assert "right is above" not in out
    assert out.count("drawn at the same time") == 1
    assert [point["above_its_ceiling"] for point in json.loads(Path("out.json").read_text())["points"]] == [
        True,
        False,
        True,
    ]


def test_one_node_is_half_of_two(run):
    run("--machine", "chapter-2-socket", "--json", "whole.json")
    run("--machine", "chapter-2-socket", "--node", "1", "--json", "node.json")
    whole, node = (json.loads(Path(f"{name}.json").read_text()) for name in ("whole", "node"))
    for all_nodes, one in zip(whole["ceilings"], node["ceilings"], strict=True):
        assert one["bytes_per_s"] == pytest.approx(all_nodes["bytes_per_s"] / 2)


def test_best_and_worst_remote_nodes_are_told_apart_where_they_differ(run):
    _, out, _ = run("--machine", "r815", "--local-shares", "0.9", "0.25")
    for name in ("local", "90% local", "25% local", "remote, best node", "remote, mean", "remote, worst node"):
        assert f" {name} " in out


def test_a_machine_of_one_node_has_its_local_ceiling_only(run):
    Path("one.json").write_text(json.dumps(toy_machine(1).to_dict()))
    code, out, _ = run("--machine", "one.json", "--plot", "one.png")
    assert code == 0
    assert "remote" not in out.split("Each node")[0]
    Path("points.csv").write_text(f"{HEADER}\nodd,1,1e9,0.5\n")
    refused(run("--machine", "one.json", "--points", "points.csv"), "point 'odd': local_share must be 1", "got 0.5")


# The figure.


@pytest.mark.parametrize("machine", machine_names())
def test_every_machine_is_drawn(run, machine):
    Path("points.csv").write_text(POINTS + "$x_1$ [bold]markup[/bold],2,1e9,0.6\nabove,1,1e15,0.6\n")
    code, out, err = run("--machine", machine, "--points", "points.csv", "--plot", "new/figure.png")
    assert (code, err) == (0, "")
    assert "$x_1$ [bold]markup[/bold]" in out
    figure = imread("new/figure.png")
    assert figure.shape[:2] == (840, 1200)
    assert figure.std() > 0.01


def test_a_crowd_of_points_with_no_room_for_their_labels_is_drawn(run):
    rows = "\n".join(f"kernel {index},{1 + index / 1000},1e9,0.5" for index in range(120))
    Path("points.csv").write_text(f"{HEADER}\n{rows}\n")
    code, _, err = run("--machine", "chapter-2-socket", "--points", "points.csv", "--plot", "figure.png")
    assert (code, err) == (0, "")


def test_the_smallest_and_largest_points_are_drawn(run):
    Path("points.csv").write_text(f"{HEADER}\nleast,1e-30,1e-30,0\nmost,1e30,1e30,1\n")
    code, _, err = run("--machine", "chapter-2-socket", "--points", "points.csv", "--plot", "figure.png")
    assert (code, err) == (0, "")


# What a file may say.


def test_columns_in_any_order_with_a_byte_order_mark_and_blank_lines(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text(
        "\ufeffperformance_flop_per_s, name,intensity_flop_per_byte\r\n\r\n1e9,a,2\r\n,,\r\n", encoding="utf-8"
    )
    (point,) = read_points(path)
    assert (point.name, point.intensity, point.flops_per_s, point.local_share) == ("a", 2.0, 1e9, None)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["must open with the columns name,intensity_flop_per_byte", "got an empty file"]),
        ("\n\n", ["got an empty file"]),
        (f"{HEADER}\n", ["must have at least one row under the header, got none"]),
        ("name,intensity_flop_per_byte\na,1\n", ["row 1", "must name the column performance_flop_per_s", "got 'name,"]),
        ("a,1,1e9,0.5\n", ["row 1", "must name the column name", "got 'a,1,1e9,0.5'"]),
        (f"{HEADER},colour\n", ["row 1", "columns must be among name, ", "got 'colour'"]),
        (f"{HEADER},name\n", ["row 1", "columns must be named once, got name twice"]),
        (f"{HEADER}\n".replace(",", ";"), ["row 1", "must be separated by commas, got semicolons", "'name;"]),
        (f"{HEADER}\n".replace(",", "\t"), ["row 1", "must be separated by commas, got tabs"]),
        (f"{HEADER}\na,0,5,1e9,0.5\n", ["row 2", "must have 4 cells", "not decimal commas, got 5: 'a,0,5,1e9,0.5'"]),
        (f'{HEADER}\na,"0,5",1e9,0.5\n', ["row 2", "intensity_flop_per_byte must be a number with a", "got '0,5'"]),
        (f"{HEADER}\na,1,fast,0.5\n", ["row 2", "performance_flop_per_s must be a number", "got 'fast'"]),
        (f"{HEADER}\na,1,,0.5\n", ["row 2", "performance_flop_per_s must be a number", "got ''"]),
        (f"{HEADER}\na,nan,1,0.5\n", ["row 2", "intensity_flop_per_byte must be in 1e-30..1e+30, got 'nan'"]),
        (f"{HEADER}\na,1,-1,0.5\n", ["row 2", "performance_flop_per_s must be in 1e-30..1e+30, got '-1'"]),
        (f"{HEADER}\na,1,1e999,0.5\n", ["row 2", "performance_flop_per_s must be in 1e-30..1e+30, got '1e999'"]),
        (f"{HEADER}\na,0,1,0.5\n", ["row 2", "intensity_flop_per_byte must be in 1e-30..1e+30, got '0'"]),
        (f"{HEADER}\nb,1,1,1\na,1,1,75\n", ["row 3", "local_share must be in [0, 1], got '75'"]),
        (f"{HEADER}\na,1,1,75%\n", ["row 2", "local_share must be a number", "got '75%'"]),
        (f"{HEADER}\na,1,1,nan\n", ["row 2", "local_share must be in [0, 1], got 'nan'"]),
        (f"{HEADER}\n,1,1,1\n", ["row 2", "name must be printable text, got ''"]),
        (f"{HEADER}\na\x1b[31m,1,1,1\n", ["row 2", "name must be printable text", r"\x1b"]),
        (f"{HEADER}\na,1,1,1\na,2,2,1\n", ["row 3", "name must differ from every other row's, got 'a' again"]),
        (f'{HEADER}\n"a,1,1,1\n', ["must be CSV"]),
        (f"{HEADER}\na,1,1,1\n" + "#" * MAX_BYTES, [f"must be at most {MAX_BYTES} bytes, got more"]),
    ],
)
def test_a_bad_file_is_refused_with_file_row_rule_and_value(run, text, parts):
    Path("points.csv").write_text(text)
    refused(run("--machine", "r815", "--points", "points.csv", "--json", "out.json"), "points.csv", *parts)
    assert not Path("out.json").exists()


def test_a_file_that_is_none_is_refused(run):
    refused(run("--machine", "r815", "--points", "none.csv"), "none.csv: points must be a readable file: No such file")
    refused(run("--machine", "r815", "--points", "."), "points must be a readable file: Is a directory")
    Path("binary.csv").write_bytes(b"name\xff\xfe\x00")
    refused(run("--machine", "r815", "--points", "binary.csv"), "binary.csv: points must be UTF-8 text")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--machine", "nope"], ["machine must be one of", "got 'nope'"]),
        (["--machine", "r815", "--plot", "figure.pdf"], ["--plot must be a .png file, got 'figure.pdf'"]),
        (["--machine", "r815", "--plot", "."], ["--plot must be a file that can be written"]),
        (["--machine", "r815", "--json", "."], ["--json must be a file that can be written"]),
        (["--machine", "r815", "--node", "8"], ["node must be in 0..7, got 8"]),
        (["--machine", "cxl-expander", "--node", "1"], ["node must be one that has cores (0), got 1"]),
        (["--machine", "r815", "--local-shares", "75"], ["--local-shares must be in [0, 1], got 75"]),
        (["--machine", "r815", "--local-shares", "nan"], ["--local-shares must be in [0, 1], got nan"]),
        ([], ["--machine"]),
    ],
)
def test_a_bad_option_is_refused(run, arguments, parts):
    refused(run(*arguments), *parts)

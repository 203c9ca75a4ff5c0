from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib.image import imread

from experiments.transformer.pipeline import Pipeline
from numa_rl.transformer.pipeline_schedule import bubble_fraction, peak_activations

SMALL = {"layers": 8, "stages": 4, "micro_batches": 4, "width": 512, "tokens": 128}


def content(path, **options):
    Pipeline(**{**SMALL, **options}, json=path / "out.json").run()
    return json.loads((path / "out.json").read_text())


def test_the_simulator_the_timeline_and_the_formula_agree_where_stages_are_equal(tmp_path, capsys):
    found = content(tmp_path)
    assert [run["schedule"] for run in found["schedules"]] == ["gpipe", "1f1b", "interleaved"]
    for run in found["schedules"]:
        formula = bubble_fraction(run["schedule"], 4, 4, run["num_chunks"])
        assert run["bubble_fraction"] == formula
        assert run["timeline"]["bubble_fraction"] == pytest.approx(formula, abs=0.005)
        assert run["simulated"]["bubble_fraction"] == pytest.approx(formula, abs=0.01)
        assert run["simulated"]["batch_s"] == pytest.approx(run["timeline"]["batch_s"], rel=0.02)
        assert run["simulated"]["dropped"] == 0
    printed = capsys.readouterr().out
    assert "T_compute_max" in printed
    assert f"{bubble_fraction('1f1b', 4, 4):.2%}" in printed


def test_the_simulators_memory_is_that_of_the_assignment(tmp_path):
    for run in content(tmp_path, layers=32, micro_batches=8)["schedules"]:
        np.testing.assert_allclose(run["simulated"]["memory_bytes"], run["memory_bytes"], rtol=0.05)
        assert run["live_micro_batches"] == peak_activations(run["schedule"], 4, 8, run["num_chunks"]).tolist()


def test_uneven_stages_idle_longer_than_the_formula_says(tmp_path):
    gpipe, one_f_one_b, interleaved = content(tmp_path, layers=10)["schedules"]
    for run in (gpipe, one_f_one_b, interleaved):
        assert run["timeline"]["bubble_fraction"] > run["bubble_fraction"] + 0.02
        assert run["simulated"]["bubble_fraction"] == pytest.approx(run["timeline"]["bubble_fraction"], abs=0.01)
    assert np.diff(interleaved["bounds"]).tolist() == [2, 2, 1, 1, 1, 1, 1, 1]


def test_a_schedule_that_cannot_be_says_why_and_the_others_are_shown(tmp_path, capsys):
    found = content(tmp_path, micro_batches=6)
    assert [run["schedule"] for run in found["schedules"]] == ["gpipe", "1f1b"]
    assert found["failures"]["interleaved"].endswith("got 6; 4 or 8 would do.")
    assert "4 or 8 would do." in " ".join(capsys.readouterr().out.split())
    assert "--layers must be >= 8, got 7." in content(tmp_path, layers=7)["failures"]["interleaved"]


def test_what_is_too_large_to_simulate_is_left_out(tmp_path, capsys):
    found = content(tmp_path, micro_batches=1000)
    assert [run["simulated"] for run in found["schedules"]] == [None] * 3
    assert "too many tasks to be simulated" in capsys.readouterr().out


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved"])
def test_the_picture_shows_passes_and_idle_time(tmp_path, schedule):
    Pipeline(**SMALL, schedule=schedule, plot=tmp_path / "timeline.png").run()
    pixels = (imread(tmp_path / "timeline.png")[..., :3] * 255).round().astype(int).reshape(-1, 3)
    shares = [(pixels == color).all(axis=1).mean() for color in ([27, 73, 101], [224, 145, 47], [233, 237, 240])]
    assert min(shares) > 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "2f2b"}, r"--schedule must be one of gpipe, 1f1b, interleaved, got '2f2b'\."),
        ({"recompute": "half"}, r"--recompute must be one of none, attention, full, got 'half'\."),
        ({"stages": 9}, r"num_stages must be a whole number in 1\.\.8: .*; got 9\."),
        ({"micro_batches": 0}, r"num_micro_batches must be a whole number >= 1, got 0\."),
        ({"schedule": "interleaved", "chunks": 1}, r"num_chunks must be >= 2 for interleaved, got 1"),
        ({"schedule": "interleaved", "micro_batches": 6}, r"4 or 8 would do\."),
        ({"sequences": 0}, r"sequences must be a whole number >= 1, got 0\."),
        ({"width": 0}, r"--width must be in 1..1000000000 without --heads, got 0"),
        ({"width": 10**6, "heads": 100}, r"4 stages do not fit the memory of chapter-8-socket: 8 would fit|each would"),
        ({"link_time": 0.0}, r"link_s must be > 0, got 0\.0\."),
        ({"link_time": 1e-9}, r"links of chapter-8-socket are too slow: .* s would do, or fewer stages\."),
        ({"machine": "nowhere"}, "nowhere"),
    ],
)
def test_bad_options_are_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        Pipeline(**{**SMALL, **options}).run()


def test_a_picture_is_a_png(tmp_path):
    with pytest.raises(ValueError, match=r"--plot must be a \.png file"):
        Pipeline(**SMALL, plot=tmp_path / "timeline.pdf").run()
    with pytest.raises(ValueError, match="--plot must be another file than --json"):
        Pipeline(**SMALL, plot=tmp_path / "one.png", json=tmp_path / "one.png").run()

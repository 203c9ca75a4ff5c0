"""`numa-rl exercises`: the chapter's answers, ours, and the reason wherever they differ."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run, refused

from experiments.chapter import ABOUT, EXERCISES, NUMBER, PERCENT, Exercise, Result
from experiments.exercises import Exercises
from numa_rl.machines.catalog import load_machine
from numa_rl.matmul import (
    cannon_elements_per_step,
    most_square_grid,
    naive_elements_per_node,
    summa_elements_per_node,
)
from numa_rl.stealing.simulation import TaskSet

Answers = dict[tuple[int, str], dict[str, Any]]


@pytest.fixture
def run(numa_rl: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `numa-rl exercises` in an empty folder, on a console of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *arguments: numa_rl("exercises", *arguments)


@pytest.fixture(scope="module")
def solved() -> tuple[Exercise, ...]:
    return tuple(solve() for solve in EXERCISES)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Every result in the JSON file, by exercise and name."""
    file = tmp_path_factory.mktemp("answers") / "out/answers.json"
    Exercises(file).run()
    content = json.loads(file.read_text())
    return {(each["number"], result["name"]): result for each in content["exercises"] for result in each["results"]}


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """What is printed on a console of 80 columns, a line each, with single blanks."""
    with pytest.MonkeyPatch.context() as patch, io.StringIO() as out, contextlib.redirect_stdout(out):
        patch.setenv("COLUMNS", "80")
        Exercises().run()
        return [" ".join(line.split()) for line in out.getvalue().splitlines()]


# Known answers.


@pytest.mark.parametrize(
    ("number", "name", "ours", "unit", "agrees"),
    [
        (1, "mean latency", 18e-9, "s", True),
        (1, "more than local latency", 0.8, "1", True),
        (2, "flat ring, chapter", 0.28, "s", True),
        (2, "flat ring, textbook", 0.14, "s", False),
        (2, "hierarchical, overlapped", 0.08, "s", True),
        (2, "hierarchical, in turn", 0.11, "s", False),
        (2, "gain, overlapped", 3.5, "1", True),
        (2, "gain, in turn", 0.28 / 0.11, "1", False),
        (2, "gain over the textbook ring", 1.75, "1", False),
        (3, "effective bandwidth", 75e9, "B/s", True),
        (3, "memory efficiency", 0.75, "1", True),
        (3, "bandwidth, bytes in turn", 60e9, "B/s", False),
        (4, "Cannon, each step", (480 * 960 + 960 * 720) / 16 * 8, "B", True),
        (4, "naive over Cannon", 5184 / (1728 + 576), "1", None),
        (4, "largest difference from A B", 0.0, "1", None),
        (6, "parameters", 400e12, "B", True),
        (6, "gradients", 400e12, "B", True),
        (6, "Adam", 1600e12, "B", True),
        (6, "activations", 180 * 2048 * 2 * 1104 * 122880, "B", True),
        (6, "KV cache", 45 * 2048 * 4 * 1104 * 122880, "B", True),
        (6, "activations, all kept", 1104 * 180 * 2048 * (34 * 122880 + 5 * 960 * 2048), "B", None),
        (6, "sockets it needs", 2551, "1", False),
        (6, "ranks", 16384, "1", True),
        (6, "parameters of a rank", 400e12 / 16384, "B", False),
        (6, "Adam of a rank", 1600e12 / 16384, "B", False),
        (6, "parameters, replicas equal", 400e12 / 512, "B", False),
        (6, "sockets for the ranks", 3277, "1", False),
    ],
)
def test_answers(answers, number, name, ours, unit, agrees):
    result = answers[number, name]
    assert result["ours"] == pytest.approx(ours, rel=1e-12)
    assert (result["unit"], result["agrees"]) == (unit, agrees)


def test_the_chapters_answers_are_those_it_prints(answers):
    printed = {key: result["chapter"] for key, result in answers.items() if key[0] < 4}
    assert list(printed.values()) == [18e-9, 0.8, 0.28, 0.28, 0.08, 0.08, 3.5, 3.5, 3.5, 75e9, 0.75, 75e9]


def test_the_chapters_memory_plan_is_the_one_it_prints(answers):
    printed = {name: result["chapter"] for (number, name), result in answers.items() if number == 6}
    assert [value for value in printed.values() if value] == [
        400e12, 400e12, 1600e12, 100e12, 50e12, 2550e12, 8, 16384, 25e9, 100e9, 25e9, 8
    ]  # fmt: skip


def test_the_parts_of_the_memory_plan_add_up_but_for_the_layer_at_work(answers):
    parts = sum(answers[6, name]["ours"] for name in ("parameters", "gradients", "Adam", "activations", "KV cache"))
    assert parts < answers[6, "all of it"]["ours"] < parts * (1 + 1e-4)
    assert answers[6, "all of it"]["agrees"]


def test_the_volumes_counted_are_those_of_the_formulas(answers):
    m, k, n, square, other, size = 480, 960, 720, 16, 8, 8
    step = cannon_elements_per_step(m, k, n, square) * size
    assert answers[4, "Cannon, each step"]["ours"] == answers[4, "Cannon, each step"]["chapter"] == step
    assert answers[4, "Cannon, all steps"]["ours"] == 3 * step
    assert answers[4, "Cannon, skew"]["ours"] == step
    assert answers[4, "naive"]["ours"] == naive_elements_per_node(k, n, square) * size
    summa = summa_elements_per_node(m, k, n, *most_square_grid(other)) * size
    assert answers[4, "SUMMA, all steps"]["ours"] == summa
    assert answers[4, "naive over SUMMA"]["ours"] == naive_elements_per_node(k, n, other) * size / summa


def test_without_stealing_the_time_is_that_of_the_longest_queue(answers):
    machine, makespans_s = load_machine("chapter-8-socket"), []
    for run in range(8):
        tasks = TaskSet.bursts(
            np.random.default_rng([5, run]), num_workers=64, num_bursts=64, burst_tasks=64, compute_s=20e-6,
            data_bytes=256e3, load=0.7,
        )  # fmt: skip
        free_s = np.zeros(64)
        for begin_s, worker, compute_s, size in zip(*vars(tasks).values(), strict=True):
            local_s = compute_s + size / machine.bandwidth_bytes_per_s[0, 0]
            free_s[worker] = max(free_s[worker], begin_s) + local_s
        makespans_s.append(free_s.max())
    assert answers[5, "time, no stealing"]["ours"] == pytest.approx(np.mean(makespans_s))


def test_stealing_by_levels_is_faster_and_stays_nearer(answers):
    ours = {name: result["ours"] for (number, name), result in answers.items() if number == 5}
    by_levels, random = "hierarchical, fixed", "random victim"
    assert ours[f"time, {by_levels}"] < ours[f"time, {random}"] < ours["time, no stealing"]
    assert ours[f"C_total, {by_levels}"] < ours[f"C_total, {random}"] < ours["C_total, no stealing"]
    assert ours[f"far steals, {by_levels}"] < ours[f"far steals, {random}"]
    assert ours[f"remote data, {by_levels}"] < ours[f"remote data, {random}"]
    assert ours["looks, hierarchical, adaptive"] < ours[f"looks, {by_levels}"]
    assert {result["chapter"] for (number, _), result in answers.items() if number == 5} == {None}


# Laws.


def test_exercises_come_in_the_chapters_order(solved):
    assert [exercise.number for exercise in solved] == list(range(1, len(solved) + 1))


def test_whatever_differs_says_why(solved):
    results = [result for exercise in solved for result in exercise.results]
    assert any(result.agrees is False for result in results)
    assert [result.name for result in results if result.agrees is False and not result.note] == []


def test_names_in_an_exercise_are_different(solved):
    for exercise in solved:
        assert len({result.name for result in exercise.results}) == len(exercise.results)


@pytest.mark.parametrize(("ours", "agrees"), [(0.28, True), (0.28 * (1 + 1e-12), True), (0.2801, False)])
def test_a_number_agrees_only_if_it_is_the_chapters(ours, agrees):
    assert Result("ring", NUMBER, ours, max, 0.28).agrees is agrees
    assert Result("ring", NUMBER, ours, max).agrees is None


@pytest.mark.parametrize(("ours", "agrees"), [(100.9, True), (99.1, True), (102.0, False), (98.0, False)])
def test_where_the_chapter_says_about_a_number_within_1_percent_agrees(ours, agrees):
    assert Result("activations", NUMBER, ours, max, 100.0, tolerance=ABOUT).agrees is agrees


def test_values_are_shown_in_their_unit():
    assert PERCENT.text(0.6, 0.3, 0.1) == "60, 30, 10%"
    assert NUMBER.text(16384, 2073.6) == "16384, 2074"


# What is printed.


@pytest.mark.parametrize(
    "row",
    [
        "mean latency 18 ns 18 ns agrees",
        "more than local latency +80% +80% agrees",
        "flat ring, chapter 0.28 s 0.28 s agrees",
        "flat ring, textbook 0.14 s 0.28 s differs",
        "hierarchical, overlapped 0.08 s 0.08 s agrees",
        "hierarchical, in turn 0.11 s 0.08 s differs",
        "gain, overlapped 3.5x 3.5x agrees",
        "effective bandwidth 75 GB/s 75 GB/s agrees",
        "memory efficiency 75% 75% agrees",
        "Cannon, each step 576 kB 576 kB agrees",
        "naive 5184 kB - -",
        "SUMMA, all steps 2074 kB - -",
        "time, no stealing 6.304 ms - -",
        "all of it 2550 TB 2550 TB agrees",
        "ranks 16384 16384 agrees",
        "parameters of a rank 24.41 GB 25 GB differs",
    ],
)
def test_rows_hold_our_number_the_chapters_and_the_verdict(lines, row):
    assert row in lines


def test_everything_fits_80_columns(run):
    code, out, err = run()
    assert (code, err) == (0, "")
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80


def test_inputs_notes_and_functions_are_printed(run, solved):
    out = " ".join(run()[1].split())
    assert "Given: share of the accesses 60, 30, 10%; latency 10, 25, 45 ns" in out
    for exercise in solved:
        assert f"Exercise {exercise.number} {exercise.title}" in out
        assert all(given.unit.text(*given.values) in out for given in exercise.given)
        assert all(result.function.__name__ in out for result in exercise.results)
    assert "MK/P + KN/P" in out


def test_the_file_says_inputs_and_functions_too(run):
    run("--json", "answers.json")
    first = json.loads(Path("answers.json").read_text())["exercises"][0]
    assert [item["values"] for item in first["given"]] == [[0.6, 0.3, 0.1], [10e-9, 25e-9, 45e-9]]
    assert [item["unit"] for item in first["given"]] == ["1", "s"]
    assert first["results"][0]["function"] == "numa_rl.roofline.mean_latency"


@pytest.mark.parametrize("place", ["/proc/x", "file/below.json", "folder"])
def test_a_file_that_cannot_be_written_is_refused_first(run, place):
    Path("file").write_text("a file")
    Path("folder").mkdir()
    refused(run("--json", place), f"--json must be a file that can be written, got '{place}'")

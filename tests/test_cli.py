"""The command `numa-rl` and bad input: it costs one line and no time, and nothing is written."""

import json
import os
import pickle
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import SMALL_SCENARIO, Run, refused

from experiments import cli
from experiments.cli import BAD_INPUT, INTERRUPTED
from experiments.scenario import scenario_names
from numa_rl.machines.catalog import machine_names


@pytest.fixture
def untuned(numa_rl: Run) -> str:
    """The same scenario before anything was tuned: bad input must be noticed before that takes its time."""
    Path("small.toml").write_text(SMALL_SCENARIO)
    return "small.toml"


# What does not exist.


@pytest.mark.parametrize("command", ["train", "tune", "compare"])
def test_an_unknown_scenario_is_answered_with_the_known_ones(numa_rl, command):
    refused(numa_rl(command, "--scenario", "nope"), "scenario must be one of", *scenario_names(), "got 'nope'")
    refused(numa_rl(command, "--scenario", "nope.toml"), "got 'nope.toml'")
    refused(numa_rl(command, "--scenario", "."), "got '.'")


def test_an_unknown_machine_is_answered_with_the_known_ones(numa_rl):
    refused(numa_rl("machine", "show", "nope"), "machine must be one of", *machine_names(), "got 'nope'")


@pytest.mark.parametrize("suffix", ["xml", "json"])
def test_a_missing_machine_file_is_refused(numa_rl, suffix):
    refused(numa_rl("machine", "show", f"none.{suffix}"), f"'none.{suffix}'", "must be an existing file, got none")


# Machine files that are none.

LAUGHS = """<?xml version="1.0"?>
<!DOCTYPE topology [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>
<topology version="2.0"><object type="Machine"><info name="x" value="&c;"/></object></topology>
"""


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "XML"),
        ('<?xml version="1.0"?>\n<topology version="2.0"><object type="Mach', "XML"),
        (LAUGHS, "must not define XML entities"),
        ('<!DOCTYPE t [<!ENTITY a SYSTEM "file:///etc/passwd">]><t>&a;</t>', "must not define XML entities"),
        ("<html><body/></html>", "hwloc"),
    ],
    ids=["empty", "truncated", "laughs", "foreign entity", "no topology"],
)
def test_xml_that_is_no_machine_is_refused(numa_rl, text, rule):
    Path("machine.xml").write_text(text)
    refused(numa_rl("machine", "show", "machine.xml"), "hwloc file 'machine.xml'", rule)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[" * 100_000, '{"name": "x"}', "\0"])
def test_json_that_is_no_machine_is_refused(numa_rl, text):
    Path("machine.json").write_text(text)
    refused(numa_rl("machine", "show", "machine.json"), "machine file 'machine.json'")


# Scenarios that are none.


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda text: text.replace("machine =", "colour = 1\nmachine ="), ["colour"]),
        (lambda text: text.replace("num_tasks = 12", "num_task = 12"), ["[workload]", "num_task"]),
        (lambda text: text.replace("reference_s = 0.05", ""), ["[reward]", "missing key 'reference_s'"]),
        (lambda text: text.replace("reference_s = 0.05", "reference_s = 0.0"), ["[reward]", "reference_s", "got 0"]),
        (lambda text: text.replace("num_tasks = 12", "num_tasks = -3"), ["[workload]", "num_tasks", "got -3"]),
        (lambda text: text.replace('"synthetic"', '"other"'), ["[workload]", "family", "'other'", "llm-serving"]),
        (lambda text: text.replace("chapter-2-socket", "nope"), ["machine must be one of", "'nope'"]),
        (lambda text: text.replace("[reward]", "[reward"), ["not valid TOML"]),
        (lambda text: "", ["missing key"]),
    ],
)
@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_scenario_that_breaks_a_rule_is_refused(numa_rl, untuned, command, change, parts):
    Path("small.toml").write_text(change(SMALL_SCENARIO))
    refused(numa_rl(command, "--scenario", "small.toml"), "small.toml: ", *parts)
    assert not Path("results").exists()
    assert not Path("runs").exists()


def test_a_scenario_that_is_no_text_is_refused(numa_rl):
    Path("small.toml").write_bytes(b"\xff\xfe\x00")
    refused(numa_rl("tune", "--scenario", "small.toml"), "small.toml: must be UTF-8 text")


# Policies that are none.


class Bomb:
    """Makes a file when unpickled."""

    def __reduce__(self) -> Any:
        return (open, ("made", "w"))


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "not a safetensors file"),
        (np.random.default_rng(0).bytes(1000), "not a safetensors file"),
        (pickle.dumps(Bomb()), "not a safetensors file"),
        (None, "no such file"),
    ],
    ids=["empty", "random", "pickle", "missing"],
)
def test_a_file_that_is_no_policy_is_refused_before_anything_is_tuned(numa_rl, untuned, content, rule):
    if content is not None:
        Path("p.safetensors").write_bytes(content)
    refused(numa_rl("compare", "--scenario", untuned, "--policy", "p.safetensors"), "p.safetensors: ", rule)
    assert not Path("made").exists()
    assert not Path("results").exists()


# How it ends.


def test_an_interrupt_that_python_wraps_during_an_import_ends_as_any_other(numa_rl, monkeypatch):
    def interrupted(*arguments: object) -> None:
        raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()

    monkeypatch.setattr("experiments.commands.parse", interrupted)
    ended = numa_rl("exercises")
    assert (ended.code, ended.err) == (INTERRUPTED, "numa-rl: stopped\n")


def test_an_interrupt_that_a_callback_swallows_ends_as_any_other(numa_rl, monkeypatch):
    def interrupted(*arguments: object) -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise RuntimeError("no compiled object yet")

    before = signal.getsignal(signal.SIGINT), sys.unraisablehook
    monkeypatch.setattr("experiments.commands.parse", interrupted)
    ended = numa_rl("exercises")
    assert (ended.code, ended.err) == (INTERRUPTED, "numa-rl: stopped\n")
    assert (signal.getsignal(signal.SIGINT), sys.unraisablehook) == before


def test_ctrl_c_that_comes_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])
    with cli.Interrupts():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        now[0] += 0.5
        signal.raise_signal(signal.SIGINT)  # what saves meanwhile goes on
        now[0] += 2.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_error_of_our_own_keeps_its_traceback(numa_rl, monkeypatch):
    def broken(*arguments: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("experiments.commands.parse", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        numa_rl("exercises")


# Places that cannot be written.

POINTS = "name,intensity_flop_per_byte,performance_flop_per_s\ntriad,0.1,1e9\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("diagnose", "in.csv", "--json", "in.csv"), "--json must be another file than the input, got 'in.csv'"),
        (("diagnose", "in.csv", "--json", "link.json"), "--json must be another file than the input, got 'link.json'"),
        (("roofline", "--machine", "r815", "--points", "in.csv", "--json", "./in.csv"), "another file than --points"),
        (("roofline", "--machine", "r815", "--plot", "a.png", "--json", "a.png"), "--plot must be another file than"),
        (("compare", "--scenario", "in.csv", "--json", "in.csv"), "in.csv"),
    ],
)
def test_what_is_read_is_never_overwritten(numa_rl, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text(POINTS)
    Path("link.json").symlink_to("in.csv")
    refused(numa_rl(*arguments), message)
    assert Path("in.csv").read_text() == POINTS


def test_only_regular_files_are_written(numa_rl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    refused(
        numa_rl("exercises", "--json", "pipe"), "--json must be a file that can be written, got 'pipe': Not a regular"
    )
    assert Path("pipe").is_fifo()


def test_a_link_to_a_file_stays_a_link(numa_rl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("real.json").write_text("{}")
    Path("link.json").symlink_to("real.json")
    assert numa_rl("exercises", "--json", "link.json").code in (None, 0)
    assert Path("link.json").is_symlink()
    assert "exercises" in json.loads(Path("real.json").read_text())


@pytest.mark.parametrize("place", ["/proc/x", "file/below.json", "folder"])
@pytest.mark.parametrize(
    ("command", "option"), [("compare", "--json"), ("compare", "--plot"), ("tune", "--out"), ("bench", "--out")]
)
def test_an_output_that_cannot_be_written_is_refused_first(numa_rl, untuned, command, option, place):
    Path("file").write_text("a file")
    Path("folder").mkdir()
    scenario = [] if command == "bench" else ["--scenario", untuned]
    refused(numa_rl(command, *scenario, option, place), f"{option} must be a file that can be written, got '{place}'")
    assert not Path("results").exists()
    assert Path("file").read_text() == "a file"
    assert list(Path("folder").iterdir()) == []


@pytest.mark.parametrize("place", ["/proc/x", "file", "file/below"])
def test_a_run_that_cannot_be_written_is_refused_first(numa_rl, untuned, place):
    Path("file").write_text("a file")
    refused(numa_rl("train", "--scenario", untuned, "--out", place), "--out must be a file that can be written", place)
    assert not Path("results").exists()


# Numbers out of range.


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("compare", "--episodes"),
        ("tune", "--episodes"),
        ("tune", "--settings"),
        ("train", "--train-episodes"),
        ("train", "--validation-episodes"),
        ("demo", "--episodes"),
        ("bench", "--runs"),
        ("bench", "--steps"),
    ],
)
def test_bad_counts_are_refused_before_anything_takes_time(numa_rl, untuned, command, option, value):
    scenario = [] if command in ("demo", "bench") else ["--scenario", untuned]
    refused(numa_rl(command, *scenario, option, value), option.split("-")[-1], f"got {value}")
    assert not Path("results/small/tuned.json").exists()
    assert not Path("runs").exists()


@pytest.mark.parametrize("command", ["compare", "tune"])
def test_a_negative_seed_is_refused_before_anything_takes_time(numa_rl, untuned, command):
    refused(numa_rl(command, "--scenario", untuned, "--seed", -1), "seed must be >= 0, got -1")
    assert not Path("results/small/tuned.json").exists()


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("--teacher.labels", "-1", "labels must be >= 0, got -1"),
        ("--teacher.num-candidates", "1", "num_candidates must be >= 2, got 1"),
        ("--ppo.n-steps", "0", "n_steps must be >= 1, got 0"),
        ("--ppo.gamma", "1.5", "gamma must be in [0, 1), got 1.5"),
        ("--ppo.num-envs", "many", "many"),
        ("--no-such-option", "1", "no-such-option"),
    ],
)
def test_what_the_parser_refuses_says_the_rule_and_ends_with_the_same_code(numa_rl, untuned, option, value, rule):
    ended = numa_rl("train", "--scenario", untuned, option, value)
    assert ended.code == BAD_INPUT
    assert rule in ended.err
    assert "Traceback" not in ended.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        ("--seed=-1", "seed must be >= 0, got -1"),
        ("--validate-every=0", "validate_every must be >= 1, got 0"),
        ("--pair-width=0", "pair_width must be in 1..4096, got 0"),
        ("--prior-scale=0", "prior_scale must be in"),
    ],
)
@pytest.mark.parametrize("command", ["train", "demo"])
def test_a_configuration_out_of_range_is_refused_before_anything_takes_time(numa_rl, untuned, command, option, rule):
    scenario = [] if command == "demo" else ["--scenario", untuned]
    refused(numa_rl(command, *scenario, option), rule)
    assert not Path("runs").exists()


@pytest.mark.parametrize(("key", "value"), [("num_tasks", "10000000000000"), ("burst_s", "1e-300")])
def test_numbers_beyond_the_machine_end_in_one_line(numa_rl, tmp_path, key, value):
    setting = f"{key} = {value}\nburstiness = 3.0"
    (tmp_path / "huge.toml").write_text(SMALL_SCENARIO.replace("num_tasks = 12", setting), encoding="utf-8")
    ended = numa_rl("tune", "--scenario", tmp_path / "huge.toml", "--episodes", 1, "--settings", 4)
    assert ended.code == BAD_INPUT
    assert ended.err.count("\n") == 1

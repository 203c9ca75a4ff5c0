"""The command `numa-rl` as a person meets it: bad input costs one line and no time, and help names every option."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Ended, Run, refused

from agents.ppo.storage import read_tensors
from agents.ppo.training import Trainer
from agents.rules.catalog import rule_names
from experiments.bench import Bench
from experiments.cli import BAD_INPUT, main
from experiments.compare import Compare
from experiments.demo import Demo
from experiments.diagnose import Diagnose
from experiments.exercises import Exercises
from experiments.machine import MachineList, MachineShow
from experiments.roofline import Roofline
from experiments.scenario import load_scenario, scenario_names
from experiments.train import INTERRUPTED, Train
from experiments.tune import Tune, load_or_tune
from numa_rl.machines.catalog import machine_names

torch.set_num_threads(1)

TOML = """
description = "A stream too short to learn much from"
machine = "chapter-2-socket"

[workload]
family = "synthetic"
num_tasks = 12

[reward]
reference_s = 0.05

[simulation]
window_s = 0.2
"""

# A run of a second: two updates of the teacher, two of PPO.
QUICK = [
    *("--train-episodes", "4", "--validation-episodes", "2", "--validate-every", "2", "--node-width", "6"),
    *("--teacher.labels", "32", "--teacher.labels-per-update", "16", "--teacher.num-rows", "8"),
    *("--teacher.depth", "3", "--teacher.num-threads", "1", "--ppo.total-timesteps", "128"),
    *("--ppo.num-envs", "4", "--ppo.n-steps", "16", "--ppo.batch-size", "32"),
]


@pytest.fixture
def run(numa_rl: Run) -> Run:
    """Runs `numa-rl` in an empty folder."""
    return numa_rl


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of the tuned rules of the small scenario, found with less patience than usual."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "small.toml").write_text(TOML)
    load_or_tune(load_scenario(folder / "small.toml"), path=folder / "tuned.json", num_episodes=2, num_settings=2)
    return (folder / "tuned.json").read_text()


@pytest.fixture
def small(run: Run, tuned: str) -> str:
    """The small scenario in the folder where `run` runs."""
    Path("small.toml").write_text(TOML)
    Path("results/small").mkdir(parents=True)
    Path("results/small/tuned.json").write_text(tuned)
    return "small.toml"


@pytest.fixture
def untuned(run: Run) -> str:
    """The same scenario before anything was tuned: bad input must be noticed before that takes its time."""
    Path("small.toml").write_text(TOML)
    return "small.toml"


# What does not exist.


@pytest.mark.parametrize("command", ["train", "tune", "compare"])
def test_an_unknown_scenario_is_answered_with_the_known_ones(run, command):
    refused(run(command, "--scenario", "nope"), "scenario must be one of", *scenario_names(), "got 'nope'")
    refused(run(command, "--scenario", "nope.toml"), "got 'nope.toml'")
    refused(run(command, "--scenario", "."), "got '.'")


def test_an_unknown_machine_is_answered_with_the_known_ones(run):
    refused(run("machine", "show", "nope"), "machine must be one of", *machine_names(), "got 'nope'")


@pytest.mark.parametrize("suffix", ["xml", "json"])
def test_a_missing_machine_file_is_refused(run, suffix):
    refused(run("machine", "show", f"none.{suffix}"), f"'none.{suffix}'", "must be an existing file, got none")


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
def test_xml_that_is_no_machine_is_refused(run, text, rule):
    Path("machine.xml").write_text(text)
    refused(run("machine", "show", "machine.xml"), "hwloc file 'machine.xml'", rule)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[" * 100_000, '{"name": "x"}', "\0"])
def test_json_that_is_no_machine_is_refused(run, text):
    Path("machine.json").write_text(text)
    refused(run("machine", "show", "machine.json"), "machine file 'machine.json'")


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
def test_a_scenario_that_breaks_a_rule_is_refused(run, untuned, command, change, parts):
    Path("small.toml").write_text(change(TOML))
    refused(run(command, "--scenario", "small.toml"), "small.toml: ", *parts)
    assert not Path("results").exists()
    assert not Path("runs").exists()


def test_a_scenario_that_is_no_text_is_refused(run):
    Path("small.toml").write_bytes(b"\xff\xfe\x00")
    refused(run("tune", "--scenario", "small.toml"), "small.toml: must be UTF-8 text")


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
def test_a_file_that_is_no_policy_is_refused_before_anything_is_tuned(run, untuned, content, rule):
    if content is not None:
        Path("p.safetensors").write_bytes(content)
    refused(run("compare", "--scenario", untuned, "--policy", "p.safetensors"), "p.safetensors: ", rule)
    assert not Path("made").exists()
    assert not Path("results").exists()


# Places that cannot be written.


def test_an_interrupt_that_python_wraps_during_an_import_ends_as_any_other(run, monkeypatch):
    def interrupted(*arguments: object) -> None:
        raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()

    monkeypatch.setattr("experiments.commands.parse", interrupted)
    ended = run("exercises")
    assert (ended.code, ended.err) == (INTERRUPTED, "numa-rl: stopped\n")


def test_an_error_of_our_own_keeps_its_traceback(run, monkeypatch):
    def broken(*arguments: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("experiments.commands.parse", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run("exercises")


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
def test_what_is_read_is_never_overwritten(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text(POINTS)
    Path("link.json").symlink_to("in.csv")
    refused(run(*arguments), message)
    assert Path("in.csv").read_text() == POINTS


def test_only_regular_files_are_written(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    refused(run("exercises", "--json", "pipe"), "--json must be a file that can be written, got 'pipe': Not a regular")
    assert Path("pipe").is_fifo()


def test_a_link_to_a_file_stays_a_link(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("real.json").write_text("{}")
    Path("link.json").symlink_to("real.json")
    assert run("exercises", "--json", "link.json").code in (None, 0)
    assert Path("link.json").is_symlink()
    assert "exercises" in json.loads(Path("real.json").read_text())


@pytest.mark.parametrize("place", ["/proc/x", "file/below.json", "folder"])
@pytest.mark.parametrize(
    ("command", "option"), [("compare", "--json"), ("compare", "--plot"), ("tune", "--out"), ("bench", "--out")]
)
def test_an_output_that_cannot_be_written_is_refused_first(run, untuned, command, option, place):
    Path("file").write_text("a file")
    Path("folder").mkdir()
    scenario = [] if command == "bench" else ["--scenario", untuned]
    refused(run(command, *scenario, option, place), f"{option} must be a file that can be written, got '{place}'")
    assert not Path("results").exists()
    assert Path("file").read_text() == "a file"
    assert list(Path("folder").iterdir()) == []


@pytest.mark.parametrize("place", ["/proc/x", "file", "file/below"])
def test_a_run_that_cannot_be_written_is_refused_first(run, untuned, place):
    Path("file").write_text("a file")
    refused(run("train", "--scenario", untuned, "--out", place), "--out must be a file that can be written", place)
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
def test_bad_counts_are_refused_before_anything_takes_time(run, untuned, command, option, value):
    scenario = [] if command in ("demo", "bench") else ["--scenario", untuned]
    refused(run(command, *scenario, option, value), option.split("-")[-1], f"got {value}")
    assert not Path("results/small/tuned.json").exists()
    assert not Path("runs").exists()


@pytest.mark.parametrize("command", ["compare", "tune"])
def test_a_negative_seed_is_refused_before_anything_takes_time(run, untuned, command):
    refused(run(command, "--scenario", untuned, "--seed", -1), "seed must be >= 0, got -1")
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
def test_what_the_parser_refuses_says_the_rule_and_ends_with_the_same_code(run, untuned, option, value, rule):
    ended = run("train", "--scenario", untuned, option, value)
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
def test_a_configuration_out_of_range_is_refused_before_anything_takes_time(run, untuned, command, option, rule):
    scenario = [] if command == "demo" else ["--scenario", untuned]
    refused(run(command, *scenario, option), rule)
    assert not Path("runs").exists()


# Runs.


@pytest.fixture(scope="module")
def trained_once(tuned: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.toml").write_text(TOML)
    (folder / "results" / "small").mkdir(parents=True)
    (folder / "results" / "small" / "tuned.json").write_text(tuned)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["numa-rl", "train", "--scenario", "small.toml", *QUICK])
        main()
    return folder / "runs" / "small"


@pytest.fixture
def trained(trained_once: Path, small: str) -> Path:
    """The folder of a finished run, beside its scenario."""
    return shutil.copytree(trained_once, Path("runs/small"))


def test_train_then_compare_then_resume(run, small, trained):
    assert {"checkpoint.safetensors", "policy.safetensors", "run.json"} <= {path.name for path in trained.iterdir()}
    content = json.loads((trained / "run.json").read_text())
    assert content["train_episodes"] == 4
    assert content["config"]["teacher"]["labels"] == 32

    ended = run("compare", "--scenario", small, "--policy", trained / "policy.safetensors", "--episodes", 3,
                "--json", "c.json", "--plot", "c.png")  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    results = json.loads(Path("c.json").read_text())
    assert sorted(entry["name"] for entry in results["schedulers"]) == sorted([*rule_names(), "learned"])
    assert Path("c.png").read_bytes().startswith(b"\x89PNG")

    before = (trained / "policy.safetensors").read_bytes()
    ended = run("train", "--resume", trained)
    assert (ended.code, ended.err) == (0, "")
    assert "Kept: " in ended.out
    assert (trained / "policy.safetensors").read_bytes() == before


def test_a_learned_policy_is_diagnosed(run, small, trained):
    policy = trained / "policy.safetensors"
    ended = run("diagnose", "--scenario", small, "--policy", policy, "--episodes", 2, "--json", "out.json")
    assert (ended.code, ended.err) == (0, "")
    assert "Diagnosis of learned on small (simulated) on chapter-2-socket" in ended.out
    assert ended.json["leaf"] is not None


def test_a_folder_that_holds_a_run_is_not_overwritten_unless_told(run, small, trained):
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    refused(run("train", "--scenario", small, *QUICK), "--out must be a folder without a run", "'runs/small'",
            "use --resume or --overwrite")  # fmt: skip
    for wrong in (["--train-episodes", 0], ["--validation-episodes", 0]):
        refused(run("train", "--scenario", small, *QUICK, "--overwrite", *wrong), "must be >= 1, got 0")
    refused(run("train", "--scenario", "nope", "--out", trained, "--overwrite"), "scenario must be one of")
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before
    ended = run("train", "--scenario", small, *QUICK, "--overwrite", "--seed", 1)
    assert (ended.code, ended.err) == (0, "")
    assert (trained / "policy.safetensors").read_bytes() != before["policy.safetensors"]


@pytest.mark.parametrize("update", [0, 1, 3])
def test_ctrl_c_saves_and_says_how_to_go_on(run, small, monkeypatch, update):
    end_update, validate = Trainer._end_update, Trainer._validate

    def interrupted(trainer: Trainer, *arguments: Any) -> None:
        end_update(trainer, *arguments)
        if trainer.update == update:
            raise KeyboardInterrupt

    def interrupted_at_once(trainer: Trainer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_end_update", interrupted)
    if update == 0:
        monkeypatch.setattr(Trainer, "_validate", interrupted_at_once)
    ended = run("train", "--scenario", small, *QUICK)
    assert ended.code == INTERRUPTED == 130
    assert "numa-rl train --resume runs/small" in ended.out
    assert "Traceback" not in ended.err
    monkeypatch.setattr(Trainer, "_end_update", end_update)
    monkeypatch.setattr(Trainer, "_validate", validate)
    ended = run("train", "--resume", "runs/small")
    assert (ended.code, ended.err) == (0, "")
    assert read_tensors(Path("runs/small/checkpoint.safetensors"))[1]["update"] == 4


def test_resuming_a_folder_without_a_run_is_refused(run):
    Path("empty").mkdir()
    for folder in ("empty", "none"):
        refused(run("train", "--resume", folder), "--resume must be the folder of a run", f"'{folder}'")
        assert not Path(folder, "run.json").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("scenario"),
        lambda content: content.pop("config"),
        lambda content: content.update(train_episodes=None),
        lambda content: content.update(config=[]),
        lambda content: content["config"].update(depth=3),
        lambda content: content["config"]["teacher"].update(depth="deep"),
        lambda content: content["config"]["ppo"].pop("gamma") and content["config"]["ppo"].update(gama=0.9),
        lambda content: content["config"]["ppo"].update(n_steps=0),
    ],
)
def test_a_damaged_note_of_a_run_is_refused(run, small, trained, change):
    note = trained / "run.json"
    content = json.loads(note.read_text())
    change(content)
    note.write_text(json.dumps(content))
    refused(run("train", "--resume", trained), "must")


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_note_that_is_no_json_object_is_refused(run, text):
    Path("old").mkdir()
    Path("old/run.json").write_text(text)
    refused(run("train", "--resume", "old"), "old/run.json: ")


def test_a_damaged_checkpoint_is_refused(run, small, trained):
    path = trained / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    ended = run("train", "--resume", trained)
    assert ended.code == BAD_INPUT
    assert ended.err.count("\n") == 1
    assert "checkpoint.safetensors: not a safetensors file, or a damaged one" in ended.err


# What is printed.


def test_a_machine_as_json_is_one_object_that_loads_again(run):
    ended = run("machine", "show", "r815", "--json")
    machine = json.loads(ended.out)
    assert ended.code == 0
    assert ended.err == ""
    assert {"name", "cores", "flops_per_s", "memory_bytes", "memory_bandwidth_bytes_per_s"} <= set(machine)
    assert {"latency_s", "bandwidth_bytes_per_s", "links", "hops", "num_nodes", "sources"} <= set(machine)
    assert machine["num_nodes"] == len(machine["cores"]) == len(machine["latency_s"]) == 8
    Path("mine.json").write_text(ended.out)
    assert json.loads(run("machine", "show", "mine.json", "--json").out) == machine


def test_machines_are_listed(run):
    table, listed = run("machine", "list"), run("machine", "list", "--json")
    assert list(json.loads(listed.out)) == machine_names()
    assert all(name in table.out for name in machine_names())


def test_a_machine_is_shown_in_tables(run):
    ended = run("machine", "show", "r815")
    assert ended.code == 0
    assert "8 nodes" in ended.out
    assert "Where the figures come from" in ended.out


# Help.

COMMANDS = (
    "demo",
    "train",
    "tune",
    "compare",
    "machine",
    "calibrate",
    "suite",
    "partition",
    "roofline",
    "diagnose",
    "transformer",
    "plan",
    "study",
    "explain",
    "export",
    "ship",
    "exercises",
    "bench",
)
BY_PLACE = {MachineShow: "--machine", Diagnose: "--file"}  # what is no option


def options(command: Any, prefix: str = "") -> list[str]:
    """Every option of a command, from the one list there is: its dataclass."""
    found = []
    for item in fields(command):
        if is_dataclass(item.default_factory):
            found += options(item.default_factory, "" if item.name == "config" else f"{item.name}.")
        else:
            found.append(f"--{prefix}{item.name}".replace("_", "-"))
    return found


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["demo"], Demo),
        (["train"], Train),
        (["tune"], Tune),
        (["compare"], Compare),
        (["bench"], Bench),
        (["roofline"], Roofline),
        (["diagnose"], Diagnose),
        (["exercises"], Exercises),
        (["machine", "list"], MachineList),
        (["machine", "show"], MachineShow),
    ],
    ids=str,
)
def test_help_names_and_explains_every_option(run, words, command):
    ended = run(*words, "--help")
    assert ended.code == 0
    assert ended.err == ""
    names = [name for name in options(command) if name != BY_PLACE.get(command)]
    assert names
    assert [name for name in names if name not in ended.out] == []
    assert " ".join((command.__doc__ or "").split("\n")[0].split()[:4]) in ended.out


def test_training_has_the_options_of_both_phases():
    assert {"--scenario", "--seed", "--node-width", "--teacher.labels", "--ppo.gamma"} <= set(options(Train))


def test_help_lists_the_commands(run):
    ended = run("--help")
    assert ended.code == 0
    assert f"{{{','.join(COMMANDS)}}}" in ended.out
    assert all(command in run("machine", "--help").out for command in ("show", "list"))


def test_the_command_line_starts_without_what_only_some_commands_need():
    heavy = ("torch", "stable_baselines3", "matplotlib", "pyarrow")
    program = f"import sys, experiments.commands; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("words", [[], ["machine"], ["fly"], ["machine", "show"], ["compare"], ["tune"]])
def test_an_incomplete_command_is_refused(run, words):
    ended = run(*words)
    assert ended.code == BAD_INPUT
    assert ended.out == ""
    assert "Traceback" not in ended.err
    assert ended.err


def test_the_installed_command_ends_alike(tmp_path):
    command = [sys.executable, "-c", "from experiments.cli import main; main()", "machine", "show", "nope"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    refused(Ended(done.returncode, done.stdout, done.stderr), "got 'nope'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing subcommand Expected one of {" + ", ".join(COMMANDS) + "}"),
        (["tune"], "Missing from numa-rl tune: --scenario"),
        (["tune", "--scenario", "x", "--bogus", "1"], "Unrecognized options: --bogus"),
        (["train", "--scenario", "x", "--teacher.labels", "-1"], "numa-rl: teacher: labels must be >= 0, got -1."),
        (
            ["train", "--scenario", "x", "--ppo.clip-range", "nan"],
            "numa-rl: ppo: clip_range must be in (0, 1], got nan.",
        ),
        (["train", "--resume", "x", "--seed", "4"], "--resume takes no other options"),
        (["compare", "--scenario", "stream-cube", "--plot", "a.txt"], "--plot must be a .png file, got 'a.txt'"),
    ],
)
def test_options_that_are_wrong_end_in_one_line(run, arguments, message):
    ended = run(*arguments)
    assert ended.code == BAD_INPUT
    assert message in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(("key", "value"), [("num_tasks", "10000000000000"), ("burst_s", "1e-300")])
def test_numbers_beyond_the_machine_end_in_one_line(run, tmp_path, key, value):
    setting = f"{key} = {value}\nburstiness = 3.0"
    (tmp_path / "huge.toml").write_text(TOML.replace("num_tasks = 12", setting), encoding="utf-8")
    ended = run("tune", "--scenario", tmp_path / "huge.toml", "--episodes", 1, "--settings", 4)
    assert ended.code == BAD_INPUT
    assert ended.err.count("\n") == 1

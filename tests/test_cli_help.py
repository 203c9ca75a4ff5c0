"""What the command `numa-rl` prints: machines, help that names every option, and one line where an option is wrong."""

import json
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import Ended, refused

from experiments.bench import Bench
from experiments.cli import BAD_INPUT
from experiments.compare import Compare
from experiments.demo import Demo
from experiments.diagnose import Diagnose
from experiments.exercises import Exercises
from experiments.machine import MachineList, MachineShow
from experiments.roofline import Roofline
from experiments.train import Train
from experiments.tune import Tune
from numa_rl.machines.catalog import machine_names

# What is printed.


def test_a_machine_as_json_is_one_object_that_loads_again(numa_rl):
    ended = numa_rl("machine", "show", "r815", "--json")
    machine = json.loads(ended.out)
    assert ended.code == 0
    assert ended.err == ""
    assert {"name", "cores", "flops_per_s", "memory_bytes", "memory_bandwidth_bytes_per_s"} <= set(machine)
    assert {"latency_s", "bandwidth_bytes_per_s", "links", "hops", "num_nodes", "sources"} <= set(machine)
    assert machine["num_nodes"] == len(machine["cores"]) == len(machine["latency_s"]) == 8
    Path("mine.json").write_text(ended.out)
    assert json.loads(numa_rl("machine", "show", "mine.json", "--json").out) == machine


def test_machines_are_listed(numa_rl):
    table, listed = numa_rl("machine", "list"), numa_rl("machine", "list", "--json")
    assert list(json.loads(listed.out)) == machine_names()
    assert all(name in table.out for name in machine_names())


def test_a_machine_is_shown_in_tables(numa_rl):
    ended = numa_rl("machine", "show", "r815")
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
def test_help_names_and_explains_every_option(numa_rl, words, command):
    ended = numa_rl(*words, "--help")
    assert ended.code == 0
    assert ended.err == ""
    names = [name for name in options(command) if name != BY_PLACE.get(command)]
    assert names
    assert [name for name in names if name not in ended.out] == []
    assert " ".join((command.__doc__ or "").split("\n")[0].split()[:4]) in ended.out


def test_training_has_the_options_of_both_phases():
    assert {"--scenario", "--seed", "--node-width", "--teacher.labels", "--ppo.gamma"} <= set(options(Train))


def test_help_lists_the_commands(numa_rl):
    ended = numa_rl("--help")
    assert ended.code == 0
    assert f"{{{','.join(COMMANDS)}}}" in ended.out
    assert all(command in numa_rl("machine", "--help").out for command in ("show", "list"))


def test_the_command_line_starts_without_what_only_some_commands_need():
    heavy = ("torch", "stable_baselines3", "matplotlib", "pyarrow")
    program = f"import sys, experiments.commands; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("words", [[], ["machine"], ["fly"], ["machine", "show"], ["compare"], ["tune"]])
def test_an_incomplete_command_is_refused(numa_rl, words):
    ended = numa_rl(*words)
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
def test_options_that_are_wrong_end_in_one_line(numa_rl, arguments, message):
    ended = numa_rl(*arguments)
    assert ended.code == BAD_INPUT
    assert message in ended.err
    assert ended.err.count("\n") == 1

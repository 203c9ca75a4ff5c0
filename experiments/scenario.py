"""A scenario: a machine, a workload and what counts as good, in one TOML file.

    description = "..."
    machine = "r815"            # a name or a file that numa_rl.machines.catalog.load_machine knows

    [workload]
    family = "llm-serving"      # with any of its parameters; the rest keep their defaults
    requests_per_s = 1.75

    [reward]
    reference_s = 1.0           # with any other field of RewardWeights

    [simulation]
    window_s = 1.0              # tau, the time over which traffic decays

Paths in a scenario are relative to its file.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass, is_dataclass
from enum import IntEnum
from functools import cached_property
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from envs.reward import RewardWeights
from numa_rl.machines.catalog import load_machine
from numa_rl.topology import Topology
from numa_rl.workloads.catalog import family_names, make_family
from numa_rl.workloads.parameters import build
from numa_rl.workloads.workload import Workload, WorkloadFamily

SCENARIOS = Path(str(files("experiments.scenarios")))


class Split(IntEnum):
    """What episodes are for. Each split has a seed of its own, so no two ever share an episode.

    No member is 0: numpy's seed sequence ignores trailing zeros, so seed [5, 0] would be seed 5.
    """

    TRAIN = 1
    TUNE = 2
    VALIDATION = 3
    TEST = 4


@dataclass(frozen=True, eq=False)
class Scenario:
    """Everything that defines what is learned and compared.

    Attributes:
        name: how the scenario is called in tables: the file's name without its ending.
        description: one line for people.
        machine: the name or file of the machine.
        topology: that machine.
        family: what makes the episodes.
        reward: what a decision costs.
        window_s: tau, the time over which recorded traffic decays.

    Raises:
        ValueError: `window_s` is not positive and finite.
    """

    name: str
    description: str
    machine: str
    topology: Topology
    family: WorkloadFamily
    reward: RewardWeights
    window_s: float

    def __post_init__(self) -> None:
        """Check the range."""
        if not (isfinite(self.window_s) and self.window_s > 0.0):
            raise ValueError(f"window_s must be finite and > 0, got {self.window_s}.")

    def episodes(self, split: Split, num_episodes: int, seed: int = 0) -> Workload:
        """Episodes of a split; more of them with the same seed extend fewer.

        Raises:
            ValueError: `num_episodes` is less than 1, or `seed` negative.
        """
        if num_episodes < 1:
            raise ValueError(f"num_episodes must be >= 1, got {num_episodes}.")
        if seed < 0:
            raise ValueError(f"seed must be >= 0, got {seed}.")
        return self.family.generate(np.random.default_rng([seed, Split(split)]), num_episodes)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of what the scenario is, whatever it is called and wherever its files are.

        Names, descriptions and the sources of figures do not count; a trace counts by its contents.
        """
        machine = {key: value for key, value in self.topology.to_dict().items() if key not in ("name", "sources")}
        content = {
            "machine": machine,
            "family": type(self.family).__name__,
            "workload": _parameters(self.family),
            "reward": asdict(self.reward),
            "window_s": self.window_s,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _parameters(family: WorkloadFamily) -> dict[str, Any]:
    """A family's parameters, with the digest of a trace in place of its path."""
    if not is_dataclass(family) or isinstance(family, type):
        raise TypeError(f"a workload family must be a dataclass to be hashed, got {type(family).__name__}.")
    parameters = asdict(family)
    if parameters.get("trace") is not None:
        parameters["trace"] = _trace_digest(Path(parameters["trace"]))
    return parameters


def _trace_digest(trace: Path) -> str:
    """SHA-256 of a file, or of all the JSON files of a folder, whatever they are called."""
    files = sorted(trace.glob("*.json")) if trace.is_dir() else [trace]
    digests = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def scenario_names() -> list[str]:
    """Names that `load_scenario` knows: the files of `experiments/scenarios`."""
    return sorted(path.stem for path in SCENARIOS.glob("*.toml"))


def load_scenario(name_or_path: str | Path) -> Scenario:
    """The scenario of that name, or the one in that file.

    Raises:
        ValueError: there is no such scenario, or its file breaks a rule; the message names file, key, rule and value.
    """
    if str(name_or_path) in scenario_names():
        return _read_scenario(SCENARIOS / f"{name_or_path}.toml")
    path = Path(name_or_path)
    if not path.is_file():
        raise ValueError(
            f"scenario must be one of {', '.join(scenario_names())}, or the path of a TOML file, "
            f"got {str(name_or_path)!r}."
        )
    return _read_scenario(path)


def _read_scenario(path: Path) -> Scenario:
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not valid TOML: {error}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be UTF-8 text: {error.reason} at byte {error.start}.") from error
    except OSError as error:
        raise ValueError(f"{path}: must be a readable file: {error.strerror}.") from error
    try:
        return _scenario(path, build(_Tables, content, "scenario"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@dataclass(frozen=True)
class _Tables:
    """The top level of a scenario file."""

    description: str
    machine: str
    workload: dict[str, Any]
    reward: dict[str, Any]
    simulation: dict[str, Any]


@dataclass(frozen=True)
class _Simulation:
    """The table [simulation]."""

    window_s: float


def _scenario(path: Path, tables: _Tables) -> Scenario:
    if "reference_s" not in tables.reward:  # no default suits two workloads
        raise ValueError("[reward]: missing key 'reference_s'.")
    reward = build(RewardWeights, tables.reward, "[reward]")
    simulation = build(_Simulation, tables.simulation, "[simulation]")
    family = _family(path, tables.workload)
    machine_file = path.parent / tables.machine
    machine = str(machine_file) if machine_file.is_file() else tables.machine
    try:
        topology = load_machine(machine)
    except ValueError as error:
        raise ValueError(f"machine: {error}") from error
    try:
        return Scenario(path.stem, tables.description, machine, topology, family, reward, simulation.window_s)
    except ValueError as error:
        raise ValueError(f"[simulation]: {error}") from error


def _family(path: Path, table: dict[str, Any]) -> WorkloadFamily:
    parameters = dict(table)
    name = parameters.pop("family", None)
    if not isinstance(name, str):
        raise ValueError(f"[workload]: family must be one of {', '.join(family_names())}, got {name!r}.")
    if isinstance(parameters.get("trace"), str):
        trace = path.parent / parameters["trace"]
        if trace.exists() and not (trace.is_file() or trace.is_dir()):
            raise ValueError(f"[workload]: trace must be a file or folder, got {str(trace)!r}.")
        parameters["trace"] = str(trace)
    try:
        return make_family(name, **parameters)
    except ValueError as error:
        raise ValueError(f"[workload]: {error}") from error

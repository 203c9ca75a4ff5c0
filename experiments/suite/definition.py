"""What the suite consists of: one TOML file, of which every family meets every machine in a cell.

    description = "..."

    [counts]                      # see `Counts`
    test_episodes = 16

    [machines]                    # names or files that load_machine knows, and what they are for
    chapter-8-socket = "training"
    r815 = "held out"             # never trained or tuned on

    [families.stream]             # a name of its own for tables
    role = "training"
    load = 0.55                   # what is offered to every machine; left out, times stay as they are
    rates = "tasks_per_s"         # parameters to scale for it, as `faster` says
    durations = "burst_s"
    window_tasks = 4.0            # tau in multiples of the mean service time

    [families.stream.workload]    # as in a scenario's file; also [families.stream.reward]
    family = "synthetic"

The load is the one that `offered_load` defines; the mean service time, which is the unit of time, is that of
`local_service_s`. Both are taken over training episodes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from envs.reward import RewardWeights
from experiments.scenario import Scenario, Split
from experiments.suite.load import faster, local_service_s, offered_load, rounded
from numa_rl.machines.catalog import load_machine
from numa_rl.topology import Topology
from numa_rl.workloads.catalog import make_family
from numa_rl.workloads.parameters import build, require
from numa_rl.workloads.workload import Workload, WorkloadFamily

FOLDER = Path(__file__).parent
ROLES = ("training", "held out")
STANDARD, QUICK = FOLDER / "standard.toml", FOLDER / "quick.toml"


@dataclass(frozen=True)
class Counts:
    """How much is played in each cell.

    Attributes:
        test_episodes: which every scheduler plays.
        tune_episodes: on which settings of rules are compared.
        oracle_episodes: of the test episodes, the first ones that the oracle plays as well.
        load_episodes: training episodes over which loads and units of time are measured.
        settings: of each rule, spread over its parameters' ranges, the same in every cell.
        refinements: more of them, near the best of those; twice in training cells: near the cell's and the suite's.

    Raises:
        ValueError: a count is less than 1, or more episodes for the oracle than for all.
    """

    test_episodes: int
    tune_episodes: int
    oracle_episodes: int
    load_episodes: int
    settings: int
    refinements: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self, " ".join(vars(self)), ">= 1", lambda value: value >= 1)
        if self.oracle_episodes > self.test_episodes:
            raise ValueError(
                f"oracle_episodes must be <= {self.test_episodes}, the test's, got {self.oracle_episodes}."
            )


@dataclass(frozen=True)
class FamilyEntry:
    """A family's table in the file; see the module's docstring."""

    role: str
    workload: dict[str, Any]
    window_tasks: float
    load: float | None = None
    rates: str = ""
    durations: str = ""
    reward: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_role("role", self.role)
        for name in ("window_tasks", "load"):
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and value > 0.0):
                raise ValueError(f"{name} must be finite and > 0, got {value}.")
        if (self.load is None) != (not self.rates and not self.durations):
            raise ValueError("load must be given together with rates or durations, got one without the other.")
        if "reference_s" in self.reward:
            raise ValueError(f"reward.reference_s is measured for every cell, got {self.reward['reference_s']!r}.")


@dataclass(frozen=True, eq=False)
class Cell:
    """A family on a machine.

    Attributes:
        family: the family's name in the suite.
        machine: the machine's.
        held_out: whether one of the two is kept for generalisation: nothing is trained or tuned here.
        scenario: what is played.
        load: what is offered, `offered_load`; NaN for one graph that has no pace of its own.
        is_graph: whether an episode is one graph, known in advance, `Workload.is_one_graph`: who plans ahead of it does
            not see the future, who plans ahead of a stream does.
    """

    family: str
    machine: str
    held_out: bool
    scenario: Scenario
    load: float
    is_graph: bool

    @property
    def name(self) -> str:
        """How messages call it."""
        return self.scenario.name


@dataclass(frozen=True)
class Definition:
    """The suite as its file says.

    Attributes:
        description: one line for people.
        counts: how much is played.
        machines: role of each machine, by name.
        families: table of each family, by name.
    """

    description: str
    counts: Counts
    machines: Mapping[str, str]
    families: Mapping[str, FamilyEntry]

    def chosen(self, families: Collection[str] = (), machines: Collection[str] = ()) -> Definition:
        """The part with these families and machines; all of them where none is named.

        Raises:
            ValueError: one is not in the suite, or none of those left is for training.
        """
        part = Definition(
            self.description,
            self.counts,
            _part("machine", self.machines, machines),
            _part("family", self.families, families),
        )
        roles = set(part.machines.values()), {entry.role for entry in part.families.values()}
        if not all("training" in some for some in roles):
            raise ValueError(
                "the suite needs at least one family and one machine for training, since rules are tuned there, got "
                f"only families {', '.join(part.families)} and machines {', '.join(part.machines)}."
            )
        return part

    def cells(self) -> list[Cell]:
        """Every family on every machine, in the file's order.

        Raises:
            ValueError: a family or machine breaks a rule; the message says which.
        """
        topologies = {name: load_machine(name) for name in self.machines}
        return [
            self._cell(family, machine, topologies[machine], held_out=role == "held out")
            for family in self.families
            for machine, role in self.machines.items()
        ]

    def cell_on(self, family: str, topology: Topology, *, held_out: bool = False) -> Cell:
        """A family on any machine, at its load and in its unit of time there.

        Args:
            family: the family's name in the suite.
            topology: the machine; the cell calls it by its name.
            held_out: whether nothing is to be trained or tuned on this machine; a family held out is so everywhere.

        Raises:
            ValueError: no such family, or it breaks a rule; the message says which.
        """
        _part("family", self.families, [family])
        return self._cell(family, topology.name, topology, held_out=held_out)

    def _cell(self, name: str, machine: str, topology: Topology, *, held_out: bool) -> Cell:
        """A family on a machine that is called as the suite's file does."""
        entry = self.families[name]
        try:
            family, sample = self._sampled(name)
            paced, load = self._paced(entry, family, sample, topology)
            reference_s = rounded(local_service_s(sample, topology))
            scenario = Scenario(
                name=f"{name}/{machine}",
                description=f"{name} on {machine}, a cell of the standard suite",
                machine=machine,
                topology=topology,
                family=paced,
                reward=build(RewardWeights, entry.reward | {"reference_s": reference_s}, f"families.{name}.reward"),
                window_s=rounded(entry.window_tasks * reference_s),
            )
        except ValueError as error:
            raise ValueError(f"families.{name}.workload: {error}") from error
        return Cell(name, machine, held_out or entry.role == "held out", scenario, load, sample.is_one_graph)

    def _sampled(self, name: str) -> tuple[WorkloadFamily, Workload]:
        """A family as its file says, and training episodes of it: the same for every machine."""
        if name not in self._samples:
            values = dict(self.families[name].workload)
            family = make_family(str(values.pop("family", "")), **values)
            self._samples[name] = family, family.generate(_training_generator(), self.counts.load_episodes)
        return self._samples[name]

    @cached_property
    def _samples(self) -> dict[str, tuple[WorkloadFamily, Workload]]:
        """What `_sampled` has made."""
        return {}

    def _paced(
        self, entry: FamilyEntry, family: WorkloadFamily, sample: Workload, topology: Topology
    ) -> tuple[WorkloadFamily, float]:
        """The family at the pace that offers the load stated, and what that is; NaN for a graph without a pace."""
        if entry.load is None:
            return family, float("nan") if sample.is_one_graph else offered_load(sample, topology)
        paced = faster(family, entry.load / offered_load(sample, topology), entry.rates, entry.durations)
        return paced, offered_load(paced.generate(_training_generator(), self.counts.load_episodes), topology)


def read_definition(path: Path) -> Definition:
    """The suite in a file.

    Raises:
        ValueError: it cannot be read or breaks a rule; the message names file, key, rule and value.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: a suite must be TOML: {error}.") from error
    except OSError as error:
        raise ValueError(f"{path}: a suite must be a readable file: {error.strerror}.") from error
    try:
        return _definition(build(_Tables, content, "suite"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@dataclass(frozen=True)
class _Tables:
    """The top level of the file."""

    description: str
    counts: dict[str, Any]
    machines: dict[str, Any]
    families: dict[str, Any]


def _definition(tables: _Tables) -> Definition:
    for name, role in tables.machines.items():
        _check_role(f"machines.{name}", role)
    families = {}
    for name, table in tables.families.items():
        if not isinstance(table, dict):
            raise ValueError(f"families.{name}: must be a table, got {table!r}.")
        families[name] = build(FamilyEntry, table, f"families.{name}")
    counts = build(Counts, tables.counts, "counts")
    return Definition(tables.description, counts, tables.machines, families).chosen()


def _check_role(name: str, role: object) -> None:
    if role not in ROLES:
        raise ValueError(f"{name} must be one of {', '.join(ROLES)}, got {role!r}.")


def _part(kind: str, known: Mapping[str, Any], wanted: Collection[str]) -> dict[str, Any]:
    for name in wanted:
        if name not in known:
            raise ValueError(f"{kind} must be one of {', '.join(known)}, got {name!r}.")
    return {name: value for name, value in known.items() if not wanted or name in wanted}


def _training_generator() -> np.random.Generator:
    """As `Scenario.episodes` makes it for training episodes of seed 0: the cells do not depend on the suite's seed."""
    return np.random.default_rng([0, Split.TRAIN])

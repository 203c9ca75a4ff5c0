"""What the study plays: families of the standard suite on machines, at several loads, by several schedulers.

Dimension key: K schedulers, E episodes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from agents.planners.catalog import make_planner, planner_names
from agents.rules.catalog import make_rule, rule_names
from agents.scheduler import Planner, Scheduler
from agents.tuning import default_parameters
from envs.world import World
from experiments.scenario import Split
from experiments.suite.definition import STANDARD, Cell, Definition, read_definition
from experiments.tune import require_at_least, world_of
from numa_rl.topology import LoadedLatency

HELD_OUT = "held out"
NO_FACTOR = LoadedLatency(a=0.0, c=0.0, saturated=1.0)
MOST_LOAD_PERCENT = 200.0  # beyond, a queue only grows

# Streams, streams of graphs, exchanges, and one graph without a pace of its own.
FAMILIES = ("stream", "llm", "prefix-cache", "batch", "workflow", "query", "all-reduce", "transformer")
# 2, 4, 16 and 8 nodes; on the last one, with links of different widths, nothing is ever trained or tuned.
MACHINES = ("xeon-8269cy", "kunpeng-920", "phytium-ft2500", "r815")
# From careless to careful: all their parameters are the defaults.
SCHEDULERS = ("random", "first-touch", "data-affinity", "autonuma", "greedy", "heft")
LOADS_PERCENT = (20.0, 40.0, 60.0, 80.0, 95.0)


@dataclass(frozen=True)
class Plan:
    """What is played.

    Attributes:
        families: of the standard suite.
        machines: names or files of machines.
        schedulers: names of rules and planners, with their default parameters.
        loads_percent: what families with a pace are asked to offer, percent of the machine as `offered_load` says.
        num_episodes: of each cell, the same for every scheduler. Each load has its own: a graph whose tasks wait for
            each other and not for arrivals would else be counted again at every load. With three the standard
            deviation of a row's error of mean response is 1% (median; 6% for one row in ten), where rows differ from
            each other by 10%; with one it is 2.5%. More take longer than they tell.
        seed: of the episodes.

    Raises:
        ValueError: an unknown name, nothing to compare, or a value out of range.
    """

    families: tuple[str, ...] = FAMILIES
    machines: tuple[str, ...] = MACHINES
    schedulers: tuple[str, ...] = SCHEDULERS
    loads_percent: tuple[float, ...] = LOADS_PERCENT
    num_episodes: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        """Check names and ranges; what is named twice counts once."""
        for name in ("families", "machines", "schedulers", "loads_percent"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one, got none.")
        _require_known("scheduler", self.schedulers, [*rule_names(), *planner_names()])
        if len(self.schedulers) < 2:
            raise ValueError(f"schedulers must be two or more, to be put in order, got {self.schedulers[0]!r} alone.")
        for load in self.loads_percent:
            if not (isfinite(load) and 0.0 < load <= MOST_LOAD_PERCENT):
                raise ValueError(f"loads must be > 0 and <= {MOST_LOAD_PERCENT:g} percent, got {load}.")
        require_at_least(1, self.num_episodes, "episodes")
        require_at_least(0, self.seed, "seed")

    def cells(self) -> list[LoadedCell]:
        """Every family on every machine at every load.

        Raises:
            ValueError: an unknown family or machine.
        """
        suite = read_definition(STANDARD)
        _require_known("family", self.families, suite.families)
        machines = {name: suite.machines.get(name, HELD_OUT) for name in self.machines}
        return [
            LoadedCell(cell, percent, number * self.num_episodes)
            for name in self.families
            for number, percent in enumerate(self._loads(suite, name))
            for cell in _at_load(suite, name, machines, percent)
        ]

    def _loads(self, suite: Definition, family: str) -> Sequence[float | None]:
        """The loads of a family; None alone where it has no pace to change."""
        return (None,) if suite.families[family].load is None else self.loads_percent


@dataclass(frozen=True, eq=False)
class LoadedCell:
    """A family on a machine at a load.

    Attributes:
        cell: the suite's, at this load.
        asked_percent: the load; None where the family has no pace.
        first_episode: the first of the family's test episodes that is played here.
    """

    cell: Cell
    asked_percent: float | None
    first_episode: int = 0

    @property
    def name(self) -> str:
        """How messages call it."""
        return self.cell.name if self.asked_percent is None else f"{self.cell.name} at {self.asked_percent:g}%"

    def world(self, num_episodes: int, seed: int, *, loaded_latency: bool) -> World:
        """What is played: test episodes, with the machine's loaded-latency factor as it is, or off."""
        scenario = self.cell.scenario
        if not loaded_latency:
            scenario = replace(scenario, topology=replace(scenario.topology, loaded_latency=NO_FACTOR))
        world = world_of(scenario, Split.TEST, self.first_episode + num_episodes, seed)
        return replace(world, workload=world.workload.take(slice(self.first_episode, None)))


def make_scheduler(name: str, world: World) -> Scheduler | Planner:
    """The rule or planner of that name, with its default parameters."""
    if name in planner_names():
        return make_planner(name)
    return make_rule(name, **default_parameters(name, world.weights, world.topologies))


def _at_load(suite: Definition, family: str, machines: Mapping[str, str], percent: float | None) -> list[Cell]:
    """A family of the suite at a load, on every machine."""
    entry = suite.families[family]
    paced = entry if percent is None else replace(entry, load=percent / 100.0)
    return replace(suite, machines=machines, families={family: paced}).cells()


def _require_known(kind: str, names: Collection[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{kind} must be one of {', '.join(known)}, got {name!r}.")

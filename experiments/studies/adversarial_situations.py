"""Situations in which a policy may be put: a family of the suite with other parameters, a machine, and a seed.

A situation is little text, so that what was found can be written down and played again exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import Any

import numpy as np

from agents.rules.base import Range
from envs.world import World
from experiments.scenario import Split
from experiments.suite.definition import Definition
from experiments.tune import world_of
from numa_rl.machines.catalog import load_machine, machine_names
from numa_rl.machines.drawn import draw_machine
from numa_rl.topology import Topology
from numa_rl.workloads.parameters import build

DRAWN = "drawn"  # in place of a machine's name
MOST_SEEDS = 2**31
LOAD_EPISODES = 4  # over which a situation's load and unit of time are measured: it is one of many

LOAD, WINDOW = "load", "window_tasks"
COMMON = {LOAD: Range(0.1, 1.2), WINDOW: Range(1.0, 16.0, log=True)}
BURSTS = {"burstiness": Range(1.0, 8.0, log=True)}
INTENSITY = {"flops_per_byte": Range(0.05, 5.0, log=True), "write_fraction": Range(0.0, 1.0)}

# Parameters that are searched, by family of the suite; those of families that are not here stay as the suite has them.
RANGES: Mapping[str, Mapping[str, Range]] = {
    "stream": BURSTS
    | {
        "num_objects": Range(8, 192, log=True),
        "zipf_exponent": Range(0.0, 1.5),
        "drift_per_task": Range(0.0, 0.2),
        "object_lifetime_tasks": Range(32.0, 1024.0, log=True),
        "median_object_bytes": Range(3e7, 2e9, log=True),
        "median_task_bytes": Range(1e8, 1e10, log=True),
        "median_task_flops": Range(1e7, 3e10, log=True),
        "read_only_share": Range(0.0, 1.0),
        "write_fraction": Range(0.0, 1.0),
        "inputs_per_task": Range(0, 4),
        "median_input_bytes": Range(1e7, 2e9, log=True),
    },
    "llm": BURSTS
    | {
        "mean_turns": Range(1.0, 6.0),
        "median_context_tokens": Range(128.0, 8192.0, log=True),
        "shard_zipf_exponent": Range(0.0, 2.0),
        "batch_reuse": Range(1.0, 8.0, log=True),
    },
    "prefix-cache": BURSTS
    | {
        "num_system_prompts": Range(1, 16, log=True),
        "system_prompt_blocks": Range(1, 16, log=True),
        "median_first_tokens": Range(64.0, 8192.0, log=True),
        "median_added_tokens": Range(32.0, 2048.0, log=True),
        "forget_share": Range(0.0, 1.0),
    },
    "batch": BURSTS
    | INTENSITY
    | {
        "max_ranks": Range(1, 16, log=True),
        "median_rank_bytes": Range(5e7, 5e9, log=True),
        "halo_share": Range(0.0, 1.0),
    },
    "workflow": INTENSITY | {"data_ratio": Range(0.1, 5.0, log=True), "max_width": Range(4, 32, log=True)},
    "query": INTENSITY | {"stage_tasks": Range(1, 8), "look_share": Range(0.0, 0.5), "output_share": Range(0.0, 1.0)},
    "all-reduce": {
        "num_ranks": Range(2, 16, log=True),
        "median_gradient_bytes": Range(1e7, 4e9, log=True),
        "gradient_bytes_sigma": Range(0.0, 1.0),
        "compute_sigma": Range(0.0, 0.5),
    },
    "threads": {
        "num_threads": Range(8, 64, log=True),
        "median_data_bytes": Range(5e7, 2e9, log=True),
        "exchange_share": Range(0.1, 3.0, log=True),
        "flops_per_byte": Range(0.05, 2.0, log=True),
        "compute_sigma": Range(0.0, 0.6),
    },
}


@dataclass(frozen=True)
class Situation:
    """What is played.

    Attributes:
        family: its name in the suite.
        machine: a machine's name, or "drawn".
        machine_seed: of a machine drawn at random; without effect for others.
        window_tasks: tau in multiples of the mean service time.
        load: what is offered; None for a family that has no pace.
        parameters: of the family, in place of the suite's.
        seed: of the episodes.

    Raises:
        ValueError: a number is out of range.
    """

    family: str
    machine: str
    machine_seed: int
    window_tasks: float
    load: float | None
    seed: int
    parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the ranges that nobody else does."""
        for name in ("machine_seed", "seed"):
            if not 0 <= getattr(self, name) < MOST_SEEDS:
                raise ValueError(f"situation: {name} must be in 0..{MOST_SEEDS - 1}, got {getattr(self, name)}.")
        for name, value in (("window_tasks", self.window_tasks), ("load", self.load)):
            if value is not None and not (isfinite(value) and value > 0.0):
                raise ValueError(f"situation: {name} must be finite and > 0, got {value}.")
        if self.machine not in (DRAWN, *machine_names()):
            raise ValueError(
                f"situation: machine must be {DRAWN} or one of {', '.join(machine_names())}, got {self.machine!r}."
            )

    @property
    def topology(self) -> Topology:
        """The machine."""
        return (
            draw_machine(np.random.default_rng(self.machine_seed))
            if self.machine == DRAWN
            else load_machine(self.machine)
        )

    def world(self, definition: Definition, num_episodes: int) -> World:
        """Its episodes.

        Args:
            definition: the suite whose family it is.
            num_episodes: how many.

        Raises:
            ValueError: no such family, or its parameters break a rule.
        """
        if self.family not in definition.families:
            raise ValueError(f"family must be one of {', '.join(definition.families)}, got {self.family!r}.")
        entry = definition.families[self.family]
        if (self.load is None) != (entry.load is None):
            raise ValueError(
                f"load of {self.family} must be {'null' if entry.load is None else 'a number'}, got {self.load}."
            )
        changed = replace(
            entry, load=self.load, window_tasks=self.window_tasks, workload=entry.workload | self.parameters
        )
        counts = replace(definition.counts, load_episodes=LOAD_EPISODES)
        part = replace(definition, families={self.family: changed}, counts=counts)
        return world_of(part.cell_on(self.family, self.topology).scenario, Split.TEST, num_episodes, self.seed)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Situation:
        """What `to_dict` made.

        Raises:
            ValueError: a key is unknown or missing, or a value of the wrong type or range.
        """
        return build(cls, values, "situation")


@dataclass(frozen=True)
class Point:
    """A situation as the search moves it: shares of ranges in place of values.

    Attributes:
        family: its name in the suite.
        machine: a machine's name, or "drawn".
        machine_seed: of a machine drawn at random.
        seed: of the episodes.
        shares: of each range, in [0, 1], by the parameter's name.
    """

    family: str
    machine: str
    machine_seed: int
    seed: int
    shares: dict[str, float]


@dataclass(frozen=True)
class Space:
    """Where situations are searched.

    Attributes:
        definition: the suite whose families they are.
        machines: their names, "drawn" among them.
    """

    definition: Definition
    machines: Sequence[str]

    def ranges(self, family: str) -> dict[str, Range]:
        """What is searched for a family of the suite, by name."""
        own = dict(RANGES.get(family, {}))
        paced = self.definition.families[family].load is not None
        return {name: at for name, at in COMMON.items() if paced or name != LOAD} | own

    def draw(self, rng: np.random.Generator) -> Point:
        """Any situation, every family and every machine as likely as others."""
        family = str(rng.choice(list(self.definition.families)))
        shares = {name: float(rng.random()) for name in self.ranges(family)}
        return Point(family, self._machine(rng), *self._seeds(rng), shares)

    def near(self, point: Point, rng: np.random.Generator, spread: float) -> Point:
        """A situation near another one: shares a little moved, now and then another machine or other episodes.

        Args:
            point: the other one.
            rng: draws what is changed.
            spread: standard deviation of a share's move.
        """
        shares = {
            name: float(np.clip(share + spread * rng.standard_normal(), 0.0, 1.0))
            for name, share in point.shares.items()
        }
        machine_seed, seed = self._seeds(rng)
        other_machine, other_episodes = rng.random(2) < (0.2, 0.5)
        return Point(
            point.family,
            self._machine(rng) if other_machine else point.machine,
            machine_seed if other_machine else point.machine_seed,
            seed if other_episodes else point.seed,
            shares,
        )

    def situation(self, point: Point) -> Situation:
        """The situation itself, its numbers to four digits."""
        ranges = self.ranges(point.family)
        values: dict[str, Any] = {}
        for name, share in point.shares.items():
            value = float(f"{float(ranges[name].at(np.asarray(share))):.4g}")
            values[name] = round(value) if isinstance(ranges[name].low, int) else value
        window_tasks, load = values.pop(WINDOW), values.pop(LOAD, None)
        return Situation(point.family, point.machine, point.machine_seed, window_tasks, load, point.seed, values)

    def _machine(self, rng: np.random.Generator) -> str:
        return str(rng.choice(list(self.machines)))

    def _seeds(self, rng: np.random.Generator) -> tuple[int, int]:
        first, second = rng.integers(MOST_SEEDS, size=2)
        return int(first), int(second)

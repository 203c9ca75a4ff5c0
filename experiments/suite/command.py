"""The command `numa-rl suite`."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from agents.lookahead import Lookahead
from agents.planners.catalog import planner_names
from agents.rules.catalog import rule_names
from agents.scheduler import Planner
from agents.shipped import policy_file
from experiments.comparison import decision_us
from experiments.files import require_writable, write_json
from experiments.scenario import Split
from experiments.suite.cache import Cache
from experiments.suite.definition import QUICK, STANDARD, Cell, Definition, read_definition
from experiments.suite.players import LearnedPlayer, LookaheadPlayer, PlannerPlayer, Player, ShieldedPlayer
from experiments.suite.report import sheets, summary
from experiments.suite.results import SuiteResult
from experiments.suite.run import Runner
from experiments.suite.sources import KINDS, code_digest, versions
from experiments.tune import require_at_least, world_of
from numa_rl.wording import counted

SUITE = "suite"  # what a policy's file says of one that `train --scenario suite` made


@dataclass(frozen=True)
class Suite:
    """Play the standard suite: every rule, tuned, on every workload family and machine, beside planners and the oracle.

    What is done is kept: Ctrl-C loses little, and another run computes only what has changed. In the folder `out`:
    suite.parquet has a row for each cell, scheduler and episode; suite.md the tables, also as CSV; profile.png the
    performance profiles; tuned.json the parameters; decision_times.json what differs between runs.

    Attributes:
        out: folder for results and for the cache.
        policy: a learned policy, as `train` saves it; the one that comes with the package by default.
        no_policy: leave learned policies out.
        shield: let the policy play under a shield as well: the rule that it started from decides where the policy is
            not sure to be better, and it is held to a budget against that rule.
        lookahead: let the policy play again, trying placements in the model before each decision.
        families: only these workload families.
        machines: only these machines.
        rules: only these rules and planners.
        episodes: test episodes of each cell, in place of the suite's number.
        quick: the small suite, for a demonstration.
        definition: a suite's TOML file, in place of the standard one.
        no_oracle: leave the oracle out.
        oracle_width: width of the oracle's beam.
        workers: processes that compute; as many as there are CPUs by default.
        seed: of episodes, settings and the bootstrap.
    """

    out: Path = Path("results/suite")
    policy: Path | None = None
    no_policy: bool = False
    shield: bool = False
    lookahead: bool = False
    families: tuple[str, ...] = ()
    machines: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    episodes: int | None = None
    quick: bool = False
    definition: Path | None = None
    no_oracle: bool = False
    oracle_width: int = 4
    workers: int | None = None
    seed: int = 0

    def run(self) -> None:
        """Play and print.

        Raises:
            ValueError: an unknown name, a count out of range, a bad definition or policy, or a folder that cannot be
                written.
        """
        definition, others = self._checked()

        from experiments.suite.outputs import write_results  # matplotlib and pyarrow take a second

        console = Console()
        runner = Runner(Cache(self.out / "cache"), self.workers or os.cpu_count() or 1, self.seed)
        with runner.clock.part("cells"):
            cells = definition.cells()
        console.print(_opening(definition, cells, runner.workers), soft_wrap=True, highlight=False, markup=False)
        for player in others:
            if isinstance(player, LearnedPlayer):
                console.print(_trained_on(player), soft_wrap=True, highlight=False, markup=False)
        with console.status("") as status:
            runner = replace(runner, on_progress=lambda part, done, of: status.update(f"{part}: {done} of {of} pieces"))
            names = [name for name in rule_names() if not self.rules or name in self.rules]
            width = None if self.no_oracle else self.oracle_width
            result = runner.run(cells, definition.counts, names, others, width)
            status.update("statistics")
            with runner.clock.part("statistics"):
                tables = sheets(result)
                write_results(self.out, result, tables, _about(definition, result))
            status.update("decision times")
            with runner.clock.part("decision times"):
                times = _decision_times(result)
                write_json(self.out / "decision_times.json", times)
        for line in summary(result):
            console.print(line, highlight=False, markup=False)
        for table in tables:
            table.print(console)
        for path in runner.cache.damaged:
            console.print(f"Was damaged and is computed anew: {path}", soft_wrap=True, highlight=False, markup=False)
        slowest = max(times["median_us"], key=lambda name: times["median_us"][name])
        console.print(
            f"A decision on {times['num_nodes']} nodes takes {min(times['median_us'].values()):.0f} to "
            f"{times['median_us'][slowest]:.0f} us ({slowest}), each alone.",
            highlight=False,
            markup=False,
        )
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in runner.clock.parts.items())
        console.print(f"Time: {parts}.", highlight=False, markup=False)
        console.print(f"Written to {self.out}", soft_wrap=True, highlight=False, markup=False)

    def _checked(self) -> tuple[Definition, list[Player]]:
        """What the options ask for; raises ValueError before anything takes time."""
        if self.quick and self.definition is not None:
            raise ValueError(f"--quick and --definition exclude each other, got {str(self.definition)!r}.")
        options = {"--workers": self.workers, "--episodes": self.episodes, "--oracle-width": self.oracle_width}
        for option, count in options.items():
            if count is not None:
                require_at_least(1, count, option)
        require_at_least(0, self.seed, "--seed")
        known = [*rule_names(), *planner_names()]
        for name in self.rules:
            if name not in known:
                raise ValueError(f"rule must be one of {', '.join(known)}, got {name!r}.")
        if self.rules and not set(self.rules) & set(rule_names()):
            raise ValueError(f"--rules must name a rule besides planners, got {', '.join(self.rules)}.")
        policy = policy_file(self.policy, self.no_policy)
        for option, wanted in (("--lookahead", self.lookahead), ("--shield", self.shield)):
            if wanted and policy is None:
                raise ValueError(f"{option} needs a policy, got --no-policy.")
        definition = read_definition(self.definition or (QUICK if self.quick else STANDARD))
        definition = definition.chosen(self.families, self.machines)
        if self.episodes is not None:
            counts = definition.counts
            fewest = min(counts.oracle_episodes, self.episodes)
            definition = replace(
                definition, counts=replace(counts, test_episodes=self.episodes, oracle_episodes=fewest)
            )
        for path in (self.out / "suite.parquet", self.out / "cache" / "probe"):
            try:
                require_writable(path, "--out")
            except ValueError as error:
                reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else error
                raise ValueError(f"--out must be a folder to write in, got {str(self.out)!r}: {reason}.") from error
        planners = [name for name in planner_names() if not self.rules or name in self.rules]
        learned = [] if policy is None else [LearnedPlayer.read(policy)]
        looking = [LookaheadPlayer.of(player) for player in learned if self.lookahead]
        shielded = [ShieldedPlayer.over(player) for player in learned if self.shield]
        return definition, [*map(PlannerPlayer, planners), *learned, *looking, *shielded]


def _trained_on(player: LearnedPlayer) -> str:
    """What the policy has seen, and what its results say therefore."""
    if player.trained_on == SUITE:
        return "The policy was trained on the suite's training cells and never on those held out."
    return f"The policy was trained on {player.trained_on}; what it does there says nothing of elsewhere."


def _opening(definition: Definition, cells: list[Cell], workers: int) -> str:
    """What is about to be played."""
    held_out = sum(cell.held_out for cell in cells)
    nodes = [cell.scenario.topology.num_nodes for cell in cells]
    return (
        f"{definition.description}: {counted(len(cells), 'cell')} on {min(nodes)} to {max(nodes)} nodes, {held_out} of "
        f"them held out; {workers} at a time."
    )


def _decision_times(result: SuiteResult) -> dict[str, Any]:
    """Median time of a decision of everybody who decides one by one, in a cell with the most nodes.

    Who looks ahead does so too in a stream; in a graph it is the time for the plan over its tasks.
    """
    cell = max(result.cells, key=lambda each: each.scenario.topology.num_nodes)
    world = world_of(cell.scenario, Split.TEST, 1, result.seed)
    players = {entry.player.name: entry.player for entry in result.strongest(cell) if entry.failed is None}
    made = {name: player.make() for name, player in players.items()}
    times = {
        name: decision_us(who, world)
        for name, who in made.items()
        if isinstance(who, Lookahead) or not isinstance(who, Planner)
    }
    return {"cell": cell.name, "num_nodes": cell.scenario.topology.num_nodes, "median_us": times}


def _about(definition: Definition, result: SuiteResult) -> dict[str, Any]:
    """What the results depend on, besides what each row says."""
    return {
        "description": definition.description,
        "counts": asdict(definition.counts),
        "seed": result.seed,
        "cells": {cell.name: cell.scenario.content_hash for cell in result.cells},
        "policies": {e.player.name: e.player.digest for e in result.entries if isinstance(e.player, LearnedPlayer)},
        "code": {kind: code_digest(kind) for kind in KINDS},
        "versions": {"numa-rl": version("numa-rl"), "python": platform.python_version(), **versions()},
    }

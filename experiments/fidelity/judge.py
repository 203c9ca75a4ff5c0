"""The command `numa-rl study referee`: whether a policy's gain over the rules is one in SimGrid too."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

from rich.console import Console

from agents.rules.catalog import RULES
from experiments.fidelity.cells import LoadedCell
from experiments.fidelity.judge_cells import MACHINES, RIVALS, TO_THE_CELL, Contest
from experiments.fidelity.judge_gains import Pairing, Worth, pairing
from experiments.fidelity.judge_play import Found, Judge, judge_recorded, play_each
from experiments.fidelity.judge_report import dropped, group_worths, remarks, sheets, verdict
from experiments.fidelity.judge_tuned import read_tuned, tuned_now
from experiments.fidelity.record import record
from experiments.fidelity.referee import find_simgrid, play, simgrid_version
from experiments.fidelity.rows import Judged, row_of
from experiments.files import require_outputs, write_json
from experiments.suite.players import LearnedPlayer, LookaheadPlayer, Player
from experiments.suite.sources import versions
from experiments.suite.tuning import Tuned
from experiments.tune import require_at_least
from numa_rl.wording import counted


@dataclass(frozen=True)
class Referee:
    """Ask SimGrid what a learned policy's gain over the rules is worth.

    Policy and rules play test episodes of the standard suite in our simulator; what they decided is played again by an
    independent simulator, and both worlds are asked by how much the policy's mean response is shorter. First without
    the loaded-latency factor, which SimGrid has not, so that both share alike; then with our world as shipped. Needs
    SimGrid: `make fidelity` installs it.

    Attributes:
        policy: a learned policy, as `train` saves it.
        lookahead: let the policy try placements in the model before each decision.
        families: of the standard suite; all by default.
        machines: names or files of machines; two of those held out are among the default.
        rules: rules to compare with, each with the one setting that suits the suite best; planners, in known graphs.
        tuned: file of the rules' parameters, tuned.json of `numa-rl suite`; without it they are tuned now.
        per_cell: let rules also play as tuned to each cell, where it is for training.
        episodes: of each cell.
        seed: of the episodes and of the bootstrap.
        workers: cells at a time; as many as there are CPUs by default.
        sharing_only: leave out the comparison with the loaded-latency factor.
        json: a file for all figures.
        plot: a PNG file.
    """

    policy: Path
    lookahead: bool = False
    families: tuple[str, ...] = ()
    machines: tuple[str, ...] = MACHINES
    rules: tuple[str, ...] = RIVALS
    tuned: Path | None = None
    per_cell: bool = False
    episodes: int = 4
    seed: int = 0
    workers: int | None = None
    sharing_only: bool = False
    json: Path | None = None
    plot: Path | None = None

    def run(self) -> None:
        """Play, print and write.

        Raises:
            ValueError: SimGrid is not there, an unknown name, a value out of range, a bad policy or file of parameters,
                or a file that cannot be written.
        """
        contest = Contest(self.families, self.machines, self.rules, self.per_cell, self.episodes, self.seed)
        if self.workers is not None:
            require_at_least(1, self.workers, "--workers")
        require_outputs(
            {"--json": self.json, "--plot": self.plot}, inputs={"--policy": self.policy, "--tuned": self.tuned}
        )
        if self.plot is not None and self.plot.suffix.lower() != ".png":
            raise ValueError(f"--plot must be a .png file, got {str(self.plot)!r}.")
        learned = LearnedPlayer.read(self.policy)
        tuned = None if self.tuned is None else read_tuned(self.tuned, contest.tunable)
        play([])  # raises before anything takes time if SimGrid is not there
        console, workers = Console(), self.workers or os.cpu_count() or 1
        if tuned is None:
            with console.status("tuning rules"):
                tuned = tuned_now(contest.tunable, workers)
        player = LookaheadPlayer.of(learned) if self.lookahead else learned
        factors = (False,) if self.sharing_only else (False, True)
        trial = run_trial(contest, player, tuned, partial(play, workers=1), console, workers=workers, factors=factors)
        if self.json is not None:
            write_json(self.json, trial.to_dict() | {"policy": learned.inputs | {"trained_on": learned.trained_on}})
        if self.plot is not None:
            from experiments.fidelity.judge_plot import plot_gains  # matplotlib takes a second

            plot_gains(trial.pairings, trial.worths, contest.seed, self.plot)
        print_trial(trial, console)


@dataclass(frozen=True, eq=False)
class Trial:
    """All that was played.

    Attributes:
        contest: what.
        policy: name of the policy.
        tuned: the parameters of tunable rules.
        held_out: families and machines of the cells that are held out.
        judged: everybody in every cell and comparison.
        failures: in words, what the referee could not play.
    """

    contest: Contest
    policy: str
    tuned: Tuned
    held_out: frozenset[tuple[str, str]]
    judged: Sequence[Judged]
    failures: Sequence[str]

    @cached_property
    def pairings(self) -> list[Pairing]:
        """The policy with every rule, cell by cell.

        Raises:
            ValueError: the referee could play the policy with no rule.
        """
        found, _ = self._paired
        if not found:
            raise ValueError(f"the referee could play {self.policy} with no rule: {self.left_out[0]}")
        return found

    @property
    def left_out(self) -> list[str]:
        """In words, what the referee could not play, and what could not be paired."""
        return [*self.failures, *self._paired[1]]

    @cached_property
    def _paired(self) -> tuple[list[Pairing], list[str]]:
        """What could be paired, and why the rest could not: a cell that cannot be must not cost the others."""
        mine = {each.where.cell: each for each in self.judged if each.where.scheduler == self.policy}
        found, refused = list[Pairing](), list[str]()
        for each in self.judged:
            if each.where.scheduler != self.policy and each.where.cell in mine:
                held_out = (each.where.family, each.where.machine) in self.held_out
                try:
                    found.append(pairing(mine[each.where.cell], each, held_out=held_out))
                except ValueError as error:
                    refused.append(str(error))
        return found, refused

    @cached_property
    def worths(self) -> list[Worth]:
        """What they come to: rule by rule, without the factor first."""
        parts: dict[tuple[str, bool], list[Pairing]] = {}
        for each in self.pairings:
            parts.setdefault((each.where.scheduler, each.where.loaded_latency), []).append(each)
        order = sorted(parts, key=lambda part: (self._place(part[0]), part[1]))
        return [found for part in order for found in group_worths(parts[part], self.contest.seed)]

    def _place(self, rule: str) -> tuple[int, str]:
        """Where a rule stands among those asked for; as tuned to the cell it follows itself."""
        return self.contest.rules.index(rule.removesuffix(TO_THE_CELL)), rule

    @property
    def opening(self) -> str:
        """What was played, in a line."""
        contest, cells = self.contest, {each.where.cell[:2] for each in self.judged}
        held_out = len(cells & self.held_out)
        return (
            f"{counted(len(cells), 'cell')} of the standard suite, {held_out} of them held out; "
            f"{counted(contest.num_episodes, 'episode')} each, seed {contest.seed}; the referee is SimGrid."
        )

    @property
    def settings(self) -> list[str]:
        """The one setting of each rule that has any, in a line each."""
        return [
            f"{name}, one setting: {', '.join(f'{key} {value:.4g}' for key, value in self.tuned.single[name].items())}."
            for name in self.contest.tunable
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        rules = {*self.contest.rules} & {*RULES}
        return {
            "contest": asdict(self.contest),
            "parameters": {name: dict(self.tuned.single.get(name, {})) for name in sorted(rules)},
            "failures": self.left_out,
            "versions": {
                "simgrid": None if (python := find_simgrid()) is None else simgrid_version(python),
                **{name: version(name) for name in ("numa-rl", "torch")},
                "python": platform.python_version(),
                **versions(),
            },
            "worth": [each.to_dict() for each in self.worths],
            "cells": [each.to_dict(self.contest.seed) for each in self.pairings],
            "rows": [row_of(each).to_dict() for each in self.judged],
        }


def run_trial(
    contest: Contest,
    policy: Player,
    tuned: Tuned,
    judge: Judge,
    console: Console,
    *,
    workers: int,
    factors: Sequence[bool] = (False, True),
) -> Trial:
    """Play everything.

    Args:
        contest: what.
        policy: who is judged.
        tuned: parameters of all tunable rules.
        judge: who times it again.
        console: for the progress line.
        workers: cells at a time.
        factors: the comparisons: whether our world has the loaded-latency factor.

    Raises:
        ValueError: a name is unknown, somebody cannot play, or the referee could play nothing.
    """
    cells = contest.cells()
    rivals = {cell.cell.name: contest.rivals(cell, tuned) for cell in cells}
    if not any(rivals.values()):
        raise ValueError(f"planners compare only where a graph is known in advance, got {', '.join(contest.families)}.")
    players = {name: {policy.name: policy} | others for name, others in rivals.items()}
    held_out = frozenset((cell.cell.family, cell.cell.machine) for cell in cells if cell.cell.held_out)
    judged, failures = list[Judged](), list[str]()
    with console.status("") as status:
        for number, factor in enumerate(factors):

            def on_progress(done: int, of: int, before: int = number * len(cells)) -> None:
                status.update(f"{before + done} of {len(factors) * of} cells")

            on_progress(0, len(cells))
            play_one = _cell_player(contest, players, judge, loaded_latency=factor)
            found, failed = play_each(cells, play_one, workers=workers, on_progress=on_progress)
            judged += found
            failures += failed
    return Trial(contest, policy.name, tuned, held_out, judged, failures)


def _cell_player(
    contest: Contest, players: Mapping[str, Mapping[str, Player]], judge: Judge, *, loaded_latency: bool
) -> Callable[[LoadedCell], Found]:
    """Plays everybody in a cell and has it judged, on any thread."""
    deciding = Lock()  # a policy works in arrays of its own: one decides at a time, while others are judged

    def play_one(cell: LoadedCell) -> Found:
        with deciding:
            world = cell.world(contest.num_episodes, contest.seed, loaded_latency=loaded_latency)
            recorded = {name: record(world, player.make()) for name, player in players[cell.cell.name].items()}
        return judge_recorded(cell, recorded, judge, loaded_latency=loaded_latency)

    return play_one


def print_trial(trial: Trial, console: Console) -> None:
    """Print what was played, what it comes to, and the tables."""
    for line in [trial.opening, *trial.settings]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for line in verdict(trial.policy, trial.worths):
        console.print(line, highlight=False, markup=False)
    for line in [*remarks(trial.judged, trial.left_out), *dropped(trial.pairings)]:
        console.print(line, style="bold red", highlight=False, markup=False)
    console.print()
    for table in sheets(trial.worths, trial.pairings, trial.contest.seed):
        table.print(console)

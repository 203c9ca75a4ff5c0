"""The command `numa-rl study fidelity`."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.fidelity.cells import Plan
from experiments.fidelity.judge_play import Judge
from experiments.fidelity.judge_report import remarks
from experiments.fidelity.laws import LAWS
from experiments.fidelity.outputs import rows_csv, tables_rst
from experiments.fidelity.play import play_cells
from experiments.fidelity.referee import find_simgrid, play, simgrid_version
from experiments.fidelity.report import decisions, laws_sheet, sheets
from experiments.fidelity.rows import Judged, Law, Row, compare, row_of
from experiments.fidelity.summary import orders, targets
from experiments.fidelity.verdict import MISSED, verdict
from experiments.files import require_outputs, write_bytes, write_json
from experiments.suite.sheet import Sheet
from experiments.suite.sources import versions
from experiments.tune import require_at_least
from numa_rl.wording import counted

QUICK = Plan(
    families=("stream", "workflow", "all-reduce"),
    machines=("xeon-8269cy", "r815"),
    schedulers=("random", "first-touch", "greedy", "heft"),
    loads_percent=(40.0, 80.0),
    num_episodes=1,
)


@dataclass(frozen=True)
class Fidelity:
    """Ask SimGrid how long the same decisions take, and say how far the simulator is off: by load, and in what order.

    Schedulers play families of the standard suite in our simulator; what they decided is played again by an
    independent simulator. The main comparison is without the loaded-latency factor, which SimGrid has not: what
    differs then is how streams share controllers and links. Needs SimGrid: `make fidelity` installs it.

    Attributes:
        families: of the standard suite.
        machines: names or files of machines.
        schedulers: rules and planners, with their default parameters.
        loads: what families are asked to offer, percent of what the machine can do.
        episodes: of each cell; three by default, one with --quick.
        seed: of the episodes.
        workers: cells at a time; as many as there are CPUs by default.
        quick: few cells, for a first look.
        sharing_only: leave out the comparison with the loaded-latency factor, which plays half as many episodes.
        laws: also time the same decisions by other laws of sharing.
        json: a file for all figures.
        csv: a file with a row for each cell and scheduler.
        plot: a PNG file.
        tables: a file for the tables in reStructuredText, as the documentation shows them.
    """

    families: tuple[str, ...] = ()
    machines: tuple[str, ...] = ()
    schedulers: tuple[str, ...] = ()
    loads: tuple[float, ...] = ()
    episodes: int | None = None
    seed: int = 0
    workers: int | None = None
    quick: bool = False
    sharing_only: bool = False
    laws: bool = False
    json: Path | None = None
    csv: Path | None = None
    plot: Path | None = None
    tables: Path | None = None

    def run(self) -> None:
        """Play, print and write.

        Raises:
            ValueError: SimGrid is not there, an unknown name, a value out of range, or a file that cannot be written.
        """
        plan = self.plan()
        if self.workers is not None:
            require_at_least(1, self.workers, "--workers")
        require_outputs({f"--{name}": getattr(self, name) for name in ("json", "csv", "plot", "tables")})
        if self.plot is not None and self.plot.suffix.lower() != ".png":
            raise ValueError(f"--plot must be a .png file, got {str(self.plot)!r}.")
        play([])  # raises before anything takes time if SimGrid is not there
        console = Console()
        workers = self.workers or os.cpu_count() or 1
        study = run_study(plan, partial(play, workers=1), console, workers=workers, both=not self.sharing_only)
        tables = study.sheets(LAWS if self.laws else {})
        self._write(study, tables)
        print_study(study, tables, console)

    def plan(self) -> Plan:
        """What is played: the quick or the full plan, with what the options change.

        Raises:
            ValueError: an option is wrong.
        """
        base = QUICK if self.quick else Plan()
        return replace(
            base,
            families=self.families or base.families,
            machines=self.machines or base.machines,
            schedulers=self.schedulers or base.schedulers,
            loads_percent=self.loads or base.loads_percent,
            num_episodes=base.num_episodes if self.episodes is None else self.episodes,
            seed=self.seed,
        )

    def _write(self, study: Study, tables: Sequence[Sheet]) -> None:
        """Write the files asked for."""
        if self.json is not None:
            write_json(self.json, study.to_dict())
        if self.csv is not None:
            write_bytes(self.csv, rows_csv([*study.sharing, *study.shipped]).encode())
        if self.tables is not None:
            write_bytes(
                self.tables, tables_rst(study.opening, [*verdict(study.sharing), *study.remarks], tables).encode()
            )
        if self.plot is not None:
            from experiments.fidelity.plot import plot_fidelity  # matplotlib takes a second

            plot_fidelity(study.sharing, self.plot)


@dataclass(frozen=True, eq=False)
class Study:
    """All that was played.

    Attributes:
        plan: what.
        plain: without the loaded-latency factor.
        factored: with it; none if it was left out.
        failures: in words, what the referee could not play.
    """

    plan: Plan
    plain: Sequence[Judged]
    factored: Sequence[Judged]
    failures: Sequence[str]

    @cached_property
    def sharing(self) -> list[Row]:
        """Rows without the loaded-latency factor."""
        return [row_of(judged) for judged in self.plain]

    @cached_property
    def shipped(self) -> list[Row]:
        """Rows with it."""
        return [row_of(judged) for judged in self.factored]

    @property
    def opening(self) -> str:
        """What was played, in a line."""
        plan = self.plan
        cells = {row.where.cell for row in self.sharing}
        nodes = sorted({row.where.num_nodes for row in self.sharing})
        span = f"{nodes[0]} to {nodes[-1]} nodes" if len(nodes) > 1 else counted(nodes[0], "node")
        return (
            f"{counted(len(cells), 'cell')}: {_number(plan.families, 'family', 'families')} on "
            f"{_number(plan.machines, 'machine', 'machines')} of {span}, "
            f"{counted(len(plan.schedulers), 'scheduler')}, {counted(plan.num_episodes, 'episode')} each, seed "
            f"{plan.seed}; the referee is SimGrid."
        )

    @property
    def remarks(self) -> list[str]:
        """What the referee could not play, or only by leaving something out."""
        return remarks([*self.plain, *self.factored], self.failures)

    def sheets(self, laws: Mapping[str, Law] = {}) -> list[Sheet]:
        """All tables, with one of these laws if there are any."""
        found = sheets(self.sharing, self.shipped)
        if self.factored:
            found.append(decisions(self.plain, self.factored))
        if laws:
            found.append(laws_sheet(compare(self.plain, laws)))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "plan": asdict(self.plan),
            "failures": list(self.failures),
            "versions": {
                **_simgrid(),
                "numa-rl": version("numa-rl"),
                "python": platform.python_version(),
                **versions(),
            },
            "targets": [target.to_dict() for target in targets(self.sharing)],
            "orders": [order.to_dict() for order in orders(self.sharing)],
            "rows": [row.to_dict() for row in (*self.sharing, *self.shipped)],
        }


def _number(names: Sequence[str], one: str, many: str) -> str:
    return f"{len(names)} {one if len(names) == 1 else many}"


def _simgrid() -> dict[str, str | None]:
    """The referee's version, where it is there."""
    python = find_simgrid()
    return {} if python is None else {"simgrid": simgrid_version(python)}


def run_study(plan: Plan, judge: Judge, console: Console, *, workers: int, both: bool) -> Study:
    """Play everything.

    Args:
        plan: what.
        judge: who times it again.
        console: for the progress line.
        workers: cells at a time.
        both: whether to play with the loaded-latency factor as well.
    """
    cells = plan.cells()
    parts: dict[bool, list[Judged]] = {False: [], True: []}
    failures: list[str] = []
    with console.status("") as status:
        for number, factor in enumerate([False, True] if both else [False]):

            def on_progress(done: int, of: int, before: int = number * len(cells)) -> None:
                status.update(f"{before + done} of {(1 + both) * of} cells")

            on_progress(0, len(cells))
            episodes = max(1, plan.num_episodes // 2) if factor else plan.num_episodes  # the second is for reference
            parts[factor], failed = play_cells(
                cells,
                replace(plan, num_episodes=episodes),
                judge,
                loaded_latency=factor,
                workers=workers,
                on_progress=on_progress,
            )
            failures += failed
    return Study(plan, parts[False], parts[True], failures)


def print_study(study: Study, tables: Sequence[Sheet], console: Console) -> None:
    """Print what is worst first: the targets that are missed, then the tables."""
    console.print(study.opening, highlight=False, markup=False)
    for line in verdict(study.sharing):
        console.print(line, style="bold red" if line.startswith(MISSED) else None, highlight=False, markup=False)
    for line in study.remarks:
        console.print(line, style="bold red", highlight=False, markup=False)
    console.print()
    for table in tables:
        table.print(console)

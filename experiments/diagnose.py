"""Diagnosing a run, real or simulated: the chapter's tree, the gotchas, and what to run next."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from experiments.compare import load_learned
from experiments.diagnosis_report import print_report
from experiments.files import require_outputs, write_json
from experiments.scenario import load_scenario
from experiments.simulated_run import NUM_EPISODES, rule_of, simulated_evidence
from experiments.tune import require_at_least
from numa_rl.diagnosis.evidence import Evidence
from numa_rl.diagnosis.gotchas import Finding, Gotcha, find_gotchas, not_looked_for
from numa_rl.diagnosis.inputs import MOST_BYTES, Kind, decode, evidence_of, kind_of
from numa_rl.diagnosis.numa_text import read_node_list
from numa_rl.diagnosis.samples import samples_evidence
from numa_rl.diagnosis.tree import Diagnosis, Thresholds, diagnose
from numa_rl.machines.catalog import load_machine
from numa_rl.topology import Topology

STANDARD_INPUT = "-"
# Options that mean something to one kind of input only; to give one with another is a mistake.
MEANT_FOR = {
    "--seconds": (Kind.PERF_STAT, Kind.VMSTAT),
    "--threads-on": (Kind.NUMASTAT, Kind.NUMA_MAPS),
    "--separator": (Kind.PERF_STAT,),
    "--ignore-unknown": (Kind.PERF_STAT,),
}
OF_FILES = ("machine", "seconds", "threads_on", "separator", "ignore_unknown", "samples")
OF_SCENARIOS = ("rule", "policy", "tuned", "episodes", "seed")


@dataclass(frozen=True)
class Diagnose:
    """Say why a run is slow, and what to run next, from what perf, numastat or /proc say of it, or of a simulated run.

    Attributes:
        file: what was measured: `perf stat -x,` counts, `numastat` (also -p, -m, -n), `/proc/PID/numa_maps` or
            `/proc/vmstat`; told apart by what it holds. `-` is standard input.
        scenario: instead of a file, simulate this: a scenario's name, or the path of its TOML file.
        rule: who places tasks and data in the simulated run: a rule's name.
        policy: or a learned policy, as `train` saves it.
        tuned: the rule with the parameters tuned for the scenario, as `compare` takes them; all rules are tuned first
            where that was not done yet, which takes minutes. Without it, default parameters.
        episodes: how many test episodes to simulate; 8 if left out.
        seed: of the test episodes, as for `compare`; 0 if left out.
        machine: the machine it was measured on, for the capacities of its memory and links: a name (`machine list`
            prints them), or the path of an hwloc XML or JSON file.
        seconds: how long it was counted, if the counts do not say.
        threads_on: nodes that the process's threads run on, as 0-1,3: memory elsewhere is misplaced.
        separator: between perf's fields, as given to `-x`; found by itself if left out.
        ignore_unknown: pass over counters that are unknown.
        samples: a CSV file of sampled accesses, thread,address,write and maybe node, to find false sharing in;
            needs --machine.
        json: a file for the whole diagnosis.
        thresholds: above which an answer is yes.
    """

    file: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="[FILE]")]] = None
    scenario: str | None = None
    rule: str | None = None
    policy: Path | None = None
    tuned: bool = False
    episodes: int | None = None
    seed: int | None = None
    machine: str | None = None
    seconds: float | None = None
    threads_on: str | None = None
    separator: str | None = None
    ignore_unknown: bool = False
    samples: Path | None = None
    json: Path | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)

    def run(self) -> None:
        """Print the diagnosis.

        Raises:
            ValueError: no such file, machine, scenario, rule or policy, an input that breaks its format, or an option
                that is out of range or does not go with the input.
        """
        self._check_options()
        measured = None if self.file in (None, "-") else Path(self.file)
        require_outputs(
            {"--json": self.json}, {"the input": measured, "--samples": self.samples, "--policy": self.policy}
        )
        console = Console()
        if self.scenario is not None:
            report = self._simulated(self.scenario, console)
        else:
            report = self._measured(self.file or "")
        if self.json is not None:
            write_json(self.json, report.to_dict())
        print_report(report, console)

    def _check_options(self) -> None:
        """Raise ValueError for options that do not go together."""
        if self.file is not None and self.scenario is not None:
            raise ValueError("diagnose takes a file or --scenario, got both.")
        names, goes_with = (OF_SCENARIOS, "--scenario") if self.scenario is None else (OF_FILES, "a file")
        for name in names:
            given = getattr(self, name)
            if given is not None and given is not False:
                raise ValueError(f"--{name.replace('_', '-')} must go with {goes_with}.")
        if self.file is None and self.scenario is None:
            raise ValueError("diagnose takes a file or --scenario, got neither.")
        if self.scenario is not None and (self.rule is None) == (self.policy is None):
            raise ValueError(f"--scenario takes --rule or --policy, got {'neither' if self.rule is None else 'both'}.")
        if self.tuned and self.rule is None:
            raise ValueError("--tuned must go with --rule.")

    def _simulated(self, name: str, console: Console) -> Report:
        """The report on a simulated run."""
        num_episodes = NUM_EPISODES if self.episodes is None else self.episodes
        require_at_least(1, num_episodes, "--episodes")
        require_at_least(0, self.seed or 0, "--seed")
        scenario = load_scenario(name)
        with console.status("") as status:
            if self.policy is not None:
                scheduler = load_learned(self.policy, scenario, console)
            else:
                scheduler = rule_of(scenario, self.rule or "", tuned=self.tuned, on_step=status.update)
            status.update(f"playing {scheduler.name}")
            evidence = simulated_evidence(scenario, scheduler, num_episodes, self.seed or 0)
        who = f"{scheduler.name} (tuned)" if self.tuned else scheduler.name
        first = f"numa-rl compare --scenario {shlex.quote(name)}  # all rules; the rest is for real runs"
        return examine(evidence, f"{who} on {scenario.name} (simulated)", self.thresholds, (first,))

    def _measured(self, file: str) -> Report:
        """The report on a file, with the samples."""
        topology = None if self.machine is None else load_machine(self.machine)
        kind, evidence = self._read(file, topology)
        if self.samples is not None:
            if topology is None:
                raise ValueError("--samples needs --machine: what sharing costs depends on its latencies.")
            evidence = _of(str(self.samples), lambda text: samples_evidence(text, topology)).join(evidence)
        name = "standard input" if file == STANDARD_INPUT else file
        return examine(evidence, f"{name} ({kind.value})", self.thresholds)

    def _read(self, file: str, topology: Topology | None) -> tuple[Kind, Evidence]:
        """What the input is, and what it says."""
        thread_nodes = () if self.threads_on is None else read_node_list(self.threads_on)
        text = read_text(file)
        try:
            kind = kind_of(text, self.separator)
            given = {
                "--seconds": self.seconds,
                "--threads-on": self.threads_on,
                "--separator": self.separator,
                "--ignore-unknown": self.ignore_unknown or None,
            }
            for option, value in given.items():
                if value is not None and kind not in MEANT_FOR[option]:
                    kinds = " or ".join(meant.value for meant in MEANT_FOR[option])
                    raise ValueError(f"{option} must go with {kinds}, got {kind.value}.")
            return kind, evidence_of(
                text,
                topology,
                seconds=self.seconds,
                thread_nodes=thread_nodes,
                separator=self.separator,
                ignore_unknown=self.ignore_unknown,
            )
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None


@dataclass(frozen=True)
class Report:
    """Everything that a diagnosis says.

    Attributes:
        source: what the evidence was taken from.
        evidence: what was measured.
        diagnosis: the walk through the tree.
        findings: the gotchas seen.
        not_measured: the gotchas that nothing measured could show.
        first: what to run before all else.
    """

    source: str
    evidence: Evidence
    diagnosis: Diagnosis
    findings: tuple[Finding, ...]
    not_measured: tuple[Gotcha, ...]
    first: tuple[str, ...] = ()

    @property
    def commands(self) -> tuple[str, ...]:
        """What to run next: for the input, what the tree and the tuning table say, then for the gotchas; each once."""
        gotchas = (command for finding in self.findings for command in finding.commands)
        first: dict[str, str] = {}
        for command in (*self.first, *self.diagnosis.commands, *gotchas):
            first.setdefault(command.split("  #")[0], command)
        return tuple(first.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        diagnosis = self.diagnosis
        content = {
            "source": self.source,
            "figures": self.evidence.measured,
            "provenance": dict(self.evidence.provenance),
            "notes": self.evidence.notes,
            "path": [asdict(step) for step in diagnosis.path],
            "leaf": diagnosis.leaf,
            "advice": diagnosis.advice,
            "tuning": None if diagnosis.tuning is None else asdict(diagnosis.tuning),
            "missing": diagnosis.missing,
            "gotchas": [asdict(finding) for finding in self.findings],
            "gotchas_not_looked_for": self.not_measured,
            "commands": self.commands,
        }
        plain: dict[str, Any] = _plain(content)
        return plain


def examine(evidence: Evidence, source: str, thresholds: Thresholds, first: tuple[str, ...] = ()) -> Report:
    """Walk the tree and look for gotchas, whatever the evidence was taken from."""
    findings, unknown = find_gotchas(evidence, thresholds), not_looked_for(evidence, thresholds)
    return Report(source, evidence, diagnose(evidence, thresholds), tuple(findings), tuple(unknown), first)


def read_text(name: str) -> str:
    """The text of a file, or of standard input where it is named "-".

    Raises:
        ValueError: it cannot be read, or is no text.
    """
    try:
        if name == STANDARD_INPUT:
            content = sys.stdin.buffer.read(MOST_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                content = file.read(MOST_BYTES + 1)
        return decode(content)
    except OSError as error:
        raise ValueError(f"{name}: must be a readable file, got {error.strerror}.") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _of(name: str, take: Callable[[str], Evidence]) -> Evidence:
    """Evidence from a file, whose name stands before what is wrong with it."""
    text = read_text(name)
    try:
        return take(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _plain(value: Any) -> Any:
    """A value in types that JSON knows; enumerations become their values."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value

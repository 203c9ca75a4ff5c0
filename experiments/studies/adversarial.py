"""The command `numa-rl study adversarial`: how bad a policy can get, with its shield and without."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from agents.shield import MARGIN, Reason
from agents.shield_play import ShieldedPlay
from experiments.files import file_digest, require_outputs, write_json
from experiments.shielding import load_shield
from experiments.studies.adversarial_search import Found, Play, Trial, both, search, try_situation
from experiments.studies.adversarial_situations import DRAWN, Situation, Space
from experiments.suite.definition import STANDARD, Definition, read_definition
from experiments.tune import require_at_least
from numa_rl.wording import counted

FORMAT = 2  # of the file
MOST_BYTES = 64 * 2**20  # of a file to be replayed
SETTINGS = (
    "slack",
    "stop",
    "futures",
    "depth",
    "paces",
    "reserve",
    "run_length",
    "memory",
    "seed",
)  # of the shield, kept in the file


@dataclass(frozen=True)
class Adversarial:
    """Search for episodes in which a policy does worst against its rule, with its shield and without.

    An evolution strategy goes through families of the standard suite with other parameters and loads, through presets
    and machines drawn at random, and through seeds. The rule is the one that the policy started from. There are two
    searches, each with the whole budget: against the policy alone, and against the policy under its shield.

    Attributes:
        policy: a learned policy, as `train` saves it.
        episodes: budget of each search.
        episodes_each: of these, in each situation.
        families: only these families of the suite.
        machines: only these machines of the suite, or `drawn` for those drawn at random.
        margin: how sure the policy must be, relative to the lowest priced cost.
        keep: how many of the worst situations of each search to keep.
        json: a file for what was found, to be replayed.
        replay: such a file: play its situations again in place of a search; written nowhere.
        seed: of the search.
    """

    policy: Path
    episodes: int = 1024
    episodes_each: int = 4
    families: tuple[str, ...] = ()
    machines: tuple[str, ...] = ()
    margin: float = MARGIN
    keep: int = 8
    json: Path | None = None
    replay: Path | None = None
    seed: int = 0

    def run(self) -> None:
        """Search, or play again, and print.

        Raises:
            ValueError: no such policy, an unknown name, a count out of range, or a bad file or one that cannot be
                written.
        """
        for option in ("episodes", "episodes_each", "keep"):
            require_at_least(1, getattr(self, option), f"--{option.replace('_', '-')}")
        if self.episodes < self.episodes_each:
            raise ValueError(f"--episodes must be >= --episodes-each ({self.episodes_each}), got {self.episodes}.")
        require_at_least(0, self.seed, "--seed")
        for item in fields(self) if self.replay is not None else ():
            if item.name not in ("policy", "replay") and getattr(self, item.name) != item.default:
                option, value = f"--{item.name.replace('_', '-')}", getattr(self, item.name)
                raise ValueError(f"{option} and --replay exclude each other: all else is in the file, got {value!r}.")
        require_outputs({"--json": self.json}, {"--policy": self.policy})
        console = Console()
        definition = read_definition(STANDARD)
        if self.replay is not None:
            print_replay(self._replayed(definition, self.replay), console)
            return
        space = self._space(definition)
        play = load_shield(self.policy, margin=self.margin)
        found = {}
        with console.status("") as status:
            for name, how in both(play).items():
                found[name] = search(
                    how,
                    space,
                    self.episodes // self.episodes_each,
                    self.episodes_each,
                    np.random.default_rng(self.seed),
                    lambda done, worst, name=name: status.update(  # type: ignore[misc]
                        f"{name}: {counted(done, 'situation')}, worst episode {worst:.3f} times the rule's cost"
                    ),
                )
        if self.json is not None:
            write_json(self.json, self._content(play, found))
        print_found(found, console)

    def _space(self, definition: Definition) -> Space:
        """Where to search, as the options say: among what is held out alone, too."""
        machines = [DRAWN, *definition.machines]
        for kind, wanted, known in (
            ("family", self.families, definition.families),
            ("machine", self.machines, machines),
        ):
            for name in wanted:
                if name not in known:
                    raise ValueError(f"{kind} must be one of {', '.join(known)}, got {name!r}.")
        families = {name: each for name, each in definition.families.items() if name in (self.families or [name])}
        return Space(
            replace(definition, families=families), [name for name in machines if name in (self.machines or [name])]
        )

    def _content(self, play: ShieldedPlay, found: Mapping[str, Found]) -> dict[str, Any]:
        """What is written, as JSON values."""
        return {
            "format": FORMAT,
            "policy": file_digest(self.policy),
            "rule": asdict(play.shield.rule),
            "shield": {name: getattr(play, name) for name in SETTINGS} | {"margin": play.shield.margin},
            "seed": self.seed,
            "episodes_each": self.episodes_each,
            "searches": {
                name: {
                    "situations": len(each.trials),
                    "failed": each.num_failed,
                    "first_generation": [trial.to_dict() for trial in each.first],
                    "worst": [trial.to_dict() for trial in each.worst(self.keep)],
                }
                for name, each in found.items()
            },
        }

    def _replayed(self, definition: Definition, path: Path) -> list[tuple[str, Trial, bool]]:
        """The worst situations of a file, played again: the search's name, how it went now, and whether as written."""
        content = read_found(path)
        if content["policy"] != file_digest(self.policy):
            raise ValueError(f"{path}: was found for another policy than {str(self.policy)!r}.")
        settings = content["shield"]
        try:
            rule = asdict(load_shield(self.policy).shield.rule)
            if content["rule"] != rule:
                raise ValueError(f"rule must be the policy's own, {rule}, got {content['rule']!r:.200}.")
            play = load_shield(self.policy, margin=settings["margin"], **{name: settings[name] for name in SETTINGS})
            plays: Mapping[str, Play] = both(play)
            space = Space(definition, [DRAWN])
            replayed = []
            for name, found in content["searches"].items():
                for each in found["worst"]:
                    situation = Situation.from_dict(each["situation"])
                    trial = try_situation(plays[name], situation, space, content["episodes_each"])
                    replayed.append((name, trial, trial.to_dict() == each))
            return replayed
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not what this command wrote: {type(error).__name__} {error}.") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def read_found(path: Path) -> dict[str, Any]:
    """What the command wrote.

    Raises:
        ValueError: it cannot be read, or is something else.
    """
    try:
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path}: must be at most {MOST_BYTES} bytes, got {path.stat().st_size}.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: must be a readable file: {error.strerror}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: must be JSON: {error}.") from error
    wanted = {"policy": str, "shield": dict, "searches": dict, "episodes_each": int}
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: must be what this command wrote, of format {FORMAT}.")
    for key, kind in wanted.items():
        if type(content.get(key)) is not kind:
            raise ValueError(f"{path}: {key} must be of type {kind.__name__}, got {content.get(key)!r:.80}.")
    require_at_least(1, content["episodes_each"], f"{path}: episodes_each")
    return content


def print_found(found: Mapping[str, Found], console: Console) -> None:
    """Print what each search found, and the worst situations."""
    table = _table("", "situations", "on average", "worst situation", "worst episode")
    for name, each in found.items():
        worst = each.worst(1)[0]
        average = float(np.mean([trial.mean for trial in each.first]))
        least = max(trial.mean for trial in each.trials)
        table.add_row(name, str(len(each.trials)), *(_percent(value) for value in (average, least, worst.worst)))
    console.print(table)
    console.print(
        "Cost against the rule's. On average: over the situations of the first generation, which nobody chose; worst "
        "situation: by the mean over its episodes.",
        style="dim",
        highlight=False,
    )
    for name, each in found.items():
        console.print(f"Situations with the worst episodes, {name}:", highlight=False)
        for trial in each.worst(3):
            console.print(f"  {_percent(trial.worst)} {_described(trial.situation)}", highlight=False, markup=False)
        if each.num_failed:
            console.print(f"  {counted(each.num_failed, 'situation')} drawn could not be played.", highlight=False)
    decided = {name: sum(trial.reasons[name] for trial in found["shielded"].first) for name in _reason_names()}
    total = max(sum(decided.values()), 1)
    shares = ", ".join(f"{name} {count / total:.0%}" for name, count in decided.items())
    console.print(f"Decisions under the shield, on average: {shares}.", highlight=False)
    console.print(
        "agreed: the policy would do as the rule; policy: it decides otherwise; the rule decides where the advantage "
        "is small, where training saw nothing alike (unseen), or where the policy might get too far behind (budget).",
        style="dim",
        highlight=False,
    )


def print_replay(replayed: list[tuple[str, Trial, bool]], console: Console) -> None:
    """Print how situations went when they were played again."""
    table = _table("", "worst episode", "as written", "situation")
    for name, trial, same in replayed:
        table.add_row(name, _percent(trial.worst), "yes" if same else "no", _described(trial.situation))
    console.print(table)


def _reason_names() -> list[str]:
    return [each.name.lower() for each in Reason]


def _table(*headers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        table.add_column(header, justify="left" if header in ("", "situation") else "right")
    return table


def _percent(ratio: float) -> str:
    """How much more than 1 a ratio is."""
    return f"{100.0 * (ratio - 1.0):+.2f}%"


def _described(situation: Situation) -> str:
    """A situation in one line."""
    machine = f"{DRAWN} {situation.machine_seed}" if situation.machine == DRAWN else situation.machine
    known = {"load": situation.load, "window_tasks": situation.window_tasks, "seed": situation.seed}
    shown = [f"{name} {value}" for name, value in (known | situation.parameters).items() if value is not None]
    return f"{situation.family} on {machine}: {', '.join(shown)}"

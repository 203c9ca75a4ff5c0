"""Tuning the rules for a scenario, and keeping what was found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from agents import rules
from agents.rules.catalog import make_rule, rule_names
from agents.tuning import NUM_SETTINGS, TunedRule, tune_rule
from envs import observation_kernel, reward
from envs.world import World
from experiments.files import require_writable, write_json
from experiments.scenario import Scenario, Split, load_scenario
from numa_rl.compilation import source_digest

FORMAT = 2  # of the file; counted up when its meaning changes
RULE_FILES = [str(path) for path in sorted(Path(rules.__file__).parent.glob("*.py"))]
CODE_HASH = source_digest([*RULE_FILES, observation_kernel.__file__, reward.__file__])
NUM_EPISODES = 64


@dataclass(frozen=True)
class Tune:
    """Fit every rule's parameters to a scenario, on episodes that nothing else uses, and save them.

    Attributes:
        scenario: a scenario's name, or the path of its TOML file.
        episodes: how many tuning episodes.
        settings: about how many settings of each rule to try first.
        seed: of the episodes and of the settings.
        out: the file to write; results/<scenario>/tuned.json by default, where `compare` looks for it.
    """

    scenario: str
    episodes: int = NUM_EPISODES
    settings: int = NUM_SETTINGS
    seed: int = 0
    out: Path | None = None

    def run(self) -> None:
        """Tune, print a table and write the file.

        Raises:
            ValueError: no such scenario, a count out of range, or `out` cannot be written.
        """
        scenario = load_scenario(self.scenario)
        path = self.out or tuned_path(scenario)
        require_writable(path, "--out")
        console = Console()
        with console.status("") as status:
            tuned = tune_rules(
                scenario,
                num_episodes=self.episodes,
                num_settings=self.settings,
                seed=self.seed,
                on_rule=lambda name: status.update(f"tuning {name}"),
            )
        write_json(path, _to_dict(scenario, tuned, self.episodes, self.settings, self.seed))
        console.print(_table(scenario, tuned, self.episodes))
        console.print(f"Written to {path}", soft_wrap=True, highlight=False)


def tuned_path(scenario: Scenario) -> Path:
    """Where a scenario's tuned rules are kept."""
    return Path("results") / scenario.name / "tuned.json"


def world_of(scenario: Scenario, split: Split, num_episodes: int, seed: int) -> World:
    """What an environment needs to know to play these episodes of a scenario."""
    workload = scenario.episodes(split, num_episodes, seed)
    return World(workload, (scenario.topology,), scenario.reward, scenario.window_s)


def tune_rules(
    scenario: Scenario,
    *,
    num_episodes: int = NUM_EPISODES,
    num_settings: int = NUM_SETTINGS,
    seed: int = 0,
    on_rule: Callable[[str], None] = lambda name: None,
) -> list[TunedRule]:
    """Every rule with the parameters that did best on the scenario's tuning episodes.

    Args:
        scenario: whose episodes.
        num_episodes: how many of them.
        num_settings: see `tune_rule`.
        seed: of the episodes and of the settings.
        on_rule: called with each rule's name before it is tuned.
    """
    world = world_of(scenario, Split.TUNE, num_episodes, seed)
    tuned = []
    for name in rule_names():
        on_rule(name)
        tuned.append(tune_rule(name, world, seed, num_settings))
    return tuned


def load_or_tune(
    scenario: Scenario,
    *,
    seed: int = 0,
    path: Path | None = None,
    num_episodes: int = NUM_EPISODES,
    num_settings: int = NUM_SETTINGS,
    on_rule: Callable[[str], None] = lambda name: None,
) -> list[TunedRule]:
    """The tuned rules of a scenario: from its file if that fits, else tuned now and written there.

    A file fits if it was made for the same content of the scenario, by the same seed, for the rules there are; how
    many episodes and settings it was made with is the caller's who made it.

    Args:
        scenario: whose rules.
        seed: of the tuning.
        path: the file; `tuned_path` by default.
        num_episodes: see `tune_rules`.
        num_settings: likewise.
        on_rule: likewise; not called when the file fits.

    Raises:
        ValueError: the file does not fit and cannot be written.
    """
    path = path or tuned_path(scenario)
    found = _read(path, scenario, seed)
    if found is not None:
        return found
    require_writable(path, "the file of tuned rules")
    tuned = tune_rules(scenario, num_episodes=num_episodes, num_settings=num_settings, seed=seed, on_rule=on_rule)
    write_json(path, _to_dict(scenario, tuned, num_episodes, num_settings, seed))
    return tuned


def _to_dict(
    scenario: Scenario, tuned: list[TunedRule], num_episodes: int, num_settings: int, seed: int
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "scenario": scenario.name,
        "scenario_hash": scenario.content_hash,
        "code_hash": CODE_HASH,
        "seed": seed,
        "episodes": num_episodes,
        "settings": num_settings,
        "rules": [asdict(rule) for rule in tuned],
    }


def _read(path: Path, scenario: Scenario, seed: int) -> list[TunedRule] | None:
    """The rules in a file, or None if there is none that fits."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = (content["format"], content["scenario_hash"], content["code_hash"], content["seed"])
        fits = found == (FORMAT, scenario.content_hash, CODE_HASH, seed)
        tuned = [TunedRule(**entry) for entry in content["rules"]]
        for rule in tuned:
            make_rule(rule.name, **rule.parameters)
    except (OSError, ValueError, LookupError, TypeError):  # missing, damaged, or made for rules of another version
        return None
    return tuned if fits and [rule.name for rule in tuned] == rule_names() else None


def require_at_least(least: int, count: int, option: str) -> None:
    """Raise ValueError if a count is too small: here, before anything takes time or is overwritten."""
    if count < least:
        raise ValueError(f"{option} must be >= {least}, got {count}.")


def _table(scenario: Scenario, tuned: list[TunedRule], num_episodes: int) -> Table:
    """Rules, their parameters and what tuning brought."""
    table = Table(
        title=f"{scenario.name}: cost per decision on {num_episodes} tuning episodes",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("rule", style="bold", no_wrap=True)
    table.add_column("parameters")
    for header in ("untuned", "tuned"):
        table.add_column(header, justify="right", no_wrap=True)
    for rule in tuned:
        parameters = ", ".join(f"{name} {value:.4g}" for name, value in rule.parameters.items())
        table.add_row(rule.name, parameters, f"{rule.untuned_cost:.3f}", f"{rule.cost:.3f}")
    return table

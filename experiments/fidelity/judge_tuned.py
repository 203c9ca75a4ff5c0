"""Parameters of the rules that a policy is judged against: from a run of the suite, or tuned as it tunes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from agents.rules.catalog import RULES
from experiments.suite.cache import Cache
from experiments.suite.definition import STANDARD, read_definition
from experiments.suite.tuning import Tuned, tune_suite
from experiments.suite.work import run_pieces
from numa_rl.workloads.json_files import read_json, shown

MOST_BYTES = 64 * 2**20  # the standard suite's takes 70 kB


def tuned_now(rules: Sequence[str], workers: int) -> Tuned:
    """Tune rules to the standard suite; what its cache has is not computed again.

    Args:
        rules: names of rules with something to tune.
        workers: processes that compute.
    """
    if not rules:
        return Tuned({}, {}, {})
    from experiments.suite.train import CACHE, SEED  # torch takes a second

    suite = read_definition(STANDARD)
    return tune_suite(
        suite.cells(), rules, suite.counts, SEED, lambda pieces: run_pieces(pieces, Cache(CACHE), workers)
    )


def read_tuned(path: Path, rules: Sequence[str]) -> Tuned:
    """What `numa-rl suite` wrote as tuned.json.

    Args:
        path: the file.
        rules: names of the rules, with something to tune, that are wanted of it.

    Raises:
        ValueError: it cannot be read, or does not say a usable value of every parameter of these rules.
    """
    where = f"tuned rules {path}"
    content = read_json(path, where, MOST_BYTES)
    single, relative_cost, by_cell = (_table(content, name, where) for name in ("single", "relative_cost", "by_cell"))
    return Tuned(
        by_cell={
            cell: _settings(_table(by_cell, cell, f"{where}: by_cell"), rules, f"{where}: {cell}") for cell in by_cell
        },
        single=_settings(single, rules, where),
        relative_cost={rule: _number(relative_cost, rule, f"{where}: relative_cost") for rule in rules},
    )


def _settings(tables: Mapping[str, Any], rules: Sequence[str], where: str) -> dict[str, dict[str, float]]:
    """The parameters of each rule, every tunable one and no other."""
    found = {}
    for rule in rules:
        table = _table(tables, rule, where)
        wanted = list(RULES[rule].tunable)
        if sorted(table) != sorted(wanted):
            got = ", ".join(table) or "none"
            raise ValueError(f"{where}: {rule} must have the parameters {', '.join(wanted)}, got {got}.")
        found[rule] = {name: _number(table, name, f"{where}: {rule}") for name in wanted}
        for name, value in found[rule].items():
            span = RULES[rule].tunable[name]
            if not span.low <= value <= span.high:
                raise ValueError(f"{where}: {rule}: {name} must be in {span.low:g}..{span.high:g}, got {value}.")
    return found


def _table(content: Any, name: str, where: str) -> dict[str, Any]:
    value = content.get(name) if isinstance(content, dict) else None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: {name} must be a JSON object, got {shown(value)}.")
    return value


def _number(table: Mapping[str, Any], name: str, where: str) -> float:
    value = table.get(name)
    if type(value) not in (int, float) or not isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"{where}: {name} must be a number, got {shown(value)}.")
    return float(value)  # type: ignore[arg-type]

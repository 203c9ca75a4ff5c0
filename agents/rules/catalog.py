"""The rules by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from agents.rules.asymsched import AsymSched
from agents.rules.base import Rule
from agents.rules.bwap import Bwap
from agents.rules.carrefour import Carrefour
from agents.rules.greedy import Greedy, PricedGreedy
from agents.rules.linux import AutoNuma, FirstTouch, Interleave, WeightedInterleave
from agents.rules.migration import MigrationScore
from agents.rules.simple import DataAffinity, Random, RoundRobin, ShortestQueue
from agents.rules.stealing import WorkStealing

RULES: Mapping[str, type[Rule]] = {
    rule.name: rule
    for rule in (
        Random,
        RoundRobin,
        FirstTouch,
        Interleave,
        WeightedInterleave,
        DataAffinity,
        ShortestQueue,
        WorkStealing,
        AutoNuma,
        Carrefour,
        Bwap,
        AsymSched,
        Greedy,
        MigrationScore,
        PricedGreedy,
    )
}


def rule_names() -> list[str]:
    """Names that `make_rule` knows, from the simplest rule to the strongest."""
    return list(RULES)


def make_rule(name: str, **parameters: Any) -> Rule:
    """The rule of that name; parameters left out keep their defaults.

    Raises:
        ValueError: there is no such rule or parameter, or its value is not finite.
    """
    if name not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {name!r}.")
    known = [item.name for item in fields(RULES[name])]
    for parameter in parameters:
        if parameter not in known:
            raise ValueError(f"{name}: parameter must be one of {', '.join(known) or '(none)'}, got {parameter!r}.")
    return RULES[name](**parameters)

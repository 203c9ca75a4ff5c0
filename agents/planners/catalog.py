"""The planners by name. The oracle is none of them: it takes the plans of others, and tables measure against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from agents.planners.base import TaskPlanner
from agents.planners.grouping import GraphPartition, TreeMatch
from agents.planners.heft import Heft, HeftNodes

PLANNERS: Mapping[str, type[TaskPlanner]] = {
    planner.name: planner for planner in (Heft, HeftNodes, GraphPartition, TreeMatch)
}


def planner_names() -> list[str]:
    """Names that `make_planner` knows."""
    return list(PLANNERS)


def make_planner(name: str, **parameters: Any) -> TaskPlanner:
    """The planner of that name; parameters left out keep their defaults.

    Raises:
        ValueError: there is no such planner or parameter, or its value is out of range.
    """
    if name not in PLANNERS:
        raise ValueError(f"planner must be one of {', '.join(PLANNERS)}, got {name!r}.")
    known = [item.name for item in fields(PLANNERS[name])]
    for parameter in parameters:
        if parameter not in known:
            raise ValueError(f"{name}: parameter must be one of {', '.join(known) or '(none)'}, got {parameter!r}.")
    return PLANNERS[name](**parameters)

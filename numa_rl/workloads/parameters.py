"""How a frozen dataclass of parameters is checked and built from untyped values, such as those of a TOML table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")

MOST_TASKS = 10**6  # of an episode: more would not end in a day

# What a type is called in messages: TOML's words.
KINDS = {int: "integer", float: "number", bool: "boolean", str: "string", dict: "table"}


def require(parameters: object, names: str, rule: str, holds: Callable[[float], bool]) -> None:
    """Raise ValueError naming the first of `names` (separated by spaces) whose value is not finite or not `rule`."""
    for name in names.split():
        value = getattr(parameters, name)
        if not (math.isfinite(value) and holds(value)):
            raise ValueError(f"{name} must be {rule}, got {value}.")


def build(cls: type[T], values: Mapping[str, Any], owner: str) -> T:
    """Make a dataclass from values whose names and types are checked here, and whose ranges it checks itself.

    A whole number is taken where a float is wanted, never the other way round.

    Args:
        cls: a dataclass whose fields are of the types in `KINDS`, or one of these or None.
        values: the value of each field; fields left out keep their defaults.
        owner: what the values belong to, the opening of every message.

    Raises:
        ValueError: an unknown name, a missing one, or a value of the wrong type or range.
    """
    hints = get_type_hints(cls)
    known = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
    converted: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{owner}: unknown key {name!r}; known: {', '.join(known)}.")
        hint = hints[name]
        choices = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        allowed = [get_origin(choice) or choice for choice in choices]
        if float in allowed and type(value) is int:
            value = float(value)
        if type(value) not in allowed:
            rule = " or ".join(KINDS[kind] for kind in allowed if kind is not NoneType)
            raise ValueError(f"{owner}: {name} must be of type {rule}, got {value!r}.")
        converted[name] = value
    for name, item in known.items():
        if name not in converted and item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{owner}: missing key {name!r}.")
    try:
        return cls(**converted)
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from error

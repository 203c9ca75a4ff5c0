"""A decision in words: what spoke for a placement and what against it.

Inputs of the policy that say the same to a person stand together as one subject.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from agents.explain_attribution import ESTIMATE
from agents.explain_decision import Decision
from agents.explain_situations import FEATURES, Feature, Unit, controller_loads
from agents.explain_tree import Leaf
from experiments.amounts import seconds_text

F64 = npt.NDArray[np.float64]
Place = Literal["task", "data", "pair"]
SMALL_CHANGE = 5e-4  # of a cost: not worth a number


@dataclass(frozen=True)
class Subject:
    """Some inputs of a policy, to be spoken of as one.

    Attributes:
        words: what it is.
        inputs: names in `Attribution.shares`.
        place: where it has a value: at each task node, each data node, or each pair of them.
        value: that of each of the two placements, as text.
    """

    words: str
    inputs: tuple[str, ...]
    place: Place
    value: Callable[[Decision], tuple[str, str]]


def _seconds(*parts: str) -> Callable[[Decision], tuple[str, str]]:
    """The sum of some cost terms."""

    def value(decision: Decision) -> tuple[str, str]:
        first, second = sum(decision.terms.parts[part] for part in parts).tolist()  # type: ignore[union-attr]
        return time_text(first), time_text(second)

    return value


def _group(name: str, place: Place, shown: Callable[[float, Decision], str]) -> Callable[[Decision], tuple[str, str]]:
    """A group of the observation."""

    def value(decision: Decision) -> tuple[str, str]:
        (n, d), (other_n, other_d) = decision.nodes
        where: tuple[Any, Any] = {
            "task": (n, other_n),
            "data": (d, other_d),
            "pair": ((n, d), (other_n, other_d)),
        }[place]
        values = _with_loads(decision.groups)[name]
        first, second = (shown(float(values[each]), decision) for each in where)
        return first, second

    return value


def _with_loads(groups: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The groups with the loads that columns of the communication sum up to."""
    loads = controller_loads({"communication": groups["communication"][None]})[0]
    return dict(groups) | {"load": loads}


def _percent(value: float, decision: Decision) -> str:
    return f"{value:.0%}"


def _times(value: float, decision: Decision) -> str:
    return f"{value:.2g}x"


def _in_reference(value: float, decision: Decision) -> str:
    return time_text(value * decision.reference_s)


def time_text(seconds: float) -> str:
    """A time in three digits."""
    return "0" if seconds <= 0.0 else seconds_text(seconds, 3)


SUBJECTS = (
    Subject("wait for a core", (f"{ESTIMATE}core",), "task", _seconds("core")),
    Subject("work queued per core", ("queue",), "task", _group("queue", "task", _in_reference)),
    Subject(
        "arithmetic and overhead",
        (f"{ESTIMATE}compute", f"{ESTIMATE}software", f"{ESTIMATE}inputs_ready"),
        "task",
        _seconds("compute", "software"),
    ),
    Subject("access to its object, if idle", (f"{ESTIMATE}memory",), "pair", _seconds("memory")),
    Subject(
        "what streams in flight add",
        (f"{ESTIMATE}memory_load", f"{ESTIMATE}transfer_load", f"{ESTIMATE}coherence_load"),
        "pair",
        _seconds("memory_load", "transfer_load", "coherence_load"),
    ),
    Subject("reading its inputs, if idle", (f"{ESTIMATE}transfer", "inputs"), "task", _seconds("transfer")),
    Subject("asking other caches, if idle", (f"{ESTIMATE}coherence",), "task", _seconds("coherence")),
    Subject(
        "moving the object",
        (f"{ESTIMATE}migration", f"{ESTIMATE}migration_load", "migration"),
        "data",
        _seconds("migration", "migration_load"),
    ),
    Subject("load of the memory controller", ("communication",), "data", _group("load", "data", _percent)),
    Subject("delay it brings to others", ("congestion",), "pair", _group("congestion", "pair", _in_reference)),
    Subject("memory in use", ("memory",), "data", _group("memory", "data", _percent)),
    Subject("share of the object there", ("data",), "data", _group("data", "data", _percent)),
    Subject("recent use of the object", ("access", "last"), "task", _group("access", "task", _percent)),
    Subject("distance to its data", ("latency", "bandwidth"), "pair", _group("latency", "pair", _times)),
)


@dataclass(frozen=True)
class Moved:
    """By how much a subject moved the difference of logits.

    Attributes:
        subject: which.
        share: in all.
        elsewhere: of it, what is due to nodes, or pairs of them, that neither placement is on.
        values: that of each placement, as text.
        where: each placement's node, or nodes.
    """

    subject: Subject
    share: float
    elsewhere: float
    values: tuple[str, str]
    where: tuple[str, str]


def moved_by(decision: Decision) -> list[Moved]:
    """What moved the difference of logits, most first."""
    found = [_moved(subject, decision) for subject in SUBJECTS]
    return sorted(found, key=lambda each: -abs(each.share))


def _moved(subject: Subject, decision: Decision) -> Moved:
    n = decision.num_nodes
    (first_n, first_d), (second_n, second_d) = decision.nodes
    near = np.zeros((n, n), bool)
    of_group: npt.NDArray[np.bool_]
    if subject.place == "task":
        near[[first_n, second_n], :] = True
        of_group, where = near[:, 0], (f"node {first_n}", f"node {second_n}")
    elif subject.place == "data":
        near[:, [first_d, second_d]] = True
        of_group, where = near[0], (f"node {first_d}", f"node {second_d}")
    else:
        near[[first_n, second_n], [first_d, second_d]] = True
        of_group, where = np.asarray(near.any(axis=1)), (pair_text(first_n, first_d), pair_text(second_n, second_d))
    share = elsewhere = 0.0
    for name in subject.inputs:
        values = decision.attribution.shares[name]
        share += float(values.sum())
        elsewhere += float(values[~(near if values.ndim == 2 else of_group)].sum())
    return Moved(subject, share, elsewhere, subject.value(decision), where)


def pair_text(task_node: int, data_node: int) -> str:
    """A placement in a few characters."""
    return f"node {task_node}" if task_node == data_node else f"nodes {task_node} and {data_node}"


def placement_text(task_node: int, data_node: int) -> str:
    """A placement in words."""
    if task_node == data_node:
        return f"task and data on node {task_node}"
    return f"the task on node {task_node}, its data on node {data_node}"


def compared(cost: float, other: float) -> str:
    """How a cost stands to another, in words.

    >>> compared(1.12, 1.0), compared(0.9, 1.0), compared(2.0, 2.0)
    ('12.0% more than', '10.0% less than', 'as much as')
    """
    if cost == other:
        return "as much as"
    word = "more" if cost > other else "less"
    if other <= 0.0:
        return f"{word} than"
    change = abs(cost / other - 1.0)
    return f"{change:.1%} {word} than" if change >= SMALL_CHANGE else f"hardly {word} than"


def condition_texts(leaf: Leaf, reference_s: float) -> list[str]:
    """The conditions of a situation in words, in the order of features."""
    return [
        _condition(FEATURES[index], leaf.above.get(index), leaf.at_most.get(index), reference_s)
        for index in sorted({*leaf.above, *leaf.at_most})
    ]


def _condition(feature: Feature, above: float | None, at_most: float | None, reference_s: float) -> str:
    """What a feature is above, or does not exceed, or both, in words."""
    if feature.unit is Unit.YES_OR_NO:
        return feature.words if above is not None else feature.otherwise
    limits = [
        f"{sign} {_limit(feature.unit, limit, reference_s)}"
        for sign, limit in (("above", above), ("at most", at_most))
        if limit is not None
    ]
    return f"{feature.words} is {' and '.join(limits)}"


def _limit(unit: Unit, value: float, reference_s: float) -> str:
    if unit is Unit.SHARE:
        return f"{100.0 * value:.3g}%"
    return f"{value:.3g}x" if unit is Unit.RATIO else time_text(value * reference_s)

"""Perf's counts added up by what they mean."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from difflib import get_close_matches

from numa_rl.diagnosis.events import Meaning, Quantity, canonical, has_modifiers, known_events, meaning_of
from numa_rl.diagnosis.perf_stat import UNIT_SCALES, Count, PerfStat
from numa_rl.wording import quoted

ByGroup = Mapping[str, float]
MOST_NAMES = 5  # that are shown beside one that is unknown


class Totals:
    """Counts by what they mean, in SI units.

    Several events may count the same thing: the largest stands. Different parts of a quantity add up: reads and
    writes, scalars and vectors.
    """

    def __init__(self, perf: PerfStat, *, ignore_unknown: bool) -> None:
        """Sort the counts; raises ValueError for an event that is unknown, unless these are ignored."""
        self.ignored = [
            event for event in (*(count.event for count in perf.counts), *perf.not_counted) if meaning_of(event) is None
        ]
        if self.ignored and not ignore_unknown:
            raise ValueError(_unknown(self.ignored[0], perf))
        whole = {canonical(count.event) for count in perf.counts if not has_modifiers(count.event)}
        by_event: dict[tuple[Meaning, str], dict[str, float]] = defaultdict(dict)
        for count in perf.counts:
            meaning, name = meaning_of(count.event), canonical(count.event)
            if meaning is None or (has_modifiers(count.event) and name in whole):
                continue
            _add(by_event[meaning, name], {count.group: _in_si(count, meaning)})
        by_part: dict[tuple[Quantity, str, str], dict[str, float]] = {}
        for (meaning, _), groups in by_event.items():
            part = (meaning.quantity, meaning.family, meaning.part)
            if part not in by_part or math.fsum(groups.values()) > math.fsum(by_part[part].values()):
                by_part[part] = groups
        self._groups: dict[tuple[Quantity, str], dict[str, float]] = defaultdict(dict)
        for (quantity, family, _), groups in by_part.items():
            _add(self._groups[quantity, family], groups)

    def groups(self, quantity: Quantity, family: str = "") -> ByGroup:
        """Each group's count; empty where it was not counted."""
        return self._groups.get((quantity, family), {})

    def total(self, quantity: Quantity, family: str = "") -> float | None:
        """The sum over groups; None where it was not counted."""
        groups = self.groups(quantity, family)
        return math.fsum(groups.values()) if groups else None

    def families(self) -> list[str]:
        """Families that were counted."""
        return list(dict.fromkeys(family for _, family in self._groups if family))


def _add(groups: dict[str, float], more: ByGroup) -> None:
    """Add counts group by group."""
    for group, value in more.items():
        groups[group] = groups.get(group, 0.0) + value


def _unknown(event: str, perf: PerfStat) -> str:
    """What to say of an event that is unknown: where it stands, and the names most like it."""
    known = known_events()
    near = get_close_matches(canonical(event), known, MOST_NAMES)
    like = f", such as {', '.join(near)}" if near else ""
    where = f"line {perf.line_of[event]}: " if event in perf.line_of else ""
    return (
        f"{where}counter {quoted(event)} is unknown; it must be one of the {len(known)} known{like} (or pass over it "
        "with --ignore-unknown)."
    )


def _in_si(count: Count, meaning: Meaning) -> float:
    """A count in bytes, seconds, flop or just as it is."""
    if not count.unit:
        return count.value * meaning.per_count
    return count.value * UNIT_SCALES[count.unit] * meaning.per_unit

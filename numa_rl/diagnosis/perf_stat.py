"""Reading what `perf stat -x,` prints.

The fields of a line are: [time stamp,] [cpu, core, socket or thread, [number of processors,]] count, unit, event,
[variance,] run time of the counter, percentage of the time it ran, [metric, unit of the metric] [1]. Nothing is quoted,
so an event's own commas are told from separators by what surrounds them.

References:
    [1] perf-stat(1), CSV FORMAT.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from numa_rl.diagnosis.events import is_of_units
from numa_rl.wording import quoted

SEPARATORS = (";", "\t", "|", ",")  # in the order tried: a comma may be part of an event's name
MISSING = ("<not counted>", "<not supported>")
SUMMARY = "summary"  # opens the lines that --summary adds to those of intervals
MOST_COUNT = 2.0**64  # of a counter

NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
DECIMAL_COMMA = re.compile(r"-?\d+,\d+")
TIME_STAMP = re.compile(r"\d+\.\d{9}")
SHARED = re.compile(r"[SND]\d+(-[A-Z0-9]+)*")  # S0, N1, S0-D0, S0-D0-C1: these also say how many processors they add up
SINGLE = re.compile(r"CPU\d+|.+-\d+")  # CPU3, and with --per-thread name-1234
UNIT = re.compile(r"[A-Za-z%][\w%/ .]*|")
RUN_TIME = re.compile(r"\d+")
PERCENTAGE = re.compile(r"\d{1,3}\.\d\d%?")
UNIT_SCALES = {
    "": 1.0, "B": 1.0, "Bytes": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "KB": 1e3, "MB": 1e6, "GB": 1e9,
    "ns": 1e-9, "usec": 1e-6, "msec": 1e-3, "sec": 1.0, "Joules": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class Count:
    """One event of one group, summed over the intervals.

    Attributes:
        event: its name, as perf prints it.
        group: the socket, node, core, processor or thread it was counted on, as perf prints it; empty for all.
        value: the count; in `unit` where there is one.
        unit: as perf prints it; empty for plain counts.
        running_share: least share of the time that the counter ran; below 1 perf has scaled the count up.
    """

    event: str
    group: str
    value: float
    unit: str
    running_share: float


@dataclass(frozen=True)
class PerfStat:
    """All counts of a run.

    Attributes:
        counts: one for each event and group.
        elapsed_s: the last time stamp, seconds; None without `-I`.
        not_counted: events that the machine did not count.
        repeated: events listed more than once for one group and time, as where two of perf's groups hold them.
        line_of: number of the first line that names an event.
    """

    counts: tuple[Count, ...]
    elapsed_s: float | None
    not_counted: tuple[str, ...]
    repeated: tuple[str, ...] = ()
    line_of: Mapping[str, int] = field(default_factory=dict)


@dataclass
class _Sum:
    """One event of one group in the making: the intervals before, and what the present one lists.

    A core counts an event once: listed again, it is the same count, and the mean stands. Of counters outside the cores
    perf may list every unit under one name: these add up.
    """

    unit: str
    before: float = 0.0
    time_s: float | None = None
    listed: float = 0.0
    times_listed: int = 0
    most_listed: int = 0
    running_share: float = 1.0

    def add(self, line: Line, value: float) -> None:
        """Take in a line."""
        if self.unit != line.unit:
            raise ValueError(f"unit of {line.event} must stay {self.unit!r}, got {line.unit!r}.")
        if line.time_s != self.time_s:
            self.before, self.time_s = self.value(line.event), line.time_s
            self.listed, self.times_listed = 0.0, 0
        self.listed += value
        self.times_listed += 1
        self.most_listed = max(self.most_listed, self.times_listed)
        self.running_share = min(self.running_share, line.running_share)

    def value(self, event: str) -> float:
        """The count so far."""
        return self.before + self.listed / (1 if is_of_units(event) else max(self.times_listed, 1))


@dataclass(frozen=True)
class Line:
    """One line, taken apart; `value` is None where perf did not count."""

    time_s: float | None
    group: str
    value: float | None
    unit: str
    event: str
    running_share: float


def separator_of(line: str) -> str | None:
    """The separator of a line of counts, or None where it is no such line."""
    for separator in SEPARATORS:
        fields = line.split(separator)
        if len(fields) >= 3 and any(field.strip() in MISSING or _is_count(field.strip()) for field in fields[:4]):
            return separator
    return None


def _is_count(text: str) -> bool:
    return bool(NUMBER.fullmatch(text) or DECIMAL_COMMA.fullmatch(text))


def is_comment(line: str) -> bool:
    """Whether a line holds nothing: blank, or `# started on ...`."""
    return not line.strip() or line.lstrip().startswith("#")


def read_perf_stat(text: str, separator: str | None = None) -> PerfStat:
    """The counts of what `perf stat -x` printed.

    Args:
        text: one or more lines of counts, with comments and blank lines.
        separator: as given to `-x`, one character; found by itself where None.

    Raises:
        ValueError: no line of counts, or a line that is none, naming its number and the rule: the number of fields,
            a decimal comma, a count out of range, or a unit that is unknown or changes.
    """
    if separator is not None and len(separator) != 1:
        raise ValueError(f"separator must be one character, got {separator!r}.")
    sums: dict[tuple[str, str], _Sum] = {}
    not_counted: dict[str, None] = {}
    line_of: dict[str, int] = {}
    elapsed_s: float | None = None
    for number, raw in enumerate(text.splitlines(), start=1):
        if is_comment(raw):
            continue
        separator = separator or separator_of(raw)
        if separator is None:
            raise ValueError(f"line {number}: must be counts as `perf stat -x,` prints them, got {quoted(raw)}.")
        try:
            line = _line(raw, separator)
            if line is None:
                continue
            line_of.setdefault(line.event, number)
            if line.time_s is not None:
                elapsed_s = max(line.time_s, elapsed_s or 0.0)
            if line.value is None:
                not_counted[line.event] = None
            else:
                sums.setdefault((line.event, line.group), _Sum(line.unit)).add(line, line.value)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    if not sums and not not_counted:
        raise ValueError("must hold at least one line of counts, got none.")
    counts = tuple(
        Count(event, group, total.value(event), total.unit, total.running_share)
        for (event, group), total in sums.items()
    )
    counted = {event for event, _ in sums}
    repeated = dict.fromkeys(event for (event, _), total in sums.items() if total.most_listed > 1)
    missing = tuple(event for event in not_counted if event not in counted)
    return PerfStat(counts, elapsed_s, missing, tuple(repeated), line_of)


def _line(raw: str, separator: str) -> Line | None:
    """A line taken apart; None for one that carries only a metric, or sums up the intervals above it."""
    fields = [field.strip() for field in raw.split(separator)]
    time_s, group = None, ""
    if fields[0] == SUMMARY:
        return None
    if TIME_STAMP.fullmatch(fields[0]):
        time_s, fields = float(fields[0]), fields[1:]
    if fields and SHARED.fullmatch(fields[0]):
        group, fields = fields[0], fields[2:]
    elif len(fields) > 3 and SINGLE.fullmatch(fields[0]) and not _is_count(fields[0]):
        group, fields = fields[0], fields[1:]
    if not any(fields[:3]):
        return None
    if len(fields) < 3:
        raise ValueError(f"must have at least a count, a unit and an event, got {quoted(raw)}.")
    value, unit, rest = _value(fields[0]), fields[1], fields[2:]
    if NUMBER.fullmatch(unit) and "." in fields[0]:
        raise ValueError(
            "must open with a count, or with a time stamp of nine decimals or a place before it, got "
            f"{quoted(fields[0])} and then {quoted(unit)}."
        )
    if not UNIT.fullmatch(unit):
        raise ValueError(f"must not have decimal commas (run perf with LC_ALL=C), got {quoted(raw)}.")
    if unit not in UNIT_SCALES:
        raise ValueError(f"unit must be one of {', '.join(filter(None, UNIT_SCALES))}, or none, got {unit!r}.")
    event, running_share = _event(rest, separator, raw)
    return Line(time_s, group, value, unit, event, running_share)


def _value(text: str) -> float | None:
    """The count in a field; None where perf did not count."""
    if text in MISSING:
        return None
    if DECIMAL_COMMA.fullmatch(text):
        raise ValueError(f"count must have a decimal point (run perf with LC_ALL=C), got {text!r}.")
    if not NUMBER.fullmatch(text):
        raise ValueError(f"count must be a number, {' or '.join(MISSING)}, got {quoted(text)}.")
    value = float(text)
    if not 0.0 <= value <= MOST_COUNT:
        raise ValueError(f"count must be in 0..2**64, got {quoted(text)}.")
    return value


def _event(fields: list[str], separator: str, raw: str) -> tuple[str, float]:
    """The event's name and the share of the time it ran, from what follows the unit."""
    end, share = len(fields), 1.0
    for index in range(1, len(fields) - 1):
        if RUN_TIME.fullmatch(fields[index]) and PERCENTAGE.fullmatch(fields[index + 1]):
            end, share = index, float(fields[index + 1]) / 100.0
            break
    else:
        if len(fields) > 1:  # only very old versions stop at the event
            raise ValueError(
                "must have the counter's run time, a whole number, and its percentage, as 100.00, after the event "
                f"(run perf with LC_ALL=C), got {quoted(raw)}."
            )
    if end > 1 and fields[end - 1].endswith("%") and PERCENTAGE.fullmatch(fields[end - 1]):
        end -= 1  # variance, with -r
    event = separator.join(fields[:end])
    if not event or not event.isprintable():
        raise ValueError(f"event must have a name, got {quoted(raw)}.")
    return event, share

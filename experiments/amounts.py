"""Amounts as a person writes and reads them: 175B parameters, 512GiB of memory, a step of 5.73 days."""

from __future__ import annotations

import math
import re

from numa_rl.wording import quoted

AMOUNT = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?\s*([a-z]*)", re.IGNORECASE | re.ASCII)
COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "p": 1e15, "q": 1e15}
LETTERS = ("k", "m", "g", "t", "p")
BYTES = {
    "": 1.0,
    "b": 1.0,
    **{f"{letter}{b}": 1e3**power for power, letter in enumerate(LETTERS, 1) for b in ("", "b")},
    **{f"{letter}i{b}": 1024.0**power for power, letter in enumerate(LETTERS, 1) for b in ("", "b")},
}
UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
TIMES = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))


def parse_count(text: str, option: str) -> float:
    """A number of things, with k, M, B (or G), T or P after it, in any case.

    Raises:
        ValueError: it is none, or not above 0; the message opens with `option`.

    >>> parse_count("200T", "--params"), parse_count("1.5e9", "--params")
    (200000000000000.0, 1500000000.0)
    """
    return _parse(text, option, COUNTS, "a number > 0 such as 7e9, 175B or 200T")


def parse_bytes(text: str, option: str) -> float:
    """A number of bytes, with kB, MB, GB, TB, PB or KiB, MiB, GiB, TiB, PiB after it, in any case.

    Raises:
        ValueError: it is none, or not above 0; the message opens with `option`.

    >>> parse_bytes("1TB", "--memory"), parse_bytes("512 GiB", "--memory")
    (1000000000000.0, 549755813888.0)
    """
    return _parse(text, option, BYTES, "a number of bytes > 0 such as 1e12, 1TB or 512GiB")


def _parse(text: str, option: str, units: dict[str, float], rule: str) -> float:
    match = AMOUNT.fullmatch(text.strip())
    if match:
        number, exponent, unit = match.groups()
        value = float(number + (exponent or "")) * units.get(unit.lower(), math.nan)
        if 0.0 < value < math.inf:
            return value
    raise ValueError(f"{option} must be {rule}, got {quoted(text)}.")


def count_text(value: float) -> str:
    """A number of parameters.

    >>> count_text(200e12), count_text(1.749e11)
    ('200T', '174.9B')
    """
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{_number(value / size)}{letter}"
    return _number(value)


def bytes_text(value: float, digits: int = 4) -> str:
    """Bytes in the unit that leaves the number shortest, powers of ten.

    >>> bytes_text(2550e12), bytes_text(24.41e9), bytes_text(0)
    ('2550 TB', '24.41 GB', '0 B')
    """
    return _in_units(value, UNITS, digits)


def seconds_text(value: float, digits: int = 4) -> str:
    """A time, in days where it is long.

    >>> seconds_text(0.25), seconds_text(495000, 3)
    ('250 ms', '5.73 d')
    """
    return _in_units(value, TIMES, digits)


def _in_units(value: float, units: tuple[tuple[float, str], ...], digits: int) -> str:
    """The value in the first of the units, largest first, that it reaches, or else the last."""
    size, unit = next((each for each in units if value >= each[0]), units[-1])
    return f"{_number(value / size, digits)} {unit}"


def _number(value: float, digits: int = 4) -> str:
    """So many digits, or more where they are whole.

    >>> _number(76950.3), _number(24.414), _number(0.0287)
    ('76950', '24.41', '0.0287')
    """
    return f"{value:.0f}" if value >= 1000 else f"{value:.{digits}g}"

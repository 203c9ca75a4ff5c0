"""Lines of numbers, byte by byte, compiled by numba."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from numa_rl.compilation import compiled

# What is wrong with a line.
NOTHING, NO_NUMBER, TOO_FEW, TOO_MANY, NEGATIVE, TOO_LONG = range(6)

TAB, NEWLINE, RETURN, SPACE, MINUS, POINT, ZERO, NINE, SEMICOLON = (ord(character) for character in "\t\n\r -.09;")
MOST_DIGITS = 15  # so many are exact in a float

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float64]


@compiled
def _end_of_field(text: Bytes, start: int) -> int:
    """Where the field that starts here ends."""
    end = start
    while end < len(text) and text[end] != SPACE and text[end] != TAB and text[end] != NEWLINE and text[end] != RETURN:
        end += 1
    return end


@compiled
def _end_of_line(text: Bytes, start: int) -> int:
    """Where the line ends."""
    end = start
    while end < len(text) and text[end] != NEWLINE:
        end += 1
    return end


@compiled
def _skip_blanks(text: Bytes, start: int) -> int:
    """Where the next field, or the end of the line, is."""
    end = start
    while end < len(text) and (text[end] == SPACE or text[end] == TAB or text[end] == RETURN):
        end += 1
    return end


@compiled
def _parse_number(text: Bytes, start: int, end: int) -> tuple[float, int]:
    """The decimal number in text[start:end], and what is wrong with it."""
    place = start
    negative = text[place] == MINUS
    if negative:
        place += 1
    whole = np.int64(0)
    digits = 0
    decimals = 0
    in_decimals = False
    while place < end:
        byte = text[place]
        if byte == POINT and not in_decimals:
            in_decimals = True
        elif ZERO <= byte <= NINE:
            whole = whole * np.int64(10) + np.int64(byte - ZERO)
            digits += 1 if whole > 0 or digits > 0 else 0
            decimals += 1 if in_decimals else 0
            if digits > MOST_DIGITS or decimals > MOST_DIGITS:
                return 0.0, TOO_LONG
        else:
            return 0.0, NO_NUMBER
        place += 1
    if end - start - negative - in_decimals == 0:
        return 0.0, NO_NUMBER
    value = whole / 10.0**decimals
    return (-value if negative else value), NOTHING


@compiled
def parse_lines(text: Bytes, values: Numbers) -> tuple[int, int, int, int, int]:
    """Parse lines of numbers into the rows of `values`; comments (;) and empty lines are passed over.

    A number is at least 0, or -1 for one that is not known.

    Args:
        text: whole lines.
        values: as many rows as there may be lines of numbers, one column for each number of a line.

    Returns:
        (rows, lines before the bad one or in all, what is wrong, which field, where the bad line starts).
    """
    rows = 0
    lines = 0
    place = 0
    while place < len(text):
        start = place
        place = _skip_blanks(text, place)
        if place < len(text) and text[place] != NEWLINE and text[place] != SEMICOLON:
            for field in range(values.shape[1]):
                if place >= len(text) or text[place] == NEWLINE:
                    return rows, lines, TOO_FEW, field, start
                end = _end_of_field(text, place)
                value, wrong = _parse_number(text, place, end)
                if wrong == NOTHING and value < 0.0 and value != -1.0:
                    wrong = NEGATIVE
                if wrong != NOTHING:
                    return rows, lines, wrong, field, start
                values[rows, field] = value
                place = _skip_blanks(text, end)
            if place < len(text) and text[place] != NEWLINE:
                return rows, lines, TOO_MANY, values.shape[1], start
            rows += 1
        place = _end_of_line(text, place) + 1
        lines += 1
    return rows, lines, NOTHING, 0, 0

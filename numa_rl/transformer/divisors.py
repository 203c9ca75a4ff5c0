"""Numbers of parts into which whole things can be cut evenly, and which are nearest to one that was asked for."""

from __future__ import annotations

from collections.abc import Sequence


def divisors(number: int) -> list[int]:
    """All of them, ascending.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    low = [each for each in range(1, int(number**0.5) + 1) if number % each == 0]
    return low + [number // each for each in reversed(low) if each * each != number]


def nearest(choices: Sequence[int], value: int) -> str:
    """The largest of the choices below a value and the smallest above, as words; `choices` ascend.

    >>> nearest(divisors(12), 5)
    '4 or 6'
    """
    below, above = [each for each in choices if each < value][-1:], [each for each in choices if each > value][:1]
    return " or ".join(map(str, [*below, *above]))

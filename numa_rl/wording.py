"""How values of the input, and numbers of things, stand in a message."""

from __future__ import annotations

MOST_CHARACTERS = 80


def cut(text: str) -> str:
    """Text cut to fit a message."""
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 3]}..."


def quoted(text: str) -> str:
    """Text in quotes, cut to fit a message."""
    return repr(cut(text))


def counted(number: int, thing: str) -> str:
    """A number of things.

    >>> counted(1, "node"), counted(8, "node")
    ('1 node', '8 nodes')
    """
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"

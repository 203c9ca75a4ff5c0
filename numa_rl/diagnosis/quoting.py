"""How a value of the input stands in a message."""

from __future__ import annotations

MOST_CHARACTERS = 80


def quoted(text: str) -> str:
    """Text in quotes, cut to fit a message."""
    return repr(text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 3]}...")

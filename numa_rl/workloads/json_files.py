"""JSON files of traces: read at once, with a limit, and shown in messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from numa_rl.wording import cut


def read_json(path: Path, what: str, most_bytes: int) -> Any:
    """The content of a JSON file.

    Args:
        path: of the file.
        what: what it holds, the opening of every message.
        most_bytes: size up to which it is read.

    Raises:
        ValueError: it cannot be read, is too large, not UTF-8, not JSON, or has a number that is not finite.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise ValueError(f"{what} must be a readable file: {error.strerror}.") from error
    if len(content) > most_bytes:
        raise ValueError(f"{what} must have at most {most_bytes} bytes, got more.")
    try:
        return json.loads(content.decode("utf-8-sig"), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} must be UTF-8 text: {error.reason} at byte {error.start}.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} must be JSON: {error}.") from error
    except RecursionError as error:
        raise ValueError(f"{what} must not be nested so deeply.") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"a number must be finite, got {constant}.")


def shown(value: Any) -> str:
    """A value of such a file, as it stands in a message."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a JSON object"
    if isinstance(value, str):
        return repr(cut(value))
    return cut(repr(value[:10] if isinstance(value, list) else value))

"""Lines of a text file, one at a time and none too long, whatever the file turns out to be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from numa_rl.wording import quoted

MOST_LINE_CHARACTERS = 2**20  # the longest lines in the traces we know have a thousandth of it


def text_lines(path: str | Path, thing: str) -> Iterator[tuple[str, str]]:
    """Each line that is not blank, without its end, and where it stands as messages name it ("file:7").

    Args:
        path: of a UTF-8 text file, with or without a byte order mark.
        thing: what the file holds, for messages.

    Raises:
        ValueError: there is no such file, it is not text, or it has a line of more than `MOST_LINE_CHARACTERS`.
    """
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            number = 0
            while line := file.readline(MOST_LINE_CHARACTERS + 1):
                number += 1
                where = f"{path}:{number}"
                if "\0" in line:
                    raise ValueError(f"{where}: {thing} must be text, got a NUL byte.")
                if len(line) > MOST_LINE_CHARACTERS:
                    raise ValueError(
                        f"{where}: a line must have at most {MOST_LINE_CHARACTERS} characters, got more: "
                        f"{quoted(line)}."
                    )
                if line.strip():
                    yield where, line.rstrip("\r\n")
    except OSError as error:
        raise ValueError(f"{path}: {thing} must be a readable file: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {thing} must be UTF-8 text: {error.reason} at byte {error.start}.") from error

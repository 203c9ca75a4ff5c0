"""Files that commands write: checked before anything takes time, written whole or not at all; and files by content."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def require_outputs(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None] | None = None) -> None:
    """Raise ValueError unless every file to be written can be, and is neither written twice nor read.

    Args:
        outputs: files to be written later, by option; None for those not asked for.
        inputs: files that are read, likewise.
    """
    taken = {path.resolve(): name for name, path in (inputs or {}).items() if path is not None}
    for option, path in outputs.items():
        if path is not None:
            require_writable(path, option)
            if path.resolve() in taken:
                raise ValueError(f"{option} must be another file than {taken[path.resolve()]}, got {str(path)!r}.")
            taken[path.resolve()] = option


def require_writable(path: Path, what: str) -> None:
    """Make the folder of a file to be written later, and raise ValueError if the file could not be written there."""
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "Is a directory")
        if path.exists() and not path.is_file():
            raise OSError(0, "Not a regular file")
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = _temporary(path)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{what} must be a file that can be written, got {str(path)!r}: {error.strerror}.") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all; numbers that JSON cannot say become null."""
    write_bytes(path, (json.dumps(_finite(content), indent=1) + "\n").encode())


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        ValueError: there is no such file, or it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file.") from error
    except OSError as error:
        raise ValueError(f"{path}: must be a readable file: {error.strerror}.") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path = path.resolve()  # what a link points to is replaced, not the link
    temporary = _temporary(path)
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _finite(content: Any) -> Any:
    """The same content with None for infinities and NaN."""
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content

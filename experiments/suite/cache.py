"""Results of finished work, each in a file named by the SHA-256 of everything that it depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.files import write_json

FORMAT = 1  # of the files; counted up when their meaning changes


@dataclass(frozen=True)
class Cache:
    """A folder of results.

    Results are JSON text with a digest of its own: a file that is cut, altered, or made for other inputs is as good
    as none.

    Attributes:
        folder: where the files are.
        damaged: files found so, to be told about.
    """

    folder: Path
    damaged: list[Path] = field(default_factory=list)

    def path(self, inputs: Mapping[str, Any]) -> Path:
        """Where the result for these inputs is kept."""
        key = _digest(_canonical(inputs))
        return self.folder / key[:2] / f"{key}.json"

    def read(self, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """The result for these inputs, or None if there is none to trust."""
        path = self.path(inputs)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            good = content["format"] == FORMAT and content["sha256"] == _digest(content["result"])
            if good and _canonical(content["inputs"]) == _canonical(inputs):
                result: dict[str, Any] = json.loads(content["result"])
                return result
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass
        self.damaged.append(path)
        return None

    def write(self, inputs: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Keep a result; infinities and NaN are kept as they are.

        Raises:
            OSError: the file cannot be written.
        """
        path, text = self.path(inputs), json.dumps(result)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": FORMAT, "inputs": inputs, "sha256": _digest(text), "result": text})


def _canonical(inputs: Mapping[str, Any]) -> str:
    return json.dumps(inputs, sort_keys=True, allow_nan=False)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

"""The command `numa-rl` as tests run it: how it ended, and what a refusal looks like. `conftest.py` runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments.cli import BAD_INPUT

Run = Callable[..., "Ended"]

# A scenario that takes a moment: small.toml.
SMALL_SCENARIO = """
description = "A stream too short to learn much from"
machine = "chapter-2-socket"

[workload]
family = "synthetic"
num_tasks = 12

[reward]
reference_s = 0.05

[simulation]
window_s = 0.2
"""


class Ended(NamedTuple):
    """How a command ended."""

    code: Any
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """What it wrote with `--json out.json`."""
        content: dict[str, Any] = json.loads(Path("out.json").read_text())
        return content


def refused(ended: Ended, *parts: str) -> None:
    """One line on standard error that says all that, exit code 2, nothing on standard output."""
    assert ended.code == BAD_INPUT == 2
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("numa-rl: ")
    assert "Traceback" not in ended.err
    assert ended.out == ""
    for part in parts:
        assert part in ended.err

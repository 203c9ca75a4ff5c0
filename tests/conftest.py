"""Fixtures that several files use."""

import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Ended, Run
from hypothesis import settings

from experiments.cli import main

# The same examples in every run, so that nothing fails by chance for somebody else; `make fuzz` tries others.
# A busy machine is no failure, so none has a deadline.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.register_profile("explore", derandomize=False, deadline=None, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture
def numa_rl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `numa-rl` in an empty folder, on a wide console."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: Any) -> Ended:
        monkeypatch.setattr(sys, "argv", ["numa-rl", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Event files take most of the time of a training run that is small."""
    monkeypatch.setattr("agents.ppo.dashboard.Dashboard.write", lambda self, step, values, totals: totals.clear())

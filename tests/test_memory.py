"""Freed memory is kept: the system clears no page twice."""

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from agents.ppo import memory
from agents.ppo.memory import keep_freed_memory

GLIBC = platform.libc_ver()[0] == "glibc"
FAULTS = """
import resource
from agents.ppo.memory import keep_freed_memory
{call}
def work():
    for _ in range(20):
        blocks = [b"x" * (16 << 20) for _ in range(4)]
        del blocks
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(call: str) -> int:
    """Pages asked of the system while blocks are allocated and freed, after as much before."""
    root = Path(memory.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(call=call)],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return int(done.stdout)


@pytest.mark.skipif(not GLIBC, reason="needs the GNU C library")
def test_pages_are_asked_for_once():
    assert page_faults("assert keep_freed_memory()") < page_faults("") / 4


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("nothing is to be loaded"))
    assert keep_freed_memory() is False


def test_a_c_library_without_it_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False


@pytest.mark.parametrize(("answers", "wanted"), [([1, 1], True), ([0, 1], False), ([1, 0], False)])
def test_it_says_whether_the_library_took_both_settings(monkeypatch, answers, wanted):
    left, asked = list(answers), []

    class Library:
        @staticmethod
        def mallopt(name, value):
            asked.append((name, value))
            return left.pop(0)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    assert keep_freed_memory() is wanted
    assert [name for name, _ in asked] == [-3, -1]

"""The documentation: what becomes of docstrings, and that no module with equations is left out."""

import importlib.util
import re
import sys
from enum import Enum
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PACKAGES = ("numa_rl/communication", "numa_rl/coherence", "numa_rl/transformer")
MODULES = (
    "numa_rl.topology",
    "numa_rl.machines.builders",
    "numa_rl.simulator.kernel",
    "numa_rl.simulator.streams",
    "numa_rl.simulator.in_flight",
    "numa_rl.simulator.lines",
    "envs.reward",
    "numa_rl.metrics",
    "numa_rl.diagnosis.tree",
    "numa_rl.diagnosis.gotchas",
    "numa_rl.roofline",
    "numa_rl.ceilings",
    "numa_rl.matmul",
    "numa_rl.grid",
)


def extension(name: str) -> ModuleType:
    """One of our extensions of Sphinx, which are no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "_ext" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


docstrings = extension("docstrings")


def rewritten(text: str) -> str:
    return "\n".join(docstrings.rewritten(text.splitlines()))


def processed(what: str, obj: object, text: str) -> list[str]:
    lines = text.splitlines()
    docstrings.process(None, what, "a.name", obj, None, lines)
    return lines


# Known answers.


def test_a_formula_becomes_a_literal_block():
    text = "The least is at\n\n    c* = min( a, X ),\n\nor at 1."
    assert rewritten(text) == "The least is at\n\n::\n\n    c* = min( a, X ),\n\nor at 1."


def test_a_formula_may_end_a_docstring_or_have_several_lines():
    assert rewritten("A tree.\n\n    yes: b\n      no: c") == "A tree.\n\n::\n\n    yes: b\n      no: c"


def test_an_indented_list_becomes_a_plain_one():
    text = "Three ways:\n\n    - `a`: one,\n      and more;\n    - `b`: two.\n\nThe end."
    assert rewritten(text) == "Three ways:\n\n- `a`: one,\n  and more;\n- `b`: two.\n\nThe end."


def test_each_source_becomes_an_item():
    text = "References:\n    [1] The chapter.\n    [2] A. Author,\n        a title.\n"
    assert rewritten(text) == "References:\n    - [1] The chapter.\n    - [2] A. Author, a title.\n"


def test_what_is_returned_is_text_even_with_a_colon():
    text = "Returns:\n    What each led to: buffers.\n\nRaises:\n    ValueError: never."
    assert rewritten(text) == ":returns:\n    What each led to: buffers.\n\nRaises:\n    ValueError: never."


def test_a_single_letter_is_no_list():
    assert rewritten("Args:\n    nodes: N.\n    p: all.") == "Args:\n    nodes: \\N.\n    p: all."


@pytest.mark.parametrize(
    "text",
    [
        "One line.",
        "Two\nlines.",
        "Args:\n    a: one\n        of many.\n    b: two.\n\nRaises:\n    ValueError: never.",
        "",
    ],
)
def test_all_else_stays_as_it_is(text):
    assert rewritten(text) == text


def test_a_module_says_its_name():
    assert processed("module", docstrings, "What it is.") == ["Module ``a.name``", "", "What it is."]


def test_an_enumeration_lists_its_members_unless_its_docstring_does():
    class Level(Enum):
        LOW = "low"

    assert processed("class", Level, "Levels.")[-1] == "- ``LOW``: low"
    assert processed("class", Level, "Levels.\n\nAttributes:\n    LOW: the least.")[-1] == "    LOW: the least."


def test_a_default_made_anew_is_written_as_python():
    assert docstrings.sign(None, "class", "a", object(), None, "(x: list = <factory>)", None)[0] == "(x: list = ...)"


# Nothing is left out.


def listed() -> set[str]:
    pages = (DOCS / "equations").glob("*.rst")
    return {name for page in pages for name in re.findall(r"automodule:: (\S+)", page.read_text(encoding="utf-8"))}


def test_every_module_with_equations_has_its_place():
    files = (file for package in PACKAGES for file in (DOCS.parent / package).glob("[!_]*.py"))
    modules = {".".join(file.relative_to(DOCS.parent).with_suffix("").parts) for file in files}
    assert len(modules) >= 10
    assert (modules | set(MODULES)) - listed() == set()


def test_every_section_of_the_chapter_has_its_page():
    titles = " ".join(page.read_text(encoding="utf-8").split("\n", 1)[0] for page in (DOCS / "equations").glob("*.rst"))
    for section in (
        "16.1.1",
        "16.1.2",
        "16.1.3",
        "(16.2)",
        "16.2.3",
        "16.3.1",
        "16.3.2",
        "16.3.3",
        "16.3.4",
        "16.4.1",
        "16.4.2",
        "16.4.3",
        "16.4.4",
        "xercise 6",
        "Exercises 1 to 5",
        "Gotchas",
    ):
        assert section in titles

"""Docstrings are written to be read in the source; here they become what Sphinx needs.

- Formulas, which stand indented after a blank line, become literal blocks: no mark-up is looked for in them.
- Lists that stand indented become plain lists.
- Sources under "References:" become a list, a source each.
- What is under "Returns:" is text, whatever stands before a colon there: types are in the signature.
- An enumeration without "Attributes:" lists its members.
- An argument that is described by one letter, such as "num_nodes: N.", is no list with an item N.
- The docstring of a module begins with the module's name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.inspect import TypeAliasForwardRef

INDENT = 4
BEFORE_NAPOLEON = 400  # its own priority is 500
ITEM = re.compile(r"([-*]|\d+\.) ")
SOURCE = re.compile(r"\[\d+\] ")
SECTION = re.compile(r"[A-Z]\w+:$")
LETTER = re.compile(r"(^ +\w+: )(\w\.)$")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to autodoc."""
    # Sphinx writes the representation of an alias that stands within another type, as in `FloatArray | None`.
    TypeAliasForwardRef.__repr__ = lambda alias: alias.name  # type: ignore[method-assign]
    app.connect("autodoc-process-docstring", process, priority=BEFORE_NAPOLEON)
    app.connect("autodoc-process-signature", sign)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Rewrite a docstring in place."""
    lines[:] = rewritten(lines)
    if _is_enum(obj) and "Attributes:" not in lines:
        lines += ["", *(f"- ``{member.name}``: {member.value}" for member in obj)]
    if what == "module":
        lines[:0] = [f"Module ``{name}``", ""]
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # or napoleon takes what stands before a colon in the first line for a type


def sign(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Write a default that is made anew for each object as `...`: what Python prints for it is no Python.

    An enumeration is not called: it has no signature.
    """
    return "" if _is_enum(obj) else signature and signature.replace("<factory>", "..."), returns


def skip(app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out a named tuple's fields: they are in its "Attributes:", and have no docstring of their own."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def _is_enum(obj: Any) -> bool:
    return isinstance(obj, type) and issubclass(obj, Enum)


def rewritten(lines: Sequence[str]) -> list[str]:
    """The lines of a docstring as Sphinx needs them."""
    done: list[str] = []
    block: list[str] = []  # of indented lines
    in_section = False
    for line in lines:
        if line.startswith(" " * INDENT) or (block and not line):
            block.append(line)
            continue
        if block:
            done += _indented(block, done, in_section)
            block = []
        if line:
            in_section = bool(SECTION.match(line))
        done.append(line)
    return [*done, *_indented(block, done, in_section)] if block else done


def _indented(block: list[str], before: list[str], in_section: bool) -> list[str]:
    """What an indented block becomes, given all that stands before it."""
    if in_section:
        if before[-1] == "References:":
            return _sources(block)
        if before[-1] == "Returns:":
            before[-1] = ":returns:"
        return [LETTER.sub(r"\1\\\2", line) for line in block]
    if not before or before[-1]:
        return block  # goes on from the line before
    dedented = [line[INDENT:] for line in block]
    return dedented if ITEM.match(dedented[0]) else ["::", "", *block]


def _sources(block: list[str]) -> list[str]:
    """A list of sources, an item each: lines that begin with a number in brackets, and those that go on from them."""
    items: list[str] = []
    for line in filter(None, map(str.strip, block)):
        if SOURCE.match(line) or not items:
            items.append(f"{' ' * INDENT}- {line}")
        else:
            items[-1] += f" {line}"
    return [*items, ""]

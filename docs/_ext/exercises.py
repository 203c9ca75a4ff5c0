"""The directive `exercise`: what `numa-rl exercises` prints of an exercise, computed while the page is built."""

from __future__ import annotations

import io
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from rich.console import Console
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from experiments.chapter import EXERCISES
from experiments.exercises import print_exercise

WIDTH = 80  # columns


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("exercise", ExerciseDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class ExerciseDirective(SphinxDirective):
    """`.. exercise:: 2`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Solve and print it."""
        number = directives.positive_int(self.arguments[0])
        found = [exercise for solve in EXERCISES if (exercise := solve()).number == number]
        if not found:
            raise self.error(f"there is no exercise {number}")
        printed = io.StringIO()
        print_exercise(found[0], Console(file=printed, width=WIDTH, color_system=None))
        _, text = printed.getvalue().rstrip().split("\n", 1)  # without the title
        text = "\n".join(line.rstrip() for line in text.splitlines())
        return [nodes.literal_block(text, text, language="none")]

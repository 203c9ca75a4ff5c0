"""Files of a Linux system, wherever in a tree they are: their texts, lists and numbered folders.

References:
    [1] Linux kernel documentation, ABI: sysfs-devices-node and sysfs-devices-system-cpu.
"""

from __future__ import annotations

import posixpath
import re

from numa_rl.machines.processors import from_list
from numa_rl.machines.tree import Tree
from numa_rl.wording import quoted

NODES, CPUS = "devices/system/node", "devices/system/cpu"
MOST_TOPS = 100  # entries of the top folder that are looked into for a sys


class SystemFiles:
    """The files of one system; a path is that in /sys unless said otherwise."""

    def __init__(self, tree: Tree) -> None:
        """Find the system in a tree.

        Raises:
            ValueError: there are no nodes in any place they could be.
        """
        self._tree = tree
        self._root, self._sys = _where(tree)

    def outside(self, path: str) -> str | None:
        """A text file by its path from the system's root; None without one."""
        data = self._tree.data(posixpath.join(self._root, path))
        return None if data is None else data.decode("utf-8", "replace")

    def data(self, path: str) -> bytes | None:
        """What a file holds; None without one."""
        return self._tree.data(posixpath.join(self._sys, path))

    def text(self, path: str) -> str | None:
        """A text file without blanks around it; None without one."""
        data = self.data(path)
        return None if data is None else data.decode("utf-8", "replace").strip("\0 \t\n")

    def list(self, path: str) -> int | None:
        """The set in a file of numbers and ranges; None without the file."""
        text = self.text(path)
        return None if text is None else from_list(text, path)

    def numbered(self, folder: str, word: str) -> tuple[int, ...]:
        """Numbers of the entries of a folder that are named by a word and a number, ascending."""
        names = self._tree.names(posixpath.join(self._sys, folder))
        return tuple(sorted(int(match[1]) for name in names if (match := re.fullmatch(rf"{word}(\d{{1,6}})", name))))


def _where(tree: Tree) -> tuple[str, str]:
    """The paths of the system's root and of its /sys in a tree.

    Raises:
        ValueError: there are no nodes in any place they could be.
    """
    if tree.names(NODES):
        return "..", "."
    inside = tree.names(".")
    tops = [".", "fsroot", *inside[:MOST_TOPS], *(f"{top}/fsroot" for top in inside[:MOST_TOPS])]
    for top in tops:
        if tree.names(f"{top}/sys/{NODES}"):
            return top, f"{top}/sys"
    listed = quoted(", ".join(inside) or "nothing")
    raise ValueError(f"there must be a folder {NODES}, in sys or at the top, got {listed}.")

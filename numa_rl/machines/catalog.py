"""Machines by name, file or folder: the chapter's, the presets, and whatever our readers can read.

A preset is one JSON file in `numa_rl/machines/presets`, with a source for every figure; adding a file there
adds a machine.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from numa_rl.machines import builders
from numa_rl.machines.hwloc import read_hwloc
from numa_rl.machines.machine_json import machine_from_json, parse_machine, read_json
from numa_rl.machines.measured import machine_from_collection
from numa_rl.topology import Topology

CHAPTER_MACHINES = {
    "chapter-2-socket": builders.two_socket,
    "chapter-4-socket": builders.four_socket,
    "chapter-8-socket": builders.eight_socket_cube,
}
PRESETS = files("numa_rl.machines.presets")


def machine_names() -> list[str]:
    """Names that `load_machine` knows: the chapter's machines, then the presets."""
    presets = sorted(entry.name.removesuffix(".json") for entry in PRESETS.iterdir() if entry.name.endswith(".json"))
    return [*CHAPTER_MACHINES, *presets]


def load_machine(name_or_path: str) -> Topology:
    """The machine of that name, or the one described by a file.

    Args:
        name_or_path: one of `machine_names()`, or the path of an hwloc XML file (`.xml`) or of a machine in
            our own JSON (`.json`).

    Raises:
        ValueError: no such name or file, or the file does not describe a machine.
    """
    if name_or_path in CHAPTER_MACHINES:
        return CHAPTER_MACHINES[name_or_path]()
    if name_or_path in machine_names():
        return parse_machine(PRESETS.joinpath(f"{name_or_path}.json").read_text("utf-8"), f"preset {name_or_path!r}")
    path = Path(name_or_path)
    if path.suffix.lower() == ".xml":
        return read_hwloc(path)
    file, _, entry = name_or_path.partition("#")
    if Path(file).suffix.lower() == ".json":
        return _from_json(Path(file), entry)
    raise ValueError(
        f"machine must be one of {', '.join(machine_names())}, or a path ending in .xml or .json, got {name_or_path!r}."
    )


def _from_json(path: Path, entry: str) -> Topology:
    """The machine in a file of our own JSON, or one entry of a collection of measurements."""
    origin = f"machine file {str(path)!r}"
    content = read_json(path, origin)
    if entry or (isinstance(content, dict) and "machines" in content):
        return machine_from_collection(content, entry, origin)
    return machine_from_json(content, origin)

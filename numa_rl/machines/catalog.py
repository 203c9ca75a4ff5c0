"""Machines by name, file or folder: the chapter's, the presets, and whatever our readers can read.

A preset is one JSON file in `numa_rl/machines/presets`, with a source for every figure; adding a file there
adds a machine.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from numa_rl.machines import builders
from numa_rl.machines.assembly import assemble, measured_on
from numa_rl.machines.hmat import SIGNATURE, found_in_hmat, parse_hmat
from numa_rl.machines.hwloc import read_hwloc
from numa_rl.machines.machine_json import machine_from_json, parse_machine, read_json
from numa_rl.machines.measured import machine_from_collection
from numa_rl.machines.mlc import figures_of, found_in_mlc, is_mlc, parse_mlc
from numa_rl.machines.numactl import found_in_numactl, is_numactl
from numa_rl.machines.sysfs import machine_in_archive, read_folder, read_live
from numa_rl.machines.tree import MAX_ARCHIVE_BYTES, is_archive, read_bytes
from numa_rl.topology import Topology
from numa_rl.wording import quoted

CHAPTER_MACHINES = {
    "chapter-2-socket": builders.two_socket,
    "chapter-4-socket": builders.four_socket,
    "chapter-8-socket": builders.eight_socket_cube,
}
LIVE = "live"
MAX_TEXT_BYTES = 16 * 2**20
KNOWN_CONTENT = "an archive of a copy of /sys, what numactl -H or Intel MLC printed, or an ACPI HMAT"
PRESETS = files("numa_rl.machines.presets")


def machine_names() -> list[str]:
    """Names that `load_machine` knows: the chapter's machines, then the presets."""
    presets = sorted(entry.name.removesuffix(".json") for entry in PRESETS.iterdir() if entry.name.endswith(".json"))
    return [*CHAPTER_MACHINES, *presets]


def load_machine(name_or_path: str) -> Topology:
    """The machine of that name, or the one described by a file or folder.

    Args:
        name_or_path: one of `machine_names()`; or `live`, the machine this runs on; or a path of
            - an hwloc XML file (`.xml`);
            - a machine in our own JSON (`.json`), or `FILE.json#ENTRY` for one entry of a collection of measurements;
            - a folder or an archive (`.tar`, packed or not) with a copy of /sys;
            - a text that `numactl -H` or Intel MLC printed; `FILE#MACHINE` for one that MLC printed on a machine of
              which another name or path says the rest;
            - an ACPI HMAT, as in /sys/firmware/acpi/tables.

    Raises:
        ValueError: no such name or file, or the file does not describe a machine.
    """
    if name_or_path in CHAPTER_MACHINES:
        return CHAPTER_MACHINES[name_or_path]()
    if name_or_path in machine_names():
        return parse_machine(PRESETS.joinpath(f"{name_or_path}.json").read_text("utf-8"), f"preset {name_or_path!r}")
    if name_or_path == LIVE:
        return read_live()
    file, part = name_or_path, ""
    if not Path(name_or_path).exists():
        file, _, part = name_or_path.partition("#")
    path = Path(file)
    if not file or (not path.exists() and path.suffix == "" and "/" not in file):
        names = ", ".join([*machine_names(), LIVE])
        raise ValueError(f"machine must be one of {names}, or a path of a file or folder, got {name_or_path!r}.")
    return _from_path(path, part)


def _from_path(path: Path, part: str) -> Topology:
    """The machine at a path; after a # may stand a part of a collection, or the base machine of measurements."""
    suffix, origin = path.suffix.lower(), f"machine file {str(path)!r}"
    if suffix == ".json" and not path.is_dir():
        return _from_json(path, part, origin)
    content = b"" if path.is_dir() or suffix == ".xml" else read_bytes(path, MAX_ARCHIVE_BYTES, origin)
    if part and not is_mlc(_text(content)):
        raise ValueError(f"{origin}: only JSON and MLC's text may have a # after them, got {quoted(part)}.")
    if path.is_dir():
        return read_folder(path)
    if suffix == ".xml":
        return read_hwloc(path)
    base = load_machine(part) if part else None
    name = path.name.split(".tar")[0] if ".tar" in path.name else path.stem
    try:
        return _from_content(content, name, base)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None


def _from_json(path: Path, entry: str, origin: str) -> Topology:
    """The machine in a file of our own JSON, or one entry of a collection of measurements."""
    content = read_json(path, origin)
    if entry or (isinstance(content, dict) and "machines" in content):
        return machine_from_collection(content, entry, origin)
    return machine_from_json(content, origin)


def _from_content(content: bytes, name: str, base: Topology | None) -> Topology:
    """The machine in what a file holds, recognised by how it starts or what it says."""
    if content.startswith(SIGNATURE):
        return assemble(found_in_hmat(name, parse_hmat(content)))
    if is_archive(content):
        return machine_in_archive(name, content)
    text = _text(content)
    if is_mlc(text):
        if base is None:
            return assemble(found_in_mlc(name, text))
        return replace(measured_on(base, *figures_of(parse_mlc(text))), name=name)
    if is_numactl(text):
        return assemble(found_in_numactl(name, text))
    raise ValueError(f"must be {KNOWN_CONTENT}, got {quoted(text) if text else 'none of them'}.")


def _text(content: bytes) -> str:
    """The content as text; nothing where it is none, or longer than any text that describes a machine."""
    if len(content) > MAX_TEXT_BYTES:
        return ""
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return ""

"""Machines by name or file: the chapter's, the presets, hwloc XML, and our own JSON.

A preset is one JSON file in `numa_rl/machines/presets`, with a source for every figure; adding a file there
adds a machine. Our JSON is what `Topology.to_dict` writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from numa_rl.coherence.protocol import TransitionCosts
from numa_rl.machines import builders
from numa_rl.machines.hwloc import read_hwloc
from numa_rl.topology import LoadedLatency, Topology
from numa_rl.wording import cut

CHAPTER_MACHINES = {
    "chapter-2-socket": builders.two_socket,
    "chapter-4-socket": builders.four_socket,
    "chapter-8-socket": builders.eight_socket_cube,
}
PRESETS = files("numa_rl.machines.presets")
MAX_JSON_BYTES = 64 * 2**20  # a machine of a thousand nodes takes a few tens of MiB

NODE_FIGURES = ("cores", "flops_per_s", "memory_bytes", "memory_bandwidth_bytes_per_s")
PAIR_FIGURES = ("latency_s", "bandwidth_bytes_per_s")
SCALAR_FIGURES = ("outstanding_bytes", "page_bytes", "page_move_s")
LINK_KEYS = ("source", "target", "bandwidth_bytes_per_s")
LOADED_LATENCY_KEYS = ("a", "c", "saturated")
# num_nodes and hops follow from the rest: written for whoever reads the file, checked when given.
OPTIONAL = (*SCALAR_FIGURES, "llc_bytes", "coherence", "loaded_latency", "sources", "num_nodes", "hops")
# The attributes that a machine states a source for.
FIGURES = (
    *NODE_FIGURES,
    *PAIR_FIGURES,
    "links",
    "link_bandwidth_bytes_per_s",
    "loaded_latency",
    *SCALAR_FIGURES,
    "llc_bytes",
    "coherence",
)


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
    if path.suffix.lower() == ".json":
        return read_machine_json(path)
    raise ValueError(
        f"machine must be one of {', '.join(machine_names())}, or a path ending in .xml or .json, got {name_or_path!r}."
    )


def read_machine_json(path: Path) -> Topology:
    """The machine in a file of our own JSON.

    Raises:
        ValueError: no such file, too large, not JSON, or not a machine.
    """
    if not path.is_file():
        raise ValueError(f"machine file {str(path)!r}: must be an existing file, got none.")
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(f"machine file {str(path)!r}: must be at most {MAX_JSON_BYTES} bytes, got {size}.")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"machine file {str(path)!r}: must be UTF-8 text, got {error.reason}.") from None
    return parse_machine(text, f"machine file {str(path)!r}")


def parse_machine(text: str, origin: str) -> Topology:
    """The machine described by JSON text.

    Args:
        text: one JSON object, with the keys of `Topology.to_dict`.
        origin: what error messages call the text.

    Raises:
        ValueError: not JSON, or a key or value is missing, unknown or wrong.
    """
    try:
        figures = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{origin}: must be JSON, got {error}.") from None
    try:
        _check_types(figures)
        return _topology(figures)
    except OverflowError as error:
        raise ValueError(f"{origin}: whole numbers must fit in 64 bits, got {error}.") from None
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None


def _refuse_constant(constant: str) -> float:
    """JSON has no NaN and no infinity, though Python's reader would let them in."""
    raise ValueError(f"{constant}, which is no finite number")


def _topology(figures: Mapping[str, Any]) -> Topology:
    """The machine of checked figures, whose derived figures, when given, agree with the rest."""
    links = figures["links"]
    optional = {key: figures[key] for key in (*SCALAR_FIGURES, "llc_bytes") if key in figures}
    if "coherence" in figures:
        optional["coherence"] = TransitionCosts(np.array(figures["coherence"], np.float64))
    topology = Topology(
        name=figures["name"],
        **{key: figures[key] for key in (*NODE_FIGURES, *PAIR_FIGURES)},
        links=np.array([(link["source"], link["target"]) for link in links], dtype=np.int64),
        link_bandwidth_bytes_per_s=np.array([link["bandwidth_bytes_per_s"] for link in links], dtype=np.float64),
        loaded_latency=LoadedLatency(**figures.get("loaded_latency", {})),
        sources=figures.get("sources", {}),
        **optional,
    )
    for key, value in (("num_nodes", topology.num_nodes), ("hops", topology.hops.tolist())):
        if figures.get(key, value) != value:
            raise ValueError(f"{key} must agree with cores and links, {_show(value)}, got {_show(figures[key])}.")
    return topology


def _check_types(figures: Any) -> None:
    """Raise ValueError unless `figures` has the keys and types of a machine; `Topology` checks the values."""
    _check_keys("the machine", figures, ("name", *NODE_FIGURES, *PAIR_FIGURES, "links"), OPTIONAL)
    _check_text("name", figures["name"])
    for key in NODE_FIGURES:
        _check_numbers(key, figures[key], 1, whole=key == "cores")
    for key in PAIR_FIGURES:
        _check_numbers(key, figures[key], 2)
    _check_numbers("llc_bytes", figures.get("llc_bytes", []), 1)
    _check_numbers("coherence", _without_holes(figures.get("coherence", [])), 2)
    for key in SCALAR_FIGURES:
        _check_numbers(key, figures.get(key, 1), 0, whole=key == "page_bytes")
    if not isinstance(figures["links"], list):
        raise ValueError(f"links must be a list, got {_show(figures['links'])}.")
    for index, link in enumerate(figures["links"]):
        _check_keys(f"links[{index}]", link, LINK_KEYS, ())
        for key, value in link.items():
            _check_numbers(f"links[{index}].{key}", value, 0, whole=key != "bandwidth_bytes_per_s")
    loaded_latency = figures.get("loaded_latency", {})
    _check_keys("loaded_latency", loaded_latency, (), LOADED_LATENCY_KEYS)
    for key, value in loaded_latency.items():
        _check_numbers(f"loaded_latency.{key}", value, 0)
    sources = figures.get("sources", {})
    _check_keys("sources", sources, (), FIGURES)
    for key, value in sources.items():
        _check_text(f"sources.{key}", value)


def _check_keys(name: str, value: Any, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is an object with every required key and no unknown one."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object, got {_show(value)}.")
    for key in required:
        if key not in value:
            raise ValueError(f"{name} must have the key {key!r}, got {_show(sorted(value))}.")
    for key in value:
        if key not in (*required, *optional):
            raise ValueError(f"{name} must have keys among {', '.join((*required, *optional))}, got {key!r}.")


def _check_text(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is text that a terminal shows as it is."""
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{name} must be printable text, got {_show(value)}.")


def _check_numbers(name: str, value: Any, dimensions: int, *, whole: bool = False) -> None:
    """Raise ValueError unless `value` is numbers in lists `dimensions` deep, with rows of one length."""
    if dimensions == 0:
        # bool is an int to Python, never a figure to us.
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise ValueError(f"{name} must be {'a whole number' if whole else 'a number'}, got {_show(value)}.")
        return
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, got {_show(value)}.")
    for index, item in enumerate(value):
        _check_numbers(f"{name}[{index}]", item, dimensions - 1, whole=whole)
    if dimensions > 1 and len({len(row) for row in value}) > 1:
        raise ValueError(f"{name} must have rows of one length, got lengths {[len(row) for row in value]}.")


def _without_holes(matrix: Any) -> Any:
    """The matrix with a number for every null, which stands for a transition that is never made."""
    if not isinstance(matrix, list):
        return matrix
    return [[0.0 if ratio is None else ratio for ratio in row] if isinstance(row, list) else row for row in matrix]


def _show(value: Any) -> str:
    """A value as JSON, cut to fit an error message."""
    return cut(json.dumps(value))

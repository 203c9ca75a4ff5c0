"""Machines in our own JSON: what `Topology.to_dict` writes, read back and checked key by key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from numa_rl.coherence.protocol import TransitionCosts
from numa_rl.machines.tree import read_bytes
from numa_rl.topology import LoadedLatency, Topology
from numa_rl.wording import cut

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


def read_json(path: Path, origin: str) -> Any:
    """What a JSON file holds.

    Args:
        path: the file.
        origin: what error messages call it.

    Raises:
        ValueError: no such file, too large, or not JSON.
    """
    data = read_bytes(path, MAX_JSON_BYTES, origin)
    try:
        return parse_json(data.decode("utf-8"), origin)
    except UnicodeDecodeError as error:
        raise ValueError(f"{origin}: must be UTF-8 text, got {error.reason}.") from None


def parse_json(text: str, origin: str) -> Any:
    """What JSON text says; raises ValueError where it is none, or holds NaN or infinity."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{origin}: must be JSON, got {error}.") from None


def parse_machine(text: str, origin: str) -> Topology:
    """The machine described by JSON text, one object with the keys of `Topology.to_dict`; see `machine_from_json`."""
    return machine_from_json(parse_json(text, origin), origin)


def machine_from_json(figures: Any, origin: str) -> Topology:
    """The machine of a parsed JSON object.

    Args:
        figures: an object with the keys of `Topology.to_dict`.
        origin: what error messages call it.

    Raises:
        ValueError: a key or value is missing, unknown or wrong.
    """
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
            raise ValueError(f"{key} must agree with cores and links, {show(value)}, got {show(figures[key])}.")
    return topology


def _check_types(figures: Any) -> None:
    """Raise ValueError unless `figures` has the keys and types of a machine; `Topology` checks the values."""
    check_keys("the machine", figures, ("name", *NODE_FIGURES, *PAIR_FIGURES, "links"), OPTIONAL)
    check_text("name", figures["name"])
    for key in NODE_FIGURES:
        check_numbers(key, figures[key], 1, whole=key == "cores")
    for key in PAIR_FIGURES:
        check_numbers(key, figures[key], 2)
    check_numbers("llc_bytes", figures.get("llc_bytes", []), 1)
    check_numbers("coherence", _without_holes(figures.get("coherence", [])), 2)
    for key in SCALAR_FIGURES:
        check_numbers(key, figures.get(key, 1), 0, whole=key == "page_bytes")
    if not isinstance(figures["links"], list):
        raise ValueError(f"links must be a list, got {show(figures['links'])}.")
    for index, link in enumerate(figures["links"]):
        check_keys(f"links[{index}]", link, LINK_KEYS, ())
        for key, value in link.items():
            check_numbers(f"links[{index}].{key}", value, 0, whole=key != "bandwidth_bytes_per_s")
    loaded_latency = figures.get("loaded_latency", {})
    check_keys("loaded_latency", loaded_latency, (), LOADED_LATENCY_KEYS)
    for key, value in loaded_latency.items():
        check_numbers(f"loaded_latency.{key}", value, 0)
    sources = figures.get("sources", {})
    check_keys("sources", sources, (), FIGURES)
    for key, value in sources.items():
        check_text(f"sources.{key}", value)


def check_keys(name: str, value: Any, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is an object with every required key and no unknown one."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object, got {show(value)}.")
    for key in required:
        if key not in value:
            raise ValueError(f"{name} must have the key {key!r}, got {show(sorted(value))}.")
    for key in value:
        if key not in (*required, *optional):
            raise ValueError(f"{name} must have keys among {', '.join((*required, *optional))}, got {key!r}.")


def check_text(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is text that a terminal shows as it is."""
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{name} must be printable text, got {show(value)}.")


def check_numbers(name: str, value: Any, dimensions: int, *, whole: bool = False) -> None:
    """Raise ValueError unless `value` is numbers in lists `dimensions` deep, with rows of one length."""
    if dimensions == 0:
        # bool is an int to Python, never a figure to us.
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise ValueError(f"{name} must be {'a whole number' if whole else 'a number'}, got {show(value)}.")
        return
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, got {show(value)}.")
    for index, item in enumerate(value):
        check_numbers(f"{name}[{index}]", item, dimensions - 1, whole=whole)
    if dimensions > 1 and len({len(row) for row in value}) > 1:
        raise ValueError(f"{name} must have rows of one length, got lengths {[len(row) for row in value]}.")


def _without_holes(matrix: Any) -> Any:
    """The matrix with a number for every null, which stands for a transition that is never made."""
    if not isinstance(matrix, list):
        return matrix
    return [[0.0 if ratio is None else ratio for ratio in row] if isinstance(row, list) else row for row in matrix]


def show(value: Any) -> str:
    """A value as JSON, cut to fit an error message."""
    return cut(json.dumps(value))

"""Workload families by name, built from the values of a scenario file or a command line."""

from __future__ import annotations

from typing import Any

from numa_rl.workloads.collective import AllReduce
from numa_rl.workloads.llm_serving import LLMServing
from numa_rl.workloads.parameters import build
from numa_rl.workloads.synthetic import SyntheticStream
from numa_rl.workloads.workload import WorkloadFamily

FAMILIES: dict[str, type[SyntheticStream] | type[LLMServing] | type[AllReduce]] = {
    "synthetic": SyntheticStream,
    "llm-serving": LLMServing,
    "all-reduce": AllReduce,
}


def family_names() -> list[str]:
    """Names that `make_family` knows."""
    return list(FAMILIES)


def make_family(name: str, **parameters: Any) -> WorkloadFamily:
    """The family of that name with these parameters, the rest at their defaults.

    Raises:
        ValueError: an unknown family or parameter, or a value of the wrong type or out of range.
    """
    if name not in FAMILIES:
        raise ValueError(f"unknown workload family {name!r}; known: {', '.join(FAMILIES)}.")
    return build(FAMILIES[name], parameters, name)

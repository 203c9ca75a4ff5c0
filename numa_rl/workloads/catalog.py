"""Workload families by name, built from the values of a scenario file or a command line."""

from __future__ import annotations

from typing import Any

from numa_rl.workloads.attention import SplitAttention
from numa_rl.workloads.batch import HpcBatch
from numa_rl.workloads.collective import AllReduce
from numa_rl.workloads.ffn import Ffn
from numa_rl.workloads.kv_decode import KVDecode
from numa_rl.workloads.llm_serving import LLMServing
from numa_rl.workloads.parameters import build
from numa_rl.workloads.pipeline import Pipeline
from numa_rl.workloads.planted import Planted
from numa_rl.workloads.prefix_cache import PrefixCache
from numa_rl.workloads.query import Query
from numa_rl.workloads.synthetic import SyntheticStream
from numa_rl.workloads.threads import Threads
from numa_rl.workloads.training import TransformerTraining
from numa_rl.workloads.workflow import Workflow
from numa_rl.workloads.workload import WorkloadFamily

FAMILIES: dict[str, type[WorkloadFamily]] = {
    "synthetic": SyntheticStream,
    "llm-serving": LLMServing,
    "prefix-cache": PrefixCache,
    "hpc-batch": HpcBatch,
    "workflow": Workflow,
    "query": Query,
    "threads": Threads,
    "all-reduce": AllReduce,
    "attention": SplitAttention,
    "ffn": Ffn,
    "kv-decode": KVDecode,
    "pipeline": Pipeline,
    "transformer-training": TransformerTraining,
    "planted": Planted,
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

"""Workload families small enough that a test of all of them takes a moment, by name."""

from __future__ import annotations

from numa_rl.workloads.catalog import make_family
from numa_rl.workloads.collective import AllReduce
from numa_rl.workloads.llm_serving import LLMServing
from numa_rl.workloads.synthetic import SyntheticStream

SMALL_STREAM = SyntheticStream(num_tasks=96, num_objects=6, object_lifetime_tasks=24.0)
SMALL_SERVING = LLMServing(
    num_tasks=96,
    requests_per_s=1.0,
    warm_up_requests=20,
    num_shards=4,
    shards_per_request=2,
    median_context_tokens=200.0,
    max_context_tokens=1000,
    median_generated_tokens=40.0,
    received_context_share=0.5,
)
SMALL_ALL_REDUCE = AllReduce(num_ranks=4, num_steps=2)
SMALL = {
    "synthetic": SMALL_STREAM,
    "llm-serving": SMALL_SERVING,
    "all-reduce": SMALL_ALL_REDUCE,
    **{
        name: make_family(name)
        for name in ("planted", "attention", "ffn", "kv-decode", "pipeline", "transformer-training")
    },
    **{name: make_family(name, num_tasks=96) for name in ("prefix-cache", "hpc-batch", "workflow", "query", "threads")},
}

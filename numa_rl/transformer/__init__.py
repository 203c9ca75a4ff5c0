"""Transformers on NUMA machines: attention, feed-forward layers, KV cache, pipelines and memory plans as equations."""

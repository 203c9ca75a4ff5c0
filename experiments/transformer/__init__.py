"""What `numa-rl transformer` shows: attention, feed-forward layers, KV cache and pipelines on a machine."""

"""Cache coherence between nodes: the MESIF protocol, what its transitions cost, and sharing patterns (16.1.3)."""

"""The NUMA machine: topology, workloads, simulator. Knows numpy and numba, nothing of learning."""

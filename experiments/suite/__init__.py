"""The standard suite: workload families x machines, played by every rule, tuned, beside planners and the oracle."""

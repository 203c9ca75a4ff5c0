"""Scenario files: machine, workload and reward weights."""

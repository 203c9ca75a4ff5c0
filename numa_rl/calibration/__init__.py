"""Measuring the machine this runs on: latency, bandwidth and arithmetic, pair by pair of its nodes."""

"""Planners: schedulers that see a whole episode before they decide its first task."""

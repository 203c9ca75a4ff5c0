"""Hierarchical work stealing (the chapter, exercise 5): levels, adaptation, and a simulation of workers."""

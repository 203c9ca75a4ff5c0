"""Cutting a graph into parts, one for each NUMA node, and placing parts by distance: the chapter, section 16.2.1."""

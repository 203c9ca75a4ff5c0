"""Communication between nodes: point-to-point transfers, aggregation, and collectives as formulas and as schedules."""

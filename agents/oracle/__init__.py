"""How good placements can be when all arrivals are known: the exact optimum of small instances, a search for large."""

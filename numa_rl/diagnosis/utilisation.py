"""How busy memory controllers and links were: their bytes over what the machine can carry.

Dimension key: N nodes, L links.

References:
    [1] The chapter, section 16.4.1: U_link, S_MC.
"""

from __future__ import annotations

import re

import numpy as np

from numa_rl.diagnosis.events import Quantity
from numa_rl.diagnosis.evidence import Draft
from numa_rl.diagnosis.totals import ByGroup, Totals
from numa_rl.metrics import controller_saturation, imbalance, link_utilisation
from numa_rl.topology import Topology

MOST_UTILISATION = 1.05  # beyond what capacities are known to


def add_controllers(totals: Totals, elapsed_s: float, topology: Topology, draft: Draft) -> None:
    """S_MC of the busiest socket, or of the whole machine where sockets were not told apart."""
    groups = totals.groups(Quantity.MEMORY_BYTES)
    if not groups:
        return
    capacity = topology.memory_bandwidth_bytes_per_s
    nodes = _nodes_of_groups(groups, topology, draft)
    load = {
        group: float(controller_saturation(groups[group] / elapsed_s, capacity[members].sum()))
        for group, members in nodes.items()
    }
    busiest = max(load, key=lambda group: load[group])
    draft.add("controller_utilisation", load[busiest], "memory controllers' bytes / seconds / capacity")
    draft.figures["busiest_controller"] = _label("memory of", busiest, nodes[busiest])
    _note_impossible(draft, "controller")


def add_links(totals: Totals, elapsed_s: float, topology: Topology, draft: Draft) -> None:
    """U_link: bytes into (or out of) the busiest socket over the capacity of its links that way."""
    if topology.num_links == 0:
        draft.add("link_utilisation", 0.0, "the machine has no links")
        return
    best = -1.0
    for quantity, end, way in (
        (Quantity.LINK_BYTES_IN, 1, "links into"),
        (Quantity.LINK_BYTES_OUT, 0, "links out of"),
    ):
        groups = totals.groups(quantity)
        nodes = _nodes_of_groups(groups, topology, draft) if groups else {}
        for group, members in nodes.items():
            inside = np.isin(topology.links, members)
            # Of the whole machine every link counts; of a socket those that cross its border this way.
            crossing = inside[:, end] & (~inside[:, 1 - end] | (len(members) == topology.num_nodes))
            capacity = float(topology.link_bandwidth_bytes_per_s[crossing].sum())
            if capacity > 0.0 and (load := float(link_utilisation(groups[group] / elapsed_s, capacity))) > best:
                best = load
                draft.figures["busiest_link"] = _label(way, group, members)
    if best >= 0.0:
        draft.add("link_utilisation", best, "data flits' bytes / seconds / capacity")
        _note_impossible(draft, "link")


def add_controller_imbalance(totals: Totals, draft: Draft) -> None:
    """Sigma / mu over sockets; one group says nothing of it."""
    loads = list(totals.groups(Quantity.MEMORY_BYTES).values())
    if len(loads) > 1 and sum(loads) > 0.0:
        draft.add("controller_imbalance", float(imbalance(loads)), "sigma / mu of controllers' bytes")


def _note_impossible(draft: Draft, kind: str) -> None:
    """Say so where more went through a controller or link than it can carry."""
    utilisation = draft.figures[f"{kind}_utilisation"]
    if isinstance(utilisation, float) and utilisation > MOST_UTILISATION:
        where = draft.figures[f"busiest_{kind}"]
        draft.note(f"{where}: {utilisation:.0%} of capacity cannot be: check the seconds, the machine or the counts.")


def _nodes_of_groups(groups: ByGroup, topology: Topology, draft: Draft) -> dict[str, list[int]]:
    """The nodes that each group's counters serve: sockets in the order of their nodes.

    Memory-only nodes have no socket of their own, and are left out where the others fit.
    """
    everything = list(range(topology.num_nodes))
    if "" in groups:
        if len(groups) > 1:
            raise ValueError(
                f"counts must be of all sockets or of each, got both, and {', '.join(filter(None, groups))}."
            )
        draft.note("Counters of all sockets were added up: the busiest may be busier; count with -a --per-socket.")
        return {"": everything}
    ordered = sorted(groups, key=lambda group: [int(number) for number in re.findall(r"\d+", group)])
    for nodes in (np.flatnonzero(topology.cores).tolist(), everything):
        if len(nodes) % len(ordered) == 0:
            size = len(nodes) // len(ordered)
            if size > 1:
                draft.note(f"{ordered[0]} and the others are taken to be {size} nodes each, in order.")
            return {group: nodes[place * size : (place + 1) * size] for place, group in enumerate(ordered)}
    raise ValueError(
        f"counters must come from as many sockets as the machine {topology.name!r} has, one or more of its "
        f"{topology.num_nodes} nodes each, got {len(ordered)}: {', '.join(ordered)}."
    )


def _label(what: str, group: str, members: list[int]) -> str:
    """What a group is called: "memory of S0 (node 0)"."""
    numbers = ", ".join(map(str, members))
    return f"{what} {group} (node{'s' if len(members) > 1 else ''} {numbers})" if group else f"{what} all nodes"

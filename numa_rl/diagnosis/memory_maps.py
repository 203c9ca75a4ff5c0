"""From what Linux says of memory by node to evidence: shares of pages on the wrong node, and what moving them costs.

Dimension key: N nodes.

References:
    [1] The chapter, section 16.4 and its list of gotchas: wrong-node allocation, distance ignored.
    [2] numastat(8).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from numa_rl.diagnosis.counters import add_page_migrations
from numa_rl.diagnosis.evidence import Draft, Evidence
from numa_rl.diagnosis.numa_text import NodeTable, NumaMaps, Vmstat
from numa_rl.topology import Topology


def numastat_evidence(table: NodeTable, topology: Topology | None, thread_nodes: Sequence[int] = ()) -> Evidence:
    """What numastat says: of a process, where its memory lies; of the system, where pages were allocated [2].

    Args:
        table: as read.
        topology: the machine; None where unknown.
        thread_nodes: nodes that the process's threads run on; empty where unknown.

    Raises:
        ValueError: the machine lacks a node that the table or `thread_nodes` has, the table lacks a node that
            `thread_nodes` has or is of the system as a whole, or no process has any memory.
    """
    draft = Draft()
    draft.figures["num_nodes"] = len(table.nodes)
    _check_nodes((*table.nodes, *thread_nodes), topology)
    if thread_nodes and not table.is_process:
        raise ValueError("nodes of threads must go with a process's table (numastat -p PID), got the whole system's.")
    absent = sorted(set(thread_nodes) - set(table.nodes))
    if absent:
        shown = ", ".join(map(str, table.nodes))
        raise ValueError(f"nodes of threads must be among the table's ({shown}; -z leaves some out), got {absent[0]}.")
    if table.is_process:
        on_node = {node: math.fsum(row.get(node, 0.0) for row in table.rows.values()) for node in table.nodes}
        _process_memory(on_node, topology, thread_nodes, draft)
    else:
        _allocations({name: table.total(name) for name in table.rows}, draft)
    return draft.evidence(topology)


def numa_maps_evidence(maps: NumaMaps, topology: Topology | None, thread_nodes: Sequence[int] = ()) -> Evidence:
    """What a process's numa_maps say of where its memory lies.

    Args:
        maps: as read.
        topology: the machine; None where unknown.
        thread_nodes: nodes that the process's threads run on; empty where unknown.

    Raises:
        ValueError: the machine lacks a node that the maps or `thread_nodes` have.
    """
    draft = Draft()
    _check_nodes((*maps.bytes_on_node, *thread_nodes), topology)
    _process_memory(maps.bytes_on_node, topology, thread_nodes, draft)
    total = math.fsum(maps.bytes_by_policy.values())
    policies = (f"{policy} {num_bytes / total:.0%}" for policy, num_bytes in maps.bytes_by_policy.items())
    draft.note(f"Memory policies by bytes: {', '.join(policies)}.")
    return draft.evidence(topology)


def vmstat_evidence(vmstat: Vmstat, topology: Topology | None, seconds: float | None = None) -> Evidence:
    """What /proc/vmstat, or a node's own numastat file, says since the system started.

    Args:
        vmstat: as read.
        topology: the machine; None where unknown.
        seconds: how long it has counted, for rates; None where unknown.

    Raises:
        ValueError: seconds is not finite and > 0.
    """
    if seconds is not None and not 0.0 < seconds < math.inf:
        raise ValueError(f"seconds must be finite and > 0, got {seconds}.")
    draft, counts = Draft(), vmstat.counts
    _allocations(counts, draft)
    faults, local = counts.get("numa_hint_faults"), counts.get("numa_hint_faults_local")
    if faults and local is not None:
        draft.add("remote_share", max(1.0 - local / faults, 0.0), "1 - numa_hint_faults_local / numa_hint_faults")
    pages = counts.get("numa_pages_migrated")
    if pages is not None and seconds is not None:
        add_page_migrations(pages, seconds, topology, draft)
    elif pages:
        draft.note("No rates: how long the system has counted is unknown; /proc/uptime has the seconds.")
    return draft.evidence(topology)


def _allocations(counts: Mapping[str, float | None], draft: Draft) -> None:
    """Pages that were allocated on another node than the one whose processor asked."""
    local, other, missed = (counts.get(name) for name in ("local_node", "other_node", "numa_miss"))
    if local is None or other is None:
        draft.note("This table says nothing of who uses which node; run numastat, or numastat -p PID.")
        return
    if local + other > 0.0:
        how = "other_node / (local_node + other_node): of pages allocated, for the asking processor's node"
        draft.add("misplaced_share", other / (local + other), how)
    interleaved = counts.get("interleave_hit")
    if interleaved:
        draft.note(f"{interleaved:.0f} pages were interleaved on purpose, and count as misplaced where remote.")
    if missed:
        draft.note(f"{missed:.0f} pages went to another node than wanted (numa_miss), for want of free memory.")


def _process_memory(
    on_node: Mapping[int, float], topology: Topology | None, thread_nodes: Sequence[int], draft: Draft
) -> None:
    """Where a process's pages lie, beside where its threads run."""
    total = math.fsum(on_node.values())
    if not total > 0.0:
        raise ValueError("must show memory of a process on at least one node, got none.")
    largest = max(on_node, key=lambda node: on_node[node])
    draft.add("largest_node_share", on_node[largest] / total, "largest node's pages / all pages")
    draft.figures["largest_node"] = largest
    if not thread_nodes:
        return
    draft.figures["thread_nodes"] = len(thread_nodes)
    apart = {node: num_bytes for node, num_bytes in on_node.items() if node not in thread_nodes}
    misplaced = math.fsum(apart.values())
    draft.add("misplaced_share", misplaced / total, "pages on nodes where no thread runs / all pages")
    if topology is not None and topology.num_links and misplaced > 0.0:
        hops = topology.hops
        far = math.fsum(num_bytes for node, num_bytes in apart.items() if hops[list(thread_nodes), node].min() > 1)
        draft.add("far_share", far / misplaced, "pages two hops or more from every thread / pages on nodes without one")


def _check_nodes(nodes: Sequence[int], topology: Topology | None) -> None:
    """Raise ValueError unless the machine has all these nodes."""
    if topology is not None and nodes and max(nodes) >= topology.num_nodes:
        raise ValueError(
            f"machine {topology.name!r}: nodes must be in 0..{topology.num_nodes - 1}, got node {max(nodes)}."
        )

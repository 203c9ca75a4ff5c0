"""What was measured of a run, wherever it came from: the only thing that the tree and the gotchas look at.

References:
    [1] The chapter, section 16.4.1: the metrics; section 16.4.2: the counters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from numa_rl.topology import Topology
from numa_rl.workloads.parameters import require

SHARES = (
    "memory_stall_share",
    "dram_stall_share",
    "remote_share",
    "hitm_share",
    "coherence_share",
    "falsely_shared_share",
    "truly_shared_share",
    "misplaced_share",
    "largest_node_share",
    "far_share",
    "migration_share",
)
FIGURES = (
    "controller_utilisation",
    "link_utilisation",
    "controller_imbalance",
    "cpu_migrations_per_s",
    "migrations_per_s",
    "intensity",
)


@dataclass(frozen=True)
class Evidence:
    """Figures of a run, dimensionless unless the name says otherwise; None is "not measured", never "zero".

    Attributes:
        latency_ratio: mean latency of a memory access over the idle latency of local memory.
        memory_stall_share: share of the cycles in which a core waits for any load, caches included.
        dram_stall_share: share of the cycles in which a core waits for a load that missed all its caches.
        remote_share: share of the memory accesses (or bytes) that another node answers.
        controller_utilisation: S_MC, bytes per second over capacity, of the busiest memory controller [1].
        busiest_controller: what that controller is called.
        link_utilisation: U_link, bytes per second over capacity, of the busiest link [1].
        busiest_link: what that link is called.
        controller_imbalance: sigma / mu of the bytes that the nodes' memory controllers serve.
        hitm_share: share of the loads missing the local caches that found the line modified in another node's cache.
        coherence_share: O_coherence, time spent on coherence over all time [1].
        falsely_shared_share: share of the sampled accesses' waiting time that false sharing takes.
        truly_shared_share: share of that time that true sharing takes: lines of which others use the same bytes.
        falsely_shared_lines: how many such lines the samples show.
        misplaced_share: share of the pages (or bytes) that lie on another node than the one that uses them most.
        largest_node_share: share of a process's pages on the node that holds most of them.
        largest_node: number of that node.
        thread_nodes: how many nodes the process's threads run on.
        num_nodes: how many nodes the machine has.
        far_share: share of the remote accesses (or pages) that cross two hops or more; 0 where none can.
        migration_share: time spent on moving pages (or objects) over all time.
        migrations_per_s: pages (or objects) moved, per second.
        cpu_migrations_per_s: moves of threads between cores, per second of processor time.
        intensity: flop per byte of memory traffic.
        machine: what the machine is called.
        provenance: how each figure was made, by attribute name.
        notes: what to know before trusting a figure.

    Raises:
        ValueError: a figure is not finite or outside its range.
    """

    latency_ratio: float | None = None
    memory_stall_share: float | None = None
    dram_stall_share: float | None = None
    remote_share: float | None = None
    controller_utilisation: float | None = None
    busiest_controller: str | None = None
    link_utilisation: float | None = None
    busiest_link: str | None = None
    controller_imbalance: float | None = None
    hitm_share: float | None = None
    coherence_share: float | None = None
    falsely_shared_share: float | None = None
    truly_shared_share: float | None = None
    falsely_shared_lines: int | None = None
    misplaced_share: float | None = None
    largest_node_share: float | None = None
    largest_node: int | None = None
    thread_nodes: int | None = None
    num_nodes: int | None = None
    far_share: float | None = None
    migration_share: float | None = None
    migrations_per_s: float | None = None
    cpu_migrations_per_s: float | None = None
    intensity: float | None = None
    machine: str | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges; raises ValueError."""
        known = [name for name in (*SHARES, *FIGURES, "latency_ratio") if getattr(self, name) is not None]
        require(self, " ".join(known), "finite and >= 0", lambda value: value >= 0.0)
        require(self, " ".join(name for name in known if name in SHARES), "in [0, 1]", lambda value: value <= 1.0)
        if self.latency_ratio == 0.0:
            raise ValueError(f"latency_ratio must be > 0, got {self.latency_ratio}.")
        for name, least in (("falsely_shared_lines", 0), ("largest_node", 0), ("thread_nodes", 1), ("num_nodes", 1)):
            count = getattr(self, name)
            if count is not None and count < least:
                raise ValueError(f"{name} must be >= {least}, got {count}.")

    @property
    def measured(self) -> dict[str, Any]:
        """Every figure that is known, by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {
            name: value for name, value in values.items() if value is not None and name not in ("provenance", "notes")
        }

    def join(self, other: Evidence) -> Evidence:
        """What both know; where both measured a figure, this one's stands."""
        return replace(
            self,
            **{name: value for name, value in other.measured.items() if name not in self.measured},
            provenance={**other.provenance, **self.provenance},
            notes=(*self.notes, *(note for note in other.notes if note not in self.notes)),
        )


@dataclass
class Draft:
    """Evidence in the making: figures, how each was made, and what to know of them."""

    figures: dict[str, float | int | str | None] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, figure: str, value: float, how: str) -> None:
        """Take in a figure, unless a better source gave it already."""
        if figure not in self.figures:
            self.figures[figure] = value
            self.provenance[figure] = how

    def note(self, text: str) -> None:
        """Add a note once."""
        if text not in self.notes:
            self.notes.append(text)

    def evidence(self, topology: Topology | None) -> Evidence:
        """All that was found, and what the machine says of itself."""
        if topology is not None:
            self.figures["num_nodes"] = topology.num_nodes
            if topology.hops.max() <= 1:
                self.add("far_share", 0.0, "no node of the machine is two hops from another")
        machine = None if topology is None else topology.name
        return Evidence(
            **self.figures,  # type: ignore[arg-type]
            machine=machine,
            provenance=self.provenance,
            notes=tuple(self.notes),
        )

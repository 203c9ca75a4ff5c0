"""The memory ceilings of a machine: what a roofline is drawn from.

Ceilings are of an otherwise idle machine. Streams that meet on a link or a controller stay further below them, which
is the simulator's business.

Dimension key: N nodes.

References:
    [1] The chapter, section 16.4.3: P = min(P_peak, I x BW_eff).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import fsum

import numpy as np

from numa_rl.roofline import byte_weighted_bandwidth, effective_bandwidth, require_share
from numa_rl.topology import IntArray, Topology


@dataclass(frozen=True)
class Ceilings:
    """What a node, or the whole machine, attains from each place that its bytes may lie in.

    Attributes:
        peak_flops_per_s: P_peak, all cores.
        local_bytes_per_s: every node from its own memory.
        best_remote_bytes_per_s: every node from the other node that serves it fastest.
        mean_remote_bytes_per_s: every node from one other node, the mean over the others. The remote end of mixes.
        worst_remote_bytes_per_s: every node from the other node that serves it slowest.
            The remote ones are None where there is no other node.
        node_bytes_per_s: local and mean remote bandwidth of each node, of which mixes are made; empty where there is
            no other node.
    """

    peak_flops_per_s: float
    local_bytes_per_s: float
    best_remote_bytes_per_s: float | None
    mean_remote_bytes_per_s: float | None
    worst_remote_bytes_per_s: float | None
    node_bytes_per_s: tuple[tuple[float, float], ...]

    def mixed_bytes_per_s(self, local_share: float) -> float:
        """The chapter's BW_eff between the local and the mean remote ceiling, bytes per second.

        Raises:
            ValueError: a share outside [0, 1], or remote bytes on a machine of one node.
        """
        return self._mix(effective_bandwidth, local_share)

    def byte_weighted_bytes_per_s(self, local_share: float) -> float:
        """`byte_weighted_bandwidth` between the local and the mean remote ceiling, bytes per second.

        Raises:
            ValueError: a share outside [0, 1], or remote bytes on a machine of one node.
        """
        return self._mix(byte_weighted_bandwidth, local_share)

    def _mix(self, bandwidth: Callable[[float, float, float], float], local_share: float) -> float:
        """The sum over nodes, each with that share of its own."""
        if self.node_bytes_per_s:
            return fsum(bandwidth(local_share, local, remote) for local, remote in self.node_bytes_per_s)
        require_share("local_share", local_share)
        if local_share < 1.0:
            raise ValueError(f"local_share must be 1 where there is one node only, got {local_share}.")
        return self.local_bytes_per_s


def node_ceilings(topology: Topology, node: int) -> Ceilings:
    """What the cores of one node attain.

    Raises:
        ValueError: no such node, or one without cores: nothing runs there, so it has no roofline.
    """
    if not 0 <= node < topology.num_nodes:
        raise ValueError(f"node must be in 0..{topology.num_nodes - 1}, got {node}.")
    if topology.cores[node] == 0:
        having = ", ".join(map(str, np.flatnonzero(topology.cores)))
        raise ValueError(f"node must be one that has cores ({having}), got {node}, which is memory only.")
    return _ceilings(topology, [node])


def machine_ceilings(topology: Topology) -> Ceilings:
    """What all nodes that have cores attain together, each drawing as it does alone; memory-only nodes only serve."""
    return _ceilings(topology, np.flatnonzero(topology.cores).tolist())


def _ceilings(topology: Topology, nodes: Iterable[int]) -> Ceilings:
    """The sum over `nodes` of what each attains."""
    initiators: IntArray = np.array(list(nodes), dtype=np.int64)
    peak = float((topology.cores[initiators] * topology.flops_per_s[initiators]).sum())
    # A stream is bound by its pair and by the controllers that serve it.
    drawn = np.minimum(topology.bandwidth_bytes_per_s, topology.memory_bandwidth_bytes_per_s)[initiators]
    own = np.arange(topology.num_nodes) == initiators[:, None]
    local = drawn[own]
    if topology.num_nodes == 1:
        return Ceilings(peak, float(local.sum()), None, None, None, ())
    remote = drawn[~own].reshape(len(initiators), -1)
    best, mean, worst = (float(of(axis=1).sum()) for of in (remote.max, remote.mean, remote.min))
    of_nodes = tuple(zip(local.tolist(), remote.mean(axis=1).tolist(), strict=True))
    return Ceilings(peak, float(local.sum()), best, mean, worst, of_nodes)

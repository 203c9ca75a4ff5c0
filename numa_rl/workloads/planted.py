"""Episodes whose optimum is known, because one is planted in them: chains of tasks on private data.

An episode has rounds of C tasks that arrive at one moment, one of each chain. The tasks of a chain update the chain's
own object, which nobody else reads; the first of them creates it. All tasks of a round take equally long, and bytes
are so few that arithmetic alone says how long. In every round chains come in another order.

**The planted placement**: every chain on a node of its own, its object with it.

**It is optimal** where the conditions below hold. Let K be the nodes with cores, and D the longest task.

1. T_exec of a task is at least flops / the fastest core's peak, by the roofline, and T_comm is at least 0. The planted
   placement takes just that: each task finds a core free and its object next to it, and nothing moves.
2. Imbalance is the standard deviation of the nodes' outstanding work over its mean. After the k-th task of a round at
   most k nodes have work if all earlier rounds have ended. Then, by Cauchy and Schwarz, (sum w)^2 <= k sum w^2, and
   Imbalance^2 = K sum w^2 / (sum w)^2 - 1 >= K / k - 1. It is equal if k nodes have equal work, as planted.
3. A placement can have less Imbalance than that in a round only if a task of an earlier round is still running. Rounds
   are G apart, so this task lasts some L >= G from its arrival, which costs it at least min(1, alpha) (L - D) /
   reference more than planted, and lasts into at most L / G rounds, of C tasks with an Imbalance of at most
   sqrt(K - 1) each as planted. It does not pay if min(1, alpha) (L - D) / reference >= beta C sqrt(K - 1) L / G for
   all L >= G, and since (L - D) / L grows with L, that is so if

       G - D >= beta C sqrt(K - 1) reference / min(1, alpha).

So the mean cost of a decision is the mean of flops / peak / reference + beta sqrt(K / k - 1).

Dimension key: E episodes, T tasks, C chains, R rounds, K nodes with cores.

References:
    [1] The chapter, section 16.2.3: T_exec, T_comm and Imbalance.
    [2] The chapter, section 16.4.3: the roofline.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from numa_rl.idle import core_s_per_byte
from numa_rl.topology import Topology
from numa_rl.workloads.parameters import require
from numa_rl.workloads.processes import FloatArray, lognormal
from numa_rl.workloads.workload import NEVER, NO_OBJECT, Workload


@dataclass(frozen=True)
class Planted:
    """Chains of tasks on private data, whose best placement is known: see this module's docstring.

    Attributes:
        num_chains: chains, C; the machine needs as many equal nodes.
        num_rounds: tasks of a chain, R.
        gap_s: time between rounds, G.
        median_task_flops: median arithmetic of a round's tasks, lognormal.
        task_flops_sigma: standard deviation of its logarithm.
        most_task_flops: the largest arithmetic; what is drawn larger is cut to this.
        flops_per_byte: arithmetic of a task over what it moves between its core and its object.
        write_fraction: share of that which is written.
        median_object_bytes: median size of a chain's object, lognormal.
        object_bytes_sigma: standard deviation of its logarithm.

    Raises:
        ValueError: a parameter is out of range.
    """

    num_chains: int = 4
    num_rounds: int = 16
    gap_s: float = 1.0
    median_task_flops: float = 1e9
    task_flops_sigma: float = 0.5
    most_task_flops: float = 4e9
    flops_per_byte: float = 16.0
    write_fraction: float = 0.5
    median_object_bytes: float = 256e6
    object_bytes_sigma: float = 0.5

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self, "num_chains num_rounds", ">= 1", lambda value: value >= 1)
        positive = "gap_s median_task_flops most_task_flops flops_per_byte median_object_bytes"
        require(self, positive, "> 0", lambda value: value > 0)
        require(self, "task_flops_sigma object_bytes_sigma", ">= 0", lambda value: value >= 0)
        require(self, "write_fraction", "in [0, 1]", lambda value: 0 <= value <= 1)

    def generate(self, rng: np.random.Generator, num_episodes: int) -> Workload:
        """Make `num_episodes` episodes; more episodes from the same generator extend fewer."""
        c, r = self.num_chains, self.num_rounds
        uniforms = rng.random((num_episodes, r + c + r * c))
        length, size, place = np.split(uniforms, [r, r + c], axis=1)
        chain = np.argsort(place.reshape(num_episodes, r, c), axis=2).reshape(num_episodes, r * c)
        flops = np.minimum(lognormal(length, self.median_task_flops, self.task_flops_sigma), self.most_task_flops)
        flops = np.repeat(flops, c, axis=1)
        sizes = lognormal(size, self.median_object_bytes, self.object_bytes_sigma)
        return Workload(
            name="planted",
            arrival_s=np.tile(np.repeat(self.gap_s * np.arange(r), c), (num_episodes, 1)),
            flops=flops.astype(np.float32),
            bytes=(flops / self.flops_per_byte).astype(np.float32),
            write_fraction=np.full(flops.shape, self.write_fraction, np.float32),
            object=chain.astype(np.int32),
            object_bytes=np.take_along_axis(sizes, chain, axis=1),
            inputs=np.full((*flops.shape, 0), NO_OBJECT, np.int32),
            input_bytes=np.zeros((*flops.shape, 0), np.float32),
            freed_after=np.full((num_episodes, c), NEVER, np.int32),
        )

    def optimal_cost(
        self,
        workload: Workload,
        topology: Topology,
        *,
        alpha: float,
        beta: float,
        reference_s: float,
    ) -> FloatArray:
        """Mean cost -R of a decision under the planted placement, which no placement goes below, shape (E,).

        Args:
            workload: episodes that this family made.
            topology: the machine.
            alpha: the reward's weight of T_comm.
            beta: the reward's weight of Imbalance.
            reference_s: the reward's unit of time.

        Raises:
            ValueError: what the proof needs does not hold on this machine, or with this reward.
        """
        nodes = self.equal_nodes(topology)
        peak = float(topology.flops_per_s[nodes].max())
        service_s = workload.flops.astype(np.float64) / peak
        self._require_arithmetic(topology, nodes)
        largest_bytes = np.ceil(workload.object_bytes).reshape(len(service_s), self.num_rounds, -1)[:, 0].sum(axis=1)
        if (largest_bytes > topology.memory_bytes[nodes].min()).any():
            raise ValueError(
                f"planted: all objects must fit on one node of {topology.memory_bytes[nodes].min():g} bytes, "
                f"got {largest_bytes.max():g} bytes."
            )
        busy = int((topology.cores > 0).sum())
        charge = beta * self.num_chains * np.sqrt(busy - 1) * reference_s
        least = min(1.0, alpha)
        slack_s = self.gap_s - service_s.max()
        if not (slack_s > 0.0 and least * slack_s >= charge):
            raise ValueError(
                f"planted: gap_s must be > {service_s.max():g} s, the longest task, by at least "
                f"{charge / least if least else np.inf:g} s, got {self.gap_s}."
            )
        imbalance = np.sqrt(busy / np.arange(1, self.num_chains + 1) - 1.0).mean()
        return np.asarray(service_s.mean(axis=1) / reference_s + beta * imbalance)

    def equal_nodes(self, topology: Topology) -> npt.NDArray[np.int64]:
        """As many nodes as chains, of the fastest cores and equally many.

        Raises:
            ValueError: there are not as many.
        """
        fastest = topology.flops_per_s[topology.cores > 0].max()
        for count in np.unique(topology.cores[topology.cores > 0]):
            nodes = np.flatnonzero((topology.cores == count) & (topology.flops_per_s == fastest))
            if len(nodes) >= self.num_chains:
                return nodes[: self.num_chains]
        raise ValueError(
            f"planted: num_chains must be at most the nodes of {topology.name!r} with equally many of the fastest "
            f"cores, got {self.num_chains}."
        )

    def _require_arithmetic(self, topology: Topology, nodes: npt.NDArray[np.int64]) -> None:
        """Arithmetic takes longer than the bytes of a local task, whose streams have the controller to themselves.

        The task before it on that node has ended, for rounds are further apart than the longest task.

        Raises:
            ValueError: it does not.
        """
        least = float(topology.flops_per_s[nodes].max() * core_s_per_byte(topology)[nodes, nodes].max())
        if self.flops_per_byte < least:
            raise ValueError(
                f"planted: flops_per_byte must be >= {least:g} for arithmetic to take longer than bytes on "
                f"{topology.name!r}, got {self.flops_per_byte}."
            )


def planted_placement(workload: Workload, topology: Topology, family: Planted) -> npt.NDArray[np.int64]:
    """Every chain on a node of its own, shape (E, T, 2).

    Args:
        workload: episodes of the family.
        topology: the machine.
        family: what made them.

    Raises:
        ValueError: the machine has fewer equal nodes than there are chains.
    """
    node = family.equal_nodes(topology)[workload.object]
    return np.stack([node, node], axis=-1)

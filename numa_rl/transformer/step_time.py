"""How long a training step takes on MP x DP x PP ranks, in closed form.

A rank is a socket; machines of equal sockets are joined by a network. Each machine holds a block of the ranks, as many
of one MP group as it can, then of one DP group, then of neighbouring stages [1, section 3.2]. A step is m micro-batches
through a 1F1B pipeline of equal stages, then the optimiser's update. On each stage a micro-batch takes

    t = compute + MP all-reduces + sends between stages + what DP replicas exchange at each micro-batch,

and a step takes m t, the bubble (PP - 1) t, what replicas exchange once, and the update. Nothing overlaps, so the parts
add up and say what there is to hide. Collectives are hierarchical, in turn within machines and across them.

Dimension key: K splits of the ranks; their degrees are arrays of shape (K,), and so is every time.

References:
    [1] D. Narayanan et al., "Efficient large-scale language model training on GPU clusters using Megatron-LM", SC 2021:
        MP, DP and PP together, what each sends, sends between stages cut into one part for each MP rank.
    [2] M. Shoeybi et al., "Megatron-LM: training multi-billion parameter language models using model parallelism",
        2019: two all-reduces of a layer forward, two backward.
    [3] V. Korthikanti et al., "Reducing activation recomputation in large transformer models", 2022: sequence
        parallelism sends as much as these all-reduces.
    [4] S. Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models", SC 2020,
        section 7: what each stage of sharding sends.
    [5] The chapter, sections 16.1.2 and 16.3.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from numa_rl.communication.collectives import Groups, hierarchical_s, require_count
from numa_rl.communication.transfers import transfer_s
from numa_rl.idle import service_s
from numa_rl.topology import FloatArray, IntArray, Topology
from numa_rl.transformer.kv_cache import attended_pairs, attention_flops_per_pair
from numa_rl.transformer.memory_plan import Recompute, Sharding, Training
from numa_rl.transformer.model import BACKWARD_OVER_FORWARD
from numa_rl.transformer.pipeline_schedule import ONE_F_ONE_B, bubble_over_ideal
from numa_rl.workloads.parameters import require

ALL_REDUCES = 2  # of a layer in each direction [2]
BOTH_WAYS = 2  # activations forward, gradients backward
PROBE_BYTES = 1e9  # collectives are linear in their bytes; this many tell the slope


@dataclass(frozen=True)
class Cluster:
    """Equal machines of equal sockets, a rank on each socket.

    Attributes:
        ranks_per_machine: sockets of a machine.
        flops_per_s: peak of a socket.
        memory_bytes: of a socket.
        memory_bandwidth_bytes_per_s: what a socket draws from its own memory.
        intra_bandwidth_bytes_per_s: between neighbouring sockets of a machine, each way.
        intra_latency_s: between them.
        inter_bandwidth_bytes_per_s: out of a machine and into it, shared by its sockets.
        inter_latency_s: between machines.

    Raises:
        ValueError: a figure is out of range.
    """

    ranks_per_machine: int
    flops_per_s: float
    memory_bytes: float
    memory_bandwidth_bytes_per_s: float
    intra_bandwidth_bytes_per_s: float
    intra_latency_s: float
    inter_bandwidth_bytes_per_s: float = 12.5e9
    inter_latency_s: float = 2e-6

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_count(ranks_per_machine=self.ranks_per_machine)
        positive = (
            "flops_per_s memory_bytes memory_bandwidth_bytes_per_s intra_bandwidth_bytes_per_s "
            "inter_bandwidth_bytes_per_s"
        )
        require(self, positive, "finite and > 0", lambda value: value > 0)
        require(self, "intra_latency_s inter_latency_s", "finite and >= 0", lambda value: value >= 0)


def cluster_of(
    topology: Topology, inter_bandwidth_bytes_per_s: float = 12.5e9, inter_latency_s: float = 2e-6
) -> Cluster:
    """Machines of that topology; its least socket and slowest link stand for all.

    Nodes without cores are left out. A machine of one node has no links: its own memory stands for them.

    Args:
        topology: one machine.
        inter_bandwidth_bytes_per_s: out of a machine; 100 Gbit/s by default.
        inter_latency_s: between machines; 2 us by default, of the order of InfiniBand and a switch.
    """
    nodes = np.flatnonzero(topology.cores)
    source, target = topology.links.T
    pairs = topology.bandwidth_bytes_per_s[target, source]
    own = topology.bandwidth_bytes_per_s[nodes, nodes]
    return Cluster(
        ranks_per_machine=len(nodes),
        flops_per_s=float((topology.cores * topology.flops_per_s)[nodes].min()),
        memory_bytes=float(topology.memory_bytes[nodes].min()),
        memory_bandwidth_bytes_per_s=float(own.min()),
        intra_bandwidth_bytes_per_s=float(
            np.minimum(pairs, topology.link_bandwidth_bytes_per_s).min(initial=own.min())
        ),
        intra_latency_s=float(topology.latency_s[target, source].max(initial=topology.latency_s.min())),
        inter_bandwidth_bytes_per_s=inter_bandwidth_bytes_per_s,
        inter_latency_s=inter_latency_s,
    )


@dataclass(frozen=True, eq=False)
class Splits:
    """Ways to split ranks, shape (K,) each.

    Attributes:
        mp: ranks that share a layer.
        dp: replicas.
        pp: stages.
        micro_sequences: sequences of one micro-batch.
    """

    mp: IntArray
    dp: IntArray
    pp: IntArray
    micro_sequences: IntArray

    def micro_batches(self, training: Training) -> IntArray:
        """Micro-batches of a step and a replica, m."""
        return training.batch_sequences // (self.dp * self.micro_sequences)

    def block(self, cluster: Cluster) -> tuple[IntArray, IntArray, IntArray]:
        """How many ranks of an MP group, of a DP group and of neighbouring stages one machine holds."""
        room = np.minimum(cluster.ranks_per_machine, self.mp * self.dp * self.pp)
        mp = np.gcd(self.mp, room)
        dp = np.gcd(self.dp, room // mp)
        return mp, dp, np.gcd(self.pp, room // (mp * dp))


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by what they go to; numbers, or arrays of one shape.

    Attributes:
        compute_s: arithmetic, or memory where it is slower, recomputation included.
        mp_s: all-reduces within MP groups.
        pp_s: sends between stages.
        dp_s: what replicas exchange.
        bubble_s: stages waiting for the first micro-batch, and for the last.
        update_s: the optimiser.
    """

    compute_s: Any
    mp_s: Any
    pp_s: Any
    dp_s: Any
    bubble_s: Any
    update_s: Any

    @property
    def total_s(self) -> Any:
        """All of it."""
        return sum(vars(self).values())


@dataclass(frozen=True, eq=False)
class Collective:
    """All-reduces of K splits: each takes fixed_s and s_per_byte for each byte.

    Attributes:
        fixed_s: latencies, shape (K,).
        s_per_byte: the rest, shape (K,).
    """

    fixed_s: FloatArray
    s_per_byte: FloatArray

    def all_reduce_s(self, num_bytes: Any, times: Any = 1) -> Any:
        """Of so many bytes in all, in so many all-reduces."""
        return times * self.fixed_s + num_bytes * self.s_per_byte

    def half_s(self, num_bytes: Any, times: Any = 1) -> Any:
        """A reduce-scatter or an all-gather, either of which is half an all-reduce."""
        return self.all_reduce_s(num_bytes, times) / 2


def collective(cluster: Cluster, ranks: IntArray, local: IntArray, sharing: IntArray) -> Collective:
    """All-reduces of groups of ranks, by `hierarchical_s`.

    Args:
        cluster: the machines.
        ranks: of each group, shape (K,).
        local: of them, those on one machine, which divide `ranks`, shape (K,).
        sharing: groups of one machine that use its network at once, shape (K,).
    """
    different, of_each = np.unique(np.stack([ranks, local, sharing]), axis=1, return_inverse=True)
    fixed_s, probe_s = np.empty((2, different.shape[1]))
    for index, (group, within, users) in enumerate(different.T.tolist()):
        groups = Groups(
            within,
            cluster.intra_bandwidth_bytes_per_s,
            cluster.inter_bandwidth_bytes_per_s / users,
            cluster.intra_latency_s,
            cluster.inter_latency_s,
            num_groups=group // within,
        )
        fixed_s[index], probe_s[index] = hierarchical_s(groups, 0.0), hierarchical_s(groups, PROBE_BYTES)
    of_each = of_each.ravel()
    return Collective(fixed_s[of_each], ((probe_s - fixed_s) / PROBE_BYTES)[of_each])


def step_time(
    training: Training, cluster: Cluster, splits: Splits, sharding: Sharding, recompute: Recompute
) -> StepTime:
    """Seconds of a step.

    All ranks of a machine use its network at once, and divide it. The stage with the embedding sets the pace.

    Args:
        training: what is trained.
        cluster: the machines.
        splits: of the ranks; each must divide heads, layers and batch.
        sharding: what replicas share.
        recompute: what is computed again.
    """
    block_mp, block_dp, block_pp = splits.block(cluster)
    within_mp = collective(cluster, splits.mp, block_mp, block_dp * block_pp)
    within_dp = collective(cluster, splits.dp, block_dp, block_mp * block_pp)
    micro_batches = splits.micro_batches(training)
    compute_s = micro_batch_compute_s(training, cluster, splits, recompute)

    message = splits.micro_sequences * (
        training.sequence_tokens * training.model.width * training.sizes.activation_bytes
    )
    reduces = (BOTH_WAYS + (recompute is Recompute.FULL)) * ALL_REDUCES * (training.model.layers // splits.pp)
    mp_s = within_mp.all_reduce_s(message * reduces, reduces)
    pp_s = np.where(splits.pp > 1, BOTH_WAYS * stage_send_s(cluster, splits, message / splits.mp), 0.0)
    each_s, once_s = replica_exchange_s(training, splits, within_dp, sharding)

    bubbles = _of_each_pair(bubble_over_ideal, splits.pp, micro_batches)
    return StepTime(
        compute_s=micro_batches * compute_s,
        mp_s=micro_batches * mp_s,
        pp_s=micro_batches * pp_s,
        dp_s=micro_batches * each_s + once_s,
        bubble_s=bubbles * micro_batches * (compute_s + mp_s + pp_s + each_s),
        update_s=update_s(training, cluster, splits, sharding),
    )


def held_parameters(training: Training, splits: Splits) -> FloatArray:
    """Parameters that a rank of the stage with the embedding works with, shape (K,)."""
    in_layers = training.layer_parameters * (training.model.layers // splits.pp)
    return np.asarray((in_layers + training.embedding_parameters) / splits.mp)


def micro_batch_compute_s(training: Training, cluster: Cluster, splits: Splits, recompute: Recompute) -> FloatArray:
    """Seconds of arithmetic of a stage on one micro-batch, both ways, or of reading weights where that is slower.

    Each pass reads the weights once; the backward pass adds to the gradients, which are read and written.
    """
    model, sizes = training.model, training.sizes
    tokens = splits.micro_sequences * float(training.sequence_tokens)
    pairs = splits.micro_sequences * float(attended_pairs(training.sequence_tokens, training.sequence_tokens))
    again = float(recompute is Recompute.FULL)
    layer_flops = (1 + BACKWARD_OVER_FORWARD + again) * model.layer_forward_flops(tokens, pairs)
    if recompute is Recompute.ATTENTION:
        layer_flops = layer_flops + attention_flops_per_pair(1, model.heads, model.key_dim) * pairs
    logits_flops = (1 + BACKWARD_OVER_FORWARD) * 2 * training.embedding_parameters * tokens
    flops = (layer_flops * (model.layers // splits.pp) + logits_flops) / splits.mp
    traffic = (1 + 1 + again) * sizes.parameter_bytes + 2 * sizes.gradient_bytes
    num_bytes = held_parameters(training, splits) * traffic
    return service_s(flops, num_bytes, 0.0, 0.0, cluster.flops_per_s, 1.0 / cluster.memory_bandwidth_bytes_per_s)


def stage_send_s(cluster: Cluster, splits: Splits, num_bytes: Any) -> FloatArray:
    """Seconds to send so many bytes to a neighbouring stage, shape (K,): over the network where any stage must.

    There the MP and DP ranks of the stage at the machine's edge send at once.
    """
    block_mp, block_dp, block_pp = splits.block(cluster)
    crosses = splits.pp > block_pp
    network = block_mp * block_dp / cluster.inter_bandwidth_bytes_per_s
    s_per_byte = np.where(crosses, network, 1.0 / cluster.intra_bandwidth_bytes_per_s)
    latency_s = np.where(crosses, cluster.inter_latency_s, cluster.intra_latency_s)
    return np.asarray(transfer_s(num_bytes, s_per_byte, latency_s))


def replica_exchange_s(
    training: Training, splits: Splits, within_dp: Collective, sharding: Sharding
) -> tuple[FloatArray, FloatArray]:
    """Seconds that replicas exchange at each micro-batch, and once in a step [4].

    Without sharding gradients are all-reduced once. A sharded optimiser gets its part of the gradients and gives out
    its part of the parameters: as many bytes. Sharded gradients are reduced at each micro-batch, layer by layer, as no
    rank has room to add them up; sharded parameters are gathered for each forward and each backward pass.
    """
    held, layers = held_parameters(training, splits), training.model.layers // splits.pp
    gradients, parameters = held * training.sizes.gradient_bytes, held * training.sizes.parameter_bytes
    nothing = np.zeros(len(held))
    if sharding is Sharding.NONE:
        return nothing, within_dp.all_reduce_s(gradients)
    if sharding is Sharding.OPTIMISER:
        return nothing, within_dp.half_s(gradients + parameters, 2)
    if sharding is Sharding.GRADIENTS:
        return within_dp.half_s(gradients, layers), within_dp.half_s(parameters)
    return within_dp.half_s(gradients + BOTH_WAYS * parameters, (1 + BOTH_WAYS) * layers), nothing


def update_s(training: Training, cluster: Cluster, splits: Splits, sharding: Sharding) -> FloatArray:
    """Seconds of the optimiser: it reads gradients, and reads and writes its state and the parameters."""
    sizes = training.sizes
    replicas = splits.dp if sharding.reaches(Sharding.OPTIMISER) else 1
    per_parameter = sizes.gradient_bytes + 2 * (sizes.optimiser_bytes + sizes.parameter_bytes)
    own = held_parameters(training, splits) / replicas
    return np.asarray(own * per_parameter / cluster.memory_bandwidth_bytes_per_s)


def _of_each_pair(closed_form: Any, num_stages: IntArray, num_micro_batches: IntArray) -> FloatArray:
    """A closed form of 1F1B for each pair of numbers, computed once for each that is different."""
    different, of_each = np.unique(np.stack([num_stages, num_micro_batches]), axis=1, return_inverse=True)
    values = [closed_form(ONE_F_ONE_B, stages, batches) for stages, batches in different.T.tolist()]
    return np.array(values, np.float64)[of_each.ravel()]

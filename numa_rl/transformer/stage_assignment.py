"""Which layers of a model each stage of a pipeline holds, and on which node of a machine it runs.

    argmin T_compute_max + T_comm_total    [1]

A stage is a run of neighbouring layers, has a node for itself, and works with all the node's cores. Both times are of
one micro-batch, forward and backward: T_compute_max of the slowest stage, which is the pace of the pipeline, and
T_comm_total of all the messages on the way, each T_transfer = S / B + L between the nodes of two neighbouring stages,
with the activations there and with the gradients back. `stage_search.py` finds the best assignment.

**Memory limit.** A stage's parameters, with all that training keeps of them, and its activations, of as many
micro-batches as the schedule keeps at its place, must fit its node's memory.

**Bandwidth limit.** What one micro-batch sends over a link, at all borders between stages whose route takes it, must
pass in a given time, `link_s`: at most the link's capacity times `link_s`. By default that is the least T_compute_max
that memory allows. No stage is faster than the slowest of any assignment, so no link ever holds up the pipeline.

Dimension key: n layers, K stages, N nodes, L directed links.

References:
    [1] The chapter, section 16.3.4.
    [2] D. Narayanan et al., "PipeDream: generalized pipeline parallelism for DNN training", SOSP 2019: stages by
        dynamic programming over layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from numa_rl.communication.collectives import require_count
from numa_rl.communication.transfers import transfer_s
from numa_rl.topology import FloatArray, IntArray, Topology
from numa_rl.transformer.kv_cache import attended_pairs
from numa_rl.transformer.memory_plan import Recompute, Training, kept_activation_bytes
from numa_rl.transformer.model import BACKWARD_OVER_FORWARD

# Micro-batches whose activations each stage keeps, shape (K,), by the number of stages K: `peak_activations`.
Live = Callable[[int], npt.ArrayLike]


@dataclass(frozen=True, eq=False)
class Layers:
    """What each layer takes, for one micro-batch.

    Attributes:
        forward_flops: arithmetic of the forward pass, shape (n,).
        backward_flops: of the backward pass, shape (n,).
        parameter_bytes: its parameters and what training keeps with them, gradients and optimiser, shape (n,).
        activation_bytes: what it keeps of a micro-batch from its forward to its backward pass, shape (n,).
        border_bytes: activations it hands to the layer after it, as many as the gradients that come back,
            shape (n - 1,).

    Raises:
        ValueError: no layer, shapes that differ, or a figure that is negative or not finite.
    """

    forward_flops: FloatArray
    backward_flops: FloatArray
    parameter_bytes: FloatArray
    activation_bytes: FloatArray
    border_bytes: FloatArray

    def __post_init__(self) -> None:
        """Convert and freeze the arrays; check shapes and ranges."""
        n = np.size(self.forward_flops)
        if n == 0:
            raise ValueError("a model must have at least one layer, got none.")
        for item in fields(self):
            name = item.name
            array = np.array(getattr(self, name), np.float64)
            shape = (n - 1,) if name == "border_bytes" else (n,)
            if array.shape != shape:
                raise ValueError(f"{name} must have shape {shape} for {n} layers, got {array.shape}.")
            bad = ~(np.isfinite(array) & (array >= 0))
            if bad.any():
                raise ValueError(f"{name}[{bad.argmax()}] must be finite and >= 0, got {array[bad.argmax()]}.")
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        """Number of layers n."""
        return len(self.forward_flops)

    @property
    def flops(self) -> FloatArray:
        """Arithmetic, forward and backward, shape (n,)."""
        return self.forward_flops + self.backward_flops


def transformer_layers(training: Training, sequences: int, recompute: Recompute = Recompute.FULL) -> Layers:
    """The layers of a transformer in training.

    The embedding belongs to the first layer, where it is looked up; the last layer multiplies by it, and so holds it
    too where it is another one.

    Args:
        training: what is trained.
        sequences: of a micro-batch.
        recompute: what the backward pass computes again instead of keeping it.

    Raises:
        ValueError: `sequences` is not a whole number of at least 1.
    """
    require_count(sequences=sequences)
    model, sizes, n = training.model, training.sizes, training.model.layers
    tokens = sequences * training.sequence_tokens
    pairs = sequences * attended_pairs(training.sequence_tokens, training.sequence_tokens)
    again = {
        Recompute.NONE: 0.0,
        Recompute.ATTENTION: model.layer_forward_flops(0.0, pairs),
        Recompute.FULL: model.layer_forward_flops(tokens, pairs),
    }
    forward_flops = np.full(n, model.layer_forward_flops(tokens, pairs), np.float64)
    forward_flops[-1] += 2.0 * training.embedding_parameters * tokens
    parameters = np.full(n, training.layer_parameters)
    for layer in {0, n - 1}:
        parameters[layer] += training.embedding_parameters
    return Layers(
        forward_flops=forward_flops,
        backward_flops=BACKWARD_OVER_FORWARD * forward_flops + again[recompute],
        parameter_bytes=parameters * (sizes.parameter_bytes + sizes.gradient_bytes + sizes.optimiser_bytes),
        activation_bytes=np.full(n, kept_activation_bytes(training, sequences, recompute)),
        border_bytes=np.full(n - 1, tokens * model.width * sizes.activation_bytes),
    )


@dataclass(frozen=True, eq=False)
class StageAssignment:
    """Stages, their nodes, and what that takes for one micro-batch.

    A stage holds one run of layers, or v of them in an interleaved pipeline: piece k of the model belongs to stage
    k mod K.

    Attributes:
        bounds: piece k holds layers bounds[k] to bounds[k + 1] - 1, shape (K v + 1,).
        nodes: of each stage, shape (K,).
        compute_s: each stage's arithmetic on all cores of its node, shape (K,).
        memory_bytes: what each stage keeps, shape (K,).
        comm_s: messages there and back between each piece and the next, shape (K v - 1,).
        link_bytes: what is sent over each link, shape (L,).
    """

    bounds: IntArray
    nodes: IntArray
    compute_s: FloatArray
    memory_bytes: FloatArray
    comm_s: FloatArray
    link_bytes: FloatArray

    @property
    def num_stages(self) -> int:
        """Number of stages K."""
        return len(self.nodes)

    @property
    def compute_max_s(self) -> float:
        """T_compute_max: the pace of the pipeline."""
        return float(self.compute_s.max())

    @property
    def comm_total_s(self) -> float:
        """T_comm_total."""
        return float(self.comm_s.sum())

    @property
    def cost_s(self) -> float:
        """T_compute_max + T_comm_total [1]."""
        return self.compute_max_s + self.comm_total_s


def assignment_costs(
    topology: Topology, layers: Layers, bounds: npt.ArrayLike, nodes: npt.ArrayLike, live: npt.ArrayLike
) -> StageAssignment:
    """What given stages on given nodes take.

    Args:
        topology: the machine.
        layers: of the model.
        bounds: first layer of each piece, and n at the end, shape (K v + 1,).
        nodes: of each stage, all different and with cores, shape (K,).
        live: micro-batches whose activations each stage keeps, in activations of all its pieces, shape (K,).

    Raises:
        ValueError: pieces that do not hold each layer once, a node without cores or with two stages.
    """
    edges, places = np.asarray(bounds, np.int64), np.asarray(nodes, np.int64)
    k, pieces = len(places), len(edges) - 1
    rises = pieces >= 1 and edges[0] == 0 and edges[-1] == len(layers) and (np.diff(edges) >= 1).all()
    if not (rises and k and pieces % k == 0):
        raise ValueError(
            f"bounds must rise from 0 to {len(layers)}, the layers, with as many pieces for each of {k} nodes, got "
            f"{edges.tolist()}."
        )
    known = np.flatnonzero(topology.cores)
    if len(set(places.tolist())) < k or not np.isin(places, known).all():
        raise ValueError(f"nodes must be different ones with cores, of {known.tolist()}, got {places.tolist()}.")
    of_piece = places[np.arange(pieces) % k]
    borders, before, after = edges[1:-1] - 1, of_piece[:-1], of_piece[1:]

    def of_stages(of_layers: FloatArray) -> FloatArray:
        return np.asarray(stage_sums(of_layers)[edges[:-1], edges[1:]].reshape(-1, k).sum(axis=0))

    return StageAssignment(
        bounds=edges,
        nodes=places,
        compute_s=of_stages(layers.flops) / node_flops_per_s(topology)[places],
        memory_bytes=of_stages(layers.parameter_bytes) + np.asarray(live) * of_stages(layers.activation_bytes),
        comm_s=np.where(before == after, 0.0, border_s(topology, layers.border_bytes)[borders, before, after]),
        link_bytes=layers.border_bytes[borders] @ border_links(topology)[before, after],
    )


def node_flops_per_s(topology: Topology) -> FloatArray:
    """What all cores of each node compute together, shape (N,)."""
    return np.asarray(topology.cores * topology.flops_per_s)


def stage_sums(of_layers: FloatArray) -> FloatArray:
    """Sum over the layers i to j - 1 at [i, j], shape (n + 1, n + 1); of use where i < j."""
    before = np.concatenate([[0.0], np.cumsum(of_layers)])
    return np.asarray(before[None, :] - before[:, None])


def border_s(topology: Topology, border_bytes: FloatArray) -> FloatArray:
    """Seconds of the messages between a stage on node a and the next on node b, shape (n - 1, N, N) at [border, a, b].

    The next stage reads activations from a, and the one before reads gradients from b.
    """
    size = border_bytes[:, None, None]
    read_s = transfer_s(size, 1.0 / topology.bandwidth_bytes_per_s, topology.latency_s)  # [border, reader, source]
    return np.asarray(read_s + read_s.transpose(0, 2, 1))


def border_links(topology: Topology) -> IntArray:
    """How often a border's bytes pass each link, of a stage on node a and the next on b, shape (N, N, L) at [a, b]."""
    reads, _ = topology.route_links
    by_reader = reads.reshape(topology.num_nodes, topology.num_nodes, topology.num_links)
    return np.asarray(by_reader + by_reader.transpose(1, 0, 2))


def least_memory_bytes(layers: Layers, live: npt.ArrayLike) -> float:
    """Memory that each of K equal nodes needs at least, for as many stages as `live` is long.

    By dynamic programming over stages: the least, over where the last stage begins, of the larger of what it and what
    those before it need.
    """
    parameters, activations = stage_sums(layers.parameter_bytes), stage_sums(layers.activation_bytes)
    holds = np.triu(np.ones_like(parameters, bool), 1)
    least = np.where(np.arange(len(layers) + 1) == 0, 0.0, np.inf)
    for kept in np.asarray(live, np.float64):
        stage = np.where(holds, parameters + kept * activations, np.inf)
        least = np.maximum(least[:, None], stage).min(axis=0)
    return float(least[-1])


def stages_fit(layers: Layers, live: npt.ArrayLike, memory_bytes: float) -> bool:
    """Whether K equal nodes of so much memory hold the stages, as many as `live` is long.

    Each stage takes as many layers as fit it, but one is left for each stage after it: what ends further has less left
    to place, and part of what fits fits.
    """
    parameters, activations = (
        np.append(0.0, np.cumsum(size)) for size in (layers.parameter_bytes, layers.activation_bytes)
    )
    end, kept_by = 0, np.asarray(live, np.float64)
    for stage, kept in enumerate(kept_by):
        needs = parameters - parameters[end] + kept * (activations - activations[end])
        most = len(layers) - (len(kept_by) - 1 - stage)
        reached = min(int(np.searchsorted(needs, memory_bytes, side="right")) - 1, most)
        if reached <= end:
            return False
        end = reached
    return end == len(layers)

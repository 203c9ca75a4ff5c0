"""Playing sequences that decode over their KV cache on a machine, in the program's own layout or by a rule.

Dimension key: E episodes, N nodes, S sockets of the program, T tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from agents.evaluation import decisions
from agents.rules.catalog import make_rule
from agents.tuning import default_parameters
from envs.observation import ObservationKind, Observer
from envs.reward import RewardWeights
from numa_rl.metrics import imbalance
from numa_rl.simulator.simulator import Simulator
from numa_rl.simulator.state import SPLIT, Outcome
from numa_rl.topology import FloatArray, IntArray, Topology
from numa_rl.workloads.kv_decode import KVDecode


@dataclass(frozen=True, eq=False)
class Played:
    """What decoding took, means over episodes and for one token of one sequence unless said otherwise.

    Attributes:
        remote_bytes: moved between nodes.
        local_bytes: moved within nodes.
        token_s: from when decoding may begin to its end, for each token that every sequence decodes one after another.
        tokens_per_s: of all sequences together.
        cache_bytes: on each node at the end, shape (N,), pages not full and reservations included.
        redirected: objects that went to another node than asked for, which had no room, in all.
    """

    remote_bytes: float
    local_bytes: float
    token_s: float
    tokens_per_s: float
    cache_bytes: FloatArray
    redirected: int

    @property
    def cache_imbalance(self) -> float:
        """Sigma / mu of the cache's bytes over nodes."""
        return float(imbalance(self.cache_bytes))

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self) | {"cache_bytes": self.cache_bytes.tolist(), "cache_imbalance": self.cache_imbalance}


def play(
    family: KVDecode,
    topology: Topology,
    nodes: IntArray,
    *,
    window_s: float,
    episodes: int,
    seed: int,
    rule: str | None,
) -> Played:
    """Decode on a machine.

    Args:
        family: what.
        topology: the machine.
        nodes: the machine's node for each socket of the program, shape (S,).
        window_s: tau, the time over which traffic is remembered.
        episodes: how many.
        seed: of the episodes.
        rule: who places tasks and data; the program itself where None.

    Raises:
        ValueError: there is no such rule, or no node had room for an object.
    """
    workload = family.generate(np.random.default_rng(seed), episodes)
    simulator = Simulator(topology, workload, episodes, window_s=window_s)
    simulator.reset(np.arange(episodes))
    outcomes = _by_program(simulator, nodes[family.placement]) if rule is None else _by_rule(simulator, rule, window_s)
    remote, local, redirected = 0.0, 0.0, 0
    for decodes, outcome in zip(family.decodes, outcomes, strict=True):
        if decodes:
            remote += float(outcome.remote_bytes.mean())
            local += float(outcome.local_bytes.mean())
        redirected += int(outcome.fell_back.sum())
        if outcome.out_of_memory.any():
            raise ValueError(f"no node of {topology.name} has room for all weights and caches.")
    sequences = family.groups * family.group_sequences
    token_s = float((simulator.totals.last_finish_s - workload.arrival_s[:, -1]).mean()) / family.steps
    return Played(
        remote_bytes=remote / (sequences * family.steps),
        local_bytes=local / (sequences * family.steps),
        token_s=token_s,
        tokens_per_s=sequences / token_s,
        cache_bytes=held_bytes(simulator, family.cache_objects).mean(axis=0),
        redirected=redirected,
    )


def _by_program(simulator: Simulator, placement: IntArray) -> Iterator[Outcome]:
    """Every task where the program puts it."""
    for action in placement:
        yield simulator.step(np.tile(action, (simulator.num_rows, 1)))


def _by_rule(simulator: Simulator, rule: str, window_s: float) -> Iterator[Outcome]:
    """Every task where a rule with its default parameters puts it; its unit of time is the window."""
    weights = RewardWeights(reference_s=window_s)
    scheduler = make_rule(rule, **default_parameters(rule, weights, simulator.topologies))
    return decisions(scheduler, simulator, Observer(simulator, weights, ObservationKind.FULL))


def held_bytes(simulator: Simulator, objects: range) -> FloatArray:
    """Bytes of some live objects on each node, every copy counted, shape (E, N)."""
    rows, n = simulator.num_rows, simulator.num_nodes
    chosen = simulator.state.objects[:, objects.start : objects.stop]
    weights = simulator.state.page_weights.reshape(rows, -1, n)[:, objects.start : objects.stop].astype(np.float64)
    form, there = chosen["form"], chosen["node"] >= 0
    on = np.eye(n)[np.maximum(chosen["node"], 0)]
    total = np.maximum(weights.sum(axis=-1, keepdims=True), 1.0)
    share = np.where((form == SPLIT)[..., None], weights / total, np.where((form > 1)[..., None], weights > 0, on))
    return np.asarray((share * (chosen["bytes"] * there)[..., None]).sum(axis=1), np.float64)

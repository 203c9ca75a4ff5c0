"""What training a model takes, and on what it may be done: what `numa-rl plan` prints and writes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from numa_rl.transformer.memory_plan import Memory, Recompute, Sharding, Training, whole_memory
from numa_rl.transformer.parallel_plan import MOST_RANKS, Choices, Plan, evaluate
from numa_rl.transformer.step_time import Cluster

AGAIN = {
    Recompute.NONE: "nothing recomputed",
    Recompute.ATTENTION: "scores recomputed",
    Recompute.FULL: "layers recomputed",
}
RING_SHARE = 4  # a ring of keys and values of a quarter of the sequence, where none is asked for


@dataclass(frozen=True)
class Outlook:
    """What training takes, and on what it may be done.

    Attributes:
        training: what is trained.
        cluster: the sockets.
        sockets: how many there are.
        held_sequences: whose activations are in `whole`.
        recompute: what is computed again there.
        whole: each part once.
        variants: the same by name with one option changed.
        plans: the best of each MP x DP x PP, best first; none if no number of ranks would do.
        given: the split asked for.
        enough_ranks: on which a plan fits; None if no number tried would do.
        other_ranks: a number not tried on which one does, where none of those tried would do; None if there is none.
        shared: the split asked for, or else the best, by what replicas share.
    """

    training: Training
    cluster: Cluster
    sockets: int
    held_sequences: int
    recompute: Recompute
    whole: Memory
    variants: dict[str, Memory]
    plans: list[Plan]
    given: tuple[int, int, int] | None
    enough_ranks: int | None
    other_ranks: int | None = None
    shared: tuple[Plan, ...] = field(default=())

    @property
    def room_bytes(self) -> float:
        """Of all sockets there are."""
        return self.sockets * self.cluster.memory_bytes

    @property
    def fits(self) -> bool:
        """Whether they hold each part once."""
        return bool(self.whole.total <= self.room_bytes)

    def needed_sockets(self, num_bytes: float) -> int:
        """How many hold so many bytes, if these can be cut anywhere."""
        return math.ceil(num_bytes / self.cluster.memory_bytes)

    @property
    def given_place(self) -> int | None:
        """Where the split asked for stands among the plans, from 0; None if none was."""
        degrees = [(plan.mp, plan.dp, plan.pp) for plan in self.plans]
        return None if self.given is None else degrees.index(self.given)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        training, model = self.training, self.training.model
        return {
            "parameters": training.num_parameters,
            "shape": {**vars(model), "parameters": model.parameters},
            "sequence_tokens": training.sequence_tokens,
            "batch_sequences": training.batch_sequences,
            "held_sequences": self.held_sequences,
            "recompute": self.recompute.value,
            "kv_sequences": training.kv_sequences,
            "kv_window_tokens": training.kv_window_tokens,
            "sizes": vars(training.sizes),
            "cluster": vars(self.cluster),
            "sockets": self.sockets,
            "fits": self.fits,
            "needed_sockets": self.needed_sockets(self.whole.total),
            "whole_bytes": _parts(self.whole),
            "options": [
                {"option": name, "bytes": memory.total, "sockets": self.needed_sockets(memory.total)}
                for name, memory in self.variants.items()
            ],
            "shared": [plan_dict(plan) for plan in self.shared],
            "enough_ranks": self.enough_ranks,
            "other_ranks": self.other_ranks,
            "given_place": None if self.given_place is None else self.given_place + 1,
            "plans": [plan_dict(plan) for plan in self.plans],
            "most_ranks": MOST_RANKS,
        }


def plan_dict(plan: Plan) -> dict[str, Any]:
    """A plan as JSON values."""
    return {
        **{name: getattr(plan, name) for name in ("mp", "dp", "pp", "ranks", "micro_sequences", "micro_batches")},
        "sharding": plan.sharding.value,
        "recompute": plan.recompute.value,
        "block_of_a_machine": list(plan.block),
        "fits": plan.fits,
        "step_s": plan.time.total_s,
        "time_s": vars(plan.time),
        "rank_bytes": _parts(plan.memory),
    }


def _parts(memory: Memory) -> dict[str, float]:
    return {**vars(memory), "total": memory.total}


def variants(training: Training, held_sequences: int, recompute: Recompute) -> dict[str, Memory]:
    """The whole with one option changed each time, by what is changed."""
    sizes = training.sizes
    found = {AGAIN[other]: (training, other) for other in Recompute if other is not recompute}
    if training.kv_sequences:
        window = training.kv_window_tokens
        ring = None if window else max(training.sequence_tokens // RING_SHARE, 1)
        name = "all keys and values" if ring is None else f"keys and values of {ring} tokens (ring)"
        found[name] = dataclasses.replace(training, kv_window_tokens=ring), recompute
        found["no KV cache"] = dataclasses.replace(training, kv_sequences=0), recompute
    for name, size, other in (
        ("parameters of 1 byte", "parameter_bytes", 1.0),
        ("gradients of 4 bytes", "gradient_bytes", 4.0),
        ("optimiser of 2 bytes (8-bit moments)", "optimiser_bytes", 2.0),
        ("optimiser of 12 bytes (master copy)", "optimiser_bytes", 12.0),
        ("keys and values of 1 byte", "kv_bytes", 1.0),
    ):
        if getattr(sizes, size) != other and (size != "kv_bytes" or training.kv_sequences):
            changed = dataclasses.replace(training, sizes=dataclasses.replace(sizes, **{size: other}))
            found[name] = changed, recompute
    return {name: whole_memory(changed, held_sequences, how) for name, (changed, how) in found.items()}


def shared_ways(
    training: Training, cluster: Cluster, choices: Choices, given: tuple[int, int, int] | None, best: Plan
) -> tuple[Plan, ...]:
    """The split asked for, or the best one, with all that replicas may share; the most is recomputed if asked for."""
    degrees = given or (best.mp, best.dp, best.pp)
    micro = (choices.micro_sequences or 1) if given else best.micro_sequences
    recompute = choices.recompute[-1] if given else best.recompute
    return tuple(
        evaluate(training, cluster, *degrees, micro_sequences=micro, sharding=sharding, recompute=recompute)
        for sharding in Sharding
    )

"""`numa-rl plan`: what training a model keeps in memory, what holds it, and the fastest split over so many sockets."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from experiments.amounts import count_text, parse_bytes, parse_count
from experiments.files import require_outputs, write_json
from experiments.plan_outlook import Outlook, shared_ways, variants
from experiments.plan_report import print_outlook
from numa_rl.communication.collectives import require_count
from numa_rl.machines.catalog import load_machine
from numa_rl.transformer.memory_plan import ElementSizes, Recompute, Sharding, Training, whole_memory
from numa_rl.transformer.model import Transformer
from numa_rl.transformer.parallel_plan import (
    Choices,
    fewest_ranks,
    proportioned,
    ranked_plans,
    require_split,
)
from numa_rl.transformer.step_time import Cluster, cluster_of
from numa_rl.workloads.parameters import require

PARAMS = "200T"  # the chapter's, exercise 6
SHAPE_TOLERANCE = 0.1  # of the parameters stated: biases, norms and a gate more or less are no contradiction


@dataclass(frozen=True)
class MemoryPlan:
    """Plan the memory of a model's training, say what holds it, and find the best MP x DP x PP.

    Amounts are plain numbers or such as 175B, 200T, 1TB, 512GiB. The defaults are the chapter's exercise 6.

    Attributes:
        params: parameters of the model, such as 175B; left out, those of the shape, or else the chapter's 200T.
        layers: the shape: layers; left out, one in the proportions of GPT-3 that has about --params.
        width: the shape: width of the model.
        heads: the shape: heads.
        kv_heads: heads that have keys and values of their own; left out, all.
        sequence_tokens: of a sequence.
        batch_sequences: of a step, over all replicas.
        micro_sequences: of a micro-batch; left out, the best.
        held_sequences: sequences whose activations wait at once for their backward pass, where no ranks are counted.
        kv_sequences: sequences whose keys and values are kept; a plain training step has 0.
        kv_window_tokens: of a sequence that a ring buffer of keys and values keeps; left out, all.
        recompute: what the backward pass may compute again; the last named is used where no ranks are counted.
        sharding: what replicas may hold parts of, instead of copies.
        parameter_bytes: of a parameter.
        gradient_bytes: of a gradient.
        optimiser_bytes: of the optimiser's state of a parameter; 12 with a master copy.
        activation_bytes: of an element of an activation.
        kv_bytes: of an element of a key or value.
        sockets: how many there are.
        memory_per_socket: of each, such as 1TB; left out, the machine's.
        machine: whose sockets they are (`machine list` prints names), or the path of its hwloc XML or JSON file.
        network_gb_per_s: out of a machine and into it, shared by its sockets.
        network_latency_us: between machines.
        mp: ranks that share each layer; with --dp and --pp, the split to look at.
        dp: replicas.
        pp: stages.
        ranks: to split over, a socket each; left out, MP x DP x PP, or the sockets if they are enough, or the first of
            twice, four times ... as many that is.
        best: plans to show.
        json: a file for everything, in SI units.
    """

    params: str | None = None
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    sequence_tokens: int = 2048
    batch_sequences: int = 1024
    micro_sequences: int | None = None
    held_sequences: int = 180
    kv_sequences: int = 45
    kv_window_tokens: int | None = None
    recompute: tuple[Literal["none", "attention", "full"], ...] = ("none", "attention", "full")
    sharding: tuple[Literal["none", "optimiser", "gradients", "parameters"], ...] = (
        "none",
        "optimiser",
        "gradients",
        "parameters",
    )
    parameter_bytes: float = 2.0
    gradient_bytes: float = 2.0
    optimiser_bytes: float = 8.0
    activation_bytes: float = 2.0
    kv_bytes: float = 2.0
    sockets: int = 8
    memory_per_socket: str | None = None
    machine: str = "chapter-8-socket"
    network_gb_per_s: float = 12.5
    network_latency_us: float = 2.0
    mp: int | None = None
    dp: int | None = None
    pp: int | None = None
    ranks: int | None = None
    best: int = 5
    json: Path | None = None

    def run(self) -> None:
        """Plan, and print it.

        Raises:
            ValueError: an option is wrong, no split divides the model, or the file cannot be written.
        """
        require_outputs({"--json": self.json}, {"--machine": Path(self.machine)})
        require_count(sockets=self.sockets, best=self.best)
        outlook = self.outlook()
        if self.json is not None:
            write_json(self.json, outlook.to_dict())
        print_outlook(outlook, Console(highlight=False), self.best)

    def outlook(self) -> Outlook:
        """Everything there is to say."""
        training, cluster, choices = self.training(), self.cluster(), self.choices()
        recompute = choices.recompute[-1]
        given = self._given(training, choices)
        asked = math.prod(given) if given else self.ranks
        enough = fewest_ranks(training, cluster, self.sockets if asked is None else asked, choices)
        ranks = enough if asked is None else asked
        plans = [] if ranks is None else ranked_plans(training, ranks, cluster, choices)
        return Outlook(
            training=training,
            cluster=cluster,
            sockets=self.sockets,
            held_sequences=self.held_sequences,
            recompute=recompute,
            whole=whole_memory(training, self.held_sequences, recompute),
            variants=variants(training, self.held_sequences, recompute),
            plans=plans,
            given=given,
            enough_ranks=enough,
            other_ranks=None if plans else fewest_ranks(training, cluster, _power_of_two(self.sockets), choices),
            shared=() if not plans else shared_ways(training, cluster, choices, given, plans[0]),
        )

    def training(self) -> Training:
        """What is trained."""
        return Training(
            *self._model(), self.sequence_tokens, self.batch_sequences, self.kv_sequences,
            self.kv_window_tokens,
            ElementSizes(
                self.parameter_bytes, self.gradient_bytes, self.optimiser_bytes, self.activation_bytes, self.kv_bytes
            ),
        )  # fmt: skip

    def cluster(self) -> Cluster:
        """What it is trained on."""
        require(self, "network_gb_per_s", "finite and > 0", lambda value: value > 0)
        require(self, "network_latency_us", "finite and >= 0", lambda value: value >= 0)
        cluster = cluster_of(load_machine(self.machine), self.network_gb_per_s * 1e9, self.network_latency_us * 1e-6)
        if self.memory_per_socket is None:
            return cluster
        return dataclasses.replace(cluster, memory_bytes=parse_bytes(self.memory_per_socket, "--memory-per-socket"))

    def choices(self) -> Choices:
        """What the search may choose."""
        return Choices(tuple(map(Sharding, self.sharding)), tuple(map(Recompute, self.recompute)), self.micro_sequences)

    def _model(self) -> tuple[Transformer, float]:
        """The shape, and how many parameters it is to have."""
        shape = {"--layers": self.layers, "--width": self.width, "--heads": self.heads}
        left_out = [option for option, value in shape.items() if value is None]
        if self.layers is None or self.width is None or self.heads is None:
            if len(left_out) < len(shape):
                raise ValueError(f"--layers, --width and --heads must be given together, got no {left_out[0]}.")
            count = parse_count(PARAMS if self.params is None else self.params, "--params")
            if self.kv_heads is not None:
                raise ValueError("--kv-heads must come with --layers, --width and --heads, got none of them.")
            return proportioned(count), count
        model = Transformer(self.layers, self.width, self.heads, self.kv_heads)
        count = model.parameters if self.params is None else parse_count(self.params, "--params")
        if abs(model.parameters / count - 1.0) > SHAPE_TOLERANCE:
            raise ValueError(
                f"--params must be about those of the shape ({count_text(model.parameters)}), got {count_text(count)}."
            )
        return model, float(count)

    def _given(self, training: Training, choices: Choices) -> tuple[int, int, int] | None:
        """MP, DP and PP where they are given."""
        if self.mp is None or self.dp is None or self.pp is None:
            if (self.mp, self.dp, self.pp) != (None, None, None):
                raise ValueError("--mp, --dp and --pp must be given together, got some of them.")
            return None
        require_split(training, self.mp, self.dp, self.pp, choices.micro_sequences or 1)
        ranks = self.mp * self.dp * self.pp
        if self.ranks not in (None, ranks):
            raise ValueError(f"--ranks must be MP x DP x PP ({ranks}) where these are given, got {self.ranks}.")
        return self.mp, self.dp, self.pp


def _power_of_two(number: int) -> int:
    """The largest up to that number: more models can be split over so many."""
    return 1 << (number.bit_length() - 1)

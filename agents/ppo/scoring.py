"""The placement network without torch: its numbers, laid out for the kernel of `agents.ppo.scoring_kernel`.

Dimension key: B rows, N nodes, H hidden width, P hidden width of pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from agents.ppo.config import PolicyConfig
from agents.ppo.scorer import NUM_NODE_FEATURES, NUM_PAIR_FEATURES, NUM_STATE_FEATURES, PairScorer
from agents.ppo.scoring_inputs import NUM_LOGS, Scratch
from agents.ppo.scoring_kernel import Weights, score_rows
from envs.observation import ObservationKind, ObservationLayout
from envs.observation_kernel import Float32, Offsets
from numa_rl.simulator.parallel import Chunks

I64 = npt.NDArray[np.int64]

NO_LOGITS = np.zeros((0, 0), np.float32)


@dataclass(frozen=True, eq=False)
class CompiledScorer:
    """What `PairScorer` decides, for machines of any size; later training of the scorer does not change it.

    One object serves one caller at a time: it works in arrays of its own.

    Attributes:
        weights: of the network.
        config: its configuration.
    """

    weights: Weights
    config: PolicyConfig
    _machines: dict[int, _Machine] = field(default_factory=dict, repr=False)

    @classmethod
    def from_scorer(cls, scorer: PairScorer) -> CompiledScorer:
        """The compiled form of a network.

        Raises:
            ValueError: the network has pieces that the kernel does not know, see `refusal`.
        """
        reason = refusal(scorer.config)
        if reason:
            raise ValueError(reason)
        return cls(_weights(scorer), scorer.config)

    def logits(self, rows: Float32) -> Float32:
        """Logits of all pairs, shape (B, N N), as `PairScorer.forward` gives them.

        Args:
            rows: full observations, shape (B, size).

        Raises:
            ValueError: the rows are no full observations of float32.
        """
        machine = self._machine(rows)
        logits = np.empty((len(rows), machine.layout.num_nodes**2), np.float32)
        pairs = np.empty(len(rows), np.int64)
        score_rows(_plain(rows), machine.offsets, self.weights, machine.scratch(0), pairs, logits, 0, len(rows))
        return logits

    def pairs(self, rows: Float32, num_threads: int = 1) -> I64:
        """The best pair (task node) N + (data node) of each row, shape (B,), as `best_pair` of the logits.

        Args:
            rows: full observations, shape (B, size).
            num_threads: threads that share the rows; they change no result.

        Raises:
            ValueError: the rows are no full observations of float32, or there are not as many threads.
        """
        machine, pairs, rows = self._machine(rows), np.empty(len(rows), np.int64), _plain(rows)
        if num_threads == 1:
            score_rows(rows, machine.offsets, self.weights, machine.scratch(0), pairs, NO_LOGITS, 0, len(rows))
            return pairs
        chunks = Chunks(len(rows), num_threads)
        scratch = [machine.scratch(chunk) for chunk in range(chunks.count)]
        chunks.run(
            lambda chunk, first, last: score_rows(
                rows, machine.offsets, self.weights, scratch[chunk], pairs, NO_LOGITS, first, last
            )
        )
        return pairs

    def _machine(self, rows: Float32) -> _Machine:
        """What the kernel needs to know of rows of this size."""
        if rows.ndim != 2 or rows.dtype != np.float32:
            raise ValueError(f"rows must be float32 of shape (B, size), got {rows.dtype} of shape {rows.shape}.")
        machine = self._machines.get(rows.shape[1])
        if machine is None:
            layout = ObservationLayout.of_size(rows.shape[1])
            if layout.kind != ObservationKind.FULL:
                raise ValueError(f"a policy reads the full observation, got the one of kind {layout.kind.value!r}.")
            machine = self._machines[rows.shape[1]] = _Machine(layout, self.config)
        return machine


def refusal(config: PolicyConfig) -> str:
    """Why the kernel cannot compute the network of a configuration; empty if it can."""
    for name, known in (("encoder", "equivariant"), ("heads", "joint")):
        value = getattr(config, name)
        if value != known:
            return f"the compiled form knows {name} {known!r} alone, got {value!r}."
    return ""


def allocate_scratch(layout: ObservationLayout, config: PolicyConfig) -> Scratch:
    """Working arrays of one thread for `score_row` on observations of this layout."""
    n, width, pair_width = layout.num_nodes, config.node_width, config.pair_width
    hidden = [(layout.slices[name].start, layout.slices[name].stop) for name in config.blind_to]
    pairs = np.zeros((NUM_PAIR_FEATURES, n * n), np.float32)
    pairs[NUM_LOGS + 1] = np.eye(n).ravel()
    return Scratch(
        logits=np.zeros(n * n, np.float32),
        row=np.zeros(layout.size if hidden else 0, np.float32),
        hidden=np.array(hidden, np.int64).reshape(-1, 2),
        pairs=pairs,
        features=np.zeros(n * NUM_NODE_FEATURES, np.float32),
        logs=np.zeros(n * NUM_NODE_FEATURES, np.float32),
        state=np.zeros(NUM_STATE_FEATURES, np.float32),
        nodes=np.zeros(2 * n * width, np.float32),
        machine=np.zeros(3 * width, np.float32),
        heads=np.zeros((n, 2 * pair_width), np.float32),
        columns=np.zeros((pair_width, n), np.float32),
        at_data=np.zeros((3, n), np.float32),
    )


class _Machine:
    """Rows of one size: where their groups lie, and working arrays by thread."""

    def __init__(self, layout: ObservationLayout, config: PolicyConfig) -> None:
        self.layout = layout
        self.offsets: Offsets = layout.offsets
        self._config = config
        self._scratch: list[Scratch] = []

    def scratch(self, thread: int) -> Scratch:
        """Working arrays of a thread."""
        while len(self._scratch) <= thread:
            self._scratch.append(allocate_scratch(self.layout, self._config))
        return self._scratch[thread]


def _plain(rows: Float32) -> Float32:
    """The rows as the kernel is compiled for: one after another, and not read-only."""
    return rows if rows.flags.c_contiguous and rows.flags.writeable else rows.copy()


def _weights(scorer: PairScorer) -> Weights:
    """The network's numbers as the kernel wants them."""
    config = scorer.config
    scale = float(scorer.log_scale.detach().exp()) if config.prior else 0.0
    rule = (config.congestion_price, config.crowding_price, config.migration_share, config.alpha)
    return Weights(
        encode=_numbers(scorer.encode.weight.T),
        encode_state=_numbers(scorer.encode_state.weight.T),
        encode_bias=_numbers(scorer.encode.bias),
        pool=_numbers(scorer.pool.weight.T),
        mix=_numbers(scorer.mix.weight.T),
        mix_bias=_numbers(scorer.pool.bias + scorer.mix.bias),
        heads=np.concatenate([_numbers(head.weight.T) for head in (scorer.as_task_node, scorer.as_data_node)], axis=1),
        heads_bias=np.concatenate([_numbers(scorer.as_task_node.bias), np.zeros(config.pair_width, np.float32)]),
        pair=np.concatenate([_numbers(scorer.pair.weight), _numbers(scorer.score.weight.T)], axis=1),
        price=np.concatenate([_numbers(scorer.price.weight.T), _numbers(scorer.price.bias)[None]]),
        prices=np.array([*rule, *_numbers(scorer.log_price), scale], np.float32),
    )


def _numbers(tensor: Tensor) -> Float32:
    """The numbers of a tensor, each row after the other."""
    return np.array(tensor.detach().cpu().numpy(), np.float32, order="C")

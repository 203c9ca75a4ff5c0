"""The best MP x DP x PP for a number of ranks: the fastest step of those that fit in memory.

Every way to write the number of ranks as MP x DP x PP is tried with every micro-batch, where MP divides the heads and
the inner width, PP the layers and DP the batch; and with every way to share among replicas and to compute again.
`memory_plan.py` says what fits and `step_time.py` what it takes.

References:
    [1] The chapter, exercise 6: MP 64 x DP 32 x PP 8.
    [2] D. Narayanan et al., "Efficient large-scale language model training on GPU clusters using Megatron-LM", SC
        2021, section 3: how the three work together.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from numa_rl.communication.collectives import require_count
from numa_rl.topology import FloatArray, IntArray
from numa_rl.transformer.divisors import divisors, nearest
from numa_rl.transformer.memory_plan import Memory, Recompute, Sharding, Training, rank_memory
from numa_rl.transformer.model import WIDTH_PER_LAYER, Transformer, transformer_of
from numa_rl.transformer.step_time import Cluster, Splits, StepTime, step_time

MOST_RANKS = 2**20


@dataclass(frozen=True)
class Choices:
    """What the search may choose besides MP, DP and PP.

    Attributes:
        sharding: what replicas may share.
        recompute: what may be computed again.
        micro_sequences: sequences of a micro-batch; None for any number.

    Raises:
        ValueError: nothing is left to choose from, or a micro-batch is out of range.
    """

    sharding: tuple[Sharding, ...] = tuple(Sharding)
    recompute: tuple[Recompute, ...] = tuple(Recompute)
    micro_sequences: int | None = None

    def __post_init__(self) -> None:
        """Check them."""
        for name in ("sharding", "recompute"):
            if not getattr(self, name):
                raise ValueError(f"{name} must have at least one choice, got none.")
        if self.micro_sequences is not None:
            require_count(micro_sequences=self.micro_sequences)


@dataclass(frozen=True)
class Plan:
    """A way to train on so many ranks, and what it takes.

    Attributes:
        mp: ranks that share each layer.
        dp: replicas.
        pp: stages.
        micro_sequences: sequences of a micro-batch.
        micro_batches: of a step and a replica.
        sharding: what replicas share.
        recompute: what is computed again.
        block: ranks of an MP group, of a DP group and of neighbouring stages on one machine.
        time: of a step.
        memory: of a rank.
        room_bytes: that a rank has.
    """

    mp: int
    dp: int
    pp: int
    micro_sequences: int
    micro_batches: int
    sharding: Sharding
    recompute: Recompute
    block: tuple[int, int, int]
    time: StepTime
    memory: Memory
    room_bytes: float

    @property
    def ranks(self) -> int:
        """How many."""
        return self.mp * self.dp * self.pp

    @property
    def fits(self) -> bool:
        """Whether a rank has room for what it holds."""
        return bool(self.memory.total <= self.room_bytes)


def proportioned(parameters: float) -> Transformer:
    """A transformer of about so many parameters whose heads and layers many numbers of ranks divide.

    `transformer_of` gives proportions. Heads become a multiple of the largest power of two up to an eighth of their
    number, layers of one up to a 32nd: of the two such numbers of heads the one that meets the count better.

    Raises:
        ValueError: fewer parameters than one layer of one head has.
    """
    near = transformer_of(parameters)
    head_step, layer_step = _power_of_two(near.heads / 8), _power_of_two(near.layers / 32)
    found = []
    for heads in {max(near.heads // head_step, 1) * head_step, (near.heads // head_step + 1) * head_step}:
        one_layer = Transformer(layers=1, width=heads * WIDTH_PER_LAYER, heads=heads)
        layers = max(round(parameters / one_layer.parameters / layer_step), 1) * layer_step
        found.append(Transformer(layers=layers, width=one_layer.width, heads=heads))
    return min(found, key=lambda model: (abs(model.parameters / parameters - 1.0), model.heads))


def evaluate(
    training: Training, cluster: Cluster, mp: int, dp: int, pp: int, *, micro_sequences: int = 1,
    sharding: Sharding = Sharding.OPTIMISER, recompute: Recompute = Recompute.FULL,
) -> Plan:  # fmt: skip
    """What a step takes and a rank keeps, for one way to split the ranks; it need not fit.

    Raises:
        ValueError: MP does not divide heads and inner width, PP layers, or DP and the micro-batch the batch.
    """
    require_split(training, mp, dp, pp, micro_sequences)
    splits = Splits(*(np.array([value], np.int64) for value in (mp, dp, pp, micro_sequences)))
    time = step_time(training, cluster, splits, sharding, recompute)
    memory = _rank_memory(training, splits, sharding, recompute)
    return Plan(
        mp, dp, pp, micro_sequences, int(splits.micro_batches(training)[0]), sharding, recompute,
        tuple(int(size[0]) for size in splits.block(cluster)),  # type: ignore[arg-type]
        StepTime(**{name: float(value[0]) for name, value in vars(time).items()}),
        Memory(**{name: float(np.ravel(value)[0]) for name, value in vars(memory).items()}),
        cluster.memory_bytes,
    )  # fmt: skip


def best_plan(training: Training, num_ranks: int, cluster: Cluster, choices: Choices | None = None) -> Plan:
    """The fastest plan that fits in memory; of equals the one that keeps least.

    Args:
        training: what is trained.
        num_ranks: on how many.
        cluster: the machines.
        choices: what else may be chosen; all when None.

    Raises:
        ValueError: no split divides heads, layers and batch, or none fits; the message says what would.
    """
    best = ranked_plans(training, num_ranks, cluster, choices, most=1)[0]
    if not best.fits:
        enough = fewest_ranks(training, cluster, num_ranks, choices)
        would = f"{enough} ranks would do" if enough else "2, 4, 8 ... times as many would not do either"
        raise ValueError(
            f"a rank must have room for its part of the model, of which {num_ranks} ranks leave it "
            f"{best.memory.total / 1e9:.4g} GB or more, got {cluster.memory_bytes / 1e9:.4g} GB; {would}."
        )
    return best


def ranked_plans(
    training: Training, num_ranks: int, cluster: Cluster, choices: Choices | None = None, most: int | None = None
) -> list[Plan]:
    """The best plan of each MP x DP x PP: those that fit, the fastest first, then the others, the smallest first.

    Args:
        training: what is trained.
        num_ranks: on how many.
        cluster: the machines.
        choices: what else may be chosen; all when None.
        most: how many to return; all when None.

    Raises:
        ValueError: no split divides heads, layers and batch.
    """
    choices = choices or Choices()
    splits = possible_splits(training, num_ranks, choices.micro_sequences)
    if not len(splits.mp):
        model, batch = training.model, training.batch_sequences
        raise ValueError(
            f"num_ranks must be MP x DP x PP where MP divides {model.heads} heads, DP a batch of {batch} sequences "
            f"and PP {model.layers} layers, got {num_ranks}."
        )
    options = list(product(choices.sharding, choices.recompute))
    taken = [_totals(training, cluster, splits, *option) for option in options]
    seconds, num_bytes = (np.concatenate([pair[row] for pair in taken]) for row in range(2))
    plans: dict[tuple[int, int, int], Plan] = {}
    for index in _order(seconds, num_bytes, num_bytes <= cluster.memory_bytes):
        sharding, recompute = options[index // len(splits.mp)]
        mp, dp, pp, micro = (int(values[index % len(splits.mp)]) for values in vars(splits).values())
        if (mp, dp, pp) not in plans:
            plans[mp, dp, pp] = evaluate(
                training, cluster, mp, dp, pp, micro_sequences=micro, sharding=sharding, recompute=recompute
            )
            if len(plans) == most:
                break
    return list(plans.values())


def fewest_ranks(
    training: Training, cluster: Cluster, num_ranks: int = 1, choices: Choices | None = None
) -> int | None:
    """The first of `num_ranks`, twice, four times ... as many on which a plan fits; None up to `MOST_RANKS`."""
    require_count(num_ranks=num_ranks)
    choices = choices or Choices()
    while num_ranks <= MOST_RANKS:
        splits = possible_splits(training, num_ranks, choices.micro_sequences)
        for sharding, recompute in product(choices.sharding, choices.recompute):
            total = _rank_memory(training, splits, sharding, recompute).total
            if np.any(total <= cluster.memory_bytes):
                return num_ranks
        num_ranks *= 2
    return None


def possible_splits(training: Training, num_ranks: int, micro_sequences: int | None = None) -> Splits:
    """Every MP x DP x PP of that many ranks with every micro-batch, where heads, layers and batch are divided.

    Raises:
        ValueError: `num_ranks` is no whole number in 1..MOST_RANKS, or `micro_sequences` does not divide the batch.
    """
    require_count(num_ranks=num_ranks)
    if num_ranks > MOST_RANKS:
        raise ValueError(f"num_ranks must be at most {MOST_RANKS}, got {num_ranks}.")
    if micro_sequences is not None:
        _require_divisor("micro_sequences", micro_sequences, training.batch_sequences, "the sequences of a step")
    model = training.model
    rows = [
        (mp, dp, pp, micro)
        for mp in divisors(num_ranks)
        if _shares_layer(model, mp)
        for pp in divisors(num_ranks // mp)
        if model.layers % pp == 0 and training.batch_sequences % (dp := num_ranks // (mp * pp)) == 0
        for micro in divisors(training.batch_sequences // dp)
        if micro_sequences in (None, micro)
    ]
    return Splits(*np.array(rows, np.int64).reshape(-1, 4).T)


def require_split(training: Training, mp: int, dp: int, pp: int, micro_sequences: int) -> None:
    """Raise ValueError naming the first degree that does not divide what it must, and the nearest that would."""
    require_count(mp=mp, dp=dp, pp=pp, micro_sequences=micro_sequences)
    model, batch = training.model, training.batch_sequences
    if not _shares_layer(model, mp):
        would = [value for value in divisors(model.heads) if _shares_layer(model, value)]
        keys = "" if model.num_kv_heads == model.heads else f", {model.num_kv_heads} heads of keys"
        of = f"heads ({model.heads}{keys}) and inner width ({model.inner_width})"
        raise ValueError(f"mp must divide {of}, got {mp}; {nearest(would, mp)} would do.")
    _require_divisor("dp", dp, batch, "the sequences of a step")
    _require_divisor("pp", pp, model.layers, "layers")
    _require_divisor("micro_sequences", micro_sequences, batch // dp, "the sequences of a replica")


def _require_divisor(name: str, value: int, whole: int, of: str) -> None:
    """Raise ValueError unless a number of things can be cut into so many, naming the nearest that would do."""
    if whole % value:
        raise ValueError(f"{name} must divide {of} ({whole}), got {value}; {nearest(divisors(whole), value)} would do.")


def _shares_layer(model: Transformer, mp: int) -> bool:
    """Whether so many ranks can share a layer; ranks may hold one head of keys together, each with its own heads."""
    keys = model.num_kv_heads % mp == 0 or mp % model.num_kv_heads == 0
    return model.heads % mp == 0 and model.inner_width % mp == 0 and keys


def _power_of_two(number: float) -> int:
    """The largest up to that number, 1 at least."""
    return 1 << max(int(number).bit_length() - 1, 0)


def _rank_memory(training: Training, splits: Splits, sharding: Sharding, recompute: Recompute) -> Memory:
    in_flight = np.minimum(splits.pp, splits.micro_batches(training))
    return rank_memory(
        training, splits.mp, splits.dp, splits.pp, in_flight, splits.micro_sequences, sharding, recompute
    )  # fmt: skip


def _totals(
    training: Training, cluster: Cluster, splits: Splits, sharding: Sharding, recompute: Recompute
) -> tuple[FloatArray, FloatArray]:
    """Seconds of a step and bytes of a rank, shape (K,) each."""
    seconds = step_time(training, cluster, splits, sharding, recompute).total_s
    return seconds, _rank_memory(training, splits, sharding, recompute).total


def _order(seconds: FloatArray, num_bytes: FloatArray, fits: npt.NDArray[np.bool_]) -> IntArray:
    """Those that fit, by time and then memory; then the others, by memory and then time."""
    first, second = np.where(fits, seconds, num_bytes), np.where(fits, num_bytes, seconds)
    return np.asarray(np.lexsort((second, first, ~fits)))

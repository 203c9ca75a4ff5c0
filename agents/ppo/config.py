"""How a run goes: the settings of the policy and of both phases of training.

The command line is made from these, so nothing here imports torch, which takes seconds.

References:
    [1] J. Schulman et al., "Proximal policy optimization algorithms", 2017.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

ENCODERS = ("equivariant", "attention", "flat")
HEADS = ("joint", "bilinear", "independent")
# What the network may be made blind to: groups of the observation but for those that say what may be chosen at all.
HIDEABLE = (
    *("memory", "communication", "queue", "task", "data", "inputs", "access", "last"),
    *("migration", "estimate", "congestion", "latency", "bandwidth"),
)


@dataclass(frozen=True)
class NetworkConfig:
    """The network, and which of its pieces to leave out, to see what they are worth.

    Attributes:
        node_width: H of the node encoder.
        pair_width: hidden width for pairs.
        prior_scale: how sharp the prior is: a placement that costs 1% more is exp(-prior_scale / 100) times as likely.
        prior: whether the policy starts from the priced greedy rule; without, from equal odds.
        blind_to: groups of the observation that the network sees as zeros; the prior is a use of them too.
        encoder: "equivariant" to the order of nodes; "attention", that with a layer of attention over nodes; or "flat":
            one perceptron over all numbers.
        heads: "joint" scores pairs; "bilinear" adds a product of task node and data node; "independent" scores these
            apart.

    Raises:
        ValueError: a width is below 1, or a value out of its range.
    """

    node_width: int = 32
    pair_width: int = 12
    prior_scale: float = 20.0
    prior: bool = True
    blind_to: tuple[str, ...] = ()
    encoder: Literal["equivariant", "attention", "flat"] = "equivariant"
    heads: Literal["joint", "bilinear", "independent"] = "joint"

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_ranges(self, (("node_width", 1, 4096), ("pair_width", 1, 4096), ("prior_scale", 1e-3, 1e6)))
        for group in self.blind_to:
            if group not in HIDEABLE:
                raise ValueError(f"policy: blind_to must be among {', '.join(HIDEABLE)}, got {group!r}.")
        for name, known in (("encoder", ENCODERS), ("heads", HEADS)):
            if getattr(self, name) not in known:
                raise ValueError(f"policy: {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        if self.encoder != "equivariant" and self.heads != "joint":
            raise ValueError(f"policy: heads must be joint where the encoder is {self.encoder}, got {self.heads!r}.")


@dataclass(frozen=True)
class PolicyConfig(NetworkConfig):
    """The network and the rule it starts from.

    Attributes:
        congestion_price: p1 of the prior, see `agents.rules.greedy.priced_cost`.
        crowding_price: p2.
        migration_share: p3.
        alpha: the reward's weight of T_comm.

    Raises:
        ValueError: as `NetworkConfig`, or a price is out of its range.
    """

    congestion_price: float = 1.0
    crowding_price: float = 1.5
    migration_share: float = 0.3
    alpha: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        prices = (("congestion_price", 0, 1e6), ("crowding_price", 0, 1e6), ("alpha", 0, 1e6))
        require_ranges(self, (*prices, ("migration_share", 0, 1)))


def as_json(config: NetworkConfig) -> dict[str, Any]:
    """A configuration as it is read back from JSON: with lists in place of tuples."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return values


def require_ranges(config: NetworkConfig, ranges: Iterable[tuple[str, float, float]]) -> None:
    """Raise ValueError for the first field that is not in its range, both ends included."""
    for name, low, high in ranges:
        value = getattr(config, name)
        if not low <= value <= high:
            raise ValueError(f"policy: {name} must be in {low}..{high:g}, got {value}.")


@dataclass(frozen=True)
class TeacherConfig:
    """How the teacher tries and teaches.

    Attributes:
        labels: how many states to label in all; 0 leaves the teacher out.
        labels_per_update: how many between two rounds of fitting.
        lessons: worlds that an update meets, where there are many; labels of one world are alike.
        drawn_share: share of these on machines drawn at random; the others are on the suite's own.
        held_out: whether the cells that the suite holds out are taught too, to see what it costs not to have seen them.
        num_rows: B, states labelled at once, where there is one world.
        num_candidates: K, placements tried in each state.
        num_random: how many of them are drawn from all open ones; the others are the likeliest by the policy as it
            stands. Without any, nothing would hold down the score of a placement that is never tried.
        depth: decisions followed after each candidate; about the time for which a placement is felt.
        discount: weight of each of these decisions' cost over that of the one before it: below 1, labels are less noisy
            and miss what lasts.
        own_discount: the same for tasks that use the candidate's own object: 1 counts all that it does to them, which
            tells the truth where objects live long, and takes many more labels.
        stride: decisions between labelled states of a row, so that labels differ.
        memory: updates whose labels are fitted again with the newest: a label costs far more than a gradient step.
        batch_size: labels in a gradient step.
        learning_rate: of Adam at the start; it falls linearly to a twentieth.
        averaging: share of the average of weights that an update leaves, where there are many worlds.
        near: how far from the best, in times the lowest priced cost, the policy must see a candidate for its error to
            count about a third: small where little is to be gained over the rule, and large where much is.
        num_threads: threads that try candidates, of several worlds at once where there are many; more or fewer change
            no result.

    Raises:
        ValueError: a count below 1, fewer than 2 candidates, or a rate that is not positive.
    """

    labels: int = 196_608
    labels_per_update: int = 8192
    lessons: int = 64
    drawn_share: float = 0.5
    held_out: bool = False
    num_rows: int = 256
    num_candidates: int = 6
    num_random: int = 2
    depth: int = 60
    discount: float = 1.0
    own_discount: float = 1.0
    stride: int = 4
    memory: int = 16
    batch_size: int = 1024
    learning_rate: float = 1e-3
    averaging: float = 0.9
    near: float = 0.3
    num_threads: int = 2

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.labels < 0:
            raise ValueError(f"teacher: labels must be >= 0, got {self.labels}.")
        counts = ("labels_per_update", "lessons", "num_rows", "depth", "stride", "memory", "batch_size", "num_threads")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"teacher: {name} must be >= 1, got {getattr(self, name)}.")
        if self.num_candidates < 2:
            raise ValueError(f"teacher: num_candidates must be >= 2, got {self.num_candidates}.")
        if not 0 <= self.num_random < self.num_candidates:
            raise ValueError(f"teacher: num_random must be in 0..{self.num_candidates - 1}, got {self.num_random}.")
        if not self.learning_rate > 0:
            raise ValueError(f"teacher: learning_rate must be > 0, got {self.learning_rate}.")
        if not 0.0 < self.near < float("inf"):
            raise ValueError(f"teacher: near must be finite and > 0, got {self.near}.")
        for name in ("discount", "own_discount"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"teacher: {name} must be in (0, 1], got {getattr(self, name)}.")
        if not 0.0 <= self.averaging < 1.0:
            raise ValueError(f"teacher: averaging must be in [0, 1), got {self.averaging}.")
        if not 0.0 <= self.drawn_share <= 1.0:
            raise ValueError(f"teacher: drawn_share must be in [0, 1], got {self.drawn_share}.")


@dataclass(frozen=True)
class PPOConfig:
    """Stable-Baselines3's PPO, by its own names.

    Attributes:
        total_timesteps: decisions to train on; 0 leaves PPO out.
        num_envs: B, environments stepped together.
        n_steps: decisions of each environment in a rollout.
        batch_size: decisions in a gradient step.
        n_epochs: passes over a rollout.
        learning_rate: of Adam in the first update; it falls linearly, by the same step each time.
        gamma: discount of later decisions.
        gae_lambda: of the generalised advantage estimate.
        clip_range: how far a probability ratio may move.
        ent_coef: weight of the entropy.
        target_kl: a rollout's updates stop beyond this Kullback-Leibler divergence.

    Raises:
        ValueError: a count below 1, or a batch that is larger than the rollout.
    """

    total_timesteps: int = 524_288
    num_envs: int = 256
    n_steps: int = 128
    batch_size: int = 4096
    n_epochs: int = 1
    learning_rate: float = 3e-5
    gamma: float = 0.98
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    ent_coef: float = 0.0
    target_kl: float = 0.01

    def __post_init__(self) -> None:
        """Check what Stable-Baselines3 does not."""
        if self.total_timesteps < 0:
            raise ValueError(f"ppo: total_timesteps must be >= 0, got {self.total_timesteps}.")
        for name in ("num_envs", "n_steps", "n_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"ppo: {name} must be >= 1, got {getattr(self, name)}.")
        if self.batch_size < 2:  # advantages are normalised by batch
            raise ValueError(f"ppo: batch_size must be >= 2, got {self.batch_size}.")
        if self.batch_size > self.rollout:
            raise ValueError(f"ppo: batch_size must be <= num_envs x n_steps ({self.rollout}), got {self.batch_size}.")
        for name in ("learning_rate", "clip_range", "target_kl"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"ppo: {name} must be in (0, 1], got {getattr(self, name)}.")
        if not 0.0 <= self.ent_coef <= 1.0:
            raise ValueError(f"ppo: ent_coef must be in [0, 1], got {self.ent_coef}.")
        for name in ("gamma", "gae_lambda"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"ppo: {name} must be in [0, 1), got {getattr(self, name)}.")

    @property
    def rollout(self) -> int:
        """Decisions in a rollout."""
        return self.num_envs * self.n_steps

    @property
    def num_updates(self) -> int:
        """Rollouts in all."""
        return -(-self.total_timesteps // self.rollout)

    def falling_rate(self, remaining: float) -> float:
        """Adam's learning rate in the update after whose rollout this share of all decisions remains.

        The first of U updates has the whole rate, the last one a U-th of it.
        """
        return self.learning_rate * (max(remaining, 0.0) + 1.0 / max(self.num_updates, 1))


@dataclass(frozen=True)
class TrainingConfig(NetworkConfig):
    """Everything that decides how a run goes, but for the scenario.

    Attributes:
        seed: of all that is random.
        device: where torch learns: "cpu", "cuda", or "auto" for a GPU if there is one. Machines are always simulated on
            the processor.
        measure_threads: let torch use as many threads as a measurement at the start finds faster; one if the machine is
            busy. The last bits of sums may then differ between runs.
        validate_every: updates between two validations.
        teacher: the first phase.
        ppo: the second phase.
    """

    seed: int = 0
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    measure_threads: bool = False
    validate_every: int = 4
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}.")
        if self.validate_every < 1:
            raise ValueError(f"validate_every must be >= 1, got {self.validate_every}.")

    @property
    def num_updates(self) -> int:
        """Updates of both phases."""
        return self.num_teacher_updates + self.ppo.num_updates

    @property
    def num_teacher_updates(self) -> int:
        """Updates of the first phase."""
        return -(-self.teacher.labels // self.teacher.labels_per_update)

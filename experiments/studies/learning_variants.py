"""What the study of learning compares: one change each to how PPO learns, without torch.

References:
    [1] H. Mao et al., "Variance reduction for reinforcement learning in input-driven environments", ICLR 2019.
    [2] M. Andrychowicz et al., "What matters for on-policy deep actor-critic methods?", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from agents.ppo.config import PPOConfig

BASELINE = "baseline"
GROUP = 8
DEPTH = 20


@dataclass(frozen=True)
class Variant:
    """One way to run PPO.

    Attributes:
        meaning: one line for people.
        ppo: Stable-Baselines3's settings.
        group: rows that play the same episodes, each judged against the others [1].
        critic: "shared": the policy's value head; "own": a network apart; "future": the same, told what is to come.
        rate_falls: whether the learning rate falls linearly, see `PPOConfig.falling_rate`.
        entropy: weight of the entropy at the start; it falls linearly likewise.
        normalise_returns: whether rewards are divided by the running deviation of the returns [2].
        what_if_depth: decisions followed to say what a decision saves over the rule's; 0 learns from the cost itself.

    Raises:
        ValueError: a value is out of its range.
    """

    meaning: str
    ppo: PPOConfig = field(default_factory=PPOConfig)
    group: int = 1
    critic: Literal["shared", "own", "future"] = "shared"
    rate_falls: bool = True
    entropy: float = 0.0
    normalise_returns: bool = False
    what_if_depth: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.group < 1 or self.ppo.num_envs % self.group:
            raise ValueError(f"group must be a divisor of num_envs ({self.ppo.num_envs}), got {self.group}.")
        if self.critic not in ("shared", "own", "future"):
            raise ValueError(f"critic must be one of shared, own, future, got {self.critic!r}.")
        if not 0.0 <= self.entropy <= 1.0:
            raise ValueError(f"entropy must be in [0, 1], got {self.entropy}.")
        if self.what_if_depth < 0:
            raise ValueError(f"what_if_depth must be >= 0, got {self.what_if_depth}.")


def variants(ppo: PPOConfig) -> Mapping[str, Variant]:
    """Every variant by name, the baseline first.

    Args:
        ppo: settings of the baseline, and of the others but for what they change.

    Raises:
        ValueError: a value is out of its range.
    """
    base = Variant("what the others change one thing of", ppo)

    def changed(meaning: str, settings: Mapping[str, float | int] | None = None, **changes: object) -> Variant:
        return replace(base, meaning=meaning, ppo=replace(ppo, **(settings or {})), **changes)  # type: ignore[arg-type]

    return {
        BASELINE: base,
        "group": changed(f"{GROUP} rows play the same episode, each judged against the others", group=GROUP),
        "critic-own": changed("a critic apart from the policy", critic="own"),
        "critic-future": changed("a critic apart that is told of the next 5, 20 and 60 tasks", critic="future"),
        "group-future": changed("group and critic-future together", group=GROUP, critic="future"),
        "constant-rate": changed("a learning rate that does not fall", rate_falls=False),
        "entropy": changed("a bonus of 0.003 on entropy that falls", entropy=0.003),
        "returns": changed("rewards over the running deviation of the returns", normalise_returns=True),
        "large-batch": changed("rollouts of four times as many rows, batches likewise", _times(ppo, 4)),
        "small-batch": changed("batches of a quarter", {"batch_size": max(2, ppo.batch_size // 4)}),
        "gamma-0.9": changed("a discount of 0.9", {"gamma": 0.9}),
        "what-if": changed(
            "each decision by what it saves over the rule's, alone", {"gamma": 0.0}, what_if_depth=DEPTH
        ),
        "what-if-0.9": changed("savings, those of later decisions too", {"gamma": 0.9}, what_if_depth=DEPTH),
    }


def _times(ppo: PPOConfig, factor: int) -> dict[str, int]:
    """Settings of rollouts and batches that many times as large."""
    return {"num_envs": factor * ppo.num_envs, "batch_size": factor * ppo.batch_size}

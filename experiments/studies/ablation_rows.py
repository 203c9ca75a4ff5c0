"""The rows of the ablation study: the whole policy, and it with one piece, or one of its training, left out or added.

What the prior is made of goes with it: a policy that does not see the estimate cannot start from the rule that weighs
it. So the worth of the estimate alone is what a row without it loses against the row without the prior.

References:
    [1] The chapter, section 16.2.3: the state is node memory, communication and queues.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from agents.ppo.config import HIDEABLE, TrainingConfig

FULL = "full"
CHAPTER_GROUPS = ("memory", "communication", "queue")  # [1]


@dataclass(frozen=True)
class Variant:
    """What is changed in a configuration.

    Attributes:
        what: what is left out, for people.
        network: fields of `NetworkConfig`.
        teacher: fields of `TeacherConfig`.
    """

    what: str
    network: Mapping[str, Any] = field(default_factory=dict)
    teacher: Mapping[str, Any] = field(default_factory=dict)

    def of(self, config: TrainingConfig) -> TrainingConfig:
        """The configuration with the piece left out."""
        return replace(config, **self.network, teacher=replace(config.teacher, **self.teacher))


VARIANTS: Mapping[str, Variant] = {
    FULL: Variant("nothing"),
    "chapter-only": Variant(
        "all of the observation but memory, communication and queues, and with it the prior",
        {"blind_to": tuple(group for group in HIDEABLE if group not in CHAPTER_GROUPS), "prior": False},
    ),
    "no-estimate": Variant(
        "what each placement would cost by the simulator's forecast, and with it the prior",
        {"blind_to": ("estimate", "congestion"), "prior": False},
    ),
    "no-prior": Variant("the priced greedy rule that the policy starts from", {"prior": False}),
    "two-heads": Variant("the joint choice: task node and data node are scored apart", {"heads": "independent"}),
    "mlp": Variant(
        "one network for all nodes: a perceptron over all numbers scores the pairs, and knows up to 16 nodes",
        {"encoder": "flat"},
    ),
    "attention": Variant("nothing; a layer of attention over nodes is added", {"encoder": "attention"}),
    "bilinear": Variant("nothing; a product of task node and data node is added", {"heads": "bilinear"}),
    "held-out-too": Variant("nothing; the cells that are held out are taught too", teacher={"held_out": True}),
    "no-drawn-machines": Variant("machines drawn at random in training", teacher={"drawn_share": 0.0}),
}


def chosen(names: tuple[str, ...]) -> list[str]:
    """The rows asked for, in the order of the table, the whole policy always first; all where none is named.

    Raises:
        ValueError: a name is none of a row.
    """
    for name in names:
        if name not in VARIANTS:
            raise ValueError(f"row must be one of {', '.join(VARIANTS)}, got {name!r}.")
    return [name for name in VARIANTS if not names or name == FULL or name in names]

"""How a policy is taught by imitation: what the command line offers, without torch.

References:
    [1] S. Ross, G. Gordon, D. Bagnell, AISTATS 2011, see `imitation.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImitationConfig:
    """How the teacher teaches.

    Attributes:
        episodes: played in every round.
        rounds: of playing and fitting; in the first the teacher plays, then the policy.
        epochs: passes over all states so far, in each round.
        batch_size: states in a gradient step.
        learning_rate: of Adam at the start; it falls linearly to a tenth.
        seed: of the order of states.

    Raises:
        ValueError: a count below 1 or a rate that is not positive.
    """

    episodes: int = 8
    rounds: int = 10
    epochs: int = 10
    batch_size: int = 256
    learning_rate: float = 3e-3
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("episodes", "rounds", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"imitation: {name} must be >= 1, got {getattr(self, name)}.")
        if not self.learning_rate > 0:
            raise ValueError(f"imitation: learning_rate must be > 0, got {self.learning_rate}.")

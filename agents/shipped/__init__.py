"""The policy that comes with the package, and its model card: made by `make train-shipped`, from nothing."""

from importlib.resources import files
from pathlib import Path

FOLDER = Path(str(files(__name__)))
POLICY = FOLDER / "policy.safetensors"
MODEL_CARD = FOLDER / "MODEL_CARD.md"


def policy_file(policy: Path | None, no_policy: bool = False) -> Path | None:
    """Which policy is meant: the one in a file, the one that comes with the package if none is named, or none at all.

    Raises:
        ValueError: one is named and none is wanted.
    """
    if policy is not None and no_policy:
        raise ValueError(f"--no-policy and --policy exclude each other, got {str(policy)!r}.")
    return None if no_policy else policy or POLICY

"""The policy that comes with the package, and its model card: made by `make train-shipped`, from nothing."""

from importlib.resources import files
from pathlib import Path

FOLDER = Path(str(files(__name__)))
POLICY = FOLDER / "policy.safetensors"
MODEL_CARD = FOLDER / "MODEL_CARD.md"

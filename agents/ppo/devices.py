"""On which device torch computes.

References:
    [1] https://docs.pytorch.org/docs/stable/notes/cuda.html
"""

from __future__ import annotations

import torch

DEVICES = ("auto", "cpu", "cuda")


def chosen_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU if there is one that torch can use, else the processor.

    Raises:
        ValueError: another name, or no GPU that torch can use.
    """
    if name not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {name!r}.")
    if name == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if name == "auto":
        return torch.device("cpu")
    built = f"torch {torch.__version__} is built for " + (
        f"CUDA {torch.version.cuda} and finds no GPU" if torch.version.cuda else "the processor alone"
    )
    raise ValueError(f"device must be one that is there, got 'cuda': {built}.")

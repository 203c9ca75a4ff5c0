"""What a run needs to go on, besides its weights: what the optimiser and the teacher remember."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from agents.ppo.storage import read_tensors, write_tensors
from agents.ppo.teacher import Labels

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what Adam remembers of a parameter
LABELS_FORMAT = "numa-rl labels 2"


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let Ctrl-C wait until what is within is done: who saves on one must not be stopped by the next."""
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    came: list[FrameType | None] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)
        if came and callable(before):
            before(signal.SIGINT, came[0])


def moments(which: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """A copy of what an optimiser remembers, by names that begin with its own."""
    state = optimizer.state_dict()["state"]
    return {f"{which}.{i}.{name}": value.cpu().clone() for i, values in state.items() for name, value in values.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def restore_optimizer(path: Path, which: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put saved moments into an optimiser; none means that it has not stepped yet.

    Raises:
        ValueError: they do not fit.
    """
    parameters = optimizer.param_groups[0]["params"]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        known = index.isdigit() and int(index) < len(parameters) and key in MOMENTS
        if not known or (key != "step" and tensor.shape != parameters[int(index)].shape):
            raise ValueError(f"{path}: optimiser {which} has no place for {name!r} of shape {tuple(tensor.shape)}.")
        state.setdefault(int(index), {})[key] = tensor
    for number, values in state.items():
        if len(values) != len(MOMENTS):
            raise ValueError(f"{path}: optimiser {which} must have {MOMENTS} of parameter {number}, got {[*values]}.")
    saved = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})


def write_labels(path: Path, labels: Sequence[Labels]) -> None:
    """Keep labels; each part may be of machines of another size."""
    tensors = {
        f"{index}.{name}": torch.from_numpy(array)
        for index, part in enumerate(labels)
        for name, array in vars(part).items()
    }
    write_tensors(path, tensors, {"format": LABELS_FORMAT, "parts": len(labels)})


def read_labels(path: Path) -> list[Labels]:
    """What `write_labels` kept.

    Raises:
        ValueError: no such file, or not one of labels.
    """
    tensors, about = read_tensors(path)
    parts, names = about.get("parts"), [item.name for item in fields(Labels)]
    count = parts if isinstance(parts, int) and 0 <= parts <= len(tensors) else -1
    if about.get("format") != LABELS_FORMAT or set(tensors) != {f"{i}.{name}" for i in range(count) for name in names}:
        raise ValueError(f"{path}: must hold labels of the teacher ({LABELS_FORMAT!r}), got {about}.")
    return [Labels(**{name: tensors[f"{i}.{name}"].numpy() for name in names}) for i in range(count)]

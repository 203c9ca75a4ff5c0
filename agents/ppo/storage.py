"""Policies and checkpoints on disk: safetensors for numbers, JSON for the rest, nothing that could run code.

A file is one safetensors file whose metadata hold one JSON object. It is written beside its place and moved there,
so a reader finds the old one or the new one, whole.

References:
    [1] https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from agents.ppo.config import PolicyConfig
from agents.ppo.scorer import PairScorer, best_pair
from agents.ppo.scorers import make_scorer
from agents.ppo.scoring import CompiledScorer, refusal
from agents.scheduler import Actions, Memory
from agents.seen import PREFIX, Seen
from envs.observation import ObservationKind, ObservationLayout
from envs.observation_kernel import Float32

FORMAT = "numa-rl policy 1"
METADATA_KEY = "numa_rl"
MOST_WEIGHT, MOST_LOGARITHM = 1e4, 30.0  # beyond what any training comes near; of a `log_` weight the second
PACKAGES = ("numa-rl", "torch", "stable-baselines3", "gymnasium", "numpy")


class LearnedScheduler:
    """A placement network that decides; unlike in training, its machine may have any number of nodes.

    It decides through the compiled form where that knows the network, and through torch where not. The compiled form
    has the weights of the day it was made: after more training, make another.

    Args:
        scorer: the network.
        name: how tables call it.
        seed: of what is drawn when decisions are sampled.
    """

    def __init__(self, scorer: PairScorer, name: str = "learned", seed: int = 0) -> None:
        """Keep the network, for use and not for training."""
        self.scorer = scorer.eval()
        self.name = name
        self._compiled = None if refusal(scorer.config) else CompiledScorer.from_scorer(scorer)
        self._generator = torch.Generator().manual_seed(seed)

    def predict(
        self,
        observation: npt.NDArray[Any],
        state: Memory = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[Actions, Memory]:
        """See `agents.scheduler.Scheduler.predict`.

        Raises:
            ValueError: the rows are not full observations.
        """
        rows = np.asarray(observation, np.float32)
        rows = rows[None] if rows.ndim == 1 else rows
        layout = ObservationLayout.of_size(rows.shape[1])
        if layout.kind != ObservationKind.FULL:
            raise ValueError(
                f"policy {self.name!r} reads the full observation, got the one of kind {layout.kind.value!r}."
            )
        pair = self._best(rows) if deterministic else self._drawn(rows)
        actions = np.empty((len(rows), 2), np.int64)
        np.divmod(pair, layout.num_nodes, out=(actions[:, 0], actions[:, 1]))
        return (actions[0] if np.ndim(observation) == 1 else actions), state

    def _best(self, rows: Float32) -> npt.NDArray[np.int64]:
        """The best pair of each row, shape (B,)."""
        if self._compiled is not None:
            return self._compiled.pairs(rows)
        return np.asarray(best_pair(torch.from_numpy(self.scorer.logits(rows))).numpy())

    def _drawn(self, rows: Float32) -> npt.NDArray[np.int64]:
        """A pair of each row, drawn by its probability, shape (B,)."""
        odds = torch.from_numpy(self.logits(rows)).softmax(1)
        return np.asarray(torch.multinomial(odds, 1, generator=self._generator).squeeze(1).numpy())

    def logits(self, rows: Float32) -> Float32:
        """Logits of all pairs, shape (B, N N), from full observations of float32, shape (B, size)."""
        return (self._compiled or self.scorer).logits(rows)


def versions() -> dict[str, str]:
    """Versions of what a file was written with."""
    return {name: version(name) for name in PACKAGES}


def save_policy(path: Path, scorer: PairScorer, metadata: Mapping[str, Any], seen: Seen | None = None) -> None:
    """Write a policy.

    Args:
        path: the file.
        scorer: the network.
        metadata: JSON values that say where it comes from (scenario, git revision, ...).
        seen: what training saw, for who asks whether it saw the like (`agents.shield`).
    """
    about = dict(metadata) | {
        "format": FORMAT,
        "observation": ObservationKind.FULL.value,
        "config": asdict(scorer.config),
        "versions": versions(),
    }
    write_tensors(path, scorer.state_dict() | (seen.to_tensors() if seen else {}), about)


def load_policy(path: Path) -> tuple[LearnedScheduler, dict[str, Any]]:
    """Read a policy; returns it and its metadata.

    Raises:
        ValueError: the file is missing, damaged, or not a policy for the full observation.
    """
    tensors, about = read_tensors(path)
    if about.get("format") != FORMAT:
        raise ValueError(f"{path}: a policy file must say format {FORMAT!r}, got {about.get('format')!r}.")
    kind = about.get("observation")
    if kind != ObservationKind.FULL.value:
        raise ValueError(f"{path}: the policy must read the observation groups 'full', got {kind!r}.")
    scorer = make_scorer(_config(path, about.get("config")))
    load_weights(path, scorer, {name: value for name, value in tensors.items() if not name.startswith(PREFIX)})
    return LearnedScheduler(scorer), about


def _config(path: Path, values: Any) -> PolicyConfig:
    """The network's configuration from untrusted JSON."""
    known = {name: type(default) for name, default in asdict(PolicyConfig()).items()}
    if not isinstance(values, dict) or set(values) != set(known):
        raise ValueError(f"{path}: config must have the keys {sorted(known)}, got {values!r}.")
    for name, kind in known.items():
        if not _is_a(values[name], kind):
            wanted = "list of str" if kind is tuple else kind.__name__
            raise ValueError(f"{path}: config.{name} must be of type {wanted}, got {values[name]!r}.")
    try:
        return PolicyConfig(**(values | {"blind_to": tuple(values["blind_to"])}))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _is_a(value: Any, kind: type) -> bool:
    """Whether a value from JSON can be one of the configuration's."""
    if kind is tuple:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if isinstance(value, bool) or kind is bool:
        return kind is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if kind is float else kind)


def load_weights(path: Path, module: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors into a module whose names, shapes and types they must have.

    Raises:
        ValueError: they do not.
    """
    want = module.state_dict()
    if set(want) != set(tensors):
        raise ValueError(f"{path}: weights must be {sorted(want)}, got {sorted(tensors)}.")
    for name, tensor in tensors.items():
        if tensor.shape != want[name].shape or tensor.dtype != want[name].dtype:
            raise ValueError(
                f"{path}: weight {name!r} must be {want[name].dtype} of shape {tuple(want[name].shape)}, "
                f"got {tensor.dtype} of shape {tuple(tensor.shape)}."
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: weight {name!r} must be finite, got NaN or infinity.")
        most = MOST_LOGARITHM if name.startswith("log_") else MOST_WEIGHT
        if tensor.numel() and float(tensor.abs().max()) > most:
            raise ValueError(
                f"{path}: weight {name!r} must lie within +-{most:g}, got {float(tensor.abs().max()):.3g}: what is "
                "reckoned with it would overflow."
            )
    module.load_state_dict(dict(tensors))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and one JSON object, whole or not at all."""
    content = save(
        {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()},
        metadata={METADATA_KEY: json.dumps(about)},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        ValueError: no such file, or not one of ours.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file.")
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a safetensors file, or a damaged one ({error}).") from error
    try:
        about = json.loads(text or "")
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise ValueError(f"{path}: the metadata must hold a JSON object under {METADATA_KEY!r}; not one of ours.")
    return tensors, about

"""What training saw, in a few numbers: how far from it an observation lies.

An observation is summed up by features that mean the same on a machine of any size and in any order of nodes: means
and maxima over nodes, the task's own features, how far the nodes' loads, latencies and estimates lie apart. Of the
observations that training met, the mean and the covariance of these are kept; the distance of another one is
Mahalanobis's [1]. Beyond the limit, a high quantile of the distances within training itself, it counts as unseen.

Dimension key: B rows, F features, N nodes.

References:
    [1] P. C. Mahalanobis, "On the generalised distance in statistics", Proceedings of the National Institute of
        Sciences of India 2(1), 1936.
    [2] K. Lee, K. Lee, H. Lee, J. Shin, "A simple unified framework for detecting out-of-distribution samples and
        adversarial attacks", NeurIPS 2018: the same distance of features, as a test of novelty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from envs.observation import ObservationKind, ObservationLayout
from envs.observation_kernel import TaskFeature

if TYPE_CHECKING:
    from torch import Tensor

F64 = npt.NDArray[np.float64]
Groups = Mapping[str, Any]

PREFIX = "seen."  # of the tensors' names in a policy's file
QUANTILE = 0.999
LEAST_DEVIATION = 0.02  # of a feature: one that hardly varied in training must not make every other value unseen
RIDGE = 1e-3  # added to the correlations' diagonal: features that went together in training may part a little
BLOCK_ROWS = 4096

POOLED = ("memory", "queue", "data", "inputs", "access", "migration")  # mean and maximum over nodes
NUM_FEATURES = 2 * len(POOLED) + TaskFeature.COUNT + 15


def seen_features(groups: Groups) -> F64:
    """What tells observations apart, whatever machine they are of, shape (B, F).

    Args:
        groups: of full observations, as `ObservationLayout.split` gives them, shapes (B, N), (B, N, N).
    """
    exists = np.asarray(groups["nodes"], np.float64) > 0.0
    count = exists.sum(axis=1)
    pairs = exists[:, :, None] & exists[:, None, :]
    others = pairs & ~np.eye(exists.shape[1], dtype=bool)
    logs = {name: np.log1p(np.asarray(groups[name], np.float64)) for name in (*POOLED, "task")}
    columns = [column for name in POOLED for column in _mean_and_most(logs[name], exists)]
    columns += list(logs["task"].T)
    loads = np.log1p(np.asarray(groups["communication"], np.float64).sum(axis=1))
    columns += _mean_and_most(loads, exists)
    crossing = np.log1p(np.where(others, groups["communication"], 0.0).sum(axis=(1, 2)))
    columns += [crossing, np.log(count)]
    columns += [np.asarray(groups[name], np.float64).sum(axis=1) / count for name in ("task_mask", "data_mask")]
    for name in ("estimate", "congestion", "latency"):
        columns += _mean_and_most(np.log1p(np.asarray(groups[name], np.float64)).reshape(len(count), -1), _flat(pairs))
    least = np.where(pairs, groups["estimate"], np.inf).min(axis=(1, 2))
    columns += [np.log1p(least)]
    columns += _mean_and_most(-np.asarray(groups["bandwidth"], np.float64).reshape(len(count), -1), _flat(pairs))
    return np.stack(columns, axis=1)


def _flat(pairs: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    return pairs.reshape(len(pairs), -1)


def _mean_and_most(values: F64, exists: npt.NDArray[np.bool_]) -> list[F64]:
    """Mean and maximum of each row's values (B, ...) where something exists, shape (B,) each."""
    mean = np.where(exists, values, 0.0).sum(axis=1) / exists.sum(axis=1)
    return [mean, np.where(exists, values, -np.inf).max(axis=1)]


@dataclass(frozen=True, eq=False)
class Seen:
    """What training saw.

    Attributes:
        mean: of the features, shape (F,).
        whitening: the matrix W with |(features - mean) W| the distance, shape (F, F).
        limit: distances above it are unseen.

    Raises:
        ValueError: a shape is wrong, a number is not finite, or the limit is not positive.
    """

    mean: F64
    whitening: F64
    limit: float

    def __post_init__(self) -> None:
        """Check what may come from a file."""
        for name, shape in (("mean", (NUM_FEATURES,)), ("whitening", (NUM_FEATURES, NUM_FEATURES))):
            value = np.asarray(getattr(self, name))
            if value.shape != shape or value.dtype.kind != "f":
                raise ValueError(f"seen.{name} must be floats of shape {shape}, got {value.dtype} of {value.shape}.")
            if not np.isfinite(value).all():
                raise ValueError(f"seen.{name} must be finite, got NaN or infinity.")
        if not (np.isfinite(self.limit) and self.limit > 0.0):
            raise ValueError(f"seen.limit must be finite and > 0, got {self.limit}.")

    @classmethod
    def fit(cls, observations: Iterable[npt.NDArray[Any]], quantile: float = QUANTILE) -> Seen:
        """Sum up what training saw.

        Args:
            observations: full observation rows, (B, size) each, of machines of any sizes.
            quantile: share of these that lie within the limit.

        Raises:
            ValueError: a quantile outside (0, 1), rows that are no full observations, not finite, or too few of them.
        """
        if not 0.0 < quantile < 1.0:
            raise ValueError(f"quantile must be in (0, 1), got {quantile}.")
        features = np.concatenate([np.zeros((0, NUM_FEATURES)), *(_features(rows) for rows in observations)])
        if len(features) < 2:
            raise ValueError(f"what training saw must be 2 observations or more, got {len(features)}.")
        mean, deviation = features.mean(axis=0), np.maximum(features.std(axis=0), LEAST_DEVIATION)
        unit = (features - mean) / deviation
        correlation = unit.T @ unit / len(unit) + RIDGE * np.eye(NUM_FEATURES)
        whitening = np.linalg.inv(np.linalg.cholesky(correlation)).T / deviation[:, None]
        distance = np.linalg.norm((features - mean) @ whitening, axis=1)
        return cls(mean, whitening, max(float(np.quantile(distance, quantile)), LEAST_DEVIATION))

    def distance(self, groups: Groups) -> F64:
        """How far observations lie from what training saw, in its standard deviations, shape (B,).

        Args:
            groups: of full observations, as `ObservationLayout.split` gives them.
        """
        return np.asarray(np.linalg.norm((seen_features(groups) - self.mean) @ self.whitening, axis=1))

    def contains(self, groups: Groups) -> npt.NDArray[np.bool_]:
        """Whether observations lie within the limit, shape (B,); one that is not finite never does."""
        return np.asarray(self.distance(groups) <= self.limit)

    def to_tensors(self) -> dict[str, Tensor]:
        """What is kept in a policy's file, by name."""
        from torch import tensor  # takes a second: only who has a policy waits

        numbers = {"mean": self.mean, "whitening": self.whitening, "limit": np.array([self.limit])}
        return {f"{PREFIX}{name}": tensor(value) for name, value in numbers.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any]) -> Seen:
        """What `to_tensors` made; other tensors, whose names begin otherwise, are left alone.

        Raises:
            ValueError: one is missing or unknown, or breaks a rule of `Seen`.
        """
        found = {name.removeprefix(PREFIX): _array(name, tensors[name]) for name in tensors if name.startswith(PREFIX)}
        if set(found) != {"mean", "whitening", "limit"}:
            raise ValueError(f"{PREFIX}* must be limit, mean and whitening, got {', '.join(sorted(found)) or 'none'}.")
        limit = found["limit"]
        if limit.shape != (1,) or limit.dtype.kind != "f":
            raise ValueError(f"seen.limit must be one float, got {limit.dtype} of shape {limit.shape}.")
        return cls(found["mean"], found["whitening"], float(limit[0]))


def _array(name: str, tensor: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(tensor)
    except TypeError as error:  # floats of 16 bits or fewer that numpy does not know
        raise ValueError(f"{name} must be floats that numpy knows: {error}.") from error


def read_seen(path: Path) -> Seen | None:
    """What training saw, as a policy's file says; None where it says nothing.

    Raises:
        ValueError: the file is missing or damaged, or what it says breaks a rule.
    """
    from agents.ppo.storage import read_tensors

    tensors, _ = read_tensors(path)
    if not any(name.startswith(PREFIX) for name in tensors):
        return None
    try:
        return Seen.from_tensors(tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _features(rows: npt.NDArray[Any]) -> F64:
    """The features of observation rows, a block at a time: matrices of large machines take room."""
    layout = ObservationLayout.of_size(rows.shape[-1])
    if layout.kind != ObservationKind.FULL or rows.ndim != 2:
        raise ValueError(f"what training saw must be rows of the full observation, got shape {rows.shape}.")
    if not np.isfinite(rows).all():
        raise ValueError("what training saw must be finite, got NaN or infinity.")
    blocks = [rows[first : first + BLOCK_ROWS] for first in range(0, len(rows), BLOCK_ROWS)]
    return np.concatenate([np.zeros((0, NUM_FEATURES)), *(seen_features(layout.split(block)) for block in blocks)])

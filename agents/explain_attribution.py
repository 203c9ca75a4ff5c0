"""Which inputs make a policy prefer one placement to another: the difference of two logits, shared out.

Integrated gradients [1] along the straight line from a machine whose nodes are all alike, the mean over its nodes of
every input, to the machine as it is. The shares sum to the difference less what is left of it where nodes are alike,
as the preference for both on one node. On that line inputs stay consistent: an estimate always holds its migration.

The estimate of the simulator is shared out further, among the terms that it is the sum of.

Dimension key: N nodes, S steps, D values of an observation.

References:
    [1] M. Sundararajan, A. Taly, Q. Yan, "Axiomatic attribution for deep networks", ICML 2017: completeness.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from agents.explain_terms import COMM_PARTS, CostTerms
from agents.ppo.scorer import PairScorer
from envs.observation import ObservationLayout
from envs.reward import RewardWeights

F64 = npt.NDArray[np.float64]

# Inputs that are not by node, or say what exists and may be chosen: they stay as they are.
KEPT = ("task", "nodes", "task_mask", "data_mask")
FEWEST_STEPS = 64
MOST_STEPS = 4096
BATCH_STEPS = 256  # at once, so that a large machine needs little memory
TOLERANCE = 2e-3  # what rounding of the integral may leave, of the difference
SMALL = 1e-3  # or so much, where the difference is small
ESTIMATE = "estimate."  # before the name of a term: inputs and terms share some names


@dataclass(frozen=True, eq=False)
class Attribution:
    """Shares of the difference between the logits of two placements.

    Attributes:
        difference: the logit of the first less that of the second.
        alike: what it would be if all nodes were alike.
        shares: by input, shape (N,), or (N, N) by task node and data node. Inputs are groups of the observation, and
            in place of the estimate its terms, `ESTIMATE` before their names.
        steps: S, points of the line at which gradients were taken.
    """

    difference: float
    alike: float
    shares: Mapping[str, F64]
    steps: int

    @property
    def totals(self) -> dict[str, float]:
        """The share of each input, over all nodes."""
        return {name: float(values.sum()) for name, values in self.shares.items()}

    @property
    def left(self) -> float:
        """What the sum of all shares misses, by the integral's rounding."""
        return self.difference - self.alike - sum(self.totals.values())


def attribute(
    scorer: PairScorer,
    observation: npt.NDArray[Any],
    pair: int,
    other: int,
    terms: CostTerms,
    weights: RewardWeights,
) -> Attribution:
    """Share out what makes a network prefer a placement to another.

    Args:
        scorer: the network; left as it is.
        observation: one full observation, shape (D,).
        pair: (task node) N + (data node).
        other: likewise.
        terms: of all N^2 pairs, in order: they share out the estimate.
        weights: the reward, by which the estimate weighs them.

    Raises:
        ValueError: a pair that may not be chosen, or is none.
    """
    layout = ObservationLayout.of_size(len(observation))
    groups = layout.split(observation)
    for each in (pair, other):
        n, d = divmod(each, layout.num_nodes)
        if not (0 <= each < layout.num_nodes**2 and groups["task_mask"][n] > 0 and groups["data_mask"][d] > 0):
            raise ValueError(f"placements to compare must be open, got task node {n} and data node {d}.")
    network = deepcopy(scorer).double()
    start = alike_observation(observation)
    ends = np.stack([start, observation.astype(np.float64)])
    with torch.no_grad():
        alike, difference = _gap(network, torch.from_numpy(ends), pair, other).tolist()
    steps, change = FEWEST_STEPS, ends[1] - ends[0]
    while True:
        slope = _mean_gradient(network, ends, pair, other, steps)
        left = abs(difference - alike - slope @ change)
        if left <= TOLERANCE * abs(difference - alike) + SMALL or 4 * steps > MOST_STEPS:
            break
        steps *= 4
    shares = {name: values for name, values in layout.split(slope * change).items() if name not in KEPT}
    del shares["estimate"]
    by_term = _by_term(layout.split(slope)["estimate"], terms, weights, groups["nodes"] > 0)
    return Attribution(difference, alike, by_term | shares, steps)


def alike_observation(observation: npt.NDArray[Any]) -> F64:
    """The observation with every input replaced by its mean over the nodes that exist, or over pairs of them, (D,)."""
    layout = ObservationLayout.of_size(len(observation))
    alike = observation.astype(np.float64)
    groups = layout.split(alike)
    exists = groups["nodes"] > 0
    for name, values in groups.items():
        if name not in KEPT:
            where = exists if values.ndim == 1 else exists[:, None] & exists
            values[where] = values[where].mean()
    return alike


def _gap(network: PairScorer, rows: torch.Tensor, pair: int, other: int) -> torch.Tensor:
    """The difference between two logits in every row."""
    logits, _ = network(rows)
    gap: torch.Tensor = logits[:, pair] - logits[:, other]
    return gap


def _mean_gradient(network: PairScorer, ends: F64, pair: int, other: int, steps: int) -> F64:
    """The gradient of the difference, averaged over the middles of S equal parts of the line, shape (D,)."""
    total = np.zeros(ends.shape[1])
    at = (np.arange(steps) + 0.5) / steps
    for first in range(0, steps, BATCH_STEPS):
        share = at[first : first + BATCH_STEPS, None]
        rows = torch.from_numpy(ends[0] + share * (ends[1] - ends[0])).requires_grad_()
        (gradient,) = torch.autograd.grad(_gap(network, rows, pair, other).sum(), rows)
        total += gradient.numpy().sum(axis=0)
    return total / steps


def _by_term(slope: F64, terms: CostTerms, weights: RewardWeights, exists: npt.NDArray[np.bool_]) -> dict[str, F64]:
    """The estimate's shares among the terms that it is the sum of, shape (N, N) each, from its gradient (N, N).

    What integrated gradients of a network that reads the terms instead would give.
    """
    where = exists[:, None] & exists
    shares = {}
    for name, seconds in terms.parts.items():
        factor = (weights.alpha if name in COMM_PARTS else 1.0) / weights.reference_s
        values = factor * seconds.reshape(where.shape)
        shares[ESTIMATE + name] = np.where(where, slope * (values - values[where].mean()), 0.0)
    return shares

"""The situations in which a policy decides otherwise than a rule: how often, what it gains, and a tree of when.

Dimension key: E episodes, T tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agents.explain_differences import Differences, Kind
from agents.explain_tree import Leaf, SmallTree, fit_tree
from agents.statistics import Interval, ratio_interval

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Gain:
    """What some decisions saved, against the rule's placement at the same moment, one decision at a time.

    Attributes:
        count: how many decisions.
        share: of all decisions.
        now: saved in the decision itself, mean.
        later: saved in it and in those that follow, mean.
        better: share of them that saved something in the end; ties count half.
    """

    count: int
    share: float
    now: Interval
    later: Interval
    better: float


@dataclass(frozen=True, eq=False)
class Summary:
    """Over a run.

    Attributes:
        differences: every decision.
        gains: by kind of difference, and of all that differ by `None`; kinds that do not occur are missing.
        when: a tree of when the two differ; None where there is nothing to tell apart.
        which: a tree of how they differ, where they do; likewise.
    """

    differences: Differences
    gains: dict[Kind | None, Gain]
    when: SmallTree | None
    which: SmallTree | None

    def gain_in(self, leaf: Leaf) -> tuple[float, float]:
        """In a situation of the tree `when`, held-out decisions: the share that differ, and what those save, mean.

        NaN where there are none.
        """
        differs = self.differences.differs.ravel()[leaf.rows]
        gain = self.differences.gain.ravel()[leaf.rows][differs]
        share = float(differs.mean()) if differs.size else float("nan")
        return share, float(gain.mean()) if gain.size else float("nan")


def summarise(differences: Differences, rng: np.random.Generator) -> Summary:
    """Count, weigh, and fit the trees to episodes 0, 2, ..., to be judged on 1, 3, ...

    Args:
        differences: every decision.
        rng: draws the episodes of intervals.
    """
    kind, differs = differences.kind, differences.differs
    chosen: dict[Kind | None, Bool] = {each: kind == each for each in (Kind.TASK_NODE, Kind.DATA_NODE, Kind.BOTH)}
    chosen[None] = differs
    gains = {each: _gain(differences, rows, rng) for each, rows in chosen.items() if rows.any()}
    features = differences.features.reshape(-1, differences.features.shape[-1])
    held_out = np.broadcast_to(np.arange(len(kind))[:, None] % 2 == 1, kind.shape).ravel()
    when = fit_tree(features, differs.ravel().astype(np.int64), held_out)
    rows = np.flatnonzero(differs)
    which = fit_tree(features[rows], kind.ravel()[rows], held_out[rows])
    return Summary(differences, gains, when, which)


def _gain(differences: Differences, rows: Bool, rng: np.random.Generator) -> Gain:
    """The gain of some decisions, each as heavy as the others; intervals are over the episodes that have any."""
    count = rows.sum(axis=1)
    has = count > 0
    now, later = (
        ratio_interval(np.where(rows, values, 0.0).sum(axis=1)[has], count[has], rng)
        for values in (differences.gain_now, differences.gain)
    )
    gained = differences.gain[rows]
    better = float(np.mean(gained > 0) + 0.5 * np.mean(gained == 0))
    return Gain(int(rows.sum()), float(rows.mean()), now, later, better)

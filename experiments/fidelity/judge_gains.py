"""What a policy gains over a rule, in our world and in the referee's: cell by cell, and in many cells together.

A gain is a ratio of mean responses, the policy's over the rule's, below 1 where the policy is better. Both have played
the same episodes, and the response of an episode is the mean over its tasks that both have placed.

Dimension key: E episodes, C cells, W worlds: ours, then the referee's; 2 schedulers: the policy, then the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from agents.statistics import Interval, mean_ratio, ratio_interval
from experiments.fidelity.metrics import Agreement, agreement
from experiments.fidelity.rows import Judged, Where, row_of

F64 = npt.NDArray[np.float64]

OURS, REFEREE = 0, 1


@dataclass(frozen=True, eq=False)
class Pairing:
    """A policy and a rule in a cell.

    Attributes:
        where: the cell, with the rule.
        held_out: whether nothing was trained or tuned there.
        response_s: mean response of each episode, shape (W, 2, E).
        load: that of the busiest resource in the referee's world, under whom it is busier.
        num_apart: tasks that one of the two has placed and the other dropped; they count for neither.
    """

    where: Where
    held_out: bool
    response_s: F64
    load: float
    num_apart: int

    def ratio(self, world: int, seed: int) -> Interval:
        """The policy's mean response over the rule's and its 95% interval, paired by episode."""
        policy, rule = self.response_s[world]
        return ratio_interval(policy, rule, np.random.default_rng(seed))

    @cached_property
    def agreement(self) -> Agreement:
        """Whether both worlds say who is better."""
        ours, referee = self.response_s.mean(axis=2)
        return agreement(ours, referee)

    def to_dict(self, seed: int) -> dict[str, Any]:
        """Everything as JSON values."""
        cell = {name: value for name, value in asdict(self.where).items() if name != "scheduler"}
        names = ("policy", "rule")
        return cell | {
            "rule": self.where.scheduler,
            "held_out": self.held_out,
            "load": self.load,
            "ours": asdict(self.ratio(OURS, seed)),
            "referee": asdict(self.ratio(REFEREE, seed)),
            "response_s": {
                world: dict(zip(names, times.tolist(), strict=True))
                for world, times in zip(("ours", "referee"), self.response_s, strict=True)
            },
            "told_apart": bool(self.agreement.pairs),
            "sign_agrees": not self.agreement.wrong,
            "clearly_apart": bool(self.agreement.clear_pairs),
            "tasks_apart": self.num_apart,
        }


def pairing(policy: Judged, rule: Judged, *, held_out: bool) -> Pairing:
    """What came of a cell for a policy and a rule.

    Args:
        policy: its episodes.
        rule: the same, as the rule played them.
        held_out: whether nothing was trained or tuned in this cell.

    Raises:
        ValueError: they are not of one cell, placed no task of an episode in common, or a time is missing or not > 0.
    """
    name = f"{rule.where.cell_name}, {policy.where.scheduler} and {rule.where.scheduler}"
    if policy.where.cell != rule.where.cell or len(policy.replays) != len(rule.replays):
        raise ValueError(f"{name}: both must have played the same episodes of one cell.")
    both = [a.ran & b.ran for a, b in zip(policy.replays, rule.replays, strict=True)]
    if not all(ran.any() for ran in both):
        raise ValueError(f"{name}: an episode needs a task that both have placed, got one without.")
    ran_apart = sum(int((a.ran ^ b.ran).sum()) for a, b in zip(policy.replays, rule.replays, strict=True))
    response_s = np.array(
        [
            [_means(judged.replays, both) for judged in (policy, rule)],
            [_means(judged.played, both) for judged in (policy, rule)],
        ]
    )
    if not (np.isfinite(response_s) & (response_s > 0.0)).all():
        raise ValueError(f"{name}: mean responses must be finite and > 0, got {response_s.tolist()}.")
    load = max(row_of(policy).load, row_of(rule).load)
    return Pairing(rule.where, held_out, response_s, load, ran_apart)


def _means(episodes: Sequence[Any], both: Sequence[npt.NDArray[np.bool_]]) -> list[float]:
    """The mean response of each episode over these of its tasks."""
    return [float(episode.response_s[ran].mean()) for episode, ran in zip(episodes, both, strict=True)]


@dataclass(frozen=True)
class Worth:
    """What the policy gains over a rule in many cells.

    Attributes:
        name: of the cells.
        rule: its name.
        loaded_latency: whether our world had the loaded-latency factor; the referee's never has.
        num_cells: how many.
        ours: mean over cells of the policy's mean response over the rule's, with its 95% interval.
        referee: the same in the referee's world; its interval is of the same draws of episodes.
        told: cells in which the referee tells the two apart.
        agree: those of them in which our world finds the same one better.
        clear: cells in which they clearly differ in the referee's world, see `metrics.CLEAR`.
        clear_agree: those of them in which our world finds the same one better.
    """

    name: str
    rule: str
    loaded_latency: bool
    num_cells: int
    ours: Interval
    referee: Interval
    told: int
    agree: int
    clear: int
    clear_agree: int

    @property
    def kept(self) -> float:
        """Share of the gain that is one in the referee's world too; NaN where ours is not sure that there is any."""
        surely = self.ours.high < 1.0
        return (1.0 - self.referee.estimate) / (1.0 - self.ours.estimate) if surely else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self) | {"kept": self.kept}


def worth(name: str, pairings: Sequence[Pairing], seed: int) -> Worth:
    """What these cells say together.

    Args:
        name: of the cells.
        pairings: with one rule, of one comparison; at least one.
        seed: of the bootstrap.

    Raises:
        ValueError: there are none, or they are of several rules or comparisons.
    """
    kinds = {(each.where.scheduler, each.where.loaded_latency) for each in pairings}
    if len(kinds) != 1:
        raise ValueError(f"{name}: cells must be of one rule and one comparison, got {len(kinds)}.")
    ((rule, loaded_latency),) = kinds
    ratios = [
        mean_ratio(
            [each.response_s[world, 0] for each in pairings],
            [each.response_s[world, 1] for each in pairings],
            np.random.default_rng(seed),
        )
        for world in (OURS, REFEREE)
    ]
    found = [each.agreement for each in pairings]
    told, clear = sum(each.pairs for each in found), sum(each.clear_pairs for each in found)
    return Worth(
        name=name,
        rule=rule,
        loaded_latency=loaded_latency,
        num_cells=len(pairings),
        ours=ratios[OURS],
        referee=ratios[REFEREE],
        told=told,
        agree=told - sum(each.wrong for each in found),
        clear=clear,
        clear_agree=clear - sum(each.clear_wrong for each in found),
    )

"""What many rows say together: errors and orders by load, and whether the targets are met.

Dimension key: K schedulers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from math import isnan
from typing import Any

import numpy as np

from experiments.fidelity.metrics import CLEAR, Agreement, agreement, median_and_p95
from experiments.fidelity.rows import Row, Where

EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, np.inf)  # of the bins of loads
VALID_LOAD = 0.8  # the targets hold up to here
MOST_MEDIAN, MOST_P95, LEAST_TAU = 0.05, 0.15, 0.95  # the targets


@dataclass(frozen=True)
class Summary:
    """Errors of some rows.

    Attributes:
        num_rows: how many.
        response: median and 95th percentile over rows of the size of the mean response's error.
        makespan: the same of the makespan.
        bias: median of the mean response's signed error.
        task: median over rows of the median task's error, and of the 95th percentile of tasks.
    """

    num_rows: int
    response: tuple[float, float]
    makespan: tuple[float, float]
    bias: float
    task: tuple[float, float]


def summarise(rows: Iterable[Row]) -> Summary:
    """The errors of these rows together; NaN of none."""
    chosen = list(rows)
    middle = {
        name: float(np.median([getattr(row, name) for row in chosen])) if chosen else np.nan
        for name in ("response_error", "task_median", "task_p95")
    }
    return Summary(
        num_rows=len(chosen),
        response=median_and_p95([row.response_error for row in chosen]),
        makespan=median_and_p95([row.makespan_error for row in chosen]),
        bias=middle["response_error"],
        task=(middle["task_median"], middle["task_p95"]),
    )


@dataclass(frozen=True)
class Order:
    """Whether both worlds put the schedulers of a cell in the same order.

    Attributes:
        where: the cell, with its first scheduler.
        load: of the most loaded of its rows.
        agreement: of the mean responses.
        best: the best scheduler in the referee's world.
        chosen: the best one in ours.
    """

    where: Where
    load: float
    agreement: Agreement
    best: str
    chosen: str

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        cell = {name: value for name, value in asdict(self.where).items() if name != "scheduler"}
        return cell | {"load": self.load, **asdict(self.agreement), "best": self.best, "chosen": self.chosen}


def orders(rows: Iterable[Row]) -> list[Order]:
    """One for each cell that has two schedulers or more, in the order of the rows, cell by cell."""
    found = []
    for _, group in groupby(rows, key=lambda row: row.where.cell):
        here = list(group)
        if len(here) < 2:
            continue
        ours, referee = [row.response_s for row in here], [row.referee_response_s for row in here]
        found.append(
            Order(
                where=here[0].where,
                load=max(row.load for row in here),
                agreement=agreement(ours, referee),
                best=here[int(np.argmin(referee))].where.scheduler,
                chosen=here[int(np.argmin(ours))].where.scheduler,
            )
        )
    return found


@dataclass(frozen=True)
class OrderSummary:
    """How far the orders agree in some cells.

    Attributes:
        num_cells: those in which both worlds know an order.
        tau: mean of Kendall's tau-b.
        clear_tau: mean of the tau of pairs that clearly differ, over cells that have any.
        wrong: share of pairs of schedulers of which our world does not find the better one.
        clear_wrong: the same of pairs that clearly differ.
        clear_pairs: how many of these there are.
        regret: mean and largest loss of choosing by our world.
    """

    num_cells: int
    tau: float
    clear_tau: float
    wrong: float
    clear_wrong: float
    clear_pairs: int
    regret: tuple[float, float]


def summarise_orders(cells: Iterable[Order]) -> OrderSummary:
    """The agreement of these cells together; NaN of none."""
    chosen = [order.agreement for order in cells]
    taus = [each.tau for each in chosen if not isnan(each.tau)]
    clear_taus = [each.clear_tau for each in chosen if not isnan(each.clear_tau)]
    regrets = [each.regret for each in chosen]
    clear_pairs = sum(each.clear_pairs for each in chosen)
    return OrderSummary(
        num_cells=len(taus),
        tau=float(np.mean(taus)) if taus else np.nan,
        clear_tau=float(np.mean(clear_taus)) if clear_taus else np.nan,
        wrong=_share(sum(each.wrong for each in chosen), sum(each.pairs for each in chosen)),
        clear_wrong=_share(sum(each.clear_wrong for each in chosen), clear_pairs),
        clear_pairs=clear_pairs,
        regret=(float(np.mean(regrets)), max(regrets)) if regrets else (np.nan, np.nan),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else np.nan


def bins() -> list[tuple[str, float, float]]:
    """Name, lower and upper edge of each bin of loads; a load on an edge belongs to the bin below it."""
    return [
        (f"{low:.0%} to {high:.0%}" if np.isfinite(high) else f"above {low:.0%}", low, high)
        for low, high in pairwise(EDGES)
    ]


def in_bin(load: float, low: float, high: float) -> bool:
    """Whether a load belongs to the bin: above its lower edge, or at 0 with it."""
    return low < load <= high or load == low == 0.0


@dataclass(frozen=True)
class Target:
    """Something that the simulator has to reach.

    Attributes:
        name: what.
        limit: the figure asked for.
        figure: the one measured.
        is_most: whether the limit is the most allowed, and not the least.
    """

    name: str
    limit: float
    figure: float
    is_most: bool

    @property
    def is_met(self) -> bool:
        """Whether it is reached; not where nothing was measured."""
        return self.figure <= self.limit if self.is_most else self.figure >= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self) | {"is_met": self.is_met}


def valid(rows: Iterable[Row]) -> list[Row]:
    """The rows of families with a pace, up to the load to which the targets hold."""
    return [row for row in rows if row.is_paced and row.load <= VALID_LOAD]


def valid_orders(rows: Iterable[Row]) -> list[Order]:
    """The cells of families with a pace whose rows all stay at or below the load to which the targets hold."""
    return [order for order in orders(row for row in rows if row.is_paced) if order.load <= VALID_LOAD]


def targets(rows: Sequence[Row]) -> list[Target]:
    """The targets and what was measured, over rows of one comparison."""
    errors, order = summarise(valid(rows)), summarise_orders(valid_orders(rows))
    up_to = f"up to {VALID_LOAD:.0%} load"
    return [
        Target(f"median error of mean response {up_to}", MOST_MEDIAN, errors.response[0], True),
        Target(f"p95 of the error of mean response {up_to}", MOST_P95, errors.response[1], True),
        Target(f"Kendall tau of the order of schedulers {up_to}", LEAST_TAU, order.tau, False),
        Target(
            f"Kendall tau {up_to} with schedulers within {CLEAR:.0%} of each other in SimGrid as ties",
            LEAST_TAU,
            order.clear_tau,
            False,
        ),
    ]


def evenly_by_load(rows: Iterable[Row]) -> tuple[float, float]:
    """Median and p95 of errors of mean response, each a mean over the bins of loads up to which the targets hold.

    Every cell asked for counts once, and most are lightly loaded; here each of these bins that has rows counts once.
    """
    chosen = valid(rows)
    parts = [[row for row in chosen if in_bin(row.load, low, high)] for _, low, high in bins()]
    found = [summarise(part).response for part in parts if part]
    if not found:
        return np.nan, np.nan
    median, p95 = np.mean(found, axis=0)
    return float(median), float(p95)


def trusted_to(rows: Sequence[Row]) -> tuple[float, float]:
    """The loads up to which the median and the p95 of errors of mean response meet their targets in every bin.

    0 where the first bin misses, infinite where none does. Bins without rows say nothing.
    """
    limits = MOST_MEDIAN, MOST_P95
    upper, open_still = [0.0, 0.0], [True, True]
    for _, low, high in bins():
        found = summarise(row for row in rows if row.is_paced and in_bin(row.load, low, high))
        for which, limit in enumerate(limits):
            open_still[which] &= not found.num_rows or found.response[which] <= limit
            if found.num_rows and open_still[which]:
                upper[which] = high
    return upper[0], upper[1]

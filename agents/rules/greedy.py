"""The cheapest placement now, and the cheapest with prices for what it takes from tasks to come.

Dimension key: B rows, N nodes; n = task node, d = data node.

References:
    [1] H. Topcuoglu, S. Hariri, M.-Y. Wu, "Performance-effective and low-complexity task scheduling for
        heterogeneous computing", IEEE TPDS 13(3), 2002: HEFT's earliest finish time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from agents.rules.base import Array, Groups, Parameter, Placement, Range, Rule, lowest_pair, per_row


@dataclass(frozen=True)
class Greedy(Rule):
    """The placement with the lowest T_exec + alpha T_comm now, as HEFT's earliest finish time [1]."""

    name: ClassVar[str] = "greedy"

    def place(self, groups: Groups, memory: Array) -> Placement:
        """The pair with the lowest estimate."""
        return Placement(*lowest_pair(groups["estimate"], groups))


def priced_cost(
    groups: Mapping[str, Any], congestion_price: Any, crowding_price: Any, migration_share: Any, alpha: Any
) -> Any:
    """What each placement costs now, and a price for what it takes from tasks to come.

    cost(n, d) = estimate(n, d) + p1 congestion(n, d)
        + p2 (memory(d) + load(d)) if the object is new or moves to d
        - (1 - p3) alpha migration(d).

    The estimate already holds alpha migration(d), so the last term leaves p3 of it: who comes later profits
    from a move as well. load(d) is the offered load of d's memory controller, a column's sum of `communication`.

    Written with operators that numpy arrays and torch tensors share, so both compute this one formula.

    Args:
        groups: the groups of the observation, as `ObservationLayout.split` gives them, shapes (..., N), (..., N, N).
        congestion_price: p1, a number or broadcastable against (..., N, N).
        crowding_price: p2, a number or broadcastable against (..., N).
        migration_share: p3, likewise.
        alpha: the reward's weight of T_comm, likewise.

    Returns:
        Costs in units of the reference time, shape (..., N, N).
    """
    load = groups["communication"].sum(-2)
    moved = 1.0 - groups["data"]  # 1 but where the object lives: a new one lives nowhere
    at_data_node = data_node_price(
        groups["memory"], load, moved, groups["migration"], crowding_price, migration_share, alpha
    )
    return groups["estimate"] + congestion_price * groups["congestion"] + at_data_node[..., None, :]


def data_node_price(
    memory: Any, load: Any, moved: Any, migration: Any, crowding_price: Any, migration_share: Any, alpha: Any
) -> Any:
    """What `priced_cost` adds for the data node alone: numbers, arrays or tensors, of any one shape."""
    return crowding_price * (memory + load) * moved - (1.0 - migration_share) * alpha * migration


@dataclass(frozen=True)
class PricedGreedy(Rule):
    """Greedy with prices on what a placement takes from tasks to come: see `priced_cost`.

    The prices stand for foresight: bytes on busy controllers and links slow the tasks that share them, data on
    a crowded node draws its tasks there, and a move is paid once but used for long. Defaults are the best of 45
    settings in a prototype of this project.

    Attributes:
        congestion_price: p1.
        crowding_price: p2.
        migration_share: p3, the share of the migration time that counts.
        alpha: the reward's weight of T_comm; belongs to the scenario and is not tuned.
    """

    name: ClassVar[str] = "priced-greedy"
    tunable: ClassVar[Mapping[str, Range]] = {
        "congestion_price": Range(0.01, 100.0, log=True),
        "crowding_price": Range(0.01, 1000.0, log=True),
        "migration_share": Range(0.0, 1.0),
    }
    congestion_price: Parameter = 1.0
    crowding_price: Parameter = 1.5
    migration_share: Parameter = 0.3
    alpha: Parameter = 1.0

    def place(self, groups: Groups, memory: Array) -> Placement:
        """The pair with the lowest priced cost."""
        cost = priced_cost(
            groups,
            per_row(self.congestion_price, 2),
            per_row(self.crowding_price, 1),
            per_row(self.migration_share, 1),
            per_row(self.alpha, 1),
        )
        return Placement(*lowest_pair(cost, groups))

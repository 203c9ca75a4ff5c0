"""The study's verdict in words, and how its figures are written."""

from __future__ import annotations

from collections.abc import Sequence
from math import isinf, isnan

from experiments.fidelity.rows import Row
from experiments.fidelity.summary import (
    MOST_MEDIAN,
    MOST_P95,
    VALID_LOAD,
    Target,
    evenly_by_load,
    orders,
    summarise_orders,
    targets,
    trusted_to,
    valid,
    valid_orders,
)

MISSED = "MISSED"  # how the line of a target that was missed begins


def verdict(rows: Sequence[Row]) -> list[str]:
    """In words: the targets, those missed first, and how far the simulator is to be trusted."""
    paced = [row for row in rows if row.is_paced]
    if not paced:
        return ["No family with a pace was played: nothing is said of loads."]
    lines = [target_text(target) for target in sorted(targets(paced), key=lambda target: target.is_met)]
    within = valid(paced)
    light = sum(row.load <= VALID_LOAD / 2.0 for row in within)
    lines.append(
        f"Every scheduler in a cell counts once, and of the {len(within)} up to {VALID_LOAD:.0%} load {light} are at "
        f"most {VALID_LOAD / 2.0:.0%} loaded. With each bin of loads counting once, the median of errors of mean "
        f"response is {share(evenly_by_load(paced)[0])}, the p95 {share(evenly_by_load(paced)[1])}."
    )
    median_to, p95_to = map(_up_to, trusted_to(paced))
    lines.append(
        f"Response times: the median error stays within {share(MOST_MEDIAN)} {median_to}, its p95 within "
        f"{share(MOST_P95)} {p95_to}; beyond, times must not be trusted to that degree."
    )
    below = summarise_orders(valid_orders(paced))
    above = summarise_orders(order for order in orders(paced) if order.load > VALID_LOAD)
    for where, found in ((f"up to {VALID_LOAD:.0%} load", below), (f"above {VALID_LOAD:.0%} load", above)):
        if found.clear_pairs:
            lines.append(
                f"Order {where}: of two schedulers that clearly differ our simulator fails to name the better one in "
                f"{share(found.clear_wrong)} of {found.clear_pairs} pairs; who chooses by it loses "
                f"{share(found.regret[0])} on average, {share(found.regret[1])} at most."
            )
    return lines


def _up_to(load: float) -> str:
    return "at no load" if load == 0.0 else "at every load that was met" if isinf(load) else f"up to {load:.0%} load"


def target_text(target: Target) -> str:
    """A target in a line: whether it was met, the figure and the limit."""
    figure, limit = (
        (share(target.figure), share(target.limit))
        if target.is_most
        else (tau_text(target.figure), tau_text(target.limit))
    )
    relation = "<=" if target.is_most else ">="
    if isnan(target.figure):
        return f"not measured: {target.name}, asked for {relation} {limit}; nothing was so lightly loaded."
    return f"{'met' if target.is_met else MISSED}: {target.name} is {figure}, asked for {relation} {limit}."


def share(value: float) -> str:
    """A share in percent, a dash where it is not known."""
    return "-" if isnan(value) else f"{100.0 * value:.1f}%"


def both(values: tuple[float, float]) -> str:
    """A share, and in brackets another."""
    return "-" if isnan(values[0]) else f"{share(values[0])} ({share(values[1])})"


def signed(value: float) -> str:
    """The same with its sign."""
    return "-" if isnan(value) else f"{100.0 * value:+.1f}%"


def tau_text(value: float) -> str:
    """Kendall's tau, a dash where there is none."""
    return "-" if isnan(value) else f"{value:.3f}"

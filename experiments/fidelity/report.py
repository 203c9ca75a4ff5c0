"""The study's tables: what is worst comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import isfinite, isnan

import numpy as np

from agents.rules.simple import Random
from experiments.fidelity.rows import Judged, Row, row_of
from experiments.fidelity.summary import (
    VALID_LOAD,
    Order,
    bins,
    in_bin,
    orders,
    summarise,
    summarise_orders,
    valid,
    valid_orders,
)
from experiments.fidelity.verdict import both, share, signed, tau_text
from experiments.suite.sheet import Sheet

WORST = 10  # rows and cells that tables name

ERRORS = "response", "bias", "makespan"
ERRORS_NOTE = (
    "response: size of the error of the mean response, median over rows, in brackets the p95; makespan likewise; bias: "
    "median of the response's error with its sign, negative where our simulator is too fast. A row is a scheduler in a "
    "cell."
)
ORDER_NOTE = (
    "tau: Kendall's tau-b of the mean responses of all schedulers in a cell, mean over cells; a cell is as loaded as "
    "the most loaded of its rows. tau clear: the same without the pairs that differ by 2% or less in the referee's "
    "world, which are ties. wrong: pairs of schedulers of which our simulator does not find the better one; "
    "clear: of those that differ by more than 2% in the referee's world. loss: how much longer the scheduler chosen by "
    "our simulator takes there than the best one, mean over cells, in brackets the largest."
)
LOAD_NOTE = (
    "Load is measured in the referee's world: that of the busiest node's cores, controller or link, over the whole "
    "episode."
)


def sheets(sharing: Sequence[Row], shipped: Sequence[Row]) -> list[Sheet]:
    """All tables that have rows.

    Args:
        sharing: rows without the loaded-latency factor.
        shipped: rows with it; none if they were not asked for.
    """
    paced, others = [row for row in sharing if row.is_paced], [row for row in sharing if not row.is_paced]
    found = [worst_rows(paced), errors_by_load(paced)]
    found += [order_by_load(paced), worst_orders(paced)]
    found += [grouped(paced, name, key) for name, key in GROUPS.items()]
    if others:
        found.append(unpaced(others))
    if shipped:
        found.append(factor_by_load(shipped))
    return [sheet for sheet in found if sheet.rows]


GROUPS: Mapping[str, Callable[[Row], str]] = {
    "family": lambda row: row.where.family,
    "machine": lambda row: f"{row.where.machine} ({row.where.num_nodes})",
    "scheduler": lambda row: row.where.scheduler,
    "busiest resource": lambda row: row.resource.split()[0],
}


def worst_rows(rows: Sequence[Row]) -> Sheet:
    """The rows whose mean response is furthest off, up to the load to which the targets hold."""
    order = sorted(valid(rows), key=lambda row: -abs(row.response_error))
    return Sheet(
        "worst",
        f"The worst of {len(order)} rows up to {VALID_LOAD:.0%} load",
        ["cell", "scheduler", "load", "busiest", "response", "makespan", "single tasks"],
        [_row_cells(row) for row in order[:WORST]],
        "Errors of mean response and makespan with their sign; of single tasks the median, in brackets the p95. "
        + LOAD_NOTE,
    )


def _row_cells(row: Row) -> list[str]:
    return [
        row.where.cell_name,
        row.where.scheduler,
        share(row.load),
        row.resource,
        signed(row.response_error),
        signed(row.makespan_error),
        both((row.task_median, row.task_p95)),
    ]


def errors_by_load(rows: Sequence[Row]) -> Sheet:
    """Errors of the rows by load, the highest first: there they are worst."""
    parts = [(name, [row for row in rows if in_bin(row.load, low, high)]) for name, low, high in reversed(bins())]
    parts += [(f"up to {VALID_LOAD:.0%}", valid(rows)), ("all", list(rows))]
    return Sheet(
        "errors",
        "Errors by load",
        ["load", "rows", *ERRORS, "single tasks"],
        [[name, str(len(part)), *_errors(part), both(summarise(part).task)] for name, part in parts],
        f"{ERRORS_NOTE} single tasks: medians over rows of the median and, in brackets, of the p95 of tasks' errors.",
    )


def _errors(rows: Iterable[Row]) -> list[str]:
    found = summarise(rows)
    return [both(found.response), signed(found.bias), both(found.makespan)]


def order_by_load(rows: Sequence[Row]) -> Sheet:
    """Whether the order of schedulers is the same, by load."""
    cells = orders(rows)
    parts = [(name, [cell for cell in cells if in_bin(cell.load, low, high)]) for name, low, high in reversed(bins())]
    parts += [(f"up to {VALID_LOAD:.0%}", valid_orders(rows)), ("all", cells)]
    return Sheet(
        "order",
        "The order of schedulers by load",
        ["load", "cells", "tau", "tau clear", "wrong", "clear", "pairs", "loss"],
        [[name, *_order_cells(part)] for name, part in parts],
        f"{ORDER_NOTE} pairs: how many differ clearly.",
    )


def _order_cells(cells: Iterable[Order]) -> list[str]:
    found = summarise_orders(cells)
    return [
        str(found.num_cells),
        tau_text(found.tau),
        tau_text(found.clear_tau),
        share(found.wrong),
        share(found.clear_wrong),
        str(found.clear_pairs),
        both(found.regret),
    ]


def worst_orders(rows: Sequence[Row]) -> Sheet:
    """The cells in which the orders differ most, up to the load to which the targets hold."""
    known = [cell for cell in valid_orders(rows) if isfinite(cell.agreement.tau)]
    known.sort(key=lambda cell: (cell.agreement.tau, -cell.agreement.regret))
    return Sheet(
        "orders",
        f"The worst of {len(known)} orders up to {VALID_LOAD:.0%} load",
        ["cell", "load", "tau", "tau clear", "wrong", "clear", "best there", "chosen", "loss"],
        [
            [
                cell.where.cell_name,
                share(cell.load),
                tau_text(cell.agreement.tau),
                tau_text(cell.agreement.clear_tau),
                f"{cell.agreement.wrong} of {cell.agreement.pairs}",
                f"{cell.agreement.clear_wrong} of {cell.agreement.clear_pairs}",
                cell.best,
                cell.chosen,
                share(cell.agreement.regret),
            ]
            for cell in known[:WORST]
        ],
        "best there: in the referee's world; chosen: best in ours.",
    )


def grouped(rows: Sequence[Row], name: str, key: Callable[[Row], str]) -> Sheet:
    """Errors and orders by what rows have in common, the worst first."""
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(key(row), []).append(row)
    has_order = name in ("family", "machine")
    lines = []
    for part, here in parts.items():
        within = valid(here)
        cells = [str(len(within)), *_errors(within), both(summarise(here).response)]
        if has_order:
            order = summarise_orders(valid_orders(here))
            cells += [tau_text(order.tau), tau_text(order.clear_tau), share(order.clear_wrong)]
        p95 = summarise(within).response[1]
        lines.append(([part, *cells], -1.0 if isnan(p95) else p95))
    lines.sort(key=lambda line: -line[1])
    return Sheet(
        f"by_{name.replace(' ', '_')}",
        f"By {name}, up to {VALID_LOAD:.0%} load",
        [name, "rows", *ERRORS, "any load", *(["tau", "tau clear", "clear"] if has_order else [])],
        [cells for cells, _ in lines],
        "any load: error of the mean response over all rows.",
    )


def unpaced(rows: Sequence[Row]) -> Sheet:
    """The families that have no load to be asked for, apart."""
    order = sorted(rows, key=lambda row: -abs(row.response_error))
    cells = summarise_orders(orders(rows))
    return Sheet(
        "unpaced",
        f"Graphs without a pace: {len(rows)} rows, counted in no other table",
        ["cell", "scheduler", "load", "busiest", "response", "makespan", "single tasks"],
        [_row_cells(row) for row in order[:WORST]],
        f"The {min(WORST, len(order))} worst. All: response {both(summarise(rows).response)}, makespan "
        f"{both(summarise(rows).makespan)}; tau {tau_text(cells.tau)}, tau clear "
        f"{tau_text(cells.clear_tau)}, clear pairs wrong "
        f"{share(cells.clear_wrong)}.",
    )


def factor_by_load(rows: Sequence[Row]) -> Sheet:
    """The same with the loaded-latency factor of our world as shipped, which the referee has not."""
    paced = [row for row in rows if row.is_paced]
    plain = errors_by_load(paced)
    order = order_by_load(paced)
    lines = [[*mine[:5], *theirs[1:6]] for mine, theirs in zip(plain.rows, order.rows, strict=True)]
    return Sheet(
        "shipped",
        "As shipped: with the loaded-latency factor",
        [*plain.headers[:5], *order.headers[1:6]],
        lines,
        "The referee shares capacity and knows no loaded latency, so here the factor counts as an error. It is one by "
        "design: it stands for what was measured on machines and SimGrid lacks.",
    )


def decisions(sharing: Sequence[Judged], shipped: Sequence[Judged]) -> Sheet:
    """What the loaded-latency factor changes in who runs where, and what that costs in the referee's world."""
    apart: dict[str, list[tuple[float, float]]] = {}
    known = {judged.where: judged for judged in sharing}
    for judged in shipped:
        other = known.get(replace(judged.where, loaded_latency=False))
        if other is not None and judged.where.scheduler != Random.name:
            count = len(judged.replays)
            same = replace(other, replays=other.replays[:count], played=other.played[:count])
            moved = np.mean([(a.node != b.node).mean() for a, b in zip(judged.replays, same.replays, strict=True)])
            change = row_of(judged).referee_response_s / row_of(same).referee_response_s - 1.0
            apart.setdefault(judged.where.scheduler, []).append((float(moved), change))
    lines = [
        (name, *np.mean(values, axis=0), *np.percentile([value for _, value in values], (5, 95)))
        for name, values in apart.items()
    ]
    return Sheet(
        "decisions",
        "What the loaded-latency factor does to decisions",
        ["scheduler", "elsewhere", "response", "p5", "p95"],
        [
            [name, share(moved), signed(mean), signed(low), signed(high)]
            for name, moved, mean, low, high in sorted(lines, key=lambda line: -line[1])
        ],
        "Schedulers see our world. elsewhere: tasks that run on another node than without the factor, mean over cells; "
        "response: how much longer the mean response is in the referee's world for that, mean, p5 and p95. Random "
        "placements are left out: they differ, and mean nothing.",
    )


def laws_sheet(rows_by_law: Mapping[str, Sequence[Row]]) -> Sheet:
    """One line for each law that times the same replays, the kernel's own first."""
    lines = []
    for name, rows in rows_by_law.items():
        paced = [row for row in rows if row.is_paced]
        order = summarise_orders(valid_orders(rows))
        lines.append(
            [
                name,
                *_errors(valid(rows)),
                both(summarise(valid(rows)).task),
                both(summarise(paced).response),
                tau_text(order.tau),
                tau_text(order.clear_tau),
                share(order.clear_wrong),
            ]
        )
    return Sheet(
        "laws",
        f"Laws that time the same decisions, up to {VALID_LOAD:.0%} load",
        ["law", *ERRORS, "single tasks", "any load", "tau", "tau clear", "clear"],
        lines,
        "A law says which share of its capacity a resource gives a new stream; decisions are the same. n: streams in "
        "flight there; u: bytes decided lately, m: time for which streams were there lately, both over the traffic "
        "window; kept: the simulator's own. single tasks: median and, in brackets, p95, medians over rows; any load: "
        "response over all rows.",
    )

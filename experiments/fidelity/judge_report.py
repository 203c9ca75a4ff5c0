"""What a policy's gains are worth, in tables and in words: for each rule, over all cells and family by family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isnan

from experiments.fidelity.judge_gains import OURS, REFEREE, Pairing, Worth, worth
from experiments.fidelity.metrics import CLEAR
from experiments.fidelity.rows import Judged
from experiments.fidelity.verdict import share
from experiments.suite.learned_report import change_text
from experiments.suite.sheet import Sheet

WORST = 10  # cells that a table names
MOST_FAILURES = 3  # that are told one by one
ALL, TRAINING, HELD_OUT = "all", "training cells", "held out cells"
FACTOR = {False: "", True: ", factor"}
NOTE = (
    "Mean over cells of the policy's mean response over the rule's, less 1, with its 95% interval, paired by episode: "
    "in our world, and in SimGrid's with the same decisions. agree: cells in which both worlds name the same one of "
    "the two as better, of those in which SimGrid tells them apart; clear: of those in which they differ by more than "
    f"{CLEAR:.0%} there."
)
FACTOR_NOTE = " factor: our world as shipped, with the loaded-latency factor, which SimGrid never has."
CONTRARY_NOTE = (
    "Sorted by how clearly SimGrid says otherwise. load: of the busiest resource in SimGrid's world, under whom of the "
    "two it is busier."
)


def group_worths(pairings: Sequence[Pairing], seed: int) -> list[Worth]:
    """What all cells say of one rule, then those of training and those held out, then every family, the worst first.

    Args:
        pairings: with one rule, of one comparison.
        seed: of the bootstrap.
    """
    parts = {TRAINING: [p for p in pairings if not p.held_out], HELD_OUT: [p for p in pairings if p.held_out]}
    found = [worth(ALL, pairings, seed)]
    if all(parts.values()):
        found += [worth(name, part, seed) for name, part in parts.items()]
    families = dict.fromkeys(pairing.where.family for pairing in pairings)
    by_family = [worth(name, [p for p in pairings if p.where.family == name], seed) for name in families]
    return found + sorted(by_family, key=lambda each: -each.referee.estimate)


def sheets(worths: Sequence[Worth], pairings: Sequence[Pairing], seed: int) -> list[Sheet]:
    """All tables that have rows: against each rule, and the cells in which the worlds disagree.

    Args:
        worths: of all rules and comparisons; at least one.
        pairings: likewise.
        seed: of the bootstrap.
    """
    rules = dict.fromkeys(each.rule for each in worths)
    found = [against(rule, [each for each in worths if each.rule == rule]) for rule in rules]
    note = NOTE + FACTOR_NOTE * any(each.loaded_latency for each in worths)
    found[-1] = replace(found[-1], note=note)  # once, below the last
    return [sheet for sheet in [*found, contrary(pairings, seed)] if sheet.rows]


def against(rule: str, worths: Sequence[Worth]) -> Sheet:
    """One rule, with both comparisons side by side where there are two."""
    factors = list(dict.fromkeys(each.loaded_latency for each in worths))
    first = [each for each in worths if each.loaded_latency == factors[0]]
    known = {(each.name, each.loaded_latency): each for each in worths}
    headers = [f"{name}{FACTOR[factor]}" for factor in factors for name in ("ours", "SimGrid", "agree", "clear")]
    rows = [
        [each.name, str(each.num_cells)]
        + [text for factor in factors for text in _worth_cells(known.get((each.name, factor)))]
        for each in first
    ]
    return Sheet(f"against_{rule}", f"Mean response against {rule}", ["cells", "", *headers], rows)


def _worth_cells(found: Worth | None) -> list[str]:
    if found is None:
        return ["-"] * 4
    return [
        change_text(found.ours),
        change_text(found.referee),
        f"{found.agree} of {found.told}",
        f"{found.clear_agree} of {found.clear}",
    ]


def contrary(pairings: Sequence[Pairing], seed: int) -> Sheet:
    """The cells in which SimGrid clearly says that the other one is better."""
    apart = [each for each in pairings if each.agreement.clear_wrong]
    apart.sort(key=lambda each: -abs(each.ratio(REFEREE, seed).estimate - 1.0))
    return Sheet(
        "contrary",
        f"The worst of {len(apart)} cells in which SimGrid clearly says otherwise",
        ["cell", "rule", "factor", "load", "ours", "SimGrid"],
        [
            [
                each.where.cell_name,
                each.where.scheduler,
                "yes" if each.where.loaded_latency else "no",
                share(each.load),
                change_text(each.ratio(OURS, seed)),
                change_text(each.ratio(REFEREE, seed)),
            ]
            for each in apart[:WORST]
        ],
        CONTRARY_NOTE,
    )


def verdict(policy: str, worths: Sequence[Worth]) -> list[str]:
    """In words, of all cells: one line for each rule and comparison."""
    return [_verdict_line(policy, each) for each in worths if each.name == ALL]


def _verdict_line(policy: str, found: Worth) -> str:
    world = "as shipped" if found.loaded_latency else "without the loaded-latency factor"
    left = "" if isnan(found.kept) else f"; the gain there is {found.kept:.0%} of ours"
    return (
        f"{policy} against {found.rule}, our world {world}: mean response {change_text(found.ours)} in ours, "
        f"{change_text(found.referee)} in SimGrid{left}. The sign agrees in {found.agree} of {found.told} cells, and "
        f"in {found.clear_agree} of the {found.clear} where they differ there by more than {CLEAR:.0%}."
    )


def remarks(judged: Sequence[Judged], failures: Sequence[str]) -> list[str]:
    """What the referee could not play, or only by leaving something out.

    Args:
        judged: all that it played.
        failures: in words, what it could not.
    """
    lines = [f"Left out: {line}" for line in failures[:MOST_FAILURES]]
    if len(failures) > MOST_FAILURES:
        lines.append(f"Left out for like reasons: {len(failures) - MOST_FAILURES} more, which --json names.")
    shares = [played.left_out for each in judged for played in each.played]
    eased = [part for part in shares if part > 0.0]
    if eased:
        lines.append(
            f"In {len(eased)} of {len(shares)} replays SimGrid's solver ended only without uses of resources that "
            f"take less than {max(eased):.1g} of an activity's time."
        )
    return lines


def dropped(pairings: Sequence[Pairing]) -> list[str]:
    """A line on tasks that only one of two schedulers has placed, where there are any."""
    apart = [each for each in pairings if each.num_apart]
    if not apart:
        return []
    worst = max(apart, key=lambda each: each.num_apart)
    return [
        f"In {len(apart)} of {len(pairings)} comparisons one of the two dropped tasks that the other placed, up to "
        f"{worst.num_apart} ({worst.where.cell_name}, {worst.where.scheduler}); they count for neither."
    ]

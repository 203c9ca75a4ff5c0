"""Printing an explanation: a decision in words, its costs beside the rule's, and the situations of a run."""

from __future__ import annotations

from collections import Counter
from math import isfinite, isnan

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agents.explain_differences import FOLLOWED, Kind
from agents.explain_summary import Gain, Summary
from agents.explain_tree import Leaf, SmallTree
from agents.statistics import Interval
from experiments.explain import Explanation
from experiments.explain_words import Moved, compared, condition_texts, moved_by, pair_text, placement_text, time_text
from experiments.suite.sheet import Sheet
from numa_rl.wording import counted

MOST_REASONS = 5
FEWEST_LOGIT = 0.005  # of a reason or a row worth printing
TERMS = {
    "inputs_ready": "wait for object and inputs",
    "core": "wait for a core",
    "compute": "arithmetic",
    "software": "software overhead",
    "memory": "its own object, if idle",
    "memory_load": "  more, under load",
    "transfer": "its inputs, if idle",
    "transfer_load": "  more, under load",
    "migration": "moving the object, if idle",
    "migration_load": "  more, under load",
    "coherence": "other caches, if idle",
    "coherence_load": "  more, under load",
}
KINDS = {
    Kind.TASK_NODE: "other task node",
    Kind.DATA_NODE: "other data node",
    Kind.BOTH: "other nodes for both",
    None: "all that differ",
}


def print_explanation(explanation: Explanation, console: Console) -> None:
    """Print everything."""
    decision = explanation.decision
    moved = moved_by(decision)
    _print_words(explanation, moved, console)
    _terms_sheet(explanation).print(console)
    _moved_sheet(explanation, moved).print(console)
    if explanation.summary is not None:
        _print_run(explanation, explanation.summary, console)


def _names(explanation: Explanation) -> tuple[str, str]:
    """How the two placements are called."""
    return explanation.policy, "its second choice" if explanation.decision.agrees else explanation.rule


def _print_words(explanation: Explanation, moved: list[Moved], console: Console) -> None:
    """What was decided, what it costs now and later, and the strongest reasons."""
    decision, scenario = explanation.decision, explanation.scenario
    (first, second), (policy, other) = decision.nodes, _names(explanation)
    title = Text(f"Task {decision.task} of episode {decision.episode}", style="bold")
    console.print(title.append(f" of {scenario.name} on {scenario.topology.name}", style="not bold"))
    console.print(Text(f"{policy} puts {placement_text(*first)}."))
    if decision.agrees:
        console.print(Text(f"So does {explanation.rule}. {policy}'s second choice: {placement_text(*second)}."))
    else:
        console.print(Text(f"{explanation.rule} would put {placement_text(*second)}."))
    now, later = decision.terms.cost, decision.total
    line = Text(f"That costs {compared(now[0], now[1])} {other}'s now, {now[0]:.4g} against {now[1]:.4g}")
    if decision.num_followed:
        followed = counted(decision.num_followed, "decision")
        line.append(f"; with the {followed} after it, {compared(later[0], later[1])} that, ")
        line.append(f"{later[0]:.5g} against {later[1]:.5g}")
    console.print(line.append("."))
    attribution = decision.attribution
    gap = attribution.difference
    console.print(Text(f"Its logit is {abs(gap):.2f} {'above' if gap >= 0.0 else 'below'} that of {other}'s:"))
    reasons = [each for each in moved if abs(each.share) >= FEWEST_LOGIT and each.values[0] != each.values[1]]
    for each in reasons[:MOST_REASONS]:
        style = "green" if each.share > 0.0 else "red"
        line = Text("- ").append(f"{'for it' if each.share > 0.0 else 'against it'} {each.share:+.2f}", style=style)
        console.print(Padding(line.append(f": {_reason(each)}"), (0, 0, 0, 2)))
    console.print()


def _reason(moved: Moved) -> str:
    """What is so at the two placements."""
    (value, other), (where, elsewhere) = moved.values, moved.where
    words = moved.subject.words
    said = f"{words} is {value} on {where}, {other} on {elsewhere}"
    return said if abs(moved.elsewhere) < abs(moved.share) / 2 else f"{said}; mostly for what other nodes are like"


def _terms_sheet(explanation: Explanation) -> Sheet:
    """What both placements are charged, term by term."""
    decision, terms = explanation.decision, explanation.decision.terms
    rows: list[tuple[str, float, float]] = []
    sources = {
        f"  of inputs, from node {home}": decision.terms.sources_s[:, home]
        for home in range(decision.num_nodes)
        if decision.terms.sources_s[:, home].any()
    }
    for name, words in TERMS.items():
        more = terms.parts.get(f"{name}_load", terms.parts[name])  # so that no row of load stands without its own
        if terms.parts[name].any() or more.any():
            first, second = terms.parts[name].tolist()
            rows.append((words, first, second))
        if name == "coherence_load":
            rows.append(("= T_comm", *terms.comm_s.tolist()))
        if name == "memory_load":
            rows.append(("= T_exec", *terms.exec_s.tolist()))
        if name == "transfer_load":
            rows += [(source, *seconds.tolist()) for source, seconds in sources.items()]
    cells = [[words, time_text(a), time_text(b), _signed_time(a - b)] for words, a, b in rows]
    reward = explanation.scenario.reward
    for words, values in {
        f"Imbalance (x {reward.beta:g})": terms.imbalance,
        "cost -R": terms.cost,
        f"cost with the next {decision.num_followed}": decision.total,
    }.items():
        a, b = values.tolist()
        cells.append([words, f"{a:.4g}", f"{b:.4g}", "0" if a == b else f"{a - b:+.3g}"])
    headers = [f"{name}: {pair_text(*nodes)}" for name, nodes in zip(_names(explanation), decision.nodes, strict=True)]
    note = (
        f"cost -R = (T_exec + {reward.alpha:g} T_comm) / {time_text(reward.reference_s)} + {reward.beta:g} Imbalance. "
        "if idle: were no other stream in flight; more, under load: what the streams in flight add."
    )
    return Sheet("terms", "What it costs", ["", *headers, "difference"], cells, note)


def _signed_time(seconds: float) -> str:
    return "0" if seconds == 0.0 else f"{'+' if seconds > 0 else '-'}{time_text(abs(seconds))}"


def _moved_sheet(explanation: Explanation, moved: list[Moved]) -> Sheet:
    """What moved the difference of logits, input by input."""
    attribution = explanation.decision.attribution
    rows = [
        [each.subject.words, *each.values, f"{each.share:+.3f}", f"{each.elsewhere:+.3f}"]
        for each in moved
        if abs(each.share) >= FEWEST_LOGIT
    ]
    small = sum(each.share for each in moved if abs(each.share) < FEWEST_LOGIT)
    rows.append(["everything else", "", "", f"{small + attribution.left:+.3f}", ""])
    rows.append(["were all nodes alike", "", "", f"{attribution.alike:+.3f}", ""])
    rows.append(["= logit over the other's", "", "", f"{attribution.difference:+.3f}", ""])
    headers = ["input", *(pair_text(*nodes) for nodes in explanation.decision.nodes), "moves it by", "elsewhere"]
    note = (
        "Integrated gradients from a machine whose nodes are all alike: what is equal at both placements counts too "
        "if it is unlike the mean. elsewhere: how much of it is due to what other nodes are like."
    )
    return Sheet("moved", "What moved the logit", headers, rows, note)


def _print_run(explanation: Explanation, summary: Summary, console: Console) -> None:
    """How often the policy decides otherwise, what it gains, and when."""
    policy, rule = explanation.policy, explanation.rule
    decisions = summary.differences.kind.size
    title = f"{policy} beside {rule} in {explanation.num_episodes} episodes, {decisions} decisions"
    if None not in summary.gains:
        console.print(Text(title, style="bold"))
        console.print("The two never differ.")
        return
    rows = [[words, *_gain_cells(summary.gains[kind])] for kind, words in KINDS.items() if kind in summary.gains]
    note = (
        f"saved: the cost of {rule}'s placement less that of {policy}'s at the same moment, one decision at a time: of "
        f"that decision, and in the end, with the {FOLLOWED} after it, which the priced greedy rule makes; the mean, "
        "in brackets its 95% interval over episodes. better: share in which something was saved in the end."
    )
    Sheet("kinds", title, ["", "decisions", "share", "saved now", "saved in the end", "better"], rows, note).print(
        console
    )
    _print_when(explanation, summary, console)
    _print_which(explanation, summary, console)


def _gain_cells(gain: Gain) -> list[str]:
    return [str(gain.count), f"{gain.share:.1%}", _interval(gain.now), _interval(gain.later), f"{gain.better:.0%}"]


def _interval(interval: Interval) -> str:
    if not isfinite(interval.high - interval.low):
        return f"{interval.estimate:+.3f}"
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _print_when(explanation: Explanation, summary: Summary, console: Console) -> None:
    """The tree of when the two differ, the situations with most differences first."""
    console.print(Text("When they differ", style="bold"))
    tree = summary.when
    if tree is None:
        console.print(f"Too few decisions of one sort to tell when: {summary.gains[None].count} differ.\n")
        return
    table = _situations("differ", "saving")
    order = sorted(_used(tree), key=lambda leaf: -summary.gain_in(leaf)[0])
    for leaf in order:
        share, gain = summary.gain_in(leaf)
        cells = [f"{share:.0%} of {len(leaf.rows)}", "" if isnan(gain) else f"{gain:+.3f}"]
        table.add_row(*cells, _words(leaf, explanation), style="cyan" if leaf.label else "")
    console.print(table)
    _print_fidelity(tree, explanation.rule, console)


def _print_which(explanation: Explanation, summary: Summary, console: Console) -> None:
    """The tree of how they differ, the commonest situations first."""
    tree = summary.which
    if tree is None:
        return
    console.print(Text("How they differ, where they do", style="bold"))
    kinds = summary.differences.kind.ravel()[summary.differences.differs.ravel()]
    table = _situations("of", "mostly")
    for leaf in sorted(_used(tree), key=lambda leaf: -len(leaf.rows)):
        kind, count = Counter(kinds[leaf.rows].tolist()).most_common(1)[0]
        table.add_row(str(len(leaf.rows)), f"{KINDS[Kind(kind)]}, {count}", _words(leaf, explanation))
    console.print(table)
    _print_fidelity(tree, explanation.rule, console)


def _situations(*columns: str) -> Table:
    """A table of situations, whose conditions may take several lines."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("situation")
    return table


def _used(tree: SmallTree) -> list[Leaf]:
    """The situations that held-out decisions were in."""
    return [leaf for leaf in tree.leaves if len(leaf.rows)]


def _words(leaf: Leaf, explanation: Explanation) -> Text:
    return Text("; ".join(condition_texts(leaf, explanation.scenario.reward.reference_s)))


def _print_fidelity(tree: SmallTree, rule: str, console: Console) -> None:
    """How far a tree is to be trusted."""
    judged = tree.fidelity
    words = (
        f"Counted on {tree.num_held_out} held-out decisions; it is {rule}. The tree foretells {judged.accuracy:.1%} of "
        f"them, the most frequent answer alone {judged.majority:.1%}; balanced over the answers {judged.balanced:.1%}, "
        f"by one answer alone {1 / judged.classes:.1%}."
    )
    console.print(Text(words, style="dim"))
    console.print()

"""What a comparison of schedulers says: in words, and as a table."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table

from agents.statistics import Interval
from experiments.comparison import Comparison

NAMED_RULES = ("greedy", "migration-score", "priced-greedy")  # against which the summary names every interval
COST_COLUMNS = ("cost", "of best rule", "of oracle", "wins")  # first table where one does not fit


def summary(comparison: Comparison) -> list[str]:
    """What the comparison says in words: the learned policy against the best rule, then who is worse."""
    best = comparison.best_rule
    lines = []
    words = {"better": "beats", "worse": "is worse than", "open": "is not told apart from"}
    for standing in comparison.learned:
        gap, low, high = (_percent(value) for value in _values(standing.ratio))
        lines.append(
            f"{standing.name} {words[standing.verdict]} the best tuned rule, {best.name}: "
            f"cost {gap} (95% interval {low} to {high})."
        )
        against = [
            f"{name} {_percent(ratio.estimate)} ({_percent(ratio.low)} to {_percent(ratio.high)})"
            for name, ratio in comparison.against_rules(standing).items()
            if name in NAMED_RULES and name != best.name
        ]
        if against:
            lines.append(f"{standing.name} against the others: {', '.join(against)}.")
    others = [standing for standing in reversed(comparison.standings) if standing is not best]
    worse = [standing.name for standing in others if standing.verdict == "worse"]
    close = [standing.name for standing in others if standing.verdict == "open" and standing.is_rule]
    if worse:
        lines.append(f"Worse than the best rule, {best.name}: {', '.join(worse)}.")
    if close:
        lines.append(f"Not told apart from {best.name}: {', '.join(close)}.")
    if comparison.oracle is not None:
        lines.append(f"The oracle, which knows all arrivals, costs {comparison.oracle.estimate:.3g} a decision.")
    return lines


def _percent(ratio: float) -> str:
    """How much more than 1 a ratio is."""
    return f"{100.0 * (ratio - 1.0):+.1f}%"


def _values(interval: Interval) -> tuple[float, float, float]:
    return interval.estimate, interval.low, interval.high


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the summary and the table; a terminal too narrow for one table gets two."""
    for line in summary(comparison):
        console.print(line, highlight=False, markup=False)
    columns = _columns(comparison)
    table = _table(comparison, columns)
    unbounded = console.options.update(width=1000)
    if console.measure(table, options=unbounded).maximum <= console.width:
        console.print(table)
    else:
        costs = [name for name in columns if name in COST_COLUMNS]
        for half in (costs, [name for name in columns if name not in COST_COLUMNS]):
            console.print(_table(comparison, {name: columns[name] for name in half}))
    console.print(
        f"{comparison.scenario.name}: {comparison.num_episodes} test episodes of "
        f"{comparison.best_rule.results.response_s.shape[1]} decisions on {comparison.scenario.topology.name}; "
        "mean [95% bootstrap interval], paired by episode. "
        + ("of oracle: the oracle's mean cost over one's own; " if comparison.oracle is not None else "")
        + "wins: episodes cheaper than with the best rule, ties half; "
        "p99: response time; remote: share of bytes between nodes; moves: migrations; "
        "B_load: 1 - sigma / mu of the nodes' outstanding work; OOM: tasks dropped; us: time of one decision.",
        style="dim",
        highlight=False,
        markup=False,
    )


def _columns(comparison: Comparison) -> Mapping[str, list[str]]:
    """Cells of each column, one for each scheduler."""
    columns: dict[str, list[str]] = {}
    for standing in comparison.standings:
        percent = standing.percent_of_oracle
        cells = {
            "cost": _cell(standing.cost),
            "of best rule": _cell(standing.ratio),
            **({"of oracle": f"{percent:.1f}%"} if percent is not None else {}),
            "wins": f"{standing.win_rate:.0%}" if standing is not comparison.best_rule else "-",
            "p99 s": f"{standing.p99_response_s:.3g}",
            "remote": f"{standing.remote_ratio:.0%}",
            "moves/100": f"{standing.migrations_per_100:.1f}",
            "B_load": f"{standing.load_balance:.2f}",
            "OOM": str(standing.out_of_memory),
            "us": f"{standing.decision_us:.0f}",
        }
        for name, cell in cells.items():
            columns.setdefault(name, []).append(cell)
    return columns


def _cell(interval: Interval) -> str:
    """An estimate and its interval in a few characters."""
    digits = 2 if interval.estimate < 10.0 else 1 if interval.estimate < 100.0 else 0
    estimate, low, high = (f"{value:.{digits}f}" for value in _values(interval))
    return f"{estimate} \\[{low}, {high}]"


def _table(comparison: Comparison, columns: Mapping[str, list[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("scheduler", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for standing, *cells in zip(comparison.standings, *columns.values(), strict=True):
        if standing.is_rule:
            style = "bold" if standing is comparison.best_rule else ""
        else:
            style = {"better": "bold green", "worse": "bold red", "open": "bold yellow"}[standing.verdict]
        table.add_row(standing.name, *cells, style=style)
    return table

"""Printing what ways to lay out and store a KV cache led to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from numa_rl.transformer.kv_storage import StorageError
from numa_rl.wording import counted

if TYPE_CHECKING:
    from experiments.transformer.kv_cache import Row, Study

HEADERS = ("remote\nMB", "local\nMB", "token\nms", "faster", "cache\nGB", "error")


def print_study(study: Study, console: Console) -> None:
    """Print a table of all ways, what its columns mean, and what stands out."""
    cache = study.cache
    title = Text(study.topology.name, style="bold")
    placed = "in the program's own layout" if study.rule is None else f"placed by {study.rule}"
    title.append(
        f"  KV cache of {counted(cache.layers, 'layer')} x {counted(cache.kv_heads, 'head')} x {cache.head_dim}, "
        f"{counted(cache.batch, 'sequence')} of {counted(cache.tokens, 'token')} (median): "
        f"{cache.token_bytes / 1e3:.4g} kB per token, {cache.num_bytes / 1e9:.4g} GB in half precision; {placed}",
        style="not bold",
    )
    console.print(title, highlight=False)
    console.print(_table(study))
    for line in _meanings(study):
        console.print(line, style="dim", highlight=False)
    for problem in dict.fromkeys(row.problem for row in study.rows if row.problem):
        titles = ", ".join(_named(row, study) for row in study.rows if row.problem == problem)
        console.print(Text(f"Not played: {titles}: {problem}"), style="yellow")
    for row in study.rows:
        if row.played is not None and row.played.redirected:
            console.print(Text(f"{_named(row, study)}: {_full(row)}"), style="yellow")
    for reason in study.impossible:
        console.print(Text(f"Left out: {reason}"), style="yellow")
    _print_best(study, console)


def _table(study: Study) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("cache", no_wrap=True)
    if study.rule is None:
        table.add_column("work", no_wrap=True)
    for header in HEADERS:
        table.add_column(header, justify="right", no_wrap=True)
    baseline = next(row.played for row in study.rows if row.played is not None)
    best = min(row.played.token_s for row in study.rows if row.played is not None)
    for index, row in enumerate(study.rows):
        starts = index + 1 < len(study.rows) and _part(study.rows[index + 1]) != _part(row)
        cells = ["-"] * len(HEADERS)
        played = row.played
        if played is not None:
            cells = [
                f"{played.remote_bytes / 1e6:.4g}",
                f"{played.local_bytes / 1e6:.4g}",
                f"{played.token_s * 1e3:.4g}",
                f"{baseline.token_s / played.token_s:.2f}x",
                f"{played.cache_bytes.max() / 1e9:.4g}",
                f"{row.error.output_error:.2%}",
            ]
        work = [row.way.work] if study.rule is None else []
        style = "green" if played is not None and played.token_s == best else ""
        table.add_row(row.way.title, *work, *cells, style=style, end_section=starts)
    return table


def _part(row: Row) -> tuple[bool, bool]:
    """What belongs together in the table: a layout with work that stays or follows, or a way to store."""
    stores = row.way.family.page_tokens > 0
    return stores, row.way.family.follows_cache


def _full(row: Row) -> str:
    assert row.played is not None
    return f"{counted(row.played.redirected, 'object')} went to another node than asked for, which was full."


def _meanings(study: Study) -> list[str]:
    """What the columns mean."""
    lines = [
        "Remote, local: moved between and within nodes for each token of a sequence; token: its time; cache: on the "
        "fullest node; error: of what attention gives, measured on random arrays with large key channels, sinks and "
        "heavy hitters."
    ]
    if study.rule is None:
        lines.append(
            "Work stays with its sequences and reads caches where they are, or follows the cache from layer to layer. "
            "Options with + are added one after another to the first row."
        )
    seen: dict[str, StorageError] = {}
    for row in study.rows:
        storage = row.way.storage
        name = f"{storage.bits} bits" + (f", {storage.kept_share:.3g} kept" if storage.kept_share < 1 else "")
        seen.setdefault(name, row.error)
    parts = [
        f"{name}: {error.bytes_share:.3g} of the bytes, keys {error.key_error:.2%} off, "
        f"values {error.value_error:.2%}, {error.kept_mass:.0%} of attention kept"
        for name, error in seen.items()
    ]
    return [*lines, "; ".join(parts) + "."]


def _print_best(study: Study, console: Console) -> None:
    """Which way is fastest, and which moves least between nodes."""
    played = [(row, row.played) for row in study.rows if row.played is not None]
    fastest, _ = min(played, key=lambda pair: pair[1].token_s)
    console.print(Text("Fastest: ", "bold").append(_named(fastest, study), "bold green"))


def _named(row: Row, study: Study) -> str:
    return row.way.title if study.rule is not None else f"{row.way.title} (work {row.way.work})"

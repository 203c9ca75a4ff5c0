"""The suite's files: Parquet, Markdown, CSV and the profile's picture, each written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from experiments.files import write_bytes, write_json
from experiments.suite.profile_plot import profile_png
from experiments.suite.report import every_cell, summary, wins_by_cell
from experiments.suite.results import Entry, SuiteResult
from experiments.suite.sheet import Sheet
from numa_rl.metrics import MEANINGS

INTEGERS = ("migrations", "fallbacks", "out_of_memory")
FIGURES = (
    *("cost", "exec_cost", "comm_cost", "imbalance", "remote_ratio", *INTEGERS, "finish_s", "p99_response_s"),
    *MEANINGS,
)
SCHEMA = pa.schema(
    [
        ("cell", pa.string()),
        ("family", pa.string()),
        ("machine", pa.string()),
        ("num_nodes", pa.int64()),
        ("held_out", pa.bool_()),
        ("scheduler", pa.string()),
        ("kind", pa.string()),
        ("tuning", pa.string()),
        ("sees_future", pa.bool_()),
        ("failed", pa.string()),
        ("episode", pa.int64()),
        *((name, pa.int64() if name in INTEGERS else pa.float64()) for name in FIGURES),
    ]
)


def results_table(result: SuiteResult, about: Mapping[str, Any]) -> pa.Table:
    """A row for each cell, scheduler and episode; a single one, without figures, where a scheduler failed.

    Args:
        result: what was played.
        about: what is told of the table as a whole, in the metadata of its schema, as JSON under the key `suite`.
    """
    parts = [_entry_columns(entry) for entry in result.entries]
    columns = {name: [value for part in parts for value in part[name]] for name in SCHEMA.names}
    metadata = {"suite": json.dumps(about, sort_keys=True)}
    return pa.table(columns, schema=SCHEMA).replace_schema_metadata(metadata)


def _entry_columns(entry: Entry) -> dict[str, list[Any]]:
    figures = {"episode": [None], **{name: [None] for name in FIGURES}} if entry.failed is not None else entry.result
    same = {
        "cell": entry.cell.name,
        "family": entry.cell.family,
        "machine": entry.cell.machine,
        "num_nodes": entry.cell.scenario.topology.num_nodes,
        "held_out": entry.cell.held_out,
        "scheduler": entry.player.name,
        "kind": entry.player.kind,
        "tuning": entry.tuning,
        "sees_future": entry.sees_future,
        "failed": entry.failed,
    }
    length = len(figures["episode"])
    return {name: [same[name]] * length if name in same else list(figures[name]) for name in SCHEMA.names}


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as a Parquet file: the same bytes for the same table."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def write_results(folder: Path, result: SuiteResult, sheets: Sequence[Sheet], about: Mapping[str, Any]) -> None:
    """Write everything that is the same in every run: the table of all episodes, the sheets, parameters and profiles.

    Raises:
        OSError: a file cannot be written.
    """
    opening = ["# Standard suite", "", f"{about['description']}; seed {result.seed}.", "", *summary(result), ""]
    markdown = "\n".join([*opening, *(sheet.markdown for sheet in sheets)])
    write_bytes(folder / "suite.parquet", parquet_bytes(results_table(result, about)))
    write_bytes(folder / "suite.md", markdown.encode())
    for sheet in (*sheets, every_cell(result), wins_by_cell(result)):
        write_bytes(folder / f"{sheet.name}.csv", sheet.csv.encode())
    write_bytes(folder / "profile.png", profile_png(result))
    write_json(folder / "tuned.json", asdict(result.tuned))

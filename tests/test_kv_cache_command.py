"""`numa-rl transformer kv-cache`: each option's effect, measured, and one line on what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.rules.catalog import rule_names
from experiments.transformer.kv_cache import KvCache, Study, study_cache
from experiments.transformer.kv_play import held_bytes
from numa_rl.machines.builders import mesh
from numa_rl.machines.catalog import load_machine
from numa_rl.simulator.simulator import Simulator
from numa_rl.topology import Topology
from numa_rl.transformer.kv_cache import kv_bytes_per_token
from numa_rl.workloads.kv_decode import KVDecode

SMALL = KvCache(width=256, layers=8, context=500, groups=8, group_sequences=1, steps=1, episodes=1)


@pytest.fixture(scope="module")
def cube() -> Topology:
    return load_machine("chapter-8-socket")


@pytest.fixture(scope="module")
def study(cube: Topology) -> Study:
    return study_cache(SMALL, cube)


def way(study: Study, title: str, work: str) -> Any:
    (row,) = [row for row in study.rows if (row.way.title, row.way.work) == (title, work)]
    return row


# Known answers, on the chapter's cube.


def test_every_layout_and_option_is_a_row(study):
    assert [(row.way.title, row.way.work) for row in study.rows] == [
        *((title, "stays") for title in ("layers in turn", "layers in blocks", "heads", "layers x heads")),
        *((title, "follows") for title in ("layers in turn", "layers in blocks", "heads", "layers x heads")),
        *((title, "stays") for title in ("+ pages of 16", "+ prefetch", "+ 8 bits", "+ 0.25 of tokens")),
        ("all but prefetch", "follows"),
    ]
    assert study.impossible == ()
    assert study.cache.token_bytes == kv_bytes_per_token(8, 8, 32, 2) == 8192


def test_work_that_stays_reads_seven_eighths_of_the_cache_from_elsewhere_in_every_layout(study):
    rows = study.rows[:4]
    for row in rows[1:]:
        assert row.played.remote_bytes == pytest.approx(rows[0].played.remote_bytes, rel=1e-5)
    assert rows[0].played.remote_bytes == pytest.approx(7 / 8 * 8192 * 500, rel=0.4)  # contexts are random


def test_work_that_follows_moves_hidden_vectors_only(study):
    turn, blocks, heads, _ = study.rows[4:8]
    vector = 256 * 2
    assert turn.played.remote_bytes == blocks.played.remote_bytes == 7 * vector  # a socket for each layer
    assert heads.played.remote_bytes == (8 * 14 - 7) * vector
    assert blocks.played.remote_bytes < 0.001 * study.rows[0].played.remote_bytes


def test_pages_take_what_is_there_and_change_nothing_else(study):
    reserved, paged = study.rows[0].played, way(study, "+ pages of 16", "stays").played
    assert paged.remote_bytes == pytest.approx(reserved.remote_bytes, rel=1e-6)
    assert reserved.cache_bytes.sum() == 8 * 8192 * (4 * 500 + 1)
    assert paged.cache_bytes.sum() < 0.5 * reserved.cache_bytes.sum()
    assert reserved.cache_imbalance == pytest.approx(0.0, abs=1e-9)


def test_prefetch_moves_as_much_between_sockets_and_more_within(study):
    paged, ahead = (way(study, title, "stays").played for title in ("+ pages of 16", "+ prefetch"))
    assert ahead.remote_bytes == pytest.approx(paged.remote_bytes, rel=1e-6)
    assert ahead.local_bytes > paged.local_bytes


def test_small_integers_and_fewer_tokens_move_what_they_store(study):
    ahead, small, few = (way(study, f"+ {title}", "stays") for title in ("prefetch", "8 bits", "0.25 of tokens"))
    assert small.played.remote_bytes / ahead.played.remote_bytes == pytest.approx(small.error.bytes_share, rel=0.01)
    assert few.played.remote_bytes / ahead.played.remote_bytes == pytest.approx(few.error.bytes_share, rel=0.05)
    assert ahead.error.output_error < small.error.output_error < few.error.output_error < 0.5
    assert small.played.token_s < ahead.played.token_s


def test_the_same_seed_gives_the_same_study(study, cube):
    assert json.dumps(study_cache(SMALL, cube).to_dict()) == json.dumps(study.to_dict())


# Where bytes are.


def test_bytes_on_nodes_are_those_that_the_simulator_counts(cube):
    family = KVDecode(layers=8, width=64, groups=2, most_tokens=8192, follows_cache=False)
    workload = family.generate(np.random.default_rng(0), 1)
    simulator = Simulator(cube, workload, 1, window_s=1.0)
    simulator.reset(0)
    rng = np.random.default_rng(0)
    for task in range(workload.num_tasks):
        weights = rng.integers(0, 2, 8) * (not workload.read_only[0, workload.object[0, task]])
        simulator.step(np.concatenate([rng.integers(0, 8, 2), weights])[None])  # copies, pages split, whole objects
    assert {-1, 0, 1} < set(simulator.state.objects[0]["form"].tolist())  # some have several copies
    everything = held_bytes(simulator, range(workload.num_objects))[0]
    assert everything == pytest.approx(simulator.state.memory_used_bytes[0], rel=0.02)  # but for whole pages
    assert everything.sum() == pytest.approx(simulator.state.memory_used_bytes[0].sum(), rel=1e-9)


# Machines and rules.


@pytest.mark.parametrize("rule", ["first-touch", "interleave"])
def test_a_rule_can_place_it(cube, rule):
    played = study_cache(replace(SMALL, rule=rule), cube)
    assert [row.way.title for row in played.rows][:3] == ["whole layers", "heads apart", "+ pages of 16"]
    for row in played.rows:
        assert row.played.token_s > 0
        assert row.played.cache_bytes.sum() > 0
    assert rule in rule_names()


def test_a_machine_of_one_node_moves_nothing_between_nodes():
    alone = study_cache(replace(SMALL, groups=4), mesh(1, 1))
    assert all(row.played.remote_bytes == 0.0 for row in alone.rows)


def test_too_few_heads_leave_out_layouts_by_heads(cube):
    few = study_cache(replace(SMALL, kv_heads=4), cube)
    assert len(few.impossible) == 1
    assert (
        "head-blocks must leave no socket empty, got 8 sockets for 8 layers of 4 heads: 4 sockets" in few.impossible[0]
    )
    assert {row.way.title for row in few.rows[:6]} == {"layers in turn", "layers in blocks", "layers x heads"}


def test_reservations_that_do_not_fit_are_said_and_pages_are_played(cube):
    small = replace(cube, memory_bytes=np.full(8, 10e6))  # 8 x 8192 x 2001 / 8 = 16.4 MB would be reserved on each
    tight = study_cache(SMALL, small)
    assert tight.rows[0].played is None
    assert "go to socket 0, which has 0.01 GB" in tight.rows[0].problem
    assert "bytes per element on these or another layout over 14 such sockets or more" in tight.rows[0].problem
    assert way(tight, "+ 8 bits", "stays").played is not None


# The command.


def test_the_command_prints_a_table_and_writes_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    path = tmp_path / "out.json"
    replace(SMALL, json=path).run()
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in out
    assert "+ 0.25 of tokens" in out
    assert "Fastest: " in out
    written = json.loads(path.read_text())
    assert written["machine"] == "chapter-8-socket"
    assert len(written["ways"]) == 13
    assert written["ways"][0]["decoding"]["remote_bytes"] > 1e6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"machine": "nowhere"}, "nowhere"),
        ({"layers": 0}, "layers must be a whole number >= 1, got 0"),
        ({"layers": 4}, "8 sockets for 4 layers of 8 heads: 4 sockets would do"),
        ({"heads": 7}, r"heads must divide width \(256\), got 7; 4 or 8 would do"),
        ({"kv_heads": 3}, r"kv_heads must divide heads \(8\), got 3"),
        ({"context": 0}, "--context must be >= 1, got 0"),
        ({"longest": 500}, "--longest must be >= 501, got 500"),
        ({"steps": 0}, "steps must be a whole number >= 1, got 0"),
        ({"groups": 0}, "groups must be a whole number >= 1, got 0"),
        ({"groups": 10**7}, "an episode must have at most 1000000 tasks"),
        ({"page_tokens": 0}, "--page-tokens must be >= 1, got 0"),
        ({"bits": 16}, "--bits must be one of 8, 4, got 16"),
        ({"key_scales": "row"}, "key_scales must be one of channel, token, got 'row'"),
        ({"kept_share": 0.0}, r"kept_share must be in \(0, 1\], got 0.0"),
        ({"kept_share": float("nan")}, r"kept_share must be in \(0, 1\], got nan"),
        ({"selection": "best"}, "selection must be one of heavy-hitters, window, got 'best'"),
        ({"rule": "best"}, "--rule must be one of random, .*, got 'best'"),
        ({"episodes": 0}, "--episodes must be >= 1, got 0"),
        ({"seed": -1}, "--seed must be >= 0, got -1"),
        ({"context": 10**12}, "the KV cache must fit: by layers-in-turn .* GB go to socket 0"),
        ({"json": Path("/")}, "--json must be a file that can be written"),
    ],
)
def test_bad_options_are_named(options, message, capsys):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **options).run()
    assert capsys.readouterr().out == ""

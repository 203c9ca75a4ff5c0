"""`numa-rl plan`: what it says of the chapter's model and of small ones, what it writes, and what it refuses."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.amounts import bytes_text, count_text, parse_bytes, parse_count, seconds_text
from experiments.plan import MemoryPlan
from numa_rl.machines.catalog import load_machine

CHAPTER = {"params": "200T", "sockets": 8, "memory_per_socket": "1TB", "mp": 64, "dp": 32, "pp": 8}
SMALL = {"layers": 12, "width": 192, "heads": 12, "sequence_tokens": 128, "batch_sequences": 24, "kv_sequences": 0}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(**options: Any) -> dict[str, Any]:
    """What the command writes."""
    with contextlib.redirect_stdout(io.StringIO()):
        MemoryPlan(**options, json=Path("out.json")).run()
    content: dict[str, Any] = json.loads(Path("out.json").read_text())
    return content


def printed(columns: int = 80, **options: Any) -> list[str]:
    """What the command prints, a line each, with single blanks."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setenv("COLUMNS", str(columns))
        MemoryPlan(**options).run()
    lines = out.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= columns
    return [" ".join(line.split()) for line in lines]


# Known answers.


def test_the_chapters_model_does_not_fit_8_tb_and_what_would_hold_it():
    content = written(**CHAPTER)
    assert content["fits"] is False
    assert content["needed_sockets"] == 2551
    whole = content["whole_bytes"]
    assert (whole["parameters"], whole["gradients"], whole["optimiser"]) == (400e12, 400e12, 1600e12)
    assert whole["total"] == pytest.approx(2550e12, rel=1e-4)
    assert whole["total"] == pytest.approx(sum(size for name, size in whole.items() if name != "total"))


def test_without_options_the_plan_is_the_chapters():
    assert MemoryPlan().outlook().to_dict() == MemoryPlan(params="200T").outlook().to_dict()


def test_what_each_option_changes():
    found = {each["option"]: each["bytes"] for each in written(**CHAPTER)["options"]}
    total = written(**CHAPTER)["whole_bytes"]["total"]
    cache = 45 * 2048 * 4 * 1104 * 122880
    assert found["keys and values of 512 tokens (ring)"] == pytest.approx(total - cache * 3 / 4)
    assert found["keys and values of 1 byte"] == pytest.approx(total - cache / 2)
    assert found["no KV cache"] == pytest.approx(total - cache)
    assert found["optimiser of 12 bytes (master copy)"] == pytest.approx(total + 800e12)
    assert found["gradients of 4 bytes"] == pytest.approx(total + 400e12)
    assert found["nothing recomputed"] > found["scores recomputed"] > total


def test_each_rank_of_the_chapters_split_by_what_replicas_share():
    shared = {plan["sharding"]: plan for plan in written(**CHAPTER)["shared"]}
    assert list(shared) == ["none", "optimiser", "gradients", "parameters"]
    assert shared["parameters"]["rank_bytes"]["parameters"] == pytest.approx(400e12 / 16384)
    assert shared["none"]["rank_bytes"]["optimiser"] == pytest.approx(1600e12 / 512)
    assert [plan["fits"] for plan in shared.values()] == [False, False, True, True]
    assert {plan["ranks"] for plan in shared.values()} == {16384}


def test_plans_are_written_best_first_and_the_split_asked_for_is_among_them():
    content = written(**CHAPTER)
    plans, place = content["plans"], content["given_place"]
    assert place == 7
    assert [plans[place - 1][name] for name in ("mp", "dp", "pp")] == [64, 32, 8]
    steps = [plan["step_s"] for plan in plans if plan["fits"]]
    assert steps == sorted(steps)
    assert all(plan["step_s"] == pytest.approx(sum(plan["time_s"].values())) for plan in plans)


def test_ranks_left_out_are_the_sockets_if_they_are_enough():
    assert {plan["ranks"] for plan in written(params="175B")["plans"]} == {8}


def test_ranks_left_out_double_from_the_sockets_until_a_plan_fits():
    assert {plan["ranks"] for plan in written(params="200T")["plans"]} == {4096}
    assert {plan["ranks"] for plan in written(params="200T", sockets=6)["plans"]} == {3072}


def test_a_shape_of_ones_own():
    content = written(layers=96, width=12288, heads=96)
    assert content["parameters"] == content["shape"]["parameters"] == 12 * 96 * 12288**2
    stated = written(params="175B", layers=96, width=12288, heads=96)
    assert (stated["parameters"], stated["shape"]["layers"]) == (175e9, 96)


def test_the_machines_figures_are_those_of_its_sockets():
    content = written(**SMALL, machine="r815")
    topology = load_machine("r815")
    assert content["cluster"]["memory_bytes"] == topology.memory_bytes.min()
    assert content["cluster"]["ranks_per_machine"] == topology.num_nodes
    slow = written(**SMALL, network_gb_per_s=1.0, network_latency_us=5.0)["cluster"]
    assert (slow["inter_bandwidth_bytes_per_s"], slow["inter_latency_s"]) == (1e9, pytest.approx(5e-6))


def test_a_window_of_keys_and_values_and_smaller_elements_are_counted():
    small = {**SMALL, "kv_sequences": 10}
    whole = written(**small)["whole_bytes"]
    ring = written(**small, kv_window_tokens=32, kv_bytes=1.0)["whole_bytes"]
    assert ring["kv_cache"] == whole["kv_cache"] / 8
    assert written(**SMALL, held_sequences=0)["whole_bytes"]["activations"] == 0.0


# What is printed.


@pytest.mark.parametrize("columns", [80, 120])
def test_the_chapters_plan_as_printed(columns):
    lines = printed(columns, **CHAPTER)
    text = " ".join(lines)
    for row in (
        "parameters 400 TB 200T x 2 bytes",
        "optimiser 1600 TB 200T x 8 bytes",
        "activations 100 TB 180 sequences of 2048 tokens, layers recomputed",
        "total 2550 TB each part once",
        "no KV cache 2500 TB 2501 no",
        "parameters 781.2 GB 781.2 GB 781.2 GB 24.41 GB",
        "sockets, no rank cut - - 16384 3277",
        "1 64x256x1 4x1 3 scores 5.73 d 767 GB 97 0 0 2 0 0",
        "7 64x32x8 1x32 3 - 7.46 d 657 GB 75 0 0 7 18 0",
    ):
        assert row in lines
    assert "Does not fit: 8 sockets of 1 TB have room for 8 TB of 2550 TB. 2551 sockets would hold it" in text
    assert "64x32x8 is number 7. Its step takes 30.3% longer than that of 64x256x1, most of it in bubble" in text
    assert "8 stages wait for 22% of their work, (PP - 1)/m = 7/32." in text


def test_what_fits_says_so():
    text = " ".join(printed(params="7B"))
    assert "Fits: 8 sockets of 1 TB have room for 8 TB" in text
    assert "the fastest that fits; its replicas share" in text


def test_a_split_that_does_not_fit_says_what_a_rank_keeps():
    text = " ".join(printed(**CHAPTER, sharding=("none",)))
    assert "0 of 25 splits fit." in text
    assert "64x32x8 is number 2. It does not fit: a rank keeps 4.701 TB at least, and has 1 TB." in text


def test_the_best_split_asked_for_says_so():
    assert "64x256x1 is number 1. No split that fits is faster." in printed(params="200T", mp=64, dp=256, pp=1)


def test_ranks_that_are_too_few_say_how_many_would_do():
    text = " ".join(printed(params="200T", ranks=8))
    assert "0 of 10 splits fit." in text
    assert "None fits: 8x1x1 leaves a rank least to keep; 4096 ranks would do." in text
    assert written(params="200T", ranks=8)["enough_ranks"] == 4096
    assert "nor would any of 2, 4, 8 ... times as many ranks" in " ".join(printed(**CHAPTER, sharding=("none",)))


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"mp": 8, "dp": 1, "pp": 1, "machine": "chapter-2-socket"}, "MP groups of 8 span 4 machines"),
        ({"mp": 1, "dp": 8, "pp": 1, "sequence_tokens": 1}, "a rank updates all of the optimiser's state"),
        ({"mp": 4, "dp": 2, "pp": 1, "sequence_tokens": 1}, "a rank updates 1/4 of the optimiser's state"),
        (
            {"mp": 1, "dp": 8, "pp": 1, "machine": "chapter-2-socket", "network_gb_per_s": 0.01},
            "8 replicas share none over 4 machines",
        ),
    ],
)
def test_the_cause_of_a_slower_split(options, cause):
    model = {"layers": 8, "width": 1024, "heads": 8, "batch_sequences": 8, "kv_sequences": 0, "sharding": ("none",)}
    assert cause in " ".join(printed(**(model | options)))


def test_where_no_number_of_ranks_would_do_it_says_so():
    lines = " ".join(printed(params="200T", sharding=("none",)))
    assert (
        "Neither 8 ranks, nor twice, four times ... as many up to 1048576 can be split so that each has room." in lines
    )


def test_sockets_that_divide_nothing_say_how_many_ranks_would_do():
    small = {"layers": 16, "width": 512, "heads": 8, "batch_sequences": 64, "kv_sequences": 0}
    lines = " ".join(printed(**small, sockets=9))
    assert "Neither 9 ranks, nor twice, four times ... as many" in lines
    assert "so that each has room; 8 ranks would do." in lines
    assert written(**small, sockets=9)["other_ranks"] == 8
    assert written(**small, sockets=8)["other_ranks"] is None


# Amounts.


@pytest.mark.parametrize(
    ("text", "value"),
    [("200T", 200e12), ("175B", 175e9), ("1.5g", 1.5e9), ("7e9", 7e9), (" 12 m ", 12e6), (".5k", 500), ("1p", 1e15)],
)
def test_counts_are_read(text, value):
    assert parse_count(text, "--params") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("1TB", 1e12), ("512GiB", 2**39), ("512 gib", 2**39), ("64G", 64e9), ("1e12", 1e12), ("8B", 8), ("2Mi", 2**21)],
)
def test_bytes_are_read(text, value):
    assert parse_bytes(text, "--memory") == value


@pytest.mark.parametrize(
    "text", ["", "T", "-1T", "0", "nan", "inf", "1e999", "200X", "1 2T", "1,5T", "0x10", "1e", "1TB/s", "--"]
)
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(ValueError, match=r"^--params must be a number > 0 such as 7e9, 175B or 200T, got "):
        parse_count(text, "--params")
    with pytest.raises(ValueError, match=r"^--memory must be a number of bytes > 0 such as 1e12, 1TB or 512GiB, got "):
        parse_bytes(text, "--memory")


@given(st.floats(1.0, 1e18))
def test_amounts_are_written_as_they_are_read(value):
    assert parse_bytes(bytes_text(value), "bytes") == pytest.approx(value, rel=1e-3)
    assert parse_count(count_text(value), "count") == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0 ns"), (3e-7, "300 ns"), (0.002, "2 ms"), (59.0, "59 s"), (90, "1.5 min"), (1e9, "11574 d")],
)
def test_times_are_written(value, text):
    assert seconds_text(value) == text


# Bad input.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"params": "many"}, "--params must be a number > 0 .* got 'many'"),
        ({"params": "1e5"}, "parameters must be finite and >= 196608"),
        ({"params": "1e300"}, "parameters must be in 1..1e.18, got 1e.300"),
        ({"params": "200T", "layers": 96}, "--layers, --width and --heads must be given together, got no --width"),
        ({"params": "200T", "kv_heads": 8}, "--kv-heads must come with --layers, --width and --heads"),
        ({**SMALL, "params": "200T"}, "--params must be about those of the shape .5.308M., got 200T"),
        ({**SMALL, "heads": 7}, "heads must divide width"),
        ({"params": "7B", "memory_per_socket": "-1"}, "--memory-per-socket must be a number of bytes > 0"),
        ({"params": "7B", "sockets": 0}, "sockets must be a whole number >= 1, got 0"),
        ({"params": "7B", "best": 0}, "best must be a whole number >= 1, got 0"),
        ({"params": "7B", "machine": "nope"}, "machine must be one of"),
        ({"params": "7B", "network_gb_per_s": float("nan")}, "network_gb_per_s must be finite and > 0, got nan"),
        ({"params": "7B", "network_latency_us": -1.0}, "network_latency_us must be finite and >= 0, got -1"),
        ({"params": "7B", "sequence_tokens": 0}, "sequence_tokens must be a whole number"),
        ({"params": "7B", "held_sequences": -1}, "held_sequences must be a whole number"),
        ({"params": "7B", "optimiser_bytes": float("inf")}, "optimiser_bytes must be in 0..1000, got inf"),
        ({"params": "7B", "parameter_bytes": 1e308}, "parameter_bytes must be in 0.001..1000, got 1e.308"),
        ({"params": "7B", "sharding": ()}, "sharding must have at least one choice"),
        ({"params": "7B", "recompute": ()}, "recompute must have at least one choice"),
        ({"params": "7B", "mp": 2}, "--mp, --dp and --pp must be given together"),
        ({**SMALL, "mp": 5, "dp": 1, "pp": 1}, r"mp must divide heads \(12\).* got 5; 4 or 6 would do"),
        ({**SMALL, "mp": 1, "dp": 1, "pp": 5}, r"pp must divide layers \(12\), got 5; 4 or 6 would do"),
        ({**SMALL, "mp": 2, "dp": 2, "pp": 2, "ranks": 9}, r"--ranks must be MP x DP x PP \(8\).* got 9"),
        ({**SMALL, "ranks": 13}, "num_ranks must be MP x DP x PP where MP divides 12 heads"),
        ({**SMALL, "ranks": 0}, "num_ranks must be a whole number >= 1, got 0"),
        ({**SMALL, "micro_sequences": 5}, r"micro_sequences must divide the sequences of a step \(24\), got 5; 4 or 6"),
        ({"params": "7B", "json": Path("/proc/x")}, "--json must be a file that can be written"),
    ],
)
def test_what_is_wrong_is_refused_with_the_rule_and_the_value(options, message):
    with pytest.raises(ValueError, match=message):
        MemoryPlan(**options).run()

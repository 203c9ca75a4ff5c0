"""Which split of attention is fastest on a machine: times by hand, laws, and what a person reads on the console."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import toy_machine

from experiments.transformer.attention import MAP_TOKENS, Attention
from numa_rl.machines.builders import eight_socket_cube, four_socket, two_socket
from numa_rl.machines.catalog import load_machine, machine_names
from numa_rl.transformer.attention import AttentionShape, AttentionSplit, Weights
from numa_rl.transformer.attention_choice import best_split, feasible_splits, hiding_tokens, split_cost
from numa_rl.transformer.attention_count import SplitCount
from numa_rl.transformer.sequence_order import TokenOrder

CUBE = eight_socket_cube()
CONTIGUOUS, ZIGZAG, STRIPED = TokenOrder
SHAPE = AttentionShape(tokens=8192, width=4096, heads=32)


def roomy(num_nodes: int, **changes):
    """The toy machine, with memory that never fills."""
    return toy_machine(num_nodes, memory_bytes=[1e12] * num_nodes, **changes)


# Known answers


def test_times_on_two_toy_nodes_by_hand():
    # 4 tokens, 2 heads of 3 elements of 2 bytes. A node does 100 flop/s and reads 50 bytes/s from the other after 2 s.
    shape, machine = AttentionShape(tokens=4, width=6, heads=2), roomy(2, flops_per_s=[1.0, 1.0])
    sequence = split_cost(shape, AttentionSplit(1, 2), machine)
    head = split_cost(shape, AttentionSplit(2, 1), machine)
    assert sequence.projection_s == head.projection_s == 2 * 2 * (4 * 6 * 6)
    # A step of the ring: 2 x 2 pairs, 2 heads, 4 flop for each of 3 elements. All of 4 x 4 pairs for one head.
    np.testing.assert_allclose(sequence.work_s, [2 * 2 * 2 * 4 * 3] * 2)
    np.testing.assert_allclose(head.work_s, [4 * 4 * 4 * 3])
    # K and V of two tokens; Q, K and V of one head of two tokens there, and its outputs back; 2 s of latency each.
    np.testing.assert_allclose(sequence.read_s, [0.0, 48 / 50 + 2, 0.0])
    np.testing.assert_allclose(head.read_s, [36 / 50 + 2, 12 / 50 + 2])
    assert sequence.total_s == sequence.compute_s == 576 + 192
    assert head.total_s == pytest.approx(head.compute_s + 4.96)
    in_turn = replace(sequence, overlaps=False)
    assert in_turn.total_s == pytest.approx(sequence.compute_s + 2.96)


def test_a_node_without_arithmetic_to_speak_of_waits_for_its_memory():
    shape, machine = AttentionShape(tokens=4, width=6, heads=2), roomy(2, flops_per_s=[1e9, 1e9])
    cost = split_cost(shape, AttentionSplit(1, 2), machine, tile_tokens=1)
    # A step: K and V of 2 tokens for each of 2 queries, Q once, and the sums (2 x 2 x 5 x 4 bytes) there and back.
    np.testing.assert_allclose(cost.work_s, [(2 * 48 + 24 + 160) / 100] * 2, rtol=1e-6)
    # X and Y of 2 tokens, 48, the heads' four, 96, and the matrices, 288.
    assert cost.projection_s == pytest.approx((48 + 96 + 288) / 100)


def test_on_the_chapters_cube_the_ring_of_a_long_sequence_hides_and_wins():
    choice = best_split(SHAPE, CUBE)
    assert [cost.split.name for cost in choice.costs] == [
        "sequence 1 x 8",
        "hybrid 2 x 4",
        "hybrid 4 x 2",
        "head 8 x 1",
    ]
    assert (choice.best.exposed_s, choice.best.transfer_s) == (0.0, pytest.approx(3.915e-3, rel=1e-3))
    head = choice.of_kind("head")
    assert head.exposed_s == head.transfer_s
    assert head.total_bytes == 8192 * 128 * 2 * 7 * 4 * 32 // 8
    assert head.total_bytes == choice.best.total_bytes // 4  # 2 / p of what the ring moves


def test_short_sequences_are_for_heads_long_ones_for_the_sequence_and_hybrids_lie_between():
    kinds = [best_split(replace(SHAPE, tokens=tokens), CUBE).best.split.kind for tokens in (16, 64, 256)]
    assert kinds == ["head", "hybrid", "sequence"]


def test_in_turn_what_moves_least_wins_and_shared_heads_of_keys_decide_which_that_is():
    winners = {
        kv_heads: best_split(replace(SHAPE, kv_heads=kv_heads), CUBE, overlaps=False).best.split.kind
        for kv_heads in (32, 4)
    }
    assert winners == {32: "head", 4: "sequence"}  # H / G is 1, and 8 > p - 1


def test_fewer_heads_than_nodes_leave_hybrids_and_the_sequence():
    splits = {(split.head_parts, split.sequence_parts) for split in feasible_splits(AttentionShape(64, 8, 2), 8)}
    assert splits == {(1, 8), (2, 4)}
    orders = [split.order for split in feasible_splits(AttentionShape(15, 8, 2, causal=True), 8)]
    assert orders == [CONTIGUOUS, STRIPED, CONTIGUOUS, ZIGZAG, STRIPED]  # 15 tokens do not make 16 stretches


def test_the_ring_of_the_cube_hides_from_eleven_tokens_a_part_on():
    assert hiding_tokens(SHAPE, 320e9, 30e9) == pytest.approx(10.67, abs=0.01)
    assert hiding_tokens(replace(SHAPE, kv_heads=4), 320e9, 30e9) == pytest.approx(1.33, abs=0.01)
    assert hiding_tokens(replace(SHAPE, causal=True), 320e9, 30e9) == pytest.approx(21.33, abs=0.01)


# Laws


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 24), st.sampled_from([1, 2, 4]), st.booleans(), st.floats(50.0, 500.0))
def test_the_ring_hides_from_the_tokens_that_its_closed_form_says(tokens, kv_heads, causal, flops_per_s):
    tokens *= 2
    machine = roomy(
        2,
        flops_per_s=[flops_per_s] * 2,
        memory_bandwidth_bytes_per_s=[1e9] * 2,
        bandwidth_bytes_per_s=np.full((2, 2), 1e9),
        link_bandwidth_bytes_per_s=[20.0] * 2,
        latency_s=np.full((2, 2), 1e-12),
    )
    shape = AttentionShape(2 * tokens, 16, 4, kv_heads, causal=causal)
    cost = split_cost(shape, AttentionSplit(1, 2, ZIGZAG if causal else CONTIGUOUS), machine)
    ratio = hiding_tokens(shape, flops_per_s, 20.0) / tokens
    if causal:  # the first step, of a part's own tokens, has n (n + 1) / 2 pairs, not n n / 2
        ratio *= tokens / (tokens + 1)
    if ratio < 1.0 - 1e-9:
        assert cost.exposed_s == pytest.approx(0.0, abs=1e-9)
    if ratio > 1.0 + 1e-9:
        assert cost.exposed_s == pytest.approx(cost.transfer_s * (1.0 - 1.0 / ratio), rel=1e-6)


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from([8, 24, 64, 1000]),
    st.sampled_from([1, 2, 8]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([two_socket, four_socket]),
)
def test_the_best_is_the_least_of_all_and_overlap_never_costs(tokens, kv_heads, causal, overlaps, machine):
    shape = AttentionShape(tokens, 64, 8, kv_heads, causal=causal)
    choice = best_split(shape, machine(), overlaps=overlaps)
    assert choice.best.total_s == min(cost.total_s for cost in choice.costs)
    assert {cost.split for cost in choice.costs} == set(feasible_splits(shape, machine().num_nodes))
    for cost in choice.costs:
        assert 0.0 <= cost.exposed_s <= cost.transfer_s + 1e-18
        assert cost.total_s == pytest.approx(cost.compute_s + cost.exposed_s)
        assert replace(cost, overlaps=True).total_s <= replace(cost, overlaps=False).total_s


def test_a_node_reads_at_least_what_its_links_take_for_it():
    for cost in best_split(SHAPE, CUBE).costs:
        assert cost.transfer_s >= cost.received_bytes / (3 * 30e9)


@pytest.mark.parametrize("name", machine_names())
def test_every_machine_has_a_best_split_on_nodes_that_have_cores(name):
    machine = load_machine(name)
    nodes = min(int((machine.cores > 0).sum()), 4)  # placements on more take seconds
    best = best_split(replace(SHAPE, tokens=512, causal=True), machine, nodes).best
    assert len(set(best.nodes.tolist())) == nodes
    assert (machine.cores[best.nodes] > 0).all()


# Memory


def test_what_does_not_fit_comes_last_and_is_not_best():
    shape = replace(SHAPE, tokens=4096)
    counts = [SplitCount(shape, AttentionSplit(*parts)) for parts in ((1, 2), (2, 1))]
    needs = [int(count.peak_bytes_with_weights.max()) for count in counts]
    assert needs[1] < needs[0]
    machine = replace(two_socket(), memory_bytes=np.full(2, float(needs[1])))
    choice = best_split(shape, machine)
    assert [(cost.split.kind, cost.fits) for cost in choice.costs] == [("head", True), ("sequence", False)]
    assert choice.costs[1].total_s < choice.best.total_s
    assert choice.of_kind("sequence") is None


@pytest.mark.parametrize("causal", [False, True])
def test_as_many_nodes_as_a_refusal_names_have_the_room(causal):
    shape = AttentionShape(1000, 64, 8, causal=causal)
    room = shape.weight_bytes + 20_000
    machine = replace(two_socket(), memory_bytes=np.full(2, float(room)))
    with pytest.raises(ValueError, match="such nodes would do, split by sequence") as caught:
        best_split(shape, machine)
    words = str(caught.value).split()
    enough = int(words[words.index("such") - 1])
    assert enough > 2
    for order in TokenOrder:
        split = AttentionSplit(1, enough, order)
        assert SplitCount(shape, split).peak_bytes_with_weights.max() <= room


@pytest.mark.parametrize(
    ("room", "message"),
    [
        (20_000.0, "all weights alone take 3.277e-05 GB, so only weights split by heads might do."),
        (33_000.0, "not even a node for each token would do, but a smaller batch would"),
    ],
)
def test_a_refusal_says_what_no_number_of_nodes_can_mend(room, message):
    machine = replace(two_socket(), memory_bytes=np.full(2, room))
    with pytest.raises(ValueError, match="no split over 2 nodes fits: ") as caught:
        best_split(AttentionShape(1000, 64, 8), machine)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_nodes": 9}, "nodes must be in 1..8, those of chapter-8-socket that have cores, got 9."),
        ({"num_nodes": 0}, "nodes must be in 1..8, those of chapter-8-socket that have cores, got 0."),
        ({"tile_tokens": 0}, "tile_tokens must be >= 1, got 0."),
    ],
)
def test_bad_figures_are_refused(changes, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, unescaped
        best_split(SHAPE, CUBE, **changes)
    assert str(caught.value) == message


def test_more_nodes_than_tokens_are_refused():
    with pytest.raises(ValueError, match="tokens must be >= 8, one for each node, got 3; at most 3 nodes would fit"):
        best_split(replace(SHAPE, tokens=3), CUBE)


def test_weights_by_head_fit_where_all_of_them_do_not():
    shape = AttentionShape(8, 64, 8)
    machine = replace(two_socket(), memory_bytes=np.full(2, float(shape.weight_bytes)))
    with pytest.raises(ValueError, match="so only weights split by heads might do"):
        best_split(shape, machine)
    with pytest.raises(ValueError, match="so only weights of fewer bytes or a smaller width might do"):
        best_split(replace(shape, heads=1, kv_heads=1), machine)
    choice = best_split(shape, machine, weights=Weights.BY_HEAD)
    assert [(cost.split.kind, cost.fits) for cost in choice.costs] == [("head", True), ("sequence", False)]
    tiny = replace(machine, memory_bytes=np.full(2, 1000.0))
    with pytest.raises(ValueError, match="so only more nodes might do"):
        best_split(shape, tiny, weights=Weights.BY_HEAD)


# On the console


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    monkeypatch.chdir(tmp_path)

    def run(width: int = 80, **options) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(width))
        Attention(machine="chapter-8-socket", **options).run()
        return capsys.readouterr().out.splitlines()

    return run


def test_the_table_fits_eighty_columns_and_names_the_winner_and_why(printed):
    lines = printed(causal=True)
    assert all(len(line) <= 80 for line in lines)
    text = "\n".join(lines)
    assert "…" not in text
    assert "Fastest: sequence, 1 x 8 zigzag: reads 3.91 ms, 100% of it behind arithmetic." in text
    assert "head, 8 x 1: +0.20%, reads 1.26 ms, 0% of it behind arithmetic." in text
    assert "1.87 times the mean work" in text
    rows = [line.split() for line in lines if " x " in line and "MB" not in line][:10]
    assert rows[0][:5] == ["1", "x", "8", "zigzag", "704.6"]


def test_the_map_shows_all_three_kinds(printed):
    lines = printed(map=True, json=Path("out.json"))
    table = lines[lines.index("Which split wins") :]
    cells = {line.split()[0]: " ".join(line.split()[-3:]) for line in table if line.strip()[:1].isdigit()}
    assert len(cells) == len(MAP_TOKENS)
    assert (cells["16"], cells["262,144"]) == ("8 x 1", "1 x 8")
    content = json.loads(Path("out.json").read_text())
    by_key = {(entry["tokens"], entry["nodes"]): entry["best"]["split"] for entry in content["map"]}
    assert (by_key[16, 8], by_key[64, 8], by_key[256, 8]) == ("head", "hybrid", "sequence")
    assert content["best"] == content["splits"][0]
    assert content["best"]["bytes_between_nodes"] == 8192 * 128 * 2 * 7 * 64


def test_weights_may_be_split(printed):
    text = "\n".join(printed(split_weights=True, json=Path("out.json"), map=True))
    assert "weights by head" in text.replace("\n", " ")
    head = next(split for split in json.loads(Path("out.json").read_text())["splits"] if split["split"] == "head")
    assert head["weights"] == "by head"
    assert head["bytes_between_nodes"] == 2 * 7 * 8192 * 4096 * 2
    assert head["peak_bytes_with_weights"] - head["peak_bytes"] == 4 * 4096 * 4096 * 2 // 8


def test_on_one_node_nothing_is_read(printed):
    text = "\n".join(printed(nodes=1))
    assert "Fastest: one node, 1 x 1: reads nothing from other nodes." in text
    assert "A ring hides" not in text


def test_the_command_reads_its_options(numa_rl: Run):
    ended = numa_rl(
        *("transformer", "attention", "--machine", "chapter-4-socket", "--tokens", 64, "--width", 128, "--heads", 8),
        *("--kv-heads", 2, "--batch", 3, "--bytes-per-element", 4, "--causal", "--in-turn", "--nodes", 2),
        *("--json", "out.json"),
    )
    assert (ended.code, ended.err) == (0, "")
    assert ended.json["shape"] == {
        "tokens": 64,
        "width": 128,
        "heads": 8,
        "kv_heads": 2,
        "batch": 3,
        "bytes_per_element": 4,
        "causal": True,
    }
    expected = best_split(AttentionShape(64, 128, 8, 2, 3, 4, True), four_socket(), 2, overlaps=False)
    assert [split["total_s"] for split in ended.json["splits"]] == [cost.total_s for cost in expected.costs]
    assert not ended.json["best"]["overlaps"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--heads", 3), "heads must divide width (4096), as 2 or 4 would, got 3."),
        (("--tokens", -1), "tokens must be a whole number >= 1, got -1."),
        (("--tokens", 7), "tokens must be >= 8, one for each node, got 7; at most 7 nodes would fit."),
        (("--nodes", 9), "nodes must be in 1..8, those of chapter-8-socket that have cores, got 9."),
        (("--json", "."), "--json must be a file that can be written, got '.': Is a directory."),
        (("--batch", 10**6), "such nodes would do, split by sequence."),
    ],
)
def test_bad_options_end_in_one_line(numa_rl: Run, options, message):
    refused(numa_rl("transformer", "attention", "--machine", "chapter-8-socket", *options), message)

"""The Mooncake traces: arrivals, lengths, and blocks that form a tree."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numa_rl.workloads.mooncake import read_mooncake_trace

REAL = Path(__file__).parents[2] / "shared/data/traces/mooncake_conversation_trace.jsonl"


def line(timestamp=0, input_length=700, output_length=5, hash_ids=(0, 1)):
    return json.dumps(
        {
            "timestamp": timestamp,
            "input_length": input_length,
            "output_length": output_length,
            "hash_ids": hash_ids if isinstance(hash_ids, str) else list(hash_ids),
        }
    )


def write(tmp_path, *lines):
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(lines))
    return path


# Known answers.


def test_reads_arrivals_from_the_first_lengths_and_blocks(tmp_path):
    path = write(tmp_path, line(1500), "", line(1500, 512, 0, [0]), line(4000, 1025, 7, [0, 1, 9]))
    trace = read_mooncake_trace(path)
    assert trace.num_requests == 3
    assert trace.arrival_s.tolist() == [0.0, 0.0, 2.5]
    assert trace.input_tokens.tolist() == [700, 512, 1025]
    assert trace.output_tokens.tolist() == [5, 0, 7]
    assert trace.blocks.tolist() == [0, 1, 0, 0, 1, 9]
    assert trace.first_block.tolist() == [0, 2, 3, 6]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "trace.jsonl: trace must have at least one request, got none"),
        ([line(), "{"], "trace.jsonl:2: a line must be a JSON object, got '{'"),
        (["[1]"], "trace.jsonl:1: a line must be a JSON object, got '[1]'"),
        (["[" * 100_000], "trace.jsonl:1: a line must be a JSON object, got '[[["),
        (['{"timestamp": 1}'], "trace.jsonl:1: missing key input_length, got 'timestamp'"),
        ([line(timestamp=-1)], "trace.jsonl:1: timestamp must be a number in 0..1000000000000, got '-1'"),
        ([line(timestamp=float("nan"))], "trace.jsonl:1: timestamp must be a number in 0..1000000000000, got 'nan'"),
        ([line(timestamp=True)], "trace.jsonl:1: timestamp must be a number in 0..1000000000000, got 'True'"),
        ([line(5), "", line(4)], "trace.jsonl:3: timestamp must not be earlier than on the line before, got 4"),
        ([line(input_length=0)], "trace.jsonl:1: input_length must be a whole number in 1..1000000000, got '0'"),
        ([line(input_length=7.5)], "trace.jsonl:1: input_length must be a whole number in 1..1000000000, got '7.5'"),
        ([line(output_length=-1)], "trace.jsonl:1: output_length must be a whole number in 0..1000000000, got '-1'"),
        ([line(hash_ids="x")], "trace.jsonl:1: hash_ids must be a list of whole numbers, got 'x'"),
        ([line(hash_ids=[1])], "trace.jsonl:1: hash_ids must be 2 numbers, one for each 512 of 700 tokens, got 1"),
        ([line(hash_ids=[1, -2])], "trace.jsonl:1: hash_ids must be a whole number in 0.."),
        (
            [line(), line(hash_ids=[2, 1])],
            "trace.jsonl:2: hash_ids must form a tree: block 1 follows block 0 elsewhere",
        ),
        ([line(hash_ids=[3, 3])], "hash_ids must form a tree: block 3 follows nothing elsewhere, got block 3"),
        ([line(hash_ids=[0, 1]), line(hash_ids=[1, 2])], "block 1 follows block 0 elsewhere, got nothing"),
    ],
)
def test_errors_name_file_line_key_rule_and_value(tmp_path, lines, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, unescaped
        read_mooncake_trace(write(tmp_path, *lines))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_what_is_no_text_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: trace must be a readable file: No such file"):
        read_mooncake_trace(tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match="trace must be a readable file: Is a directory"):
        read_mooncake_trace(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x01")
    with pytest.raises(ValueError, match="trace must be UTF-8 text"):
        read_mooncake_trace(tmp_path / "binary")


# Laws.


@given(lengths=st.lists(st.tuples(st.integers(1, 4000), st.integers(0, 9)), min_size=1, max_size=9))
def test_what_is_written_is_read(tmp_path_factory, lengths):
    paths = [list(range(-(-tokens // 512))) for tokens, _ in lengths]
    lines = [line(7 * i, *length, path) for i, (length, path) in enumerate(zip(lengths, paths, strict=True))]
    trace = read_mooncake_trace(write(tmp_path_factory.mktemp("trace"), *lines))
    assert list(zip(trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True)) == lengths
    assert [run.tolist() for run in np.split(trace.blocks, trace.first_block[1:-1])] == paths


# A real input.


def test_reads_the_conversation_trace():
    if not REAL.exists():
        pytest.skip(f"the Mooncake conversation trace is not beside the checkout ({REAL.name})")
    trace = read_mooncake_trace(REAL)
    assert trace.num_requests == 12_031
    assert trace.arrival_s[-1] == 3536.999
    assert len(trace.blocks) == trace.first_block[-1] == 288_500
    assert len(np.unique(trace.blocks)) == 182_790

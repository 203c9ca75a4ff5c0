from pathlib import Path

import numpy as np
import pytest

from numa_rl.workloads.azure import read_azure_trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
REAL = Path(__file__).parents[2] / "shared/data/traces/AzureLLMInferenceTrace_conv_2023.csv"


def write(tmp_path, *lines, encoding="utf-8"):
    path = tmp_path / "trace.csv"
    path.write_text("\r\n".join(lines), encoding=encoding)  # as published: CRLF, none at the end
    return path


def test_reads_arrivals_from_the_first_and_lengths(tmp_path):
    path = write(tmp_path, HEADER, "2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:16:50.9951690,396,109")
    trace = read_azure_trace(path)
    np.testing.assert_allclose(trace.arrival_s, [0.0, 64.314579], atol=1e-6)
    assert trace.context_tokens.tolist() == [374, 396]
    assert trace.generated_tokens.tolist() == [44, 109]
    assert trace.num_requests == 2


def test_columns_may_stand_in_any_order_among_others(tmp_path):
    path = write(tmp_path, "id,GeneratedTokens,ContextTokens,TIMESTAMP", "7,1,2,2024-05-10 00:00:00.009930+00:00", "")
    trace = read_azure_trace(path)
    assert (trace.context_tokens.tolist(), trace.generated_tokens.tolist()) == ([2], [1])


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    assert read_azure_trace(write(tmp_path, HEADER, "2023-11-16,1,2", encoding="utf-8-sig")).num_requests == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [],
            "trace.csv: trace must open with the columns TIMESTAMP, ContextTokens, GeneratedTokens, got an empty file",
        ),
        ([HEADER], "trace.csv: trace must have at least one request, got none"),
        (["TIMESTAMP,ContextTokens", "2023-11-16,1"], "trace.csv:1: missing column GeneratedTokens"),
        ([HEADER, "2023-11-16,1,2", "2023-11-17,x,2"], "trace.csv:3: ContextTokens must be a whole number, got 'x'"),
        ([HEADER, "2023-11-16,1,2.5"], "trace.csv:2: GeneratedTokens must be a whole number, got '2.5'"),
        ([HEADER, "2023-11-16,1,"], "trace.csv:2: GeneratedTokens must be a whole number, got ''"),
        ([HEADER, "2023-11-16,-1,2"], "trace.csv:2: ContextTokens must be in 0..1000000000, got -1"),
        ([HEADER, f"2023-11-16,1,{10**30}"], "trace.csv:2: GeneratedTokens must be in 0..1000000000, got 1000"),
        ([HEADER, "yesterday,1,2"], "trace.csv:2: TIMESTAMP must be an ISO date and time, got 'yesterday'"),
        ([HEADER, "2023-11-16,1"], "trace.csv:2: a row must have 3 cells, got 2"),
        (
            [HEADER, "2023-11-16 10:00:00,1,2", "2023-11-16 09:59:59.9,1,2"],
            "trace.csv:3: TIMESTAMP must not be earlier than the row before, got '2023-11-16 09:59:59.9'",
        ),
        ([HEADER, '2023-11-16,"1,2'], "trace.csv:2: a row must be CSV"),
    ],
)
def test_errors_name_file_line_column_rule_and_value(tmp_path, lines, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, unescaped
        read_azure_trace(write(tmp_path, *lines))
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.csv: trace must be a readable file: No such file"):
        read_azure_trace(tmp_path / "nowhere.csv")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"trace\.csv: trace must be UTF-8 text"):
        read_azure_trace(path)


@pytest.fixture(scope="module")
def azure_trace():
    if not REAL.exists():
        pytest.skip("the Azure trace is not beside this checkout")
    return read_azure_trace(REAL)


def test_the_published_trace_has_its_requests(azure_trace):
    assert azure_trace.num_requests == 19_366
    assert azure_trace.arrival_s[-1] == pytest.approx(3501.72, abs=0.01)

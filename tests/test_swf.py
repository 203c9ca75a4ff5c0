"""The Standard Workload Format: fields, blocks, windows, errors, and memory that does not grow with the file."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numa_rl.workloads.swf import FIELDS, MOST_LINE_BYTES, UNKNOWN, read_swf, read_swf_header, swf_blocks

REAL = Path(__file__).parents[2] / "shared/data/traces/lublin_256.swf"
JOB = "1 10 2 300 16 290.5 1024 16 3600 2048 1 7 8 9 1 -1 -1 0"
OTHER = "2 11 -1 1 1 -1 -1 -1 -1 -1 1 -1 -1 -1 0 -1 -1 -1"


def write(tmp_path, text, name="jobs.swf"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_all_fields_are_read_in_their_order(tmp_path):
    jobs = read_swf(write(tmp_path, f"{JOB}\n"))
    expected = [1, 10, 2, 300, 16, 290.5, 1024, 16, 3600, 2048, 1, 7, 8, 9, 1, UNKNOWN, UNKNOWN, 0]
    assert tuple(jobs) == FIELDS
    assert [float(jobs[name][0]) for name in FIELDS] == expected


def test_comments_empty_lines_tabs_and_carriage_returns_are_passed_over(tmp_path):
    text = f"; Version: 2\r\n\r\n  {JOB}  \r\n;; in between\n\n" + "\t".join(OTHER.split())  # and no end of line
    assert read_swf(write(tmp_path, text), ("job", "run_s"))["run_s"].tolist() == [300, 1]


def test_the_header_ends_with_the_first_job(tmp_path):
    text = f"; Version: 2.2\n;   MaxProcs :  256\n; Note: a: b\n; Note: again\n; no key\n{JOB}\n; Late: 1\n"
    assert read_swf_header(write(tmp_path, text)) == {"Version": "2.2", "MaxProcs": "256", "Note": "a: b"}


def test_packed_files_are_read(tmp_path):
    path = write(tmp_path, gzip.compress(f"; MaxProcs: 4\n{JOB}\n{OTHER}\n".encode()), "jobs.swf.gz")
    assert read_swf(path)["job"].tolist() == [1, 2]
    assert read_swf_header(path) == {"MaxProcs": "4"}


@pytest.mark.parametrize(
    ("number", "value"), [("0", 0.0), ("-1", -1.0), ("007", 7.0), ("2.50", 2.5), (".5", 0.5), ("3.", 3.0), ("-0", 0.0)]
)
def test_decimal_numbers_are_read(tmp_path, number, value):
    assert read_swf(write(tmp_path, " ".join([number] * 18)))["think_s"].tolist() == [value]


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_what_was_written_is_read_in_blocks_and_windows(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("swf") / "jobs.swf"
    count = data.draw(st.integers(1, 1500))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    jobs = rng.integers(-1, 10 ** rng.integers(1, 13, 18), (count, 18))
    path.write_text("".join(f"{' ' * (i % 5)}{' '.join(map(str, row))}\n" for i, row in enumerate(jobs.tolist())))
    blocks = list(swf_blocks(path, block_bytes=MOST_LINE_BYTES))
    assert len(blocks) >= min(2, path.stat().st_size // MOST_LINE_BYTES)
    for column, name in enumerate(FIELDS):
        np.testing.assert_array_equal(np.concatenate([block[name] for block in blocks]), jobs[:, column])
    first, most = data.draw(st.integers(0, count - 1)), data.draw(st.integers(1, count))
    window = read_swf(path, ("submit_s",), first_job=first, num_jobs=most)
    assert list(window) == ["submit_s"]
    np.testing.assert_array_equal(window["submit_s"], jobs[first : first + most, 1])


def test_memory_does_not_grow_with_the_file(tmp_path):
    few, many = (write(tmp_path, f"{JOB}\n" * count, str(count)) for count in (20_000, 200_000))
    peaks = []
    for path in (few, few, many):  # the first compiles
        tracemalloc.start()
        for _ in swf_blocks(path, ("run_s",), block_bytes=2**18):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1]
    assert peaks[2] < many.stat().st_size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": a file in the Standard Workload Format must have at least one job, got none."),
        ("; only words\n", ": a file in the Standard Workload Format must have at least one job, got none."),
        (f"{JOB}\n\n1 2 3\n", ":3: a job must have 18 fields, got 3: '1 2 3'."),
        (f"; c\n{JOB} 5\n", f":2: a job must have 18 fields, got 19: '{JOB} 5'."),
        (JOB.replace("300", "soon"), ":1: field 4, run_s, must be a decimal number, got 'soon'."),
        (JOB.replace("300", "3e5"), ":1: field 4, run_s, must be a decimal number, got '3e5'."),
        (JOB.replace("300", "nan"), ":1: field 4, run_s, must be a decimal number, got 'nan'."),
        (JOB.replace("300", "-"), ":1: field 4, run_s, must be a decimal number, got '-'."),
        (JOB.replace("300", "1.2.3"), ":1: field 4, run_s, must be a decimal number, got '1.2.3'."),
        (JOB.replace("300", "-2"), ":1: field 4, run_s, must be at least 0, or -1 where it is not known, got '-2'."),
        (JOB.replace("300", "9" * 16), f":1: field 4, run_s, must have at most 15 digits, got '{'9' * 16}'."),
        (f"{JOB}\n" * 5000 + "x\n", ":5001: field 1, job, must be a decimal number, got 'x'."),
        ("1" * (MOST_LINE_BYTES + 10), ":1: a line must have at most 65536 bytes, got more."),
        (b"\x00\xff\n", ":1: field 1, job, must be a decimal number, got '\\x00\ufffd'."),
        (b"\x1f\x8bnothing", ": jobs must be in a readable file, plain or packed with gzip:"),
        (
            gzip.compress(JOB.encode() * 100, mtime=0)[:-9],
            ": jobs must be in a readable file, plain or packed with gzip:",
        ),
    ],
)
def test_errors_name_file_line_field_rule_and_value(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, unescaped
        list(swf_blocks(path, block_bytes=MOST_LINE_BYTES))
    assert str(caught.value).startswith(f"{path}{message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": ("runtime",)}, "a column must be one of job, submit_s"),
        ({"columns": ()}, "columns must be at least one, got none."),
        ({"first_job": -1}, "first_job must be >= 0, got -1."),
        ({"first_job": 1}, "first_job must be less than the number of jobs, 1, got 1."),
        ({"num_jobs": 0}, "num_jobs must be >= 1, got 0."),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, unescaped
        read_swf(write(tmp_path, JOB), **arguments)
    assert message in str(caught.value)


def test_small_blocks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="block_bytes must be >= 65536, got 1000"):
        swf_blocks(write(tmp_path, JOB), block_bytes=1000)


@pytest.mark.parametrize("path", ["nowhere.swf", "."])
def test_a_missing_file_or_a_folder_is_named(tmp_path, path):
    with pytest.raises(ValueError, match="jobs must be in a readable file"):
        read_swf(tmp_path / path)


def test_the_real_file_has_its_jobs():
    if not REAL.exists():
        pytest.skip(f"the job trace is not beside the checkout ({REAL.name})")
    jobs = read_swf(REAL)
    lines = [line.split() for line in REAL.read_text().splitlines() if not line.startswith(";")]
    np.testing.assert_array_equal(np.stack([jobs[name] for name in FIELDS], axis=1), np.array(lines, float))
    assert len(jobs["job"]) == 10_000 == int(read_swf_header(REAL)["MaxJobs"])

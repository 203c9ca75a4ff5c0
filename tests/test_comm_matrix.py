"""Communication matrices in EagerMap's format."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from numa_rl.workloads.comm_matrix import MOST_TASKS, read_communication_matrix
from numa_rl.workloads.text_lines import MOST_LINE_CHARACTERS

REAL = Path(__file__).parents[2] / "shared/data/traces/commmat_NAS_SP-OMP_64threads.csv"


def write(path, matrix):
    """As EagerMap reads it: a line for each task, the last task first."""
    path.write_text("".join(",".join(f"{cell:g}" for cell in row) + "\n" for row in matrix[::-1]))
    return path


# Known answers.


def test_the_last_line_is_the_first_task(tmp_path):
    path = tmp_path / "matrix.csv"
    path.write_text("5,7,0\n2,0,7\n0,2,5\n")  # tasks 2, 1, 0
    assert read_communication_matrix(path).tolist() == [[0, 2, 5], [2, 0, 7], [5, 7, 0]]


def test_blank_lines_blanks_crlf_and_a_byte_order_mark_say_nothing(tmp_path):
    path = tmp_path / "matrix.csv"
    path.write_text("\r\n 3 ,0\r\n0, 3\r\n\r\n", encoding="utf-8-sig")
    assert read_communication_matrix(path).tolist() == [[0, 3], [3, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "m.csv: communication matrix must have at least 2 lines, got an empty file"),
        ("0\n", f"m.csv:1: a matrix must be of 2..{MOST_TASKS} tasks, got 1 cells"),
        ("0," * MOST_TASKS + "0\n", f"m.csv:1: a matrix must be of 2..{MOST_TASKS} tasks, got {MOST_TASKS + 1} cells"),
        ("1,0\n", "m.csv:1: a matrix must have as many lines as cells, 2, got 1"),
        ("1,0\n0,1\n0,1\n", "m.csv:3: a matrix of 2 tasks must end here, got another line"),
        ("1,0\n0,1,2\n", "m.csv:2: a line must have 2 cells as the first one, got 3"),
        ("1,0\n0,x\n", "m.csv:2: cell 2 must be a finite number >= 0, got 'x'"),
        ("1,0\n0,nan\n", "m.csv:2: cell 2 must be a finite number >= 0, got 'nan'"),
        ("inf,0\n0,1\n", "m.csv:1: cell 1 must be a finite number >= 0, got 'inf'"),
        ("-1,0\n0,1\n", "m.csv:1: cell 1 must be a finite number >= 0, got '-1'"),
        ("1_0,0\n0,10\n", "m.csv:1: cell 1 must be a finite number >= 0, got '1_0'"),
        ("1,\n0,1\n", "m.csv:1: cell 2 must be a finite number >= 0, got ''"),
        ("0,1\n1,0\n", "m.csv:2: what task 0 exchanges with itself must be 0, got 1 (lines must stand in reverse"),
        ("1,0\n0,2\n", "m.csv:2: tasks 0 and 1 must exchange as much one way as the other, got 2 and 1 (lines"),
        ("0,0\n0,0\n", "m.csv: some tasks must communicate, got zeros only"),
        ("0\0,0\n0,0\n", "m.csv:1: communication matrix must be text, got a NUL byte"),
        ("1" * (MOST_LINE_CHARACTERS + 1), f"m.csv:1: a line must have at most {MOST_LINE_CHARACTERS} characters"),
    ],
)
def test_errors_name_file_line_rule_and_value(tmp_path, text, message):
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, unescaped
        read_communication_matrix(path)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


def test_what_is_no_text_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="communication matrix must be a readable file: Is a directory"):
        read_communication_matrix(tmp_path)
    with pytest.raises(ValueError, match=r"nowhere\.csv: communication matrix must be a readable file: No such file"):
        read_communication_matrix(tmp_path / "nowhere.csv")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x01")
    with pytest.raises(ValueError, match="communication matrix must be UTF-8 text"):
        read_communication_matrix(tmp_path / "binary")


# Laws.


@given(half=st.integers(2, 6).flatmap(lambda t: arrays(np.float64, (t, t), elements=st.integers(0, 99))).filter(np.any))
def test_what_is_written_is_read(tmp_path_factory, half):
    matrix = np.triu(half, 1) + np.triu(half, 1).T
    if matrix.any():
        path = write(tmp_path_factory.mktemp("matrix") / "m.csv", matrix)
        np.testing.assert_array_equal(read_communication_matrix(path), matrix)


# A real input.


def test_the_matrix_of_nas_sp_has_its_neighbours_beside_the_diagonal():
    if not REAL.exists():
        pytest.skip(f"the communication matrix of NAS SP is not beside the checkout ({REAL.name})")
    matrix = read_communication_matrix(REAL)
    assert matrix.shape == (64, 64)
    # The grid is cut into slabs: threads exchange most with the next ones, so the right order has the heavy band there.
    beside, across = np.diagonal(matrix, 1).mean(), np.diagonal(matrix[::-1], 1).mean()
    assert beside > 5 * across
    # The corner of the file, first line and column: the last thread and the first.
    assert matrix[63, 0] == 5656

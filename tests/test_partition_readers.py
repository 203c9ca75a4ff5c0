"""Graphs from files: numa_rl/partition/readers.py."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from numa_rl.partition.graph import Graph
from numa_rl.partition.readers import read_graph

TRACES = Path(__file__).parents[1].parent / "shared" / "data" / "traces"

# The graph of the METIS manual's figure 2: 7 vertices and 11 edges.
PLAIN = "7 11\n5 3 2\n1 3 4\n5 4 2 1\n2 3 6 7\n1 3 6\n5 4 7\n6 4\n"
EDGE_WEIGHTS = "7 11 1\n5 1 3 2 2 1\n1 1 3 2 4 1\n5 3 4 2 2 2 1 2\n2 1 3 2 6 2 7 5\n1 1 3 3 6 2\n5 2 4 2 7 6\n6 6 4 5\n"
ALL_WEIGHTS = "% all kinds\n3 2 111 1\n9 4 2 5 3 7\n9 1 1 5\n\t9 0 1 7 \n"  # size, weight, (neighbour, edge weight)...


def edges_of(graph: Graph) -> dict[tuple[int, int], float]:
    """The weight of each edge by its ends."""
    return {(a, b): weight for a, b, weight in zip(*(array.tolist() for array in graph.edges()), strict=True)}


def read_text(tmp_path: Path, name: str, text: str | bytes) -> Graph:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_graph(path)


# Known answers.


def test_metis_text_without_weights(tmp_path):
    graph = read_text(tmp_path, "a.graph", PLAIN)
    assert (graph.num_vertices, graph.num_edges) == (7, 11)
    assert set(graph.vertex_weights.tolist()) == set(graph.edge_weights.tolist()) == {1.0}
    assert graph.neighbours[: graph.offsets[1]].tolist() == [1, 2, 4]


def test_metis_text_with_edge_weights(tmp_path):
    edges = edges_of(read_text(tmp_path, "a.graph", EDGE_WEIGHTS))
    assert (edges[0, 2], edges[2, 4], edges[3, 6], edges[5, 6]) == (2.0, 3.0, 5.0, 6.0)


@pytest.mark.parametrize(
    ("text", "weights", "edges"),
    [
        ("2 1 0\n2\n1\n", [1, 1], {(0, 1): 1}),
        ("2 1 10\n4 2\n6 1\n", [4, 6], {(0, 1): 1}),
        ("2 1 011\n4 2 8\n6 1 8\n", [4, 6], {(0, 1): 8}),
        ("2 1 100\n5 2\n5 1\n", [1, 1], {(0, 1): 1}),
        ("2 1 110\n5 4 2\n5 6 1\n", [4, 6], {(0, 1): 1}),
        ("2 1 101\n5 2 8\n5 1 8\n", [1, 1], {(0, 1): 8}),
        (ALL_WEIGHTS, [4, 1, 0], {(0, 1): 5, (0, 2): 7}),
        ("3 1\r\n3\r\n\r\n1\r\n\r\n", [1, 1, 1], {(0, 2): 1}),  # the second vertex has no neighbours
        ("1 0\n\n", [1], {}),
        ("2 1\n% a comment between\n2\n1", [1, 1], {(0, 1): 1}),
    ],
)
def test_every_format_of_metis_text(tmp_path, text, weights, edges):
    graph = read_text(tmp_path, "a.graph", text)
    assert graph.vertex_weights.tolist() == weights
    assert edges_of(graph) == edges


@pytest.mark.parametrize(
    ("header", "entries", "edges"),
    [
        ("real symmetric", "3 3 3\n1 1 4\n2 1 -2.5\n3 2 1\n", {(0, 1): 2.5, (1, 2): 1.0}),
        ("real general", "3 3 3\n1 2 2\n2 1 -3\n1 3 1\n", {(0, 1): 5.0, (0, 2): 1.0}),
        ("pattern symmetric", "3 3 2\n2 1\n3 1\n", {(0, 1): 1.0, (0, 2): 1.0}),
        ("integer general", "2 2 1\n2 1 7\n", {(0, 1): 7.0}),
    ],
)
def test_matrix_market_files(tmp_path, header, entries, edges):
    graph = read_text(tmp_path, "a.mtx", f"%%MatrixMarket matrix coordinate {header}\n{entries}")
    assert edges_of(graph) == edges
    assert set(graph.vertex_weights.tolist()) == {1.0}


def test_a_communication_matrix_stands_in_reverse_order(tmp_path):
    graph = read_text(tmp_path, "a.csv", "5,7,0\n2,0,7\n0,2,5\n")
    assert edges_of(graph) == {(0, 1): 2.0, (0, 2): 5.0, (1, 2): 7.0}


def test_queries_are_one_episode_of_their_family(tmp_path):
    job = {"name": "q", "stages": [[2, 10.0, 1.0], [1, 5.0, 1.0]], "edges": [[0, 1]]}
    graph = read_text(tmp_path, "a.json", json.dumps({"jobs": [job]}))
    assert graph.num_vertices == 384
    assert graph.num_edges > 100


# Real input.


def test_recorded_files_become_graphs():
    if not TRACES.is_dir():
        pytest.skip("needs ../shared/data/traces")
    matrix = read_graph(TRACES / "commmat_NAS_SP-OMP_64threads.csv")
    assert (matrix.num_vertices, matrix.num_edges) == (64, 64 * 63 // 2)
    for path in (TRACES / "wfinstances").glob("*.json"):
        graph = read_graph(path)
        assert graph.num_edges >= graph.num_vertices - 1, path
        assert np.count_nonzero(graph.vertex_weights) > 5


# Bad input.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must open with the line 'vertices edges [format [weights]]', got ''."),
        ("a b\n", "must open with the line 'vertices edges [format [weights]]', got 'a b'."),
        ("-1 2\n", "must open with the line 'vertices edges [format [weights]]', got '-1 2'."),
        ("0 0\n", "vertices must be in 1..16777216, got 0."),
        ("99999999999999999999999 0\n", "vertices must be in 1..16777216, got 99999999999999999999."),
        ("2 1 2\n2\n1\n", "the header's format must be up to three digits 0 or 1, got '2'."),
        ("2 1 10 3\n1 1 1 2\n1 1 1 1\n", "vertices must have one weight each, got '3' in the header."),
        ("2 1\n2\n1\n1\n", "line 4: must not follow those of the 2 vertices, got more."),
        ("2 1\n2\n", "must have a line for each of 2 vertices, got 1."),
        ("2 2\n2\n1\n", "must name each of 2 edges at both ends, got 2 ends."),
        ("2 1\n3\n1\n", "line 2: neighbours must be in 1..2, got 3."),
        ("2 1\n1.5\n1\n", "line 2: neighbours must be in 1..2, got 1.5."),
        ("2 1\nnan\n1\n", "line 2: neighbours must be in 1..2, got nan."),
        ("2 1\nx\n1\n", "line 2: must be numbers, got 'x'."),
        ("2 1 1\n2\n1 1\n", "line 2: must have a value for each that the header names, got 1 values."),
        ("2 1 1\n2 3\n1 4\n", "edge (0, 1) must weigh the same at both ends, got 3.0 and 4.0."),
        ("2 1 1\n2 0\n1 0\n", "edge_weights[0] must be finite and > 0, got 0.0."),
        ("2 1 1\n2 inf\n1 inf\n", "edge_weights[0] must be finite and > 0, got inf."),
        ("2 1\n1\n2\n", "a vertex must not be its own neighbour, got 0."),
        ("2 1 10\n-4 2\n6 1\n", "vertex_weights[0] must be finite and >= 0, got -4.0."),
        (b"2 1\n2\n1\n\0", "must be text, got a NUL byte."),
    ],
)
def test_bad_metis_text_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        read_text(tmp_path, "a.graph", text)
    assert "\n" not in str(refusal.value)
    assert "a.graph" in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a Matrix Market file: "),
        ("hello\n", "must be a Matrix Market file: "),
        ("%%MatrixMarket matrix coordinate real general\n2 3 0\n", "a graph's matrix must be square, got 2 rows"),
        ("%%MatrixMarket matrix coordinate real general\n999999999 999999999 1\n1 1 1\n", "vertices must be in"),
        ("%%MatrixMarket matrix coordinate real general\n2 2 999999999999\n1 1 1\n", "edges must be in"),
        ("%%MatrixMarket matrix coordinate real general\n2 2 1\n1 2 nan\n", "edge_weights[0] must be finite and > 0"),
        ("%%MatrixMarket matrix coordinate real general\n2 2 1\n1 9 1\n", "must be a Matrix Market file: "),
        ("%%MatrixMarket matrix coordinate real general\n2 2 2\n1 2 1\n", "must be a Matrix Market file: "),
        (b"\x00\xff\xfe", "must be a Matrix Market file: "),
    ],
)
def test_bad_matrix_market_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        read_text(tmp_path, "a.mtx", text)
    assert "a.mtx" in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "a graph file must end in one of .graph, .mtx, .csv, .json, got"),
        ("a.csv", "1,2\n", "a.csv"),
        ("a.json", "{}", "a.json"),
        ("a.json", "[", "a.json: recorded graph must be JSON"),
        ("a.json", '{"jobs": 3}', "a.json"),
    ],
)
def test_other_bad_files_are_named(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_text(tmp_path, name, text)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for name in ("none.graph", "folder.graph"):
        (tmp_path / "folder.graph").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="must be an existing file, got none"):
            read_graph(tmp_path / name)

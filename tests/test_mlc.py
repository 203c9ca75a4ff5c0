from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numa_rl.machines.assembly import assemble, measured_on
from numa_rl.machines.builders import ring, two_socket
from numa_rl.machines.catalog import load_machine
from numa_rl.machines.machine_json import FIGURES
from numa_rl.machines.mlc import figures_of, found_in_mlc, is_mlc, parse_mlc
from numa_rl.topology import Topology

BANNER = "Intel(R) Memory Latency Checker - v3.9\nCommand line parameters: --all\n"
PEAK = """
Measuring Peak Injection Memory Bandwidths for the system
Bandwidths are in MB/sec (1 MB/sec = 1,000,000 Bytes/sec)
Using all the threads from each core if Hyper-threading is enabled
Using traffic with the following read-write ratios
ALL Reads        :\t225097.1\t
3:1 Reads-Writes :\t212457.8\t
Stream-triad like:\t190341.4\t
"""
TO_CACHE = """
Measuring cache-to-cache transfer latency (in ns)...
Local Socket L2->L2 HIT  latency\t48.6
Remote Socket L2->L2 HITM latency (data address homed in writer socket)
\t\t\tReader Numa Node
Writer Numa Node     0\t     1\t
            0\t     -\t 113.6\t
            1\t 113.6\t     -\t
"""
CURVE = """
Measuring Loaded Latencies for the system
Using all the threads from each core if Hyper-threading is enabled
Using Read-only traffic type
Inject\tLatency\tBandwidth
Delay\t(ns)\tMB/sec
==========================
 00000\t340.00\t 100000.0
 00200\t180.00\t  80000.0
 00500\t140.00\t  40000.0
 01000\t120.00\t  20000.0
 20000\t100.00\t     10.0
"""


def matrix(rows, heading: str, corner: str = "Numa node", nodes=None) -> str:
    columns = range(max(len(row) for row in rows)) if nodes is None else nodes
    names = range(len(rows)) if nodes is None else nodes
    header = f"{corner}\t" + "".join(f"{node:6}\t" for node in columns)
    lines = [f"{node:8}\t" + "".join(f"{value:6}\t" for value in row) for node, row in zip(names, rows, strict=False)]
    return "\n".join([heading, f"\t\t{corner}", header, *lines, ""])


def latency(rows, **more) -> str:
    return matrix(rows, "Measuring idle latencies (in ns)...", **more)


def bandwidth(rows, **more) -> str:
    heading = "\nMeasuring Memory Bandwidths between nodes within system \nUsing Read-only traffic type"
    return matrix(rows, heading, **more)


LATENCY, BANDWIDTH = [[77.9, 143.2], [144.4, 78.4]], [[113139.4, 50923.4], [50916.6, 113249.2]]
TEXT = BANNER + latency(LATENCY) + PEAK + bandwidth(BANDWIDTH) + CURVE + TO_CACHE


def read(text: str) -> Topology:
    return assemble(found_in_mlc("box", text))


def test_both_matrices_and_the_curve_are_read(tmp_path):
    path = tmp_path / "box.log"
    path.write_text(TEXT)
    topology = load_machine(str(path))
    np.testing.assert_allclose(topology.latency_s * 1e9, LATENCY)
    np.testing.assert_allclose(topology.bandwidth_bytes_per_s / 1e6, BANDWIDTH)
    np.testing.assert_allclose(topology.memory_bandwidth_bytes_per_s / 1e6, [113139.4, 113249.2])
    # Reads of node 0 from node 1 come over the link from 1 to 0.
    assert topology.links.tolist() == [[0, 1], [1, 0]]
    np.testing.assert_allclose(topology.link_bandwidth_bytes_per_s / 1e6, [50916.6, 50923.4])
    assert topology.loaded_latency.a == pytest.approx(0.8, abs=0.2)
    assert topology.loaded_latency.saturated == pytest.approx(3.4)
    assert topology.sources["latency_s"] == "measured: idle latency, Intel MLC v3.9"
    assert topology.sources["memory_bytes"].startswith("assumed:")
    assert set(topology.sources) == set(FIGURES)


@pytest.mark.parametrize(
    "heading",
    [
        "Measuring idle latencies (in ns)...",
        "Measuring idle latencies for random access (in ns)...",
        "Measuring idle latencies for sequential access (in ns)...",
    ],
)
@pytest.mark.parametrize("corner", ["Numa node", "Memory node", "Socket"])
def test_headings_of_all_versions_are_known(heading, corner):
    text = matrix(LATENCY, heading, corner)
    assert is_mlc(text)
    np.testing.assert_allclose(read(text).latency_s * 1e9, LATENCY)


def test_a_bandwidth_matrix_is_known_by_its_traffic_alone():
    text = latency(LATENCY) + matrix(BANDWIDTH, "\nUsing Read-only traffic type")
    np.testing.assert_allclose(read(text).bandwidth_bytes_per_s / 1e6, BANDWIDTH)


def test_a_memory_only_node_has_a_column_and_no_row():
    topology = read(latency([[84.5, 564.5]]) + bandwidth([[30562.8, 4795.3]]))
    assert topology.cores.tolist() == [8, 0]
    np.testing.assert_allclose(topology.latency_s * 1e9, [[84.5, 564.5], [564.5, 564.5]])
    assert (
        "derived: pairs 1 to 0, 1 to 1 of nodes without cores as what others see of them"
        in topology.sources["latency_s"]
    )


def test_pairs_not_measured_are_completed_and_it_is_said():
    topology = read(latency([[80, "-"], [140, 80]]))
    np.testing.assert_allclose(topology.latency_s * 1e9, [[80, 140], [140, 80]])
    assert "derived: pair 0 to 1 as the reverse" in topology.sources["latency_s"]


def test_node_numbers_may_have_gaps():
    assert read(latency(LATENCY, nodes=[0, 8])).num_nodes == 2


@given(
    st.integers(1, 8).flatmap(
        lambda n: st.lists(st.lists(st.integers(1, 9999), min_size=n, max_size=n), min_size=n, max_size=n)
    )
)
def test_what_is_written_is_read_back(tenths):
    rows = [[value / 10 for value in row] for row in tenths]
    measured = parse_mlc(BANNER + latency(rows) + PEAK + bandwidth(rows) + TO_CACHE)
    np.testing.assert_allclose(measured.matrix("latency") * 1e9, rows)
    np.testing.assert_allclose(measured.matrix("bandwidth") / 1e6, rows)


def test_a_base_machine_says_what_mlc_does_not(tmp_path):
    (tmp_path / "base.json").write_text(json.dumps(two_socket().to_dict()))
    (tmp_path / "mlc.txt").write_text(TEXT)
    topology = load_machine(f"{tmp_path}/mlc.txt#{tmp_path}/base.json")
    base = two_socket()
    assert topology.name == "mlc"
    assert topology.memory_bytes.tolist() == base.memory_bytes.tolist()
    np.testing.assert_allclose(topology.latency_s * 1e9, LATENCY)
    assert topology.sources["latency_s"] == "measured: idle latency, Intel MLC v3.9"
    assert topology.sources["memory_bytes"] == f"{base.sources['memory_bytes']}; given: by machine 'chapter-2-socket'"


def test_a_curve_alone_changes_the_base_machines_curve_only():
    topology = measured_on(two_socket(), *figures_of(parse_mlc(CURVE)))
    assert topology.loaded_latency.saturated == pytest.approx(3.4)
    np.testing.assert_array_equal(topology.latency_s, two_socket().latency_s)
    np.testing.assert_array_equal(topology.link_bandwidth_bytes_per_s, two_socket().link_bandwidth_bytes_per_s)


def test_links_of_the_base_machine_carry_what_was_measured_over_them():
    rows = [[100, 50, 20], [50, 100, 50], [20, 50, 100]]
    topology = measured_on(ring(3), *figures_of(parse_mlc(bandwidth(rows))))
    reads, _ = topology.route_links
    drawn = topology.bandwidth_bytes_per_s.ravel()[:, None]
    assert (reads * drawn <= topology.link_bandwidth_bytes_per_s).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BANNER, "must be a matrix of latency or bandwidth or a curve of loaded latency, got none"),
        (latency([[80, 140], [140]]), "the matrix of latency must have 2 figures a row, got '1 140'"),
        (latency([[80, 140], [140, 80, 9]], nodes=[0, 1]), "the matrix of latency must have 2 figures a row"),
        (latency([[80, -140], [140, 80]]), "the matrix of latency must hold numbers > 0, got '-140' at node 0"),
        (latency([[80, 0], [140, 80]]), "the matrix of latency must hold numbers > 0, got '0' at node 0"),
        (latency([[80, "nan"], [140, 80]]), "the matrix of latency must hold numbers > 0, got 'nan' at node 0"),
        (latency([[80, "1e999"], [140, 80]]), "the matrix of latency must hold numbers > 0"),
        (latency(LATENCY) + latency(LATENCY), "there must be one matrix of latency, got two"),
        (latency(LATENCY, nodes=[3, 3]), "must name each of at most 1024 nodes once"),
        ("Measuring idle latencies (in ns)...\nNuma node 0 1\n", "the matrix of latency must have at least one row"),
        ("Measuring idle latencies (in ns)...\nNuma node 0 1\n 5 80 140\n", r"must have a column, got \[5\] without"),
        ("Measuring idle latencies (in ns)...\nNuma node 0 1\n 0 80 140\n 0 80 140\n", "must have one row of node 0"),
        (CURVE, "without a matrix of nodes there must be a base machine, got none"),
        (latency(LATENCY) + CURVE.replace("100.00", "0"), "every latency must be finite and > 0"),
        (latency([["-", "-"], ["-", "-"]]), "at least one figure must be known"),
    ],
)
def test_a_bad_text_is_named_with_the_rule_and_the_value(text, message):
    with pytest.raises(ValueError, match=message):
        read(text)


def test_measurements_of_another_number_of_nodes_are_refused(tmp_path):
    (tmp_path / "mlc.txt").write_text(TEXT)
    with pytest.raises(ValueError, match="measurements must be of the 8 nodes of machine 'r815', got of 2"):
        load_machine(f"{tmp_path}/mlc.txt#r815")


@given(st.data())
def test_whatever_the_text_there_is_a_machine_or_a_value_error(data):
    lines = TEXT.splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    lines[at] = data.draw(st.sampled_from(lines) | st.text(st.sampled_from("0123456789.- \t\x00enode"), max_size=20))
    with contextlib.suppress(ValueError):
        assert np.isfinite(read("\n".join(lines)).latency_s).all()

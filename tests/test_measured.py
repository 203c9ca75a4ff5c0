from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from numa_rl.machines.assembly import assemble
from numa_rl.machines.catalog import load_machine
from numa_rl.machines.machine_json import FIGURES
from numa_rl.machines.measured import found_in_measurements
from numa_rl.topology import Topology

REAL_FILE = Path(__file__).parents[1].parent / "shared" / "data" / "machines" / "measured_machines.json"
SLIT = [[10, 12, 20, 22], [12, 10, 22, 24], [20, 22, 10, 12], [22, 24, 12, 10]]


def machine(**entry: Any) -> Topology:
    return assemble(found_in_measurements("box", {"source": "a blog", **entry}))


def test_whole_matrices_are_taken_as_they_are():
    topology = machine(
        nodes=2, cores_per_node=4, idle_latency_ns=[[80, 140], [141, 81]], read_bandwidth_MBps=[[100, 30], [31, 101]]
    )
    np.testing.assert_allclose(topology.latency_s * 1e9, [[80, 140], [141, 81]])
    np.testing.assert_allclose(topology.bandwidth_bytes_per_s / 1e6, [[100, 30], [31, 101]])
    assert topology.cores.tolist() == [4, 4]
    assert topology.sources["latency_s"] == "measured: idle latency of every pair, a blog"
    assert topology.sources["memory_bytes"].startswith("assumed:")
    assert set(topology.sources) == set(FIGURES)


def test_one_column_is_completed_by_slit():
    topology = machine(nodes=4, slit=SLIT, latency_to_node0_ns_from_node=[100, 120, 200, 240])
    np.testing.assert_allclose(topology.latency_s[2] * 1e9, [200, 240, 100, 120])
    assert topology.sources["latency_s"] == (
        "measured: idle latency to node 0 from every node, a blog; "
        "derived: pairs 0 to 1, 0 to 2, 0 to 3 as the reverse; "
        "derived: 9 of 16 pairs by SLIT distance, scaled to the known pairs"
    )


def test_one_column_without_slit_makes_every_node_stand_alike():
    topology = machine(nodes=4, latency_to_node0_ns_from_core={"0": 100, "8": 160, "16": 290, "24": 230})
    np.testing.assert_allclose(topology.latency_s[3] * 1e9, [230, 290, 160, 100])
    assert "assumed: 9 of 16 pairs as if every node stood alike" in topology.sources["latency_s"]


def test_one_row_is_of_a_node_with_cores_and_others_hold_memory_only():
    topology = machine(nodes=2, idle_latency_ns_row0=[84.5, 564.5], read_bandwidth_MBps_row0=[30562.8, 4795.3])
    assert topology.cores.tolist() == [8, 0]
    np.testing.assert_allclose(topology.latency_s * 1e9, [[84.5, 564.5], [564.5, 564.5]])
    np.testing.assert_allclose(topology.memory_bandwidth_bytes_per_s / 1e6, [30562.8, 4795.3])


def test_slit_alone_is_a_ratio_to_an_assumed_latency():
    topology = machine(nodes=4, slit=SLIT)
    np.testing.assert_allclose(topology.latency_s[0] * 1e9, [100, 120, 200, 220])
    assert topology.sources["latency_s"].startswith("assumed: 100 ns local; derived: remote by SLIT")


def test_ratios_by_package_are_scaled_to_an_assumed_latency():
    times = {"local": 2.0, "same_package_remote": 3.0, "other_package": 7.0}
    topology = machine(nodes=4, sockets=2, relative_access_time=times)
    np.testing.assert_allclose(topology.latency_s[1] * 1e9, [150, 100, 350, 350])


def test_local_figures_are_averaged_by_node_and_remote_ones_assumed():
    topology = machine(nodes=2, local_latency_ns_4096MB={"serial": [100, 120, 90, 90], "concurrent": [1, 1, 1, 1]})
    np.testing.assert_allclose(np.diagonal(topology.latency_s) * 1e9, [110, 90])
    assert "assumed: pairs 0 to 1, 1 to 0 by distance 10 at home and 20 elsewhere" in topology.sources["latency_s"]


def test_outliers_of_the_note_are_replaced_and_it_is_said():
    topology = machine(
        nodes=2, read_bandwidth_MBps=[[100, 3], [30, 100]], note="entry [0][1]=3 looks like a measurement outlier"
    )
    np.testing.assert_allclose(topology.bandwidth_bytes_per_s / 1e6, [[100, 30], [30, 100]])
    assert (
        "derived: outliers replaced, node 0 from 1; derived: pair 0 to 1 as the reverse"
        in (topology.sources["bandwidth_bytes_per_s"])
    )


def test_streams_of_one_core_give_ratios_and_bytes_in_flight():
    topology = machine(
        nodes=2,
        latency_to_node0_ns_from_node=[100, 200],
        stream_copy_1core_MBps_cpu7_to_node={"0": 10_000, "1": 4_000},
    )
    np.testing.assert_allclose(topology.bandwidth_bytes_per_s / 1e9, [[90, 36], [36, 90]])
    assert topology.outstanding_bytes == pytest.approx((1000 + 800) / 2)  # Little: bytes/s x latency of the pair
    assert "(800 to 1000 bytes by pair)" in topology.sources["outstanding_bytes"]


def test_nodes_whose_memory_is_not_told_have_as_much_as_the_others():
    topology = machine(nodes=4, slit=SLIT, mem_mb_per_node=[100, None, 300, None])
    np.testing.assert_allclose(topology.memory_bytes / 2**20, [100, 200, 300, 200])
    assert topology.sources["memory_bytes"].endswith("assumed: nodes 1, 3 as the others, on average")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, r"nodes must be a whole number in 1\.\.1024, got null"),
        ({"nodes": True}, r"nodes must be a whole number in 1\.\.1024, got true"),
        ({"nodes": 0}, "nodes must be a whole number"),
        ({"nodes": 2, "colour": "red"}, "keys must be among nodes, .*, got 'colour'"),
        ({"nodes": 2, "source": "\x1b[2J"}, "source must be printable text"),
        ({"nodes": 2, "slit": []}, r"slit must have shape \(2, 2\), got \(0,\)"),
        ({"nodes": 2, "slit": [[10, 20]]}, r"slit must have shape \(2, 2\), got \(1, 2\)"),
        ({"nodes": 2, "slit": [[10, 20], [20]]}, "slit must have rows of one length"),
        ({"nodes": 2, "slit": [[10, -20], [20, 10]]}, "slit must be finite and > 0, got -20"),
        ({"nodes": 2, "idle_latency_ns": [[80, 0], [80, 80]]}, "idle_latency_ns must be finite and > 0, got 0"),
        ({"nodes": 2, "idle_latency_ns": [[80, None], [80, 80]]}, r"idle_latency_ns\[0\]\[1\] must be a number"),
        ({"nodes": 2, "mem_mb_per_node": [None, None]}, "mem_mb_per_node must have at least one number"),
        ({"nodes": 2, "cores_per_node": [2, 2.5]}, "cores_per_node must be whole numbers"),
        ({"nodes": 2, "cores_per_node": 0}, "cores_per_node must be a whole number in"),
        ({"nodes": 2, "latency_to_node0_ns_from_core": {"0": 80}}, "must have a core of each node, got 1"),
        ({"nodes": 2, "latency_to_node0_ns_from_core": {"zero": 80}}, "must have keys in .*, got 'zero'"),
        ({"nodes": 2, "stream_copy_1core_MBps_to_node0_from_node": {"2": 80}}, r"must have keys in 0\.\.1, got '2'"),
        ({"nodes": 2, "local_latency_ns_4096MB": {"serial": [1, 2, 3]}}, "as many cores of each node, got 3"),
        ({"nodes": 2, "local_latency_ns_4096MB": {"serial": []}}, "as many cores of each node, got 0"),
        ({"nodes": 2, "sockets": 1, "relative_access_time": {"local": 1}}, "must have the keys local, same_pack"),
        ({"nodes": 2, "loaded_latency_delay_ns_MBps": [[1, 2]]}, r"must have rows of 3 numbers, got shape \(1, 2\)"),
        (
            {"nodes": 1, "read_bandwidth_MBps": [[5]], "note": "[0][7] is an outlier"},
            r"an outlier must be a pair of nodes in 0\.\.0, got \(0, 7\)",
        ),
        (
            {"nodes": 1, "read_bandwidth_MBps": [[5]], "note": "[0][0] is an outlier"},
            "at least one figure must be known",
        ),
    ],
)
def test_a_bad_entry_is_named_with_the_rule_and_the_value(tmp_path, entry, message):
    path = tmp_path / "machines.json"
    path.write_text(json.dumps({"machines": {"box": entry}}))
    with pytest.raises(ValueError, match=rf"^machine file '.*', machine 'box': .*{message}") as error:
        load_machine(f"{path}#box")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("entry", [None, 7, []])
def test_an_entry_that_is_no_object_is_refused(entry):
    with pytest.raises(ValueError, match="an entry must be a JSON object"):
        found_in_measurements("box", entry)


def test_which_machine_of_a_collection_must_be_said(tmp_path):
    path = tmp_path / "machines.json"
    path.write_text(json.dumps({"machines": {"one": {}, "two": {}}}))
    for name in (str(path), f"{path}#three"):
        with pytest.raises(ValueError, match="must be named after a #, one of one, two, got"):
            load_machine(name)


def real_entries() -> dict[str, Any]:
    """The measured machines beside the repository."""
    if not REAL_FILE.is_file():
        pytest.skip("the measured machines are not beside the repository")
    entries: dict[str, Any] = json.loads(REAL_FILE.read_text("utf-8"))["machines"]
    return entries


def test_every_measured_machine_is_read():
    entries = real_entries()
    for name, entry in entries.items():
        topology = load_machine(f"{REAL_FILE}#{name}")
        assert topology.num_nodes == entry["nodes"]
        assert set(topology.sources) == set(FIGURES)
        for key, figure, unit in (
            ("idle_latency_ns", "latency_s", 1e-9),
            ("read_bandwidth_MBps", "bandwidth_bytes_per_s", 1e6),
        ):
            if key in entry and "outlier" not in entry.get("note", ""):
                np.testing.assert_allclose(getattr(topology, figure), np.array(entry[key]) * unit, err_msg=name)


@pytest.mark.parametrize(
    ("name", "a", "c", "rmse"),
    [
        ("intel_xeon_8269cy_2s", 0.34, 0.64, 0.011),
        ("intel_xeon_8269cy_2s_snc2", 0.33, 0.51, 0.023),
        ("intel_xeon_6980p_2s_snc3", 0.39, 0.65, 0.017),
    ],
)
def test_real_curves_are_followed_within_their_noise(name, a, c, rmse):
    real_entries()
    topology = load_machine(f"{REAL_FILE}#{name}")
    assert topology.loaded_latency.a == pytest.approx(a, abs=0.01)
    assert topology.loaded_latency.c == pytest.approx(c, abs=0.01)
    found = re.search(r"rmse ([\d.]+)", topology.sources["loaded_latency"])
    assert found is not None
    assert float(found[1]) == pytest.approx(rmse, abs=0.0015)


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("xeon-6980p", "intel_xeon_6980p_2s_snc3"),
        ("xeon-8269cy", "intel_xeon_8269cy_2s"),
        ("xeon-e5-2682v4", "intel_e5_2682v4_2s"),
        ("kunpeng-920", "huawei_kunpeng920_4826_2s"),
        ("phytium-ft2500", "phytium_ft2500_2s"),
        ("hygon-7280", "hygon_7280_2s"),
        ("epyc-7742", "amd_epyc_7742_2s_nps4_dardel"),
    ],
)
def test_presets_hold_what_was_measured(preset, name):
    real_entries()
    topology, measured = load_machine(preset), load_machine(f"{REAL_FILE}#{name}")
    assert topology.cores.tolist() == measured.cores.tolist()
    np.testing.assert_allclose(topology.latency_s, measured.latency_s, rtol=1e-5)
    np.testing.assert_allclose(topology.outstanding_bytes, measured.outstanding_bytes, rtol=1e-3)


def test_the_outliers_of_the_xeon_6980p_are_replaced_by_their_reverse():
    real_entries()
    bandwidth = load_machine(f"{REAL_FILE}#intel_xeon_6980p_2s_snc3").bandwidth_bytes_per_s
    assert bandwidth[2, 4] == bandwidth[4, 2]
    assert bandwidth[5, 1] == bandwidth[1, 5]
    np.testing.assert_allclose(load_machine("xeon-6980p").bandwidth_bytes_per_s, bandwidth, rtol=1e-5)

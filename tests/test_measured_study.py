from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from experiments.studies.measured import Comparison, MeasuredMachines, compare_with
from experiments.studies.measured_curves import TARGET_RMSE, curves_of, factor
from experiments.studies.measured_laws import (
    Law,
    Missed,
    Outcome,
    at_home,
    distant_pairs,
    guide,
    leave_one_out,
    near_pairs,
    remote_pairs,
)
from experiments.studies.measured_report import print_comparison
from numa_rl.machines.catalog import PRESETS, load_machine
from numa_rl.machines.completion import IN_FLIGHT, LINK_SHARE, SPREAD_ERROR, spread
from numa_rl.machines.load_curve import fit_loaded_latency
from numa_rl.machines.measured import MB, NS
from numa_rl.machines.published import FILE, MEASUREMENTS, Published, parse_published, published_machines
from numa_rl.machines.slit import SLIT_ERROR, sockets_from_distances
from numa_rl.topology import LoadedLatency

COLLECTION = Path(__file__).parents[1].parent / "shared" / "data" / "machines" / "measured_machines.json"
ENTRIES = {
    "xeon-8269cy": "intel_xeon_8269cy_2s",
    "xeon-8269cy-snc2": "intel_xeon_8269cy_2s_snc2",
    "xeon-6980p": "intel_xeon_6980p_2s_snc3",
    "cnf-testbed-2s": "skylake_2s_cnftestbed",
    "kunpeng-920": "huawei_kunpeng920_4826_2s",
    "hygon-7280": "hygon_7280_2s",
}
NAN = float("nan")


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare_with(published_machines())


def used(outcomes: tuple[Outcome, ...]) -> Outcome:
    (outcome,) = (outcome for outcome in outcomes if outcome.law.used)
    return outcome


def parsed(**entry: Any) -> Published:
    (machine,) = parse_published(json.dumps({"box": {"title": "Box", "source": "a blog", **entry}}), "file")
    return machine


# Known answers


def test_an_entry_holds_si_units_and_nan_for_null():
    machine = parsed(
        sockets=[0, 1],
        idle_latency_ns=[[80, 140], [None, None]],
        read_bandwidth_MBps=[[100, 30], [None, None]],
        loaded_latency_ns_MBps=[[80, 10], [90, 100]],
    )
    np.testing.assert_allclose(machine.latency_s, [[80e-9, 140e-9], [NAN, NAN]])
    np.testing.assert_allclose(machine.bandwidth_bytes_per_s, [[100e6, 30e6], [NAN, NAN]])
    assert machine.curve is not None
    np.testing.assert_allclose(machine.curve, [[80e-9, 10e6], [90e-9, 100e6]])
    assert (machine.distances, machine.shipped, machine.hardware) == (None, None, "box")
    assert machine.has_cores.tolist() == [True, False]


def test_of_a_preset_only_the_columns_that_were_measured_count():
    machine = parsed(sockets=[0, 0, 1, 1], preset="kunpeng-920", latency_to=[0])
    preset = load_machine("kunpeng-920")
    np.testing.assert_array_equal(machine.latency_s[:, 0], preset.latency_s[:, 0])
    assert np.isnan(machine.latency_s[:, 1:]).all()
    assert np.isnan(machine.bandwidth_bytes_per_s).all()
    assert machine.has_cores.all()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "must have the key 'sockets'"),
        ({"sockets": [0], "speed": 1}, "must have keys among .*, got 'speed'"),
        ({"sockets": [0, 0.5]}, r"sockets\[1\] must be a whole number, got 0.5"),
        ({"sockets": [0, 1], "preset": "r815"}, "sockets must be of the preset's 8 nodes, got 2"),
        ({"sockets": [0, 1], "preset": "xeon-8269cy", "latency_to": [2]}, r"latency_to must be nodes in 0\.\.1"),
        ({"sockets": [0, 1], "preset": "xeon-8269cy", "idle_latency_ns": [[1]]}, "got both"),
        ({"sockets": [0, 1], "slit": [[10, 20]]}, r"slit must have shape \(2, 2\), got \(1, 2\)"),
        ({"sockets": [0, 1], "slit": [[10, 20], [20, -1]]}, "slit must be finite and > 0, or null"),
        ({"sockets": [0, 1], "slit": 3}, "slit must be a list of rows"),
        ({"sockets": [0], "loaded_latency_ns_MBps": [[1, 2, 3]]}, r"rows of 2 finite numbers > 0, got shape \(1, 3\)"),
    ],
)
def test_an_entry_that_is_wrong_is_refused(entry, message):
    with pytest.raises(ValueError, match=f"file, machine 'box': .*{message}"):
        parsed(**entry)


def test_a_file_of_something_else_is_refused():
    with pytest.raises(ValueError, match=r"file: must be an object of machines, got a list\."):
        parse_published("[]", "file")


def test_errors_are_relative_and_the_worst_keeps_its_sign():
    missed = Missed("box", (), np.array([1.1, 1.0, 3.0]), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(missed.errors, [0.1, -0.5, 0.0])
    assert (missed.median, missed.worst) == (pytest.approx(0.1), -0.5)
    assert missed.agreement == pytest.approx(1 / 3)  # of three pairs of pairs, one is in the wrong order
    assert np.isnan(replace(missed, predicted=np.ones(3)).agreement)


def test_constants_come_from_the_machines_that_are_left():
    machines = [parsed(sockets=[0, 1], idle_latency_ns=[[1, far], [far, 1]]) for far in (2, 4, 4)]
    machines = [replace(m, name=str(i), hardware=kind) for (i, m), kind in zip(enumerate(machines), "abb", strict=True)]
    law = Law("so many ns", lambda machine, constants: np.full((2, 2), constants[0] * NS), ((2.0,), (4.0,)))
    outcome = leave_one_out(
        law, machines, {m.name: m.latency_s for m in machines}, {m.name: ~np.eye(2, dtype=bool) for m in machines}
    )
    # The last two are one kind of hardware: neither tells the other's figure.
    assert [each.constants for each in outcome.missed] == [(4.0,), (2.0,), (2.0,)]
    assert [each.median for each in outcome.missed] == pytest.approx([1.0, 0.5, 0.5])
    assert outcome.fitted == (4.0,)
    assert (outcome.median, outcome.mean, outcome.worst) == pytest.approx((0.5, 2 / 3, 1.0))


def test_memory_without_cores_is_known_from_the_nodes_nearest_to_it():
    (machine,) = (machine for machine in published_machines() if machine.name == "epyc-9224-cxl")
    known = np.isfinite(at_home(machine))
    assert np.argwhere(known).tolist() == [[0, 0], [0, 4], [1, 1], [1, 4], [2, 2], [3, 3]]
    assert np.argwhere(remote_pairs(machine))[:3].tolist() == [[0, 2], [0, 3], [1, 2]]
    assert np.argwhere(near_pairs(machine)).tolist() == [[0, 1], [1, 0], [2, 3], [3, 2]]


# Two routes


def test_the_factor_is_what_the_simulator_computes():
    load = np.array([0.0, 0.4, 0.8, 1.0, 2.0, 5.0])
    fit = LoadedLatency(a=0.4, c=0.5, saturated=3.4)
    np.testing.assert_allclose(factor(fit, load), [1, 1.2, 1 + 0.32 / 0.6, 1.8, 3.4, 3.4], rtol=1e-6)


def test_the_error_of_a_fit_is_what_the_reader_of_the_curve_states():
    for curve in curves_of(published_machines()):
        assert curve.machine.curve is not None
        _, rmse = fit_loaded_latency(*curve.machine.curve.T)
        assert curve.rmse(curve.fit) == pytest.approx(rmse, rel=1e-4)


def test_a_fit_is_no_worse_than_other_figures():
    for curve in curves_of(published_machines()):
        assert curve.rmse(curve.fit) <= min(curve.rmse(curve.used), curve.rmse(LoadedLatency())) + 1e-6


# Real machines


def test_every_preset_with_a_curve_is_within_the_target(comparison):
    presets = [curve for curve in comparison.curves if curve.machine.shipped is not None]
    assert [curve.machine.name for curve in presets] == ["xeon-8269cy", "xeon-8269cy-snc2", "xeon-6980p"]
    assert all(curve.rmse(curve.used) <= TARGET_RMSE for curve in presets)
    assert comparison.presets_met
    for curve in presets:
        stated = load_machine(curve.machine.name).sources["loaded_latency"]
        assert f"(rmse {curve.rmse(curve.used):.3f})" in stated


def test_the_readers_constants_are_those_fitted_to_all_machines(comparison):
    assert used(comparison.bandwidth).fitted == (LINK_SHARE, IN_FLIGHT)


def test_the_readers_state_the_errors_that_are_measured(comparison):
    bandwidth, latency = used(comparison.bandwidth), used(comparison.latency)
    for outcome, stated in ((bandwidth, SPREAD_ERROR), (latency, SLIT_ERROR)):
        said = f"{outcome.median:.0%} on the median machine, {outcome.worst:.0%} on the worst of {len(outcome.missed)}"
        assert stated.endswith(f": {said}")


def test_the_law_in_use_is_better_than_the_inverse_of_the_distance(comparison):
    ours, earlier = used(comparison.bandwidth), comparison.bandwidth[0]
    assert ours.median < 0.5 * earlier.median
    assert ours.mean < 0.5 * earlier.mean
    assert ours.worst < earlier.worst


def test_no_other_law_of_bandwidth_has_a_lower_mean_error(comparison):
    assert used(comparison.bandwidth).mean == min(outcome.mean for outcome in comparison.bandwidth)


def test_what_readers_predict_is_what_the_study_predicts():
    for machine in published_machines():
        if remote_pairs(machine).any() and np.isfinite(at_home(machine)).any(axis=0).all():
            filled, notes = spread(at_home(machine), machine.has_cores, guide(machine))
            assert np.isfinite(filled[machine.has_cores]).all()
            assert SPREAD_ERROR in notes[0]


def test_measured_latencies_tell_the_sockets():
    told = [machine for machine in published_machines() if np.isfinite(machine.latency_s[machine.has_cores]).all()]
    assert len(told) >= 11
    for machine in told:
        cores = machine.has_cores
        found = sockets_from_distances(machine.latency_s[cores][:, cores], np.ones(cores.sum(), bool))
        np.testing.assert_array_equal(found, machine.sockets[cores], err_msg=machine.name)


def test_presets_say_of_their_columns_that_they_were_measured():
    for name, entry in json.loads(MEASUREMENTS.joinpath(FILE).read_text("utf-8")).items():
        for key, figure in (("latency_to", "latency_s"), ("bandwidth_to", "bandwidth_bytes_per_s")):
            if key in entry:
                assert load_machine(entry["preset"]).sources[figure].startswith("measured:"), name


def test_presets_from_slit_state_the_expected_error():
    for preset in PRESETS.iterdir():
        if preset.name.endswith(".json"):
            source = json.loads(preset.read_text("utf-8"))["sources"]["latency_s"]
            assert ("from SLIT" in source) == (SLIT_ERROR in source), preset.name


def test_figures_of_the_collection_are_carried_unchanged():
    if not COLLECTION.exists():
        pytest.skip(f"{COLLECTION} is not here: published measurements to compare with")
    entries = json.loads(COLLECTION.read_text("utf-8"))["machines"]
    for machine in published_machines():
        entry = entries.get(ENTRIES.get(machine.name, ""), {})
        if "slit" in entry:
            assert machine.distances is not None
            assert machine.distances.tolist() == entry["slit"]
        if "loaded_latency_delay_ns_MBps" in entry:
            assert machine.curve is not None
            np.testing.assert_allclose(machine.curve, np.array(entry["loaded_latency_delay_ns_MBps"])[:, 1:] * [NS, MB])
        if "idle_latency_ns" in entry:
            np.testing.assert_allclose(machine.latency_s, np.array(entry["idle_latency_ns"]) * NS)
        if "latency_to_node0_ns_from_node" in entry:
            np.testing.assert_allclose(machine.latency_s[:, 0], np.array(entry["latency_to_node0_ns_from_node"]) * NS)
        if "read_bandwidth_MBps" in entry:
            known = np.isfinite(machine.bandwidth_bytes_per_s)
            measured = np.array(entry["read_bandwidth_MBps"]) * MB
            np.testing.assert_allclose(machine.bandwidth_bytes_per_s[known], measured[known], rtol=1e-5)
            assert np.argwhere(~known).tolist() == ([[2, 4], [5, 1]] if machine.name == "xeon-6980p" else [])
    assert set(ENTRIES) <= {machine.name for machine in published_machines()}


# The command


def test_the_docs_show_what_the_command_prints(comparison):
    page = Path(__file__).parents[1] / "docs" / "measured-machines.rst"
    console = Console(file=io.StringIO(), width=80)
    print_comparison(comparison, console)
    shown = {line.strip() for line in page.read_text("utf-8").splitlines()}
    for line in console.file.getvalue().splitlines():  # type: ignore[attr-defined]
        assert line.strip() in shown


def test_the_command_prints_three_comparisons_and_writes_both_files(tmp_path, capsys):
    MeasuredMachines(json=tmp_path / "out.json", plot=tmp_path / "out.png").run()
    printed = capsys.readouterr().out
    for part in ("Latency under load", "Bandwidth between sockets", "SLIT against measured latency", "preset"):
        assert part in printed
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "out.json").read_text())
    machines = published_machines()
    assert set(content["machines"]) == {machine.name for machine in machines}
    assert len(content["curves"]) == sum(machine.curve is not None for machine in machines)
    pairs = {each["machine"]: len(each["measured"]) for each in content["latency_from_slit"][0]["machines"]}
    assert pairs == {m.name: int(distant_pairs(m).sum()) for m in machines if m.distances is not None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plot": "out.jpg"}, "--plot must be a .png file"),
        ({"plot": "folder"}, "--plot must be a file that can be written"),
        ({"json": "a.png", "plot": "a.png"}, "--plot must be another file than --json"),
    ],
)
def test_files_that_cannot_be_written_are_refused(tmp_path, capsys, options, message):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=message):
        MeasuredMachines(**{key: tmp_path / name for key, name in options.items()}).run()
    assert capsys.readouterr().out == ""

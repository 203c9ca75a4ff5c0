"""Calibration of machines whose figures are known: what is measured is what the file says, and why where it is not."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import machines, toy_machine

from experiments.calibrate import Calibrate, comparison, farthest_pair
from experiments.files import write_json
from experiments.scenario import load_scenario
from numa_rl.calibration.binding import RefusedError
from numa_rl.calibration.machine import Method, calibrated, loaded_latency
from numa_rl.calibration.measure import CURVE_SPINS, Measurements, measure, windows_a_repeat
from numa_rl.calibration.timing import Timing, timing_within
from numa_rl.machines.catalog import MAX_TEXT_BYTES, load_machine
from numa_rl.topology import LoadedLatency, Topology

METHOD = Method(
    timing=Timing(window_s=0.02, repeats=9),
    size_bytes=2**28,
    huge_share=1.0,
    placed="pages bound by mbind, looked up by move_pages",
    page_bytes=4096,
)
REPEATS = 9
CORE_SHARE = 0.25  # of its node's bandwidth that one core of the machine below reads
PAGE_S = 2.5e-6


class KnownMachine:
    """Measures a machine whose figures are given; others' work makes every repeat but one worse than the truth."""

    def __init__(
        self, truth: Topology, *, noise: float = 0.5, refused: tuple[int, ...] = (), moves: bool = True
    ) -> None:
        self.truth, self.noise, self.refused, self.moves = truth, noise, refused, moves
        self.rng = np.random.default_rng(5)
        self.called: list[str] = []

    @property
    def cores(self) -> tuple[int, ...]:
        return tuple(self.truth.cores.tolist())

    def repeats(self, slower: bool) -> np.ndarray:
        factor = 1.0 + self.noise * self.rng.random(REPEATS)
        factor[self.rng.integers(REPEATS)] = 1.0
        return factor if slower else 1.0 / factor

    def placed(self, target: int) -> None:
        if target in self.refused:
            raise RefusedError("mbind is refused (EPERM)")

    def chase_s(self, initiator: int, target: int) -> np.ndarray:
        self.placed(target)
        assert self.cores[initiator] > 0
        return self.truth.latency_s[initiator, target] * self.repeats(slower=True)

    def stream_bytes_per_s(self, initiator: int, target: int, cores: int) -> np.ndarray:
        self.placed(target)
        share = min(cores * CORE_SHARE, 1.0)
        return share * self.truth.bandwidth_bytes_per_s[initiator, target] * self.repeats(slower=False)

    def loaded(self, node: int, spins: int | None) -> tuple[np.ndarray, np.ndarray]:
        law, used = self.truth.loaded_latency, 0.001
        if spins is not None:
            used = min(1.0, min(1.0, (self.cores[node] - 1) * CORE_SHARE) * 40.0 / (40.0 + spins))
        factor = min(1.0 + law.a * used / (1.0 - law.c * used), law.saturated)
        even = 1.0 + 0.01 * np.linspace(-1.0, 1.0, REPEATS)  # the median is the truth
        idle_s = self.truth.latency_s[node, node]
        return factor * idle_s * even, used * self.truth.bandwidth_bytes_per_s[node, node] * even

    def flops_per_s(self, node: int) -> np.ndarray:
        return self.truth.flops_per_s[node] * self.repeats(slower=False)

    def move_s(self, source: int, target: int) -> np.ndarray:
        assert source != target
        if not self.moves:
            raise RefusedError("move_pages is refused (ENOSYS)")
        return PAGE_S * self.repeats(slower=True)


def told(truth: Topology) -> Topology:
    """What the firmware says of a machine: distances of 10 and 20, and nothing of bandwidth."""
    n = truth.num_nodes
    return replace(
        truth,
        name="live",
        latency_s=np.where(np.eye(n, dtype=bool), 100e-9, 200e-9),
        bandwidth_bytes_per_s=np.where(np.eye(n, dtype=bool), 90e9, 30e9),
        loaded_latency=LoadedLatency(),
        flops_per_s=np.full(n, 40e9),
        sources={"latency_s": "derived: from SLIT", "flops_per_s": "assumed: 2.5 GHz"},
    )


def measured(instrument: KnownMachine) -> Topology:
    return calibrated(told(instrument.truth), measure(instrument, lambda _: None), METHOD, "box")


def known(machine: Topology) -> Topology:
    """The machine with cores enough to fill a memory, and figures within what measuring tells apart."""
    return replace(machine, cores=np.where(machine.cores > 0, 8, 0))


# Known answers.


def test_a_cube_of_eight_is_found_as_it_is(tmp_path):
    truth = known(load_machine("chapter-8-socket"))
    machine = measured(KnownMachine(truth))
    write_json(tmp_path / "box.json", machine.to_dict())
    read = load_machine(str(tmp_path / "box.json"))
    for found in (machine, read):
        np.testing.assert_allclose(found.latency_s, truth.latency_s)
        np.testing.assert_allclose(found.bandwidth_bytes_per_s, truth.bandwidth_bytes_per_s)
        np.testing.assert_allclose(found.memory_bandwidth_bytes_per_s, truth.bandwidth_bytes_per_s.max(axis=0))
        np.testing.assert_allclose(found.flops_per_s, truth.flops_per_s)
    assert read.name == "box"
    assert read.sources == machine.sources
    assert read.links.tolist() == truth.links.tolist()


def test_one_core_keeps_what_littles_law_says():
    truth = known(toy_machine(2))
    in_flight = CORE_SHARE * np.diagonal(truth.bandwidth_bytes_per_s) * np.diagonal(truth.latency_s)
    assert measured(KnownMachine(truth)).outstanding_bytes == pytest.approx(in_flight.mean())


def test_moving_a_page_is_less_its_copying():
    truth = known(load_machine("chapter-2-socket"))
    machine = measured(KnownMachine(truth))
    copying_s = 4096 * truth.latency_s[0, 1] / machine.outstanding_bytes
    assert machine.page_move_s == pytest.approx(PAGE_S - copying_s)
    assert machine.sources["page_move_s"].startswith("measured: move_pages, 2.5 us a page")


def test_the_curve_under_load_is_fitted():
    law = LoadedLatency(a=0.7, c=0.3, saturated=2.0)
    machine = measured(KnownMachine(replace(known(toy_machine(2)), loaded_latency=law)))
    assert machine.loaded_latency.a == pytest.approx(0.7, rel=0.05)
    assert machine.loaded_latency.c == pytest.approx(0.3, abs=0.05)
    assert machine.loaded_latency.saturated == pytest.approx(2.0, rel=0.01)
    assert machine.sources["loaded_latency"].startswith("measured: fit to 11 points")


def test_sources_say_how_often_and_how_far_apart():
    sources = measured(KnownMachine(known(toy_machine(2)))).sources
    for figure in ("latency_s", "bandwidth_bytes_per_s", "flops_per_s"):
        assert sources[figure].startswith("measured: ")
        assert "of 9 repeats, half of which lie within" in sources[figure]
    assert "256 MiB, 100% in huge pages, pages bound by mbind, looked up by move_pages" in sources["latency_s"]


# What could not be measured, and what is made of it.


def test_too_few_cores_leave_the_curve_as_it_was():
    truth = replace(toy_machine(1), cores=np.array([2]))
    machine = measured(KnownMachine(truth))
    assert machine.loaded_latency == LoadedLatency()
    assert machine.sources["loaded_latency"].endswith(
        "given: not measured, for it takes 3 cores of one node, one that waits and others that read"
    )


def test_cores_that_cannot_fill_the_memory_leave_the_curve_as_it_was():
    truth = replace(known(toy_machine(1)), cores=np.array([3]))  # half of them read 1/4, all of them 3/4
    fit, why = loaded_latency(measure(KnownMachine(truth), lambda _: None))
    assert fit is None
    assert "cannot fill its memory" in why


def test_a_curve_that_falls_is_not_fitted():
    measurements = measure(KnownMachine(known(toy_machine(1))), lambda _: None)
    falling = replace(measurements, curve_s=measurements.curve_s[::-1])
    fit, why = loaded_latency(falling)
    assert fit is None or fit.a >= 0.0
    nothing, why = loaded_latency(replace(measurements, curve_s=measurements.curve_s * np.nan))
    assert nothing is None
    assert why.startswith("for loaded latency: every latency must be finite")


def test_memory_that_cannot_be_bound_goes_by_what_is_known():
    truth = known(load_machine("chapter-4-socket"))
    machine = measured(KnownMachine(truth, refused=(2,)))
    kept = [0, 1, 3]
    np.testing.assert_allclose(machine.latency_s[:, kept], truth.latency_s[:, kept])
    np.testing.assert_allclose(machine.latency_s[kept, 2], truth.latency_s[2, kept])  # as the reverse
    assert "memory of node 2 was not measured, for mbind is refused (EPERM)" in machine.sources["latency_s"]


def test_nothing_that_can_be_bound_is_an_error():
    with pytest.raises(
        ValueError, match=r"got none: memory of node 0 was not measured, for mbind is refused \(EPERM\)"
    ):
        measure(KnownMachine(toy_machine(2), refused=(0, 1)), lambda _: None)


def test_pages_that_may_not_be_moved_keep_their_time():
    truth = known(toy_machine(2))
    machine = measured(KnownMachine(truth, moves=False))
    assert machine.page_move_s == truth.page_move_s
    assert "moving pages was not measured" in machine.sources["latency_s"]


def test_nodes_of_memory_only_start_no_access():
    truth = known(load_machine("cxl-expander"))
    assert (truth.cores == 0).any()
    machine = measured(KnownMachine(truth))
    asks = truth.cores > 0
    np.testing.assert_allclose(machine.latency_s[asks], truth.latency_s[asks])
    np.testing.assert_allclose(machine.latency_s[~asks][:, asks], truth.latency_s[asks][:, ~asks].T)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 0.0, -1.0])
def test_a_repeat_that_is_no_time_is_an_error(monkeypatch, wrong):
    monkeypatch.setattr(KnownMachine, "repeats", lambda self, slower: np.array([1.0, wrong]))
    with pytest.raises(ValueError, match="every repeat of latency_s must be finite and >= 0"):
        measure(KnownMachine(toy_machine(1)), lambda _: None)


def test_streams_kept_waiting_for_one_window_do_no_harm(monkeypatch):
    truth = known(toy_machine(1))
    monkeypatch.setattr(
        KnownMachine, "repeats", lambda self, slower: np.array([1.0, 2.0]) if slower else np.array([0.0, 1.0])
    )
    found = measure(KnownMachine(truth), lambda _: None)
    np.testing.assert_allclose(found.bandwidth_bytes_per_s, truth.bandwidth_bytes_per_s)


def test_measurements_of_another_machine_are_refused():
    measurements = measure(KnownMachine(toy_machine(2)), lambda _: None)
    with pytest.raises(ValueError, match="must be of the 3 nodes"):
        calibrated(toy_machine(3), measurements, METHOD, "box")


# Laws.


@given(machines(min_nodes=1, max_nodes=4), st.floats(0.0, 3.0))
def test_noise_that_only_makes_worse_changes_nothing(truth, noise):
    instrument = KnownMachine(truth, noise=noise)
    found = measure(instrument, lambda _: None)
    asks = truth.cores > 0
    np.testing.assert_allclose(found.latency_s[asks], truth.latency_s[asks])
    np.testing.assert_allclose(found.flops_per_s[asks], truth.flops_per_s[asks])
    assert np.isnan(found.latency_s[~asks]).all()
    assert all(0.0 <= typical <= worst <= noise + 1e-9 for typical, worst in found.spread.values())


@given(machines(min_nodes=1, max_nodes=4))
def test_every_figure_of_the_file_is_finite_and_has_a_source(truth):
    machine = measured(KnownMachine(truth))
    again = json.loads(json.dumps(machine.to_dict()))
    assert np.isfinite(machine.latency_s).all()
    assert (machine.bandwidth_bytes_per_s > 0.0).all()
    assert machine.page_move_s >= 0.0
    assert set(again["sources"]) >= {"latency_s", "bandwidth_bytes_per_s", "flops_per_s", "outstanding_bytes"}


@given(st.floats(0.01, 1e4), st.integers(1, 10_000))
def test_time_is_spent_within_its_limits(seconds, figures):
    timing = timing_within(seconds, figures)
    spent_s = figures * (timing.repeats + 1) * timing.window_s
    assert spent_s <= max(seconds, figures * 6 * 0.005) * (1.0 + 1e-9)
    assert 0.005 <= timing.window_s <= 0.02
    assert 5 <= timing.repeats <= 300


def counting(counts: dict[str, int], name: str, call):
    def counted(*arguments):
        counts[name] += 1
        return call(*arguments)

    return counted


@given(st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(any))
def test_as_many_figures_are_measured_as_time_is_kept_for(cores):
    truth = replace(toy_machine(len(cores)), cores=np.array(cores))
    instrument = KnownMachine(truth)
    counts = dict.fromkeys(("chase_s", "stream_bytes_per_s", "flops_per_s", "loaded"), 0)
    for name in counts:
        setattr(instrument, name, counting(counts, name, getattr(instrument, name)))
    measure(instrument, lambda _: None)
    assert sum(counts.values()) == windows_a_repeat(tuple(cores))
    assert counts["loaded"] in (0, len(CURVE_SPINS) + 1)


# What the command prints and takes.


def test_the_comparison_has_both_sides():
    truth = known(load_machine("chapter-2-socket"))
    rows = {figure: (now, before) for figure, now, before in comparison(told(truth), measured(KnownMachine(truth)))}
    local = truth.latency_s[0, 0]
    assert rows["local latency, ns"] == (f"{local * 1e9:.4g}", "100")
    assert rows["remote over local latency"] == (f"{truth.latency_s[0, 1] / local:.4g}", "2")
    assert rows["remote bandwidth, GB/s"][1] == "30"


def test_the_pair_that_firmware_had_most_wrong_is_named():
    truth = known(toy_machine(3))
    latency_s = np.array(told(truth).latency_s)
    latency_s[2, 1] = 500e-9
    text = farthest_pair(told(truth), replace(truth, latency_s=latency_s))
    assert text == "Farthest off is node 2 to 1: 5.00 times local, said to be 2.00."


def test_no_pair_is_named_where_firmware_was_right():
    machine = toy_machine(3)
    assert farthest_pair(machine, machine) == "Latency of every pair over local is what it was said to be."


def test_a_scenario_takes_the_file(tmp_path):
    write_json(tmp_path / "box.json", measured(KnownMachine(known(toy_machine(2)))).to_dict())
    (tmp_path / "mine.toml").write_text(
        'description = "mine"\nmachine = "box.json"\n[workload]\nfamily = "synthetic"\n[reward]\nreference_s = 1.0\n'
        "[simulation]\nwindow_s = 1.0\n"
    )
    assert load_scenario(str(tmp_path / "mine.toml")).topology.name == "box"


MLC = """Intel(R) Memory Latency Checker - v3.9
Measuring idle latencies (in ns)...
\t\tNuma node
Numa node\t     0\t     1\t
       0\t  80.0\t 140.0\t
       1\t 141.0\t  81.0\t
"""


def test_what_mlc_printed_is_put_on_a_machine(tmp_path, capsys):
    (tmp_path / "mlc.txt").write_text(MLC)
    out = tmp_path / "mine.json"
    Calibrate(out, mlc=tmp_path / "mlc.txt", machine="chapter-2-socket").run()
    machine = load_machine(str(out))
    np.testing.assert_allclose(machine.latency_s * 1e9, [[80, 140], [141, 81]])
    assert machine.name == "mine"
    assert machine.cores.tolist() == load_machine("chapter-2-socket").cores.tolist()
    assert machine.sources["latency_s"] == "measured: idle latency, Intel MLC v3.9"
    assert "Farthest off is node" in capsys.readouterr().out


def test_the_name_of_the_file_is_printed_as_a_scenario_takes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mlc.txt").write_text(MLC)
    Calibrate(Path('[bold]"x.json'), mlc=Path("mlc.txt"), machine="chapter-2-socket").run()
    printed = capsys.readouterr().out.replace("\n", " ")
    assert 'Written to [bold]"x.json. In a scenario:' in printed
    assert r'machine = "[bold]\"x.json"' in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": Path("box.toml")}, "--out must be a .json file"),
        ({"out": Path("a\nb.json")}, "--out must be a .json file with a printable name"),
        ({"seconds": 0.0}, "--seconds must be > 0, got 0"),
        ({"seconds": float("nan")}, "--seconds must be > 0, got nan"),
        ({"seconds": float("inf")}, "--seconds must be > 0, got inf"),
        ({"seed": -1}, "--seed must be >= 0, got -1"),
        ({"memory": "much"}, "--memory must be a number of bytes > 0"),
        ({"machine": "r815"}, "--machine must come with --mlc, got 'r815' alone"),
        ({"mlc": Path("none.txt")}, "--mlc must be a text file that Intel MLC printed, got 'none.txt'"),
        ({"mlc": Path()}, "--mlc must be a text file"),
        ({"mlc": Path("box.json")}, "--mlc must be a text file"),
        ({"mlc": Path("other.txt")}, "--mlc must be a text file that Intel MLC printed, got 'other.txt'"),
        ({"mlc": Path("latin.txt")}, "--mlc must be a text file that Intel MLC printed, got 'latin.txt'"),
        ({"mlc": Path("long.txt")}, "--mlc 'long.txt': must be at most"),
        ({"mlc": Path("mlc.txt"), "machine": ""}, "machine must be one of"),
        ({"mlc": Path("mlc.txt"), "machine": "no-such"}, "machine must be one of"),
        ({"mlc": Path("mlc.txt"), "machine": "r815"}, "must be of the 8 nodes"),
        ({"out": Path("folder.json")}, "--out must be a file that can be written, got 'folder.json': Is a directory"),
        ({"mlc": Path("mlc.txt"), "machine": "box.json"}, "--out must be another file than --machine"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    Path("folder.json").mkdir()
    Path("mlc.txt").write_text(MLC)
    Path("other.txt").write_text("something else\n")
    Path("latin.txt").write_bytes(MLC.encode() + b"\xe9")
    Path("long.txt").write_text(MLC + " " * MAX_TEXT_BYTES)
    with pytest.raises(ValueError, match=re.escape(message)):
        Calibrate(**{"out": Path("box.json"), **options}).run()
    assert not Path("box.json").exists()


def test_measurements_hold_no_figure_of_a_node_without_cores():
    found: Measurements = measure(KnownMachine(known(load_machine("cxl-expander"))), lambda _: None)
    assert np.isnan(found.core_bytes_per_s[found.flops_per_s != found.flops_per_s]).all()

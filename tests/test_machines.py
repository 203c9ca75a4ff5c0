from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from experiments.machine import MachineList, MachineShow
from numa_rl.machines.builders import ChapterFigures, eight_socket_cube, four_socket, from_links, mesh, ring, two_socket
from numa_rl.machines.catalog import load_machine, machine_names
from numa_rl.machines.machine_json import FIGURES, parse_machine

# Chapter, section 16.1.1: the cube of eight sockets, each corner three links from its opposite.
CUBE_HOPS = [
    [0, 1, 1, 2, 1, 2, 2, 3],
    [1, 0, 2, 1, 2, 1, 3, 2],
    [1, 2, 0, 1, 2, 3, 1, 2],
    [2, 1, 1, 0, 3, 2, 2, 1],
    [1, 2, 2, 3, 0, 1, 1, 2],
    [2, 1, 3, 2, 1, 0, 2, 1],
    [2, 3, 1, 2, 1, 2, 0, 1],
    [3, 2, 2, 1, 2, 1, 1, 0],
]


def test_two_sockets_are_25_ns_apart():
    topology = two_socket()
    assert topology.hops.tolist() == [[0, 1], [1, 0]]
    np.testing.assert_allclose(topology.latency_s * 1e9, [[10, 25], [25, 10]])
    np.testing.assert_allclose(topology.bandwidth_bytes_per_s / 1e9, [[90, 30], [30, 90]])
    np.testing.assert_allclose(topology.memory_bandwidth_bytes_per_s / 1e9, [100, 100])


def test_four_sockets_are_one_hop_apart():
    topology = four_socket()
    assert topology.num_links == 12
    np.testing.assert_array_equal(topology.hops, 1 - np.eye(4))
    np.testing.assert_allclose(topology.latency_s * 1e9, np.where(np.eye(4), 10, 25))


def test_eight_sockets_form_a_cube():
    topology = eight_socket_cube()
    assert np.bincount(topology.links[:, 0]).tolist() == [3] * 8
    assert topology.hops.tolist() == CUBE_HOPS
    np.testing.assert_allclose(topology.latency_s * 1e9, np.array([10, 25, 45, 65])[CUBE_HOPS])


def test_ring_goes_round_both_ways():
    topology = ring(6)
    assert topology.hops[0].tolist() == [0, 1, 2, 3, 2, 1]
    np.testing.assert_allclose(topology.latency_s[0] * 1e9, [10, 25, 45, 65, 45, 25])


def test_ring_of_two_has_one_link_each_way():
    assert ring(2).links.tolist() == [[0, 1], [1, 0]]


def test_mesh_hops_are_steps_along_rows_and_columns():
    topology = mesh(2, 3)  # 0 1 2 above 3 4 5
    assert topology.hops[0].tolist() == [0, 1, 2, 1, 2, 3]
    assert topology.num_links == 14


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ring(1), "a ring must have at least 2 nodes, got 1"),
        (lambda: mesh(0, 3), "a mesh must have at least 1 row and 1 column, got 0 x 3"),
        (lambda: from_links("cut", 3, [(0, 1)]), "links must connect every node, got no route from 0 to 2"),
        (lambda: two_socket(ChapterFigures(cores=0)), "at least one node must have cores, got zero"),
        (lambda: two_socket(ChapterFigures(local_latency_s=-1.0)), r"latency_s\[0, 0\] must be finite and > 0, got -1"),
    ],
)
def test_an_impossible_machine_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_figures_of_the_caller_are_not_called_the_chapters():
    topology = two_socket(ChapterFigures(local_latency_s=80e-9, one_hop_latency_s=140e-9))
    np.testing.assert_allclose(topology.latency_s * 1e9, [[80, 140], [140, 80]])
    assert topology.sources["latency_s"].startswith("given:")


@pytest.mark.parametrize("name", machine_names())
def test_every_machine_states_the_source_of_every_figure(name):
    topology = load_machine(name)
    assert topology.name == name
    assert set(topology.sources) == set(FIGURES)
    kinds = {source.split(":")[0] for source in topology.sources.values()}
    assert kinds <= {"measured", "derived", "assumed", "chapter"}


@pytest.mark.parametrize("name", machine_names())
def test_a_machine_survives_the_way_through_json(name, tmp_path):
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(load_machine(name).to_dict()))
    assert load_machine(str(path)).to_dict() == load_machine(name).to_dict()


@pytest.mark.parametrize("name", machine_names())
def test_memory_is_nearest_and_fastest_at_home(name):
    topology = load_machine(name)
    for node in np.flatnonzero(topology.cores):
        assert topology.latency_s[node].argmin() == node
        # A neighbour on the same die may be measured a hair faster than home.
        assert topology.bandwidth_bytes_per_s[node, node] >= 0.99 * topology.bandwidth_bytes_per_s[node].max()


@pytest.mark.parametrize("name", machine_names())
def test_no_link_and_no_memory_delivers_less_than_a_node_draws_of_it(name):
    topology = load_machine(name)
    drawn = topology.bandwidth_bytes_per_s
    assert (drawn[topology.cores > 0] <= 1.01 * topology.memory_bandwidth_bytes_per_s).all()
    reads, _ = topology.route_links
    asking = np.repeat(topology.cores > 0, topology.num_nodes)[:, None]
    assert (asking * reads * drawn.ravel()[:, None] <= 1.01 * topology.link_bandwidth_bytes_per_s).all()


def test_machines_of_2_to_16_nodes_go_by_a_name():
    sizes = {load_machine(name).num_nodes for name in machine_names()}
    assert sizes == {2, 4, 6, 8, 16}
    assert len(machine_names()) >= 3 + 10


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "notes.txt",
            b"hello",
            "must be an archive of a copy of /sys, what numactl -H or Intel MLC printed, or an ACPI",
        ),
        ("empty", b"", "must be an archive .* got none of them"),
        ("noise.bin", bytes(range(256)), "must be an archive .* got none of them"),
        ("box.tar.gz", b"not packed", "must be an archive .* got 'not packed'"),
        ("box.tgz", b"\x1f\x8b\x08no", "must be an archive packed by gzip, bzip2 or xz, whole"),
    ],
)
def test_a_file_of_no_known_kind_is_refused_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^machine file '.*{name}': {message}") as error:
        load_machine(str(path))
    assert "\n" not in str(error.value)


def test_a_part_of_a_file_that_has_none_is_refused(tmp_path):
    (tmp_path / "box.txt").write_text("node distances:\nnode 0\n 0: 10\n")
    with pytest.raises(ValueError, match="only JSON and MLC's text may have a # after them, got 'r815'"):
        load_machine(f"{tmp_path}/box.txt#r815")


def test_a_folder_named_like_a_preset_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / "r815").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_machine("r815").num_nodes == 8


def test_r815_is_two_hops_where_slit_says_22():
    topology = load_machine("r815")
    assert topology.hops[0].tolist() == [0, 1, 1, 2, 1, 2, 1, 2]  # SLIT 10 16 16 22 16 22 16 22
    assert topology.hops[2].tolist() == [1, 2, 0, 1, 1, 1, 1, 1]  # SLIT 16 22 10 16 16 16 16 16
    assert topology.num_links == 36
    assert topology.cores.tolist() == [8] * 8
    np.testing.assert_allclose(topology.latency_s[0] * 1e9, [100, 160, 160, 220, 160, 220, 160, 220])


def test_all_traffic_between_the_xeon_sockets_shares_one_bundle_of_links():
    topology = load_machine("xeon-8269cy-snc2")
    assert topology.route(1, 3) == [1, 0, 2, 3]
    np.testing.assert_allclose(topology.latency_s[0] * 1e9, [77.3, 81.6, 129.8, 136.1])
    between = topology.link_index()[0, 2]
    assert topology.link_bandwidth_bytes_per_s[between] == pytest.approx(50.9e9, rel=1e-3)
    assert topology.bandwidth_bytes_per_s[1, 3] <= topology.link_bandwidth_bytes_per_s[between]


def test_cxl_node_holds_memory_and_runs_nothing():
    assert load_machine("cxl-expander").cores.tolist() == [16, 0]


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"chapter-2-socket, .*, r815, .* or a path .*, got 'cray-1'"):
        load_machine("cray-1")


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match=r"machine file 'nowhere\.json': must be an existing file, got none"):
        load_machine("nowhere.json")


def figures(**changes: Any) -> dict[str, Any]:
    """The two-socket machine as JSON figures, with some changed; None takes a key out."""
    changed = {**two_socket().to_dict(), **changes}
    return {key: value for key, value in changed.items() if value is not None}


LINK = {"source": 0, "target": 1, "bandwidth_bytes_per_s": 3e10}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cores": None}, "the machine must have the key 'cores'"),
        ({"colour": "red"}, "the machine must have keys among name, cores, .*, got 'colour'"),
        ({"name": 3}, "name must be printable text, got 3"),
        ({"name": "\x1b[2J"}, "name must be printable text"),
        ({"cores": 4}, "cores must be a list, got 4"),
        ({"cores": [4, 4.5]}, r"cores\[1\] must be a whole number, got 4\.5"),
        ({"cores": [4, True]}, r"cores\[1\] must be a whole number, got true"),
        ({"cores": [4, 10**30]}, "whole numbers must fit in 64 bits"),
        ({"memory_bytes": ["1 TB", 1e12]}, r'memory_bytes\[0\] must be a number, got "1 TB"'),
        ({"latency_s": [[1e-8, 2e-8], [2e-8]]}, r"latency_s must have rows of one length, got lengths \[2, 1\]"),
        ({"latency_s": [[1e-8, 2e-8], None]}, r"latency_s\[1\] must be a list, got null"),
        ({"latency_s": [[1e-8, -2e-8], [2e-8, 1e-8]]}, r"latency_s\[0, 1\] must be finite and > 0, got -2e-08"),
        ({"flops_per_s": [1e9]}, r"flops_per_s must have shape \(2,\), got \(1,\)"),
        ({"links": 7}, "links must be a list, got 7"),
        ({"links": [[0, 1]]}, r"links\[0\] must be a JSON object, got \[0, 1\]"),
        ({"links": [{"source": 0}]}, r"links\[0\] must have the key 'target'"),
        ({"links": [{**LINK, "target": 0.5}]}, r"links\[0\]\.target must be a whole number, got 0\.5"),
        ({"links": [LINK]}, r"link \(0, 1\) must have its reverse"),
        ({"page_bytes": 4096.5}, r"page_bytes must be a whole number, got 4096\.5"),
        ({"loaded_latency": {"b": 1}}, "loaded_latency must have keys among a, c, saturated, got 'b'"),
        ({"loaded_latency": {"saturated": 0}}, "loaded latency: saturated must be finite and >= 1, got 0"),
        ({"sources": {"latency": "measured"}}, "sources must have keys among cores, .*, got 'latency'"),
        ({"sources": {"latency_s": 1}}, r"sources\.latency_s must be printable text, got 1"),
        ({"num_nodes": 3}, "num_nodes must agree with cores and links, 2, got 3"),
        ({"hops": [[0, 2], [2, 0]]}, "hops must agree with cores and links"),
    ],
)
def test_a_wrong_json_figure_is_named_with_its_rule_and_value(changes, message):
    with pytest.raises(ValueError, match=f"^machine file 'x': .*{message}") as error:
        parse_machine(json.dumps(figures(**changes)), "machine file 'x'")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be JSON"),
        ("{", "must be JSON"),
        ("[1, 2]", "the machine must be a JSON object, got"),
        ('{"page_move_s": NaN}', "must be JSON, got NaN, which is no finite number"),
        ('{"page_move_s": -Infinity}', "must be JSON, got -Infinity"),
        ("[" * 100_000, "must be JSON"),
    ],
)
def test_text_that_is_no_machine_is_refused(text, message):
    with pytest.raises(ValueError, match=f"^machine file 'x': {message}"):
        parse_machine(text, "machine file 'x'")


def test_infinity_written_as_a_large_number_is_refused():
    text = json.dumps(figures()).replace('"page_move_s": 1e-06', '"page_move_s": 1e999')
    with pytest.raises(ValueError, match="page_move_s must be finite and >= 0, got inf"):
        parse_machine(text, "machine file 'x'")


def test_a_json_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "machine.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="must be UTF-8 text"):
        load_machine(str(path))


def test_optional_figures_have_the_defaults_of_the_machine():
    kept = ("name", "cores", "flops_per_s", "memory_bytes", "memory_bandwidth_bytes_per_s")
    more = ("latency_s", "bandwidth_bytes_per_s", "links")
    text = json.dumps({key: figures()[key] for key in (*kept, *more)})
    assert parse_machine(text, "text").page_bytes == 4096


@pytest.mark.parametrize("name", machine_names())
def test_show_prints_one_json_object_that_is_the_machine(name, capsys):
    MachineShow(name, json=True).run()
    assert json.loads(capsys.readouterr().out) == load_machine(name).to_dict()


@pytest.mark.parametrize("name", machine_names())
def test_show_fits_80_columns_and_cuts_nothing_off(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    MachineShow(name).run()
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 80
    assert "…" not in output
    assert all(figure in output for figure in FIGURES)


def test_a_matrix_too_wide_for_the_terminal_is_printed_in_blocks(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    path = tmp_path / "ring.json"
    path.write_text(json.dumps(ring(20).to_dict()))
    MachineShow(str(path)).run()
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 80
    assert "Idle latency, ns, targets 12 to 19" in output


def test_show_leaves_brackets_in_names_alone(tmp_path, capsys):
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(figures(name="[red]box[/red]")))
    MachineShow(str(path)).run()
    assert "[red]box[/red]" in capsys.readouterr().out


def test_list_names_every_machine(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    MachineList().run()
    output = capsys.readouterr().out
    assert all(name in output for name in machine_names())
    assert "…" not in output


def test_list_prints_every_machine_as_json(capsys):
    MachineList(json=True).run()
    assert list(json.loads(capsys.readouterr().out)) == machine_names()

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from numa_rl.machines import hwloc
from numa_rl.machines.catalog import load_machine
from numa_rl.machines.hwloc import read_hwloc
from numa_rl.machines.machine_json import FIGURES
from numa_rl.machines.slit import links_from_distances
from numa_rl.topology import DEFAULT_LLC_BYTES, Topology, hop_counts

REAL_FILES = Path(__file__).parents[1].parent / "shared" / "data" / "topologies"


def core(cpuset: str) -> str:
    return f'<object type="Core" cpuset="{cpuset}"><object type="PU" cpuset="{cpuset}"/></object>'


def node(os_index: int, cpuset: str, inside: str = "", memory: int = 2**30, more: str = "") -> str:
    return (
        f'<object type="Group" cpuset="{cpuset}"><object type="NUMANode" os_index="{os_index}" cpuset="{cpuset}" '
        f'local_memory="{memory}" gp_index="{100 + os_index}" {more}/>{inside}</object>'
    )


def distances(indexes: str, *values: str, more: str = 'name="NUMALatency" indexing="os"') -> str:
    parts = "".join(f"<u64values>{part}</u64values>" for part in values)
    return f'<distances2 type="NUMANode" kind="5" {more}><indexes>{indexes}</indexes>{parts}</distances2>'


def document(*objects: str, after: str = "", version: str = "2.0") -> str:
    machine = f'<object type="Machine" cpuset="0xff">{"".join(objects)}</object>'
    doctype = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE topology SYSTEM "hwloc2.dtd">\n'
    return f'{doctype}<topology version="{version}">{machine}{after}</topology>'


TWO_NODES = (node(0, "0x3", core("0x1") + core("0x2")), node(1, "0xc", core("0x4") + core("0x8")))


@pytest.fixture
def read(tmp_path):
    """Reads a document as if it were in a file."""

    def read_text(text: str) -> Topology:
        path = tmp_path / "machine.xml"
        path.write_text(text)
        return read_hwloc(path)

    return read_text


@pytest.mark.parametrize("version", ["2.0", "3.0"])
def test_both_versions_with_a_doctype_are_read(read, version):
    topology = read(document(*TWO_NODES, after=distances("0 1", "10 21", "21 10"), version=version))
    assert topology.name == "machine"
    assert topology.cores.tolist() == [2, 2]
    assert topology.memory_bytes.tolist() == [2**30, 2**30]
    assert topology.hops.tolist() == [[0, 1], [1, 0]]
    np.testing.assert_allclose(topology.latency_s * 1e9, [[100, 210], [210, 100]])
    assert "often wrong" in topology.sources["latency_s"]
    assert set(topology.sources) == set(FIGURES)


def test_distances_may_be_split_anywhere(read):
    whole = read(document(*TWO_NODES, after=distances("0 1", "10 21 22 10")))
    split = read(document(*TWO_NODES, after=distances("0 1", "10", "21 22", "10")))
    np.testing.assert_array_equal(split.latency_s, whole.latency_s)


def test_distances_without_a_name_count_when_they_mean_latency(read):
    assert read(document(*TWO_NODES, after=distances("0 1", "10 30 30 10", more=""))).latency_s[0, 1] == 300e-9


def test_distances_of_another_meaning_are_left_aside(read):
    topology = read(document(*TWO_NODES, after=distances("0 1", "9 9 9 9", more='name="NVLinkBandwidth"')))
    assert "no distances are given" in topology.sources["latency_s"]


def test_nodes_are_ordered_by_os_index_and_distances_follow(read):
    later = node(7, "0x3", core("0x1"), memory=700)
    first = node(2, "0xc", core("0x4") + core("0x8"), memory=200)
    topology = read(document(later, first, after=distances("7 2", "10 30", "20 10")))
    assert topology.memory_bytes.tolist() == [200, 700]
    assert topology.cores.tolist() == [2, 1]
    np.testing.assert_allclose(topology.latency_s * 1e9, [[100, 200], [300, 100]])


def test_distances_may_be_indexed_by_gp_index(read):
    more = 'name="NUMALatency" indexing="gp"'
    topology = read(document(*TWO_NODES, after=distances("101 100", "10 30", "20 10", more=more)))
    np.testing.assert_allclose(topology.latency_s * 1e9, [[100, 200], [300, 100]])


def test_processing_units_count_where_there_are_no_cores(read):
    inside = '<object type="PU" cpuset="0x1"/><object type="PU" cpuset="0x2"/><object type="PU" cpuset="0x4"/>'
    topology = read(document(node(0, "0x7", inside)))
    assert topology.cores.tolist() == [3]
    assert topology.sources["cores"].startswith("file: PU objects")


def cache(kind: str, cpuset: str, size: object) -> str:
    return f'<object type="{kind}" cpuset="{cpuset}" cache_size="{size}"/>'


def test_a_cache_counts_for_the_node_of_its_cores_and_a_shared_one_by_its_cores(read):
    l3 = [cache("L3Cache", "0x1", 100), cache("L3Cache", "0x2", 100), cache("L3Cache", "0xf", 1000)]
    topology = read(document(*TWO_NODES, *l3, cache("L2Cache", "0x1", 7)))
    assert topology.llc_bytes.tolist() == [700, 500]
    assert topology.sources["llc_bytes"] == "file: L3Cache objects"


def test_where_there_is_no_third_level_the_second_is_the_last(read):
    topology = read(document(*TWO_NODES, *(cache("L2Cache", cpuset, 8) for cpuset in ("0x1", "0x2", "0x4", "0x8"))))
    assert topology.llc_bytes.tolist() == [16, 16]


def test_without_caches_their_size_is_assumed(read):
    topology = read(document(*TWO_NODES))
    assert topology.llc_bytes.tolist() == [DEFAULT_LLC_BYTES] * 2
    assert topology.sources["llc_bytes"].startswith("assumed")


def test_cores_without_processing_units_inside_count(read):
    topology = read(document(node(0, "0x3", '<object type="Core" cpuset="0x3"/>')))
    assert topology.cores.tolist() == [1]
    assert topology.sources["cores"].startswith("file: Core objects")


def test_a_core_counts_for_its_nearest_node_only(read):
    machine_wide = '<object type="NUMANode" os_index="0" cpuset="0xf" local_memory="1000"/>'
    near = (node(1, "0x3", core("0x1") + core("0x2")), node(2, "0xc", core("0x4") + core("0x8")))
    assert read(document(machine_wide, *near)).cores.tolist() == [0, 2, 2]


@pytest.mark.parametrize("more", ['subtype="MCDRAM"', 'subtype="HBM"'])
def test_high_bandwidth_memory_that_inherits_a_cpuset_has_no_cores(read, more):
    fast = f'<object type="NUMANode" os_index="0" cpuset="0x3" local_memory="1000" {more}/>'
    topology = read(document(node(1, "0x3", fast + core("0x1") + core("0x2"))))
    assert topology.cores.tolist() == [0, 2]


def test_memory_behind_a_device_has_no_cores(read):
    device = '<info name="DAXDevice" value="dax0.0"/>'
    cxl = f'<object type="NUMANode" os_index="0" cpuset="0x3" local_memory="1000">{device}</object>'
    assert read(document(node(1, "0x3", cxl + core("0x1") + core("0x2")))).cores.tolist() == [0, 2]


def test_of_two_nodes_with_one_cpuset_the_first_has_the_cores(read):
    second = '<object type="NUMANode" os_index="4" cpuset="0x3" local_memory="1000"/>'
    assert read(document(node(0, "0x3", second + core("0x1") + core("0x2")))).cores.tolist() == [2, 0]


def test_a_node_with_an_empty_cpuset_has_no_cores(read):
    topology = read(document(*TWO_NODES, node(2, "0x0"), after=distances("0 1 2", "10 20 30 20 10 30 30 30 10")))
    assert topology.cores.tolist() == [2, 2, 0]


def test_cpusets_beyond_32_bits_are_read(read):
    high = node(1, "0x00000001,,0x0", core("0x1,,0x0"))
    assert read(document(node(0, "0x1", core("0x1")), high)).cores.tolist() == [1, 1]


def test_a_single_node_needs_no_distances(read):
    topology = read(document(node(0, "0x1", core("0x1"))))
    assert topology.num_links == 0
    np.testing.assert_allclose(topology.latency_s, [[100e-9]])


def test_without_distances_every_node_is_assumed_twice_as_far(read):
    topology = read(document(*TWO_NODES))
    np.testing.assert_allclose(topology.latency_s * 1e9, [[100, 200], [200, 100]])
    assert topology.sources["latency_s"].startswith("assumed:")
    assert topology.sources["links"].startswith("assumed:")


@pytest.mark.parametrize(
    ("after", "inside", "flops_per_s", "source"),
    [
        ('<cpukind cpuset="0x3"><info name="FrequencyMaxMHz" value="2100"/></cpukind>', "", 33.6e9, "derived: Freq"),
        ("", '<info name="CPUModel" value="Xeon Gold 6230 CPU @ 2.10GHz"/>', 33.6e9, "derived: 2.10GHz in the CPU"),
        ('<cpukind cpuset="0x1"><info name="FrequencyMaxMHz" value="2100"/></cpukind>', "", 40e9, "assumed: 2.5 GHz"),
        ("", "", 40e9, "assumed: 2.5 GHz"),
    ],
)
def test_flops_follow_from_frequency(read, after, inside, flops_per_s, source):
    package = f'<object type="Package" cpuset="0x3">{inside}</object>'
    topology = read(document(package, node(0, "0x3", core("0x1") + core("0x2")), after=after))
    assert topology.flops_per_s.tolist() == [pytest.approx(flops_per_s)]
    assert topology.sources["flops_per_s"].startswith(source)
    assert "assumed: 16 single-precision flop per cycle" in topology.sources["flops_per_s"]


def test_flops_of_unlike_cores_are_averaged(read):
    kinds = "".join(
        f'<cpukind cpuset="{cpuset}"><info name="FrequencyMaxMHz" value="{mhz}"/></cpukind>'
        for cpuset, mhz in (("0x1", 1000), ("0x2", 3000))
    )
    topology = read(document(node(0, "0x3", core("0x1") + core("0x2")), after=kinds))
    assert topology.flops_per_s.tolist() == [2e9 * 16]


def attribute(name: str, *values: tuple[str, int, int]) -> str:
    """A memory attribute: (initiator cpuset, target os_index, value)."""
    inside = "".join(
        f'<memattr_value target_obj_type="NUMANode" target_obj_gp_index="{100 + target}" value="{value}" '
        f'initiator_cpuset="{initiator}"/>'
        for initiator, target, value in values
    )
    return f'<memattr name="{name}" flags="5">{inside}</memattr>'


def test_complete_memory_attributes_replace_what_would_be_assumed(read):
    latency = attribute("Latency", ("0x3", 0, 80), ("0x3", 1, 140), ("0xc", 0, 150), ("0xc", 1, 90))
    bandwidth = attribute("Bandwidth", ("0x3", 0, 4000), ("0x3", 1, 1000), ("0xc", 0, 2000), ("0xc", 1, 3000))
    topology = read(document(*TWO_NODES, after=latency + bandwidth))
    np.testing.assert_allclose(topology.latency_s * 1e9, [[80, 140], [150, 90]])
    np.testing.assert_allclose(topology.bandwidth_bytes_per_s / 2**20, [[4000, 1000], [2000, 3000]])
    np.testing.assert_allclose(topology.memory_bandwidth_bytes_per_s / 2**20, [4000, 3000])
    # Reads of node 0 from node 1 come over the link from 1 to 0.
    assert topology.links.tolist() == [[0, 1], [1, 0]]
    np.testing.assert_allclose(topology.link_bandwidth_bytes_per_s / 2**20, [2000, 1000])
    assert topology.sources["latency_s"].startswith("file: memory attribute Latency")
    assert topology.sources["bandwidth_bytes_per_s"].startswith("file: memory attribute Bandwidth")


def test_the_tightest_initiator_around_a_nodes_cores_gives_its_value(read):
    everyone = [("0xff", target, 500) for target in (0, 1)]
    local = [("0x3", 0, 80), ("0xc", 1, 90)]
    topology = read(document(*TWO_NODES, after=attribute("Latency", *local, *everyone)))
    np.testing.assert_allclose(topology.latency_s * 1e9, [[80, 500], [500, 90]])


def test_an_initiator_may_be_an_object(read):
    values = "".join(
        f'<memattr_value target_obj_gp_index="{100 + target}" value="{value}" initiator_obj_gp_index="{initiator}"/>'
        for initiator, target, value in ((100, 0, 80), (100, 1, 140), (101, 0, 150), (101, 1, 90))
    )
    topology = read(document(*TWO_NODES, after=f'<memattr name="Latency">{values}</memattr>'))
    np.testing.assert_allclose(topology.latency_s * 1e9, [[80, 140], [150, 90]])


def test_memory_attributes_that_miss_a_node_are_left_aside(read):
    topology = read(document(*TWO_NODES, after=attribute("Bandwidth", ("0x3", 0, 4000))))
    np.testing.assert_allclose(topology.bandwidth_bytes_per_s, [[90e9, 30e9], [30e9, 90e9]])
    assert topology.sources["bandwidth_bytes_per_s"].startswith("assumed:")


def test_memory_attributes_of_the_best_initiators_only_are_completed_by_slit(read):
    local = attribute("Latency", ("0x3", 0, 80), ("0xc", 1, 90))
    topology = read(document(*TWO_NODES, after=distances("0 1", "10 21 21 10") + local))
    np.testing.assert_allclose(topology.latency_s * 1e9, [[80, 189], [168, 90]])
    assert topology.sources["latency_s"].startswith(
        "file: memory attribute Latency; derived: pairs 0 to 1, 1 to 0 by SLIT"
    )


def test_a_node_without_cores_mirrors_what_others_see_of_it(read):
    memory_only = node(2, "0x0")
    latency = attribute(
        "Latency",
        *[("0x3", target, value) for target, value in enumerate((80, 140, 400))],
        *[("0xc", target, value) for target, value in enumerate((140, 80, 300))],
    )
    topology = read(document(*TWO_NODES, memory_only, after=latency))
    np.testing.assert_allclose(topology.latency_s * 1e9, [[80, 140, 400], [140, 80, 300], [400, 300, 300]])


def test_direct_links_are_those_no_detour_matches():
    # Two sockets of two dies: 0-1 and 2-3 share a socket, only 0 and 2 are joined across.
    slit = np.array([[10, 12, 20, 22], [12, 10, 22, 24], [20, 22, 10, 12], [22, 24, 12, 10]], dtype=float)
    assert {tuple(sorted(link)) for link in links_from_distances(slit).tolist()} == {(0, 1), (2, 3), (0, 2)}


def test_links_of_any_distances_are_symmetric_and_reach_every_node():
    rng = np.random.default_rng(5)
    for _ in range(50):
        n = int(rng.integers(1, 9))
        slit = rng.choice([10.0, 11.0, 16.0, 22.0, 40.0, 255.0], size=(n, n))
        np.fill_diagonal(slit, 10.0)
        links = links_from_distances(slit)
        assert {(a, b) for a, b in links.tolist()} == {(b, a) for a, b in links.tolist()}
        assert (hop_counts(links, n) >= 0).all()


def test_nodes_as_near_as_local_are_all_linked():
    assert len(links_from_distances(np.full((3, 3), 10.0))) == 6


def test_a_node_as_near_as_local_can_be_on_the_way_to_another():
    slit = np.array([[10, 10, 16], [10, 10, 15], [16, 15, 10]], dtype=float)
    assert links_from_distances(slit).tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]


BOMB = """<!DOCTYPE topology [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>
<topology version="2.0"><object type="Machine">&b;</object></topology>"""
THIEF = """<!DOCTYPE topology [<!ENTITY % remote SYSTEM "file:///etc/hostname"> %remote;]><topology version="2.0"/>"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be well-formed XML, got no element found"),
        ("node distances: 10 20", "must be well-formed XML"),
        (document(*TWO_NODES)[:-30], "must be well-formed XML"),
        ('<?xml version="1.0" encoding="klingon"?><topology/>', "must be well-formed XML"),
        (BOMB, "must not define XML entities, got .*name='a'"),
        (THIEF, "must not define XML entities"),
        ("<svg/>", "root element must be <topology>, got <svg>"),
        ("<topology/>", r"topology version must be 2\.x or 3\.x, got '1\.0'"),
        (document(core("0x1")), "there must be 1 to 1024 NUMANode objects, got 0"),
        (document(TWO_NODES[0], TWO_NODES[0]), r"each NUMANode must have its own os_index, got \[0, 0\]"),
        (
            document('<object type="NUMANode" cpuset="0x1"/>'),
            "os_index of a NUMANode must be a whole number >= 0, got None",
        ),
        (
            document('<object type="NUMANode" os_index="0"/>'),
            "cpuset of a NUMANode must be 32-bit hex.* words, got None",
        ),
        (document(node(0, "0xf...f", core("0x1"))), r"cpuset of a NUMANode must be .*, got '0xf\.\.\.f'"),
        (document(node(0, "0x1")), "at least one node must have cores, got zero cores everywhere"),
        (document(node(0, "0x1", core("0x1"), memory=0)), r"memory_bytes\[0\] must be finite and > 0, got 0"),
        (document(*TWO_NODES, cache("L3Cache", "0x1", -1)), "cache_size must be a whole number >= 0, got '-1'"),
        (document(*TWO_NODES, after=distances("0 1", "10 20 20")), "must be a square of 4 values, got 3"),
        (document(*TWO_NODES, after=distances("0 1 2", "10 20 20 10")), "must be a square of 9 values, got 4"),
        (document(*TWO_NODES, after=distances("0 1", "10 -20 20 10")), "a distance must be .* >= 0, got '-20'"),
        (document(*TWO_NODES, after=distances("0 1", "10 nan 20 10")), "a distance must be .* >= 0, got 'nan'"),
        (document(*TWO_NODES, after=distances("0 1", "10 0 20 10")), "a distance must be positive, got 0"),
        (document(*TWO_NODES, after=distances("0 5", "10 20 20 10")), r"NUMANodes \[0, 1\], got \[0, 5\]"),
        (document(*TWO_NODES, after=distances("0", "10")), r"NUMANodes \[0, 1\], got \[0\]"),
        (document(*TWO_NODES, after=attribute("Latency", ("0x3", 0, -5))), "attribute Latency must be .* got '-5'"),
    ],
)
def test_a_bad_file_is_named_with_the_rule_and_the_value(read, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read(text)
    assert re.match(r"hwloc file '.*machine\.xml': ", str(error.value))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match=r"hwloc file 'nowhere\.xml': must be an existing file, got none"):
        load_machine("nowhere.xml")


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "large.xml"
    path.write_text(document(*TWO_NODES))
    monkeypatch.setattr(hwloc, "MAX_FILE_BYTES", 100)
    with pytest.raises(ValueError, match=r"large\.xml': must be at most 100 bytes, got \d+"):
        read_hwloc(path)


def real_machine(name: str) -> Topology:
    """A real machine from hwloc's own test data."""
    path = REAL_FILES / name
    if not path.is_file():
        pytest.skip(f"{name} of hwloc's test data is not beside the repository")
    return load_machine(str(path))


def test_the_r815_file_agrees_with_its_preset():
    topology, preset = real_machine("64amd64-4p2n4ca2co.xml"), load_machine("r815")
    for figure in ("cores", "memory_bytes", "latency_s", "links", "llc_bytes"):
        np.testing.assert_array_equal(getattr(topology, figure), getattr(preset, figure))


def test_offline_processors_leave_nodes_without_cores():
    topology = real_machine("32amd64-4s2n4c-cgroup2.xml")
    assert topology.cores.tolist() == [4, 2, 0, 0, 0, 0]
    assert topology.hops[0].tolist() == [0, 1, 1, 2, 1, 2]


def test_memory_side_caches_hide_no_node():
    topology = real_machine("memorysidecaches.xml")
    assert topology.cores.tolist() == [10, 10, 10, 10]
    np.testing.assert_allclose(topology.latency_s[0] * 1e9, [100, 210, 110, 210])
    assert topology.flops_per_s[0] == pytest.approx(2.1e9 * 16)


def test_memory_attributes_of_one_initiator_are_not_taken_for_a_matrix():
    topology = real_machine("8intel64-4n2t-memattrs.xml")
    assert topology.cores.tolist() == [2, 2, 2, 2]
    assert topology.sources["bandwidth_bytes_per_s"].startswith("assumed:")

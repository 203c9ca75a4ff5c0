from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from system_files import archive, hmat_table, locality, side_cache, system_files, write_folder

from experiments.machine import MachineShow
from numa_rl.machines.catalog import load_machine
from numa_rl.machines.completion import BY_SOCKET, LINK_SHARE
from numa_rl.machines.machine_json import FIGURES
from numa_rl.machines.sysfs import machine_in_archive
from numa_rl.topology import Topology

REAL_FILES = Path(__file__).parents[1].parent / "shared" / "data" / "topologies"
SLIT = [[10, 21], [21, 10]]
NODES, CPUS = "sys/devices/system/node", "sys/devices/system/cpu"


def read(files: dict[str, str | bytes]) -> Topology:
    """The machine of an archive of the files."""
    return machine_in_archive("box", archive(files))


def two_nodes(**options: object) -> dict[str, str | bytes]:
    return dict(system_files([2, 2], [1000, 2000], SLIT, **options))


def test_nodes_cores_memory_distances_and_caches_are_read():
    topology = read(two_nodes(cache_kib=512))
    assert topology.name == "box"
    assert topology.cores.tolist() == [2, 2]
    assert topology.memory_bytes.tolist() == [1000 * 1024, 2000 * 1024]
    np.testing.assert_allclose(topology.latency_s * 1e9, [[100, 210], [210, 100]])
    assert topology.llc_bytes.tolist() == [512 * 1024] * 2
    assert set(topology.sources) == set(FIGURES)


@st.composite
def systems(draw):
    n = draw(st.integers(1, 6))
    cores = draw(st.lists(st.integers(0, 5), min_size=n, max_size=n).filter(any))
    memory_kib = draw(st.lists(st.integers(1, 10**12), min_size=n, max_size=n))
    values = draw(st.lists(st.integers(10, 255), min_size=n * n, max_size=n * n))
    distances = np.array(values).reshape(n, n)
    numbers = sorted(draw(st.sets(st.integers(0, 1023), min_size=n, max_size=n)))
    return cores, memory_kib, distances, numbers, draw(st.integers(1, 4)), draw(st.booleans())


@given(systems())
def test_what_is_written_is_read_back(system):
    cores, memory_kib, distances, numbers, threads, masks = system
    topology = read(dict(system_files(cores, memory_kib, distances, numbers=numbers, threads=threads, masks=masks)))
    assert topology.cores.tolist() == cores
    assert topology.memory_bytes.tolist() == [size * 1024 for size in memory_kib]
    np.testing.assert_allclose(topology.latency_s * 1e9, distances * 10.0)


@pytest.mark.parametrize("at", ["", "fsroot", "machine", "machine/fsroot"])
def test_a_folder_and_an_archive_of_it_agree_wherever_sys_is(at, tmp_path):
    files = {f"{at}/{name}".lstrip("/"): content for name, content in two_nodes(threads=2).items()}
    folder = load_machine(str(write_folder(tmp_path / "box", files)))
    packed = tmp_path / "box.tar.xz"
    packed.write_bytes(archive(files, "w:xz"))
    assert load_machine(str(packed)).to_dict() == folder.to_dict()


def test_the_folder_may_be_sys_itself(tmp_path):
    write_folder(tmp_path, two_nodes())
    assert load_machine(str(tmp_path / "sys")).cores.tolist() == [2, 2]


def test_nodes_are_ordered_by_number_not_by_name():
    files = dict(system_files([1, 2, 3], [1, 2, 3], np.full((3, 3), 10), numbers=[2, 9, 16]))
    assert read(files).cores.tolist() == [1, 2, 3]


def test_processors_offline_are_no_cores():
    topology = read({**two_nodes(threads=2), f"{CPUS}/online": "0-2,4\n"})  # processor 3 is a core's second thread
    assert topology.cores.tolist() == [2, 1]


def test_nodes_offline_are_left_out():
    files = {key: text for key, text in two_nodes().items() if not key.endswith("distance")}
    topology = read({**files, f"{NODES}/online": "1\n"})
    assert topology.num_nodes == 1
    assert topology.memory_bytes.tolist() == [2000 * 1024]


def test_a_node_without_processors_holds_memory_only():
    assert read(dict(system_files([4, 0], [1, 1], SLIT))).cores.tolist() == [4, 0]


def test_distances_need_not_be_symmetric():
    topology = read(dict(system_files([1, 1], [1, 1], [[10, 16], [22, 10]])))
    np.testing.assert_allclose(topology.latency_s * 1e9, [[100, 160], [220, 100]])


def test_without_distances_they_are_assumed():
    assert read(dict(system_files([1, 1], [1, 1]))).sources["latency_s"].startswith("assumed:")


def test_paired_cores_of_an_opteron_are_two_cores():
    cpuinfo = "processor : 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 21\nmodel name\t: AMD Opteron 6272\n"
    assert read({**two_nodes(threads=2), "proc/cpuinfo": cpuinfo}).cores.tolist() == [4, 4]
    assert read({**two_nodes(threads=2), "proc/cpuinfo": cpuinfo.replace("21", "23")}).cores.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("more", "flops_per_s", "source"),
    [
        ({f"{CPUS}/cpu{i}/cpufreq/cpuinfo_max_freq": "2000000\n" for i in range(4)}, 32e9, "derived: cpuinfo_max_freq"),
        ({"proc/cpuinfo": "model name : Xeon @ 2.10GHz\ncpu MHz : 800.1\n"}, 33.6e9, "derived: 2.10GHz in the CPU"),
        ({"proc/cpuinfo": "cpu : POWER7\nclock : 3000.0MHz\n"}, 48e9, "derived: the highest clock in /proc/cpuinfo"),
        ({}, 40e9, "assumed: 2.5 GHz"),
    ],
)
def test_flops_follow_from_the_clock(more, flops_per_s, source):
    topology = read({**two_nodes(), **more})
    assert topology.flops_per_s.tolist() == [pytest.approx(flops_per_s)] * 2
    assert topology.sources["flops_per_s"].startswith(source)


def test_where_processors_disagree_about_a_cache_most_of_them_are_right():
    files = two_nodes(cache_kib=100)
    files[f"{CPUS}/cpu2/cache/index3/shared_cpu_map"] = "f\n"
    assert read(files).llc_bytes.tolist() == [100 * 1024] * 2


STATUS = "Name:\tbash\nCpus_allowed:\tff\nCpus_allowed_list:\t0,2-3\nMems_allowed:\t1\nMems_allowed_list:\t{}\n"
GROUPS = {
    "own status": {"proc/self/status": STATUS.format("1")},
    "cgroup 2": {
        "proc/mounts": "none /cgroup/unified cgroup2 rw 0 0\n",
        "proc/self/cpuset": "/job/7\n",
        "cgroup/unified/job/7/cpuset.cpus.effective": "0,2-3\n",
        "cgroup/unified/job/7/cpuset.mems.effective": "1\n",
    },
    "cgroup 1": {
        "proc/mounts": "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
        "cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\n",
        "proc/self/cpuset": "/job\n",
        "sys/fs/cgroup/memory/job/cpuset.mems": "0\n",
        "sys/fs/cgroup/cpuset/job/cpuset.cpus": "0,2-3\n",
        "sys/fs/cgroup/cpuset/job/cpuset.mems": "1\n",
    },
    "cpuset without prefix": {
        "proc/mounts": "none /dev/cpuset cpuset rw 0 0\n",
        "proc/self/cpuset": "/\n",
        "dev/cpuset/cpus": "0,2-3\n",
        "dev/cpuset/mems": "1\n",
    },
}


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_what_the_process_may_not_use_is_left_out(group):
    files = dict(system_files([2, 2], [1000, 2000], [[10, 16], [22, 10]]))
    topology = read({**files, **group})
    assert topology.cores.tolist() == [2]
    assert topology.memory_bytes.tolist() == [2000 * 1024]
    assert topology.latency_s.tolist() == [[pytest.approx(100e-9)]]
    assert "nodes 0 left out, not allowed to the process" in topology.sources["cores"]


def test_a_node_whose_processors_are_not_allowed_keeps_its_memory():
    assert read({**two_nodes(), "proc/self/status": STATUS.format("0-1")}).cores.tolist() == [1, 2]


def access(node: int, initiators: tuple[int, ...], latency: int, bandwidth: int, number: int = 0) -> dict[str, str]:
    folder = f"{NODES}/node{node}/access{number}/initiators"
    links = {f"{folder}/node{initiator}/x": "" for initiator in initiators}
    return {**links, f"{folder}/read_latency": f"{latency}\n", f"{folder}/read_bandwidth": f"{bandwidth}\n"}


def test_the_best_initiators_figures_are_completed_by_slit():
    files = {**two_nodes(), **access(0, (0,), 80, 100_000), **access(1, (1,), 80, 100_000)}
    topology = read(files)
    np.testing.assert_allclose(topology.latency_s * 1e9, [[80, 168], [168, 80]])
    np.testing.assert_allclose(topology.bandwidth_bytes_per_s[0] / 1e9, [100, 100 * LINK_SHARE])
    assert "best initiators in sysfs" in topology.sources["latency_s"]
    assert "derived: pairs 0 to 1, 1 to 0 by SLIT distance" in topology.sources["latency_s"]
    assert f"pairs 0 to 1, 1 to 0 {BY_SOCKET}" in topology.sources["bandwidth_bytes_per_s"]


def test_class_1_of_processors_comes_before_class_0():
    files = {**two_nodes(), **access(0, (0,), 80, 1000), **access(1, (1,), 80, 1000)}
    assert read({**files, **access(1, (1,), 95, 900, number=1)}).latency_s[1, 1] == pytest.approx(95e-9)


def test_figures_of_zero_are_not_stated():
    topology = read({**two_nodes(), **access(0, (0,), 0, 0), **access(1, (1,), 0, 0)})
    assert topology.sources["latency_s"].startswith("derived: from SLIT")


HMAT = hmat_table(
    locality(1, [0, 1], [0, 1], [[80, 150], [140, 90]], 1000),
    locality(4, [0, 1], [0, 1], [[100, 30], [40, 120]], 1000),
    side_cache(0, 2**30),
)


def test_the_hmat_in_sys_gives_every_pair():
    files = {**two_nodes(), **access(0, (0,), 70, 1), "sys/firmware/acpi/tables/HMAT": HMAT}
    topology = read(files)
    np.testing.assert_allclose(topology.latency_s * 1e9, [[80, 150], [140, 90]])
    np.testing.assert_allclose(topology.bandwidth_bytes_per_s / 1e9, [[100, 30], [40, 120]])
    assert topology.sources["latency_s"] == "file: ACPI HMAT, the firmware's own figures"


def test_the_hmat_follows_the_nodes_that_may_be_used():
    files = {**two_nodes(), "sys/firmware/acpi/tables/HMAT": HMAT, "proc/self/status": STATUS.format("1")}
    np.testing.assert_allclose(read(files).latency_s * 1e9, [[90]])


def test_what_the_hmat_lacks_comes_from_the_best_initiators():
    table = hmat_table(locality(1, [0, 1], [0, 1], [[80, 150], [140, 90]], 1000))
    files = {**two_nodes(), **access(0, (0,), 70, 1000), **access(1, (1,), 70, 1000)}
    topology = read({**files, "sys/firmware/acpi/tables/HMAT": table})
    assert topology.latency_s[0, 0] == pytest.approx(80e-9)
    assert topology.bandwidth_bytes_per_s[0, 0] == pytest.approx(1e9)


def test_an_hmat_of_another_number_of_nodes_is_left_aside():
    table = hmat_table(locality(1, [0], [0], [[80]], 1000))
    topology = read({**two_nodes(), "sys/firmware/acpi/tables/HMAT": table})
    assert topology.sources["latency_s"].startswith("derived: from SLIT")


def test_memory_side_caches_are_told_though_the_model_has_none():
    files = {**two_nodes(), f"{NODES}/node0/memory_side_cache/index1/size": f"{2**34}\n"}
    assert "1 memory-side cache of 16384 MiB" in read(files).sources["memory_bytes"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{NODES}/node0/meminfo": "Node 0 MemTotal: 0 kB"}, "MemTotal of node 0 must be > 0 kB, got 0"),
        ({f"{NODES}/node1/meminfo": "nothing"}, "MemTotal of node 1 must be > 0 kB, got none"),
        ({f"{NODES}/node1/distance": "21"}, "distances of node 1 must be 2 whole numbers > 0, got '21'"),
        ({f"{NODES}/node1/distance": "-21 10"}, "distances of node 1 must be .* got '-21 10'"),
        ({f"{NODES}/node1/distance": "0 10"}, "distances of node 1 must be .* got '0 10'"),
        ({f"{NODES}/node0/cpumap": "xyz"}, "cpumap of node 0 must be 32-bit hexadecimal words, got 'xyz'"),
        ({f"{NODES}/online": "5"}, "there must be 1 to 1024 nodes online in .*, got 0"),
        ({f"{NODES}/online": "0-999999"}, "must be numbers and ranges below 65536"),
        ({f"{CPUS}/online": "1-0"}, "must be numbers and ranges"),
        ({f"{CPUS}/online": "\n"}, "at least one node must have cores, got zero cores everywhere"),
        ({"proc/self/status": STATUS.format("7")}, "got 0 that may be used"),
        ({"sys/firmware/acpi/tables/HMAT": HMAT[:-1]}, "the HMAT's length must be that of the file"),
    ],
)
def test_bad_files_are_named_with_the_rule_and_the_value(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        read({**two_nodes(), **changes})
    assert "\n" not in str(error.value)


EVERY_FILE = {
    **two_nodes(cache_kib=64),
    **access(0, (0,), 80, 1000),
    **access(1, (1,), 80, 1000),
    **GROUPS["cgroup 2"],
    f"{CPUS}/cpu0/cpufreq/cpuinfo_max_freq": "2000000\n",
    f"{NODES}/node0/memory_side_cache/index1/size": "4096\n",
    "proc/cpuinfo": "model name : Xeon @ 2.10GHz\ncpu MHz : 800.1\n",
    "sys/firmware/acpi/tables/HMAT": HMAT,
}


@given(
    st.sampled_from(sorted(EVERY_FILE)), st.binary(max_size=20) | st.from_regex(r"[-\d, fxnagi.]{0,12}").map(str.encode)
)
def test_whatever_a_file_holds_there_is_a_machine_or_a_value_error(path, content):
    try:
        topology = read({**EVERY_FILE, path: content})
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert np.isfinite(topology.latency_s).all()


def test_a_folder_without_nodes_is_refused(tmp_path):
    (tmp_path / "bin").mkdir()
    with pytest.raises(ValueError, match=r"folder '.*': there must be a folder devices/system/node, .*, got 'bin'"):
        load_machine(str(tmp_path))


def test_this_machine_is_read():
    topology = load_machine("live")
    assert topology.name == "live"
    assert topology.cores.sum() >= 1


REAL = {
    "128arm-2pa2n8cluster4co": [32] * 4,
    "16ia64-8n2s": [2] * 8,
    "256ppc-8n8s4t": [8] * 8,
    "32amd64-4s2n4c-cgroup2": [4, 2, 0, 0, 0, 0],
    "40intel64-4n10c+pci-conflicts": [10] * 4,
    "48amd64-4pa2n6c-sparse": [6] * 8,
    "64amd64-4p2n4ca2co_R815_opteron6272": [8] * 8,
    "64amd64-4s2n4ca2co": [8] * 8,
    "memorysidecaches": [10] * 4,
}


def real_machine(name: str) -> Topology:
    """A real machine from hwloc's own test data."""
    path = REAL_FILES / name
    if not path.is_file():
        pytest.skip(f"{name} of hwloc's test data is not beside the repository")
    return load_machine(str(path))


@pytest.mark.parametrize(("name", "cores"), REAL.items(), ids=REAL)
def test_real_archives_are_read(name, cores):
    topology = real_machine(f"{name}.tar.bz2")
    assert topology.cores.tolist() == cores
    assert set(topology.sources) == set(FIGURES)
    assert topology.sources["latency_s"].startswith("derived: from SLIT")


@pytest.mark.parametrize(
    ("xml", "packed"),
    [
        ("64amd64-4p2n4ca2co", "64amd64-4p2n4ca2co_R815_opteron6272"),
        ("32amd64-4s2n4c-cgroup2", "32amd64-4s2n4c-cgroup2"),
        ("memorysidecaches", "memorysidecaches"),
    ],
)
def test_xml_and_archive_of_one_machine_agree(xml, packed):
    one, other = real_machine(f"{xml}.xml"), real_machine(f"{packed}.tar.bz2")
    for figure in ("cores", "memory_bytes", "llc_bytes", "latency_s", "links", "flops_per_s", "bandwidth_bytes_per_s"):
        np.testing.assert_array_equal(getattr(one, figure), getattr(other, figure), err_msg=figure)


def test_asymmetric_and_interleaved_distances_of_real_machines():
    power7 = real_machine("256ppc-8n8s4t.tar.bz2")
    np.testing.assert_allclose(power7.latency_s[2] * 1e9, [400, 400, 100, 200, 400, 400, 400, 400])
    kunpeng = real_machine("128arm-2pa2n8cluster4co.tar.bz2")
    np.testing.assert_allclose(kunpeng.latency_s[1] * 1e9, [160, 100, 250, 320])


def test_show_prints_the_sources_of_an_archive(tmp_path, capsys):
    path = tmp_path / "box.tar.gz"
    path.write_bytes(archive(two_nodes()))
    MachineShow(str(path)).run()
    assert "MemTotal of each node" in " ".join(capsys.readouterr().out.split())

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numa_rl.machines.assembly import assemble
from numa_rl.machines.catalog import load_machine
from numa_rl.machines.machine_json import FIGURES
from numa_rl.machines.numactl import found_in_numactl, is_numactl
from numa_rl.topology import Topology

REAL_FILES = Path(__file__).parents[1].parent / "shared" / "data" / "topologies"


def listing(processors, sizes_mib, distances, numbers=None) -> str:
    """What numactl -H prints of a machine."""
    numbers = list(range(len(processors))) if numbers is None else numbers
    lines = [f"available: {len(numbers)} nodes ({','.join(map(str, numbers))})"]
    for node, cpus, size in zip(numbers, processors, sizes_mib, strict=True):
        lines += [
            f"node {node} cpus: {' '.join(map(str, cpus))}",
            f"node {node} size: {size} MB",
            f"node {node} free: 1 MB",
        ]
    lines += ["node distances:", "node " + " ".join(f"{node:3}" for node in numbers) + " "]
    lines += [
        f"{node:3}: " + " ".join(f"{d:3}" for d in row) + " " for node, row in zip(numbers, distances, strict=True)
    ]
    return "\n".join(lines) + "\n"


TEXT = listing([[0, 1], [2, 3]], [1000, 2000], [[10, 21], [21, 10]])


def read(text: str) -> Topology:
    return assemble(found_in_numactl("box", text))


def test_nodes_sizes_and_distances_are_read(tmp_path):
    path = tmp_path / "box.txt"
    path.write_text(TEXT)
    topology = load_machine(str(path))
    assert topology.name == "box"
    assert topology.cores.tolist() == [2, 2]
    assert topology.memory_bytes.tolist() == [1000 * 2**20, 2000 * 2**20]
    np.testing.assert_allclose(topology.latency_s * 1e9, [[100, 210], [210, 100]])
    assert set(topology.sources) == set(FIGURES)
    assert topology.sources["cores"].startswith("file: processors of numactl; assumed:")


@st.composite
def machines(draw):
    n = draw(st.integers(1, 6))
    counts = draw(st.lists(st.integers(0, 6), min_size=n, max_size=n).filter(any))
    firsts = np.cumsum([0, *counts])
    processors = [list(range(first, first + count)) for first, count in zip(firsts, counts, strict=False)]
    sizes = draw(st.lists(st.integers(1, 10**7), min_size=n, max_size=n))
    values = draw(st.lists(st.integers(10, 255), min_size=n * n, max_size=n * n))
    numbers = sorted(draw(st.sets(st.integers(0, 999), min_size=n, max_size=n)))
    return processors, sizes, np.array(values).reshape(n, n), numbers


@given(machines())
def test_what_is_written_is_read_back(machine):
    processors, sizes, distances, _ = machine
    text = listing(*machine)
    topology = read(text)
    assert is_numactl(text)
    assert topology.cores.tolist() == [len(cpus) for cpus in processors]
    assert topology.memory_bytes.tolist() == [size * 2**20 for size in sizes]
    np.testing.assert_allclose(topology.latency_s * 1e9, distances * 10.0)


def test_distances_alone_will_do():
    topology = read(TEXT[TEXT.index("node distances") :])
    assert topology.num_nodes == 2
    assert topology.sources["cores"].startswith("assumed:")
    assert topology.sources["memory_bytes"].startswith("assumed:")


def test_without_distances_they_are_assumed():
    topology = read(TEXT[: TEXT.index("node distances")] + "No distance information available.\n")
    assert topology.sources["latency_s"].startswith("assumed:")


def test_a_node_without_processors_holds_memory_only():
    assert read(listing([[0, 1], []], [1, 1], [[10, 20], [20, 10]])).cores.tolist() == [2, 0]


def test_line_ends_of_windows_do_not_matter(tmp_path):
    path = tmp_path / "box.txt"
    path.write_bytes(TEXT.replace("\n", "\r\n").encode())
    assert load_machine(str(path)).cores.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT.replace("1000 MB", "0 MB"), "the size of node 0 must be > 0 MB, got 0"),
        (
            TEXT.replace("node 1 size: 2000 MB\n", ""),
            r"every node of \[0, 1\] must have a size, got them of \[0\] only",
        ),
        (TEXT.replace("node 1 cpus: 2 3\n", ""), r"must have cpus, got them of \[0\] only"),
        (TEXT.replace("  1:  21  10 \n", ""), r"must have a row of each of nodes \[0, 1\], got \[0\]"),
        (TEXT.replace("  1:  21  10", "  0:  21  10"), r"must have a row of each of nodes \[0, 1\], got \[0, 0\]"),
        (TEXT.replace("  1:  21  10", "  1:  21"), "distances of node 1 must be 2 whole numbers > 0, got '21'"),
        (TEXT.replace("  1:  21  10", "  1: -21  10"), "distances of node 1 must be 2 whole numbers > 0"),
        (TEXT.replace("  1:  21  10", "  1:   0  10"), "distances of node 1 must be 2 whole numbers > 0"),
        (TEXT.replace("node   0   1", "node   0   0"), "distances must name each of at most 1024 nodes once"),
        (TEXT.replace("node   0   1", "node   0   2"), "must have a row of each of nodes"),
        (TEXT[: TEXT.index("node   0")], "distances must start with a line of nodes, got ''"),
        ("available: 0 nodes ()\n", "there must be 1 to 1024 nodes, got 0"),
        (listing([[], []], [1, 1], [[10, 20], [20, 10]]), "at least one node must have cores"),
    ],
)
def test_a_bad_text_is_named_with_the_rule_and_the_value(text, message):
    with pytest.raises(ValueError, match=message):
        read(text)


@pytest.mark.parametrize(
    ("name", "cores", "row"),
    [
        ("kunpeng920-4826_2s_4nodes.txt", [24] * 4, [100, 120, 200, 220]),
        ("opteron_4p_8nodes_grappa_stream_slit.txt", [8] * 8, [100, 160, 160, 220, 160, 220, 160, 220]),
    ],
)
def test_real_texts_are_read(name, cores, row):
    path = REAL_FILES / name
    if not path.is_file():
        pytest.skip(f"{name} is not beside the repository")
    topology = load_machine(str(path))
    assert topology.cores.tolist() == cores
    np.testing.assert_allclose(topology.latency_s[0] * 1e9, row)


@given(st.data())
def test_whatever_the_text_there_is_a_machine_or_a_value_error(data):
    lines = TEXT.splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    lines[at] = data.draw(st.sampled_from(lines) | st.text(st.sampled_from("0123456789.-: \t\x00enode"), max_size=20))
    with contextlib.suppress(ValueError):
        assert np.isfinite(read("\n".join(lines)).latency_s).all()

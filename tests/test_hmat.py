from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from system_files import hmat_table, locality, side_cache, with_checksum

from numa_rl.machines.catalog import load_machine
from numa_rl.machines.hmat import parse_hmat
from numa_rl.machines.machine_json import FIGURES
from numa_rl.topology import Topology

LATENCY, BANDWIDTH = [[80, 150], [140, 90]], [[100, 30], [40, 120]]
TABLE = hmat_table(locality(1, [0, 1], [0, 1], LATENCY, 1000), locality(4, [0, 1], [0, 1], BANDWIDTH, 1000))


@pytest.fixture
def load(tmp_path):
    """The machine of a table in a file, as it stands in /sys."""

    def load_table(table: bytes) -> Topology:
        path = tmp_path / "HMAT"
        path.write_bytes(table)
        return load_machine(str(path))

    return load_table


def test_revision_2_counts_in_picoseconds_and_megabytes(load):
    topology = load(TABLE)
    np.testing.assert_allclose(topology.latency_s * 1e9, LATENCY)
    np.testing.assert_allclose(topology.bandwidth_bytes_per_s / 1e9, BANDWIDTH)
    assert topology.sources["latency_s"].startswith("file: ACPI HMAT")
    assert topology.sources["cores"].startswith("file: initiator domains")
    assert set(topology.sources) == set(FIGURES)


def test_revision_1_counts_in_tenths(load):
    topology = load(hmat_table(locality(1, [0], [0], [[8]], 100), locality(4, [0], [0], [[20]], 5000), revision=1))
    assert topology.latency_s[0, 0] == pytest.approx(80e-9)
    assert topology.bandwidth_bytes_per_s[0, 0] == pytest.approx(10e9)


def test_a_domain_that_starts_nothing_holds_memory_only(load):
    topology = load(hmat_table(locality(1, [0, 1], [0, 1, 5], [[80, 150, 400], [150, 80, 500]], 1000)))
    assert (topology.cores > 0).tolist() == [True, True, False]
    np.testing.assert_allclose(topology.latency_s[2] * 1e9, [400, 500, 400])


def test_an_initiator_without_memory_is_no_node(load):
    assert load(hmat_table(locality(1, [0, 7], [0], [[80], [200]], 1000))).num_nodes == 1


def test_read_figures_come_before_access_figures():
    access, read = locality(0, [0], [0], [[99]], 1000), locality(1, [0], [0], [[80]], 1000)
    assert parse_hmat(hmat_table(read, access)).latency_s[0, 0] == pytest.approx(80e-9)
    assert parse_hmat(hmat_table(access)).latency_s[0, 0] == pytest.approx(99e-9)


def test_pairs_that_are_not_given_or_not_reachable_are_unknown():
    latency = parse_hmat(hmat_table(locality(1, [0, 1], [0, 1], [[80, 0], [0xFFFF, 80]], 1000))).latency_s
    assert np.isnan(latency).tolist() == [[False, True], [True, False]]


def test_figures_of_caches_in_front_of_memory_are_left_aside():
    table = hmat_table(locality(1, [0], [0], [[80]], 1000), locality(1, [0], [0], [[7]], 1000, flags=1))
    assert parse_hmat(table).latency_s[0, 0] == pytest.approx(80e-9)


def test_memory_side_caches_are_told(load):
    topology = load(hmat_table(locality(1, [0], [0], [[80]], 1000), side_cache(0, 2**34)))
    assert "1 memory-side cache of 16384 MiB" in topology.sources["memory_bytes"]


entries = st.integers(1, 0xFFFE)


@given(st.data(), st.integers(1, 5), st.integers(1, 5), st.integers(1, 10**6))
def test_what_is_written_is_read_back(data, num_initiators, num_targets, base):
    domains = st.integers(0, 2**32 - 1)
    initiators = sorted(data.draw(st.sets(domains, min_size=num_initiators, max_size=num_initiators)))
    targets = sorted(data.draw(st.sets(domains, min_size=num_targets, max_size=num_targets)))
    size = num_initiators * num_targets
    values = np.array(data.draw(st.lists(entries, min_size=size, max_size=size))).reshape(num_initiators, num_targets)
    order = data.draw(st.permutations(range(num_initiators)))
    table = hmat_table(locality(3, [initiators[i] for i in order], targets, values[order], base))
    hmat = parse_hmat(table)
    assert (hmat.initiators, hmat.targets) == (initiators, targets)
    np.testing.assert_allclose(hmat.bandwidth_bytes_per_s, values * base * 1e6)
    assert np.isnan(hmat.latency_s).all()


@given(st.integers(0, len(TABLE) - 1), st.integers(1, 255))
def test_any_single_wrong_byte_is_noticed(at, change):
    damaged = TABLE[:at] + bytes([(TABLE[at] + change) % 256]) + TABLE[at + 1 :]
    with pytest.raises(ValueError, match="HMAT"):
        parse_hmat(damaged)


@given(st.binary(max_size=200))
def test_noise_after_the_header_ends_in_a_value_error_or_a_table(noise):
    header = struct.pack("<4sIBB6s8sI4sI4x", b"HMAT", 40 + len(noise), 2, 0, b"", b"", 1, b"", 1)
    try:
        hmat = parse_hmat(with_checksum(header + noise))
    except ValueError:
        return
    assert hmat.latency_s.size


def structure(kind: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack("<HHI", kind, 0, 8 + len(body) if length is None else length) + body


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"HMAT", "must start with b'HMAT' and 40 bytes, got b'HMAT'"),
        (TABLE[:-1], r"length must be that of the file, \d+ bytes, got \d+"),
        (TABLE[:9] + bytes([TABLE[9] ^ 1]) + TABLE[10:], "bytes must add up to 0 modulo 256, got"),
        (hmat_table(revision=3), "revision must be 1 or 2, got 3"),
        (hmat_table(), "must hold a latency or a bandwidth of memory, got none"),
        (hmat_table(locality(2, [0], [0], [[5]], 1)), "must hold a latency or a bandwidth of memory, got none"),
        (hmat_table(b"\1\0"), "structure must have 8 bytes at least, got 2"),
        (hmat_table(structure(1, b"", 0)), r"structure's length must be in 8\.\.8, got 0"),
        (hmat_table(structure(1, b"", 99)), r"structure's length must be in 8\.\.8, got 99"),
        (hmat_table(structure(1, b"short")), "locality structure must have 24 bytes, got 5"),
        (hmat_table(structure(2, b"short")), "memory-side cache must have 24 bytes, got 5"),
        (
            hmat_table(structure(1, struct.pack("<BBBBIIIQ", 0, 1, 0, 0, 2, 2, 0, 1))),
            "locality structure of this size must have 48 bytes, got 24",
        ),
        (
            hmat_table(structure(1, struct.pack("<BBBBIIIQ", 0, 1, 0, 0, 2**31, 2, 0, 1))),
            "must have at most 1024 domains, got 2147483648",
        ),
    ],
)
def test_a_wrong_table_is_named_with_the_rule_and_the_value(load, table, message):
    with pytest.raises(ValueError, match=rf"^machine file '.*HMAT': .*{message}"):
        load(table)

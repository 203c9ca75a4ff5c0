"""What numastat, /proc/<pid>/numa_maps and /proc/vmstat print, and what it says of where memory lies."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numa_rl.diagnosis.evidence import Evidence
from numa_rl.diagnosis.inputs import MOST_LINE_CHARACTERS, Kind, decode, evidence_of, kind_of
from numa_rl.diagnosis.memory_maps import numa_maps_evidence, numastat_evidence, vmstat_evidence
from numa_rl.diagnosis.numa_text import read_node_list, read_numa_maps, read_numastat, read_vmstat
from numa_rl.machines.catalog import load_machine

CUBE = load_machine("chapter-8-socket")  # node 0 is one hop from 1, 2 and 4, two from 3, 5 and 6, three from 7
MIB = 2.0**20

SYSTEM = """\
                           node0           node1
numa_hit               140931116        83022467
numa_miss                    120               0
numa_foreign                   0             120
interleave_hit             41842           41766
local_node             140900000        83000000
other_node                 31236           22467
"""

FOLDED = """\
                           node0           node1
numa_hit                     100             200
local_node                    90             200
other_node                    10               0

                           node2
numa_hit                     300
local_node                   100
other_node                   200
"""

PROCESS = """\

Per-node process memory usage (in MBs) for PID 7075 (qemu-kvm)
                           Node 0          Node 1           Total
                  --------------- --------------- ---------------
Huge                         0.00            0.00            0.00
Heap                         0.00            2.25            2.25
Stack                        0.25            0.00            0.25
Private                   1024.50           57.00         1081.50
----------------  --------------- --------------- ---------------
Total                     1024.75           59.25         1084.00
"""

PROCESSES = """\

Per-node process memory usage (in MBs)
PID                         Node 0          Node 1           Total
---------------    --------------- --------------- ---------------
1201 (java)                 300.00          100.00          400.00
1388 (worker 2)             100.00            0.00          100.00
---------------    --------------- --------------- ---------------
Total                       400.00          100.00          500.00
"""

MEMINFO = """\

Per-node system memory usage (in MBs):
                          Node 0          Node 1           Total
                 --------------- --------------- ---------------
MemTotal                65372.00        65536.00       130908.00
MemFree                  1024.00        60000.00        61024.00
Active(anon)             2000.50            0.00         2000.50
"""

MAPS = """\
00400000 default file=/usr/bin/app mapped=6 active=0 N0=6 kernelpagesize_kB=4
01a2f000 default heap anon=1000 dirty=1000 active=0 N0=900 N1=100 kernelpagesize_kB=4
7f2c00000000 interleave:0-1 anon=2000 dirty=2000 N0=1000 N1=1000 kernelpagesize_kB=4
7f2d40000000 prefer:1 anon=16 dirty=16 N1=16 kernelpagesize_kB=4
7f2e00000000 bind=static:0 file=/anon_hugepage\\040(deleted) huge anon=3 dirty=3 N0=3 kernelpagesize_kB=2048
7ffd1a000000 default stack anon=4 dirty=4 N0=4 kernelpagesize_kB=4
7ffd1a1f0000 default
"""

VMSTAT = """\
nr_free_pages 812375
numa_hit 97061636
numa_miss 0
numa_foreign 0
numa_interleave 1138
numa_local 90000000
numa_other 10000000
numa_pte_updates 5000
numa_hint_faults 4000
numa_hint_faults_local 1000
numa_pages_migrated 800000
pgmigrate_success 800000
"""

NODE_FILE = "numa_hit 100\nnuma_miss 0\nnuma_foreign 0\ninterleave_hit 0\nlocal_node 75\nother_node 25\n"


# Known answers: the formats.


@pytest.mark.parametrize(
    ("text", "kind"),
    [(SYSTEM, Kind.NUMASTAT), (PROCESS, Kind.NUMASTAT), (PROCESSES, Kind.NUMASTAT), (MEMINFO, Kind.NUMASTAT),
     (MAPS, Kind.NUMA_MAPS), (VMSTAT, Kind.VMSTAT), (NODE_FILE, Kind.VMSTAT)],
)  # fmt: skip
def test_a_text_is_known_by_what_it_holds(text, kind):
    assert kind_of(text) is kind
    assert isinstance(evidence_of(text), Evidence)


def test_the_default_table_counts_pages_by_node():
    table = read_numastat(SYSTEM)
    assert table.nodes == (0, 1)
    assert table.rows["numa_hit"] == {0: 140931116.0, 1: 83022467.0}
    assert table.total("numa_miss") == 120.0
    assert table.total("no such row") is None
    assert not table.is_process


def test_a_table_folded_to_the_screen_is_put_together():
    table = read_numastat(FOLDED)
    assert table.nodes == (0, 1, 2)
    assert table.rows["local_node"] == {0: 90.0, 1: 200.0, 2: 100.0}


def test_a_processs_table_is_in_megabytes_and_its_total_is_not_counted_twice():
    table = read_numastat(PROCESS)
    assert table.is_process
    assert table.rows["Private"] == {0: 1024.5 * MIB, 1: 57.0 * MIB}
    assert "Total" not in table.rows
    assert sum(sum(row.values()) for row in table.rows.values()) == 1084.0 * MIB


def test_processes_are_told_apart_though_their_names_hold_blanks_and_numbers():
    assert read_numastat(PROCESSES).rows == {
        "1201 (java)": {0: 300 * MIB, 1: 100 * MIB},
        "1388 (worker 2)": {0: 100 * MIB, 1: 0.0},
    }


def test_a_total_may_differ_from_its_rows_by_their_rounding():
    assert read_numastat(PROCESS.replace("1024.75", "1024.77")).rows == read_numastat(PROCESS).rows


def test_the_table_of_the_systems_memory_is_read():
    assert read_numastat(MEMINFO).rows["memfree"] == {0: 1024 * MIB, 1: 60000 * MIB}


def test_numa_maps_counts_pages_of_their_own_size():
    maps = read_numa_maps(MAPS)
    assert maps.bytes_on_node == {0: 4096.0 * (6 + 900 + 1000 + 4) + 3 * 2 * MIB, 1: 4096.0 * (100 + 1000 + 16)}
    assert maps.bytes_by_policy["interleave:0-1"] == 2000 * 4096.0
    assert maps.bytes_by_policy["bind=static:0"] == 6 * MIB
    assert maps.num_mappings == 7


def test_vmstat_and_numastat_agree_on_names():
    counts = read_vmstat(VMSTAT).counts
    assert (counts["local_node"], counts["other_node"], counts["interleave_hit"]) == (9e7, 1e7, 1138.0)
    assert read_vmstat(NODE_FILE).counts["other_node"] == 25.0


@pytest.mark.parametrize(("text", "nodes"), [("0", (0,)), ("0-2,5", (0, 1, 2, 5)), ("3,1", (1, 3)), (" 1 , 1 ", (1,))])
def test_node_lists_are_numactls(text, nodes):
    assert read_node_list(text) == nodes


@pytest.mark.parametrize("text", ["", "a", "-1", "2-1", "0,,1", "1024", "0-9999", "99999", "all"])
def test_what_is_no_node_list_is_refused(text):
    with pytest.raises(ValueError, match=r"nodes must be numbers below 1024 or ranges, as 0-1,3, got "):
        read_node_list(text)


@pytest.mark.parametrize(
    ("read", "text", "rule"),
    [
        (read_numastat, "node0 node1\nnuma_hit 1\n", "line 2: must be a name and 2 figures"),
        (read_numastat, "node0 node1\nnuma_hit 1 2 3\n", "line 2: must have 2 figures, one for each node"),
        (read_numastat, "node0 node1\nnuma_hit 1 x\n", "line 2: must be a name and 2 figures"),
        (read_numastat, "node0\nnuma_hit -1\n", "line 2: numa_hit must be in 0..2**64, got '-1'"),
        (read_numastat, f"node0\nnuma_hit {'9' * 400}\n", "line 2: numa_hit must be in 0..2**64, got"),
        (read_numastat, "node0\nnuma_hit 1,5\n", "line 2: must be a name and 1 figures"),
        (read_numastat, "node1024\nnuma_hit 1\n", "line 1: nodes must be in 0..1023, got 1024"),
        (read_numastat, "node0 node1\n", "must hold at least one row of figures by node, got none"),
        (read_numastat, PROCESS + MEMINFO, "must stay a table of process memory usage"),
        (
            read_numastat,
            PROCESS + PROCESS,
            "line 13: a node must have one column (give one table at a time), got node 0",
        ),
        (read_numastat, SYSTEM + SYSTEM, "line 8: a node must have one column"),
        (read_numastat, "node0 node0\nnuma_hit 1 2\n", "line 1: a node must have one column"),
        (read_numastat, "node0\nnuma_hit 1\nnuma_hit 2\n", "line 3: a row must come once"),
        (
            read_numastat,
            PROCESS.replace("59.25", "99.25"),
            "Total of node 1 must be its rows' sum, 59.25 MB, got 99.25",
        ),
        (read_numa_maps, MAPS + MAPS, "line 8: an address must come once"),
        (
            read_numa_maps,
            "00400000 default anon=5 dirty=5 N0=3 N1=3\n",
            "line 1: pages by node must add up to at most the 5",
        ),
        (
            read_numa_maps,
            "00400000 default mapped=9 anon=5 N0=10\n",
            "line 1: pages by node must add up to at most the 9",
        ),
        (read_numa_maps, "00400000 default N0=3 N0=3\n", "line 1: a node must have one count of pages"),
        (read_numa_maps, "00400000 default N0=1\nhello\n", "line 2: must be an address, a policy and pages by node"),
        (read_numa_maps, "00400000 default N0=-1\n", "line 1: pages must be counts by node"),
        (read_numa_maps, "00400000 default N0=1 kernelpagesize_kB=x\n", "line 1: pages must be counts by node"),
        (read_numa_maps, "00400000 default N1024=1\n", "line 1: nodes must be in 0..1023, got 1024"),
        (read_numa_maps, "00400000 default file=/x mapped=3\n", "must show pages on at least one node (N0=...)"),
        (read_numa_maps, "00400000 default N0=0\n", "must show pages on at least one node"),
        (read_vmstat, "numa_hit 1\nnuma_miss -1\n", "line 2: must be a name and a count, got 'numa_miss -1'"),
        (read_vmstat, f"numa_hit {'9' * 400}\n", "line 1: numa_hit must be in 0..2**64"),
        (read_vmstat, "nr_free_pages 1\n", "must hold counts of NUMA, as numa_hit, got 'nr_free_pages'"),
    ],
)
def test_a_line_that_is_wrong_is_refused_with_the_rule(read, text, rule):
    with pytest.raises(ValueError, match=re.escape(rule)):
        read(text)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "must not be empty"),
        (b" \n \n", "must not be empty"),
        (b"node0\0", "must be text, got a NUL byte"),
        (b"\xff\xfe\x41", "must be UTF-8 text"),
        (b"x" * (MOST_LINE_CHARACTERS + 1), "lines must have at most 65536 characters, got 65537"),
    ],
)
def test_what_is_no_text_is_refused(content, rule):
    with pytest.raises(ValueError, match=rule):
        decode(content)


@pytest.mark.parametrize("text", ["hello", "{}", "a,b,c", "Performance counter stats for 'true':"])
def test_a_text_of_another_kind_is_refused_with_those_known(text):
    with pytest.raises(ValueError, match=r"must be what one of these prints: perf stat -x, numastat, .*; got "):
        kind_of(text)


# Known answers: the evidence.


def test_allocations_for_other_nodes_are_misplaced():
    found = numastat_evidence(read_numastat(FOLDED), None)
    assert found.misplaced_share == pytest.approx(210 / 600)
    assert found.num_nodes == 3
    system = numastat_evidence(read_numastat(SYSTEM), None)
    assert any("120 pages went to another node than wanted" in note for note in system.notes)
    assert any("83608 pages were interleaved" in note for note in system.notes)


def test_a_table_that_says_nothing_of_placement_says_so():
    found = numastat_evidence(read_numastat(MEMINFO), None)
    assert found.misplaced_share is None
    assert "says nothing of who uses which node" in found.notes[0]


def test_a_processs_largest_node_is_found():
    found = numastat_evidence(read_numastat(PROCESS), None)
    assert found.largest_node_share == pytest.approx(1024.75 / 1084.0)
    assert found.largest_node == 0
    assert found.misplaced_share is None  # nobody said where its threads run


def test_pages_where_no_thread_runs_are_misplaced():
    found = numastat_evidence(read_numastat(PROCESS), None, thread_nodes=(1,))
    assert found.misplaced_share == pytest.approx(1024.75 / 1084.0)
    assert found.thread_nodes == 1
    assert numastat_evidence(read_numastat(PROCESS), None, thread_nodes=(0, 1)).misplaced_share == 0.0


def test_pages_two_hops_from_every_thread_are_far():
    maps = read_numa_maps("00400000 default heap anon=100 N0=40 N1=30 N3=10 N7=20 kernelpagesize_kB=4\n")
    found = numa_maps_evidence(maps, CUBE, thread_nodes=(0,))
    assert found.misplaced_share == pytest.approx(0.6)
    assert found.far_share == pytest.approx(0.5)  # 3 and 7 of 1, 3 and 7
    assert numa_maps_evidence(maps, CUBE, thread_nodes=(0, 5)).far_share == pytest.approx(1 / 6)  # 7 is next to 5
    assert numa_maps_evidence(maps, None, thread_nodes=(0,)).far_share is None


def test_policies_are_noted():
    assert numa_maps_evidence(read_numa_maps(MAPS), None).notes == (
        "Memory policies by bytes: default 22%, interleave:0-1 44%, prefer:1 0%, bind=static:0 34%.",
    )


def test_vmstat_tells_locality_of_hint_faults_and_the_cost_of_migration():
    found = vmstat_evidence(read_vmstat(VMSTAT), None, seconds=10.0)
    assert found.misplaced_share == 0.1
    assert found.remote_share == 0.75
    assert found.migrations_per_s == 80_000.0
    assert found.migration_share == pytest.approx(0.08)  # a microsecond a page
    without = vmstat_evidence(read_vmstat(VMSTAT), None)
    assert without.migration_share is None
    assert any("how long the system has counted is unknown" in note for note in without.notes)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_seconds_must_be_a_time(seconds):
    with pytest.raises(ValueError, match=f"seconds must be finite and > 0, got {seconds}"):
        vmstat_evidence(read_vmstat(VMSTAT), None, seconds)


def test_a_node_that_the_machine_lacks_is_refused():
    small = load_machine("chapter-2-socket")
    with pytest.raises(ValueError, match=r"machine '.*': nodes must be in 0..1, got node 2"):
        numastat_evidence(read_numastat(FOLDED), small)
    with pytest.raises(ValueError, match=r"nodes must be in 0..1, got node 7"):
        numa_maps_evidence(read_numa_maps(MAPS), small, thread_nodes=(7,))


def test_nodes_of_threads_must_be_in_the_table_and_of_a_process():
    with pytest.raises(ValueError, match=r"must be among the table's \(0, 1; -z leaves some out\), got 5"):
        numastat_evidence(read_numastat(PROCESS), None, thread_nodes=(0, 5))
    with pytest.raises(ValueError, match=r"must go with a process's table \(numastat -p PID\), got the whole"):
        numastat_evidence(read_numastat(SYSTEM), None, thread_nodes=(0,))


# Laws.


@given(st.dictionaries(st.integers(0, 7), st.integers(1, 10**9), min_size=1), st.sets(st.integers(0, 7), min_size=1))
def test_shares_are_those_of_the_pages(pages, threads):
    line = "00400000 default " + " ".join(f"N{node}={count}" for node, count in pages.items())
    found = numa_maps_evidence(read_numa_maps(line), CUBE, sorted(threads))
    total = sum(pages.values())
    assert found.largest_node_share == pytest.approx(max(pages.values()) / total)
    apart = {node: count for node, count in pages.items() if node not in threads}
    assert found.misplaced_share == pytest.approx(sum(apart.values()) / total)
    assert (found.far_share is None) == (not apart)


HEADS = ["", "Per-node process memory usage (in MBs)\n", "node0 node1\n", "00400000 default ", "numa_hit "]


@given(st.text(alphabet="Nnode0123456789 =-_.()\nTotalPIDrefhpgukB:", max_size=200), st.sampled_from(HEADS))
def test_any_text_is_read_or_refused(tail, head):
    for read in (read_numastat, read_numa_maps, read_vmstat):
        try:
            read(head + tail)
        except ValueError as error:
            assert str(error)  # noqa: PT017 # that it is no other exception is the law


# Two routes that agree.


def test_numastat_adds_up_what_numa_maps_lists():
    maps = read_numa_maps("00400000 default heap anon=1024 N0=256 N1=768 kernelpagesize_kB=4\n")
    table = read_numastat(
        "Per-node process memory usage (in MBs) for PID 1 (a)\n"
        "                           Node 0          Node 1           Total\n"
        "Heap                         1.00            3.00            4.00\n"
    )
    one, other = (numa_maps_evidence(maps, None, (1,)), numastat_evidence(table, None, (1,)))
    assert one.misplaced_share == other.misplaced_share == 0.25
    assert one.largest_node_share == other.largest_node_share == 0.75

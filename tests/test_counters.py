"""What the counters in the output of `perf stat` mean: the evidence that a diagnosis starts from."""

import re
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perf_counts import XEON, evidence, line, text

from numa_rl.diagnosis.counters import perf_evidence
from numa_rl.diagnosis.events import EVENTS, Quantity, canonical, known_events, meaning_of
from numa_rl.diagnosis.evidence import Evidence
from numa_rl.diagnosis.perf_stat import read_perf_stat
from numa_rl.machines.catalog import load_machine

# Known answers.


@pytest.mark.parametrize(
    ("event", "quantity"),
    [
        ("UNC_M_CAS_COUNT.RD", Quantity.MEMORY_BYTES),
        ("unc_m_cas_count.wr", Quantity.MEMORY_BYTES),
        ("uncore_imc/cas_count_read/", Quantity.MEMORY_BYTES),
        ("uncore_imc_3/cas_count_write/", Quantity.MEMORY_BYTES),
        ("unc_m_cas_count.rd [uncore_imc_2]", Quantity.MEMORY_BYTES),
        ("UNC_Q_RxL_FLITS", Quantity.LINK_BYTES_IN),
        ("UNC_Q_RxL_FLITS_G0.DATA", Quantity.LINK_BYTES_IN),
        ("unc_upi_txl_flits.all_data", Quantity.LINK_BYTES_OUT),
        ("OFFCORE_RESPONSE.ALL_READS.LLC_MISS.LOCAL_DRAM", Quantity.LOCAL_DRAM),
        ("offcore_response.demand_data_rd.llc_miss.remote_dram", Quantity.REMOTE_DRAM),
        ("offcore_response.all_data_rd.l3_miss.remote_hitm", Quantity.REMOTE_MODIFIED),
        ("offcore_response.all_data_rd.llc_miss.remote_hit_forward", Quantity.REMOTE_CLEAN),
        ("ocr.reads_to_core.local_dram", Quantity.LOCAL_DRAM),
        ("ocr.demand_data_rd.l3_miss_remote_hop1_dram.any_snoop", Quantity.REMOTE_ONE_HOP),
        ("offcore_response.all_reads.llc_hit.any_response", Quantity.UNUSED),
        ("mem_load_l3_miss_retired.remote_hitm:u", Quantity.REMOTE_MODIFIED),
        ("mem_load_uops_llc_miss_retired.local_dram", Quantity.LOCAL_DRAM),
        ("ls_dmnd_fills_from_sys.mem_io_remote", Quantity.REMOTE_DRAM),
        ("node-load-misses", Quantity.REMOTE_DRAM),
        ("cycles:ppp", Quantity.CYCLES),
        ("cpu/cycles/", Quantity.CYCLES),
        ("LLC-load-misses", Quantity.UNUSED),
        ("migrate:mm_migrate_pages", Quantity.UNUSED),
    ],
)
def test_an_event_is_known_in_every_spelling(event, quantity):
    meaning = meaning_of(event)
    assert meaning is not None
    assert meaning.quantity is quantity


@pytest.mark.parametrize("event", ["", "bogus", "unc_m_cas_count", "offcore_response.all_reads", "ocr.x.y", "r01b7"])
def test_an_event_that_is_none_is_unknown(event):
    assert meaning_of(event) is None


def test_remote_share_counts_memory_and_caches_of_other_nodes():
    loads = "mem_load_l3_miss_retired"
    found = evidence(
        {f"{loads}.local_dram": 50, f"{loads}.remote_dram": 20, f"{loads}.remote_hitm": 10, f"{loads}.remote_fwd": 20}
    )
    assert found.remote_share == 0.5
    assert found.hitm_share == 0.1
    assert loads in found.provenance["remote_share"]


def test_a_count_of_zero_is_a_measurement():
    counts = {"mem_load_l3_miss_retired.local_dram": 5, "mem_load_l3_miss_retired.remote_dram": 0}
    assert evidence(counts).remote_share == 0.0
    assert evidence({"cycles": 5, "cycle_activity.stalls_mem_any": 0}).memory_stall_share == 0.0


def test_requests_of_which_only_one_side_was_counted_are_not_mixed_in():
    counts = {
        "ocr.demand_data_rd.local_dram": 30,
        "ocr.demand_data_rd.remote_dram": 10,
        "ocr.hwpf_l3.remote_dram": 1000,
    }
    assert evidence(counts).remote_share == 0.25


def test_an_offcore_request_for_everything_stands_for_its_parts():
    answers = ("llc_miss.local_dram", "llc_miss.remote_dram")
    requests = {"demand_data_rd": (10, 90), "pf_l2_data_rd": (10, 10), "all_data_rd": (75, 25)}
    counts = {
        f"offcore_response.{request}.{answer}": value
        for request, values in requests.items()
        for answer, value in zip(answers, values, strict=True)
    }
    assert evidence(counts).remote_share == 0.25
    parts = {event: value for event, value in counts.items() if ".all_" not in event}
    assert evidence(parts).remote_share == pytest.approx(100 / 120)


def test_remote_share_from_the_fallbacks_says_where_from():
    node = evidence({"node-loads": 300, "node-load-misses": 100})
    assert node.remote_share == 0.25
    assert "Haswell" in node.notes[0]
    faults = evidence({"numa_hint_faults": 1000, "numa_hint_faults_local": 900})
    assert faults.remote_share == pytest.approx(0.1)
    assert faults.provenance["remote_share"] == "1 - numa_hint_faults_local / numa_hint_faults"
    both = evidence({"node-loads": 1, "node-load-misses": 1, "ls_dmnd_fills_from_sys.mem_io_local": 3,
                     "ls_dmnd_fills_from_sys.mem_io_remote": 1})  # fmt: skip
    assert both.remote_share == 0.25


def test_far_share_is_that_of_two_hops_or_more():
    reads = "ocr.all_reads"
    hops = {f"{reads}.l3_miss_remote_hop1_dram.any_snoop": 30, f"{reads}.l3_miss_remote_hop2p_dram.any_snoop": 10}
    found = evidence(hops)
    assert found.far_share == 0.25
    assert found.remote_share is None  # local accesses were not counted
    with_local = hops | {f"{reads}.l3_miss_local_dram.any_snoop": 60}
    assert evidence(with_local).remote_share == 0.4
    assert evidence(with_local | {f"{reads}.l3_miss_remote_dram.any_snoop": 40}).remote_share == 0.4  # the sum of both


def test_no_access_is_far_where_all_nodes_are_neighbours():
    assert evidence({"cycles": 1}, machine=True).far_share == 0.0
    assert evidence({"cycles": 1}).far_share is None


def test_caches_of_other_nodes_alone_say_nothing_of_locality():
    found = evidence({"mem_load_l3_miss_retired.local_dram": 50, "mem_load_l3_miss_retired.remote_hitm": 50})
    assert found.remote_share is None
    assert found.hitm_share is None


def test_a_request_that_lacks_local_accesses_leaves_the_word_to_the_others():
    found = evidence(
        {
            "offcore_response.all_reads.llc_miss.remote_dram": 1000,
            "offcore_response.demand_data_rd.llc_miss.local_dram": 30,
            "offcore_response.demand_data_rd.llc_miss.remote_dram": 10,
        }
    )
    assert found.remote_share == 0.25


def test_stall_shares_are_of_the_cycles():
    found = evidence({"cycles": 200, "cycle_activity.stalls_mem_any": 50, "cycle_activity.stalls_l3_miss": 20})
    assert (found.memory_stall_share, found.dram_stall_share) == (0.25, 0.1)


def test_a_count_of_user_space_is_part_of_the_whole_count():
    assert evidence({"cycles": 200, "cycles:u": 100, "cycle_activity.stalls_mem_any": 50}).memory_stall_share == 0.25
    assert evidence({"cycles:k": 100, "cycles:u": 100, "cycle_activity.stalls_mem_any": 50}).memory_stall_share == 0.25


def test_lanes_and_lines_make_intensity():
    found = evidence(
        {
            "fp_arith_inst_retired.scalar_double": 64,
            "fp_arith_inst_retired.256b_packed_double": 16,
            "fp_arith_inst_retired.512b_packed_single": 4,
            "unc_m_cas_count.rd": 2,
            "unc_m_cas_count.wr": 1,
        }
    )
    assert found.intensity == pytest.approx((64 + 4 * 16 + 16 * 4) / (64 * 3))


@pytest.mark.parametrize(
    ("counts", "num_bytes"),
    [
        ([line(1e6, "unc_m_cas_count.rd"), line(5e5, "unc_m_cas_count.wr")], 1.5e6 * 64),
        ([line("91.55", "uncore_imc/cas_count_read/", "MiB")], 91.55 * 2**20),
        ([line("64.00", "uncore_imc_0/cas_count_read/", "MiB"), line("36.00", "uncore_imc_1/cas_count_read/", "MiB")],
         100 * 2**20),
        ([line(6400, "llc_misses.mem_read", "Bytes"), line(100, "unc_m_cas_count.rd")], 6400),  # the same twice
    ],
    ids=["lines", "MiB", "controllers add up", "two names"],
)  # fmt: skip
def test_controller_bytes_over_capacity_are_utilisation(counts, num_bytes):
    found = perf_evidence(read_perf_stat(text(*counts)), XEON, seconds=2.0)
    capacity = XEON.memory_bandwidth_bytes_per_s.sum()
    assert found.controller_utilisation == pytest.approx(num_bytes / 2.0 / capacity)
    assert found.busiest_controller == "memory of all nodes"
    assert any("--per-socket" in note for note in found.notes)


def test_the_busiest_socket_decides():
    counts = [
        line(1_000_000_000, "unc_m_cas_count.rd", group="S0"),
        line(500_000_000, "unc_m_cas_count.rd", group="S1"),
        line(3_000_000_000, "unc_upi_rxl_flits.all_data", group="S0"),
        line(5_000_000_000, "unc_upi_rxl_flits.all_data", group="S1"),
        line(1_000_000_000, "duration_time", "ns", group="S0"),
        line(1_000_000_000, "duration_time", "ns", group="S1"),
    ]
    found = perf_evidence(read_perf_stat(text(*counts)), XEON)
    assert found.controller_utilisation == pytest.approx(64e9 / XEON.memory_bandwidth_bytes_per_s[0])
    assert found.busiest_controller == "memory of S0 (node 0)"
    assert found.link_utilisation == pytest.approx(
        5e9 * 64 / 9 / XEON.link_bandwidth_bytes_per_s[XEON.links[:, 1] == 1].sum()
    )
    assert found.busiest_link == "links into S1 (node 1)"
    assert found.controller_imbalance == pytest.approx(0.25 / 0.75)
    assert found.notes == ()


def test_a_qpi_data_flit_is_eight_bytes():
    counts = {"unc_q_rxl_flits_g0.data": 1e9, "duration_time": 1e9}
    found = evidence(counts, machine=True)
    assert found.link_utilisation == pytest.approx(8e9 / XEON.link_bandwidth_bytes_per_s.sum())
    assert (
        evidence({"UNC_Q_RxL_FLITS": 1e9, "duration_time": 1e9}, machine=True).link_utilisation
        == found.link_utilisation
    )


def test_the_upi_event_that_perf_calls_bytes_is_in_millions_of_them():
    counts = text(line("7110.00", "upi_data_bandwidth_tx", "Bytes"))
    found = perf_evidence(read_perf_stat(counts), XEON, seconds=1.0)
    assert found.link_utilisation == pytest.approx(7.11e9 / XEON.link_bandwidth_bytes_per_s.sum())
    assert found.busiest_link == "links out of all nodes"


def test_more_than_the_capacity_is_shown_and_said_to_be_impossible():
    counts = [line(4e9, "unc_m_cas_count.rd"), line(1e11, "unc_upi_rxl_flits.all_data")]
    found = perf_evidence(read_perf_stat(text(*counts)), XEON, seconds=1.0)
    assert found.controller_utilisation > 1.1
    assert [note for note in found.notes if "of capacity cannot be" in note] == [
        "memory of all nodes: 113% of capacity cannot be: check the seconds, the machine or the counts.",
        "links into all nodes: 698% of capacity cannot be: check the seconds, the machine or the counts.",
    ]
    full = perf_evidence(read_perf_stat(text(line(3.5e9, "unc_m_cas_count.rd"))), XEON, seconds=1.0)
    assert not any("cannot be" in note for note in full.notes)


def test_sockets_of_several_nodes_share_their_capacity():
    machine = load_machine("xeon-8269cy-snc2")  # four nodes on two sockets
    counts = [line(2e9, "unc_m_cas_count.rd", group="S0"), line(1e9, "unc_m_cas_count.rd", group="S1")]
    found = perf_evidence(read_perf_stat(text(*counts)), machine, seconds=1.0)
    assert found.controller_utilisation == pytest.approx(128e9 / machine.memory_bandwidth_bytes_per_s[:2].sum())
    assert any("2 nodes each" in note for note in found.notes)


def test_processors_that_count_for_their_socket_come_in_order():
    counts = ["CPU0,100,,unc_m_cas_count.rd,1,100.00,,", "CPU26,1000000000,,unc_m_cas_count.rd,1,100.00,,"]
    found = perf_evidence(read_perf_stat(text(*counts)), XEON, seconds=1.0)
    assert found.busiest_controller == "memory of CPU26 (node 1)"


def test_sockets_that_do_not_fit_the_machine_are_refused():
    counts = [line(1, "unc_m_cas_count.rd", group=f"S{socket}") for socket in range(3)]
    with pytest.raises(ValueError, match=r"as many sockets as the machine 'xeon-8269cy' has, .* got 3: S0, S1, S2"):
        perf_evidence(read_perf_stat(text(*counts)), XEON, seconds=1.0)


def test_counts_of_all_sockets_and_of_each_do_not_mix():
    counts = [line(1, "unc_m_cas_count.rd", group="S0"), line(1, "unc_m_cas_count.rd")]
    with pytest.raises(ValueError, match="counts must be of all sockets or of each, got both, and S0"):
        perf_evidence(read_perf_stat(text(*counts)), XEON, seconds=1.0)


def test_migrations_become_rates():
    found = evidence(
        {"numa_pages_migrated": 100_000, "cpu-migrations": 60, "task-clock": 2000}, machine=True, seconds=2.0
    )
    assert found.migrations_per_s == 50_000
    assert found.migration_share == pytest.approx(50_000 * (1e-6 + 4096 / 50.9e9), rel=1e-3)
    assert found.cpu_migrations_per_s == 30.0  # task-clock is in milliseconds


@pytest.mark.parametrize(
    ("counts", "options", "note"),
    [
        ({"numa_pages_migrated": 5}, {}, "how long the counters ran is unknown"),
        ({"unc_m_cas_count.rd": 5, "duration_time": 1e9}, {}, "capacities are unknown"),
        ({"bogus": 5, "cycles": 1}, {"ignore_unknown": True}, "Ignored, since unknown: bogus."),
    ],
)
def test_what_is_missing_is_said_and_not_guessed(counts, options, note):
    found = evidence(counts, **options)
    assert any(note in said for said in found.notes)
    assert found.migration_share is None
    assert found.controller_utilisation is None


def test_a_counter_that_ran_rarely_is_named():
    found = perf_evidence(read_perf_stat(text(line(5, "cycles", running=12.5, group="S1"))))
    assert any("cycles on S1 ran 12% of the time" in note for note in found.notes)
    often = perf_evidence(read_perf_stat(text(line(5, "cycles", running=20.0))))
    assert not any("of the time" in note for note in often.notes)


def test_an_unknown_counter_is_refused_with_its_line_and_the_nearest_names():
    rule = (
        rf"^line 4: counter 'unc_m_cas_cnt.rd' is unknown; it must be one of the {len(known_events())} known, such as "
    )
    with pytest.raises(ValueError, match=rule + r"unc_m_cas_count.rd, .*--ignore-unknown") as refused:
        evidence({"cycles": 1, "unc_m_cas_cnt.rd": 2})
    assert len(str(refused.value)) < 400
    with pytest.raises(ValueError, match=r"line 1: counter 'qqq' is unknown; .* known \(or pass"):
        perf_evidence(read_perf_stat("<not supported>,,qqq,0,100.00,,"))
    with pytest.raises(ValueError, match="counter 'bogus' is unknown"):
        perf_evidence(read_perf_stat("<not supported>,,bogus,0,100.00,,"))


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_seconds_must_be_a_time(seconds):
    with pytest.raises(ValueError, match=f"seconds must be finite and > 0, got {seconds}"):
        evidence({"cycles": 1}, seconds=seconds)


def test_seconds_that_contradict_the_counts_are_refused():
    counts = {"duration_time": 2e9, "numa_pages_migrated": 100}
    assert evidence(counts, seconds=2.01).migrations_per_s == 50.0
    with pytest.raises(ValueError, match=r"seconds must be the 2 s that the counts themselves say .*, got 3"):
        evidence(counts, seconds=3.0)


@pytest.mark.parametrize(
    ("counts", "rule"),
    [
        ((100, 101, 0), "stalls_mem_any must be at most cycles (100), got 101"),
        ((100, None, 150), "stalls_l3_miss must be at most cycles (100), got 150"),
        ((100, 20, 30), "stalls_l3_miss must be at most stalls_mem_any (20), got 30"),
        ((0, 1, 0), "stalls_mem_any must be at most cycles (0), got 1"),
    ],
)
def test_cores_that_wait_longer_than_they_run_are_refused(counts, rule):
    names = ("cycles", "cycle_activity.stalls_mem_any", "cycle_activity.stalls_l3_miss")
    given_counts = {name: count for name, count in zip(names, counts, strict=True) if count is not None}
    with pytest.raises(ValueError, match=re.escape(rule)):
        evidence(given_counts)


def test_scaled_counts_may_contradict_each_other_a_little():
    stalls = [line(103, "cycle_activity.stalls_mem_any", running=50.0), line(100, "cycles", running=50.0)]
    assert perf_evidence(read_perf_stat(text(*stalls))).memory_stall_share == 1.0


# Laws.

STALLS = {Quantity.CYCLES: 2, Quantity.MEMORY_STALL_CYCLES: 1, Quantity.DRAM_STALL_CYCLES: 0}


def possible(counts: Mapping[str, int]) -> dict[str, int]:
    """The same counts, where cores wait for no longer than they run."""
    ranks = {event: STALLS.get(EVENTS[event].quantity) for event in counts}
    return {
        event: count if (rank := ranks[event]) is None else count % 10**4 * 10 ** (4 * rank) + rank * 10 ** (4 * rank)
        for event, count in counts.items()
    }


EVENTS_BUT_TIME = st.sampled_from([event for event in EVENTS if event != "duration_time"])
COUNTS = st.dictionaries(EVENTS_BUT_TIME, st.integers(0, 10**15), min_size=1).map(possible)


@given(COUNTS, st.floats(1e-3, 1e6))
def test_any_counts_make_evidence_in_range(counts, seconds):
    assert isinstance(evidence(counts, machine=True, seconds=seconds), Evidence)


@given(COUNTS, st.integers(2, 9))
def test_intervals_do_not_matter_but_for_the_time(counts, parts):
    whole = evidence({event: value * parts for event, value in counts.items()}, machine=True, seconds=parts)
    lines = [
        f"     {second}.000000000,{value},,{event},1000,100.00,,"
        for second in range(1, parts + 1)
        for event, value in counts.items()
    ]
    split = perf_evidence(read_perf_stat(text(*lines)), XEON)
    assert split.measured == pytest.approx(whole.measured)


@given(COUNTS)
def test_the_order_of_lines_does_not_matter(counts):
    backward = dict(reversed(counts.items()))
    assert evidence(counts, machine=True, seconds=1.0).measured == pytest.approx(
        evidence(backward, machine=True, seconds=1.0).measured
    )


@given(st.sampled_from(known_events()[:20]), st.sampled_from(["", ":u", ":k", ":ppp"]))
def test_case_and_modifiers_do_not_change_a_name(event, modifiers):
    assert canonical(event.upper() + modifiers) == canonical(event)

"""What `perf stat -x` prints, as versions 4 to 6 print it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perf_counts import XEON, line, text

from numa_rl.diagnosis.counters import perf_evidence
from numa_rl.diagnosis.inputs import Kind, decode, evidence_of, kind_of
from numa_rl.diagnosis.perf_stat import Count, read_perf_stat, separator_of

# Known answers.

PLAIN = """\
# started on Sun Nov 22 15:37:10 2026

0.81,msec,task-clock,812790,100.00,0.551,CPUs utilized
3,,context-switches,812790,100.00,3.700,K/sec
0,,cpu-migrations,812790,100.00,0.000,/sec
<not supported>,,cycles,0,100.00,,
2150742,ns,duration_time,2150742,100.00,2.549,G/sec
"""

INTERVALS = """\
     0.100183132,S0,2,24,,context-switches,200827111,100.00,119.505,/sec
     0.100183132,S1,2,10,,context-switches,200827111,100.00,119.505,/sec
     0.200770930,S0,2,19,,context-switches,201120996,60.00,94.471,/sec
     0.200770930,S1,2,<not counted>,,context-switches,0,100.00,,
"""


def test_plain_counts_have_a_value_a_unit_and_an_event():
    perf = read_perf_stat(PLAIN)
    assert perf.counts == (
        Count("task-clock", "", 0.81, "msec", 1.0),
        Count("context-switches", "", 3.0, "", 1.0),
        Count("cpu-migrations", "", 0.0, "", 1.0),
        Count("duration_time", "", 2150742.0, "ns", 1.0),
    )
    assert perf.not_counted == ("cycles",)
    assert perf.elapsed_s is None


def test_intervals_are_summed_and_the_last_time_stamp_is_the_time():
    perf = read_perf_stat(INTERVALS)
    assert perf.counts == (
        Count("context-switches", "S0", 43.0, "", 0.6),
        Count("context-switches", "S1", 10.0, "", 1.0),
    )
    assert perf.elapsed_s == 0.200770930
    assert perf.not_counted == ()  # it was counted in another interval


@pytest.mark.parametrize(
    ("raw", "count"),
    [
        ("S0-D0-C1,1,102.25,msec,task-clock,102252097,100.00,1.000,CPUs utilized",
         Count("task-clock", "S0-D0-C1", 102.25, "msec", 1.0)),
        ("N0,2,29,,context-switches,203999776,100.00,142.132,/sec", Count("context-switches", "N0", 29.0, "", 1.0)),
        ("CPU1,13,,context-switches,102154360,100.00,,", Count("context-switches", "CPU1", 13.0, "", 1.0)),
        ("sleep-8379,2,,context-switches,77176,100.00,,", Count("context-switches", "sleep-8379", 2.0, "", 1.0)),
        ("0.69,msec,task-clock,4.45%,691027,100.00,0.425,CPUs utilized", Count("task-clock", "", 0.69, "msec", 1.0)),
        ("0.70;msec;task-clock;696165;100.00;0.475;CPUs utilized", Count("task-clock", "", 0.7, "msec", 1.0)),
        ("5,,cpu/event=0xb7,name=x/,696165,25.00,,", Count("cpu/event=0xb7,name=x/", "", 5.0, "", 0.25)),
        ("123,,cycles", Count("cycles", "", 123.0, "", 1.0)),
    ],
    ids=["per-core", "per-node", "no-aggr", "per-thread", "repeated", "semicolons", "commas in the event", "old"],
)  # fmt: skip
def test_every_form_of_a_line_is_read(raw, count):
    assert read_perf_stat(raw).counts == (count,)


@pytest.mark.parametrize("more", [",,,,,0.85,insn per cycle", "         summary,7,,cycles,696165,100.00,,"])
def test_a_line_that_counts_nothing_new_is_passed_over(more):
    raw = f"7,,cycles,696165,100.00,,\n{more}\n"
    assert read_perf_stat(raw).counts == (Count("cycles", "", 7.0, "", 1.0),)


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        ("0,70;msec;task-clock;696165;100,00;0,475;CPUs utilized", "point (run perf with LC_ALL=C), got '0,70'"),
        ("0.70;msec;task-clock;696165;100,00;0,475;CPUs utilized", "its percentage, as 100.00, after the event"),
        ("0,70,msec,task-clock,696165,100,00,0,475,CPUs utilized", "must not have decimal commas (run perf with"),
        ("12345,,cycles,696165,100,00,0,475,GHz", "as 100.00, after the event (run perf with LC_ALL=C)"),
        ("-5,,cycles,696165,100.00,,", "count must be in 0..2**64, got '-5'"),
        ("1e999,,cycles,696165,100.00,,", "count must be in 0..2**64, got '1e999'"),
        ("1.234.567;;cycles;696165;100.00;;", "count must be a number, <not counted> or <not supported>"),
        ("5,furlongs,cycles,696165,100.00,,", "unit must be one of B, Bytes, KiB"),
        ("5,,,696165,100.00,,", "event must have a name"),
        ("5,,cycles,696165,100.00,,\nhello world", "line 2: must have at least a count, a unit and an event"),
        ("5,,cycles,696165,100.00,,\nfive,,cycles,696165,100.00,,", "line 2: count must be a number"),
        ("5,,cycles,696165,100.00,,\n5,ns,cycles,696165,100.00,,", "line 2: unit of cycles must stay '', got 'ns'"),
        ("1.000,100,,cycles,696165,100.00,,", "must open with a count, or with a time stamp of nine decimals"),
        ("S0,1", "counts as `perf stat -x,` prints them"),
        ("# nothing else\n\n", "must hold at least one line of counts, got none"),
        (f"{2**64 + 2**12},,cycles,1,100.00,,", "count must be in 0..2**64, got '18446744073709555712'"),
    ],
)  # fmt: skip
def test_a_line_that_is_wrong_is_refused_with_its_number_and_the_rule(raw, rule):
    with pytest.raises(ValueError, match=re.escape(rule)) as refused:
        read_perf_stat(raw)
    assert str(refused.value).startswith("line ") or "none" in rule


def test_a_separator_that_nobody_guesses_is_taken_as_given():
    assert read_perf_stat("7@@cycles@696165@100.00@@", "@").counts == (Count("cycles", "", 7.0, "", 1.0),)
    with pytest.raises(ValueError, match="separator must be one character, got ''"):
        read_perf_stat("7,,cycles", "")


def test_an_event_listed_twice_for_one_place_is_one_count():
    twice = text(
        line(100, "cycles"),
        line(50, "cycle_activity.stalls_mem_any"),
        line(110, "cycles", running=60.0),
        line(21, "cycle_activity.stalls_l3_miss"),
    )
    perf = read_perf_stat(twice)
    assert perf.counts[0] == Count("cycles", "", 105.0, "", 0.6)
    assert perf.repeated == ("cycles",)
    found = perf_evidence(perf)
    assert (found.memory_stall_share, found.dram_stall_share) == (50 / 105, 0.2)
    assert found.notes[0].startswith("cycles is listed more than once for one place: its counts were taken at")


def test_an_event_listed_twice_in_each_interval_is_one_count_that_adds_up_over_time():
    lines = [f"     {second}.000000000,{line(value, 'cycles')}" for second in (1, 2) for value in (second, second + 2)]
    assert read_perf_stat(text(*lines)).counts == (Count("cycles", "", 2.0 + 3.0, "", 1.0),)


def test_units_outside_the_cores_add_up_though_they_share_a_name():
    perf = read_perf_stat(text(*[line(100, "unc_m_cas_count.rd", group=group) for group in ("S0", "S0", "S1")]))
    assert [count.value for count in perf.counts] == [200.0, 100.0]
    assert any("added up, as of several units" in note for note in perf_evidence(perf).notes)


# Laws.


@given(st.text(alphabet="0123456789,;.:SNC-<>notcued /%#\n\t|eE+", max_size=200))
def test_any_text_is_read_or_refused_as_perf(raw):
    try:
        perf = read_perf_stat(raw)
    except ValueError:
        return
    assert all(count.value >= 0.0 for count in perf.counts)
    assert perf.counts or perf.not_counted


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content):
    try:
        raw = decode(content)
        evidence_of(raw, XEON)
    except ValueError as error:
        assert str(error)  # noqa: PT017 # that it is no other exception is the law


def test_comments_before_the_counts_do_not_hide_them():
    assert kind_of(PLAIN) is Kind.PERF_STAT
    assert separator_of("# started on Sun Nov 22") is None

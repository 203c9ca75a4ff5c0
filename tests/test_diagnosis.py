"""The chapter's tree and gotchas: every leaf and every gotcha, from figures that a reader can check."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numa_rl.coherence.sharing import find_sharing
from numa_rl.diagnosis.evidence import FIGURES, SHARES, Evidence
from numa_rl.diagnosis.gotchas import GOTCHAS, Gotcha, Severity, find_gotchas, not_looked_for
from numa_rl.diagnosis.samples import read_samples, samples_evidence, sharing_evidence
from numa_rl.diagnosis.tree import ADVICE, COMMANDS, Leaf, Thresholds, diagnose
from numa_rl.machines.catalog import load_machine
from numa_rl.roofline import TUNING_TABLE, tuning
from numa_rl.topology import LoadedLatency

XEON = load_machine("xeon-8269cy")
CALM = {"latency_ratio": 1.1, "controller_utilisation": 0.3, "link_utilisation": 0.2}

share = st.floats(0.0, 1.0)
figure = st.floats(0.0, 1e6)
optional = {name: st.none() | share for name in SHARES} | {name: st.none() | figure for name in FIGURES}
evidences = st.builds(
    Evidence,
    latency_ratio=st.none() | st.floats(1e-3, 1e3),
    thread_nodes=st.none() | st.integers(1, 8),
    num_nodes=st.none() | st.integers(1, 8),
    **optional,
)


# Known answers: the leaves.


@pytest.mark.parametrize(
    ("figures", "leaf", "decided"),
    [
        ({"latency_ratio": 1.8, "remote_share": 0.4}, Leaf.DATA_LAYOUT, ["latency_ratio", "remote_share"]),
        ({"latency_ratio": 1.8, "remote_share": 0.1}, Leaf.CACHE_CONTENTION, ["latency_ratio", "remote_share"]),
        (CALM | {"controller_utilisation": 0.9}, Leaf.COMMUNICATION, ["latency_ratio", "controller_utilisation"]),
        (CALM | {"link_utilisation": 0.9}, Leaf.COMMUNICATION, ["latency_ratio", "link_utilisation"]),
        (CALM, Leaf.COMPUTE, ["latency_ratio", "controller_utilisation"]),
    ],
)
def test_every_leaf_is_reached(figures, leaf, decided):
    diagnosis = diagnose(Evidence(**figures))
    assert diagnosis.leaf is leaf
    assert [step.figure for step in diagnosis.path] == decided
    assert [step.value for step in diagnosis.path] == [figures[name] for name in decided]
    assert diagnosis.advice == ADVICE[leaf]
    assert set(COMMANDS[leaf]) <= set(diagnosis.commands)


def test_the_chapters_case_before_its_tuning_is_data_layout():
    # 16.4.4: 45% remote accesses, link use 78%; 55% at 10 ns and 45% at 30 ns mean 1.9 times the local latency
    case = Evidence(latency_ratio=(0.55 * 10 + 0.45 * 30) / 10, remote_share=0.45, link_utilisation=0.78, intensity=1.0)
    diagnosis = diagnose(case)
    assert diagnosis.leaf is Leaf.DATA_LAYOUT
    assert diagnosis.tuning == tuning(1.0, 0.55)
    assert find_gotchas(case) == []


@pytest.mark.parametrize(
    ("figures", "question", "asked"),
    [
        ({}, "Is memory latency high?", "cycle_activity.stalls_mem_any"),
        ({"remote_share": 0.5, "link_utilisation": 0.9}, "Is memory latency high?", "cycle_activity.stalls_mem_any"),
        ({"latency_ratio": 2.0}, "Are many accesses remote?", "mem_load_l3_miss_retired.remote_dram"),
        ({"latency_ratio": 1.0}, "Is bandwidth saturated?", "unc_m_cas_count.rd"),
        (
            {"latency_ratio": 1.0, "controller_utilisation": 0.1},
            "Is bandwidth saturated?",
            "unc_upi_rxl_flits.all_data",
        ),
        ({"latency_ratio": 1.0, "link_utilisation": 0.1}, "Is bandwidth saturated?", "unc_m_cas_count.rd"),
    ],
)
def test_what_was_not_measured_is_not_guessed(figures, question, asked):
    diagnosis = diagnose(Evidence(**figures))
    assert diagnosis.leaf is None
    assert diagnosis.advice is None
    last = diagnosis.path[-1]
    assert (last.question, last.answer) == (question, None)
    assert any(asked in command and command.startswith("LC_ALL=C perf stat -x,") for command in diagnosis.commands)


def test_a_saturated_link_answers_though_the_controllers_were_not_measured():
    assert diagnose(Evidence(latency_ratio=1.0, link_utilisation=0.9)).leaf is Leaf.COMMUNICATION


@pytest.mark.parametrize(
    ("figures", "decided"),
    [
        ({"latency_ratio": 1.0, "memory_stall_share": 0.9, "dram_stall_share": 0.9}, ("latency_ratio", False)),
        ({"memory_stall_share": 0.21, "dram_stall_share": 0.05}, ("memory_stall_share", True)),
        ({"memory_stall_share": 0.2}, ("memory_stall_share", False)),
        ({"dram_stall_share": 0.11}, ("dram_stall_share", True)),
        ({"dram_stall_share": 0.1}, ("dram_stall_share", False)),
    ],
)
def test_latency_is_judged_by_the_figure_that_says_it_best(figures, decided):
    step = diagnose(Evidence(**figures)).path[0]
    assert (step.figure, step.answer) == decided


def test_the_busiest_is_named():
    step = diagnose(Evidence(**CALM | {"link_utilisation": 0.9}, busiest_link="links into S1 (node 1)")).path[1]
    assert step.label == "links into S1 (node 1)"


def test_the_limit_of_latency_is_that_of_a_memory_at_four_fifths_of_its_capacity():
    curve, load = LoadedLatency(), Thresholds().utilisation
    loaded = 1.0 + curve.a * load / (1.0 - curve.c * load)
    assert Thresholds().latency_ratio == math.floor(loaded * 10.0) / 10.0


# Known answers: the tuning table.


def test_the_cell_of_the_tuning_table_is_that_of_the_evidence():
    diagnosis = diagnose(Evidence(**CALM, intensity=0.25, remote_share=0.3))
    assert diagnosis.tuning == tuning(0.25, 0.7)
    assert diagnosis.tuning is not None
    assert set(diagnosis.tuning.commands) <= set(diagnosis.commands)
    assert diagnosis.missing == ()


def test_every_cell_is_reached():
    cells = {
        diagnose(Evidence(**CALM, intensity=intensity, remote_share=remote)).tuning
        for intensity in (0.1, 1.0, 10.0)
        for remote in (0.1, 0.3, 0.9)
    }
    assert cells == set(TUNING_TABLE.values())


@pytest.mark.parametrize(
    ("figures", "missing", "asked"),
    [
        ({"remote_share": 0.3}, ["intensity"], ["fp_arith_inst_retired"]),
        ({"intensity": 1.0}, ["locality"], ["mem_load_l3_miss_retired"]),
        ({}, ["intensity", "locality"], ["fp_arith_inst_retired", "mem_load_l3_miss_retired"]),
    ],
)
def test_what_the_tuning_table_lacks_is_said(figures, missing, asked):
    diagnosis = diagnose(Evidence(**CALM, **figures))
    assert diagnosis.leaf is Leaf.COMPUTE
    assert diagnosis.tuning is None
    assert [lacking.split()[0] for lacking in diagnosis.missing] == missing
    assert all(any(events in command for command in diagnosis.measure) for events in asked)


# Known answers: the gotchas.


@pytest.mark.parametrize(
    ("figures", "gotcha", "severity", "command"),
    [
        ({"hitm_share": 0.2}, Gotcha.FALSE_SHARING, Severity.SUSPECTED, "perf c2c record"),
        ({"coherence_share": 0.06}, Gotcha.FALSE_SHARING, Severity.SUSPECTED, "perf c2c report"),
        ({"falsely_shared_share": 0.06}, Gotcha.FALSE_SHARING, Severity.FOUND, "perf c2c report"),
        ({"falsely_shared_share": 0.1, "falsely_shared_lines": 3}, Gotcha.FALSE_SHARING, Severity.SEVERE, "perf c2c"),
        ({"misplaced_share": 0.3}, Gotcha.WRONG_NODE, Severity.FOUND, "numactl --cpunodebind"),
        ({"misplaced_share": 0.4}, Gotcha.WRONG_NODE, Severity.SEVERE, "migratepages"),
        ({"controller_imbalance": 0.4, "remote_share": 0.5}, Gotcha.WRONG_NODE, Severity.FOUND, "numastat -p"),
        ({"largest_node_share": 0.95, "thread_nodes": 2}, Gotcha.WRONG_NODE, Severity.FOUND, "--interleave=all"),
        ({"largest_node_share": 0.95}, Gotcha.WRONG_NODE, Severity.SUSPECTED, "ps -L"),
        ({"far_share": 0.5}, Gotcha.DISTANCE_IGNORED, Severity.FOUND, "numactl --hardware"),
        ({"migration_share": 0.06}, Gotcha.EXCESSIVE_MIGRATION, Severity.FOUND, "/proc/sys/kernel/numa_balancing"),
        ({"cpu_migrations_per_s": 50.0}, Gotcha.UNPINNED_THREADS, Severity.SUSPECTED, "OMP_PROC_BIND"),
        ({"cpu_migrations_per_s": 15.0}, Gotcha.UNPINNED_THREADS, Severity.SUSPECTED, "taskset"),
        ({"link_utilisation": 0.9}, Gotcha.SATURATED_LINK, Severity.FOUND, "numactl --interleave=all"),
        ({"link_utilisation": 1.2}, Gotcha.SATURATED_LINK, Severity.SEVERE, "unc_upi_rxl_flits"),
    ],
)
def test_every_gotcha_is_found(figures, gotcha, severity, command):
    (finding,) = find_gotchas(Evidence(**figures))
    assert (finding.gotcha, finding.severity) == (gotcha, severity)
    assert any(command in run for run in finding.commands)
    deciding = finding.numbers[0]
    assert deciding.value == figures[deciding.figure]
    assert deciding.threshold is not None
    assert deciding.value > deciding.threshold


@pytest.mark.parametrize(
    "figures",
    [
        {name: limit for name, limit in vars(Thresholds()).items() if name in (*SHARES, *FIGURES)},
        {"link_utilisation": 0.8},
        {"controller_imbalance": 2.0},  # its own bytes only: no harm is shown
        {"controller_imbalance": 2.0, "remote_share": 0.1},
        {"controller_imbalance": 2.0, "remote_share": 0.9, "misplaced_share": 0.0},  # all is where most use it
        {"far_share": 1.0, "remote_share": 0.1},  # too little is remote to matter
        {"largest_node_share": 1.0, "thread_nodes": 1},  # where its threads are
        {"largest_node_share": 1.0, "num_nodes": 1},
        {"cpu_migrations_per_s": 1e3, "num_nodes": 1},
        {"falsely_shared_share": 0.0, "truly_shared_share": 0.5, "hitm_share": 0.5},  # samples know it is true sharing
        {},
    ],
)
def test_what_is_no_gotcha_is_not_found(figures):
    assert find_gotchas(Evidence(**figures)) == []


def test_gotchas_without_a_figure_are_not_said_to_be_absent():
    assert not_looked_for(Evidence()) == list(Gotcha)
    assert Gotcha.WRONG_NODE not in not_looked_for(Evidence(controller_imbalance=0.0, remote_share=0.0))
    assert not_looked_for(Evidence(hitm_share=0.0, link_utilisation=0.0, controller_imbalance=0.0)) == [
        Gotcha.WRONG_NODE,
        Gotcha.DISTANCE_IGNORED,
        Gotcha.EXCESSIVE_MIGRATION,
        Gotcha.UNPINNED_THREADS,
    ]


def test_pages_on_several_nodes_do_not_clear_a_process_whose_threads_are_unknown():
    assert Gotcha.WRONG_NODE in not_looked_for(Evidence(largest_node_share=0.6))
    assert Gotcha.WRONG_NODE not in not_looked_for(Evidence(largest_node_share=0.6, thread_nodes=2))
    assert Gotcha.WRONG_NODE not in not_looked_for(Evidence(largest_node_share=0.95))  # suspected
    assert Gotcha.WRONG_NODE in not_looked_for(Evidence(largest_node_share=0.95), Thresholds(largest_node_share=0.99))


def test_every_gotcha_has_its_look_and_the_figures_it_looks_at():
    assert list(GOTCHAS) == list(Gotcha)
    names = {item.name for item in fields(Evidence)}
    assert all(figures <= names for _, sets in GOTCHAS.values() for figures in sets)


# Known answers: samples.

FALSE = "thread,address,write\n" + "0,0x1000,1\n1,0x1008,1\n" * 50
TRUE = "thread,address,write\n" + "0,0x1000,1\n1,0x1000,1\n" * 50
APART = "thread,address,write\n" + "0,0x1000,1\n1,0x1040,1\n" * 50


def test_threads_that_write_beside_each_other_share_falsely():
    found = samples_evidence(FALSE, XEON)
    assert found.falsely_shared_share is not None
    assert found.falsely_shared_share > 0.9
    assert found.falsely_shared_lines == 1
    assert found.notes[0].startswith("Line 0x1000 is shared falsely by threads 0, 1")
    (finding,) = find_gotchas(found)
    assert (finding.gotcha, finding.severity) == (Gotcha.FALSE_SHARING, Severity.SEVERE)
    assert "1 line " in finding.summary


@pytest.mark.parametrize("text", [TRUE, APART])
def test_threads_that_write_the_same_bytes_or_other_lines_do_not(text):
    found = samples_evidence(text, XEON)
    assert found.falsely_shared_share == 0.0
    assert found.falsely_shared_lines == 0


def test_true_sharing_in_the_samples_explains_what_counters_see_and_silence_does_not():
    counted = Evidence(hitm_share=0.5)
    assert find_gotchas(samples_evidence(TRUE, XEON).join(counted)) == []
    (finding,) = find_gotchas(samples_evidence(APART, XEON).join(counted))
    assert (finding.gotcha, finding.severity) == (Gotcha.FALSE_SHARING, Severity.SUSPECTED)


def test_the_nodes_of_threads_may_be_given():
    text = "node,thread,write,address\n0,70,1,4096\n1,71,1,4104\n0,70,1,4096\n"
    samples = read_samples(text)
    assert samples.thread_node == {70: 0, 71: 1}
    np.testing.assert_array_equal(samples.address, [4096, 4104, 4096])
    assert samples_evidence(text, XEON) == sharing_evidence(find_sharing(samples, XEON.latency_s), XEON.name)
    near = samples_evidence(text.replace("1,71", "0,71"), XEON)  # two threads of one node share its cache
    assert near.falsely_shared_share == 0.0


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "samples must have the columns thread, address, write, and node if known, got ''."),
        ("thread;address;write\n", "samples must have the columns"),
        ("thread,address,write,write\n", "samples must have the columns"),
        ("thread,address,write\n", "samples must have at least one line under the header, got none"),
        ("thread,address,write\n0,1\n", "line 2: must have 3 cells between commas, got 2"),
        ("thread,address,write\n0,1,1,5\n", "line 2: must have 3 cells between commas, got 4"),
        ("thread,address,write\n0,-1,1\n", "line 2: address must be a whole number >= 0, decimal or with 0x, got '-1'"),
        ("thread,address,write\n0,1.5,1\n", "line 2: address must be a whole number"),
        ("thread,address,write\n0,zz,1\n", "line 2: address must be a whole number"),
        ("thread,address,write\n0,1,2\n", r"line 2: write must be in 0..1, got '2'"),
        (
            f"thread,address,write\n0,1,0\n0,{2**64},1\n",
            r"line 3: address must be in 0..\d+, got '18446744073709551616'",
        ),
        ("thread,address,write\n0,0xfffffffffffffffff,1\n", r"line 2: address must be in 0..\d+, got '0xfff"),
        (f"thread,address,write\n0,{'9' * 5000},1\n", r"line 2: address must be in 0..\d+, got '999"),
        ("thread,address,write\n7,1,1\n", "thread"),
        ("thread,address,write,node\n0,1,1,0\n0,1,1,1\n", "thread 0 must stay on one node, got 0 and 1"),
        ("thread,address,write,node\n0,1,1,9\n", "thread_node"),
    ],
)
def test_samples_that_break_a_rule_are_refused(text, rule):
    with pytest.raises(ValueError, match=rule):
        samples_evidence(text, XEON)


# Rules of the dataclasses.


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
@pytest.mark.parametrize("name", SHARES)
def test_a_share_lies_between_none_and_all(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be (in \[0, 1\]|finite and >= 0), got {value}"):
        Evidence(**{name: value})


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("name", [*FIGURES, "latency_ratio"])
def test_a_figure_is_finite_and_not_negative(name, value):
    with pytest.raises(ValueError, match=f"{name} must be finite and >= 0, got {value}"):
        Evidence(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("latency_ratio", 0.0), ("num_nodes", 0), ("thread_nodes", 0), ("largest_node", -1), ("falsely_shared_lines", -1)],
)
def test_a_count_or_ratio_has_its_least(name, value):
    with pytest.raises(ValueError, match=f"{name} must be >=? [01].*, got {value}"):
        Evidence(**{name: value})


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"remote_share": 0.0}, r"remote_share must be in \(0, 1\], got 0.0"),
        ({"hitm_share": 1.5}, r"hitm_share must be in \(0, 1\], got 1.5"),
        ({"utilisation": math.nan}, "utilisation must be > 0, got nan"),
        ({"latency_ratio": 0.9}, "latency_ratio must be >= 1, got 0.9"),
        ({"severe_factor": math.inf}, "severe_factor must be >= 1, got inf"),
        ({"severe_utilisation": 0.5}, r"severe_utilisation must be >= utilisation \(0.8\), got 0.5"),
    ],
)
def test_a_threshold_out_of_range_is_refused(changes, rule):
    with pytest.raises(ValueError, match=rule):
        Thresholds(**changes)


def test_evidence_is_joined_and_the_first_stands():
    first = Evidence(remote_share=0.1, notes=("a",), provenance={"remote_share": "x"})
    second = Evidence(
        remote_share=0.9, hitm_share=0.5, notes=("b", "a"), provenance={"remote_share": "y", "hitm_share": "z"}
    )
    both = first.join(second)
    assert (both.remote_share, both.hitm_share) == (0.1, 0.5)
    assert both.notes == ("a", "b")
    assert both.provenance == {"remote_share": "x", "hitm_share": "z"}
    assert both.measured == {"remote_share": 0.1, "hitm_share": 0.5}


# Laws.


@given(evidences)
def test_every_walk_ends_at_a_leaf_or_says_what_to_measure(evidence):
    diagnosis = diagnose(evidence)
    assert (diagnosis.leaf is None) == (diagnosis.path[-1].answer is None)
    assert diagnosis.leaf is not None or diagnosis.measure
    assert (diagnosis.tuning is None) == bool(diagnosis.missing)
    assert all(step.answer is None or step.value is not None for step in diagnosis.path)
    assert all(step.answer is not None for step in diagnosis.path[:-1])


@given(evidences)
def test_an_answer_is_yes_above_its_threshold_and_only_there(evidence):
    for step in diagnose(evidence).path:
        if step.answer is not None:
            assert step.value is not None
            assert step.threshold is not None
            assert step.answer == (step.value > step.threshold)


@given(evidences)
def test_stricter_thresholds_find_no_less(evidence):
    evidence = replace(evidence, truly_shared_share=None)  # this one speaks against a finding
    loose = Thresholds()
    strict = replace(loose, **{name: value / 2.0 for name, value in vars(loose).items() if name.endswith("_share")})
    found = {finding.gotcha for finding in find_gotchas(evidence, loose)}
    assert found <= {finding.gotcha for finding in find_gotchas(evidence, strict)}


@given(evidences)
def test_nothing_is_found_of_what_was_not_measured(evidence):
    assert not {finding.gotcha for finding in find_gotchas(evidence)} & set(not_looked_for(evidence))


@given(evidences, evidences)
def test_joining_loses_no_figure(first, second):
    assert first.join(second).measured == second.measured | first.measured

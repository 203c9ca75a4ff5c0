"""`numa-rl diagnose` as a person meets it: every leaf and every gotcha from input that shows it; simulated runs."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Ended, Run, refused

from agents.evaluation import evaluate
from agents.rules.catalog import rule_names
from agents.tuning import TunedRule
from experiments.scenario import Split, load_scenario
from experiments.simulated_run import rule_of, simulated_evidence
from experiments.tune import world_of
from numa_rl.diagnosis.gotchas import Gotcha
from numa_rl.diagnosis.tree import Leaf
from numa_rl.roofline import tuning

XEON = ("--machine", "xeon-8269cy")  # two sockets, 113 GB/s of memory each, 50.9 GB/s each way between them


@pytest.fixture
def run(numa_rl: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `numa-rl diagnose` on a text, in an empty folder."""
    monkeypatch.setenv("COLUMNS", "240")

    def diagnose(text: str, *arguments: Any) -> Ended:
        Path("in.txt").write_text(text, encoding="utf-8")
        return numa_rl("diagnose", "in.txt", "--json", "out.json", *arguments)

    return diagnose


def perf(**counts: tuple[float, float]) -> str:
    """Counts of two sockets in a second, as `perf stat -x, -a --per-socket` writes them."""
    lines = ["# started on Sun Nov 22 15:37:10 2026", ""]
    for key, values in {**counts, "duration_time": (1e9, 1e9)}.items():
        event, unit = EVENTS.get(key, (key, ""))
        for socket, value in enumerate(values):
            lines.append(f"S{socket},52,{value:.0f},{unit},{event},1000000000,100.00,,")
    return "\n".join([*lines, ""])


EVENTS = {
    "stalls": ("cycle_activity.stalls_mem_any", ""),
    "local": ("mem_load_l3_miss_retired.local_dram", ""),
    "remote": ("mem_load_l3_miss_retired.remote_dram", ""),
    "hitm": ("mem_load_l3_miss_retired.remote_hitm", ""),
    "read": ("uncore_imc/cas_count_read/", "MiB"),
    "flits": ("unc_upi_rxl_flits.all_data", ""),
    "flops": ("fp_arith_inst_retired.scalar_double", ""),
    "cpu_migrations": ("cpu-migrations", ""),
    "task_clock": ("task-clock", "msec"),
    "hop1": ("ocr.all_reads.l3_miss_remote_hop1_dram.any_snoop", ""),
    "hop2": ("ocr.all_reads.l3_miss_remote_hop2p_dram.any_snoop", ""),
    "duration_time": ("duration_time", "ns"),
}
BUSY = {"cycles": (2e9, 2e9), "stalls": (1e9, 1e9)}
IDLE = {"cycles": (2e9, 2e9), "stalls": (1e8, 1e8), "flits": (1e8, 1e8)}
PROCESS = """
Per-node process memory usage (in MBs) for PID 7075 (qemu-kvm)
                           Node 0          Node 1           Total
                  --------------- --------------- ---------------
Private                   1024.00            8.00         1032.00
----------------  --------------- --------------- ---------------
Total                     1024.00            8.00         1032.00
"""
SYSTEM = """\
                           node0           node1
numa_hit                 1000000         1000000
numa_miss                      0               0
numa_foreign                   0               0
interleave_hit                 0               0
local_node                600000          600000
other_node                400000          400000
"""
MAPS = "00400000 default heap anon=1000 dirty=1000 N0=100 N1=100 N7=800 kernelpagesize_kB=4\n"
VMSTAT = "numa_hit 1\nnuma_local 1\nnuma_other 0\nnuma_pages_migrated 800000\n"
SAMPLES = "thread,address,write\n" + "0,0x1000,1\n1,0x1008,1\n" * 50


# Every leaf, from perf's counts.


@pytest.mark.parametrize(
    ("counts", "leaf"),
    [
        (BUSY | {"local": (50, 50), "remote": (40, 60)}, Leaf.DATA_LAYOUT),
        (BUSY | {"local": (90, 95), "remote": (5, 10)}, Leaf.CACHE_CONTENTION),
        (IDLE | {"read": (95_000, 1_000)}, Leaf.COMMUNICATION),
        (IDLE | {"read": (1_000, 1_000), "flits": (6.5e9, 1e8)}, Leaf.COMMUNICATION),
        (IDLE | {"read": (10_000, 10_000)}, Leaf.COMPUTE),
    ],
    ids=["data layout", "cache contention", "full memory", "full link", "compute"],
)
def test_every_leaf_comes_from_counts_that_show_it(run, counts, leaf):
    ended = run(perf(**counts), *XEON)
    assert (ended.code, ended.err) == (0, "")
    assert ended.json["leaf"] == leaf.value
    assert f"{leaf.value}: " in ended.out
    for step in ended.json["path"]:
        assert step["question"] in ended.out
        assert step["figure"] in ended.out


# Every gotcha, from an input of every kind that can show it.


@pytest.mark.parametrize(
    ("text", "arguments", "gotcha", "command"),
    [
        (perf(local=(80, 80), remote=(10, 10), hitm=(20, 20)), (), Gotcha.FALSE_SHARING, "perf c2c record"),
        (perf(**IDLE), (*XEON, "--samples", "samples.csv"), Gotcha.FALSE_SHARING, "perf c2c report"),
        (perf(read=(9_000, 100), local=(5, 5), remote=(5, 5)), (), Gotcha.WRONG_NODE, "numactl --cpunodebind"),
        (SYSTEM, (), Gotcha.WRONG_NODE, "numastat -p"),
        (PROCESS, (), Gotcha.WRONG_NODE, "ps -L"),
        (PROCESS, ("--threads-on", "0-1"), Gotcha.WRONG_NODE, "--interleave=all"),
        (PROCESS, ("--threads-on", "1"), Gotcha.WRONG_NODE, "migratepages"),
        (perf(hop1=(10, 10), hop2=(10, 10)), (), Gotcha.DISTANCE_IGNORED, "numactl --hardware"),
        (MAPS, ("--threads-on", "0", "--machine", "chapter-8-socket"), Gotcha.DISTANCE_IGNORED, "--preferred"),
        (VMSTAT, ("--seconds", "10"), Gotcha.EXCESSIVE_MIGRATION, "/proc/sys/kernel/numa_balancing"),
        (perf(numa_pages_migrated=(90_000, 0)), (), Gotcha.EXCESSIVE_MIGRATION, "/proc/vmstat"),
        (perf(cpu_migrations=(500, 500), task_clock=(1000, 1000)), (), Gotcha.UNPINNED_THREADS, "OMP_PROC_BIND"),
        (perf(flits=(1e8, 6.5e9)), XEON, Gotcha.SATURATED_LINK, "numactl --interleave=all"),
    ],
)
def test_every_gotcha_comes_from_an_input_that_shows_it(run, text, arguments, gotcha, command):
    Path("samples.csv").write_text(SAMPLES)
    ended = run(text, *arguments)
    assert (ended.code, ended.err) == (0, "")
    found = {finding["gotcha"]: finding for finding in ended.json["gotchas"]}
    assert gotcha.value in found
    assert gotcha.value not in ended.json["gotchas_not_looked_for"]
    assert any(command in run_next for run_next in ended.json["commands"])
    assert f"Gotcha: {gotcha.value}, {found[gotcha.value]['severity']}" in ended.out
    assert command in ended.out


# What is printed and written.


def test_the_deciding_numbers_and_their_limits_are_printed(run):
    ended = run(perf(**BUSY, local=(50, 50), remote=(40, 60), read=(10_000, 10_000), flops=(1e9, 1e9)), *XEON)
    assert "Is memory latency high? memory_stall_share 50.0%, limit 20.0%: yes" in ended.out
    assert "Are many accesses remote? remote_share 50.0%, limit 20.0%: yes" in ended.out
    strategy = tuning(2e9 / (20_000 * 2**20), 0.5).strategy
    assert f"Strategy (low intensity, middle locality): {strategy}." in ended.out
    content = ended.json
    assert content["figures"]["intensity"] == pytest.approx(2e9 / (20_000 * 2**20))
    assert content["tuning"]["strategy"] == strategy
    assert content["figures"]["machine"] == "xeon-8269cy"
    assert set(content["provenance"]) <= set(content["figures"])


def test_what_is_missing_is_printed_with_what_measures_it(run):
    ended = run(PROCESS)
    assert "Is memory latency high? not measured: not known" in ended.out
    assert "Not measured: false sharing, distance ignored, excessive migration, unpinned threads, saturated link." in (
        ended.out
    )
    assert ended.json["leaf"] is None
    assert any("cycle_activity.stalls_mem_any" in command for command in ended.json["commands"])


def test_no_command_is_printed_twice(run):
    commands = run(perf(**BUSY, local=(50, 50), remote=(40, 60), read=(9_000, 100), flops=(1e9, 1e9)), *XEON).json[
        "commands"
    ]
    runs = [command.split("  #")[0] for command in commands]
    assert len(set(runs)) == len(runs)


def test_thresholds_can_be_moved(run):
    text = perf(**BUSY, local=(50, 50), remote=(40, 60))
    assert run(text, "--thresholds.remote-share", "0.6").json["leaf"] == Leaf.CACHE_CONTENTION.value
    refused(run(text, "--thresholds.remote-share", "1.6"), "remote_share must be in (0, 1], got 1.6")


def test_standard_input_is_a_file_too(numa_rl, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(SYSTEM.encode())))
    ended = numa_rl("diagnose", "-")
    assert (ended.code, ended.err) == (0, "")
    assert "Diagnosis of standard input (numastat)" in ended.out


def test_this_systems_own_files_are_read(run):
    paths = [Path("/proc/self/numa_maps"), Path("/proc/vmstat"), Path("/sys/devices/system/node/node0/numastat")]
    texts = [path.read_text() for path in paths if path.exists()]
    if not any("numa_hit" in text for text in texts):
        pytest.skip("this system has no NUMA files")
    for text in texts:
        if "N0=" in text or "numa_hit" in text:
            assert run(text).code == 0


# Simulated runs.


@pytest.mark.parametrize(
    ("rule", "leaf", "gotchas"),
    [
        ("random", Leaf.DATA_LAYOUT, {Gotcha.WRONG_NODE, Gotcha.DISTANCE_IGNORED, Gotcha.EXCESSIVE_MIGRATION}),
        ("first-touch", Leaf.DATA_LAYOUT, {Gotcha.WRONG_NODE, Gotcha.DISTANCE_IGNORED}),
        ("data-affinity", Leaf.CACHE_CONTENTION, set()),
    ],
)
def test_a_scenarios_episodes_are_diagnosed_under_a_rule(numa_rl, rule, leaf, gotchas):
    ended = numa_rl("diagnose", "--scenario", "stream-cube", "--rule", rule, "--episodes", 2, "--json", "out.json")
    assert (ended.code, ended.err) == (0, "")
    assert f"Diagnosis of {rule} on stream-cube (simulated) on chapter-8-socket" in ended.out
    assert "Not measured: unpinned threads." in ended.out
    content = ended.json
    assert content["leaf"] == leaf.value
    assert {finding["gotcha"] for finding in content["gotchas"]} == {gotcha.value for gotcha in gotchas}
    assert content["commands"][0].startswith("numa-rl compare --scenario stream-cube ")
    assert content["notes"][0].startswith("Figures are of 2 runs together")
    assert set(content["figures"]) == {
        *content["provenance"],
        "busiest_controller",
        "busiest_link",
        "machine",
        "num_nodes",
    }


def test_a_simulated_run_is_the_one_that_compare_plays():
    scenario = load_scenario("stream-cube")
    scheduler = rule_of(scenario, "greedy", tuned=False)
    results = evaluate(scheduler, world_of(scenario, Split.TEST, 1, 3))
    found = simulated_evidence(scenario, scheduler, 1, 3)
    assert found.remote_share == pytest.approx(results.remote_ratio[0])
    assert found.controller_utilisation == pytest.approx(results.metrics["S_MC"][0])
    assert found.link_utilisation == pytest.approx(results.metrics["U_link"][0])
    assert found.migrations_per_s == pytest.approx(results.metrics["F_migrate"][0])
    assert found.coherence_share == pytest.approx(results.metrics["O_coherence"][0])


def test_the_seed_and_the_number_of_episodes_change_the_run(numa_rl):
    runs = [("--episodes", 1), ("--episodes", 2), ("--episodes", 1, "--seed", 1), ("--episodes", 1)]
    figures = []
    for options in runs:
        ended = numa_rl("diagnose", "--scenario", "stream-cube", "--rule", "random", *options, "--json", "out.json")
        figures.append(ended.json["figures"]["remote_share"])
    assert figures[3] == figures[0]
    assert len(set(figures)) == 3


def test_a_tuned_rule_plays_with_its_tuned_parameters(numa_rl, monkeypatch):
    tuned = TunedRule("greedy", {}, 1.0, 1.0), TunedRule("migration-score", {"threshold": 0.25}, 1.0, 1.0)
    monkeypatch.setattr("experiments.simulated_run.load_or_tune", lambda scenario, **_: list(tuned))
    scenario = load_scenario("stream-cube")
    assert rule_of(scenario, "migration-score", tuned=True) == tuned[1].rule
    assert rule_of(scenario, "migration-score", tuned=False) != tuned[1].rule
    ended = numa_rl("diagnose", "--scenario", "stream-cube", "--rule", "greedy", "--tuned", "--episodes", 1)
    assert "Diagnosis of greedy (tuned) on stream-cube" in ended.out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["diagnose takes a file or --scenario, got neither."]),
        (["x", "--scenario", "stream-cube"], ["diagnose takes a file or --scenario, got both."]),
        (["--rule", "greedy"], ["--rule must go with --scenario."]),
        (["x", "--policy", "p"], ["--policy must go with --scenario."]),
        (["x", "--tuned"], ["--tuned must go with --scenario."]),
        (["x", "--episodes", "2"], ["--episodes must go with --scenario."]),
        (["x", "--seed", "0"], ["--seed must go with --scenario."]),
        (["--scenario", "stream-cube"], ["--scenario takes --rule or --policy, got neither."]),
        (["--scenario", "stream-cube", "--rule", "greedy", "--policy", "p"], ["--rule or --policy, got both."]),
        (["--scenario", "stream-cube", "--policy", "p", "--tuned"], ["--tuned must go with --rule."]),
        (["--scenario", "stream-cube", "--rule", "nope"], ["rule must be one of", *rule_names(), "got 'nope'"]),
        (["--scenario", "stream-cube", "--rule", "nope", "--tuned"], ["rule must be one of", "got 'nope'"]),
        (["--scenario", "stream-cube", "--policy", "p"], ["p: no such file"]),
        (["--scenario", "nope", "--rule", "greedy"], ["scenario must be one of", "stream-cube", "got 'nope'"]),
        (["--scenario", "", "--rule", "greedy"], ["scenario must be one of", "got ''"]),
        (["--scenario", "stream-cube", "--rule", "greedy", "--episodes", "0"], ["--episodes must be >= 1, got 0"]),
        (["--scenario", "stream-cube", "--rule", "greedy", "--seed", "-1"], ["--seed must be >= 0, got -1"]),
        *[
            (
                ["--scenario", "stream-cube", "--rule", "greedy", f"--{option}", *value],
                [f"--{option} must go with a file."],
            )
            for option, value in {
                "machine": ["r815"],
                "seconds": ["0"],
                "threads-on": ["0"],
                "separator": [","],
                "ignore-unknown": [],
                "samples": ["x.csv"],
            }.items()
        ],
    ],
)
def test_options_that_do_not_go_together_are_refused(numa_rl, arguments, parts):
    refused(numa_rl("diagnose", *arguments, "--json", "out.json"), *parts)
    assert not Path("out.json").exists()
    assert not Path("results").exists()


# Bad input.


@pytest.mark.parametrize(
    ("text", "arguments", "parts"),
    [
        ("", (), ("in.txt: must not be empty",)),
        ("hello\n", (), ("in.txt: must be what one of these prints: perf stat -x, numastat", "got 'hello'")),
        ("Performance counter stats for 'true':\n", (), ("the form for machines: -x,",)),
        (perf(bogus=(1, 1)), (), ("in.txt: line 3: counter 'bogus' is unknown", "one of the", "--ignore-unknown")),
        ("0,81;msec;task-clock;812790;100,00;0,551;CPUs utilized", (), ("in.txt: line 1: count must have a decimal",)),
        ("0,81,msec,task-clock,812790,100,00,0,551,CPUs utilized", (), ("line 1: must not have decimal commas",)),
        ("-1,,cycles,1,100.00,,", (), ("line 1: count must be in 0..2**64, got '-1'",)),
        (perf(**IDLE), ("--machine", "nope"), ("machine must be one of", "got 'nope'")),
        (perf(**IDLE), ("--seconds", "0"), ("seconds must be finite and > 0, got 0",)),
        (perf(**IDLE), ("--seconds", "nan"), ("seconds must be finite and > 0, got nan",)),
        (perf(**IDLE), ("--threads-on", "0"), ("--threads-on must go with numastat or /proc/<pid>/",)),
        (SYSTEM, ("--seconds", "5"), ("--seconds must go with perf stat -x or /proc/vmstat, got numastat",)),
        (SYSTEM, ("--ignore-unknown",), ("--ignore-unknown must go with perf stat -x, got numastat",)),
        (PROCESS, ("--threads-on", "x"), ("nodes must be numbers below 1024 or ranges, as 0-1,3, got 'x'",)),
        (MAPS, XEON, ("machine 'xeon-8269cy': nodes must be in 0..1, got node 7",)),
        (perf(**IDLE), ("--separator", "ab"), ("separator must be one character, got 'ab'",)),
        (perf(**IDLE), ("--samples", "in.txt"), ("--samples needs --machine",)),
        (perf(**IDLE), (*XEON, "--samples", "in.txt"), ("in.txt: samples must have the columns",)),
        (perf(**IDLE), (*XEON, "--samples", "none.csv"), ("none.csv: must be a readable file, got No such file",)),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_line(run, text, arguments, parts):
    refused(run(text, *arguments), *parts)
    assert not Path("out.json").exists()


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("none.txt", "No such file or directory"),
        (".", "Is a directory"),
        ("/dev/zero", "must be at most 67108864 bytes"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(numa_rl, name, rule):
    refused(numa_rl("diagnose", name), name, rule)


@pytest.mark.parametrize("content", [b"cycles\0", b"\xff\xfe1\x00"])
def test_a_binary_file_is_refused(numa_rl, content):
    Path("binary").write_bytes(content)
    refused(numa_rl("diagnose", "binary"), "binary: must be")


def test_a_place_that_cannot_be_written_is_refused_first(run):
    refused(run("", "--json", "/proc/x"), "--json must be a file that can be written, got '/proc/x'")

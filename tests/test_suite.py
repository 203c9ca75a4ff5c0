"""What the standard suite consists of: cells of equal load, splits that share nothing, what is held out."""

import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_suite import small
from strategies import seeds

from agents.rules.catalog import RULES
from experiments.scenario import Split, load_scenario
from experiments.suite import sources
from experiments.suite.definition import QUICK, STANDARD, read_definition
from experiments.suite.load import faster, local_service_s, offered_load
from experiments.suite.tuning import YARDSTICK, tune_suite
from experiments.suite.work import SettingsPiece
from numa_rl.machines.catalog import load_machine
from numa_rl.machines.drawn import draw_machine
from numa_rl.workloads.llm_serving import LLMServing
from numa_rl.workloads.synthetic import SyntheticStream
from numa_rl.workloads.workload import Workload


def two_tasks() -> Workload:
    """At 0 s and 2 s: 9e9 bytes of its own and 4.5e9 of an input each; the second computes for longer than it reads."""
    machine = load_machine("chapter-2-socket")
    return Workload(
        name="two",
        arrival_s=[[0.0, 2.0]],
        flops=[[0.0, 3.0 * machine.flops_per_s[0]]],
        bytes=[[9e9, 9e9]],
        write_fraction=[[1.0, 1.0]],
        object=[[0, 1]],
        object_bytes=[[1e9, 1e9]],
        inputs=[[[-1], [0]]],
        input_bytes=[[[0.0], [4.5e9]]],
        freed_after=[[9, 9]],
    )


def test_a_service_time_is_the_roofline_and_then_the_inputs():
    machine = load_machine("chapter-2-socket")
    assert machine.bandwidth_bytes_per_s[0, 0] == 90e9
    assert machine.latency_s[0, 0] / machine.outstanding_bytes <= 1 / 90e9
    assert local_service_s(two_tasks(), machine) == pytest.approx((0.1 + (3.0 + 0.05)) / 2)


def test_a_load_is_that_of_the_cores_or_of_the_memory_whichever_is_more():
    machine, work = load_machine("chapter-2-socket"), two_tasks()
    tasks_per_s = 2 / 2.0
    assert offered_load(work, machine) == pytest.approx(tasks_per_s * 1.575 / machine.cores.sum())
    moves_more = replace(work, bytes=1000.0 * work.bytes, flops=0.0 * work.flops)
    assert offered_load(moves_more, replace(machine, cores=100 * machine.cores)) == pytest.approx(
        tasks_per_s * (9e12 + 2.25e9) / machine.memory_bandwidth_bytes_per_s.sum()
    )


def test_memory_without_cores_does_not_count_for_the_load():
    machine, work = load_machine("cxl-expander"), two_tasks()
    assert 0 in machine.cores
    half = replace(machine, memory_bandwidth_bytes_per_s=machine.memory_bandwidth_bytes_per_s * [1.0, 0.5])
    assert offered_load(work, half) == offered_load(work, machine)


def test_a_load_needs_tasks_that_arrive_over_time():
    work = two_tasks()
    with pytest.raises(ValueError, match=r"two: a load needs tasks that arrive over time, got all at time 0"):
        offered_load(replace(work, arrival_s=0.0 * work.arrival_s), load_machine("chapter-2-socket"))


@pytest.mark.parametrize("name", ["stream-cube", "stream-xeon", "llm-r815", "allreduce-cube"])
def test_the_service_time_is_the_unit_of_time_that_scenarios_state(name: str):
    scenario = load_scenario(name)
    measured = local_service_s(scenario.episodes(Split.TRAIN, 64), scenario.topology)
    assert measured == pytest.approx(scenario.reward.reference_s, rel=0.03)


FAMILIES = (
    (SyntheticStream(num_tasks=24), "tasks_per_s", "burst_s"),
    (LLMServing(num_tasks=24), "requests_per_s tokens_per_s prefill_tokens_per_s", "burst_s mean_pause_s"),
)


@pytest.mark.parametrize(("family", "rates", "durations"), FAMILIES)
@given(factor=st.sampled_from([0.25, 0.5, 2.0, 4.0, 8.0, 10.0]))  # four digits say all scaled parameters exactly
@settings(max_examples=6, deadline=None)
def test_a_faster_family_only_compresses_time(family: Any, rates: str, durations: str, factor: float):
    plain = family.generate(np.random.default_rng(1), 2)
    fast = faster(family, factor, rates, durations).generate(np.random.default_rng(1), 2)
    np.testing.assert_allclose(fast.arrival_s * factor, plain.arrival_s, rtol=1e-9)
    for name in ("flops", "bytes", "object", "inputs", "object_bytes"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(plain, name))


def test_only_parameters_can_be_scaled():
    with pytest.raises(ValueError, match=r"rates and durations must be parameters among num_tasks, .*, got 'pace'"):
        faster(SyntheticStream(), 2.0, "pace", "")


@pytest.mark.parametrize(("path", "machines"), [(QUICK, []), (STANDARD, ["phytium-ft2500", "hygon-7280"])])
def test_every_machine_is_offered_the_load_that_the_suite_states(path: Path, machines: list[str]):
    definition = read_definition(path).chosen(machines=machines)
    for cell in definition.cells():
        stated = definition.families[cell.family].load
        if stated is None:
            assert np.isnan(cell.load), cell.name
        else:
            assert cell.load == pytest.approx(stated, rel=2e-3), cell.name
        work = cell.scenario.episodes(Split.TRAIN, definition.counts.load_episodes)
        assert cell.scenario.reward.reference_s == pytest.approx(
            local_service_s(work, cell.scenario.topology), rel=1e-3
        )
        assert cell.is_graph == work.is_one_graph


def test_the_standard_suite_has_six_families_on_six_machines_and_keeps_two_machines_and_a_family():
    definition = read_definition(STANDARD)
    machines = {
        role: [n for n, each in definition.machines.items() if each == role] for role in ("training", "held out")
    }
    families = [entry.role for entry in definition.families.values()]
    assert families.count("training") >= 6
    assert families.count("held out") >= 1
    assert len(machines["held out"]) >= 2
    nodes = [load_machine(name).num_nodes for name in machines["training"]]
    assert len(nodes) >= 6
    assert (min(nodes), max(nodes)) == (2, 16)


def test_no_two_splits_share_an_episode():
    for cell in read_definition(STANDARD).chosen(machines=["chapter-8-socket"]).cells():
        seen = {}
        for split in Split:
            work = cell.scenario.episodes(split, 6)
            timed = work.arrival_s[:, -1].any()
            rows = work.arrival_s if timed else np.asarray(work.flops)
            seen[split] = {row.tobytes() for row in rows}
            assert len(seen[split]) == 6, cell.name
        for one, other in combinations(seen.values(), 2):
            assert not one & other, cell.name


def test_a_cell_is_held_out_if_its_family_or_its_machine_is(tmp_path: Path):
    cells = {cell.name: cell.held_out for cell in small(tmp_path).cells()}
    assert cells == {
        "stream/chapter-2-socket": False,
        "stream/chapter-4-socket": False,
        "stream/cxl-expander": True,
        "graph/chapter-2-socket": True,
        "graph/chapter-4-socket": True,
        "graph/cxl-expander": True,
    }


def recorded(log: list[SettingsPiece], cost: Any = lambda piece: np.ones(len(piece.settings))) -> Any:
    """Computes nothing: costs are what a function says of each piece."""

    def compute(pieces: Any) -> Any:
        log.extend(pieces)
        return [{"costs": list(cost(piece))} for piece in pieces]

    return compute


def test_nothing_is_tuned_on_cells_held_out_nor_on_other_episodes_than_those_for_tuning(tmp_path: Path):
    definition, log = small(tmp_path), list[SettingsPiece]()
    tuned = tune_suite(definition.cells(), list(RULES), definition.counts, 3, recorded(log))
    assert {piece.episodes.scenario.name for piece in log} == set(tuned.by_cell)
    assert set(tuned.by_cell) == {"stream/chapter-2-socket", "stream/chapter-4-socket"}
    assert {(piece.episodes.split, piece.episodes.count, piece.episodes.seed) for piece in log} == {(Split.TUNE, 2, 3)}


def test_a_rule_takes_the_cheapest_setting_of_each_cell_and_the_one_that_is_cheapest_relative_to_greedy(tmp_path: Path):
    definition, log = small(tmp_path, ("settings = 2", "settings = 16"), ("refinements = 1", "refinements = 8")), []
    optimum = {"stream/chapter-2-socket": (np.log(3.0), 1.0), "stream/chapter-4-socket": (np.log(60.0), 100.0)}

    def cost(piece: SettingsPiece) -> Any:
        at, scale = optimum[piece.episodes.scenario.name]
        if piece.rule == YARDSTICK:
            return [scale * (2.0 if scale > 1 else 1.0)]
        return scale * (1.0 + (np.log(piece.settings[:, 0]) - at) ** 2)

    tuned = tune_suite(definition.cells(), ["first-touch"], definition.counts, 0, recorded(log, cost))
    tried = np.unique(np.concatenate([p.settings[:, 0] for p in log if p.rule == "first-touch"]))
    for cell, (at, _) in optimum.items():
        found = tuned.by_cell[cell]["first-touch"]["tolerance"]
        assert found == tried[np.abs(np.log(tried) - at).argmin()]
    relative = (1 + (np.log(tried) - np.log(3)) ** 2) / 2 + (1 + (np.log(tried) - np.log(60)) ** 2) / 4
    # All tried settings are looked at here, in the suite only those that both cells tried: near the optimum all did.
    assert np.log(tuned.single["first-touch"]["tolerance"]) == pytest.approx(np.log(tried[relative.argmin()]), abs=0.25)
    assert tuned.relative_cost["first-touch"] == pytest.approx(relative.min(), rel=0.02)


def test_tuning_never_makes_a_rule_worse_than_its_defaults(tmp_path: Path):
    definition, log = small(tmp_path), []

    def first_is_best(piece: SettingsPiece) -> Any:
        return 1.0 + np.arange(len(piece.settings)) if piece.settings.shape[0] != 2 else [9.0, 9.0]

    tuned = tune_suite(definition.cells(), ["first-touch"], definition.counts, 0, recorded(log, first_is_best))
    assert tuned.single["first-touch"] == {"tolerance": 1.17}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('= "held out"', '= "spare"'), r"machines.cxl-expander must be one of training, held out, got 'spare'"),
        (("test_episodes = 3", "test_episodes = 0"), r"counts: test_episodes must be >= 1, got 0"),
        (("oracle_episodes = 2", "oracle_episodes = 4"), r"counts: oracle_episodes must be <= 3, the test's, got 4"),
        (("load = 0.6", "load = -0.6"), r"families.stream: load must be finite and > 0, got -0.6"),
        (("load = 0.6\n", ""), r"families.stream: load must be given together with rates or durations"),
        (("window_tasks = 4.0", "window_tasks = nan"), r"window_tasks must be finite and > 0, got nan"),
        (("settings = 2", "sittings = 2"), r"counts: unknown key 'sittings'"),
        (("[machines]", "[machines"), r"small.toml: a suite must be TOML"),
        (('role = "training"', 'role = "held out"'), r"needs at least one family and one machine for training"),
    ],
)
def test_a_bad_definition_is_refused_with_its_reason(tmp_path: Path, change: tuple[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        small(tmp_path, change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"synthetic"', '"sympathetic"'), r"families.stream.workload: unknown workload family 'sympathetic'"),
        (('"tasks_per_s"', '"tasks"'), r"families.stream.workload: rates and durations must be parameters among"),
        (("cxl-expander", "abacus"), r"machine must be one of .*, got 'abacus'"),
        (("num_tasks = 16", "num_tasks = 0"), r"families.stream.workload: synthetic: num_tasks must be >= 1, got 0"),
    ],
)
def test_a_bad_cell_is_refused_with_its_reason(tmp_path: Path, change: tuple[str, str], message: str):
    definition = small(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        definition.cells()


def test_a_part_of_the_suite_must_be_of_the_suite(tmp_path: Path):
    definition = small(tmp_path)
    assert list(definition.chosen(machines=["chapter-4-socket", "cxl-expander"]).machines) == [
        "chapter-4-socket",
        "cxl-expander",
    ]
    with pytest.raises(ValueError, match=r"family must be one of stream, graph, got 'poem'"):
        definition.chosen(families=["poem"])
    with pytest.raises(ValueError, match=r"machine must be one of chapter-2-socket, .*, got 'abacus'"):
        definition.chosen(machines=["abacus"])
    with pytest.raises(ValueError, match=r"at least one family and one machine for training, .*families graph"):
        definition.chosen(families=["graph"])


@given(seeds)
@settings(max_examples=8, deadline=None)
def test_a_family_meets_any_machine_at_its_load_and_in_its_unit_of_time(seed: int):
    definition = read_definition(QUICK)
    machine = draw_machine(np.random.default_rng(seed))
    for name, entry in definition.families.items():
        cell = definition.cell_on(name, machine)
        work = cell.scenario.episodes(Split.TRAIN, definition.counts.load_episodes)
        assert cell.name == f"{name}/{machine.name}"
        assert cell.scenario.topology is machine
        # What the episodes are made of follows the pace a little, for parameters have four digits.
        assert cell.scenario.reward.reference_s == pytest.approx(local_service_s(work, machine), rel=0.01)
        assert cell.load == pytest.approx(entry.load or np.nan, rel=0.01, nan_ok=True)


def test_a_cell_on_a_machine_of_the_suite_is_that_of_the_suite(tmp_path: Path):
    definition = small(tmp_path)
    for cell in definition.cells():
        again = definition.cell_on(cell.family, load_machine(cell.machine), held_out=cell.machine == "cxl-expander")
        assert again.scenario.content_hash == cell.scenario.content_hash
        assert (again.name, again.held_out, again.is_graph) == (cell.name, cell.held_out, cell.is_graph)


def test_a_family_held_out_is_so_on_every_machine_and_one_that_is_not_there_is_refused(tmp_path: Path):
    definition, machine = small(tmp_path), draw_machine(np.random.default_rng(0))
    assert not definition.cell_on("stream", machine).held_out
    assert definition.cell_on("stream", machine, held_out=True).held_out
    assert definition.cell_on("graph", machine).held_out
    with pytest.raises(ValueError, match=r"family must be one of stream, graph, got 'poem'"):
        definition.cell_on("poem", machine)


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_definition_must_be_a_readable_file(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match=r"a suite must be a readable file: "):
        read_definition(tmp_path / name)


def test_results_depend_on_all_code_that_makes_episodes():
    program = "import sys, numa_rl.workloads.catalog, numa_rl.simulator.simulator; print(*[m.__file__ for n, m in "
    program += "sys.modules.items() if n.startswith('numa_rl.')], sep='\\n')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    counted = {path for pattern in sources.EVERYBODY for path in pattern.parent.glob(pattern.name)}
    # Machines count by their figures; parts of graphs are for planners and programs' own layouts.
    apart = ("machines", "partition")
    used = {Path(line) for line in done.stdout.split() if Path(line).name != "__init__.py"}
    assert len(used) > 40
    assert {path for path in used if path.parent.name not in apart} <= counted

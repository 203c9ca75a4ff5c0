from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, refused

from agents.rules.greedy import PricedGreedy
from envs.observation import ObservationKind, Observer
from experiments.scenario import Scenario, Split, load_scenario
from experiments.studies.configurations import (
    CHAPTER_MACHINES,
    HandTuned,
    hierarchical,
    initial,
    on_one_socket,
    split_name,
    splits,
    training_of,
    with_program,
)
from experiments.studies.imitation import Teacher, imitate
from experiments.studies.imitation_config import ImitationConfig
from experiments.studies.printed import AFTER, BEFORE, IMPLIED_GAINS, MOST_GAIN
from experiments.studies.rows import Kind as RowKind
from experiments.studies.rows import Rows, best
from experiments.studies.scaling import Growth, scaling, sensitivity
from experiments.studies.study import Play, first_touch, play_splits, play_steps, targets
from experiments.studies.timing import Figures, measure
from experiments.tune import world_of
from numa_rl.breakdown import PARTS
from numa_rl.simulator.simulator import Simulator
from numa_rl.workloads.training import TransformerTraining
from numa_rl.workloads.training_tasks import COMPUTING, Kind

SMALL = """
description = "Two sockets train a small model"
machine = "chapter-2-socket"

[workload]
family = "transformer-training"
layers = 2
width = 256
heads = 4
context = 64
model_parallel = 2
data_parallel = 1
pipeline_parallel = 1
micro_batches = 2
layers_per_task = 2
lanes = 4
num_steps = 1
message_bytes = 16e6

[reward]
reference_s = 1e-4
beta = 0.01

[simulation]
window_s = 2e-4
"""
QUICK = ("--imitation.rounds", "2", "--imitation.epochs", "1", "--imitation.episodes", "2")


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return load_scenario(path)


def figures(step_s: float = 1.0, latency_s: float = 10e-9, dropped: int = 0) -> Figures:
    return Figures(step_s, 0.6, 0.2, 0.1, 0.1, 0.3, 0.5, 0.2, 0.4, latency_s, dropped)


# The chapter's own figures.


def test_shares_of_printed_time_are_all_of_it():
    assert sum(BEFORE.time or ()) == pytest.approx(1.0)
    assert sum(AFTER.time or ()) == pytest.approx(1.0)


def test_the_chapters_figures_imply_three_gains_and_its_own_start_forbids_the_largest():
    assert [round(gain, 2) for gain in IMPLIED_GAINS.values()] == [1.51, 1.62, 2.4]
    assert round(MOST_GAIN, 2) == 1.9
    assert IMPLIED_GAINS["text"] > MOST_GAIN


# Rows and targets.


def test_a_row_is_compared_with_the_first_and_with_one_socket():
    rows = Rows(figures(2.0, 20e-9), one_socket_s=8.0, num_sockets=8)
    row = rows.add("half the time", RowKind.STEP, figures(1.0, 13e-9))
    assert (row.gain, row.efficiency) == (2.0, 1.0)
    assert row.latency_change == pytest.approx(-0.35)


def test_who_dropped_tasks_is_never_the_best():
    rows = Rows(figures(), 1.0, 1)
    rows.add("fast but wrong", RowKind.RULE, figures(0.1, dropped=1))
    slow = rows.add("slow", RowKind.RULE, figures(0.9))
    rows.add("no rule", RowKind.STEP, figures(0.5))
    assert best(rows.made, [RowKind.RULE]) is slow
    assert best(rows.made, [RowKind.LEARNED]) is None


def test_targets_are_those_of_the_better_of_hand_tuned_and_learned():
    rows = Rows(figures(1.0), one_socket_s=2.4, num_sockets=8)
    hand, learned = (rows.add("", RowKind.STEP, figures(each)) for each in (0.5, 0.4))
    assert targets(hand, None) == {
        "throughput >= 2.4x": False,
        "efficiency >= 85%": False,
        "remote time <= 7%": False,
    }
    with_both = targets(hand, learned)
    assert with_both["throughput >= 2.4x"]
    assert with_both["learned >= hand-tuned"]
    assert not targets(learned, hand)["learned >= hand-tuned"]


# Configurations.


def test_every_split_of_eight_is_tried_once_and_does_the_same_arithmetic():
    scenario = load_scenario("case-200t")
    found = list(splits(training_of(scenario), 8))
    assert len(found) == len({split_name(each) for each in found}) == 10
    flops = []
    for each in found:
        workload = each.generate(np.random.default_rng(0), 1)
        flops.append(workload.flops[:, np.isin(each.task_kind, COMPUTING)].sum(dtype=np.float64))
    np.testing.assert_allclose(flops, flops[0], rtol=1e-5)


def test_the_steps_of_the_chapter_change_one_thing_after_the_other():
    family = training_of(load_scenario("case-200t"))
    first, second = initial(family, 8), hierarchical(family, 8)
    assert (first.data_parallel, first.algorithm, first.message_bytes) == (8, "ring", 1e6)
    assert replace(second, algorithm="ring", message_bytes=1e6, group_ranks=first.group_ranks) == first
    assert second.algorithm == "hierarchical"


def test_on_one_socket_nothing_is_remote_and_nothing_is_sent(scenario: Scenario):
    alone = on_one_socket(scenario)
    found = Play(2).figures(alone)
    assert (found.remote, found.remote_bytes, found.busiest_link, found.mean_link) == (0.0, 0.0, 0.0, 0.0)
    assert found.latency_s == pytest.approx(10e-9)
    assert not alone.episodes(Split.TEST, 1).overhead_s.any()


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"family": "all-reduce"}, "family must be transformer-training"),
        ({"machine": "r815"}, "machine must be one of chapter-2-socket, chapter-4-socket, chapter-8-socket"),
        ({"machine": "chapter-4-socket"}, "must be 4, a rank for each socket, got 2"),
    ],
)
def test_what_the_study_cannot_play_is_refused(numa_rl: Run, change: dict[str, str], rule: str):
    text = SMALL
    for name, value in change.items():
        start = text.index(f"{name} = ")
        text = text[:start] + f'{name} = "{value}"' + text[text.index("\n", start) :]
    if change.get("family"):
        text = text[: text.index("layers =")] + text[text.index("[reward]") :]
    Path("odd.toml").write_text(text)
    refused(numa_rl("study", "case-200t", "--scenario", "odd.toml", "--skip-learned"), rule)


# Measuring.


def test_figures_are_in_range_and_time_is_all_told(scenario: Scenario):
    for configuration in (scenario, with_program(scenario, initial(training_of(scenario), 2))):
        for scheduler in (None, first_touch(scenario)):
            found = Play(3).figures(configuration, scheduler)
            assert sum(found.shares) == pytest.approx(1.0)
            assert all(getattr(found, name) >= 0.0 for name in PARTS)
            assert 0.0 <= found.mean_link <= found.busiest_link
            assert 0.0 <= found.remote_bytes <= 1.0
            assert 10e-9 <= found.latency_s <= 25e-9  # one hop at most
            assert found.dropped == 0


def test_a_study_plays_on_one_machine(scenario: Scenario):
    world = world_of(scenario, Split.TEST, 1, 0)
    two = replace(world, topologies=(scenario.topology, CHAPTER_MACHINES[2]))
    with pytest.raises(ValueError, match="a study plays on one machine, got 2"):
        measure(HandTuned(training_of(scenario)), two, training_of(scenario).task_step >= 0, 1)


# The study.


def test_the_chapters_rows_come_in_its_order(scenario: Scenario):
    rows = play_steps(scenario, Play(2)).made
    assert [row.name.split(":")[0].split()[0] for row in rows] == ["initial", "+", "+", "+"]
    assert [row.printed is not None for row in rows] == [True] * 4
    assert rows[0].gain == 1.0
    assert rows[0].latency_change == 0.0


def test_splits_come_fastest_first(scenario: Scenario):
    found = play_splits(scenario, Play(2))
    assert set(found) == {"MP1 DP2 PP1", "MP2 DP1 PP1", "MP1 DP1 PP2"}
    times = [each.step_s for each in found.values()]
    assert times == sorted(times)


def test_scaling_starts_at_one_socket(scenario: Scenario):
    points = scaling(scenario, Play(2))
    assert [(point.growth, point.sockets) for point in points] == [
        (growth, sockets) for growth in (Growth.STRONG, Growth.WEAK) for sockets in (1, 2)
    ]
    for point in points:
        if point.sockets == 1:
            assert point.best_efficiency == 1.0
            assert point.best_split == "MP1 DP1 PP1"


def test_the_case_itself_is_among_the_inputs_tried(scenario: Scenario):
    found = sensitivity(scenario, Play(2))
    case = next(each for each in found if each.is_case)
    rows = play_steps(scenario, Play(2)).made
    assert case.gain == pytest.approx(rows[-1].gain)
    assert case.efficiency == pytest.approx(rows[-1].efficiency)
    assert case.initial_efficiency == pytest.approx(rows[0].efficiency)


def test_the_real_case_gains_what_the_chapter_says_and_more():
    scenario = load_scenario("case-200t")
    rows = play_steps(scenario, Play(1)).made
    assert [round(row.gain) for row in rows[:1]] == [1]
    gains = [row.gain for row in rows]
    assert gains == sorted(gains)
    assert all(targets(rows[-1], None).values())


# The command.


def test_the_command_ends_with_tables_a_figure_and_all_figures(numa_rl: Run):
    Path("small.toml").write_text(SMALL)
    command = ("study", "case-200t", "--scenario", "small.toml", "--untuned", "--episodes", "2")
    ended = numa_rl(*command, "--skip-learned", "--json", "out.json", "--plot", "out.png")
    assert ended.code == 0
    assert "the chapter" in ended.out
    assert "contradict each other" in ended.out
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")
    kinds = [row["kind"] for row in ended.json["rows"]]
    assert kinds[:4] == ["step"] * 4
    assert set(kinds) == {"step", "rule", "planner"}
    again = numa_rl(*command, "--skip-learned", "--json", "again.json")
    assert again.out == ended.out
    assert json.loads(Path("again.json").read_text()) == ended.json


def test_the_command_trains_a_policy_and_takes_one_that_is_trained(numa_rl: Run):
    Path("small.toml").write_text(SMALL)
    command = ("study", "case-200t", "--scenario", "small.toml", "--untuned", "--episodes", "1")
    trained = numa_rl(*command, *QUICK, "--out", "run/policy.safetensors", "--json", "out.json")
    assert trained.code == 0
    assert "round 2/2: as the teacher" in trained.out
    row = trained.json["rows"][-1]
    assert row["kind"] == "learned"
    given = numa_rl(*command, "--policy", "run/policy.safetensors", "--json", "out.json")
    assert given.json["rows"][-1] == row
    assert "learned >= hand-tuned" in given.json["targets"]


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (("--policy", "nowhere.safetensors"), "nowhere.safetensors"),
        (("--policy", "small.toml"), "small.toml"),
        (("--policy", "small.toml", "--skip-learned"), "only one of them can be given"),
        (("--scenario", "nowhere"), "scenario must be one of"),
        (("--episodes", "0"), "--episodes must be >= 1"),
        (("--seed", "-1"), "--seed must be >= 0"),
        (("--plot", "out.jpg"), "--plot must be a .png file"),
        (("--json", "."), "--json must be a file that can be written"),
        (("--imitation.rounds", "0"), "rounds must be >= 1"),
        (("--out", "."), "--out must be a file that can be written"),
    ],
)
def test_bad_input_is_one_line(numa_rl: Run, arguments: tuple[str, ...], rule: str):
    Path("small.toml").write_text(SMALL)
    scenario = () if "--scenario" in arguments else ("--scenario", "small.toml")
    refused(numa_rl("study", "case-200t", *scenario, *arguments), rule)


def test_every_machine_of_the_study_is_the_chapters():
    assert [machine.num_nodes for machine in CHAPTER_MACHINES.values()] == list(CHAPTER_MACHINES)
    assert isinstance(training_of(load_scenario("case-200t")), TransformerTraining)


# Teaching.


def test_the_teacher_keeps_a_rank_where_its_checkpoint_was_put(scenario: Scenario):
    family = training_of(scenario)
    teacher = Teacher(family, PricedGreedy(), 2)
    world = world_of(scenario, Split.TRAIN, 2, 0)
    simulator = Simulator(world.topologies, world.workload, 2, window_s=world.window_s)
    simulator.reset([0, 1])
    observer = Observer(simulator, world.weights, ObservationKind.FULL)
    home = np.array([[0, 1], [1, 0]])  # of each rank, in each row
    for task in range(world.workload.num_tasks):
        told, rank = teacher.actions(task, observer.observe()), family.task_rank[task]
        placed = np.repeat(home[:, rank, None], 2, axis=1)
        if family.task_kind[task] not in (Kind.CHECKPOINT, Kind.ACTIVATION_SUM):
            np.testing.assert_array_equal(told, placed)
        teacher.saw(task, simulator.step(placed).data_node)


def test_a_taught_policy_is_the_same_for_the_same_seed(scenario: Scenario):
    world = world_of(scenario, Split.TRAIN, 2, 0)
    config = ImitationConfig(episodes=1, rounds=2, epochs=1)
    found: list[tuple[int, float, float]] = []
    policies = [
        imitate(world, world, training_of(scenario), PricedGreedy(), config, lambda *told: found.append(told))
        for _ in range(2)
    ]
    assert found[:2] == found[2:]
    assert found[0][:2] == (0, 1.0)  # the teacher plays the first round itself
    one, two = (policy.state_dict() for policy in policies)
    for name, values in one.items():
        np.testing.assert_array_equal(values.numpy(), two[name].numpy())

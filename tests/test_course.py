"""Teaching one policy many worlds: lessons by number, exams, and going on as if a run had not been stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_suite import small

from agents.evaluation import evaluate
from agents.ppo import course as course_module
from agents.ppo.checkpoint import read_labels, write_labels
from agents.ppo.config import TeacherConfig, TrainingConfig
from agents.ppo.course import Course, Exam, Lesson
from agents.ppo.storage import load_policy, read_tensors
from agents.ppo.teacher import Labels, by_size
from agents.ppo.training import Progress
from agents.rules.greedy import PricedGreedy
from envs.reward import RewardWeights
from envs.world import World
from experiments.suite.lessons import SuiteLessons, suite_exams
from numa_rl.machines.builders import four_socket, two_socket
from numa_rl.workloads.synthetic import SyntheticStream

RULE = PricedGreedy(congestion_price=0.8, crowding_price=2.0, migration_share=0.4)
TEACHER = TeacherConfig(
    labels=96, labels_per_update=16, lessons=2, num_candidates=4, num_random=1, depth=3, stride=3, memory=2,
    batch_size=8, learning_rate=1e-2, num_threads=1,
)  # fmt: skip
CONFIG = TrainingConfig(seed=5, node_width=6, pair_width=5, validate_every=2, teacher=TEACHER)


def world(nodes: int, seed: int, num_episodes: int = 3) -> World:
    machine = two_socket() if nodes == 2 else four_socket()
    family = SyntheticStream(num_tasks=12, num_objects=5)
    workload = family.generate(np.random.default_rng(seed), num_episodes)
    return World(workload, (machine,), RewardWeights(reference_s=0.05), 0.2)


def lessons(update: int) -> Sequence[Lesson]:
    return [Lesson(f"{nodes} nodes", world(nodes, 100 * update + nodes), RULE) for nodes in (2, 4)]


@pytest.fixture(scope="module")
def exams() -> list[Exam]:
    judged = [(f"exam {nodes}", world(nodes, 7)) for nodes in (2, 4)]
    return [Exam(name, episodes, float(evaluate(RULE, episodes).cost.mean())) for name, episodes in judged]


@pytest.fixture(scope="module")
def make(exams: list[Exam]) -> Callable[..., Course]:
    def course(folder: Path, config: TrainingConfig = CONFIG, **changes: Any) -> Course:
        return Course(**{
            "lessons": lessons, "exams": exams, "rule": RULE, "config": config, "folder": folder, "about": {"cells": 2},
            **changes,
        })  # fmt: skip

    return course


@pytest.fixture(scope="module")
def whole(make: Callable[..., Course], tmp_path_factory: pytest.TempPathFactory) -> tuple[Course, list[Progress]]:
    seen: list[Progress] = []
    course = make(tmp_path_factory.mktemp("whole"), on_progress=seen.append)
    course.run()
    return course, seen


def weights(course: Course) -> list[np.ndarray]:
    return [parameter.detach().numpy().copy() for parameter in course.policy.parameters()]


def test_a_run_leaves_a_policy_a_checkpoint_and_events(whole):
    names = sorted(path.name.partition(".tfevents")[0] for path in whole[0].folder.iterdir())
    assert names == ["checkpoint.safetensors", "events.out", "policy.safetensors"]


def test_every_update_is_reported_and_judged_when_it_is_time(whole):
    seen = whole[1]
    assert [(progress.update, progress.num_updates) for progress in seen] == [(i, 6) for i in range(1, 7)]
    assert [progress.validated for progress in seen] == [False, True] * 3
    assert [progress.decisions for progress in seen] == [16 * i for i in range(1, 7)]


def test_before_it_learns_the_policy_is_the_rule_and_what_is_kept_is_never_worse(make, tmp_path, whole):
    untaught = make(tmp_path, replace(CONFIG, teacher=replace(TEACHER, labels=0)))
    untaught.run()
    assert untaught.best_gap == pytest.approx(0.0, abs=1e-12)
    assert whole[0].best_gap <= 0.0


def test_what_is_kept_is_what_the_exams_say(whole, exams):
    scheduler, about = load_policy(whole[0].policy_path)
    gaps = [evaluate(scheduler, exam.world).cost.mean() / exam.rule_cost - 1.0 for exam in exams]
    assert np.mean(gaps) == pytest.approx(whole[0].best_gap, abs=1e-12)
    assert about["validation_gap"] == whole[0].best_gap
    assert about["cells"] == 2


def test_lessons_change_the_weights(make, tmp_path, whole):
    fresh = make(tmp_path)
    assert all(
        np.abs(one - other).max() > 1e-6 for one, other in zip(weights(fresh)[:4], weights(whole[0])[:4], strict=True)
    )


def test_labels_are_spread_over_whole_episodes(make, tmp_path):
    course = make(tmp_path)
    labels = course._label(lessons(0)[1], np.random.default_rng(0))
    assert len(labels.cost) == 8  # what a lesson owes: 16 an update, two lessons
    assert labels.candidates.shape == (8, 4)
    assert (labels.spread > 0).all()


class Stop:
    def __init__(self, update: int) -> None:
        self.update = update

    def __call__(self, progress: Progress) -> None:
        if progress.update == self.update:
            raise KeyboardInterrupt


@pytest.mark.parametrize("update", [1, 2, 5])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(make, tmp_path, whole, update):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, on_progress=Stop(update)).run()
    again = make(tmp_path)
    again.resume()
    assert again.update == update
    again.run()
    assert all(np.array_equal(one, other) for one, other in zip(weights(again), weights(whole[0]), strict=True))
    assert again.best_gap == whole[0].best_gap
    kept, other = (read_tensors(course.policy_path)[0] for course in (again, whole[0]))
    assert all(torch.equal(kept[name], other[name]) for name in kept)


def test_a_run_stopped_in_the_midst_of_learning_goes_on_from_the_update_before(make, tmp_path, whole, monkeypatch):
    course, steps = make(tmp_path), [0]
    honest = course.optimizer.step

    def interrupted(*args: Any) -> None:
        honest(*args)
        steps[0] += 1
        if course.update == 2 and steps[0] % 3 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(course.optimizer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        course.run()
    again = make(tmp_path)
    again.resume()
    assert again.update == 2
    assert any(not np.array_equal(one, other) for one, other in zip(weights(again), weights(course), strict=True))
    again.run()
    assert all(np.array_equal(one, other) for one, other in zip(weights(again), weights(whole[0]), strict=True))
    assert again.best_gap == whole[0].best_gap


def test_a_second_interruption_does_not_stop_what_saves(make, tmp_path, monkeypatch):
    honest = course_module.write_tensors

    def interrupted(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        honest(*args)

    monkeypatch.setattr(course_module, "write_tensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, on_progress=Stop(2)).run()
    again = make(tmp_path)
    again.resume()
    assert again.update == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_seed_learns_something_else(make, tmp_path, whole):
    other = make(tmp_path, replace(CONFIG, seed=6))
    other.run()
    assert any(not np.array_equal(one, two) for one, two in zip(weights(other), weights(whole[0]), strict=True))


def test_a_checkpoint_of_another_run_is_refused(make, tmp_path, whole):
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors: no such file"):
        make(tmp_path).resume()
    with pytest.raises(ValueError, match=r"cells must be 3 to go on, got 2"):
        make(whole[0].folder, about={"cells": 3}).resume()
    with pytest.raises(ValueError, match=r"policy must be .* to go on"):
        make(whole[0].folder, replace(CONFIG, node_width=7)).resume()


def test_labels_of_all_sizes_are_kept_and_found_again(tmp_path):
    rng = np.random.default_rng(0)
    parts = [
        Labels(
            rng.random((3, size)).astype(np.float32), rng.integers(9, size=(3, 2)), rng.random((3, 2)), rng.random(3)
        )
        for size in (5, 7, 5)
    ]
    joined = by_size(parts)
    assert [part.observation.shape for part in joined] == [(6, 5), (3, 7)]
    write_labels(tmp_path / "labels.safetensors", joined)
    found = read_labels(tmp_path / "labels.safetensors")
    for one, other in zip(joined, found, strict=True):
        assert all(
            np.array_equal(mine, theirs) for mine, theirs in zip(vars(one).values(), vars(other).values(), strict=True)
        )


# The suite's lessons.


@pytest.fixture
def suite_lessons(tmp_path: Path) -> SuiteLessons:
    definition = small(tmp_path)
    cells = [cell for cell in definition.cells() if not cell.held_out]
    prices = {"": {"congestion_price": 2.0}, cells[0].name: {"congestion_price": 3.0}}
    return SuiteLessons(definition, cells, prices, seed=1, count=6, drawn_share=0.5)


def arrivals(lesson: Lesson) -> np.ndarray:
    return np.asarray(lesson.world.workload.arrival_s)


def test_the_lessons_of_an_update_follow_from_its_number(suite_lessons):
    one, same, other = suite_lessons(3), suite_lessons(3), suite_lessons(4)
    assert [lesson.name for lesson in one] == [lesson.name for lesson in same]
    assert all(
        np.array_equal(a.world.workload.arrival_s, b.world.workload.arrival_s) for a, b in zip(one, same, strict=True)
    )
    assert not any(
        np.array_equal(a.world.workload.arrival_s, b.world.workload.arrival_s) for a, b in zip(one, other, strict=True)
    )


def test_lessons_are_on_training_machines_and_on_drawn_ones_and_never_on_held_out_ones(suite_lessons):
    names = [lesson.name for update in range(6) for lesson in suite_lessons(update)]
    known = {cell.name for cell in suite_lessons.cells}
    assert known <= set(names)
    drawn = [name for name in names if name not in known]
    assert 0.25 < len(drawn) / len(names) < 0.75
    assert not any("cxl-expander" in name or "graph" in name for name in names)
    none = replace(suite_lessons, drawn_share=0.0)
    assert {lesson.name for update in range(6) for lesson in none(update)} == known


def test_a_cell_is_taught_by_its_own_prices_and_a_drawn_machine_by_those_for_all(suite_lessons):
    prices = {lesson.name: lesson.rule.congestion_price for update in range(6) for lesson in suite_lessons(update)}
    own = suite_lessons.cells[0].name
    assert prices[own] == 3.0
    assert {price for name, price in prices.items() if name != own} == {2.0}


def test_exams_are_on_episodes_of_their_own(suite_lessons):
    exams = suite_exams(suite_lessons.cells, {}, 2)
    assert [exam.name for exam in exams] == [cell.name for cell in suite_lessons.cells]
    taught = np.concatenate([lesson.world.workload.arrival_s for lesson in suite_lessons(0)])
    for exam in exams:
        assert exam.rule_cost > 0
        assert not any(np.array_equal(row, other) for row in exam.world.workload.arrival_s for other in taught)

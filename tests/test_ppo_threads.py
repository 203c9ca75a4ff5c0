"""Threads for torch: more only where they clearly win."""

import os
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from agents.ppo import threads
from agents.ppo.config import PolicyConfig
from agents.ppo.scorer import PairScorer
from agents.ppo.threads import STEPS, WARM_UP, gradient_step, measured_threads


@pytest.fixture(autouse=True)
def one_thread_afterwards() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def clock_of(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int, int], float]) -> Callable[[], None]:
    """A step that takes `seconds(threads, call)` on a clock of its own."""
    now, calls = [0.0], [0]

    def step() -> None:
        calls[0] += 1
        now[0] += seconds(torch.get_num_threads(), calls[0])

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return step


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        ({1: 1.0, 2: 2.0, 4: 0.1}, 1),  # two threads lose: four are not tried
        ({1: 1.0, 2: 0.9, 4: 0.1}, 1),  # two win, but not clearly
        ({1: 1.0, 2: 0.6, 4: 0.55}, 2),
        ({1: 1.0, 2: 0.6, 4: 0.3}, 4),
    ],
)
def test_more_threads_are_taken_only_while_they_clearly_win(monkeypatch, seconds, wanted):
    step = clock_of(monkeypatch, lambda count, call: seconds[count])
    assert measured_threads(step, most=4) == wanted
    assert torch.get_num_threads() == wanted


def test_one_step_that_had_to_wait_is_enough_to_stay_with_one_thread(monkeypatch):
    stalled = WARM_UP + STEPS + WARM_UP + 3
    step = clock_of(monkeypatch, lambda count, call: 30.0 if call == stalled else 1.0 / count)
    assert measured_threads(step, most=4) == 1


def test_a_slow_step_with_one_thread_does_not_speak_for_two(monkeypatch):
    step = clock_of(monkeypatch, lambda count, call: 30.0 if call == WARM_UP + 1 else 1.0)
    assert measured_threads(step, most=2) == 1


def test_the_first_steps_do_not_count(monkeypatch):
    first = {*range(1, WARM_UP + 1), *range(WARM_UP + STEPS + 1, 2 * WARM_UP + STEPS + 1)}
    step = clock_of(monkeypatch, lambda count, call: 50.0 if call in first else 1.0 / count)
    assert measured_threads(step, most=2) == 2


def test_no_more_threads_than_processors_are_tried(monkeypatch):
    monkeypatch.setattr(threads, "_idle_processors", lambda: 2)
    tried: set[int] = set()
    step = clock_of(monkeypatch, lambda count, call: 1.0 / count)
    assert measured_threads(lambda: (tried.add(torch.get_num_threads()), step())) == 2
    assert tried == {1, 2}


def test_what_loses_is_not_tried_longer_than_it_takes_to_know(monkeypatch):
    calls: list[int] = []
    step = clock_of(monkeypatch, lambda count, call: 1.0 if count == 1 else 30.0)
    assert measured_threads(lambda: (calls.append(torch.get_num_threads()), step()), most=4) == 1
    assert calls.count(2) == WARM_UP + 1


@pytest.mark.parametrize(("load", "wanted"), [(0.0, 4), (1.2, 4), (2.4, 3), (3.9, 1), (50.0, 1)])
def test_processors_that_others_use_do_not_count(monkeypatch, load, wanted):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    assert threads._idle_processors() == wanted


def test_on_a_busy_machine_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (100.0, 0.0, 0.0), raising=False)
    assert measured_threads(lambda: pytest.fail("a step may take minutes")) == 1
    assert torch.get_num_threads() == 1


def test_fewer_than_one_thread_is_refused():
    with pytest.raises(ValueError, match=r"most must be >= 1, got 0\."):
        measured_threads(lambda: None, most=0)


def test_a_gradient_step_is_measured_and_leaves_a_number_that_the_machine_has():
    layer = torch.nn.Linear(8, 8)
    count = measured_threads(lambda: layer(torch.ones(4, 8)).sum().backward(), most=2)
    assert count in (1, 2)
    assert torch.get_num_threads() == count


def test_the_step_that_is_measured_teaches_nothing():
    scorer = PairScorer(PolicyConfig(node_width=6, pair_width=5))
    before = {name: value.clone() for name, value in scorer.state_dict().items()}
    gradient_step(scorer, rows=8)
    assert all(torch.equal(before[name], value) for name, value in scorer.state_dict().items())
    assert all(parameter.grad is None for parameter in scorer.parameters())

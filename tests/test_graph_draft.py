from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playing import decide, started
from strategies import toy_machine

from numa_rl.communication.schedules import hierarchical, ring, run
from numa_rl.workloads.graph_draft import GraphDraft, Messages, add_all_reduce
from numa_rl.workloads.workload import NEVER, NO_OBJECT

PACE = {"flops_per_s": 1.0, "bytes_per_s": 1.0}


# Known answers.


def two_workers() -> GraphDraft:
    """Worker 0 makes a, then b; worker 1 reads a, then b; all added worker by worker where they can be."""
    draft = GraphDraft()
    a, b, c = (draft.add_object(size) for size in (10.0, 20.0, 30.0))
    draft.add_task(0, a, flops=5.0)
    draft.add_task(0, b, flops=5.0)
    draft.add_task(1, c, flops=1.0, reads=[(a, 2.0)])
    draft.add_task(1, c, flops=1.0, reads=[(b, 2.0)], write_fraction=0.5, overhead_s=0.25)
    return draft


def test_tasks_stand_in_the_order_in_which_they_would_start():
    workload = two_workers().workload("two", num_episodes=3, **PACE)
    np.testing.assert_array_equal(workload.object[0], [0, 1, 2, 2])  # b starts at 5, as c does, and was added before
    np.testing.assert_array_equal(workload.inputs[2, :, 0], [NO_OBJECT, NO_OBJECT, 0, 1])
    np.testing.assert_array_equal(workload.freed_after[1], [2, 3, 3])
    np.testing.assert_array_equal(workload.overhead_s[0], [0.0, 0.0, 0.0, 0.25])
    assert workload.is_one_graph


def test_a_task_that_starts_earlier_comes_first_though_it_was_added_later():
    draft = GraphDraft()
    first, second, other = (draft.add_object(1.0) for _ in range(3))
    draft.add_task(0, first, flops=5.0)
    draft.add_task(0, second, flops=5.0)
    draft.add_task(1, other, flops=1.0)
    np.testing.assert_array_equal(draft.order(**PACE), [0, 2, 1])
    np.testing.assert_array_equal(draft.workers(**PACE), [0, 1, 0])
    np.testing.assert_array_equal(draft.workload("x", num_episodes=1, **PACE).object[0], [first, other, second])


def test_the_order_may_be_that_of_a_nominal_draft():
    draft = GraphDraft(two_workers())
    objects = [draft.add_object(1.0) for _ in range(3)]
    for worker, obj in ((0, objects[0]), (0, objects[1]), (1, objects[2]), (1, objects[2])):
        draft.add_task(worker, obj, flops=np.array([9.0, 1.0]))  # by itself the third would start with the first
    np.testing.assert_array_equal(draft.order(**PACE), two_workers().order(**PACE))
    draft.add_task(0, objects[0])
    with pytest.raises(ValueError, match="the nominal draft must have 5 tasks, got 4"):
        draft.order(**PACE)


def test_who_overwrites_an_object_comes_after_those_who_read_it():
    draft = GraphDraft()
    shared, slow, result = (draft.add_object(1.0) for _ in range(3))
    draft.add_task(0, shared)
    draft.add_task(1, slow, flops=100.0)
    draft.add_task(1, result, reads=[(shared, 1.0)])  # not before 100
    draft.add_task(0, shared)  # nominally free at 0
    np.testing.assert_array_equal(draft.order(**PACE), [0, 1, 2, 3])


def test_objects_grow_and_some_are_kept_or_only_read():
    draft = GraphDraft()
    cache, weights = draft.add_object(1.0, kept=True), draft.add_object(5.0, read_only=True)
    draft.add_task(0, cache)
    draft.add_task(0, weights)
    draft.add_task(0, cache, object_bytes=np.array([2.0, 3.0]), reads=[(weights, np.array([5.0, 4.0]))])
    workload = draft.workload("x", num_episodes=2, **PACE)
    np.testing.assert_array_equal(workload.object_bytes, [[1, 5, 2], [1, 5, 3]])
    np.testing.assert_array_equal(workload.input_bytes[:, 2, 0], [5, 4])
    np.testing.assert_array_equal(workload.freed_after[0], [NEVER, 2])
    np.testing.assert_array_equal(workload.read_only[0], [False, True])


@pytest.mark.parametrize(("num_bytes", "seconds"), [(0.0, 2.0), (1.0, 2.0), (10.0, 2.0), (11.0, 4.0), (100.0, 20.0)])
def test_every_message_begun_has_its_overhead(num_bytes, seconds):
    assert Messages(num_bytes=10.0, overhead_s=2.0).seconds(num_bytes) == seconds


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda draft: draft.add_task(0, 7), r"task 1 must use objects in 0\.\.1, got 7"),
        (lambda draft: draft.add_task(0, 0, reads=[(1, 1.0)]), "task 1 must read objects that were made before, got 1"),
        (lambda draft: draft.add_task(0, 1, reads=[(0, 1.0), (0, 1.0)]), "task 1 must use each object once"),
        (lambda draft: draft.add_task(0, 0, reads=[(0, 1.0)]), r"task 1 must use each object once, got 0 and inputs"),
    ],
)
def test_a_graph_that_makes_no_sense_is_refused(add, message):
    draft = GraphDraft()
    draft.add_object(1.0)
    draft.add_object(1.0)
    draft.add_task(0, 0)
    with pytest.raises(ValueError, match=message):
        add(draft)


@pytest.mark.parametrize("early", [1.0, float("nan"), np.array([3.0, 1.0])])
def test_a_task_that_may_start_before_one_added_earlier_is_refused(early):
    draft = GraphDraft()
    first, second = draft.add_object(1.0), draft.add_object(1.0)
    draft.add_task(0, first, arrival_s=2.0)
    with pytest.raises(ValueError, match=r"task 1 must not arrive before the one added before it \(2.0\), got"):
        draft.add_task(1, second, reads=[(first, 1.0)], arrival_s=early)


def test_messages_out_of_range_and_empty_graphs_are_refused():
    with pytest.raises(ValueError, match="num_bytes must be > 0, got nan"):
        Messages(num_bytes=float("nan"))
    with pytest.raises(ValueError, match="overhead_s must be finite and >= 0, got -1"):
        Messages(overhead_s=-1.0)
    with pytest.raises(ValueError, match="nothing: a graph must have a task, got none"):
        GraphDraft().workload("nothing", num_episodes=1, **PACE)


# Laws.


@st.composite
def drafts(draw: st.DrawFn) -> GraphDraft:
    draft, made = GraphDraft(), []
    for _ in range(draw(st.integers(1, 15))):
        obj = draw(st.sampled_from([*made, None]))
        if obj is None:
            obj = draft.add_object(1.0)
        others = sorted(set(made) - {obj})
        reads = draw(st.lists(st.sampled_from(others), unique=True, max_size=3)) if others else []
        figures = st.sampled_from([0.0, 1.0, 7.0])
        draft.add_task(
            draw(st.integers(0, 3)),
            obj,
            flops=draw(figures),
            write_fraction=draw(st.sampled_from([0.0, 1.0])) if obj in made else 1.0,
            reads=[(read, draw(figures)) for read in reads],
        )
        made = sorted({*made, obj})
    return draft


def meanings(tasks: list[tuple[int, list[int], float]]) -> list[tuple[int, ...]]:
    """Which version of each object a task reads, by updates before it: what must not depend on the order of tasks."""
    versions: dict[int, int] = {}
    seen = []
    for obj, reads, write_fraction in tasks:
        seen.append(tuple(versions.get(read, 0) for read in [obj, *reads]))
        versions[obj] = versions.get(obj, 0) + (write_fraction > 0 or obj not in versions)
    return seen


@settings(deadline=None)
@given(drafts())
def test_the_order_keeps_what_every_task_reads(draft):
    order = draft.order(**PACE)
    tasks = [(task.obj, [read for read, _ in task.reads], task.write_fraction) for task in draft._tasks]
    moved = meanings([tasks[index] for index in order])
    assert sorted(order) == list(range(len(tasks)))
    assert [moved[list(order).index(task)] for task in range(len(tasks))] == meanings(tasks)


# Two routes: the schedule of an all-reduce carried out by tasks, and by `run`.


@pytest.mark.parametrize("schedule", [ring(4), hierarchical([[0, 1], [2, 3]])])
@pytest.mark.parametrize("parts", [1, 3])
def test_the_tasks_of_an_all_reduce_add_up_what_the_schedule_does(schedule, parts):
    p, c = schedule.num_ranks, schedule.num_chunks
    draft = GraphDraft()
    vectors = [[[draft.add_object(8.0, kept=True) for _ in range(parts)] for _ in range(c)] for _ in range(p)]
    for rank, vector in enumerate(vectors):
        for obj in (obj for chunk in vector for obj in chunk):
            draft.add_task(rank, obj, num_bytes=8.0)
    add_all_reduce(draft, schedule, vectors, [[rank] for rank in range(p)], object_bytes=8.0, bytes_per_element=4)
    workload = draft.workload("sum", num_episodes=1, **PACE)
    values = np.random.default_rng(1).integers(0, 100, (p, c * parts)).astype(float)
    held = dict(zip([obj for vector in vectors for chunk in vector for obj in chunk], values.ravel(), strict=True))
    for task in range(p * c * parts, workload.num_tasks):
        obj, read = int(workload.object[0, task]), int(workload.inputs[0, task, 0])
        held[obj] = held[read] + (held[obj] if workload.flops[0, task] else 0.0)
    expected = run(schedule, values)
    np.testing.assert_array_equal(np.reshape(list(held.values()), values.shape), expected)
    np.testing.assert_array_equal(expected, np.tile(values.sum(axis=0), (p, 1)))


def test_messages_cost_the_simulator_what_they_say():
    draft = GraphDraft()
    source, target = (draft.add_object(100.0) for _ in range(2))
    for obj in (source, target):
        draft.add_task(0, obj)
    messages = Messages(num_bytes=30.0, overhead_s=0.5)
    add_all_reduce(
        draft, ring(2), [[[source]] * 2, [[target]] * 2], [[0], [1]], object_bytes=100.0, bytes_per_element=4,
        messages=messages,
    )  # fmt: skip
    workload = draft.workload("sum", num_episodes=1, **PACE)
    np.testing.assert_array_equal(workload.overhead_s[0], [0, 0, 2, 2, 2, 2])
    simulator = started(toy_machine(), workload)
    for _ in range(2):
        decide(simulator, (0, 0))
    assert decide(simulator, (0, 0))["exec_s"] == pytest.approx(2.0 + 200 / 100)

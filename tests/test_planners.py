"""Planners: HEFT against its paper and against a plain version; what each plans where the answer is known by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Play, Task, plays, seeds, toy_machine, toy_workload

from agents.accesses import accesses, creators, input_bytes
from agents.evaluation import evaluate
from agents.planners.catalog import PLANNERS, make_planner, planner_names
from agents.planners.heft import heft_schedule
from agents.rules.catalog import make_rule
from agents.scheduler import Planner
from envs.reward import RewardWeights
from envs.world import World
from numa_rl.machines.builders import eight_socket_cube, four_socket
from numa_rl.workloads.collective import AllReduce

NAMES = pytest.mark.parametrize("name", planner_names())

# The example of Topcuoglu et al., figure 2: time of ten tasks on three processors, and (from, to, communication).
PAPER_COST = [
    [14, 16, 9],
    [13, 19, 18],
    [11, 13, 19],
    [13, 8, 17],
    [12, 13, 10],
    [13, 16, 9],
    [7, 15, 11],
    [5, 11, 14],
    [18, 12, 20],
    [21, 7, 16],
]
PAPER_EDGES = np.array(
    [
        (1, 2, 18), (1, 3, 12), (1, 4, 9), (1, 5, 11), (1, 6, 14), (2, 8, 19), (2, 9, 16), (3, 7, 23),
        (4, 8, 27), (4, 9, 23), (5, 9, 13), (6, 8, 15), (7, 10, 17), (8, 10, 11), (9, 10, 13),
    ]
)  # fmt: skip


def test_the_papers_example_takes_80():
    schedule = heft_schedule(PAPER_COST, PAPER_EDGES[:, :2] - 1, PAPER_EDGES[:, 2])
    assert schedule.finish.max() == 80.0
    # Its figure 3: which processor runs what.
    assert {p: set(np.flatnonzero(schedule.node == p) + 1) for p in range(3)} == {
        0: {2, 8},
        1: {4, 6, 9, 10},
        2: {1, 3, 5, 7},
    }
    assert schedule.start[[0, 2, 3, 1, 4, 5]].tolist() == [0.0, 9.0, 18.0, 27.0, 28.0, 26.0]


def test_a_task_slips_into_a_gap_by_hand():
    # One node. Task 1 takes 5 and waits until 10; task 0 takes 1, ranks lower, and fits before it.
    schedule = heft_schedule([[1.0], [5.0]], [], [], release=[0.0, 10.0])
    assert schedule.start.tolist() == [0.0, 10.0]
    tight = heft_schedule([[1.0], [5.0]], [], [], release=[9.5, 10.0])
    assert tight.start.tolist() == [15.0, 10.0]


def test_two_cores_run_two_tasks_and_data_is_fetched_from_its_holder_by_hand():
    assert heft_schedule([[4.0], [4.0], [4.0]], [], [], cores=[2]).finish.tolist() == [4.0, 4.0, 8.0]
    # Task 2 waits for task 1, but its data lies with task 0 on node 0: nothing to fetch there, 1 + 3 x 2 on node 1.
    options: dict[str, Any] = {"time_per_unit": [[0, 2], [2, 0]], "startup": [[0, 1], [1, 0]]}
    cost = [[1.0, 9.0], [9.0, 2.0], [8.0, 1.0]]
    edges, volume = [(0, 1), (1, 2)], [0.0, 3.0]
    at_writer = heft_schedule(cost, edges, volume, **options)
    assert at_writer.node.tolist() == [0, 1, 1]
    assert at_writer.finish.tolist() == [1.0, 3.0, 4.0]
    at_creator = heft_schedule(cost, edges, volume, holder=[0, 0], **options)
    assert at_creator.finish.tolist() == [1.0, 3.0, 11.0]  # on node 1 after 1 + 6, or 8 on node 0: the same


def plain_heft(cost: np.ndarray, edges: np.ndarray, volume: np.ndarray, cores: list[int]) -> list[float]:
    """When each task ends, written from the paper with lists and nothing else."""
    n, p = cost.shape
    pairs = p * (p - 1)

    def rank(task: int) -> float:
        after = [(v if pairs else 0.0) + rank(b) for (a, b), v in zip(edges, volume, strict=True) if a == task]
        return float(cost[task].mean()) + max(after, default=0.0)

    done: dict[int, tuple[int, float]] = {}
    busy: dict[tuple[int, int], list[tuple[float, float]]] = {(q, c): [] for q in range(p) for c in range(cores[q])}
    for task in sorted(range(n), key=lambda task: (-round(rank(task), 9), task)):
        options = []
        for (q, c), taken in busy.items():
            ready = 0.0
            for (a, b), v in zip(edges, volume, strict=True):
                if b == task:
                    node, finish = done[a]
                    ready = max(ready, finish + (0.0 if node == q else v))
            starts = [ready, *(end for _, end in taken if end > ready)]
            lasts = cost[task, q]
            begin = min(s for s in starts if all(s + lasts <= start or s >= end for start, end in taken))
            options.append((begin + lasts, q, c, begin))
        finish, q, c, begin = min(options)
        busy[q, c].append((begin, finish))
        done[task] = (q, finish)
    return [done[task][1] for task in range(n)]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    n, p = draw(st.integers(1, 10)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(seeds))
    every = [(a, b) for a in range(n) for b in range(a + 1, n)]
    edges = np.array([pair for pair in every if rng.random() < 0.35], np.int64).reshape(-1, 2)
    cores = rng.integers(1, 3, p).tolist()
    return rng.uniform(1.0, 9.0, (n, p)), edges, rng.uniform(0.5, 9.0, len(edges)), cores


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_the_kernel_does_what_the_paper_says(graph: tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]):
    cost, edges, volume, cores = graph
    schedule = heft_schedule(cost, edges, volume, cores=cores)
    np.testing.assert_allclose(schedule.finish, plain_heft(cost, edges, volume, cores), rtol=1e-9)


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_tasks_wait_for_what_they_need_and_cores_run_one_at_a_time(graph: Any):
    cost, edges, volume, cores = graph
    schedule = heft_schedule(cost, edges, volume, cores=cores)
    np.testing.assert_allclose(schedule.finish - schedule.start, cost[np.arange(len(cost)), schedule.node])
    for (before, after), delay in zip(edges, volume, strict=True):
        apart = schedule.node[before] != schedule.node[after]
        assert schedule.start[after] >= schedule.finish[before] + apart * delay - 1e-9
    for node, count in enumerate(cores):
        here = schedule.node == node
        running = [(here & (schedule.start <= t) & (schedule.finish > t)).sum() for t in schedule.start]
        assert max(running, default=0) <= count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cost": [1.0, 2.0]}, r"cost must have shape \(any, any\), got \(2,\)"),
        ({"cost": [[np.nan], [1.0]]}, "cost must be finite and >= 0, got nan"),
        ({"volume": [-1.0]}, "volume must be finite and >= 0, got -1"),
        ({"volume": []}, r"volume must have shape \(1,\), got \(0,\)"),
        ({"cores": [0]}, "not all 0"),
        ({"holder": [2]}, "holder must be a task in 0..1"),
        ({"edges": [(1, 1)]}, "cycle"),
        ({"release": [0.0]}, r"release must have shape \(2,\)"),
    ],
)
def test_graphs_that_cannot_be_are_refused(changes: dict[str, Any], message: str):
    given_graph: dict[str, Any] = {"cost": [[1.0], [1.0]], "edges": [(0, 1)], "volume": [1.0]} | changes
    with pytest.raises(ValueError, match=message):
        heft_schedule(**given_graph)


def episode() -> Any:
    """Object 0 is created by task 0, written by 1, read by 2 as an input, freed after 2 and created anew by 3."""
    tasks = [
        Task(0, num_bytes=10.0, write_fraction=1.0),
        Task(0, num_bytes=20.0, write_fraction=0.5),
        Task(1, num_bytes=30.0, reads=((0, 5.0),)),
        Task(0, num_bytes=40.0),
        Task(1, num_bytes=50.0, reads=((0, 6.0),)),
        Task(1, num_bytes=60.0, reads=((2, 7.0),)),
    ]
    return toy_workload(tasks, freed_after={0: 2})


def test_who_takes_what_from_whom_by_hand():
    workload = episode()
    assert creators(workload, 0).tolist() == [0, 0, 2, 3, 2, 2]
    # Object 2 is created by nobody. Task 4 writes nothing, so task 5 waits for object 1's creator.
    taken = accesses(workload, 0)
    rows = list(zip(*(column.tolist() for column in taken), strict=True))
    assert rows == [
        (1, 0, 0, 20.0, True),
        (2, 1, 0, 5.0, False),
        (4, 2, 2, 50.0, True),
        (4, 3, 3, 6.0, False),
        (5, 2, 2, 60.0, True),
    ]
    assert input_bytes(taken, 6).tolist() == [0.0, 0.0, 5.0, 0.0, 6.0, 0.0]


def two_chains(length: int = 3) -> Any:
    """Tasks on object 0 and tasks on object 1, in turn; each writes what the next one takes."""
    chain = [(task % 2, task) for task in range(2 * length)]
    return toy_workload([Task(obj, flops=100.0, num_bytes=100.0, write_fraction=1.0) for obj, _ in chain])


@NAMES
def test_two_chains_run_on_a_node_each_by_hand(name: str):
    world = World(two_chains(), (toy_machine(),), RewardWeights(), 1.0)
    plan = make_planner(name).plan(world, np.zeros(1, int), np.zeros(1, int))[0]
    assert set(plan[0].tolist()) in ({0}, {1})
    np.testing.assert_array_equal(plan[::2], np.broadcast_to(plan[0], (3, 2)))
    np.testing.assert_array_equal(plan[1::2], 1 - plan[::2])


def test_parts_that_communicate_are_neighbours_by_hand():
    # Four objects, each with a chain of its own; the chains of 0 and 1 read each other, and so do those of 2 and 3. On
    # two pairs of nodes, near each other within a pair, each pair of chains has a pair of nodes.
    reads = [1, 0, 3, 2]
    tasks = [
        Task(obj, flops=1000.0, num_bytes=100.0, write_fraction=1.0, reads=((reads[obj], 30.0),))
        for _ in range(4)
        for obj in (0, 2, 1, 3)
    ]
    far = np.array([[1.0, 9.0, 2.0, 9.0], [9.0, 1.0, 9.0, 2.0], [2.0, 9.0, 1.0, 9.0], [9.0, 2.0, 9.0, 1.0]])
    machine = replace(toy_machine(4), latency_s=far)
    world = World(toy_workload(tasks), (machine,), RewardWeights(), 1.0)
    for name, parameters in (("graph-partition", {"starts": 8}), ("tree-match", {})):
        plan = make_planner(name, **parameters).plan(world, np.zeros(1, int), np.zeros(1, int))[0]
        node = {obj: set(plan[[task.obj == obj for task in tasks], 0].tolist()) for obj in range(4)}
        assert all(len(nodes) == 1 for nodes in node.values()), name
        pairs = {frozenset(node[0] | node[1]), frozenset(node[2] | node[3])}
        assert pairs == {frozenset({0, 2}), frozenset({1, 3})}, name


def test_heft_starts_no_task_before_it_arrives_by_hand():
    # Each takes 1 s on node 0 and 1.5 s on node 1. At once, the second one ends on node 0 after 2 s and on node 1 after
    # 1.5 s; when it arrives after the first has ended, node 0 is free.
    machine = toy_machine(flops_per_s=[100.0, 100.0 / 1.5])
    tasks = [Task(0, arrival_s=0.0, flops=100.0), Task(1, arrival_s=0.0, flops=100.0)]
    apart = [tasks[0], replace(tasks[1], arrival_s=5.0)]
    for episode_tasks, nodes in ((tasks, [0, 1]), (apart, [0, 0])):
        world = World(toy_workload(episode_tasks), (machine,), RewardWeights(), 1.0)
        plan = make_planner("heft").plan(world, np.zeros(1, int), np.zeros(1, int))[0]
        assert plan[:, 0].tolist() == nodes


@pytest.mark.parametrize(("name", "nodes"), [("heft", [0, 0]), ("heft-nodes", [0, 1])])
def test_the_cores_of_a_node_are_processors_of_their_own_or_one_together(name: str, nodes: list[int]):
    # Either task takes 1 s on one of node 0's two cores and 0.9 s on both together; on node 1 it takes 1.5 s. With a
    # core each, both end after 1 s. One after the other on both cores, the second would end after 1.8 s.
    rate = np.array([100.0, 100.0 / 1.5])
    machine = toy_machine(cores=[2, 1], flops_per_s=rate if name == "heft" else rate / [1.8, 1.0])
    world = World(toy_workload([Task(0, flops=100.0), Task(1, flops=100.0)]), (machine,), RewardWeights(), 1.0)
    plan = make_planner(name).plan(world, np.zeros(1, int), np.zeros(1, int))[0]
    assert plan[:, 0].tolist() == nodes


@NAMES
@given(play=plays(num_episodes=3, min_nodes=1))
@settings(max_examples=25, deadline=None)
def test_tasks_run_on_nodes_with_cores_and_data_stays_with_who_made_it(name: str, play: Play):
    world = World(play.workload, (play.topology,), RewardWeights(), play.window_s)
    rows = np.arange(3)
    plan = make_planner(name).plan(world, 0 * rows, rows)
    assert plan.shape == (3, play.workload.num_tasks, 2)
    assert (play.topology.cores[plan[:, :, 0]] > 0).all()
    for e in rows:
        np.testing.assert_array_equal(plan[e, :, 1], plan[e, creators(play.workload, e), 0])
    np.testing.assert_array_equal(plan[1:2], make_planner(name).plan(world, np.zeros(1, int), rows[1:2]))


@NAMES
def test_each_is_a_planner_that_evaluation_accepts(name: str):
    planner = make_planner(name)
    assert isinstance(planner, Planner)
    family = AllReduce(num_ranks=4, num_steps=2)
    world = World(family.generate(np.random.default_rng(0), 3), (four_socket(),), RewardWeights(reference_s=0.01), 0.02)
    cost = evaluate(planner, world).cost
    assert (cost < evaluate(make_rule("random"), world).cost).all()
    np.testing.assert_array_equal(cost, evaluate(planner, world, batch_rows=1).cost)


def test_a_cube_of_eight_nodes_gets_work_everywhere():
    family = AllReduce(num_ranks=8, num_steps=1)
    world = World(family.generate(np.random.default_rng(0), 1), (eight_socket_cube(),), RewardWeights(), 0.02)
    for name in ("graph-partition", "tree-match"):
        plan = make_planner(name).plan(world, np.zeros(1, int), np.zeros(1, int))[0]
        assert set(plan[:, 0].tolist()) == set(range(8)), name


def test_the_catalog_names_what_is_wrong():
    assert planner_names() == list(PLANNERS) == ["heft", "heft-nodes", "graph-partition", "tree-match"]
    with pytest.raises(
        ValueError, match="planner must be one of heft, heft-nodes, graph-partition, tree-match, got 'peft'"
    ):
        make_planner("peft")
    with pytest.raises(ValueError, match=r"heft: parameter must be one of \(none\), got 'seed'"):
        make_planner("heft", seed=1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"method": "scissors"}, "method must be one of multilevel, .*, got 'scissors'"),
        ({"imbalance": -0.1}, "imbalance must be finite and >= 0, got -0.1"),
        ({"imbalance": np.nan}, "imbalance must be finite and >= 0, got nan"),
        ({"starts": 0}, "starts must be a whole number >= 1, got 0"),
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
    ],
)
def test_bad_parameters_of_the_partition_are_refused(parameters: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=f"graph-partition: {message}"):
        make_planner("graph-partition", **parameters)

"""Looking ahead knows nothing of what is to come in a stream, and is never worse than others' plans in a graph."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import SMALL_SCENARIO
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from small_suite import write_definition
from strategies import Play, Task, plays, seeds, toy_machine, toy_workload, workloads

from agents.evaluation import evaluate
from agents.lookahead import Lookahead
from agents.lookahead_futures import allocate_draft, allocate_futures, allocate_past
from agents.lookahead_kernel import drop_hopeless, gain_bounds, make_up, remember
from agents.lookahead_scores import BestScore, LogitScores, PricedScores
from agents.oracle.plays import played
from agents.planners.catalog import make_planner
from agents.ppo.config import PolicyConfig
from agents.ppo.policy import PlacementPolicy
from agents.ppo.storage import load_policy, save_policy
from agents.rules.catalog import make_rule
from agents.rules.greedy import PricedGreedy
from agents.scheduler import Planner
from envs.observation import ObservationLayout
from envs.reward import RewardWeights
from envs.world import Rows, World
from experiments.compare import Compare
from experiments.scenario import Split
from experiments.suite.command import Suite
from experiments.suite.definition import STANDARD, read_definition
from experiments.suite.players import LearnedPlayer, LookaheadPlayer
from experiments.tune import world_of
from numa_rl.machines.builders import eight_socket_cube, four_socket, two_socket
from numa_rl.simulator.state import Tasks, compile_tasks
from numa_rl.workloads.catalog import make_family
from numa_rl.workloads.synthetic import SyntheticStream
from numa_rl.workloads.workload import NEVER, Workload

WEIGHTS = RewardWeights(alpha=0.7, beta=0.3, reference_s=0.05, out_of_memory_penalty=11.0)
RULE = PricedGreedy(congestion_price=0.8, crowding_price=2.0, migration_share=0.4, alpha=0.7)
THREADS = min(2, os.cpu_count() or 1)


FEW = {"candidates": 6, "depth": 6, "futures": 5, "margin": 0.5, "least_past": 1}


def ahead(**changes: Any) -> Lookahead:
    return Lookahead(PricedScores(RULE), RULE, **FEW | changes)


def stream(*topologies: Any, num_episodes: int = 4, num_tasks: int = 24, **changes: Any) -> World:
    family = SyntheticStream(num_tasks=num_tasks, num_objects=5, **changes)
    return World(family.generate(np.random.default_rng(2), num_episodes), topologies, WEIGHTS, 0.2)


def rows_of(world: World) -> tuple[np.ndarray, np.ndarray]:
    count = world.workload.num_episodes
    return np.zeros(count, int), np.arange(count)


def future_of(workload: Workload, t: int, draws: list[float], run_length: int = 100, memory: int = 100) -> Tasks:
    """One future of the first episode, whose next task is task t."""
    tasks = compile_tasks(workload)
    past = allocate_past(1, tasks)
    for task in range(t):
        remember(tasks, past, 0, 0, task)
    made = allocate_futures(tasks, 1, len(draws))
    draft = allocate_draft(workload.num_objects, len(draws), 1)
    make_up(tasks, past, 0, 0, t, made, 0, np.array(draws), run_length, memory, draft)
    return made


# Known answers.


def test_a_future_goes_on_as_the_past_did_by_hand():
    # Tasks come to objects 0 and 1 in turn: each finds its object at place 1, below the other one.
    tasks = [
        Task(0, 0.0, flops=10.0, size=100.0),
        Task(1, 1.0, flops=20.0, size=200.0),
        Task(0, 3.0, flops=30.0, size=100.0),
        Task(1, 6.0, flops=40.0, size=200.0, reads=((0, 7.0),)),
        Task(0, 10.0, flops=50.0, size=100.0),
        Task(1, 99.0, size=200.0),
    ]
    # Runs begin at task 4 - 1 - floor(0.3 x 4) = 2.
    made = future_of(toy_workload(tasks), 4, [0.3, 0.9, 0.3, 0.9], run_length=2).each[0]
    assert made["object"].tolist() == [0, 1, 0, 1, 0]
    assert made["arrival_s"].tolist() == [10.0, 12.0, 15.0, 17.0, 20.0]  # gaps of tasks 2 and 3
    # What comes back does what was done when it was last come back to.
    assert made["flops"].tolist() == [50.0, 40.0, 50.0, 40.0, 50.0]
    assert made["object_bytes"].tolist() == [100.0, 200.0, 100.0, 200.0, 100.0]


def test_what_was_new_is_new_again_and_is_read_where_it_lies_then():
    # A chain: every task creates an object and reads the one before it, which is then freed.
    tasks = [Task(i, float(i), flops=1.0 + i, size=10.0, reads=((i - 1, 5.0),) if i else ()) for i in range(6)]
    workload = toy_workload(tasks, freed_after={i: i + 1 for i in range(5)})
    made = future_of(workload, 4, [0.0, 0.5, 0.5])
    assert made.each["object"][0].tolist() == [4, 6, 7, 8]
    assert made.inputs["object"][0, :, 0].tolist() == [3, 4, 6, 7]
    assert made.inputs["bytes"][0, :, 0].tolist() == [5.0, 5.0, 5.0, 5.0]
    # Nobody knows yet what the task to be decided frees; those like the past free what they read.
    assert made.each["first_freed"][0].tolist() == [-1, 4, 6, 7]
    assert made.next_freed[0, [4, 6, 7]].tolist() == [-1, -1, -1]


def test_who_comes_back_for_the_first_time_does_as_the_one_drawn():
    tasks = [
        Task(0, flops=1.0, size=10.0),
        Task(0, flops=2.0, size=20.0, num_bytes=3.0),
        Task(1, flops=9.0, size=70.0),
        Task(1, flops=99.0),
    ]
    # Task 2 has just created object 1. Task 1, drawn, came back to the object on top of the stack.
    made = future_of(toy_workload(tasks[:3]), 2, [0.4]).each[0]
    assert (made["object"][1], made["flops"][1], made["bytes"][1], made["object_bytes"][1]) == (1, 2.0, 3.0, 70.0)


def test_a_gain_is_counted_less_its_standard_errors_by_hand():
    costs = np.array([[10.0, 12.0], [8.0, 8.0], [9.0, 13.0], [20.0, 22.0]])
    # Gains of the second: 2 and 4, mean 3, standard error 1; of the third 1 and -1; of the fourth -10 both.
    assert gain_bounds(costs, 1, 2, 1.5) == (1.5, 4.5)
    assert gain_bounds(costs, 2, 2, 1.5) == (-1.5, 1.5)
    candidates = np.array([50, 51, 52, 53])
    assert drop_hopeless(costs, 2, 1.6, candidates, 4) == 3  # 1.4 are sure, the third may save 1.6
    assert drop_hopeless(costs, 2, 1.4, candidates, 3) == 2
    assert candidates[:2].tolist() == [50, 51]
    assert drop_hopeless(costs, 2, 0.0, candidates, 2) == 2  # who surely saves most stays, and be it without any doubt


# Laws.


@st.composite
def changed_later(draw: st.DrawFn, pool: st.SearchStrategy[Workload]) -> tuple[Workload, Workload, int]:
    """A workload, another one that is the same up to task t in what is known when it is decided, and t."""
    workload = draw(pool)
    t = draw(st.integers(0, workload.num_tasks - 1))
    return workload, with_other_tasks_after(workload, t, np.random.default_rng(draw(seeds))), t


def with_other_tasks_after(workload: Workload, t: int, rng: np.random.Generator) -> Workload:
    """The same up to task t; what follows is shuffled, scaled, late, and reads and frees other things."""
    later = np.arange(workload.num_tasks) > t
    order = np.arange(workload.num_tasks)
    order[later] = rng.permutation(order[later])
    num_objects = workload.num_objects
    used = np.zeros((workload.num_episodes, num_objects), bool)
    for e in range(workload.num_episodes):
        used[e, workload.object[e, : t + 1]] = True
    arrays = {
        name: np.where(later, getattr(workload, name)[:, order] * rng.uniform(0.1, 9.0), getattr(workload, name))
        for name in ("flops", "bytes", "overhead_s")
    }
    freed = np.where(workload.freed_after < t, workload.freed_after, rng.integers(t, 2 * workload.num_tasks + 1))
    # Objects that only came later are now the others' size, so that none shrinks, and none is read only.
    owned = np.where(later, rng.integers(num_objects, size=order.shape), workload.object)
    sizes = np.where(later, workload.object_bytes.max(), workload.object_bytes)
    read_only = workload.read_only & used
    fixed = later & np.take_along_axis(read_only, owned, axis=1)
    first = np.array([[(o[: t + 1] == obj).argmax() for obj in row] for o, row in zip(owned, owned, strict=True)])
    sizes = np.where(fixed, np.take_along_axis(workload.object_bytes, first, axis=1), sizes)
    return replace(
        workload,
        **arrays,
        arrival_s=np.where(later, workload.arrival_s + rng.uniform(0.0, 5.0), workload.arrival_s),
        object=owned,
        object_bytes=sizes,
        write_fraction=np.where(later, np.where(fixed, 0.0, rng.random()), workload.write_fraction),
        inputs=np.where(later[None, :, None], workload.inputs[:, order], workload.inputs),
        input_bytes=np.where(later[None, :, None], workload.input_bytes[:, order], workload.input_bytes),
        freed_after=np.where(freed > workload.num_tasks, NEVER, freed),
        read_only=read_only,
    )


def plan_of(workload: Workload, play: Play) -> np.ndarray:
    world = World(workload, (play.topology,), WEIGHTS, play.window_s)
    return ahead().plan(world, *rows_of(world))


def is_stream(workload: Workload) -> bool:
    return not workload.is_one_graph


@given(plays(min_nodes=2), changed_later(workloads(num_episodes=2).filter(is_stream)))
@settings(max_examples=40, deadline=None)
def test_other_tasks_later_change_no_decision_now(play: Play, case: tuple[Workload, Workload, int]):
    workload, other, t = case
    if is_stream(other):
        np.testing.assert_array_equal(plan_of(workload, play)[:, : t + 1], plan_of(other, play)[:, : t + 1])


STREAMS: dict[str, dict[str, Any]] = {
    "synthetic": {"num_tasks": 40},
    "llm-serving": {"num_tasks": 40},
    "prefix-cache": {"num_tasks": 40},
    "hpc-batch": {"num_tasks": 40},
    "workflow": {"num_tasks": 40},
    "query": {"num_tasks": 40},
}


@pytest.mark.parametrize("name", STREAMS)
def test_other_tasks_later_change_no_decision_now_in_real_families(name: str):
    workload = make_family(name, **STREAMS[name]).generate(np.random.default_rng(1), 2)
    assert is_stream(workload)
    world = World(workload, (four_socket(),), RewardWeights(reference_s=1e-3), 0.01)
    plan = ahead().plan(world, *rows_of(world))
    assert (plan != played(BestScore(PricedScores(RULE)), world, *rows_of(world))[0]).any()
    for t in (5, 20, 33):
        other = replace(world, workload=with_other_tasks_after(workload, t, np.random.default_rng(t)))
        np.testing.assert_array_equal(plan[:, : t + 1], ahead().plan(other, *rows_of(other))[:, : t + 1])


@given(workloads(max_tasks=12), seeds, st.integers(1, 8), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_a_future_is_a_workload_like_any_other(workload: Workload, seed: int, depth: int, run_length: int):
    t = workload.num_tasks - 1
    if t == 0:
        return
    draws = np.random.default_rng(seed).random(depth)
    made = future_of(workload, t, draws.tolist(), run_length, 7)
    each, inputs = made.each[0], made.inputs[0]
    freed_after = np.full(workload.num_objects + depth, NEVER)
    for i in range(depth + 1):
        obj = each["first_freed"][i]
        while obj >= 0:
            assert freed_after[obj] == NEVER  # or the list would never end
            freed_after[obj] = i
            obj = made.next_freed[0, obj]
    names = ("arrival_s", "flops", "bytes", "write_fraction", "object", "object_bytes", "overhead_s")
    Workload(
        name="made up",
        inputs=inputs["object"][None],
        input_bytes=inputs["bytes"][None],
        freed_after=freed_after[None],
        **{name: each[name][None] for name in names},
    )
    assert np.isin(each["flops"], compile_tasks(workload).each[0]["flops"][: t + 1]).all()


@given(plays(num_episodes=2, min_nodes=2))
@settings(max_examples=25, deadline=None)
def test_without_candidates_or_futures_it_is_the_base(play: Play):
    world = World(play.workload, (play.topology,), WEIGHTS, play.window_s)
    if is_stream(play.workload):
        expected = played(RULE, world, *rows_of(world))[0]
        for changes in ({"candidates": 1}, {"futures": 0}):
            np.testing.assert_array_equal(ahead(**changes).plan(world, *rows_of(world)), expected)


def test_the_base_decides_alone_while_there_is_too_little_past():
    world = stream(four_socket())
    base = played(RULE, world, *rows_of(world))[0]
    for least_past in (1, 9, 23):
        differs = (ahead(least_past=least_past).plan(world, *rows_of(world)) != base).any(axis=(0, 2))
        assert not differs[:least_past].any()
        assert differs[least_past:].any()


GRAPHS = ("attention", "ffn", "threads")


@pytest.mark.parametrize("name", GRAPHS)
def test_in_a_graph_it_is_never_worse_than_those_whose_plans_it_sees(name: str):
    workload = make_family(name).generate(np.random.default_rng(3), 2)
    assert workload.is_one_graph
    world = World(workload, (four_socket(),), RewardWeights(reference_s=1e-3), 0.01)
    others = (make_rule("work-stealing"), make_rule("bwap"), make_planner("graph-partition"), make_planner("heft"))
    cost = evaluate(ahead(others=others, passes=1), world).cost
    for who in (RULE, *others):
        assert (cost <= evaluate(who, world).cost * (1.0 + 1e-12)).all()
    alone = evaluate(ahead(passes=0, depth=1, candidates=1), world).cost
    np.testing.assert_allclose(alone, evaluate(RULE, world).cost, rtol=1e-12)


def test_local_search_over_a_graph_finds_more_among_more_placements():
    workload = make_family("attention").generate(np.random.default_rng(3), 2)
    world = World(workload, (four_socket(),), RewardWeights(reference_s=1e-3), 0.01)
    narrow, wide = (evaluate(ahead(polish_candidates=count), world).cost for count in (2, 16))
    assert (wide < narrow).all()


def test_the_plan_of_a_graph_is_a_function_of_the_graph():
    workload = make_family("threads", num_tasks=48).generate(np.random.default_rng(3), 3)
    world = World(workload, (four_socket(),), RewardWeights(reference_s=1e-3), 0.01)
    plan = ahead(seed=1).plan(world, *rows_of(world))
    alone = World(workload.take([2]), (four_socket(),), world.weights, 0.01)
    np.testing.assert_array_equal(ahead(seed=2).plan(alone, *rows_of(alone))[0], plan[2])


def test_batch_size_and_threads_change_no_plan():
    world = stream(four_socket(), num_episodes=5)
    machine, episode = rows_of(world)
    together = ahead().plan(world, machine, episode)
    one_by_one = [ahead().plan(world, machine[i : i + 1], episode[i : i + 1]) for i in range(5)]
    np.testing.assert_array_equal(together, np.concatenate(one_by_one))
    np.testing.assert_array_equal(together, ahead(num_threads=THREADS).plan(world, machine, episode))
    np.testing.assert_array_equal(together[::-1], ahead().plan(world, machine[::-1], episode[::-1]))
    assert (together != ahead(seed=1).plan(world, machine, episode)).any()


def test_machines_of_different_sizes_are_decided_together():
    mixed = stream(two_socket(), four_socket())
    machine, episode = np.array([0, 1, 0, 1]), np.arange(4)
    plan = ahead().plan(mixed, machine, episode)
    assert (plan[machine == 0] < 2).all()
    assert (plan[machine == 1] >= 2).any()


# It is worth it.


def test_it_costs_less_than_its_base_where_one_setting_does_not_fit_all():
    # Prices near those that do best all over the suite; those that do best in this cell are others.
    (cell,) = read_definition(STANDARD).chosen(["stream"], ["xeon-8269cy"]).cells()
    world = world_of(cell.scenario, Split.TUNE, 3, 0)
    rule = PricedGreedy(congestion_price=1.382, crowding_price=0.02193, migration_share=0.7875)
    looking = Lookahead(PricedScores(rule), rule)
    assert isinstance(looking, Planner)
    assert evaluate(looking, world).cost.mean() < 0.95 * evaluate(rule, world).cost.mean()


def test_logits_choose_as_the_policy_does_in_any_batch(untrained):
    # All nodes are alike at first, so that the last bit of a sum could decide.
    policy, _ = load_policy(untrained)
    scores = LogitScores(policy)
    world = stream(eight_socket_cube(), num_episodes=12)
    rows = Rows(world, 12)
    rows.reset()
    for _ in range(6):
        observation = rows.observe().copy()
        actions, _ = policy.predict(observation)
        want = actions[:, 0] * 8 + actions[:, 1]
        assert scores.scores(observation).argmax(axis=1).tolist() == want.tolist()
        assert [int(scores.scores(observation[i : i + 1]).argmax()) for i in range(12)] == want.tolist()
        rows.step(actions)


def save_untrained(path: Path) -> None:
    """A policy that nobody has trained: it decides as the priced greedy rule does."""
    space = spaces.Box(0.0, 1e6, (ObservationLayout(4).size,), np.float32)
    nodes = spaces.MultiDiscrete([4, 4])
    save_policy(path, PlacementPolicy(space, nodes, lambda _: 1e-3, config=PolicyConfig(node_width=6)).scorer, {})


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "policy.safetensors"
    save_untrained(path)
    return path


def test_logits_of_an_untrained_policy_rank_pairs_as_its_rule_does(untrained: Path):
    world = stream(two_socket(), four_socket())  # of which one is padded with nodes that do not exist
    scores = LogitScores(load_policy(untrained)[0])
    rows = Rows(world, 6)
    rows.generators = [np.random.default_rng(row) for row in range(6)]
    rows.reset()
    for _ in range(9):
        observation = rows.observe()
        learned, priced = scores.scores(observation), PricedScores(scores.rule).scores(observation)
        np.testing.assert_array_equal(np.isinf(learned), np.isinf(priced))
        np.testing.assert_array_equal(learned.argmax(axis=1), priced.argmax(axis=1))
        actions, _ = BestScore(scores).predict(observation)
        np.testing.assert_array_equal(actions, scores.rule.predict(observation)[0])
        rows.step(actions)


def test_in_the_suite_it_plays_beside_its_policy(untrained: Path, tmp_path: Path):
    definition = write_definition(tmp_path)
    out = tmp_path / "out"
    rules = ("greedy", "tree-match")
    Suite(out, untrained, lookahead=True, rules=rules, definition=definition, no_oracle=True, workers=1).run()
    rows = pq.read_table(out / "suite.parquet").to_pylist()
    cost = {(row["cell"], row["episode"], row["scheduler"]): row["cost"] for row in rows}
    for cell, episode, name in cost:
        assert (cell, episode, "learned+lookahead") in cost
        if cell.startswith("graph"):
            assert cost[cell, episode, "learned+lookahead"] <= cost[cell, episode, name] * (1.0 + 1e-12)
    assert "learned+lookahead" in json.loads((out / "decision_times.json").read_text())["median_us"]
    policy = LearnedPlayer.read(untrained)
    assert LookaheadPlayer.of(policy).inputs != policy.inputs


def test_in_a_comparison_it_stands_beside_its_policy(untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # tuned rules are kept there
    Path("small.toml").write_text(SMALL_SCENARIO)
    Compare("small.toml", untrained, lookahead=True, episodes=2, json=Path("c.json")).run()
    names = [each["name"] for each in json.loads(Path("c.json").read_text())["schedulers"]]
    assert {"learned", "learned+lookahead"} <= set(names)


# Bad values.


@pytest.mark.parametrize(
    "command", [Suite(no_policy=True, lookahead=True), Compare("stream-cube", no_policy=True, lookahead=True)]
)
def test_without_a_policy_nothing_proposes_placements(command: Suite | Compare, tmp_path: Path):
    with pytest.raises(ValueError, match=r"--lookahead needs a policy, got --no-policy"):
        (replace(command, out=tmp_path) if isinstance(command, Suite) else command).run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": 0}, "candidates must be a whole number >= 1, got 0"),
        ({"depth": 0}, "depth must be a whole number >= 1, got 0"),
        ({"futures": -1}, "futures must be a whole number >= 0, got -1"),
        ({"futures": 1}, "futures must be 0 or >= 2, .*, got 1"),
        ({"futures": 1.5}, "futures must be a whole number >= 0, got 1.5"),
        ({"margin": float("nan")}, "margin must be finite and >= 0, got nan"),
        ({"margin": -1.0}, "margin must be finite and >= 0, got -1.0"),
        ({"polish_candidates": 0}, "polish_candidates must be a whole number >= 1, got 0"),
        ({"least_past": 0}, "least_past must be a whole number >= 1, got 0"),
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"rule": PricedGreedy(congestion_price=np.ones(3))}, "congestion_price must be one number"),
    ],
)
def test_bad_values_are_named(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Lookahead(**{"base": PricedScores(RULE), "rule": RULE} | changes)


def test_a_machine_of_one_node_has_nothing_to_choose():
    world = World(toy_workload([Task(0), Task(1, 1.0), Task(0, 2.0)]), (toy_machine(1),), WEIGHTS, 1.0)
    assert not ahead().plan(world, *rows_of(world)).any()

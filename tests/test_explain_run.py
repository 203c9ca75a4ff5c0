"""A run explained: where a policy differs from a rule, what either choice leads to, and the tree of situations."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from observations import random_rows, row
from strategies import seeds

from agents.explain_differences import Differences, Kind, find_differences
from agents.explain_situations import FEATURES, Unit, situations
from agents.explain_summary import summarise
from agents.explain_terms import cost_terms
from agents.explain_tree import FEWEST_IN_LEAF, Leaf, fidelity, fit_tree
from agents.ppo.config import PolicyConfig
from agents.ppo.policy import PlacementPolicy
from agents.ppo.storage import save_policy
from agents.rules.catalog import make_rule
from agents.rules.greedy import Greedy, PricedGreedy
from envs.observation import ObservationKind, ObservationLayout, Observer
from envs.observation_kernel import TaskFeature
from envs.reward import RewardWeights
from envs.world import Rows, World
from experiments.explain import Explain
from experiments.explain_words import condition_texts
from numa_rl.machines.builders import four_socket
from numa_rl.simulator.simulator import Simulator
from numa_rl.workloads.synthetic import SyntheticStream

NAMES = [feature.name for feature in FEATURES]
WEIGHTS = RewardWeights(reference_s=0.05)
SCENARIO = """
description = "Small"
machine = "chapter-4-socket"
[workload]
family = "synthetic"
num_tasks = 24
[reward]
reference_s = 0.05
[simulation]
window_s = 0.2
"""


def stream(episodes: int = 4, num_tasks: int = 24) -> World:
    family = SyntheticStream(num_tasks=num_tasks, num_objects=8)
    return World(family.generate(np.random.default_rng(3), episodes), (four_socket(),), WEIGHTS, 0.2)


def found(policy: Any, rule: Any, world: World | None = None, **options: Any) -> Differences:
    return find_differences(world or stream(), policy, rule, PricedGreedy(), **options)


def at(observation: np.ndarray, task_node: int, data_node: int) -> dict[str, float]:
    """The features of one observation for a rule's placement."""
    layout = ObservationLayout.of_size(len(observation))
    values = situations(layout.split(observation[None]), np.array([task_node * layout.num_nodes + data_node]))
    return dict(zip(NAMES, values[0].tolist(), strict=True))


# Known answers.


def test_features_of_an_observation_made_by_hand():
    groups = {
        "queue": [3.0, 0.0, 1.0],
        "memory": [0.1, 0.2, 0.3],
        "communication": [[0.5, 0.0, 0.1], [0.0, 0.25, 0.0], [0.2, 0.0, 0.0]],
        "last": [0.0, 1.0, 0.0],
        "estimate": np.arange(9.0).reshape(3, 3) + 4.0,
    }
    task = {TaskFeature.SIZE: 0.5, TaskFeature.WRITE_FRACTION: 0.25, TaskFeature.GAP: 2.0}
    seen = at(row(home=1, features=task, **groups), 0, 2)
    assert seen["is_new"] == 0.0
    assert (seen["size"], seen["write_share"], seen["gap"]) == (0.5, 0.25, 2.0)
    assert (seen["queue"], seen["shortest_queue"]) == (3.0, 0.0)
    assert (seen["load"], seen["least_load"]) == pytest.approx((0.1, 0.1))
    assert seen["memory"] == pytest.approx(0.3)
    assert (seen["moves"], seen["last_user"], seen["apart"]) == (1.0, 0.0, 1.0)
    assert seen["distance"] == 3.0
    assert seen["lead"] == pytest.approx(0.25)  # 5 over 4
    stays = at(row(home=1, features=task, **groups), 1, 1)
    assert (stays["moves"], stays["last_user"], stays["apart"], stays["distance"]) == (0.0, 1.0, 0.0, 1.0)
    assert at(row(), 0, 2)["moves"] == 0.0  # a new object is put somewhere, not moved


def test_closed_nodes_give_no_least_queue_and_no_lead():
    closed = row(queue=[0.0, 2.0, 3.0], task_mask=[0.0, 1.0, 1.0], data_mask=[1.0, 0.0, 0.0], estimate=1.0)
    assert at(closed, 1, 0)["shortest_queue"] == 2.0
    one = row(task_mask=[1.0, 0.0, 0.0], data_mask=[1.0, 0.0, 0.0], estimate=1.0)
    assert at(one, 0, 0)["lead"] == 0.0


def test_kinds_say_which_node_is_another():
    pair, rule_pair = (
        np.array([[5, 1, 4, 5]]),
        np.array([[5, 5, 5, 0]]),
    )  # of four nodes: (1, 1), (0, 1), (1, 0), (1, 1)
    nothing = np.zeros((1, 4))
    both = Differences(pair, rule_pair, 4, nothing, nothing, np.zeros((1, 4, len(FEATURES))))
    assert both.kind.tolist() == [[Kind.SAME, Kind.TASK_NODE, Kind.DATA_NODE, Kind.BOTH]]
    assert both.differs.tolist() == [[False, True, True, True]]


def test_fidelity_by_hand():
    judged = fidelity(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), np.array([1, 0, 0]))
    assert judged.accuracy == 0.75
    assert judged.majority == 0.75
    assert judged.balanced == pytest.approx((2 / 3 + 1) / 2)
    assert judged.classes == 2


def test_a_planted_situation_is_found_and_told_in_words():
    rng = np.random.default_rng(0)
    features = rng.random((600, len(FEATURES)))
    load, new = NAMES.index("load"), NAMES.index("is_new")
    features[:, new] = rng.random(600) < 0.5
    labels = ((features[:, load] > 0.7) & (features[:, new] > 0.5)).astype(np.int64)
    tree = fit_tree(features, labels, np.arange(600) % 2 == 1)
    assert tree is not None
    assert tree.fidelity.accuracy > 0.98
    assert tree.fidelity.majority < 0.9
    planted = [leaf for leaf in tree.leaves if leaf.label == 1]
    assert planted
    for leaf in planted:
        assert leaf.above[load] == pytest.approx(0.7, abs=0.05)
        assert leaf.above[new] == pytest.approx(0.5)
        assert condition_texts(leaf, 1.0)[0] == "the object is new"
        assert condition_texts(leaf, 1.0)[1].startswith(
            f"the load of its data node is above {100 * leaf.above[load]:.3g}%"
        )


def test_conditions_in_words_have_the_unit_of_their_feature():
    index = {name: NAMES.index(name) for name in ("is_new", "queue", "distance", "size")}
    leaf = Leaf(
        above={index["queue"]: 0.5, index["size"]: 0.015},
        at_most={index["queue"]: 2.0, index["is_new"]: 0.5, index["distance"]: 1.5},
        label=0,
        rows=np.zeros(0, np.int64),
    )
    assert condition_texts(leaf, 0.01) == [
        "the object exists",
        "the object's share of a node's memory is above 1.5%",
        "the queue at its task node is above 5 ms and at most 20 ms",
        "the latency of its data over the least is at most 1.5x",
    ]


# Laws.


@given(seeds, st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_features_of_any_observation_are_finite_and_yes_or_no_where_they_should(seed: int, num_nodes: int):
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, 20, num_nodes)
    values = situations(ObservationLayout(num_nodes).split(rows), rng.integers(num_nodes**2, size=20))
    assert np.isfinite(values).all()
    assert (values >= 0.0).all()
    for column, feature in enumerate(FEATURES):
        if feature.unit is Unit.YES_OR_NO and feature.name != "read_only":
            assert set(values[:, column]) <= {0.0, 1.0}, feature.name
        assert (feature.unit is Unit.YES_OR_NO) == bool(feature.otherwise)


@given(seeds, st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_leaves_divide_the_held_out_samples_by_their_conditions(seed: int, depth: int):
    rng = np.random.default_rng(seed)
    features, labels = rng.random((200, 4)), rng.integers(3, size=200)
    held_out = rng.random(200) < 0.4
    tree = fit_tree(features, labels, held_out, depth=depth)
    assert tree is not None
    assert (tree.num_fitted, tree.num_held_out) == ((~held_out).sum(), held_out.sum())
    assert np.sort(np.concatenate([leaf.rows for leaf in tree.leaves])).tolist() == np.flatnonzero(held_out).tolist()
    right = 0
    for leaf in tree.leaves:
        inside = held_out.copy()
        for index, limit in leaf.above.items():
            inside &= features[:, index] > limit
        for index, limit in leaf.at_most.items():
            inside &= features[:, index] <= limit
        assert np.flatnonzero(inside).tolist() == leaf.rows.tolist()
        assert len({*leaf.above, *leaf.at_most}) <= depth
        right += int((labels[leaf.rows] == leaf.label).sum())
    assert tree.fidelity.accuracy == pytest.approx(right / held_out.sum())


def test_a_policy_that_is_the_rule_never_differs():
    same = found(Greedy(), Greedy())
    assert not same.differs.any()
    assert not same.gain_now.any()
    assert not same.gain.any()
    summary = summarise(same, np.random.default_rng(0))
    assert summary.gains == {}
    assert summary.when is None
    assert summary.which is None
    assert same.most_telling(0) == 0


def test_neither_threads_nor_other_episodes_change_an_episode():
    policy, rule = make_rule("first-touch"), Greedy()
    whole = found(policy, rule, num_threads=2)
    for episode in (3, 1):
        alone = found(policy, rule, episodes=[episode])
        for name in ("pair", "rule_pair", "gain_now", "gain", "features"):
            assert (getattr(alone, name)[0] == getattr(whole, name)[episode]).all(), name


def test_gains_count_where_they_belong():
    differences = found(make_rule("first-touch"), Greedy())
    summary = summarise(differences, np.random.default_rng(0))
    kinds = [kind for kind in summary.gains if kind is not None]
    assert sum(summary.gains[kind].count for kind in kinds) == summary.gains[None].count == differences.differs.sum()
    assert summary.gains[None].share == pytest.approx(differences.differs.mean())
    assert not differences.gain[~differences.differs].any()
    assert np.unique(differences.differs.sum(axis=1)).size > 1
    assert summary.gains[None].later.estimate == pytest.approx(differences.gain[differences.differs].mean())
    saved = sum(summary.gains[kind].count * summary.gains[kind].now.estimate for kind in kinds)
    assert saved == pytest.approx(differences.gain_now.sum())
    assert differences.differs[2, differences.most_telling(2)]


# Two routes.


def test_gains_now_are_differences_of_cost_terms():
    world, policy, rule = stream(), make_rule("first-touch"), Greedy()
    differences = found(policy, rule, world, episodes=[2])
    simulator = Simulator(world.topologies, world.workload, 1, window_s=world.window_s)
    simulator.reset(2)
    observer = Observer(simulator, world.weights, world.observation)
    assert differences.differs.any()
    for task in range(world.workload.num_tasks):
        seen = observer.observe().copy()
        actions, wanted = policy.predict(seen)[0], rule.predict(seen)[0]
        pairs = [int(each[0, 0] * 4 + each[0, 1]) for each in (actions, wanted)]
        assert [differences.pair[0, task], differences.rule_pair[0, task]] == pairs
        cost = cost_terms(simulator, pairs, world.weights).cost
        assert differences.gain_now[0, task] == pytest.approx(cost[1] - cost[0], abs=1e-12)
        simulator.step(actions)


# What is refused.


def test_worlds_and_rules_that_cannot_be_compared_are_refused():
    world = replace(stream(), observation=ObservationKind.CHAPTER)
    with pytest.raises(ValueError, match=r"greedy reads the full observation, got a world with 'chapter'"):
        found(Greedy(), Greedy(), world)
    with pytest.raises(ValueError, match=r"got pages split over nodes"):
        found(Greedy(), make_rule("bwap"))
    with pytest.raises(ValueError, match=r"episode must be in 0..3, got 4"):
        found(Greedy(), Greedy(), episodes=[4])


def test_trees_are_refused_what_they_cannot_be_fitted_to():
    features, labels, held_out = np.zeros((8, 2)), np.zeros(8, np.int64), np.zeros(8, bool)
    with pytest.raises(ValueError, match=r"one row for each sample"):
        fit_tree(features, labels[:7], held_out)
    with pytest.raises(ValueError, match=r"features must be finite"):
        fit_tree(np.full((8, 2), np.nan), labels, held_out)
    with pytest.raises(ValueError, match=r"depth must be >= 1, got 0"):
        fit_tree(features, labels, held_out, depth=0)


def test_where_there_is_nothing_to_tell_apart_there_is_no_tree():
    many = 4 * FEWEST_IN_LEAF
    features, held_out = np.random.default_rng(0).random((many, 2)), np.arange(many) % 2 == 1
    labels = (features[:, 0] > 0.5).astype(np.int64)
    assert fit_tree(features, labels, held_out) is not None
    assert fit_tree(features, np.zeros(many, np.int64), held_out) is None
    assert fit_tree(features, labels, np.zeros(many, bool)) is None
    few = slice(0, many - 2)
    assert fit_tree(features[few], labels[few], held_out[few]) is None


# The command.


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A scenario that takes a moment, in an empty folder on a console of 100 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    Path("small.toml").write_text(SCENARIO)
    return "small.toml"


def saved_policy() -> Path:
    """A policy with other weights everywhere, in a file."""
    space = Rows(stream(), 1)
    torch.manual_seed(0)
    policy = PlacementPolicy(
        space.observation_space, space.action_space, lambda _: 1e-3, config=PolicyConfig(node_width=8, pair_width=4)
    )
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    save_policy(Path("policy.safetensors"), policy.scorer, {})
    return Path("policy.safetensors")


def test_everything_is_printed_within_100_columns_and_written(scenario: str, capsys: pytest.CaptureFixture[str]):
    import json

    Explain(scenario, saved_policy(), episodes=6, json=Path("out.json")).run()
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    for part in (
        "What it costs",
        "= T_exec",
        "What moved the logit",
        "all that differ",
        "When they differ",
        "held-out",
    ):
        assert part in out
    content = json.loads(Path("out.json").read_text())
    decision, run = content["decision"], content["run"]
    assert f"Task {decision['task']} of episode 0 of small" in out
    assert not decision["rule_agrees"]
    shares = sum(float(np.sum(values)) for values in decision["shares"].values())
    total = shares + decision["logit_difference_of_nodes_alike"] + decision["not_shared_out"]
    assert total == pytest.approx(decision["logit_difference"])
    for placement in range(2):
        terms = {name: values[placement] for name, values in decision["terms_s"].items()}
        assert sum(terms.values()) == pytest.approx(decision["exec_s"][placement] + decision["comm_s"][placement])
        seconds = decision["exec_s"][placement] + decision["comm_s"][placement]
        assert decision["cost"][placement] == pytest.approx(seconds / 0.05 + 0.1 * decision["imbalance"][placement])
    assert run["decisions"] == 6 * 24
    assert sum(leaf["held_out"] for leaf in run["when"]["leaves"]) == run["when"]["held_out"] == 3 * 24
    of_leaves = sum(leaf["held_out"] * leaf["differs_share"] for leaf in run["when"]["leaves"] if leaf["held_out"])
    assert 0 < of_leaves <= run["gains"]["all"]["count"]


def test_the_untrained_network_is_the_rule(scenario: str, capsys: pytest.CaptureFixture[str]):
    Explain(scenario, untrained=True, against="priced-greedy", task=7, episodes=0).run()
    out = capsys.readouterr().out
    assert "untrained puts" in out
    assert "So does priced-greedy" in out
    assert "differ" not in out.replace("difference", "")


def test_a_policy_that_never_differs_is_said_to(scenario: str, capsys: pytest.CaptureFixture[str]):
    Path("small.toml").write_text(SCENARIO.replace("num_tasks = 24", "num_tasks = 2"))
    Explain(scenario, untrained=True, against="priced-greedy", episodes=2).run()
    out = capsys.readouterr().out
    assert "The two never differ." in out
    assert "Task 0 of episode 0" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episode": -1}, "--episode must be >= 0, got -1."),
        ({"task": -1}, "--task must be >= 0, got -1."),
        ({"task": 24}, "--task must be in 0..23, the tasks of an episode, got 24."),
        ({"episodes": 1}, "--episodes must be 0, or at least 2 so that some are held out, got 1."),
        ({"episodes": -2}, "--episodes must be >= 0, got -2."),
        ({"seed": -1}, "--seed must be >= 0, got -1."),
        ({"policy": Path("p"), "untrained": True}, "--untrained and --policy exclude each other, got 'p'."),
        ({"policy": Path("missing")}, "missing: no such file."),
        ({"policy": Path("small.toml")}, "small.toml: not a safetensors file"),
        ({"json": Path("small.toml")}, "--json must be another file than --scenario"),
        ({"json": Path()}, "--json must be a file that can be written"),
    ],
)
def test_wrong_options_are_named(scenario: str, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=r".") as refused:
        Explain(scenario, **options).run()
    assert str(refused.value).startswith(message)

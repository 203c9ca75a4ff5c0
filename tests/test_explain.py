"""One decision explained: its cost terms are the simulator's, and shares of a logit add up to the logit."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from playing import assert_same_bits, bits, decide, started
from strategies import Play, Task, plays, seeds, toy_machine, toy_workload

from agents.explain_attribution import ESTIMATE, KEPT, SMALL, TOLERANCE, Attribution, alike_observation, attribute
from agents.explain_decision import Decision, explain_decision, second_choice
from agents.explain_differences import FOLLOWED
from agents.explain_terms import COMM_PARTS, EXEC_PARTS, CostTerms, cost_terms
from agents.ppo.config import PolicyConfig
from agents.ppo.scorers import make_scorer
from agents.ppo.storage import LearnedScheduler
from agents.rules.greedy import Greedy, PricedGreedy
from envs.observation import ObservationLayout, Observer
from envs.reward import RewardWeights
from envs.world import World
from experiments.explain_words import SUBJECTS, compared, moved_by, time_text
from experiments.scenario import Split, load_scenario
from experiments.tune import world_of
from numa_rl.machines.builders import four_socket
from numa_rl.simulator.simulator import Simulator
from numa_rl.workloads.synthetic import SyntheticStream

torch.set_num_threads(1)

WEIGHTS = RewardWeights(alpha=0.7, beta=0.2, reference_s=0.05)


def randomised(config: PolicyConfig, num_nodes: int, seed: int = 0, size: float = 0.3) -> Any:
    """A network with other weights everywhere, the zeros of the start included."""
    torch.manual_seed(seed)
    scorer = make_scorer(config)
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter += size * torch.randn(parameter.shape)
    return scorer


def stream(num_nodes: int = 4, num_tasks: int = 40, episodes: int = 3) -> World:
    """A busy machine of four sockets."""
    family = SyntheticStream(num_tasks=num_tasks, num_objects=10)
    return World(family.generate(np.random.default_rng(3), episodes), (four_socket(),), WEIGHTS, 0.2)


def stopped(world: World, task: int, episode: int = 0) -> tuple[Simulator, Observer, np.ndarray]:
    """A row that the priced greedy rule has played up to a task, and what is seen there."""
    simulator = Simulator(world.topologies, world.workload, 1, window_s=world.window_s)
    simulator.reset(episode)
    observer = Observer(simulator, world.weights, world.observation)
    for _ in range(task):
        simulator.step(PricedGreedy().predict(observer.observe())[0])
    return simulator, observer, observer.observe()[0].copy()


def all_terms(simulator: Simulator, weights: RewardWeights = WEIGHTS) -> CostTerms:
    return cost_terms(simulator, np.arange(simulator.num_nodes**2), weights)


def explained(world: World, scorer: Any, task: int) -> tuple[Attribution, np.ndarray, tuple[int, int]]:
    """The best placement beside the estimate's best, or the second, and what was seen."""
    simulator, observer, seen = stopped(world, task)
    policy = LearnedScheduler(scorer)
    n, d = policy.predict(seen)[0]
    pair = int(n * observer.layout.num_nodes + d)
    other = second_choice(policy, seen[None], pair)
    return attribute(scorer, seen, pair, other, all_terms(simulator), world.weights), seen, (pair, other)


# Known answers.


def test_terms_of_an_idle_toy_machine_are_those_of_mental_arithmetic():
    task = Task(flops=50.0, num_bytes=200.0, size=100.0, overhead_s=0.25)
    terms = cost_terms(started(toy_machine(), toy_workload([task])), [0, 1], RewardWeights(reference_s=1.0))
    assert terms.parts["compute"] == pytest.approx([0.5, 0.5])
    assert terms.parts["software"] == pytest.approx([0.25, 0.25])
    assert terms.parts["memory"] == pytest.approx([1.5, 3.5])  # 200 bytes at 100 and 50 a second, less the arithmetic
    assert terms.exec_s == pytest.approx([2.25, 4.25])
    for name in {*EXEC_PARTS, *COMM_PARTS} - {"compute", "software", "memory"}:
        assert not terms.parts[name].any(), name


def test_a_second_task_waits_for_the_core_and_for_what_the_first_writes():
    first = Task(obj=0, num_bytes=200.0, write_fraction=1.0)
    simulator = started(toy_machine(), toy_workload([first, Task(obj=0, num_bytes=100.0), Task(obj=1)]))
    decide(simulator, (0, 0))
    terms = all_terms(simulator)
    assert terms.parts["inputs_ready"] == pytest.approx([2.0] * 4)  # on any node: the object is not written before
    assert terms.parts["core"] == pytest.approx([0.0] * 4)
    assert terms.migrated.tolist() == [False, True, False, True]
    assert (terms.parts["migration"] > 0.0).tolist() == [False, True, False, True]


def test_load_is_told_from_what_an_idle_machine_would_take():
    big = Task(obj=0, num_bytes=5000.0)
    two_cores = toy_machine(cores=[2, 2])
    simulator = started(two_cores, toy_workload([big, Task(obj=1, num_bytes=500.0)]))
    decide(simulator, (0, 0))
    terms = cost_terms(simulator, [0, 3], WEIGHTS)
    assert terms.parts["memory"] == pytest.approx([5.0, 5.0])  # 500 bytes at 100 a second
    assert terms.parts["memory_load"][0] > 1.0
    assert terms.parts["memory_load"][1] == 0.0


def test_the_prior_alone_is_explained_by_the_estimate_alone():
    world = stream()
    config = PolicyConfig(congestion_price=0.0, crowding_price=0.0, migration_share=1.0, alpha=world.weights.alpha)
    scorer = make_scorer(config)
    simulator, observer, seen = stopped(world, 25)
    estimate = observer.layout.split(seen)["estimate"].astype(np.float64).ravel()
    best, worst = int(estimate.argmin()), int(estimate.argmax())
    found = attribute(scorer, seen, best, worst, all_terms(simulator), world.weights)
    assert found.difference == pytest.approx(config.prior_scale * np.log(estimate[worst] / estimate[best]), rel=1e-5)
    assert found.alike == pytest.approx(0.0, abs=1e-9)
    of_terms = sum(share for name, share in found.totals.items() if name.startswith(ESTIMATE))
    assert of_terms == pytest.approx(found.difference, rel=5e-3)
    assert all(not values.any() for name, values in found.shares.items() if not name.startswith(ESTIMATE))


def test_where_nodes_are_alike_every_input_is_its_mean():
    layout = ObservationLayout(4)
    seen = stopped(stream(), 20)[2]
    alike, groups = layout.split(alike_observation(seen)), layout.split(seen.astype(np.float64))
    for name in groups:
        if name in KEPT:
            assert (alike[name] == groups[name]).all()
        else:
            assert alike[name] == pytest.approx(np.full(groups[name].shape, groups[name].mean()))


def test_nodes_that_do_not_exist_count_in_no_mean():
    layout = ObservationLayout(3)
    row = np.ones(layout.size, np.float32)
    groups = layout.split(row)
    groups["nodes"][:] = 1, 1, 0
    groups["queue"][:] = 1, 3, 0
    groups["latency"][:] = [[1, 2, 0], [3, 6, 0], [0, 0, 0]]
    alike = layout.split(alike_observation(row))
    assert alike["queue"].tolist() == [2, 2, 0]
    assert alike["latency"].tolist() == [[3, 3, 0], [3, 3, 0], [0, 0, 0]]


# Laws.


@given(plays(max_tasks=8), seeds)
@settings(max_examples=40, deadline=None)
def test_terms_sum_to_what_the_simulator_charges_and_leave_it_alone(play: Play, seed: int):
    simulator = started(play.topology, play.workload, play.window_s)
    n = play.topology.num_nodes
    for task in range(play.workload.num_tasks):
        before = bits(simulator)
        terms = all_terms(simulator)
        assert_same_bits(before, bits(simulator))
        action = play.actions[0, task]
        outcome = simulator.step(action[None])
        of = int(action[0] * n + action[1])
        assert terms.exec_s[of] == pytest.approx(outcome.exec_s[0], rel=1e-6, abs=1e-12)
        assert terms.comm_s[of] == pytest.approx(outcome.comm_s[0], rel=1e-6, abs=1e-12)
        assert terms.cost[of] == WEIGHTS.cost(outcome)[0]
        assert (terms.task_node[of], terms.data_node[of]) == (outcome.task_node[0], outcome.data_node[0])
        assert all((values >= -1e-6 * terms.exec_s.max()).all() for values in terms.parts.values())
        transfer = terms.parts["transfer"] + terms.parts["transfer_load"]
        scale = float(terms.comm_s.max())
        assert terms.sources_s.sum(axis=1) == pytest.approx(transfer, rel=1e-5, abs=1e-6 * scale)


@given(st.integers(0, 39), st.integers(0, 5))
@settings(max_examples=12, deadline=None)
def test_shares_add_up_to_the_difference_of_logits(task: int, seed: int):
    world = stream()
    scorer = randomised(PolicyConfig(alpha=world.weights.alpha), 4, seed)
    found, seen, (pair, other) = explained(world, scorer, task)
    with torch.no_grad():
        logits = scorer(torch.from_numpy(seen[None]))[0][0].numpy()
    assert found.difference == pytest.approx(logits[pair] - logits[other], abs=2e-4)
    assert sum(found.totals.values()) + found.alike + found.left == pytest.approx(found.difference)
    assert abs(found.left) < 2 * (TOLERANCE * abs(found.difference - found.alike) + SMALL)


@given(st.integers(0, 39), st.permutations(range(4)))
@settings(max_examples=8, deadline=None)
def test_relabelling_nodes_relabels_the_shares(task: int, order: list[int]):
    world = stream()
    scorer = randomised(PolicyConfig(alpha=world.weights.alpha), 4)
    simulator, _, seen = stopped(world, task)
    terms, n = all_terms(simulator), 4
    layout, renamed = ObservationLayout(n), np.zeros_like(seen)
    for name, values in layout.split(seen).items():
        target = layout.split(renamed)[name]
        target[...] = values if name == "task" else values[order] if values.ndim == 1 else values[order][:, order]
    index = [order[a] * n + order[b] for a in range(n) for b in range(n)]
    first = attribute(scorer, seen, index[1], index[6], terms, WEIGHTS)
    second = attribute(scorer, renamed, 1, 6, terms.at(index), WEIGHTS)
    assert second.difference == pytest.approx(first.difference, abs=1e-6)
    for name, values in first.shares.items():
        moved = values[order] if values.ndim == 1 else values[order][:, order]
        assert second.shares[name] == pytest.approx(moved, abs=1e-4), name


def test_the_other_way_round_every_share_has_the_other_sign():
    world = stream()
    scorer = randomised(PolicyConfig(), 4)
    simulator, _, seen = stopped(world, 30)
    one, other = (attribute(scorer, seen, *pairs, all_terms(simulator), WEIGHTS) for pairs in ((2, 9), (9, 2)))
    for name, values in one.shares.items():
        assert other.shares[name] == pytest.approx(-values, abs=1e-9)


def test_what_the_policy_is_blind_to_moves_nothing():
    scorer = randomised(PolicyConfig(blind_to=("queue", "congestion")), 4)
    found, _, _ = explained(stream(), scorer, 30)
    assert not found.shares["queue"].any()
    assert not found.shares["congestion"].any()
    assert found.shares["communication"].any()


# Two routes.


def test_terms_of_all_pairs_are_the_estimate_that_policies_see():
    world = stream()
    for task in (0, 12, 31):
        simulator, observer, seen = stopped(world, task)
        terms = all_terms(simulator)
        estimate = (terms.exec_s + WEIGHTS.alpha * terms.comm_s) / WEIGHTS.reference_s
        assert observer.layout.split(seen)["estimate"].ravel() == pytest.approx(estimate, rel=1e-5)


def test_what_follows_is_what_playing_on_by_the_rule_costs():
    world, follower = stream(), PricedGreedy(alpha=WEIGHTS.alpha)
    policy = LearnedScheduler(randomised(PolicyConfig(), 4))
    for task in (3, 25):
        found = explain_decision(world, policy, Greedy(), follower, 1, task)
        assert found.num_followed == min(FOLLOWED, 39 - task)
        for pair, total in zip(found.pairs, found.total, strict=True):
            simulator = Simulator(world.topologies, world.workload, 1, window_s=world.window_s)
            simulator.reset(1)
            observer = Observer(simulator, world.weights, world.observation)
            for _ in range(task):
                simulator.step(policy.predict(observer.observe())[0])
            cost = WEIGHTS.cost(simulator.step(np.array([divmod(pair, 4)])))[0]
            for _ in range(found.num_followed):
                cost += WEIGHTS.cost(simulator.step(follower.predict(observer.observe())[0]))[0]
            assert total == pytest.approx(cost)


# A real input: the words.


def some_decision(against: Any, task: int = 30) -> Decision:
    policy = LearnedScheduler(randomised(PolicyConfig(alpha=WEIGHTS.alpha), 4))
    return explain_decision(stream(), policy, against, PricedGreedy(alpha=WEIGHTS.alpha), 0, task)


def test_where_the_rule_agrees_the_second_choice_is_explained():
    world = stream()
    scorer = make_scorer(PolicyConfig(alpha=WEIGHTS.alpha))
    rule = PricedGreedy(alpha=WEIGHTS.alpha)
    found = explain_decision(world, LearnedScheduler(scorer), rule, rule, 0, 30)
    assert found.agrees
    assert found.pairs[0] != found.pairs[1]
    assert found.attribution.difference >= 0.0


def test_the_second_choice_of_a_policy_that_was_loaded_is_one_on_the_machine_at_hand():
    rule = PricedGreedy(alpha=WEIGHTS.alpha)
    loaded, fitting = (make_scorer(PolicyConfig(alpha=WEIGHTS.alpha)) for n in (1, 4))
    loaded.load_state_dict(fitting.state_dict())
    first, second = (explain_decision(stream(), LearnedScheduler(s), rule, rule, 0, 5) for s in (loaded, fitting))
    assert first.agrees
    assert first.pairs == second.pairs


def test_every_input_belongs_to_one_subject_and_subjects_add_up():
    found = some_decision(Greedy())
    named = [name for subject in SUBJECTS for name in subject.inputs]
    assert sorted(named) == sorted(found.attribution.shares)
    moved = moved_by(found)
    shares = [abs(each.share) for each in moved]
    assert shares == sorted(shares, reverse=True)
    assert sum(each.share for each in moved) == pytest.approx(sum(found.attribution.totals.values()))


def test_values_in_words_are_those_of_the_two_placements():
    found = some_decision(Greedy())
    (n, _), (other_n, _) = found.nodes
    moved = {each.subject.words: each for each in moved_by(found)}
    queue = found.groups["queue"] * WEIGHTS.reference_s
    assert moved["work queued per core"].values == (time_text(queue[n]), time_text(queue[other_n]))
    assert moved["wait for a core"].values == tuple(time_text(each) for each in found.terms.parts["core"].tolist())
    assert moved["wait for a core"].where == (f"node {n}", f"node {other_n}")


@pytest.mark.parametrize(
    ("cost", "other", "words"),
    [
        (1.12, 1.0, "12.0% more than"),
        (0.5, 1.0, "50.0% less than"),
        (1.0, 1.0, "as much as"),
        (1.0001, 1.0, "hardly more than"),
        (1.0, 0.0, "more than"),
    ],
)
def test_costs_compared_in_words(cost: float, other: float, words: str):
    assert compared(cost, other) == words


# What is refused.


def test_a_row_that_is_over_has_no_terms():
    simulator = started(toy_machine(), toy_workload([Task()]))
    decide(simulator, (0, 0))
    with pytest.raises(ValueError, match=r"row 0 must have a task left to place"):
        all_terms(simulator)


@pytest.mark.parametrize(("pair", "other"), [(0, 16), (-1, 0), (4, 0)])
def test_placements_that_cannot_be_chosen_are_refused(pair: int, other: int):
    simulator, observer, seen = stopped(stream(), 5)
    observer.layout.split(seen)["task_mask"][1] = 0.0
    with pytest.raises(ValueError, match=r"placements to compare must be open"):
        attribute(make_scorer(PolicyConfig()), seen, pair, other, all_terms(simulator), WEIGHTS)


@pytest.mark.parametrize("task", [-1, 40])
def test_a_task_that_is_not_there_is_refused(task: int):
    with pytest.raises(ValueError, match=rf"task must be in 0..39, got {task}"):
        some_decision(Greedy(), task)


def test_a_machine_of_one_node_leaves_nothing_to_explain():
    workload = toy_workload([Task(num_bytes=10.0)])
    world = World(workload, (toy_machine(1),), WEIGHTS, 1.0)
    policy = LearnedScheduler(make_scorer(PolicyConfig()))
    with pytest.raises(ValueError, match=r"must leave a choice to be explained"):
        explain_decision(world, policy, Greedy(), PricedGreedy(), 0, 0)


# Smoke: a scenario as shipped.


def test_a_decision_of_a_shipped_scenario_with_inputs_is_explained():
    scenario = load_scenario("workflow-cube")
    policy = LearnedScheduler(randomised(PolicyConfig(), 8, size=0.1))
    found = explain_decision(world_of(scenario, Split.TEST, 1, 0), policy, Greedy(), PricedGreedy(), 0, 61)
    assert found.terms.sources_s.any()
    assert abs(found.attribution.left) < 0.05

"""Explaining a policy: one decision beside a rule's, and over a run the situations in which it decides otherwise."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.console import Console

from agents.explain_differences import FOLLOWED, Kind, find_differences
from agents.explain_situations import FEATURES
from agents.explain_summary import Summary, summarise
from agents.explain_tree import SmallTree
from agents.rules.base import Rule
from agents.rules.greedy import PricedGreedy
from agents.shipped import POLICY
from experiments.compare import load_learned
from experiments.files import require_outputs, write_json
from experiments.scenario import Scenario, Split, load_scenario
from experiments.simulated_run import rule_of
from experiments.tune import require_at_least, world_of

if TYPE_CHECKING:
    from agents.explain_decision import Decision
    from agents.ppo.storage import LearnedScheduler

NUM_EPISODES = 16


@dataclass(frozen=True)
class Explain:
    """Explain a learned policy: one decision beside a rule's, and the situations in which it decides otherwise.

    Attributes:
        scenario: a scenario's name, or the path of its TOML file.
        policy: a learned policy, as `train` saves it; the one that comes with the package by default.
        untrained: explain the network before any training, which decides as the priced greedy rule.
        against: the rule to compare with: the cheapest placement now, or with prices for what it takes from others.
        episode: the test episode of the one decision.
        task: its task; the one in which the two placements differ most in cost at once if left out.
        episodes: test episodes for the situations, 2 or more: every other one is held out to judge them. 0 leaves them
            out.
        tuned: rules with the parameters tuned for the scenario, as `compare` takes them; all rules are tuned first
            where that was not done yet, which takes minutes. Without it, default parameters.
        seed: of the episodes, as for `compare`.
        json: a file for everything.
    """

    scenario: str
    policy: Path | None = None
    untrained: bool = False
    against: Literal["greedy", "priced-greedy"] = "greedy"
    episode: int = 0
    task: int | None = None
    episodes: int = NUM_EPISODES
    tuned: bool = False
    seed: int = 0
    json: Path | None = None

    def run(self) -> None:
        """Play, explain and print.

        Raises:
            ValueError: no such scenario or policy, a count out of range, or the file cannot be written.
        """
        self._check()
        scenario = load_scenario(self.scenario)
        num_tasks = scenario.episodes(Split.TEST, 1, self.seed).num_tasks
        if self.task is not None and self.task >= num_tasks:
            raise ValueError(f"--task must be in 0..{num_tasks - 1}, the tasks of an episode, got {self.task}.")
        console = Console()
        with console.status("") as status:
            rule = rule_of(scenario, self.against, tuned=self.tuned, on_step=status.update)
            follower = rule_of(scenario, PricedGreedy.name, tuned=self.tuned, on_step=status.update)
            assert isinstance(follower, PricedGreedy)
            policy = _policy(self._file, scenario, follower, console)
            status.update(f"playing {policy.name}")
            explanation = explain(self, scenario, policy, rule, follower)
        if self.json is not None:
            write_json(self.json, explanation.to_dict())
        from experiments.explain_report import print_explanation  # after torch, which takes a second

        print_explanation(explanation, console)

    def _check(self) -> None:
        """Raise ValueError for what is out of range, before anything takes time."""
        require_at_least(0, self.episode, "--episode")
        require_at_least(0, self.episodes, "--episodes")
        require_at_least(0, self.seed, "--seed")
        if self.episodes == 1:
            raise ValueError("--episodes must be 0, or at least 2 so that some are held out, got 1.")
        if self.task is not None:
            require_at_least(0, self.task, "--task")
        if self.untrained and self.policy is not None:
            raise ValueError(f"--untrained and --policy exclude each other, got {str(self.policy)!r}.")
        require_outputs({"--json": self.json}, {"--policy": self._file, "--scenario": Path(self.scenario)})

    @property
    def _file(self) -> Path | None:
        """The policy's file; None for an untrained one."""
        return None if self.untrained else self.policy or POLICY


def _policy(path: Path | None, scenario: Scenario, prior: PricedGreedy, console: Console) -> LearnedScheduler:
    """The policy in a file, or one that was never trained and starts from the rule.

    Raises:
        ValueError: the file is missing, damaged, or no policy.
    """
    import torch

    from agents.ppo.config import PolicyConfig
    from agents.ppo.scorers import make_scorer
    from agents.ppo.storage import LearnedScheduler

    if path is not None:
        loaded = load_learned(path, scenario, console)
        assert isinstance(loaded, LearnedScheduler)
        return loaded
    torch.set_num_threads(1)  # as `load_learned` does
    torch.manual_seed(0)  # weights that are all multiplied by zero
    config = replace(PolicyConfig(), **asdict(prior))  # of one number each: see `rule_of`
    scorer = make_scorer(config)
    return LearnedScheduler(scorer, "untrained")


@dataclass(frozen=True, eq=False)
class Explanation:
    """Everything that the command says.

    Attributes:
        scenario: what was played.
        policy: the policy's name.
        rule: the rule's.
        decision: one decision.
        summary: of a run; None if it was left out.
        num_episodes: of the run.
    """

    scenario: Scenario
    policy: str
    rule: str
    decision: Decision
    summary: Summary | None
    num_episodes: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "scenario": self.scenario.name,
            "scenario_hash": self.scenario.content_hash,
            "machine": self.scenario.topology.name,
            "policy": self.policy,
            "rule": self.rule,
            "reference_s": self.scenario.reward.reference_s,
            "decision": _decision_dict(self.decision),
            "episodes": self.num_episodes,
            "run": None if self.summary is None else _summary_dict(self.summary),
        }


def explain(
    asked: Explain, scenario: Scenario, policy: LearnedScheduler, rule: Rule, follower: PricedGreedy
) -> Explanation:
    """Explain a decision, and the run if it was asked for.

    Args:
        asked: which episodes and task.
        scenario: what is played.
        policy: who decides.
        rule: with whom it is compared.
        follower: who makes the decisions that follow.

    Raises:
        ValueError: a rollout cannot follow the rule, or the machine leaves no choice.
    """
    from agents.explain_decision import explain_decision

    world = world_of(scenario, Split.TEST, max(asked.episodes, asked.episode + 1), asked.seed)
    task = asked.task
    if task is None:
        task = find_differences(world, policy, rule, follower, episodes=[asked.episode]).most_telling(0)
    decision = explain_decision(world, policy, rule, follower, asked.episode, task)
    summary = None
    if asked.episodes:
        found = find_differences(world, policy, rule, follower, episodes=np.arange(asked.episodes))
        summary = summarise(found, np.random.default_rng(asked.seed))
    return Explanation(scenario, policy.name, rule.name, decision, summary, asked.episodes)


def _decision_dict(decision: Decision) -> dict[str, Any]:
    """A decision as JSON values; of two entries, the first is the policy's placement."""
    attribution = decision.attribution
    return {
        "episode": decision.episode,
        "task": decision.task,
        "placements": decision.nodes,
        "rule_agrees": decision.agrees,
        "terms_s": {name: values.tolist() for name, values in decision.terms.parts.items()},
        "input_s_by_source": decision.terms.sources_s.tolist(),
        "exec_s": decision.terms.exec_s.tolist(),
        "comm_s": decision.terms.comm_s.tolist(),
        "imbalance": decision.terms.imbalance.tolist(),
        "cost": decision.terms.cost.tolist(),
        "cost_with_those_that_follow": decision.total.tolist(),
        "decisions_that_follow": decision.num_followed,
        "logit_difference": attribution.difference,
        "logit_difference_of_nodes_alike": attribution.alike,
        "shares": {name: values.tolist() for name, values in attribution.shares.items()},
        "not_shared_out": attribution.left,
    }


def _summary_dict(summary: Summary) -> dict[str, Any]:
    """A run as JSON values."""
    return {
        "decisions": summary.differences.kind.size,
        "followed": FOLLOWED,
        "gains": {_kind_name(kind): asdict(gain) for kind, gain in summary.gains.items()},
        "when": _tree_dict(summary.when, summary),
        "which": _tree_dict(summary.which, None),
    }


def _kind_name(kind: Kind | None) -> str:
    return "all" if kind is None else kind.name.lower()


def _tree_dict(tree: SmallTree | None, summary: Summary | None) -> dict[str, Any] | None:
    """A tree as JSON values; with the gains of its situations where the summary is given."""
    if tree is None:
        return None
    leaves = []
    for leaf in tree.leaves:
        content = {
            "above": {FEATURES[index].name: limit for index, limit in leaf.above.items()},
            "at_most": {FEATURES[index].name: limit for index, limit in leaf.at_most.items()},
            "says": leaf.label,
            "held_out": len(leaf.rows),
        }
        if summary is not None:
            content["differs_share"], content["gain"] = summary.gain_in(leaf)
        leaves.append(content)
    return {"fitted": tree.num_fitted, "held_out": tree.num_held_out, **asdict(tree.fidelity), "leaves": leaves}

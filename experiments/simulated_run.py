"""A simulated run to diagnose: a scenario's test episodes, played by a rule or a learned policy.

The episodes are those that `compare` plays, so what a diagnosis says holds for its table too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from agents.evaluation import decisions
from agents.rules.base import Rule
from agents.rules.catalog import make_rule
from agents.scheduler import Scheduler
from agents.tuning import default_parameters
from envs.observation import Observer
from experiments.scenario import Scenario, Split
from experiments.tune import load_or_tune, world_of
from numa_rl.diagnosis.evidence import Evidence
from numa_rl.diagnosis.simulated import Watch, run_evidence
from numa_rl.simulator.simulator import Simulator

NUM_EPISODES = 8


def rule_of(scenario: Scenario, name: str, *, tuned: bool, on_step: Callable[[str], None] = lambda text: None) -> Rule:
    """The rule of that name, with its default parameters or those tuned for a scenario.

    Args:
        scenario: what it will play.
        name: the rule's.
        tuned: whether to take the tuned parameters; all rules are tuned where that was not done yet.
        on_step: called with what is being done, where that takes long.

    Raises:
        ValueError: there is no such rule.
    """
    rule = make_rule(name)
    if tuned:
        return next(
            entry.rule
            for entry in load_or_tune(scenario, on_rule=lambda each: on_step(f"tuning {each}"))
            if entry.name == rule.name
        )
    return make_rule(name, **default_parameters(name, scenario.reward, (scenario.topology,)))


def simulated_evidence(scenario: Scenario, scheduler: Scheduler, num_episodes: int, seed: int = 0) -> Evidence:
    """What test episodes of a scenario show, all together.

    Args:
        scenario: what is played.
        scheduler: who decides.
        num_episodes: how many test episodes.
        seed: of the episodes.

    Raises:
        ValueError: a count out of range.
    """
    world = world_of(scenario, Split.TEST, num_episodes, seed)
    simulator = Simulator(world.topologies, world.workload, num_episodes, window_s=world.window_s)
    simulator.reset(np.arange(num_episodes))
    watch = Watch(simulator)
    for outcome in decisions(scheduler, simulator, Observer(simulator, world.weights, world.observation)):
        watch.count(outcome)
    return run_evidence(watch)

"""A training run on one scenario that takes a second, and who stops it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from agents.evaluation import evaluate
from agents.ppo.config import PPOConfig, TeacherConfig, TrainingConfig, as_json
from agents.ppo.storage import read_tensors
from agents.ppo.training import Progress, Trainer
from agents.rules.catalog import make_rule
from agents.rules.greedy import PricedGreedy
from envs.reward import RewardWeights
from envs.world import World
from experiments.scenario import Scenario, Split
from experiments.tune import world_of
from numa_rl.machines.catalog import load_machine
from numa_rl.workloads.synthetic import SyntheticStream

torch.set_num_threads(1)

RULE = PricedGreedy(congestion_price=0.5, crowding_price=3.0)
TEACHER = TeacherConfig(
    labels=96, labels_per_update=32, num_rows=16, num_candidates=4, num_random=1, depth=4, stride=2, memory=1,
    batch_size=16, learning_rate=0.02, num_threads=1,
)  # fmt: skip
PPO = PPOConfig(total_timesteps=3 * 96, num_envs=6, n_steps=16, batch_size=48, n_epochs=2, learning_rate=0.005)
CONFIG = TrainingConfig(seed=3, node_width=8, pair_width=6, validate_every=2, teacher=TEACHER, ppo=PPO)


@cache
def worlds() -> tuple[World, World]:
    """Episodes to learn from and to choose by."""
    machine = "chapter-4-socket"
    family = SyntheticStream(num_tasks=20, num_objects=8)
    scenario = Scenario(
        "tiny", "A stream too short to learn much from", machine, load_machine(machine), family,
        RewardWeights(reference_s=0.05), window_s=0.2,
    )  # fmt: skip
    return world_of(scenario, Split.TRAIN, 8, 0), world_of(scenario, Split.VALIDATION, 4, 0)


@cache
def rule_costs() -> dict[str, float]:
    """What rules cost on the episodes to choose by."""
    return {rule.name: float(evaluate(rule, worlds()[1]).cost.mean()) for rule in (RULE, make_rule("greedy"))}


def make_trainer(folder: Path, config: TrainingConfig = CONFIG, rule: PricedGreedy = RULE, **changes: Any) -> Trainer:
    """A run that has not begun."""
    about = {"scenario": "tiny", "config": as_json(config)}
    return Trainer(*worlds(), rule, rule_costs(), config, folder, **{"about": about, **changes})


def whole_run(folder: Path) -> tuple[Trainer, list[Progress]]:
    """A run that nobody interrupted, and what it reported."""
    seen: list[Progress] = []
    trainer = make_trainer(folder, on_progress=seen.append)
    trainer.dashboard.describe({"seed": 3, "ppo.gamma": 0.98})
    trainer.run()
    return trainer, seen


def same_checkpoint(one: Path, two: Path) -> bool:
    """Whether two runs stand at the same place to the last bit: weights, optimisers, environments, costs."""
    (tensors, about), (others, other_about) = read_tensors(one), read_tensors(two)
    return about == other_about and {name: tensor.numpy().tobytes() for name, tensor in tensors.items()} == {
        name: tensor.numpy().tobytes() for name, tensor in others.items()
    }


class Stop:
    """Ctrl-C when so many updates are done."""

    def __init__(self, update: int) -> None:
        self.update = update
        self.phases: list[str] = []

    def __call__(self, progress: Progress) -> None:
        self.phases.append(progress.phase)
        if progress.update == self.update:
            raise KeyboardInterrupt

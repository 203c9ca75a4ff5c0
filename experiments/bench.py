"""How fast it is: simulator with observation, one decision, growth with nodes and batch, and PPO end to end.

Everything runs on one core, in one process, one after another, so that figures can be compared as ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from agents.ppo.config import PPOConfig
from agents.rules.base import Rule
from agents.rules.catalog import make_rule, rule_names
from envs.observation import ObservationKind
from envs.observation_kernel import Float32
from envs.world import Rows, World
from experiments.bench_decisions import decision_times, print_decisions
from experiments.files import require_writable, write_json
from numa_rl.machines.builders import mesh
from numa_rl.workloads.synthetic import SyntheticStream

BATCH = 1024
WARM_UP_STEPS = 64  # the machines fill up before the clock starts
NODE_SHAPES = ((2, 2), (2, 4), (4, 4), (4, 8), (8, 8))
RULE_BATCH = 256  # rows that rules decide for at once, as in an evaluation
BATCHES = (256, 1024, 4096, 16_384)


@dataclass(frozen=True)
class Bench:
    """Measure decisions per second on one core and write them to a file.

    Attributes:
        runs: repetitions of each measurement; the median counts.
        steps: steps of a batch in one repetition.
        out: the file.
    """

    runs: int = 5
    steps: int = 128
    out: Path = Path("results") / "bench.json"

    def run(self) -> None:
        """Measure, print and write.

        Raises:
            ValueError: fewer than 5 runs or 1 step, or a file that cannot be written.
        """
        if self.runs < 5:
            raise ValueError(f"--runs must be >= 5, got {self.runs}.")
        if not 1 <= self.steps <= 256:
            raise ValueError(f"--steps must be in 1..256, got {self.steps}.")
        require_writable(self.out, "--out")

        import torch  # takes seconds

        torch.set_num_threads(1)
        console = Console()
        with console.status("simulator and observation"):
            results: dict[str, Any] = {
                "chapter_decisions_per_s_core": self._simulator_rate(World.default(ObservationKind.CHAPTER), BATCH),
                "full_decisions_per_s_core": self._simulator_rate(World.default(), BATCH),
                "cartpole_steps_per_s": self._cartpole_rate(),
            }
        with console.status("rules"):
            results["rule_decisions_per_s_core"] = self._rule_rates()
        with console.status("one decision"):
            results["one_decision"] = decision_times(_mid_episode(), self.runs)
        with console.status("growth"):
            results["growth_with_nodes"] = [self._with_nodes(*shape) for shape in NODE_SHAPES]
            results["growth_with_batch"] = [self._with_batch(batch) for batch in BATCHES]
        with console.status("PPO"):
            results["ppo_decisions_per_s"] = self._ppo_rate()
        results |= {"batch": BATCH, "runs": self.runs, "steps": self.steps}
        write_json(self.out, results)
        _print(console, results)
        print_decisions(console, results["one_decision"])
        console.print(f"Written to {self.out}", highlight=False)

    def _median_rate(self, count: int, repeat: Callable[[], None]) -> float:
        """Median of count / seconds over the runs, after one that does not count."""
        repeat()
        rates = []
        for _ in range(self.runs):
            began = time.perf_counter()
            repeat()
            rates.append(count / (time.perf_counter() - began))
        return float(np.median(rates))

    def _simulator_rate(self, world: World, batch: int) -> float:
        """Decisions per second of `batch` rows: step and observe, placements drawn beforehand."""
        rows = Rows(world, batch)
        rows.generators = [np.random.default_rng([0, row]) for row in range(batch)]
        shape = (WARM_UP_STEPS + self.steps, batch, 2)
        actions = np.random.default_rng(0).integers(rows.simulator.num_nodes, size=shape)
        rates = []
        for _ in range(self.runs + 1):
            rows.reset()
            for step in range(WARM_UP_STEPS):
                rows.step(actions[step])
                rows.observe()
            began = time.perf_counter()
            for step in range(WARM_UP_STEPS, WARM_UP_STEPS + self.steps):
                rows.step(actions[step])
                rows.observe()
            rates.append(self.steps * batch / (time.perf_counter() - began))
        return float(np.median(rates[1:]))

    def _rule_rates(self) -> dict[str, float]:
        """Decisions per second of each rule alone, by name, from observations of tasks in mid-episode."""
        observation = _mid_episode()
        return {name: self._rule_rate(make_rule(name), observation) for name in rule_names()}

    def _rule_rate(self, rule: Rule, observation: Float32) -> float:
        """Decisions per second of one rule, which remembers what it remembers."""

        def repeat() -> None:
            state = None
            for _ in range(self.steps):
                _, state = rule.predict(observation, state)

        return self._median_rate(self.steps * len(observation), repeat)

    def _cartpole_rate(self) -> float:
        """Steps per second of Gymnasium's own vectorised CartPole, for scale."""
        env = gym.make_vec("CartPole-v1", num_envs=BATCH, vectorization_mode="vector_entry_point")
        env.reset(seed=0)
        actions = np.random.default_rng(0).integers(2, size=(self.steps, BATCH))

        def repeat() -> None:
            for action in actions:
                env.step(action)

        return self._median_rate(self.steps * BATCH, repeat)

    def _with_nodes(self, rows: int, columns: int) -> dict[str, float]:
        """Nanoseconds a decision on a mesh of this many nodes."""
        topology = mesh(rows, columns)
        workload = SyntheticStream(num_tasks=256).generate(np.random.default_rng(0), 16)
        world = World(workload, (topology,), World.default().weights, 0.05)
        n = topology.num_nodes
        nanoseconds = 1e9 / self._simulator_rate(world, max(64, 8192 // n))
        return {"nodes": n, "ns_per_decision": nanoseconds, "ns_per_decision_and_pair": nanoseconds / n**2}

    def _with_batch(self, batch: int) -> dict[str, float]:
        """Nanoseconds a decision, and bytes of state a machine, at this batch size."""
        world = World.default()
        state = Rows(world, 1).simulator.state
        num_bytes = sum(array.nbytes for array in state)
        return {
            "batch": batch,
            "ns_per_decision": 1e9 / self._simulator_rate(world, batch),
            "bytes_per_machine": num_bytes,
        }

    def _ppo_rate(self) -> float:
        """Decisions per second of Stable-Baselines3's PPO with the placement policy, rollout and training."""
        from stable_baselines3 import PPO  # torch takes seconds

        from agents.ppo.memory import keep_freed_memory
        from agents.ppo.policy import PlacementPolicy
        from agents.vec_env import NumaVecEnv

        keep_freed_memory()  # as training does
        config = PPOConfig()
        env = NumaVecEnv(World.default(), config.num_envs, reward_scale=0.02)
        model = PPO(
            PlacementPolicy,
            env,
            n_steps=config.n_steps,
            batch_size=config.batch_size,
            n_epochs=config.n_epochs,
            learning_rate=config.learning_rate,
            gamma=config.gamma,
            device="cpu",
            seed=0,
        )

        def repeat() -> None:
            model.learn(config.rollout, reset_num_timesteps=False)

        return self._median_rate(config.rollout, repeat)


def _mid_episode() -> Float32:
    """Observations of `RULE_BATCH` tasks in mid-episode, shape (B, size)."""
    rows = Rows(World.default(), RULE_BATCH)
    rows.generators = [np.random.default_rng([0, row]) for row in range(RULE_BATCH)]
    rows.reset()
    actions = np.random.default_rng(0).integers(rows.simulator.num_nodes, size=(WARM_UP_STEPS, RULE_BATCH, 2))
    for action in actions:
        rows.observe()
        rows.step(action)
    return rows.observe()


def _print(console: Console, results: dict[str, Any]) -> None:
    table = Table(title="One core, medians", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("measurement")
    table.add_column("per second", justify="right")
    for key, label in (
        ("chapter_decisions_per_s_core", "decisions, chapter's observation (8 nodes, batch 1024)"),
        ("full_decisions_per_s_core", "decisions, full observation"),
        ("ppo_decisions_per_s", "decisions of PPO, end to end"),
        ("cartpole_steps_per_s", "steps of Gymnasium's vectorised CartPole (batch 1024)"),
    ):
        table.add_row(label, f"{results[key]:,.0f}")
    rates = results["rule_decisions_per_s_core"]
    slowest = min(rates, key=rates.__getitem__)
    table.add_row(f"decisions of the slowest rule, {slowest} (batch {RULE_BATCH})", f"{rates[slowest]:,.0f}")
    console.print(table)
    for key in ("growth_with_nodes", "growth_with_batch"):
        rows = results[key]
        growth = Table(title=key.replace("_", " "), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for name in rows[0]:
            growth.add_column(name.replace("_", " "), justify="right")
        for row in rows:
            growth.add_row(*(f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in row.values()))
        console.print(growth)

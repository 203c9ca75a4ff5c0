"""Teaching a policy where a program's data belong, by someone who knows the program.

What a placement of moments or gradients costs shows thousands of decisions later, when the weights are updated: no
rollout looks so far ahead, and a policy gradient does not find it among all that happens meanwhile. The program knows
it. So the policy is shown, in the states that it comes to by itself, what one would do who knows to which rank each
task belongs [1]: run it and keep its object where the rank's weights arrived; sums are placed by a rule. The
policy itself is never told the rank: it has to see from the observation who belongs together, and decides test
episodes alone.

Dimension key: B rows, N nodes.

References:
    [1] S. Ross, G. Gordon, D. Bagnell, "A reduction of imitation learning and structured prediction to no-regret online
        learning", AISTATS 2011: the teacher says what to do in the states that the learner visits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import nn

from agents.evaluation import evaluate
from agents.ppo.config import PolicyConfig
from agents.ppo.policy import PlacementPolicy
from agents.ppo.storage import LearnedScheduler
from agents.rules.greedy import PricedGreedy
from agents.scheduler import Actions
from envs.observation import ObservationKind, Observer
from envs.world import World
from experiments.studies.imitation_config import ImitationConfig
from numa_rl.simulator.simulator import Simulator
from numa_rl.workloads.training import TransformerTraining
from numa_rl.workloads.training_tasks import Kind

Float32 = npt.NDArray[np.float32]

AT_HOME = tuple(kind for kind in Kind if kind not in (Kind.CHECKPOINT, Kind.ACTIVATION_SUM, Kind.GRADIENT_SUM))
FULL = ObservationKind.FULL
SENDS_KEPT = 0.25  # share of the sends' states that are learned from: they are half of all, and the rule knows them


class Teacher:
    """Who knows the ranks: home is where the player put a rank's checkpoint.

    Args:
        family: the program.
        rule: decides what has no home.
        num_rows: B.
    """

    def __init__(self, family: TransformerTraining, rule: PricedGreedy, num_rows: int) -> None:
        """Begin before the first task."""
        self._rule = rule
        self._kind, self._rank = family.task_kind, family.task_rank
        self._home = np.zeros((num_rows, family.num_ranks), np.int64)

    def actions(self, task: int, observation: Float32) -> Actions:
        """What the teacher would do with a task, shape (B, 2)."""
        if self._kind[task] in AT_HOME:
            return np.repeat(self._home[:, self._rank[task], None], 2, axis=1)
        return self._rule.predict(observation)[0][:, :2]

    def saw(self, task: int, data_node: npt.NDArray[np.integer]) -> None:
        """Take note of where the player has put the task's object, shape (B,)."""
        if self._kind[task] == Kind.CHECKPOINT:
            self._home[:, self._rank[task]] = data_node


def imitate(
    train: World,
    validation: World,
    family: TransformerTraining,
    rule: PricedGreedy,
    config: ImitationConfig,
    on_round: Callable[[int, float, float], None] = lambda number, agreement, seconds: None,
) -> PlacementPolicy:
    """Make a policy whose prior is the rule, and teach it; the fastest one on validation episodes is kept.

    Args:
        train: episodes to learn from; each round plays the next ones, from the first again after the last.
        validation: episodes to choose by.
        family: the program of both.
        rule: its prior, who also decides for the teacher what has no home.
        config: how.
        on_round: called after each round with its number, the share of states in which the policy did what the teacher
            would have done, and how long validation episodes take, mean seconds.
    """
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)  # the networks are small: more threads only wait for each other
    rng = np.random.default_rng(config.seed)
    policy = _new_policy(train, rule)
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate)
    seen: list[Float32] = []
    told: list[npt.NDArray[np.int64]] = []
    best, least_s = policy.state_dict(), np.inf
    for number in range(config.rounds):
        rows = (number * config.episodes + np.arange(config.episodes)) % train.workload.num_episodes
        player = None if number == 0 else LearnedScheduler(policy.scorer)
        observation, pair, agreement = _play(train, rows, Teacher(family, rule, len(rows)), player, family, rng)
        seen.append(observation)
        told.append(pair)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * max(1.0 - number / config.rounds, 0.1)
        _fit(policy, optimizer, np.concatenate(seen), np.concatenate(told), config, rng)
        seconds = float(evaluate(LearnedScheduler(policy.scorer), validation).finish_s.mean())
        on_round(number, agreement, seconds)
        if seconds < least_s:
            best, least_s = {name: value.clone() for name, value in policy.state_dict().items()}, seconds
    policy.load_state_dict(best)
    return policy


def _new_policy(world: World, rule: PricedGreedy) -> PlacementPolicy:
    """A policy that decides as the rule does."""
    observer = Observer(Simulator(world.topologies, world.workload, 1, window_s=world.window_s), world.weights, FULL)
    n = observer.layout.num_nodes
    return PlacementPolicy(
        spaces.Box(-np.inf, np.inf, (observer.layout.size,), np.float32),
        spaces.MultiDiscrete([n, n]),
        lambda _: 0.0,
        config=PolicyConfig(
            congestion_price=float(rule.congestion_price),
            crowding_price=float(rule.crowding_price),
            migration_share=float(rule.migration_share),
            alpha=float(rule.alpha),
        ),
    )


def _play(
    world: World,
    rows: npt.NDArray[np.int64],
    teacher: Teacher,
    player: LearnedScheduler | None,
    family: TransformerTraining,
    rng: np.random.Generator,
) -> tuple[Float32, npt.NDArray[np.int64], float]:
    """Play episodes, by the teacher where there is no player, and write down what the teacher would have done.

    Returns:
        Observations, the teacher's pairs n N + d, and the share of them that were played.
    """
    simulator = Simulator(world.topologies, world.workload, len(rows), window_s=world.window_s)
    simulator.reset(rows)
    observer = Observer(simulator, world.weights, FULL)
    seen, told, agreed = [], [], []
    for task in range(world.workload.num_tasks):
        observation = observer.observe().copy()
        wanted = teacher.actions(task, observation)
        actions = wanted if player is None else player.predict(observation)[0]
        agreed.append((actions == wanted).all(axis=1).mean())
        if family.task_kind[task] != Kind.ACTIVATION_SUM or rng.random() < SENDS_KEPT:
            seen.append(observation)
            told.append(wanted[:, 0] * simulator.num_nodes + wanted[:, 1])
        teacher.saw(task, simulator.step(actions).data_node)
    return np.concatenate(seen), np.concatenate(told), float(np.mean(agreed))


def _fit(
    policy: PlacementPolicy,
    optimizer: torch.optim.Optimizer,
    observation: Float32,
    pair: npt.NDArray[np.int64],
    config: ImitationConfig,
    rng: np.random.Generator,
) -> None:
    """Raise the likelihood of the teacher's pairs."""
    states, pairs = torch.from_numpy(observation), torch.from_numpy(pair)
    for _ in range(config.epochs):
        for batch in torch.split(torch.from_numpy(rng.permutation(len(pairs))), config.batch_size):
            logits, _ = policy.scorer(states[batch])
            loss = nn.functional.cross_entropy(logits, pairs[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()

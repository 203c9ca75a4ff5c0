"""Where a policy decides otherwise than a rule: every decision of some episodes, and what either choice leads to.

The policy plays. At every decision the rule is asked as well, and where the two differ both placements are tried in
copies: what the decision itself costs, and what it costs together with those that follow, which the priced greedy rule
makes, at the arrivals that then really come.

Dimension key: E episodes, T tasks, N nodes, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from agents.explain_situations import FEATURES, situations
from agents.rollouts import Rollouts
from agents.rules.base import Rule
from agents.rules.greedy import PricedGreedy
from agents.scheduler import Scheduler
from envs.observation import ObservationKind, Observer
from envs.world import World
from numa_rl.simulator.simulator import Simulator

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

FOLLOWED = 30  # decisions after the one looked at


class Kind(IntEnum):
    """How a decision differs from the rule's."""

    SAME = 0
    TASK_NODE = 1
    DATA_NODE = 2
    BOTH = 3


@dataclass(frozen=True, eq=False)
class Differences:
    """Every decision of the episodes, shape (E, T) each unless said otherwise.

    Attributes:
        pair: the policy's placement, (task node) N + (data node).
        rule_pair: the rule's.
        num_nodes: N.
        gain_now: what the rule's placement would have cost more in this decision; 0 where they are the same.
        gain: likewise in this decision and up to `FOLLOWED` after it.
        features: what there was to see, shape (E, T, F), see `agents.explain_situations`.
    """

    pair: I64
    rule_pair: I64
    num_nodes: int
    gain_now: F64
    gain: F64
    features: F64

    @property
    def kind(self) -> I64:
        """How each decision differs: values of `Kind`."""
        (n, d), (rule_n, rule_d) = (np.divmod(pair, self.num_nodes) for pair in (self.pair, self.rule_pair))
        return np.asarray(Kind.TASK_NODE * (n != rule_n) + Kind.DATA_NODE * (d != rule_d), np.int64)

    @property
    def differs(self) -> npt.NDArray[np.bool_]:
        """Whether any of the two nodes is another."""
        return np.asarray(self.pair != self.rule_pair)

    def most_telling(self, episode: int) -> int:
        """The task of an episode that cost most more, or less, than the rule's would have at once; 0 if none differ."""
        return int(np.abs(self.gain_now[episode]).argmax())


def find_differences(
    world: World,
    policy: Scheduler,
    rule: Rule,
    follower: PricedGreedy,
    *,
    episodes: npt.ArrayLike | None = None,
    num_threads: int = 1,
    on_task: Callable[[int], None] = lambda task: None,
) -> Differences:
    """Play episodes by the policy, on the world's first machine.

    Args:
        world: what is scheduled.
        policy: who decides.
        rule: who is asked as well; one that splits no pages.
        follower: who makes the decisions that follow.
        episodes: which episodes of the pool, an index array (E,); every one once by default.
        num_threads: threads that share what is tried; they change no result.
        on_task: called with every task before it is decided.

    Raises:
        ValueError: a world without the full observation, a rule that splits pages, or no such episode.
    """
    if world.observation != ObservationKind.FULL:
        raise ValueError(f"{rule.name} reads the full observation, got a world with {world.observation.value!r}.")
    pool = np.arange(world.workload.num_episodes) if episodes is None else np.asarray(episodes)
    rows, num_tasks = len(pool), world.workload.num_tasks
    simulator = Simulator(world.topologies, world.workload, rows, window_s=world.window_s)
    simulator.reset(pool)
    observer = Observer(simulator, world.weights, world.observation)
    now, later = (Rollouts(world, follower, rows, 2, depth, num_threads) for depth in (1, 1 + FOLLOWED))
    pairs = np.zeros((rows, num_tasks, 2), np.int64)
    gains = np.zeros((rows, num_tasks, 2))
    features = np.zeros((rows, num_tasks, len(FEATURES)))
    memory, rule_memory, start = None, None, np.ones(rows, bool)
    for task in range(num_tasks):
        on_task(task)
        seen = observer.observe()
        actions, memory = policy.predict(seen, state=memory, episode_start=start, deterministic=True)
        wanted, rule_memory = rule.predict(seen, state=rule_memory, episode_start=start)
        for each, who in enumerate((actions, wanted)):
            if who.shape[1] != 2:
                raise ValueError("placements to compare must be pairs of nodes, got pages split over nodes.")
            pairs[:, task, each] = who[:, 0] * simulator.num_nodes + who[:, 1]
        both = pairs[:, task]
        features[:, task] = situations(observer.layout.split(seen), both[:, 1])
        if (both[:, 0] != both[:, 1]).any():
            for column, rollouts in enumerate((now, later)):
                cost = rollouts.try_candidates(simulator, np.ascontiguousarray(both))
                gains[:, task, column] = cost[:, 1] - cost[:, 0]
        start = np.zeros(rows, bool)
        simulator.step(actions)
    return Differences(pairs[..., 0], pairs[..., 1], simulator.num_nodes, gains[..., 0], gains[..., 1], features)

"""Trying placements in the simulator: what each candidate costs together with the decisions that follow it.

One fused kernel tries a candidate and lets the priced greedy rule place what comes after, without writing
observations: three times faster than stepping the rule from outside, which `tests/test_teacher.py` holds it to.

Dimension key: B rows, K candidates, N nodes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from agents.rules import greedy
from agents.rules.greedy import PricedGreedy
from envs import reward
from envs.reward import RewardWeights
from envs.world import World
from numa_rl.compilation import compiled
from numa_rl.simulator.forecast import allocate_scratch, forecast
from numa_rl.simulator.kernel import advance, decide
from numa_rl.simulator.placement import find_room, has_room, write_shares
from numa_rl.simulator.simulator import Simulator
from numa_rl.simulator.state import allocate_work
from numa_rl.simulator.streams import resource_load

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

NO_WEIGHTS = np.zeros(0, np.int64)  # pages are not split
SOURCES = (greedy.__file__, reward.__file__)
_data_node_price = compiled(greedy.data_node_price)
_decision_cost = compiled(reward.decision_cost)


class Rollouts:
    """K trial rows for each row of a simulator.

    Args:
        world: what is scheduled.
        rule: places what comes after a candidate; its parameters are numbers, not arrays.
        num_rows: B.
        num_candidates: K.
        depth: decisions counted, the candidate's own included.
        discount: weight of each decision's cost over that of the one before it: what a candidate changes far ahead is
            mostly chance.
        own_discount: the same for tasks that use the candidate's own object: what it changes for these lasts.
        num_threads: threads that share the trial rows; they change no result.

    Raises:
        ValueError: the world's reward is not the plain `RewardWeights`, whose formula the kernel shares.
    """

    def __init__(
        self,
        world: World,
        rule: PricedGreedy,
        num_rows: int,
        num_candidates: int,
        depth: int,
        num_threads: int = 1,
        *,
        discount: float = 1.0,
        own_discount: float = 1.0,
    ) -> None:
        """Allocate the trial rows."""
        self.num_candidates = num_candidates
        self.depth = depth
        self.discounts = discount, own_discount
        self._weights, self._prices = kernel_weights(world.weights), kernel_prices(rule)
        rows = num_rows * num_candidates
        self.trials = Simulator(
            world.topologies, world.workload, rows, window_s=world.window_s, num_threads=num_threads
        )
        self._scratch = [allocate_rollout_scratch(self.trials) for _ in range(self.trials.chunks.count)]

    def try_candidates(self, simulator: Simulator, candidates: I64) -> F64:
        """Cost of each candidate and of the decisions after it, until `depth` or the episode's end.

        Args:
            simulator: where the rows stand; it is left as it is.
            candidates: pairs (task node) N + (data node), shape (B, K).

        Returns:
            Summed costs -R, shape (B, K).
        """
        for name, now in simulator.state._asdict().items():
            getattr(self.trials.state, name).reshape(*candidates.shape, *now.shape[1:])[...] = now[:, None]
        total = np.zeros(candidates.size)
        arguments = (
            self.trials.machines,
            self.trials.tasks,
            self.trials.state,
            self.trials.outcome,
            np.ascontiguousarray(candidates.reshape(-1)),
            self.depth,
            self.discounts,
            self._prices,
            self._weights,
            self.trials.window_s,
            total,
        )
        self.trials.chunks.run(lambda chunk, first, last: follow_rule(*arguments, self._scratch[chunk], first, last))
        return total.reshape(candidates.shape)


def kernel_weights(weights: RewardWeights) -> tuple[np.float64, ...]:
    """The reward as kernels take it.

    Raises:
        ValueError: it is not the plain `RewardWeights`, whose formula they share.
    """
    if type(weights) is not RewardWeights:
        raise ValueError(f"rollouts know the reward of RewardWeights alone, got {type(weights).__name__}.")
    return tuple(np.float64(number) for number in weights.numbers)


def kernel_prices(rule: PricedGreedy) -> tuple[np.float32, ...]:
    """The rule's prices as kernels take them.

    Raises:
        ValueError: a price is an array.
    """
    prices = {name: getattr(rule, name) for name in ("congestion_price", "crowding_price", "migration_share")}
    for name, price in prices.items():
        if np.ndim(price):
            raise ValueError(f"{rule.name}: {name} must be one number, got an array of shape {np.shape(price)}.")
    return tuple(np.float32(price) for price in prices.values())


def allocate_rollout_scratch(simulator: Simulator) -> tuple[Any, ...]:
    """Working arrays of one thread: those of `forecast`, what it writes, and outstanding work."""
    n = simulator.num_nodes
    matrices, migration = np.zeros((2, n * n), np.float32), np.zeros(n, np.float32)
    return (*allocate_scratch(simulator.machines), matrices, migration, allocate_work(simulator.machines))


@partial(compiled, sources=SOURCES)
def price_pairs(machines, tasks, state, b, prices, alpha, reference_s, window_s, scratch):
    """Write what the priced greedy rule makes of every pair for the next task of row b; infinite for closed ones.

    They end up in the first matrix of the scratch.
    """
    routes, resources, matrices, migration, work = scratch
    estimate, congestion = matrices[0], matrices[1]
    congestion_price, crowding_price, migration_share = prices
    forecast(
        machines, tasks, state, b, alpha, reference_s, window_s, routes, resources, estimate, congestion, migration
    )
    m, e, t = state.machine[b], state.episode[b], state.task[b]
    width = machines.cores.shape[1]
    nodes = machines.num_nodes[m]
    recent, idle = state.resource_bytes[b], machines.resource_s_per_byte[m]
    obj = tasks.each[e, t].object
    size = tasks.each[e, t].object_bytes
    home = state.objects[b, obj].node
    shares = work[0]
    if home >= 0:
        write_shares(machines, state, b, obj, shares)
    some = find_room(machines, state, b, 0, obj, size) >= 0
    for d in range(nodes):
        moved = np.float32(1.0 - shares[d]) if home >= 0 else np.float32(1.0)
        memory = np.float32(state.memory_used_bytes[b, d] / machines.memory_bytes[m, d])
        load = resource_load(recent[d], idle[d], window_s)
        price = _data_node_price(memory, load, moved, migration[d], crowding_price, migration_share, alpha)
        migration[d] = price if not some or has_room(machines, state, b, d, obj, size) else np.float32(np.inf)
    for n in range(width):
        for d in range(width):
            i = n * width + d
            is_open = n < nodes and d < nodes and machines.cores[m, n] > 0
            cost = estimate[i] + congestion_price * congestion[i] + migration[d]
            estimate[i] = cost if is_open else np.float32(np.inf)


@partial(compiled, sources=SOURCES)
def priced_pair(machines, tasks, state, b, prices, alpha, reference_s, window_s, scratch):
    """The pair that the priced greedy rule chooses for the next task of row b."""
    price_pairs(machines, tasks, state, b, prices, alpha, reference_s, window_s, scratch)
    costs = scratch[2][0]
    best = np.int64(0)
    for i in range(len(costs)):
        if costs[i] < costs[best]:
            best = np.int64(i)
    return best


@partial(compiled, sources=SOURCES)
def play(machines, tasks, state, outcome, b, pair, weights, window_s, work):
    """Run the next task of row b by the pair, move on to the one after it, and return what that cost."""
    width = machines.cores.shape[1]
    alpha, beta, reference_s, penalty = weights
    decide(machines, tasks, state, outcome, b, pair // width, pair % width, NO_WEIGHTS, window_s, work)
    advance(machines, tasks, state, b, window_s)
    return _decision_cost(
        outcome.exec_s[b],
        outcome.comm_s[b],
        outcome.imbalance[b],
        outcome.out_of_memory[b],
        alpha,
        beta,
        reference_s,
        penalty,
    )


@partial(compiled, sources=SOURCES)
def uses(tasks, e, t, obj):
    """Whether task t of episode e accesses an object, as its own or as an input."""
    used = tasks.each[e, t].object == obj
    for p in range(tasks.inputs.shape[2]):
        used |= tasks.inputs[e, t, p].object == obj
    return used


@partial(compiled, sources=SOURCES)
def follow(
    machines, tasks, state, outcome, b, pair, depth, limit, prices, weights, window_s, scratch, discounts=(1.0, 1.0)
):
    """Run the next task of row b by the pair and let the priced greedy rule place what follows.

    Returns what up to `depth` decisions cost together, each one's cost weighed by the discount more often than that of
    the one before it, by the second one if it uses the first task's object; it ends early once that is `limit` or more.
    """
    alpha, _, reference_s, _ = weights
    discount, own_discount = discounts
    total, weight, own_weight = 0.0, 1.0, 1.0
    e = state.episode[b]
    obj = tasks.each[e, state.task[b]].object
    for step in range(depth):
        if state.task[b] >= state.horizon[b] or total >= limit:
            break
        if step > 0:
            pair = priced_pair(
                machines, tasks, state, b, prices, np.float32(alpha), np.float32(reference_s), window_s, scratch
            )
        counted = own_weight if discount != own_discount and uses(tasks, e, state.task[b], obj) else weight
        total += counted * play(machines, tasks, state, outcome, b, pair, weights, window_s, scratch[4])
        weight *= discount
        own_weight *= own_discount
    return total


@partial(compiled, sources=SOURCES)
def follow_rule(
    machines, tasks, state, outcome, pairs, depth, discounts, prices, weights, window_s, total, scratch, first, last
):
    """Play rows `first` to `last` from their candidates on, and sum what their decisions cost."""
    for b in range(first, last):
        total[b] = follow(
            machines, tasks, state, outcome, b, pairs[b], depth, np.inf, prices, weights, window_s, scratch, discounts
        )

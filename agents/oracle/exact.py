"""The optimum of a small episode, proven by branch and bound over the real simulator.

All placements (task node, data node) of every task are tried, in the order of the tasks, unless a bound shows that
they lead to nothing better. Pages are not split here. The bound on the rest of an episode adds up, over its tasks,
the least that each can cost on any node with cores:

    wait until a core of that node is free, as it is now, and until the object and the inputs are written,
    + max(flops / peak, bytes x the least seconds per byte to any memory) + overhead
    + alpha x (input bytes x the same + the least latency), for inputs that will be there.

Loads only ever slow a stream, so figures of the idle machine are least ones; migration, coherence and Imbalance are
at least 0. Where a task might be dropped for want of memory, it costs at least the lower of this and the penalty, and
nothing is said of waits and inputs, for who was dropped writes nothing.

Dimension key: T tasks, N nodes, P = N * N placements.

References:
    [1] A. H. Land, A. G. Doig, "An automatic method of solving discrete programming problems", Econometrica 28(3),
        1960: branch and bound.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agents.accesses import accesses, creators, input_bytes
from agents.oracle.beam import Oracle
from agents.oracle.exact_kernel import Least, Tree, branch_and_bound
from agents.oracle.plays import played
from agents.oracle.rows import row_bytes
from agents.rollouts import kernel_weights
from agents.scheduler import Actions
from envs.world import World
from numa_rl.simulator.simulator import Simulator
from numa_rl.simulator.state import allocate_work

F64 = npt.NDArray[np.float64]

GAP = 1e-9  # a plan this much better, as a share of the cost, is not looked for: rounding is as large
ROUNDING = 1e-5  # the simulator computes times in single precision
SLICE = 50_000  # placements between looks at the clock
MOST_BYTES = 2**30  # of the states on and beside a path


@dataclass(frozen=True, eq=False)
class Optimum:
    """What branch and bound found.

    Attributes:
        cost: mean cost -R of a decision under the best plan found.
        bound: no plan costs less than this, but for rounding; equal to `cost` if that is proven.
        plan: the placements, shape (T, 2).
        placements: how many were tried, of single tasks.
    """

    cost: float
    bound: float
    plan: Actions
    placements: int

    @property
    def proven(self) -> bool:
        """Whether no plan is better."""
        return self.bound >= self.cost

    def __str__(self) -> str:
        """The answer in one line."""
        if self.proven:
            return f"{self.cost:.6g}, proven after {self.placements} placements"
        return f"best found {self.cost:.6g}, bound {self.bound:.6g}, after {self.placements} placements"


def optimum(
    world: World,
    machine: int = 0,
    episode: int = 0,
    *,
    max_placements: int = 2_000_000,
    max_seconds: float = np.inf,
    start: Actions | None = None,
) -> Optimum:
    """The cheapest placements of one episode, among all (task node, data node).

    Args:
        world: what is scheduled.
        machine: which of its machines.
        episode: which episode of its pool.
        max_placements: give up after about so many.
        max_seconds: give up after about so long; unlike the other limit it makes a result depend on the computer.
        start: a plan to improve on, shape (T, 2); that of a beam search by default.

    Raises:
        ValueError: the world's reward is not the plain `RewardWeights`, a limit is not positive, or the episode is so
            large that the states on one path do not fit into `MOST_BYTES`.
    """
    if not max_placements > 0 or not max_seconds > 0:
        raise ValueError(f"limits must be > 0, got {max_placements} placements and {max_seconds} s.")
    weights = kernel_weights(world.weights)
    num_tasks = world.workload.num_tasks
    rows = 1 + num_tasks * max(topology.num_nodes for topology in world.topologies) ** 2
    one_row = Simulator(world.topologies, world.workload, 1, window_s=world.window_s)
    num_bytes = rows * sum(array.nbytes for array in one_row.state)
    if num_bytes > MOST_BYTES:
        raise ValueError(
            f"branch and bound is for small episodes: {num_tasks} tasks on {one_row.num_nodes} nodes must need at most "
            f"{MOST_BYTES} bytes, got {num_bytes}."
        )
    simulator = Simulator(world.topologies, world.workload, rows, window_s=world.window_s)
    simulator.reset(episode, machines=machine)
    which = np.array([machine]), np.array([episode])
    if start is None:
        start = Oracle(width=8, candidates=8, depth=min(num_tasks, 32)).search(world, *which)[0]
    tree = _tree(num_tasks, simulator.num_nodes, start, played(start[None], world, *which)[1])
    least = least_times(world, simulator, machine, episode)
    until = time.monotonic() + max_seconds
    done = False
    while not done:
        branch_and_bound(
            simulator.machines,
            simulator.tasks,
            simulator.state,
            simulator.outcome,
            row_bytes(simulator.state),
            tree,
            least,
            GAP,
            min(max_placements, int(tree.position[1]) + SLICE),
            weights,
            simulator.window_s,
            allocate_work(simulator.machines),
            np.zeros(world.workload.num_objects),
        )
        done = tree.position[0] < 0 or tree.position[1] >= max_placements or time.monotonic() >= until
    best = float(tree.best_cost[0])
    n = simulator.num_nodes
    return Optimum(
        cost=best / num_tasks,
        bound=min(best, _least_left(tree)) / num_tasks,
        plan=np.stack([tree.best // n, tree.best % n], axis=-1),
        placements=int(tree.position[1]),
    )


def _tree(num_tasks: int, num_nodes: int, plan: Actions, cost: F64) -> Tree:
    """Nothing tried yet, and a plan to improve on."""
    placements = num_nodes**2
    return Tree(
        bound=np.full((num_tasks, placements), np.inf),
        cost=np.zeros((num_tasks, placements)),
        order=np.zeros((num_tasks, placements), np.int64),
        tried=np.zeros(num_tasks, np.int64),
        fit=np.zeros(num_tasks, np.int64),
        path=np.zeros(num_tasks, np.int64),
        best=plan[:, 0] * num_nodes + plan[:, 1],
        best_cost=cost.copy(),
        position=np.zeros(2, np.int64),
    )


def _least_left(tree: Tree) -> float:
    """The lowest bound of what has not been tried."""
    lowest = np.inf
    for t in range(int(tree.position[0]) + 1):
        if tree.tried[t] < tree.fit[t]:
            lowest = min(lowest, float(tree.bound[t, tree.order[t, tree.tried[t]]]))
    return lowest


def least_times(world: World, simulator: Simulator, machine: int, episode: int) -> Least:
    """The least that each task of an episode can take on each node of a machine, whatever is decided.

    Args:
        world: what is scheduled.
        simulator: of that world; its figures are those that times are computed with.
        machine: which machine.
        episode: which episode.
    """
    workload, figures, n = world.workload, simulator.machines, simulator.num_nodes
    k = int(figures.num_nodes[machine])
    latency = figures.latency_s[machine].reshape(n, n)[:k, :k].astype(np.float64)
    s_per_byte = np.maximum(
        figures.pair_s_per_byte[machine].reshape(n, n)[:k, :k], figures.resource_s_per_byte[machine, :k]
    )
    s_per_byte = np.maximum(s_per_byte, latency / figures.outstanding_bytes[machine]).min(axis=1)  # (k,)
    flops, moved = (getattr(workload, name)[episode].astype(np.float64)[:, None] for name in ("flops", "bytes"))
    read = input_bytes(accesses(workload, episode), workload.num_tasks)[:, None]
    creates = creators(workload, episode) == np.arange(workload.num_tasks)
    service = np.maximum(flops * figures.s_per_flop[machine, :k], moved * s_per_byte)
    service += workload.overhead_s[episode, :, None]
    inputs = read * s_per_byte + (read > 0) * latency.min(axis=1)
    fits = _always_fits(world, machine, episode)
    slack = 1.0 - ROUNDING

    def padded(times: F64, missing: float) -> F64:
        return np.pad(times * slack, ((0, 0), (0, n - k)), constant_values=missing)

    return Least(
        service_s=padded(np.where(figures.cores[machine, :k] > 0, service, np.inf), np.inf),
        inputs_s=padded(inputs if fits else np.zeros_like(inputs), 0.0),
        writes=creates | (workload.write_fraction[episode] > 0.0),
        dropped_cost=np.inf if fits else world.weights.out_of_memory_penalty,
        waits=bool(fits and not workload.follows_inputs),
    )


def _always_fits(world: World, machine: int, episode: int) -> bool:
    """Whether all objects at their largest fit together into one node's memory: then no task is ever dropped."""
    largest = np.zeros(world.workload.num_objects)
    np.maximum.at(largest, world.workload.object[episode], np.ceil(world.workload.object_bytes[episode]))
    return bool(largest.sum() <= world.topologies[machine].memory_bytes.max())

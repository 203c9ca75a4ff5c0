"""The events of workers with deques, compiled by numba.

Time moves from event to event: a task comes to its worker, or a worker is free. A free worker takes the newest of its
own tasks; if it has none it looks at others, and takes the oldest task of one. What it finds is as it was when it
began to look. Queues are linked lists through the tasks.

Dimension key: W workers, K tasks, N nodes; levels and strategies are numbered as in `levels.py` and here.

References:
    [1] The chapter, exercise 5: hierarchical work stealing.
    [2] G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014: SplitMix64.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from numa_rl.compilation import compiled
from numa_rl.stealing import adaptation, levels
from numa_rl.stealing.levels import FAR, OWN_QUEUE, SAME_NODE

NONE, RANDOM, FIXED, ADAPTIVE = range(4)
NOBODY = -1
SOURCES = (__file__, adaptation.__file__, levels.__file__)
GOLDEN, FIRST, SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

here = partial(compiled, sources=SOURCES)
adapt, threshold, probability = here(adaptation.adapt), here(adaptation.threshold), here(adaptation.probability)


class Problem(NamedTuple):
    """What never changes."""

    arrival_s: F64  # (K,) in order
    home: I64  # (K,) the worker whose deque a task comes to
    run_s: F64  # (K, N) how long it runs on each node
    node: I64  # (W,)
    latency_s: F64  # (N, N)
    victims: I64  # (W, W - 1) other workers, nearest level first
    begins: I64  # (W, levels + 1) where each level begins among them


class Rules(NamedTuple):
    """How workers steal."""

    strategy: int
    base_threshold: F64  # (levels,)
    base_probability: F64  # (levels,)
    rate: float
    least_share: float
    pause_s: float  # after looking in vain


class Run(NamedTuple):
    """What a run writes."""

    worker: I64  # (K,) who ran each task
    start_s: F64  # (K,)
    level: I64  # (K,) at which it was taken
    times_run: I64  # (K,)
    tries: I64  # (levels,)
    steals: I64  # (levels,)
    steal_latency_s: F64  # (levels,) L_ij summed over steals
    success: F64  # (W, levels)
    newer: I64  # (K,) neighbours in the deque
    older: I64  # (K,)
    newest: I64  # (W,)
    oldest: I64  # (W,)
    length: I64  # (W,)
    wake_s: F64  # (W,) when each worker is next free, `inf` while it sleeps
    random: npt.NDArray[np.uint64]  # (1,) state of the generator


@here
def uniform(run):
    """The next number of the generator, in [0, 1) [2]."""
    run.random[0] += GOLDEN
    bits = run.random[0]
    bits = (bits ^ (bits >> np.uint64(30))) * FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * SECOND
    bits ^= bits >> np.uint64(31)
    return (bits >> np.uint64(11)) * 2.0**-53


@here
def push(run, worker, task):
    """Put a task on the new end of a deque."""
    before = run.newest[worker]
    run.older[task] = before
    run.newer[task] = NOBODY
    if before == NOBODY:
        run.oldest[worker] = task
    else:
        run.newer[before] = task
    run.newest[worker] = task
    run.length[worker] += 1


@here
def take(run, worker, own):
    """Take the newest task of a deque, or the oldest if it is another worker's."""
    task = run.newest[worker] if own else run.oldest[worker]
    newer, older = run.newer[task], run.older[task]
    if newer == NOBODY:
        run.newest[worker] = older
    else:
        run.older[newer] = older
    if older == NOBODY:
        run.oldest[worker] = newer
    else:
        run.newer[older] = newer
    run.length[worker] -= 1
    return task


@here
def share_of(rules, run, thief, level):
    """Success of a level as a share of the best one's, 1 unless rules adapt."""
    if rules.strategy != ADAPTIVE:
        return 1.0
    best = 0.0
    for other in range(SAME_NODE, FAR + 1):
        best = max(best, run.success[thief, other])
    return probability(run.success[thief, level], best, rules.least_share)


@here
def look(problem, rules, run, thief, level):
    """Look at one worker of a level, or of all if victims are random: (victim or `NOBODY`, its level, time it took)."""
    first, end = problem.begins[thief, level], problem.begins[thief, level + 1]
    if rules.strategy == RANDOM:
        first, end = 0, problem.victims.shape[1]
    if first == end:
        return NOBODY, level, 0.0
    share = share_of(rules, run, thief, level)
    if rules.strategy != RANDOM and uniform(run) >= rules.base_probability[level] * share:
        return NOBODY, level, 0.0
    pick = first + int(uniform(run) * (end - first))
    victim = problem.victims[thief, pick]
    while rules.strategy == RANDOM and problem.begins[thief, level + 1] <= pick:
        level += 1
    least_difference = 0.0 if rules.strategy == RANDOM else threshold(rules.base_threshold[level], share)
    found = run.length[victim] - run.length[thief] > least_difference
    run.tries[level] += 1
    run.success[thief, level] = adapt(run.success[thief, level], 1.0 if found else 0.0, rules.rate)
    latency_s = problem.latency_s[problem.node[thief], problem.node[victim]]
    return (victim if found else NOBODY), level, latency_s


@here
def start(problem, run, worker, task, level, now_s):
    """Run a task on a worker, who is free again when it ends."""
    run.worker[task], run.level[task], run.start_s[task] = worker, level, now_s
    run.times_run[task] += 1
    run.wake_s[worker] = now_s + problem.run_s[task, problem.node[worker]]


@here
def steal(problem, rules, run, thief, now_s):
    """Look level by level, and take a task if one is found; whether one was. Looking and taking cost L_ij each."""
    spent_s = 0.0
    for nearest in range(SAME_NODE, FAR + 1):
        victim, level, latency_s = look(problem, rules, run, thief, SAME_NODE if rules.strategy == RANDOM else nearest)
        spent_s += latency_s
        if victim != NOBODY:
            run.steals[level] += 1
            run.steal_latency_s[level] += latency_s
            start(problem, run, thief, take(run, victim, False), level, now_s + spent_s + latency_s)
            return True
    run.wake_s[thief] = now_s + spent_s + rules.pause_s
    return False


@here
def next_awake(run):
    """The worker who is free first, the lower one of equals."""
    first = 0
    for worker in range(1, len(run.wake_s)):
        if run.wake_s[worker] < run.wake_s[first]:
            first = worker
    return first


@here
def simulate(problem, rules, run):
    """Run all tasks; the time integral of sigma(Q), and when the last of them is taken."""
    num_tasks, num_workers = len(problem.arrival_s), len(run.wake_s)
    come = taken = waiting = squares = 0  # tasks that came, were taken, are in queues; sum of squared lengths
    now_s = area = 0.0
    while taken < num_tasks:
        worker = next_awake(run)
        comes = come < num_tasks and problem.arrival_s[come] <= run.wake_s[worker]
        then_s = problem.arrival_s[come] if comes else run.wake_s[worker]
        mean = waiting / num_workers
        area += (then_s - now_s) * np.sqrt(max(squares / num_workers - mean * mean, 0.0))
        now_s = then_s
        if comes:
            worker = problem.home[come]
            squares += 2 * run.length[worker] + 1
            push(run, worker, come)
            come += 1
            waiting += 1
            for sleeper in range(num_workers):
                if run.wake_s[sleeper] == np.inf:
                    run.wake_s[sleeper] = now_s
            continue
        if run.length[worker] > 0:
            squares -= 2 * run.length[worker] - 1
            start(problem, run, worker, take(run, worker, True), OWN_QUEUE, now_s)
        elif waiting == 0 or rules.strategy == NONE:
            run.wake_s[worker] = np.inf  # until a task comes
            continue
        elif not steal(problem, rules, run, worker, now_s):
            continue
        else:
            squares = 0
            for other in range(num_workers):
                squares += run.length[other] * run.length[other]
        taken += 1
        waiting -= 1
    return area, now_s

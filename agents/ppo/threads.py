"""How many threads torch should use for the small networks here: found by measuring, not by counting cores.

Threads of one operation wait for each other. On idle cores two are a little faster than one; on a busy machine, each
operation takes as long as the scheduler keeps the slower thread waiting, and steps become tens of times slower.
Libraries that wait by spinning make it worse: OMP_WAIT_POLICY=passive in the environment, before torch is loaded,
lets them sleep.

References:
    [1] https://docs.pytorch.org/docs/stable/notes/multiprocessing.html, section "Avoiding CPU oversubscription".
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable

import torch

from agents.ppo.scorer import PairScorer
from envs.observation import ObservationLayout

WARM_UP = 2  # steps before the clock: the first ones allocate and start threads
STEPS = 5  # timed with each number of threads, in turn
NEEDED_GAIN = 1.25  # more threads must be so many times faster: a busy minute later costs more than a quarter
MOST_THREADS = 8  # these networks are too small for more


def measured_threads(step: Callable[[], object], most: int | None = None) -> int:
    """Set torch's number of threads to the one with which a step is fastest, and return it.

    One thread is taken unless twice as many are faster by `NEEDED_GAIN`, then twice as many again, and so on. The
    slowest step with more threads has to beat the median one with fewer: a machine that is busy now and then makes
    threads wait now and then.

    Args:
        step: what is measured, a gradient step for example; it is called some times and must not change what is
            learned.
        most: threads to try at most; by default as many as there are processors with nothing to do, `MOST_THREADS`
            at most. On a busy machine that is one, and nothing is measured: a single step may take minutes there.

    Raises:
        ValueError: `most` is less than 1.
    """
    limit = min(_idle_processors(), MOST_THREADS) if most is None else most
    if limit < 1:
        raise ValueError(f"most must be >= 1, got {limit}.")
    if limit == 1:
        torch.set_num_threads(1)
        return 1
    best, best_s = 1, statistics.median(_seconds(step, 1))
    count = 2
    while count <= limit:
        limit_s = best_s / NEEDED_GAIN
        found_s = _seconds(step, count, limit_s)
        if max(found_s) > limit_s:
            break
        best, best_s = count, statistics.median(found_s)
        count *= 2
    torch.set_num_threads(best)
    return best


NUM_NODES = 8  # of the machine whose observations are measured with


def gradient_step(scorer: PairScorer, rows: int = 1024) -> None:
    """A step like those of training, in time and memory; nothing is learned from it."""
    observation = torch.ones(rows, ObservationLayout(NUM_NODES).size, device=scorer.log_scale.device)
    logits, values = scorer(observation)
    (logits.sum() + values.sum()).backward()
    scorer.zero_grad()


def _seconds(step: Callable[[], object], threads: int, limit_s: float = math.inf) -> list[float]:
    """How long some steps take with so many threads, up to the first one beyond the limit."""
    torch.set_num_threads(threads)
    for _ in range(WARM_UP):
        step()
    found_s = []
    for _ in range(STEPS):
        began = time.perf_counter()
        step()
        found_s.append(time.perf_counter() - began)
        if found_s[-1] > limit_s:  # on a busy machine each one may take seconds
            break
    return found_s


def _idle_processors() -> int:
    """Processors that this process may use and that no other has used of late, itself counted as one of them."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    others = max(0, round(os.getloadavg()[0]) - 1) if hasattr(os, "getloadavg") else 0
    return max(1, processors - others)

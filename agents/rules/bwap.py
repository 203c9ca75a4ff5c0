"""Pages by the bandwidth that those who use them see, then nearer to them while stalls fall.

Dimension key: B rows, N nodes; n = task node, w = worker, i = memory node.

References:
    [1] D. Gureya, J. Neto, R. Karimi, J. Barreto, P. Bhatotia, V. Quema, R. Rodrigues, P. Romano, V. Vlassov,
        "Bandwidth-aware page placement in NUMA", IPDPS 2020, sections III and IV.
    [2] BWAP's source, github.com/gureya/bwap, src/unstickymem/mode/WeightedAdaptiveMode.cpp: 20 measurements a step,
        5 outliers discarded at either end; stalls have grown if they exceed the least by 0.1% and, measured again
        with twice as many measurements and outliers, still do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agents.rules.base import (
    Array,
    Groups,
    Parameter,
    Placement,
    Range,
    Rule,
    is_new,
    nearest,
    per_row,
)
from agents.rules.carrefour import accessors
from agents.rules.linux import IMBALANCE, TOLERANCE, where_it_ran

MEASUREMENTS = 20  # of the stall rate, at each proximity; twice as many when it seems to have grown [2]
OUTLIERS = 5  # dropped at either end [2]
GROWTH = 1.001  # stalls beyond this times the least have grown [2]
SLACK = 1e-6  # of a step: sums of steps are not whole multiples of it
FAR = 1e-6  # a smaller share is none
PERCENT = 100  # what the weights of an object add up to

WAIT = 10  # measurements before the search begins: 2 s at one every 0.2 s [2]

# Columns of the memory; the measurements follow. A search waits, goes on, looks twice at a stall rate that grew, or
# is over.
PROXIMITY, COUNT, LEAST, SEARCH, FIRST = range(5)
WAITS, GOES_ON, LOOKS_TWICE, OVER = range(4)


@dataclass(frozen=True)
class Bwap(Rule):
    """Weighted interleaving by an asymmetric model of bandwidth, tuned while it runs [1].

    * Canonical weights: memory i gets pages in proportion to the least bandwidth that any worker draws from it,
      the workers being the nodes that use the pages.
    * Data-to-worker proximity: a share of the pages on other nodes that goes to the workers instead, in the
      workers' own proportions. It starts at 0 and grows by steps of 10% while the stall rate falls; once that has
      grown by more than 0.1%, the step is taken back and the search is over. A stall rate is the mean of 20
      measurements without the 5 largest and the 5 smallest, and looked at twice before it ends the search; the
      first 10 measurements, of a machine that was idle, do not count [2].

    BWAP places all pages of an application, whose threads are pinned. Here an object is what shares its pages and
    the workers are the nodes with a tenth or more of its recent accesses; of a new object, the node where its first
    task runs. Tasks stay where they were as far as first touch lets them. Proximity is one for all objects, as BWAP's
    is for all pages, and a measurement is a decision: for the pages of its object, what a byte costs the task's node
    at the loads that the controllers show, (1 + load) / bandwidth. Pages of an old object move only toward the
    workers: it is dealt out anew once they hold less than the proximity asks for, by more than half a step.

    Attributes:
        step: of the proximity.
        tolerance: as for first touch.

    Raises:
        ValueError: a parameter is not finite, or the step is not above 0 and at most 1.
    """

    name: ClassVar[str] = "bwap"
    tunable: ClassVar[Mapping[str, Range]] = {"step": Range(0.01, 1.0, log=True), "tolerance": TOLERANCE}
    num_remembered: ClassVar[int] = FIRST + 2 * MEASUREMENTS
    step: Parameter = 0.1
    tolerance: Parameter = IMBALANCE

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if not ((np.asarray(self.step) > 0) & (np.asarray(self.step) <= 1)).all():
            raise ValueError(f"{self.name}: step must be above 0 and at most 1, got {self.step}.")

    def place(self, groups: Groups, memory: Array) -> Placement:
        """The task as first touch, pages by the weights of its object's workers."""
        rows = np.arange(len(memory))
        node = where_it_ran(self.tolerance, groups)
        workers = accessors(groups["access"])
        workers[rows, node] |= ~workers.any(axis=-1)

        proximity, canonical = memory[:, PROXIMITY], canonical_shares(workers, groups)
        asked = proximity - 0.5 * per_row(self.step, 0)
        anew = is_new(groups) | ((proximity > 0) & (nearness(groups["data"], canonical, workers) < asked))
        shares = np.where(anew[:, None], brought_near(canonical, workers, proximity), groups["data"])
        measure(stalls(shares, node, groups), per_row(self.step, 0), memory)

        weights = np.diff(np.rint(PERCENT * shares.cumsum(axis=-1)), axis=-1, prepend=0.0)
        data_node = nearest(shares.argmax(axis=-1), groups["data_mask"], groups)  # where no node has room for pages
        return Placement(node, data_node, weights)


def canonical_shares(workers: Array, groups: Groups) -> Array:
    """Shares of pages in proportion to the least bandwidth that any worker draws from each memory, shape (B, N)."""
    seen = np.where(workers[:, :, None], groups["bandwidth"], np.inf).min(axis=1)
    seen = np.where(groups["data_mask"] > 0, seen, 0.0)
    return np.asarray(seen / seen.sum(axis=-1, keepdims=True))


def brought_near(shares: Array, workers: Array, proximity: Array) -> Array:
    """Shares (B, N) with a part (B,) of what other nodes hold given to the workers, in their own proportions."""
    own = np.where(workers, shares, 0.0)
    held = own.sum(axis=-1, keepdims=True)
    proximity = np.where(held > 0, proximity[:, None], 0.0)
    # Workers that hold h of the pages come to hold h + p (1 - h): each share grows by that ratio.
    growth = 1.0 + proximity * (1.0 - held) / np.maximum(held, np.finfo(np.float32).tiny)
    return np.where(workers, own * growth, shares * (1.0 - proximity))


def nearness(held: Array, shares: Array, workers: Array) -> Array:
    """The proximity that would bring the canonical shares to those held (B, N), 1 if none are far; shape (B,)."""
    near, canonical = (np.where(workers, part, 0.0).sum(axis=-1) for part in (held, shares))
    far = 1.0 - canonical
    return np.where(far > FAR, (near - canonical) / np.maximum(far, FAR), 1.0)


def stalls(shares: Array, node: Array, groups: Groups) -> Array:
    """What a byte of pages spread like this costs a core of `node`, times the best bandwidth of all, shape (B,)."""
    bandwidth = groups["bandwidth"][np.arange(len(node)), node]
    loaded = 1.0 + groups["communication"].sum(axis=1)
    return np.asarray((shares * loaded / np.where(bandwidth > 0, bandwidth, np.inf)).sum(axis=-1))


def measure(stall: Array, step: Array, memory: Array) -> None:
    """Note a measurement (B,) in the memory (B, K); those that have enough go on with or end the search."""
    rows = np.flatnonzero(memory[:, SEARCH] != OVER)
    count = memory[rows, COUNT].astype(np.int64)
    memory[rows, FIRST + count] = stall[rows]
    memory[rows, COUNT] += 1
    begins = rows[(memory[rows, SEARCH] == WAITS) & (count + 1 == WAIT)]
    memory[begins, SEARCH], memory[begins, COUNT] = GOES_ON, 0
    step = np.broadcast_to(step, len(memory))
    for search, times in ((GOES_ON, 1), (LOOKS_TWICE, 2)):
        full = rows[(memory[rows, SEARCH] == search) & (count + 1 == times * MEASUREMENTS)]
        if full.size:
            taken = np.sort(memory[full, FIRST : FIRST + times * MEASUREMENTS], axis=-1)
            middle = taken[:, times * OUTLIERS : -times * OUTLIERS].mean(axis=-1)
            memory[full] = decided(memory[full], middle, step[full])


def decided(memory: Array, stall: Array, step: Array) -> Array:
    """The memory (A, K) of rows that have measured a stall rate (A,) at their proximity."""
    proximity, least = memory[:, PROXIMITY], memory[:, LEAST]
    least = np.where(least > 0, least, stall)  # none measured yet
    grown = stall > GROWTH * least
    again = grown & (memory[:, SEARCH] == GOES_ON)
    ends = ~again & (grown | (proximity >= 1.0))
    before = np.floor(proximity / step - SLACK) * step  # the last step may have been cut at 1
    after = memory.copy()
    after[:, PROXIMITY] = np.where(again, proximity, np.where(grown, before, np.minimum(proximity + step, 1.0)))
    after[:, LEAST] = np.minimum(stall, least)
    after[:, SEARCH] = np.where(again, LOOKS_TWICE, np.where(ends, OVER, GOES_ON))
    after[:, COUNT] = 0
    return after

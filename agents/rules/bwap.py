"""Pages by the bandwidth that those who use them see, then nearer to them while stalls fall.

Dimension key: B rows, N nodes; n = task node, w = worker, i = memory node.

References:
    [1] D. Gureya, J. Neto, R. Karimi, J. Barreto, P. Bhatotia, V. Quema, R. Rodrigues, P. Romano, V. Vlassov,
        "Bandwidth-aware page placement in NUMA", IPDPS 2020, sections III and IV.
    [2] BWAP's source, github.com/gureya/bwap, src/unstickymem/mode/WeightedAdaptiveMode.cpp: 20 measurements a step,
        5 outliers discarded at either end, stalls have grown if they exceed the least by 0.1%.
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

MEASUREMENTS = 20  # of the stall rate, at each proximity [2]
OUTLIERS = 5  # dropped at either end [2]
GROWTH = 1.001  # stalls beyond this times the least have grown [2]
SLACK = 1e-6  # of a step: sums of steps are not whole multiples of it
PERCENT = 100  # what the weights of an object add up to

# Columns of the memory; the measurements follow.
PROXIMITY, COUNT, LEAST, DONE, FIRST = range(5)


@dataclass(frozen=True)
class Bwap(Rule):
    """Weighted interleaving by an asymmetric model of bandwidth, tuned while it runs [1].

    * Canonical weights: memory i gets pages in proportion to the least bandwidth that any worker draws from it,
      the workers being the nodes that use the pages.
    * Data-to-worker proximity: a share of the pages on other nodes that goes to the workers instead, in the
      workers' own proportions. It starts at 0 and grows by steps of 10% while the stall rate falls; once that grows
      by more than 0.1%, the step is taken back and the search is over. A stall rate is the mean of 20 measurements
      without the 5 largest and the 5 smallest [2].

    BWAP places all pages of an application, whose threads are pinned. Here an object is what shares its pages and
    the workers are the nodes with a tenth or more of its recent accesses; of a new object, the node where its first
    task runs. Tasks stay where they were as far as first touch lets them. Proximity is one for all objects, as BWAP's
    is for all pages, and a measurement is a decision: for the pages of its object, what a byte costs the task's node
    at the loads that the controllers show, (1 + load) / bandwidth. Pages of an old object are dealt out anew when
    more than half a step of them would move.

    Attributes:
        step: of the proximity.
        tolerance: as for first touch.
    """

    name: ClassVar[str] = "bwap"
    tunable: ClassVar[Mapping[str, Range]] = {"step": Range(0.01, 1.0, log=True), "tolerance": TOLERANCE}
    num_remembered: ClassVar[int] = FIRST + MEASUREMENTS
    step: Parameter = 0.1
    tolerance: Parameter = IMBALANCE

    def place(self, groups: Groups, memory: Array) -> Placement:
        """The task as first touch, pages by the weights of its object's workers."""
        rows = np.arange(len(memory))
        node = where_it_ran(self.tolerance, groups)
        workers = accessors(groups["access"])
        workers[rows, node] |= ~workers.any(axis=-1)

        wanted = brought_near(canonical_shares(workers, groups), workers, memory[:, PROXIMITY])
        moving = 0.5 * np.abs(wanted - groups["data"]).sum(axis=-1)
        anew = is_new(groups) | (moving > 0.5 * per_row(self.step, 0))
        shares = np.where(anew[:, None], wanted, groups["data"])
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


def stalls(shares: Array, node: Array, groups: Groups) -> Array:
    """What a byte of pages spread like this costs a core of `node`, times the best bandwidth of all, shape (B,)."""
    bandwidth = groups["bandwidth"][np.arange(len(node)), node]
    loaded = 1.0 + groups["communication"].sum(axis=1)
    return np.asarray((shares * loaded / np.where(bandwidth > 0, bandwidth, np.inf)).sum(axis=-1))


def measure(stall: Array, step: Array, memory: Array) -> None:
    """Note a measurement (B,) in the memory (B, K); those that have enough take a step or end the search."""
    rows = np.flatnonzero(memory[:, DONE] == 0)
    count = memory[rows, COUNT].astype(np.int64)
    memory[rows, FIRST + count] = stall[rows]
    memory[rows, COUNT] += 1
    full = rows[count + 1 == MEASUREMENTS]
    if full.size:
        step = np.broadcast_to(step, len(memory))[full]
        middle = np.sort(memory[full, FIRST:], axis=-1)[:, OUTLIERS:-OUTLIERS].mean(axis=-1)
        memory[full] = decided(memory[full], middle, step)


def decided(memory: Array, stall: Array, step: Array) -> Array:
    """The memory (A, K) of rows that have measured a stall rate (A,) at their proximity."""
    first = memory[:, LEAST] == 0
    grown = ~first & (stall > GROWTH * memory[:, LEAST])
    nearer = np.minimum(memory[:, PROXIMITY] + step, 1.0)
    after = memory.copy()
    after[:, DONE] = grown | (memory[:, PROXIMITY] >= 1.0)
    before = np.floor(memory[:, PROXIMITY] / step - SLACK) * step  # the last step may have been cut at 1
    after[:, PROXIMITY] = np.where(grown, before, nearer)
    after[:, LEAST] = np.where(first, stall, np.minimum(stall, memory[:, LEAST]))
    after[:, COUNT] = 0
    return after

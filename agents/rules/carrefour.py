"""Managing traffic instead of distance: replicate, interleave or migrate, by what the counters say.

Dimension key: B rows, N nodes; n = task node, i = memory node.

References:
    [1] M. Dashti, A. Fedorova, J. Funston, F. Gaud, R. Lachaize, B. Lepers, V. Quema, M. Roth, "Traffic management:
        a holistic approach to memory placement on NUMA systems", ASPLOS 2013, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from agents.rules.base import (
    Array,
    Groups,
    Parameter,
    Placement,
    Range,
    Rule,
    is_new,
    is_split,
    nearest,
    page_rows,
    per_row,
)
from agents.rules.linux import IMBALANCE, TOLERANCE, where_it_ran
from envs.observation_kernel import TaskFeature

ACCESSOR_SHARE = 0.1  # fewer of an object's accesses than this are what sampling misses
COPIES = 1.5  # more of an object than this is more than one copy of it
MEMORY_OF_READS = 256  # decisions over which the read ratio is averaged: Carrefour's second of counting


class Counters(NamedTuple):
    """What Carrefour reads off the hardware, shape (B,) each."""

    accesses_per_us: Array  # of DRAM, by the whole machine
    imbalance: Array  # sigma / mu of the controllers' accesses
    local_ratio: Array  # accesses to the own node over all
    memory_share: Array  # memory in use over all memory


@dataclass(frozen=True)
class Carrefour(Rule):
    """Tasks as first touch runs them; data by Carrefour's two levels of decisions [1].

    For the machine, nothing is done unless DRAM serves more than 50 accesses per us. Then

    * replication is on if at least 95% of the bytes accessed are read and at most 25% of memory is in use,
    * interleaving if the controllers' accesses have a standard deviation above 35% of their mean,
    * migration if less than 80% of the accesses are local.

    For an object, the accessors being the task's node and every other with a tenth or more of its recent accesses:

    * one accessor: it migrates there,
    * several, and it is only read: this task's node gets a replica,
    * several, and it is written or replication is off: its pages are interleaved.

    Where the fitting measure is off, the object stays as it is. Carrefour works on sampled pages, this rule on the
    object that a task is about to access. It would replicate a page that is mostly read and collapse it at the
    next write; here only objects that no task writes are replicated. On the other hand, sending a read-only object
    elsewhere leaves its old copy behind, so its migration is a replica too. The read ratio is an average over the
    last decisions, as the paper's is over the last second.

    Attributes:
        busy_per_us: accesses per us above which it acts.
        read_ratio: from which on it replicates.
        memory_share: of memory in use, up to which it replicates.
        imbalance: sigma / mu above which it interleaves.
        local_ratio: below which it migrates.
        tolerance: as for first touch.
        accesses_per_us: what the machine's controllers serve at full load, in cache lines; belongs to the machine
            and is not tuned. The default is eight controllers of 100 GB/s.
    """

    name: ClassVar[str] = "carrefour"
    tunable: ClassVar[Mapping[str, Range]] = {
        "busy_per_us": Range(1.0, 10000.0, log=True),
        "read_ratio": Range(0.5, 1.0),
        "memory_share": Range(0.05, 1.0),
        "imbalance": Range(0.01, 2.0, log=True),
        "local_ratio": Range(0.0, 1.0),
        "tolerance": TOLERANCE,
    }
    num_remembered: ClassVar[int] = 2  # bytes accessed and bytes written, lately
    busy_per_us: Parameter = 50.0
    read_ratio: Parameter = 0.95
    memory_share: Parameter = 0.25
    imbalance: Parameter = 0.35
    local_ratio: Parameter = 0.80
    tolerance: Parameter = IMBALANCE
    accesses_per_us: Parameter = 12500.0

    def place(self, groups: Groups, memory: Array) -> Placement:
        """The task as first touch, the object by the two levels of decisions."""
        rows = np.arange(len(memory))
        node = where_it_ran(self.tolerance, groups)
        counters = read_counters(groups, self.accesses_per_us)
        read_ratio = count_reads(groups["task"], memory)

        busy = (counters.accesses_per_us > per_row(self.busy_per_us, 0)) & ~is_new(groups)
        replicates = busy & (read_ratio >= per_row(self.read_ratio, 0))
        replicates &= counters.memory_share <= per_row(self.memory_share, 0)
        interleaves = busy & (counters.imbalance > per_row(self.imbalance, 0))
        migrates = busy & (counters.local_ratio < per_row(self.local_ratio, 0))

        users = accessors(groups["access"])
        users[rows, node] = True
        alone = users.sum(axis=-1) == 1
        replicates &= ~alone & (groups["task"][:, TaskFeature.READ_ONLY] > 0)
        copies = groups["data"].sum(axis=-1) > COPIES
        interleaves &= ~alone & ~replicates & ~copies
        comes = is_new(groups) | (migrates & alone) | replicates

        here = nearest(node, groups["data_mask"], groups)
        stays = nearest(nearest(node, groups["data"], groups), groups["data_mask"], groups)  # of copies the nearest
        already = is_split(groups)
        pages = page_rows(interleaves & ~already, groups["data_mask"] > 0)
        pages += page_rows(already & ~comes, groups["data"] > 0)
        return Placement(node, np.where(comes, here, stays), pages)


def read_counters(groups: Groups, accesses_per_us: Parameter) -> Counters:
    """What the counters say; `accesses_per_us` is what the machine serves at full load.

    `communication` is bytes over what the target can move in the time, and a target moves what its own cores draw
    from it, so their product is bytes up to a factor that all nodes share.
    """
    exists = groups["nodes"] > 0
    capacity = np.einsum("bii->bi", groups["bandwidth"])
    accesses = groups["communication"] * capacity[:, None, :]
    by_memory = accesses.sum(axis=1)
    total = by_memory.sum(axis=-1)
    local = np.einsum("bii->b", accesses)
    count = exists.sum(axis=-1)
    deviation = np.where(exists, by_memory - (total / count)[:, None], 0.0)
    some = np.where(total > 0, total, 1.0)
    return Counters(
        per_row(accesses_per_us, 0) * total / capacity.sum(axis=-1),
        np.sqrt((deviation * deviation).sum(axis=-1) * count) / some,
        np.where(total > 0, local / some, 1.0),
        groups["memory"].sum(axis=-1) / count,
    )


def count_reads(task: Array, memory: Array) -> Array:
    """Count this task's bytes, shape (B, features), in what is remembered (B, 2); returns the share read, (B,)."""
    own = task[:, TaskFeature.MEMORY]
    memory *= 1.0 - 1.0 / MEMORY_OF_READS
    memory[:, 0] += own + task[:, TaskFeature.INPUT]
    memory[:, 1] += own * task[:, TaskFeature.WRITE_FRACTION]
    return np.asarray(1.0 - memory[:, 1] / np.maximum(memory[:, 0], np.finfo(np.float64).tiny))


def accessors(access: Array) -> Array:
    """Which nodes make a tenth or more of an object's recent accesses, shape (B, N); none if there were none."""
    return np.asarray((access >= ACCESSOR_SHARE * access.sum(axis=-1, keepdims=True)) & (access > 0))

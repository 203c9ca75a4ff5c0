"""Moving data by the chapter's migration score.

Dimension key: B rows, N nodes.

References:
    [1] The chapter, section 16.2.2: the migration score.
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
    lowest,
    lowest_pair,
    lowest_task_node,
    per_row,
)
from numa_rl.migration import migration_score


@dataclass(frozen=True)
class MigrationScore(Rule):
    """The chapter's migration score [1]; tasks then run where the estimate is lowest.

    The accesses are the recent ones from each node, and the cost is the time to move the object. It moves to the
    node with the highest score if M(target) - M(current) > theta; of several copies the current one is that with
    the highest score. A new object is placed by the estimate. The chapter gives no values.

    The chapter moves pages in batches. Here the batch is an object: all its pages move at once, or none do. Objects
    are not gathered to move together, for a decision moves only the object of the task that it places.

    Only gamma / (alpha + beta) and theta / (alpha + beta) matter to a decision, so alpha and beta are not tuned.

    Attributes:
        local_weight: alpha.
        remote_weight: beta.
        migration_weight: gamma.
        threshold: theta.
    """

    name: ClassVar[str] = "migration-score"
    tunable: ClassVar[Mapping[str, Range]] = {
        "migration_weight": Range(0.001, 100.0, log=True),
        "threshold": Range(0.001, 10.0, log=True),
    }
    local_weight: Parameter = 1.0
    remote_weight: Parameter = 1.0
    migration_weight: Parameter = 1.0
    threshold: Parameter = 0.0

    def place(self, groups: Groups, memory: Array) -> Placement:
        """New data by the estimate, old data by the score, the task by the estimate."""
        rows = np.arange(len(memory))
        data, data_mask = groups["data"], groups["data_mask"]
        weights = (per_row(value, 1) for value in (self.local_weight, self.remote_weight, self.migration_weight))
        score = migration_score(groups["access"], groups["migration"], *weights)
        home, target = lowest(-score, data), lowest(-score, data_mask)
        moves = score[rows, target] - score[rows, home] > per_row(self.threshold, 0)
        moves |= data_mask[rows, home] == 0
        _, best = lowest_pair(groups["estimate"], groups)
        data_node = np.where(is_new(groups), best, np.where(moves, target, home))
        return Placement(lowest_task_node(groups["estimate"], data_node, groups), data_node)

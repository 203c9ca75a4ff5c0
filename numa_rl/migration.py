"""Which pages to move, where to, and what moving them together saves.

The chapter's score of page p on node n is M(p, n) = alpha A_local - beta A_remote - gamma C_migrate, and p moves if
M(target) - M(current) > theta [1]. Its "batch migrations" are a budget and a cost here: of all pages that should move,
those that gain most for their size, as many as the budget allows; and time for each batch, whatever its size, besides
time for each page.

Dimension key: N nodes, Q objects or pages that may move.

References:
    [1] The chapter, section 16.2.2: page migration.
    [2] Huang Ying, "migrate_pages: batch flushing TLB", Linux commit 7e12beb8ca2a (6.3), 2023: at most 512 pages of
        4 KiB are unmapped at a time; on a server of two sockets this took 99.1% of the flushes away and moved 291.7%
        more pages in a second.
    [3] G. B. Dantzig, "Discrete-variable extremum problems", Operations Research 5(2), 1957: the knapsack by density.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from numa_rl.topology import Topology

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

# From the two figures of [2]. A page alone takes a flush and its own work, f + c; of a batch, flushes fell to 0.9% and
# time to 1 / 3.917, so that 0.009 f + c = (f + c) / 3.917, and f = 3.024 c.
FLUSHES_LEFT, PAGES_RATIO = 0.009, 3.917
FLUSH_PER_PAGE_WORK = (PAGES_RATIO - 1.0) / (1.0 - FLUSHES_LEFT * PAGES_RATIO)
MOST_BATCH_PAGES = 512  # Linux's NR_MAX_BATCHED_MIGRATION on x86 [2]


def migration_score(access: Any, migration_cost: Any, alpha: Any = 1.0, beta: Any = 1.0, gamma: Any = 1.0) -> Any:
    """M(p, n) = alpha A_local - beta A_remote - gamma C_migrate [1].

    Written with operators that numpy arrays and torch tensors share.

    Args:
        access: recent accesses to the page from each node, shape (..., N): A_local of each; A_remote are those from
            all other nodes.
        migration_cost: C_migrate, of moving the page to each node, in units of accesses once weighed by gamma, 0 where
            it is, shape (..., N).
        alpha: weight of local accesses, a number or broadcastable against (..., N).
        beta: weight of remote accesses, likewise.
        gamma: weight of the migration, likewise.

    Returns:
        Scores, shape (..., N).
    """
    remote = access.sum(-1)[..., None] - access
    return alpha * access - beta * remote - gamma * migration_cost


def best_target(score: npt.NDArray[Any], home: npt.ArrayLike) -> tuple[I64, npt.NDArray[Any]]:
    """The node with the highest score, the lower one of equals, and M(target) - M(current).

    Args:
        score: M of each node, shape (..., N).
        home: where each page is, shape (...).

    Returns:
        Target and gain, shape (...) each; the gain is never negative, and 0 where the page is best off.
    """
    here = np.take_along_axis(score, np.asarray(home)[..., None], axis=-1)[..., 0]
    target = score.argmax(axis=-1)
    gain = np.take_along_axis(score, target[..., None], axis=-1)[..., 0] - here
    return np.where(gain > 0, target, home), gain


@dataclass(frozen=True)
class BatchCost:
    """What moving pages takes of the kernel, besides copying them.

    Attributes:
        batch_s: of each batch: unmapped pages are flushed from all TLBs at once.
        page_s: of each page: unmapping it and mapping it again.
        max_pages: most pages of a batch. They cannot be used meanwhile, so batches are bounded.

    Raises:
        ValueError: a time is negative or not finite, or `max_pages` less than 1.
    """

    batch_s: float
    page_s: float
    max_pages: int = MOST_BATCH_PAGES

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("batch_s", "page_s"):
            value = getattr(self, name)
            if not 0.0 <= value < np.inf:
                raise ValueError(f"{name} must be finite and >= 0, got {value}.")
        if self.max_pages < 1:
            raise ValueError(f"max_pages must be >= 1, got {self.max_pages}.")

    @classmethod
    def of(cls, topology: Topology) -> BatchCost:
        """Of a machine: `page_move_s` is what a page of many takes, and a flush 3.024 times that [2]."""
        return cls(FLUSH_PER_PAGE_WORK * topology.page_move_s, topology.page_move_s)

    def batched_s(self, num_pages: npt.ArrayLike) -> F64:
        """Time of moving so many pages in batches as large as they may be, of any shape."""
        pages = _counts(num_pages)
        return np.asarray(np.ceil(pages / self.max_pages) * self.batch_s + pages * self.page_s)

    def single_s(self, num_pages: npt.ArrayLike) -> F64:
        """Time of moving as many one by one, of any shape."""
        return np.asarray(_counts(num_pages) * (self.batch_s + self.page_s))

    def saved_share(self, num_pages: npt.ArrayLike) -> F64:
        """Share of the time that batches save, in [0, 1); 0 where nothing moves."""
        single = self.single_s(num_pages)
        return np.asarray(
            1.0 - np.divide(self.batched_s(num_pages), single, out=np.ones_like(single), where=single > 0)
        )

    def break_even_pages(self, gain_s: npt.ArrayLike) -> F64:
        """Fewest pages of one batch for which moving pays, `inf` where no batch is large enough.

        Args:
            gain_s: time that each page will save, less that of its copy, any shape.

        Returns:
            The least n with n gain >= batch_s + n page_s, at most `max_pages`, or `inf`.
        """
        left = np.asarray(gain_s, np.float64) - self.page_s
        if np.isnan(left).any():
            raise ValueError(f"gain_s must be numbers, got {np.asarray(gain_s).tolist()}.")
        pages = np.maximum(np.ceil(np.divide(self.batch_s, left, out=np.full_like(left, np.inf), where=left > 0)), 1.0)
        if self.batch_s == 0.0:
            pages = np.where(left == 0.0, 1.0, pages)
        return np.asarray(np.where(pages <= self.max_pages, pages, np.inf))


def _counts(num_pages: npt.ArrayLike) -> F64:
    pages = np.asarray(num_pages, np.float64)
    if not ((pages >= 0) & (pages < np.inf)).all():
        raise ValueError(f"num_pages must be finite and >= 0, got {pages.tolist()}.")
    return pages


@dataclass(frozen=True, eq=False)
class MigrationPlan:
    """What moves together.

    Attributes:
        moves: whether each object moves, shape (Q,).
        target: where it is afterwards, shape (Q,).
        gain: sum of M(target) - M(current) over what moves.
        num_pages: pages that move.
    """

    moves: Bool
    target: I64
    gain: float
    num_pages: int


def plan_batch(
    score: npt.ArrayLike,
    home: npt.ArrayLike,
    num_pages: npt.ArrayLike,
    *,
    budget_pages: int,
    theta: float = 0.0,
) -> MigrationPlan:
    """Choose what to move within a budget of pages.

    Objects whose gain exceeds theta are taken in order of gain per page, while they fit [3]; if a single object gains
    more than all of these together, that one. For objects of one size that is the best choice, and it never gains
    less than half of the best.

    Args:
        score: M of each object on each node, shape (Q, N).
        home: where each is, shape (Q,).
        num_pages: size of each, >= 1, shape (Q,).
        budget_pages: most pages that move.
        theta: least gain that is worth a move [1].

    Raises:
        ValueError: shapes do not agree, a score is not finite, a home is no node, or a size, the budget or theta is
            out of range.
    """
    scores, homes, pages = np.asarray(score, np.float64), np.asarray(home, np.int64), np.asarray(num_pages, np.int64)
    _check_plan(scores, homes, pages, budget_pages, theta)
    target, gain = best_target(scores, homes)
    worth = np.flatnonzero((gain > theta) & (pages <= budget_pages))
    moves = np.zeros(len(homes), np.bool_)
    left = budget_pages
    for index in worth[np.lexsort((worth, -gain[worth] / pages[worth]))]:
        if pages[index] <= left:
            moves[index] = True
            left -= int(pages[index])
    if len(worth) and gain[worth].max() > gain[moves].sum():
        moves[:] = False
        moves[worth[gain[worth].argmax()]] = True
    return MigrationPlan(moves, np.where(moves, target, homes), float(gain[moves].sum()), int(pages[moves].sum()))


def _check_plan(score: F64, home: I64, pages: I64, budget_pages: int, theta: float) -> None:
    if score.ndim != 2 or score.shape[1] == 0:
        raise ValueError(f"score must have shape (Q, N), got {score.shape}.")
    for name, values in (("home", home), ("num_pages", pages)):
        if values.shape != score.shape[:1]:
            raise ValueError(f"{name} must have shape {score.shape[:1]}, got {values.shape}.")
    if not np.isfinite(score).all():
        raise ValueError(f"score must be finite, got {score[~np.isfinite(score)][0]}.")
    if ((home < 0) | (home >= score.shape[1])).any():
        raise ValueError(f"home must be a node in 0..{score.shape[1] - 1}, got {home.tolist()}.")
    if (pages < 1).any():
        raise ValueError(f"num_pages must be >= 1, got {pages.min()}.")
    if budget_pages < 0:
        raise ValueError(f"budget_pages must be >= 0, got {budget_pages}.")
    if not 0.0 <= theta < np.inf:
        raise ValueError(f"theta must be finite and >= 0, got {theta}.")

"""Iterative threads of a parallel program: each updates its own data and reads what its partners had.

In every iteration each of N threads is one task. Its data is held twice, as in Jacobi's iteration: a task reads the
thread's old copy and parts of its partners' old copies, and writes the thread's new one, which is the object it owns.
So nobody waits for a thread of the same iteration, and none overwrites what another may still be reading. The first
iteration creates the one copies, the second the others.

**Who exchanges how much with whom is a symmetric matrix**, of a real program [1] or of a pattern below. Threads of a
pattern are numbered at random, and anew at the beginning of each phase: no order of the tasks tells who is near whom.
A thread reads from at most `max_partners`, those it exchanges most with, and what it exchanges with the others is
counted to these in proportion: every thread reads as much as the matrix says.

Dimension key: E episodes, T tasks, N threads, H phases, P inputs.

References:
    [1] E. H. M. Cruz et al., "An efficient algorithm for communication-based task mapping", PDP 2015: EagerMap, whose
        example is the matrix of NAS SP with 64 OpenMP threads.
    [2] K. Asanovic et al., "The landscape of parallel computing research: a view from Berkeley", 2006: the patterns
        of communication of programs, of which structured grids, spectral methods and sparse matrices are here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from numa_rl.matmul import most_square_grid
from numa_rl.workloads.comm_matrix import MOST_TASKS, read_communication_matrix
from numa_rl.workloads.parameters import require
from numa_rl.workloads.processes import FloatArray, IntArray, lognormal
from numa_rl.workloads.workload import NEVER, NO_OBJECT, Workload

MIXED = "mixed"
COPIES = 2  # of each thread's data


def stencil(num_threads: int) -> FloatArray:
    """Neighbours on the most nearly square grid of so many threads, shape (N, N)."""
    _, columns = most_square_grid(num_threads)
    row, column = np.divmod(np.arange(num_threads), columns)
    near = abs(row[:, None] - row) + abs(column[:, None] - column) == 1
    return np.asarray(near, np.float64)


def ring(num_threads: int) -> FloatArray:
    """The thread before and the one after, shape (N, N)."""
    apart = np.subtract.outer(np.arange(num_threads), np.arange(num_threads)) % num_threads
    return np.asarray((apart == 1) | (apart == num_threads - 1), np.float64)


def butterfly(num_threads: int) -> FloatArray:
    """Threads whose numbers differ in one bit, as in fast Fourier transforms and all-reduces, shape (N, N)."""
    differ = np.bitwise_xor.outer(np.arange(num_threads), np.arange(num_threads))
    return np.asarray((differ & (differ - 1) == 0) & (differ > 0), np.float64)


def master_worker(num_threads: int) -> FloatArray:
    """One thread with all others, shape (N, N)."""
    matrix = np.zeros((num_threads, num_threads))
    matrix[0, 1:] = matrix[1:, 0] = 1.0
    return matrix


PATTERNS = {"stencil": stencil, "ring": ring, "butterfly": butterfly, "master-worker": master_worker}
RANDOM = "random"
PATTERN_NAMES = (*PATTERNS, RANDOM)


@dataclass(frozen=True)
class Threads:
    """Iterations of threads that exchange data.

    Everything is ready at time 0, and each iteration waits for the one before. On eight nodes of 100 GB/s (the preset
    chapter-8-socket) the defaults' 32 threads keep half of the cores busy, and four of them on a node draw all that
    its memory gives.

    Attributes:
        num_tasks: tasks of an episode, T; the last iteration is cut there.
        num_threads: N; that of the matrix where there is a trace.
        pattern: "stencil", "ring", "butterfly", "master-worker", "random", or "mixed" for one drawn in each episode.
        random_degree: mean partners of a thread in the random pattern; how much each pair exchanges is drawn too.
        iterations_per_phase: iterations after which threads change places in the pattern.
        max_partners: partners that a thread reads from, those that it exchanges most with.
        median_data_bytes: median size of a thread's data, lognormal.
        data_bytes_sigma: standard deviation of its logarithm: how much threads differ.
        exchange_share: what a thread reads from its partners in an iteration, in the mean over threads, as a share
            of the median size of data.
        flops_per_byte: arithmetic for each byte of a thread's data in an iteration.
        compute_sigma: standard deviation of the logarithm of its variation, over threads and iterations.
        trace: path of a communication matrix in EagerMap's format; the pattern is then that of this program.

    Raises:
        ValueError: a parameter is out of range, or the matrix cannot be read.
    """

    num_tasks: int = 512
    num_threads: int = 32
    pattern: str = MIXED
    random_degree: float = 4.0
    iterations_per_phase: int = 8
    max_partners: int = 6
    median_data_bytes: float = 500e6
    data_bytes_sigma: float = 0.3
    exchange_share: float = 1.0
    flops_per_byte: float = 0.25
    compute_sigma: float = 0.3
    trace: str | None = None

    def __post_init__(self) -> None:
        """Check the ranges, and read the matrix if there is one."""
        require(self, "num_tasks iterations_per_phase max_partners", ">= 1", lambda value: value >= 1)
        require(self, "num_threads", f"in 2..{MOST_TASKS}", lambda value: 2 <= value <= MOST_TASKS)
        require(self, "median_data_bytes", "> 0", lambda value: value > 0)
        not_negative = "random_degree data_bytes_sigma exchange_share flops_per_byte compute_sigma"
        require(self, not_negative, ">= 0", lambda value: value >= 0)
        if self.pattern not in (*PATTERN_NAMES, MIXED):
            raise ValueError(f"pattern must be one of {', '.join(PATTERN_NAMES)}, {MIXED}, got {self.pattern!r}.")
        _ = self._matrix

    @cached_property
    def _matrix(self) -> FloatArray | None:
        return None if self.trace is None else read_communication_matrix(self.trace)

    @property
    def _num_threads(self) -> int:
        return self.num_threads if self._matrix is None else len(self._matrix)

    @property
    def _num_phases(self) -> int:
        iterations = -(-self.num_tasks // self._num_threads)
        return -(-iterations // self.iterations_per_phase)

    def generate(self, rng: np.random.Generator, num_episodes: int) -> Workload:
        """Make `num_episodes` episodes; more episodes from the same generator extend fewer."""
        t, n, h = self.num_tasks, self._num_threads, self._num_phases
        num_edges = n * n if self._matrix is None and self.pattern in (MIXED, RANDOM) else 0
        size, noise = np.empty((num_episodes, n)), np.empty((num_episodes, t))
        partner, share = np.empty((2, num_episodes, h, n, self._num_partners))
        for e in range(num_episodes):
            uniforms = rng.random(1 + n + t + num_edges + h * n)
            pattern, size[e], noise[e], edges, places = np.split(uniforms, np.cumsum([1, n, t, num_edges]))
            matrix = self._exchanged(float(pattern[0]), edges)
            for phase, place in enumerate(np.argsort(places.reshape(h, n), axis=1)):
                partner[e, phase], share[e, phase] = strongest(matrix[np.ix_(place, place)], self.max_partners)
        return self._workload(
            data_bytes=lognormal(size, self.median_data_bytes, self.data_bytes_sigma),
            variation=lognormal(noise, 1.0, self.compute_sigma),
            partner=partner.astype(np.int64),
            exchange_bytes=share * self.exchange_share * self.median_data_bytes,
        )

    @property
    def _num_partners(self) -> int:
        return min(self.max_partners, self._num_threads - 1)

    def _exchanged(self, pattern: float, edges: FloatArray) -> FloatArray:
        """The matrix of an episode, with a mean of 1 over the sums of its rows (of 0 where nobody communicates)."""
        matrix = self._matrix
        if matrix is None:
            name = PATTERN_NAMES[int(pattern * len(PATTERN_NAMES))] if self.pattern == MIXED else self.pattern
            n = self.num_threads
            matrix = random_pairs(edges.reshape(n, n), self.random_degree) if name == RANDOM else PATTERNS[name](n)
        if not matrix.any():
            return matrix
        matrix = matrix / matrix.max()  # whatever the unit is, sums are finite
        return np.asarray(matrix / matrix.sum(axis=1).mean())

    def _workload(
        self, data_bytes: FloatArray, variation: FloatArray, partner: IntArray, exchange_bytes: FloatArray
    ) -> Workload:
        """The tasks: iteration after iteration, thread after thread.

        Args:
            data_bytes: of each thread, shape (E, N).
            variation: factor on each task's arithmetic, shape (E, T).
            partner: whom each thread reads from in each phase, `NO_OBJECT` for nobody, shape (E, H, N, P - 1).
            exchange_bytes: how much, shape (E, H, N, P - 1).
        """
        (e, n), t = data_bytes.shape, variation.shape[1]
        iteration, thread = np.divmod(np.arange(t), n)
        phase = iteration // self.iterations_per_phase
        old = (iteration - 1) % COPIES * n  # where the old copies' numbers begin
        others = partner[:, phase, thread]
        inputs = np.concatenate(
            [
                np.broadcast_to((old + thread)[:, None], (e, t, 1)),
                np.where(others != NO_OBJECT, old[:, None] + others, NO_OBJECT),
            ],
            axis=2,
        )
        own_bytes = data_bytes[:, thread]
        input_bytes = np.concatenate([own_bytes[:, :, None], exchange_bytes[:, phase, thread]], axis=2)
        begins = iteration == 0
        inputs[:, begins], input_bytes[:, begins] = NO_OBJECT, 0.0
        return Workload(
            name="threads",
            arrival_s=np.zeros((e, t)),
            flops=(self.flops_per_byte * own_bytes * variation).astype(np.float32),
            bytes=own_bytes.astype(np.float32),
            write_fraction=np.ones((e, t), np.float32),
            object=np.broadcast_to(iteration % COPIES * n + thread, (e, t)).astype(np.int32),
            object_bytes=own_bytes,
            inputs=inputs.astype(np.int32),
            input_bytes=input_bytes.astype(np.float32),
            freed_after=np.full((e, COPIES * n), NEVER, np.int32),
            follows_inputs=True,
        )


def random_pairs(uniform: FloatArray, degree: float) -> FloatArray:
    """A symmetric random matrix: each pair communicates with one probability, and then as much as an exponential draw.

    Args:
        uniform: of which those above the diagonal count, shape (N, N).
        degree: mean partners of a thread.

    Returns:
        Shape (N, N), with zeros on the diagonal.
    """
    chance = min(degree / (len(uniform) - 1), 1.0)
    if chance == 0.0:
        return np.zeros_like(uniform)
    # Given that a uniform is below the chance, their ratio is a uniform of its own.
    fresh = np.minimum(uniform, chance) / chance
    amount = np.where(uniform < chance, -np.log1p(-np.minimum(fresh, 1.0 - 2.0**-53)), 0.0)
    above = np.triu(amount, 1)
    return np.asarray(above + above.T)


def strongest(matrix: FloatArray, most: int) -> tuple[IntArray, FloatArray]:
    """The partners that each thread exchanges most with, and how much if they stand for all of its partners.

    Args:
        matrix: what each pair exchanges, shape (N, N).
        most: partners of a thread at most.

    Returns:
        Partner, `NO_OBJECT` where there are fewer, and amount, 0 there, shape (N, min(most, N - 1)) each. The amounts
        of a thread add up to its row.
    """
    partner = np.argsort(-matrix, axis=1, kind="stable")[:, : min(most, len(matrix) - 1)]
    amount = np.take_along_axis(matrix, partner, axis=1)
    whole, kept = matrix.sum(axis=1, keepdims=True), amount.sum(axis=1, keepdims=True)
    scaled = amount * np.divide(whole, kept, out=np.zeros_like(whole), where=kept > 0)
    return np.where(amount > 0, partner, NO_OBJECT), scaled

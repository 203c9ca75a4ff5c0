"""A stream of independent tasks over a hot set of objects: bursts, drifting popularity, heavy tails.

Dimension key: E episodes, T tasks, K slots of the hot set, O objects, P inputs.

References:
    [1] L. Breslau et al., "Web caching and Zipf-like distributions: evidence and implications",
        INFOCOM 1999: request popularity is Zipf-like with exponents of 0.64 to 0.83.
    [2] M. E. Crovella, A. Bestavros, "Self-similarity in World Wide Web traffic: evidence and possible
        causes", IEEE/ACM Transactions on Networking 5(6), 1997: sizes are heavy-tailed, arrivals bursty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from numa_rl.workloads.parameters import require
from numa_rl.workloads.processes import FloatArray, IntArray, drift_steps, interarrival_s, lognormal, zipf_rank
from numa_rl.workloads.workload import NEVER, NO_OBJECT, Workload

NUM_SCALAR_CHANNELS = 12  # uniforms of each task besides two for every input it may have


@dataclass(frozen=True)
class SyntheticStream:
    """Tasks that update objects of a hot set and read others.

    The hot set has `num_objects` slots. A slot's object is created by the first task that owns it, and at
    random moments is dropped for a fresh one with a new number. An object counts as freed with the last
    task that used it.

    Attributes:
        num_tasks: tasks of an episode, T.
        tasks_per_s: mean arrival rate.
        burstiness: arrival rate in a burst over the mean rate; 1 is a Poisson process.
        burst_s: mean length of a burst; without effect when `burstiness` is 1.
        num_objects: slots of the hot set, K: the most objects alive at once.
        zipf_exponent: how unequal popularity is; 0 is uniform [1].
        drift_per_task: probability, at each task, that the coldest slot becomes the hottest.
        object_lifetime_tasks: mean tasks (of anyone) for which a slot keeps its object; `inf` keeps it for good.
        median_object_bytes: median size of an object, lognormal.
        object_bytes_sigma: standard deviation of its logarithm.
        median_task_bytes: median of what a task moves between its core and its own object, lognormal [2].
        task_bytes_sigma: standard deviation of its logarithm.
        median_task_flops: median arithmetic of a task, lognormal.
        task_flops_sigma: standard deviation of its logarithm.
        read_only_share: probability that a task writes nothing; such tasks on one object need not wait for each other.
        write_fraction: mean share of writes of the others, drawn uniformly over the widest range that has this mean.
        inputs_per_task: most objects a task reads besides its own, P; each count up to it is tried equally
            often, and an input not yet created or drawn twice is left out.
        median_input_bytes: median of what a task reads from each input, lognormal.
        input_bytes_sigma: standard deviation of its logarithm.

    Raises:
        ValueError: a parameter is out of range.
    """

    num_tasks: int = 512
    tasks_per_s: float = 220.0
    burstiness: float = 3.0
    burst_s: float = 0.1
    num_objects: int = 48
    zipf_exponent: float = 0.65
    drift_per_task: float = 0.02
    object_lifetime_tasks: float = 256.0
    median_object_bytes: float = 256e6
    object_bytes_sigma: float = 1.0
    median_task_bytes: float = 1e9
    task_bytes_sigma: float = 1.0
    median_task_flops: float = 1e9
    task_flops_sigma: float = 1.0
    read_only_share: float = 0.7
    write_fraction: float = 0.5
    inputs_per_task: int = 2
    median_input_bytes: float = 250e6
    input_bytes_sigma: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self, "num_tasks num_objects", ">= 1", lambda value: value >= 1)
        require(self, "burstiness", ">= 1", lambda value: value >= 1)
        positive = "tasks_per_s burst_s median_object_bytes median_task_bytes median_task_flops median_input_bytes"
        require(self, positive, "> 0", lambda value: value > 0)
        sigmas = "object_bytes_sigma task_bytes_sigma task_flops_sigma input_bytes_sigma"
        require(self, f"zipf_exponent inputs_per_task {sigmas}", ">= 0", lambda value: value >= 0)
        require(self, "drift_per_task read_only_share write_fraction", "in [0, 1]", lambda value: 0 <= value <= 1)
        if not self.object_lifetime_tasks >= self.num_objects:
            raise ValueError(
                f"object_lifetime_tasks must be >= num_objects ({self.num_objects}), since at most one object "
                f"is replaced at each task, got {self.object_lifetime_tasks}."
            )

    def generate(self, rng: np.random.Generator, num_episodes: int) -> Workload:
        """Make `num_episodes` episodes; more episodes from the same generator extend fewer."""
        t, k, p = self.num_tasks, self.num_objects, self.inputs_per_task
        num_channels = NUM_SCALAR_CHANNELS + 2 * p
        uniforms = rng.random((num_episodes, num_channels * t + k))
        ranking = np.argsort(uniforms[:, num_channels * t :], axis=1)  # (E, K)
        channels = uniforms[:, : num_channels * t].reshape(num_episodes, num_channels, t).swapaxes(0, 1)
        phase, gap, own, drift, replace, replaced, size, moved, flops, read_only, write, count = channels[
            :NUM_SCALAR_CHANNELS
        ]
        read, read_bytes = channels[NUM_SCALAR_CHANNELS : NUM_SCALAR_CHANNELS + p], channels[NUM_SCALAR_CHANNELS + p :]

        shifts = drift_steps(drift, self.drift_per_task)  # (E, T)

        def popular_slot(uniform: FloatArray) -> IntArray:
            rank = zipf_rank(uniform, k, self.zipf_exponent)
            return np.take_along_axis(ranking, (rank - shifts) % k, axis=1)

        asked = np.arange(p)[:, None, None] < (count * (p + 1)).astype(np.int64)  # (P, E, T)
        read_slot = np.where(asked, [popular_slot(uniform) for uniform in read], NO_OBJECT) if p else read
        replaced_slot = np.where(replace * self.object_lifetime_tasks < k, (replaced * k).astype(np.int64), NO_OBJECT)
        objects = _number_objects(popular_slot(own), read_slot.astype(np.int64), replaced_slot, k)

        sizes = lognormal(size, self.median_object_bytes, self.object_bytes_sigma)
        created = np.take_along_axis(objects.created_at, objects.owned, axis=1)
        input_bytes = lognormal(read_bytes, self.median_input_bytes, self.input_bytes_sigma).transpose(1, 2, 0)
        spread = min(self.write_fraction, 1.0 - self.write_fraction)
        writes = self.write_fraction + spread * (2.0 * write - 1.0)
        return Workload(
            name="synthetic",
            arrival_s=np.cumsum(interarrival_s(phase, gap, self.tasks_per_s, self.burstiness, self.burst_s), axis=1),
            flops=lognormal(flops, self.median_task_flops, self.task_flops_sigma).astype(np.float32),
            bytes=lognormal(moved, self.median_task_bytes, self.task_bytes_sigma).astype(np.float32),
            write_fraction=np.where(read_only < self.read_only_share, 0.0, writes).astype(np.float32),
            object=objects.owned.astype(np.int32),
            object_bytes=np.take_along_axis(sizes, created, axis=1),
            inputs=objects.read.astype(np.int32),
            input_bytes=np.where(objects.read != NO_OBJECT, input_bytes, 0.0).astype(np.float32),
            freed_after=objects.freed_after,
        )


@dataclass(frozen=True)
class _Objects:
    """Objects instead of slots: owned (E, T), read (E, T, P), created_at and freed_after (E, O), as task indices."""

    owned: IntArray
    read: IntArray
    created_at: IntArray
    freed_after: npt.NDArray[np.int32]


def _number_objects(own_slot: IntArray, read_slot: IntArray, replaced_slot: IntArray, num_slots: int) -> _Objects:
    """Walk the tasks in order, all episodes at once, numbering objects as they are created.

    Args:
        own_slot: slot whose object each task owns, shape (E, T).
        read_slot: slots whose objects it would read, `NO_OBJECT` for none, shape (P, E, T).
        replaced_slot: slot whose object is dropped just before the task, `NO_OBJECT` for none, shape (E, T).
        num_slots: slots of the hot set, K.
    """
    (num_episodes, num_tasks), num_inputs = own_slot.shape, len(read_slot)
    episodes = np.arange(num_episodes)
    current = np.full((num_episodes, num_slots), NO_OBJECT)  # each slot's object now
    num_created = np.zeros(num_episodes, dtype=np.int64)
    owned = np.empty((num_episodes, num_tasks), dtype=np.int64)
    read = np.full((num_episodes, num_tasks, num_inputs), NO_OBJECT)
    created_at = np.zeros((num_episodes, num_tasks), dtype=np.int64)
    last_use = np.zeros((num_episodes, num_tasks), dtype=np.int64)
    freed_after = np.full((num_episodes, num_tasks), NEVER, dtype=np.int32)

    for task in range(num_tasks):
        slot = replaced_slot[:, task]
        dropped = (slot != NO_OBJECT) & (current[episodes, slot] != NO_OBJECT)
        e, slot = episodes[dropped], slot[dropped]
        freed_after[e, current[e, slot]] = last_use[e, current[e, slot]]
        current[e, slot] = NO_OBJECT

        for i in range(num_inputs):
            slot = read_slot[i, :, task]
            candidate = current[episodes, slot]
            good = (slot != NO_OBJECT) & (slot != own_slot[:, task]) & (candidate != NO_OBJECT)
            good &= ~(read[:, task, :i] == candidate[:, None]).any(axis=1)
            read[good, task, i] = candidate[good]
            last_use[episodes[good], candidate[good]] = task

        slot = own_slot[:, task]
        e = episodes[current[episodes, slot] == NO_OBJECT]
        current[e, slot[e]] = num_created[e]
        created_at[e, num_created[e]] = task
        num_created[e] += 1
        owned[:, task] = current[episodes, slot]
        last_use[episodes, owned[:, task]] = task

    num_objects = int(num_created.max())
    return _Objects(owned, read, created_at[:, :num_objects], freed_after[:, :num_objects])

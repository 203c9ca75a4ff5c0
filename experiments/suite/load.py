"""How much work a workload offers a machine, and families whose arrivals are scaled to offer it as much as asked.

Dimension key: E episodes, T tasks, N nodes.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import numpy as np
import numpy.typing as npt

from numa_rl.idle import core_s_per_byte, service_s
from numa_rl.topology import Topology
from numa_rl.workloads.workload import Workload, WorkloadFamily


def local_service_s(workload: Workload, topology: Topology) -> float:
    """Mean service time of a task on the idle machine with all its data on its own node, seconds.

    max(flops / peak, bytes / bandwidth) + input bytes / bandwidth + overhead, of one core; the mean over tasks, and
    over cores where nodes differ. Scenarios take it as their unit of time, `reference_s`.
    """
    own, read = _task_bytes(workload)
    mean_s = [
        float(service_s(workload.flops, own, read, workload.overhead_s, topology.flops_per_s[node], s_per_byte).mean())
        for node, s_per_byte in enumerate(np.diagonal(core_s_per_byte(topology)))
    ]
    return float(np.average(mean_s, weights=topology.cores))


def offered_load(workload: Workload, topology: Topology) -> float:
    """Share of the machine that the workload asks for if all data is local: 1 is all that it can do.

    The larger of two: the bytes that come in a second over what the memory controllers of nodes with cores deliver,
    and the seconds of service that come in a second over the number of cores.

    Raises:
        ValueError: all tasks of the workload arrive at time 0, so that it has no rate.
    """
    last_s = float(workload.arrival_s[:, -1].mean())
    if last_s == 0.0:
        raise ValueError(f"{workload.name}: a load needs tasks that arrive over time, got all at time 0.")
    tasks_per_s = workload.num_tasks / last_s
    bytes_per_s = topology.memory_bandwidth_bytes_per_s[topology.cores > 0].sum()
    memory_s = float(np.sum(_task_bytes(workload), axis=0).mean() / bytes_per_s)
    return tasks_per_s * max(memory_s, local_service_s(workload, topology) / float(topology.cores.sum()))


def faster(family: WorkloadFamily, factor: float, rates: str, durations: str) -> WorkloadFamily:
    """The same family in a time that runs faster: everything random stays as it is, only arrivals move together.

    Args:
        family: a frozen dataclass of parameters.
        factor: how much faster.
        rates: names of its parameters that count events in a second, separated by spaces: they are multiplied.
        durations: names of those that are times between events: they are divided.

    Returns:
        The family with these parameters to four digits, so that they can be written down.

    Raises:
        ValueError: the family has no parameter of such a name.
    """
    if not is_dataclass(family) or isinstance(family, type):
        raise TypeError(f"a workload family must be a dataclass, got {type(family).__name__}.")
    known = [item.name for item in fields(family)]
    changes = {}
    for names, scale in ((rates, factor), (durations, 1.0 / factor)):
        for name in names.split():
            if name not in known:
                raise ValueError(f"rates and durations must be parameters among {', '.join(known)}, got {name!r}.")
            changes[name] = rounded(getattr(family, name) * scale)
    return replace(family, **changes)


def rounded(value: float) -> float:
    """A value to four digits."""
    return float(f"{value:.4g}")


def _task_bytes(workload: Workload) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Bytes of each task's own object, and of its inputs, shape (E, T) each."""
    return workload.bytes.astype(np.float64), workload.input_bytes.sum(axis=2, dtype=np.float64)

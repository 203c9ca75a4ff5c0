"""Laws that predict what was not measured of a machine, and how far off each is on machines it was not fitted to.

Dimension key: N nodes, P pairs of nodes, C candidates for the constants of a law.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from numa_rl.machines.completion import completed, spread
from numa_rl.machines.published import Published
from numa_rl.machines.slit import ASSUMED_LOCAL_LATENCY_S, LOCAL_DISTANCE, BoolArray, latency_from_distances
from numa_rl.topology import FloatArray

Constants = tuple[float, ...]
Predict = Callable[[Published, Constants], FloatArray]
# Memory without cores counts as near to the nodes whose latency to it is within this of the lowest.
NEAREST = 1.01


@dataclass(frozen=True)
class Law:
    """A way to predict a matrix of figures.

    Attributes:
        name: how tables call it.
        predict: the matrix of a machine, shape (N, N), with given constants.
        candidates: constants to choose from; one empty choice where the law has none.
        used: whether the readers use it.
    """

    name: str
    predict: Predict
    candidates: tuple[Constants, ...] = ((),)
    used: bool = False


@dataclass(frozen=True)
class Missed:
    """How far off a law is on one machine, with constants fitted to the others.

    Attributes:
        machine: its name.
        constants: those fitted to the others.
        predicted: shape (P,), pairs row by row.
        measured: shape (P,).
    """

    machine: str
    constants: Constants
    predicted: FloatArray
    measured: FloatArray

    @property
    def errors(self) -> FloatArray:
        """Relative errors, shape (P,)."""
        return np.asarray(self.predicted / self.measured - 1.0)

    @property
    def median(self) -> float:
        """Median size of the relative error."""
        return float(np.median(np.abs(self.errors)))

    @property
    def worst(self) -> float:
        """The relative error of the pair that is furthest off, with its sign."""
        return float(self.errors[np.abs(self.errors).argmax()])

    @property
    def agreement(self) -> float:
        """Kendall's tau-b between predicted and measured order of the pairs; NaN where all are predicted alike."""
        if np.ptp(self.predicted) == 0.0 or np.ptp(self.measured) == 0.0:
            return float("nan")
        return float(kendalltau(self.predicted, self.measured).statistic)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "machine": self.machine,
            "constants": list(self.constants),
            "predicted": self.predicted.tolist(),
            "measured": self.measured.tolist(),
            "median": self.median,
            "worst": self.worst,
            "kendall_tau": self.agreement,
        }


@dataclass(frozen=True)
class Outcome:
    """A law on every machine.

    Attributes:
        law: the law.
        fitted: its constants, fitted to all machines.
        missed: per machine, fitted to those of other hardware.
    """

    law: Law
    fitted: Constants
    missed: tuple[Missed, ...]

    @property
    def median(self) -> float:
        """The median machine's median error."""
        return float(np.median([each.median for each in self.missed]))

    @property
    def mean(self) -> float:
        """The mean of the machines' median errors."""
        return float(np.mean([each.median for each in self.missed]))

    @property
    def worst(self) -> float:
        """The largest of the machines' median errors."""
        return max(each.median for each in self.missed)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        summary = {"median": self.median, "mean": self.mean, "worst": self.worst}
        return {
            "law": self.law.name,
            "used": self.law.used,
            "fitted": list(self.fitted),
            **summary,
            "machines": [each.to_dict() for each in self.missed],
        }


def leave_one_out(
    law: Law, machines: Sequence[Published], measured: Mapping[str, FloatArray], pairs: Mapping[str, BoolArray]
) -> Outcome:
    """A law on every machine, its constants fitted each time to the machines of other hardware.

    Fitted are those candidates whose mean size of log(predicted / measured) is least, every machine counting alike.

    Args:
        law: the law.
        machines: at least two kinds of hardware.
        measured: figures of each machine by name, shape (N, N).
        pairs: those that count, shape (N, N).
    """
    off = np.empty((len(law.candidates), len(machines)))
    for row, constants in enumerate(law.candidates):
        for column, machine in enumerate(machines):
            where = pairs[machine.name]
            predicted = law.predict(machine, constants)[where]
            off[row, column] = np.abs(np.log(predicted / measured[machine.name][where])).mean()
    hardware = np.array([machine.hardware for machine in machines])
    missed = []
    for machine in machines:
        constants = law.candidates[int(off[:, hardware != machine.hardware].mean(axis=1).argmin())]
        where = pairs[machine.name]
        missed.append(
            Missed(machine.name, constants, law.predict(machine, constants)[where], measured[machine.name][where])
        )
    return Outcome(law, law.candidates[int(off.mean(axis=1).argmin())], tuple(missed))


# Bandwidth, from what every memory delivers at home.


def at_home(machine: Published) -> FloatArray:
    """The bandwidths a reader has when nothing was measured from afar, NaN elsewhere, shape (N, N).

    Each node's from its own memory, and memory without cores from the nodes nearest to it.
    """
    own = np.eye(len(machine.sockets), dtype=bool)
    latency = np.where(np.isfinite(machine.latency_s), machine.latency_s, np.inf)
    near = ~machine.has_cores[None, :] & (latency <= NEAREST * latency.min(axis=0)[None, :])
    return np.where(own | near, machine.bandwidth_bytes_per_s, np.nan)


def guide(machine: Published) -> FloatArray | None:
    """What a reader goes by: idle latency from every node with cores, else SLIT, shape (N, N); None without either."""
    whole = np.isfinite(machine.latency_s[machine.has_cores]).all()
    return machine.latency_s if whole else machine.distances


def remote_pairs(machine: Published) -> BoolArray:
    """Measured bandwidths between sockets that a reader of `at_home` has to predict, shape (N, N)."""
    return np.asarray(_unknown(machine) & machine.distinct_sockets)


def near_pairs(machine: Published) -> BoolArray:
    """The same between nodes of one socket, shape (N, N)."""
    return np.asarray(_unknown(machine) & ~machine.distinct_sockets)


def _unknown(machine: Published) -> BoolArray:
    return np.asarray(np.isfinite(machine.bandwidth_bytes_per_s) & np.isnan(at_home(machine)))


def _by_distance(machine: Published, constants: Constants) -> FloatArray:
    """Seconds per byte in proportion to SLIT distance, else to latency: what readers did before."""
    far = guide(machine) if machine.distances is None else machine.distances
    return 1.0 / completed(1.0 / at_home(machine), machine.has_cores, far)[0]


def _share_of_local(machine: Published, constants: Constants) -> FloatArray:
    """A node draws from another socket a share of what that memory delivers at home, and from its own all of it."""
    return _in_socket(machine) * np.where(machine.distinct_sockets, constants[0], 1.0)


def _in_socket(machine: Published) -> FloatArray:
    """What each memory delivers at home, whoever asks, shape (N, N)."""
    known = at_home(machine)
    told = np.isfinite(known)
    delivered = np.where(told, known, 0.0).sum(axis=0) / np.maximum(told.sum(axis=0), 1)
    delivered[~told.any(axis=0)] = delivered[told.any(axis=0)].mean()
    return np.broadcast_to(delivered, known.shape)


def _spread(machine: Published, constants: Constants) -> FloatArray:
    """What the readers' law says with other constants; a memory of which nothing is known delivers what others do."""
    local = np.where(np.eye(len(machine.sockets), dtype=bool) & machine.has_cores, _in_socket(machine), np.nan)
    known = np.where(np.isnan(at_home(machine)), local, at_home(machine))
    return spread(known, machine.has_cores, guide(machine), *constants)[0]


SHARES = tuple(round(share, 2) for share in np.arange(0.30, 0.605, 0.02).tolist())
IN_FLIGHT = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, inf)
BANDWIDTH_LAWS = (
    Law("inverse of the distance", _by_distance),
    Law("share of local", _share_of_local, tuple((share,) for share in SHARES)),
    Law("share of the socket's memories", _spread, tuple((share, inf) for share in SHARES)),
    Law("... and requests in flight", _spread, tuple((a, b) for a in SHARES for b in IN_FLIGHT), used=True),
)


# Latency, from SLIT.


def local_latency_s(machine: Published) -> float:
    """Mean idle latency of the nodes' own memories, of those that were measured."""
    return float(np.nanmean(np.diagonal(machine.latency_s)))


def distant_pairs(machine: Published) -> BoolArray:
    """Pairs of two nodes whose latency was measured, shape (N, N)."""
    return np.asarray(np.isfinite(machine.latency_s) & ~np.eye(len(machine.sockets), dtype=bool))


def _ratio(machine: Published) -> FloatArray:
    assert machine.distances is not None
    return machine.distances / LOCAL_DISTANCE


def _in_proportion(machine: Published, constants: Constants) -> FloatArray:
    assert machine.distances is not None
    return latency_from_distances(machine.distances) * (local_latency_s(machine) / ASSUMED_LOCAL_LATENCY_S)


def _as_read(machine: Published, constants: Constants) -> FloatArray:
    assert machine.distances is not None
    return latency_from_distances(machine.distances)


EXPONENTS = tuple((round(p, 3),) for p in np.arange(0.3, 1.2001, 0.005).tolist())
LATENCY_LAWS = (
    Law("local x distance / 10", _in_proportion),
    Law(f"{ASSUMED_LOCAL_LATENCY_S * 1e9:.0f} ns x distance / 10", _as_read, used=True),
    Law("local x (distance / 10)^p", lambda m, c: local_latency_s(m) * _ratio(m) ** c[0], EXPONENTS),
    Law("100 ns x (distance / 10)^p", lambda m, c: ASSUMED_LOCAL_LATENCY_S * _ratio(m) ** c[0], EXPONENTS),
    Law(
        "local x (1 + p (distance / 10 - 1))", lambda m, c: local_latency_s(m) * (1 + c[0] * (_ratio(m) - 1)), EXPONENTS
    ),
)


def bandwidth_outcomes(machines: Sequence[Published]) -> list[Outcome]:
    """Every law of bandwidth between sockets on every machine that has such a pair to predict."""
    return [_bandwidth_outcome(law, machines, remote_pairs) for law in BANDWIDTH_LAWS]


def near_outcome(machines: Sequence[Published]) -> Outcome:
    """The law that readers use, within sockets."""
    (used,) = (law for law in BANDWIDTH_LAWS if law.used)
    return _bandwidth_outcome(used, machines, near_pairs)


def _bandwidth_outcome(law: Law, machines: Sequence[Published], pairs_of: Callable[[Published], BoolArray]) -> Outcome:
    able = [machine for machine in machines if pairs_of(machine).any()]
    measured = {machine.name: machine.bandwidth_bytes_per_s for machine in able}
    return leave_one_out(law, able, measured, {machine.name: pairs_of(machine) for machine in able})


def latency_outcomes(machines: Sequence[Published]) -> list[Outcome]:
    """Every law of latency on every machine that has SLIT and a latency between two nodes."""
    able = [machine for machine in machines if machine.distances is not None and distant_pairs(machine).any()]
    measured = {machine.name: machine.latency_s for machine in able}
    pairs = {machine.name: distant_pairs(machine) for machine in able}
    return [leave_one_out(law, able, measured, pairs) for law in LATENCY_LAWS]

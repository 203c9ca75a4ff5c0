"""Decides where tasks run and where their data live, from a policy in a file, with numpy alone.

    policy = Policy.load("policy.npz")
    actions = policy.decide(rows)  # (task node, data node) of each row, shape (B, 2)

A row is one observation of a machine of N nodes as float32: the groups below, one after the other, matrices row by
row. All values are without unit and 0 or more; times are in units of one reference time of your choice, best the
mean time of a task on an idle machine.

    memory         N      share of each node's memory in use
    communication  N x N  recent traffic by initiator and target over the target's capacity
    queue          N      outstanding work per core of each node
    task           11     the task to place: computing time on an average core; time for its own bytes from an average
                          local memory; share of them written; its object's size over an average node's memory; how
                          much of that is new; 1 if the object does not live anywhere yet; time for its inputs from an
                          average local memory; time until object and inputs are ready; time since the last arrival;
                          1 if no task writes the object once it exists; share of recent accesses that were writes
    data           N      share of the task's object on each node; 1 at every copy of one that is only read
    inputs         N      time for the inputs that each node holds, from an average local memory
    access         N      recent bytes between the object and each node, over what the window could move
    last           N      1 at the node whose task accessed the object last, since it was last moved
    migration      N      time to move the object to each node
    estimate       N x N  time the task would take by (task node, data node): execution and communication
    congestion     N x N  sum over the controllers and links it would use of bytes / capacity x load there
    task_mask      N      1 for nodes that can run a task
    data_mask      N      1 for nodes with room for the object; all nodes when none has
    nodes          N      1 for nodes that exist, 0 for padding
    latency        N x N  idle latency over the machine's smallest
    bandwidth      N x N  idle bandwidth over the machine's largest

A row has 10 N + 5 N N + 11 values, and N follows from that. At least one node must be open for tasks and one for data.

Dimension key: B rows, N nodes, H hidden width, P hidden width of pairs.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Groups = dict[str, Float32]

NUM_TASK_FEATURES = 11
MOST_NODES = 128
# Groups in the order of a row, by number of axes: 1 is a number a node, 2 a matrix, 0 the features of the task.
GROUPS = {
    "memory": 1,
    "communication": 2,
    "queue": 1,
    "task": 0,
    "data": 1,
    "inputs": 1,
    "access": 1,
    "last": 1,
    "migration": 1,
    "estimate": 2,
    "congestion": 2,
    "task_mask": 1,
    "data_mask": 1,
    "nodes": 1,
    "latency": 2,
    "bandwidth": 2,
}
NODE_GROUPS = ("memory", "queue", "data", "inputs", "access", "last", "migration", "task_mask", "data_mask", "nodes")
FORMAT = "numa-rl policy for numpy 1"
# What reading a file that is no policy may raise.
DAMAGE = (
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError, OSError, RuntimeError),
    *(MemoryError, BadZipFile, zlib.error),
)


@dataclass(frozen=True, eq=False)
class Policy:
    """A network that scores every (task node, data node) pair, for machines of any size up to `MOST_NODES`.

    Attributes:
        weights: matrices as (outputs, inputs), biases and factors, by name.
        config: of the network.
        constants: of the network, which are not learned.
    """

    weights: Mapping[str, Float32]
    config: Mapping[str, Any]
    constants: Mapping[str, float]

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Policy:
        """Read a policy.

        Raises:
            OSError: the file cannot be opened.
            ValueError: it is no policy of this kind.
        """
        with open(path, "rb") as stream:
            try:
                policy = cls._read(stream)
                policy._try()
            except DAMAGE as error:
                raise ValueError(f"{path}: no policy: {error}") from error
        return policy

    @classmethod
    def _read(cls, stream: BinaryIO) -> Policy:
        """What a file says, not yet tried."""
        file = np.load(stream, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("the file must be an .npz archive, got a single array.")
        about = json.loads(str(file["about"])) if "about" in file.files else {}
        if about.get("format") != FORMAT:
            raise ValueError(f"the file must say format {FORMAT!r}, got {about.get('format')!r}.")
        weights = {name: file[name] for name in file.files if name != "about"}
        for name, array in weights.items():
            if array.dtype != np.float32 or not np.isfinite(array).all():
                raise ValueError(f"{name} must be finite float32, got {array.dtype}, NaN or infinity.")
        return cls(weights, about["config"], about["constants"])

    def _try(self) -> None:
        """Raise one of `DAMAGE` if a weight is missing, of another shape, or too large to reckon with."""
        with np.errstate(all="ignore"):
            logits = self.logits(np.ones((1, row_size(2)), np.float32))
            self.decide(np.ones((1, row_size(2)), np.float32))
        if logits.shape != (1, 4) or not np.isfinite(logits).all():
            raise ValueError(f"the weights must score placements by finite numbers, got {logits.tolist()}.")

    def decide(self, rows: Float32) -> npt.NDArray[np.int64]:
        """The best (task node, data node) of each row, shape (B, 2): the first of those that are equal but for digits.

        Args:
            rows: observations of machines of one size, shape (B, size).

        Raises:
            ValueError: as `logits`.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            logits = self.logits(rows)
        if not np.isfinite(logits).all():
            raise ValueError("rows must be numbers to reckon with, got some so large that logits overflow.")
        best = logits.max(axis=1, keepdims=True)
        pairs = (logits >= best - np.float32(self.constants["tie"])).argmax(axis=1)
        return np.stack(np.divmod(pairs, num_nodes_of(rows)), axis=1)

    def logits(self, rows: Float32) -> Float32:
        """The logarithm of each pair's odds, shape (B, N N): the higher, the better; very low for closed pairs.

        Raises:
            ValueError: as `num_nodes_of`, or a row in which no placement is open.
        """
        groups = split(rows)
        groups |= {name: np.zeros_like(groups[name]) for name in self.config["blind_to"]}
        is_open = (groups["task_mask"][:, :, None] > 0) & (groups["data_mask"][:, None, :] > 0)
        if not is_open.any(axis=(1, 2)).all():
            raise ValueError(
                f"every row must have an open placement, got none in row {int(is_open.any((1, 2)).argmin())}."
            )
        ratio, lowest = over_lowest(self._log_cost(groups, np.exp(self.weights["log_price"])[None]), is_open)
        nodes = self._nodes(groups, ratio, lowest, is_open)
        logits = self._residual(groups, nodes, ratio, lowest)
        if self.config["prior"]:
            most = np.float32(self.constants["most_price"])
            price = np.clip(self._layer("price", pooled(nodes, groups)), -most, most)
            adapted, _ = over_lowest(self._log_cost(groups, np.exp(self.weights["log_price"] + price)), is_open)
            logits -= np.exp(self.weights["log_scale"]) * adapted
        logits[~is_open] = self.constants["closed"]
        return np.reshape(logits, (len(rows), -1))

    def _layer(self, name: str, x: Float32) -> Float32:
        """A linear layer."""
        out: Float32 = np.matmul(x, self.weights[f"{name}.weight"].T)
        if f"{name}.bias" in self.weights:
            out += self.weights[f"{name}.bias"]
        return out

    def _log_cost(self, groups: Groups, factor: Float32) -> Float32:
        """The logarithm of what each pair costs now and takes from tasks to come, shape (B, N, N)."""
        names = ("congestion_price", "crowding_price", "migration_share")
        prices = factor * np.array([self.config[name] for name in names], np.float32)
        congestion, crowding, share = (prices[:, k : k + 1] for k in range(3))
        kept = (np.float32(1.0) - np.minimum(share, np.float32(1.0))) * np.float32(self.config["alpha"])
        moved = np.float32(1.0) - groups["data"]
        at_data = crowding * (groups["memory"] + groups["communication"].sum(1)) * moved - kept * groups["migration"]
        cost = groups["estimate"] + congestion[:, :, None] * groups["congestion"] + at_data[:, None, :]
        log_cost: Float32 = np.log(np.maximum(cost, np.float32(self.constants["smallest_cost"])))
        return log_cost

    def _nodes(self, groups: Groups, ratio: Float32, lowest: Float32, is_open: npt.NDArray[np.bool_]) -> Float32:
        """What each node is, knowing the task and all nodes, shape (B, N, H)."""
        traffic, latency, exists = groups["communication"], groups["latency"], groups["nodes"]
        features = [groups[name] for name in NODE_GROUPS] + [traffic.sum(1), traffic.sum(2)]
        features += [groups[name].diagonal(axis1=1, axis2=2) for name in ("communication", "latency", "bandwidth")]
        features.append((latency * exists[:, None, :]).sum(2) / exists.sum(1, keepdims=True))
        best = [np.where(is_open, ratio, np.float32(np.inf)).min(axis=axis) for axis in (2, 1)]
        features += [np.where(np.isinf(of_node), np.float32(0.0), of_node) for of_node in best]
        state = np.concatenate([groups["task"], np.exp(lowest)[:, None]], axis=1)
        encoded = self._layer("encode", np.log1p(np.stack(features, axis=-1)))
        encoded += self._layer("encode_state", np.log1p(state))[:, None]
        encoded = np.maximum(encoded, 0) * exists[:, :, None]
        mixed = self._layer("mix", encoded) + self._layer("pool", pooled(encoded, groups))[:, None]
        nodes: Float32 = np.maximum(mixed, 0) * exists[:, :, None]
        return nodes

    def _residual(self, groups: Groups, nodes: Float32, ratio: Float32, lowest: Float32) -> Float32:
        """What was learned of each pair beyond its cost, shape (B, N, N)."""
        traffic, estimate = groups["communication"], groups["estimate"]
        back, relative = traffic.transpose(0, 2, 1), estimate * np.exp(-lowest)[:, None, None]
        features = (estimate, groups["congestion"], traffic, back, groups["latency"], groups["bandwidth"], relative)
        same = np.broadcast_to(np.eye(ratio.shape[1], dtype=np.float32), ratio.shape)
        pairs = np.stack([*np.log1p(np.stack(features)), ratio, same], axis=-1)
        hidden = self._layer("pair", pairs)
        hidden += self._layer("as_task_node", nodes)[:, :, None] + self._layer("as_data_node", nodes)[:, None]
        residual: Float32 = self._layer("score", np.maximum(hidden, 0))[..., 0]
        return residual


def over_lowest(log_cost: Float32, is_open: npt.NDArray[np.bool_]) -> tuple[Float32, Float32]:
    """Logarithms of costs over the row's lowest open one, 0 for closed pairs; and that one's, shape (B,)."""
    lowest = np.where(is_open, log_cost, np.float32(np.inf)).min(axis=(1, 2))
    return np.where(is_open, log_cost - lowest[:, None, None], np.float32(0.0)), lowest


def pooled(nodes: Float32, groups: Groups) -> Float32:
    """Mean and maximum over the nodes that exist, shape (B, 2 H)."""
    exists = groups["nodes"][:, :, None]
    present = nodes * exists
    return np.concatenate([present.sum(1) / exists.sum(1), present.max(1)], axis=1)


def row_size(num_nodes: int) -> int:
    """Values of a row of N nodes."""
    return sum(num_nodes**axes if axes else NUM_TASK_FEATURES for axes in GROUPS.values())


def num_nodes_of(rows: Float32) -> int:
    """N of the machines that rows were seen on.

    Raises:
        ValueError: the rows are not finite float32 of shape (B, size), B >= 1, for any number of nodes.
    """
    if not isinstance(rows, np.ndarray):
        raise ValueError(f"rows must be a numpy array, got {type(rows).__name__}.")
    if rows.ndim != 2 or not len(rows) or rows.dtype != np.float32:
        raise ValueError(f"rows must be float32 of shape (B, size), B >= 1, got {rows.dtype} of shape {rows.shape}.")
    if not np.isfinite(rows).all():
        raise ValueError("rows must be finite, got NaN or infinity.")
    if rows.min() < 0.0:
        raise ValueError(f"rows must be 0 or more, got {rows.min()}.")
    for n in range(1, MOST_NODES + 1):
        if row_size(n) == rows.shape[1]:
            return n
    raise ValueError(f"no machine of up to {MOST_NODES} nodes has rows of {rows.shape[1]} values.")


def split(rows: Float32) -> Groups:
    """The groups of rows, as views; matrices have shape (B, N, N).

    Raises:
        ValueError: as `num_nodes_of`.
    """
    n, start, groups = num_nodes_of(rows), 0, {}
    for name, axes in GROUPS.items():
        size = n**axes if axes else NUM_TASK_FEATURES
        part = rows[:, start : start + size]
        groups[name] = part.reshape(len(rows), n, n) if axes == 2 else part
        start += size
    return groups

"""The arrays the kernel works on: machines, tasks, state and outcome, structure of arrays.

Dimension key: M machines, B rows (machines being simulated at once), N nodes (of the largest machine),
C cores (of the largest node), R resources (N memory controllers, then the directed links),
E episodes, T tasks, O objects, P inputs.

Matrices are stored flat, (N * N,), because numba compiles loops over one-dimensional row views
several times faster than over three-dimensional arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from numa_rl.coherence.protocol import responder_ratios
from numa_rl.topology import Topology
from numa_rl.workloads.workload import NEVER, Workload

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
U32 = npt.NDArray[np.uint32]
U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]


class Machines(NamedTuple):
    """What never changes about M machines, padded to the largest.

    A pair (initiator, target) is the number initiator * N + target. Its route is that of `parent_pair`, which
    has the same initiator, and one link more. Indices are unsigned: numba then need not look for negative ones.
    """

    num_nodes: I32  # (M,)
    num_links: I32  # (M,)
    cores: I32  # (M, N)
    s_per_flop: F32  # (M, N) of one core
    memory_bytes: F64  # (M, N)
    pair_s_per_byte: F32  # (M, N * N) 1 / idle bandwidth
    latency_s: F32  # (M, N * N) idle
    resource_s_per_byte: F32  # (M, R) 1 / capacity
    fallback_order: I32  # (M, N * N) nodes from nearest to farthest
    runs_on: I32  # (M, N) the nearest node with cores: itself unless it has none
    walk: U32  # (M, N * N) pairs by hops, so that each comes after its parent; first the N pairs of no hop
    parent_pair: U32  # (M, N * N) the pair whose route is one link shorter
    link_in: U32  # (M, N * N) resource of the route's last link, toward the initiator
    link_out: U32  # (M, N * N) the same, away from the initiator
    latency_a: F32  # (M,) loaded latency: r(u) = 1 + a u / (1 - c u)
    latency_c: F32  # (M,)
    latency_saturated: F32  # (M,)
    outstanding_bytes: F32  # (M,) bytes in flight of one core
    llc_bytes: F32  # (M, N) last-level cache
    coherence: F32  # (M, 8) `responder_ratios`, a row after the other
    page_bytes: F64  # (M,)
    page_move_s: F64  # (M,)

    @property
    def max_nodes(self) -> int:
        """Number of nodes N of the largest machine."""
        return int(self.cores.shape[1])

    @property
    def max_cores(self) -> int:
        """Number of cores C of the largest node."""
        return int(self.cores.max())

    @property
    def max_resources(self) -> int:
        """Number of resources R: N memory controllers and the links of the machine with most links."""
        return int(self.resource_s_per_byte.shape[1])


def compile_machines(topologies: Sequence[Topology], max_nodes: int | None = None) -> Machines:
    """Pad topologies to one size and lay out their routes for the kernel.

    Args:
        topologies: the M machines.
        max_nodes: pad to this many nodes; the largest machine's by default.

    Raises:
        ValueError: no machine was given, or one has more than `max_nodes` nodes.
    """
    if not topologies:
        raise ValueError("a simulator needs at least one machine, got none.")
    largest = max(topology.num_nodes for topology in topologies)
    n = largest if max_nodes is None else max_nodes
    if n < largest:
        raise ValueError(f"max_nodes must be at least {largest}, the largest machine's nodes, got {max_nodes}.")
    m, r = len(topologies), n + max(topology.num_links for topology in topologies)
    machines = Machines(
        num_nodes=np.array([topology.num_nodes for topology in topologies], np.int32),
        num_links=np.array([topology.num_links for topology in topologies], np.int32),
        cores=np.zeros((m, n), np.int32),
        s_per_flop=np.zeros((m, n), np.float32),
        memory_bytes=np.zeros((m, n), np.float64),
        pair_s_per_byte=np.zeros((m, n * n), np.float32),
        latency_s=np.zeros((m, n * n), np.float32),
        resource_s_per_byte=np.zeros((m, r), np.float32),
        fallback_order=np.zeros((m, n * n), np.int32),
        runs_on=np.zeros((m, n), np.int32),
        walk=np.zeros((m, n * n), np.uint32),
        parent_pair=np.zeros((m, n * n), np.uint32),
        link_in=np.zeros((m, n * n), np.uint32),
        link_out=np.zeros((m, n * n), np.uint32),
        latency_a=np.array([topology.loaded_latency.a for topology in topologies], np.float32),
        latency_c=np.array([topology.loaded_latency.c for topology in topologies], np.float32),
        latency_saturated=np.array([topology.loaded_latency.saturated for topology in topologies], np.float32),
        outstanding_bytes=np.array([topology.outstanding_bytes for topology in topologies], np.float32),
        llc_bytes=np.ones((m, n), np.float32),
        coherence=np.array([responder_ratios(topology.coherence).ravel() for topology in topologies], np.float32),
        page_bytes=np.array([topology.page_bytes for topology in topologies], np.float64),
        page_move_s=np.array([topology.page_move_s for topology in topologies], np.float64),
    )
    for index, topology in enumerate(topologies):
        _fill_machine(machines, index, topology)
    for array in machines:
        array.setflags(write=False)
    return machines


def _fill_machine(machines: Machines, index: int, topology: Topology) -> None:
    """Write one topology into row `index`."""
    n, k = machines.max_nodes, topology.num_nodes
    machines.cores[index, :k] = topology.cores
    machines.s_per_flop[index, :k] = 1.0 / topology.flops_per_s
    machines.memory_bytes[index, :k] = topology.memory_bytes
    machines.llc_bytes[index, :k] = topology.llc_bytes
    machines.resource_s_per_byte[index, :k] = 1.0 / topology.memory_bandwidth_bytes_per_s
    machines.resource_s_per_byte[index, n : n + topology.num_links] = 1.0 / topology.link_bandwidth_bytes_per_s

    for node, near in enumerate(topology.fallback_order):
        machines.runs_on[index, node] = next(other for other in near if topology.cores[other] > 0)

    links = topology.link_index()
    pairs = np.arange(n * n).reshape(n, n)[:k, :k].ravel()
    machines.walk[index, : k * k] = pairs[np.argsort(topology.hops, axis=None, kind="stable")]
    link_out, link_in, parent_pair = (np.zeros((k, k), np.int64) for _ in range(3))
    for root in range(k):
        for node in range(k):
            if node != root:
                before = int(topology.predecessor[root, node])
                parent_pair[root, node] = root * n + before
                link_out[root, node] = n + links[before, node]
                link_in[root, node] = n + links[node, before]
    for name, matrix in {
        "pair_s_per_byte": 1.0 / topology.bandwidth_bytes_per_s,
        "latency_s": topology.latency_s,
        "fallback_order": topology.fallback_order,
        "parent_pair": parent_pair,
        "link_out": link_out,
        "link_in": link_in,
    }.items():
        getattr(machines, name)[index].reshape(n, n)[:k, :k] = matrix


# What a decision reads of its task, together: it is another one for every row.
TASK = np.dtype(
    [
        ("arrival_s", np.float64),
        ("object_bytes", np.float64),
        ("flops", np.float32),
        ("bytes", np.float32),
        ("write_fraction", np.float32),
        ("overhead_s", np.float32),
        ("object", np.int32),
        ("first_freed", np.int32),  # the first object freed after this task, or -1
    ],
    align=True,
)
INPUT = np.dtype([("object", np.int32), ("bytes", np.float32)], align=True)


class Tasks(NamedTuple):
    """A workload as the kernel reads it: `Workload`'s arrays, and who is freed after each task as linked lists."""

    each: npt.NDArray[np.void]  # (E, T) of TASK
    inputs: npt.NDArray[np.void]  # (E, T, P) of INPUT
    next_freed: I32  # (E, O) the next object freed after the same task, or -1
    read_only: Bool  # (E, O) objects that no task writes once they exist
    follows_inputs: np.bool_  # whether time moves on to when the next task's inputs are ready


def compile_tasks(workload: Workload) -> Tasks:
    """The workload's arrays with `freed_after` turned into one linked list per task."""
    e, t = workload.arrival_s.shape
    next_freed = np.full((e, workload.num_objects), -1, np.int32)
    each = np.zeros((e, t), TASK)
    first_freed = each["first_freed"]
    first_freed[:] = -1
    episodes = np.arange(e)
    for obj in range(workload.num_objects - 1, -1, -1):
        after = workload.freed_after[:, obj]
        rows = episodes[(after != NEVER) & (after < t)]
        next_freed[rows, obj] = first_freed[rows, after[rows]]
        first_freed[rows, after[rows]] = obj
    for name in ("arrival_s", "flops", "bytes", "write_fraction", "overhead_s", "object"):
        each[name] = getattr(workload, name)
    each["object_bytes"] = np.ceil(workload.object_bytes)  # whole, so that what is taken and given back adds up exactly
    inputs = np.zeros(workload.inputs.shape, INPUT)
    inputs["object"], inputs["bytes"] = workload.inputs, workload.input_bytes
    return Tasks(each, inputs, next_freed, workload.read_only, np.bool_(workload.follows_inputs))


# One object, together in 48 bytes: a decision touches few objects of many, so misses are what it waits for.
OBJECT = np.dtype(
    [
        ("bytes", np.float64),  # its size now
        ("ready_s", np.float64),  # when its last writer ends
        ("accessed_s", np.float64),  # when its access_bytes were last brought up to date
        ("cached_at", np.float64),  # what had passed through its holder's cache when that last touched it
        ("cached_bytes", np.float32),  # what that access left there
        ("written_bytes", np.float32),  # of its access_bytes, those that were writes
        ("node", np.int16),  # where it lives, or most of it, or its first copy; -1 while it does not
        ("form", np.int16),  # ORDINARY, SPLIT, or the number of copies of one that is only read
        ("holder", np.int16),  # the node whose cache answers for its lines, the last to touch it; -1 when none did
        ("sharer", np.int16),  # the holder before, for lines in F; else EXCLUSIVE or MODIFIED
    ],
    align=True,
)
EXCLUSIVE, MODIFIED = -1, -2
ORDINARY, SPLIT = 0, -1


# What a core moves, see `in_flight.py`: a head and up to N + 2 streams, of the same size so that they lie together.
RECORD = np.dtype(
    {
        "names": [
            *("num_streams", "status", "duration_s", "busy_until_s"),  # of a head
            *("pair", "present", "read_bytes_per_s", "written_bytes_per_s"),  # of a stream
        ],
        "formats": ["i2", "i2", "f4", "f8", "i4", "f4", "f4", "f4"],
        "offsets": [0, 2, 4, 8, 0, 4, 8, 12],
        "itemsize": 16,
    }
)
ABSENT, WAITING, AT_WORK = 0, 1, 2
CACHE_LINE = 64
TOGETHER = CACHE_LINE // RECORD.itemsize
CHANGE = np.dtype([("at_s", np.float64), ("core", np.int64)])  # when a core's record changes next


class State(NamedTuple):
    """Everything that changes, B rows, allocated once; only the kernel writes it."""

    machine: I32  # (B,) which machine each row simulates
    episode: I32  # (B,) which episode of the workload it plays
    task: I32  # (B,) the task to be decided next
    horizon: I32  # (B,) tasks to decide before the episode ends
    now_s: F64  # (B,)
    core_free_s: F64  # (B, C * N) when each core is free, core-major so that nodes are contiguous
    node_free_s: F64  # (B, N) the smallest of a node's core_free_s
    memory_used_bytes: F64  # (B, N)
    spare_bytes: F64  # (B, N) of these, copies that can be dropped
    traffic_bytes: F32  # (B, N * N) recent bytes by initiator and target: the communication matrix
    resource_bytes: F32  # (B, R) recent bytes through each memory controller and link
    stream_count: F32  # (B, R) streams in flight through each memory controller and link
    stream_rate: F32  # (B, R) what they move together, bytes per second
    stream_bytes: F32  # (B, R) what they have left to move
    num_changes: I32  # (B,) how many cores have a record
    changes: npt.NDArray[np.void]  # (B, C * N) of CHANGE: a heap of the first `num_changes`, by time
    records: npt.NDArray[np.void]  # (B, C * N * `record_size`) of RECORD
    objects: npt.NDArray[np.void]  # (B, O) of OBJECT
    page_weights: U8  # (B, O * N) how a SPLIT object's pages are dealt out; 1 at each of several copies
    access_bytes: F32  # (B, O * N) bytes recently moved between each object and each node
    passed_bytes: F64  # (B, N) bytes that have passed through each node's cache
    pair_bytes: F32  # (B, N * N * 2) all bytes read, then written, between each initiator and target


def record_size(num_nodes: int) -> int:
    """How many of RECORD a core has: a head and N + 2 streams, in whole cache lines."""
    return (num_nodes + 3 + TOGETHER - 1) // TOGETHER * TOGETHER


def _on_cache_lines(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Zeros that begin at a cache line."""
    dtype = np.dtype(dtype)
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(num_bytes + CACHE_LINE, np.uint8)
    first = -raw.ctypes.data % CACHE_LINE
    return raw[first : first + num_bytes].view(dtype).reshape(shape)


def allocate_state(num_rows: int, machines: Machines, num_objects: int) -> State:
    """State of B rows, all zero; `Simulator.reset` gives it meaning."""
    b, n, c, r = num_rows, machines.max_nodes, machines.max_cores, machines.max_resources
    return State(
        machine=np.zeros(b, np.int32),
        episode=np.zeros(b, np.int32),
        task=np.zeros(b, np.int32),
        horizon=np.zeros(b, np.int32),
        now_s=np.zeros(b, np.float64),
        core_free_s=np.zeros((b, c * n), np.float64),
        node_free_s=np.zeros((b, n), np.float64),
        memory_used_bytes=np.zeros((b, n), np.float64),
        spare_bytes=np.zeros((b, n), np.float64),
        traffic_bytes=np.zeros((b, n * n), np.float32),
        resource_bytes=np.zeros((b, r), np.float32),
        stream_count=np.zeros((b, r), np.float32),
        stream_rate=np.zeros((b, r), np.float32),
        stream_bytes=np.zeros((b, r), np.float32),
        num_changes=np.zeros(b, np.int32),
        changes=np.zeros((b, c * n), CHANGE),
        records=_on_cache_lines((b, c * n * record_size(n)), RECORD),
        objects=np.zeros((b, num_objects), OBJECT),
        page_weights=np.zeros((b, num_objects * n), np.uint8),
        access_bytes=np.zeros((b, num_objects * n), np.float32),
        passed_bytes=np.zeros((b, n), np.float64),
        pair_bytes=np.zeros((b, n * n * 2), np.float32),
    )


class Outcome(NamedTuple):
    """What the last decision of each row led to, shape (B,) each."""

    exec_s: F64  # T_exec: waiting for a core and for inputs, then the roofline service time
    comm_s: F64  # T_comm: input transfers, migration and coherence
    wait_s: F64  # the waiting in exec_s
    migration_s: F64  # the migration in comm_s
    coherence_s: F64  # the coherence in comm_s
    imbalance: F64  # sigma / mu of outstanding work per core, over nodes with cores
    task_node: I32  # where the task ran: the chosen node, or the nearest with cores
    data_node: I32  # where the object was put, after fallback; -1 when out of memory
    migrated: Bool  # the object, or pages of it, moved between nodes
    replicated: Bool  # a copy was made of an object that is only read
    fell_back: Bool  # the chosen data node was full and another one was used
    out_of_memory: Bool  # no node had room: the task was dropped
    local_bytes: F64  # bytes moved within the task's node
    remote_bytes: F64  # bytes moved between nodes, migration included
    finished: Bool  # that was the episode's last decision


def allocate_outcome(num_rows: int) -> Outcome:
    """Outcome buffers of B rows."""
    kinds = dict.fromkeys(("task_node", "data_node"), np.int32) | dict.fromkeys(
        ("migrated", "replicated", "fell_back", "out_of_memory", "finished"), np.bool_
    )
    arrays: dict[str, npt.NDArray[Any]] = {
        name: np.zeros(num_rows, kinds.get(name, np.float64)) for name in Outcome._fields
    }
    return Outcome(**arrays)


class Totals(NamedTuple):
    """Sums over the decisions of each row's episode so far, shape (B,) each."""

    compute_s: F64  # roofline service time
    communication_s: F64  # T_comm
    migration_s: F64  # the migration in it
    coherence_s: F64  # the coherence in it
    local_bytes: F64
    remote_bytes: F64
    imbalance: F64
    migrations: F64
    dropped: F64  # tasks for which no node had room
    last_finish_s: F64  # no sum: when the last task to end does


def allocate_totals(num_rows: int) -> Totals:
    """Totals of B rows, all zero."""
    return Totals(*np.zeros((len(Totals._fields), num_rows), np.float64))


NUM_WORK_ROWS = 5


def allocate_work(machines: Machines) -> F64:
    """A thread's working array, (5, N): outstanding work; then see `placement.py`."""
    return np.zeros((NUM_WORK_ROWS, machines.max_nodes))

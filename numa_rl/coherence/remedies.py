"""What a programmer can do about shared lines, as changes to a trace: padding, batching and replication.

Each takes a trace and gives the trace that the changed program would leave; replaying both tells what is saved.
Addresses and the order of time stay: only the line that an access goes to changes, and where that line lives.

Dimension key: A accesses, N nodes.

References:
    [1] The chapter, section 16.1.3: padding to 64 bytes, batched updates, read-only replication.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from numa_rl.coherence.samples import Trace

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def padded(trace: Trace) -> Trace:
    """Give every thread's own variables of a line a line of their own, and each shared variable too [1].

    A thread's own variables are those that no other thread touches; they stay together. The new lines live where
    the old one did.
    """
    variable = variables(trace)
    shared = several(variable, trace.thread)[variable]
    return replace(trace, line=numbered(trace.line, shared, np.where(shared, variable, trace.thread)))


def batched(trace: Trace, updates_per_write: int) -> Trace:
    """Let each thread add up k updates of a variable on a line of its own, then write the shared one once [1].

    A thread's reads of a variable belong to its next update of it (read, add, write); what is left over at the end
    is written too. Other threads' reads go to the shared line.

    Allowed where updates commute (counters, sums, maxima) and a reader may miss the last k - 1 of each thread.

    Args:
        trace: accesses in order of time.
        updates_per_write: k; 1 changes nothing.
    """
    group = numbered(variables(trace), trace.thread)
    order = np.argsort(group, kind="stable")
    write = trace.write[order].astype(np.int64)
    earlier = np.cumsum(write) - write
    start = np.searchsorted(group[order], group[order])  # first access of the group
    update = np.empty_like(group)
    update[order] = earlier - earlier[start]  # number of the update that this access belongs to
    updates = np.bincount(group, weights=trace.write, minlength=1).astype(np.int64)[group]
    local = ((update + 1) % updates_per_write != 0) & (update + 1 < updates)
    return replace(
        trace,
        line=numbered(trace.line, local, np.where(local, trace.thread, 0)),
        home=np.where(local, trace.node, trace.home),
    )


def replicated(trace: Trace) -> tuple[Trace, IntArray]:
    """Give every node that reads a line a copy of it in its own memory; a write goes to every copy [1].

    Allowed where the program can bring all copies up to date before anyone reads again: always for what is never
    written, between phases for what seldom is.

    Returns:
        the trace, and the access of the old trace that each of its accesses stands for.
    """
    _, line = np.unique(trace.line, return_inverse=True)
    nodes = int(trace.node.max(initial=0)) + 1
    copies = np.unique(line[~trace.write] * nodes + trace.node[~trace.write])  # line and node in one number
    copies_of = np.bincount(copies // nodes, minlength=int(line.max(initial=-1)) + 1)
    count = np.where(trace.write, copies_of[line], 1)
    origin = np.repeat(np.arange(len(trace)), count)
    nth = np.arange(len(origin)) - np.repeat(np.cumsum(count) - count, count)
    copy = line[origin] * nodes + trace.node[origin]
    written = trace.write[origin]
    first = np.cumsum(copies_of) - copies_of
    copy[written] = copies[first[line[origin[written]]] + nth[written]]
    return replace(trace.select(origin), line=copy, home=copy % nodes), origin


def variables(trace: Trace) -> IntArray:
    """Number of the variable that each access touches, shape (A,): accesses that overlap touch the same one."""
    order = np.lexsort((trace.start, trace.line))
    line, start, stop = trace.line[order], trace.start[order], trace.stop[order]
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = (line[1:] != line[:-1]) | (start[1:] >= np.maximum.accumulate(stop)[:-1])
    variable = np.empty(len(order), dtype=np.int64)
    variable[order] = np.cumsum(first) - 1
    return variable


def numbered(*columns: npt.NDArray[np.generic]) -> IntArray:
    """One number for each combination of values, from 0, shape (A,)."""
    number = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        values, index = np.unique(column, return_inverse=True)
        _, number = np.unique(number * len(values) + index, return_inverse=True)
    return number


def several(group: IntArray, values: IntArray) -> BoolArray:
    """Whether a group, numbered from 0, has more than one value, one entry for each group."""
    some = np.zeros(int(group.max(initial=-1)) + 1, dtype=np.int64)
    some[group] = values  # any one of the group's values
    return np.bincount(group, weights=values != some[group], minlength=len(some)) > 0

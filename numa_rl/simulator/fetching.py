"""Asking the processor for what later rows will touch while it works on this one; compiled by numba.

Rows lie far apart, and of what a decision touches neither the task nor its objects nor the cores' records lie where
the processor would look by itself. Nothing here changes a result.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from numa_rl.compilation import compiled
from numa_rl.simulator.cores import first_free_core
from numa_rl.simulator.in_flight import size_of_record
from numa_rl.simulator.state import CACHE_LINE, INPUT, OBJECT, RECORD, TASK

OBJECT_BYTES, RECORD_BYTES = OBJECT.itemsize, RECORD.itemsize
TASK_BYTES, INPUT_BYTES = TASK.itemsize, INPUT.itemsize
AHEAD = 3  # rows between asking for an object's cache lines and using them


def _prefetch(typing_context, array, num_bytes):
    """Ask the processor for the cache line `num_bytes` into the array, without waiting for it."""
    del typing_context

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte, word = ir.IntType(8), ir.IntType(32)
        address = builder.gep(builder.bitcast(data, byte.as_pointer()), [arguments[1]])
        kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, *(ir.Constant(word, value) for value in (1, 3, 1))])  # write, keep, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


prefetch: Any = intrinsic(_prefetch)


@compiled
def fetch_task(tasks, state, b):
    """Ask for row b's next task."""
    start = state.episode[b] * tasks.each.shape[1] + state.task[b]
    prefetch(tasks.each, start * TASK_BYTES)
    prefetch(tasks.inputs, start * tasks.inputs.shape[2] * INPUT_BYTES)


@compiled
def fetch_objects(machines, tasks, state, b):
    """Ask for what row b's next task will touch of its objects: they lie anywhere, and nothing else foresees them."""
    e, t = state.episode[b], state.task[b]
    if t < tasks.each.shape[1]:
        objects = state.objects.shape[1]
        width = machines.cores.shape[1]
        for p in range(-1, tasks.inputs.shape[2]):
            obj = tasks.each[e, t].object if p < 0 else tasks.inputs[e, t, p].object
            if obj >= 0:
                start = (b * objects + obj) * OBJECT_BYTES  # an object may lie over two cache lines
                prefetch(state.objects, start)
                prefetch(state.objects, start + OBJECT_BYTES - 1)
                prefetch(state.access_bytes, (b * objects + obj) * width * 4)


@compiled
def fetch_records(machines, state, b, node):
    """Ask for the records of the core that row b's next task gets on `node`, and of the one that changes next."""
    size = size_of_record(machines.cores.shape[1])
    row = b * state.records.shape[1]
    core = first_free_core(machines, state, b, machines.runs_on[state.machine[b], node])
    for record in (core, state.changes[b, 0].core):
        start = (row + record * size) * RECORD_BYTES
        prefetch(state.records, start)
        prefetch(state.records, start + CACHE_LINE)

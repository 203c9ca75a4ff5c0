"""A binary heap of vertices whose keys may change: the queue of a refinement, greatest key first.

References:
    [1] R. Sedgewick and K. Wayne, Algorithms, 4th ed. Addison-Wesley, 2011, section 2.4: indexed priority queues.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numa_rl.compilation import compiled
from numa_rl.partition.graph import F64, I64


class Heap(NamedTuple):
    """The heap's arrays.

    Attributes:
        items: vertices; the first `size[0]` are the heap, shape (V,).
        place: where each vertex stands in it, -1 outside, shape (V,).
        keys: of the vertices in it, shape (V,).
        size: how many are in it, shape (1,).
    """

    items: I64
    place: I64
    keys: F64
    size: I64


def make_heap(num_vertices: int) -> Heap:
    """An empty heap for that many vertices."""
    empty = np.full(num_vertices, -1, np.int64)
    return Heap(empty.copy(), empty, np.zeros(num_vertices), np.zeros(1, np.int64))


@compiled
def put(heap: Heap, vertex: int, key: float) -> None:
    """Let a vertex in with this key, or change the key it has."""
    items, keys = heap.items, heap.keys
    place = heap.place[vertex]
    if place < 0:
        place = heap.size[0]
        heap.size[0] += 1
    size = heap.size[0]
    keys[vertex] = key
    while place > 0 and keys[items[(place - 1) // 2]] < key:
        other = items[(place - 1) // 2]
        items[place] = other
        heap.place[other] = place
        place = (place - 1) // 2
    while 2 * place + 1 < size:
        child = 2 * place + 1
        if child + 1 < size and keys[items[child + 1]] > keys[items[child]]:
            child += 1
        other = items[child]
        if keys[other] <= key:
            break
        items[place] = other
        heap.place[other] = place
        place = child
    items[place] = vertex
    heap.place[vertex] = place


@compiled
def take(heap: Heap, vertex: int) -> None:
    """Take a vertex out, wherever it stands; one that is outside stays there."""
    place = heap.place[vertex]
    if place < 0:
        return
    heap.size[0] -= 1
    heap.place[vertex] = -1
    last = heap.items[heap.size[0]]
    if last != vertex:
        heap.items[place] = last
        heap.place[last] = place
        put(heap, last, heap.keys[last])


@compiled
def clear(heap: Heap) -> None:
    """Take all vertices out."""
    for place in range(heap.size[0]):
        heap.place[heap.items[place]] = -1
    heap.size[0] = 0

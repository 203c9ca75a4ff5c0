"""The loops over vertices and edges of a multilevel partition: clustering, growing, refining and rebalancing.

Dimension key: V vertices, E undirected edges, K parts.

References:
    [1] G. Karypis and V. Kumar, "A fast and high quality multilevel scheme for partitioning irregular graphs", SIAM J.
        Scientific Computing 20(1), 1998: heavy-edge matching, greedy graph growing, boundary refinement.
    [2] C. M. Fiduccia and R. M. Mattheyses, "A linear-time heuristic for improving network partitions", DAC 1982.
    [3] B. W. Kernighan and S. Lin, "An efficient heuristic procedure for partitioning graphs", Bell System Technical
        Journal 49(2), 1970: exchanges.
    [4] P. Sanders and C. Schulz, "Engineering multilevel graph partitioning algorithms", ESA 2011: rating of edges.
    [5] D. LaSalle et al., "Improving graph partitioning for modern graphs and architectures", IA3 2015: two-hop
        matching.
    [6] R. L. Graham, "Bounds on multiprocessing timing anomalies", SIAM J. Applied Mathematics 17(2), 1969: LPT.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

from numa_rl.compilation import compiled
from numa_rl.partition.graph import F64, I64, Adjacency
from numa_rl.partition.heap import Heap, clear, put, take

SOURCES = (str(Path(__file__).with_name("heap.py")), __file__)
LEAST_GAIN = 1e-9  # share of a vertex's edges: less is rounding
LEAST_WEIGHT = 1e-300  # of a cluster of weightless vertices: no division by 0
MOST_KEY = 1e308


class Clusters(NamedTuple):
    """What clustering writes.

    Attributes:
        root: the vertex that stands for each vertex's cluster, shape (V,).
        weight: of each root's cluster, shape (V,).
        size: vertices in each root's cluster, shape (V,).
        touched: scratch, shape (V,).
        waiting: scratch: who waits for a partner, by the cluster both would have joined, shape (V + 1,).
    """

    root: I64
    weight: F64
    size: I64
    touched: I64
    waiting: I64


class Assignment(NamedTuple):
    """Who is where, and what each vertex would gain anywhere else.

    Attributes:
        parts: the part of each vertex, shape (V,).
        part_weights: weight of each part, shape (K,).
        limits: what each part may weigh, shape (K,).
        links: weight of each vertex's edges into each part, shape (V, K).
    """

    parts: I64
    part_weights: F64
    limits: F64
    links: F64


class Log(NamedTuple):
    """The moves of a pass, so that they can be taken back, and who has moved; shape (V,) each."""

    vertices: I64
    origins: I64
    moved: I64


@partial(compiled, sources=SOURCES)
def cluster(
    graph: Adjacency, order: I64, labels: I64, heaviest: float, fewest: int, clusters: Clusters, score: F64
) -> int:
    """Join vertices along heavy edges, as heavy-edge matching does [1], but so that more than two may join.

    Each vertex, in the order given, joins the neighbouring cluster with the best rating w^2 / weight [4]. Then
    vertices left alone that would have joined the same cluster join each other [5], or a star would never shrink.

    Args:
        graph: what to cluster.
        order: in which vertices choose, shape (V,).
        labels: only vertices of the same label may join, shape (V,).
        heaviest: what a cluster may weigh.
        fewest: clusters at which to stop.
        clusters: written.
        score: zeros, shape (V,); zeros again afterwards.

    Returns:
        Number of clusters.
    """
    root, weight, size, touched, waiting = clusters
    num_vertices = len(order)
    left = num_vertices
    for vertex in range(num_vertices):
        root[vertex] = vertex
        weight[vertex] = graph.vertex_weights[vertex]
        size[vertex] = 1
    waiting[:] = -1
    for turn in range(2):
        for vertex in order:
            if left <= fewest:
                return left
            if root[vertex] != vertex or size[vertex] > 1:
                continue  # it has joined a cluster, or another has joined it
            count = 0
            for edge in range(graph.offsets[vertex], graph.offsets[vertex + 1]):
                near = root[graph.neighbours[edge]]
                if labels[near] == labels[vertex]:
                    if score[near] == 0.0:
                        touched[count] = near
                        count += 1
                    score[near] += graph.edge_weights[edge]
            best, favourite = -1, num_vertices  # vertices without neighbours wait for each other
            best_rating, most = 0.0, 0.0
            for index in range(count):
                near = touched[index]
                if score[near] > most:
                    most, favourite = score[near], near
                rating = score[near] * score[near] / max(weight[near], LEAST_WEIGHT)
                if rating > best_rating and weight[near] + weight[vertex] <= heaviest:
                    best, best_rating = near, rating
                score[near] = 0.0
            if turn == 1 and best < 0:
                best = waiting[favourite]
                waiting[favourite] = -1
                if best < 0 or labels[best] != labels[vertex] or weight[best] + weight[vertex] > heaviest:
                    waiting[favourite] = vertex
                    continue
            if best >= 0:
                root[vertex] = best
                weight[best] += weight[vertex]
                size[best] += 1
                left -= 1
    return left


@compiled
def pack(order: I64, weights: F64, shares: F64, parts: I64, part_weights: F64) -> None:
    """Put each vertex, the heaviest first, where it fills a part's share least: list scheduling, LPT [6].

    Args:
        order: vertices, the heaviest first, shape (V,).
        weights: of the vertices, shape (V,).
        shares: of the whole that each part is to have, shape (K,).
        parts: written: the part of each vertex, shape (V,).
        part_weights: zeros; written: weight of each part, shape (K,).
    """
    for vertex in order:
        best, least = 0, (part_weights[0] + weights[vertex]) / shares[0]
        for part in range(1, len(shares)):
            filled = (part_weights[part] + weights[vertex]) / shares[part]
            if filled < least:
                best, least = part, filled
        parts[vertex] = best
        part_weights[best] += weights[vertex]


@compiled
def count_links(graph: Adjacency, assignment: Assignment) -> None:
    """Write `links` and `part_weights` for the assignment's parts."""
    assignment.links[:] = 0.0
    assignment.part_weights[:] = 0.0
    for vertex in range(len(assignment.parts)):
        assignment.part_weights[assignment.parts[vertex]] += graph.vertex_weights[vertex]
        for edge in range(graph.offsets[vertex], graph.offsets[vertex + 1]):
            assignment.links[vertex, assignment.parts[graph.neighbours[edge]]] += graph.edge_weights[edge]


@compiled
def move(graph: Adjacency, assignment: Assignment, vertex: int, target: int) -> None:
    """Move a vertex to a part, and keep weights and links right."""
    parts, part_weights, _, links = assignment
    origin = parts[vertex]
    parts[vertex] = target
    part_weights[origin] -= graph.vertex_weights[vertex]
    part_weights[target] += graph.vertex_weights[vertex]
    for edge in range(graph.offsets[vertex], graph.offsets[vertex + 1]):
        other = graph.neighbours[edge]
        links[other, origin] -= graph.edge_weights[edge]
        links[other, target] += graph.edge_weights[edge]


@compiled
def best_target(assignment: Assignment, vertex: int, weight: float) -> int:
    """The part with room that a vertex has most links into, of equal ones the emptier; -1 where there is none."""
    parts, part_weights, limits, links = assignment
    best = -1
    for part in range(len(limits)):
        if part == parts[vertex] or part_weights[part] + weight > limits[part]:
            continue
        if best >= 0:
            more = links[vertex, part] - links[vertex, best]
            emptier = part_weights[part] * limits[best] < part_weights[best] * limits[part]
            if more < 0.0 or (more == 0.0 and not emptier):
                continue
        best = part
    return best


@partial(compiled, sources=SOURCES)
def enqueue(graph: Adjacency, assignment: Assignment, heap: Heap, vertex: int) -> None:
    """Give a vertex its place in the queue by what it gains in its best part, or none where it has no such part."""
    target = best_target(assignment, vertex, graph.vertex_weights[vertex])
    if target < 0:
        take(heap, vertex)
    else:
        put(heap, vertex, assignment.links[vertex, target] - assignment.links[vertex, assignment.parts[vertex]])


@partial(compiled, sources=SOURCES)
def refine(graph: Adjacency, assignment: Assignment, heap: Heap, log: Log, order: I64, patience: int) -> float:
    """One pass of Fiduccia and Mattheyses [2] over all parts: the best move next, even a bad one, each vertex once.

    The pass ends after `patience` moves that brought no improvement, and goes back to the best it has seen.

    Args:
        graph: what is partitioned.
        assignment: changed; parts must be within their limits, and stay there.
        heap: empty; empty again afterwards.
        log: scratch.
        order: in which vertices enter the queue, shape (V,); settles ties.
        patience: moves without improvement at which to end.

    Returns:
        By how much the cut has become lighter, >= 0.
    """
    for vertex in order:
        log.moved[vertex] = 0
        enqueue(graph, assignment, heap, vertex)
    gained, most, moves, kept = 0.0, 0.0, 0, 0
    while heap.size[0] > 0 and moves - kept < patience:
        vertex = heap.items[0]
        target = best_target(assignment, vertex, graph.vertex_weights[vertex])
        if target < 0:
            take(heap, vertex)
            continue
        origin = assignment.parts[vertex]
        gain = assignment.links[vertex, target] - assignment.links[vertex, origin]
        if gain < heap.keys[vertex]:  # its best part has filled up since it was queued
            put(heap, vertex, gain)
            continue
        take(heap, vertex)
        log.moved[vertex] = 1
        log.vertices[moves], log.origins[moves] = vertex, origin
        move(graph, assignment, vertex, target)
        moves += 1
        gained += gain
        if gained > most:
            most, kept = gained, moves
        for edge in range(graph.offsets[vertex], graph.offsets[vertex + 1]):
            other = graph.neighbours[edge]
            if log.moved[other] == 0:
                enqueue(graph, assignment, heap, other)
    clear(heap)
    while moves > kept:
        moves -= 1
        move(graph, assignment, log.vertices[moves], log.origins[moves])
    return most


@partial(compiled, sources=SOURCES)
def exchange(graph: Adjacency, assignment: Assignment, order: I64, near: F64) -> float:
    """Exchange two vertices of different parts wherever that makes the cut lighter [3]: parts may be full.

    Args:
        graph: what is partitioned.
        assignment: changed; parts must be within their limits, and stay there.
        order: in which vertices look for a partner, shape (V,).
        near: zeros, shape (V,); zeros again afterwards.

    Returns:
        By how much the cut has become lighter, >= 0.
    """
    parts, part_weights, limits, links = assignment
    total = 0.0
    for vertex in order:
        origin = parts[vertex]
        for edge in range(graph.offsets[vertex], graph.offsets[vertex + 1]):
            near[graph.neighbours[edge]] = graph.edge_weights[edge]
        best, most = -1, LEAST_GAIN * links[vertex, :].sum()
        for other in range(len(parts)):
            target = parts[other]
            if target == origin or links[vertex, target] <= 0.0:
                continue
            gain = links[vertex, target] - links[vertex, origin] - 2.0 * near[other]
            gain += links[other, origin] - links[other, target]
            heavier = graph.vertex_weights[vertex] - graph.vertex_weights[other]
            fits = part_weights[target] + heavier <= limits[target] and part_weights[origin] - heavier <= limits[origin]
            if gain > most and fits:
                best, most = other, gain
        for edge in range(graph.offsets[vertex], graph.offsets[vertex + 1]):
            near[graph.neighbours[edge]] = 0.0
        if best >= 0:
            target = parts[best]
            move(graph, assignment, vertex, target)
            move(graph, assignment, best, origin)
            total += most
    return total


@partial(compiled, sources=SOURCES)
def shift(graph: Adjacency, assignment: Assignment, order: I64, distance: F64) -> float:
    """Move each vertex, in the order given, to the node with room where its edges are shortest, if that gains.

    Args:
        graph: what is placed.
        assignment: changed; parts are nodes, within their limits, and stay there.
        order: shape (V,).
        distance: of every two nodes, symmetric, shape (K, K).

    Returns:
        By how much the mapped cost has fallen, >= 0.
    """
    parts, part_weights, limits, links = assignment
    total = 0.0
    for vertex in order:
        origin, weight = parts[vertex], graph.vertex_weights[vertex]
        best, most = -1, LEAST_GAIN * links[vertex, :].sum()
        for target in range(len(limits)):
            if target == origin or part_weights[target] + weight > limits[target]:
                continue
            gain = 0.0
            for part in range(len(limits)):
                gain += links[vertex, part] * (distance[origin, part] - distance[target, part])
            if gain > most:
                best, most = target, gain
        if best >= 0:
            move(graph, assignment, vertex, best)
            total += most
    return total


@partial(compiled, sources=SOURCES)
def rebalance(graph: Adjacency, assignment: Assignment, heap: Heap, order: I64) -> bool:
    """Move vertices out of parts that weigh too much, those first that cost least for their weight.

    Args:
        graph: what is partitioned.
        assignment: changed.
        heap: empty; empty again afterwards.
        order: in which vertices enter the queue, shape (V,); settles ties.

    Returns:
        Whether all parts are within their limits now.
    """
    parts, part_weights, limits, links = assignment
    for vertex in order:
        if part_weights[parts[vertex]] > limits[parts[vertex]] and graph.vertex_weights[vertex] > 0.0:
            put(heap, vertex, MOST_KEY)  # its true key when its turn comes
    while heap.size[0] > 0:
        vertex = heap.items[0]
        origin, weight = parts[vertex], graph.vertex_weights[vertex]
        target = best_target(assignment, vertex, weight)
        if target < 0 or part_weights[origin] <= limits[origin]:
            take(heap, vertex)
            continue
        gain = links[vertex, target] - links[vertex, origin]
        key = gain * weight if gain > 0.0 else gain / weight
        if key < heap.keys[vertex]:
            put(heap, vertex, key)
            continue
        take(heap, vertex)
        move(graph, assignment, vertex, target)
        for edge in range(graph.offsets[vertex], graph.offsets[vertex + 1]):
            other = graph.neighbours[edge]
            if heap.place[other] >= 0:
                put(heap, other, MOST_KEY)
    within = True
    for part in range(len(limits)):
        within = within and part_weights[part] <= limits[part]
    return within


@partial(compiled, sources=SOURCES)
def grow(graph: Adjacency, assignment: Assignment, heap: Heap, order: I64, wanted: float, anywhere: bool) -> None:
    """Grow part 0 out of part 1, always by the vertex that makes the cut lightest [1], until it has its weight.

    Args:
        graph: what is bisected.
        assignment: changed; all vertices must be in part 1.
        heap: empty; empty again afterwards.
        order: where to begin, and to begin again where a component is used up, shape (V,).
        wanted: weight at which part 0 is done.
        anywhere: whether it grows by any vertex, or only by those next to it: graphs whose vertices differ a lot in
            degree are best cut around their loosest vertices, others in one piece.
    """
    parts, part_weights, limits, links = assignment
    if anywhere:
        for vertex in order:
            put(heap, vertex, -links[vertex, 1])
    seed = 0
    while part_weights[0] < wanted:
        if heap.size[0] == 0:
            while seed < len(order) and parts[order[seed]] == 0:
                seed += 1
            if seed == len(order):
                break
            vertex = order[seed]
            seed += 1
        else:
            vertex = heap.items[0]
            take(heap, vertex)
        if part_weights[0] + graph.vertex_weights[vertex] > limits[0]:
            continue
        move(graph, assignment, vertex, 0)
        for edge in range(graph.offsets[vertex], graph.offsets[vertex + 1]):
            other = graph.neighbours[edge]
            if parts[other] == 1:
                put(heap, other, links[other, 0] - links[other, 1])
    clear(heap)

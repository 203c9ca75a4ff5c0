"""Placing tasks by grouping what communicates most, and the groups in turn, up the machine's tree.

Dimension key: T tasks, N nodes.

References:
    [1] E. Jeannot and G. Mercier, "Near-optimal placement of MPI processes on hierarchical NUMA architectures",
        Euro-Par 2010: TreeMatch.
    [2] E. H. M. Cruz, M. Diener, L. L. Pilla and P. O. A. Navaux, "An efficient algorithm for communication-based task
        mapping", PDP 2015: EagerMap, whose greedy grouping this is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from numa_rl.partition.graph import F64, I64, Graph
from numa_rl.partition.mapping import compute_nodes, node_distances
from numa_rl.partition.objective import traffic_matrix
from numa_rl.topology import Topology

SAME_LEVEL = 1.02  # distances within this factor are one level of the machine: measured latencies differ a little


@dataclass(frozen=True)
class Branch:
    """A part of the machine.

    Attributes:
        nodes: the nodes in it.
        capacity: their cores.
        children: its own parts, none for a node.
    """

    nodes: tuple[int, ...]
    capacity: int
    children: tuple[Branch, ...] = ()

    @cached_property
    def kind(self) -> str:
        """Written alike for branches of the same shape and cores, which can stand for each other."""
        return f"({','.join(sorted(child.kind for child in self.children))})" if self.children else str(self.capacity)

    def all_branches(self) -> Iterator[Branch]:
        """This branch and all within."""
        yield self
        for child in self.children:
            yield from child.all_branches()


@dataclass(frozen=True, eq=False)
class Group:
    """Tasks that stay together: index of the group among the leaves' ones, or the groups it is made of."""

    kind: str
    leaves: tuple[int, ...]
    members: tuple[Group, ...] = ()


def machine_tree(topology: Topology) -> Branch:
    """The machine's nodes with cores by levels of distance: nearest ones under one branch, and so on.

    Nodes are joined by complete linkage: under a branch every node is within the branch's distance of every other.
    """
    nodes = compute_nodes(topology)
    branches = [Branch((int(node),), int(topology.cores[node])) for node in nodes]
    heights = [0.0] * len(branches)
    if len(nodes) == 1:
        return branches[0]
    for first, second, height, _ in linkage(squareform(node_distances(topology), checks=False), "complete"):
        children: list[Branch] = []
        for index in (int(first), int(second)):
            joined = branches[index].children and heights[index] * SAME_LEVEL >= height
            children += branches[index].children if joined else (branches[index],)
        within = tuple(sorted(node for child in children for node in child.nodes))
        children.sort(key=lambda child: child.nodes)
        branches.append(Branch(within, sum(child.capacity for child in children), tuple(children)))
        heights.append(float(height))
    return branches[-1]


def tree_match(graph: Graph, topology: Topology) -> I64:
    """The node of each task, with work in proportion to cores, shape (T,).

    Args:
        graph: tasks, weighted by their work, and what passes between them.
        topology: the machine.
    """
    tree = machine_tree(topology)
    leaves = sorted((branch for branch in tree.all_branches() if not branch.children), key=lambda leaf: -leaf.capacity)
    task_group = _task_groups(graph, np.array([leaf.capacity for leaf in leaves], dtype=np.float64))
    traffic = traffic_matrix(graph, task_group, len(leaves))
    pool: dict[str, list[Group]] = defaultdict(list)
    for index, leaf in enumerate(leaves):
        pool[leaf.kind].append(Group(leaf.kind, (index,)))
    inner = (branch for branch in tree.all_branches() if branch.children)
    for branch in sorted(inner, key=lambda branch: len(branch.nodes)):
        pool[branch.kind].append(_joined(branch, pool, traffic))
    group_node = np.zeros(len(leaves), np.int64)
    _place(tree, pool[tree.kind][0], group_node)
    return group_node[task_group]


def _task_groups(graph: Graph, capacity: F64) -> I64:
    """The group of each task: filled one after the other, each time with the task that communicates most with it [2].

    A group opens with the task that communicates most with those left. It is full when another task would take it
    further from its share of the work left than it is.
    """
    group = np.full(graph.num_vertices, -1)
    left = graph.total_weight
    for index in range(len(capacity)):
        wanted = left * capacity[index] / capacity[index:].sum()
        load = 0.0
        free = group < 0
        affinity = np.zeros(graph.num_vertices)
        among_free = graph.matrix @ free.astype(np.float64)
        while free.any():
            open_with = among_free if load == 0.0 and not affinity.any() else affinity
            task = int(np.argmax(np.where(free, open_with, -1.0)))
            is_last = index == len(capacity) - 1
            if not is_last and load + graph.vertex_weights[task] / 2.0 > wanted:
                break
            group[task], free[task] = index, False
            load += graph.vertex_weights[task]
            near = slice(graph.offsets[task], graph.offsets[task + 1])
            affinity[graph.neighbours[near]] += graph.edge_weights[near]
        left -= load
    return group


def _joined(branch: Branch, pool: dict[str, list[Group]], traffic: F64) -> Group:
    """A group for a branch out of groups for its children, taken from the pool: those with most between them [2]."""
    members: list[Group] = []
    for child in branch.children:
        candidates = pool[child.kind]
        chosen = [leaf for member in members for leaf in member.leaves] or list(range(len(traffic)))
        best = max(candidates, key=lambda group: traffic[np.ix_(group.leaves, chosen)].sum())
        candidates.remove(best)
        members.append(best)
    return Group(branch.kind, tuple(leaf for member in members for leaf in member.leaves), tuple(members))


def _place(branch: Branch, group: Group, group_node: I64) -> None:
    """Write the node of each of the group's leaves: each member under a child of its kind."""
    if not branch.children:
        group_node[group.leaves[0]] = branch.nodes[0]
    members = list(group.members)
    for child in branch.children:
        member = next(member for member in members if member.kind == child.kind)
        members.remove(member)
        _place(child, member, group_node)

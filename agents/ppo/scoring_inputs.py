"""What the compiled network looks at: priced costs, and features of nodes and of pairs, from an observation row.

Dimension key: N nodes, H hidden width, P hidden width of pairs, F features of a node; n = task node, d = data node.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agents.ppo import scoring_arithmetic
from agents.ppo.scoring_arithmetic import ONE, ZERO, log, log1p, write_log1p
from agents.rules import greedy
from envs.observation_kernel import Float32
from numa_rl.compilation import compiled

# As `agents.ppo.scorer` has them; this file does not import torch, which takes seconds.
SMALLEST_COST = np.float32(1e-4)
NUM_NODE_FEATURES = 18
NUM_LOGS = 7  # features of a pair that are logarithms; its ratio and whether both nodes are one come after them

INFINITY = np.float32(np.inf)
SOURCES = (greedy.__file__, scoring_arithmetic.__file__)
_data_node_price = compiled(greedy.data_node_price)


class Scratch(NamedTuple):
    """Working arrays of one thread for one N."""

    logits: Float32  # (N N,), what the last call computed
    row: Float32  # the row as the network sees it, if it is blind to some of it
    hidden: npt.NDArray[np.int64]  # (groups, 2): from where to where it is blind
    pairs: Float32  # (9, N N): features of pairs
    features: Float32  # (N F,): features of nodes
    logs: Float32  # (N F,): log(1 + x) of them, as the network takes them
    state: Float32  # (task features + 1,)
    nodes: Float32  # (2 N H,): what nodes are, before and after mixing
    machine: Float32  # (3 H,): mean and maximum over nodes, and what all nodes have in common
    heads: Float32  # (N, 2 P): what pairs know of their task node
    columns: Float32  # (P, N): what pairs know of their data node
    at_data: Float32  # (3, N): load, price, and 0 for open data nodes, infinity for others


@partial(compiled, sources=SOURCES)
def write_log_costs(row, offsets, congestion_price, crowding_price, migration_share, alpha, scratch, out):
    """Write the logarithms of all pairs' priced costs; the load of each data node must stand in the scratch."""
    load, at_data = scratch.at_data[0], scratch.at_data[1]
    width = len(load)
    for d in range(width):
        moved = ONE - row[offsets.data + d]
        at_data[d] = _data_node_price(
            row[offsets.memory + d], load[d], moved, row[offsets.migration + d], crowding_price, migration_share, alpha
        )
    for n in range(width):
        estimate = row[offsets.estimate + n * width : offsets.estimate + (n + 1) * width]
        congestion = row[offsets.congestion + n * width : offsets.congestion + (n + 1) * width]
        costs = out[n * width : (n + 1) * width]
        for d in range(width):
            costs[d] = log(max(estimate[d] + congestion_price * congestion[d] + at_data[d], SMALLEST_COST))


@partial(compiled, sources=SOURCES)
def lowest_open(row, offsets, values, closed):
    """The lowest of the open pairs' values; infinity if no pair is open."""
    width, lowest = len(closed), INFINITY
    for n in range(width):
        if row[offsets.task_mask + n] > ZERO:
            of_node = values[n * width : (n + 1) * width]
            for d in range(width):
                lowest = min(lowest, of_node[d] + closed[d])
    return lowest


@partial(compiled, sources=SOURCES)
def write_ratios(row, offsets, lowest, closed, ratios):
    """Subtract the lowest from each open pair's logarithm of cost; 0 for closed pairs."""
    width = len(closed)
    for n in range(width):
        of_node = ratios[n * width : (n + 1) * width]
        runs = row[offsets.task_mask + n] > ZERO
        for d in range(width):
            of_node[d] = of_node[d] - lowest if runs and closed[d] == ZERO else ZERO


@partial(compiled, sources=SOURCES)
def write_sums(row, offsets, scratch):
    """Write load and closed data nodes, and the features that are sums over a node's row or column of a matrix."""
    load, closed = scratch.at_data[0], scratch.at_data[2]
    width, features = len(load), scratch.features
    count = ZERO
    for d in range(width):
        count += row[offsets.nodes + d]
        load[d] = ZERO
        closed[d] = ZERO if row[offsets.data_mask + d] > ZERO else INFINITY
    for n in range(width):
        traffic = row[offsets.communication + n * width : offsets.communication + (n + 1) * width]
        latency = row[offsets.latency + n * width : offsets.latency + (n + 1) * width]
        sent = total = ZERO
        for d in range(width):
            load[d] += traffic[d]
            sent += traffic[d]
            total += latency[d] * row[offsets.nodes + d]
        features[n * NUM_NODE_FEATURES + 11] = sent
        features[n * NUM_NODE_FEATURES + 15] = total / count
    for n in range(width):
        features[n * NUM_NODE_FEATURES + 10] = load[n]
    return count


@partial(compiled, sources=SOURCES)
def write_best(row, offsets, ratios, scratch):
    """Write the best ratio that each node offers as task node and as data node; 0 where it has no open pair."""
    closed, best = scratch.at_data[2], scratch.at_data[1]
    width, features = len(closed), scratch.features
    for d in range(width):
        best[d] = INFINITY
    for n in range(width):
        lowest = INFINITY
        if row[offsets.task_mask + n] > ZERO:
            of_node = ratios[n * width : (n + 1) * width]
            for d in range(width):
                here = of_node[d] + closed[d]
                best[d] = min(best[d], here)
                lowest = min(lowest, here)
        features[n * NUM_NODE_FEATURES + 16] = lowest if lowest < INFINITY else ZERO
    for d in range(width):
        features[d * NUM_NODE_FEATURES + 17] = best[d] if best[d] < INFINITY else ZERO


@partial(compiled, sources=SOURCES)
def write_node_features(row, offsets, scratch):
    """Write what else is known of each node, in the order of the network's inputs."""
    width, features = scratch.at_data.shape[1], scratch.features
    for n in range(width):
        own = features[n * NUM_NODE_FEATURES : (n + 1) * NUM_NODE_FEATURES]
        own[0] = row[offsets.memory + n]
        own[1] = row[offsets.queue + n]
        own[2] = row[offsets.data + n]
        own[3] = row[offsets.inputs + n]
        own[4] = row[offsets.access + n]
        own[5] = row[offsets.last + n]
        own[6] = row[offsets.migration + n]
        own[7] = row[offsets.task_mask + n]
        own[8] = row[offsets.data_mask + n]
        own[9] = row[offsets.nodes + n]
        own[12] = row[offsets.communication + n * width + n]
        own[13] = row[offsets.latency + n * width + n]
        own[14] = row[offsets.bandwidth + n * width + n]
    write_log1p(features, scratch.logs)


@partial(compiled, sources=SOURCES)
def write_pair_features(row, offsets, cost, scratch):
    """Write what each pair is; its ratio stands there, and whether both nodes are one does not change."""
    width, pairs = scratch.at_data.shape[1], scratch.pairs
    size = width * width
    estimate = row[offsets.estimate : offsets.estimate + size]
    write_log1p(estimate, pairs[0])
    write_log1p(row[offsets.congestion : offsets.congestion + size], pairs[1])
    traffic, back = pairs[2], pairs[3]
    write_log1p(row[offsets.communication : offsets.communication + size], traffic)
    for n in range(width):
        for d in range(width):
            back[n * width + d] = traffic[d * width + n]
    write_log1p(row[offsets.latency : offsets.latency + size], pairs[4])
    write_log1p(row[offsets.bandwidth : offsets.bandwidth + size], pairs[5])
    relative, inverse = pairs[6], ONE / cost
    for i in range(size):
        relative[i] = log1p(estimate[i] * inverse)

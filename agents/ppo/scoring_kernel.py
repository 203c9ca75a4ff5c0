"""The placement network as a kernel: one observation row in, the logits of all pairs and the best pair out.

It computes what `agents.ppo.scorer.PairScorer` does, without torch, and makes no array.

Dimension key: B rows, N nodes, H hidden width, P hidden width of pairs, F features of a node; n = task node,
d = data node.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np

from agents.ppo import scoring_inputs
from agents.ppo.scoring_arithmetic import ONE, ZERO, add_layer, add_product, write_log1p
from agents.ppo.scoring_inputs import (
    INFINITY,
    NUM_LOGS,
    NUM_NODE_FEATURES,
    lowest_open,
    write_best,
    write_log_costs,
    write_node_features,
    write_pair_features,
    write_ratios,
    write_sums,
)
from envs import observation_kernel
from envs.observation_kernel import TASK_COUNT, Float32
from numa_rl.compilation import compiled

# As `agents.ppo.scorer` has them.
CLOSED = np.float32(-1e9)
TIE = np.float32(1e-4)
MOST_PRICE = np.float32(3.0)
NUM_PRICES = 3

SOURCES = (*scoring_inputs.SOURCES, scoring_inputs.__file__, observation_kernel.__file__, __file__)


class Weights(NamedTuple):
    """The network's numbers, float32; matrices as (inputs, outputs) but for `pair`."""

    encode: Float32  # (F, H)
    encode_state: Float32  # (task features + 1, H)
    encode_bias: Float32  # (H,)
    pool: Float32  # (2 H, H)
    mix: Float32  # (H, H)
    mix_bias: Float32  # (H,), of pool and mix together
    heads: Float32  # (H, 2 P): as task node, then as data node
    heads_bias: Float32  # (2 P,)
    pair: Float32  # (P, 10): the weights of the features, then that of the score
    price: Float32  # (2 H + 1, 3), the last row is the bias
    prices: Float32  # (8,): p1, p2, p3, alpha, then the logarithms of the learned factors, then the prior's scale


@partial(compiled, sources=SOURCES)
def write_pooled(row, offsets, nodes, count, width, hidden, pooled):
    """Write mean and maximum over the nodes that exist; `nodes` are 0 or more."""
    mean, most = pooled[:hidden], pooled[hidden:]
    for h in range(hidden):
        mean[h] = most[h] = ZERO
    for n in range(width):
        exists = row[offsets.nodes + n]
        own = nodes[n * hidden : (n + 1) * hidden]
        for h in range(hidden):
            present = own[h] * exists
            mean[h] += present
            most[h] = max(most[h], present)
    for h in range(hidden):
        mean[h] /= count


@partial(compiled, sources=SOURCES)
def write_nodes(row, offsets, count, cost, weights, scratch):
    """Write what each node is, knowing the task and all nodes, and pool it."""
    width, hidden = scratch.at_data.shape[1], len(weights.encode_bias)
    encoded, mixed = scratch.nodes[: width * hidden], scratch.nodes[width * hidden :]
    pooled, common = scratch.machine[: 2 * hidden], scratch.machine[2 * hidden :]
    state = scratch.state
    for k in range(TASK_COUNT):
        state[k] = row[offsets.task + k]
    state[TASK_COUNT] = cost
    write_log1p(state, state)
    for h in range(hidden):
        common[h] = weights.encode_bias[h]
    add_product(state, weights.encode_state, common)
    for n in range(width):
        own = encoded[n * hidden : (n + 1) * hidden]
        add_layer(
            scratch.logs[n * NUM_NODE_FEATURES : (n + 1) * NUM_NODE_FEATURES],
            weights.encode,
            common,
            row[offsets.nodes + n],
            own,
        )
    write_pooled(row, offsets, encoded, count, width, hidden, pooled)
    for h in range(hidden):
        common[h] = weights.mix_bias[h]
    add_product(pooled, weights.pool, common)
    for n in range(width):
        own = mixed[n * hidden : (n + 1) * hidden]
        add_layer(encoded[n * hidden : (n + 1) * hidden], weights.mix, common, row[offsets.nodes + n], own)
    write_pooled(row, offsets, mixed, count, width, hidden, pooled)


@partial(compiled, sources=SOURCES)
def write_heads(weights, scratch):
    """Write what pairs know of their task node, shape (N, 2 P), and, turned round, of their data node."""
    width, hidden, columns = scratch.at_data.shape[1], len(weights.encode_bias), scratch.columns
    mixed, num_hidden = scratch.nodes[width * hidden :], len(columns)
    for n in range(width):
        own = scratch.heads[n]
        for p in range(len(own)):
            own[p] = weights.heads_bias[p]
        add_product(mixed[n * hidden : (n + 1) * hidden], weights.heads, own)
        for p in range(num_hidden):
            columns[p, n] = own[num_hidden + p]


@partial(compiled, sources=SOURCES)
def write_residual(row, offsets, weights, scratch):
    """Write what the rule does not know of each pair."""
    width, pairs, logits = scratch.at_data.shape[1], scratch.pairs, scratch.logits
    for i in range(len(logits)):
        logits[i] = ZERO
    for p in range(len(weights.pair)):
        w = weights.pair[p]
        w0, w1, w2, w3, w4, w5, w6, w7, w8, score = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9]
        column = scratch.columns[p]
        for n in range(width):
            if row[offsets.task_mask + n] > ZERO:
                base, at = scratch.heads[n, p], n * width
                f0, f1, f2 = pairs[0][at : at + width], pairs[1][at : at + width], pairs[2][at : at + width]
                f3, f4, f5 = pairs[3][at : at + width], pairs[4][at : at + width], pairs[5][at : at + width]
                f6, f7, f8 = pairs[6][at : at + width], pairs[7][at : at + width], pairs[8][at : at + width]
                out = logits[at : at + width]
                for d in range(width):
                    x = (base + column[d]) + (w0 * f0[d] + w1 * f1[d]) + (w2 * f2[d] + w3 * f3[d])
                    x += (w4 * f4[d] + w5 * f5[d]) + (w6 * f6[d] + w7 * f7[d]) + w8 * f8[d]
                    out[d] += score * max(x, ZERO)


@partial(compiled, sources=SOURCES)
def subtract_prior(row, offsets, weights, scratch):
    """Subtract the prior with the state's own prices; a feature of pairs makes room for its costs."""
    hidden, closed, costs = len(weights.encode_bias), scratch.at_data[2], scratch.pairs[NUM_LOGS - 1]
    prices, pooled = weights.prices, scratch.machine[: 2 * hidden]
    own = scratch.state[:NUM_PRICES]
    for k in range(NUM_PRICES):
        own[k] = weights.price[2 * hidden, k]
    add_product(pooled, weights.price, own)
    for k in range(NUM_PRICES):
        own[k] = prices[k] * math.exp(prices[4 + k] + min(max(own[k], -MOST_PRICE), MOST_PRICE))
    write_log_costs(row, offsets, own[0], own[1], min(own[2], ONE), prices[3], scratch, costs)
    lowest = lowest_open(row, offsets, costs, closed)
    for i in range(len(costs)):
        scratch.logits[i] -= prices[7] * (costs[i] - lowest)


@partial(compiled, sources=SOURCES)
def best_open(row, offsets, closed, logits):
    """Close what is not open, and return the first pair within `TIE` of the best."""
    width, best = len(closed), CLOSED
    for n in range(width):
        of_node = logits[n * width : (n + 1) * width]
        runs = row[offsets.task_mask + n] > ZERO
        for d in range(width):
            of_node[d] = of_node[d] if runs and closed[d] == ZERO else CLOSED
            best = max(best, of_node[d])
    for i in range(len(logits)):
        if logits[i] >= best - TIE:
            return np.int64(i)
    return np.int64(0)


@partial(compiled, sources=SOURCES)
def hide(row, scratch):
    """Write the row as the network sees it: zeros where it is blind."""
    seen = scratch.row
    for i in range(len(row)):
        seen[i] = row[i]
    for g in range(len(scratch.hidden)):
        for i in range(scratch.hidden[g, 0], scratch.hidden[g, 1]):
            seen[i] = ZERO


@partial(compiled, sources=SOURCES)
def score_row(row, offsets, weights, scratch):
    """Write the logits of all pairs for one observation row into the scratch and return the best pair.

    Args:
        row: an observation of `ObservationLayout(N)`, float32.
        offsets: that layout's.
        weights: of the network.
        scratch: for this N and these weights, of this thread alone.

    Returns:
        The pair (task node) N + (data node): the first of those within `TIE` of the best; 0 if none is open.
    """
    if len(scratch.hidden) > 0:
        hide(row, scratch)
        row = scratch.row
    prices, closed, ratios = weights.prices, scratch.at_data[2], scratch.pairs[NUM_LOGS]
    count = write_sums(row, offsets, scratch)
    write_log_costs(
        row,
        offsets,
        prices[0] * math.exp(prices[4]),
        prices[1] * math.exp(prices[5]),
        min(prices[2] * math.exp(prices[6]), ONE),
        prices[3],
        scratch,
        ratios,
    )
    lowest = lowest_open(row, offsets, ratios, closed)
    if lowest == INFINITY:
        for i in range(len(scratch.logits)):
            scratch.logits[i] = CLOSED
        return np.int64(0)
    cost = math.exp(lowest)
    write_ratios(row, offsets, lowest, closed, ratios)
    write_best(row, offsets, ratios, scratch)
    write_node_features(row, offsets, scratch)
    write_nodes(row, offsets, count, cost, weights, scratch)
    write_pair_features(row, offsets, cost, scratch)
    write_heads(weights, scratch)
    write_residual(row, offsets, weights, scratch)
    if prices[7] > ZERO:
        subtract_prior(row, offsets, weights, scratch)
    return best_open(row, offsets, closed, scratch.logits)


@partial(compiled, sources=SOURCES)
def score_rows(rows, offsets, weights, scratch, pairs, logits, first, last):
    """Write the best pair of rows `first` to `last`; and their logits, unless there is no room for any."""
    for b in range(first, last):
        pairs[b] = score_row(rows[b], offsets, weights, scratch)
        for i in range(logits.shape[1]):
            logits[b, i] = scratch.logits[i]

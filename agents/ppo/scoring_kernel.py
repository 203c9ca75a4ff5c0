"""The placement network as a kernel: one observation row in, the logits of all pairs and the best pair out.

It computes what `agents.ppo.scorer.PairScorer` does, without torch. Inner loops run over what lies side by side in
memory (hidden units of a node, data nodes of a task node), so that they become vector instructions. Logarithms, of
which a row needs hundreds, are polynomials for the same reason.

Dimension key: B rows, N nodes, H hidden width, P hidden width of pairs, F features of a node; n = task node,
d = data node.

References:
    [1] S. Moshier, Cephes mathematical library, `logf.c`: the polynomial of the logarithm.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np

from agents.rules import greedy
from envs import observation_kernel
from envs.observation_kernel import TASK_COUNT, Float32
from numa_rl.compilation import compiled

# The network's constants, as `agents.ppo.scorer` has them; `agents.ppo.scoring` sees to it that they are the same.
CLOSED = np.float32(-1e9)
SMALLEST_COST = np.float32(1e-4)
TIE = np.float32(1e-3)
MOST_PRICE = np.float32(3.0)
NUM_NODE_FEATURES = 18
NUM_LOGS = 7  # features of a pair that are logarithms; its ratio and whether both nodes are one come after them
NUM_PAIR_FEATURES = 9
NUM_PRICES = 3

ZERO, HALF, ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)
INFINITY = np.float32(np.inf)
SOURCES = (greedy.__file__, observation_kernel.__file__, __file__)
_data_node_price = compiled(greedy.data_node_price)
_compiled = partial(compiled, sources=SOURCES)


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


class Scratch(NamedTuple):
    """Working arrays of one thread for one N."""

    logits: Float32  # (N N,), what the last call computed
    row: Float32  # the row as the network sees it, if it is blind to some of it
    hidden: np.ndarray[tuple[int, int], np.dtype[np.int64]]  # (groups, 2): from where to where it is blind
    pairs: Float32  # (9, N N): features of pairs
    features: Float32  # (N F,): features of nodes
    state: Float32  # (task features + 1,)
    nodes: Float32  # (2 N H,): what nodes are, before and after mixing
    machine: Float32  # (4 H,): mean and maximum over nodes, and what all nodes have in common
    heads: Float32  # (N + 1, 2 P)
    columns: Float32  # (P, N): what pairs know of their data node
    at_data: Float32  # (3, N): load, price, and 0 for open data nodes, infinity for others


# Coefficients of the logarithm's polynomial [1], the highest power first.
C8, C7, C6 = np.float32(7.0376836292e-2), np.float32(-1.1514610310e-1), np.float32(1.1676998740e-1)
C5, C4, C3 = np.float32(-1.2420140846e-1), np.float32(1.4249322787e-1), np.float32(-1.6668057665e-1)
C2, C1, C0 = np.float32(2.0000714765e-1), np.float32(-2.4999993993e-1), np.float32(3.3333331174e-1)
LOG2_HIGH, LOG2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
ROOT_HALF_BITS = np.int32(0x3F3504F3)  # of the float32 nearest to the root of 1/2
TO_ONE_BITS = np.int32(0x3F800000 - 0x3F3504F3)


@_compiled
def log(x):
    """The natural logarithm of a positive normal float32, to 1.5e-7 of it or of 1."""
    bits = np.float32(x).view(np.int32)
    shifted = np.int32(bits + TO_ONE_BITS)
    exponent = np.float32(np.int32(np.int32(np.int32(shifted >> 23) & 0xFF) - 127))
    f = np.int32(np.int32(shifted & 0x007FFFFF) + ROOT_HALF_BITS).view(np.float32) - ONE
    square = f * f
    series = ((((((((C8 * f + C7) * f + C6) * f + C5) * f + C4) * f + C3) * f + C2) * f + C1) * f + C0) * f * square
    return exponent * LOG2_HIGH + (f + (series + exponent * LOG2_LOW - HALF * square))


@_compiled
def log1p(x):
    """log(1 + x) of a float32 >= 0, to 2e-7 of it: log(u) loses what 1 + x rounds off, so that is added."""
    u = ONE + x
    return log(u) + (x - (u - ONE)) / u


@_compiled
def write_log1p(values, out):
    """Logarithms of 1 + values."""
    for i in range(len(values)):
        out[i] = log1p(values[i])


@_compiled
def add_product(x, weights, out):
    """Add x @ weights, four inputs at a time so that `out` is read and written less often."""
    whole = len(x) - len(x) % 4
    for k in range(0, whole, 4):
        a, b, c, d = x[k], x[k + 1], x[k + 2], x[k + 3]
        wa, wb, wc, wd = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        for h in range(len(out)):
            out[h] += (a * wa[h] + b * wb[h]) + (c * wc[h] + d * wd[h])
    for k in range(whole, len(x)):
        a, wa = x[k], weights[k]
        for h in range(len(out)):
            out[h] += a * wa[h]


@_compiled
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
        estimate = row[offsets.estimate + n * width : offsets.estimate + n * width + width]
        congestion = row[offsets.congestion + n * width : offsets.congestion + n * width + width]
        costs = out[n * width : n * width + width]
        for d in range(width):
            costs[d] = log(max(estimate[d] + congestion_price * congestion[d] + at_data[d], SMALLEST_COST))


@_compiled
def lowest_open(row, offsets, values, closed):
    """The lowest of the open pairs' values; infinity if no pair is open."""
    width, lowest = len(closed), INFINITY
    for n in range(width):
        if row[offsets.task_mask + n] > ZERO:
            of_node = values[n * width : n * width + width]
            for d in range(width):
                lowest = min(lowest, of_node[d] + closed[d])
    return lowest


@_compiled
def write_ratios(row, offsets, lowest, closed, ratios):
    """Subtract the lowest from each open pair's logarithm of cost; 0 for closed pairs."""
    width = len(closed)
    for n in range(width):
        of_node = ratios[n * width : n * width + width]
        runs = row[offsets.task_mask + n] > ZERO
        for d in range(width):
            of_node[d] = of_node[d] - lowest if runs and closed[d] == ZERO else ZERO


@_compiled
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
        traffic = row[offsets.communication + n * width : offsets.communication + n * width + width]
        latency = row[offsets.latency + n * width : offsets.latency + n * width + width]
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


@_compiled
def write_best(row, offsets, ratios, scratch):
    """Write the best ratio that each node offers as task node and as data node; 0 where it has no open pair."""
    closed, best = scratch.at_data[2], scratch.at_data[1]
    width, features = len(closed), scratch.features
    for d in range(width):
        best[d] = INFINITY
    for n in range(width):
        lowest = INFINITY
        if row[offsets.task_mask + n] > ZERO:
            of_node = ratios[n * width : n * width + width]
            for d in range(width):
                here = of_node[d] + closed[d]
                best[d] = min(best[d], here)
                lowest = min(lowest, here)
        features[n * NUM_NODE_FEATURES + 16] = lowest if lowest < INFINITY else ZERO
    for d in range(width):
        features[d * NUM_NODE_FEATURES + 17] = best[d] if best[d] < INFINITY else ZERO


@_compiled
def write_node_features(row, offsets, scratch):
    """Write what else is known of each node, in the order of the network's inputs."""
    width, features = scratch.at_data.shape[1], scratch.features
    for n in range(width):
        own = features[n * NUM_NODE_FEATURES : n * NUM_NODE_FEATURES + NUM_NODE_FEATURES]
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
    write_log1p(features, features)


@_compiled
def write_pooled(row, offsets, nodes, count, width, hidden, pooled):
    """Write mean and maximum over the nodes that exist; `nodes` are 0 or more."""
    mean, most = pooled[:hidden], pooled[hidden : hidden + hidden]
    for h in range(hidden):
        mean[h] = most[h] = ZERO
    for n in range(width):
        exists = row[offsets.nodes + n]
        own = nodes[n * hidden : n * hidden + hidden]
        for h in range(hidden):
            present = own[h] * exists
            mean[h] += present
            most[h] = max(most[h], present)
    for h in range(hidden):
        mean[h] /= count


@_compiled
def write_nodes(row, offsets, count, cost, weights, scratch):
    """Write what each node is, knowing the task and all nodes, and pool it."""
    width, hidden = scratch.at_data.shape[1], len(weights.encode_bias)
    encoded, mixed = scratch.nodes[: width * hidden], scratch.nodes[width * hidden : width * hidden + width * hidden]
    pooled, common = scratch.machine[: 2 * hidden], scratch.machine[2 * hidden : 2 * hidden + hidden]
    state = scratch.state
    for k in range(TASK_COUNT):
        state[k] = row[offsets.task + k]
    state[TASK_COUNT] = cost
    write_log1p(state, state)
    for h in range(hidden):
        common[h] = weights.encode_bias[h]
    add_product(state, weights.encode_state, common)
    for n in range(width):
        own = encoded[n * hidden : n * hidden + hidden]
        add_layer(
            scratch.features[n * NUM_NODE_FEATURES : n * NUM_NODE_FEATURES + NUM_NODE_FEATURES],
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
        own = mixed[n * hidden : n * hidden + hidden]
        add_layer(encoded[n * hidden : n * hidden + hidden], weights.mix, common, row[offsets.nodes + n], own)
    write_pooled(row, offsets, mixed, count, width, hidden, pooled)


@_compiled
def add_layer(x, weights, common, exists, out):
    """Write relu(x @ weights + common), or zeros for a node that does not exist."""
    if exists == ZERO:
        for h in range(len(out)):
            out[h] = ZERO
        return
    for h in range(len(out)):
        out[h] = common[h]
    add_product(x, weights, out)
    for h in range(len(out)):
        out[h] = max(out[h], ZERO) * exists


@_compiled
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


@_compiled
def write_heads(weights, scratch):
    """Write what pairs know of their task node, shape (N, 2 P), and, turned round, of their data node."""
    width, hidden, columns = scratch.at_data.shape[1], len(weights.encode_bias), scratch.columns
    mixed, num_hidden = scratch.nodes[width * hidden : width * hidden + width * hidden], len(columns)
    for n in range(width):
        own = scratch.heads[n]
        for p in range(len(own)):
            own[p] = weights.heads_bias[p]
        add_product(mixed[n * hidden : n * hidden + hidden], weights.heads, own)
        for p in range(num_hidden):
            columns[p, n] = own[num_hidden + p]


@_compiled
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


@_compiled
def subtract_prior(row, offsets, weights, scratch):
    """Subtract the prior with the state's own prices; the last two features of pairs make room for its costs."""
    prices, pooled, costs = weights.prices, scratch.machine, scratch.pairs[6]
    hidden, closed = len(weights.encode_bias), scratch.at_data[2]
    own = scratch.state[:NUM_PRICES]
    for k in range(NUM_PRICES):
        own[k] = weights.price[2 * hidden, k]
    add_product(pooled[: 2 * hidden], weights.price, own)
    for k in range(NUM_PRICES):
        own[k] = prices[k] * math.exp(prices[4 + k] + min(max(own[k], -MOST_PRICE), MOST_PRICE))
    write_log_costs(row, offsets, own[0], own[1], min(own[2], ONE), prices[3], scratch, costs)
    lowest = lowest_open(row, offsets, costs, closed)
    for i in range(len(costs)):
        scratch.logits[i] -= prices[7] * (costs[i] - lowest)


@_compiled
def best_open(row, offsets, closed, logits):
    """Close what is not open, and return the first pair within `TIE` of the best."""
    width, best = len(closed), CLOSED
    for n in range(width):
        of_node = logits[n * width : n * width + width]
        runs = row[offsets.task_mask + n] > ZERO
        for d in range(width):
            of_node[d] = of_node[d] if runs and closed[d] == ZERO else CLOSED
            best = max(best, of_node[d])
    for i in range(len(logits)):
        if logits[i] >= best - TIE:
            return np.int64(i)
    return np.int64(0)


@_compiled
def hide(row, scratch):
    """Write the row as the network sees it: zeros where it is blind."""
    seen = scratch.row
    for i in range(len(row)):
        seen[i] = row[i]
    for g in range(len(scratch.hidden)):
        for i in range(scratch.hidden[g, 0], scratch.hidden[g, 1]):
            seen[i] = ZERO


@_compiled
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


@_compiled
def score_rows(rows, offsets, weights, scratch, pairs, first, last):
    """Write the best pair of rows `first` to `last`."""
    for b in range(first, last):
        pairs[b] = score_row(rows[b], offsets, weights, scratch)


@_compiled
def write_logits(rows, offsets, weights, scratch, logits, first, last):
    """Write the logits of rows `first` to `last`."""
    for b in range(first, last):
        score_row(rows[b], offsets, weights, scratch)
        for i in range(len(scratch.logits)):
            logits[b, i] = scratch.logits[i]

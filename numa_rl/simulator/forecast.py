"""What each placement of the next task would cost now: `kernel.decide` for all (task node, data node) at once.

The equations are the kernel's own; only the walk over routes differs, because here every pair is wanted: each
node's route is its parent's and one link more, so N^2 pairs cost N^2 steps.

Dimension key: N nodes, R resources, as in `state.py`.
"""

from __future__ import annotations

import numpy as np

from numa_rl.compilation import compiled
from numa_rl.simulator.inputs import gathered_bytes, has_scattered_inputs, ready_time, write_sources
from numa_rl.simulator.lines import cached_lines, line_ratios, line_time
from numa_rl.simulator.placement import find_room, holds_copy, nearest_copy, occupied_bytes
from numa_rl.simulator.state import F32, SPLIT, Machines
from numa_rl.simulator.streams import (
    HALF,
    ONE,
    ZERO,
    latency_factor,
    migrate,
    migration_time,
    page_time,
    read_time,
    resource_load,
    shared_s_per_byte,
    stream_s_per_byte,
)

NUM_ROUTE_ARRAYS = 6
NUM_RESOURCE_ARRAYS = 9


def allocate_scratch(machines: Machines) -> tuple[F32, F32]:
    """Working arrays of one thread: (routes, shape (6, N * N); resources, shape (9, R))."""
    n, r = machines.max_nodes, machines.max_resources
    return np.zeros((NUM_ROUTE_ARRAYS, n * n), np.float32), np.zeros((NUM_RESOURCE_ARRAYS, r), np.float32)


@compiled
def weigh_routes(machines, state, b, num_bytes, write_fraction, window_s, routes, resources):
    """Fill `resources` (seconds per byte, load, price) and, for every pair, `routes`, for a stream of `num_bytes`.

    `routes` holds the slowest link in and out, the largest load, and the sum of prices in and out. The price of
    a resource is its recent load x its idle seconds per byte: what a byte more takes from the traffic there.
    """
    m = state.machine[b]
    width = machines.cores.shape[1]
    nodes = machines.num_nodes[m]
    idle = machines.resource_s_per_byte[m]
    used, rate = state.resource_bytes[b], state.stream_rate[b]
    loads, prices = resources[1], resources[2]
    for r in range(len(idle)):
        loads[r] = rate[r] * idle[r]
        prices[r] = resource_load(used[r], idle[r], window_s) * idle[r]
    written = num_bytes * write_fraction
    weigh_resources(state, b, idle, 0, width, num_bytes, resources[0])
    weigh_resources(state, b, idle, width, len(idle), num_bytes - written, resources[0])
    weigh_resources(state, b, idle, width, len(idle), written, resources[7])
    read_s, written_s = resources[0], resources[7]
    walk, parent_pair = machines.walk[m], machines.parent_pair[m]
    link_in, link_out = machines.link_in[m], machines.link_out[m]
    inward, outward, load, price_in, price_out = routes[0], routes[1], routes[2], routes[3], routes[4]
    for i in range(nodes):
        pair = walk[i]
        inward[pair] = outward[pair] = load[pair] = price_in[pair] = price_out[pair] = ZERO
    for i in range(nodes, nodes * nodes):
        pair = walk[i]
        before = parent_pair[pair]
        a, z = link_in[pair], link_out[pair]
        inward[pair] = max(inward[before], read_s[a])
        outward[pair] = max(outward[before], written_s[z])
        load[pair] = max(load[before], max(loads[a], loads[z]))
        price_in[pair] = price_in[before] + prices[a]
        price_out[pair] = price_out[before] + prices[z]


@compiled
def weigh_resources(state, b, idle, first, last, num_bytes, s_per_byte):
    """Write what a stream of `num_bytes` costs per byte on resources `first` to `last`: `resource_s_per_byte`."""
    count, rate, left = state.stream_count[b], state.stream_rate[b], state.stream_bytes[b]
    for r in range(first, last):
        s_per_byte[r] = shared_s_per_byte(idle[r], count[r], rate[r], left[r], num_bytes)


@compiled
def reading_s_per_byte(machines, state, b, node, target, s_per_byte, loaded_latency_s):
    """Seconds per byte for a core of `node` to read from `target`, over resources of so many seconds per byte each."""
    m = state.machine[b]
    width = machines.cores.shape[1]
    inward = ZERO
    pair = node * width + target
    start = node * width + node
    while pair != start:
        inward = max(inward, s_per_byte[machines.link_in[m, pair]])
        pair = np.int64(machines.parent_pair[m, pair])
    return stream_s_per_byte(
        machines.pair_s_per_byte[m, node * width + target],
        s_per_byte[target],
        inward,
        ZERO,
        ZERO,
        loaded_latency_s,
        machines.outstanding_bytes[m],
    )


@compiled
def weigh_lines(machines, state, b, obj, num_bytes, write_fraction, loaded, reading):
    """Add to `reading` what the lines of an object that are cached somewhere cost each node that accesses them."""
    lines = min(cached_lines(machines, state, b, obj), num_bytes)
    if lines > ZERO:
        another, itself = line_ratios(machines, state, b, obj, write_fraction)
        width = machines.cores.shape[1]
        outstanding = machines.outstanding_bytes[state.machine[b]]
        holder, sharer = state.objects[b, obj].holder, state.objects[b, obj].sharer
        for n in range(machines.num_nodes[state.machine[b]]):
            if n != holder:
                reading[n] += line_time(lines, another, loaded[n * width + holder], outstanding)
            elif itself > ZERO:
                reading[n] += line_time(lines, itself, loaded[n * width + sharer], outstanding)


@compiled
def weigh_sources(machines, tasks, state, b, routes, resources):
    """Fill the rows of `resources` for reading with what the inputs cost each node, where some are scattered."""
    m = state.machine[b]
    width = machines.cores.shape[1]
    price, reading, reading_price = resources[2], resources[3], resources[4]
    sources, shares = resources[5][:width], resources[6][:width]
    idle, message = machines.resource_s_per_byte[m], resources[8]
    for n in range(machines.num_nodes[m]):
        write_sources(machines, tasks, state, b, n, shares, sources)
        for y in range(machines.num_nodes[m]):
            read = sources[y]
            if read > ZERO:
                i = n * width + y
                weigh_resources(state, b, idle, 0, len(idle), read, message)
                s_per_byte = reading_s_per_byte(machines, state, b, n, y, message, routes[5, i])
                split = ZERO if n == y else message[y]
                most = read if n == y else HALF * machines.llc_bytes[m, n]
                reading[n] += read_time(read, s_per_byte, split, routes[5, i], most)
                reading_price[n] += read * (price[y] + routes[3, i])


@compiled
def weigh_gathering(machines, state, b, obj, size, target, price, price_in):
    """Seconds to gather the pages of a split object on `target`, and the price of the traffic."""
    seconds = 0.0
    charge = ZERO
    width = machines.cores.shape[1]
    short = size - occupied_bytes(machines, state, b, obj, target)
    for home in range(machines.num_nodes[state.machine[b]]):
        part = min(occupied_bytes(machines, state, b, obj, home), short)
        if home != target and part > 0.0:
            piece_s, _ = migrate(machines, state, b, home, target, part)
            seconds += piece_s
            short -= part
            charge += np.float32(part) * (price[home] + price[target] + price_in[target * width + home])
    return np.float32(seconds), charge


@compiled
def forecast(
    machines, tasks, state, b, alpha, reference_s, window_s, routes, resources, estimate, congestion, migration
):
    """Write what the next task of row b would cost under every placement, in units of `reference_s`.

    Args:
        machines: as compiled.
        tasks: as compiled.
        state: where the rows stand.
        b: the row.
        alpha: weight of T_comm.
        reference_s: the unit of time, seconds.
        window_s: the traffic window tau, seconds.
        routes: scratch, see `allocate_scratch`.
        resources: scratch.
        estimate: written, shape (N * N,): T_exec + alpha T_comm, exactly what `decide` would charge.
        congestion: written, shape (N * N,): sum over every controller and link used of bytes / capacity x load.
        migration: written, shape (N,): the migration in T_comm by data node; 0 where nothing moves.
    """
    m, e, t = state.machine[b], state.episode[b], state.task[b]
    num_bytes = tasks.each[e, t].bytes
    write_fraction = tasks.each[e, t].write_fraction
    weigh_routes(machines, state, b, num_bytes, write_fraction, window_s, routes, resources)
    width = machines.cores.shape[1]
    nodes = machines.num_nodes[m]
    per_reference = ONE / reference_s
    a, c, saturated = machines.latency_a[m], machines.latency_c[m], machines.latency_saturated[m]
    outstanding = machines.outstanding_bytes[m]
    controller, load, price = resources[0], resources[1], resources[2]
    obj = tasks.each[e, t].object
    size = tasks.each[e, t].object_bytes
    home = state.objects[b, obj].node
    form = state.objects[b, obj].form
    old_size = np.float32(state.objects[b, obj].bytes)
    read_fraction = ONE - write_fraction
    ready = ready_time(tasks, state, b)

    # Plain loops over few arrays each: the compiler turns these, and not one long loop, into vector code.
    for n in range(width):
        row = slice(n * width, (n + 1) * width)
        latency, route_load, loaded = machines.latency_s[m, row], routes[2, row], routes[5, row]
        for d in range(width):
            loaded[d] = latency[d] * latency_factor(max(load[d], route_load[d]), a, c, saturated)

    price_in, loaded = routes[3], routes[5]
    idle, message = machines.resource_s_per_byte[m], resources[8]
    reading, reading_price = resources[3], resources[4]
    for n in range(width):
        reading[n] = reading_price[n] = ZERO
    weigh_lines(machines, state, b, obj, num_bytes, write_fraction, loaded, reading)
    scattered = has_scattered_inputs(tasks, state, b)
    if scattered:
        weigh_sources(machines, tasks, state, b, routes, resources)
    for p in range(tasks.inputs.shape[2]):
        source = tasks.inputs[e, t, p].object
        if source >= 0:
            weigh_lines(machines, state, b, source, tasks.inputs[e, t, p].bytes, ZERO, loaded, reading)
        read = ZERO if scattered else gathered_bytes(tasks, state, b, p)
        if read > ZERO:
            y = state.objects[b, source].node
            weigh_resources(state, b, idle, 0, len(idle), read, message)
            for n in range(nodes):
                i = n * width + y
                s_per_byte = reading_s_per_byte(machines, state, b, n, y, message, loaded[i])
                split = ZERO if n == y else message[y]
                most = read if n == y else HALF * machines.llc_bytes[m, n]
                reading[n] += read_time(read, s_per_byte, split, loaded[i], most)
                reading_price[n] += read * (price[y] + price_in[i])

    fits = True
    if home >= 0:
        weigh_resources(state, b, idle, 0, len(idle), old_size, message)
    page_s = np.float32(page_time(state.objects[b, obj].bytes, machines.page_bytes[m], machines.page_move_s[m]))
    moving, moving_price = resources[5], resources[6]
    for d in range(nodes):
        migration[d] = moving[d] = moving_price[d] = ZERO
        target = find_room(machines, state, b, d, obj, size)
        fits &= target == d
        if home < 0 or target < 0 or (form != SPLIT and holds_copy(state, b, obj, target, width)):
            continue
        if form == SPLIT:
            seconds, moving_price[d] = weigh_gathering(machines, state, b, obj, size, target, price, price_in)
        else:
            source = home if form <= 1 else nearest_copy(machines, state, b, obj, target)
            i = target * width + source
            s_per_byte = reading_s_per_byte(machines, state, b, target, source, message, loaded[i])
            half_cache = HALF * machines.llc_bytes[m, target]
            seconds = migration_time(
                old_size, message[source], s_per_byte, message[target], loaded[i], half_cache, page_s
            )
            moving_price[d] = old_size * (price[source] + price[target] + price_in[i])
        migration[d] = seconds * per_reference
        moving[d] = alpha * seconds

    for n in range(nodes):
        row = slice(n * width, (n + 1) * width)
        pair, inward, outward, loaded = machines.pair_s_per_byte[m, row], routes[0, row], routes[1, row], routes[5, row]
        computing = tasks.each[e, t].flops * machines.s_per_flop[m, n]
        fixed = np.float32(max(ready, state.node_free_s[b, n]) - state.now_s[b]) + alpha * reading[n]
        fixed += tasks.each[e, t].overhead_s
        placed = estimate[row]
        for d in range(width):
            s_per_byte = stream_s_per_byte(
                pair[d], controller[d], inward[d], outward[d], write_fraction, loaded[d], outstanding
            )
            placed[d] = (fixed + max(computing, num_bytes * s_per_byte) + moving[d]) * per_reference
        price_in, price_out, crowd = routes[3, row], routes[4, row], congestion[row]
        for d in range(width):
            own = price[d] + read_fraction * price_in[d] + write_fraction * price_out[d]
            crowd[d] = (num_bytes * own + reading_price[n] + moving_price[d]) * per_reference

    if not fits:
        redirect(machines, state, b, obj, size, estimate, congestion)
    for n in range(nodes):  # a task sent to a node without cores runs elsewhere
        on = machines.runs_on[m, n]
        if on != n:
            for d in range(nodes):
                estimate[n * width + d] = estimate[on * width + d]
                congestion[n * width + d] = congestion[on * width + d]
    if nodes < width:
        clear_padding(nodes, width, estimate, congestion, migration)


@compiled
def clear_padding(nodes, width, estimate, congestion, migration):
    """Write zeros for nodes that do not exist."""
    for n in range(width):
        for d in range(nodes if n < nodes else 0, width):
            estimate[n * width + d] = congestion[n * width + d] = ZERO
    for d in range(nodes, width):
        migration[d] = ZERO


@compiled
def redirect(machines, state, b, obj, size, estimate, congestion):
    """Where a data node is full, what is charged is the node that the object falls back to.

    A fallback never chains: the node fallen back to has room, so its own column stands.
    """
    m = state.machine[b]
    width = machines.cores.shape[1]
    nodes = machines.num_nodes[m]
    for d in range(nodes):
        target = find_room(machines, state, b, d, obj, size)
        if target != d:
            for n in range(nodes):
                estimate[n * width + d] = estimate[n * width + target] if target >= 0 else ZERO
                congestion[n * width + d] = congestion[n * width + target] if target >= 0 else ZERO

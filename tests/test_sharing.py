from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numa_rl.coherence.caches import Caches
from numa_rl.coherence.protocol import LineState, TransitionCosts
from numa_rl.coherence.remedies import batched, padded, replicated, variables
from numa_rl.coherence.replay import Kind, access_cost, replay
from numa_rl.coherence.samples import Samples, trace_of
from numa_rl.coherence.sharing import find_sharing
from numa_rl.machines.catalog import load_machine

M, E, S, I, F = LineState  # noqa: E741
RATIO = TransitionCosts().ratio
TRANSFER = RATIO[I, M] + RATIO[M, I]  # of a modified line, from writer to writer
LATENCY_S = np.array([[80, 130], [130, 80]]) * 1e-9
LOCAL_S, REMOTE_S = 80e-9, 130e-9


def samples(*accesses: str, **options: Any) -> Samples:
    """Accesses such as "0w8": thread 0 writes at address 8; 8 bytes each."""
    return Samples(
        thread=np.array([int(access[0]) for access in accesses], dtype=np.int64),
        address=np.array([int(access[2:]) for access in accesses], dtype=np.int64),
        write=np.array([access[1] == "w" for access in accesses], dtype=np.bool_),
        **options,
    )


def counters(updates: int, apart: int = 8, **options: Any) -> Samples:
    """Threads 0 and 1 write counters in turn, `apart` bytes from each other."""
    return samples(*(f"{i % 2}w{i % 2 * apart}" for i in range(updates)), **options)


def test_adjacent_counters_change_owner_at_every_write():
    cost = access_cost(counters(10), LATENCY_S)
    assert cost.address.tolist() == [0]
    assert (cost.accesses[0], cost.transfers[0], cost.invalidations[0]) == (10, 9, 9)
    assert cost.total_s == pytest.approx(LOCAL_S + 9 * TRANSFER * REMOTE_S)
    assert cost.transitions[M, I] == 9


def test_padded_counters_never_change_owner():
    cost = access_cost(counters(10, apart=64), LATENCY_S)
    assert cost.address.tolist() == [0, 64]
    assert cost.transfers.tolist() == cost.invalidations.tolist() == [0, 0]
    assert cost.total_s == pytest.approx(LOCAL_S + REMOTE_S)  # the page lives where it was touched first


def test_the_report_on_adjacent_counters_names_the_remedies():
    report = find_sharing(counters(320), LATENCY_S, updates_per_write=16)
    (line,) = report.false_sharing
    assert (line.address, line.threads, line.sharing, line.false_share) == (0, (0, 1), "false", 1.0)
    assert line.offsets == {0: (0,), 1: (8,)}
    assert (line.accesses, line.write_share, line.transfers, line.invalidations) == (320, 1.0, 319, 319)
    padding, batching = line.remedies
    assert (padding.name, batching.name) == ("padding", "batching")
    assert padding.after_s == pytest.approx(LOCAL_S + REMOTE_S)
    # 160 updates each: 10 shared writes each, in turn, and one line of its own each, in its own memory.
    assert batching.after_s == pytest.approx(2 * LOCAL_S + LOCAL_S + 19 * TRANSFER * REMOTE_S)
    assert line.cost_s == padding.before_s == pytest.approx(LOCAL_S + 319 * TRANSFER * REMOTE_S)
    assert report.false_s == report.coherence_s == pytest.approx(318 * TRANSFER * REMOTE_S)
    assert report.savings[0] == padding
    assert padding.helps
    assert padding.saved_s == padding.before_s - padding.after_s


def test_one_counter_of_two_threads_is_true_sharing_which_padding_does_not_cure():
    report = find_sharing(counters(320, apart=0), LATENCY_S)
    (line,) = report.lines
    assert line.sharing == "true"
    assert [remedy.name for remedy in line.remedies] == ["batching"]
    assert report.false_sharing == ()
    assert report.savings[0].before_s == 0.0


def test_a_mixed_line_tells_the_share_that_is_false():
    # Both cold; thread 0 lost its own byte 0 to a write of byte 8: false; then thread 1 takes byte 0 itself: true.
    (line,) = find_sharing(samples("0w0", "1w8", "0w0", "1w0"), LATENCY_S).lines
    assert line.sharing == "mixed"
    assert line.false_share == pytest.approx(0.5)
    assert line.coherence_s == pytest.approx(2 * TRANSFER * REMOTE_S)


def test_what_was_true_sharing_once_is_not_so_for_ever():
    trace = trace_of(samples("0w0", "1w0", "0w0", "1w8", "0w0"), 2)
    assert replay(trace, LATENCY_S).kind.tolist() == [Kind.COLD, Kind.COLD, Kind.TRUE, Kind.FALSE, Kind.FALSE]


def test_a_reader_beside_a_writer_is_false_sharing():
    (line,) = find_sharing(samples(*["0w0", "1r8"] * 5), LATENCY_S).lines
    assert line.sharing == "false"
    assert line.remedies[0].name == "padding"


def test_a_reader_of_what_is_written_is_true_sharing():
    (line,) = find_sharing(samples(*["0w0", "1r0"] * 5), LATENCY_S).lines
    assert line.sharing == "true"


def test_accesses_that_overlap_in_part_are_true_sharing():
    assert find_sharing(samples(*["0w0", "1w4"] * 5), LATENCY_S).lines[0].sharing == "true"


def test_threads_of_one_node_share_its_cache():
    report = find_sharing(counters(10, thread_node={0: 1, 1: 1}), LATENCY_S)
    assert (report.num_shared, report.lines) == (0, ())
    assert report.total_s == pytest.approx(LOCAL_S)


def test_an_access_across_a_border_touches_both_lines():
    cost = access_cost(samples("0w60", "1w64"), LATENCY_S)
    assert cost.address.tolist() == [0, 64]
    assert cost.accesses.tolist() == [1, 2]
    assert cost.transfers.tolist() == [0, 1]


def test_a_page_lives_where_it_is_said_to():
    assert access_cost(samples("0r0", page_node=np.array([1])), LATENCY_S).total_s == pytest.approx(REMOTE_S)


def test_longer_lines_are_shared_from_further_away():
    assert find_sharing(counters(10, apart=64), LATENCY_S).num_shared == 0
    assert find_sharing(counters(10, apart=64, line_bytes=128), LATENCY_S).false_sharing[0].false_share == 1.0


def test_a_table_that_is_only_read_is_copied_to_every_node():
    reads = samples("0r0", "1r0", "0r0", "1r0")
    (line,) = find_sharing(reads, LATENCY_S).lines
    (replication,) = line.remedies
    assert (line.sharing, replication.name) == ("none", "replication")
    assert replication.before_s == pytest.approx(LOCAL_S + RATIO[I, F] * REMOTE_S)
    assert replication.after_s == pytest.approx(2 * LOCAL_S)


def test_a_write_reaches_every_copy():
    trace, origin = replicated(trace_of(samples("0r0", "1r0", "0w0", "1r0"), 2))
    assert origin.tolist() == [0, 1, 2, 2, 3]
    assert trace.line.tolist() == [0, 1, 0, 1, 1]
    assert trace.home.tolist() == [0, 1, 0, 1, 1]
    assert trace.write.tolist() == [False, False, True, True, False]


def test_what_is_written_often_is_not_copied():
    accesses = samples(*["1w0", *["0r0"] * 99])
    names = {share: find_sharing(accesses, LATENCY_S, most_write_share=share).lines[0] for share in (0.0099, 0.01)}
    assert [remedy.name for remedy in names[0.0099].remedies] == []
    assert [remedy.name for remedy in names[0.01].remedies] == ["replication"]


def test_the_costliest_lines_are_described_first():
    many = samples(*["0w128", "1w136"] * 2, *["0w0", "1w8"] * 5, *["0w64", "1w72"] * 3)
    report = find_sharing(many, LATENCY_S, most_lines=2)
    assert [line.address for line in report.lines] == [0, 64]
    assert report.num_shared == 3
    assert report.savings[0].before_s == pytest.approx(report.total_s)  # padding helps all three


ACCESSES = st.lists(  # of two lines, and across their border
    st.tuples(st.integers(0, 3), st.sampled_from([0, 4, 8, 16, 56, 60, 64, 72]), st.booleans()), min_size=1, max_size=80
)
NODES = {0: 0, 1: 1, 2: 2, 3: 0}
FAR_S = np.array([[80, 130, 200], [130, 80, 170], [200, 170, 80]]) * 1e-9


def drawn(accesses: list[tuple[int, int, bool]], grain: int = 1) -> Samples:
    """Accesses of four threads on three nodes, at multiples of `grain` bytes."""
    thread, address, write = (np.array(column) for column in zip(*accesses, strict=True))
    return Samples(thread, address // grain * grain, write, thread_node=NODES)


@given(ACCESSES)
def test_the_replay_agrees_with_the_state_machine_access_by_access(accesses):
    trace = trace_of(drawn(accesses), 3)
    result = replay(trace, FAR_S)
    home = [trace.home[0]] * 4  # one page
    caches = Caches(FAR_S, home)
    transitions = np.zeros((5, 5), dtype=int)
    for a in range(len(trace)):
        act = caches.write if trace.write[a] else caches.read
        done = act(int(trace.line[a]), int(trace.node[a]))
        assert result.cost_s[a] == done.cost_s
        assert result.invalidated[a] == done.invalidated
        assert result.transferred[a] == done.transferred
        transitions += done.transitions
    np.testing.assert_array_equal(result.transitions, transitions)


@given(ACCESSES)
def test_a_wait_is_false_when_nobody_else_touched_these_bytes_meanwhile(accesses):
    trace = trace_of(drawn(accesses), 3)
    result = replay(trace, FAR_S)
    caches = Caches(FAR_S, [0] * 4)
    alone: dict[tuple[int, int], int] = {}  # when a node last had a line to itself, by its own access
    valid: dict[tuple[int, int], int] = {}  # when it last accessed the line
    for a in range(len(trace)):
        line, node, write = int(trace.line[a]), int(trace.node[a]), bool(trace.write[a])
        before = caches.states[line, node]
        (caches.write if write else caches.read)(line, node)
        if before in (M, E) or (before != I and not write):
            expected = Kind.HIT
        elif (line, node) not in valid:
            expected = Kind.COLD
        else:
            since = alone.get((line, node), 0) if write else valid[line, node]
            met = [
                b
                for b in range(since, a)
                if trace.line[b] == line and trace.node[b] != node and (write or trace.write[b])
                if trace.start[b] < trace.stop[a] and trace.start[a] < trace.stop[b]
            ]
            expected = Kind.TRUE if met else Kind.FALSE
        assert result.kind[a] == expected
        valid[line, node] = a
        if caches.states[line, node] in (M, E):
            alone[line, node] = a


@given(ACCESSES)
def test_the_cost_by_line_adds_up(accesses):
    trace = trace_of(drawn(accesses), 3)
    result = replay(trace, FAR_S)
    cost = access_cost(drawn(accesses), FAR_S)
    np.testing.assert_allclose(cost.seconds.sum(axis=0), [result.seconds(kind) for kind in Kind])
    assert cost.accesses.sum() == len(trace)
    assert cost.invalidations.sum() == result.transitions[[M, E, S, F], I].sum()
    assert cost.seconds[:, Kind.HIT].sum() == 0.0


@given(ACCESSES)
def test_padding_leaves_no_false_sharing(accesses):
    trace = padded(trace_of(drawn(accesses, grain=8), 3))
    assert replay(trace, FAR_S).seconds(Kind.FALSE) == 0.0


@given(ACCESSES)
def test_padding_parts_threads_and_variables_and_joins_no_lines(accesses):
    old = trace_of(drawn(accesses), 3)
    new, variable = padded(old), variables(old)
    for line in np.unique(new.line):
        on_it = new.line == line
        assert len(np.unique(old.line[on_it])) == 1
        assert len(np.unique(old.thread[on_it])) == 1 or len(np.unique(variable[on_it])) == 1
    for one in np.unique(variable):
        assert len(np.unique(new.line[variable == one])) == 1


@given(ACCESSES, st.integers(1, 5))
def test_batching_writes_the_shared_line_once_in_k_updates(accesses, updates_per_write):
    old = trace_of(drawn(accesses), 3)
    new, variable = batched(old, updates_per_write), variables(old)
    own = np.array([len(set(old.line[new.line == line])) == 1 for line in new.line])
    assert own.all()
    for one in np.unique(variable):
        for thread in np.unique(old.thread[variable == one]):
            mine = (variable == one) & (old.thread == thread)
            updates = np.flatnonzero(mine & old.write)
            shared = updates[updates_per_write - 1 :: updates_per_write].tolist()
            expected = sorted({*shared, *updates[-1:].tolist()})
            lines = new.line[updates]
            assert [a for a, line in zip(updates, lines, strict=True) if line == lines[-1]] == expected
            assert (new.home[np.setdiff1d(updates, expected)] == NODES[int(thread)]).all()


@given(ACCESSES)
def test_batches_of_one_change_nothing(accesses):
    trace = trace_of(drawn(accesses), 3)
    np.testing.assert_array_equal(replay(batched(trace, 1), FAR_S).cost_s, replay(trace, FAR_S).cost_s)


@given(ACCESSES)
def test_what_is_only_read_is_read_locally_from_copies(accesses):
    reads = drawn([(thread, address, False) for thread, address, _ in accesses])
    trace, origin = replicated(trace_of(reads, 3))
    assert origin.tolist() == list(range(len(trace)))
    assert (trace.home == trace.node).all()
    assert replay(trace, FAR_S).cost_s.sum() == pytest.approx(len(np.unique(trace.line)) * LOCAL_S)


@given(ACCESSES, st.integers(1, 5))
def test_what_a_remedy_claims_to_save_is_saved(accesses, updates_per_write):
    report = find_sharing(drawn(accesses), FAR_S, updates_per_write=updates_per_write, most_write_share=0.3)
    for remedy in report.savings:
        helped = [r for line in report.lines for r in line.remedies if r.name == remedy.name and r.helps]
        assert remedy.before_s >= sum(r.before_s for r in helped) * (1 - 1e-12)
        assert remedy.saved_s >= 0.0
        assert remedy.saved_s >= sum(r.saved_s for r in helped) * (1 - 1e-12)
    assert report.false_s <= report.coherence_s <= report.total_s
    assert report.num_shared == len(report.lines)
    for line in report.lines:
        assert [r.after_s for r in line.remedies] == sorted(r.after_s for r in line.remedies)
        assert 0.0 <= line.false_share <= 1.0


def test_a_real_machines_sockets_lose_more_than_half_a_microsecond_to_three_updates():
    latency_s = load_machine("xeon-8269cy").latency_s
    report = find_sharing(counters(4), latency_s)
    expected = latency_s[0, 0] + TRANSFER * (2 * latency_s[1, 0] + latency_s[0, 1])
    assert report.total_s == pytest.approx(expected) == pytest.approx(531e-9, abs=1e-9)


def test_no_samples_cost_nothing():
    report = find_sharing(Samples(np.array([]), np.array([]), np.array([])), LATENCY_S)
    assert (report.total_s, report.num_shared, report.lines) == (0.0, 0, ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"address": [-8, 0]}, r"address must be in 0\.\.4611686018427387904, got -8"),
        ({"address": np.array([2**63, 0], dtype=np.uint64)}, r"address must be in .*, got 9223372036854775808"),
        ({"address": [0.0, 8.0]}, r"address must be one row of integers, got float64"),
        ({"address": [[0, 8]]}, r"address must be one row of integers, got int64 of shape \(1, 2\)"),
        ({"address": ["0", "8"]}, r"address must be one row of integers"),
        ({"address": [0]}, r"address must have as many entries as thread, 2, got 1"),
        ({"write": [True]}, r"write must have as many entries as thread, 2, got 1"),
        ({"page_node": [0]}, r"page_node must have as many entries as thread, 2, got 1"),
        ({"write": [0, 2]}, r"write must be in 0\.\.1, got 2"),
        ({"write": [0.0, np.nan]}, r"write must be one row of integers"),
        ({"thread": [0, -1]}, r"thread must be in .* got -1"),
        ({"thread": [0, 2]}, r"thread \(its own node, .*\) must be in 0\.\.1, got 2"),
        ({"thread_node": {0: 1}}, r"thread_node must have a node for every thread, got none for thread 1"),
        ({"thread_node": {0: 1, 1: 2}}, r"thread_node must be in 0\.\.1, got 2"),
        ({"thread_node": {0: 1, 1: 0.5}}, r"thread_node must be one row of integers"),
        ({"page_node": [0, 2]}, r"page_node must be in 0\.\.1, got 2"),
        ({"line_bytes": 0}, r"line_bytes must be a power of two in 1\.\.4096, got 0"),
        ({"line_bytes": 48}, r"line_bytes must be a power of two in 1\.\.4096, got 48"),
        ({"line_bytes": 64.0}, r"line_bytes must be a power of two in 1\.\.4096, got 64\.0"),
        ({"access_bytes": 0}, r"access_bytes must be an integer in 1\.\.64, one line, got 0"),
        ({"access_bytes": 65}, r"access_bytes must be an integer in 1\.\.64, one line, got 65"),
    ],
)
def test_samples_must_make_sense(change, message):
    good: dict[str, Any] = {"thread": [0, 1], "address": [0, 8], "write": [0, 1]}
    with pytest.raises(ValueError, match=message):
        find_sharing(Samples(**good | change), LATENCY_S)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"updates_per_write": 0}, r"updates_per_write must be an integer >= 1, got 0"),
        ({"updates_per_write": 1.5}, r"updates_per_write must be an integer >= 1, got 1\.5"),
        ({"most_lines": -1}, r"most_lines must be an integer >= 1, got -1"),
        ({"most_write_share": np.nan}, r"most_write_share must be in 0\.\.1, got nan"),
        ({"most_write_share": 1.1}, r"most_write_share must be in 0\.\.1, got 1\.1"),
        ({"latency_s": [[1.0, np.nan], [1.0, 1.0]]}, r"latency_s must be finite and >= 0, got nan"),
    ],
)
def test_options_must_make_sense(options, message):
    with pytest.raises(ValueError, match=message):
        find_sharing(counters(2), **{"latency_s": LATENCY_S} | options)

"""Carrefour, AsymSched and BWAP on observations small enough to decide by hand."""

from typing import Any

import numpy as np
import pytest
from observations import N, decide, row

from agents.rules.bwap import (
    COUNT,
    FIRST,
    GOES_ON,
    LEAST,
    LOOKS_TWICE,
    MEASUREMENTS,
    OVER,
    PROXIMITY,
    SEARCH,
    WAIT,
    brought_near,
    canonical_shares,
    nearness,
)
from agents.rules.carrefour import accessors, count_reads, read_counters
from agents.rules.catalog import make_rule
from envs.observation import ObservationLayout
from envs.observation_kernel import TaskFeature

FLAT = {"bandwidth": 0.5 + 0.5 * np.eye(N)}  # every memory serves 1, and half of that to the other nodes


def counters(accesses_per_us: float = 3000.0, **groups: Any):
    observation = row(**(FLAT | groups))
    return read_counters(ObservationLayout(N).split(observation[None]), accesses_per_us)


def test_counters_by_hand():
    # Memory 1 serves 0.3 + 0.1 and memory 2 serves 0.2: a mean of 0.2, and a deviation of sqrt(0.08 / 3).
    counted = counters(communication=[[0, 0.3, 0], [0, 0.1, 0], [0, 0, 0.2]], memory=[0.1, 0.2, 0.6])
    assert counted.accesses_per_us == pytest.approx(3000.0 * 0.6 / 3)
    assert counted.imbalance == pytest.approx(np.sqrt(0.08 / 3) / 0.2)
    assert counted.local_ratio == pytest.approx(0.3 / 0.6)
    assert counted.memory_share == pytest.approx(0.3)


def test_a_fast_memory_at_the_same_load_serves_more():
    counted = counters(bandwidth=np.diag([1.0, 0.5, 0.5]), communication=np.diag([0.2, 0.2, 0.2]))
    assert counted.accesses_per_us == pytest.approx(3000.0 * 0.2)
    assert counted.imbalance == pytest.approx(np.sqrt((1 / 3) ** 2 + 2 * (1 / 6) ** 2) / np.sqrt(3) / (2 / 3))
    assert counted.local_ratio == 1.0


def test_accesses_are_counted_by_the_memory_that_serves_them():
    # Node 1 draws on the fast memory 0 at a load of 0.2, node 0 on the slow memory 1 at 0.4: as many accesses.
    loads = [[0, 0.4, 0], [0.2, 0, 0], [0, 0, 0]]
    counted = counters(bandwidth=np.diag([1.0, 0.5, 0.5]), communication=loads)
    assert counted.accesses_per_us == pytest.approx(3000.0 * 0.4 / 2.0)
    assert counted.imbalance == pytest.approx(np.sqrt(1 / 2))


def test_padded_nodes_do_not_count():
    counted = counters(nodes=[1, 1, 0], communication=np.diag([0.2, 0.2, 0.0]), memory=[0.2, 0.4, 0.0])
    assert counted.imbalance == pytest.approx(0.0)
    assert counted.memory_share == pytest.approx(0.3)


def test_without_traffic_all_of_it_is_local():
    counted = counters()
    assert (counted.accesses_per_us, counted.imbalance, counted.local_ratio) == (0.0, 0.0, 1.0)


def test_the_share_read_is_an_average_over_the_last_decisions():
    memory = np.zeros((1, 2))
    task = np.zeros((1, TaskFeature.COUNT))
    task[0, [TaskFeature.MEMORY, TaskFeature.INPUT, TaskFeature.WRITE_FRACTION]] = 3.0, 1.0, 0.4
    assert count_reads(task, memory) == pytest.approx(1.0 - 1.2 / 4.0)
    task[0, TaskFeature.WRITE_FRACTION] = 0.0
    for _ in range(2000):
        ratio = count_reads(task, memory)
    assert ratio == pytest.approx(1.0, abs=1e-3)


def test_who_makes_less_than_a_tenth_of_the_accesses_is_no_accessor():
    assert accessors(np.array([[0.5, 9.0, 0.5], [1.0, 9.0, 0.0], [0.0, 0.0, 0.0]])).tolist() == [
        [False, True, False],
        [True, True, False],
        [False, False, False],
    ]


# Node 0 runs the task and uses memory 1 alone: 1000 accesses per us of 3000, none local, sigma / mu = sqrt(2).
BUSY = FLAT | {"communication": [[0, 1.0, 0], [0, 0, 0], [0, 0, 0]], "memory": [0.2, 0.2, 0.2]}
READ = {TaskFeature.MEMORY: 1.0, TaskFeature.READ_ONLY: 1.0}
WRITTEN = {TaskFeature.MEMORY: 1.0, TaskFeature.WRITE_FRACTION: 0.5}
ALONE, SHARED = [1.0, 0.0, 0.0], [0.6, 0.4, 0.0]
STAYS, MOVES, PAGES = [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1]


def carrefour(access: list[float], features: dict[int, float], groups: dict[str, Any] | None = None, **parameters: Any):
    observation = row(**({"home": 1, "access": access, "features": features} | BUSY | (groups or {})))
    action = decide("carrefour", observation, **({"accesses_per_us": 3000.0} | parameters))
    return action if not any(action[2:]) else [action[0], 1, *action[2:]]  # the data node of split pages means nothing


@pytest.mark.parametrize(
    ("access", "features", "parameters", "expected"),
    [
        (ALONE, WRITTEN, {}, MOVES),
        (ALONE, WRITTEN, {"local_ratio": 0.0}, STAYS),
        (ALONE, WRITTEN, {"busy_per_us": 1001.0}, STAYS),
        (ALONE, WRITTEN, {"accesses_per_us": 149.0}, STAYS),  # less than 50 accesses per us
        (ALONE, WRITTEN, {"accesses_per_us": 151.0}, MOVES),
        (SHARED, WRITTEN, {}, PAGES),
        (SHARED, WRITTEN, {"imbalance": 1.5}, STAYS),
        (SHARED, WRITTEN, {"busy_per_us": 1001.0}, STAYS),
        (SHARED, READ, {}, MOVES),  # a replica
        (SHARED, READ, {"memory_share": 0.1}, PAGES),
        (SHARED, READ, {"memory_share": 0.1, "imbalance": 1.5}, STAYS),
        (SHARED, READ | {TaskFeature.READ_ONLY: 0.0}, {}, PAGES),  # only read so far, but not for ever
    ],
)
def test_carrefour_replicates_interleaves_or_migrates(
    access: list[float], features: dict[int, float], parameters: dict[str, float], expected: list[int]
):
    assert carrefour(access, features, **parameters) == expected


def test_carrefour_replicates_only_where_nearly_everything_is_read():
    observation = row(home=1, access=SHARED, features=READ, **BUSY)
    assert decide("carrefour", observation, memory=[99.0, 4.0], accesses_per_us=3000.0)[1:] == [0, 0, 0, 0]
    assert decide("carrefour", observation, memory=[99.0, 6.0], accesses_per_us=3000.0)[2:] == [1, 1, 1]


def test_carrefour_runs_tasks_and_puts_new_data_as_first_touch():
    observation = row(queue=[3.0, 2.0, 1.0], **BUSY)
    assert decide("carrefour", observation) == [2, 2, 0, 0, 0]
    assert carrefour([0.0, 1.0, 0.0], WRITTEN, {"queue": [0.0, 9.0, 1.0]})[0] == 0


def test_carrefour_leaves_interleaved_pages_until_one_node_uses_them():
    pages = {"data": [0.5, 0.0, 0.5]}
    assert carrefour(SHARED, WRITTEN, pages)[2:] == [1, 0, 1]
    assert carrefour(SHARED, WRITTEN, pages, busy_per_us=1e4)[2:] == [1, 0, 1]
    assert carrefour(ALONE, WRITTEN, pages) == MOVES


def test_carrefour_reads_the_nearest_copy():
    copies = {"data": [0.0, 1.0, 1.0]}
    assert carrefour(SHARED, READ, copies, memory_share=0.1) == STAYS
    assert carrefour(SHARED, READ, copies) == MOVES


# Links of 0.6, 0.2 and 0.2; node 2, where the object is, is overloaded.
ASYMMETRIC = np.array([[1.0, 0.6, 0.2], [0.6, 1.0, 0.2], [0.2, 0.2, 1.0]])
OWN = {TaskFeature.MEMORY: 1.0}


def asymsched(memory: list[float] | None = None, parameters: dict[str, float] | None = None, **groups: Any):
    given = {"home": 2, "features": OWN, "bandwidth": ASYMMETRIC, "queue": [0.0, 0.0, 9.0]}
    return decide("asymsched", row(**(given | groups)), memory=memory, **(parameters or {}))


def test_asymsched_takes_the_placement_that_moves_least():
    assert asymsched(migration=[0.02, 0.01, 0.0]) == [1, 1]  # as much bandwidth as on node 0, and a cheaper move
    assert asymsched(migration=[0.01, 0.02, 0.0]) == [0, 0]


def test_asymsched_keeps_the_object_where_bandwidth_is_nearly_the_best():
    nearly = np.array([[1.0, 0.6, 0.95], [0.6, 1.0, 0.2], [0.2, 0.2, 1.0]])
    assert asymsched(bandwidth=nearly, migration=[0.01, 0.01, 0.0]) == [0, 2]
    assert asymsched(bandwidth=nearly, migration=[0.01, 0.01, 0.0], parameters={"kept_share": 0.97}) == [0, 0]


def test_asymsched_moves_only_within_a_twentieth_of_the_time_run():
    assert asymsched(migration=[0.06, 0.06, 0.0]) == [0, 2]
    assert asymsched(migration=[0.06, 0.06, 0.0], parameters={"migration_share": 0.1}) == [0, 0]
    assert asymsched(migration=[0.06, 0.06, 0.0], memory=[1.0, 0.0]) == [0, 0]  # 0.06 of 2
    assert asymsched(migration=[0.06, 0.06, 0.0], memory=[1.0, 0.05]) == [0, 2]  # 0.11 of 2


def test_asymsched_remembers_the_time_run_and_the_time_spent_on_moves():
    features = {TaskFeature.MEMORY: 1.0, TaskFeature.COMPUTE: 1.5, TaskFeature.INPUT: 0.5}
    observation = row(2, features, bandwidth=ASYMMETRIC, queue=[0, 0, 9.0], migration=[0.03, 0.03, 0])
    _, state = make_rule("asymsched").predict(observation)
    np.testing.assert_allclose(state[0], [[2.0, 0.03]], rtol=1e-6)


def test_asymsched_wants_the_most_bandwidth_and_not_the_fewest_hops():
    # The object can only be at 2. Node 1 is next to it, but node 0 has a link three times as fast.
    wide = np.array([[1.0, 0.2, 0.6], [0.2, 1.0, 0.2], [0.6, 0.2, 1.0]])
    assert asymsched(bandwidth=wide, data_mask=[0, 0, 1]) == [0, 2]


def test_asymsched_counts_what_the_inputs_need_and_what_others_leave():
    inputs = {"inputs": [0.0, 3.0, 0.0], "home": None, "queue": 0.0}
    assert asymsched(**inputs) == [1, 1]
    # Memory 1 at load 9 leaves a tenth: 0.3 for the inputs there, and 0.6 for own bytes on node 0; node 0 has 1.18.
    crowded = asymsched(**inputs, communication=[[0, 0, 0], [0, 9.0, 0], [0, 0, 0]])
    assert crowded == [0, 0]
    # What node 1 draws on memory 0 loads memory 0, and not that of node 1.
    assert asymsched(**inputs, communication=[[0, 0, 0], [9.0, 0, 0], [0, 0, 0]]) == [1, 1]


def shares(workers: list[bool], **groups: Any):
    return canonical_shares(np.array([workers]), ObservationLayout(N).split(row(**groups)[None]))[0]


BANDWIDTH = np.array([[1.0, 0.5, 0.25], [0.25, 1.0, 0.25], [0.25, 0.5, 1.0]])


def test_canonical_shares_are_the_least_bandwidth_of_any_worker():
    np.testing.assert_allclose(shares([True, False, False], bandwidth=BANDWIDTH), [4 / 7, 2 / 7, 1 / 7])
    np.testing.assert_allclose(shares([True, True, False], bandwidth=BANDWIDTH), [0.25, 0.5, 0.25])
    np.testing.assert_allclose(shares([True, True, False], bandwidth=BANDWIDTH, data_mask=[1, 0, 1]), [0.5, 0.0, 0.5])


@pytest.mark.parametrize(
    ("proximity", "expected"), [(0.0, [0.3, 0.2, 0.5]), (0.5, [0.45, 0.3, 0.25]), (1.0, [0.6, 0.4, 0.0])]
)
def test_proximity_takes_pages_from_other_nodes_to_the_workers(proximity: float, expected: list[float]):
    near = brought_near(np.array([[0.3, 0.2, 0.5]]), np.array([[True, True, False]]), np.array([proximity]))
    np.testing.assert_allclose(near[0], expected)


def bwap_memory(proximity: float) -> np.ndarray:
    memory = np.zeros(FIRST + 2 * MEASUREMENTS)
    memory[[PROXIMITY, SEARCH]] = proximity, OVER
    return memory


def test_bwap_deals_new_pages_by_what_the_tasks_node_draws():
    observation = row(bandwidth=BANDWIDTH)
    assert decide("bwap", observation) == [0, 0, 57, 29, 14]
    assert decide("bwap", observation, memory=bwap_memory(0.5)) == [0, 0, 79, 14, 7]
    assert decide("bwap", observation, memory=bwap_memory(1.0)) == [0, 0, 100, 0, 0]


def test_nearness_is_the_proximity_that_pages_were_dealt_at():
    workers = np.array([[True, False, True], [True, False, False]])
    canonical = np.array([[0.3, 0.5, 0.2], [1.0, 0.0, 0.0]])
    for proximity in (0.0, 0.4, 1.0):
        near = brought_near(canonical, workers, np.full(2, proximity))
        np.testing.assert_allclose(nearness(near, canonical, workers), [proximity, 1.0])


def test_bwap_moves_pages_toward_the_workers_once_they_are_half_a_step_short():
    def action(data: list[float], proximity: float):
        observation = row(home=0, data=data, access=ALONE, bandwidth=BANDWIDTH)
        return decide("bwap", observation, memory=bwap_memory(proximity))[2:]

    # Of what lies far at first, 3/7, the worker holds (0.57 - 4/7) / (3/7) = 0, and of 66% a fifth.
    assert action([0.57, 0.29, 0.14], 0.1) == [61, 26, 13]
    assert action([0.57, 0.29, 0.14], 0.04) == [57, 29, 14]
    assert action([0.66, 0.23, 0.11], 0.2) == [66, 23, 11]
    assert action([0.66, 0.23, 0.11], 0.3) == [70, 20, 10]
    assert action([0.90, 0.07, 0.03], 0.3) == [90, 7, 3]  # nearer than it asks for
    assert action([0.10, 0.80, 0.10], 0.0) == [10, 80, 10]  # canonical weights are for new pages


def test_bwap_deals_by_all_who_use_the_object():
    # Nodes 0 and 1 use it: canonical shares are 25, 50 and 25%, and node 2 keeps half of its.
    observation = row(home=2, access=[0.5, 0.45, 0.05], bandwidth=BANDWIDTH)
    assert decide("bwap", observation, memory=bwap_memory(0.5))[2:] == [29, 59, 12]


def tune(load: float, measurements: int, outliers: int = 0, memory: np.ndarray | None = None) -> np.ndarray:
    """What BWAP remembers after some measurements at a load of the task's own memory, the first few far too high."""
    rule, state = make_rule("bwap"), None if memory is None else (memory[None],)
    for measurement in range(measurements + (WAIT if memory is None else 0)):
        shown = 1000.0 if measurement < WAIT + outliers and memory is None else load
        observation = row(bandwidth=BANDWIDTH, communication=[[shown, 0, 0], [0, 0, 0], [0, 0, 0]])
        _, state = rule.predict(observation, state=state)
    return state[0][0]


def test_bwap_brings_pages_nearer_while_stalls_fall():
    # A local byte costs 1, one from memory 1 costs 2 and one from memory 2 costs 4.
    memory = tune(load=0.0, measurements=60)
    assert memory[[PROXIMITY, COUNT, SEARCH]] == pytest.approx([0.3, 0.0, GOES_ON])
    assert memory[LEAST] == pytest.approx(0.8 * (4 + 4 + 4) / 7 + 0.2, rel=1e-5)
    assert tune(load=0.0, measurements=240)[[PROXIMITY, SEARCH]] == pytest.approx([1.0, OVER])


def test_bwap_takes_the_step_back_that_made_stalls_grow_twice():
    # At load 5 a local byte costs 6, more than any other.
    for measurements, proximity, search in [(20, 0.1, GOES_ON), (40, 0.1, LOOKS_TWICE), (79, 0.1, LOOKS_TWICE)]:
        assert tune(5.0, measurements)[[PROXIMITY, SEARCH]] == pytest.approx([proximity, search])
    for measurements in (80, 200):
        assert tune(5.0, measurements)[[PROXIMITY, SEARCH]] == pytest.approx([0.0, OVER])


def test_bwap_goes_on_when_the_growth_was_transient():
    grown = tune(5.0, measurements=40)
    assert tune(0.0, 40, memory=grown)[[PROXIMITY, SEARCH]] == pytest.approx([0.2, GOES_ON])


def test_bwap_does_not_mind_five_outliers():
    np.testing.assert_allclose(tune(0.0, 20, outliers=5)[LEAST], tune(0.0, 20)[LEAST])
    assert tune(0.0, 20, outliers=6)[LEAST] > 10 * tune(0.0, 20)[LEAST]


@pytest.mark.parametrize("step", [0.0, -0.1, 1.5, np.array([0.1, 0.0])])
def test_bwap_refuses_steps_that_lead_nowhere(step: Any):
    with pytest.raises(ValueError, match=r"bwap: step must be above 0 and at most 1, got"):
        make_rule("bwap", step=step)

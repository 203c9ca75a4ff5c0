"""The study of how far the simulator is from the referee: its figures, its cells, its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isnan
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.fidelity.cells import LOADS_PERCENT, MACHINES, NO_FACTOR, SCHEDULERS, Plan
from experiments.fidelity.metrics import Agreement, agreement, median_and_p95, relative_error
from experiments.fidelity.referee import Played
from experiments.fidelity.replay import FLOW, Replay
from experiments.fidelity.report import sheets
from experiments.fidelity.rows import Judged, Row, Where, busiest, row_of
from experiments.fidelity.summary import (
    bins,
    evenly_by_load,
    in_bin,
    orders,
    summarise,
    summarise_orders,
    targets,
    trusted_to,
    valid,
    valid_orders,
)
from experiments.fidelity.verdict import MISSED, verdict
from experiments.suite.definition import STANDARD, read_definition
from numa_rl.machines.catalog import load_machine

WHERE = Where("stream", "chapter-2-socket", 2, 60.0, "greedy", False)


def hand_made(node: Sequence[int], response_s: Sequence[float]) -> Replay:
    """Tasks that arrive a second after each other and move nothing."""
    arrival_s = np.arange(len(node), dtype=np.float64)
    ran = np.asarray(node) >= 0
    response = np.where(ran, np.asarray(response_s, np.float64), np.inf)
    topology = load_machine("chapter-2-socket")
    waits = tuple(() for _ in node)
    return Replay(
        topology, arrival_s, np.asarray(node), False, waits, np.zeros(0, FLOW), response, arrival_s + response, 1.0
    )


def judged(node: Sequence[int], ours_s: Sequence[float], referee_s: Sequence[float], **loads: float) -> Judged:
    """An episode made by hand, with what the referee makes of it."""
    replay = hand_made(node, ours_s)
    ran = np.asarray(node) >= 0
    finish_s = np.where(ran, replay.arrival_s + np.asarray(referee_s), np.inf)
    makespan_s = max(float(finish_s[ran].max()), float(replay.arrival_s[-1]))
    return Judged(WHERE, [replay], [Played(replay.arrival_s, replay.arrival_s, finish_s, makespan_s, dict(loads))])


def row(response_error: float = 0.0, load: float = 0.5, ours: float | None = None, **where: Any) -> Row:
    """A row with these figures."""
    mine = 1.0 + response_error if ours is None else ours
    referee = mine / (1.0 + response_error)
    return Row(
        replace(WHERE, **where), load, "link 0>1", 0.01, 0.02, response_error, 0.0, mine, referee, 2.0, 2.0, 4, 0
    )


# Known answers.


def test_an_error_is_negative_where_ours_is_too_fast():
    assert relative_error([0.9, 1.2, 0.0], [1.0, 1.0, 0.0]) == pytest.approx([-0.1, 0.2, 0.0])
    assert relative_error([1.0], [0.0])[0] == np.inf


def test_median_and_p95_are_those_of_sizes_and_tell_infinite_errors():
    assert median_and_p95([-0.3, 0.1, 0.2]) == pytest.approx((0.2, 0.29))
    assert median_and_p95([0.1, np.inf, np.inf, np.inf]) == (np.inf, np.inf)
    assert all(map(isnan, median_and_p95([])))


def test_one_swapped_pair_of_four_schedulers():
    found = agreement([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0])
    assert found == Agreement(
        tau=pytest.approx(2 / 3),
        clear_tau=pytest.approx(2 / 3),
        pairs=6,
        wrong=1,
        clear_pairs=6,
        clear_wrong=1,
        regret=0.0,
    )


def test_a_swap_of_schedulers_as_good_as_each_other_is_wrong_but_not_clearly():
    found = agreement([1.0, 1.01, 2.0], [1.01, 1.0, 2.0])
    assert (found.pairs, found.wrong, found.clear_pairs, found.clear_wrong) == (3, 1, 2, 0)
    assert (found.tau, found.clear_tau) == pytest.approx((1 / 3, 1.0))
    assert found.regret == pytest.approx(0.01)


def test_a_tie_in_the_referees_world_is_no_order_but_one_in_ours_misses_the_better():
    tied = agreement([1.0, 2.0], [1.0, 1.0])
    assert isnan(tied.tau)
    assert (tied.pairs, tied.wrong) == (0, 0)
    blind = agreement([1.0, 1.0], [1.0, 2.0])
    assert (blind.pairs, blind.wrong, blind.clear_wrong) == (1, 1, 1)
    assert blind.clear_tau == 0.0
    assert isnan(tied.clear_tau)


def test_times_that_differ_by_rounding_alone_are_a_tie():
    assert agreement([1.0, 1.0 + 1e-13], [1.0 + 1e-13, 1.0]).pairs == 0


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_a_time_that_is_none_has_no_order(bad):
    with pytest.raises(ValueError, match="ours must be a list of times"):
        agreement([1.0, bad], [1.0, 2.0])


def test_worlds_must_know_the_same_schedulers():
    with pytest.raises(ValueError, match="got 2 and 3"):
        agreement([1.0, 2.0], [1.0, 2.0, 3.0])


def test_a_row_of_three_tasks_worked_out_by_hand():
    found = row_of(judged([0, 1, 0], [1.0, 2.0, 3.0], [2.0, 2.0, 2.0], **{"cores 0": 0.4, "link 0>1": 0.7}))
    assert (found.resource, found.load) == ("link 0>1", 0.7)
    assert found.task_median == pytest.approx(0.5)  # sizes 0.5, 0, 0.5
    assert found.response_error == pytest.approx(0.0)  # means 2 and 2
    assert (found.makespan_s, found.referee_makespan_s) == (5.0, 4.0)
    assert found.makespan_error == pytest.approx(0.25)
    assert (found.num_tasks, found.num_dropped) == (3, 0)


def test_dropped_tasks_count_in_neither_world():
    found = row_of(judged([0, -1, 0], [1.0, 9.0, 1.0], [1.0, 9.0, 1.0]))
    assert (found.num_tasks, found.num_dropped) == (2, 1)
    assert (found.response_s, found.response_error, found.makespan_s) == (1.0, 0.0, 3.0)


def test_a_makespan_lasts_at_least_to_the_last_arrival():
    assert row_of(judged([0, 0, -1], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0])).makespan_s == 2.0


def test_no_row_without_times():
    with pytest.raises(ValueError, match="stream/chapter-2-socket 60%, greedy: no task found room"):
        row_of(replace(judged([0], [1.0], [1.0]), replays=[hand_made([-1], [1.0])]))
    with pytest.raises(ValueError, match="must have a finite time"):
        row_of(judged([0, 0], [1.0, 1.0], [1.0, np.nan]))


def test_the_busiest_resource_is_so_on_average_over_episodes():
    assert busiest([{"cores 0": 1.0, "link": 0.8}, {"cores 0": 0.2, "link": 0.8}]) == ("link", pytest.approx(0.8))
    assert busiest([{}]) == ("nothing", 0.0)


def test_every_load_has_one_bin():
    for load in (0.0, 0.1, 0.2, 0.80001, 0.9, 0.95, 1.3):
        assert sum(in_bin(load, low, high) for _, low, high in bins()) == 1
    assert [name for name, low, high in bins() if in_bin(0.8, low, high)] == ["60% to 80%"]


def test_targets_look_at_loads_up_to_80_percent_and_at_families_with_a_pace():
    rows = [row(0.02), row(0.04), row(0.03, asked_percent=None), row(0.9, load=0.81), row(9.0, asked_percent=None)]
    assert [each.response_error for each in valid(rows)] == [0.02, 0.04]
    median, p95, *_ = targets(rows)
    assert (median.figure, median.is_met) == (pytest.approx(0.03), True)
    assert (p95.figure, p95.is_met) == (pytest.approx(0.039), True)
    assert not targets([row(0.2)])[1].is_met


def test_with_every_bin_of_loads_counting_once_a_crowded_bin_counts_no_more():
    crowd = [row(0.0, load=0.1)] * 8
    assert evenly_by_load([*crowd, row(0.1, load=0.5), row(0.2, load=0.7), row(9.0, load=0.95)]) == pytest.approx(
        (0.1, 0.1)
    )
    assert all(map(isnan, evenly_by_load([row(0.1, load=0.95)])))


def test_a_target_that_was_not_measured_is_not_met():
    found = targets([row(0.0, load=0.95)])
    assert len(found) == 4
    assert not any(target.is_met for target in found)
    assert verdict([row(0.0, load=0.95)])[0].startswith("not measured")


def test_a_cell_is_as_loaded_as_its_most_loaded_row():
    cell = [row(ours=1.0, load=0.3, scheduler="a"), row(ours=2.0, load=0.85, scheduler="b")]
    other = [replace(each, where=replace(each.where, machine="other"), load=0.8) for each in cell]
    assert [order.load for order in orders([*cell, *other])] == [0.85, 0.8]
    assert [order.where.machine for order in valid_orders([*cell, *other])] == ["other"]


def test_an_order_names_the_best_there_and_the_one_chosen():
    found = orders([row(-0.5, ours=1.0, scheduler="a"), row(0.5, ours=1.5, scheduler="b")])  # referee: 2 and 1
    assert [(order.best, order.chosen) for order in found] == [("b", "a")]
    assert summarise_orders(found).regret == pytest.approx((1.0, 1.0))
    assert summarise_orders(found).tau == pytest.approx(-1.0)


def test_times_are_trusted_up_to_the_first_bin_that_misses():
    good = [row(0.01, load=load) for load in (0.1, 0.3, 0.5)]
    assert trusted_to(good) == (0.6, 0.6)
    assert trusted_to([*good, row(0.1, load=0.7), row(0.0, load=0.85)]) == (0.6, 0.9)
    assert trusted_to([row(0.2, load=0.1), *good[1:]]) == (0.0, 0.0)
    assert trusted_to([row(0.01, load=0.95)]) == (np.inf, np.inf)


def test_the_worst_comes_first():
    rows = [row(0.01, scheduler="a"), row(-0.4, scheduler="b"), row(0.1, scheduler="c"), row(2.0, load=0.99)]
    tables = {sheet.name: sheet for sheet in sheets(rows, [])}
    assert [cells[1] for cells in tables["worst"].rows] == ["b", "c", "a"]
    assert tables["worst"].rows[0][4] == "-40.0%"
    assert tables["errors"].rows[0][:2] == ["above 90%", "1"]
    assert [line.split(":")[0] for line in verdict(rows)[:3]].index(MISSED) == 0


def test_no_word_of_loads_without_a_family_that_has_one():
    assert verdict([row(asked_percent=None)]) == ["No family with a pace was played: nothing is said of loads."]


# Laws.

TIMES = st.lists(st.floats(0.01, 100.0), min_size=2, max_size=8, unique=True)
FACTOR = st.floats(0.1, 10.0)


@given(TIMES, FACTOR)
def test_identical_orders_have_a_tau_of_1_at_any_scale(times, factor):
    found = agreement(times, np.multiply(times, factor))
    if found.pairs == len(times) * (len(times) - 1) // 2:  # else two are the same but for rounding
        assert found.tau == pytest.approx(1.0)
    assert (found.wrong, found.regret) == (0, 0.0)


@given(TIMES, st.randoms(use_true_random=False), FACTOR, FACTOR)
def test_the_scale_of_neither_world_changes_an_agreement(times, random, mine, theirs):
    referee = [float(f"{time:.6g}") for time in times]
    ours = random.sample(referee, len(referee))
    plain, scaled = agreement(ours, referee), agreement(np.multiply(ours, mine), np.multiply(referee, theirs))
    assert (plain.pairs, plain.wrong) == (scaled.pairs, scaled.wrong)
    assert plain.tau == pytest.approx(scaled.tau, nan_ok=True)


@given(TIMES, st.randoms(use_true_random=False))
def test_tau_counts_pairs(times, random):
    referee = [float(f"{time:.6g}") for time in times]
    found = agreement(random.sample(times, len(times)), referee)
    if len(set(referee)) == len(times):
        assert found.tau == pytest.approx(1.0 - 2.0 * found.wrong / found.pairs)
    assert found.clear_wrong <= found.wrong
    assert found.clear_pairs <= found.pairs
    assert found.regret >= 0.0


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=20), FACTOR)
def test_a_world_that_is_slower_by_a_factor_shows_it_in_every_error(times, factor):
    found = row_of(judged([0] * len(times), times, np.multiply(times, factor).tolist()))
    expected = 1.0 / factor - 1.0
    assert found.response_error == pytest.approx(expected, abs=1e-9)
    assert (found.task_median, found.task_p95) == pytest.approx((abs(expected),) * 2, abs=1e-9)


@given(st.lists(st.floats(-0.9, 5.0), min_size=1, max_size=30), st.floats(0.0, 1.2))
def test_bins_part_the_rows(errors, load):
    rows = [row(error, load=load * number / len(errors)) for number, error in enumerate(errors)]
    parts = [[each for each in rows if in_bin(each.load, low, high)] for _, low, high in bins()]
    assert sum(summarise(part).num_rows for part in parts) == len(rows)


# The cells.


def test_every_default_is_there_and_there_are_enough_of_each():
    plan = Plan()
    assert len([name for name in plan.families if read_definition(STANDARD).families[name].load]) >= 6
    nodes = [load_machine(name).num_nodes for name in MACHINES]
    assert (min(nodes), max(nodes), len(nodes) >= 4) == (2, 16, True)
    roles = read_definition(STANDARD).machines
    assert {roles[name] for name in MACHINES} == {"training", "held out"}
    assert len(SCHEDULERS) >= 5
    assert LOADS_PERCENT == (20.0, 40.0, 60.0, 80.0, 95.0)


def test_families_with_a_pace_offer_the_load_they_are_asked_for():
    plan = Plan(machines=("kunpeng-920",), loads_percent=(20.0, 95.0))
    for cell in plan.cells():
        if cell.asked_percent is None:
            assert cell.cell.is_graph
        else:
            assert cell.cell.load == pytest.approx(cell.asked_percent / 100.0, rel=0.01), cell.name


def test_a_family_without_a_pace_is_played_once():
    cells = Plan(families=("transformer", "stream"), machines=("r815", "xeon-8269cy")).cells()
    assert [cell.asked_percent for cell in cells if cell.cell.family == "transformer"] == [None, None]
    assert len(cells) == 2 + 2 * len(LOADS_PERCENT)


def test_every_load_has_episodes_of_its_own_and_every_machine_the_same():
    plan = Plan(families=("stream",), machines=("r815", "xeon-8269cy"), loads_percent=(40.0, 80.0), num_episodes=2)
    demands = [cell.world(2, 0, loaded_latency=False).workload.bytes for cell in plan.cells()]
    assert (demands[0] == demands[1]).all()
    assert (demands[2] == demands[3]).all()
    assert (demands[0] != demands[2]).any()
    half = plan.cells()[2].world(1, 0, loaded_latency=True).workload.bytes
    assert (half == demands[2][:1]).all()


def test_a_world_can_be_without_the_loaded_latency_factor_and_is_else_the_same():
    cell = Plan(families=("stream",), machines=("r815",), loads_percent=(40.0,)).cells()[0]
    off, on = (cell.world(1, 0, loaded_latency=factor) for factor in (False, True))
    assert off.topologies[0].loaded_latency == NO_FACTOR
    assert on.topologies[0].loaded_latency == load_machine("r815").loaded_latency
    assert (off.workload.arrival_s == on.workload.arrival_s).all()
    assert off.window_s == on.window_s


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedulers": ("nobody", "greedy")}, "scheduler must be one of"),
        ({"schedulers": ("greedy", "greedy")}, "two or more, to be put in order, got 'greedy' alone"),
        ({"loads_percent": (0.0,)}, "loads must be > 0 and <= 200 percent, got 0.0"),
        ({"loads_percent": (float("nan"),)}, "got nan"),
        ({"num_episodes": 0}, "episodes must be at least 1|episodes must be >= 1"),
        ({"seed": -1}, "seed must be"),
        ({"families": ()}, "families must name at least one"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Plan(**change)


def test_unknown_families_and_machines_are_refused_by_name():
    with pytest.raises(ValueError, match=r"family must be one of stream, .*got 'streams'"):
        Plan(families=("streams",)).cells()
    with pytest.raises(ValueError, match="'nowhere'"):
        Plan(machines=("nowhere",)).cells()

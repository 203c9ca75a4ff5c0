"""What training saw: distances that mean the same on any machine, and files that are not to be trusted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from observations import random_rows
from strategies import seeds
from test_policy import relabelled, row_of, seen

from agents.ppo.storage import read_tensors, write_tensors
from agents.seen import NUM_FEATURES, Seen, read_seen, seen_features
from envs.observation import ObservationLayout
from numa_rl.machines.builders import eight_socket_cube, four_socket, two_socket

SIZES = (2, 4, 8)


def groups_of(rows: np.ndarray) -> dict[str, Any]:
    return ObservationLayout.of_size(rows.shape[-1]).split(rows)


@pytest.fixture(scope="module")
def training() -> list[np.ndarray]:
    """Observations of machines of three sizes in use."""
    return [seen(machine, num_rows=24) for machine in (two_socket(), four_socket(), eight_socket_cube())]


@pytest.fixture(scope="module")
def fitted(training: list[np.ndarray]) -> Seen:
    return Seen.fit(training)


def padded(rows: np.ndarray, num_nodes: int) -> np.ndarray:
    """The same observations with nodes that do not exist."""
    layout, before = ObservationLayout(num_nodes), groups_of(rows)
    wider = np.zeros((len(rows), layout.size), np.float32)
    for name, values in layout.split(wider).items():
        if name == "task":
            values[:] = before[name]
        elif values.ndim == 2:
            values[:, : before[name].shape[1]] = before[name]
        else:
            small = before[name].shape[1]
            values[:, :small, :small] = before[name]
    return wider


# Known answers


def test_features_of_a_row_made_by_hand() -> None:
    layout = ObservationLayout(2)
    rows = np.zeros((1, layout.size), np.float32)
    groups = layout.split(rows)
    groups["nodes"][:] = groups["task_mask"][:] = 1.0
    groups["memory"][0] = [0.0, np.e - 1.0]
    groups["communication"][0] = [[0.0, np.e - 1.0], [0.0, 0.0]]
    groups["latency"][0] = [[1.0, 3.0], [3.0, 1.0]]
    found = seen_features(groups)[0]
    assert found[:2] == pytest.approx([0.5, 1.0])  # mean and maximum of log(1 + memory)
    loads, crossing, nodes = found[23:25], found[25], found[26]
    assert loads == pytest.approx([0.5, 1.0])
    assert crossing == pytest.approx(1.0)
    assert nodes == pytest.approx(np.log(2.0))
    assert found[27:29] == pytest.approx([1.0, 0.0])  # open for tasks, open for data
    assert found[33:35] == pytest.approx([np.log(8.0) / 2.0, np.log(4.0)])


def test_the_distance_of_independent_features_counts_their_standard_deviations() -> None:
    rows = random_rows(np.random.default_rng(0), 4000, 3)
    fitted = Seen.fit([rows])
    features = seen_features(groups_of(rows))
    inside = features @ fitted.whitening
    spread = np.cov(inside.T)
    varied = features.std(axis=0) > 0.05
    assert np.diag(spread)[varied].mean() == pytest.approx(1.0, abs=0.1)
    assert float(np.mean(fitted.distance(groups_of(rows)) ** 2)) < NUM_FEATURES + 1


# Laws


@settings(max_examples=20, deadline=None)
@given(seed=seeds, num_nodes=st.sampled_from(SIZES))
def test_names_of_nodes_and_padding_change_no_distance(fitted: Seen, seed: int, num_nodes: int) -> None:
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, 5, num_nodes)
    groups_of(rows)["nodes"][:] = 1.0
    distance = fitted.distance(groups_of(rows))
    renamed = row_of(relabelled(groups_of(rows), rng.permutation(num_nodes)))
    assert fitted.distance(groups_of(renamed)) == pytest.approx(distance, rel=1e-5)
    assert fitted.distance(groups_of(padded(rows, num_nodes + 3))) == pytest.approx(distance, rel=1e-5)


def test_the_limit_holds_the_share_of_training_that_was_asked_for(training: list[np.ndarray]) -> None:
    for quantile in (0.9, 0.999):
        fitted = Seen.fit(training, quantile)
        inside = np.concatenate([fitted.contains(groups_of(rows)) for rows in training])
        assert inside.mean() == pytest.approx(quantile, abs=1.5 / len(inside))


def test_the_order_of_training_changes_nothing_but_digits(training: list[np.ndarray], fitted: Seen) -> None:
    other = Seen.fit([rows[::-1] for rows in reversed(training)])
    assert other.limit == pytest.approx(fitted.limit, rel=1e-6)
    rows = training[0][:10]
    assert other.distance(groups_of(rows)) == pytest.approx(fitted.distance(groups_of(rows)), rel=1e-6)


@pytest.mark.parametrize("group", ["queue", "memory", "estimate", "latency", "task"])
def test_what_training_never_met_is_unseen(training: list[np.ndarray], fitted: Seen, group: str) -> None:
    rows = training[2].copy()
    groups_of(rows)[group][:] *= 1000.0
    groups_of(rows)[group][:] += 1000.0
    assert not fitted.contains(groups_of(rows)).any()


# A real input


def test_other_episodes_of_the_same_machine_are_seen_and_another_size_is_not(fitted: Seen) -> None:
    again = seen(four_socket(), num_rows=8)
    assert fitted.contains(groups_of(again)).mean() > 0.98
    alone = groups_of(random_rows(np.random.default_rng(1), 50, 40))
    assert not fitted.contains(alone).any()


# Files


def test_what_is_read_back_is_what_was_written(fitted: Seen, training: list[np.ndarray], tmp_path: Path) -> None:
    write_tensors(tmp_path / "p", fitted.to_tensors(), {})
    tensors, _ = read_tensors(tmp_path / "p")
    read = Seen.from_tensors(tensors)
    rows = training[1][:50]
    assert (read.distance(groups_of(rows)) == fitted.distance(groups_of(rows))).all()
    assert read.limit == fitted.limit
    found = read_seen(tmp_path / "p")
    assert found is not None
    assert found.limit == fitted.limit


def test_a_file_that_says_nothing_of_it_is_told_from_a_bad_one(fitted: Seen, tmp_path: Path) -> None:
    tensors = fitted.to_tensors()
    write_tensors(tmp_path / "none", {"weight": tensors["seen.mean"]}, {})
    assert read_seen(tmp_path / "none") is None
    write_tensors(tmp_path / "bad", {"seen.mean": tensors["seen.mean"]}, {})
    with pytest.raises(ValueError, match=r"bad: seen\.\* must be limit, mean and whitening, got mean"):
        read_seen(tmp_path / "bad")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mean", np.zeros(3), "seen.mean must be floats of shape"),
        ("mean", np.full(NUM_FEATURES, np.nan), "seen.mean must be finite"),
        ("mean", np.zeros(NUM_FEATURES, np.int64), "seen.mean must be floats"),
        ("whitening", np.zeros((NUM_FEATURES, 1)), "seen.whitening must be floats of shape"),
        ("whitening", np.full((NUM_FEATURES, NUM_FEATURES), np.inf), "seen.whitening must be finite"),
        ("limit", np.array([0.0]), "seen.limit must be finite and > 0, got 0.0"),
        ("limit", np.array([np.nan]), "seen.limit must be finite and > 0, got nan"),
        ("limit", np.array([1.0, 2.0]), "seen.limit must be one float"),
        ("more", np.zeros(1), r"seen\.\* must be limit, mean and whitening, got limit, mean, more, whitening"),
    ],
)
def test_bad_numbers_are_named(fitted: Seen, name: str, value: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Seen.from_tensors({**fitted.to_tensors(), f"seen.{name}": value})


def test_numbers_that_numpy_does_not_know_are_named(fitted: Seen, tmp_path: Path) -> None:
    tensors = fitted.to_tensors()
    write_tensors(tmp_path / "p", tensors | {"seen.mean": tensors["seen.mean"].bfloat16()}, {})
    with pytest.raises(ValueError, match=r"p: seen\.mean must be floats that numpy knows: .*BFloat16"):
        read_seen(tmp_path / "p")


def test_bad_training_is_named(training: list[np.ndarray]) -> None:
    rows = training[0]
    with pytest.raises(ValueError, match="2 observations or more, got 1"):
        Seen.fit([rows[:1]])
    with pytest.raises(ValueError, match="2 observations or more, got 0"):
        Seen.fit([])
    with pytest.raises(ValueError, match="finite"):
        Seen.fit([np.where(np.arange(rows.shape[1]) == 3, np.nan, rows)])
    with pytest.raises(ValueError, match="full observation"):
        Seen.fit([np.zeros((4, 15), np.float32)])
    for quantile in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"quantile must be in \(0, 1\)"):
            Seen.fit([rows], quantile)
